//! A wait with an end: every wait on somebody else goes through here, or says beside it why not.
//!
//! A deadline that judges a peer must not count what this process did not do. A virtual machine that was paused, or a
//! process that was stopped and continued, finds all its deadlines past, and in its sockets all that came meanwhile. So
//! before such a deadline is acted on, two things are looked at: whether it is noticed so late that the peer had no
//! chance, see [`was_paused`], and whether something has arrived that was not taken in yet, see [`collect_arrived`].

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_lite::future;

use crate::net::Net;
use crate::rt::{self, Timer};

/// What `work` gives, or `late` once the peer that it waits for has had `limit`. `work` is asked first, so what is ready
/// at once costs no timer; it is dropped when it is late.
pub async fn within<T>(
    limit: Duration,
    work: impl Future<Output = T>,
    late: impl FnOnce() -> T,
) -> T {
    Alarm::default().judge(rt::now(), limit, work, late).await
}

/// A delay that no busy core explains, …
const PAUSE_LEAST: Duration = Duration::from_millis(100);
/// …and the share of a limit that matters: a peer that had three quarters of its time was not wronged.
const PAUSE_SHARE: u32 = 4;

/// Whether a deadline at the end of `limit` that is noticed `late` after it says less of the peer than of this process,
/// which was paused or did not get its CPU. Then the peer gets the whole limit again.
pub fn was_paused(limit: Duration, late: Duration) -> bool {
    late > (limit / PAUSE_SHARE).max(PAUSE_LEAST)
}

/// How often a deadline that has come lets the other tasks take in what has arrived: an answer may pass from the socket
/// to the connection's task and from there to who waits for it.
const LOOKS: usize = 3;

/// Takes in what the kernel has for the sockets of this executor, and lets those run who wait for it.
pub async fn collect_arrived() {
    if let Some(net) = Net::of_this_executor() {
        net.run_tasks_and_turn().await;
    }
    rt::yield_now().await;
}

/// What `work` gives, or `late` once `limit` has passed: for a schedule of our own, which no pause makes longer.
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
        let now = rt::now();
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

    /// As [`within`], for a task that waits again and again, and for a peer that has had its time since `since`.
    pub async fn judge<T>(
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
        for _ in 0..LOOKS {
            collect_arrived().await;
            if let Some(done) = future::poll_once(work.as_mut()).await {
                return done;
            }
        }
        late()
    }

    /// As [`strictly_within`], for a task that waits again and again.
    pub async fn until<T>(
        &mut self,
        deadline: Instant,
        work: impl Future<Output = T>,
        late: impl FnOnce() -> T,
    ) -> T {
        self.wait(deadline, pin!(work)).await.unwrap_or_else(late)
    }

    /// What `work` gives, or `None` once `deadline` has passed.
    async fn wait<T>(
        &mut self,
        deadline: Instant,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => self.poll(cx, deadline).map(|()| None),
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
    fn late_means_both_in_itself_and_for_the_limit() {
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

    /// Stops the thread, as a pause of the machine stops it.
    fn pause(time: Duration) {
        std::thread::sleep(time);
    }

    #[test]
    fn what_arrived_during_a_pause_is_in_time() {
        use futures_lite::AsyncReadExt;
        use std::io::Write as _;
        rt::run_test(async {
            let net = Net::here().unwrap();
            // A pause that is long for the limit, and one that is not and ends right with it.
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
            // Nothing comes: late all the same, the second time.
            let started = Instant::now();
            let during = rt::spawn(async move { pause(10 * SHORT) });
            assert!(within(SHORT, async { pending().await }, || true).await);
            assert!(started.elapsed() >= 10 * SHORT);
            during.await;
            // Schedules are not made longer.
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
            // A later call is brought forward, and one that has come is set anew.
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
            // An earlier one stands.
            let slow = async {
                rt::sleep(SHORT / 2).await;
                true
            };
            assert!(alarm.until(Instant::now() + SHORT, slow, || false).await);
            let set = alarm.set.as_ref().map(|(at, _)| *at);
            let slow = async {
                rt::sleep(2 * SHORT).await;
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
