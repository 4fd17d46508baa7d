//! The load generator: one loop per thread, each with connections of its own. Plain threads and
//! epoll, so that it runs where io_uring is refused.
//!
//! - A **closed loop** sends the next request of a connection when the answer to the last one is
//!   complete. Latency is the time from sending. A connection that was told to wait (429, 503)
//!   waits as long as `retry-after` says.
//! - An **open loop** sends at the times of a [`Timetable`], on the connection that has been free
//!   for longest. Latency is the time from when a request was due: a server that stalls is not
//!   spared the requests that it keeps from being sent (coordinated omission).
//!
//! Every wait ends: connecting and answers have time-outs, a broken connection is made again after
//! a pause that grows, and the run ends at [`LoadClock::cut`] whatever is in progress.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::answer::{AnswerReader, LoadAnswer};
use super::bodies::LoadRequests;
use super::tally::{LoadError, LoadTally, ThreadCost, is_success, latency_histogram};
use super::timetable::{Arrivals, Timetable};
use super::wire::{LoadWire, WireTls};
use crate::rt;

/// Connections of a thread that are being made at a time: fewer than any accept queue takes.
const CONNECTING_MAX: usize = 64;
/// How long connecting may take, if `--timeout` is not shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a broken connection is made again; it doubles with every failure.
const RECONNECT_AFTER: Duration = Duration::from_millis(10);
const RECONNECT_AFTER_MAX: Duration = Duration::from_secs(1);
/// How long a refused connection of a closed loop waits if the answer does not say, and at most.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// A timer may be late by this much; the rest of the time to a due request is spent awake.
const SPIN: Duration = Duration::from_micros(60);
/// Longest wait, so that the end of the run is noticed; time-outs are looked for as often.
const WAIT_MAX: Duration = Duration::from_millis(20);
/// Events taken at a time.
const EVENTS_MAX: usize = 1_024;
/// Room for what is read at a time.
const BUFFER_BYTES: usize = 128 << 10;

/// What all threads of a run are told.
pub(super) struct LoadPlan {
    pub(super) address: SocketAddr,
    pub(super) tls: Option<WireTls>,
    pub(super) requests: LoadRequests,
    pub(super) connections: usize,
    pub(super) threads: usize,
    /// Requests per second of an open loop; none: a closed loop.
    pub(super) rate: Option<u32>,
    pub(super) timeout: Duration,
    /// The run ends with its first request, whatever became of it.
    pub(super) only_one: bool,
}

/// The parts of a run. Only its end may be moved, and only to an earlier time.
pub(super) struct LoadClock {
    pub(super) start: Instant,
    /// The end of the warm-up: requests due from now on are measured.
    pub(super) from: Instant,
    /// When the last request is due, in nanoseconds from `start`.
    end: AtomicU64,
    /// When the run ends at the latest, likewise.
    cut: AtomicU64,
}

impl LoadClock {
    /// `drain` is how long answers may take after the last request.
    pub(super) fn new(warm_up: Duration, duration: Duration, drain: Duration) -> LoadClock {
        let start = rt::now();
        let nanos = |time: Duration| AtomicU64::new(time.as_nanos() as u64);
        let end = warm_up + duration;
        LoadClock { start, from: start + warm_up, end: nanos(end), cut: nanos(end + drain) }
    }

    /// Nothing is sent from now on, and the run ends in `drain` at the latest.
    pub(super) fn stop(&self, drain: Duration) {
        let now = rt::since(self.start);
        self.end.fetch_min(now.as_nanos() as u64, Relaxed);
        self.cut.fetch_min((now + drain).as_nanos() as u64, Relaxed);
    }

    pub(super) fn end(&self) -> Instant {
        self.start + Duration::from_nanos(self.end.load(Relaxed))
    }

    pub(super) fn cut(&self) -> Instant {
        self.start + Duration::from_nanos(self.cut.load(Relaxed))
    }

    /// Length of the measured part.
    pub(super) fn measured(&self) -> Duration {
        self.end().saturating_duration_since(self.from)
    }

    fn measures(&self, due: Instant) -> bool {
        self.from <= due && due < self.end()
    }
}

