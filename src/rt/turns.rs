//! Turns of an executor with sockets, and which tasks their time goes to.
//!
//! A turn is the time between two looks at the sockets: what arrives meanwhile waits for its end.
//! The driver of the sockets reports its looks here ([`next_turn`], [`end_turn`]), which takes one
//! clock read each. That time is also [`turn_now`], a clock that costs nothing.
//!
//! Every task has a [`TaskKind`]. Beginning and end of each of its polls read the CPU's counter of
//! ticks, so that a long turn can be attributed. While the driver sleeps there are no turns. A poll
//! that takes some microseconds wakes it ([`wake_driver_when_busy`]); one that is long counts as a
//! turn.
#![expect(unsafe_code, reason = "the counter of ticks, the CPU clock and a pinned field")]

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Turns of this length or more are attributed to a task.
pub const LONG_TURN: Duration = Duration::from_millis(1);

/// How old the reading of the CPU clock may be that a long turn is compared with: what the thread
/// did not run in that time before the turn is attributed to the turn as well.
const CPU_READING_AGE_MAX: Duration = Duration::from_millis(1);

/// How long a turn may last before tasks that can stop in between let the sockets have a look.
/// Short against what a client notices, long against the 2 µs that a look costs.
const LOOK_AFTER: Duration = Duration::from_micros(250);

/// A poll that takes more ticks while the driver sleeps wakes it: 10 µs at the usual 1 to 4 ticks a
/// nanosecond; at the 25 to 1,000 MHz of other architectures no longer than [`LONG_TURN`].
const SHORT_POLL_TICKS: u64 = 25_000;

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskKind {
    /// The runtime's own work between two tasks: timers, and the files and rings of glommio.
    Runtime,
    /// The driver of the sockets: submissions, completions, and what the kernel does in its calls.
    Sockets,
    Accept,
    /// Connections: requests from the head to the answer, and parsing.
    Connection,
    /// Upload workers.
    Worker,
    /// What wakes workers for retries.
    Retries,
    /// Gathers payloads into batches and compresses them.
    Batches,
    /// Re-uploads batches in doubt.
    Restore,
    SpoolWriter,
    SpoolReader,
    /// Checkpoints, and the spool's finished segments.
    SpoolKeeper,
    /// Prepares segments and watches the spool's disk.
    SpoolFiles,
    /// Connections and files of the store beside the workers.
    Store,
    /// What is done once a second: gauges, quotas, idle memory, busiest peers.
    Sampler,
    /// Start and stop of a core.
    Core,
    Other,
}

impl TaskKind {
    pub const COUNT: usize = TaskKind::Other as usize + 1;

    pub const ALL: [TaskKind; TaskKind::COUNT] = [
        TaskKind::Runtime,
        TaskKind::Sockets,
        TaskKind::Accept,
        TaskKind::Connection,
        TaskKind::Worker,
        TaskKind::Retries,
        TaskKind::Batches,
        TaskKind::Restore,
        TaskKind::SpoolWriter,
        TaskKind::SpoolReader,
        TaskKind::SpoolKeeper,
        TaskKind::SpoolFiles,
        TaskKind::Store,
        TaskKind::Sampler,
        TaskKind::Core,
        TaskKind::Other,
    ];

    /// The value of the metric's label.
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::Runtime => "runtime",
            TaskKind::Sockets => "sockets",
            TaskKind::Accept => "accept",
            TaskKind::Connection => "connection",
            TaskKind::Worker => "worker",
            TaskKind::Retries => "retries",
            TaskKind::Batches => "batches",
            TaskKind::Restore => "restore",
            TaskKind::SpoolWriter => "spool_writer",
            TaskKind::SpoolReader => "spool_reader",
            TaskKind::SpoolKeeper => "spool_keeper",
            TaskKind::SpoolFiles => "spool_files",
            TaskKind::Store => "store",
            TaskKind::Sampler => "sampler",
            TaskKind::Core => "core",
            TaskKind::Other => "other",
        }
    }
}

