//! Goal: clients that are slow on purpose, or that never read, cost the others nothing.
//!
//! Method: a table of them, each with a good client beside it, on a server whose deadlines are
//! short enough to be seen at work.

use std::io::Read as _;

use super::support::{Attack, Raid, beside, nothing_left};
use crate::support::{Client, Server, request};

/// Sends `byte(n)` of an endless stream on each connection in turn, and opens another where the
/// server has closed one.
fn trickle(raid: &mut Raid, start: &[u8], byte: fn(usize) -> u8) {
    let begin = |raid: &Raid| {
        let mut client = raid.connect()?;
        client.try_send(start).then_some(client)
    };
    let mut clients: Vec<Option<Client>> = (0..raid.connections).map(|_| begin(raid)).collect();
    let mut turn = 0;
    while raid.turn() {
        let at = turn % clients.len();
        let piece = [byte(turn / clients.len())];
        let sent = clients[at].as_mut().is_some_and(|client| client.try_send(piece));
        if !sent {
            clients[at] = begin(raid);
        }
        turn += 1;
    }
}

fn slow_heads(raid: &mut Raid) {
    trickle(raid, b"", |n| b"POST /payloads HTTP/1.1\r\nhost: x\r\nx: yyyyyyyyyyyyyyyyyy"[n % 54]);
}

fn slow_fields(raid: &mut Raid) {
    trickle(raid, b"POST /payloads HTTP/1.1\r\nhost: x\r\n", |n| b"x: y\r\n"[n % 6]);
}

fn slow_bodies(raid: &mut Raid) {
    let head = b"POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n{\"data\":[";
    trickle(raid, head, |n| b"1,"[n % 2]);
}

fn slow_chunks(raid: &mut Raid) {
    let head =
        b"POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4000\r\n{\"data\":[";
    trickle(raid, head, |n| b"1,"[n % 2]);
}

fn slow_chunk_lines(raid: &mut Raid) {
    let head = b"POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    trickle(raid, head, |n| b"1\r\n \r\n"[n % 6]);
}

/// Says that a body will come and never sends it, `100 Continue` or not.
fn expect_and_nothing(raid: &mut Raid) {
    let head =
        b"POST /payloads HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n";
    let mut held: Vec<Client> = Vec::new();
    while raid.turn() {
        if held.len() >= raid.connections {
            held.remove(0);
        }
        let Some(mut client) = raid.connect() else { continue };
        client.try_send(head);
        held.push(client);
    }
}

/// Says nothing at all, on as many connections as it may.
fn half_open(raid: &mut Raid) {
    let mut held = raid.connect_all();
    while raid.turn() {
        held.remove(0);
        held.extend(raid.connect());
    }
}

#[test]
fn slow_clients_cost_the_others_nothing() {
    let attacks = [
        Attack { name: "slow heads", connections: 64, per_second: 400, run: slow_heads },
        Attack { name: "slow fields", connections: 64, per_second: 400, run: slow_fields },
        Attack { name: "slow bodies", connections: 64, per_second: 400, run: slow_bodies },
        Attack { name: "slow chunks", connections: 64, per_second: 400, run: slow_chunks },
        Attack {
            name: "slow chunk lines",
            connections: 64,
            per_second: 400,
            run: slow_chunk_lines,
        },
        Attack { name: "no body", connections: 64, per_second: 200, run: expect_and_nothing },
        Attack { name: "half-open", connections: 64, per_second: 200, run: half_open },
    ];
    let settings = [
        ("STORE", "null:"),
        ("HEADER_TIMEOUT", "500ms"),
        ("BODY_TIMEOUT", "500ms"),
        ("IDLE_TIMEOUT", "2s"),
    ];
    let server = Server::start(&settings);
    let mut outcomes: Vec<_> = attacks.iter().map(|attack| beside(&server, attack)).collect();
    // The deadlines are at work.
    for _ in 0..10 {
        if server.metrics().requests(408) == 0 {
            outcomes.push(beside(&server, &attacks[0]));
        }
    }
    nothing_left(&server, &outcomes);
    assert!(server.metrics().requests(408) > 0);
}

/// Sends whole requests for as long as the server takes them and never reads an answer.
fn never_read(raid: &mut Raid, request: &[u8]) {
    let batch = request.repeat(20);
    let mut clients = raid.connect_all();
    for client in &clients {
        client.stream.set_nonblocking(true).unwrap();
    }
    let mut turn = 0;
    while raid.turn() {
        let at = turn % clients.len();
        let client = &mut clients[at];
        match std::io::Write::write(&mut client.stream, &batch) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => {
                // Cut off; the next one.
                if let Some(fresh) = raid.connect() {
                    fresh.stream.set_nonblocking(true).unwrap();
                    clients[at] = fresh;
                }
            }
        }
        turn += 1;
    }
    // What was sent by then is answered or refused, never half counted.
    for client in &mut clients {
        let _nobody_reads = client.stream.read(&mut [0]);
    }
}

fn never_read_404(raid: &mut Raid) {
    never_read(raid, b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n");
}

fn never_read_400(raid: &mut Raid) {
    never_read(raid, &request(b"{}", ""));
}

fn never_read_200(raid: &mut Raid) {
    never_read(raid, &request(br#"{"data":[]}"#, ""));
}

#[test]
fn pipelining_clients_that_never_read_cost_the_others_nothing() {
    let attacks = [
        Attack { name: "unread 404s", connections: 16, per_second: 200, run: never_read_404 },
        Attack { name: "unread 400s", connections: 16, per_second: 200, run: never_read_400 },
        Attack { name: "unread 200s", connections: 16, per_second: 200, run: never_read_200 },
    ];
    let server = Server::start(&[("STORE", "null:")]);
    let before = server.resident();
    let outcomes: Vec<_> = attacks.iter().map(|attack| beside(&server, attack)).collect();
    nothing_left(&server, &outcomes);
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more than before for answers nobody reads");
}
