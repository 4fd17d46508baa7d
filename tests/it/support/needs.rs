//! What a test needs of its host beyond the toolchain, and what happens where that is missing: the
//! test says so on the terminal and passes. With `MILLRACE_TEST_STRICT=1` it fails, unless
//! `MILLRACE_TEST_MAY_SKIP` names the need.

use std::fmt::Display;
use std::io::Write;
use std::process::{Command, Stdio};

/// The words of `MILLRACE_TEST_MAY_SKIP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A browser that needs no window: chromium-headless-shell(1) or chromium(1).
    Chromium,
    /// CPUs 0 and 1, for servers of two cores.
    Cores,
    /// curl(1), for the client in shell and the examples of the documents.
    Curl,
    /// The Python package.
    Duckdb,
    /// The Go toolchain, for the client in Go.
    Go,
    /// The Python package with Helm's engine.
    Helm,
    /// An IPv6 loopback address.
    Ipv6,
    /// h2load(1), a client of HTTP/2.
    H2load,
    /// haproxy(1), in front of the server.
    Haproxy,
    /// The Python package with Kubernetes' schemas.
    Kubernetes,
    /// Resource limits as high as those that a test lowers them to.
    Limits,
    /// A loop device mounted in a namespace.
    Loop,
    /// A mount namespace.
    Mount,
    /// A network namespace, with ip(8).
    Netns,
    /// nginx(8), in front of the server.
    Nginx,
    /// Node.js, for the client in JavaScript.
    Node,
    /// `proc` mounted with options of its own.
    Procfs,
    /// openssl(1), as a client.
    Openssl,
    /// The Python packages with the exporter that sends JSON.
    Opentelemetry,
    /// prometheus(1), which scrapes servers and evaluates rules.
    Prometheus,
    /// promtool(1), which knows how metrics are to be named.
    Promtool,
    /// Python 3, for the client in Python and the examples of the documents.
    Python,
    /// A real-time scheduling class.
    Realtime,
    /// root, and a binary that another user can run.
    Root,
    /// The Python package.
    Schemathesis,
    /// shellcheck(1).
    Shellcheck,
    /// syslog-ng(8) with its HTTP destination.
    Syslogng,
    /// systemd-analyze(1), which reads units.
    Systemd,
    /// Command line tools: util-linux, e2fsprogs.
    Tools,
}

impl Need {
    fn word(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// What a test calls instead of checking what it cannot.
///
/// # Panics
/// Where tests are strict and this need may not be missing.
pub fn skip(need: Need, reason: impl Display) {
    let word = need.word();
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let allowed = std::env::var("MILLRACE_TEST_MAY_SKIP").unwrap_or_default();
    let strict = std::env::var("MILLRACE_TEST_STRICT").is_ok_and(|value| value == "1");
    assert!(
        !strict || allowed.split_whitespace().any(|may| may == word),
        "MILLRACE_TEST_STRICT=1 and {word} is not in MILLRACE_TEST_MAY_SKIP: {reason}"
    );
    // Not `eprintln`, whose output the test harness shows only for tests that fail.
    let _nobody_reads = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason} ({word})");
}

/// Whether this process may run on CPUs 0 and 1.
fn has_two_cores() -> bool {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    [0, 1].iter().all(|id| cores.iter().any(|core| core.id == *id))
}

/// `CORES` for a test that cannot do with less than two.
pub fn two_cores() -> Option<&'static str> {
    if !has_two_cores() {
        skip(Need::Cores, "this host has one CPU, and the test is about two cores");
        return None;
    }
    Some("0,1")
}

/// `CORES` for a test that is better with two.
pub fn up_to_two_cores() -> &'static str {
    if !has_two_cores() {
        skip(Need::Cores, "this host has one CPU: tested with one core, not with two");
        return "0";
    }
    "0,1"
}

/// Whether this host lets `command` (program and arguments) end well, with an empty environment as
/// servers have it here: under a small stack a large one is the difference.
pub fn allowed(command: &[&str]) -> bool {
    let mut tried = Command::new(command[0]);
    tried
        .args(&command[1..])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    tried.status().is_ok_and(|status| status.success())
}
