//! One round: a fresh server, a warm-up, a measured window, and the proof that nothing went
//! missing.

use std::time::{Duration, Instant};

use crate::client::{self, Crew, Phase, Report, Totals};
use crate::disk;
use crate::figures::{Batches, Sample};
use crate::histogram::Buckets;
use crate::lanes::{Kind, Lane, Sink};
use crate::options::Options;
use crate::server::{Binaries, Server, Variant, cpu_time};

/// Longest wait for connections to open, or for what was accepted to be stored.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Everything that grows, at one moment.
struct Snapshot {
    at: Instant,
    totals: Totals,
    server_cpu: Duration,
    client_cpu: Duration,
}

impl Snapshot {
    fn take(crew: &Crew, server: &Server) -> Snapshot {
        Snapshot {
            at: Instant::now(),
            totals: crew.totals(),
            server_cpu: server.cpu_time(),
            client_cpu: cpu_time("self"),
        }
    }
}

/// What the server counts itself. It is asked outside the window, to which answering would count.
struct Counted {
    syncs: u64,
    turns: Option<Buckets>,
}

impl Counted {
    fn read(server: &Server) -> Result<Counted, String> {
        Ok(Counted {
            syncs: server.counter("millrace_spool_syncs_total")?,
            turns: Buckets::read(&server.metrics()?, "millrace_core_turn_seconds"),
        })
    }

    fn since(self, before: &Counted) -> Counted {
        let turns = self.turns.as_ref().zip(before.turns.as_ref());
        Counted {
            syncs: self.syncs - before.syncs,
            turns: turns.map(|(after, before)| after.since(before)),
        }
    }
}

/// The measured window.
struct Window {
    before: Snapshot,
    after: Snapshot,
    counted: Counted,
}

/// Measures `variant` in `lane` once.
pub fn measure(
    options: &Options,
    binaries: &Binaries,
    lane: &Lane,
    variant: Variant,
    round: usize,
) -> Result<Sample, String> {
    client::pin(&options.client_cores).map_err(|error| format!("client cores: {error}"))?;
    // Both servers of a round get the same arrivals.
    let crew = Crew::start(&options.client_cores, lane, round as u64)
        .map_err(|error| format!("the client does not start: {error}"))?;
    let server = Server::start(options, binaries, variant, lane, crew.sink_address())?;
    let resident_before = server.resident_bytes();
    crew.go(server.ingest);
    let outcome = window(options, lane, &crew, &server);
    let window = outcome.map_err(|error| with_log(&server, error))?;
    let resident_after = server.resident_bytes();
    let bare = if lane.spool { Some(bare_pairs(options, &crew, &server)?) } else { None };

    crew.enter(Phase::Draining);
    let totals = settle(&crew, &server, lane).map_err(|error| with_log(&server, error))?;
    let resident_max = server.resident_bytes_max();
    crew.enter(Phase::Closing);
    wait_for(&crew, "the client to close its connections", |totals| totals.open == 0)?;
    server.stop()?;
    let report = crew.finish()?;
    check(lane, totals, &report)?;

    let mut sample = sample(options, lane, &window, &report);
    sample.peak_rss_bytes = resident_max;
    sample.batches =
        lane.batches.then(|| Batches::of(lane, window.after.totals, totals, report.undecoded));
    sample.sync_p99_us = bare;
    sample.rss_bytes_per_connection = match lane.kind {
        Kind::Idle => {
            Some(resident_after.saturating_sub(resident_before) as f64 / lane.connections as f64)
        }
        Kind::Closed | Kind::OnceEach | Kind::Open { .. } => None,
    };
    Ok(sample)
}

fn with_log(server: &Server, error: String) -> String {
    match server.log() {
        log if log.is_empty() => error,
        log => format!("{error}\nthe server's log:\n{log}"),
    }
}

/// How long connections have been silent when their memory is measured: by then the server has
/// returned what opening them took.
const IDLE_FOR: Duration = Duration::from_secs(6);

/// Warms up and measures.
fn window(options: &Options, lane: &Lane, crew: &Crew, server: &Server) -> Result<Window, String> {
    let all = lane.connections as u64;
    wait_for(crew, "every connection to be open", |totals| totals.open >= all)?;
    if lane.kind == Kind::Idle {
        wait_for(crew, "every connection to be answered once", |totals| totals.answered == all)?;
    }
    sleep_checking(crew, options.warm_up)?;
    let counted = Counted::read(server)?;
    let before = Snapshot::take(crew, server);
    crew.enter(Phase::Measured);
    let measured = if lane.kind == Kind::Idle { IDLE_FOR } else { options.duration };
    sleep_checking(crew, measured)?;
    let after = Snapshot::take(crew, server);
    let counted = Counted::read(server)?.since(&counted);
    let moved = after.totals.answered > before.totals.answered;
    if lane.kind != Kind::Idle && !moved {
        return Err("not one request was answered in the measured window".into());
    }
    Ok(Window { before, after, counted })
}

/// p99 of bare syncs on the server's core while the load goes on unmeasured.
fn bare_pairs(options: &Options, crew: &Crew, server: &Server) -> Result<f64, String> {
    crew.enter(Phase::WarmUp);
    disk::sync_p99_us(options.server_cores[0], server.directory(), options.duration)
}