/// A turn of [`LONG_TURN`] or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongTurn {
    pub length: Duration,
    /// For how long the thread ran. The rest of the time another thread or virtual machine had the
    /// CPU, or the thread waited in the kernel.
    pub ran: Duration,
    /// The kind of task in whose polls most of the time passed, …
    pub task: TaskKind,
    /// … that time, …
    pub task_time: Duration,
    /// … and the number of these polls.
    pub polls: u32,
}

impl LongTurn {
    /// Whether the thread did not run for most of the time.
    pub fn was_descheduled(&self) -> bool {
        self.ran < self.length / 2
    }
}

/// Is told about every turn of a thread.
pub trait TurnObserver {
    fn turn(&self, length: Duration);
    /// Called after [`TurnObserver::turn`] if the turn was long.
    fn long_turn(&self, turn: &LongTurn);
}

/// The current turn of this thread's executor.
struct CurrentTurn {
    observer: Cell<Option<&'static dyn TurnObserver>>,
    /// When it began; while the driver sleeps, when the last one ended. `None` without a driver.
    since: Cell<Option<Instant>>,
    /// The tick of that time.
    since_tick: Cell<u64>,
    /// Whether the driver sleeps or does not exist.
    asleep: Cell<bool>,
    /// Whether a poll has begun since then.
    polled: Cell<bool>,
    /// Whose time passes now.
    running: Cell<TaskKind>,
    /// The tick up to which time is attributed.
    attributed: Cell<u64>,
    /// By [`TaskKind`].
    spent: [Spent; TaskKind::COUNT],
    cpu: Cell<Option<CpuReading>>,
    /// [`LOOK_AFTER`] in ticks, measured; at first a guess that is too low.
    look_after: Cell<u64>,
}

/// What one kind of task has spent in this turn.
struct Spent {
    ticks: Cell<u64>,
    polls: Cell<u32>,
}

/// The CPU clock of the thread.
#[derive(Clone, Copy)]
struct CpuReading {
    at: Instant,
    tick: u64,
    cpu: Duration,
    /// For how long the driver has slept since.
    slept: Duration,
}

thread_local! {
    static TURN: CurrentTurn = const {
        CurrentTurn {
            observer: Cell::new(None),
            since: Cell::new(None),
            since_tick: Cell::new(0),
            asleep: Cell::new(true),
            polled: Cell::new(false),
            running: Cell::new(TaskKind::Runtime),
            attributed: Cell::new(0),
            spent: [const { Spent { ticks: Cell::new(0), polls: Cell::new(0) } }; TaskKind::COUNT],
            cpu: Cell::new(None),
            look_after: Cell::new(SHORT_POLL_TICKS),
        }
    };
}

