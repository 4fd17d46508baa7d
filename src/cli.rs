//! The command line: the command and the settings given as flags. Flags are generated from
//! [`SETTINGS`] and passed on as text, which `config` interprets.
//!
//! Every command accepts every setting, because each validates the whole configuration. Its
//! `--help` shows only those that it reads; `millrace --help` shows them all.

mod load;
pub mod manual;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches};
use clap_complete::Shell;

use crate::commands::ask::ListenerAt;
use crate::commands::bench::LoadOptions;
use crate::commands::check::CheckOptions;
use crate::commands::dead_letters::LetterFilter;
use crate::commands::debug_bundle::{BundleOptions, TIME_MAX};
use crate::commands::tap::TapOptions;
use crate::commands::top::TopOptions;
use crate::config::{Flags, SETTINGS, Setting};
use crate::control::COMMIT;

/// What the process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve requests until a signal; the default.
    Serve,
    /// Validate the configuration, check the host, probe the store.
    Check(CheckOptions),
    /// Ask a running server whether it is well; exit 0 or 1.
    Health {
        /// The page to ask; `None`: the settings' own listener.
        url: Option<String>,
        /// Ask whether it should get traffic (`/readyz`), not only whether it runs.
        ready: bool,
    },
    /// Write what a search for a problem's cause needs into one tar.
    DebugBundle(BundleOptions),
    /// Write man pages into a directory.
    Man { dir: PathBuf },
    /// Print a completion script.
    Completion { shell: Shell },
    /// Put load on a server, and report what it did.
    Bench(LoadOptions),
    /// List the dead letters.
    DeadLetterLs { filter: LetterFilter },
    /// Print what is known of dead letters, or their objects.
    DeadLetterShow {
        keys: Vec<String>,
        /// The objects' bytes instead.
        payload: bool,
    },
    /// Remove dead letters.
    DeadLetterRm { filter: LetterFilter },
    /// Upload dead letters again under their recorded keys.
    DeadLetterReplay {
        filter: LetterFilter,
        /// Also dead letters recorded for a store other than the configured one.
        any_store: bool,
    },
    /// Print samples of the payloads that a running server admits.
    Tap(TapOptions),
    /// Show the figures of a running server in a terminal.
    Top(TopOptions),
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
    /// Measure the disk.
    Bench,
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
        Some(("check", matches)) => {
            let flag = |id| matches.get_flag(id);
            let options = CheckOptions {
                put: flag(PUT),
                running: flag(RUNNING),
                starting: flag(STARTING),
                json: flag(JSON),
                deny_warnings: flag(DENY_WARNINGS),
            };
            (Command::Check(options), matches)
        }
        Some(("health", matches)) => {
            let url = matches.get_one::<String>(URL).cloned();
            (Command::Health { url, ready: matches.get_flag(READY) }, matches)
        }
        Some(("debug", debug)) => {
            let (_bundle, matches) = debug.subcommand().expect("clap requires one");
            let seconds = *matches.get_one::<u64>(SECONDS).expect("it has a default");
            let options = BundleOptions {
                out: matches.get_one::<PathBuf>(OUT).cloned(),
                listener: listener_at(matches),
                time: Duration::from_secs(seconds),
            };
            (Command::DebugBundle(options), matches)
        }
        Some(("man", matches)) => {
            let dir = matches.get_one::<PathBuf>(DIR).expect("clap requires it").clone();
            (Command::Man { dir }, matches)
        }
        Some(("completion", matches)) => {
            let shell = *matches.get_one::<Shell>(SHELL).expect("clap requires it");
            (Command::Completion { shell }, matches)
        }
        Some(("bench", matches)) => (Command::Bench(load::options(matches)), matches),
        Some(("tap", matches)) => {
            let rate = *matches.get_one::<u16>(RATE).expect("it has a default");
            (Command::Tap(TapOptions { listener: listener_at(matches), rate }), matches)
        }
        Some(("top", matches)) => {
            let every = *matches.get_one::<Duration>(EVERY).expect("it has a default");
            (Command::Top(TopOptions { listener: listener_at(matches), every }), matches)
        }
        Some(("dead-letter", dead_letter)) => match dead_letter.subcommand() {
            Some(("ls", matches)) => {
                (Command::DeadLetterLs { filter: letter_filter(matches) }, matches)
            }
            Some(("show", matches)) => {
                let LetterFilter { keys, .. } = letter_filter(matches);
                (Command::DeadLetterShow { keys, payload: matches.get_flag(PAYLOAD) }, matches)
            }
            Some(("rm", matches)) => {
                (Command::DeadLetterRm { filter: letter_filter(matches) }, matches)
            }
            Some(("replay", matches)) => {
                let (filter, any_store) = (letter_filter(matches), matches.get_flag(ANY_STORE));
                (Command::DeadLetterReplay { filter, any_store }, matches)
            }
            other => unreachable!("clap refuses {other:?}"),
        },
        Some(("spool", spool)) => {
            let (name, matches) = spool.subcommand().expect("clap requires one");
            let what = match name {
                "ls" => SpoolCommand::Ls,
                "verify" => SpoolCommand::Verify,
                "replay" => SpoolCommand::Replay,
                "export" => SpoolCommand::Export { all: matches.get_flag(ALL) },
                "bench" => SpoolCommand::Bench,
                other => unreachable!("clap refuses {other}"),
            };
            (Command::Spool { what, dir: matches.get_one::<PathBuf>(DIR).cloned() }, matches)
        }
        Some(other) => unreachable!("clap refuses {other:?}"),
    };
    Ok(Invocation { command, flags: flags(matches) })
}

