//! Uploads through slow links and to stores that ask for less: the link carries what is kept,
//! nothing is put twice, and one object that fails holds up no other.
//!
//! Rates and timeouts are small so that a scenario takes seconds: 32 uploads that share a link take
//! longer than `PUT_TIMEOUT` each, as 900 kB objects do at 2 MB/s with the default of 10 s.

use std::time::{Duration, Instant};

use crate::support::batches::s3_settings;
use crate::support::slow_store::{Act, SlowStore, Then};
use crate::support::{Server, collection, wait_for};

const PUT_TIMEOUT: Duration = Duration::from_secs(2);

/// A server that puts to `store`.
fn start(store: &SlowStore, settings: &[(&str, &str)]) -> Server {
    let url = store.url();
    let mut all = s3_settings(&url);
    all.extend([
        ("MAX_QUEUE_BYTES", "256MiB"),
        ("PUT_TIMEOUT", "2s"),
        ("RETRY_BASE", "10ms"),
        ("RETRY_MAX", "100ms"),
        // An unoptimized build signs as slowly as these links are.
        ("S3_SIGN_PAYLOAD", "never"),
    ]);
    all.retain(|(name, _)| settings.iter().all(|(set, _)| set != name));
    all.extend_from_slice(settings);
    Server::start(&all)
}

/// Posts `count` payloads of `bytes` bytes, `each` in a request.
fn post_backlog(server: &Server, count: usize, bytes: usize, each: usize) {
    let payload = format!("\"{}\"", "x".repeat(bytes - 2));
    let body = collection(&vec![payload; each]);
    let mut client = server.connect();
    for _ in 0..count / each {
        assert_eq!(client.post(&body).status, 200);
    }
}

/// Nothing is in flight and nothing is held.
fn wait_idle(server: &Server) {
    server.wait("no PUT in flight", |m| m.sum("millrace_puts_in_flight") == 0);
    server.wait_idle();
}

mod a_slow_link_carries_everything_once {
    use super::*;

    #[test]
    fn as_payloads() {
        scenario(&[], 150_000, 1);
    }

    #[test]
    fn as_batches() {
        let batches = [("OBJECT", "batch"), ("BATCH_BYTES", "150KB"), ("BATCH_AGE", "1s")];
        scenario(&batches, 15_000, 10);
    }

    #[test]
    fn with_the_sdk() {
        scenario(&[("S3_CLIENT", "sdk")], 150_000, 1);
    }

    /// 9 MB at 1.5 MB/s: 6 s at best, and 3.2 s for each of 32 objects that share the link. A
    /// machine that is too busy for this link gets slower ones.
    fn scenario(settings: &[(&str, &str)], payload_bytes: usize, each: usize) {
        let flawed = [1, 2, 4].into_iter().map_while(|slower| {
            let timeout = format!("{}s", slower * PUT_TIMEOUT.as_secs());
            let settings = [settings, &[("PUT_TIMEOUT", timeout.as_str())]].concat();
            run_on(1_500_000 / slower, &settings, payload_bytes, each).err()
        });
        let flawed: Vec<String> = flawed.collect();
        assert!(flawed.len() < 3, "{flawed:?}");
    }

    /// Whether everything went once and used the link, or what did not.
    fn run_on(
        rate: u64,
        settings: &[(&str, &str)],
        payload_bytes: usize,
        each: usize,
    ) -> Result<(), String> {
        const BYTES: usize = 9_000_000;
        let store = SlowStore::start(rate);
        let server = start(&store, settings);
        let payloads = BYTES / payload_bytes;
        post_backlog(&server, payloads, payload_bytes, each);
        // From here on there is always something to put.
        let (before, begun) = (store.counts(), Instant::now());
        server.wait("everything stored", |m| {
            m.sum("millrace_payloads_stored_total") == payloads as u64
        });
        wait_idle(&server);
        let (counts, metrics) = (store.counts(), server.metrics());
        assert_eq!(counts.kept_twice, 0, "{counts:?}");
        let retries = metrics.sum("millrace_put_retries_total");
        if (counts.put_again, counts.aborted, retries) != (0, 0, 0) {
            return Err(format!("{retries} retries at {rate} B/s: {counts:?}"));
        }
        assert_eq!(counts.bytes_received, counts.bytes_kept);
        let took = counts.last_kept.unwrap() - begun;
        let bytes = counts.bytes_kept - before.bytes_received;
        let share = bytes as f64 / rate as f64 / took.as_secs_f64();
        if share < 0.85 {
            return Err(format!("{share:.2} of the {rate} B/s in {took:?}: {counts:?}"));
        }
        Ok(())
    }
}

