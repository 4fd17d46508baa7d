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

/// The workers whose slices are set.
struct ShortWorkers {
    /// Numbers of their threads, ascending.
    threads: Vec<i32>,
    /// When the threads were listed last.
    listed: Option<Instant>,
}

#[expect(clippy::disallowed_types, reason = "not on a core, and nobody waits for it")]
static SHORT: std::sync::Mutex<ShortWorkers> =
    std::sync::Mutex::new(ShortWorkers { threads: Vec::new(), listed: None });

/// Sets the slices of those io-wq workers of this process whose slices it has not set before, at
/// most every [`LIST_EVERY`]. Reads files, so it must not run on a core.
///
/// # Errors
/// The threads cannot be listed, or the kernel refuses it for some worker; the others have their
/// slices.
pub fn shorten_worker_slices() -> io::Result<()> {
    // Whoever holds it does what is to be done.
    let Ok(mut short) = SHORT.try_lock() else { return Ok(()) };
    if short.listed.is_some_and(|at| since(at) < LIST_EVERY) {
        return Ok(());
    }
    let threads = list_threads()?;
    short.listed = Some(now());
    shorten_new(&mut short.threads, &threads, |thread| match is_worker(thread) {
        true => set_slice(thread, WORKER_SLICE).map(|()| true),
        false => Ok(false),
    })
}

/// Calls `shorten` for those of `threads` (ascending) that are not in `short`, the threads whose
/// slices are set. It returns false for one that is no worker, or none yet: a new worker has its
/// creator's name until it runs. Afterwards `short` has those of `threads` whose slices are set.
///
/// # Errors
/// The first error of `shorten`; the other threads got their turn.
fn shorten_new(
    short: &mut Vec<i32>,
    threads: &[i32],
    mut shorten: impl FnMut(i32) -> io::Result<bool>,
) -> io::Result<()> {
    let mut first_error = Ok(());
    let has_it = |thread: &i32| {
        short.binary_search(thread).is_ok()
            || shorten(*thread).unwrap_or_else(|error| {
                // It may have ended by now.
                if first_error.is_ok() && error.raw_os_error() != Some(libc::ESRCH) {
                    first_error = Err(error);
                }
                false
            })
    };
    *short = threads.iter().copied().filter(has_it).collect();
    first_error
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
    fn every_worker_gets_its_slice_whatever_happens_to_others() {
        const EPERM: Result<bool, i32> = Err(libc::EPERM);
        const GONE: Result<bool, i32> = Err(libc::ESRCH);
        type Round<'a> = (&'a [(i32, Result<bool, i32>)], Option<i32>, &'a [i32]);
        // In each round the threads and what becomes of them if they are asked, the error, and those
        // that have their slices then.
        let rounds: [Round<'_>; 7] = [
            (&[(1, Ok(false)), (5, EPERM), (6, Ok(true))], Some(libc::EPERM), &[6]),
            // What was refused is tried again, and so is what was no worker.
            (&[(1, Ok(true)), (5, EPERM), (6, EPERM)], Some(libc::EPERM), &[1, 6]),
            (&[(1, EPERM), (5, Ok(true)), (6, EPERM)], None, &[1, 5, 6]),
            // One that has ended is no error, nor is it known any longer.
            (&[(1, EPERM), (6, EPERM), (7, GONE), (8, Ok(true))], None, &[1, 6, 8]),
            (&[(5, Ok(false)), (7, Ok(true)), (8, EPERM)], None, &[7, 8]),
            (&[(2, Err(libc::EINVAL)), (3, EPERM), (4, Ok(true))], Some(libc::EINVAL), &[4]),
            (&[], None, &[]),
        ];
        let mut short = Vec::new();
        for (number, (threads, error, expected)) in rounds.into_iter().enumerate() {
            let listed: Vec<i32> = threads.iter().map(|(thread, _)| *thread).collect();
            let known = short.clone();
            let done = shorten_new(&mut short, &listed, |thread| {
                assert!(!known.contains(&thread), "{number}: {thread} has its slice");
                let (_, outcome) = threads.iter().find(|(of, _)| *of == thread).unwrap();
                outcome.map_err(io::Error::from_raw_os_error)
            });
            assert_eq!(done.err().and_then(|error| error.raw_os_error()), error, "{number}");
            assert_eq!(short, expected, "{number}");
        }
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
                    || SHORT.lock().unwrap().listed.is_some_and(|at| at > before + LIST_EVERY);
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
