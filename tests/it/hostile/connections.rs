//! Goal: clients that hold connections and do nothing with them do not keep others out.
//!
//! Method: a table of hoarders, each several times `MAX_CONNECTIONS`, beside a client that opens a
//! connection for each request, and one that keeps its own. Then the order in which connections
//! give way, each step by itself, with peers on several loopback addresses.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::support::Ended;
use crate::support::{Client, PATIENCE, Server, chunked_request, request, wait_for};

/// A connection that has sent a request is safe for this long, and a bit.
const SAFE: Duration = Duration::from_millis(1_100);
const BODY: &[u8] = br#"{"data":[1]}"#;

/// What a hoarder does with its connection after it is open.
type Hoard = fn(&mut Client);

/// By name, with the reason why they give way and how often they do at least.
const HOARDERS: [(&str, &str, u64, Hoard); 6] = [
    ("silent", "never_sent", 30, |_| {}),
    ("a line end, which begins no request", "never_sent", 30, |client| {
        client.try_send("\r\n");
    }),
    ("one request, then silent", "busiest_peer", 30, |client| {
        client.send(request(BODY, ""));
        assert_eq!(client.reply().status, 200);
    }),
    ("one chunked request, then silent", "busiest_peer", 30, |client| {
        client.send(chunked_request(&[BODY], ""));
        assert_eq!(client.reply().status, 200);
    }),
    ("one refused request, then silent", "busiest_peer", 30, |client| {
        client.send("GET /payloads HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!(client.reply().status, 405);
    }),
    // On a slow machine some linger for 2 s, the most, before they have to give way.
    ("refusals that linger", "lingering", 3, |client| {
        client.send("GET /payloads HTTP/1.1\r\n\r\n");
        assert_eq!(client.reply().status, 400);
    }),
];

#[test]
fn whatever_hoarders_do_with_their_connections_others_are_served() {
    for (name, reason, least, hoard) in HOARDERS {
        let server = Server::start(&[("MAX_CONNECTIONS", "16")]);
        let mut kept = server.connect();
        let mut hoarders = Vec::new();
        for _ in 0..48 {
            let mut client = server.connect();
            hoard(&mut client);
            hoarders.push(client);
            assert_eq!(kept.post(BODY).status, 200, "{name}: who sends keeps the connection");
        }
        let started = Instant::now();
        let mut slowest = Duration::ZERO;
        for _ in 0..30 {
            let begun = Instant::now();
            assert_eq!(server.post(BODY).status, 200, "{name}");
            slowest = slowest.max(begun.elapsed());
            assert_eq!(kept.post(BODY).status, 200, "{name}");
        }
        println!("{name}: 30 in {:?}, slowest {slowest:?}", started.elapsed());
        assert!(started.elapsed() < PATIENCE / 2, "{name}: {:?}", started.elapsed());
        let metrics = server.metrics();
        let labels = format!("reason=\"{reason}\"");
        let evicted = metrics.sum_where("millrace_connections_evicted_total", &labels);
        assert!(evicted >= least, "{name}: {evicted} of them {reason}");
        assert_eq!(metrics.sum("millrace_connections_evicted_total"), evicted, "{name}");
        assert!(metrics.sum("millrace_connections_at_limit_total") >= evicted, "{name}");
        server.wait_logged("MAX_CONNECTIONS is reached (16 on this core)");
        server.wait_logged("127.0.0.1 has most: ");
        drop((hoarders, kept));
        server.wait_idle();
        assert_eq!(server.wait_ready(200), "ready\n", "{name}: no longer at the limit");
    }
}

/// They give way long before `HEADER_TIMEOUT` ends them, and before each has had the second for which
/// an idle connection is safe.
#[test]
fn who_has_sent_half_a_head_gives_way() {
    for half in ["P", "POST /payloads HTTP/1.1\r\nhost: x\r\nx", "\r\nPOST"] {
        let server = Server::start(&[("MAX_CONNECTIONS", "16"), ("HEADER_TIMEOUT", "10m")]);
        let mut hoarders = Vec::new();
        for _ in 0..160 {
            let mut client = server.connect();
            client.try_send(half);
            hoarders.push(client);
        }
        let started = Instant::now();
        for _ in 0..30 {
            assert_eq!(server.post(BODY).status, 200);
        }
        assert!(started.elapsed() < PATIENCE, "{half:?}: {:?}", started.elapsed());
        let metrics = server.metrics();
        let first_head = r#"reason="first_head""#;
        let evicted = metrics.sum_where("millrace_connections_evicted_total", first_head);
        assert!(evicted >= 100, "{half:?}: {evicted}");
        drop(hoarders);
        server.wait_idle();
    }
}

#[test]
fn hoarders_that_come_back_all_the_time_keep_nobody_out() {
    let server = Server::start(&[("MAX_CONNECTIONS", "16")]);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut held = Vec::new();
                while !ended.load(Relaxed) {
                    held.push(server.connect());
                    held.drain(..held.len().saturating_sub(64));
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
        let _ended = Ended(&ended);
        let mut kept = server.connect();
        assert_eq!(kept.post(BODY).status, 200);
        server.wait("the limit", |m| m.sum("millrace_connections_at_limit_total") > 100);
        for _ in 0..100 {
            assert_eq!(server.post(BODY).status, 200);
            assert_eq!(kept.post(BODY).status, 200);
        }
        server.wait("it is shown", |m| m.sum("millrace_connections_full") == 1);
        let ready = server.wait_ready(200);
        let says = "core 0: all 16 connections are open (MAX_CONNECTIONS); idle ones are closed";
        assert!(ready.contains(says), "{ready}");
    });
    server.wait_idle();
}

