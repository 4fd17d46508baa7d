//! What a core asks of the kernel and the allocator: its CPU, short scheduler slices, and memory given back.

use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Pins the calling thread to `cpu`; gives the CPUs that it could use before.
///
/// # Errors
/// `cpu` is not one that this process may use, or went offline.
pub fn pin(cpu: usize) -> std::io::Result<CpuSet> {
    let before = sched_getaffinity(None)?;
    sched_setaffinity(None, &cpu_set(&[cpu]))?;
    Ok(before)
}

/// What [`Placement::pinned`](crate::rt::Placement::pinned) would do, by hand, where that cannot: the blocking thread
/// inherits the pin, and is released from it later.
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

/// How long this thread, and each that it makes, may run on before another that has become ready gets its CPU. The kernel's
/// workers inherit it: with the scheduler's own slice of a millisecond or more, one that has seen a sync end waits on a busy
/// core for the next tick, up to 4 ms. Whoever has that CPU for itself, as a core should, pays nothing.
const TURN: Duration = Duration::from_micros(100);

/// Sets [`TURN`]; Linux 6.12 or newer (`sched_setattr(2)`, `sched_runtime`), older ones ignore it.
#[expect(unsafe_code, reason = "no library has these calls")]
pub(super) fn take_short_turns() -> std::io::Result<()> {
    const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
    let done = |outcome| match outcome {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: plain numbers, for which all zeros is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes up to SIZE bytes, which are there; 0 is the calling thread.
    done(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) })?;
    // A real-time policy that an operator has given has no slices.
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_runtime = TURN.as_nanos() as u64;
    // SAFETY: the kernel reads `size` bytes, which it has filled in itself.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// Sees to it that what silent connections have given back reaches the system: the allocator looks for free memory only
/// while it is asked for some, which on a core full of silent connections nobody does.
#[derive(Default)]
pub(super) struct IdleMemory {
    /// [`Conns::buffers_released`](crate::http::server::Conns::buffers_released) at the last look, and when the allocator was last told.
    seen: u64,
    told: u64,
}

impl IdleMemory {
    /// Fewer silent connections than this are not worth the time it takes: 2 ms for 10,000 of them.
    const WORTH: u64 = 64;

    /// Once a second, until then `buffers_released` connections have fallen silent. While many do so every second the memory
    /// is in use again at once, and giving it back would cost page faults.
    pub(super) fn sample(&mut self, buffers_released: u64) {
        let pending = buffers_released - self.told;
        let lately = buffers_released - std::mem::replace(&mut self.seen, buffers_released);
        if pending >= Self::WORTH && lately * 100 <= pending {
            self.told = buffers_released;
            collect();
        }
    }
}

/// Lets this thread's allocator give back what is free.
#[expect(unsafe_code, reason = "mimalloc has no safe interface to it")]
fn collect() {
    // SAFETY: mi_collect has no arguments that could be wrong and may be called on any thread at any time.
    unsafe { libmimalloc_sys::mi_collect(false) }
}
