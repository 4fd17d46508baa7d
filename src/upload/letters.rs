//! What is not stored: written to the dead letter or, where even that fails, said and counted.

use std::cell::RefCell;

use crate::sync::Semaphore;

use super::source::Parcel;
use crate::deadletter::{DeadLetters, Letter};
use crate::metrics::CoreCells;
use crate::queue::job::Origin;
use crate::queue::outcome::Fate;
use crate::throttle::Throttle;

/// One pipeline's way to the dead letters.
pub struct Letters {
    pub dead_letters: DeadLetters,
    /// The store as configured, which a letter names.
    pub store_name: String,
    /// For a batch's letter, which takes a copy of the object: one at a time.
    turn: Semaphore,
    log: RefCell<Throttle>,
    cells: &'static CoreCells,
}

impl Letters {
    pub fn new(
        dead_letters: DeadLetters,
        store_name: String,
        cells: &'static CoreCells,
    ) -> Letters {
        let (turn, log) = (Semaphore::new(1), RefCell::default());
        Letters { dead_letters, store_name, turn, log, cells }
    }

    /// Writes the letter of an object with this key, which failed `attempts` times, on the executor's blocking thread.
    /// `own` is the core's origin.
    pub(super) async fn write(
        &self,
        parcel: &Parcel,
        own: &Origin,
        key: &str,
        error: String,
        attempts: u32,
    ) -> Fate {
        let (payloads, bytes) = (parcel.payloads(), parcel.payload_bytes());
        let object = parcel.object(key);
        let letter = Letter::now(&object, payloads, self.store_name.clone(), error, attempts);
        self.log.borrow_mut().warn(|| format!("dead letter {key}: {}", letter.error));
        let stem = parcel.stem(own);
        let _turn = match parcel {
            Parcel::Payload(_) => None,
            Parcel::Batch(_) => self.turn.acquire_permit(1).await.ok(),
        };
        match self.dead_letters.write_off_core(stem, letter, object.body).await {
            Ok(()) => {
                self.cells.payloads_dead_lettered.add(payloads);
                self.cells.bytes_dead_lettered.add(bytes);
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
                lose(self.cells, key, payloads, bytes, &error.to_string());
                Fate::Lost
            }
        }
    }
}

/// The last resort: says which object with how many payloads, of how many bytes, is gone, and counts it.
pub fn lose(cells: &CoreCells, key: &str, payloads: u64, bytes: u64, why: &str) {
    tracing::error!(key, payloads, bytes, why, "payload lost");
    cells.payloads_lost.add(payloads);
    cells.bytes_lost.add(bytes);
}
