//! Stopping: goal, after SIGTERM or SIGINT everything accepted is stored or, at the end of
//! `DRAIN_TIMEOUT`, in the dead letter under its key; clients are told to go, never cut while they
//! could be answered.
//!
//! Method: signals at a server with work in flight, connections in every state and a store that is
//! slow, stalled or gone; then the exit status, the summary's figures and the directories are
//! compared with what was accepted.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use millrace::internals::http::STOP_IDLE_GRACE;

use crate::support::needs::up_to_two_cores;
use crate::support::{
    Client, Server, collection, contents, dead_letters, files, numbered, request, sorted, wait_for,
};

/// Longer than anything should take that is not meant to wait.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn both_signals_store_everything_in_flight() {
    for signal in ["TERM", "INT"] {
        let server = Server::start(&[
            ("FAULTS", "delay=50ms"),
            ("MAX_WORKERS", "8"),
            ("DRAIN_TIMEOUT", "1m"),
        ]);
        assert_eq!(server.post(collection(&numbered(0..100))).status, 200);
        server.signal(signal);
        let stopped = server.wait_stopped();
        let figures = (stopped.status, stopped.accepted, stopped.stored, stopped.dead_lettered);
        assert_eq!(figures, (0, 100, 100, 0), "SIG{signal}\n{}", stopped.log_text());
        assert_eq!(stopped.lost, 0);
        let stored = files(&stopped.dir.path().join("data"));
        assert_eq!(contents(&stored), sorted(&numbered(0..100)));
        assert!(!stopped.dir.path().join("dead-letter").read_dir().unwrap().any(|_| true));
    }
}

