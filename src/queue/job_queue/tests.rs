use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Waker};

use futures_lite::future::{block_on, poll_once};

use super::*;
use crate::key::RequestValues;
use crate::metrics::{CoreCells, cells};
use crate::queue::admission::{Admission, Need, Refusal};
use crate::queue::job::{Origin, Span, Stamp};
use crate::queue::outcome::{Outcome, Outcomes, RequestOutcome};
use crate::queue::run::InCommon;
use crate::sync::Woken;

/// An admission to a queue with this many slots.
fn admission(slots: usize) -> (Rc<Admission>, &'static CoreCells) {
    let cells = &cells(1)[0];
    (Admission::new(Rc::new(JobQueue::new(slots)), 1 << 20, cells), cells)
}

/// Admits a request of `payloads` payloads, the digits of its body, from stamp `seq` on.
fn push(admission: &Rc<Admission>, payloads: u32, seq: u64) {
    let bytes: Vec<u8> = (b'0'..).take(payloads as usize).collect();
    let need = Need::of(payloads as usize, bytes.len());
    let permit = admission.admit_now(need).expect("it could fit").expect("there is room");
    let spans: Vec<Span> = (0..payloads).map(|at| Span { start: at, end: at + 1 }).collect();
    let common = InCommon::of(Stamp { unix_nanos: 7, seq }, RequestValues::default());
    admission.push(Run::new(bytes, permit, spans, common));
}

fn seqs(run: &Run) -> Vec<u64> {
    (run.first_stamp().seq..).take(run.count()).collect()
}

#[test]
fn a_push_without_slots_for_all_is_handed_back() {
    let queue = JobQueue::new(5);
    let (other, _) = admission(10);
    let make = |payloads| {
        push(&other, payloads, 0);
        other.queue().take_run(10).expect("pushed just now")
    };
    assert!(queue.push(make(3)).is_ok());
    let refused = queue.push(make(3)).unwrap_err();
    assert_eq!((refused.count(), queue.len(), queue.free()), (3, 3, 2));
    queue.reserve(1);
    assert!(queue.push(make(2)).is_err(), "a slot is held");
    queue.reserve(3);
    assert_eq!(queue.free(), 0, "one slot was given away");
    queue.reserve(0);
    assert!(queue.push(make(2)).is_ok());
    assert_eq!((queue.len(), queue.free()), (5, 0));
}

#[test]
fn close_refuses_pushes_and_leaves_what_is_queued() {
    let (admission, _) = admission(5);
    push(&admission, 2, 0);
    let run = admission.queue().front().expect("pushed just now");
    admission.close();
    assert!(admission.queue().push(run).is_err());
    assert_eq!(admission.admit_now(Need { slots: 1, bytes: 1 }).err(), Some(Refusal::Closed));
    let left = || admission.queue().take().map(|job| job.stamp.seq);
    assert_eq!([left(), left(), left()], [Some(0), Some(1), None]);
}

#[test]
fn payloads_are_taken_in_order_whole_or_in_parts() {
    let (admission, _) = admission(100);
    for (payloads, seq) in [(3, 10), (1, 13), (5, 14)] {
        push(&admission, payloads, seq);
    }
    let queue = admission.queue();
    let first = queue.take().expect("there is one");
    assert_eq!((first.stamp.seq, &*first.payload), (10, &b"0"[..]));
    assert_eq!(queue.front().map(|run| seqs(&run)), Some(vec![11, 12]));
    assert_eq!(queue.take_run(10).map(|run| seqs(&run)), Some(vec![11, 12]), "of one request");
    queue.drop_front(1);
    assert_eq!(queue.take_run(2).map(|run| seqs(&run)), Some(vec![14, 15]));
    let last = queue.take_run(3).expect("there are three");
    let bytes: Vec<u8> = last.payloads().flat_map(|payload| payload.to_vec()).collect();
    assert_eq!((seqs(&last), bytes, queue.len()), (vec![16, 17, 18], b"234".to_vec(), 0));
    assert!(queue.take().is_none() && queue.take_run(1).is_none() && queue.front().is_none());
}

#[test]
#[should_panic(expected = "one run")]
fn what_is_dropped_is_in_one_run() {
    let (admission, _) = admission(10);
    push(&admission, 2, 0);
    push(&admission, 2, 2);
    admission.queue().drop_front(3);
}

