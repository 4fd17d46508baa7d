//! The counters and gauges of each core, and how a scrape reads them.
//!
//! Every cell has one writer, its core, which updates it by a relaxed load and a relaxed store: no
//! read-modify-write, no shared cache line. The control executor reads the cells without the core's
//! help, so a scrape is answered while a core is stuck, and a dead core's figures outlive its
//! thread.

pub mod process;
mod sampled;
pub mod tokens;
mod turns;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use process::ProcessCollector;
use sampled::SampleCollector;
pub use sampled::{CoreSample, SampledCells};
pub use turns::TurnCells;
use turns::TurnCollector;

/// A number with one writer: a counter, which only grows, or a gauge.
#[derive(Debug, Default)]
pub struct Cell64(AtomicU64);

impl Cell64 {
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }
    pub fn add(&self, n: u64) {
        self.set(self.value() + n);
    }
    pub fn inc(&self) {
        self.add(1);
    }
    /// Lowers a gauge. Panics below zero, which is a broken invariant.
    pub fn sub(&self, n: u64) {
        self.set(self.value().checked_sub(n).expect("a gauge never goes below zero"));
    }
}

/// The statuses of answers to requests; a core counts 503 by reason, as [`Unavailable`]. Any other is
/// counted as the last one, 0 (`other`).
pub const STATUSES: [u16; 15] =
    [200, 400, 401, 404, 405, 408, 413, 415, 429, 431, 501, 502, 503, 504, 0];

/// Upper bounds in microseconds of every latency bucket but the last (`+Inf`).
pub const LATENCY_BOUNDS_US: [u64; 21] = [
    50,
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
];

/// A latency histogram with fixed buckets.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [Cell64; LATENCY_BOUNDS_US.len() + 1],
    sum_us: Cell64,
}

impl Latency {
    pub fn observe(&self, elapsed: Duration) {
        self.observe_all(elapsed, 1);
    }

    /// `count` observations of the same.
    pub fn observe_all(&self, elapsed: Duration, count: u64) {
        let us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX >> 1);
        self.buckets[LATENCY_BOUNDS_US.partition_point(|bound| *bound < us)].add(count);
        self.sum_us.add(us.saturating_mul(count));
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Cell64::value).sum()
    }

    /// The number of observations in each bucket.
    pub fn counts(&self) -> LatencyCounts {
        LatencyCounts(std::array::from_fn(|at| self.buckets[at].value()))
    }
}

/// Observations per bucket of a [`Latency`], at some time or since one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyCounts([u64; LATENCY_BOUNDS_US.len() + 1]);

impl LatencyCounts {
    /// Those that are not in `before`, an earlier count of the same.
    pub fn since(&self, before: &LatencyCounts) -> LatencyCounts {
        LatencyCounts(std::array::from_fn(|at| self.0[at] - before.0[at]))
    }

    /// The bounds of the bucket in which the quantile `q` lies; `None` without observations.
    pub fn quantile(&self, q: f64) -> Option<(Duration, Duration)> {
        let all: u64 = self.0.iter().sum();
        let rank = (all as f64 * q).ceil() as u64;
        let mut seen = 0;
        let at = self.0.iter().position(|count| {
            seen += count;
            seen >= rank.max(1)
        })?;
        let bound = |at: usize| LATENCY_BOUNDS_US.get(at).copied().map(Duration::from_micros);
        let least = at.checked_sub(1).and_then(bound).unwrap_or_default();
        Some((least, bound(at).unwrap_or(Duration::MAX)))
    }
}

/// Upper bounds in bytes of every size bucket but the last (`+Inf`).
pub const SIZE_BOUNDS: [u64; 15] = [
    1 << 10,
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    2 << 20,
    4 << 20,
    8 << 20,
    16 << 20,
    32 << 20,
    64 << 20,
    128 << 20,
    256 << 20,
    1 << 30,
];

/// A histogram of sizes with fixed buckets.
#[derive(Debug, Default)]
pub struct Sizes {
    buckets: [Cell64; SIZE_BOUNDS.len() + 1],
    sum: Cell64,
}

impl Sizes {
    pub fn observe(&self, bytes: u64) {
        self.buckets[SIZE_BOUNDS.partition_point(|bound| *bound < bytes)].inc();
        self.sum.add(bytes);
    }

    /// Sum of all sizes.
    pub fn sum(&self) -> u64 {
        self.sum.value()
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Cell64::value).sum()
    }
}

/// The stage of a core's life; stored in [`CoreCells::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum CoreState {
    Starting = 0,
    /// Ready, but accepting nothing until control says that all cores are ready.
    Ready = 1,
    Serving = 2,
    Draining = 3,
    Stopped = 4,
    /// The thread ended without a stop: a panic outside connections and workers.
    Died = 5,
}

/// Why a batch was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum CloseReason {
    Size,
    RawSize,
    Age,
    /// A `stored` request waits for it.
    Stored,
    Count,
    Memory,
    Partitions,
    Drain,
}

impl CloseReason {
    /// The values of the metric's label, in the order of the variants.
    pub const NAMES: [&str; 8] =
        ["size", "raw_size", "age", "stored", "count", "memory", "partitions", "drain"];
}

/// Why a connection was closed to make room for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum EvictionReason {
    /// It had never begun a request.
    NeverSent,
    /// Of the peer with most connections it had been idle for longest.
    BusiestPeer,
    /// Of all connections it had been idle for longest.
    LongestIdle,
    /// It had been answered for the last time and only waited for its client to close.
    Lingering,
    /// The head of its first request was incomplete.
    FirstHead,
}

impl EvictionReason {
    /// The values of the metric's label, in the order of the variants.
    pub const NAMES: [&str; 5] =
        ["never_sent", "busiest_peer", "longest_idle", "lingering", "first_head"];
}

