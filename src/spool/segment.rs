//! One file of the spool: which payloads it holds, and which of them are complete.
//!
//! A segment of this core is filled group by group, emptied by the workers, and reused as a new
//! generation. An orphaned segment is only emptied. In both cases every payload is completed once,
//! by its number in the segment, and a checkpoint in the file regularly records which are complete.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use glommio::io::{DmaBuffer, DmaFile, OpenOptions, ReadResult};

use super::batches::CoreDir;
use super::disk::{SpoolDisk, os_error};
use super::format::{BLOCK, Checkpoint, DATA_START, GroupHead, Label};
use super::ordinals::OrdinalSet;
use super::prepare::Zeros;
use super::removed::{FileId, NameCheck};
use super::takeover::instances::{move_to_quarantine, remove};
use super::takeover::offers::OrphanedSegment;
use crate::net::{File, Net};
use crate::queue::job::Origin;
use crate::rt;
use crate::sync::Semaphore;

/// An open file of the spool.
pub struct Segment {
    file: DmaFile,
    /// The same file on this core's own io_uring, for commit groups.
    durable: File,
    path: PathBuf,
    bytes: u64,
    pub(super) generation: RefCell<Generation>,
    /// Held while a checkpoint is written: two at a time would overwrite each other.
    noting: Semaphore,
    pub(super) disk: Rc<SpoolDisk>,
    pub(super) zeros: Zeros,
    pub(super) name: NameCheck,
    /// It is corrupt: its file moves to the quarantine when it is finished.
    damaged: Cell<bool>,
    /// When the first of its payloads that were queued again was admitted, in nanoseconds since
    /// 1970; `None` before.
    admitted: Cell<Option<u64>>,
    /// Held until this segment is finished; `None` for this core's own segments.
    orphan: RefCell<Option<OrphanedSegment>>,
}

/// Totals of one commit group's payloads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Payloads {
    pub count: u32,
    /// Their bytes, without framing.
    pub bytes: u64,
}

/// State of a segment's current generation.
pub struct Generation {
    pub id: u64,
    /// End of the synced groups; the next group is written here.
    pub end: u64,
    pub groups: u32,
    /// Payloads in those groups.
    pub payloads: u32,
    /// Bytes of its payloads that are neither stored, nor dead-lettered, nor members of a batch
    /// with DONE.
    pub unstored_bytes: u64,
    /// It takes no further groups.
    pub closed: bool,
    /// Number of the group that failed; no group follows it.
    groups_end: Option<u32>,
    done: OrdinalSet,
    /// Serial number of the last checkpoint.
    serial: u64,
    /// The last checkpoint is synced.
    is_synced: bool,
    /// A synced checkpoint says that every payload is complete.
    is_complete: bool,
    /// Payloads were completed since the last checkpoint.
    dirty: bool,
}

/// How a checkpoint is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum CheckpointMode {
    /// Not synced: payloads whose completion is lost are uploaded again under the same key.
    Unsynced,
    Synced,
    /// Synced, and says that every payload is complete.
    Complete,
}

impl Generation {
    fn new(id: u64, serial: u64) -> Generation {
        Generation {
            id,
            end: DATA_START,
            groups: 0,
            payloads: 0,
            unstored_bytes: 0,
            closed: false,
            groups_end: None,
            done: OrdinalSet::default(),
            serial,
            is_synced: true,
            is_complete: false,
            dirty: false,
        }
    }

    fn is_finished(&self) -> bool {
        self.closed && self.done.count == u64::from(self.payloads)
    }

    fn checkpoint(&self, complete: bool) -> Checkpoint {
        Checkpoint {
            id: self.id,
            // Goes to the other slot, or overwrites the checkpoint that is not synced.
            serial: self.serial + if self.is_synced { 1 } else { 2 },
            complete,
            groups: self.groups,
            groups_end: self.groups_end,
            done: if complete { Vec::new() } else { self.done.ranges().collect() },
        }
    }
}