fn sleep_checking(crew: &Crew, time: Duration) -> Result<(), String> {
    let until = Instant::now() + time;
    loop {
        crew.check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(250)));
    }
}

fn wait_for(crew: &Crew, what: &str, done: impl Fn(Totals) -> bool) -> Result<Totals, String> {
    let started = Instant::now();
    loop {
        crew.check()?;
        let totals = crew.totals();
        if done(totals) {
            return Ok(totals);
        }
        if started.elapsed() > SETTLE_TIMEOUT {
            return Err(format!("waited in vain for {what}: {totals:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until every request is answered and every payload stored, by the server's own count too.
fn settle(crew: &Crew, server: &Server, lane: &Lane) -> Result<Totals, String> {
    let totals = wait_for(crew, "the last answers", |totals| totals.outstanding == 0)?;
    let accepted = totals.accepted;
    let stored = match lane.store {
        Sink::S3 { .. } => {
            wait_for(crew, "the last PUTs", |totals| totals.put_payloads >= accepted)?
        }
        Sink::Null => totals,
    };
    let started = Instant::now();
    loop {
        let counted = (
            server.counter("millrace_payloads_accepted_total")?,
            server.counter("millrace_payloads_stored_total")?,
        );
        if counted == (accepted, accepted) {
            return Ok(stored);
        }
        if started.elapsed() > Duration::from_secs(10) {
            return Err(format!(
                "{accepted} payloads were acknowledged, but the server counts (accepted, stored) {counted:?}"
            ));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Every acknowledged payload has come to the sink once, and nothing else has. That a batch holds
/// as many as its key says, in as many bytes, the sink has seen itself.
fn check(lane: &Lane, totals: Totals, report: &Report) -> Result<(), String> {
    let accepted = match lane.store {
        Sink::S3 { .. } => totals.accepted,
        Sink::Null => 0,
    };
    let Totals { puts, put_payloads, put_bytes, .. } = totals;
    if report.distinct_keys != puts || put_payloads != accepted {
        return Err(format!(
            "{accepted} payloads were acknowledged, {put_payloads} came in {puts} PUTs under {} keys",
            report.distinct_keys
        ));
    }
    if !lane.batches && put_bytes != accepted * lane.payload_bytes as u64 {
        return Err(format!("{accepted} payloads were stored in {put_bytes} bytes"));
    }
    Ok(())
}

impl Batches {
    /// `after` the window, and in the end.
    fn of(lane: &Lane, after: Totals, totals: Totals, undecoded: u64) -> Batches {
        let line_bytes = lane.payload_bytes as f64 + 1.0;
        let Totals { puts, put_payloads, put_bytes, .. } = totals;
        let on_their_way = after.accepted.saturating_sub(after.put_payloads);
        Batches {
            on_their_way_bytes: on_their_way as f64 * lane.payload_bytes as f64,
            object_bytes: put_bytes as f64 / puts as f64,
            compression: put_payloads as f64 * line_bytes / put_bytes as f64,
            undecoded: undecoded as f64 / put_payloads as f64,
        }
    }
}

/// Payloads that went through in the window.
fn payloads(lane: &Lane, before: &Snapshot, after: &Snapshot) -> f64 {
    let (before, after) = (before.totals, after.totals);
    let payloads = match lane.store {
        // Uploads are the larger part of the work: what counts is what was stored, not what was
        // queued meanwhile.
        Sink::S3 { .. } if !lane.batches => after.puts - before.puts,
        // Of batches too few end in a window, but what is on its way is bounded, and shown.
        Sink::S3 { .. } | Sink::Null => after.accepted - before.accepted,
    };
    payloads as f64
}

fn sample(options: &Options, lane: &Lane, window: &Window, report: &Report) -> Sample {
    let Window { before, after, counted } = window;
    let elapsed_s = (after.at - before.at).as_secs_f64();
    let requests = (after.totals.answered - before.totals.answered) as f64;
    let payloads = payloads(lane, before, after);
    let server_cpu_s = (after.server_cpu - before.server_cpu).as_secs_f64();
    let client_cpu_s = (after.client_cpu - before.client_cpu).as_secs_f64();
    let quantile_us = |q| report.latency.value_at_quantile(q) as f64 / 1e3;
    Sample {
        requests_per_s: requests / elapsed_s,
        payloads_per_s: payloads / elapsed_s,
        megabytes_per_s: payloads * lane.payload_bytes as f64 / 1e6 / elapsed_s,
        server_cpu_us_per_payload: server_cpu_s * 1e6 / payloads,
        server_cpu_us_per_request: server_cpu_s * 1e6 / requests,
        p50_us: quantile_us(0.5),
        p99_us: quantile_us(0.99),
        p999_us: quantile_us(0.999),
        server_busy: server_cpu_s / elapsed_s / options.server_cores.len() as f64,
        client_busy: client_cpu_s / elapsed_s / options.client_cores.len() as f64,
        peak_rss_bytes: 0,
        batches: None,
        sync_p99_us: None,
        syncs_per_request: lane.spool.then(|| counted.syncs as f64 / requests),
        rss_bytes_per_connection: None,
        turn_p999_us: counted.turns.as_ref().and_then(|t| t.quantile(0.999)).map(|s| s * 1e6),
    }
}