/// What `PUT_TIMEOUT` and `PUT_TIMEOUT_MAX` end, and when; `Act` is what happens to the first PUT
/// of one object.
mod a_put_that_stalls {
    use super::*;

    /// Bytes a second of the one connection: 2.5 s for the object, more than `PUT_TIMEOUT`.
    const SLOW: u64 = 200_000;
    const BYTES: usize = 500_000;

    /// A stored object, after the first PUT of it went as `first` says.
    fn put_one(settings: &[(&str, &str)], first: Act) -> (SlowStore, Server) {
        let store = SlowStore::start(0);
        store.script(move |put| if put.attempt == 1 { first } else { Act::keep() });
        let server = start(&store, settings);
        post_backlog(&server, 1, BYTES, 1);
        server.wait("stored", |m| m.sum("millrace_payloads_stored_total") == 1);
        wait_idle(&server);
        (store, server)
    }

    fn assert_within(took: Duration, at_least: Duration) {
        // What the store's receive buffer holds is acknowledged before it is read; the upper end is
        // for a busy machine.
        let early = Duration::from_millis(500);
        let late = Duration::from_secs(5);
        assert!(took + early >= at_least && took <= at_least + late, "{took:?} for {at_least:?}");
    }

    #[test]
    fn not_at_all_is_kept_however_slow_it_is() {
        let slow = Act { rate: Some(SLOW), ..Act::keep() };
        let (store, server) = put_one(&[], slow);
        assert_eq!(
            store.attempts().len(),
            1,
            "it took longer than PUT_TIMEOUT and went on all the time"
        );
        assert_eq!(server.metrics().sum("millrace_put_retries_total"), 0);
    }

    #[test]
    fn in_its_middle_ends_a_timeout_after_the_last_progress() {
        // 2.25 s of progress, then none.
        let stops = Act { rate: Some(SLOW), take: Some(450_000), then: Then::Silence };
        let (store, _server) = put_one(&[], stops);
        let [first, second] = store.attempts()[..] else { panic!("{:?}", store.attempts()) };
        assert_within(
            second.started.saturating_duration_since(first.last_read.unwrap()),
            PUT_TIMEOUT,
        );
    }

    #[test]
    fn before_its_answer_ends_a_timeout_after_the_last_byte() {
        let mute = Act { rate: Some(SLOW), take: None, then: Then::Silence };
        let (store, _server) = put_one(&[], mute);
        let [first, second] = store.attempts()[..] else { panic!("{:?}", store.attempts()) };
        assert_within(
            second.started.saturating_duration_since(first.last_read.unwrap()),
            PUT_TIMEOUT,
        );
    }

    #[test]
    fn never_but_takes_too_long_ends_at_put_timeout_max() {
        let trickle = Act { rate: Some(50_000), ..Act::keep() };
        let (store, _server) = put_one(&[("PUT_TIMEOUT_MAX", "4s")], trickle);
        let [first, second] = store.attempts()[..] else { panic!("{:?}", store.attempts()) };
        assert_within(second.started - first.started, Duration::from_secs(4));
    }

