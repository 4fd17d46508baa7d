use futures_lite::future::{poll_once, yield_now};

use super::encoder::lines;
use super::*;
use crate::coding::{Coding, Compression};
use crate::queue::admission::Need;
use crate::queue::job::Span;
use crate::queue::job_queue::JobQueue;
use crate::queue::outcome::Outcomes;
use crate::queue::run::InCommon;

/// A batch with no parts, of one payload of one byte.
fn batch(kind: BatchKind) -> Batch {
    Batch {
        key: "key".to_owned(),
        stem: "stem".to_owned(),
        form: BatchFormat { compression: Compression::None, header: false },
        parts: Vec::new(),
        sums: Sums::of(&[], Integrity::NONE),
        payloads: 1,
        payload_bytes: 1,
        kind,
        roster: Roster::default(),
        values: RequestValues::default(),
        shared: EncoderShared::new(),
        _charge: None,
    }
}

fn stamp(unix_nanos: u64, seq: u64) -> Stamp {
    Stamp { unix_nanos, seq }
}

#[test]
fn a_roster_gives_back_every_stamp_in_order() {
    let stamps =
        [(5, 1), (5, 2), (5, 3), (6, 4), (6, 5), (6, 9), (5, 10)].map(|(t, n)| stamp(t, n));
    let mut roster = Roster::default();
    stamps.into_iter().for_each(|stamp| roster.note_stamps(stamp, 1));
    assert!(roster.stamps().eq(stamps));
    assert_eq!(roster.stamps.len(), 4, "one for each run");
}

#[test]
fn a_roster_counts_the_payloads_of_each_request() {
    let request_outcomes = [RequestOutcome::of(3), RequestOutcome::of(1)];
    let mut roster = Roster::default();
    for (at, count) in [(0, 1), (0, 1), (1, 1), (0, 1)] {
        roster.note_request(&request_outcomes[at], count);
    }
    let counts: Vec<u32> = roster.request_outcomes.iter().map(|(_, count)| *count).collect();
    assert_eq!(counts, [2, 1, 1]);
}

#[test]
fn a_form_is_read_as_it_is_written() {
    let compressions = [
        (Compression::None, "none"),
        (Compression::Gzip(6), "gzip:6"),
        (Compression::Zstd(-5), "zstd:-5"),
    ];
    for (compression, text) in compressions {
        for header in [false, true] {
            let form = BatchFormat { compression, header };
            let text = format!("{text}{}", if header { " header" } else { "" });
            assert_eq!(form.to_string(), text);
            assert_eq!(text.parse(), Ok(form));
        }
    }
    for bad in ["", "zip", "zstd", "zstd:", "zstd:x", "none:1", "none  header", "gzip:1 head"] {
        assert!(bad.parse::<BatchFormat>().is_err(), "{bad}");
    }
}

#[test]
fn an_object_says_how_it_is_compressed_in_one_place() {
    let of = |compression, header| {
        let form = BatchFormat { compression, header };
        (form.ext(), form.coding())
    };
    assert_eq!(of(Compression::Zstd(1), false), ("ndjson.zst", None));
    assert_eq!(of(Compression::Zstd(1), true), ("ndjson", Some(Coding::Zstd)));
    assert_eq!(of(Compression::Gzip(1), false), ("ndjson.gz", None));
    assert_eq!(of(Compression::None, true), ("ndjson", None));
}

#[test]
fn a_single_object_gives_its_one_job_in_memory_only() {
    let payload = Payload::uncharged(b"7".to_vec(), RequestValues::of_version("1.2"));
    let batch = batch(BatchKind::SingleObject(Job::queued(payload, stamp(5, 9))));
    assert!(!batch.is_spooled(), "as when its segment file was removed");
    let jobs = batch.jobs();
    let [job] = jobs.as_slice() else { panic!("{} jobs", jobs.len()) };
    assert_eq!((job.stamp, &*job.payload), (stamp(5, 9), &b"7"[..]));
    assert_eq!(job.payload.values(), &RequestValues::of_version("1.2"));
    assert!(job.record.is_none() && job.request_outcome.is_none());
}

/// How payloads enter the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Entry {
    /// As they came in their requests.
    Runs,
    /// Each as if it were alone.
    Single,
}

/// A request: its body, where its payloads lie, and its `version`.
struct Sent {
    body: Vec<u8>,
    spans: Vec<Span>,
    version: String,
}

