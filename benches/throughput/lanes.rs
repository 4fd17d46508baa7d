//! The lanes. A new one is one entry in [`LANES`].

use std::time::Duration;

use crate::server::Variant;

/// One kind of load on one kind of store.
#[derive(Clone, Debug)]
pub struct Lane {
    pub name: &'static str,
    pub what: &'static str,
    pub store: Sink,
    /// What is put there: batches, or each payload by itself.
    pub batches: bool,
    pub payloads: usize,
    pub payload_bytes: usize,
    pub shape: Shape,
    pub connections: usize,
    pub kind: Kind,
    pub wire: Wire,
    /// Whom millrace is compared with, as far as the command line asks for them.
    pub rivals: &'static [Variant],
    /// It is about the spool, whose syncs are counted.
    pub spool: bool,
    /// Settings of both servers beside the common ones.
    pub settings: &'static [(&'static str, &'static str)],
    /// What the ratios between two servers are made of.
    pub measures: &'static [Measure],
}

/// Where the servers put payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// `null:`
    Null,
    /// The S3 sink on the client cores, which answers a PUT after this long.
    S3 { latency: PutLatency },
}

/// How long PUTs take: a log-normal distribution, as services have it, or always the same if both
/// are equal. It counts from when the sink has the last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutLatency {
    pub median: Duration,
    /// At least the median.
    pub p99: Duration,
}

impl PutLatency {
    pub const fn always(time: Duration) -> PutLatency {
        PutLatency { median: time, p99: time }
    }

    /// How long the next one takes.
    pub fn draw(self, rng: &mut fastrand::Rng) -> Duration {
        if self.p99 <= self.median {
            return self.median;
        }
        /// Standard deviations of a normal distribution from its median to its p99.
        const TO_P99: f64 = 2.326;
        let sigma = (self.p99.as_secs_f64() / self.median.as_secs_f64()).ln() / TO_P99;
        // Box and Muller's transform; 1 − f64() is never 0.
        let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * rng.f64()).cos();
        self.median.mul_f64((sigma * normal).exp())
    }
}

/// What payloads look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A few members, then as many equal records as fit.
    Records,
    /// One event each, most of whose members differ from those of the next: so that a compressor
    /// has the work it would have with a client's.
    Events,
}

/// When a request is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// As soon as the connection has its last answer.
    Closed,
    /// At random times of a given mean rate, whatever the server does; latency counts from then.
    /// Without a rate, it is this part of the lower server's peak.
    Open { of_peak: f64, rate: Option<f64> },
    /// Once per connection, which then stays open.
    Idle,
    /// Once per connection, which is closed after its answer and replaced by another; latency counts
    /// from its beginning.
    OnceEach,
}

/// How requests travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Plain,
    /// TLS 1.3, each connection with a full handshake.
    Tls,
    /// HTTP/2 with prior knowledge: 100 requests in one go on a connection, and as many once all are
    /// answered.
    H2,
}

/// The figure that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    RequestsPerCpuSecond,
    PayloadsPerCpuSecond,
    RequestsPerSecond,
    LatencyP50,
    LatencyP99,
    LatencyP999,
    BytesPerConnection,
}

impl Measure {
    pub fn text(self) -> &'static str {
        match self {
            Measure::RequestsPerCpuSecond => "requests per server-CPU-second (more is better)",
            Measure::PayloadsPerCpuSecond => "payloads per server-CPU-second (more is better)",
            Measure::RequestsPerSecond => "requests per second (more is better)",
            Measure::LatencyP50 => "p50 latency (less is better)",
            Measure::LatencyP99 => "p99 latency (less is better)",
            Measure::LatencyP999 => "p99.9 latency (less is better)",
            Measure::BytesPerConnection => "memory per idle connection (less is better)",
        }
    }
}

