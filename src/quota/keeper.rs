//! Control's side of the buckets: reads what cores have spent, and writes up to where they may.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Instant;

use super::board::{Board, QuotaMeter, Slot, UNLIMITED};
use super::shares::{Seen, Shares};
use super::{Quota, Unit};

/// The buckets of one board.
pub struct Keeper {
    board: Arc<Board>,
    buckets: HashMap<u64, Bucket>,
    /// What was seen of each core's slots.
    seen: Vec<Vec<SlotSeen>>,
    /// How many tight buckets share a mark.
    marks: HashMap<usize, u32>,
    /// Keys of the buckets of this tick; kept for its memory.
    active: Vec<u64>,
    ticks: u64,
}

/// What control knows of one slot.
#[derive(Clone, Copy, Default)]
struct SlotSeen {
    generation: u64,
    key: u64,
    wanted: u64,
    passed: u64,
    /// Bytes spent. They change after the request was judged, too.
    bytes: u64,
    version: u64,
    /// The bucket is full and nobody has asked since.
    is_quiet: bool,
}

impl SlotSeen {
    /// Whether nothing has happened since.
    fn has_rested(&self, slot: &Slot) -> bool {
        self.wanted == slot.wanted.value()
            && self.bytes == slot.meters[Unit::Bytes as usize].spent.value()
    }
}

/// One bucket of the process.
struct Bucket {
    quota: Quota,
    shares: [Option<Shares>; 2],
    /// Its slot on each core.
    slots: Box<[Option<u32>]>,
    /// Bytes of a body, on average of the latest.
    body_bytes: u64,
    is_marked: bool,
    /// The tick that has found it in use, until its shares were moved.
    looked: u64,
    /// Bytes spent by the last tick, for the average.
    bytes_spent: u64,
}

impl Keeper {
    /// Nothing is known yet.
    pub fn new(board: Arc<Board>) -> Keeper {
        let seen = (0..board.cores()).map(|_| Vec::new()).collect();
        Keeper {
            board,
            buckets: HashMap::new(),
            seen,
            marks: HashMap::new(),
            active: Vec::new(),
            ticks: 0,
        }
    }

    /// Moves shares to where the demand is. To be called every [`super::TICK`].
    pub fn tick(&mut self, now: Instant) {
        self.ticks += 1;
        for core in 0..self.board.cores() {
            self.look(core, now);
        }
        let mut active = std::mem::take(&mut self.active);
        active.drain(..).for_each(|key| self.tick_bucket(key, now));
        self.active = active;
        self.board.beat(now);
    }

    /// Buckets of the process.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Finds slots that are new, have gone or have been used, and their buckets.
    fn look(&mut self, core: usize, now: Instant) {
        let used = self.board.used(core);
        let seen = &mut self.seen[core];
        seen.resize(seen.len().max(used as usize), SlotSeen::default());
        let board = self.board.clone();
        for at in 0..used {
            let Some(slot) = board.used_slot(core, at) else { continue };
            let generation = slot.generation.load(Acquire);
            let seen = self.seen[core][at as usize];
            if seen.generation == generation
                && (generation == 0 || seen.is_quiet && seen.has_rested(slot))
            {
                continue;
            }
            if seen.generation != generation {
                if seen.generation != 0 {
                    self.unlink(core, at);
                }
                if generation != 0 {
                    self.link(core, at, slot, generation, now);
                }
            }
            if generation == 0 {
                continue;
            }
            let key = self.seen[core][at as usize].key;
            let Some(bucket) = self.buckets.get_mut(&key) else { continue };
            if std::mem::replace(&mut bucket.looked, self.ticks) != self.ticks {
                self.active.push(key);
            }
        }
    }

