//! What the connections of one core share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::sync::{Semaphore, StaticPermit};

use super::body::BodyReader;
use super::parse::Scratch;
use super::phase::ConnState;
use super::request::Intake;
use super::tokens::TokenView;
use crate::config::Config;
use crate::metrics::CoreCells;
use crate::net::Net;
use crate::stop::Stop;
use crate::store::faulty::ConnFaults;
use crate::throttle::Throttle;

/// One core's side towards its clients.
pub struct Server {
    pub config: Arc<Config>,
    pub net: Rc<Net>,
    pub cells: &'static CoreCells,
    pub conns: Conns,
    pub bodies: BodyReader,
    pub scratch: RefCell<Scratch>,
    /// `None`: anybody may send.
    pub tokens: Option<TokenView>,
    pub faults: ConnFaults,
    pub stop: Rc<Stop>,
    /// Where `POST /payloads` goes.
    pub intake: Intake,
}

/// The open connections of one core: how many there may be, and who they are, to wake them when a stop has come further.
pub struct Conns {
    slots: Rc<Semaphore>,
    open: RefCell<HashMap<u64, Rc<ConnState>>>,
    next: Cell<u64>,
    /// How often one has given its buffers back because it was silent.
    pub quieted: Cell<u64>,
    /// The listener is open.
    accepting: Cell<bool>,
    /// For connections that panic.
    pub(super) panics: RefCell<Throttle>,
}

/// Takes its connection off the list when dropped.
pub(super) struct RegisteredConn<'a> {
    conns: &'a Conns,
    number: u64,
}

impl Conns {
    /// No connection yet, and never more than `max`.
    pub fn new(max: usize) -> Conns {
        Conns {
            slots: Rc::new(Semaphore::new(max as u64)),
            open: RefCell::default(),
            next: Cell::new(0),
            quieted: Cell::new(0),
            accepting: Cell::new(true),
            panics: RefCell::default(),
        }
    }

    /// A slot for one more connection, waiting for one to end if there is none; `None` once [`Conns::close`] was called.
    pub(super) async fn slot(&self) -> Option<StaticPermit> {
        self.slots.acquire_static_permit(1).await.ok()
    }

    pub(super) fn list(&self, state: &Rc<ConnState>) -> RegisteredConn<'_> {
        let number = self.next.replace(self.next.get() + 1);
        self.open.borrow_mut().insert(number, state.clone());
        RegisteredConn { conns: self, number }
    }

    /// Makes every connection look at how far the stop has come.
    pub fn wake_all(&self) {
        for state in self.open.borrow().values() {
            state.wake();
        }
    }

    /// Connections are still accepted.
    pub fn is_accepting(&self) -> bool {
        self.accepting.get()
    }

    /// The listener is closed.
    pub(super) fn accepting_ended(&self) {
        self.accepting.set(false);
    }

    /// Ends accepting and wakes everybody.
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
