//! Goal: certificates are chosen by the host that a client asks for, and replaced while the server
//! runs, for new connections only, all or nothing; what a client's certificate says is the name of
//! its token.
//!
//! Method: files changed under a running server, good and bad; rustls as the client.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::ClientConfig;

use crate::support::front::free_address;
use crate::support::tls::{Authority, HOST, TlsClient, TlsClientOptions, write};
use crate::support::{Server, request, run, wait_for};

fn dir() -> Arc<tempfile::TempDir> {
    Arc::new(tempfile::tempdir().unwrap())
}

/// A server with the certificate of `cert.pem`, which is there.
fn start(dir: &Arc<tempfile::TempDir>, more: &[(&str, &str)]) -> Server {
    let mut settings = vec![("LISTEN", "https://127.0.0.1:0"), ("TLS_CERT", "cert.pem")];
    settings.retain(|(name, _)| more.iter().all(|(set, _)| set != name));
    settings.extend_from_slice(more);
    Server::start_in(dir.clone(), &settings)
}

/// Waits until the reload has said `text`.
fn reload(server: &Server, text: &str) {
    let before = server.count_logged(text);
    server.signal("HUP");
    wait_for(text, || server.count_logged(text) > before);
}

fn shown(server: &Server, config: &Arc<ClientConfig>) -> Vec<u8> {
    TlsClient::connect(server.ingest, config).shown()
}

#[test]
fn the_certificate_is_the_one_for_the_host_that_is_asked_for() {
    let (root, dir) = (Authority::new("root"), dir());
    write(dir.path(), "a.pem", root.server(&["a.test"]));
    write(dir.path(), "b.pem", root.server(&["b.test", "*.b.test"]));
    let server = start(&dir, &[("TLS_CERT", "a.pem,b.pem")]);
    let config = root.trust().config();
    let shown = |host| TlsClient::try_connect(server.ingest, &config, host).map(|of| of.shown());
    let (a, b) = (shown("a.test").unwrap(), shown("b.test").unwrap());
    assert_ne!(a, b);
    assert_eq!(shown("x.b.test").unwrap(), b);
    // Others get the first one, which they refuse; the server says why.
    for host in ["other.test", "y.x.b.test", "127.0.0.1"] {
        let error = shown(host).err().unwrap();
        assert!(error.to_string().contains("not valid for name"), "{error}");
    }
    let refused = "reason=\"refused_by_client\"";
    server.wait("it is counted", |m| m.sum_where("millrace_tls_refusals_total", refused) == 3);
    server.wait_logged("its client refused this server's certificate");
}

#[test]
fn certificates_are_replaced_for_new_connections_whole_or_not_at_all() {
    let (root, dir) = (Authority::new("root"), dir());
    write(dir.path(), "cert.pem", root.server(&[HOST]));
    let server = start(&dir, &[]);
    let config = root.trust().config();
    let first = shown(&server, &config);
    let mut kept = TlsClient::connect(server.ingest, &config);
    let expiry =
        |server: &Server| server.metrics().sum("millrace_tls_certificate_expiry_timestamp_seconds");
    assert_eq!(expiry(&server), 4_733_510_400);
    assert_eq!(server.admin("/readyz").body, "ready\n");

    write(dir.path(), "cert.pem", root.server_valid(&[HOST], [2020, 2121]));
    reload(
        &server,
        "reload: new connections get TLS_CERT cert.pem: ingest.test; ECDSA P-256, valid until 2121-01-01",
    );
    let second = shown(&server, &config);
    assert_ne!(first, second);
    assert_eq!(kept.post(b"{\"data\":[1]}").status, 200, "the old connection goes on");
    assert_eq!(expiry(&server), 4_765_132_800);

    let expired = root.server_valid(&[HOST], [2000, 2001]);
    let other_key = root.server(&[HOST]);
    let (certificate, _) = expired.split_once("-----BEGIN PRIVATE").unwrap();
    let (_, key) = other_key.split_once("-----BEGIN PRIVATE").unwrap();
    let mismatch = format!("{certificate}-----BEGIN PRIVATE{key}");
    for (nth, (bad, says)) in
        [("", "is empty"), (expired.as_str(), "expired "), (&mismatch, "is not the key")]
            .into_iter()
            .enumerate()
    {
        write(dir.path(), "cert.pem", bad);
        reload(&server, "new connections get the certificates read before");
        let log = server.log();
        let error = log.iter().rfind(|line| line["level"] == "ERROR").unwrap().to_string();
        assert!(error.contains("TLS_CERT cert.pem") && error.contains(says), "{error}");
        assert_eq!(shown(&server, &config), second, "{says}");
        let metrics = server.metrics();
        assert_eq!(metrics.sum("millrace_tls_reload_failing"), 1);
        assert!(metrics.sum("millrace_tls_reload_failures_total") > nth as u64);
        let ready = server.admin("/readyz");
        assert_eq!(ready.status, 200);
        assert!(
            ready.body.contains("TLS files are refused since their last change"),
            "{}",
            ready.body
        );
    }
    // Without a signal, once it is steady.
    write(dir.path(), "cert.pem", root.server(&[HOST]));
    wait_for("the new one is in effect", || shown(&server, &config) != second);
    assert_eq!(server.admin("/readyz").body, "ready\n");
    assert_eq!(server.metrics().sum("millrace_tls_reload_failing"), 0);
}