/// What the threads of a run share.
pub(super) struct LoadRun {
    pub(super) plan: LoadPlan,
    pub(super) clock: LoadClock,
    /// Answers so far, by thread, each written by it alone; to show progress.
    pub(super) answered: Vec<AtomicU64>,
}

impl LoadRun {
    pub(super) fn new(plan: LoadPlan, clock: LoadClock) -> Arc<LoadRun> {
        let answered = (0..plan.threads).map(|_| AtomicU64::new(0)).collect();
        Arc::new(LoadRun { plan, clock, answered })
    }
}

/// One thread of the generator.
pub(super) struct LoadLoop {
    run: Arc<LoadRun>,
    /// Which thread it is.
    at: usize,
    epoll: OwnedFd,
    conns: Vec<LoadConn>,
    /// Connections of an open loop with nothing to do, the longest idle first.
    free: VecDeque<usize>,
    /// When closed connections are to be made, and paused ones to go on: one entry for each.
    later: BinaryHeap<Reverse<(Instant, usize)>>,
    timetable: Option<Timetable>,
    /// Which request is next.
    turn: usize,
    connecting: usize,
    in_flight: usize,
    tally: LoadTally,
    spent: ThreadTime,
}

struct LoadConn {
    /// None if it is closed.
    wire: Option<LoadWire<TcpStream>>,
    state: LoadState,
    /// When the state began.
    since: Instant,
    /// The request in progress, or the last one.
    request: SentRequest,
    answer: AnswerReader,
    /// epoll waits until it can be written to.
    watches_write: bool,
    /// In a row, without an answer in between.
    failures: u32,
    was_open: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoadState {
    Closed,
    Connecting,
    /// The socket is connected, the handshake of TLS is not complete.
    Shaking,
    Free,
    /// A request is being sent, or its answer awaited.
    Busy,
    /// Told to wait.
    Paused,
}

/// A request of a connection.
#[derive(Clone, Copy)]
struct SentRequest {
    turn: usize,
    written: usize,
    due: Instant,
    measured: bool,
}

/// Where the time of the thread goes.
struct ThreadTime {
    idle: Duration,
    /// At the beginning and at the end of the measured part.
    begin: Option<ThreadCost>,
    end: Option<ThreadCost>,
    /// When time-outs are looked for.
    look_at: Instant,
}

impl LoadLoop {
    /// Thread `at` of the run.
    ///
    /// # Errors
    /// No descriptor is available.
    pub(super) fn new(run: Arc<LoadRun>, at: usize) -> io::Result<LoadLoop> {
        let LoadPlan { connections, threads, rate, .. } = run.plan;
        let start = run.clock.start;
        let own = connections / threads + usize::from(at < connections % threads);
        let timetable =
            rate.map(|rate| Timetable::new(start, f64::from(rate), at, threads, Arrivals::Steady));
        let longest = run.clock.cut().saturating_duration_since(start);
        let mut tally = LoadTally::new(longest);
        tally.keeping.own_delay = timetable.is_some().then(|| latency_histogram(longest));
        Ok(LoadLoop {
            at,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            conns: (0..own).map(|_| LoadConn::new(start)).collect(),
            free: VecDeque::with_capacity(own),
            later: (0..own).map(|index| Reverse((start, index))).collect(),
            timetable,
            // Threads do not send the same at the same time.
            turn: at * 7,
            connecting: 0,
            in_flight: 0,
            tally,
            spent: ThreadTime { idle: Duration::ZERO, begin: None, end: None, look_at: start },
            run,
        })
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The kernel refuses to wait for sockets.
    pub(super) fn run(mut self) -> io::Result<LoadTally> {
        // The default of 50 µs would delay what is due; without the right to change it, so it is.
        let _later_by_that = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let now = rt::now();
            let end = self.run.clock.end();
            self.note_costs(now, end);
            if now >= end && (self.in_flight == 0 || now >= self.run.clock.cut()) {
                break;
            }
            self.begin_what_is_due(now, end);
            self.poll(&mut events)?;
            for event in events.drain(..) {
                self.on_event(event.data.u64() as usize, event.flags, &mut buffer);
            }
            self.publish();
        }
        self.finish();
        Ok(self.tally)
    }

