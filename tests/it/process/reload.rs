//! Goal: SIGHUP takes `TOKENS_FILE` and `LOG` anew, all or nothing each, names what else has
//! changed, and disturbs nobody; a changed `TOKENS_FILE` is taken without a signal.
//!
//! Method: files changed under a running server, good, bad and never to be read; requests before
//! and after.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, Server, wait_for};

/// Waits until the reload has said `text`.
fn reload(server: &Server, text: &str) {
    let before = server.count_logged(text);
    server.signal("HUP");
    wait_for(text, || server.count_logged(text) > before);
}

fn status(server: &Server, token: &str) -> u16 {
    server.post(format!(r#"{{"token":"{token}","data":[1]}}"#)).status
}

fn write(dir: &Path, name: &str, text: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), text).unwrap();
}

#[test]
fn tokens_are_taken_anew_whole_or_not_at_all() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    write(dir.path(), "tokens", "old\nboth\n");
    let settings = [("TOKENS_FILE", "tokens"), ("CORES", "all")];
    let server = Server::start_in(dir.clone(), &settings);
    let mut kept = server.connect();
    let mut post = |token: &str| kept.post(format!(r#"{{"token":"{token}","data":[]}}"#)).status;
    assert_eq!((post("old"), post("new"), post("both")), (200, 401, 200));

    write(dir.path(), "tokens", "both\nnew\nmore\n");
    reload(&server, "TOKENS_FILE tokens: 3 tokens are accepted from now on");
    // On a connection from before as on others, and on every core.
    assert_eq!((post("old"), post("new"), post("both")), (401, 200, 200));
    for _ in 0..20 {
        assert_eq!((status(&server, "old"), status(&server, "new")), (401, 200));
    }

    for (bad, says) in [
        (&b""[..], "no token"),
        (b"# none\n", "no token"),
        (b"fine\nhush hush\n", "line 2"),
        (b"fine\n\xff\n", "line 2"),
    ] {
        write(dir.path(), "tokens", bad);
        let errors = server.count_logged(r#""level":"ERROR""#);
        reload(&server, "the 3 tokens read before stay accepted");
        let log = server.log();
        let error = log.iter().rfind(|line| line["level"] == "ERROR").unwrap().to_string();
        assert!(error.contains(says) && error.contains("TOKENS_FILE tokens"), "{error}");
        assert_eq!(server.count_logged(r#""level":"ERROR""#), errors + 1, "one line");
        assert_eq!((status(&server, "old"), status(&server, "new")), (401, 200), "{says}");
    }
    std::fs::remove_file(dir.path().join("tokens")).unwrap();
    reload(&server, "the 3 tokens read before stay accepted");
    server.wait_logged("TOKENS_FILE tokens cannot be read: No such file");
    assert!(!server.logged("hush"), "a log never shows a token");
    drop(kept);
    assert_eq!(server.stop().status, 0);
}

#[test]
fn a_changed_file_is_taken_without_a_signal() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    write(dir.path(), "tokens", "old\nboth\n");
    let server = Server::start_in(dir.clone(), &[("TOKENS_FILE", "tokens"), ("CORES", "all")]);
    let failures = |server: &Server| {
        let metrics = server.metrics();
        ["millrace_tokens_reload_failures_total", "millrace_tokens_reload_failing"]
            .map(|name| metrics.sum(name))
    };
    let mut kept = server.connect();
    let mut post = |token: &str| kept.post(format!(r#"{{"token":"{token}","data":[]}}"#)).status;
    write(dir.path(), "tokens", "both\nnew\nmore\n");
    wait_for("the new set", || post("new") == 200);
    assert_eq!((post("old"), post("both")), (401, 200));
    wait_for("its line", || server.logged("3 tokens are accepted from now on"));

    // A bad one: one line, a figure and a hint until it is mended.
    write(dir.path(), "tokens", "both\nhush hush\n");
    wait_for("the refusal", || server.logged("the 3 tokens read before stay accepted"));
    assert!(server.logged("line 2 holds a blank") && !server.logged("hush"));
    assert_eq!(failures(&server), [1, 1]);
    let ready = server.admin("/readyz");
    assert_eq!(ready.status, 200);
    assert!(ready.body.contains("TOKENS_FILE is refused"), "{}", ready.body);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(server.count_logged("read before stay accepted"), 1);
    assert_eq!((post("old"), post("new"), post("both")), (401, 200, 200));
    // Replaced by a rename, as a deployment does it.
    write(dir.path(), "fresh", "newer;name=n\n");
    std::fs::rename(dir.path().join("fresh"), dir.path().join("tokens")).unwrap();
    wait_for("the mended set", || post("newer") == 200);
    server.wait_logged("1 tokens are accepted from now on, after 3: more than half are gone");
    assert_eq!((failures(&server), post("both")), ([1, 0], 401));
    assert_eq!(server.admin("/readyz").body, "ready\n");
    drop(kept);
    assert_eq!(server.stop().status, 0);
}

#[test]
fn tokens_that_no_header_may_hold_are_a_warning_where_only_headers_count() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    write(dir.path(), "tokens", "alpha\nβ\n");
    let settings = [("TOKENS_FILE", "tokens"), ("TOKEN_IN_BODY", "off")];
    let server = Server::start_in(dir.clone(), &settings);
    server.wait_logged("1 of its lines have a token that is not ASCII");
    write(dir.path(), "tokens", "alpha\nβ\nγ\n");
    reload(&server, "TOKENS_FILE tokens: 2 of its lines have a token that is not ASCII");
    assert!(!server.logged("γ"), "a log never shows a token");
    write(dir.path(), "tokens", "alpha\nbeta\n");
    reload(&server, "2 tokens are accepted from now on");
    assert_eq!(server.count_logged("not ASCII"), 2);
    assert_eq!(server.stop().status, 0);
}

/// What is no reason against traffic is said beside one that is.
#[test]
fn refused_tokens_are_named_by_a_server_that_is_not_ready_too() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    write(dir.path(), "tokens", "old\n");
    let settings = [
        ("TOKENS_FILE", "tokens"),
        ("READY_STORE_GRACE", "100ms"),
        ("RETRY_BASE", "1ms"),
        ("RETRY_MAX", "10ms"),
        ("MAX_QUEUE", "1"),
        ("MAX_WORKERS", "1"),
    ];
    let server = Server::start_in(dir.clone(), &settings);
    write(dir.path(), "tokens", "hush hush\n");
    reload(&server, "the 1 tokens read before stay accepted");
    server.break_store();
    assert_eq!(status(&server, "old"), 200);
    let reasons = server.wait_ready(503);
    assert!(reasons.contains("the store has been failing"), "{reasons}");
    assert!(reasons.contains("TOKENS_FILE is refused since its last change"), "{reasons}");
    wait_for("a full queue", || status(&server, "old") == 503);
    let reasons = server.wait_ready(503);
    assert!(reasons.contains("core 0: the queue is full"), "{reasons}");
    server.mend_store();
    write(dir.path(), "tokens", "old\n");
    reload(&server, "1 tokens are accepted from now on");
    server.wait_ready(200);
    server.wait_idle();
    assert_eq!(server.stop().status, 0);
}

/// A million lines are read beside the requests, which see the old tokens or the new.
#[test]
fn a_million_tokens_are_taken_while_requests_are_served() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    write(dir.path(), "tokens", "old\nboth\n");
    let server = Server::start_in(dir.clone(), &[("TOKENS_FILE", "tokens")]);
    let mut text: String = (2..1_000_000).map(|n| format!("sha256={n:064x}\n")).collect();
    text += "both;name=n\nnew\n";
    write(dir.path(), "fresh", text);
    std::fs::rename(dir.path().join("fresh"), dir.path().join("tokens")).unwrap();
    let mut client = server.connect();
    let mut post = |token: &str| client.post(format!(r#"{{"token":"{token}","data":[]}}"#)).status;
    // On a busy machine a debug build takes its time, at a low priority.
    let started = Instant::now();
    while post("new") != 200 {
        assert_eq!(post("both"), 200);
        assert!(started.elapsed() < 5 * PATIENCE, "not in time: {:#?}", server.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((post("old"), post("both")), (401, 200));
    assert_eq!(server.metrics().sum("millrace_tokens"), 1_000_000);
    drop(client);
    assert_eq!(server.stop().status, 0);
}

#[test]
fn a_file_that_cannot_be_read_to_its_end_holds_nobody_up() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    write(dir.path(), "tokens", "old\n");
    let server = Server::start_in(dir.clone(), &[("TOKENS_FILE", "tokens")]);
    let path = dir.path().join("tokens");
    std::fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    reload(&server, "SIGHUP: reloading");
    for _ in 0..100 {
        server.signal("HUP");
    }
    assert_eq!((status(&server, "old"), status(&server, "new")), (200, 401));
    assert_eq!(server.admin("/readyz").status, 200);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored), (0, 1), "{}", stopped.log_text());
}

/// A server with `toml` as its configuration file.
fn with_file(toml: &str, settings: &[(&str, &str)]) -> (Arc<tempfile::TempDir>, Server) {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    write(dir.path(), "m.toml", toml);
    let server = Server::start_by(dir.clone(), settings, |command| {
        command.args(["--config", "m.toml"]);
    });
    (dir, server)
}

/// Lines may take a while.
fn wait_debug(server: &Server) {
    wait_for("lines of DEBUG", || logs_debug(server));
}

fn logs_debug(server: &Server) -> bool {
    let before = server.count_logged(r#""level":"DEBUG""#);
    // What glommio, hyper and the control executor say at debug.
    for _ in 0..3 {
        assert_eq!(server.post_payloads(&["1"]).status, 200);
        let mut client = crate::support::Client::connect(server.admin);
        client.send("not http at all\r\n\r\n");
        while client.try_reply().is_some() {}
    }
    std::thread::sleep(Duration::from_millis(200));
    server.count_logged(r#""level":"DEBUG""#) > before
}

#[test]
fn the_filter_is_taken_from_the_file_and_other_changes_are_named() {
    let (dir, server) = with_file("log = \"info\"\nmax_workers = 3\n", &[]);
    assert!(!logs_debug(&server));
    write(dir.path(), "m.toml", "log = \"debug\"\nmax_workers = 4\nmax_queue = 50\n");
    reload(&server, "LOG is debug from now on");
    wait_for("the names", || server.logged("not in effect before: MAX_WORKERS, MAX_QUEUE"));
    wait_debug(&server);
    // Said once more at the next, for it is still so; the filter is in force.
    let line = "LOG is debug from now on";
    let said = server.count_logged(line);
    reload(&server, "not in effect before: MAX_WORKERS, MAX_QUEUE");
    assert_eq!(server.count_logged(line), said);

    for (bad, says) in [
        ("log = \"info\"\nmax_workers = 0\n", "MAX_WORKERS"),
        ("log = \"info,x=loud\"\n", "LOG"),
        ("log = \"info\"\nno_such_setting = 1\n", "no_such_setting"),
        ("log = \n", "is not TOML"),
    ] {
        write(dir.path(), "m.toml", bad);
        reload(&server, "every setting stays as it is");
        server.wait_logged(says);
        wait_debug(&server);
    }
    // Back to the default.
    write(dir.path(), "m.toml", "max_workers = 3\n");
    reload(&server, "LOG is info from now on");
    assert!(!logs_debug(&server));
    assert_eq!(server.stop().status, 0);
}

#[test]
fn flags_and_the_environment_go_before_the_file_also_then() {
    let (dir, server) = with_file("max_workers = 3\n", &[("LOG", "info"), ("MAX_WORKERS", "5")]);
    write(dir.path(), "m.toml", "log = \"debug\"\nmax_workers = 4\n");
    reload(&server, "SIGHUP: reloading");
    assert!(!logs_debug(&server));
    assert!(!server.logged("needs a restart"), "{:#?}", server.log());
    assert_eq!(server.stop().status, 0);
}