const AT_ONCE: Sink = Sink::S3 { latency: PutLatency::always(Duration::ZERO) };
const AFTER_20_MS: Sink = Sink::S3 { latency: PutLatency::always(Duration::from_millis(20)) };
/// What AWS names for small objects, 100 to 200 ms; docs/durability.md has the source.
const LIKE_S3: Sink = Sink::S3 {
    latency: PutLatency { median: Duration::from_millis(100), p99: Duration::from_millis(200) },
};

/// Requests wait for room instead of getting 503, so the store's rate becomes the rate of the
/// whole; a short queue makes that so within the warm-up.
const WAIT: (&str, &str) = ("ENQUEUE_WAIT", "1m");
const SHORT_QUEUE: (&str, &str) = ("MAX_QUEUE", "1000");

/// In the server's own directory, which is where `TMPDIR` says: on a disk, if the figures are to
/// mean anything.
const SPOOLED: &[(&str, &str)] = &[WAIT, ("ACK", "spooled"), ("SPOOL_DIR", "spool")];

/// Batches of `BATCH_BYTES` as it is by default. Of age none is closed at these rates but the last
/// one of a round, which must not be waited for long. A key tells how many payloads there are, so
/// that the sink can count them.
const BATCH_AGE: (&str, &str) = ("BATCH_AGE", "500ms");
const COUNTED: (&str, &str) = ("KEY", "{unix_nanos}-{node}-{core}-{seq}-{count}.{ext}");
const BATCHES: &[(&str, &str)] = &[WAIT, ("OBJECT", "batch"), BATCH_AGE, COUNTED];
/// At level 1, which is the default.
const BATCHES_ZSTD: &[(&str, &str)] =
    &[WAIT, ("OBJECT", "batch"), BATCH_AGE, COUNTED, ("COMPRESSION", "zstd")];

/// A batch is closed at this age at the latest, and no request is answered before its batch is
/// stored.
const STORED: &[(&str, &str)] =
    &[WAIT, ("ACK", "stored"), ("OBJECT", "batch"), ("BATCH_AGE", "250ms"), COUNTED];

const TOKIO: &[Variant] = &[Variant::TokioSdk];
/// Variants that differ from another only in how they upload.
const UPLOADERS: &[Variant] = &[Variant::MillraceSdk, Variant::TokioSdk, Variant::TokioLean];

