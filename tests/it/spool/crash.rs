//! Crashes: goal, whenever the process is killed, every payload whose 200 said `spooled` is in the
//! store in the end, once, byte for byte.
//!
//! Method: clients post unique payloads while the server is killed at random moments and started
//! again on what it left, each time with other settings; the last one runs until nothing is left. A
//! payload is sent once whatever comes back, so one without a 200 may be in the store as well, but
//! never twice. `MILLRACE_TEST_CRASHES` sets how often (else 5), `MILLRACE_TEST_SEED` repeats the
//! settings and the payloads of a run, if not its timing.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::store::bulk::{from_env, payload};
use crate::support::needs::up_to_two_cores;
use crate::support::{Client, SPOOLED, Server, Stopped, collection, files, mend_store, request};

pub const CLIENTS: u64 = 4;

#[test]
fn spool_crashes_lose_nothing_that_was_acknowledged() {
    run(false);
}

#[test]
fn spool_crashes_with_a_store_that_is_down_half_of_the_time_lose_nothing() {
    run(true);
}

/// What the clients sent, and whether a 200 came back.
pub type Sent = HashMap<Vec<u8>, bool>;

/// What the run did beside that.
#[derive(Default)]
pub struct Figures {
    pub requests: u64,
    pub unavailable: u64,
    kills: u64,
    stops: u64,
    pub adopted: u64,
    overflows: u64,
}

impl Figures {
    pub fn text(&self, sent: &Sent) -> String {
        let acknowledged = sent.values().filter(|acknowledged| **acknowledged).count();
        format!(
            "{acknowledged} payloads acknowledged of {} in {} requests ({} got 503); {} kills, {} stops, {} payloads \
             adopted, {} overflows",
            sent.len(),
            self.requests,
            self.unavailable,
            self.kills,
            self.stops,
            self.adopted,
            self.overflows,
        )
    }
}

fn run(store_fails: bool) {
    let rounds = from_env("MILLRACE_TEST_CRASHES").unwrap_or(5);
    let seed = from_env("MILLRACE_TEST_SEED").unwrap_or_else(|| fastrand::usize(..1 << 31)) as u64;
    println!("MILLRACE_TEST_SEED={seed} MILLRACE_TEST_CRASHES={rounds}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let next = AtomicUsize::new(0);
    let (mut sent, mut figures) = (Sent::new(), Figures::default());
    for round in 0..rounds {
        let settings = settings(store_fails, &mut rng);
        let settings: Vec<_> = settings.iter().map(|(name, text)| (*name, &text[..])).collect();
        let server = Server::start_in(dir.clone(), &settings);
        if store_fails && rng.bool() {
            server.break_store();
        }
        let stopped =
            live_under_load(server, store_fails, &next, &mut rng, &mut sent, &mut figures);
        if dir.path().join("data-away").exists() {
            mend_store(dir.path());
        }
        assert!(stopped.status <= 0, "round {round}: {stopped:?}\n{}", stopped.log_text());
        assert!(healthy(&stopped, store_fails), "round {round}:\n{}", stopped.log_text());
    }
    let started = Instant::now();
    let server = Server::start_in(dir.clone(), &[("SPOOL_DIR", "spool")]);
    server.wait_spool_empty();
    let replayed = started.elapsed();
    figures.adopted += server.metrics().sum("millrace_payloads_taken_over_total");
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.dead_lettered, stopped.lost), (0, 0, 0));
    let objects = stopped.stored();
    println!(
        "{}, {} objects, the rest replayed in {replayed:?}",
        figures.text(&sent),
        objects.len()
    );
    let mut once = HashSet::new();
    for (key, bytes) in &objects {
        assert!(sent.contains_key(bytes), "never sent like this: {key}");
        assert!(once.insert(bytes), "twice: {key}");
    }
    let missing = sent.iter().filter(|(bytes, acked)| **acked && !once.contains(bytes));
    assert_eq!(missing.count(), 0, "acknowledged but not stored");
    let left: Vec<_> = files(&dir.path().join("spool")).into_keys().collect();
    assert_eq!(left, [".lock"], "nothing is left, neither in quarantine");
    assert!(!dir.path().join("dead-letter").read_dir().unwrap().any(|_| true));
}

/// Lets clients post until the server has been stopped or killed, and adds what they sent and how
/// it went.
pub fn live_under_load(
    server: Server,
    store_fails: bool,
    next: &AtomicUsize,
    rng: &mut fastrand::Rng,
    sent: &mut Sent,
    figures: &mut Figures,
) -> Stopped {
    let seed = rng.u64(..);
    let address = server.ingest;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let rng = fastrand::Rng::with_seed(seed ^ client);
                scope.spawn(move || post_until_it_dies(address, next, rng))
            })
            .collect();
        let stopped = live(server, store_fails, rng, figures);
        for client in clients {
            let (new, requests, unavailable) = client.join().unwrap();
            sent.extend(new);
            figures.requests += requests;
            figures.unavailable += unavailable;
        }
        stopped
    })
}

