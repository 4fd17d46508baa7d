//! The lean S3 client: a single-part PUT laid out from a template, signed with the day's key, on the
//! core's own kept-alive connection.

mod encode;
mod reply;
mod request;
mod sign;

pub use encode::escape_path;
pub use reply::{Malformed, Reply, ReplyReader, error_document};
pub use request::{Integrity, Place, Put, Template};
pub use sign::{Identity, Signer, Unsendable};
