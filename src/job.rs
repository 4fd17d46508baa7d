//! What travels through the ring: one payload as a slice of its request's body.
//!
//! A slice keeps the whole body alive, so the body carries the permit that was charged for it:
//! when the last slice is dropped, the bytes return to the core's budget. Nothing here crosses cores.

use std::ops::Deref;
use std::rc::Rc;

/// The bytes of one payload, exactly as received; cheap to clone, alive as long as its request's body.
#[derive(Clone)]
pub struct Payload {
    body: Rc<Vec<u8>>,
    start: u32,
    end: u32,
}

impl From<Vec<u8>> for Payload {
    /// A payload that owns its bytes and is charged to no budget: replay, probes and tests.
    fn from(bytes: Vec<u8>) -> Payload {
        let end = u32::try_from(bytes.len()).expect("a payload is under 4 GiB");
        Payload { body: Rc::new(bytes), start: 0, end }
    }
}

impl Deref for Payload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.body[self.start as usize..self.end as usize]
    }
}
