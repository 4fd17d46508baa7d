//! The cells that cores and control share about buckets. Each has one writer, which stores it
//! relaxed; two of them carry the order in which the others become visible.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{CONTROL_STALE, Limit, Quota, Unit};
use crate::metrics::Cell64;

/// Slots allocated at a time.
pub(super) const CHUNK: usize = 512;

/// A limit that is never reached: nothing of this unit is limited.
pub(super) const UNLIMITED: i64 = 1 << 62;

/// Bits of the marks of tight buckets: sixteen for each of the most buckets of a core's larger
/// table, so that at most one key in sixteen shares its bit with another one, and then waits for
/// control for a tick.
const MARKS: usize = 1 << 20;

/// The buckets of one kind, of all cores.
pub struct Board {
    cores: Box<[CoreSlots]>,
    /// One bit for each hash of a key. Written by control.
    marks: Box<[AtomicU64]>,
    /// Milliseconds from `epoch` to control's last tick. Written by control.
    beat: Cell64,
    epoch: Instant,
}

/// The slots of one core. Chunks are allocated by the core when it needs them.
struct CoreSlots {
    chunks: Box<[OnceLock<Box<[Slot]>>]>,
    /// Slots that have been in use, from the first one on. Written by the core.
    used: AtomicU64,
}

/// One bucket, as one core and control see it. Counts of a slot go on when it is used for another
/// key, so that a value that is stored a moment too late is far from those of the new key.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Slot {
    /// 0 while it is free, otherwise another number for each use. Stored with release by the core
    /// when the other cells of this use are written.
    pub(super) generation: AtomicU64,
    /// Hash of the key. This and the others up to `wanted` are written by the core.
    pub(super) key: Cell64,
    /// Changes with `quota`, which is written before it.
    pub(super) version: AtomicU64,
    quota: [[Cell64; 3]; 2],
    /// Requests judged, refused ones included.
    pub(super) wanted: Cell64,
    /// Requests that passed.
    pub(super) passed: Cell64,
    /// Those of them whose bodies are not whole yet. Only the core reads it.
    pub(super) open: Cell64,
    pub(super) meters: [QuotaMeter; 2],
    /// The generation that control has seen. Stored with release by control when it has written
    /// limits.
    pub(super) linked: AtomicU64,
    /// `wanted + 1` at a moment when the bucket was full: if it is still that, nothing is lost with
    /// the slot. Written by control.
    pub(super) full: Cell64,
}

/// Tokens of one unit of one bucket on one core, in numbers that only make sense as differences.
#[derive(Debug, Default)]
pub(super) struct QuotaMeter {
    /// Written by the core: …
    pub(super) spent: Cell64,
    /// … `spent` when this use of the slot began, …
    pub(super) began: Cell64,
    /// … and what it claimed then.
    pub(super) claimed: Cell64,
    /// Up to which `spent` may grow. Written by control, for a new use first by the core.
    pub(super) limit: Cell64,
    /// Tokens of all cores; negative is debt. Written by control, as are the next.
    pub(super) level: Cell64,
    /// 1 if a core without tokens will get some with the next ticks.
    pub(super) suffices: Cell64,
}

impl QuotaMeter {
    /// Tokens that the core may spend; not positive: none, and so much debt.
    pub(super) fn left(&self) -> i64 {
        self.limit.value().wrapping_sub(self.spent.value()) as i64
    }

    pub(super) fn spend(&self, count: i64) {
        self.spent.set(self.spent.value().wrapping_add(count as u64));
    }

    pub(super) fn level(&self) -> i64 {
        self.level.value() as i64
    }
}

impl Slot {
    /// The core stores the quota that the bucket has from now on.
    pub(super) fn set_quota(&self, quota: &Quota, version: u64) {
        for (cells, unit) in self.quota.iter().zip(Unit::ALL) {
            let limit = quota.of(unit).map_or([0; 3], |of| [of.amount, of.per_s, of.burst]);
            cells.iter().zip(limit).for_each(|(cell, value)| cell.set(value));
        }
        self.version.store(version, Ordering::Release);
    }

