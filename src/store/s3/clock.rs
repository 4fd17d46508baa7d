//! This executor's estimate of the store's time, for signing.
//!
//! Control learns an offset from the probe. Each core starts from that and learns its own from the
//! store's refusals; nothing is shared. Without a refusal the offset is zero. A server with a wrong
//! clock can cause a wrong offset, but not for long: while there is an offset, every failed
//! response updates it, and servers for which it is wrong refuse requests.

use crate::rt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use aws_smithy_async::time::TimeSource;
use aws_smithy_types::date_time::{DateTime, Format};

/// Largest offset accepted, either way. A day covers real mistakes: local time set as UTC (at most
/// 14 h), a wrong date line, drift. A larger offset breaks certificates and the timestamps in
/// object keys as well, and one response cannot tell which of the two clocks is wrong. That is left
/// to an operator.
const OFFSET_MAX_S: i64 = 24 * 3600;

/// Less than this counts as no offset: a date has whole seconds and takes time to arrive.
const OFFSET_MIN_S: i64 = 5;

/// The offset of the store's clock, learned from a refusal. Written and read by one executor.
#[derive(Clone, Debug, Default)]
pub(super) struct ClockOffset {
    /// Shared by this executor's clones.
    offset_s: Arc<AtomicI64>,
}

impl ClockOffset {
    /// An independent clock that starts with the same offset.
    pub(super) fn detached(&self) -> ClockOffset {
        ClockOffset { offset_s: Arc::new(AtomicI64::new(self.offset_s())) }
    }

    /// Sets the offset from an HTTP date. A date that is invalid or more than a day off changes
    /// nothing. Returns whether the date was accepted.
    pub(super) fn learn(&self, date: Option<&str>) -> bool {
        let Some(server) = date.and_then(|d| DateTime::from_str(d, Format::HttpDate).ok()) else {
            return false;
        };
        let offset_s = server.secs() - DateTime::from(rt::wall_clock()).secs();
        if offset_s.abs() > OFFSET_MAX_S {
            return false;
        }
        let offset_s = if offset_s.abs() < OFFSET_MIN_S { 0 } else { offset_s };
        self.offset_s.store(offset_s, Ordering::Relaxed);
        true
    }

    /// How far the store's clock is ahead of this host's, in seconds.
    pub(super) fn offset_s(&self) -> i64 {
        self.offset_s.load(Ordering::Relaxed)
    }

    pub(super) fn is_shifted(&self) -> bool {
        self.offset_s() != 0
    }
}

impl ClockOffset {
    /// The store's time when this host's clock shows `own`.
    pub(super) fn at(&self, own: SystemTime) -> SystemTime {
        let offset_s = self.offset_s();
        let offset = Duration::from_secs(offset_s.unsigned_abs());
        let shifted = if offset_s < 0 { own.checked_sub(offset) } else { own.checked_add(offset) };
        shifted.unwrap_or(own)
    }
}

impl TimeSource for ClockOffset {
    fn now(&self) -> SystemTime {
        self.at(rt::wall_clock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(ahead_s: i64) -> String {
        let now = DateTime::from(SystemTime::now()).secs();
        DateTime::from_secs(now + ahead_s).fmt(Format::HttpDate).unwrap()
    }

    #[test]
    fn what_is_taken_is_bounded_and_corrected() {
        let clock = ClockOffset::default();
        let after = |text: &str| {
            (clock.learn(Some(text)), (clock.offset_s() + 900).div_euclid(1800) * 1800)
        };
        assert_eq!(after(&date(-7200)), (true, -7200));
        assert_eq!(after(&date(OFFSET_MAX_S + 60)), (false, -7200), "too far: as it was");
        assert_eq!(after(&date(-OFFSET_MAX_S - 60)), (false, -7200));
        assert_eq!(after("yesterday"), (false, -7200));
        assert_eq!(after(&date(OFFSET_MAX_S - 60)), (true, OFFSET_MAX_S));
        assert_eq!(after(&date(1)), (true, 0));
        assert!(!clock.is_shifted(), "as good as none");
        assert!(!clock.learn(None));
    }

    #[test]
    fn a_detached_clock_starts_alike_and_goes_its_own_way() {
        let control = ClockOffset::default();
        control.learn(Some(&date(3600)));
        let core = control.detached();
        assert!(core.is_shifted());
        core.learn(Some(&date(0)));
        assert!(control.is_shifted() && !core.is_shifted());
    }
}
