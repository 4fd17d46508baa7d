//! The client cores: on each one loop that is both load generator and S3 sink, so that one wait
//! serves both and neither needs a thread to wake. It must cost much less than the servers; how
//! busy it was is part of every result.

mod batches;
mod h2;
mod load;
mod sink;
mod traffic;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{
    AtomicU8, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::lanes::Lane;
use load::Load;
use sink::Sink;
use traffic::Traffic;

/// Where a round is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Only the sink is at work: the server is starting.
    Waiting,
    WarmUp,
    Measured,
    /// Nothing new is sent; answers and PUTs still come.
    Draining,
    /// Client connections are closed, so that the server can stop at once.
    Closing,
    Over,
}

/// What the loops and the round share.
struct Shared {
    phase: AtomicU8,
    /// Set before the warm-up.
    target: OnceLock<SocketAddr>,
    /// The first thing that went wrong.
    problem: OnceLock<String>,
    counts: Vec<Counts>,
}

impl Shared {
    fn report(&self, problem: String) {
        // Only the first is kept.
        let _kept = self.problem.set(problem);
    }
}

/// One loop's counters, written by it alone.
#[derive(Default)]
#[repr(align(128))]
struct Counts {
    answered: AtomicU64,
    outstanding: AtomicU64,
    accepted: AtomicU64,
    puts: AtomicU64,
    put_payloads: AtomicU64,
    put_bytes: AtomicU64,
    open: AtomicU64,
}

/// All loops' counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Requests answered with a 200.
    pub answered: u64,
    /// Requests sent and not answered, or due and not sent.
    pub outstanding: u64,
    /// Payloads that those 200s acknowledged.
    pub accepted: u64,
    pub puts: u64,
    /// Payloads in them: as many in a batch as its key says.
    pub put_payloads: u64,
    /// Of their bodies, as far as they have come.
    pub put_bytes: u64,
    /// Client connections.
    pub open: u64,
}

/// What the loops know in the end.
pub struct Report {
    /// Nanoseconds from when a request was due to its answer, requests due in the measured part.
    pub latency: Histogram<u64>,
    /// Keys under which something was put, each once.
    pub distinct_keys: u64,
    /// Payloads in compressed batches that were not decoded, for there was no room to keep them.
    pub undecoded: u64,
}

/// The loops of one round, one per client core.
pub struct Crew {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<io::Result<Report>>>,
    sink_address: SocketAddr,
}

impl Crew {
    /// Starts the loops; the sink listens when this returns.
    pub fn start(cores: &[usize], lane: &Lane, seed: u64) -> io::Result<Crew> {
        let shared = Arc::new(Shared {
            phase: AtomicU8::new(Phase::Waiting as u8),
            target: OnceLock::new(),
            problem: OnceLock::new(),
            counts: cores.iter().map(|_| Counts::default()).collect(),
        });
        let traffic = Arc::new(Traffic::new(lane));
        let first = sink::listen(None)?;
        let sink_address = first.local_addr()?;
        let mut first = Some(first);
        let mut threads = Vec::new();
        for (at, core) in cores.iter().copied().enumerate() {
            let listener = match first.take() {
                Some(first) => first,
                None => sink::listen(Some(sink_address))?,
            };
            let share = Share { lane: lane.clone(), at, of: cores.len(), seed };
            let (shared, traffic) = (shared.clone(), traffic.clone());
            threads.push(std::thread::Builder::new().name(format!("client-{core}")).spawn(
                move || {
                    pin(&[core])?;
                    Station::new(shared, share, traffic, listener)?.run()
                },
            )?);
        }
        Ok(Crew { shared, threads, sink_address })
    }

    pub fn sink_address(&self) -> SocketAddr {
        self.sink_address
    }

    /// Begins the warm-up.
    pub fn go(&self, target: SocketAddr) {
        self.shared.target.set(target).expect("a crew goes once");
        self.enter(Phase::WarmUp);
    }

    pub fn enter(&self, phase: Phase) {
        self.shared.phase.store(phase as u8, Release);
    }

    pub fn totals(&self) -> Totals {
        let sum = |read: fn(&Counts) -> &AtomicU64| {
            self.shared.counts.iter().map(|counts| read(counts).load(Relaxed)).sum()
        };
        let outstanding =
            self.shared.counts.iter().map(|counts| counts.outstanding.load(Acquire)).sum();
        Totals {
            answered: sum(|c| &c.answered),
            outstanding,
            accepted: sum(|c| &c.accepted),
            puts: sum(|c| &c.puts),
            put_payloads: sum(|c| &c.put_payloads),
            put_bytes: sum(|c| &c.put_bytes),
            open: sum(|c| &c.open),
        }
    }

    /// The first thing that went wrong, if anything did.
    pub fn check(&self) -> Result<(), String> {
        self.shared.problem.get().map_or(Ok(()), |problem| Err(problem.clone()))
    }

