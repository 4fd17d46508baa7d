//! What a run leaves behind: a directory with every round and every ratio as CSV, headed by where
//! they come from.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::figures::{COLUMNS, LaneFigures, Ratio, Spread};
use crate::options::Options;

/// Where and how it was measured. No host name: a class of machine.
pub struct Machine {
    pub date: String,
    pub cpu: String,
    pub cores: usize,
    pub memory_gb: u64,
    pub kernel: String,
    pub commit: String,
    pub command: String,
    pub set_up: String,
}

impl Machine {
    /// `bench` is what cargo calls the bench.
    pub fn look(options: &Options, bench: &str) -> Machine {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let system = rustix::system::sysinfo();
        let memory = system.totalram.saturating_mul(system.mem_unit.into());
        let words = std::env::args().skip(1).filter(|word| word != "--bench");
        let words: Vec<String> = words.map(|word| without_directory(&word)).collect();
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        Machine {
            date: now[..10].to_owned(),
            cpu: cpu.map_or("unknown CPU", |(_, name)| name.trim()).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gb: memory.div_ceil(1 << 30),
            kernel,
            commit: commit(),
            command: format!("cargo bench --bench {bench} -- {}", words.join(" ")),
            set_up: format!(
                "server cores {:?}, client cores {:?}, {} rounds of {:?} after {:?} of warm-up",
                options.server_cores,
                options.client_cores,
                options.rounds,
                options.duration,
                options.warm_up
            ),
        }
    }

    /// `2026-01-31-amd-epyc-2c`
    pub fn directory_name(&self) -> String {
        let cpu = self.cpu.to_ascii_lowercase();
        let words = cpu.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let words: Vec<&str> =
            words.filter(|w| !["r", "tm", "cpu", "processor"].contains(w)).collect();
        format!("{}-{}-{}c", self.date, words.join("-"), self.cores)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "date: {}", self.date)?;
        writeln!(f, "machine: {}, {} cores, {} GiB", self.cpu, self.cores, self.memory_gb)?;
        writeln!(f, "kernel: {}", self.kernel)?;
        writeln!(f, "commit: {}", self.commit)?;
        writeln!(f, "command: {}", self.command.trim_end_matches(" -- "))?;
        write!(f, "set-up: {}", self.set_up)
    }
}

/// A path is this machine's business, its last part says what it is.
fn without_directory(word: &str) -> String {
    let path = Path::new(word);
    let name = path.file_name().filter(|_| path.is_absolute());
    name.map_or(word.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The checked-out commit, marked if there is more than it in the tree.
fn commit() -> String {
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".into() };
    // A record of this run does not make the tree another.
    let changes = git(&["status", "--porcelain", "--", ".", ":!benches/record"]);
    let dirty = if changes.is_none_or(|text| text.is_empty()) { "" } else { " with changes" };
    commit + dirty
}

/// The directory `name` among the records.
pub fn under_records(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/record").join(name)
}

/// Writes `rounds.csv` and `ratios.csv` into `directory`.
pub fn write(directory: &Path, machine: &Machine, all: &[LaneFigures]) -> Result<(), String> {
    write_files(directory, machine, &[("rounds.csv", rounds(all)), ("ratios.csv", ratios(all))])
}

/// Writes `files` into `directory`, each headed by `machine`.
pub fn write_files(
    directory: &Path,
    machine: &Machine,
    files: &[(&str, String)],
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", directory.display());
    std::fs::create_dir_all(directory).map_err(failed)?;
    let head =
        machine.to_string().lines().fold(String::new(), |head, line| head + "# " + line + "\n");
    for (name, text) in files {
        std::fs::write(directory.join(name), head.clone() + text).map_err(failed)?;
    }
    Ok(())
}

fn rounds(all: &[LaneFigures]) -> String {
    let mut text = String::from("lane,variant,round");
    COLUMNS.iter().for_each(|(name, _)| text.extend([",", name]));
    for figures in all {
        for variant in &figures.variants {
            for (round, sample) in figures.of(*variant).enumerate() {
                let _ = write!(text, "\n{},{variant},{round}", figures.lane.name);
                for (_, read) in COLUMNS {
                    match read(sample) {
                        value if value.is_finite() => {
                            let _ = write!(text, ",{value:.3}");
                        }
                        _ => text.push(','),
                    }
                }
            }
        }
    }
    text + "\n"
}

fn ratios(all: &[LaneFigures]) -> String {
    let mut text =
        String::from("lane,millrace_divided_by,of,median,lower_quartile,upper_quartile,min,max\n");
    for figures in all {
        for Ratio { against, measure, spread } in figures.ratios() {
            let (name, of) = (figures.lane.name, measure.text());
            let Spread { median, lower_quartile, upper_quartile, min, max } = spread;
            let _ = writeln!(
                text,
                "{name},{against},{of},{median:.3},{lower_quartile:.3},{upper_quartile:.3},{min:.3},{max:.3}"
            );
        }
    }
    text
}
