//! What the disk can do by itself: a block written past the page cache and synced, again and again.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

const BLOCK: usize = 4096;
/// Blocks of the file, written over and over.
const BLOCKS: u64 = 1024;
/// A p99 of fewer would be a matter of luck.
const SYNCS: u64 = 3_000;
/// Should the disk be slow, this long and no longer.
const TIME_MAX: Duration = Duration::from_secs(3);

/// p99 of a write of 4 KiB and its `fdatasync`, in microseconds, where servers have their
/// directories.
pub fn sync_p99_us() -> Result<f64, String> {
    measure().map_err(|error| format!("syncs cannot be measured: {error}"))
}

fn measure() -> io::Result<f64> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("syncs");
    let mut file = std::fs::File::create(&path)?;
    file.write_all(&vec![0; BLOCK * BLOCKS as usize])?;
    file.sync_all()?;
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new().write(true).custom_flags(direct).open(&path)?;
    let bytes = vec![b'x'; 2 * BLOCK];
    let block = &bytes[bytes.as_ptr().align_offset(BLOCK)..][..BLOCK];
    let mut times =
        Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("bounds in order");
    let started = Instant::now();
    for number in 0..SYNCS {
        let began = Instant::now();
        file.write_all_at(block, number % BLOCKS * BLOCK as u64)?;
        file.sync_data()?;
        times.saturating_record(began.elapsed().as_nanos() as u64);
        if started.elapsed() > TIME_MAX {
            break;
        }
    }
    Ok(times.value_at_quantile(0.99) as f64 / 1e3)
}
