//! `millrace`: JSON collections over HTTP in, every payload to Amazon S3, one pinned executor per core.
//!
//! One request, in the order the modules are declared:
//!
//! ```text
//!           core i (pinned executor) ──────────────────────────────────────────────┐
//!  client → accept → conn (HTTP) → body → parse → admit → ring → worker → store ──→ S3
//!           SO_REUSEPORT                  spans   all or  fixed  fixed    put + retry
//!           listener i                            nothing slots  number   → stored | dead letter
//! ```
//!
//! With `OBJECT=batch` one task (`batch`) stands between ring and workers and gathers payloads into larger objects, which
//! `key` names.
//!
//! A request that asks for more than `queued` waits in `ack`: for the store, or for the `spool`, which puts it on the disk
//! before the ring, holds what the ring has no room for, and takes up what crashed processes have left.
//!
//! `shard` builds one such core and stops it; `control` is the unpinned executor beside the cores, which owns
//! the admin listener, names and credentials. `main` installs the handlers of `signals`, reads the configuration, looks at
//! the host (`preflight`) and hands over to `control`; `reload` does what SIGHUP asks for.
//!
//! Invariants, each kept where it is named:
//!
//! 1. Nothing acknowledged is silently lost: stored, spooled, dead-lettered, or counted and reported (`worker`, `shard`).
//! 2. Memory is bounded, and a request is admitted whole or not at all (`limits`, `admit`, `body`).
//! 3. No lock, no cross-core channel, no atomic read-modify-write per payload (`ring`, `metrics`).
//! 4. Every gauge returns to zero after every scenario (`admit::Permit`, `metrics`).
//! 5. No two objects share a key; a retry or replay writes the same key again (`job::Stamp`, `key`).
//! 6. A slow or dead store slows admission, never accepting, health checks or stopping (`worker`, `control`).

#![deny(unsafe_code)]
#![deny(clippy::undocumented_unsafe_blocks)]
// They panic when whoever reads the stream is gone: `commands::out` and `log` are there instead.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        clippy::print_stdout,
        reason = "unit tests block and print: they are not on a core"
    )
)]

pub mod cli;
pub mod commands;
pub mod config;
pub mod limits;
pub mod preflight;

pub mod control;

pub mod core;

pub mod http;

pub mod queue;

pub mod batch;
pub mod key;

pub mod upload;

pub mod spool;

pub mod deadletter;
pub mod store;

pub mod net;

pub mod budget;
pub mod coding;
pub mod deadline;
pub mod log;
pub mod metrics;
pub mod rt;
pub mod sync;
pub mod throttle;
