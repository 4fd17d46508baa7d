//! The end of one core's spool: a stop writes the payloads that are only in memory to the disk, for
//! the next process.

use std::rc::Rc;

use super::batches::Members;
use super::format;
use super::segment::Payloads;
use super::{GROUP_BYTES_MAX, Spool, SpoolError};
use crate::queue::job::Job;

/// A batch that is only in memory, split into its payloads.
pub struct UnspooledBatch {
    /// Key of its object, which may already be in the store.
    pub key: String,
    /// Form of the object, as an intent states it.
    pub form: String,
    /// Its payloads in the order of the object's lines.
    pub jobs: Vec<Job>,
}

impl Spool {
    /// The last step of a stop, once this spool and the queue are closed and no task works on
    /// payloads any longer. Spools `rest` and then the batches that `next` returns, one by one, and
    /// writes checkpoints. Spooled payloads are taken out of `rest`. What remains in `rest`, and
    /// batches that were not requested from `next`, could not be spooled.
    ///
    /// `members` belong to batches whose files were removed.
    pub async fn stop(
        &self,
        rest: &mut Vec<Job>,
        members: &[Rc<Members>],
        mut next: impl FnMut() -> Option<UnspooledBatch>,
    ) {
        for task in self.tasks.take() {
            task.await;
        }
        self.release_removed(rest, members).await;
        while !rest.is_empty() {
            if self.keep_jobs(rest, None).await.is_err() {
                break;
            }
        }
        // One at a time: splitting a batch needs several times its memory.
        while rest.is_empty()
            && let Some(batch) = next()
        {
            if self.keep_batch(batch, rest).await.is_err() {
                break;
            }
        }
        self.finish_files().await;
    }

    /// Spools the payloads of a batch and records that they form one object: it may be in flight to
    /// the store, so the next process must upload it under the same key. Payloads that could not be
    /// spooled stay in `rest`.
    async fn keep_batch(
        &self,
        batch: UnspooledBatch,
        rest: &mut Vec<Job>,
    ) -> Result<(), SpoolError> {
        let UnspooledBatch { key, form, jobs } = batch;
        let payloads = jobs.len() as u64;
        *rest = jobs;
        let mut members = Members::of(self.own.dir());
        while !rest.is_empty() {
            self.keep_jobs(rest, Some(&mut members)).await?;
        }
        // If an intent has no room for all members, or there are none, each payload becomes a
        // single object.
        if members.len() == payloads && !members.is_empty() {
            // Dropping the intent leaves the batch to the next process.
            let _intent = self.intend(&key, &form, &Rc::new(members)).await?;
        }
        Ok(())
    }

    /// Spools the first of `rest`, as many as share a commit group, and adds them to `members`.
    async fn keep_jobs(
        &self,
        rest: &mut Vec<Job>,
        members: Option<&mut Members>,
    ) -> Result<(), SpoolError> {
        let mut body = 0;
        // A record has one stamp and the values of one request for all its payloads.
        let follows = |a: &Job, b: &Job| {
            a.stamp.unix_nanos == b.stamp.unix_nanos
                && a.stamp.seq + 1 == b.stamp.seq
                && a.payload.values() == b.payload.values()
        };
        let mut count = 0;
        for run in rest.chunk_by(follows) {
            let bytes = run.iter().map(|job| job.payload.len()).sum();
            let record = format::record_bytes(run.len(), bytes, run[0].payload.values());
            // A run that is larger than a shared group gets its own.
            if count > 0 && body + record > GROUP_BYTES_MAX {
                break;
            }
            body += record;
            count += run.len();
        }
        let bytes = rest[..count].iter().map(|job| job.payload.len() as u64).sum();
        let payloads = Payloads { count: count as u32, bytes };
        let write = |mut out: &mut [u8]| {
            for run in rest[..count].chunk_by(follows) {
                let payloads = run.iter().map(|job| &*job.payload);
                let values = run[0].payload.values();
                let written = format::write_record(out, run[0].stamp, values, payloads);
                out = &mut out[written..];
            }
        };
        let place = self.put_records(body, payloads, write).await?;
        if let Some(members) = members {
            let (dir, segment) = (self.own.dir().clone(), place.segment.clone());
            let mut ordinal = place.first_ordinal;
            for run in rest[..count].chunk_by(follows) {
                let (dir, segment) = (dir.clone(), segment.clone());
                let record = self.record(dir, segment, ordinal, run[0].stamp.seq, None);
                let all = run.iter().all(|job| members.push(&record, job));
                ordinal += run.len() as u32;
                if !all {
                    break;
                }
            }
        }
        rest.drain(..count);
        Ok(())
    }
}
