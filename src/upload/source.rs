//! One object in a worker's hand: a payload by itself, or a batch.

use std::rc::Rc;

use crate::batch::Batch;
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

    /// Of the payloads as they came.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Upload::Payload(job) => job.payload.len() as u64,
            Upload::Batch(batch) => batch.payload_bytes(),
        }
    }

    /// It survives this process.
    pub fn is_spooled(&self) -> bool {
        match self {
            Upload::Payload(job) => job.is_spooled(),
            Upload::Batch(batch) => batch.is_spooled(),
        }
    }

    /// Writes the object's key in place of what is in `key`; `own` is the core's.
    pub fn write_key(&self, own: &Origin, key: &mut String) {
        match self {
            Upload::Payload(job) => job.origin(own).write_key(job.stamp, &job.payload, key),
            Upload::Batch(batch) => {
                key.clear();
                key.push_str(batch.key());
            }
        }
    }

    /// What a dead letter of it is called.
    pub fn stem(&self, own: &Origin) -> String {
        match self {
            Upload::Payload(job) => job.origin(own).stem(job.stamp),
            Upload::Batch(batch) => batch.stem().to_owned(),
        }
    }

    /// The object, under the key that was written to `key`.
    pub fn object<'a>(&'a self, key: &'a str) -> Object<'a> {
        match self {
            Upload::Payload(job) => Object::of(key, &job.payload),
            Upload::Batch(batch) => batch.object(),
        }
    }

    /// Says what became of it to those who wait, and of a payload by itself also to the spool; what is noted there of a
    /// batch is the worker's.
    pub fn complete(&self, outcome: Outcome) {
        match self {
            Upload::Payload(job) => job.complete(outcome),
            Upload::Batch(batch) => batch.complete(outcome),
        }
    }
}
