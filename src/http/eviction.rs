//! Which connection gives way when all of `MAX_CONNECTIONS` are open and another client waits.
//!
//! The order is fixed:
//!
//! 1. a connection that has got its last answer and has lingered for [`LINGER_LEAST`] since, the
//!    longest first;
//! 2. one that has never begun a request, the oldest first;
//! 3. of the peer network with most connections, the one that has been idle for longest, or else the
//!    one whose first head has been incomplete for longest;
//! 4. of all connections, the one that has been idle for longest;
//! 5. of all connections, the one whose first head has been incomplete for longest;
//! 6. one that lingers and whose client has not acknowledged the answer.
//!
//! Idle ones must have been idle for [`IDLE_LEAST`]; a head that is incomplete counts as idle time
//! from its first byte on. A first head must have been incomplete for [`FIRST_HEAD_LEAST`]. From the
//! end of its head to the end of the answer a connection is never chosen; its own deadlines bound it.
//!
//! A request costs nothing here. A connection is filed under a time that its idleness cannot
//! precede, and stays there while it serves requests. Only when it comes up as the longest idle is
//! its true state looked at, and it is filed again if that is later. So the choice is exact, and
//! each look pays for activity since the last one. [`LOOKS_MAX`] bounds the looks of one choice;
//! whoever asks again goes on where it ended. Accepting and closing a connection cost O(log n).
//!
//! Only of peers with equally many connections, 3 compares no more than [`TIED_PEERS_MAX`] at a
//! time; they take turns, so that none of them pays for the others.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

use super::peer::Peer;
use crate::metrics::EvictionReason;

/// How long a connection that has sent a request must have been idle before it may give way. A
/// client that posts more often keeps its connection.
pub(super) const IDLE_LEAST: Duration = Duration::from_secs(1);

/// How long the first head of a connection must have been incomplete before it may give way: heads
/// mostly arrive in one piece. Otherwise each of many clients that send half a head would keep others
/// waiting for [`IDLE_LEAST`].
pub(super) const FIRST_HEAD_LEAST: Duration = Duration::from_millis(2);

/// How long a connection has lingered before it may give way: a client nearby that reads its answer
/// closes sooner.
pub(super) const LINGER_LEAST: Duration = Duration::from_millis(100);

/// Connections whose state one choice looks at.
const LOOKS_MAX: usize = 64;

/// Peers with equally many connections among which one choice finds the longest idle connection.
const TIED_PEERS_MAX: usize = 8;

/// What [`EvictionOrder::choose`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This connection gives way.
    Evict(u64, EvictionReason),
    /// [`LOOKS_MAX`] is reached; ask again.
    Unfinished,
    /// All connections are in the middle of a request or were until just now.
    Nobody,
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ConnActivity {
    /// Since when it has been idle; `None` if it is in the middle of a request.
    pub(super) idle_since: Option<Instant>,
    /// It has not received the whole head of a request yet.
    pub(super) in_first_head: bool,
}

/// The open connections of one core in the order in which they give way. They are known by their
/// numbers, which ascend with the time of accept. All lists grow in steps: a table that doubles
/// leaves memory behind.
#[derive(Default)]
pub(super) struct EvictionOrder {
    filed: BTreeMap<u64, Filed>,
    /// Those that have never begun a request.
    never_sent: BTreeSet<u64>,
    /// Those that linger, by the time since when.
    lingering: BTreeSet<(Instant, u64)>,
    /// Those of them whose clients had not acknowledged the last answer when they were asked.
    unread: BTreeSet<(Instant, u64)>,
    /// The others by the time under which they are filed.
    by_time: BTreeSet<(Instant, u64)>,
    /// Those of `by_time` whose first head may be incomplete, by the time since when.
    first_heads: BTreeSet<(Instant, u64)>,
    /// The peers of open connections: no more than there are connections.
    peers: BTreeMap<Peer, PeerConns>,
    by_count: BTreeSet<(usize, Peer)>,
    /// The last of the tied peers that were compared; the next ones follow it.
    last_tied: Option<Peer>,
}

