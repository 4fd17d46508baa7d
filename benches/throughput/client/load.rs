//! The load generator of one client core.
//!
//! In an open loop a request is due at a time drawn beforehand. If no connection is free then, it
//! waits here, and its latency counts from when it was due: a server that stalls is not spared the
//! requests it keeps from being sent.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use millrace::internals::commands::bench::timetable::{Arrivals, Timetable};
use millrace::internals::commands::bench::wire::{LoadWire, WireTls};
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry};

use super::h2::H2;
use super::traffic::Traffic;
use super::wire::{is_ready, tls_settings};
use super::{Phase, Share, empty_histogram, load_token};
use crate::lanes::{self, Kind, Lane};

/// Connections on their way at a time: fewer than any server's accept queue takes.
const CONNECTING_MAX: usize = 64;

pub(super) struct Load {
    lane: Lane,
    kind: Kind,
    traffic: Arc<Traffic>,
    /// Set if connections have TLS.
    tls: Option<WireTls>,
    turn: usize,
    conns: Vec<Conn>,
    /// Those that are to be replaced.
    ended: Vec<usize>,
    conns_wanted: usize,
    connecting: usize,
    arriving: Option<Arriving>,
    /// Connections with nothing to do, the longest idle first.
    free: VecDeque<usize>,
    phase: Phase,
    in_flight: u64,
    latency: Histogram<u64>,
    pub(super) answered: u64,
    pub(super) accepted: u64,
}

struct Conn {
    wire: LoadWire<TcpStream>,
    /// Set if it speaks HTTP/2.
    h2: Option<H2>,
    state: State,
    due: Due,
    /// The start of an answer that came in pieces.
    stash: Vec<u8>,
}

#[derive(Clone, Copy)]
enum State {
    Connecting,
    /// The socket is connected, the handshake of TLS is not complete.
    Shaking,
    Free,
    /// So many bytes of the request of this turn are written.
    Sending {
        turn: usize,
        written: usize,
    },
    Waiting,
    Ended,
}

/// When a request was to be sent, and whether it counts.
#[derive(Clone, Copy)]
struct Due {
    at: Instant,
    measured: bool,
}

/// The requests of an open loop: of independent clients, so the gaps are exponential.
struct Arriving {
    /// Per second, in this loop.
    rate: f64,
    rng: fastrand::Rng,
    /// Set once it has begun.
    timetable: Option<Timetable>,
    /// Due, but no connection was free.
    late: VecDeque<Due>,
}

impl Load {
    pub(super) fn new(share: Share, traffic: Arc<Traffic>) -> Load {
        let arriving = match share.lane.kind {
            Kind::Open { rate, .. } => {
                let rate = rate.expect("decided before the round") / share.of as f64;
                Some(Arriving {
                    rate,
                    rng: fastrand::Rng::with_seed(share.seed ^ ((share.at as u64) << 32)),
                    timetable: None,
                    late: VecDeque::new(),
                })
            }
            Kind::Closed | Kind::Idle | Kind::OnceEach => None,
        };
        Load {
            kind: share.lane.kind,
            lane: share.lane.clone(),
            traffic,
            tls: (share.lane.wire == lanes::Wire::Tls).then(tls_settings),
            turn: share.at * 7,
            conns: Vec::new(),
            ended: Vec::new(),
            conns_wanted: share.connections(),
            connecting: 0,
            arriving,
            free: VecDeque::new(),
            phase: Phase::Waiting,
            in_flight: 0,
            latency: empty_histogram(),
            answered: 0,
            accepted: 0,
        }
    }

    /// Opens connections, and sends what is due.
    pub(super) fn tick(
        &mut self,
        registry: &Registry,
        target: SocketAddr,
        phase: Phase,
        now: Instant,
    ) {
        self.phase = phase;
        if phase >= Phase::Closing {
            self.conns.clear();
            return;
        }
        while self.conns.len() < self.conns_wanted
            && self.connecting < CONNECTING_MAX
            && phase <= Phase::Measured
        {
            let Some(conn) = self.connect(registry, target, self.conns.len(), now) else { return };
            self.conns.push(conn);
        }
        while phase <= Phase::Measured
            && self.connecting < CONNECTING_MAX
            && let Some(index) = self.ended.pop()
        {
            match self.connect(registry, target, index, now) {
                Some(conn) => self.conns[index] = conn,
                None => return self.ended.push(index),
            }
        }
        self.send_what_is_due(now);
    }

