//! The spool: goal, what a `spooled` 200 says is on this host's disk reaches the store once,
//! whatever stands in its way meanwhile: a full ring, a store that is down, a stop, a killed
//! process, damage, a disk that fails.
//!
//! Method: requests to the spool around a store that is taken away or fails (`FAULTS`), signals
//! between them, and files changed while no server runs; then replies, gauges, objects and what is
//! left in the directory are compared.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::s3::{ACCESS_KEY, BUCKET, Fault, S3Server, SECRET_KEY};
use crate::support::{
    Reply, SPOOLED, Server, Stopped, collection, contents, files, numbered, request, sorted,
    wait_for,
};

const SPOOL: [(&str, &str); 3] =
    [("SPOOL_DIR", "spool"), ("RETRY_BASE", "5ms"), ("RETRY_MAX", "50ms")];
/// Small files, to have several.
const SMALL: [(&str, &str); 2] = [("MAX_LENGTH", "64KiB"), ("SPOOL_SEGMENT", "1MiB")];
/// A store that takes nothing.
const DOWN: (&str, &str) = ("FAULTS", "store_wide=1");

/// Where a segment's first group lies, and what a group of one small request takes.
const DATA_START: u64 = 128 << 10;
const BLOCK: u64 = 4096;

fn start(more: &[(&str, &str)]) -> Server {
    Server::start(&[&SPOOL, more].concat())
}

fn start_in(dir: &Arc<tempfile::TempDir>, more: &[(&str, &str)]) -> Server {
    Server::start_in(dir.clone(), &[&SPOOL, more].concat())
}

fn assert_spooled(reply: &Reply, accepted: usize) {
    let expected = format!(r#"{{"accepted":{accepted},"ack":"spooled"}}"#);
    assert_eq!((reply.status, &reply.body), (200, &expected));
}

/// Waits until everything is stored, stops, and checks that nothing is left in the spool.
fn finish(server: Server) -> Stopped {
    server.wait_spool_empty();
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.lost), (0, 0), "{}", stopped.log_text());
    let left: Vec<_> = files(&stopped.dir.path().join("spool")).into_keys().collect();
    assert_eq!(left, [".lock"]);
    stopped
}

