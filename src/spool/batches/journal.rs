//! The journal of batches: which payloads are about to be stored as one object under which key, and
//! which of these objects are done. It guarantees that each spooled payload ends in exactly one
//! object.
//!
//! This core keeps one journal in each core directory whose payloads it batches: its own, and each
//! orphaned one from which it has taken segments. All members of a batch are in the same directory.
//!
//! ```text
//!  intend: INTENT synced → upload → complete_batch: DONE synced → members complete in their segments
//! ```
//!
//! 1. A batch is uploaded only after its intent is synced, so the key of any object that a crash
//!    leaves in the store is known.
//! 2. A member is completed only after DONE is synced. So checkpoints never say more than the
//!    journals, and a later process need not compare them. Without DONE, every member is still in
//!    its segment, and the same object is uploaded again under the same key. With DONE, its members
//!    are complete, whatever the checkpoints say.
//! 3. An intent leaves the journals only after every member is durably complete: either a later
//!    checkpoint of its segment was written in full and synced, or the segment's complete
//!    checkpoint was synced, which happens before its file is reused or removed. Only `renew` drops
//!    intents, in this order. A checkpoint that is not synced never overwrites a synced one
//!    (`segment`).
//!
//! It follows that a synced payload is in one of three states. It is a member of one batch without
//! DONE, and still in its segment (2). Or it is a member of one batch with DONE, so it is stored or
//! dead-lettered, and complete. Or it is a member of none: then it was completed as a single object
//! or with a batch that was dropped by 3, or it is read back as a single payload. Keys are unique,
//! so a batch that is named in two files is one batch.
//!
//! A group whose write or sync failed may or may not be on the disk. Its file is durably replaced
//! before the next write, so a failed intent can never reappear next to its retry.
//!
//! The file is a segment without payloads. When it is full, a new one replaces it. It is as large
//! as a segment but at most 4 MiB, or twice what its open batches need. It counts towards
//! `SPOOL_MAX`, in which segments leave room for two, but is created even when that is used up: without
//! a journal no batched payload could leave the spool.

mod file;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use crate::sync::Semaphore;
use futures_lite::FutureExt;

use super::members::Members;
use crate::spool::format::group_bytes;
use crate::spool::format::record::{done_bytes, intent_record, write_done};
use crate::spool::segment::{Payloads, Segment};
use crate::spool::takeover::offers::OrphanedCore;
use crate::spool::{GROUP_BYTES_MAX, Spool, SpoolError};

/// A core directory whose payloads this core uploads: its own, or an orphaned one.
pub struct CoreDir {
    path: PathBuf,
    /// `None`: this core's own.
    left: Option<Arc<OrphanedCore>>,
    journal: Journal,
}

/// This core's journal in one core directory.
struct Journal {
    /// Held while a group is written: one at a time.
    turn: Semaphore,
    /// A group is being written. If it is set while `turn` is free, the writing task was dropped.
    writing: Cell<bool>,
    file: RefCell<Option<Rc<Segment>>>,
    /// A replaced file that is complete and will be reused next.
    spare: RefCell<Option<Rc<Segment>>>,
    /// Files whose replacement is not durable yet.
    stale: RefCell<Vec<Rc<Segment>>>,
    /// Batches that the file names or is about to name, in the order of their intents.
    batches: RefCell<BTreeMap<u64, Rc<TrackedBatch>>>,
    next_number: Cell<u64>,
}

/// A batch from its intent until the journal may drop it.
struct TrackedBatch {
    key: String,
    /// Its intent record; empty if another journal of the directory has it.
    intent: Box<[u8]>,
    /// `None` for a batch in doubt: the reader completes its members.
    members: Option<Rc<Members>>,
    state: Cell<BatchState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BatchState {
    /// Its intent waits for a group.
    Waiting,
    /// Its intent is synced.
    Intended,
    /// It is stored or dead-lettered; DONE waits for a group.
    Completed,
    /// DONE is synced, and its members are complete.
    Done,
}

/// A batch whose intent is synced. Dropping this leaves the batch and its members to the next
/// process.
pub struct Intent {
    dir: Rc<CoreDir>,
    number: u64,
}

impl CoreDir {
    pub(in crate::spool) fn new(path: PathBuf, left: Option<Arc<OrphanedCore>>) -> Rc<CoreDir> {
        let journal = Journal {
            turn: Semaphore::new(1),
            writing: Cell::new(false),
            file: RefCell::default(),
            spare: RefCell::default(),
            stale: RefCell::default(),
            batches: RefCell::default(),
            next_number: Cell::new(0),
        };
        Rc::new(CoreDir { path, left, journal })
    }

