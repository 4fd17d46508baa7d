//! Hands orphaned spools to the cores: first the batches in doubt, and once all of a core
//! directory's are done, its segments, one by one.
//!
//! Cores poll from time to time, off the data path. Shared state is changed only by single atomic
//! operations.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::instances::{lock_directory, remove_empty};
use crate::rt;
use crate::spool::batches::ledger::{CompletedMembers, JournalBatch};

/// The spool of a dead process, protected by its lock.
pub struct OrphanedSpool {
    pub(super) path: PathBuf,
    pub(super) _lock: File,
    /// Number of segments that are not finished.
    pub(super) segments: AtomicUsize,
    /// Size of its journals, which are removed with the last segment.
    pub(super) journal_bytes: u64,
    pub(super) replayed: Arc<ReplayCounts>,
}

/// Counts the payloads of one orphaned spool that were queued again, for the log. Updated a few
/// times per commit group.
#[derive(Debug)]
pub(in crate::spool) struct ReplayCounts {
    since: Instant,
    payloads: AtomicU64,
    bytes: AtomicU64,
}

impl Default for ReplayCounts {
    fn default() -> ReplayCounts {
        ReplayCounts { since: rt::now(), payloads: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }
}

impl ReplayCounts {
    pub(in crate::spool) fn add(&self, payloads: u64, bytes: u64) {
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

impl OrphanedSpool {
    pub(super) fn is_finished(&self) -> bool {
        self.segments.load(Ordering::Relaxed) == 0
    }
}

/// One core directory of an orphaned spool.
#[derive(Default)]
pub struct OrphanedCore {
    pub(in crate::spool) path: PathBuf,
    /// Shared by all core directories of the spool.
    pub(in crate::spool) replayed: Arc<ReplayCounts>,
    /// Its payloads may be in the store as single objects, so they must not be batched.
    pub(in crate::spool) is_single_objects: bool,
    /// Batches in doubt, with their keys.
    pub(in crate::spool) in_doubt: Vec<(String, JournalBatch)>,
    /// Number of batches in doubt that are not done yet.
    pub(in crate::spool) open: AtomicUsize,
    /// Payloads that are complete once all of these batches are done.
    pub(in crate::spool) members: CompletedMembers,
    /// Segments by the ids of their generations; empty unless there are batches in doubt.
    pub(in crate::spool) segments: HashMap<u64, PathBuf>,
}

impl OrphanedCore {
    /// Records that a batch in doubt is durably done.
    pub(in crate::spool) fn finish_one(&self) {
        // Release: a core that sees the count at zero must also see the journal writes before it.
        let before = self.open.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "each is done once");
    }
}

/// An orphaned segment, taken by one core.
pub struct OrphanedSegment {
    pub path: PathBuf,
    pub bytes: u64,
    pub core: Arc<OrphanedCore>,
    left: Arc<OrphanedSpool>,
    shared: Arc<Takeover>,
}

/// The orphaned segments and batches in doubt that cores may take.
#[derive(Default)]
pub struct Takeover {
    offered: ArcSwap<Offer>,
    /// Number of segments that no core has taken.
    untaken: AtomicUsize,
    /// Size of all files that are offered or being emptied.
    bytes: AtomicU64,
    /// Core directories of dead processes whose journals were read.
    directories_read: AtomicU64,
}

/// The segments and batches that are offered; some may be taken already.
#[derive(Default)]
struct Offer {
    segments: Vec<Arc<OfferedSegment>>,
    in_doubt: Vec<Arc<OfferedBatch>>,
}

pub(super) struct OfferedSegment {
    pub(super) left: Arc<OrphanedSpool>,
    pub(super) core: Arc<OrphanedCore>,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) taken: AtomicBool,
}

impl OfferedSegment {
    /// Whether no core has taken it and no batch of its directory is in doubt.
    fn is_ready(&self) -> bool {
        !self.taken.load(Ordering::Relaxed) && self.core.open.load(Ordering::Acquire) == 0
    }
}

struct OfferedBatch {
    core: Arc<OrphanedCore>,
    /// Its index in `core.in_doubt`.
    number: usize,
    taken: AtomicBool,
}

impl Takeover {
    /// Takes a segment of a directory without batches in doubt.
    pub fn take(self: &Arc<Self>) -> Option<OrphanedSegment> {
        if self.is_used_up() {
            return None;
        }
        let offer = self.offered.load();
        let mut ready = offer.segments.iter().filter(|offered| offered.is_ready());
        // Another core may take it between the filter and the swap.
        let offered = ready.find(|offered| !offered.taken.swap(true, Ordering::Relaxed))?;
        self.untaken.fetch_sub(1, Ordering::Relaxed);
        let OfferedSegment { left, core, path, bytes, .. } = &**offered;
        let (left, core, shared) = (left.clone(), core.clone(), self.clone());
        Some(OrphanedSegment { path: path.clone(), bytes: *bytes, core, left, shared })
    }

    /// Takes a batch in doubt: returns its directory and its index there.
    pub(in crate::spool) fn take_in_doubt(&self) -> Option<(Arc<OrphanedCore>, usize)> {
        let offer = self.offered.load();
        let mut untaken =
            offer.in_doubt.iter().filter(|batch| !batch.taken.load(Ordering::Relaxed));
        let batch = untaken.find(|batch| !batch.taken.swap(true, Ordering::Relaxed))?;
        Some((batch.core.clone(), batch.number))
    }

    /// Size of the orphaned files that still exist.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many core directories of dead processes were read: how far a takeover is.
    pub fn directories_read(&self) -> u64 {
        self.directories_read.load(Ordering::Relaxed)
    }

    pub(super) fn count_read(&self) {
        self.directories_read.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether all segments are taken.
    pub(in crate::spool) fn is_used_up(&self) -> bool {
        self.untaken.load(Ordering::Relaxed) == 0
    }

    /// Whether a segment can be taken now.
    pub(super) fn has_ready(&self) -> bool {
        !self.is_used_up() && self.offered.load().segments.iter().any(|offered| offered.is_ready())
    }

    /// Offers segments and batches, whose files have `bytes` in total, in addition to those still
    /// offered. Only one thread calls this.
    pub(super) fn offer(
        &self,
        segments: Vec<OfferedSegment>,
        cores: &[Arc<OrphanedCore>],
        bytes: u64,
    ) {
        let before = self.offered.load();
        let untaken = |offered: &&Arc<OfferedSegment>| !offered.taken.load(Ordering::Relaxed);
        let open = |batch: &&Arc<OfferedBatch>| !batch.taken.load(Ordering::Relaxed);
        let mut offer = Offer {
            segments: before.segments.iter().filter(untaken).cloned().collect(),
            in_doubt: before.in_doubt.iter().filter(open).cloned().collect(),
        };
        for core in cores {
            offer.in_doubt.extend((0..core.in_doubt.len()).map(|number| {
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

impl OrphanedSegment {
    /// Records that every payload in it is stored or dead-lettered and its file is removed. The
    /// last segment also removes the directory and its journals, which are no longer needed.
    /// Blocks.
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
