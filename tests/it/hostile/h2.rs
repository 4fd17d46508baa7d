//! Goal: whatever clients do with HTTP/2 costs others nothing and leaves nothing behind.
//!
//! Method: tables of attacks, each beside a good client that speaks HTTP/2 too, on a server with short
//! deadlines. `tests/it/h2/limits.rs` has what one connection may do, by its numbers; here are the attacks
//! that need several, or that go on for as long as they are let.

use std::net::TcpStream;
use std::time::Duration;

use super::support::{ATTACK_TIME, Attack, Outcome, Raid, beside_over_h2 as beside, nothing_left};
use super::tls::{ends, reset};
use crate::support::h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, H2Client, HEADERS, INITIAL_WINDOW_SIZE, PREFACE,
    SETTINGS, WINDOW_UPDATE, block, frame, post, settings,
};
use crate::support::{Client, PATIENCE, Server, gzip};

/// What a server with much to do may take on top: the allocator keeps what was used once.
const MEMORY_BOUND: u64 = 64 << 20;

const NOTHING: &[u8] = br#"{"data":[]}"#;

fn start(more: &[(&str, &str)]) -> Server {
    let short = [
        ("H2", "all"),
        ("STORE", "null:"),
        ("HEADER_TIMEOUT", "700ms"),
        ("BODY_TIMEOUT", "700ms"),
        ("IDLE_TIMEOUT", "2s"),
    ];
    Server::start(&[&short, more].concat())
}

/// Each of `attacks` beside a good client, all on one server.
fn raid(server: &Server, attacks: &[Attack]) {
    let before = server.resident();
    let outcomes: Vec<Outcome> =
        attacks.iter().map(|attack| beside(server, attack, ATTACK_TIME)).collect();
    let grown = server.resident().saturating_sub(before);
    assert!(grown < MEMORY_BOUND, "{grown} bytes more than before");
    nothing_left(server, &outcomes);
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_connection_panics_total"), 0);
    for gauge in ["millrace_h2_connections", "millrace_h2_requests", "millrace_body_bytes"] {
        assert_eq!(metrics.sum(gauge), 0, "{gauge}");
    }
}

fn closed(server: &Server, reason: &str) -> u64 {
    server.metrics().sum_where("millrace_h2_closed_total", &format!("reason=\"{reason}\""))
}

/// Preface and settings.
fn opening(pairs: &[(u16, u32)]) -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &settings(pairs))].concat()
}

fn head(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(&post(&[])))
}

/// A request without payloads.
fn whole(stream: u32) -> Vec<u8> {
    [head(stream, 0), frame(DATA, END_STREAM, stream, NOTHING)].concat()
}

/// Requests on the odd streams from `first` on.
fn many(first: u32, count: u32, one: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(|number| one(first + 2 * number)).collect()
}

/// Each turn `bytes` on a new connection, which is held with as many others as it may be.
fn hold_after(raid: &mut Raid, bytes: &[u8]) {
    let mut held: Vec<Client> = Vec::new();
    while raid.turn() {
        if held.len() >= raid.connections {
            held.remove(0);
        }
        if let Some(mut client) = raid.connect() {
            client.try_send(bytes);
            held.push(client);
        }
    }
}

/// Sends what `piece` gives for a turn on each connection in turn, and begins another where it is over.
fn trickle(raid: &mut Raid, begin: &[u8], piece: impl Fn(u32) -> Vec<u8>) {
    let open = |raid: &Raid| {
        let mut client = raid.connect()?;
        client.try_send(begin).then_some((client, 0))
    };
    let mut held: Vec<_> = (0..raid.connections).map(|_| open(raid)).collect();
    let mut turn = 0;
    while raid.turn() {
        let at = turn % held.len();
        let sent = held[at].as_mut().is_some_and(|(client, pieces)| {
            *pieces += 1;
            client.try_send(piece(*pieces - 1))
        });
        if !sent {
            held[at] = open(raid);
        }
        turn += 1;
    }
}

/// Each turn `bytes` on a new connection that is then `left`.
fn come_and(raid: &mut Raid, bytes: impl Fn() -> Vec<u8>, leave: impl Fn(TcpStream)) {
    while raid.turn() {
        if let Some(mut client) = raid.connect() {
            client.try_send(bytes());
            leave(client.stream);
        }
    }
}

/// Says that nothing more comes, and waits for the end.
fn half_close(stream: TcpStream) {
    let _or_it_is_closed = stream.shutdown(std::net::Shutdown::Write);
    ends(&stream);
}

fn silence(raid: &mut Raid) {
    hold_after(raid, &opening(&[]));
}

fn half_prefaces(raid: &mut Raid) {
    hold_after(raid, &PREFACE[..20]);
}

fn slow_heads(raid: &mut Raid) {
    let long = frame(HEADERS, END_HEADERS, 1, &[b'x'; 16_000]);
    trickle(raid, &[&opening(&[]), &long[..20]].concat(), |_| b"x".to_vec());
}

