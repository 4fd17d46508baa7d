//! What a connection and its streams know of each other.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use slab::Slab;

use super::frames::{FrameBudgets, InboundFrames, OutboundFrames};
use crate::config::Config;
use crate::deadline::within;
use crate::http::body::next_data;
use crate::http::peers::Tally;
use crate::http::phase::{BodyEnd, ConnPhase, ConnState};
use crate::http::server::Server;
use crate::http::{BODY_RATE_WINDOW, LINGER_BYTES_MAX, LINGER_TIME_MAX};
use crate::metrics::{CoreCells, H2Closed};
use crate::rt;

/// A connection, as its streams and its socket know it.
pub(in crate::http) struct H2Link {
    pub(in crate::http) conn: Rc<ConnState>,
    cells: &'static CoreCells,
    /// Each stream counts what it does itself, because each request may be another client's.
    is_proxy: bool,
    /// Requests that are not answered yet.
    unanswered: Cell<usize>,
    /// Streams that wait for something before they read; see [`ConnState::hold_back`].
    held_back: Cell<usize>,
    /// The streams that are open, until their answers are sent.
    open: RefCell<Slab<Rc<ConnState>>>,
    /// The stream whose request hyper has just handed over.
    begun: RefCell<Option<Rc<ConnState>>>,
    /// Streams that have begun since the last look.
    pub(super) spawned: RefCell<Vec<StreamTask>>,
    /// No stream has a deadline before this one: since when, and how long.
    next: Cell<Option<(Instant, Duration)>>,
    /// When all that had arrived was read, the last time that it was.
    read_at: Cell<Instant>,
    pub(super) wire: RefCell<FrameFlow>,
}

/// What passes on the connection.
pub(super) struct FrameFlow {
    pub(super) budgets: FrameBudgets,
    pub(super) inbound: InboundFrames,
    pub(super) outbound: OutboundFrames,
    /// Frames that are still read before the streams are polled.
    pub(super) frames_left: usize,
    /// Bytes likewise.
    pub(super) bytes_left: usize,
    /// Nothing is left to be read.
    pub(super) is_dry: bool,
    /// The connection is to be closed.
    pub(super) closed: Option<H2Closed>,
    /// Since when a head is incomplete.
    head_since: Option<Instant>,
}

/// Holds back the reading of a connection until it is dropped.
pub(in crate::http) struct HeldBack(Rc<H2Link>);

impl Drop for HeldBack {
    fn drop(&mut self) {
        self.0.held_back.set(self.0.held_back.get() - 1);
        self.0.conn.wake();
    }
}

impl H2Link {
    pub(super) fn new(server: &Server, conn: &Rc<ConnState>) -> Rc<H2Link> {
        let now = rt::now();
        let trusted = server.config.trust.as_ref();
        Rc::new(H2Link {
            conn: conn.clone(),
            cells: server.cells,
            is_proxy: trusted.is_some_and(|of| of.contains(conn.origin.connection())),
            unanswered: Cell::new(0),
            held_back: Cell::new(0),
            open: RefCell::default(),
            begun: RefCell::default(),
            spawned: RefCell::default(),
            next: Cell::new(None),
            read_at: Cell::new(now),
            wire: RefCell::new(FrameFlow {
                budgets: FrameBudgets::new(now),
                inbound: InboundFrames::default(),
                outbound: OutboundFrames::default(),
                frames_left: 0,
                bytes_left: 0,
                is_dry: false,
                closed: None,
                head_since: None,
            }),
        })
    }

    pub(in crate::http) fn hold_back(self: &Rc<H2Link>) -> HeldBack {
        self.held_back.set(self.held_back.get() + 1);
        HeldBack(self.clone())
    }

    pub(super) fn is_held_back(&self) -> bool {
        self.held_back.get() > 0
    }

    /// When it was last known that all that had arrived was read; `now` if that is so.
    pub(in crate::http) fn was_read_at(&self, now: Instant) -> Instant {
        if self.conn.body.arrived() == 0 { now } else { self.read_at.get() }
    }

    /// A stream of this connection begins. [`H2Link::opened`] follows at once.
    pub(super) fn begin_stream(self: &Rc<H2Link>) -> Rc<ConnState> {
        let tally = if self.is_proxy { Rc::new(Tally::default()) } else { self.conn.tally.clone() };
        let state = ConnState::of_stream(self.clone(), tally);
        self.conn.stream_begins();
        self.conn.phase.set(ConnPhase::Working);
        self.unanswered.set(self.unanswered.get() + 1);
        self.cells.h2_requests.inc();
        self.begun.replace(Some(state.clone()));
        state
    }

    /// The stream that has just begun, with hyper's `work` on it. `None`: it is other work, for a
    /// connection that becomes another protocol's, as none does here.
    fn opened(self: &Rc<H2Link>, work: Pin<Box<dyn Future<Output = ()>>>) -> Option<OpenStream> {
        let state = self.begun.take()?;
        let number = self.open.borrow_mut().insert(state.clone());
        Some(OpenStream { link: self.clone(), state, number, work })
    }

    /// Drops what was not polled: it holds this link.
    pub(super) fn clear(&self) {
        drop(self.spawned.take());
        drop(self.begun.take());
    }

    /// A request of the connection is answered, or will not be.
    pub(in crate::http) fn request_ended(&self, now: Instant) {
        self.cells.h2_requests.sub(1);
        self.unanswered.set(self.unanswered.get() - 1);
        if self.unanswered.get() == 0 {
            self.conn.enter(ConnPhase::Idle, now);
        }
    }

