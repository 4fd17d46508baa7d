//! When open batches are closed for another reason than being full: sooner, because a `stored`
//! request waits for one; and early, because there is no room to keep it open, which is logged with
//! what it costs.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::config::{BatchOptions, Config};
use crate::metrics::{CloseReason, CoreCells, LatencyCounts};
use crate::rt;
use crate::throttle::Throttle;

/// What a core knows about the closes of its batches.
pub(super) struct Closes {
    pub(super) stored: StoredWait,
    pub(super) early: EarlyCloses,
}

impl Closes {
    pub(super) fn new(config: &Config) -> Closes {
        Closes {
            stored: StoredWait::new(config.ack_timeout),
            early: EarlyCloses {
                put_price: config.put_price,
                window: Cell::default(),
                log: RefCell::new(Throttle::per_minute()),
            },
        }
    }
}

/// How long a batch may stay open once a `stored` request waits for it: so long that one PUT fits
/// into the rest of `ACK_TIMEOUT`, judged by the slowest percent of the last PUTs, and at most half
/// of it.
pub(super) struct StoredWait {
    ack_timeout: Duration,
    wait: Cell<Duration>,
    puts: Cell<RecentPuts>,
}

/// The PUTs of the last one to two [`StoredWait::WINDOW`]s are those since `before`.
#[derive(Clone, Copy, Default)]
struct RecentPuts {
    before: LatencyCounts,
    /// The counts when the current window began, …
    between: LatencyCounts,
    /// … and when that was.
    began: Option<Instant>,
    /// When `wait` was computed.
    judged: Option<Instant>,
}

impl StoredWait {
    /// PUTs before that are forgotten, so that neither a bad hour nor a good one decides for ever.
    const WINDOW: Duration = Duration::from_secs(60);

    /// Between two looks at the latencies.
    const JUDGED_FOR: Duration = Duration::from_secs(1);

    fn new(ack_timeout: Duration) -> StoredWait {
        StoredWait { ack_timeout, wait: Cell::new(ack_timeout / 2), puts: Cell::default() }
    }

    /// From `now` on.
    pub(super) fn at(&self, now: Instant, cells: &CoreCells) -> Duration {
        let mut puts = self.puts.get();
        if puts.judged.is_some_and(|judged| now - judged < Self::JUDGED_FOR) {
            return self.wait.get();
        }
        let counts = cells.put_latency.counts();
        if puts.began.is_none_or(|began| now - began >= Self::WINDOW) {
            puts = RecentPuts { before: puts.between, between: counts, began: Some(now), ..puts };
        }
        let p99 = counts.since(&puts.before).quantile(0.99);
        self.wait.set(wait_of(self.ack_timeout, p99));
        self.puts.set(RecentPuts { judged: Some(now), ..puts });
        self.wait.get()
    }
}

/// `p99`: the bounds of the bucket in which it is; `None` without PUTs.
///
/// Where a PUT may take nearly all of `ACK_TIMEOUT`, the batch still gets a sixteenth: a store that
/// is so slow must not get an object from each request. Where none fits, haste would help nobody.
fn wait_of(ack_timeout: Duration, p99: Option<(Duration, Duration)>) -> Duration {
    let half = ack_timeout / 2;
    match p99 {
        None => half,
        Some((least, _)) if least >= ack_timeout => half,
        Some((_, most)) => ack_timeout.saturating_sub(most).clamp(ack_timeout / 16, half),
    }
}

/// Logs that batches are closed before they are worth a PUT, because too few may be open or because
/// memory is short.
pub(super) struct EarlyCloses {
    put_price: f64,
    window: Cell<RecentCloses>,
    log: RefCell<Throttle>,
}

/// What was closed since the last line, or in the last minute.
#[derive(Clone, Copy, Default)]
struct RecentCloses {
    began: Option<Instant>,
    batches: u64,
    payloads: u64,
    stored_bytes: u64,
    /// Closed because of `MAX_PARTITIONS`, …
    by_partitions: u64,
    /// … or because of `BATCH_MEMORY`.
    by_memory: u64,
}

impl EarlyCloses {
    /// Fewer early closes say nothing.
    const LEAST: u64 = 10;

    const WINDOW: Duration = Duration::from_secs(60);

    /// A batch of `payloads` was closed for `reason` with `stored_bytes`.
    pub(super) fn note(
        &self,
        reason: CloseReason,
        payloads: u64,
        stored_bytes: u64,
        options: &BatchOptions,
    ) {
        let mut window = self.window.get();
        let is_early = matches!(reason, CloseReason::Partitions | CloseReason::Memory);
        if window.batches == 0 && !is_early {
            return;
        }
        let now = rt::now();
        if window.began.is_none_or(|began| now - began >= Self::WINDOW) {
            window = RecentCloses { began: Some(now), ..RecentCloses::default() };
        }
        window.batches += 1;
        window.payloads += payloads;
        window.stored_bytes += stored_bytes;
        window.by_partitions += u64::from(reason == CloseReason::Partitions);
        window.by_memory += u64::from(reason == CloseReason::Memory);
        if is_early && window.is_costly(options) {
            let mut log = self.log.borrow_mut();
            let logged = log.warn(|| window.text(options, self.put_price));
            if logged {
                window = RecentCloses::default();
            }
        }
        self.window.set(window);
    }
}

impl RecentCloses {
    /// Whether a large part of the batches were closed early, and small.
    fn is_costly(&self, options: &BatchOptions) -> bool {
        let early = self.by_partitions + self.by_memory;
        early >= EarlyCloses::LEAST
            && 4 * early >= self.batches
            && 4 * self.stored_bytes < options.bytes * self.batches
    }

