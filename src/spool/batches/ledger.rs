//! The combined contents of all journals of one core directory: which batches have an intent, and
//! which of them are done. It is read when their process is dead.
//!
//! A batch is identified by its key, which no two batches share. So any number of journals may name
//! it: its writer copies it to a new file before the old one is removed, and a later process that
//! completes it writes DONE to its own journal. A takeover first writes everything to one new
//! journal, so that crashes do not accumulate journals. If part of a journal is corrupt, members of
//! its batches are read back as single payloads: perhaps stored twice, never lost.
//!
//! Everything here blocks, like `instances`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::rt;
use crate::spool::format::record::{
    IntentRecord, SpoolRecord, done_bytes, intent_record, write_done,
};
use crate::spool::format::runs::Runs;
use crate::spool::format::scan::{ScanStep, SegmentEnd};
use crate::spool::format::{DATA_START, HEAD_BYTES, Label, finish_group, group_bytes};
use crate::spool::offline::SegmentFile;
use crate::spool::ordinals::OrdinalSet;
use crate::spool::takeover::instances::{create_private, move_to_quarantine, remove, sync_dir};

/// Extension of a journal of batches.
pub const JOURNAL: &str = "batches";
/// Largest group that records share.
const GROUP_BYTES_MAX: usize = 1 << 20;

/// A batch with an intent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalBatch {
    pub form: String,
    /// Its members, encoded.
    runs: Box<[u8]>,
}

impl JournalBatch {
    pub fn runs(&self) -> Runs<'_> {
        Runs::check(&self.runs).expect("checked when it was read")
    }
}

/// The batches of one core directory.
#[derive(Debug, Default)]
pub struct Ledger {
    batches: BTreeMap<String, JournalBatch>,
    done: BTreeSet<String>,
    /// Keys for which journals have conflicting intents, so that none of them can be trusted.
    disputed: BTreeSet<String>,
    files: Vec<JournalFile>,
}

/// One journal that was read.
#[derive(Clone, Debug)]
pub struct JournalFile {
    pub path: PathBuf,
    pub bytes: u64,
    pub groups: u32,
    /// Corruption that was found.
    pub problems: Vec<String>,
    /// Notes on harmless traces of a crash.
    pub notes: Vec<String>,
}

