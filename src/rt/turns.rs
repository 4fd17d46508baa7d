//! Turns of an executor with sockets: how long it does not look at them, and which tasks that time
//! goes to.
//!
//! A turn is a stretch of time in which tasks ran and nobody looked at the sockets: what arrives
//! meanwhile waits for its end. The driver of the sockets reports here what it does:
//!
//! - It looks ([`next_turn`]): a turn ends, and the next one begins. This takes one clock read, and
//!   the time of it is also [`turn_now`], a clock that costs nothing.
//! - It naps in the kernel, from [`end_turn`] to [`next_turn`]. Nothing else runs meanwhile.
//! - It sleeps ([`sleep_until_called`]) while tasks still run: those that are ready, and those that
//!   a timer or a file wakes. The first poll begins a turn. If the executor pauses while the turn is
//!   short, the turn ends there, because nobody would have waited for more. Once it has lasted for
//!   [`SHORT`], it calls the driver: from then on the executor does not pause, and the turn lasts
//!   until the driver looks.
//!
//! So every poll is part of one turn, whose length includes what the runtime does between polls and
//! the time in which the thread did not run. Three things are not counted. A turn in which no task
//! but the driver's ran is none unless it was long; otherwise polling for completions would hide
//! what takes long among millions of short turns. While the driver sleeps, what the runtime does by
//! itself between two polls cannot be told from a pause. And how late the kernel ends a sleep is not
//! known here. `Net::turn_now` is no look: tasks that wait go on waiting.
//!
//! How long the thread ran in a long turn ([`LongTurn::ran`]) comes from a CPU clock that is read
//! every millisecond, but not while the driver sleeps. So in a turn that began in a sleep the CPU
//! time of the short turns before it in that sleep is included, and as much of the time in which the
//! thread did not run is missed.
//!
//! Every task has a [`TaskKind`]. Beginning and end of each of its polls read the CPU's counter of
//! ticks, so that a long turn can be attributed, and a turn that began while the driver slept be
//! measured without a clock read.
#![expect(unsafe_code, reason = "a pinned field")]

mod clocks;
mod kind;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use clocks::{thread_cpu_time, ticks};
pub use kind::TaskKind;

/// Turns of this length or more are attributed to a task.
pub const LONG_TURN: Duration = Duration::from_millis(1);

/// How old the reading of the CPU clock may be that a long turn is compared with: what the thread
/// did not run in that time before the turn is attributed to the turn as well.
const CPU_READING_AGE_MAX: Duration = Duration::from_millis(1);

/// How long a turn may last before tasks that can stop in between let the sockets have a look.
/// Short against what a client notices, long against the 2 µs that a look costs.
const LOOK_AFTER: Duration = Duration::from_micros(250);

/// While the driver sleeps, a turn that lasts longer calls it, and a longer time without a poll ends
/// the turn.
const SHORT: Duration = Duration::from_micros(10);

/// How many [`SHORT`] make a [`LOOK_AFTER`].
const SHORT_PER_LOOK: u64 = (LOOK_AFTER.as_nanos() / SHORT.as_nanos()) as u64;

/// [`SHORT`] in ticks until it is measured: a guess that is too low, for the slowest counter, of
/// 25 MHz. With it the driver is called too often.
const SHORT_TICKS_LEAST: u64 = 250;

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
    /// The last reading of the clock: when the driver looked, fell asleep or woke. `None` without a
    /// driver.
    since: Cell<Option<Instant>>,
    /// The tick of that time.
    since_tick: Cell<u64>,
    /// How long the turn had lasted by then: not zero if it began while the driver slept.
    before: Cell<Duration>,
    /// The tick at which the turn began.
    began_tick: Cell<u64>,
    /// Whether the driver sleeps, naps or does not exist.
    asleep: Cell<bool>,
    /// What has been polled in this turn.
    polled: Cell<Polled>,
    /// Whose time passes now: the runtime's between two polls.
    running: Cell<TaskKind>,
    /// The tick up to which time is attributed.
    attributed: Cell<u64>,
    /// By [`TaskKind`].
    spent: [Spent; TaskKind::COUNT],
    cpu: Cell<Option<CpuReading>>,
    /// [`SHORT`] in ticks.
    short_ticks: Cell<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Polled {
    Nothing,
    /// Only tasks of [`TaskKind::Sockets`].
    Driver,
    Task,
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
    /// For how long the driver has slept since, without the turn that ended its sleep.
    slept: Duration,
}

