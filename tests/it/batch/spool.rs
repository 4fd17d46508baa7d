//! The commands for a spool and batches: goal, what a killed server with batches has left can be
//! listed, checked, written out and put into a store without a server: begun batches under their
//! keys with exactly their members, the rest payload by payload.
//!
//! Method: servers killed with batches that the store has taken, that it may have taken, and that
//! it has not; the commands on what they left, then the objects held against what was posted.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use crate::support::batches::{Packing, all_lines, batches};
use crate::support::{Server, Stopped, command, files, numbered, sorted};

const BATCHING: [(&str, &str); 7] = [
    ("SPOOL_DIR", "spool"),
    ("NODE_ID", "node"),
    ("BATCH_COUNT", "10"),
    ("BATCH_AGE", "10m"),
    ("COMPRESSION", "gzip"),
    ("RETRY_BASE", "1ms"),
    ("RETRY_MAX", "10ms"),
];

/// A killed server, to which 35 payloads were spooled while its store did as `faults` says: three
/// batches are closed, five payloads are in an open one.
fn killed(faults: &str, settled: impl Fn(&Server) -> bool) -> Stopped {
    let server = Server::start_batching(&[&BATCHING[..], &[("FAULTS", faults)]].concat());
    let payloads = numbered(0..35);
    for some in payloads.chunks(5) {
        assert_eq!(server.spool(some).status, 200);
    }
    crate::support::wait_for("the store's part", || settled(&server));
    server.kill()
}