/// Why a connection to a listener with `proxy=` was closed before its first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ProxyRefusal {
    /// Its peer is in none of the listener's networks.
    Stranger,
    /// It does not begin with a valid PROXY header, or ended within one.
    Malformed,
    /// `HEADER_TIMEOUT` passed before the header was complete.
    Timeout,
}

impl ProxyRefusal {
    /// The values of the metric's label, in the order of the variants.
    pub const NAMES: [&str; 3] = ["stranger", "malformed", "timeout"];
}

/// A complete TLS handshake: its version, and whether it continues an earlier session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum HandshakeKind {
    Tls13,
    Tls13Resumed,
    Tls12,
    Tls12Resumed,
}

impl HandshakeKind {
    /// The values of the metric's labels `version` and `resumed`, in the order of the variants.
    pub const NAMES: [(&str, &str); 4] =
        [("1.3", "no"), ("1.3", "yes"), ("1.2", "no"), ("1.2", "yes")];
}

/// Why a connection to an address with TLS was closed before its first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum TlsRefusal {
    /// It began with a request over plain HTTP.
    PlainHttp,
    /// It began with something else that is not TLS.
    NotTls,
    /// The client closed it within the handshake.
    Closed,
    /// `TLS_HANDSHAKE_TIMEOUT` passed.
    Timeout,
    /// Client and server support nothing in common.
    Incompatible,
    /// The client has refused the server's certificate, or ended the handshake for another reason.
    CertificateRefused,
    /// The client's certificate is missing or not accepted.
    ClientCertificate,
    /// The client has broken the protocol.
    Malformed,
    /// `TLS_HANDSHAKES` were in progress.
    Busy,
    /// Likewise, and it was the oldest of them.
    GaveWay,
}

impl TlsRefusal {
    /// The values of the metric's label, in the order of the variants.
    pub const NAMES: [&str; 10] = [
        "plain_http",
        "not_tls",
        "closed",
        "timeout",
        "incompatible",
        "refused_by_client",
        "client_certificate",
        "malformed",
        "busy",
        "gave_way",
    ];
}

/// Why an HTTP/2 connection was closed before its client wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum H2Closed {
    /// `H2_CONNECTIONS` were open.
    Full,
    /// Too many requests were reset, by the client or for what it did.
    Resets,
    /// Too many frames that are no part of a request.
    Frames,
    /// A head was not complete within `HEADER_TIMEOUT`.
    HeadTimeout,
    /// The client broke the protocol.
    Protocol,
}

impl H2Closed {
    /// The values of the metric's label, in the order of the variants.
    pub const NAMES: [&str; 5] = ["full", "resets", "frames", "header_timeout", "protocol"];
}

/// Why the headers of a trusted proxy may not lead to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ForwardedFlaw {
    /// An element cannot be read.
    Malformed,
    /// `forwarded` and `x-forwarded-for` lead to different addresses.
    Conflict,
    /// The chain of proxies is too long.
    TooManyHops,
}

impl ForwardedFlaw {
    /// The values of the metric's label, in the order of the variants.
    pub const NAMES: [&str; 3] = ["malformed", "conflict", "too_many_hops"];
}

/// Why a request was refused with 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Unavailable {
    /// No room in the queue: `MAX_QUEUE` or `MAX_QUEUE_BYTES`.
    QueueFull,
    /// `MAX_BODY_BYTES` is used up.
    BodyMemory,
    /// Other large bodies kept the core busy for too long.
    LargeBodies,
    /// `SPOOL_MAX` is used up.
    SpoolFull,
    /// `SPOOL_PENDING` is used up.
    SpoolPending,
    /// The spool cannot be written.
    SpoolFailing,
    /// The queue is closed.
    Stopping,
}

impl Unavailable {
    pub const ALL: [Unavailable; 7] = [
        Unavailable::QueueFull,
        Unavailable::BodyMemory,
        Unavailable::LargeBodies,
        Unavailable::SpoolFull,
        Unavailable::SpoolPending,
        Unavailable::SpoolFailing,
        Unavailable::Stopping,
    ];

    /// The value of the metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Unavailable::QueueFull => "queue_full",
            Unavailable::BodyMemory => "body_memory",
            Unavailable::LargeBodies => "large_bodies",
            Unavailable::SpoolFull => "spool_full",
            Unavailable::SpoolPending => "spool_pending",
            Unavailable::SpoolFailing => "spool_failing",
            Unavailable::Stopping => "stopping",
        }
    }
}

/// Which quota a request was refused by with 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum QuotaKind {
    /// `rate` of a tokens file.
    TokenRequests,
    /// `bytes` of a tokens file.
    TokenBytes,
    /// `CLIENT_RATE`.
    ClientRequests,
    /// `CLIENT_BYTES`.
    ClientBytes,
}

impl QuotaKind {
    pub const OF_TOKEN: [QuotaKind; 2] = [QuotaKind::TokenRequests, QuotaKind::TokenBytes];
    pub const OF_CLIENT: [QuotaKind; 2] = [QuotaKind::ClientRequests, QuotaKind::ClientBytes];

    /// The values of the metric's label, in the order of the variants; also the names of the
    /// policies that an answer states.
    pub const NAMES: [&str; 4] = ["requests", "bytes", "client-requests", "client-bytes"];

    pub fn name(self) -> &'static str {
        QuotaKind::NAMES[self as usize]
    }
}

/// The values of the label of [`CoreCells::put_errors`], in the order of the classes of a failed PUT
/// (`store::Class`).
pub const PUT_ERROR_CLASSES: [&str; 3] = ["object", "transient", "store_wide"];