/// One that expires soon is served, and everybody who looks is told.
#[test]
fn a_certificate_that_has_expired_is_served_and_warned_about() {
    let (root, dir) = (Authority::new("root"), dir());
    write(dir.path(), "cert.pem", root.server_valid(&[HOST], [2000, 2001]));
    let server = start(&dir, &[]);
    let ready = server.admin("/readyz");
    let says = "TLS_CERT cert.pem: it expired on 2001-01-01: clients refuse it; renew it";
    assert!(ready.status == 200 && ready.body.contains(says), "{}", ready.body);
    server.wait_logged(says);
    let error = TlsClient::try_connect(server.ingest, &root.trust().config(), HOST).err().unwrap();
    assert!(error.to_string().contains("certificate expired"), "{error}");
    let output = server.run_beside(&["check"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("cert.pem: it expired on 2001-01-01"), "{text}");
}

#[test]
fn check_says_what_it_found_and_a_start_refuses_what_it_cannot_use() {
    let (root, dir) = (Authority::new("root"), dir());
    let pair = root.server(&["a.test", "*.a.test"]);
    let (certificate, key) = pair.split_at(pair.find("-----BEGIN PRIVATE").unwrap());
    write(dir.path(), "cert.pem", certificate);
    write(dir.path(), "ca.pem", root.pem() + &Authority::new("other").pem());
    let check = |more: &[(&str, &str)]| {
        let settings = [
            ("LISTEN", "https://127.0.0.1:0"),
            ("ADMIN_LISTEN", "off"),
            ("TLS_CERT", "cert.pem"),
            ("TLS_KEY", "key.pem"),
            ("STORE", "null:"),
        ];
        let output = run(dir.path(), &["check"], &[&settings, more].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let private = |text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        write(dir.path(), "key.pem", text);
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(dir.path().join("key.pem"), mode).unwrap();
    };
    private(key);
    let (status, text) = check(&[("TLS_CLIENT_CA", "ca.pem")]);
    assert_eq!(status, Some(0), "{text}");
    for says in [
        "cert.pem: a.test, *.a.test; ECDSA P-256, valid until 2120-01-01 (",
        "ca.pem holds 2 authorities of client certificates",
    ] {
        assert!(text.contains(says), "{text}");
    }
    let (_, text) =
        check(&[("TLS_CLIENT_CA", "ca.pem"), ("LISTEN", "https://127.0.0.1:0,127.0.0.1:1")]);
    assert!(text.contains("127.0.0.1:1 is plain HTTP: without a certificate"), "{text}");
    private(certificate);
    let (status, text) = check(&[]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("key.pem holds no private key but CERTIFICATE"), "{text}");
    let settings =
        [("LISTEN", "https://127.0.0.1:0"), ("TLS_CERT", "cert.pem"), ("TLS_KEY", "key.pem")];
    let output = run(dir.path(), &[], &settings);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("key.pem holds no private key"), "{error}");
    use std::os::unix::fs::PermissionsExt as _;
    private(key);
    let mode = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(dir.path().join("key.pem"), mode).unwrap();
    let (status, text) = check(&[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("key.pem") && text.contains("may be read by every user"), "{text}");
}

/// A client of this authority with this name.
fn named(root: &Authority, authority: &Authority, name: &str) -> Arc<ClientConfig> {
    let options = TlsClientOptions { certificate: Some(authority.client(name)), ..root.trust() };
    options.config()
}

/// The status of a request on a connection of its own; `None` if there is no connection.
fn status(server: &Server, config: &Arc<ClientConfig>, headers: &str) -> Option<u16> {
    let mut client = TlsClient::try_connect(server.ingest, config, HOST).ok()?;
    client.try_send(request(b"{\"data\":[1]}", headers)).ok()?;
    // With TLS 1.3 a refusal comes after the client's part of the handshake.
    let mut first = [0; 16];
    let read = std::io::Read::read(&mut client.stream, &mut first).ok()?;
    str::from_utf8(&first[..read]).unwrap().split(' ').nth(1)?.parse().ok()
}

fn token_requests(server: &Server, name: &str, status: u16) -> u64 {
    let labels = format!("token=\"{name}\",status=\"{status}\"");
    server.metrics().sum_where("millrace_token_requests_total", &labels)
}

#[test]
fn without_tokens_every_client_needs_a_certificate() {
    let (root, clients, dir) = (Authority::new("root"), Authority::new("clients"), dir());
    write(dir.path(), "cert.pem", root.server(&[HOST]));
    write(dir.path(), "ca.pem", clients.pem());
    let plain = free_address();
    let listen = format!("https://127.0.0.1:0,{plain}");
    let settings = [("TLS_CLIENT_CA", "ca.pem"), ("LISTEN", &listen), ("META", "token")];
    let server = start(&dir, &settings);
    assert_eq!(status(&server, &named(&root, &clients, "gate-7"), ""), Some(200));
    assert_eq!(status(&server, &named(&root, &clients, "two words"), ""), Some(200));
    assert_eq!(status(&server, &root.trust().config(), ""), None);
    assert_eq!(status(&server, &named(&root, &root, "gate-7"), ""), None);
    assert_eq!(token_requests(&server, "gate-7", 200), 1);
    assert_eq!(token_requests(&server, "(unnamed)", 200), 1);
    let refused = "reason=\"client_certificate\"";
    server.wait("both are counted", |m| m.sum_where("millrace_tls_refusals_total", refused) == 2);
    // Nobody gets in by another door.
    let mut client = crate::support::Client::connect(plain);
    assert_eq!(client.post(b"{\"data\":[1]}").status, 401);
    assert_eq!(client.post(b"{\"token\":\"x\",\"data\":[1]}").status, 401);
    drop(client);
    server.wait("both are stored", |m| m.sum("millrace_payloads_stored_total") == 2);
    let stored: Vec<String> =
        server.stored().into_values().map(|bytes| String::from_utf8(bytes).unwrap()).collect();
    assert!(stored.iter().any(|text| text.contains("gate-7")), "{stored:?}");
    server.wait_idle();
}

#[test]
fn with_tokens_a_request_needs_either_and_the_quota_of_the_name_holds() {
    let (root, clients, dir) = (Authority::new("root"), Authority::new("clients"), dir());
    write(dir.path(), "cert.pem", root.server(&[HOST]));
    write(dir.path(), "ca.pem", clients.pem());
    write(dir.path(), "tokens", "alpha;name=gate-7;rate=3/h;burst=3\nbeta;name=b\n");
    let server = start(&dir, &[("TLS_CLIENT_CA", "ca.pem"), ("TOKENS_FILE", "tokens")]);
    let (with, without) = (named(&root, &clients, "gate-7"), root.trust().config());
    let other = named(&root, &clients, "gate-8");
    assert_eq!(status(&server, &without, ""), Some(401));
    assert_eq!(status(&server, &without, "x-api-key: beta\r\n"), Some(200));
    assert_eq!(status(&server, &named(&root, &root, "gate-7"), ""), None, "of another authority");
    // A token in a header comes first, also a wrong one.
    assert_eq!(status(&server, &with, "x-api-key: beta\r\n"), Some(200));
    assert_eq!(status(&server, &with, "x-api-key: wrong\r\n"), Some(401));
    assert_eq!(token_requests(&server, "b", 200), 2);
    for expected in [200, 200, 200, 429] {
        assert_eq!(status(&server, &with, ""), Some(expected));
    }
    assert_eq!(token_requests(&server, "gate-7", 200), 3);
    assert_eq!(token_requests(&server, "gate-7", 429), 1);
    for _ in 0..5 {
        assert_eq!(status(&server, &other, ""), Some(200), "it has none");
    }
    // The certificate decides before the body, whose token does not matter then.
    let mut client = TlsClient::connect(server.ingest, &other);
    assert_eq!(client.post(b"{\"token\":\"wrong\",\"data\":[1]}").status, 200);
    // Chunked, so that hyper reads it.
    client.send("POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n");
    assert_eq!(client.reply().status, 200);
    assert_eq!(token_requests(&server, "gate-8", 200), 7);
    // A reload of the tokens keeps the name's place.
    write(dir.path(), "tokens", "alpha;name=gate-8;rate=1/h;burst=1\n");
    reload(&server, "TOKENS_FILE tokens: 1 tokens are accepted");
    assert_eq!(client.post(b"{\"data\":[]}").status, 200);
    assert_eq!(client.post(b"{\"data\":[]}").status, 429);
    assert_eq!(token_requests(&server, "gate-8", 200), 8);
}

/// A ticket says who its client is, so other authorities make it worthless.
#[test]
fn tickets_end_with_the_authority_that_vouched() {
    let (root, clients, dir) = (Authority::new("root"), Authority::new("clients"), dir());
    write(dir.path(), "cert.pem", root.server(&[HOST]));
    write(dir.path(), "ca.pem", clients.pem());
    let server = start(&dir, &[("TLS_CLIENT_CA", "ca.pem")]);
    let config = TlsClientOptions {
        certificate: Some(clients.client("gate-7")),
        resumes: true,
        ..root.trust()
    }
    .config();
    let resumed = || {
        let mut client = TlsClient::try_connect(server.ingest, &config, HOST).ok()?;
        client.try_send(request(b"{\"data\":[]}", "")).ok()?;
        let mut read = [0; 12];
        std::io::Read::read_exact(&mut client.stream, &mut read).ok()?;
        Some(client.is_resumed())
    };
    assert_eq!((resumed(), resumed()), (Some(false), Some(true)));
    reload(&server, "TLS_CLIENT_CA has 1 authorities");
    assert_eq!(resumed(), Some(true));
    write(dir.path(), "ca.pem", Authority::new("others").pem());
    reload(&server, "TLS_CLIENT_CA has 1 authorities");
    assert_eq!(resumed(), None);
    assert_eq!(token_requests(&server, "gate-7", 200), 3);
}

/// The files may be links that are swapped together, as Kubernetes does it.
#[test]
fn the_swap_of_a_link_is_a_change() {
    let (root, dir) = (Authority::new("root"), dir());
    let put = |name: &str| {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        write(&dir.path().join(name), "tls.pem", root.server(&[HOST]));
    };
    let link = |to: &str| {
        let (new, path) = (dir.path().join("..new"), dir.path().join("..data"));
        std::os::unix::fs::symlink(Path::new(to), &new).unwrap();
        std::fs::rename(new, path).unwrap();
    };
    put("first");
    link("first");
    let server = start(&dir, &[("TLS_CERT", "..data/tls.pem")]);
    let config = root.trust().config();
    let before = shown(&server, &config);
    put("second");
    link("second");
    wait_for("the new one is in effect", || shown(&server, &config) != before);
}
