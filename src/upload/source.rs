//! One upload: a single payload or a batch.

use std::rc::Rc;

use crate::batch::Batch;
use crate::key::EventTime;
use crate::metrics::CoreCells;
use crate::queue::job::{Job, Origin};
use crate::queue::outcome::Outcome;
use crate::store::Object;

/// What becomes one object.
#[derive(Clone)]
pub enum Upload {
    Payload(Job),
    Batch(Rc<Batch>),
}

impl Upload {
    pub fn payloads(&self) -> u64 {
        match self {
            Upload::Payload(_) => 1,
            Upload::Batch(batch) => batch.payloads(),
        }
    }

    /// Bytes of the payloads as received.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Upload::Payload(job) => job.payload.len() as u64,
            Upload::Batch(batch) => batch.payload_bytes(),
        }
    }

    /// When the oldest of its payloads was admitted, in nanoseconds since 1970.
    pub fn admitted(&self) -> u64 {
        match self {
            Upload::Payload(job) => job.stamp.unix_nanos,
            Upload::Batch(batch) => batch.admitted(),
        }
    }

    /// Whether its payloads survive this process.
    pub fn is_spooled(&self) -> bool {
        match self {
            Upload::Payload(job) => job.is_spooled(),
            Upload::Batch(batch) => batch.is_spooled(),
        }
    }

    /// Replaces the content of `key` with the object's key; `own` is the core's origin.
    pub fn write_key(&self, own: &Origin, key: &mut String) -> EventTime {
        match self {
            Upload::Payload(job) => job.origin(own).write_key(job.stamp, &job.payload, key),
            Upload::Batch(batch) => {
                key.clear();
                key.push_str(batch.key());
                // Its payloads' times were read when they joined it.
                EventTime::NotAsked
            }
        }
    }

    /// Counts and logs that the event time of a single payload cannot be read.
    pub(super) fn note_unreadable_time(&self, own: &Origin, cells: &CoreCells) {
        if let Upload::Payload(job) = self {
            cells.event_times_unreadable.inc();
            job.origin(own).log_unreadable_time(&job.payload);
        }
    }

    /// The trace contexts of its payloads' requests, for its dead letter.
    pub fn traces(&self) -> impl Iterator<Item = &str> {
        let (job, batch) = match self {
            Upload::Payload(job) => (Some(job), None),
            Upload::Batch(batch) => (None, Some(batch)),
        };
        let of_job = job.and_then(|job| job.payload.values().trace());
        of_job.into_iter().chain(batch.into_iter().flat_map(|batch| batch.traces()))
    }

    /// The file name of its dead letter, without an extension.
    pub fn stem(&self, own: &Origin) -> String {
        match self {
            Upload::Payload(job) => job.origin(own).stem(job.stamp),
            Upload::Batch(batch) => batch.stem().to_owned(),
        }
    }

    /// The object. `key` must hold what [`Upload::write_key`] wrote.
    pub fn object<'a>(&'a self, key: &'a str) -> Object<'a> {
        match self {
            Upload::Payload(job) => Object::of(key, &job.payload),
            Upload::Batch(batch) => batch.object(),
        }
    }

    /// Reports the outcome to the requests that wait for it, and that of a single payload also to
    /// the spool. The worker records the outcome of a batch there.
    pub fn complete(&self, outcome: Outcome) {
        match self {
            Upload::Payload(job) => job.complete(outcome),
            Upload::Batch(batch) => batch.complete(outcome),
        }
    }
}
