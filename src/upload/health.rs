//! Whether the store takes what a core puts: the clock of `RETRY_FOR`, and what the log and `/readyz` say of it.
//!
//! The log is told of the core's first stored object, of failures at most once a minute, at once when the store begins
//! to take nothing, and when it works again. Each line is about one core, whose id it carries.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::metrics::CoreCells;
use crate::rt;
use crate::store::{Class, PutError};

/// Between two lines about a store that fails.
const LINE_EVERY: Duration = Duration::from_secs(60);
/// Between two lines that say that the store begins to take nothing, however often it changes its mind.
const NEWS_EVERY: Duration = Duration::from_secs(10);
/// A store-wide failure without a success for so long, and the store takes nothing; before, it may be this object.
const NOTHING_TAKEN: Duration = Duration::from_secs(1);

/// Set by the first core of the process that has stored something.
static FIRST_STORED: AtomicBool = AtomicBool::new(false);

/// Whether a core's puts succeed, for `/readyz`, for the log, and as the clock of `RETRY_FOR`.
pub struct StoreHealth {
    cells: &'static CoreCells,
    /// Process start, which `store_failing_since` counts from.
    epoch: Instant,
    core_id: usize,
    last_success: Cell<Option<Instant>>,
    /// Grows only while puts succeed.
    healthy: Cell<Duration>,
    /// A put has failed since the last success.
    failing: Cell<bool>,
    spell: RefCell<Spell>,
}

impl StoreHealth {
    /// Two successes further apart than this count as this much healthy time.
    const GAP_MAX: Duration = Duration::from_secs(1);

    pub fn new(cells: &'static CoreCells, epoch: Instant, core_id: usize) -> StoreHealth {
        StoreHealth {
            cells,
            epoch,
            core_id,
            last_success: Cell::new(None),
            healthy: Cell::new(Duration::ZERO),
            failing: Cell::new(false),
            spell: RefCell::default(),
        }
    }

    pub(super) fn healthy_time(&self) -> Duration {
        self.healthy.get()
    }

    /// A put has succeeded.
    pub(super) fn succeeded(&self, now: Instant) {
        match self.last_success.replace(Some(now)) {
            Some(last) => {
                self.healthy.set(self.healthy.get() + (now - last).min(Self::GAP_MAX));
            }
            None if !FIRST_STORED.swap(true, Ordering::Relaxed) => {
                tracing::info!(core = self.core_id, "the store has taken the first object");
            }
            None => {}
        }
        if self.failing.replace(false) {
            self.recovered(now);
        }
    }

    fn recovered(&self, now: Instant) {
        self.cells.store_failing_since.set(0);
        if let Some(Recovery { failing_for, failed_puts, error }) = self.spell.borrow_mut().end(now)
        {
            let (held, _) = self.held();
            tracing::info!(
                core = self.core_id,
                failed_for = %seconds(failing_for),
                failed_puts,
                payloads_held = held,
                "the store works again after {error}"
            );
        }
    }

    /// The last payload that was being tried has gone to the dead letter: nothing says any more that the store fails,
    /// and without this a server that gets no traffic because it is not ready would never be ready again.
    pub fn nothing_held(&self) {
        self.cells.store_failing_since.set(0);
    }

    /// A put has failed. What is wrong with one object says nothing of the store, and neither does an object that is the
    /// exception: `others_go`, for others were stored since it first failed.
    pub(super) fn failed(&self, error: &PutError, others_go: bool) {
        if error.class == Class::Object {
            return;
        }
        if others_go {
            if let Some(line) = self.spell.borrow_mut().exception(rt::now()) {
                self.report(&line, error);
            }
            return;
        }
        if self.cells.store_failing_since.value() == 0 {
            let since_start = rt::since(self.epoch).as_millis() as u64;
            self.cells.store_failing_since.set(since_start + 1);
        }
        self.failing.set(true);
        let mut spell = self.spell.borrow_mut();
        if let Some(line) = spell.failed(error, rt::now()) {
            self.report(&line, error);
        }
    }

    fn report(&self, line: &LogLine, error: &PutError) {
        let (payloads_held, bytes_held) = self.held();
        let core = self.core_id;
        match *line {
            LogLine::Retrying { failed_puts } => tracing::warn!(
                core,
                failed_puts,
                payloads_held,
                bytes_held,
                "a put failed and will be tried again: {error}"
            ),
            LogLine::TakesNothing { failing_for, failed_puts } => tracing::error!(
                core,
                failing_for = %seconds(failing_for),
                failed_puts,
                payloads_held,
                bytes_held,
                mend = error.remedy,
                "the store takes nothing, holding payloads: {error}"
            ),
        }
    }

