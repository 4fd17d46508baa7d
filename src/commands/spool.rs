//! `millrace spool …`: lists, verifies, replays or exports orphaned spools on this host's disk, or
//! measures the disk ([`mod@bench`]).
//!
//! Everything but a measurement blocks: nothing else runs in this process. The directory of a running server is only
//! listed. A running server takes over orphaned spools by itself.

mod batches;
pub mod bench;
mod replay;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::out;
use super::progress::ProgressLine;
use crate::config::Config;
use crate::control::Exit;
use crate::log::{CountOf, complain};
use crate::queue::job::Stamp;
use crate::spool::batches::ledger::{CompletedMembers, JournalFile, Ledger};
use crate::spool::format::scan::{ScanStep, SegmentEnd};
use crate::spool::offline::{SegmentFile, Spooled};
use crate::spool::takeover::instances::{
    LockedSpool, core_dirs, files_of, instances_in, is_instance, quarantined,
};

/// The spool that a command works on.
pub struct SpoolTarget {
    dir: PathBuf,
    /// Directories of processes.
    instances: Vec<PathBuf>,
    /// The argument names one process's directory, so skipping it would mean doing nothing.
    is_one: bool,
}

/// Why a command cannot continue.
#[derive(Debug, thiserror::Error)]
enum SpoolCommandError {
    /// Standard output cannot be written.
    #[error("{}", out::unwritable(.0))]
    Out(#[from] io::Error),
    #[error("{0}")]
    Path(String),
}

/// Adds `path` to an error.
fn of<E: fmt::Display>(path: &Path) -> impl FnOnce(E) -> SpoolCommandError {
    let path = path.display().to_string();
    move |error| SpoolCommandError::Path(format!("{path}: {error}"))
}

/// `dir`, or else `SPOOL_DIR`.
///
/// # Errors
/// Neither is given.
pub fn directory(config: &Config, dir: Option<PathBuf>) -> Result<PathBuf, String> {
    let dir = dir.or_else(|| config.spool.as_ref().map(|spool| spool.dir.clone()));
    dir.ok_or_else(|| "which spool? Give its directory, or set SPOOL_DIR".to_owned())
}

/// Finds the processes' directories in `dir`, or in the configured spool.
///
/// # Errors
/// Neither is given, or the directory is not a spool.
pub fn open(config: &Config, dir: Option<PathBuf>) -> Result<SpoolTarget, String> {
    let dir = directory(config, dir)?;
    let shown = dir.display();
    let found = instances_in(&dir).map_err(|error| format!("{shown}: {error}"))?;
    let instances = found.ok_or_else(|| {
        format!("{shown} is not a spool: it holds neither servers' directories nor core-N")
    })?;
    let is_one = is_instance(&dir);
    Ok(SpoolTarget { dir, instances, is_one })
}

impl SpoolTarget {
    /// Prints one line per segment, and a total.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn list(&self) -> Result<Exit, String> {
        exit_of(self.list_to(&mut out::stdout()))
    }

    fn list_to(&self, out: &mut impl Write) -> Result<Exit, SpoolCommandError> {
        let now = Stamp::unix_nanos_now();
        let mut sum = Survey::default();
        let mut segments = 0;
        for instance in &self.instances {
            // Released at once: a listing must not keep a server from starting.
            let in_use = LockedSpool::take(instance).map_err(of(instance))?.is_none();
            for (path, batched) in files_with(instance, |ledger| list_journals(out, ledger))? {
                let Some(survey) = look(&path, &batched, |_| Ok(()))? else { continue };
                let state = if in_use { "in use".to_owned() } else { survey.state() };
                let Survey { groups, payloads, unstored, bytes, .. } = survey;
                let name = SegmentName(&path);
                let age = survey.age(now);
                writeln!(
                    out,
                    "{name}  {groups:>5} groups  {payloads:>7} payloads  {unstored:>7} unstored  \
                     {bytes:>10} B  oldest {age:<10}  {state}"
                )?;
                segments += 1;
                sum.add(&survey);
            }
        }
        let Survey { payloads, unstored, bytes, .. } = sum;
        let segments = CountOf(segments, "segment");
        let (payloads, bytes) = (CountOf(payloads, "payload"), CountOf(bytes, "byte"));
        writeln!(out, "{segments}, {payloads}, {unstored} unstored, {bytes}")?;
        let aside = quarantined(&self.dir);
        if aside > 0 {
            let aside = CountOf(aside, "file");
            writeln!(out, "{aside} in quarantine, with payloads that could not be read")?;
        }
        out.flush()?;
        Ok(Exit::Clean)
    }

