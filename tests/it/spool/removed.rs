//! The spool's directory is removed under the running server, or its process runs into a limit.
//! Goal: nothing is acknowledged that a crash would lose, the refusal and the log say what is
//! wrong, and the spool goes on when it is mended, without a restart.
//!
//! Method: `rm -r`, `prlimit` and `kill -9` around spooled requests.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Server, collection, contents, files, numbered, sorted, wait_for};

const SETTINGS: [(&str, &str); 6] = [
    ("SPOOL_DIR", "spool"),
    ("SPOOL_SEGMENT", "1MiB"),
    ("MAX_LENGTH", "64KiB"),
    ("SPOOL_CHECKPOINT", "300ms"),
    ("RETRY_BASE", "5ms"),
    ("RETRY_MAX", "50ms"),
];

/// Longer than a file's name is taken for granted.
const NOTICED_AFTER: Duration = Duration::from_millis(200);

/// With what the server makes there meanwhile.
fn remove(dir: &Path) {
    wait_for("the directory to be removed", || {
        let _raced = fs::remove_dir_all(dir);
        !dir.exists()
    });
}

#[test]
fn spool_directory_that_is_removed_acknowledges_nothing_until_it_is_back() {
    let server = Server::start(&SETTINGS);
    server.break_store();
    let mut client = server.connect();
    let mut sent = numbered(0..10);
    sent.iter().for_each(|payload| assert_eq!(client.spool(&[payload]).status, 200));

    remove(&server.path("spool"));
    std::thread::sleep(NOTICED_AFTER);
    let refused = client.spool(&numbered(10..11));
    assert_eq!(refused.status, 503, "its files still take writes, but survive no crash");
    assert!(refused.error().contains("SPOOL_DIR"), "{}", refused.error());
    let reasons = server.wait_ready(503);
    assert!(reasons.contains("create SPOOL_DIR again"), "{reasons}");
    server.wait_logged("No such file or directory (os error 2)");
    assert_eq!(client.post(collection(&numbered(11..12))).status, 200, "queued needs no disk");
    sent.extend(numbered(11..12));
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(client.spool(&numbered(10..11)).status, 503, "still");

    fs::create_dir(server.path("spool")).unwrap();
    server.wait_ready(200);
    wait_for("its INFO", || server.logged("the spool can be written again"));
    let more = numbered(12..20);
    more.iter().for_each(|payload| assert_eq!(client.spool(&[payload]).status, 200));
    // What was acknowledged since survives a crash.
    let stopped = server.kill();
    crate::support::mend_store(stopped.dir.path());
    let server = Server::start_in(stopped.dir, &SETTINGS);
    server.wait_spool_empty();
    assert_eq!(contents(&server.stored()), sorted(&more), "what was on the disk when it died");
}

#[test]
fn spool_directory_that_is_emptied_is_made_again_and_nothing_is_lost() {
    let server = Server::start(&SETTINGS);
    server.break_store();
    let mut client = server.connect();
    let mut sent = numbered(0..10);
    sent.iter().for_each(|payload| assert_eq!(client.spool(&[payload]).status, 200));
    for entry in fs::read_dir(server.path("spool")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { remove(&path) } else { fs::remove_file(path).unwrap() }
    }
    std::thread::sleep(NOTICED_AFTER);
    assert_eq!(client.spool(&numbered(10..11)).status, 503);
    server.wait_ready(200);
    let more = numbered(12..20);
    more.iter().for_each(|payload| assert_eq!(client.spool(&[payload]).status, 200));
    sent.extend(more);
    drop(client);
    // The lock is there again as well: nobody takes a live server's spool.
    let homes = fs::read_dir(server.path("spool")).unwrap().map(|entry| entry.unwrap().path());
    let locks: Vec<_> = homes.filter(|path| path.is_dir()).map(|path| path.join("lock")).collect();
    assert_eq!(locks.len(), 1, "{locks:?}");
    let lock = fs::File::open(&locks[0]).unwrap();
    let taken = rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    assert_eq!(taken, Err(rustix::io::Errno::WOULDBLOCK), "held");
    server.mend_store();
    server.wait_spool_empty();
    assert_eq!(contents(&server.stored()), sorted(&sent), "each exactly once");
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.lost), (0, 0), "{}", stopped.log_text());
    let left: Vec<_> = files(&stopped.dir.path().join("spool")).into_keys().collect();
    assert_eq!(left, [".lock"]);
}

