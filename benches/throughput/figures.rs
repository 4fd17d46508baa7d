//! What was measured, its medians and ratios, and the table a reader sees.

use std::fmt;

use crate::lanes::{Kind, Lane, Measure};
use crate::server::Variant;

/// One round of one server.
#[derive(Clone, Debug)]
pub struct Sample {
    pub requests_per_s: f64,
    /// Stored payloads where there is a store, else accepted ones.
    pub payloads_per_s: f64,
    pub megabytes_per_s: f64,
    pub server_cpu_us_per_payload: f64,
    pub server_cpu_us_per_request: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// Part of the server cores' time that the server used.
    pub server_busy: f64,
    /// The same of load generator and sink; an open loop does not sleep, so it shows 1 there.
    pub client_busy: f64,
    pub peak_rss_bytes: u64,
    /// In lanes whose objects are batches.
    pub batches: Option<Batches>,
    /// p99 of a bare write and `fdatasync` on the same core right after, under the same load; only
    /// in lanes about the spool, like the next.
    pub sync_p99_us: Option<f64>,
    pub syncs_per_request: Option<f64>,
    /// Only with idle connections.
    pub rss_bytes_per_connection: Option<f64>,
    /// p99.9 of the time between two looks at the sockets, of servers that measure it.
    pub turn_p999_us: Option<f64>,
}

/// The batches of a round.
#[derive(Clone, Copy, Debug)]
pub struct Batches {
    /// Mean size as stored; the last one, closed by its age, counts.
    pub object_bytes: f64,
    /// Bytes of all lines, for each as stored.
    pub compression: f64,
    /// Payloads in one, and objects per second, both as they came in the window.
    pub payloads: f64,
    pub puts_per_s: f64,
    /// Payloads that were accepted and not yet stored at the end of the window.
    pub on_their_way_bytes: f64,
    /// Part of the payloads that the sink knows only from the keys of their batches.
    pub undecoded: f64,
}

/// A column of the CSV: its name, and how it is read.
pub type Column = (&'static str, fn(&Sample) -> f64);

pub const COLUMNS: &[Column] = &[
    ("requests_per_s", |s| s.requests_per_s),
    ("payloads_per_s", |s| s.payloads_per_s),
    ("megabytes_per_s", |s| s.megabytes_per_s),
    ("server_cpu_us_per_payload", |s| s.server_cpu_us_per_payload),
    ("server_cpu_us_per_request", |s| s.server_cpu_us_per_request),
    ("p50_us", |s| s.p50_us),
    ("p99_us", |s| s.p99_us),
    ("p999_us", |s| s.p999_us),
    ("server_busy", |s| s.server_busy),
    ("client_busy", |s| s.client_busy),
    ("peak_rss_bytes", |s| s.peak_rss_bytes as f64),
    ("object_bytes", |s| s.batches.map_or(f64::NAN, |batches| batches.object_bytes)),
    ("object_payloads", |s| s.batches.map_or(f64::NAN, |batches| batches.payloads)),
    ("puts_per_s", |s| s.batches.map_or(f64::NAN, |batches| batches.puts_per_s)),
    ("compression", |s| s.batches.map_or(f64::NAN, |batches| batches.compression)),
    ("sync_p99_us", |s| s.sync_p99_us.unwrap_or(f64::NAN)),
    ("syncs_per_request", |s| s.syncs_per_request.unwrap_or(f64::NAN)),
    ("rss_bytes_per_connection", |s| s.rss_bytes_per_connection.unwrap_or(f64::NAN)),
    ("turn_p999_us", |s| s.turn_p999_us.unwrap_or(f64::NAN)),
];

/// Every round of one lane.
pub struct LaneFigures {
    pub lane: Lane,
    pub variants: Vec<Variant>,
    pub samples: Vec<(Variant, Sample)>,
}

/// millrace against another server, or against the disk, over the rounds in which both ran.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    /// The name of a variant, or [`BARE_PAIR`].
    pub against: &'static str,
    pub measure: Measure,
    pub spread: Spread,
}

/// A bare write and its `fdatasync`, see `disk.rs`.
const BARE_PAIR: &str = "bare-pair";

