//! Goal: however a client cuts, joins and frames its requests, each gets its one answer, in order.
//!
//! Method: raw bytes in every shape TCP and HTTP/1.1 allow. Where a piece must reach the server
//! before the next one is sent, a whole request on a second connection is the barrier: one core
//! serves both, so its reply comes after the piece was looked at.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::support::{Client, Server, chunked_request, request, wait_for};

const OK_1: &str = r#"{"accepted":1,"ack":"queued"}"#;

/// Waits until the server has had a look at everything sent before.
fn barrier(client: &mut Client) {
    assert_eq!(client.post(r#"{"data":[]}"#).status, 200);
}

/// Closes with a reset, as a crashed client's kernel does.
fn reset(client: Client) {
    let socket = socket2::Socket::from(client.stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn one_byte_at_a_time() {
    let server = Server::start(&[]);
    let (mut slow, mut other) = (server.connect(), server.connect());
    let plain = request(br#"{"version":"1","data":["x"]}"#, "");
    let chunked = chunked_request(&[br#"{"data""#, b":[", br#""y"]}"#], "");
    for byte in plain.iter().chain(&chunked) {
        slow.send([*byte]);
        barrier(&mut other);
    }
    assert_eq!((slow.reply().body, slow.reply().body), (OK_1.to_owned(), OK_1.to_owned()));
    drop((slow, other));
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["\"x\"", "\"y\""]);
}

#[test]
fn split_in_two_at_every_position() {
    let server = Server::start(&[]);
    let mut other = server.connect();
    for whole in
        [request(br#"{"data":["x"]}"#, ""), chunked_request(&[br#"{"data":"#, br#"["x"]}"#], "")]
    {
        let mut clients: Vec<Client> = (1..whole.len())
            .map(|at| {
                let mut client = server.connect();
                client.send(&whole[..at]);
                client
            })
            .collect();
        barrier(&mut other);
        for (client, at) in clients.iter_mut().zip(1..) {
            client.send(&whole[at..]);
        }
        for (client, at) in clients.iter_mut().zip(1..) {
            let reply = client.reply();
            assert_eq!((reply.status, reply.body.as_str()), (200, OK_1), "split at {at}");
        }
    }
    drop(other);
    server.wait_idle();
    let accepted = server.metrics().sum("millrace_payloads_accepted_total");
    assert_eq!(server.stored().len() as u64, accepted);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start(&[("MAX_QUEUE", "400")]);
    let too_many = format!(r#"{{"data":[{}1]}}"#, "1,".repeat(400));
    let mut sent = 0;
    for count in [2, 10, 100] {
        let mut client = server.connect();
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for n in 0..count {
            let (request, status) = match n % 7 {
                1 => (request(b"{}", ""), 400),
                2 => (b"GET /payloads HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), 405),
                4 => (b"POST /nowhere HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), 404),
                5 => (request(too_many.as_bytes(), ""), 413),
                6 => (chunked_request(&[br#"{"data":["c"]"#, b"}"], ""), 200),
                _ => (request(br#"{"data":["p"]}"#, "x: y\r\n"), 200),
            };
            sent += usize::from(status == 200);
            bytes.extend(request);
            expected.push(status);
        }
        client.send(bytes);
        let statuses: Vec<u16> = (0..count).map(|_| client.reply().status).collect();
        assert_eq!(statuses, expected);
    }
    server.wait_idle();
    assert_eq!(server.stored().len(), sent);
}

#[test]
fn nothing_behind_an_answer_that_closes_is_served() {
    let server = Server::start(&[("MAX_LENGTH", "64KiB")]);
    let closing: [Vec<u8>; 4] = [
        b"PUT /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc".to_vec(),
        b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
        request(br#"{"data":["last"]}"#, "connection: close\r\n"),
        b"POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 70000\r\n\r\n".to_vec(),
    ];
    for (closing, status) in closing.iter().zip([405, 404, 200, 413]) {
        let mut client = server.connect();
        client.send([&closing[..], &request(br#"{"data":["behind"]}"#, "")].concat());
        let reply = client.last_reply();
        assert_eq!(reply.status, status);
    }
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["\"last\""]);
}

#[test]
fn chunked_bodies_in_every_shape() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let head = "POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    for chunks in [
        "c\r\n{\"data\":[1]}\r\n0\r\n\r\n",
        "0000c\r\n{\"data\":[1]}\r\n000\r\n\r\n",
        "C;name=value;flag;q=\"a b\"\r\n{\"data\":[1]}\r\n0;last\r\n\r\n",
        "c\r\n{\"data\":[1]}\r\n0\r\nx-trailer: 1\r\nx-other: 2\r\n\r\n",
        "1\r\n{\r\nb\r\n\"data\":[1]}\r\n0\r\n\r\n",
    ] {
        client.send(format!("{head}{chunks}"));
        let reply = client.reply();
        assert_eq!((reply.status, reply.body.as_str()), (200, OK_1), "{chunks:?}");
    }
    // One byte a chunk, in one write; numbers that make the framing look like JSON and the other
    // way around.
    let payload = format!("\"{}\"", "0\r\n".escape_default().to_string().repeat(700));
    let body = format!("{{\"data\":[{payload}]}}");
    let pieces: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
    client.send(chunked_request(&pieces, ""));
    assert_eq!(client.reply().body, OK_1);
    // An empty body, chunked.
    client.send(format!("{head}0\r\n\r\n"));
    assert_eq!(client.reply().status, 400);
    drop(client);
    for broken in ["x\r\n", "c\r\n{\"data\":[1]}0\r\n\r\n", "-1\r\n\r\n", "fffffffffffffffff\r\n"] {
        let mut client = server.connect();
        client.send(format!("{head}{broken}"));
        let reply = client.last_reply();
        assert_eq!(reply.status, 400, "{broken:?}");
        assert!(!reply.error().is_empty());
    }
    server.wait_idle();
    assert_eq!(server.stored().len(), 6);
}

#[test]
fn expect_100_continue() {
    let server = Server::start(&[("MAX_LENGTH", "64KiB")]);
    let mut client = server.connect();
    let body = br#"{"data":[1]}"#;
    let head = |length: usize, headers: &str| {
        format!(
            "POST /payloads HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\
             {headers}content-length: {length}\r\n\r\n"
        )
    };
    for _ in 0..2 {
        client.send(head(body.len(), ""));
        assert_eq!(client.reply().status, 100);
        client.send(body);
        assert_eq!(client.reply().body, OK_1);
    }
    // A client that does not wait.
    client.send([head(body.len(), "").as_bytes(), body].concat());
    let reply = client.reply();
    let reply = if reply.status == 100 { client.reply() } else { reply };
    assert_eq!(reply.body, OK_1);
    // Chunked, and an answer that needs the body.
    client.send(
        "POST /payloads HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n",
    );
    assert_eq!(client.reply().status, 100);
    client.send("2\r\n{}\r\n0\r\n\r\n");
    assert_eq!(client.reply().status, 400);
    drop(client);
    // Refused without a 100: the first thing that comes is the final status.
    for (head, status) in [
        (head(65537, ""), 413),
        (head(10, "content-encoding: br\r\n"), 415),
        (head(10, "").replace("/payloads", "/x"), 404),
        (head(10, "").replace("POST", "PUT"), 405),
    ] {
        let mut client = server.connect();
        client.send(head);
        assert_eq!(client.last_reply().status, status);
    }
    server.wait_idle();
    assert_eq!(server.stored().len(), 3);
}

#[test]
fn a_client_that_half_closes_gets_its_answers() {
    let settings = [("MAX_WORKERS", "1"), ("MAX_QUEUE", "1"), ("ENQUEUE_WAIT", "15s")];
    let server = Server::start(&[&settings[..], &[("FAULTS", "delay=200ms")]].concat());
    // More than fits at once: the last answers wait for room long after the client's FIN.
    let mut client = server.connect();
    client.send(request(br#"{"data":["x"]}"#, "").repeat(4));
    client.half_close();
    for _ in 0..4 {
        assert_eq!(client.reply().body, OK_1);
    }
    assert!(client.closed());
    drop(client);
    // Half-closed in the middle of a body, and of a head: no request, nothing admitted, nobody left
    // waiting.
    let whole = request(br#"{"data":["cut"]}"#, "");
    let mut client = server.connect();
    client.send(&whole[..whole.len() - 3]);
    client.half_close();
    let answer = client.try_reply();
    assert!(answer.is_none_or(|reply| reply.status == 400));
    assert!(client.closed());
    let mut client = server.connect();
    client.send(&whole[..20]);
    client.half_close();
    assert!(client.closed());
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["\"x\""; 4]);
}

#[test]
fn http_1_0_clients() {
    let server = Server::start(&[]);
    let body = r#"{"data":[1]}"#;
    let head = |headers: &str| {
        format!("POST /payloads HTTP/1.0\r\n{headers}content-length: 12\r\n\r\n{body}")
    };
    let mut client = server.connect();
    client.send(head(""));
    assert_eq!(client.reply().body, OK_1);
    assert!(client.closed(), "1.0 closes unless asked not to");
    let mut client = server.connect();
    for _ in 0..3 {
        client.send(head("connection: keep-alive\r\n"));
        let reply = client.reply();
        assert_eq!((reply.body.as_str(), reply.header("connection")), (OK_1, Some("keep-alive")));
    }
    // No 1.1 framing for it.
    client.send(head("expect: 100-continue\r\n"));
    assert_eq!(client.reply().status, 200);
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored().len(), 5);
}

/// The fast path and hyper take turns: hyper keeps the connection until it is silent.
#[test]
fn requests_of_every_kind_share_a_connection() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let plain = request(br#"{"data":["p"]}"#, "");
    let chunked = chunked_request(&[br#"{"data":["c"]}"#], "");
    let kinds = [&plain, &chunked, &plain, &plain, &chunked, &chunked, &plain];
    for pause in [Duration::ZERO, Duration::from_millis(400)] {
        for kind in kinds {
            client.send(kind);
            assert_eq!(client.reply().body, OK_1);
            std::thread::sleep(pause);
        }
        client.send(kinds.map(Vec::as_slice).concat());
        for _ in kinds {
            assert_eq!(client.reply().body, OK_1);
        }
        // In the middle of a head.
        for kind in kinds {
            client.send(&kind[..20]);
            std::thread::sleep(pause);
            client.send(&kind[20..]);
            assert_eq!(client.reply().body, OK_1);
        }
    }
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored().len(), 6 * kinds.len());
}

#[test]
fn a_client_that_reads_no_answers_is_not_served_any_longer() {
    let server = Server::start(&[("STORE", "null:"), ("MAX_QUEUE", "100000")]);
    let client = server.connect();
    let mut stream = &client.stream;
    socket2::SockRef::from(stream).set_recv_buffer_size(4 << 10).unwrap();
    stream.set_nonblocking(true).unwrap();
    let one = request(br#"{"data":[1]}"#, "");
    let many = one.repeat(1_000);
    let (mut sent, mut full_since) = (0, None);
    while full_since.is_none_or(|since: Instant| since.elapsed() < Duration::from_secs(2)) {
        match stream.write(&many[sent % one.len()..]) {
            Ok(written) => (sent, full_since) = (sent + written, None),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                full_since = full_since.or(Some(Instant::now()));
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(sent < 500_000 * one.len(), "all of it is read");
    }
    let served = || server.metrics().requests(200);
    wait_for("no more to be served", || {
        let before = served();
        std::thread::sleep(Duration::from_millis(300));
        served() == before
    });
    assert!((1..(sent / one.len()) as u64).contains(&served()));
    // Others are served meanwhile.
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    drop(client);
    server.wait_idle();
}

#[test]
fn a_thousand_requests_on_one_connection() {
    let server = Server::start(&[("STORE", "null:")]);
    let mut client = server.connect();
    for n in 0..1000 {
        let reply = client.post(format!(r#"{{"data":[{n}]}}"#));
        assert_eq!((reply.status, reply.body.as_str()), (200, OK_1));
    }
    drop(client);
    server.wait_idle();
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_connections_accepted_total"), 1);
    assert_eq!(metrics.requests(200), 1000);
    assert_eq!(metrics.sum("millrace_payloads_stored_total"), 1000);
}

#[test]
fn clients_that_disconnect_mid_request_leave_nothing_behind() {
    let server = Server::start(&[]);
    let whole = request(format!(r#"{{"data":["{}"]}}"#, "x".repeat(200_000)).as_bytes(), "");
    let clients: Vec<Client> = [10, 70, 71, 1000, 70_000, 199_000]
        .iter()
        .flat_map(|cut| {
            [(); 4].map(|()| {
                let mut client = server.connect();
                client.send(&whole[..*cut]);
                client
            })
        })
        .collect();
    server.wait("bodies are being read", |m| m.sum("millrace_body_bytes") > 4 * 199_000);
    for (n, client) in clients.into_iter().enumerate() {
        match n % 4 {
            0 => reset(client),
            1 => {
                client.half_close();
                drop(client);
            }
            _ => drop(client),
        }
    }
    server.wait_idle();
    assert!(server.stored().is_empty());
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    server.wait_idle();
}

#[test]
fn a_client_that_goes_away_after_admission_changes_nothing() {
    let settings = [
        ("MAX_WORKERS", "1"),
        ("MAX_QUEUE", "2"),
        ("ENQUEUE_WAIT", "1m"),
        ("RETRY_BASE", "5ms"),
        ("RETRY_MAX", "50ms"),
    ];
    let server = Server::start(&settings);
    server.break_store();
    let mut client = server.connect();
    assert_eq!(client.post(r#"{"data":["acknowledged"]}"#).status, 200);
    reset(client);
    server.wait("it is being put", |m| m.sum("millrace_put_retries_total") > 0);
    assert_eq!(server.post_payloads(&["1", "2"]).status, 200);
    // These wait for room, and leave meanwhile: each is admitted whole or not at all.
    for n in 0..4 {
        let mut client = server.connect();
        client.send(request(format!(r#"{{"data":["a{n}","b{n}"]}}"#).as_bytes(), ""));
        server.wait("it stands in line", |m| m.sum("millrace_room_waiters") >= 1);
        if n % 2 == 0 { reset(client) } else { drop(client) }
    }
    server.mend_store();
    server.wait_idle();
    let stored = server.stored_texts();
    assert_eq!(server.metrics().sum("millrace_payloads_accepted_total"), stored.len() as u64);
    assert!(stored.contains(&"\"acknowledged\"".to_owned()));
    for n in 0..4 {
        let has = |c| stored.contains(&format!("\"{c}{n}\""));
        assert_eq!(has('a'), has('b'), "all or nothing: {stored:?}");
    }
}
