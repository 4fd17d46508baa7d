//! Goal: no body holds the core while it is parsed, whatever its shape, and each gets its one
//! status.
//!
//! Method: bodies of every shape that is dear or long for the parser, plain and compressed, posted
//! again and again on 64 connections with a good client beside them. They are as long as this
//! build, which is not optimised, takes in a second or two. No time is measured here; unit tests
//! count the bytes of every step, in bodies of 1 MiB.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::support::{Client, Metrics, Server, collection, contents, numbered, request, sorted};

const MIB: usize = 1 << 20;

/// Connections of the attackers, and the threads that share them.
const ATTACKERS: usize = 64;
const THREADS: usize = 4;

/// How long each shape is posted.
const ATTACK_TIME: Duration = Duration::from_millis(300);

/// What the shapes need besides the defaults: all attackers' bodies fit in memory at once, a body
/// may have as many payloads as it has room for, and those of all attackers whose bodies are
/// accepted fit in the queue, which takes long to drain in a debug build.
const SETTINGS: &[(&str, &str)] = &[
    ("STORE", "null:"),
    ("MAX_LENGTH", "2MiB"),
    ("MAX_QUEUE", "1000000"),
    ("MAX_QUEUE_BYTES", "1GiB"),
];

/// Name, content type, body and the one right status.
type Shape = (&'static str, &'static str, Vec<u8>, u16);

/// A content type that says nothing.
const PLAIN: &str = "application/x-www-form-urlencoded";
const NDJSON: &str = "application/x-ndjson";

/// `before`, then `piece` as often as fits in `length` bytes, then `after`.
fn body(length: usize, before: &str, piece: &str, after: &str) -> Vec<u8> {
    let times = (length - before.len() - after.len()) / piece.len();
    format!("{before}{}{after}", piece.repeat(times)).into_bytes()
}

