//! How long a stop takes: goal, no connection, whatever state a client has brought it into, holds a
//! stop up for longer than the time that this state has by itself.
//!
//! Method: a server for each state, SIGTERM, and the time until it has exited; half of
//! `DRAIN_TIMEOUT`, when everything ends, is much later.

use std::time::{Duration, Instant};

use millrace::internals::http::{LINGER_TIME_MAX, STOP_IDLE_GRACE};
use socket2::SockRef;

use crate::support::{Client, Server, chunked_request, request};

const HEADER: Duration = Duration::from_millis(4_000);
const BODY: Duration = Duration::from_millis(4_500);
/// What a busy machine may need on top.
const SLACK: Duration = Duration::from_secs(20);

type Prepare = fn(&Server) -> Vec<Client>;

/// The states, and how long a connection in it may go on.
const STATES: [(&str, Prepare, Duration); 13] = [
    ("no connection", |_| vec![], Duration::ZERO),
    ("never sent a byte", |server| vec![server.connect()], STOP_IDLE_GRACE),
    (
        "idle after a request",
        |server| vec![idle(server, &request(BODY_OF_ONE, ""))],
        STOP_IDLE_GRACE,
    ),
    (
        "idle after a chunked request",
        |server| vec![idle(server, &chunked_request(&[BODY_OF_ONE], ""))],
        STOP_IDLE_GRACE,
    ),
    (
        "idle for so long that it has given its buffers back",
        |server| {
            let client = idle(server, &request(BODY_OF_ONE, ""));
            std::thread::sleep(Duration::from_millis(600));
            vec![client]
        },
        STOP_IDLE_GRACE,
    ),
    ("line ends only", |server| vec![sent(server, b"\r\n\r\n")], STOP_IDLE_GRACE),
    ("half a head", |server| vec![sent(server, b"POST /payloads HTTP/1.1\r\n")], HEADER),
    ("a head that trickles", |server| trickling(server, "POST / HTTP/1.1\r\n"), HEADER),
    ("half a body", |server| vec![sent(server, HALF_A_BODY)], BODY),
    (
        "a body that trickles",
        |server| {
            trickling(
                server,
                "POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n",
            )
        },
        BODY,
    ),
    ("answers that nobody reads", |server| vec![deaf(server)], LINGER_TIME_MAX),
    (
        "lingering behind an early answer",
        |server| {
            let head = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n";
            let client = sent(server, head);
            assert_eq!(client.stream.peek(&mut [0]).unwrap(), 1);
            vec![client]
        },
        LINGER_TIME_MAX,
    ),
    ("idle on the admin listener", |server| vec![Client::connect(server.admin)], Duration::ZERO),
];

const BODY_OF_ONE: &[u8] = br#"{"data":[1]}"#;
const HALF_A_BODY: &[u8] =
    b"POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\n\r\n{\"data\"";

/// A connection that has had its answer.
fn idle(server: &Server, request: &[u8]) -> Client {
    let mut client = sent(server, request);
    assert_eq!(client.reply().status, 200);
    client
}

fn sent(server: &Server, bytes: &[u8]) -> Client {
    let mut client = server.connect();
    client.send(bytes);
    client
}

/// One that goes on sending by itself until it is closed.
fn trickling(server: &Server, start: &str) -> Vec<Client> {
    let client = sent(server, start.as_bytes());
    let mut sender = Client { stream: client.stream.try_clone().unwrap(), unread: Vec::new() };
    std::thread::spawn(move || {
        while sender.try_send(b"x") {
            std::thread::sleep(Duration::from_millis(30));
        }
    });
    vec![client]
}

/// One that sends requests until the server no longer takes any, because it cannot send its
/// answers.
fn deaf(server: &Server) -> Client {
    let mut client = server.connect();
    SockRef::from(&client.stream).set_recv_buffer_size(4096).unwrap();
    client.stream.set_write_timeout(Some(Duration::from_millis(700))).unwrap();
    let many = request(BODY_OF_ONE, "").repeat(1_000);
    while client.try_send(&many) {}
    client
}

#[test]
fn a_stop_takes_as_long_as_its_slowest_connection_may() {
    // Side by side, for most of the time is waited.
    std::thread::scope(|scope| {
        for (state, prepare, allowed) in STATES {
            scope.spawn(move || {
                let server = Server::start(&[
                    ("DRAIN_TIMEOUT", "2m"),
                    ("HEADER_TIMEOUT", "4s"),
                    ("BODY_TIMEOUT", "4500ms"),
                    ("STORE", "null:"),
                ]);
                let clients = prepare(&server);
                let signalled = Instant::now();
                let stopped = server.stop();
                let took = signalled.elapsed();
                assert!(took < allowed + SLACK, "{state}: {took:?}\n{}", stopped.log_text());
                if allowed == STOP_IDLE_GRACE {
                    assert!(
                        took >= STOP_IDLE_GRACE,
                        "{state}: {took:?}, no time for another request"
                    );
                }
                assert_eq!(stopped.status, 0, "{state}\n{}", stopped.log_text());
                drop(clients);
            });
        }
    });
}

/// Requests that never leave the connection idle, until it is told to close: none is cut off.
#[test]
fn a_busy_connection_is_told_to_close_with_its_next_answer() {
    let server = Server::start(&[("DRAIN_TIMEOUT", "40s")]);
    let mut client = server.connect();
    let one = request(BODY_OF_ONE, "");
    client.send([&one[..], &one].concat());
    let mut answered = 0;
    let close = loop {
        let reply = client.reply();
        assert_eq!(reply.status, 200);
        answered += 1;
        if reply.header("connection").is_some() {
            break reply;
        }
        if answered == 100 {
            server.signal("TERM");
        }
        client.send(&one);
    };
    assert_eq!(close.header("connection"), Some("close"));
    assert!(answered > 100);
    drop(client);
    let stopped = server.wait_stopped();
    // A client that pipelines cannot know of the last ones, which is what pipelining is.
    assert_eq!((stopped.status, stopped.accepted), (0, answered));
}
