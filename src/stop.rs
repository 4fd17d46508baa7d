//! How far the stop of one core has come, as its tasks see it. `core::drain` sets it, in this order; nothing is taken back.

use std::cell::Cell;
use std::time::Instant;

use crate::sync::Flag;

/// Shared by all tasks of a core.
#[derive(Default)]
pub struct Stop {
    /// The stop has begun: answers carry `connection: close`, retries are hurried, batches are closed soon.
    pub draining: Flag,
    /// When that was.
    pub began: Cell<Option<Instant>>,
    /// No queue takes anything any more: whoever waits for a request closes its connection.
    pub closed: Cell<bool>,
    /// The workers are cancelled: nobody is told any more what became of a payload.
    pub uploads_ended: Cell<bool>,
}

impl Stop {
    /// The first step, at `now`.
    pub fn begin(&self, now: Instant) {
        self.began.set(Some(now));
        self.draining.set();
    }
}
