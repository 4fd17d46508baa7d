//! The upload workers of one core: take an object, put it, and again, until nothing more will come.
//!
//! What is put is a payload by itself or a batch. A worker makes one attempt at a time: `uploads` says what is next
//! and how many may be in flight, and keeps what has failed until it is tried again. A worker never ends on an object's
//! error, and never on a panic: what cannot be stored goes to the dead letter, and what cannot go there is logged with
//! its key and counted as lost.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;

use super::source::Parcel;
use super::uploader::Uploader;
use super::{Failures, InFlight, Trouble, Upload};
use crate::batch::Batch;
use crate::config::Config;
use crate::deadline::Alarm;
use crate::queue::outcome::Fate;
use crate::rt;
use crate::spool::Intent;
use crate::store::{Class, PutError, PutTimeouts};

/// Before what found no room in the dead letter is put again.
const LETTER_PAUSE: Duration = Duration::from_secs(10);

/// Worker `number` of its uploader.
pub async fn worker_loop(uploader: Rc<Uploader>, number: usize) {
    let mut worker = Worker::new(uploader.clone(), number);
    while let Some((upload, in_flight)) = uploader.next_upload(number).await {
        // Held where a drain that cancels this worker finds it.
        uploader.uploads.take_in_hand(number, InHand::of(&upload));
        let outcome = match &upload.parcel {
            Parcel::Payload(_) => worker.put(upload, in_flight, None).await,
            // Boxed, for each put has room for it.
            Parcel::Batch(batch) => {
                let batch = batch.clone();
                Box::pin(worker.put_noted(batch, upload, in_flight)).await
            }
        };
        uploader.uploads.done(number);
        match outcome {
            Outcome::Stored => {}
            Outcome::Failing { alone: true } => worker.pause().await,
            Outcome::Failing { alone: false } => {}
            Outcome::GivenUp => {
                if uploader.holds_nothing() || uploader.holds_failed_only() {
                    uploader.health.nothing_held();
                }
            }
        }
        // A store that answers at once would let one worker empty the ring while nobody else runs.
        rt::yield_if_needed().await;
    }
}

/// What a worker is busy with, for a stop that has to write its dead letter.
pub struct InHand {
    pub parcel: Parcel,
    /// `None`: no attempt has failed yet.
    pub failures: Option<Failures>,
}

impl InHand {
    fn of(upload: &Upload) -> InHand {
        let failures = upload.trouble.as_ref().map(|trouble| trouble.failures.clone());
        InHand { parcel: upload.parcel.clone(), failures }
    }
}

impl From<Upload> for InHand {
    fn from(upload: Upload) -> InHand {
        InHand::of(&upload)
    }
}

/// How an attempt ended.
enum Outcome {
    Stored,
    /// It is set aside. `alone`: nothing else was stored meanwhile.
    Failing {
        alone: bool,
    },
    /// It is in the dead letter, lost, or left to the spool.
    GivenUp,
}

/// Puts one object after the other, and says what became of each.
struct Worker {
    uploader: Rc<Uploader>,
    number: usize,
    alarm: Alarm,
    /// Room for the next key.
    key: String,
    /// Attempts of this worker that have failed in a row while nothing was stored on this core.
    failures: u32,
}

impl Worker {
    fn new(uploader: Rc<Uploader>, number: usize) -> Worker {
        Worker { uploader, number, alarm: Alarm::default(), key: String::new(), failures: 0 }
    }

    /// Puts a batch between the spool's notes of it, if its payloads are there.
    async fn put_noted(
        &mut self,
        batch: Rc<Batch>,
        mut upload: Upload,
        in_flight: InFlight<'_>,
    ) -> Outcome {
        let uploader = self.uploader.clone();
        let noted = upload.trouble.as_mut().and_then(|trouble| trouble.intent.take());
        let (Some(spool), Some(members), None) = (&uploader.spool, batch.members(), &noted) else {
            return self.put(upload, in_flight, noted).await;
        };
        match spool.intend(batch.key(), &batch.form(), members).await {
            Ok(intent) => self.put(upload, in_flight, Some(intent)).await,
            Err(error) => {
                if let Some(batches) = &uploader.batches {
                    batches.park(batch.clone(), &error);
                }
                Outcome::GivenUp
            }
        }
    }

    /// One attempt to put `upload`; counts its outcome and tells whom it concerns. `intent` notes in the spool that a
    /// batch is being put.
    async fn put(
        &mut self,
        upload: Upload,
        in_flight: InFlight<'_>,
        intent: Option<Intent>,
    ) -> Outcome {
        let uploader = self.uploader.clone();
        upload.parcel.write_key(&uploader.origin, &mut self.key);
        let stored_before = uploader.cells.objects_stored.value();
        let began = rt::now();
        let attempt = AssertUnwindSafe(self.attempt(&upload.parcel, began)).catch_unwind().await;
        let (error, attempts) = match attempt {
            Ok((Ok(()), now)) => {
                let bytes = upload.parcel.object(&self.key).bytes();
                uploader.put_stored(began, now, bytes);
                drop(in_flight);
                self.failures = 0;
                uploader.cells.objects_stored.inc();
                uploader.cells.object_bytes_stored.add(bytes);
                uploader.cells.payloads_stored.add(upload.parcel.payloads());
                uploader.cells.bytes_stored.add(upload.parcel.payload_bytes());
                complete(&uploader, &upload.parcel, Fate::Stored, intent);
                return Outcome::Stored;
            }
            Ok((Err(error), now)) => {
                let failed = Failed { error, stored_before, began, now };
                match self.failed(upload, failed, in_flight, intent) {
                    Ok(outcome) => return outcome,
                    Err(given_up) => return self.give_up(given_up).await,
                }
            }
            Err(_) => {
                uploader.cells.worker_panics.inc();
                ("Panic: the put panicked".to_owned(), 1)
            }
        };
        drop(in_flight);
        self.give_up(GivenUp { parcel: upload.parcel, intent, error, attempts }).await
    }

