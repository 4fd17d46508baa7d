//! The memory of one core for request bodies (`MAX_BODY_BYTES`), and who gives way when it is
//! short.
//!
//! A body that is still being received is listed, and moves to the end of its list whenever it has
//! gained [`GAIN_BYTES`]. So the first of a list has gained least lately. Bodies above
//! [`SMALL_CHARGE_BYTES`] have a list of their own.
//!
//! When a body needs memory that is not there:
//!
//! 1. Bodies that have stalled, which is not to gain that much within [`STALLED_AFTER`], lose their
//!    memory and are answered 408: large ones first, among equals the one that has gained least
//!    lately. This takes effect at once, but only if it frees enough.
//! 2. If it does not, the body that needs the memory is refused with 503. A body that is received
//!    at a healthy speed never gives way, nor does one that is complete.
//!
//! The last eighth of the memory is a reserve for small bodies. So a usual request needs nobody to
//! give way when large bodies, however healthy, hold all that they can get.
//!
//! Bodies that arrive together with their head are never listed, and a listed one costs a list move
//! per read. The clock is read where the connection's deadline reads it anyway.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use super::body::BodyError;
use super::eviction::PeerNet;
use super::phase::{BodyEnd, ConnState, Listed};
use super::recency::RecencyList;
use crate::budget::{Budget, BudgetExhausted, ChargedBytes, SMALL_CHARGE_BYTES};
use crate::metrics::CoreCells;
use crate::net::Net;
use crate::rt;
use crate::throttle::Throttle;

/// What a body must gain to count as being received: less than one packet, so that a slow link's
/// every packet counts, and more than an attacker sends for nothing.
const GAIN_BYTES: usize = 1 << 10;

/// A body that gained less than [`GAIN_BYTES`] for so long has stalled (10 KiB/s). A body of
/// 20 kB/s, a bad mobile link, gains a packet every 70 ms.
const STALLED_AFTER: Duration = Duration::from_millis(100);

/// Bodies that give way for one allocation at most: as many first allocations of 4 KiB as the
/// longest body of the default `MAX_LENGTH` needs.
const EVICTED_AT_ONCE_MAX: usize = 256;

/// The part of the memory that is the reserve of small bodies, as a divisor.
const RESERVE_SHARE: usize = 8;

/// Bodies that a log line looks at to find who holds most.
const PEER_SAMPLE: usize = 1024;

/// The memory of one core for bodies.
pub struct BodyMemory {
    budget: Rc<Budget>,
    cells: &'static CoreCells,
    /// Bodies that are being received: small ones, large ones.
    receiving: RefCell<[RecencyList<Rc<ConnState>>; 2]>,
    log: RefCell<Throttle>,
}

impl BodyMemory {
    /// `max` bytes, with a reserve that leaves room for a longest body of `length_max` beside its
    /// decompressed form.
    pub fn new(max: usize, length_max: usize, cells: &'static CoreCells) -> BodyMemory {
        let reserve = (max / RESERVE_SHARE).min(max.saturating_sub(2 * length_max));
        cells.body_bytes_max.set(max as u64);
        BodyMemory {
            budget: Budget::with_reserve(max, reserve, &cells.body_bytes),
            cells,
            receiving: RefCell::default(),
            log: RefCell::default(),
        }
    }

    /// An empty buffer that grows up to `max` bytes.
    ///
    /// # Errors
    /// [`BodyError::MemoryExhausted`].
    pub(super) fn buffer(&self, max: usize) -> Result<ChargedBytes, BodyError> {
        loop {
            match ChargedBytes::new(&self.budget, max) {
                Ok(bytes) => return Ok(bytes),
                Err(exhausted) => self.make_room(&exhausted, None)?,
            }
        }
    }

    /// Appends `piece` to `bytes`; `receiver` is the connection that receives them, if it still
    /// does.
    ///
    /// # Errors
    /// [`BodyError::MemoryExhausted`]. Nothing was appended.
    pub(super) fn append(
        &self,
        bytes: &mut ChargedBytes,
        piece: &[u8],
        receiver: Option<&ConnState>,
    ) -> Result<(), BodyError> {
        loop {
            match bytes.extend(piece) {
                Ok(()) => return Ok(()),
                Err(exhausted) => self.make_room(&exhausted, receiver)?,
            }
        }
    }

