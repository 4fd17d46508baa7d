//! Judges requests by quotas: that of their token's name, and that of their peer.
//!
//! `rate` counts requests, `bytes` the bytes of their bodies after decompression. Both are judged
//! with the head; a quota of a token in the envelope once the body is parsed. A request passes if
//! its buckets have a request and at least one byte. It is then charged for the body that is
//! announced, so that a hundred connections do not share the last byte, or for what its connection
//! has sent before if its length says little; when the body is known, the charge is set right. So a
//! body may be larger than what is left, and than the burst: the rest is debt.
//!
//! A refusal says when to come back in `retry-after`, and what the quotas are in `RateLimit-Policy`
//! and `RateLimit`: draft-ietf-httpapi-ratelimit-headers-11, "RateLimit header fields for HTTP",
//! sections 3 and 4, and in its body the extension member `violated-policies` of its problem type
//! `quota-exceeded`. Other answers do not have these fields: the draft asks for none, and making
//! them would cost a throttled client's requests more than judging them does.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use super::peer::Peer;
use super::phase::ConnState;
use super::tokens::TokenQuota;
use crate::config::Config;
use crate::metrics::{CoreCells, QuotaKind};
use crate::quota::board::Board;
use crate::quota::keeper::Keeper;
use crate::quota::table::{Exhausted, QuotaTable, QuotaVerdict, SlotId, slots, table_bytes};
use crate::quota::{Limit, Quota, Unit};
use crate::rt;

/// Peers with a bucket of their own, per core.
pub const CLIENT_BUCKETS: usize = 16_384;

/// Token names, and tokens without one, with a bucket of their own, per core.
pub const TOKEN_BUCKETS: usize = 32_768;

/// Longest body that is read and dropped after a refusal, so that its connection can be used
/// again: a new one, perhaps with TLS, costs both sides more.
pub const DROPPED_BODY_MAX: u64 = 64 << 10;

/// The part of a burst that is charged at most for a body whose length is a guess.
const GUESS_PART: u64 = 16;

/// No body is longer: places in it have 32 bits.
const ANNOUNCED_MAX: u64 = u32::MAX as u64;

/// How long a request waits for tokens that other cores have: control needs two ticks to move
/// them.
const WAIT_MAX: Duration = Duration::from_millis(400);

/// How often it looks.
const WAIT_POLL: Duration = Duration::from_millis(10);

/// Most seconds that are added to `retry-after` at random so that those that were refused together
/// do not all come back together.
const SPREAD_MAX_S: u64 = 29;

/// The buckets of all cores, for cores and control.
#[derive(Clone)]
pub struct SharedQuotas {
    clients: Option<(Quota, Arc<Board>)>,
    tokens: Option<Arc<Board>>,
    /// The key of the hash of a peer.
    keys: RandomState,
}

impl SharedQuotas {
    /// What this configuration needs; `None`: nothing can have a quota. Any tokens file may get
    /// one.
    pub fn new(config: &Config, now: Instant) -> Option<SharedQuotas> {
        let cores = config.cores.len();
        let board = |buckets| Arc::new(Board::new(cores, slots(buckets), now));
        let quota = config.client_quota;
        let clients = quota.is_some().then(|| (quota, board(CLIENT_BUCKETS)));
        let tokens = config.tokens_file.is_some().then(|| board(TOKEN_BUCKETS));
        let any = clients.is_some() || tokens.is_some();
        any.then(|| SharedQuotas { clients, tokens, keys: RandomState::new() })
    }

    /// Control's side.
    pub fn keepers(&self) -> Vec<Keeper> {
        let clients = self.clients.iter().map(|(_, board)| board);
        clients.chain(&self.tokens).map(|board| Keeper::new(board.clone())).collect()
    }
}

/// Most memory of one core's tables.
pub fn quota_bytes(config: &Config) -> usize {
    let clients = if config.client_quota.is_some() { table_bytes(CLIENT_BUCKETS) } else { 0 };
    let tokens = if config.tokens_file.is_some() { table_bytes(TOKEN_BUCKETS) } else { 0 };
    clients + tokens
}

