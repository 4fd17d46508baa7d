//! Waits with a deadline. Every wait for a peer goes through here, or has a comment that says why
//! not.
//!
//! A deadline must not blame a peer for time in which this process did not run. After a virtual
//! machine was paused, or a process stopped and continued, all deadlines have passed, and the
//! sockets hold all that arrived meanwhile. So before such a deadline is acted on, two checks are
//! made: whether it is noticed so late that the peer had no chance ([`was_paused`]), and whether
//! bytes have arrived that were not read yet ([`collect_arrived`]).

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_lite::future;

use crate::net::Net;
use crate::rt::{self, Timer, WakeUp};

/// Runs `work`, or returns `late()` once the peer that `work` waits for has had `limit`. `work` is
/// polled first, so a result that is ready costs no timer. When it is late, it is dropped.
pub async fn within<T>(
    limit: Duration,
    work: impl Future<Output = T>,
    late: impl FnOnce() -> T,
) -> T {
    Alarm::default().within(rt::now(), limit, work, late).await
}

/// A delay that a busy core does not explain, …
const PAUSE_LEAST: Duration = Duration::from_millis(100);
/// … and the divisor of a limit that gives the delay that matters: a peer that had three quarters
/// of its time was treated fairly.
const PAUSE_SHARE: u32 = 4;

/// Whether this process was paused or got no CPU, judged by a deadline after `limit` that was
/// noticed `late` after it had passed. If so, the peer gets the whole limit again.
pub fn was_paused(limit: Duration, late: Duration) -> bool {
    late > (limit / PAUSE_SHARE).max(PAUSE_LEAST)
}

/// How often a deadline that has passed lets other tasks read what has arrived: an answer may pass
/// from the socket to the connection's task, and from there to the task that waits.
const COLLECT_ROUNDS: usize = 3;

/// Collects what the kernel has for the sockets of this executor, and runs the tasks that wait for
/// it.
pub async fn collect_arrived() {
    if let Some(net) = Net::of_this_executor() {
        net.run_tasks_and_turn().await;
    }
    rt::yield_now().await;
}

