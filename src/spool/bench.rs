//! The disk of a spool, measured as the writer uses it: segments whose space is written, direct
//! I/O, and each write with its sync as one submission, one at a time per writer.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::GROUP_BYTES_MAX;
use super::disk::{DiskThread, SpoolDisk};
use super::health::DiskHealth;
use super::segment::{Segment, remove_if_there};
use crate::metrics;
use crate::rt;

/// Bytes of each writer's file: so many commit groups of the largest shared size.
pub const SEGMENT_BYTES: u64 = 16 * GROUP_BYTES_MAX as u64;
/// Most writes of one writer in one measurement …
const WRITES_MAX: usize = 2_000;
/// … and longest time for it, so that a slow disk does not take minutes.
const TIME_MAX: Duration = Duration::from_secs(2);

/// Sizes of the commit groups that are measured: one small request alone, what requests share at
/// load, and the largest that they share.
pub const GROUP_BYTES: [usize; 4] = [4 << 10, 32 << 10, 256 << 10, GROUP_BYTES_MAX];

/// The files of the measurement. They have no names, so nothing is left behind however it ends.
pub struct SpoolBench {
    segments: Vec<Rc<Segment>>,
}

/// How long the syncs of one measurement took; at least one per writer.
#[derive(Clone, Debug)]
pub struct SyncTimes {
    /// Writers at the same time, each with its own file, like the cores of a server.
    pub writers: usize,
    /// Bytes of each write.
    pub bytes: usize,
    /// Shortest first.
    sorted: Vec<Duration>,
    elapsed: Duration,
}

impl SpoolBench {
    /// Creates a file for each of `writers` in `dir` and writes all of it.
    ///
    /// # Errors
    /// The file system has no direct I/O or no space, or refuses otherwise.
    pub async fn prepare(dir: &Path, writers: usize) -> io::Result<SpoolBench> {
        let thread = DiskThread::spawn("millrace-spool")?;
        let mut segments = Vec::new();
        for writer in 0..writers {
            let health = DiskHealth::new(&metrics::cells(1)[0], dir.to_owned());
            let disk = Rc::new(SpoolDisk::new(thread.clone(), health));
            let path = dir.join(format!(".millrace-bench-{}-{writer}", std::process::id()));
            // Of an earlier process with this number, which was killed before it had removed it.
            let stale = path.clone();
            thread.run(move || remove_if_there(&stale)).await?;
            let made = Segment::create(&path, SEGMENT_BYTES, 0, disk).await;
            // A full disk refuses only after the file is there.
            thread.run(move || remove_if_there(&path)).await?;
            let segment = made?;
            segment.prepare_first(SEGMENT_BYTES).await?;
            segments.push(Rc::new(segment));
        }
        Ok(SpoolBench { segments })
    }

    /// Has the first `writers` write `bytes`, a multiple of the block size, again and again.
    ///
    /// # Errors
    /// The disk refused a write or a sync.
    pub async fn measure(&self, writers: usize, bytes: usize) -> io::Result<SyncTimes> {
        let began = rt::now();
        let end = began + TIME_MAX;
        let writing: Vec<_> = self.segments[..writers]
            .iter()
            .map(|segment| rt::spawn(write_until(segment.clone(), bytes, end)))
            .collect();
        let mut sorted = Vec::new();
        for times in writing {
            sorted.extend(times.await?);
        }
        let elapsed = rt::since(began);
        sorted.sort_unstable();
        Ok(SyncTimes { writers, bytes, sorted, elapsed })
    }
}

async fn write_until(
    segment: Rc<Segment>,
    bytes: usize,
    end: Instant,
) -> io::Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(WRITES_MAX);
    let mut at = 0;
    loop {
        let mut buffer = segment.buffer(bytes);
        // Not zeros, which some disks do not store.
        buffer.as_bytes_mut().fill(times.len() as u8 | 1);
        let began = rt::now();
        segment.write_synced(buffer, at).await?;
        let done = rt::now();
        times.push(done - began);
        if times.len() == WRITES_MAX || done >= end {
            return Ok(times);
        }
        at += bytes as u64;
        if at + bytes as u64 > segment.bytes() {
            at = 0;
        }
    }
}

impl SyncTimes {
    /// Number of writes.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The time that the share `q` of the writes did not exceed; `1.0` is the longest.
    pub fn quantile(&self, q: f64) -> Duration {
        let at = (q * self.sorted.len() as f64).ceil() as usize;
        self.sorted[at.clamp(1, self.sorted.len()) - 1]
    }

    /// Writes per second of all writers together.
    pub fn rate(&self) -> f64 {
        self.sorted.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// Bytes per second of all writers together.
    pub fn bandwidth(&self) -> f64 {
        self.rate() * self.bytes as f64
    }

    /// As measured by nobody, for tests of what is made of it.
    #[cfg(test)]
    pub fn made_up(writers: usize, bytes: usize, mut times: Vec<Duration>) -> SyncTimes {
        times.sort_unstable();
        let elapsed = times.iter().sum::<Duration>() / writers as u32;
        SyncTimes { writers, bytes, sorted: times, elapsed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_written_and_no_file_is_left() {
        let dir = tempfile::tempdir().unwrap();
        rt::run_test(async {
            let bench = SpoolBench::prepare(dir.path(), 2).await.unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
            for bytes in GROUP_BYTES {
                for segment in &bench.segments {
                    let end = rt::now();
                    let times = write_until(segment.clone(), bytes, end).await.unwrap();
                    assert_eq!(times.len(), 1, "the time was over");
                }
            }
            let times = bench.measure(2, GROUP_BYTES[0]).await.unwrap();
            assert!(times.count() >= 2 && times.quantile(0.0) > Duration::ZERO);
            assert!(times.quantile(0.5) <= times.quantile(0.99));
            assert_eq!(times.quantile(1.0), *times.sorted.last().unwrap());
        });
    }

    #[test]
    fn a_file_of_an_earlier_process_is_not_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let name = format!(".millrace-bench-{}-1", std::process::id());
        std::fs::write(dir.path().join(name), "").unwrap();
        rt::run_test(async {
            SpoolBench::prepare(dir.path(), 2).await.unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        });
    }

    #[test]
    fn quantiles_are_times_that_occurred() {
        let millis = |ms: &[u64]| ms.iter().map(|ms| Duration::from_millis(*ms)).collect();
        for (times, q, expected) in [
            (millis(&[7]), 0.5, 7),
            (millis(&[3, 1, 2]), 0.5, 2),
            (millis(&[3, 1, 2]), 0.99, 3),
            (millis(&[3, 1, 2]), 0.0, 1),
            ((1..=100).map(Duration::from_millis).collect(), 0.99, 99),
        ] {
            let made = SyncTimes::made_up(1, 4096, times);
            assert_eq!(made.quantile(q), Duration::from_millis(expected), "{q}");
        }
        let two = SyncTimes::made_up(2, 1000, millis(&[10, 10, 10, 10]));
        assert_eq!((two.rate().round(), two.bandwidth().round()), (200.0, 200_000.0));
    }
}
