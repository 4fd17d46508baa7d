//! What a core sets in the kernel: its CPU.

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
