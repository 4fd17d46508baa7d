//! How far one core's spool is filled, and how soon it will be full at the rate of the last minute.

use std::cell::{Cell, RefCell};
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

/// A store that keeps up needs less time than this for a payload. While it does, a segment that is
/// written is emptied as a whole once it is full: until then the spool seems to fill.
const BEHIND_FROM: Duration = Duration::from_secs(10);

/// Since when payloads wait for the store. Open batches do not: they wait for more payloads.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreLag {
    /// For how long the oldest payload has waited that nobody uploads yet.
    pub waits_for: Duration,
    /// When the oldest payload was admitted that is uploaded or waits for a retry: another one soon,
    /// if the store takes objects.
    pub uploading: Option<u64>,
}

/// The fill at each look of the last [`WINDOW`], oldest first.
pub(super) struct Filling {
    looks: RefCell<VecDeque<(Instant, u64)>>,
    /// The newest [`StoreLag::uploading`], and when it was first seen.
    uploading: Cell<Option<(u64, Instant)>>,
}

impl Default for Filling {
    fn default() -> Filling {
        let looks = RefCell::new(VecDeque::with_capacity(LOOKS_PER_WINDOW + 1));
        Filling { looks, uploading: Cell::default() }
    }
}

impl Filling {
    /// Whether the store does not keep up. To be called with every look.
    fn is_behind(&self, now: Instant, lag: StoreLag) -> bool {
        let seen = |admitted| match self.uploading.get() {
            Some((before, since)) if before == admitted => since,
            _ => now,
        };
        let uploading = lag.uploading.map(|admitted| (admitted, seen(admitted)));
        self.uploading.set(uploading);
        let stands = uploading.map(|(_, since)| now.saturating_duration_since(since));
        lag.waits_for.max(stands.unwrap_or_default()) >= BEHIND_FROM
    }

    /// At `now` `filled` bytes are taken and `room` more can be; returns when none is left if it
    /// goes on as in the last minute. `None`: never.
    fn look(&self, now: Instant, filled: u64, room: u64) -> Option<Duration> {
        let mut looks = self.looks.borrow_mut();
        if looks.len() > LOOKS_PER_WINDOW {
            looks.pop_front();
        }
        looks.push_back((now, filled));
        let (began, before) = *looks.front()?;
        let took = now.saturating_duration_since(began);
        let more = filled.checked_sub(before).filter(|more| *more > 0)?;
        let seconds = room as f64 / more as f64 * took.as_secs_f64();
        (took >= WINDOW_LEAST)
            .then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
}

impl Spool {
    /// To be called once a second: updates the gauge of what is filled, and returns when
    /// `SPOOL_MAX` will be used up if it goes on as in the last minute. `None`: never, or the store
    /// keeps up.
    pub fn sample(&self, now: Instant, lag: StoreLag) -> Option<Duration> {
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
        let full_in = self.own.filling.look(now, filled, most.saturating_sub(segments));
        let is_behind = self.own.filling.is_behind(now, lag);
        match self.setup.cells.spool_full.value() {
            0 => full_in.filter(|_| is_behind),
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
        assert!(filling.looks.borrow().capacity() < 2 * LOOKS_PER_WINDOW + 4);
    }

    #[test]
    fn what_is_emptied_never_fills() {
        let (filling, start) = (Filling::default(), Instant::now());
        for s in 0..100 {
            let filled = 1_000_000 - s * 1_000;
            assert_eq!(filling.look(start + Duration::from_secs(s), filled, 5), None);
        }
    }

    /// Rows: seconds that pass, for how long the oldest payload has waited at their beginning, which
    /// is uploaded all the time or (`None`) another one each second; whether the store is behind then.
    #[test]
    fn a_store_that_keeps_up_is_not_behind() {
        for (name, rows) in [
            ("each second another object", &[(60, 0, None, false)][..]),
            (
                "one takes long, and so does the next",
                &[(9, 0, Some(1), false), (9, 0, Some(2), false)],
            ),
            (
                "one object is tried again and again",
                &[(10, 0, Some(1), false), (1, 0, Some(1), true), (1, 0, Some(2), false)],
            ),
            ("a queue that is emptied", &[(3, 9, None, false)]),
            ("a queue that is not", &[(3, 10, None, true), (1, 0, None, false)]),
        ] {
            let (filling, start) = (Filling::default(), Instant::now());
            let mut at = 0;
            for &(seconds, waits_for, uploading, expected) in rows {
                let mut is_behind = false;
                for _ in 0..seconds {
                    at += 1;
                    let waits_for = Duration::from_secs(waits_for);
                    let lag = StoreLag { waits_for, uploading: uploading.or(Some(1_000 + at)) };
                    is_behind = filling.is_behind(start + Duration::from_secs(at), lag);
                }
                assert_eq!(is_behind, expected, "{name}, after {at} s");
            }
        }
        let (filling, now) = (Filling::default(), Instant::now());
        let lag = |uploading| StoreLag { waits_for: Duration::ZERO, uploading };
        assert!(!filling.is_behind(now, lag(Some(1))));
        assert!(!filling.is_behind(now + BEHIND_FROM / 2, lag(None)), "stored");
        assert!(!filling.is_behind(now + BEHIND_FROM, lag(Some(1))), "seen anew");
    }
}