    /// What an abandoned PUT had in the socket's buffer must not go on to fill the link.
    #[test]
    fn is_reset_and_not_sent_to_its_end() {
        let stops = Act { rate: Some(SLOW), take: Some(100_000), then: Then::Silence };
        let (store, _server) = put_one(&[], stops);
        wait_for("the first PUT to end for the store too", || store.counts().aborted == 1);
    }
}

/// A store that refuses every PUT above so many in flight.
mod a_store_that_asks_for_less {
    use super::*;

    const TAKES: usize = 4;
    /// How long the store takes for an answer: the later, the less must a machine do meanwhile.
    const ANSWERS_AFTER: [Duration; 3] =
        [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(400)];
    const PAYLOADS: usize = 300;

    #[test]
    fn by_slow_down() {
        scenario(Act::refuse(503, "SlowDown"));
    }

    #[test]
    fn by_429() {
        scenario(Act::refuse(429, "TooManyRequests"));
    }

    /// MinIO, SeaweedFS, and a code that nobody has heard of.
    #[test]
    fn in_other_words() {
        for code in ["SlowDownWrite", "ErrTooManyRequest", "TryAnotherTime"] {
            scenario(Act::refuse(503, code));
        }
    }

    #[test]
    fn by_resets() {
        scenario(Act::reset());
    }

    fn scenario(refusal: Act) {
        let mut flawed = Vec::new();
        let met = ANSWERS_AFTER.into_iter().any(|delay| match run_with(refusal, delay) {
            Ok(()) => true,
            Err(flaw) => {
                flawed.push(flaw);
                false
            }
        });
        assert!(met, "{flawed:#?}");
    }

    /// Whether the store got about as much as it takes, or what was not so.
    fn run_with(refusal: Act, answers_after: Duration) -> Result<(), String> {
        let store = SlowStore::start(0);
        store.set_delay(answers_after);
        store.script(move |put| if put.in_flight > TAKES { refusal } else { Act::keep() });
        let server = start(&store, &[]);
        post_backlog(&server, PAYLOADS, 1_000, PAYLOADS);
        // The first refusals are how the limit is found.
        wait_for("the first of them", || store.counts().kept >= 60);
        let (first, begun) = (store.mark(), Instant::now());
        server.wait("everything stored", |m| {
            m.sum("millrace_payloads_stored_total") == PAYLOADS as u64
        });
        let last = store.counts();
        let refused = last.refused + last.aborted - first.refused - first.aborted;
        let started = last.started - first.started;
        let kept = (last.kept - first.kept) as f64 / begun.elapsed().as_secs_f64();
        let could = TAKES as f64 / answers_after.as_secs_f64();
        assert_eq!(last.kept_twice, 0);
        wait_idle(&server);
        if refused * 5 <= started && last.in_flight_max <= 2 * TAKES && kept >= could * 0.5 {
            return Ok(());
        }
        Err(format!(
            "{refused} of {started} refused, {kept:.0}/s of {could:.0}/s kept, answers after \
             {answers_after:?}: {last:?}"
        ))
    }
}

#[test]
fn the_limit_climbs_back_when_the_store_is_fast_again() {
    let store = SlowStore::start(0);
    store.set_delay(Duration::from_millis(50));
    store.script(|put| if put.in_flight > 2 { Act::refuse(503, "SlowDown") } else { Act::keep() });
    let server = start(&store, &[]);
    assert!(server.metrics().sum("millrace_puts_limit") <= 32, "MAX_WORKERS");
    post_backlog(&server, 5_000, 100, 5_000);
    server.wait("few in flight", |m| m.sum("millrace_puts_limit") <= 4);
    // So that many in flight are no more than a busy machine can do.
    store.set_delay(Duration::from_millis(200));
    store.script(|_| Act::keep());
    store.mark();
    server.wait("many in flight", |m| m.sum("millrace_puts_limit") >= 24);
    wait_for("as many at the store", || store.counts().in_flight_max >= 24);
    assert_eq!(store.counts().kept_twice, 0);
}

