//! The only interface to the runtime: tasks, timers, clocks, random numbers, blocking work and
//! executors.
//!
//! No other module names glommio's executor, timers, tasks or thread pool, the system's clocks, or
//! the source of random numbers; a test reads the sources and reports where one does. So the
//! behaviour of a core depends only on its inputs and on this module, and a replacement of this
//! module could run a core in simulated time.
//!
//! Other modules may use glommio's files and streams (`glommio::io`, `glommio::net`) and create
//! threads.

mod alarms;
pub mod slices;
mod turns;
mod waking;

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, PoolPlacement};

use turns::Measured;
use waking::WakeThread;

pub use alarms::WakeUp;
pub use fastrand::Rng;
pub use futures_lite::future::yield_now;
pub use glommio::Task;
pub use glommio::timer::Timer;
pub use turns::{
    LONG_TURN, LongTurn, TaskKind, TurnObserver, call_driver, end_turn, look_brought_work,
    look_is_due, looked, looked_between, next_turn, observe_turns, sleep_until_called, turn_now,
};

/// Registered I/O memory of one executor, for glommio's `io_memory`. glommio pins it once for each
/// of its three rings, so two cores and the control executor pin 3 × 3 × 512 KiB = 4.5 MiB, under
/// the usual `RLIMIT_MEMLOCK` of 8 MiB. glommio's default of 10 MiB would need 90.
pub const IO_MEMORY_BYTES: usize = 512 << 10;

/// I/O memory of [`Executor::small`].
const IO_MEMORY_BYTES_SMALL: usize = 64 << 10;

/// glommio's rings per executor (main, latency, poll), each of which pins the I/O memory again.
pub const RINGS_PER_EXECUTOR: usize = 3;

/// Starts a task on this executor, and polls it for the first time before this returns: `work` must
/// not need what the caller has borrowed. Dropping the [`Task`] cancels it; [`Task::detach`] lets it
/// run on.
#[inline]
pub fn spawn<T: 'static>(work: impl Future<Output = T> + 'static) -> Task<T> {
    spawn_as(TaskKind::Other, work)
}

/// [`spawn`] for a task of a data core: a long turn of the core is attributed to its `kind`.
#[inline]
pub fn spawn_as<T: 'static>(kind: TaskKind, work: impl Future<Output = T> + 'static) -> Task<T> {
    glommio::spawn_local(Measured::new(kind, work))
}

/// Waits until `time` has passed.
#[inline]
pub async fn sleep(time: Duration) {
    Timer::new(time).await;
}

/// The monotonic clock.
#[inline]
pub fn now() -> Instant {
    Instant::now()
}

/// The time since `earlier`; zero if `earlier` is in the future.
#[inline]
pub fn since(earlier: Instant) -> Duration {
    now().saturating_duration_since(earlier)
}

/// The system time, which may be set back.
#[inline]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// The system time in nanoseconds since 1970; a clock set before 1970 counts as 1970.
#[inline]
pub fn unix_nanos() -> u64 {
    let since_epoch = wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
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

/// Seeds this thread's generator, so that its numbers repeat.
#[inline]
#[cfg(test)]
pub fn seed(seed: u64) {
    fastrand::seed(seed);
}

/// Lets other tasks run if it is time to look at the sockets again ([`look_is_due`]).
#[inline]
pub async fn yield_if_due() {
    if look_is_due() {
        yield_now().await;
    }
}

/// Lets other tasks run if it is time to look at the sockets again, the kernel has completions for
/// this executor, or this task's time slice has ended.
#[inline]
pub async fn yield_if_needed() {
    if look_is_due() {
        yield_now().await;
    } else {
        glommio::executor().yield_if_needed().await;
    }
}

/// The id of the executor that runs the calling task, unique in the process.
#[inline]
pub fn executor_id() -> usize {
    glommio::executor().id()
}

/// Runs the tasks that are ready, and returns whether there were none. So a task that is always
/// ready runs once, not twice, before the caller looks for something else.
pub async fn is_idle() -> bool {
    // A second time, because timers may have woken tasks behind this one in the first.
    for _ in 0..2 {
        let before = turns::polls();
        glommio::executor().yield_task_queue_now().await;
        // One poll is this one.
        if turns::polls().wrapping_sub(before) > 1 {
            return false;
        }
    }
    true
}

/// Lets those tasks run that are ready, and if the last look at the sockets has woken tasks, these as
/// well, which are behind the calling one. For work that can wait: between two of its steps there is
/// a look, and what that brings goes first, but only once.
pub async fn yield_to_requests() {
    yield_now().await;
    if look_brought_work() {
        yield_now().await;
    }
}

/// Runs `work` on the executor's blocking thread, after earlier work, and returns its result.
/// Dropping the future does not stop the work.
#[inline]
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let _wait = foreign_wait();
    glommio::executor().spawn_blocking(work).await
}

