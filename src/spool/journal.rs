//! Batches, exactly once: which payloads are about to be put as one object, under which key, and that they were.
//!
//! A core directory whose payloads this core batches has a journal of its own from this core: this core's directory, and
//! each one of a crashed process of which it has taken up segments. All members of a batch lie in one such directory.
//!
//! ```text
//!  intend: INTENT synced → the batch is put → finished: DONE synced → its members are settled in their segments
//! ```
//!
//! 1. A batch is put only after its intent is synced, so what a crash may have left in the store is known by its key.
//! 2. A member is settled only after DONE is synced. So progress never says more than the journals, and whoever comes after
//!    a crash need not compare them: without DONE every member still lies in its segment, and the batch is put again, the
//!    same object under the same key; with DONE its members need nothing more, whatever progress says of them.
//! 3. An intent leaves the journals only after every member is settled durably: the progress of its segment was written
//!    and synced after that, with room for it, or the segment was noted as complete, which is synced before its file is
//!    used again or removed. Only [`Spool::renew`] drops intents, and it does so in this order. Progress once synced is
//!    not written over by progress that is not (`segment`).
//!
//! From these: a synced payload is a member of one batch without DONE (2: it is there to be put), or of one with DONE (it
//! is in the store, or dead-lettered, and settled), or of none, and then it was settled alone, or with a batch that has
//! left by 3, or it comes back alone. Keys are never shared, so a batch that stands in two files is one batch.
//!
//! A group that could not be written or synced may be on the disk or not. Its file is replaced, durably, before anything
//! more is written, so an intent that was refused cannot come up beside the one that is tried in its stead.
//!
//! The file is a segment without payloads, replaced by a second one in turn when it is full: as large as a segment but at
//! most [`FILE_BYTES`], or twice what its open batches need. It counts in `SPOOL_MAX`, but is never refused for it: without
//! a journal nothing would leave the spool.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use glommio::sync::Semaphore;

use super::format::record::{done_bytes, intent_record, write_done};
use super::format::runs::{Encoder, Runs};
use super::format::{BLOCK, DATA_START, group_bytes};
use super::instances::{remove, sync_dir};
use super::ledger::JOURNAL;
use super::orphans::LeftCore;
use super::segment::{Note, Segment};
use super::{GROUP_BYTES_MAX, Record, Spool, SpoolError};
use crate::job::Stamp;

/// A journal's file, if its open batches do not need more. Filled in ten seconds by a hundred batches a second that each
/// have a group of their own.
const FILE_BYTES: u64 = 4 << 20;

/// Runs settled before others get a turn.
const SETTLE_SLICE: usize = 1_000;

/// One core directory whose payloads this core takes: its own, or that of a crashed process's core.
pub struct CoreDir {
    path: PathBuf,
    /// `None`: this core's own.
    left: Option<Arc<LeftCore>>,
    journal: Journal,
}

/// This core's journal in one core directory.
struct Journal {
    /// Held while something is written: one group at a time.
    turn: Semaphore,
    /// A group is being written. When nobody has the turn, its writer was dropped.
    writing: Cell<bool>,
    file: RefCell<Option<Rc<Segment>>>,
    /// Used up and complete, for the next turn.
    spare: RefCell<Option<Rc<Segment>>>,
    /// Replaced, but not yet durably so.
    stale: RefCell<Vec<Rc<Segment>>>,
    /// Batches that the file must tell of, or is to, in the order they were begun.
    batches: RefCell<BTreeMap<u64, Rc<Batch>>>,
    next_number: Cell<u64>,
}

/// A batch from its intent until it may be forgotten.
struct Batch {
    key: String,
    /// The record of its intent; empty where another journal of the directory has it.
    intent: Box<[u8]>,
    /// `None` where they are settled by other means.
    members: Option<Rc<Members>>,
    state: Cell<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its intent waits for a group.
    Waiting,
    /// Its intent is synced.
    Begun,
    /// It is stored; DONE waits for a group.
    Finished,
    /// DONE is synced, and its members are settled.
    Done,
}

