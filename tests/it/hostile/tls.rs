//! Goal: whatever clients do with TLS, before, during and after the handshake, costs others nothing
//! and leaves nothing behind.
//!
//! Method: tables of attacks, each beside a good client with TLS, on servers with short deadlines.
//! What rustls as a client refuses to send is encrypted here, with the secrets of its session.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::crypto::cipher::{MessageEncrypter, OutboundPlainMessage};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, ContentType, ProtocolVersion,
    SupportedCipherSuite, SupportedProtocolVersion, version,
};

use super::support::{ATTACK_TIME, Attack, Outcome, Raid, beside_secured as beside, nothing_left};
use crate::support::tls::{Authority, HOST, TlsClient, write};
use crate::support::{Client, PATIENCE, Server, request};

/// What a server with much to do may take on top: the allocator keeps what was used once.
const MEMORY_BOUND: u64 = 48 << 20;

const NOTHING: &[u8] = br#"{"data":[]}"#;

const VERSIONS: [&[&SupportedProtocolVersion]; 2] = [&[&version::TLS13], &[&version::TLS12]];

/// A server with TLS whose deadlines can be seen at work, and how clients of TLS 1.3 and 1.2 connect.
fn start(more: &[(&str, &str)]) -> (Server, [Arc<ClientConfig>; 2]) {
    let (authority, dir) = (Authority::new("root"), Arc::new(tempfile::tempdir().unwrap()));
    write(dir.path(), "cert.pem", authority.server(&[HOST]));
    let mut settings = vec![
        ("LISTEN", "https://127.0.0.1:0"),
        ("TLS_CERT", "cert.pem"),
        ("STORE", "null:"),
        ("TLS_HANDSHAKE_TIMEOUT", "700ms"),
        ("HEADER_TIMEOUT", "700ms"),
        ("BODY_TIMEOUT", "700ms"),
        ("IDLE_TIMEOUT", "2s"),
    ];
    settings.extend_from_slice(more);
    let configs = VERSIONS.map(|versions| {
        let mut options = authority.trust();
        options.versions = versions;
        let mut config = options.config();
        Arc::make_mut(&mut config).enable_secret_extraction = true;
        config
    });
    (Server::start_in(dir, &settings), configs)
}

/// Each of `attacks` beside a good client, all on one server.
fn raid(server: &Server, configs: &[Arc<ClientConfig>; 2], attacks: &[Attack]) {
    let before = server.resident();
    let outcomes: Vec<Outcome> =
        attacks.iter().map(|attack| beside(server, attack, configs, ATTACK_TIME)).collect();
    let grown = server.resident().saturating_sub(before);
    assert!(grown < MEMORY_BOUND, "{grown} bytes more than before");
    nothing_left(server, &outcomes);
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_connection_panics_total"), 0);
    assert_eq!(metrics.sum("millrace_tls_handshakes_open"), 0);
}

fn refusals(server: &Server, reason: &str) -> u64 {
    let label = format!("reason=\"{reason}\"");
    server.metrics().sum_where("millrace_tls_refusals_total", &label)
}

/// Places in [`VERSIONS`].
const TLS13: usize = 0;
const TLS12: usize = 1;

impl Raid {
    /// A connection whose handshake is complete, and that waits for nothing from then on.
    fn shake(&self, version: usize) -> Option<TlsClient> {
        let config = &self.tls.as_ref().expect("the attack is over TLS")[version];
        let client = TlsClient::over(TcpStream::connect(self.server).ok()?, config, HOST).ok()?;
        client.stream.sock.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        client.stream.sock.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        Some(client)
    }

    /// As many of them as the attack holds.
    fn shake_all(&self, version: usize) -> Vec<TlsClient> {
        (0..self.connections).filter_map(|_| self.shake(version)).collect()
    }

    /// What a client of TLS 1.3 says first.
    fn hello(&self) -> Vec<u8> {
        self.hello_of(TLS13)
    }

