//! One object in a worker's hand: a payload by itself, or a batch.

use std::rc::Rc;

use crate::batch::Batch;
use crate::queue::job::{Job, Origin};
use crate::queue::outcome::Fate;
use crate::store::Object;

/// What becomes one object.
#[derive(Clone)]
pub enum Parcel {
    Payload(Job),
    Batch(Rc<Batch>),
}

impl Parcel {
    pub fn payloads(&self) -> u64 {
        match self {
            Parcel::Payload(_) => 1,
            Parcel::Batch(batch) => batch.payloads(),
        }
    }

    /// Of the payloads as they came.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Parcel::Payload(job) => job.payload.len() as u64,
            Parcel::Batch(batch) => batch.payload_bytes(),
        }
    }

    /// It survives this process.
    pub fn is_spooled(&self) -> bool {
        match self {
            Parcel::Payload(job) => job.is_spooled(),
            Parcel::Batch(batch) => batch.is_spooled(),
        }
    }

    /// Writes the object's key in place of what is in `key`; `own` is the core's.
    pub fn write_key(&self, own: &Origin, key: &mut String) {
        match self {
            Parcel::Payload(job) => job.origin(own).write_key(job.stamp, &job.payload, key),
            Parcel::Batch(batch) => {
                key.clear();
                key.push_str(batch.key());
            }
        }
    }

    /// What a dead letter of it is called.
    pub fn stem(&self, own: &Origin) -> String {
        match self {
            Parcel::Payload(job) => job.origin(own).stem(job.stamp),
            Parcel::Batch(batch) => batch.stem().to_owned(),
        }
    }

    /// The object, under the key that was written to `key`.
    pub fn object<'a>(&'a self, key: &'a str) -> Object<'a> {
        match self {
            Parcel::Payload(job) => Object::of(key, &job.payload),
            Parcel::Batch(batch) => batch.object(),
        }
    }

    /// Says what became of it to those who wait, and of a payload by itself also to the spool; what is noted there of a
    /// batch is the worker's.
    pub fn settle(&self, fate: Fate) {
        match self {
            Parcel::Payload(job) => job.settle(fate),
            Parcel::Batch(batch) => batch.tell(fate),
        }
    }
}
