//! When the requests of an open loop are due: at a rate that does not depend on the answers.
//!
//! Nothing is queued here. A request that is due and not taken stays the next one, however many are
//! due behind it, so a server that stalls costs no memory.

use std::time::{Duration, Instant};

use crate::rt;

/// The gaps between requests.
#[derive(Clone, Debug)]
pub enum Arrivals {
    /// All equal, as those of wrk2 and vegeta.
    Steady,
    /// Exponential, as those of many independent clients.
    Random(rt::Rng),
}

/// One thread's part of an open loop.
#[derive(Debug)]
pub struct Timetable {
    arrivals: Arrivals,
    start: Instant,
    /// Seconds from `start` to the next one.
    next: f64,
    /// Which one it is, the first being 0.
    number: u64,
    /// Mean seconds between two.
    gap: f64,
    /// Seconds of the first one.
    offset: f64,
}

impl Timetable {
    /// For thread `at` of `of`, which share `rate` requests per second; the turns of steady
    /// arrivals interlock.
    pub fn new(start: Instant, rate: f64, at: usize, of: usize, arrivals: Arrivals) -> Timetable {
        let offset = match arrivals {
            Arrivals::Steady => at as f64 / rate,
            Arrivals::Random(_) => 0.0,
        };
        Timetable { arrivals, start, next: offset, number: 0, gap: of as f64 / rate, offset }
    }

    /// When the next request is due.
    pub fn next(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.next)
    }

    /// Goes on to the request behind it.
    pub fn advance(&mut self) {
        self.number += 1;
        self.next = match &mut self.arrivals {
            // Not a sum, whose rounding errors would add up.
            Arrivals::Steady => self.offset + self.number as f64 * self.gap,
            Arrivals::Random(rng) => self.next - self.gap * (1.0 - rng.f64()).ln(),
        };
    }

    /// How many requests are due before `end` and were not taken.
    pub fn left(&self, end: Instant) -> u64 {
        let end = end.saturating_duration_since(self.start);
        let due = |n: u64| {
            Duration::from_secs_f64(match self.arrivals {
                Arrivals::Steady => self.offset + (self.number + n) as f64 * self.gap,
                // The mean is exact enough for what will never be sent.
                Arrivals::Random(_) => self.next + n as f64 * self.gap,
            })
        };
        let nearly = (end.as_secs_f64() - self.next).max(0.0) / self.gap;
        // Rounding may have it off by one.
        ((nearly as u64).saturating_sub(1)..).find(|n| due(*n) >= end).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(timetable: &mut Timetable, until: Duration) -> Vec<Duration> {
        let mut found = Vec::new();
        while timetable.next() < timetable.start + until {
            found.push(timetable.next() - timetable.start);
            timetable.advance();
        }
        found
    }

    #[test]
    fn threads_interlock_and_keep_the_rate() {
        let start = rt::now();
        let mut all = Vec::new();
        for at in 0..3 {
            let mut timetable = Timetable::new(start, 1_000.0, at, 3, Arrivals::Steady);
            all.extend(due(&mut timetable, Duration::from_secs(10)));
        }
        all.sort();
        assert_eq!(all.len(), 10_000);
        for (n, due) in all.iter().enumerate() {
            let ideal = Duration::from_millis(n as u64);
            assert!(due.abs_diff(ideal) < Duration::from_micros(1), "{n}: {due:?}");
        }
    }

    /// At 300 a second the gap is no whole number of nanoseconds.
    #[test]
    fn a_day_later_the_rate_is_still_exact() {
        let mut timetable = Timetable::new(rt::now(), 300.0, 0, 1, Arrivals::Steady);
        let day = 24 * 60 * 60;
        timetable.number = 300 * day - 1;
        timetable.advance();
        let off = (timetable.next() - timetable.start).abs_diff(Duration::from_secs(day));
        assert!(off < Duration::from_micros(1), "{off:?}");
    }

    #[test]
    fn random_arrivals_have_the_rate_and_other_gaps() {
        let rng = rt::Rng::with_seed(7);
        let mut timetable = Timetable::new(rt::now(), 1_000.0, 0, 2, Arrivals::Random(rng));
        let found = due(&mut timetable, Duration::from_secs(40));
        // 20,000, with a deviation of 141.
        assert!((19_300..20_700).contains(&found.len()), "{}", found.len());
        // One gap in e is longer than the mean.
        let gap = Duration::from_secs_f64(timetable.gap);
        let long = found.windows(2).filter(|w| w[1] - w[0] > gap).count();
        let share = long as f64 / found.len() as f64;
        assert!((0.35..0.39).contains(&share), "{share}");
    }

    #[test]
    fn what_is_left_is_counted_without_being_taken() {
        let mut timetable = Timetable::new(rt::now(), 100.0, 1, 2, Arrivals::Steady);
        let end = timetable.start + Duration::from_secs(2);
        // Due at 10, 30, … 1990 ms.
        assert_eq!(timetable.left(end), 100);
        for _ in 0..40 {
            timetable.advance();
        }
        assert_eq!(timetable.left(end), 60);
        assert_eq!(timetable.left(timetable.start), 0);
    }
}
