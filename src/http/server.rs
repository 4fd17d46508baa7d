//! State that the connections of one core share.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use std::time::{Duration, Instant};

use futures_lite::FutureExt;

use super::body::BodyReader;
use super::client_stream::ClientStream;
use super::eviction::{Choice, ConnActivity, EvictionOrder, FIRST_HEAD_LEAST};
use super::h2::H2Bounds;
use super::peer::Peer;
use super::peers::PeerTables;
use super::phase::ConnState;
use super::quotas::QuotaGate;
use super::request::Intake;
use super::split::BodySplitter;
use super::tokenless::Tokenless;
use super::tokens::TokenGate;
use crate::config::Config;
use crate::metrics::{Cell64, CoreCells, H2Closed, ProxyRefusal};
use crate::net::Net;
use crate::rt;
use crate::stop::Stop;
use crate::store::faulty::ConnFaults;
use crate::sync::{Signal, Turns};
use crate::throttle::Throttle;

/// One core's server for its clients.
pub struct Server {
    pub config: Arc<Config>,
    pub net: Rc<Net>,
    pub cells: &'static CoreCells,
    pub conns: Conns,
    pub bodies: BodyReader,
    pub splitter: BodySplitter,
    /// `None`: requests need no token.
    pub tokens: Option<TokenGate>,
    /// `None`: nothing can have a quota.
    pub quotas: Option<QuotaGate>,
    /// What needs no token in any case, and what browsers are told.
    pub tokenless: Tokenless,
    pub faults: ConnFaults,
    pub stop: Rc<Stop>,
    /// The entrance of the pipeline for `POST /payloads`.
    pub intake: Intake,
}

/// The open connections of one core: their limit, the order in which they give way when it is
/// reached, and a list to wake them when the stop proceeds.
pub struct Conns {
    max: usize,
    /// Slots that are taken.
    taken: Cell<usize>,
    /// Raised when a waiting connection should look again: a slot is free, a connection that was
    /// asked to close is busy, or the stop has come to [`Conns::close`].
    changed: Signal,
    /// One connection of all listeners waits for a slot at a time, first come, first served. So a
    /// busy listener takes no more than every second slot from another one.
    slot_turns: Turns,
    closed: Cell<bool>,
    open: RefCell<BTreeMap<u64, Rc<ConnState>>>,
    order: RefCell<EvictionOrder>,
    next: Cell<u64>,
    /// Listeners that are open.
    accepting: Cell<usize>,
    /// What the peers of these connections have done.
    pub(super) peers: PeerTables,
    pub(super) logs: ConnLogs,
    /// Those that speak HTTP/2.
    pub(super) h2: H2Bounds,
}

/// Limits log lines about connections.
pub(super) struct ConnLogs {
    /// About connections that panicked.
    pub(super) panics: RefCell<Throttle>,
    /// About [`Conns::max`].
    full: RefCell<Throttle>,
    /// About TLS on addresses without it.
    pub(super) tls_on_plain: RefCell<Throttle>,
    /// About HTTP/2 connections that were closed, by reason.
    pub(super) h2_closed: RefCell<[Throttle; H2Closed::NAMES.len()]>,
    /// About connections to listeners with `proxy=`, by reason.
    pub(super) proxy_refusals: RefCell<[Throttle; ProxyRefusal::NAMES.len()]>,
}

impl Default for ConnLogs {
    fn default() -> ConnLogs {
        ConnLogs {
            panics: RefCell::default(),
            full: RefCell::default(),
            tls_on_plain: RefCell::new(Throttle::per_minute()),
            h2_closed: RefCell::new(std::array::from_fn(|_| Throttle::per_minute())),
            proxy_refusals: RefCell::new(std::array::from_fn(|_| Throttle::per_minute())),
        }
    }
}

/// A connection's slot, free again when dropped.
pub(super) struct ConnSlot(Rc<Server>);

impl Drop for ConnSlot {
    fn drop(&mut self) {
        let conns = &self.0.conns;
        conns.taken.set(conns.taken.get() - 1);
        conns.changed.raise();
    }
}

