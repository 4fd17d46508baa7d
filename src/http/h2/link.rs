//! What a connection and its streams know of each other.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
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
use crate::http::peer::Peer;
use crate::http::peers::{Remembered, Tally};
use crate::http::phase::{BodyEnd, ConnPhase, ConnState};
use crate::http::server::Server;
use crate::http::{LINGER_BYTES_MAX, LINGER_TIME_MAX};
use crate::metrics::{CoreCells, H2Closed};
use crate::rt;

/// Clients of a proxy that are remembered on one of its connections.
const CLIENTS_REMEMBERED: usize = 16;

/// A connection, as its streams and its socket know it.
pub(in crate::http) struct H2Link {
    pub(in crate::http) conn: Rc<ConnState>,
    cells: &'static CoreCells,
    /// Set if the connection is a proxy's: what is remembered of its clients. Each stream then counts
    /// what it does itself, because each request may be another client's.
    clients: Option<Box<[Remembered; CLIENTS_REMEMBERED]>>,
    /// Requests that are not answered yet.
    unanswered: Cell<usize>,
    /// The streams that are open, until their answers are sent.
    open: RefCell<Slab<Rc<ConnState>>>,
    /// The stream whose request hyper has just handed over.
    begun: RefCell<Option<Rc<ConnState>>>,
    /// Streams that have begun and were not polled yet.
    pub(super) spawned: RefCell<VecDeque<StreamTask>>,
    /// Polls of streams so far.
    pub(super) polls: Cell<u64>,
    /// No stream has a deadline before this one: since when, and how long.
    next: Cell<Option<(Instant, Duration)>>,
    pub(super) reading: H2Reading,
    pub(super) wire: RefCell<FrameFlow>,
}

/// How far what has arrived on the connection is read.
pub(super) struct H2Reading {
    /// The socket does not take what is to be sent.
    pub(super) is_blocked: Cell<bool>,
    /// The library has read all that it might. It stops before that while it cannot send.
    pub(super) has_all: Cell<bool>,
    /// The library may hold bytes that their streams have not read.
    pub(super) is_unread: Cell<bool>,
    /// When all that had arrived was read, the last time that it was.
    at: Cell<Instant>,
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
    /// Frames that were read since all was sent that was to be sent.
    pub(super) frames_unsent: usize,
    /// Nothing is left to be read.
    pub(super) is_dry: bool,
    /// The connection is to be closed.
    pub(super) closed: Option<H2Closed>,
    /// Since when a head is incomplete, …
    head_since: Option<Instant>,
    /// … [`InboundFrames::complete`] at the last look, …
    complete: u64,
    /// … and since when the connection was idle before that head.
    idle_since: Instant,
}

/// When a limit is over.
fn end_of(limit: (Instant, Duration)) -> Instant {
    limit.0 + limit.1
}

/// What a stream waits for from its client: since when and how long, and for a body what its end then
/// means. `None`: for nothing.
fn limit_of(state: &ConnState, config: &Config) -> Option<((Instant, Duration), Option<BodyEnd>)> {
    match state.phase.get() {
        ConnPhase::Body => {
            let (limit, end) = state.body_limit(config);
            Some((limit, Some(end)))
        }
        // It is answered, and its client leaves no room for the answer.
        ConnPhase::Idle => Some(((state.since.get(), config.idle_timeout), None)),
        ConnPhase::Head | ConnPhase::Working => None,
    }
}

impl H2Link {
    pub(super) fn new(server: &Server, conn: &Rc<ConnState>) -> Rc<H2Link> {
        let now = rt::now();
        let trusted = server.config.trust.as_ref();
        let is_proxy = trusted.is_some_and(|of| of.contains(conn.origin.connection()));
        Rc::new(H2Link {
            conn: conn.clone(),
            cells: server.cells,
            clients: is_proxy.then(Box::default),
            unanswered: Cell::new(0),
            open: RefCell::default(),
            begun: RefCell::default(),
            spawned: RefCell::default(),
            polls: Cell::new(0),
            next: Cell::new(None),
            reading: H2Reading {
                is_blocked: Cell::new(false),
                has_all: Cell::new(false),
                is_unread: Cell::new(false),
                at: Cell::new(now),
            },
            wire: RefCell::new(FrameFlow {
                budgets: FrameBudgets::new(server.config.h2.streams_max, is_proxy, now),
                inbound: InboundFrames::default(),
                outbound: OutboundFrames::default(),
                frames_left: 0,
                bytes_left: 0,
                frames_unsent: 0,
                is_dry: false,
                closed: None,
                head_since: None,
                complete: 0,
                idle_since: now,
            }),
        })
    }

