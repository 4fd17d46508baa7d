//! Scenarios against the real binary over real sockets; one file per scenario, `support` for what they share.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests block: they are not on a core"
)]

mod support;

mod ack;
mod admin;
mod backpressure;
mod batch;
mod batch_acks;
mod batch_config;
mod batch_crash;
mod batch_faults;
mod batch_keys;
mod batch_memory;
mod batch_readers;
mod batch_sizes;
mod batch_spool;
mod batch_stop;
mod bulk;
mod check;
mod clients;
mod command_line;
mod compression;
mod contract;
mod cores;
mod dead_letter;
mod deadlines;
mod documents;
mod drain;
mod early_answers;
mod environment;
mod faults;
mod file_modes;
mod framing;
mod host;
mod limits;
mod log;
mod pauses;
mod profiles;
mod reload;
mod restart;
mod signals;
mod smoke;
mod spool;
mod spool_commands;
mod spool_crash;
mod spool_disk;
mod spool_outage;
mod spool_removed;
mod start;
mod stop_times;
mod store_log;

mod s3_answers;
mod s3_credentials;
mod s3_dial;
mod s3_faults;
mod s3_probe;
mod s3_proxy;
mod s3_server;
mod s3_unreached;
mod s3_wire;
mod slow_store;
mod store_suite;
mod tokens;
mod tuning;
