//! One core's queue of payloads that wait for a worker or for their batch: a fixed number of slots,
//! first in, first out, without locks or atomics.
//!
//! **Slots.** The payloads of a request enter as one [`Run`], but each holds a slot of its own from
//! the push until it is taken. So `MAX_QUEUE`, the gauges and the drain rate count payloads,
//! whatever requests look like. A push that does not fit hands the whole run back.
//!
//! **Taking.** A worker whose PUT takes a while takes one payload ([`JobQueue::take`]), as a [`Job`]
//! of its own. Whoever handles many at a time takes what is adjacent: [`JobQueue::take_run`], or
//! [`JobQueue::front`] and, for those that could be handled, [`JobQueue::drop_front`]. The others
//! then stay in the queue with their slots, where a stop finds them.
//!
//! **Waking.** A push wakes one worker, however many payloads it adds, and none while a woken one
//! has not looked into the queue yet. So a worker that takes something and leaves something that
//! another could take must wake the next one ([`JobQueue::wake_one`]). If the store completes at
//! once, the first one takes everything, and nobody is woken in vain.
//!
//! A closed queue accepts no more; once it is empty, the workers end.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use super::idle::IdleWorkers;
use super::job::Job;
use super::run::Run;

/// A bounded queue of payloads that stays on its core.
pub struct JobQueue {
    runs: RefCell<VecDeque<Run>>,
    /// Payloads in all runs.
    payloads: Cell<usize>,
    capacity: usize,
    closed: Cell<bool>,
    /// Slots that payloads hold that were taken and wait for a retry.
    reserved: Cell<usize>,
    idle: IdleWorkers,
    /// A worker was woken and has not looked into the queue since.
    is_awaited: Cell<bool>,
}

impl JobQueue {
    pub fn new(capacity: usize) -> JobQueue {
        assert!(capacity > 0, "a queue has at least one slot");
        JobQueue {
            // All of it now: growth under load would move every run in one stall. There are at most
            // as many runs as payloads.
            runs: RefCell::new(VecDeque::with_capacity(capacity)),
            payloads: Cell::new(0),
            capacity,
            closed: Cell::new(false),
            reserved: Cell::new(0),
            idle: IdleWorkers::default(),
            is_awaited: Cell::new(false),
        }
    }

    /// Payloads in the queue.
    pub fn len(&self) -> usize {
        self.payloads.get()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Slots.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Free slots.
    pub fn free(&self) -> usize {
        // A slot may be given away before its payload takes it back for a retry.
        self.capacity.saturating_sub(self.len() + self.reserved.get())
    }

    /// Sets how many slots stay taken by payloads that are not in the queue.
    pub fn reserve(&self, slots: usize) {
        self.reserved.set(slots);
    }

    /// How many slots stay taken by payloads that are not in the queue.
    pub fn reserved(&self) -> usize {
        self.reserved.get()
    }

    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Queues the payloads of `run` and sees to it that a worker looks for them.
    ///
    /// # Errors
    /// There are not slots for all of them, or the queue is closed; none was queued.
    pub fn push(&self, run: Run) -> Result<(), Run> {
        if self.closed.get() || self.free() < run.count() {
            return Err(run);
        }
        self.payloads.set(self.len() + run.count());
        self.runs.borrow_mut().push_back(run);
        if !self.is_awaited.get() {
            self.wake_one();
        }
        Ok(())
    }

    /// Wakes a worker that waits, if there is one.
    pub fn wake_one(&self) {
        if self.idle.wake_one() {
            self.is_awaited.set(true);
        }
    }

    /// Registers `worker` to be woken by [`JobQueue::wake_one`].
    pub fn wait(&self, cx: &Context<'_>, worker: usize) {
        self.idle.wait(cx, worker);
    }

    /// `worker` no longer waits.
    pub fn leave(&self, worker: usize) {
        self.idle.leave(worker);
    }

    /// To be called by a worker that was woken or looks for work by itself, before it decides what
    /// to take: from now on pushes wake another one.
    pub fn look(&self) {
        self.is_awaited.set(false);
    }

    /// Waits until there is a payload; false once the queue is closed and empty. `worker` identifies
    /// the caller.
    pub async fn some(&self, worker: usize) -> bool {
        poll_fn(|cx| {
            self.look();
            if !self.is_empty() || self.closed.get() {
                return Poll::Ready(!self.is_empty());
            }
            self.wait(cx, worker);
            Poll::Pending
        })
        .await
    }

    /// Takes the oldest payload if there is one.
    pub fn take(&self) -> Option<Job> {
        let mut runs = self.runs.borrow_mut();
        let front = runs.front_mut()?;
        let job = match front.count() {
            1 => runs.pop_front()?.into_job(),
            _ => front.take_front(1).into_job(),
        };
        self.payloads.set(self.len() - 1);
        Some(job)
    }

    /// Takes the oldest payload and those of the same run behind it, at most `most`.
    pub fn take_run(&self, most: usize) -> Option<Run> {
        let mut runs = self.runs.borrow_mut();
        let front = runs.front_mut()?;
        let taken = match front.count() <= most {
            true => runs.pop_front()?,
            false => front.take_front(most),
        };
        self.payloads.set(self.len() - taken.count());
        Some(taken)
    }

    /// The run of the oldest payload, which stays in the queue.
    pub fn front(&self) -> Option<Run> {
        self.runs.borrow().front().cloned()
    }

    /// When the payload at the head was admitted, in nanoseconds since 1970.
    pub fn oldest(&self) -> Option<u64> {
        self.runs.borrow().front().map(|run| run.first_stamp().unix_nanos)
    }

    /// Takes the oldest `count` payloads, all of them in the run that [`JobQueue::front`] shows.
    ///
    /// # Panics
    /// There are fewer in that run.
    pub fn drop_front(&self, count: usize) {
        let taken = if count == 0 { None } else { self.take_run(count) };
        assert_eq!(taken.map_or(0, |taken| taken.count()), count, "they are in one run");
    }

    /// Whether all runs in the queue satisfy `holds`.
    pub fn all(&self, holds: impl Fn(&Run) -> bool) -> bool {
        self.runs.borrow().iter().all(holds)
    }

    /// Accepts no more; workers end once the queue is empty.
    pub fn close(&self) {
        self.closed.set(true);
        self.idle.wake_all();
    }
}

#[cfg(test)]
mod tests;
