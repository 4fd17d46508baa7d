//! The handshakes in progress on a core, and which of them gives way when there are as many as there
//! may be. To begin or end one takes time with the logarithm of their number.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::peer::Peer;

/// How long a handshake may take before it can give way: two round trips on a bad mobile network.
pub(super) const HANDSHAKE_LEAST: Duration = Duration::from_secs(1);

/// A peer with more than this part of all places has to give way to peers with fewer.
const PEER_PART: usize = 8;

/// Why a handshake gives way to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GivesWay {
    /// It has had [`HANDSHAKE_LEAST`], and no other one has had more time.
    Oldest,
    /// Its peer has the most, and the other one's has fewer.
    OfBusiest,
}

/// Handshakes in progress, by numbers that ascend: the oldest comes first.
pub(super) struct OpenHandshakes<T> {
    max: usize,
    next: u64,
    open: BTreeMap<u64, OpenEntry<T>>,
    by_peer: BTreeMap<Peer, BTreeSet<u64>>,
    /// How many each peer has, ascending.
    counts: BTreeSet<(usize, Peer)>,
}

struct OpenEntry<T> {
    peer: Peer,
    since: Instant,
    of: T,
}

impl<T> OpenHandshakes<T> {
    /// None, of `max` that there may be at a time.
    pub(super) fn new(max: usize) -> OpenHandshakes<T> {
        let (open, by_peer) = (BTreeMap::new(), BTreeMap::new());
        OpenHandshakes { max, next: 0, open, by_peer, counts: BTreeSet::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Begins one of `peer`. Returns its number, and the one that it takes the place of, which has ended
    /// by that. `None` if all places are taken and none becomes free:
    ///
    /// - the peer with the most gives way with its oldest one, if it has more than [`PEER_PART`] of the
    ///   places and, afterwards, no fewer than `peer`: one address cannot keep the others out, however
    ///   fast it begins;
    /// - else the oldest one, if it has had [`HANDSHAKE_LEAST`]: sooner, nobody would come to an end.
    pub(super) fn begin(
        &mut self,
        peer: Peer,
        now: Instant,
        of: T,
    ) -> Option<(u64, Option<(T, GivesWay)>)> {
        let mut gave_way = None;
        if self.open.len() >= self.max {
            let (number, why) = self.gives_way(peer, now)?;
            gave_way = self.end(number).map(|of| (of, why));
        }
        let number = self.next;
        self.next += 1;
        self.open.insert(number, OpenEntry { peer, since: now, of });
        self.change(peer, |numbers| numbers.insert(number));
        Some((number, gave_way))
    }

    fn gives_way(&self, newcomer: Peer, now: Instant) -> Option<(u64, GivesWay)> {
        let (most, busiest) = *self.counts.last()?;
        let own = self.by_peer.get(&newcomer).map_or(0, BTreeSet::len);
        if most > self.max / PEER_PART && most > own + 1 {
            let oldest = *self.by_peer[&busiest].first()?;
            return Some((oldest, GivesWay::OfBusiest));
        }
        let (oldest, entry) = self.open.first_key_value()?;
        let age = now.saturating_duration_since(entry.since);
        (age >= HANDSHAKE_LEAST).then_some((*oldest, GivesWay::Oldest))
    }

    /// Ends one; `None` if it has given way before.
    pub(super) fn end(&mut self, number: u64) -> Option<T> {
        let OpenEntry { peer, of, .. } = self.open.remove(&number)?;
        self.change(peer, |numbers| numbers.remove(&number));
        Some(of)
    }

    fn change(&mut self, peer: Peer, change: impl FnOnce(&mut BTreeSet<u64>) -> bool) {
        let numbers = self.by_peer.entry(peer).or_default();
        self.counts.remove(&(numbers.len(), peer));
        change(numbers);
        match numbers.len() {
            0 => {
                self.by_peer.remove(&peer);
            }
            count => {
                self.counts.insert((count, peer));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Peer = Peer::V4(1);
    const B: Peer = Peer::V4(2);
    const C: Peer = Peer::V6(3);

    /// Handshakes of these peers, a millisecond apart, numbered from 0; and the time of the last one.
    fn open(max: usize, peers: &[(Peer, usize)]) -> (OpenHandshakes<u64>, Instant) {
        let mut handshakes = OpenHandshakes::new(max);
        let mut now = Instant::now();
        let peers = peers.iter().flat_map(|(peer, count)| std::iter::repeat_n(*peer, *count));
        for (number, peer) in peers.enumerate() {
            now += Duration::from_millis(1);
            assert_eq!(handshakes.begin(peer, now, number as u64), Some((number as u64, None)));
        }
        (handshakes, now)
    }

    #[test]
    fn who_gives_way_at_the_limit() {
        use GivesWay::{OfBusiest, Oldest};
        let (soon, late) = (Duration::from_millis(10), HANDSHAKE_LEAST);
        for (peers, newcomer, after, expected) in [
            // Young ones of a peer with many places, for others, and not for itself.
            (&[(A, 16)][..], B, soon, Some((0, OfBusiest))),
            (&[(A, 16)], A, soon, None),
            (&[(A, 16)], A, late, Some((0, Oldest))),
            (&[(B, 1), (A, 15)], B, soon, Some((1, OfBusiest))),
            (&[(B, 1), (A, 15)], A, soon, None),
            (&[(B, 1), (A, 15)], A, late, Some((0, Oldest))),
            // Rather than old ones of a peer with few.
            (&[(B, 1), (A, 15)], C, late, Some((1, OfBusiest))),
            // Until both have as many.
            (&[(A, 9), (B, 7)], B, soon, Some((0, OfBusiest))),
            (&[(A, 8), (B, 8)], B, soon, None),
            (&[(A, 8), (B, 8)], C, soon, Some((8, OfBusiest))),
        ] {
            let (mut handshakes, now) = open(16, peers);
            let begun = handshakes.begin(newcomer, now + after, 16);
            let expected = expected.map(|gave_way| (16, Some(gave_way)));
            assert_eq!(begun, expected, "{peers:?} {newcomer:?} {after:?}");
            assert_eq!(handshakes.len(), 16);
        }
        // Nobody has more than a share.
        let peers: Vec<_> = (1..=8).map(|peer| (Peer::V4(peer), 2)).collect();
        let (mut handshakes, now) = open(16, &peers);
        assert_eq!(handshakes.begin(C, now + soon, 16), None);
        assert_eq!(handshakes.begin(C, now + late, 16), Some((16, Some((0, Oldest)))));
        let (mut one, now) = open(1, &[(A, 1)]);
        assert_eq!(one.begin(B, now, 1), None);
    }

    /// Whatever begins and ends, the counts are those of the peers, and nothing is left in the end.
    #[test]
    fn the_counts_are_right() {
        let mut rng = fastrand::Rng::with_seed(17);
        let mut handshakes = OpenHandshakes::new(20);
        let (mut now, mut begun) = (Instant::now(), Vec::new());
        for _ in 0..5_000 {
            now += Duration::from_millis(rng.u64(..100));
            if rng.u8(..3) == 0 && !begun.is_empty() {
                handshakes.end(begun.swap_remove(rng.usize(..begun.len())));
            } else if let Some((number, _)) = handshakes.begin(Peer::V4(rng.u32(..5)), now, ()) {
                begun.push(number);
            }
            assert!(handshakes.len() <= 20);
            let mut counts = BTreeMap::new();
            handshakes.open.values().for_each(|entry| *counts.entry(entry.peer).or_default() += 1);
            let counts: BTreeSet<(usize, Peer)> =
                counts.into_iter().map(|(peer, count)| (count, peer)).collect();
            assert_eq!(handshakes.counts, counts);
        }
        for number in begun {
            handshakes.end(number);
        }
        assert!(handshakes.open.is_empty() && handshakes.by_peer.is_empty());
        assert!(handshakes.counts.is_empty());
    }
}
