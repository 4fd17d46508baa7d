//! Goal: a client is waited for as long as the limit of what it does says, no longer and no shorter,
//! also if this process is paused meanwhile; what one of a connection's streams waits for holds up no
//! other.
//!
//! Method: limits that differ much, in every order; SIGSTOP and SIGCONT for longer than the limits.

use std::time::{Duration, Instant};

use super::requests::start;
use crate::support::h2::{
    DATA, END_HEADERS, END_STREAM, H2Answer, H2Client, HEADERS, INITIAL_WINDOW_SIZE, NO_ERROR,
    PING, StreamEnd, WINDOW_UPDATE, block, frame, post,
};
use crate::support::wait_for;

const GOOD: &str = r#"{"data":[1]}"#;

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// How long bodies take that come steadily. One that takes longer than a window of `BODY_RATE_MIN`, in
/// seconds, may be given as `MILLRACE_H2_BODY_SECONDS`.
fn body_time() -> Duration {
    let given = std::env::var("MILLRACE_H2_BODY_SECONDS").ok();
    Duration::from_secs(given.map_or(3, |text| text.parse().unwrap()))
}

#[test]
fn a_body_may_take_longer_than_any_other_limit() {
    // With the usual limits the first one is that of a window of `BODY_RATE_MIN`.
    for more in [&[("IDLE_TIMEOUT", "1s"), ("HEADER_TIMEOUT", "1s")][..], &[]] {
        let server = start(&[&[("CORES", "0"), ("STORE", "null:")], more].concat());
        let mut client = H2Client::connect(server.ingest);
        let stream = client.head(&post(&[]), false);
        client.data(stream, br#"{"data":["#, false);
        let since = Instant::now();
        while since.elapsed() < body_time() {
            client.data(stream, &[b' '; 1_000], false);
            pause(50);
        }
        // The core goes on.
        assert_eq!(server.post(GOOD).status, 200);
        client.data(stream, b"1]}", true);
        assert_eq!(client.answer(stream).status, 200);
        drop(client);
        server.wait_idle();
    }
}

const SHORT: [(&str, &str); 5] = [
    ("HEADER_TIMEOUT", "1s"),
    ("BODY_TIMEOUT", "1s"),
    ("IDLE_TIMEOUT", "1s"),
    ("CORES", "0"),
    ("STORE", "null:"),
];

/// Clients of which each waits for something else, and what each sends next to get an answer.
fn waiting(address: std::net::SocketAddr) -> Vec<(&'static str, H2Client, u32, Vec<u8>)> {
    let head = block(&post(&[]));
    let whole = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
    let mut all = Vec::new();
    all.push(("no request", H2Client::connect(address), 1, whole(1)));
    let mut idle = H2Client::connect(address);
    assert_eq!(idle.post(GOOD).status, 200);
    all.push(("idle", idle, 3, whole(3)));
    for cut in [4, 9, 20] {
        let mut client = H2Client::connect(address);
        client.send(&whole(1)[..cut]);
        all.push(("in a head", client, 1, whole(1)[cut..].to_vec()));
    }
    for cut in [0, 9, 12] {
        let mut client = H2Client::connect(address);
        let stream = client.head(&post(&[]), false);
        let data = frame(DATA, END_STREAM, stream, GOOD.as_bytes());
        client.send(&data[..cut]);
        all.push(("in a body", client, stream, data[cut..].to_vec()));
    }
    let mut both = H2Client::connect(address);
    let stream = both.head(&post(&[]), false);
    both.send(&whole(3)[..12]);
    let rest = [whole(3)[12..].to_vec(), frame(DATA, END_STREAM, stream, GOOD.as_bytes())];
    all.push(("in a head and a body", both, stream, rest.concat()));
    let mut full = H2Client::connect_with(address, &[(INITIAL_WINDOW_SIZE, 0)]);
    let stream = full.begin_post(GOOD, &[]);
    let window = frame(WINDOW_UPDATE, 0, stream, &1_000_u32.to_be_bytes());
    all.push(("no room for the answer", full, stream, window));
    all
}

#[test]
fn whoever_waits_during_a_pause_gets_the_whole_time_again() {
    let server = start(&SHORT);
    // What arrives during the pause is in time, …
    let mut clients = waiting(server.ingest);
    pause(150);
    server.signal("STOP");
    clients.iter_mut().for_each(|(_, client, _, rest)| client.send(rest));
    pause(2_500);
    server.signal("CONT");
    for (name, client, stream, _) in &mut clients {
        let end = client.end_of(*stream);
        let is_answered = |answer: &H2Answer| [200, 400].contains(&answer.status);
        assert!(
            matches!(&end, StreamEnd::Answered(answer) if is_answered(answer)),
            "{name}: {end:?}"
        );
    }
    assert_eq!(server.metrics().requests(408), 0);
    drop(clients);
    server.wait_idle();
    // … so is what arrives soon after it, …
    let mut clients = waiting(server.ingest);
    pause(150);
    server.signal("STOP");
    pause(2_500);
    server.signal("CONT");
    pause(100);
    clients.iter_mut().for_each(|(_, client, _, rest)| client.send(rest));
    for (name, client, stream, _) in &mut clients {
        let end = client.end_of(*stream);
        let is_answered = |answer: &H2Answer| [200, 400].contains(&answer.status);
        assert!(
            matches!(&end, StreamEnd::Answered(answer) if is_answered(answer)),
            "{name}: {end:?}"
        );
    }
    drop(clients);
    server.wait_idle();
    // … and who sends nothing is judged all the same.
    let mut clients = waiting(server.ingest);
    pause(150);
    server.signal("STOP");
    pause(2_500);
    server.signal("CONT");
    let since = Instant::now();
    clients.iter_mut().for_each(|(_, client, _, _)| {
        client.end();
    });
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    server.wait_idle();
}

#[test]
fn answers_that_wait_for_their_client_are_sent_at_a_stop() {
    // There is no room for them, or for less than all of each.
    std::thread::scope(|scope| {
        for window in [0, 1] {
            scope.spawn(move || answers_are_sent_at_a_stop(window));
        }
    });
}

fn answers_are_sent_at_a_stop(window: u32) {
    // The limit of bodies has passed when the stop wakes the streams.
    let server = start(&[("BODY_TIMEOUT", "1s"), ("STORE", "null:")]);
    let settings = [(INITIAL_WINDOW_SIZE, window)];
    let mut client = H2Client::connect_with(server.ingest, &settings);
    let streams: Vec<_> = (0..3).map(|_| client.begin_post(GOOD, &[])).collect();
    wait_for("they are answered", || server.metrics().requests(200) == 3);
    pause(1_500);
    server.signal("TERM");
    // Longer than an idle connection is given.
    pause(900);
    for stream in &streams {
        client.send(frame(WINDOW_UPDATE, 0, *stream, &1_000_u32.to_be_bytes()));
        assert_eq!(client.answer(*stream).status, 200);
    }
    assert_eq!(client.end(), Some(NO_ERROR));
    server.wait_stopped();
    // One that leaves no room does not hold up the stop.
    let server = start(&[("STORE", "null:")]);
    let mut client = H2Client::connect_with(server.ingest, &settings);
    client.begin_post(GOOD, &[]);
    wait_for("it is answered", || server.metrics().requests(200) == 1);
    let since = Instant::now();
    server.signal("TERM");
    client.end();
    server.wait_stopped();
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
}

#[test]
fn frames_in_pieces_do_not_prolong_an_idle_connection() {
    let server = start(&[("IDLE_TIMEOUT", "1s"), ("HEADER_TIMEOUT", "1s"), ("STORE", "null:")]);
    let ping = frame(PING, 0, 0, &[0; 8]);
    let next_begins = [&ping[5..], &ping[..5]].concat();
    for (name, first, second) in [
        ("in two pieces", &ping[..5], &ping[5..]),
        ("each with the start of the next", &ping[..5], &next_begins[..]),
    ] {
        let mut client = H2Client::connect(server.ingest);
        assert_eq!(client.post(GOOD).status, 200);
        let since = Instant::now();
        let mut is_open = client.try_send(first);
        let mut turn = 0;
        while is_open && since.elapsed() < Duration::from_secs(20) {
            pause(60);
            turn += 1;
            let piece = if turn % 2 == 1 || name.starts_with("each") { second } else { first };
            is_open = client.try_send(piece) && !client.is_closed_by_now();
        }
        let taken = since.elapsed();
        assert!(taken < Duration::from_secs(10), "{name}: open for {taken:?}");
    }
}
