//! The upload workers of one core. Each uploads one object after another until no more will come.
//!
//! An object is one payload or a batch. A worker makes one attempt at a time. `uploads` decides
//! what is next and how many PUTs may be in flight, and keeps failed objects until their retry.
//! Neither an object's error nor a panic ends a worker: what cannot be stored becomes a dead
//! letter, and if that cannot be written either, the loss is logged with the object's key and
//! counted.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;

use super::at_once::store_at_once;
use super::source::Upload;
use super::uploader::{NextUpload, Uploader};
use super::{Failures, InFlight, PendingUpload, RetryState};
use crate::batch::Batch;
use crate::config::Config;
use crate::deadline::Alarm;
use crate::key::EventTime;
use crate::queue::outcome::Outcome;
use crate::rt;
use crate::spool::Intent;
use crate::store::{Class, FailedPut, Object, PutTimeouts};

/// Pause before the retry of a restored batch whose dead letter could not be written.
const DEAD_LETTER_PAUSE: Duration = Duration::from_secs(10);

/// The task of worker `number`.
pub async fn worker_loop(uploader: Rc<Uploader>, number: usize) {
    let mut worker = Worker::new(uploader.clone(), number);
    while let Some(next) = uploader.next_upload(number).await {
        let (pending, in_flight) = match next {
            NextUpload::Object(pending, in_flight) => (pending, in_flight),
            NextUpload::Run(run) => {
                store_at_once(&uploader, &run, &mut worker.key);
                drop(run);
                rt::yield_if_needed().await;
                continue;
            }
        };
        // A drain may cancel this worker, and must find the object then.
        uploader.uploads.start_attempt(number, InProgress::of(&pending));
        let outcome = match &pending.upload {
            Upload::Payload(_) => worker.put(pending, in_flight, None).await,
            // Boxed: otherwise the future of every payload's PUT would have room for this one too.
            Upload::Batch(batch) => {
                let batch = batch.clone();
                Box::pin(worker.put_with_intent(batch, pending, in_flight)).await
            }
        };
        uploader.uploads.end_attempt(number);
        match outcome {
            AttemptResult::Stored => {}
            AttemptResult::RetryLater { stored_nothing: true } => worker.pause().await,
            AttemptResult::RetryLater { stored_nothing: false } => {}
            AttemptResult::GivenUp => {
                // No other upload may be left to show that the store works.
                if uploader.holds_nothing() || uploader.holds_failed_only() {
                    uploader.health.nothing_held();
                }
            }
        }
        // If the store answers at once, one worker would otherwise empty the queue while no other
        // task runs.
        rt::yield_if_needed().await;
    }
}

/// An object that is being uploaded or waits for a retry, as a stop sees it that may have to write
/// its dead letter.
pub struct InProgress {
    pub upload: Upload,
    /// `None`: no attempt has failed yet.
    pub failures: Option<Failures>,
}

impl InProgress {
    fn of(pending: &PendingUpload) -> InProgress {
        let failures = pending.retry.as_ref().map(|retry| retry.failures.clone());
        InProgress { upload: pending.upload.clone(), failures }
    }
}

impl From<PendingUpload> for InProgress {
    fn from(pending: PendingUpload) -> InProgress {
        InProgress::of(&pending)
    }
}

/// The result of an attempt.
enum AttemptResult {
    Stored,
    /// It failed and waits for its retry. `stored_nothing`: the core stored no object meanwhile.
    RetryLater {
        stored_nothing: bool,
    },
    /// It is dead-lettered, lost, or left in the spool.
    GivenUp,
}

/// Makes the attempts of one worker and reports their outcomes.
struct Worker {
    uploader: Rc<Uploader>,
    number: usize,
    alarm: Alarm,
    /// The key of the current object; the buffer is reused.
    key: String,
    /// Failed attempts of this worker in a row during which the core stored nothing.
    failures: u32,
}

impl Worker {
    fn new(uploader: Rc<Uploader>, number: usize) -> Worker {
        Worker { uploader, number, alarm: Alarm::default(), key: String::new(), failures: 0 }
    }

