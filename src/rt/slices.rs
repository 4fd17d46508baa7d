//! Scheduler slices: how long a thread runs before another ready thread gets its CPU.
//!
//! The io-wq workers of a core run its syncs, and where no CPU is spare they run on the core's own.
//! A worker has microseconds of work: it hands a sync to the disk, and later its end to the core.
//! But when it wakes, the scheduler lets the running thread finish the shortest slice of the two,
//! and nothing looks at the clock before the next tick, which may be 4 ms away: that was the p99.9
//! of a spooled request. Only a thread with a *shorter* slice than the running one's may preempt it
//! at once (`PREEMPT_SHORT`). So workers get [`WORKER_SLICE`] and cores [`CORE_SLICE`].
//!
//! Slices can be set since Linux 6.12 (`sched_setattr(2)`, `sched_runtime`); older kernels ignore
//! it. New threads, workers too, inherit the slice of the thread that creates them.
#![expect(unsafe_code, reason = "no library has these calls")]

use std::io;
use std::time::{Duration, Instant};

use super::{now, since};

/// The shortest slice that the scheduler grants.
const WORKER_SLICE: Duration = Duration::from_micros(100);
/// Longer than [`WORKER_SLICE`], and short enough that a core does not hold up others for long. A
/// core that has its CPU for itself, as it should, pays nothing for it.
const CORE_SLICE: Duration = Duration::from_micros(200);

/// Sets the slice of the calling thread to a core's.
///
/// # Errors
/// The kernel refuses it.
pub fn set_core_slice() -> io::Result<()> {
    set_slice(0, CORE_SLICE)
}

/// Names of io-wq workers begin like this (`io_uring/io-wq.c`).
const WORKER_NAME: &[u8] = b"iou-wrk-";
/// Most often that the threads are listed.
const LIST_EVERY: Duration = Duration::from_millis(500);

/// What was listed last.
struct ThreadList {
    /// Numbers of the threads that were seen, ascending.
    threads: Vec<i32>,
    at: Option<Instant>,
}

#[expect(clippy::disallowed_types, reason = "not on a core, and nobody waits for it")]
static LISTED: std::sync::Mutex<ThreadList> =
    std::sync::Mutex::new(ThreadList { threads: Vec::new(), at: None });

/// Sets the slices of those io-wq workers of this process that it has not seen before, at most every
/// [`LIST_EVERY`]. Reads files, so it must not run on a core.
///
/// # Errors
/// The threads cannot be listed, or the kernel refuses it.
pub fn shorten_worker_slices() -> io::Result<()> {
    // Whoever holds it does what is to be done.
    let Ok(mut listed) = LISTED.try_lock() else { return Ok(()) };
    if listed.at.is_some_and(|at| since(at) < LIST_EVERY) {
        return Ok(());
    }
    let threads = list_threads()?;
    for thread in threads.iter().filter(|thread| listed.threads.binary_search(thread).is_err()) {
        match is_worker(*thread).then(|| set_slice(*thread, WORKER_SLICE)) {
            // It may have ended by now.
            Some(Err(error)) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
            _ => {}
        }
    }
    *listed = ThreadList { threads, at: Some(now()) };
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "not on a core")]
fn list_threads() -> io::Result<Vec<i32>> {
    let mut threads = Vec::new();
    for thread in std::fs::read_dir("/proc/self/task")? {
        threads.extend(thread?.file_name().to_str().and_then(|number| number.parse::<i32>().ok()));
    }
    threads.sort_unstable();
    Ok(threads)
}

#[expect(clippy::disallowed_methods, reason = "not on a core")]
fn is_worker(thread: i32) -> bool {
    let name = std::fs::read(format!("/proc/self/task/{thread}/comm"));
    name.is_ok_and(|name| name.starts_with(WORKER_NAME))
}

/// Sets the slice of `thread`; 0 is the calling one.
fn set_slice(thread: i32, slice: Duration) -> io::Result<()> {
    let mut attributes = attributes(thread)?;
    // A real-time policy, which an operator has set, has no slices.
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_runtime = slice.as_nanos() as u64;
    // SAFETY: the kernel reads `attributes.size` bytes, a value that it has written itself.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, thread, &raw const attributes, 0) })
}

fn attributes(thread: i32) -> io::Result<libc::sched_attr> {
    const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
    // SAFETY: the structure holds plain numbers, for which all zeros is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes up to SIZE bytes, the size of `attributes`.
    done(unsafe { libc::syscall(libc::SYS_sched_getattr, thread, &raw mut attributes, SIZE, 0) })?;
    Ok(attributes)
}

fn done(outcome: i64) -> io::Result<()> {
    match outcome {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Net;
    use crate::rt;

    /// The slice of `thread`, 0 where the kernel has none; `None` once it has ended.
    fn slice_of(thread: i32) -> Option<Duration> {
        Some(Duration::from_nanos(attributes(thread).ok()?.sched_runtime))
    }

    #[test]
    fn workers_have_shorter_slices_than_cores() {
        let core = std::thread::spawn(|| {
            set_core_slice().unwrap();
            rt::run_test(async {
                let near = glommio::io::DmaFile::create(tempfile::NamedTempFile::new().unwrap())
                    .await
                    .unwrap();
                let far = tempfile::tempfile().unwrap();
                let bytes = near.alloc_dma_buffer(4096);
                Net::here().unwrap().file(far.into()).write_synced(bytes, 0).await.unwrap();
                let workers =
                    list_threads().unwrap().into_iter().filter(|thread| is_worker(*thread));
                let workers: Vec<i32> = workers.collect();
                assert!(!workers.is_empty(), "a sync is a worker's");
                let before = now();
                let listed =
                    || LISTED.lock().unwrap().at.is_some_and(|at| at > before + LIST_EVERY);
                while !listed() {
                    shorten_worker_slices().unwrap();
                    rt::sleep(Duration::from_millis(20)).await;
                }
                let slices = workers.into_iter().filter_map(slice_of);
                assert!(slices.into_iter().all(|slice| slice.is_zero() || slice == WORKER_SLICE));
                near.close().await.unwrap();
            });
            slice_of(0).unwrap()
        });
        let core = core.join().unwrap();
        assert!(core.is_zero() || core == CORE_SLICE, "{core:?}");
    }
}
