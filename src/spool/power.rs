//! A disk as it may be after a power cut: records what the spool writes and syncs, and replays it
//! up to any event with any subset of the unsynced sectors.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::queue::job::Stamp;

/// The unit that a disk writes atomically.
pub(super) const SECTOR: usize = 512;

/// A recorded event.
#[derive(Clone, Debug)]
pub(super) enum DiskEvent {
    /// A file of this size, which reads as zeros; durable with its first sync.
    Created {
        path: PathBuf,
        bytes: u64,
    },
    WriteBegins {
        path: PathBuf,
        at: u64,
        bytes: Vec<u8>,
    },
    WriteEnds {
        write: usize,
    },
    SyncBegins {
        path: PathBuf,
    },
    SyncEnds {
        sync: usize,
    },
    /// The payloads from this stamp on were acknowledged.
    Acknowledged {
        first: Stamp,
        count: u64,
    },
    /// The payload with this stamp was stored.
    Stored {
        stamp: Stamp,
    },
    /// A batch was uploaded under this key, with the payloads of these numbers.
    Put {
        key: String,
        seqs: Vec<u64>,
    },
}

thread_local! {
    static LOG: RefCell<Option<Vec<DiskEvent>>> = const { RefCell::new(None) };
}

/// Starts recording events of this thread.
pub(super) fn start() {
    LOG.set(Some(Vec::new()));
}

pub(super) fn stop() -> Vec<DiskEvent> {
    LOG.take().expect("started")
}

/// Records an event and returns its number.
pub(super) fn note(event: impl FnOnce() -> DiskEvent) -> usize {
    LOG.with_borrow_mut(|log| match log {
        Some(log) => {
            log.push(event());
            log.len() - 1
        }
        None => usize::MAX,
    })
}

pub(super) fn created(path: &Path, bytes: u64) {
    note(|| DiskEvent::Created { path: path.to_owned(), bytes });
}

pub(super) fn write_begins(path: &Path, at: u64, bytes: &[u8]) -> usize {
    note(|| DiskEvent::WriteBegins { path: path.to_owned(), at, bytes: bytes.to_vec() })
}

pub(super) fn write_ends(write: usize) {
    note(|| DiskEvent::WriteEnds { write });
}

pub(super) fn sync_begins(path: &Path) -> usize {
    note(|| DiskEvent::SyncBegins { path: path.to_owned() })
}

pub(super) fn sync_ends(sync: usize) {
    note(|| DiskEvent::SyncEnds { sync });
}

/// The disk right after some events.
pub(super) struct CutDisk {
    /// Contents that are durable.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// Sectors that may or may not be there, in the order they were written.
    pub unsynced: Vec<(PathBuf, usize, Vec<u8>)>,
}

impl CutDisk {
    /// A disk that held `files`, after the first `count` of `events`.
    pub(super) fn after(
        files: &BTreeMap<PathBuf, Vec<u8>>,
        events: &[DiskEvent],
        count: usize,
    ) -> CutDisk {
        let events = &events[..count];
        // A sync covers writes that had ended when it began, and not those still in flight.
        let mut synced = vec![false; count];
        for event in events {
            let DiskEvent::SyncEnds { sync } = event else { continue };
            let DiskEvent::SyncBegins { path: of } = &events[*sync] else { unreachable!() };
            for ended in &events[..*sync] {
                if let DiskEvent::WriteEnds { write } = ended
                    && matches!(&events[*write], DiskEvent::WriteBegins { path, .. } if path == of)
                {
                    synced[*write] = true;
                }
            }
        }
        let mut disk = CutDisk { files: files.clone(), unsynced: Vec::new() };
        for (number, event) in events.iter().enumerate() {
            if let DiskEvent::Created { path, bytes } = event {
                disk.files.insert(path.clone(), vec![0; *bytes as usize]);
            }
            let DiskEvent::WriteBegins { path, at, bytes } = event else { continue };
            let file = disk.files.entry(path.clone()).or_default();
            let (at, end) = (*at as usize, *at as usize + bytes.len());
            file.resize(file.len().max(end), 0);
            if synced[number] {
                file[at..end].copy_from_slice(bytes);
                // Overwritten sectors cannot come back.
                disk.unsynced
                    .retain(|(other, sector, _)| other != path || !(at..end).contains(sector));
            } else {
                let sectors = bytes.chunks(SECTOR).zip((at..).step_by(SECTOR));
                disk.unsynced.extend(sectors.map(|(bytes, at)| (path.clone(), at, bytes.to_vec())));
            }
        }
        disk
    }

    /// The files with the unsynced sectors for whose number `kept` is true.
    pub(super) fn with(&self, kept: impl Fn(usize) -> bool) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = self.files.clone();
        for (number, (path, at, bytes)) in self.unsynced.iter().enumerate() {
            if kept(number) {
                let file = files.get_mut(path).expect("made when it was written to");
                file[*at..*at + bytes.len()].copy_from_slice(bytes);
            }
        }
        files
    }
}
