//! Goal: with `CORS_ORIGINS` scripts of listed origins can read every answer, whatever its status;
//! others can read none, though their requests are served; preflights need no token; by default
//! browsers are told nothing.
//!
//! Method: one request for each status that a browser can cause, with and without a listed origin,
//! and the headers of the answer in full; preflights of every kind. What a browser makes of it is
//! in `browsers.rs`.

use std::sync::Arc;

use crate::support::{Client, Reply, Server, run, wait_for};

const LISTED: &str = "https://example.com";

/// The headers of an answer by which browsers go, sorted.
fn for_browsers(reply: &Reply) -> Vec<String> {
    let named = reply.headers.iter().filter(|(name, _)| {
        let name = name.to_lowercase();
        name.starts_with("access-control-") || name == "vary"
    });
    let mut lines: Vec<_> = named.map(|(name, value)| format!("{name}: {value}")).collect();
    lines.sort();
    lines
}

const EXPOSED: &str = "access-control-expose-headers: accept-encoding, allow, date, ratelimit, \
                       ratelimit-policy, retry-after, www-authenticate";

/// What the answer to a request of `origin` tells browsers.
fn expected(origin: &str) -> Vec<String> {
    let lines: &[&str] = match origin {
        "" => &["vary: origin"],
        LISTED | "https://a.example.org" => &[
            "access-control-allow-credentials: true",
            &format!("access-control-allow-origin: {origin}"),
            EXPOSED,
            "vary: origin",
        ],
        _ => &["vary: origin"],
    };
    lines.iter().map(|line| (*line).to_owned()).collect()
}

fn send(server: &Server, head: &str, body: &str) -> Reply {
    let mut client = server.connect();
    let length = body.len();
    client.send(format!("{head}content-length: {length}\r\n\r\n{body}"));
    client.reply()
}

fn with_tokens(settings: &[(&str, &str)]) -> Server {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "alpha\n").unwrap();
    Server::start_in(dir, &[&[("TOKENS_FILE", "tokens")], settings].concat())
}