/// The middle of some figures, and how far they lie apart.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub lower_quartile: f64,
    pub upper_quartile: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// None of none.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let at = |q| quantile(values.to_vec(), q);
        (!values.is_empty()).then(|| Spread {
            median: at(0.5),
            lower_quartile: at(0.25),
            upper_quartile: at(0.75),
            min: at(0.0),
            max: at(1.0),
        })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { median, lower_quartile, upper_quartile, min, max } = self;
        write!(
            f,
            "{median:.2} (quartiles {lower_quartile:.2} to {upper_quartile:.2}, all {min:.2} to {max:.2})"
        )
    }
}

impl Measure {
    fn of(self, sample: &Sample) -> f64 {
        match self {
            Measure::RequestsPerCpuSecond => 1e6 / sample.server_cpu_us_per_request,
            Measure::PayloadsPerCpuSecond => 1e6 / sample.server_cpu_us_per_payload,
            Measure::RequestsPerSecond => sample.requests_per_s,
            Measure::LatencyP50 => sample.p50_us,
            Measure::LatencyP99 => sample.p99_us,
            Measure::LatencyP999 => sample.p999_us,
            Measure::BytesPerConnection => sample.rss_bytes_per_connection.unwrap_or(f64::NAN),
        }
    }
}

impl LaneFigures {
    pub fn new(lane: Lane, variants: Vec<Variant>) -> LaneFigures {
        LaneFigures { lane, variants, samples: Vec::new() }
    }

    pub fn add(&mut self, variant: Variant, sample: Sample) {
        self.samples.push((variant, sample));
    }

    /// The rounds of one server, in order.
    pub fn of(&self, variant: Variant) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |(of, _)| *of == variant).map(|(_, sample)| sample)
    }

    fn median_of(&self, variant: Variant, read: fn(&Sample) -> f64) -> f64 {
        median(self.of(variant).map(read).collect())
    }

    /// millrace ÷ every other server that ran, in every measure of the lane, and ÷ what the disk
    /// can do by itself, in lanes about it.
    pub fn ratios(&self) -> Vec<Ratio> {
        let mut ratios = Vec::new();
        let mut add =
            |against: Variant, named: &'static str, measure: Measure, theirs: &Read<'_>| {
                let pairs = self.of(Variant::Millrace).zip(self.of(against));
                let values: Vec<f64> =
                    pairs.map(|(ours, other)| measure.of(ours) / theirs(other)).collect();
                if let Some(spread) = Spread::of(&values) {
                    ratios.push(Ratio { against: named, measure, spread });
                }
            };
        for measure in self.lane.measures.iter().copied() {
            for against in self.variants.iter().copied().filter(|v| *v != Variant::Millrace) {
                add(against, against.name(), measure, &|s| measure.of(s));
            }
            if self.lane.spool && measure == Measure::LatencyP99 {
                let bare = |s: &Sample| s.sync_p99_us.unwrap_or(f64::NAN);
                add(self.beside_bare_pair(), BARE_PAIR, measure, &bare);
            }
        }
        ratios
    }

    /// The server beside which a bare pair is what the disk can do: the one that does not sync.
    fn beside_bare_pair(&self) -> Variant {
        let queued = self.variants.contains(&Variant::MillraceQueued);
        if queued { Variant::MillraceQueued } else { Variant::Millrace }
    }
}

/// A figure of a round.
type Read<'a> = dyn Fn(&Sample) -> f64 + 'a;

pub fn median(values: Vec<f64>) -> f64 {
    quantile(values, 0.5)
}

