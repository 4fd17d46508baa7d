//! From the queue to the store: workers, what they put, and what they do about failures.

mod aside;
mod failures;
mod health;
mod letters;
mod limit;
pub mod restore;
pub mod source;
pub mod uploader;
mod uploads;
pub mod worker;

pub use aside::{Trouble, Upload};
pub use failures::Failures;
pub use health::Health;
pub use letters::{Letters, lose};
pub use uploader::Uploader;
pub use uploads::{InFlight, Uploads, notice_retries};
pub use worker::{InHand, worker_loop};

/// Descriptors a worker may need at once: its connection or temporary file, and a stale one being replaced or
/// the dead letter being written.
pub const FILES_PER_WORKER: usize = 2;
