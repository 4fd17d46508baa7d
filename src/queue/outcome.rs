//! The outcomes of payloads, and where a request waits for those of its own.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::sync::keep_waker;

/// The outcome of one payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Stored,
    DeadLettered,
    /// Its dead letter could not be written either.
    Lost,
}

/// The outcomes of one request's payloads, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    pub accepted: usize,
    pub stored: usize,
    pub dead_lettered: usize,
    pub lost: usize,
}

impl Outcomes {
    /// Whether every payload has an outcome.
    pub fn all_known(&self) -> bool {
        self.stored + self.dead_lettered + self.lost == self.accepted
    }
}

/// Collects the outcomes of one request's payloads from the workers, for the connection that waits.
#[derive(Debug)]
pub struct RequestOutcome {
    outcomes: Cell<Outcomes>,
    /// The connection that waits.
    waker: RefCell<Option<Waker>>,
}

impl RequestOutcome {
    /// For a request with `accepted` payloads, none of which has an outcome yet.
    pub fn of(accepted: usize) -> Rc<RequestOutcome> {
        let outcomes = Cell::new(Outcomes { accepted, ..Outcomes::default() });
        Rc::new(RequestOutcome { outcomes, waker: RefCell::new(None) })
    }

    /// Adds the outcome that `payloads` of them have. Only the last one wakes the connection, which
    /// cannot answer before.
    pub fn add(&self, outcome: Outcome, payloads: usize) {
        let mut outcomes = self.outcomes.get();
        let Outcomes { accepted, stored, dead_lettered, lost } = outcomes;
        let unknown = accepted - stored - dead_lettered - lost;
        assert!(payloads <= unknown, "a payload has one outcome");
        match outcome {
            Outcome::Stored => outcomes.stored += payloads,
            Outcome::DeadLettered => outcomes.dead_lettered += payloads,
            Outcome::Lost => outcomes.lost += payloads,
        }
        self.outcomes.set(outcomes);
        if outcomes.all_known()
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }

    /// The outcomes so far.
    pub fn outcomes(&self) -> Outcomes {
        self.outcomes.get()
    }

    /// Waits until every payload has an outcome, or `ended` says that no more will come. Whoever
    /// sets `ended` wakes the connection.
    pub async fn wait_for_all(&self, ended: &Cell<bool>) {
        poll_fn(|cx| {
            if self.outcomes.get().all_known() || ended.get() {
                return Poll::Ready(());
            }
            keep_waker(&mut self.waker.borrow_mut(), cx);
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};

    #[test]
    fn a_wait_ends_with_the_last_outcome() {
        let request_outcome = RequestOutcome::of(3);
        let ended = Cell::new(false);
        block_on(async {
            let mut wait = Box::pin(request_outcome.wait_for_all(&ended));
            for outcome in [Outcome::Lost, Outcome::Stored] {
                assert!(poll_once(&mut wait).await.is_none());
                request_outcome.add(outcome, 1);
                assert!(request_outcome.waker.borrow().is_some(), "not woken before the last");
            }
            assert!(poll_once(&mut wait).await.is_none());
            request_outcome.add(Outcome::DeadLettered, 1);
            assert!(request_outcome.waker.borrow().is_none(), "woken");
            wait.await;
        });
        let outcomes = Outcomes { accepted: 3, stored: 1, dead_lettered: 1, lost: 1 };
        assert_eq!(request_outcome.outcomes.get(), outcomes);
    }

    #[test]
    fn a_wait_ends_when_no_more_outcomes_will_come() {
        let request_outcome = RequestOutcome::of(2);
        let ended = Cell::new(false);
        block_on(async {
            let mut wait = Box::pin(request_outcome.wait_for_all(&ended));
            assert!(poll_once(&mut wait).await.is_none());
            ended.set(true);
            wait.await;
        });
        assert!(!request_outcome.outcomes.get().all_known());
    }

    #[test]
    fn a_request_without_payloads_does_not_wait() {
        block_on(RequestOutcome::of(0).wait_for_all(&Cell::new(false)));
    }

    #[test]
    #[should_panic(expected = "one outcome")]
    fn a_second_outcome_of_a_payload_is_caught() {
        let request_outcome = RequestOutcome::of(1);
        request_outcome.add(Outcome::Stored, 1);
        request_outcome.add(Outcome::Lost, 1);
    }
}
