//! Goal: whatever becomes of the log's reader, the server serves, keeps what it acknowledged and
//! stops in time; lines that are lost are counted, and said so once somebody reads again.
//!
//! Method: the binary with a standard error of every kind that can refuse or block, under a load
//! that makes it log from the cores, panics included; its commands with a standard output of the
//! same kinds.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use serde_json::Value;

use crate::support::front::free_address;
use crate::support::{
    Client, Metrics, PATIENCE, Server, collection, command, dead_letters, kill_command, numbered,
    run, wait_for, wrap,
};

/// A server whose log this test does not read to find its addresses.
struct Deaf {
    child: Child,
    ingest: SocketAddr,
    admin: SocketAddr,
    dir: tempfile::TempDir,
}

impl Deaf {
    fn start(settings: &[(&str, &str)], stderr: impl FnOnce(&mut Command)) -> Deaf {
        let dir = tempfile::tempdir().unwrap();
        let (ingest, admin) = (free_address(), free_address());
        let (listen, admin_listen) = (ingest.to_string(), admin.to_string());
        let mut all = vec![
            ("LISTEN", listen.as_str()),
            ("ADMIN_LISTEN", admin_listen.as_str()),
            ("CORES", "0"),
            ("DRAIN_TIMEOUT", "25s"),
        ];
        all.extend_from_slice(settings);
        let mut command = command(dir.path(), &[], &all);
        stderr(&mut command);
        let mut deaf = Deaf { child: command.spawn().unwrap(), ingest, admin, dir };
        wait_for("the server to be ready", || {
            assert_eq!(deaf.child.try_wait().unwrap(), None, "did not start");
            deaf.get("/readyz").is_some_and(|text| text.contains("ready"))
        });
        deaf
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut client = Client::try_connect(self.admin)?;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
        Some(client.reply().body)
    }

    fn metrics(&self) -> Metrics {
        Metrics(self.get("/metrics").unwrap())
    }

    fn dropped(&self) -> u64 {
        let metrics = self.metrics().0;
        let name = "millrace_log_lines_dropped_total ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().parse().unwrap()
    }

    fn post(&self, payloads: &[String]) -> u16 {
        Client::connect(self.ingest).post(collection(payloads)).status
    }

    fn wait(&self, what: &str, done: impl Fn(&Metrics) -> bool) {
        wait_for(what, || done(&self.metrics()));
    }

