//! Goal: a large body is stored byte for byte however it comes, and what is left of one that does
//! not come whole holds nothing.
//!
//! Method: bodies of random lengths in random pieces, several connections at a time, some of them
//! compressed or chunked; then clients that close or reset half-way, and more bodies at once than
//! the memory holds.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::support::{Client, Server, chunked_request, request, sorted};

/// Random numbers of one test.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

fn seed() -> u64 {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = nanos.as_nanos() as u64 | 1;
    println!("seed {seed}");
    seed
}

/// A payload of `length` bytes, which differ from one place to the next.
fn payload(length: usize, rng: &mut Rng) -> String {
    let text = (0..length - 2).map(|_| char::from(b'0' + rng.below(75) as u8));
    let text = text.map(|char| if char == '\\' { '/' } else { char });
    format!("\"{}\"", text.collect::<String>())
}

/// Sends `bytes` in pieces of random lengths, with pauses.
fn send_in_pieces(client: &mut Client, bytes: &[u8], rng: &mut Rng) {
    let longest = [2_000, 20_000, 100_000, 1 << 20][rng.below(4)].max(bytes.len() / 200);
    let mut rest = bytes;
    while !rest.is_empty() {
        let piece = 1 + rng.below(longest.min(rest.len()));
        client.send(&rest[..piece]);
        rest = &rest[piece..];
        if rng.below(6) == 0 {
            std::thread::sleep(Duration::from_micros(rng.below(3_000) as u64));
        }
    }
}

#[test]
fn bodies_of_any_length_in_any_pieces_are_stored_as_sent() {
    let server = Server::start(&[("MAX_LENGTH", "8MiB"), ("MAX_QUEUE_BYTES", "64MiB")]);
    let seed = seed();
    let stored: Vec<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (1..=4)
            .map(|number| {
                let server = &server;
                scope.spawn(move || {
                    let mut rng = Rng(seed.wrapping_mul(number));
                    let (mut client, mut sent) = (server.connect(), Vec::new());
                    for round in 0..12 {
                        let length = match round % 4 {
                            0 => 1_000 + rng.below(60_000),
                            1 => (64 << 10) - 30 + rng.below(60),
                            2 => 100_000 + rng.below(900_000),
                            _ => 1_000_000 + rng.below(5_000_000),
                        };
                        let payload = payload(length, &mut rng);
                        let body = format!("{{\"data\":[{payload},{number}]}}");
                        let wire = match rng.below(4) {
                            0 => {
                                let packed = zstd::stream::encode_all(body.as_bytes(), 1).unwrap();
                                request(&packed, "content-encoding: zstd\r\n")
                            }
                            1 => {
                                let pieces: Vec<&[u8]> = body.as_bytes().chunks(70_001).collect();
                                chunked_request(&pieces, "")
                            }
                            _ => request(body.as_bytes(), ""),
                        };
                        send_in_pieces(&mut client, &wire, &mut rng);
                        let reply = client.reply();
                        assert_eq!(reply.status, 200, "{reply:?}");
                        sent.extend([payload, number.to_string()]);
                    }
                    sent
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    server.wait_idle();
    assert!(server.stored_texts() == sorted(&stored), "seed {seed}");
}

/// Requests behind a large body are read as if it had not been there.
#[test]
fn what_follows_a_large_body_is_the_next_request() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let large = format!("{{\"data\":[\"{}\"]}}", "x".repeat(300_000));
    let wire: Vec<u8> = (0..6)
        .flat_map(|number| match number % 2 {
            0 => request(large.as_bytes(), ""),
            _ => request(format!("{{\"data\":[{number}]}}").as_bytes(), ""),
        })
        .collect();
    let mut writer = client.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || writer.write_all(&wire).unwrap());
    for _ in 0..6 {
        assert_eq!(client.reply().status, 200);
    }
    sending.join().unwrap();
    drop(client);
    server.wait_idle();
    let stored = server.stored_texts();
    assert_eq!((&stored[3..], stored.len()), (&sorted(&["1", "3", "5"])[..], 6));
}

#[test]
fn a_body_that_ends_half_way_leaves_nothing() {
    let server = Server::start(&[("MAX_LENGTH", "8MiB")]);
    let whole = request(format!("{{\"data\":[\"{}\"]}}", "x".repeat(5_000_000)).as_bytes(), "");
    for round in 0..24 {
        let mut client = server.connect();
        let sent = [100, 20_000, 70_000, 400_000, 2_500_000, whole.len() - 1][round % 6];
        client.send(&whole[..sent]);
        match round % 4 {
            // While it is still coming in, or once all of it has.
            0 => {}
            1 => {
                server.wait("the body", |m| m.sum("millrace_body_bytes") > 0);
            }
            2 => client.half_close(),
            _ => {
                let socket = socket2::SockRef::from(&client.stream);
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
        drop(client);
    }
    server.wait_idle();
    assert!(server.stored().is_empty());
    assert_eq!(server.post(r#"{"data":[1]}"#).status, 200);
}

/// All come at once, at a healthy pace: each is stored whole or refused, and nothing stays charged.
#[test]
fn more_bodies_at_once_than_the_memory_holds_are_stored_or_refused() {
    let settings = [("MAX_LENGTH", "1MiB"), ("MAX_BODY_BYTES", "8MiB")];
    let server = Server::start(&settings);
    let seed = seed();
    let stored: Vec<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (1..=24)
            .map(|number| {
                let server = &server;
                scope.spawn(move || {
                    let mut rng = Rng(seed.wrapping_mul(number));
                    let mut stored = Vec::new();
                    for _ in 0..4 {
                        let length = 600_000 + rng.below(400_000);
                        let payload = payload(length, &mut rng);
                        let wire = request(format!("{{\"data\":[{payload}]}}").as_bytes(), "");
                        let began = Instant::now();
                        let mut client = server.connect();
                        for piece in wire.chunks(100_000) {
                            if !client.try_send(piece) {
                                break;
                            }
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        if let Err(error) = client.stream.peek(&mut [0]) {
                            // The server reads on for two seconds after an early answer.
                            let took = began.elapsed();
                            assert!(took > Duration::from_millis(1_800), "{error} after {took:?}");
                            continue;
                        }
                        match client.try_reply().map(|reply| reply.status) {
                            Some(200) => stored.push(payload),
                            status => assert!(matches!(status, Some(408 | 503)), "{status:?}"),
                        }
                    }
                    stored
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    server.wait_idle();
    assert!(!stored.is_empty());
    assert!(server.stored_texts() == sorted(&stored), "seed {seed}");
    assert!(server.metrics().sum("millrace_body_memory_refusals_total") > 0, "there was room");
}
