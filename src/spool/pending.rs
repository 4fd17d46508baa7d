//! Requests that wait for the disk, charged to `SPOOL_PENDING`: those that have not been written,
//! and those in the commit group that is being written.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::format::{self, HEAD_BYTES};
use super::health::LOOK_EVERY;
use super::{GROUP_BYTES_MAX, SpoolError};
use crate::budget::{BODY_PADDING, Budget, ChargedBytes};
use crate::key::RequestValues;
use crate::metrics::Cell64;
use crate::metrics::tokens::AcceptedCells;
use crate::queue::admission::Need;
use crate::queue::job::Span;
use crate::queue::job::Stamp;
use crate::sync::{OneShot, Signal};

/// Fewer requests share a group in any case: a sync costs the core as much as several.
const HALVED_LEAST: usize = 16;

/// The requests that wait for one core's spool; first in, first out.
pub(super) struct PendingRequests {
    max: usize,
    budget: Rc<Budget>,
    waiting: RefCell<VecDeque<PendingRequest>>,
    /// The commit group that is being written.
    writing: RefCell<Vec<PendingRequest>>,
    /// Requests in the commit group before.
    delivered: Cell<usize>,
    arrived: Signal,
}

/// Result for a request that waits for the disk: its commit group is synced, or it failed.
#[derive(Default)]
pub struct Ticket {
    result: OneShot<Result<(), SpoolError>>,
    /// How often the spool has looked at it while it waited, up to [`Ticket::SLOW`].
    looks: Cell<u8>,
}

impl Ticket {
    /// Looks after which a request waits unusually long.
    const SLOW: u8 = 2;
    /// A request that is not slow has waited less than this.
    pub const SLOW_AFTER_MAX: Duration = LOOK_EVERY.saturating_mul(Ticket::SLOW as u32);

    /// Waits for the result and takes it. `None` if `ended` says that none will follow; the code
    /// that sets `ended` must wake the waiting task.
    pub async fn wait(&self, ended: &Cell<bool>) -> Option<Result<(), SpoolError>> {
        self.result.wait(|| ended.get()).await
    }

    /// The same, and `None` also once it has waited for some [`LOOK_EVERY`]. So a request needs no
    /// timer unless it waits that long.
    pub async fn wait_unless_slow(&self, ended: &Cell<bool>) -> Option<Result<(), SpoolError>> {
        self.result.wait(|| ended.get() || self.looks.get() == Ticket::SLOW).await
    }

    pub(super) fn set(&self, result: Result<(), SpoolError>) {
        self.result.set(result);
    }

    fn look(&self) {
        match self.looks.get() + 1 {
            Ticket::SLOW => self.set_slow(),
            looks => self.looks.set(looks.min(Ticket::SLOW)),
        }
    }

    /// Makes the request watch the time itself.
    fn set_slow(&self) {
        self.looks.set(Ticket::SLOW);
        self.result.wake();
    }
}

/// A request that waits.
pub(super) struct PendingRequest {
    pub(super) first: Stamp,
    pub(super) body: ChargedBytes,
    /// Room that its payloads need in the queue, if they are queued right after the sync.
    pub(super) need: Need,
    pub(super) spans: Box<[Span]>,
    pub(super) payload_bytes: usize,
    /// Size of its record.
    pub(super) record_bytes: usize,
    pub(super) values: RequestValues,
    /// Counts its payloads once they are accepted.
    pub(super) counted: Option<AcceptedCells>,
    pub(super) ticket: Rc<Ticket>,
}

impl PendingRequests {
    /// Room for requests of up to `max` bytes in total, or for one of that length with its padding;
    /// `gauge` shows the bytes in use.
    pub(super) fn new(max: usize, gauge: &'static Cell64) -> PendingRequests {
        let max = max + BODY_PADDING;
        let budget = Budget::new(max, gauge);
        let (waiting, writing, arrived) = Default::default();
        PendingRequests { max, budget, waiting, writing, delivered: Cell::new(0), arrived }
    }

