//! `/tap` and `millrace tap`: goal, samples of payloads for whoever may see them, without secrets, and
//! without any way to hold up the server.
//!
//! Method: real servers under load, with clients that read, that do not read, and that go away; the
//! command with its output in a pipe.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, PATIENCE, Server, command, wait_for};

const ADMIN_TOKEN: &str = "correct-horse-battery-staple";
const CLIENT_TOKEN: &str = "client-token-of-ours";

/// A client that reads `/tap` line by line.
struct Watcher(BufReader<TcpStream>);

impl Watcher {
    /// Over HTTP/1.0, so that lines come as they are.
    fn open(server: &Server, query: &str, headers: &str) -> Watcher {
        let mut stream = TcpStream::connect(server.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("GET /tap{query} HTTP/1.0\r\nhost: localhost\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
            assert!(!line.starts_with("HTTP/") || line.contains(" 200 "), "{line}");
        }
        Watcher(reader)
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// The next line with a sample.
    fn sample(&mut self) -> Value {
        loop {
            let line = self.next();
            if line["tap"].is_null() {
                return line;
            }
        }
    }
}

#[test]
fn samples_are_shown_to_whoever_may_see_them_and_secrets_are_masked() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), format!("{CLIENT_TOKEN};name=shop\n")).unwrap();
    let settings = [
        ("TAP", "on"),
        ("ADMIN_TOKEN", ADMIN_TOKEN),
        ("TOKENS_FILE", "tokens"),
        ("SPOOL_DIR", "spool"),
    ];
    let server = Server::start_in(dir, &settings);
    for headers in ["", "authorization: Bearer wrong-wrong-wrong\r\n"] {
        let mut client = Client::connect(server.admin);
        client.send(format!("GET /tap HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n"));
        assert_eq!(client.reply().status, 401);
    }
    let bearer = format!("authorization: Bearer {ADMIN_TOKEN}\r\n");
    let mut watcher = Watcher::open(&server, "?rate=100", &bearer);
    assert_eq!(watcher.next(), json!({ "tap": { "rate": 100, "sent": 0, "dropped": 0 } }));
    let payload = json!({
        "id": 7, "note": "plain", "password": "hidden-1", "more": { "Api-Key": ["hidden-2"] },
        "sent_with": CLIENT_TOKEN, "admin": ADMIN_TOKEN, "header": "Bearer hidden-3",
    });
    let expected = json!({
        "id": 7, "note": "plain", "password": "***", "more": { "Api-Key": "***" },
        "sent_with": "***", "admin": "***", "header": "Bearer ***",
    });
    // On every way into the queue.
    for ack in ["queued", "spooled", "stored"] {
        std::thread::sleep(Duration::from_millis(250));
        let mut client = server.connect();
        let body = format!(r#"{{"data":[{payload}],"token":"{CLIENT_TOKEN}"}}"#);
        client.send(format!(
            "POST /payloads HTTP/1.1\r\nhost: x\r\nmillrace-ack: {ack}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert_eq!(client.reply().status, 200, "{ack}");
        let sample = watcher.sample();
        assert_eq!(sample["payload"], expected, "{ack}");
        assert_eq!(
            (&sample["core"], &sample["bytes"]),
            (&json!(0), &json!(payload.to_string().len()))
        );
    }
    // A long one, whose end is missing.
    std::thread::sleep(Duration::from_millis(250));
    let long = json!({ "id": 8, "text": "x".repeat(100), "more": "y".repeat(20_000), "token": "hidden-4" });
    let body = format!(r#"{{"data":[{long}],"token":"{CLIENT_TOKEN}"}}"#);
    assert_eq!(server.post(body).status, 200);
    let sample = watcher.sample();
    let cut = sample["cut"].as_str().unwrap();
    assert!(
        cut.starts_with(r#"{"id":8,"#) && cut.contains("\"more\":\"***\"") && !cut.contains("yyy"),
        "{cut}"
    );
    assert!(sample["bytes"].as_u64().unwrap() > 20_000 && sample["payload"].is_null());
}

#[test]
fn off_it_shows_nothing_and_on_a_public_address_only_with_a_token() {
    let server = Server::start(&[]);
    let off = server.admin("/tap");
    assert_eq!((off.status, off.body.contains("TAP=on")), (404, true), "{off:?}");
    let server = Server::start(&[("TAP", "on"), ("ADMIN_LISTEN", "0.0.0.0:0")]);
    let mut client = Client::connect(([127, 0, 0, 1], server.admin.port()).into());
    client.send("GET /tap HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(client.reply().status, 403);
    let server = Server::start(&[("TAP", "on")]);
    let mut client = Client::connect(server.admin);
    client.send("GET /tap HTTP/1.1\r\nhost: rebound.example\r\n\r\n");
    assert_eq!(client.reply().status, 403);
    assert_eq!(server.admin("/tap?rate=0").status, 400);
    assert_eq!(server.admin("/tap?rates=5").status, 400);
}

/// The spool takes a body before the disk has confirmed it, and may never: then it was not admitted.
#[test]
fn what_the_spool_refuses_is_not_called_admitted() {
    let server = Server::start(&[
        ("TAP", "on"),
        ("SPOOL_DIR", "spool"),
        ("FAULTS", "spool_sync=1"),
        ("LOG", "debug"),
    ]);
    let mut watcher = Watcher::open(&server, "?rate=100", "");
    let mut client = server.connect();
    // The first fails with its sync; later ones are refused at once while the disk fails.
    let mut post = |number: u32, ack: &str| {
        let body = format!(r#"{{"data":[{{"id":{number}}}]}}"#);
        let trace =
            format!("traceparent: 00-{number:032x}-{number:016x}-01\r\nmillrace-ack: {ack}\r\n");
        client.send(crate::support::request(body.as_bytes(), &trace));
        client.reply().status
    };
    assert_eq!([post(1, "spooled"), post(2, "spooled"), post(3, "queued")], [503, 503, 200]);
    assert_eq!(watcher.sample()["payload"]["id"], 3);
    let lines = || {
        let log = server.log();
        let of_trace = log.into_iter().filter(|line| line["traceparent"].is_string());
        of_trace.collect::<Vec<_>>()
    };
    wait_for("three lines", || lines().len() == 3);
    for (line, said) in lines().iter().zip(["refused", "refused", "admitted"]) {
        assert_eq!(line["message"], format!("request of a trace {said}"), "{line}");
        assert_eq!(line["why"].is_string(), said == "refused", "{line}");
    }
}

/// Posts for `time` as fast as one connection can, and returns how often.
fn load(server: &Server, time: Duration) -> u64 {
    let mut client = server.connect();
    let (end, mut posts) = (Instant::now() + time, 0);
    while Instant::now() < end {
        assert_eq!(client.post(r#"{"data":[{"id":1},{"id":2}]}"#).status, 200);
        posts += 1;
    }
    posts
}

#[test]
fn rates_are_kept_and_who_goes_away_is_forgotten() {
    let server = Server::start(&[("TAP", "on"), ("STORE", "null:")]);
    let watchers = || server.metrics().sum("millrace_tap_watchers");
    let mut slow = Watcher::open(&server, "?rate=5", "");
    let mut fast = Watcher::open(&server, "?rate=50", "");
    assert_eq!(watchers(), 2);
    let (began, mut posts) = (Instant::now(), 0);
    while posts < 100 || began.elapsed() < Duration::from_secs(2) {
        posts += load(&server, Duration::from_millis(500));
        assert!(began.elapsed() < PATIENCE, "{posts}");
    }
    let seconds = began.elapsed().as_secs_f64();
    let took = |watcher: &mut Watcher, rate: f64| {
        watcher.0.get_ref().set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut text = String::new();
        // The timeout is the end.
        let _ends_in_time = watcher.0.read_to_string(&mut text);
        let samples = text.lines().filter(|line| line.contains("\"payload\"")).count();
        // Fewer only where the machine did not run the client all the time, or not fast enough.
        let least = ((rate * seconds).min(posts as f64) / 2.5) as usize;
        let most = (rate * (seconds + 0.5)) as usize + 5;
        assert!((least..=most).contains(&samples), "{samples} of {least} to {most}:\n{text}");
    };
    took(&mut slow, 5.0);
    took(&mut fast, 50.0);
    drop(slow);
    wait_for("one is forgotten", || watchers() == 1);
    drop(fast);
    wait_for("so is the other", || watchers() == 0);
    // As many as there may be, and no more.
    let held: Vec<Watcher> = (0..4).map(|_| Watcher::open(&server, "", "")).collect();
    let full = server.admin("/tap");
    assert_eq!((full.status, full.body.as_str()), (503, "4 clients watch already\n"));
    drop(held);
    wait_for("there is room", || watchers() == 0);
    Watcher::open(&server, "", "").next();
    server.wait("it is gone", |m| m.sum("millrace_tap_watchers") == 0);
}

#[test]
fn who_does_not_read_holds_up_nobody_and_its_samples_are_dropped() {
    let server = Server::start(&[("TAP", "on"), ("STORE", "null:")]);
    let mut stream = TcpStream::connect(server.admin).unwrap();
    let size = 4096;
    socket2::SockRef::from(&stream).set_recv_buffer_size(size).unwrap();
    stream.write_all(b"GET /tap?rate=100 HTTP/1.0\r\nhost: localhost\r\n\r\n").unwrap();
    wait_for("it is there", || server.metrics().sum("millrace_tap_watchers") == 1);
    let payload = format!("{{\"text\":[{}1]}}", "1000,".repeat(800));
    let mut client = server.connect();
    let body = format!("{{\"data\":[{payload}]}}");
    // Kernel buffers take the first of them.
    let deadline = Instant::now() + 3 * PATIENCE;
    while server.metrics().sum("millrace_tap_samples_dropped_total") == 0 {
        assert!(Instant::now() < deadline, "{}", server.metrics().0);
        for _ in 0..100 {
            let began = Instant::now();
            assert_eq!(client.post(&body).status, 200);
            assert!(began.elapsed() < Duration::from_secs(10), "it waits for the tap");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let metrics = server.metrics();
    let (lines, limit) =
        (metrics.sum("millrace_tap_lines"), metrics.sum("millrace_tap_lines_limit"));
    assert!(lines <= limit / 4, "{lines} of {limit}");
    drop((stream, client));
    server.wait("it is forgotten", |m| m.sum("millrace_tap_watchers") == 0);
    server.wait_idle();
}

#[test]
fn the_command_prints_samples_until_its_reader_has_seen_enough() {
    let server = Server::start(&[("TAP", "on"), ("ADMIN_TOKEN", ADMIN_TOKEN)]);
    let dir = tempfile::tempdir().unwrap();
    let url = format!("http://{}", server.admin);
    let tap = |settings: &[(&str, &str)]| {
        let mut tap = command(dir.path(), &["tap", &url, "--rate", "100"], settings);
        tap.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let refused = tap(&[]).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("401") && said.contains("ADMIN_TOKEN"),
        "{said}"
    );

    let mut child = tap(&[("ADMIN_TOKEN", ADMIN_TOKEN)]);
    server.wait("it watches", |m| m.sum("millrace_tap_watchers") == 1);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for n in 0..3 {
        assert_eq!(server.post_payloads(&[&format!("{{\"n\":{n}}}")]).status, 200);
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["payload"], json!({ "n": n }));
        std::thread::sleep(Duration::from_millis(250));
    }
    drop(lines);
    wait_for("it has ended", || {
        server.post_payloads(&["1"]);
        std::thread::sleep(Duration::from_millis(100));
        child.try_wait().unwrap().is_some()
    });
    assert_eq!(child.wait().unwrap().code(), Some(0));
    server.wait("it is forgotten", |m| m.sum("millrace_tap_watchers") == 0);
}
