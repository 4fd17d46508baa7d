//! millrace's product as a good engineer builds it on tokio, to compare with: multi-thread runtime,
//! hyper 1, one shared bounded queue, `MAX_WORKERS` × cores worker tasks, `aws-sdk-s3` with its
//! default HTTP client, millrace's allocator.
//!
//! From the library come configuration, parsing, keys, what makes a batch and the text of every
//! answer, so the two differ in the runtime, in the queue and in the upload. Where tokio code can
//! be cheaper than ours it is: a body that arrived in one piece is not copied, hyper's read buffer
//! may grow to its default size, nothing is timed for a histogram.
//!
//! The same: statuses, all-or-nothing admission by slots and bytes, `ENQUEUE_WAIT` in order of
//! arrival, 413, 503 with `retry-after`, TLS by tokio-rustls under the library's own settings, tokens, the budgets of connections and bodies,
//! `PUT_TIMEOUT`, retry with backoff, a drain on SIGTERM. Not built, because no lane measures it:
//! `file:` stores, compressed bodies (415), dead letters (a payload that is given up is counted as
//! lost and the exit status is 1), lingering after an early answer, 408 for a late head.

mod admin;
mod admit;
mod batch;
mod conn;
mod lean;
mod serve;
mod store;
mod worker;

use std::process::ExitCode;

use millrace::internals::cli::{self, Command};
use millrace::internals::config::Config;

use crate::store::Put;

#[global_allocator]
static ALLOCATOR: millrace::Allocator = millrace::Allocator;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything accepted was stored.
fn run() -> Result<bool, String> {
    let (put, args) = Put::from_args(std::env::args_os())?;
    let invocation = cli::parse(args).unwrap_or_else(|error| error.exit());
    if invocation.command != Command::Serve {
        return Err("the tokio variant only serves".into());
    }
    let (config, _) = Config::load(&invocation.flags).map_err(|errors| errors.to_string())?;
    let _log = millrace::internals::log::start(&config.log, config.log_format)?;
    // Not pinned one to one: tokio balances tasks between its workers. The process may be pinned
    // from outside.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.cores.len())
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    // A worker thread polls the accept loop as well: `block_on` would leave it to the main thread,
    // one more to switch to.
    runtime.block_on(async { tokio::spawn(serve::serve(config, put)).await.expect("no panic") })
}
