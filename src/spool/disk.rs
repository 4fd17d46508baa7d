//! State that all files of one core's spool share: a thread for blocking calls, the disk's health,
//! and the signals of its tasks.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};

use futures_channel::oneshot;
use glommio::GlommioError;

use super::health::DiskHealth;
use crate::rt;
use crate::sync::Signal;

/// Most calls that wait for the thread. Every task of a spool waits for its own call, so only a
/// hanging disk gets near this limit.
const CALLS_MAX: usize = 64;

type Call = Box<dyn FnOnce() + Send>;

/// A thread for blocking calls on the spool's disk. The executor's own blocking thread also writes
/// dead letters and renames the file store's objects; a call that hangs here must not delay those.
/// Ends when its last handle is dropped.
#[derive(Clone)]
pub struct DiskThread {
    calls: SyncSender<Call>,
}

impl DiskThread {
    /// Starts the thread. It inherits the caller's CPUs, so a pinned thread must not call this.
    ///
    /// # Errors
    /// The system cannot start another thread.
    pub fn spawn(name: &str) -> io::Result<DiskThread> {
        let (calls, queue) = sync_channel::<Call>(CALLS_MAX);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            for call in queue {
                // The panic hook has reported it, and the caller gets an error because no reply
                // comes.
                let _panicked = catch_unwind(AssertUnwindSafe(call));
            }
        })?;
        Ok(DiskThread { calls })
    }

    /// Runs `call` on the thread, after those before it. If the future is dropped early, the call
    /// is still made.
    ///
    /// # Errors
    /// `call`'s, or `TimedOut`: too many calls wait for a disk that does not answer.
    pub async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (reply, answer) = oneshot::channel();
        let call = move || {
            let _caller_may_be_gone = reply.send(call());
        };
        self.calls.try_send(Box::new(call)).map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, "the disk of the spool does not answer")
        })?;
        let _wait = rt::foreign_wait();
        answer
            .await
            .unwrap_or_else(|_| Err(io::Error::other("a call on the spool's disk panicked")))
    }
}

/// The disk of one core's spool.
pub(super) struct SpoolDisk {
    pub(super) thread: DiskThread,
    pub(super) health: DiskHealth,
    /// Wakes the keeper: there is a checkpoint to write, a segment to finish, or room to make.
    pub(super) keeper: Signal,
    /// Wakes the task that prepares segments.
    pub(super) preparer: Signal,
    /// Ends the task that watches the disk.
    pub(super) watcher: Signal,
}

impl SpoolDisk {
    pub(super) fn new(thread: DiskThread, health: DiskHealth) -> SpoolDisk {
        let (keeper, preparer, watcher) = (Signal::default(), Signal::default(), Signal::default());
        SpoolDisk { thread, health, keeper, preparer, watcher }
    }

    /// [`DiskThread::run`], watched by [`DiskHealth`].
    pub(super) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let _op = self.health.begin();
        self.thread.run(call).await
    }
}

/// The system's error, with the errno that glommio's own conversion drops.
pub(super) fn os_error(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::EnhancedIoError { source, .. } => source,
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_call_that_hangs_holds_up_nothing_but_its_own_thread() {
        rt::run_test(async {
            let thread = DiskThread::spawn("test").unwrap();
            let (release, hold) = sync_channel::<()>(0);
            let hung = thread.clone();
            let hung =
                rt::spawn(
                    async move { hung.run(move || hold.recv().map_err(io::Error::other)).await },
                );
            futures_lite::future::yield_now().await;
            // The executor's own blocking thread keeps working.
            assert_eq!(rt::blocking(|| 7).await, 7);
            let mut waiting = Vec::new();
            let full = loop {
                let thread = thread.clone();
                let mut call = Box::pin(async move { thread.run(|| Ok(())).await });
                match futures_lite::future::poll_once(&mut call).await {
                    None => waiting.push(call),
                    Some(outcome) => break outcome.unwrap_err(),
                }
            };
            assert_eq!(full.kind(), io::ErrorKind::TimedOut);
            // The call that hangs may still be counted in the queue.
            assert!(waiting.len() >= CALLS_MAX - 1, "{}", waiting.len());
            release.send(()).unwrap();
            hung.await.unwrap();
            for call in waiting {
                call.await.unwrap();
            }
            assert_eq!(thread.run(|| Ok(3)).await.unwrap(), 3);
        });
    }

    #[test]
    fn a_panic_in_a_call_is_an_error_and_the_thread_goes_on() {
        rt::run_test(async {
            let thread = DiskThread::spawn("test").unwrap();
            let outcome = thread.run(|| -> io::Result<()> { panic!("on purpose") }).await;
            assert!(outcome.unwrap_err().to_string().contains("panicked"));
            assert_eq!(thread.run(|| Ok(3)).await.unwrap(), 3);
            rt::sleep(Duration::from_millis(1)).await;
        });
    }

    #[test]
    fn glommios_errors_keep_their_errno() {
        rt::run_test(async {
            let absent = glommio::io::DmaFile::open("/nowhere/at/all").await.err().unwrap();
            assert_eq!(os_error(absent).raw_os_error(), Some(libc::ENOENT));
        });
    }
}
