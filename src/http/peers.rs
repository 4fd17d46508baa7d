//! Who sends: a bounded table of the busiest peers of one core, for the admin page `/peers`.
//!
//! A request adds a few integers to the [`Tally`] of its connection. The tally is handed over to
//! the core's tables when the connection ends, after each request of a trusted proxy, because the
//! next may be another client's, and whenever the tables are published. They are
//! published only when control asks: it sets a flag on the core's [`PeerBoard`], the core sees it
//! in its once-a-second task, and puts a copy there. Neither side waits for the other.
//!
//! A peer is an IP address; of IPv6 its /64, because one host can have all of it.

mod sketch;

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use arc_swap::ArcSwapOption;

pub use sketch::{ROWS_MAX, Row, Sketch};

use super::peer::Peer;
use super::phase::ConnState;
use super::quotas::{BodyGuess, PeerBucket};
use super::server::Conns;
use crate::metrics::tokens::TokenId;
use crate::rt;

/// What peers are compared by; each has a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Measure {
    Requests,
    Payloads,
    Bytes,
    Refusals,
}

impl Measure {
    pub const ALL: [Measure; 4] =
        [Measure::Requests, Measure::Payloads, Measure::Bytes, Measure::Refusals];
    /// The names in the order of the variants.
    pub const NAMES: [&str; 4] = ["requests", "payloads", "bytes", "refusals"];
}

/// Why requests were refused, by status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum RefusalKind {
    /// 400, 415, 431, 501.
    Malformed,
    /// 401.
    Unauthorized,
    /// 404, 405.
    NotFound,
    /// 408.
    Timeout,
    /// 413.
    TooLarge,
    /// 503.
    Unavailable,
    /// 429.
    Throttled,
}

impl RefusalKind {
    /// The names in the order of the variants.
    pub const NAMES: [&str; 7] = [
        "malformed",
        "unauthorized",
        "not_found",
        "timeout",
        "too_large",
        "unavailable",
        "throttled",
    ];

    /// The kind of an answer with this status; `None` if it is no refusal. 502 and 504 are none:
    /// the payloads were admitted.
    pub fn of(status: u16) -> Option<RefusalKind> {
        match status {
            401 => Some(RefusalKind::Unauthorized),
            404 | 405 => Some(RefusalKind::NotFound),
            408 => Some(RefusalKind::Timeout),
            413 => Some(RefusalKind::TooLarge),
            429 => Some(RefusalKind::Throttled),
            503 => Some(RefusalKind::Unavailable),
            400..=499 | 501 => Some(RefusalKind::Malformed),
            _ => None,
        }
    }
}

/// Most tokens that are remembered of one peer.
pub const TOKENS_KEPT: usize = 4;

/// The tokens that a peer used most, and for how many requests. A token that finds no room replaces
/// the one that was used least, as in a [`Sketch`], and inherits its number.
#[derive(Clone, Copy, Debug, Default)]
pub struct TopTokens {
    kept: [Option<(TokenId, u32)>; TOKENS_KEPT],
}

impl TopTokens {
    /// Adds `requests` with `token`.
    pub fn add(&mut self, token: TokenId, requests: u32) {
        let has = |kept: &&mut Option<(TokenId, u32)>| kept.is_some_and(|(of, _)| of == token);
        if let Some(Some((_, count))) = self.kept.iter_mut().find(has) {
            *count = count.saturating_add(requests);
            return;
        }
        let count = |kept: &&mut Option<(TokenId, u32)>| kept.map_or(0, |(_, count)| count);
        let least = self.kept.iter_mut().min_by_key(count).expect("TOKENS_KEPT is not 0");
        let inherited = least.map_or(0, |(_, count)| count);
        *least = Some((token, inherited.saturating_add(requests)));
    }

    /// Adds the tokens of `other`.
    pub fn merge(&mut self, other: &TopTokens) {
        for (token, requests) in other.kept.iter().flatten() {
            self.add(*token, *requests);
        }
    }

    /// The tokens, most used first.
    pub fn most_used(&self) -> Vec<TokenId> {
        let mut kept: Vec<_> = self.kept.iter().flatten().collect();
        kept.sort_by_key(|(_, count)| Reverse(*count));
        kept.into_iter().map(|(token, _)| *token).collect()
    }
}

/// What a peer has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// Requests answered, and heads that were refused.
    pub requests: u64,
    /// Payloads admitted.
    pub payloads: u64,
    /// Bytes received, heads and refused bodies included.
    pub bytes: u64,
    /// By [`RefusalKind`].
    pub refusals: [u64; RefusalKind::NAMES.len()],
    pub tokens: TopTokens,
    /// The end of the last request.
    pub last: Option<Instant>,
}

impl Activity {
    /// The total of one measure.
    pub fn of(&self, measure: Measure) -> u64 {
        match measure {
            Measure::Requests => self.requests,
            Measure::Payloads => self.payloads,
            Measure::Bytes => self.bytes,
            Measure::Refusals => self.refusals.iter().sum(),
        }
    }

