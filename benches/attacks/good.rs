//! The good client: a request every [`PERIOD`], in turn on a connection that is kept and on one of
//! its own, each answer checked. A request goes out when it is due, whatever became of the others.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;

use crate::answer::answer;
use crate::options::Options;
use crate::table::{self, Attack};

/// Between two requests.
const PERIOD: Duration = Duration::from_millis(5);

/// How long a request may take; then it has failed, and counts as this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many failures are described.
const FIRST_FAILURES: usize = 3;

const ANSWER: &[u8] = br#"{"accepted":2,"ack":"queued"}"#;

/// Phases of the client.
const WARM_UP: u8 = 0;
const RECORD: u8 = 1;
const OVER: u8 = 2;

/// What it was given, of requests due in the recorded part.
pub struct Report {
    pub sent: u64,
    pub failures: u64,
    pub first_failures: Vec<String>,
    /// Nanoseconds from when a request was due to its answer.
    pub latency: Histogram<u64>,
}

/// A good client at work.
pub struct Good {
    phase: Arc<AtomicU8>,
    thread: JoinHandle<Result<Report, String>>,
}

impl Good {
    /// Starts it in a thread of its own.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(server: SocketAddr, attack: &Attack, options: &Options) -> Result<Good, String> {
        let phase = Arc::new(AtomicU8::new(WARM_UP));
        let capacity = (options.duration.as_millis() / PERIOD.as_millis()) as usize;
        let request = table::good_request(attack.tokens > 0);
        let thread = std::thread::Builder::new().name("good".into()).spawn({
            let phase = phase.clone();
            move || Client::new(server, request, phase, capacity)?.run()
        });
        let thread = thread.map_err(|error| format!("no thread: {error}"))?;
        Ok(Good { phase, thread })
    }

    /// Requests due from now on count.
    pub fn record(&self) {
        self.phase.store(RECORD, Ordering::Release);
    }

    /// Sends nothing more, waits for what is on its way.
    ///
    /// # Errors
    /// If the client itself failed.
    pub fn stop(self) -> Result<Report, String> {
        self.phase.store(OVER, Ordering::Release);
        self.thread.join().map_err(|_| "the good client panicked".to_owned())?
    }
}

/// One connection, with at most one request.
struct Conn {
    stream: TcpStream,
    keep: bool,
    /// When the request was due, and whether it counts.
    request: Option<(Instant, bool)>,
    written: usize,
    read: Vec<u8>,
}

struct Client {
    server: SocketAddr,
    request: Vec<u8>,
    phase: Arc<AtomicU8>,
    poll: Poll,
    started: Instant,
    conns: Slab<Conn>,
    /// Kept connections without a request.
    free: Vec<usize>,
    report: Report,
}

const TICK: Token = Token(usize::MAX);

/// Wakes the client whenever a request is due: waits of the poll are whole milliseconds.
fn tick(started: Instant, waker: &Waker, phase: &AtomicU8) {
    for turn in 0.. {
        std::thread::sleep((started + PERIOD * turn).saturating_duration_since(Instant::now()));
        if phase.load(Ordering::Acquire) == OVER || waker.wake().is_err() {
            return;
        }
    }
}

impl Client {
    fn new(
        server: SocketAddr,
        request: Vec<u8>,
        phase: Arc<AtomicU8>,
        capacity: usize,
    ) -> Result<Client, String> {
        let text = |error: std::io::Error| format!("the good client: {error}");
        let poll = Poll::new().map_err(text)?;
        let waker = Waker::new(poll.registry(), TICK).map_err(text)?;
        let started = Instant::now();
        let ticker = std::thread::Builder::new().name("ticker".into()).spawn({
            let phase = phase.clone();
            move || tick(started, &waker, &phase)
        });
        ticker.map_err(text)?;
        // Up to twice the longest there can be, to three digits.
        let latency = Histogram::new_with_bounds(1, 2 * PATIENCE.as_nanos() as u64, 3)
            .map_err(|error| format!("{error}"))?;
        let report = Report { sent: 0, failures: 0, first_failures: Vec::new(), latency };
        let conns = Slab::with_capacity(capacity);
        Ok(Client { server, request, phase, poll, started, conns, free: Vec::new(), report })
    }

