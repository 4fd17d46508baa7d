//! State that the connections of one core share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::sync::{Semaphore, StaticPermit};

use super::body::BodyReader;
use super::parse::Scratch;
use super::peers::{Peer, PeerTables};
use super::phase::ConnState;
use super::request::Intake;
use super::tokens::TokenView;
use crate::config::Config;
use crate::metrics::CoreCells;
use crate::net::Net;
use crate::stop::Stop;
use crate::store::faulty::ConnFaults;
use crate::throttle::Throttle;

/// One core's server for its clients.
pub struct Server {
    pub config: Arc<Config>,
    pub net: Rc<Net>,
    pub cells: &'static CoreCells,
    pub conns: Conns,
    pub bodies: BodyReader,
    pub scratch: RefCell<Scratch>,
    /// `None`: requests need no token.
    pub tokens: Option<TokenView>,
    pub faults: ConnFaults,
    pub stop: Rc<Stop>,
    /// The entrance of the pipeline for `POST /payloads`.
    pub intake: Intake,
}

/// The open connections of one core: their limit, and a list to wake them when the stop proceeds.
pub struct Conns {
    slots: Rc<Semaphore>,
    open: RefCell<HashMap<u64, Rc<ConnState>>>,
    next: Cell<u64>,
    /// How often a connection has released hyper's buffers because it was silent.
    pub buffers_released: Cell<u64>,
    /// Whether the listener is open.
    accepting: Cell<bool>,
    /// Limits log lines about connections that panicked.
    pub(super) panic_log: RefCell<Throttle>,
    /// What the peers of these connections have done.
    pub(super) peers: PeerTables,
}

/// Removes its connection from the list when dropped.
pub(super) struct RegisteredConn<'a> {
    conns: &'a Conns,
    number: u64,
}

impl Conns {
    /// An empty list of at most `max` connections.
    pub fn new(max: usize) -> Conns {
        Conns {
            slots: Rc::new(Semaphore::new(max as u64)),
            open: RefCell::default(),
            next: Cell::new(0),
            buffers_released: Cell::new(0),
            accepting: Cell::new(true),
            panic_log: RefCell::default(),
            peers: PeerTables::default(),
        }
    }

    /// Waits for a free connection slot. `None` once [`Conns::close`] was called.
    pub(super) async fn slot(&self) -> Option<StaticPermit> {
        self.slots.acquire_static_permit(1).await.ok()
    }

    /// Lists a connection until the guard is dropped.
    pub(super) fn register(&self, state: &Rc<ConnState>) -> RegisteredConn<'_> {
        let number = self.next.replace(self.next.get() + 1);
        self.open.borrow_mut().insert(number, state.clone());
        RegisteredConn { conns: self, number }
    }

    /// The numbers of all open connections, for [`Conns::hand_over`].
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.open.borrow().keys().copied().collect()
    }

    /// Hands over what these connections have done to the tables of peers. Calls `each` with the
    /// peer of each that is still open.
    pub(super) fn hand_over(&self, numbers: &[u64], mut each: impl FnMut(Peer)) {
        let open = self.open.borrow();
        for state in numbers.iter().filter_map(|number| open.get(number)) {
            each(self.peers.hand_over(state));
        }
    }

    /// Makes every connection check how far the stop has come.
    pub fn wake_all(&self) {
        for state in self.open.borrow().values() {
            state.wake();
        }
    }

    /// Whether the listener still accepts connections.
    pub fn is_accepting(&self) -> bool {
        self.accepting.get()
    }

    /// Records that the listener is closed.
    pub(super) fn accepting_ended(&self) {
        self.accepting.set(false);
    }

    /// Ends accepting and wakes every connection.
    pub fn close(&self) {
        self.slots.close();
        self.wake_all();
    }
}

impl Drop for RegisteredConn<'_> {
    fn drop(&mut self) {
        if let Some(state) = self.conns.open.borrow_mut().remove(&self.number) {
            self.conns.peers.hand_over(&state);
        }
    }
}