/// Payloads of one core directory that are to be one object, in the order of its lines.
pub struct Members {
    dir: Rc<CoreDir>,
    segments: Vec<MemberSegment>,
    runs: Encoder,
    payloads: u64,
}

struct MemberSegment {
    id: u64,
    segment: Rc<Segment>,
    /// Behind the highest member.
    end: u32,
}

impl Members {
    /// None yet, of the directory [`Record::home`] names.
    pub fn of(dir: &Rc<CoreDir>) -> Members {
        Members { dir: dir.clone(), segments: Vec::new(), runs: Encoder::default(), payloads: 0 }
    }

    /// Adds the payload of `record` that has this stamp, behind the others. False, and nothing is changed, when its place
    /// would need more room than an intent has: then the batch is to be closed without it.
    ///
    /// # Panics
    /// It lies in another directory.
    #[must_use]
    pub fn push(&mut self, record: &Record, stamp: Stamp) -> bool {
        assert!(Rc::ptr_eq(&self.dir, record.home()), "a batch is of one directory");
        let ordinal = record.ordinal(stamp.seq);
        // A segment is not used again while one of its payloads is unsettled, so the id stays.
        let id = record.segment.use_of.borrow().id;
        if !self.runs.push(id, ordinal) {
            return false;
        }
        match self.segments.iter_mut().rev().find(|known| known.id == id) {
            Some(known) => known.end = known.end.max(ordinal + 1),
            None => {
                let segment = record.segment.clone();
                self.segments.push(MemberSegment { id, segment, end: ordinal + 1 });
            }
        }
        self.payloads += 1;
        true
    }

    /// Payloads.
    pub fn len(&self) -> u64 {
        self.payloads
    }

    pub fn is_empty(&self) -> bool {
        self.payloads == 0
    }

    /// Bytes of memory it takes; once it is intended, twice as many.
    pub fn memory(&self) -> usize {
        self.runs.memory() + self.segments.capacity() * size_of::<MemberSegment>()
    }

    /// Where they are settled, run by run.
    async fn settle(&self) {
        let runs = self.runs.finish();
        let runs = Runs::check(&runs).expect("encoded just now");
        for (number, run) in (1..).zip(runs.iter()) {
            let place = self.segments.iter().find(|known| known.id == run.segment);
            let MemberSegment { segment, .. } = place.expect("noted when it was pushed");
            segment.settle_run(run.first..run.end());
            if number % SETTLE_SLICE == 0 {
                glommio::executor().yield_if_needed().await;
            }
        }
    }
}

/// A batch whose intent is on the disk. Dropped, it is left to the next process, its members included.
pub struct Intent {
    dir: Rc<CoreDir>,
    number: u64,
}

impl CoreDir {
    pub(super) fn new(path: PathBuf, left: Option<Arc<LeftCore>>) -> Rc<CoreDir> {
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

    pub(super) fn is_of(&self, left: &Arc<LeftCore>) -> bool {
        self.left.as_ref().is_some_and(|own| Arc::ptr_eq(own, left))
    }

    pub(super) fn is_own(&self) -> bool {
        self.left.is_none()
    }

    /// Of its files.
    pub(super) fn journal_bytes(&self) -> u64 {
        let Journal { file, spare, stale, .. } = &self.journal;
        let (file, spare, stale) = (file.borrow(), spare.borrow(), stale.borrow());
        file.iter().chain(&*spare).chain(&*stale).map(|file| file.bytes()).sum()
    }

    /// Nothing in it waits for a group, and no batch is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.journal.batches.borrow().values().all(|batch| batch.state.get() == State::Done)
    }

    #[cfg(test)]
    pub(super) fn has_finished(&self) -> bool {
        self.journal.has_finished()
    }

    #[cfg(test)]
    pub(super) fn batches(&self) -> usize {
        self.journal.batches.borrow().len()
    }

