//! The part of the command line that every bench of servers has: where it runs, for how long, and
//! which binaries.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};

/// Where and how long to measure, and what.
#[derive(Clone, Debug)]
pub struct Options {
    pub server_cores: Vec<usize>,
    pub client_cores: Vec<usize>,
    pub duration: Duration,
    pub warm_up: Duration,
    pub rounds: usize,
    /// Every setting that all servers get on top of the lane's.
    pub settings: Vec<(String, String)>,
    pub millrace: Option<PathBuf>,
    pub tokio: Option<PathBuf>,
    pub floor: Option<PathBuf>,
}

/// What `--duration`, `--warm-up` and `--rounds` are unless they are given.
pub struct Defaults {
    pub duration: &'static str,
    pub warm_up: &'static str,
    pub rounds: &'static str,
}

impl Options {
    pub fn new(matches: &ArgMatches) -> Result<Options, String> {
        let (server, client) = halves();
        // Each server runs in a directory of its own, where a relative path would not be found.
        let binary = |name| {
            let resolved =
                |path| fs::canonicalize(path).map_err(|e| format!("--{name} {path}: {e}"));
            text(matches, name).map(resolved).transpose()
        };
        let time = |name| duration(matches, name).map(Option::unwrap_or_default);
        Ok(Options {
            server_cores: text(matches, "server-cores").map_or(Ok(server), core_list)?,
            client_cores: text(matches, "client-cores").map_or(Ok(client), core_list)?,
            duration: time("duration")?,
            warm_up: time("warm-up")?,
            rounds: number(matches, "rounds")?.unwrap_or(1).max(1),
            settings: list(matches, "set")
                .iter()
                .map(|text| setting(text))
                .collect::<Result<_, _>>()?,
            millrace: binary("millrace")?,
            tokio: binary("tokio")?,
            floor: binary("floor")?,
        })
    }

    /// For `cargo test --bench …`: short, and with the binary that cargo has just built, to see
    /// that all this works; figures do not matter.
    pub fn shortened(self) -> Options {
        Options {
            duration: Duration::from_millis(500),
            warm_up: Duration::from_millis(100),
            rounds: 1,
            millrace: Some(PathBuf::from(env!("CARGO_BIN_EXE_millrace"))),
            ..self
        }
    }

    /// `command` with these options.
    #[rustfmt::skip]
    pub fn arguments(command: Command, defaults: &Defaults) -> Command {
        let Defaults { duration, warm_up, rounds } = *defaults;
        command
            .arg(option("server-cores", "LIST", "Cores of the server, e.g. 0-7 [default: the first half]"))
            .arg(option("client-cores", "LIST", "Cores of load generator and sink [default: the second half]"))
            .arg(option("duration", "TIME", "Measured part of a round").default_value(duration))
            .arg(option("warm-up", "TIME", "Load before it").default_value(warm_up))
            .arg(option("rounds", "N", "Rounds of everything that is compared").default_value(rounds))
            .arg(option("set", "NAME=VALUE", "A setting for all servers, e.g. MAX_WORKERS=64; may be repeated")
                .action(ArgAction::Append))
            .arg(option("millrace", "FILE", "Binary to measure as millrace [default: built now]"))
            .arg(option("tokio", "FILE", "Binary to measure as the tokio variant [default: built now]"))
            .arg(option("floor", "FILE", "Binary to measure as the floor [default: built now]"))
            // `cargo bench` passes this flag, `cargo test --bench` does not.
            .arg(Arg::new("bench").long("bench").action(ArgAction::SetTrue).hide(true))
    }
}

pub fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

/// An option that takes several values.
pub fn list_option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    option(name, value, help).value_delimiter(',').action(ArgAction::Append)
}

/// Whether this is a trial, `cargo test --bench …`, and no figure counts.
pub fn is_trial(matches: &ArgMatches) -> bool {
    !matches.get_flag("bench")
}

pub fn text<'a>(matches: &'a ArgMatches, name: &str) -> Option<&'a str> {
    matches.get_one::<String>(name).map(String::as_str)
}

pub fn list(matches: &ArgMatches, name: &str) -> Vec<String> {
    matches.get_many::<String>(name).into_iter().flatten().cloned().collect()
}

pub fn duration(matches: &ArgMatches, name: &str) -> Result<Option<Duration>, String> {
    let parse = |text| humantime::parse_duration(text).map_err(|error| format!("{text}: {error}"));
    text(matches, name).map(parse).transpose()
}

pub fn number(matches: &ArgMatches, name: &str) -> Result<Option<usize>, String> {
    let parse = |text: &str| text.parse().map_err(|_| format!("{text}: not a whole number"));
    text(matches, name).map(parse).transpose()
}

/// The allowed cores, the first half for the server; a lone core is shared.
fn halves() -> (Vec<usize>, Vec<usize>) {
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    let allowed: Vec<usize> = allowed.iter().map(|core| core.id).collect();
    let (server, client) = allowed.split_at(allowed.len() / 2);
    let server = if server.is_empty() { client } else { server };
    (server.to_vec(), client.to_vec())
}

/// `0-3,8`
fn core_list(text: &str) -> Result<Vec<usize>, String> {
    let wrong = || format!("{text}: not a list of cores such as 0-3,8");
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let core = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
        cores.extend(core(first)?..=core(last)?);
    }
    if cores.is_empty() { Err(wrong()) } else { Ok(cores) }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text}: not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}