    /// Uploads a batch. If its payloads are in the spool, an intent is synced there first, so that
    /// after a crash the next process uploads the same batch under the same key.
    async fn put_with_intent(
        &mut self,
        batch: Rc<Batch>,
        mut pending: PendingUpload,
        in_flight: InFlight<'_>,
    ) -> AttemptResult {
        let uploader = self.uploader.clone();
        let intent = pending.retry.as_mut().and_then(|retry| retry.intent.take());
        let (Some(spool), Some(members), None) = (&uploader.spool, batch.members(), &intent) else {
            return self.put(pending, in_flight, intent).await;
        };
        match spool.intend(batch.key(), &batch.form(), members).await {
            Ok(intent) => self.put(pending, in_flight, Some(intent)).await,
            Err(error) => {
                if let Some(batches) = &uploader.batches {
                    batches.park(batch.clone(), &error);
                }
                AttemptResult::GivenUp
            }
        }
    }

    /// Makes one attempt and completes the upload unless it is retried. `intent`: the spool's
    /// record that a batch is in doubt.
    async fn put(
        &mut self,
        pending: PendingUpload,
        in_flight: InFlight<'_>,
        intent: Option<Intent>,
    ) -> AttemptResult {
        let uploader = self.uploader.clone();
        self.write_key(&pending);
        let stored_before = uploader.cells.objects_stored.value();
        let began = rt::now();
        let attempt = AssertUnwindSafe(self.attempt(&pending, began)).catch_unwind().await;
        let (error, attempts) = match attempt {
            Ok(Ok(now)) => {
                let bytes = pending.upload.object(&self.key).bytes();
                uploader.put_stored(began, now, bytes);
                drop(in_flight);
                self.failures = 0;
                uploader.cells.objects_stored.inc();
                uploader.cells.object_bytes_stored.add(bytes);
                uploader.cells.payloads_stored.add(pending.upload.payloads());
                uploader.cells.bytes_stored.add(pending.upload.payload_bytes());
                complete(&uploader, &pending.upload, Outcome::Stored, intent);
                return AttemptResult::Stored;
            }
            Ok(Err(put)) => {
                let failed = FailedAttempt { put, stored_before, began };
                match self.failed(pending, failed, in_flight, intent) {
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
        self.give_up(GivenUp { upload: pending.upload, intent, error, attempts }).await
    }

    /// Writes the object's key, or repeats that of the first attempt.
    fn write_key(&mut self, pending: &PendingUpload) {
        let uploader = &self.uploader;
        if let Some(retry) = &pending.retry {
            self.key.clear();
            self.key.push_str(&retry.key);
            return;
        }
        let time = pending.upload.write_key(&uploader.origin, &mut self.key);
        if time == EventTime::Unreadable {
            pending.upload.note_unreadable_time(&uploader.origin, uploader.cells);
        }
    }

    /// One PUT within its timeouts; returns when it ended.
    async fn attempt(
        &mut self,
        pending: &PendingUpload,
        began: Instant,
    ) -> Result<Instant, Box<FailedPut>> {
        let uploader = &*self.uploader;
        let object = pending.upload.object(&self.key);
        let computed = pending.retry.as_ref().and_then(|retry| retry.sums.as_ref());
        let object = Object { sums: object.sums.or(computed), ..object };
        let timeouts = PutTimeouts::of(&uploader.config);
        let outcome = uploader.store.put_within(&mut self.alarm, began, timeouts, &object).await;
        let ended = outcome.as_ref().map_or_else(|failed| failed.at, |at| *at);
        uploader.cells.put_latency.observe(ended - began);
        if outcome.is_ok() {
            uploader.health.succeeded(ended);
        }
        outcome
    }

    /// Schedules the retry of an object that may be stored later.
    ///
    /// # Errors
    /// The store refuses this object, or has stored others for `RETRY_FOR` but never this one.
    fn failed(
        &mut self,
        pending: PendingUpload,
        failed: FailedAttempt,
        in_flight: InFlight<'_>,
        intent: Option<Intent>,
    ) -> Result<AttemptResult, GivenUp> {
        let uploader = &self.uploader;
        let FailedAttempt { put, stored_before, began } = failed;
        let FailedPut { error, at: now, sums } = *put;
        let PendingUpload { upload, retry } = pending;
        uploader.cells.put_errors[error.class as usize].inc();
        let healthy = uploader.health.healthy_time();
        let (attempts, healthy_before, stored_at_first) = match &retry {
            Some(t) => (t.failures.attempts + 1, t.healthy_before, t.stored_before),
            None => (1, healthy, stored_before),
        };
        let stored = uploader.cells.objects_stored.value();
        let stored_nothing = stored == stored_before;
        // A repeated failure of one object while others are stored says nothing about congestion.
        if error.congestion && (attempts == 1 || stored_nothing) {
            uploader.put_congested(began, now);
        }
        uploader.health.failed(&error, stored != stored_at_first);
        // `>`, not `>=`: even with RETRY_FOR=0s another PUT must have succeeded since. A spooled
        // object survives the process, so it may be retried for ever.
        let given_up = healthy - healthy_before > uploader.config.retry_for && !upload.is_spooled();
        if error.class == Class::Object || given_up {
            drop(in_flight);
            let error = error.to_string();
            return Err(GivenUp { upload, intent, error, attempts });
        }
        uploader.cells.put_retries.inc();
        if attempts == 1 {
            uploader.cells.payloads_retried.add(upload.payloads());
            uploader.cells.bytes_retried.add(upload.payload_bytes());
        }
        let stored_before = stored_at_first;
        let failures = Failures { attempts, last: error };
        let (key, sums) = match retry {
            Some(retry) => (retry.key, retry.sums.or(sums)),
            None => (self.key.as_str().into(), sums),
        };
        let retry = RetryState { failures, healthy_before, stored_before, key, sums, intent };
        let backoff = backoff(&uploader.config, attempts, rt::random_fraction());
        // Before `in_flight` is dropped: otherwise the payload's slot would look free in between.
        uploader.retry_after(PendingUpload { upload, retry: Some(Box::new(retry)) }, backoff);
        drop(in_flight);
        self.failures = if stored_nothing { self.failures + 1 } else { 0 };
        Ok(AttemptResult::RetryLater { stored_nothing })
    }

    /// Waits before the next attempt while the core stores nothing at all. The first failure causes
    /// no pause, because it may concern only that object.
    async fn pause(&self) {
        if let Some(failures) = self.failures.checked_sub(1).filter(|n| *n > 0) {
            let backoff = backoff(&self.uploader.config, failures, rt::random_fraction());
            self.uploader.pause_worker(self.number, backoff).await;
        }
    }

    /// Writes the dead letter of an object and completes it.
    async fn give_up(&mut self, given_up: GivenUp) -> AttemptResult {
        let uploader = self.uploader.clone();
        let GivenUp { upload, intent, error, attempts } = given_up;
        // The PUT has left the limit, and this worker will not use the room while it writes.
        uploader.wake_worker();
        let outcome = uploader
            .dead_letters
            .write(&upload, &uploader.origin, &self.key, error, attempts)
            .await;
        match &upload {
            // Everything else in its core directory waits for this batch, so it is retried.
            Upload::Batch(batch) if outcome == Outcome::Lost && batch.is_restored() => {
                // At a stop it stays in the spool, for the next process.
                if !uploader.stop.draining.get() {
                    uploader.retry_after(PendingUpload::fresh(upload), DEAD_LETTER_PAUSE);
                }
            }
            _ => complete(&uploader, &upload, outcome, intent),
        }
        AttemptResult::GivenUp
    }
}

/// A failed attempt.
struct FailedAttempt {
    put: Box<FailedPut>,
    /// Number of objects that the core had stored when it began.
    stored_before: u64,
    began: Instant,
}

/// An object that is not retried any more.
struct GivenUp {
    upload: Upload,
    intent: Option<Intent>,
    error: String,
    attempts: u32,
}

/// Reports the outcome of an object to the spool and to the requests that wait for it.
fn complete(uploader: &Uploader, upload: &Upload, outcome: Outcome, intent: Option<Intent>) {
    // Without a stored object or a dead letter the batch stays in doubt, for the next process.
    if let (Some(spool), Some(intent)) = (&uploader.spool, intent)
        && outcome != Outcome::Lost
    {
        spool.complete_batch(intent);
    }
    if let Upload::Batch(batch) = upload
        && batch.is_restored()
    {
        uploader.uploads.restored_done();
    }
    upload.complete(outcome);
}

/// Backoff with full jitter: a random share of `RETRY_BASE` doubled per attempt, at most
/// `RETRY_MAX` and at least a millisecond.
fn backoff(config: &Config, attempts: u32, dice: f64) -> Duration {
    let doubled = config.retry_base.saturating_mul(1 << (attempts - 1).min(20));
    doubled.min(config.retry_max).mul_f64(dice).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests;
