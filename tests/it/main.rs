//! Integration tests, one binary; each module's head says what it shows and how.

mod s3_credentials;
mod s3_faults;
mod s3_probe;
mod s3_wire;
mod store_suite;
mod support;