    fn hello_of(&self, version: usize) -> Vec<u8> {
        let config = &self.tls.as_ref().expect("the attack is over TLS")[version];
        let host = HOST.to_owned().try_into().unwrap();
        let mut client = ClientConnection::new(config.clone(), host).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    }
}

/// Waits until the server closes, or resets.
pub(super) fn ends(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    if let Err(error) = stream.read_to_end(&mut Vec::new()) {
        assert!(error.kind() != ErrorKind::WouldBlock, "it stays open");
    }
}

pub(super) fn reset(stream: TcpStream) {
    socket2::Socket::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Sends a byte of `bytes` on each connection in turn, and opens another where it is over.
fn bytewise(raid: &mut Raid, bytes: &[u8]) {
    let mut held: Vec<(Option<Client>, usize)> = Vec::new();
    held.resize_with(raid.connections, || (None, 0));
    let mut turn = 0;
    while raid.turn() {
        let (client, sent) = &mut held[turn % raid.connections];
        let is_sent = client.as_mut().is_some_and(|client| client.try_send([bytes[*sent]]));
        *sent += 1;
        if !is_sent || *sent == bytes.len() {
            (*client, *sent) = (raid.connect(), 0);
        }
        turn += 1;
    }
}

fn slow_hellos(raid: &mut Raid) {
    let hello = raid.hello();
    bytewise(raid, &hello);
}

/// Sends `bytes` on a connection a turn, and holds as many as it may.
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

fn half_hellos(raid: &mut Raid) {
    let hello = raid.hello();
    hold_after(raid, &hello[..hello.len() / 2]);
}

/// The server makes a key exchange and a signature for each.
fn hellos_and_nothing(raid: &mut Raid) {
    let hello = raid.hello();
    hold_after(raid, &hello);
}

/// The first bytes of the longest message that is held.
fn endless_hellos(raid: &mut Raid) {
    // A ClientHello of 16 MiB in records of 16 KiB, none of which is the last one.
    let mut record = vec![0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
    record.resize(5 + 0x4000, 7);
    let more = [&[0x16, 3, 1, 0x40, 0][..], &[7; 0x4000]].concat();
    while raid.turn() {
        let Some(mut client) = raid.connect() else { continue };
        let mut is_open = client.try_send(&record);
        for _ in 0..8 {
            is_open = is_open && client.try_send(&more);
        }
        ends(&client.stream);
    }
}

fn silence(raid: &mut Raid) {
    hold_after(raid, b"");
}

#[test]
fn slow_handshakes_cost_the_others_nothing() {
    let attacks = [
        Attack { name: "slow hellos", connections: 64, per_second: 400, run: slow_hellos },
        Attack { name: "half hellos", connections: 64, per_second: 200, run: half_hellos },
        Attack { name: "hellos alone", connections: 64, per_second: 100, run: hellos_and_nothing },
        Attack { name: "endless hellos", connections: 1, per_second: 20, run: endless_hellos },
        Attack { name: "silence", connections: 64, per_second: 200, run: silence },
    ];
    let (server, configs) = start(&[]);
    raid(&server, &configs, &attacks);
    assert!(refusals(&server, "timeout") > 0, "the deadline was at work");
    assert!(refusals(&server, "malformed") > 0, "so was the bound of a message");
    assert_eq!(refusals(&server, "busy"), 0);
}

fn hello_and_reset(raid: &mut Raid) {
    let hello = raid.hello();
    while raid.turn() {
        if let Some(mut client) = raid.connect() {
            client.try_send(&hello);
            reset(client.stream);
        }
    }
}

fn hello_and_garbage(raid: &mut Raid) {
    let both = [raid.hello(), vec![0x17; 600]].concat();
    hold_after(raid, &both);
}

fn whole_handshakes(raid: &mut Raid, version: usize) {
    while raid.turn() {
        drop(raid.shake(version));
    }
}

fn handshakes_of_1_3(raid: &mut Raid) {
    whole_handshakes(raid, TLS13);
}

fn handshakes_of_1_2(raid: &mut Raid) {
    whole_handshakes(raid, TLS12);
}

fn handshake_and_reset(raid: &mut Raid) {
    while raid.turn() {
        if let Some(client) = raid.shake(TLS13) {
            reset(client.stream.sock);
        }
    }
}

/// Each turn a record of a random type, version, length and content.
fn random_records(raid: &mut Raid) {
    let mut rng = fastrand::Rng::with_seed(16);
    let hello = raid.hello();
    while raid.turn() {
        let Some(mut client) = raid.connect() else { continue };
        let mut bytes = match rng.bool() {
            true => hello.clone(),
            false => [&[0x16, 3, rng.u8(0..5), rng.u8(0..2), rng.u8(..)][..], &[0; 600]].concat(),
        };
        for _ in 0..rng.usize(1..20) {
            let at = rng.usize(5..bytes.len());
            bytes[at] = rng.u8(..);
        }
        client.try_send(bytes);
        client.half_close();
        // An answer of the handshake, an alert, or neither; then the end.
        ends(&client.stream);
    }
}

fn plain_requests(raid: &mut Raid) {
    let plain = request(NOTHING, "");
    while raid.turn() {
        let Some(mut client) = Client::try_connect(raid.server) else { continue };
        client.try_send(&plain);
        assert_eq!(client.try_reply().map(|reply| reply.status), Some(400));
    }
}

/// More handshakes at a time than there may be in progress, all of which the server has begun.
#[test]
fn floods_of_handshakes() {
    let attacks = [
        Attack { name: "hello, RST", connections: 1, per_second: 150, run: hello_and_reset },
        Attack {
            name: "hello, garbage",
            connections: 100,
            per_second: 100,
            run: hello_and_garbage,
        },
        Attack { name: "1.3, close", connections: 1, per_second: 60, run: handshakes_of_1_3 },
        Attack { name: "1.2, close", connections: 1, per_second: 60, run: handshakes_of_1_2 },
        Attack { name: "1.3, RST", connections: 1, per_second: 60, run: handshake_and_reset },
        Attack { name: "random records", connections: 1, per_second: 60, run: random_records },
        Attack { name: "plain requests", connections: 1, per_second: 200, run: plain_requests },
    ];
    let (server, configs) = start(&[]);
    raid(&server, &configs, &attacks);
    assert!(refusals(&server, "closed") > 0 && refusals(&server, "plain_http") > 0);
}

/// A crowd that keeps all places of handshakes in progress: the oldest gives way, and the good
/// client comes through.
#[test]
fn a_crowd_of_handshakes_keeps_nobody_out() {
    let settings = [("TLS_HANDSHAKES", "128"), ("TLS_HANDSHAKE_TIMEOUT", "30s")];
    let (server, configs) = start(&settings);
    let crowd = Attack { name: "a crowd", connections: 400, per_second: 80, run: half_hellos };
    // The places are taken after 1.6 s, when each has had the second that it is sure of; later on a
    // busy machine.
    let mut outcomes = Vec::new();
    for times in [3, 6, 20] {
        outcomes.push(beside(&server, &crowd, &configs, times * ATTACK_TIME));
        if refusals(&server, "gave_way") > 0 {
            break;
        }
    }
    assert!(refusals(&server, "gave_way") > 0);
    nothing_left(&server, &outcomes);
}

/// Begins handshakes from one address, which is not the good client's.
fn half_hellos_of_one_address(raid: &mut Raid) {
    let hello = raid.hello();
    let mut held: Vec<Client> = Vec::new();
    while raid.turn() {
        if held.len() >= raid.connections {
            held.remove(0);
        }
        let mut client = Client::connect_from([127, 0, 0, 9].into(), raid.server);
        client.stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        client.try_send(&hello[..hello.len() / 2]);
        held.push(client);
    }
}

/// A crowd of one address that begins more handshakes in a second than there are places, so that none
/// of them gets old: its own give way to the good client.
#[test]
fn a_crowd_of_one_address_keeps_nobody_else_out() {
    let settings = [("TLS_HANDSHAKES", "64"), ("TLS_HANDSHAKE_TIMEOUT", "30s"), ("CORES", "0")];
    let (server, configs) = start(&settings);
    let crowd = Attack {
        name: "a crowd of one address",
        connections: 400,
        per_second: 400,
        run: half_hellos_of_one_address,
    };
    let mut outcomes = Vec::new();
    for times in [2, 4, 10] {
        outcomes.push(beside(&server, &crowd, &configs, times * ATTACK_TIME));
        if refusals(&server, "busy") > 0 && refusals(&server, "gave_way") > 0 {
            break;
        }
    }
    assert!(refusals(&server, "busy") > 0, "the crowd is not let in faster for it");
    assert!(refusals(&server, "gave_way") > 0);
    nothing_left(&server, &outcomes);
}

/// Encrypts what rustls does not send, as its session would.
struct Forger {
    stream: TcpStream,
    encrypter: Box<dyn MessageEncrypter>,
    next: u64,
    version: ProtocolVersion,
}

impl Forger {
    /// Takes over from a client.
    fn of(client: TlsClient) -> Forger {
        let (connection, stream) = (client.stream.conn, client.stream.sock);
        let suite = connection.negotiated_cipher_suite().unwrap();
        let version = connection.protocol_version().unwrap();
        let (next, secrets) = connection.dangerous_extract_secrets().unwrap().tx;
        let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }) = secrets
        else {
            panic!("another cipher than AES");
        };
        let encrypter = match suite {
            SupportedCipherSuite::Tls13(suite) => suite.aead_alg.encrypter(key, iv),
            // Of the nonce the first four bytes are secret, the rest is sent along.
            SupportedCipherSuite::Tls12(suite) => {
                let (fixed, rest) = iv.as_ref().split_at(4);
                suite.aead_alg.encrypter(key, fixed, rest)
            }
        };
        Forger { stream, encrypter, next, version }
    }

    /// The next record, with this content, as if it were of `kind`.
    fn record(&mut self, kind: ContentType, content: &[u8]) -> Vec<u8> {
        let plain =
            OutboundPlainMessage { typ: kind, version: self.version, payload: content.into() };
        let record = self.encrypter.encrypt(plain, self.next).unwrap().encode();
        self.next += 1;
        record
    }

    fn try_send(&mut self, kind: ContentType, content: &[u8]) -> bool {
        let record = self.record(kind, content);
        self.stream.write_all(&record).is_ok()
    }
}

