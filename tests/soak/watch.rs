//! What is seen of the servers from outside: memory, descriptors, gauges, latencies.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::bad::Vice;
use crate::good::{ACKS, Ack, classes};
use crate::support::{Metrics, Server};

/// Descriptors of a process, by what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptors {
    /// Sockets that are not connected to the store.
    pub sockets: usize,
    /// Everything else that is not below the spool's directory.
    pub others: usize,
    pub to_store: usize,
    /// Of the spool's files.
    pub spool: usize,
    /// Of its files that are removed. Batches in the journal may still name a segment; it is closed
    /// when the journal is renewed.
    pub removed: usize,
}

impl Descriptors {
    pub fn of(pid: u32, store_port: u16, spool: &Path) -> Descriptors {
        let to_store = store_sockets(pid, store_port);
        let mut found = Descriptors::default();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a running server") {
            // One that was closed meanwhile has no target.
            let Ok(target) = std::fs::read_link(entry.expect("an entry").path()) else { continue };
            let text = target.to_string_lossy();
            match text.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
                Some(inode) if to_store.contains(inode) => found.to_store += 1,
                Some(_) => found.sockets += 1,
                None if target.starts_with(spool) && text.ends_with(" (deleted)") => {
                    found.removed += 1;
                }
                None if target.starts_with(spool) => found.spool += 1,
                None => found.others += 1,
            }
        }
        found
    }

    pub fn sum(self) -> usize {
        self.sockets + self.others + self.to_store + self.spool + self.removed
    }
}

/// Inodes of the sockets whose peer is this port.
fn store_sockets(pid: u32, port: u16) -> HashSet<String> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("a running server");
    let of_store = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let peer = fields.get(2)?.rsplit_once(':')?.1;
        (u16::from_str_radix(peer, 16).ok()? == port).then(|| fields.get(9).copied())?
    });
    of_store.map(str::to_owned).collect()
}

/// What good clients saw, and what the others did.
pub struct Stats {
    latencies: [Histogram<u64>; 3],
    statuses: BTreeMap<u16, u64>,
    pub all_statuses: BTreeMap<u16, u64>,
    /// Requests answered 200, by class.
    pub served: Vec<u64>,
    /// Requests left out by clients that were too far behind their schedule.
    pub left_out: u64,
    pub vices: BTreeMap<Vice, u64>,
    pub stranger_served: u64,
    pub stranger_refused: u64,
}

impl Stats {
    pub fn new() -> Stats {
        let histogram = || Histogram::new_with_bounds(1, 60_000_000, 2).expect("valid bounds");
        Stats {
            latencies: [histogram(), histogram(), histogram()],
            statuses: BTreeMap::new(),
            all_statuses: BTreeMap::new(),
            served: vec![0; classes().len()],
            left_out: 0,
            vices: BTreeMap::new(),
            stranger_served: 0,
            stranger_refused: 0,
        }
    }

    /// An answer to a good client; status 0: there was none.
    pub fn answer(&mut self, class: usize, ack: Ack, status: u16, latency: Duration) {
        *self.statuses.entry(status).or_default() += 1;
        *self.all_statuses.entry(status).or_default() += 1;
        if status == 200 {
            let at = ACKS.iter().position(|each| *each == ack).expect("one of them");
            self.latencies[at].saturating_record(latency.as_micros() as u64);
            self.served[class] += 1;
        }
    }

    /// Statuses, and p50 and p99 in milliseconds for each ack, since the last call.
    pub fn take(&mut self) -> (BTreeMap<u16, u64>, [[f64; 2]; 3]) {
        let figures = std::array::from_fn(|at| {
            let of = &mut self.latencies[at];
            let figures = [0.5, 0.99].map(|q| of.value_at_quantile(q) as f64 / 1000.0);
            of.reset();
            figures
        });
        (std::mem::take(&mut self.statuses), figures)
    }
}

/// One look at one server.
#[derive(Clone, Debug, Default)]
pub struct Look {
    pub resident: u64,
    pub descriptors: u64,
    pub connections: u64,
    pub spool_bytes: u64,
    pub spool_full: bool,
}

/// Both servers over the whole run.
#[derive(Default)]
pub struct Watch {
    /// Of the present minute, by server.
    pub looks: [Vec<Look>; 2],
    /// The highest value of each gauge, by server.
    pub peaks: [BTreeMap<String, u64>; 2],
    pub scrapes: u64,
}

impl Watch {
    pub fn look(&mut self, nth: usize, server: &Server, fds: Descriptors) -> Look {
        let metrics = server.metrics();
        for page in ["/readyz", "/peers"] {
            let _any_status = server.admin(page);
        }
        self.scrapes += 1;
        for name in metrics.gauges() {
            let peak = self.peaks[nth].entry(name.to_owned()).or_default();
            // Some gauges have no sample before there is something to tell.
            *peak = metrics.sum_where(name, "").max(*peak);
        }
        let look = Look {
            resident: server.resident(),
            descriptors: fds.sum() as u64,
            connections: metrics.sum("millrace_connections"),
            spool_bytes: metrics.sum("millrace_spool_bytes"),
            spool_full: metrics.sum("millrace_spool_full") > 0,
        };
        self.looks[nth].push(look.clone());
        look
    }
}

/// The median of the resident memory of these looks, in bytes.
pub fn median_resident<'l>(looks: impl IntoIterator<Item = &'l Look>) -> u64 {
    let mut all: Vec<u64> = looks.into_iter().map(|look| look.resident).collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or(0)
}

/// Counters that must have risen, or the soak has not done what it is for.
pub const EXERCISED: [(&str, &str); 16] = [
    ("millrace_put_retries_total", ""),
    ("millrace_payloads_dead_lettered_total", ""),
    ("millrace_requests_total", "reason=\"spool_full\""),
    ("millrace_requests_total", "status=\"401\""),
    ("millrace_requests_total", "status=\"408\""),
    ("millrace_requests_total", "status=\"413\""),
    ("millrace_spool_syncs_total", ""),
    ("millrace_tls_handshakes_total", "version=\"1.2\",resumed=\"yes\""),
    ("millrace_tls_handshakes_total", "version=\"1.3\",resumed=\"yes\""),
    ("millrace_tls_refusals_total", "reason=\"plain_http\""),
    ("millrace_tls_refusals_total", "reason=\"not_tls\""),
    ("millrace_tls_refusals_total", "reason=\"closed\""),
    ("millrace_tls_refusals_total", "reason=\"timeout\""),
    ("millrace_tls_on_plain_port_total", ""),
    ("millrace_tls_reload_failures_total", ""),
    ("millrace_token_requests_total", "token=\"good\",status=\"200\""),
];

/// Counters of defects.
pub const DEFECTS: [&str; 4] = [
    "millrace_connection_panics_total",
    "millrace_worker_panics_total",
    "millrace_core_deaths_total",
    "millrace_payloads_lost_total",
];

/// A counter of both kinds of labels, in any order of them.
pub fn counter(metrics: &Metrics, name: &str, labels: &str) -> u64 {
    metrics
        .0
        .lines()
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| series.split('{').next() == Some(name))
        .filter(|(series, _)| labels.split(',').all(|label| series.contains(label)))
        .map(|(_, value)| value.parse::<f64>().unwrap_or(0.0) as u64)
        .sum()
}