impl Segment {
    /// Creates a file of `bytes` that reads as zeros, and writes its first `prepared` bytes. Its
    /// directory entry is not durable yet.
    pub async fn create(
        path: &Path,
        bytes: u64,
        prepared: u64,
        disk: Rc<SpoolDisk>,
    ) -> io::Result<Segment> {
        let new = path.to_owned();
        let make = move || {
            create_file(&new, bytes)?;
            open_direct(&new)
        };
        let (durable, identity) = disk.run(make).await?;
        let durable = Net::here()?.file(durable);
        let file = dma_open(path, &disk).await?;
        #[cfg(test)]
        super::power::created(path, bytes);
        let segment = Segment::new(file, durable, identity, path.to_owned(), bytes, disk);
        segment.prepare_first(prepared).await?;
        Ok(segment)
    }

    /// Opens the orphaned file at `path`.
    pub async fn open(path: PathBuf, disk: Rc<SpoolDisk>) -> io::Result<Segment> {
        let file = dma_open(&path, &disk).await?;
        let bytes = file.file_size().await.map_err(os_error)?;
        let again = path.clone();
        let (durable, identity) = disk.run(move || open_direct(&again)).await?;
        let segment = Segment::new(file, Net::here()?.file(durable), identity, path, bytes, disk);
        segment.zeros.prepared.set(bytes);
        Ok(segment)
    }

    /// Opens the file of an orphaned segment, which it then [adopts](Segment::adopt).
    pub async fn open_orphaned(path: PathBuf, disk: Rc<SpoolDisk>) -> io::Result<Segment> {
        let segment = Segment::open(path, disk).await?;
        // The dead process may not have synced everything that is read from here on.
        segment.sync().await?;
        Ok(segment)
    }

    /// It is to be emptied and removed for `orphan`, whose file it is.
    pub fn adopt(&self, orphan: OrphanedSegment) {
        self.orphan.replace(Some(orphan));
    }

    fn new(
        file: DmaFile,
        durable: File,
        identity: FileId,
        path: PathBuf,
        bytes: u64,
        disk: Rc<SpoolDisk>,
    ) -> Segment {
        Segment {
            file,
            durable,
            path,
            bytes,
            generation: RefCell::new(Generation::new(0, 0)),
            noting: Semaphore::new(1),
            disk,
            zeros: Zeros::new(0),
            name: NameCheck::new(identity),
            damaged: Cell::new(false),
            admitted: Cell::new(None),
            orphan: RefCell::new(None),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many of its bytes take no further groups.
    pub fn filled_bytes(&self) -> u64 {
        let generation = self.generation.borrow();
        if generation.closed { self.bytes } else { generation.end }
    }

    /// The part of [`filled_bytes`](Segment::filled_bytes) that payloads which are not complete take, as if
    /// all payloads were of one size.
    pub fn held_bytes(&self) -> u64 {
        let filled = self.filled_bytes();
        let generation = self.generation.borrow();
        let all = u64::from(generation.payloads);
        let done: u64 = generation.done.ranges().map(|range| range.len() as u64).sum();
        match all.saturating_sub(done) {
            0 => 0,
            held => (filled as f64 * held as f64 / all as f64) as u64,
        }
    }

    pub fn label(&self, id: u64, origin: &Origin) -> Label {
        let (node, core) = origin.parts();
        Label { segment_bytes: self.bytes, id, core, node: node.to_owned() }
    }

    /// A buffer for a write of `bytes`, a multiple of the block size.
    pub fn buffer(&self, bytes: usize) -> DmaBuffer {
        self.file.alloc_dma_buffer(bytes)
    }

    /// Writes all of `buffer`; not durable without a sync.
    pub async fn write(&self, buffer: DmaBuffer, at: u64) -> io::Result<u64> {
        #[cfg(test)]
        let noted = super::power::write_begins(&self.path, at, buffer.as_bytes());
        let length = buffer.len();
        let (_wait, _operation) = (rt::foreign_wait(), self.disk.health.begin());
        let written = self.file.write_at(buffer, at).await.map_err(os_error)?;
        #[cfg(test)]
        super::power::write_ends(noted);
        if written < length {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the disk took part of a write"));
        }
        Ok(written as u64)
    }

    /// Writes all of `buffer` and syncs, one such write at a time. A single write with `O_DSYNC` is
    /// not used: if the disk cannot do that itself, the write completes on a kernel thread of the
    /// core that gets the interrupt. Behind a busy process there, each one took a scheduler tick, 4
    /// ms.
    pub async fn write_synced(&self, buffer: DmaBuffer, at: u64) -> io::Result<()> {
        #[cfg(test)]
        let noted = super::power::write_begins(&self.path, at, buffer.as_bytes());
        let end = at + buffer.len() as u64;
        let operation = self.disk.health.begin();
        let written = self.durable.write_synced(buffer, at).await;
        drop(operation);
        match written {
            // With direct I/O, a file size limit within a block is reported as `EINVAL`.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WriteZero | io::ErrorKind::InvalidInput
                ) =>
            {
                return Err(self.reason_of_short_write(end, error).await);
            }
            written => written?,
        }
        #[cfg(test)]
        {
            super::power::write_ends(noted);
            super::power::sync_ends(super::power::sync_begins(&self.path));
        }
        Ok(())
    }

    /// Finds out why the disk took only part of a group that should end at `end`, by writing just
    /// the last block: the disk is full, or a size limit lies in between. Overwriting the block is
    /// safe, because no group there is ever acknowledged.
    async fn reason_of_short_write(&self, end: u64, error: io::Error) -> io::Error {
        let path = self.path.clone();
        let ask = move || {
            let file = fs::OpenOptions::new().write(true).open(path)?;
            file.write_all_at(&[0; BLOCK as usize], end - BLOCK)
        };
        self.disk.run(ask).await.err().unwrap_or(error)
    }

    /// Whether no group is in flight, including groups whose writer was dropped.
    pub fn is_idle(&self) -> bool {
        self.durable.is_idle()
    }

    pub async fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        let noted = super::power::sync_begins(&self.path);
        let (_wait, _operation) = (rt::foreign_wait(), self.disk.health.begin());
        self.file.fdatasync().await.map_err(os_error)?;
        #[cfg(test)]
        super::power::sync_ends(noted);
        Ok(())
    }

