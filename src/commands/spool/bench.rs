//! `millrace spool bench`: how long the disk of a spool takes for a write and its sync, and what
//! that means for `ACK=spooled`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;

use crate::commands::print;
use crate::config::Config;
use crate::control::Exit;
use crate::preflight;
use crate::spool::bench::{GROUP_BYTES, SEGMENT_BYTES, SpoolBench, SyncTimes};

/// A sync that a core at full load needs, see docs/sizing.md, "Spool disk".
const FULL_LOAD: Duration = Duration::from_micros(200);
/// Typical of network volumes and of SSDs without power-loss protection; above it of rotating disks.
const SLOW: Duration = Duration::from_millis(5);
/// No disk confirms a write that survives a power failure as fast as this.
const TOO_FAST: Duration = Duration::from_micros(8);
/// A disk is unsteady if one sync in a hundred takes this many times as long as usual.
const UNSTEADY: u32 = 10;
/// Answers wait for one sync, or for three: one in flight and the next two share what waits.
const SYNCS_WAITED: u32 = 3;

/// Measures the disk of `dir`, or of `SPOOL_DIR`, with one writer and with one per core; prints the
/// times and what follows from them. Writes only to files without a name, 16 MiB for each core.
///
/// # Errors
/// No directory is named, the disk refuses, or standard output cannot be written.
pub async fn run(config: &Config, dir: PathBuf) -> Result<Exit, String> {
    let cores = config.cores.len();
    let times = measure(&dir, cores).await.map_err(|error| refusal(&dir, &error, cores))?;
    let is_in_memory = preflight::is_in_memory(&dir);
    print(|out| report(out, &dir, &times, is_in_memory))?;
    Ok(Exit::Clean)
}

fn refusal(dir: &Path, error: &io::Error, cores: usize) -> String {
    let needs = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let bytes = ByteSize(SEGMENT_BYTES * cores as u64);
            format!("; the measurement needs {bytes} there: make room, or give another directory")
        }
        _ => String::new(),
    };
    format!("{}: {error}{needs}", dir.display())
}

async fn measure(dir: &Path, cores: usize) -> io::Result<Vec<SyncTimes>> {
    let bench = SpoolBench::prepare(dir, cores).await?;
    let mut times = Vec::new();
    for writers in if cores == 1 { vec![1] } else { vec![1, cores] } {
        for bytes in GROUP_BYTES {
            times.push(bench.measure(writers, bytes).await?);
        }
    }
    Ok(times)
}

fn report(
    out: &mut dyn Write,
    dir: &Path,
    times: &[SyncTimes],
    is_in_memory: bool,
) -> io::Result<()> {
    writeln!(
        out,
        "{}: direct I/O, each write with fdatasync, one at a time per writer",
        dir.display()
    )?;
    writeln!(
        out,
        "writers  {:>9}  {:>6}  {:>9}  {:>9}  {:>9}  {:>9}  {:>8}  {:>12}",
        "bytes", "writes", "p50", "p90", "p99", "max", "syncs/s", "bytes/s"
    )?;
    for row in times {
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|q| shown(row.quantile(q)));
        writeln!(
            out,
            "{:>7}  {:>9}  {:>6}  {p50:>9}  {p90:>9}  {p99:>9}  {max:>9}  {:>8.0}  {:>12}",
            row.writers,
            ByteSize(row.bytes as u64).to_string(),
            row.count(),
            row.rate(),
            ByteSize(row.bandwidth() as u64).to_string(),
        )?;
    }
    advice(times, is_in_memory).iter().try_for_each(|line| writeln!(out, "{line}"))
}

fn shown(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}

