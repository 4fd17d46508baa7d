//! How fast one core's queue drains, and from that whether a request that finds no room waits for
//! it or is refused, and when a refused client is to return.
//!
//! The rate is measured while there is something to drain, because an idle queue says nothing about
//! the store. Slots count while the queue does not run empty, bytes while half of them stay in use:
//! the resource is then *pressed*. Everything that was measured is dropped when the queue runs
//! empty.
//!
//! `retry-after` is whole seconds, and clients that are refused together return together. Three
//! rules keep the store busy nevertheless:
//!
//! - **Shorter waits happen here.** A request that will find room within `ENQUEUE_WAIT` waits for
//!   it instead of being refused. A returning client may therefore be up to
//!   [`RETURN_EARLY_MAX_S`] early, which is what rounding to seconds costs.
//! - **Refused clients form a line.** Each refusal reserves the time in which the store takes what
//!   was refused, and the client is told to return when there will be room for it. So returning
//!   load matches the drain rate. Reservations only exist in this computation: whoever comes when there
//!   is room gets it.
//! - **No estimate reaches further ahead than it reaches back.** `retry-after` is at most the time
//!   for which the queue has been pressed, and a second; at a standstill half of the time for which
//!   nothing has moved, and a second. Clients that no estimate can place return at random in the
//!   second half of that time. So the first refusals after quiet say one second, a store that comes
//!   back waits for clients for half as long as they have waited for it, and what clients that never
//!   return have reserved harms nobody for long.
//!
//! All times are passed in; the tests run it in simulated time.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::admission::Need;
use crate::rt;

/// The largest `retry-after`.
pub const RETRY_AFTER_MAX_S: u64 = 30;

/// The smallest. Clients take 0 for "no wait", and would use up their attempts within moments.
pub const RETRY_AFTER_MIN_S: u64 = 1;

/// How much too early a refused client may return if requests wait as long.
const RETURN_EARLY_MAX_S: f64 = 1.0;

/// The rate is an average over this much time in which the queue was pressed.
const WINDOW: Duration = Duration::from_secs(5);

/// Shortest time between two samples.
const SAMPLE_LEAST: Duration = Duration::from_millis(250);

/// A store that has become faster shows in the last second long before it shows in the window.
const RECENT: Duration = Duration::from_secs(1);

/// The room of one core's queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueRoom {
    pub free: Need,
    /// What requests ahead of the one in question wait for.
    pub waited_for: Need,
}

/// What becomes of a request that finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Wait,
    Refuse { retry_after_s: u64 },
}

/// The drain rate of one core's queue, and the line of refused requests.
pub struct Pace {
    pub slots: Meter,
    pub bytes: Meter,
    sampled: Instant,
    /// Up to when the store is busy with requests that were admitted or told to return.
    line_end: Instant,
    rng: rt::Rng,
}

/// One resource of the queue: how much of it becomes free while it is pressed.
pub struct Meter {
    /// The resource is pressed while at least this much stays in use.
    pressed_from: usize,
    /// Freed since the last sample.
    freed: u64,
    /// The least that was in use since the last sample.
    low: usize,
    /// Since when it is pressed, as of the last sample.
    pressed_since: Option<Instant>,
    /// When a sample last found that something was freed.
    moved: Instant,
    /// Samples since then, as far as [`WINDOW`] reaches, the latest first.
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy)]
struct Sample {
    elapsed: Duration,
    freed: u64,
}

impl Meter {
    fn new(pressed_from: usize, now: Instant) -> Meter {
        let samples = VecDeque::new();
        Meter { pressed_from, freed: 0, low: 0, pressed_since: None, moved: now, samples }
    }

    /// Counts what became free. `used` is in use after that.
    #[inline]
    pub fn freed(&mut self, amount: usize, used: usize) {
        self.freed += amount as u64;
        self.low = self.low.min(used);
    }

    fn sample(&mut self, now: Instant, elapsed: Duration, used: usize) {
        let freed = std::mem::take(&mut self.freed);
        let was_pressed = self.low >= self.pressed_from;
        self.low = used;
        if freed > 0 {
            self.moved = now;
        }
        if !was_pressed || self.pressed_since.is_none() {
            self.samples.clear();
            self.moved = now;
            self.pressed_since = (used >= self.pressed_from).then_some(now);
            return;
        }
        self.samples.push_front(Sample { elapsed, freed });
        let mut reach = Duration::ZERO;
        self.samples.retain(|sample| {
            let within = reach < WINDOW;
            reach += sample.elapsed;
            within
        });
    }