    fn link(&mut self, core: usize, at: u32, slot: &Slot, generation: u64, now: Instant) {
        let cores = self.board.cores();
        let key = slot.key.value();
        // The key has had another slot, which was given up and is perhaps looked at only after this
        // one: it is forgotten first, so that forgetting it later does not take this one away.
        if let Some(before) = self.buckets.get(&key).and_then(|bucket| bucket.slots[core]) {
            self.unlink(core, before);
        }
        let (quota, _) = slot.quota();
        let bucket = self.buckets.entry(key).or_insert_with(|| Bucket {
            quota,
            shares: Unit::ALL
                .map(|unit| quota.of(unit).map(|limit| Shares::new(limit, cores, key, now))),
            slots: vec![None; cores].into(),
            body_bytes: 1,
            is_marked: false,
            looked: 0,
            bytes_spent: 0,
        });
        bucket.slots[core] = Some(at);
        for (shares, meter) in bucket.shares.iter_mut().zip(&slot.meters) {
            if let Some(shares) = shares {
                let claimed = meter.claimed.value() as i64;
                // One of another core has a newer quota.
                shares.join(core, if claimed == UNLIMITED { 0 } else { claimed }, 0);
            }
        }
        let wanted = slot.full.value().saturating_sub(1);
        self.seen[core][at as usize] = SlotSeen {
            generation,
            key,
            // The counts go on from the use before.
            wanted: wanted.min(slot.wanted.value()),
            passed: slot.passed.value(),
            bytes: 0,
            // Not seen: the bucket may have another quota from before.
            version: 0,
            is_quiet: false,
        };
    }

    fn unlink(&mut self, core: usize, at: u32) {
        let SlotSeen { key, .. } = std::mem::take(&mut self.seen[core][at as usize]);
        let Some(bucket) = self.buckets.get_mut(&key) else { return };
        bucket.slots[core] = None;
        // The core gives it up only if nobody has asked since the bucket was full.
        bucket.shares.iter_mut().flatten().for_each(|shares| shares.leave(core));
        if bucket.slots.iter().all(Option::is_none) {
            let is_marked = bucket.is_marked;
            self.buckets.remove(&key);
            if is_marked {
                set_mark(&self.board, &mut self.marks, key, false);
            }
        }
    }

    fn tick_bucket(&mut self, key: u64, now: Instant) {
        let Some(bucket) = self.buckets.get_mut(&key) else { return };
        // A bucket that was forgotten and found again in this tick is named twice.
        if std::mem::take(&mut bucket.looked) != self.ticks {
            return;
        }
        let board = &*self.board;
        let slots: Vec<Option<&Slot>> = (bucket.slots.iter().enumerate())
            .map(|(core, at)| at.and_then(|at| board.used_slot(core, at)))
            .collect();
        // What was asked for and done since the last tick.
        let mut wanted = vec![0_u64; slots.len()];
        let mut passed = 0;
        for (core, slot) in slots.iter().enumerate() {
            let (Some(slot), Some(at)) = (slot, bucket.slots[core]) else { continue };
            let seen = &mut self.seen[core][at as usize];
            let count = slot.wanted.value();
            wanted[core] = count.saturating_sub(std::mem::replace(&mut seen.wanted, count));
            let (quota, version) = slot.quota();
            // Of cores that know different quotas, those that have just used theirs know better.
            let is_news = version != std::mem::replace(&mut seen.version, version);
            if (is_news || wanted[core] > 0) && quota != bucket.quota {
                bucket.change(quota, key, &slots, now);
            }
            seen.bytes = slot.meters[Unit::Bytes as usize].spent.value();
            let count = slot.passed.value();
            let more = count.saturating_sub(std::mem::replace(&mut seen.passed, count));
            passed = more.saturating_add(passed);
        }
        bucket.average(&slots, passed);
        let (mut is_full, mut is_quiet, mut tight) = (true, true, false);
        for (unit, shares) in Unit::ALL.into_iter().zip(&mut bucket.shares) {
            let Some(shares) = shares else { continue };
            let tokens = if unit == Unit::Bytes { bucket.body_bytes } else { 1 };
            let seen = |(slot, wanted): (&Option<&Slot>, &u64)| {
                let spent = spent(&(*slot)?.meters[unit as usize]);
                Some(Seen { spent, wanted: wanted.saturating_mul(tokens) })
            };
            let seen: Vec<_> = slots.iter().zip(&wanted).map(seen).collect();
            shares.tick(now, &seen);
            is_full &= shares.is_full();
            is_quiet &= shares.is_quiet();
            tight |= shares.is_tight();
        }
        // Before limits rise, so that what was there to be claimed is not given away as well: a
        // share that turned tight has it in transit until the next tick.
        if tight != std::mem::replace(&mut bucket.is_marked, tight) {
            set_mark(board, &mut self.marks, key, tight);
        }
        for (core, slot) in slots.iter().enumerate() {
            let (Some(slot), Some(at)) = (slot, bucket.slots[core]) else { continue };
            let seen = &mut self.seen[core][at as usize];
            bucket.publish(core, slot);
            seen.is_quiet = is_quiet;
            slot.full.set(if is_full { seen.wanted + 1 } else { 0 });
            slot.linked.store(seen.generation, Release);
        }
    }
}

