//! Decides whether a request may enter: all its payloads or none, by queue slots and by bytes.
//!
//! Bytes are charged once per request: the retained allocation plus a fixed cost per payload. While
//! a body is read they belong to the budget of bodies ([`Budget`](crate::budget::Budget)). At
//! admission they become a [`Permit`], which the payloads share and which ends with the last of
//! them. Slots are positions in the queue, one for each payload. Taking a payload releases one,
//! unless more objects than there are workers wait for a retry ([`Admission::hold`]).
//!
//! A request that finds no room waits, first come, first served, if it will find room in time; if
//! not, it is refused at once ([`pace`](super::pace)). Nobody overtakes the head of the waitlist, so
//! small requests do not starve a large one. All requests that fit are woken together, in their
//! order. If each woke the next one, a full waitlist would let one request through per round of the
//! executor, however much room there is. There is no await between taking the permit and pushing
//! the run.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::deadline::strictly_within;
use crate::metrics::CoreCells;
use crate::queue::job::JOB_COST_BYTES;
use crate::queue::job_queue::JobQueue;
use crate::queue::pace::{Pace, QueueRoom, Verdict};
use crate::queue::run::Run;
use crate::rt;

/// The room that one request needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    pub slots: usize,
    pub bytes: usize,
}

const NOTHING: Need = Need { slots: 0, bytes: 0 };

impl Need {
    /// The need of `payloads` payloads of a body whose allocation holds `retained` bytes.
    pub fn of(payloads: usize, retained: usize) -> Need {
        Need { slots: payloads, bytes: retained + payloads * JOB_COST_BYTES }
    }
}

/// Why a request was not admitted; none of its payloads was admitted.
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

/// The admission to one core's queue.
pub struct Admission {
    queue: Rc<JobQueue>,
    bytes_max: usize,
    bytes_used: Cell<usize>,
    waitlist: RefCell<Waitlist>,
    reader: RefCell<Option<WaitingReader>>,
    next_ticket: Cell<u64>,
    pace: RefCell<Pace>,
    /// When a request last found no room.
    was_full: Cell<Option<Instant>>,
    cells: &'static CoreCells,
}

/// How long `queue_full` shows that a request found no room: longer than a usual scrape interval.
const FULL_SHOWN: Duration = Duration::from_secs(20);

/// The spool's reader while it waits for room. It is not on the waitlist.
struct WaitingReader {
    need: Need,
    /// What was freed since it began to wait; half of that is reserved for it.
    freed: Need,
    waker: Waker,
}

impl WaitingReader {
    fn reserved(&self) -> Need {
        Need {
            slots: self.need.slots.min(self.freed.slots / 2),
            bytes: self.need.bytes.min(self.freed.bytes / 2),
        }
    }
}

/// Requests that wait for room, in the order of their arrival.
#[derive(Default)]
struct Waitlist {
    /// By ticket.
    waiting: VecDeque<WaitingRequest>,
    /// What they need together.
    need: Need,
    /// How many of the first were woken, because what they need together is free, and have not
    /// taken it yet.
    woken: usize,
    woken_need: Need,
}

impl Waitlist {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Wakes, in order, those that fit and were not woken yet; stops at the first that does not
    /// fit.
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

    /// A woken request found no room after all, so every request must be woken again.
    fn reset_woken(&mut self) {
        (self.woken, self.woken_need) = (0, NOTHING);
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        self.waiting.binary_search_by_key(&ticket, |waiting| waiting.ticket).ok()
    }

    fn enter(&mut self, request: WaitingRequest) {
        assert!(self.waiting.back().is_none_or(|last| last.ticket < request.ticket));
        self.need.slots += request.need.slots;
        self.need.bytes += request.need.bytes;
        self.waiting.push_back(request);
    }

    fn leave(&mut self, ticket: u64) {
        let Some(at) = self.position(ticket) else { return };
        let gone = self.waiting.remove(at).expect("found there");
        self.need.slots -= gone.need.slots;
        self.need.bytes -= gone.need.bytes;
        if at < self.woken {
            self.woken -= 1;
            self.woken_need.slots -= gone.need.slots;
            self.woken_need.bytes -= gone.need.bytes;
        }
    }
}

/// One request on the waitlist.
struct WaitingRequest {
    ticket: u64,
    need: Need,
    waker: Waker,
}