thread_local! {
    /// Whether the last look, or a turn of the sockets since, has woken tasks for something new.
    static BROUGHT_WORK: Cell<bool> = const { Cell::new(false) };
    static TURN: CurrentTurn = const {
        CurrentTurn {
            observer: Cell::new(None),
            since: Cell::new(None),
            since_tick: Cell::new(0),
            before: Cell::new(Duration::ZERO),
            began_tick: Cell::new(0),
            asleep: Cell::new(true),
            polled: Cell::new(Polled::Nothing),
            running: Cell::new(TaskKind::Runtime),
            attributed: Cell::new(0),
            spent: [const { Spent { ticks: Cell::new(0), polls: Cell::new(0) } }; TaskKind::COUNT],
            cpu: Cell::new(None),
            short_ticks: Cell::new(SHORT_TICKS_LEAST),
        }
    };
}

thread_local! {
    /// The driver's waker from the beginning of its sleep until it is called.
    static SLEEPING_DRIVER: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// To be called by the driver after each look at the sockets and after each nap: ends the turn and
/// begins the next one. Does nothing if no task, nor the driver's, has run since the last call.
#[inline]
pub fn next_turn() {
    TURN.with(|turn| {
        if turn.asleep.get() {
            turn.woke(super::now());
        } else if turn.polled.get() > Polled::Nothing {
            let now = super::now();
            turn.ended(now);
            turn.began(now);
        }
    });
}

/// To be called by the driver right after or before a look, before it naps: ends the turn. The next
/// one begins with [`next_turn`].
#[inline]
pub fn end_turn() {
    TURN.with(CurrentTurn::fell_asleep);
}

/// The driver's sleep, right after a look: ends the turn. Returns once the driver was called
/// ([`call_driver`]), also by a turn that takes long, because more work is likely to follow; the
/// runtime looks at what would otherwise wake the driver only every time slice while tasks are
/// ready, which is 2 ms. What has run since that turn began, and what runs until the next look, is
/// one turn.
pub async fn sleep_until_called() {
    end_turn();
    let mut asleep = false;
    poll_fn(|cx| {
        SLEEPING_DRIVER.with_borrow_mut(|sleeping| {
            if asleep && sleeping.is_none() {
                return Poll::Ready(());
            }
            asleep = true;
            match sleeping {
                Some(sleeping) => sleeping.clone_from(cx.waker()),
                None => *sleeping = Some(cx.waker().clone()),
            }
            Poll::Pending
        })
    })
    .await;
    next_turn();
}

/// Ends [`sleep_until_called`] if the driver sleeps.
#[inline]
pub fn call_driver() {
    if TURN.with(|turn| turn.asleep.get())
        && let Some(driver) = SLEEPING_DRIVER.take()
    {
        driver.wake();
    }
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

/// To be called in each look at the sockets: whether it has woken tasks for something new.
#[inline]
pub fn looked(brought_work: bool) {
    BROUGHT_WORK.set(brought_work);
}

/// To be called for each turn of the sockets that is no look, because its caller goes on: whether
/// it has woken tasks for something new. What the look before it has brought stays.
#[inline]
pub fn looked_between(brought_work: bool) {
    if brought_work {
        BROUGHT_WORK.set(true);
    }
}

/// Whether the last look at the sockets, or a turn of theirs since, has woken tasks for something
/// new. They run behind those that were ready before.
#[inline]
pub fn look_brought_work() -> bool {
    BROUGHT_WORK.get()
}

/// How many polls have begun in this turn, or since the executor has started if there are no turns.
pub(super) fn polls() -> u32 {
    let count = |polls: u32, spent: &Spent| polls.wrapping_add(spent.polls.get());
    TURN.with(|turn| turn.spent.iter().fold(0, count))
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
        BROUGHT_WORK.set(false);
        turn.running.set(TaskKind::Runtime);
        turn.cpu.set(None);
        turn.clear();
    });
}

impl CurrentTurn {
    #[inline]
    fn has_worked(&self) -> bool {
        self.polled.get() == Polled::Task
    }