    /// SIGTERM; the exit status, which must come within `DRAIN_TIMEOUT`.
    fn stop(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(kill_command().arg(&pid).status().unwrap().success());
        let signalled = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(signalled.elapsed() < Duration::from_secs(24), "the log holds up the stop");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}

/// Fills what `end` writes to and leaves it blocking or not.
fn fill(end: &OwnedFd, blocking: bool) {
    let flags = fcntl_getfl(end).unwrap();
    fcntl_setfl(end, flags | OFlags::NONBLOCK).unwrap();
    for size in [4096, 1] {
        while rustix::io::write(end, &vec![b'.'; size]).is_ok() {}
    }
    if blocking {
        fcntl_setfl(end, flags).unwrap();
    }
}

/// A pipe that is full, and its reader.
fn full_pipe(blocking: bool) -> (OwnedFd, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    fill(&writer, blocking);
    (writer, reader)
}

/// Runs the command with standard streams as the shell's `redirections` say.
fn redirected(command: &mut Command, redirections: &str) {
    wrap(command, &["sh", "-c", &format!(r#"{redirections}; exec "$@""#), "sh"]);
}

/// A terminal whose user has pressed ^S, and the side that the user sees.
fn stopped_terminal() -> (OwnedFd, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap();
    let terminal = File::options().write(true).open(name.to_str().unwrap()).unwrap();
    rustix::io::write(&user, b"\x13").unwrap();
    (terminal.into(), user)
}

/// Every kind; whether lines get lost at once.
const KINDS: [(&str, bool); 8] = [
    ("closed", false),
    ("the reader left", true),
    ("a full pipe", false),
    ("a full non-blocking pipe", false),
    ("a full disk", true),
    ("beyond the file size limit", true),
    ("a stopped terminal", false),
    ("a terminal that hung up", true),
];

/// Gives the command a standard error of that kind; what is returned must live as long.
fn give(kind: &str, command: &mut Command) -> Option<OwnedFd> {
    match kind {
        "closed" => redirected(command, "exec 2>&-"),
        "a full disk" => redirected(command, "exec 2>/dev/full"),
        // 8 GiB, in units of 512 bytes: a lower limit refuses the start.
        "beyond the file size limit" => {
            redirected(command, "ulimit -f 16777216; truncate -s 8G log; exec 2>>log");
        }
        "the reader left" => {
            let (_, writer) = std::io::pipe().unwrap();
            command.stderr(writer);
        }
        "a full pipe" | "a full non-blocking pipe" => {
            let (writer, reader) = full_pipe(kind == "a full pipe");
            command.stderr(writer);
            return Some(reader.into());
        }
        "a stopped terminal" | "a terminal that hung up" => {
            let (terminal, user) = stopped_terminal();
            command.stderr(terminal);
            return (kind == "a stopped terminal").then_some(user);
        }
        _ => unreachable!("{kind}"),
    }
    None
}

#[test]
fn nothing_that_happens_to_stderr_ends_or_stalls_a_server() {
    for ((kind, loses), format) in KINDS.into_iter().zip(["text", "json"].into_iter().cycle()) {
        // Every put panics on the core; its payload goes to the dead letter.
        let settings = [("FAULTS", "panic=1"), ("LOG", "debug"), ("LOG_FORMAT", format)];
        let mut held = None;
        let mut server = Deaf::start(&settings, |command| held = give(kind, command));
        for ids in numbered(0..40).chunks(4) {
            assert_eq!(server.post(ids), 200, "{kind}");
        }
        server.wait("the dead letters", |m| m.sum("millrace_payloads_dead_lettered_total") == 40);
        assert_eq!(server.metrics().sum("millrace_worker_panics_total"), 40, "{kind}");
        if loses {
            wait_for(kind, || server.dropped() > 0);
        } else {
            assert_eq!(server.dropped(), 0, "{kind}");
        }
        assert_eq!(server.stop(), Some(0), "{kind}");
        assert_eq!(dead_letters(&server.dir.path().join("dead-letter")).len(), 40, "{kind}");
    }
}

/// More than the queue holds, from the cores, while nobody reads; then somebody does.
#[test]
fn a_reader_that_comes_back_is_told_how_many_lines_were_dropped() {
    let (writer, reader) = full_pipe(true);
    // Every payload is lost, and named in a line of its own.
    let settings = [("FAULTS", "poison=object"), ("DEAD_LETTER_MAX", "1"), ("LOG_FORMAT", "json")];
    let mut server = Deaf::start(&settings, |command| {
        command.stderr(writer);
    });
    let mut client = Client::connect(server.ingest);
    let started = Instant::now();
    let mut posted = 0;
    while server.dropped() == 0 {
        assert!(started.elapsed() < 2 * PATIENCE, "the queue is never full");
        let payloads = vec![r#""poison""#; 2000];
        posted += 2000 * u64::from(client.post(collection(&payloads)).status == 200);
        server.wait("all to be lost", |m| m.sum("millrace_payloads_lost_total") == posted);
    }
    let mut lines = BufReader::new(reader).lines();
    let report = lines.find_map(|line| {
        let line = line.unwrap();
        // What filled the pipe stands before the first line.
        let line: Value = serde_json::from_str(line.trim_start_matches('.')).expect("whole lines");
        line.get("dropped").is_some().then_some(line)
    });
    let report = report.unwrap();
    assert_eq!(report["level"], "WARN");
    assert!(report["dropped"].as_u64().unwrap() > 0, "{report}");
    // Somebody reads from now on, so the last words must come.
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).last());
    drop(client);
    assert_eq!(server.stop(), Some(1), "payloads were lost");
    let last = rest.join().unwrap().unwrap();
    assert!(last.contains(r#""message":"stopped""#), "{last}");
}

/// A FIFO keeps its writer when a reader goes, and gets another one.
#[test]
fn the_next_reader_of_a_fifo_gets_the_next_lines() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // Opened for both, so that neither open waits for the other.
    let reader = File::options().read(true).write(true).open(&fifo).unwrap();
    let writer = File::options().write(true).open(&fifo).unwrap();
    let settings = [("FAULTS", "panic=1"), ("LOG_FORMAT", "text")];
    let mut server = Deaf::start(&settings, |command| {
        command.stderr(writer);
    });
    drop(reader);
    assert_eq!(server.post(&numbered(0..5)), 200);
    wait_for("lines to be lost", || server.dropped() > 5);
    let lost = server.dropped();
    let reader = File::options().read(true).write(true).open(&fifo).unwrap();
    let lines = BufReader::new(reader).lines();
    assert_eq!(server.post(&numbered(5..6)), 200);
    // What the first reader left in the pipe comes first.
    let mut lines = lines.map(Result::unwrap);
    let report = lines.find(|line| line.contains(" WARN log lines were dropped")).unwrap();
    let dropped: u64 = report.rsplit_once("dropped=").unwrap().1.parse().unwrap();
    assert!(dropped >= lost, "{report}");
    let next = lines.find(|line| line.contains("ERROR a thread panicked")).unwrap();
    assert!(next.contains(r#"thread="millrace-core"#), "{next}");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_panic_is_one_line_of_the_log_in_its_format() {
    let server = Server::start(&[("FAULTS", "panic=1"), ("LOG", "off,millrace::control=info")]);
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    server.wait_idle();
    wait_for("the panic in the log", || server.logged("a thread panicked"));
    let log = server.log();
    let line = log.iter().find(|line| line["message"] == "a thread panicked").unwrap();
    assert_eq!(line["level"], "ERROR");
    assert!(line["thread"].as_str().unwrap().starts_with("millrace-core"), "{line}");
    assert!(line["at"].as_str().unwrap().starts_with("src/store/faulty.rs:"), "{line}");
    assert_eq!(server.stop().status, 0);
}

/// Leaves dead letters and a spool with payloads.
fn leftovers() -> Arc<tempfile::TempDir> {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let settings = [("SPOOL_DIR", "spool"), ("SPOOL_MAX", "128MiB"), ("FAULTS", "poison=object")];
    let server = Server::start_in(dir.clone(), &settings);
    assert_eq!(server.post_payloads(&[r#""poison""#; 50]).status, 200);
    server.wait("letters", |m| m.sum("millrace_payloads_dead_lettered_total") == 50);
    server.break_store();
    assert_eq!(server.spool(&numbered(0..50)).status, 200);
    server.kill();
    dir
}

/// Runs the command with a standard output that refuses; its status and what it complains of.
fn with_stdout(dir: &Path, args: &[&str], stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    let settings = [
        ("LISTEN", "127.0.0.1:0"),
        ("ADMIN_LISTEN", "127.0.0.1:0"),
        ("SPOOL_DIR", "spool"),
        ("SPOOL_MAX", "128MiB"),
        ("STORE", "null:"),
    ];
    let mut command = command(dir, args, &settings);
    let output = command.stdout(stdout).stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn commands_whose_reader_left_end_with_their_ordinary_status() {
    let dir = leftovers();
    // An export that is cut short is not whole, which its status says.
    for (args, status) in [
        (&["check"][..], 0),
        (&["check", "--store", "file:/dev/null/x"], 2),
        (&["dead-letter", "ls"], 0),
        (&["spool", "ls"], 0),
        (&["spool", "verify"], 0),
        (&["spool", "export"], 1),
        (&["spool", "replay"], 0),
        (&["dead-letter", "replay", "--any-store"], 0),
        (&["--help"], 0),
    ] {
        let (_, gone) = std::io::pipe().unwrap();
        let (ended, text) = with_stdout(dir.path(), args, gone);
        assert_eq!(ended, Some(status), "{args:?}: {text}");
        assert!(!text.contains("panicked"), "{args:?}: {text}");
    }
}

#[test]
fn commands_that_cannot_write_say_so() {
    let dir = leftovers();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for args in [
        &["check"][..],
        &["--help"],
        &["--version"],
        &["check", "--store", "file:/dev/null/x"],
        &["dead-letter", "ls"],
        &["spool", "ls"],
        &["spool", "verify"],
        &["spool", "export"],
        &["spool", "replay"],
        &["dead-letter", "replay", "--any-store"],
    ] {
        let (ended, text) = with_stdout(dir.path(), args, full());
        assert_eq!(ended, Some(2), "{args:?}: {text}");
        let says = "cannot write to standard output: No space left on device";
        assert!(text.contains(says), "{args:?}: {text}");
    }
}

/// What is said before there is a log, and by commands, also has no reader.
#[test]
fn complaints_that_nobody_hears_do_not_change_the_status() {
    let dir = tempfile::tempdir().unwrap();
    for (args, settings) in [
        (&[][..], &[("MAX_WORKERS", "0")][..]),
        (&["check"], &[("LOG", "nonsense=loud")]),
        (&["serve", "extra"], &[]),
        (&["spool", "ls", "none"], &[]),
        (&["dead-letter", "replay"], &[("STORE", "file:/dev/null/x")]),
    ] {
        let heard = run(dir.path(), args, settings);
        assert_eq!(heard.status.code(), Some(2), "{args:?}");
        for kind in ["closed", "the reader left", "a full disk"] {
            let mut command = command(dir.path(), args, settings);
            give(kind, &mut command);
            let ended = command.stdout(Stdio::null()).status().unwrap();
            assert_eq!(ended.code(), Some(2), "{args:?} with {kind}");
        }
    }
}

/// The text that a pipe's reader gets is what was written, each line whole, also from several cores
/// at once.
#[test]
fn lines_of_all_threads_arrive_whole_and_in_order() {
    let server = Server::start(&[("FAULTS", "panic=1"), ("CORES", "all"), ("LOG", "debug")]);
    for ids in numbered(0..60).chunks(1) {
        assert_eq!(server.post(collection(ids)).status, 200);
    }
    server.wait_idle();
    let stopped = server.stop();
    assert!(stopped.log.iter().all(Value::is_object), "{}", stopped.log_text());
    let panics = stopped.log.iter().filter(|line| line["message"] == "a thread panicked");
    assert_eq!(panics.count(), 60);
    let times: Vec<_> =
        stopped.log.iter().map(|line| line["timestamp"].as_str().unwrap()).collect();
    assert!(times.first() < times.last());
    assert_eq!(stopped.log.last().unwrap()["message"], "stopped");
}
