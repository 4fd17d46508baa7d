//! Bytes that are sent without copying them.

use std::any::Any;
use std::ops::{Deref, Range};
use std::rc::Rc;

/// Immutable bytes, and a value that lives as long as they do.
pub struct SharedBytes<T: ?Sized> {
    bytes: Vec<u8>,
    with: T,
}

impl<T> SharedBytes<T> {
    /// `bytes`, and `with` to live as long as they do.
    pub fn new(bytes: Vec<u8>, with: T) -> Rc<SharedBytes<T>> {
        Rc::new(SharedBytes { bytes, with })
    }

    /// All of the bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The value that lives as long as the bytes.
    pub fn with(&self) -> &T {
        &self.with
    }

    /// The bytes; drops the value that came with them.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// A part of [`SharedBytes`], of any `T`: a send holds it until the kernel has read it. Creating
/// one takes no allocation, and reading it no dynamic dispatch.
#[derive(Clone)]
pub struct Slice {
    of: Rc<SharedBytes<dyn Any>>,
    range: Range<usize>,
}

impl Slice {
    /// The bytes of `of` in `range`.
    pub fn new<T: Any>(of: Rc<SharedBytes<T>>, range: Range<usize>) -> Slice {
        Slice { of, range }
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.of.bytes[self.range.clone()]
    }
}

/// Bytes that can be sent without copying them.
pub trait Share: Deref<Target = [u8]> {
    /// The same bytes, for the send to hold.
    fn share(&self) -> Slice;
}

impl Share for Slice {
    fn share(&self) -> Slice {
        self.clone()
    }
}