/// Sends `times` records of this content in each of many sessions; the server must close all of them
/// before it has read all.
fn forged(raid: &mut Raid, version: usize, kind: ContentType, content: &[u8], times: usize) {
    while raid.turn() {
        let Some(client) = raid.shake(version) else { continue };
        let mut forger = Forger::of(client);
        for _ in 0..times {
            if !forger.try_send(kind, content) {
                break;
            }
        }
        ends(&forger.stream);
    }
}

/// The head of a record, which comes before a message.
const RECORD_HEAD: usize = 5;

fn renegotiation(raid: &mut Raid) {
    let hello = raid.hello_of(TLS12);
    forged(raid, TLS12, ContentType::Handshake, &hello[RECORD_HEAD..], 4);
}

fn second_hello(raid: &mut Raid) {
    let hello = raid.hello();
    forged(raid, TLS13, ContentType::Handshake, &hello[RECORD_HEAD..], 4);
}

/// Each asks for new keys of the server, and an answer.
fn key_updates(raid: &mut Raid) {
    forged(raid, TLS13, ContentType::Handshake, &[24, 0, 0, 1, 1], 200);
}

fn warnings(raid: &mut Raid) {
    // `user_canceled`.
    forged(raid, TLS12, ContentType::Alert, &[1, 90], 200);
}

