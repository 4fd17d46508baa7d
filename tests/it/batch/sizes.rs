//! The size of objects: goal, `BATCH_BYTES` is what a reader finds in the bucket, after
//! compression, so that a hundred objects of 1 MiB are that and not a swarm of small ones.
//!
//! Method: events like those of a web shop, as many as make some 24 objects; of those that were
//! closed for their size nine in ten must be within 5 % of `BATCH_BYTES`, and none above it by more
//! than one payload and one compressor block.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::batches::{all_lines, batches};
use crate::support::{Server, collection, sorted};

const BATCH_BYTES: usize = 1 << 20;
/// What a compressor may hold back before it says how large it has become.
const BLOCK_BYTES: usize = 64 << 10;

/// An event of about `bytes` bytes, half of which no compressor can do much about.
fn event(id: usize, bytes: usize, rng: &mut fastrand::Rng) -> String {
    let mut text = format!(
        r#"{{"id":{id},"session":"{:016x}{:016x}","page":"/shop/item/{}","ms":{},"tags":["#,
        rng.u64(..),
        rng.u64(..),
        rng.u16(..),
        rng.f64() * 1e3,
    );
    while text.len() + 40 < bytes {
        let word = ["new", "returning", "campaign", "mobile"][rng.usize(..4)];
        text.push_str(&format!(r#"{{"{word}":"{:x}"}},"#, rng.u64(..)));
    }
    text.push_str("null]}");
    text
}

/// Posts events until `objects` are closed, and compares.
fn run(compression: &str, event_bytes: std::ops::Range<usize>, objects: u64) {
    let server = Server::start_batching(&[
        ("COMPRESSION", compression),
        ("BATCH_BYTES", "1MiB"),
        ("BATCH_AGE", "10m"),
    ]);
    let mut rng = fastrand::Rng::with_seed(11);
    let (mut posted, mut client) = (Vec::new(), server.connect());
    while server.metrics().closed("size") < objects {
        for _ in 0..16 {
            let mut some = Vec::new();
            while some.iter().map(String::len).sum::<usize>() < 100_000 {
                some.push(event(
                    posted.len() + some.len(),
                    rng.usize(event_bytes.clone()),
                    &mut rng,
                ));
            }
            let body = collection(&some);
            // Slow compressors are behind now and then.
            while client.post(&body).status == 503 {
                std::thread::sleep(Duration::from_millis(20));
            }
            posted.extend(some);
        }
    }
    drop(client);
    // Of what is still to be compressed at a stop, objects are not as large.
    server.wait("all taken in", |m| m.sum("millrace_queue_depth") == 0);
    let longest = posted.iter().map(String::len).max().unwrap();
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored), (0, posted.len() as u64));
    let stored = stopped.stored();
    assert!(all_lines(&batches(&stored)) == sorted(&posted), "each payload once");

    // All but what was open at the end.
    let mut sizes: Vec<usize> = by_age(&stored);
    sizes.pop();
    let near = |size: &&usize| size.abs_diff(BATCH_BYTES) * 20 <= BATCH_BYTES;
    let within = sizes.iter().filter(near).count();
    let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
    let raw: usize = posted.iter().map(String::len).sum();
    println!(
        "{compression}: {} objects of {least} to {most} bytes, {within} within 5 %; ratio {:.2}",
        sizes.len(),
        raw as f64 / stored.values().map(Vec::len).sum::<usize>() as f64,
    );
    assert!(sizes.len() as u64 >= objects && within * 10 >= sizes.len() * 9, "{sizes:?}");
    assert!(*most <= BATCH_BYTES + longest + BLOCK_BYTES, "{most}, the longest payload {longest}");
}

/// Sizes in the order in which the batches were opened.
fn by_age(objects: &BTreeMap<String, Vec<u8>>) -> Vec<usize> {
    let seq = |key: &str| {
        let stem = key.split('.').next().unwrap();
        stem.rsplit('-').next().unwrap().parse::<u64>().unwrap()
    };
    let mut sizes: Vec<(u64, usize)> =
        objects.iter().map(|(key, bytes)| (seq(key), bytes.len())).collect();
    sizes.sort_unstable();
    sizes.into_iter().map(|(_, size)| size).collect()
}

#[test]
fn plain_objects_are_as_large_as_asked_for() {
    run("none", 200..2_000, 24);
}

#[test]
fn zstd_objects_are_as_large_as_asked_for() {
    run("zstd", 200..2_000, 20);
}

#[test]
fn gzip_objects_are_as_large_as_asked_for() {
    run("gzip", 200..2_000, 10);
}

/// Payloads larger than a compressor's block: the object may end behind one of them.
#[test]
fn large_payloads_exceed_the_size_by_one_of_them_at_most() {
    run("zstd", 1_000..90_000, 10);
}
