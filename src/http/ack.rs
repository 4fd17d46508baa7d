//! The ack level of a request: what its 200 promises, and the wait for it.
//!
//! The head selects the level. A `stored` request gives its [`RequestOutcome`] to each of its jobs,
//! and the workers add the outcomes. Only a stop drops a job without an outcome; it then wakes
//! every waiting request. A `queued` request has none, which saves an allocation.
//!
//! Known gap: nobody reads from a connection while one of its requests waits here, be it hyper's or
//! the fast path's. So a client that has gone away keeps its connection slot until the outcomes are
//! known or `ACK_TIMEOUT` has passed, unless earlier answers are still being sent to it: then the
//! failed send ends the connection.

use std::time::Duration;

use crate::config::{Ack, Config};
use crate::deadline::{Alarm, within};
use crate::http::fields::{Fields, KnownField};
use crate::http::reply::Answer;
use crate::metrics::CoreCells;
use crate::queue::outcome::RequestOutcome;
use crate::rt;
use crate::spool::Ticket;
use crate::stop::Stop;

/// Why a requested level is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    #[error("millrace-ack must be queued, spooled or stored, and only one of them")]
    Unknown,
    #[error(
        "millrace-ack: spooled needs a spool, and this server has none (SPOOL_DIR is not set); ask for \
         queued or stored"
    )]
    NoSpool,
}

/// The level that the header asks for, by default the server's.
///
/// # Errors
/// The header is invalid, or asks for a level that this server does not have.
pub fn requested_level(fields: &impl Fields, config: &Config) -> Result<Ack, LevelError> {
    let mut values = fields.values(KnownField::MillraceAck);
    let Some(value) = values.next() else { return Ok(config.ack) };
    let name = std::str::from_utf8(value.trim_ascii());
    match name.ok().and_then(Ack::named) {
        None => Err(LevelError::Unknown),
        Some(_) if values.next().is_some() => Err(LevelError::Unknown),
        Some(Ack::Spooled) if config.spool.is_none() => Err(LevelError::NoSpool),
        Some(ack) => Ok(ack),
    }
}

/// Waits up to `ack_timeout` until the outcome of every payload of a request is known. Uploads that
/// are not finished by then continue, and nothing waits for them.
pub(super) async fn wait_until_stored(
    request_outcome: &RequestOutcome,
    ack_timeout: Duration,
    stop: &Stop,
    cells: &'static CoreCells,
) -> Answer {
    let _counted = Waiter::new(cells);
    let ended = &stop.uploads_ended;
    within(ack_timeout, request_outcome.wait_for_all(ended), || ()).await;
    let outcomes = request_outcome.outcomes();
    match () {
        () if outcomes.stored == outcomes.accepted => {
            Answer::Accepted { count: outcomes.accepted, ack: Ack::Stored }
        }
        () if outcomes.all_known() => Answer::NotStored(outcomes),
        () => Answer::Undecided { outcomes, stopped: ended.get() },
    }
}

/// Waits up to `ack_timeout` until a request of `count` payloads is on the disk.
pub(super) async fn wait_until_spooled(
    ticket: &Ticket,
    count: usize,
    ack_timeout: Duration,
    stop: &Stop,
) -> Answer {
    let since = rt::turn_now();
    let ended = &stop.uploads_ended;
    // Nearly every request is answered long before `ACK_TIMEOUT`, so it sets no timer at first.
    let mut result = None;
    if ack_timeout > Ticket::SLOW_AFTER_MAX {
        result = ticket.wait_unless_slow(ended).await;
    }
    if result.is_none() {
        let synced = ticket.wait(ended);
        result = Alarm::default().within(since, ack_timeout, synced, || None).await;
    }
    match result {
        Some(Ok(())) => Answer::Accepted { count, ack: Ack::Spooled },
        Some(Err(error)) => error.into(),
        None => Answer::NotSynced,
    }
}

/// Counts one waiting request until it is dropped.
struct Waiter {
    cells: &'static CoreCells,
}

impl Waiter {
    fn new(cells: &'static CoreCells) -> Waiter {
        cells.ack_waiters.inc();
        Waiter { cells }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.cells.ack_waiters.sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue};

    /// The level of a request with one header for each of `values`, on a server with `settings`.
    fn level_of(values: &[&[u8]], settings: &[(&str, &str)]) -> Result<Ack, LevelError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(KnownField::MillraceAck.name(), HeaderValue::from_bytes(value).unwrap());
        }
        requested_level(&headers, &Config::from_settings(settings).unwrap())
    }

    const STORED: [(&str, &str); 1] = [("ACK", "stored")];
    const SPOOL: [(&str, &str); 2] = [("SPOOL_DIR", "spool"), ("ACK", "spooled")];

    #[test]
    fn the_header_raises_and_lowers_what_the_server_promises() {
        assert_eq!(level_of(&[], &[]), Ok(Ack::Queued));
        assert_eq!(level_of(&[], &STORED), Ok(Ack::Stored));
        assert_eq!(level_of(&[], &SPOOL), Ok(Ack::Spooled));
        for settings in [&[][..], &STORED, &SPOOL] {
            assert_eq!(level_of(&[b"queued"], settings), Ok(Ack::Queued));
            assert_eq!(level_of(&[b" \tstored "], settings), Ok(Ack::Stored));
        }
        assert_eq!(level_of(&[b"spooled"], &SPOOL), Ok(Ack::Spooled));
        assert_eq!(level_of(&[b"spooled"], &STORED), Err(LevelError::NoSpool));
    }

    #[test]
    fn anything_else_is_refused_with_what_is_allowed() {
        let bad: [&[u8]; 7] =
            [b"", b"Stored", b"durable", b"stored,queued", b"stored;", b"1", b"stored\xff"];
        for value in bad {
            assert_eq!(level_of(&[value], &SPOOL), Err(LevelError::Unknown), "{value:?}");
        }
        assert_eq!(level_of(&[b"stored", b"stored"], &[]), Err(LevelError::Unknown));
        assert_eq!(level_of(&[b"stored", b""], &[]), Err(LevelError::Unknown));
        let said = LevelError::Unknown.to_string();
        assert!(Ack::ALL.iter().all(|ack| said.contains(ack.name())), "{said}");
    }
}