thread_local! {
    /// See [`wake_driver_when_busy`].
    static SLEEPING_DRIVER: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// To be called by the driver when it goes to sleep: `waker` is woken once a task takes long, because
/// more work is likely to follow. The runtime looks at what would otherwise wake the driver only
/// every time slice while tasks are ready, which is 2 ms.
pub fn wake_driver_when_busy(waker: &Waker) {
    SLEEPING_DRIVER.with_borrow_mut(|sleeping| match sleeping {
        Some(sleeping) => sleeping.clone_from(waker),
        None => *sleeping = Some(waker.clone()),
    });
}

/// Whether what was given to [`wake_driver_when_busy`] was woken since.
pub fn was_busy() -> bool {
    SLEEPING_DRIVER.with_borrow(Option::is_none)
}

/// The time at which this turn began to run tasks: what [`rt::now`](super::now) was then. Without
/// sockets, and while their driver sleeps, the time itself. So it is late by less than the length
/// of a turn, and costs no clock read.
#[inline]
pub fn turn_now() -> Instant {
    TURN.with(|turn| match turn.since.get() {
        Some(since) if !turn.asleep.get() => since,
        _ => super::now(),
    })
}

/// Whether this turn has lasted for [`LOOK_AFTER`], so that it is time for another look at the
/// sockets. True while there are no turns.
#[inline]
pub fn look_is_due() -> bool {
    TURN.with(|turn| turn.asleep.get() || turn.is_old(ticks()))
}

/// To be called by the driver after each look at the sockets and after each sleep: ends the turn
/// and begins the next one. Does nothing if no task has run since the last call.
#[inline]
pub fn next_turn() {
    TURN.with(|turn| {
        if !turn.asleep.get() && !turn.polled.get() {
            return;
        }
        let now = super::now();
        if turn.asleep.get() {
            turn.woke(now);
        } else {
            turn.ended(now);
        }
        turn.began(now);
    });
}

/// To be called by the driver before it sleeps: ends the turn. The next one begins with
/// [`next_turn`].
#[inline]
pub fn end_turn() {
    TURN.with(|turn| {
        if turn.polled.get() && !turn.asleep.get() {
            let now = super::now();
            turn.ended(now);
            turn.since.set(Some(now));
            turn.since_tick.set(ticks());
        }
        turn.asleep.set(true);
    });
}

/// Reports the turns of this thread to `observer` from now on.
pub fn observe_turns(observer: &'static dyn TurnObserver) {
    TURN.with(|turn| turn.observer.set(Some(observer)));
}

/// To be called when an executor starts: nothing is known of turns before its driver runs.
pub(super) fn reset() {
    SLEEPING_DRIVER.take();
    TURN.with(|turn| {
        turn.observer.set(None);
        turn.since.set(None);
        turn.asleep.set(true);
        turn.running.set(TaskKind::Runtime);
        turn.cpu.set(None);
        turn.clear();
    });
}

impl CurrentTurn {
    #[inline]
    fn ended(&self, now: Instant) {
        let (Some(observer), Some(since)) = (self.observer.get(), self.since.get()) else { return };
        let length = now.saturating_duration_since(since);
        observer.turn(length);
        if length >= LONG_TURN {
            self.long_ended(observer, now, length);
        }
    }

    #[cold]
    fn long_ended(&self, observer: &dyn TurnObserver, now: Instant, length: Duration) {
        // The current poll's part of the turn.
        let running = self.running.get();
        self.switch(running);
        let (task, spent) = self.most();
        let all: u64 = self.spent.iter().map(|spent| spent.ticks.get()).sum();
        let share = spent.ticks.get() as f64 / all.max(1) as f64;
        observer.long_turn(&LongTurn {
            length,
            ran: length - self.off_cpu(now).min(length),
            task,
            task_time: length.mul_f64(share.min(1.0)),
            polls: spent.polls.get(),
        });
    }

    fn most(&self) -> (TaskKind, &Spent) {
        let kinds = TaskKind::ALL.into_iter().zip(&self.spent);
        kinds.max_by_key(|(_, spent)| spent.ticks.get()).expect("there are kinds")
    }

    /// For how long the thread has not run since the last reading, sleeps of the driver aside.
    fn off_cpu(&self, now: Instant) -> Duration {
        let Some(before) = self.cpu.get() else { return Duration::ZERO };
        let awake = now.saturating_duration_since(before.at).saturating_sub(before.slept);
        awake.saturating_sub(thread_cpu_time().saturating_sub(before.cpu))
    }

    #[inline]
    fn woke(&self, now: Instant) {
        if let (Some(slept_from), Some(mut cpu)) = (self.since.get(), self.cpu.get()) {
            cpu.slept += now.saturating_duration_since(slept_from);
            self.cpu.set(Some(cpu));
        }
        self.asleep.set(false);
    }

    #[inline]
    fn began(&self, now: Instant) {
        self.since.set(Some(now));
        self.clear();
        let is_recent = |cpu: CpuReading| now.duration_since(cpu.at) < CPU_READING_AGE_MAX;
        if !self.cpu.get().is_some_and(is_recent) {
            self.read_cpu_clock(now);
        }
    }

    /// Also measures the rate of the ticks.
    fn read_cpu_clock(&self, now: Instant) {
        let (tick, cpu) = (self.since_tick.get(), thread_cpu_time());
        if let Some(before) =
            self.cpu.replace(Some(CpuReading { at: now, tick, cpu, slept: Duration::ZERO }))
        {
            let passed = now.duration_since(before.at).as_secs_f64();
            let ticks = tick.wrapping_sub(before.tick) as f64;
            self.look_after.set((ticks * (LOOK_AFTER.as_secs_f64() / passed)) as u64);
        }
    }

    /// Whether it had lasted for [`LOOK_AFTER`] at this tick.
    #[inline]
    fn is_old(&self, tick: u64) -> bool {
        tick.wrapping_sub(self.since_tick.get()) > self.look_after.get()
    }

    #[inline]
    fn clear(&self) {
        self.polled.set(false);
        for Spent { ticks, polls } in &self.spent {
            ticks.set(0);
            polls.set(0);
        }
        let now = ticks();
        self.attributed.set(now);
        self.since_tick.set(now);
    }

    /// Attributes the time up to now, and what follows to `to`. Returns whose time it was.
    #[inline]
    fn switch(&self, to: TaskKind) -> TaskKind {
        let now = ticks();
        let from = self.running.replace(to);
        let passed = now.wrapping_sub(self.attributed.replace(now));
        let spent = &self.spent[from as usize].ticks;
        spent.set(spent.get().wrapping_add(passed));
        from
    }

    /// A poll of `ticks` has ended while the driver slept.
    #[cold]
    fn lone_poll_ended(&self, task: TaskKind, ticks: u64) {
        // Not for the driver's own poll, however long: it would wake itself for ever.
        if task != TaskKind::Sockets
            && let Some(driver) = SLEEPING_DRIVER.take()
        {
            driver.wake();
        }
        let (Some(observer), Some(since)) = (self.observer.get(), self.since.get()) else { return };
        // The rate of the ticks since the driver went to sleep, which was before this poll.
        let passed = super::since(since).as_secs_f64();
        let ticks_passed = self.attributed.get().wrapping_sub(self.since_tick.get());
        let length =
            Duration::from_secs_f64(passed * (ticks as f64 / ticks_passed.max(ticks) as f64));
        if length >= LONG_TURN {
            observer.turn(length);
            // At most what the thread has run since its clock was read.
            let before = self.cpu.get().map_or(Duration::ZERO, |reading| reading.cpu);
            let ran = length.min(thread_cpu_time().saturating_sub(before));
            let turn = LongTurn { length, ran, task, task_time: length, polls: 1 };
            observer.long_turn(&turn);
        }
    }
}

/// A task's future with its kind.
pub(super) struct Measured<F> {
    kind: TaskKind,
    work: F,
}

impl<F> Measured<F> {
    #[inline]
    pub(super) fn new(kind: TaskKind, work: F) -> Measured<F> {
        Measured { kind, work }
    }
}

impl<F: Future> Future for Measured<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let kind = self.kind;
        // SAFETY: `work` is pinned with its owner: nothing moves it out, `Measured` has no
        // destructor, and it is only `Unpin` if `F` is.
        let work = unsafe { self.map_unchecked_mut(|this| &mut this.work) };
        TURN.with(|turn| {
            let (asleep, before) = (turn.asleep.get(), turn.switch(kind));
            let began = turn.attributed.get();
            let polls = &turn.spent[kind as usize].polls;
            polls.set(polls.get() + 1);
            turn.polled.set(true);
            let polled = work.poll(cx);
            turn.switch(before);
            // Not the driver's own poll in which it falls asleep or wakes.
            if asleep && turn.asleep.get() {
                // Of a nested poll, which `spawn` makes, the outer one includes the time.
                let ticks = turn.attributed.get().wrapping_sub(began);
                if ticks > SHORT_POLL_TICKS {
                    turn.lone_poll_ended(kind, ticks);
                }
            }
            polled
        })
    }
}