/// How long the acceptor waits for a connection that it has asked to close. Its task runs next, so
/// this is for a core that is very busy.
const ANSWER_WAIT: Duration = Duration::from_millis(100);
/// How often the acceptor looks whether a connection has been idle for long enough by now; if one is
/// in its first head, [`FIRST_HEAD_LEAST`].
const IDLE_RECHECK: Duration = Duration::from_millis(50);

impl Server {
    /// Takes a slot for a connection that has been accepted. If all are taken, asks connections to
    /// give way, one after another, until one is free. `None` once [`Conns::close`] was called.
    pub(super) async fn slot(self: &Rc<Server>) -> Option<ConnSlot> {
        let conns = &self.conns;
        let _turn = conns.slot_turns.take().await;
        if conns.is_full() {
            self.cells.connections_at_limit.inc();
            conns.logs.full.borrow_mut().warn(|| self.full());
            while conns.is_full() && !conns.closed.get() {
                let wait = match conns.ask_one(rt::now()) {
                    Choice::Evict(..) => ANSWER_WAIT,
                    Choice::Unfinished => {
                        rt::yield_now().await;
                        continue;
                    }
                    Choice::Nobody => {
                        self.cells.connections_waiting.set(1);
                        let first_heads = conns.order.borrow().has_first_heads();
                        if first_heads { FIRST_HEAD_LEAST } else { IDLE_RECHECK }
                    }
                };
                conns.changed.wait().or(rt::sleep(wait)).await;
            }
            self.cells.connections_waiting.set(0);
        }
        if conns.closed.get() {
            return None;
        }
        conns.taken.set(conns.taken.get() + 1);
        Some(ConnSlot(self.clone()))
    }

    /// The log line of [`Conns::max`].
    fn full(&self) -> String {
        let max = self.conns.max;
        let closed: u64 = self.cells.connections_evicted.iter().map(Cell64::value).sum();
        let busiest = self.conns.order.borrow().busiest_peer();
        let busiest =
            busiest.map_or(String::new(), |(peer, count)| format!("; {peer} has most: {count}"));
        let (why, remedy) = match max < self.config.max_connections {
            true => (" for lack of file descriptors", "the limit of open files"),
            false => ("", "MAX_CONNECTIONS"),
        };
        format!(
            "MAX_CONNECTIONS is reached ({max} on this core{why}): {closed} idle connections were \
             closed for others so far{busiest}; raise {remedy}, or limit connections per address in \
             front of this server"
        )
    }
}

/// Finds out whether a limit was reached between two samples, for `/readyz`.
#[derive(Default)]
pub struct LimitSampler {
    connections: u64,
    bodies: u64,
}

impl LimitSampler {
    /// To be called once a second.
    pub fn sample(&mut self, cells: &CoreCells) {
        let connections = cells.connections_at_limit.value();
        let before = std::mem::replace(&mut self.connections, connections);
        let full = connections > before || cells.connections_waiting.value() > 0;
        cells.connections_full.set(u64::from(full));
        let bodies = cells.bodies_evicted.value() + cells.body_memory_refusals.value();
        let before = std::mem::replace(&mut self.bodies, bodies);
        cells.body_memory_full.set(u64::from(bodies > before));
    }
}

/// Removes its connection from the list when dropped.
pub(super) struct RegisteredConn<'a> {
    conns: &'a Conns,
    number: u64,
    /// Whether the eviction order knows that it has begun a request.
    has_sent: Cell<bool>,
}

