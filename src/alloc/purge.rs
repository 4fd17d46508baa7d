//! When free memory is returned to the system: on a thread on which nobody waits.
//!
//! mimalloc by itself does it within any allocation of any thread, all that has been free for a
//! second at once: 200 MB took 20 to 50 ms. Here it never does, and [`return_free_memory`] is called
//! for it.
#![expect(unsafe_code, reason = "mimalloc has no safe interface to it")]

use std::alloc::{GlobalAlloc, Layout};

use mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 3.3, for which its crate has no name: how long free memory is
/// kept, in milliseconds. `Cargo.toml` names the exact version, because another one may have other
/// numbers.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// A year. mimalloc multiplies it by up to 10.
const NEVER_MS: std::ffi::c_long = 365 * 24 * 60 * 60 * 1000;

/// From now on, no allocation returns free memory to the system. To be called when the process
/// starts.
pub fn return_no_memory_while_allocating() {
    // SAFETY: options are atomic integers that may be set at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, NEVER_MS) };
}

/// Returns to the system what is free in the arenas, which all threads share, and what this thread
/// has free. What other threads keep for their next allocations stays. Takes 0.1 ms per MiB, so no
/// core may call it.
pub fn return_free_memory() {
    let layout = Layout::new::<u64>();
    // SAFETY: an allocation of a layout that is not empty is freed. mimalloc does nothing below on
    // a thread that has never allocated. `mi_collect` may be called on any thread at any time.
    unsafe {
        MiMalloc.dealloc(MiMalloc.alloc(layout), layout);
        libmimalloc_sys::mi_collect(true);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::alloc::PAGE_BYTES;
    use crate::alloc::freed::tests::{cpu_time, run_alone};

    const BUFFER: Layout = Layout::new::<[u8; 16 << 10]>();
    const BUFFERS: usize = 12_000;

    /// How many of these pages are in memory.
    fn resident(pages: &[usize]) -> usize {
        let is_resident = |at: &&usize| {
            let mut there = 0_u8;
            // SAFETY: the kernel writes one byte for the one page, or says that it is not mapped.
            let known =
                unsafe { libc::mincore(**at as *mut libc::c_void, PAGE_BYTES, &raw mut there) };
            known == 0 && there & 1 == 1
        };
        pages.iter().filter(is_resident).count()
    }

    /// Buffers that are filled and freed, between others that are kept.
    fn freed_buffers() -> Vec<usize> {
        // SAFETY: each allocation is written within its layout and freed once, but for the small
        // ones.
        unsafe {
            let buffers: Vec<*mut u8> = (0..BUFFERS)
                .map(|_| {
                    let buffer = MiMalloc.alloc(BUFFER);
                    buffer.write_bytes(1, BUFFER.size());
                    MiMalloc.alloc(Layout::new::<[u8; 100]>()).write(1);
                    buffer
                })
                .collect();
            buffers.iter().for_each(|buffer| MiMalloc.dealloc(*buffer, BUFFER));
            buffers.iter().map(|at| at.addr().next_multiple_of(PAGE_BYTES)).collect()
        }
    }

    /// Alone, because others' allocations would take what is free before it is looked at.
    #[test]
    fn free_memory_is_returned_by_another_thread_and_in_no_allocation() {
        run_alone("alloc::purge::tests::what_is_free_in_a_process");
    }

    #[test]
    #[ignore = "looks at the memory of its process"]
    fn what_is_free_in_a_process() {
        return_no_memory_while_allocating();
        let pages = freed_buffers();
        assert!(resident(&pages) > BUFFERS * 9 / 10);
        // mimalloc's own delay.
        std::thread::sleep(Duration::from_millis(1_100));
        let mut longest = Duration::ZERO;
        for round in 0..30_000 {
            // SAFETY: the layout is not empty, and what is allocated is freed.
            longest = longest.max(cpu_time(|| unsafe {
                let layout = Layout::from_size_align_unchecked(48 + round % 1_000, 1);
                MiMalloc.dealloc(MiMalloc.alloc(layout), layout);
            }));
        }
        assert!(resident(&pages) > BUFFERS * 9 / 10, "no allocation returns it");
        assert!(longest < Duration::from_millis(1), "{longest:?}");
        std::thread::spawn(return_free_memory).join().unwrap();
        assert!(resident(&pages) < BUFFERS / 10, "{} pages are left", resident(&pages));
    }
}
