//! Bytes that are sent from where they lie.

use std::any::Any;
use std::ops::{Deref, Range};
use std::rc::Rc;

/// Bytes that do not change while they live, and what is to live as long as they do.
pub struct Shared<T: ?Sized> {
    bytes: Vec<u8>,
    with: T,
}

impl<T> Shared<T> {
    pub fn new(bytes: Vec<u8>, with: T) -> Rc<Shared<T>> {
        Rc::new(Shared { bytes, with })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What lives as long as the bytes.
    pub fn with(&self) -> &T {
        &self.with
    }

    /// The bytes alone; the rest is dropped.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Some of them, whatever lives with them: what a send holds until the kernel has read it. To make one
/// takes no allocation, and to read it no dynamic dispatch.
#[derive(Clone)]
pub struct Slice {
    of: Rc<Shared<dyn Any>>,
    range: Range<usize>,
}

impl Slice {
    pub fn new<T: Any>(of: Rc<Shared<T>>, range: Range<usize>) -> Slice {
        Slice { of, range }
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.of.bytes[self.range.clone()]
    }
}

/// What can be sent without copying it.
pub trait Share: Deref<Target = [u8]> {
    fn share(&self) -> Slice;
}

impl Share for Slice {
    fn share(&self) -> Slice {
        self.clone()
    }
}