#[derive(Default)]
struct PeerConns {
    /// All its connections.
    count: usize,
    /// Its part of `by_time`.
    by_time: BTreeSet<(Instant, u64)>,
    /// Its part of `first_heads`.
    first_heads: BTreeSet<(Instant, u64)>,
}

struct Filed {
    peer: Peer,
    place: EvictionPlace,
    /// The time under which it is in `first_heads`.
    first_head: Option<Instant>,
}

/// Where a connection is filed.
#[derive(Clone, Copy)]
enum EvictionPlace {
    NeverSent,
    /// It has not been idle since before this time.
    ByTime(Instant),
    Lingering(Instant),
    Unread(Instant),
}

impl EvictionOrder {
    /// Adds a connection that was just accepted.
    pub(super) fn add(&mut self, number: u64, peer: Peer) {
        self.filed
            .insert(number, Filed { peer, place: EvictionPlace::NeverSent, first_head: None });
        self.never_sent.insert(number);
        self.recount(peer, |count| count + 1);
    }

    /// Removes a connection. Does nothing if it is not there.
    pub(super) fn remove(&mut self, number: u64) {
        let Some(filed) = self.filed.remove(&number) else { return };
        self.take_out(number, &filed);
        self.recount(filed.peer, |count| count - 1);
    }

    /// Takes a connection out of the orders in which it is filed.
    fn take_out(&mut self, number: u64, filed: &Filed) {
        if let Some(since) = filed.first_head {
            if let Some(peer) = self.peers.get_mut(&filed.peer) {
                peer.first_heads.remove(&(since, number));
            }
            self.first_heads.remove(&(since, number));
        }
        match filed.place {
            EvictionPlace::NeverSent => self.never_sent.remove(&number),
            EvictionPlace::Lingering(since) => self.lingering.remove(&(since, number)),
            EvictionPlace::Unread(since) => self.unread.remove(&(since, number)),
            EvictionPlace::ByTime(under) => {
                if let Some(peer) = self.peers.get_mut(&filed.peer) {
                    peer.by_time.remove(&(under, number));
                }
                self.by_time.remove(&(under, number))
            }
        };
    }

    /// Files a connection that has got its last answer and lingers since `since`. `unread`: its
    /// client is known not to have acknowledged that answer.
    pub(super) fn linger(&mut self, number: u64, since: Instant, unread: bool) {
        let Some(filed) = self.filed.remove(&number) else { return };
        self.take_out(number, &filed);
        let place = match unread {
            false => {
                self.lingering.insert((since, number));
                EvictionPlace::Lingering(since)
            }
            true => {
                self.unread.insert((since, number));
                EvictionPlace::Unread(since)
            }
        };
        self.filed.insert(number, Filed { place, first_head: None, ..filed });
    }

    /// Files a connection under `time`, since when it may have been idle at the earliest: it has
    /// begun a request, or was found to be busy. `in_first_head`: that request is its first, and its
    /// head may be incomplete.
    pub(super) fn file(&mut self, number: u64, time: Instant, in_first_head: bool) {
        let Some(filed) = self.filed.remove(&number) else { return };
        self.take_out(number, &filed);
        let peer = self.peers.entry(filed.peer).or_default();
        self.by_time.insert((time, number));
        peer.by_time.insert((time, number));
        if in_first_head {
            self.first_heads.insert((time, number));
            peer.first_heads.insert((time, number));
        }
        let first_head = in_first_head.then_some(time);
        self.filed
            .insert(number, Filed { place: EvictionPlace::ByTime(time), first_head, ..filed });
    }

    /// The peer with most connections and how many these are.
    pub(super) fn busiest_peer(&self) -> Option<(Peer, usize)> {
        self.by_count.last().map(|(count, peer)| (*peer, *count))
    }

