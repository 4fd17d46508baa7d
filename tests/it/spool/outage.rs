//! A store that is away for a while: what is spooled fills the disk and not memory, every client
//! gets its 200, and all of it is stored once the store is back. `MILLRACE_TEST_OUTAGE_S=60` makes
//! it a minute.

use std::time::{Duration, Instant};

use crate::support::{Server, wait_for};

/// Requests a second, from all clients together.
const RATE: u32 = 500;
const CLIENTS: u32 = 4;
const PAYLOADS: usize = 10;
/// How much longer the store is away than the clients send, for what is read meanwhile.
const LONGER: Duration = Duration::from_secs(5);

#[test]
fn an_outage_of_the_store_fills_the_disk_and_not_memory() {
    let seconds: u64 = std::env::var("MILLRACE_TEST_OUTAGE_S")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(3);
    let outage = Duration::from_secs(seconds) + LONGER;
    // The ring holds a tenth of a second's worth.
    let server = Server::start(&[
        ("STORE", "null:"),
        ("FAULTS", &format!("outage={}s", outage.as_secs())),
        ("SPOOL_DIR", "spool"),
        ("ACK", "spooled"),
        ("MAX_QUEUE", "500"),
        ("RETRY_MAX", "500ms"),
        ("CORES", "0"),
    ]);
    let payload = format!("\"{}\"", "x".repeat(148));
    let body = format!("{{\"data\":[{}]}}", vec![payload; PAYLOADS].join(","));
    // Connections, buffers and the first segment are there. The outage begins with the first PUT.
    let began = Instant::now();
    assert_eq!(server.post(&body).status, 200);
    let resident_before = server.resident();

    let until = Instant::now() + Duration::from_secs(seconds);
    let answered: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(|| send(&server, &body, until))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let (ok, other) = answered.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let grown = server.resident().saturating_sub(resident_before);
    let metrics = server.metrics();
    let queue_bytes = metrics.sum("millrace_queue_bytes");
    println!(
        "{ok} requests in {seconds} s, {other} not 200; resident memory grew by {} KiB, the ring holds {} KiB, the spool {} MiB",
        grown >> 10,
        queue_bytes >> 10,
        metrics.sum("millrace_spool_disk_bytes") >> 20,
    );
    assert_eq!(other, 0);
    // Twice what the ring holds, at least: each waits for the disk.
    assert!(ok * PAYLOADS as u64 > 1_000, "{ok} requests");
    if began.elapsed() < outage {
        assert_eq!(metrics.sum("millrace_payloads_stored_total"), 0, "the store was away");
        assert_eq!(metrics.sum("millrace_spool_overflowing"), 1);
    }
    assert!(grown <= queue_bytes + (32 << 20), "{grown} bytes beside {queue_bytes} in the ring");

    let accepted = (ok + 1) * PAYLOADS as u64;
    let back = Instant::now();
    while server.metrics().sum("millrace_payloads_stored_total") < accepted {
        assert!(back.elapsed() < Duration::from_secs(60), "it does not catch up");
        std::thread::sleep(Duration::from_millis(50));
    }
    server.wait_idle();
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_payloads_accepted_total"), accepted);
    assert_eq!(metrics.sum("millrace_payloads_stored_total"), accepted);
    let stopped = server.stop();
    assert_eq!(stopped.status, 0);
}

/// Rows: what 200 promises by default, `/readyz` during the outage.
#[test]
fn a_store_outage_takes_no_server_out_of_its_balancer_whose_spool_takes_payloads() {
    let settings = [
        ("READY_STORE_GRACE", "100ms"),
        ("RETRY_BASE", "5ms"),
        ("RETRY_MAX", "50ms"),
        ("INGEST_HEALTH", "on"),
        ("CORES", "0"),
    ];
    let spooled = [
        ("SPOOL_DIR", "spool"),
        ("ACK", "spooled"),
        ("SPOOL_SEGMENT", "1MiB"),
        ("SPOOL_MAX", "4MiB"),
        ("MAX_LENGTH", "256KiB"),
    ];
    let queued = [("SPOOL_DIR", "spool"), ("ACK", "queued")];
    for (more, ready) in [(&spooled[..], 200), (&queued, 503), (&[], 503)] {
        let server = Server::start(&[&settings[..], more].concat());
        server.wait_ready(200);
        server.break_store();
        assert_eq!(server.post_payloads(&["1"]).status, 200);
        wait_for("the outage to be said", || {
            server.admin("/readyz").body.contains("the store has been failing")
        });
        // Nor is it the first answer of the grace: the cores are told within 0.1 s.
        std::thread::sleep(Duration::from_millis(300));
        let said = server.wait_ready(ready);
        assert_eq!(said.starts_with("ready\n"), ready == 200, "{said}");
        wait_for(&format!("{more:?}: {ready} on LISTEN"), || {
            let mut client = server.connect();
            client.send("GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            client.reply().status == ready
        });
        if ready == 200 {
            let large = format!("\"{}\"", "f".repeat(200_000));
            let full = (0..40).find(|_| server.post_payloads(&[&large]).status == 503);
            assert!(full.is_some(), "the spool fills");
            let reasons = server.wait_ready(503);
            for reason in ["SPOOL_MAX is used up", "the store has been failing"] {
                assert_eq!(reasons.matches(reason).count(), 1, "{reasons}");
            }
        }
        server.mend_store();
        assert!(!server.wait_ready(200).contains("failing"));
        server.wait_idle();
        assert_eq!(server.stop().status, 0);
    }
}

/// One client's share of the rate; answers that were 200, and others.
fn send(server: &Server, body: &str, until: Instant) -> (u64, u64) {
    let mut client = server.connect();
    let (mut ok, mut other) = (0, 0);
    let mut due = Instant::now();
    while Instant::now() < until {
        match client.post(body).status {
            200 => ok += 1,
            _ => other += 1,
        }
        due += Duration::from_secs(1) * CLIENTS / RATE;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    (ok, other)
}
