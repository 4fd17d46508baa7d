//! The upload workers of one core: pop, put, and again, until the ring is closed and empty.
//!
//! What it puts is a payload by itself or a batch. A worker is the one owner of retry. It never ends on an object's error, and never on a panic: what cannot be stored goes
//! to the dead letter, and what cannot go there is logged with its key and counted as lost.

mod health;

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;
use glommio::timer::sleep;

use crate::ack::Fate;
use crate::batch::Batch;
use crate::config::Config;
use crate::deadletter::Letter;
use crate::deadline::Alarm;
use crate::metrics::CoreCells;
use crate::parcel::Parcel;
use crate::shard::Core;
use crate::store::{Class, PutError, PutTimeouts};

pub use health::Health;

/// Worker `number` of its core.
pub async fn worker_loop(core: Rc<Core>, number: usize) {
    let mut worker = Worker::new(core.clone());
    while let Some(parcel) = next(&core, number).await {
        // Held where a drain that cancels this worker finds it.
        core.in_hand.borrow_mut()[number] = Some(parcel.clone());
        core.cells.workers_busy.inc();
        let fate = match &parcel {
            Parcel::Payload(_) => Some(worker.put(&parcel).await),
            // Boxed, for each put has room for it.
            Parcel::Batch(batch) => Box::pin(put_noted(&mut worker, batch)).await,
        };
        core.in_hand.borrow_mut()[number] = None;
        core.cells.workers_busy.sub(1);
        if fate != Some(Fate::Stored) && core.holds_nothing() {
            core.health.nothing_held();
        }
        // A store that answers at once would let one worker empty the ring while nobody else runs.
        glommio::executor().yield_if_needed().await;
    }
}

/// Puts a batch between the spool's notes of it, if its payloads are there; `None`: the spool's disk fails, and the batch
/// was set aside.
async fn put_noted(worker: &mut Worker, batch: &Rc<Batch>) -> Option<Fate> {
    let core = worker.core.clone();
    let parcel = Parcel::Batch(batch.clone());
    let (Some(spool), Some(members)) = (&core.spool, batch.members()) else {
        return Some(worker.put(&parcel).await);
    };
    match spool.intend(batch.key(), &batch.form(), members).await {
        Ok(intent) => {
            let fate = worker.put(&parcel).await;
            // What is neither stored nor dead-lettered is left to the next process.
            if fate != Fate::Lost {
                spool.finished(intent);
            }
            Some(fate)
        }
        Err(error) => {
            let text = || format!("{} waits for the spool's journal: {error}", batch.key());
            core.logs.borrow_mut().journal.warn(text);
            if let Some(batches) = &core.batches {
                batches.park(batch.clone());
            }
            None
        }
    }
}

/// A closed batch where there are batches, else the oldest payload in the ring.
async fn next(core: &Core, number: usize) -> Option<Parcel> {
    if let Some(batches) = &core.batches {
        return batches.pop(number).await.map(Parcel::Batch);
    }
    let job = core.ring.pop(number).await?;
    core.admission.popped();
    Some(Parcel::Payload(job))
}

/// Puts one object after the other, and says what became of each.
pub struct Worker {
    core: Rc<Core>,
    alarm: Alarm,
    /// Room for the next key.
    key: String,
}

/// An object the store will not have.
struct GivenUp {
    error: PutError,
    attempts: u32,
}

impl Worker {
    pub fn new(core: Rc<Core>) -> Worker {
        Worker { core, alarm: Alarm::default(), key: String::new() }
    }

    /// Puts `parcel` until it is stored or given up, then to the dead letter; counts it and tells whom it concerns.
    pub async fn put(&mut self, parcel: &Parcel) -> Fate {
        let core = self.core.clone();
        parcel.write_key(&core.origin, &mut self.key);
        let delivery = AssertUnwindSafe(self.deliver(parcel)).catch_unwind().await;
        let fate = match delivery {
            Ok(Ok(())) => {
                core.cells.objects_stored.inc();
                core.cells.object_bytes_stored.add(parcel.object(&self.key).bytes());
                core.cells.payloads_stored.add(parcel.payloads());
                core.cells.bytes_stored.add(parcel.payload_bytes());
                Fate::Stored
            }
            Ok(Err(GivenUp { error, attempts })) => {
                bury(&core, parcel, &self.key, error.to_string(), attempts).await
            }
            Err(_) => {
                core.cells.worker_panics.inc();
                let error = "Panic: the put panicked".to_owned();
                bury(&core, parcel, &self.key, error, 1).await
            }
        };
        parcel.settle(fate);
        fate
    }