fn shapes(length: usize) -> Vec<Shape> {
    let data = r#"{"data":["#;
    let deep = format!("{}{},", "[".repeat(125), "]".repeat(125));
    let mut bad_end = body(length, r#"{"data":[""#, "é", r#""]}"#);
    let end = bad_end.len() - 4;
    bad_end[end] = 0xff;
    let event = r#"{"a":["b","c"],"d":1.5}"#;
    let event_line = event.to_owned() + "\n";
    let collections = vec![
        ("second data", body(length, data, "1,", r#"1],"data":[]}"#), 400),
        ("brackets outside data", body(length, r#"{"x":["#, "[],", r#"[]],"data":[]}"#), 200),
        ("numbers, then garbage", body(length, data, "1,", "1]}x"), 400),
        ("never closed", body(length, r#"{"x":"#, "[", ""), 400),
        ("deep nesting", body(length, data, &deep, "1]}"), 200),
        ("escapes", body(length, r#"{"data":[""#, r"\n", r#""]}"#), 200),
        ("a bad escape at the end", body(length, r#"{"data":[""#, r"\n", r#"\x"]}"#), 400),
        ("one long string", body(length, r#"{"data":[""#, "x", r#""]}"#), 200),
        ("one long number", body(length, data, "7", "]}"), 200),
        ("keys", body(length, r#"{"data":[{"#, r#""k":1,"#, r#""k":1}]}"#), 200),
        ("brackets in strings", body(length, r#"{"data":[["#, r#""}]","#, r#"1]]}"#), 200),
        ("blanks", body(length, r#"{"data":["#, " ", "1]}"), 200),
        ("an invalid byte at the end", bad_end, 400),
        ("a long token", body(length, r#"{"data":[],"token":""#, "t", r#""}"#), 400),
        ("lines, then garbage", body(length, r#"{"x":["#, "1,\n", "x"), 400),
    ];
    let arrays = vec![
        ("an array of numbers", body(length, "[", "1234567,", "1]"), 200),
        ("an array with a bad end", body(length, "[", "1,", "]"), 400),
        ("an array, then another", body(length, "[", "[],", "1][]"), 400),
        ("blanks before an array", body(length, "", " ", "[1]"), 200),
        ("a deep array", body(length, "", "[", ""), 400),
    ];
    let lines = vec![
        ("short lines", body(length, "", "1234567\n", ""), 200),
        ("one-byte lines, the last one bad", body(length, "", "1\n", "x"), 400),
        ("one-byte lines, two values on the last", body(length, "", "1\n", "1 1"), 400),
        ("empty lines", body(length, "", "\n", ""), 200),
        ("empty lines, then a bad one", body(length, "", "\r\n", "]"), 400),
        ("blank lines", body(length, "", " \t\r\n", "1"), 200),
        ("events on lines", body(length, "", &event_line, event), 200),
        ("events on lines, the last one cut", body(length, "", &event_line, "{\"a\":"), 400),
        ("brackets on lines", body(length, "", "[[],{}]\n", "{}"), 200),
        ("values without lines", body(length, "", "[]", "\n"), 400),
        ("one line of blanks", body(length, "1", " ", ""), 200),
        ("a value over all lines", body(length, "[", "1,\n", "1]"), 400),
        ("a string with a line feed at its end", body(length, "\"", "x", "\n\""), 400),
        ("a long number on a line", body(length, "", "7", "\n"), 200),
        ("commas on a line", body(length, "", "1,", "\n"), 400),
    ];
    let with_type = |content_type, shapes: Vec<(&'static str, Vec<u8>, u16)>| {
        shapes.into_iter().map(move |(name, body, status)| (name, content_type, body, status))
    };
    let plain = with_type(PLAIN, collections).chain(with_type("application/json", arrays));
    plain.chain(with_type(NDJSON, lines)).collect()
}

/// Posts `attack` on all attackers' connections until `time` is over, with a good client beside
/// them. Every answer must be `status`, and the good client's 200.
fn beside(server: &Server, name: &str, attack: &[u8], status: u16, time: Duration) {
    let (is_over, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut clients: Vec<Client> =
                    (0..ATTACKERS / THREADS).map(|_| server.connect()).collect();
                while !is_over.load(Relaxed) {
                    clients.iter_mut().for_each(|client| client.send(attack));
                    for client in &mut clients {
                        assert_eq!(client.reply().status, status, "{name}");
                        answered.fetch_add(1, Relaxed);
                    }
                }
            });
        }
        let (mut good, began) = (server.connect(), Instant::now());
        let mut sent = 0;
        while began.elapsed() < time || answered.load(Relaxed) < ATTACKERS as u64 || sent < 10 {
            let reply = good.post(r#"{"data":[1,{"good":true}]}"#);
            assert_eq!(reply.status, 200, "the good client beside {name}: {}", reply.error());
            sent += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        is_over.store(true, Relaxed);
    });
}

#[test]
fn a_good_client_is_served_beside_bodies_of_every_shape() {
    let server = Server::start(SETTINGS);
    let mut is_plain = false;
    for (name, content_type, body, status) in shapes(96 << 10) {
        // In turn, because what is parsed is the same.
        is_plain = !is_plain;
        let content_type = format!("content-type: {content_type}\r\n");
        let attack = match is_plain {
            true => request(&body, &content_type),
            false => {
                let zstd = zstd::bulk::compress(&body, 3).unwrap();
                request(&zstd, &format!("content-encoding: zstd\r\n{content_type}"))
            }
        };
        beside(&server, name, &attack, status, ATTACK_TIME);
    }
    server.wait_idle();
}

#[test]
fn a_longest_body_of_64_mib_does_not_stop_others() {
    let server = Server::start(&[
        ("STORE", "null:"),
        ("MAX_LENGTH", "64MiB"),
        ("MAX_BODY_BYTES", "256MiB"),
        ("MAX_QUEUE_BYTES", "256MiB"),
    ]);
    let length = 64 * MIB;
    for (name, content_type, body, status) in [
        ("too many payloads", PLAIN, body(length, r#"{"data":["#, "1,", r#"1],"data":[]}"#), 413),
        ("one string", PLAIN, body(length, r#"{"data":[""#, "x", r#""]}"#), 200),
        ("unknown members", PLAIN, body(length, r#"{"x":["#, "\"0123456789abcdef\",", "x"), 400),
        ("too many lines", NDJSON, body(length, "", "1\n", "x"), 413),
        ("empty lines, then a bad one", NDJSON, body(length, "", "\n", "x"), 400),
    ] {
        let attack = zstd::bulk::compress(&body, 1).unwrap();
        let mut attacker = server.connect();
        attacker.stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let headers = format!("content-encoding: zstd\r\ncontent-type: {content_type}\r\n");
        attacker.send(request(&attack, &headers));
        let mut good = server.connect();
        for _ in 0..20 {
            assert_eq!(good.post(r#"{"data":[1]}"#).status, 200, "beside {name}");
        }
        assert_eq!(attacker.reply().status, status, "{name}");
    }
    server.wait_idle();
}

/// What a request costs that is a few bytes long and a large body.
fn small_bomb() -> Vec<u8> {
    let bomb = zstd::bulk::compress(&body(MIB, "", " ", "x"), 19).unwrap();
    request(&bomb, "content-encoding: zstd\r\n")
}

#[test]
fn pipelined_bombs_do_not_overtake_a_large_body_that_waits() {
    // A client that does not run for long finds all of them served before it sends its last byte.
    assert!((0..4).any(|_| is_served_among_bombs()), "it was served after all of them each time");
}

/// Whether a body whose last byte came when bombs were being refused was served before the last of
/// them.
fn is_served_among_bombs() -> bool {
    const BOMBS: u64 = 200;
    let server = Server::start(&[("STORE", "null:"), ("MAX_LENGTH", "2MiB")]);
    let large = request(&body(100 << 10, r#"{"data":[""#, "x", r#""]}"#), "");
    let (last, most) = large.split_last().unwrap();
    let (mut good, mut bomber) = (server.connect(), server.connect());
    good.send(most);
    bomber.send(small_bomb().repeat(BOMBS as usize));
    let refused = |metrics: &Metrics| metrics.requests(400);
    server.wait("the bombs are being refused", |metrics| refused(metrics) > 0);
    good.send([*last]);
    assert_eq!(good.reply().status, 200);
    let before = refused(&server.metrics());
    for _ in 0..BOMBS {
        assert_eq!(bomber.reply().status, 400);
    }
    drop((good, bomber));
    server.wait_idle();
    before < BOMBS
}

#[test]
fn a_body_that_is_too_large_once_decompressed_leaves_its_connection_open() {
    let server = Server::start(&[("STORE", "null:"), ("MAX_LENGTH", "512KiB")]);
    let mut client = server.connect();
    for _ in 0..2 {
        client.send(small_bomb());
        let reply = client.reply();
        assert_eq!((reply.status, reply.header("connection")), (413, None), "{reply:?}");
        assert_eq!(client.post(r#"{"data":[1]}"#).status, 200);
    }
    // One that announces too much is not read.
    client
        .send("POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 9223372036854775808\r\n\r\n");
    let reply = client.reply();
    assert_eq!((reply.status, reply.header("connection")), (413, Some("close")), "{reply:?}");
    drop(client);
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_connection_panics_total"), 0);
}

#[test]
fn more_payloads_than_the_queue_holds_are_refused_whatever_follows() {
    let server = Server::start(&[("MAX_QUEUE", "1000")]);
    for tail in ["]}", "],\"data\":[]}", "", "]}x"] {
        let large = body(MIB - 100, r#"{"data":["#, "1,", &format!("1{tail}"));
        let reply = server.post(large);
        assert_eq!(reply.status, 413, "{tail}");
        let error = reply.error();
        assert!(error.contains("more payloads than MAX_QUEUE (1000) could ever hold"), "{error}");
    }
    server.wait_idle();
    assert!(server.stored().is_empty());
}

#[test]
fn a_large_request_waits_for_room_without_its_turn() {
    let settings = [
        ("MAX_WORKERS", "1"),
        ("MAX_QUEUE", "3"),
        ("ENQUEUE_WAIT", "60s"),
        ("RETRY_BASE", "5ms"),
        ("RETRY_MAX", "50ms"),
    ];
    let server = Server::start(&settings);
    server.break_store();
    let filler = numbered(0..4);
    assert_eq!(server.post(collection(&filler[..1])).status, 200);
    server.wait("the worker has it", |m| m.sum("millrace_put_retries_total") > 0);
    assert_eq!(server.post(collection(&filler[1..])).status, 200);
    let large: Vec<String> =
        (4..7).map(|n| format!(r#"{{"id":{n},"x":"{}"}}"#, "x".repeat(40_000))).collect();
    let mut waiting = server.connect();
    waiting.send(request(format!("{{\"data\":[{}]}}", large.join(" ,\n")).as_bytes(), ""));
    server.wait("the large one waits", |metrics| metrics.sum("millrace_room_waiters") == 1);
    // It holds neither its turn nor the scratch: another large body is refused meanwhile.
    let refused = server.post(body(MIB / 2, r#"{"data":[""#, "x", r#"\x"]}"#));
    assert_eq!(refused.status, 400);
    assert_eq!(server.metrics().sum("millrace_room_waiters"), 1);
    server.mend_store();
    assert_eq!(waiting.reply().status, 200);
    drop(waiting);
    server.wait_idle();
    let all: Vec<String> = filler.into_iter().chain(large).collect();
    assert_eq!(contents(&server.stored()), sorted(&all));
}
