//! Goal: what a client of HTTP/2 leaves undone ends by a deadline, and what it does too often ends its
//! connection, while others are served.
//!
//! Method: a table of deadlines; a table of floods, each on a connection of its own beside a good
//! client, with the reason for which it must be closed and soon; bodies that
//! stall on a connection that is otherwise busy.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::requests::start;
use crate::support::h2::{
    CANCEL, COMPRESSION_ERROR, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM,
    H2Client, HEADERS, INITIAL_WINDOW_SIZE, NO_ERROR, PING, PRIORITY, RST_STREAM, SETTINGS,
    StreamEnd, WINDOW_UPDATE, block, frame, post, settings,
};
use crate::support::{PATIENCE, Server, wait_for};

const GOOD: &str = r#"{"data":[1]}"#;

fn closed(server: &Server, reason: &str) -> u64 {
    server.metrics().sum_where("millrace_h2_closed_total", &format!("reason=\"{reason}\""))
}

/// That `client` is closed `least` after `since`, which is before the server began to wait, and not
/// much later.
fn closes_after(client: &mut H2Client, since: Instant, least: Duration) -> Option<u32> {
    let end = client.end();
    let taken = since.elapsed();
    let most = least + Duration::from_secs(10);
    assert!(taken >= least.mul_f64(0.8) && taken < most, "{taken:?} instead of {least:?}");
    end
}

#[test]
fn a_connection_without_a_request_ends_and_pings_do_not_prolong_it() {
    let server = start(&[("HEADER_TIMEOUT", "1s"), ("IDLE_TIMEOUT", "2s")]);
    let second = Duration::from_secs(1);
    let mut since = Instant::now();
    let mut silent = H2Client::connect(server.ingest);
    assert_eq!(closes_after(&mut silent, since, second), Some(NO_ERROR));
    let mut idle = H2Client::connect(server.ingest);
    since = Instant::now();
    assert_eq!(idle.post(GOOD).status, 200);
    assert_eq!(closes_after(&mut idle, since, 2 * second), Some(NO_ERROR));
    let mut pings = H2Client::connect(server.ingest);
    assert_eq!(pings.post(GOOD).status, 200);
    since = Instant::now();
    while pings.went_away.is_none() && pings.try_send(frame(PING, 0, 0, &[0; 8])) {
        pings.next_frame();
        std::thread::sleep(Duration::from_millis(50));
    }
    let taken = since.elapsed();
    assert!(taken > second && taken < 20 * second, "open for {taken:?}");
    assert_eq!(pings.went_away, Some(NO_ERROR));
    // Half of a preface.
    since = Instant::now();
    let mut begun = H2Client::silent(std::net::TcpStream::connect(server.ingest).unwrap());
    begun.send(b"PRI * HTTP/2.0\r\n\r\nSM");
    closes_after(&mut begun, since, second);
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_h2_closed_total"), 0, "nobody did wrong");
}

#[test]
fn a_head_that_is_not_complete_ends_the_connection() {
    let server = start(&[("HEADER_TIMEOUT", "1s")]);
    let whole = block(&post(&[]));
    let cases = [
        ("no end of the head", false, frame(HEADERS, END_STREAM, 5, &whole)),
        ("part of a frame", false, frame(HEADERS, END_HEADERS, 5, &whole)[..20].to_vec()),
        ("beside a request in progress", true, frame(HEADERS, END_STREAM, 5, &whole)),
        ("part of a frame's head", true, frame(HEADERS, END_HEADERS, 5, &whole)[..5].to_vec()),
    ];
    for (number, (name, busy, sends)) in cases.into_iter().enumerate() {
        let mut client = H2Client::connect(server.ingest);
        assert_eq!(client.post(GOOD).status, 200);
        if busy {
            client.head(&post(&[]), false);
        }
        let since = Instant::now();
        client.send(sends);
        let end = closes_after(&mut client, since, Duration::from_secs(1));
        assert_eq!(end, Some(ENHANCE_YOUR_CALM), "{name}");
        wait_for(name, || closed(&server, "header_timeout") == number as u64 + 1);
    }
    server.wait_idle();
}

