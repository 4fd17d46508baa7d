//! The metrics that every Prometheus client has about its process, with their usual names and
//! without this server's prefix:
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>
//!
//! A scrape reads one line of `/proc/self/stat` and one `stat` of `/proc/self/fd`; neither touches a
//! disk. What cannot be read is absent. Before Linux 6.2 open descriptors have to be listed, which
//! takes long where there are 100,000: they are counted at most every ten seconds, and in at
//! most a hundredth of the time.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::Cell64;
use crate::rt;

/// Reads the figures of this process at a scrape.
#[derive(Debug)]
pub struct ProcessCollector {
    /// When it started, in seconds since 1970. Computed once: a clock that is set later would look
    /// like a restart.
    started: Option<f64>,
    listed: ListedFiles,
}

/// Shortest time between two listings of descriptors.
const LISTED_EVERY: Duration = Duration::from_secs(10);
/// A listing is not repeated before this many times what it took.
const LISTED_PAUSE: u32 = 100;

/// The number of open descriptors where the kernel does not say it. Scrapes are the control
/// executor's, one at a time.
#[derive(Debug)]
struct ListedFiles {
    epoch: Instant,
    /// As counted last; 0: it could not be.
    count: Cell64,
    /// When they may be counted again, in milliseconds after `epoch`.
    after_ms: Cell64,
}

impl ListedFiles {
    fn new() -> ListedFiles {
        ListedFiles { epoch: rt::now(), count: Cell64::default(), after_ms: Cell64::default() }
    }

    /// As many as `list` says, now or some time ago. `list` also says how long it took.
    fn count(&self, now: Instant, list: impl FnOnce() -> (Option<u64>, Duration)) -> Option<u64> {
        let ms = now.saturating_duration_since(self.epoch).as_millis() as u64;
        if ms >= self.after_ms.value() {
            let (count, took) = list();
            self.count.set(count.unwrap_or(0));
            let pause = LISTED_EVERY.max(took * LISTED_PAUSE);
            self.after_ms.set(ms + pause.as_millis() as u64);
        }
        Some(self.count.value()).filter(|count| *count > 0)
    }
}

impl ProcessCollector {
    pub fn new() -> ProcessCollector {
        let age = || Some(uptime()?.saturating_sub(ProcessStat::read()?.started));
        let now = Duration::from_nanos(rt::unix_nanos());
        let started = age().map(|age| now.saturating_sub(age).as_secs_f64());
        ProcessCollector { started, listed: ListedFiles::new() }
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stat = ProcessStat::read();
        if let Some(stat) = &stat {
            let help = "CPU time of all threads, of the kernel's work for them too";
            let unit = Some(&Unit::Seconds);
            let name = "process_cpu";
            let counter = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
            ConstCounter::new(stat.cpu.as_secs_f64()).encode(counter)?;
        }
        let [bytes, seconds] = [Some(&Unit::Bytes), Some(&Unit::Seconds)];
        let of_stat = |read: fn(&ProcessStat) -> u64| stat.as_ref().map(|stat| read(stat) as f64);
        let limit = |resource| getrlimit(resource).current.map(|limit| limit as f64);
        let gauges = [
            (
                "process_open_fds",
                "Open file descriptors",
                None,
                open_files(&self.listed).map(|n| n as f64),
            ),
            ("process_max_fds", "RLIMIT_NOFILE", None, limit(Resource::Nofile)),
            ("process_virtual_memory", "Address space", bytes, of_stat(|stat| stat.address_space)),
            (
                "process_virtual_memory_max",
                "RLIMIT_AS, absent if it is unlimited",
                bytes,
                limit(Resource::As),
            ),
            ("process_resident_memory", "Memory in RAM", bytes, of_stat(|stat| stat.resident)),
            ("process_start_time", "Start, since 1970", seconds, self.started),
            ("process_threads", "Threads", None, of_stat(|stat| stat.threads)),
        ];
        for (name, help, unit, value) in gauges {
            let gauge = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            if let Some(value) = value {
                ConstGauge::new(value).encode(gauge)?;
            }
        }
        Ok(())
    }
}

/// What `/proc/self/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProcessStat {
    cpu: Duration,
    threads: u64,
    /// After the boot of the host.
    started: Duration,
    address_space: u64,
    resident: u64,
}

impl ProcessStat {
    fn read() -> Option<ProcessStat> {
        ProcessStat::parse(&read_proc("/proc/self/stat")?)
    }

