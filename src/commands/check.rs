//! `millrace check`: the findings of a start, the store's probe, and how they are reported.

use serde_json::{Value, json};

use super::{print, put};
use crate::config::{Config, ConfigError, ConfigErrors, Effective};
use crate::control::{self, Exit};
use crate::preflight::{self, Finding, Level, Mode, failed, table};

/// How `check` was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Also write one probe object and delete it.
    pub put: bool,
    /// A server with these settings runs on this host.
    pub running: bool,
    /// A start follows, which waits for what a server that is ending holds.
    pub starting: bool,
    /// Report as JSON, see [`to_json`].
    pub json: bool,
    /// Exit 1 if there are warnings.
    pub deny_warnings: bool,
}

impl CheckOptions {
    fn mode(self) -> Mode {
        match () {
            () if self.running => Mode::Running,
            () if self.starting => Mode::Starting,
            () => Mode::Check,
        }
    }
}

/// Checks, reports, and says whether a server would start. Changes nothing, unless `put`: then one
/// probe object is written to the store and deleted.
///
/// # Errors
/// The control executor does not start, or standard output cannot be written.
pub fn run(config: &Config, effective: &Effective, options: CheckOptions) -> Result<Exit, String> {
    let findings = all(config, effective, options.mode(), options.put)?;
    report(&findings, options)
}

/// Every finding about settings, host and store, in this order. The store is probed only from a host
/// on which a server would start.
///
/// # Errors
/// The control executor does not start.
pub fn all(
    config: &Config,
    effective: &Effective,
    mode: Mode,
    put: bool,
) -> Result<Vec<Finding>, String> {
    let set = effective.changed().map(|value| Finding::ok("setting", value.to_string()));
    let set = set.chain(preflight::environment(effective));
    let mut findings: Vec<Finding> = set.chain(preflight::run(config, mode)).collect();
    if !failed(&findings) {
        findings.extend(control::on_executor(put::store(config, put))?);
    }
    Ok(findings)
}

/// The report on settings that cannot be used: JSON if that was asked for.
///
/// # Errors
/// The mistakes, for standard error; or standard output cannot be written.
pub fn refused(errors: &ConfigErrors, options: CheckOptions) -> Result<Exit, String> {
    if !options.json {
        return Err(errors.to_string());
    }
    let findings: Vec<Finding> = errors.0.iter().map(mistake).collect();
    report(&findings, options)
}

fn mistake(error: &ConfigError) -> Finding {
    let name = match error {
        ConfigError::Refused { name, .. } => name,
        ConfigError::UnknownKey { .. } | ConfigError::File { .. } => "config file",
        ConfigError::CoresUnknown => "cores",
    };
    // The text says what to write instead.
    Finding { name, level: Level::Fail, detail: error.to_string(), remedy: None }
}

fn report(findings: &[Finding], options: CheckOptions) -> Result<Exit, String> {
    print(|out| match options.json {
        true => writeln!(out, "{:#}", to_json(findings)),
        false => write!(out, "{}", table(findings)),
    })?;
    Ok(match worst(findings) {
        Level::Fail => Exit::Refused,
        Level::Warn if options.deny_warnings => Exit::Unstored,
        Level::Warn | Level::Ok => Exit::Clean,
    })
}

fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
}

/// The schema that `docs/operations.md` documents. A change that is not an addition gets another
/// `schema`.
pub fn to_json(findings: &[Finding]) -> Value {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let rows = findings.iter().map(|Finding { name, level, detail, remedy }| {
        json!({"name": name, "level": level.name(), "detail": detail, "remedy": remedy})
    });
    json!({
        "schema": 1,
        "version": env!("CARGO_PKG_VERSION"),
        "verdict": worst(findings).name(),
        "warnings": count(Level::Warn),
        "failures": count(Level::Fail),
        "findings": rows.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_the_worst_finding_and_decides_the_status() {
        let (ok, warn) = (Finding::ok("a", "b"), Finding::warn("c", "d", "e"));
        let fail = Finding::fail("f", "g", "h");
        let deny = CheckOptions { deny_warnings: true, json: true, ..CheckOptions::default() };
        for (findings, verdict, status, denied) in [
            (vec![], "ok", Exit::Clean, Exit::Clean),
            (vec![ok.clone()], "ok", Exit::Clean, Exit::Clean),
            (vec![ok.clone(), warn.clone()], "warn", Exit::Clean, Exit::Unstored),
            (vec![fail, warn, ok], "fail", Exit::Refused, Exit::Refused),
        ] {
            assert_eq!(to_json(&findings)["verdict"], verdict);
            let plain = CheckOptions { deny_warnings: false, ..deny };
            assert_eq!(report(&findings, plain), Ok(status));
            assert_eq!(report(&findings, deny), Ok(denied));
        }
    }
}
