//! Restores the batches that a crashed process left in doubt. The same payloads become the same
//! object again, and it is uploaded under the same key. An object that is in the store already is
//! replaced by the same bytes, or kept with `S3_IF_NONE_MATCH`.
//!
//! The workers upload a few at a time per core ([`RESTORERS`]). Each takes as much memory as in the
//! process that made it, and is not charged to `BATCH_MEMORY`: it cannot be split, and must not
//! wait for payloads that wait for it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::time::Duration;

use futures_lite::FutureExt;

use crate::rt::sleep;
use crate::rt::yield_now;

use super::uploader::Uploader;
use crate::batch::Batch;
use crate::batch::encoder::{Encoder, EncoderShared};
use crate::config::BatchFormat;
use crate::queue::job::{Origin, Stamp};
use crate::queue::outcome::RequestOutcome;
use crate::spool::{BatchInDoubt, Spool};
use crate::store::Summing;
use crate::throttle::Throttle;
use crate::upload::source::Upload;

/// Batches restored at a time. Each waits for the store, and everything else in its core directory
/// waits for it, so with many small ones a single restorer would be slow.
pub const RESTORERS: usize = 4;

/// Pause before a failed disk operation is retried.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a batch is not restored.
enum NotRestored {
    /// The disk does not let it be read now.
    Unreadable(io::Error),
    /// It has a form that this version does not know.
    Form(String),
}

/// The task: restores one batch after another until the stop begins. One that cannot be read waits
/// behind the others, and is tried again after a pause until it can be.
pub async fn restore(uploader: Rc<Uploader>) {
    let Some(spool) = uploader.spool.clone() else { return };
    let unreadable = &uploader.cells.spool_unreadable;
    let mut log = Throttle::per_minute();
    let mut postponed = VecDeque::new();
    while let Some((mut in_doubt, was_postponed)) = next(&spool, &mut postponed).await {
        let stamp = uploader.stamps.take(1);
        let outcome =
            restored(&mut in_doubt, &uploader.origin, stamp, uploader.store.summing()).await;
        match (was_postponed, matches!(outcome, Err(NotRestored::Unreadable(_)))) {
            (false, true) => unreadable.add(1),
            (true, false) => unreadable.sub(1),
            _ => {}
        }
        match outcome {
            Ok(batch) => {
                // The workers may have ended, so the batch stays in the spool.
                if uploader.stop.draining.get() {
                    return;
                }
                upload(&uploader, batch).await;
                finish(in_doubt).await;
            }
            Err(NotRestored::Unreadable(error)) => {
                let (key, again) = (in_doubt.key(), PAUSE.as_secs());
                log.error(|| {
                    format!(
                        "{key} is in doubt and cannot be read: {error}; tried again after {again} s"
                    )
                });
                in_doubt.rewind();
                postponed.push_back(in_doubt);
            }
            Err(NotRestored::Form(why)) => tracing::error!(
                "{} is in doubt and cannot be restored: it stays in the spool, with everything else in \
                 its core's directory, until the next start: {why}",
                in_doubt.key()
            ),
        }
    }
}

/// The next batch, and whether it was postponed. `None` once a stop has begun.
async fn next(
    spool: &Rc<Spool>,
    postponed: &mut VecDeque<BatchInDoubt>,
) -> Option<(BatchInDoubt, bool)> {
    let new = async { Some((spool.next_in_doubt().await?, false)) };
    if postponed.is_empty() {
        return new.await;
    }
    let again = async {
        sleep(PAUSE).await;
        postponed.pop_front().map(|in_doubt| (in_doubt, true))
    };
    new.or(again).await
}

async fn upload(uploader: &Uploader, mut batch: Batch) {
    if batch.payloads() == 0 {
        return;
    }
    let outcome = RequestOutcome::of(1);
    batch.report_to(outcome.clone());
    uploader.uploads.submit_restored(Upload::Batch(Rc::new(batch)));
    outcome.wait_for_all(&uploader.stop.uploads_ended).await;
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
async fn restored(
    in_doubt: &mut BatchInDoubt,
    origin: &Origin,
    stamp: Stamp,
    mut summing: Summing,
) -> Result<Batch, NotRestored> {
    let form: BatchFormat = in_doubt.form().parse().map_err(NotRestored::Form)?;
    let mut encoder = Encoder::new(form.compression, &EncoderShared::new());
    let (mut payloads, mut payload_bytes) = (0, 0);
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
            Err(error) => return Err(NotRestored::Unreadable(error)),
        }
        work(&mut encoder, &mut summing).await;
    }
    encoder.finish();
    work(&mut encoder, &mut summing).await;
    let (stem, sums) = (origin.stem(stamp), summing.finish());
    Ok(Batch::restored(in_doubt.key(), stem, form, encoder, sums, [payloads, payload_bytes]))
}
