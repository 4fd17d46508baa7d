//! How long the turns of each core take, and which tasks make the long ones.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Unit;

use super::{Cell64, Cells};
use crate::rt::{LONG_TURN, LongTurn, TaskKind};

/// Upper bounds in microseconds of every bucket but the last (`+Inf`). Between 100 µs and 100 ms no
/// bucket is wider than a factor of 1.5.
const TURN_BOUNDS_US: [u64; 28] = [
    10, 20, 50, 100, 150, 200, 300, 400, 500, 700, 1_000, 1_500, 2_000, 3_000, 4_000, 5_000, 7_000,
    10_000, 15_000, 20_000, 30_000, 40_000, 50_000, 70_000, 100_000, 200_000, 500_000, 1_000_000,
];

/// The label of long turns for most of whose time the thread did not run.
const DESCHEDULED: &str = "descheduled";

type Buckets = [Cell64; TURN_BOUNDS_US.len() + 1];

/// The turns of one core.
#[derive(Debug, Default)]
pub struct TurnCells {
    buckets: Buckets,
    sum_ns: Cell64,
    /// Long turns by how long the thread ran in them, …
    long_ran: Buckets,
    /// … and for how long it did not.
    off_cpu_ns: Cell64,
    /// Long turns by the task that took most of the time, …
    long: [Cell64; TaskKind::COUNT],
    /// … without those in which the thread mostly did not run.
    descheduled: Cell64,
}

impl TurnCells {
    /// Counts a turn.
    pub fn observe(&self, length: Duration) {
        let ns = nanos(length);
        self.buckets[bucket(ns)].inc();
        self.sum_ns.add(ns);
    }

    /// Attributes a turn that [`TurnCells::observe`] has counted.
    pub fn attribute(&self, turn: &LongTurn) {
        self.long_ran[bucket(nanos(turn.ran))].inc();
        self.off_cpu_ns.add(nanos(turn.length.saturating_sub(turn.ran)));
        let cell =
            if turn.was_descheduled() { &self.descheduled } else { &self.long[turn.task as usize] };
        cell.inc();
    }

    /// Observations by length.
    fn lengths(&self) -> Vec<u64> {
        self.buckets.iter().map(Cell64::value).collect()
    }

    /// Observations by how long the thread ran. Only of long turns it is known how long that was;
    /// of the others it is nearly all of the time.
    fn ran(&self) -> Vec<u64> {
        let is_short = |at: &usize| {
            TURN_BOUNDS_US.get(*at).is_some_and(|us| Duration::from_micros(*us) <= LONG_TURN)
        };
        let short = |at: usize| if is_short(&at) { self.buckets[at].value() } else { 0 };
        let long = self.long_ran.iter().map(Cell64::value);
        long.enumerate().map(|(at, long)| long + short(at)).collect()
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX >> 1)
}

fn bucket(ns: u64) -> usize {
    TURN_BOUNDS_US.partition_point(|bound| bound * 1_000 < ns)
}

/// Reads the turns of all cores at a scrape.
#[derive(Debug)]
pub(super) struct TurnCollector {
    pub(super) cells: Cells,
    pub(super) core_ids: Vec<usize>,
}

