//! Goal: only a body whose end has come is admitted, however else its stream or its connection ends.
//!
//! Method: a table of ends. The body is lines of JSON, what has come of it too, so that nothing but its
//! end tells whether it is whole. Each end comes with and without `content-length`, together with the body
//! and after it was read.

use std::time::Duration;

use super::requests::start;
use crate::support::h2::{
    CANCEL, DATA, END_HEADERS, END_STREAM, GOAWAY, H2Client, HEADERS, INTERNAL_ERROR, NO_ERROR,
    PADDED, PROTOCOL_ERROR, REFUSED_STREAM, RST_STREAM, STREAM_CLOSED, StreamEnd, block, frame,
    post,
};
use crate::support::{Server, wait_for};

const GOOD: &str = r#"{"data":[1]}"#;

/// What comes of [`WHOLE`].
const CUT: &[u8] = b"1\n12";
const WHOLE: &[u8] = b"1\n123";

/// How the client leaves the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaves {
    Stays,
    Closes,
    Resets,
}

/// Begins a request whose lines are to come.
fn begin(client: &mut H2Client, with_length: bool) -> u32 {
    let length = WHOLE.len().to_string();
    let lines = ("content-type", "application/x-ndjson");
    match with_length {
        false => client.head(&post(&[lines]), false),
        true => client.head(&post(&[lines, ("content-length", &length)]), false),
    }
}

fn accepted(server: &Server) -> u64 {
    server.metrics().sum("millrace_payloads_accepted_total")
}

/// Ends of a stream from which on nothing more of its body can come; a number where it has `1`.
fn short_ends() -> Vec<(String, Option<bool>, Vec<u8>, Leaves)> {
    let mut ends = Vec::new();
    for reason in
        [NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, STREAM_CLOSED, REFUSED_STREAM, CANCEL, 13, 99]
    {
        let reset = frame(RST_STREAM, 0, 1, &reason.to_be_bytes());
        ends.push((format!("reset, {reason}"), None, reset, Leaves::Stays));
    }
    for reason in [NO_ERROR, CANCEL] {
        let words = frame(GOAWAY, 0, 0, &[[0; 4], reason.to_be_bytes()].concat());
        ends.push((format!("goodbye, {reason}"), None, words, Leaves::Closes));
    }
    let trailers = block(&[("x", "y")]);
    let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers);
    let with_length = Some(true);
    ends.extend([
        ("closed".to_owned(), None, Vec::new(), Leaves::Closes),
        ("connection reset".to_owned(), None, Vec::new(), Leaves::Resets),
        ("shorter".to_owned(), with_length, frame(DATA, END_STREAM, 1, b""), Leaves::Stays),
        ("longer".to_owned(), with_length, frame(DATA, END_STREAM, 1, b"34"), Leaves::Stays),
        ("shorter, trailers".to_owned(), with_length, trailers, Leaves::Stays),
        // A frame that is not complete.
        (
            "in a frame".to_owned(),
            None,
            frame(DATA, END_STREAM, 1, b"3")[..9].to_vec(),
            Leaves::Closes,
        ),
    ]);
    ends
}

/// `bytes` with the number of this stream in each of its frames that has one.
fn on_stream(stream: u32, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() >= 9 && bytes[5..9] == 1_u32.to_be_bytes() {
        bytes[5..9].copy_from_slice(&stream.to_be_bytes());
    }
    bytes
}