    /// Checks every checksum; exit 1 if a file is corrupt.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn verify(&self) -> Result<Exit, String> {
        exit_of(self.verify_to(&mut out::stdout()))
    }

    fn verify_to(&self, out: &mut impl Write) -> Result<Exit, SpoolCommandError> {
        let (mut segments, mut damaged, mut groups) = (0, 0, 0);
        let progress = ProgressLine::begin("verifying", self.bytes());
        let mut journals = Vec::new();
        for instance in &self.instances {
            // The lock is dropped at once: a server that starts meanwhile invalidates no checksum.
            if LockedSpool::take(instance).map_err(of(instance))?.is_none() {
                writeln!(out, "{}", skipped(instance))?;
                continue;
            }
            let read = |ledger: &Ledger| {
                journals.extend_from_slice(ledger.files());
                Ok(())
            };
            for (path, batched) in files_with(instance, read)? {
                let after = progress.bytes() + file_bytes(&path);
                let survey = look(&path, &batched, |payload| {
                    progress.item(payload.bytes.len() as u64);
                    Ok(())
                })?;
                progress.reach(after);
                let Some(survey) = survey else { continue };
                for text in survey.problems.iter().chain(&survey.notes) {
                    writeln!(out, "{}: {text}", path.display())?;
                }
                segments += 1;
                groups += survey.groups;
                damaged += u32::from(!survey.problems.is_empty());
            }
        }
        for JournalFile { path, problems, notes, .. } in &journals {
            for text in problems.iter().chain(notes) {
                writeln!(out, "{}: {text}", path.display())?;
            }
            damaged += u32::from(!problems.is_empty());
        }
        progress.end();
        let journals = match journals.len() {
            0 => String::new(),
            count => format!(", {} of batches", CountOf(count, "journal")),
        };
        let (segments, groups) = (CountOf(segments, "segment"), CountOf(groups, "whole group"));
        writeln!(out, "{segments} with {groups}{journals}, {damaged} damaged")?;
        out.flush()?;
        Ok(if damaged == 0 { Exit::Clean } else { Exit::Unstored })
    }

    /// Writes payloads to standard output, one per line; exit 1 if some could not be read.
    ///
    /// # Errors
    /// A directory cannot be read, or standard output cannot be written.
    pub fn export(&self, all: bool) -> Result<Exit, String> {
        exit_of(self.export_to(&mut out::data(), all))
    }

    fn export_to(&self, out: &mut impl Write, all: bool) -> Result<Exit, SpoolCommandError> {
        let (mut exported, mut bytes, mut exit) = (0_u64, 0, Exit::Clean);
        let progress = ProgressLine::beside_data("exporting", self.bytes());
        for instance in &self.instances {
            let Some(_held) = self.hold(instance)? else { continue };
            for (path, batched) in files_with(instance, |_| Ok(()))? {
                let after = progress.bytes() + file_bytes(&path);
                let survey = look(&path, &batched, |payload| {
                    progress.item(payload.bytes.len() as u64);
                    if payload.is_stored && !all {
                        return Ok(());
                    }
                    exported += 1;
                    bytes += payload.bytes.len();
                    write_line(out, payload.bytes)
                })?;
                progress.reach(after);
                for text in survey.iter().flat_map(|survey| &survey.problems) {
                    complain(format_args!("{}: {text}", path.display()));
                    exit = Exit::Unstored;
                }
            }
        }
        out.flush()?;
        let (payloads, bytes) = (CountOf(exported, "payload"), CountOf(bytes, "byte"));
        complain(format_args!("{payloads} exported, {bytes}"));
        Ok(exit)
    }

    /// Bytes of all segments, for the progress of a command.
    fn bytes(&self) -> u64 {
        let cores = self.instances.iter().flat_map(|instance| core_dirs(instance)).flatten();
        let files = cores.flat_map(|core_dir| files_of(&core_dir)).flatten();
        files.map(|(_, bytes)| bytes).sum()
    }

    /// Locks an orphaned spool until the result is dropped; `None` and a message if its process is
    /// running.
    fn hold(&self, instance: &Path) -> Result<Option<LockedSpool>, SpoolCommandError> {
        let held = LockedSpool::take(instance).map_err(of(instance))?;
        if held.is_none() {
            if self.is_one {
                return Err(of(instance)("in use by a running server"));
            }
            complain(skipped(instance));
        }
        Ok(held)
    }
}

