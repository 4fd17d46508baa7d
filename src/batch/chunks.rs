//! The bytes of one object, in chunks that never move once they are full, and the core's pool of
//! chunks.
//!
//! The first chunk grows by doubling, so a batch of a few small payloads takes kilobytes. From
//! [`CHUNK_BYTES`] on every chunk has that size and comes from the core's pool, because the page
//! faults of fresh memory cost more than the copy into it.

use std::cell::RefCell;
use std::rc::Rc;

use crate::queue::job::Payload;

/// Capacity of every chunk, except that of a small object. Large enough that a PUT sends few
/// pieces, small enough that the unfilled half of the last one is 1.5 % of an object of 8 MiB.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// Capacity for the first line of an object: one page.
const CHUNK_BYTES_LEAST: usize = 4 << 10;

/// Chunks kept for reuse: one object of 8 MiB, the default size.
pub(super) const CHUNKS_POOLED_MAX: usize = 32;

/// Full-size chunks of one core that no object uses.
#[derive(Default)]
pub(super) struct ChunkPool {
    free: RefCell<Vec<Vec<u8>>>,
}

impl ChunkPool {
    fn take(&self) -> Vec<u8> {
        self.free.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES))
    }

    /// Keeps `chunk` if it has full size and the pool has room for it.
    pub(super) fn give(&self, mut chunk: Vec<u8>) {
        let mut free = self.free.borrow_mut();
        if chunk.capacity() == CHUNK_BYTES && free.len() < CHUNKS_POOLED_MAX {
            chunk.clear();
            free.push(chunk);
        }
    }

    /// Bytes held by the pool.
    pub(super) fn memory(&self) -> usize {
        self.free.borrow().len() * CHUNK_BYTES
    }
}

/// One object's chunks. All but the last are full.
pub(super) struct Chunks {
    pool: Rc<ChunkPool>,
    list: Vec<Vec<u8>>,
    bytes: u64,
    /// Capacity of all chunks.
    held: usize,
    /// Start of the bytes that [`Chunks::show`] has not shown.
    unseen: ChunkPosition,
    unseen_bytes: usize,
}

#[derive(Default)]
struct ChunkPosition {
    chunk: usize,
    offset: usize,
}

impl Chunks {
    pub(super) fn new(pool: Rc<ChunkPool>) -> Chunks {
        Chunks {
            pool,
            list: Vec::new(),
            bytes: 0,
            held: 0,
            unseen: ChunkPosition::default(),
            unseen_bytes: 0,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn unseen_bytes(&self) -> usize {
        self.unseen_bytes
    }

    /// Bytes held, by capacity.
    pub(super) fn memory(&self) -> usize {
        self.held + self.list.capacity() * size_of::<Vec<u8>>()
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = self.fill(bytes.len(), |chunk| {
                let (now, later) = bytes.split_at(bytes.len().min(chunk.capacity() - chunk.len()));
                chunk.extend_from_slice(now);
                later
            });
        }
    }

    /// Lets `append` append to a chunk that has room for at least one byte, and for `wanted` bytes
    /// if that fits in one chunk. It must not write beyond the chunk's capacity.
    pub(super) fn fill<R>(&mut self, wanted: usize, append: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        if self.list.last().is_none_or(|chunk| chunk.len() == chunk.capacity())
            || (self.list.len() == 1 && self.held < CHUNK_BYTES)
        {
            self.make_room(wanted);
        }
        let chunk = self.list.last_mut().expect("there is room");
        let (length, capacity) = (chunk.len(), chunk.capacity());
        let outcome = append(chunk);
        assert_eq!(chunk.capacity(), capacity, "a chunk does not move while it is filled");
        let written = chunk.len() - length;
        self.bytes += written as u64;
        self.unseen_bytes += written;
        outcome
    }

    /// Grows the first chunk, or adds one after those that are full.
    fn make_room(&mut self, wanted: usize) {
        match self.list.as_mut_slice() {
            [first] if first.capacity() < CHUNK_BYTES => {
                let needed = first.len() + wanted.max(1);
                if needed > first.capacity() {
                    let mut grown = fresh(&self.pool, needed);
                    grown.extend_from_slice(first);
                    self.held = grown.capacity();
                    *first = grown;
                }
            }
            [] => self.add(fresh(&self.pool, wanted)),
            _ => self.add(self.pool.take()),
        }
    }

    fn add(&mut self, chunk: Vec<u8>) {
        self.held += chunk.capacity();
        self.list.push(chunk);
    }

    /// Shows `out`, in order, at most `most` bytes that it has not seen.
    pub(super) fn show(&mut self, mut most: usize, out: &mut dyn FnMut(&[u8])) {
        while most > 0 && self.unseen_bytes > 0 {
            let chunk = &self.list[self.unseen.chunk];
            let unseen = &chunk[self.unseen.offset..];
            let now = unseen.len().min(most);
            if now > 0 {
                out(&unseen[..now]);
            }
            self.unseen.offset += now;
            self.unseen_bytes -= now;
            most -= now;
            if self.unseen.offset == chunk.len() && self.unseen.chunk + 1 < self.list.len() {
                self.unseen = ChunkPosition { chunk: self.unseen.chunk + 1, offset: 0 };
            }
        }
    }

    pub(super) fn as_slices(&self) -> impl Iterator<Item = &[u8]> {
        self.list.iter().map(Vec::as_slice)
    }

    pub(super) fn into_parts(self) -> Vec<Payload> {
        self.list.into_iter().filter(|chunk| !chunk.is_empty()).map(Payload::from).collect()
    }

    /// Bytes that are really allocated.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> usize {
        self.list.iter().map(Vec::capacity).sum()
    }