/// Judges the requests of one core.
pub struct QuotaGate {
    clients: Option<ClientQuota>,
    tokens: Option<QuotaTable>,
    cells: &'static CoreCells,
}

/// `CLIENT_RATE`, `CLIENT_BYTES` and `CLIENT_BURST`.
struct ClientQuota {
    quota: Quota,
    table: QuotaTable,
    keys: RandomState,
}

/// The bucket of a connection's peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerBucket {
    peer: Peer,
    slot: SlotId,
}

/// Bytes of the bodies of a connection whose lengths were not known from their heads, on average of
/// the latest.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyGuess {
    /// Whose they were.
    peer: Peer,
    bytes: i64,
}

impl BodyGuess {
    /// What has come from the current request's peer on this connection.
    fn of(state: &ConnState) -> i64 {
        let guess = state.remembered().guess.get().filter(|guess| guess.peer == state.peer());
        guess.map_or(0, |guess| guess.bytes)
    }

    /// A body of this many bytes has come.
    fn learn(state: &ConnState, bytes: i64) {
        let bytes = (7 * BodyGuess::of(state) + bytes) / 8;
        state.remembered().guess.set(Some(BodyGuess { peer: state.peer(), bytes }));
    }
}

/// What a request's head says about its body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Announced {
    /// `None`: it is chunked.
    pub(super) length: Option<u64>,
    pub(super) is_compressed: bool,
}

/// The judgement of a request's head.
pub(super) enum Judged<'a> {
    Passed(Spending<'a>),
    /// There are tokens on other cores.
    Waits(Box<WaitingBuckets<'a>>),
    Refused(Box<Throttled>),
}

/// The buckets of one request.
pub(super) struct Buckets<'a> {
    gate: &'a QuotaGate,
    state: &'a ConnState,
    client: Option<SlotId>,
    token: Option<SlotId>,
    /// The bytes that it is charged for at first.
    expected: i64,
    /// Whether its length is a guess.
    is_guess: bool,
}

/// The buckets of a request that waits for tokens.
pub(super) struct WaitingBuckets<'a> {
    buckets: Buckets<'a>,
    token: Option<TokenQuota>,
}

/// A request that has passed. Until the body is known it is charged for what is expected; if the
/// body does not arrive, for what has arrived.
pub(super) struct Spending<'a> {
    buckets: Buckets<'a>,
    is_final: bool,
}

impl QuotaGate {
    /// The gate of the core with this index.
    pub fn new(shared: &SharedQuotas, core: usize, cells: &'static CoreCells) -> QuotaGate {
        let clients = shared.clients.as_ref().map(|(quota, board)| ClientQuota {
            quota: *quota,
            table: QuotaTable::new(board.clone(), core, CLIENT_BUCKETS),
            keys: shared.keys.clone(),
        });
        let tokens = shared.tokens.as_ref();
        let tokens = tokens.map(|board| QuotaTable::new(board.clone(), core, TOKEN_BUCKETS));
        for (kind, has) in [(0, clients.is_some()), (1, tokens.is_some())] {
            let most = [CLIENT_BUCKETS, TOKEN_BUCKETS][kind];
            cells.quota_buckets_max[kind].set(if has { most as u64 } else { 0 });
        }
        QuotaGate { clients, tokens, cells }
    }