fn changes_of_cipher(raid: &mut Raid) {
    forged(raid, TLS12, ContentType::ChangeCipherSpec, &[1], 4);
}

fn unknown_records(raid: &mut Raid) {
    forged(raid, TLS13, ContentType::Unknown(99), b"x", 4);
}

/// The longest message, in records that come at once: more than may be held of one.
fn long_message(raid: &mut Raid, version: usize) {
    const NEW_SESSION_TICKET: u8 = 4;
    let message = [&[NEW_SESSION_TICKET, 0, 0xff, 0xff][..], &[0; 0xffff]].concat();
    while raid.turn() {
        let Some(client) = raid.shake(version) else { continue };
        let mut forger = Forger::of(client);
        let records = message.chunks(16 << 10);
        let records: Vec<u8> =
            records.flat_map(|part| forger.record(ContentType::Handshake, part)).collect();
        let _or_it_is_cut = forger.stream.write_all(&records);
        ends(&forger.stream);
    }
}

fn long_message_of_13(raid: &mut Raid) {
    long_message(raid, TLS13);
}

fn long_message_of_12(raid: &mut Raid) {
    long_message(raid, TLS12);
}

#[test]
fn messages_of_handshakes_after_the_handshake() {
    let attacks = [
        Attack {
            name: "long message, 1.3",
            connections: 1,
            per_second: 20,
            run: long_message_of_13,
        },
        Attack {
            name: "long message, 1.2",
            connections: 1,
            per_second: 20,
            run: long_message_of_12,
        },
        Attack { name: "renegotiation", connections: 1, per_second: 40, run: renegotiation },
        Attack { name: "second hello", connections: 1, per_second: 40, run: second_hello },
        Attack { name: "key updates", connections: 1, per_second: 20, run: key_updates },
        Attack { name: "warnings", connections: 1, per_second: 20, run: warnings },
        Attack { name: "cipher changes", connections: 1, per_second: 40, run: changes_of_cipher },
        Attack { name: "unknown records", connections: 1, per_second: 40, run: unknown_records },
    ];
    let (server, configs) = start(&[]);
    raid(&server, &configs, &attacks);
}

