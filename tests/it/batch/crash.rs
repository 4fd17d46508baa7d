//! Crashes of a server with batches: goal, whenever the process is killed, every payload whose 200
//! said `spooled` is one line of one object in the end, also when the next process makes its
//! objects in another way.
//!
//! Method: that of `spool::crash`, with `OBJECT=batch` in most rounds, small batches of several
//! partitions, and compression that changes from round to round; the objects are decoded and every
//! line held against what was sent. `MILLRACE_TEST_CRASHES` sets the rounds (else 5),
//! `MILLRACE_TEST_SEED` repeats the settings and the payloads of a run, if not its timing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use crate::spool::crash::{Figures, Sent, healthy, live_under_load, settings as spool_settings};
use crate::store::bulk::from_env;
use crate::support::batches::Packing;
use crate::support::{Server, files, mend_store};

#[test]
fn batch_crashes_lose_nothing_and_double_nothing() {
    run(&Plan { rounds: 5, store_fails: false, switches: false });
}

#[test]
fn batch_crashes_with_a_store_that_is_down_half_of_the_time_lose_and_double_nothing() {
    run(&Plan { rounds: 5, store_fails: true, switches: false });
}

#[test]
fn batch_crashes_between_which_objects_are_made_in_other_ways_lose_and_double_nothing() {
    run(&Plan { rounds: 5, store_fails: true, switches: true });
}

struct Plan {
    rounds: usize,
    store_fails: bool,
    /// Some rounds are `OBJECT=payload`, and templates change.
    switches: bool,
}

fn run(plan: &Plan) {
    let rounds = from_env("MILLRACE_TEST_CRASHES").unwrap_or(plan.rounds);
    let seed = from_env("MILLRACE_TEST_SEED").unwrap_or_else(|| fastrand::usize(..1 << 31)) as u64;
    println!("MILLRACE_TEST_SEED={seed} MILLRACE_TEST_CRASHES={rounds}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let next = AtomicUsize::new(0);
    let (mut sent, mut figures) = (Sent::new(), Figures::default());
    for round in 0..rounds {
        let settings = settings(plan, &mut rng);
        let settings: Vec<_> = settings.iter().map(|(name, text)| (*name, &text[..])).collect();
        let server = Server::start_in(dir.clone(), &settings);
        if plan.store_fails && rng.bool() {
            server.break_store();
        }
        let stopped =
            live_under_load(server, plan.store_fails, &next, &mut rng, &mut sent, &mut figures);
        if dir.path().join("data-away").exists() {
            mend_store(dir.path());
        }
        assert!(stopped.status <= 0, "round {round}: {stopped:?}\n{}", stopped.log_text());
        let fine = healthy(&stopped, plan.store_fails);
        assert!(fine, "round {round}: {settings:?}\n{}", stopped.log_text());
    }
    let started = Instant::now();
    let last = [("SPOOL_DIR", "spool"), ("OBJECT", "batch"), ("BATCH_AGE", "100ms")];
    let server = Server::start_in(dir.clone(), &last);
    server.wait_spool_empty();
    let replayed = started.elapsed();
    figures.adopted += server.metrics().sum("millrace_payloads_taken_over_total");
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.dead_lettered, stopped.lost), (0, 0, 0));
    assert!(stopped.errors().is_empty(), "{}", stopped.log_text());
    println!("{}, the rest replayed in {replayed:?}", figures.text(&sent));
    compare(&sent, &stopped.stored());
    let left: Vec<_> = files(&dir.path().join("spool")).into_keys().collect();
    assert_eq!(left, [".lock"], "nothing is left, neither in quarantine");
    assert!(!dir.path().join("dead-letter").read_dir().unwrap().any(|_| true));
}

/// Every acknowledged payload is in exactly one line of exactly one object, any other at most once.
fn compare(sent: &Sent, objects: &BTreeMap<String, Vec<u8>>) {
    let mut found: HashMap<Vec<u8>, Vec<&str>> = HashMap::new();
    let mut batched = 0;
    for (key, bytes) in objects {
        let lines = if is_alone(key) {
            vec![bytes.clone()]
        } else {
            let lines = Packing::of_key(key).lines(bytes);
            batched += lines.len();
            lines.into_iter().map(String::into_bytes).collect()
        };
        for line in lines {
            let text = String::from_utf8_lossy(&line);
            assert!(sent.contains_key(&line), "never sent like this: {text} in {key}");
            found.entry(line).or_default().push(key);
        }
    }
    let twice: Vec<_> = found.values().filter(|keys| keys.len() > 1).collect();
    println!(
        "{} objects with {} payloads, {batched} of them in batches, {} twice",
        objects.len(),
        found.len(),
        twice.len()
    );
    assert!(twice.is_empty(), "one payload in {:?}", twice[0]);
    let missing = sent.iter().filter(|(bytes, acked)| **acked && !found.contains_key(*bytes));
    let missing: Vec<_> = missing.map(|(bytes, _)| String::from_utf8_lossy(bytes)).collect();
    let example = missing.first();
    assert!(missing.is_empty(), "{} acknowledged but not stored, as {example:?}", missing.len());
}

/// Whether it is one payload by itself.
fn is_alone(key: &str) -> bool {
    key.ends_with(".json")
}

/// One round's settings.
fn settings(plan: &Plan, rng: &mut fastrand::Rng) -> Vec<(&'static str, String)> {
    let mut settings = spool_settings(plan.store_fails, rng);
    for (_, max) in settings.iter_mut().filter(|(name, max)| *name == "SPOOL_MAX" && max == "6MiB")
    {
        // Journals of batches want room beside two segments.
        *max = "13MiB".into();
    }
    let mut one = |of: &[&'static str]| of[rng.usize(..of.len())];
    let object = if plan.switches { one(&["batch", "batch", "payload"]) } else { "batch" };
    settings.push(("OBJECT", object.into()));
    let stamp = "{unix_nanos}-{node}-{core}-{seq}";
    if object == "payload" {
        let folder = one(&["", "{date:%Y}/", "{field:/x|other}/"]);
        settings.push(("KEY", format!("{folder}{stamp}.json")));
        return settings;
    }
    // None, two, one for every 60 payloads that have a time, and twice as many.
    let partitions =
        ["{hash:1}/", "{field:/x|other}/", "{date:%H-%M}/", "{date:%H-%M}/{field:/x|other}/"];
    let partition = one(&partitions);
    if partition.contains("date") {
        settings.push(("EVENT_TIME", "/id".into()));
    }
    settings.extend([
        ("KEY", format!("{partition}{stamp}.{{ext}}")),
        ("COMPRESSION", one(&["none", "gzip", "zstd", "zstd"]).into()),
        ("BATCH_AGE", one(&["10ms", "50ms", "300ms"]).into()),
        ("BATCH_BYTES", "64KiB".into()),
        ("BATCH_MEMORY", one(&["5MiB", "128MiB"]).into()),
        ("MAX_PARTITIONS", one(&["8", "256"]).into()),
    ]);
    let count = one(&["", "7", "200"]);
    settings.extend((!count.is_empty()).then(|| ("BATCH_COUNT", count.into())));
    settings
}
