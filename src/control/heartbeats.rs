//! Whether every core runs, and for how long one has not. A core counts up once a second
//! ([`CoreCells::samples`]); control looks whether it has. `/readyz`, a metric, the log and the
//! service manager's watchdog say what follows.
//!
//! Only time in which control itself looked counts as silence, so that a process that was stopped,
//! or a virtual machine that was paused, does not find all of its cores stuck when it goes on.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::metrics::{Cell64, Cells, CoreCells, CoreState};
use crate::rt::{self, sleep};

/// A core that has not run for this long keeps the server from being ready. Longer than any task
/// may take, and than a host with other work keeps a thread waiting.
pub(super) const CORE_STUCK_AFTER: Duration = Duration::from_secs(5);

/// How often control looks, …
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// … and the most that one look adds to a core's silence.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// Shown as 0: a core that runs is silent for a second between two counts.
const SHOWN_FROM: Duration = Duration::from_secs(2);

/// For how long each core has been silent. Written by control alone.
#[derive(Debug)]
pub(super) struct Heartbeats {
    cells: Cells,
    core_ids: Vec<usize>,
    silent_ms: Vec<Cell64>,
}

impl Heartbeats {
    pub(super) fn new(cells: Cells, core_ids: Vec<usize>) -> Heartbeats {
        Heartbeats { cells, core_ids, silent_ms: cells.iter().map(|_| Cell64::default()).collect() }
    }

    /// Looks from now on, until the process ends.
    pub(super) fn watch(self: &Arc<Heartbeats>) {
        let this = self.clone();
        rt::spawn(async move {
            let mut counts = vec![0; this.cells.len()];
            let mut looked = rt::now();
            loop {
                sleep(LOOK_EVERY).await;
                let now = rt::now();
                this.look(&mut counts, now - std::mem::replace(&mut looked, now));
            }
        })
        .detach();
    }

    /// `counts` are those of the look before, `passed` is the time since then.
    fn look(&self, counts: &mut [u64], passed: Duration) {
        for (at, cells) in self.cells.iter().enumerate() {
            let count = cells.samples.value();
            let before = self.silence(at);
            let has_run = std::mem::replace(&mut counts[at], count) != count;
            let silence = match has_run || !counts_up(cells) {
                true => Duration::ZERO,
                false => before + passed.min(LOOK_MAX),
            };
            self.silent_ms[at].set(silence.as_millis() as u64);
            let core = self.core_ids[at];
            let (was_stuck, is_stuck) = (before >= CORE_STUCK_AFTER, silence >= CORE_STUCK_AFTER);
            if is_stuck && !was_stuck {
                tracing::error!(
                    core,
                    mend = "see whether the host has stopped its thread; take `millrace debug \
                            bundle`, then restart the server",
                    "a core has not run for {CORE_STUCK_AFTER:?}: its clients get no answer"
                );
            } else if was_stuck && has_run {
                tracing::warn!(core, "a core runs again after {} s", before.as_secs());
            }
        }
    }

    /// For how long core number `at` has not been seen to run.
    fn silence(&self, at: usize) -> Duration {
        Duration::from_millis(self.silent_ms[at].value())
    }

    /// Whether every core has run within `limit`.
    pub(super) fn all_within(&self, limit: Duration) -> bool {
        (0..self.cells.len()).all(|at| self.silence(at) < limit)
    }

    /// For how long core number `at` has been stuck; `None` if it is not.
    pub(super) fn stuck(&self, at: usize) -> Option<Duration> {
        Some(self.silence(at)).filter(|silence| *silence >= CORE_STUCK_AFTER)
    }

    pub(super) fn collector(self: &Arc<Heartbeats>) -> Box<dyn Collector> {
        Box::new(HeartbeatCollector(self.clone()))
    }
}

/// Whether the core is at the stage in which it counts.
fn counts_up(cells: &CoreCells) -> bool {
    cells.is(CoreState::Serving) || cells.is(CoreState::Draining)
}

#[derive(Debug)]
struct HeartbeatCollector(Arc<Heartbeats>);

impl Collector for HeartbeatCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (name, help) = ("core_silent", "Since the core was last seen to run, 0 below 2 s");
        let unit = Some(&Unit::Seconds);
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (at, id) in self.0.core_ids.iter().enumerate() {
            let silence = Some(self.0.silence(at)).filter(|silence| *silence >= SHOWN_FROM);
            let labels = [("core", id.to_string())];
            let gauge = ConstGauge::new(silence.unwrap_or_default().as_secs_f64());
            gauge.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;

    fn scraped(heartbeats: &Arc<Heartbeats>) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(heartbeats.collector());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.lines().find(|line| line.starts_with("core_silent_seconds{")).unwrap().to_owned()
    }

    #[test]
    fn a_core_that_does_not_count_up_is_stuck_after_a_while() {
        let cells = metrics::cells(1);
        let heartbeats = Arc::new(Heartbeats::new(cells, vec![7]));
        let mut counts = [0];
        let ms = Duration::from_millis;
        // State, whether it has counted, time since the last look; silence then.
        for (row, (state, has_run, passed, silence)) in [
            (CoreState::Starting, false, 900, 0),
            (CoreState::Ready, false, 900, 0),
            (CoreState::Serving, false, 900, 900),
            (CoreState::Serving, true, 900, 0),
            (CoreState::Serving, false, 1_000, 1_000),
            (CoreState::Serving, false, 1_000, 2_000),
            (CoreState::Serving, false, 1_000, 3_000),
            // The process, or its host, was paused.
            (CoreState::Serving, false, 3_600_000, 4_000),
            (CoreState::Serving, false, 500, 4_500),
            (CoreState::Serving, false, 500, 5_000),
            (CoreState::Draining, false, 500, 5_500),
            (CoreState::Serving, true, 500, 0),
            (CoreState::Serving, false, 900, 900),
            (CoreState::Stopped, false, 500, 0),
            (CoreState::Died, false, 500, 0),
        ]
        .into_iter()
        .enumerate()
        {
            cells[0].set_state(state);
            cells[0].samples.add(u64::from(has_run));
            heartbeats.look(&mut counts, ms(passed));
            assert_eq!(heartbeats.silence(0), ms(silence), "row {row}");
            let stuck = (silence >= 5_000).then_some(ms(silence));
            assert_eq!(heartbeats.stuck(0), stuck, "row {row}");
            assert_eq!(heartbeats.all_within(ms(3_000)), silence < 3_000, "row {row}");
            let shown = if silence < 2_000 { 0.0 } else { silence as f64 / 1e3 };
            let line = format!("core_silent_seconds{{core=\"7\"}} {shown:?}");
            assert_eq!(scraped(&heartbeats), line, "row {row}");
        }
    }
}