    fn note_costs(&mut self, now: Instant, end: Instant) {
        let ThreadTime { idle, begin, end: ended, .. } = &mut self.spent;
        let due = match (begin.is_some(), ended.is_some()) {
            (false, _) if now >= self.run.clock.from => begin,
            (true, false) if now >= end => ended,
            _ => return,
        };
        let elapsed = now.saturating_duration_since(self.run.clock.start);
        *due = Some(ThreadCost { elapsed, idle: *idle, cpu: cpu_of_this_thread() });
    }

    fn publish(&self) {
        let answers = self.tally.outcomes.answers.values().sum();
        self.run.answered[self.at].store(answers, Relaxed);
    }

    /// What is unanswered or unsent at the end.
    fn finish(&mut self) {
        self.time_out(rt::now());
        for index in 0..self.conns.len() {
            if self.conns[index].state == LoadState::Busy {
                self.fail(index, LoadError::Unfinished, String::new);
            }
            if let Some(wire) = &mut self.conns[index].wire {
                wire.say_goodbye();
            }
        }
        let end = self.run.clock.end();
        if let Some(timetable) = &self.timetable {
            // Those of the warm-up are not measured.
            let from = self.run.clock.from;
            let unsent = timetable.left(end).saturating_sub(timetable.left(from));
            let longest = end.saturating_duration_since(timetable.next().max(from));
            self.tally.never_sent(unsent, longest);
        }
        self.tally.opened = self.conns.iter().filter(|conn| conn.was_open).count();
        if let (Some(begin), Some(end)) = (self.spent.begin, self.spent.end) {
            let cpu = end.cpu.zip(begin.cpu);
            self.tally.costs.push(ThreadCost {
                elapsed: end.elapsed - begin.elapsed,
                idle: end.idle - begin.idle,
                cpu: cpu.map(|(end, begin)| (end.0 - begin.0, end.1 - begin.1)),
            });
        }
    }

    /// Connections that are due, requests that are due, time-outs.
    fn begin_what_is_due(&mut self, now: Instant, end: Instant) {
        while let Some(Reverse((due, index))) = self.later.peek().copied()
            && due <= now
            && now < end
        {
            match self.conns[index].state {
                LoadState::Closed if self.connecting >= CONNECTING_MAX => break,
                LoadState::Closed => {
                    self.later.pop();
                    self.connect(index, now);
                }
                LoadState::Paused => {
                    self.later.pop();
                    self.ready(index, now);
                }
                state => unreachable!("{state:?} waits for nothing"),
            }
        }
        self.send_what_is_due(now);
        if now >= self.spent.look_at {
            self.spent.look_at = now + WAIT_MAX;
            self.time_out(now);
        }
    }

    fn time_out(&mut self, now: Instant) {
        let timeout = self.run.plan.timeout;
        for index in 0..self.conns.len() {
            let LoadConn { state, since, .. } = self.conns[index];
            let waited = now.saturating_duration_since(since);
            match state {
                LoadState::Busy if waited >= timeout => {
                    self.fail(index, LoadError::Timeout, || {
                        format!("no answer within {timeout:?}")
                    });
                }
                LoadState::Connecting | LoadState::Shaking
                    if waited >= timeout.min(CONNECT_TIMEOUT) =>
                {
                    let kind = match state {
                        LoadState::Connecting => LoadError::Connect,
                        _ => LoadError::Tls,
                    };
                    self.fail(index, kind, || "timed out".to_owned());
                }
                _ => {}
            }
        }
    }

    /// How long nothing is to be done without an event.
    fn wait(&self, now: Instant) -> Duration {
        let mut until = self.spent.look_at.min(self.run.clock.end().max(now + SPIN));
        if let Some(Reverse((due, _))) = self.later.peek()
            && self.connecting < CONNECTING_MAX
            && now < self.run.clock.end()
        {
            until = until.min(*due);
        }
        if let Some(timetable) = &self.timetable
            && !self.free.is_empty()
            && now < self.run.clock.end()
        {
            until = until.min(timetable.next().checked_sub(SPIN).unwrap_or(now));
        }
        until.saturating_duration_since(now)
    }

