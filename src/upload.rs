//! From the queue to the store: the workers, what they upload, and how they handle failures.

mod at_once;
mod dead_letter;
mod failures;
mod health;
mod limit;
mod oldest;
pub mod restore;
mod retry_queue;
pub mod source;
pub mod uploader;
mod uploads;
pub mod worker;

pub use dead_letter::{DeadLetterWriter, record_loss};
pub use failures::Failures;
pub use health::StoreHealth;
pub use retry_queue::{PendingUpload, RetryState};
pub use uploader::{InFlight, Uploader, wake_for_retries};
pub use uploads::Uploads;
pub use worker::{InProgress, worker_loop};

/// File descriptors that a worker may need at once: its connection or temporary file, and a stale
/// connection being replaced or the dead letter being written.
pub const FILES_PER_WORKER: usize = 2;
