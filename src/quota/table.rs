//! The buckets of one core: which key has which slot, and whether a request passes.
//!
//! The table is bounded. When it is full, a bucket that is full again gives its slot to a new key;
//! it loses nothing. If none of the next [`EVICT_LOOKS`] is, the new key shares one of
//! [`OVERFLOW`] buckets with others of the same quota, chosen by a hash that nobody outside knows:
//! such keys together get the quota of one, and no bucket that owes anything is forgotten for them.
//! If keys with very many quotas find the table full, some share a bucket with another quota: then
//! the strictest of them holds.
//!
//! All times are passed in.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash as _, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use super::board::{Board, QuotaMeter, Slot, UNLIMITED};
use super::shares::initial;
use super::{Limit, Quota, Unit};

/// Buckets for keys that find the table full.
pub const OVERFLOW: usize = 256;

/// How many slots are looked at for one that may be given away, so that no request takes long.
const EVICT_LOOKS: u32 = 32;

/// A bucket that nobody has asked for since it was last looked at, so many calls of
/// [`QuotaTable::sweep`] ago, gives up its slot if it is full.
const SWEEP_TURNS: u32 = 60;

/// Most slots of a core that [`QuotaTable::new`] can be given with `buckets`.
pub fn slots(buckets: usize) -> usize {
    buckets + OVERFLOW
}

/// Memory of one core's table with `buckets` buckets, all in use: slots, and 40 bytes each for the
/// index and what is beside a slot.
pub fn table_bytes(buckets: usize) -> usize {
    slots(buckets) * (size_of::<Slot>() + 2 * 40)
}

/// The bucket that `key` shares: one of [`OVERFLOW`] of its quota, the same on each core. Other keys
/// are hashes too, so that none is equal but for a chance of one in 2^50.
fn shared_key(key: u64, quota: &Quota) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    (key % OVERFLOW as u64, quota).hash(&mut hasher);
    hasher.finish()
}

/// The buckets of one core.
pub struct QuotaTable {
    board: Arc<Board>,
    core: usize,
    buckets: u32,
    state: RefCell<TableState>,
}

#[derive(Default)]
struct TableState {
    index: HashMap<u64, u32, BuildHasherDefault<HashedAlready>>,
    /// Slots that were given up, first the one that has been free for longest.
    free: VecDeque<u32>,
    /// Slots below this number have been in use.
    fresh: u32,
    /// Where the search for a slot that may be given away goes on.
    hand: u32,
    /// Shared slots that have been in use.
    shared: u32,
    /// Where the search goes on for one of them.
    shared_hand: u32,
    /// Uses of slots so far.
    generations: u64,
    /// Keys that found no slot of their own.
    overflowed: u64,
    /// By slot, for those that have refused or are on their own.
    beside: HashMap<u32, LocalNotes, BuildHasherDefault<HashedAlready>>,
    /// `wanted` of each slot when a sweep last looked at it.
    swept: Vec<u64>,
    /// Which of [`SWEEP_TURNS`] slots the last sweep has looked at.
    sweep_turn: u32,
}

/// What only the core knows of a bucket.
#[derive(Clone, Copy, Debug)]
struct LocalNotes {
    generation: u64,
    alone: Option<Alone>,
    /// Refusals in this second, …
    window: Instant,
    refused: u64,
    /// … and in the one before.
    refused_before: u64,
}

/// A core on its own.
#[derive(Clone, Copy, Debug)]
struct Alone {
    since: Instant,
    /// By [`Unit`]: what it had spent when it found that out, …
    spent: [u64; 2],
    /// … and what has come to its full part of the bucket since, and was lost.
    lost: [u64; 2],
}

/// A slot that a key has, or had if the generation is another one by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotId {
    at: u32,
    generation: u64,
}

/// Whether a request passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaVerdict {
    Pass,
    /// Not now, but there are tokens, and control brings them here with the next ticks.
    Wait,
    /// There are none.
    Refuse(Unit),
}

/// Keys are hashes.
#[derive(Default)]
struct HashedAlready(u64);

