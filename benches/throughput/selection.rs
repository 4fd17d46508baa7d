//! The command line of `throughput`: which lanes and servers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::lanes::{Kind, LANES, Lane, Sink};
use crate::options::{
    Defaults, Options, duration, is_trial, list, list_option, number, option, text,
};
use crate::record::{Machine, under_records};
use crate::server::Variant;

/// The servers that run unless the command line names others.
const USUAL: &str = "millrace,millrace-queued,millrace-null,millrace-unsigned,millrace-plain,\
    millrace-http,tokio-sdk,tokio-lean,floor";

/// Rounds of a record; a median of fewer is a matter of luck on a machine with neighbours.
const RECORD_ROUNDS: usize = 9;

/// What to run.
#[derive(Debug)]
pub struct Selection {
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

impl Selection {
    pub fn from_args() -> (Options, Selection) {
        let matches = command().get_matches();
        let both = || -> Result<(Options, Selection), String> {
            let (options, selection) = (Options::new(&matches)?, Selection::new(&matches)?);
            Ok(match is_trial(&matches) {
                true => (options.shortened(), selection.shortened()),
                false => (options, selection),
            })
        };
        both().unwrap_or_else(|error| {
            eprintln!("{error}; see --help");
            std::process::exit(2);
        })
    }

    fn new(matches: &ArgMatches) -> Result<Selection, String> {
        let variants = list(matches, "variants");
        let selection = Selection {
            connections: number(matches, "connections")?,
            payloads: number(matches, "payloads")?,
            payload_bytes: text(matches, "payload-bytes").map(bytes).transpose()?,
            store_latency: duration(matches, "store-latency")?,
            rate: text(matches, "rate")
                .map(|rate| rate.parse().map_err(|_| format!("{rate}: not a number")))
                .transpose()?,
            lanes: list(matches, "lanes"),
            variants: variants.iter().filter_map(|name| Variant::named(name.trim())).collect(),
            record: text(matches, "record").map(PathBuf::from),
            no_record: matches.get_flag("no-record"),
        };
        match selection.lanes.iter().find(|name| !LANES.iter().any(|l| l.name == **name)) {
            Some(name) => Err(format!("no lane {name}")),
            None => Ok(selection),
        }
    }

    /// One round of millrace alone, with few connections.
    fn shortened(self) -> Selection {
        Selection {
            connections: self.connections.or(Some(8)),
            variants: vec![Variant::Millrace],
            no_record: true,
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

    /// Every server that is started in one of the chosen lanes.
    pub fn all_variants(&self) -> Vec<Variant> {
        self.lanes().iter().flat_map(|lane| self.variants(lane)).collect()
    }

    /// `benches/record/<date>-<host>`, or what `--record` says.
    pub fn record_directory(&self, options: &Options, machine: &Machine) -> Option<PathBuf> {
        if self.no_record {
            return None;
        }
        if self.record.is_none() && options.rounds < RECORD_ROUNDS {
            println!("no record: one takes {RECORD_ROUNDS} rounds, or --record DIR");
            return None;
        }
        Some(self.record.clone().unwrap_or_else(|| under_records(&machine.directory_name())))
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
    let command = Command::new("throughput")
        .about("millrace against the tokio variant and the floor; without options 15 minutes on 2 cores")
        .after_help(format!("Lanes:{lanes}\n\nOn a real host:\n  cargo bench --bench throughput -- \
            --server-cores 0-7 --client-cores 8-15 --duration 30s --connections 512"))
        .arg(option("connections", "N", "Client connections, in all [default: the lane's]"))
        .arg(option("payloads", "N", "Payloads a request [default: the lane's]"))
        .arg(option("payload-bytes", "SIZE", "Bytes of a payload [default: the lane's]"))
        .arg(option("store-latency", "TIME", "How long the sink waits before it answers a PUT [default: the lane's]"))
        .arg(option("rate", "N", "Requests a second of the open-loop lanes [default: half the lower peak]"))
        .arg(list_option("lanes", "NAMES", "Which lanes, with commas [default: all]"))
        .arg(list_option("variants", "NAMES", "Which servers, with commas").default_value(USUAL)
            .value_parser(Variant::ALL.map(Variant::name)))
        .arg(option("record", "DIR", "Where CSV and SVG go [default: benches/record/<date>-<host>]"))
        .arg(Arg::new("no-record").long("no-record").action(ArgAction::SetTrue).help("Write neither"));
    Options::arguments(command, &Defaults { duration: "1500ms", warm_up: "700ms", rounds: "9" })
}

fn bytes(text: &str) -> Result<usize, String> {
    text.parse::<bytesize::ByteSize>()
        .map(|size| size.0 as usize)
        .map_err(|_| format!("{text}: not a size"))
}
