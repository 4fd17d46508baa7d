//! How many puts a core has in flight: between 1 and `MAX_WORKERS`, adapted to what the store and the way to it take.
//!
//! Too many uploads at a time make a slow link slower and a busy store busier; too few leave a fast one idle. Three
//! signals move the limit, and latency alone is none of them, for it follows the size of the objects:
//!
//! - **Growth.** Once per round the limit grows if it was reached: doubled at the beginning, by one later. A round is
//!   one PUT time: it ends when a put is stored that began after the round did (as BBR counts round trips), and as many
//!   were stored as the limit allows at a time. A round in which the limit was not reached says nothing about it.
//! - **Congestion.** A timeout, a reset, 429 or 503 lowers the limit by [`CUT`], once for all puts that were in flight
//!   together. A limit that the store has refused is approached again only after a while (see [`Ceiling`]).
//! - **No more goodput.** Stored bytes per second are compared with those of a lower limit. If half as many puts again
//!   have not brought a quarter of the proportional gain, the limit goes back, and somewhat below, so that it also finds
//!   its way down when the link has become slower. Puts that take less than [`HARMLESS`] wait for nobody, and a limit of
//!   [`FEW`] congests nothing: below these goodput is not judged, so a fast store costs no arithmetic and no puts.
//!
//! Pure: the clock is the caller's. Never leaves its core.

use std::time::{Duration, Instant};

/// Limit at the start. It doubles per PUT time while that helps, so 32 are reached after one of them.
const AT_START: usize = 16;
/// What is left of the limit after congestion, as CUBIC (RFC 9438) has it.
const CUT: f64 = 0.7;
/// What is left of the best known limit after a larger one has brought nothing.
const STEP_BACK: f64 = 0.75;
/// Share of the proportional gain in goodput below which more puts in flight count as having brought nothing.
const WORTH: f64 = 0.25;
/// A limit is judged when it has grown to this many times the one it is compared with.
const JUDGED_AT: f64 = 1.5;
/// Rounds without a gain that end the doubling, as in BBR's startup.
const FLAT_ROUNDS: u32 = 3;
/// Rounds of a limit before it is judged.
const JUDGED_ROUNDS: u32 = 5;
/// Goodput of which share of that before counts as the same.
const AS_GOOD: f64 = 0.95;
/// Time at `MAX_WORKERS` after which it is tried whether fewer puts in flight do as well.
const LOOKED_BELOW_AFTER: Duration = Duration::from_secs(30);
/// No goodput is worth judging while a put takes less than this on average.
const HARMLESS: Duration = Duration::from_millis(100);
/// Puts that take longer than this at the start are too many already, or large.
const SLOW: Duration = Duration::from_secs(5);
/// Goodput alone never lowers the limit below this, or below the one it is compared with.
const FEW: usize = 8;
/// What an object costs beside its bytes: head, answer, and the store's own work.
const OBJECT_BYTES: u64 = 1024;

/// The number of puts in flight on one core, and its limit.
#[derive(Debug)]
pub struct PutLimit {
    max: usize,
    limit: usize,
    in_flight: usize,
    round: PutRound,
    phase: LimitPhase,
    ceiling: Option<Ceiling>,
    /// When the limit was last lowered by congestion: what began before says nothing new.
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
    /// There was room at some time, and nothing to put: the goodput says nothing about the limit.
    starved: bool,
}

#[derive(Clone, Copy, Debug)]
enum LimitPhase {
    /// Doubling, for as long as that brings goodput: the best limit so far, and rounds without a gain.
    Startup { best: GoodputSample, flat: u32 },
    /// After the limit was lowered: the round that is under way began with more puts in flight.
    Settling { before: Option<f64> },
    /// The goodput at the present limit is measured, and compared with that `before` it was lowered.
    Measuring { before: Option<f64>, rounds: Rounds },
    /// Growing by one, to be compared with a lower limit.
    Growing { base: GoodputSample, since: Instant, rounds: Rounds },
}

/// What several rounds have stored: one alone is too noisy to be judged.
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

/// Bytes per second with so many puts in flight.
#[derive(Clone, Copy, Debug)]
struct GoodputSample {
    limit: usize,
    goodput: f64,
}

/// The highest limit that the store has not refused, and until when it is kept to. Each refusal soon after another one
/// doubles the time.
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

    /// Whether one more put may begin.
    pub fn has_room(&self) -> bool {
        self.in_flight < self.limit
    }

    /// A put begins.
    pub fn begin(&mut self) {
        self.in_flight += 1;
        self.round.used |= self.in_flight >= self.limit;
    }

    /// More could be in flight but for the limit.
    pub fn used(&mut self) {
        self.round.used = true;
    }

    /// There was room for a put and nothing to put.
    pub fn starved(&mut self) {
        self.round.starved = true;
    }

    /// A put has ended, whatever became of it.
    pub fn end(&mut self) {
        self.in_flight -= 1;
    }

    /// A put of an object of `bytes` was stored at `now`, having begun at `began`.
    pub fn stored(&mut self, began: Instant, now: Instant, bytes: u64) {
        self.round.bytes += bytes + OBJECT_BYTES;
        self.round.objects += 1;
        if began >= self.round.began && self.round.objects >= self.limit as u64 {
            self.end_round(began, now);
        }
    }

    /// A put that began at `began` has failed at `now` for too much being in flight, here or elsewhere.
    pub fn congested(&mut self, began: Instant, now: Instant) {
        if self.cut_at.is_some_and(|cut| began <= cut) {
            return;
        }
        self.cut_at = Some(now);
        if self.limit == 1 {
            // The number of puts is not the reason.
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

    /// `began` is when the put did that ends the round.
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
            let grown = match self.phase {
                LimitPhase::Startup { .. } => 2 * self.limit,
                _ => self.limit + 1,
            };
            return self.raise_to(grown, now);
        }
        let took = now.saturating_duration_since(round.began).max(Duration::from_nanos(1));
        // By Little's law, with the limit in flight.
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

    /// Doubles the limit for as long as that brings goodput, or harms nobody.
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

    /// Lowers the limit once more where a lower one does as well; else it grows from here.
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

    /// From which limit on goodput is compared with that of `base`.
    fn judged_at(&self, base: GoodputSample) -> usize {
        scaled(base.limit, JUDGED_AT).max(base.limit + 1).min(self.max)
    }

    /// Raises the limit by one, up to where it is judged what that has brought.
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
            // There is nothing higher to try; whether less would do is tried now and then.
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