impl Admission {
    pub fn new(queue: Rc<JobQueue>, bytes_max: usize, cells: &'static CoreCells) -> Rc<Admission> {
        let max = Need { slots: queue.capacity(), bytes: bytes_max };
        cells.queue_depth_max.set(max.slots as u64);
        cells.queue_bytes_max.set(max.bytes as u64);
        Rc::new(Admission {
            queue,
            bytes_max,
            bytes_used: Cell::new(0),
            waitlist: RefCell::default(),
            reader: RefCell::default(),
            next_ticket: Cell::new(0),
            pace: RefCell::new(Pace::new(max, rt::now(), rt::Rng::new())),
            was_full: Cell::new(None),
            cells,
        })
    }

    /// Takes the room a request needs; `None` if there is not enough now or others wait for it.
    pub fn admit_now(self: &Rc<Self>, need: Need) -> Result<Option<Permit>, Refusal> {
        self.could_fit(need)?;
        if self.queue.is_closed() {
            return Err(Refusal::Closed);
        }
        // Not past those that wait: the head of the waitlist might then starve.
        let free = self.waitlist.borrow().is_empty() && self.fits(need);
        Ok(free.then(|| self.take(need)))
    }

    /// Waits up to `wait` for room, in order of arrival; not at all if the drain rate says that this
    /// would be in vain. The slots are free when this returns `Ok`, and stay free until the next
    /// await: push at once.
    pub async fn admit(self: &Rc<Self>, need: Need, wait: Duration) -> Result<Permit, Refusal> {
        if let Some(permit) = self.admit_now(need)? {
            return Ok(permit);
        }
        if let Verdict::Refuse { retry_after_s } = self.judge(need, wait) {
            return Err(Refusal::Full { retry_after_s });
        }
        let guard = WaitlistGuard { admission: self.clone(), ticket: self.next_ticket.get() };
        self.next_ticket.set(guard.ticket + 1);
        let ticket = guard.ticket;
        strictly_within(wait, guard.wait(need), || Err(self.waited_in_vain(need, wait, ticket)))
            .await
    }

    /// Queues admitted payloads, which hold the permit. There must be no await between taking the
    /// permit and this call.
    pub fn push(&self, run: Run) {
        let pushed = self.queue.push(run);
        assert!(pushed.is_ok(), "admission checked the slots and nothing ran since");
        let taken = self.queue.len() + self.queue.reserved();
        self.cells.queue_depth.set(taken as u64);
    }

    /// The queue that this admits to.
    pub fn queue(&self) -> &JobQueue {
        &self.queue
    }

    /// Slots of the queue.
    pub fn slots_max(&self) -> usize {
        self.queue.capacity()
    }

    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Whether an empty queue has room for `need`.
    ///
    /// # Errors
    /// The limit that it exceeds.
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

    /// Waits for room for the spool's reader, the only caller. It is not on the waitlist: half of
    /// what is freed while it waits is reserved for it, and while half of the queue is free it
    /// takes that at once. `need` is at most half the queue, or one payload. `None` once the queue
    /// is closed.
    pub async fn admit_reader(self: &Rc<Self>, need: Need) -> Option<Permit> {
        // A payload that was spooled under a larger MAX_QUEUE_BYTES must still get in.
        let need = Need { bytes: need.bytes.min(self.bytes_max), ..need };
        let _guard = ReaderGuard(self);
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
        let reserved = reader.reserved();
        let (slots, bytes) = (self.queue.free(), self.bytes_max - self.bytes_used.get());
        let may_take_slots = reserved.slots >= need.slots || 2 * slots >= self.queue.capacity();
        let may_take_bytes = reserved.bytes >= need.bytes || 2 * bytes >= self.bytes_max;
        need.slots <= slots && need.bytes <= bytes && may_take_slots && may_take_bytes
    }

    /// There is more room, or the queue was closed. Wakes those who can go on.
    pub fn room_changed(&self) {
        if let Some(reader) = &*self.reader.borrow()
            && (self.fits_reader(reader) || self.queue.is_closed())
        {
            reader.waker.wake_by_ref();
        }
        let mut waitlist = self.waitlist.borrow_mut();
        if waitlist.is_empty() {
            return;
        }
        let closed = self.queue.is_closed();
        waitlist.wake_fitting(|need| closed || self.fits(need));
    }

