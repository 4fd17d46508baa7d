//! A disk that is full, turns read-only or hangs while the server runs. Goal: `spooled` requests
//! are refused with the reason (or get 504 from a disk that hangs), everything else goes on, the
//! log and `/readyz` say so, the spool works again when the disk does, without a restart, and what
//! was acknowledged is stored, once.
//!
//! Method: the spool's directory is a small file system of the server's own, see `support::disks`,
//! which is filled, made to fail, exchanged and frozen from outside.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::disks::{Disk, Frozen, make_image, run_in_namespace, seen_by, turn_read_only};
use crate::support::{Server, collection, contents, files, numbered, sorted, wait_for};

const SETTINGS: [(&str, &str); 7] = [
    ("SPOOL_DIR", "spool"),
    ("SPOOL_SEGMENT", "1MiB"),
    ("MAX_LENGTH", "64KiB"),
    ("SPOOL_CHECKPOINT", "300ms"),
    ("RETRY_BASE", "5ms"),
    ("RETRY_MAX", "50ms"),
    ("ACK_TIMEOUT", "3s"),
];

fn dir() -> Arc<tempfile::TempDir> {
    Arc::new(tempfile::tempdir().unwrap())
}

/// Of 50 KB, so that a few fill a segment.
fn large(id: usize) -> String {
    format!(r#"["{}",{id}]"#, "f".repeat(50_000))
}

/// What has nothing to do with the spool goes on.
fn assert_the_rest_works(server: &Server, id: usize) -> String {
    let payload = numbered(id..id + 1).remove(0);
    let queued = server.post(collection(&[&payload]));
    assert_eq!(queued.status, 200, "queued needs no disk: {}", queued.body);
    assert_eq!(server.admin("/healthz").status, 200);
    assert_eq!(server.metrics().sum("millrace_spool_failing"), 1);
    payload
}

/// The one line of a level with this text, which may come a moment later than what it tells of.
fn line(server: &Server, level: &str, text: &str) -> Value {
    let mut found = Vec::new();
    wait_for(text, || {
        found = server.log();
        found.retain(|line| {
            let said = line["message"].as_str().unwrap_or_default();
            line["level"] == level && said.contains(text)
        });
        !found.is_empty()
    });
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

/// An outage fills the spool; later, after some hundred batches, a second journal is needed.
#[test]
fn the_journals_of_batches_are_part_of_spool_max() {
    let settings = [("OBJECT", "batch"), ("SPOOL_MAX", "10MiB"), ("BATCH_COUNT", "1")];
    let server = Server::start(&[&SETTINGS[..], &settings].concat());
    assert_eq!(server.spool(&[large(0)]).status, 200);
    server.wait("its batch", |metrics| metrics.sum("millrace_payloads_stored_total") == 1);
    server.break_store();
    let full = (1..400).find(|id| server.spool(&[large(*id)]).status == 503);
    server.mend_store();
    server.wait_idle();
    let mut client = server.connect();
    for payload in numbered(0..1_000) {
        assert_eq!(client.spool(&[payload]).status, 200);
    }
    drop(client);
    server.wait_idle();
    let on_disk = files(&server.path("spool"));
    let journals = on_disk.keys().filter(|name| name.ends_with(".batches")).count();
    assert_eq!(journals, 2, "{:?}", on_disk.keys());
    let on_disk: usize = on_disk.values().map(Vec::len).sum();
    let counted = server.metrics().sum("millrace_spool_disk_bytes");
    assert!(counted <= 10 << 20 && on_disk <= 10 << 20, "{counted} {on_disk}");
    // 2 MiB are left to journals, and 8 segments have room for some 20 of these each.
    assert!((120..165).contains(&full.expect("the spool fills")), "{full:?}");
}

#[test]
fn spool_on_a_full_tmpfs_refuses_and_recovers() {
    fills_and_recovers(Disk::Tmpfs);
}

#[test]
fn spool_on_a_full_disk_refuses_and_recovers() {
    fills_and_recovers(Disk::Ext4);
}

fn fills_and_recovers(disk: Disk) {
    let Some(server) = disk.start(&dir(), &SETTINGS) else { return };
    server.break_store();
    let filler = seen_by(&server).join("filler");
    // Room for two segments or three.
    fs::write(&filler, vec![0; 3 << 20]).unwrap();

    let mut client = server.connect();
    let mut sent = Vec::new();
    let refused = loop {
        let payload = large(sent.len());
        let reply = client.spool(&[&payload]);
        if reply.status != 200 {
            break reply;
        }
        sent.push(payload);
        assert!(sent.len() < 200, "10 MiB are more than they say");
    };
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    for part in ["No space left on device", "free space on the file system of SPOOL_DIR"] {
        assert!(refused.error().contains(part), "{}", refused.error());
    }
    assert!(!refused.error().contains("millrace-ack"), "a weaker ack is no advice");
    assert!(sent.len() >= 16, "one segment at least: {}", sent.len());
    let reasons = server.wait_ready(503);
    assert!(reasons.contains("core 0: the spool cannot be written: No space left"), "{reasons}");
    let said = line(&server, "ERROR", "the spool cannot be written");
    for part in ["/core-0", "No space left on device (os error 28)", "free space"] {
        assert!(said["message"].as_str().unwrap().contains(part), "{said:#?}");
    }
    sent.push(assert_the_rest_works(&server, 0));

    fs::remove_file(&filler).unwrap();
    server.wait_ready(200);
    let recovered = line(&server, "INFO", "the spool can be written again");
    assert!(recovered["refused"].as_u64().unwrap() >= 1, "{recovered:#?}");
    let more = large(1_000);
    wait_for("the spool to take requests again", || client.spool(&[&more]).status == 200);
    sent.push(more);
    drop(client);
    server.mend_store();
    server.wait_spool_empty();
    assert!(contents(&server.stored()) == sorted(&sent), "each exactly once");
    assert_eq!(server.metrics().sum("millrace_payloads_lost_total"), 0);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.dead_lettered), (0, 0), "{}", stopped.log_text());
}

