//! Limits how many PUTs a core has in flight: between 1 and `MAX_WORKERS`, adapted to what the
//! store and the network handle.
//!
//! Too many uploads at a time make a slow link slower and a busy store busier; too few leave a fast
//! one idle. Three signals move the limit. Latency alone is not one of them, because it depends on
//! the size of the objects:
//!
//! - **Growth.** Once per round the limit grows if it was reached: it doubles at the start and
//!   grows by one later. A round is one PUT time: it ends when a PUT is stored that began after the
//!   round did (as BBR counts round trips), and as many were stored as the limit allows at a time.
//!   A round in which the limit was not reached says nothing about it.
//! - **Congestion.** A timeout, a reset, 429 or 503 multiplies the limit by [`CUT`], once for all
//!   PUTs that were in flight together. A limit that the store has refused is approached again only
//!   after a while (see [`Ceiling`]).
//! - **No gain in goodput.** Stored bytes per second are compared with those at a lower limit. If
//!   half as many PUTs again have not brought a quarter of the proportional gain, the limit returns
//!   to somewhat below the lower one, so it also falls when the link has become slower. PUTs that
//!   take less than [`HARMLESS`] do not queue, and a limit of [`FEW`] congests nothing: below
//!   these, goodput is not judged, so a fast store costs no arithmetic and no PUTs.
//!
//! Pure: the caller provides the time. Stays on its core.

use std::time::{Duration, Instant};

/// Limit at the start. It doubles per PUT time while that helps, so it is 32 after one PUT time.
const AT_START: usize = 16;
/// Factor of the limit after congestion, as in CUBIC (RFC 9438).
const CUT: f64 = 0.7;
/// Factor of the best known limit after a larger one has gained nothing.
const STEP_BACK: f64 = 0.75;
/// Share of the proportional gain in goodput below which more PUTs in flight count as no gain.
const WORTH: f64 = 0.25;
/// A limit is judged when it has grown by this factor over the one it is compared with.
const JUDGED_AT: f64 = 1.5;
/// Rounds without a gain after which the doubling ends, as in BBR's startup.
const FLAT_ROUNDS: u32 = 3;
/// Rounds at a limit before it is judged.
const JUDGED_ROUNDS: u32 = 5;
/// Share of the earlier goodput that counts as the same.
const AS_GOOD: f64 = 0.95;
/// Time at the highest limit after which a lower one is tried.
const LOOKED_BELOW_AFTER: Duration = Duration::from_secs(30);
/// Goodput is not judged while a PUT takes less than this on average.
const HARMLESS: Duration = Duration::from_millis(100);
/// PUTs that take longer than this at the start are too many already, or large.
const SLOW: Duration = Duration::from_secs(5);
/// Goodput alone never lowers the limit below this, or below the limit it is compared with.
const FEW: usize = 8;
/// Cost of an object in addition to its bytes: request head, answer, and the store's own work.
const OBJECT_BYTES: u64 = 1024;

/// The number of PUTs in flight on one core, and its limit.
#[derive(Debug)]
pub struct PutLimit {
    max: usize,
    limit: usize,
    in_flight: usize,
    round: PutRound,
    phase: LimitPhase,
    ceiling: Option<Ceiling>,
    /// When congestion last lowered the limit. A PUT that began before that says nothing new.
    cut_at: Option<Instant>,
}

/// One PUT time.
#[derive(Debug)]
struct PutRound {
    began: Instant,
    bytes: u64,
    objects: u64,
    /// The limit was reached.
    used: bool,
    /// At some time there was room and nothing to upload, so the goodput says nothing about the
    /// limit.
    starved: bool,
}

#[derive(Clone, Copy, Debug)]
enum LimitPhase {
    /// Doubles while that gains goodput: the best limit so far, and the rounds without a gain.
    Startup { best: GoodputSample, flat: u32 },
    /// After the limit was lowered: the current round began with more PUTs in flight.
    Settling { before: Option<f64> },
    /// Measures the goodput at the present limit and compares it with that `before` it was lowered.
    Measuring { before: Option<f64>, rounds: Rounds },
    /// Grows by one, to be compared with a lower limit.
    Growing { base: GoodputSample, since: Instant, rounds: Rounds },
}

/// What several rounds have stored. One alone is too noisy to be judged.
#[derive(Clone, Copy, Debug, Default)]
struct Rounds {
    count: u32,
    bytes: f64,
    seconds: f64,
}

impl Rounds {
    fn with(self, bytes: u64, took: Duration) -> Rounds {
        let (bytes, seconds) = (self.bytes + bytes as f64, self.seconds + took.as_secs_f64());
        Rounds { count: self.count + 1, bytes, seconds }
    }

