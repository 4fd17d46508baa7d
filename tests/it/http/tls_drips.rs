//! Goal: a client that sends its bytes slowly has the same deadlines and the same end over TLS, where a
//! record can be read only when it is complete, as over a plain connection.
//!
//! Method: a table of clients, each over both. Of a request in one TLS record the bytes of that record
//! are sent as those of the request are over a plain connection.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::ClientConfig;

use crate::support::tls::{Authority, HOST, TlsClient, write};
use crate::support::{Client, PATIENCE, Reply, Server, chunked_request, request};

const HEADER: Duration = Duration::from_millis(1_500);
/// Longer than [`HEADER`] by so much that one is not taken for the other.
const LONG: Duration = Duration::from_secs(20);
const PAYLOAD: &[u8] = br#"{"data":[1]}"#;

/// A client over either.
enum Slow {
    Plain(Client),
    Tls(Box<TlsClient>),
}

impl Slow {
    fn connect(server: &Server, tls: Option<&Arc<ClientConfig>>) -> Slow {
        match tls {
            None => Slow::Plain(server.connect()),
            Some(config) => Slow::Tls(Box::new(TlsClient::connect(server.ingest, config))),
        }
    }

    /// `text` as it goes over the wire: in one record.
    fn wire(&mut self, text: &[u8]) -> Vec<u8> {
        match self {
            Slow::Plain(_) => text.to_vec(),
            Slow::Tls(client) => {
                let mut wire = Vec::new();
                client.stream.conn.writer().write_all(text).unwrap();
                while client.stream.conn.wants_write() {
                    client.stream.conn.write_tls(&mut wire).unwrap();
                }
                wire
            }
        }
    }

    /// A record that says that the client has new keys.
    fn new_keys(&mut self) -> Vec<u8> {
        let Slow::Tls(client) = self else { panic!("only TLS has keys") };
        client.stream.conn.refresh_traffic_keys().unwrap();
        self.wire(b"")
    }

    fn socket(&mut self) -> &mut TcpStream {
        match self {
            Slow::Plain(client) => &mut client.stream,
            Slow::Tls(client) => &mut client.stream.sock,
        }
    }

    /// Sends bytes of the wire; whether they were taken.
    fn try_send(&mut self, wire: &[u8]) -> bool {
        self.socket().write_all(wire).is_ok()
    }

    fn try_reply(&mut self) -> Option<Reply> {
        match self {
            Slow::Plain(client) => client.try_reply(),
            Slow::Tls(client) => client.try_reply(),
        }
    }

    /// Sends a whole request, which is answered by 200.
    fn post(&mut self, request: &[u8]) {
        let wire = self.wire(request);
        assert!(self.try_send(&wire));
        assert_eq!(self.try_reply().map(|reply| reply.status), Some(200));
    }

    /// Whether the server has answered or closed; waits as long as the socket does.
    fn is_answered(&mut self) -> bool {
        let client = match self {
            Slow::Plain(client) => return client.stream.peek(&mut [0]).is_ok(),
            Slow::Tls(client) => &mut client.stream,
        };
        match client.conn.read_tls(&mut client.sock) {
            Ok(0) => true,
            // Tickets are no answer.
            Ok(_) => client
                .conn
                .process_new_packets()
                .map_or(true, |state| state.plaintext_bytes_to_read() > 0),
            Err(_) => false,
        }
    }

    /// Sends `wire` a byte at a time, a whole one in [`LONG`], until the server says something.
    fn drip(&mut self, wire: &[u8]) {
        let pause = LONG / wire.len() as u32;
        self.socket().set_read_timeout(Some(pause)).unwrap();
        for byte in wire {
            if !self.try_send(&[*byte]) || self.is_answered() {
                break;
            }
        }
        self.socket().set_read_timeout(Some(PATIENCE)).unwrap();
    }
}

/// A server, and how to connect to it if it has TLS.
fn start(tls: bool, header_timeout: &str) -> (Server, Option<Arc<ClientConfig>>) {
    start_with(tls, header_timeout, "1m")
}

fn start_with(
    tls: bool,
    header_timeout: &str,
    idle_timeout: &str,
) -> (Server, Option<Arc<ClientConfig>>) {
    let mut settings = vec![("HEADER_TIMEOUT", header_timeout), ("IDLE_TIMEOUT", idle_timeout)];
    if !tls {
        return (Server::start(&settings), None);
    }
    let (authority, dir) = (Authority::new("root"), Arc::new(tempfile::tempdir().unwrap()));
    write(dir.path(), "cert.pem", authority.server(&[HOST]));
    settings.extend([("LISTEN", "https://127.0.0.1:0"), ("TLS_CERT", "cert.pem")]);
    (Server::start_in(dir, &settings), Some(authority.trust().config()))
}

/// Its name, requests that go before, what is sent at once, and what then drips.
type Drip<'a> = (&'a str, &'a [&'a [u8]], &'a [u8], &'a [u8]);