#[test]
fn every_answer_says_who_may_read_it() {
    let server = with_tokens(&[
        ("CORS_ORIGINS", "https://example.com, https://*.example.org"),
        ("INGEST_HEALTH", "on"),
        ("MAX_LENGTH", "4KiB"),
        ("BODY_TIMEOUT", "300ms"),
    ]);
    let full = with_tokens(&[
        ("CORS_ORIGINS", "https://example.com, https://*.example.org"),
        ("MAX_QUEUE", "1"),
        ("MAX_WORKERS", "1"),
        ("ENQUEUE_WAIT", "0s"),
        ("FAULTS", "delay=60s"),
        ("PUT_TIMEOUT", "2m"),
        ("DRAIN_TIMEOUT", "1s"),
    ]);
    let one = r#"{"data":[1],"token":"alpha"}"#;
    wait_for("a full queue", || full.post(one).status == 503);
    let large = format!("{{\"data\":[\"{}\"]}}", "x".repeat(8 << 10));
    let mut taken = 0;
    for origin in [
        LISTED,
        "https://a.example.org",
        "",
        "null",
        "https://evil.com",
        "https://example.com.evil.com",
        "https://a.b.example.org",
        "https://EXAMPLE.com",
    ] {
        let header =
            if origin.is_empty() { String::new() } else { format!("origin: {origin}\r\n") };
        let post = format!("POST /payloads HTTP/1.1\r\nhost: x\r\n{header}");
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n{header}");
        for (status, reply) in [
            (200, send(&server, &post, one)),
            (400, send(&server, &post, "no json")),
            (400, send(&server, &format!("{post}host: y\r\n"), one)),
            (400, send(&server, &format!("{post}millrace-ack: never\r\n"), one)),
            (401, send(&server, &post, r#"{"data":[]}"#)),
            (401, send(&server, &format!("{post}x-api-key: wrong\r\n"), one)),
            (404, send(&server, &get("/nothing"), "")),
            (405, send(&server, &get("/payloads"), "")),
            (413, send(&server, &post, &large)),
            (415, send(&server, &format!("{post}content-encoding: br\r\n"), one)),
            (501, chunked_twice(&server, &post)),
            (200, send(&server, &get("/healthz"), "")),
            (405, send(&server, &format!("POST /healthz HTTP/1.1\r\nhost: x\r\n{header}"), "")),
            (503, send(&full, &post, one)),
        ] {
            assert_eq!(reply.status, status, "{origin}: {reply:?}");
            assert_eq!(for_browsers(&reply), expected(origin), "{origin}: {reply:?}");
            if status == 503 {
                assert!(reply.header("retry-after").is_some(), "{reply:?}");
            }
        }
        taken += 1;
        // A body that never comes.
        let mut slow = server.connect();
        slow.send(format!("{post}content-length: 9\r\n\r\n{{"));
        let reply = slow.last_reply();
        assert_eq!((reply.status, for_browsers(&reply)), (408, expected(origin)), "{origin}");
    }
    server.wait_idle();
    assert_eq!(server.stored().len(), taken, "a request is served whatever its origin");
    // Two origins are none.
    let twice =
        format!("POST /payloads HTTP/1.1\r\nhost: x\r\norigin: {LISTED}\r\norigin: {LISTED}\r\n");
    assert_eq!(for_browsers(&send(&server, &twice, one)), ["vary: origin"]);
}

/// A head with a coding that is not understood.
fn chunked_twice(server: &Server, post: &str) -> Reply {
    let mut client = server.connect();
    client.send(format!("{post}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"));
    client.reply()
}

#[test]
fn a_star_is_for_everybody_and_never_with_credentials() {
    let server = with_tokens(&[("CORS_ORIGINS", "*")]);
    for header in
        ["", "origin: null\r\n", "origin: https://evil.com\r\n", "origin: a\r\norigin: b\r\n"]
    {
        let post = format!("POST /payloads HTTP/1.1\r\nhost: x\r\n{header}");
        for body in [r#"{"data":[],"token":"alpha"}"#, r#"{"data":[]}"#, "x"] {
            let reply = send(&server, &post, body);
            assert_eq!(for_browsers(&reply), ["access-control-allow-origin: *", EXPOSED]);
        }
    }
}

fn ask(client: &mut Client, path: &str, headers: &str) -> Reply {
    client.send(format!("OPTIONS {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n"));
    client.reply()
}

#[test]
fn preflights_need_no_token_and_can_be_kept() {
    let server = with_tokens(&[
        ("CORS_ORIGINS", "https://example.com,https://*.example.org"),
        ("TOKEN_IN_BODY", "off"),
    ]);
    const ASKS: &str = "access-control-request-method: POST\r\n";
    let mut client = server.connect();
    let (mut allowed, mut refused) = (0, 0);
    for path in ["/payloads", "/payloads?a=b", "/nothing", "/readyz"] {
        for (origin, more) in [
            (LISTED, ""),
            ("https://a.example.org", "access-control-request-headers: authorization,x-evil\r\n"),
            (LISTED, "access-control-request-private-network: true\r\n"),
            (LISTED, "authorization: Bearer wrong\r\n"),
        ] {
            let reply = ask(&mut client, path, &format!("origin: {origin}\r\n{ASKS}{more}"));
            assert_eq!((reply.status, reply.body.as_str()), (204, ""), "{reply:?}");
            let said = for_browsers(&reply);
            let expected = [
                "access-control-allow-credentials: true",
                "access-control-allow-headers: authorization, content-encoding, content-type, \
                 millrace-ack, x-api-key",
                "access-control-allow-methods: POST",
                &format!("access-control-allow-origin: {origin}"),
                "access-control-max-age: 7200",
                "vary: origin",
            ];
            assert_eq!(said, expected, "the headers that it may send, not those it asks for");
            assert_eq!(reply.header("connection"), None);
            allowed += 1;
        }
        for origin in [
            "null",
            "https://evil.com",
            "https://example.com.evil.com",
            "https://example.com\r\norigin: https://example.com",
        ] {
            let reply = ask(&mut client, path, &format!("origin: {origin}\r\n{ASKS}"));
            assert_eq!(reply.status, 403, "{origin}");
            assert_eq!(for_browsers(&reply), ["vary: origin"], "{origin}");
            assert!(reply.error().contains("CORS_ORIGINS"), "{}", reply.error());
            refused += 1;
        }
    }
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_preflights_total"), allowed);
    assert_eq!(metrics.sum("millrace_preflights_refused_total"), refused);
    assert_eq!(metrics.sum("millrace_requests_total"), 0, "they are no requests for payloads");
    // What is no preflight is a method that the path does not have.
    for headers in ["", ASKS, "origin: https://example.com\r\n"] {
        let reply = ask(&mut client, "/payloads", headers);
        assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")), "{headers}");
        assert!(!for_browsers(&reply).iter().any(|line| line.contains("max-age")));
    }
    // One with a body that never comes.
    client.send(format!(
        "OPTIONS /payloads HTTP/1.1\r\nhost: x\r\norigin: {LISTED}\r\n{ASKS}content-length: 9\r\n\r\n"
    ));
    assert_eq!(client.last_reply().status, 204);
}

#[test]
fn by_default_browsers_are_told_nothing() {
    let server = Server::start(&[]);
    let origin = "origin: https://example.com\r\n";
    let post = format!("POST /payloads HTTP/1.1\r\nhost: x\r\n{origin}");
    for body in [r#"{"data":[]}"#, "no json"] {
        assert_eq!(for_browsers(&send(&server, &post, body)), [""; 0]);
    }
    let asks = format!("{origin}access-control-request-method: POST\r\n");
    let reply = ask(&mut server.connect(), "/payloads", &asks);
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    assert_eq!(for_browsers(&reply), [""; 0]);
    assert_eq!(ask(&mut server.connect(), "/nothing", &asks).status, 404);
}

#[test]
fn a_list_that_cannot_be_meant_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    for (origins, says) in [
        ("null", "sandboxed"),
        ("https://example.com/", "write https://example.com"),
        ("https://*.com", "every domain in com"),
        ("https://example.com,*", "give * alone"),
        ("example.com", "write https://example.com"),
    ] {
        for args in [&["check"][..], &[]] {
            let output =
                run(dir.path(), args, &[("CORS_ORIGINS", origins), ("LISTEN", "127.0.0.1:0")]);
            let said =
                String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.code(), Some(2), "{origins}: {said}");
            assert!(said.contains("CORS_ORIGINS") && said.contains(says), "{origins}: {said}");
        }
    }
}
