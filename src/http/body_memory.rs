//! The memory of one core for request bodies (`MAX_BODY_BYTES`), and who gives way when it is
//! short.
//!
//! A body that is still being received is listed, and moves to the end of its list whenever it has
//! gained [`GAIN_BYTES`]. So the first of a list has gained least lately. Bodies above
//! [`SMALL_CHARGE_BYTES`] have a list of their own.
//!
//! When a body needs memory that is not there:
//!
//! 1. Bodies that have stalled (see [`has_stalled`]) lose their memory and are answered 408: large
//!    ones first, among equals the one that has gained least lately. This takes effect at once, but
//!    only if it frees enough.
//! 2. If it does not, the body that needs the memory is refused with 503. A body that is received
//!    at a healthy speed never gives way, nor does one that is complete.
//!
//! An eighth of the memory is a reserve for small bodies: large ones together get no more than the
//! rest. So a usual request needs nobody to give way when large bodies, however healthy, hold all
//! that they can get, and small bodies in the reserve are not in the way of large ones.
//!
//! Bodies that arrive together with their head are never listed, and a listed one costs a list move
//! per read. The clock is read where the connection's deadline reads it anyway.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use super::body::BodyError;
use super::peer::Peer;
use super::phase::{BodyEnd, ConnState, Listed};
use super::recency::RecencyList;
use crate::budget::{BODY_PADDING, Budget, BudgetExhausted, ChargedBytes, SMALL_CHARGE_BYTES};
use crate::metrics::CoreCells;
use crate::net::Net;
use crate::rt;
use crate::throttle::Throttle;

/// What a body must gain to count as being received: less than one packet, so that a slow link's
/// every packet counts, and more than an attacker sends for nothing.
const GAIN_BYTES: usize = 1 << 10;

/// No body has stalled that gained within this time: several round trips in a data center. It is
/// less than attackers need to fill the memory anew, so that one of theirs has always stalled.
const STALLED_LEAST: Duration = Duration::from_millis(20);

/// Every body has stalled that gained nothing within this time (4 KiB/s): a round trip on a mobile
/// network.
const STALLED_MOST: Duration = Duration::from_millis(250);

/// The longest gap of a body that came in bursts is exceeded by this factor before it has stalled.
const GAP_MARGIN: f64 = 1.5;

/// Bodies that one allocation looks at in each list, and so those that give way for it at most. A
/// look takes a system call at most (0.3 µs), and first it is found out without one whether the
/// looks can be enough.
const LOOKS_MAX: usize = 512;

/// A body that holds less is not listed, and keeps it: its connection takes more. Otherwise tiny
/// bodies would use up the looks. So an allocation that may look at one body for each of these
/// bytes that are missing can free them, and one that is so large takes longer than its looks.
const LISTED_LEAST: usize = 1 << 10;

/// How long it is remembered that stalled bodies hold too little: until another one that was looked
/// at stalls, but no less and no more than this. So looks take at most a third of the core, and a
/// body that has stalled is found 1 ms later at most.
const FAILED_LOOK_KEPT: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(10)];

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
    /// What the last look found that found too little, and until when that counts.
    failed_look: Cell<Option<(Instant, Held)>>,
    log: RefCell<Throttle>,
}

/// What some of the bodies hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    bytes: usize,
    /// The part of it that large bodies hold.
    large: usize,
}

impl Held {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.large += if bytes > SMALL_CHARGE_BYTES { bytes } else { 0 };
    }

    fn suffices(&self, shortage: &BudgetExhausted) -> bool {
        self.bytes >= shortage.missing && self.large >= shortage.missing_large
    }
}

/// Whether a listed body has stalled: it has gained nothing for as long as [`SMALL_CHARGE_BYTES`]
/// took it on average until then, or for [`GAP_MARGIN`] times its longest gap so far if that is
/// more, but no less than [`STALLED_LEAST`] and no more than [`STALLED_MOST`]. So a body whose
/// packets come in bursts, one each round trip, has not stalled between two of them, however large
/// they are, while one that came at once and then stopped has. Small bodies, which have no pace
/// yet, have [`STALLED_MOST`].
fn has_stalled(state: &ConnState, now: Instant) -> bool {
    stalls_at(state).is_some_and(|at| at <= now)
}

