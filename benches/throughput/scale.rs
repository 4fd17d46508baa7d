//! `cargo bench --bench scale`: what a request costs with more cores, and with more connections,
//! payloads and bytes. It is made of the parts of the bench `throughput`, see `main.rs`.
//!
//! - `cores`: the `ingest` lane with the server on 1, 2, 4 … cores, with as many connections for
//!   each, and the load generator on the same cores. What is compared is CPU per request, so it does
//!   not matter that the load takes its share of the cores.
//! - `connections`, `payloads`, `bytes`: one of them grows. The server has its own cores. Through
//!   the medians go lines, by least squares: a request costs so much, and so much more per payload
//!   and per byte.

#![allow(clippy::disallowed_methods, reason = "a bench is not on a core of the server")]
#![allow(dead_code, reason = "it uses a part of what `throughput` is made of")]
#![deny(unsafe_code)]

mod build;
mod client;
mod costs;
mod disk;
mod figures;
mod fit;
mod histogram;
mod lanes;
mod options;
mod record;
mod round;
mod server;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::costs::Measured;
use crate::lanes::{LANES, Lane};
use crate::options::{Defaults, Options, is_trial, list, list_option, option, text};
use crate::record::{Machine, under_records, write_files};
use crate::server::{Binaries, Variant};

/// Connections for each core, as in the `ingest` lane.
const CONNECTIONS: usize = 64;
/// Fewer where bodies are large, so that all of them fit into the budgets and the caches have the
/// same work.
const CONNECTIONS_OF_LARGE: usize = 32;
const PAYLOADS: usize = 10;
const PAYLOAD_BYTES: usize = 150;

/// The lines are wanted to one part in ten, and go through many points; the ratio of two figures
/// needs more rounds.
const ROUNDS_PER_LINE_ROUND: usize = 3;

const SETTINGS: &[(&str, &str)] = &[
    ("ENQUEUE_WAIT", "1m"),
    ("MAX_LENGTH", "2MiB"),
    ("MAX_BODY_BYTES", "256MiB"),
    ("MAX_QUEUE_BYTES", "256MiB"),
    ("MAX_QUEUE", "100000"),
];

/// What a body has beside its payloads and the commas between them.
const ENVELOPE_BYTES: usize = r#"{"version":"1.0","token":"0123456789abcdef","data":[]}"#.len();

/// What is varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sweep {
    Cores,
    Connections,
    Payloads,
    Bytes,
}

impl Sweep {
    const ALL: [Sweep; 4] = [Sweep::Cores, Sweep::Connections, Sweep::Payloads, Sweep::Bytes];

    fn name(self) -> &'static str {
        match self {
            Sweep::Cores => "cores",
            Sweep::Connections => "connections",
            Sweep::Payloads => "payloads",
            Sweep::Bytes => "bytes",
        }
    }

    fn named(name: &str) -> Option<Sweep> {
        Sweep::ALL.into_iter().find(|sweep| sweep.name() == name)
    }

    /// Values of what is varied; for bytes those of a body.
    fn values(self, cores: usize) -> Vec<usize> {
        match self {
            Sweep::Cores => (0..).map(|power| 1 << power).take_while(|n| *n <= cores).collect(),
            Sweep::Connections => vec![16, 64, 256, 1_024, 4_096, 10_000],
            Sweep::Payloads => vec![1, 3, 10, 30, 100, 300, 1_000],
            Sweep::Bytes => {
                vec![200, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20]
            }
        }
    }
}

/// One load on one number of cores.
#[derive(Clone, Debug)]
struct Point {
    sweep: Sweep,
    cores: usize,
    connections: usize,
    payloads: usize,
    payload_bytes: usize,
}

impl Point {
    fn new(sweep: Sweep, value: usize) -> Point {
        let usual = Point {
            sweep,
            cores: 1,
            connections: CONNECTIONS,
            payloads: PAYLOADS,
            payload_bytes: PAYLOAD_BYTES,
        };
        match sweep {
            Sweep::Cores => Point { cores: value, connections: CONNECTIONS * value, ..usual },
            Sweep::Connections => {
                Point { connections: value.min(client::connections_max()), ..usual }
            }
            Sweep::Payloads => {
                Point { payloads: value, connections: CONNECTIONS_OF_LARGE, ..usual }
            }
            Sweep::Bytes => Point {
                payloads: 1,
                payload_bytes: value - ENVELOPE_BYTES,
                connections: CONNECTIONS_OF_LARGE,
                ..usual
            },
        }
    }

    fn body_bytes(&self) -> usize {
        ENVELOPE_BYTES + self.payloads * (self.payload_bytes + 1) - 1
    }

    fn lane(&self) -> Lane {
        let Point { connections, payloads, payload_bytes, .. } = *self;
        let ingest = LANES.iter().find(|lane| lane.name == "ingest").expect("there is this lane");
        Lane { connections, payloads, payload_bytes, settings: SETTINGS, ..ingest.clone() }
    }
}

/// What to run.
struct Selection {
    sweeps: Vec<Sweep>,
    variants: Vec<Variant>,
    /// All cores; the first ones are used.
    cores: Vec<usize>,
    record: Option<PathBuf>,
    no_record: bool,
    is_trial: bool,
}

