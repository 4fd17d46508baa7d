//! Batches: many payloads per object, and each payload in exactly one object, even after a crash.
//!
//! While a process runs, `members` records where the payloads of a batch are in the spool, and the
//! `journal` records that the batch is about to be stored and that it is done. After a crash the
//! `ledger` combines the journals. Batches whose outcome they do not know are `in_doubt`: the same
//! object is uploaded again under the same key.

mod in_doubt;
mod journal;
pub mod ledger;
mod members;

pub use in_doubt::BatchInDoubt;
pub use journal::{CoreDir, Intent};
pub use members::Members;