/// One core's cells, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CoreCells {
    pub state: Cell64,
    /// Counted up every second while the core serves, and not exposed: whether it runs at all.
    pub samples: Cell64,
    pub requests: [Cell64; STATUSES.len()],
    /// Requests refused with 503, by [`Unavailable`].
    pub unavailable: [Cell64; Unavailable::ALL.len()],
    /// Requests refused with 429, by [`QuotaKind`]; one can be refused by several.
    pub quota_refusals: [Cell64; QuotaKind::NAMES.len()],
    /// Buckets in use: of peers, and of tokens.
    pub quota_buckets: [Cell64; 2],
    /// Set once: how many there can be.
    pub quota_buckets_max: [Cell64; 2],
    /// Requests that found no bucket of their own, of peers, and of tokens.
    pub quota_overflows: [Cell64; 2],
    /// Health checks answered on the ingest port; they are not in `requests`, nor are preflights.
    pub health_checks: Cell64,
    /// Preflights of listed origins, …
    pub preflights: Cell64,
    /// … and of others.
    pub preflights_refused: Cell64,
    pub payloads_accepted: Cell64,
    pub bytes_accepted: Cell64,
    pub payloads_stored: Cell64,
    pub bytes_stored: Cell64,
    /// Objects that the store confirmed: single payloads or batches.
    pub objects_stored: Cell64,
    /// Bytes of those objects, as stored.
    pub object_bytes_stored: Cell64,
    pub put_retries: Cell64,
    /// Failed PUTs, by [`PUT_ERROR_CLASSES`].
    pub put_errors: [Cell64; PUT_ERROR_CLASSES.len()],
    /// Payloads whose first PUT failed, however many PUTs followed.
    pub payloads_retried: Cell64,
    pub bytes_retried: Cell64,
    pub payloads_dead_lettered: Cell64,
    pub bytes_dead_lettered: Cell64,
    /// Payloads that a stop dead-lettered; they decide the exit status.
    pub dead_lettered_at_stop: Cell64,
    /// Payloads in dead letters of a stop whose sync is still running: they survive this process,
    /// but not yet a crash of the host.
    pub unsynced_at_stop: Cell64,
    pub payloads_lost: Cell64,
    pub bytes_lost: Cell64,
    pub connections_accepted: Cell64,
    pub accept_errors: Cell64,
    pub conn_panics: Cell64,
    pub worker_panics: Cell64,
    pub connections: Cell64,
    /// Set once: `MAX_CONNECTIONS`, or as many as there are file descriptors for.
    pub connections_max: Cell64,
    /// Connections accepted while all of `connections_max` were open.
    pub connections_at_limit: Cell64,
    /// Connections closed to make room, by [`EvictionReason`].
    pub connections_evicted: [Cell64; EvictionReason::NAMES.len()],
    /// Connections to listeners with `proxy=` that were closed, by [`ProxyRefusal`].
    pub proxy_refusals: [Cell64; ProxyRefusal::NAMES.len()],
    /// Complete TLS handshakes, by [`HandshakeKind`].
    pub tls_handshakes: [Cell64; HandshakeKind::NAMES.len()],
    /// TLS handshakes in progress.
    pub tls_handshakes_open: Cell64,
    /// Set once: `TLS_HANDSHAKES`, or 0 if no address has TLS.
    pub tls_handshakes_max: Cell64,
    /// Connections to addresses with TLS that were closed before their first request, by
    /// [`TlsRefusal`].
    pub tls_refusals: [Cell64; TlsRefusal::NAMES.len()],
    /// TLS handshakes that were begun on addresses without TLS.
    pub tls_on_plain: Cell64,
    /// Open HTTP/2 connections.
    pub h2_connections: Cell64,
    /// Set once: `H2_CONNECTIONS`, or 0 if no address speaks HTTP/2.
    pub h2_connections_max: Cell64,
    pub h2_connections_begun: Cell64,
    /// Requests in progress on HTTP/2 connections.
    pub h2_requests: Cell64,
    /// HTTP/2 connections that were closed, by [`H2Closed`].
    pub h2_closed: [Cell64; H2Closed::NAMES.len()],
    /// TLS handshakes that offered HTTP/1.1 only, because `h2_connections_max` were open.
    pub h2_not_offered: Cell64,
    /// Streams that clients have reset.
    pub h2_resets: Cell64,
    /// Answers that were dropped because their client left no room for them.
    pub h2_answers_unread: Cell64,
    /// Requests of trusted proxies whose client is in doubt, by [`ForwardedFlaw`].
    pub forwarded_flaws: [Cell64; ForwardedFlaw::NAMES.len()],
    /// 1 while an accepted connection waits because no other can be closed for it.
    pub connections_waiting: Cell64,
    /// 1 if a connection was accepted at the limit in the last second.
    pub connections_full: Cell64,
    pub body_bytes: Cell64,
    /// Set once: `MAX_BODY_BYTES`.
    pub body_bytes_max: Cell64,
    /// Bytes of large bodies that have arrived and wait in the kernel for their turn.
    pub body_kernel_bytes: Cell64,
    /// Stalled bodies answered 408 because others needed their memory.
    pub bodies_evicted: Cell64,
    /// Bodies answered 408 because they were slower than `BODY_RATE_MIN`.
    pub bodies_too_slow: Cell64,
    /// Requests answered 503 because there was no memory for their bodies.
    pub body_memory_refusals: Cell64,
    /// 1 if a body was evicted or refused in the last second.
    pub body_memory_full: Cell64,
    pub queue_depth: Cell64,
    pub queue_bytes: Cell64,
    /// Set once: `MAX_QUEUE`.
    pub queue_depth_max: Cell64,
    /// Set once: `MAX_QUEUE_BYTES`.
    pub queue_bytes_max: Cell64,
    /// 1 if a request found no room a moment ago.
    pub queue_full: Cell64,
    pub large_body_waiters: Cell64,
    pub room_waiters: Cell64,
    pub ack_waiters: Cell64,
    pub workers_busy: Cell64,
    /// Set once: `MAX_WORKERS`.
    pub workers_max: Cell64,
    pub puts_in_flight: Cell64,
    /// Limit of PUTs in flight, between 1 and `MAX_WORKERS`.
    pub puts_limit: Cell64,
    /// Objects that have failed and wait for their retry.
    pub puts_awaiting_retry: Cell64,
    pub batches_open: Cell64,
    /// Set once: `MAX_PARTITIONS`, or 0 without batches.
    pub batches_open_max: Cell64,
    /// Memory of all batches that are not stored yet.
    pub batch_bytes: Cell64,
    /// Set once: `BATCH_MEMORY`, or 0 without batches.
    pub batch_bytes_max: Cell64,
    /// Closed batches by [`CloseReason`].
    pub batches_closed: [Cell64; CloseReason::NAMES.len()],
    /// Sizes of closed batches before compression.
    pub batch_raw_bytes: Sizes,
    /// Sizes of closed batches as stored.
    pub batch_stored_bytes: Sizes,
    /// Payloads whose event time is missing or not a time.
    pub event_times_unreadable: Cell64,
    /// Bytes of requests that wait for the spool's disk.
    pub spool_pending_bytes: Cell64,
    /// Set once: `SPOOL_PENDING`, or 0 without a spool.
    pub spool_pending_bytes_max: Cell64,
    /// Payloads in the spool that are neither stored nor dead-lettered, in the queue or on disk
    /// only.
    pub spool_payloads: Cell64,
    /// Bytes of those payloads.
    pub spool_bytes: Cell64,
    /// Bytes of this core's own spool files, including empty ones.
    pub spool_disk_bytes: Cell64,
    /// The part of it that is journals of batches, those in directories of dead processes included.
    pub spool_journal_bytes: Cell64,
    /// Set once: `SPOOL_MAX`, or 0 without a spool.
    pub spool_disk_bytes_max: Cell64,
    /// What of `SPOOL_MAX` cannot take payloads: segments as far as they are written, journals, and
    /// this core's share of what other processes left.
    pub spool_filled_bytes: Cell64,
    /// 1 while payloads are on disk only.
    pub spool_overflowing: Cell64,
    /// Orphaned segments and batches in doubt that this core cannot open or read now.
    pub spool_unreadable: Cell64,
    /// Error number of the last failed write to the spool; 0 while writes succeed or none was
    /// tried.
    pub spool_errno: Cell64,
    /// Seconds for which the spool's disk has not answered; 0 while it answers.
    pub spool_stalled_s: Cell64,
    /// 1 while `SPOOL_MAX` is used up.
    pub spool_full: Cell64,
    /// 1 until the spool has room for its first requests.
    pub spool_preparing: Cell64,
    pub spool_syncs: Cell64,
    /// Payloads taken over from spools of processes that have ended.
    pub payloads_taken_over: Cell64,
    pub spool_sync_latency: Latency,
    /// When the store began to fail without a success since, in milliseconds since process start,
    /// plus one; 0 while it works.
    pub store_failing_since: Cell64,
    pub request_latency: Latency,
    pub put_latency: Latency,
    pub turns: TurnCells,
    pub sampled: SampledCells,
}

