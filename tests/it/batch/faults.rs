//! Batches into a store that fails at random: goal, every accepted payload is one line of one
//! object or of one dead letter, and no refused one is.
//!
//! Method: that of `store::bulk`, over two cores, partitions and compressions, with several seeds,
//! each printed; `MILLRACE_TEST_SEED` repeats one of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde_json::Value;

use crate::store::bulk::{Sent, from_env, post_all};
use crate::support::batches::{Packing, in_bucket, s3_settings};
use crate::support::needs::up_to_two_cores;
use crate::support::s3::{Fault, S3Server};
use crate::support::{Server, dead_letters, files};

/// Of which the last is drawn.
fn seeds() -> Vec<u64> {
    match from_env("MILLRACE_TEST_SEED") {
        Some(seed) => vec![seed as u64],
        None => vec![1, 2, fastrand::u64(..1 << 31)],
    }
}

const WAYS: [(&str, &str); 3] =
    [("COMPRESSION", "zstd"), ("COMPRESSION", "none"), ("COMPRESSION", "gzip")];

#[test]
fn batches_with_faults_are_found_once_in_a_directory() {
    for (seed, way) in seeds().into_iter().zip(WAYS) {
        run(&[way], seed, 6_000, &Server::stored, &|| {});
    }
}

/// The S3 server fails on its own as well, in the ways only a remote one can.
#[test]
fn batches_with_faults_are_found_once_in_a_bucket() {
    for ((seed, way), client) in seeds().into_iter().zip(WAYS).zip(["direct", "direct", "sdk"]) {
        let s3 = S3Server::start();
        let requests = AtomicUsize::new(0);
        s3.fail_when(move |seen| match requests.fetch_add(1, Relaxed) % 40 {
            _ if seen.method != "PUT" => None,
            5 => Some(Fault::Close),
            10 => Some(Fault::ServeThenClose),
            15 => Some(Fault::error(503, "SlowDown")),
            20 => Some(Fault::CutAnswer),
            25 => Some(Fault::AnswerThenClose),
            35 => Some(Fault::error(403, "AccessDenied")),
            _ => None,
        });
        let url = s3.url();
        let settings =
            [&s3_settings(&url)[..], &[way, ("COMPRESSION_MARK", "header"), ("S3_CLIENT", client)]]
                .concat();
        run(&settings, seed, 4_000, &|_| in_bucket(&s3), &|| s3.heal());
    }
}

/// `payloads` through a server with `more` settings, whose store `read` reads and `heal` mends for
/// the replay.
fn run(
    more: &[(&str, &str)],
    seed: u64,
    payloads: usize,
    read: &dyn Fn(&Server) -> BTreeMap<String, Vec<u8>>,
    heal: &dyn Fn(),
) {
    println!("MILLRACE_TEST_SEED={seed} {payloads} payloads {more:?}");
    let faults = format!(
        "seed={seed},transient=0.1,late=0.1,object=0.03,store_wide=0.02,hang=0.01,panic=0.02"
    );
    let cores = up_to_two_cores();
    let base = [
        ("CORES", cores),
        ("FAULTS", faults.as_str()),
        ("MAX_QUEUE", "500"),
        ("KEY", "{field:/x|none}/{unix_nanos}-{node}-{core}-{seq}.{ext}"),
        ("BATCH_AGE", "50ms"),
        ("BATCH_COUNT", "60"),
        ("BATCH_BYTES", "64KiB"),
        ("PUT_TIMEOUT", "500ms"),
        ("RETRY_BASE", "5ms"),
        ("RETRY_MAX", "100ms"),
        ("DRAIN_TIMEOUT", "1m"),
        ("LOG", "warn,millrace::control=info"),
    ];
    let server = Server::start_batching(&[&base, more].concat());
    let sent = post_all(&server, payloads, seed);
    server.wait("all decided", |m| {
        let decided = ["stored", "dead_lettered"].map(|s| format!("millrace_payloads_{s}_total"));
        decided.iter().map(|name| m.sum(name)).sum::<u64>() == sent.accepted.len() as u64
    });
    server.wait_idle();
    let (metrics, objects, letters) = (server.metrics(), read(&server), server.dead_letters());
    let of_letters: u64 =
        letters.iter().map(|(meta, _)| meta["payloads"].as_u64().unwrap_or(1)).sum();
    println!(
        "{} payloads, {} of them in {} dead letters; {} objects, {} puts tried again, {} 503",
        sent.accepted.len(),
        of_letters,
        letters.len(),
        objects.len(),
        metrics.sum("millrace_put_retries_total"),
        sent.tried_again,
    );
    assert_eq!(metrics.sum("millrace_payloads_dead_lettered_total"), of_letters);
    assert_eq!(metrics.sum("millrace_payloads_lost_total"), 0);
    assert_eq!(metrics.sum("millrace_bytes_accepted_total"), {
        let decided = ["stored", "dead_lettered"].map(|s| format!("millrace_bytes_{s}_total"));
        decided.iter().map(|name| metrics.sum(name)).sum::<u64>()
    });
    let closed = metrics.sum("millrace_batches_closed_total");
    assert_eq!(metrics.sum("millrace_objects_stored_total") + letters.len() as u64, closed);
    assert!(!letters.is_empty() && metrics.sum("millrace_put_retries_total") > 0);
    compare(&sent, &objects, &letters);

    let dir = server.dir();
    heal();
    let replay = server.command_beside(&["dead-letter", "replay"], &[("FAULTS", "")]).output();
    let replayed = read(&server);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.lost), (0, 0), "{}", stopped.log_text());
    let replay = replay.unwrap();
    assert_eq!(replay.status.code(), Some(0), "{}", String::from_utf8_lossy(&replay.stderr));
    assert_eq!(dead_letters(&dir.path().join("dead-letter")), []);
    compare(&sent, &replayed, &[]);
    assert_eq!(replayed.len() as u64, closed, "an object for each batch");
    assert_eq!(files(&dir.path().join("data/.millrace-tmp")).len(), 0, "temporary files are left");
}

/// An object and a letter under one key are one batch, which the store took without confirming it.
fn compare(sent: &Sent, objects: &BTreeMap<String, Vec<u8>>, letters: &[(Value, Vec<u8>)]) {
    let mut found: BTreeMap<&str, &[u8]> =
        objects.iter().map(|(key, bytes)| (key.as_str(), &bytes[..])).collect();
    for (meta, bytes) in letters {
        if let Some(object) = found.insert(meta["key"].as_str().unwrap(), bytes) {
            assert!(object == bytes, "one key, two objects: {meta}");
        }
    }
    let mut once: HashMap<Vec<u8>, &str> = HashMap::new();
    for (key, bytes) in found {
        for line in Packing::of_bytes(bytes).lines(bytes) {
            let line = line.into_bytes();
            assert!(!sent.refused.contains(&line), "refused but found in {key}");
            assert!(sent.accepted.contains(&line), "never sent like this, in {key}");
            if let Some(other) = once.insert(line, key) {
                panic!("twice: in {other} and {key}");
            }
        }
    }
    let missing = sent.accepted.iter().filter(|payload| !once.contains_key(&payload[..]));
    assert_eq!(missing.count(), 0, "accepted but not found");
}