/// Runs `work`, or returns `late()` once `limit` has passed. For schedules of our own, which a
/// pause does not extend.
pub async fn strictly_within<T>(
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

/// One task's timer, kept from wait to wait. While an earlier timer is still set and fires in time,
/// the next wait only reads the clock and costs no timer operation.
#[derive(Default)]
pub struct Alarm {
    set: Option<WakeUp>,
}

impl Alarm {
    /// Ready once `deadline` has passed at `now`. Otherwise the task is woken then, or earlier. Only
    /// one task may poll it.
    pub fn poll(&mut self, cx: &mut Context<'_>, now: Instant, deadline: Instant) -> Poll<()> {
        if now >= deadline {
            return Poll::Ready(());
        }
        // `now` may be the time of a while ago, and a wake-up between then and now has come.
        let set = self.set.as_ref().and_then(WakeUp::at);
        let stands = set.is_some_and(|at| now < at && at <= deadline);
        if !stands {
            self.set = Some(WakeUp::new(deadline, cx));
        }
        Poll::Pending
    }

    /// As [`within`], for a task that waits repeatedly. The peer's time runs from `since`.
    pub async fn within<T>(
        &mut self,
        since: Instant,
        limit: Duration,
        work: impl Future<Output = T>,
        late: impl FnOnce() -> T,
    ) -> T {
        let mut work = pin!(work);
        let mut deadline = since + limit;
        loop {
            if let Some(done) = self.wait(deadline, work.as_mut()).await {
                return done;
            }
            if !was_paused(limit, rt::since(deadline)) {
                break;
            }
            deadline = rt::now() + limit;
        }
        for _ in 0..COLLECT_ROUNDS {
            collect_arrived().await;
            if let Some(done) = future::poll_once(work.as_mut()).await {
                return done;
            }
        }
        late()
    }

    /// As [`strictly_within`], for a task that waits repeatedly.
    pub async fn until<T>(
        &mut self,
        deadline: Instant,
        work: impl Future<Output = T>,
        late: impl FnOnce() -> T,
    ) -> T {
        self.wait(deadline, pin!(work)).await.unwrap_or_else(late)
    }

    /// The result of `work`, or `None` once `deadline` has passed.
    async fn wait<T>(
        &mut self,
        deadline: Instant,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => self.poll(cx, rt::now(), deadline).map(|()| None),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{pending, ready};

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_pause_is_long_in_itself_and_for_the_limit() {
        let ms = Duration::from_millis;
        for (limit, late, paused) in [
            (100, 99, false),
            (100, 101, true),
            (400, 100, false),
            (400, 101, true),
            (30_000, 7_500, false),
            (30_000, 7_501, true),
        ] {
            assert_eq!(was_paused(ms(limit), ms(late)), paused, "{late} of {limit}");
        }
    }

    /// Stops the thread, like a pause of the machine.
    fn pause(time: Duration) {
        std::thread::sleep(time);
    }

    #[test]
    fn what_arrived_during_a_pause_is_in_time() {
        use futures_lite::AsyncReadExt;
        use std::io::Write as _;
        rt::run_test(async {
            let net = Net::here().unwrap();
            // A pause that is long for the limit, and one that is not long and ends just after the
            // limit.
            for (limit, pause_for) in [(SHORT, 10 * SHORT), (5 * SHORT, 6 * SHORT)] {
                let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                let mut ours = net.stream(ours);
                let read = async {
                    let mut byte = [0];
                    ours.read_exact(&mut byte).await.unwrap();
                    byte[0]
                };
                let during = rt::spawn(async move {
                    theirs.write_all(b"x").unwrap();
                    pause(pause_for);
                    theirs
                });
                assert_eq!(within(limit, read, || 0).await, b'x', "{pause_for:?} of {limit:?}");
                drop(during.await);
            }
            // If nothing arrives, it is late after the second limit.
            let started = Instant::now();
            let during = rt::spawn(async move { pause(10 * SHORT) });
            assert!(within(SHORT, async { pending().await }, || true).await);
            assert!(started.elapsed() >= 10 * SHORT);
            during.await;
            // A pause does not extend a schedule.
            let during = rt::spawn(async move { pause(10 * SHORT) });
            let started = Instant::now();
            assert!(strictly_within(SHORT, async { pending().await }, || true).await);
            assert!(started.elapsed() < LONG);
            during.await;
        });
    }

    #[test]
    fn an_alarm_serves_one_wait_after_another() {
        rt::run_test(async {
            let mut alarm = Alarm::default();
            let started = Instant::now();
            assert!(alarm.until(Instant::now() + LONG, ready(true), || false).await);
            assert!(alarm.set.is_none(), "what is ready costs no timer");
            // A timer that is set for later is replaced, and one that has fired is set again.
            let soon = async {
                rt::sleep(SHORT / 2).await;
                true
            };
            assert!(alarm.until(Instant::now() + LONG, soon, || false).await);
            assert!(alarm.set.is_some());
            for _ in 0..2 {
                assert!(!alarm.until(Instant::now() + SHORT, pending(), || false).await);
            }
            assert!((2 * SHORT..LONG).contains(&started.elapsed()));
            // A timer that is set for earlier stays.
            let slow = async {
                rt::sleep(SHORT / 2).await;
                true
            };
            assert!(alarm.until(Instant::now() + SHORT, slow, || false).await);
            let set = alarm.set.as_ref().map(WakeUp::at);
            let slow = async {
                rt::sleep(2 * SHORT).await;
                true
            };
            assert!(
                alarm.until(Instant::now() + LONG, slow, || false).await,
                "woken early, and not late yet"
            );
            assert_ne!(alarm.set.as_ref().map(WakeUp::at), set, "set again after it fired");
        });
    }
}
