//! Whether a request may enter: all its payloads or none, by ring slots and by bytes.
//!
//! Bytes are charged once per request, as the retained allocation plus a fixed cost per payload. While a body is read
//! they belong to the [`Budget`]; at admission they become a [`Permit`] that the jobs carry and that the last of
//! them releases. Slots are positions in the ring and are released when a worker pops, unless more objects than there are
//! workers are set aside ([`Admission::hold`]).
//!
//! A request that finds no room may wait, first come, first served: nobody overtakes the head of the line, so a large
//! request is not starved by small ones. All that fit are woken together, in their order: woken one by one, each by the one
//! before it, a full line would let one request through in each round of the executor, however much room there is.
//! Taking the permit and pushing the jobs has no await in between.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::deadline::strictly_within;
use crate::metrics::CoreCells;
use crate::queue::fifo::Fifo;
use crate::queue::job::{JOB_COST_BYTES, Job};
use crate::rt;

/// What one request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    pub slots: usize,
    pub bytes: usize,
}

const NOTHING: Need = Need { slots: 0, bytes: 0 };

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
    queue: Rc<Fifo<Job>>,
    bytes_max: usize,
    bytes_used: Cell<usize>,
    line: RefCell<Waitlist>,
    reader: RefCell<Option<WaitingReader>>,
    next_ticket: Cell<u64>,
    rate: RefCell<DrainRate>,
    cells: &'static CoreCells,
}

/// The spool's reader, waiting for room beside the line.
struct WaitingReader {
    need: Need,
    /// What was freed since it waits; half of that is set aside for it.
    freed: Need,
    waker: Waker,
}

impl WaitingReader {
    fn set_aside(&self) -> Need {
        Need {
            slots: self.need.slots.min(self.freed.slots / 2),
            bytes: self.need.bytes.min(self.freed.bytes / 2),
        }
    }
}

/// Requests that stand in line for room.
#[derive(Default)]
struct Waitlist {
    waiting: VecDeque<WaitingRequest>,
    /// How many of the first were woken, for what they need in all is free, and have not yet taken it.
    woken: usize,
    woken_need: Need,
}

impl Waitlist {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Wakes those of the first that fit one after the other and were not woken yet.
    fn wake_fitting(&mut self, fits: impl Fn(Need) -> bool) {
        while let Some(next) = self.waiting.get(self.woken) {
            let Need { slots, bytes } = self.woken_need;
            let all = Need { slots: slots + next.need.slots, bytes: bytes + next.need.bytes };
            if !fits(all) {
                return;
            }
            next.waker.wake_by_ref();
            self.woken += 1;
            self.woken_need = all;
        }
    }

    /// One that was woken found no room after all: everybody is to be woken anew.
    fn forget_woken(&mut self) {
        (self.woken, self.woken_need) = (0, NOTHING);
    }

    fn leave(&mut self, ticket: u64) {
        let Some(at) = self.waiting.iter().position(|waiting| waiting.ticket == ticket) else {
            return;
        };
        let gone = self.waiting.remove(at).expect("found there");
        if at < self.woken {
            self.woken -= 1;
            self.woken_need.slots -= gone.need.slots;
            self.woken_need.bytes -= gone.need.bytes;
        }
    }
}

/// One request standing in line for room.
struct WaitingRequest {
    ticket: u64,
    need: Need,
    waker: Waker,
}

impl Admission {
    pub fn new(queue: Rc<Fifo<Job>>, bytes_max: usize, cells: &'static CoreCells) -> Rc<Admission> {
        Rc::new(Admission {
            queue,
            bytes_max,
            bytes_used: Cell::new(0),
            line: RefCell::default(),
            reader: RefCell::default(),
            next_ticket: Cell::new(0),
            rate: RefCell::new(DrainRate::new(rt::now())),
            cells,
        })
    }

    /// The room a request needs, or `None` if it is not there now or others stand in line for it.
    pub fn admit_now(self: &Rc<Self>, need: Need) -> Result<Option<Permit>, Refusal> {
        self.could_fit(need)?;
        if self.queue.is_closed() {
            return Err(Refusal::Closed);
        }
        let free = self.line.borrow().is_empty() && self.fits(need);
        Ok(free.then(|| self.take(need)))
    }