    /// Charges a request to the budget and appends it.
    ///
    /// # Errors
    /// `SPOOL_PENDING` is used up; the request was not added.
    pub(super) fn push(
        &self,
        first: Stamp,
        mut body: ChargedBytes,
        spans: &[Span],
        values: &RequestValues,
        counted: Option<AcceptedCells>,
    ) -> Result<Rc<Ticket>, SpoolError> {
        let need = Need::of(spans.len(), body.retained() + values.bytes());
        // The largest request must fit when no other waits, so the charge for spans and values is
        // capped.
        let room = self.max - body.retained();
        body.move_to(&self.budget, (size_of_val(spans) + values.bytes()).min(room))?;
        let ticket = Rc::<Ticket>::default();
        let payload_bytes = spans.iter().map(|span| span.range().len()).sum();
        let mut waiting = self.waiting.borrow_mut();
        // The writer waits only while no request does, and a wake costs a poll of its task.
        if waiting.is_empty() {
            self.wake();
        }
        waiting.push_back(PendingRequest {
            first,
            body,
            need,
            spans: spans.into(),
            payload_bytes,
            record_bytes: format::record_bytes(spans.len(), payload_bytes, values),
            values: values.clone(),
            counted,
            ticket: ticket.clone(),
        });
        Ok(ticket)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Returns once a request has arrived, or [`wake`](PendingRequests::wake) was called.
    pub(super) async fn wait(&self) {
        self.arrived.wait().await;
    }

    /// Wakes the writer, which then checks whether the spool is closed.
    pub(super) fn wake(&self) {
        self.arrived.raise();
    }

    /// Takes the requests for the next commit group: all that wait and fit in a shared one, at least
    /// one if any waits. The group before has been delivered.
    pub(super) fn begin_group(&self) {
        self.begin_group_of(usize::MAX);
    }

    /// The same with at most half of the requests that wait or were answered by the group before.
    ///
    /// Clients that wait for their answers before they go on would all end up in the same group, and
    /// the core would have nothing to do during its sync: measured, groups of 61 and 3 in turn, and a
    /// tenth of the core idle. Halved, one half is served during the sync of the other.
    pub(super) fn begin_half_group(&self) {
        let circulating = self.waiting.borrow().len() + self.delivered.get();
        self.begin_group_of(circulating.div_ceil(2).max(HALVED_LEAST));
    }

    /// Takes at most `most` requests for the next commit group.
    fn begin_group_of(&self, most: usize) {
        let mut waiting = self.waiting.borrow_mut();
        let mut writing = self.writing.borrow_mut();
        let mut bytes = HEAD_BYTES;
        let too_many = |request: &PendingRequest| {
            bytes += request.record_bytes;
            bytes > GROUP_BYTES_MAX
        };
        let count = waiting.iter().take(most).position(too_many).unwrap_or(most);
        // A request that is larger than a shared group gets its own.
        let count = count.max(1).min(waiting.len());
        writing.extend(waiting.drain(..count));
        self.delivered.set(count);
    }

    /// The commit group that is being written. Must not be held across an await.
    pub(super) fn group(&self) -> RefMut<'_, Vec<PendingRequest>> {
        self.writing.borrow_mut()
    }

    /// Makes requests that have waited unusually long watch the time themselves; must be called
    /// every [`LOOK_EVERY`].
    pub(super) fn look(&self) {
        let (writing, waiting) = (self.writing.borrow(), self.waiting.borrow());
        writing.iter().chain(waiting.iter()).for_each(|request| request.ticket.look());
    }

    /// Makes all requests that wait watch the time themselves: nobody calls
    /// [`look`](PendingRequests::look) any longer.
    pub(super) fn last_look(&self) {
        let (writing, waiting) = (self.writing.borrow(), self.waiting.borrow());
        writing.iter().chain(waiting.iter()).for_each(|request| request.ticket.set_slow());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::CoreCells;
    use futures_lite::future::{block_on, poll_once};

    fn push(pending: &PendingRequests, cells: &'static CoreCells) -> Rc<Ticket> {
        let (first, spans) = (Stamp { unix_nanos: 1, seq: 0 }, [Span { start: 0, end: 1 }]);
        let bodies = Budget::new(1 << 16, &cells.body_bytes);
        let mut body = ChargedBytes::new(&bodies, 1).unwrap();
        body.extend(b"1").unwrap();
        pending.push(first, body, &spans, &RequestValues::default(), None).unwrap()
    }

    #[test]
    fn a_request_is_asked_to_watch_the_time_once_it_has_waited_for_long() {
        let cells = &crate::metrics::cells(1)[0];
        let pending = PendingRequests::new(1 << 20, &cells.spool_pending_bytes);
        let never = Cell::new(false);
        let is_slow = |ticket: &Ticket| {
            block_on(poll_once(ticket.wait_unless_slow(&never))).is_some_and(|end| end.is_none())
        };
        let first = push(&pending, cells);
        pending.begin_group();
        pending.look();
        let second = push(&pending, cells);
        assert!(!is_slow(&first) && !is_slow(&second));
        // In the group that is being written, and before it.
        pending.look();
        assert!(is_slow(&first) && !is_slow(&second));
        pending.last_look();
        assert!(is_slow(&second));
        first.set(Ok(()));
        assert_eq!(block_on(first.wait(&never)), Some(Ok(())), "the result counts all the same");
        pending.group().clear();
        pending.begin_group();
        pending.group().clear();
        assert_eq!(cells.spool_pending_bytes.value(), 0);
    }

    #[test]
    fn a_group_leaves_half_to_the_next() {
        let cells = &crate::metrics::cells(1)[0];
        let pending = PendingRequests::new(1 << 20, &cells.spool_pending_bytes);
        let arrive = |count: usize| (0..count).for_each(|_| drop(push(&pending, cells)));
        let group = || {
            pending.begin_half_group();
            pending.group().drain(..).count()
        };
        arrive(HALVED_LEAST);
        assert_eq!(group(), HALVED_LEAST);
        // Sixty clients, each of which sends its next request once it is answered.
        arrive(60 - HALVED_LEAST);
        assert_eq!(group(), 30);
        arrive(HALVED_LEAST);
        for _ in 0..5 {
            assert_eq!(group(), 30);
            arrive(30);
        }
        arrive(30);
        assert_eq!(group() + group(), 60);
        arrive(100);
        pending.begin_group();
        assert_eq!(pending.group().drain(..).count(), 100, "unless it is asked for all");
        assert!(pending.is_empty());
    }
}
