//! How the store does over the time of a load: the same cycle again and again, with another kind
//! of outage each time.

use std::time::Duration;

use crate::store::Weather;

/// Shares of a cycle: what begins when. What is not named is fair.
const BUSY: [f64; 2] = [0.15, 0.25];
const RESTART: [f64; 2] = [0.35, 0.38];
const OUTAGE: [f64; 2] = [0.50, 0.85];

/// For how long an outage goes on after both spools are full.
const FULL: Duration = Duration::from_secs(2);

pub struct Cycle {
    pub length: Duration,
    /// When both spools were seen full in the present outage.
    full_since: Option<Duration>,
}

impl Cycle {
    pub fn new(length: Duration) -> Cycle {
        Cycle { length, full_since: None }
    }

    /// The weather `elapsed` after the load has begun. An outage ends early once both spools are
    /// full.
    pub fn at(&mut self, elapsed: Duration, both_full: bool) -> Weather {
        let cycles = elapsed.as_secs_f64() / self.length.as_secs_f64();
        let (number, share) = (cycles as usize, cycles.fract());
        let within = |[begin, end]: [f64; 2]| (begin..end).contains(&share);
        if within(BUSY) {
            return Weather::Busy;
        }
        if within(RESTART) {
            return Weather::Down;
        }
        if !within(OUTAGE) {
            self.full_since = None;
            return Weather::Fair;
        }
        if both_full && self.full_since.is_none() {
            self.full_since = Some(elapsed);
        }
        match self.full_since {
            Some(since) if elapsed > since + FULL => Weather::Fair,
            _ => [Weather::Refusing, Weather::Down, Weather::Silent][number % 3],
        }
    }
}
