//! The memory of batches: goal, it is bounded by `BATCH_MEMORY` whatever the number of partitions;
//! payloads wait in batches and not in the ring, and when memory is used up the ring fills, clients
//! get 503, and nothing is lost.
//!
//! Method: 10,000 partitions through 256 places, with the peak of the resident memory held against
//! that of one partition; 10,000 payloads through a ring of 100; stores that hang or fail until
//! everything is full, and come back.

use std::time::Duration;

use crate::support::batches::{all_lines, batches, in_bucket, s3_settings};
use crate::support::s3::{Fault, S3Server};
use crate::support::{Server, collection, numbered, sorted, wait_for};

/// Tenants of the runs with many partitions.
const TENANTS: usize = 10_000;

const BY_TENANT: (&str, &str) = ("KEY", "{field:/tenant}/{unix_nanos}-{node}-{core}-{seq}.{ext}");

/// Peak of the resident memory in bytes.
fn peak(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// Posts `payloads` in requests of `each`, again as long as there is no room.
fn post_all(server: &Server, payloads: &[String], each: usize) -> u64 {
    let (mut client, mut refused) = (server.connect(), 0);
    for some in payloads.chunks(each) {
        let body = collection(some);
        loop {
            let reply = client.post(&body);
            match reply.status {
                200 => break,
                503 => {
                    assert!(reply.header("retry-after").is_some(), "{reply:?}");
                    refused += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => panic!("{other}: {}", reply.body),
            }
        }
    }
    refused
}

/// `count` payloads of `bytes`, spread over the tenants with a stride, so that every one opens a
/// batch anew.
fn by_tenant(count: usize, bytes: usize, tenants: usize) -> Vec<String> {
    let payload = |id: usize| {
        let tenant = id * 7_919 % tenants;
        format!(r#"{{"id":{id},"tenant":"t{tenant}","text":"{}"}}"#, "x".repeat(bytes))
    };
    (0..count).map(payload).collect()
}

/// Nothing but partitions and memory closes batches, the ring adds little, and a slow store has
/// time enough.
const MANY: [(&str, &str); 6] = [
    ("MAX_QUEUE_BYTES", "2MiB"),
    BY_TENANT,
    ("BATCH_AGE", "10m"),
    ("BATCH_BYTES", "1MiB"),
    ("BATCH_MEMORY", "7MiB"),
    ("DRAIN_TIMEOUT", "1m"),
];

/// Peak memory of a server that took `payloads` and stored each once, and why it closed its
/// batches.
fn run_partitions(payloads: &[String]) -> (u64, Vec<(&'static str, u64)>, usize) {
    let server = Server::start_batching(&MANY);
    post_all(&server, payloads, 20);
    server.wait("all taken in", |m| m.sum("millrace_queue_depth") == 0);
    let (metrics, peak) = (server.metrics(), peak(&server));
    assert!(metrics.sum("millrace_batches_open") <= 256);
    let reasons = metrics.closed_by_reason();
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored), (0, payloads.len() as u64));
    let objects = stopped.batches();
    assert!(all_lines(&objects) == sorted(payloads), "each payload once");
    for (key, lines) in &objects {
        let tenant = format!(r#""tenant":"{}""#, key.split('/').next().unwrap());
        assert!(lines.iter().all(|line| line.contains(&tenant)), "{key}");
    }
    (peak, reasons, objects.len())
}

/// Open batches of 1 kB take 256 × (4 KiB fixed, a chunk of 4 KiB) = 2 MiB, and with those that
/// wait for a store which syncs a new folder for each, BATCH_MEMORY at most: 7 MiB, and 5 for
/// partitions' texts, the list of open ones and the allocator.
#[test]
fn ten_thousand_partitions_take_the_memory_of_those_that_may_be_open() {
    let (one, _, _) = run_partitions(&by_tenant(TENANTS, 1_000, 1));
    let (many, reasons, objects) = run_partitions(&by_tenant(TENANTS, 1_000, TENANTS));
    println!("peak memory: {} KiB with 1 partition, {} KiB with {TENANTS}", one >> 10, many >> 10);
    assert_eq!(reasons, [("partitions", (TENANTS - 256) as u64)]);
    assert_eq!(objects, TENANTS);
    assert!(many <= one + (12 << 20), "{many} bytes instead of {one}");
}

/// 256 batches of two payloads of 24 kB would be 12 MiB and more: of 7 MiB, half may be open.
#[test]
fn partitions_that_do_not_fit_memory_are_closed_for_that() {
    let payloads = by_tenant(4_000, 24_000, 2_000);
    let (one, _, _) = run_partitions(&by_tenant(4_000, 24_000, 1));
    let (many, reasons, _) = run_partitions(&payloads);
    println!("peak memory: {} KiB with 1 partition, {} KiB with 2000", one >> 10, many >> 10);
    let (reason, closed) = reasons[0];
    assert!(reason == "memory" && closed > 1_000, "{reasons:?}");
    // BATCH_MEMORY of 7 MiB, MAX_QUEUE_BYTES of 2 MiB, and what the allocator keeps of chunks that
    // grew from 4 to 64 KiB, more on a busy machine: of all payloads, 96 MiB, a part.
    assert!(many <= one + (32 << 20), "{many} bytes instead of {one}");
}

#[test]
fn a_ring_of_100_takes_10000_payloads_while_a_batch_fills() {
    let server = Server::start_batching(&[
        ("MAX_QUEUE", "100"),
        ("BATCH_AGE", "10m"),
        ("ENQUEUE_WAIT", "20s"),
    ]);
    let payloads = numbered(0..10_000);
    assert_eq!(post_all(&server, &payloads, 40), 0, "no 503");
    server.wait("all taken in", |m| m.sum("millrace_queue_depth") == 0);
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_payloads_accepted_total"), 10_000);
    assert_eq!(metrics.sum("millrace_batches_open"), 1);
    assert_eq!(metrics.sum("millrace_batches_closed_total"), 0);
    assert_eq!(metrics.sum("millrace_queue_bytes"), 0, "bodies are given back");
    let held = metrics.sum("millrace_batch_bytes");
    let bytes: usize = payloads.iter().map(|payload| payload.len() + 1).sum();
    assert!((bytes as u64..2 * bytes as u64 + (1 << 20)).contains(&held), "{held} for {bytes}");
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored), (0, 10_000));
    let objects = stopped.batches();
    assert_eq!((objects.len(), all_lines(&objects)), (1, sorted(&payloads)));
}

/// Fills a server whose store takes nothing: until three requests in a row get 503.
fn fill(server: &Server, payloads: &[String]) -> usize {
    let (mut accepted, mut refused) = (0, 0);
    let mut client = server.connect();
    while refused < 3 {
        let some = payloads.get(accepted..accepted + 20).expect("memory is full before");
        let reply = client.post(collection(some));
        match reply.status {
            200 => (accepted, refused) = (accepted + 20, 0),
            503 => {
                let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
                assert!((1..=60).contains(&seconds), "{seconds}");
                assert!(reply.error().contains("queue"), "{}", reply.error());
                refused += 1;
                // What is in the ring may still find room.
                std::thread::sleep(Duration::from_millis(100));
            }
            other => panic!("{other}: {}", reply.body),
        }
    }
    accepted
}

const FULL: [(&str, &str); 7] = [
    ("BATCH_MEMORY", "7MiB"),
    ("BATCH_BYTES", "1MiB"),
    ("BATCH_AGE", "200ms"),
    ("MAX_QUEUE", "100"),
    ("RETRY_BASE", "10ms"),
    ("RETRY_MAX", "50ms"),
    ("PUT_TIMEOUT", "1s"),
];

/// What must hold of a full server, and that it is itself again.
fn full_and_back(server: &Server, payloads: &[String], accepted: usize, back: impl Fn()) {
    let metrics = server.metrics();
    // 7 MiB, one payload and one chunk; half of it or more is used, and the ring holds the rest.
    let held = metrics.sum("millrace_batch_bytes");
    assert!((4 << 20..(7 << 20) + (512 << 10)).contains(&held), "{held}\n{}", metrics.0);
    assert!(metrics.sum("millrace_queue_depth") > 80, "{}", metrics.0);
    assert_eq!(metrics.sum("millrace_payloads_accepted_total"), accepted as u64);
    assert_eq!(metrics.sum("millrace_payloads_stored_total"), 0);
    assert_eq!(server.admin("/healthz").status, 200);
    back();
    wait_for("room", || server.post(collection(&payloads[accepted..accepted + 20])).status == 200);
    server.wait("all stored", |m| {
        m.sum("millrace_payloads_stored_total") == m.sum("millrace_payloads_accepted_total")
    });
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_payloads_accepted_total"), accepted as u64 + 20);
}

fn kilobytes() -> Vec<String> {
    (0..10_000).map(|id| format!(r#"{{"id":{id},"text":"{}"}}"#, "x".repeat(1_000))).collect()
}

#[test]
fn a_store_that_fails_fills_memory_then_the_ring_and_nothing_is_lost() {
    let server = Server::start_batching(&FULL);
    server.break_store();
    let payloads = kilobytes();
    let accepted = fill(&server, &payloads);
    full_and_back(&server, &payloads, accepted, || server.mend_store());
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.lost, stopped.dead_lettered), (0, 0, 0));
    assert!(all_lines(&stopped.batches()) == sorted(&payloads[..accepted + 20]));
}

#[test]
fn a_store_that_hangs_fills_memory_then_the_ring_and_nothing_is_lost() {
    let s3 = S3Server::start();
    let url = s3.url();
    let server = Server::start_batching(&[&s3_settings(&url)[..], &FULL].concat());
    s3.fail_when(|seen| (seen.method == "PUT").then_some(Fault::Hang));
    let payloads = kilobytes();
    let accepted = fill(&server, &payloads);
    full_and_back(&server, &payloads, accepted, || s3.heal());
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.lost, stopped.dead_lettered), (0, 0, 0));
    assert!(all_lines(&batches(&in_bucket(&s3))) == sorted(&payloads[..accepted + 20]));
}