    /// Adds the same peer's `other`.
    pub fn add(&mut self, other: &Activity) {
        self.requests += other.requests;
        self.payloads += other.payloads;
        self.bytes += other.bytes;
        for (sum, more) in self.refusals.iter_mut().zip(other.refusals) {
            *sum += more;
        }
        self.tokens.merge(&other.tokens);
        self.last = self.last.max(other.last);
    }
}

/// What a connection has received, and what it has done since it was last handed over to the core's
/// tables.
#[derive(Default)]
pub struct Tally {
    received: Cell<u64>,
    activity: RefCell<Activity>,
    /// Of `received`, what was handed over.
    handed_over: Cell<u64>,
    pub(super) remembered: Remembered,
}

/// What is remembered from one request of a client to its next one.
#[derive(Default)]
pub(super) struct Remembered {
    /// The bucket of its peer, if that has a quota.
    pub(super) quota: Cell<Option<PeerBucket>>,
    /// How long its bodies are that do not say it.
    pub(super) guess: Cell<Option<BodyGuess>>,
}

impl Tally {
    /// Bytes read from the socket.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// Adds bytes read from the socket.
    pub fn received_more(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    /// Counts `bytes` that were received as received by `other`.
    pub(super) fn cede(&self, bytes: usize, other: &Tally) {
        self.handed_over.set(self.handed_over.get() + bytes as u64);
        other.received_more(bytes);
    }

    /// Adds a request that ended at `now` with `status`, `payloads` of which were admitted, sent
    /// with `token`.
    pub fn request(&self, now: Instant, status: u16, payloads: usize, token: TokenId) {
        let mut activity = self.activity.borrow_mut();
        activity.requests += 1;
        activity.payloads += payloads as u64;
        if let Some(kind) = RefusalKind::of(status) {
            activity.refusals[kind as usize] += 1;
        }
        if token != TokenId::NONE {
            activity.tokens.add(token, 1);
        }
        activity.last = Some(now);
    }

    /// What is new since the last call, if anything.
    fn take(&self) -> Option<Activity> {
        let mut activity = self.activity.take();
        // What was ceded may be more than what came since.
        let before = self.handed_over.replace(self.received.get());
        activity.bytes = self.received.get().saturating_sub(before);
        let is_new = activity.requests > 0 || activity.bytes > 0;
        is_new.then_some(activity)
    }
}

/// The tables of one core.
pub struct PeerTables(RefCell<[Sketch; Measure::ALL.len()]>);

impl Default for PeerTables {
    fn default() -> PeerTables {
        PeerTables(RefCell::new(Measure::ALL.map(Sketch::new)))
    }
}

impl PeerTables {
    /// Adds what a connection has done since the last call.
    pub(super) fn hand_over(&self, state: &ConnState) {
        if let Some(activity) = state.tally.take() {
            self.add(state.peer(), &activity);
        }
    }

    fn add(&self, peer: Peer, activity: &Activity) {
        for sketch in self.0.borrow_mut().iter_mut() {
            sketch.add(peer, activity);
        }
    }

    fn copies(&self) -> [TableCopy; Measure::ALL.len()] {
        let sketches = self.0.borrow();
        sketches.each_ref().map(|of| TableCopy { rows: of.rows().to_vec(), least: of.least() })
    }
}

/// A copy of the table of one measure.
pub struct TableCopy {
    pub rows: Vec<Row>,
    /// [`Sketch::least`].
    pub least: u64,
}

/// A copy of a core's tables.
pub struct PeersSnapshot {
    pub taken: Instant,
    /// By [`Measure`].
    pub tables: [TableCopy; Measure::ALL.len()],
    /// The peers with the most open connections, at most [`ROWS_MAX`], exact; most first.
    pub connections: Vec<(Peer, u32)>,
}

/// Where one core publishes its tables for control.
#[derive(Default)]
pub struct PeerBoard {
    asked: AtomicBool,
    snapshot: ArcSwapOption<PeersSnapshot>,
}

impl PeerBoard {
    /// Asks the core for a new snapshot.
    pub fn ask(&self) {
        self.asked.store(true, Relaxed);
    }

    /// The last snapshot.
    pub fn latest(&self) -> Option<Arc<PeersSnapshot>> {
        self.snapshot.load_full()
    }

