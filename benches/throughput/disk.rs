//! What the disk can do by itself on a core that is as busy as the server's: a thread there writes
//! a block past the page cache and syncs it, now and then, while the load goes on.
//!
//! It runs right after the measured window, with the same server, load, core and directory. So it
//! sees the noise that the server has just seen, and costs the measured requests nothing. Of the
//! servers of a round, the one that does not use its spool gives the reference: its core is busy
//! with the same requests, and the disk has no other work. Beside a server that syncs, a pair would
//! wait for that server's syncs, and the worse those were, the better the server would look.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::client;

const BLOCK: usize = 4096;
/// Blocks of the file, written over and over.
const BLOCKS: u64 = 1024;
/// Time between the end of a pair and the start of the next, from half to three halves of this: 500
/// pairs a second take 2 % of the core and of the disk. At random, so that they do not keep step
/// with the scheduler's ticks.
const PAUSE: Duration = Duration::from_millis(2);
/// Time slice of the thread that the scheduler is asked for, the shortest there is. The server asks
/// for as much for its io-wq workers, and for 200 µs for its core, so that a thread whose sync has
/// ended preempts the core and does not wait for the end of a longer slice.
const SLICE: Duration = Duration::from_micros(100);

/// p99 of a write of 4 KiB and its `fdatasync` over `time`, in microseconds, in a file of its own
/// in `directory`, by a thread on `core`.
pub fn sync_p99_us(core: usize, directory: &Path, time: Duration) -> Result<f64, String> {
    let directory = directory.to_owned();
    let pairs = std::thread::Builder::new()
        .name("bare-pair".into())
        .spawn(move || measure(core, &directory, time))
        .and_then(|thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        });
    match pairs {
        Ok(times) if times.is_empty() => Err("no time for a single sync".into()),
        Ok(times) => Ok(times.value_at_quantile(0.99) as f64 / 1e3),
        Err(error) => Err(format!("syncs cannot be measured: {error}")),
    }
}

fn measure(core: usize, directory: &Path, time: Duration) -> io::Result<Histogram<u64>> {
    let path = directory.join("bare-pairs");
    let mut file = std::fs::File::create(&path)?;
    file.write_all(&vec![0; BLOCK * BLOCKS as usize])?;
    file.sync_all()?;
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new().write(true).custom_flags(direct).open(&path)?;
    let bytes = vec![b'x'; 2 * BLOCK];
    let block = &bytes[bytes.as_ptr().align_offset(BLOCK)..][..BLOCK];
    let mut times =
        Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("bounds in order");
    client::pin(&[core])?;
    set_slice()?;
    let started = Instant::now();
    for number in 0.. {
        std::thread::sleep(PAUSE.mul_f64(0.5 + fastrand::f64()));
        if started.elapsed() > time {
            break;
        }
        let began = Instant::now();
        file.write_all_at(block, number % BLOCKS * BLOCK as u64)?;
        file.sync_data()?;
        times.saturating_record(began.elapsed().as_nanos() as u64);
    }
    Ok(times)
}

/// Asks for [`SLICE`]; kernels before 6.12 ignore it, from the server as well.
#[expect(unsafe_code, reason = "no library has this call")]
fn set_slice() -> io::Result<()> {
    // SAFETY: the structure holds plain numbers, for which all zeros is a value: the policy
    // SCHED_OTHER, nice 0.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    attributes.size = size_of::<libc::sched_attr>() as u32;
    attributes.sched_runtime = SLICE.as_nanos() as u64;
    // SAFETY: the kernel reads `attributes.size` bytes; 0 is the calling thread.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
