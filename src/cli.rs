//! The command line: the command and the settings given as flags. Flags are generated from
//! [`SETTINGS`] and passed on as text, which `config` interprets.
//!
//! Every command accepts every setting, because each validates the whole configuration. Its
//! `--help` shows only those that it reads; `millrace --help` shows them all.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches};

use crate::config::{Flags, SETTINGS, Setting};

/// What the process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve requests until a signal; the default.
    Serve,
    /// Validate the configuration, check the host, probe the store; exit 0 or 2.
    Check {
        /// Also write one probe object and delete it.
        put: bool,
    },
    /// List the dead letters.
    DeadLetterLs,
    /// Upload dead letters again under their recorded keys.
    DeadLetterReplay {
        /// Also dead letters recorded for a store other than the configured one.
        any_store: bool,
    },
    /// Inspect or empty a spool without a server.
    Spool {
        what: SpoolCommand,
        /// A spool directory, or one process's directory in it; `None`: `SPOOL_DIR`.
        dir: Option<PathBuf>,
    },
}

/// The commands on a spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolCommand {
    /// List the segments.
    Ls,
    /// Check every checksum.
    Verify,
    /// Upload what is not stored, and remove what is.
    Replay,
    /// Write the payloads to standard output.
    Export {
        /// Also payloads that are already stored.
        all: bool,
    },
}

/// The parsed command line.
#[derive(Clone, Debug)]
pub struct Invocation {
    pub command: Command,
    pub flags: Flags,
}

/// Parses `args`, program name first (as [`std::env::args_os`] gives them).
///
/// # Errors
/// Clap's: bad usage, but also `--help` and `--version`. `Error::exit` prints each to the right
/// stream and exits 2 for bad usage, 0 for the others.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let root = command_line().try_get_matches_from(args)?;
    // Settings are global: clap copies them to the innermost subcommand, wherever they stand.
    let (command, matches) = match root.subcommand() {
        None => (Command::Serve, &root),
        Some(("serve", matches)) => (Command::Serve, matches),
        Some(("check", matches)) => (Command::Check { put: matches.get_flag(PUT) }, matches),
        Some(("dead-letter", dead_letter)) => match dead_letter.subcommand() {
            Some(("ls", matches)) => (Command::DeadLetterLs, matches),
            Some(("replay", matches)) => {
                (Command::DeadLetterReplay { any_store: matches.get_flag(ANY_STORE) }, matches)
            }
            other => unreachable!("clap requires ls or replay, not {other:?}"),
        },
        Some(("spool", spool)) => {
            let (name, matches) = spool.subcommand().expect("clap requires one");
            let what = match name {
                "ls" => SpoolCommand::Ls,
                "verify" => SpoolCommand::Verify,
                "replay" => SpoolCommand::Replay,
                "export" => SpoolCommand::Export { all: matches.get_flag(ALL) },
                other => unreachable!("clap refuses {other}"),
            };
            (Command::Spool { what, dir: matches.get_one::<PathBuf>(DIR).cloned() }, matches)
        }
        Some(other) => unreachable!("clap refuses {other:?}"),
    };
    Ok(Invocation { command, flags: flags(matches) })
}

fn flags(matches: &ArgMatches) -> Flags {
    let text = |s: &Setting| matches.get_one::<String>(s.name).cloned();
    Flags {
        file: matches.get_one::<PathBuf>(CONFIG).cloned(),
        values: with_flags().filter_map(|s| Some((s.name, text(s)?))).collect(),
    }
}

/// The settings that have flags.
fn with_flags() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(|s| !s.is_secret)
}

/// The id of `--config`; no setting has this name.
const CONFIG: &str = "CONFIG";
/// The id of `--put`; no setting has this name, nor those of the next three.
const PUT: &str = "PUT";
/// The id of `--any-store`.
const ANY_STORE: &str = "ANY_STORE";
/// The id of `--all`.
const ALL: &str = "ALL";
/// The id of a spool's directory.
const DIR: &str = "DIR";

