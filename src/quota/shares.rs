//! How the tokens of one bucket are spread over the cores: a function of counts and time.
//!
//! The bucket's contents are whole tokens. Each is in one of three places: with a core, which may
//! spend it at any moment without asking; in the pool; or in transit, which is where a token is
//! between the tick that takes it from a core and the next one, because the core may spend it
//! before it sees that it has lost it. So at every moment
//!
//! ```text
//! pool + transit + Σ (limit - spent of each core)  ≤  burst
//! ```
//!
//! and the sum only grows by the rate: over any time, cores spend at most the rate times that time
//! and one burst. A core that spends more than it has (a body is longer than what is left; it did
//! not see in time that its limit was lowered; control was stuck) makes the pool negative by as
//! much, and the rate repays that before anybody gets anything.
//!
//! Where tokens suffice, each core gets what it is about to need, and the rest is spread evenly, so
//! that demand that moves to another core finds tokens there. Where they do not, each gets a part
//! in proportion to its demand. Cores that have no slot for this bucket yet have tokens reserved
//! for them, which they may claim without asking, as long as tokens suffice; when they do not, the
//! bucket is marked *tight* first, and a core that finds the mark claims nothing.

use std::time::Instant;

use super::Limit;

/// What one core has done, as its cells say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Tokens spent since the core got its slot.
    pub spent: i64,
    /// Tokens that its requests since the last tick asked for, refused ones included.
    pub wanted: u64,
}

/// One bucket.
pub struct Shares {
    limit: Limit,
    /// Tokens that no core has. Negative is debt.
    pool: i64,
    /// What there was room for at the last tick, and has become so by debt since.
    room: i64,
    /// Of the next token, what the rate has brought, in `per_s` nanoseconds × amount.
    part: u128,
    filled: Instant,
    /// Tokens taken from cores at the last tick, which they may have spent before they saw that.
    transit: i64,
    cores: Box<[CoreShare]>,
    /// What a core may claim with its slot, by core.
    initial: Box<[i64]>,
    /// Whether cores without a slot have nothing to claim.
    tight: bool,
    /// Whether demand can be met: see [`Shares::suffices`].
    suffices: bool,
    /// Which core gets the first of the tokens that cannot be divided.
    turn: usize,
}

/// Parts of a token in which demand is measured, so that one request is remembered for the second
/// or so that its token may need to get to it.
const PARTS: u64 = 16;

/// What a core has of a bucket.
#[derive(Clone, Copy, Debug, Default)]
struct CoreShare {
    has_slot: bool,
    /// The core may spend up to this count; without a slot, what it may claim.
    limit: i64,
    spent: i64,
    /// Tokens wanted per tick, in [`PARTS`].
    demand: u64,
    /// Tokens that requests did not get since there were last any: they may be waiting.
    unmet: i64,
}

impl CoreShare {
    fn held(&self) -> i64 {
        self.limit.saturating_sub(self.spent)
    }

    /// Demand rises at once and falls by a quarter per tick. Without requests it is forgotten,
    /// unless some may be waiting, …
    fn look(&mut self, seen: Seen) {
        let spent = seen.spent.saturating_sub(std::mem::replace(&mut self.spent, seen.spent));
        let wanted = i64::try_from(seen.wanted).unwrap_or(i64::MAX);
        let before = if wanted > 0 { wanted } else { self.unmet };
        self.unmet = before.saturating_sub(spent).max(0);
        if wanted > 0 {
            let decayed = self.demand - self.demand.div_ceil(4);
            self.demand = seen.wanted.saturating_mul(PARTS).max(decayed);
        } else if self.unmet > 0 && self.held() <= 0 {
            // … and then soon, because demand has perhaps moved to another core.
            self.demand = (self.demand / 2).min((self.unmet as u64).saturating_mul(PARTS));
        } else {
            self.demand = 0;
        }
    }

    /// What it should have for the time until the next tick, which may be late.
    fn need(&self) -> i64 {
        let need = self.demand.div_ceil(PARTS) + self.demand / (2 * PARTS);
        i64::try_from(need).unwrap_or(i64::MAX)
    }
}

/// Tokens that core `at` of `cores` may claim of a bucket that nobody has used: its part of the
/// burst. The tokens that cannot be divided go to cores that depend on `key`.
pub fn initial(burst: u64, cores: usize, at: usize, key: u64) -> i64 {
    let count = cores as u64;
    let place = (at as u64 + key % count) % count;
    (burst / count + u64::from(place < burst % count)) as i64
}

