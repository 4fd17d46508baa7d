//! Says in the log what a payload has where its event time should be, if that cannot be read.

use std::cell::RefCell;

use crate::key::KeyTemplate;
use crate::queue::job::Payload;
use crate::throttle::Throttle;

/// The log line about event times that cannot be read: one a minute, whatever clients send.
#[derive(Debug)]
pub struct UnreadableTimes {
    log: RefCell<Throttle>,
}

impl Default for UnreadableTimes {
    fn default() -> UnreadableTimes {
        UnreadableTimes { log: RefCell::new(Throttle::per_minute()) }
    }
}

impl UnreadableTimes {
    /// Logs what `payload` has at `EVENT_TIME`: its shape only, none of its bytes.
    pub fn log(&self, keys: &KeyTemplate, payload: &Payload) {
        self.log.borrow_mut().warn(|| {
            format!(
                "a payload is filed under its time of arrival: EVENT_TIME finds {}, which is neither \
                 epoch s, ms, µs or ns nor ISO 8601",
                keys.event_time_shape(payload, payload.values())
            )
        });
    }
}
