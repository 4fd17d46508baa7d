//! What becomes of payloads, and where those who wait for it are told.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::sync::keep_waker;

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
    /// Nothing more will be told.
    pub fn all_known(&self) -> bool {
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
    /// Of a request with `accepted` payloads, none of whose fates is known.
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

    /// What is known so far.
    pub fn fates(&self) -> Fates {
        self.fates.get()
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};

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
