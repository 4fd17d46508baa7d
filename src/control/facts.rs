//! Metrics of the process as a whole: what was built, what it may need at most, its dead letters and
//! disks. Limits of a core stand beside what they bound, in `metrics`.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::disks::Disk;
use crate::config::Config;
use crate::deadletter::DeadLetters;
use crate::http::tokens::TOKENS_MAX;
use crate::limits::Limits;

/// The commit that was built, if the builder said it: `MILLRACE_COMMIT` in the environment of
/// `cargo build`.
pub const COMMIT: &str = match option_env!("MILLRACE_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

const ENVIRONMENT: &str = if cfg!(target_env = "musl") { "musl" } else { "gnu" };

/// Encodes them at a scrape.
#[derive(Debug)]
pub(super) struct FactsCollector {
    /// Names, texts and values of what never changes.
    bounds: Vec<(&'static str, &'static str, u64)>,
    dead_letters: DeadLetters,
    disks: Arc<[Disk]>,
}

impl FactsCollector {
    pub(super) fn new(
        config: &Config,
        limits: &Limits,
        dead_letters: DeadLetters,
        disks: Arc<[Disk]>,
    ) -> FactsCollector {
        let memory = limits.core_memory_bytes * config.cores.len() as u64;
        let tokens = if config.tokens_file.is_some() { TOKENS_MAX } else { 0 };
        let bounds = vec![
            ("dead_letter_directory_bytes_limit", "DEAD_LETTER_MAX", config.dead_letter_max),
            ("tokens_limit", "Most tokens that TOKENS_FILE may hold", tokens as u64),
            ("request_bytes_limit", "MAX_LENGTH", limits.request_bytes as u64),
            ("memory_needed_bytes", "Memory of all cores if every limit is reached", memory),
            (
                "address_space_needed_bytes",
                "Address space if every limit is reached",
                limits.address_space_bytes,
            ),
            ("locked_memory_needed_bytes", "Locked memory for all rings", limits.memlock_bytes),
            ("fds_needed", "File descriptors if every limit is reached", limits.files),
            ("threads_needed", "Threads, those of the kernel included", limits.threads as u64),
            ("file_needed_bytes", "Longest file that may be written", limits.file_bytes),
        ];
        FactsCollector { bounds, dead_letters, disks }
    }
}

impl Collector for FactsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "What was built, always 1";
        let mut build = encoder.encode_descriptor("build_info", help, None, MetricType::Gauge)?;
        let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
        let labels = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("commit", COMMIT.to_owned()),
            ("target", format!("{arch}-unknown-{os}-{ENVIRONMENT}")),
        ];
        ConstGauge::new(1_i64).encode(build.encode_family(&labels)?)?;
        let dead_letters = [
            (
                "dead_letters",
                "Dead letters in DEAD_LETTER_DIR, as counted here or last measured",
                self.dead_letters.waiting(),
            ),
            (
                "dead_letters_uncounted_bytes",
                "Bytes of dead letters that a stop has left and nobody has counted yet",
                self.dead_letters.uncounted(),
            ),
            (
                "dead_letter_directory_bytes",
                "Bytes of all dead letters, as counted here or last measured",
                self.dead_letters.used(),
            ),
            (
                "dead_letters_failing",
                "1 while dead letters cannot be written, so that payloads are lost",
                self.dead_letters.is_failing().into(),
            ),
        ];
        for (name, help, value) in dead_letters.iter().chain(&self.bounds) {
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX)).encode(gauge)?;
        }
        type Read = fn((u64, u64)) -> u64;
        let disks: [(&str, &str, Read); 2] = [
            (
                "disk_free_bytes",
                "Free space that this user may use, by directory, absent while its disk is silent",
                |of| of.0,
            ),
            ("disk_size_bytes", "Size of the file system, by directory, absent likewise", |of| {
                of.1
            }),
        ];
        for (name, help, read) in disks {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for disk in &*self.disks {
                if let Some(of) = disk.free_and_size() {
                    let labels = [("directory", disk.directory)];
                    let value = i64::try_from(read(of)).unwrap_or(i64::MAX);
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let (name, help) = ("disk_silent", "Since the disk last answered, 0 below 15 s");
        let unit = Some(&Unit::Seconds);
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for disk in &*self.disks {
            let labels = [("directory", disk.directory)];
            let silence = disk.silence().as_secs_f64();
            ConstGauge::new(silence).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