    /// One put within its timeouts, and when it ended.
    async fn attempt(
        &mut self,
        parcel: &Parcel,
        began: Instant,
    ) -> (Result<(), PutError>, Instant) {
        let uploader = &*self.uploader;
        let object = parcel.object(&self.key);
        let timeouts = PutTimeouts::of(&uploader.config);
        let outcome = uploader.store.put_within(&mut self.alarm, began, timeouts, &object).await;
        let now = rt::now();
        uploader.cells.put_latency.observe(now - began);
        if outcome.is_ok() {
            uploader.health.succeeded(now);
        }
        (outcome, now)
    }

    /// Sets an object aside that may be stored later.
    ///
    /// # Errors
    /// The store refuses this object, or has taken others for `RETRY_FOR` but never this one.
    fn failed(
        &mut self,
        upload: Upload,
        failed: Failed,
        in_flight: InFlight<'_>,
        intent: Option<Intent>,
    ) -> Result<Outcome, GivenUp> {
        let uploader = &self.uploader;
        let Failed { error, stored_before, began, now } = failed;
        let Upload { parcel, trouble } = upload;
        let healthy = uploader.health.healthy_time();
        let (attempts, healthy_before, stored_at_first) = match &trouble {
            Some(t) => (t.failures.attempts + 1, t.healthy_before, t.stored_before),
            None => (1, healthy, stored_before),
        };
        let stored = uploader.cells.objects_stored.value();
        let alone = stored == stored_before;
        // An object that fails again while others are stored says nothing about how many puts the store takes.
        if error.congestion && (attempts == 1 || alone) {
            uploader.put_congested(began, now);
        }
        uploader.health.failed(&error, stored != stored_at_first);
        // `>`: also with RETRY_FOR=0s others must have succeeded since.
        // What is spooled can wait for the store for ever.
        let given_up = healthy - healthy_before > uploader.config.retry_for && !parcel.is_spooled();
        if error.class == Class::Object || given_up {
            drop(in_flight);
            let error = error.to_string();
            return Err(GivenUp { parcel, intent, error, attempts });
        }
        uploader.cells.put_retries.inc();
        if attempts == 1 {
            uploader.cells.payloads_retried.add(parcel.payloads());
            uploader.cells.bytes_retried.add(parcel.payload_bytes());
        }
        let stored_before = stored_at_first;
        let failures = Failures { attempts, last: error };
        let trouble = Trouble { failures, healthy_before, stored_before, intent };
        let backoff = backoff(&uploader.config, attempts, rt::random_fraction());
        // In this order: else a slot would seem to be free in between.
        uploader.set_aside(Upload { parcel, trouble: Some(Box::new(trouble)) }, backoff);
        drop(in_flight);
        self.failures = if alone { self.failures + 1 } else { 0 };
        Ok(Outcome::Failing { alone })
    }

    /// Waits before the next attempt while nothing can be stored at all. One failure by itself is no reason to: it may
    /// be the object's.
    async fn pause(&self) {
        if let Some(failures) = self.failures.checked_sub(1).filter(|n| *n > 0) {
            let backoff = backoff(&self.uploader.config, failures, rt::random_fraction());
            self.uploader.pause_worker(self.number, backoff).await;
        }
    }

    /// Writes the dead letter of an object, and tells whom it concerns.
    async fn give_up(&mut self, given_up: GivenUp) -> Outcome {
        let uploader = self.uploader.clone();
        let GivenUp { parcel, intent, error, attempts } = given_up;
        // Its place among the puts in flight is free, and this worker will not take it for a while.
        uploader.wake_worker();
        let fate =
            uploader.letters.write(&parcel, &uploader.origin, &self.key, error, attempts).await;
        match &parcel {
            // All else of its directory waits for it.
            Parcel::Batch(batch) if fate == Fate::Lost && batch.is_restored() => {
                // At a stop it is left to the spool, where it is.
                if !uploader.stop.draining.get() {
                    uploader.set_aside(Upload::fresh(parcel), LETTER_PAUSE);
                }
            }
            _ => complete(&uploader, &parcel, fate, intent),
        }
        Outcome::GivenUp
    }
}

/// An attempt that has failed.
struct Failed {
    error: PutError,
    /// Objects that the core had stored when it began.
    stored_before: u64,
    began: Instant,
    now: Instant,
}

/// An object the store will not have.
struct GivenUp {
    parcel: Parcel,
    intent: Option<Intent>,
    error: String,
    attempts: u32,
}

/// Tells whom an object's fate concerns.
fn complete(uploader: &Uploader, parcel: &Parcel, fate: Fate, intent: Option<Intent>) {
    // What is neither stored nor dead-lettered is left to the next process.
    if let (Some(spool), Some(intent)) = (&uploader.spool, intent)
        && fate != Fate::Lost
    {
        spool.complete_batch(intent);
    }
    if let Parcel::Batch(batch) = parcel
        && batch.is_restored()
    {
        uploader.uploads.restored_done();
    }
    parcel.settle(fate);
}

/// Full jitter: anything up to `RETRY_BASE` doubled per attempt, at most `RETRY_MAX`, and at least a millisecond.
fn backoff(config: &Config, attempts: u32, dice: f64) -> Duration {
    let doubled = config.retry_base.saturating_mul(1 << (attempts - 1).min(20));
    doubled.min(config.retry_max).mul_f64(dice).max(Duration::from_millis(1))
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
