//! The command line.

use std::path::PathBuf;
use std::process::Command as Process;
use std::time::Duration;

use clap::{Arg, ArgAction, Command};

use crate::table;

/// What to run, and where.
pub struct Options {
    /// The server's binary.
    pub millrace: PathBuf,
    pub server_core: usize,
    pub client_core: usize,
    /// Of the measured part of an attack.
    pub duration: Duration,
    /// How long an attack runs before it; the good client half as long before that.
    pub warm_up: Duration,
    /// A trial: every attack for a moment, to see that its answers are right.
    trial: bool,
    only: Vec<String>,
}

impl Options {
    /// # Errors
    /// What is wrong with the command line.
    pub fn from_args() -> Result<Options, String> {
        let matches = command().get_matches();
        let trial = !matches.get_flag("bench");
        let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
        let core = |name: &str, usual: usize| match text(name) {
            Some(core) => core.parse().map_err(|_| format!("--{name} {core}: not a core")),
            None => Ok(usual),
        };
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let (first, last) =
            (cores.first().map_or(0, |core| core.id), cores.last().map_or(0, |core| core.id));
        let duration = text("duration").unwrap_or_default();
        let duration = humantime::parse_duration(duration)
            .map_err(|error| format!("--duration {duration}: {error}"))?;
        let only: Vec<String> =
            matches.get_many::<String>("only").into_iter().flatten().cloned().collect();
        let names: Vec<&str> = table::attacks().iter().map(|attack| attack.name).collect();
        if let Some(word) = only.iter().find(|word| !names.iter().any(|n| n.contains(*word))) {
            return Err(format!("--only {word}: no attack has this in its name: {names:#?}"));
        }
        // The server runs in a directory of its own, where a relative path would not be found.
        let millrace = text("millrace").unwrap_or(env!("CARGO_BIN_EXE_millrace"));
        let millrace = std::fs::canonicalize(millrace)
            .map_err(|error| format!("--millrace {millrace}: {error}"))?;
        let short = Duration::from_millis(100);
        Ok(Options {
            millrace,
            server_core: core("server-core", first)?,
            client_core: core("client-core", last)?,
            duration: if trial { 2 * short } else { duration },
            warm_up: if trial { short } else { Duration::from_secs(1) },
            trial,
            only,
        })
    }

    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| name.contains(word))
    }

    /// What the table was made with.
    pub fn heading(&self) -> String {
        let said = |program: &str, args: &[&str]| {
            let output = Process::new(program).args(args).output();
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            text.unwrap_or_default().trim().to_owned()
        };
        let kernel = said("uname", &["-srm"]);
        let binary = if self.trial {
            "a trial: the figures mean nothing".to_owned()
        } else {
            said(&self.millrace.to_string_lossy(), &["--version"])
        };
        format!(
            "{binary}; {kernel}; {:?} an attack; the server on core {}, attack and good client on core {}\n",
            self.duration, self.server_core, self.client_core
        )
    }
}

#[rustfmt::skip]
fn command() -> Command {
    let names: String = table::attacks().iter().map(|attack| format!("\n  {}", attack.name)).collect();
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("attacks")
        .about("What a good client notices while others attack")
        .after_help(format!("Attacks:{names}"))
        .arg(option("millrace", "FILE", "The server's binary [default: built now]"))
        .arg(option("duration", "TIME", "Measured part of an attack").default_value("5s"))
        .arg(option("only", "WORDS", "Attacks whose name has one of these in it, with commas [default: all]")
            .value_delimiter(',').action(ArgAction::Append))
        .arg(option("server-core", "N", "The server's core [default: the first]"))
        .arg(option("client-core", "N", "The core of everything else [default: the last]"))
        // `cargo bench` passes this flag, `cargo test --bench attacks` does not.
        .arg(Arg::new("bench").long("bench").action(ArgAction::SetTrue).hide(true))
}
