//! The start as people and services see it: goal, on a terminal one readable page, elsewhere one
//! line with the same facts; colours only where they are wanted.
//!
//! Method: the binary on a terminal of its own, and with a pipe.

use std::net::TcpListener;

use crate::support::terminal::OnTerminal;
use crate::support::{Server, command};

const OWN: [(&str, &str); 5] = [
    ("LISTEN", "127.0.0.1:0"),
    ("ADMIN_LISTEN", "127.0.0.1:0"),
    ("CORES", "0"),
    ("NODE_ID", "n"),
    ("BIND_WAIT", "0"),
];

fn start(dir: &std::path::Path, settings: &[(&str, &str)]) -> OnTerminal {
    let kept = OWN.iter().filter(|(name, _)| settings.iter().all(|(set, _)| set != name));
    let settings: Vec<_> = kept.chain(settings).copied().collect();
    OnTerminal::start(&mut command(dir, &[], &settings), None)
}

#[test]
fn a_terminal_gets_a_page_and_no_log_lines() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[("FAULTS", "delay=1ms")]);
    let page = server.wait_shown("\n\u{1b}[33mwarning\u{1b}[0m FAULTS: ");
    let page = {
        // The remedy comes with it.
        let _ = server.wait_shown("unset FAULTS");
        page + &server.shown()
    };
    for part in [
        "\u{1b}[1mmillrace ",
        " is serving\u{1b}[0m, started in ",
        "POST http://127.0.0.1:",
        "/metrics, /healthz, /readyz",
        "file:./data, one object per payload, named like",
        "queued: in this host's memory, uploaded in the background,",
        "./dead-letter, up to 1.0 GiB",
        "16384 connections; requests up to 1.0 MiB, 64.0 MiB in progress",
        "10000 payloads and 64.0 MiB in the queue; 32 uploads at a time",
        "on all cores, with every limit reached",
        "mend: unset FAULTS outside tests",
    ] {
        assert!(page.contains(part), "{part} in\n{page}");
    }
    for absent in [" INFO ", " WARN ", "mend=", "timestamp"] {
        assert!(!page.contains(absent), "{absent} in\n{page}");
    }
    server.terminate();
    let (status, shown) = server.ended();
    assert_eq!(status, Some(0), "{shown}");
    assert!(shown.contains("INFO"), "the stop is logged: {shown}");
}

#[test]
fn no_color_means_none_in_the_page_and_the_log() {
    for (set, has_colours) in [
        (&[("NO_COLOR", "1")][..], false),
        (&[("NO_COLOR", "0")], false),
        // The convention: empty is not set.
        (&[("NO_COLOR", "")], true),
        (&[("TERM", "dumb")], false),
        (&[("TERM", "xterm")], true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let server = start(dir.path(), set);
        server.wait_shown("with every limit reached");
        server.terminate();
        let (status, shown) = server.ended();
        assert_eq!(status, Some(0), "{shown}");
        assert!(shown.contains("stopped"), "{shown}");
        let (page, log) = shown.split_at(shown.find("stopping").unwrap());
        for part in [page, log] {
            assert_eq!(part.contains('\u{1b}'), has_colours, "{set:?}: {part}");
        }
    }
}

#[test]
fn a_start_that_fails_on_a_terminal_says_why_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    let (status, shown) = start(dir.path(), &[("STORE", "file:./file")]).ended();
    assert_eq!(status, Some(2), "{shown}");
    assert!(shown.contains("FAIL  STORE"), "{shown}");
    assert!(shown.contains("mend: a file is in the way: ls -ld ./file"), "{shown}");
    assert!(shown.contains("not started: see the findings above"), "{shown}");
    // What comes after the checks of the host does not hide their warnings.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, shown) = start(dir.path(), &[("LISTEN", &address), ("STORE", "null:")]).ended();
    assert_eq!(status, Some(2), "{shown}");
    assert!(shown.contains("warn  STORE"), "{shown}");
    assert!(shown.contains("is taken by another listener"), "{shown}");
}

/// There will be no page that shows them.
#[test]
fn a_stop_before_the_page_shows_the_warnings() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let settings = [("LISTEN", address.as_str()), ("STORE", "null:"), ("BIND_WAIT", "5m")];
    let server = start(dir.path(), &settings);
    let before = server.wait_shown("is taken, retrying");
    assert!(!before.contains("confirms every payload"), "{before}");
    server.terminate();
    let (status, shown) = server.ended();
    assert_eq!(status, Some(0), "{shown}");
    assert!(shown.contains("warn  STORE"), "{shown}");
    assert!(shown.contains("null: confirms every payload and keeps none"), "{shown}");
    assert_eq!(shown.matches("warn  STORE").count(), 1, "{shown}");
    assert!(shown.trim_end().ends_with("stopped before it served"), "{shown}");
}

/// JSON was asked for, or fewer lines: then a terminal changes nothing.
#[test]
fn a_format_or_a_level_that_was_chosen_holds_on_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[("LOG_FORMAT", "json"), ("STORE", "null:")]);
    let shown = server.wait_shown("a 200 means");
    assert!(shown.contains("\"listen\":\"http://127.0.0.1:"), "{shown}");
    assert!(shown.contains("\"mend\":") && !shown.contains("is serving"), "{shown}");
    let quiet = start(dir.path(), &[("LOG", "warn"), ("STORE", "null:")]);
    let shown = quiet.wait_shown("null: confirms every payload");
    assert!(shown.contains("WARN"), "{shown}");
    quiet.terminate();
    let (_, shown) = quiet.ended();
    assert!(!shown.contains("serving"), "{shown}");
}

#[test]
fn a_service_logs_one_line_with_the_same_facts() {
    let server = Server::start(&[("STORE", "null:"), ("NODE_ID", "n")]);
    let log = server.log();
    let summaries: Vec<_> = log.iter().filter(|line| line.get("listen").is_some()).collect();
    assert_eq!(summaries.len(), 1, "{log:#?}");
    let summary = summaries[0];
    let facts: [(&str, serde_json::Value); 8] = [
        ("admin", format!("http://{}", server.admin).into()),
        ("body_bytes_max", (1 << 20).into()),
        ("connections_per_core", 16_384.into()),
        ("dead_letters", "./dead-letter".into()),
        ("dead_letter_bytes_max", (1 << 30).into()),
        ("drain_timeout_ms", 6_000.into()),
        ("spool", "off".into()),
        ("tokens", "none asked for".into()),
    ];
    for (field, value) in facts {
        assert_eq!(summary[field], value, "{field}: {summary}");
    }
    assert!(summary["memory_bytes_max"].as_u64().unwrap() > 128 << 20, "{summary}");
    let warnings: Vec<_> = log.iter().filter(|line| line["level"] == "WARN").collect();
    assert_eq!(summary["warnings"], warnings.len(), "{warnings:?}");
    let of_store = |line: &&&serde_json::Value| {
        line["mend"].as_str().is_some_and(|remedy| remedy.contains("set STORE"))
    };
    assert_eq!(warnings.iter().filter(of_store).count(), 1, "{warnings:?}");
}
