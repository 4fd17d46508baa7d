//! Many payloads through two cores into a store that fails at random: goal, every accepted payload
//! is found exactly once, byte for byte, in the store or the dead letter, and no refused one is.
//!
//! Method: clients post collections of random sizes and random payloads from a printed seed, and
//! try again what gets a 503; the queue is small, so that they get some. Every payload carries its
//! own number, so none equals another. `MILLRACE_TEST_PAYLOADS` sets how many (else 20,000 into the
//! directory and 4,000 into the bucket, whose server is slow when it is not optimised),
//! `MILLRACE_TEST_SEED` repeats a run.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::support::needs::up_to_two_cores;
use crate::support::s3::{ACCESS_KEY, BUCKET, Fault, S3Server, SECRET_KEY};
use crate::support::{Client, Server, dead_letters, files};

/// Where the server puts objects, and how the test reads them back.
pub struct Target<'a> {
    /// Settings that name the store.
    pub settings: Vec<(&'a str, &'a str)>,
    /// Every object by its key relative to the store's prefix.
    pub read: &'a dyn Fn(&Server) -> BTreeMap<String, Vec<u8>>,
    /// Ends the faults of the store's own, before the replay.
    pub heal: &'a dyn Fn(),
}

#[test]
fn every_accepted_payload_is_found_once_in_a_directory() {
    let target = Target { settings: vec![], read: &Server::stored, heal: &|| {} };
    run(&target, from_env("MILLRACE_TEST_PAYLOADS").unwrap_or(20_000));
}

/// The S3 server fails on its own as well, in the ways only a remote one can.
#[test]
fn every_accepted_payload_is_found_once_in_a_bucket() {
    let s3 = S3Server::start();
    let requests = AtomicUsize::new(0);
    s3.fail_when(move |seen| {
        let at = requests.fetch_add(1, Relaxed);
        match at % 400 {
            _ if seen.method != "PUT" => None,
            50 => Some(Fault::Close),
            100 => Some(Fault::ServeThenClose),
            150 => Some(Fault::error(503, "SlowDown")),
            200 => Some(Fault::CutAnswer),
            250 => Some(Fault::AnswerThenClose),
            300 if at < 4_000 => Some(Fault::Hang),
            350 => Some(Fault::error(403, "AccessDenied")),
            _ => None,
        }
    });
    let (store, url) = (format!("s3://{BUCKET}/in/"), s3.url());
    let settings = vec![
        ("STORE", store.as_str()),
        ("AWS_ENDPOINT_URL_S3", url.as_str()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("HOME", "/nonexistent"),
    ];
    let read = |_: &Server| {
        let objects = s3.objects().into_iter();
        objects.map(|(key, bytes)| (key.strip_prefix("in/").unwrap().to_owned(), bytes)).collect()
    };
    let target = Target { settings, read: &read, heal: &|| s3.heal() };
    run(&target, from_env("MILLRACE_TEST_PAYLOADS").unwrap_or(4_000));
}

pub fn from_env(name: &str) -> Option<usize> {
    std::env::var(name).ok().map(|text| text.parse().expect("a whole number"))
}

/// What the clients did.
#[derive(Default)]
pub struct Sent {
    pub accepted: HashSet<Vec<u8>>,
    pub refused: HashSet<Vec<u8>>,
    requests: u64,
    pub tried_again: u64,
}

/// The whole run against `target` with `payloads` of them.
pub fn run(target: &Target<'_>, payloads: usize) {
    let seed = from_env("MILLRACE_TEST_SEED").unwrap_or_else(|| fastrand::usize(..1 << 31)) as u64;
    println!("MILLRACE_TEST_SEED={seed} MILLRACE_TEST_PAYLOADS={payloads}");
    let faults = format!(
        "seed={seed},transient=0.05,late=0.02,object=0.01,store_wide=0.01,hang=0.002,panic=0.002"
    );
    let cores = up_to_two_cores();
    let mut settings = target.settings.clone();
    settings.extend([
        ("CORES", cores),
        ("FAULTS", faults.as_str()),
        ("MAX_QUEUE", "500"),
        ("PUT_TIMEOUT", "1500ms"),
        ("RETRY_BASE", "5ms"),
        ("RETRY_MAX", "200ms"),
        ("DRAIN_TIMEOUT", "1m"),
        ("LOG", "warn,millrace::control=info"),
    ]);
    let server = Server::start(&settings);
    let started = Instant::now();
    let sent = post_all(&server, payloads, seed);
    let posted = started.elapsed();
    server.wait("nearly everything stored", |m| m.sum("millrace_queue_depth") == 0);
    server.wait_idle();
    let took = started.elapsed();

    let objects = (target.read)(&server);
    let letters = server.dead_letters();
    let retries = server.metrics().sum("millrace_put_retries_total");
    println!(
        "{} payloads in {} requests ({} tried again, {} refused) in {posted:?}, stored in {took:?}: \
         {:.0} a second; {} dead letters, {retries} retries",
        sent.accepted.len(),
        sent.requests,
        sent.tried_again,
        sent.refused.len(),
        sent.accepted.len() as f64 / took.as_secs_f64(),
        letters.len(),
    );
    let dir = server.dir();
    (target.heal)();
    let replay = server.command_beside(&["dead-letter", "replay"], &[("FAULTS", "")]).output();
    let replayed = (target.read)(&server);
    let stopped = server.stop();
    let figures = (stopped.status, stopped.accepted, stopped.lost);
    assert_eq!(figures, (0, sent.accepted.len() as u64, 0), "{}", stopped.log_text());
    assert_eq!(stopped.stored + stopped.dead_lettered, stopped.accepted);
    assert_eq!(stopped.dead_lettered, letters.len() as u64);

    compare(&sent, &objects, &letters);
    // A replay leaves the store alone with everything, each once: no letter's key was anybody
    // else's.
    let replay = replay.unwrap();
    assert_eq!(replay.status.code(), Some(0), "{}", String::from_utf8_lossy(&replay.stderr));
    assert_eq!(dead_letters(&dir.path().join("dead-letter")), []);
    assert_eq!(replayed.len(), sent.accepted.len());
    assert!(replayed.into_values().all(|bytes| sent.accepted.contains(&bytes)));
    assert_eq!(files(&dir.path().join("data/.millrace-tmp")).len(), 0, "temporary files are left");
}

/// `accepted` = objects + letters, by content; an object and a letter under one key are one
/// payload, which the store took without confirming it.
fn compare(
    sent: &Sent,
    objects: &BTreeMap<String, Vec<u8>>,
    letters: &[(serde_json::Value, Vec<u8>)],
) {
    let mut found: BTreeMap<&str, &[u8]> =
        objects.iter().map(|(key, bytes)| (key.as_str(), &bytes[..])).collect();
    for (meta, payload) in letters {
        if let Some(object) = found.insert(meta["key"].as_str().unwrap(), payload) {
            assert_eq!(object, payload, "one key, two payloads");
        }
    }
    let mut once = HashSet::new();
    for (key, bytes) in &found {
        assert!(once.insert(*bytes), "twice: {key}");
        assert!(!sent.refused.contains(*bytes), "refused but found: {key}");
        assert!(sent.accepted.contains(*bytes), "never sent like this: {key}");
    }
    let missing = sent.accepted.iter().filter(|payload| !once.contains(&payload[..]));
    assert_eq!(missing.count(), 0, "accepted but not found");
}

const CLIENTS: u64 = 6;

/// Posts until `payloads` have been accepted.
pub fn post_all(server: &Server, payloads: usize, seed: u64) -> Sent {
    let next = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (next, address) = (next.clone(), server.ingest);
            let rng = fastrand::Rng::with_seed(seed ^ (client << 32));
            std::thread::spawn(move || post_some(Client::connect(address), &next, payloads, rng))
        })
        .collect();
    let mut all = Sent::default();
    for client in clients {
        let sent = client.join().unwrap();
        all.accepted.extend(sent.accepted);
        all.refused.extend(sent.refused);
        all.requests += sent.requests;
        all.tried_again += sent.tried_again;
    }
    all
}

