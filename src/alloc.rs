//! The allocator of the process: mimalloc, and for what is large a mapping of its own.
//!
//! A long body grows as it comes in or is decompressed. mimalloc would copy it at every step, in one
//! turn of its core: 64 MiB took 40 ms. A mapping grows by `mremap`, which moves pages, not bytes,
//! and a core unmaps it [in steps](freed). What mimalloc has free is returned to the system
//! [elsewhere than on a core](purge).
#![expect(unsafe_code, reason = "an allocator hands out raw memory")]

mod freed;
#[cfg(test)]
pub mod largest;
mod purge;

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::{copy_nonoverlapping, null_mut};

use mimalloc::MiMalloc;
use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mremap};

use freed::FreedMapping;
pub use freed::{UnmapsInSteps, WAITING_MAX, unmap_step};
pub use purge::{return_free_memory, return_no_memory_while_allocating};

/// Size from which on an allocation is a mapping of its own. Page faults make those dearer than what
/// mimalloc has at hand, so bodies of the default `MAX_LENGTH` are none; and the step that leads
/// here still copies up to as much.
pub const MAPPED_LEAST: usize = 2 << 20;

/// From now on the process has pages of the usual size only. mimalloc asks for huge ones, and more
/// than half of a busy server's resident memory was then zeros around what is in use: the kernel
/// fills up again what was [returned](return_free_memory). They save no CPU time here, and a page
/// fault that clears 2 MiB is a long turn of a core.
pub fn use_no_huge_pages() {
    // A kernel without them refuses it.
    let _never_there = rustix::thread::disable_transparent_huge_pages(true);
}

/// Alignment of any mapping.
const PAGE_BYTES: usize = 4 << 10;

/// See the top of this file.
pub struct Allocator;

fn is_mapped(size: usize, layout: Layout) -> bool {
    size >= MAPPED_LEAST && layout.align() <= PAGE_BYTES
}

// SAFETY: whether an allocation is a mapping follows from its layout alone, so each is freed, or
// made larger or smaller, by the allocator that it came from. Both fulfil the contract for what is
// theirs: a mapping is as large as asked for, aligned to a page and overlaps with nothing. Nothing
// here allocates or panics.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match is_mapped(layout.size(), layout) {
            true => map(layout.size()),
            // SAFETY: the caller's promise.
            false => unsafe { MiMalloc.alloc(layout) },
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match is_mapped(layout.size(), layout) {
            // The kernel clears new pages.
            true => map(layout.size()),
            // SAFETY: the caller's promise.
            false => unsafe { MiMalloc.alloc_zeroed(layout) },
        }
    }

    #[inline]
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        match is_mapped(layout.size(), layout) {
            true => unmap(start, layout.size()),
            // SAFETY: the caller's promise.
            false => unsafe { MiMalloc.dealloc(start, layout) },
        }
    }

    #[inline]
    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match (is_mapped(layout.size(), layout), is_mapped(size, layout)) {
            // SAFETY: the caller's promise.
            (false, false) => unsafe { MiMalloc.realloc(start, layout, size) },
            (true, true) => remap(start, layout.size(), size),
            // SAFETY: the caller's promise; `size` is one that it may ask for with this alignment.
            _ => unsafe { self.move_to(start, layout, size) },
        }
    }
}

impl Allocator {
    /// Moves an allocation from one of the two allocators to the other.
    ///
    /// # Safety
    /// As for [`GlobalAlloc::realloc`].
    #[cold]
    unsafe fn move_to(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise: `size` is not zero and does not overflow when aligned. The
        // two allocations do not overlap, and both are as long as what is copied.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                copy_nonoverlapping(start, moved, size.min(layout.size()));
                self.dealloc(start, layout);
            }
            moved
        }
    }
}

#[cold]
fn map(size: usize) -> *mut u8 {
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
    unsafe { mmap_anonymous(null_mut(), size, access, flags) }.map_or(null_mut(), |at| at.cast())
}

#[cold]
fn unmap(start: *mut u8, size: usize) {
    // SAFETY: `start` is one of `map` or `remap` with this size, and the caller, who frees it, has
    // no other use for it.
    unsafe { FreedMapping::new(start, size) }.unmap();
}

#[cold]
fn remap(start: *mut u8, before: usize, size: usize) -> *mut u8 {
    // SAFETY: as for `unmap`; what is at the old address is at the new one.
    let moved = unsafe { mremap(start.cast(), before, size, MremapFlags::MAYMOVE) };
    moved.map_or(null_mut(), |at| at.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way from one allocator to the other, with what is in it.
    #[test]
    fn what_is_there_stays_whatever_grows_or_shrinks() {
        let seed = crate::rt::random();
        println!("seed {seed}");
        let mut rng = crate::rt::Rng::with_seed(seed);
        for align in [1, 64, PAGE_BYTES, 2 * PAGE_BYTES] {
            let size_of = |rng: &mut crate::rt::Rng| match rng.u8(..4) {
                0 => rng.usize(1..100_000),
                1 => MAPPED_LEAST - 1 + rng.usize(..3),
                2 => MAPPED_LEAST + rng.usize(..PAGE_BYTES),
                _ => rng.usize(1..5 * MAPPED_LEAST),
            };
            let mut layout = Layout::from_size_align(size_of(&mut rng), align).unwrap();
            // SAFETY: below, each pointer is used with the layout that it has, until it is freed.
            let mut start = unsafe { Allocator.alloc(layout) };
            let mut known = 0;
            for step in 0..200 {
                assert!(!start.is_null() && start.addr().is_multiple_of(align), "seed {seed}");
                // SAFETY: as above; the first `known` bytes were written.
                let bytes = unsafe { std::slice::from_raw_parts_mut(start, layout.size()) };
                let is_kept = bytes[..known].iter().step_by(97).all(|byte| *byte == step);
                assert!(is_kept, "seed {seed}: {layout:?}");
                bytes.fill(step.wrapping_add(1));
                let size = size_of(&mut rng);
                known = size.min(layout.size());
                // SAFETY: as above.
                start = unsafe { Allocator.realloc(start, layout, size) };
                layout = Layout::from_size_align(size, align).unwrap();
            }
            // SAFETY: as above.
            unsafe { Allocator.dealloc(start, layout) };
        }
    }

    #[test]
    fn zeroed_is_zeroed() {
        for size in [1, MAPPED_LEAST - 1, MAPPED_LEAST, 3 * MAPPED_LEAST + 1] {
            let layout = Layout::from_size_align(size, 1).unwrap();
            for _ in 0..3 {
                // SAFETY: used with this layout until it is freed.
                unsafe {
                    let start = Allocator.alloc_zeroed(layout);
                    let bytes = std::slice::from_raw_parts_mut(start, size);
                    assert!(bytes.iter().all(|byte| *byte == 0));
                    bytes.fill(1);
                    Allocator.dealloc(start, layout);
                }
            }
        }
    }
}
