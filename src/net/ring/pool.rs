//! The receive buffers of a ring.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::{BUFFER_BYTES, BUFFERS, Buffer};

/// The receive buffers, and the entries through which the kernel finds them.
pub(super) struct Pool {
    pub(super) entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    /// Number of entries ever added, modulo 2^16.
    tail: u16,
}

const ENTRIES_BYTES: usize = BUFFERS as usize * size_of::<BufRingEntry>();
/// Size of all receive buffers of one executor.
pub const MEMORY_BYTES: usize = BUFFERS as usize * BUFFER_BYTES;

impl Pool {
    pub(super) fn new() -> io::Result<Pool> {
        assert!(BUFFERS.is_power_of_two());
        let map = |length| {
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
            let start = unsafe { mmap_anonymous(std::ptr::null_mut(), length, access, flags) }?;
            io::Result::Ok(NonNull::new(start).expect("never mapped at zero"))
        };
        let entries = map(ENTRIES_BYTES)?.cast();
        let memory = map(MEMORY_BYTES)?.cast();
        let mut pool = Pool { entries, memory, tail: 0 };
        for id in 0..BUFFERS {
            pool.give_back(id);
        }
        Ok(pool)
    }

    pub(super) fn give_back(&mut self, id: u16) {
        assert!(id < BUFFERS);
        let at = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: `at` and `id` are below BUFFERS, so entry, buffer and tail lie in the two
        // mappings. The kernel reads an entry only once the tail has passed it, and it has consumed
        // the one that was here before, because there are no more buffers than entries.
        unsafe {
            let entry = self.entries.add(at).as_mut();
            entry.set_addr(self.memory.add(usize::from(id) * BUFFER_BYTES).as_ptr() as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    pub(super) fn bytes(&self, buffer: &Buffer) -> &[u8] {
        // SAFETY: inside the mapping, which starts zeroed. The kernel writes to a buffer only while
        // it holds it, and no `Buffer` exists then. Others write through `bytes_of` only while they
        // have the `Buffer`, and so does the caller now.
        unsafe { &*self.bytes_of(buffer) }
    }

    /// Where they are, which is inside the mapping.
    pub(super) fn bytes_of(&self, buffer: &Buffer) -> *mut [u8] {
        assert!(buffer.id < BUFFERS && buffer.len() <= BUFFER_BYTES);
        // SAFETY: there are as many buffers in the mapping, so the sum does not leave it.
        let start = unsafe { self.memory.add(usize::from(buffer.id) * BUFFER_BYTES) };
        std::ptr::slice_from_raw_parts_mut(start.as_ptr(), buffer.len())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nothing refers to it any longer.
        let unmapped = unsafe {
            munmap(self.entries.as_ptr().cast(), ENTRIES_BYTES)
                .and(munmap(self.memory.as_ptr().cast(), MEMORY_BYTES))
        };
        debug_assert!(unmapped.is_ok());
    }
}