    /// Begins connection `index`.
    fn connect(
        &mut self,
        registry: &Registry,
        target: SocketAddr,
        index: usize,
        now: Instant,
    ) -> Option<Conn> {
        let stream = TcpStream::connect(target).ok()?;
        let mut wire = LoadWire::new(stream, self.tls.as_ref()).ok()?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(wire.stream_mut(), load_token(index), interest).ok()?;
        self.connecting += 1;
        let due = Due { at: now, measured: self.phase == Phase::Measured };
        let h2 = (self.lane.wire == lanes::Wire::H2).then(H2::default);
        Some(Conn { wire, h2, state: State::Connecting, due, stash: Vec::new() })
    }

    fn send_what_is_due(&mut self, now: Instant) {
        let Some(arriving) = &mut self.arriving else { return };
        let measured = self.phase == Phase::Measured;
        if self.phase <= Phase::Measured {
            let Arriving { rate, rng, timetable, late } = arriving;
            let random = || Timetable::new(now, *rate, 0, 1, Arrivals::Random(rng.clone()));
            let timetable = timetable.get_or_insert_with(random);
            while timetable.next() <= now {
                late.push_back(Due { at: timetable.next(), measured });
                timetable.advance();
            }
        }
        while let Some(due) = self.arriving.as_ref().and_then(|a| a.late.front().copied())
            && let Some(index) = self.free.pop_front()
        {
            self.arriving.as_mut().expect("just seen").late.pop_front();
            // What fails here fails again when the answer is read.
            let _seen_by_the_reader = self.send(index, due);
        }
    }

    /// How long the loop may wait before [`Load::tick`] has something to do. An open loop does not
    /// wait at all: to be woken late would look like the server's latency.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        match &self.arriving {
            Some(arriving) if self.phase <= Phase::Measured => match &arriving.timetable {
                Some(timetable) => {
                    let left = timetable.next().saturating_duration_since(now);
                    if left < Duration::from_millis(2) { Duration::ZERO } else { left / 2 }
                }
                None => Duration::MAX,
            },
            _ => Duration::MAX,
        }
    }

    /// Requests not answered, or due and not sent.
    pub(super) fn outstanding(&self) -> u64 {
        self.in_flight + self.arriving.as_ref().map_or(0, |a| a.late.len() as u64)
    }

    pub(super) fn open(&self) -> u64 {
        self.conns.len() as u64
    }

    pub(super) fn into_latency(self) -> Histogram<u64> {
        self.latency
    }

    pub(super) fn on_event(
        &mut self,
        index: usize,
        event: &Event,
        buffer: &mut [u8],
    ) -> Result<(), String> {
        let Some(conn) = self.conns.get_mut(index) else { return Ok(()) };
        if event.is_writable() {
            match conn.state {
                State::Connecting => {
                    if let Ok(Some(error)) | Err(error) = conn.wire.stream().take_error() {
                        return Err(format!("cannot connect: {error}"));
                    }
                    let _only_slower_without = conn.wire.stream().set_nodelay(true);
                    conn.state = State::Shaking;
                    conn.wire.flush().map_err(|error| format!("no handshake: {error}"))?;
                    self.shake(index)?;
                }
                State::Sending { .. } => self.write(index)?,
                State::Shaking | State::Waiting => conn.wire.flush().map_err(not_sent)?,
                State::Free | State::Ended => {}
            }
        }
        let reads = event.is_readable() && !matches!(self.conns[index].state, State::Ended);
        if reads { self.read(index, buffer) } else { Ok(()) }
    }

    /// The handshake may have gone on: if it is complete, or there is none, requests can be sent.
    fn shake(&mut self, index: usize) -> Result<(), String> {
        let conn = &mut self.conns[index];
        if !is_ready(&conn.wire)? {
            return Ok(());
        }
        conn.state = State::Free;
        self.connecting -= 1;
        self.ready(index)
    }

    /// The connection has nothing to do: gives it the next request, if there is one now.
    fn ready(&mut self, index: usize) -> Result<(), String> {
        let now = Instant::now();
        let measured = self.phase == Phase::Measured;
        match self.kind {
            Kind::Closed if self.phase <= Phase::Measured => {
                self.send(index, Due { at: now, measured })
            }
            Kind::Idle if self.conns[index].stash.capacity() == 0 => {
                // Marks that this one has had its turn.
                self.conns[index].stash.reserve(1);
                self.send(index, Due { at: now, measured })
            }
            Kind::OnceEach if self.phase <= Phase::Measured => {
                self.send(index, self.conns[index].due)
            }
            Kind::Closed | Kind::Idle | Kind::OnceEach => Ok(()),
            Kind::Open { .. } => {
                self.free.push_back(index);
                self.send_what_is_due(now);
                Ok(())
            }
        }
    }

    fn send(&mut self, index: usize, due: Due) -> Result<(), String> {
        let conn = &mut self.conns[index];
        conn.due = due;
        conn.state = State::Sending { turn: self.turn, written: 0 };
        let first = self.turn;
        self.turn += 1;
        self.in_flight += 1;
        if let Some(h2) = &mut conn.h2 {
            let mut turns = first..;
            let asked = h2.begin(|| self.traffic.request(turns.next().expect("it has no end")));
            self.turn += asked - 1;
            self.in_flight += asked as u64 - 1;
        }
        self.write(index)
    }

    fn write(&mut self, index: usize) -> Result<(), String> {
        let conn = &mut self.conns[index];
        let State::Sending { turn, mut written } = conn.state else { return Ok(()) };
        let request = match &conn.h2 {
            None => self.traffic.request(turn),
            Some(h2) => &h2.sends,
        };
        while written < request.len() {
            match conn.wire.write(&request[written..]) {
                Ok(n) => written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    conn.state = State::Sending { turn, written };
                    return Ok(());
                }
                Err(error) => return Err(not_sent(error)),
            }
        }
        conn.state = State::Waiting;
        Ok(())
    }

    fn read(&mut self, index: usize, buffer: &mut [u8]) -> Result<(), String> {
        let conn = &mut self.conns[index];
        let read = match conn.wire.read(buffer) {
            Ok([]) => return Err("the server closed a connection".into()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return match conn.state {
                    State::Shaking => self.shake(index),
                    _ => Ok(()),
                };
            }
            Err(error) => return Err(format!("a connection broke: {error}")),
        };
        if let Some(h2) = &mut conn.h2 {
            conn.stash.extend_from_slice(read);
            let accepted = h2.answers(&mut conn.stash, &self.lane)?;
            return accepted
                .map_or(Ok(()), |(requests, accepted)| self.answered(index, requests, accepted));
        }
        let accepted = if conn.stash.is_empty() {
            answer(read)
        } else {
            conn.stash.extend_from_slice(read);
            answer(&conn.stash)
        };
        let Some(accepted) = accepted? else {
            if conn.stash.is_empty() {
                conn.stash.extend_from_slice(read);
            }
            return Ok(());
        };
        conn.stash.clear();
        if accepted != self.traffic.payloads as u64 {
            return Err(format!("{accepted} payloads accepted of {}", self.traffic.payloads));
        }
        self.answered(index, 1, accepted)
    }

    /// All that a connection has sent is answered.
    fn answered(&mut self, index: usize, requests: usize, accepted: u64) -> Result<(), String> {
        let conn = &mut self.conns[index];
        if !matches!(conn.state, State::Waiting) {
            return Err("an answer to no request, or before all of it was sent".into());
        }
        conn.state = State::Free;
        if conn.due.measured {
            self.latency.saturating_record(conn.due.at.elapsed().as_nanos() as u64);
        }
        self.in_flight -= requests as u64;
        self.answered += requests as u64;
        self.accepted += accepted;
        if self.kind == Kind::OnceEach {
            self.conns[index].end();
            self.ended.push(index);
            return Ok(());
        }
        self.ready(index)
    }
}

