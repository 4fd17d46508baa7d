//! `millrace`: JSON over HTTP in, every payload to S3 or what speaks its protocol, one pinned executor
//! per core.
//!
//! Modules form layers: a module imports only modules of lower layers. `tests/structure.rs` checks
//! this and lists the one exception. Top layer first:
//!
//! | module | contents |
//! |---|---|
//! | `cli`, `commands` | the command line and its subcommands |
//! | `control` | the executor beside the cores: start, stop, signals, reload, admin listener, takeover of spools |
//! | `preflight` | checks of the host before a start |
//! | `core` | one data core: its parts, and the order in which they start and stop |
//! | `limits` | budgets derived from the configuration |
//! | `http` | from the socket to the answer |
//! | `tls` | certificates, and sessions over sockets |
//! | `upload` | from the queue to the store: workers, retries, dead letters |
//! | `batch` | many payloads in one object |
//! | `spool` | payloads on this host's disk |
//! | `deadletter` | objects that the store refuses |
//! | `store` | one `put` per object: S3 by two clients, a directory, nothing |
//! | `queue` | admission, the queue itself, and what is in it |
//! | `config`, `key` | the settings as types; object names |
//! | `quota` | what a client may send, and how cores share it |
//! | `budget`, `metrics`, `deadline`, `net`, `log`, … | what all of them use |
//!
//! The path of one request with one object per payload:
//!
//! ```text
//!           core i (pinned executor) ────────────────────────────────────────────────────┐
//!  client → http/accept → conn → request → body → parse → queue/admission → run  ─┐      │
//!           SO_REUSEPORT         the path of every request  all or nothing        │      │
//!                                                                                 ▼      │
//!           S3 ←── store/s3/direct ← store ← upload/worker ← upload/uploader ←────┘      │
//! ```
//!
//! Start with `http/request`, which has the order of the steps at its head.
//!
//! With `OBJECT=batch`, one task (`batch::gather`) takes the payloads out of the queue and gathers
//! them into larger objects; the workers then take these. `key` names the objects. A request that
//! asks for more than `queued` waits in `http::ack`: for the store, or for the `spool`. The spool
//! writes payloads to the disk before they are queued, keeps those for which the queue has no room,
//! and takes over the spools of crashed processes.
//!
//! Invariants, each kept where it is named:
//!
//! 1. Nothing acknowledged is silently lost: stored, spooled, dead-lettered, or counted and
//!    reported (`upload`, `core`).
//! 2. Memory is bounded, and a request is admitted whole or not at all (`limits`,
//!    `queue::admission`, `http::body`).
//! 3. No lock, no cross-core channel, no atomic read-modify-write per payload (`queue::job_queue`,
//!    `metrics`).
//! 4. Every gauge returns to zero after every scenario (`queue::admission::Permit`, `metrics`).
//! 5. No two objects share a key; a retry or replay writes the same key again (`queue::job::Stamp`,
//!    `key`).
//! 6. A slow or dead store slows admission, never accepting, health checks or stopping (`upload`,
//!    `control`).

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

mod process;

mod alloc;
mod batch;
mod budget;
mod cli;
mod coding;
mod commands;
mod config;
mod control;
mod core;
mod deadletter;
mod deadline;
mod http;
mod key;
mod limits;
mod log;
mod metrics;
mod net;
mod ownership;
mod preflight;
mod queue;
mod quota;
mod rt;
mod spool;
mod stop;
mod store;
mod sync;
mod throttle;
mod tls;
mod upload;

#[doc(hidden)]
pub mod internals;

pub use alloc::Allocator;
pub use process::main;