/// Between two values it is in proportion.
fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    let at = last as f64 * q;
    let (below, above) = (values[at.floor() as usize], values[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// Medians of a server's rounds, one server a line, then the ratios.
impl fmt::Display for LaneFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lane { name, what, connections, .. } = &self.lane;
        writeln!(f, "\n{name}: {what}; {connections} connections")?;
        if let Kind::Open { rate: Some(rate), .. } = self.lane.kind {
            writeln!(f, "  at {rate:.0} requests/s")?;
        }
        let heads = [
            "requests/s",
            "payloads/s",
            "MB/s",
            "µs CPU/payload",
            "µs CPU/request",
            "p50 µs",
            "p99 µs",
            "p99.9 µs",
            "peak MB",
            "server %",
            "client %",
        ];
        write!(f, "  {:<NAME_WIDTH$}", "")?;
        heads.iter().try_for_each(|head| write!(f, " {head:>w$}", w = width(head)))?;
        writeln!(f)?;
        for variant in &self.variants {
            let row = |read: fn(&Sample) -> f64| self.median_of(*variant, read);
            let cells = [
                format!("{:.0}", row(|s| s.requests_per_s)),
                format!("{:.0}", row(|s| s.payloads_per_s)),
                format!("{:.1}", row(|s| s.megabytes_per_s)),
                format!("{:.2}", row(|s| s.server_cpu_us_per_payload)),
                format!("{:.2}", row(|s| s.server_cpu_us_per_request)),
                format!("{:.0}", row(|s| s.p50_us)),
                format!("{:.0}", row(|s| s.p99_us)),
                format!("{:.0}", row(|s| s.p999_us)),
                format!("{:.1}", row(|s| s.peak_rss_bytes as f64) / 1e6),
                format!("{:.0}", row(|s| s.server_busy * 100.0)),
                format!("{:.0}", row(|s| s.client_busy * 100.0)),
            ];
            write!(f, "  {variant:<NAME_WIDTH$}")?;
            for (head, cell) in heads.iter().zip(cells) {
                // An idle lane has no rates.
                let cell = if cell.contains("NaN") || cell == "inf" { "–".into() } else { cell };
                write!(f, " {cell:>w$}", w = width(head))?;
            }
            writeln!(f)?;
        }
        if self.lane.kind == Kind::Idle {
            for variant in &self.variants {
                let bytes = self.median_of(*variant, |s| s.rss_bytes_per_connection.unwrap_or(0.0));
                writeln!(f, "  {variant}: {:.1} kB per idle connection", bytes / 1e3)?;
            }
        }
        for variant in &self.variants {
            self.write_batches(f, *variant)?;
        }
        if self.lane.spool {
            let beside = self.beside_bare_pair();
            let sync = self.median_of(beside, |s| s.sync_p99_us.unwrap_or(f64::NAN));
            let syncs =
                self.median_of(Variant::Millrace, |s| s.syncs_per_request.unwrap_or(f64::NAN));
            writeln!(
                f,
                "  millrace: {syncs:.3} syncs a request; p99 of a bare write and sync beside {beside} is {sync:.0} µs"
            )?;
        }
        for variant in &self.variants {
            let turn = self.median_of(*variant, |s| s.turn_p999_us.unwrap_or(f64::NAN));
            if !turn.is_nan() {
                writeln!(f, "  {variant}: p99.9 of a turn is {turn:.0} µs")?;
            }
        }
        for Ratio { against, measure, spread } in self.ratios() {
            writeln!(f, "  millrace ÷ {against}: {spread} {}", measure.text())?;
        }
        Ok(())
    }
}

impl LaneFigures {
    /// What the objects were like, where they were batches.
    fn write_batches(&self, f: &mut fmt::Formatter<'_>, variant: Variant) -> fmt::Result {
        let median_of = |read: fn(&Batches) -> f64| {
            median(self.of(variant).filter_map(|s| s.batches.as_ref()).map(read).collect())
        };
        let megabytes = median_of(|b| b.object_bytes) / 1e6;
        if megabytes.is_nan() {
            return Ok(());
        }
        let times = median_of(|b| b.compression);
        let (payloads, puts) = (median_of(|b| b.payloads), median_of(|b| b.puts_per_s));
        write!(
            f,
            "  {variant}: {puts:.1} objects/s of {payloads:.0} payloads, {megabytes:.2} MB, {times:.2} times smaller than their lines"
        )?;
        let on_their_way = median_of(|b| b.on_their_way_bytes) / 1e6;
        write!(f, "; {on_their_way:.1} MB of payloads were on their way at the end")?;
        let undecoded = median_of(|b| b.undecoded) * 100.0;
        if undecoded > 0.0 {
            write!(f, "; {undecoded:.0} % of the payloads not decoded")?;
        }
        writeln!(f)
    }
}

/// Room for the longest name of a variant.
const NAME_WIDTH: usize = 17;

fn width(head: &str) -> usize {
    head.chars().count().max(9)
}
