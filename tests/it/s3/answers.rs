//! Answers that no S3 server of ours would give, byte by byte from a scripted socket: what is
//! framed otherwise, early, broken or no HTTP at all. The lean client alone; the SDK's is hyper's
//! business.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use millrace::internals::config::S3Client;
use millrace::internals::store::Class::{self, StoreWide, Transient};
use millrace::internals::store::s3::{Overrides, S3Control};
use millrace::internals::store::{Object, Store};

use crate::support::s3::{ACCESS_KEY, SECRET_KEY};
use crate::support::s3_client::{
    idle_connections, keys, on_executor, options, payload, store_at, target,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// What the server does on one connection, in order.
#[derive(Clone)]
enum Act {
    /// Reads a head and the body it announces.
    TakeRequest,
    /// Reads a head, and of the body only what came with it.
    TakeHead,
    Say(String),
    Pause(Duration),
}

use Act::{Pause, Say, TakeHead, TakeRequest};

fn say(text: &str) -> Act {
    Say(text.to_owned())
}

/// A server that goes through one script per connection and then closes it. The receiver gets what
/// was read of each.
fn scripted(scripts: Vec<Vec<Act>>) -> (SocketAddr, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (send, received) = mpsc::channel();
    std::thread::spawn(move || {
        for script in scripts {
            let (mut socket, _) = listener.accept().unwrap();
            let mut read = Vec::new();
            for act in script {
                match act {
                    TakeRequest => read = take(&mut socket, true),
                    TakeHead => read = take(&mut socket, false),
                    Say(text) => socket.write_all(text.as_bytes()).unwrap(),
                    Pause(pause) => std::thread::sleep(pause),
                }
            }
            let _ = send.send(read);
        }
    });
    (addr, received)
}

fn take(socket: &mut TcpStream, with_body: bool) -> Vec<u8> {
    let (mut read, mut chunk) = (Vec::new(), [0; 16 << 10]);
    let mut wanted = None;
    while wanted.is_none_or(|wanted| read.len() < wanted) {
        match socket.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => read.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => break,
            Err(e) => panic!("{e}"),
        }
        if let Some(head) = read.windows(4).position(|end| end == b"\r\n\r\n") {
            let text = String::from_utf8(read[..head].to_vec()).unwrap();
            let length = text.split("content-length: ").nth(1).unwrap();
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            wanted = Some(head + 4 + if with_body { length } else { 0 });
        }
    }
    read
}

async fn store_on(addr: SocketAddr) -> (S3Control, Store) {
    let overrides = Overrides {
        credentials: keys(ACCESS_KEY, SECRET_KEY),
        region: Some("us-east-1".into()),
        endpoint_url: Some(format!("http://{addr}")),
        ..Overrides::default()
    };
    store_at(target(options(S3Client::Direct)), overrides).await
}

async fn put(store: &Store, bytes: usize) -> Result<(), (Class, String)> {
    let payload = payload(vec![b'1'; bytes]);
    store.put(&Object::of("k", &payload)).await.map_err(|error| (error.class, error.code))
}

fn failed(class: Class, code: &str) -> Result<(), (Class, String)> {
    Err((class, code.to_owned()))
}

/// One put answered with `answer`; also how many connections are kept then.
fn answered(answer: &str) -> (Result<(), (Class, String)>, usize) {
    let (addr, _received) = scripted(vec![vec![TakeRequest, say(answer), Pause(PAUSE)]]);
    on_executor(async {
        let (_aws, store) = store_on(addr).await;
        (put(&store, 2).await, idle_connections(&store))
    })
}

/// Long enough for the other side to see what was said before.
const PAUSE: Duration = Duration::from_secs(1);

