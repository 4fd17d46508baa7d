//! Whether a core's PUTs succeed: the clock of `RETRY_FOR`, and what the log and `/readyz` report.
//!
//! The log reports the process's first stored object, failures at most once a minute, an outage as
//! soon as it is one, and its end. Each line is about one core and carries its id.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::metrics::CoreCells;
use crate::rt;
use crate::store::{Class, PutError};

/// Shortest time between two lines about a store that fails.
const LINE_EVERY: Duration = Duration::from_secs(60);
/// Shortest time between two lines about the beginning of an outage, however often one begins.
const OUTAGE_LINE_EVERY: Duration = Duration::from_secs(10);
/// A store-wide failure counts as an outage after this long without a success. Before, it may
/// concern one object only.
const OUTAGE_AFTER: Duration = Duration::from_secs(1);

/// Set by the first core of the process that stores something.
static FIRST_STORED: AtomicBool = AtomicBool::new(false);

/// The health of the store as one core sees it.
pub struct StoreHealth {
    cells: &'static CoreCells,
    /// Process start; `store_failing_since` counts from it.
    epoch: Instant,
    core_id: usize,
    last_success: Cell<Option<Instant>>,
    /// Time in which PUTs succeeded: the clock of `RETRY_FOR`.
    healthy: Cell<Duration>,
    /// A PUT has failed since the last success.
    failing: Cell<bool>,
    spell: RefCell<Spell>,
}

impl StoreHealth {
    /// Two successes that are further apart count as this much healthy time.
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

    /// Records a successful PUT.
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

    /// The last object that was being retried is dead-lettered, so nothing shows any more that the
    /// store fails. Without this, a server that gets no traffic because it is not ready would never
    /// become ready again.
    pub fn nothing_held(&self) {
        self.cells.store_failing_since.set(0);
    }

