//! Goal: an early answer reaches a client that is still sending; nobody sends for ever.
//!
//! Method: clients that write a large body to its end before they read. Closing a socket with
//! unread bytes resets the connection, and the reset destroys the answer in the client's buffer:
//! here that is a failed read.

use std::time::{Duration, Instant};

use crate::support::{Client, PATIENCE, Server, request};

/// For how long the server reads on after an answer, and a bit less.
const READS_ON: Duration = Duration::from_millis(1_800);

/// Writes `total` bytes in pieces, a hundred a second if `slowly`, then reads the answer, which
/// must be whole.
fn answered_after_sending(server: &Server, head: &str, total: usize, slowly: bool) -> u16 {
    // On a busy machine it may take longer than the server reads on.
    let status = (0..10).find_map(|_| sent_and_answered(server.connect(), head, total, slowly));
    status.expect("this machine sends that in time")
}

/// One try; `None`: it took too long, or the answer was not an early one.
fn sent_and_answered(mut client: Client, head: &str, total: usize, slowly: bool) -> Option<u16> {
    let began = Instant::now();
    client.send(head);
    let piece = vec![b' '; 16 << 10];
    let mut left = total;
    while left > 0 {
        let n = left.min(piece.len());
        let is_sent = client.try_send(&piece[..n]);
        if began.elapsed() > READS_ON {
            return None;
        }
        assert!(is_sent, "reset with {left} bytes left to send");
        left -= n;
        if slowly {
            // What is tested is a client slower than the server's answer.
            let due = ((total - left) / piece.len()) as u32 * Duration::from_millis(10);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
    let reply = client.reply();
    if reply.status == 400 {
        // There was room for it, and it was read to its end.
        return None;
    }
    assert_eq!(reply.header("connection"), Some("close"), "{reply:?}");
    assert!(!reply.error().is_empty());
    assert!(client.closed(), "then the end");
    Some(reply.status)
}

/// A head that announces `length` bytes more, and `headers` (each ended by CRLF).
fn head(length: usize, headers: &str) -> String {
    format!("POST /payloads HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n")
}

#[test]
fn answers_that_need_no_body_reach_a_client_that_sends_one() {
    let server = Server::start(&[("MAX_LENGTH", "64KiB"), ("MAX_QUEUE_BYTES", "1MiB")]);
    let total = 900 << 10;
    let chunked =
        "POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nfffffff\r\n";
    for slowly in [false, true] {
        let answer = |head: &str| answered_after_sending(&server, head, total, slowly);
        assert_eq!(answer(&head(total, "")), 413);
        assert_eq!(answer(chunked), 413);
        assert_eq!(answer(&head(total, "content-encoding: br\r\n")), 415);
        assert_eq!(answer(&head(total, "").replace("/payloads", "/else")), 404);
        assert_eq!(answer(&head(total, "").replace("POST", "PUT")), 405);
    }
    server.wait_idle();
}

#[test]
fn a_refused_head_is_answered_although_more_follows() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    assert!(client.try_send(vec![b'x'; 900 << 10]));
    assert_eq!(client.last_reply().status, 431);
    let mut client = server.connect();
    assert!(client.try_send("\u{1}\r\n".repeat(300 << 10)));
    assert_eq!(client.last_reply().status, 400);
    drop(client);
    server.wait_idle();
}

#[test]
fn answer_503_reaches_a_client_that_is_still_sending() {
    let settings = [("MAX_LENGTH", "1MiB"), ("MAX_BODY_BYTES", "2MiB"), ("BODY_TIMEOUT", "5m")];
    let refused = |slowly| {
        let server = Server::start(&settings);
        // Two bodies short of one byte hold the memory.
        let hogs: Vec<Client> = (0..2)
            .map(|_| {
                let mut client = server.connect();
                client.send(head(1 << 20, ""));
                client.send(vec![b' '; (1 << 20) - 1]);
                client
            })
            .collect();
        server.wait("the memory is used", |m| m.sum("millrace_body_bytes") >= 2 << 20);
        let total = 900 << 10;
        let status = sent_and_answered(server.connect(), &head(total, ""), total, slowly);
        drop(hogs);
        server.wait_idle();
        status
    };
    for slowly in [false, true] {
        // On a busy machine they may count as stalled, and give way to it.
        let status = (0..10).find_map(|_| refused(slowly));
        assert_eq!(status, Some(503));
    }
}

#[test]
fn answer_408_reaches_a_client_that_is_still_sending() {
    let server = Server::start(&[("BODY_TIMEOUT", "1s"), ("HEADER_TIMEOUT", "1s")]);
    let mut client = server.connect();
    client.send(head(1 << 20, ""));
    client.send("{");
    server.wait("the deadline", |m| m.requests(408) == 1);
    assert!(client.try_send(vec![b' '; 900 << 10]));
    assert_eq!(client.last_reply().status, 408);
    let mut client = server.connect();
    client.send("POST /payloads HTTP/1.1\r\n");
    server.wait("the deadline", |m| m.requests(408) == 2);
    assert!(client.try_send(vec![b'x'; 900 << 10]));
    assert_eq!(client.last_reply().status, 408);
    drop(client);
    server.wait_idle();
}

#[test]
fn answer_401_reaches_a_client_that_pipelines() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    std::fs::write(&tokens, "right\n").unwrap();
    let server = Server::start(&[("TOKENS_FILE", tokens.to_str().unwrap())]);
    let mut client = server.connect();
    let wrong = format!(r#"{{"token":"wrong","data":[1]{}}}"#, " ".repeat(900 << 10));
    client.send(request(wrong.as_bytes(), "connection: close\r\n"));
    assert!(client.try_send(request(wrong.as_bytes(), "")), "the next one is read and discarded");
    let reply = client.last_reply();
    assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some("Bearer")));
    drop(client);
    server.wait_idle();
}

/// Sends a large body until the server has had enough; how much that was.
fn send_until_cut_off(client: &mut Client, pause: Duration) -> (usize, Duration) {
    let started = Instant::now();
    client.send(head(1 << 30, ""));
    let piece = vec![b' '; 16 << 10];
    let mut sent = 0;
    while client.try_send(&piece) {
        sent += piece.len();
        assert!(started.elapsed() < PATIENCE, "never cut off");
        std::thread::sleep(pause);
    }
    (sent, started.elapsed())
}

#[test]
fn a_client_that_never_stops_sending_is_cut_off() {
    let server = Server::start(&[]);
    // Fast: by the megabyte that is discarded, beside what the sockets' buffers hold.
    let mut fast = server.connect();
    let (sent, _) = send_until_cut_off(&mut fast, Duration::ZERO);
    assert!(sent >= 1 << 20, "{sent}");
    assert!(sent <= 64 << 20, "{sent}");
    // Slow: by the clock.
    let mut slow = server.connect();
    let (sent, took) = send_until_cut_off(&mut slow, Duration::from_millis(50));
    assert!(sent < 1 << 20 || took > Duration::from_secs(2), "{sent} in {took:?}");
    assert!(took >= Duration::from_millis(1900), "{took:?}");
    // Silent but open: the same.
    let mut silent = server.connect();
    silent.send(head(1 << 30, ""));
    assert_eq!(silent.last_reply().status, 413);
    // The server is through with all three, which are still open here.
    server.wait_idle();
    drop((fast, slow, silent));
}