    /// Whether a first head may be incomplete.
    pub(super) fn has_first_heads(&self) -> bool {
        !self.first_heads.is_empty()
    }

    /// Chooses the connection that gives way. `activity` says what one is doing; connections that
    /// linger are not asked. Whoever gets [`Choice::Evict`] removes that connection, or files it
    /// again if it turns out to be busy.
    pub(super) fn choose(
        &mut self,
        now: Instant,
        activity: impl Fn(u64) -> ConnActivity,
    ) -> Choice {
        let lingers_longest = |lingering: &BTreeSet<(Instant, u64)>| {
            let (since, number) = *lingering.first()?;
            let long_enough = now.saturating_duration_since(since) >= LINGER_LEAST;
            long_enough.then_some(Choice::Evict(number, EvictionReason::Lingering))
        };
        if let Some(choice) = lingers_longest(&self.lingering) {
            return choice;
        }
        let unread = lingers_longest(&self.unread);
        if let Some(number) = self.never_sent.first() {
            return Choice::Evict(*number, EvictionReason::NeverSent);
        }
        let mut search = Search { now, looks: LOOKS_MAX, activity };
        match self.search_all(&mut search) {
            Err(LooksSpent) => Choice::Unfinished,
            Ok(Some((number, reason))) => Choice::Evict(number, reason),
            Ok(None) => unread.unwrap_or(Choice::Nobody),
        }
    }

    /// Rules 3 to 5.
    fn search_all(
        &mut self,
        search: &mut Search<impl Fn(u64) -> ConnActivity>,
    ) -> Result<Option<(u64, EvictionReason)>, LooksSpent> {
        let most = self.busiest_peer().map_or(0, |(_, count)| count);
        // With one connection each, no peer has most.
        if most > 1 {
            let peers = self.next_tied(most);
            let tied = || peers.into_iter().flatten();
            let mut longest = None;
            for peer in tied() {
                let first = |order: &Self| order.peers.get(&peer)?.by_time.first().copied();
                longest = earlier(longest, self.longest_idle(first, search)?);
            }
            if let Some((_, number)) = longest {
                self.last_tied = tied().last();
                return Ok(Some((number, EvictionReason::BusiestPeer)));
            }
            for peer in tied() {
                let first = |order: &Self| order.peers.get(&peer)?.first_heads.first().copied();
                longest = earlier(longest, self.longest_in_first_head(first, search)?);
            }
            self.last_tied = tied().last();
            if let Some((_, number)) = longest {
                return Ok(Some((number, EvictionReason::FirstHead)));
            }
        }
        if let Some((_, number)) =
            self.longest_idle(|order| order.by_time.first().copied(), search)?
        {
            return Ok(Some((number, EvictionReason::LongestIdle)));
        }
        let first = |order: &Self| order.first_heads.first().copied();
        let longest = self.longest_in_first_head(first, search)?;
        Ok(longest.map(|(_, number)| (number, EvictionReason::FirstHead)))
    }

    /// The peers with `most` connections whose turn it is.
    fn next_tied(&self, most: usize) -> [Option<Peer>; TIED_PEERS_MAX] {
        let last = (most, self.last_tied.unwrap_or(Peer::LEAST));
        let after = self.by_count.range((Bound::Excluded(last), Bound::Unbounded));
        let tied = after.chain(self.by_count.range((most, Peer::LEAST)..=last));
        let mut peers = [None; TIED_PEERS_MAX];
        for (at, (_, peer)) in peers.iter_mut().zip(tied) {
            *at = Some(*peer);
        }
        peers
    }

