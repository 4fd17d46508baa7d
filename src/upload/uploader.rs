//! Decides what a core's workers upload next: fresh objects and retries, as many at a time as the
//! [limit](super::limit) allows; and holds what the upload tasks of one pipeline share.
//!
//! A failed object waits for its retry and is then uploaded beside fresh ones, so that objects that
//! cannot be stored never occupy all workers. At most half of the PUTs in flight are retries, and
//! retries alternate with fresh objects that wait. An object that waits for its retry occupies no
//! PUT. Once no more fresh objects will come, retries may use all PUTs.
//!
//! Idle workers wait at the queue of fresh objects. A push wakes one, however many payloads it adds;
//! this module wakes one when a retry is due or the limit has grown. A worker that takes one object
//! wakes another one if there is more, and so does a worker that ends its PUT but does not look for
//! work at once. A worker that finds the limit reached needs no wake: a PUT in flight ends, and its
//! worker looks again.
//!
//! If the store completes at once, a worker takes what is adjacent in the queue ([`at_once`]).
//!
//! [`at_once`]: super::at_once

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_lite::FutureExt;

use super::at_once::AT_ONCE_MAX;
use super::dead_letter::DeadLetterWriter;
use super::retry_queue::PendingUpload;
use super::source::Upload;
use super::{StoreHealth, Uploads};
use crate::batch::Batches;
use crate::config::Config;
use crate::metrics::CoreCells;
use crate::queue::admission::Admission;
use crate::queue::job::{Origin, Stamps};
use crate::queue::run::Run;
use crate::rt::{self, sleep};
use crate::spool::Spool;
use crate::stop::Stop;
use crate::store::Store;

/// Longest backoff while draining, so that workers notice a store that recovers before the
/// deadline.
const DRAIN_BACKOFF_MAX: Duration = Duration::from_millis(250);

/// The upload side of one pipeline.
pub struct Uploader {
    pub config: Arc<Config>,
    pub cells: &'static CoreCells,
    pub origin: Rc<Origin>,
    pub stamps: Rc<Stamps>,
    /// The source of single payloads.
    pub admission: Rc<Admission>,
    /// The source of batches; `None`: one object per payload.
    pub batches: Option<Rc<Batches>>,
    pub spool: Option<Rc<Spool>>,
    pub store: Rc<Store>,
    pub health: StoreHealth,
    pub dead_letters: DeadLetterWriter,
    pub uploads: Uploads,
    pub stop: Rc<Stop>,
}

impl Uploader {
    /// Whether nothing waits to be stored.
    pub fn holds_nothing(&self) -> bool {
        self.admission.queue().is_empty()
            && self.cells.workers_busy.value() == 0
            && self.uploads.is_empty()
            && self.batches.as_ref().is_none_or(|batches| batches.is_empty())
    }

    /// Whether everything that waits to be stored has failed before.
    pub fn holds_failed_only(&self) -> bool {
        self.admission.queue().is_empty()
            && self.uploads.holds_failed_only()
            && self.batches.as_ref().is_none_or(|batches| batches.is_empty())
    }

    /// Whether everything that waits to be stored is in the spool as well.
    pub fn holds_spooled_only(&self) -> bool {
        self.admission.queue().all(Run::is_spooled)
            && self.uploads.holds_spooled_only()
            && self.batches.as_ref().is_none_or(|batches| batches.holds_spooled_only())
    }
}

/// One PUT in flight; it ends when this is dropped.
pub struct InFlight<'a> {
    uploader: &'a Uploader,
    is_retry: bool,
}

#[cfg(test)]
impl InFlight<'_> {
    /// A first attempt that [`Uploads::begin`] has counted.
    pub(super) fn of(uploader: &Uploader) -> InFlight<'_> {
        InFlight { uploader, is_retry: false }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.uploader.uploads.end(self.is_retry);
        if self.uploader.admission.queue().reserved() > 0 {
            self.uploader.hold_slots();
        }
    }
}

/// What a worker does next.
pub(super) enum NextUpload<'a> {
    /// One object, counted as in flight.
    Object(PendingUpload, InFlight<'a>),
    /// Payloads for a store that completes at once.
    Run(Run),
}