    /// Its journal is not needed any more by this process: the file tells the next one what it has to know.
    pub(super) fn leave(&self) {
        // They hold this directory in their turn.
        self.journal.batches.borrow_mut().clear();
    }
}

impl Journal {
    fn add(&self, batch: Rc<Batch>) -> u64 {
        let number = self.next_number.replace(self.next_number.get() + 1);
        self.batches.borrow_mut().insert(number, batch);
        number
    }

    fn has_finished(&self) -> bool {
        self.batches.borrow().values().any(|batch| batch.state.get() == State::Finished)
    }

    /// What the next group tells of, at least one record if there is any: batches with the state they are in.
    fn next_group(&self) -> (Vec<(Rc<Batch>, State)>, usize) {
        let (mut group, mut bytes) = (Vec::new(), 0);
        for batch in self.batches.borrow().values() {
            let state = batch.state.get();
            let more = match state {
                State::Waiting => batch.intent.len(),
                State::Finished => done_bytes(&batch.key),
                State::Begun | State::Done => continue,
            };
            if !group.is_empty() && bytes + more > GROUP_BYTES_MAX {
                break;
            }
            bytes += more;
            group.push((batch.clone(), state));
        }
        (group, bytes)
    }

    /// What a new file must tell of first, in records that go together.
    fn carried(&self) -> Vec<Vec<u8>> {
        let mut groups: Vec<Vec<u8>> = Vec::new();
        for batch in self.batches.borrow().values() {
            let done = match batch.state.get() {
                State::Waiting => continue,
                State::Begun | State::Finished => 0,
                State::Done => done_bytes(&batch.key),
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

/// Takes a batch out of the journal that nobody waits for any more.
struct InLine<'a> {
    journal: &'a Journal,
    number: u64,
    batch: &'a Batch,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if self.batch.state.get() == State::Waiting {
            self.journal.batches.borrow_mut().remove(&self.number);
        }
    }
}

impl Spool {
    /// Notes that `members` are about to be put as one object under `key`, made as `form` says: durable when this returns.
    /// Should it be dropped before, nothing may be done with the members: they are left to the next process.
    ///
    /// # Errors
    /// The batch must not be put. To be tried again with the same members, or not at all: they stay in the spool.
    ///
    /// # Panics
    /// `key` or `form` is longer than [`KEY_BYTES_MAX`](super::format::record::KEY_BYTES_MAX) or
    /// [`FORM_BYTES_MAX`](super::format::record::FORM_BYTES_MAX), or there are no members.
    pub async fn intend(
        &self,
        key: &str,
        form: &str,
        members: &Rc<Members>,
    ) -> Result<Intent, SpoolError> {
        assert!(!members.is_empty(), "a batch has members");
        let dir = members.dir.clone();
        let batch = Rc::new(Batch {
            key: key.to_owned(),
            intent: intent_record(key, form, &members.runs.finish()),
            members: Some(members.clone()),
            state: Cell::new(State::Waiting),
        });
        let number = dir.journal.add(batch.clone());
        let _in_line = InLine { journal: &dir.journal, number, batch: &batch };
        self.commit(&dir, &batch, State::Waiting).await?;
        Ok(Intent { dir: dir.clone(), number })
    }

    /// The object was stored or dead-lettered. Noted with the journal's next group, or with the next progress.
    pub fn finished(&self, intent: Intent) {
        let batches = intent.dir.journal.batches.borrow();
        let batch = batches.get(&intent.number).expect("it stays until it is done");
        batch.state.set(State::Finished);
        let payloads = batch.members.as_ref().map_or(0, |members| members.payloads);
        self.setup.cells.spool_payloads.sub(payloads);
        if self.short.get() {
            self.keeper.raise();
        }
    }

