//! How far one core's spool is filled, and how soon it will be full at the rate of the last minute.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Spool;

/// Over how long the rate is measured: long enough that a burst is not taken for the rest of the
/// day, short enough that an outage shows soon.
const WINDOW: Duration = Duration::from_secs(60);
/// The fill is looked at once a second.
const LOOKS_PER_WINDOW: usize = WINDOW.as_secs() as usize;
/// A rate over less time says nothing.
const WINDOW_LEAST: Duration = Duration::from_secs(10);

/// What is held at each look of the last [`WINDOW`], oldest first.
pub(super) struct Filling(RefCell<VecDeque<(Instant, u64)>>);

impl Default for Filling {
    fn default() -> Filling {
        Filling(RefCell::new(VecDeque::with_capacity(LOOKS_PER_WINDOW + 1)))
    }
}

impl Filling {
    /// At `now` `held` bytes are not free again by themselves, and `room` more can be taken; returns when none
    /// is left if it goes on as in the last minute. `None`: never.
    fn look(&self, now: Instant, held: u64, room: u64) -> Option<Duration> {
        let mut looks = self.0.borrow_mut();
        if looks.len() > LOOKS_PER_WINDOW {
            looks.pop_front();
        }
        looks.push_back((now, held));
        let (began, before) = *looks.front()?;
        let took = now.saturating_duration_since(began);
        let more = held.checked_sub(before).filter(|more| *more > 0)?;
        let seconds = room as f64 / more as f64 * took.as_secs_f64();
        (took >= WINDOW_LEAST)
            .then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
}

impl Spool {
    /// To be called once a second: updates the gauge of what is filled, and returns when
    /// `SPOOL_MAX` will be used up if it goes on as in the last minute. `None`: never.
    pub fn sample(&self, now: Instant) -> Option<Duration> {
        let options = &self.setup.options;
        // What `make_spare` counts beside segments: other generations of the process have left it.
        let orphans = self.setup.takeover.bytes() / self.setup.cores as u64;
        let orphans = orphans + self.undiscarded_bytes();
        let segments = self.own.filled_bytes();
        let filled = segments + self.journal_bytes() + orphans;
        self.setup.cells.spool_filled_bytes.set(filled);
        // Only whole segments are made, and none in the journals' reserve.
        let kept = self.journal_room() + orphans;
        let most = options.max.saturating_sub(kept) / options.segment * options.segment;
        // A segment fills also where the store takes everything, and is then used again: what counts is
        // what payloads hold that are not stored.
        let held = self.own.held_bytes() + self.journal_bytes() + orphans;
        let full_in = self.own.filling.look(now, held, most.saturating_sub(segments));
        match self.setup.cells.spool_full.value() {
            0 => full_in,
            _ => Some(Duration::ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: how fast it fills in MB/s, per second; room in MB; what is said after each.
    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let (filling, start) = (Filling::default(), Instant::now());
        let (mut at, mut filled) = (0, 1_000);
        let mut pass = |seconds: u64, rate: u64, room: u64| {
            let mut said = None;
            for _ in 0..seconds {
                (at, filled) = (at + 1, filled + rate);
                said = filling.look(start + Duration::from_secs(at), filled, room);
            }
            said.map(|time| time.as_secs())
        };
        assert_eq!(pass(5, 3, 600), None, "too early");
        assert_eq!(pass(15, 3, 600), Some(200));
        assert_eq!(pass(60, 3, 600), Some(200));
        assert_eq!(pass(20, 6, 600), Some(150), "40 s at 3 and 20 s at 6");
        assert_eq!(pass(40, 6, 600), Some(100));
        assert_eq!(pass(59, 0, 600), Some(6_000), "a second of the minute");
        assert_eq!(pass(1, 0, 600), None);
        assert_eq!(pass(30, 0, 0), None);
        assert_eq!(pass(30, 1, 0), Some(0));
        assert!(filling.0.borrow().capacity() < 2 * LOOKS_PER_WINDOW + 4);
    }

    #[test]
    fn what_is_emptied_never_fills() {
        let (filling, start) = (Filling::default(), Instant::now());
        for s in 0..100 {
            let filled = 1_000_000 - s * 1_000;
            assert_eq!(filling.look(start + Duration::from_secs(s), filled, 5), None);
        }
    }
}
