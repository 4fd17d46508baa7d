//! Objects that have failed, out of the workers' way until they are due again.
//!
//! Each stays charged to the budgets it was admitted on (restored batches, which are few, to none), so their number is bounded by those: `MAX_QUEUE_BYTES` and
//! `MAX_QUEUE` for payloads, which hold their slots (`Admission::hold`), `BATCH_MEMORY` for batches.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use super::failures::Failures;
use crate::spool::Intent;
use crate::upload::source::Parcel;

/// One object on its way to the store.
pub struct Upload {
    pub parcel: Parcel,
    /// `None`: it has not failed yet.
    pub trouble: Option<Box<Trouble>>,
}

/// What is known of an object that has failed.
pub struct Trouble {
    pub failures: Failures,
    /// The core's healthy time and the objects it had stored when this one first failed.
    pub healthy_before: Duration,
    pub stored_before: u64,
    /// Of a batch whose members are in the spool: the note that it is being put.
    pub intent: Option<Intent>,
}

impl Upload {
    pub fn fresh(parcel: Parcel) -> Upload {
        Upload { parcel, trouble: None }
    }
}

/// What is set aside on one core.
#[derive(Default)]
pub(super) struct Aside {
    /// The one that is due first on top.
    waiting: BinaryHeap<Reverse<Waiting>>,
    due: VecDeque<Upload>,
    next_number: u64,
}

struct Waiting {
    due: Instant,
    /// Tells apart what is due at the same time.
    number: u64,
    upload: Upload,
}

impl Aside {
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.due.len()
    }

    /// Whether any is due.
    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    pub(super) fn push(&mut self, upload: Upload, due: Instant) {
        let number = self.next_number;
        self.next_number += 1;
        self.waiting.push(Reverse(Waiting { due, number, upload }));
    }

    /// The one that has been due for longest.
    pub(super) fn pop_due(&mut self) -> Option<Upload> {
        self.due.pop_front()
    }

    /// When the next one will be due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse(first)| first.due)
    }

    /// Makes available what is due at `now`; returns how many.
    pub(super) fn turn(&mut self, now: Instant) -> usize {
        let before = self.due.len();
        while self.next_due().is_some_and(|due| due <= now) {
            let Reverse(first) = self.waiting.pop().expect("it was looked at");
            self.due.push_back(first.upload);
        }
        self.due.len() - before
    }

    /// Brings forward what is due later than `latest`.
    pub(super) fn hurry(&mut self, latest: Instant) {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let sooner =
            |Reverse(w): Reverse<Waiting>| Reverse(Waiting { due: w.due.min(latest), ..w });
        self.waiting = waiting.map(sooner).collect();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Upload> {
        self.due.iter().chain(self.waiting.iter().map(|Reverse(waiting)| &waiting.upload))
    }

    pub(super) fn take_all(&mut self) -> Vec<Upload> {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let waiting = waiting.map(|Reverse(waiting)| waiting.upload);
        std::mem::take(&mut self.due).into_iter().chain(waiting).collect()
    }
}

impl Waiting {
    fn order(&self) -> (Instant, u64) {
        (self.due, self.number)
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Waiting) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Waiting) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Waiting) -> Ordering {
        self.order().cmp(&other.order())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::job::{Job, Payload, Stamp};

    fn upload(seq: u64) -> Upload {
        let payload = Payload::from(b"1".to_vec());
        Upload::fresh(Parcel::Payload(Job::queued(payload, Stamp { unix_nanos: 0, seq })))
    }

    fn pop(aside: &mut Aside) -> Option<u64> {
        aside.pop_due().map(|upload| match upload.parcel {
            Parcel::Payload(job) => job.stamp.seq,
            Parcel::Batch(_) => unreachable!("none was pushed"),
        })
    }

    #[test]
    fn objects_come_back_when_they_are_due_the_earliest_first() {
        let (mut aside, start) = (Aside::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for (seq, due) in [(0, 30), (1, 10), (2, 20), (3, 10)] {
            aside.push(upload(seq), at(due));
        }
        assert_eq!((aside.turn(at(9)), aside.next_due()), (0, Some(at(10))));
        assert_eq!(pop(&mut aside), None);
        assert_eq!((aside.turn(at(20)), aside.len()), (3, 4));
        assert_eq!([(); 4].map(|()| pop(&mut aside)), [Some(1), Some(3), Some(2), None]);
        aside.push(upload(4), at(10_000));
        aside.hurry(at(100));
        assert_eq!(aside.turn(at(100)), 2);
        assert_eq!(
            (pop(&mut aside), aside.iter().count(), aside.take_all().len()),
            (Some(0), 1, 1)
        );
        assert_eq!(aside.len(), 0);
    }
}
