//! `health`: goal, its exit status says whether a server is well, and nothing holds it up. Method:
//! the binary beside servers that are well, stopping, behind TLS and a token, silent, or not there.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::Output;
use std::time::{Duration, Instant};

use crate::support::tls::{self, Authority, ed25519};
use crate::support::{Server, run};

fn text(output: &Output) -> String {
    String::from_utf8([&output.stdout[..], &output.stderr].concat()).unwrap()
}

/// `health` with the settings of a server on `admin`.
fn health(dir: &std::path::Path, args: &[&str], settings: &[(&str, &str)]) -> (i32, String) {
    let output = run(dir, &[&["health"], args].concat(), settings);
    (output.status.code().unwrap(), text(&output))
}

#[test]
fn a_server_that_is_well_is_0_and_one_that_is_not_is_1() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&[]);
    let admin = server.admin.to_string();
    let settings = [("ADMIN_LISTEN", admin.as_str())];
    assert_eq!(health(dir.path(), &[], &settings), (0, "ok\n".to_owned()));
    assert_eq!(health(dir.path(), &["--ready"], &settings), (0, "ready\n".to_owned()));
    assert_eq!(health(dir.path(), &["--admin-listen", &admin], &[]), (0, "ok\n".to_owned()));
    // As in an image: the file that the environment names, and what comes before it.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("admin_listen = \"{admin}\"\n")).unwrap();
    let file = ("MILLRACE_CONFIG", file.path().to_str().unwrap());
    assert_eq!(health(dir.path(), &[], &[file]), (0, "ok\n".to_owned()));
    assert_eq!(health(dir.path(), &[], &[file, ("MILLRACE_ADMIN_LISTEN", "off")]).0, 1);
    let url = format!("http://{admin}");
    assert_eq!(health(dir.path(), &[&url], &[]), (0, "ok\n".to_owned()));
    assert_eq!(health(dir.path(), &[&format!("{url}/readyz")], &[]), (0, "ready\n".to_owned()));
    // Settings that a server would refuse do not matter to a URL.
    let bad = [("MAX_WORKERS", "0")];
    assert_eq!(health(dir.path(), &[&url], &bad).0, 0);
    let (status, said) = health(dir.path(), &[&format!("{url}/nothing")], &[]);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("/nothing: 404"), "{said}");
    drop(server);
    let (status, said) = health(dir.path(), &[], &settings);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("refused"), "{said}");
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "it changes nothing");
}

#[test]
fn what_is_not_ready_gives_its_reasons() {
    let settings = [("FAULTS", "store_wide=1"), ("READY_STORE_GRACE", "1ms")];
    let server = Server::start(&settings);
    server.post_payloads(&["1"]);
    server.wait_ready(503);
    let url = format!("http://{}/", server.admin);
    let dir = tempfile::tempdir().unwrap();
    let (status, said) = health(dir.path(), &["--ready", &url], &[]);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("/readyz: 503\ncore 0: the store has been failing"), "{said}");
    assert_eq!(health(dir.path(), &[&url], &[]), (0, "ok\n".to_owned()));
}

#[test]
fn whatever_is_wrong_is_1_and_never_2() {
    let dir = tempfile::tempdir().unwrap();
    for (args, settings, said) in [
        (&[][..], &[("ADMIN_LISTEN", "off")][..], "ADMIN_LISTEN is off: give the URL"),
        (&[], &[("ADMIN_LISTEN", "127.0.0.1:0")], "drawn at each start: give the URL"),
        (&[], &[("MAX_WORKERS", "0")], "MAX_WORKERS"),
        (&["localhost:9090"], &[], "the URL is not a URL of HTTP: give http://"),
        (&["http://me:hush@localhost/"], &[], "has a user or a password in it"),
        (&["http://nobody.invalid/"], &[], "http://nobody.invalid/healthz: "),
    ] {
        let (status, text) = health(dir.path(), args, settings);
        assert_eq!(status, 1, "{args:?} {settings:?}: {text}");
        assert!(text.contains(said) && !text.contains("hush"), "{args:?} {settings:?}: {text}");
    }
}

#[test]
fn a_server_that_says_nothing_or_too_much_is_given_up_in_time() {
    let dir = tempfile::tempdir().unwrap();
    // One that accepts nothing, and one that never ends.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endless = TcpListener::bind("127.0.0.1:0").unwrap();
    let [silent_url, endless_url] =
        [&silent, &endless].map(|listener| format!("http://{}", listener.local_addr().unwrap()));
    std::thread::spawn(move || {
        let (mut stream, _) = endless.accept().unwrap();
        while stream.write_all(&[b'x'; 1 << 16]).is_ok() {}
    });
    let started = Instant::now();
    let (status, said) = health(dir.path(), &[&silent_url], &[]);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("no answer within 5s"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    let (status, said) = health(dir.path(), &[&endless_url], &[]);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("the answer is longer than"), "{said}");
}

#[test]
fn it_works_over_tls_and_beside_a_token() {
    let (authority, key) = (Authority::new("root"), ed25519("x"));
    let cert = authority.server_with(&[tls::HOST], &key);
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("cert.pem"), cert).unwrap();
    std::fs::write(dir.path().join("key.pem"), key).unwrap();
    let server = Server::start_in(
        dir.clone(),
        &[
            ("ADMIN_LISTEN", "https://127.0.0.1:0"),
            ("TLS_CERT", "cert.pem"),
            ("TLS_KEY", "key.pem"),
            ("ADMIN_TOKEN", "0123456789abcdef"),
        ],
    );
    let admin = format!("https://{}", server.admin);
    let output = server.command_beside(&["health"], &[("ADMIN_LISTEN", &admin)]).output().unwrap();
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), "ok\n"));
    // Somewhere else a certificate is believed as anywhere: by its authority and its name.
    let (status, said) = health(dir.path(), &[&admin], &[]);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("certificate"), "{said}");
}
