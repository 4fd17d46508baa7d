//! The state of one pipeline's uploads: the limit of PUTs in flight, what waits for a retry, and
//! what each worker is busy with. [`Uploader`](super::uploader::Uploader) decides with it what is
//! uploaded next.

use std::cell::{Cell, RefCell};
use std::task::Waker;
use std::time::Instant;

use crate::rt;

use super::limit::PutLimit;
use super::retry_queue::{PendingUpload, RetryQueue};
use super::worker::InProgress;
use crate::metrics::CoreCells;
use crate::sync::Signal;
use crate::upload::source::Upload;

/// The uploads of one core that have begun: in flight or waiting for a retry.
pub struct Uploads {
    pub(super) limit: RefCell<PutLimit>,
    pub(super) retry_queue: RefCell<RetryQueue>,
    /// The retry queue has a new object.
    pub(super) retry_added: Signal,
    /// How many objects, one per worker, may be taken and not complete before they hold queue
    /// slots.
    pub(super) workers: usize,
    /// Restored batches that wait for a retry or are in flight. They hold no queue slots.
    pub(super) restored: Cell<usize>,
    /// Retries in flight.
    pub(super) retrying: Cell<usize>,
    pub(super) last_was_retry: Cell<bool>,
    /// Workers that pause because nothing can be stored, by number so that none is listed twice.
    pub(super) pausing: RefCell<Vec<(usize, Waker)>>,
    /// How often a stored object has ended pauses.
    pub(super) recoveries: Cell<u64>,
    /// What each worker is uploading; a stop that cancels the workers finds it here.
    pub(super) in_progress: RefCell<Vec<Option<InProgress>>>,
    pub(super) cells: &'static CoreCells,
}

impl Uploads {
    pub fn new(workers: usize, cells: &'static CoreCells) -> Uploads {
        let limit = PutLimit::new(workers, rt::now());
        cells.puts_limit.set(limit.limit() as u64);
        cells.workers_max.set(workers as u64);
        Uploads {
            limit: RefCell::new(limit),
            retry_queue: RefCell::default(),
            retry_added: Signal::default(),
            workers,
            restored: Cell::new(0),
            retrying: Cell::new(0),
            last_was_retry: Cell::new(false),
            pausing: RefCell::default(),
            recoveries: Cell::new(0),
            in_progress: RefCell::new((0..workers).map(|_| None).collect()),
            cells,
        }
    }

    /// Whether no object waits for a retry.
    pub fn is_empty(&self) -> bool {
        self.cells.puts_awaiting_retry.value() == 0
    }

    /// Whether everything that is being uploaded or waits for a retry is in the spool as well.
    pub fn holds_spooled_only(&self) -> bool {
        self.in_progress.borrow().iter().flatten().all(|held| held.upload.is_spooled())
            && self.retry_queue.borrow().iter().all(|pending| pending.upload.is_spooled())
    }

    /// Whether everything that is being uploaded or waits for a retry has failed before.
    pub fn holds_failed_only(&self) -> bool {
        self.in_progress.borrow().iter().flatten().all(|held| held.failures.is_some())
            && self.retry_queue.borrow().iter().all(|pending| pending.retry.is_some())
    }

    /// Takes what workers were uploading and what waits for a retry. For the last step of a stop,
    /// when the workers are cancelled.
    pub fn take_rest(&self) -> Vec<InProgress> {
        let in_progress = self.in_progress.take().into_iter().flatten();
        let retry_queue =
            self.retry_queue.borrow_mut().take_all().into_iter().map(InProgress::from);
        self.cells.workers_busy.set(0);
        self.cells.puts_awaiting_retry.set(0);
        in_progress.chain(retry_queue).collect()
    }

    /// Worker `number` starts an attempt.
    pub(super) fn start_attempt(&self, number: usize, object: InProgress) {
        self.in_progress.borrow_mut()[number] = Some(object);
        self.cells.workers_busy.inc();
    }

    /// Worker `number` has ended its attempt.
    pub(super) fn end_attempt(&self, number: usize) {
        self.in_progress.borrow_mut()[number] = None;
        self.cells.workers_busy.sub(1);
    }

    /// Adds a restored batch, which came through no queue, as if its retry were due.
    pub fn submit_restored(&self, upload: Upload) {
        self.restored.set(self.restored.get() + 1);
        self.push_retry(PendingUpload::fresh(upload), rt::now());
    }

    /// A restored batch is complete.
    pub(super) fn restored_done(&self) {
        self.restored.set(self.restored.get() - 1);
    }

    pub(super) fn push_retry(&self, pending: PendingUpload, due: Instant) {
        let mut retry_queue = self.retry_queue.borrow_mut();
        retry_queue.push(pending, due);
        self.cells.puts_awaiting_retry.set(retry_queue.len() as u64);
        self.retry_added.raise();
    }

    /// Whether the next PUT may be a retry. `fresh_waits`: there is a fresh object; `closed`: no
    /// more will come.
    pub(super) fn may_retry(&self, fresh_waits: bool, closed: bool) -> bool {
        if fresh_waits && self.last_was_retry.get() {
            return false;
        }
        let mut limit = self.limit.borrow_mut();
        let share = match closed && !fresh_waits {
            true => limit.limit(),
            false => (limit.limit() / 2).max(1),
        };
        let may = self.retrying.get() < share;
        if !may && !fresh_waits {
            // Only the limit holds the retries up, so it counts as reached and may grow.
            limit.used();
        }
        may
    }

    pub(super) fn begin(&self, is_retry: bool) {
        let mut limit = self.limit.borrow_mut();
        limit.begin();
        self.cells.puts_in_flight.set(limit.in_flight() as u64);
        if is_retry {
            self.retrying.set(self.retrying.get() + 1);
        }
        self.last_was_retry.set(is_retry);
    }

    /// Fresh objects were taken that are not in flight, since they are stored at once.
    pub(super) fn took_fresh(&self) {
        self.last_was_retry.set(false);
    }

    pub(super) fn end(&self, is_retry: bool) {
        let mut limit = self.limit.borrow_mut();
        limit.end();
        self.cells.puts_in_flight.set(limit.in_flight() as u64);
        if is_retry {
            self.retrying.set(self.retrying.get() - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uploads(workers: usize) -> Uploads {
        Uploads::new(workers, &crate::metrics::cells(1)[0])
    }

    #[test]
    fn retries_are_at_most_half_of_the_puts_in_flight_and_alternate_with_fresh_objects() {
        let uploads = uploads(4);
        let (fresh_waits, closed) = (true, true);
        uploads.begin(true);
        assert!(!uploads.may_retry(fresh_waits, !closed), "a fresh object is next");
        assert!(uploads.may_retry(!fresh_waits, !closed), "there is none");
        uploads.begin(false);
        assert!(uploads.may_retry(fresh_waits, !closed), "one of four is a retry");
        uploads.begin(true);
        uploads.begin(false);
        for fresh_waits in [true, false] {
            assert!(!uploads.may_retry(fresh_waits, !closed), "two of four are retries");
        }
        assert!(!uploads.may_retry(fresh_waits, closed), "fresh objects still wait");
        assert!(uploads.may_retry(!fresh_waits, closed), "nothing fresh will come");
        uploads.end(true);
        assert!(uploads.may_retry(fresh_waits, !closed));
    }

    #[test]
    fn a_single_worker_retries_too() {
        let uploads = uploads(1);
        assert!(uploads.may_retry(true, false));
        uploads.begin(true);
        assert!(!uploads.may_retry(false, false));
        uploads.end(true);
        assert!(!uploads.may_retry(true, false), "a fresh object is next");
    }
}
