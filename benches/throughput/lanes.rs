//! The lanes. A new one is one entry in [`LANES`].

use std::time::Duration;

/// One kind of load on one kind of store.
#[derive(Clone, Debug)]
pub struct Lane {
    pub name: &'static str,
    pub what: &'static str,
    pub store: Sink,
    pub payloads: usize,
    pub payload_bytes: usize,
    pub connections: usize,
    pub kind: Kind,
    /// It is about the spool: millrace with it against millrace without.
    pub spool: bool,
    /// Settings of both servers beside the common ones.
    pub settings: &'static [(&'static str, &'static str)],
    /// What the ratio between two servers is made of.
    pub measure: Measure,
}

/// Where the servers put payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// `null:`
    Null,
    /// The S3 sink on the client cores, which answers a PUT after this long.
    S3 { latency: Duration },
}

/// When a request is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// As soon as the connection has its last answer.
    Closed,
    /// At random times of a given mean rate, whatever the server does; latency counts from then. Without a rate, it is
    /// this part of the lower server's peak.
    Open { of_peak: f64, rate: Option<f64> },
    /// Once per connection, which then stays open.
    Idle,
}

/// The figure that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    RequestsPerCpuSecond,
    PayloadsPerCpuSecond,
    RequestsPerSecond,
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
            Measure::LatencyP99 => "p99 latency (less is better)",
            Measure::LatencyP999 => "p99.9 latency (less is better)",
            Measure::BytesPerConnection => "memory per idle connection (less is better)",
        }
    }
}

const AT_ONCE: Sink = Sink::S3 { latency: Duration::ZERO };
const AFTER_20_MS: Sink = Sink::S3 { latency: Duration::from_millis(20) };

/// Requests wait for room instead of getting 503, so the store's rate becomes the rate of the whole; a short queue makes
/// that so within the warm-up.
const WAIT: (&str, &str) = ("ENQUEUE_WAIT", "1m");
const SHORT_QUEUE: (&str, &str) = ("MAX_QUEUE", "1000");

/// In the server's own directory, which is where `TMPDIR` says: on a disk, if the figures are to mean anything.
const SPOOLED: &[(&str, &str)] = &[WAIT, ("ACK", "spooled"), ("SPOOL_DIR", "spool")];

/// Every lane, in the order they run.
pub const LANES: &[Lane] = &[
    Lane {
        name: "ingest",
        what: "null store, 10 payloads of 150 B a request",
        store: Sink::Null,
        payloads: 10,
        payload_bytes: 150,
        connections: 64,
        kind: Kind::Closed,
        spool: false,
        settings: &[WAIT],
        measure: Measure::RequestsPerCpuSecond,
    },
    Lane {
        name: "object",
        what: "one PUT per payload, 10 payloads of 512 B a request",
        store: AT_ONCE,
        payloads: 10,
        payload_bytes: 512,
        connections: 64,
        kind: Kind::Closed,
        spool: false,
        settings: &[WAIT, SHORT_QUEUE],
        measure: Measure::PayloadsPerCpuSecond,
    },
    Lane {
        name: "object-slow-store",
        what: "the same, each PUT answered after 20 ms, with workers enough for a full core",
        store: AFTER_20_MS,
        payloads: 10,
        payload_bytes: 512,
        connections: 256,
        kind: Kind::Closed,
        // 100,000 PUTs a second × 20 ms = 2,000 under way.
        spool: false,
        settings: &[WAIT, ("MAX_QUEUE", "2000"), ("MAX_WORKERS", "2000")],
        measure: Measure::PayloadsPerCpuSecond,
    },
    Lane {
        name: "large",
        what: "one PUT per payload, 1 payload of 256 kB a request",
        store: AT_ONCE,
        payloads: 1,
        payload_bytes: 256_000,
        connections: 32,
        kind: Kind::Closed,
        spool: false,
        settings: &[WAIT, ("MAX_QUEUE", "64")],
        measure: Measure::PayloadsPerCpuSecond,
    },
    Lane {
        name: "latency",
        what: "null store, open loop at half the lower server's peak, 10 payloads of 150 B a request",
        store: Sink::Null,
        payloads: 10,
        payload_bytes: 150,
        connections: 64,
        kind: Kind::Open { of_peak: 0.5, rate: None },
        spool: false,
        settings: &[WAIT],
        measure: Measure::LatencyP999,
    },
    Lane {
        name: "idle-connections",
        what: "kept-alive connections that have sent one request each",
        store: Sink::Null,
        payloads: 10,
        payload_bytes: 150,
        connections: 10_000,
        kind: Kind::Idle,
        spool: false,
        settings: &[WAIT],
        measure: Measure::BytesPerConnection,
    },
    Lane {
        name: "durable",
        what: "the ingest lane with every request synced to disk before its 200, against the same without",
        store: Sink::Null,
        payloads: 10,
        payload_bytes: 150,
        connections: 64,
        kind: Kind::Closed,
        spool: true,
        settings: SPOOLED,
        measure: Measure::RequestsPerSecond,
    },
    Lane {
        name: "durable-latency",
        what: "the same as an open loop at half the lower one's peak",
        store: Sink::Null,
        payloads: 10,
        payload_bytes: 150,
        connections: 64,
        kind: Kind::Open { of_peak: 0.5, rate: None },
        spool: true,
        settings: SPOOLED,
        measure: Measure::LatencyP99,
    },
];
