//! What is not stored is dead-lettered. If that fails too, the loss is logged and counted.

use std::cell::RefCell;

use crate::sync::Semaphore;

use super::source::Upload;
use crate::deadletter::{DeadLetter, DeadLetters};
use crate::metrics::CoreCells;
use crate::queue::job::Origin;
use crate::queue::outcome::Outcome;
use crate::throttle::Throttle;

/// Writes the dead letters of one pipeline.
pub struct DeadLetterWriter {
    pub directory: DeadLetters,
    /// The store as configured, which each dead letter names.
    pub store_name: String,
    /// Serializes the dead letters of batches, because each takes a copy of the object.
    turn: Semaphore,
    log: RefCell<Throttle>,
    cells: &'static CoreCells,
}

impl DeadLetterWriter {
    pub fn new(
        directory: DeadLetters,
        store_name: String,
        cells: &'static CoreCells,
    ) -> DeadLetterWriter {
        let (turn, log) = (Semaphore::new(1), RefCell::default());
        DeadLetterWriter { directory, store_name, turn, log, cells }
    }

    /// Writes the dead letter of an object with this key, which failed `attempts` times, on the
    /// executor's blocking thread. `own` is the core's origin.
    pub(super) async fn write(
        &self,
        upload: &Upload,
        own: &Origin,
        key: &str,
        error: String,
        attempts: u32,
    ) -> Outcome {
        let (payloads, bytes) = (upload.payloads(), upload.payload_bytes());
        let object = upload.object(key);
        let letter = DeadLetter::now(&object, payloads, self.store_name.clone(), error, attempts)
            .traced(upload.traces());
        if !letter.traceparents.is_empty() {
            tracing::debug!(
                key,
                traceparents = letter.traceparents.join(","),
                "dead letter of traces"
            );
        }
        self.log.borrow_mut().warn(|| format!("dead letter {key}: {}", letter.error));
        let stem = upload.stem(own);
        let _turn = match upload {
            Upload::Payload(_) => None,
            Upload::Batch(_) => self.turn.acquire_permit(1).await.ok(),
        };
        match self.directory.write_off_core(stem, letter, object.body).await {
            Ok(()) => {
                self.cells.payloads_dead_lettered.add(payloads);
                self.cells.bytes_dead_lettered.add(bytes);
                Outcome::DeadLettered
            }
            Err(error) if upload.is_spooled() => {
                tracing::error!(
                    key,
                    payloads,
                    "its dead letter could not be written, so it stays in the spool until the next start: {error}"
                );
                Outcome::Lost
            }
            Err(error) => {
                record_loss(self.cells, key, payloads, bytes, &error.to_string());
                Outcome::Lost
            }
        }
    }
}

/// Logs that an object is lost, with its number of payloads and their bytes, and counts the loss.
pub fn record_loss(cells: &CoreCells, key: &str, payloads: u64, bytes: u64, why: &str) {
    tracing::error!(key, payloads, bytes, why, "payload lost");
    cells.payloads_lost.add(payloads);
    cells.bytes_lost.add(bytes);
}