/// `spool ARGS` with other settings than the server's: how batches are made is the spool's to say.
fn spool(dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let settings = [("SPOOL_DIR", "spool"), ("RETRY_BASE", "1ms")];
    let output: Output = command(dir, &[&["spool"], args].concat(), &settings).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Batches and payloads by themselves of `data`.
fn data(dir: &Path) -> (BTreeMap<String, Vec<u8>>, BTreeMap<String, Vec<u8>>) {
    files(&dir.join("data")).into_iter().partition(|(key, _)| key.ends_with(".ndjson.gz"))
}

fn alone(objects: BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let texts = objects.into_iter().map(|(key, bytes)| {
        assert!(key.ends_with(".json"), "{key}");
        String::from_utf8(bytes).unwrap()
    });
    let mut texts: Vec<String> = texts.collect();
    texts.sort();
    texts
}

#[test]
fn what_a_store_never_took_is_listed_exported_and_replayed() {
    // All three are begun: each has been put at least once.
    let begun = |server: &Server| server.metrics().sum("millrace_payloads_retried_total") == 30;
    let stopped = killed("transient=1", begun);
    let dir = stopped.dir.path();
    assert_eq!(stopped.stored(), BTreeMap::new());
    let before = files(&dir.join("spool"));

    let (status, listed, _) = spool(dir, &["ls"]);
    assert_eq!(status, Some(0), "{listed}");
    assert!(listed.contains("3 batches in doubt, 0 done"), "{listed}");
    assert!(listed.contains("35 payloads, 35 unstored"), "{listed}");
    let (status, verified, _) = spool(dir, &["verify"]);
    assert_eq!(status, Some(0), "{verified}");
    assert!(verified.contains("1 journal of batches, 0 damaged"), "{verified}");
    let (status, exported, said) = spool(dir, &["export"]);
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(sorted(&exported.lines().collect::<Vec<_>>()), sorted(&numbered(0..35)));
    assert!(said.contains("35 payloads exported"), "{said}");
    assert!(files(&dir.join("spool")) == before, "a look changes nothing");

    let (status, said, errors) = spool(dir, &["replay"]);
    assert_eq!(status, Some(0), "{said}{errors}");
    assert!(said.contains("35 of 35 spooled payloads stored"), "{said}");
    let (batched, rest) = data(dir);
    let mut lines: Vec<Vec<String>> = batches(&batched).into_values().collect();
    lines.sort_by_key(|lines| lines[0].len() + 100 * lines.len());
    let mut expected = vec![numbered(0..10), numbered(10..20), numbered(20..30)];
    lines.sort();
    expected.sort();
    assert_eq!(lines, expected, "batches with their members, in their order");
    assert_eq!(alone(rest), sorted(&numbered(30..35)), "and what was in none begun");
    assert_eq!(files(&dir.join("spool")).into_keys().collect::<Vec<_>>(), [".lock"]);
    let (status, said, _) = spool(dir, &["replay"]);
    assert_eq!((status, said.contains("0 of 0")), (Some(0), true), "{said}");
}

#[test]
fn what_a_store_took_unconfirmed_is_put_again_as_it_was() {
    // Each object is there, and the server does not know.
    let there = |server: &Server| {
        server.stored().len() == 3 && server.metrics().sum("millrace_payloads_retried_total") == 30
    };
    let stopped = killed("late=1", there);
    let dir = stopped.dir.path();
    let before = stopped.stored();
    assert_eq!(before.len(), 3);
    let (status, said, errors) = spool(dir, &["replay", "spool/node"]);
    assert_eq!(status, Some(0), "{said}{errors}");
    let (batched, rest) = data(dir);
    assert!(batched == before, "the same objects under the same keys");
    assert_eq!(alone(rest), sorted(&numbered(30..35)));
}

#[test]
fn what_a_store_confirmed_is_neither_exported_nor_put_again() {
    let stored = |server: &Server| server.metrics().sum("millrace_payloads_stored_total") == 30;
    let stopped = killed("", stored);
    let dir = stopped.dir.path();
    let (status, exported, said) = spool(dir, &["export"]);
    assert_eq!(status, Some(0), "{said}");
    // The notes that they are done share a sync: those of the last batches may not be on the disk.
    let exported: Vec<&str> = exported.lines().collect();
    let rest = numbered(30..35);
    assert!(rest.iter().all(|payload| exported.contains(&payload.as_str())), "{exported:?}");
    assert_eq!(exported.len() % 10, 5, "whole batches, and the rest: {exported:?}");
    let (_, all, _) = spool(dir, &["export", "--all"]);
    assert_eq!(sorted(&all.lines().collect::<Vec<_>>()), sorted(&numbered(0..35)));

    let before = stopped.stored();
    let (status, said, errors) = spool(dir, &["replay"]);
    assert_eq!(status, Some(0), "{said}{errors}");
    let (batched, rest) = data(dir);
    assert!(batched == before);
    assert_eq!(all_lines(&batches(&batched)), sorted(&numbered(0..30)));
    assert_eq!(alone(rest), sorted(&numbered(30..35)));
}

#[test]
fn a_running_server_puts_begun_batches_of_a_killed_one_under_their_keys() {
    let begun = |server: &Server| server.metrics().sum("millrace_payloads_retried_total") == 30;
    let stopped = killed("late=0.5,transient=0.5,seed=3", begun);
    let dir = stopped.dir.clone();
    let before = stopped.stored();
    // Another way to make objects does not concern those that were begun.
    let server = Server::start_batching_in(
        dir,
        &[("SPOOL_DIR", "spool"), ("COMPRESSION", "zstd"), ("BATCH_AGE", "100ms")],
    );
    server.wait_spool_empty();
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_payloads_stored_total"), 35, "each counted once");
    assert_eq!(metrics.sum("millrace_payloads_taken_over_total"), 35);
    let stored = server.stored();
    assert!(before.iter().all(|(key, bytes)| stored.get(key) == Some(bytes)));
    let mut sizes: Vec<(Packing, usize)> = stored
        .iter()
        .map(|(key, bytes)| (Packing::of_key(key), Packing::of_key(key).lines(bytes).len()))
        .collect();
    sizes.sort_by_key(|(_, lines)| *lines);
    assert_eq!(
        sizes,
        [(Packing::Zstd, 5), (Packing::Gzip, 10), (Packing::Gzip, 10), (Packing::Gzip, 10)]
    );
    assert_eq!(all_lines(&server.batches()), sorted(&numbered(0..35)));
    assert_eq!(server.stop().status, 0);
}