impl CoreCells {
    pub fn set_state(&self, state: CoreState) {
        self.state.set(state as u64);
    }

    pub fn is(&self, state: CoreState) -> bool {
        self.state.value() == state as u64
    }

    /// Whether the spool's disk refuses writes or does not answer.
    pub fn spool_is_failing(&self) -> bool {
        self.spool_errno.value() != 0 || self.spool_stalled_s.value() != 0
    }

    /// Counts a response whose status is not 503.
    pub fn count_response(&self, status: u16) {
        debug_assert_ne!(status, 503, "counted by reason");
        let at = STATUSES.iter().position(|s| *s == status).unwrap_or(STATUSES.len() - 1);
        self.requests[at].inc();
    }

    /// Counts a 503.
    pub fn count_unavailable(&self, reason: Unavailable) {
        self.unavailable[reason as usize].inc();
    }

    /// The number of payloads without an outcome, wherever they are. Each cell is read once while
    /// the core may go on, so it may be off by what the core does meanwhile.
    fn unfinished(&self) -> u64 {
        let taken = self.payloads_accepted.value() + self.payloads_taken_over.value();
        let decided = self.payloads_stored.value()
            + self.payloads_dead_lettered.value()
            + self.payloads_lost.value();
        taken.saturating_sub(decided)
    }

    /// The number of payloads without an outcome that are not in the spool, and of those in dead
    /// letters of a stop that are not synced yet. Each cell is read once while the core may go on,
    /// so the first number may be too low, but never too high.
    pub fn undecided_and_unsynced(&self) -> (u64, u64) {
        let unsynced = self.unsynced_at_stop.value();
        let decided = self.payloads_stored.value()
            + self.payloads_dead_lettered.value()
            + self.payloads_lost.value();
        let safe = decided + unsynced + self.spool_payloads.value();
        let taken = self.payloads_accepted.value() + self.payloads_taken_over.value();
        (taken.saturating_sub(safe), unsynced)
    }
}

/// The cells of every core, shared by all threads for as long as the process lives.
pub type Cells = &'static [CoreCells];

/// Makes cells for `cores` cores. They are never freed, because they must outlive every thread,
/// even a dead one.
pub fn cells(cores: usize) -> Cells {
    Box::leak((0..cores).map(|_| CoreCells::default()).collect::<Vec<_>>().into_boxed_slice())
}

/// A registry whose scrape reads `cells` (`core_ids` has the `core` label of each), the collectors in
/// `more`, and the figures of the process. All names but those of the process begin with `millrace_`.
/// `put_price` is the price of 1,000 PUTs in dollars.
pub fn registry(
    cells: Cells,
    core_ids: Vec<usize>,
    put_price: f64,
    more: Vec<Box<dyn Collector>>,
) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessCollector::new()));
    let millrace = registry.sub_registry_with_prefix("millrace");
    let turns = TurnCollector { cells, core_ids: core_ids.clone() };
    let samples = SampleCollector { cells, core_ids: core_ids.clone() };
    millrace.register_collector(Box::new(CellCollector { cells, core_ids, put_price }));
    millrace.register_collector(Box::new(samples));
    millrace.register_collector(Box::new(turns));
    millrace.register_collector(Box::new(LogCollector));
    more.into_iter().for_each(|collector| millrace.register_collector(collector));
    registry
}