/// A counter that runs at a constant rate and takes no call.
#[inline]
#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and it has no other effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[inline]
#[cfg(target_arch = "aarch64")]
fn ticks() -> u64 {
    let ticks;
    // SAFETY: Linux lets every process read this register; reading has no other effect.
    unsafe {
        core::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack));
    }
    ticks
}

#[inline]
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn ticks() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which `time` is.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// For how long this thread has run since it began. One system call.
fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which `time` is.
    let outcome = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    debug_assert_eq!(outcome, 0, "every thread has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::rc::Rc;

    use futures_lite::FutureExt;

    use super::*;
    use crate::rt;

    /// Keeps what it is told.
    #[derive(Default)]
    struct Seen {
        turns: RefCell<Vec<Duration>>,
        long: RefCell<Vec<LongTurn>>,
    }

    impl TurnObserver for Seen {
        fn turn(&self, length: Duration) {
            self.turns.borrow_mut().push(length);
        }
        fn long_turn(&self, turn: &LongTurn) {
            self.long.borrow_mut().push(*turn);
        }
    }

    fn observed() -> &'static Seen {
        let seen: &'static Seen = Box::leak(Box::default());
        observe_turns(seen);
        seen
    }

    const LONG: Duration = Duration::from_millis(20);

    /// Keeps the CPU busy for `time` of this thread's own CPU time.
    fn work(time: Duration) {
        let until = thread_cpu_time() + time;
        while thread_cpu_time() < until {}
    }

    fn sleep_thread(time: Duration) {
        std::thread::sleep(time);
    }

    /// As the driver does, in a task of its own: looks, lets the others run, looks again.
    async fn one_turn() {
        rt::spawn_as(TaskKind::Sockets, async {
            next_turn();
            rt::yield_now().await;
            next_turn();
            end_turn();
        })
        .await;
    }

    fn largest(seen: &Seen) -> LongTurn {
        *seen.long.borrow().iter().max_by_key(|turn| turn.length).expect("a long turn")
    }

    #[test]
    fn a_long_turn_is_attributed_to_the_task_that_ran_longest() {
        rt::run_test(async {
            let seen = observed();
            let (short, long) = (Duration::from_millis(1), LONG);
            for (kind, time) in [(TaskKind::Worker, short), (TaskKind::Batches, long)] {
                let busy = async move {
                    rt::yield_now().await;
                    work(time);
                };
                rt::spawn_as(kind, busy).detach();
            }
            one_turn().await;
            let turn = largest(seen);
            assert_eq!(turn.task, TaskKind::Batches, "{turn:?}");
            assert!(turn.length >= LONG + short && turn.task_time >= LONG / 2, "{turn:?}");
            assert!(turn.ran >= LONG / 2 && turn.ran <= turn.length, "{turn:?}");
            assert!(seen.turns.borrow().contains(&turn.length));
        });
    }

    #[test]
    fn many_short_polls_make_a_long_turn_together() {
        rt::run_test(async {
            let seen = observed();
            for _ in 0..40 {
                let busy = async {
                    rt::yield_now().await;
                    work(LONG / 40);
                };
                rt::spawn_as(TaskKind::Connection, busy).detach();
            }
            one_turn().await;
            let turn = largest(seen);
            assert_eq!((turn.task, turn.polls), (TaskKind::Connection, 40), "{turn:?}");
        });
    }

    #[test]
    fn a_task_that_another_one_starts_has_its_own_time() {
        rt::run_test(async {
            let seen = observed();
            let outer = async {
                rt::yield_now().await;
                work(Duration::from_millis(1));
                // Polled within this call.
                rt::spawn_as(TaskKind::Store, async { work(LONG) }).detach();
            };
            rt::spawn_as(TaskKind::Worker, outer).detach();
            one_turn().await;
            assert_eq!(largest(seen).task, TaskKind::Store);
        });
    }

    #[test]
    fn a_turn_in_which_the_thread_did_not_run_is_told_apart() {
        rt::run_test(async {
            let seen = observed();
            let waits = async {
                rt::yield_now().await;
                sleep_thread(2 * LONG);
            };
            rt::spawn_as(TaskKind::Worker, waits).detach();
            one_turn().await;
            let turn = largest(seen);
            assert!(turn.was_descheduled() && turn.length >= 2 * LONG, "{turn:?}");
            assert!(turn.ran < LONG, "{turn:?}");
        });
    }

    #[test]
    fn a_sleep_of_the_driver_is_not_a_turn_but_a_long_poll_meanwhile_is() {
        rt::run_test(async {
            let seen = observed();
            rt::spawn_as(TaskKind::Sockets, async {
                next_turn();
                rt::yield_now().await;
                end_turn();
                rt::sleep(10 * LONG).await;
                next_turn();
                end_turn();
            })
            .await;
            assert!(!seen.turns.borrow().is_empty());
            assert!(seen.turns.borrow().iter().all(|turn| *turn < 10 * LONG));
            seen.long.borrow_mut().clear();
            rt::spawn_as(TaskKind::Sampler, async { work(LONG) }).await;
            let turn = largest(seen);
            assert_eq!((turn.task, turn.polls), (TaskKind::Sampler, 1));
            assert!(turn.length >= LONG / 2, "{turn:?}");
        });
    }

    /// Work that always fills its turn must not keep others from theirs.
    #[test]
    fn every_ready_task_runs_between_two_looks_beside_long_work() {
        rt::run_test(async {
            let done = Rc::new(Cell::new(false));
            let looks = Rc::new(Cell::new(0));
            let driver = rt::spawn_as(TaskKind::Sockets, {
                let (looks, done) = (looks.clone(), done.clone());
                async move {
                    while !done.get() {
                        next_turn();
                        looks.set(looks.get() + 1);
                        rt::yield_now().await;
                    }
                    end_turn();
                }
            });
            let long_work: Vec<_> = (0..2)
                .map(|_| {
                    let done = done.clone();
                    rt::spawn_as(TaskKind::Connection, async move {
                        while !done.get() {
                            work(2 * LOOK_AFTER);
                            rt::yield_if_needed().await;
                        }
                    })
                })
                .collect();
            for _ in 0..20 {
                let before = looks.get();
                rt::spawn_as(TaskKind::Accept, rt::yield_now()).await;
                assert!(looks.get() - before <= 3, "{} looks", looks.get() - before);
            }
            done.set(true);
            for task in long_work {
                task.await;
            }
            driver.await;
        });
    }

    #[test]
    fn a_sleeping_driver_is_woken_when_a_task_takes_long() {
        rt::run_test(async {
            let driver = rt::spawn_as(TaskKind::Sockets, async {
                next_turn();
                end_turn();
                let mut asleep = false;
                poll_fn(|cx| {
                    if asleep && was_busy() {
                        return Poll::Ready(());
                    }
                    asleep = true;
                    wake_driver_when_busy(cx.waker());
                    Poll::Pending
                })
                .await;
            });
            work(Duration::from_millis(2));
            let late = async {
                rt::sleep(Duration::from_secs(10)).await;
                panic!("it sleeps on");
            };
            driver.or(late).await;
        });
    }

    #[test]
    fn without_a_driver_no_task_waits_for_ever() {
        rt::run_test(async {
            rt::spawn_as(TaskKind::Sockets, async { next_turn() }).detach();
            work(Duration::from_millis(2));
            for _ in 0..3 {
                rt::yield_now().await;
            }
        });
    }

    #[test]
    fn the_clock_of_a_turn_stands_still_within_it() {
        rt::run_test(async {
            // Without a driver it is the clock.
            let before = rt::now();
            assert!(turn_now() >= before);
            rt::spawn_as(TaskKind::Sockets, async {
                next_turn();
                let began = turn_now();
                sleep_thread(Duration::from_millis(2));
                assert_eq!(turn_now(), began);
                // Nothing else has run, so this is the same turn.
                next_turn();
                assert_eq!(turn_now(), began);
                rt::yield_now().await;
                next_turn();
                assert!(turn_now() > began);
                end_turn();
                let asleep = rt::now();
                assert!(turn_now() >= asleep);
            })
            .await;
        });
        // The next executor of this thread knows nothing of it.
        rt::run_test(async {
            let before = rt::now();
            assert!(turn_now() >= before);
        });
    }

    #[test]
    fn every_kind_has_its_own_place_and_name() {
        let places: Vec<usize> = TaskKind::ALL.iter().map(|kind| *kind as usize).collect();
        assert_eq!(places, (0..TaskKind::COUNT).collect::<Vec<_>>());
        let names: std::collections::BTreeSet<_> =
            TaskKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), TaskKind::COUNT);
    }
}