    /// Ends the loops.
    pub fn finish(mut self) -> Result<Report, String> {
        let mut all = Report { latency: empty_histogram(), distinct_keys: 0, undecoded: 0 };
        self.enter(Phase::Over);
        for thread in self.threads.drain(..) {
            let report = thread.join().map_err(|_| "a client loop panicked")?;
            let report = report.map_err(|error| format!("a client loop failed: {error}"))?;
            all.latency.add(report.latency).expect("all have the same bounds");
            // A key in two loops' sinks would be counted twice; the server's own counters would
            // show it.
            all.distinct_keys += report.distinct_keys;
            all.undecoded += report.undecoded;
        }
        self.check()?;
        Ok(all)
    }
}

impl Drop for Crew {
    /// Also after an error the loops end, but nobody waits for them.
    fn drop(&mut self) {
        self.enter(Phase::Over);
    }
}

fn empty_histogram() -> Histogram<u64> {
    // 1 µs to 1 min, three digits; anything longer counts as a minute.
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("these bounds are valid")
}

/// One loop's part of the lane.
#[derive(Clone, Debug)]
struct Share {
    lane: Lane,
    at: usize,
    of: usize,
    seed: u64,
}

impl Share {
    fn connections(&self) -> usize {
        let Share { lane, at, of, .. } = self;
        lane.connections / of + usize::from(*at < lane.connections % of)
    }
}

const LISTENER: Token = Token(usize::MAX - 1);
/// Longest wait, so that a new phase is noticed.
const WAIT_MAX: Duration = Duration::from_millis(5);

/// One client core.
struct Station {
    shared: Arc<Shared>,
    at: usize,
    poll: Poll,
    load: Load,
    sink: Sink,
}

impl Station {
    fn new(
        shared: Arc<Shared>,
        share: Share,
        traffic: Arc<Traffic>,
        mut listener: mio::net::TcpListener,
    ) -> io::Result<Station> {
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let sink = Sink::new(listener, &share.lane, share.seed ^ share.at as u64);
        Ok(Station { shared, at: share.at, load: Load::new(share, traffic), sink, poll })
    }

    fn run(mut self) -> io::Result<Report> {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let phase = self.phase();
            if phase == Phase::Over {
                break;
            }
            if let Some(target) = self.shared.target.get() {
                self.load.tick(self.poll.registry(), *target, phase, Instant::now());
            }
            let now = Instant::now();
            let wait = self.load.wait(now).min(self.sink.wait(now)).min(WAIT_MAX);
            if let Err(error) = self.poll.poll(&mut events, Some(wait))
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(error);
            }
            for event in &events {
                let outcome = match event.token() {
                    LISTENER => self.sink.accept(self.poll.registry()),
                    Token(token) if token % 2 == 0 => {
                        self.load.on_event(token / 2, event, &mut buffer)
                    }
                    Token(token) => self.sink.on_event(token / 2, &mut buffer),
                };
                if let Err(problem) = outcome {
                    self.shared.report(problem);
                }
            }
            if let Err(problem) = self.sink.go_on(&mut buffer) {
                self.shared.report(problem);
            }
            self.sink.tick(Instant::now());
            self.publish(phase);
        }
        let distinct_keys = self.sink.distinct_keys();
        let undecoded = self.sink.decode().unwrap_or_else(|problem| {
            self.shared.report(problem);
            0
        });
        Ok(Report { latency: self.load.into_latency(), distinct_keys, undecoded })
    }

    fn phase(&self) -> Phase {
        let phases = [
            Phase::Waiting,
            Phase::WarmUp,
            Phase::Measured,
            Phase::Draining,
            Phase::Closing,
            Phase::Over,
        ];
        phases[usize::from(self.shared.phase.load(Acquire))]
    }

    fn publish(&self, phase: Phase) {
        let counts = &self.shared.counts[self.at];
        counts.answered.store(self.load.answered, Relaxed);
        counts.accepted.store(self.load.accepted, Relaxed);
        counts.puts.store(self.sink.puts, Relaxed);
        counts.put_payloads.store(self.sink.payloads, Relaxed);
        counts.put_bytes.store(self.sink.put_bytes, Relaxed);
        counts.open.store(self.load.open(), Relaxed);
        // Last, so that whoever sees nothing outstanding sees the rest as it is then. While
        // requests are still being made, the next one counts.
        let next = u64::from(matches!(phase, Phase::WarmUp | Phase::Measured));
        counts.outstanding.store(self.load.outstanding() + next, Release);
    }
}

/// The token of connection `index` of the load generator (even) or of the sink (odd).
fn load_token(index: usize) -> Token {
    Token(index * 2)
}

fn sink_token(index: usize) -> Token {
    Token(index * 2 + 1)
}

/// Pins the calling thread, and what it starts, to `cores`.
pub fn pin(cores: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    Ok(sched_setaffinity(None, &set)?)
}

/// Connections need descriptors on this side as well.
pub fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _as_it_was = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// How many connections this process may open, with some descriptors left for everything else.
pub fn connections_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    limit.saturating_sub(1_000) as usize
}