#[derive(Debug)]
struct LogCollector;

impl Collector for LogCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Log lines dropped because stderr was read too slowly or could not be written";
        let name = "log_lines_dropped";
        let counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(crate::log::lines_dropped()).encode(counter)
    }
}

#[derive(Debug)]
struct CellCollector {
    cells: Cells,
    core_ids: Vec<usize>,
    put_price: f64,
}

type Read = fn(&CoreCells) -> u64;

const COUNTERS: [(&str, &str, Read); 35] = [
    ("payloads_accepted", "Payloads admitted", |c| c.payloads_accepted.value()),
    ("bytes_accepted", "Payload bytes admitted", |c| c.bytes_accepted.value()),
    ("payloads_stored", "Payloads the store confirmed", |c| c.payloads_stored.value()),
    ("bytes_stored", "Payload bytes the store confirmed", |c| c.bytes_stored.value()),
    ("objects_stored", "Objects the store confirmed, single payloads or batches", |c| {
        c.objects_stored.value()
    }),
    ("object_bytes_stored", "Bytes of objects the store confirmed, as stored", |c| {
        c.object_bytes_stored.value()
    }),
    ("event_times_unreadable", "Payloads without a time at EVENT_TIME", |c| {
        c.event_times_unreadable.value()
    }),
    ("put_retries", "PUTs that failed and are retried", |c| c.put_retries.value()),
    ("payloads_retried", "Payloads whose first PUT failed", |c| c.payloads_retried.value()),
    ("bytes_retried", "Bytes of payloads whose first PUT failed", |c| c.bytes_retried.value()),
    ("payloads_dead_lettered", "Payloads written to the dead-letter directory", |c| {
        c.payloads_dead_lettered.value()
    }),
    ("bytes_dead_lettered", "Payload bytes written to the dead-letter directory", |c| {
        c.bytes_dead_lettered.value()
    }),
    ("payloads_lost", "Payloads admitted and lost, each logged with its key", |c| {
        c.payloads_lost.value()
    }),
    ("bytes_lost", "Payload bytes admitted and lost", |c| c.bytes_lost.value()),
    (
        "payloads_taken_over",
        "Payloads taken over from the spools of processes that have ended",
        |c| c.payloads_taken_over.value(),
    ),
    ("spool_syncs", "Syncs of the spool, one per commit group", |c| c.spool_syncs.value()),
    ("health_checks", "Health checks answered on the ingest port", |c| c.health_checks.value()),
    ("preflights", "CORS preflights of origins in CORS_ORIGINS", |c| c.preflights.value()),
    ("preflights_refused", "CORS preflights of other origins, answered 403", |c| {
        c.preflights_refused.value()
    }),
    ("connections_accepted", "Connections accepted", |c| c.connections_accepted.value()),
    ("tls_on_plain_port", "TLS handshakes begun on addresses that are plain HTTP", |c| {
        c.tls_on_plain.value()
    }),
    ("h2_connections_begun", "HTTP/2 connections begun", |c| c.h2_connections_begun.value()),
    ("h2_not_offered", "TLS handshakes without HTTP/2 because H2_CONNECTIONS were open", |c| {
        c.h2_not_offered.value()
    }),
    ("h2_resets", "Streams that HTTP/2 clients have reset", |c| c.h2_resets.value()),
    (
        "h2_answers_unread",
        "HTTP/2 answers dropped because their client left no room for them within IDLE_TIMEOUT",
        |c| c.h2_answers_unread.value(),
    ),
    ("connections_at_limit", "Connections accepted while all were taken", |c| {
        c.connections_at_limit.value()
    }),
    ("bodies_evicted", "Stalled bodies answered 408 because others needed their memory", |c| {
        c.bodies_evicted.value()
    }),
    ("bodies_too_slow", "Bodies answered 408 because they were slower than BODY_RATE_MIN", |c| {
        c.bodies_too_slow.value()
    }),
    ("body_memory_refusals", "Requests answered 503 because MAX_BODY_BYTES was used up", |c| {
        c.body_memory_refusals.value()
    }),
    (
        "quota_client_overflows",
        "Requests whose address found no bucket of its own for its quota",
        |c| c.quota_overflows[0].value(),
    ),
    (
        "quota_token_overflows",
        "Requests whose token's name found no bucket of its own for its quota",
        |c| c.quota_overflows[1].value(),
    ),
    ("accept_errors", "Failed accepts (out of descriptors and the like)", |c| {
        c.accept_errors.value()
    }),
    ("connection_panics", "Connections closed by a panic", |c| c.conn_panics.value()),
    ("worker_panics", "Objects dead-lettered because their PUT panicked", |c| {
        c.worker_panics.value()
    }),
    ("core_deaths", "Cores that ended by a panic", |c| u64::from(c.is(CoreState::Died))),
];

