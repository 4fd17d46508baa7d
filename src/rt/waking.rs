//! Keeps an executor of glommio 0.9 from sleeping with tasks that are ready.

use std::future::poll_fn;
use std::sync::{Arc, Once, mpsc};
use std::task::{Poll, Waker};
use std::time::Duration;

use rustix::process::{Pid, getpid};
use rustix::thread::gettid;

/// How often an executor is woken that may have nothing to do.
const WAKE_EVERY: Duration = Duration::from_millis(50);

/// The thread that wakes an executor. An executor of glommio 0.9 whose time slice ends between its look at the rings and its
/// look at its tasks (`run_task_queues`) takes that for having no tasks, and sleeps although some are ready, with timers that
/// are still to be set; on a busy host one start in fifty slept for ever. So a thread of its own wakes each executor, by a
/// task of no use: 20 short wake-ups a second, and no such sleep lasts longer.
///
/// Before an executor has run its first task there is nothing to wake it by, and that sleep was seen as well, in one start
/// of five hundred. Until then its thread gets a signal, which ends the sleep as well.
pub(super) struct WakeThread(mpsc::SyncSender<Waker>);

/// Interrupts system calls, and does nothing else.
const WAKE_SIGNAL: i32 = signal_hook::consts::SIGURG;

/// Starts it for the executor that the calling thread is about to run; have that run [`WakeThread::stay_awake`].
pub(super) fn start_wake_thread() -> WakeThread {
    // Without a handler the kernel ignores it, and nothing is interrupted.
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        if let Err(error) = signal_hook::flag::register(WAKE_SIGNAL, Arc::default()) {
            tracing::warn!("no handler for the signal that wakes an executor: {error}");
        }
    });
    let (send, receive) = mpsc::sync_channel::<Waker>(1);
    let sleeper = gettid();
    #[expect(clippy::disallowed_methods, reason = "a thread of its own, which is not on a core")]
    let wake = move || {
        let waker = loop {
            match receive.recv_timeout(WAKE_EVERY) {
                Ok(waker) => break waker,
                Err(mpsc::RecvTimeoutError::Timeout) => interrupt(sleeper),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        };
        loop {
            std::thread::sleep(WAKE_EVERY);
            waker.wake_by_ref();
        }
    };
    let thread = std::thread::Builder::new().name("millrace-wake".to_owned());
    if let Err(error) = thread.spawn(wake) {
        tracing::warn!("no thread to wake this executor: {error}");
    }
    WakeThread(send)
}

impl WakeThread {
    /// Runs on the executor, for as long as that does.
    pub(super) async fn stay_awake(self) {
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let _without_a_thread = self.0.try_send(waker);
        std::future::pending().await
    }
}

/// Sends [`WAKE_SIGNAL`] to the thread `sleeper` of this process, should it still live.
#[expect(unsafe_code, reason = "no library has this call")]
fn interrupt(sleeper: Pid) {
    let (process, thread) = (getpid().as_raw_pid(), sleeper.as_raw_pid());
    // SAFETY: takes three numbers and touches no memory of ours; the signal's handler does nothing, and by default it is
    // ignored.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, WAKE_SIGNAL) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt;

    const LONG: Duration = Duration::from_secs(10);

    /// A thread that sleeps in the kernel, as an executor does before its first task.
    #[test]
    fn who_has_not_begun_is_interrupted() {
        let wake_thread = start_wake_thread();
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut fds = [rustix::event::PollFd::new(&ours, rustix::event::PollFlags::IN)];
        let slept = rustix::event::poll(&mut fds, Some(&LONG.try_into().unwrap()));
        assert_eq!(slept, Err(rustix::io::Errno::INTR));
        // From its first task on it is not.
        rt::run_test(async {
            rt::spawn(wake_thread.stay_awake()).detach();
            rt::sleep(4 * WAKE_EVERY).await;
            let soon = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
            assert_eq!(rustix::event::poll(&mut fds, Some(&soon)), Ok(0));
        });
    }
}
