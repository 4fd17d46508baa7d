//! Stopping with batches: goal, a signal flushes what is open; what the store does not take by then
//! is one dead letter a batch, under its key and with its coding, or stays in the spool, from where
//! the next start stores each payload once.
//!
//! Method: signals at servers with open, closed and travelling batches, before stores that work,
//! hang or are gone; then exit status, figures, dead letters and objects are held against what was
//! accepted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::batches::{Packing, all_lines, batches, in_bucket, s3_settings};
use crate::support::needs::up_to_two_cores;
use crate::support::s3::{Fault, S3Server};
use crate::support::{
    Server, collection, dead_letters, files, mend_store, numbered, request, sorted, wait_for,
};

const SOON: Duration = Duration::from_secs(20);

/// Five partitions, closed by nothing but the stop.
const OPEN: [(&str, &str); 3] = [
    ("BATCH_AGE", "10m"),
    ("KEY", "{field:/part}/{unix_nanos}-{node}-{core}-{seq}-{count}.{ext}"),
    ("DRAIN_TIMEOUT", "4s"),
];

fn parted(count: usize) -> Vec<String> {
    (0..count).map(|id| format!(r#"{{"id":{id},"part":{}}}"#, id % 5)).collect()
}

#[test]
fn both_signals_flush_open_batches() {
    for (signal, compression) in [("TERM", "none"), ("INT", "zstd"), ("TERM", "gzip")] {
        let cores = up_to_two_cores();
        let more = [
            ("COMPRESSION", compression),
            ("CORES", cores),
            ("FAULTS", "delay=50ms"),
            ("DRAIN_TIMEOUT", "1m"),
        ];
        let server = Server::start_batching(&[&OPEN[..], &more].concat());
        let payloads = parted(1_000);
        for some in payloads.chunks(100) {
            assert_eq!(server.post(collection(some)).status, 200);
        }
        server.signal(signal);
        let stopped = server.wait_stopped();
        let figures = (stopped.status, stopped.accepted, stopped.stored, stopped.dead_lettered);
        assert_eq!(figures, (0, 1_000, 1_000, 0), "SIG{signal}\n{}", stopped.log_text());
        let objects = stopped.batches();
        assert!(all_lines(&objects) == sorted(&payloads));
        assert!((5..=10).contains(&objects.len()), "a batch for each partition and core");
        for (key, lines) in &objects {
            let count = key.split('.').next().unwrap().rsplit('-').next().unwrap();
            assert_eq!(count.parse(), Ok(lines.len()), "{key}");
        }
        assert_eq!(files(&stopped.dir.path().join("dead-letter")).len(), 0);
    }
}

#[test]
fn a_dead_store_leaves_a_letter_for_each_batch_and_a_replay_puts_the_objects() {
    for (compression, mark) in [("none", "suffix"), ("gzip", "header"), ("zstd", "suffix")] {
        let s3 = S3Server::start();
        let url = s3.url();
        let more = [("COMPRESSION", compression), ("COMPRESSION_MARK", mark)];
        let server = Server::start_batching(&[&s3_settings(&url)[..], &OPEN, &more].concat());
        s3.fail_when(|seen| (seen.method == "PUT").then(|| Fault::error(403, "AccessDenied")));
        let payloads = parted(500);
        for some in payloads.chunks(100) {
            assert_eq!(server.post(collection(some)).status, 200);
        }
        let [mut ls, mut replay] = ["ls", "replay"]
            .map(|command| server.command_beside(&["dead-letter", command], &[("FAULTS", "")]));
        let stopped = server.stop();
        assert!(stopped.took < Duration::from_secs(4) + SOON, "{:?}", stopped.took);
        let figures = (stopped.status, stopped.accepted, stopped.dead_lettered, stopped.lost);
        assert_eq!(figures, (1, 500, 500, 0), "{}", stopped.log_text());
        let letters = dead_letters(&stopped.dir.path().join("dead-letter"));
        assert_eq!(letters.len(), 5, "one for each partition");
        let packing = match compression {
            "gzip" => Packing::Gzip,
            "zstd" => Packing::Zstd,
            _ => Packing::Plain,
        };
        let mut expected = BTreeMap::new();
        for (meta, bytes) in letters {
            assert_eq!((&meta["payloads"], &meta["bytes"]), (&100.into(), &bytes.len().into()));
            let coding = (mark == "header").then_some(compression);
            assert_eq!(meta["content_encoding"].as_str(), coding, "{meta}");
            // Its own, or the store's: the last ones may not have been tried.
            assert!(meta["error"].as_str().unwrap().contains("AccessDenied"), "{meta}");
            assert_eq!(packing.lines(&bytes).len(), 100);
            expected.insert(meta["key"].as_str().unwrap().to_owned(), bytes);
        }
        let listed = String::from_utf8(ls.output().unwrap().stdout).unwrap();
        assert!(listed.contains("5 dead letters"), "{listed}");
        for key in expected.keys() {
            assert!(listed.contains(key), "{key} in {listed}");
        }

        s3.heal();
        let before = s3.requests().len();
        let output = replay.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(in_bucket(&s3) == expected, "the objects, under their keys");
        let puts = s3.requests().into_iter().skip(before).filter(|seen| seen.method == "PUT");
        let codings: Vec<Option<String>> = puts
            .filter(|seen| seen.path.contains(".ndjson"))
            .map(|seen| seen.header("content-encoding").map(str::to_owned))
            .collect();
        let coding = (mark == "header").then(|| compression.to_owned());
        assert_eq!(codings, vec![coding; 5]);
        let lines = expected.values().flat_map(|bytes| packing.lines(bytes)).collect::<Vec<_>>();
        assert!(sorted(&lines) == sorted(&payloads), "each payload once");
        assert_eq!(dead_letters(&stopped.dir.path().join("dead-letter")), []);
    }
}

#[test]
fn full_memory_and_a_dead_store_at_the_stop_lose_nothing() {
    let server = Server::start_batching(&[
        ("FAULTS", "store_wide=1"),
        ("BATCH_MEMORY", "7MiB"),
        ("BATCH_BYTES", "1MiB"),
        ("BATCH_AGE", "200ms"),
        ("MAX_QUEUE", "200"),
        ("ENQUEUE_WAIT", "0s"),
        ("MAX_WORKERS", "2"),
        ("DRAIN_TIMEOUT", "4s"),
    ]);
    let text = "x".repeat(1_000);
    let mut accepted: Vec<String> = Vec::new();
    wait_for("ring and memory to be full", || {
        for _ in 0..50 {
            let some: Vec<String> = (accepted.len()..accepted.len() + 20)
                .map(|id| format!(r#"{{"id":{id},"text":"{text}"}}"#))
                .collect();
            if server.post(collection(&some)).status == 200 {
                accepted.extend(some);
            }
        }
        server.metrics().sum("millrace_queue_depth") > 150
    });
    let mut replay = server.command_beside(&["dead-letter", "replay"], &[("FAULTS", "")]);
    let stopped = server.stop();
    let all = accepted.len() as u64;
    let figures = (stopped.status, stopped.accepted, stopped.dead_lettered, stopped.lost);
    assert_eq!(figures, (1, all, all, 0));
    // Batches as such, and what was in the ring payload by payload, or batched as well.
    let letters = dead_letters(&stopped.dir.path().join("dead-letter"));
    let counts = letters.iter().map(|(meta, _)| meta["payloads"].as_u64().unwrap_or(1));
    assert_eq!(counts.sum::<u64>(), all);
    assert_eq!(replay.output().unwrap().status.code(), Some(0));
    let (batched, alone): (BTreeMap<_, _>, _) =
        stopped.stored().into_iter().partition(|(key, _)| key.ends_with(".ndjson"));
    assert!(!batched.is_empty());
    let mut lines = all_lines(&batches(&batched));
    lines.extend(alone.into_values().map(|bytes| String::from_utf8(bytes).unwrap()));
    assert!(sorted(&lines) == sorted(&accepted), "each payload once");
}

#[test]
fn a_dead_store_leaves_batches_in_the_spool_for_the_next_start() {
    let server = Server::start_batching(
        &[&OPEN[..], &[("SPOOL_DIR", "spool"), ("COMPRESSION", "zstd"), ("NODE_ID", "node")]]
            .concat(),
    );
    server.break_store();
    let (spooled, queued) = (parted(500), parted(503).split_off(500));
    for some in spooled.chunks(50) {
        assert_eq!(server.spool(some).status, 200);
    }
    // What was in memory only is handed to the spool as well.
    assert_eq!(server.post(collection(&queued)).status, 200);
    let signalled = Instant::now();
    let stopped = server.stop();
    assert!(signalled.elapsed() < Duration::from_secs(4) + SOON, "{:?}", signalled.elapsed());
    let figures = (stopped.status, stopped.accepted, stopped.dead_lettered, stopped.lost);
    assert_eq!(figures, (0, 503, 0, 0), "{}", stopped.log_text());
    assert_eq!(dead_letters(&stopped.dir.path().join("dead-letter")), []);
    mend_store(stopped.dir.path());
    assert_eq!(stopped.stored(), BTreeMap::new());
    let next = Server::start_batching_in(
        stopped.dir,
        &[("SPOOL_DIR", "spool"), ("BATCH_AGE", "100ms"), ("NODE_ID", "node")],
    );
    next.wait_spool_empty();
    assert_eq!(next.metrics().sum("millrace_payloads_taken_over_total"), 503);
    let ended = next.stop();
    assert_eq!((ended.status, ended.lost, ended.dead_lettered), (0, 0, 0), "{}", ended.log_text());
    assert!(all_lines(&ended.batches()) == sorted(&[spooled, queued].concat()), "each once");
    let left = files(&ended.dir.path().join("spool"));
    assert_eq!(left.into_keys().collect::<Vec<_>>(), [".lock"]);
}

#[test]
fn a_second_signal_jumps_to_the_last_step() {
    let server = Server::start_batching(&[
        ("FAULTS", "hang=1"),
        ("PUT_TIMEOUT", "10m"),
        ("ACK_TIMEOUT", "20m"),
        ("BATCH_AGE", "1m"),
        ("BATCH_COUNT", "10"),
        ("MAX_WORKERS", "1"),
        ("DRAIN_TIMEOUT", "2m"),
    ]);
    // One batch travels, one is in line, one is open.
    for ids in [0..10, 10..20, 20..25] {
        assert_eq!(server.post(collection(&numbered(ids))).status, 200);
    }
    server.wait("a batch travels", |m| m.sum("millrace_workers_busy") == 1);
    server.wait("one is open", |m| m.sum("millrace_batches_open") == 1);
    let signalled = Instant::now();
    server.signal("TERM");
    server.signal_again("TERM");
    let stopped = server.wait_stopped();
    assert!(signalled.elapsed() < SOON, "{:?}", signalled.elapsed());
    assert_eq!((stopped.status, stopped.accepted, stopped.dead_lettered), (1, 25, 25));
    let mut dead: Vec<Vec<String>> = dead_letters(&stopped.dir.path().join("dead-letter"))
        .into_iter()
        .map(|(_, bytes)| Packing::Plain.lines(&bytes))
        .collect();
    dead.sort_by_key(|lines| lines[0].clone());
    assert_eq!(dead, [numbered(0..10), numbered(10..20), numbered(20..25)]);
}

#[test]
fn a_connection_that_stays_does_not_keep_a_batch_open_until_nothing_can_travel() {
    let server = Server::start_batching(&[&OPEN[..], &[("DRAIN_TIMEOUT", "1m")]].concat());
    let mut stays = server.connect();
    assert_eq!(stays.post(collection(&parted(20))).status, 200);
    // An idle one would not stay for long.
    let last = request(collection(&numbered([99])).as_bytes(), "");
    let (begins, ends) = last.split_at(last.len() - 5);
    stays.send(begins);
    server.signal("TERM");
    wait_for("the flush", || server.stored().len() == 5);
    // What still comes is taken in, and flushed as soon.
    stays.send(ends);
    let reply = stays.reply();
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    drop(stays);
    let stopped = server.wait_stopped();
    let figures = (stopped.status, stopped.accepted, stopped.stored, stopped.dead_lettered);
    assert_eq!(figures, (0, 21, 21, 0), "{}", stopped.log_text());
    assert_eq!(all_lines(&stopped.batches()).len(), 21);
}