const GAUGES: [(&str, &str, Read); 49] = [
    ("connections", "Open connections", |c| c.connections.value()),
    ("connections_limit", "MAX_CONNECTIONS, or as many as there are file descriptors for", |c| {
        c.connections_max.value()
    }),
    (
        "connections_waiting",
        "1 while a client waits because no connection can be closed for it",
        |c| c.connections_waiting.value(),
    ),
    ("connections_full", "1 if a connection was accepted at the limit in the last second", |c| {
        c.connections_full.value()
    }),
    ("tls_handshakes_open", "TLS handshakes in progress", |c| c.tls_handshakes_open.value()),
    ("tls_handshakes_limit", "TLS_HANDSHAKES, or 0 if no address of LISTEN has TLS", |c| {
        c.tls_handshakes_max.value()
    }),
    ("h2_connections", "Open HTTP/2 connections", |c| c.h2_connections.value()),
    ("h2_connections_limit", "H2_CONNECTIONS, or 0 if no address of LISTEN speaks HTTP/2", |c| {
        c.h2_connections_max.value()
    }),
    ("h2_requests", "Requests in progress on HTTP/2 connections", |c| c.h2_requests.value()),
    ("body_bytes", "Bytes of bodies being read or waiting for room", |c| c.body_bytes.value()),
    ("body_bytes_limit", "MAX_BODY_BYTES", |c| c.body_bytes_max.value()),
    ("body_kernel_bytes", "Bytes of large bodies that wait in the kernel for their turn", |c| {
        c.body_kernel_bytes.value()
    }),
    ("body_memory_full", "1 if a body was evicted or refused in the last second", |c| {
        c.body_memory_full.value()
    }),
    (
        "queue_depth",
        "Payloads queued, including those that wait for a retry beyond one per worker",
        |c| c.queue_depth.value(),
    ),
    ("quota_client_buckets", "Addresses whose quota is tracked", |c| c.quota_buckets[0].value()),
    (
        "quota_client_buckets_limit",
        "Most of them, or 0 without CLIENT_RATE and CLIENT_BYTES",
        |c| c.quota_buckets_max[0].value(),
    ),
    ("quota_token_buckets", "Token names whose quota is tracked", |c| c.quota_buckets[1].value()),
    ("quota_token_buckets_limit", "Most of them, or 0 without TOKENS_FILE", |c| {
        c.quota_buckets_max[1].value()
    }),
    ("queue_depth_limit", "MAX_QUEUE", |c| c.queue_depth_max.value()),
    ("queue_bytes", "Bytes of admitted, unfinished requests", |c| c.queue_bytes.value()),
    ("queue_bytes_limit", "MAX_QUEUE_BYTES", |c| c.queue_bytes_max.value()),
    ("queue_full", "1 if a request found no room in the queue in the last 20 seconds", |c| {
        c.queue_full.value()
    }),
    (
        "payloads_unfinished",
        "Payloads admitted and not stored yet: queued, in batches, in flight or in the spool",
        CoreCells::unfinished,
    ),
    (
        "large_body_waiters",
        "Requests with a large body waiting for their turn to be decompressed and split",
        |c| c.large_body_waiters.value(),
    ),
    ("room_waiters", "Requests waiting for room in the queue", |c| c.room_waiters.value()),
    ("ack_waiters", "Requests waiting for the store before their answer", |c| {
        c.ack_waiters.value()
    }),
    ("workers_busy", "Upload workers that upload an object", |c| c.workers_busy.value()),
    ("workers_busy_limit", "MAX_WORKERS", |c| c.workers_max.value()),
    ("puts_in_flight", "PUTs in flight or about to be", |c| c.puts_in_flight.value()),
    ("puts_limit", "Limit of PUTs in flight, adapted between 1 and MAX_WORKERS", |c| {
        c.puts_limit.value()
    }),
    ("puts_awaiting_retry", "Objects that have failed and wait for their retry", |c| {
        c.puts_awaiting_retry.value()
    }),
    ("batches_open", "Batches that take payloads", |c| c.batches_open.value()),
    ("batches_open_limit", "MAX_PARTITIONS, or 0 without batches", |c| c.batches_open_max.value()),
    ("batch_bytes", "Memory of batches that are open, closed or in flight", |c| {
        c.batch_bytes.value()
    }),
    ("batch_bytes_limit", "BATCH_MEMORY, or 0 without batches", |c| c.batch_bytes_max.value()),
    ("spool_payloads", "Payloads in the spool that are not yet stored", |c| {
        c.spool_payloads.value()
    }),
    ("spool_pending_bytes", "Bytes of requests that wait for the spool's disk", |c| {
        c.spool_pending_bytes.value()
    }),
    ("spool_pending_bytes_limit", "SPOOL_PENDING, or 0 without a spool", |c| {
        c.spool_pending_bytes_max.value()
    }),
    ("spool_bytes", "Bytes of payloads in the spool that are not yet stored", |c| {
        c.spool_bytes.value()
    }),
    ("spool_disk_bytes", "Bytes of the spool's files, empty and prepared ones included", |c| {
        c.spool_disk_bytes.value()
    }),
    ("spool_journal_bytes", "Bytes of the spool's journals of batches", |c| {
        c.spool_journal_bytes.value()
    }),
    ("spool_disk_bytes_limit", "SPOOL_MAX, or 0 without a spool", |c| {
        c.spool_disk_bytes_max.value()
    }),
    ("spool_filled_bytes", "Bytes of SPOOL_MAX that payloads and journals take", |c| {
        c.spool_filled_bytes.value()
    }),
    (
        "spool_unreadable",
        "Files and batches of crashed processes that the disk does not let the server read now; tried again each second",
        |c| c.spool_unreadable.value(),
    ),
    ("spool_overflowing", "1 while spooled payloads wait on disk because the queue is full", |c| {
        c.spool_overflowing.value()
    }),
    ("spool_failing", "1 while the spool cannot be written, or its disk does not answer", |c| {
        u64::from(c.spool_is_failing())
    }),
    ("spool_stalled_seconds", "Seconds for which the spool's disk has not answered", |c| {
        c.spool_stalled_s.value()
    }),
    ("spool_full", "1 while SPOOL_MAX is used up", |c| c.spool_full.value()),
    ("store_failing", "1 while the store fails without a success since", |c| {
        u64::from(c.store_failing_since.value() != 0)
    }),
];