    /// Closes the queue and refuses everybody on the waitlist.
    pub fn close(&self) {
        self.queue.close();
        self.room_changed();
        for waiting in &self.waitlist.borrow().waiting {
            waiting.waker.wake_by_ref();
        }
    }

    /// `payloads` were taken out of the queue. That frees their slots, unless objects that wait for a
    /// retry hold slots ([`Admission::hold`], which the caller calls first).
    pub fn taken(&self, payloads: usize) {
        let held = self.queue.reserved();
        self.cells.queue_depth.set((self.queue.len() + held) as u64);
        if held > 0 {
            // The slots that are held say when one becomes free: `hold` counts it then.
            return;
        }
        self.pace.borrow_mut().slots.freed(payloads, self.queue.len());
        self.freed(Need { slots: payloads, bytes: 0 });
    }

    /// Sets how many payloads that were taken hold their slots because they wait for a retry.
    pub fn hold(&self, slots: usize) {
        let freed = self.queue.reserved().saturating_sub(slots);
        self.queue.reserve(slots);
        self.cells.queue_depth.set((self.queue.len() + slots) as u64);
        if freed > 0 {
            self.pace.borrow_mut().slots.freed(freed, self.queue.len() + slots);
            self.freed(Need { slots: freed, bytes: 0 });
        }
    }

    /// Takes a sample of the drain rate; to be called once a second.
    pub fn sample(&self, now: Instant) {
        self.pace.borrow_mut().sample(now, self.used());
        if self.was_full.get().is_some_and(|at| now.saturating_duration_since(at) >= FULL_SHOWN) {
            self.was_full.set(None);
            self.cells.queue_full.set(0);
        }
    }

    fn used(&self) -> Need {
        let slots = self.queue.len() + self.queue.reserved();
        Need { slots, bytes: self.bytes_used.get() }
    }

    fn freed(&self, room: Need) {
        if let Some(reader) = &mut *self.reader.borrow_mut() {
            reader.freed.slots += room.slots;
            reader.freed.bytes += room.bytes;
        }
        self.room_changed();
    }

    fn fits(&self, need: Need) -> bool {
        let reserved = self.reader.borrow().as_ref().map_or(NOTHING, WaitingReader::reserved);
        need.slots + reserved.slots <= self.queue.free()
            && need.bytes + reserved.bytes <= self.bytes_max - self.bytes_used.get()
    }

    fn take(self: &Rc<Self>, need: Need) -> Permit {
        self.bytes_used.set(self.bytes_used.get() + need.bytes);
        assert!(self.bytes_used.get() <= self.bytes_max);
        self.cells.queue_bytes.set(self.bytes_used.get() as u64);
        Permit { admission: self.clone(), bytes: need.bytes }
    }

    /// Whether a request that finds no room waits or is refused.
    fn judge(&self, need: Need, wait: Duration) -> Verdict {
        let now = rt::now();
        self.was_full.set(Some(now));
        self.cells.queue_full.set(1);
        let mut pace = self.pace.borrow_mut();
        pace.sample(now, self.used());
        pace.judge(need, self.room(self.waitlist.borrow().need), wait, now)
    }

    /// The refusal of a request that has waited behind those that came before `ticket`.
    fn waited_in_vain(&self, need: Need, wait: Duration, ticket: u64) -> Refusal {
        let waitlist = self.waitlist.borrow();
        let before = waitlist.waiting.iter().take_while(|waiting| waiting.ticket < ticket);
        let ahead = before.fold(NOTHING, |sum, waiting| Need {
            slots: sum.slots + waiting.need.slots,
            bytes: sum.bytes + waiting.need.bytes,
        });
        let now = rt::now();
        let mut pace = self.pace.borrow_mut();
        pace.sample(now, self.used());
        Refusal::Full { retry_after_s: pace.refuse(need, self.room(ahead), wait, now) }
    }

    fn room(&self, waited_for: Need) -> QueueRoom {
        let bytes = self.bytes_max - self.bytes_used.get();
        QueueRoom { free: Need { slots: self.queue.free(), bytes }, waited_for }
    }
}

/// Ends the reader's wait on every way out.
struct ReaderGuard<'a>(&'a Admission);

impl Drop for ReaderGuard<'_> {
    fn drop(&mut self) {
        self.0.reader.take();
        self.0.room_changed();
    }
}