/// Records without content, again and again: no byte of a head comes, so its deadline runs.
fn empty_records(raid: &mut Raid) {
    let begin = |raid: &Raid| raid.shake(TLS13).map(Forger::of);
    let mut held: Vec<Option<Forger>> = (0..raid.connections).map(|_| begin(raid)).collect();
    let (mut turn, mut cut) = (0, 0);
    while raid.turn() || (cut == 0 && raid.extra_turn()) {
        let at = turn % held.len();
        let send = |forger: &mut Forger| forger.try_send(ContentType::ApplicationData, b"");
        if !held[at].as_mut().is_some_and(send) {
            cut += usize::from(held[at].is_some());
            held[at] = begin(raid);
        }
        turn += 1;
    }
    assert!(cut > 0, "nobody is cut off");
}

/// Sends a piece of an endless stream on each session in turn, and begins another where it is over.
fn trickle(raid: &mut Raid, start: &[u8], piece: &[u8]) {
    let begin = |raid: &Raid| {
        let mut client = raid.shake(TLS13)?;
        client.try_send(start).ok()?;
        Some(client)
    };
    let mut held: Vec<Option<TlsClient>> = (0..raid.connections).map(|_| begin(raid)).collect();
    let mut turn = 0;
    while raid.turn() {
        let at = turn % held.len();
        let send = |client: &mut TlsClient| client.try_send(piece).is_ok();
        if !held[at].as_mut().is_some_and(send) {
            held[at] = begin(raid);
        }
        turn += 1;
    }
}

