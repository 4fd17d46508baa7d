//! The one door to the runtime: tasks, timers, clocks, random numbers, blocking work and executors.
//!
//! No other module names glommio's executor, timers, tasks or thread pool, the system's clocks, or the source of random
//! numbers; a test below reads the sources and says where one does. So what a core does depends on nothing but its inputs
//! and this module, and whoever replaces this module decides what time it is.
//!
//! Not behind this door: glommio's files and streams (`glommio::io`, `glommio::net`), and threads of our own.

mod waking;

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::{Duration, Instant, SystemTime};

use glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, PoolPlacement};

use waking::WakeThread;

pub use fastrand::Rng;
pub use futures_lite::future::yield_now;
pub use glommio::Task;
pub use glommio::timer::Timer;

/// Registered I/O memory of one executor, for glommio's `io_memory`. glommio pins it once for each of its three
/// rings, so two cores and the control executor pin 3 × 3 × 512 KiB = 4.5 MiB, under the 8 MiB that is the usual
/// `RLIMIT_MEMLOCK`; glommio's own default of 10 MiB would want 90.
pub const IO_MEMORY_BYTES: usize = 512 << 10;

/// glommio's rings per executor (main, latency, poll), each of which pins the I/O memory again.
pub const RINGS_PER_EXECUTOR: usize = 3;

/// Starts a task on this executor. Dropping the [`Task`] cancels it, [`Task::detach`] lets it run on alone. It is polled for the
/// first time inside this call, unless the executor is due to look at its rings.
#[inline]
pub fn spawn<T: 'static>(work: impl Future<Output = T> + 'static) -> Task<T> {
    glommio::spawn_local(work)
}

/// Ready once `time` has passed.
#[inline]
pub async fn sleep(time: Duration) {
    Timer::new(time).await;
}

/// The monotonic clock.
#[inline]
pub fn now() -> Instant {
    Instant::now()
}

/// How long ago `earlier` was; zero if it is still to come.
#[inline]
pub fn since(earlier: Instant) -> Duration {
    now().saturating_duration_since(earlier)
}

/// The time of day, which the system may set back.
#[inline]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// A random number from this thread's generator.
#[inline]
pub fn random() -> u64 {
    fastrand::u64(..)
}

/// A random number in `0.0..1.0` from this thread's generator.
#[inline]
pub fn random_fraction() -> f64 {
    fastrand::f64()
}

/// Makes this thread's random numbers repeat.
#[inline]
pub fn seed(seed: u64) {
    fastrand::seed(seed);
}

/// Lets other tasks run if the kernel has news for this executor or this task's time slice has ended.
#[inline]
pub async fn yield_if_needed() {
    glommio::executor().yield_if_needed().await;
}

/// The number of the executor that runs the calling task; no two of a process have the same.
#[inline]
pub fn executor_id() -> usize {
    glommio::executor().id()
}

/// Whether no other task of this executor wants to run. All that are ready run meanwhile.
pub async fn is_idle() -> bool {
    let executor = glommio::executor();
    executor.yield_task_queue_now().await;
    // Reading the statistics resets them, so they count from one yield to the next.
    let _before = executor.executor_stats();
    executor.yield_task_queue_now().await;
    // The one task is this one.
    executor.executor_stats().tasks_executed() <= 1
}

/// What `work` gives, which runs on the executor's blocking thread, after what that has in line. Dropped early, the work is
/// done all the same.
#[inline]
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let _wait = foreign_wait();
    glommio::executor().spawn_blocking(work).await
}

thread_local! {
    /// [`ForeignWait`]s of this thread's executor.
    static FOREIGN_WAITS: Cell<usize> = const { Cell::new(0) };
}

/// A wait for a result that does not arrive in the ring of this executor's sockets; see [`foreign_wait`].
pub struct ForeignWait {
    /// Counted on the thread that made it.
    _not_send: PhantomData<*const ()>,
}

