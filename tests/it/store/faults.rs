//! A store that fails: goal, every accepted payload ends in the store or the dead letter, whatever
//! the store does.
//!
//! Method: seeded faults (`FAULTS`, see `store/faulty.rs`) and a `file:` store whose directory is
//! taken away; then the store, the dead letters, the counters and the log are compared with what
//! was accepted.

use std::time::{Duration, Instant};

use crate::support::needs::two_cores;
use crate::support::{PATIENCE, Server, collection, contents, numbered, sorted, wait_for};

const FAST_RETRY: [(&str, &str); 2] = [("RETRY_BASE", "5ms"), ("RETRY_MAX", "50ms")];

fn start(more: &[(&'static str, &'static str)]) -> Server {
    Server::start(&[&FAST_RETRY, more].concat())
}

/// Posts payloads with the numbers 0 to `count`, twenty a request.
fn post_numbered(server: &Server, count: usize) {
    let mut client = server.connect();
    for ids in numbered(0..count).chunks(20) {
        assert_eq!(client.post(collection(ids)).status, 200);
    }
}

#[test]
fn transient_failures_are_retried_until_stored() {
    let server = start(&[("FAULTS", "seed=1,transient=0.5")]);
    post_numbered(&server, 200);
    server.wait_idle();
    assert_eq!(contents(&server.stored()), sorted(&numbered(0..200)));
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_payloads_stored_total"), 200);
    assert!(metrics.sum("millrace_put_retries_total") > 50);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored, stopped.dead_lettered), (0, 200, 0));
}

#[test]
fn a_put_that_was_stored_but_reported_failed_leaves_one_object() {
    let server = start(&[("FAULTS", "seed=2,late=0.5")]);
    post_numbered(&server, 200);
    server.wait_idle();
    assert!(server.metrics().sum("millrace_put_retries_total") > 50);
    assert_eq!(contents(&server.stored()), sorted(&numbered(0..200)));
    assert_eq!(server.stop().stored, 200);
}

#[test]
fn refused_objects_are_dead_lettered_at_once_and_their_neighbours_stored() {
    let server = start(&[("FAULTS", "poison=object")]);
    let payloads = ["1", r#""poison""#, "2", r#"{"a":"poison"}"#, "3", "4"];
    assert_eq!(server.post_payloads(&payloads).body, r#"{"accepted":6,"ack":"queued"}"#);
    server.wait_idle();
    assert_eq!(contents(&server.stored()), ["1", "2", "3", "4"]);
    let letters = server.dead_letters();
    assert_eq!(letters.len(), 2);
    for (meta, payload) in &letters {
        assert!(payload.windows(6).any(|window| window == b"poison"));
        assert_eq!(meta["attempts"], 1, "{meta}");
        assert!(meta["error"].as_str().unwrap().contains("object"), "{meta}");
    }
    assert_eq!(server.metrics().sum("millrace_put_retries_total"), 0);
    assert_eq!(server.admin("/readyz").status, 200, "a refused object says nothing of the store");
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored, stopped.dead_lettered, stopped.lost), (0, 4, 2, 0));
}

#[test]
fn a_store_that_is_down_holds_payloads_and_takes_them_when_it_is_back() {
    // RETRY_FOR is far below the outage: it must not count, for nothing else succeeds.
    let server = start(&[("READY_STORE_GRACE", "500ms"), ("RETRY_FOR", "100ms")]);
    let broken = Instant::now();
    server.break_store();
    post_numbered(&server, 60);
    let during = server.admin("/readyz").status;
    let is_over = broken.elapsed() >= Duration::from_millis(500);
    assert!(during == 200 || is_over, "the grace has not passed");
    let reasons = server.wait_ready(503);
    assert!(reasons.contains("store has been failing"), "{reasons}");
    assert_eq!(server.admin("/healthz").status, 200);
    server.wait("many tries", |m| m.sum("millrace_put_retries_total") > 500);
    assert_eq!(server.dead_letters(), []);
    wait_for("the outage in the log", || server.logged("the store takes nothing"));
    assert_eq!(server.count_logged("the store takes nothing"), 1);
    server.mend_store();
    server.wait_ready(200);
    server.wait_idle();
    server.wait_logged("the store works again");
    assert_eq!(server.count_logged("the store works again"), 1);
    assert_eq!(contents(&server.stored()), sorted(&numbered(0..60)));
    assert_eq!(server.dead_letters(), []);
    assert_eq!(server.stop().status, 0);
}

