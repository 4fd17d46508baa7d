//! What a core sets in the kernel and the allocator: its CPU, and the release of free memory.

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
