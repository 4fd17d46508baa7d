//! Whether a request may enter: all its payloads or none, by ring slots and by bytes.
//!
//! Bytes are charged once per request, as the retained allocation plus a fixed cost per payload. While a body is read
//! they belong to the [`BodyBudget`]; at admission they become a [`Permit`] that the jobs carry and that the last of
//! them releases. Slots are positions in the ring and are released when a worker pops.
//!
//! A request that finds no room may wait, first come, first served: nobody overtakes the head of the line, so a large
//! request is not starved by small ones. Taking the permit and pushing the jobs has no await in between.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use glommio::timer::Timer;

use crate::job::Job;
use crate::limits::JOB_COST_BYTES;
use crate::metrics::CoreCells;
use crate::ring::Ring;

/// What one request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    pub slots: usize,
    pub bytes: usize,
}

impl Need {
    /// `payloads` jobs on a body whose allocation holds `retained` bytes.
    pub fn of(payloads: usize, retained: usize) -> Need {
        Need { slots: payloads, bytes: retained + payloads * JOB_COST_BYTES }
    }
}

/// Why a request was not admitted; none of its payloads was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "the request has {given} payloads, more than MAX_QUEUE ({max}) could ever hold; split it"
    )]
    TooManyPayloads { given: usize, max: usize },
    #[error(
        "the request needs {given} bytes of memory, more than MAX_QUEUE_BYTES ({max}) could ever hold; \
         split it"
    )]
    TooManyBytes { given: usize, max: usize },
    #[error("the queue of this core is full; try again in {retry_after_s} s")]
    Full { retry_after_s: u64 },
    #[error("the server is stopping; send this to another one")]
    Closed,
}

/// The gate of one core in front of its ring.
pub struct Admission {
    ring: Rc<Ring<Job>>,
    bytes_max: usize,
    bytes_used: Cell<usize>,
    line: RefCell<VecDeque<Waiting>>,
    next_ticket: Cell<u64>,
    rate: RefCell<DrainRate>,
    cells: &'static CoreCells,
}

/// One request standing in line for room.
struct Waiting {
    ticket: u64,
    need: Need,
    waker: Waker,
}

impl Admission {
    pub fn new(ring: Rc<Ring<Job>>, bytes_max: usize, cells: &'static CoreCells) -> Rc<Admission> {
        Rc::new(Admission {
            ring,
            bytes_max,
            bytes_used: Cell::new(0),
            line: RefCell::default(),
            next_ticket: Cell::new(0),
            rate: RefCell::new(DrainRate::new(Instant::now())),
            cells,
        })
    }

    /// Waits up to `wait` for room in order of arrival. When this returns `Ok`, the slots are free and stay free until
    /// the next await: push at once.
    pub async fn admit(self: &Rc<Self>, need: Need, wait: Duration) -> Result<Permit, Refusal> {
        if need.slots > self.ring.capacity() {
            let (given, max) = (need.slots, self.ring.capacity());
            return Err(Refusal::TooManyPayloads { given, max });
        }
        if need.bytes > self.bytes_max {
            return Err(Refusal::TooManyBytes { given: need.bytes, max: self.bytes_max });
        }
        if self.ring.is_closed() {
            return Err(Refusal::Closed);
        }
        if self.line.borrow().is_empty() && self.fits(need) {
            return Ok(self.take(need));
        }
        if wait.is_zero() {
            return Err(self.full(need));
        }
        let place = Place { admission: self.clone(), ticket: self.next_ticket.get() };
        self.next_ticket.set(place.ticket + 1);
        let timeout = async {
            Timer::new(wait).await;
            Err(self.full(need))
        };
        futures_lite::future::or(place.wait(need), timeout).await
    }

    /// Room was made: a slot popped, bytes released, or the ring closed. Wakes the head of the line if it can move.
    pub fn room_changed(&self) {
        let line = self.line.borrow();
        if let Some(head) = line.front()
            && (self.fits(head.need) || self.ring.is_closed())
        {
            head.waker.wake_by_ref();
        }
    }

    /// Closes the ring and turns everybody in line away.
    pub fn close(&self) {
        self.ring.close();
        for waiting in self.line.borrow().iter() {
            waiting.waker.wake_by_ref();
        }
    }

