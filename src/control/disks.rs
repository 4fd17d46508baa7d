//! Looks at the free space of the disks of `SPOOL_DIR` and `DEAD_LETTER_DIR`, on a thread of its own:
//! a disk that does not answer must hold up neither a scrape nor a dead letter.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::background;
use crate::config::Config;
use crate::metrics::Cell64;
use crate::rt;

/// How often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A disk that has not answered for this long is silent.
const SILENT_FROM: Duration = Duration::from_secs(15);
/// After this silence nothing is known any longer: what was free then is not what is free now.
const STALE_AFTER: Duration = Duration::from_secs(30);

/// The disk of one directory, as it was when it answered last.
///
/// Written by the thread that looks, and read by scrapes.
#[derive(Debug)]
pub(super) struct Disk {
    /// The value of the metrics' label.
    pub(super) directory: &'static str,
    path: PathBuf,
    /// Bytes that this user may still write.
    free: Cell64,
    size: Cell64,
    made: Instant,
    /// When it answered last, in milliseconds after `made`.
    answered_ms: Cell64,
}

impl Disk {
    fn new(directory: &'static str, path: &Path) -> Disk {
        let (free, size, answered_ms) = Default::default();
        Disk { directory, path: path.to_owned(), free, size, made: rt::now(), answered_ms }
    }

    /// Blocks.
    fn look(&self) {
        if let Ok(disk) = rustix::fs::statvfs(&self.path) {
            self.free.set(disk.f_bavail.saturating_mul(disk.f_frsize));
            self.size.set(disk.f_blocks.saturating_mul(disk.f_frsize));
            self.answered_ms.set(rt::since(self.made).as_millis() as u64);
        }
    }

    /// Free bytes and size; `None` if it has not answered for [`STALE_AFTER`], or never.
    pub(super) fn free_and_size(&self) -> Option<(u64, u64)> {
        self.free_and_size_at(rt::now())
    }

    fn free_and_size_at(&self, now: Instant) -> Option<(u64, u64)> {
        let size = self.size.value();
        let is_known = size > 0 && self.since_answer(now) < STALE_AFTER;
        is_known.then(|| (self.free.value(), size))
    }

    /// For how long it has not answered; zero below [`SILENT_FROM`].
    pub(super) fn silence(&self) -> Duration {
        self.silence_at(rt::now())
    }

    fn silence_at(&self, now: Instant) -> Duration {
        let since = self.since_answer(now);
        if since < SILENT_FROM { Duration::ZERO } else { since }
    }

    fn since_answer(&self, now: Instant) -> Duration {
        let answered = self.made + Duration::from_millis(self.answered_ms.value());
        now.saturating_duration_since(answered)
    }
}

/// Looks now and from then on. To be called once the directories are made.
///
/// # Errors
/// The thread cannot be created.
#[expect(clippy::disallowed_methods, reason = "the thread has nothing else to do")]
pub(super) fn watch(config: &Config) -> io::Result<Arc<[Disk]>> {
    let spool = config.spool.as_ref().map(|spool| Disk::new("spool", &spool.dir));
    let dead_letter = Disk::new("dead_letter", &config.dead_letter_dir);
    let disks: Arc<[Disk]> = spool.into_iter().chain([dead_letter]).collect();
    let watched = disks.clone();
    background::spawn("millrace-disks", move || {
        loop {
            watched.iter().for_each(Disk::look);
            std::thread::sleep(LOOK_EVERY);
        }
    })?;
    Ok(disks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_a_size_until_it_has_been_silent_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new("spool", dir.path());
        assert_eq!(disk.free_and_size(), None);
        disk.look();
        let (free, size) = disk.free_and_size().unwrap();
        assert!(free <= size && size > 0, "{free} {size}");
        // It answers no longer; one that hangs does not even come back.
        drop(dir);
        disk.look();
        let answered = disk.made + Duration::from_millis(disk.answered_ms.value());
        for (seconds, silent, is_known) in
            [(0, 0, true), (14, 0, true), (15, 15, true), (29, 29, true), (30, 30, false)]
        {
            let now = answered + Duration::from_secs(seconds);
            assert_eq!(disk.silence_at(now), Duration::from_secs(silent));
            assert_eq!(disk.free_and_size_at(now), is_known.then_some((free, size)));
        }
    }
}
