//! A bounded queue that workers wait at: first in, first out, without locks or atomics. For what is
//! queued one by one; the queue of payloads is [`JobQueue`](super::job_queue::JobQueue).
//!
//! A push to a full queue hands the item back. A closed queue accepts no more.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::task::Context;

use super::idle::IdleWorkers;

/// A bounded queue that stays on its core.
pub struct Fifo<T> {
    slots: RefCell<VecDeque<T>>,
    capacity: usize,
    closed: Cell<bool>,
    idle: IdleWorkers,
}

impl<T> Fifo<T> {
    pub fn new(capacity: usize) -> Fifo<T> {
        assert!(capacity > 0, "a queue has at least one slot");
        Fifo {
            // All of it now: growth under load would move every item in one stall.
            slots: RefCell::new(VecDeque::with_capacity(capacity)),
            capacity,
            closed: Cell::new(false),
            idle: IdleWorkers::default(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.slots.borrow().is_empty()
    }

    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Queues `item` and wakes one idle worker; hands it back when the queue is full or closed.
    pub fn push(&self, item: T) -> Result<(), T> {
        if self.closed.get() || self.slots.borrow().len() == self.capacity {
            return Err(item);
        }
        self.slots.borrow_mut().push_back(item);
        self.wake_one();
        Ok(())
    }

    /// Wakes a worker that waits, if there is one.
    pub fn wake_one(&self) {
        self.idle.wake_one();
    }

    /// Registers `worker` to be woken by [`Fifo::wake_one`].
    pub fn wait(&self, cx: &Context<'_>, worker: usize) {
        self.idle.wait(cx, worker);
    }

    /// `worker` no longer waits.
    pub fn leave(&self, worker: usize) {
        self.idle.leave(worker);
    }

    /// Takes the oldest item if there is one.
    pub fn take(&self) -> Option<T> {
        self.slots.borrow_mut().pop_front()
    }

    /// The least that `of` makes of the oldest `most` items.
    pub fn least_of(&self, most: usize, of: impl Fn(&T) -> u64) -> Option<u64> {
        self.slots.borrow().iter().take(most).map(of).min()
    }

    /// Whether all queued items satisfy `holds`.
    pub fn all(&self, holds: impl Fn(&T) -> bool) -> bool {
        self.slots.borrow().iter().all(holds)
    }

    /// Accepts no more, and wakes all workers that wait.
    pub fn close(&self) {
        self.closed.set(true);
        self.idle.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_hands_the_item_back_and_keeps_order() {
        let queue = Fifo::new(2);
        assert_eq!((queue.push(1), queue.push(2), queue.push(3)), (Ok(()), Ok(()), Err(3)));
        assert_eq!(queue.take(), Some(1));
        assert_eq!(queue.push(4), Ok(()));
        assert_eq!((queue.take(), queue.take(), queue.take()), (Some(2), Some(4), None));
        assert!(queue.is_empty());
    }

    #[test]
    fn close_refuses_pushes_and_keeps_what_is_queued() {
        let queue = Fifo::new(2);
        queue.push(1).unwrap();
        queue.close();
        assert_eq!(queue.push(2), Err(2));
        assert_eq!((queue.take(), queue.take()), (Some(1), None));
    }

    #[test]
    fn capacity_never_grows() {
        let queue = Fifo::new(100);
        let before = queue.slots.borrow().capacity();
        for round in 0..1_000 {
            if queue.push(round).is_err() {
                queue.take();
            }
        }
        assert_eq!(queue.slots.borrow().capacity(), before);
    }
}