fn slow_heads(raid: &mut Raid) {
    trickle(raid, b"POST /payloads HTTP/1.1\r\nhost: x\r\n", b"x");
}

fn slow_bodies(raid: &mut Raid) {
    let head = b"POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n{\"data\":[";
    trickle(raid, head, b"1,");
}

/// A record that never ends: what has come of it is held.
fn half_records(raid: &mut Raid) {
    let mut held: Vec<TlsClient> = Vec::new();
    while raid.turn() {
        if held.len() >= raid.connections {
            held.remove(0);
        }
        let Some(mut client) = raid.shake(TLS13) else { continue };
        let half = [&[0x17, 3, 3, 0x40, 0][..], &[7; 16_000]].concat();
        let _or_it_is_cut = client.stream.sock.write_all(&half);
        held.push(client);
    }
}

/// Whole requests for as long as the server takes them, and no answer is read.
fn never_read(raid: &mut Raid) {
    let batch = request(NOTHING, "").repeat(20);
    let mut held = raid.shake_all(TLS13);
    let mut turn = 0;
    while raid.turn() {
        let at = turn % held.len();
        let client = &mut held[at];
        client.stream.sock.set_nonblocking(true).unwrap();
        // What the socket does not take waits in the session, which takes no more then.
        let _full = client.stream.conn.writer().write(&batch);
        while client.stream.conn.wants_write() {
            match client.stream.conn.write_tls(&mut client.stream.sock) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    if let Some(fresh) = raid.shake(TLS13) {
                        *client = fresh;
                    }
                    break;
                }
            }
        }
        turn += 1;
    }
}

fn garbage(raid: &mut Raid) {
    while raid.turn() {
        let Some(mut client) = raid.shake(TLS13) else { continue };
        let _or_it_is_cut = client.stream.sock.write_all(&[0x17; 300]);
        client.stream.sock.set_read_timeout(Some(PATIENCE)).unwrap();
        let error = client.rest().expect_err("an alert");
        assert!(error.kind() != ErrorKind::WouldBlock, "{error}");
    }
}

fn half_a_request_and_reset(raid: &mut Raid) {
    let whole = request(&[b' '; 4096], "");
    while raid.turn() {
        if let Some(mut client) = raid.shake(TLS13) {
            let _or_it_is_cut = client.try_send(&whole[..2_000]);
            reset(client.stream.sock);
        }
    }
}

/// A body whose end is cut off, without an alert: it is not taken for a whole one.
fn cut_without_an_alert(raid: &mut Raid) {
    let whole = request(br#"{"data":[1,2]}"#, "");
    while raid.turn() {
        if let Some(mut client) = raid.shake(TLS13) {
            let _or_it_is_cut = client.try_send(&whole[..whole.len() - 1]);
            drop(client.stream.sock);
        }
    }
}

#[test]
fn sessions_that_are_slow_cut_or_never_read() {
    let attacks = [
        Attack { name: "empty records", connections: 8, per_second: 400, run: empty_records },
        Attack { name: "slow heads", connections: 8, per_second: 100, run: slow_heads },
        Attack { name: "slow bodies", connections: 8, per_second: 100, run: slow_bodies },
        Attack { name: "half records", connections: 32, per_second: 40, run: half_records },
        Attack { name: "unread answers", connections: 8, per_second: 100, run: never_read },
        Attack { name: "garbage", connections: 1, per_second: 40, run: garbage },
        Attack {
            name: "half a request, RST",
            connections: 1,
            per_second: 40,
            run: half_a_request_and_reset,
        },
        Attack {
            name: "cut without an alert",
            connections: 1,
            per_second: 40,
            run: cut_without_an_alert,
        },
    ];
    let (server, configs) = start(&[]);
    raid(&server, &configs, &attacks);
    assert!(server.metrics().requests(408) > 0, "the deadlines were at work");
}