/// Requests with payloads of all kinds: small and large, on lines, with white space between them
/// and in them.
fn requests(rng: &mut fastrand::Rng) -> Vec<Sent> {
    let count = rng.usize(1..30);
    let request = |rng: &mut fastrand::Rng| {
        let between = ["", ",", ", ", "\n", "\r\n", ",\n"][rng.usize(..6)];
        let (mut body, mut spans) = (b"[".to_vec(), Vec::new());
        for _ in 0..rng.usize(1..40) {
            let space = ["", "", "", "", " ", "\n"][rng.usize(..6)];
            let note = "x".repeat([0, 9, 150, 150, 150, 5_000][rng.usize(..6)]);
            let (t, n) = (rng.u8(..3), rng.u32(..));
            let payload = format!(r#"{{"t":{t},{space}"n":{n},"note":"{note}"}}"#);
            let start = body.len() as u32;
            body.extend_from_slice(payload.as_bytes());
            spans.push(Span { start, end: body.len() as u32 });
            body.extend_from_slice(between.as_bytes());
        }
        Sent { body, spans, version: rng.u8(..3).to_string() }
    };
    (0..count).map(|_| request(rng)).collect()
}

/// What takes payloads into batches, and a queue of `slots` before it.
fn batches_of(
    config: &Config,
    slots: usize,
    cells: &'static CoreCells,
) -> (Rc<Admission>, Rc<Batches>) {
    let admission = Admission::new(Rc::new(JobQueue::new(slots)), 64 << 20, cells);
    let feed = Feed {
        admission: admission.clone(),
        stamps: Rc::default(),
        origin: Rc::new(Origin::new("n".into(), 0)),
        store: Rc::new(Store::Null),
        stop: Rc::default(),
    };
    let batches = Batches::new(config, feed, cells).unwrap();
    (admission, batches)
}

/// The objects that are made of `requests`: their keys without the time, and their lines.
async fn gathered(
    requests: &[Sent],
    entry: Entry,
    settings: &[(&str, &str)],
) -> Vec<(String, Vec<Vec<u8>>)> {
    let settings = [&[("OBJECT", "batch"), ("NODE_ID", "n"), ("CORES", "0")], settings].concat();
    let config = Config::from_settings(&settings).unwrap();
    let cells = &crate::metrics::cells(1)[0];
    let (admission, batches) = batches_of(&config, 10_000, cells);
    let mut awaited = Vec::new();
    let (mut seq, mut payloads) = (1_000, 0);
    for Sent { body, spans, version } in requests {
        let permit = admission.admit_now(Need::of(spans.len(), body.len())).unwrap().unwrap();
        let request_outcome = RequestOutcome::of(spans.len());
        let common = InCommon {
            values: RequestValues::of_version(version),
            first: Stamp { unix_nanos: 5, seq },
            record: None,
            request_outcome: Some(request_outcome.clone()),
        };
        let run = Run::new(body.clone(), permit, &**spans, common);
        match entry {
            Entry::Runs => admission.push(run),
            Entry::Single => {
                let mut rest = Some(run);
                while let Some(run) = rest.take() {
                    admission.push(run.first());
                    rest = run.behind(1);
                }
            }
        }
        seq += spans.len() as u64;
        payloads += spans.len();
        awaited.push(request_outcome);
    }
    assert_eq!(cells.queue_depth.value(), payloads as u64);
    admission.close();
    gather(batches.clone()).await;
    assert_eq!((cells.queue_depth.value(), cells.queue_bytes.value()), (0, 0));
    let mut objects = Vec::new();
    while let Some(batch) = batches.take_closed() {
        let mut of_object = Vec::new();
        lines(batch.form.compression, &batch.parts, |line| of_object.push(line.to_vec()));
        assert_eq!(batch.payloads(), of_object.len() as u64);
        let stamps: Vec<Stamp> = batch.roster.stamps().collect();
        assert_eq!(stamps.len(), of_object.len(), "a stamp for each line");
        assert!(batch.jobs().iter().map(|job| job.stamp).eq(stamps));
        batch.complete(Outcome::Stored);
        let (time_of_opening, rest) = batch.key.split_at(batch.key.find("-n-0-").unwrap());
        let before = time_of_opening.rsplit_once('/').map_or("", |(before, _)| before);
        objects.push((format!("{before}{rest}"), of_object));
    }
    for (outcome, Sent { spans, .. }) in awaited.iter().zip(requests) {
        let all = Outcomes { accepted: spans.len(), stored: spans.len(), ..Outcomes::default() };
        assert_eq!(outcome.outcomes(), all);
    }
    assert!(batches.is_empty());
    drop(batches);
    assert_eq!((cells.batch_bytes.value(), cells.batches_open.value()), (0, 0));
    objects
}

#[test]
fn runs_join_the_batches_that_their_payloads_would_join_one_by_one() {
    const UNIQUE: &str = "{unix_nanos}-{node}-{core}-{seq}.{ext}";
    let field = format!("{{field:/t}}/{UNIQUE}");
    let version = format!("{{version}}/{UNIQUE}");
    let both = format!("{{version}}/{{field:/t}}/{UNIQUE}");
    // The estimate of an object's size by its compression depends on how long slices take, so with
    // one the size must not decide.
    let limits: [&[(&str, &str)]; 6] = [
        &[],
        &[("BATCH_BYTES", "64KiB")],
        &[("BATCH_RAW_BYTES", "64KiB"), ("BATCH_BYTES", "64KiB")],
        &[("BATCH_COUNT", "7")],
        &[("BATCH_COUNT", "1")],
        &[("COMPRESSION", "zstd"), ("BATCH_COUNT", "60")],
    ];
    crate::rt::run_test(async {
        for seed in 0..60 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let sent = requests(&mut rng);
            let key = [UNIQUE, &field, &version, &both][rng.usize(..4)];
            let settings = [&[("KEY", key)], limits[rng.usize(..limits.len())]].concat();
            println!("seed {seed} {settings:?}");
            let runs = gathered(&sent, Entry::Runs, &settings).await;
            let single = gathered(&sent, Entry::Single, &settings).await;
            assert!(runs == single, "{} and {} objects", runs.len(), single.len());
        }
    });
}

