//! The command line: which command, and what it said about settings. Flags are generated from
//! [`SETTINGS`] and handed on as text; what the text means is `config`'s business.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches};

use crate::config::{Flags, SETTINGS, Setting};

/// What the process is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Take requests until a signal; the default.
    Serve,
    /// Validate the configuration, look at the host, probe the store; exit 0 or 2.
    Check {
        /// Write one probe object as well, and delete it.
        put: bool,
    },
    /// List what the store would not take.
    DeadLetterLs,
    /// Put it again under its recorded keys.
    DeadLetterReplay {
        /// Also letters that were meant for another store than the configured one.
        any_store: bool,
    },
    /// Do something with what lies in a spool.
    Spool {
        what: SpoolCommand,
        /// A spool directory, or that of one process in it; `None`: the configured one.
        dir: Option<PathBuf>,
    },
}

/// What is done with a spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolCommand {
    /// List the segments.
    Ls,
    /// Check every checksum.
    Verify,
    /// Put what is not stored, and remove what is.
    Replay,
    /// Write it to standard output.
    Export {
        /// Also what is stored.
        all: bool,
    },
}

/// The command line, taken apart.
#[derive(Clone, Debug)]
pub struct Invocation {
    pub command: Command,
    pub flags: Flags,
}

/// Takes `args` apart, program name first (as [`std::env::args_os`] gives them).
///
/// # Errors
/// Clap's: bad usage, but also `--help` and `--version`. `Error::exit` prints each where it belongs and exits
/// 2 for bad usage, 0 for the others.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let root = command_line().try_get_matches_from(args)?;
    // Settings are global: clap copies them to the innermost subcommand, wherever they were written.
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
        values: SETTINGS.iter().filter_map(|s| Some((s.name, text(s)?))).collect(),
    }
}

/// The id of `--config`; no setting has this name.
const CONFIG: &str = "CONFIG";
/// The id of `--put`, likewise.
const PUT: &str = "PUT";
/// The id of `--any-store`, likewise.
const ANY_STORE: &str = "ANY_STORE";
/// The id of `--all`, likewise.
const ALL: &str = "ALL";
/// The id of a spool's directory, likewise.
const DIR: &str = "DIR";

fn command_line() -> clap::Command {
    clap::Command::new(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .about("Takes POSTs of JSON collections and writes every payload to Amazon S3")
        .after_help(
            "A setting is taken from its flag (--max-workers), else from the environment\n\
             (MILLRACE_MAX_WORKERS, or MAX_WORKERS where that is not there), else from the TOML file\n\
             (max_workers), else its default. MILLRACE_CONFIG names the file like --config.\n\
             Sizes and times carry units: 64MiB, 1GB, 250ms, 10s, 5m.",
        )
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
        .args(SETTINGS.iter().map(setting_arg))
        .subcommand(clap::Command::new("serve").about("Take requests until a signal (the default)"))
        .subcommand(
            clap::Command::new("check")
                .about("Validate the configuration, check this host and probe the store, changing nothing; exit 0 or 2")
                .arg(
                    Arg::new(PUT)
                        .long("put")
                        .action(ArgAction::SetTrue)
                        .help("Also write one probe object into the store, and delete it"),
                ),
        )
        .subcommand(
            clap::Command::new("dead-letter")
                .about("Payloads the store would not take")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .disable_help_subcommand(true)
                .subcommand(clap::Command::new("ls").about("List them"))
                .subcommand(
                    clap::Command::new("replay")
                        .about("Put them again under their recorded keys")
                        .arg(
                            Arg::new(ANY_STORE)
                                .long("any-store")
                                .action(ArgAction::SetTrue)
                                .help("Also those that were meant for another store than STORE"),
                        ),
                ),
        )
        .subcommand(spool_command())
}

fn spool_command() -> clap::Command {
    let command = |name: &'static str, about: &'static str| {
        let dir = Arg::new(DIR)
            .value_name("DIR")
            .value_parser(ValueParser::path_buf())
            .help("A SPOOL_DIR, or one directory in it [default: SPOOL_DIR]");
        clap::Command::new(name).about(about).arg(dir)
    };
    let all = Arg::new(ALL)
        .long("all")
        .action(ArgAction::SetTrue)
        .help("Also those that are stored already");
    clap::Command::new("spool")
        .about("Payloads that stopped or crashed servers have left on this host's disk")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(command("ls", "List the files that hold them"))
        .subcommand(command("verify", "Check every checksum; exit 1 when there is damage"))
        .subcommand(command("replay", "Put them under their keys, and remove what is stored"))
        .subcommand(command("export", "Write them to standard output, one payload a line").arg(all))
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
        // `--max-workers -1` is a bad value, for which `config` has the better words.
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
        for s in SETTINGS {
            assert!(help.contains(&format!("--{} <{}>", s.flag(), s.value)), "{}", s.name);
            assert!(help.contains(&format!("[env: {}]", s.env())), "{}", s.name);
            assert!(help.contains(&format!("[default: {}]", s.default)) || s.default.is_empty());
            assert!(help.contains(s.group), "{}", s.group);
        }
        assert!(help.contains("[env: MILLRACE_CONFIG]"), "{help}");
    }
}