#[test]
fn spool_directory_that_is_removed_before_a_stop_leaves_dead_letters() {
    let server = Server::start(&SETTINGS);
    server.break_store();
    let mut client = server.connect();
    let sent = numbered(0..10);
    sent.iter().for_each(|payload| assert_eq!(client.spool(&[payload]).status, 200));
    drop(client);
    remove(&server.path("spool"));
    // Whether it has been noticed or not.
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.lost), (1, 0), "{}", stopped.log_text());
    assert_eq!(stopped.dead_lettered, 10, "they are nowhere else: {}", stopped.log_text());
}

/// Sets a limit of the running server.
fn limit(server: &Server, resource: &str, value: u64) {
    let mut set = Command::new("prlimit");
    set.args(["--pid", &server.pid().to_string(), &format!("--{resource}={value}:")]);
    assert!(set.status().unwrap().success(), "prlimit");
}

/// The limit of open files under which the server has `more` left.
fn descriptors_for(server: &Server, more: usize) -> u64 {
    let open = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let open = open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<u64>());
    let open: Vec<u64> = open.map(Result::unwrap).collect();
    let mut free = (0..).filter(|fd| !open.contains(fd));
    free.nth(more - 1).unwrap() + 1
}

/// Sends until one is refused; the refusal.
fn fill(server: &Server, sent: &mut Vec<String>) -> crate::support::Reply {
    let mut client = server.connect();
    loop {
        let payload = format!(r#"["{}",{}]"#, "f".repeat(50_000), sent.len());
        let reply = client.spool(&[&payload]);
        if reply.status != 200 {
            return reply;
        }
        sent.push(payload);
        assert!(sent.len() < 500, "25 MB are more than they say");
    }
}

#[test]
fn spool_at_a_limit_of_the_process_refuses_and_recovers() {
    for (resource, low, text, remedy) in [
        // In a block of a group, and at the beginning of one.
        ("fsize", Some(601_000), "File too large", "LimitFSIZE"),
        ("fsize", Some((128 << 10) + 8 * (52 << 10)), "File too large", "LimitFSIZE"),
        ("nofile", None, "Too many open files", "LimitNOFILE"),
    ] {
        let server = Server::start_in(Arc::new(tempfile::tempdir().unwrap()), &SETTINGS);
        server.break_store();
        // Two more: a connection, and the first file of a segment, of the two that it needs.
        limit(&server, resource, low.unwrap_or_else(|| descriptors_for(&server, 2)));
        let mut sent = Vec::new();
        let refused = fill(&server, &mut sent);
        assert_eq!(refused.status, 503, "{resource}: {}", refused.body);
        assert!(refused.error().contains(text), "{resource}: {}", refused.error());
        assert!(refused.error().contains(remedy), "{resource}: {}", refused.error());
        let reasons = server.wait_ready(503);
        assert!(reasons.contains(text), "{resource}: {reasons}");
        limit(&server, resource, if resource == "nofile" { 1024 } else { 1 << 40 });
        server.wait_ready(200);
        let more = r#"["more"]"#.to_owned();
        wait_for("the spool to take requests again", || {
            server.connect().spool(&[&more]).status == 200
        });
        sent.push(more);
        server.mend_store();
        server.wait_spool_empty();
        assert!(contents(&server.stored()) == sorted(&sent), "{resource}: each exactly once");
        let stopped = server.stop();
        assert_eq!((stopped.status, stopped.lost), (0, 0), "{}", stopped.log_text());
    }
}
