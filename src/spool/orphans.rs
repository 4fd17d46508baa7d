//! What processes that are no more have left, as the cores take it up: first the batches that were begun, and when all of
//! a core directory's are done, its segments, one after the other.
//!
//! Cores ask now and then, off the data path; everything shared here is written with single atomic operations.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::instances::{lock_directory, remove_empty};
use super::ledger::{Batch, Settled};
use crate::rt;

/// What a process that is no more has left, held by its lock.
pub struct Left {
    pub(super) path: PathBuf,
    pub(super) _lock: File,
    /// Segments that are not finished.
    pub(super) segments: AtomicUsize,
    /// Of its journals, which go with the last segment.
    pub(super) journal_bytes: u64,
    pub(super) replayed: Arc<Replayed>,
}

/// What was brought back of one process's payloads, for the log. Written a few times for each group that is read.
#[derive(Debug)]
pub(super) struct Replayed {
    since: Instant,
    payloads: AtomicU64,
    bytes: AtomicU64,
}

impl Default for Replayed {
    fn default() -> Replayed {
        Replayed { since: rt::now(), payloads: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }
}

impl Replayed {
    pub(super) fn add(&self, payloads: u64, bytes: u64) {
        self.payloads.fetch_add(payloads, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn log_end(&self, path: &Path) {
        tracing::info!(
            payloads = self.payloads.load(Ordering::Relaxed),
            bytes = self.bytes.load(Ordering::Relaxed),
            took_ms = rt::since(self.since).as_millis() as u64,
            "replayed the spool of {}: all of it is stored or dead-lettered",
            path.display()
        );
    }
}

impl Left {
    pub(super) fn is_finished(&self) -> bool {
        self.segments.load(Ordering::Relaxed) == 0
    }
}

/// One core's part of that.
#[derive(Default)]
pub struct LeftCore {
    pub(super) path: PathBuf,
    /// Of all cores of its process.
    pub(super) replayed: Arc<Replayed>,
    /// Its payloads may be in the store one by one.
    pub(super) is_alone: bool,
    /// Batches that were begun and not done, with their keys.
    pub(super) begun: Vec<(String, Batch)>,
    /// Of those, the ones that are still not done.
    pub(super) open: AtomicUsize,
    /// What needs nothing more when none is.
    pub(super) members: Settled,
    /// The segments by the ids of their uses; read only where batches were begun.
    pub(super) segments: HashMap<u64, PathBuf>,
}

impl LeftCore {
    /// A begun batch is done, durably.
    pub(super) fn finish_one(&self) {
        // Whoever finds none open must see the journals that say so; they are on the disk.
        let before = self.open.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "each is done once");
    }
}

/// One segment of those.
pub struct Orphan {
    pub path: PathBuf,
    pub bytes: u64,
    pub core: Arc<LeftCore>,
    left: Arc<Left>,
    shared: Arc<Orphans>,
}

/// What crashed processes have left, for the cores to take.
#[derive(Default)]
pub struct Orphans {
    offered: ArcSwap<Offer>,
    /// Segments that nobody has taken.
    untaken: AtomicUsize,
    /// Of all that are offered or being emptied.
    bytes: AtomicU64,
}

/// What was found and not all taken.
#[derive(Default)]
struct Offer {
    segments: Vec<Arc<Offered>>,
    begun: Vec<Arc<OfferedBatch>>,
}

pub(super) struct Offered {
    pub(super) left: Arc<Left>,
    pub(super) core: Arc<LeftCore>,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) taken: AtomicBool,
}

impl Offered {
    /// Nobody has taken it, and no begun batch of its directory is open.
    fn is_ready(&self) -> bool {
        !self.taken.load(Ordering::Relaxed) && self.core.open.load(Ordering::Acquire) == 0
    }
}

struct OfferedBatch {
    core: Arc<LeftCore>,
    /// Which of the begun ones there.
    number: usize,
    taken: AtomicBool,
}

impl Orphans {
    /// The next segment nobody has taken, of a directory in which no begun batch is open.
    pub fn take(self: &Arc<Self>) -> Option<Orphan> {
        if self.is_used_up() {
            return None;
        }
        let offer = self.offered.load();
        let mut ready = offer.segments.iter().filter(|offered| offered.is_ready());
        let offered = ready.find(|offered| !offered.taken.swap(true, Ordering::Relaxed))?;
        self.untaken.fetch_sub(1, Ordering::Relaxed);
        let Offered { left, core, path, bytes, .. } = &**offered;
        let (left, core, shared) = (left.clone(), core.clone(), self.clone());
        Some(Orphan { path: path.clone(), bytes: *bytes, core, left, shared })
    }

    /// The next begun batch nobody has taken: of which directory, and its number there.
    pub(super) fn take_begun(&self) -> Option<(Arc<LeftCore>, usize)> {
        let offer = self.offered.load();
        let mut untaken = offer.begun.iter().filter(|batch| !batch.taken.load(Ordering::Relaxed));
        let batch = untaken.find(|batch| !batch.taken.swap(true, Ordering::Relaxed))?;
        Some((batch.core.clone(), batch.number))
    }

    /// Bytes of crashed processes' files that are still there.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// All segments are taken.
    pub(super) fn is_used_up(&self) -> bool {
        self.untaken.load(Ordering::Relaxed) == 0
    }

    /// Some segment could be taken now.
    pub(super) fn has_ready(&self) -> bool {
        !self.is_used_up() && self.offered.load().segments.iter().any(|offered| offered.is_ready())
    }

    /// Offers what was found, of `bytes` in all, beside what is still offered. One thread calls this.
    pub(super) fn offer(&self, segments: Vec<Offered>, cores: &[Arc<LeftCore>], bytes: u64) {
        let before = self.offered.load();
        let untaken = |offered: &&Arc<Offered>| !offered.taken.load(Ordering::Relaxed);
        let open = |batch: &&Arc<OfferedBatch>| !batch.taken.load(Ordering::Relaxed);
        let mut offer = Offer {
            segments: before.segments.iter().filter(untaken).cloned().collect(),
            begun: before.begun.iter().filter(open).cloned().collect(),
        };
        for core in cores {
            offer.begun.extend((0..core.begun.len()).map(|number| {
                let (core, taken) = (core.clone(), AtomicBool::new(false));
                Arc::new(OfferedBatch { core, number, taken })
            }));
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.untaken.fetch_add(segments.len(), Ordering::Relaxed);
        offer.segments.extend(segments.into_iter().map(Arc::new));
        self.offered.store(Arc::new(offer));
    }
}

impl Orphan {
    /// Everything in it is stored or dead-lettered, and its file is gone. With the last one the directory goes, and the
    /// journals in it, which tell of nothing any more. Blocks.
    pub fn finished(self) {
        self.shared.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.left.segments.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.shared.bytes.fetch_sub(self.left.journal_bytes, Ordering::Relaxed);
            self.left.replayed.log_end(&self.left.path);
            if let Some(spool_dir) = self.left.path.parent()
                && let Ok(_held) = lock_directory(spool_dir)
            {
                remove_empty(&self.left.path);
            }
        }
    }
}