    fn run(mut self) -> Result<Report, String> {
        let mut events = Events::with_capacity(256);
        let mut turn = 0;
        loop {
            let waited = self.poll.poll(&mut events, Some(PERIOD));
            match waited {
                Err(error) if error.kind() != ErrorKind::Interrupted => {
                    return Err(format!("the good client: {error}"));
                }
                _ => {}
            }
            for event in &events {
                if event.token() != TICK {
                    self.advance(event.token().0);
                }
            }
            let phase = self.phase.load(Ordering::Acquire);
            let mut due = self.started + PERIOD * turn;
            while phase != OVER && due <= Instant::now() {
                self.send(due, phase == RECORD, turn % 2 == 0);
                turn += 1;
                due += PERIOD;
            }
            self.give_up();
            if phase == OVER && self.conns.iter().all(|(_, conn)| conn.request.is_none()) {
                return Ok(self.report);
            }
        }
    }

    /// Sends a request on a connection that is kept, or on a new one.
    fn send(&mut self, due: Instant, counts: bool, keep: bool) {
        self.report.sent += u64::from(counts);
        let index = match if keep { self.free.pop() } else { None } {
            Some(index) => index,
            None => match TcpStream::connect(self.server) {
                Ok(stream) => {
                    let (request, read) = (None, Vec::new());
                    let conn = Conn { stream, keep, request, written: 0, read };
                    let index = self.conns.insert(conn);
                    let stream = &mut self.conns[index].stream;
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    // What fails here fails again when it is written to.
                    let _seen = self.poll.registry().register(stream, Token(index), interest);
                    let _only_slower_without = stream.set_nodelay(true);
                    index
                }
                Err(error) => return self.fail(counts, format!("cannot connect: {error}")),
            },
        };
        let conn = &mut self.conns[index];
        conn.request = Some((due, counts));
        conn.written = 0;
        self.advance(index);
    }

    /// Writes what is left of the request, and reads.
    fn advance(&mut self, index: usize) {
        let Some(conn) = self.conns.get_mut(index) else { return };
        while conn.request.is_some() && conn.written < self.request.len() {
            match conn.stream.write(&self.request[conn.written..]) {
                Ok(n) => conn.written += n,
                Err(error) if waits(&error) => break,
                Err(error) => return self.end(index, Err(format!("cannot send: {error}"))),
            }
        }
        let mut buffer = [0; 4096];
        loop {
            let conn = &mut self.conns[index];
            match conn.stream.read(&mut buffer) {
                Ok(0) => return self.end(index, Err("closed without a whole answer".into())),
                Ok(n) => conn.read.extend_from_slice(&buffer[..n]),
                Err(error) if waits(&error) => return,
                Err(error) => return self.end(index, Err(format!("cannot read: {error}"))),
            }
            match answer(&conn.read) {
                Ok(None) => {}
                Ok(Some(answer)) => {
                    let right = answer.status == 200
                        && answer.body == ANSWER
                        && answer.length == conn.read.len()
                        && conn.written == self.request.len();
                    let outcome = if right { Ok(answer.closes) } else { Err(shown(&conn.read)) };
                    return self.end(index, outcome);
                }
                Err(error) => return self.end(index, Err(error)),
            }
        }
    }

    /// The request on this connection is over: whether the connection is too, or what went wrong.
    /// A kept connection that the server closes between two requests is no failure.
    fn end(&mut self, index: usize, outcome: Result<bool, String>) {
        let conn = &mut self.conns[index];
        conn.read.clear();
        let request = conn.request.take();
        let reusable = conn.keep && outcome == Ok(false);
        match (request, outcome) {
            (Some((due, true)), Ok(_)) => self.report.latency.saturating_record(nanos(due)),
            (Some((due, true)), Err(error)) => {
                self.report.latency.saturating_record(nanos(due));
                self.fail(true, error);
            }
            _ => {}
        }
        if reusable {
            self.free.push(index);
        } else {
            self.conns.remove(index);
            self.free.retain(|free| *free != index);
        }
    }

    /// Ends what takes too long.
    fn give_up(&mut self) {
        let late = |(index, conn): (usize, &Conn)| {
            conn.request.is_some_and(|(due, _)| due.elapsed() > PATIENCE).then_some(index)
        };
        let late: Vec<usize> = self.conns.iter().filter_map(late).collect();
        for index in late {
            self.end(index, Err(format!("no answer within {PATIENCE:?}")));
        }
    }

    fn fail(&mut self, counts: bool, error: String) {
        self.report.failures += u64::from(counts);
        if counts && self.report.first_failures.len() < FIRST_FAILURES {
            self.report.first_failures.push(error);
        }
    }
}

fn nanos(since: Instant) -> u64 {
    since.elapsed().as_nanos() as u64
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned()
}

/// Not an error: there is nothing to be done now.
pub fn waits(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected | ErrorKind::Interrupted)
}
