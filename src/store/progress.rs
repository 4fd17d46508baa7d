//! How far one attempt to store an object has come, and when it has stalled for too long.
//!
//! A whole-request timeout makes a slow link worse: every upload hits it, and each retry fills the
//! link again. So `PUT_TIMEOUT` bounds the time *without progress*. Progress is what the peer has
//! acknowledged, not what a socket buffer has taken. After the last byte nothing is left to
//! acknowledge, so the response has one `PUT_TIMEOUT` to arrive. `PUT_TIMEOUT_MAX` bounds the whole
//! attempt, for a peer that takes a byte now and then.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Class, PutError, Sums};
use crate::config::Config;
use crate::net::Acknowledged;
use crate::rt;

/// Checks of an attempt's progress per `PUT_TIMEOUT`. An attempt that ends before the first check
/// costs none, and one that stalls is abandoned up to one check late.
const LOOKS: u32 = 4;

/// `PUT_TIMEOUT` and `PUT_TIMEOUT_MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutTimeouts {
    /// Longest time without progress.
    pub stalled: Duration,
    /// Longest time from start to end, not below `stalled`.
    pub whole: Duration,
}

impl PutTimeouts {
    pub fn of(config: &Config) -> PutTimeouts {
        PutTimeouts { stalled: config.put_timeout, whole: config.put_timeout_max }
    }
}

/// What the store that makes an attempt tells about it: where its progress can be read, which is set
/// as soon as it is known; the sums of the object; and when it ended.
pub struct Progress {
    source: RefCell<Source>,
    began: Instant,
    ended: Cell<Option<Instant>>,
    sums: OnceCell<Sums>,
}

impl Default for Progress {
    fn default() -> Progress {
        Progress::since(rt::now())
    }
}

#[derive(Default)]
enum Source {
    /// Nothing has been sent yet.
    #[default]
    None,
    Peer(Acknowledged),
    Written(Rc<Cell<u64>>),
    Slot(Rc<PeerSlot>),
}

/// For a connection that is chosen by code that cannot reach the attempt.
pub type PeerSlot = RefCell<Option<Acknowledged>>;

impl Progress {
    /// The progress of an attempt that began at `began`; nothing has been sent yet.
    pub fn since(began: Instant) -> Progress {
        let (source, ended, sums) = Default::default();
        Progress { source, began, ended, sums }
    }

    pub fn began(&self) -> Instant {
        self.began
    }

    /// The attempt ends now; the time is read once.
    pub fn end(&self) -> Instant {
        let ended = self.ended.get().unwrap_or_else(rt::now);
        self.ended.set(Some(ended));
        ended
    }

    /// The object's sums, computed once per attempt, however often it is sent.
    pub fn sums(&self, compute: impl FnOnce() -> Sums) -> &Sums {
        self.sums.get_or_init(compute)
    }

    /// The sums, if they were computed, for the next attempt.
    pub(super) fn into_sums(self) -> Option<Sums> {
        self.sums.into_inner()
    }

    /// The object is sent on the connection of `peer`.
    pub fn of_peer(&self, peer: Acknowledged) {
        self.source.replace(Source::Peer(peer));
    }

    /// The object is sent on the connection that will be stored in the returned slot.
    pub fn of_slot(&self) -> Rc<PeerSlot> {
        let slot = Rc::<PeerSlot>::default();
        self.source.replace(Source::Slot(slot.clone()));
        slot
    }

    /// The object is written by a task that adds to the returned counter.
    pub fn of_writer(&self) -> Rc<Cell<u64>> {
        let written = Rc::<Cell<u64>>::default();
        self.source.replace(Source::Written(written.clone()));
        written
    }

    /// The attempt is abandoned: nobody waits for it any longer.
    pub(super) fn give_up(&self) {
        match &*self.source.borrow() {
            Source::Peer(peer) => peer.discard_on_close(),
            Source::Slot(slot) => slot.borrow().iter().for_each(Acknowledged::discard_on_close),
            Source::None | Source::Written(_) => {}
        }
    }

    /// Two marks differ if progress was made between them.
    fn mark(&self) -> Option<(u64, u64)> {
        match &*self.source.borrow() {
            Source::None => None,
            Source::Peer(peer) => peer.read(),
            Source::Written(written) => Some((0, written.get())),
            Source::Slot(slot) => slot.borrow().as_ref().and_then(Acknowledged::read),
        }
    }
}

/// Decides when one attempt has taken too long.
pub(super) struct Stall {
    timeouts: PutTimeouts,
    end: Instant,
    last_look: Instant,
    /// At the last check that saw progress.
    mark: Option<(u64, u64)>,
    /// Time without progress, without pauses of this process.
    stalled: Duration,
}

impl Stall {
    pub(super) fn new(began: Instant, timeouts: PutTimeouts) -> Stall {
        let end = began + timeouts.whole;
        Stall { timeouts, end, last_look: began, mark: None, stalled: Duration::ZERO }
    }

    /// When to check next.
    pub(super) fn next_look(&self) -> Instant {
        (self.last_look + self.interval()).min(self.end)
    }

    fn interval(&self) -> Duration {
        self.timeouts.stalled / LOOKS
    }

    /// Checks; an error, worth a retry, once the attempt has taken too long.
    pub(super) fn look(&mut self, now: Instant, progress: &Progress) -> Result<(), PutError> {
        // A paused process could not check: of a pause only the interval between two checks counts.
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
            return late("no progress and no response within PUT_TIMEOUT", self.timeouts.stalled);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: PutTimeouts =
        PutTimeouts { stalled: Duration::from_secs(4), whole: Duration::from_secs(60) };

    /// Checks whenever a check is due. `written` maps seconds to progress. Returns after how many
    /// seconds the attempt is abandoned, and why.
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
            // The first check finds nothing to compare with.
            ((|_| 0) as fn(u64) -> u64, 5, "PUT_TIMEOUT (4s)"),
            // Everything is acknowledged after 10 s, then no response arrives.
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