    /// Waits up to `wait` for room in order of arrival. When this returns `Ok`, the slots are free and stay free until
    /// the next await: push at once.
    pub async fn admit(self: &Rc<Self>, need: Need, wait: Duration) -> Result<Permit, Refusal> {
        if let Some(permit) = self.admit_now(need)? {
            return Ok(permit);
        }
        if wait.is_zero() {
            return Err(self.full(need, self.next_ticket.get()));
        }
        let place = WaitlistGuard { admission: self.clone(), ticket: self.next_ticket.get() };
        self.next_ticket.set(place.ticket + 1);
        let ticket = place.ticket;
        strictly_within(wait, place.wait(need), || Err(self.full(need, ticket))).await
    }

    /// Queues jobs that were admitted: their payloads hold the permit. No await may lie between taking it and this call.
    pub fn push(&self, jobs: impl ExactSizeIterator<Item = Job>) {
        for job in jobs {
            let pushed = self.queue.push(job);
            assert!(pushed.is_ok(), "admission checked the slots and nothing ran since");
        }
        let taken = self.queue.len() + self.queue.reserved();
        self.cells.queue_depth.set(taken as u64);
    }

    /// The queue behind this gate.
    pub fn queue(&self) -> &Fifo<Job> {
        &self.queue
    }

    /// Fifo positions.
    pub fn slots_max(&self) -> usize {
        self.queue.capacity()
    }

    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Whether an empty ring has room for `need`.
    ///
    /// # Errors
    /// Which limit it exceeds.
    pub fn could_fit(&self, need: Need) -> Result<(), Refusal> {
        if need.slots > self.queue.capacity() {
            let (given, max) = (need.slots, self.queue.capacity());
            return Err(Refusal::TooManyPayloads { given, max });
        }
        if need.bytes > self.bytes_max {
            return Err(Refusal::TooManyBytes { given: need.bytes, max: self.bytes_max });
        }
        Ok(())
    }

    /// Waits for room for the spool's reader, the only one to call this, which stands in no line: half of what is freed
    /// while it waits is set aside for it, and while half of the ring is free it need not wait for that. `need` is at most
    /// half a ring, or one payload. `None` once the ring has closed.
    pub async fn admit_reader(self: &Rc<Self>, need: Need) -> Option<Permit> {
        let need = Need { bytes: need.bytes.min(self.bytes_max), ..need };
        let _place = ReaderGuard(self);
        poll_fn(|cx| {
            if self.queue.is_closed() {
                return Poll::Ready(None);
            }
            let mut reader = self.reader.borrow_mut();
            let freed = reader.as_ref().map_or(NOTHING, |reader| reader.freed);
            let waiting = WaitingReader { need, freed, waker: cx.waker().clone() };
            if self.fits_reader(&waiting) {
                return Poll::Ready(Some(self.take(need)));
            }
            *reader = Some(waiting);
            Poll::Pending
        })
        .await
    }

    fn fits_reader(&self, reader: &WaitingReader) -> bool {
        let WaitingReader { need, .. } = reader;
        let aside = reader.set_aside();
        let (slots, bytes) = (self.queue.free(), self.bytes_max - self.bytes_used.get());
        let slots_its = aside.slots >= need.slots || 2 * slots >= self.queue.capacity();
        let bytes_its = aside.bytes >= need.bytes || 2 * bytes >= self.bytes_max;
        need.slots <= slots && need.bytes <= bytes && slots_its && bytes_its
    }

    /// Room was made: a slot popped, bytes released, or the ring closed. Wakes those in line who can move.
    pub fn room_changed(&self) {
        if let Some(reader) = &*self.reader.borrow()
            && (self.fits_reader(reader) || self.queue.is_closed())
        {
            reader.waker.wake_by_ref();
        }
        let mut line = self.line.borrow_mut();
        if line.is_empty() {
            return;
        }
        let closed = self.queue.is_closed();
        line.wake_fitting(|need| closed || self.fits(need));
    }

    /// Closes the ring and turns everybody in line away.
    pub fn close(&self) {
        self.queue.close();
        self.room_changed();
        for waiting in &self.line.borrow().waiting {
            waiting.waker.wake_by_ref();
        }
    }