    /// Reads the part of `range`, in whole blocks, that is in the file.
    pub async fn read(&self, range: Range<u64>) -> io::Result<ReadResult> {
        debug_assert!(range.start.is_multiple_of(BLOCK));
        let (_wait, _operation) = (rt::foreign_wait(), self.disk.health.begin());
        let bytes = (range.end - range.start).next_multiple_of(BLOCK) as usize;
        self.file.read_at_aligned(range.start, bytes).await.map_err(os_error)
    }

    /// Begins a new generation; everything in the previous one is complete.
    pub fn begin(&self, id: u64) {
        let serial = self.generation.borrow().serial;
        self.generation.replace(Generation::new(id, serial));
    }

    /// Continues from the checkpoint of an orphaned file.
    pub fn resume(&self, checkpoint: Option<Checkpoint>) {
        let mut generation = self.generation.borrow_mut();
        let Some(checkpoint) = checkpoint else { return };
        generation.serial = checkpoint.serial;
        // Also of a complete generation: a checkpoint with a lower id would make its groups valid
        // again.
        generation.id = checkpoint.id;
        if !checkpoint.complete {
            generation.groups = checkpoint.groups;
            generation.groups_end = checkpoint.groups_end;
            checkpoint.done.into_iter().for_each(|range| generation.done.insert(range));
        }
    }

    /// The id of its current generation.
    pub fn id(&self) -> u64 {
        self.generation.borrow().id
    }

    /// Number of its payloads, complete or not.
    pub fn payloads(&self) -> u32 {
        self.generation.borrow().payloads
    }

    /// It takes no further groups.
    pub fn is_closed(&self) -> bool {
        self.generation.borrow().closed
    }

    /// It is closed and all its payloads are complete.
    pub fn is_finished(&self) -> bool {
        self.generation.borrow().is_finished()
    }

    /// Whether the payload with this number is complete.
    pub fn is_done(&self, ordinal: u32) -> bool {
        self.generation.borrow().done.contains(ordinal)
    }

    /// Records that the reader found a group with this head in an orphaned file.
    pub fn found_group(&self, head: &GroupHead) {
        let mut generation = self.generation.borrow_mut();
        generation.id = head.label.id;
        generation.groups = generation.groups.max(head.number + 1);
    }

    /// Whether it takes groups as long as they fit.
    pub fn is_filling(&self) -> bool {
        !self.generation.borrow().closed && !self.is_removed()
    }

    /// Whether a group of `bytes` fits into it.
    pub fn has_room(&self, bytes: u64) -> bool {
        let generation = self.generation.borrow();
        !generation.closed && generation.end + bytes <= self.bytes
    }

    /// Whether less than half of it is free.
    pub fn is_half_full(&self) -> bool {
        2 * self.generation.borrow().end > self.bytes
    }