#[test]
fn a_body_that_does_not_come_is_answered_and_others_of_its_connection_go_on() {
    let server = start(&[("BODY_TIMEOUT", "1s"), ("IDLE_TIMEOUT", "4s")]);
    let mut client = H2Client::connect(server.ingest);
    let late = client.head(&post(&[]), false);
    client.data(late, b"{", false);
    let since = Instant::now();
    let mut posted = 0;
    while since.elapsed() < Duration::from_millis(1_500) {
        assert_eq!(client.post(GOOD).status, 200);
        posted += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    let answer = client.answer(late);
    assert_eq!(answer.status, 408, "{}", answer.body);
    assert!(answer.body.contains("BODY_TIMEOUT"), "{}", answer.body);
    // Its stream is over, whatever comes on it.
    client.send(frame(DATA, END_STREAM, late, b"}"));
    assert_eq!(client.post(GOOD).status, 200);
    drop(client);
    server.wait_idle();
    let now = server.metrics();
    assert_eq!((now.requests(408), now.requests(200)), (1, posted + 1));
}

#[test]
fn an_answer_for_which_there_is_no_room_is_dropped() {
    let of_window = |window| {
        let server = start(&[("IDLE_TIMEOUT", "2s"), ("HEADER_TIMEOUT", "2s")]);
        // One that sends nothing more, and one that goes on.
        let mut client = H2Client::connect_with(server.ingest, &[(INITIAL_WINDOW_SIZE, window)]);
        let since = Instant::now();
        client.begin_post(GOOD, &[]);
        assert_eq!(closes_after(&mut client, since, Duration::from_secs(2)), Some(NO_ERROR));
        let mut client = H2Client::connect_with(server.ingest, &[(INITIAL_WINDOW_SIZE, window)]);
        let stalled: Vec<_> = (0..10).map(|_| client.begin_post(GOOD, &[])).collect();
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(3_400) {
            let stream = client.begin_post(GOOD, &[]);
            client.send(frame(WINDOW_UPDATE, 0, stream, &100_u32.to_be_bytes()));
            assert_eq!(client.answer(stream).status, 200);
            std::thread::sleep(Duration::from_millis(10));
        }
        for stream in &stalled {
            assert_eq!(client.end_of(*stream), StreamEnd::Reset(CANCEL), "{window}");
        }
        server.wait("all to be counted", |now| {
            now.sum("millrace_h2_answers_unread_total") == stalled.len() as u64
        });
    };
    // None at all, and a byte less than for the whole answer.
    let one_less = r#"{"accepted":1,"ack":"queued"}"#.len() as u32 - 1;
    std::thread::scope(|scope| {
        for window in [0, 1, one_less] {
            scope.spawn(move || of_window(window));
        }
    });
    let server = start(&[("IDLE_TIMEOUT", "2s"), ("HEADER_TIMEOUT", "2s")]);
    // A client that reads nothing at all from its socket is bounded by what the kernel takes.
    let mut deaf = H2Client::connect(server.ingest);
    deaf.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let head = block(&post(&[(":path", "/nope")]));
    for number in 0..200_000 {
        let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &head);
        if !deaf.try_send(bytes) {
            break;
        }
    }
    let open = server.metrics().sum("millrace_h2_requests");
    assert!(open <= 100, "{open}");
    drop(deaf);
    server.wait_idle();
}

/// How often a flood may go out before it is closed; what is on the way counts. One that is not closed
/// goes out 100,000 times, or 10,000 times if it is slow.
const SENT_MAX: u64 = 5_000;

/// A way to send too much of something.
struct Flood {
    name: &'static str,
    /// What begins it.
    begins: Vec<u8>,
    /// What is sent again and again; where it has stream 1, those that follow each other.
    again: Vec<Vec<u8>>,
    /// Reasons for which it may be closed: the library has bounds of its own.
    reasons: &'static [&'static str],
    /// Waits in between, so that each is seen by itself.
    slowly: bool,
}