/// When a listed body has stalled if it gains nothing until then.
fn stalls_at(state: &ConnState) -> Option<Instant> {
    let listed = state.body.listed.get()?;
    let pace = match listed.large {
        true => {
            let taken = listed.gained.saturating_duration_since(state.since.get());
            let share = SMALL_CHARGE_BYTES as f64 / listed.received.max(1) as f64;
            let gap = listed.longest_gap.mul_f64(GAP_MARGIN);
            taken.mul_f64(share).max(gap).clamp(STALLED_LEAST, STALLED_MOST)
        }
        false => STALLED_MOST,
    };
    Some(listed.gained + pace)
}

impl BodyMemory {
    /// `max` bytes, with a reserve that leaves room for a longest body of `length_max` beside its
    /// decompressed form.
    pub fn new(max: usize, length_max: usize, cells: &'static CoreCells) -> BodyMemory {
        let two = 2 * (length_max + BODY_PADDING);
        let reserve = (max / RESERVE_SHARE).min(max.saturating_sub(two));
        cells.body_bytes_max.set(max as u64);
        BodyMemory {
            budget: Budget::with_reserve(max, reserve, &cells.body_bytes),
            cells,
            receiving: RefCell::default(),
            failed_look: Cell::new(None),
            log: RefCell::default(),
        }
    }

    /// A budget of as many bytes, for those of bodies that wait in the kernel.
    pub(super) fn in_kernel(&self) -> Rc<Budget> {
        Budget::new(self.budget.max(), &self.cells.body_kernel_bytes)
    }

    /// An empty buffer that grows up to `max` bytes.
    ///
    /// # Errors
    /// [`BodyError::MemoryExhausted`].
    pub(super) fn buffer(&self, max: usize) -> Result<ChargedBytes, BodyError> {
        self.buffer_with(max, b"")
    }

    /// A buffer that grows up to `max` bytes, with the `first` ones, no more than `max`, in it.
    ///
    /// # Errors
    /// [`BodyError::MemoryExhausted`].
    #[inline]
    pub(super) fn buffer_with(&self, max: usize, first: &[u8]) -> Result<ChargedBytes, BodyError> {
        loop {
            match ChargedBytes::starting(&self.budget, max, first) {
                Ok(bytes) => return Ok(bytes),
                Err(exhausted) => self.make_room(&exhausted, None)?,
            }
        }
    }

