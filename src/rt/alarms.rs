//! Wake-ups at a time, for tasks that wait long and in large numbers: each connection has one.
//!
//! A timer of glommio costs two allocations and an entry in a hash table, which doubles as it grows.
//! Here all wake-ups of an executor are in one ordered map, which grows in steps, and one task, the
//! keeper, has a timer of glommio for the first of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::{Timer, now, spawn};

/// The wake-ups of this thread's executor.
#[derive(Default)]
struct WakeUps {
    /// By time, and by number among those of the same time. As many as tasks wait.
    set: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next_number: Cell<u64>,
    /// Those up to this time have come.
    come_until: Cell<Option<Instant>>,
    /// The keeper was started.
    is_kept: Cell<bool>,
    /// The keeper's waker until it is called.
    keeper: RefCell<Option<Waker>>,
}

thread_local! {
    static WAKE_UPS: WakeUps = WakeUps::default();
}

/// A wake-up of one task. It does not come once this is dropped.
pub struct WakeUp {
    at: Instant,
    number: u64,
    /// It is in the map of the thread that has set it.
    _not_send: PhantomData<*const ()>,
}

impl WakeUp {
    /// Wakes the calling task at `at`, or at once if that has passed.
    pub fn new(at: Instant, cx: &Context<'_>) -> WakeUp {
        WAKE_UPS.with(|wake_ups| {
            let number = wake_ups.next_number.replace(wake_ups.next_number.get() + 1);
            let is_first = wake_ups.first().is_none_or(|first| at < first);
            wake_ups.set.borrow_mut().insert((at, number), cx.waker().clone());
            if is_first {
                wake_ups.call_keeper();
            }
            WakeUp { at, number, _not_send: PhantomData }
        })
    }

    /// When it comes; `None` if it has come, or may have.
    pub fn at(&self) -> Option<Instant> {
        let come_until = WAKE_UPS.with(|wake_ups| wake_ups.come_until.get());
        Some(self.at).filter(|at| come_until.is_none_or(|until| *at > until))
    }
}

impl Drop for WakeUp {
    fn drop(&mut self) {
        let key = (self.at, self.number);
        // The waker is dropped once nothing is borrowed: its task may go with it, and drop another.
        let removed = WAKE_UPS.try_with(|wake_ups| wake_ups.set.borrow_mut().remove(&key));
        drop(removed);
    }
}

impl WakeUps {
    fn first(&self) -> Option<Instant> {
        self.set.borrow().first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets the keeper look at what comes first now.
    fn call_keeper(&self) {
        if !self.is_kept.replace(true) {
            spawn(keep()).detach();
        } else if let Some(keeper) = self.keeper.take() {
            keeper.wake();
        }
    }

    /// Wakes those whose time has come.
    fn wake_due(&self, now: Instant) {
        self.come_until.set(Some(now));
        let next = || {
            let mut set = self.set.borrow_mut();
            let first = set.first_entry().filter(|first| first.key().0 <= now)?;
            Some(first.remove())
        };
        while let Some(waker) = next() {
            waker.wake();
        }
    }
}

/// The keeper.
async fn keep() {
    let mut timer: Option<(Instant, Timer)> = None;
    poll_fn(|cx| {
        WAKE_UPS.with(|wake_ups| {
            loop {
                wake_ups.wake_due(now());
                let Some(first) = wake_ups.first() else {
                    timer = None;
                    break;
                };
                let stands = timer.take().filter(|(at, _)| *at == first);
                let time_until = || Timer::new(first.saturating_duration_since(now()));
                let (_, set) = timer.insert(stands.unwrap_or_else(|| (first, time_until())));
                if Pin::new(set).poll(cx).is_pending() {
                    break;
                }
                timer = None;
            }
            wake_ups.keeper.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
    })
    .await
}

/// To be called when an executor starts and when it ends: its keeper ends with it.
pub(super) fn reset() {
    WAKE_UPS.with(|wake_ups| {
        wake_ups.is_kept.set(false);
        // Dropped once nothing is borrowed.
        let (keeper, set) = (wake_ups.keeper.take(), wake_ups.set.take());
        drop((keeper, set));
    });
}

#[cfg(test)]
mod tests {
    use std::mem::ManuallyDrop;
    use std::time::Duration;

    use super::*;
    use crate::alloc::largest::{PIECE_BYTES_MAX, largest_in};
    use crate::rt;

    /// Ready at `at`; fails if it is polled before and was not set by that poll.
    async fn until(at: Instant) -> Instant {
        let mut set = None;
        poll_fn(|cx| {
            if now() >= at {
                return Poll::Ready(now());
            }
            assert!(set.is_none(), "woken early");
            set = Some(WakeUp::new(at, cx));
            Poll::Pending
        })
        .await
    }

    fn count() -> usize {
        WAKE_UPS.with(|wake_ups| wake_ups.set.borrow().len())
    }

    /// In any order, some at the same time, some dropped before; on two executors of one thread, the
    /// first of which ends while some are set.
    #[test]
    fn wake_ups_come_in_time_and_not_if_dropped() {
        let seed = rt::random();
        println!("seed {seed}");
        let mut rng = rt::Rng::with_seed(seed);
        for _ in 0..2 {
            rt::run_test(async {
                assert_eq!(count(), 0);
                let begun = now();
                let mut delay = || Duration::from_millis(rng.u64(..80));
                let tasks: Vec<_> = (0..300)
                    .map(|_| {
                        let at = begun + delay();
                        (at, rt::spawn(until(at)))
                    })
                    .collect();
                for (number, (at, task)) in tasks.into_iter().enumerate() {
                    if number % 3 == 0 {
                        drop(task);
                        continue;
                    }
                    let woken = task.await;
                    assert!(woken < at + Duration::from_secs(5), "{:?} late", woken - at);
                }
                rt::yield_now().await;
                assert_eq!(count(), 0, "all have come or were dropped");
                // An earlier one comes first, and none that has passed is lost.
                let late = rt::spawn(until(now() + Duration::from_secs(600)));
                until(now() + Duration::from_millis(5)).await;
                let mut polls = 0;
                poll_fn(|cx| {
                    polls += 1;
                    match polls {
                        1 => {
                            let _stays = ManuallyDrop::new(WakeUp::new(begun, cx));
                            Poll::Pending
                        }
                        _ => Poll::Ready(()),
                    }
                })
                .await;
                assert_eq!(count(), 1);
                late.detach();
            });
            assert_eq!(count(), 0, "they end with their executor");
        }
    }

    #[test]
    fn many_wake_ups_are_in_small_pieces() {
        rt::run_test(async {
            let set = |cx: &Context<'_>| {
                let at = now() + Duration::from_secs(600);
                for _ in 0..10_000 {
                    let _stays = ManuallyDrop::new(WakeUp::new(at, cx));
                }
            };
            let largest = poll_fn(|cx| Poll::Ready(largest_in(|| set(cx)))).await;
            assert_eq!(count(), 10_000);
            assert!(largest <= PIECE_BYTES_MAX, "{largest}");
        });
    }
}