    /// The quota of the bucket, and its version. A version that is read together with a newer quota
    /// is looked at again.
    pub(super) fn quota(&self) -> (Quota, u64) {
        let version = self.version.load(Ordering::Acquire);
        let limit = |cells: &[Cell64; 3]| {
            let [amount, per_s, burst] = cells.each_ref().map(Cell64::value);
            let is_limit = amount > 0 && per_s > 0 && burst > 0;
            is_limit.then_some(Limit { amount, per_s, burst })
        };
        let [requests, bytes] = self.quota.each_ref().map(limit);
        (Quota { requests, bytes }, version)
    }
}

impl Board {
    /// A board for up to `slots` slots of each of `cores` cores. `now` is when ticks begin.
    pub fn new(cores: usize, slots: usize, now: Instant) -> Board {
        let core = || CoreSlots {
            chunks: (0..slots.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect(),
            used: AtomicU64::new(0),
        };
        Board {
            cores: (0..cores).map(|_| core()).collect(),
            marks: (0..MARKS / 64).map(|_| AtomicU64::new(0)).collect(),
            beat: Cell64::default(),
            epoch: now,
        }
    }

    /// Number of cores.
    pub(super) fn cores(&self) -> usize {
        self.cores.len()
    }

    /// Slot `at` of a core.
    ///
    /// # Panics
    /// It was never in use.
    #[inline]
    pub(super) fn slot(&self, core: usize, at: u32) -> &Slot {
        let at = at as usize;
        let chunk = self.cores[core].chunks[at / CHUNK].get();
        &chunk.expect("slots are allocated before they are named")[at % CHUNK]
    }

    /// The core allocates what it needs for slot `at`.
    pub(super) fn allocate(&self, core: usize, at: u32) {
        let core = &self.cores[core];
        let chunk = || (0..CHUNK).map(|_| Slot::default()).collect();
        core.chunks[at as usize / CHUNK].get_or_init(chunk);
        let used = core.used.load(Ordering::Relaxed).max(u64::from(at) + 1);
        core.used.store(used, Ordering::Release);
    }

    /// Slots of a core that have been in use, with their numbers.
    pub(super) fn used(&self, core: usize) -> u32 {
        self.cores[core].used.load(Ordering::Acquire) as u32
    }

    /// Slot `at` of a core, if its chunk was allocated: overflow slots lie behind unused ones.
    pub(super) fn used_slot(&self, core: usize, at: u32) -> Option<&Slot> {
        let chunk = self.cores[core].chunks.get(at as usize / CHUNK)?.get()?;
        Some(&chunk[at as usize % CHUNK])
    }

    fn mark(key: u64) -> (usize, u64) {
        let bit = (key >> 7) as usize % MARKS;
        (bit / 64, 1 << (bit % 64))
    }

    /// Which marks `key` shares with others.
    pub(super) fn mark_of(key: u64) -> usize {
        (key >> 7) as usize % MARKS
    }

    /// Whether a core must not claim tokens of this bucket.
    pub(super) fn is_tight(&self, key: u64) -> bool {
        let (word, bit) = Board::mark(key);
        self.marks[word].load(Ordering::Acquire) & bit != 0
    }

    /// Control sets or clears the mark.
    pub(super) fn set_tight(&self, key: u64, tight: bool) {
        let (word, bit) = Board::mark(key);
        let marks = self.marks[word].load(Ordering::Relaxed);
        let marks = if tight { marks | bit } else { marks & !bit };
        self.marks[word].store(marks, Ordering::Release);
    }

    /// Control says that it is alive.
    pub(super) fn beat(&self, now: Instant) {
        self.beat.set(now.saturating_duration_since(self.epoch).as_millis() as u64);
    }

    /// When control has been silent for too long, since when cores are on their own.
    pub(super) fn alone_since(&self, now: Instant) -> Option<Instant> {
        let since = self.epoch + Duration::from_millis(self.beat.value()) + CONTROL_STALE;
        (now >= since).then_some(since)
    }
}
