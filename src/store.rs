//! The store seam: one `put` per object, and one table that says what a failure means.

pub mod classify;
pub mod clock;
pub(crate) mod connector;
pub mod dial;
pub(crate) mod keys;
pub(crate) mod pool;
pub mod s3;
pub(crate) mod tls;

use crate::job::Payload;

/// What a failed put means for the payload, and for everything behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// This object will never be taken (too large, invalid argument, refused key): dead letter at once.
    Object,
    /// Worth another try with backoff: timeouts, connection errors, 5xx, throttling.
    Transient,
    /// Nothing can be stored until an operator or the far side changes something: held and retried.
    StoreWide,
}

/// Why a put failed. `code` is the store's own short code (`SlowDown`, `NoSuchBucket`, `ENOSPC`, …).
#[derive(Clone, Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct PutError {
    pub class: Class,
    pub code: String,
    pub message: String,
}

/// Where payloads go. Keys are relative to the store's own prefix.
pub enum Store {
    Null,
    S3(s3::S3Store),
}

impl Store {
    /// Stores `payload` under `key`; `Ok` means the store confirmed it. One attempt, no retry, no deadline:
    /// the worker owns both and may drop the future at any time.
    pub async fn put(&self, key: &str, payload: &Payload) -> Result<(), PutError> {
        match self {
            Store::Null => Ok(()),
            Store::S3(s3) => s3.put(key, payload).await,
        }
    }
}
