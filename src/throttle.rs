//! Limits how often a repeated error is logged.

use crate::rt;
use std::time::{Duration, Instant};

/// Logs one line per `EVERY`, with the number of lines that were held back.
#[derive(Debug, Default)]
pub struct Throttle {
    last: Option<Instant>,
    held_back: u64,
}

impl Throttle {
    /// Time between two lines.
    const EVERY: Duration = Duration::from_secs(10);

    /// Logs an error unless the last line is too recent. Returns whether the line was logged.
    pub fn error(&mut self, text: impl FnOnce() -> String) -> bool {
        let passed = self.pass(rt::now());
        if let Some(held_back) = passed {
            tracing::error!(held_back, "{}", text());
        }
        passed.is_some()
    }

    /// Logs a warning likewise.
    pub fn warn(&mut self, text: impl FnOnce() -> String) {
        if let Some(held_back) = self.pass(rt::now()) {
            tracing::warn!(held_back, "{}", text());
        }
    }

    fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now - last < Self::EVERY) {
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
    }
}
