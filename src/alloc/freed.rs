//! Large mappings that were freed on a thread with sockets. They are unmapped in steps between its
//! turns, because 100 MiB in one turn would take 10 ms.
//!
//! They form a list in their own memory, since whoever frees must not allocate. What waits in it is
//! in no budget any longer; [`WAITING_MAX`] bounds it.
#![expect(unsafe_code, reason = "a list in memory that nobody owns any more")]

use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::null_mut;

use rustix::mm::munmap;

/// What a step unmaps: 0.1 ms.
const STEP_BYTES: usize = 1 << 20;

/// The largest page that a host may have (arm64): what is left of a mapping ends with one. Otherwise
/// `munmap` would refuse the part behind it.
const PAGE_BYTES_MAX: usize = 64 << 10;

/// Most bytes of one thread that wait. What is freed beyond them is unmapped at once. A step takes
/// less time than it takes to receive as much, so only many large bodies that end together get
/// there.
const WAITING_MAX: usize = 128 << 20;

/// The start of a freed mapping.
struct Freed {
    next: *mut Freed,
    /// How much of it is still mapped.
    bytes: usize,
}

struct Unmapping {
    first: Cell<*mut Freed>,
    bytes: Cell<usize>,
    /// Somebody calls [`unmap_step`].
    in_steps: Cell<bool>,
}

thread_local! {
    /// Needs no destructor, so it can be used at any time.
    static UNMAPPING: Unmapping = const {
        Unmapping { first: Cell::new(null_mut()), bytes: Cell::new(0), in_steps: Cell::new(false) }
    };
}

/// While this exists, the thread that created it calls [`unmap_step`] often.
pub struct UnmapsInSteps {
    /// Of this thread.
    _not_send: PhantomData<*const ()>,
}

impl UnmapsInSteps {
    /// From now on this thread calls [`unmap_step`].
    pub fn begin() -> UnmapsInSteps {
        UNMAPPING.with(|waiting| waiting.in_steps.set(true));
        UnmapsInSteps { _not_send: PhantomData }
    }
}

impl Drop for UnmapsInSteps {
    fn drop(&mut self) {
        UNMAPPING.with(|waiting| waiting.in_steps.set(false));
        while unmap_step() {}
    }
}

/// Unmaps a part of what was freed on this thread. Returns whether there is more.
#[inline]
pub fn unmap_step() -> bool {
    UNMAPPING.with(|waiting| !waiting.first.get().is_null() && waiting.unmap_step())
}

/// A mapping that nobody uses any more.
pub(super) struct FreedMapping {
    start: *mut u8,
    bytes: usize,
}

impl FreedMapping {
    /// # Safety
    /// A mapping starts at `start` and is `bytes` long, at least a page, readable and writable, and
    /// nobody else uses it or will unmap it.
    pub(super) unsafe fn new(start: *mut u8, bytes: usize) -> FreedMapping {
        FreedMapping { start, bytes }
    }

    /// Unmaps it, in steps if this thread does that and it has room for them.
    pub(super) fn unmap(self) {
        UNMAPPING.with(|waiting| {
            if waiting.in_steps.get() && waiting.bytes.get() + self.bytes <= WAITING_MAX {
                waiting.push(self);
            }
        });
    }
}

impl Drop for FreedMapping {
    fn drop(&mut self) {
        // SAFETY: it is mapped and nobody uses it, as `new` demands.
        let _cannot_fail = unsafe { munmap(self.start.cast(), self.bytes) };
    }
}

impl Unmapping {
    fn push(&self, mapping: FreedMapping) {
        // It stays mapped.
        let mapping = ManuallyDrop::new(mapping);
        let freed = mapping.start.cast::<Freed>();
        self.bytes.set(self.bytes.get() + mapping.bytes);
        let next = self.first.replace(freed);
        // SAFETY: the mapping is writable, larger than a `Freed`, aligned to a page and nobody
        // else's.
        unsafe { freed.write(Freed { next, bytes: mapping.bytes }) };
    }

