//! Requests that wait for the disk, charged to `SPOOL_PENDING`, until the writer takes them into a
//! commit group.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::format::{self, HEAD_BYTES};
use super::{GROUP_BYTES_MAX, SpoolError, Ticket};
use crate::budget::{BODY_PADDING, Budget, ChargedBytes};
use crate::key::RequestValues;
use crate::metrics::Cell64;
use crate::metrics::tokens::AcceptedCells;
use crate::queue::admission::Need;
use crate::queue::job::Span;
use crate::queue::job::Stamp;
use crate::sync::Signal;

/// The requests that wait for one core's spool; first in, first out.
pub(super) struct PendingRequests {
    max: usize,
    budget: Rc<Budget>,
    waiting: RefCell<VecDeque<PendingRequest>>,
    arrived: Signal,
}

/// A request that waits.
pub(super) struct PendingRequest {
    pub(super) first: Stamp,
    pub(super) body: ChargedBytes,
    /// Room that its payloads need in the queue, if they are queued right after the sync.
    pub(super) need: Need,
    pub(super) spans: Box<[Span]>,
    pub(super) payload_bytes: usize,
    pub(super) values: RequestValues,
    /// Counts its payloads once they are accepted.
    pub(super) counted: Option<AcceptedCells>,
    pub(super) ticket: Rc<Ticket>,
}

impl PendingRequest {
    pub(super) fn record_bytes(&self) -> usize {
        format::record_bytes(self.spans.len(), self.payload_bytes, &self.values)
    }
}

impl PendingRequests {
    /// Room for requests of up to `max` bytes in total, or for one of that length with its padding;
    /// `gauge` shows the bytes in use.
    pub(super) fn new(max: usize, gauge: &'static Cell64) -> PendingRequests {
        let max = max + BODY_PADDING;
        let budget = Budget::new(max, gauge);
        PendingRequests { max, budget, waiting: RefCell::default(), arrived: Signal::default() }
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
        self.waiting.borrow_mut().push_back(PendingRequest {
            first,
            body,
            need,
            spans: spans.into(),
            payload_bytes,
            values: values.clone(),
            counted,
            ticket: ticket.clone(),
        });
        self.wake();
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

    /// Takes the requests for the next commit group, at least one if any waits.
    pub(super) fn next_group(&self) -> Vec<PendingRequest> {
        let mut waiting = self.waiting.borrow_mut();
        let mut bytes = HEAD_BYTES;
        let too_many = |request: &PendingRequest| {
            bytes += request.record_bytes();
            bytes > GROUP_BYTES_MAX
        };
        let count = waiting.iter().position(too_many).unwrap_or(waiting.len());
        // A request that is larger than a shared group gets its own.
        waiting.drain(..count.max(1)).collect()
    }
}