#[test]
fn spool_on_a_disk_that_turns_read_only_refuses_and_recovers_on_another_one() {
    let dir = dir();
    let Some(server) = Disk::Ext4.start(&dir, &SETTINGS) else { return };
    let mut client = server.connect();
    server.break_store();
    let mut sent = numbered(0..20);
    sent.iter().for_each(|payload| assert_eq!(client.spool(&[payload]).status, 200));

    // As after an error of the disk.
    turn_read_only(&server);
    let mut refused = client.spool(&numbered(100..101));
    // The first to notice may be the keeper.
    for _ in 0..3 {
        assert_eq!(refused.status, 503, "{}", refused.body);
        refused = client.spool(&numbered(100..101));
    }
    assert!(refused.error().contains("the spool cannot be written"), "{}", refused.error());
    let reasons = server.wait_ready(503);
    assert!(reasons.contains("core 0: the spool cannot be written"), "{reasons}");
    line(&server, "ERROR", "the spool cannot be written");
    sent.push(assert_the_rest_works(&server, 20));
    server.mend_store();
    server.wait("all of it to be stored", |metrics| {
        metrics.sum("millrace_payloads_stored_total") == sent.len() as u64
    });

    // Mounted there in its stead; the old one stays open as long as the server has files on it.
    assert!(make_image(&dir.path().join("other.img"), 10));
    run_in_namespace(&server, "umount -l spool; mount -o loop other.img spool");
    server.wait_ready(200);
    line(&server, "INFO", "the spool can be written again");
    server.break_store();
    let more = numbered(30..40);
    more.iter().for_each(|payload| assert_eq!(client.spool(&[payload]).status, 200));
    sent.extend(more);
    drop(client);
    server.mend_store();
    server.wait_spool_empty();
    assert_eq!(contents(&server.stored()), sorted(&sent), "each exactly once");
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.lost), (0, 0), "{}", stopped.log_text());
}

#[test]
fn spool_on_a_disk_that_turned_read_only_is_replayed_after_a_crash() {
    let dir = dir();
    let Some(server) = Disk::Ext4.start(&dir, &SETTINGS) else { return };
    server.break_store();
    let mut client = server.connect();
    let mut acknowledged = Vec::new();
    for payload in numbered(0..40) {
        if payload.contains("25") {
            turn_read_only(&server);
        }
        match client.spool(&[&payload]).status {
            200 => acknowledged.push(payload),
            status => assert_eq!(status, 503),
        }
    }
    assert_eq!(acknowledged.len(), 25);
    server.kill();
    crate::support::mend_store(dir.path());
    // As an operator would, before it is mounted again.
    let mut check = std::process::Command::new("e2fsck");
    check.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(["-p", "-f"]);
    let checked = check.arg(dir.path().join("disk.img")).output().unwrap();
    assert!(checked.status.code().is_some_and(|code| code <= 1), "{checked:?}");
    let options = "-m";
    let server = Server::start_by(dir, &SETTINGS, |command| Disk::Ext4.wrap(command, options));
    server.wait_spool_empty();
    let replayed = line(&server, "INFO", "replayed the spool of");
    let count = acknowledged.len() as u64;
    assert!(replayed["payloads"].as_u64().unwrap() >= count, "{replayed:#?}");
    assert!(replayed["bytes"].as_u64().unwrap() > 0 && replayed["took_ms"].is_u64());
    let stored = contents(&server.stored());
    assert!(acknowledged.iter().all(|payload| stored.contains(payload)), "{stored:#?}");
    assert!(stored.windows(2).all(|two| two[0] != two[1]), "none twice");
}

