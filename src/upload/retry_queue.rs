//! The objects that have failed and wait for their retry. No worker waits with them.
//!
//! Each stays charged to the budgets it was admitted to, which bound their number:
//! `MAX_QUEUE_BYTES` and `MAX_QUEUE` for payloads, which hold their slots (`Admission::hold`), and
//! `BATCH_MEMORY` for batches. Restored batches, which are few, are charged to none. What an object
//! has besides because it has failed is charged to none either: [`RETRY_BYTES`], its key, and the
//! texts of its last error.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use super::failures::Failures;
use crate::spool::Intent;
use crate::store::Sums;
use crate::upload::source::Upload;

/// One object on its way to the store, with its failures so far.
pub struct PendingUpload {
    pub upload: Upload,
    /// `None`: no attempt has failed yet.
    pub retry: Option<Box<RetryState>>,
}

/// What is known about an object that has failed.
pub struct RetryState {
    pub failures: Failures,
    /// The core's healthy time, and how many objects it had stored, when this one first failed.
    pub healthy_before: Duration,
    pub stored_before: u64,
    /// Its key, as it was written for the first attempt.
    pub key: Box<str>,
    /// Its sums, if an attempt has computed them.
    pub sums: Option<Sums>,
    /// For a batch whose members are in the spool: the record there that it is in doubt.
    pub intent: Option<Intent>,
}

impl PendingUpload {
    pub fn fresh(upload: Upload) -> PendingUpload {
        PendingUpload { upload, retry: None }
    }
}

/// The objects of one core that wait for a retry.
#[derive(Default)]
pub(super) struct RetryQueue {
    /// Not due yet; the earliest on top.
    waiting: BinaryHeap<Reverse<QueuedRetry>>,
    /// Due, in the order in which they became due, with their numbers.
    due: VecDeque<(u64, PendingUpload)>,
    /// When the oldest payload of each was admitted, with its number.
    admitted: BTreeSet<(u64, u64)>,
    next_number: u64,
}

/// Most memory that an object takes while it waits for its retry, besides its content, its key and
/// the texts of its last error.
const RETRY_BYTES: usize = 320;

const _: () = assert!(
    // The nodes of the set are at least half full.
    size_of::<RetryState>() + size_of::<QueuedRetry>() + 2 * size_of::<(u64, u64)>() <= RETRY_BYTES,
    "docs/configuration.md says how much it is"
);

struct QueuedRetry {
    due: Instant,
    /// Orders what is due at the same time.
    number: u64,
    pending: PendingUpload,
}

impl RetryQueue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.due.len()
    }

    /// Whether any is due.
    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    pub(super) fn push(&mut self, pending: PendingUpload, due: Instant) {
        let number = self.next_number;
        self.next_number += 1;
        self.admitted.insert((pending.upload.admitted(), number));
        self.waiting.push(Reverse(QueuedRetry { due, number, pending }));
    }

    /// Takes the one that has been due the longest.
    pub(super) fn pop_due(&mut self) -> Option<PendingUpload> {
        let (number, pending) = self.due.pop_front()?;
        self.admitted.remove(&(pending.upload.admitted(), number));
        Some(pending)
    }

    /// When the oldest payload of all was admitted, in nanoseconds since 1970.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.admitted.first().map(|(admitted, _)| *admitted)
    }

    /// When the next one becomes due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse(first)| first.due)
    }

    /// Makes available what is due at `now`; returns how many objects.
    pub(super) fn advance(&mut self, now: Instant) -> usize {
        let before = self.due.len();
        while self.next_due().is_some_and(|due| due <= now) {
            let Reverse(first) = self.waiting.pop().expect("peeked above");
            self.due.push_back((first.number, first.pending));
        }
        self.due.len() - before
    }

    /// Makes everything due at `latest` if it would be due later.
    pub(super) fn bring_forward(&mut self, latest: Instant) {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let capped =
            |Reverse(w): Reverse<QueuedRetry>| Reverse(QueuedRetry { due: w.due.min(latest), ..w });
        self.waiting = waiting.map(capped).collect();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &PendingUpload> {
        let due = self.due.iter().map(|(_, pending)| pending);
        due.chain(self.waiting.iter().map(|Reverse(waiting)| &waiting.pending))
    }

    pub(super) fn take_all(&mut self) -> Vec<PendingUpload> {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let waiting = waiting.map(|Reverse(waiting)| waiting.pending);
        let due = std::mem::take(&mut self.due).into_iter().map(|(_, pending)| pending);
        self.admitted.clear();
        due.chain(waiting).collect()
    }
}

