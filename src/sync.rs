//! Primitives with which the tasks of one executor wait for each other. Nothing here leaves its
//! thread, so nothing is locked or atomic.
//!
//! | type | event | waiting tasks |
//! |---|---|---|
//! | [`Flag`] | occurs once | any number |
//! | [`Signal`] | occurs repeatedly; all occurrences before the wait count as one | one |
//! | [`OneShot`] | occurs once, with a value | one |
//! | [`Waiters`] | a condition of the owner | any number |

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

pub use glommio::sync::{Permit, Semaphore};

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
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits for the value and takes it. `None` if `ended` says that none will follow; the code
    /// that sets `ended` must wake the waiting task.
    pub async fn wait(&self, ended: &Cell<bool>) -> Option<T> {
        poll_fn(|cx| match self.value.take() {
            Some(value) => Poll::Ready(Some(value)),
            None if ended.get() => Poll::Ready(None),
            None => {
                keep_waker(&mut self.waker.borrow_mut(), cx);
                Poll::Pending
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::Wake;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

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
        let mut wait = Box::pin(shot.wait(&ended));
        assert!(!poll(wait.as_mut(), &task));
        shot.set(7);
        assert_eq!(task.0.load(Relaxed), 1);
        assert_eq!(block_on(wait), Some(7));
        assert_eq!(block_on(poll_once(shot.wait(&ended))), None, "taken");
        ended.set(true);
        assert_eq!(block_on(shot.wait(&ended)), None);
        shot.set(8);
        assert_eq!(block_on(shot.wait(&ended)), Some(8), "the value counts, although it came late");
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