impl Ledger {
    /// Reads all journals in `core_dir`.
    ///
    /// # Errors
    /// A journal could not be read, so its contents are unknown.
    pub fn read(core_dir: &Path) -> io::Result<Ledger> {
        let mut ledger = Ledger::default();
        for path in journals_of(core_dir)? {
            match ledger.read_file(&path) {
                Ok(read) => ledger.files.push(read),
                // Its server is running and has just replaced it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ledger)
    }

    fn read_file(&mut self, path: &Path) -> io::Result<JournalFile> {
        let mut file = SegmentFile::open(path)?;
        let (path, bytes) = (path.to_owned(), fs::metadata(path)?.len());
        let mut read =
            JournalFile { path, bytes, groups: 0, problems: Vec::new(), notes: Vec::new() };
        loop {
            match file.find_next()? {
                ScanStep::Group(_, group) => {
                    read.groups += 1;
                    file.records(&group).for_each(|entry| self.add(entry));
                }
                ScanStep::Damage(damage) => read.problems.push(damage.to_string()),
                ScanStep::NeedBytes => {
                    unreachable!("find_next continues until there is a result")
                }
                ScanStep::End(SegmentEnd::Torn { at, why }) => {
                    let text = format!("torn at byte {at}, which no batch relies on: {why}");
                    read.notes.push(text);
                    return Ok(read);
                }
                ScanStep::End(end) => {
                    read.problems.extend(end.problem());
                    return Ok(read);
                }
            }
        }
    }

    /// Adds one record of a journal; the order does not matter.
    pub fn add(&mut self, entry: SpoolRecord<'_>) {
        match entry {
            SpoolRecord::Intent(IntentRecord { key, form, runs }) => {
                let batch = JournalBatch { form: form.to_owned(), runs: runs.bytes().into() };
                match self.batches.get(key) {
                    Some(known) if *known != batch => drop(self.disputed.insert(key.to_owned())),
                    Some(_) => {}
                    None => drop(self.batches.insert(key.to_owned(), batch)),
                }
            }
            SpoolRecord::Done(key) => drop(self.done.insert(key.to_owned())),
            SpoolRecord::Request(_) | SpoolRecord::Keys(_) => {}
        }
    }

    pub fn files(&self) -> &[JournalFile] {
        &self.files
    }

    /// Batches that are not disputed, by key.
    fn sound(&self) -> impl Iterator<Item = (&str, &JournalBatch)> {
        let sound = self.batches.iter().filter(|(key, _)| !self.disputed.contains(*key));
        sound.map(|(key, batch)| (key.as_str(), batch))
    }

    /// Batches in doubt, by key: they have an intent and no DONE.
    pub fn in_doubt(&self) -> impl Iterator<Item = (&str, &JournalBatch)> {
        self.sound().filter(|(key, _)| !self.done.contains(*key))
    }

    /// Batches that are done, by key.
    pub fn done(&self) -> impl Iterator<Item = (&str, &JournalBatch)> {
        self.sound().filter(|(key, _)| self.done.contains(*key))
    }

    /// The payloads that are complete once the batches in doubt are done too.
    pub fn members(&self) -> CompletedMembers {
        CompletedMembers::of(self.sound().map(|(_, batch)| batch))
    }

    /// The payloads that are complete now.
    pub fn done_members(&self) -> CompletedMembers {
        CompletedMembers::of(self.done().map(|(_, batch)| batch))
    }

    /// Records that the batch with this key is done.
    pub fn mark_done(&mut self, key: &str) {
        self.done.insert(key.to_owned());
    }

    /// Writes everything that was read durably to one new file. Corrupt journals are reported and
    /// moved to the quarantine.
    pub fn consolidate(&mut self, core_dir: &Path) -> io::Result<()> {
        for key in std::mem::take(&mut self.disputed) {
            tracing::error!(
                "{}: two batches have the key {key}; their payloads are uploaded again",
                core_dir.display()
            );
            self.batches.remove(&key);
            self.done.remove(&key);
        }
        // Rewritten even if there is only one intact journal: a write that its process had in
        // flight when it died may still reach the disk, and must land in a removed file.
        if self.files.is_empty() { Ok(()) } else { self.rewrite(core_dir) }
    }

    /// Writes everything to a new journal, which replaces the ones that were read.
    pub fn rewrite(&mut self, core_dir: &Path) -> io::Result<()> {
        let path = core_dir.join(format!("{}.{JOURNAL}", rt::random()));
        let written = self.write(&path).and_then(|bytes| sync_dir(core_dir).map(|()| bytes));
        let bytes = match written {
            Ok(bytes) => bytes,
            Err(error) => {
                // The next reader would report a partial journal as corrupt.
                let _may_be_absent = remove(&path);
                return Err(error);
            }
        };
        let new = JournalFile { path, bytes, groups: 0, problems: vec![], notes: vec![] };
        // The new file is durable, so the old ones may go.
        for old in std::mem::replace(&mut self.files, vec![new]) {
            if old.problems.is_empty() {
                remove(&old.path)?;
                continue;
            }
            let (path, problems) = (old.path.display(), old.problems.join("; "));
            tracing::error!(
                "{path} is damaged: {problems}; members of its batches may be stored twice"
            );
            move_to_quarantine(&old.path)?;
        }
        sync_dir(core_dir)
    }

    fn write(&self, path: &Path) -> io::Result<u64> {
        let records: Vec<Vec<u8>> =
            self.sound().map(|(key, batch)| self.record(key, batch)).collect();
        let mut groups: Vec<Vec<u8>> = Vec::new();
        for record in records {
            match groups.last_mut() {
                Some(last) if last.len() + record.len() <= GROUP_BYTES_MAX => last.extend(record),
                _ => groups.push(record),
            }
        }
        let bytes = DATA_START + groups.iter().map(|group| group_bytes(group.len())).sum::<u64>();
        let label = Label { segment_bytes: bytes, id: 1, core: 0, node: String::new() };
        let mut file = create_private(path)?;
        file.write_all(&[0; DATA_START as usize])?;
        for (number, body) in (0..).zip(groups) {
            let mut buffer = vec![0; group_bytes(body.len()) as usize];
            buffer[HEAD_BYTES..HEAD_BYTES + body.len()].copy_from_slice(&body);
            finish_group(&mut buffer, &label, number, 0, body.len());
            file.write_all(&buffer)?;
        }
        file.sync_all()?;
        Ok(bytes)
    }

    fn record(&self, key: &str, batch: &JournalBatch) -> Vec<u8> {
        let mut record = intent_record(key, &batch.form, &batch.runs).into_vec();
        if self.done.contains(key) {
            let at = record.len();
            record.resize(at + done_bytes(key), 0);
            write_done(&mut record[at..], key);
        }
        record
    }
}

/// Members of batches, by the ids of their segments' generations.
#[derive(Debug, Default)]
pub struct CompletedMembers(HashMap<u64, OrdinalSet>);

impl CompletedMembers {
    fn of<'a>(batches: impl Iterator<Item = &'a JournalBatch>) -> CompletedMembers {
        let mut members = HashMap::<u64, OrdinalSet>::new();
        for run in batches.flat_map(|batch| batch.runs().iter()) {
            members.entry(run.segment).or_default().fill(run.first..run.end());
        }
        CompletedMembers(members)
    }

    #[cfg(test)]
    pub fn contains(&self, segment: u64, ordinal: u32) -> bool {
        self.0.get(&segment).is_some_and(|done| done.contains(ordinal))
    }

    /// The members in one segment.
    pub fn of_segment(&self, segment: u64) -> impl Iterator<Item = Range<u32>> {
        self.0.get(&segment).into_iter().flat_map(OrdinalSet::ranges)
    }
}

/// The journals in a core directory, by name.
#[expect(clippy::disallowed_methods, reason = "see the module")]
pub fn journals_of(core_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(core_dir)? {
        let path = entry?.path();
        if is_journal(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether `path` is a journal, by its name.
pub fn is_journal(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == JOURNAL)
}
