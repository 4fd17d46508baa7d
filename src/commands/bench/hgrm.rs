//! Histograms as text: the percentile distribution of HdrHistogram (`.hgrm`), which its plotter
//! (`plotFiles.html`) and most programs around it read.
//!
//! The format is that of `outputPercentileDistribution` in HdrHistogram's Java sources
//! (`AbstractHistogram.java`), also written by wrk2; values are in milliseconds here, as there.

use std::io::{self, Write};

use hdrhistogram::Histogram;

/// Lines for each halving of the distance to 100 %, as most programs have it.
const TICKS_PER_HALF_DISTANCE: u32 = 5;
/// Nanoseconds in the unit of the file.
const UNIT: f64 = 1e6;

/// Writes a histogram of nanoseconds.
///
/// # Errors
/// `out` cannot be written.
pub(super) fn write(out: &mut dyn Write, latency: &Histogram<u64>) -> io::Result<()> {
    writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    )?;
    let mut count = 0;
    for line in latency.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        count += line.count_since_last_iteration();
        let (value, quantile) =
            (line.value_iterated_to() as f64 / UNIT, line.quantile_iterated_to());
        write!(out, "{value:12.3} {quantile:2.12} {count:10}")?;
        if quantile < 1.0 {
            write!(out, " {:14.2}", 1.0 / (1.0 - quantile))?;
        }
        writeln!(out)?;
    }
    let (mean, deviation) = (latency.mean() / UNIT, latency.stdev() / UNIT);
    writeln!(out, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]")?;
    let (max, all) = (latency.max() as f64 / UNIT, latency.len());
    writeln!(out, "#[Max     = {max:12.3}, Total count    = {all:12}]")?;
    // As many sub-buckets as three digits need.
    let buckets = latency.buckets();
    writeln!(out, "#[Buckets = {buckets:12}, SubBuckets     = {:12}]", 2_048)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plotter's own way of reading: columns between blanks, up to the line `#[Mean`.
    fn parsed(text: &str) -> Vec<[f64; 3]> {
        let lines = text.lines().skip(2).take_while(|line| !line.starts_with('#'));
        let columns = |line: &str| {
            let numbers: Vec<f64> =
                line.split_whitespace().map(|number| number.parse().unwrap()).collect();
            [numbers[0], numbers[1], numbers[2]]
        };
        lines.map(columns).collect()
    }

    #[test]
    fn the_distribution_is_that_of_the_values() {
        let mut latency = Histogram::new_with_bounds(1_000, 60_000_000_000, 3).unwrap();
        (1..=1_000_u64).for_each(|n| latency.record(n * 1_000_000).unwrap());
        let mut text = Vec::new();
        write(&mut text, &latency).unwrap();
        let text = String::from_utf8(text).unwrap();
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some("       Value     Percentile TotalCount 1/(1-Percentile)"),
            "{text}"
        );
        assert_eq!(lines.next(), Some(""));
        let rows = parsed(&text);
        assert!(rows.len() > 40, "{text}");
        for [value, quantile, count] in &rows {
            assert!((value - count).abs() <= value / 1_000.0, "{value} {count}");
            assert!(count / 1_000.0 >= *quantile - 1e-9, "{quantile} {count}");
        }
        assert_eq!(rows[0][1], 0.0);
        assert_eq!(rows[rows.len() - 1][1..], [1.0, 1_000.0]);
        let rest: Vec<&str> = text.lines().skip(2 + rows.len()).collect();
        assert!(rest[0].starts_with("#[Mean    =      500."), "{rest:?}");
        assert!(rest[1].starts_with("#[Max     =     1000.") && rest[1].ends_with("1000]"));
        assert!(rest[2].starts_with("#[Buckets = ") && rest.len() == 3, "{rest:?}");
    }

    #[test]
    fn a_histogram_without_values_is_valid() {
        let mut text = Vec::new();
        write(&mut text, &Histogram::new_with_bounds(1_000, 60_000_000_000, 3).unwrap()).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("Total count    =            0]"), "{text}");
    }
}
