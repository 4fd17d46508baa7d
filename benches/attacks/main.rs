//! `cargo bench --bench attacks`: what a good client notices while others attack.
//!
//! For each entry of the table a server is started, pinned to one core. On another core a good
//! client posts on a fixed schedule, half of it over connections of its own, and the attack runs
//! beside it at a rate that is named in the table. A latency counts from when its request was due,
//! so a stall is paid for by every request that it delays. The result is one Markdown table.
//!
//! In reading order: `options`, `table` (what to add an attack to) with `bytes`, `raid` (the
//! attackers' loop), `good` (the good client), `answer`, `server`.

#![allow(clippy::disallowed_methods, reason = "a bench is not on a core of the server")]
#![deny(unsafe_code)]

mod answer;
mod bytes;
mod good;
mod options;
mod raid;
mod server;
mod table;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::good::Good;
use crate::options::Options;
use crate::raid::Raid;
use crate::server::Server;
use crate::table::Attack;

/// What the good client may be made to wait; beyond it a row is marked.
const WANTED_P99: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let options = match Options::from_args() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("attacks: {error}; see --help");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attacks: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    raise_file_limit();
    server::pin(options.client_core).map_err(|error| format!("the client core: {error}"))?;
    println!("{}", options.heading());
    println!(
        "| attack | connections | asked | achieved | good p50 ms | p99 | max | failures | server CPU % | \
         memory MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for attack in table::attacks() {
        if options.wants(attack.name) {
            let row = measure(options, &attack).map_err(|e| format!("{}: {e}", attack.name))?;
            println!("{row}");
        }
    }
    Ok(())
}

/// One row of the table.
fn measure(options: &Options, attack: &Attack) -> Result<String, String> {
    let name = attack.name;
    let mut server = match Server::start(options, attack) {
        Ok(server) => server,
        Err(error) => {
            eprintln!("{name}: {error}");
            return Ok(format!("| {name} | | | does not start | | | | | | |"));
        }
    };
    let good = Good::start(server.ingest, attack, options)?;
    std::thread::sleep(options.warm_up / 2);
    let raid = Raid::start(server.attacked, attack)?;
    std::thread::sleep(options.warm_up);
    let (started, cpu, done) = (Instant::now(), server.cpu_time(), raid.done());
    good.record();
    std::thread::sleep(options.duration);
    let (time, cpu, done) = (started.elapsed(), server.cpu_time() - cpu, raid.done() - done);
    // The attack goes on until the good client's last request is answered or given up.
    let good = good.stop()?;
    let unit = raid.unit;
    raid.stop()?;
    let memory = server.resident_bytes_max() >> 20;
    server.stop()?;
    for failure in &good.first_failures {
        eprintln!("{name}: a good request failed: {failure}");
    }
    let seconds = time.as_secs_f64();
    let ms = |quantile| good.latency.value_at_quantile(quantile) as f64 / 1e6;
    let (p50, p99, max) = (ms(0.5), ms(0.99), ms(1.0));
    let p99 = if p99 > WANTED_P99.as_secs_f64() * 1e3 {
        format!("**{p99:.1}**")
    } else {
        format!("{p99:.1}")
    };
    let failures = match good.failures {
        0 => format!("0 of {}", good.sent),
        some => format!("**{some}** of {}", good.sent),
    };
    let asked = match attack.per_s {
        Some(0) => String::new(),
        Some(rate) => format!("{rate}/s"),
        None => "as answered".to_owned(),
    };
    Ok(format!(
        "| {name} | {} | {asked} | {:.0} {}/s | {p50:.1} | {p99} | {max:.1} | {failures} | {:.0} | {memory} |",
        attack.connections,
        done as f64 / seconds,
        unit,
        100.0 * cpu.as_secs_f64() / seconds,
    ))
}

/// Connections need descriptors on this side as well.
fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _as_it_was = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
