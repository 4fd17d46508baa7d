//! Soak: everything at once at 70 % load, for as long as `MILLRACE_SOAK` says (30 minutes for the
//! record). Goal: nothing grows, and every payload that was acknowledged is found.
//!
//! Two servers, the real binary, run side by side on one store of this process: one makes an object
//! of each payload, the other gathers them. Good clients first measure what both can take, in a
//! closed loop, and then send 70 % of it on a schedule, without TLS, with it, and by HTTP/2, for
//! each of the three acks. Beside them misbehaving clients of every kind, a store that fails and restarts,
//! certificates and tokens that are replaced, and a scraper. Then the load ends: memory,
//! descriptors and gauges are compared. A last burst of payloads goes to the spools of servers whose
//! store is down; both stop, start again, and empty their spools. Dead letters are replayed, and
//! the account must be even.
//!
//! ```sh
//! MILLRACE_SOAK=30m cargo test --release --test soak
//! ```
//!
//! `MILLRACE_TEST_SEED` repeats the clients' and the store's draws, though not their interleaving.
//! The report is printed, and written to `target/soak-report.md`.
//!
//! In reading order: `driver`, `servers`, `store` with `weather`, `wire` and `streams` (HTTP/1.1 and
//! HTTP/2), `good`, `bad`, `ledger` (what is known of each payload), `watch`, `findings`, `report`.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests block: they are not on a core"
)]

mod bad;
mod driver;
mod findings;
mod good;
mod ledger;
mod report;
mod servers;
mod store;
mod streams;
#[path = "../it/support/mod.rs"]
#[expect(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "the soak needs a part of what scenarios share"
)]
mod support;
mod watch;
mod weather;
mod wire;

use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use crate::driver::Soak;
use crate::findings::Findings;
use crate::ledger::{Ledger, Told};
use crate::watch::Stats;
use crate::wire::Target;

/// What all parts of the test share.
struct Shared {
    ledger: Mutex<Ledger>,
    stats: Mutex<Stats>,
    findings: Findings,
    targets: OnceLock<[Target; 2]>,
    stop_good: AtomicBool,
    stop_bad: AtomicBool,
}

impl Shared {
    fn new() -> Shared {
        Shared {
            ledger: Mutex::default(),
            stats: Mutex::new(Stats::new()),
            findings: Findings::default(),
            targets: OnceLock::new(),
            stop_good: AtomicBool::new(false),
            stop_bad: AtomicBool::new(false),
        }
    }

    fn target(&self, server: usize) -> &Target {
        &self.targets.get().expect("set before any client starts")[server]
    }

    fn sent(&self, client: u16, numbers: &Range<u32>) {
        self.ledger.lock().unwrap().sent(client, numbers);
    }

    fn told(&self, client: u16, numbers: Range<u32>, told: Option<Told>) {
        if let Some(told) = told {
            self.ledger.lock().unwrap().told(client, numbers, told, &self.findings);
        }
    }
}

fn main() -> ExitCode {
    let Ok(text) = std::env::var("MILLRACE_SOAK") else {
        println!("soak: not run; MILLRACE_SOAK=30m cargo test --release --test soak runs it");
        return ExitCode::SUCCESS;
    };
    let length = humantime::parse_duration(&text).expect("MILLRACE_SOAK: a time such as 30m");
    assert!(length >= Duration::from_secs(60), "MILLRACE_SOAK: at least 1m");
    let seed = std::env::var("MILLRACE_TEST_SEED").map(|text| text.parse().expect("a number"));
    let seed = seed.unwrap_or_else(|_| fastrand::u64(..1 << 31));
    println!("MILLRACE_SOAK={text} MILLRACE_TEST_SEED={seed}");
    let found = Soak::start(length, seed).run();
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