#[test]
fn numbers_that_are_left_out_divide_a_request() {
    let (admission, _) = admission(10);
    let permit = admission.admit_now(Need::of(5, 5)).unwrap().unwrap();
    let spans: Vec<Span> = (0..5).map(|at| Span { start: at, end: at + 1 }).collect();
    let common = InCommon::of(Stamp { unix_nanos: 7, seq: 20 }, RequestValues::default());
    let numbers = [20, 21, 25, 30, 31];
    for run in Run::with_seqs(b"abcde".to_vec(), permit, spans, &numbers, common) {
        admission.push(run);
    }
    let queue = admission.queue();
    assert_eq!(queue.take().map(|job| job.stamp.seq), Some(20));
    for (seqs_of, bytes) in [(&[21][..], &b"b"[..]), (&[25], b"c"), (&[30, 31], b"de")] {
        let run = queue.take_run(9).expect("a stretch");
        let found: Vec<u8> = run.payloads().flat_map(|payload| payload.to_vec()).collect();
        assert_eq!((&*seqs(&run), &*found), (seqs_of, bytes));
        assert_eq!(run.first().into_job().stamp.seq, seqs_of[0]);
    }
    assert!(queue.is_empty());
}

#[test]
fn one_worker_is_woken_until_it_looks() {
    let (admission, _) = admission(100);
    let queue = admission.queue();
    let woken: [Arc<Woken>; 3] = Default::default();
    let counts = || woken.each_ref().map(|woken| woken.0.load(Relaxed));
    for (worker, woken) in woken.iter().enumerate() {
        let waker = Waker::from(woken.clone());
        queue.wait(&Context::from_waker(&waker), worker);
    }
    push(&admission, 3, 0);
    push(&admission, 2, 3);
    assert_eq!(counts(), [0, 0, 1], "one for all");
    // It looks and leaves something, so it wakes the next one, which has not looked yet.
    queue.look();
    queue.take();
    queue.wake_one();
    push(&admission, 1, 5);
    assert_eq!(counts(), [0, 1, 1]);
    queue.look();
    push(&admission, 1, 6);
    assert_eq!(counts(), [1, 1, 1]);
    // Nobody waits, so nobody is awaited: the next one that does is woken.
    queue.look();
    push(&admission, 1, 7);
    let waker = Waker::from(woken[0].clone());
    queue.wait(&Context::from_waker(&waker), 0);
    push(&admission, 1, 8);
    assert_eq!(counts(), [2, 1, 1]);
    queue.wait(&Context::from_waker(&waker), 0);
    queue.leave(0);
    queue.look();
    push(&admission, 1, 9);
    assert_eq!(counts(), [2, 1, 1]);
}

#[test]
fn a_wait_for_some_ends_with_a_push_and_with_the_close() {
    block_on(async {
        let (admission, _) = admission(10);
        let queue = admission.queue();
        let mut some = Box::pin(queue.some(0));
        assert!(poll_once(&mut some).await.is_none());
        push(&admission, 1, 0);
        assert!(some.await && queue.some(0).await);
        queue.take();
        let mut some = Box::pin(queue.some(0));
        assert!(poll_once(&mut some).await.is_none());
        admission.close();
        assert!(!some.await);
    });
}

#[test]
fn the_list_of_runs_never_grows() {
    let (admission, _) = admission(100);
    let before = admission.queue().runs.borrow().capacity();
    for seq in 0..1_000 {
        while admission.queue().free() == 0 {
            admission.queue().drop_front(1);
        }
        push(&admission, 1, seq);
    }
    assert_eq!(admission.queue().runs.borrow().capacity(), before);
}

#[test]
fn a_million_payloads_are_dropped_by_one_move() {
    const PAYLOADS: usize = 1_000_000;
    let cells = &cells(1)[0];
    let admission = Admission::new(Rc::new(JobQueue::new(PAYLOADS)), 1 << 30, cells);
    let permit = admission.admit_now(Need::of(PAYLOADS, PAYLOADS)).unwrap().unwrap();
    let spans: Vec<Span> = (0..PAYLOADS as u32).map(|at| Span { start: at, end: at + 1 }).collect();
    let common = InCommon::of(Stamp { unix_nanos: 7, seq: 0 }, RequestValues::default());
    admission.push(Run::new(vec![b'0'; PAYLOADS], permit, spans, common));
    assert_eq!(cells.queue_depth.value(), PAYLOADS as u64);
    let mut left = PAYLOADS;
    while let Some(run) = admission.queue().take_run(4_096) {
        admission.taken(run.count());
        left -= run.count();
        assert_eq!(admission.queue().len(), left);
        assert_eq!(cells.queue_bytes.value() as usize, 65 * PAYLOADS, "until the last one is gone");
    }
    assert_eq!((left, cells.queue_depth.value(), cells.queue_bytes.value()), (0, 0, 0));
}