/// One client: takes numbers until there are none left.
fn post_some(
    mut client: Client,
    next: &AtomicUsize,
    payloads: usize,
    mut rng: fastrand::Rng,
) -> Sent {
    let mut sent = Sent::default();
    loop {
        // Most collections are small, some fill a good part of the ring.
        let wanted = if rng.u8(..20) == 0 { rng.usize(1..300) } else { rng.usize(1..20) };
        let first = next.fetch_add(wanted, Relaxed);
        if first >= payloads {
            return sent;
        }
        let ids = first..(first + wanted).min(payloads);
        let texts: Vec<String> = ids.map(|id| payload(id, &mut rng)).collect();
        let body = format!(r#"{{"version":"1","data":[{}]}}"#, texts.join(" , "));
        let texts = texts.into_iter().map(String::into_bytes);
        // Some give up at the first refusal; what they sent must not be found.
        let patient = rng.u8(..50) != 0;
        loop {
            sent.requests += 1;
            let reply = client.post(&body);
            match reply.status {
                200 => {
                    sent.accepted.extend(texts);
                    break;
                }
                503 if patient => {
                    sent.tried_again += 1;
                    std::thread::sleep(Duration::from_millis(rng.u64(1..20)));
                }
                503 => {
                    sent.refused.extend(texts);
                    break;
                }
                other => panic!("{other}: {}", reply.body),
            }
        }
    }
}

/// A JSON value of any kind that holds `id`, in a form that re-encoding would change.
pub fn payload(id: usize, rng: &mut fastrand::Rng) -> String {
    let filler = rng.usize(..400);
    let filler: String = (0..filler).map(|_| ['a', 'é', '☃', ' ', '7'][rng.usize(..5)]).collect();
    match rng.u8(..5) {
        0 => format!(r#"{{"id":{id},  "x":1.50e+3,"f":"{filler}","d":{{"data":[{id}]}}}}"#),
        1 => format!(r#"["{filler}",{id} , [[]], {{}}, null]"#),
        2 => format!(r#""{filler}\u0041\/{id}""#),
        3 => format!("{id}.000"),
        _ => format!(r#"{{"{filler}":true,"id":-{id}, "id":{id}}}"#),
    }
}