    /// Judges a request whose head was accepted, and charges it. `None`: it has no quota.
    #[inline]
    pub(super) fn judge<'a>(
        &'a self,
        state: &'a ConnState,
        token: Option<&TokenQuota>,
        body: Announced,
        now: Instant,
    ) -> Option<Judged<'a>> {
        let client = self.clients.as_ref().map(|clients| clients.bucket(state));
        let token_slot = match (token, &self.tokens) {
            (Some(of), Some(table)) => Some(table.find(of.key, &of.quota, of.version)),
            _ => None,
        };
        if client.is_none() && token_slot.is_none() {
            return None;
        }
        let is_guess = body.is_compressed || body.length.is_none();
        let length = body.length.unwrap_or(0).min(ANNOUNCED_MAX) as i64;
        let expected = match is_guess {
            true => length.max(BodyGuess::of(state).min(self.guess_max(token))),
            false => length,
        };
        let buckets = Buckets { gate: self, state, client, token: token_slot, expected, is_guess };
        buckets.each(|table, id| table.want(id));
        Some(match buckets.verdict(now) {
            QuotaVerdict::Pass => Judged::Passed(buckets.spend()),
            QuotaVerdict::Wait => {
                Judged::Waits(Box::new(WaitingBuckets { buckets, token: token.copied() }))
            }
            QuotaVerdict::Refuse(_) => Judged::Refused(buckets.refuse(now)),
        })
    }

    /// The most that is charged for a guess: a part of each burst, so that what a connection has
    /// sent before does not use up what others of the same bucket may send.
    fn guess_max(&self, token: Option<&TokenQuota>) -> i64 {
        let client = self.clients.as_ref().map(|clients| &clients.quota);
        let quotas = [client, token.map(|of| &of.quota)];
        let bursts = quotas.into_iter().flatten().filter_map(|of| Some(of.bytes?.burst));
        bursts.min().map_or(0, |burst| (burst / GUESS_PART).min(ANNOUNCED_MAX) as i64)
    }

    /// Judges the quota of an envelope's token, with `bytes` bytes of body, and charges it. `None`:
    /// there are tokens on other cores, and `may_wait` is set.
    pub(super) fn judge_envelope(
        &self,
        of: &TokenQuota,
        bytes: usize,
        may_wait: bool,
        now: Instant,
    ) -> Option<Result<(), Box<Throttled>>> {
        let Some(table) = &self.tokens else { return Some(Ok(())) };
        let id = table.find(of.key, &of.quota, of.version);
        table.want(id);
        match table.judge(id, now) {
            QuotaVerdict::Wait if may_wait => return None,
            QuotaVerdict::Refuse(_) => return Some(Err(self.refuse_token(table, id, now))),
            // A large body is not parsed twice for it: a token that is elsewhere is owed.
            QuotaVerdict::Pass | QuotaVerdict::Wait => table.spend(id, bytes as i64),
        }
        Some(Ok(()))
    }

    /// Waits up to [`WAIT_MAX`] for tokens for an envelope that [`QuotaGate::judge_envelope`] has
    /// judged, and charges it.
    pub(super) async fn wait_envelope(
        &self,
        of: &TokenQuota,
        bytes: usize,
    ) -> Result<(), Box<Throttled>> {
        let Some(table) = &self.tokens else { return Ok(()) };
        let mut id = table.find(of.key, &of.quota, of.version);
        let began = rt::now();
        loop {
            rt::sleep(WAIT_POLL).await;
            if !table.is_current(id) {
                id = table.find(of.key, &of.quota, of.version);
                table.want(id);
            }
            let now = rt::now();
            if table.judge(id, now) == QuotaVerdict::Pass {
                table.spend(id, bytes as i64);
                return Ok(());
            }
            let is_late = now.saturating_duration_since(began) >= WAIT_MAX;
            if is_late || !table.may_still_wait(id) {
                return Err(self.refuse_token(table, id, now));
            }
        }
    }

    #[cold]
    fn refuse_token(&self, table: &QuotaTable, id: SlotId, now: Instant) -> Box<Throttled> {
        Box::new(Throttled::new(self.cells, None, Some(table.refuse(id, now))))
    }

    /// Frees buckets that nobody has asked for in the last minute. To be called every second.
    pub fn sweep(&self) {
        self.tables().for_each(|(_, table)| table.sweep());
    }

    /// Shows how full the tables are. To be called every second.
    pub fn sample(&self) {
        for (kind, table) in self.tables() {
            self.cells.quota_buckets[kind].set(table.buckets_used() as u64);
            self.cells.quota_overflows[kind].set(table.overflowed());
        }
    }

    fn tables(&self) -> impl Iterator<Item = (usize, &QuotaTable)> {
        let clients = self.clients.iter().map(|clients| (0, &clients.table));
        clients.chain(self.tokens.iter().map(|table| (1, table)))
    }
}