    /// The connection that has been idle for longest, and since when, among those of which
    /// `first_filed` gives the first. `None` if it has not been idle for long enough.
    fn longest_idle(
        &mut self,
        first_filed: impl Fn(&EvictionOrder) -> Option<(Instant, u64)>,
        search: &mut Search<impl Fn(u64) -> ConnActivity>,
    ) -> Result<Option<(Instant, u64)>, LooksSpent> {
        while let Some((under, number)) = first_filed(self) {
            if search.is_younger(under, IDLE_LEAST) {
                break;
            }
            let activity = search.look(number)?;
            let since = activity.idle_since.unwrap_or(search.now);
            if since <= under {
                return Ok(Some((under, number)));
            }
            self.file(number, since, activity.in_first_head);
        }
        Ok(None)
    }

    /// The connection whose first head has been incomplete for longest, and since when, among those
    /// of which `first_filed` gives the first. `None` if that is not long enough.
    fn longest_in_first_head(
        &mut self,
        first_filed: impl Fn(&EvictionOrder) -> Option<(Instant, u64)>,
        search: &mut Search<impl Fn(u64) -> ConnActivity>,
    ) -> Result<Option<(Instant, u64)>, LooksSpent> {
        while let Some((since, number)) = first_filed(self) {
            if search.is_younger(since, FIRST_HEAD_LEAST) {
                break;
            }
            let activity = search.look(number)?;
            if activity.in_first_head {
                return Ok(Some((since, number)));
            }
            // It keeps its time, which is the earliest that it can have been idle since.
            self.file(number, since, false);
        }
        Ok(None)
    }

    fn recount(&mut self, peer: Peer, change: impl Fn(usize) -> usize) {
        let peer_entry = self.peers.entry(peer).or_default();
        self.by_count.remove(&(peer_entry.count, peer));
        peer_entry.count = change(peer_entry.count);
        match peer_entry.count {
            0 => drop(self.peers.remove(&peer)),
            count => drop(self.by_count.insert((count, peer))),
        }
    }
}

/// One choice: its time, the looks that it has left, and where to look.
struct Search<A> {
    now: Instant,
    looks: usize,
    activity: A,
}

/// [`LOOKS_MAX`] is reached.
struct LooksSpent;

impl<A: Fn(u64) -> ConnActivity> Search<A> {
    fn look(&mut self, number: u64) -> Result<ConnActivity, LooksSpent> {
        self.looks = self.looks.checked_sub(1).ok_or(LooksSpent)?;
        Ok((self.activity)(number))
    }

    fn is_younger(&self, since: Instant, least: Duration) -> bool {
        self.now.saturating_duration_since(since) < least
    }
}