    /// To be called once a second by the core: publishes its tables if control has asked.
    pub async fn publish_if_asked(&self, conns: &Conns) {
        if !self.asked.load(Relaxed) {
            return;
        }
        // Before the tables are read, so that what is asked meanwhile is answered next time.
        self.asked.store(false, Relaxed);
        let mut open: HashMap<Peer, u32> = HashMap::new();
        for numbers in conns.numbers().chunks(CONNECTIONS_AT_ONCE) {
            conns.hand_over(numbers, |peer| *open.entry(peer).or_default() += 1);
            rt::yield_now().await;
        }
        let connections = most(open.into_iter().collect());
        let (tables, taken) = (conns.peers.copies(), rt::now());
        self.snapshot.store(Some(Arc::new(PeersSnapshot { taken, tables, connections })));
    }
}

/// The [`ROWS_MAX`] peers with the most connections, most first. Only these are sorted, because
/// there can be as many peers as connections.
fn most(mut peers: Vec<(Peer, u32)>) -> Vec<(Peer, u32)> {
    let order = |(peer, count): &(Peer, u32)| (Reverse(*count), *peer);
    if peers.len() > ROWS_MAX {
        peers.select_nth_unstable_by_key(ROWS_MAX, order);
        peers.truncate(ROWS_MAX);
    }
    peers.sort_unstable_by_key(order);
    peers
}

/// Connections that are handed over between two yields, so that no client waits for all of them.
const CONNECTIONS_AT_ONCE: usize = 256;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An activity of `requests` and nothing else.
    pub(crate) fn of_requests(requests: u64) -> Activity {
        Activity { requests, ..Activity::default() }
    }

    /// `MILLRACE_TEST_SEED`, or a random seed; printed.
    pub(crate) fn seed() -> u64 {
        let seed = std::env::var("MILLRACE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("MILLRACE_TEST_SEED={seed}");
        seed
    }

    /// A random stream of activities, of few peers that send much and many that send little.
    pub(crate) struct Stream {
        peers: u32,
        /// How much more likely low numbers are.
        skew: f64,
    }

    impl Stream {
        pub(crate) fn new(random: &mut fastrand::Rng) -> Stream {
            Stream { peers: random.u32(200..4_000), skew: 1.0 + 7.0 * random.f64() }
        }

        pub(crate) fn next(&mut self, random: &mut fastrand::Rng) -> (Peer, Activity) {
            let number = (f64::from(self.peers) * random.f64().powf(self.skew)) as u32;
            let peer =
                if number.is_multiple_of(3) { Peer::V6(number.into()) } else { Peer::V4(number) };
            let mut activity = of_requests(random.u64(0..4));
            activity.payloads = random.u64(0..1_000);
            activity.bytes = 1 << random.u32(0..30);
            activity.refusals[random.usize(0..6)] = random.u64(0..2);
            (peer, activity)
        }
    }

    #[test]
    fn every_status_that_refuses_has_a_kind() {
        for status in crate::metrics::STATUSES {
            let expected = match status {
                0 | 200 | 502 | 504 => None,
                400 | 415 | 431 | 501 => Some("malformed"),
                401 => Some("unauthorized"),
                404 | 405 => Some("not_found"),
                408 => Some("timeout"),
                413 => Some("too_large"),
                429 => Some("throttled"),
                503 => Some("unavailable"),
                _ => panic!("{status} needs a kind or is none"),
            };
            let kind = RefusalKind::of(status).map(|kind| RefusalKind::NAMES[kind as usize]);
            assert_eq!(kind, expected, "{status}");
        }
    }

    #[test]
    fn a_tally_gives_each_thing_once() {
        let tally = Tally::default();
        assert!(tally.take().is_none());
        tally.received_more(500);
        let now = rt::now();
        tally.request(now, 200, 10, TokenId::of_name(3));
        tally.request(now, 503, 0, TokenId::NONE);
        let activity = tally.take().unwrap();
        assert_eq!(Measure::ALL.map(|measure| activity.of(measure)), [2, 10, 500, 1]);
        assert_eq!(activity.refusals[RefusalKind::Unavailable as usize], 1);
        assert_eq!(activity.tokens.most_used(), [TokenId::of_name(3)]);
        assert!(tally.take().is_none());
        tally.received_more(1);
        let activity = tally.take().unwrap();
        assert_eq!(Measure::ALL.map(|measure| activity.of(measure)), [0, 0, 1, 0]);
        assert_eq!(tally.received(), 501);
    }

    #[test]
    fn the_peers_with_most_connections_are_chosen_exactly() {
        let mut random = fastrand::Rng::with_seed(seed());
        for peers in [0, 1, ROWS_MAX, ROWS_MAX + 1, 5_000] {
            let open: Vec<_> =
                (0..peers as u32).map(|n| (Peer::V4(n), random.u32(1..2_000))).collect();
            let mut sorted = open.clone();
            sorted.sort_by_key(|(peer, count)| (Reverse(*count), *peer));
            sorted.truncate(ROWS_MAX);
            assert_eq!(most(open), sorted);
        }
    }

    #[test]
    fn the_most_used_tokens_stay() {
        let mut tokens = TopTokens::default();
        for (token, requests) in [(1, 50), (2, 40), (3, 30), (4, 1), (5, 1), (6, 1), (1, 1)] {
            tokens.add(TokenId::of_name(token), requests);
        }
        assert_eq!(tokens.most_used(), [1, 2, 3, 6].map(TokenId::of_name));
        let mut other = TopTokens::default();
        other.add(TokenId::of_name(2), 90);
        other.merge(&tokens);
        assert_eq!(other.most_used()[..2], [2, 1].map(TokenId::of_name));
    }
}