impl ClientQuota {
    /// The bucket of this request's peer. The connection remembers the last one.
    #[inline]
    fn bucket(&self, state: &ConnState) -> SlotId {
        let peer = state.peer();
        if let Some(bucket) = state.remembered().quota.get()
            && bucket.peer == peer
            && self.table.is_current(bucket.slot)
        {
            return bucket.slot;
        }
        let slot = self.table.find(self.keys.hash_one(peer), &self.quota, 1);
        state.remembered().quota.set(Some(PeerBucket { peer, slot }));
        slot
    }
}

impl<'a> Buckets<'a> {
    #[inline]
    fn each(&self, mut act: impl FnMut(&QuotaTable, SlotId)) {
        if let (Some(id), Some(clients)) = (self.client, &self.gate.clients) {
            act(&clients.table, id);
        }
        if let (Some(id), Some(table)) = (self.token, &self.gate.tokens) {
            act(table, id);
        }
    }

    /// The worst of both.
    #[inline]
    fn verdict(&self, now: Instant) -> QuotaVerdict {
        let mut worst = QuotaVerdict::Pass;
        self.each(|table, id| match (worst, table.judge(id, now)) {
            (QuotaVerdict::Refuse(_), _) | (_, QuotaVerdict::Pass) => {}
            (_, verdict) => worst = verdict,
        });
        worst
    }

    #[inline]
    fn spend(self) -> Spending<'a> {
        self.each(|table, id| table.open(id, self.expected));
        Spending { buckets: self, is_final: false }
    }

    #[cold]
    fn refuse(&self, now: Instant) -> Box<Throttled> {
        let (mut client, mut token) = (None, None);
        if let (Some(id), Some(clients)) = (self.client, &self.gate.clients) {
            client = Some(clients.table.refuse(id, now));
        }
        if let (Some(id), Some(table)) = (self.token, &self.gate.tokens) {
            token = Some(table.refuse(id, now));
        }
        Box::new(Throttled::new(self.gate.cells, client, token))
    }

    /// Finds slots again that have been given to another key: a bucket that was full and that nobody
    /// else wanted loses its slot also while a request waits.
    fn keep_current(&mut self, token: Option<&TokenQuota>) {
        if let (Some(id), Some(clients)) = (&mut self.client, &self.gate.clients)
            && !clients.table.is_current(*id)
        {
            *id = clients.bucket(self.state);
            clients.table.want(*id);
        }
        if let (Some(id), Some(of), Some(table)) = (&mut self.token, token, &self.gate.tokens)
            && !table.is_current(*id)
        {
            *id = table.find(of.key, &of.quota, of.version);
            table.want(*id);
        }
    }
}

impl<'a> WaitingBuckets<'a> {
    /// Waits up to [`WAIT_MAX`] for tokens.
    pub(super) async fn wait(self) -> Result<Spending<'a>, Box<Throttled>> {
        let WaitingBuckets { mut buckets, token } = self;
        let began = rt::now();
        loop {
            rt::sleep(WAIT_POLL).await;
            buckets.keep_current(token.as_ref());
            let now = rt::now();
            let verdict = buckets.verdict(now);
            if verdict == QuotaVerdict::Pass {
                return Ok(buckets.spend());
            }
            let mut may_wait = now.saturating_duration_since(began) < WAIT_MAX;
            buckets.each(|table, id| may_wait &= table.may_still_wait(id));
            if !may_wait {
                return Err(buckets.refuse(now));
            }
        }
    }
}

impl Spending<'_> {
    /// The body is whole, and has `bytes` bytes once it is decompressed.
    #[inline]
    pub(super) fn charge_final(mut self, bytes: usize) {
        self.is_final = true;
        let bytes = bytes as i64;
        let buckets = &self.buckets;
        if buckets.is_guess {
            BodyGuess::learn(buckets.state, bytes);
        }
        buckets.each(|table, id| table.correct(id, bytes - buckets.expected));
    }
}

impl Drop for Spending<'_> {
    fn drop(&mut self) {
        if !self.is_final {
            let arrived = self.buckets.state.body.received.get() as i64;
            let more = arrived - self.buckets.expected;
            self.buckets.each(|table, id| table.correct(id, more));
        }
    }
}

