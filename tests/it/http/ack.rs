//! What a 200 promises: goal, a request is answered at the level it asked for, and when that cannot
//! be had, with what is known; whatever the answer, what was accepted goes its way.
//!
//! Method: stores that are slow, hang, refuse or come back (`FAULTS`, `break_store`) behind
//! requests with and without the header; the replies are compared with what is in the store at that
//! moment and at the end.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{
    Client, PATIENCE, Reply, Server, collection, contents, dead_letters, numbered, request, sorted,
    wait_for,
};

const STORED: &str = "millrace-ack: stored\r\n";
const QUEUED: &str = "millrace-ack: queued\r\n";

/// For a store that is broken until a test has looked at what it holds up, and mended then.
const AGAIN_SOON: [(&str, &str); 2] = [("RETRY_BASE", "5ms"), ("RETRY_MAX", "50ms")];
/// A store that never answers.
const HANGING: [(&str, &str); 2] = [("FAULTS", "hang=1"), ("PUT_TIMEOUT", "10m")];

/// Sends `payloads` with `headers` (each ended by CRLF) on a connection of its own.
fn send(server: &Server, payloads: &[impl AsRef<str>], headers: &str) -> Client {
    let mut client = server.connect();
    client.send(request(collection(payloads).as_bytes(), headers));
    client
}

/// The same, and the reply.
fn post(server: &Server, payloads: &[impl AsRef<str>], headers: &str) -> Reply {
    send(server, payloads, headers).reply()
}

fn assert_ack(reply: &Reply, accepted: usize, ack: &str) {
    let expected = format!(r#"{{"accepted":{accepted},"ack":"{ack}"}}"#);
    assert_eq!((reply.status, &reply.body), (200, &expected));
}

/// A 502 or 504 that is JSON, says `says` and has these figures.
fn assert_unkept(reply: &Reply, status: u16, says: &str, [accepted, stored, dead]: [u64; 3]) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let error = reply.error();
    assert!(error.contains(says), "{error}");
    assert_eq!(error.contains("leaves open"), status == 504, "{error}");
    let expected = json!({
        "error": error, "accepted": accepted, "stored": stored, "dead_lettered": dead
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&reply.body).unwrap(), expected);
}

/// Waits until `count` requests wait for the store.
fn wait_waiting(server: &Server, count: u64) {
    server.wait("requests wait for the store", |m| m.sum("millrace_ack_waiters") == count);
}

#[test]
fn the_header_raises_what_one_request_is_promised() {
    let server = Server::start(&AGAIN_SOON);
    server.break_store();
    let mut client = server.connect();
    // Answered although the store takes nothing.
    assert_ack(&client.post(collection(&numbered(0..1))), 1, "queued");
    client.send(request(collection(&numbered(1..4)).as_bytes(), STORED));
    wait_waiting(&server, 1);
    server.mend_store();
    assert_ack(&client.reply(), 3, "stored");
    let stored = contents(&server.stored());
    assert!(
        numbered(1..4).iter().all(|id| stored.contains(id)),
        "when the answer comes: {stored:?}"
    );
    // What comes next on the connection is not bound by it.
    client.send(request(collection(&numbered(4..5)).as_bytes(), QUEUED));
    assert_ack(&client.reply(), 1, "queued");
    assert_eq!(server.metrics().sum("millrace_ack_waiters"), 0);
    drop(client);
    server.wait_idle();
    assert_eq!(contents(&server.stored()), numbered(0..5));
}

#[test]
fn the_setting_holds_for_requests_without_the_header_which_also_lowers_it() {
    let server = Server::start(&[&AGAIN_SOON[..], &[("ACK", "stored")]].concat());
    server.break_store();
    // Answered although the store takes nothing.
    let lowered = post(&server, &["1"], QUEUED);
    assert_ack(&lowered, 1, "queued");
    // Two that wait on one connection are answered in their order.
    let mut client = send(&server, &["2", "3"], "");
    client
        .send(request(collection(&["4"]).as_bytes(), " Millrace-Ack:\t stored \r\n".trim_start()));
    wait_waiting(&server, 1);
    server.mend_store();
    for (count, texts) in [(2, &["2", "3"][..]), (1, &["4"])] {
        assert_ack(&client.reply(), count, "stored");
        let stored = server.stored_texts();
        assert!(texts.iter().all(|text| stored.iter().any(|s| s == text)), "{texts:?}: {stored:?}");
    }
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["1", "2", "3", "4"]);
}