#[test]
fn a_link_that_gets_faster_is_used() {
    let store = SlowStore::start(400_000);
    let server = start(&store, &[]);
    post_backlog(&server, 500, 20_000, 20);
    wait_for("some of them, slowly", || store.counts().kept >= 60);
    store.set_rate(0);
    // From here on only many in flight are fast: 107 a second of 32, and 13 of 4.
    store.set_delay(Duration::from_millis(300));
    store.mark();
    let begun = Instant::now();
    server.wait("everything stored", |m| m.sum("millrace_payloads_stored_total") == 500);
    let (counts, took) = (store.counts(), begun.elapsed());
    assert!(counts.in_flight_max >= 24 && took < Duration::from_secs(15), "{took:?}: {counts:?}");
    assert_eq!((counts.put_again, counts.kept_twice), (0, 0), "{counts:?}");
    wait_idle(&server);
}

/// Objects that the store refuses every time, beside others that it takes.
mod objects_that_always_fail {
    use super::*;

    /// Keys begin with the payload's `k`.
    const KEY: &str = "{field:/k}/{unix_nanos}-{node}-{core}-{seq}.{ext}";

    #[test]
    fn hold_up_nothing_with_one_worker() {
        for refusal in [(500, "InternalError"), (503, "ServiceUnavailable"), (403, "AccessDenied")]
        {
            scenario(&[("MAX_WORKERS", "1")], refusal, 3);
        }
    }

    #[test]
    fn hold_up_nothing_with_fewer_workers_than_there_are_of_them() {
        scenario(&[("MAX_WORKERS", "4")], (500, "InternalError"), 12);
    }

    #[test]
    fn hold_up_no_other_partition_of_batches() {
        let batches = [("MAX_WORKERS", "1"), ("OBJECT", "batch"), ("BATCH_AGE", "50ms")];
        scenario(&batches, (500, "InternalError"), 1);
    }

    #[test]
    fn by_slow_down_do_not_keep_the_others_at_a_trickle() {
        scenario(&[("MAX_WORKERS", "8")], (503, "SlowDown"), 4);
    }

    fn scenario(settings: &[(&str, &str)], (status, code): (u16, &'static str), bad: usize) {
        const GOOD: usize = 40;
        let is_bad = |key: &str| key.contains("/bad");
        let store = SlowStore::start(0);
        store.set_delay(Duration::from_millis(10));
        store.script(
            move |put| {
                if is_bad(&put.key) { Act::refuse(status, code) } else { Act::keep() }
            },
        );
        let server = start(&store, &[&[("KEY", KEY)], settings].concat());
        let payloads = |name: &str, count: usize| -> Vec<String> {
            (0..count).map(|i| format!(r#"{{"k":"{name}{i}"}}"#)).collect()
        };
        assert_eq!(server.post(collection(&payloads("bad", bad))).status, 200);
        wait_for("a retry", || store.counts().put_again > 0);
        assert_eq!(server.post(collection(&payloads("good", GOOD))).status, 200);
        let kept = || store.kept_where(|key| !is_bad(key));
        wait_for("one of the others to be kept", || kept() > 0);
        // What it had to say before it knew of this one is in the log by then.
        server.wait("it to know", |m| m.sum("millrace_payloads_stored_total") > 0);
        std::thread::sleep(Duration::from_millis(100));
        let said = server.count_logged("the store takes nothing");
        wait_for("all others to be kept", || kept() == GOOD);
        // Until the first of them it was so.
        assert_eq!(server.count_logged("the store takes nothing"), said);
        assert_eq!(store.kept_where(is_bad), 0);
        assert_eq!(server.metrics().sum("millrace_payloads_dead_lettered_total"), 0, "still held");

        store.script(|_| Act::keep());
        wait_for("those that failed", || store.kept_where(is_bad) == bad);
        wait_idle(&server);
        assert_eq!(store.counts().kept_twice, 0);
    }
}
