//! A body with the padding that its parser wants behind it.
#![expect(unsafe_code, reason = "the padding lies in a vector's spare capacity")]

use std::mem;
use std::ops::Deref;

/// Bytes behind a body that belong to nobody and are zero when it is parsed: `simd-json` wants them
/// there. They are part of its allocation, and charged with it.
pub const BODY_PADDING: usize = 64;

/// A body with [`BODY_PADDING`] behind it. It dereferences to the body.
#[derive(Default)]
pub struct Padded<'a> {
    /// Shorter than the padding only if it is empty: there is no body.
    all: &'a mut [u8],
}

impl<'a> Padded<'a> {
    /// Clears the padding behind `body`, in its spare capacity, which grows if it is too small.
    pub fn behind(body: &'a mut Vec<u8>) -> Padded<'a> {
        let length = body.len();
        body.reserve(BODY_PADDING);
        for byte in &mut body.spare_capacity_mut()[..BODY_PADDING] {
            byte.write(0);
        }
        // SAFETY: the vector has this capacity, all of these bytes are initialised, and it stays
        // borrowed for as long as the slice lives.
        let all =
            unsafe { std::slice::from_raw_parts_mut(body.as_mut_ptr(), length + BODY_PADDING) };
        Padded { all }
    }

    /// The bytes of the body from `start` on, and the padding.
    pub fn from(&mut self, start: usize) -> &mut [u8] {
        &mut self.all[start..]
    }

    /// Leaves nothing in its place.
    pub fn take(&mut self) -> Padded<'a> {
        mem::take(self)
    }

    /// The body, which does not change any longer.
    pub fn into_body(self) -> &'a [u8] {
        let length = self.len();
        &self.all[..length]
    }
}

impl Deref for Padded<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.all[..self.all.len().saturating_sub(BODY_PADDING)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_padding_is_behind_the_body_whatever_was_there() {
        for length in 0..200 {
            for capacity in [length, length + 63, length + 64, length + 65, 2 * length + 64] {
                let mut body = Vec::with_capacity(capacity);
                body.resize(capacity, 0xff);
                body.truncate(length);
                let start = body.as_ptr();
                let mut padded = Padded::behind(&mut body);
                assert_eq!(*padded, vec![0xff; length]);
                let behind = padded.from(length);
                assert_eq!(behind, [0; BODY_PADDING]);
                behind.fill(7);
                assert_eq!(padded.from(0).len(), length + BODY_PADDING);
                let whole = padded.take();
                assert!(padded.is_empty(), "nothing is left");
                assert_eq!(whole.into_body(), vec![0xff; length]);
                assert_eq!(body, vec![0xff; length], "its length has not changed");
                if capacity >= length + BODY_PADDING {
                    assert_eq!(body.as_ptr(), start, "it has not moved");
                }
            }
        }
    }
}