#[test]
fn an_empty_collection_is_acknowledged_at_the_level_asked_for() {
    let server = Server::start(&[("SPOOL_DIR", "spool")]);
    let mut client = server.connect();
    for ack in ["queued", "spooled", "stored"] {
        client.send(request(br#"{"data":[]}"#, &format!("millrace-ack: {ack}\r\n")));
        assert_ack(&client.reply(), 0, ack);
    }
}

#[test]
fn a_level_that_is_none_gets_400_with_what_is_allowed() {
    let server = Server::start(&[]);
    let lines = |values: &[&str]| -> String {
        values.iter().map(|value| format!("millrace-ack: {value}\r\n")).collect()
    };
    let bad: [&[&str]; 8] = [
        &[""],
        &["Stored"],
        &["durable"],
        &["queued, stored"],
        &["1"],
        &["stored", "stored"],
        &["queued", "stored"],
        &["", "stored"],
    ];
    for values in bad {
        let mut client = send(&server, &["1"], &lines(values));
        let reply = client.last_reply();
        assert_eq!(reply.status, 400, "{values:?}");
        for allowed in ["millrace-ack", "queued", "spooled", "stored"] {
            assert!(reply.error().contains(allowed), "{}", reply.error());
        }
    }
    let reply = post(&server, &["1"], &lines(&["spooled"]));
    assert_eq!(reply.status, 400);
    assert!(reply.error().contains("SPOOL_DIR"), "{}", reply.error());
    server.wait_idle();
    assert_eq!(server.stored().len(), 0, "nothing of a refused request is admitted");
    assert_eq!(server.metrics().requests(400), bad.len() as u64 + 1);
}

#[test]
fn a_bad_level_is_answered_with_the_head_behind_a_wrong_path_and_before_an_encoding() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let refused = |client: &mut Client, head: &str| {
        client.send(format!("{head} HTTP/1.1\r\nhost: x\r\nmillrace-ack: no\r\n\r\n"));
        client.reply().status
    };
    assert_eq!(refused(&mut client, "GET /payloads"), 405);
    assert_eq!(refused(&mut client, "POST /else"), 404);
    assert_eq!(refused(&mut client, "POST /payloads"), 400, "no body, so kept alive");
    drop(client);
    let mut client = send(&server, &["1"], "content-encoding: br\r\nmillrace-ack: no\r\n");
    assert_eq!(client.last_reply().status, 400);
    // Who waits to be asked for the body gets the refusal instead.
    let mut client = server.connect();
    client.send(
        "POST /payloads HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\nmillrace-ack: no\r\n\
         content-length: 12\r\n\r\n",
    );
    assert_eq!(client.last_reply().status, 400);
    // Who sends regardless gets it as well.
    let mut client = server.connect();
    client.send(
        "POST /payloads HTTP/1.1\r\nhost: x\r\nmillrace-ack: no\r\ncontent-length: 921600\r\n\r\n",
    );
    assert!(client.try_send(vec![b' '; 900 << 10]));
    assert_eq!(client.last_reply().status, 400);
    drop(client);
    server.wait_idle();
}

#[test]
fn a_payload_that_the_store_refuses_makes_it_502() {
    let server = Server::start(&[("FAULTS", "poison=object,delay=20ms")]);
    let mut client = send(&server, &["1", r#""poison""#, "2", r#"["poison"]"#, "3"], STORED);
    let reply = client.reply();
    assert_unkept(&reply, 502, "2 dead-lettered, 0 lost", [5, 3, 2]);
    assert_eq!(server.stored_texts(), ["1", "2", "3"], "every fate was known");
    assert_eq!(server.dead_letters().len(), 2);
    assert_eq!(reply.header("connection"), None, "kept alive");
    client.send(request(br#"{"data":[4]}"#, STORED));
    assert_ack(&client.reply(), 1, "stored");
    drop(client);
    server.wait_idle();
    assert_eq!(server.metrics().requests(502), 1);
    assert_eq!(server.stop().status, 0);
}

#[test]
fn a_panic_and_a_loss_are_fates_as_well() {
    let server = Server::start(&[("FAULTS", "panic=1"), ("ACK", "stored")]);
    assert_unkept(&post(&server, &["1", "2"], ""), 502, "2 dead-lettered, 0 lost", [2, 0, 2]);
    assert_eq!(server.metrics().sum("millrace_worker_panics_total"), 2);
    server.wait_idle();
    let full = Server::start(&[("FAULTS", "poison=object"), ("DEAD_LETTER_MAX", "1B")]);
    let reply = post(&full, &["1", r#""poison""#], STORED);
    assert_unkept(&reply, 502, "0 dead-lettered, 1 lost", [2, 1, 0]);
    full.wait_idle();
    assert_eq!(full.stop().lost, 1);
}

#[test]
fn a_store_that_is_too_slow_makes_it_504_and_stores_everything_later() {
    let server = Server::start(&[&AGAIN_SOON[..], &[("ACK_TIMEOUT", "300ms")]].concat());
    server.break_store();
    let started = Instant::now();
    let mut client = send(&server, &numbered(0..3), STORED);
    let reply = client.reply();
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
    assert_unkept(&reply, 504, "ACK_TIMEOUT", [3, 0, 0]);
    assert_eq!(reply.header("connection"), None, "kept alive");
    server.wait("it to be counted", |m| m.requests(504) == 1);
    assert_eq!(server.metrics().sum("millrace_ack_waiters"), 0);
    server.mend_store();
    client.send(request(collection(&numbered(3..4)).as_bytes(), QUEUED));
    assert_ack(&client.reply(), 1, "queued");
    drop(client);
    server.wait_idle();
    assert_eq!(contents(&server.stored()), numbered(0..4));
    assert_eq!(server.stop().status, 0);
}

#[test]
fn a_504_counts_what_was_known_by_then() {
    // One payload that is never stored, beside others that are.
    let settings = [("FAULTS", "poison=transient"), ("ACK_TIMEOUT", "3s"), ("DRAIN_TIMEOUT", "2s")];
    let server = Server::start(&settings);
    let reply = post(&server, &["1", r#""poison""#, "2"], STORED);
    assert_unkept(&reply, 504, "ACK_TIMEOUT", [3, 2, 0]);
    assert_eq!(server.stored_texts(), ["1", "2"]);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored, stopped.dead_lettered), (1, 2, 1));
}

#[test]
fn a_client_that_goes_away_while_it_waits_changes_nothing() {
    let server = Server::start(&AGAIN_SOON);
    server.break_store();
    let clients = [0..2, 2..3].map(|ids| send(&server, &numbered(ids), STORED));
    // The third only ends its half, and still gets its answer.
    let mut half = send(&server, &numbered(3..4), STORED);
    half.half_close();
    wait_waiting(&server, 3);
    drop(clients);
    server.mend_store();
    assert_ack(&half.reply(), 1, "stored");
    assert!(half.closed());
    server.wait_idle();
    assert_eq!(contents(&server.stored()), numbered(0..4));
    assert_eq!(server.stop().status, 0);
}

#[test]
fn no_other_deadline_holds_while_a_request_waits_for_the_store() {
    let server = Server::start(&[
        ("IDLE_TIMEOUT", "1s"),
        ("HEADER_TIMEOUT", "1s"),
        ("BODY_TIMEOUT", "1s"),
        ("FAULTS", "delay=3s"),
    ]);
    assert_ack(&post(&server, &numbered(0..2), STORED), 2, "stored");
    server.wait_idle();
}

#[test]
fn a_request_may_wait_for_room_and_then_for_the_store() {
    let settings = [
        ("MAX_WORKERS", "1"),
        ("MAX_QUEUE", "2"),
        ("ENQUEUE_WAIT", "15s"),
        ("FAULTS", "delay=100ms"),
    ];
    let server = Server::start(&settings);
    let mut clients: Vec<Client> =
        numbered(0..5).iter().map(|payload| send(&server, &[payload], STORED)).collect();
    for client in &mut clients {
        assert_ack(&client.reply(), 1, "stored");
    }
    assert_eq!(contents(&server.stored()), numbered(0..5));
    drop(clients);
    server.wait_idle();
}

#[test]
fn many_payloads_are_acknowledged_as_one() {
    let server = Server::start(&[("STORE", "null:")]);
    let payloads = numbered(0..5_000);
    assert_ack(&post(&server, &payloads, STORED), 5_000, "stored");
    assert_eq!(server.metrics().sum("millrace_payloads_stored_total"), 5_000);
    server.wait_idle();
}

#[test]
fn a_drain_lets_the_store_answer_who_waits_for_it() {
    let settings = [("FAULTS", "delay=2s"), ("MAX_WORKERS", "2"), ("DRAIN_TIMEOUT", "2m")];
    let server = Server::start(&settings);
    let mut waiting: Vec<Client> =
        numbered(0..4).iter().map(|payload| send(&server, &[payload], STORED)).collect();
    wait_waiting(&server, 4);
    let signalled = Instant::now();
    server.signal("TERM");
    for client in &mut waiting {
        let reply = client.last_reply();
        assert_ack(&reply, 1, "stored");
    }
    drop(waiting);
    let stopped = server.wait_stopped();
    assert!(signalled.elapsed() < PATIENCE, "{:?}", signalled.elapsed());
    assert_eq!((stopped.status, stopped.accepted, stopped.stored), (0, 4, 4));
}

#[test]
fn a_drain_that_sees_the_store_come_back_answers_200() {
    let server = Server::start(&[("RETRY_BASE", "5ms"), ("DRAIN_TIMEOUT", "2m")]);
    server.break_store();
    let mut waiting = send(&server, &numbered(0..3), STORED);
    wait_waiting(&server, 1);
    server.signal("TERM");
    server.wait_ready(503);
    server.mend_store();
    assert_ack(&waiting.last_reply(), 3, "stored");
    drop(waiting);
    let stopped = server.wait_stopped();
    assert_eq!((stopped.status, stopped.stored, stopped.dead_lettered), (0, 3, 0));
}

/// Every one of `waiting`, each with one payload, is told that it is not known, and that the server
/// goes.
fn assert_left_open(waiting: &mut [Client]) {
    for client in waiting {
        let reply = client.last_reply();
        assert_unkept(&reply, 504, "the server stopped", [1, 0, 0]);
    }
}

#[test]
fn a_drain_with_a_dead_store_answers_504_and_writes_dead_letters() {
    // So short that no time is left between the ring's close and the last step.
    let settings = [&HANGING[..], &[("MAX_WORKERS", "4"), ("DRAIN_TIMEOUT", "2s")]].concat();
    let server = Server::start(&settings);
    let payloads = numbered(0..30);
    let mut waiting: Vec<Client> =
        payloads.iter().map(|payload| send(&server, &[payload], STORED)).collect();
    wait_waiting(&server, 30);
    server.signal("TERM");
    assert_left_open(&mut waiting);
    let stopped = server.wait_stopped();
    let figures = (stopped.status, stopped.accepted, stopped.dead_lettered, stopped.lost);
    assert_eq!(figures, (1, 30, 30, 0));
    let letters = dead_letters(&stopped.dir.path().join("dead-letter"));
    let dead: Vec<String> =
        letters.into_iter().map(|(_, bytes)| String::from_utf8(bytes).unwrap()).collect();
    assert_eq!(sorted(&dead), sorted(&payloads));
}

#[test]
fn a_second_signal_answers_504_at_once() {
    let server = Server::start(&[&HANGING[..], &[("DRAIN_TIMEOUT", "2m")]].concat());
    let mut waiting = [send(&server, &numbered(0..1), STORED)];
    wait_waiting(&server, 1);
    server.signal("TERM");
    let hurried = Instant::now();
    server.signal_again("INT");
    assert_left_open(&mut waiting);
    let stopped = server.wait_stopped();
    assert!(hurried.elapsed() < PATIENCE, "{:?}", hurried.elapsed());
    assert_eq!((stopped.status, stopped.dead_lettered), (1, 1));
}

#[test]
fn every_gauge_returns_to_zero_after_a_mix_of_everything() {
    let settings = [
        ("FAULTS", "seed=9,transient=0.2,object=0.1,panic=0.05,hang=0.05,delay=2ms"),
        ("PUT_TIMEOUT", "1s"),
        ("RETRY_BASE", "5ms"),
        ("ACK_TIMEOUT", "500ms"),
        ("MAX_WORKERS", "8"),
    ];
    let server = Server::start(&settings);
    let mut seen = [0; 3];
    let mut gone = Vec::new();
    let mut rounds = 0;
    while rounds < 60 || seen.contains(&0) {
        assert!(rounds < 1_000, "{seen:?}");
        let ids = &numbered(4 * rounds..4 * rounds + 4);
        rounds += 1;
        let client = send(&server, ids, STORED);
        gone.push(client);
        let reply = post(&server, &ids[..1], STORED);
        let at = [200, 502, 504].iter().position(|status| *status == reply.status);
        seen[at.unwrap_or_else(|| panic!("{reply:?}"))] += 1;
    }
    drop(gone);
    server.wait_idle();
    let metrics = server.metrics();
    let decided = ["stored", "dead_lettered"]
        .map(|fate| metrics.sum(&format!("millrace_payloads_{fate}_total")));
    let rounds = rounds as u64;
    assert_eq!(decided.iter().sum::<u64>(), 5 * rounds);
    wait_for("every answer to be counted", || {
        let metrics = server.metrics();
        [200, 502, 504].map(|status| metrics.requests(status)).iter().sum::<u64>() == 2 * rounds
    });
}