    /// To be called at `now` when all that has arrived of a body is read and it is not complete.
    pub(super) fn body_waits(&self, state: &Rc<ConnState>, now: Instant) {
        let body = &state.body;
        let Some(held) = body.held() else { return };
        let (received, large) = (body.received.get(), held > SMALL_CHARGE_BYTES);
        let listed = body.listed.get();
        let token = match listed {
            Some(at) if at.large == large => {
                if received - at.received < GAIN_BYTES {
                    return;
                }
                self.receiving.borrow_mut()[usize::from(large)].move_to_end(at.token);
                at.token
            }
            _ => {
                self.body_ended(state);
                self.receiving.borrow_mut()[usize::from(large)].push(state.clone())
            }
        };
        body.listed.set(Some(Listed { token, large, received, gained: now }));
    }

    /// To be called when a body is not received any longer.
    pub(super) fn body_ended(&self, state: &ConnState) {
        if let Some(listed) = state.body.listed.take() {
            self.receiving.borrow_mut()[usize::from(listed.large)].remove(listed.token);
        }
    }

    /// Frees what is missing, at the cost of stalled bodies other than `receiver`'s.
    ///
    /// # Errors
    /// They do not hold enough; nothing was freed.
    fn make_room(
        &self,
        BudgetExhausted { missing }: &BudgetExhausted,
        receiver: Option<&ConnState>,
    ) -> Result<(), BodyError> {
        // A core that was busy has bytes of its clients that it has not read yet.
        if let Some(net) = Net::of_this_executor() {
            net.turn_now();
        }
        let victims = self.victims(*missing, receiver, rt::now());
        let outcome = match victims {
            Some(victims) => {
                victims.iter().for_each(|victim| self.evict(victim));
                Ok(())
            }
            None => {
                self.cells.body_memory_refusals.inc();
                Err(BodyError::MemoryExhausted)
            }
        };
        self.log.borrow_mut().warn(|| self.shortage());
        outcome
    }

    /// The stalled bodies that together hold `missing` bytes, in the order in which they give way.
    /// `None`: they hold less.
    fn victims(
        &self,
        missing: usize,
        receiver: Option<&ConnState>,
        now: Instant,
    ) -> Option<Vec<Rc<ConnState>>> {
        let has_stalled = |state: &&Rc<ConnState>| {
            let gained = state.body.listed.get().map(|listed| listed.gained);
            gained.is_some_and(|gained| now.saturating_duration_since(gained) >= STALLED_AFTER)
        };
        let is_other = |state: &&Rc<ConnState>| {
            receiver.is_none_or(|receiver| !std::ptr::eq(Rc::as_ptr(state), receiver))
        };
        let nothing_arrived = |state: &&Rc<ConnState>| state.body.arrived() == 0;
        let [small, large] = &*self.receiving.borrow();
        let stalled = large.iter().take_while(has_stalled);
        let stalled = stalled.chain(small.iter().take_while(has_stalled)).filter(is_other);
        let stalled = stalled.take(EVICTED_AT_ONCE_MAX).filter(nothing_arrived);
        let (mut victims, mut freed) = (Vec::new(), 0);
        for victim in stalled {
            freed += victim.body.held().unwrap_or(0);
            victims.push(victim.clone());
            if freed >= missing {
                return Some(victims);
            }
        }
        None
    }

    /// Frees a body's memory. Its connection then answers 408.
    fn evict(&self, state: &ConnState) {
        self.body_ended(state);
        drop(state.body.bytes.take());
        state.end_body(BodyEnd::Evicted);
        state.wake();
        self.cells.bodies_evicted.inc();
    }

    /// The log line of a shortage.
    fn shortage(&self) -> String {
        let mut peers: HashMap<PeerNet, (usize, usize)> = HashMap::new();
        for list in &*self.receiving.borrow() {
            for state in list.iter().take(PEER_SAMPLE) {
                let (bodies, bytes) = peers.entry(PeerNet::of(state.peer)).or_default();
                (*bodies, *bytes) = (*bodies + 1, *bytes + state.body.held().unwrap_or(0));
            }
        }
        let busiest = peers.into_iter().max_by_key(|(_, (_, bytes))| *bytes);
        let busiest = busiest.map_or(String::new(), |(peer, (bodies, bytes))| {
            format!("; {peer} holds most: {} in {bodies} incomplete bodies", ByteSize(bytes as u64))
        });
        let max = ByteSize(self.budget.max() as u64);
        let (evicted, refused) =
            (self.cells.bodies_evicted.value(), self.cells.body_memory_refusals.value());
        format!(
            "MAX_BODY_BYTES ({max} per core) is used up: so far {evicted} stalled bodies got 408 and \
             {refused} requests 503{busiest}; raise MAX_BODY_BYTES, or limit what one address may \
             send in front of this server"
        )
    }
}
