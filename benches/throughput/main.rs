//! `cargo bench --bench throughput`: millrace against the tokio variant and the floor, in processes
//! of their own, on cores of their own.
//!
//! One round starts a server pinned to the server cores, drives it from the client cores, where the
//! load generator and the S3 sink live in one loop per core, and measures a window after a warm-up;
//! rounds of the servers alternate, so that what disturbs the machine disturbs them alike. What is
//! compared is work per server-CPU-second, because on a small machine the clients may be what
//! limits the rate. A run fails unless every answer was a 200 and everything accepted was stored.
//!
//! In reading order: `options` and `selection`, `lanes` (the table to add a lane to), `build` (the
//! servers' binaries), `round` (one measurement) with `server`, `histogram` and `client/`,
//! `figures` (statistics and the printed table), `record`, `chart`. `scale` is another bench made
//! of the same parts.

#![allow(clippy::disallowed_methods, reason = "a bench is not on a core of the server")]
#![deny(unsafe_code)]

mod build;
mod chart;
mod client;
mod disk;
mod figures;
mod histogram;
mod lanes;
mod options;
mod record;
mod round;
mod selection;
mod server;

use std::process::ExitCode;
use std::time::Instant;

use crate::figures::{LaneFigures, Sample};
use crate::lanes::{Kind, Lane};
use crate::options::Options;
use crate::selection::Selection;
use crate::server::{Binaries, Variant};

fn main() -> ExitCode {
    let (options, selection) = Selection::from_args();
    match run(&options, &selection) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throughput: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options, selection: &Selection) -> Result<(), String> {
    let binaries = build::binaries(options, &selection.all_variants())?;
    let machine = record::Machine::look(options, "throughput");
    println!("{machine}");
    client::raise_file_limit();
    let started = Instant::now();
    let mut all = Vec::new();
    for lane in selection.lanes() {
        let figures = run_lane(options, &binaries, &lane, selection.variants(&lane))?;
        print!("{figures}");
        all.push(figures);
    }
    println!("\ntook {:.0} s", started.elapsed().as_secs_f64());
    if let Some(directory) = selection.record_directory(options, &machine) {
        record::write(&directory, &machine, &all)?;
        chart::draw(&directory.join("throughput.svg"), &machine, &all)?;
        println!("written to {}", selection.shown(&directory));
    }
    Ok(())
}

/// All rounds of one lane, alternating between the variants.
fn run_lane(
    options: &Options,
    binaries: &Binaries,
    lane: &Lane,
    variants: Vec<Variant>,
) -> Result<LaneFigures, String> {
    let mut lane = lane.clone();
    let connections_max = client::connections_max();
    if lane.connections > connections_max {
        let (name, wanted) = (lane.name, lane.connections);
        println!(
            "\n{name}: only {connections_max} connections instead of {wanted}: the limit of open files \
             (ulimit -Hn) allows no more"
        );
        lane.connections = connections_max;
    }
    if let Kind::Open { of_peak, rate: None } = lane.kind {
        let peak = lowest_peak(options, binaries, &lane, &variants)?;
        lane.kind = Kind::Open { of_peak, rate: Some(peak * of_peak) };
    }
    let mut figures = LaneFigures::new(lane.clone(), variants.clone());
    for round in 0..options.rounds {
        for variant in &variants {
            let sample = one(options, binaries, &lane, *variant, round)?;
            figures.add(*variant, sample);
        }
    }
    Ok(figures)
}

/// Requests a second of the slowest variant under a closed loop: what an open loop's rate is a part
/// of.
fn lowest_peak(
    options: &Options,
    binaries: &Binaries,
    lane: &Lane,
    variants: &[Variant],
) -> Result<f64, String> {
    let closed = Lane { kind: Kind::Closed, ..lane.clone() };
    let mut lowest = f64::INFINITY;
    for variant in variants {
        let sample = one(options, binaries, &closed, *variant, 0)?;
        lowest = lowest.min(sample.requests_per_s);
    }
    Ok(lowest)
}

fn one(
    options: &Options,
    binaries: &Binaries,
    lane: &Lane,
    variant: Variant,
    round: usize,
) -> Result<Sample, String> {
    round::measure(options, binaries, &variant.lane(lane), variant, round)
        .map_err(|error| format!("lane {}, {variant}, round {round}: {error}", lane.name))
}