/// A refusal because of a quota, ready to be sent.
#[derive(Debug)]
pub struct Throttled {
    pub retry_after_s: u64,
    /// The field `RateLimit-Policy`.
    pub policy: String,
    /// The field `RateLimit`.
    pub limit: String,
    /// Which quota, and what to do.
    pub error: String,
    /// The policies of `violated-policies`.
    pub violated: Vec<QuotaKind>,
}

impl Throttled {
    /// Counts the refusal as well.
    fn new(cells: &CoreCells, client: Option<Exhausted>, token: Option<Exhausted>) -> Throttled {
        let throttled = Throttled::of(client, token, rt::random());
        for kind in &throttled.violated {
            cells.quota_refusals[*kind as usize].inc();
        }
        throttled
    }

    /// `random` spreads the return of those that were refused together.
    fn of(client: Option<Exhausted>, token: Option<Exhausted>, random: u64) -> Throttled {
        let mut fields = (Vec::new(), Vec::new());
        let (mut violated, mut reasons) = (Vec::new(), Vec::new());
        let (mut reset_s, mut spread_s) = (0, 0);
        // If nothing is used up, the request has waited in vain for what other cores have; if this
        // core is not without either, control has just brought some. Then all are named.
        let any = |of: fn(&Exhausted) -> [bool; 2]| {
            [token, client].iter().flatten().any(|exhausted| of(exhausted).contains(&true))
        };
        let why: fn(&Exhausted) -> [bool; 2] = match () {
            () if any(|of| of.is_short) => |of| of.is_short,
            () if any(|of| of.is_empty) => |of| of.is_empty,
            () => |_| [true; 2],
        };
        let scopes = [(token, QuotaKind::OF_TOKEN), (client, QuotaKind::OF_CLIENT)];
        for (exhausted, kinds) in
            scopes.iter().filter_map(|(of, kinds)| Some((of.as_ref()?, kinds)))
        {
            for (at, (unit, kind)) in Unit::ALL.into_iter().zip(kinds).enumerate() {
                let Some(limit) = exhausted.quota.of(unit) else { continue };
                let (name, reset) = (kind.name(), exhausted.reset_s[at]);
                let qu = if unit == Unit::Bytes { r#";qu="content-bytes""# } else { "" };
                let Limit { amount, per_s, .. } = limit;
                fields.0.push(format!(r#""{name}";q={amount};w={per_s}{qu}"#));
                // More than the rate brings at once would be understood as the rate itself.
                let is_why = why(exhausted)[at];
                let left = if is_why { 0 } else { exhausted.left[at].min(amount) };
                fields.1.push(format!(r#""{name}";r={left};t={reset}"#));
                if is_why {
                    violated.push(*kind);
                    reasons.push(format!("{} ({})", what(*kind), shown(limit, unit)));
                    reset_s = reset_s.max(reset);
                    spread_s = spread_s.max(exhausted.refused_s.min(SPREAD_MAX_S));
                }
            }
        }
        let retry_after_s = reset_s.max(1) + random % (spread_s + 1);
        let error = format!(
            "the quota for {} is used up, nothing of this request was taken: send it again in {retry_after_s} s, and \
             less in future; the operator sets quotas",
            reasons.join(" and ")
        );
        Throttled {
            retry_after_s,
            policy: fields.0.join(", "),
            limit: fields.1.join(", "),
            error,
            violated,
        }
    }
}

/// What a quota counts, in words.
fn what(kind: QuotaKind) -> &'static str {
    match kind {
        QuotaKind::TokenRequests => "requests with this token",
        QuotaKind::TokenBytes => "bytes with this token",
        QuotaKind::ClientRequests => "requests from this address",
        QuotaKind::ClientBytes => "bytes from this address",
    }
}

fn shown(limit: Limit, unit: Unit) -> String {
    let text = limit.to_string();
    match (unit, text.split_once('/')) {
        (Unit::Bytes, Some((_, time))) => format!("{}/{time}", ByteSize(limit.amount)),
        _ => text,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn exhausted(is_short: [bool; 2], left: [u64; 2], reset_s: [u64; 2]) -> Exhausted {
        let requests = Some(Limit { amount: 1000, per_s: 1, burst: 5000 });
        let bytes = Some(Limit { amount: 60 * MIB, per_s: 60, burst: MIB });
        let quota = Quota { requests, bytes };
        Exhausted { quota, is_short, is_empty: is_short, left, reset_s, refused_s: 0 }
    }

    /// Any refusal.
    pub(in crate::http) fn throttled() -> Throttled {
        Throttled::of(None, Some(exhausted([true, false], [0, MIB], [1, 1])), 0)
    }

    #[test]
    fn fields_and_text_say_which_quota_and_when_to_return() {
        let policy = r#""requests";q=1000;w=1, "bytes";q=62914560;w=60;qu="content-bytes""#;
        let client_policy =
            r#""client-requests";q=1000;w=1, "client-bytes";q=62914560;w=60;qu="content-bytes""#;
        let short = exhausted([true, false], [0, MIB], [1, 1]);
        let in_debt = exhausted([false, true], [4000, 0], [1, 17]);
        let fine = exhausted([false, false], [4000, 70 * MIB], [1, 1]);
        use QuotaKind::{ClientBytes, ClientRequests, TokenBytes, TokenRequests};
        for (client, token, policies, limits, seconds, violated, says) in [
            (
                None,
                Some(short),
                policy.to_owned(),
                r#""requests";r=0;t=1, "bytes";r=1048576;t=1"#,
                1,
                &[TokenRequests][..],
                "requests with this token (1000/s) is used up",
            ),
            (
                Some(in_debt),
                None,
                client_policy.to_owned(),
                r#""client-requests";r=1000;t=1, "client-bytes";r=0;t=17"#,
                17,
                &[ClientBytes],
                "bytes from this address (60.0 MiB/min) is used up",
            ),
            (
                Some(in_debt),
                Some(exhausted([true, true], [0, 0], [1, 9])),
                format!("{policy}, {client_policy}"),
                r#""requests";r=0;t=1, "bytes";r=0;t=9, "client-requests";r=1000;t=1, "client-bytes";r=0;t=17"#,
                17,
                &[TokenRequests, TokenBytes, ClientBytes],
                "again in 17 s",
            ),
            (
                Some(fine),
                None,
                client_policy.to_owned(),
                r#""client-requests";r=0;t=1, "client-bytes";r=0;t=1"#,
                1,
                &[ClientRequests, ClientBytes],
                "again in 1 s",
            ),
            (
                Some(fine),
                Some(Exhausted { is_empty: [true, false], ..fine }),
                format!("{policy}, {client_policy}"),
                r#""requests";r=0;t=1, "bytes";r=62914560;t=1, "client-requests";r=1000;t=1, "client-bytes";r=62914560;t=1"#,
                1,
                &[TokenRequests],
                "requests with this token (1000/s) is used up",
            ),
        ] {
            let throttled = Throttled::of(client, token, 12_345);
            assert_eq!(throttled.policy, policies);
            assert_eq!(throttled.limit, limits);
            assert_eq!(throttled.retry_after_s, seconds, "{limits}");
            assert_eq!(throttled.violated, violated);
            assert!(throttled.error.contains(says), "{}", throttled.error);
        }
    }

    #[test]
    fn those_refused_together_return_spread_and_never_before_the_reset() {
        let many = Exhausted { refused_s: 1_000, ..exhausted([true, false], [0, 0], [3, 1]) };
        let times: std::collections::BTreeSet<u64> = (0..1_000)
            .map(|random| Throttled::of(None, Some(many), random).retry_after_s)
            .collect();
        assert_eq!(times.first(), Some(&3));
        assert_eq!(times.last(), Some(&(3 + SPREAD_MAX_S)));
        assert_eq!(times.len() as u64, SPREAD_MAX_S + 1);
        let few = Exhausted { refused_s: 0, ..many };
        assert!((0..100).all(|random| Throttled::of(None, Some(few), random).retry_after_s == 3));
    }
}
