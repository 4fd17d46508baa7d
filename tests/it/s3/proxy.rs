//! The store through a proxy: goal, requests arrive as the proxy and the store want them, what goes
//! wrong on the way names the proxy, and its password is shown nowhere.

use std::ffi::OsString;

use millrace::internals::config::S3Client;
use millrace::internals::store::s3::proxies::Proxies;
use millrace::internals::store::s3::sdk::S3Store;
use millrace::internals::store::s3::{self, Overrides};
use millrace::internals::store::{Class, Object};

use crate::s3::wire::tls_for;
use crate::support::proxy::ProxyServer;
use crate::support::run;
use crate::support::s3::{ACCESS_KEY, BUCKET, Fault, Options, S3Server, SECRET_KEY, silent_port};
use crate::support::s3_client::{
    UNRESOLVABLE, host, on_both_clients, on_executor, options, overrides, payload, store_at, target,
};

/// Nobody can resolve it (RFC 6761).
const HOST: &str = "s3.corp.invalid";

on_both_clients!(
    plain_http_is_asked_for_in_absolute_form,
    https_goes_through_a_tunnel,
    a_redirect_finds_its_own_way,
    what_goes_wrong_names_the_proxy,
);

fn proxies(env: &[(&str, &str)]) -> Option<Proxies> {
    let value = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
    Some(Proxies::read(&value).expect("good values"))
}

fn through(proxy: &str, endpoint: &str, server: &S3Server) -> Overrides {
    Overrides {
        endpoint_url: Some(endpoint.to_owned()),
        proxies: proxies(&[("ALL_PROXY", proxy)]),
        ..overrides(server)
    }
}

fn plain_http_is_asked_for_in_absolute_form(client: S3Client) {
    let server = S3Server::start();
    let proxy = ProxyServer::start(&[(HOST, server.addr())]);
    on_executor(async {
        for (user, sent) in [(None, None), (Some("me:p%40ss"), Some("Basic bWU6cEBzcw=="))] {
            let url = user.map_or_else(|| proxy.url(), |user| proxy.url_of(user));
            let overrides = through(&url, &format!("http://{HOST}:9000"), &server);
            let (_aws, store) = store_at(target(options(client)), overrides).await;
            // s3s checks the signature, which covers the host and the path.
            store.put(&Object::of("a key", &payload("{}"))).await.expect("a put");
            assert_eq!(server.object("a key"), Some(b"{}".to_vec()));
            assert_eq!(server.last_request().header("host"), Some(&*format!("{HOST}:9000")));
            let head = proxy.heads().pop().expect("it went through the proxy");
            assert!(
                head.starts_with(&format!("PUT http://{HOST}:9000/{BUCKET}/a%20key")),
                "{head}"
            );
            let authorization =
                head.lines().find_map(|line| line.strip_prefix("proxy-authorization: "));
            assert_eq!(authorization, sent);
        }
        // Loopback is never asked for through it.
        proxy.forget();
        let overrides = through(&proxy.url(), &server.url(), &server);
        let (_aws, store) = store_at(target(options(client)), overrides).await;
        store.put(&Object::of("k", &payload("{}"))).await.expect("a put");
        assert!(proxy.heads().is_empty());
    });
}

fn https_goes_through_a_tunnel(client: S3Client) {
    let (tls, root, _) = tls_for(&[HOST]);
    let server = S3Server::start_with(Options { tls: Some(tls), ..Options::default() });
    let proxy = ProxyServer::start(&[(HOST, server.addr())]);
    on_executor(async {
        let url = proxy.url_of("me:secret");
        let mut overrides = through(&url, &format!("https://{HOST}"), &server);
        overrides.roots = vec![root];
        let (_aws, store) = store_at(target(options(client)), overrides).await;
        for key in ["a", "b"] {
            store.put(&Object::of(key, &payload(vec![b'x'; 300_000]))).await.expect("a put");
        }
    });
    assert_eq!(server.objects().len(), 2);
    let [head] = &proxy.heads()[..] else { panic!("one tunnel: {:?}", proxy.heads()) };
    assert!(
        head.starts_with(&format!("CONNECT {HOST}:443 HTTP/1.1\r\nhost: {HOST}:443\r\n")),
        "{head}"
    );
    assert!(head.contains("proxy-authorization: Basic bWU6c2VjcmV0\r\n"), "{head}");
    assert_eq!(server.last_request().header("proxy-authorization"), None);
}