impl Uploader {
    /// What worker `number` uploads next; `None` once no more will come.
    pub(super) async fn next_upload(&self, number: usize) -> Option<NextUpload<'_>> {
        let mut waited = false;
        let next = poll_fn(|cx| {
            let next = self.poll_next_upload(cx, number);
            waited |= next.is_pending();
            next
        })
        .await;
        if waited {
            // Something else may have woken it. If it stayed registered, the next wake would be
            // lost.
            self.leave_queue(number);
        }
        next
    }

    fn leave_queue(&self, number: usize) {
        match &self.batches {
            Some(batches) => batches.leave(number),
            None => self.admission.queue().leave(number),
        }
    }

    fn poll_next_upload(
        &self,
        cx: &mut Context<'_>,
        number: usize,
    ) -> Poll<Option<NextUpload<'_>>> {
        let uploads = &self.uploads;
        self.admission.queue().look();
        if uploads.limit.borrow().has_room() {
            if !uploads.is_empty()
                && let Some(retry) = self.take_retry()
            {
                return Poll::Ready(Some(retry));
            }
            if let Some(fresh) = self.take_fresh() {
                return Poll::Ready(Some(fresh));
            }
            if self.is_closed() && uploads.is_empty() {
                return Poll::Ready(None);
            }
            uploads.limit.borrow_mut().starved();
        }
        match &self.batches {
            Some(batches) => batches.wait(cx, number),
            None => self.admission.queue().wait(cx, number),
        }
        Poll::Pending
    }

    fn fresh_waits(&self) -> bool {
        match &self.batches {
            Some(batches) => batches.has_closed(),
            None => !self.admission.queue().is_empty(),
        }
    }

    fn take_retry(&self) -> Option<NextUpload<'_>> {
        let fresh_waits = self.fresh_waits();
        if !self.uploads.retry_queue.borrow().has_due()
            || !self.uploads.may_retry(fresh_waits, self.is_closed())
        {
            return None;
        }
        let mut retry_queue = self.uploads.retry_queue.borrow_mut();
        let retry = retry_queue.pop_due()?;
        self.uploads.cells.puts_awaiting_retry.set(retry_queue.len() as u64);
        drop(retry_queue);
        let in_flight = self.begin(true);
        // This worker may have been woken for a fresh object.
        self.pass_on(self.fresh_waits());
        Some(NextUpload::Object(retry, in_flight))
    }

    /// Takes the oldest closed batch or, without batches, the oldest payload in the queue, and if
    /// the store completes at once also those behind it.
    fn take_fresh(&self) -> Option<NextUpload<'_>> {
        if let Some(batches) = &self.batches {
            let batch = PendingUpload::fresh(Upload::Batch(batches.take_closed()?));
            return Some(NextUpload::Object(batch, self.begin(false)));
        }
        let queue = self.admission.queue();
        if self.store.completes_at_once() {
            let run = queue.take_run(AT_ONCE_MAX)?;
            self.uploads.took_fresh();
            self.admission.taken(run.count());
            return Some(NextUpload::Run(run));
        }
        let job = queue.take()?;
        let in_flight = self.begin(false);
        self.admission.taken(1);
        // This worker may have been woken for a retry that is due, and a push wakes nobody before
        // the woken worker has looked.
        self.pass_on(self.fresh_waits() || self.uploads.retry_queue.borrow().has_due());
        Some(NextUpload::Object(PendingUpload::fresh(Upload::Payload(job)), in_flight))
    }

    /// Wakes another worker if there is `more` that it may take, since only one may have been woken
    /// for that and for what this one has taken.
    fn pass_on(&self, more: bool) {
        if more && self.uploads.limit.borrow().has_room() {
            self.wake_worker();
        }
    }

    fn begin(&self, is_retry: bool) -> InFlight<'_> {
        self.uploads.begin(is_retry);
        if !self.uploads.is_empty() {
            self.hold_slots();
        }
        InFlight { uploader: self, is_retry }
    }

    /// Makes payloads that were taken and are not complete hold their queue slots, except for one
    /// per worker. So a core holds no more than if each worker kept its failed payload.
    fn hold_slots(&self) {
        if self.batches.is_some() {
            // Batches hold no slots: BATCH_MEMORY bounds them.
            return;
        }
        let uploads = &self.uploads;
        let taken = uploads.retry_queue.borrow().len() + uploads.limit.borrow().in_flight();
        let queued = taken.saturating_sub(uploads.restored.get());
        self.admission.hold(queued.saturating_sub(uploads.workers));
    }

    fn is_closed(&self) -> bool {
        match &self.batches {
            Some(batches) => batches.is_closed(),
            None => self.admission.queue().is_closed(),
        }
    }

    /// Wakes an idle worker, if there is one.
    pub(super) fn wake_worker(&self) {
        match &self.batches {
            Some(batches) => batches.wake_worker(),
            None => self.admission.queue().wake_one(),
        }
    }

    /// A PUT has stored an object of `bytes`.
    pub(super) fn put_stored(&self, began: Instant, now: Instant, bytes: u64) {
        let uploads = &self.uploads;
        let mut limit = uploads.limit.borrow_mut();
        let before = limit.limit();
        limit.stored(began, now, bytes);
        let after = limit.limit();
        drop(limit);
        if after != before {
            uploads.cells.puts_limit.set(after as u64);
            // One idle worker for each PUT that may now be in flight.
            (before..after).for_each(|_| self.wake_worker());
        }
        if !uploads.pausing.borrow().is_empty() {
            uploads.recoveries.set(uploads.recoveries.get() + 1);
            uploads.pausing.take().into_iter().for_each(|(_, waker)| waker.wake());
        }
    }

    /// A PUT has failed because too many were in flight.
    pub(super) fn put_congested(&self, began: Instant, now: Instant) {
        let mut limit = self.uploads.limit.borrow_mut();
        limit.congested(began, now);
        self.uploads.cells.puts_limit.set(limit.limit() as u64);
    }

    /// Schedules the retry of `pending`, which has failed, after `backoff`.
    pub(super) fn retry_after(&self, pending: PendingUpload, backoff: Duration) {
        let backoff =
            if self.stop.draining.get() { backoff.min(DRAIN_BACKOFF_MAX) } else { backoff };
        self.uploads.push_retry(pending, rt::now() + backoff);
    }

    /// Pauses worker `number` because nothing can be stored: for `backoff`, until a PUT succeeds,
    /// or until the stop begins.
    pub(super) async fn pause_worker(&self, number: usize, backoff: Duration) {
        // Another worker may have failed less often and may go on.
        self.wake_worker();
        let uploads = &self.uploads;
        let recoveries = uploads.recoveries.get();
        let recovery = poll_fn(|cx| {
            if uploads.recoveries.get() != recoveries {
                return Poll::Ready(());
            }
            let mut pausing = uploads.pausing.borrow_mut();
            pausing.retain(|(other, _)| *other != number);
            pausing.push((number, cx.waker().clone()));
            Poll::Pending
        });
        if self.stop.draining.get() {
            sleep(backoff.min(DRAIN_BACKOFF_MAX)).await;
        } else {
            sleep(backoff).or(recovery).or(self.stop.draining.wait()).await;
        }
    }
}

/// The task that wakes a worker for each retry that is due.
pub async fn wake_for_retries(uploader: Rc<Uploader>) {
    let uploads = &uploader.uploads;
    let mut drain_seen = false;
    loop {
        if uploader.stop.draining.get() && !std::mem::replace(&mut drain_seen, true) {
            uploads.retry_queue.borrow_mut().bring_forward(rt::now() + DRAIN_BACKOFF_MAX);
        }
        let now = rt::now();
        let due = uploads.retry_queue.borrow_mut().advance(now);
        (0..due).for_each(|_| uploader.wake_worker());
        let next = uploads.retry_queue.borrow().next_due();
        let changed = uploads.retry_added.wait();
        let time = async {
            match next {
                Some(at) => sleep(at.saturating_duration_since(now)).await,
                None => std::future::pending().await,
            }
        };
        // From the drain on its signal stays set, so waiting for it would spin.
        if drain_seen {
            changed.or(time).await;
        } else {
            changed.or(time).or(uploader.stop.draining.wait()).await;
        }
    }
}