const SETTINGS_HELP: &str = "\
A setting's value comes from its flag (--max-workers), else the environment variable
(MILLRACE_MAX_WORKERS or, if that is absent, MAX_WORKERS), else the TOML file (max_workers),
else its default. MILLRACE_CONFIG names the TOML file, like --config. ADMIN_TOKEN is a secret
and so has no flag.
Sizes and times have units: 64MiB, 1GB, 250ms, 10s, 5m.";

/// What every command on dead letters reads.
const DEAD_LETTERS: &[&str] = &["DEAD_LETTER_DIR"];
/// What every command on a spool reads.
const SPOOL: &[&str] = &["SPOOL_DIR"];
/// What an upload depends on, besides the `S3_` settings.
const UPLOADS: &[&str] = &[
    "STORE",
    "FILE_MODE",
    "CONTENT_TYPE",
    "PUT_TIMEOUT",
    "PUT_TIMEOUT_MAX",
    "RETRY_BASE",
    "LOG",
    "LOG_FORMAT",
    "FAULTS",
];

/// Which settings a command's `--help` explains.
#[derive(Clone, Copy)]
enum Reads {
    /// All of them, which is too many to explain: only their flags are listed.
    All,
    /// Only these.
    Only(&'static [&'static str]),
    /// These, and all that uploads depend on.
    AndUploads(&'static [&'static str]),
}

impl Reads {
    fn explains(self, setting: &Setting) -> bool {
        let is_in = |names: &[&str]| names.contains(&setting.name);
        match self {
            Reads::All => false,
            Reads::Only(names) => is_in(names),
            Reads::AndUploads(names) => {
                is_in(names) || is_in(UPLOADS) || setting.name.starts_with("S3_")
            }
        }
    }
}

