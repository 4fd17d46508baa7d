//! Goal: connections, heads, chunks and protocols that are no requests cost the others nothing and
//! leave nothing behind, whatever their number.
//!
//! Method: tables of floods, each with a good client beside it. What has one right answer is
//! checked for it on the way; what never ends is checked to be cut off.

use std::io::Read as _;
use std::io::Write as _;
use std::time::Duration;

use super::support::{Attack, Raid, beside, nothing_left};
use crate::support::{Client, Server, chunked_request, request};

/// What a server with much to do may take on top: the allocator keeps what was used once.
const MEMORY_BOUND: u64 = 48 << 20;

fn reset(client: Client) {
    let socket = socket2::Socket::from(client.stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

fn connect_and_close(raid: &mut Raid) {
    while raid.turn() {
        drop(raid.connect());
    }
}

fn connect_and_reset(raid: &mut Raid) {
    while raid.turn() {
        if let Some(client) = raid.connect() {
            reset(client);
        }
    }
}

fn connect_and_fin(raid: &mut Raid) {
    let mut held = Vec::new();
    while raid.turn() {
        if held.len() >= raid.connections {
            held.remove(0);
        }
        if let Some(client) = raid.connect() {
            client.half_close();
            held.push(client);
        }
    }
}

fn half_a_head_and_reset(raid: &mut Raid) {
    while raid.turn() {
        if let Some(mut client) = raid.connect() {
            client.try_send("POST /payloads HTTP/1.1\r\nhost: x\r\n");
            reset(client);
        }
    }
}

fn half_a_body_and_reset(raid: &mut Raid) {
    let whole = request(&[b' '; 4096], "");
    while raid.turn() {
        if let Some(mut client) = raid.connect() {
            client.try_send(&whole[..2000]);
            reset(client);
        }
    }
}

fn request_and_reset(raid: &mut Raid) {
    let whole = request(br#"{"data":[]}"#, "");
    while raid.turn() {
        if let Some(mut client) = raid.connect() {
            client.try_send(&whole);
            reset(client);
        }
    }
}

#[test]
fn floods_of_connections() {
    let attacks = [
        Attack { name: "connect, close", connections: 1, per_second: 500, run: connect_and_close },
        Attack { name: "connect, RST", connections: 1, per_second: 500, run: connect_and_reset },
        Attack { name: "connect, FIN", connections: 50, per_second: 500, run: connect_and_fin },
        Attack { name: "head, RST", connections: 1, per_second: 300, run: half_a_head_and_reset },
        Attack { name: "body, RST", connections: 1, per_second: 300, run: half_a_body_and_reset },
        Attack { name: "request, RST", connections: 1, per_second: 300, run: request_and_reset },
    ];
    flood(&attacks);
}

/// Sends `bytes` on a connection of their own a turn; the answer must be one of `statuses`, or with
/// none of them the end without a word, and the connection closes if `closes`. How many were 200.
fn asked(raid: &mut Raid, bytes: &[u8], statuses: &[u16], closes: bool) -> u64 {
    let mut answered = 0;
    while raid.turn() {
        let Some(mut client) = Client::try_connect(raid.server) else { continue };
        client.try_send(bytes);
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        match client.try_reply() {
            Some(reply) => {
                assert!(statuses.contains(&reply.status), "{text:?}: {reply:?}");
                assert!(!closes || client.closed(), "{text:?}: open after {reply:?}");
                answered += u64::from(reply.status == 200);
            }
            None => assert!(statuses.is_empty(), "{text:?}: no answer"),
        }
    }
    answered
}

const TOO_LARGE: [u16; 3] = [400, 414, 431];

fn many_fields(raid: &mut Raid) {
    let head = format!("POST /payloads HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(1000));
    asked(raid, head.as_bytes(), &TOO_LARGE, true);
}

fn long_field(raid: &mut Raid) {
    let head = format!("POST /payloads HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "b".repeat(30_000));
    asked(raid, head.as_bytes(), &TOO_LARGE, true);
}

fn long_request_line(raid: &mut Raid) {
    let head = format!("POST /{} HTTP/1.1\r\nhost: x\r\n\r\n", "p".repeat(30_000));
    asked(raid, head.as_bytes(), &TOO_LARGE, true);
}

fn long_method(raid: &mut Raid) {
    let head = format!("{} /payloads HTTP/1.1\r\nhost: x\r\n\r\n", "P".repeat(30_000));
    asked(raid, head.as_bytes(), &TOO_LARGE, true);
}

/// Sends `start` and then `piece` again and again on each connection in turn, until the server says
/// something or closes, and then opens another. At least one must be cut off.
fn until_cut_off(raid: &mut Raid, start: &[u8], piece: &[u8]) {
    let begin = |raid: &Raid| {
        let mut client = raid.connect()?;
        client.try_send(start);
        client.stream.set_nonblocking(true).unwrap();
        Some(client)
    };
    let mut clients: Vec<Option<Client>> = (0..raid.connections).map(|_| begin(raid)).collect();
    let (mut turn, mut cut) = (0, 0);
    while raid.turn() || (cut == 0 && raid.extra_turn()) {
        let at = turn % clients.len();
        let over = clients[at].as_mut().is_none_or(|client| {
            let told =
                !matches!(client.stream.read(&mut [0; 512]), Err(error) if would_block(&error));
            let gone = matches!(client.stream.write(piece), Err(error) if !would_block(&error));
            told || gone
        });
        if over {
            cut += 1;
            clients[at] = begin(raid);
        }
        turn += 1;
    }
    assert!(cut > 0, "{:?} goes on", String::from_utf8_lossy(piece));
}

fn would_block(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::WouldBlock
}

const CHUNKED: &str = "POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";

fn endless_head(raid: &mut Raid) {
    until_cut_off(raid, b"POST /payloads HTTP/1.1\r\n", &b"x: y\r\n".repeat(300));
}

fn endless_request_line(raid: &mut Raid) {
    until_cut_off(raid, b"POST /", &[b'a'; 2000]);
}

#[test]
fn floods_of_heads() {
    let attacks = [
        Attack { name: "1,000 fields", connections: 1, per_second: 50, run: many_fields },
        Attack { name: "a field of 30 kB", connections: 1, per_second: 50, run: long_field },
        Attack {
            name: "a target of 30 kB",
            connections: 1,
            per_second: 50,
            run: long_request_line,
        },
        Attack { name: "a method of 30 kB", connections: 1, per_second: 50, run: long_method },
        Attack { name: "endless head", connections: 4, per_second: 200, run: endless_head },
        Attack {
            name: "endless target",
            connections: 4,
            per_second: 200,
            run: endless_request_line,
        },
    ];
    flood(&attacks);
}

/// Whole requests whose body comes a byte a chunk. On a busy machine the deadline of these
/// scenarios may pass while they are read.
fn one_byte_chunks(raid: &mut Raid) {
    let body = format!(r#"{{"data":["{}"]}}"#, "x".repeat(5_000));
    let pieces: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
    let whole = chunked_request(&pieces, "");
    raid.accepted += asked(raid, &whole, &[200, 408], false);
}

fn endless_extension(raid: &mut Raid) {
    until_cut_off(raid, format!("{CHUNKED}1;").as_bytes(), &[b'a'; 2000]);
}

fn endless_extensions(raid: &mut Raid) {
    until_cut_off(raid, CHUNKED.as_bytes(), &b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n \r\n".repeat(60));
}

fn endless_trailer(raid: &mut Raid) {
    until_cut_off(raid, format!("{CHUNKED}0\r\nx: ").as_bytes(), &[b'a'; 2000]);
}

fn endless_trailers(raid: &mut Raid) {
    until_cut_off(raid, format!("{CHUNKED}0\r\n").as_bytes(), &b"x: y\r\n".repeat(300));
}

fn endless_chunk_size(raid: &mut Raid) {
    until_cut_off(raid, CHUNKED.as_bytes(), &[b'0'; 2000]);
}

fn endless_chunks(raid: &mut Raid) {
    until_cut_off(raid, CHUNKED.as_bytes(), &b"1\r\n \r\n".repeat(300));
}

#[test]
fn floods_of_chunks() {
    let attacks = [
        Attack { name: "1-byte chunks", connections: 1, per_second: 20, run: one_byte_chunks },
        Attack {
            name: "endless extension",
            connections: 4,
            per_second: 200,
            run: endless_extension,
        },
        Attack {
            name: "endless extensions",
            connections: 4,
            per_second: 200,
            run: endless_extensions,
        },
        Attack { name: "endless trailer", connections: 4, per_second: 200, run: endless_trailer },
        Attack { name: "endless trailers", connections: 4, per_second: 200, run: endless_trailers },
        Attack {
            name: "endless chunk size",
            connections: 4,
            per_second: 200,
            run: endless_chunk_size,
        },
        Attack { name: "endless chunks", connections: 4, per_second: 200, run: endless_chunks },
    ];
    flood(&attacks);
}

fn tls_hello(raid: &mut Raid) {
    // A record of type handshake, TLS 1.0, with the start of a ClientHello.
    let hello = [&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[7; 190]].concat();
    asked(raid, &hello, &[400], true);
}

fn http_2_preface(raid: &mut Raid) {
    while raid.turn() {
        let Some(mut client) = Client::try_connect(raid.server) else { continue };
        client.try_send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        // With a 400 or without a word: never as HTTP/2, never as a request.
        let reply = client.try_reply();
        assert!(reply.as_ref().is_none_or(|reply| reply.status >= 400), "{reply:?}");
        assert!(client.closed());
    }
}

fn http_0_9(raid: &mut Raid) {
    asked(raid, b"GET /payloads\r\n\r\n", &[400], true);
}

fn http_1_0(raid: &mut Raid) {
    asked(raid, b"GET /payloads HTTP/1.0\r\n\r\n", &[405], true);
}

/// Upgrades that are not offered: the request is a plain one.
fn upgrade_h2c(raid: &mut Raid) {
    let headers = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAA\r\n";
    asked(raid, &request(br#"{"data":[]}"#, headers), &[200], false);
}

fn upgrade_websocket(raid: &mut Raid) {
    let headers = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n";
    asked(raid, &request(br#"{"data":[]}"#, headers), &[200], false);
}

fn connect_method(raid: &mut Raid) {
    // The port to another host that it asks for is no path here.
    asked(raid, b"CONNECT other:443 HTTP/1.1\r\nhost: other:443\r\n\r\n", &[400, 404, 405], false);
}

fn random_bytes(raid: &mut Raid) {
    let mut rng = fastrand::Rng::with_seed(13);
    while raid.turn() {
        let Some(mut client) = Client::try_connect(raid.server) else { continue };
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(300).collect();
        bytes.extend_from_slice(b"\r\n\r\n");
        client.try_send(bytes);
        client.half_close();
        let reply = client.try_reply();
        assert!(reply.as_ref().is_none_or(|reply| reply.status == 400), "{reply:?}");
        assert!(client.closed());
    }
}

fn pipelined(raid: &mut Raid, bytes: &[u8], status: u16) {
    const AT_ONCE: usize = 50;
    let batch = bytes.repeat(AT_ONCE);
    // Opened when they are to send: one that is silent is soon closed here.
    let mut clients: Vec<Client> = Vec::new();
    let mut turn = 0;
    while raid.turn() {
        if clients.len() < raid.connections {
            let client = Client::connect(raid.server);
            clients.push(client);
            turn = clients.len() - 1;
        }
        let count = clients.len();
        let client = &mut clients[turn % count];
        client.send(&batch);
        for _ in 0..AT_ONCE {
            assert_eq!(client.reply().status, status);
        }
        turn += 1;
    }
}

fn pipelined_404(raid: &mut Raid) {
    pipelined(raid, b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n", 404);
}

fn pipelined_400(raid: &mut Raid) {
    pipelined(raid, &request(br#"{"data":[1,2,3}"#, ""), 400);
}

#[test]
fn floods_of_what_is_no_request() {
    let attacks = [
        Attack { name: "TLS", connections: 1, per_second: 100, run: tls_hello },
        Attack { name: "HTTP/2 preface", connections: 1, per_second: 100, run: http_2_preface },
        Attack { name: "HTTP/0.9", connections: 1, per_second: 100, run: http_0_9 },
        Attack { name: "HTTP/1.0", connections: 1, per_second: 100, run: http_1_0 },
        Attack { name: "h2c", connections: 1, per_second: 100, run: upgrade_h2c },
        Attack { name: "WebSocket", connections: 1, per_second: 100, run: upgrade_websocket },
        Attack { name: "CONNECT", connections: 1, per_second: 100, run: connect_method },
        Attack { name: "random bytes", connections: 1, per_second: 100, run: random_bytes },
        Attack { name: "pipelined 404s", connections: 8, per_second: 40, run: pipelined_404 },
        Attack { name: "pipelined 400s", connections: 8, per_second: 40, run: pipelined_400 },
    ];
    flood(&attacks);
}

/// Each of `attacks` with a good client beside it, all on one server.
fn flood(attacks: &[Attack]) {
    let settings = [("STORE", "null:"), ("HEADER_TIMEOUT", "700ms"), ("BODY_TIMEOUT", "700ms")];
    let server = Server::start(&settings);
    let before = server.resident();
    let outcomes: Vec<_> = attacks.iter().map(|attack| beside(&server, attack)).collect();
    let grown = server.resident().saturating_sub(before);
    assert!(grown < MEMORY_BOUND, "{grown} bytes more than before");
    nothing_left(&server, &outcomes);
}
