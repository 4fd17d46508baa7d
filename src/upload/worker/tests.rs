use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_lite::future::poll_once;

use super::*;
use crate::config::{Checksum, FaultPlan};
use crate::deadletter::DeadLetters;
use crate::key::RequestValues;
use crate::metrics::CoreCells;
use crate::queue::admission::{Admission, Need};
use crate::queue::job::{Job, Origin, Payload, Span, Stamp};
use crate::queue::job_queue::JobQueue;
use crate::queue::outcome::{Outcomes, RequestOutcome};
use crate::queue::run::{InCommon, Run};
use crate::store::{Integrity, PutError, Store, StoreSeed, Sums};
use crate::upload::uploader::NextUpload;
use crate::upload::{DeadLetterWriter, StoreHealth, Uploads, wake_for_retries};

/// An uploader of two workers, with one object per payload and dead letters in `dir`.
fn uploader(dir: &tempfile::TempDir) -> Rc<Uploader> {
    with_store(dir, Store::Null, 4, &[])
}

/// The same with this store, queue slots and settings.
fn with_store(
    dir: &tempfile::TempDir,
    store: Store,
    slots: usize,
    settings: &[(&str, &str)],
) -> Rc<Uploader> {
    let cells = &crate::metrics::cells(1)[0];
    let directory = DeadLetters::open(dir.path(), 10 << 20).unwrap();
    Rc::new(Uploader {
        config: Arc::new(Config::from_settings(settings).unwrap()),
        cells,
        origin: Rc::new(Origin::new("n".into(), 0)),
        stamps: Rc::default(),
        admission: Admission::new(Rc::new(JobQueue::new(slots)), 1_000 * slots, cells),
        batches: None,
        spool: None,
        store: Rc::new(store),
        health: StoreHealth::new(cells, rt::now(), 0),
        dead_letters: DeadLetterWriter::new(directory, "null:".into(), cells),
        uploads: Uploads::new(2, cells),
        stop: Rc::default(),
    })
}

/// A waker that notes that it was called.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_waiting_worker_is_woken_before_a_dead_letter_is_written() {
    rt::run_test(async {
        let dir = tempfile::tempdir().unwrap();
        let uploader = uploader(&dir);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        uploader.admission.queue().wait(&Context::from_waker(&waker), 1);
        let stamp = Stamp { unix_nanos: 1, seq: 2 };
        let upload = Upload::Payload(Job::queued(Payload::from(b"1".to_vec()), stamp));
        let mut worker = Worker::new(uploader.clone(), 0);
        let _not_asked = upload.write_key(&uploader.origin, &mut worker.key);
        let given_up = GivenUp { upload, intent: None, error: "e".into(), attempts: 1 };
        let mut giving_up = Box::pin(worker.give_up(given_up));
        assert!(poll_once(&mut giving_up).await.is_none(), "the disk takes its time");
        assert!(woken.0.load(Ordering::Relaxed));
        assert_eq!(uploader.cells.payloads_dead_lettered.value(), 0);
        giving_up.await;
        assert_eq!(uploader.cells.payloads_dead_lettered.value(), 1);
    });
}