#[test]
fn spool_overflow_is_acknowledged_up_to_spool_max_and_stored_when_the_store_is_back() {
    let sizes = [("MAX_QUEUE", "10"), ("MAX_WORKERS", "2"), ("SPOOL_MAX", "4MiB")];
    let server = start(&[&SMALL[..], &sizes].concat());
    server.break_store();
    let filler = "x".repeat(20_000);
    let payload = |id: usize| format!(r#"{{"id":{id},"filler":"{filler}"}}"#);
    let mut client = server.connect();
    let mut sent = Vec::new();
    let refused = loop {
        let two = [payload(sent.len()), payload(sent.len() + 1)];
        let reply = client.spool(&two);
        if reply.status != 200 {
            break reply;
        }
        assert_spooled(&reply, 2);
        sent.extend(two);
    };
    // Four files of 896 KiB for groups, each of 40 KB in whole blocks.
    assert!((4 * 19 * 2..=4 * 22 * 2).contains(&sent.len()), "{}", sent.len());
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert!(refused.error().contains("SPOOL_MAX"), "{}", refused.error());
    assert_eq!(refused.header("connection"), None, "kept alive");
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_spool_payloads"), sent.len() as u64);
    assert_eq!(metrics.sum("millrace_spool_overflowing"), 1);
    assert_eq!(metrics.sum("millrace_spool_failing"), 0, "full is not broken");
    assert!(metrics.sum("millrace_spool_disk_bytes") <= 4 << 20);
    // A queued request hears of the ring, which is full of spooled payloads.
    let queued = client.post(r#"{"data":["queued"]}"#);
    assert_eq!(queued.status, 503);
    assert!(queued.error().contains("the queue of this core is full"), "{}", queued.error());
    server.mend_store();
    wait_for("room in the spool", || {
        let more = payload(sent.len());
        let reply = client.spool(&[&more]);
        if reply.status == 200 {
            sent.push(more);
        }
        reply.status == 200
    });
    drop(client);
    server.wait_spool_empty();
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_payloads_accepted_total"), sent.len() as u64);
    assert_eq!(metrics.sum("millrace_payloads_stored_total"), sent.len() as u64);
    let stopped = finish(server);
    assert!(contents(&stopped.stored()) == sorted(&sent), "each exactly once");
    assert_eq!(stopped.dead_lettered, 0);
}

#[test]
fn spool_drain_with_a_dead_store_leaves_what_is_spooled_at_once() {
    // Every put reaches the store and none is confirmed: the next process must put under the same
    // keys.
    let server = start(&[
        ("NODE_ID", "first"),
        ("MAX_QUEUE", "30"),
        ("MAX_WORKERS", "4"),
        ("FAULTS", "late=1"),
        ("DRAIN_TIMEOUT", "20s"),
    ]);
    let mut client = server.connect();
    for ids in numbered(0..100).chunks(5) {
        assert_spooled(&client.spool(ids), 5);
    }
    drop(client);
    wait_for("some unconfirmed objects", || server.stored().len() >= 4);
    let stopped = server.stop();
    assert!(stopped.took < Duration::from_secs(9), "{:?}", stopped.took);
    let figures = (stopped.status, stopped.accepted, stopped.stored, stopped.dead_lettered);
    assert_eq!(figures, (0, 100, 0, 0), "{}", stopped.log_text());
    assert_eq!(stopped.lost, 0);
    assert!(stopped.log.iter().any(|line| line["left_in_spool"] == 100));
    let early = stopped.stored();
    assert!((4..100).contains(&early.len()), "{}", early.len());

    let server = start_in(&stopped.dir, &[("NODE_ID", "second")]);
    let stopped = finish(server);
    let stored = stopped.stored();
    assert_eq!(contents(&stored), sorted(&numbered(0..100)));
    assert!(stored.keys().all(|key| key.contains("-first-0-")), "{:?}", stored.keys());
    assert!(early.iter().all(|(key, payload)| stored[key] == *payload));
    assert_eq!((stopped.accepted, stopped.stored), (0, 100));
}

#[test]
fn spool_drain_takes_in_what_was_only_queued() {
    let server =
        start(&[("NODE_ID", "first"), DOWN, ("MAX_WORKERS", "3"), ("DRAIN_TIMEOUT", "3s")]);
    assert_eq!(server.post(collection(&numbered(0..10))).status, 200);
    assert_spooled(&server.spool(&numbered(10..20)), 10);
    assert_eq!(server.post(collection(&numbered(20..2_000))).status, 200);
    let stopped = server.stop();
    let figures = (stopped.status, stopped.accepted, stopped.dead_lettered, stopped.lost);
    assert_eq!(figures, (0, 2_000, 0, 0), "{}", stopped.log_text());
    assert!(stopped.took < Duration::from_secs(9), "{:?}", stopped.took);
    assert!(!stopped.dir.path().join("dead-letter").read_dir().unwrap().any(|_| true));
    let stopped = finish(start_in(&stopped.dir, &[("NODE_ID", "second")]));
    let stored = stopped.stored();
    assert!(contents(&stored) == sorted(&numbered(0..2_000)));
    assert!(stored.keys().all(|key| key.contains("-first-0-")), "{:?}", stored.keys());
}

#[test]
fn spool_of_one_node_id_belongs_to_one_process() {
    let server = start(&[("NODE_ID", "n")]);
    let second = server.run_beside(&[]);
    let text = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(2), "{text}");
    assert!(text.contains("NODE_ID") && text.contains("spool of n is in use"), "{text}");
    assert_spooled(&server.spool(&numbered(0..3)), 3);
    finish(server);
}

#[test]
fn spool_of_a_killed_process_is_adopted_by_another_that_runs() {
    let victim = start(&[("NODE_ID", "victim"), DOWN]);
    let heir = start_in(&victim.dir(), &[("NODE_ID", "heir")]);
    for ids in numbered(0..30).chunks(3) {
        assert_spooled(&victim.spool(ids), 3);
    }
    assert_spooled(&heir.spool(&numbered(30..31)), 1);
    heir.wait_spool_empty();
    assert_eq!(heir.stored().len(), 1, "what a living process has is its own");
    victim.kill();
    let killed = Instant::now();
    heir.wait("adopted", |m| m.sum("millrace_payloads_taken_over_total") == 30);
    assert!(killed.elapsed() < Duration::from_secs(30), "{:?}", killed.elapsed());
    let stopped = finish(heir);
    assert_eq!(contents(&stopped.stored()), sorted(&numbered(0..31)));
}

#[test]
fn spool_name_is_free_again_while_another_process_holds_what_was_adopted() {
    let victim = start(&[("NODE_ID", "victim"), DOWN]);
    let heir = start_in(&victim.dir(), &[("NODE_ID", "heir"), DOWN]);
    assert_spooled(&victim.spool(&numbered(0..3)), 3);
    victim.kill();
    heir.wait("adopted", |m| m.sum("millrace_payloads_taken_over_total") == 3);
    let again = start_in(&heir.dir(), &[("NODE_ID", "victim")]);
    assert_spooled(&again.spool(&numbered(3..6)), 3);
    again.wait_spool_empty();
    assert_eq!(contents(&again.stored()), numbered(3..6), "the heir has the others");
    // Held by a process that cannot store them, they come back with its end.
    heir.kill();
    again.wait("adopted", |m| m.sum("millrace_payloads_taken_over_total") == 3);
    let stopped = finish(again);
    assert_eq!(contents(&stopped.stored()), numbered(0..6));
}

#[test]
fn spool_replay_is_told_and_no_reason_against_traffic() {
    let server = start(&[DOWN]);
    assert_spooled(&server.spool(&numbered(0..3)), 3);
    let dir = server.kill().dir;
    let server = start_in(&dir, &[DOWN]);
    let text = server.wait_ready(200);
    assert!(text.starts_with("ready\n") && text.contains("being replayed"), "{text}");
    assert_spooled(&server.spool(&numbered(3..4)), 1);
    server.kill();
    let server = start_in(&dir, &[]);
    server.wait_spool_empty();
    assert_eq!(server.wait_ready(200), "ready\n");
    assert_eq!(contents(&finish(server).stored()), numbered(0..4));
}

/// A server that was killed with the payloads 0 to `count` in its spool, one a group; and the file
/// they are in.
fn killed_with(count: usize) -> (Arc<tempfile::TempDir>, PathBuf) {
    let server = start(&[&SMALL[..], &[("NODE_ID", "n"), DOWN]].concat());
    let mut client = server.connect();
    for payload in numbered(0..count) {
        assert_spooled(&client.spool(&[payload]), 1);
    }
    drop(client);
    let dir = server.kill().dir;
    let spooled = files(&dir.path().join("spool/n/core-0"));
    let holds = |bytes: &[u8]| bytes.windows(8).any(|window| window == br#"{"id":0}"#);
    let (name, _) = spooled.iter().find(|(_, bytes)| holds(bytes)).unwrap();
    let file = dir.path().join("spool/n/core-0").join(name);
    (dir, file)
}

/// Changes a byte of a group `number` that [`killed_with`] has made.
fn damage_group(file: &Path, number: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let at = DATA_START + number * BLOCK + 150;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

fn quarantine(dir: &Path) -> Vec<String> {
    files(&dir.join("spool/quarantine")).into_keys().collect()
}

/// `numbered` without one.
fn all_but(count: usize, missing: usize) -> Vec<String> {
    sorted(&numbered((0..count).filter(|id| *id != missing)))
}

#[test]
fn spool_damage_costs_what_was_hit_and_is_named() {
    let (dir, file) = killed_with(6);
    damage_group(&file, 2);
    let server = start_in(&dir, &[("NODE_ID", "n")]);
    server.wait_spool_empty();
    assert_eq!(server.metrics().sum("millrace_payloads_lost_total"), 1);
    let name = file.file_name().unwrap().to_str().unwrap();
    let (from, to) = (DATA_START + 2 * BLOCK, DATA_START + 3 * BLOCK);
    let said = format!("core-0/{name} is damaged from byte {from} to {to}");
    server.wait_logged(&said);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored, stopped.lost), (1, 5, 1));
    assert_eq!(contents(&stopped.stored()), all_but(6, 2));
    let aside = quarantine(dir.path());
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert!(aside[0].starts_with("n~") && aside[0].ends_with(name), "{aside:?}");
    // It is nobody's any more.
    let stopped = finish_beside_quarantine(start_in(&dir, &[]));
    assert_eq!((stopped.status, stopped.stored), (0, 0));
}

/// Waits until the spool is empty but for its quarantine.
fn finish_beside_quarantine(server: Server) -> Stopped {
    server.wait_spool_empty();
    let stopped = server.stop();
    let left = files(&stopped.dir.path().join("spool")).into_keys();
    let left: Vec<_> = left.filter(|name| !name.starts_with("quarantine/")).collect();
    assert_eq!(left, [".lock"]);
    stopped
}

#[test]
fn spool_file_that_is_cut_is_read_as_far_as_it_goes() {
    let (dir, file) = killed_with(6);
    let length = DATA_START + 2 * BLOCK + 150;
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(length).unwrap();
    let server = start_in(&dir, &[]);
    server.wait_spool_empty();
    let said = format!("is truncated: {length} of {} bytes", 1 << 20);
    server.wait_logged(&said);
    let stopped = finish_beside_quarantine(server);
    assert_eq!(contents(&stopped.stored()), numbered(0..2));
    assert_eq!(quarantine(dir.path()).len(), 1);
}

#[test]
fn spool_tail_that_was_never_acknowledged_is_cut_without_a_fuss() {
    let (dir, file) = killed_with(6);
    damage_group(&file, 5);
    let server = start_in(&dir, &[]);
    server.wait_spool_empty();
    assert_eq!(server.metrics().sum("millrace_payloads_lost_total"), 0);
    let log = server.log();
    let line = log.iter().find(|line| line.to_string().contains("never acknowledged")).unwrap();
    assert_eq!(line["level"], "INFO", "{line}");
    let stopped = finish(server);
    assert!(stopped.errors().is_empty(), "{}", stopped.log_text());
    assert_eq!(contents(&stopped.stored()), numbered(0..5));
}

#[test]
fn spool_leaves_files_that_are_not_its_own_to_their_owner() {
    let (dir, file) = killed_with(3);
    let strangers = [("note.txt", 20), ("7.seg", 5_000), ("dump", 10_000), ("large", 300_000)];
    for (name, bytes) in strangers {
        fs::write(file.with_file_name(name), vec![b'#'; bytes]).unwrap();
    }
    // Made by a process that died before it had any room.
    fs::write(file.with_file_name("8.seg"), "").unwrap();
    let server = start_in(&dir, &[]);
    server.wait_spool_empty();
    wait_for("a line for each", || {
        server.count_logged("is not a spool segment") == strangers.len()
    });
    let stopped = finish_beside_quarantine(server);
    assert_eq!(contents(&stopped.stored()), numbered(0..3));
    let aside = files(&dir.path().join("spool/quarantine"));
    assert_eq!(aside.len(), strangers.len(), "{:?}", aside.keys());
    for (name, bytes) in strangers {
        let (_, found) = aside.iter().find(|(aside, _)| aside.ends_with(name)).expect(name);
        assert_eq!(found.len(), bytes, "{name} is as it was");
    }
}

#[test]
fn spool_sync_that_fails_is_a_503_and_stores_nothing_of_it() {
    let settings = [
        ("FAULTS", "seed=3,spool_sync=0.2"),
        ("SPOOL_CHECKPOINT", "20ms"),
        ("SPOOL_MAX", "200MiB"),
        ("NODE_ID", "n"),
    ];
    let server = start(&[&SMALL[..], &settings].concat());
    server.break_store();
    let mut client = server.connect();
    let (mut kept, mut refused) = (Vec::new(), 0);
    let mut queued = Vec::new();
    for payload in numbered(0..150) {
        let reply = client.spool(&[&payload]);
        match reply.status {
            200 => kept.push(payload),
            503 => {
                assert_eq!(reply.header("retry-after"), Some("5"));
                assert!(reply.error().contains("cannot be written"), "{}", reply.error());
                refused += 1;
                let payload = format!("[{payload}]");
                assert_eq!(client.post(collection(&[&payload])).status, 200);
                queued.push(payload);
                server.wait_ready(200);
            }
            other => panic!("{other}: {}", reply.body),
        }
    }
    drop(client);
    assert!(refused > 10 && kept.len() > 50, "{refused} refused, {} kept", kept.len());
    // Until progress says which groups failed.
    std::thread::sleep(Duration::from_secs(1));
    let dir = server.kill().dir;
    crate::support::mend_store(dir.path());
    let stopped = finish(start_in(&dir, &[("NODE_ID", "n")]));
    assert_eq!(contents(&stopped.stored()), sorted(&kept), "the queued ones died with the process");
    assert!(stopped.errors().is_empty(), "{}", stopped.log_text());
}

#[test]
fn spool_that_fails_is_not_ready_and_recovers_by_itself() {
    let server = start(&[("FAULTS", "spool_sync=1"), ("SPOOL_CHECKPOINT", "4s")]);
    let mut client = server.connect();
    for _ in 0..2 {
        assert_eq!(client.spool(&["0"]).status, 503);
        let reasons = server.wait_ready(503);
        assert!(reasons.contains("core 0: the spool cannot be written"), "{reasons}");
        assert_eq!(server.metrics().sum("millrace_spool_failing"), 1);
        assert_eq!(client.post(r#"{"data":[1]}"#).status, 200, "queued needs no disk");
        server.wait_ready(200);
    }
    server.wait_logged("the spool can be written again");
    drop(client);
    let stopped = finish(server);
    assert_eq!(contents(&stopped.stored()), ["1", "1"]);
    assert_eq!((stopped.accepted, stopped.stored), (2, 2));
}

#[test]
fn spool_replay_into_a_bucket_stores_once_what_the_store_had_already() {
    let s3 = S3Server::start();
    let (store, url) = (format!("s3://{BUCKET}/in/"), s3.url());
    let settings = [
        ("STORE", store.as_str()),
        ("AWS_ENDPOINT_URL_S3", url.as_str()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("HOME", "/nonexistent"),
        ("S3_IF_NONE_MATCH", "true"),
        ("SPOOL_CHECKPOINT", "1m"),
    ];
    let server = start(&settings);
    s3.fail_when(|seen| (seen.method == "PUT").then_some(Fault::ServeThenClose));
    let mut client = server.connect();
    for ids in numbered(0..60).chunks(4) {
        assert_spooled(&client.spool(ids), 4);
    }
    drop(client);
    wait_for("some unconfirmed objects", || s3.objects().len() > 10);
    let dir = server.kill().dir;
    s3.heal();
    let had = s3.objects();
    let server = start_in(&dir, &settings);
    server.wait_spool_empty();
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_payloads_stored_total"), 60, "also what was there");
    assert_eq!(metrics.sum("millrace_put_retries_total"), 0);
    let stopped = finish(server);
    assert_eq!(stopped.dead_lettered, 0);
    let objects = s3.objects();
    assert_eq!(contents(&objects), sorted(&numbered(0..60)));
    assert!(had.iter().all(|(key, payload)| objects[key] == *payload));
}

#[test]
fn spool_brings_back_requests_larger_than_what_there_is_room_for() {
    let server = start(&[DOWN, ("MAX_QUEUE", "10000"), ("SPOOL_SEGMENT", "4MiB")]);
    let large = |id: usize| format!(r#""{id}{}""#, "y".repeat((1 << 20) - 20));
    let many = numbered(0..10_000);
    let few = numbered(10_000..10_100);
    let mut sent = [many.clone(), few.clone()].concat();
    let mut client = server.connect();
    assert_spooled(&client.spool(&[large(0)]), 1);
    assert_spooled(&client.spool(&many), 10_000);
    assert_spooled(&client.spool(&few), 100);
    for id in 1..4 {
        assert_spooled(&client.spool(&[large(id)]), 1);
    }
    sent.extend((0..4).map(large));
    assert_eq!(server.metrics().sum("millrace_spool_overflowing"), 1);
    drop(client);
    let dir = server.kill().dir;
    // Killed again on the way, and then with room for none of them at once.
    let server = start_in(&dir, &[("SPOOL_CHECKPOINT", "50ms")]);
    server.wait("some are stored", |m| m.sum("millrace_payloads_stored_total") > 1_000);
    server.kill();
    let tight = [("MAX_QUEUE", "100"), ("MAX_QUEUE_BYTES", "64KiB")];
    let stopped = finish(start_in(&dir, &[&SMALL[..], &tight].concat()));
    assert!(contents(&stopped.stored()) == sorted(&sent), "each exactly once");
    assert!(stopped.errors().is_empty(), "{}", stopped.log_text());
}

#[test]
fn spool_overflow_is_brought_back_as_it_came() {
    let server = start(&[("MAX_QUEUE", "10000"), ("SPOOL_SEGMENT", "4MiB"), ("STORE", "null:")]);
    let large = format!(r#""{}""#, "z".repeat((1 << 20) - 20));
    let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for round in 0..3 {
        for (at, client) in clients.iter_mut().enumerate() {
            let payloads = match at % 2 {
                0 => numbered(0..10_000),
                _ => vec![large.clone()],
            };
            let body = collection(&payloads);
            client.send(request(body.as_bytes(), SPOOLED));
        }
        for (at, client) in clients.iter_mut().enumerate() {
            let reply = client.reply();
            assert_eq!(reply.status, 200, "{round} {at} {reply:?}");
        }
    }
    drop(clients);
    server.wait_spool_empty();
    let stored = 3 * (2 * 10_000 + 2);
    assert_eq!(server.metrics().sum("millrace_payloads_stored_total"), stored);
    finish(server);
}
