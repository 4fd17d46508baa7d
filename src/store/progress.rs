//! How far one attempt to store an object has come, and when it has stood still for too long.
//!
//! A whole-request timeout makes a slow link worse: every upload runs into it, and its retry fills the link once more.
//! So `PUT_TIMEOUT` bounds the time *without progress*, and progress is what the peer has acknowledged, not what a
//! socket buffer has taken. After the last byte nothing is left to acknowledge, so it runs once for the answer.
//! `PUT_TIMEOUT_MAX` bounds the whole, for a peer that takes a byte now and then.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Class, PutError};
use crate::config::Config;
use crate::net::Acknowledged;

/// Looks at an attempt's progress per `PUT_TIMEOUT`. An attempt that is answered sooner costs none, and one that
/// stands still is given up up to one look late.
const LOOKS: u32 = 4;

/// `PUT_TIMEOUT` and `PUT_TIMEOUT_MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutTimeouts {
    /// Longest time without progress.
    pub stalled: Duration,
    /// Longest time from begin to end, not below `stalled`.
    pub whole: Duration,
}

impl PutTimeouts {
    pub fn of(config: &Config) -> PutTimeouts {
        PutTimeouts { stalled: config.put_timeout, whole: config.put_timeout_max }
    }
}

/// Where one attempt's progress can be read; the store that makes the attempt says so as soon as it knows.
#[derive(Default)]
pub struct Progress(RefCell<Source>);

#[derive(Default)]
enum Source {
    /// Nothing has been sent yet.
    #[default]
    None,
    Peer(Acknowledged),
    Written(Rc<Cell<u64>>),
    Slot(Rc<PeerSlot>),
}

/// For a connection that is chosen where the attempt is out of reach.
pub type PeerSlot = RefCell<Option<Acknowledged>>;

impl Progress {
    /// The object is sent on the connection that `peer` views.
    pub fn of_peer(&self, peer: Acknowledged) {
        self.0.replace(Source::Peer(peer));
    }

    /// The object is sent on the connection that will be named in what is returned.
    pub fn of_slot(&self) -> Rc<PeerSlot> {
        let slot = Rc::<PeerSlot>::default();
        self.0.replace(Source::Slot(slot.clone()));
        slot
    }

    /// The object is written by a task that adds to what is returned.
    pub fn of_writer(&self) -> Rc<Cell<u64>> {
        let written = Rc::<Cell<u64>>::default();
        self.0.replace(Source::Written(written.clone()));
        written
    }

    /// Nobody waits for the attempt any more.
    pub(super) fn give_up(&self) {
        match &*self.0.borrow() {
            Source::Peer(peer) => peer.discard_on_close(),
            Source::Slot(slot) => slot.borrow().iter().for_each(Acknowledged::discard_on_close),
            Source::None | Source::Written(_) => {}
        }
    }

    /// Two marks differ if there was progress between them.
    fn mark(&self) -> Option<(u64, u64)> {
        match &*self.0.borrow() {
            Source::None => None,
            Source::Peer(peer) => peer.read(),
            Source::Written(written) => Some((0, written.get())),
            Source::Slot(slot) => slot.borrow().as_ref().and_then(Acknowledged::read),
        }
    }
}

/// Judges one attempt.
pub(super) struct Stall {
    timeouts: PutTimeouts,
    end: Instant,
    last_look: Instant,
    /// At the last look that saw progress.
    mark: Option<(u64, u64)>,
    /// Time without progress, as far as it counts.
    stalled: Duration,
}

impl Stall {
    pub(super) fn new(began: Instant, timeouts: PutTimeouts) -> Stall {
        let end = began + timeouts.whole;
        Stall { timeouts, end, last_look: began, mark: None, stalled: Duration::ZERO }
    }

    /// When to look next.
    pub(super) fn next_look(&self) -> Instant {
        (self.last_look + self.interval()).min(self.end)
    }

    fn interval(&self) -> Duration {
        self.timeouts.stalled / LOOKS
    }

    /// Looks: an error, worth another try, once the attempt has taken too long.
    pub(super) fn look(&mut self, now: Instant, progress: &Progress) -> Result<(), PutError> {
        // A process that was paused has not looked: of the time it slept through only as much counts as lies between
        // two looks.
        let since = now.saturating_duration_since(self.last_look).min(self.interval());
        self.last_look = now;
        let mark = progress.mark();
        if mark != self.mark {
            (self.mark, self.stalled) = (mark, Duration::ZERO);
        } else {
            self.stalled += since;
        }
        let late = |why, limit| {
            let text = format!("{why} ({})", humantime::format_duration(limit));
            let error = PutError::new(Class::Transient, "Timeout", text);
            Err(PutError { congestion: true, ..error })
        };
        if now >= self.end {
            return late("not stored within PUT_TIMEOUT_MAX", self.timeouts.whole);
        }
        if self.stalled >= self.timeouts.stalled {
            return late("no progress and no answer within PUT_TIMEOUT", self.timeouts.stalled);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: PutTimeouts =
        PutTimeouts { stalled: Duration::from_secs(4), whole: Duration::from_secs(60) };

    /// Looks whenever it is due, `written` saying how far the attempt has come after so many seconds; returns after how
    /// many it is given up, and why.
    fn given_up(written: impl Fn(u64) -> u64) -> (u64, String) {
        let began = Instant::now();
        let progress = Progress::default();
        let counter = progress.of_writer();
        let mut stall = Stall::new(began, TIMEOUTS);
        loop {
            let now = stall.next_look();
            let after = (now - began).as_secs();
            counter.set(written(after));
            if let Err(error) = stall.look(now, &progress) {
                return (after, error.message);
            }
        }
    }

    #[test]
    fn an_attempt_ends_when_it_stands_still_and_at_its_end() {
        for (written, after, names) in [
            // The first look finds nothing to compare with.
            ((|_| 0) as fn(u64) -> u64, 5, "PUT_TIMEOUT (4s)"),
            // Everything was acknowledged after 10 s; then comes no answer.
            (|s| s.min(10), 14, "PUT_TIMEOUT (4s)"),
            // A byte every three seconds.
            (|s| s / 3, 60, "PUT_TIMEOUT_MAX (1m)"),
            (|s| s, 60, "PUT_TIMEOUT_MAX (1m)"),
        ] {
            let (seen_after, text) = given_up(written);
            assert_eq!(seen_after, after, "{text}");
            assert!(text.ends_with(names), "{text}");
        }
    }

    #[test]
    fn a_connection_that_was_never_named_is_no_progress() {
        let (began, progress) = (Instant::now(), Progress::default());
        let _slot = progress.of_slot();
        let mut stall = Stall::new(began, TIMEOUTS);
        let looks = std::iter::repeat_with(|| stall.look(stall.next_look(), &progress));
        assert_eq!(looks.take_while(Result::is_ok).count(), 3);
    }

    #[test]
    fn a_pause_of_the_process_is_no_stall_of_the_peer() {
        let (began, progress) = (Instant::now(), Progress::default());
        let mut stall = Stall::new(began, TIMEOUTS);
        let paused = began + Duration::from_secs(50);
        assert!(stall.look(paused, &progress).is_ok());
        assert_eq!(stall.next_look(), paused + Duration::from_secs(1));
        assert!(stall.look(stall.end, &progress).is_err(), "the whole is by the clock");
    }
}