fn earlier(a: Option<(Instant, u64)>, b: Option<(Instant, u64)>) -> Option<(Instant, u64)> {
    a.into_iter().chain(b).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alloc::largest::{PIECE_BYTES_MAX, largest_in};
    use crate::rt::Rng;
    use EvictionReason::{BusiestPeer, FirstHead, Lingering, LongestIdle, NeverSent};

    fn idle(since: Instant) -> ConnActivity {
        ConnActivity { idle_since: Some(since), in_first_head: false }
    }

    fn net(last: u8) -> Peer {
        Peer::of([127, 0, 0, last].into())
    }

    /// A connection of the model.
    #[derive(Clone, Copy, Debug)]
    struct Conn {
        peer: Peer,
        has_sent: bool,
        activity: ConnActivity,
        /// When its first head began.
        first_head: Instant,
        /// Since when, and whether its answer is unread.
        lingers: Option<(Instant, bool)>,
    }

    /// The rule, spelled out.
    fn expected(model: &BTreeMap<u64, Conn>, now: Instant) -> Choice {
        let lingers = |unread| {
            let lingering = model.iter().filter_map(|(number, conn)| {
                let (since, is_unread) = conn.lingers?;
                (is_unread == unread).then_some((since, *number))
            });
            lingering.filter(|(since, _)| now - *since >= LINGER_LEAST).min()
        };
        if let Some((_, number)) = lingers(false) {
            return Choice::Evict(number, Lingering);
        }
        let may_be_idle = || model.iter().filter(|(_, conn)| conn.lingers.is_none());
        if let Some((number, _)) = may_be_idle().find(|(_, conn)| !conn.has_sent) {
            return Choice::Evict(*number, NeverSent);
        }
        let count = |peer| model.values().filter(|conn| conn.peer == peer).count();
        let most = model.values().map(|conn| count(conn.peer)).max().unwrap_or(0);
        let longest = |within: &dyn Fn(&Conn) -> bool| {
            let idle = may_be_idle().filter(|(_, conn)| within(conn));
            let idle = idle.filter_map(|(number, conn)| Some((conn.activity.idle_since?, *number)));
            idle.filter(|(since, _)| now - *since >= IDLE_LEAST).min()
        };
        let first_head = |within: &dyn Fn(&Conn) -> bool| {
            let heads = may_be_idle().filter(|(_, conn)| within(conn));
            let heads = heads.filter(|(_, conn)| conn.activity.in_first_head);
            let heads = heads.map(|(number, conn)| (conn.first_head, *number));
            heads.filter(|(since, _)| now - *since >= FIRST_HEAD_LEAST).min()
        };
        let is_busiest = |conn: &Conn| most > 1 && count(conn.peer) == most;
        let by_rule = [
            (longest(&is_busiest), BusiestPeer),
            (first_head(&is_busiest), FirstHead),
            (longest(&|_| true), LongestIdle),
            (first_head(&|_| true), FirstHead),
            (lingers(true), Lingering),
        ];
        let found = by_rule.into_iter().find_map(|(found, reason)| Some((found?.1, reason)));
        found.map_or(Choice::Nobody, |(number, reason)| Choice::Evict(number, reason))
    }

    #[test]
    fn the_choice_is_the_rule_whatever_has_happened() {
        let seed = crate::rt::random();
        println!("seed {seed}");
        let mut rng = Rng::with_seed(seed);
        for _ in 0..200 {
            let (mut order, mut model) = (EvictionOrder::default(), BTreeMap::new());
            let (mut now, mut next) = (Instant::now(), 0);
            for _ in 0..400 {
                // Distinct times, so that the longest idle is one connection.
                now += Duration::from_micros(rng.u64(1..200_000));
                let known: Vec<u64> = model.keys().copied().collect();
                let some = known.get(rng.usize(..known.len().max(1))).copied();
                match (rng.u8(..11), some) {
                    (0..3, _) | (_, None) => {
                        let peer = net(rng.u8(..5));
                        order.add(next, peer);
                        let activity = ConnActivity { idle_since: Some(now), in_first_head: false };
                        let first_head = now;
                        let conn =
                            Conn { peer, has_sent: false, activity, first_head, lingers: None };
                        model.insert(next, conn);
                        next += 1;
                    }
                    (3..8, Some(number)) => {
                        let conn: &mut Conn = model.get_mut(&number).unwrap();
                        if conn.lingers.is_some() {
                            continue;
                        }
                        if !std::mem::replace(&mut conn.has_sent, true) {
                            // Half a head.
                            conn.activity =
                                ConnActivity { idle_since: Some(now), in_first_head: true };
                            conn.first_head = now;
                            order.file(number, now, true);
                            continue;
                        }
                        // A request begins or ends; the order is not told.
                        conn.activity.in_first_head = false;
                        conn.activity.idle_since =
                            conn.activity.idle_since.is_none().then_some(now);
                    }
                    (8, Some(number)) => {
                        order.remove(number);
                        model.remove(&number);
                    }
                    (9, Some(number)) => {
                        let conn: &mut Conn = model.get_mut(&number).unwrap();
                        let (since, unread) = conn.lingers.map_or((now, false), |l| (l.0, true));
                        conn.lingers = Some((since, unread));
                        order.linger(number, since, unread);
                    }
                    _ => {
                        let choice = choose_all(&mut order, now, &model);
                        assert_eq!(choice, expected(&model, now), "seed {seed}: {model:?}");
                        if let Choice::Evict(number, _) = choice {
                            order.remove(number);
                            model.remove(&number);
                        }
                    }
                }
                let by_count: usize = order.by_count.iter().map(|(count, _)| count).sum();
                let lingering = order.lingering.len() + order.unread.len();
                let filed = order.never_sent.len() + order.by_time.len() + lingering;
                assert_eq!(
                    (order.filed.len(), by_count, filed),
                    (model.len(), model.len(), model.len())
                );
            }
            for number in model.keys() {
                order.remove(*number);
            }
            assert!(order.filed.is_empty() && order.peers.is_empty() && order.by_count.is_empty());
            assert!(order.by_time.is_empty() && order.never_sent.is_empty());
            assert!(order.first_heads.is_empty());
            assert!(order.lingering.is_empty() && order.unread.is_empty());
        }
    }

    /// Each of them has two connections, all idle for equally long.
    #[test]
    fn tied_peers_take_turns_in_giving_way() {
        let (mut order, start) = (EvictionOrder::default(), Instant::now());
        let tied = 5 * TIED_PEERS_MAX as u8;
        for number in 0..2 * u64::from(tied) {
            order.add(number, net((number / 2) as u8));
            order.file(number, start, false);
        }
        let now = start + IDLE_LEAST;
        let mut chosen = BTreeSet::new();
        for _ in 0..5 {
            let Choice::Evict(number, BusiestPeer) = order.choose(now, |_| idle(start)) else {
                panic!("all are idle")
            };
            chosen.insert(number / 2 / TIED_PEERS_MAX as u64);
            // It is busy now, so that the tie remains.
            order.file(number, now, false);
        }
        assert_eq!(chosen.len(), 5, "each time others: {chosen:?}");
    }

    fn choose_all(order: &mut EvictionOrder, now: Instant, model: &BTreeMap<u64, Conn>) -> Choice {
        loop {
            match order.choose(now, |number| model[&number].activity) {
                Choice::Unfinished => {}
                choice => return choice,
            }
        }
    }

    #[test]
    fn one_choice_looks_at_few_connections_and_the_next_goes_on() {
        let (mut order, start) = (EvictionOrder::default(), Instant::now());
        let count = 10 * LOOKS_MAX as u64;
        for number in 0..count {
            order.add(number, net(1));
            order.file(number, start, false);
        }
        // All but the last have been busy since they were filed.
        let now = start + 2 * IDLE_LEAST;
        let looks = std::cell::Cell::new(0);
        let activity = |number| {
            looks.set(looks.get() + 1);
            if number == count - 1 { idle(start) } else { ConnActivity::default() }
        };
        let mut choices = 0;
        let choice = loop {
            choices += 1;
            match order.choose(now, activity) {
                Choice::Unfinished => {}
                choice => break choice,
            }
            assert!(looks.take() <= LOOKS_MAX);
        };
        assert_eq!((choice, choices), (Choice::Evict(count - 1, BusiestPeer), 10));
        // The busy ones are not looked at again before they can have been idle for long enough.
        order.remove(count - 1);
        looks.take();
        assert_eq!(order.choose(now + IDLE_LEAST / 2, |_| panic!("a look")), Choice::Nobody);
    }

    #[test]
    fn the_lists_of_many_connections_are_in_small_pieces() {
        for peers in [1, 100, 10_000_u32] {
            let largest = largest_in(|| {
                let (mut order, now) = (EvictionOrder::default(), crate::rt::now());
                for number in 0..10_000 {
                    let peer = Peer::of((number % peers).to_be_bytes().into());
                    order.add(number.into(), peer);
                    order.file(number.into(), now, number % 2 == 0);
                }
            });
            assert!(largest <= PIECE_BYTES_MAX, "{peers} peers: {largest}");
        }
    }
}