    /// Records a failed PUT. An error of the object itself says nothing about the store. Neither
    /// does a failure while others succeed (`others_stored`: since this object first failed).
    pub(super) fn failed(&self, error: &PutError, others_stored: bool) {
        if error.class == Class::Object {
            return;
        }
        if others_stored {
            if let Some(line) = self.spell.borrow_mut().failed_alone(rt::now()) {
                self.report(&line, error);
            }
            return;
        }
        if self.cells.store_failing_since.value() == 0 {
            let since_start = rt::since(self.epoch).as_millis() as u64;
            // Plus one: 0 means that the store works.
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
                "a PUT failed and will be retried: {error}"
            ),
            LogLine::Outage { failing_for, failed_puts } => tracing::error!(
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

    /// The last failure, unless a PUT has succeeded since.
    pub fn last_error(&self) -> Option<PutError> {
        let failing = self.failing.get();
        failing.then(|| self.spell.borrow().error.clone()).flatten()
    }

    /// The number of payloads that are not stored yet, including those on disk only, and the bytes
    /// of those that this process received.
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

/// Rounded down to seconds, or to milliseconds below one second.
fn seconds(time: Duration) -> humantime::FormattedDuration {
    let unit = if time < Duration::from_secs(1) { 1 } else { 1_000 };
    let millis = time.as_millis() as u64;
    humantime::format_duration(Duration::from_millis(millis - millis % unit))
}

/// The failures since the last success, and what the log has reported about them.
#[derive(Default)]
struct Spell {
    /// Time of the first of them.
    since: Option<Instant>,
    failed_puts: u64,
    error: Option<PutError>,
    /// The log has reported it as an outage.
    reported: bool,
    /// When the log last reported an outage; kept beyond a success.
    last_outage: Option<Instant>,
    /// When the log last reported anything; kept beyond a success, which may be one among many
    /// failures.
    last_line: Option<Instant>,
    /// Failed PUTs since that line, over all spells.
    unreported: u64,
}

/// A line about failures.
#[derive(Debug, PartialEq, Eq)]
enum LogLine {
    /// Some PUTs fail; others may succeed.
    Retrying { failed_puts: u64 },
    /// An outage: nothing was stored since the first failure.
    Outage { failing_for: Duration, failed_puts: u64 },
}

/// A line about the end of an outage that the log has reported.
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
        self.unreported += 1;
        let due = self.last_line.is_none_or(|last| now - last >= LINE_EVERY);
        // A transient failure is an error line only if it lasts.
        let outage_after = match error.class {
            Class::StoreWide => OUTAGE_AFTER,
            Class::Transient | Class::Object => LINE_EVERY,
        };
        let is_outage = failing_for >= outage_after;
        let spaced = self.last_outage.is_none_or(|last| now - last >= OUTAGE_LINE_EVERY);
        let begins = is_outage && !self.reported && spaced;
        self.error = Some(error.clone());
        if !due && !begins {
            return None;
        }
        self.last_line = Some(now);
        let unreported = std::mem::take(&mut self.unreported);
        if !is_outage {
            return Some(LogLine::Retrying { failed_puts: unreported });
        }
        self.reported = true;
        self.last_outage = Some(now);
        Some(LogLine::Outage { failing_for, failed_puts: self.failed_puts })
    }

    /// Records the failure of one object while others were stored.
    fn failed_alone(&mut self, now: Instant) -> Option<LogLine> {
        self.unreported += 1;
        if self.last_line.is_some_and(|last| now - last < LINE_EVERY) {
            return None;
        }
        self.last_line = Some(now);
        Some(LogLine::Retrying { failed_puts: std::mem::take(&mut self.unreported) })
    }

    /// Ends the spell at a successful PUT. Only the end of a reported outage gets a line.
    fn end(&mut self, now: Instant) -> Option<Recovery> {
        let since = self.since.take()?;
        let failed_puts = std::mem::take(&mut self.failed_puts);
        let error = self.error.take()?.code;
        if !std::mem::take(&mut self.reported) {
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

    /// Rows: time in ms, the failure of the PUT then (`None`: it succeeds), and the line in the
    /// log.
    #[test]
    fn a_store_that_fails_is_reported_at_once_then_once_a_minute() {
        use Class::{StoreWide, Transient};
        let start = Instant::now();
        let mut spell = Spell::default();
        let mut line = |ms: u64, failure: Option<(Class, &str)>| {
            let now = start + Duration::from_millis(ms);
            match failure {
                Some((class, code)) => match spell.failed(&error(class, code), now) {
                    None => String::new(),
                    Some(LogLine::Retrying { failed_puts }) => format!("retrying, {failed_puts}"),
                    Some(LogLine::Outage { failing_for, failed_puts }) => {
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
            // One PUT in many fails, again and again: a line a minute, and no recovery.
            (0, slow, "retrying, 1"),
            (10, None, ""),
            (20, slow, ""),
            (30, None, ""),
            (59_000, slow, ""),
            (59_010, None, ""),
            (60_000, slow, "retrying, 3"),
            (60_010, None, ""),
            // An outage: an error line after a second, whatever was reported just before.
            (70_000, denied, ""),
            (70_500, denied, ""),
            (71_000, denied, "nothing for 1 s, 3"),
            (80_000, denied, ""),
            (130_999, denied, ""),
            (131_000, denied, "nothing for 61 s, 6"),
            (190_000, None, "works again after AccessDenied, 120 s, 6"),
            // Down again at once: reported again, because the last line said that it works.
            (190_100, denied, ""),
            (191_200, denied, "nothing for 1 s, 2"),
            (192_000, None, "works again after AccessDenied, 1 s, 2"),
            // A store that flaps is not reported each time.
            (192_100, denied, ""),
            (193_500, denied, ""),
            (194_000, None, ""),
            (202_000, denied, ""),
            (203_000, denied, "nothing for 1 s, 2"),
            (203_500, None, "works again after AccessDenied, 1 s, 2"),
            // A transient failure: an error line once it has lasted a minute.
            (300_000, slow, "retrying, 1"),
            (359_000, slow, ""),
            (360_000, slow, "nothing for 60 s, 3"),
            (420_000, slow, "nothing for 120 s, 4"),
            (421_000, None, "works again after SlowDown, 121 s, 4"),
        ] {
            assert_eq!(line(ms, failure), expected, "at {ms} ms");
        }
    }

    #[test]
    fn failing_since_is_kept_until_a_success() {
        let (cells, health) = health();
        health.failed(&error(Class::Object, "InvalidArgument"), false);
        assert_eq!(
            cells.store_failing_since.value(),
            0,
            "one bad object says nothing about the store"
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
    fn held_payloads_are_those_accepted_without_an_outcome() {
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
