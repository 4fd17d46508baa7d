//! `debug bundle` and `/logs`: goal, one tar has what a search for a cause needs, whatever of it can
//! be had. Method: the binary beside servers that can be asked, that want a token, or are gone.
//!
//! That no secret is among it is what `secrets` looks for.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use crate::support::tls::{self, Authority, ed25519};
use crate::support::{Server, run};

const TOKEN: &str = "0123456789abcdef";

/// The files of a bundle by their names in its directory.
fn contents(tar: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let (directory, name) = path.split_once('/').unwrap();
        assert!(directory.starts_with("millrace-debug-"), "{path}");
        assert_eq!(entry.header().mode().unwrap(), 0o600, "{path}");
        let name = name.to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, text)
    });
    entries.collect()
}

fn bundle(server: &Server, args: &[&str], changed: &[(&str, &str)]) -> Output {
    let all = [&["debug", "bundle", "--seconds", "1"], args].concat();
    server.command_beside(&all, changed).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_bundle_has_everything_about_a_running_server() {
    let server = Server::start(&[("NODE_ID", "n"), ("STORE", "null:")]);
    server.post_payloads(&["1", "2"]);
    let (listen, admin) = (server.ingest.to_string(), server.admin.to_string());
    let addresses = [("LISTEN", listen.as_str()), ("ADMIN_LISTEN", admin.as_str())];
    let output = bundle(&server, &["-o", "b.tar"], &addresses);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("b.tar is written; look through it"), "{}", said(&output));
    assert_eq!(fs::metadata(server.path("b.tar")).unwrap().permissions().mode() & 0o777, 0o600);
    let files = contents(&fs::read(server.path("b.tar")).unwrap());
    for (name, part) in [
        ("README.txt", "metrics-2.txt"),
        ("versions.txt", "C library glibc 2."),
        ("settings.txt", "STORE=\"null:\" (environment variable MILLRACE_STORE)"),
        ("settings.txt", "MAX_WORKERS=\"32\" (default)"),
        ("settings.txt", "LISTEN=\"127.0.0.1:0\" (environment variable MILLRACE_LISTEN)"),
        ("command-settings.txt", &format!("LISTEN={listen:?} (environment variable")),
        ("README.txt", "/metrics of the server, asked at 2"),
        ("README.txt", "which differ from the server's: LISTEN, ADMIN_LISTEN\n"),
        ("limits.txt", "queue_slots: 10000"),
        ("check.json", "is held by the running server, process"),
        ("metrics-0.txt", "millrace_payloads_accepted_total"),
        ("metrics-1.txt", "millrace_payloads_accepted_total"),
        ("metrics-2.txt", "millrace_payloads_accepted_total"),
        ("proc-0.txt", "== /proc/net/softnet_stat"),
        ("proc-2.txt", "(millrace-"),
        ("proc-2.txt", "Max open files"),
        ("readyz.txt", "ready"),
        ("logs.txt", "a 200 means"),
    ] {
        let text = files.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", files.keys()));
        assert!(text.contains(part), "{part} in {name}: {text}");
    }
    assert!(!files["README.txt"].contains("not here"), "{}", files["README.txt"]);
    // The first and the last scrape are a second apart, whatever else is collected.
    let asked = |name: &str| {
        let row = files["README.txt"].lines().find(|row| row.starts_with(name)).unwrap();
        let (_, time) = row.split_once("asked at ").unwrap();
        humantime::parse_rfc3339(time.split_once(',').unwrap().0).unwrap()
    };
    let apart = asked("metrics-2").duration_since(asked("metrics-0")).unwrap();
    assert!(apart >= std::time::Duration::from_millis(999), "{apart:?}");
    assert!(asked("settings.txt") < asked("metrics-0"), "{}", files["README.txt"]);
    // What is there is never replaced.
    let again = bundle(&server, &["-o", "b.tar"], &addresses);
    assert_eq!(again.status.code(), Some(2), "{}", said(&again));
    assert!(said(&again).contains("b.tar: File exists"), "{}", said(&again));
    // To a pipe, and under a name by the time.
    let piped = bundle(&server, &["-o", "-", &format!("http://{admin}")], &[]);
    assert!(contents(&piped.stdout)["logs.txt"].contains("a 200 means"), "{}", said(&piped));
    let named = bundle(&server, &[], &addresses);
    assert_eq!(named.status.code(), Some(0), "{}", said(&named));
    let names = fs::read_dir(server.path("")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("millrace-debug-")).count(), 1);
}