#[test]
fn keys_of_a_run_are_those_of_its_payloads() {
    let own = || Origin::new("node".into(), 3);
    for origin in [own(), own().with_keys(Some("{unix_ms}/{seq}-{node}-{core}.json\n"))] {
        let (admission, _) = admission(100);
        push(&admission, 60, 95);
        admission.queue().drop_front(2);
        let run = admission.queue().take_run(100).expect("58");
        let (mut key, mut keys) = ("old".to_owned(), Vec::new());
        origin.write_keys(&run, &mut key, |payload, key, _| {
            keys.push((payload.to_vec(), key.to_owned()));
        });
        let expected = (97..).zip(run.payloads()).map(|(seq, payload)| {
            let stamp = Stamp { unix_nanos: 7, seq };
            (payload.to_vec(), origin.key(stamp, &payload))
        });
        assert!(keys.iter().cloned().eq(expected), "{keys:?}");
        assert_eq!(keys.len(), 58);
    }
}

/// A payload as the model knows it.
#[derive(Clone, Debug, PartialEq)]
struct Single {
    request: usize,
    seq: u64,
    text: Vec<u8>,
}

/// A request of the model, and what waits for its outcomes.
struct Request {
    need: Need,
    outcomes: Outcomes,
    awaited: Rc<RequestOutcome>,
}

/// The queue and the same as single jobs.
struct Model {
    admission: Rc<Admission>,
    cells: &'static CoreCells,
    rng: fastrand::Rng,
    requests: Vec<Request>,
    queued: VecDeque<Single>,
    /// Taken and not complete.
    aside: Vec<(Single, Job)>,
    next_seq: u64,
    closed: bool,
}

const SLOTS: usize = 40;
const BYTES: usize = 6_000;
/// That many may be aside before they hold slots.
const WORKERS: usize = 5;

impl Model {
    fn new(seed: u64) -> Model {
        let cells = &cells(1)[0];
        Model {
            admission: Admission::new(Rc::new(JobQueue::new(SLOTS)), BYTES, cells),
            cells,
            rng: fastrand::Rng::with_seed(seed),
            requests: Vec::new(),
            queued: VecDeque::new(),
            aside: Vec::new(),
            next_seq: 0,
            closed: false,
        }
    }

    fn held(&self) -> usize {
        self.aside.len().saturating_sub(WORKERS)
    }

    /// Bytes of the requests that have a payload left.
    fn bytes(&self) -> usize {
        let open = self.requests.iter().filter(|request| !request.outcomes.all_known());
        open.map(|request| request.need.bytes).sum()
    }

    fn push(&mut self) {
        let (mut body, mut spans, mut seqs, mut singles) = (vec![], vec![], vec![], vec![]);
        let divided = self.rng.u8(..4) == 0;
        for _ in 0..self.rng.usize(1..12) {
            self.next_seq += if divided { self.rng.u64(1..3) } else { 1 };
            body.extend_from_slice(&b"[,\n"[..self.rng.usize(..3)]);
            let text: Vec<u8> = (0..self.rng.usize(1..30)).map(|_| self.rng.u8(..)).collect();
            let start = body.len() as u32;
            body.extend_from_slice(&text);
            spans.push(Span { start, end: body.len() as u32 });
            seqs.push(self.next_seq);
            singles.push(Single { request: self.requests.len(), seq: self.next_seq, text });
        }
        let need = Need::of(spans.len(), body.len());
        let slots = self.queued.len() + self.held() + spans.len();
        let fits = slots <= SLOTS && self.bytes() + need.bytes <= BYTES;
        let permit = match self.admission.admit_now(need) {
            Err(refusal) => {
                assert!(self.closed && refusal == Refusal::Closed, "{refusal}");
                return;
            }
            Ok(permit) => permit,
        };
        assert_eq!(permit.is_some(), fits && !self.closed);
        let Some(permit) = permit else { return };
        let awaited = RequestOutcome::of(spans.len());
        let common = InCommon {
            values: RequestValues::default(),
            first: Stamp { unix_nanos: 3, seq: seqs[0] },
            record: None,
            request_outcome: Some(awaited.clone()),
        };
        for run in Run::with_seqs(body, permit, spans, &seqs, common) {
            self.admission.push(run);
        }
        let outcomes = Outcomes { accepted: singles.len(), ..Outcomes::default() };
        self.requests.push(Request { need, outcomes, awaited });
        self.queued.extend(singles);
    }

