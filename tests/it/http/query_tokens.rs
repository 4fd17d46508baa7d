//! Goal: with `TOKEN_IN_QUERY` a request may have its token in the query; it counts like one in a
//! header. It is shown nowhere, whatever comes of the request. By default a query means nothing.
//!
//! Method: right, wrong and malformed tokens in the query beside those in headers and bodies, with
//! everything logged that the server can log; then the log, the admin pages and the directories are
//! searched for them.

use std::sync::Arc;

use crate::support::{Reply, Server, run};

fn start(settings: &[(&str, &str)]) -> Server {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "s3cr3t-alpha;name=a\ns3cr3t-\u{df}+/=\n").unwrap();
    Server::start_in(dir, &[&[("TOKENS_FILE", "tokens")], settings].concat())
}

fn post(server: &Server, target: &str, headers: &str, body: &str) -> Reply {
    let mut client = server.connect();
    let length = body.len();
    client.send(format!(
        "POST {target} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n{body}"
    ));
    client.reply()
}

/// Query, headers, and the status with an envelope that has no token; 0: as without a query.
const CASES: [(&str, &str, u16); 26] = [
    ("?token=s3cr3t-alpha", "", 200),
    ("?token=s3cr3t-%61lpha", "", 200),
    ("?%74oken=s3cr3t-alpha", "", 200),
    ("?a=%zz&token=s3cr3t-alpha&b", "", 200),
    ("?token=s3cr3t-%C3%9F+/=", "", 200),
    ("?token=s3cr3t-%c3%9f%2B%2F%3D", "", 200),
    ("?token=s3cr3t-alpha", "x-api-key: s3cr3t-alpha\r\n", 200),
    ("?token=s3cr3t-alpha", "authorization: Bearer s3cr3t-alpha\r\n", 200),
    ("?token=s3cr3t-wrong", "", 401),
    ("?token=S3CR3T-alpha", "", 401),
    ("?token=s3cr3t-alpha%20", "", 401),
    ("?token=s3cr3t-%C3%9F%20/=", "", 401),
    ("?token", "", 401),
    ("?token=", "", 401),
    ("?token=s3cr3t-alpha%", "", 401),
    ("?token=s3cr3t-alpha&token=s3cr3t-alpha", "", 401),
    ("?token=s3cr3t-alpha&%74oken=s3cr3t-wrong", "", 401),
    ("?token=s3cr3t-wrong", "x-api-key: s3cr3t-alpha\r\n", 401),
    ("?token=s3cr3t-alpha", "x-api-key: s3cr3t-wrong\r\n", 401),
    ("?token=s3cr3t-alpha", "authorization: Basic czNjcjN0\r\n", 401),
    ("?token=", "x-api-key: s3cr3t-alpha\r\n", 401),
    ("", "", 0),
    ("?", "", 0),
    ("?Token=s3cr3t-alpha", "", 0),
    ("?access_token=s3cr3t-alpha", "", 0),
    ("?tokens=s3cr3t-alpha&token%20=s3cr3t-alpha", "", 0),
];

