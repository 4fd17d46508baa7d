//! Since when the oldest payload of a core waits for the store. Computed once a second, from what is
//! at the head of each place where payloads wait, so it costs the data path nothing.

use std::time::Instant;

use super::Uploads;
use super::uploader::Uploader;
use crate::metrics::CoreSample;
use crate::rt;

impl Uploader {
    /// To be called once a second: samples what the metrics show of this pipeline.
    pub fn sample(&self, now: Instant) {
        let sample = CoreSample {
            oldest_payload: self.oldest_unstored(),
            oldest_batch: self.batches.as_ref().and_then(|batches| batches.oldest_opened()),
            spool_full_in: self.spool.as_ref().and_then(|spool| spool.sample(now)),
        };
        self.cells.sampled.set(rt::unix_nanos(), sample);
    }

    /// When the oldest payload was admitted that is neither stored nor dead-lettered, in nanoseconds
    /// since 1970; `None`: there is none. Payloads that crashed processes have left count once they
    /// are read back, and their batches in doubt from then on.
    fn oldest_unstored(&self) -> Option<u64> {
        let queued = self.admission.queue().oldest();
        let batched = self.batches.as_ref().and_then(|batches| batches.oldest_payload());
        let on_disk = self.spool.as_ref().and_then(|spool| spool.oldest_on_disk());
        [queued, batched, on_disk, self.uploads.oldest()].into_iter().flatten().min()
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
