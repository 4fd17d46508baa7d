//! Who may read the admin pages: goal, on a public address health and metrics and nothing else
//! without `ADMIN_TOKEN`, and the rest with it alone.
//!
//! Method: every page and paths that are none, with right, wrong and no tokens, on loopback and
//! public addresses and by other names; a token that changes while the server runs.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::support::{Client, Reply, Server, run, wait_for};

const TOKEN: &str = "correct-horse-battery-staple";

const OPEN: [&str; 3] = ["/healthz", "/readyz", "/metrics"];
const GUARDED: [&str; 5] = ["/", "/peers", "/peers?by=bytes", "/metrics/", "/no-page"];

/// A server whose `/readyz` is 200: a core is ready a moment after the log says where it listens.
fn ready(settings: &[(&str, &str)]) -> Server {
    let server = Server::start(settings);
    server.wait_ready(200);
    server
}

fn get(server: &Server, path: &str, headers: &str) -> Reply {
    get_by(server, "localhost", path, headers)
}

fn get_by(server: &Server, host: &str, path: &str, headers: &str) -> Reply {
    // Whatever it listens on, loopback reaches it.
    let mut client = Client::connect(SocketAddr::from(([127, 0, 0, 1], server.admin.port())));
    client
        .send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n"));
    client.reply()
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

/// What a page that may be read answers.
fn expected(path: &str) -> u16 {
    if path.starts_with("/peers") { 200 } else { 404 }
}

#[test]
fn a_public_address_serves_health_and_metrics_alone() {
    let server = ready(&[("ADMIN_LISTEN", "0.0.0.0:0")]);
    for path in OPEN {
        assert_eq!(get(&server, path, "").status, 200, "{path}");
    }
    for path in GUARDED {
        for headers in [String::new(), bearer(TOKEN), bearer("")] {
            let refused = get(&server, path, &headers);
            assert_eq!(refused.status, 403, "{path} {headers}");
            assert!(refused.body.contains("set ADMIN_TOKEN or ADMIN_TOKEN_FILE"), "{refused:?}");
        }
    }
    let mut client = Client::connect(SocketAddr::from(([127, 0, 0, 1], server.admin.port())));
    client.send("POST /peers HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(client.reply().status, 403);
    // For this host's own users there is everything.
    let server = ready(&[]);
    for path in OPEN.into_iter().chain(GUARDED) {
        let status = if OPEN.contains(&path) { 200 } else { expected(path) };
        assert_eq!(get(&server, path, "").status, status, "{path}");
    }
}

/// As a web page reaches it whose name resolves to this host.
#[test]
fn without_a_token_a_host_with_a_name_is_refused() {
    let server = ready(&[]);
    for host in ["rebound.example", "rebound.example:9090", "localhost.rebound.example", ""] {
        for path in GUARDED {
            let refused = get_by(&server, host, path, "");
            assert_eq!(refused.status, 403, "{host} {path}");
            assert!(refused.body.contains("neither an IP address nor localhost"), "{refused:?}");
        }
        for path in OPEN {
            assert_eq!(get_by(&server, host, path, "").status, 200, "{host} {path}");
        }
    }
    for host in ["localhost:9090", "LOCALHOST", "127.0.0.1", "[::1]:9090"] {
        assert_eq!(get_by(&server, host, "/peers", "").status, 200, "{host}");
    }
    let server = ready(&[("ADMIN_TOKEN", TOKEN)]);
    assert_eq!(get_by(&server, "admin.example", "/peers", &bearer(TOKEN)).status, 200);
}

#[test]
fn with_a_token_all_else_asks_for_it() {
    for listen in ["0.0.0.0:0", "127.0.0.1:0"] {
        let server = ready(&[("ADMIN_LISTEN", listen), ("ADMIN_TOKEN", TOKEN)]);
        for path in OPEN {
            for headers in [String::new(), bearer(TOKEN), bearer("wrong")] {
                assert_eq!(get(&server, path, &headers).status, 200, "{path} {headers}");
            }
        }
        for path in GUARDED {
            let missing = get(&server, path, "");
            assert_eq!((missing.status, missing.header("www-authenticate")), (401, Some("Bearer")));
            for wrong in [
                bearer("wrong"),
                bearer(""),
                bearer(&format!("{TOKEN}x")),
                bearer(&TOKEN[1..]),
                format!("authorization: Basic {TOKEN}\r\n"),
                bearer(TOKEN) + &bearer(TOKEN),
            ] {
                let refused = get(&server, path, &wrong);
                let challenge = r#"Bearer error="invalid_token""#;
                let got = (refused.status, refused.header("www-authenticate"));
                assert_eq!(got, (401, Some(challenge)), "{path} {wrong}");
            }
            assert_eq!(get(&server, path, &bearer(TOKEN)).status, expected(path), "{path}");
        }
        // A token of the query or of another header is none.
        assert_eq!(get(&server, &format!("/peers?token={TOKEN}"), "").status, 401);
        assert_eq!(get(&server, "/peers", &format!("x-api-key: {TOKEN}\r\n")).status, 401);
    }
}

#[test]
fn a_token_in_a_file_is_read_again() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let file = dir.path().join("admin");
    std::fs::write(&file, format!("{TOKEN}\n# ours\n")).unwrap();
    let server = Server::start_in(dir, &[("ADMIN_TOKEN_FILE", "admin")]);
    let is = |token: &str| get(&server, "/peers", &bearer(token)).status == 200;
    assert!(is(TOKEN) && !is("another-token-of-ours"));
    std::fs::write(&file, "another-token-of-ours").unwrap();
    server.signal("HUP");
    wait_for("the new token", || is("another-token-of-ours"));
    assert!(!is(TOKEN));
    for bad in ["", "short", "not one token but many"] {
        std::fs::write(&file, bad).unwrap();
        let before = server.count_logged("the token read before stays in effect");
        server.signal("HUP");
        wait_for("an error", || {
            server.count_logged("the token read before stays in effect") > before
        });
        assert!(is("another-token-of-ours"), "{bad}");
    }
}

#[test]
fn what_is_no_token_refuses_the_start() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("empty"), "\n").unwrap();
    std::fs::write(dir.path().join("good"), TOKEN).unwrap();
    for (settings, says) in [
        (&[("ADMIN_TOKEN", "short")][..], "is no admin token: give 16 to 4096"),
        (&[("ADMIN_TOKEN_FILE", "missing")], "ADMIN_TOKEN_FILE: missing cannot be read"),
        (&[("ADMIN_TOKEN_FILE", "empty")], "ADMIN_TOKEN_FILE: empty is no admin token"),
        (
            &[("ADMIN_TOKEN", TOKEN), ("ADMIN_TOKEN_FILE", "good")],
            "is there beside ADMIN_TOKEN_FILE",
        ),
    ] {
        let listen = [("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "127.0.0.1:0"), ("CORES", "0")];
        let output = run(dir.path(), &[], &[settings, &listen].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(says), "{settings:?}: {said}");
        assert!(!said.contains("short") && !said.contains(TOKEN), "{said}");
    }
    let file = dir.path().join("m.toml");
    std::fs::write(&file, format!("admin_token = \"{TOKEN}\"\n")).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let listen = [("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "127.0.0.1:0"), ("CORES", "0")];
    let output = run(dir.path(), &["check", "--config", "m.toml"], &listen);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("m.toml (mode 0644) may be read by every user of this host"), "{said}");
    assert!(said.contains("ADMIN_TOKEN (key admin_token in m.toml, text not shown)"), "{said}");
}
