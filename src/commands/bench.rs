//! `millrace bench URL`: puts load on a server, this one or another that takes JSON over HTTP, and
//! says how many requests it accepted and how long they took. HTTP/1.1 with kept connections, over
//! TLS or without.
//!
//! In reading order: [`bodies`] (what is sent), `target` (where), `client` (the generator, a loop
//! per thread) with [`timetable`], [`wire`] and `answer`, `tally` (counts), `report` and `hgrm`.
//! It runs on plain threads and needs no configuration of a server.
//!
//! `benches/throughput` makes its load of the same parts ([`bodies`], [`timetable`], [`wire`] and
//! [`event`](mod@event)), but has a loop of its own: one `epoll` serves its clients and its S3
//! sink, it speaks HTTP/2 with 100 requests at once, and it ends at the first answer that is not a
//! 200 with every payload. This generator has to go on where that one has to stop.

mod answer;
pub mod bodies;
mod client;
pub mod event;
mod hgrm;
mod report;
mod tally;
mod target;
pub mod timetable;
pub mod wire;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use target::LoadTrust;

use super::print;
use crate::control::{Exit, signals};
use crate::log::{complain, status_line};
use crate::rt;
use bodies::{LoadContent, LoadRequests};
use client::{LoadClock, LoadLoop, LoadPlan, LoadRun};
use report::LoadReport;
use tally::{LoadError, LoadTally};
use target::LoadTarget;

/// What `bench` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    pub url: String,
    pub volume: LoadVolume,
    pub content: LoadContent,
    pub trust: LoadTrust,
    /// Print the report as JSON.
    pub json: bool,
    /// Where the distribution of latencies goes.
    pub histogram: Option<PathBuf>,
}

/// How much load, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadVolume {
    pub connections: usize,
    /// None: as many as there are cores and [`CONNECTIONS_PER_THREAD`] make sense for.
    pub threads: Option<usize>,
    /// Requests per second of an open loop.
    pub rate: Option<u32>,
    pub duration: Duration,
    pub warm_up: Duration,
    /// For one answer.
    pub timeout: Duration,
}

/// Fewer connections than this are not worth a thread.
pub const CONNECTIONS_PER_THREAD: usize = 8;
/// Descriptors that are not connections.
const FILES_BESIDE: u64 = 64;
/// How often the end of the run and a signal are looked for, and progress is shown.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long answers may still come after an interruption.
const INTERRUPTED_DRAIN: Duration = Duration::from_secs(1);

/// Puts the load on the server and prints the report. One request goes ahead of it, to say what is
/// wrong before all of them are refused for it.
///
/// # Errors
/// One sentence with a remedy: what was asked for is impossible, or the server does not take such
/// requests.
pub fn run(options: &LoadOptions) -> Result<Exit, String> {
    let LoadOptions { volume, trust, .. } = options;
    let target = LoadTarget::new(&options.url, trust)?;
    let requests = LoadRequests::new(&target.url, &options.content)?;
    allow_files(volume.connections)?;
    // Before a run of minutes, not after it.
    let histogram = options.histogram.as_deref().map(create).transpose()?;
    let interrupted =
        signals::stop_flag().map_err(|error| format!("no signal handlers: {error}"))?;
    let plan = probe(&target, requests, options)?;
    let clock = LoadClock::new(volume.warm_up, volume.duration, volume.timeout);
    let run = LoadRun::new(plan, clock);
    let tally = drive(&run, &interrupted)?;
    let report = LoadReport {
        url: target.url.as_str(),
        run: &run,
        tally: &tally,
        warm_up: volume.warm_up,
        interrupted: interrupted.load(Relaxed),
    };
    if run.clock.measured().is_zero() {
        return Err("interrupted during the warm-up: nothing was measured".to_owned());
    }
    if let (Some(file), Some(path)) = (histogram, &options.histogram) {
        let mut file = BufWriter::new(file);
        let written = hgrm::write(&mut file, &tally.latency).and_then(|()| file.flush());
        written.map_err(|error| format!("--histogram {}: {error}", path.display()))?;
    }
    print(
        |out| if options.json { writeln!(out, "{:#}", report.json()) } else { report.write(out) },
    )?;
    Ok(if tally.successes() > 0 { Exit::Clean } else { Exit::Unstored })
}

