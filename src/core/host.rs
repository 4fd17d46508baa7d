//! What a core sets in the kernel and the allocator: its CPU, short scheduler slices, and the
//! release of free memory.

use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Pins the calling thread to `cpu`. Returns the CPUs that it could use before.
///
/// # Errors
/// This process may not use `cpu`, or it is offline.
pub fn pin(cpu: usize) -> std::io::Result<CpuSet> {
    let before = sched_getaffinity(None)?;
    sched_setaffinity(None, &cpu_set(&[cpu]))?;
    Ok(before)
}

/// Pins the calling thread where [`Placement::pinned`](crate::rt::Placement::pinned) cannot.
/// Returns the CPUs for the blocking thread, which inherits the pin and is moved to them later.
pub(super) fn pin_by_hand(core_id: usize, spare_cpus: &[usize]) -> std::io::Result<CpuSet> {
    let allowed = pin(core_id)?;
    Ok(if spare_cpus.is_empty() { allowed } else { cpu_set(spare_cpus) })
}

fn cpu_set(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for cpu in cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU) {
        set.set(*cpu);
    }
    set
}

/// Scheduler slice of this thread and of each that it creates: how long it runs before another
/// ready thread gets its CPU. io-wq workers inherit it. With the scheduler's own slice of a
/// millisecond or more, a worker whose sync has ended waits on a busy core for the next tick, up to
/// 4 ms. A core that has its CPU for itself, as it should, pays nothing.
const SCHEDULER_SLICE: Duration = Duration::from_micros(100);

/// Sets [`SCHEDULER_SLICE`]. Linux 6.12 or newer (`sched_setattr(2)`, `sched_runtime`); older ones
/// ignore it.
#[expect(unsafe_code, reason = "no library has these calls")]
pub(super) fn set_short_slices() -> std::io::Result<()> {
    const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
    let done = |outcome| match outcome {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: the structure holds plain numbers, for which all zeros is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes up to SIZE bytes, the size of `attributes`; 0 is the calling
    // thread.
    done(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) })?;
    // A real-time policy, which an operator has set, has no slices.
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_runtime = SCHEDULER_SLICE.as_nanos() as u64;
    // SAFETY: the kernel reads `attributes.size` bytes, a value that it has written itself.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// Returns memory that silent connections have freed to the system. The allocator does so only
/// while it allocates, and a core full of silent connections does not allocate.
#[derive(Default)]
pub(super) struct IdleMemory {
    /// [`Conns::buffers_released`](crate::http::server::Conns::buffers_released) at the last
    /// sample, …
    sampled: u64,
    /// … and when memory was last returned.
    collected: u64,
}

impl IdleMemory {
    /// Fewer silent connections than this are not worth the time that returning memory takes: 2 ms
    /// for 10,000 of them.
    const WORTH: u64 = 64;

    /// To be called once a second with the number of buffers released so far. While many are
    /// released every second, their memory is soon in use again, and returning it would cost page
    /// faults.
    pub(super) fn sample(&mut self, buffers_released: u64) {
        let pending = buffers_released - self.collected;
        let lately = buffers_released - std::mem::replace(&mut self.sampled, buffers_released);
        if pending >= Self::WORTH && lately * 100 <= pending {
            self.collected = buffers_released;
            collect(false);
        }
    }
}

/// Makes this thread's allocator return free memory to the system, after a piece of work that used
/// much of it and is not repeated soon.
pub fn return_free_memory() {
    collect(true);
}

/// Unless `force`, memory that may soon be in use again is kept.
#[expect(unsafe_code, reason = "mimalloc has no safe interface to it")]
fn collect(force: bool) {
    // SAFETY: mi_collect takes any argument and may be called on any thread at any time.
    unsafe { libmimalloc_sys::mi_collect(force) }
}