/// What follows from the times with most writers; not empty.
fn advice(times: &[SyncTimes], is_in_memory: bool) -> Vec<String> {
    let most = times.iter().map(|row| row.writers).max().expect("measured");
    let of = |bytes| times.iter().find(|row| row.writers == most && row.bytes == bytes);
    let small = of(GROUP_BYTES[0]).expect("measured");
    let large = of(GROUP_BYTES[GROUP_BYTES.len() - 1]).expect("measured");
    let (usual, rare) = (small.quantile(0.5), small.quantile(0.99));
    let verdict = match () {
        () if is_in_memory => {
            "memory and no disk (tmpfs): what is spooled here is lost when the host stops"
        }
        () if usual < TOO_FAST => {
            "too fast for a disk: something confirms writes before they would survive a power failure (a host that \
             caches for its guests, a controller without a battery, eatmydata); payloads spooled here may not"
        }
        () if usual <= FULL_LOAD => "fast enough for cores at full load",
        () if usual <= SLOW => {
            "fit: at load more requests share a sync, and answers take longer; an SSD with power-loss protection takes \
             0.02 to 0.1 ms"
        }
        () => {
            "slow: a rotating disk, a network volume or one that others keep busy; every answer to a spooled request \
             waits for it. Use another disk, or ACK=queued for what may be lost"
        }
    };
    let mut lines = vec![
        format!("sync      {} usually: {verdict}", shown(usual)),
        format!(
            "answers   with ACK=spooled wait {} to {} for the disk, one in a hundred up to {}",
            shown(usual),
            shown(usual * SYNCS_WAITED),
            shown(rare * SYNCS_WAITED)
        ),
        format!(
            "payloads  at most {} per second in all, with {most} {}; less while a backlog is read",
            ByteSize(large.bandwidth() as u64),
            if most == 1 { "core" } else { "cores" }
        ),
    ];
    if rare > usual * UNSTEADY {
        lines.push(format!(
            "unsteady  one sync in a hundred takes {}, more than {UNSTEADY} times as long as usual: look for what else \
             writes to this disk, or for a volume with a limit on operations",
            shown(rare)
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every size with `writers`, a hundred writes of which one takes `rare`.
    fn times(writers: usize, usual: Duration, rare: Duration) -> Vec<SyncTimes> {
        let made = |bytes| {
            let mut times = vec![usual; 98];
            times.extend([rare, rare]);
            SyncTimes::made_up(writers, bytes, times)
        };
        GROUP_BYTES.map(made).to_vec()
    }

    #[test]
    fn the_advice_fits_the_disk() {
        let micros = Duration::from_micros;
        for (usual, rare, verdict, unsteady) in [
            (micros(3), micros(5), "too fast", false),
            (micros(20), micros(190), "fast enough", false),
            (micros(200), micros(400), "fast enough", false),
            (micros(201), micros(2_000), "fit: ", false),
            (micros(900), micros(9_001), "fit: ", true),
            (micros(5_001), micros(7_000), "slow: ", false),
        ] {
            let lines = advice(&times(1, usual, rare), false);
            assert!(lines[0].contains(verdict), "{usual:?}: {lines:?}");
            let says_unsteady = lines.iter().any(|line| line.starts_with("unsteady"));
            assert_eq!(says_unsteady, unsteady, "{usual:?} {rare:?}: {lines:?}");
        }
        let in_memory = &advice(&times(1, micros(20), micros(30)), true)[0];
        assert!(in_memory.contains("memory and no disk"), "{in_memory}");
        let waits = &advice(&times(1, micros(100), micros(900)), false)[1];
        assert!(waits.contains("0.100 ms to 0.300 ms") && waits.contains("2.700 ms"), "{waits}");
    }

    /// What one writer alone gets says nothing about a server of four cores.
    #[test]
    fn the_times_with_all_writers_count() {
        let (fast, slow) = (Duration::from_micros(50), Duration::from_millis(8));
        let rows = [times(1, fast, fast), times(4, slow, slow)].concat();
        let lines = advice(&rows, false);
        assert!(lines[0].contains("slow: "), "{lines:?}");
        // 4 writers × 1 MiB every 8 ms.
        assert!(
            lines[2].contains("500.0 MiB per second") && lines[2].contains("4 cores"),
            "{lines:?}"
        );
    }

    #[test]
    fn the_report_has_a_row_for_each_measurement() {
        let rows = times(1, Duration::from_millis(1), Duration::from_millis(2));
        let mut text = Vec::new();
        report(&mut text, Path::new("/spool"), &rows, false).unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("/spool: direct I/O"), "{text}");
        assert_eq!(lines.len(), 2 + GROUP_BYTES.len() + 3, "{text}");
        for (line, bytes) in lines[2..].iter().zip(["4.0 KiB", "32.0 KiB", "256.0 KiB", "1.0 MiB"])
        {
            assert!(line.contains(bytes) && line.contains("1.000 ms"), "{line}");
            assert_eq!(line.len(), lines[1].len(), "{text}");
        }
    }
}