#[test]
fn a_head_that_drips_has_one_deadline_over_tls_and_without() {
    let whole = request(PAYLOAD, "");
    let half = &whole[..whole.len() / 2];
    let chunked = chunked_request(&[PAYLOAD], "");
    // What is sent before at once, and in the same connection then drips: a whole request as one record,
    // and one of which a part came before.
    let cases: [Drip<'_>; 5] = [
        ("the first request", &[], b"", &whole),
        ("the second one", &[&whole], b"", &whole),
        ("one after a request that hyper has read", &[&chunked], b"", &whole),
        ("one that hyper reads", &[&chunked], b"", &chunked),
        ("the end of a head", &[&whole], half, &whole[half.len()..]),
    ];
    for tls in [false, true] {
        let (server, config) = start(tls, "1500ms");
        std::thread::scope(|scope| {
            for (what, before, start, rest) in cases {
                let (server, config) = (&server, config.as_ref());
                scope.spawn(move || {
                    let mut client = Slow::connect(server, config);
                    before.iter().for_each(|request| client.post(request));
                    let began = Instant::now();
                    if !start.is_empty() {
                        let wire = client.wire(start);
                        assert!(client.try_send(&wire));
                    }
                    let wire = client.wire(rest);
                    client.drip(&wire);
                    let reply = client.try_reply();
                    let took = began.elapsed();
                    assert_eq!(reply.map(|reply| reply.status), Some(408), "{what}, TLS: {tls}");
                    assert!((HEADER..LONG / 2).contains(&took), "{what}, TLS: {tls}: {took:?}");
                });
            }
        });
        server.wait("all to be counted", |m| m.requests(408) == cases.len() as u64);
        server.wait_idle();
    }
}

/// New keys of a client are no request: however slowly their record comes, the connection is idle.
///
/// Rows: the request before; after how many bytes the record is cut; what follows it at once. A
/// request is answered that comes long after `HEADER_TIMEOUT`. Half of one that follows at once has
/// that time itself.
#[test]
fn new_keys_that_drip_begin_no_head() {
    let (server, config) = start(true, "700ms");
    let (whole, chunked) = (request(PAYLOAD, ""), chunked_request(&[PAYLOAD], ""));
    let half = &whole[..whole.len() / 2];
    std::thread::scope(|scope| {
        for before in [&whole, &chunked] {
            for cuts in [&[1][..], &[5, 6], &[20], &[]] {
                for (after, status) in [(&b""[..], 200), (half, 408)] {
                    let (server, config) = (&server, config.as_ref());
                    scope.spawn(move || {
                        let mut client = Slow::connect(server, config);
                        client.post(before);
                        let mut wire = client.new_keys();
                        let tail = client.wire(after);
                        let mut sent = 0;
                        for cut in cuts {
                            assert!(client.try_send(&wire[sent..*cut]));
                            sent = *cut;
                            std::thread::sleep(Duration::from_millis(100));
                        }
                        wire.extend(tail);
                        assert!(client.try_send(&wire[sent..]));
                        if after.is_empty() {
                            std::thread::sleep(2 * HEADER);
                            let request = client.wire(before);
                            assert!(client.try_send(&request), "cut at {cuts:?}");
                        }
                        let reply = client.try_reply().map(|reply| reply.status);
                        assert_eq!(reply, Some(status), "cut at {cuts:?}, then {}", after.len());
                    });
                }
            }
        }
    });
    server.wait_idle();
}

#[test]
fn new_keys_that_drip_keep_no_connection_open() {
    let (server, config) = start_with(true, "10s", "1s");
    let mut client = Slow::connect(&server, config.as_ref());
    client.post(&request(PAYLOAD, ""));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let wire = client.new_keys();
        let (start, rest) = wire.split_at(7);
        let mut sends = |part: &[u8]| {
            std::thread::sleep(Duration::from_millis(50));
            client.try_send(part)
        };
        if !sends(start) || !sends(rest) {
            break;
        }
        assert!(Instant::now() < deadline, "it is still open");
    }
    server.wait_idle();
}

/// A stop waits for a request of which a part has come.
#[test]
fn a_stop_waits_for_the_rest_of_a_request_over_tls_and_without() {
    for tls in [false, true] {
        let (server, config) = start(tls, "1m");
        let mut client = Slow::connect(&server, config.as_ref());
        client.post(&request(PAYLOAD, ""));
        let wire = client.wire(&request(PAYLOAD, ""));
        let (start, rest) = wire.split_at(wire.len() / 2);
        assert!(client.try_send(start));
        std::thread::sleep(Duration::from_millis(100));
        server.signal("TERM");
        server.wait_ready(503);
        // Longer than a stop waits for connections on which nothing has come.
        std::thread::sleep(Duration::from_millis(800));
        assert!(client.try_send(rest), "TLS: {tls}");
        let reply = client.try_reply().map(|reply| reply.status);
        assert_eq!(reply, Some(200), "TLS: {tls}");
        assert_eq!(server.wait_stopped().accepted, 2, "TLS: {tls}");
    }
}
