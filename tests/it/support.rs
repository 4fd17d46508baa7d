//! What several tests stand on.
#![allow(dead_code, reason = "each test uses a part")]

pub mod child;
pub mod imds;
pub mod s3;
pub mod s3_client;