impl RegisteredConn<'_> {
    /// Records that the connection has got its last answer and lingers from `now` on.
    pub(super) fn lingers(&self, state: &ConnState, now: Instant) {
        self.has_sent.set(true);
        state.standing.lingers.set(Some(now));
        self.conns.order.borrow_mut().linger(self.number, now, false);
    }

    /// Counts the connection, which has not begun a request, for the client that its PROXY header
    /// names.
    pub(super) fn is_proxied(&self, state: &ConnState) {
        let mut order = self.conns.order.borrow_mut();
        order.remove(self.number);
        order.add(self.number, state.connection_peer());
        self.has_sent.set(false);
    }

    /// To be called after each poll of the connection: whether it closes because another one needs
    /// its slot.
    pub(super) fn gives_way(
        &self,
        server: &Server,
        state: &ConnState,
        stream: &ClientStream,
    ) -> bool {
        if state.standing.has_sent.get() && !self.has_sent.replace(true) {
            let in_first_head = state.activity().in_first_head;
            self.conns.order.borrow_mut().file(self.number, state.since.get(), in_first_head);
        }
        let Some((reason, closes)) = state.gives_way(stream) else { return false };
        if closes {
            server.cells.connections_evicted[reason as usize].inc();
            return true;
        }
        self.has_sent.set(true);
        let mut order = self.conns.order.borrow_mut();
        match state.standing.lingers.get() {
            None => order.file(self.number, rt::now(), state.activity().in_first_head),
            Some(since) => order.linger(self.number, since, state.standing.unread.get()),
        }
        self.conns.changed.raise();
        false
    }
}

impl Conns {
    /// An empty list of at most `max` connections that as many `listeners` accept.
    pub fn new(max: usize, listeners: usize, h2: H2Bounds) -> Conns {
        Conns {
            max,
            taken: Cell::new(0),
            changed: Signal::default(),
            slot_turns: Turns::default(),
            closed: Cell::new(false),
            open: RefCell::default(),
            order: RefCell::default(),
            next: Cell::new(0),
            accepting: Cell::new(listeners),
            peers: PeerTables::default(),
            logs: ConnLogs::default(),
            h2,
        }
    }

    fn is_full(&self) -> bool {
        self.taken.get() >= self.max
    }

    /// Asks the connection that is first in the order to close.
    fn ask_one(&self, now: Instant) -> Choice {
        let open = self.open.borrow();
        let activity =
            |number| open.get(&number).map_or_else(ConnActivity::default, |state| state.activity());
        let choice = self.order.borrow_mut().choose(now, activity);
        if let Choice::Evict(number, reason) = choice
            && let Some(state) = open.get(&number)
        {
            state.ask_to_close(reason);
        }
        choice
    }

    /// Lists a connection until the guard is dropped.
    pub(super) fn register(&self, state: &Rc<ConnState>) -> RegisteredConn<'_> {
        let number = self.next.replace(self.next.get() + 1);
        self.open.borrow_mut().insert(number, state.clone());
        self.order.borrow_mut().add(number, state.connection_peer());
        RegisteredConn { conns: self, number, has_sent: Cell::new(false) }
    }

    /// The numbers of all open connections, for [`Conns::hand_over`].
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.open.borrow().keys().copied().collect()
    }

    /// Hands over what these connections have done to the tables of peers. Calls `each` with the
    /// peer that each comes from which is still open.
    pub(super) fn hand_over(&self, numbers: &[u64], mut each: impl FnMut(Peer)) {
        let open = self.open.borrow();
        for state in numbers.iter().filter_map(|number| open.get(number)) {
            self.peers.hand_over(state);
            each(state.connection_peer());
        }
    }

    /// Makes every connection check how far the stop has come.
    pub fn wake_all(&self) {
        for state in self.open.borrow().values() {
            state.wake();
        }
    }

    /// Whether any listener still accepts connections.
    pub fn is_accepting(&self) -> bool {
        self.accepting.get() > 0
    }

    /// Records that one of the listeners is closed.
    pub(super) fn accepting_ended(&self) {
        self.accepting.set(self.accepting.get() - 1);
    }

    /// A request of a trusted proxy has been answered: hands over what it has done to the table of
    /// its client.
    pub(super) fn forwarded_request_ended(&self, state: &ConnState) {
        state.claim_received();
        self.peers.hand_over(state);
        state.origin.request_ended();
    }

    /// Ends accepting and wakes every connection.
    pub fn close(&self) {
        self.closed.set(true);
        self.changed.raise();
        self.wake_all();
    }
}

impl Drop for RegisteredConn<'_> {
    fn drop(&mut self) {
        if let Some(state) = self.conns.open.borrow_mut().remove(&self.number) {
            self.conns.peers.hand_over(&state);
        }
        self.conns.order.borrow_mut().remove(self.number);
    }
}