#[test]
fn spool_on_a_disk_that_hangs_answers_504_and_goes_on_when_it_answers() {
    let settings = [&SETTINGS[..], &[("DRAIN_TIMEOUT", "8s")]].concat();
    let Some(server) = Disk::Ext4.start(&dir(), &settings) else { return };
    let mut client = server.connect();
    let mut sent = numbered(0..5);
    sent.iter().for_each(|payload| assert_eq!(client.spool(&[payload]).status, 200));

    let frozen = Frozen::new(&server);
    let started = Instant::now();
    let hung = numbered(5..6).remove(0);
    let reply = client.spool(&[&hung]);
    assert_eq!(reply.status, 504, "{}", reply.body);
    assert!(reply.error().contains("ACK_TIMEOUT"), "{}", reply.error());
    assert!(started.elapsed() >= Duration::from_secs(3));
    sent.push(hung);
    let reasons = server.wait_ready(503);
    assert!(reasons.contains("core 0: the spool's disk has not answered for"), "{reasons}");
    line(&server, "ERROR", "the spool's disk does not answer");
    sent.push(assert_the_rest_works(&server, 6));
    assert!(server.metrics().sum("millrace_spool_stalled_seconds") >= 5);
    // Dead letters and the store's renames do not wait for the disk either.
    wait_for("what was queued to be stored", || server.stored().len() >= 6);

    drop(frozen);
    server.wait_ready(200);
    line(&server, "INFO", "the spool's disk answers again");
    let more = numbered(7..8).remove(0);
    assert_eq!(client.spool(&[&more]).status, 200);
    sent.push(more);
    drop(client);
    server.wait_spool_empty();
    // A 504 left open whether it would be stored; this disk went on with it.
    assert_eq!(contents(&server.stored()), sorted(&sent), "each exactly once");

    // A stop does not wait for the disk, although the kernel keeps the process until the disk
    // answers.
    let frozen = Frozen::new(&server);
    assert_eq!(server.spool(&numbered(8..9)).status, 504);
    let started = Instant::now();
    server.signal("TERM");
    wait_for("the stop to end", || server.logged("\"stopped\""));
    assert!(started.elapsed() < Duration::from_secs(16), "{:?}", started.elapsed());
    drop(frozen);
    let stopped = server.wait_stopped();
    assert_eq!((stopped.status, stopped.lost), (0, 0), "{}", stopped.log_text());
}

/// Batches of spooled payloads wait for the spool's journal, and must not keep the workers from
/// others.
#[test]
fn spool_on_a_disk_that_hangs_does_not_keep_batches_of_queued_payloads() {
    let mut settings = SETTINGS.to_vec();
    settings.retain(|(name, _)| *name != "ACK_TIMEOUT");
    settings.extend([
        ("OBJECT", "batch"),
        ("COMPRESSION", "none"),
        ("BATCH_AGE", "2s"),
        ("MAX_WORKERS", "2"),
        ("KEY", "{field:/part}/{unix_nanos}-{node}-{core}-{seq}.{ext}"),
    ]);
    let Some(server) = Disk::Ext4.start(&dir(), &settings) else { return };
    let part = |part: usize| [0, 1].map(|id| format!(r#"{{"part":"p{part}","id":{id}}}"#));
    let lines = || {
        let objects = server.stored();
        let lines = objects.values().flat_map(|object| str::from_utf8(object).unwrap().lines());
        let mut lines: Vec<String> = lines.map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let mut sent: Vec<String> = (0..6).flat_map(part).collect();
    assert_eq!(server.spool(&sent).status, 200);
    let frozen = Frozen::new(&server);
    // Three times as many as there are workers, all of them closed by now.
    server.wait_ready(503);
    let queued = part(6);
    assert_eq!(server.post(collection(&queued)).status, 200);
    wait_for("the queued batch to be stored", || lines() == sorted(&queued));
    drop(frozen);
    server.wait_ready(200);
    sent.extend(queued);
    server.wait_spool_empty();
    assert_eq!(lines(), sorted(&sent), "each exactly once");
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.lost), (0, 0), "{}", stopped.log_text());
}

/// What a full disk keeps of a measurement: the file is there before the disk refuses its space.
#[test]
fn a_measurement_leaves_nothing_on_a_disk_without_room() {
    let dir = tempfile::tempdir().unwrap();
    for disk in [Disk::Tmpfs, Disk::Ext4] {
        let Some(options) = disk.make(dir.path()) else { continue };
        let mut command = std::process::Command::new("sh");
        let script = "\"$0\" spool bench spool --cores 0; echo status $?; ls -A spool";
        command.current_dir(dir.path()).args(["-c", script, env!("CARGO_BIN_EXE_millrace")]);
        disk.wrap(&mut command, options);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        let left: Vec<_> = said.lines().filter(|line| *line != "lost+found").collect();
        assert_eq!(left, ["status 2"], "{disk:?}: {complaint}");
        assert!(complaint.contains("the measurement needs 16.0 MiB there"), "{complaint}");
    }
}