/// A closed pipe is not an error to report, but the exit status tells that not everything was
/// written.
fn exit_of(outcome: Result<Exit, SpoolCommandError>) -> Result<Exit, String> {
    match outcome {
        Err(SpoolCommandError::Out(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(Exit::Unstored)
        }
        outcome => outcome.map_err(|error| error.to_string()),
    }
}

/// Size of a segment; 0 if it has gone.
fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |about| about.len())
}

fn skipped(instance: &Path) -> String {
    format!("{}: in use by a running server, skipped", instance.display())
}

/// Writes a payload on one line. Line feeds and carriage returns are omitted; they occur only
/// between its tokens.
fn write_line(out: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    for part in payload.split(|byte| matches!(byte, b'\n' | b'\r')) {
        out.write_all(part)?;
    }
    out.write_all(b"\n")
}

/// A segment's path as `ls` shows it: process, core, file.
struct SegmentName<'a>(&'a Path);

impl fmt::Display for SegmentName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = self.0.iter().rev().map(|name| name.to_string_lossy());
        let mut next = || names.next().unwrap_or_default();
        let (file, core, instance) = (next(), next(), next());
        write!(f, "{instance}  {core}  {file}")
    }
}

/// Summary of one file.
#[derive(Debug, Default)]
struct Survey {
    groups: u32,
    payloads: u64,
    /// Payloads that are neither stored nor dead-lettered.
    unstored: u64,
    /// Bytes of payloads.
    bytes: u64,
    /// When the oldest unstored payload was received, in nanoseconds since 1970.
    oldest: Option<u64>,
    was_used: bool,
    /// Corruption that was found.
    problems: Vec<String>,
    /// Notes on harmless traces of a crash.
    notes: Vec<String>,
}

/// The segments of a process, each with its members of completed batches; `visit` gets the ledger
/// of every core.
fn files_with(
    instance: &Path,
    mut visit: impl FnMut(&Ledger) -> io::Result<()>,
) -> Result<Vec<(PathBuf, Rc<CompletedMembers>)>, SpoolCommandError> {
    let mut found = Vec::new();
    for core_dir in core_dirs(instance).map_err(of(instance))? {
        let ledger = Ledger::read(&core_dir).map_err(of(&core_dir))?;
        visit(&ledger)?;
        let batched = Rc::new(ledger.done_members());
        let files = files_of(&core_dir).map_err(of(&core_dir))?;
        found.extend(files.into_iter().map(|(path, _)| (path, batched.clone())));
    }
    Ok(found)
}

/// One line for the journals of a core, if there are any.
fn list_journals(out: &mut impl Write, ledger: &Ledger) -> io::Result<()> {
    let files = ledger.files();
    let Some(first) = files.first() else { return Ok(()) };
    let (name, bytes) =
        (SegmentName(&first.path), files.iter().map(|file| file.bytes).sum::<u64>());
    let problem = files.iter().flat_map(|file| &file.problems).next();
    let state = problem.map_or("whole", String::as_str);
    let (in_doubt, done) = (ledger.in_doubt().count(), ledger.done().count());
    let in_doubt = CountOf(in_doubt, "batch");
    writeln!(out, "{name}  {in_doubt} in doubt, {done} done  {bytes} B  {state}")
}

/// Reads a whole file; `visit` gets every payload. `None` if the file no longer exists, because a
/// running server removed it.
fn look(
    path: &Path,
    batched: &Rc<CompletedMembers>,
    mut visit: impl FnMut(&Spooled<'_>) -> io::Result<()>,
) -> Result<Option<Survey>, SpoolCommandError> {
    let mut survey = Survey::default();
    let mut file = match SegmentFile::open_with(path, batched) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            survey.problems.push(unreadable(&error));
            return Ok(Some(survey));
        }
    };
    loop {
        match file.find_next() {
            Ok(ScanStep::Group(_, group)) => {
                survey.groups += 1;
                for payload in file.payloads(&group) {
                    survey.count(&payload);
                    visit(&payload)?;
                }
            }
            Ok(ScanStep::Damage(damage)) => survey.problems.push(damage.to_string()),
            Ok(ScanStep::End(end)) => {
                survey.end(&file, end);
                return Ok(Some(survey));
            }
            Ok(ScanStep::NeedBytes) => {
                unreachable!("find_next continues until there is a result")
            }
            Err(error) => {
                survey.problems.push(unreadable(&error));
                return Ok(Some(survey));
            }
        }
    }
}