    /// There is one.
    #[cold]
    fn unmap_step(&self) -> bool {
        let first = self.first.get();
        // SAFETY: what is in the list was written by `push`, and only this thread uses it.
        let freed = unsafe { &mut *first };
        let left = freed.bytes.saturating_sub(STEP_BYTES).next_multiple_of(PAGE_BYTES_MAX);
        self.bytes.set(self.bytes.get() - (freed.bytes - left));
        let whole = freed.bytes;
        if left == 0 {
            self.first.set(freed.next);
        } else {
            freed.bytes = left;
        }
        // SAFETY: the end of a mapping in the list, without its `Freed` unless it has left the list.
        drop(unsafe { FreedMapping::new(first.cast::<u8>().add(left), whole - left) });
        !self.first.get().is_null()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::alloc::{GlobalAlloc, Layout};
    use std::time::Duration;

    use super::*;
    use crate::alloc::{Allocator, PAGE_BYTES};

    /// Of this thread: others do not matter.
    pub(in crate::alloc) fn cpu_time(work: impl FnOnce()) -> Duration {
        let now = || {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: the kernel writes one timespec, which `time` is.
            unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
            Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
        };
        let before = now();
        work();
        now() - before
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 1).unwrap()
    }

    /// An allocation all of whose pages are there.
    fn filled(bytes: usize) -> *mut u8 {
        // SAFETY: the layout is not empty, and each page is within the allocation.
        unsafe {
            let start = Allocator.alloc(layout(bytes));
            assert!(!start.is_null());
            (0..bytes).step_by(PAGE_BYTES).for_each(|at| start.add(at).write(1));
            start
        }
    }

    fn free(start: *mut u8, bytes: usize) {
        // SAFETY: `start` is what `filled` returned for `bytes`, and is freed once.
        unsafe { Allocator.dealloc(start, layout(bytes)) };
    }

    fn is_mapped(at: *mut u8) -> bool {
        let mut there = [0_u8; 1];
        // SAFETY: the kernel writes one byte for the one page, or says that it is not mapped.
        unsafe { libc::mincore(at.cast(), PAGE_BYTES, there.as_mut_ptr().cast()) == 0 }
    }

    fn waiting() -> usize {
        UNMAPPING.with(|waiting| waiting.bytes.get())
    }

    /// Not on a thread that other tests run on.
    fn on_its_own_thread(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| scope.spawn(test).join().unwrap());
    }

    #[test]
    fn what_is_large_is_unmapped_in_short_steps() {
        const BYTES: usize = 100 << 20;
        on_its_own_thread(|| {
            let start = filled(BYTES);
            let at_once = cpu_time(|| free(start, BYTES));
            assert!(!is_mapped(start) && !unmap_step());
            let _in_steps = UnmapsInSteps::begin();
            let start = filled(BYTES);
            let mut longest = cpu_time(|| free(start, BYTES));
            assert!(is_mapped(start));
            let mut steps = 1;
            loop {
                let mut more = false;
                longest = longest.max(cpu_time(|| more = unmap_step()));
                if !more {
                    break;
                }
                steps += 1;
                assert!(is_mapped(start) && waiting() == BYTES - (steps - 1) * STEP_BYTES);
            }
            assert_eq!((steps, waiting(), is_mapped(start)), (100, 0, false));
            println!("at once {at_once:?}, in steps of at most {longest:?}");
            assert!(longest < at_once / 4, "{longest:?} of {at_once:?}");
        });
    }

    #[test]
    fn whatever_is_freed_is_unmapped_once_and_within_the_bound() {
        on_its_own_thread(|| {
            let seed = crate::rt::random();
            println!("seed {seed}");
            let mut rng = crate::rt::Rng::with_seed(seed);
            let in_steps = UnmapsInSteps::begin();
            let mut last = null_mut();
            for _ in 0..200 {
                let bytes = crate::alloc::MAPPED_LEAST + rng.usize(..40 << 20);
                // SAFETY: the layout is not empty.
                last = unsafe { Allocator.alloc(layout(bytes)) };
                let before = waiting();
                free(last, bytes);
                let fits = before + bytes <= WAITING_MAX;
                assert_eq!(waiting(), before + if fits { bytes } else { 0 }, "seed {seed}");
                assert_eq!(is_mapped(last), fits, "seed {seed}");
                for _ in 0..rng.usize(..30) {
                    let more = unmap_step();
                    assert_eq!(more, waiting() > 0, "seed {seed}");
                }
            }
            drop(in_steps);
            assert_eq!((waiting(), is_mapped(last)), (0, false), "seed {seed}");
        });
    }
}