fn floods() -> Vec<Flood> {
    let flood = |name, again: Vec<Vec<u8>>, reasons| Flood {
        name,
        begins: Vec::new(),
        again,
        reasons,
        slowly: false,
    };
    let head = block(&post(&[]));
    let open = frame(HEADERS, END_HEADERS, 1, &head);
    let whole = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&post(&[(":path", "/nope")])));
    let reset = frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
    let on_one = |name, again, reasons| Flood {
        begins: frame(HEADERS, END_HEADERS, 1, &head),
        ..flood(name, vec![again], reasons)
    };
    let either: &[&str] = &["resets", "protocol"];
    vec![
        // CVE-2023-44487.
        flood("rapid reset", vec![open.clone(), reset.clone()], either),
        Flood {
            slowly: true,
            // A busy machine sees several at once.
            ..flood("rapid reset, one by one", vec![open.clone(), reset.clone()], either)
        },
        Flood {
            slowly: true,
            ..flood("resets of answered requests", vec![whole, reset], &["resets"])
        },
        // CVE-2025-8671: what makes the server reset.
        flood(
            "made you reset, window of nothing",
            vec![open.clone(), frame(WINDOW_UPDATE, 0, 1, &[0; 4])],
            either,
        ),
        flood(
            "made you reset, window too large",
            vec![open.clone(), frame(WINDOW_UPDATE, 0, 1, &i32::MAX.to_be_bytes())],
            either,
        ),
        Flood {
            slowly: true,
            ..flood(
                "made you reset, one by one",
                vec![open, frame(WINDOW_UPDATE, 0, 1, &i32::MAX.to_be_bytes())],
                &["resets"],
            )
        },
        flood(
            "made you reset, data behind the end",
            vec![
                frame(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    1,
                    &block(&post(&[("millrace-ack", "stored")])),
                ),
                frame(DATA, 0, 1, b"x"),
            ],
            either,
        ),
        flood("pings", vec![frame(PING, 0, 0, &[0; 8])], &["frames"]),
        flood("answers to pings", vec![frame(PING, 1, 0, &[0; 8])], &["frames"]),
        flood(
            "settings",
            vec![frame(SETTINGS, 0, 0, &settings(&[(INITIAL_WINDOW_SIZE, 1)]))],
            &["frames"],
        ),
        flood("empty settings", vec![frame(SETTINGS, 0, 0, &[])], &["frames"]),
        flood(
            "long settings",
            vec![frame(SETTINGS, 0, 0, &settings(&[(INITIAL_WINDOW_SIZE, 1); 2_700]))],
            &["frames"],
        ),
        flood("priorities", vec![frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])], &["frames"]),
        flood("windows", vec![frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())], &["frames"]),
        flood("unknown frames", vec![frame(0x42, 0, 0, b"")], &["frames"]),
        flood("long unknown frames", vec![frame(0x42, 0, 0, &[0; 16_384])], &["frames"]),
        on_one("empty data", frame(DATA, 0, 1, b""), &["frames", "protocol"]),
        on_one("data that is padding", frame(DATA, 8, 1, &[3, 0, 0, 0]), &["frames", "protocol"]),
        Flood {
            begins: frame(HEADERS, 0, 1, &head),
            ..flood(
                "continuations",
                vec![frame(CONTINUATION, 0, 1, &block(&[("a", "b")]))],
                &["protocol"],
            )
        },
        Flood {
            begins: frame(HEADERS, 0, 1, &head),
            ..flood("empty continuations", vec![frame(CONTINUATION, 0, 1, b"")], &["protocol"])
        },
        Flood {
            begins: frame(HEADERS, 0, 1, &head),
            ..flood(
                "a head without an end",
                vec![frame(CONTINUATION, 0, 1, &block(&[("a", &"b".repeat(16_000))]))],
                &["protocol"],
            )
        },
    ]
}

/// Tells the good client to end when the test does.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Sends it until the server closes. How often it went out.
fn attack(server: &Server, flood: &Flood) -> (u64, Option<u32>) {
    let mut client = H2Client::connect(server.ingest);
    let mut opened = 0;
    if !flood.begins.is_empty() {
        client.send(&flood.begins);
    }
    let uses_streams = flood.again[0][5..9] == 1_u32.to_be_bytes()
        && flood.begins.is_empty()
        && flood.again.len() > 1;
    let mut sent = 0;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(60) {
        let mut bytes = Vec::new();
        for _ in 0..if flood.slowly { 1 } else { 20 } {
            for again in &flood.again {
                let mut one = again.clone();
                if uses_streams {
                    one[5..9].copy_from_slice(&(2 * opened as u32 + 1).to_be_bytes());
                }
                bytes.extend_from_slice(&one);
            }
            opened += 1;
        }
        if !client.try_send(bytes) {
            break;
        }
        sent = opened;
        // Time for the server to look at it.
        std::thread::sleep(Duration::from_millis(if flood.slowly { 1 } else { 2 }));
        if opened % 200 == 0 {
            // Not more at a time: a busy machine may not run the server for a while.
            assert_eq!(server.post(GOOD).status, 200);
        }
        if client.is_closed_by_now() {
            break;
        }
    }
    (sent, client.end())
}