impl Collector for CellCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut requests = encoder.encode_descriptor(
            "requests",
            "Responses by status, and by reason if that is 503",
            None,
            MetricType::Counter,
        )?;
        for (cells, id) in self.cells.iter().zip(&self.core_ids) {
            let with_cells = cells.requests.iter().zip(STATUSES);
            for (cell, status) in with_cells.filter(|(_, status)| *status != 503) {
                let status = if status == 0 { "other".to_owned() } else { status.to_string() };
                let labels = [("core", id.to_string()), ("status", status)];
                ConstCounter::new(cell.value()).encode(requests.encode_family(&labels)?)?;
            }
            for (cell, reason) in cells.unavailable.iter().zip(Unavailable::ALL) {
                let labels = [
                    ("core", id.to_string()),
                    ("status", "503".to_owned()),
                    ("reason", reason.name().to_owned()),
                ];
                ConstCounter::new(cell.value()).encode(requests.encode_family(&labels)?)?;
            }
        }
        for (name, help, read) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (cells, id) in self.cells.iter().zip(&self.core_ids) {
                let labels = [("core", id.to_string())];
                ConstCounter::new(read(cells)).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, read) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (cells, id) in self.cells.iter().zip(&self.core_ids) {
                let labels = [("core", id.to_string())];
                let value = i64::try_from(read(cells)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        self.encode_latency(
            &mut encoder,
            "request_latency",
            "From a request's head to its answer",
            |c| &c.request_latency,
        )?;
        self.encode_latency(&mut encoder, "put_latency", "Each attempt to store an object", |c| {
            &c.put_latency
        })?;
        let help = "Each write and sync of the spool";
        self.encode_latency(&mut encoder, "spool_sync_latency", help, |c| &c.spool_sync_latency)?;
        self.encode_reasons(
            &mut encoder,
            ("batches_closed", "Batches closed, by reason"),
            CloseReason::NAMES,
            |c| &c.batches_closed,
        )?;
        self.encode_reasons(
            &mut encoder,
            ("connections_evicted", "Connections closed to make room for others, by reason"),
            EvictionReason::NAMES,
            |c| &c.connections_evicted,
        )?;
        self.encode_reasons(
            &mut encoder,
            ("quota_refusals", "Requests refused with 429, by the quota that was used up"),
            QuotaKind::NAMES,
            |c| &c.quota_refusals,
        )?;
        let help = "Failed PUTs: of one object, passing, or of the whole store";
        self.encode_labelled(
            &mut encoder,
            ("put_errors", help),
            ("class", PUT_ERROR_CLASSES),
            |c| &c.put_errors,
        )?;
        let help = "Connections to listeners with proxy= that were closed for their PROXY header";
        self.encode_reasons(&mut encoder, ("proxy_refusals", help), ProxyRefusal::NAMES, |c| {
            &c.proxy_refusals
        })?;
        let help = "Connections to https:// addresses closed before their first request, by reason";
        self.encode_reasons(&mut encoder, ("tls_refusals", help), TlsRefusal::NAMES, |c| {
            &c.tls_refusals
        })?;
        self.encode_handshakes(&mut encoder)?;
        let help = "HTTP/2 connections closed before their client wanted it, by reason";
        self.encode_reasons(&mut encoder, ("h2_closed", help), H2Closed::NAMES, |c| &c.h2_closed)?;
        let help = "Requests of trusted proxies whose headers leave the client in doubt";
        self.encode_reasons(&mut encoder, ("forwarded_flaws", help), ForwardedFlaw::NAMES, |c| {
            &c.forwarded_flaws
        })?;
        let (stored, raw) = ("batch_stored_size", "batch_raw_size");
        let help = "Closed batches as stored";
        self.encode_sizes(&mut encoder, stored, help, |c| &c.batch_stored_bytes)?;
        let help = "Closed batches before compression";
        self.encode_sizes(&mut encoder, raw, help, |c| &c.batch_raw_bytes)?;
        self.encode_costs(&mut encoder)
    }
}

/// A figure computed from sums over all cores; `None` before there is something to tell.
type Total = fn(&dyn Fn(Read) -> f64, f64) -> Option<f64>;

/// Every PUT costs, including retries.
const TOTALS: [(&str, &str, Total); 3] = [
    (
        "batch_compression_ratio",
        "Bytes of closed batches before compression, per byte as stored",
        |sum, _| ratio(sum(|c| c.batch_raw_bytes.sum()), sum(|c| c.batch_stored_bytes.sum())),
    ),
    ("puts_per_million_payloads", "PUTs sent per million payloads stored", |sum, _| {
        let puts = ratio(sum(|c| c.put_latency.count()), sum(|c| c.payloads_stored.value()))?;
        Some(1e6 * puts)
    }),
    ("put_dollars_per_million_payloads", "What those PUTs cost at PUT_PRICE", |sum, price| {
        let puts = ratio(sum(|c| c.put_latency.count()), sum(|c| c.payloads_stored.value()))?;
        Some(1e6 * puts * price / 1e3)
    }),
];

fn ratio(of: f64, to: f64) -> Option<f64> {
    (to != 0.0).then_some(of / to)
}

