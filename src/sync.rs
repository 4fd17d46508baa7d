//! Primitives with which the tasks of one executor wait for each other. Nothing here leaves its
//! thread, so nothing is locked or atomic.
//!
//! | type | event | waiting tasks |
//! |---|---|---|
//! | [`Flag`] | occurs once | any number |
//! | [`Signal`] | occurs repeatedly; all occurrences before the wait count as one | one |
//! | [`OneShot`] | occurs once, with a value | one |
//! | [`Waiters`] | a condition of the owner | any number |
//! | [`Turns`] | it is the task's turn | any number, first come, first served |

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

pub use glommio::sync::Semaphore;

/// Stores the polling task's waker in `waker`, without cloning it if it is stored already.
#[inline]
pub fn keep_waker(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
}

/// Tasks that wait for a condition of their owner. Each checks the condition itself when it is
/// woken.
#[derive(Default)]
pub struct Waiters {
    /// One for each task that waits or has waited. They are few, and waking one too many does no
    /// harm.
    wakers: RefCell<Vec<Waker>>,
}

impl Waiters {
    /// Waits until `condition` holds. It is checked now and after each [`Waiters::wake_all`].
    pub async fn until(&self, condition: impl Fn() -> bool) {
        poll_fn(|cx| {
            if condition() {
                return Poll::Ready(());
            }
            let mut wakers = self.wakers.borrow_mut();
            if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// To be called when the condition may hold.
    pub fn wake_all(&self) {
        self.wakers.take().into_iter().for_each(Waker::wake);
    }
}

/// An event that occurs once. Any number of tasks may wait for it.
#[derive(Default)]
pub struct Flag {
    set: Cell<bool>,
    waiters: Waiters,
}

impl Flag {
    /// Whether it is set.
    pub fn get(&self) -> bool {
        self.set.get()
    }

    /// Sets the flag and wakes the waiting tasks. Later calls change nothing.
    pub fn set(&self) {
        self.set.set(true);
        self.waiters.wake_all();
    }

    /// Waits until the flag is set.
    pub async fn wait(&self) {
        self.waiters.until(|| self.set.get()).await;
    }
}

/// An event that occurs repeatedly. One task may wait for it.
#[derive(Default)]
pub struct Signal {
    raised: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// Raises the signal and wakes the waiting task.
    pub fn raise(&self) {
        self.raised.set(true);
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Waits until the signal is raised. However often it was raised before, this returns once.
    pub async fn wait(&self) {
        poll_fn(|cx| {
            if self.raised.take() {
                return Poll::Ready(());
            }
            keep_waker(&mut self.waker.borrow_mut(), cx);
            Poll::Pending
        })
        .await;
    }
}

/// A value that one task passes to another that waits for it.
pub struct OneShot<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Default for OneShot<T> {
    fn default() -> OneShot<T> {
        OneShot { value: RefCell::new(None), waker: RefCell::new(None) }
    }
}

impl<T> OneShot<T> {
    /// Passes the value. To be called once.
    pub fn set(&self, value: T) {
        self.value.replace(Some(value));
        self.wake();
    }

    /// Wakes the waiting task, which then asks again whether the wait has ended.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits for the value and takes it. `None` if the wait has `ended` without one; whatever makes
    /// that true must wake the waiting task.
    pub async fn wait(&self, ended: impl Fn() -> bool) -> Option<T> {
        poll_fn(|cx| match self.value.take() {
            Some(value) => Poll::Ready(Some(value)),
            None if ended() => Poll::Ready(None),
            None => {
                keep_waker(&mut self.waker.borrow_mut(), cx);
                Poll::Pending
            }
        })
        .await
    }
}

/// Lets one task at a time do something, first come, first served: a task that asks never overtakes
/// one that waits, as it may with [`Semaphore`].
#[derive(Default)]
pub struct Turns {
    taken: Cell<bool>,
    next_ticket: Cell<u64>,
    /// The tasks that wait, by ticket.
    waiting: RefCell<VecDeque<(u64, Waker)>>,
}

impl Turns {
    /// Waits for a turn. The place in the line is that of the first poll; dropping the future gives
    /// it up.
    pub async fn take(&self) -> Turn<'_> {
        let place = LinePlace { turns: self, ticket: self.next_ticket.get() };
        self.next_ticket.set(place.ticket + 1);
        poll_fn(|cx| self.poll(place.ticket, cx)).await
    }

    fn poll(&self, ticket: u64, cx: &mut Context<'_>) -> Poll<Turn<'_>> {
        let mut waiting = self.waiting.borrow_mut();
        let is_first = waiting.front().is_none_or(|(first, _)| *first == ticket);
        if is_first && !self.taken.replace(true) {
            waiting.pop_front();
            return Poll::Ready(Turn(self));
        }
        match waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket) {
            Ok(at) => waiting[at].1.clone_from(cx.waker()),
            Err(_) => waiting.push_back((ticket, cx.waker().clone())),
        }
        Poll::Pending
    }

    /// To be called when the turn or the front of the line may have become free.
    fn wake_first(&self) {
        if let Some((_, first)) = self.waiting.borrow().front()
            && !self.taken.get()
        {
            first.wake_by_ref();
        }
    }
}

/// A place in the line of [`Turns`].
struct LinePlace<'a> {
    turns: &'a Turns,
    ticket: u64,
}

impl Drop for LinePlace<'_> {
    fn drop(&mut self) {
        let mut waiting = self.turns.waiting.borrow_mut();
        let place = waiting.binary_search_by_key(&self.ticket, |(ticket, _)| *ticket);
        let Ok(at) = place else { return };
        waiting.remove(at);
        drop(waiting);
        // It may have been woken already; then the next one must be.
        if at == 0 {
            self.turns.wake_first();
        }
    }
}

/// The turn that a task has, until this is dropped.
pub struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.set(false);
        self.0.wake_first();
    }
}

