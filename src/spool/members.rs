//! The members of a batch while it is gathered, and until their segments need them no more.

use std::rc::Rc;

use super::format::runs::{Encoder, Runs};
use super::segment::Segment;
use super::{CoreDir, Record};
use crate::queue::job::Job;
use crate::rt;

/// Runs settled before others get a turn.
const SETTLE_SLICE: usize = 1_000;

/// Payloads of one core directory that are to be one object, in the order of its lines.
pub struct Members {
    pub(super) dir: Rc<CoreDir>,
    pub(super) segments: Vec<MemberSegment>,
    pub(super) runs: Encoder,
    payloads: u64,
    payload_bytes: u64,
}

pub(super) struct MemberSegment {
    pub(super) id: u64,
    pub(super) segment: Rc<Segment>,
    /// Of the members in it.
    bytes: u64,
}

impl Members {
    /// None yet, of the directory [`Record::home`] names.
    pub fn of(dir: &Rc<CoreDir>) -> Members {
        Members {
            dir: dir.clone(),
            segments: Vec::new(),
            runs: Encoder::default(),
            payloads: 0,
            payload_bytes: 0,
        }
    }

    /// Adds the payload of `job`, which `record` has, behind the others. False, and nothing is changed, when its place
    /// would need more room than an intent has: then the batch is to be closed without it.
    ///
    /// # Panics
    /// It lies in another directory.
    #[must_use]
    pub fn push(&mut self, record: &Record, job: &Job) -> bool {
        assert!(Rc::ptr_eq(&self.dir, record.home()), "a batch is of one directory");
        let ordinal = record.ordinal(job.stamp.seq);
        let bytes = job.payload.len() as u64;
        // A segment is not used again while one of its payloads is unsettled, so the id stays.
        let id = record.segment.use_of.borrow().id;
        if !self.runs.push(id, ordinal) {
            return false;
        }
        match self.segments.iter_mut().rev().find(|known| known.id == id) {
            Some(known) => known.bytes += bytes,
            None => {
                self.segments.push(MemberSegment { id, segment: record.segment.clone(), bytes });
            }
        }
        self.payloads += 1;
        self.payload_bytes += bytes;
        true
    }

    /// Payloads.
    pub fn len(&self) -> u64 {
        self.payloads
    }

    pub fn is_empty(&self) -> bool {
        self.payloads == 0
    }

    /// Of all of them.
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// A file with members was removed: they survive no crash.
    pub fn is_gone(&self) -> bool {
        self.segments.iter().any(|known| known.segment.is_gone())
    }

    /// Bytes of memory it takes; once it is intended, twice as many.
    pub fn memory(&self) -> usize {
        self.runs.memory() + self.segments.capacity() * size_of::<MemberSegment>()
    }

    /// Where they are settled, run by run.
    pub(super) async fn settle(&self) {
        // First: a segment is finished with its last payload.
        for MemberSegment { segment, bytes, .. } in &self.segments {
            segment.sub_unstored(*bytes);
        }
        let runs = self.runs.finish();
        let runs = Runs::check(&runs).expect("encoded just now");
        for (number, run) in (1..).zip(runs.iter()) {
            let place = self.segments.iter().find(|known| known.id == run.segment);
            let MemberSegment { segment, .. } = place.expect("noted when it was pushed");
            segment.settle_run(run.first..run.end());
            if number % SETTLE_SLICE == 0 {
                rt::yield_if_needed().await;
            }
        }
    }
}