    /// Notes that the batch with this key is done, whose intent is in a journal that its process has left: durable when
    /// this returns.
    pub(super) async fn finish_left(&self, dir: &CoreDir, key: &str) -> Result<(), SpoolError> {
        let state = Cell::new(State::Finished);
        let batch = Batch { key: key.to_owned(), intent: Box::default(), members: None, state };
        let batch = Rc::new(batch);
        let number = dir.journal.add(batch.clone());
        let noted = self.commit(dir, &batch, State::Finished).await;
        if noted.is_err() {
            dir.journal.batches.borrow_mut().remove(&number);
        }
        noted
    }

    /// Writes what finished batches have left to note in `dir`.
    pub(super) async fn flush(&self, dir: &CoreDir) -> Result<(), SpoolError> {
        let _turn = dir.journal.turn.acquire_permit(1).await.expect("never closed");
        while dir.journal.has_finished() {
            self.write_batches(dir).await?;
        }
        Ok(())
    }

    /// Until a group was synced with what `batch` waits for in `state`: its own, or one of others that wait.
    async fn commit(&self, dir: &CoreDir, batch: &Batch, state: State) -> Result<(), SpoolError> {
        let _turn = dir.journal.turn.acquire_permit(1).await.expect("never closed");
        while batch.state.get() == state {
            self.write_batches(dir).await?;
        }
        Ok(())
    }

    /// Writes and syncs one group of what waits. The caller has the turn.
    async fn write_batches(&self, dir: &CoreDir) -> Result<(), SpoolError> {
        let journal = &dir.journal;
        if journal.writing.replace(true)
            && let Some(file) = &*journal.file.borrow()
        {
            // Its writer was dropped: what the disk has of the group, or will have, is unknown.
            file.close(true);
        }
        let written = self.write_next_group(dir).await;
        journal.writing.set(false);
        for (batch, state) in written? {
            match state {
                State::Waiting => batch.state.set(State::Begun),
                _ => {
                    if let Some(members) = &batch.members {
                        members.settle().await;
                    }
                    batch.state.set(State::Done);
                }
            }
        }
        Ok(())
    }

    async fn write_next_group(&self, dir: &CoreDir) -> Result<Vec<(Rc<Batch>, State)>, SpoolError> {
        let (group, body) = dir.journal.next_group();
        let bytes = group_bytes(body);
        let file = self.journal_file(dir, bytes).await?;
        let write = |mut out: &mut [u8]| {
            for (batch, state) in &group {
                let written = match state {
                    State::Waiting => {
                        out[..batch.intent.len()].copy_from_slice(&batch.intent);
                        batch.intent.len()
                    }
                    _ => write_done(out, &batch.key),
                };
                out = &mut out[written..];
            }
        };
        self.append(&file, body, 0, write).await?;
        Ok(group)
    }

    /// The file for the next group of `bytes`, the only one that tells of this core's batches in `dir`.
    async fn journal_file(&self, dir: &CoreDir, bytes: u64) -> Result<Rc<Segment>, SpoolError> {
        self.drop_stale(dir).await?;
        let file = dir.journal.file.borrow().clone();
        match file.filter(|file| file.has_room(bytes)) {
            Some(file) => Ok(file),
            None => self.renew(dir, bytes).await,
        }
    }

    /// A new file in the place of the one there is: without the batches that may be forgotten, and with room for a group
    /// of `bytes`.
    async fn renew(&self, dir: &CoreDir, bytes: u64) -> Result<Rc<Segment>, SpoolError> {
        let journal = &dir.journal;
        self.forget_settled(dir).await;
        let carried = journal.carried();
        // Groups of one block more or less each, of which two in a row have over a megabyte.
        let live: u64 = carried.iter().map(|group| group_bytes(group.len())).sum();
        let least = self.setup.options.segment.min(FILE_BYTES);
        let wanted = (DATA_START + 2 * (live + bytes)).next_multiple_of(BLOCK).max(least);
        let file = self.journal_spare(dir, wanted).await.inspect_err(|error| self.fail(error));
        let file = file.map_err(|_| SpoolError::Failed)?;
        file.begin(self.take_number());
        // Until it is whole: what is half of it must not outlive the batches it tells of.
        journal.stale.borrow_mut().push(file.clone());
        for group in carried {
            let write = |out: &mut [u8]| out[..group.len()].copy_from_slice(&group);
            self.append(&file, group.len(), 0, write).await?;
        }
        journal.stale.borrow_mut().clear();
        if let Some(old) = journal.file.replace(Some(file.clone())) {
            old.close(false);
            journal.stale.borrow_mut().push(old);
        }
        self.drop_stale(dir).await?;
        self.count_bytes();
        Ok(file)
    }