#[test]
fn what_cannot_be_had_is_named_and_the_rest_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let ports = [("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "127.0.0.1:9")];
    let args = ["debug", "bundle", "--seconds", "0", "-o", "b.tar"];
    let output = run(dir.path(), &args, &ports);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    for missing in [
        "/proc of the server",
        "settings.txt: /settings: ",
        "metrics-0.txt: /metrics: ",
        "logs.txt: /logs: ",
    ] {
        assert!(
            said(&output).contains(&format!("not in the bundle: {missing}")),
            "{}",
            said(&output)
        );
    }
    let files = contents(&fs::read(dir.path().join("b.tar")).unwrap());
    assert!(files["README.txt"].contains("not here: metrics-0.txt"), "{}", files["README.txt"]);
    assert!(files.contains_key("check.json") && files.contains_key("proc-0.txt"), "{files:?}");
    let bad = run(dir.path(), &["debug", "bundle", "x"], &ports);
    assert_eq!(bad.status.code(), Some(2), "{}", said(&bad));
    assert!(said(&bad).contains("the URL is not a URL"), "{}", said(&bad));
}

#[test]
fn the_log_is_for_those_who_may_see_the_peers() {
    let (authority, key) = (Authority::new("root"), ed25519("x"));
    let cert = authority.server_with(&[tls::HOST], &key);
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("cert.pem", &cert);
    write("key.pem", &key);
    write("admin", &format!("{TOKEN}\n"));
    let tls = [("TLS_CERT", "cert.pem"), ("TLS_KEY", "key.pem"), ("ADMIN_TOKEN_FILE", "admin")];
    let listen = [("ADMIN_LISTEN", "https://127.0.0.1:0")];
    let server = Server::start_in(dir.clone(), &[&tls[..], &listen].concat());
    let admin = format!("https://{}", server.admin);
    let mut client = tls::TlsClient::connect(server.admin, &authority.trust().config());
    client.send("GET /logs HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert_eq!(client.reply().status, 401);
    let logs = |name: &str, changed: &[(&str, &str)]| {
        let changed = [&[("ADMIN_LISTEN", admin.as_str())], changed].concat();
        let output = bundle(&server, &["-o", name], &changed);
        let files = contents(&fs::read(dir.path().join(name)).unwrap());
        (files.get("logs.txt").cloned(), said(&output))
    };
    let (log, _) = logs("a.tar", &[]);
    assert!(log.unwrap().contains("a 200 means"));
    let (log, said) = logs("b.tar", &[("ADMIN_TOKEN_FILE", "")]);
    assert_eq!(log, None);
    assert!(said.contains("logs.txt: /logs: 401 ADMIN_TOKEN is missing"), "{said}");
    // The token goes to nobody but this server: another certificate ends the handshake.
    let other = Authority::new("other").server_with(&[tls::HOST], &key);
    write("other.pem", &other);
    let (log, said) = logs("c.tar", &[("TLS_CERT", "other.pem")]);
    assert_eq!(log, None);
    assert!(said.contains("logs.txt: /logs: ") && said.contains("certificate"), "{said}");
}

/// A ring: the newest lines, however many there were, as they are on stderr.
#[test]
fn the_newest_lines_are_kept() {
    let server = Server::start(&[("LOG", "debug"), ("STORE", "null:")]);
    let long = "x".repeat(8_000);
    // Each makes a debug line or more.
    for _ in 0..200 {
        server.post(format!("{{\"data\":[\"{long}\"]"));
    }
    server.signal("HUP");
    let mut page = String::new();
    crate::support::wait_for("the reload's line on the page", || {
        page = server.admin("/logs").body;
        page.contains("reload")
    });
    assert!(page.len() <= 256 << 10, "{}", page.len());
    let lines: Vec<serde_json::Value> =
        page.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    crate::support::wait_for("the same lines on stderr", || {
        let log = server.log();
        lines.iter().all(|line| log.contains(line))
    });
}
