//! The members of a batch: recorded while it is gathered, and kept until they are durably complete.

use std::rc::Rc;

use super::CoreDir;
use crate::queue::job::{Job, Stamp};
use crate::rt;
use crate::spool::SpooledRequest;
use crate::spool::format::runs::{RunEncoder, Runs};
use crate::spool::segment::Segment;

/// Runs that are completed before other tasks get a turn.
const COMPLETE_SLICE: usize = 1_000;

/// Payloads of one core directory that become one object, in the order of its lines.
pub struct Members {
    pub(super) dir: Rc<CoreDir>,
    pub(super) segments: Vec<MemberSegment>,
    pub(super) runs: RunEncoder,
    payloads: u64,
    payload_bytes: u64,
}

pub(super) struct MemberSegment {
    pub(super) id: u64,
    pub(super) segment: Rc<Segment>,
    /// Bytes of its members.
    bytes: u64,
}

impl Members {
    /// No members yet; all must be in `dir`, which is their [`SpooledRequest::core_dir`].
    pub fn of(dir: &Rc<CoreDir>) -> Members {
        Members {
            dir: dir.clone(),
            segments: Vec::new(),
            runs: RunEncoder::default(),
            payloads: 0,
            payload_bytes: 0,
        }
    }

    /// Appends the payload of `job`, whose record is `record`. Returns false and changes nothing if
    /// an intent has no room for it; then the batch must be closed without it.
    ///
    /// # Panics
    /// It is in another directory.
    #[must_use]
    pub fn push(&mut self, record: &SpooledRequest, job: &Job) -> bool {
        self.push_run(record, job.stamp, 1, job.payload.len() as u64)
    }

    /// Appends `count` payloads with consecutive stamps, the first of which is `first`, and which
    /// have `bytes` together: all of them or none, as [`Members::push`] does one.
    ///
    /// # Panics
    /// As for [`Members::push`].
    #[must_use]
    pub fn push_run(
        &mut self,
        record: &SpooledRequest,
        first: Stamp,
        count: u32,
        bytes: u64,
    ) -> bool {
        assert!(Rc::ptr_eq(&self.dir, record.core_dir()), "a batch is of one directory");
        let ordinal = record.ordinal(first.seq);
        // A segment begins no new generation while one of its payloads is incomplete, so the id
        // stays valid.
        let id = record.segment.id();
        if !self.runs.push_run(id, ordinal, count) {
            return false;
        }
        // From the end: members mostly arrive segment by segment.
        match self.segments.iter_mut().rev().find(|known| known.id == id) {
            Some(known) => known.bytes += bytes,
            None => {
                self.segments.push(MemberSegment { id, segment: record.segment.clone(), bytes });
            }
        }
        self.payloads += u64::from(count);
        self.payload_bytes += bytes;
        true
    }

    /// The number of payloads.
    pub fn len(&self) -> u64 {
        self.payloads
    }

    pub fn is_empty(&self) -> bool {
        self.payloads == 0
    }

    /// Bytes of all payloads.
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Whether a file with members was removed, so that they would not survive a crash.
    pub fn is_removed(&self) -> bool {
        self.segments.iter().any(|known| known.segment.is_removed())
    }

    /// Memory it takes, in bytes; twice as much once its intent is written.
    pub fn memory(&self) -> usize {
        self.runs.memory() + self.segments.capacity() * size_of::<MemberSegment>()
    }

    /// Completes all members in their segments, run by run.
    pub(in crate::spool) async fn complete(&self) {
        // First, because a segment may be finished as soon as its last payload is complete.
        for MemberSegment { segment, bytes, .. } in &self.segments {
            segment.sub_unstored(*bytes);
        }
        let runs = self.runs.finish();
        let runs = Runs::check(&runs).expect("encoded just now");
        for (number, run) in (1..).zip(runs.iter()) {
            let place = self.segments.iter().find(|known| known.id == run.segment);
            let MemberSegment { segment, .. } = place.expect("noted when it was pushed");
            segment.complete_run(run.first..run.end());
            if number % COMPLETE_SLICE == 0 {
                rt::yield_if_needed().await;
            }
        }
    }
}
