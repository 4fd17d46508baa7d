//! What a put is given: an object's key, its bytes in parts, and what is already known about them.

use super::sums::Sums;
use crate::coding::Coding;
use crate::queue::job::Payload;

/// One object on its way to the store.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// Relative to the store's prefix; may contain `/`.
    pub key: &'a str,
    /// Its bytes, in order. Each part is written or sent separately, so a large object should have
    /// few parts. 256 KiB is a good size: one send copies no more into a socket before other tasks
    /// of the core run.
    pub body: &'a [Payload],
    /// How the bytes are compressed, if the object shall say so (`content-encoding`).
    pub coding: Option<Coding>,
    /// The sums that [`Store::summing`](super::Store::summing) computed while the body was
    /// gathered, or an earlier attempt. With `None` the attempt reads the whole body at once, which
    /// for a large body would block its core.
    pub sums: Option<&'a Sums>,
}

impl<'a> Object<'a> {
    /// A single payload, unchanged.
    pub fn of(key: &'a str, payload: &'a Payload) -> Object<'a> {
        Object { key, body: std::slice::from_ref(payload), coding: None, sums: None }
    }

    /// Size of the body.
    pub fn bytes(&self) -> u64 {
        self.body.iter().map(|part| part.len() as u64).sum()
    }
}
