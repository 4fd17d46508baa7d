//! Reads one segment with plain blocking reads, in the memory of one group: for commands and for
//! taking over. The segment belongs to a dead process, or to a live one that is only looked at.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::batches::ledger::CompletedMembers;
use super::format::record::SpoolRecord;
use super::format::scan::{ScanStep, SegmentScan};
use super::format::{
    CHECKPOINT_BYTES, Checkpoint, CommitGroup, DATA_START, group_records, group_requests, keys_of,
};
use super::ordinals::OrdinalSet;
use crate::queue::job::Stamp;

/// A walk through a file.
pub struct SegmentFile {
    path: PathBuf,
    file: File,
    scan: SegmentScan,
    /// What was read last; after a group was found, all of it.
    bytes: Vec<u8>,
    /// The progress that was found, and what was settled since.
    checkpoint: Checkpoint,
    done: OrdinalSet,
    /// Progress was written, but both pages are damaged.
    checkpoint_lost: bool,
    /// The number that the next payload has if nothing is missing.
    next_ordinal: u32,
    /// Payloads before it that are neither there nor done.
    missing: u64,
    /// What the journals say is done, until the segment's id is known.
    batched: Option<Rc<CompletedMembers>>,
}

/// One payload in a group.
pub struct Spooled<'a> {
    /// Its number in the segment.
    pub ordinal: u32,
    pub stamp: Stamp,
    /// The version of its request.
    pub version: Option<&'a str>,
    pub bytes: &'a [u8],
    /// Stored or dead-lettered: it needs nothing more.
    pub is_stored: bool,
}

impl SegmentFile {
    #[expect(clippy::disallowed_methods, reason = "called by the commands only")]
    pub fn open(path: &Path) -> io::Result<SegmentFile> {
        let file = File::open(path)?;
        let file_bytes = file.metadata()?.len();
        let mut bytes = vec![0; DATA_START.min(file_bytes) as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let noted = Checkpoint::read(&bytes);
        let torn = bytes.chunks(CHECKPOINT_BYTES as usize).any(Checkpoint::is_torn);
        let scan = SegmentScan::new(file_bytes, &bytes);
        let checkpoint_lost = noted.is_none() && torn;
        let mut checkpoint = noted.unwrap_or_default();
        let mut done = OrdinalSet::default();
        if !checkpoint.complete {
            checkpoint.done.drain(..).for_each(|range| done.insert(range));
        }
        Ok(SegmentFile {
            path: path.to_owned(),
            file,
            scan,
            bytes,
            checkpoint,
            done,
            checkpoint_lost,
            next_ordinal: 0,
            missing: 0,
            batched: None,
        })
    }

    /// Opens a segment whose members of batches are stored as the directory's journals say.
    pub fn open_with(path: &Path, batched: &Rc<CompletedMembers>) -> io::Result<SegmentFile> {
        Ok(SegmentFile { batched: Some(batched.clone()), ..SegmentFile::open(path)? })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what comes next; nothing does after the end.
    pub fn find_next(&mut self) -> io::Result<ScanStep> {
        loop {
            let wanted = self.scan.wants();
            self.bytes.resize((wanted.end - wanted.start) as usize, 0);
            self.file.read_exact_at(&mut self.bytes, wanted.start)?;
            match self.scan.feed(&self.bytes) {
                ScanStep::NeedBytes => {}
                ScanStep::Group(at, group) => {
                    self.pass(&group);
                    return Ok(ScanStep::Group(at, group));
                }
                found => return Ok(found),
            }
        }
    }

    fn pass(&mut self, group: &CommitGroup) {
        let head = &group.head;
        if let Some(batched) = self.batched.take() {
            batched.of_segment(head.label.id).for_each(|run| {
                self.done.fill(run);
            });
        }
        let before = self.next_ordinal..head.first_ordinal;
        self.missing += before.filter(|ordinal| !self.done.contains(*ordinal)).count() as u64;
        self.next_ordinal = head.first_ordinal.saturating_add(group.payloads);
        if self.checkpoint.complete {
            // A new use has begun, for which no progress was written yet.
            let serial = self.checkpoint.serial;
            self.checkpoint = Checkpoint { serial, ..Checkpoint::default() };
        }
        self.checkpoint.id = head.label.id;
        self.checkpoint.groups = self.checkpoint.groups.max(head.number + 1);
    }

    /// Reads `group` again, which was found at offset `at`.
    ///
    /// # Errors
    /// `InvalidData`: it is no longer there.
    pub fn read_again(&mut self, at: u64, group: &CommitGroup) -> io::Result<()> {
        self.bytes.resize(group.head.group_bytes() as usize, 0);
        self.file.read_exact_at(&mut self.bytes, at)?;
        let again = CommitGroup::check(group.head.clone(), &self.bytes);
        again.map(drop).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
    }

    /// The payloads of `group`, which was found last.
    pub fn payloads(&self, group: &CommitGroup) -> impl Iterator<Item = Spooled<'_>> {
        let mut next = group.head.first_ordinal;
        group_requests(&group.head, &self.bytes).flat_map(move |record| {
            let ordinals = next..;
            next += record.count();
            let Stamp { unix_nanos, seq } = record.first;
            record.spans().zip(ordinals.zip(seq..)).map(move |(span, (ordinal, seq))| Spooled {
                ordinal,
                stamp: Stamp { unix_nanos, seq },
                version: record.version,
                bytes: &record.payloads[span.range()],
                is_stored: self.done.contains(ordinal),
            })
        })
    }

    /// All records of `group`, which was found last.
    pub fn records(&self, group: &CommitGroup) -> impl Iterator<Item = SpoolRecord<'_>> {
        group_records(&group.head, &self.bytes)
    }

    /// The template of the keys of `group`, which was found last; `None`: the default.
    pub fn keys(&self, group: &CommitGroup) -> Option<&str> {
        keys_of(&group.head, &self.bytes)
    }

    /// The number of synced payloads that are gone, in what has been read.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Whether it is unknown what had been stored.
    pub fn checkpoint_is_lost(&self) -> bool {
        self.checkpoint_lost
    }

    /// Whether it was ever used.
    pub fn was_used(&self) -> bool {
        self.checkpoint.id > 0
    }

    /// Settles the payload with this number, which is stored.
    pub fn complete(&mut self, ordinal: u32) {
        self.done.fill(ordinal..ordinal + 1);
    }

    /// The id of its use, as far as has been read; 0 if it was never used.
    pub fn id(&self) -> u64 {
        if self.checkpoint.complete { 0 } else { self.checkpoint.id }
    }

    /// Writes what has been settled, durably, for the next reader of the file.
    pub fn write_checkpoints(&mut self) -> io::Result<()> {
        self.checkpoint.serial += 1;
        self.checkpoint.done = self.done.ranges().collect();
        if !self.checkpoint.fits() {
            // As in the server: what was stored is stored again under the same keys.
            return Ok(());
        }
        let mut buffer = vec![0; self.checkpoint.bytes()];
        self.checkpoint.write(&mut buffer);
        let file = OpenOptions::new().write(true).open(&self.path)?;
        // The latest progress may not be synced, and the one that is overwritten now would be
        // missing.
        file.sync_data()?;
        file.write_all_at(&buffer, self.checkpoint.place())?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests;
