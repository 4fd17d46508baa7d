//! Large mappings that were freed on a thread with sockets. They are unmapped in steps between its
//! turns, because 100 MiB in one turn would take 10 ms.
//!
//! They form a list in their own memory, since whoever frees must not allocate. What waits in it is
//! in no budget any longer; [`WAITING_MAX`] bounds it.
//!
//! The kernel merges neighbouring mappings, and to unmap a part of a merged one takes one mapping
//! more: a process that has as many as it may (`vm.max_map_count`) cannot. The pages are returned
//! nevertheless, and the addresses stay in the list until they can be unmapped.
#![expect(unsafe_code, reason = "a list in memory that nobody owns any more")]

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::null_mut;

use rustix::io::Errno;
use rustix::mm::{Advice, madvise, munmap};

/// What a step unmaps: 0.1 ms.
const STEP_BYTES: usize = 1 << 20;

/// The largest page that a host may have (arm64): parts of a mapping begin at multiples of it.
/// Otherwise `munmap` would refuse them.
const PAGE_BYTES_MAX: usize = 64 << 10;

const _: () = assert!(STEP_BYTES.is_multiple_of(PAGE_BYTES_MAX));

/// Most bytes of one thread that wait. What is freed beyond them is unmapped at once. A step takes
/// less time than it takes to receive as much, so only many large bodies that end together get
/// there.
pub const WAITING_MAX: usize = 128 << 20;

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

/// Unmaps a part of what was freed on this thread. Returns whether more can be unmapped now.
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
            let in_steps = waiting.in_steps.get();
            if !in_steps {
                // What could not be unmapped when it was freed.
                while unmap_step() {}
            }
            let waits = in_steps && waiting.bytes.get() + self.bytes <= WAITING_MAX;
            // SAFETY: nobody uses it, as `new` demands.
            if waits || !unsafe { unmap_now(self.start, self.bytes) } {
                waiting.push(self);
            }
        });
    }
}

/// Returns the pages to the system, and if it can the addresses as well; `false` if not.
///
/// # Safety
/// `start` and `bytes` are a mapping, or an end of one, that nobody uses.
unsafe fn unmap_now(start: *mut u8, bytes: usize) -> bool {
    // SAFETY: the caller's promise.
    let Err(error) = (unsafe { munmap(start.cast(), bytes) }) else { return true };
    if cfg!(debug_assertions) && error != Errno::NOMEM {
        // An allocator must not unwind.
        std::process::abort();
    }
    // SAFETY: the caller's promise: nobody misses what is in these pages.
    let _or_they_stay = unsafe { madvise(start.cast(), bytes, Advice::LinuxDontNeed) };
    false
}

impl Unmapping {
    fn push(&self, mapping: FreedMapping) {
        let FreedMapping { start, bytes } = mapping;
        let freed = start.cast::<Freed>();
        self.bytes.set(self.bytes.get() + bytes);
        let next = self.first.replace(freed);
        // SAFETY: the mapping is writable, larger than a `Freed`, aligned to a page and nobody
        // else's.
        unsafe { freed.write(Freed { next, bytes }) };
    }

    /// There is one.
    #[cold]
    fn unmap_step(&self) -> bool {
        let first = self.first.get();
        // SAFETY: what is in the list was written by `push`, and only this thread uses it.
        let Freed { next, bytes } = unsafe { first.read() };
        let left = bytes.saturating_sub(STEP_BYTES).next_multiple_of(PAGE_BYTES_MAX);
        // SAFETY: the end of a mapping in the list, without its `Freed` unless all of it goes.
        if !unsafe { unmap_now(first.cast::<u8>().add(left), bytes - left) } {
            if left == 0 {
                // Its page was returned with the others, and is zero.
                // SAFETY: it is still mapped, and as in `push`.
                unsafe { first.write(Freed { next, bytes }) };
            }
            return false;
        }
        self.bytes.set(self.bytes.get() - (bytes - left));
        if left == 0 {
            self.first.set(next);
        } else {
            // SAFETY: the start of the mapping is still there, and as in `push`.
            unsafe { first.write(Freed { next, bytes: left }) };
        }
        !self.first.get().is_null()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::alloc::{GlobalAlloc, Layout};
    use std::time::Duration;

    use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};

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

