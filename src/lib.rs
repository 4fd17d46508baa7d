//! `millrace`: JSON collections over HTTP in, every payload to Amazon S3, one pinned executor per
//! core.
//!
//! The modules form layers. Imports point downwards only; `tests/structure.rs` checks this. From
//! the top:
//!
//! | module | holds |
//! |---|---|
//! | [`cli`], [`commands`] | the command line and its subcommands |
//! | [`control`] | the executor beside the cores: start, stop, signals, reload, admin listener |
//! | [`preflight`] | checks of the host: what would keep a server from working |
//! | [`core`] | one data core: its parts, the order of its start and of its stop |
//! | [`limits`] | budgets derived from the configuration |
//! | [`http`] | socket → answer |
//! | [`upload`] | queue → store: workers, retries, dead letters |
//! | [`batch`] | many payloads → one object |
//! | [`spool`] | payloads on disk before their 200 |
//! | [`deadletter`] | objects that the store refuses |
//! | [`store`] | one `put` per object: S3 by two clients, a directory, or nothing |
//! | [`queue`] | admitted → popped |
//! | [`key`], [`config`] | names of objects; the operator's settings |
//! | [`metrics`], [`deadline`], [`net`], [`log`], … | the base of all of them |
//!
//! The path of one request:
//!
//! ```text
//!           core i (pinned executor) ────────────────────────────────────────────────────┐
//!  client → http/accept → conn → request → body → parse → queue/admission → fifo ─┐      │
//!           SO_REUSEPORT         the path of every request  all or nothing        │      │
//!                                                                                 ▼      │
//!           S3 ←── store/s3/direct ← store ← upload/worker ← upload/uploads ←─────┘      │
//! ```
//!
//! Start with `http/request`: handle → split → admit → enqueue → wait → answer.
//!
//! With `OBJECT=batch`, one task (`batch::gather`) between queue and workers gathers payloads into
//! larger objects, which `key` names. A request with an ack level above `queued` waits in
//! `http::ack`: for the store, or for the `spool`. The spool writes payloads to disk before they
//! are queued, holds those for which the queue has no room, and takes over the orphaned spools of
//! crashed processes.
//!
//! Invariants, each kept in the modules named:
//!
//! 1. Nothing acknowledged is silently lost: it is stored, spooled, dead-lettered, or counted and
//!    reported (`upload`, `core`).
//! 2. Memory is bounded, and a request is admitted whole or not at all (`limits`,
//!    `queue::admission`, `http::body`).
//! 3. No lock, no cross-core channel, no atomic read-modify-write per payload (`queue::fifo`,
//!    `metrics`).
//! 4. Every gauge returns to zero after every scenario (`queue::admission::Permit`, `metrics`).
//! 5. No two objects share a key; a retry or replay writes the same key again (`queue::job::Stamp`,
//!    `key`).
//! 6. A slow or dead store slows admission, but never accepting, health checks or stopping
//!    (`upload`, `control`).

#![deny(unsafe_code)]
#![deny(clippy::undocumented_unsafe_blocks)]
// These macros panic when the reader of the stream is gone; `commands::out` and `log` replace them.
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
pub mod control;
pub mod preflight;

pub mod core;
pub mod limits;

pub mod http;
pub mod queue;
pub mod upload;

pub mod batch;
pub mod key;
pub mod spool;

pub mod deadletter;
pub mod store;

pub mod config;

pub mod budget;
pub mod coding;
pub mod deadline;
pub mod log;
pub mod metrics;
pub mod net;
pub mod rt;
pub mod stop;
pub mod sync;
pub mod throttle;