impl CellCollector {
    fn encode_reasons<const N: usize>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        family: (&str, &str),
        reasons: [&str; N],
        pick: fn(&CoreCells) -> &[Cell64; N],
    ) -> fmt::Result {
        self.encode_labelled(encoder, family, ("reason", reasons), pick)
    }

    fn encode_labelled<const N: usize>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        (label, values): (&str, [&str; N]),
        pick: fn(&CoreCells) -> &[Cell64; N],
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (cells, id) in self.cells.iter().zip(&self.core_ids) {
            for (cell, value) in pick(cells).iter().zip(values) {
                let labels = [("core", id.to_string()), (label, value.to_owned())];
                ConstCounter::new(cell.value()).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_handshakes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Complete TLS handshakes, by version and whether a ticket continued a session";
        let mut family =
            encoder.encode_descriptor("tls_handshakes", help, None, MetricType::Counter)?;
        for (cells, id) in self.cells.iter().zip(&self.core_ids) {
            for (cell, (version, resumed)) in cells.tls_handshakes.iter().zip(HandshakeKind::NAMES)
            {
                let labels = [
                    ("core", id.to_string()),
                    ("version", version.into()),
                    ("resumed", resumed.into()),
                ];
                ConstCounter::new(cell.value()).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_costs(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let sum = |read: Read| self.cells.iter().map(read).sum::<u64>() as f64;
        for (name, help, total) in TOTALS {
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            // A 0 would say that the PUTs cost nothing.
            if let Some(value) = total(&sum, self.put_price) {
                ConstGauge::new(value).encode(gauge)?;
            }
        }
        let help = "What all PUTs since the start cost at PUT_PRICE";
        let cost = sum(|c| c.put_latency.count()) * self.put_price / 1e3;
        let counter = encoder.encode_descriptor("put_dollars", help, None, MetricType::Counter)?;
        ConstCounter::new(cost).encode(counter)
    }

    fn encode_sizes(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        pick: fn(&CoreCells) -> &Sizes,
    ) -> fmt::Result {
        let unit = Some(&Unit::Bytes);
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (cells, id) in self.cells.iter().zip(&self.core_ids) {
            let sizes = pick(cells);
            let bounds = SIZE_BOUNDS.iter().map(|bound| *bound as f64).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> =
                bounds.zip(sizes.buckets.iter().map(Cell64::value)).collect();
            let labels = [("core", id.to_string())];
            let (sum, count) = (sizes.sum() as f64, sizes.count());
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn encode_latency(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        pick: fn(&CoreCells) -> &Latency,
    ) -> fmt::Result {
        let mut family =
            encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (cells, id) in self.cells.iter().zip(&self.core_ids) {
            let latency = pick(cells);
            let bounds = LATENCY_BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> =
                bounds.zip(latency.buckets.iter().map(Cell64::value)).collect();
            let count = buckets.iter().map(|(_, n)| n).sum();
            let sum = latency.sum_us.value() as f64 / 1e6;
            let labels = [("core", id.to_string())];
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_reads_every_cell_with_its_core() {
        let cells = cells(2);
        cells[1].payloads_stored.add(7);
        cells[1].count_unavailable(Unavailable::SpoolFull);
        cells[1].count_response(418);
        cells[1].put_errors[2].inc();
        cells[0].put_latency.observe(Duration::from_millis(3));
        let mut text = String::new();
        let registry = registry(cells, vec![0, 5], 0.005, Vec::new());
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "millrace_payloads_stored_total{core=\"5\"} 7",
            "millrace_payloads_stored_total{core=\"0\"} 0",
            "millrace_requests_total{core=\"5\",status=\"503\",reason=\"spool_full\"} 1",
            "millrace_requests_total{core=\"5\",status=\"503\",reason=\"stopping\"} 0",
            "millrace_requests_total{core=\"5\",status=\"other\"} 1",
            "millrace_put_latency_seconds_bucket{le=\"0.002\",core=\"0\"} 0",
            "millrace_put_latency_seconds_bucket{le=\"0.005\",core=\"0\"} 1",
            "millrace_put_latency_seconds_bucket{le=\"+Inf\",core=\"0\"} 1",
            "millrace_put_latency_seconds_sum{core=\"0\"} 0.003",
            "millrace_put_errors_total{core=\"5\",class=\"store_wide\"} 1",
            "millrace_log_lines_dropped_total 0",
            "millrace_puts_per_million_payloads 142857.14285714285",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn a_ratio_to_nothing_is_absent() {
        let cells = cells(1);
        cells[0].put_latency.observe(Duration::from_millis(3));
        let mut text = String::new();
        let registry = registry(cells, vec![0], 0.005, Vec::new());
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for (name, _, _) in TOTALS {
            let samples =
                text.lines().filter(|line| line.starts_with(&format!("millrace_{name} ")));
            assert_eq!(samples.count(), 0, "{name} in\n{text}");
            assert!(text.contains(&format!("# TYPE millrace_{name} gauge")), "{text}");
        }
        // What was spent is known from the first PUT on.
        assert!(text.contains("millrace_put_dollars_total 0.000005"), "{text}");
    }

    #[test]
    fn quantiles_are_the_bounds_of_their_bucket() {
        let latency = Latency::default();
        let quantile = |before: &LatencyCounts| latency.counts().since(before).quantile(0.99);
        let ms = Duration::from_millis;
        assert_eq!(quantile(&LatencyCounts::default()), None);
        latency.observe(Duration::from_micros(7));
        let first = (Duration::ZERO, Duration::from_micros(50));
        assert_eq!(quantile(&LatencyCounts::default()), Some(first));
        (0..98).for_each(|_| latency.observe(ms(3)));
        assert_eq!(quantile(&LatencyCounts::default()), Some((ms(2), ms(5))));
        let before = latency.counts();
        (0..100).for_each(|_| latency.observe(ms(500_000)));
        assert_eq!(quantile(&before), Some((ms(120_000), Duration::MAX)));
        assert_eq!(latency.counts().since(&latency.counts()).quantile(0.5), None);
    }

    #[test]
    fn every_reason_has_its_own_cell_and_name() {
        let at: Vec<usize> = Unavailable::ALL.iter().map(|reason| *reason as usize).collect();
        assert_eq!(at, (0..Unavailable::ALL.len()).collect::<Vec<_>>());
        let names: std::collections::BTreeSet<_> =
            Unavailable::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Unavailable::ALL.len());
    }

    #[test]
    #[should_panic(expected = "never goes below zero")]
    fn a_gauge_below_zero_is_caught() {
        Cell64::default().sub(1);
    }
}