    /// When it was last known that all that had arrived was read; `now` if that is so, or if nothing is
    /// read because the client does not read. What has arrived may be in the library by now.
    pub(in crate::http) fn was_read_at(&self, now: Instant) -> Instant {
        let H2Reading { is_blocked, has_all, is_unread, at } = &self.reading;
        let does_not_read = is_blocked.get() && !has_all.get();
        let has_arrived = is_unread.get() || !does_not_read && self.conn.body.arrived() > 0;
        if has_arrived { at.get() } else { now }
    }

    /// Where something is remembered of a proxy's client.
    pub(in crate::http) fn remembered(&self, client: Peer) -> Option<&Remembered> {
        let clients = self.clients.as_deref()?;
        Some(&clients[client.place(CLIENTS_REMEMBERED)])
    }

    /// A stream of this connection begins. [`H2Link::opened`] follows at once.
    pub(super) fn begin_stream(self: &Rc<H2Link>) -> Rc<ConnState> {
        let tally = match self.clients {
            Some(_) => Rc::new(Tally::default()),
            None => self.conn.tally.clone(),
        };
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
        self.spawned.borrow_mut().push_back(StreamTask::Rest(rest));
    }

    /// Requests that are not answered yet.
    pub(super) fn has_unanswered(&self) -> bool {
        self.unanswered.get() > 0
    }

    /// There are answers that wait to be sent, for which the socket or the client leaves no room.
    pub(super) fn is_sending(&self) -> bool {
        self.reading.is_blocked.get() || !self.open.borrow().is_empty()
    }

    /// Wakes every stream.
    pub(super) fn wake_streams(&self) {
        self.open.borrow().iter().for_each(|(_, state)| state.wake());
    }

    /// Everything was polled, as of `now`. Says since when a head is incomplete, if one is, or a frame that
    /// may be one.
    pub(super) fn polled(&self, now: Instant) -> Option<Instant> {
        let mut wire = self.wire.borrow_mut();
        self.cells.h2_resets.add(wire.inbound.take_resets());
        self.reading.is_unread.set(false);
        if wire.is_dry {
            self.reading.at.set(now);
        }
        let complete = wire.inbound.complete();
        let is_same = std::mem::replace(&mut wire.complete, complete) == complete;
        let since = wire.head_since.filter(|_| is_same).unwrap_or(now);
        wire.head_since = wire.inbound.is_in_head().then_some(since);
        let conn = &self.conn;
        // What is only the beginning of a frame may be a ping, which does not prolong an idle connection.
        match (conn.phase.get(), wire.inbound.has_begun_head()) {
            (ConnPhase::Idle, true) => {
                conn.standing.has_sent.set(true);
                wire.idle_since = conn.since.get();
                conn.enter(ConnPhase::Head, since);
            }
            // Its stream was refused, so it was no request.
            (ConnPhase::Head, false) => conn.enter(ConnPhase::Idle, wire.idle_since),
            _ => {}
        }
        wire.head_since
    }

    /// The process was paused: clients get their whole time again.
    pub(super) fn begin_again(&self, config: &Config, now: Instant) {
        let mut wire = self.wire.borrow_mut();
        wire.head_since = wire.head_since.map(|_| now);
        wire.idle_since = now;
        let open = self.open.borrow();
        open.iter().for_each(|(_, state)| state.begins_again(now));
        let waiting = open.iter().filter(|(_, state)| !state.gone.get());
        let limits = waiting.filter_map(|(_, state)| Some(limit_of(state, config)?.0));
        self.next.set(limits.min_by_key(|limit| end_of(*limit)));
    }

    /// The earliest deadline that a stream may have.
    pub(super) fn next_deadline(&self) -> Option<(Instant, Duration)> {
        self.next.get()
    }

    /// A stream waits for its client, if it does.
    fn waits(&self, state: &ConnState, config: &Config) {
        if let Some((limit, _)) = limit_of(state, config)
            && self.next.get().is_none_or(|next| end_of(limit) < end_of(next))
        {
            self.next.set(Some(limit));
        }
    }

    /// Ends what streams wait for whose deadlines have passed at `now`, and finds the next one.
    pub(super) fn end_overdue(&self, server: &Server, now: Instant) {
        let config = &server.config;
        let mut next: Option<(Instant, Duration)> = None;
        // Those that are gone are dropped when they are polled next.
        let open = self.open.borrow();
        for (_, state) in open.iter().filter(|(_, state)| !state.gone.get()) {
            while let Some((limit, end)) = limit_of(state, config) {
                if end_of(limit) > now {
                    let sooner = next.is_none_or(|of| end_of(limit) < end_of(of));
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
            if self.state.phase.get() == ConnPhase::Body {
                server.bodies.memory.body_waits(&self.state, rt::now());
            }
            self.link.waits(&self.state, &server.config);
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