/// A request's entry on the waitlist, removed on every way out.
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
            let mut waitlist = admission.waitlist.borrow_mut();
            match waitlist.position(self.ticket) {
                Some(at) => waitlist.waiting[at].waker.clone_from(cx.waker()),
                None => {
                    let waker = cx.waker().clone();
                    waitlist.enter(WaitingRequest { ticket: self.ticket, need, waker });
                }
            }
            let waiting = &waitlist.waiting;
            admission.cells.room_waiters.set(waiting.len() as u64);
            let head = waiting.front().expect("this request is on the waitlist").ticket;
            if head == self.ticket && admission.fits(need) {
                drop(waitlist);
                return Poll::Ready(Ok(admission.take(need)));
            }
            // It was woken for room that the spool's reader has taken meanwhile.
            if waitlist.position(self.ticket).is_some_and(|at| at < waitlist.woken) {
                waitlist.reset_woken();
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for WaitlistGuard {
    fn drop(&mut self) {
        let mut waitlist = self.admission.waitlist.borrow_mut();
        waitlist.leave(self.ticket);
        self.admission.cells.room_waiters.set(waitlist.waiting.len() as u64);
        drop(waitlist);
        // The next one may fit where this one did not, or beside it.
        self.admission.room_changed();
    }
}

/// The bytes of one admitted request; released when its last payload is complete.
pub struct Permit {
    admission: Rc<Admission>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let admission = &self.admission;
        admission.bytes_used.set(admission.bytes_used.get() - self.bytes);
        admission.cells.queue_bytes.set(admission.bytes_used.get() as u64);
        admission.pace.borrow_mut().bytes.freed(self.bytes, admission.bytes_used.get());
        admission.freed(Need { slots: 0, bytes: self.bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::RequestValues;
    use crate::queue::job::{Span, Stamp};
    use crate::queue::run::InCommon;
    use futures_lite::future::{block_on, poll_once};

    fn run(test: impl Future<Output = ()>) {
        rt::run_test(test);
    }

    const NO_WAIT: Duration = Duration::ZERO;

    fn gate(slots: usize, bytes: usize) -> (Rc<Admission>, Rc<JobQueue>, &'static CoreCells) {
        let cells = &crate::metrics::cells(1)[0];
        let queue = Rc::new(JobQueue::new(slots));
        (Admission::new(queue.clone(), bytes, cells), queue, cells)
    }

    fn need(slots: usize, bytes: usize) -> Need {
        Need { slots, bytes }
    }

    fn push(admission: &Admission, permit: Permit, count: usize) {
        let spans = vec![Span { start: 0, end: 1 }; count];
        let common = InCommon::of(Stamp { unix_nanos: 0, seq: 0 }, RequestValues::default());
        admission.push(Run::new(b"1".to_vec(), permit, spans, common));
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
        let first = queue.take().unwrap();
        admission.taken(1);
        drop(first);
        assert_eq!((cells.queue_depth.value(), cells.queue_bytes.value()), (1, 60));
        drop(queue.take().unwrap());
        admission.taken(1);
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
    fn nobody_overtakes_the_head_of_the_waitlist_and_close_refuses_all() {
        run(async {
            let (admission, queue, cells) = gate(2, 100);
            let wait = Duration::from_secs(60);
            let permit = admission.admit(need(1, 1), wait).await.unwrap();
            push(&admission, permit, 1);
            let mut large = Box::pin(admission.admit(need(2, 1), wait));
            assert!(poll_once(&mut large).await.is_none());
            let mut small = Box::pin(admission.admit(need(1, 1), wait));
            assert!(poll_once(&mut small).await.is_none(), "it fits, but came later");
            assert_eq!(cells.room_waiters.value(), 2);
            queue.take();
            admission.taken(1);
            let permit = large.await.unwrap();
            push(&admission, permit, 2);
            assert!(poll_once(&mut small).await.is_none());
            drop(small);
            assert_eq!(cells.room_waiters.value(), 0, "a dropped request leaves the waitlist");
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
                admission.taken(1);
            };
            let mut taken = 0;
            for freed in 1..=3 {
                free_one();
                // Requests take all that they may.
                while let Ok(Some(permit)) = admission.admit_now(need(1, 10)) {
                    push(&admission, permit, 1);
                    taken += 1;
                }
                assert!(poll_once(&mut reader).await.is_none(), "{freed} freed");
            }
            assert_eq!((taken, queue.free()), (2, 1), "one of three is reserved");
            free_one();
            assert!(
                admission.admit_now(need(1, 10)).unwrap().is_none(),
                "half is reserved for the reader"
            );
            let permit = poll_once(&mut reader).await.expect("its turn").expect("open");
            push(&admission, permit, 2);
            drop(reader);
            free_one();
            assert!(
                admission.admit_now(need(1, 10)).unwrap().is_some(),
                "nothing is reserved any more"
            );
        });
    }

    #[test]
    fn a_reader_does_not_wait_while_half_is_free_and_gets_all_if_it_asks_for_more() {
        block_on(async {
            let (admission, queue, _) = gate(4, 100);
            let first = admission.admit_reader(need(2, 10)).await.unwrap();
            push(&admission, first, 2);
            // It asks for more bytes than there are, and gets all of them once they are free.
            let mut reader = Box::pin(admission.admit_reader(need(1, 1_000)));
            assert!(poll_once(&mut reader).await.is_none());
            while let Some(job) = queue.take() {
                drop(job);
                admission.taken(1);
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
    fn all_that_fit_are_woken_at_once_and_in_order() {
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
                admission.taken(1);
            }
            // There is room for three of them, and one round of the executor lets all three in.
            futures_lite::future::yield_now().await;
            assert_eq!((*order.borrow()).as_slice(), [0, 1, 2]);
            assert_eq!(cells.room_waiters.value(), 1);
            for _ in 0..9 {
                queue.take();
                admission.taken(1);
            }
            for wait in waits {
                wait.await;
            }
            assert_eq!(order.borrow().len(), 4);
            assert_eq!((cells.room_waiters.value(), admission.waitlist.borrow().woken), (0, 0));
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
            admission.taken(1);
            assert_eq!((queue.free(), cells.queue_depth.value()), (0, 2), "one queued, one held");
            assert!(poll_once(&mut waiting).await.is_none(), "a pop frees no held slot");
            admission.hold(2);
            assert_eq!((queue.free(), cells.queue_depth.value()), (0, 3), "beyond the capacity");
            let later = rt::now() + Duration::from_secs(2);
            admission.pace.borrow_mut().sample(later, admission.used());
            admission.hold(1);
            admission.hold(0);
            admission.pace.borrow_mut().sample(later + Duration::from_secs(1), admission.used());
            let rate = admission.pace.borrow().slots.rate();
            assert_eq!(rate, Some(2.0), "both count as freed");
            let permit = poll_once(&mut waiting).await.expect("there is a slot").unwrap();
            push(&admission, permit, 1);
            assert_eq!((queue.free(), cells.queue_depth.value()), (0, 2));
            drop(retried);
        });
    }

    #[test]
    fn a_refusal_after_a_wait_counts_those_ahead_but_not_the_request_itself() {
        let (admission, _queue, cells) = gate(10, 1_000);
        run(async {
            let permit = admission.admit(need(10, 10), NO_WAIT).await.unwrap();
            push(&admission, permit, 10);
            // One slot a second is freed and taken again, for eight seconds.
            let begun = rt::now() - Duration::from_secs(8);
            let mut pace = Pace::new(need(10, 1_000), begun, rt::Rng::with_seed(1));
            for s in 1..=8 {
                pace.slots.freed(1, 9);
                pace.sample(begun + Duration::from_secs(s), admission.used());
            }
            admission.pace.replace(pace);
            assert_eq!(cells.queue_full.value(), 0);
            // 5 missing slots are 5 s, and it may return a moment early.
            let wait = Duration::from_millis(20);
            let refusal = admission.admit(need(5, 5), wait).await.err();
            assert_eq!(refusal, Some(Refusal::Full { retry_after_s: 5 }));
            assert_eq!(cells.queue_full.value(), 1);
            // One that has waited is counted once.
            let refusal = admission.waited_in_vain(need(1, 1), wait, 0);
            assert_eq!(refusal, Refusal::Full { retry_after_s: 6 });
            admission.sample(rt::now() + FULL_SHOWN / 2);
            assert_eq!(cells.queue_full.value(), 1);
            admission.sample(rt::now() + FULL_SHOWN);
            assert_eq!(cells.queue_full.value(), 0);
        });
    }
}