#[test]
fn a_due_retry_gets_a_worker_if_the_one_woken_for_it_takes_a_fresh_object() {
    rt::run_test(async {
        let dir = tempfile::tempdir().unwrap();
        let origin = Origin::new("n".into(), 0);
        let slow = StoreSeed::Null.build(&origin, Some(FaultPlan::default()), 0);
        let uploader = with_store(&dir, slow, 4, &[]);
        let uploads = &uploader.uploads;
        // The last one was a retry, so a fresh object is next.
        uploads.begin(true);
        uploads.end(true);
        let woken: [Arc<Woken>; 2] = Default::default();
        let wakers = woken.each_ref().map(|woken| Waker::from(woken.clone()));
        let mut workers = [0, 1].map(|number| Box::pin(uploader.next_upload(number)));
        for (worker, waker) in workers.iter_mut().zip(&wakers) {
            assert!(worker.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        }
        let stamp = |seq| Stamp { unix_nanos: 1, seq };
        let retry = Upload::Payload(Job::queued(Payload::from(b"1".to_vec()), stamp(1)));
        uploads.push_retry(PendingUpload::fresh(retry), rt::now());
        assert_eq!(uploads.retry_queue.borrow_mut().advance(rt::now()), 1);
        uploader.wake_worker();
        let permit = uploader.admission.admit_now(Need::of(1, 1)).unwrap().unwrap();
        let common = InCommon::of(stamp(2), RequestValues::default());
        let spans = [Span { start: 0, end: 1 }];
        uploader.admission.push(Run::new(b"2".to_vec(), permit, spans, common));
        let is_woken = || woken.each_ref().map(|woken| woken.0.load(Ordering::Relaxed));
        assert_eq!(is_woken(), [false, true], "the push relies on the worker that was woken");
        let mut in_flight = Vec::new();
        for (number, seq) in [(1, 2), (0, 1)] {
            assert!(is_woken()[number]);
            let mut cx = Context::from_waker(&wakers[number]);
            match workers[number].as_mut().poll(&mut cx) {
                Poll::Ready(Some(NextUpload::Object(pending, counted))) => {
                    let Upload::Payload(job) = pending.upload else { panic!("a payload") };
                    assert_eq!(job.stamp.seq, seq);
                    in_flight.push(counted);
                }
                _ => panic!("there is an object for worker {number}"),
            }
        }
    });
}

#[test]
fn a_retry_has_the_key_and_the_sums_of_the_first_attempt() {
    rt::run_test(async {
        let dir = tempfile::tempdir().unwrap();
        let uploader = uploader(&dir);
        let mut worker = Worker::new(uploader.clone(), 0);
        let stamp = Stamp { unix_nanos: 1, seq: 2 };
        let upload = Upload::Payload(Job::queued(Payload::from(b"1".to_vec()), stamp));
        let mut pending = PendingUpload::fresh(upload);
        worker.write_key(&pending);
        assert_eq!(worker.key, "1-n-0-2.json");
        let integrity = Integrity { checksum: Checksum::Crc64Nvme, sign_payload: true };
        let first = Sums::of(b"1", integrity);
        // A later attempt that computed them again would be a mistake, and must not count.
        for sums in [Some(first.clone()), None, Some(Sums::of(b"2", integrity))] {
            let error = PutError::new(Class::Transient, "c", "m");
            let put = Box::new(FailedPut { error, at: rt::now(), sums });
            let failed = FailedAttempt { put, stored_before: 0, began: rt::now() };
            uploader.uploads.begin(false);
            let in_flight = InFlight::of(&uploader);
            assert!(worker.failed(pending, failed, in_flight, None).is_ok());
            worker.key = "another".to_owned();
            uploader.uploads.retry_queue.borrow_mut().bring_forward(rt::now());
            uploader.uploads.retry_queue.borrow_mut().advance(rt::now());
            pending = uploader.uploads.retry_queue.borrow_mut().pop_due().unwrap();
            worker.write_key(&pending);
            assert_eq!(worker.key, "1-n-0-2.json");
            assert_eq!(pending.retry.as_ref().unwrap().sums.as_ref(), Some(&first));
        }
    });
}

#[test]
fn backoff_doubles_up_to_its_cap_and_never_spins() {
    let config = Config::from_settings(&[("RETRY_BASE", "100ms"), ("RETRY_MAX", "10s")]).unwrap();
    let longest = |attempts| backoff(&config, attempts, 1.0).as_millis();
    assert_eq!([1, 2, 3, 7, 8].map(longest), [100, 200, 400, 6_400, 10_000]);
    assert_eq!(longest(u32::MAX), 10_000, "many attempts do not overflow");
    assert_eq!(backoff(&config, 3, 0.5), Duration::from_millis(200), "full jitter");
    assert_eq!(backoff(&config, 3, 0.0), Duration::from_millis(1));
    let hour = Config::from_settings(&[("RETRY_BASE", "1h"), ("RETRY_MAX", "1h")]).unwrap();
    assert_eq!(backoff(&hour, u32::MAX, 1.0), Duration::from_secs(3_600));
}

/// What the cells must say once requests with `payloads` payloads of `bytes` bytes are stored or
/// dead-lettered, and nothing is held any more.
fn check_cells(cells: &CoreCells, dead: u64, dead_bytes: u64, payloads: u64, bytes: u64) {
    let (stored, stored_bytes) = (payloads - dead, bytes - dead_bytes);
    assert_eq!(
        (cells.objects_stored.value(), cells.object_bytes_stored.value()),
        (stored, stored_bytes)
    );
    assert_eq!((cells.payloads_stored.value(), cells.bytes_stored.value()), (stored, stored_bytes));
    assert_eq!(cells.payloads_dead_lettered.value(), dead);
    assert_eq!(cells.bytes_dead_lettered.value(), dead_bytes);
    let gauges = [
        ("queue_depth", cells.queue_depth.value()),
        ("queue_bytes", cells.queue_bytes.value()),
        ("puts_in_flight", cells.puts_in_flight.value()),
        ("puts_awaiting_retry", cells.puts_awaiting_retry.value()),
        ("workers_busy", cells.workers_busy.value()),
        ("payloads_lost", cells.payloads_lost.value()),
    ];
    for (name, value) in gauges {
        assert_eq!(value, 0, "{name}");
    }
}

/// Sends random requests to the workers of an uploader with this store, waits for their outcomes,
/// and closes the queue. Payloads with the word `poison` are refused if `refuses`.
async fn upload_random_requests(store: Store, seed: u64, refuses: bool) -> Rc<Uploader> {
    const SLOTS: usize = 64;
    let dir = tempfile::tempdir().unwrap();
    let settings = [("RETRY_BASE", "1ms"), ("RETRY_MAX", "2ms")];
    let uploader = with_store(&dir, store, SLOTS, &settings);
    let workers: Vec<_> =
        (0..2).map(|number| rt::spawn(worker_loop(uploader.clone(), number))).collect();
    let retries = rt::spawn(wake_for_retries(uploader.clone()));
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut seq, mut bytes, mut dead, mut dead_bytes) = (0, 0, 0, 0);
    let mut awaited = Vec::new();
    for _ in 0..rng.usize(1..60) {
        let (mut body, mut spans, mut refused) = (Vec::new(), Vec::new(), 0);
        for _ in 0..rng.usize(1..40) {
            let start = body.len() as u32;
            let is_refused = refuses && rng.u8(..50) == 0;
            let word = if is_refused { "poison" } else { "fine" };
            body.extend_from_slice(format!("\"{word}{}\"", "x".repeat(rng.usize(..20))).as_bytes());
            spans.push(Span { start, end: body.len() as u32 });
            bytes += u64::from(body.len() as u32 - start);
            if is_refused {
                refused += 1;
                dead_bytes += u64::from(body.len() as u32 - start);
            }
        }
        dead += refused as u64;
        let outcomes = Outcomes {
            accepted: spans.len(),
            stored: spans.len() - refused,
            dead_lettered: refused,
            lost: 0,
        };
        let request_outcome = RequestOutcome::of(spans.len());
        let need = Need::of(spans.len(), body.len());
        let permit = uploader.admission.admit(need, Duration::from_secs(60)).await.unwrap();
        let common = InCommon {
            values: RequestValues::default(),
            first: Stamp { unix_nanos: 1, seq },
            record: None,
            request_outcome: Some(request_outcome.clone()),
        };
        seq += spans.len() as u64;
        uploader.admission.push(Run::new(body, permit, spans, common));
        awaited.push((request_outcome, outcomes));
        if rng.bool() {
            rt::yield_now().await;
        }
    }
    for (request_outcome, outcomes) in awaited {
        request_outcome.wait_for_all(&uploader.stop.uploads_ended).await;
        assert_eq!(request_outcome.outcomes(), outcomes, "seed {seed}");
    }
    uploader.admission.close();
    for worker in workers {
        worker.await;
    }
    retries.cancel().await;
    assert!(uploader.holds_nothing());
    check_cells(uploader.cells, dead, dead_bytes, seq, bytes);
    uploader
}

