//! What a 200 promises with batches: goal, every level is as honest as without them: `stored` is
//! answered when the batch is in the store, which `BATCH_AGE` bounds, `spooled` at the sync while
//! the batch goes on filling, and what only memory holds never shares an object with what the spool
//! holds.
//!
//! Method: requests of all levels with stores that work, refuse, hang or are away, and what is in
//! the store at that moment.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::batches::{all_lines, s3_settings};
use crate::support::s3::{Fault, S3Server};
use crate::support::{
    Client, PATIENCE, Reply, SPOOLED, Server, collection, files, numbered, request, sorted,
};

const STORED: &str = "millrace-ack: stored\r\n";
const QUEUED: &str = "millrace-ack: queued\r\n";

fn send(server: &Server, payloads: &[String], headers: &str) -> Client {
    let mut client = server.connect();
    client.send(request(collection(payloads).as_bytes(), headers));
    client
}

fn assert_ack(reply: &Reply, accepted: usize, ack: &str) {
    let expected = format!(r#"{{"accepted":{accepted},"ack":"{ack}"}}"#);
    assert_eq!((reply.status, &reply.body), (200, &expected));
}

fn assert_unkept(reply: &Reply, status: u16, [accepted, stored, dead]: [u64; 3]) {
    assert_eq!(reply.status, status, "{reply:?}");
    let expected = json!({
        "error": reply.error(), "accepted": accepted, "stored": stored, "dead_lettered": dead
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&reply.body).unwrap(), expected);
}

#[test]
fn stored_waits_for_its_batch_and_no_longer_than_the_batch_is_open() {
    let server = Server::start_batching(&[("BATCH_AGE", "3s")]);
    assert_ack(&server.post(collection(&numbered(0..3))), 3, "queued");
    let started = Instant::now();
    let mut waiting: Vec<Client> =
        (1..5).map(|n| send(&server, &numbered(10 * n..11 * n), STORED)).collect();
    server.wait("they wait", |m| m.sum("millrace_ack_waiters") == 4);
    assert_eq!(server.stored().len(), 0);
    for (n, client) in waiting.iter_mut().enumerate() {
        assert_ack(&client.reply(), n + 1, "stored");
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(took > Duration::from_secs(2), "{took:?}");
    drop(waiting);
    // All of it was one batch, and it is there.
    let expected: Vec<String> =
        (1..5).flat_map(|n| numbered(10 * n..11 * n)).chain(numbered(0..3)).collect();
    let batches = server.batches();
    assert_eq!((batches.len(), all_lines(&batches)), (1, sorted(&expected)));
    server.wait_idle();
}

#[test]
fn a_request_over_several_batches_waits_for_the_last_of_them() {
    let server = Server::start_batching(&[
        ("BATCH_AGE", "500ms"),
        ("BATCH_COUNT", "10"),
        ("KEY", "{field:/id|none}/{unix_nanos}-{node}-{core}-{seq}"),
        ("MAX_PARTITIONS", "3"),
        ("ACK", "stored"),
    ]);
    let payloads = [numbered(0..8), numbered(vec![9; 34])].concat();
    let started = Instant::now();
    assert_ack(&server.post(collection(&payloads)), 42, "stored");
    assert!(started.elapsed() > Duration::from_millis(450), "{:?}", started.elapsed());
    let stored = server.stored();
    let lines: Vec<String> = stored
        .values()
        .flat_map(|bytes| {
            String::from_utf8(bytes.clone()).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(sorted(&lines), sorted(&payloads), "there when the answer comes");
    let reasons: Vec<_> = server.metrics().closed_by_reason();
    assert_eq!(reasons, [("age", 3), ("count", 3), ("partitions", 6)]);
}

#[test]
fn a_refused_batch_is_a_502_with_the_counts_of_each_request() {
    let s3 = S3Server::start();
    let url = s3.url();
    let settings = [("BATCH_COUNT", "10"), ("BATCH_AGE", "2s"), ("ACK", "stored")];
    let server = Server::start_batching(&[&s3_settings(&url)[..], &settings].concat());
    // The second of two batches; who has payloads in both is told of both.
    let puts = std::sync::atomic::AtomicUsize::new(0);
    s3.fail_when(move |seen| {
        let is_put = seen.method == "PUT" && seen.path.contains(".ndjson");
        let at = is_put.then(|| puts.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        (at == Some(1)).then(|| Fault::error(400, "EntityTooLarge"))
    });
    let mut first = send(&server, &numbered(0..6), "");
    server.wait("the first waits", |m| m.sum("millrace_ack_waiters") == 1);
    let mut second = send(&server, &numbered(6..13), "");
    assert_ack(&first.reply(), 6, "stored");
    let reply = second.reply();
    assert_unkept(&reply, 502, [7, 4, 3]);
    assert!(reply.error().contains("3 dead-lettered, 0 lost"), "{}", reply.error());
    drop((first, second));
    server.wait_idle();
    let letters = server.dead_letters();
    assert_eq!((letters.len(), &letters[0].0["payloads"]), (1, &json!(3)));
    let text = String::from_utf8(letters[0].1.clone()).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), numbered(10..13));
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_payloads_stored_total"), 10);
    assert_eq!(metrics.sum("millrace_payloads_dead_lettered_total"), 3);
    assert_eq!(metrics.sum("millrace_objects_stored_total"), 1);
    let bytes: usize = numbered(10..13).iter().map(String::len).sum();
    assert_eq!(metrics.sum("millrace_bytes_dead_lettered_total"), bytes as u64);
    assert_eq!(server.stop().status, 0);
}

#[test]
fn a_batch_the_store_does_not_decide_on_is_a_504_and_goes_its_way() {
    let server = Server::start_batching(&[
        ("BATCH_AGE", "100ms"),
        ("PUT_TIMEOUT", "300ms"),
        ("ACK_TIMEOUT", "700ms"),
        ("ACK", "stored"),
        ("RETRY_BASE", "10ms"),
        ("RETRY_MAX", "50ms"),
    ]);
    server.break_store();
    let started = Instant::now();
    let reply = server.post(collection(&numbered(0..5)));
    assert_unkept(&reply, 504, [5, 0, 0]);
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert!(reply.error().contains("leaves open"), "{}", reply.error());
    server.mend_store();
    server.wait_idle();
    assert_eq!(all_lines(&server.batches()), numbered(0..5));
}

#[test]
fn spooled_is_answered_at_once_while_the_batch_is_open() {
    let server = Server::start_batching(&[("SPOOL_DIR", "spool"), ("BATCH_AGE", "10m")]);
    let started = Instant::now();
    let mut client = server.connect();
    for id in 0..20 {
        assert_ack(&client.spool(&numbered(10 * id..10 * id + 10)), 10, "spooled");
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    drop(client);
    server.wait("all taken in", |m| m.sum("millrace_queue_depth") == 0);
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_batches_open"), 1);
    assert_eq!(metrics.sum("millrace_spool_payloads"), 200);
    assert_eq!(metrics.sum("millrace_queue_bytes"), 0, "bodies are given back");
    assert_eq!(server.stored().len(), 0);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored), (0, 200), "{}", stopped.log_text());
    let batches = stopped.batches();
    assert_eq!((batches.len(), all_lines(&batches)), (1, sorted(&numbered(0..200))));
    let left = files(&stopped.dir.path().join("spool"));
    assert_eq!(left.into_keys().collect::<Vec<_>>(), [".lock"]);
}

/// Whether the spool has it, as its text says.
fn is_spooled(line: &str) -> bool {
    line.starts_with(r#"{"ack":"spooled""#)
}

#[test]
fn levels_in_one_run_never_share_an_object_with_the_spools() {
    for compression in ["none", "zstd"] {
        let server = Server::start_batching(&[
            ("SPOOL_DIR", "spool"),
            ("BATCH_AGE", "100ms"),
            ("COMPRESSION", compression),
            ("MAX_PARTITIONS", "4"),
            ("KEY", "{field:/part}/{unix_nanos}-{node}-{core}-{seq}.{ext}"),
        ]);
        let until = Instant::now() + Duration::from_millis(700);
        let levels = [("queued", QUEUED), ("spooled", SPOOLED), ("stored", STORED)];
        let mut posted: Vec<String> = std::thread::scope(|scope| {
            let clients: Vec<_> = levels
                .map(|(ack, header)| {
                    let server = &server;
                    scope.spawn(move || post_until(server, ack, header, until))
                })
                .into_iter()
                .collect();
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        posted.sort();
        server.wait_idle();
        let batches = server.batches();
        assert!(all_lines(&batches) == posted, "each payload once");
        let mut kinds = BTreeSet::new();
        for (key, lines) in &batches {
            let spooled = lines.iter().filter(|line| is_spooled(line)).count();
            assert!(spooled == 0 || spooled == lines.len(), "{key}: {spooled} of {}", lines.len());
            kinds.insert(spooled == 0);
            // Those that are in memory only may be together.
            if spooled == 0 && lines.iter().any(|line| line.contains("queued")) {
                kinds.insert(lines.iter().any(|line| line.contains("stored")));
            }
        }
        assert_eq!(kinds.len(), 2, "both kinds were there");
        assert_eq!(server.stop().status, 0);
    }
}

/// Posts small collections of one level to two partitions.
fn post_until(server: &Server, ack: &str, header: &str, until: Instant) -> Vec<String> {
    let (mut client, mut posted) = (server.connect(), Vec::new());
    while Instant::now() < until {
        let some: Vec<String> = (posted.len()..posted.len() + 5)
            .map(|id| format!(r#"{{"ack":"{ack}","id":{id},"part":{}}}"#, id % 2))
            .collect();
        client.send(request(collection(&some).as_bytes(), header));
        assert_ack(&client.reply(), 5, ack);
        posted.extend(some);
        assert!(Instant::now() < until + PATIENCE);
        std::thread::sleep(Duration::from_millis(2));
    }
    posted
}

#[test]
fn a_stored_request_at_the_stop_is_answered_by_what_the_flush_brings() {
    // No time is left between the end of service and that of uploads.
    let server =
        Server::start_batching(&[("BATCH_AGE", "10m"), ("ACK", "stored"), ("DRAIN_TIMEOUT", "8s")]);
    let mut client = send(&server, &numbered(0..5), "");
    server.wait("it waits", |m| {
        m.sum("millrace_ack_waiters") == 1 && m.sum("millrace_batches_open") == 1
    });
    server.signal("TERM");
    let reply = client.reply();
    assert_ack(&reply, 5, "stored");
    assert_eq!(reply.header("connection"), Some("close"));
    drop(client);
    let stopped = server.wait_stopped();
    assert!(stopped.took < Duration::from_millis(7_500), "{:?}", stopped.took);
    assert_eq!((stopped.status, stopped.stored), (0, 5), "{}", stopped.log_text());
}

const BY_PART: (&str, &str) = ("KEY", "{field:/part}/{unix_nanos}-{node}-{core}-{seq}.ndjson");

fn part(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|id| format!(r#"{{"part":"{name}","id":{id}}}"#)).collect()
}

#[test]
fn a_stored_request_closes_its_batch_in_time_however_long_others_may_stay_open() {
    for (ack, headers) in [("queued", STORED), ("stored", "")] {
        let server = Server::start_batching(&[
            BY_PART,
            ("BATCH_AGE", "60s"),
            ("ACK_TIMEOUT", "4s"),
            ("ACK", ack),
        ]);
        let mut others = send(&server, &[part("a", 2), part("b", 1)].concat(), QUEUED);
        assert_ack(&others.reply(), 3, "queued");
        let started = Instant::now();
        let mut first = send(&server, &part("a", 3), headers);
        server.wait("it waits", |m| m.sum("millrace_ack_waiters") == 1);
        let mut second = send(&server, &part("a", 4), headers);
        assert_ack(&first.reply(), 3, "stored");
        // Half of ACK_TIMEOUT after the first, and in the same batch.
        let took = started.elapsed();
        assert!((1_800..3_600).contains(&took.as_millis()), "{took:?}");
        assert_ack(&second.reply(), 4, "stored");
        let metrics = server.metrics();
        assert_eq!(metrics.closed_by_reason(), [("stored", 1)]);
        assert_eq!(metrics.sum("millrace_batches_open"), 1, "nobody waits for b");
        // Every batch of a request is closed for it, and only those.
        let mut third = send(&server, &[part("a", 1), part("c", 1)].concat(), headers);
        assert_ack(&third.reply(), 2, "stored");
        let metrics = server.metrics();
        assert_eq!(metrics.closed_by_reason(), [("stored", 3)]);
        assert_eq!(metrics.sum("millrace_batches_open"), 1);
        drop((others, first, second, third));
        let stopped = server.stop();
        assert_eq!((stopped.status, stopped.batches().len()), (0, 4));
    }
}

/// With the first request the server does not know how slow the store is.
#[test]
fn a_batch_is_closed_so_early_that_a_slow_put_still_fits() {
    let server = Server::start_batching(&[
        ("BATCH_AGE", "60s"),
        ("ACK", "stored"),
        ("ACK_TIMEOUT", "4s"),
        ("FAULTS", "delay=2700ms"),
    ]);
    let reply = server.post(collection(&numbered(0..3)));
    assert_unkept(&reply, 504, [3, 0, 0]);
    server.wait("it is stored nevertheless", |m| m.sum("millrace_payloads_stored_total") == 3);
    for _ in 0..2 {
        assert_ack(&server.post(collection(&numbered(3..5))), 2, "stored");
    }
    assert_eq!(server.metrics().closed_by_reason(), [("stored", 3)]);
    server.wait_idle();
}