    /// A worker has taken a job out of the ring.
    pub fn popped(&self) {
        self.cells.ring_depth.set(self.ring.len() as u64);
        self.rate.borrow_mut().slots += 1;
        self.room_changed();
    }

    /// Once a second: what `retry-after` is measured from.
    pub fn sample(&self, now: Instant) {
        let stuck = self.bytes_used.get() > 0;
        self.rate.borrow_mut().sample(now, stuck);
    }

    fn fits(&self, need: Need) -> bool {
        need.slots <= self.ring.free() && need.bytes <= self.bytes_max - self.bytes_used.get()
    }

    fn take(self: &Rc<Self>, need: Need) -> Permit {
        self.bytes_used.set(self.bytes_used.get() + need.bytes);
        assert!(self.bytes_used.get() <= self.bytes_max);
        self.cells.ring_bytes.set(self.bytes_used.get() as u64);
        Permit { admission: self.clone(), bytes: need.bytes }
    }

    /// The refusal of a request that would have to wait behind those already in line.
    fn full(&self, need: Need) -> Refusal {
        let line = self.line.borrow();
        let ahead = line.iter().fold(need, |sum, waiting| Need {
            slots: sum.slots + waiting.need.slots,
            bytes: sum.bytes + waiting.need.bytes,
        });
        let missing = Need {
            slots: ahead.slots.saturating_sub(self.ring.free()),
            bytes: ahead.bytes.saturating_sub(self.bytes_max - self.bytes_used.get()),
        };
        Refusal::Full { retry_after_s: self.rate.borrow().seconds_for(missing, Instant::now()) }
    }
}

/// A place in the line, given up on every way out.
struct Place {
    admission: Rc<Admission>,
    ticket: u64,
}