impl Drop for ForeignWait {
    fn drop(&mut self) {
        FOREIGN_WAITS.set(FOREIGN_WAITS.get() - 1);
    }
}

/// To be held while the caller waits for glommio's files or for another thread. An executor with sockets may otherwise sleep
/// in their ring for as long as `Net::set_nap` says, where it does not see that such a wait has ended.
#[inline]
pub fn foreign_wait() -> ForeignWait {
    FOREIGN_WAITS.set(FOREIGN_WAITS.get() + 1);
    ForeignWait { _not_send: PhantomData }
}

/// Whether any task of this executor holds a [`ForeignWait`].
#[inline]
pub fn has_foreign_waits() -> bool {
    FOREIGN_WAITS.get() > 0
}

/// The CPUs of an executor's two threads: its own and its blocking one.
pub struct Placement {
    executor: glommio::Placement,
    blocking: PoolPlacement,
}

impl Placement {
    /// Wherever the calling thread may run.
    pub fn unpinned() -> Placement {
        Placement { executor: glommio::Placement::Unbound, blocking: PoolPlacement::Unbound(1) }
    }

    /// The executor on `cpu`; the blocking thread on `spare_cpus`, or anywhere if there are none. `None` where `/sys` does
    /// not tell the topology of `cpu`: glommio refuses or panics there.
    pub fn pinned(cpu: usize, spare_cpus: &[usize]) -> Option<Placement> {
        let online = glommio::CpuSet::online().ok()?;
        online.iter().find(|known| known.cpu == cpu)?;
        let spare = online.filter(|known| spare_cpus.contains(&known.cpu));
        let blocking = if spare.is_empty() {
            PoolPlacement::Unbound(1)
        } else {
            PoolPlacement::Fenced(1, spare)
        };
        Some(Placement { executor: glommio::Placement::Fixed(cpu), blocking })
    }
}

/// An executor on the calling thread that has not begun.
pub struct Executor {
    executor: LocalExecutor,
    wake_thread: WakeThread,
}

impl Executor {
    /// One that runs anywhere, with glommio's time slice of 100 ms.
    ///
    /// # Errors
    /// io_uring is refused, or locked memory is short.
    pub fn unpinned(name: &str) -> Result<Executor, GlommioError<()>> {
        Executor::made(LocalExecutorBuilder::new(glommio::Placement::Unbound).name(name))
    }

    /// One that runs at `placement`; a task that asks with [`yield_if_needed`] goes on for `slice` at most.
    ///
    /// # Errors
    /// As [`Executor::unpinned`]'s; or the threads cannot be pinned.
    pub fn placed(
        name: &str,
        placement: Placement,
        slice: Duration,
    ) -> Result<Executor, GlommioError<()>> {
        let builder = LocalExecutorBuilder::new(placement.executor)
            .name(name)
            .preempt_timer(slice)
            .blocking_thread_pool_placement(placement.blocking);
        Executor::made(builder)
    }

    fn made(builder: LocalExecutorBuilder) -> Result<Executor, GlommioError<()>> {
        let executor = builder.io_memory(IO_MEMORY_BYTES).make()?;
        Ok(Executor { executor, wake_thread: waking::start_wake_thread() })
    }

    /// Runs `main` to its end; what it has started and not waited for goes no further.
    pub fn run<T>(self, main: impl Future<Output = T>) -> T {
        let Executor { executor, wake_thread } = self;
        executor.run(async move {
            // First of all: any wait may need it.
            spawn(wake_thread.stay_awake()).detach();
            main.await
        })
    }
}

/// Runs a test on an executor of its own.
#[cfg(test)]
pub fn run_test<T>(test: impl Future<Output = T>) -> T {
    let executor = LocalExecutorBuilder::default().io_memory(IO_MEMORY_BYTES).make();
    executor.expect("io_uring is allowed here").run(test)
}

#[cfg(test)]
mod tests;
