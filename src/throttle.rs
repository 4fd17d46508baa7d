//! Limits how often a repeated error is logged.

use crate::rt;
use std::time::{Duration, Instant};

/// Logs one line per interval, with the number of lines that were held back.
#[derive(Debug)]
pub struct Throttle {
    every: Duration,
    last: Option<Instant>,
    held_back: u64,
}

/// A line every ten seconds.
impl Default for Throttle {
    fn default() -> Throttle {
        Throttle { every: Duration::from_secs(10), last: None, held_back: 0 }
    }
}

impl Throttle {
    /// A line every minute, for what clients or settings cause and no one mends at once.
    pub fn per_minute() -> Throttle {
        Throttle { every: Duration::from_secs(60), ..Throttle::default() }
    }

    /// A line every second, for what only a debug log has.
    pub fn per_second() -> Throttle {
        Throttle { every: Duration::from_secs(1), ..Throttle::default() }
    }

    /// Logs an error unless the last line is too recent. Returns whether the line was logged.
    pub fn error(&mut self, text: impl FnOnce() -> String) -> bool {
        let passed = self.pass(rt::now());
        if let Some(held_back) = passed {
            tracing::error!(held_back, "{}", text());
        }
        passed.is_some()
    }

    /// Logs a warning likewise.
    pub fn warn(&mut self, text: impl FnOnce() -> String) -> bool {
        let passed = self.pass(rt::now());
        if let Some(held_back) = passed {
            tracing::warn!(held_back, "{}", text());
        }
        passed.is_some()
    }

    /// For a line that the caller logs under its own module: the number of lines held back if it may
    /// be logged now.
    pub fn due(&mut self) -> Option<u64> {
        self.pass(rt::now())
    }

    fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now - last < self.every) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_interval_and_the_rest_are_counted() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        assert_eq!(throttle.pass(start), Some(0));
        assert_eq!(throttle.pass(start + Duration::from_secs(1)), None);
        assert_eq!(throttle.pass(start + Duration::from_secs(2)), None);
        assert_eq!(throttle.pass(start + Duration::from_secs(11)), Some(2));
        let mut throttle = Throttle::per_minute();
        assert_eq!(throttle.pass(start), Some(0));
        assert_eq!(throttle.pass(start + Duration::from_secs(59)), None);
        assert_eq!(throttle.pass(start + Duration::from_secs(60)), Some(1));
    }
}
