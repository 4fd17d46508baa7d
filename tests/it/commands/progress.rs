//! Progress of long commands: goal, whoever looks on sees share, rate and time left in one line that
//! goes again; a pipe sees nothing. Method: the binary's replays, slowed down by faults, on a
//! terminal and with pipes.

use std::fs::File;
use std::time::{Duration, Instant};

use crate::support::terminal::OnTerminal;
use crate::support::{Server, collection, numbered};

/// A server that has dead-lettered `count` payloads.
fn with_letters(count: usize) -> Server {
    let server = Server::start(&[("FAULTS", "object=1")]);
    assert_eq!(server.post(collection(&numbered(0..count))).status, 200);
    server.wait_idle();
    assert_eq!(server.dead_letters().len(), count);
    server
}

/// What was drawn over a line, each time.
fn drawn(shown: &str) -> Vec<&str> {
    shown.split("\r\u{1b}[K").filter(|line| line.starts_with("replaying: ")).collect()
}

#[test]
fn a_replay_on_a_terminal_shows_how_far_it_is() {
    // 64 payloads, 16 at a time, 400 ms each: 1.6 s.
    let server = with_letters(64);
    let mut command =
        server.command_beside(&["dead-letter", "replay"], &[("FAULTS", "delay=400ms")]);
    let out = server.path("out");
    let began = Instant::now();
    let replay = OnTerminal::start(&mut command, Some(File::create(&out).unwrap()));
    let (status, shown) = replay.ended();
    let took = began.elapsed();
    assert_eq!(status, Some(0), "{shown}");
    let lines = drawn(&shown);
    assert!(lines.len() >= 2, "{shown:?}");
    // At a bounded rate, whatever there is to count.
    let most = took.as_millis() / Duration::from_millis(250).as_millis() + 1;
    assert!(lines.len() as u128 <= most, "{} in {took:?}: {shown:?}", lines.len());
    for line in &lines {
        assert!(line.contains("%, ") && line.contains("/s, ") && line.len() <= 79, "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
    assert!(shown.ends_with("\r\u{1b}[K"), "the line goes: {shown:?}");
    let report = std::fs::read_to_string(out).unwrap();
    assert!(report.contains("64 of 64 dead letters stored"), "{report}");
}

#[test]
fn a_pipe_gets_no_progress_and_short_work_shows_none() {
    let server = with_letters(48);
    let replay = ["dead-letter", "replay"];
    let output = server.command_beside(&replay, &[("FAULTS", "delay=200ms")]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(!said.contains(&b'\r') && !said.contains(&0x1b), "{}", String::from_utf8_lossy(&said));
    let again = with_letters(3);
    let mut command = again.command_beside(&replay, &[("FAULTS", "")]);
    let began = Instant::now();
    let (status, shown) = OnTerminal::start(&mut command, None).ended();
    assert_eq!(status, Some(0), "{shown}");
    assert!(shown.contains("3 of 3 dead letters stored"), "{shown:?}");
    // A busy machine may make long work of it.
    let is_long = began.elapsed() >= Duration::from_millis(500);
    assert!(is_long || !shown.contains('\u{1b}'), "{shown:?}");
}

/// Messages and the line are both on stderr, and neither spoils the other.
#[test]
fn a_message_takes_the_place_of_the_line() {
    let server = with_letters(64);
    let faults = [("FAULTS", "seed=1,delay=300ms,object=0.5")];
    let mut command = server.command_beside(&["dead-letter", "replay"], &faults);
    let (status, shown) = OnTerminal::start(&mut command, None).ended();
    assert_eq!(status, Some(1), "{shown}");
    assert!(!drawn(&shown).is_empty(), "{shown:?}");
    let left: Vec<_> = shown.lines().filter(|line| line.contains("left in place")).collect();
    assert!(left.len() > 10, "{shown}");
    for line in left {
        let message = line.rsplit("\r\u{1b}[K").next().unwrap();
        assert!(!message.contains("replaying: "), "{line:?}");
    }
}

#[test]
fn a_spool_that_is_replayed_shows_it_too() {
    let settings = [
        ("ACK", "spooled"),
        ("SPOOL_DIR", "spool"),
        ("SPOOL_SEGMENT", "4MiB"),
        ("NODE_ID", "node"),
        ("FAULTS", "transient=1"),
    ];
    let server = Server::start(&settings);
    assert_eq!(server.post(collection(&numbered(0..64))).status, 200);
    let mut replay = server.command_beside(&["spool", "replay"], &[("FAULTS", "delay=400ms")]);
    let _killed = server.kill();
    let (status, shown) = OnTerminal::start(&mut replay, None).ended();
    assert_eq!(status, Some(0), "{shown}");
    assert!(drawn(&shown).len() >= 2, "{shown:?}");
    assert!(shown.contains("64 of 64 spooled payloads stored"), "{shown}");
}