fn unreadable(error: &io::Error) -> String {
    format!("cannot be read: {error}")
}

/// The message about payloads lost to corruption.
fn lost(file: &SegmentFile) -> Option<String> {
    let missing = file.missing();
    (missing > 0).then(|| format!("lost of what was in it: {}", CountOf(missing, "payload")))
}

impl Survey {
    fn count(&mut self, payload: &Spooled<'_>) {
        self.payloads += 1;
        self.bytes += payload.bytes.len() as u64;
        if !payload.is_stored {
            self.unstored += 1;
            let came = payload.stamp.unix_nanos;
            self.oldest = Some(self.oldest.map_or(came, |oldest| oldest.min(came)));
        }
    }

    fn end(&mut self, file: &SegmentFile, end: SegmentEnd) {
        self.was_used = file.was_used();
        self.problems.extend(lost(file));
        self.problems.extend(end.problem());
        if file.checkpoint_is_lost() {
            self.notes
                .push("no intact checkpoint: stored payloads would be uploaded again".to_owned());
        }
        if let SegmentEnd::Torn { at, why } = end {
            self.notes.push(format!("torn at byte {at}, which was never acknowledged: {why}"));
        }
    }

    fn add(&mut self, other: &Survey) {
        self.payloads += other.payloads;
        self.unstored += other.unstored;
        self.bytes += other.bytes;
    }

    fn age(&self, now: u64) -> String {
        let Some(oldest) = self.oldest else { return "-".to_owned() };
        let age = Duration::from_nanos(now.saturating_sub(oldest));
        humantime::format_duration(Duration::from_secs(age.as_secs())).to_string()
    }

    fn state(&self) -> String {
        let first = self.problems.first().or(self.notes.last());
        match (first, self.groups, self.unstored) {
            (Some(text), ..) => text.clone(),
            (None, 0, _) if !self.was_used => "unused".to_owned(),
            (None, _, 0) => "complete".to_owned(),
            (None, ..) => "whole".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_exported_as_one_line() {
        let mut out = Vec::new();
        for payload in [&b"{\"a\":\r\n  [1,\n2]}\n"[..], b"7", b"", b"\"\\n\""] {
            write_line(&mut out, payload).unwrap();
        }
        assert_eq!(out, b"{\"a\":  [1,2]}\n7\n\n\"\\n\"\n");
    }

    #[test]
    fn a_closed_pipe_is_no_error_but_a_full_disk_is() {
        let closed = exit_of(Err(io::Error::from(io::ErrorKind::BrokenPipe).into()));
        assert_eq!(closed, Ok(Exit::Unstored));
        let full = exit_of(Err(io::Error::from(io::ErrorKind::StorageFull).into()));
        assert!(full.is_err_and(|text| text.contains("no storage space")));
    }

    #[test]
    fn a_state_is_the_worst_finding() {
        let used = || Survey { groups: 1, unstored: 1, was_used: true, ..Survey::default() };
        assert_eq!(Survey::default().state(), "unused");
        assert_eq!(Survey { was_used: true, ..Survey::default() }.state(), "complete");
        assert_eq!(Survey { unstored: 0, ..used() }.state(), "complete");
        assert_eq!(used().state(), "whole");
        let torn = Survey { notes: vec!["torn".into()], ..used() };
        assert_eq!(torn.state(), "torn");
        let damaged = Survey { problems: vec!["damaged".into()], ..torn };
        assert_eq!(damaged.state(), "damaged");
    }

    #[test]
    fn an_age_is_in_words_and_never_negative() {
        let survey = Survey { oldest: Some(5_000_000_000), ..Survey::default() };
        assert_eq!(survey.age(70_500_000_000), "1m 5s");
        assert_eq!(survey.age(0), "0s");
        assert_eq!(Survey::default().age(0), "-");
    }
}