/// Every lane, in the order they run.
pub const LANES: &[Lane] = &[
    Lane {
        name: "ingest",
        what: "null store, 10 payloads of 150 B a request",
        store: Sink::Null,
        batches: false,
        payloads: 10,
        payload_bytes: 150,
        shape: Shape::Records,
        connections: 64,
        kind: Kind::Closed,
        wire: Wire::Plain,
        rivals: &[Variant::TokioSdk, Variant::Floor],
        spool: false,
        settings: &[WAIT],
        measures: &[Measure::RequestsPerCpuSecond],
    },
    Lane {
        name: "object",
        what: "one PUT per payload, 10 payloads of 512 B a request",
        store: AT_ONCE,
        batches: false,
        payloads: 10,
        payload_bytes: 512,
        shape: Shape::Records,
        connections: 64,
        kind: Kind::Closed,
        wire: Wire::Plain,
        rivals: UPLOADERS,
        spool: false,
        settings: &[WAIT, SHORT_QUEUE],
        measures: &[Measure::PayloadsPerCpuSecond],
    },
    Lane {
        name: "object-slow-store",
        what: "the same, each PUT answered after 20 ms, with workers enough for a full core",
        store: AFTER_20_MS,
        batches: false,
        payloads: 10,
        payload_bytes: 512,
        shape: Shape::Records,
        connections: 256,
        kind: Kind::Closed,
        wire: Wire::Plain,
        // 100,000 PUTs a second × 20 ms = 2,000 under way.
        rivals: UPLOADERS,
        spool: false,
        settings: &[WAIT, ("MAX_QUEUE", "2000"), ("MAX_WORKERS", "2000")],
        measures: &[Measure::PayloadsPerCpuSecond],
    },
    Lane {
        name: "large",
        what: "one PUT per payload, 1 payload of 256 kB a request",
        store: AT_ONCE,
        batches: false,
        payloads: 1,
        payload_bytes: 256_000,
        shape: Shape::Records,
        connections: 32,
        kind: Kind::Closed,
        wire: Wire::Plain,
        rivals: UPLOADERS,
        spool: false,
        settings: &[WAIT, ("MAX_QUEUE", "64")],
        measures: &[Measure::PayloadsPerCpuSecond],
    },
    Lane {
        name: "latency",
        what: "null store, open loop at half the lower server's peak, 10 payloads of 150 B a request",
        store: Sink::Null,
        batches: false,
        payloads: 10,
        payload_bytes: 150,
        shape: Shape::Records,
        connections: 64,
        kind: Kind::Open { of_peak: 0.5, rate: None },
        wire: Wire::Plain,
        rivals: TOKIO,
        spool: false,
        settings: &[WAIT],
        measures: &[Measure::LatencyP50, Measure::LatencyP99, Measure::LatencyP999],
    },
    Lane {
        name: "idle-connections",
        what: "kept-alive connections that have sent one request each",
        store: Sink::Null,
        batches: false,
        payloads: 10,
        payload_bytes: 150,
        shape: Shape::Records,
        connections: 10_000,
        kind: Kind::Idle,
        wire: Wire::Plain,
        rivals: TOKIO,
        spool: false,
        settings: &[WAIT],
        measures: &[Measure::BytesPerConnection],
    },
    Lane {
        name: "durable",
        what: "the ingest lane with every request synced to disk before its 200, against the same without",
        store: Sink::Null,
        batches: false,
        payloads: 10,
        payload_bytes: 150,
        shape: Shape::Records,
        connections: 64,
        kind: Kind::Closed,
        wire: Wire::Plain,
        rivals: &[Variant::MillraceQueued],
        spool: true,
        settings: SPOOLED,
        measures: &[Measure::RequestsPerSecond],
    },
    Lane {
        name: "durable-latency",
        what: "the same as an open loop at half the lower one's peak",
        store: Sink::Null,
        batches: false,
        payloads: 10,
        payload_bytes: 150,
        shape: Shape::Records,
        connections: 64,
        kind: Kind::Open { of_peak: 0.5, rate: None },
        wire: Wire::Plain,
        rivals: &[Variant::MillraceQueued],
        spool: true,
        settings: SPOOLED,
        measures: &[Measure::LatencyP99],
    },
    Lane {
        name: "batch",
        what: "NDJSON batches to the S3 sink, 10 payloads of 150 B a request",
        store: AT_ONCE,
        batches: true,
        payloads: 10,
        payload_bytes: 150,
        shape: Shape::Records,
        connections: 64,
        kind: Kind::Closed,
        wire: Wire::Plain,
        rivals: &[
            Variant::MillraceNull,
            Variant::MillraceSdk,
            Variant::TokioSdk,
            Variant::TokioLean,
        ],
        spool: false,
        settings: BATCHES,
        measures: &[Measure::PayloadsPerCpuSecond],
    },
    Lane {
        name: "batch-large",
        what: "the same with 10 payloads of 1 kB a request",
        store: AT_ONCE,
        batches: true,
        payloads: 10,
        payload_bytes: 1_000,
        shape: Shape::Events,
        connections: 64,
        kind: Kind::Closed,
        wire: Wire::Plain,
        rivals: &[Variant::MillraceUnsigned],
        spool: false,
        settings: BATCHES,
        measures: &[Measure::PayloadsPerCpuSecond],
    },
    Lane {
        name: "batch-zstd",
        what: "the same compressed by zstd at level 1",
        store: AT_ONCE,
        batches: true,
        payloads: 10,
        payload_bytes: 1_000,
        shape: Shape::Events,
        connections: 64,
        kind: Kind::Closed,
        wire: Wire::Plain,
        rivals: &[],
        spool: false,
        settings: BATCHES_ZSTD,
        measures: &[Measure::PayloadsPerCpuSecond],
    },
    Lane {
        name: "batch-latency",
        what: "the same as an open loop at half the lower one's peak, against the same without compression",
        store: AT_ONCE,
        batches: true,
        payloads: 10,
        payload_bytes: 1_000,
        shape: Shape::Events,
        connections: 64,
        kind: Kind::Open { of_peak: 0.5, rate: None },
        wire: Wire::Plain,
        rivals: &[Variant::MillracePlain],
        spool: false,
        settings: BATCHES_ZSTD,
        measures: &[Measure::LatencyP99],
    },
    Lane {
        name: "stored-batch",
        what: "ACK=stored, batches of 250 ms, PUTs as slow as S3's, open loop at half the lower one's peak",
        store: LIKE_S3,
        batches: true,
        payloads: 10,
        payload_bytes: 1_000,
        shape: Shape::Events,
        // Each waits for its batch and its PUT: some 200 ms.
        connections: 2_000,
        kind: Kind::Open { of_peak: 0.5, rate: None },
        wire: Wire::Plain,
        rivals: &[Variant::MillraceQueued],
        spool: false,
        settings: STORED,
        measures: &[Measure::LatencyP50, Measure::LatencyP99],
    },
    Lane {
        name: "h2",
        what: "the ingest lane over HTTP/2 without TLS, 100 requests at once on a connection",
        store: Sink::Null,
        batches: false,
        payloads: 10,
        payload_bytes: 150,
        shape: Shape::Records,
        connections: 4,
        kind: Kind::Closed,
        wire: Wire::H2,
        rivals: TOKIO,
        spool: false,
        settings: &[WAIT, ("H2", "all")],
        measures: &[Measure::RequestsPerCpuSecond],
    },
    Lane {
        name: "tls",
        what: "the ingest lane over TLS 1.3, against the same over plain HTTP",
        store: Sink::Null,
        batches: false,
        payloads: 10,
        payload_bytes: 150,
        shape: Shape::Records,
        connections: 64,
        kind: Kind::Closed,
        wire: Wire::Tls,
        rivals: &[Variant::MillraceHttp, Variant::TokioSdk],
        spool: false,
        settings: &[WAIT],
        measures: &[Measure::RequestsPerCpuSecond],
    },
    Lane {
        name: "tls-large",
        what: "null store, 1 payload of 256 kB a request over TLS 1.3, against the same over plain HTTP",
        store: Sink::Null,
        batches: false,
        payloads: 1,
        payload_bytes: 256_000,
        shape: Shape::Records,
        connections: 32,
        kind: Kind::Closed,
        wire: Wire::Tls,
        rivals: &[Variant::MillraceHttp, Variant::TokioSdk],
        spool: false,
        settings: &[WAIT],
        measures: &[Measure::RequestsPerCpuSecond],
    },
    Lane {
        name: "tls-handshake",
        what: "connections with a full handshake of TLS 1.3 (ECDSA P-256), 1 payload of 150 B each",
        store: Sink::Null,
        batches: false,
        payloads: 1,
        payload_bytes: 150,
        shape: Shape::Records,
        connections: 64,
        kind: Kind::OnceEach,
        wire: Wire::Tls,
        rivals: TOKIO,
        spool: false,
        settings: &[WAIT],
        measures: &[Measure::RequestsPerCpuSecond],
    },
    Lane {
        name: "tls-idle",
        what: "kept-alive connections over TLS 1.3 that have sent one request each",
        store: Sink::Null,
        batches: false,
        payloads: 10,
        payload_bytes: 150,
        shape: Shape::Records,
        connections: 10_000,
        kind: Kind::Idle,
        wire: Wire::Tls,
        rivals: TOKIO,
        spool: false,
        settings: &[WAIT],
        measures: &[Measure::BytesPerConnection],
    },
];
