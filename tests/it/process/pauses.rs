//! A process that is paused, as with its virtual machine: goal, what a client has sent in the
//! meantime is taken before it is judged by a deadline that passed in the meantime; a client that
//! sent nothing is judged all the same.
//!
//! Method: SIGSTOP and SIGCONT, with deadlines much shorter than the pause.

use std::io::{ErrorKind, Read};
use std::time::Duration;

use crate::support::{Client, Server, request};

const PAUSE: Duration = Duration::from_millis(2_500);

fn server(settings: &[(&str, &str)]) -> Server {
    let short = [("HEADER_TIMEOUT", "1s"), ("BODY_TIMEOUT", "1s"), ("IDLE_TIMEOUT", "1s")];
    Server::start(&[&short[..], settings].concat())
}

/// Long enough for the server to have read what was sent, and shorter than each deadline.
fn let_it_read() {
    std::thread::sleep(Duration::from_millis(150));
}

/// Has `during` done while the server is stopped.
fn paused(server: &Server, during: impl FnOnce()) {
    server.signal("STOP");
    during();
    std::thread::sleep(PAUSE);
    server.signal("CONT");
}

#[test]
fn requests_that_arrive_during_a_pause_are_answered() {
    let server = server(&[]);
    let whole = request(br#"{"data":[1]}"#, "");
    let chunked = b"POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n6\r\n{\"data\r\n6\r\n\":[1]}\r\n0\r\n\r\n";
    let head_end = whole.len() - 12;
    let mut clients: Vec<(Client, Vec<u8>)> = Vec::new();
    for (request, cut) in [
        // Nothing yet, some of the head, the head, and all but the last byte.
        (&whole[..], 0),
        (&whole, 1),
        (&whole, 9),
        (&whole, head_end - 1),
        (&whole, head_end),
        (&whole, whole.len() - 1),
        (chunked, 0),
        (chunked, 20),
        (chunked, 60),
        (chunked, chunked.len() - 1),
    ] {
        let mut client = server.connect();
        client.send(&request[..cut]);
        clients.push((client, request[cut..].to_vec()));
    }
    let mut used = server.connect();
    assert_eq!(used.post(r#"{"data":[1]}"#).status, 200);
    clients.push((used, whole));
    let_it_read();
    paused(&server, || clients.iter_mut().for_each(|(client, rest)| client.send(rest)));
    for (at, (client, _)) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply().status, 200, "client {at}");
    }
    drop(clients);
    server.wait_idle();
    assert_eq!(server.metrics().requests(408), 0);
}

/// More than what both sockets hold: most of it leaves the client after the pause.
#[test]
fn a_large_body_that_a_pause_has_held_up_is_in_time() {
    let server = server(&[("MAX_LENGTH", "16MiB"), ("MAX_QUEUE_BYTES", "64MiB")]);
    let body = format!(r#"{{"data":["{}"]}}"#, "x".repeat(12 << 20));
    let whole = request(body.as_bytes(), "");
    let mut client = server.connect();
    client.send(&whole[..100_000]);
    let_it_read();
    server.signal("STOP");
    let sender = std::thread::spawn(move || {
        client.send(&whole[100_000..]);
        client
    });
    std::thread::sleep(PAUSE);
    server.signal("CONT");
    assert_eq!(sender.join().unwrap().reply().status, 200);
    server.wait_idle();
}

#[test]
fn a_client_that_sends_nothing_is_judged_after_a_pause_as_well() {
    let server = server(&[]);
    let whole = request(br#"{"data":[1]}"#, "");
    let [mut head, mut body, mut idle, mut trickle] = [9, whole.len() - 1, 0, 9].map(|cut| {
        let mut client = server.connect();
        client.send(&whole[..cut]);
        client
    });
    let_it_read();
    paused(&server, || trickle.send(b"POST"));
    for client in [&mut head, &mut body, &mut trickle] {
        assert_eq!(client.last_reply().status, 408);
    }
    assert!(idle.closed());
    drop((head, body, idle, trickle));
    server.wait_idle();
}

/// An early answer lies in the client's socket while it goes on sending: closing then would destroy
/// it.
#[test]
fn a_lingering_connection_reads_what_came_during_a_pause_before_it_closes() {
    let server = server(&[("MAX_LENGTH", "64KiB")]);
    let mut client = server.connect();
    client.send("POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 400000\r\n\r\n");
    // The answer is there, and not read.
    assert_eq!(client.stream.peek(&mut [0]).unwrap(), 1);
    server.signal("STOP");
    client.send([b'x'; 50_000]);
    // Longer than a connection lingers.
    std::thread::sleep(Duration::from_millis(2_700));
    server.signal("CONT");
    // It lingers on, also for what is sent only now.
    std::thread::sleep(Duration::from_millis(200));
    client.send([b'x'; 50_000]);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(client.last_reply().status, 413);
    drop(client);
    server.wait_idle();
}

#[test]
fn the_admin_listener_answers_what_came_during_a_pause() {
    let server = server(&[]);
    let mut client = Client::connect(server.admin);
    let_it_read();
    // Longer than it waits for a first request.
    server.signal("STOP");
    std::thread::sleep(Duration::from_millis(5_500));
    client.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    server.signal("CONT");
    match client.stream.read(&mut [0; 15]) {
        Ok(n) => assert_eq!(n, 15, "HTTP/1.1 200 OK"),
        Err(error) => panic!("{:?}", (error.kind() == ErrorKind::ConnectionReset, error)),
    }
}
