//! What the 200 of one request promises, and the wait for the store.
//!
//! The level is chosen by the head. A `stored` request gives its [`Tally`] to each of its jobs, and the workers tell it
//! what became of them; only a stop drops a job without a word, and then wakes everybody who waits. Jobs that are to be
//! queued and no more have none, so their request pays no allocation for it.
//!
//! Known gap: hyper does not read while a request is being answered, so a client that has gone away keeps its
//! connection's place until the store has decided or `ACK_TIMEOUT` has passed.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::config::{Ack, Config};
use crate::deadline::within;
use crate::http::reply::Answer;
use crate::metrics::CoreCells;
use crate::spool::Ticket;
use crate::stop::Stop;
use crate::sync::keep_waker;

/// The request header that says the level of one request.
static HEADER: HeaderName = HeaderName::from_static("millrace-ack");

/// Why a request's level cannot be had.
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

/// The level that the header asks for, or else the server's.
pub fn level(headers: &HeaderMap, config: &Config) -> Result<Ack, LevelError> {
    let mut values = headers.get_all(&HEADER).iter();
    let Some(value) = values.next() else { return Ok(config.ack) };
    let name = std::str::from_utf8(value.as_bytes().trim_ascii());
    match name.ok().and_then(Ack::named) {
        None => Err(LevelError::Unknown),
        Some(_) if values.next().is_some() => Err(LevelError::Unknown),
        Some(Ack::Spooled) if config.spool.is_none() => Err(LevelError::NoSpool),
        Some(ack) => Ok(ack),
    }
}

/// What became of one payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Stored,
    DeadLettered,
    /// The dead letter could not be written either.
    Lost,
}

/// What is known of the payloads of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    pub accepted: usize,
    pub stored: usize,
    pub dead_lettered: usize,
    pub lost: usize,
}

impl Fates {
    fn all_known(&self) -> bool {
        self.stored + self.dead_lettered + self.lost == self.accepted
    }
}

/// Where the workers tell one waiting request what became of its payloads.
#[derive(Debug)]
pub struct Tally {
    fates: Cell<Fates>,
    /// The connection that waits.
    waker: RefCell<Option<Waker>>,
}

impl Tally {
    pub fn of(accepted: usize) -> Rc<Tally> {
        let fates = Cell::new(Fates { accepted, ..Fates::default() });
        Rc::new(Tally { fates, waker: RefCell::new(None) })
    }

    /// Told once per payload; only the last one wakes, for nobody does anything with less.
    pub fn tell(&self, fate: Fate) {
        let mut fates = self.fates.get();
        assert!(!fates.all_known(), "a payload has one fate");
        match fate {
            Fate::Stored => fates.stored += 1,
            Fate::DeadLettered => fates.dead_lettered += 1,
            Fate::Lost => fates.lost += 1,
        }
        self.fates.set(fates);
        if fates.all_known()
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }

    /// Ready once every fate is known, or `ended` says that no more will be told; who sets that wakes the connection.
    pub async fn all_known(&self, ended: &Cell<bool>) {
        poll_fn(|cx| {
            if self.fates.get().all_known() || ended.get() {
                return Poll::Ready(());
            }
            keep_waker(&mut self.waker.borrow_mut(), cx);
            Poll::Pending
        })
        .await;
    }
}

/// Waits up to `ACK_TIMEOUT` until the store has decided on every payload of a request. What it has not decided on by
/// then goes on without anybody waiting.
pub(super) async fn stored(
    tally: &Tally,
    ack_timeout: Duration,
    stop: &Stop,
    cells: &'static CoreCells,
) -> Answer {
    let _counted = Waiter::new(cells);
    let ended = &stop.uploads_ended;
    within(ack_timeout, tally.all_known(ended), || ()).await;
    let fates = tally.fates.get();
    match () {
        () if fates.stored == fates.accepted => {
            Answer::Accepted { count: fates.accepted, ack: Ack::Stored }
        }
        () if fates.all_known() => Answer::NotStored(fates),
        () => Answer::Undecided { fates, stopped: ended.get() },
    }
}

/// Waits up to `ACK_TIMEOUT` until a request of `count` payloads is on the disk.
pub(super) async fn spooled(
    ticket: &Ticket,
    count: usize,
    ack_timeout: Duration,
    stop: &Stop,
) -> Answer {
    let synced = ticket.wait(&stop.uploads_ended);
    match within(ack_timeout, synced, || None).await {
        Some(Ok(())) => Answer::Accepted { count, ack: Ack::Spooled },
        Some(Err(error)) => error.into(),
        None => Answer::NotSynced,
    }
}

/// One request that waits, counted until it is dropped.
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
    use futures_lite::future::{block_on, poll_once};
    use http::HeaderValue;

    /// The level of a request with one such header for each of `values`, on a server with `settings`.
    fn level_of(values: &[&[u8]], settings: &[(&str, &str)]) -> Result<Ack, LevelError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&HEADER, HeaderValue::from_bytes(value).unwrap());
        }
        level(&headers, &Config::from_settings(settings).unwrap())
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

    #[test]
    fn a_wait_ends_with_the_last_fate() {
        let tally = Tally::of(3);
        let ended = Cell::new(false);
        block_on(async {
            let mut wait = Box::pin(tally.all_known(&ended));
            for fate in [Fate::Lost, Fate::Stored] {
                assert!(poll_once(&mut wait).await.is_none());
                tally.tell(fate);
                assert!(tally.waker.borrow().is_some(), "not woken before the last");
            }
            assert!(poll_once(&mut wait).await.is_none());
            tally.tell(Fate::DeadLettered);
            assert!(tally.waker.borrow().is_none(), "woken");
            wait.await;
        });
        let fates = Fates { accepted: 3, stored: 1, dead_lettered: 1, lost: 1 };
        assert_eq!(tally.fates.get(), fates);
    }

    #[test]
    fn a_wait_ends_when_nobody_is_left_to_tell() {
        let tally = Tally::of(2);
        let ended = Cell::new(false);
        block_on(async {
            let mut wait = Box::pin(tally.all_known(&ended));
            assert!(poll_once(&mut wait).await.is_none());
            ended.set(true);
            wait.await;
        });
        assert!(!tally.fates.get().all_known());
    }

    #[test]
    fn nobody_waits_for_nothing() {
        block_on(Tally::of(0).all_known(&Cell::new(false)));
    }

    #[test]
    #[should_panic(expected = "one fate")]
    fn a_second_fate_of_a_payload_is_caught() {
        let tally = Tally::of(1);
        tally.tell(Fate::Stored);
        tally.tell(Fate::Lost);
    }
}