#[test]
fn payloads_of_one_request_are_stored_as_if_they_were_alone() {
    for seed in 0..40 {
        rt::run_test(async move {
            let at_once = upload_random_requests(Store::Null, seed, false).await;
            // The same store, behind one that makes futures of its puts.
            let origin = Origin::new("n".into(), 0);
            let slow = StoreSeed::Null.build(&origin, Some(FaultPlan::default()), 0);
            let one_by_one = upload_random_requests(slow, seed, false).await;
            let figures = |uploader: &Uploader| {
                let cells = uploader.cells;
                (
                    cells.objects_stored.value(),
                    cells.bytes_stored.value(),
                    cells.put_latency.count(),
                )
            };
            assert_eq!(figures(&at_once), figures(&one_by_one), "seed {seed}");
        });
    }
}

#[test]
fn retries_and_refusals_are_of_single_payloads() {
    for seed in 0..8 {
        rt::run_test(async move {
            let faults = format!("seed={seed},transient=0.2,late=0.1,panic=0,poison=object");
            let plan = FaultPlan::parse(&faults).unwrap();
            let store = StoreSeed::Null.build(&Origin::new("n".into(), 0), Some(plan), 0);
            let uploader = upload_random_requests(store, seed, true).await;
            let stored = uploader.cells.objects_stored.value();
            let retried = uploader.cells.payloads_retried.value();
            assert!(retried > 0 || stored < 50, "seed {seed}: {retried} of {stored}");
        });
    }
}