impl Bucket {
    /// The quota has changed. Contents and debt stay; what was not limited before begins full, and
    /// the cores get their parts with the next ticks.
    fn change(&mut self, quota: Quota, key: u64, slots: &[Option<&Slot>], now: Instant) {
        self.quota = quota;
        for (unit, shares) in Unit::ALL.into_iter().zip(&mut self.shares) {
            match (shares.as_mut(), quota.of(unit)) {
                (_, None) => *shares = None,
                (Some(shares), Some(limit)) if shares.limit() == limit => {}
                (Some(shares), Some(limit)) => shares.change(limit, key),
                (None, Some(limit)) => {
                    let mut fresh = Shares::new(limit, slots.len(), key, now);
                    for (core, slot) in slots.iter().enumerate() {
                        if let Some(slot) = slot {
                            fresh.join(core, 0, spent(&slot.meters[unit as usize]));
                        }
                    }
                    *shares = Some(fresh);
                }
            }
        }
    }

    /// Takes the bodies of `passed` requests into the average.
    fn average(&mut self, slots: &[Option<&Slot>], passed: u64) {
        let of = |slot: &&Slot| spent(&slot.meters[Unit::Bytes as usize]).max(0) as u64;
        let bytes = slots.iter().flatten().map(of).fold(0, u64::saturating_add);
        let more = bytes.saturating_sub(std::mem::replace(&mut self.bytes_spent, bytes));
        if let Some(latest) = more.checked_div(passed) {
            let before = if self.body_bytes == 1 { latest } else { self.body_bytes };
            let sum = 3 * u128::from(before) + u128::from(latest);
            self.body_bytes = u64::try_from(sum / 4).unwrap_or(u64::MAX).max(1);
        }
    }

    /// Writes what core `core` may spend.
    fn publish(&self, core: usize, slot: &Slot) {
        for (shares, meter) in self.shares.iter().zip(&slot.meters) {
            match shares {
                None => meter.limit.set(meter.spent.value().wrapping_add(UNLIMITED as u64)),
                Some(shares) => {
                    meter.level.set(shares.level() as u64);
                    meter.suffices.set(u64::from(shares.suffices()));
                    let limit = shares.limit_of(core) as u64;
                    meter.limit.set(meter.began.value().wrapping_add(limit));
                }
            }
        }
    }
}

/// What a core has spent since it got the slot.
fn spent(meter: &QuotaMeter) -> i64 {
    meter.spent.value().wrapping_sub(meter.began.value()) as i64
}

/// Counts the tight buckets of a mark, and sets or clears it.
fn set_mark(board: &Board, marks: &mut HashMap<usize, u32>, key: u64, tight: bool) {
    let count = marks.entry(Board::mark_of(key)).or_default();
    match tight {
        true => *count += 1,
        false => *count = count.saturating_sub(1),
    }
    let is_set = *count > 0;
    if !is_set {
        marks.remove(&Board::mark_of(key));
    }
    board.set_tight(key, is_set);
}
