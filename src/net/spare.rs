//! Empty buffers of sends that have ended, for the next ones.
//!
//! They belong to the ring, not to their sockets: a buffer is needed from when a request is laid out
//! until the kernel has copied it, which is mostly one turn. So the few buffers that are used last
//! are used again first, and stay in the CPU's cache however many requests await their answers; and
//! a silent connection holds none.

/// Largest buffer that is kept: an answer takes 150 bytes, a small PUT 1 KiB.
const KEPT_BYTES_MAX: usize = 8 << 10;
/// Most buffers kept: as many as are mostly sent in one turn, 512 KiB at most.
const KEPT_MAX: usize = 64;
/// Size of a new buffer, so that it does not grow step by step.
const NEW_BYTES: usize = 2 << 10;

/// The buffers that one ring keeps, the one used last on top.
#[derive(Default)]
pub(super) struct SpareBuffers(Vec<Vec<u8>>);

impl SpareBuffers {
    /// An empty buffer with room for a small message.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_else(|| Vec::with_capacity(NEW_BYTES))
    }

    /// Keeps `buffer` for the next send, unless it is large or enough are kept.
    pub(super) fn put(&mut self, mut buffer: Vec<u8>) {
        if self.0.len() < KEPT_MAX && (1..=KEPT_BYTES_MAX).contains(&buffer.capacity()) {
            buffer.clear();
            self.0.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_used_last_is_used_first_and_few_small_ones_are_kept() {
        let mut spare = SpareBuffers::default();
        let first = spare.take();
        assert!(first.is_empty() && first.capacity() >= NEW_BYTES);
        let mut last = Vec::with_capacity(100);
        last.push(b'x');
        let at = last.as_ptr();
        spare.put(first);
        spare.put(last);
        spare.put(Vec::with_capacity(KEPT_BYTES_MAX + 1));
        spare.put(Vec::new());
        assert_eq!(spare.0.len(), 2);
        let again = spare.take();
        assert_eq!((again.as_ptr(), again.len()), (at, 0));
        (0..2 * KEPT_MAX).for_each(|_| spare.put(Vec::with_capacity(8)));
        assert_eq!(spare.0.len(), KEPT_MAX);
    }
}