    /// proc_pid_stat(5). The name of the command, in parentheses, may hold anything.
    fn parse(text: &str) -> Option<ProcessStat> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The manual counts from 1, and two fields are before the rest.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = |n: u64| Duration::from_secs_f64(n as f64 / clock_ticks_per_second() as f64);
        Some(ProcessStat {
            cpu: ticks(field(14)? + field(15)?),
            threads: field(20)?,
            started: ticks(field(22)?),
            address_space: field(23)?,
            resident: field(24)? * page_size() as u64,
        })
    }
}

/// Since the boot of the host, suspended time included.
fn uptime() -> Option<Duration> {
    let text = read_proc("/proc/uptime")?;
    Duration::try_from_secs_f64(text.split(' ').next()?.parse().ok()?).ok()
}

fn open_files(listed: &ListedFiles) -> Option<u64> {
    let directory = Path::new("/proc/self/fd");
    // Linux 6.2 and later say it there.
    match fs::metadata(directory).ok()?.size() {
        0 => listed.count(rt::now(), || {
            let began = rt::now();
            (list_files(directory), rt::since(began))
        }),
        count => Some(count),
    }
}

#[expect(clippy::disallowed_methods, reason = "proc, which touches no disk")]
fn list_files(directory: &Path) -> Option<u64> {
    // One of them is that of the listing itself.
    Some((fs::read_dir(directory).ok()?.count() as u64).saturating_sub(1))
}

#[expect(clippy::disallowed_methods, reason = "proc, which touches no disk")]
fn read_proc(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_the_name_of_the_command() {
        let rest = "S 1 2 2 0 -1 4194560 10 0 0 0 250 50 7 9 20 0 33 0 1200 987654 25 \
                    18446744073709551615 1 1 0";
        for name in ["millrace", "a b", ") 9 9 (", "a) S 1 2"] {
            let stat = ProcessStat::parse(&format!("17 ({name}) {rest}\n")).expect(name);
            let per_second = clock_ticks_per_second() as f64;
            assert_eq!(stat.cpu, Duration::from_secs_f64(300.0 / per_second), "{name}");
            assert_eq!(stat.started, Duration::from_secs_f64(1200.0 / per_second));
            assert_eq!((stat.threads, stat.address_space), (33, 987_654));
            assert_eq!(stat.resident, 25 * page_size() as u64);
        }
        for text in ["", "17 millrace S", "17 (millrace)", "17 (millrace) S 1 2"] {
            assert_eq!(ProcessStat::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_figures_are_those_of_this_process() {
        let stat = ProcessStat::read().unwrap();
        assert!(stat.threads > 0 && stat.resident > 1 << 20, "{stat:?}");
        assert!(stat.address_space > stat.resident, "{stat:?}");
        let open_files = || open_files(&ListedFiles::new());
        let before = (open_files().unwrap(), list_files(Path::new("/proc/self/fd")).unwrap());
        let files: Vec<_> = (0..100).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        let after = (open_files().unwrap(), list_files(Path::new("/proc/self/fd")).unwrap());
        drop(files);
        // Other tests of this process open and close some meanwhile.
        assert!(after.0 >= before.0 + 50 && after.1 >= before.1 + 50, "{before:?} {after:?}");
        let started = ProcessCollector::new().started.unwrap();
        let now = Duration::from_nanos(rt::unix_nanos()).as_secs_f64();
        assert!((0.0..3600.0).contains(&(now - started)), "{started} {now}");
    }

    #[test]
    fn descriptors_are_not_listed_for_every_scrape() {
        let listed = ListedFiles::new();
        let ms = Duration::from_millis;
        // When, what a listing would find and how long it would take; what is shown.
        for (at, list, shown) in [
            (0, Some((Some(7), ms(1))), Some(7)),
            (9_999, None, Some(7)),
            (10_000, Some((Some(100_000), ms(300))), Some(100_000)),
            (20_000, None, Some(100_000)),
            (39_999, None, Some(100_000)),
            (40_000, Some((None, ms(0))), None),
            (49_999, None, None),
            (50_000, Some((Some(8), ms(0))), Some(8)),
        ] {
            let is_listed = std::cell::Cell::new(false);
            let count = listed.count(listed.epoch + ms(at), || {
                is_listed.set(true);
                list.unwrap_or_default()
            });
            assert_eq!((is_listed.get(), count), (list.is_some(), shown), "{at}");
        }
    }

    #[test]
    fn names_are_the_usual_ones() {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(ProcessCollector::new()));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for name in [
            "process_cpu_seconds_total",
            "process_open_fds",
            "process_max_fds",
            "process_virtual_memory_bytes",
            "process_resident_memory_bytes",
            "process_start_time_seconds",
            "process_threads",
        ] {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let value: f64 = value.unwrap_or_else(|| panic!("{name} in\n{text}")).parse().unwrap();
            assert!(value > 0.0 || name.contains("cpu"), "{name} {value}");
        }
    }
}