#[expect(clippy::disallowed_methods, reason = "a command, without an executor")]
fn create(path: &Path) -> Result<File, String> {
    File::create(path).map_err(|error| format!("--histogram {}: {error}", path.display()))
}

/// Raises the limit of open files as far as `connections` need it.
fn allow_files(connections: usize) -> Result<(), String> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = connections as u64 + FILES_BESIDE;
    if current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    if let Some(most) = maximum
        && most < wanted
    {
        return Err(format!(
            "{connections} connections need {wanted} open files, and the limit is {most}: raise it (ulimit -Hn) or give \
             fewer --connections"
        ));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
        .map_err(|error| format!("the limit of open files cannot be raised to {wanted}: {error}"))
}

/// Sends one request to the first address that takes connections; the plan of the run to it.
///
/// # Errors
/// Nobody is there, or every request would be refused like this one.
fn probe(
    target: &LoadTarget,
    mut requests: LoadRequests,
    options: &LoadOptions,
) -> Result<LoadPlan, String> {
    let volume = &options.volume;
    let mut last = String::new();
    for address in &target.addresses {
        let all = plan(target, *address, requests, volume, 1);
        let plan = LoadPlan { only_one: true, connections: 1, rate: None, ..all };
        // It ends with its one request, which takes two time-outs at most.
        let clock = LoadClock::new(Duration::ZERO, volume.timeout * 3, volume.timeout);
        let run = LoadRun::new(plan, clock);
        let looped = LoadLoop::new(run.clone(), 0).and_then(LoadLoop::run);
        let tally = looped.map_err(|error| format!("the load generator failed: {error}"))?;
        // The loop that had the other reference is gone.
        requests = Arc::into_inner(run).expect("one reference is left").plan.requests;
        match refused_probe(target, &tally, *address, options.content.token_file.is_some()) {
            Ok(()) => return Ok(self::plan(target, *address, requests, volume, threads(volume))),
            Err((LoadError::Connect, why)) => last = why,
            Err((_, why)) => return Err(why),
        }
    }
    Err(last)
}

/// Why a run makes no sense after this first request.
fn refused_probe(
    target: &LoadTarget,
    tally: &LoadTally,
    address: SocketAddr,
    has_token_file: bool,
) -> Result<(), (LoadError, String)> {
    let url = target.url.as_str();
    let said = |kind: &str| tally.outcomes.said.get(kind).cloned().unwrap_or_default();
    if let Some((kind, _)) = tally.outcomes.errors.first_key_value() {
        let why = said(kind.name());
        let text = match kind {
            LoadError::Connect => {
                format!("{url}: cannot connect to {address}: {why}; {}", target.refused_remedy())
            }
            LoadError::Tls => format!(
                "{url}: no TLS session with {address}: {why}; --ca FILE names an authority of your own, --insecure \
                 accepts any certificate"
            ),
            LoadError::BadAnswer | LoadError::Lost => {
                format!("{url}: {why}; does it speak HTTP/1.1, and is it http:// or https://?")
            }
            LoadError::Timeout | LoadError::Unfinished => {
                format!("{url}: {why}: give it a longer --timeout, or look at the server")
            }
        };
        return Err((*kind, text));
    }
    let Some((status, _)) = tally.outcomes.answers.first_key_value() else {
        return Err((LoadError::Timeout, format!("{url}: no answer")));
    };
    let has_token = has_token_file || std::env::var_os(bodies::TOKEN_VARIABLE).is_some();
    let remedy = match status {
        401 | 403 if has_token => "the server does not accept this token",
        401 | 403 => "give a token in MILLRACE_TOKEN or with --token-file",
        300..400 => "redirects are not followed: give the URL that takes the requests",
        404 | 405 => "give the path that takes POSTs, such as /payloads",
        413 => "give fewer --payloads or smaller --payload-bytes",
        400 | 411 | 415 | 422 => {
            "the server takes other bodies: see --form, --body-file and --header 'content-type: …'"
        }
        _ => return Ok(()),
    };
    let why = said(&status.to_string());
    Err((LoadError::BadAnswer, format!("{url}: {status} {why}: {remedy}")))
}