/// Which dead letters are meant. Not every command has every part.
fn letter_filter(matches: &ArgMatches) -> LetterFilter {
    let keys = matches.try_get_many::<String>(KEYS).ok().flatten();
    let error = matches.try_get_one::<String>(ERROR).ok().flatten();
    let older = matches.try_get_one::<Duration>(OLDER).ok().flatten();
    LetterFilter {
        keys: keys.into_iter().flatten().cloned().collect(),
        error: error.cloned(),
        older: older.copied(),
    }
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
/// The id of `--put`; no setting has this name, nor those of the next ones.
const PUT: &str = "PUT";
const RUNNING: &str = "RUNNING";
const STARTING: &str = "STARTING";
const JSON: &str = "JSON";
const DENY_WARNINGS: &str = "DENY_WARNINGS";
/// The ids of `health`'s arguments.
const URL: &str = "URL";
const READY: &str = "READY";
/// The ids of a bundle's file and time.
const OUT: &str = "OUT";
const SECONDS: &str = "SECONDS";
const PLAIN_TOKEN: &str = "PLAIN_TOKEN";
/// The id of a shell's name.
const SHELL: &str = "SHELL";
/// The id of `--any-store`.
const ANY_STORE: &str = "ANY_STORE";
/// The ids of what selects dead letters, and of `show --payload`.
const KEYS: &str = "KEYS";
const ERROR: &str = "ERROR";
const OLDER: &str = "OLDER";
const PAYLOAD: &str = "PAYLOAD";
/// The id of `--all`.
const ALL: &str = "ALL";
/// The id of `--rate`.
const RATE: &str = "RATE";
/// The id of `--every`.
const EVERY: &str = "EVERY";
/// The id of a spool's directory.
const DIR: &str = "DIR";

const SETTINGS_HELP: &str = "\
A setting's value comes from its flag (--max-workers), else the environment variable
(MILLRACE_MAX_WORKERS or, if that is absent, MAX_WORKERS), else the TOML file (max_workers),
else its default. MILLRACE_CONFIG names the TOML file, like --config. ADMIN_TOKEN is a secret
and so has no flag.
Sizes and times have units: 64MiB, 1GB, 250ms, 10s, 5m.

Exit status: 0: done. 1: done in part, or the answer is no: a server that is not well, files that are
damaged, something left or lost. 2: refused: bad usage, a bad setting, or what the command needs is
not there.";

/// What every command on dead letters reads.
const DEAD_LETTERS: &[&str] = &["DEAD_LETTER_DIR"];
/// What every command on a spool reads.
const SPOOL: &[&str] = &["SPOOL_DIR"];
/// What a measurement of its disk reads.
const SPOOL_BENCH: &[&str] = &["SPOOL_DIR", "CORES"];
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

/// What `--version` prints; `-V` and programs that parse it get the version alone.
fn version_of(commit: &str) -> String {
    match commit {
        "unknown" => env!("CARGO_PKG_VERSION").to_owned(),
        commit => format!("{} ({commit})", env!("CARGO_PKG_VERSION")),
    }
}

fn command_line() -> clap::Command {
    clap::Command::new(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .long_version(version_of(COMMIT))
        .about("Takes POSTs of JSON and writes every payload to S3, or to a directory")
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
        .subcommand(check_command())
        .subcommand(health_command())
        .subcommand(dead_letter_command())
        .subcommand(spool_command())
        .subcommand(debug_command())
        .subcommand(man_command())
        .subcommand(completion_command())
        .subcommand(top_command())
        .subcommand(tap_command())
        .subcommand(load::command())
}

/// An option without a value.
fn switch(id: &'static str, long: &'static str, help: &'static str) -> Arg {
    Arg::new(id).long(long).action(ArgAction::SetTrue).help(help)
}

fn check_command() -> clap::Command {
    let about = "Validate the configuration, check this host and probe the store without changing \
                 anything; exit 0 or 2";
    command("check", about, Reads::All)
        .arg(switch(PUT, "put", "Also write one probe object to the store, and delete it"))
        .arg(switch(
            RUNNING,
            "running",
            "Check beside the running server: ports and spool that it holds are its own",
        ))
        .arg(
            switch(
                STARTING,
                "starting",
                "Check just before a start: warn of ports and a spool that it will wait for",
            )
            .conflicts_with(RUNNING),
        )
        .arg(switch(JSON, "json", "Print the findings as JSON"))
        .arg(switch(DENY_WARNINGS, "deny-warnings", "Exit 1 if there are warnings"))
}

fn health_command() -> clap::Command {
    let url = Arg::new(URL)
        .value_name("URL")
        .help("Page to ask, http:// or https:// [default: /healthz on ADMIN_LISTEN]");
    command(
        "health",
        "Ask a running server whether it is well; exit 0 or 1, within 5 s",
        Reads::Only(&["ADMIN_LISTEN"]),
    )
    .arg(url)
    .arg(switch(READY, "ready", "Ask /readyz: whether it should get traffic"))
}

fn debug_command() -> clap::Command {
    let out = Arg::new(OUT)
        .short('o')
        .long("output")
        .value_name("FILE")
        .value_parser(ValueParser::path_buf())
        .help("The tar, which must not exist; - is standard output [default: by the time]");
    let seconds = Arg::new(SECONDS)
        .long("seconds")
        .value_name("N")
        .value_parser(clap::value_parser!(u64).range(0..=TIME_MAX.as_secs()))
        .default_value("10")
        .help("Time from the first to the last scrape of /metrics, up to 600");
    let url = Arg::new(URL).value_name("URL").help("The admin listener [default: ADMIN_LISTEN]");
    let about = "Write settings without secrets, check, limits, versions, kernel counters, metrics \
                 and the last log lines of the running server into one tar";
    let reads = Reads::Only(&["ADMIN_LISTEN", "ADMIN_TOKEN_FILE"]);
    group("debug", "Collect what helps to find the cause of a problem").subcommand(
        command("bundle", about, reads).arg(out).arg(seconds).arg(url).arg(plain_token_arg()),
    )
}

fn man_command() -> clap::Command {
    let dir = Arg::new(DIR)
        .value_name("DIR")
        .value_parser(ValueParser::path_buf())
        .required(true)
        .help("Directory for the pages; it is created");
    command("man", "Write the man pages", Reads::Only(&[])).arg(dir)
}

fn completion_command() -> clap::Command {
    let shell = Arg::new(SHELL)
        .value_name("SHELL")
        .value_parser(clap::value_parser!(Shell))
        .required(true)
        .help("The shell that is to complete");
    command("completion", "Print a shell's completion script", Reads::Only(&[])).arg(shell)
}

/// What every command that asks the admin listener reads.
const ADMIN: &[&str] = &["ADMIN_LISTEN", "ADMIN_TOKEN_FILE"];

/// The admin listener of a running server.
fn listener_arg() -> Arg {
    Arg::new(URL)
        .value_name("URL")
        .help("Admin listener, http:// or https:// [default: ADMIN_LISTEN]")
}

/// Whether the token may be sent without TLS.
fn plain_token_arg() -> Arg {
    let help = "Send the admin token without TLS to whoever answers, also on another host";
    switch(PLAIN_TOKEN, "plain-token", help)
}

fn listener_at(matches: &ArgMatches) -> ListenerAt {
    let plain_token = matches.get_flag(PLAIN_TOKEN);
    ListenerAt { url: matches.get_one::<String>(URL).cloned(), plain_token }
}

fn top_command() -> clap::Command {
    let every = Arg::new(EVERY)
        .long("every")
        .value_name("TIME")
        .default_value("1s")
        .value_parser(every)
        .help("Time from one look at the figures to the next, 200ms to 1m");
    command("top", "Show the figures of a running server in a terminal", Reads::Only(ADMIN))
        .arg(listener_arg())
        .arg(plain_token_arg())
        .arg(every)
}

fn every(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_millis(200)..=Duration::from_secs(60);
    if allowed.contains(&time) { Ok(time) } else { Err("give 200ms to 1m".to_owned()) }
}

fn tap_command() -> clap::Command {
    let rate = Arg::new(RATE)
        .long("rate")
        .value_name("N")
        .default_value("10")
        .value_parser(clap::value_parser!(u16).range(1..=100))
        .help("Most payloads per second, 1 to 100");
    let about = "Print samples of the payloads that a running server with TAP=on admits, one JSON \
                 text per line";
    command("tap", about, Reads::Only(ADMIN)).arg(listener_arg()).arg(plain_token_arg()).arg(rate)
}

fn dead_letter_command() -> clap::Command {
    let any_store = Arg::new(ANY_STORE)
        .long("any-store")
        .action(ArgAction::SetTrue)
        .help("Also those recorded for a store other than STORE");
    let only = Reads::Only(DEAD_LETTERS);
    let error = || {
        let help = "Only those whose error contains this text, in any case: AccessDenied";
        let not_blank = |text: &str| match text.trim() {
            "" => Err("a blank text is in every error".to_owned()),
            _ => Ok(text.to_owned()),
        };
        Arg::new(ERROR).long("error").value_name("TEXT").value_parser(not_blank).help(help)
    };
    let time = |text: &str| humantime::parse_duration(text).map_err(|error| error.to_string());
    let older = || {
        let help = "Only those abandoned at least this long ago: 90m, 7d";
        Arg::new(OLDER).long("older").value_name("TIME").value_parser(time).help(help)
    };
    let some_time = move |text: &str| match time(text)? {
        Duration::ZERO => Err("every dead letter is at least that old".to_owned()),
        time => Ok(time),
    };
    let keys = |help: &'static str| {
        Arg::new(KEYS).value_name("KEY").action(ArgAction::Append).num_args(1..).help(help)
    };
    let payload = switch(PAYLOAD, "payload", "Print the objects' bytes and nothing else");
    let all =
        switch(ALL, "all", "Remove every dead letter").conflicts_with_all([KEYS, ERROR, OLDER]);
    let chosen = clap::ArgGroup::new("chosen").args([KEYS, ERROR, OLDER, ALL]);
    let replay = "Upload dead letters again under their recorded keys; exit 1 if some are left";
    let remove = "Remove the dead letters that match all that is given, with their payloads";
    group("dead-letter", "List, show, remove or upload payloads that the store did not accept")
        .subcommand(
            command("ls", "List dead letters, oldest first", only).arg(error()).arg(older()),
        )
        .subcommand(
            command("show", "Print what is known of dead letters, as JSON", only)
                .arg(keys("Key of a dead letter, as ls shows it").required(true))
                .arg(payload),
        )
        .subcommand(
            command("rm", remove, only)
                .arg(keys("Key of a dead letter, as ls shows it"))
                .arg(error())
                .arg(older().value_parser(some_time))
                .arg(all)
                .group(chosen.multiple(true).required(true)),
        )
        .subcommand(
            command("replay", replay, Reads::AndUploads(DEAD_LETTERS))
                .arg(any_store)
                .arg(error())
                .arg(older()),
        )
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
    let bench = "Measure how long the disk takes for what a spool writes, and say what that means";
    group("spool", "Handle payloads that stopped or crashed servers left on this host's disk")
        .subcommand(command("ls", "List the files of a spool", only))
        .subcommand(command("verify", "Check every checksum; exit 1 if there is damage", only))
        .subcommand(command("replay", replay, Reads::AndUploads(SPOOL)))
        .subcommand(
            command("export", "Write the payloads to standard output, one per line", only).arg(all),
        )
        .subcommand(command("bench", bench, Reads::Only(SPOOL_BENCH)))
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

    fn any() -> LetterFilter {
        LetterFilter::default()
    }

    fn listener(url: &str, plain_token: bool) -> ListenerAt {
        ListenerAt { url: Some(url.to_owned()), plain_token }
    }

    #[test]
    fn the_long_version_names_the_commit_where_it_is_known() {
        assert_eq!(version_of("unknown"), env!("CARGO_PKG_VERSION"));
        assert_eq!(version_of("0a1b2c"), format!("{} (0a1b2c)", env!("CARGO_PKG_VERSION")));
        // Errors of clap that are not one: what is to be printed.
        let printed = |line| invoke(line).unwrap_err().to_string();
        assert_eq!(printed("millrace -V"), format!("millrace {}\n", env!("CARGO_PKG_VERSION")));
        assert_eq!(printed("millrace --version"), format!("millrace {}\n", version_of(COMMIT)));
    }

    #[test]
    fn serve_is_the_default_and_each_command_has_its_type() {
        for (line, command) in [
            ("millrace", Command::Serve),
            ("millrace --max-workers 3", Command::Serve),
            ("millrace serve", Command::Serve),
            ("millrace check", Command::Check(CheckOptions::default())),
            (
                "millrace check --put --json",
                Command::Check(CheckOptions { put: true, json: true, ..CheckOptions::default() }),
            ),
            (
                "millrace check --running --deny-warnings",
                Command::Check(CheckOptions {
                    running: true,
                    deny_warnings: true,
                    ..CheckOptions::default()
                }),
            ),
            (
                "millrace check --starting",
                Command::Check(CheckOptions { starting: true, ..CheckOptions::default() }),
            ),
            ("millrace health", Command::Health { url: None, ready: false }),
            (
                "millrace health --ready http://x/",
                Command::Health { url: Some("http://x/".to_owned()), ready: true },
            ),
            (
                "millrace debug bundle",
                Command::DebugBundle(BundleOptions {
                    out: None,
                    listener: ListenerAt::default(),
                    time: Duration::from_secs(10),
                }),
            ),
            (
                "millrace debug bundle -o b.tar --seconds 1 http://x",
                Command::DebugBundle(BundleOptions {
                    out: Some("b.tar".into()),
                    listener: listener("http://x", false),
                    time: Duration::from_secs(1),
                }),
            ),
            ("millrace man d", Command::Man { dir: "d".into() }),
            ("millrace completion bash", Command::Completion { shell: Shell::Bash }),
            (
                "millrace top",
                Command::Top(TopOptions {
                    listener: ListenerAt::default(),
                    every: Duration::from_secs(1),
                }),
            ),
            (
                "millrace top --every 500ms http://h:9090",
                Command::Top(TopOptions {
                    listener: listener("http://h:9090", false),
                    every: Duration::from_millis(500),
                }),
            ),
            (
                "millrace tap",
                Command::Tap(TapOptions { listener: ListenerAt::default(), rate: 10 }),
            ),
            (
                "millrace tap http://h:9090 --rate 3 --plain-token",
                Command::Tap(TapOptions { listener: listener("http://h:9090", true), rate: 3 }),
            ),
            ("millrace dead-letter ls", Command::DeadLetterLs { filter: any() }),
            (
                "millrace dead-letter ls --error Denied --older 2h",
                Command::DeadLetterLs {
                    filter: LetterFilter {
                        error: Some("Denied".to_owned()),
                        older: Some(Duration::from_secs(7200)),
                        ..any()
                    },
                },
            ),
            (
                "millrace dead-letter show a b --payload",
                Command::DeadLetterShow {
                    keys: vec!["a".to_owned(), "b".to_owned()],
                    payload: true,
                },
            ),
            (
                "millrace dead-letter rm a",
                Command::DeadLetterRm {
                    filter: LetterFilter { keys: vec!["a".to_owned()], ..any() },
                },
            ),
            ("millrace dead-letter rm --all", Command::DeadLetterRm { filter: any() }),
            (
                "millrace dead-letter replay",
                Command::DeadLetterReplay { filter: any(), any_store: false },
            ),
            (
                "millrace dead-letter replay --any-store --older 1s",
                Command::DeadLetterReplay {
                    filter: LetterFilter { older: Some(Duration::from_secs(1)), ..any() },
                    any_store: true,
                },
            ),
            ("millrace spool ls", spool(SpoolCommand::Ls, None)),
            ("millrace spool verify d", spool(SpoolCommand::Verify, Some("d"))),
            ("millrace spool replay d/n --store null:", spool(SpoolCommand::Replay, Some("d/n"))),
            ("millrace spool export", spool(SpoolCommand::Export { all: false }, None)),
            ("millrace spool export --all d", spool(SpoolCommand::Export { all: true }, Some("d"))),
            ("millrace spool bench d", spool(SpoolCommand::Bench, Some("d"))),
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
            "millrace dead-letter rm a --all",
            "millrace dead-letter show",
            "millrace dead-letter ls --older soon",
            "millrace spool",
            "millrace spool rm",
            "millrace top a b",
            "millrace top --every 1ms",
            "millrace tap --rate 0",
            "millrace tap --rate 101",
            "millrace spool ls a b",
            "millrace bench",
            "millrace bench http://x http://y",
            "millrace man",
            "millrace debug",
            "millrace debug bundle --seconds 601",
            "millrace completion ksh",
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

    /// What fits every dead letter chooses none, and an unset variable of a shell is such.
    #[test]
    fn a_choice_of_dead_letters_that_fits_all_of_them_is_refused() {
        for (arguments, refused_for) in [
            (&["--error", ""][..], &["ls", "replay", "rm"][..]),
            (&["--error="], &["ls", "replay", "rm"]),
            (&["--error", " \t "], &["ls", "replay", "rm"]),
            (&["--error", "", "--older", "7d"], &["ls", "replay", "rm"]),
            (&["--older", "0s"], &["rm"]),
            (&["--older", "0s", "--error", "SlowDown"], &["rm"]),
            (&["--error", "SlowDown"], &[]),
            (&["--older", "1s"], &[]),
        ] {
            for command in ["ls", "replay", "rm"] {
                let start = ["millrace", "dead-letter", command];
                let parsed = parse(start.iter().chain(arguments).map(OsString::from));
                let refused = parsed.map_or_else(|error| error.exit_code() == 2, |_| false);
                assert_eq!(refused, refused_for.contains(&command), "{command} {arguments:?}");
            }
        }
    }

    /// Every subcommand with the settings that its help explains; for a server and `check` their
    /// flags suffice.
    #[test]
    fn the_help_of_a_subcommand_is_short_and_names_what_it_reads() {
        // A replay explains what uploads depend on, 14 of it for S3 alone.
        let lines_max = |command: &str| if command.ends_with("replay") { 100 } else { 48 };
        let uploads: Vec<&str> = SETTINGS
            .iter()
            .map(|s| s.name)
            .filter(|name| UPLOADS.contains(name) || name.starts_with("S3_"))
            .collect();
        for (command, own, settings) in [
            ("dead-letter", &["ls", "show", "rm", "replay"][..], vec![]),
            ("dead-letter ls", &["--error <TEXT>", "--older <TIME>"], vec!["DEAD_LETTER_DIR"]),
            ("dead-letter show", &["<KEY>...", "--payload"], vec!["DEAD_LETTER_DIR"]),
            (
                "dead-letter rm",
                &["[KEY]...", "--error <TEXT>", "--older <TIME>", "--all"],
                vec!["DEAD_LETTER_DIR"],
            ),
            (
                "dead-letter replay",
                &["--any-store", "--error <TEXT>", "--older <TIME>"],
                [&["DEAD_LETTER_DIR"], &*uploads].concat(),
            ),
            ("spool", &["ls", "verify", "replay", "export", "bench"], vec![]),
            ("spool ls", &["[DIR]"], vec!["SPOOL_DIR"]),
            ("spool verify", &["[DIR]"], vec!["SPOOL_DIR"]),
            ("spool export", &["[DIR]", "--all"], vec!["SPOOL_DIR"]),
            ("spool replay", &["[DIR]"], [&["SPOOL_DIR"], &*uploads].concat()),
            ("top", &["[URL]", "--every", "--plain-token"], ADMIN.to_vec()),
            ("tap", &["[URL]", "--rate", "--plain-token"], ADMIN.to_vec()),
            ("spool bench", &["[DIR]"], vec!["SPOOL_DIR", "CORES"]),
            (
                "bench",
                &["<URL>", "--rate <N>", "--token-file <FILE>", "--json", "--histogram <FILE>"],
                vec![],
            ),
            ("serve", &[], vec![]),
            ("check", &["--put", "--running", "--starting", "--json", "--deny-warnings"], vec![]),
            ("health", &["[URL]", "--ready"], vec!["ADMIN_LISTEN"]),
            ("debug", &["bundle"], vec![]),
            (
                "debug bundle",
                &["[URL]", "--output <FILE>", "--seconds <N>", "--plain-token"],
                vec!["ADMIN_LISTEN", "ADMIN_TOKEN_FILE"],
            ),
            ("man", &["<DIR>"], vec![]),
            ("completion", &["<SHELL>"], vec![]),
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