#[test]
fn floods_end_and_the_good_client_beside_them_is_served() {
    let server = start(&[("STORE", "null:")]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _also_if_this_fails = Ended(&over);
        let good = scope.spawn(|| {
            let (mut client, mut served) = (H2Client::connect(server.ingest), 0_u64);
            while !over.load(Relaxed) {
                let answer = client.post(GOOD);
                assert_eq!(answer.status, 200, "{}", answer.body);
                served += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            served
        });
        for flood in floods() {
            let before: Vec<_> =
                flood.reasons.iter().map(|reason| closed(&server, reason)).collect();
            let (sent, went_away) = attack(&server, &flood);
            let name = flood.name;
            let after = || -> u64 {
                let closed = flood.reasons.iter().map(|reason| closed(&server, reason));
                closed.zip(&before).map(|(now, before)| now - before).sum()
            };
            wait_for(name, || after() == 1);
            // The words of a server that closes can be lost to a reset, as the client still sends.
            let is_known = went_away.is_none_or(|reason| reason != NO_ERROR);
            println!("{name}: {sent}, {went_away:?}");
            assert!(sent < SENT_MAX && is_known, "{name}: {sent}, {went_away:?}");
        }
        over.store(true, Relaxed);
        assert!(good.join().unwrap() > 100);
    });
    server.wait_idle();
    let now = server.metrics();
    for gauge in ["millrace_h2_connections", "millrace_h2_requests", "millrace_body_bytes"] {
        wait_for(gauge, || server.metrics().sum(gauge) == 0);
    }
    assert_eq!(now.sum("millrace_connection_panics_total"), 0);
}

#[test]
fn a_client_that_asks_for_much_at_a_usual_pace_is_no_flood() {
    let server = start(&[("STORE", "null:")]);
    let mut client = H2Client::connect(server.ingest);
    for round in 0..300_u32 {
        let stream = client.begin_post(GOOD, &[]);
        // As eager clients do for each answer.
        client.send(frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 1]));
        client.send(frame(WINDOW_UPDATE, 0, 0, &29_u32.to_be_bytes()));
        client.send(frame(PING, 0, 0, &[0; 8]));
        client.send(frame(PING, 1, 0, &[0; 8]));
        assert_eq!(client.answer(stream).status, 200, "{round}");
    }
    // All that are in progress are given up at once.
    for _ in 0..2 {
        let streams: Vec<_> = (0..100).map(|_| client.head(&post(&[]), false)).collect();
        wait_for("they are there", || server.metrics().sum("millrace_h2_requests") == 100);
        for stream in streams {
            client.send(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
        }
        wait_for("they are gone", || server.metrics().sum("millrace_h2_requests") == 0);
    }
    assert_eq!(client.post(GOOD).status, 200);
    let now = server.metrics();
    assert_eq!(
        (now.sum("millrace_h2_resets_total"), now.sum("millrace_h2_closed_total")),
        (200, 0)
    );
}