    /// Puts until the store confirms, refuses this object, or has taken others for `RETRY_FOR` but never this one.
    async fn deliver(&mut self, parcel: &Parcel) -> Result<(), GivenUp> {
        let core = self.core.clone();
        let mut attempts = 0;
        let mut first_failure = None;
        loop {
            attempts += 1;
            let Err(error) = self.attempt(parcel).await else { return Ok(()) };
            core.health.failed(&error);
            let healthy_at_first = *first_failure.get_or_insert(core.health.healthy_time());
            // `>`: also with RETRY_FOR=0s others must have succeeded since.
            // What is spooled can wait for the store for ever.
            let given_up = core.health.healthy_time() - healthy_at_first > core.config.retry_for
                && !parcel.is_spooled();
            if error.class == Class::Object || given_up {
                return Err(GivenUp { error, attempts });
            }
            core.cells.put_retries.inc();
            if attempts == 1 {
                core.cells.payloads_retried.add(parcel.payloads());
                core.cells.bytes_retried.add(parcel.payload_bytes());
            }
            pause(&core, backoff(&core.config, attempts, fastrand::f64())).await;
        }
    }

    /// One put within `PUT_TIMEOUT`.
    async fn attempt(&mut self, parcel: &Parcel) -> Result<(), PutError> {
        let core = &*self.core;
        let started = Instant::now();
        let object = parcel.object(&self.key);
        let timeouts = PutTimeouts::of(&core.config);
        let outcome = core.store.put_within(&mut self.alarm, started, timeouts, &object).await;
        let now = Instant::now();
        core.cells.put_latency.observe(now - started);
        if outcome.is_ok() {
            core.health.succeeded(now);
        }
        outcome
    }
}

/// Longest backoff while draining: an outage that ends in time must not find everybody asleep.
const DRAIN_BACKOFF_MAX: Duration = Duration::from_millis(250);

/// Sleeps for `backoff`, cut short when the stop begins.
async fn pause(core: &Core, backoff: Duration) {
    if core.draining.get() {
        sleep(backoff.min(DRAIN_BACKOFF_MAX)).await;
    } else {
        sleep(backoff).or(core.draining.wait()).await;
    }
}

/// Full jitter: anything up to `RETRY_BASE` doubled per attempt, at most `RETRY_MAX`, and at least a millisecond.
fn backoff(config: &Config, attempts: u32, dice: f64) -> Duration {
    let doubled = config.retry_base.saturating_mul(1 << (attempts - 1).min(20));
    doubled.min(config.retry_max).mul_f64(dice).max(Duration::from_millis(1))
}

/// Writes the dead letter on the executor's blocking thread.
async fn bury(core: &Core, parcel: &Parcel, key: &str, error: String, attempts: u32) -> Fate {
    let (payloads, bytes) = (parcel.payloads(), parcel.payload_bytes());
    let object = parcel.object(key);
    let letter = Letter::now(&object, payloads, core.store_name.clone(), error, attempts);
    core.logs.borrow_mut().dead.warn(|| format!("dead letter {key}: {}", letter.error));
    let stem = parcel.stem(&core.origin);
    let _turn = match parcel {
        Parcel::Payload(_) => None,
        Parcel::Batch(_) => core.letter_turn.acquire_permit(1).await.ok(),
    };
    match core.dead_letters.write_off_core(stem, letter, object.body).await {
        Ok(()) => {
            core.cells.payloads_dead_lettered.add(payloads);
            core.cells.bytes_dead_lettered.add(bytes);
            Fate::DeadLettered
        }
        Err(error) if parcel.is_spooled() => {
            tracing::error!(
                key,
                payloads,
                "no dead letter, so it stays in the spool until the next start: {error}"
            );
            Fate::Lost
        }
        Err(error) => {
            lose(core.cells, key, payloads, bytes, &error.to_string());
            Fate::Lost
        }
    }
}

/// The last resort: says which object with how many payloads, of how many bytes, is gone, and counts it.
pub fn lose(cells: &CoreCells, key: &str, payloads: u64, bytes: u64, why: &str) {
    tracing::error!(key, payloads, bytes, why, "payload lost");
    cells.payloads_lost.add(payloads);
    cells.bytes_lost.add(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_cap_and_never_spins() {
        let config =
            Config::from_settings(&[("RETRY_BASE", "100ms"), ("RETRY_MAX", "10s")]).unwrap();
        let longest = |attempts| backoff(&config, attempts, 1.0).as_millis();
        assert_eq!([1, 2, 3, 7, 8].map(longest), [100, 200, 400, 6_400, 10_000]);
        assert_eq!(longest(u32::MAX), 10_000, "many attempts do not overflow");
        assert_eq!(backoff(&config, 3, 0.5), Duration::from_millis(200), "full jitter");
        assert_eq!(backoff(&config, 3, 0.0), Duration::from_millis(1));
        let hour = Config::from_settings(&[("RETRY_BASE", "1h"), ("RETRY_MAX", "1h")]).unwrap();
        assert_eq!(backoff(&hour, u32::MAX, 1.0), Duration::from_secs(3_600));
    }
}