#[test]
fn open_connections_are_served_and_told_to_close_while_new_ones_are_refused() {
    let server = Server::start(&[("DRAIN_TIMEOUT", "2m")]);
    let mut clients: Vec<Client> = (0..3).map(|_| server.connect()).collect();
    let during = request(br#"{"data":["during"]}"#, "");
    let (begins, ends) = during.split_at(during.len() - 5);
    for client in &mut clients {
        let reply = client.post(r#"{"data":["before"]}"#);
        assert_eq!((reply.status, reply.header("connection")), (200, None));
        // So that it is not idle.
        client.send(begins);
    }
    let signalled = Instant::now();
    server.signal("TERM");
    let reasons = server.wait_ready(503);
    assert!(reasons.contains("stopping"), "{reasons}");
    wait_for("the listener to close", || {
        let refused = TcpStream::connect(server.ingest).map(drop);
        refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    for client in &mut clients {
        client.send(ends);
        let reply = client.reply();
        assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
        assert!(client.closed());
    }
    drop(clients);
    let stopped = server.wait_stopped();
    assert!(signalled.elapsed() < SOON, "the last connection's end is the drain's end");
    assert_eq!((stopped.status, stopped.accepted, stopped.stored), (0, 6, 6));
}

#[test]
fn connections_waiting_to_be_accepted_at_the_signal_are_answered() {
    let server = Server::start(&[("FAULTS", "core_stuck=1"), ("DRAIN_TIMEOUT", "1m")]);
    let mut first = server.connect();
    first.send(request(br#"{"data":["first"]}"#, ""));
    wait_for("the core to be stuck", || server.logged("this core is stuck"));
    let mut waiting: Vec<Client> = (0..20).map(|_| server.connect()).collect();
    for client in &mut waiting {
        client.send(request(br#"{"data":["waited"]}"#, ""));
    }
    server.signal("TERM");
    server.wait_ready(503);
    for client in waiting.iter_mut().chain([&mut first]) {
        assert_eq!(client.reply().status, 200);
    }
    drop((first, waiting));
    let stopped = server.wait_stopped();
    assert_eq!((stopped.status, stopped.accepted, stopped.stored), (0, 21, 21));
}

#[test]
fn a_stream_of_newcomers_does_not_keep_the_listener_open() {
    let server = Server::start(&[("DRAIN_TIMEOUT", "2m")]);
    let stop = Arc::new(AtomicBool::new(false));
    let hammers: Vec<_> = (0..3)
        .map(|_| {
            let (stop, address) = (stop.clone(), server.ingest);
            std::thread::spawn(move || {
                while !stop.load(Relaxed) {
                    // Refused once the listener is closed, which is what is waited for.
                    drop(TcpStream::connect(address));
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        })
        .collect();
    server.wait("newcomers", |m| m.sum("millrace_connections_accepted_total") > 50);
    let signalled = Instant::now();
    server.signal("TERM");
    let stopped = server.wait_stopped();
    assert!(signalled.elapsed() < SOON, "{:?}", signalled.elapsed());
    assert_eq!(stopped.status, 0);
    stop.store(true, Relaxed);
    hammers.into_iter().for_each(|hammer| hammer.join().unwrap());
}

#[test]
fn idle_connections_close_soon_and_after_half_the_time_late_requests_get_503() {
    let server = Server::start(&[("DRAIN_TIMEOUT", "12s"), ("HEADER_TIMEOUT", "1m")]);
    let mut idle = server.connect();
    assert_eq!(idle.post(r#"{"data":[1]}"#).status, 200);
    let mut late = server.connect();
    late.send("POST /payloads HTTP/1.1\r\nhost: x\r\n");
    let mut empty = server.connect();
    empty.send("POST /payloads HTTP/1.1\r\nhost: x\r\n");
    server.wait("all are open", |m| m.sum("millrace_connections") == 3);
    let signalled = Instant::now();
    server.signal("TERM");
    assert!(idle.closed(), "closed silently");
    let grace = signalled.elapsed();
    assert!(grace >= STOP_IDLE_GRACE && grace < Duration::from_millis(5_500), "{grace:?}");
    // Past half of DRAIN_TIMEOUT.
    std::thread::sleep(Duration::from_millis(6_600).saturating_sub(grace));
    // Nothing to admit is no reason to say yes: a client is to go elsewhere.
    for (client, rest) in [
        (&mut late, "content-length: 12\r\n\r\n{\"data\":[2]}"),
        (&mut empty, "content-length: 11\r\n\r\n{\"data\":[]}"),
    ] {
        client.send(rest);
        let reply = client.reply();
        assert_eq!((reply.status, reply.header("connection")), (503, Some("close")), "{rest}");
        assert!(reply.error().contains("stopping"), "{}", reply.error());
        assert!(client.closed());
    }
    drop((idle, late, empty));
    let stopped = server.wait_stopped();
    assert!(signalled.elapsed() < Duration::from_secs(12) + SOON, "{:?}", signalled.elapsed());
    assert_eq!((stopped.status, stopped.accepted, stopped.stored), (0, 1, 1));
}

#[test]
fn a_stalled_store_ends_in_dead_letters_in_time_and_a_replay_stores_each_once() {
    // Half of the puts reach the store without being confirmed, the other half never get there.
    let server = Server::start(&[
        ("FAULTS", "seed=8,late=0.5,hang=0.5"),
        ("PUT_TIMEOUT", "10m"),
        ("RETRY_BASE", "1ms"),
        ("MAX_WORKERS", "4"),
        ("DRAIN_TIMEOUT", "4s"),
    ]);
    let payloads = numbered(0..60);
    assert_eq!(server.post(collection(&payloads)).status, 200);
    wait_for("some unconfirmed objects", || !server.stored().is_empty());
    let mut replay = server.command_beside(&["dead-letter", "replay"], &[("FAULTS", "")]);
    let signalled = Instant::now();
    let stopped = server.stop();
    assert!(signalled.elapsed() < Duration::from_secs(4) + SOON, "{:?}", signalled.elapsed());
    assert_eq!((stopped.status, stopped.accepted, stopped.lost), (1, 60, 0));
    assert_eq!(stopped.stored + stopped.dead_lettered, 60);
    let letters = dead_letters(&stopped.dir.path().join("dead-letter"));
    assert_eq!(letters.len() as u64, stopped.dead_lettered);
    // The error of its last put, or that there was none.
    let says_why = |text: &str| text.starts_with("Injected: ") || text.starts_with("Stopped: ");
    assert!(letters.iter().all(|(meta, _)| says_why(meta["error"].as_str().unwrap())));
    let output = replay.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let stored = files(&stopped.dir.path().join("data"));
    assert_eq!(contents(&stored), sorted(&payloads), "each accepted payload exactly once");
    assert_eq!(dead_letters(&stopped.dir.path().join("dead-letter")), []);
}

#[test]
fn full_rings_and_a_dead_store_lose_nothing_and_a_replay_stores_each_once() {
    let cores = up_to_two_cores();
    let server = Server::start(&[
        ("CORES", cores),
        ("FAULTS", "store_wide=1"),
        // The last step has two seconds for the letters of all.
        ("MAX_QUEUE", "2000"),
        ("ENQUEUE_WAIT", "0s"),
        ("DRAIN_TIMEOUT", "4s"),
        ("LOG", "warn,millrace::control=info"),
    ]);
    let mut accepted = Vec::new();
    let mut next = 0;
    // The kernel spreads connections over the cores, so each request comes on one of its own.
    wait_for("every ring to be full", || {
        for _ in 0..10 {
            let payloads = numbered(next..next + 400);
            if server.post(collection(&payloads)).status == 200 {
                next += 400;
                accepted.extend(payloads);
            }
        }
        server.metrics().sum("millrace_queue_depth") > cores.split(',').count() as u64 * 1_600
    });
    let [mut ls, mut replay] = ["ls", "replay"]
        .map(|command| server.command_beside(&["dead-letter", command], &[("FAULTS", "")]));
    let stopped = server.stop();
    assert!(stopped.took < Duration::from_secs(4) + SOON, "{:?}", stopped.took);
    let figures = (stopped.status, stopped.accepted, stopped.dead_lettered, stopped.lost);
    let all = accepted.len() as u64;
    assert_eq!(figures, (1, all, all, 0));
    let listed = String::from_utf8(ls.output().unwrap().stdout).unwrap();
    assert!(listed.contains(&format!("{all} dead letters, ")), "{:?}", listed.lines().last());
    let output = replay.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("{all} of {all} dead letters")), "{text}");
    assert_eq!(output.status.code(), Some(0));
    let stored = files(&stopped.dir.path().join("data"));
    assert!(contents(&stored) == sorted(&accepted), "each accepted payload exactly once");
    assert_eq!(dead_letters(&stopped.dir.path().join("dead-letter")), []);
}

#[test]
fn a_second_signal_jumps_to_the_last_step() {
    let server = Server::start(&[
        ("FAULTS", "hang=1"),
        ("PUT_TIMEOUT", "10m"),
        ("MAX_WORKERS", "1"),
        ("MAX_QUEUE", "3"),
        ("ENQUEUE_WAIT", "1m"),
        ("DRAIN_TIMEOUT", "2m"),
    ]);
    for ids in [0..1, 1..4] {
        assert_eq!(server.post(collection(&numbered(ids))).status, 200);
        server.wait("the worker is busy", |m| m.sum("millrace_workers_busy") == 1);
    }
    let mut waiting = server.connect();
    waiting.send(request(br#"{"data":["waits"]}"#, ""));
    server.wait("a request waits for room", |m| m.sum("millrace_room_waiters") == 1);
    let signalled = Instant::now();
    server.signal("TERM");
    server.signal_again("INT");
    let reply = waiting.reply();
    assert_eq!((reply.status, reply.header("connection")), (503, Some("close")));
    let stopped = server.wait_stopped();
    assert!(signalled.elapsed() < SOON, "{:?}", signalled.elapsed());
    assert_eq!((stopped.status, stopped.accepted, stopped.dead_lettered), (1, 4, 4));
    let letters = dead_letters(&stopped.dir.path().join("dead-letter"));
    let mut dead: Vec<_> = letters.into_iter().map(|(_, payload)| payload).collect();
    dead.sort();
    let expected: Vec<_> = numbered(0..4).into_iter().map(String::into_bytes).collect();
    assert_eq!(dead, expected);
}

#[test]
fn requests_waiting_for_room_get_503_when_the_ring_closes() {
    // So short that no time is left between the ring's close and the last step.
    let server = Server::start(&[
        ("FAULTS", "hang=1"),
        ("PUT_TIMEOUT", "10m"),
        ("MAX_WORKERS", "1"),
        ("MAX_QUEUE", "1"),
        ("ENQUEUE_WAIT", "1m"),
        ("DRAIN_TIMEOUT", "2s"),
    ]);
    for id in 0..2 {
        assert_eq!(server.post(collection(&numbered([id]))).status, 200);
        server.wait("the worker is busy", |m| m.sum("millrace_workers_busy") == 1);
    }
    let mut waiting: Vec<Client> = (0..3).map(|_| server.connect()).collect();
    for client in &mut waiting {
        client.send(request(br#"{"data":["waits"]}"#, ""));
    }
    server.wait("requests wait for room", |m| m.sum("millrace_room_waiters") == 3);
    server.signal("TERM");
    for client in &mut waiting {
        let reply = client.reply();
        assert_eq!((reply.status, reply.header("connection")), (503, Some("close")));
    }
    let stopped = server.wait_stopped();
    assert_eq!((stopped.status, stopped.accepted, stopped.dead_lettered), (1, 2, 2));
}

#[test]
fn backoff_does_not_sleep_through_the_drain() {
    let server =
        Server::start(&[("RETRY_BASE", "10m"), ("RETRY_MAX", "10m"), ("DRAIN_TIMEOUT", "2m")]);
    server.break_store();
    assert_eq!(server.post(collection(&numbered(0..20))).status, 200);
    server.wait("all have failed", |m| m.sum("millrace_put_retries_total") >= 20);
    server.mend_store();
    let stopped = server.stop();
    assert!(stopped.took < SOON, "{:?}", stopped.took);
    assert_eq!((stopped.status, stopped.stored, stopped.dead_lettered), (0, 20, 0));
}

#[test]
fn a_killed_server_leaves_only_whole_objects() {
    let server = Server::start(&[("FAULTS", "delay=300ms"), ("MAX_WORKERS", "8")]);
    let payload = |id: usize| format!(r#""{id:04}{}""#, "x".repeat(100_000));
    let mut client = server.connect();
    for id in 0..20 {
        let body = collection(&(id * 5..id * 5 + 5).map(payload).collect::<Vec<_>>());
        assert_eq!(client.post(body).status, 200);
    }
    wait_for("some objects", || server.stored().len() > 10);
    server.signal("KILL");
    let stopped = server.wait_stopped();
    assert_eq!(stopped.status, -1);
    let stored = files(&stopped.dir.path().join("data"));
    assert!(stored.len() < 100, "killed too late to tell");
    for (key, bytes) in &stored {
        let id: usize = std::str::from_utf8(&bytes[1..5]).unwrap().parse().unwrap();
        assert!(bytes == payload(id).as_bytes(), "{key} is not whole");
    }
    // What it left half written is in nobody's way.
    let again = Server::start_in(stopped.dir, &[]);
    assert_eq!(again.post_payloads(&["1"]).status, 200);
    again.wait_idle();
    assert_eq!(again.stored().len(), stored.len() + 1);
}
