//! Since when the oldest payload of a core waits for the store. Computed once a second, from what is
//! at the head of each place where payloads wait, so it costs the data path nothing.

use std::time::{Duration, Instant};

use super::Uploads;
use super::uploader::Uploader;
use crate::metrics::CoreSample;
use crate::rt;
use crate::spool::StoreLag;

impl Uploader {
    /// To be called once a second: samples what the metrics show of this pipeline.
    pub fn sample(&self, now: Instant) {
        let wall_now = rt::unix_nanos();
        let waits = self.oldest_waiting().map(|since| wall_now.saturating_sub(since));
        let lag = StoreLag {
            waits_for: Duration::from_nanos(waits.unwrap_or_default()),
            uploading: self.uploads.oldest(),
        };
        let sample = CoreSample {
            oldest_payload: self.oldest_unstored(),
            oldest_batch: self.batches.as_ref().and_then(|batches| batches.oldest_opened()),
            spool_full_in: self.spool.as_ref().and_then(|spool| spool.sample(now, lag)),
        };
        self.cells.sampled.set(wall_now, sample);
    }

    /// When the oldest payload was admitted that is neither uploaded nor in a batch.
    fn oldest_waiting(&self) -> Option<u64> {
        let on_disk = self.spool.as_ref().and_then(|spool| spool.oldest_on_disk());
        self.admission.queue().oldest().into_iter().chain(on_disk).min()
    }

    /// When the oldest payload was admitted that is neither stored nor dead-lettered, in nanoseconds
    /// since 1970; `None`: there is none. Payloads that crashed processes have left count once they
    /// are read back, and their batches in doubt from then on.
    fn oldest_unstored(&self) -> Option<u64> {
        let batched = self.batches.as_ref().and_then(|batches| batches.oldest_payload());
        [self.oldest_waiting(), batched, self.uploads.oldest()].into_iter().flatten().min()
    }
}

impl Uploads {
    /// The same of what is being uploaded or waits for a retry.
    fn oldest(&self) -> Option<u64> {
        let in_progress = self.in_progress.borrow();
        let uploading = in_progress.iter().flatten().map(|held| held.upload.admitted()).min();
        let retried = self.retry_queue.borrow().oldest();
        uploading.into_iter().chain(retried).min()
    }
}
