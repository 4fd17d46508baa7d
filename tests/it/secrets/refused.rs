//! What is refused, or fails, because a value with a secret in it is wrong: the message names the
//! setting, the file or the service, and not the value.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::canaries::{
    ACCESS_KEY, ADMIN_TOKEN, CLIENT_TOKEN, CONTAINER_TOKEN, ENDPOINT_PASSWORD, IDENTITY_TOKEN,
    PRIVATE_KEY, PROXY_PASSWORD, SECRET_KEY, SESSION_TOKEN, Search,
};
use crate::support::command;
use crate::support::s3::{BUCKET, Fault, S3Server};
use crate::support::tls::{Authority, HOST, ed25519};

/// One wrong value.
struct Wrong {
    /// Variables, settings and flags; a flag begins with `--`.
    given: Vec<(&'static str, String)>,
    /// Files by name, in the directory of the process.
    files: Vec<(&'static str, String)>,
    /// A part of what must be said about it.
    says: &'static str,
}

fn wrong(
    says: &'static str,
    given: &[(&'static str, &str)],
    files: &[(&'static str, &str)],
) -> Wrong {
    let owned = |all: &[(&'static str, &str)]| {
        all.iter().map(|(name, text)| (*name, (*text).to_owned())).collect()
    };
    Wrong { given: owned(given), files: owned(files), says }
}

/// A command, a level and a format.
type RunWay = (&'static [&'static str], &'static str, &'static str);

/// `check` and a server, where most is logged and as it is by default.
const WAYS: [RunWay; 4] = [
    (&["check"], "trace", "text"),
    (&[], "info", "json"),
    (&["check"], "info", "json"),
    (&[], "trace", "text"),
];

/// Runs the binary with `wrong` in these ways, and searches what it says. `base` are the settings
/// that it does not have itself.
fn look(search: &mut Search, base: &[(&str, &str)], wrong: &Wrong, ways: &[RunWay]) {
    for (command, level, format) in ways {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in &wrong.files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let flags = wrong.given.iter().filter(|(name, _)| name.starts_with("--"));
        let flags = flags.flat_map(|(name, value)| [*name, value.as_str()]);
        let args: Vec<&str> = command.iter().copied().chain(flags).collect();
        let given = wrong.given.iter().filter(|(name, _)| !name.starts_with("--"));
        let given: Vec<_> = given.map(|(name, value)| (*name, value.as_str())).collect();
        let own = [("LOG", *level), ("LOG_FORMAT", *format), ("LISTEN", "127.0.0.1:0")];
        let more = [("ADMIN_LISTEN", "127.0.0.1:0"), ("CORES", "0"), ("HOME", "/nonexistent")];
        let rest = base.iter().chain(&own).chain(&more).copied();
        let rest = rest.filter(|(name, _)| given.iter().all(|(set, _)| set != name));
        let settings: Vec<_> = rest.chain(given.iter().copied()).collect();
        let said = run(dir.path(), &args, &settings);
        let door = format!("{:?} {:?} ({args:?}, {level} {format})", wrong.given, wrong.files);
        search.look(&door, &said, &[]);
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains(wrong.says), "{door}: no {:?} in {said}", wrong.says);
    }
}

/// Standard output and standard error of a process, which is ended if it serves.
fn run(dir: &Path, args: &[&str], settings: &[(&str, &str)]) -> Vec<u8> {
    let mut command = command(dir, args, settings);
    let files = ["said", "complained"].map(|name| dir.join(name));
    let [out, err] = files.each_ref().map(|path| fs::File::create(path).unwrap());
    let child = command.stdout(out).stderr(err).stdin(Stdio::null()).spawn().unwrap();
    let serves = || fs::read_to_string(&files[1]).is_ok_and(|said| said.contains("serving; a 200"));
    end(child, serves);
    files.map(|path| fs::read(path).unwrap()).concat()
}

/// Waits for the end of a process, and ends it once it `serves`.
fn end(mut child: Child, serves: impl Fn() -> bool) {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if serves() || started.elapsed() > Duration::from_secs(60) {
            let _ended_already = child.kill();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A PEM block as an operator may put it into the wrong file.
fn private_key() -> String {
    format!("-----BEGIN PRIVATE KEY-----\n{PRIVATE_KEY}\n-----END PRIVATE KEY-----\n")
}

#[test]
fn no_refused_value_is_shown() {
    let keys = [
        ("STORE", &*format!("s3://{BUCKET}/")),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9"),
    ];
    let (e, p) = (ENDPOINT_PASSWORD, PROXY_PASSWORD);
    let mut rows = vec![
        // Keys that no header can carry.
        wrong("AWS_ACCESS_KEY_ID", &[("AWS_ACCESS_KEY_ID", &format!("{ACCESS_KEY} x"))], &[]),
        wrong(
            "AWS_SECRET_ACCESS_KEY",
            &[("AWS_SECRET_ACCESS_KEY", &format!("{SECRET_KEY}\nx"))],
            &[],
        ),
        wrong("SECRET_ACCESS_KEY", &[("SECRET_ACCESS_KEY", &format!("{SECRET_KEY}\u{7}x"))], &[]),
        wrong("AWS_SESSION_TOKEN", &[("AWS_SESSION_TOKEN", &format!("{SESSION_TOKEN} x"))], &[]),
        wrong(
            "AWS_CONTAINER_AUTHORIZATION_TOKEN",
            &[("AWS_CONTAINER_AUTHORIZATION_TOKEN", &format!("{CONTAINER_TOKEN} x"))],
            &[],
        ),
    ];
    // URLs with a password, whole and broken.
    for variable in [
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL_STS",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    ] {
        for url in [
            format!("http://me:{e}@s3.corp"),
            format!("http://me:{e}@s3.corp:99999"),
            format!("http://me:{e}@s3 corp"),
            format!("me:{e}@s3.corp"),
            format!("{e}@s3.corp/x@y"),
            format!("http://s3.corp:{e}"),
            format!("http://s3.corp/ x?X-Amz-Signature={e}"),
            format!("ftp://s3.corp/?sig={e}"),
            format!("http://me:p@ss@{e}@s3.corp"),
        ] {
            rows.push(wrong("", &[(variable, &url)], &[]));
        }
    }
    rows.push(wrong(
        "endpoint",
        &[("AWS_ENDPOINT_URL_S3", &format!("http://s3.corp/?sig={e}"))],
        &[],
    ));
    let profile =
        format!("[default]\nregion = eu-central-1\nendpoint_url = http://me:{e}@s3.corp\n");
    rows.push(wrong(
        "endpoint",
        &[("AWS_ENDPOINT_URL_S3", ""), ("AWS_CONFIG_FILE", "config")],
        &[("config", &profile)],
    ));
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"] {
        for url in [
            format!("http://me:{p}@"),
            format!("http://me:{p}@proxy corp"),
            format!("http://me:{p}@proxy:99999"),
            format!("socks5://me:{p}@proxy"),
            format!("https://me:{p}@proxy"),
            format!("x://me:{p}@proxy"),
            format!("http://me:{p}%0a@proxy"),
            format!("http://proxy/{p}"),
        ] {
            rows.push(wrong("", &[(proxy, &url)], &[]));
        }
    }
    // Settings of millrace that hold a URL.
    for (name, scheme) in [
        ("STORE", "s3"),
        ("STORE", "https"),
        ("LISTEN", "http"),
        ("LISTEN", "x"),
        ("ADMIN_LISTEN", "http"),
        ("CORS_ORIGINS", "https"),
    ] {
        for url in [
            format!("{scheme}://me:{e}@host/x"),
            format!("{scheme}://{e}@host"),
            format!("{scheme}://me:p@{e}@host:1"),
            format!("{scheme}://me:p,{e}@host"),
            format!("{scheme}://me:p/{e}@host"),
            format!("{scheme}://KEY:{e}/bucket"),
            format!("{scheme}://KEY:p,{e}/bucket"),
        ] {
            rows.push(wrong(name, &[(name, &url)], &[]));
            // The variables of `look` come before a file.
            if name != "LISTEN" && name != "ADMIN_LISTEN" && name != "STORE" {
                let toml = format!("{} = \"{url}\"\n", name.to_lowercase());
                rows.push(wrong("m.toml", &[("MILLRACE_CONFIG", "m.toml")], &[("m.toml", &toml)]));
            }
        }
    }
    // Files.
    for (line, says) in [
        (format!("{CLIENT_TOKEN} {CLIENT_TOKEN}"), "line 2"),
        (format!("{CLIENT_TOKEN};secret"), "line 2"),
        (format!("{CLIENT_TOKEN};{CLIENT_TOKEN}"), "line 2"),
        (format!("{CLIENT_TOKEN};name={CLIENT_TOKEN}!"), "line 2"),
        (format!("{CLIENT_TOKEN};rate={CLIENT_TOKEN}"), "line 2"),
        (format!("{CLIENT_TOKEN};bytes={CLIENT_TOKEN}/s"), "line 2"),
        (format!("sha256={CLIENT_TOKEN}"), "line 2"),
        (format!("{CLIENT_TOKEN}\u{0}"), "line 2"),
        (CLIENT_TOKEN.repeat(5_000), "line 2"),
    ] {
        let file = format!("fine\n{line}\n");
        rows.push(wrong(says, &[("TOKENS_FILE", "tokens")], &[("tokens", &file)]));
    }
    for (text, says) in [
        (format!("admin_token = \"{ADMIN_TOKEN}\n"), " is not TOML"),
        (format!("admin_token = {ADMIN_TOKEN}\n"), " is not TOML"),
        (format!("admin_token = \"{ADMIN_TOKEN}\" x\n"), " is not TOML"),
        (format!("\"{ADMIN_TOKEN}\n"), " is not TOML"),
        (
            format!("admin_token = \"{ADMIN_TOKEN}\"\nadmin_token = \"{ADMIN_TOKEN}\"\n"),
            " is not TOML",
        ),
        (format!("aws_secret_access_key = \"{SECRET_KEY}\"\n"), "unknown setting"),
        (format!("admin_token = [\"{ADMIN_TOKEN}\"]\n"), "ADMIN_TOKEN"),
        (format!("admin_token = {{ token = \"{ADMIN_TOKEN}\" }}\n"), "ADMIN_TOKEN"),
        (format!("admin_token = \"{ADMIN_TOKEN} x\"\n"), "ADMIN_TOKEN"),
    ] {
        rows.push(wrong(says, &[("MILLRACE_CONFIG", "m.toml")], &[("m.toml", &text)]));
    }
    for lines in [
        format!("aws_secret_access_key {SECRET_KEY}\n"),
        format!("{SECRET_KEY}\n"),
        format!("= {SECRET_KEY}\n"),
        format!("aws_access_key_id = {ACCESS_KEY} x\n"),
        format!("aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = \n  {SECRET_KEY}\n"),
        format!("s3 =\n  {SECRET_KEY}\n"),
        format!("credential_process = /bin/x {SECRET_KEY}\n"),
        format!("aws_access_key_id = {ACCESS_KEY}\n[{SECRET_KEY}\n"),
        format!("[{SECRET_KEY} {SECRET_KEY}]\n"),
        format!("x {SECRET_KEY}=1\n"),
        format!("[services x]\ns3 =\n  {SECRET_KEY}\n"),
    ] {
        for variable in ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"] {
            let text = format!("[default]\n{lines}");
            let given =
                [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", ""), (variable, "aws")];
            rows.push(wrong("", &given, &[("aws", &text)]));
        }
    }
    // What is no key, a key that lost its lines, and one where something else belongs.
    let pem = |label: &str| private_key().replace("PRIVATE KEY", label);
    let good = Authority::new("root").server(&[HOST]);
    let good_certificate = good.split("-----BEGIN PRIVATE").next().unwrap();
    let mut broken: Vec<String> = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"]
        .into_iter()
        .chain(["ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY", PRIVATE_KEY])
        .map(pem)
        .collect();
    broken.extend([
        ed25519(PRIVATE_KEY).replace('\n', " "),
        ed25519(PRIVATE_KEY).replace('\n', " ") + "\n",
        ed25519(PRIVATE_KEY).replace('\n', "\\n"),
        ed25519(PRIVATE_KEY).replace("-----\n", "-----"),
        ed25519(PRIVATE_KEY).replace("-----BEGIN", "----BEGIN"),
        private_key().replace("KEY-----\n", "KEY-----"),
        private_key().replace("\n-----END", " -----END"),
        private_key().replace("-----BEGIN", "-----BEGINS"),
        format!("-----BEGIN PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n{PRIVATE_KEY}\n"),
        format!("-----BEGIN PRIVATE KEY-----\n{PRIVATE_KEY}\n"),
        format!("{PRIVATE_KEY}\n-----END PRIVATE KEY-----\n"),
        format!("-----BEGIN {PRIVATE_KEY}\n"),
        format!("0\u{1}{PRIVATE_KEY}"),
        PRIVATE_KEY.to_owned(),
        private_key().repeat(2),
        private_key().repeat(20_000),
    ]);
    for (variable, says) in [("AWS_CA_BUNDLE", "AWS_CA_BUNDLE=pem"), ("SSL_CERT_FILE", "")] {
        for text in broken.iter().filter(|text| text.len() < 100_000) {
            rows.push(wrong(says, &[(variable, "pem")], &[("pem", text)]));
        }
    }
    let https = ("LISTEN", "https://127.0.0.1:0");
    let cert = ("TLS_CERT", "cert.pem");
    for text in broken {
        for certificate in [good_certificate.to_owned(), good.clone(), text.clone()] {
            let given = [https, cert, ("TLS_KEY", "key.pem")];
            let files = [("cert.pem", &*certificate), ("key.pem", &*text)];
            let says = if certificate == text { " cert.pem " } else { " key.pem " };
            rows.push(wrong(says, &given, &files));
        }
        rows.push(wrong(" cert.pem ", &[https, cert], &[("cert.pem", &text)]));
        let both = format!("{good_certificate}{text}");
        rows.push(wrong(" cert.pem ", &[https, cert], &[("cert.pem", &both)]));
        let authority = [https, cert, ("TLS_CLIENT_CA", "ca.pem")];
        let files = [("cert.pem", &*good), ("ca.pem", &*text)];
        rows.push(wrong(" ca.pem ", &authority, &files));
    }
    // A key that is fine, of another certificate; and one instead of the name of its file.
    let given = [https, cert, ("TLS_KEY", "key.pem")];
    let files = [("cert.pem", good_certificate), ("key.pem", &*ed25519(PRIVATE_KEY))];
    rows.push(wrong(" key.pem ", &given, &files));
    for name in ["TLS_KEY", "TLS_CERT", "TLS_CLIENT_CA"] {
        // With line ends, with what some write for them, and without.
        for between in ["\n", "\\n", " ", ""] {
            let value = ed25519(PRIVATE_KEY).replace('\n', between);
            let others = [cert, ("TLS_KEY", "cert.pem")];
            let others = others.into_iter().filter(|(other, _)| *other != name);
            let given: Vec<_> = others.chain([https, (name, &*value)]).collect();
            rows.push(wrong(name, &given, &[("cert.pem", &good)]));
        }
    }
    // A secret where the name of its file belongs.
    let key = ed25519(PRIVATE_KEY);
    let base64: String = key.lines().filter(|line| !line.starts_with('-')).collect();
    for (says, variable, secret) in [
        ("TOKENS_FILE", "MILLRACE_TOKENS_FILE", CLIENT_TOKEN),
        ("TOKENS_FILE", "--tokens-file", CLIENT_TOKEN),
        ("ADMIN_TOKEN_FILE", "MILLRACE_ADMIN_TOKEN_FILE", ADMIN_TOKEN),
        ("ADMIN_TOKEN_FILE", "--admin-token-file", ADMIN_TOKEN),
        ("TLS_CERT", "MILLRACE_TLS_CERT", &base64),
        ("TLS_KEY", "MILLRACE_TLS_KEY", &base64),
        ("TLS_KEY", "--tls-key", &base64),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", IDENTITY_TOKEN),
        (
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            CONTAINER_TOKEN,
        ),
    ] {
        let own = [https, cert, (variable, secret)];
        let given = if says == "TLS_CERT" { &[own[0], own[2]] } else { &own[..] };
        rows.push(wrong(says, given, &[("cert.pem", &good)]));
    }
    // The admin token.
    for token in [
        format!("{ADMIN_TOKEN} x"),
        format!("{ADMIN_TOKEN}ü"),
        format!("{ADMIN_TOKEN}\u{7}"),
        ADMIN_TOKEN.repeat(400),
    ] {
        for variable in ["MILLRACE_ADMIN_TOKEN", "ADMIN_TOKEN"] {
            rows.push(wrong("ADMIN_TOKEN", &[(variable, &token)], &[]));
        }
        let file = [("ADMIN_TOKEN_FILE", "admin")];
        rows.push(wrong("ADMIN_TOKEN_FILE", &file, &[("admin", &token)]));
    }
    let both = [("MILLRACE_ADMIN_TOKEN", ADMIN_TOKEN), ("ADMIN_TOKEN_FILE", "admin")];
    rows.push(wrong("ADMIN_TOKEN", &both, &[("admin", ADMIN_TOKEN)]));
    rows.push(wrong("--admin-token", &[("--admin-token", ADMIN_TOKEN)], &[]));
    rows.push(wrong("--admin-tokne", &[("--admin-tokne", ADMIN_TOKEN)], &[]));

    let doors = 2 * rows.len();
    let (left, found) = (Mutex::new(rows), Mutex::new(Search::default()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut search = Search::default();
                loop {
                    let next = {
                        let mut left = left.lock().unwrap();
                        left.pop().map(|row| (row, left.len()))
                    };
                    let Some((row, number)) = next else { break };
                    look(&mut search, &keys, &row, &WAYS[number % 2 * 2..][..2]);
                }
                found.lock().unwrap().merge(search);
            });
        }
    });
    found.into_inner().unwrap().end(doors);
}

/// Credentials that come from a service, good ones and errors that quote them.
#[test]
fn no_service_s_answer_is_shown() {
    let store = S3Server::start();
    store.add_keys(ACCESS_KEY, SECRET_KEY);
    let service = S3Server::start();
    let all =
        format!("{ACCESS_KEY} {SECRET_KEY} {SESSION_TOKEN} {CONTAINER_TOKEN} {IDENTITY_TOKEN}");
    let soon = "2099-01-01T00:00:00Z";
    let json = |key: &str, expiration: &str| {
        format!(
            r#"{{"Code":"Success","AccessKeyId":"{key}","SecretAccessKey":"{SECRET_KEY}","Token":"{SESSION_TOKEN}","Expiration":"{expiration}"}}"#
        )
    };
    let xml = |key: &str, expiration: &str| {
        format!(
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><AssumedRoleUser><Arn>a</Arn>\
             <AssumedRoleId>a:b</AssumedRoleId></AssumedRoleUser><Credentials><AccessKeyId>{key}</AccessKeyId>\
             <SecretAccessKey>{SECRET_KEY}</SecretAccessKey><SessionToken>{SESSION_TOKEN}</SessionToken>\
             <Expiration>{expiration}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
             </AssumeRoleWithWebIdentityResponse>"
        )
    };
    let error = |code: &str| {
        format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{all}</Message></Error></ErrorResponse>"
        )
    };
    let container = vec![
        (200, json(ACCESS_KEY, soon)),
        (200, json("unknownKey", soon)),
        (200, json(ACCESS_KEY, SECRET_KEY)),
        (200, json(ACCESS_KEY, soon).replace("\":\"", "\" \"")),
        (200, json(ACCESS_KEY, soon).replace("\"Token\"", "\"Other\"")),
        (200, format!(r#"{{"Code":"Failed","Message":"{all}"}}"#)),
        (200, all.clone()),
        (400, format!(r#"{{"code":"Denied","message":"{all}"}}"#)),
        (403, all.clone()),
    ];
    let sts = vec![
        (200, xml(ACCESS_KEY, soon)),
        (200, xml(ACCESS_KEY, SECRET_KEY)),
        (200, xml(ACCESS_KEY, soon).replace("</Credentials>", "")),
        (200, all.clone()),
        (400, error("InvalidIdentityToken")),
        (403, error("AccessDenied")),
        (400, all.clone()),
    ];
    let of_container = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/role", service.url())),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", CONTAINER_TOKEN.to_owned()),
    ];
    let of_sts = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "identity".to_owned()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r".to_owned()),
        ("AWS_ENDPOINT_URL_STS", service.url()),
    ];
    let store_url = store.url();
    let bucket = format!("s3://{BUCKET}/");
    let base = [
        ("STORE", &*bucket),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_ENDPOINT_URL_S3", &*store_url),
    ];
    let mut search = Search::default();
    for (given, answers) in [(of_container.to_vec(), container), (of_sts.to_vec(), sts)] {
        for (status, body) in answers {
            let kind = "application/json".to_owned();
            let reply = Fault::Reply { status, headers: vec![("content-type", kind)], body };
            service.fail_when(move |_| Some(reply.clone()));
            let files = vec![("identity", IDENTITY_TOKEN.to_owned())];
            let wrong = Wrong { given: given.clone(), files, says: "" };
            look(&mut search, &base, &wrong, &WAYS);
        }
    }
    let asked = service.requests();
    assert!(asked.iter().any(|seen| seen.header("authorization") == Some(CONTAINER_TOKEN)));
    search.end(4 * 16);
}