/// A connection from the loopback address that ends in `last`.
fn connect_from(server: &Server, last: u8) -> Client {
    Client::connect_from([127, 0, 0, last].into(), server.ingest)
}

/// One that has sent a request.
fn served_from(server: &Server, last: u8) -> Client {
    let mut client = connect_from(server, last);
    assert_eq!(client.post(BODY).status, 200);
    client
}

fn is_open(client: &Client) -> bool {
    client.stream.set_nonblocking(true).unwrap();
    let open = client.stream.peek(&mut [0]).is_err();
    client.stream.set_nonblocking(false).unwrap();
    open
}

#[test]
fn connections_give_way_in_the_order_that_is_documented() {
    let server = Server::start(&[("MAX_CONNECTIONS", "4")]);
    let mut oldest = served_from(&server, 2);
    let mut first_of_two = served_from(&server, 1);
    let second_of_two = served_from(&server, 1);
    let mut silent = connect_from(&server, 1);
    server.wait("all are open", |m| m.sum("millrace_connections") == 4);
    std::thread::sleep(SAFE);
    let mut first_of_three = served_from(&server, 3);
    assert!(silent.closed(), "it has never sent a byte");
    let second_of_three = served_from(&server, 3);
    assert!(first_of_two.closed(), "of the busiest peer the longest idle");
    std::thread::sleep(SAFE);
    let fourth = served_from(&server, 4);
    assert!(first_of_three.closed(), "of the busiest peer the longest idle");
    assert!([&oldest, &second_of_two, &second_of_three].into_iter().all(is_open));
    let fifth = served_from(&server, 5);
    assert!(oldest.closed(), "no peer has more than one: of all the longest idle");
    assert!([&second_of_two, &second_of_three, &fourth, &fifth].into_iter().all(is_open));
    let metrics = server.metrics();
    for (reason, count) in [("never_sent", 1), ("busiest_peer", 2), ("longest_idle", 1)] {
        let labels = format!("reason=\"{reason}\"");
        let evicted = metrics.sum_where("millrace_connections_evicted_total", &labels);
        assert_eq!(evicted, count, "{reason}");
    }
    drop((second_of_two, second_of_three, fourth, fifth));
    server.wait_idle();
}

