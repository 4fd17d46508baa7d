//! Works around a defect of glommio 0.9: an executor may sleep although tasks are ready.

use std::future::poll_fn;
use std::sync::{Arc, Once, mpsc};
use std::task::{Poll, Waker};
use std::time::Duration;

use rustix::process::{Pid, getpid};
use rustix::thread::gettid;

/// How often an executor is woken.
const WAKE_EVERY: Duration = Duration::from_millis(50);

/// The thread that wakes an executor. If the time slice of a glommio 0.9 executor ends between
/// checking its rings and checking its tasks (`run_task_queues`), it assumes that it has no tasks
/// and sleeps, although some are ready and timers are still to be set. On a busy host one start in
/// fifty slept for ever. So a separate thread wakes each executor through an otherwise useless
/// task: 20 short wake-ups a second, and no such sleep lasts longer than [`WAKE_EVERY`].
///
/// Before an executor has run its first task there is no task to wake, and that sleep occurred too,
/// in one start of five hundred. Until then the executor's thread gets a signal, which also ends
/// the sleep.
pub(super) struct WakeThread(mpsc::SyncSender<Waker>);

/// A signal whose handler only interrupts system calls.
const WAKE_SIGNAL: i32 = signal_hook::consts::SIGURG;

/// Starts the thread for the executor that the calling thread is about to run. That executor must
/// run [`WakeThread::stay_awake`].
pub(super) fn start_wake_thread() -> WakeThread {
    // Without a handler the kernel ignores the signal and interrupts nothing.
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        if let Err(error) = signal_hook::flag::register(WAKE_SIGNAL, Arc::default()) {
            tracing::warn!("no handler for the signal that wakes an executor: {error}");
        }
    });
    let (send, receive) = mpsc::sync_channel::<Waker>(1);
    let sleeper = gettid();
    #[expect(clippy::disallowed_methods, reason = "a separate thread, which is not on a core")]
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
    /// The task that is woken. Runs as long as the executor.
    pub(super) async fn stay_awake(self) {
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let _or_there_is_no_thread = self.0.try_send(waker);
        std::future::pending().await
    }
}

/// Sends [`WAKE_SIGNAL`] to the thread `sleeper` of this process, if it still exists.
#[expect(unsafe_code, reason = "no library has this call")]
fn interrupt(sleeper: Pid) {
    let (process, thread) = (getpid().as_raw_pid(), sleeper.as_raw_pid());
    // SAFETY: the call takes three numbers and touches no memory of ours. The signal's handler does
    // nothing, and without one the signal is ignored.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, WAKE_SIGNAL) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt;

    const LONG: Duration = Duration::from_secs(10);

    /// A thread that sleeps in the kernel, as an executor does before its first task.
    #[test]
    fn an_executor_that_has_not_started_is_interrupted() {
        let wake_thread = start_wake_thread();
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut fds = [rustix::event::PollFd::new(&ours, rustix::event::PollFlags::IN)];
        let slept = rustix::event::poll(&mut fds, Some(&LONG.try_into().unwrap()));
        assert_eq!(slept, Err(rustix::io::Errno::INTR));
        // After its first task it is not interrupted.
        rt::run_test(async {
            rt::spawn(wake_thread.stay_awake()).detach();
            rt::sleep(4 * WAKE_EVERY).await;
            let soon = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
            assert_eq!(rustix::event::poll(&mut fds, Some(&soon)), Ok(0));
        });
    }
}