    /// Records a synced group that takes `bytes` and holds `payloads`.
    pub fn extend(&self, bytes: u64, payloads: Payloads) {
        let was_half_full = self.is_half_full();
        let mut generation = self.generation.borrow_mut();
        generation.end += bytes;
        generation.groups += 1;
        generation.payloads += payloads.count;
        generation.unstored_bytes += payloads.bytes;
        drop(generation);
        if !was_half_full && self.is_half_full() {
            // It may have to create the next one.
            self.disk.keeper.raise();
        }
    }

    /// Adds `bytes` of an orphaned segment's payloads, which are queued now.
    pub fn add_unstored(&self, bytes: u64) {
        self.generation.borrow_mut().unstored_bytes += bytes;
    }

    /// Notes when a payload of an orphaned segment was admitted, which is queued now: the first one
    /// is the oldest.
    pub fn note_admitted(&self, unix_nanos: u64) {
        self.admitted.set(self.admitted.get().or(Some(unix_nanos)));
    }

    /// When the first payload was admitted that was noted; `None` once all are complete.
    pub fn admitted(&self) -> Option<u64> {
        self.admitted.get().filter(|_| !self.is_finished())
    }

    /// Counts queued payloads of an orphaned segment, for the log.
    pub fn count_replayed(&self, payloads: u64, bytes: u64) {
        if let Some(orphan) = &*self.orphan.borrow() {
            orphan.core.replayed.add(payloads, bytes);
        }
    }

    /// Subtracts `bytes` of payloads that are about to be completed.
    pub fn sub_unstored(&self, bytes: u64) {
        let mut generation = self.generation.borrow_mut();
        let left = generation.unstored_bytes.checked_sub(bytes);
        generation.unstored_bytes = left.expect("they were added");
    }

    /// Takes the remaining unstored bytes of a finished segment: payloads lost to corruption.
    pub fn take_unstored(&self) -> u64 {
        std::mem::take(&mut self.generation.borrow_mut().unstored_bytes)
    }

    /// Ends it: no further groups. `failed`: the last group failed and was never acknowledged.
    pub fn close(&self, failed: bool) {
        let mut generation = self.generation.borrow_mut();
        generation.closed = true;
        if failed {
            // The next checkpoint tells a later process to ignore the failed group.
            generation.groups_end = Some(generation.groups);
            generation.dirty = true;
        }
        if failed || generation.is_finished() {
            self.disk.keeper.raise();
        }
    }

    /// Records that corruption in it was reported; the file must not be reused.
    pub fn mark_damaged(&self) {
        self.damaged.set(true);
    }

    /// Whether it holds nothing that this version can read. Such a file stays unchanged for its
    /// owner.
    pub fn is_foreign(&self) -> bool {
        self.damaged.get() && self.generation.borrow().payloads == 0
    }

    /// Whether its file may be reused.
    pub fn is_reusable(&self) -> bool {
        let failed = self.generation.borrow().groups_end.is_some();
        let is_sound = !failed && !self.damaged.get() && !self.is_removed();
        is_sound && self.orphan.borrow().is_none()
    }

