//! The members of a batch while it is gathered, and until their segments need them no more.

use std::rc::Rc;

use super::format::runs::{Encoder, Runs};
use super::segment::Segment;
use super::{CoreDir, Record};
use crate::job::Stamp;

/// Runs settled before others get a turn.
const SETTLE_SLICE: usize = 1_000;

/// Payloads of one core directory that are to be one object, in the order of its lines.
pub struct Members {
    pub(super) dir: Rc<CoreDir>,
    pub(super) segments: Vec<MemberSegment>,
    pub(super) runs: Encoder,
    pub(super) payloads: u64,
}

pub(super) struct MemberSegment {
    pub(super) id: u64,
    pub(super) segment: Rc<Segment>,
}

impl Members {
    /// None yet, of the directory [`Record::home`] names.
    pub fn of(dir: &Rc<CoreDir>) -> Members {
        Members { dir: dir.clone(), segments: Vec::new(), runs: Encoder::default(), payloads: 0 }
    }

    /// Adds the payload of `record` that has this stamp, behind the others. False, and nothing is changed, when its place
    /// would need more room than an intent has: then the batch is to be closed without it.
    ///
    /// # Panics
    /// It lies in another directory.
    #[must_use]
    pub fn push(&mut self, record: &Record, stamp: Stamp) -> bool {
        assert!(Rc::ptr_eq(&self.dir, record.home()), "a batch is of one directory");
        let ordinal = record.ordinal(stamp.seq);
        // A segment is not used again while one of its payloads is unsettled, so the id stays.
        let id = record.segment.use_of.borrow().id;
        if !self.runs.push(id, ordinal) {
            return false;
        }
        if !self.segments.iter().rev().any(|known| known.id == id) {
            self.segments.push(MemberSegment { id, segment: record.segment.clone() });
        }
        self.payloads += 1;
        true
    }

    /// Payloads.
    pub fn len(&self) -> u64 {
        self.payloads
    }

    pub fn is_empty(&self) -> bool {
        self.payloads == 0
    }

    /// Bytes of memory it takes; once it is intended, twice as many.
    pub fn memory(&self) -> usize {
        self.runs.memory() + self.segments.capacity() * size_of::<MemberSegment>()
    }

    /// Where they are settled, run by run.
    pub(super) async fn settle(&self) {
        let runs = self.runs.finish();
        let runs = Runs::check(&runs).expect("encoded just now");
        for (number, run) in (1..).zip(runs.iter()) {
            let place = self.segments.iter().find(|known| known.id == run.segment);
            let MemberSegment { segment, .. } = place.expect("noted when it was pushed");
            segment.settle_run(run.first..run.end());
            if number % SETTLE_SLICE == 0 {
                glommio::executor().yield_if_needed().await;
            }
        }
    }
}