    fn are_enough(self) -> bool {
        self.count >= JUDGED_ROUNDS
    }

    fn goodput(self) -> f64 {
        self.bytes / self.seconds
    }
}

/// Bytes per second at a limit.
#[derive(Clone, Copy, Debug)]
struct GoodputSample {
    limit: usize,
    goodput: f64,
}

/// The highest limit that the store has not refused, and until when the limit stays at or below it.
/// Each refusal soon after another one doubles the time.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    limit: usize,
    until: Instant,
    hold: Duration,
}

impl Ceiling {
    const HOLD_MIN: Duration = Duration::from_secs(1);
    const HOLD_MAX: Duration = Duration::from_secs(30);
}

impl PutLimit {
    /// For a core with `max` upload workers.
    pub fn new(max: usize, now: Instant) -> PutLimit {
        assert!(max > 0, "a core has at least one worker");
        PutLimit {
            max,
            limit: AT_START.min(max),
            in_flight: 0,
            round: PutRound::new(now),
            phase: LimitPhase::STARTUP,
            ceiling: None,
            cut_at: None,
        }
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether one more PUT may begin.
    pub fn has_room(&self) -> bool {
        self.in_flight < self.limit
    }

    /// A PUT begins.
    pub fn begin(&mut self) {
        self.in_flight += 1;
        self.round.used |= self.in_flight >= self.limit;
    }

    /// Only the limit keeps more PUTs from being in flight.
    pub fn used(&mut self) {
        self.round.used = true;
    }

    /// There was room for a PUT and nothing to upload.
    pub fn starved(&mut self) {
        self.round.starved = true;
    }

    /// A PUT has ended, whatever its outcome.
    pub fn end(&mut self) {
        self.in_flight -= 1;
    }

    /// A PUT of `bytes` that began at `began` was stored at `now`.
    pub fn stored(&mut self, began: Instant, now: Instant, bytes: u64) {
        self.round.bytes += bytes + OBJECT_BYTES;
        self.round.objects += 1;
        if began >= self.round.began && self.round.objects >= self.limit as u64 {
            self.end_round(began, now);
        }
    }

    /// A PUT that began at `began` failed at `now` because too many were in flight, here or
    /// elsewhere.
    pub fn congested(&mut self, began: Instant, now: Instant) {
        if self.cut_at.is_some_and(|cut| began <= cut) {
            return;
        }
        self.cut_at = Some(now);
        if self.limit == 1 {
            // With a single PUT in flight their number is not the reason.
            (self.ceiling, self.phase) = (None, LimitPhase::STARTUP);
        } else {
            let again = self.ceiling.filter(|ceiling| now < ceiling.until + ceiling.hold);
            let hold = again.map_or(Ceiling::HOLD_MIN, |ceiling| 2 * ceiling.hold);
            let hold = hold.min(Ceiling::HOLD_MAX);
            self.ceiling = Some(Ceiling { limit: self.limit - 1, until: now + hold, hold });
            self.limit = scaled(self.limit, CUT).max(1);
            self.phase = LimitPhase::Settling { before: None };
        }
        self.round = PutRound::new(now);
    }

    /// `began`: when the PUT began that ends the round.
    fn end_round(&mut self, began: Instant, now: Instant) {
        let round = std::mem::replace(&mut self.round, PutRound::new(now));
        if !round.used {
            return;
        }
        if matches!(self.phase, LimitPhase::Startup { .. })
            && now.saturating_duration_since(began) >= SLOW
        {
            self.limit = (self.limit / 2).max(FEW.min(self.limit));
            self.phase = LimitPhase::Settling { before: None };
            return;
        }
        if round.starved {
            // There was no goodput to judge; the limit grows because it was reached.
            let grown = match self.phase {
                LimitPhase::Startup { .. } => 2 * self.limit,
                _ => self.limit + 1,
            };
            return self.raise_to(grown, now);
        }
        let took = now.saturating_duration_since(round.began).max(Duration::from_nanos(1));
        // Little's law, with as many PUTs in flight as the limit allows.
        let put_time = took.mul_f64(self.limit as f64 / round.objects as f64);
        let is_harmless = put_time < HARMLESS;
        let this = Rounds::default().with(round.bytes, took);
        self.phase = match self.phase {
            LimitPhase::Startup { best, flat } => {
                self.start_up(this.goodput(), is_harmless, best, flat, now)
            }
            LimitPhase::Settling { before } => {
                LimitPhase::Measuring { before, rounds: Rounds::default() }
            }
            LimitPhase::Measuring { before, rounds } => {
                self.measure(before, rounds.with(round.bytes, took), now)
            }
            LimitPhase::Growing { base, since, rounds } => {
                let judged = self.limit >= self.judged_at(base);
                let rounds = if judged { rounds.with(round.bytes, took) } else { rounds };
                self.grow(is_harmless, base, since, rounds, now)
            }
        };
    }

    /// Doubles the limit while that gains goodput or is harmless.
    fn start_up(
        &mut self,
        goodput: f64,
        is_harmless: bool,
        best: GoodputSample,
        flat: u32,
        now: Instant,
    ) -> LimitPhase {
        let gained = goodput >= best.goodput * (1.0 + WORTH);
        let here = GoodputSample { limit: self.limit, goodput };
        let (best, flat) = if gained { (here, 0) } else { (best, flat + 1) };
        let is_flat = flat >= FLAT_ROUNDS;
        if is_flat && !is_harmless && best.limit < self.limit {
            self.limit = best.limit.max(FEW.min(self.limit));
            return LimitPhase::Settling { before: None };
        }
        if is_flat && (self.limit == self.max || !is_harmless) {
            return LimitPhase::Growing { base: here, since: now, rounds: Rounds::default() };
        }
        if gained || is_harmless {
            self.raise_to(2 * self.limit, now);
        }
        LimitPhase::Startup { best, flat }
    }

    /// Lowers the limit again if the lower one does as well; otherwise it grows from here.
    fn measure(&mut self, before: Option<f64>, rounds: Rounds, now: Instant) -> LimitPhase {
        if !rounds.are_enough() {
            return LimitPhase::Measuring { before, rounds };
        }
        let goodput = rounds.goodput();
        if before.is_some_and(|before| goodput >= before * AS_GOOD) && self.limit > FEW {
            return self.step_back(self.limit, goodput);
        }
        let base = GoodputSample { limit: self.limit, goodput };
        LimitPhase::Growing { base, since: now, rounds: Rounds::default() }
    }

    fn step_back(&mut self, from: usize, goodput: f64) -> LimitPhase {
        self.limit = scaled(from, STEP_BACK).max(FEW.min(from));
        LimitPhase::Settling { before: Some(goodput) }
    }

    /// The limit from which on goodput is compared with that of `base`.
    fn judged_at(&self, base: GoodputSample) -> usize {
        scaled(base.limit, JUDGED_AT).max(base.limit + 1).min(self.max)
    }

    /// Raises the limit by one, up to the limit that is judged.
    fn grow(
        &mut self,
        is_harmless: bool,
        base: GoodputSample,
        since: Instant,
        rounds: Rounds,
        now: Instant,
    ) -> LimitPhase {
        let limit = self.limit;
        if limit < self.judged_at(base) {
            self.raise_to(limit + 1, now);
        }
        if !rounds.are_enough() {
            return LimitPhase::Growing { base, since, rounds };
        }
        let goodput = rounds.goodput();
        if base.limit >= limit {
            // There is nothing higher to try. Now and then a lower limit is tried.
            if !is_harmless && now - since >= LOOKED_BELOW_AFTER && limit > FEW {
                return self.step_back(limit, goodput);
            }
            let base = GoodputSample { limit, goodput };
            return LimitPhase::Growing { base, since, rounds: Rounds::default() };
        }
        let gain = 1.0 + WORTH * (limit as f64 / base.limit as f64 - 1.0);
        if !is_harmless && goodput < base.goodput * gain {
            return self.step_back(base.limit, base.goodput);
        }
        let base = GoodputSample { limit, goodput };
        LimitPhase::Growing { base, since: now, rounds: Rounds::default() }
    }

    fn raise_to(&mut self, limit: usize, now: Instant) {
        let ceiling = self.ceiling.filter(|ceiling| now < ceiling.until);
        let highest = ceiling.map_or(self.max, |ceiling| ceiling.limit.min(self.max));
        self.limit = limit.min(highest).max(self.limit);
    }
}

impl LimitPhase {
    const STARTUP: LimitPhase =
        LimitPhase::Startup { best: GoodputSample { limit: 0, goodput: 0.0 }, flat: 0 };
}

impl PutRound {
    fn new(now: Instant) -> PutRound {
        PutRound { began: now, bytes: 0, objects: 0, used: false, starved: false }
    }
}

fn scaled(limit: usize, by: f64) -> usize {
    (limit as f64 * by) as usize
}

#[cfg(test)]
mod tests;