    /// Removes the file of a finished segment that is not reused, or moves it to the quarantine if
    /// it is corrupt.
    pub async fn discard(&self) -> io::Result<()> {
        if self.damaged.get() {
            let from = self.path.clone();
            match self.disk.run(move || move_to_quarantine(&from)).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                moved => moved?,
            }
        } else if !self.is_removed() {
            let path = self.path.clone();
            self.disk.run(move || remove_if_there(&path)).await?;
        }
        if let Some(orphan) = self.orphan.take() {
            let finish = move || {
                orphan.finished();
                Ok(())
            };
            self.disk.run(finish).await?;
        }
        Ok(())
    }

    /// Whether it comes from an orphaned spool.
    pub fn is_orphaned(&self) -> bool {
        self.orphan.borrow().is_some()
    }

    /// Whether it comes from this orphaned core directory.
    pub fn is_orphaned_from(&self, dir: &CoreDir) -> bool {
        self.orphan.borrow().as_ref().is_some_and(|orphan| dir.is_of(&orphan.core))
    }

    /// Ends an orphaned segment after all of it was read: `payloads` is the number that was found.
    pub fn close_orphaned(&self, payloads: u32) {
        let mut generation = self.generation.borrow_mut();
        // Completed payloads may have higher numbers than the last readable one.
        let done_end = generation.done.ranges().last().map_or(0, |range| range.end);
        generation.payloads = payloads.max(done_end);
        let missing = payloads..generation.payloads;
        generation.done.fill(missing);
        drop(generation);
        self.close(false);
    }

    /// Completes lost payloads. Returns how many of them were not complete before.
    pub fn complete_missing(&self, ordinals: Range<u32>) -> u64 {
        self.complete_with(|done| done.fill(ordinals))
    }

    /// Completes payloads of `bytes` together, which are stored or dead-lettered.
    pub fn complete(&self, ordinals: Range<u32>, bytes: u64) {
        self.sub_unstored(bytes);
        self.complete_with(|done| done.insert(ordinals));
    }

    /// Number of payloads that are not complete.
    pub fn incomplete(&self) -> u64 {
        let generation = self.generation.borrow();
        u64::from(generation.payloads) - generation.done.count
    }

    /// Completes those of `ordinals` that are not complete yet.
    pub fn complete_run(&self, ordinals: Range<u32>) {
        self.complete_with(|done| done.fill(ordinals));
    }

    fn complete_with<T>(&self, complete: impl FnOnce(&mut OrdinalSet) -> T) -> T {
        let mut generation = self.generation.borrow_mut();
        generation.dirty = true;
        let completed = complete(&mut generation.done);
        if generation.is_finished() {
            self.disk.keeper.raise();
        }
        completed
    }

    pub fn is_dirty(&self) -> bool {
        self.generation.borrow().dirty
    }

    /// Writes which payloads are complete now. Returns false and writes nothing if that does not
    /// fit.
    pub async fn write_checkpoint(&self, mode: CheckpointMode) -> io::Result<bool> {
        let _turn = self.noting.acquire_permit(1).await.expect("never closed");
        let checkpoint = {
            let mut generation = self.generation.borrow_mut();
            // The synced complete checkpoint already covers everything.
            if generation.is_complete && mode != CheckpointMode::Complete {
                return Ok(true);
            }
            // Before the write: a payload that completes while it is in flight must mark it dirty
            // again.
            generation.dirty = false;
            let checkpoint = generation.checkpoint(mode == CheckpointMode::Complete);
            if !checkpoint.fits() {
                return Ok(false);
            }
            generation.serial = checkpoint.serial;
            generation.is_synced = false;
            checkpoint
        };
        let mut buffer = self.buffer(checkpoint.bytes());
        checkpoint.write(buffer.as_bytes_mut());
        let noted = match self.write(buffer, checkpoint.offset()).await {
            Ok(_) if mode == CheckpointMode::Unsynced => return Ok(true),
            Ok(_) => self.sync().await,
            Err(error) => Err(error),
        };
        let mut generation = self.generation.borrow_mut();
        generation.dirty |= noted.is_err();
        generation.is_synced = noted.is_ok();
        generation.is_complete |= noted.is_ok() && checkpoint.complete;
        noted.map(|()| true)
    }
}

async fn dma_open(path: &Path, disk: &SpoolDisk) -> io::Result<DmaFile> {
    let (_wait, _operation) = (rt::foreign_wait(), disk.health.begin());
    OpenOptions::new().read(true).write(true).dma_open(path).await.map_err(os_error)
}

/// Creates a file with all its space allocated, so that a full disk fails here, and writes one
/// block: glommio probes a device by reading the first file that it opens there, and misjudges an
/// empty one. Durable with the first sync.
fn create_file(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        // Without allocation a full disk fails at the first write.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(bytes)?,
        allocated => allocated?,
    }
    file.write_all(&[0; BLOCK as usize])
}

/// Opens the file for commit groups; their writes bypass the page cache like all others.
fn open_direct(path: &Path) -> io::Result<(OwnedFd, FileId)> {
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let file = fs::OpenOptions::new().write(true).custom_flags(direct).open(path)?;
    let identity = FileId::of(&file.metadata()?);
    Ok((file.into(), identity))
}

/// Removes a file unless it is gone. Its space is free then although it may be open: batches in the
/// journal name a finished segment until the journal is renewed.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path).ok();
    match remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed?,
    }
    // After the name, so that nobody ever finds an empty file.
    file.map_or(Ok(()), |file| file.set_len(0))
}