    fn text(&self, options: &BatchOptions, put_price: f64) -> String {
        let RecentCloses { batches, payloads, by_partitions, by_memory, .. } = *self;
        let dollars = batches as f64 / payloads.max(1) as f64 * 1e6 * put_price / 1e3;
        let each = payloads as f64 / batches as f64;
        let (early, why, remedy) = if by_partitions >= by_memory {
            let why = format!("MAX_PARTITIONS={} were open", options.partitions);
            (by_partitions, why, "raise MAX_PARTITIONS, and BATCH_MEMORY with it")
        } else {
            let why = format!("BATCH_MEMORY={} was short", options.memory);
            (by_memory, why, "raise BATCH_MEMORY")
        };
        format!(
            "{early} of this core's last {batches} batches were closed early because {why}; they hold {each:.1} \
             payloads each, so the PUTs of a million payloads cost ${dollars:.2}: {remedy}, or let \
             KEY make fewer partitions"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::cells;

    const ACK: Duration = Duration::from_secs(30);

    fn seconds(s: f64) -> Duration {
        Duration::from_secs_f64(s)
    }

    #[test]
    fn a_stored_request_waits_so_long_that_a_put_still_fits() {
        for (p99, wait) in [
            (None, 15.0),
            (Some((0.0, 0.00005)), 15.0),
            (Some((5.0, 10.0)), 15.0),
            (Some((10.0, 20.0)), 10.0),
            // It may take until ACK_TIMEOUT ends, …
            (Some((20.0, 30.0)), 1.875),
            (Some((29.0, 60.0)), 1.875),
            // … or certainly longer.
            (Some((30.0, 60.0)), 15.0),
            (Some((120.0, f64::from(u32::MAX))), 15.0),
        ] {
            let p99 = p99.map(|(least, most)| (seconds(least), seconds(most)));
            assert_eq!(wait_of(ACK, p99), seconds(wait), "{p99:?}");
        }
    }

    #[test]
    fn the_wait_follows_the_puts_of_the_last_minutes() {
        let cells = &cells(1)[0];
        let stored = StoredWait::new(ACK);
        let start = rt::now();
        let at = |s: f64| stored.at(start + seconds(s), cells).as_secs_f64();
        assert_eq!(at(0.0), 15.0);
        (0..98).for_each(|_| cells.put_latency.observe(seconds(0.01)));
        (0..2).for_each(|_| cells.put_latency.observe(seconds(15.0)));
        assert_eq!(at(0.5), 15.0, "judged a moment ago");
        assert_eq!(at(1.0), 10.0);
        // One of a hundred is not the 99th percentile.
        (0..100).for_each(|_| cells.put_latency.observe(seconds(0.01)));
        assert_eq!(at(2.0), 15.0);
        (0..3).for_each(|_| cells.put_latency.observe(seconds(15.0)));
        assert_eq!(at(3.0), 10.0);
        assert_eq!(at(59.0), 10.0);
        assert_eq!(at(61.0), 10.0, "the window before counts as well");
        assert_eq!(at(122.0), 15.0, "and is forgotten");
    }

    fn options(settings: &[(&str, &str)]) -> BatchOptions {
        let settings = [&[("OBJECT", "batch")], settings].concat();
        Config::from_settings(&settings).unwrap().batch.unwrap()
    }

    #[test]
    fn batches_closed_early_and_small_cost_what_the_line_says() {
        use CloseReason::{Age, Memory, Partitions};
        let options = options(&[("MAX_PARTITIONS", "7"), ("BATCH_BYTES", "64KiB")]);
        let window = |closes: &[(CloseReason, u64, u64, u64)]| {
            let closes_of = Closes::new(&Config::from_settings(&[]).unwrap()).early;
            // Nothing is logged here; the last window that would be is returned.
            let mut costly = None;
            for &(reason, batches, payloads, bytes) in closes {
                for _ in 0..batches {
                    let before = closes_of.window.get().batches;
                    closes_of.note(reason, payloads, bytes, &options);
                    let is_logged = closes_of.window.get().batches < before;
                    costly = costly.or(is_logged.then_some(reason));
                }
            }
            costly
        };
        assert_eq!(window(&[(Partitions, 10, 2, 100)]), Some(Partitions));
        assert_eq!(window(&[(Memory, 10, 2, 100)]), Some(Memory));
        for cheap in [
            &[(Partitions, 9, 2, 100)][..],
            &[(Partitions, 100, 2, 16 << 10)],
            &[(Partitions, 1, 2, 100), (Age, 40, 2, 100), (Partitions, 9, 2, 100)],
            &[(Age, 1_000, 1, 1)],
        ] {
            assert_eq!(window(cheap), None, "{cheap:?}");
        }
        let window = RecentCloses {
            batches: 10_461,
            payloads: 12_000,
            by_partitions: 10_205,
            ..RecentCloses::default()
        };
        assert_eq!(
            window.text(&options, 0.005),
            "10205 of this core's last 10461 batches were closed early because MAX_PARTITIONS=7 were \
             open; they hold 1.1 payloads each, so the PUTs of a million payloads cost $4.36: raise \
             MAX_PARTITIONS, and BATCH_MEMORY with it, or let KEY make fewer partitions"
        );
        let window = RecentCloses { by_memory: 10_206, ..window };
        let text = window.text(&options, 0.005);
        assert!(text.contains("because BATCH_MEMORY=134217728 was short;"), "{text}");
        assert!(text.contains("$4.36: raise BATCH_MEMORY, or let"), "{text}");
    }
}
