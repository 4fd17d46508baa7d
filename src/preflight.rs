//! Checks of this host before a core starts. Each finding has the command that fixes it.
//!
//! Small functions read the host and pure functions judge, so that tests cover every verdict on any
//! machine. A start ([`Mode::Start`]) raises soft resource limits towards the hard ones, creates
//! missing directories, and writes and removes a probe file in each. `check` ([`Mode::Check`])
//! changes nothing but its own process's limits. Both start threads for a moment, to see whether
//! they can.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use crate::config::Config;
use crate::limits::Limits;

mod certificates;
mod device;
mod dirs;
mod exposed;
mod host;
mod inputs;
mod rlimits;
mod running;
mod sockets;
mod threads;

pub use dirs::is_in_memory;
pub use host::descriptors;
pub use threads::not_even_one as no_threads;

pub use inputs::environment;
use running::RunningServer;
pub use running::{PortHolder, holder};
pub use sockets::{TcpRow, listeners, tcp_rows};

/// What the checks may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A server or a replay is about to start: missing directories are created.
    Start,
    /// Nothing is changed on the host.
    Check,
    /// The same just before a start, which waits for what a server that is ending still holds.
    Starting,
    /// The same beside a running server: what it holds is its own.
    Running,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Ok,
    /// The server starts, but the operator should know.
    Warn,
    /// The server must not start.
    Fail,
}

impl Level {
    /// As `check --json` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was checked, in a word or two: `kernel`, `open files`, `LISTEN`.
    pub name: &'static str,
    pub level: Level,
    /// What was found, with the figures behind the verdict.
    pub detail: String,
    /// The command or setting that fixes it; every warning and failure has one.
    pub remedy: Option<String>,
}

impl Finding {
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Finding {
        Finding { name, level: Level::Ok, detail: detail.into(), remedy: None }
    }

    pub fn warn(
        name: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        let (detail, remedy) = (detail.into(), Some(remedy.into()));
        Finding { name, level: Level::Warn, detail, remedy }
    }

    pub fn fail(
        name: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        let (detail, remedy) = (detail.into(), Some(remedy.into()));
        Finding { name, level: Level::Fail, detail, remedy }
    }

    /// Logs the finding in one line, for a server that starts or refuses to.
    pub fn log(&self) {
        let Finding { name, level, detail, remedy } = self;
        let mend = remedy.as_deref().unwrap_or_default();
        match level {
            Level::Ok => tracing::debug!("{name}: {detail}"),
            Level::Warn => tracing::warn!(mend, "{name}: {detail}"),
            Level::Fail => tracing::error!(mend, "{name}: {detail}"),
        }
    }
}

/// Everything that `serve` and `check` need. In [`Mode::Start`] an address in use is not a failure,
/// because the start waits for it. Blocks: call it before any executor runs.
pub fn run(config: &Config, mode: Mode) -> Vec<Finding> {
    let server = match mode {
        Mode::Running => RunningServer::find(config),
        Mode::Start | Mode::Check | Mode::Starting => RunningServer::Absent,
    };
    let wanted = Limits::new(config);
    let mut findings = match server {
        RunningServer::Found { pid, .. } => host::of_process(config, &wanted, pid),
        RunningServer::Hidden { uid } => host::of_hidden(config, uid),
        RunningServer::Absent => host::findings(config, &wanted),
    };
    findings.extend(config.spool.as_ref().and_then(|spool| device::finding(&spool.dir)));
    // What the server may do with files is not what this user may.
    let mut of_files = dirs::store(config, mode);
    of_files.extend(dirs::dead_letters(config, mode));
    let used = match (mode, &config.spool) {
        (Mode::Running, Some(spool)) => server.spool_bytes(&spool.dir, &config.node_id),
        _ => 0,
    };
    of_files.extend(dirs::spool(config, mode, used));
    findings.extend(of_files.into_iter().map(|finding| server.qualify(finding)));
    findings.extend(running::spool_lock(config, mode));
    findings.extend(inputs::tap(config));
    findings.extend(inputs::addresses(config, mode, server));
    let mut of_files = inputs::tokens(config);
    of_files.extend(inputs::admin_token(config));
    of_files.extend(certificates::findings(config));
    findings.extend(of_files.into_iter().map(|finding| server.qualify(finding)));
    findings.extend(inputs::trusted_networks(config));
    findings.extend(inputs::config_file(config));
    findings.push(inputs::example_key(config));
    findings.extend(fault_injection(config));
    findings
}