impl QueuedRetry {
    fn order(&self) -> (Instant, u64) {
        (self.due, self.number)
    }
}

impl PartialEq for QueuedRetry {
    fn eq(&self, other: &QueuedRetry) -> bool {
        self.order() == other.order()
    }
}

impl Eq for QueuedRetry {}

impl PartialOrd for QueuedRetry {
    fn partial_cmp(&self, other: &QueuedRetry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for QueuedRetry {
    fn cmp(&self, other: &QueuedRetry) -> Ordering {
        self.order().cmp(&other.order())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::job::{Job, Payload, Stamp};

    fn pending(seq: u64) -> PendingUpload {
        let payload = Payload::from(b"1".to_vec());
        PendingUpload::fresh(Upload::Payload(Job::queued(payload, Stamp { unix_nanos: 0, seq })))
    }

    fn pop(retry_queue: &mut RetryQueue) -> Option<u64> {
        retry_queue.pop_due().map(|pending| match pending.upload {
            Upload::Payload(job) => job.stamp.seq,
            Upload::Batch(_) => unreachable!("none was pushed"),
        })
    }

    #[test]
    fn the_oldest_is_known_whatever_is_due_first() {
        let (mut retry_queue, start) = (RetryQueue::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for (admitted, due) in [(70, 10), (50, 30), (50, 20), (60, 40)] {
            let stamp = Stamp { unix_nanos: admitted, seq: due };
            let job = Job::queued(Payload::from(b"1".to_vec()), stamp);
            retry_queue.push(PendingUpload::fresh(Upload::Payload(job)), at(due));
        }
        for (due, left) in [(10, Some(50)), (20, Some(50)), (30, Some(60)), (40, None)] {
            assert_eq!((retry_queue.advance(at(due)), pop(&mut retry_queue)), (1, Some(due)));
            assert_eq!(retry_queue.oldest(), left);
        }
        retry_queue.push(pending(1), at(50));
        assert_eq!(retry_queue.oldest(), Some(0));
        retry_queue.take_all();
        assert_eq!(retry_queue.oldest(), None);
    }

    #[test]
    fn objects_come_out_when_they_are_due_the_earliest_first() {
        let (mut retry_queue, start) = (RetryQueue::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for (seq, due) in [(0, 30), (1, 10), (2, 20), (3, 10)] {
            retry_queue.push(pending(seq), at(due));
        }
        assert_eq!((retry_queue.advance(at(9)), retry_queue.next_due()), (0, Some(at(10))));
        assert_eq!(pop(&mut retry_queue), None);
        assert_eq!((retry_queue.advance(at(20)), retry_queue.len()), (3, 4));
        assert_eq!([(); 4].map(|()| pop(&mut retry_queue)), [Some(1), Some(3), Some(2), None]);
        retry_queue.push(pending(4), at(10_000));
        retry_queue.bring_forward(at(100));
        assert_eq!(retry_queue.advance(at(100)), 2);
        assert_eq!(
            (pop(&mut retry_queue), retry_queue.iter().count(), retry_queue.take_all().len()),
            (Some(0), 1, 1)
        );
        assert_eq!(retry_queue.len(), 0);
    }
}