impl Collector for TurnCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let cores = || self.cells.iter().map(|cells| &cells.turns).zip(&self.core_ids);
        let seconds = |ns: u64| ns as f64 / 1e9;
        let help = "Time in which a core ran tasks between two looks at its sockets";
        let mut family =
            encoder.encode_descriptor("core_turn", help, Some(&Unit::Seconds), HISTOGRAM)?;
        for (turns, id) in cores() {
            encode(&mut family, *id, &turns.lengths(), seconds(turns.sum_ns.value()))?;
        }
        let help = "The same without the time in which the core's thread did not run";
        let mut family =
            encoder.encode_descriptor("core_turn_ran", help, Some(&Unit::Seconds), HISTOGRAM)?;
        for (turns, id) in cores() {
            let ran = turns.sum_ns.value().saturating_sub(turns.off_cpu_ns.value());
            encode(&mut family, *id, &turns.ran(), seconds(ran))?;
        }
        let (name, help) = ("core_long_turns", "Turns of 1 ms or more, by what took most of them");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (turns, id) in cores() {
            let tasks = TaskKind::ALL.iter().map(|task| task.name()).chain([DESCHEDULED]);
            for (cell, task) in turns.long.iter().chain([&turns.descheduled]).zip(tasks) {
                let labels = [("core", id.to_string()), ("task", task.to_owned())];
                ConstCounter::new(cell.value()).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

const HISTOGRAM: MetricType = MetricType::Histogram;

fn encode(
    family: &mut MetricEncoder<'_>,
    core: usize,
    counts: &[u64],
    sum: f64,
) -> Result<(), fmt::Error> {
    let bounds = TURN_BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
    let labels = [("core", core.to_string())];
    family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
        sum,
        counts.iter().sum(),
        &buckets,
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;

    #[test]
    fn turns_are_counted_by_length_and_long_ones_by_task() {
        let cells = metrics::cells(2);
        let turns = &cells[1].turns;
        let ms = Duration::from_millis;
        for length in [Duration::from_micros(100), Duration::from_nanos(100_001), ms(6), ms(6)] {
            turns.observe(length);
        }
        let (length, task) = (ms(6), TaskKind::Connection);
        let turn = LongTurn { length, ran: ms(5), task, task_time: ms(5), polls: 1 };
        turns.attribute(&turn);
        turns.attribute(&LongTurn { ran: ms(0), ..turn });
        let mut text = String::new();
        let registry = metrics::registry(cells, vec![0, 5], 0.005, Vec::new());
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "millrace_core_turn_seconds_bucket{le=\"0.00005\",core=\"5\"} 0",
            "millrace_core_turn_seconds_bucket{le=\"0.0001\",core=\"5\"} 1",
            "millrace_core_turn_seconds_bucket{le=\"0.00015\",core=\"5\"} 2",
            "millrace_core_turn_seconds_bucket{le=\"0.005\",core=\"5\"} 2",
            "millrace_core_turn_seconds_bucket{le=\"0.007\",core=\"5\"} 4",
            "millrace_core_turn_seconds_bucket{le=\"+Inf\",core=\"0\"} 0",
            "millrace_core_turn_seconds_sum{core=\"5\"} 0.012200001",
            "millrace_core_turn_ran_seconds_bucket{le=\"0.00001\",core=\"5\"} 1",
            "millrace_core_turn_ran_seconds_bucket{le=\"0.00015\",core=\"5\"} 3",
            "millrace_core_turn_ran_seconds_bucket{le=\"0.004\",core=\"5\"} 3",
            "millrace_core_turn_ran_seconds_bucket{le=\"0.005\",core=\"5\"} 4",
            "millrace_core_turn_ran_seconds_bucket{le=\"+Inf\",core=\"5\"} 4",
            "millrace_core_turn_ran_seconds_sum{core=\"5\"} 0.005200001",
            "millrace_core_long_turns_total{core=\"5\",task=\"connection\"} 1",
            "millrace_core_long_turns_total{core=\"5\",task=\"descheduled\"} 1",
            "millrace_core_long_turns_total{core=\"5\",task=\"batches\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn the_help_says_how_long_a_long_turn_is() {
        assert_eq!(LONG_TURN, Duration::from_millis(1));
    }

    #[test]
    fn buckets_are_fine_where_it_matters() {
        for pair in TURN_BOUNDS_US.windows(2) {
            assert!(pair[0] < pair[1], "{pair:?}");
            let is_fine = 2 * pair[1] <= 3 * pair[0];
            assert!(is_fine || pair[0] < 100 || pair[0] >= 100_000, "{pair:?}");
        }
    }
}