    /// An empty buffer of exactly this size, all of it charged.
    ///
    /// # Errors
    /// [`BodyError::MemoryExhausted`].
    pub(super) fn buffer_of(&self, bytes: usize) -> Result<ChargedBytes, BodyError> {
        loop {
            match ChargedBytes::with_capacity(&self.budget, bytes) {
                Ok(buffer) => return Ok(buffer),
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
        self.make_room_for(bytes, piece.len(), receiver)?;
        bytes.extend(piece).expect("there is room for them");
        Ok(())
    }

    /// Charges and allocates what it takes to append `more` bytes to `bytes`; `receiver` is the
    /// connection that receives them, if it still does.
    ///
    /// # Errors
    /// [`BodyError::MemoryExhausted`]. Nothing has changed.
    pub(super) fn make_room_for(
        &self,
        bytes: &mut ChargedBytes,
        more: usize,
        receiver: Option<&ConnState>,
    ) -> Result<(), BodyError> {
        loop {
            match bytes.reserve(more) {
                Ok(()) => return Ok(()),
                Err(exhausted) => self.make_room(&exhausted, receiver)?,
            }
        }
    }

    /// To be called at `now` when all that has arrived of a body is read and it is not complete.
    pub(super) fn body_waits(&self, state: &Rc<ConnState>, now: Instant) {
        let body = &state.body;
        let Some(held) = body.held().filter(|held| *held >= LISTED_LEAST) else { return };
        let (received, large) = (body.progress(), held > SMALL_CHARGE_BYTES);
        let listed = body.listed.get();
        let token = match listed {
            Some(at) if at.large == large => {
                if received.saturating_sub(at.received) < GAIN_BYTES {
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
        let longest_gap = listed.map_or(Duration::ZERO, |at| {
            let gap = now.saturating_duration_since(at.gained);
            if gap <= STALLED_MOST { gap.max(at.longest_gap) } else { at.longest_gap }
        });
        body.listed.set(Some(Listed { token, large, received, gained: now, longest_gap }));
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
        shortage: &BudgetExhausted,
        receiver: Option<&ConnState>,
    ) -> Result<(), BodyError> {
        let now = rt::now();
        let failed =
            self.failed_look.get().is_some_and(|(until, f)| now < until && !f.suffices(shortage));
        let victims = if failed { None } else { self.look(shortage, receiver, now) };
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

    /// The bodies that give way, as [`BodyMemory::victims`] finds them. If they hold too little,
    /// that is remembered.
    fn look(
        &self,
        shortage: &BudgetExhausted,
        receiver: Option<&ConnState>,
        now: Instant,
    ) -> Option<Vec<Rc<ConnState>>> {
        // A core that was busy has bytes of its clients that it has not read yet.
        if let Some(net) = Net::of_this_executor() {
            net.turn_now();
        }
        let victims = self.victims(shortage, receiver, now);
        let failed = |found| {
            let [least, most] = FAILED_LOOK_KEPT.map(|kept| now + kept);
            let receiving = self.receiving.borrow();
            let looked_at = receiving.iter().flat_map(|list| list.iter().take(LOOKS_MAX));
            let next = looked_at.filter_map(|state| stalls_at(state)).filter(|at| *at > now).min();
            self.failed_look.set(Some((next.map_or(most, |at| at.clamp(least, most)), found)));
        };
        victims.map_err(failed).ok()
    }

    /// The stalled bodies that together hold what is missing, in the order in which they give way.
    ///
    /// # Errors
    /// What they hold: less.
    fn victims(
        &self,
        shortage: &BudgetExhausted,
        receiver: Option<&ConnState>,
        now: Instant,
    ) -> Result<Vec<Rc<ConnState>>, Held> {
        let is_other = |state: &&Rc<ConnState>| {
            receiver.is_none_or(|receiver| !std::ptr::eq(Rc::as_ptr(state), receiver))
        };
        let nothing_arrived = |state: &&Rc<ConnState>| {
            state.body.arrived() == 0 && has_stalled(state, state.was_read_at(now))
        };
        let [small, large] = &*self.receiving.borrow();
        let looks = LOOKS_MAX.max(shortage.missing.div_ceil(LISTED_LEAST));
        let stalled = || {
            let looked_at = [large, small].into_iter().flat_map(|list| list.iter().take(looks));
            looked_at.filter(|state| has_stalled(state, now)).filter(is_other)
        };
        let mut found = Held::default();
        for state in stalled() {
            found.add(state.body.held().unwrap_or(0));
            if found.suffices(shortage) {
                break;
            }
        }
        if !found.suffices(shortage) {
            return Err(found);
        }
        let (mut victims, mut freed) = (Vec::new(), Held::default());
        for victim in stalled().filter(nothing_arrived) {
            freed.add(victim.body.held().unwrap_or(0));
            victims.push(victim.clone());
            if freed.suffices(shortage) {
                return Ok(victims);
            }
        }
        Err(freed)
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
        let mut peers: HashMap<Peer, (usize, usize)> = HashMap::new();
        for list in &*self.receiving.borrow() {
            for state in list.iter().take(PEER_SAMPLE) {
                let (bodies, bytes) = peers.entry(state.peer()).or_default();
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
            "MAX_BODY_BYTES ({max} per core) is used up: so far {evicted} stalled bodies got 408 \
             and {refused} requests 503{busiest}; raise MAX_BODY_BYTES, or limit what one address \
             may send in front of this server"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use futures_lite::future::poll_once;
    use futures_rustls::rustls::crypto::ring;
    use futures_rustls::rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
    use futures_rustls::rustls::sign::CertifiedKey;

    use super::*;
    use crate::http::client_stream::ClientStream;
    use crate::net::Net;
    use crate::tls::Session;

    const LENGTH: usize = 1 << 20;
    /// What a body of that length holds.
    const HELD: usize = LENGTH + BODY_PADDING;
    const MS: Duration = Duration::from_millis(1);

    /// A connection that receives a body, and what keeps its socket open.
    struct Sender {
        state: Rc<ConnState>,
        socket: (Rc<ClientStream>, UnixStream),
    }

    impl Sender {
        fn new(net: &Rc<Net>) -> Sender {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let stream = Rc::new(ClientStream::Plain(net.stream(ours)));
            Sender { state: ConnState::new(&stream), socket: (stream, theirs) }
        }

        fn begin(&self, memory: &BodyMemory, now: Instant) -> Result<(), BodyError> {
            self.state.body.bytes.replace(Some(memory.buffer(LENGTH)?));
            self.state.body_begins(now);
            memory.body_waits(&self.state, now);
            Ok(())
        }

        fn gain(&self, memory: &BodyMemory, bytes: usize, now: Instant) -> Result<(), BodyError> {
            {
                let mut body = self.state.body.bytes.borrow_mut();
                let body = body.as_mut().expect("it has begun");
                memory.append(body, &vec![b' '; bytes], Some(&self.state))?;
                self.state.body.received.set(body.as_slice().len());
            }
            memory.body_waits(&self.state, now);
            Ok(())
        }

        fn end(&self, memory: &BodyMemory) {
            memory.body_ended(&self.state);
            self.state.body.bytes.take();
        }
    }

    /// What the rule says of one body.
    #[derive(Clone, Copy)]
    struct Known {
        begun: Instant,
        gained: Instant,
        received: usize,
        large: bool,
        longest_gap: Duration,
    }

    fn short_of(missing: usize) -> BudgetExhausted {
        BudgetExhausted { missing, missing_large: 0 }
    }

    impl Known {
        fn has_stalled(&self, now: Instant) -> bool {
            let pace = match self.large {
                true => {
                    let share = SMALL_CHARGE_BYTES as f64 / self.received as f64;
                    let pace = (self.gained - self.begun).mul_f64(share);
                    pace.max(self.longest_gap.mul_f64(1.5)).clamp(20 * MS, 250 * MS)
                }
                false => 250 * MS,
            };
            now - self.gained >= pace
        }
    }

    /// Random bodies against the rule, spelled out.
    #[test]
    fn victims_are_who_the_rule_says_and_every_byte_is_accounted_for() {
        let seed = rt::random();
        println!("seed {seed}");
        let mut rng = rt::Rng::with_seed(seed);
        crate::rt::run_test(async move {
            let net = Net::here().unwrap();
            let cells = &crate::metrics::cells(1)[0];
            let memory = BodyMemory::new(64 * LENGTH, LENGTH, cells);
            let senders: Vec<Sender> = (0..30).map(|_| Sender::new(&net)).collect();
            let mut known: Vec<Option<Known>> = vec![None; senders.len()];
            let mut now = Instant::now();
            for _ in 0..5_000 {
                now += rng.u32(0..15) * MS;
                let at = rng.usize(..senders.len());
                let (sender, body) = (&senders[at], &mut known[at]);
                let received = sender.state.body.received.get();
                match (body.as_mut(), rng.u8(..20)) {
                    (None, _) => {
                        sender.begin(&memory, now).unwrap();
                        *body = Some(Known {
                            begun: now,
                            gained: now,
                            received: 0,
                            large: false,
                            longest_gap: Duration::ZERO,
                        });
                    }
                    (Some(_), 0) => {
                        sender.end(&memory);
                        *body = None;
                    }
                    (Some(body), _) => {
                        let most = [10, 2_000, 60_000][rng.usize(..3)];
                        let bytes = rng.usize(1..most).min(LENGTH - received);
                        sender.gain(&memory, bytes, now).unwrap();
                        let received = received + bytes;
                        let held = sender.state.body.held().unwrap();
                        assert!(held >= received);
                        let large = held > SMALL_CHARGE_BYTES;
                        if received - body.received >= 1 << 10 || large != body.large {
                            let gap = Some(now - body.gained).filter(|gap| *gap <= 250 * MS);
                            let longest_gap = body.longest_gap.max(gap.unwrap_or_default());
                            *body = Known { gained: now, received, large, longest_gap, ..*body };
                        }
                    }
                }
                let held = senders.iter().filter_map(|sender| sender.state.body.held());
                assert_eq!(held.sum::<usize>() as u64, cells.body_bytes.value(), "seed {seed}");

                let mut expected: Vec<(bool, Instant, usize)> = known
                    .iter()
                    .enumerate()
                    .filter_map(|(at, body)| Some((at, (*body)?)))
                    .filter(|(_, body)| body.has_stalled(now))
                    .map(|(at, body)| (!body.large, body.gained, at))
                    .collect();
                expected.sort();
                let receiver = &senders[rng.usize(..senders.len())].state;
                let is_other = |at: &usize| !Rc::ptr_eq(&senders[*at].state, receiver);
                let expected: Vec<usize> =
                    expected.into_iter().map(|(_, _, at)| at).filter(is_other).collect();
                let held: Vec<usize> =
                    expected.iter().map(|at| senders[*at].state.body.held().unwrap()).collect();
                let sum: usize = held.iter().sum();
                let large: usize = held.iter().filter(|bytes| **bytes > SMALL_CHARGE_BYTES).sum();
                let all: Result<(), Held> = Err(Held { bytes: sum, large });
                let too_much = BudgetExhausted { missing: large + 1, missing_large: large + 1 };
                for shortage in [short_of(sum + 1), too_much] {
                    let victims = memory.victims(&shortage, Some(receiver), now);
                    assert_eq!(victims.map(drop), all, "seed {seed}");
                }
                if sum > 0 {
                    // As many as are needed, in order; those that gained at the same time in any.
                    let missing = rng.usize(1..=sum);
                    let missing_large = rng.usize(0..=missing.min(large));
                    let shortage = BudgetExhausted { missing, missing_large };
                    let victims = memory.victims(&shortage, Some(receiver), now).unwrap();
                    let order = |state: &ConnState| {
                        let listed = state.body.listed.get().unwrap();
                        (!listed.large, listed.gained)
                    };
                    let rule: Vec<_> = expected
                        .iter()
                        .take(victims.len())
                        .map(|at| order(&senders[*at].state))
                        .collect();
                    let got: Vec<_> = victims.iter().map(|state| order(state)).collect();
                    assert_eq!(got, rule, "seed {seed}");
                    let held = |state: &Rc<ConnState>| state.body.held().unwrap();
                    let freed: usize = victims.iter().map(held).sum();
                    let last = held(victims.last().unwrap());
                    assert!(freed >= missing && freed - last < missing, "no more than needed");
                }
            }
            senders.iter().for_each(|sender| sender.end(&memory));
            assert_eq!(cells.body_bytes.value(), 0);
            assert!(memory.receiving.borrow().iter().all(|list| list.iter().next().is_none()));
        });
    }

    #[test]
    fn who_stalls_gives_way_at_once_and_nobody_does_in_vain() {
        crate::rt::run_test(async {
            let net = Net::here().unwrap();
            let cells = &crate::metrics::cells(1)[0];
            let memory = BodyMemory::new(2 * HELD, LENGTH, cells);
            let [stalled, steady, next] = [(); 3].map(|()| Sender::new(&net));
            let now = Instant::now();
            let long_ago = now - 10_000 * MS;
            for (sender, gained) in [(&stalled, long_ago), (&steady, now)] {
                sender.begin(&memory, long_ago).unwrap();
                sender.gain(&memory, LENGTH - 1, gained).unwrap();
            }
            assert_eq!(cells.body_bytes.value(), 2 * HELD as u64 - 1);
            // The whole of it is not enough.
            assert!(memory.victims(&short_of(HELD + 1), None, rt::now()).is_err());
            next.begin(&memory, long_ago).unwrap();
            assert_eq!(cells.bodies_evicted.value(), 1);
            assert_eq!(stalled.state.body.held(), None);
            assert_eq!(stalled.state.body_end().await, BodyEnd::Evicted);
            next.gain(&memory, LENGTH, now).unwrap();
            // All are good: the one that needs memory is refused, and the others keep theirs.
            let last = Sender::new(&net);
            assert_eq!(last.begin(&memory, now), Err(BodyError::MemoryExhausted));
            assert_eq!((cells.body_memory_refusals.value(), cells.bodies_evicted.value()), (1, 1));
            assert!(steady.state.body.held().is_some() && next.state.body.held().is_some());
            [&steady, &next].into_iter().for_each(|sender| sender.end(&memory));
            assert_eq!(cells.body_bytes.value(), 0);
        });
    }

    #[test]
    fn bytes_that_have_arrived_unread_are_no_stall() {
        use std::io::Write as _;
        crate::rt::run_test(async {
            let net = Net::here().unwrap();
            let cells = &crate::metrics::cells(1)[0];
            let memory = BodyMemory::new(2 * HELD, LENGTH, cells);
            let sender = Sender::new(&net);
            let long_ago = Instant::now() - 1_000 * MS;
            sender.begin(&memory, long_ago).unwrap();
            sender.gain(&memory, LENGTH - 1, long_ago).unwrap();
            let looked = |missing| memory.victims(&short_of(missing), None, rt::now()).map(drop);
            assert_eq!(looked(1), Ok(()));
            (&sender.socket.1).write_all(b"}").unwrap();
            assert_eq!(looked(1), Err(Held::default()));
            // If all of them would not be enough, no socket is asked.
            let held = sender.state.body.held().unwrap();
            assert_eq!(looked(held + 1), Err(Held { bytes: held, large: held }));
            sender.end(&memory);
        });
    }

    #[test]
    fn stalled_small_bodies_in_the_reserve_are_not_in_the_way_of_large_ones() {
        crate::rt::run_test(async {
            let net = Net::here().unwrap();
            let cells = &crate::metrics::cells(1)[0];
            // The reserve is half of `HELD`.
            let memory = BodyMemory::new(4 * HELD, LENGTH, cells);
            let (now, long_ago) = (Instant::now(), Instant::now() - 10_000 * MS);
            let small: Vec<Sender> = (0..8).map(|_| Sender::new(&net)).collect();
            for sender in &small {
                sender.begin(&memory, long_ago).unwrap();
                sender.gain(&memory, 60_000, long_ago).unwrap();
            }
            let large: Vec<Sender> = (0..4).map(|_| Sender::new(&net)).collect();
            for (at, sender) in large.iter().enumerate() {
                sender.begin(&memory, long_ago).unwrap();
                let bytes = if at < 3 { LENGTH } else { LENGTH / 2 - BODY_PADDING };
                sender.gain(&memory, bytes, now).unwrap();
            }
            assert_eq!(cells.bodies_evicted.value(), 0, "the reserve need not be free");
            // It is theirs alone: a large body more has no room even at their cost.
            let last = Sender::new(&net);
            last.begin(&memory, now).unwrap();
            assert_eq!(last.gain(&memory, 70_000, now), Err(BodyError::MemoryExhausted));
            assert_eq!(cells.bodies_evicted.value(), 0, "nobody gives way in vain");
            small.iter().chain(&large).chain([&last]).for_each(|sender| sender.end(&memory));
            assert_eq!(cells.body_bytes.value(), 0);
        });
    }

    /// Slow start over a link with a round trip of 100 ms: each burst is twice the one before.
    #[test]
    fn a_fast_body_over_a_long_link_has_not_stalled_between_two_bursts() {
        crate::rt::run_test(async {
            let net = Net::here().unwrap();
            let memory = BodyMemory::new(4 * LENGTH, LENGTH, &crate::metrics::cells(1)[0]);
            let sender = Sender::new(&net);
            let begun = Instant::now();
            sender.begin(&memory, begun).unwrap();
            let mut now = begun;
            for burst in 0..5 {
                now = begun + (burst + 1) * 100 * MS;
                sender.gain(&memory, (14 << 10) << burst, now).unwrap();
            }
            let stalled = |after| has_stalled(&sender.state, now + after * MS);
            assert!(!stalled(120) && stalled(150));
            // A pause in which it had stalled is nothing to go by.
            now += 2_000 * MS;
            sender.gain(&memory, 2_000, now).unwrap();
            now += 10 * MS;
            sender.gain(&memory, 2_000, now).unwrap();
            let longest_gap = sender.state.body.listed.get().unwrap().longest_gap;
            assert_eq!(longest_gap, 100 * MS);
            sender.end(&memory);
        });
    }

    #[test]
    fn a_look_that_found_too_little_is_not_repeated_at_once() {
        crate::rt::run_test(async {
            let net = Net::here().unwrap();
            let cells = &crate::metrics::cells(1)[0];
            let memory = BodyMemory::new(2 * HELD, LENGTH, cells);
            let senders = [(); 2].map(|()| Sender::new(&net));
            let now = Instant::now() + 3_600_000 * MS;
            for sender in &senders {
                sender.begin(&memory, now).unwrap();
                sender.gain(&memory, LENGTH, now).unwrap();
            }
            let last = Sender::new(&net);
            assert_eq!(last.begin(&memory, now), Err(BodyError::MemoryExhausted));
            let (_, found) = memory.failed_look.get().expect("it is remembered");
            assert_eq!(found, Held::default());
            // One of them stalls. That is seen once the look is old, or if it had found enough.
            let listed = senders[0].state.body.listed.get().unwrap();
            let long_ago = rt::now() - 1_000 * MS;
            senders[0].state.since.set(long_ago);
            senders[0].state.body.listed.set(Some(Listed { gained: long_ago, ..listed }));
            memory.failed_look.set(Some((now, found)));
            assert_eq!(last.begin(&memory, now), Err(BodyError::MemoryExhausted));
            assert_eq!(cells.bodies_evicted.value(), 0);
            memory.failed_look.set(Some((long_ago, found)));
            last.begin(&memory, now).unwrap();
            assert_eq!(cells.bodies_evicted.value(), 1);
            senders.iter().chain([&last]).for_each(|sender| sender.end(&memory));
            assert_eq!(cells.body_bytes.value(), 0);
        });
    }

    #[test]
    fn a_failed_look_counts_until_the_next_body_stalls() {
        crate::rt::run_test(async {
            let net = Net::here().unwrap();
            let memory = BodyMemory::new(2 * HELD, LENGTH, &crate::metrics::cells(1)[0]);
            let sender = Sender::new(&net);
            let now = rt::now();
            sender.begin(&memory, now).unwrap();
            let listed = sender.state.body.listed.get().unwrap();
            // How long ago it gained, and how long the look then counts; it stalls after 250 ms.
            for (ago, counts) in [(0, 10), (239, 10), (245, 5), (249, 1), (300, 10)] {
                let gained = now - ago * MS;
                sender.state.body.listed.set(Some(Listed { gained, ..listed }));
                assert!(memory.look(&short_of(LENGTH), None, now).is_none());
                let (until, _) = memory.failed_look.get().unwrap();
                assert_eq!(until - now, counts * MS, "{ago}");
            }
            sender.end(&memory);
        });
    }

    /// Neither many bodies nor tiny ones hide that there is enough to free.
    #[test]
    fn an_allocation_looks_at_as_many_bodies_as_can_hold_what_is_missing() {
        crate::rt::run_test(async {
            let net = Net::here().unwrap();
            let cells = &crate::metrics::cells(1)[0];
            let memory = BodyMemory::new(64 * LENGTH, 8 * LENGTH, cells);
            let long_ago = Instant::now() - 10_000 * MS;
            let first = Sender::new(&net);
            let mut senders = Vec::new();
            let tiny = std::iter::repeat_n(LISTED_LEAST - 1, LOOKS_MAX);
            for held in tiny.chain(std::iter::repeat_n(LISTED_LEAST, 2 * LOOKS_MAX)) {
                // Sockets matter only to who is asked whether bytes have arrived.
                let state = ConnState::new(&first.socket.0);
                state.body.bytes.replace(Some(memory.buffer(held - BODY_PADDING).unwrap()));
                state.body_begins(long_ago);
                memory.body_waits(&state, long_ago);
                senders.push(state);
            }
            let all = 2 * LOOKS_MAX * LISTED_LEAST;
            let victims = memory.victims(&short_of(all), None, rt::now());
            assert_eq!(victims.map(|victims| victims.len()), Ok(2 * LOOKS_MAX));
            let few = memory.victims(&short_of(1), None, rt::now());
            assert_eq!(few.map(|victims| victims.len()), Ok(1));
            for state in senders {
                memory.body_ended(&state);
                state.body.bytes.take();
            }
        });
    }

    /// Knows no certificate: no handshake is ever complete.
    #[derive(Debug)]
    struct NoCertificates;

    impl ResolvesServerCert for NoCertificates {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            None
        }
    }

    /// A session that holds what comes of the record that begins with [`RECORD_HEAD`].
    fn session() -> Session {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(NoCertificates));
        Session::new(Arc::new(config)).unwrap()
    }

    /// Of a record of 16 KiB.
    const RECORD_HEAD: [u8; 5] = [0x16, 3, 1, 0x40, 0];

    /// The same bytes at the same times, plain and in a TLS record that is not complete: nobody is
    /// taken for slower than he is.
    #[test]
    fn what_comes_of_a_record_counts_as_progress() {
        let judged = [false, true].map(|tls| {
            rt::run_test(async move {
                let net = Net::here().unwrap();
                let cells = &crate::metrics::cells(1)[0];
                let memory = BodyMemory::new(64 * LENGTH, LENGTH, cells);
                let (ours, mut theirs) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                let stream = Rc::new(ClientStream::new(net.stream(ours), tls));
                if let ClientStream::Tls(client) = &*stream {
                    client.stream.secure(session());
                }
                let sender = Sender {
                    state: ConnState::new(&stream),
                    socket: (stream.clone(), theirs.try_clone().unwrap()),
                };
                let mut now = Instant::now();
                sender.begin(&memory, now).unwrap();
                now += 100 * MS;
                sender.gain(&memory, 70_000, now).unwrap();
                assert!(sender.state.keeps_pace(1, now), "a window begins");
                let mut stalled = Vec::new();
                for step in 0..15 {
                    let piece = [&RECORD_HEAD[..], &[b' '; GAIN_BYTES]].concat();
                    let skipped = if step == 0 { 0 } else { RECORD_HEAD.len() };
                    theirs.write_all(&piece[skipped..]).unwrap();
                    let arrived = (step + 1) * GAIN_BYTES + RECORD_HEAD.len();
                    let mut plain = sender.state.body.received.get() - 70_000;
                    while plain + stream.partial() < arrived {
                        let read = |bytes: &[u8]| bytes.len();
                        match poll_once(poll_fn(|cx| stream.poll_read_with(cx, read))).await {
                            Some(read) => plain += read.unwrap(),
                            None => net.run_tasks_and_turn().await,
                        }
                    }
                    now += 30 * MS;
                    let before = sender.state.body.received.get();
                    sender.gain(&memory, plain + 70_000 - before, now).unwrap();
                    stalled.push(has_stalled(&sender.state, now + 30 * MS));
                }
                // 15 KiB in the window of 10 s.
                let paces = [1_000, 1_500, 2_000].map(|rate| sender.state.keeps_pace(rate, now));
                sender.end(&memory);
                (stalled, paces)
            })
        });
        assert_eq!(judged[0], judged[1]);
        let (stalled, paces) = &judged[0];
        assert!(!stalled.contains(&true), "{stalled:?}");
        // The first success begins another window.
        assert_eq!(paces, &[true, false, false]);
    }
}