fn threads(volume: &LoadVolume) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let sensible = cores.min(volume.connections / CONNECTIONS_PER_THREAD).max(1);
    volume.threads.unwrap_or(sensible).min(volume.connections)
}

fn plan(
    target: &LoadTarget,
    address: SocketAddr,
    requests: LoadRequests,
    volume: &LoadVolume,
    threads: usize,
) -> LoadPlan {
    LoadPlan {
        address,
        tls: target.tls.clone(),
        requests,
        connections: volume.connections,
        threads,
        rate: volume.rate,
        timeout: volume.timeout,
        only_one: false,
    }
}

/// Runs all threads to the end, or to an interruption.
fn drive(run: &Arc<LoadRun>, interrupted: &AtomicBool) -> Result<LoadTally, String> {
    let (sender, results) = sync_channel(run.plan.threads);
    for at in 0..run.plan.threads {
        let (of, sender) = (run.clone(), sender.clone());
        let work = move || {
            let looped = LoadLoop::new(of.clone(), at).and_then(LoadLoop::run);
            if looped.is_err() {
                of.clock.stop(Duration::ZERO);
            }
            let _nobody_waits = sender.send(looped);
        };
        let thread = std::thread::Builder::new().name(format!("load-{at}")).spawn(work);
        thread.map_err(|error| {
            run.clock.stop(Duration::ZERO);
            format!("no thread for the load generator: {error}; give fewer --threads")
        })?;
    }
    drop(sender);
    let all = collect(run, &results, interrupted);
    status_line("");
    all
}

/// Adds up what the threads have counted as they end.
fn collect(
    run: &LoadRun,
    results: &Receiver<io::Result<LoadTally>>,
    interrupted: &AtomicBool,
) -> Result<LoadTally, String> {
    let shows = io::stderr().is_terminal();
    let mut all: Option<LoadTally> = None;
    let (mut ended, mut was_interrupted) = (0, false);
    loop {
        match results.recv_timeout(LOOK_EVERY) {
            Ok(tally) => {
                let tally = tally.map_err(|error| format!("the load generator failed: {error}"))?;
                ended += 1;
                match &mut all {
                    Some(all) => all.add(tally),
                    None => all = Some(tally),
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if ended == run.plan.threads => break,
            Err(RecvTimeoutError::Disconnected) => {
                return Err("a thread of the load generator panicked".to_owned());
            }
        }
        if interrupted.load(Relaxed) && !was_interrupted {
            was_interrupted = true;
            run.clock.stop(INTERRUPTED_DRAIN);
            complain("interrupted: waiting up to 1 s for answers; again to end at once");
        }
        if shows {
            status_line(&progress(run));
        }
    }
    Ok(all.expect("there is at least one thread"))
}

fn progress(run: &LoadRun) -> String {
    let now = rt::now();
    let (from, end) = (run.clock.from, run.clock.end());
    let answered: u64 = run.answered.iter().map(|n| n.load(Relaxed)).sum();
    let seconds = |time: Duration| time.as_secs_f64();
    if now < from {
        return format!("warm-up: {:.0} s left", seconds(from - now));
    }
    let measured = seconds(now.min(end) - from).max(0.001);
    format!(
        "{measured:.0} of {:.0} s, {:.0} answers/s",
        seconds(run.clock.measured()),
        answered as f64 / measured
    )
}
