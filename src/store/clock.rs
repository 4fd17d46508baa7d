//! This core's idea of the store's time, for signing.
//!
//! Each core learns its own offset from the store's refusal; nothing is shared, and without a
//! refusal it is zero.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use aws_smithy_async::time::TimeSource;
use aws_smithy_types::date_time::{DateTime, Format};

/// This core's distance from the store's clock, learnt from a refusal. Written and read by one
/// core.
#[derive(Clone, Debug, Default)]
pub struct ClockOffset {
    /// Shared by this core's clones.
    offset_ms: Arc<AtomicI64>,
}

impl ClockOffset {
    /// Sets the offset from an HTTP date, if it is one.
    pub fn take(&self, date: Option<&str>) {
        let Some(server) = date.and_then(|d| DateTime::from_str(d, Format::HttpDate).ok()) else {
            return;
        };
        let local = DateTime::from(SystemTime::now());
        let offset_ms = (server.secs() - local.secs()).saturating_mul(1000);
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }
}

impl TimeSource for ClockOffset {
    fn now(&self) -> SystemTime {
        let offset_ms = self.offset_ms.load(Ordering::Relaxed);
        let offset = Duration::from_millis(offset_ms.unsigned_abs());
        let now = SystemTime::now();
        let shifted = if offset_ms < 0 { now.checked_sub(offset) } else { now.checked_add(offset) };
        shifted.unwrap_or(now)
    }
}