#[test]
fn whoever_gives_up_all_that_is_in_progress_is_no_flood() {
    // As many as may be, and what a proxy has of many clients.
    let proxy = [("TRUST", "127.0.0.0/8"), ("STORE", "null:")];
    let many = [("H2_STREAMS", "500"), ("STORE", "null:")];
    for (settings, streams, rounds) in [(many, 500, 2), (proxy, 100, 10)] {
        let server = start(&settings);
        let mut client = H2Client::connect(server.ingest);
        for _ in 0..rounds {
            let open: Vec<_> = (0..streams).map(|_| client.head(&post(&[]), false)).collect();
            wait_for("they are there", || server.metrics().sum("millrace_h2_requests") == streams);
            for stream in open {
                client.send(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
            }
            wait_for("they are gone", || server.metrics().sum("millrace_h2_requests") == 0);
        }
        assert_eq!(client.post(GOOD).status, 200);
        assert_eq!(server.metrics().sum("millrace_h2_closed_total"), 0);
    }
}

/// The library reads nothing while it cannot send, so the bodies of a client that reads nothing do not
/// grow: it is its own fault.
#[test]
fn bodies_of_a_client_that_reads_no_answers_give_way() {
    const LENGTH: usize = 200 << 10;
    let server = start(&[
        ("MAX_LENGTH", "256KiB"),
        ("MAX_BODY_BYTES", "8MiB"),
        ("STORE", "null:"),
        ("CORES", "0"),
    ]);
    let whole = [vec![b' '; LENGTH - GOOD.len()], GOOD.as_bytes().to_vec()].concat();
    let mut deaf = H2Client::connect(server.ingest);
    for _ in 0..40 {
        let stream = deaf.head(&post(&[]), false);
        deaf.data(stream, &whole[..LENGTH - 1], false);
    }
    deaf.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let head = block(&post(&[(":path", "/nope")]));
    let mut refused = Vec::new();
    for _ in 0..1_000 {
        refused.extend(frame(HEADERS, END_HEADERS | END_STREAM, deaf.new_stream(), &head));
    }
    let mut stream = 2 * 40 + 1;
    while deaf.try_send(&refused) {
        stream += 2_000;
        for (number, one) in refused.chunks_mut(9 + head.len()).enumerate() {
            one[5..9].copy_from_slice(&(stream + 2 * number as u32).to_be_bytes());
        }
    }
    let mut good = H2Client::connect(server.ingest);
    for _ in 0..30 {
        let answer = good.post(&whole);
        assert_eq!(answer.status, 200, "{}", answer.body);
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(deaf);
    wait_for("all memory is free", || server.metrics().sum("millrace_body_bytes") == 0);
}

#[test]
fn long_heads_are_431_and_far_longer_ones_end_the_connection() {
    let server = start(&[]);
    let mut client = H2Client::connect(server.ingest);
    let with = |length: usize| post(&[("x", &*"y".repeat(length).leak())]);
    let fits = client.head(&with(15_000), false);
    client.data(fits, GOOD.as_bytes(), true);
    assert_eq!(client.answer(fits).status, 200);
    let stream = client.new_stream();
    let bytes = block(&with(20_000));
    client.send(frame(HEADERS, END_STREAM, stream, &bytes[..16_000]));
    client.send(frame(CONTINUATION, END_HEADERS, stream, &bytes[16_000..]));
    let end = client.end_of(stream);
    assert!(matches!(&end, StreamEnd::Answered(answer) if answer.status == 431), "{end:?}");
    // 16 KiB of list from few bytes: a long field is named again and again.
    let mut bytes = block(&post(&[]));
    bytes.push(0x40);
    bytes.extend_from_slice(&[1, b'a', 127, 0x81, 0x1e]);
    bytes.extend_from_slice(&[b'b'; 127 + 0x81 - 128 + 128 * 0x1e]);
    bytes.extend(std::iter::repeat_n(0x80 | 62, 10_000));
    let stream = client.new_stream();
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &bytes));
    let end = client.end_of(stream);
    assert!(
        matches!(end, StreamEnd::GoAway(ENHANCE_YOUR_CALM | COMPRESSION_ERROR) | StreamEnd::Closed),
        "{end:?}"
    );
    assert_eq!(H2Client::connect(server.ingest).post(GOOD).status, 200);
}

