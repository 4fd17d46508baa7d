//! Goal: every deadline ends what it is for, with the answer it has, and nothing else.
//!
//! Method: short settings and clients that stall or trickle. A deadline must not come early, and it
//! must come; how late is bounded only by what a busy machine may need.

use std::time::{Duration, Instant};

use crate::support::{Client, PATIENCE, Server, request};

const HEADER: Duration = Duration::from_secs(1);
const BODY: Duration = Duration::from_millis(1_200);
const IDLE: Duration = Duration::from_millis(1_500);

fn server() -> Server {
    let settings =
        [("HEADER_TIMEOUT", "1s"), ("BODY_TIMEOUT", "1200ms"), ("IDLE_TIMEOUT", "1500ms")];
    Server::start(&settings)
}

/// Sends `pieces` one after another until the server answers or closes: a client that is slow, not
/// silent.
fn trickle(client: &mut Client, piece: &str) {
    let pause = Some(Duration::from_millis(40));
    client.stream.set_read_timeout(pause).unwrap();
    let started = Instant::now();
    while client.stream.peek(&mut [0]).is_err() {
        assert!(started.elapsed() < PATIENCE, "no deadline came");
        client.try_send(piece);
    }
    client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
}

#[test]
fn a_head_that_is_not_complete_in_time_gets_408() {
    let server = server();
    for starts in ["P", "POST /payloads HTTP/1.1\r\nhost: x\r\n", "\r\nP"] {
        let mut client = server.connect();
        let started = Instant::now();
        client.send(starts);
        let reply = client.last_reply();
        assert!(started.elapsed() >= HEADER, "{:?}", started.elapsed());
        assert_eq!((reply.status, reply.header("content-type")), (408, Some("application/json")));
        assert!(reply.error().contains("HEADER_TIMEOUT"));
    }
    // Also on a connection that was used before, and by a client that never stops sending.
    let mut client = server.connect();
    assert_eq!(client.post(r#"{"data":[1]}"#).status, 200);
    client.send("POST /payloads HTTP/1.1\r\n");
    trickle(&mut client, "x: y\r\n");
    assert_eq!(client.last_reply().status, 408);
    drop(client);
    server.wait_idle();
    let metrics = server.metrics();
    assert_eq!((metrics.requests(408), metrics.requests(400)), (4, 0));
}

#[test]
fn a_head_that_began_with_the_last_request_has_its_deadline_too() {
    let settings = [("HEADER_TIMEOUT", "1s"), ("IDLE_TIMEOUT", "1m")];
    let server = Server::start(&settings);
    let whole = request(br#"{"data":[1]}"#, "");
    let (head, body) = whole.split_at(whole.len() - 12);
    for pieces in [[b"", whole.as_slice()], [head, body], [&whole[..9], &whole[9..]]] {
        let mut client = server.connect();
        client.send(pieces[0]);
        // Pieces that arrive apart, and the second one with the start of the next head.
        std::thread::sleep(Duration::from_millis(50));
        client.send([pieces[1], b"POST /payl"].concat());
        assert_eq!(client.reply().status, 200);
        assert_eq!(client.last_reply().status, 408);
    }
    // What follows in time is a request like any other, and the next one as well.
    let mut client = server.connect();
    for _ in 0..3 {
        client.send([&whole, &whole[..20]].concat());
        client.send(&whole[20..]);
        assert_eq!((client.reply().status, client.reply().status), (200, 200));
    }
    // Empty lines between requests begin nothing, however they come.
    client.send([&whole[..], b"\r\n"].concat());
    assert_eq!(client.reply().status, 200);
    client.send("\r\n");
    std::thread::sleep(3 * HEADER / 2);
    client.send("\r\n");
    assert_eq!(client.post(r#"{"data":[1]}"#).status, 200);
    // Nor do two requests in one piece leave anything behind.
    client.send([&whole[..], &whole].concat());
    assert_eq!((client.reply().status, client.reply().status), (200, 200));
    std::thread::sleep(3 * HEADER / 2);
    assert_eq!(client.post(r#"{"data":[1]}"#).status, 200);
    drop(client);
    server.wait_idle();
    assert_eq!(server.metrics().requests(408), 3);
}

/// Longer than a connection keeps its buffers for the next byte.
const SILENCE: Duration = Duration::from_millis(600);

#[test]
fn a_silent_connection_goes_on_where_it_was() {
    let server = Server::start(&[]);
    let whole = request(br#"{"data":[1]}"#, "");
    let mut client = server.connect();
    std::thread::sleep(SILENCE);
    for _ in 0..2 {
        client.send(&whole);
        assert_eq!(client.reply().status, 200);
        std::thread::sleep(SILENCE);
        // The first bytes of a head, and silence again.
        client.send(&whole[..9]);
        std::thread::sleep(SILENCE);
        client.send(&whole[9..]);
        assert_eq!(client.reply().status, 200);
        client.send("\r\n");
        std::thread::sleep(SILENCE);
    }
    drop(client);

    // Heads that begin behind the request before, wherever they are cut, with empty lines in their
    // bodies.
    let lines = request(b"{\n\n\"data\":\r\n\r\n[1]}\n", "x-field: 1\r\n");
    let head_ends = lines.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    for cut in (1..head_ends).rev().take(12).chain([9, 20]) {
        let mut client = server.connect();
        client.send([&lines[..], &lines[..cut]].concat());
        assert_eq!(client.reply().status, 200, "cut at {cut}");
        client.send([&lines[cut..], &lines[..1]].concat());
        assert_eq!(client.reply().status, 200, "cut at {cut}");
        std::thread::sleep(SILENCE / 2);
        client.send(&lines[1..]);
        assert_eq!(client.reply().status, 200, "cut at {cut}");
    }
    server.wait_idle();
    let metrics = server.metrics();
    assert_eq!((metrics.requests(408), metrics.requests(400)), (0, 0));
}

#[test]
fn a_body_that_is_not_complete_in_time_gets_408() {
    let server = server();
    let plain = "POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n";
    let chunked = "POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n";
    for (head, piece, after_100) in [
        (format!("{plain}\r\n"), "", false),
        (format!("{plain}\r\n{{\"data\":[1,"), "1,", false),
        (format!("{chunked}\r\n"), "", false),
        (format!("{chunked}\r\n"), "1\r\n \r\n", false),
        (format!("{plain}expect: 100-continue\r\n\r\n"), "", true),
    ] {
        let mut client = server.connect();
        let started = Instant::now();
        client.send(&head);
        if after_100 {
            assert_eq!(client.reply().status, 100);
        }
        trickle(&mut client, piece);
        let reply = client.last_reply();
        assert!(started.elapsed() >= BODY, "{:?}", started.elapsed());
        assert_eq!((reply.status, reply.header("content-type")), (408, Some("application/json")));
        assert!(reply.error().contains("BODY_TIMEOUT"));
    }
    server.wait_idle();
    assert!(server.stored().is_empty());
    assert_eq!(server.metrics().requests(408), 5);
}

#[test]
fn idle_connections_are_closed_without_a_word() {
    let server = server();
    // Times are taken before the server can take its own, so that a slow machine fails nothing.
    let (mut started, mut answers) = (Instant::now(), 0);
    let mut silent = server.connect();
    let mut used = server.connect();
    assert!(silent.closed(), "not one byte");
    // It has never begun a request.
    assert!(started.elapsed() >= HEADER - Duration::from_millis(50), "{:?}", started.elapsed());
    // The other may have been closed in the meantime; a fresh one certainly lives.
    if used.closed() {
        used = server.connect();
    }
    // Idleness counts from the last answer, not from the start: requests keep a connection open
    // past the deadline.
    let opened = Instant::now();
    while opened.elapsed() < IDLE + IDLE / 2 {
        started = Instant::now();
        assert_eq!(used.post(r#"{"data":[1]}"#).status, 200);
        answers += 1;
    }
    assert!(used.closed(), "not one byte");
    assert!(started.elapsed() >= IDLE - Duration::from_millis(50), "{:?}", started.elapsed());
    server.wait_idle();
    let metrics = server.metrics();
    assert_eq!((metrics.requests(200), metrics.requests(408)), (answers, 0));
}

#[test]
fn slow_within_the_deadlines_is_fine() {
    let settings = [("HEADER_TIMEOUT", "10s"), ("BODY_TIMEOUT", "10s"), ("IDLE_TIMEOUT", "300ms")];
    let server = Server::start(&settings);
    let mut client = server.connect();
    // Both parts take longer than the shortest deadline, at which the connection's timer fires.
    let whole = request(br#"{"data":[1]}"#, "");
    for piece in whole.chunks(9) {
        client.send(piece);
        // What is tested is the time that passes.
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(client.reply().status, 200);
    drop(client);
    server.wait_idle();
    assert_eq!(server.metrics().requests(408), 0);
}

#[test]
fn waiting_for_room_is_no_deadline_of_the_client() {
    let settings = [
        ("HEADER_TIMEOUT", "200ms"),
        ("BODY_TIMEOUT", "200ms"),
        ("IDLE_TIMEOUT", "15s"),
        ("ENQUEUE_WAIT", "20s"),
        ("MAX_WORKERS", "1"),
        ("MAX_QUEUE", "1"),
        ("RETRY_BASE", "5ms"),
        ("RETRY_MAX", "50ms"),
    ];
    let server = Server::start(&settings);
    server.break_store();
    let mut client = server.connect();
    assert_eq!(client.post(r#"{"data":[1]}"#).status, 200);
    server.wait("the worker has it", |m| m.sum("millrace_put_retries_total") > 0);
    assert_eq!(client.post(r#"{"data":[2]}"#).status, 200);
    let started = Instant::now();
    client.send(request(br#"{"data":[3]}"#, ""));
    std::thread::sleep(Duration::from_millis(700));
    server.mend_store();
    let waited = client.reply();
    assert_eq!(waited.status, 200, "{waited:?}");
    assert!(started.elapsed() > Duration::from_millis(200), "it did not wait");
    // The next request has deadlines of its own: a stall within them is fine, beyond them it is
    // not.
    let whole = request(br#"{"data":[4]}"#, "");
    client.send(&whole[..whole.len() - 1]);
    assert_eq!(client.last_reply().status, 408);
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["1", "2", "3"]);
}
