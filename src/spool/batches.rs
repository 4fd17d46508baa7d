//! Batches: payloads that are stored many to an object, each in exactly one object also after a
//! crash.
//!
//! While a process lives, `members` knows where the payloads of a batch lie in the spool, and the
//! `journal` notes that the batch is about to be stored and that it was. After a crash the `ledger`
//! is what the journals say together, and batches whose outcome they do not know are `in_doubt`:
//! they are stored again, the same object under the same key.

mod in_doubt;
mod journal;
pub mod ledger;
mod members;

pub use in_doubt::BatchInDoubt;
pub use journal::{CoreDir, Intent};
pub use members::Members;