    /// Reads the rest of a body that nobody wants and drops it, up to a limit, and then resets its
    /// stream. Some clients do not look at an answer that is followed by a reset while they send.
    pub(in crate::http) fn drop_rest(&self, mut body: Incoming) {
        let rest = async move {
            let mut left = LINGER_BYTES_MAX;
            while left > 0
                && let Ok(Some(data)) = next_data(&mut body).await
            {
                left = left.saturating_sub(data.len());
            }
        };
        let rest = Box::pin(within(LINGER_TIME_MAX, rest, || ()));
        self.spawned.borrow_mut().push(StreamTask::Rest(rest));
    }

    /// Wakes every stream.
    pub(super) fn wake_streams(&self) {
        self.open.borrow().iter().for_each(|(_, state)| state.wake());
    }

    /// Everything was polled at `now`. Says since when a head is incomplete, if one is.
    pub(super) fn polled(&self, now: Instant) -> Option<Instant> {
        let mut wire = self.wire.borrow_mut();
        self.cells.h2_resets.add(wire.inbound.take_resets());
        if wire.is_dry {
            self.read_at.set(now);
        }
        wire.head_since = match wire.inbound.is_in_head() {
            true => Some(wire.head_since.unwrap_or(now)),
            false => None,
        };
        let (conn, since) = (&self.conn, wire.head_since);
        match (conn.phase.get(), since) {
            (ConnPhase::Idle, Some(since)) if wire.inbound.last_stream() > 0 => {
                conn.standing.has_sent.set(true);
                conn.enter(ConnPhase::Head, since);
            }
            // Its stream was refused.
            (ConnPhase::Head, None) => conn.enter(ConnPhase::Idle, now),
            _ => {}
        }
        since
    }

    /// The process was paused: clients get their whole time again.
    pub(super) fn begin_again(&self, now: Instant) {
        let mut wire = self.wire.borrow_mut();
        wire.head_since = wire.head_since.map(|_| now);
        self.open.borrow().iter().for_each(|(_, state)| state.begins_again(now));
    }

    /// The earliest deadline that a stream may have.
    pub(super) fn next_deadline(&self) -> Option<(Instant, Duration)> {
        self.next.get()
    }

    /// A stream waits for its client from `since` on.
    fn waits(&self, since: Instant, config: &Config) {
        let first = config.body_timeout.min(config.idle_timeout).min(BODY_RATE_WINDOW);
        if self.next.get().is_none_or(|next| since + first < next.0 + next.1) {
            self.next.set(Some((since, first)));
        }
    }

    /// Ends what streams wait for whose deadlines have passed at `now`, and finds the next one.
    pub(super) fn end_overdue(&self, server: &Server, now: Instant) {
        let config = &server.config;
        let mut next: Option<(Instant, Duration)> = None;
        // Those that are gone are dropped when they are polled next.
        let open = self.open.borrow();
        for (_, state) in open.iter().filter(|(_, state)| !state.gone.get()) {
            loop {
                let (limit, end) = match state.phase.get() {
                    ConnPhase::Body => {
                        let (limit, end) = state.body_limit(config);
                        (limit, Some(end))
                    }
                    // It is answered, and its client leaves no room for the answer.
                    ConnPhase::Idle => ((state.since.get(), config.idle_timeout), None),
                    ConnPhase::Head | ConnPhase::Working => break,
                };
                if limit.0 + limit.1 > now {
                    let sooner = next.is_none_or(|of| limit.0 + limit.1 < of.0 + of.1);
                    next = if sooner { Some(limit) } else { next };
                    break;
                }
                match end {
                    Some(BodyEnd::TooSlow) if state.keeps_pace(config.body_rate_min, now) => {
                        continue;
                    }
                    Some(end) => {
                        if end == BodyEnd::TooSlow {
                            server.cells.bodies_too_slow.inc();
                        }
                        state.end_body(end);
                    }
                    None => {
                        server.cells.h2_answers_unread.inc();
                        state.gone.set(true);
                    }
                }
                state.wake();
                break;
            }
        }
        self.next.set(next);
    }
}

/// What the task of a connection does for its streams.
pub(super) enum StreamTask {
    Open(OpenStream),
    /// Reads what is left of a body.
    Rest(Pin<Box<dyn Future<Output = ()>>>),
}

/// A stream: hyper's work on it, from the request to the end of the answer. Dropping it resets what
/// is not complete.
pub(super) struct OpenStream {
    link: Rc<H2Link>,
    state: Rc<ConnState>,
    number: usize,
    work: Pin<Box<dyn Future<Output = ()>>>,
}

impl OpenStream {
    /// Polls it. Ready once nothing is left to do.
    pub(super) fn poll_work(&mut self, cx: &mut Context<'_>, server: &Server) -> Poll<()> {
        if self.state.gone.get() {
            return Poll::Ready(());
        }
        let done = self.work.as_mut().poll(cx);
        if done.is_pending() {
            self.state.keep_waker(cx);
            match self.state.phase.get() {
                ConnPhase::Body => {
                    server.bodies.memory.body_waits(&self.state, rt::now());
                    self.link.waits(self.state.since.get(), &server.config);
                }
                ConnPhase::Idle => self.link.waits(self.state.since.get(), &server.config),
                ConnPhase::Head | ConnPhase::Working => {}
            }
        }
        done
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.link.open.borrow_mut().remove(self.number);
        if self.state.phase.get() != ConnPhase::Idle {
            self.link.request_ended(rt::now());
            self.state.phase.set(ConnPhase::Idle);
        }
    }
}

/// hyper's executor: streams are polled by the task of their connection.
#[derive(Clone)]
pub(super) struct StreamSpawner(pub(super) Rc<H2Link>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for StreamSpawner {
    fn execute(&self, work: F) {
        let stream = self.0.opened(Box::pin(work));
        self.0.spawned.borrow_mut().extend(stream.map(StreamTask::Open));
    }
}