impl Hasher for HashedAlready {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u32(&mut self, value: u32) {
        // Slots are small numbers, of which hash tables would use the upper bits.
        self.0 = u64::from(value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

impl QuotaTable {
    /// The table of the core with this index, of up to `buckets` buckets. The board must have
    /// [`slots`] of that many.
    pub fn new(board: Arc<Board>, core: usize, buckets: usize) -> QuotaTable {
        QuotaTable { board, core, buckets: buckets as u32, state: RefCell::default() }
    }

    fn slot(&self, id: SlotId) -> &Slot {
        self.board.slot(self.core, id.at)
    }

    /// Whether the slot is still that of the key that it was given to.
    #[inline]
    pub fn is_current(&self, id: SlotId) -> bool {
        self.slot(id).generation.load(Relaxed) == id.generation
    }

    /// The slot of `key`, a hash, whose quota is `quota`. `version` is another one for each quota
    /// of a key, and not 0.
    pub fn find(&self, key: u64, quota: &Quota, version: u64) -> SlotId {
        let mut state = self.state.borrow_mut();
        let at = match state.index.get(&key) {
            Some(at) => *at,
            None => self.take_slot(&mut state, key, quota, version),
        };
        drop(state);
        let slot = self.board.slot(self.core, at);
        // The quota of a shared slot is not that of one key.
        if slot.version.load(Relaxed) != version && at < self.buckets {
            slot.set_quota(quota, version);
        }
        SlotId { at, generation: slot.generation.load(Relaxed) }
    }

    #[cold]
    fn take_slot(&self, state: &mut TableState, key: u64, quota: &Quota, version: u64) -> u32 {
        let place = match state.free.pop_front() {
            Some(at) => Some(at),
            None if state.fresh < self.buckets => {
                state.fresh += 1;
                Some(state.fresh - 1)
            }
            None => self.evict(state),
        };
        let (key, at) = match place {
            Some(at) => (key, at),
            None => {
                state.overflowed += 1;
                let shared = shared_key(key, quota);
                if let Some(at) = state.index.get(&shared) {
                    self.tighten(*at, quota, version);
                    return *at;
                }
                match self.shared_place(state) {
                    Some(at) => (shared, at),
                    None => {
                        let at = self.buckets + (shared % OVERFLOW as u64) as u32;
                        self.tighten(at, quota, version);
                        return at;
                    }
                }
            }
        };
        self.board.allocate(self.core, at);
        let slot = self.board.slot(self.core, at);
        slot.key.set(key);
        slot.set_quota(quota, version);
        let (tight, cores) = (self.board.is_tight(key), self.board.cores());
        for (meter, unit) in slot.meters.iter().zip(Unit::ALL) {
            let spent = meter.spent.value();
            let claim = |limit: Limit| initial(limit.burst, cores, self.core, key);
            let claimed = match quota.of(unit) {
                None => UNLIMITED,
                Some(_) if tight => 0,
                Some(limit) => claim(limit),
            };
            meter.began.set(spent);
            meter.claimed.set(claimed as u64);
            meter.limit.set(spent.wrapping_add(claimed as u64));
        }
        state.generations += 1;
        slot.generation.store(state.generations, Release);
        state.index.insert(key, at);
        at
    }

    /// Frees a slot whose bucket is full, if one of the next few is that.
    fn evict(&self, state: &mut TableState) -> Option<u32> {
        (0..EVICT_LOOKS).find_map(|_| {
            state.hand = (state.hand + 1) % self.buckets;
            self.release_if_full(state, state.hand).then_some(state.hand)
        })
    }

    /// A slot to be shared that nobody has, or whose bucket is full.
    fn shared_place(&self, state: &mut TableState) -> Option<u32> {
        if state.shared < OVERFLOW as u32 {
            state.shared += 1;
            return Some(self.buckets + state.shared - 1);
        }
        (0..EVICT_LOOKS).find_map(|_| {
            state.shared_hand = (state.shared_hand + 1) % OVERFLOW as u32;
            let at = self.buckets + state.shared_hand;
            self.release_if_full(state, at).then_some(at)
        })
    }

    /// One with this quota shares slot `at`: of its quota and that of the others the strictest holds.
    fn tighten(&self, at: u32, quota: &Quota, version: u64) {
        let slot = self.board.slot(self.core, at);
        let before = slot.quota().0;
        let strictest = before.strictest(quota);
        if strictest != before {
            slot.set_quota(&strictest, version);
        }
    }

    /// Takes a slot from its key if the bucket is full.
    fn release_if_full(&self, state: &mut TableState, at: u32) -> bool {
        let slot = self.board.slot(self.core, at);
        let generation = slot.generation.load(Relaxed);
        let is_full = slot.full.value() == slot.wanted.value() + 1;
        if generation == 0 || !is_full || slot.linked.load(Acquire) != generation {
            return false;
        }
        // What an unfinished body brings is owed. Its connection has it for a bounded time only.
        if slot.open.value() > 0 {
            return false;
        }
        slot.generation.store(0, Release);
        state.index.remove(&slot.key.value());
        state.beside.remove(&at);
        true
    }

    /// Frees slots whose buckets are full and that nobody has asked for since they were last looked
    /// at, a minute ago. To be called every second: each call looks at one slot in sixty, so that
    /// requests do not wait for a whole table.
    pub fn sweep(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.swept.resize(state.fresh as usize, u64::MAX);
        state.sweep_turn = (state.sweep_turn + 1) % SWEEP_TURNS;
        for at in (state.sweep_turn..state.fresh).step_by(SWEEP_TURNS as usize) {
            let wanted = self.board.slot(self.core, at).wanted.value();
            let before = std::mem::replace(&mut state.swept[at as usize], wanted);
            if before == wanted && self.release_if_full(state, at) {
                state.free.push_back(at);
            }
        }
    }

    /// How many buckets are in use.
    pub fn buckets_used(&self) -> usize {
        self.state.borrow().index.len()
    }

    /// Those of them that are shared by keys that found the table full.
    #[cfg(test)]
    pub(super) fn overflow_len(&self) -> usize {
        self.state.borrow().index.values().filter(|at| **at >= self.buckets).count()
    }

    /// How often a key found no slot of its own.
    pub fn overflowed(&self) -> u64 {
        self.state.borrow().overflowed
    }

    /// Counts a request that is about to be judged.
    #[inline]
    pub fn want(&self, id: SlotId) {
        self.slot(id).wanted.inc();
    }

    /// Whether a request passes; it has not spent anything after this.
    #[inline]
    pub fn judge(&self, id: SlotId, now: Instant) -> QuotaVerdict {
        let slot = self.slot(id);
        if slot.meters.iter().all(|meter| meter.left() > 0) {
            return QuotaVerdict::Pass;
        }
        self.judge_empty(slot, id, now)
    }

    #[cold]
    fn judge_empty(&self, slot: &Slot, id: SlotId, now: Instant) -> QuotaVerdict {
        let has_none = |unit: &Unit| slot.meters[*unit as usize].left() <= 0;
        let short = Unit::ALL.into_iter().filter(has_none);
        if let Some(since) = self.board.alone_since(now) {
            let mut refused = short.filter(|unit| !self.passes_alone(slot, id, *unit, since, now));
            return refused.next().map_or(QuotaVerdict::Pass, QuotaVerdict::Refuse);
        }
        let is_nowhere = |unit: &Unit| self.is_nowhere(slot, id, *unit);
        short.clone().find(is_nowhere).map_or(QuotaVerdict::Wait, QuotaVerdict::Refuse)
    }

    /// Whether other cores have no tokens of `unit` either, for a core that has none. That is so if
    /// control says it, or if this core has spent so much beyond what it had that a whole bucket
    /// could not repay it.
    fn is_nowhere(&self, slot: &Slot, id: SlotId, unit: Unit) -> bool {
        let meter = &slot.meters[unit as usize];
        let burst = slot.quota().0.of(unit).map_or(0, |limit| limit.burst as i64);
        let is_linked = slot.linked.load(Acquire) == id.generation;
        is_linked && (meter.level() <= 0 || meter.suffices.value() == 0)
            || meter.left().saturating_add(burst) <= 0
    }

    /// Whether a core on its own has got a token of `unit` since `since` that it has not spent: of
    /// rate and burst it has an equal share.
    fn passes_alone(
        &self,
        slot: &Slot,
        id: SlotId,
        unit: Unit,
        since: Instant,
        now: Instant,
    ) -> bool {
        let Some(limit) = slot.quota().0.of(unit) else { return true };
        let mut state = self.state.borrow_mut();
        let beside = state.beside(id, now);
        let spent = slot.meters.each_ref().map(|meter| meter.spent.value());
        let alone = match &mut beside.alone {
            Some(alone) if alone.since == since => alone,
            other => other.insert(Alone { since, spent, lost: [0; 2] }),
        };
        let elapsed = now.saturating_duration_since(since).as_nanos();
        let per_token = u128::from(limit.per_s) * 1_000_000_000 * self.board.cores() as u128;
        let came = elapsed * u128::from(limit.amount) / per_token;
        let at = unit as usize;
        let spent = spent[at].wrapping_sub(alone.spent[at]) as i64;
        let left = came as i128 - i128::from(spent) - i128::from(alone.lost[at]);
        let most = i128::from(limit.burst.div_ceil(self.board.cores() as u64));
        alone.lost[at] += (left - most).max(0) as u64;
        left > 0
    }

    /// Whether a request that has waited still has reason to.
    pub fn may_still_wait(&self, id: SlotId) -> bool {
        let slot = self.slot(id);
        let is_linked = slot.linked.load(Acquire) == id.generation;
        let is_hopeless = |meter: &QuotaMeter| meter.left() <= 0 && meter.level() <= 0;
        !is_linked || !slot.meters.iter().any(is_hopeless)
    }

    /// A request passes, with a body that is expected to have `bytes` bytes.
    /// [`QuotaTable::correct`] must follow once: until then the slot is not given away.
    #[inline]
    pub fn open(&self, id: SlotId, bytes: i64) {
        // A request that has waited may have lost its slot, because the bucket was full.
        if self.is_current(id) {
            self.slot(id).open.inc();
            self.spend(id, bytes);
        }
    }

    /// A request passes, with a body of `bytes` bytes.
    #[inline]
    pub fn spend(&self, id: SlotId, bytes: i64) {
        let slot = self.slot(id);
        slot.passed.inc();
        slot.meters[Unit::Requests as usize].spend(1);
        slot.meters[Unit::Bytes as usize].spend(bytes);
    }

    /// Of an earlier [`QuotaTable::open`], the body has `more` bytes more, or less, than were
    /// expected.
    #[inline]
    pub fn correct(&self, id: SlotId, more: i64) {
        if self.is_current(id) {
            let slot = self.slot(id);
            slot.open.set(slot.open.value().saturating_sub(1));
            slot.meters[Unit::Bytes as usize].spend(more);
        }
    }

    /// Counts a refusal. Returns after how many whole seconds a request is likely to pass, the quota,
    /// and for each unit what is left.
    pub fn refuse(&self, id: SlotId, now: Instant) -> Exhausted {
        let slot = self.slot(id);
        let is_empty = Unit::ALL.map(|unit| slot.meters[unit as usize].left() <= 0);
        let is_short =
            Unit::ALL.map(|unit| is_empty[unit as usize] && self.is_nowhere(slot, id, unit));
        let mut state = self.state.borrow_mut();
        let beside = state.beside(id, now);
        let age = now.saturating_duration_since(beside.window);
        if age >= Duration::from_secs(1) {
            let lately = age < Duration::from_secs(2);
            beside.refused_before = if lately { beside.refused } else { 0 };
            (beside.refused, beside.window) = (0, now);
        }
        beside.refused += 1;
        let refused = beside.refused.max(beside.refused_before);
        let quota = slot.quota().0;
        let mut exhausted =
            Exhausted { quota, is_short, is_empty, left: [0; 2], reset_s: [1; 2], refused_s: 0 };
        for (at, (meter, unit)) in slot.meters.iter().zip(Unit::ALL).enumerate() {
            let Some(limit) = quota.of(unit) else { continue };
            // What was just spent beyond the limit is in no published level yet.
            let left = meter.left();
            let level = if left < 0 { meter.level().min(left) } else { meter.level() };
            exhausted.left[at] = level.max(left).max(0) as u64;
            exhausted.reset_s[at] = limit.seconds_for((1 - level).max(1) as u64);
            if unit == Unit::Requests && is_empty[at] {
                exhausted.refused_s = limit.seconds_for(refused - 1) - 1;
            }
        }
        exhausted
    }
}

impl TableState {
    fn beside(&mut self, id: SlotId, now: Instant) -> &mut LocalNotes {
        let fresh = LocalNotes {
            generation: id.generation,
            alone: None,
            window: now,
            refused: 0,
            refused_before: 0,
        };
        let beside = self.beside.entry(id.at).or_insert(fresh);
        if beside.generation != id.generation {
            *beside = fresh;
        }
        beside
    }
}

/// A bucket without tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted {
    pub quota: Quota,
    /// By [`Unit`]: whether no core has any, …
    pub is_short: [bool; 2],
    /// … whether this core has none, …
    pub is_empty: [bool; 2],
    /// … how much is left, perhaps on other cores, …
    pub left: [u64; 2],
    /// … and seconds until there is more, at least 1.
    pub reset_s: [u64; 2],
    /// How long the rate needs for those that this core has refused within a second, in whole
    /// seconds: if they all come back, most come in vain.
    pub refused_s: u64,
}