fn slow_continuations(raid: &mut Raid) {
    let begun = frame(HEADERS, 0, 1, &block(&post(&[])));
    let more = frame(CONTINUATION, 0, 1, &block(&[("x", "y")]));
    trickle(raid, &[opening(&[]), begun].concat(), |turn| {
        more[turn as usize % more.len()..][..1].to_vec()
    });
}

fn slow_bodies(raid: &mut Raid) {
    let begun = frame(DATA, 0, 1, br#"{"data":["#);
    let begin = [opening(&[]), head(1, 0), begun].concat();
    trickle(raid, &begin, |_| frame(DATA, 0, 1, b"1,"));
}

/// As many streams as there may be, none of which goes on; the connection is busy otherwise.
fn hoarded_streams(raid: &mut Raid) {
    let begin = [opening(&[]), many(1, 99, |stream| head(stream, 0))].concat();
    trickle(raid, &begin, |turn| whole(201 + 2 * turn));
}

fn closed_windows(raid: &mut Raid) {
    let begin = opening(&[(INITIAL_WINDOW_SIZE, 0)]);
    trickle(raid, &begin, |turn| whole(1 + 2 * turn));
}

/// A byte of each answer at a time.
fn narrow_windows(raid: &mut Raid) {
    let begin = [opening(&[(INITIAL_WINDOW_SIZE, 0)]), many(1, 50, whole)].concat();
    trickle(raid, &begin, |turn| {
        frame(WINDOW_UPDATE, 0, 1 + 2 * (turn % 50), &1_u32.to_be_bytes())
    });
}

#[test]
fn connections_that_are_slow_or_silent() {
    let attacks = [
        Attack { name: "silence", connections: 64, per_second: 200, run: silence },
        Attack { name: "half prefaces", connections: 64, per_second: 200, run: half_prefaces },
        Attack { name: "slow heads", connections: 8, per_second: 100, run: slow_heads },
        Attack {
            name: "slow continuations",
            connections: 8,
            per_second: 400,
            run: slow_continuations,
        },
        Attack { name: "slow bodies", connections: 8, per_second: 100, run: slow_bodies },
        Attack { name: "hoarded streams", connections: 16, per_second: 100, run: hoarded_streams },
        Attack { name: "closed windows", connections: 8, per_second: 200, run: closed_windows },
        Attack { name: "narrow windows", connections: 8, per_second: 200, run: narrow_windows },
    ];
    // The deadlines are at work, which a busy machine may not show within one raid.
    let shown = (0..4).any(|_| {
        let server = start(&[]);
        raid(&server, &attacks);
        server.metrics().requests(408) > 0 && closed(&server, "header_timeout") > 0
    });
    assert!(shown);
}

/// Whole requests for as long as the server takes them, and no answer is read.
fn never_read(raid: &mut Raid) {
    trickle(raid, &opening(&[]), |turn| many(1 + 40 * turn, 20, whole));
}

/// More than may be in progress at a time: the others are refused.
fn refused_streams(raid: &mut Raid) {
    trickle(raid, &opening(&[]), |turn| many(1 + 300 * turn, 150, |stream| head(stream, 0)));
}

fn requests_and_close(raid: &mut Raid) {
    let all = [opening(&[]), many(1, 20, whole)].concat();
    come_and(raid, || all.clone(), drop);
}

fn requests_and_reset(raid: &mut Raid) {
    let all = [opening(&[]), many(1, 20, whole)].concat();
    come_and(raid, || all.clone(), reset);
}

/// Bodies whose ends are cut off.
fn half_requests_and_close(raid: &mut Raid) {
    let body = |stream| [head(stream, 0), frame(DATA, 0, stream, br#"{"data":[1,2]}"#)].concat();
    let all = [opening(&[]), many(1, 20, body)].concat();
    come_and(raid, || all.clone(), drop);
}

fn half_requests_and_half_close(raid: &mut Raid) {
    let body = |stream| [head(stream, 0), frame(DATA, 0, stream, br#"{"data":[1,2]}"#)].concat();
    let all = [opening(&[]), many(1, 20, body)].concat();
    come_and(raid, || all.clone(), half_close);
}

#[test]
fn connections_that_are_dropped_or_never_read() {
    let attacks = [
        Attack { name: "unread answers", connections: 4, per_second: 100, run: never_read },
        Attack { name: "refused streams", connections: 4, per_second: 40, run: refused_streams },
        Attack { name: "requests, close", connections: 1, per_second: 60, run: requests_and_close },
        Attack { name: "requests, RST", connections: 1, per_second: 60, run: requests_and_reset },
        Attack {
            name: "half requests, close",
            connections: 1,
            per_second: 60,
            run: half_requests_and_close,
        },
        Attack {
            name: "half requests, half close",
            connections: 1,
            per_second: 60,
            run: half_requests_and_half_close,
        },
    ];
    raid(&start(&[]), &attacks);
}

fn garbage(raid: &mut Raid) {
    let all = [opening(&[]), vec![0x17; 3_000]].concat();
    come_and(raid, || all.clone(), half_close);
}

/// Frames of random kinds, flags, streams and content.
fn random_frames(raid: &mut Raid) {
    let rng = std::cell::RefCell::new(fastrand::Rng::with_seed(16));
    let random = || {
        let mut rng = rng.borrow_mut();
        let mut all = opening(&[]);
        for _ in 0..rng.usize(1..30) {
            let content: Vec<u8> = (0..rng.usize(0..40)).map(|_| rng.u8(..)).collect();
            let stream = 2 * rng.u32(0..6) + u32::from(rng.bool());
            let sent = match rng.u8(0..4) {
                0 => frame(rng.u8(0..12), rng.u8(..), stream, &content),
                1 => head(stream, rng.u8(0..2)),
                2 => frame(DATA, rng.u8(0..2), stream, NOTHING),
                _ => whole(stream),
            };
            all.extend(sent);
        }
        for _ in 0..rng.usize(0..3) {
            let at = rng.usize(PREFACE.len()..all.len());
            all[at] = rng.u8(..);
        }
        all
    };
    come_and(raid, random, half_close);
}

/// A few bytes that name a long field again and again.
fn bombs_of_fields(raid: &mut Raid) {
    let mut bytes = block(&post(&[]));
    bytes.extend_from_slice(&[0x40, 1, b'a', 127, 0x81, 0x06]);
    bytes.extend_from_slice(&[b'b'; 127 + 0x81 - 128 + 128 * 0x06]);
    bytes.extend(std::iter::repeat_n(0x80 | 62, 14_000));
    let all = [opening(&[]), frame(HEADERS, END_HEADERS | END_STREAM, 1, &bytes)].concat();
    come_and(raid, || all.clone(), half_close);
}

fn bombs_of_bodies(raid: &mut Raid) {
    let body = gzip(&[b' '; 2 << 20]);
    let head = block(&post(&[("content-encoding", "gzip")]));
    let bomb = |stream| {
        [frame(HEADERS, END_HEADERS, stream, &head), frame(DATA, END_STREAM, stream, &body)]
            .concat()
    };
    let all = [opening(&[]), many(1, 4, bomb)].concat();
    come_and(raid, || all.clone(), half_close);
}

/// What a request of HTTP/1.1 could hide another one in.
fn smuggled(raid: &mut Raid) {
    let heads: [&[(&str, &str)]; 8] = [
        &[("content-length", "3")],
        &[("content-length", "400")],
        &[("content-length", "14"), ("content-length", "13")],
        &[("content-length", "+14")],
        &[("transfer-encoding", "chunked")],
        &[("x", "y\r\ntransfer-encoding: chunked")],
        &[("x\r\n", "y")],
        &[(":path", "/payloads HTTP/1.1\r\nx: y")],
    ];
    while raid.turn() {
        let Some(client) = raid.connect() else { continue };
        client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = H2Client::silent(client.stream);
        let mut sent = client.try_send(opening(&[]));
        for (number, more) in heads.iter().enumerate() {
            let stream = 2 * number as u32 + 1;
            let head = block(&post(more));
            let body = frame(DATA, END_STREAM, stream, br#"{"data":[1,2]}"#);
            let request = [frame(HEADERS, END_HEADERS, stream, &head), body].concat();
            sent = sent && client.try_send(request);
        }
        let _or_it_is_closed = client.stream.shutdown(std::net::Shutdown::Write);
        client.end();
    }
}

#[test]
fn content_that_is_not_what_it_says() {
    let attacks = [
        Attack { name: "garbage", connections: 1, per_second: 60, run: garbage },
        Attack { name: "random frames", connections: 1, per_second: 100, run: random_frames },
        Attack { name: "bombs of fields", connections: 1, per_second: 40, run: bombs_of_fields },
        Attack { name: "bombs of bodies", connections: 1, per_second: 10, run: bombs_of_bodies },
        Attack { name: "smuggled requests", connections: 1, per_second: 40, run: smuggled },
    ];
    let server = start(&[("MAX_LENGTH", "1MiB")]);
    raid(&server, &attacks);
    assert!(closed(&server, "protocol") > 0);
}

/// More connections than may speak it, from one address: the good client has HTTP/1.1 meanwhile.
#[test]
fn a_crowd_of_connections_keeps_nobody_from_http_1() {
    let server = start(&[("H2_CONNECTIONS", "8"), ("CORES", "0")]);
    let crowd = Attack { name: "a crowd", connections: 64, per_second: 200, run: silence };
    let outcome = super::support::beside_for(&server, &crowd, ATTACK_TIME);
    server.wait("some to be closed", |_| closed(&server, "full") > 0);
    nothing_left(&server, &[outcome]);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(H2Client::connect(server.ingest).post(r#"{"data":[1]}"#).status, 200);
}