    /// For how long it has been pressed.
    fn pressed_for(&self, now: Instant) -> Duration {
        let since = self.pressed_since.filter(|_| self.low >= self.pressed_from);
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// For how long nothing was freed.
    fn still_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.moved)
    }

    /// Freed per second, over the window or over the last second if that is more; `None` if that is
    /// not known.
    pub(super) fn rate(&self) -> Option<f64> {
        let (mut elapsed, mut freed, mut recent) = (Duration::ZERO, 0, None);
        for sample in &self.samples {
            elapsed += sample.elapsed;
            freed += sample.freed;
            if recent.is_none() && elapsed >= RECENT {
                recent = Some(freed as f64 / elapsed.as_secs_f64());
            }
        }
        let all = (!elapsed.is_zero()).then(|| freed as f64 / elapsed.as_secs_f64())?;
        Some(all.max(recent.unwrap_or(0.0)))
    }
}

/// What one resource lacks for a request.
struct Lack<'a> {
    meter: &'a Meter,
    /// What must become free before the request has room.
    missing: usize,
    /// The request's own need.
    need: usize,
}

impl Lack<'_> {
    /// Seconds until `amount` is free; infinite at a standstill.
    fn seconds(&self, amount: usize) -> Option<f64> {
        let rate = self.meter.rate()?;
        Some(if amount == 0 { 0.0 } else { amount as f64 / rate })
    }
}

impl Pace {
    /// The pace of a queue with `max` slots and bytes.
    pub fn new(max: Need, now: Instant, rng: rt::Rng) -> Pace {
        Pace {
            slots: Meter::new(1, now),
            bytes: Meter::new((max.bytes / 2).max(1), now),
            sampled: now,
            line_end: now,
            rng,
        }
    }

    /// Takes a sample unless the last one was a moment ago. `used` is in use now. To be called
    /// every second or so, and before each [`Pace::judge`] and [`Pace::refuse`].
    pub fn sample(&mut self, now: Instant, used: Need) {
        let elapsed = now.saturating_duration_since(self.sampled);
        if elapsed < SAMPLE_LEAST {
            return;
        }
        self.sampled = now;
        self.slots.sample(now, elapsed, used.slots);
        self.bytes.sample(now, elapsed, used.bytes);
        if self.slots.pressed_since.is_none() && self.bytes.pressed_since.is_none() {
            // The line was shorter than it seemed.
            self.line_end = now;
        }
    }

    /// Whether a request that finds no room waits up to `wait` for it, or is refused at once
    /// because it would wait in vain.
    pub fn judge(&mut self, need: Need, room: QueueRoom, wait: Duration, now: Instant) -> Verdict {
        let in_vain = |lack: Lack<'_>| match lack.seconds(lack.missing) {
            Some(seconds) if seconds.is_finite() => seconds > wait.as_secs_f64(),
            _ => lack.meter.still_for(now).min(lack.meter.pressed_for(now)) >= wait,
        };
        if wait.is_zero() || self.lacks(need, room).into_iter().flatten().any(in_vain) {
            return Verdict::Refuse { retry_after_s: self.refuse(need, room, wait, now) };
        }
        Verdict::Wait
    }

    /// `retry-after` of a request that is refused. When it returns it will again wait up to `wait`.
    pub fn refuse(&mut self, need: Need, room: QueueRoom, wait: Duration, now: Instant) -> u64 {
        let (mut room_s, mut own_s, mut trust) = (0.0_f64, 0.0_f64, Duration::ZERO);
        for lack in self.lacks(need, room).into_iter().flatten() {
            room_s = room_s.max(lack.seconds(lack.missing).unwrap_or(0.0));
            let own = lack.seconds(lack.need).unwrap_or(0.0);
            own_s = own_s.max(own);
            trust = trust.max(match own.is_finite() {
                true => lack.meter.pressed_for(now),
                false => lack.meter.still_for(now) / 2,
            });
        }
        let most = (RETRY_AFTER_MIN_S + trust.as_secs()).min(RETRY_AFTER_MAX_S);
        let in_line_s = self.line_end.saturating_duration_since(now).as_secs_f64();
        // What is free now is for the first in the line.
        let end_s = if in_line_s > 0.0 { room_s.max(in_line_s + own_s) } else { room_s };
        let early_s = wait.as_secs_f64().min(RETURN_EARLY_MAX_S);
        let seconds = (end_s - early_s).ceil().max(RETRY_AFTER_MIN_S as f64);
        if seconds <= most as f64 {
            self.line_end = now + Duration::from_secs_f64(end_s);
            return seconds as u64;
        }
        self.rng.u64(most.div_ceil(2)..=most)
    }

    /// The resources that a request lacks.
    fn lacks(&self, need: Need, room: QueueRoom) -> [Option<Lack<'_>>; 2] {
        let QueueRoom { free, waited_for } = room;
        let lack = |meter, need: usize, free: usize, waited_for: usize| {
            let missing = (waited_for + need).saturating_sub(free);
            (missing > 0).then_some(Lack { meter, missing, need })
        };
        [
            lack(&self.slots, need.slots, free.slots, waited_for.slots),
            lack(&self.bytes, need.bytes, free.bytes, waited_for.bytes),
        ]
    }
}
