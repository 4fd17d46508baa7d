//! Waiting for each other within one core.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Something that happens once.
#[derive(Default)]
pub struct Flag {
    set: Cell<bool>,
    /// One per task that waits or has waited: acceptor and workers, so few, and waking one too many does no harm.
    waiters: RefCell<Vec<Waker>>,
}

impl Flag {
    pub fn get(&self) -> bool {
        self.set.get()
    }

    pub fn set(&self) {
        self.set.set(true);
        for waker in self.waiters.take() {
            waker.wake();
        }
    }

    pub async fn wait(&self) {
        poll_fn(|cx| {
            if self.set.get() {
                return Poll::Ready(());
            }
            let mut waiters = self.waiters.borrow_mut();
            if !waiters.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiters.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
