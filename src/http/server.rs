//! State that the connections of one core share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::sync::{Semaphore, StaticPermit};

use super::body::BodyReader;
use super::phase::ConnState;
use super::request::Intake;
use super::split::BodySplitter;
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
    pub splitter: BodySplitter,
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
        self.conns.open.borrow_mut().remove(&self.number);
    }
}