fn a_redirect_finds_its_own_way(client: S3Client) {
    let (here, there) = (S3Server::start(), S3Server::start());
    let proxy = ProxyServer::start(&[(HOST, here.addr()), ("other.invalid", there.addr())]);
    on_executor(async {
        for (exempt, heads) in [("", 2), ("other.invalid", 1)] {
            proxy.forget();
            let env = [("HTTP_PROXY", &*proxy.url()), ("NO_PROXY", exempt)];
            let overrides = Overrides {
                endpoint_url: Some(format!("http://{HOST}")),
                proxies: proxies(&env),
                hosts: vec![host("other.invalid", there.addr())],
                ..overrides(&here)
            };
            let (_aws, store) = store_at(target(options(client)), overrides).await;
            here.fail_next(Fault::redirect(&format!("http://other.invalid/{BUCKET}/k")));
            store.put(&Object::of("k", &payload("{}"))).await.expect("a put");
            assert_eq!(proxy.heads().len(), heads, "{:?}", proxy.heads());
        }
    });
    assert_eq!(there.requests().len(), 2);
    assert!(here.objects().is_empty());
}

/// An answer that is no more than its head.
fn bare(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")
}

fn what_goes_wrong_names_the_proxy(client: S3Client) {
    let server = S3Server::start();
    let proxy = ProxyServer::start(&[]);
    let (_nobody, closed) = silent_port();
    let place = proxy.url().replace("http://", "");
    let unresolvable = format!("http://me:hunter2@{UNRESOLVABLE}:3128");
    on_executor(async {
        let (http, https) = (format!("http://{HOST}"), format!("https://{HOST}"));
        let auth = bare("407 Proxy Authentication Required");
        let garbage = "SSH-2.0-OpenSSH_9.2\r\n".to_owned();
        for (endpoint, answer, code, class, parts) in [
            (&https, auth.clone(), "ProxyRefused", Class::Transient, "407 Proxy Authentication"),
            (&https, bare("503 Busy"), "ProxyRefused", Class::Transient, "it answered 503 Busy"),
            (&https, garbage.clone(), "BadAnswer", Class::Transient, "not HTTP"),
            (&https, String::new(), "ConnectionBroken", Class::Transient, "closed by the proxy"),
            (&http, auth, "Http407", Class::StoreWide, "answered 407"),
            (&http, bare("502 Bad Gateway"), "Http502", Class::Transient, "answered 502"),
            (&http, garbage, "BadAnswer", Class::Transient, "invalid response"),
            (&http, String::new(), "ConnectionBroken", Class::Transient, "broke"),
        ] {
            proxy.answer(&answer);
            let overrides = through(&proxy.url_of("me:hunter2"), endpoint, &server);
            let (_aws, store) = store_at(target(options(client)), overrides).await;
            let error = store.put(&Object::of("k", &payload("{}"))).await.unwrap_err();
            let text = error.to_string();
            assert_eq!((error.code.as_str(), error.class), (code, class), "{answer:?}: {text}");
            assert!(text.contains(parts), "{answer:?}: {text}");
            assert!(text.contains(&format!("through proxy http://{place}")), "{answer:?}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        for (url, code, parts) in [
            (format!("http://me:hunter2@{closed}"), "Unreachable", "refused"),
            (unresolvable, "Unresolved", UNRESOLVABLE),
        ] {
            let overrides = through(&url, &http, &server);
            let (_aws, store) = store_at(target(options(client)), overrides).await;
            let error = store.put(&Object::of("k", &payload("{}"))).await.unwrap_err();
            let text = error.to_string();
            assert_eq!(error.code, code, "{text}");
            assert!(text.contains(parts) && text.contains("through proxy http://"), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    });
    assert!(server.requests().is_empty());
}

#[test]
fn the_probe_goes_through_the_proxy_and_names_it() {
    let server = S3Server::start();
    let proxy = ProxyServer::start(&[(HOST, server.addr())]);
    let (_nobody, closed) = silent_port();
    on_executor(async {
        let probe = async |url: &str, endpoint: &str| {
            let overrides = through(url, endpoint, &server);
            let aws = s3::start(target(options(S3Client::Direct)), overrides).await.unwrap();
            let store = S3Store::new(aws.shared(), 1);
            store.probe().await
        };
        let (http, https) = (format!("http://{HOST}"), format!("https://{HOST}"));
        assert!(probe(&proxy.url(), &http).await.is_ok());
        assert_eq!(server.requests().len(), 1);
        let (http_proxy, secret) = (proxy.url(), proxy.url_of("me:hunter2"));
        for (url, endpoint, answer, may_pass, parts) in [
            (&secret, &https, "407 No", false, ["refuses requests to", "answered 407"]),
            (&secret, &https, "403 No", false, ["refuses requests to", "NO_PROXY"]),
            (&secret, &https, "504 Late", true, ["cannot be reached", "504 Late"]),
            (&secret, &http, "407 No", false, ["refuses requests to", "answered 407"]),
            (&secret, &http, "403 No", false, ["refuses requests to", "answered 403"]),
            (
                &format!("http://me:hunter2@{closed}"),
                &https,
                "",
                true,
                ["refused", "correct HTTPS_PROXY"],
            ),
        ] {
            proxy.answer(&bare(answer));
            let error = probe(url, endpoint).await.unwrap_err();
            let text = error.to_string();
            assert_eq!(error.may_pass(), may_pass, "{text}");
            for part in parts {
                assert!(text.contains(part), "{answer}: {text}");
            }
            assert!(text.contains("proxy http://127.0.0.1:"), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        proxy.answer(&bare("502 Bad Gateway"));
        let said = format!("{:?}", probe(&http_proxy, &http).await);
        assert!(
            said.contains(&format!("the store, or proxy {http_proxy}, answered 502")),
            "{said}"
        );
    });
}

/// What `check` says with `env`, and its exit status.
fn check(env: &[(&str, &str)]) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut all = vec![
        ("STORE", "s3://payloads/in/"),
        ("LISTEN", "127.0.0.1:0"),
        ("ADMIN_LISTEN", "127.0.0.1:0"),
        ("CORES", "0"),
        ("LOG", "debug"),
        ("HOME", "/nonexistent"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_REGION", "us-east-1"),
    ];
    all.extend_from_slice(env);
    let output = run(folder.path(), &["check"], &all);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), text)
}

#[test]
fn the_binary_takes_its_proxy_from_the_environment() {
    let server = S3Server::start();
    let proxy = ProxyServer::start(&[(HOST, server.addr())]);
    let keys = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
    let endpoint = format!("http://{HOST}:9000");
    let url = proxy.url_of("me:hunter2");
    for variable in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        proxy.forget();
        let mut env = keys.to_vec();
        env.extend([("AWS_ENDPOINT_URL", &*endpoint), (variable, &*url)]);
        let (status, text) = check(&env);
        assert_eq!(status, 0, "{variable}: {text}");
        let heads = proxy.heads();
        assert!(heads.len() == 1 && heads[0].starts_with("GET http://s3.corp.invalid:9000/"));
        assert!(text.contains(&format!("through proxy {}", proxy.url())), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("bWU6aHVudGVyMg"), "{text}");
    }
    for (variable, value, reason) in [
        (
            "HTTPS_PROXY",
            "https://me:hunter2@p:1",
            "HTTPS_PROXY names a proxy that speaks TLS itself",
        ),
        ("all_proxy", "socks5://hunter2:1", "all_proxy names a SOCKS proxy"),
        ("http_proxy", "http://hunter2:port", "http_proxy is not a proxy"),
    ] {
        let mut env = keys.to_vec();
        env.extend([("AWS_ENDPOINT_URL", &*endpoint), (variable, value)]);
        let (status, text) = check(&env);
        assert_eq!(status, 2, "{variable}: {text}");
        assert!(text.contains(reason) && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn credentials_of_a_web_identity_come_through_the_proxy_too() {
    let (server, sts) = (S3Server::start(), S3Server::start());
    sts.fail_when(|_| {
        let body = format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/r/s</Arn>\
             <AssumedRoleId>a:b</AssumedRoleId></AssumedRoleUser><Credentials>\
             <AccessKeyId>{ACCESS_KEY}</AccessKeyId><SecretAccessKey>{SECRET_KEY}</SecretAccessKey>\
             <SessionToken>web</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>\
             </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        );
        Some(Fault::Reply { status: 200, headers: vec![], body })
    });
    let hosts = [(HOST, server.addr()), ("sts.corp.invalid", sts.addr())];
    let proxy = ProxyServer::start(&hosts);
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "a-web-identity-token").unwrap();
    let (status, text) = check(&[
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.path().to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
        ("AWS_ENDPOINT_URL_STS", "http://sts.corp.invalid"),
        ("AWS_ENDPOINT_URL_S3", "http://s3.corp.invalid"),
        ("HTTP_PROXY", &proxy.url()),
    ]);
    assert_eq!(status, 0, "{text}");
    let heads = proxy.heads();
    assert!(heads[0].starts_with("POST http://sts.corp.invalid/"), "{heads:?}");
    assert_eq!(server.last_request().header("x-amz-security-token"), Some("web"));
}