    /// Waits for events, and counts the time in which there was nothing to do.
    fn poll(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let began = rt::now();
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let look = |events: &mut Vec<epoll::Event>| match epoll::wait(
            &self.epoll,
            spare_capacity(events),
            Some(&at_once),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        };
        look(events)?;
        if !events.is_empty() {
            return Ok(());
        }
        let wait = self.wait(began);
        if wait.is_zero() {
            self.spent.idle += rt::since(began);
            return Ok(());
        }
        // Timeouts of epoll_wait are whole milliseconds.
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.spent.idle += rt::since(began);
        Ok(look(events)?)
    }

    /// Begins connection `index`.
    fn connect(&mut self, index: usize, now: Instant) {
        let conn = &mut self.conns[index];
        (conn.state, conn.since, conn.answer) =
            (LoadState::Connecting, now, AnswerReader::default());
        self.connecting += 1;
        let (address, tls) = (self.run.plan.address, self.run.plan.tls.as_ref());
        let wire = begin_to_connect(address).and_then(|stream| {
            let interest = EventFlags::IN | EventFlags::OUT;
            epoll::add(&self.epoll, &stream, EventData::new_u64(index as u64), interest)?;
            LoadWire::new(stream, tls).map_err(io::Error::other)
        });
        match wire {
            Ok(wire) => (conn.wire, conn.watches_write) = (Some(wire), true),
            Err(error) => self.fail(index, LoadError::Connect, || error.to_string()),
        }
    }

    fn on_event(&mut self, index: usize, flags: EventFlags, buffer: &mut [u8]) {
        let has_ended = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        if self.conns[index].state == LoadState::Connecting
            && (has_ended || flags.contains(EventFlags::OUT))
        {
            self.connected(index);
        } else if flags.contains(EventFlags::OUT) {
            self.write(index);
        }
        if has_ended || flags.contains(EventFlags::IN) {
            self.read(index, buffer);
        }
        self.watch(index);
    }

    /// The socket is connected, or cannot be.
    fn connected(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        let Some(wire) = &mut conn.wire else { return };
        let outcome = match wire.stream().take_error() {
            Ok(Some(error)) | Err(error) => Err(error),
            Ok(None) => {
                let _only_slower_without = wire.stream().set_nodelay(true);
                wire.flush()
            }
        };
        match outcome {
            Ok(()) => {
                conn.state = LoadState::Shaking;
                self.shake(index);
            }
            Err(error) => self.fail(index, LoadError::Connect, || error.to_string()),
        }
    }

    /// The handshake may have gone on: if it is complete, or there is none, requests can be sent.
    fn shake(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        if conn.wire.as_ref().is_some_and(LoadWire::is_ready) {
            conn.was_open = true;
            self.connecting -= 1;
            self.ready(index, rt::now());
        }
    }

    /// The connection has nothing to do: gives it the next request, if there is one now.
    fn ready(&mut self, index: usize, now: Instant) {
        let conn = &mut self.conns[index];
        (conn.state, conn.since) = (LoadState::Free, now);
        if self.timetable.is_some() {
            self.free.push_back(index);
            self.send_what_is_due(now);
        } else if now < self.run.clock.end() {
            self.send(index, now, now);
        }
    }

    /// Sends what an open loop's timetable says, as long as connections are free.
    fn send_what_is_due(&mut self, now: Instant) {
        let end = self.run.clock.end();
        while let Some(timetable) = &mut self.timetable
            && let due = timetable.next()
            && due <= now
            && due < end
            && now < end
            && let Some(index) = self.free.pop_front()
        {
            timetable.advance();
            if self.run.clock.measures(due) {
                let could = due.max(self.conns[index].since);
                let keeping = &mut self.tally.keeping;
                keeping.behind = keeping.behind.max(could - due);
                if let Some(own) = &mut keeping.own_delay {
                    own.saturating_record(now.saturating_duration_since(could).as_nanos() as u64);
                }
            }
            self.send(index, due, now);
        }
    }

