//! What a core samples once a second: since when its oldest payload waits for the store and its
//! oldest open batch for payloads, and how soon its spool will be full.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::{Cell64, Cells, CoreCells};
use crate::rt;

/// A sample older than this is of a core that is stuck. What it held then still waits.
const LATE_NS: u64 = 2_000_000_000;

/// One sample. Times are nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoreSample {
    /// When the oldest payload without an outcome was admitted; `None`: there is none.
    pub oldest_payload: Option<u64>,
    /// When the oldest open batch was opened; `None`: there is none.
    pub oldest_batch: Option<u64>,
    /// Until `SPOOL_MAX` is used up at the present rate; `None`: never, or there is no spool.
    pub spool_full_in: Option<Duration>,
}

/// The last sample of one core.
#[derive(Debug, Default)]
pub struct SampledCells {
    /// When it was taken.
    at: Cell64,
    /// 0 stands for `None`, …
    oldest_payload: Cell64,
    oldest_batch: Cell64,
    /// … also here, in milliseconds plus one.
    spool_full_in: Cell64,
}

impl SampledCells {
    /// Records a sample taken at `now`, in nanoseconds since 1970.
    pub fn set(&self, now: u64, sample: CoreSample) {
        let CoreSample { oldest_payload, oldest_batch, spool_full_in } = sample;
        self.oldest_payload.set(oldest_payload.unwrap_or(0));
        self.oldest_batch.set(oldest_batch.unwrap_or(0));
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1);
        self.spool_full_in.set(spool_full_in.map_or(0, |time| ms(time) + 1));
        self.at.set(now);
    }

    /// Seconds since `cell` at the time of the sample, or at `now` if the core has not sampled for
    /// a while.
    fn age(&self, cell: &Cell64, now: u64) -> f64 {
        let (since, at) = (cell.value(), self.at.value());
        let until = if now.saturating_sub(at) > LATE_NS { now } else { at };
        if since == 0 { 0.0 } else { until.saturating_sub(since) as f64 / 1e9 }
    }
}

/// A gauge in seconds; `None`: it is absent.
type Seconds = fn(&CoreCells, u64) -> Option<f64>;

/// Cells that are exact at every time say that nothing waits, because a sample says so only with
/// the next one.
const SECONDS: [(&str, &str, Seconds); 3] = [
    (
        "oldest_unstored_payload_age",
        "Age of the oldest payload that is neither stored nor dead-lettered",
        |c, now| {
            let is_any = c.unfinished() > 0;
            Some(if is_any { c.sampled.age(&c.sampled.oldest_payload, now) } else { 0.0 })
        },
    ),
    ("oldest_open_batch_age", "Age of the oldest batch that takes payloads", |c, now| {
        let is_any = c.batches_open.value() > 0;
        Some(if is_any { c.sampled.age(&c.sampled.oldest_batch, now) } else { 0.0 })
    }),
    (
        "spool_time_to_full",
        "Until SPOOL_MAX is used up at the rate of the last minute, absent unless what is not stored grows",
        |c, _| Some(c.sampled.spool_full_in.value().checked_sub(1)? as f64 / 1e3),
    ),
];

/// Reads the samples of all cores at a scrape.
#[derive(Debug)]
pub(super) struct SampleCollector {
    pub(super) cells: Cells,
    pub(super) core_ids: Vec<usize>,
}

impl Collector for SampleCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = rt::unix_nanos();
        for (name, help, read) in SECONDS {
            let unit = Some(&Unit::Seconds);
            let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            for (cells, id) in self.cells.iter().zip(&self.core_ids) {
                if let Some(value) = read(cells, now) {
                    let labels = [("core", id.to_string())];
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn ages_are_those_of_the_sample_and_go_on_while_a_core_is_stuck() {
        let cells = &super::super::cells(1)[0];
        let [payload, batch, _] = SECONDS.map(|(_, _, read)| read);
        let now = 1_700_000_000 * SECOND;
        assert_eq!(payload(cells, now), Some(0.0), "never sampled");
        cells.payloads_accepted.add(3);
        cells.batches_open.set(1);
        let (oldest_payload, oldest_batch) = (Some(now - 7 * SECOND), Some(now - SECOND / 2));
        cells.sampled.set(now, CoreSample { oldest_payload, oldest_batch, spool_full_in: None });
        for (later, ages) in [(0, (7.0, 0.5)), (2, (7.0, 0.5)), (3, (10.0, 3.5))] {
            let now = now + later * SECOND;
            assert_eq!((payload(cells, now), batch(cells, now)), (Some(ages.0), Some(ages.1)));
        }
        // What is known without a sample.
        cells.payloads_stored.add(3);
        cells.batches_open.set(0);
        assert_eq!((payload(cells, now), batch(cells, now)), (Some(0.0), Some(0.0)));
        // A clock that was set back.
        cells.payloads_accepted.inc();
        assert_eq!(payload(cells, 0), Some(7.0));
        cells.sampled.set(1, CoreSample { oldest_payload: Some(now), ..CoreSample::default() });
        assert_eq!(payload(cells, SECOND), Some(0.0));
    }

    #[test]
    fn a_spool_that_does_not_fill_has_no_time_to_full() {
        let cells = &super::super::cells(1)[0];
        let [.., time_to_full] = SECONDS.map(|(_, _, read)| read);
        assert_eq!(time_to_full(cells, 0), None);
        for (time, seconds) in [(0, 0.0), (1_500, 1.5), (3_600_000, 3600.0)] {
            let spool_full_in = Some(Duration::from_millis(time));
            cells.sampled.set(1, CoreSample { spool_full_in, ..CoreSample::default() });
            assert_eq!(time_to_full(cells, 0), Some(seconds));
        }
        cells.sampled.set(1, CoreSample::default());
        assert_eq!(time_to_full(cells, 0), None);
    }
}