#[test]
fn stalled_bodies_of_a_busy_connection_give_way() {
    const LENGTH: usize = 200 << 10;
    let server = start(&[
        ("MAX_LENGTH", "256KiB"),
        ("MAX_BODY_BYTES", "8MiB"),
        ("STORE", "null:"),
        ("CORES", "0"),
    ]);
    let body = |length: usize| {
        let mut body = vec![b' '; length - GOOD.len()];
        body.extend_from_slice(GOOD.as_bytes());
        body
    };
    let mut bad = H2Client::connect(server.ingest);
    let whole = body(LENGTH);
    let stalled: Vec<_> = (0..60)
        .map(|_| {
            let stream = bad.head(&post(&[]), false);
            bad.data(stream, &whole[..LENGTH - 1], false);
            stream
        })
        .collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let mut answered = 0;
            while !over.load(Relaxed) {
                answered += u64::from(bad.post(GOOD).status == 200);
            }
            (bad, answered)
        });
        let mut good = H2Client::connect(server.ingest);
        for _ in 0..50 {
            let answer = good.post(body(LENGTH));
            assert_eq!(answer.status, 200, "{}", answer.body);
            std::thread::sleep(Duration::from_millis(5));
        }
        over.store(true, Relaxed);
        let (mut bad, answered) = busy.join().unwrap();
        assert!(answered > 10, "it was busy");
        let mut evicted = 0;
        for stream in &stalled {
            if bad.has_ended(*stream) {
                let answer = bad.answer(*stream);
                assert!([408, 503].contains(&answer.status), "{answer:?}");
                evicted += u64::from(answer.status == 408);
            }
        }
        let counted = server.metrics().sum("millrace_bodies_evicted_total");
        assert!(evicted > 0 && evicted <= counted, "{evicted} of {counted}");
    });
    wait_for("all memory is free", || server.metrics().sum("millrace_body_bytes") == 0);
}

/// Prints what an idle connection and a waiting stream take, and compares it with the bounds.
#[test]
fn connections_and_streams_take_no_more_than_they_are_said_to() {
    const CONNECTIONS: usize = 100;
    const STREAMS: usize = 100;
    let server = start(&[("STORE", "null:"), ("CORES", "0")]);
    // What the first ones make the allocator take.
    for _ in 0..50 {
        assert_eq!(H2Client::connect(server.ingest).post(GOOD).status, 200);
    }
    // The allocator gives back what is free every 2 s, …
    let settled = || {
        std::thread::sleep(Duration::from_secs(3));
        server.resident()
    };
    // … and later on a busy machine. What each of `count` takes; more than `most` only if it stays.
    let taken = |before: u64, count: u64, most: u64| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let each = settled().saturating_sub(before) / count;
            if each <= most || Instant::now() > deadline {
                return each;
            }
        }
    };
    let (of_connection_max, of_stream_max) = (100 << 10, 8 << 10);
    let before = settled();
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| H2Client::connect(server.ingest)).collect();
    for client in &mut clients {
        assert_eq!(client.post(GOOD).status, 200);
    }
    let of_connection = taken(before, CONNECTIONS as u64, of_connection_max);
    let idle = server.resident();
    for client in &mut clients {
        for _ in 0..STREAMS {
            client.head(&post(&[]), false);
        }
    }
    let all = (CONNECTIONS * STREAMS) as u64;
    wait_for("they are there", || server.metrics().sum("millrace_h2_requests") == all);
    let bodies = server.metrics().sum("millrace_body_bytes");
    let of_stream = taken(idle + bodies, all, of_stream_max);
    println!(
        "{of_connection} bytes for an idle connection, {of_stream} for a stream that waits for its body"
    );
    assert!(of_connection <= of_connection_max, "{of_connection}");
    assert!(of_stream <= of_stream_max, "{of_stream}");
    drop(clients);
    server.wait_idle();
    // A table of as many fields as fit, each with the buffer in which it came: of clients that heed the
    // size that the server has set, which say so, and of some that do not.
    for (heeds, most) in [(true, 400 << 10), (false, 2_300 << 10)] {
        const CONNECTIONS: usize = 20;
        let before = settled();
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut client = H2Client::connect(server.ingest);
            for number in 0..140_u8 {
                // The size is an integer with a prefix of five bits: 1,024.
                let size: &[u8] = if heeds && number == 1 { &[0x3f, 0xe1, 0x07] } else { &[] };
                let inserts = [0x40, 1, b'a' + number % 26, 0];
                let fields = post(&[("x", &*"y".repeat(15_000).leak())]);
                let head = [size, &block(&fields), &inserts].concat();
                let stream = client.new_stream();
                client.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &head));
                assert_eq!(client.answer(stream).status, 400);
            }
            clients.push(client);
        }
        let of_connection = taken(before, CONNECTIONS as u64, most);
        println!("{of_connection} bytes with a table of fields, heeds {heeds}");
        assert!(of_connection <= most, "{of_connection}, {heeds}");
    }
}