    fn send(&mut self, index: usize, due: Instant, now: Instant) {
        let conn = &mut self.conns[index];
        (conn.state, conn.since) = (LoadState::Busy, now);
        let measured = self.run.clock.measures(due);
        conn.request = SentRequest { turn: self.turn, written: 0, due, measured };
        self.turn += 1;
        self.in_flight += 1;
        self.write(index);
        self.watch(index);
    }

    /// Writes what is left of the request. A broken connection is left to the reader: an answer may
    /// have arrived before it broke.
    fn write(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        let Some(wire) = &mut conn.wire else { return };
        let _seen_by_the_reader = wire.flush();
        if conn.state != LoadState::Busy {
            return;
        }
        let request = &self.run.plan.requests.get(conn.request.turn).bytes;
        while conn.request.written < request.len() {
            match wire.write(&request[conn.request.written..]) {
                Ok(written) => conn.request.written += written,
                Err(_) => return,
            }
        }
    }

    fn is_sent(&self, request: SentRequest) -> bool {
        request.written == self.run.plan.requests.get(request.turn).bytes.len()
    }

    /// Has epoll report when the connection can be written to, if there is something to write.
    fn watch(&mut self, index: usize) {
        let conn = &self.conns[index];
        let Some(wire) = &conn.wire else { return };
        let sends = conn.state == LoadState::Busy && !self.is_sent(conn.request);
        let wants = conn.state == LoadState::Connecting || wire.wants_write() || sends;
        if wants == conn.watches_write {
            return;
        }
        let interest = if wants { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        let data = EventData::new_u64(index as u64);
        match epoll::modify(&self.epoll, wire.stream(), data, interest) {
            Ok(()) => self.conns[index].watches_write = wants,
            Err(error) => self.fail(index, LoadError::Lost, || error.to_string()),
        }
    }

    /// Reads once; epoll reports again what is left.
    fn read(&mut self, index: usize, buffer: &mut [u8]) {
        let conn = &mut self.conns[index];
        let Some(wire) = &mut conn.wire else { return };
        let bytes = match wire.read(buffer) {
            Ok(bytes) => bytes,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                if conn.state == LoadState::Shaking {
                    self.shake(index);
                }
                return;
            }
            Err(error) => {
                let kind = match conn.state {
                    LoadState::Connecting => LoadError::Connect,
                    LoadState::Shaking => LoadError::Tls,
                    _ => LoadError::Lost,
                };
                return self.fail(index, kind, || error.to_string());
            }
        };
        match conn.state {
            LoadState::Closed => {}
            LoadState::Connecting | LoadState::Shaking => {
                self.fail(index, LoadError::Tls, || "the server ended the handshake".to_owned());
            }
            LoadState::Free | LoadState::Paused if bytes.is_empty() => {
                self.close(index, rt::now());
            }
            LoadState::Free | LoadState::Paused => {
                self.fail(index, LoadError::BadAnswer, || {
                    "bytes that answer no request".to_owned()
                });
            }
            LoadState::Busy if bytes.is_empty() => match conn.answer.end() {
                Some(answer) => self.answered(index, answer),
                None => {
                    let is_empty = conn.answer.is_empty();
                    let part = if is_empty { "an answer" } else { "the end of an answer" };
                    let why = || format!("the server closed the connection before {part}");
                    self.fail(index, LoadError::Lost, why);
                }
            },
            LoadState::Busy => match conn.answer.take(bytes) {
                Ok(None) => {}
                Ok(Some(answer)) => self.answered(index, answer),
                Err(why) => self.fail(index, LoadError::BadAnswer, || why),
            },
        }
    }

