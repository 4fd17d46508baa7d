//! `millrace`: JSON collections over HTTP in, every payload to Amazon S3, one pinned executor per core.
//!
//! A room is a module with one job. Rooms stand on floors: imports point downwards, which `tests/structure.rs` holds. From
//! the top:
//!
//! | room | holds |
//! |---|---|
//! | [`cli`], [`commands`] | the command line and its subcommands |
//! | [`control`] | the executor beside the cores: start, stop, signals, reload, admin listener |
//! | [`preflight`] | what of the host would keep a server from working |
//! | [`core`] | one data core: what it is made of, the order of its start and of its stop |
//! | [`limits`] | budgets derived from the configuration |
//! | [`http`] | socket → answer |
//! | [`upload`] | queue → store: workers, retries, dead letters |
//! | [`batch`] | many payloads → one object |
//! | [`spool`] | payloads on disk before their 200 |
//! | [`deadletter`] | objects that the store refuses |
//! | [`store`] | one `put` per object: S3 by two clients, a directory, nothing |
//! | [`queue`] | admitted → popped |
//! | [`key`], [`config`] | names of objects; what the operator said |
//! | [`metrics`], [`deadline`], [`net`], [`log`], … | what all of them stand on |
//!
//! One request, read from the top:
//!
//! ```text
//!           core i (pinned executor) ────────────────────────────────────────────────────┐
//!  client → http/accept → conn → request → body → parse → queue/admission → fifo ─┐      │
//!           SO_REUSEPORT         the path of every request  all or nothing        │      │
//!                                                                                 ▼      │
//!           S3 ←── store/s3/direct ← store ← upload/worker ← upload/uploads ←─────┘      │
//! ```
//!
//! With `OBJECT=batch` one task (`batch::gather`) stands between queue and workers and gathers payloads into larger
//! objects, which `key` names. A request that asks for more than `queued` waits in `http::ack`: for the store, or for the
//! `spool`, which puts it on the disk before the queue, holds what the queue has no room for, and takes up what crashed
//! processes have left.
//!
//! Invariants, each kept where it is named:
//!
//! 1. Nothing acknowledged is silently lost: stored, spooled, dead-lettered, or counted and reported (`upload`, `core`).
//! 2. Memory is bounded, and a request is admitted whole or not at all (`limits`, `queue::admission`, `http::body`).
//! 3. No lock, no cross-core channel, no atomic read-modify-write per payload (`queue::fifo`, `metrics`).
//! 4. Every gauge returns to zero after every scenario (`queue::admission::Permit`, `metrics`).
//! 5. No two objects share a key; a retry or replay writes the same key again (`queue::job::Stamp`, `key`).
//! 6. A slow or dead store slows admission, never accepting, health checks or stopping (`upload`, `control`).

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