#[test]
fn a_query_counts_like_a_header_and_is_shown_nowhere() {
    for in_body in ["on", "off"] {
        let server =
            start(&[("TOKEN_IN_QUERY", "on"), ("TOKEN_IN_BODY", in_body), ("LOG", "trace")]);
        let mut named = 0;
        for (query, headers, status) in CASES {
            for (body, alone) in [
                (r#"{"data":["taken"]}"#, 401),
                (r#"{"data":["taken"],"token":"s3cr3t-wrong"}"#, 401),
                (
                    r#"{"data":["taken"],"token":"s3cr3t-alpha"}"#,
                    if in_body == "on" { 200 } else { 401 },
                ),
            ] {
                let expected = if status == 0 { alone } else { status };
                let reply = post(&server, &format!("/payloads{query}"), headers, body);
                assert_eq!(reply.status, expected, "{query} {headers}{body}: {reply:?}");
                let said = format!("{reply:?}").to_lowercase();
                assert!(!said.contains("s3cr3t"), "{said}");
                if reply.status == 401 {
                    let challenge = reply.header("www-authenticate").unwrap();
                    let had_one = status == 401 && !headers.contains("Basic");
                    assert_eq!(challenge.contains("invalid_token"), had_one, "{query} {headers}");
                }
                let is_alpha = !query.contains("%C3%9F") && !query.contains("%c3%9f");
                named += u64::from(reply.status == 200 && is_alpha);
            }
        }
        // A wrong one is refused before the body, and a right one in other requests changes nothing.
        let mut early = server.connect();
        early.send(
            "POST /payloads?token=s3cr3t-wrong HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\
             content-length: 100000\r\n\r\n",
        );
        assert_eq!(early.last_reply().status, 401);
        for (target, status) in [
            ("/nothing?token=s3cr3t-alpha", 404),
            ("/payloads/?token=s3cr3t-alpha", 404),
            ("http://x/payloads?token=s3cr3t-alpha", 200),
        ] {
            let reply = post(&server, target, "", r#"{"data":[]}"#);
            assert_eq!(reply.status, status, "{target}");
            assert!(!format!("{reply:?}").contains("s3cr3t"), "{reply:?}");
        }
        // Targets that are none: a browser cannot send them, a log must not have them either.
        for target in [
            "/payloads?token=s3cr3t alpha",
            "/payloads?token=s3cr3t\u{1}",
            "payloads?token=s3cr3t-alpha",
        ] {
            let reply = post(&server, target, "", r#"{"data":[]}"#);
            assert!(matches!(reply.status, 400 | 404), "{target}: {reply:?}");
            assert!(!format!("{reply:?}").contains("s3cr3t"), "{reply:?}");
        }
        let metrics = server.metrics();
        let counted =
            metrics.sum_where("millrace_token_requests_total", "token=\"a\",status=\"200\"");
        assert_eq!(counted, named + 1, "{}", metrics.0);
        let peers = server.admin("/peers").body;
        assert!(peers.contains("127.0.0.1"), "{peers}");
        server.wait_idle();
        for (key, bytes) in server.stored() {
            let shown = format!("{key} {}", String::from_utf8_lossy(&bytes));
            assert!(!shown.contains("s3cr3t"), "{shown}");
        }
        for (what, shown) in [("peers", peers), ("metrics", metrics.0)] {
            assert!(!shown.to_lowercase().contains("s3cr3t"), "{what}: {shown}");
        }
        let stopped = server.stop();
        let log = stopped.log_text();
        assert!(log.lines().any(|line| line.contains("DEBUG") || line.contains("TRACE")), "{log}");
        assert!(!log.to_lowercase().contains("s3cr3t"), "{log}");
    }
}

#[test]
fn by_default_a_query_means_nothing() {
    let server = start(&[]);
    for (query, headers, _) in CASES {
        let right = post(
            &server,
            &format!("/payloads{query}"),
            "x-api-key: s3cr3t-alpha\r\n",
            r#"{"data":[]}"#,
        );
        if headers.is_empty() {
            assert_eq!(right.status, 200, "{query}");
            let none = post(&server, &format!("/payloads{query}"), "", r#"{"data":[]}"#);
            assert_eq!(none.status, 401, "{query}");
        }
    }
    let without_tokens = Server::start(&[]);
    let reply = post(&without_tokens, "/payloads?token=any&token=", "", r#"{"data":[]}"#);
    assert_eq!(reply.status, 200);
}

#[test]
fn without_tokens_there_is_nothing_to_look_for() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["check"][..], &[]] {
        let output = run(dir.path(), args, &[("TOKEN_IN_QUERY", "on"), ("LISTEN", "127.0.0.1:0")]);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("TOKEN_IN_QUERY") && said.contains("set TOKENS_FILE"), "{said}");
    }
}