#[cfg(test)]
pub use tests::Woken;

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::Wake;

    /// Counts how often it was woken.
    #[derive(Default)]
    pub struct Woken(pub AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// Polls `wait` as `task`; true if it is ready.
    fn poll(wait: std::pin::Pin<&mut impl Future>, task: &Arc<Woken>) -> bool {
        let waker = task.clone().into();
        wait.poll(&mut Context::from_waker(&waker)).is_ready()
    }

    #[test]
    fn a_flag_wakes_every_task_that_waits_and_stays_set() {
        let (flag, tasks) = (Flag::default(), [(); 2].map(|()| Arc::<Woken>::default()));
        let mut waits = [(); 2].map(|()| Box::pin(flag.wait()));
        for (wait, task) in waits.iter_mut().zip(&tasks) {
            assert!(!poll(wait.as_mut(), task) && !poll(wait.as_mut(), task));
        }
        assert_eq!(flag.waiters.wakers.borrow().len(), 2, "one per task, however often polled");
        assert!(!flag.get());
        flag.set();
        assert!(flag.get());
        for (wait, task) in waits.iter_mut().zip(&tasks) {
            assert_eq!(task.0.load(Relaxed), 1);
            assert!(poll(wait.as_mut(), task));
        }
        block_on(flag.wait());
    }

    #[test]
    fn what_was_raised_before_the_wait_counts_once() {
        let (signal, task) = (Signal::default(), Arc::<Woken>::default());
        signal.raise();
        signal.raise();
        block_on(signal.wait());
        let mut wait = Box::pin(signal.wait());
        assert!(!poll(wait.as_mut(), &task));
        signal.raise();
        assert_eq!(task.0.load(Relaxed), 1);
        assert!(poll(wait.as_mut(), &task));
    }

    #[test]
    fn a_one_shot_gives_its_value_once() {
        let (shot, ended) = (OneShot::default(), Cell::new(false));
        let task = Arc::<Woken>::default();
        let mut wait = Box::pin(shot.wait(|| ended.get()));
        assert!(!poll(wait.as_mut(), &task));
        shot.set(7);
        assert_eq!(task.0.load(Relaxed), 1);
        assert_eq!(block_on(wait), Some(7));
        assert_eq!(block_on(poll_once(shot.wait(|| ended.get()))), None, "taken");
        let mut wait = Box::pin(shot.wait(|| ended.get()));
        assert!(!poll(wait.as_mut(), &task));
        ended.set(true);
        shot.wake();
        assert_eq!(task.0.load(Relaxed), 2);
        assert_eq!(block_on(wait), None);
        assert_eq!(block_on(shot.wait(|| ended.get())), None);
        shot.set(8);
        assert_eq!(
            block_on(shot.wait(|| ended.get())),
            Some(8),
            "the value counts, although it came late"
        );
    }

    #[test]
    fn turns_come_in_the_order_of_the_first_polls() {
        let (turns, tasks) = (Turns::default(), [(); 3].map(|()| Arc::<Woken>::default()));
        let woken = || tasks.each_ref().map(|task| task.0.load(Relaxed));
        let first = block_on(turns.take());
        let mut waits = [(); 3].map(|()| Box::pin(turns.take()));
        // The last one is asked for last, although it was made with the others.
        for at in [1, 0, 2, 0, 1] {
            assert!(!poll(waits[at].as_mut(), &tasks[at]));
        }
        assert_eq!((turns.waiting.borrow().len(), woken()), (3, [0, 0, 0]));
        drop(first);
        assert_eq!(woken(), [0, 1, 0], "the first of the line, and only that");
        // Neither one that comes now nor one that is polled for another reason overtakes it.
        assert!(block_on(poll_once(turns.take())).is_none());
        assert!(!poll(waits[0].as_mut(), &tasks[0]) && !poll(waits[2].as_mut(), &tasks[2]));
        let second = block_on(poll_once(&mut waits[1])).expect("it is its turn");
        assert!(!poll(waits[0].as_mut(), &tasks[0]));
        drop(second);
        assert_eq!(woken(), [1, 1, 0]);
        drop(block_on(poll_once(&mut waits[0])).expect("it is its turn"));
        assert_eq!(woken(), [1, 1, 1]);
        drop(block_on(poll_once(&mut waits[2])).expect("it is its turn"));
        assert!(turns.waiting.borrow().is_empty() && block_on(poll_once(turns.take())).is_some());
    }

    #[test]
    fn a_dropped_wait_for_a_turn_passes_it_on() {
        let (turns, tasks) = (Turns::default(), [(); 3].map(|()| Arc::<Woken>::default()));
        let woken = || tasks.each_ref().map(|task| task.0.load(Relaxed));
        let first = block_on(turns.take());
        let [mut gone_early, mut gone_woken, mut last] = [(); 3].map(|()| Box::pin(turns.take()));
        assert!(!poll(gone_early.as_mut(), &tasks[0]));
        assert!(!poll(gone_woken.as_mut(), &tasks[1]));
        assert!(!poll(last.as_mut(), &tasks[2]));
        drop(gone_early);
        assert_eq!(woken(), [0, 0, 0], "the turn is taken");
        drop(first);
        assert_eq!(woken(), [0, 1, 0]);
        drop(gone_woken);
        assert_eq!(woken(), [0, 1, 1]);
        assert!(poll(last.as_mut(), &tasks[2]));
        assert!(block_on(poll_once(turns.take())).is_some(), "the turn was dropped at once");
    }

    #[test]
    fn waiters_look_again_when_they_are_woken() {
        let (waiters, level, task) = (Waiters::default(), Cell::new(0), Arc::<Woken>::default());
        let mut wait = Box::pin(waiters.until(|| level.get() > 1));
        for at in 0..2 {
            level.set(at);
            waiters.wake_all();
            assert!(!poll(wait.as_mut(), &task));
        }
        level.set(2);
        waiters.wake_all();
        assert!(poll(wait.as_mut(), &task));
    }
}
