//! One core's idle kept-alive connections, last used first. Both S3 clients keep theirs here.
//!
//! Bounded per origin by `idle_max`, in idle time by [`IDLE_TIMEOUT`], and in age by the instant at
//! which a connection retires: a busy connection would otherwise stay with an address that its name
//! has left long ago. Never shared between cores; what is dropped closes itself.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use super::dial::Origin;
use crate::rt;

/// A connection idle for longer is closed, not reused: stores close theirs soon after.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

struct Kept<C> {
    conn: C,
    idle_since: Instant,
    retire_at: Option<Instant>,
}

/// Idle connections of type `C`, by origin.
pub(crate) struct Idle<C> {
    /// Per origin.
    idle_max: usize,
    /// The store's origin, and as many more as redirects have named lately.
    conns: RefCell<Vec<(Origin, Vec<Kept<C>>)>>,
    swept: Cell<Instant>,
}

impl<C> Idle<C> {
    pub(crate) fn new(idle_max: usize) -> Idle<C> {
        Idle { idle_max, conns: RefCell::default(), swept: Cell::new(rt::now()) }
    }

    /// The connection to `origin` last kept that is neither idle for too long nor too old.
    pub(crate) fn take(&self, origin: &Origin) -> Option<C> {
        self.take_at(origin, rt::now())
    }

    fn take_at(&self, origin: &Origin, now: Instant) -> Option<C> {
        let mut conns = self.conns.borrow_mut();
        let (_, kept) = conns.iter_mut().find(|(of, _)| of == origin)?;
        while let Some(last) = kept.pop() {
            if now.saturating_duration_since(last.idle_since) >= IDLE_TIMEOUT {
                // Those below have been idle for longer still.
                kept.clear();
                return None;
            }
            if !is_past(last.retire_at, now) {
                return Some(last.conn);
            }
        }
        None
    }

    /// Keeps `conn` for the next request to `origin`, unless `retire_at` has passed or enough are
    /// kept.
    pub(crate) fn keep(&self, origin: &Origin, conn: C, retire_at: Option<Instant>) {
        self.keep_at(origin, conn, retire_at, rt::now());
    }

    fn keep_at(&self, origin: &Origin, conn: C, retire_at: Option<Instant>, now: Instant) {
        let mut conns = self.conns.borrow_mut();
        if now.saturating_duration_since(self.swept.get()) >= IDLE_TIMEOUT {
            self.swept.set(now);
            conns.retain_mut(|(_, kept)| {
                kept.retain(|kept| {
                    now.saturating_duration_since(kept.idle_since) < IDLE_TIMEOUT
                        && !is_past(kept.retire_at, now)
                });
                !kept.is_empty()
            });
        }
        if is_past(retire_at, now) {
            return;
        }
        let at = conns.iter().position(|(of, _)| of == origin).unwrap_or_else(|| {
            conns.push((origin.clone(), Vec::new()));
            conns.len() - 1
        });
        let kept = &mut conns[at].1;
        if kept.len() < self.idle_max {
            kept.push(Kept { conn, idle_since: now, retire_at });
        }
    }

    /// Connections waiting for a request.
    pub(crate) fn count(&self) -> usize {
        self.conns.borrow().iter().map(|(_, kept)| kept.len()).sum()
    }
}

fn is_past(retire_at: Option<Instant>, now: Instant) -> bool {
    retire_at.is_some_and(|at| now >= at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn origin(host: &str) -> Origin {
        Origin { https: false, host: host.into(), port: 80 }
    }

    #[test]
    fn the_last_kept_is_taken_first_and_only_for_its_origin() {
        let (idle, now) = (Idle::new(2), Instant::now());
        let (a, b) = (origin("a"), origin("b"));
        for n in 1..=3 {
            idle.keep_at(&a, n, None, now);
        }
        assert_eq!(idle.count(), 2, "the third is one too many");
        assert_eq!(idle.take_at(&b, now), None);
        assert_eq!(idle.take_at(&a, now), Some(2));
        assert_eq!(idle.take_at(&a, now), Some(1));
        assert_eq!(idle.take_at(&a, now), None);
    }

    #[test]
    fn a_busy_connection_is_reused_until_it_retires_and_not_after() {
        let (idle, start) = (Idle::new(8), Instant::now());
        let (a, retire_at) = (origin("a"), Some(start + 60 * SECOND));
        idle.keep_at(&a, 7, retire_at, start);
        for second in 1..60 {
            let now = start + second * SECOND;
            assert_eq!(idle.take_at(&a, now), Some(7), "{second}");
            idle.keep_at(&a, 7, retire_at, now);
        }
        assert_eq!(idle.take_at(&a, start + 60 * SECOND), None);
        idle.keep_at(&a, 7, retire_at, start + 61 * SECOND);
        assert_eq!(idle.count(), 0, "what has retired is not kept either");
    }

    #[test]
    fn an_old_connection_does_not_hide_a_younger_one() {
        let (idle, now) = (Idle::new(8), Instant::now());
        let a = origin("a");
        idle.keep_at(&a, 1, Some(now + 60 * SECOND), now);
        idle.keep_at(&a, 2, Some(now + SECOND), now);
        assert_eq!(idle.take_at(&a, now + 2 * SECOND), Some(1));
    }

    #[test]
    fn idle_connections_end_and_are_swept_with_their_origins() {
        let (idle, start) = (Idle::new(8), Instant::now());
        let (a, b) = (origin("a"), origin("b"));
        idle.keep_at(&a, 1, None, start);
        idle.keep_at(&a, 2, None, start);
        assert_eq!(idle.take_at(&a, start + IDLE_TIMEOUT), None);
        assert_eq!(idle.count(), 0);
        idle.keep_at(&a, 3, None, start);
        idle.keep_at(&b, 4, None, start + 2 * IDLE_TIMEOUT);
        assert_eq!(idle.conns.borrow().len(), 1, "a is gone");
    }
}
