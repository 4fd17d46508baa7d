//! Works around a defect of glommio 0.9: an executor may sleep although tasks are ready.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Once, OnceLock};
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
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
///
/// The thread ends when this is dropped, which waits for it.
pub(super) struct WakeThread {
    /// Of the task, once it has run.
    waker: Arc<OnceLock<Waker>>,
    /// The thread runs as long as this sender exists.
    stop: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

/// A signal whose handler only interrupts system calls.
const WAKE_SIGNAL: i32 = signal_hook::consts::SIGURG;

/// Starts the thread for the executor that the calling thread is about to run. That executor must
/// run [`WakeThread::stay_awake`], and this value must be dropped when it ends: the wake-ups of an
/// executor that has ended are never taken, and glommio aborts the process when 32,767 of them
/// wait, which is after 27 minutes.
pub(super) fn start_wake_thread() -> WakeThread {
    // Without a handler the kernel ignores the signal and interrupts nothing.
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        if let Err(error) = signal_hook::flag::register(WAKE_SIGNAL, Arc::default()) {
            tracing::warn!("no handler for the signal that wakes an executor: {error}");
        }
    });
    let waker = Arc::new(OnceLock::<Waker>::new());
    let (stop, stopped) = mpsc::channel();
    let sleeper = gettid();
    let wake = {
        let waker = Arc::clone(&waker);
        move || {
            while stopped.recv_timeout(WAKE_EVERY) == Err(RecvTimeoutError::Timeout) {
                match waker.get() {
                    Some(waker) => waker.wake_by_ref(),
                    None => interrupt(sleeper),
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("millrace-wake".to_owned());
    let thread = thread.spawn(wake).inspect_err(|error| {
        tracing::warn!("no thread to wake this executor: {error}");
    });
    WakeThread { waker, stop: Some(stop), thread: thread.ok() }
}

impl WakeThread {
    /// The task that is woken.
    pub(super) fn stay_awake(&self) -> impl Future<Output = ()> + use<> {
        let waker = Arc::clone(&self.waker);
        poll_fn(move |cx| {
            waker.get_or_init(|| cx.waker().clone());
            Poll::Pending
        })
    }
}

impl Drop for WakeThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _or_it_panicked = thread.join();
        }
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
