//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::lanes::{Kind, LANES, Lane, Sink};
use crate::record::Machine;
use crate::server::Variant;

/// The servers that run unless the command line names others.
const USUAL: &str =
    "millrace,millrace-queued,millrace-null,millrace-unsigned,millrace-plain,tokio-sdk,tokio-lean";

/// What to run, and where.
#[derive(Debug)]
pub struct Options {
    pub server_cores: Vec<usize>,
    pub client_cores: Vec<usize>,
    pub duration: Duration,
    pub warm_up: Duration,
    pub rounds: usize,
    /// Every setting that both servers get on top of the lane's.
    pub settings: Vec<(String, String)>,
    pub millrace: Option<PathBuf>,
    pub tokio: Option<PathBuf>,
    connections: Option<usize>,
    payloads: Option<usize>,
    payload_bytes: Option<usize>,
    store_latency: Option<Duration>,
    rate: Option<f64>,
    lanes: Vec<String>,
    variants: Vec<Variant>,
    record: Option<PathBuf>,
    no_record: bool,
}

impl Options {
    pub fn from_args() -> Options {
        let matches = command().get_matches();
        Options::new(&matches).unwrap_or_else(|error| {
            eprintln!("{error}; see --help");
            std::process::exit(2);
        })
    }

    fn new(matches: &ArgMatches) -> Result<Options, String> {
        let trial = !matches.get_flag("bench");
        let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
        let (server, client) = halves();
        let duration = |name| text(name).map(humantime_duration).transpose();
        let list = |name| -> Vec<String> {
            matches.get_many::<String>(name).into_iter().flatten().cloned().collect()
        };
        let options = Options {
            server_cores: text("server-cores").map_or(Ok(server), core_list)?,
            client_cores: text("client-cores").map_or(Ok(client), core_list)?,
            duration: duration("duration")?.unwrap_or_default(),
            warm_up: duration("warm-up")?.unwrap_or_default(),
            rounds: number(text("rounds"))?.unwrap_or(1).max(1),
            settings: list("set").iter().map(|text| setting(text)).collect::<Result<_, _>>()?,
            millrace: text("millrace").map(PathBuf::from),
            tokio: text("tokio").map(PathBuf::from),
            connections: number(text("connections"))?,
            payloads: number(text("payloads"))?,
            payload_bytes: text("payload-bytes").map(bytes).transpose()?,
            store_latency: duration("store-latency")?,
            rate: text("rate")
                .map(|rate| rate.parse().map_err(|_| format!("{rate}: not a number")))
                .transpose()?,
            lanes: list("lanes"),
            variants: list("variants").iter().filter_map(|name| Variant::named(name)).collect(),
            record: text("record").map(PathBuf::from),
            no_record: matches.get_flag("no-record") || trial,
        };
        if let Some(name) =
            options.lanes.iter().find(|name| !LANES.iter().any(|l| l.name == **name))
        {
            return Err(format!("no lane {name}"));
        }
        Ok(if trial { options.shortened() } else { options })
    }

    /// For `cargo test --bench throughput`: one short round of millrace alone, to see that all this
    /// works; figures do not matter.
    fn shortened(self) -> Options {
        Options {
            duration: Duration::from_millis(500),
            warm_up: Duration::from_millis(100),
            rounds: 1,
            connections: self.connections.or(Some(8)),
            variants: vec![Variant::Millrace],
            millrace: Some(PathBuf::from(env!("CARGO_BIN_EXE_millrace"))),
            ..self
        }
    }

    /// The chosen lanes with what the command line changes in them.
    pub fn lanes(&self) -> Vec<Lane> {
        let chosen =
            |lane: &&Lane| self.lanes.is_empty() || self.lanes.iter().any(|n| n == lane.name);
        LANES.iter().filter(chosen).map(|lane| self.adapted(lane)).collect()
    }

    fn adapted(&self, lane: &Lane) -> Lane {
        let mut lane = lane.clone();
        lane.connections = self.connections.unwrap_or(lane.connections);
        lane.payloads = self.payloads.unwrap_or(lane.payloads);
        lane.payload_bytes = self.payload_bytes.unwrap_or(lane.payload_bytes);
        if let (Sink::S3 { latency }, Some(asked)) = (&mut lane.store, self.store_latency) {
            *latency = asked;
        }
        if let Kind::Open { rate, .. } = &mut lane.kind {
            *rate = self.rate;
        }
        lane
    }

