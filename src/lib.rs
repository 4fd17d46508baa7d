//! `millrace`: JSON collections over HTTP in, every payload to Amazon S3, one pinned executor per core.
//!
//! The modules are declared in the order one request meets them.

#![deny(unsafe_code)]
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod aws;
pub mod config;
pub mod job;
pub mod limits;
pub mod parse;
pub mod store;
