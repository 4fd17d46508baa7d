//! What a put is given: one object's key, its bytes in parts, and what is known of them beforehand.

use super::sums::Sums;
use crate::coding::Coding;
use crate::queue::job::Payload;

/// One object on its way to the store.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// Relative to the store's prefix; may hold `/`.
    pub key: &'a str,
    /// Its bytes, in order. Each part is written or sent by itself, so a large object has few: 256 KiB is a good part, as
    /// what one send may copy into a socket before other tasks of the core run.
    pub body: &'a [Payload],
    /// How they are compressed, where the store is to say so: `content-encoding`.
    pub coding: Option<Coding>,
    /// What [`Store::summing`](super::Store::summing) made of the body while it was gathered, the same for every attempt;
    /// `None`: each attempt reads the whole body for it at once, which a large one should not do to its core.
    pub sums: Option<&'a Sums>,
}

impl<'a> Object<'a> {
    /// A payload by itself, as it is.
    pub fn of(key: &'a str, payload: &'a Payload) -> Object<'a> {
        Object { key, body: std::slice::from_ref(payload), coding: None, sums: None }
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.body.iter().map(|part| part.len() as u64).sum()
    }
}