    /// Settles the members of batches that are done durably, and drops those batches; a batch stays of which that cannot
    /// be said.
    async fn forget_settled(&self, dir: &CoreDir) {
        let done: Vec<(u64, Rc<Batch>)> = {
            let batches = dir.journal.batches.borrow();
            let done = batches.iter().filter(|(_, batch)| batch.state.get() == State::Done);
            done.map(|(number, batch)| (*number, batch.clone())).collect()
        };
        // By segment and use: numbers up to which what was settled is on the disk.
        let mut noted: BTreeMap<u64, u32> = BTreeMap::new();
        for (number, batch) in done {
            // The DONE of a batch of another journal stays as long as that journal.
            let Some(members) = &batch.members else { continue };
            let mut durable = true;
            for MemberSegment { id, segment, end } in &members.segments {
                let covered = match noted.get(id) {
                    Some(covered) => *covered,
                    // Used again, so it was complete.
                    None if segment.use_of.borrow().id != *id => u32::MAX,
                    None => match segment.note(Note::Durably).await {
                        Ok(covered) => covered,
                        Err(error) => {
                            self.fail(&error);
                            0
                        }
                    },
                };
                noted.insert(*id, covered);
                durable &= *end <= covered;
            }
            if durable {
                dir.journal.batches.borrow_mut().remove(&number);
            }
        }
    }

    /// An empty file of at least `bytes`.
    async fn journal_spare(&self, dir: &CoreDir, bytes: u64) -> io::Result<Rc<Segment>> {
        let spare = dir.journal.spare.take();
        match spare {
            Some(spare) if spare.bytes() >= bytes => return Ok(spare),
            Some(small) => self.discard(&small).await,
            None => {}
        }
        // In a directory of another process its numbers mean nothing here.
        let number = if dir.is_own() { self.take_number() } else { fastrand::u64(..) };
        let path = dir.path.join(format!("{number}.{JOURNAL}"));
        let made = self.create_file(&path, bytes).await?;
        Ok(Rc::new(made))
    }

    /// Makes sure that files which were replaced tell of nothing any more, also after a power cut.
    async fn drop_stale(&self, dir: &CoreDir) -> Result<(), SpoolError> {
        loop {
            let Some(file) = dir.journal.stale.borrow().last().cloned() else { return Ok(()) };
            let noted = file.note(Note::Complete).await;
            let gone = match &noted {
                Ok(_) if file.is_reusable() && dir.journal.spare.borrow().is_none() => {
                    dir.journal.spare.replace(Some(file.clone()));
                    Ok(())
                }
                Ok(_) => {
                    self.discard(&file).await;
                    Ok(())
                }
                Err(_) => self.remove_durably(&file, &dir.path).await,
            };
            if let Err(error) = gone {
                self.fail(&error);
                return Err(SpoolError::Failed);
            }
            dir.journal.stale.borrow_mut().pop();
        }
    }

    async fn remove_durably(&self, file: &Segment, dir: &Path) -> io::Result<()> {
        let (file, dir) = (file.path().to_owned(), dir.to_owned());
        let removed = move || match remove(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_dir(&dir),
        };
        glommio::executor().spawn_blocking(removed).await
    }

    /// The end of the journals' work at a stop. What cannot be noted is found out by the next process: it puts the same
    /// object again.
    pub(super) async fn end_journals(&self) {
        for dir in self.dirs() {
            let _was_reported = self.flush(&dir).await;
            if let Some(spare) = dir.journal.spare.take() {
                self.discard(&spare).await;
            }
        }
    }
}