/// One round's settings.
pub fn settings(store_fails: bool, rng: &mut fastrand::Rng) -> Vec<(&'static str, String)> {
    let mut either = |a: &'static str, b: &'static str| if rng.bool() { a } else { b };
    let several = up_to_two_cores() != "0";
    let mut settings = vec![
        ("SPOOL_DIR", "spool"),
        ("NODE_ID", either("crash", "random")),
        ("CORES", if several { either("0", "0-1") } else { "0" }),
        ("SPOOL_MAX", either("6MiB", "32MiB")),
        ("SPOOL_LINGER", either("0ms", "2ms")),
        ("SPOOL_CHECKPOINT", either("10ms", "1s")),
        ("MAX_QUEUE", either("300", "10000")),
        ("MAX_WORKERS", either("2", "32")),
        ("RETRY_BASE", "5ms"),
        ("RETRY_MAX", "50ms"),
        ("DRAIN_TIMEOUT", "20s"),
    ];
    settings.extend(match either("small", "large") {
        "small" => [("MAX_LENGTH", "64KiB"), ("SPOOL_SEGMENT", "1MiB")],
        _ => [("MAX_LENGTH", "512KiB"), ("SPOOL_SEGMENT", "2MiB")],
    });
    let mut settings: Vec<_> = settings.into_iter().map(|(n, text)| (n, text.to_owned())).collect();
    let faults = if store_fails { "transient=0.2,late=0.2,store_wide=0.1," } else { "" };
    settings.push(("FAULTS", format!("seed={},{faults}delay=1ms", rng.u32(..))));
    settings
}

/// Lets a server live for a random time and ends it.
pub fn live(
    server: Server,
    store_fails: bool,
    rng: &mut fastrand::Rng,
    figures: &mut Figures,
) -> Stopped {
    // Some die while they bring back what the one before has left, some when several segments are
    // full.
    let longest = if rng.bool() { 100 } else { 700 };
    let end = Instant::now() + Duration::from_millis(rng.u64(1..longest));
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(rng.u64(1..100)));
        if store_fails {
            match server.path("data-away").exists() {
                true => server.mend_store(),
                false => server.break_store(),
            }
        }
    }
    let metrics = server.metrics();
    figures.adopted += metrics.sum("millrace_payloads_taken_over_total");
    figures.overflows += u64::from(metrics.sum("millrace_spool_overflowing") > 0);
    // A stop in between hands over likewise.
    if rng.u8(..6) == 0 {
        figures.stops += 1;
        server.stop()
    } else {
        figures.kills += 1;
        server.kill()
    }
}

/// Whether nothing was said that speaks of a loss; a store that fails is said as an error, and so
/// is a spool that is full.
pub fn healthy(stopped: &Stopped, store_fails: bool) -> bool {
    stopped.errors().iter().all(|line| {
        let said = line["message"].as_str().unwrap();
        store_fails && said.contains("the store takes nothing")
            || said.contains("the spool is full")
    })
}

/// One client: what it has sent until the server ended, its requests, and those that got 503.
pub fn post_until_it_dies(
    address: SocketAddr,
    next: &AtomicUsize,
    mut rng: fastrand::Rng,
) -> (Sent, u64, u64) {
    let (mut sent, mut requests, mut unavailable) = (Sent::new(), 0, 0);
    let Some(mut client) = Client::try_connect(address) else {
        return (sent, requests, unavailable);
    };
    loop {
        // Most collections are small, some fill a good part of a small ring or body.
        let count = if rng.u8(..20) == 0 { rng.usize(1..250) } else { rng.usize(1..10) };
        let first = next.fetch_add(count, Relaxed);
        let texts: Vec<String> = (first..first + count).map(|id| payload(id, &mut rng)).collect();
        // Also of the smaller MAX_LENGTH.
        let fits = texts.iter().scan(0, |bytes, text| {
            *bytes += text.len() + 1;
            (*bytes < 60_000).then_some(())
        });
        let texts = &texts[..fits.count()];
        requests += 1;
        let reply = client.try_request(&request(collection(texts).as_bytes(), SPOOLED));
        let status = reply.as_ref().map(|reply| reply.status);
        let payloads = texts.iter().map(|text| text.clone().into_bytes());
        sent.extend(payloads.map(|payload| (payload, status == Some(200))));
        match status {
            Some(200) if reply.is_some_and(|reply| reply.header("connection").is_none()) => {}
            Some(503) => {
                unavailable += 1;
                std::thread::sleep(Duration::from_millis(rng.u64(1..20)));
            }
            Some(200) | None => match Client::try_connect(address) {
                Some(again) => client = again,
                None => return (sent, requests, unavailable),
            },
            Some(other) => panic!("{other}"),
        }
    }
}