#[test]
fn retry_for_counts_only_while_other_puts_succeed() {
    let server = start(&[("FAULTS", "poison=transient"), ("RETRY_FOR", "1s")]);
    assert_eq!(server.post_payloads(&[r#""poison""#]).status, 200);
    let alone_since = Instant::now();
    wait_for("RETRY_FOR to pass twice", || alone_since.elapsed() > Duration::from_secs(2));
    assert_eq!(server.dead_letters(), [], "nothing else was stored meanwhile");
    let mixed_since = Instant::now();
    let mut good = Vec::new();
    wait_for("the poison to be given up", || {
        let payload = format!("{}", good.len());
        assert_eq!(server.post_payloads(&[&payload]).status, 200);
        good.push(payload);
        std::thread::sleep(Duration::from_millis(50));
        !server.dead_letters().is_empty()
    });
    assert!(mixed_since.elapsed() > Duration::from_millis(900), "{:?}", mixed_since.elapsed());
    let letters = server.dead_letters();
    let (meta, payload) = &letters[0];
    assert_eq!((letters.len(), &payload[..]), (1, &br#""poison""#[..]));
    assert!(meta["attempts"].as_u64().unwrap() > 20, "{meta}");
    assert!(meta["error"].as_str().unwrap().contains("transient"), "{meta}");
    server.wait_idle();
    assert_eq!(contents(&server.stored()), sorted(&good));
    assert_eq!(server.stop().status, 0);
}

#[test]
fn a_store_that_held_only_what_it_then_refused_counts_as_ready_again() {
    // Transient first, refused later: the last held payload goes to the dead letter and no success
    // follows.
    let server = start(&[
        ("FAULTS", "seed=3,transient=0.9,object=0.1"),
        ("READY_STORE_GRACE", "1ms"),
        ("RETRY_BASE", "50ms"),
    ]);
    for _ in 0..5 {
        assert_eq!(server.post_payloads(&["1"]).status, 200);
        server.wait_idle();
    }
    assert!(server.metrics().sum("millrace_put_retries_total") > 0);
    assert_eq!(server.dead_letters().len(), 5);
    server.wait_ready(200);
}

#[test]
fn a_put_that_hangs_is_cut_at_its_timeout_and_tried_again() {
    let server = start(&[("FAULTS", "seed=4,hang=0.3"), ("PUT_TIMEOUT", "200ms")]);
    post_numbered(&server, 100);
    server.wait_idle();
    assert_eq!(contents(&server.stored()), sorted(&numbered(0..100)));
    assert!(server.metrics().sum("millrace_put_retries_total") > 10);
    server.wait_logged("PUT_TIMEOUT");
    assert_eq!(server.stop().status, 0);
}

#[test]
fn a_panic_in_a_put_costs_one_payload_a_dead_letter_and_no_worker() {
    let server = start(&[("FAULTS", "seed=5,panic=0.2"), ("MAX_WORKERS", "2")]);
    post_numbered(&server, 100);
    server.wait_idle();
    let panics = server.metrics().sum("millrace_worker_panics_total");
    let letters = server.dead_letters();
    assert!(panics > 5, "{panics}");
    assert_eq!(letters.len() as u64, panics);
    assert!(letters.iter().all(|(meta, _)| meta["error"].as_str().unwrap().contains("anic")));
    let dead = letters.iter().map(|(_, payload)| String::from_utf8(payload.clone()).unwrap());
    let mut everything: Vec<String> = contents(&server.stored()).into_iter().chain(dead).collect();
    everything.sort();
    assert_eq!(everything, sorted(&numbered(0..100)));
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored + stopped.dead_lettered), (0, 100));
}

#[test]
fn a_panic_in_a_connection_closes_that_connection_only() {
    let server = start(&[("FAULTS", "seed=6,conn_panic=0.3")]);
    let mut other = server.connect();
    let (mut closed, mut accepted) = (0, Vec::new());
    for payload in numbered(0..60) {
        let mut client = server.connect();
        client.send(crate::support::request(collection(&[&payload]).as_bytes(), ""));
        match client.try_reply() {
            Some(reply) => {
                assert_eq!(reply.status, 200);
                accepted.push(payload);
            }
            None => closed += 1,
        }
    }
    assert!(closed > 5 && accepted.len() > 5, "{closed} closed, {} served", accepted.len());
    server.wait("all others are gone", |m| m.sum("millrace_connections") == 1);
    assert_eq!(server.metrics().sum("millrace_connection_panics_total"), closed);
    // The connection that was open all the while is served, or panics by itself.
    other.send("GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(other.try_reply().is_none_or(|reply| reply.status == 404));
    drop(other);
    server.wait_idle();
    assert_eq!(contents(&server.stored()), sorted(&accepted));
    assert_eq!(server.stop().status, 0);
}

#[test]
fn a_core_that_dies_stops_the_process_and_its_loss_is_counted() {
    let Some(cores) = two_cores() else { return };
    let server = start(&[
        ("CORES", cores),
        ("FAULTS", "core_panic=30,delay=20ms"),
        ("MAX_WORKERS", "4"),
        ("DRAIN_TIMEOUT", "20s"),
    ]);
    // Connections on both cores that are not idle, so that whichever survives has something to
    // drain.
    let late = crate::support::request(br#"{"data":["late"]}"#, "");
    let (begins, ends) = late.split_at(late.len() - 5);
    let mut held: Vec<_> = (0..16).map(|_| server.connect()).collect();
    held.iter_mut().for_each(|client| client.send(begins));
    server.wait("all accepted", |m| m.sum("millrace_connections") == 16);
    let mut client = server.connect();
    assert_eq!(client.post(collection(&numbered(0..60))).status, 200);
    let reasons = server.wait_ready(503);
    assert!(reasons.contains("has died"), "{reasons}");
    assert_eq!(server.metrics().sum("millrace_core_deaths_total"), 1);
    assert_eq!(server.admin("/healthz").status, 200);
    // The survivor's connections are still served; the dead core's stay silent.
    let (mut served, mut more) = (0, 0);
    for mut client in held {
        client.send(ends);
        if let Some(mut reply) = reply_if_any(&mut client) {
            // It is told of the stop after `/readyz` has changed.
            client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let deadline = Instant::now() + PATIENCE;
            while reply.header("connection").is_none() {
                assert_eq!(reply.status, 200);
                assert!(Instant::now() < deadline, "the drain does not begin");
                client.send(&late);
                reply = client.reply();
                more += 1;
            }
            assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
            served += 1;
        }
    }
    assert!(served > 0, "the surviving core serves while it drains");
    let dir = server.dir();
    let stopped = server.wait_stopped();
    assert_eq!(stopped.status, 1, "{}", stopped.log_text());
    // On a busy host an answer may come after the test has stopped waiting for it.
    let accepted = 60 + more + served..=60 + more + 16;
    assert!(accepted.contains(&stopped.accepted), "{served}, {more}: {}", stopped.accepted);
    assert!(stopped.lost > 0);
    assert_eq!(stopped.lost, stopped.accepted - stopped.stored - stopped.dead_lettered);
    let died = stopped.log.iter().filter(|line| line.to_string().contains("a core died"));
    assert_eq!(died.count(), 1, "{}", stopped.log_text());
    let lost = stopped.log.iter().find(|line| line["lost"] == stopped.lost);
    assert!(lost.is_some(), "{}", stopped.log_text());
    // A put in flight may have reached the store uncounted; nothing counted may be missing.
    let stored = crate::support::files(&dir.path().join("data")).len() as u64;
    assert!((stopped.stored..=stopped.stored + 4).contains(&stored), "{stored} files");
}

/// A reply if one comes soon, or `None`.
fn reply_if_any(client: &mut crate::support::Client) -> Option<crate::support::Reply> {
    client.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    client.stream.peek(&mut [0]).ok().filter(|n| *n > 0)?;
    client.try_reply()
}