impl Shares {
    /// A full bucket, all of whose tokens may be claimed by `cores` cores.
    pub fn new(limit: Limit, cores: usize, key: u64, now: Instant) -> Shares {
        let initial: Box<[i64]> =
            (0..cores).map(|at| initial(limit.burst, cores, at, key)).collect();
        let share = |claim: &i64| CoreShare { limit: *claim, ..CoreShare::default() };
        Shares {
            limit,
            pool: 0,
            room: 0,
            part: 0,
            filled: now,
            transit: 0,
            cores: initial.iter().map(share).collect(),
            initial,
            tight: false,
            suffices: true,
            turn: (key % cores as u64) as usize,
        }
    }

    /// Core `at` has got a slot, in which its count begins at `began`, and has claimed `claimed`
    /// tokens for it. A slot that it had before is given up.
    pub fn join(&mut self, at: usize, claimed: i64, began: i64) {
        if self.cores[at].has_slot {
            self.leave(at);
        }
        let share = &mut self.cores[at];
        // It may have looked at the mark just before that was set.
        self.pool = self.pool.saturating_sub(claimed.saturating_sub(share.limit));
        *share = CoreShare {
            has_slot: true,
            limit: began.saturating_add(claimed),
            spent: began,
            ..CoreShare::default()
        };
    }

    /// Core `at` has given up its slot, and has spent nothing since the last tick.
    pub fn leave(&mut self, at: usize) {
        let share = &mut self.cores[at];
        let claim = if self.tight { 0 } else { self.initial[at] };
        self.pool = self.pool.saturating_add(share.held().saturating_sub(claim));
        *share = CoreShare { limit: claim, ..CoreShare::default() };
    }

    /// The rate or the burst has changed. The contents stay, also if they are debt, so that a change
    /// is no fresh burst.
    pub fn change(&mut self, limit: Limit, key: u64) {
        let cores = self.cores.len();
        self.limit = limit;
        self.part = 0;
        self.initial = (0..cores).map(|at| initial(limit.burst, cores, at, key)).collect();
        // Cores without a slot claim by the new burst from now on.
        for (share, claim) in self.cores.iter_mut().zip(&self.initial) {
            if !share.has_slot && !self.tight {
                self.pool = self.pool.saturating_add(share.limit.saturating_sub(*claim));
                share.limit = *claim;
            }
        }
        self.room = (limit.burst as i64).saturating_sub(self.level());
    }

    /// Moves tokens, given what each core with a slot has done.
    pub fn tick(&mut self, now: Instant, seen: &[Option<Seen>]) {
        for (share, seen) in self.cores.iter_mut().zip(seen) {
            let Some(seen) = seen else { continue };
            share.look(*seen);
            if share.held() < 0 {
                self.room = self.room.saturating_sub(share.held());
                self.pool = self.pool.saturating_add(share.held());
                share.limit = share.spent;
            }
        }
        self.pool = self.pool.saturating_add(std::mem::take(&mut self.transit));
        self.refill(now);
        self.spread();
        self.room = (self.limit.burst as i64).saturating_sub(self.level());
    }

