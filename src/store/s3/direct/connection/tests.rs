//! Exchanges with a server that does what a test says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::net::Net;
use crate::store::Progress;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
const HEAD: &[u8] = b"PUT / HTTP/1.1\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno";

/// Serves one connection on a thread of its own, and gives what `serve` gave.
fn serve<T: Send + 'static>(
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, thread::JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        serve(socket)
    });
    (address, thread)
}

fn with_connection<T>(
    address: SocketAddr,
    test: impl AsyncFnOnce(&mut DirectConnection) -> T,
) -> T {
    crate::rt::run_test(async {
        let stream = Net::here().unwrap().connect(address).await.unwrap();
        test(&mut DirectConnection::new(Wire::plain(stream))).await
    })
}

/// One exchange as the store begins it.
async fn exchange(connection: &mut DirectConnection, body: &[Payload]) -> Result<(), Failure> {
    connection.head().extend_from_slice(HEAD);
    connection.exchange(body, &Progress::default()).await
}

fn noise(length: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(length as u64);
    (0..length).map(|_| rng.u8(..)).collect()
}

fn body_of(parts: &[usize]) -> Vec<Payload> {
    parts.iter().map(|length| Payload::from(noise(*length))).collect()
}

fn whole(body: &[Payload]) -> Vec<u8> {
    body.iter().flat_map(|part| part.iter().copied()).collect()
}

/// Bodies about the bounds of what is copied, of no bytes, and of parts without any.
fn bodies() -> Vec<Vec<Payload>> {
    const PART: usize = 256 << 10;
    [
        &[][..],
        &[0],
        &[1],
        &[COPIED_BYTES_MAX],
        &[COPIED_BYTES_MAX + 1],
        &[COPIED_BYTES_MAX - 1, 1],
        &[COPIED_BYTES_MAX, 1],
        &[FIRST_BYTES, COPIED_BYTES_MAX],
        &[FIRST_BYTES - 1, COPIED_BYTES_MAX],
        &[FIRST_BYTES - 1, 0, 1, COPIED_BYTES_MAX],
        &[0, 7, 0, 0, 70_000, 0],
        &[1; 50],
        &[PART, PART, PART, PART, PART, PART, PART, PART, 40_000],
        &[3_000_000],
        &[3_000_000, 1, 0, 2_000_000],
    ]
    .map(body_of)
    .into()
}

#[test]
fn bodies_of_any_parts_arrive_in_order_on_one_connection() {
    let bodies = bodies();
    let lengths: Vec<usize> = bodies.iter().map(|body| whole(body).len()).collect();
    let (address, server) = serve(move |mut socket| {
        let got = lengths.into_iter().map(|length| {
            let mut request = vec![0; HEAD.len() + length];
            socket.read_exact(&mut request).unwrap();
            socket.write_all(OK).unwrap();
            request
        });
        let got: Vec<_> = got.collect();
        // Open until it was looked at after the last response.
        (got, socket)
    });
    with_connection(address, async |connection| {
        for body in &bodies {
            assert!(exchange(connection, body).await.is_ok());
            assert!(connection.reply().keep_alive && connection.is_alive());
        }
    });
    let (got, _socket) = server.join().unwrap();
    for (got, body) in got.iter().zip(&bodies) {
        let lengths: Vec<usize> = body.iter().map(|part| part.len()).collect();
        assert!(*got == [HEAD, &whole(body)].concat(), "{lengths:?}");
    }
}

#[test]
fn a_large_body_is_not_copied_and_its_first_part_leaves_with_the_head() {
    let (address, server) = serve(|mut socket| {
        let mut request = vec![0; HEAD.len() + COPIED_BYTES_MAX + 200_001];
        socket.read_exact(&mut request).unwrap();
    });
    let body = body_of(&[0, COPIED_BYTES_MAX + 1, 200_000]);
    with_connection(address, async |connection| {
        connection.head().extend_from_slice(HEAD);
        let rest = connection.begin_send(&body);
        assert_eq!((rest.parts.len(), rest.from), (1, 0));
        assert!(connection.out.is_empty() && !connection.sent_all);
        let _the_server_ends = connection.exchange(&body[2..], &Progress::default()).await;
    });
    server.join().unwrap();
}

#[test]
fn a_refusal_is_read_before_all_parts_have_gone_and_ends_the_connection() {
    let (address, server) = serve(|mut socket| {
        let mut head = [0; HEAD.len()];
        socket.read_exact(&mut head).unwrap();
        socket.write_all(REFUSED).unwrap();
        // Held open and not read any more: what is unsent can only wait.
        let mut all = Vec::new();
        thread::sleep(Duration::from_millis(100));
        socket.read_to_end(&mut all).map_or(0, |_| all.len())
    });
    let body = body_of(&[256 << 10; 64]);
    with_connection(address, async |connection| {
        assert!(exchange(connection, &body).await.is_ok());
        let reply = connection.reply();
        assert_eq!((reply.status, reply.body), (400, &b"no"[..]));
        assert!(!reply.keep_alive, "the rest of the body would be taken for a request");
    });
    assert!(server.join().unwrap() < whole(&body).len());
}

#[test]
fn what_is_confirmed_before_its_last_part_is_no_confirmation() {
    let (address, server) = serve(|mut socket| {
        let mut head = [0; HEAD.len()];
        socket.read_exact(&mut head).unwrap();
        socket.write_all(OK).unwrap();
        socket
    });
    let body = body_of(&[256 << 10; 64]);
    with_connection(address, async |connection| {
        let Err(Failure::BadAnswer(why)) = exchange(connection, &body).await else {
            panic!("taken for stored");
        };
        assert!(why.contains("not fully sent"), "{why}");
    });
    server.join().unwrap();
}

#[test]
fn a_connection_that_ends_between_two_parts_says_that_nothing_was_answered() {
    let (address, server) = serve(|mut socket| {
        let mut some = vec![0; 300 << 10];
        socket.read_exact(&mut some).unwrap();
    });
    let body = body_of(&[256 << 10; 64]);
    with_connection(address, async |connection| {
        let outcome = exchange(connection, &body).await;
        assert!(matches!(outcome, Err(Failure::Broken { unanswered: true, .. })));
    });
    server.join().unwrap();
}

proptest! {
    /// What is copied and what is left are the body, wherever it is cut.
    #[test]
    fn the_copied_beginning_and_the_rest_are_the_body(
        parts in prop::collection::vec(prop_oneof![Just(0), 1..40usize, 15_000..70_000usize], 0..8),
        to_copy in 0..100_000usize,
        steps in prop::collection::vec(1..90_000usize, 1..20),
    ) {
        let body = body_of(&parts);
        let whole = whole(&body);
        let (mut sent, mut rest) = (Vec::new(), Rest::of(&body));
        let copied = to_copy.min(whole.len());
        rest.copy(copied, &mut sent);
        prop_assert_eq!(copied, sent.len());
        let mut steps = steps.into_iter().cycle();
        while let Some(part) = rest.parts.first() {
            prop_assert!(rest.from < part.len(), "a send of nothing would never end");
            let taken = steps.next().unwrap_or(1).min(part.len() - rest.from);
            sent.extend_from_slice(&part[rest.from..][..taken]);
            rest.skip(taken);
        }
        prop_assert!(sent == whole);
    }
}
