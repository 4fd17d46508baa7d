//! Scenarios against the real binary over real sockets; one file per scenario, one folder per
//! subject, `support` for what they share.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests block: they are not on a core"
)]

mod support;

// What the repository's own files say.
mod clients;
mod deploy;
mod documents;
mod monitoring;
mod profiles;
mod secrets;
mod senders;
mod smoke;
mod tuning;

/// The requests of a client and their answers.
mod http {
    mod ack;
    mod backpressure;
    mod bodies;
    mod browsers;
    mod compression;
    mod contract;
    mod cors;
    mod deadlines;
    mod early_answers;
    mod forwarded;
    mod framing;
    mod h1spec;
    mod health;
    mod large_bodies;
    mod limits;
    mod listeners;
    mod meta;
    mod proxied;
    mod proxies;
    mod query_tokens;
    mod quotas;
    mod strict;
    mod tls;
    mod tls_clients;
    mod tls_drips;
    mod tls_files;
    mod tokens;
}

/// HTTP/2.
mod h2 {
    mod clients;
    mod ends;
    mod limits;
    mod requests;
    mod spec;
    mod waits;
}

/// Attacks, each with a good client beside it.
mod hostile {
    mod bombs;
    mod connections;
    mod floods;
    mod h2;
    mod memory;
    mod names;
    mod parsing;
    mod slow;
    mod smuggling;
    mod support;
    mod tls;
    mod tokens;
}

/// Objects that hold many payloads.
mod batch {
    mod acks;
    mod config;
    mod crash;
    mod faults;
    mod keys;
    mod memory;
    mod objects;
    mod readers;
    mod requests;
    mod sizes;
    mod spool;
    mod stop;
}

/// Payloads that are on this host's disk first.
mod spool {
    mod commands;
    pub mod crash;
    mod disk;
    mod durability;
    mod outage;
    mod removed;
}

/// Stores of every kind, what they refuse and how they fail.
mod store {
    pub mod bulk;
    mod dead_letter;
    mod faults;
    mod file_modes;
    mod log;
    mod slow;
    mod suite;
}

/// The store that is a bucket: requests on the wire, credentials, ways there.
mod s3 {
    mod answers;
    mod credentials;
    mod dial;
    mod faults;
    mod probe;
    mod proxy;
    mod server;
    mod unreached;
    pub mod wire;
}

/// The process: how it starts, runs beside others, and stops.
mod process {
    mod access;
    mod admin;
    mod cores;
    mod drain;
    mod environment;
    mod host;
    mod log;
    mod notify;
    mod page;
    mod pauses;
    mod peers;
    mod reload;
    mod restart;
    mod signals;
    mod start;
    mod stop_times;
    mod tap;
    mod terminal;
    #[cfg(feature = "top")]
    mod top;
    mod turns;
}

/// The commands beside the server.
mod commands {
    mod bench;
    mod bundle;
    mod check;
    mod command_line;
    mod health;
    mod progress;
}