    /// The request of a connection is answered.
    fn answered(&mut self, index: usize, mut answer: LoadAnswer) {
        let now = rt::now();
        self.in_flight -= 1;
        let plan = &self.run.plan;
        let conn = &mut self.conns[index];
        let request = conn.request;
        conn.failures = 0;
        if !is_success(answer.status) {
            self.tally.remember(&answer.status.to_string(), || conn.answer.text());
        }
        answer.accepted = answer.accepted.or(plan.requests.payloads);
        if request.measured {
            let body_bytes = plan.requests.get(request.turn).body_bytes;
            self.tally.answered(answer, now.saturating_duration_since(request.due), body_bytes);
        }
        if plan.only_one {
            conn.state = LoadState::Free;
            return self.run.clock.stop(Duration::ZERO);
        }
        let pause = self.pause(answer, now);
        let go_on = now + pause.unwrap_or_default();
        self.conns[index].since = now;
        // A server that has answered early does not want the rest of the request.
        if answer.closes || !self.is_sent(request) {
            self.close(index, go_on);
        } else if pause.is_some() {
            self.conns[index].state = LoadState::Paused;
            self.later.push(Reverse((go_on, index)));
        } else {
            self.ready(index, now);
        }
    }

    /// How long a closed loop's connection waits after this answer. Clients of an open loop are not
    /// those that were refused.
    fn pause(&mut self, answer: LoadAnswer, now: Instant) -> Option<Duration> {
        let refused = matches!(answer.status, 429 | 503) && self.timetable.is_none();
        let pause = answer.retry_after.unwrap_or(RETRY_AFTER).min(RETRY_AFTER_MAX);
        if refused {
            let from = now.max(self.run.clock.from);
            let until = (now + pause).min(self.run.clock.end());
            self.tally.keeping.paused += until.saturating_duration_since(from);
        }
        refused.then_some(pause)
    }

    /// Closes a connection; another one takes its place at `again`.
    fn close(&mut self, index: usize, again: Instant) {
        let state = self.conns[index].state;
        if state == LoadState::Free {
            self.free.retain(|free| *free != index);
        }
        self.disconnect(index);
        // A paused one has its time already.
        if state != LoadState::Paused {
            self.later.push(Reverse((again, index)));
        }
    }

    /// The socket leaves epoll as it is closed.
    fn disconnect(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        if let Some(wire) = &mut conn.wire {
            wire.say_goodbye();
        }
        (conn.wire, conn.state, conn.watches_write) = (None, LoadState::Closed, false);
    }

    /// The connection is of no use any more, and what was in progress on it has failed.
    fn fail(&mut self, index: usize, kind: LoadError, why: impl FnOnce() -> String) {
        let now = rt::now();
        let LoadConn { state, request, .. } = self.conns[index];
        let counts = match state {
            LoadState::Busy => {
                self.in_flight -= 1;
                request.measured
            }
            LoadState::Connecting | LoadState::Shaking => {
                self.connecting -= 1;
                self.run.clock.measures(now)
            }
            LoadState::Closed | LoadState::Free | LoadState::Paused => self.run.clock.measures(now),
        };
        if counts {
            *self.tally.outcomes.errors.entry(kind).or_default() += 1;
            // It takes at least this long; the others took no time that says anything.
            if matches!(kind, LoadError::Timeout | LoadError::Unfinished) {
                let waited = now.saturating_duration_since(request.due).as_nanos() as u64;
                self.tally.latency.saturating_record(waited);
            }
        }
        self.tally.remember(kind.name(), why);
        if self.run.plan.only_one {
            self.run.clock.stop(Duration::ZERO);
        }
        let failures = &mut self.conns[index].failures;
        let after = RECONNECT_AFTER * (1 << (*failures).min(7));
        *failures += 1;
        self.close(index, now + after.min(RECONNECT_AFTER_MAX));
    }
}

impl LoadConn {
    fn new(start: Instant) -> LoadConn {
        LoadConn {
            wire: None,
            state: LoadState::Closed,
            since: start,
            request: SentRequest { turn: 0, written: 0, due: start, measured: false },
            answer: AnswerReader::default(),
            watches_write: false,
            failures: 0,
            was_open: false,
        }
    }
}

/// A socket on its way to `address`.
fn begin_to_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Time on a CPU, and time that this thread was ready and waited for one.
#[expect(clippy::disallowed_methods, reason = "a command, without an executor")]
fn cpu_of_this_thread() -> Option<(Duration, Duration)> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let mut nanos = text.split_whitespace().map(str::parse);
    let mut next = || Some(Duration::from_nanos(nanos.next()?.ok()?));
    Some((next()?, next()?))
}