    /// Returns the chunks to the pool.
    pub(super) fn give_back(self) {
        self.list.into_iter().for_each(|chunk| self.pool.give(chunk));
    }
}

/// A first chunk for `needed` bytes, or for as many as fit in one chunk.
fn fresh(pool: &ChunkPool, needed: usize) -> Vec<u8> {
    if needed > CHUNK_BYTES / 2 {
        return pool.take();
    }
    Vec::with_capacity(needed.next_power_of_two().max(CHUNK_BYTES_LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_object_takes_little_and_a_large_one_whole_chunks() {
        let pool = Rc::new(ChunkPool::default());
        let mut chunks = Chunks::new(pool);
        assert_eq!(chunks.memory(), 0, "nothing before the first byte");
        for (write, held) in [(1, 4 << 10), (4095, 4 << 10), (1, 8 << 10), (100_000, 128 << 10)] {
            chunks.write(&vec![1; write]);
            assert_eq!(chunks.held, held);
        }
        chunks.write(&vec![2; 3 * CHUNK_BYTES]);
        let lengths: Vec<usize> = chunks.list.iter().map(Vec::len).collect();
        assert_eq!(lengths, [CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES, 104_097]);
        assert!(chunks.list.iter().all(|chunk| chunk.capacity() == CHUNK_BYTES));
        assert_eq!(chunks.held, 4 * CHUNK_BYTES);
        assert_eq!(chunks.bytes(), 104_097 + 3 * CHUNK_BYTES as u64);
    }

    #[test]
    fn every_byte_is_shown_once_in_order() {
        let mut chunks = Chunks::new(Rc::default());
        let bytes: Vec<u8> = (0..600_000_u32).map(|i| (i / 251) as u8 ^ i as u8).collect();
        let mut seen = Vec::new();
        for piece in bytes.chunks(70_001) {
            chunks.write(piece);
            chunks.show(50_000, &mut |bytes| seen.extend_from_slice(bytes));
        }
        assert!(seen.len() < bytes.len() && chunks.unseen_bytes() == bytes.len() - seen.len());
        chunks.show(usize::MAX, &mut |bytes| seen.extend_from_slice(bytes));
        assert!(seen == bytes && chunks.unseen_bytes() == 0);
        chunks.show(1, &mut |_| panic!("all has been seen"));
    }

    #[test]
    fn the_pool_keeps_full_chunks_up_to_its_bound() {
        let pool = Rc::new(ChunkPool::default());
        pool.give(Vec::with_capacity(CHUNK_BYTES / 2));
        assert_eq!(pool.memory(), 0, "not of full size");
        for _ in 0..CHUNKS_POOLED_MAX + 3 {
            pool.give(Vec::with_capacity(CHUNK_BYTES));
        }
        assert_eq!(pool.memory(), CHUNKS_POOLED_MAX * CHUNK_BYTES);
        pool.give(vec![1; CHUNK_BYTES]);
        assert!(pool.take().is_empty());
    }
}
