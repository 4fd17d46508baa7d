//! The spool.

pub mod format;
