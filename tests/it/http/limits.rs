//! Goal: connections, body memory and ring memory each stop at their limit, say so, and recover.
//!
//! Method: clients that hold as much as they are let, a bystander who must notice no more than a
//! 503, and the process's resident memory as the kernel counts it.

use std::time::{Duration, Instant};

use millrace::internals::http::CONNECTION_BYTES;

use crate::support::{Client, PATIENCE, Server, request};

const MIB: usize = 1 << 20;

/// A body of `length` bytes that holds one tiny payload.
fn padded(length: usize) -> Vec<u8> {
    let mut body = br#"{"data":[1]"#.to_vec();
    body.resize(length - 1, b' ');
    body.push(b'}');
    body
}

/// Whether the server says anything to `client` within a short while.
fn is_answered(client: &Client) -> bool {
    client.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let answered = client.stream.peek(&mut [0]).is_ok();
    client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    answered
}

#[test]
fn at_max_connections_busy_ones_stay_and_the_kernel_queues_the_rest() {
    let server = Server::start(&[("MAX_CONNECTIONS", "2")]);
    let mut first = server.connect();
    let mut second = server.connect();
    let whole = request(br#"{"data":["served"]}"#, "");
    let (begun, rest) = whole.split_at(whole.len() - 5);
    for client in [&mut first, &mut second] {
        assert_eq!(client.post(r#"{"data":["served"]}"#).status, 200);
        client.send(begun);
    }
    // Established by the kernel, and its request is taken, but nobody serves it.
    let mut third = server.connect();
    third.send(request(br#"{"data":["queued"]}"#, ""));
    let mut fourth = server.connect();
    fourth.send(request(br#"{"data":["queued"]}"#, ""));
    // Longer than an idle connection is safe.
    (0..5).for_each(|_| assert!(!is_answered(&third)));
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_connections"), 2);
    assert_eq!(metrics.sum("millrace_connections_waiting"), 1);
    let ready = server.wait_ready(200);
    assert!(
        ready.contains("all 2 connections are open (MAX_CONNECTIONS); none is idle"),
        "{ready}"
    );
    for client in [&mut first, &mut second] {
        client.send(rest);
        assert_eq!(client.reply().status, 200, "the others do not suffer");
    }
    let freed = Instant::now();
    drop(first);
    assert_eq!(third.reply().status, 200, "the slot goes to the next");
    if is_answered(&fourth) {
        // A busy machine may have let it be idle for long enough.
        assert!(freed.elapsed() > Duration::from_secs(1), "after {:?}", freed.elapsed());
        return;
    }
    drop(second);
    assert_eq!(fourth.reply().status, 200);
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_connections"), 2);
    assert_eq!(metrics.sum("millrace_connections_evicted_total"), 0);
    drop((third, fourth));
    server.wait_idle();
    assert_eq!(server.stored().len(), 6);
}

/// A client that does not run for a quarter of a second stalls, and then its bodies give way; that
/// is another scenario than this one.
#[test]
fn body_memory_used_up_is_503_until_it_is_free_again() {
    let given_way: Vec<String> = (0..8).map_while(|_| use_up_body_memory().err()).collect();
    assert!(given_way.len() < 8, "bodies that came in steadily: {given_way:#?}");
}

/// An error says how bodies gave way.
fn use_up_body_memory() -> Result<(), String> {
    let server = Server::start(&[("MAX_BODY_BYTES", "2MiB")]);
    let whole = request(&padded(MIB), "");
    let mut hogs: Vec<Client> = (0..2).map(|_| server.connect()).collect();
    let mut bystander = server.connect();
    // Both come in at 400 kB/s all the time, so neither gives way. Room is made ahead of bytes.
    let (mut sent, piece) = (0, 16 << 10);
    while sent < 800 << 10 {
        if !hogs.iter_mut().all(|hog| hog.try_send(&whole[sent..sent + piece])) {
            return Err(format!("after {sent} bytes"));
        }
        sent += piece;
        std::thread::sleep(Duration::from_millis(40));
    }
    // Each with its padding.
    let held = server.metrics().sum("millrace_body_bytes");
    if held != 2 * (MIB + 64) as u64
        || !hogs.iter_mut().all(|hog| hog.try_send(&whole[sent..sent + piece]))
    {
        return Err(format!("{held} bytes held"));
    }
    sent += piece;
    bystander.send(request(br#"{"data":["refused"]}"#, ""));
    let reply = bystander.reply();
    if reply.status == 200 {
        return Err("to the bystander".to_owned());
    }
    assert!(bystander.closed());
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")), "{reply:?}");
    assert!(reply.error().contains("memory"), "{}", reply.error());
    // Those that hold the memory are not the ones to suffer.
    for hog in &mut hogs {
        hog.send(&whole[sent..]);
        let reply = hog.reply();
        if reply.status == 408 {
            return Err(reply.body);
        }
        assert_eq!(reply.status, 200);
    }
    assert_eq!(server.metrics().sum("millrace_body_memory_refusals_total"), 1);
    assert_eq!(server.post(r#"{"data":["taken"]}"#).status, 200);
    drop((hogs, bystander));
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["\"taken\"", "1", "1"]);
    Ok(())
}

#[test]
fn a_body_pays_for_what_it_sent_not_for_what_it_announced() {
    let server = Server::start(&[("MAX_BODY_BYTES", "2MiB")]);
    let head = format!("POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: {MIB}\r\n\r\n");
    let chunked =
        "POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n100000\r\n";
    let slow: Vec<Client> = (0..200)
        .map(|n| {
            let mut client = server.connect();
            client.send(format!("{}{{", if n % 2 == 0 { &head } else { chunked }));
            client
        })
        .collect();
    server.wait("all are being read", |m| {
        m.sum("millrace_connections") == 200 && m.sum("millrace_body_bytes") >= 200
    });
    let held = server.metrics().sum("millrace_body_bytes");
    assert!(held <= 200 * 4096, "{held} bytes for 200 bodies of one byte");
    assert_eq!(server.post(padded(200_000)).status, 200);
    drop(slow);
    server.wait_idle();
    assert_eq!(server.metrics().requests(503), 0);
}

#[test]
fn requests_waiting_for_room_hold_body_memory() {
    let settings = [
        ("MAX_BODY_BYTES", "2MiB"),
        ("MAX_WORKERS", "1"),
        ("MAX_QUEUE", "1"),
        ("ENQUEUE_WAIT", "20s"),
        ("RETRY_BASE", "5ms"),
        ("RETRY_MAX", "50ms"),
    ];
    let server = Server::start(&settings);
    server.break_store();
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    server.wait("the worker has it", |m| m.sum("millrace_put_retries_total") > 0);
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    let mut waiting: Vec<Client> = (0..2)
        .map(|_| {
            let mut client = server.connect();
            client.send(request(&padded(MIB), ""));
            client
        })
        .collect();
    server.wait("both wait for room", |m| m.sum("millrace_room_waiters") == 2);
    assert_eq!(server.post_payloads(&["1"]).status, 503);
    server.mend_store();
    for client in &mut waiting {
        assert_eq!(client.reply().status, 200);
    }
    drop(waiting);
    server.wait_idle();
    assert_eq!(server.stored().len(), 4);
}

#[test]
fn two_thousand_connections_are_all_served() {
    let server = Server::start(&[("STORE", "null:")]);
    let mut clients: Vec<Client> = (0..2000).map(|_| server.connect()).collect();
    for round in 0..3 {
        for client in &mut clients {
            client.send(request(br#"{"data":[1,2]}"#, ""));
        }
        for client in &mut clients {
            assert_eq!(client.reply().status, 200);
        }
        let metrics = server.metrics();
        assert_eq!(metrics.sum("millrace_connections"), 2000);
        assert_eq!(metrics.requests(200), 2000 * (round + 1));
    }
    drop(clients);
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_payloads_stored_total"), 12_000);
}

#[test]
fn resident_memory_stays_bounded_by_the_ring_whatever_a_payload_weighs() {
    let settings = [
        ("MAX_QUEUE_BYTES", "16MiB"),
        ("MAX_BODY_BYTES", "4MiB"),
        ("MAX_WORKERS", "16"),
        ("PUT_TIMEOUT", "10m"),
        ("FAULTS", "hang=1"),
    ];
    let server = Server::start(&settings);
    let body = padded(MIB);
    let mut client = server.connect();
    assert_eq!(client.post(r#"{"data":["warm"]}"#).status, 200);
    let before = server.resident();
    let statuses: Vec<u16> = (0..60).map(|_| client.post(&body).status).collect();
    let grown = (server.resident() - before) as usize;
    // Fifteen of 1 MiB and the cost of a job each; the sixteenth does not fit. The ring's slots are
    // free: it is the bytes that refuse.
    assert_eq!(statuses, [[200; 15].as_slice(), &[503; 45]].concat());
    let metrics = server.metrics();
    let (busy, queued) =
        (metrics.sum("millrace_workers_busy"), metrics.sum("millrace_queue_depth"));
    assert_eq!(busy + queued, 16);
    let held = metrics.sum("millrace_queue_bytes") as usize;
    assert!((15 * MIB..=16 * MIB).contains(&held), "{held}");
    // Beside both budgets: the parser's buffers (about twice a body) and what the allocator keeps.
    let bound = (16 + 4 + 16) * MIB;
    assert!(grown < bound, "{grown} bytes more than before, for 15 bodies");
    // The store never answers, so the gauges cannot return to zero; nothing is lost all the same.
    drop(client);
    server.signal("TERM");
    server.wait("the drain", |_| server.logged("stopping"));
    let stopped = server.stop();
    assert_eq!((stopped.accepted, stopped.dead_lettered, stopped.lost), (16, 16, 0));
}

#[test]
fn resident_memory_stays_bounded_by_bodies_while_dense_ones_wait_for_room() {
    let settings = [
        ("MAX_QUEUE", "600000"),
        ("MAX_QUEUE_BYTES", "64MiB"),
        ("MAX_BODY_BYTES", "16MiB"),
        ("ENQUEUE_WAIT", "5m"),
        ("PUT_TIMEOUT", "10m"),
        ("FAULTS", "hang=1"),
    ];
    let server = Server::start(&settings);
    // Half a million payloads: their spans would weigh four times the body.
    let dense = format!(r#"{{"data":[{}0]}}"#, "0,".repeat(MIB / 2 - 10));
    assert_eq!(server.post(&dense).status, 200);
    let before = server.resident();
    let waiting: Vec<Client> = (1..=12)
        .map(|n| {
            let mut client = server.connect();
            client.send(request(dense.as_bytes(), ""));
            server.wait("it stands in line", |m| m.sum("millrace_room_waiters") == n);
            client
        })
        .collect();
    let grown = server.resident().saturating_sub(before) as usize;
    // Spans kept for each would be 58 MiB; the allocator may hold on to one round of the parser's
    // scratch.
    assert!(grown < (16 + 32) * MIB, "{grown} bytes more than before, for 12 bodies of 1 MiB");
    // Not stopped: half a million dead letters would be another scenario.
    drop(waiting);
}

/// What `limits` promises of a connection, in the worst states a client can bring one into. This is
/// not the build that the figure is for: tasks are larger in it.
#[test]
fn resident_memory_stays_bounded_by_connections_whatever_their_heads() {
    const CONNECTIONS: usize = 400;
    let server = Server::start(&[("HEADER_TIMEOUT", "1m"), ("BODY_TIMEOUT", "1m")]);
    let field = "a".repeat(140);
    let head: String = (0..97).map(|n| format!("x-{n:02}: {field}\r\n")).collect();
    let starts = format!("POST /payloads HTTP/1.1\r\nhost: x\r\n{head}content-length: 1000\r\n");
    for ends in ["", "\r\n"] {
        let warm: Vec<Client> = (0..20).map(|_| server.connect()).collect();
        server.wait("they are open", |m| m.sum("millrace_connections") >= 20);
        let before = server.resident();
        let clients: Vec<Client> = (0..CONNECTIONS)
            .map(|_| {
                let mut client = server.connect();
                client.send([&starts, ends].concat());
                client
            })
            .collect();
        server
            .wait("they are open", |m| m.sum("millrace_connections") >= (CONNECTIONS + 20) as u64);
        std::thread::sleep(Duration::from_millis(500));
        let each = server.resident().saturating_sub(before) as usize / CONNECTIONS;
        assert!(each < CONNECTION_BYTES * 3 / 2, "{each} bytes each");
        drop((warm, clients));
        server.wait_idle();
    }
}