#[test]
fn connections_in_the_middle_of_a_request_never_give_way() {
    let settings = [("MAX_CONNECTIONS", "2"), ("FAULTS", "delay=5s")];
    let server = Server::start(&settings);
    let whole = request(BODY, "");
    let mut body = server.connect();
    body.send(&whole[..whole.len() - 1]);
    let mut acked = server.connect();
    acked.send(request(BODY, "millrace-ack: stored\r\n"));
    server.wait("it waits for the store", |m| m.sum("millrace_ack_waiters") == 1);
    let mut next = server.connect();
    next.send(&whole);
    std::thread::sleep(2 * SAFE);
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_connections_waiting"), 1);
    assert_eq!(metrics.sum("millrace_connections_evicted_total"), 0);
    body.send(&whole[whole.len() - 1..]);
    for client in [&mut body, &mut acked, &mut next] {
        assert_eq!(client.reply().status, 200);
    }
    server.wait("one has given way", |m| m.sum("millrace_connections_evicted_total") == 1);
    drop((body, acked, next));
    server.wait_idle();
}

#[test]
fn a_connection_that_never_begins_a_request_has_header_timeout() {
    let server = Server::start(&[("HEADER_TIMEOUT", "600ms"), ("IDLE_TIMEOUT", "1h")]);
    let started = Instant::now();
    let mut kept = server.connect();
    assert_eq!(kept.post(BODY).status, 200);
    for says in ["", "\r\n", "\r\n\r\n"] {
        let mut silent = server.connect();
        silent.send(says);
        assert!(silent.closed(), "without an answer after {says:?}");
    }
    assert!(started.elapsed() >= Duration::from_millis(1_700), "{:?}", started.elapsed());
    assert_eq!(kept.post(BODY).status, 200, "it has IDLE_TIMEOUT");
    assert_eq!(server.metrics().requests(408), 0);
    drop(kept);
    server.wait_idle();
}

/// What lingers is first, although it is the youngest, and the idle one keeps its place.
#[test]
fn a_connection_that_lingers_gives_way_before_any_other() {
    let server = Server::start(&[("MAX_CONNECTIONS", "3"), ("IDLE_TIMEOUT", "1h")]);
    let mut idle = served_from(&server, 2);
    let silent = connect_from(&server, 3);
    std::thread::sleep(SAFE);
    let mut refused = connect_from(&server, 4);
    refused.send("GET /payloads HTTP/1.1\r\n\r\n");
    assert_eq!(refused.reply().status, 400);
    server.wait("all are open", |m| m.sum("millrace_connections") == 3);
    std::thread::sleep(Duration::from_millis(150));
    let next = served_from(&server, 5);
    let metrics = server.metrics();
    let lingering = metrics.sum_where("millrace_connections_evicted_total", "reason=\"lingering\"");
    // It may have ended by itself if this test was that slow.
    assert_eq!(metrics.sum("millrace_connections_evicted_total"), lingering);
    assert!(is_open(&silent));
    assert_eq!(idle.post(BODY).status, 200);
    drop((idle, silent, refused, next));
    server.wait_idle();
}

/// A request may be on its way when its connection gives way. It is then served, or its client
/// sees the end of the connection and nothing of it was admitted.
#[test]
fn a_request_that_meets_its_connections_end_is_served_or_not_taken() {
    let server = Server::start(&[("MAX_CONNECTIONS", "8"), ("STORE", "null:")]);
    let (mut served, mut refused) = (0, 0);
    for _ in 0..6 {
        let mut idle: Vec<Client> = (0..8).map(|_| server.connect()).collect();
        for client in &mut idle {
            assert_eq!(client.post(BODY).status, 200);
            served += 1;
        }
        std::thread::sleep(SAFE);
        // At the same moment, others come.
        let others = std::thread::scope(|scope| {
            let others = scope.spawn(|| (0..8).map(|_| server.connect()).collect::<Vec<_>>());
            for client in &mut idle {
                match client.try_request(&request(BODY, "")) {
                    Some(reply) => {
                        assert_eq!(reply.status, 200);
                        served += 1;
                    }
                    None => {
                        assert!(client.unread.is_empty(), "a part of an answer");
                        refused += 1;
                    }
                }
            }
            others.join().unwrap()
        });
        drop((idle, others));
        server.wait("they are gone", |m| m.sum("millrace_connections") == 0);
    }
    println!("{served} served, {refused} met the end of their connection");
    wait_for("what was served to be stored", || {
        server.metrics().sum("millrace_payloads_stored_total") == served
    });
    assert_eq!(server.metrics().sum("millrace_payloads_accepted_total"), served);
    server.wait_idle();
}