thread_local! {
    /// [`ForeignWait`]s of this thread's executor.
    static FOREIGN_WAITS: Cell<usize> = const { Cell::new(0) };
}

/// A wait for a result that does not arrive through the socket ring of this executor; see
/// [`foreign_wait`].
pub struct ForeignWait {
    /// Counted on the thread that created it.
    _not_send: PhantomData<*const ()>,
}

impl Drop for ForeignWait {
    fn drop(&mut self) {
        FOREIGN_WAITS.set(FOREIGN_WAITS.get() - 1);
    }
}

/// To be held while the caller waits for glommio's files or for another thread. Otherwise an
/// executor with sockets may nap in their ring for as long as `Net::set_nap` says, where it does
/// not notice the end of such a wait.
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

/// The CPUs of an executor's own thread and of its blocking thread.
pub struct Placement {
    executor: glommio::Placement,
    blocking: PoolPlacement,
}

impl Placement {
    /// Any CPU that the calling thread may use.
    pub fn unpinned() -> Placement {
        Placement { executor: glommio::Placement::Unbound, blocking: PoolPlacement::Unbound(1) }
    }

    /// The executor on `cpu`, the blocking thread on `spare_cpus`, or anywhere if there are none.
    /// `None` if `/sys` does not have the topology of `cpu`, because glommio then refuses or
    /// panics.
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

/// An executor for the calling thread that has not started.
pub struct Executor {
    executor: LocalExecutor,
    wake_thread: WakeThread,
}

impl Executor {
    /// An executor that runs anywhere, with glommio's time slice of 100 ms.
    ///
    /// # Errors
    /// io_uring is refused, or locked memory is short.
    pub fn unpinned(name: &str) -> Result<Executor, GlommioError<()>> {
        let builder = LocalExecutorBuilder::new(glommio::Placement::Unbound).name(name);
        Executor::made(builder, IO_MEMORY_BYTES)
    }

    /// An executor that runs anywhere and locks little memory: tests run side by side and share
    /// what the process may lock.
    ///
    /// # Errors
    /// As for [`Executor::unpinned`].
    pub fn small() -> Result<Executor, GlommioError<()>> {
        let builder = LocalExecutorBuilder::new(glommio::Placement::Unbound);
        Executor::made(builder, IO_MEMORY_BYTES_SMALL)
    }

    /// An executor that runs at `placement`. A task that calls [`yield_if_needed`] runs for `slice`
    /// at most.
    ///
    /// # Errors
    /// As for [`Executor::unpinned`]; or the threads cannot be pinned.
    pub fn placed(
        name: &str,
        placement: Placement,
        slice: Duration,
    ) -> Result<Executor, GlommioError<()>> {
        let builder = LocalExecutorBuilder::new(placement.executor)
            .name(name)
            .preempt_timer(slice)
            .blocking_thread_pool_placement(placement.blocking);
        Executor::made(builder, IO_MEMORY_BYTES)
    }

    fn made(builder: LocalExecutorBuilder, memory: usize) -> Result<Executor, GlommioError<()>> {
        let executor = builder.io_memory(memory).make()?;
        Ok(Executor { executor, wake_thread: waking::start_wake_thread() })
    }

    /// Runs `main` to its end. Tasks that it has spawned and not awaited then stop.
    pub fn run<T>(self, main: impl Future<Output = T>) -> T {
        let Executor { executor, wake_thread } = self;
        let awake = wake_thread.stay_awake();
        // glommio moves it several times, which a thread's stack has to have room for.
        let main = Measured::new(TaskKind::Core, Box::pin(main));
        turns::reset();
        alarms::reset();
        executor.run(async move {
            // Before anything else, because any wait may need it.
            spawn(awake).detach();
            let outcome = main.await;
            turns::reset();
            alarms::reset();
            outcome
        })
    }
}

/// Runs a test on its own executor.
#[cfg(test)]
pub fn run_test<T>(test: impl Future<Output = T>) -> T {
    Executor::small().expect("io_uring is allowed here").run(test)
}

#[cfg(test)]
mod tests;
