//! Batches that a crashed process had begun and not finished: the same payloads, made into an object in the same way, are put
//! again under the same key. What the store may have of it is replaced by the same, or with `S3_IF_NONE_MATCH` kept.
//!
//! A few at a time per core ([`RESTORERS`]), by the workers. Each takes the memory of one object of the process that
//! began it, and is not charged to `BATCH_MEMORY`: it can neither be split nor wait behind what waits for it.

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

/// Batches put again at a time: with many small ones each waits for the store, and all else of their directory for them.
pub const RESTORERS: usize = 4;

/// Before what a disk did not do is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// Reads of one member, before the batch is left to the next start.
const READS_MAX: u32 = 5;

/// The task: puts one after the other, until the stop begins.
pub async fn restore(uploader: Rc<Uploader>) {
    let Some(spool) = uploader.spool.clone() else { return };
    while let Some(begun) = spool.next_in_doubt().await {
        let key = begun.key().to_owned();
        match restored(begun, &uploader.origin, uploader.stamps.take(1), uploader.store.summing())
            .await
        {
            Ok((begun, mut batch)) => {
                // The workers may have ended: it stays in the spool.
                if uploader.stop.draining.get() {
                    return;
                }
                if batch.payloads() > 0 {
                    let outcome = RequestOutcome::of(1);
                    batch.report_to(outcome.clone());
                    uploader.uploads.submit_restored(Upload::Batch(Rc::new(batch)));
                    outcome.wait_for_all(&uploader.stop.uploads_ended).await;
                }
                finish(begun).await;
            }
            Err(why) => tracing::error!(
                "{key} was begun by a process that is no more, and stays in the spool with all of its \
                 core's directory until the next start: {why}"
            ),
        }
    }
}

/// It is done with; tried until the disk has it, for before that nothing else of its directory is touched.
async fn finish(mut begun: BatchInDoubt) {
    while let Err(error) = begun.complete().await {
        tracing::warn!("{} is stored, but that could not be noted: {error}", begun.key());
        sleep(PAUSE).await;
    }
}

/// What is to be done, a slice at a time.
async fn work(encoder: &mut Encoder, summing: &mut Summing) {
    while encoder.due_bytes() > 0 {
        encoder.work(&mut |bytes| summing.update(bytes));
        yield_now().await;
    }
}

/// The object again.
///
/// # Errors
/// How it was made is not known here, or it cannot be read.
pub async fn restored(
    mut begun: BatchInDoubt,
    origin: &Origin,
    stamp: Stamp,
    mut summing: Summing,
) -> Result<(BatchInDoubt, Batch), String> {
    let form: BatchFormat = begun.form().parse()?;
    let mut encoder = Encoder::new(form.compression, &EncoderShared::new());
    let (mut payloads, mut payload_bytes, mut failed_reads) = (0, 0, 0);
    loop {
        match begun.next().await {
            Ok(Some(payload)) => {
                encoder.push(payload);
                payloads += 1;
                payload_bytes += payload.len() as u64;
            }
            Ok(None) => break,
            // Counted and logged; the rest still comes.
            Err(error) if error.kind() == ErrorKind::InvalidData => {}
            Err(error) => {
                tracing::warn!("{} cannot be read now: {error}", begun.key());
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
    let batch = Batch::restored(begun.key(), stem, form, encoder, sums, [payloads, payload_bytes]);
    Ok((begun, batch))
}
