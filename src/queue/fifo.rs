//! One core's queue of jobs: a fixed number of slots, first in, first out, without locks or
//! atomics.
//!
//! A push to a full queue hands the job back. A closed queue accepts no more jobs; once it is
//! empty, pops return `None`, which ends the workers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// A bounded queue that stays on its core.
pub struct Fifo<T> {
    slots: RefCell<VecDeque<T>>,
    capacity: usize,
    closed: Cell<bool>,
    /// Slots that popped jobs still hold.
    reserved: Cell<usize>,
    /// Workers waiting for a job, by number so that none is listed twice.
    idle: RefCell<VecDeque<(usize, Waker)>>,
}

impl<T> Fifo<T> {
    pub fn new(capacity: usize) -> Fifo<T> {
        assert!(capacity > 0, "a queue has at least one slot");
        Fifo {
            // All of it now: growth under load would move every job in one stall.
            slots: RefCell::new(VecDeque::with_capacity(capacity)),
            capacity,
            closed: Cell::new(false),
            reserved: Cell::new(0),
            idle: RefCell::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.slots.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn free(&self) -> usize {
        // A slot may be given away before its job takes it back for a retry.
        self.capacity.saturating_sub(self.len() + self.reserved.get())
    }

    /// Sets how many slots stay taken by jobs that were popped.
    pub fn reserve(&self, slots: usize) {
        self.reserved.set(slots);
    }

    /// How many slots stay taken by jobs that were popped.
    pub fn reserved(&self) -> usize {
        self.reserved.get()
    }

    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Queues `job` and wakes one idle worker; hands it back when the queue is full or closed.
    pub fn push(&self, job: T) -> Result<(), T> {
        if self.closed.get() || self.free() == 0 {
            return Err(job);
        }
        self.slots.borrow_mut().push_back(job);
        self.wake_one();
        Ok(())
    }

    /// Wakes the worker that has been idle the longest.
    pub fn wake_one(&self) {
        if let Some((_, waker)) = self.idle.borrow_mut().pop_front() {
            waker.wake();
        }
    }

    /// Registers `worker` to be woken by [`Fifo::wake_one`].
    pub fn wait(&self, cx: &Context<'_>, worker: usize) {
        self.leave(worker);
        self.idle.borrow_mut().push_back((worker, cx.waker().clone()));
    }

    /// `worker` no longer waits.
    pub fn leave(&self, worker: usize) {
        self.idle.borrow_mut().retain(|(number, _)| *number != worker);
    }

    /// Pops the oldest job, waiting for one if there is none; `None` once the queue is closed and
    /// empty. `worker` identifies the caller.
    pub async fn pop(&self, worker: usize) -> Option<T> {
        poll_fn(|cx| {
            let job = self.slots.borrow_mut().pop_front();
            if job.is_some() || self.closed.get() {
                return Poll::Ready(job);
            }
            self.wait(cx, worker);
            Poll::Pending
        })
        .await
    }

    /// Pops the oldest job if there is one.
    pub fn take(&self) -> Option<T> {
        self.slots.borrow_mut().pop_front()
    }

    /// Whether all queued jobs satisfy `holds`.
    pub fn all(&self, holds: impl Fn(&T) -> bool) -> bool {
        self.slots.borrow().iter().all(holds)
    }

    /// Accepts no more jobs; workers end once the queue is empty.
    pub fn close(&self) {
        self.closed.set(true);
        for (_, waker) in self.idle.borrow_mut().drain(..) {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};

    #[test]
    fn a_full_queue_hands_the_job_back_and_keeps_order() {
        let queue = Fifo::new(2);
        assert_eq!((queue.push(1), queue.push(2), queue.push(3)), (Ok(()), Ok(()), Err(3)));
        assert_eq!(block_on(queue.pop(0)), Some(1));
        assert_eq!(queue.push(4), Ok(()));
        assert_eq!((block_on(queue.pop(0)), block_on(queue.pop(0))), (Some(2), Some(4)));
        assert!(queue.is_empty());
    }

    #[test]
    fn close_refuses_pushes_and_ends_pops_when_empty() {
        let queue = Fifo::new(2);
        queue.push(1).unwrap();
        queue.close();
        assert_eq!(queue.push(2), Err(2));
        assert_eq!((block_on(queue.pop(0)), block_on(queue.pop(0))), (Some(1), None));
    }

    #[test]
    fn a_waiting_pop_wakes_on_push_and_on_close() {
        let queue = Fifo::new(1);
        block_on(async {
            let mut first = Box::pin(queue.pop(0));
            let mut second = Box::pin(queue.pop(1));
            assert!(poll_once(&mut first).await.is_none());
            assert!(poll_once(&mut first).await.is_none(), "polled twice, listed once");
            assert!(poll_once(&mut second).await.is_none());
            assert_eq!(queue.idle.borrow().len(), 2);
            queue.push(9).unwrap();
            assert_eq!(first.await, Some(9));
            queue.close();
            assert_eq!(second.await, None);
        });
    }

    #[test]
    fn reserved_slots_are_taken() {
        let queue = Fifo::new(2);
        queue.push(1).unwrap();
        assert_eq!(queue.take(), Some(1));
        queue.reserve(1);
        assert_eq!((queue.free(), queue.push(2), queue.push(3)), (1, Ok(()), Err(3)));
        queue.reserve(2);
        assert_eq!(queue.free(), 0, "one slot was given away");
        queue.reserve(0);
        assert_eq!(queue.free(), 1);
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