fn main() -> ExitCode {
    let matches = command().get_matches();
    let both = Options::new(&matches).and_then(|options| {
        let selection = Selection::new(&matches, &options)?;
        Ok((if selection.is_trial { options.shortened() } else { options }, selection))
    });
    let (options, selection) = both.unwrap_or_else(|error| {
        eprintln!("{error}; see --help");
        std::process::exit(2);
    });
    match run(&options, &selection) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    let command = Command::new("scale")
        .about("CPU per request by cores, connections, payloads and bytes; 10 minutes on 2 cores")
        .arg(
            list_option("sweeps", "NAMES", "What to vary, with commas")
                .default_value("cores,connections,payloads,bytes")
                .value_parser(Sweep::ALL.map(Sweep::name)),
        )
        .arg(
            list_option("variants", "NAMES", "Which servers, with commas")
                .default_value("millrace,millrace-by-cpu,tokio-sdk,floor")
                .value_parser(Variant::ALL.map(Variant::name)),
        )
        .arg(option("record", "DIR", "Where CSV goes [default: benches/record/<date>-<host>]"))
        .arg(
            Arg::new("no-record")
                .long("no-record")
                .action(ArgAction::SetTrue)
                .help("Write nothing"),
        );
    let defaults = Defaults { duration: "1500ms", warm_up: "500ms", rounds: "9" };
    Options::arguments(command, &defaults)
}

impl Selection {
    fn new(matches: &ArgMatches, options: &Options) -> Result<Selection, String> {
        let is_trial = is_trial(matches);
        let variants = list(matches, "variants").iter().filter_map(|v| Variant::named(v)).collect();
        let mut cores = options.server_cores.clone();
        cores.extend(
            options.client_cores.iter().filter(|core| !options.server_cores.contains(core)),
        );
        Ok(Selection {
            sweeps: list(matches, "sweeps").iter().filter_map(|name| Sweep::named(name)).collect(),
            variants: if is_trial { vec![Variant::Millrace] } else { variants },
            cores,
            record: text(matches, "record").map(PathBuf::from),
            no_record: matches.get_flag("no-record") || is_trial,
            is_trial,
        })
    }

    fn points(&self, sweep: Sweep) -> Vec<Point> {
        let mut values = sweep.values(self.cores.len());
        if self.is_trial {
            values.truncate(2);
        }
        values.into_iter().map(|value| Point::new(sweep, value)).collect()
    }

    /// The floor is one thread, and on one core there is nothing to place.
    fn variants(&self, sweep: Sweep) -> impl Iterator<Item = Variant> {
        let fits = move |v: &Variant| match v {
            Variant::Floor => sweep != Sweep::Cores,
            Variant::MillraceByCpu => sweep == Sweep::Cores,
            _ => true,
        };
        self.variants.iter().copied().filter(fits)
    }
}

fn run(options: &Options, selection: &Selection) -> Result<(), String> {
    if selection.is_trial {
        fit::check();
    }
    let binaries = build::binaries(options, &selection.variants)?;
    let machine = Machine::look(options, "scale");
    println!("{machine}");
    client::raise_file_limit();
    let mut all = Vec::new();
    for sweep in &selection.sweeps {
        let measured = run_sweep(options, selection, &binaries, *sweep)?;
        print!("{}", costs::table(*sweep, &measured));
        all.extend(measured);
    }
    let (ratios, lines) = (costs::core_ratios(&all), costs::lines(&all));
    print!("\n{}\n{}", costs::shown_ratios(&ratios), costs::shown_lines(&lines));
    if !selection.no_record {
        let directory =
            selection.record.clone().unwrap_or_else(|| under_records(&machine.directory_name()));
        let files = [
            ("scale-rounds.csv", costs::rounds_csv(&all)),
            ("scale-cores.csv", costs::ratios_csv(&ratios)),
            ("scale-lines.csv", costs::lines_csv(&lines)),
        ];
        write_files(&directory, &machine, &files)?;
        println!("written to {}", directory.display());
    }
    Ok(())
}

/// All rounds of all points of one sweep; those of one round follow one another.
fn run_sweep(
    options: &Options,
    selection: &Selection,
    binaries: &Binaries,
    sweep: Sweep,
) -> Result<Vec<Measured>, String> {
    let mut all: Vec<Measured> = Vec::new();
    for variant in selection.variants(sweep) {
        let points = selection.points(sweep).into_iter();
        all.extend(points.map(|point| Measured { variant, point, rounds: Vec::new() }));
    }
    let (rounds, placed) = match sweep {
        Sweep::Cores => (options.rounds, selection.cores.as_slice()),
        _ => (options.rounds.div_ceil(ROUNDS_PER_LINE_ROUND), &[][..]),
    };
    for round in 0..rounds {
        for measured in &mut all {
            let mut options = options.clone();
            if placed.is_empty() {
                options.server_cores.truncate(measured.point.cores);
            } else {
                let cores = placed[..measured.point.cores].to_vec();
                (options.server_cores, options.client_cores) = (cores.clone(), cores);
            }
            let Measured { variant, point, rounds } = measured;
            let sample = round::measure(&options, binaries, &point.lane(), *variant, round)
                .map_err(|error| format!("{point:?}, {variant}, round {round}: {error}"))?;
            rounds.push(sample);
        }
    }
    Ok(all)
}
