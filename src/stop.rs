//! How far the stop of one core has come. `core::drain` sets the fields in this order and never
//! resets them.

use std::cell::Cell;
use std::time::Instant;

use crate::sync::Flag;

/// Shared by all tasks of a core.
#[derive(Default)]
pub struct Stop {
    /// The stop has begun: answers carry `connection: close`, retries come sooner, batches are
    /// closed soon.
    pub draining: Flag,
    /// When the stop began.
    pub began: Cell<Option<Instant>>,
    /// Queues are closed: connections that wait for a request are closed.
    pub closed: Cell<bool>,
    /// The workers are cancelled: no more outcomes follow.
    pub uploads_ended: Cell<bool>,
}

impl Stop {
    /// Begins the stop.
    pub fn begin(&self, now: Instant) {
        self.began.set(Some(now));
        self.draining.set();
    }
}
