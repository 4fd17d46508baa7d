//! What processes that are no more have left, as the cores take it up: first the batches that were begun, and when all of
//! a core directory's are done, its segments, one after the other.
//!
//! Cores ask now and then, off the data path; everything shared here is written with single atomic operations.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use super::instances::{lock_directory, remove_empty};
use super::ledger::{Batch, Settled};

/// What a process that is no more has left, held by its lock.
pub struct Left {
    pub(super) path: PathBuf,
    pub(super) _lock: File,
    /// Segments that are not finished.
    pub(super) segments: AtomicUsize,
    /// Of its journals, which go with the last segment.
    pub(super) journal_bytes: u64,
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
    /// Of all that are offered or being emptied.
    bytes: AtomicU64,
}

#[derive(Default)]
pub(super) struct Offer {
    pub(super) segments: Vec<Offered>,
    /// Segments that nobody has taken.
    untaken: AtomicUsize,
    begun: Vec<(Arc<LeftCore>, usize)>,
    next_begun: AtomicUsize,
}

pub(super) struct Offered {
    pub(super) left: Arc<Left>,
    pub(super) core: Arc<LeftCore>,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) taken: AtomicBool,
}

impl Offer {
    pub(super) fn new(segments: Vec<Offered>, cores: &[Arc<LeftCore>]) -> Offer {
        let of_core = |core: &Arc<LeftCore>| {
            (0..core.begun.len()).map({
                let core = core.clone();
                move |number| (core.clone(), number)
            })
        };
        Offer {
            untaken: AtomicUsize::new(segments.len()),
            segments,
            begun: cores.iter().flat_map(of_core).collect(),
            next_begun: AtomicUsize::new(0),
        }
    }
}

impl Orphans {
    /// The next segment nobody has taken, of a directory in which no begun batch is open.
    pub fn take(self: &Arc<Self>) -> Option<Orphan> {
        let offer = self.offered.load();
        if offer.untaken.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let offered = offer.segments.iter().find(|offered| {
            !offered.taken.load(Ordering::Relaxed)
                && offered.core.open.load(Ordering::Acquire) == 0
                && !offered.taken.swap(true, Ordering::Relaxed)
        })?;
        offer.untaken.fetch_sub(1, Ordering::Relaxed);
        let Offered { left, core, path, bytes, .. } = offered;
        let (left, core, shared) = (left.clone(), core.clone(), self.clone());
        Some(Orphan { path: path.clone(), bytes: *bytes, core, left, shared })
    }

    /// The next begun batch nobody has taken: of which directory, and its number there.
    pub(super) fn take_begun(&self) -> Option<(Arc<LeftCore>, usize)> {
        let offer = self.offered.load();
        // Asked again and again: the counter must not run around.
        if offer.next_begun.load(Ordering::Relaxed) >= offer.begun.len() {
            return None;
        }
        offer.begun.get(offer.next_begun.fetch_add(1, Ordering::Relaxed)).cloned()
    }

    /// Bytes of crashed processes' files that are still there.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.offered.load().untaken.load(Ordering::Relaxed) == 0
    }

    /// Offers what was found, once what was offered before is used up.
    pub(super) fn offer(&self, offer: Offer) {
        self.offered.store(Arc::new(offer));
    }

    pub(super) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Orphan {
    /// Everything in it is stored or dead-lettered, and its file is gone. With the last one the directory goes, and the
    /// journals in it, which tell of nothing any more. Blocks.
    pub fn finished(self) {
        self.shared.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.left.segments.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.shared.bytes.fetch_sub(self.left.journal_bytes, Ordering::Relaxed);
            if let Some(spool_dir) = self.left.path.parent()
                && let Ok(_held) = lock_directory(spool_dir)
            {
                remove_empty(&self.left.path);
            }
        }
    }
}
