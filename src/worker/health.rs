//! Whether the store takes what a core puts: the clock of `RETRY_FOR`, and what the log and `/readyz` say of it.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::log::Throttle;
use crate::metrics::CoreCells;
use crate::store::{Class, PutError};

/// Whether a core's puts succeed, for `/readyz`, for the log, and as the clock of `RETRY_FOR`.
pub struct Health {
    cells: &'static CoreCells,
    /// Process start, which `store_failing_since` counts from.
    epoch: Instant,
    last_success: Cell<Option<Instant>>,
    /// Grows only while puts succeed.
    healthy: Cell<Duration>,
    /// The code of the store-wide failure that the log has reported and not yet taken back.
    store_wide: RefCell<Option<String>>,
    log: RefCell<HealthLog>,
}

#[derive(Default)]
struct HealthLog {
    aside: Throttle,
    transient: Throttle,
    store_wide: Throttle,
}

impl Health {
    /// Two successes further apart than this count as this much healthy time.
    const GAP_MAX: Duration = Duration::from_secs(1);

    pub fn new(cells: &'static CoreCells, epoch: Instant) -> Health {
        Health {
            cells,
            epoch,
            last_success: Cell::new(None),
            healthy: Cell::new(Duration::ZERO),
            store_wide: RefCell::new(None),
            log: RefCell::default(),
        }
    }

    pub(super) fn healthy_time(&self) -> Duration {
        self.healthy.get()
    }

    pub(super) fn succeeded(&self, now: Instant) {
        if let Some(last) = self.last_success.replace(Some(now)) {
            self.healthy.set(self.healthy.get() + (now - last).min(Self::GAP_MAX));
        }
        self.cells.store_failing_since.set(0);
        // As rare as the line it takes back, which has a throttle.
        if self.store_wide.borrow().is_some()
            && let Some(code) = self.store_wide.take()
        {
            tracing::warn!("the store works again after {code}");
        }
    }

    /// The last payload that was being tried has gone to the dead letter: nothing says any more that the store fails,
    /// and without this a server that gets no traffic because it is not ready would never be ready again.
    pub fn nothing_held(&self) {
        self.cells.store_failing_since.set(0);
    }

    /// An object has failed; `others_go`: others were stored since it first did, so that it is the exception.
    pub(super) fn failed(&self, error: &PutError, others_go: bool) {
        if error.class == Class::Object {
            return;
        }
        if others_go {
            let text = || format!("an object fails while others are stored, set aside: {error}");
            return self.log.borrow_mut().aside.warn(text);
        }
        if self.cells.store_failing_since.value() == 0 {
            let since_start = self.epoch.elapsed().as_millis() as u64;
            self.cells.store_failing_since.set(since_start + 1);
        }
        let mut log = self.log.borrow_mut();
        if error.class == Class::Transient {
            log.transient.warn(|| format!("a put failed and will be tried again: {error}"));
        } else if self.store_wide.borrow().as_ref() != Some(&error.code)
            && log
                .store_wide
                .error(|| format!("the store takes nothing, holding payloads: {error}"))
        {
            // Set only once it was said: a failure that the throttle held back is said later.
            self.store_wide.replace(Some(error.code.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn healthy_time_grows_only_with_successes() {
        let cells = &crate::metrics::cells(1)[0];
        let start = Instant::now();
        let health = Health::new(cells, start);
        let at = |ms| start + Duration::from_millis(ms);
        health.succeeded(at(0));
        health.succeeded(at(300));
        assert_eq!(health.healthy_time(), Duration::from_millis(300));
        health.succeeded(at(60_300));
        assert_eq!(health.healthy_time(), Duration::from_millis(1_300), "an outage counts little");
    }

    #[test]
    fn a_line_that_the_throttle_held_back_is_not_taken_for_said() {
        let cells = &crate::metrics::cells(1)[0];
        let health = Health::new(cells, Instant::now());
        let down = PutError::new(Class::StoreWide, "NoSuchBucket", "");
        let said = || health.store_wide.borrow().is_some();
        health.failed(&down, false);
        assert!(said());
        health.succeeded(Instant::now());
        assert!(!said());
        health.failed(&down, false);
        assert!(!said(), "within the throttle's interval: to be said later");
        assert_ne!(cells.store_failing_since.value(), 0);
        health.nothing_held();
        assert_eq!(cells.store_failing_since.value(), 0);
    }

    #[test]
    fn failing_since_is_kept_until_a_success() {
        let cells = &crate::metrics::cells(1)[0];
        let health = Health::new(cells, Instant::now());
        health.failed(&PutError::new(Class::Object, "InvalidArgument", ""), false);
        assert_eq!(
            cells.store_failing_since.value(),
            0,
            "one bad object says nothing of the store"
        );
        health.failed(&PutError::new(Class::StoreWide, "NoSuchBucket", ""), false);
        assert_ne!(cells.store_failing_since.value(), 0);
        health.succeeded(Instant::now());
        assert_eq!(cells.store_failing_since.value(), 0);
    }
}