    /// The last failure, while the store has taken nothing since.
    pub fn last_error(&self) -> Option<PutError> {
        let failing = self.failing.get();
        failing.then(|| self.spell.borrow().error.clone()).flatten()
    }

    /// Payloads that are not stored yet, on disk only included, and the bytes of those among them that this process
    /// was sent.
    fn held(&self) -> (u64, u64) {
        let cells = self.cells;
        let (in_memory, _) = cells.undecided_and_unsynced();
        let gone = cells.bytes_stored.value()
            + cells.bytes_dead_lettered.value()
            + cells.bytes_lost.value();
        let bytes = cells.bytes_accepted.value().saturating_sub(gone);
        (in_memory + cells.spool_payloads.value(), bytes)
    }
}

/// To the second, or to the millisecond below one.
fn seconds(time: Duration) -> humantime::FormattedDuration {
    let unit = if time < Duration::from_secs(1) { 1 } else { 1_000 };
    let millis = time.as_millis() as u64;
    humantime::format_duration(Duration::from_millis(millis - millis % unit))
}

/// The failures since the last success, and what the log was told of them.
#[derive(Default)]
struct Spell {
    /// When the first of them was.
    since: Option<Instant>,
    failed_puts: u64,
    error: Option<PutError>,
    /// The log was told that the store takes nothing.
    said: bool,
    /// When it was told so last; kept beyond a success.
    last_outage: Option<Instant>,
    /// When the log was told anything; kept beyond a success, which may be one among many failures.
    last_line: Option<Instant>,
    /// Failed puts since that line, over all spells.
    unsaid: u64,
}

/// What the log is to be told of a failure.
#[derive(Debug, PartialEq, Eq)]
enum LogLine {
    /// Puts fail, and others may not.
    Retrying { failed_puts: u64 },
    /// Nothing was stored since the first failure.
    TakesNothing { failing_for: Duration, failed_puts: u64 },
}

/// What the log is to be told of the end of a spell that it knows of.
#[derive(Debug, PartialEq, Eq)]
struct Recovery {
    failing_for: Duration,
    failed_puts: u64,
    /// The code of the last failure.
    error: String,
}

impl Spell {
    fn failed(&mut self, error: &PutError, now: Instant) -> Option<LogLine> {
        let failing_for = now - *self.since.get_or_insert(now);
        self.failed_puts += 1;
        self.unsaid += 1;
        let due = self.last_line.is_none_or(|last| now - last >= LINE_EVERY);
        // A failure that passes by itself is worth an error only when it lasts.
        let patience = match error.class {
            Class::StoreWide => NOTHING_TAKEN,
            Class::Transient | Class::Object => LINE_EVERY,
        };
        let takes_nothing = failing_for >= patience;
        let spaced = self.last_outage.is_none_or(|last| now - last >= NEWS_EVERY);
        let is_news = takes_nothing && !self.said && spaced;
        self.error = Some(error.clone());
        if !due && !is_news {
            return None;
        }
        self.last_line = Some(now);
        let unsaid = std::mem::take(&mut self.unsaid);
        if !takes_nothing {
            return Some(LogLine::Retrying { failed_puts: unsaid });
        }
        self.said = true;
        self.last_outage = Some(now);
        Some(LogLine::TakesNothing { failing_for, failed_puts: self.failed_puts })
    }

    /// An object has failed while others were stored.
    fn exception(&mut self, now: Instant) -> Option<LogLine> {
        self.unsaid += 1;
        if self.last_line.is_some_and(|last| now - last < LINE_EVERY) {
            return None;
        }
        self.last_line = Some(now);
        Some(LogLine::Retrying { failed_puts: std::mem::take(&mut self.unsaid) })
    }