    pub(in crate::spool) fn is_of(&self, left: &Arc<OrphanedCore>) -> bool {
        self.left.as_ref().is_some_and(|own| Arc::ptr_eq(own, left))
    }

    pub(in crate::spool) fn is_own(&self) -> bool {
        self.left.is_none()
    }

    /// Size of its journal files.
    pub(in crate::spool) fn journal_bytes(&self) -> u64 {
        let Journal { file, spare, stale, .. } = &self.journal;
        let (file, spare, stale) = (file.borrow(), spare.borrow(), stale.borrow());
        file.iter().chain(&*spare).chain(&*stale).map(|file| file.bytes()).sum()
    }

    /// Whether no batch waits for a group or is being uploaded.
    pub(in crate::spool) fn is_idle(&self) -> bool {
        self.journal.batches.borrow().values().all(|batch| batch.state.get() == BatchState::Done)
    }

    #[cfg(test)]
    pub(in crate::spool) fn has_finished(&self) -> bool {
        self.journal.has_finished()
    }

    #[cfg(test)]
    pub(in crate::spool) fn batches(&self) -> usize {
        self.journal.batches.borrow().len()
    }

    /// Forgets its batches: this process no longer needs them in memory, and the file has what the
    /// next process needs.
    pub(in crate::spool) fn leave(&self) {
        // Breaks a reference cycle: their members hold this directory.
        self.journal.batches.borrow_mut().clear();
    }
}

impl Journal {
    fn add(&self, batch: Rc<TrackedBatch>) -> u64 {
        let number = self.next_number.replace(self.next_number.get() + 1);
        self.batches.borrow_mut().insert(number, batch);
        number
    }

    fn has_finished(&self) -> bool {
        self.batches.borrow().values().any(|batch| batch.state.get() == BatchState::Completed)
    }

    /// The batches of the next group with their states, at least one if any waits, and the size of
    /// their records.
    fn next_group(&self) -> (Vec<(Rc<TrackedBatch>, BatchState)>, usize) {
        let (mut group, mut bytes) = (Vec::new(), 0);
        for batch in self.batches.borrow().values() {
            let state = batch.state.get();
            let more = match state {
                BatchState::Waiting => batch.intent.len(),
                BatchState::Completed => done_bytes(&batch.key),
                BatchState::Intended | BatchState::Done => continue,
            };
            if !group.is_empty() && bytes + more > GROUP_BYTES_MAX {
                break;
            }
            bytes += more;
            group.push((batch.clone(), state));
        }
        (group, bytes)
    }

    /// The records that a new file must begin with, as groups.
    fn carried(&self) -> Vec<Vec<u8>> {
        let mut groups: Vec<Vec<u8>> = Vec::new();
        for batch in self.batches.borrow().values() {
            let done = match batch.state.get() {
                BatchState::Waiting => continue,
                BatchState::Intended | BatchState::Completed => 0,
                BatchState::Done => done_bytes(&batch.key),
            };
            let bytes = batch.intent.len() + done;
            if groups.last().is_none_or(|last| last.len() + bytes > GROUP_BYTES_MAX) {
                groups.push(Vec::new());
            }
            let group = groups.last_mut().expect("pushed if there was none");
            group.extend_from_slice(&batch.intent);
            if done > 0 {
                let at = group.len();
                group.resize(at + done, 0);
                write_done(&mut group[at..], &batch.key);
            }
        }
        groups.retain(|group| !group.is_empty());
        groups
    }
}

/// Removes a batch from the journal if `intend` is dropped before the intent was written.
struct PendingIntent<'a> {
    journal: &'a Journal,
    number: u64,
    batch: &'a TrackedBatch,
}

impl Drop for PendingIntent<'_> {
    fn drop(&mut self) {
        if self.batch.state.get() == BatchState::Waiting {
            self.journal.batches.borrow_mut().remove(&self.number);
        }
    }
}

impl Spool {
    /// Records durably that `members` are about to be stored as one object under `key` in the given
    /// `form`. If the future is dropped early, the members must not be used again: they are left to
    /// the next process.
    ///
    /// # Errors
    /// The batch must not be uploaded. The call may be repeated with the same members; they stay in
    /// the spool. A stalled disk is an error too, so that callers are not blocked by it.
    ///
    /// # Panics
    /// `key` or `form` is longer than
    /// [`KEY_BYTES_MAX`](crate::spool::format::record::KEY_BYTES_MAX) or
    /// [`FORM_BYTES_MAX`](crate::spool::format::record::FORM_BYTES_MAX), or there are no members.
    pub async fn intend(
        &self,
        key: &str,
        form: &str,
        members: &Rc<Members>,
    ) -> Result<Intent, SpoolError> {
        assert!(!members.is_empty(), "a batch has members");
        let dir = members.dir.clone();
        let batch = Rc::new(TrackedBatch {
            key: key.to_owned(),
            intent: intent_record(key, form, &members.runs.finish()),
            members: Some(members.clone()),
            state: Cell::new(BatchState::Waiting),
        });
        let number = dir.journal.add(batch.clone());
        let _in_line = PendingIntent { journal: &dir.journal, number, batch: &batch };
        let stalled = async {
            self.disk.health.stalled().await;
            Err(SpoolError::Stalled)
        };
        stalled.or(self.commit(&dir, &batch, BatchState::Waiting)).await?;
        Ok(Intent { dir: dir.clone(), number })
    }

