//! Goal: with `INGEST_HEALTH` a balancer that can only probe the port it sends traffic to learns
//! what the admin listener says, and nothing else; by default nobody learns anything.
//!
//! Method: probes of both listeners side by side while the store breaks and mends, while the queue
//! is full and while the server stops; every method; a scrape.

use crate::support::{Client, Reply, Server, request, wait_for};

/// What a `GET` or `HEAD` of `path` on the ingest port gets, on a connection of its own.
fn probe(server: &Server, method: &str, path: &str) -> Reply {
    let mut client = server.connect();
    client.send(format!("{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
    if method == "HEAD" { client.bodiless_reply() } else { client.reply() }
}

#[test]
fn by_default_these_are_paths_like_any_other() {
    let server = Server::start(&[]);
    for path in ["/healthz", "/readyz"] {
        for method in ["GET", "HEAD", "POST"] {
            assert_eq!(probe(&server, method, path).status, 404, "{method} {path}");
        }
    }
    let metrics = server.metrics();
    assert_eq!((metrics.requests(404), metrics.sum("millrace_health_checks_total")), (6, 0));
}

#[test]
fn every_way_to_ask() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "alpha\n").unwrap();
    let settings = [("INGEST_HEALTH", "on"), ("TOKENS_FILE", "tokens"), ("TOKEN_IN_BODY", "off")];
    let server = Server::start_in(dir, &settings);
    wait_for("the first word of control", || probe(&server, "GET", "/readyz").status == 200);
    let before = server.metrics().sum("millrace_health_checks_total");
    // One connection for all of them: a probe leaves it open.
    let mut client = server.connect();
    let mut asked = 0;
    for (path, text) in
        [("/healthz", "ok\n"), ("/readyz", "ready\n"), ("/readyz?from=lb", "ready\n")]
    {
        for head in ["", "x-api-key: wrong\r\n", "origin: https://example.com\r\n"] {
            client.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n"));
            let reply = client.reply();
            assert_eq!((reply.status, reply.body.as_str()), (200, text), "{path}");
            assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
            assert_eq!(reply.header("cache-control"), Some("no-store"));
            assert_eq!(reply.header("connection"), None);
            client.send(format!("HEAD {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n"));
            let length = text.len().to_string();
            let reply = client.bodiless_reply();
            assert_eq!((reply.status, reply.header("content-length")), (200, Some(&*length)));
            asked += 2;
        }
    }
    // What old probes send, and one with a body, which nobody reads.
    for rest in [
        "GET /readyz HTTP/1.0\r\n\r\n",
        "GET /readyz HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n",
    ] {
        let mut client = server.connect();
        client.send(rest);
        let reply = client.reply();
        assert_eq!((reply.status, reply.body.as_str()), (200, "ready\n"), "{rest}");
        assert!(client.closed(), "{rest}");
        asked += 1;
    }
    let metrics = server.metrics();
    let peers = server.admin("/peers").body;
    assert!(peers.contains("127.0.0.1") && !peers.contains("unavailable="), "{peers}");
    assert_eq!(metrics.sum("millrace_health_checks_total"), before + asked);
    assert_eq!(metrics.sum("millrace_requests_total"), 0, "they are no requests for payloads");
    assert_eq!(metrics.sum("millrace_request_latency_seconds_count"), 0);
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let reply = probe(&server, method, "/readyz");
        assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")), "{method}");
        assert!(reply.error().contains("GET"), "{}", reply.error());
    }
    for path in ["/", "/healthz/", "/readyz/x", "/Healthz", "/metrics", "/peers"] {
        assert_eq!(probe(&server, "GET", path).status, 404, "{path}");
    }
    assert_eq!(probe(&server, "GET", "/payloads").status, 405);
    assert_eq!(server.metrics().requests(405), 5);
}

#[test]
fn both_listeners_agree_and_strangers_learn_no_reasons() {
    for admin in ["127.0.0.1:0", "off"] {
        let server = Server::start(&[
            ("INGEST_HEALTH", "on"),
            ("ADMIN_LISTEN", admin),
            ("READY_STORE_GRACE", "10ms"),
            ("RETRY_MAX", "100ms"),
        ]);
        let until = |status| {
            wait_for(&format!("{status} of /readyz"), || {
                probe(&server, "GET", "/readyz").status == status
            });
        };
        until(200);
        server.break_store();
        assert_eq!(server.post(r#"{"data":[1]}"#).status, 200);
        until(503);
        let reply = probe(&server, "GET", "/readyz");
        assert_eq!((reply.status, reply.body.as_str()), (503, "not ready\n"), "no reasons");
        assert_eq!(reply.header("connection"), Some("close"));
        assert_eq!(probe(&server, "HEAD", "/readyz").status, 503);
        assert_eq!(probe(&server, "GET", "/healthz").status, 200);
        if admin != "off" {
            let reasons = server.wait_ready(503);
            assert!(reasons.contains("the store has been failing"), "{reasons}");
            assert_eq!(server.metrics().requests(503), 0, "a probe is no refused request");
        }
        server.mend_store();
        until(200);
        if admin != "off" {
            server.wait_ready(200);
        }
    }
}

#[test]
fn a_server_without_room_answers_probes() {
    let server = Server::start(&[
        ("INGEST_HEALTH", "on"),
        ("MAX_QUEUE", "1"),
        ("MAX_WORKERS", "1"),
        ("ENQUEUE_WAIT", "0s"),
        ("FAULTS", "delay=60s"),
        ("PUT_TIMEOUT", "2m"),
        ("DRAIN_TIMEOUT", "1s"),
    ]);
    wait_for("a full queue", || server.post(r#"{"data":[1]}"#).status == 503);
    for _ in 0..50 {
        assert_eq!(server.post(r#"{"data":[1]}"#).status, 503);
        assert_eq!(probe(&server, "GET", "/healthz").status, 200);
    }
    wait_for("ready", || probe(&server, "GET", "/readyz").body == "ready\n");
}

#[test]
fn a_server_that_drains_sends_balancers_away() {
    let server = Server::start(&[
        ("INGEST_HEALTH", "on"),
        ("DRAIN_TIMEOUT", "2m"),
        ("HEADER_TIMEOUT", "1m"),
    ]);
    wait_for("ready", || probe(&server, "GET", "/readyz").status == 200);
    let begun = |path: &str| {
        let mut client = server.connect();
        client.send(request(br#"{"data":[]}"#, ""));
        assert_eq!(client.reply().status, 200);
        // So that it is not idle.
        client.send(format!("GET {path} HTTP/1.1\r\n"));
        client
    };
    let finish = |mut client: Client| {
        client.send("host: x\r\n\r\n");
        client.last_reply()
    };
    let clients = ["/readyz", "/readyz", "/healthz"].map(begun);
    let mut idle = server.connect();
    idle.send(request(br#"{"data":[]}"#, ""));
    assert_eq!(idle.reply().status, 200);
    server.signal("TERM");
    server.wait_ready(503);
    assert!(idle.closed(), "the core knows");
    let replies = clients.map(finish);
    let seen = replies.each_ref().map(|reply| (reply.status, reply.body.as_str()));
    assert_eq!(seen, [(503, "not ready\n"), (503, "not ready\n"), (200, "ok\n")]);
    assert_eq!(server.wait_stopped().status, 0);
}