    /// A put has succeeded. Only a spell that the log knows of as one has an end worth a line.
    fn end(&mut self, now: Instant) -> Option<Recovery> {
        let since = self.since.take()?;
        let failed_puts = std::mem::take(&mut self.failed_puts);
        let error = self.error.take()?.code;
        if !std::mem::take(&mut self.said) {
            return None;
        }
        Some(Recovery { failing_for: now - since, failed_puts, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> (&'static CoreCells, StoreHealth) {
        let cells = &crate::metrics::cells(1)[0];
        (cells, StoreHealth::new(cells, Instant::now(), 0))
    }

    fn error(class: Class, code: &str) -> PutError {
        PutError::new(class, code, "")
    }

    #[test]
    fn healthy_time_grows_only_with_successes() {
        let (_, health) = health();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        health.succeeded(at(0));
        health.succeeded(at(300));
        assert_eq!(health.healthy_time(), Duration::from_millis(300));
        health.succeeded(at(60_300));
        assert_eq!(health.healthy_time(), Duration::from_millis(1_300), "an outage counts little");
    }

    /// Times in ms, what is put then and fails (or `None`: succeeds), and what the log is told.
    #[test]
    fn a_store_that_fails_is_reported_at_once_then_once_a_minute() {
        use Class::{StoreWide, Transient};
        let start = Instant::now();
        let mut spell = Spell::default();
        let mut told = |ms: u64, failure: Option<(Class, &str)>| {
            let now = start + Duration::from_millis(ms);
            match failure {
                Some((class, code)) => match spell.failed(&error(class, code), now) {
                    None => String::new(),
                    Some(LogLine::Retrying { failed_puts }) => format!("retrying, {failed_puts}"),
                    Some(LogLine::TakesNothing { failing_for, failed_puts }) => {
                        format!("nothing for {} s, {failed_puts}", failing_for.as_secs())
                    }
                },
                None => match spell.end(now) {
                    None => String::new(),
                    Some(Recovery { failing_for, failed_puts, error }) => {
                        let s = failing_for.as_secs();
                        format!("works again after {error}, {s} s, {failed_puts}")
                    }
                },
            }
        };
        let (denied, slow) = (Some((StoreWide, "AccessDenied")), Some((Transient, "SlowDown")));
        for (ms, failure, expected) in [
            // One put in many fails, once and again: a line a minute, and no recovery.
            (0, slow, "retrying, 1"),
            (10, None, ""),
            (20, slow, ""),
            (30, None, ""),
            (59_000, slow, ""),
            (59_010, None, ""),
            (60_000, slow, "retrying, 3"),
            (60_010, None, ""),
            // An outage: it is an error after a second, whatever was said a moment ago.
            (70_000, denied, ""),
            (70_500, denied, ""),
            (71_000, denied, "nothing for 1 s, 3"),
            (80_000, denied, ""),
            (130_999, denied, ""),
            (131_000, denied, "nothing for 61 s, 6"),
            (190_000, None, "works again after AccessDenied, 120 s, 6"),
            // Down again at once: said as before, for somebody may have been told that it works.
            (190_100, denied, ""),
            (191_200, denied, "nothing for 1 s, 2"),
            (192_000, None, "works again after AccessDenied, 1 s, 2"),
            // A store that goes on like this is not reported each time.
            (192_100, denied, ""),
            (193_500, denied, ""),
            (194_000, None, ""),
            (202_000, denied, ""),
            (203_000, denied, "nothing for 1 s, 2"),
            (203_500, None, "works again after AccessDenied, 1 s, 2"),
            // Nobody answers: an error once it has lasted a minute.
            (300_000, slow, "retrying, 1"),
            (359_000, slow, ""),
            (360_000, slow, "nothing for 60 s, 3"),
            (420_000, slow, "nothing for 120 s, 4"),
            (421_000, None, "works again after SlowDown, 121 s, 4"),
        ] {
            assert_eq!(told(ms, failure), expected, "at {ms} ms");
        }
    }

    #[test]
    fn failing_since_is_kept_until_a_success() {
        let (cells, health) = health();
        health.failed(&error(Class::Object, "InvalidArgument"), false);
        assert_eq!(
            cells.store_failing_since.value(),
            0,
            "one bad object says nothing of the store"
        );
        assert!(health.last_error().is_none());
        health.failed(&error(Class::StoreWide, "NoSuchBucket"), false);
        assert_ne!(cells.store_failing_since.value(), 0);
        assert_eq!(health.last_error().unwrap().code, "NoSuchBucket");
        health.nothing_held();
        assert_eq!(cells.store_failing_since.value(), 0);
        health.failed(&error(Class::Transient, "SlowDown"), false);
        assert_ne!(cells.store_failing_since.value(), 0);
        health.succeeded(Instant::now());
        assert_eq!(cells.store_failing_since.value(), 0);
        assert!(health.last_error().is_none());
    }

    #[test]
    fn what_is_held_is_what_was_taken_and_is_nowhere_yet() {
        let (cells, health) = health();
        cells.payloads_accepted.add(10);
        cells.bytes_accepted.add(1_000);
        cells.payloads_stored.add(3);
        cells.bytes_stored.add(300);
        cells.payloads_dead_lettered.add(1);
        cells.bytes_dead_lettered.add(100);
        cells.spool_payloads.add(2);
        assert_eq!(health.held(), (6, 600));
    }
}