#[test]
fn a_body_that_ends_short_is_not_admitted() {
    let server = start(&[("STORE", "null:"), ("CORES", "0")]);
    let mut wrong = Vec::new();
    let mut expected = 0;
    for (name, only, end, leaves) in short_ends() {
        for with_length in [false, true].into_iter().filter(|it| only.is_none_or(|of| of == *it)) {
            for at_once in [true, false] {
                let mut client = H2Client::connect(server.ingest);
                let stream = begin(&mut client, with_length);
                let data = frame(DATA, 0, stream, CUT);
                let end = on_stream(stream, &end);
                if at_once {
                    client.send([data, end].concat());
                } else {
                    client.send(data);
                    wait_for("it is there", || server.metrics().sum("millrace_h2_requests") == 1);
                    std::thread::sleep(Duration::from_millis(10));
                    client.send(end);
                }
                match leaves {
                    Leaves::Stays => {
                        // Others of the connection go on.
                        assert_eq!(client.post(GOOD).status, 200, "{name}");
                        expected += 1;
                    }
                    Leaves::Closes => client.stream.shutdown(std::net::Shutdown::Write).unwrap(),
                    Leaves::Resets => {
                        let socket = socket2::Socket::from(client.stream);
                        socket.set_linger(Some(Duration::ZERO)).unwrap();
                    }
                }
                wait_for("it is over", || server.metrics().sum("millrace_h2_requests") == 0);
                let now = accepted(&server);
                if now != expected {
                    let what = if with_length { "with a length" } else { "without" };
                    wrong.push(format!("{name}, {what}, {at_once}: {} payloads", now - expected));
                    expected = now;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_connection_panics_total"), 0);
}

#[test]
fn a_body_whose_end_has_come_is_admitted() {
    let server = start(&[("STORE", "null:")]);
    let trailers = block(&[("x", "y")]);
    let rest = &WHOLE[CUT.len()..];
    let padded = [&[3][..], rest, &[0; 3]].concat();
    let ends = [
        ("data", vec![frame(DATA, END_STREAM, 1, rest)]),
        ("padding", vec![frame(DATA, END_STREAM | PADDED, 1, &padded)]),
        ("empty data", vec![frame(DATA, 0, 1, rest), frame(DATA, END_STREAM, 1, b"")]),
        (
            "trailers",
            vec![frame(DATA, 0, 1, rest), frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers)],
        ),
    ];
    let mut client = H2Client::connect(server.ingest);
    for (name, frames) in &ends {
        for with_length in [false, true] {
            for at_once in [true, false] {
                let stream = begin(&mut client, with_length);
                let data = frame(DATA, 0, stream, CUT);
                let end: Vec<u8> =
                    frames.iter().flat_map(|frame| on_stream(stream, frame)).collect();
                if at_once {
                    client.send([data, end].concat());
                } else {
                    client.send(data);
                    std::thread::sleep(Duration::from_millis(10));
                    client.send(end);
                }
                let end = client.end_of(stream);
                let StreamEnd::Answered(answer) = &end else { panic!("{name}: {end:?}") };
                assert_eq!((answer.status, answer.body.contains(":2,")), (200, true), "{name}");
            }
        }
    }
    assert_eq!(accepted(&server), 2 * 4 * ends.len() as u64);
    // A client that gives up once the end is sent, and one that says goodbye: as for any answer that
    // does not arrive, either may have been admitted, but only as a whole.
    for end in [
        frame(RST_STREAM, 0, 1, &NO_ERROR.to_be_bytes()),
        frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes()),
        frame(GOAWAY, 0, 0, &[0; 8]),
    ] {
        let before = accepted(&server);
        let mut client = H2Client::connect(server.ingest);
        let stream = begin(&mut client, false);
        client.send([frame(DATA, END_STREAM, stream, WHOLE), on_stream(stream, &end)].concat());
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        client.end();
        server.wait("it is over", |now| now.sum("millrace_h2_connections") == 1);
        assert!([0, 2].contains(&(accepted(&server) - before)));
    }
    drop(client);
    server.wait_idle();
}

/// Ways to say goodbye; whether that is a breach of the protocol.
#[test]
fn the_last_words_of_a_client_are_no_breach() {
    let server = start(&[("STORE", "null:")]);
    for reason in [NO_ERROR, PROTOCOL_ERROR, CANCEL, 99] {
        let mut client = H2Client::connect(server.ingest);
        assert_eq!(client.post(GOOD).status, 200);
        client.send(frame(GOAWAY, 0, 0, &[[0; 4], reason.to_be_bytes()].concat()));
        client.end();
    }
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_h2_closed_total"), 0, "they have closed it");
    // One that says goodbye and then breaks the protocol.
    let mut client = H2Client::connect(server.ingest);
    let open = client.head(&post(&[]), false);
    client.send(frame(GOAWAY, 0, 0, &[0; 8]));
    client.send(frame(DATA, 0, 0, b"x"));
    assert!(matches!(client.end_of(open), StreamEnd::GoAway(_) | StreamEnd::Closed));
    server.wait("it is counted", |now| {
        now.sum_where("millrace_h2_closed_total", "reason=\"protocol\"") == 1
    });
}

/// The library ends the connection for it without a word.
#[test]
fn a_connect_with_a_body_ends_the_connection_as_a_breach() {
    let server = start(&[("STORE", "null:")]);
    let connect = [(":method", "CONNECT"), (":authority", "a.test"), ("content-length", "5")];
    for number in 1..=2 {
        let mut client = H2Client::connect(server.ingest);
        assert_eq!(client.post(GOOD).status, 200);
        if number == 2 {
            client.head(&post(&[]), false);
        }
        let stream = client.new_stream();
        client.send(frame(HEADERS, END_HEADERS, stream, &block(&connect)));
        let end = client.end();
        assert!(end.is_some_and(|reason| reason != NO_ERROR), "{end:?}");
        server.wait("it is counted", |now| {
            now.sum_where("millrace_h2_closed_total", "reason=\"protocol\"") == number
        });
    }
    // One without is a method like any other.
    let mut client = H2Client::connect(server.ingest);
    let stream = client.head(&connect[..2], true);
    let end = client.end_of(stream);
    assert!(
        matches!(&end, StreamEnd::Answered(answer) if [400, 404, 405].contains(&answer.status)),
        "{end:?}"
    );
    assert_eq!(client.post(GOOD).status, 200);
}