    /// A worker has taken a job out of the ring, which frees its slot unless jobs that are set aside hold more
    /// ([`Admission::hold`], which is said first).
    pub fn popped(&self) {
        let held = self.queue.reserved();
        self.cells.queue_depth.set((self.queue.len() + held) as u64);
        if held > 0 {
            return;
        }
        self.rate.borrow_mut().slots += 1;
        self.freed(Need { slots: 1, bytes: 0 });
    }

    /// So many jobs that were popped hold their slots, because they are set aside for a retry.
    pub fn hold(&self, slots: usize) {
        let freed = self.queue.reserved().saturating_sub(slots);
        self.queue.reserve(slots);
        self.cells.queue_depth.set((self.queue.len() + slots) as u64);
        if freed > 0 {
            self.rate.borrow_mut().slots += freed as u64;
            self.freed(Need { slots: freed, bytes: 0 });
        }
    }

    /// Once a second: what `retry-after` is measured from.
    pub fn sample(&self, now: Instant) {
        let stuck = self.bytes_used.get() > 0;
        self.rate.borrow_mut().sample(now, stuck);
    }

    fn freed(&self, room: Need) {
        if let Some(reader) = &mut *self.reader.borrow_mut() {
            reader.freed.slots += room.slots;
            reader.freed.bytes += room.bytes;
        }
        self.room_changed();
    }

    fn fits(&self, need: Need) -> bool {
        let aside = self.reader.borrow().as_ref().map_or(NOTHING, WaitingReader::set_aside);
        need.slots + aside.slots <= self.queue.free()
            && need.bytes + aside.bytes <= self.bytes_max - self.bytes_used.get()
    }

    fn take(self: &Rc<Self>, need: Need) -> Permit {
        self.bytes_used.set(self.bytes_used.get() + need.bytes);
        assert!(self.bytes_used.get() <= self.bytes_max);
        self.cells.queue_bytes.set(self.bytes_used.get() as u64);
        Permit { admission: self.clone(), bytes: need.bytes }
    }

    /// The refusal of a request that would have to wait behind those in line before `ticket`.
    fn full(&self, need: Need, ticket: u64) -> Refusal {
        let line = self.line.borrow();
        let before = line.waiting.iter().take_while(|waiting| waiting.ticket < ticket);
        let ahead = before.fold(need, |sum, waiting| Need {
            slots: sum.slots + waiting.need.slots,
            bytes: sum.bytes + waiting.need.bytes,
        });
        let missing = Need {
            slots: ahead.slots.saturating_sub(self.queue.free()),
            bytes: ahead.bytes.saturating_sub(self.bytes_max - self.bytes_used.get()),
        };
        Refusal::Full { retry_after_s: self.rate.borrow().seconds_for(missing, rt::now()) }
    }
}

/// The reader's, likewise.
struct ReaderGuard<'a>(&'a Admission);

impl Drop for ReaderGuard<'_> {
    fn drop(&mut self) {
        self.0.reader.take();
        self.0.room_changed();
    }
}

/// A place in the line, given up on every way out.
struct WaitlistGuard {
    admission: Rc<Admission>,
    ticket: u64,
}