    /// A kernel with larger pages refuses to unmap from elsewhere.
    #[test]
    fn steps_end_where_the_pages_of_any_kernel_do() {
        on_its_own_thread(|| {
            let _in_steps = UnmapsInSteps::begin();
            for beside in [1, PAGE_BYTES, 3 * PAGE_BYTES + 5, PAGE_BYTES_MAX, PAGE_BYTES_MAX + 1] {
                let bytes = 4 * STEP_BYTES + beside;
                free(filled(bytes), bytes);
                while unmap_step() {
                    assert!(waiting().is_multiple_of(PAGE_BYTES_MAX), "{bytes}: {}", waiting());
                }
                assert_eq!(waiting(), 0, "{bytes}");
            }
        });
    }

    /// Runs an ignored test in a process of its own.
    pub(in crate::alloc) fn run_alone(test: &str) {
        let this = std::env::current_exe().unwrap();
        let args = ["--ignored", "--exact", test, "--nocapture", "--test-threads=1"];
        let ended = std::process::Command::new(this).args(args).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    }

    /// Alone, because others' allocations would fail.
    #[test]
    fn nothing_is_lost_without_room_for_another_mapping() {
        run_alone("alloc::freed::tests::at_the_limit_of_mappings");
    }

    #[test]
    #[ignore = "takes every mapping of its process"]
    fn at_the_limit_of_mappings() {
        on_its_own_thread(|| {
            const BYTES: usize = 4 * STEP_BYTES;
            let map = |bytes, access| {
                let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
                // SAFETY: a new mapping touches no other memory.
                unsafe { mmap_anonymous(null_mut(), bytes, access, flags).unwrap().cast::<u8>() }
            };
            // The middle of a larger one, which can only be unmapped by making two of it.
            let middle = || {
                // SAFETY: it is within the mapping.
                let start =
                    unsafe { map(3 * BYTES, ProtFlags::READ | ProtFlags::WRITE).add(BYTES) };
                // SAFETY: as above.
                unsafe { start.write_bytes(1, BYTES) };
                start
            };
            let is_resident = |at: *mut u8| {
                let mut there = 0_u8;
                // SAFETY: the kernel writes one byte for the one page.
                let known = unsafe { libc::mincore(at.cast(), PAGE_BYTES, &raw mut there) };
                known == 0 && there & 1 == 1
            };
            let (at_once, in_steps) = (middle(), middle());
            let pages = 4 << 20;
            let filler = map(pages * PAGE_BYTES, ProtFlags::empty());
            // Every second page is a mapping of its own.
            let full = (0..pages).step_by(2).any(|page| {
                // SAFETY: within the filler, which nobody uses.
                unsafe {
                    mprotect(filler.add(page * PAGE_BYTES).cast(), PAGE_BYTES, MprotectFlags::READ)
                        .is_err()
                }
            });
            // SAFETY: nobody uses these.
            let free = |start| unsafe { FreedMapping::new(start, BYTES) }.unmap();
            free(at_once);
            let inside = at_once.wrapping_add(BYTES / 2);
            let kept = (is_mapped(at_once), is_resident(inside), waiting());
            let steps = UnmapsInSteps::begin();
            free(in_steps);
            let more = unmap_step();
            let last = in_steps.wrapping_add(BYTES - PAGE_BYTES);
            let stepped = (more, is_mapped(last), is_resident(last), waiting());
            // SAFETY: nobody uses it.
            unsafe { munmap(filler.cast(), pages * PAGE_BYTES).unwrap() };
            assert!(full, "the process may have more mappings");
            assert_eq!(kept, (true, false, BYTES));
            assert_eq!(stepped, (false, true, false, 2 * BYTES));
            drop(steps);
            assert_eq!((is_mapped(at_once), is_mapped(in_steps), waiting()), (false, false, 0));
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