    fn outcome(&mut self) -> Outcome {
        [Outcome::Stored, Outcome::DeadLettered, Outcome::Lost][self.rng.usize(..3)]
    }

    fn completed(&mut self, single: &Single, outcome: Outcome) {
        let outcomes = &mut self.requests[single.request].outcomes;
        *match outcome {
            Outcome::Stored => &mut outcomes.stored,
            Outcome::DeadLettered => &mut outcomes.dead_lettered,
            Outcome::Lost => &mut outcomes.lost,
        } += 1;
    }

    /// As a worker does whose PUT takes a while.
    fn take_one(&mut self) {
        let job = self.admission.queue().take();
        let single = self.queued.pop_front();
        assert_eq!(job.is_some(), single.is_some());
        if let (Some(job), Some(single)) = (job, single) {
            assert_eq!((job.stamp.seq, &*job.payload), (single.seq, &*single.text));
            self.aside.push((single, job));
            self.admission.hold(self.held());
            self.admission.taken(1);
        }
    }

    /// As a worker does whose PUTs complete at once, or the task that gathers batches.
    fn take_many(&mut self) {
        let most = self.rng.usize(1..15);
        let queue = self.admission.queue();
        let run = match self.rng.bool() {
            true => queue.take_run(most),
            false => queue.front().map(|front| {
                let mut front = front;
                let count = front.count().min(most);
                let run = if count < front.count() { front.take_front(count) } else { front };
                queue.drop_front(count);
                run
            }),
        };
        let Some(run) = run else { return assert!(self.queued.is_empty()) };
        assert!(run.count() <= most);
        self.admission.taken(run.count());
        let singles: Vec<Single> = self.queued.drain(..run.count()).collect();
        let texts: Vec<Vec<u8>> = run.payloads().map(|payload| payload.to_vec()).collect();
        assert!(singles.iter().map(|single| &single.text).eq(&texts));
        assert!(singles.iter().map(|single| single.seq).eq(seqs(&run)), "consecutive");
        assert!(singles.iter().all(|single| single.request == singles[0].request));
        assert_eq!(run.payload_bytes() as usize, texts.concat().len());
        let outcome = self.outcome();
        run.complete(outcome);
        singles.iter().for_each(|single| self.completed(single, outcome));
    }

    fn complete_one(&mut self) {
        if self.aside.is_empty() {
            return;
        }
        let (single, job) = self.aside.swap_remove(self.rng.usize(..self.aside.len()));
        let outcome = self.outcome();
        job.complete(outcome);
        self.completed(&single, outcome);
        drop(job);
        self.admission.hold(self.held());
    }

    fn check(&self) {
        let (queue, held) = (self.admission.queue(), self.held());
        assert_eq!((queue.len(), queue.is_empty()), (self.queued.len(), self.queued.is_empty()));
        assert_eq!(queue.free(), SLOTS.saturating_sub(self.queued.len() + held));
        assert_eq!(self.cells.queue_depth.value() as usize, self.queued.len() + held);
        assert_eq!(self.cells.queue_bytes.value() as usize, self.bytes());
        for Request { outcomes, awaited, .. } in &self.requests {
            assert_eq!(awaited.outcomes(), *outcomes);
        }
    }
}

#[test]
fn runs_behave_as_single_jobs() {
    for seed in 0..300 {
        println!("seed {seed}");
        let mut model = Model::new(seed);
        for step in 0..150 {
            match model.rng.u8(..10) {
                0..=3 => model.push(),
                4 | 5 => model.take_one(),
                6 | 7 => model.take_many(),
                _ if step > 100 && model.rng.u8(..20) == 0 => {
                    model.admission.close();
                    model.closed = true;
                }
                _ => model.complete_one(),
            }
            model.check();
        }
        while !model.queued.is_empty() {
            model.take_one();
            model.check();
        }
        while !model.aside.is_empty() {
            model.complete_one();
            model.check();
        }
        assert!(model.requests.iter().all(|request| request.outcomes.all_known()));
        assert_eq!((model.cells.queue_depth.value(), model.cells.queue_bytes.value()), (0, 0));
    }
}
