//! Reads one segment with plain blocking reads, in the memory of one commit group: for commands and
//! for the takeover. The segment belongs to a dead process, or to a running one and is only listed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::batches::ledger::CompletedMembers;
use super::format::record::SpoolRecord;
use super::format::scan::{ScanStep, SegmentScan};
use super::format::{
    CHECKPOINT_BYTES, Checkpoint, CommitGroup, DATA_START, RequestRecord, group_records,
    group_requests, keys_of,
};
use super::ordinals::OrdinalSet;
use crate::queue::job::Stamp;

/// A scan of one file.
pub struct SegmentFile {
    path: PathBuf,
    file: File,
    scan: SegmentScan,
    /// The bytes that were read last; after a group was found, the whole group.
    bytes: Vec<u8>,
    /// The checkpoint that was found, updated while groups are read.
    checkpoint: Checkpoint,
    done: OrdinalSet,
    /// A checkpoint was written, but neither slot is intact.
    checkpoint_lost: bool,
    /// Number of the next payload if nothing is missing.
    next_ordinal: u32,
    /// Payloads before it that are neither in the file nor complete.
    missing: u64,
    /// Completed members according to the journals; applied once the segment's id is known.
    batched: Option<Rc<CompletedMembers>>,
}

/// One payload of a group.
pub struct Spooled<'a> {
    /// Its number in the segment.
    pub ordinal: u32,
    pub stamp: Stamp,
    pub request: RequestRecord<'a>,
    pub bytes: &'a [u8],
    /// It is stored or dead-lettered.
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
        // A complete checkpoint is of an earlier generation than any group in the file.
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

    /// Opens a segment, taking the directory's journals into account: `batched` are their completed
    /// members.
    pub fn open_with(path: &Path, batched: &Rc<CompletedMembers>) -> io::Result<SegmentFile> {
        Ok(SegmentFile { batched: Some(batched.clone()), ..SegmentFile::open(path)? })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the next result; do not call this again after the end.
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
            // A new generation has begun, and has no checkpoint yet.
            let serial = self.checkpoint.serial;
            self.checkpoint = Checkpoint { serial, ..Checkpoint::default() };
        }
        self.checkpoint.id = head.label.id;
        self.checkpoint.groups = self.checkpoint.groups.max(head.number + 1);
    }

    /// Reads `group` again, which was found at offset `at`.
    ///
    /// # Errors
    /// `InvalidData`: it is no longer intact.
    pub fn read_again(&mut self, at: u64, group: &CommitGroup) -> io::Result<()> {
        self.bytes.resize(group.head.group_bytes() as usize, 0);
        self.file.read_exact_at(&mut self.bytes, at)?;
        let again = CommitGroup::check(group.head.clone(), &self.bytes);
        again.map(drop).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
    }

    /// The payloads of `group`, which must be the last that was found.
    pub fn payloads(&self, group: &CommitGroup) -> impl Iterator<Item = Spooled<'_>> {
        let mut next = group.head.first_ordinal;
        group_requests(&group.head, &self.bytes).flat_map(move |record| {
            let ordinals = next..;
            next += record.count();
            let Stamp { unix_nanos, seq } = record.first;
            record.spans().zip(ordinals.zip(seq..)).map(move |(span, (ordinal, seq))| Spooled {
                ordinal,
                stamp: Stamp { unix_nanos, seq },
                request: record,
                bytes: &record.payloads[span.range()],
                is_stored: self.done.contains(ordinal),
            })
        })
    }

    /// All records of `group`, which must be the last that was found.
    pub fn records(&self, group: &CommitGroup) -> impl Iterator<Item = SpoolRecord<'_>> {
        group_records(&group.head, &self.bytes)
    }

    /// The key template of `group`, which must be the last that was found; `None`: the default.
    pub fn keys(&self, group: &CommitGroup) -> Option<&str> {
        keys_of(&group.head, &self.bytes)
    }

    /// Number of synced payloads found missing so far.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Whether it is unknown which payloads are complete.
    pub fn checkpoint_is_lost(&self) -> bool {
        self.checkpoint_lost
    }

    /// Whether it ever held a group.
    pub fn was_used(&self) -> bool {
        self.checkpoint.id > 0
    }

    /// Completes the payload with this number, which is stored.
    pub fn complete(&mut self, ordinal: u32) {
        self.done.fill(ordinal..ordinal + 1);
    }

    /// The id of its generation as far as it is known; 0 if there is none.
    pub fn id(&self) -> u64 {
        if self.checkpoint.complete { 0 } else { self.checkpoint.id }
    }

    /// Writes a durable checkpoint for the next reader of the file.
    pub fn write_checkpoints(&mut self) -> io::Result<()> {
        self.checkpoint.serial += 1;
        self.checkpoint.done = self.done.ranges().collect();
        if !self.checkpoint.fits() {
            // As in the server: without a checkpoint, stored payloads are uploaded again under the
            // same keys.
            return Ok(());
        }
        let mut buffer = vec![0; self.checkpoint.bytes()];
        self.checkpoint.write(&mut buffer);
        let file = OpenOptions::new().write(true).open(&self.path)?;
        // The latest checkpoint may not be synced. Without this sync a crash could lose both it and
        // the older one, which is overwritten now.
        file.sync_data()?;
        file.write_all_at(&buffer, self.checkpoint.offset())?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests;
