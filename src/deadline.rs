//! A wait with an end: every wait on somebody else goes through here, or says beside it why not.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_lite::future;
use glommio::timer::Timer;

/// What `work` gives, or `late` once `limit` has passed. `work` is asked first, so what is ready at once costs no timer;
/// it is dropped when it is late.
pub async fn within<T>(
    limit: Duration,
    work: impl Future<Output = T>,
    late: impl FnOnce() -> T,
) -> T {
    let time_up = async {
        Timer::new(limit).await;
        late()
    };
    future::or(work, time_up).await
}

/// One task's wake-up call, kept from wait to wait: as long as an earlier call still stands and comes in time, the next
/// wait costs a look at the clock and no timer operation.
#[derive(Default)]
pub struct Alarm {
    set: Option<(Instant, Timer)>,
}

impl Alarm {
    /// Ready once `deadline` has passed; until then the task is woken by then, perhaps earlier. Only ever polled by one
    /// task.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let now = Instant::now();
        if now >= deadline {
            return Poll::Ready(());
        }
        let stands = self.set.as_ref().is_some_and(|(at, _)| now < *at && *at <= deadline);
        if !stands {
            let mut timer = Timer::new(deadline - now);
            // A timer that is due already has registered nobody.
            if Pin::new(&mut timer).poll(cx).is_ready() {
                return Poll::Ready(());
            }
            self.set = Some((deadline, timer));
        }
        Poll::Pending
    }

    /// As [`within`], for a task that waits again and again.
    pub async fn until<T>(
        &mut self,
        deadline: Instant,
        work: impl Future<Output = T>,
        late: impl FnOnce() -> T,
    ) -> T {
        let mut work = pin!(work);
        let done = poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => self.poll(cx, deadline).map(|()| None),
        });
        done.await.unwrap_or_else(late)
    }
}

/// How often an executor is woken that may have nothing to do.
const WAKE_EVERY: Duration = Duration::from_millis(50);

/// Runs on every executor. An executor of glommio 0.9 whose time slice ends between its look at the rings and its look at
/// its tasks (`run_task_queues`) takes that for having no tasks, and sleeps although some are ready, with timers that are
/// still to be set; on a busy host one start in fifty slept for ever. So a thread of its own wakes each executor, by a
/// task of no use: 20 short wake-ups a second, and no such sleep lasts longer.
pub async fn stay_awake() {
    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    #[expect(clippy::disallowed_methods, reason = "a thread of its own, which is not on a core")]
    let wake = move || loop {
        std::thread::sleep(WAKE_EVERY);
        waker.wake_by_ref();
    };
    let thread = std::thread::Builder::new().name("millrace-wake".to_owned());
    if let Err(error) = thread.spawn(wake) {
        tracing::warn!("no thread to wake this executor: {error}");
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{pending, ready};
    use glommio::LocalExecutor;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn an_alarm_serves_one_wait_after_another() {
        LocalExecutor::default().run(async {
            let mut alarm = Alarm::default();
            let started = Instant::now();
            assert!(alarm.until(Instant::now() + LONG, ready(true), || false).await);
            assert!(alarm.set.is_none(), "what is ready costs no timer");
            // A later call is brought forward, and one that has come is set anew.
            let soon = async {
                glommio::timer::sleep(SHORT / 2).await;
                true
            };
            assert!(alarm.until(Instant::now() + LONG, soon, || false).await);
            assert!(alarm.set.is_some());
            for _ in 0..2 {
                assert!(!alarm.until(Instant::now() + SHORT, pending(), || false).await);
            }
            assert!((2 * SHORT..LONG).contains(&started.elapsed()));
            // An earlier one stands.
            let slow = async {
                glommio::timer::sleep(SHORT / 2).await;
                true
            };
            assert!(alarm.until(Instant::now() + SHORT, slow, || false).await);
            let set = alarm.set.as_ref().map(|(at, _)| *at);
            let slow = async {
                glommio::timer::sleep(2 * SHORT).await;
                true
            };
            assert!(
                alarm.until(Instant::now() + LONG, slow, || false).await,
                "woken early, and not late yet"
            );
            assert_ne!(alarm.set.as_ref().map(|(at, _)| *at), set, "set anew after it came");
        });
    }
}