/// Why the server cannot listen on the address of the setting `name`, and what to do.
pub fn bind_refusal(name: &'static str, address: SocketAddr, error: io::Error) -> Finding {
    inputs::bind_refusal(name, address, error)
}

/// What `dead-letter replay` needs: the host and the directories, but no free ports, because a
/// server may be running. The dead-letter directory is not created: without it there is nothing to
/// replay.
pub fn for_replay(config: &Config) -> Vec<Finding> {
    let mut findings = for_spool_replay(config, Mode::Start);
    findings.extend(dirs::dead_letters(config, Mode::Check));
    findings
}

/// What `spool replay` needs: the same without the dead-letter directory.
pub fn for_spool_replay(config: &Config, mode: Mode) -> Vec<Finding> {
    let mut findings = host::findings(config, &Limits::new(config));
    findings.extend(config.spool.as_ref().and_then(|spool| device::finding(&spool.dir)));
    findings.extend(dirs::store(config, mode));
    findings
}

/// What `spool bench` needs of the host, and of the disk of `dir`.
pub fn for_spool_bench(config: &Config, dir: &Path) -> Vec<Finding> {
    let mut findings = host::findings(config, &Limits::new(config));
    findings.extend(device::finding(dir));
    findings
}

/// Whether any finding forbids the start.
pub fn failed(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.level == Level::Fail)
}

/// The findings as `check` prints them, each remedy below its finding; ends with a newline.
pub fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut table = String::new();
    for Finding { name, level, detail, remedy } in findings {
        let level = match level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        writeln!(table, "{level:<4}  {name:<width$}  {detail}").expect("writing to a String");
        if let Some(remedy) = remedy {
            writeln!(table, "{:<4}  {:<width$}  mend: {remedy}", "", "").expect("as above");
        }
    }
    table
}

/// A warning about `FAULTS`, which must not be in force unnoticed.
fn fault_injection(config: &Config) -> Option<Finding> {
    let faults = config.faults.as_ref()?;
    let detail = format!("{faults:?} makes the store fail on purpose");
    Some(Finding::warn("FAULTS", detail, "unset FAULTS outside tests and game days"))
}

/// Asserts the level and the text of a finding.
#[cfg(test)]
#[track_caller]
fn expect(finding: Finding, level: Level, needles: &[&str]) {
    let text = format!("{} {}", finding.detail, finding.remedy.as_deref().unwrap_or(""));
    assert_eq!(finding.level, level, "{text}");
    for needle in needles {
        assert!(text.contains(needle), "{needle} in: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up_and_puts_remedies_below() {
        let findings = [
            Finding::ok("kernel", "6.1"),
            Finding::fail("LISTEN", "0.0.0.0:8080 is taken", "ss -ltnp"),
        ];
        let lines = [
            "ok    kernel  6.1",
            "FAIL  LISTEN  0.0.0.0:8080 is taken",
            "              mend: ss -ltnp",
        ];
        assert_eq!(table(&findings), lines.join("\n") + "\n");
        assert!(failed(&findings) && !failed(&findings[..1]));
    }

    /// The defaults must start wherever the tests run, apart from ports that others hold.
    #[test]
    fn this_host_passes_with_ports_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let config = Config::from_settings(&[
            ("LISTEN", "127.0.0.1:0"),
            ("ADMIN_LISTEN", "127.0.0.1:0"),
            ("STORE", &format!("file:{}", path("a/b"))),
            ("DEAD_LETTER_DIR", &path("dead")),
            ("FAULTS", "delay=1ms"),
        ]);
        let config = config.unwrap();
        for mode in [Mode::Check, Mode::Start] {
            let findings = run(&config, mode);
            assert!(!failed(&findings), "{}", table(&findings));
            assert!(findings.iter().all(|f| f.remedy.is_some() == (f.level != Level::Ok)));
            assert_eq!(findings.iter().filter(|f| f.name == "FAULTS").count(), 1);
            let made = std::fs::read_dir(dir.path()).unwrap().count();
            assert_eq!(made, if mode == Mode::Start { 2 } else { 0 }, "{mode:?}");
        }
        assert_eq!(std::fs::read_dir(dir.path().join("a/b")).unwrap().count(), 0);
    }
}