fn command_line() -> clap::Command {
    clap::Command::new(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .about("Receives POSTs of JSON collections and writes every payload to Amazon S3")
        .after_help(SETTINGS_HELP)
        .disable_help_subcommand(true)
        .arg(
            Arg::new(CONFIG)
                .long("config")
                .value_name("FILE")
                .value_parser(ValueParser::path_buf())
                .global(true)
                .help(
                    "TOML file with settings; paths in it are relative to the working directory \
                     [env: MILLRACE_CONFIG]",
                ),
        )
        .args(with_flags().map(setting_arg))
        .subcommand(command("serve", "Serve requests until a signal (the default)", Reads::All))
        .subcommand(
            command(
                "check",
                "Validate the configuration, check this host and probe the store without changing \
                 anything; exit 0 or 2",
                Reads::All,
            )
            .arg(
                Arg::new(PUT)
                    .long("put")
                    .action(ArgAction::SetTrue)
                    .help("Also write one probe object to the store, and delete it"),
            ),
        )
        .subcommand(dead_letter_command())
        .subcommand(spool_command())
}

fn dead_letter_command() -> clap::Command {
    let any_store = Arg::new(ANY_STORE)
        .long("any-store")
        .action(ArgAction::SetTrue)
        .help("Also those recorded for a store other than STORE");
    let replay = "Upload dead letters again under their recorded keys; exit 1 if some are left";
    group("dead-letter", "List or upload payloads that the store did not accept")
        .subcommand(command("ls", "List dead letters, oldest first", Reads::Only(DEAD_LETTERS)))
        .subcommand(command("replay", replay, Reads::AndUploads(DEAD_LETTERS)).arg(any_store))
}

fn spool_command() -> clap::Command {
    let command = |name: &'static str, about: &'static str, reads: Reads| {
        let dir = Arg::new(DIR)
            .value_name("DIR")
            .value_parser(ValueParser::path_buf())
            .help("A SPOOL_DIR, or one directory in it [default: SPOOL_DIR]");
        command(name, about, reads).arg(dir)
    };
    let only = Reads::Only(SPOOL);
    let all =
        Arg::new(ALL).long("all").action(ArgAction::SetTrue).help("Also those already stored");
    let replay = "Upload the payloads under their keys, and remove what is stored";
    group("spool", "Handle payloads that stopped or crashed servers left on this host's disk")
        .subcommand(command("ls", "List the files of a spool", only))
        .subcommand(command("verify", "Check every checksum; exit 1 if there is damage", only))
        .subcommand(command("replay", replay, Reads::AndUploads(SPOOL)))
        .subcommand(
            command("export", "Write the payloads to standard output, one per line", only).arg(all),
        )
}

/// A command with subcommands, whose help explains no setting.
fn group(name: &'static str, about: &'static str) -> clap::Command {
    command(name, about, Reads::Only(&[])).subcommand_required(true).disable_help_subcommand(true)
}

/// A subcommand that accepts every setting and explains those that it reads.
fn command(name: &'static str, about: &'static str, reads: Reads) -> clap::Command {
    // An argument of the subcommand replaces the global one with its id in the help; clap still
    // shares the values.
    let settings = with_flags().map(|s| setting_arg(s).hide(!reads.explains(s)));
    let after = match reads {
        Reads::All => format!("Settings (`millrace --help` explains them):\n{}", flag_list()),
        Reads::Only(_) | Reads::AndUploads(_) => {
            "`millrace --help` shows all settings and where their values come from.".to_owned()
        }
    };
    clap::Command::new(name).about(about).args(settings).after_help(after)
}

/// The flags of all settings, in lines of at most 100 characters, a paragraph per group.
fn flag_list() -> String {
    let mut list = String::new();
    for group in SETTINGS.chunk_by(|a, b| a.group == b.group) {
        list.push_str(&format!("  {}:\n", group[0].group));
        let mut line = String::from("   ");
        for setting in group.iter().filter(|s| !s.is_secret) {
            let flag = format!(" --{}", setting.flag());
            if line.len() + flag.len() > 100 {
                list.push_str(&format!("{line}\n"));
                line = String::from("   ");
            }
            line.push_str(&flag);
        }
        list.push_str(&format!("{line}\n"));
    }
    list
}

fn setting_arg(s: &'static Setting) -> Arg {
    let default = match s.default {
        "" => String::new(),
        default => format!(" [default: {default}]"),
    };
    Arg::new(s.name)
        .long(s.flag())
        .value_name(s.value)
        .help(format!("{} [env: {}]{default}", s.help, s.env()))
        .help_heading(s.group)
        .global(true)
        // `config` has the better message for `--max-workers -1`.
        .allow_negative_numbers(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invoke(line: &str) -> Result<Invocation, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    fn spool(what: SpoolCommand, dir: Option<&str>) -> Command {
        Command::Spool { what, dir: dir.map(PathBuf::from) }
    }

    #[test]
    fn serve_is_the_default_and_each_command_has_its_type() {
        for (line, command) in [
            ("millrace", Command::Serve),
            ("millrace --max-workers 3", Command::Serve),
            ("millrace serve", Command::Serve),
            ("millrace check", Command::Check { put: false }),
            ("millrace check --put", Command::Check { put: true }),
            ("millrace dead-letter ls", Command::DeadLetterLs),
            ("millrace dead-letter replay", Command::DeadLetterReplay { any_store: false }),
            (
                "millrace dead-letter replay --any-store",
                Command::DeadLetterReplay { any_store: true },
            ),
            ("millrace spool ls", spool(SpoolCommand::Ls, None)),
            ("millrace spool verify d", spool(SpoolCommand::Verify, Some("d"))),
            ("millrace spool replay d/n --store null:", spool(SpoolCommand::Replay, Some("d/n"))),
            ("millrace spool export", spool(SpoolCommand::Export { all: false }, None)),
            ("millrace spool export --all d", spool(SpoolCommand::Export { all: true }, Some("d"))),
        ] {
            assert_eq!(invoke(line).unwrap().command, command, "{line}");
        }
    }

    #[test]
    fn settings_are_taken_before_and_after_the_subcommand() {
        for line in [
            "millrace --max-workers 3 --config m.toml check --store=null:",
            "millrace check --max-workers 3 --config m.toml --store null:",
            "millrace --store null: dead-letter --max-workers 3 replay --config m.toml",
        ] {
            let flags = invoke(line).unwrap().flags;
            assert_eq!(flags.file.as_deref(), Some("m.toml".as_ref()), "{line}");
            let mut values = flags.values;
            values.sort();
            let expected = [("MAX_WORKERS", "3".to_owned()), ("STORE", "null:".to_owned())];
            assert_eq!(values, expected, "{line}");
        }
    }

    #[test]
    fn bad_usage_exits_2_and_help_and_version_exit_0() {
        for line in [
            "millrace --max-worker 3",
            "millrace serv",
            "millrace dead-letter",
            "millrace dead-letter rm",
            "millrace spool",
            "millrace spool rm",
            "millrace spool ls a b",
            "millrace spool ls --all",
            "millrace --max-workers",
            "millrace --max-workers 1 --max-workers 2",
            "millrace serve extra",
        ] {
            assert_eq!(invoke(line).unwrap_err().exit_code(), 2, "{line}");
        }
        for line in ["millrace --help", "millrace --version", "millrace check --help"] {
            assert_eq!(invoke(line).unwrap_err().exit_code(), 0, "{line}");
        }
    }

    /// Every subcommand with the settings that its help explains; for a server and `check` their
    /// flags suffice.
    #[test]
    fn the_help_of_a_subcommand_is_short_and_names_what_it_reads() {
        // A replay explains what uploads depend on, 14 of it for S3 alone.
        let lines_max = |command: &str| if command.ends_with("replay") { 100 } else { 40 };
        let uploads: Vec<&str> = SETTINGS
            .iter()
            .map(|s| s.name)
            .filter(|name| UPLOADS.contains(name) || name.starts_with("S3_"))
            .collect();
        for (command, own, settings) in [
            ("dead-letter", &["ls", "replay"][..], vec![]),
            ("dead-letter ls", &[], vec!["DEAD_LETTER_DIR"]),
            ("dead-letter replay", &["--any-store"], [&["DEAD_LETTER_DIR"], &*uploads].concat()),
            ("spool", &["ls", "verify", "replay", "export"], vec![]),
            ("spool ls", &["[DIR]"], vec!["SPOOL_DIR"]),
            ("spool verify", &["[DIR]"], vec!["SPOOL_DIR"]),
            ("spool export", &["[DIR]", "--all"], vec!["SPOOL_DIR"]),
            ("spool replay", &["[DIR]"], [&["SPOOL_DIR"], &*uploads].concat()),
            ("serve", &[], vec![]),
            ("check", &["--put"], vec![]),
        ] {
            let help = invoke(&format!("millrace {command} --help")).unwrap_err().to_string();
            let lines = help.lines().count();
            assert!(lines <= lines_max(command), "{command}: {lines} lines\n{help}");
            // Wrapping may break a line anywhere.
            let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(help.contains("millrace --help"), "{command}:\n{help}");
            for own in own.iter().chain(&["--config <FILE>"]) {
                assert!(help.contains(own), "{command} {own}:\n{help}");
            }
            for s in with_flags() {
                let is_explained = help.contains(&format!("[env: {}]", s.env()));
                assert_eq!(is_explained, settings.contains(&s.name), "{command} {}", s.name);
                if ["serve", "check"].contains(&command) {
                    assert!(help.contains(&format!(" --{}", s.flag())), "{command} {}", s.name);
                }
            }
        }
    }

    /// Hidden in the help is not refused: a command validates every setting.
    #[test]
    fn settings_that_a_help_does_not_explain_are_accepted() {
        for line in ["millrace spool ls --max-workers 3", "millrace --max-workers 3 spool ls"] {
            assert_eq!(invoke(line).unwrap().flags.values, [("MAX_WORKERS", "3".to_owned())]);
        }
    }

    #[test]
    fn negative_numbers_reach_the_configuration() {
        let flags = invoke("millrace --max-workers -1").unwrap().flags;
        assert_eq!(flags.values, [("MAX_WORKERS", "-1".to_owned())]);
    }

    #[test]
    fn help_shows_every_setting_with_its_environment_name_and_default() {
        let help = invoke("millrace --help").unwrap_err().to_string();
        // Wrapping may break a line anywhere.
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for s in with_flags() {
            assert!(help.contains(&format!("--{} <{}>", s.flag(), s.value)), "{}", s.name);
            assert!(help.contains(&format!("[env: {}]", s.env())), "{}", s.name);
            assert!(help.contains(&format!("[default: {}]", s.default)) || s.default.is_empty());
            assert!(help.contains(s.group), "{}", s.group);
        }
        assert!(help.contains("[env: MILLRACE_CONFIG]"), "{help}");
    }
}
