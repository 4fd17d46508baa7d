//! The two clocks beside [`rt::now`](crate::rt::now) that turns are measured with: the CPU's counter
//! of ticks, and the time that a thread has run.
#![expect(unsafe_code, reason = "no library reads the counter or this clock")]

use std::time::Duration;

/// A counter that runs at a constant rate and takes no call.
#[inline]
#[cfg(target_arch = "x86_64")]
pub(super) fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and it has no other effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[inline]
#[cfg(target_arch = "aarch64")]
pub(super) fn ticks() -> u64 {
    let ticks;
    // SAFETY: Linux lets every process read this register; reading has no other effect.
    unsafe {
        core::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack));
    }
    ticks
}

#[inline]
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) fn ticks() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which `time` is.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// For how long this thread has run since it began. One system call.
pub(super) fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which `time` is.
    let outcome = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    debug_assert_eq!(outcome, 0, "every thread has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