#[test]
fn every_framing_of_an_answer() {
    let error = "<Error><Code>SlowDown</Code></Error>";
    let chunked = format!(
        "HTTP/1.1 503 Slow\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{error}\r\n0\r\n\r\n",
        error.len()
    );
    for (answer, expected, kept) in [
        (OK.to_owned(), Ok(()), 1),
        (format!("HTTP/1.1 100 Continue\r\n\r\n{OK}"), Ok(()), 1),
        ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), Ok(()), 1),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_owned(), Ok(()), 0),
        (OK.replace("1.1", "1.0"), Ok(()), 0),
        (format!("{OK}surplus"), Ok(()), 0),
        (chunked, failed(Transient, "SlowDown"), 1),
        (format!("HTTP/1.1 503 Slow\r\n\r\n{error}"), failed(Transient, "SlowDown"), 0),
        (
            // A gateway that had said 200 before it knew.
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{error}", error.len()),
            failed(Transient, "SlowDown"),
            1,
        ),
    ] {
        assert_eq!(answered(&answer), (expected, kept), "{answer:?}");
    }
}

#[test]
fn what_is_no_answer_is_refused_and_its_connection_dropped() {
    for answer in [
        "SSH-2.0-x\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
    ] {
        assert_eq!(answered(answer), (failed(Transient, "BadAnswer"), 0), "{answer:?}");
    }
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(40_000));
    assert_eq!(answered(&long), (failed(Transient, "BadAnswer"), 0));
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n123";
    assert_eq!(answered(cut), (failed(Transient, "ConnectionBroken"), 0));
}

#[test]
fn an_answer_in_pieces() {
    let pieces = OK.as_bytes().chunks(7).flat_map(|piece| {
        let piece = String::from_utf8(piece.to_vec()).unwrap();
        [Say(piece), Pause(Duration::from_millis(2))]
    });
    let script = std::iter::once(TakeRequest).chain(pieces).collect();
    let (addr, received) = scripted(vec![script]);
    on_executor(async {
        let (_aws, store) = store_on(addr).await;
        assert_eq!(put(&store, 1000).await, Ok(()));
    });
    let request = received.recv().unwrap();
    assert!(request.ends_with(&[b'1'; 1000]));
}

/// A store may refuse by the head alone, while megabytes are on their way, and close.
#[test]
fn a_refusal_that_comes_before_the_body_was_sent_is_read() {
    let body = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>";
    let refusal = format!("HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    // It stays open, without reading; or it closes at once, which resets what is still unread.
    for stays in [Duration::from_secs(2), Duration::ZERO] {
        let script = vec![TakeHead, say(&refusal), Pause(stays)];
        let (addr, _received) = scripted(vec![script, vec![TakeRequest, say(OK)]]);
        on_executor(async {
            let (_aws, store) = store_on(addr).await;
            assert_eq!(put(&store, 32 << 20).await, failed(StoreWide, "AccessDenied"));
            assert_eq!(idle_connections(&store), 0, "half a request is still on it");
        });
    }
}

#[test]
fn a_confirmation_of_what_was_not_sent_is_none() {
    let (addr, _received) = scripted(vec![vec![TakeHead, say(OK), Pause(PAUSE)]]);
    on_executor(async {
        let (_aws, store) = store_on(addr).await;
        assert_eq!(put(&store, 32 << 20).await, failed(Transient, "BadAnswer"));
    });
}

#[test]
fn bytes_that_nobody_asked_for_end_a_kept_connection() {
    let (addr, received) = scripted(vec![
        vec![
            TakeRequest,
            say(OK),
            Pause(PAUSE),
            say("HTTP/1.1 408 Idle\r\n\r\n"),
            Pause(2 * PAUSE),
        ],
        vec![TakeRequest, say(OK), Pause(PAUSE)],
    ]);
    on_executor(async {
        let (_aws, store) = store_on(addr).await;
        assert_eq!(put(&store, 2).await, Ok(()));
        assert_eq!(idle_connections(&store), 1);
        glommio::timer::Timer::new(PAUSE * 5 / 2).await;
        assert_eq!(put(&store, 2).await, Ok(()));
    });
    assert_eq!(received.iter().count(), 2);
}
