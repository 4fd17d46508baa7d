//! Looks at the free space of the disks of `SPOOL_DIR` and `DEAD_LETTER_DIR`, on a thread of its own:
//! a disk that does not answer must hold up neither a scrape nor a dead letter.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::background;
use crate::config::Config;
use crate::metrics::Cell64;

/// How often.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The disk of one directory, as it was when it answered last.
#[derive(Debug)]
pub(super) struct Disk {
    /// The value of the metrics' label.
    pub(super) directory: &'static str,
    path: PathBuf,
    /// Bytes that this user may still write.
    free: Cell64,
    size: Cell64,
}

impl Disk {
    fn new(directory: &'static str, path: &Path) -> Disk {
        let (free, size) = Default::default();
        Disk { directory, path: path.to_owned(), free, size }
    }

    /// Blocks.
    fn look(&self) {
        if let Ok(disk) = rustix::fs::statvfs(&self.path) {
            self.free.set(disk.f_bavail.saturating_mul(disk.f_frsize));
            self.size.set(disk.f_blocks.saturating_mul(disk.f_frsize));
        }
    }

    /// Free bytes and size; `None` if it has never answered.
    pub(super) fn free_and_size(&self) -> Option<(u64, u64)> {
        let size = self.size.value();
        (size > 0).then(|| (self.free.value(), size))
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
    fn a_disk_has_a_size_and_what_is_gone_keeps_its_last_one() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new("spool", dir.path());
        assert_eq!(disk.free_and_size(), None);
        disk.look();
        let (free, size) = disk.free_and_size().unwrap();
        assert!(free <= size && size > 0, "{free} {size}");
        drop(dir);
        disk.look();
        assert_eq!(disk.free_and_size(), Some((free, size)));
    }
}