/// Goal: what the last look at the sockets has brought goes before a long slice, unless admission is
/// ahead. Method: counts how often a task that is always ready runs in between.
#[test]
fn requests_go_before_long_slices_while_these_keep_up() {
    const JUST_NOW: Duration = Duration::ZERO;
    const LONG_AGO: Duration = Duration::from_secs(1);
    crate::rt::run_test(async {
        let settings = [("OBJECT", "batch"), ("NODE_ID", "n"), ("CORES", "0")];
        let config = Config::from_settings(&settings).unwrap();
        let cells = &crate::metrics::cells(1)[0];
        let (admission, batches) = batches_of(&config, 10_000, cells);
        let polls = Rc::new(Cell::new(0));
        let counter = polls.clone();
        let ready = rt::spawn(async move {
            loop {
                counter.set(counter.get() + 1);
                yield_now().await;
            }
        });
        let many = vec![Span { start: 0, end: 1 }; 513];
        // Whether admission is ahead, the slice is long, and the look has brought work; when the turn
        // began; how often others run.
        for (is_behind, is_long, brought_work, began, others) in [
            (false, true, false, JUST_NOW, 0),
            (false, true, true, JUST_NOW, 1),
            (false, true, false, LONG_AGO, 1),
            (false, true, true, LONG_AGO, 2),
            (false, false, true, JUST_NOW, 0),
            (false, false, true, LONG_AGO, 1),
            (true, true, true, JUST_NOW, 0),
            (true, true, true, LONG_AGO, 1),
            (true, false, true, LONG_AGO, 1),
        ] {
            let case = (is_behind, is_long, brought_work, began);
            if is_behind && admission.queue().is_empty() {
                let permit = admission.admit_now(Need::of(many.len(), 1)).unwrap().unwrap();
                let common = InCommon::of(stamp(5, 1), RequestValues::default());
                admission.push(Run::new(b"1".to_vec(), permit, &*many, common));
            }
            rt::looked(brought_work);
            let before = polls.get();
            // Later than now, so that a pause of this thread does not end the turn.
            let now = rt::now() + LONG_AGO / 2;
            batches.gathering.turn_began.set(now - began);
            batches.let_others_run(is_long).await;
            assert_eq!(polls.get() - before, others, "{case:?}");
        }
        ready.cancel().await;
    });
}

#[test]
fn a_large_payload_behind_a_small_one_waits_for_memory() {
    const LARGE: usize = 512 << 10;
    crate::rt::run_test(async {
        let settings = [("OBJECT", "batch"), ("NODE_ID", "n"), ("CORES", "0")];
        let config = Config::from_settings(&settings).unwrap();
        let cells = &crate::metrics::cells(1)[0];
        let (admission, batches) = batches_of(&config, 10, cells);
        // Other batches leave room for the small one and not for both.
        let mut others = Charge::new(&batches.memory);
        others.set(batches.memory.max() - ROOM_BYTES - (64 << 10));
        let spans = [Span { start: 0, end: 100 }, Span { start: 100, end: 100 + LARGE as u32 }];
        let permit = admission.admit_now(Need::of(2, 100 + LARGE)).unwrap().unwrap();
        let common = InCommon::of(stamp(5, 1), RequestValues::default());
        admission.push(Run::new(vec![b'1'; 100 + LARGE], permit, spans, common));
        admission.close();
        let mut gathering = Box::pin(gather(batches.clone()));
        assert!(poll_once(&mut gathering).await.is_none());
        let waits = |batches: &Batches| batches.gathering.blocked.borrow().is_some();
        assert!(waits(&batches), "the large one");
        assert_eq!(cells.batches_open.value(), 1, "of the small one");
        assert!(batches.memory.used() <= batches.memory.max());
        drop(others);
        gathering.await;
        assert!(!waits(&batches));
        let batch = batches.take_closed().unwrap();
        assert_eq!((batch.payloads(), batch.payload_bytes), (2, 100 + LARGE as u64));
        batch.complete(Outcome::Stored);
    });
}