impl WaitlistGuard {
    async fn wait(self, need: Need) -> Result<Permit, Refusal> {
        let admission = &self.admission;
        poll_fn(|cx| {
            if admission.queue.is_closed() {
                return Poll::Ready(Err(Refusal::Closed));
            }
            let mut line = admission.line.borrow_mut();
            let waiting = &mut line.waiting;
            match waiting.iter_mut().find(|waiting| waiting.ticket == self.ticket) {
                Some(waiting) => waiting.waker.clone_from(cx.waker()),
                None => {
                    let waker = cx.waker().clone();
                    waiting.push_back(WaitingRequest { ticket: self.ticket, need, waker });
                }
            }
            admission.cells.room_waiters.set(waiting.len() as u64);
            let head = waiting.front().expect("this request stands in line").ticket;
            if head == self.ticket && admission.fits(need) {
                drop(line);
                return Poll::Ready(Ok(admission.take(need)));
            }
            // Room that it was woken for is gone: the spool's reader has it.
            if line.waiting.iter().take(line.woken).any(|waiting| waiting.ticket == self.ticket) {
                line.forget_woken();
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for WaitlistGuard {
    fn drop(&mut self) {
        let mut line = self.admission.line.borrow_mut();
        line.leave(self.ticket);
        self.admission.cells.room_waiters.set(line.waiting.len() as u64);
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

impl Drop for Permit {
    fn drop(&mut self) {
        let admission = &self.admission;
        admission.bytes_used.set(admission.bytes_used.get() - self.bytes);
        admission.cells.queue_bytes.set(admission.bytes_used.get() as u64);
        admission.rate.borrow_mut().bytes += self.bytes as u64;
        admission.freed(Need { slots: 0, bytes: self.bytes });
    }
}

/// How fast room is made, from one sample a second over the last [`DrainRate::WINDOW_S`] seconds.
struct DrainRate {
    slots: u64,
    bytes: u64,
    samples: VecDeque<RateSample>,
}

struct RateSample {
    at: Instant,
    slots: u64,
    bytes: u64,
    /// Work was held when the sample was taken.
    busy: bool,
}

impl DrainRate {
    const WINDOW_S: usize = 5;

    fn new(now: Instant) -> DrainRate {
        let first = RateSample { at: now, slots: 0, bytes: 0, busy: false };
        DrainRate { slots: 0, bytes: 0, samples: VecDeque::from([first]) }
    }

    fn sample(&mut self, now: Instant, busy: bool) {
        if self.samples.len() > Self::WINDOW_S {
            self.samples.pop_front();
        }
        self.samples.push_back(RateSample { at: now, slots: self.slots, bytes: self.bytes, busy });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::job::{Payload, Span, Stamp};
    use futures_lite::future::{block_on, poll_once};

    fn run(test: impl Future<Output = ()>) {
        rt::run_test(test);
    }

    const NO_WAIT: Duration = Duration::ZERO;

    fn gate(slots: usize, bytes: usize) -> (Rc<Admission>, Rc<Fifo<Job>>, &'static CoreCells) {
        let cells = &crate::metrics::cells(1)[0];
        let queue = Rc::new(Fifo::new(slots));
        (Admission::new(queue.clone(), bytes, cells), queue, cells)
    }

    fn need(slots: usize, bytes: usize) -> Need {
        Need { slots, bytes }
    }

    fn push(admission: &Admission, permit: Permit, count: usize) {
        let spans = vec![Span { start: 0, end: 1 }; count];
        let payloads = Payload::split(b"1".to_vec(), permit, &spans, None);
        let stamp = Stamp { unix_nanos: 0, seq: 0 };
        admission.push(payloads.map(|payload| Job::queued(payload, stamp)));
    }

    #[test]
    fn bytes_return_with_the_last_job_and_slots_with_each_pop() {
        let (admission, queue, cells) = gate(3, 100);
        let permit = block_on(admission.admit(need(2, 60), NO_WAIT)).unwrap();
        push(&admission, permit, 2);
        assert_eq!((cells.queue_depth.value(), cells.queue_bytes.value()), (2, 60));
        for refused in [need(2, 10), need(1, 50)] {
            let full = block_on(admission.admit(refused, NO_WAIT)).err();
            assert_eq!(full, Some(Refusal::Full { retry_after_s: 1 }));
        }
        assert_eq!(cells.queue_bytes.value(), 60, "a refusal holds nothing");
        let first = block_on(queue.pop(0)).unwrap();
        admission.popped();
        drop(first);
        assert_eq!((cells.queue_depth.value(), cells.queue_bytes.value()), (1, 60));
        drop(block_on(queue.pop(0)).unwrap());
        admission.popped();
        assert_eq!((cells.queue_depth.value(), cells.queue_bytes.value()), (0, 0));
    }

    #[test]
    fn what_could_never_fit_is_told_so_at_once() {
        let (admission, _, _) = gate(3, 100);
        let refusal = |need| block_on(admission.admit(need, Duration::from_secs(60))).err();
        let slots = Refusal::TooManyPayloads { given: 4, max: 3 };
        assert_eq!(refusal(need(4, 1)), Some(slots));
        assert_eq!(refusal(need(1, 101)), Some(Refusal::TooManyBytes { given: 101, max: 100 }));
        admission.close();
        assert_eq!(refusal(need(1, 1)), Some(Refusal::Closed));
    }

    #[test]
    fn nobody_overtakes_the_head_of_the_line_and_close_turns_all_away() {
        run(async {
            let (admission, queue, cells) = gate(2, 100);
            let wait = Duration::from_secs(60);
            let permit = admission.admit(need(1, 1), wait).await.unwrap();
            push(&admission, permit, 1);
            let mut large = Box::pin(admission.admit(need(2, 1), wait));
            assert!(poll_once(&mut large).await.is_none());
            let mut small = Box::pin(admission.admit(need(1, 1), wait));
            assert!(poll_once(&mut small).await.is_none(), "it fits, but stands behind");
            assert_eq!(cells.room_waiters.value(), 2);
            queue.take();
            admission.popped();
            let permit = large.await.unwrap();
            push(&admission, permit, 2);
            assert!(poll_once(&mut small).await.is_none());
            drop(small);
            assert_eq!(cells.room_waiters.value(), 0, "who goes away leaves the line");
            let mut last = Box::pin(admission.admit(need(1, 1), wait));
            assert!(poll_once(&mut last).await.is_none());
            admission.close();
            assert_eq!(last.await.err(), Some(Refusal::Closed));
            assert_eq!(cells.room_waiters.value(), 0);
        });
    }

    #[test]
    fn the_reader_gets_half_of_what_is_freed_and_others_the_rest() {
        block_on(async {
            let (admission, queue, _) = gate(10, 1_000);
            for _ in 0..10 {
                let permit = admission.admit(need(1, 10), NO_WAIT).await.unwrap();
                push(&admission, permit, 1);
            }
            let mut reader = Box::pin(admission.admit_reader(need(2, 20)));
            assert!(poll_once(&mut reader).await.is_none());
            let free_one = || {
                drop(queue.take().unwrap());
                admission.popped();
            };
            let mut taken = 0;
            for freed in 1..=3 {
                free_one();
                // Somebody always wants what is free.
                while let Ok(Some(permit)) = admission.admit_now(need(1, 10)) {
                    push(&admission, permit, 1);
                    taken += 1;
                }
                assert!(poll_once(&mut reader).await.is_none(), "{freed} freed");
            }
            assert_eq!((taken, queue.free()), (2, 1), "one of three is set aside");
            free_one();
            assert!(admission.admit_now(need(1, 10)).unwrap().is_none(), "the second half is its");
            let permit = poll_once(&mut reader).await.expect("its turn").expect("open");
            push(&admission, permit, 2);
            drop(reader);
            free_one();
            assert!(
                admission.admit_now(need(1, 10)).unwrap().is_some(),
                "nothing set aside any more"
            );
        });
    }

    #[test]
    fn a_reader_with_half_the_ring_free_need_not_wait_and_one_that_asks_for_too_much_gets_it_all() {
        block_on(async {
            let (admission, queue, _) = gate(4, 100);
            let first = admission.admit_reader(need(2, 10)).await.unwrap();
            push(&admission, first, 2);
            // More bytes than there are: as many as there are, once all are free.
            let mut reader = Box::pin(admission.admit_reader(need(1, 1_000)));
            assert!(poll_once(&mut reader).await.is_none());
            while let Some(job) = queue.take() {
                drop(job);
                admission.popped();
            }
            assert!(poll_once(&mut reader).await.expect("all is free").is_some());
            let mut reader = Box::pin(admission.admit_reader(need(3, 100)));
            let _held = admission
                .admit(need(2, 10), NO_WAIT)
                .await
                .map(|permit| push(&admission, permit, 2));
            assert!(poll_once(&mut reader).await.is_none());
            admission.close();
            assert!(poll_once(&mut reader).await.expect("closed").is_none());
        });
    }

    #[test]
    fn all_who_fit_are_woken_at_once_and_in_order() {
        let (admission, queue, cells) = gate(10, 1_000);
        run(async {
            let permit = admission.admit(need(10, 10), NO_WAIT).await.unwrap();
            push(&admission, permit, 10);
            let order = Rc::new(RefCell::new(Vec::<usize>::new()));
            let waits: Vec<_> = [3, 3, 3, 3]
                .into_iter()
                .enumerate()
                .map(|(number, slots)| {
                    let (admission, order) = (admission.clone(), order.clone());
                    rt::spawn(async move {
                        let permit = admission.admit(need(slots, 1), Duration::from_secs(60)).await;
                        let permit = permit.unwrap_or_else(|why| panic!("{why}"));
                        push(&admission, permit, slots);
                        order.borrow_mut().push(number);
                    })
                })
                .collect();
            rt::sleep(Duration::from_millis(5)).await;
            assert_eq!(cells.room_waiters.value(), 4);
            for _ in 0..10 {
                queue.take();
                admission.popped();
            }
            // Three of them have room, and one round of the executor is enough for all three.
            futures_lite::future::yield_now().await;
            assert_eq!((*order.borrow()).as_slice(), [0, 1, 2]);
            assert_eq!(cells.room_waiters.value(), 1);
            for _ in 0..9 {
                queue.take();
                admission.popped();
            }
            for wait in waits {
                wait.await;
            }
            assert_eq!(order.borrow().len(), 4);
            assert_eq!((cells.room_waiters.value(), admission.line.borrow().woken), (0, 0));
        });
    }

    #[test]
    fn slots_held_by_retries_stay_taken_until_they_are_released() {
        run(async {
            let (admission, queue, cells) = gate(2, 100);
            let permit = admission.admit(need(2, 20), NO_WAIT).await.unwrap();
            push(&admission, permit, 2);
            let mut waiting = Box::pin(admission.admit(need(1, 1), Duration::from_secs(60)));
            assert!(poll_once(&mut waiting).await.is_none());
            let retried = queue.take().unwrap();
            admission.hold(1);
            admission.popped();
            assert_eq!((queue.free(), cells.queue_depth.value()), (0, 2), "one queued, one held");
            assert!(poll_once(&mut waiting).await.is_none(), "a pop frees no held slot");
            admission.hold(2);
            assert_eq!((queue.free(), cells.queue_depth.value()), (0, 3), "beyond the capacity");
            let freed = admission.rate.borrow().slots;
            admission.hold(0);
            assert_eq!(admission.rate.borrow().slots - freed, 2, "both count as freed");
            let permit = poll_once(&mut waiting).await.expect("there is a slot").unwrap();
            push(&admission, permit, 1);
            assert_eq!((queue.free(), cells.queue_depth.value()), (0, 2));
            drop(retried);
        });
    }

    #[test]
    fn retry_after_is_one_unknown_sixty_still_and_measured_in_between() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut rate = DrainRate::new(start);
        assert_eq!(rate.seconds_for(need(5, 0), at(3)), 1, "no rate is known");
        for s in 1..=5 {
            rate.sample(at(s), true);
        }
        assert_eq!(rate.seconds_for(need(5, 0), at(5)), 1, "not yet busy for five seconds");
        rate.sample(at(6), true);
        assert_eq!(rate.seconds_for(need(5, 0), at(6)), 60, "standing still");
        assert_eq!(rate.seconds_for(need(0, 0), at(6)), 1);
        rate.slots = 50;
        rate.bytes = 500;
        rate.sample(at(7), true);
        // 50 slots and 500 bytes were freed in the six seconds since the oldest sample.
        assert_eq!(rate.seconds_for(need(100, 0), at(8)), 12);
        assert_eq!(rate.seconds_for(need(100, 2_000), at(8)), 24, "the slower of the two decides");
        assert_eq!(rate.seconds_for(need(100_000, 0), at(8)), 60);
        for s in 8..=13 {
            rate.sample(at(s), false);
        }
        assert_eq!(rate.seconds_for(need(5, 0), at(13)), 1, "idle is not standing still");
    }

    #[test]
    fn who_waited_in_vain_is_told_of_those_ahead_but_not_of_itself() {
        let (admission, _ring, _) = gate(10, 1_000);
        run(async {
            let permit = admission.admit(need(10, 10), NO_WAIT).await.unwrap();
            push(&admission, permit, 10);
            {
                let mut rate = admission.rate.borrow_mut();
                let past = Instant::now() - Duration::from_secs(1);
                rate.samples[0].at = past;
                rate.slots = 1;
            }
            // One slot a second: 8 missing are 8 s, not the 16 s of standing in line twice.
            let refusal = admission.admit(need(8, 8), Duration::from_millis(20)).await.err();
            let Some(Refusal::Full { retry_after_s }) = refusal else { panic!("{refusal:?}") };
            assert!((8..=11).contains(&retry_after_s), "{retry_after_s}");
        });
    }
}