    #[inline]
    fn ended(&self, now: Instant) {
        let (Some(observer), Some(since)) = (self.observer.get(), self.since.get()) else { return };
        let length = now.saturating_duration_since(since) + self.before.get();
        let is_long = length >= LONG_TURN;
        if self.has_worked() || is_long {
            observer.turn(length);
        }
        if is_long {
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
    fn began(&self, now: Instant) {
        self.since.set(Some(now));
        self.clear();
        self.refresh_cpu_reading(now);
    }

    #[inline]
    fn fell_asleep(&self) {
        if self.asleep.replace(true) {
            return;
        }
        // Only the driver's own poll may have run since the last look, and taken long: with a second
        // look, say.
        if self.polled.get() > Polled::Nothing || self.is_old(ticks()) {
            let now = super::now();
            self.ended(now);
            self.since.set(Some(now));
            self.since_tick.set(ticks());
        }
        self.forget();
    }

    /// The turn that has begun meanwhile goes on.
    fn woke(&self, now: Instant) {
        self.asleep.set(false);
        let slept_from = self.since.replace(Some(now));
        let passed = slept_from.map_or(Duration::ZERO, |from| now.saturating_duration_since(from));
        let lasted = if self.has_worked() { self.part_of(passed) } else { Duration::ZERO };
        if let Some(mut cpu) = self.cpu.get() {
            cpu.slept += passed.saturating_sub(lasted);
            self.cpu.set(Some(cpu));
        }
        if lasted.is_zero() {
            self.clear();
            self.refresh_cpu_reading(now);
        } else {
            // The CPU clock is left as it was read before this turn.
            self.before.set(lasted);
            self.since_tick.set(ticks());
        }
    }

    /// What the turn has of the time that has `passed` since the driver fell asleep.
    fn part_of(&self, passed: Duration) -> Duration {
        let now = ticks();
        let (turn, all) =
            (now.wrapping_sub(self.began_tick.get()), now.wrapping_sub(self.since_tick.get()));
        passed.mul_f64((turn as f64 / all.max(1) as f64).min(1.0))
    }

    #[inline]
    fn refresh_cpu_reading(&self, now: Instant) {
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
            let short = (ticks * (SHORT.as_secs_f64() / passed)) as u64;
            self.short_ticks.set(short.max(SHORT_TICKS_LEAST));
        }
    }

    /// Whether it had lasted for [`LOOK_AFTER`] at this tick.
    #[inline]
    fn is_old(&self, tick: u64) -> bool {
        tick.wrapping_sub(self.began_tick.get()) > SHORT_PER_LOOK * self.short_ticks.get()
    }

    /// A turn begins at the time that [`CurrentTurn::since`] has.
    #[inline]
    fn clear(&self) {
        let now = self.forget();
        self.since_tick.set(now);
    }

    /// A turn begins now; returns the tick.
    #[inline]
    fn forget(&self) -> u64 {
        self.polled.set(Polled::Nothing);
        self.before.set(Duration::ZERO);
        for Spent { ticks, polls } in &self.spent {
            ticks.set(0);
            polls.set(0);
        }
        let now = ticks();
        self.attributed.set(now);
        self.began_tick.set(now);
        now
    }

    /// Attributes the time up to now, and what follows to `to`. Returns whose time it was, and how
    /// many ticks.
    #[inline]
    fn switch(&self, to: TaskKind) -> (TaskKind, u64) {
        let now = ticks();
        let from = self.running.replace(to);
        let passed = now.wrapping_sub(self.attributed.replace(now));
        let spent = &self.spent[from as usize].ticks;
        spent.set(spent.get().wrapping_add(passed));
        (from, passed)
    }

    /// Returns whose time it was, and whether the poll is one of those that make up a turn while the
    /// driver sleeps. The poll of a task that [`spawn`](super::spawn) has started is part of
    /// another one.
    #[inline]
    fn poll_begins(&self, kind: TaskKind) -> (TaskKind, bool) {
        let (from, passed) = self.switch(kind);
        let beside_sleep = self.asleep.get() && from == TaskKind::Runtime;
        if beside_sleep && passed > self.short_ticks.get() {
            self.paused(passed);
        }
        let polls = &self.spent[kind as usize].polls;
        polls.set(polls.get() + 1);
        let polled = if kind == TaskKind::Sockets { Polled::Driver } else { Polled::Task };
        self.polled.set(self.polled.get().max(polled));
        (from, beside_sleep)
    }

    #[inline]
    fn poll_ended(&self, back_to: TaskKind, beside_sleep: bool) {
        self.switch(back_to);
        // Not the driver's own poll in which it falls asleep or wakes.
        if beside_sleep && self.asleep.get() {
            let lasted = self.attributed.get().wrapping_sub(self.began_tick.get());
            if lasted > self.short_ticks.get() {
                call_driver();
            }
        }
    }

    /// While the driver sleeps, no poll has begun in the last `pause` ticks. Unless the driver has
    /// been called, the executor has slept meanwhile.
    #[cold]
    fn paused(&self, pause: u64) {
        if SLEEPING_DRIVER.with_borrow(Option::is_none) {
            return;
        }
        if let Some(observer) = self.observer.get()
            && self.has_worked()
        {
            let ended = self.attributed.get().wrapping_sub(pause);
            // It would have called the driver if it had been longer.
            let lasted = ended.wrapping_sub(self.began_tick.get()).min(self.short_ticks.get());
            observer.turn(SHORT.mul_f64(lasted as f64 / self.short_ticks.get() as f64));
        }
        self.forget();
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
            let (from, beside_sleep) = turn.poll_begins(kind);
            let polled = work.poll(cx);
            turn.poll_ended(from, beside_sleep);
            polled
        })
    }
}

#[cfg(test)]
mod tests;
