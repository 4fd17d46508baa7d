//! The receive buffers of a ring.
//!
//! The kernel takes buffers in the order in which it got them, so a pool that it holds whole is gone
//! through from end to end, and none of it stays in the CPU's cache. Therefore it gets only as many
//! as are used between two of its turns, those first that were given back last.

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
    /// The buffers that neither the kernel nor a reader has, the one used last on top.
    free: Vec<u16>,
    /// How many the kernel has.
    offered: u16,
    /// How many it gets.
    demand: Demand,
}

/// How many buffers the kernel needs between two refills.
struct Demand {
    now: u16,
    /// It has run out since the last refill.
    is_short: bool,
    /// The fewest that it had left at a refill, of the last `refills`.
    left_least: u16,
    refills: u16,
}

impl Demand {
    /// Number of buffers at first, and at least: since Linux 6.14 the kernel seldom fills more between two
    /// refills. Before, it may fill as many as there are sockets with bytes.
    const LEAST: u16 = 64;
    /// Refills after which a demand that was never half used is halved.
    const PERIOD: u16 = 1 << 12;

    fn new() -> Demand {
        Demand { now: Demand::LEAST, is_short: false, left_least: BUFFERS, refills: 0 }
    }

    /// The demand at the next refill, unless it is less.
    fn next(&self) -> u16 {
        if self.is_short { (2 * self.now).min(BUFFERS) } else { self.now }
    }

    /// The demand from now on, if `left` are left.
    fn at_refill(&mut self, left: u16) -> u16 {
        self.now = self.next();
        if std::mem::take(&mut self.is_short) {
            (self.left_least, self.refills) = (BUFFERS, 0);
            return self.now;
        }
        self.left_least = self.left_least.min(left);
        self.refills += 1;
        if self.refills == Demand::PERIOD {
            if self.left_least > self.now / 2 {
                self.now = (self.now / 2).max(Demand::LEAST);
            }
            (self.left_least, self.refills) = (BUFFERS, 0);
        }
        self.now
    }
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
        let free = (0..BUFFERS).rev().collect();
        let mut pool = Pool { entries, memory, tail: 0, free, offered: 0, demand: Demand::new() };
        pool.refill(0);
        Ok(pool)
    }

    /// Gives the kernel as many buffers as it needs, as far as there are any. `unread` completions may
    /// have one each.
    pub(super) fn refill(&mut self, unread: usize) {
        let unread = u16::try_from(unread).unwrap_or(u16::MAX);
        let wanted = self.demand.at_refill(self.offered.saturating_sub(unread));
        if self.offered >= wanted || self.free.is_empty() {
            return;
        }
        while self.offered < wanted
            && let Some(id) = self.free.pop()
        {
            self.add(id);
        }
        // SAFETY: the tail lies in the mapping of the entries.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    /// Writes the next entry. The kernel reads it once the tail is published.
    fn add(&mut self, id: u16) {
        assert!(id < BUFFERS && self.offered < BUFFERS);
        let at = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: `at` and `id` are below BUFFERS, so entry and buffer lie in the two mappings. The
        // kernel has consumed the entry that was here before, because it has fewer buffers than there
        // are entries.
        unsafe {
            let entry = self.entries.add(at).as_mut();
            entry.set_addr(self.memory.add(usize::from(id) * BUFFER_BYTES).as_ptr() as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        self.offered += 1;
    }

    /// How many the kernel has after the next refill.
    pub(super) fn next_offer(&self) -> usize {
        let free = self.free.len();
        let missing = self.demand.next().saturating_sub(self.offered);
        usize::from(self.offered) + free.min(usize::from(missing))
    }

    /// How many readers have.
    pub(super) fn held(&self) -> usize {
        usize::from(BUFFERS - self.offered) - self.free.len()
    }

    /// Notes that the kernel has used a buffer.
    pub(super) fn taken(&mut self) {
        self.offered -= 1;
    }

    /// Notes that the kernel has found none.
    pub(super) fn ran_short(&mut self) {
        self.demand.is_short = true;
    }

    pub(super) fn give_back(&mut self, id: u16) {
        assert!(id < BUFFERS && self.free.len() < usize::from(BUFFERS));
        self.free.push(id);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_doubles_when_it_is_not_met_and_halves_when_half_would_do() {
        let mut demand = Demand::new();
        // One whole period, at one refill of which fewer were left than at the others.
        let period = |demand: &mut Demand, left, once: u16| {
            for _ in 1..Demand::PERIOD {
                demand.at_refill(left);
            }
            demand.at_refill(once)
        };
        assert_eq!(period(&mut demand, Demand::LEAST, Demand::LEAST), Demand::LEAST);
        for wanted in [2 * Demand::LEAST, 4 * Demand::LEAST, BUFFERS, BUFFERS] {
            demand.is_short = true;
            assert_eq!(demand.at_refill(0), wanted.min(BUFFERS));
        }
        assert_eq!(period(&mut demand, BUFFERS / 2, BUFFERS / 2), BUFFERS, "half was used");
        assert_eq!(period(&mut demand, BUFFERS, 0), BUFFERS, "it was used up once");
        assert_eq!(period(&mut demand, BUFFERS, BUFFERS / 2 + 1), BUFFERS / 2);
        assert_eq!(period(&mut demand, BUFFERS / 2, BUFFERS / 2), Demand::LEAST);
        assert_eq!(period(&mut demand, Demand::LEAST, Demand::LEAST), Demand::LEAST);
    }
}
