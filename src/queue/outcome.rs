//! What becomes of payloads, and where those who wait for it are told.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::sync::keep_waker;

/// What became of one payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Stored,
    DeadLettered,
    /// The dead letter could not be written either.
    Lost,
}

/// What is known of the payloads of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    pub accepted: usize,
    pub stored: usize,
    pub dead_lettered: usize,
    pub lost: usize,
}

impl Outcomes {
    /// Nothing more will be told.
    pub fn all_known(&self) -> bool {
        self.stored + self.dead_lettered + self.lost == self.accepted
    }
}

/// Where the workers tell one waiting request what became of its payloads.
#[derive(Debug)]
pub struct RequestOutcome {
    outcomes: Cell<Outcomes>,
    /// The connection that waits.
    waker: RefCell<Option<Waker>>,
}

impl RequestOutcome {
    /// Of a request with `accepted` payloads, none of whose fates is known.
    pub fn of(accepted: usize) -> Rc<RequestOutcome> {
        let outcomes = Cell::new(Outcomes { accepted, ..Outcomes::default() });
        Rc::new(RequestOutcome { outcomes, waker: RefCell::new(None) })
    }

    /// Told once per payload; only the last one wakes, for nobody does anything with less.
    pub fn add(&self, outcome: Outcome) {
        let mut outcomes = self.outcomes.get();
        assert!(!outcomes.all_known(), "a payload has one outcome");
        match outcome {
            Outcome::Stored => outcomes.stored += 1,
            Outcome::DeadLettered => outcomes.dead_lettered += 1,
            Outcome::Lost => outcomes.lost += 1,
        }
        self.outcomes.set(outcomes);
        if outcomes.all_known()
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }

    /// What is known so far.
    pub fn outcomes(&self) -> Outcomes {
        self.outcomes.get()
    }

    /// Ready once every fate is known, or `ended` says that no more will be told; who sets that wakes the connection.
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
    fn a_wait_ends_with_the_last_fate() {
        let request_outcome = RequestOutcome::of(3);
        let ended = Cell::new(false);
        block_on(async {
            let mut wait = Box::pin(request_outcome.wait_for_all(&ended));
            for outcome in [Outcome::Lost, Outcome::Stored] {
                assert!(poll_once(&mut wait).await.is_none());
                request_outcome.add(outcome);
                assert!(request_outcome.waker.borrow().is_some(), "not woken before the last");
            }
            assert!(poll_once(&mut wait).await.is_none());
            request_outcome.add(Outcome::DeadLettered);
            assert!(request_outcome.waker.borrow().is_none(), "woken");
            wait.await;
        });
        let outcomes = Outcomes { accepted: 3, stored: 1, dead_lettered: 1, lost: 1 };
        assert_eq!(request_outcome.outcomes.get(), outcomes);
    }

    #[test]
    fn a_wait_ends_when_nobody_is_left_to_tell() {
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
    fn nobody_waits_for_nothing() {
        block_on(RequestOutcome::of(0).wait_for_all(&Cell::new(false)));
    }

    #[test]
    #[should_panic(expected = "one outcome")]
    fn a_second_fate_of_a_payload_is_caught() {
        let request_outcome = RequestOutcome::of(1);
        request_outcome.add(Outcome::Stored);
        request_outcome.add(Outcome::Lost);
    }
}