    /// Adds what the rate has brought, up to the burst. No more than there was room for when the
    /// time began: when in it tokens were spent is not known, and what came to a full bucket
    /// before that was lost.
    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled).as_nanos();
        self.filled = self.filled.max(now);
        let per_token = u128::from(self.limit.per_s) * 1_000_000_000;
        let came = elapsed.saturating_mul(self.limit.amount.into());
        self.part = self.part.saturating_add(came);
        let whole = i64::try_from(self.part / per_token).unwrap_or(i64::MAX / 4);
        self.part %= per_token;
        if whole >= self.room {
            self.part = 0;
        }
        self.pool = self.pool.saturating_add(whole.min(self.room.max(0)));
        self.pool = self.pool.min((self.limit.burst as i64).saturating_sub(self.held()));
    }

    fn held(&self) -> i64 {
        self.cores.iter().map(CoreShare::held).fold(0, i64::saturating_add)
    }

    /// Decides what each core should have, gives it what it lacks, and takes from others what is
    /// missing for that.
    fn spread(&mut self) {
        let available = self.pool.saturating_add(self.held()).max(0);
        let joined = self.cores.iter().filter(|share| share.has_slot).count() as i64;
        let need: i64 = self.cores.iter().map(CoreShare::need).fold(0, i64::saturating_add);
        let claims = self.claims().map(|(_, claim)| claim).fold(0, i64::saturating_add);
        self.suffices = need <= available && available > 0;
        let room_for_claims = need.saturating_add(claims) <= available;
        // Marks are not taken back as long as the bucket is not nearly full again.
        let stays_tight = self.tight && available < self.limit.burst as i64 / 4 * 3;
        let may_claim = room_for_claims && !stays_tight;
        let for_claims = if may_claim { claims } else { 0 };
        let targets: Vec<i64> = match self.suffices {
            true => {
                let rest =
                    available.saturating_sub(need).saturating_sub(for_claims) / joined.max(1);
                let of = |(share, claim): (&CoreShare, &i64)| match share.has_slot {
                    true => share.need().saturating_add(rest),
                    false if may_claim => *claim,
                    false => 0,
                };
                self.cores.iter().zip(&self.initial).map(of).collect()
            }
            false => {
                let part = |share: &CoreShare| {
                    let part = i128::from(available) * i128::from(share.need());
                    (part / i128::from(need.max(1))) as i64
                };
                self.cores.iter().map(part).collect()
            }
        };
        self.take_back(&targets, may_claim);
        self.give(&targets, may_claim);
    }

    /// What cores without a slot may claim when tokens suffice.
    fn claims(&self) -> impl Iterator<Item = (usize, i64)> {
        let without = self.cores.iter().zip(&self.initial).enumerate();
        without.filter(|(_, (share, _))| !share.has_slot).map(|(at, (_, claim))| (at, *claim))
    }

    /// Takes from cores what they have beyond their targets, if others lack it.
    fn take_back(&mut self, targets: &[i64], claims: bool) {
        let lacks =
            |(share, target): (&CoreShare, &i64)| target.saturating_sub(share.held()).max(0);
        let lacking = self.cores.iter().zip(targets).map(lacks).fold(0, i64::saturating_add);
        let mut missing = lacking.saturating_sub(self.pool).max(0);
        // So few tokens that no core's part is a whole one: those that lie idle are used.
        let only_idle = missing == 0 && !self.suffices && self.pool == 0;
        if only_idle {
            missing = 1;
        }
        for (share, target) in self.cores.iter_mut().zip(targets) {
            if share.has_slot && !(only_idle && share.need() > 0) {
                let taken = share.held().saturating_sub(*target).clamp(0, missing);
                share.limit -= taken;
                self.transit = self.transit.saturating_add(taken);
                missing -= taken;
            }
        }
        // All of them or none: one mark says that there is nothing to claim.
        if !claims && missing > 0 && !self.tight {
            self.tight = true;
            for share in self.cores.iter_mut().filter(|share| !share.has_slot) {
                let taken = std::mem::take(&mut share.limit);
                self.transit = self.transit.saturating_add(taken);
            }
        }
    }

    /// Gives cores what they lack, as far as the pool goes.
    fn give(&mut self, targets: &[i64], claims: bool) {
        let count = self.cores.len();
        self.turn = (self.turn + 1) % count;
        for at in (0..count).map(|at| (at + self.turn) % count) {
            let share = &mut self.cores[at];
            if share.has_slot {
                let given = targets[at].saturating_sub(share.held()).clamp(0, self.pool.max(0));
                share.limit = share.limit.saturating_add(given);
                self.pool -= given;
            }
        }
        let claimable: i64 = self.claims().map(|(_, claim)| claim).sum();
        if claims && self.tight && self.pool >= claimable {
            self.tight = false;
            self.pool -= claimable;
            for (share, claim) in self.cores.iter_mut().zip(&self.initial) {
                if !share.has_slot {
                    share.limit = *claim;
                }
            }
        }
        // What could not be divided goes to whoever asks for most.
        let whole = self.pool.max(0);
        let most = (0..count).map(|at| (at + self.turn) % count);
        let most = most.filter(|at| self.cores[*at].has_slot && self.cores[*at].need() > 0);
        if !self.suffices
            && whole > 0
            && let Some(at) =
                most.max_by_key(|at| self.cores[*at].need().saturating_sub(self.cores[*at].held()))
        {
            self.cores[at].limit = self.cores[at].limit.saturating_add(whole);
            self.pool -= whole;
        }
    }

    /// Up to which count core `at` may spend.
    pub fn limit_of(&self, at: usize) -> i64 {
        self.cores[at].limit
    }

    /// Tokens of all cores, the pool and in transit; negative is debt.
    pub fn level(&self) -> i64 {
        self.pool.saturating_add(self.transit).saturating_add(self.held())
    }

    /// Whether all demand can be met, so that a core without tokens gets some with the next ticks.
    pub fn suffices(&self) -> bool {
        self.suffices
    }

    /// Whether cores without a slot must claim nothing.
    pub fn is_tight(&self) -> bool {
        self.tight
    }

    /// Whether nothing would be lost if the bucket was forgotten.
    pub fn is_full(&self) -> bool {
        self.level() >= self.limit.burst as i64 && !self.tight
    }

    /// Whether ticks would change nothing.
    pub fn is_quiet(&self) -> bool {
        self.is_full() && self.cores.iter().all(|share| share.demand == 0)
    }

    /// The limit in effect.
    pub fn limit(&self) -> Limit {
        self.limit
    }
}