impl Place {
    async fn wait(self, need: Need) -> Result<Permit, Refusal> {
        let admission = &self.admission;
        poll_fn(|cx| {
            if admission.ring.is_closed() {
                return Poll::Ready(Err(Refusal::Closed));
            }
            let mut line = admission.line.borrow_mut();
            match line.iter_mut().find(|waiting| waiting.ticket == self.ticket) {
                Some(waiting) => waiting.waker.clone_from(cx.waker()),
                None => {
                    line.push_back(Waiting { ticket: self.ticket, need, waker: cx.waker().clone() })
                }
            }
            admission.cells.room_waiters.set(line.len() as u64);
            let head = line.front().expect("this request stands in line").ticket;
            drop(line);
            if head == self.ticket && admission.fits(need) {
                return Poll::Ready(Ok(admission.take(need)));
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut line = self.admission.line.borrow_mut();
        line.retain(|waiting| waiting.ticket != self.ticket);
        self.admission.cells.room_waiters.set(line.len() as u64);
        drop(line);
        // The next in line may fit where this one did not, or beside it.
        self.admission.room_changed();
    }
}

/// The bytes of one admitted request; released when its last job is finished.
pub struct Permit {
    admission: Rc<Admission>,
    bytes: usize,
}

impl Permit {
    /// Queues the jobs this permit was taken for. No await may lie between [`Admission::admit`] and this call.
    pub fn push_all(admission: &Admission, jobs: impl ExactSizeIterator<Item = Job>) {
        for job in jobs {
            let pushed = admission.ring.push(job);
            assert!(pushed.is_ok(), "admission checked the slots and nothing ran since");
        }
        admission.cells.ring_depth.set(admission.ring.len() as u64);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let admission = &self.admission;
        admission.bytes_used.set(admission.bytes_used.get() - self.bytes);
        admission.cells.ring_bytes.set(admission.bytes_used.get() as u64);
        admission.rate.borrow_mut().bytes += self.bytes as u64;
        admission.room_changed();
    }
}

/// How fast room is made, from one sample a second over the last [`DrainRate::WINDOW_S`] seconds.
struct DrainRate {
    slots: u64,
    bytes: u64,
    samples: VecDeque<Sample>,
}

struct Sample {
    at: Instant,
    slots: u64,
    bytes: u64,
    /// Work was held when the sample was taken.
    busy: bool,
}

impl DrainRate {
    const WINDOW_S: usize = 5;

    fn new(now: Instant) -> DrainRate {
        let first = Sample { at: now, slots: 0, bytes: 0, busy: false };
        DrainRate { slots: 0, bytes: 0, samples: VecDeque::from([first]) }
    }

    fn sample(&mut self, now: Instant, busy: bool) {
        if self.samples.len() > Self::WINDOW_S {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { at: now, slots: self.slots, bytes: self.bytes, busy });
    }

    /// Seconds until `missing` is free at the measured rate, 1 to 60: no rate known yet → 1, standing still → 60.
    fn seconds_for(&self, missing: Need, now: Instant) -> u64 {
        let oldest = self.samples.front().expect("never empty");
        let elapsed_s = now.duration_since(oldest.at).as_secs_f64();
        let still = self.samples.len() > Self::WINDOW_S && self.samples.iter().all(|s| s.busy);
        let seconds = |missing: usize, freed: u64| match (missing, freed) {
            (0, _) => 0.0,
            (_, 0) if still => 60.0,
            (_, 0) => 1.0,
            (missing, freed) => missing as f64 * elapsed_s / freed as f64,
        };
        let by_slots = seconds(missing.slots, self.slots - oldest.slots);
        let by_bytes = seconds(missing.bytes, self.bytes - oldest.bytes);
        by_slots.max(by_bytes).ceil().clamp(1.0, 60.0) as u64
    }
}

/// The core's budget for bodies being read, decompressed or waiting for room.
pub struct BodyBudget {
    max: usize,
    used: Cell<usize>,
    cells: &'static CoreCells,
}

/// `MAX_BODY_BYTES` is used up.
#[derive(Debug, PartialEq, Eq)]
pub struct BodyMemoryExhausted;

impl BodyBudget {
    pub fn new(max: usize, cells: &'static CoreCells) -> Rc<BodyBudget> {
        Rc::new(BodyBudget { max, used: Cell::new(0), cells })
    }

    fn change(&self, from: usize, to: usize) -> Result<(), BodyMemoryExhausted> {
        let used = self.used.get() - from + to;
        if to > from && used > self.max {
            return Err(BodyMemoryExhausted);
        }
        self.used.set(used);
        self.cells.body_bytes.set(used as u64);
        Ok(())
    }
}

/// Bytes that grow against the [`BodyBudget`]: charged by capacity, released on drop or when handed over.
pub struct ChargedBytes {
    bytes: Vec<u8>,
    charged: usize,
    max: usize,
    budget: Rc<BodyBudget>,
}

impl ChargedBytes {
    /// The first allocation; from there on capacity doubles, so a body pays for at most twice what it has sent,
    /// whatever it announced. At the default limits, stalled clients on every connection of a core just use up its
    /// budget: 16384 × 4 KiB = 64 MiB.
    const FIRST_CAPACITY: usize = 4 * 1024;

    /// Room that will grow up to `max` bytes.
    pub fn new(budget: &Rc<BodyBudget>, max: usize) -> Result<ChargedBytes, BodyMemoryExhausted> {
        let capacity = max.min(Self::FIRST_CAPACITY);
        budget.change(0, capacity)?;
        let bytes = Vec::with_capacity(capacity);
        Ok(ChargedBytes { bytes, charged: capacity, max, budget: budget.clone() })
    }

    /// Appends `more`, which the caller knows to fit in `max`.
    pub fn extend(&mut self, more: &[u8]) -> Result<(), BodyMemoryExhausted> {
        let len = self.bytes.len() + more.len();
        assert!(len <= self.max, "the caller checks the length first");
        if len > self.charged {
            let capacity = len.max(self.charged * 2).min(self.max);
            self.budget.change(self.charged, capacity)?;
            self.charged = capacity;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(more);
        Ok(())
    }

    /// How many bytes more may be appended.
    pub fn room(&self) -> usize {
        self.max - self.bytes.len()
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// What the allocation keeps in memory.
    pub fn retained(&self) -> usize {
        self.charged
    }

    /// Gives back what doubling has allocated too much.
    pub fn shrink(&mut self) {
        if self.charged - self.bytes.len() > self.charged / 4 {
            self.bytes.shrink_to_fit();
            let _shrinking_never_fails = self.budget.change(self.charged, self.bytes.len());
            self.charged = self.bytes.len();
        }
    }

    /// The bytes without their charge: the caller holds the permit that replaces it.
    pub fn hand_over(mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for ChargedBytes {
    fn drop(&mut self) {
        let _shrinking_never_fails = self.budget.change(self.charged, 0);
    }
}