    /// Records that the object was stored or dead-lettered. DONE is written with the journal's next
    /// group, or before the keeper's next checkpoint.
    pub fn complete_batch(&self, intent: Intent) {
        let batches = intent.dir.journal.batches.borrow();
        let batch = batches.get(&intent.number).expect("it stays until it is done");
        batch.state.set(BatchState::Completed);
        if let Some(members) = &batch.members {
            self.setup.cells.spool_payloads.sub(members.len());
            self.setup.cells.spool_bytes.sub(members.payload_bytes());
        }
        // When space is short, the keeper writes DONE at once to free segments.
        if self.own.is_short() {
            self.disk.keeper.raise();
        }
    }

    /// Records durably that the batch with this key is done. Its intent is in a journal of a dead
    /// process.
    pub(in crate::spool) async fn complete_orphaned(
        &self,
        dir: &CoreDir,
        key: &str,
    ) -> Result<(), SpoolError> {
        let state = Cell::new(BatchState::Completed);
        let batch =
            TrackedBatch { key: key.to_owned(), intent: Box::default(), members: None, state };
        let batch = Rc::new(batch);
        let number = dir.journal.add(batch.clone());
        let noted = self.commit(dir, &batch, BatchState::Completed).await;
        if noted.is_err() {
            dir.journal.batches.borrow_mut().remove(&number);
        }
        noted
    }

    /// Writes DONE for all completed batches in `dir`.
    pub(in crate::spool) async fn flush(&self, dir: &CoreDir) -> Result<(), SpoolError> {
        let _turn = dir.journal.turn.acquire_permit(1).await.expect("never closed");
        while dir.journal.has_finished() {
            self.write_batches(dir).await?;
        }
        Ok(())
    }

    /// Writes groups until `batch` has left `state`. Another caller may have written its record.
    async fn commit(
        &self,
        dir: &CoreDir,
        batch: &TrackedBatch,
        state: BatchState,
    ) -> Result<(), SpoolError> {
        let _turn = dir.journal.turn.acquire_permit(1).await.expect("never closed");
        while batch.state.get() == state {
            self.write_batches(dir).await?;
        }
        Ok(())
    }

    /// Writes and syncs one group of the records that wait. The caller holds the turn.
    async fn write_batches(&self, dir: &CoreDir) -> Result<(), SpoolError> {
        let journal = &dir.journal;
        if journal.writing.replace(true)
            && let Some(file) = &*journal.file.borrow()
        {
            // The writing task was dropped, so it is unknown what the disk has or will have of its
            // group.
            file.close(true);
        }
        let written = self.write_next_group(dir).await;
        journal.writing.set(false);
        for (batch, state) in written? {
            match state {
                BatchState::Waiting => batch.state.set(BatchState::Intended),
                _ => {
                    // Rule 2: DONE is synced now.
                    if let Some(members) = &batch.members {
                        members.complete().await;
                    }
                    batch.state.set(BatchState::Done);
                }
            }
        }
        Ok(())
    }

    async fn write_next_group(
        &self,
        dir: &CoreDir,
    ) -> Result<Vec<(Rc<TrackedBatch>, BatchState)>, SpoolError> {
        let (group, body) = dir.journal.next_group();
        let bytes = group_bytes(body);
        let file = self.journal_file(dir, bytes).await?;
        let write = |mut out: &mut [u8]| {
            for (batch, state) in &group {
                let written = match state {
                    BatchState::Waiting => {
                        out[..batch.intent.len()].copy_from_slice(&batch.intent);
                        batch.intent.len()
                    }
                    _ => write_done(out, &batch.key),
                };
                out = &mut out[written..];
            }
        };
        self.append(&file, body, Payloads::default(), write).await?;
        Ok(group)
    }

    /// Finishes the journals at a stop. If a DONE cannot be written, the next process uploads the
    /// same object again.
    pub(in crate::spool) async fn end_journals(&self) {
        for dir in self.dirs() {
            let _was_reported = self.flush(&dir).await;
            if let Some(spare) = dir.journal.spare.take() {
                self.discard(&spare).await;
            }
        }
    }
}
