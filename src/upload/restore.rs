//! Restores the batches that a crashed process left in doubt. The same payloads become the same
//! object again, and it is uploaded under the same key. An object that is in the store already is
//! replaced by the same bytes, or kept with `S3_IF_NONE_MATCH`.
//!
//! The workers upload a few at a time per core ([`RESTORERS`]). Each takes as much memory as in the
//! process that made it, and is not charged to `BATCH_MEMORY`: it cannot be split, and must not
//! wait for payloads that wait for it.

use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use crate::rt::sleep;
use crate::rt::yield_now;

use super::uploader::Uploader;
use crate::batch::Batch;
use crate::batch::encoder::{Encoder, EncoderShared};
use crate::config::BatchFormat;
use crate::queue::job::{Origin, Stamp};
use crate::queue::outcome::RequestOutcome;
use crate::spool::BatchInDoubt;
use crate::store::Summing;
use crate::upload::source::Upload;

/// Batches restored at a time. Each waits for the store, and everything else in its core directory
/// waits for it, so with many small ones a single restorer would be slow.
pub const RESTORERS: usize = 4;

/// Pause before a failed disk operation is retried.
const PAUSE: Duration = Duration::from_secs(1);
/// Failed reads after which the batch is left to the next start.
const READS_MAX: u32 = 5;

/// The task: restores one batch after another until the stop begins.
pub async fn restore(uploader: Rc<Uploader>) {
    let Some(spool) = uploader.spool.clone() else { return };
    while let Some(in_doubt) = spool.next_in_doubt().await {
        let key = in_doubt.key().to_owned();
        match restored(
            in_doubt,
            &uploader.origin,
            uploader.stamps.take(1),
            uploader.store.summing(),
        )
        .await
        {
            Ok((in_doubt, mut batch)) => {
                // The workers may have ended, so the batch stays in the spool.
                if uploader.stop.draining.get() {
                    return;
                }
                if batch.payloads() > 0 {
                    let outcome = RequestOutcome::of(1);
                    batch.report_to(outcome.clone());
                    uploader.uploads.submit_restored(Upload::Batch(Rc::new(batch)));
                    outcome.wait_for_all(&uploader.stop.uploads_ended).await;
                }
                finish(in_doubt).await;
            }
            Err(why) => tracing::error!(
                "{key} is in doubt and cannot be restored: it stays in the spool, with everything else in \
                 its core's directory, until the next start: {why}"
            ),
        }
    }
}

/// Records that the batch is done. Retried until the disk has it, because nothing else in its core
/// directory is replayed before.
async fn finish(mut in_doubt: BatchInDoubt) {
    while let Err(error) = in_doubt.complete().await {
        tracing::warn!(
            "{} is stored, but the spool could not record that: {error}",
            in_doubt.key()
        );
        sleep(PAUSE).await;
    }
}

/// Compresses and sums what was pushed, a slice at a time.
async fn work(encoder: &mut Encoder, summing: &mut Summing) {
    while encoder.due_bytes() > 0 {
        encoder.work(&mut |bytes| summing.update(bytes));
        yield_now().await;
    }
}

/// Makes the object again from its members.
///
/// # Errors
/// Its form is unknown to this version, or a member cannot be read.
pub async fn restored(
    mut in_doubt: BatchInDoubt,
    origin: &Origin,
    stamp: Stamp,
    mut summing: Summing,
) -> Result<(BatchInDoubt, Batch), String> {
    let form: BatchFormat = in_doubt.form().parse()?;
    let mut encoder = Encoder::new(form.compression, &EncoderShared::new());
    let (mut payloads, mut payload_bytes, mut failed_reads) = (0, 0, 0);
    loop {
        match in_doubt.next().await {
            Ok(Some(payload)) => {
                encoder.push(payload);
                payloads += 1;
                payload_bytes += payload.len() as u64;
            }
            Ok(None) => break,
            // The spool has counted and logged the damage; the other members still come.
            Err(error) if error.kind() == ErrorKind::InvalidData => {}
            Err(error) => {
                tracing::warn!("{} cannot be read now: {error}", in_doubt.key());
                failed_reads += 1;
                if failed_reads == READS_MAX {
                    return Err(format!("a member cannot be read: {error}"));
                }
                sleep(PAUSE).await;
            }
        }
        work(&mut encoder, &mut summing).await;
    }
    encoder.finish();
    work(&mut encoder, &mut summing).await;
    let (stem, sums) = (origin.stem(stamp), summing.finish());
    let batch =
        Batch::restored(in_doubt.key(), stem, form, encoder, sums, [payloads, payload_bytes]);
    Ok((in_doubt, batch))
}