    /// The servers to compare in `lane`.
    pub fn variants(&self, lane: &Lane) -> Vec<Variant> {
        self.variants.iter().copied().filter(|variant| variant.belongs_to(lane)).collect()
    }

    /// Whether the tokio variant has to be built.
    pub fn wants_tokio(&self) -> bool {
        self.variants.iter().any(|variant| variant.is_tokio())
    }

    /// `benches/record/<date>-<host>`, or what `--record` says.
    pub fn record_directory(&self, machine: &Machine) -> Option<PathBuf> {
        if self.no_record {
            return None;
        }
        let under = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/record");
        Some(self.record.clone().unwrap_or_else(|| under.join(machine.directory_name())))
    }

    /// `path` as it may be printed: relative to the repository.
    pub fn shown(&self, path: &Path) -> String {
        path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(path).display().to_string()
    }
}

#[rustfmt::skip]
fn command() -> Command {
    let lanes: String =
        LANES.iter().map(|lane| format!("\n  {:<18} {}", lane.name, lane.what)).collect();
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let list = |arg: Arg| arg.value_delimiter(',').action(ArgAction::Append);
    Command::new("throughput")
        .about("millrace against the tokio variant; without options under 5 minutes on 2 cores")
        .after_help(format!("Lanes:{lanes}\n\nOn a real host:\n  cargo bench --bench throughput -- \
            --server-cores 0-7 --client-cores 8-15 --duration 30s --connections 512"))
        .arg(option("server-cores", "LIST", "Cores of the server, e.g. 0-7 [default: the first half]"))
        .arg(option("client-cores", "LIST", "Cores of load generator and sink [default: the second half]"))
        .arg(option("duration", "TIME", "Measured part of a round").default_value("1500ms"))
        .arg(option("warm-up", "TIME", "Load before it").default_value("700ms"))
        .arg(option("rounds", "N", "Rounds of each server and lane").default_value("3"))
        .arg(option("connections", "N", "Client connections, in all [default: the lane's]"))
        .arg(option("payloads", "N", "Payloads a request [default: the lane's]"))
        .arg(option("payload-bytes", "SIZE", "Bytes of a payload [default: the lane's]"))
        .arg(option("store-latency", "TIME", "How long the sink waits before it answers a PUT [default: the lane's]"))
        .arg(option("rate", "N", "Requests a second of the open-loop lanes [default: half the lower peak]"))
        .arg(list(option("lanes", "NAMES", "Which lanes, with commas [default: all]")))
        .arg(list(option("variants", "NAMES", "Which servers, with commas").default_value(USUAL)
            .value_parser(Variant::ALL.map(Variant::name))))
        .arg(option("set", "NAME=VALUE", "A setting for all servers, e.g. MAX_WORKERS=64; may be repeated")
            .action(ArgAction::Append))
        .arg(option("millrace", "FILE", "Binary to measure as millrace [default: built now]"))
        .arg(option("tokio", "FILE", "Binary to measure as the tokio variant [default: built now]"))
        .arg(option("record", "DIR", "Where CSV and SVG go [default: benches/record/<date>-<host>]"))
        .arg(Arg::new("no-record").long("no-record").action(ArgAction::SetTrue).help("Write neither"))
        // `cargo bench` passes this flag, `cargo test --bench throughput` does not.
        .arg(Arg::new("bench").long("bench").action(ArgAction::SetTrue).hide(true))
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

fn humantime_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{text}: {error}"))
}

fn number(text: Option<&str>) -> Result<Option<usize>, String> {
    text.map(|text| text.parse().map_err(|_| format!("{text}: not a whole number"))).transpose()
}

fn bytes(text: &str) -> Result<usize, String> {
    text.parse::<bytesize::ByteSize>()
        .map(|size| size.0 as usize)
        .map_err(|_| format!("{text}: not a size"))
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text}: not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}