impl Conn {
    /// Closes our half; what the server still sends is not read.
    fn end(&mut self) {
        self.wire.say_goodbye();
        self.state = State::Ended;
        let _closed_by_its_drop = self.wire.stream().shutdown(Shutdown::Write);
    }
}

fn not_sent(error: io::Error) -> String {
    format!("a request could not be sent: {error}")
}

/// How many payloads the answer in `bytes` accepts; none when it is not there as a whole yet.
fn answer(bytes: &[u8]) -> Result<Option<u64>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut head = httparse::Response::new(&mut headers);
    let text = || String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned();
    let Ok(status) = head.parse(bytes) else { return Err(format!("not HTTP: {}", text())) };
    let httparse::Status::Complete(body_at) = status else { return Ok(None) };
    if head.code != Some(200) {
        return Err(format!("an answer that is no 200: {}", text()));
    }
    let length = head.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|h| std::str::from_utf8(h.value).ok()?.parse::<usize>().ok());
    let Some(length) = length else { return Err(format!("no content-length: {}", text())) };
    let body = &bytes[body_at..];
    if body.len() < length {
        return Ok(None);
    }
    if body.len() > length {
        return Err(format!("more than one answer: {}", text()));
    }
    accepted(&body[..length]).map(Some)
}

/// How many payloads an answer with this body accepts.
pub(super) fn accepted(body: &[u8]) -> Result<u64, String> {
    let accepted = body.strip_prefix(br#"{"accepted":"#).and_then(|rest| {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
    });
    let text = || String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned();
    accepted.ok_or_else(|| format!("not the answer of an ingest server: {}", text()))
}
