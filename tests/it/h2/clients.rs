//! Goal: usual clients of HTTP/2 get along with the server: curl and h2load, over TLS and with prior
//! knowledge.

use std::path::Path;
use std::process::{Command, Output};

use super::requests::{start, start_tls};
use crate::support::Server;
use crate::support::needs::{Need, allowed, skip};
use crate::support::tls::{HOST, write};

fn run(dir: &Path, program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).current_dir(dir).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Servers with and without TLS, each with what curl needs to reach it.
fn servers() -> [(Server, String, Vec<String>); 2] {
    // 800 requests at once on a busy machine: their payloads wait for room.
    let more = [("MAX_LENGTH", "1MiB"), ("STORE", "null:"), ("ENQUEUE_WAIT", "20s")];
    let plain = start(&more);
    let (tls, authority) = start_tls(&more);
    let dir = tls.dir();
    write(dir.path(), "ca.pem", authority.pem());
    let port = tls.ingest.port();
    let at = format!("{HOST}:{port}:127.0.0.1");
    let args = ["--http2", "--cacert", "ca.pem", "--resolve", &at].map(str::to_owned);
    [
        (
            format!("http://{}/payloads", plain.ingest),
            plain,
            vec!["--http2-prior-knowledge".to_owned()],
        ),
        (format!("https://{HOST}:{port}/payloads"), tls, args.to_vec()),
    ]
    .map(|(url, server, args)| (server, url, args))
}

#[test]
fn curl() {
    if !allowed(&["curl", "--version"]) {
        return skip(Need::Curl, "no curl(1)");
    }
    for (server, url, args) in servers() {
        let dir = server.dir();
        std::fs::write(dir.path().join("long"), vec![b' '; 3 << 20]).unwrap();
        let fits = [vec![b' '; 1_000_000], b"[1,2]".to_vec()].concat();
        std::fs::write(dir.path().join("fits"), fits).unwrap();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let form = ["-sS", "-w", " %{http_version} %{http_code}", &url, "--data-binary"];
        for (body, wanted) in [
            ("[1,2,3]", r#"{"accepted":3,"ack":"queued"} 2 200"#),
            ("@fits", r#"{"accepted":2,"ack":"queued"} 2 200"#),
            ("nonsense", "2 400"),
            ("@long", "2 413"),
        ] {
            let output = run(dir.path(), "curl", &[&args[..], &form, &[body]].concat());
            let said = text(&output);
            assert!(said.ends_with(wanted), "{body}: {said}");
        }
        // Two requests on one connection; curl 7.88 cannot do that with prior knowledge.
        if url.starts_with("https") {
            let second = [&["[1]", "--next", "-sS"][..], &args[..], &form[1..], &["[2]"]].concat();
            let twice = [&args[..], &form, &second].concat();
            assert_eq!(text(&run(dir.path(), "curl", &twice)).matches("2 200").count(), 2);
        }
        server.wait_idle();
    }
}

#[test]
fn h2load() {
    if !allowed(&["h2load", "--version"]) {
        return skip(Need::H2load, "no h2load(1)");
    }
    for (server, url, _) in servers() {
        let dir = server.dir();
        std::fs::write(dir.path().join("body"), "[1,2,3]").unwrap();
        let url = url.replace(HOST, "127.0.0.1");
        let args = ["-n", "5000", "-c", "8", "-m", "100", "-d", "body", &url];
        let said = text(&run(dir.path(), "h2load", &args));
        assert!(said.contains("5000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
        assert!(said.contains("status codes: 5000 2xx"), "{said}");
        let now = server.metrics();
        assert_eq!(now.sum("millrace_payloads_accepted_total"), 15_000);
        assert_eq!(now.sum("millrace_h2_connections_begun_total"), 8);
        assert_eq!(now.sum("millrace_h2_closed_total"), 0);
        server.wait_idle();
    }
}
