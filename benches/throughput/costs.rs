//! What comes of the rounds of `scale`: tables, ratios between numbers of cores, lines through the
//! medians, and all of it as CSV.

use std::fmt::Write as _;

use crate::figures::{Sample, Spread, median};
use crate::fit::{Fit, Row, fit};
use crate::server::Variant;
use crate::{Point, Sweep};

/// A point, and what was measured there.
pub struct Measured {
    pub variant: Variant,
    pub point: Point,
    pub rounds: Vec<Sample>,
}

impl Measured {
    fn cost_us(&self) -> f64 {
        median(self.rounds.iter().map(|s| s.server_cpu_us_per_request).collect())
    }
}

pub fn table(sweep: Sweep, all: &[Measured]) -> String {
    let mut text = format!("\n{}\n", sweep.name());
    let heads = ["cores", "connections", "payloads", "body bytes", "requests/s", "µs CPU/request"];
    let _ = write!(text, "  {:<10}", "");
    heads.iter().for_each(|head| text.extend([" ", &format!("{head:>14}")]));
    for measured in all {
        let Measured { variant, point, rounds } = measured;
        let rate = median(rounds.iter().map(|s| s.requests_per_s).collect());
        let Point { cores, connections, payloads, .. } = point;
        let _ = write!(
            text,
            "\n  {variant:<10} {cores:>14} {connections:>14} {payloads:>14} {:>14} {rate:>14.0} {:>14.2}",
            point.body_bytes(),
            measured.cost_us(),
        );
    }
    text + "\n"
}

/// CPU per request with several cores, divided by that with one in the same round.
pub struct CoreRatio {
    variant: Variant,
    cores: usize,
    spread: Spread,
}

pub fn core_ratios(all: &[Measured]) -> Vec<CoreRatio> {
    let of_cores = || all.iter().filter(|measured| measured.point.sweep == Sweep::Cores);
    let ratio = |many: &Measured| {
        let one = of_cores().find(|m| m.variant == many.variant && m.point.cores == 1)?;
        let cost = |sample: &Sample| sample.server_cpu_us_per_request;
        let pairs = many.rounds.iter().zip(&one.rounds);
        let values: Vec<f64> = pairs.map(|(many, one)| cost(many) / cost(one)).collect();
        let (variant, cores) = (many.variant, many.point.cores);
        Some(CoreRatio { variant, cores, spread: Spread::of(&values)? })
    };
    of_cores().filter(|measured| measured.point.cores > 1).filter_map(ratio).collect()
}

/// What a request of one server costs as a sum.
pub struct Line {
    variant: Variant,
    /// Each with its unit.
    terms: &'static [&'static str],
    fit: Fit,
}

const BY_SIZE: &[&str] = &["µs per request", "µs per payload", "µs per byte of the body"];
const BY_CONNECTIONS: &[&str] = &["µs per request", "µs per request and connection"];

pub fn lines(all: &[Measured]) -> Vec<Line> {
    let mut variants: Vec<Variant> = all.iter().map(|measured| measured.variant).collect();
    variants.dedup();
    let mut lines: Vec<Line> = Vec::new();
    for variant in variants {
        if lines.iter().any(|line| line.variant == variant) {
            continue;
        }
        let rows = |sweeps: &[Sweep], terms: &dyn Fn(&Point) -> Vec<f64>| -> Vec<Row> {
            all.iter()
                .filter(|m| m.variant == variant && sweeps.contains(&m.point.sweep))
                .map(|m| Row { terms: terms(&m.point), measured: m.cost_us() })
                .collect()
        };
        let by_size = rows(&[Sweep::Payloads, Sweep::Bytes], &|point| {
            vec![1.0, point.payloads as f64, point.body_bytes() as f64]
        });
        let by_connections =
            rows(&[Sweep::Connections], &|point| vec![1.0, point.connections as f64]);
        for (terms, rows) in [(BY_SIZE, by_size), (BY_CONNECTIONS, by_connections)] {
            lines.extend(fit(&rows).map(|fit| Line { variant, terms, fit }));
        }
    }
    lines
}

pub fn shown_ratios(ratios: &[CoreRatio]) -> String {
    let mut text = String::new();
    for CoreRatio { variant, cores, spread } in ratios {
        let _ = writeln!(text, "{variant}: CPU per request on {cores} cores ÷ on 1: {spread}");
    }
    text
}

pub fn shown_lines(lines: &[Line]) -> String {
    let mut text = String::new();
    for Line { variant, terms, fit } in lines {
        let sum: Vec<String> =
            fit.coefficients.iter().zip(*terms).map(|(c, term)| format!("{c:.6} {term}")).collect();
        let (residual, max) = (fit.residual * 100.0, fit.residual_max * 100.0);
        let _ = writeln!(
            text,
            "{variant}: {}; residual {residual:.1} %, at most {max:.1} %",
            sum.join(" + ")
        );
    }
    text
}

pub fn rounds_csv(all: &[Measured]) -> String {
    let mut text = String::from(
        "sweep,variant,round,cores,connections,payloads,body_bytes,requests_per_s,\
         server_cpu_us_per_request,server_busy,client_busy,p99_us,peak_rss_bytes\n",
    );
    for Measured { variant, point, rounds } in all {
        let Point { sweep, cores, connections, payloads, .. } = point;
        for (round, sample) in rounds.iter().enumerate() {
            let _ = writeln!(
                text,
                "{},{variant},{round},{cores},{connections},{payloads},{},{:.0},{:.3},{:.3},{:.3},{:.0},{}",
                sweep.name(),
                point.body_bytes(),
                sample.requests_per_s,
                sample.server_cpu_us_per_request,
                sample.server_busy,
                sample.client_busy,
                sample.p99_us,
                sample.peak_rss_bytes,
            );
        }
    }
    text
}

pub fn ratios_csv(ratios: &[CoreRatio]) -> String {
    let mut text = String::from("variant,cores,median,lower_quartile,upper_quartile,min,max\n");
    for CoreRatio { variant, cores, spread } in ratios {
        let Spread { median, lower_quartile, upper_quartile, min, max } = spread;
        let _ = writeln!(
            text,
            "{variant},{cores},{median:.3},{lower_quartile:.3},{upper_quartile:.3},{min:.3},{max:.3}"
        );
    }
    text
}

pub fn lines_csv(lines: &[Line]) -> String {
    let mut text = String::from("variant,term,coefficient,residual,residual_max\n");
    for Line { variant, terms, fit } in lines {
        for (term, coefficient) in terms.iter().zip(&fit.coefficients) {
            let Fit { residual, residual_max, .. } = fit;
            let _ =
                writeln!(text, "{variant},{term},{coefficient:.7},{residual:.4},{residual_max:.4}");
        }
    }
    text
}
