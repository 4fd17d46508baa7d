//! `millrace spool replay`: uploads batches in doubt again, then every unstored payload as a single
//! object, and removes files whose payloads are all stored.
//!
//! A checkpoint in each file records what is stored, so that it is not uploaded again. If the
//! checkpoint is lost, for example because this process dies, payloads are uploaded again under the
//! same keys, which changes nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::rc::Rc;

use super::batches::MemberFiles;
use super::{SpoolCommandError, SpoolTarget, exit_of, file_bytes, look, lost, of, unreadable};
use crate::batch::encoder::encode;
use crate::commands::progress::ProgressLine;
use crate::commands::{RetryingStore, print, side_by_side};
use crate::config::{BatchFormat, Config};
use crate::control::Exit;
use crate::log::{CountOf, complain};
use crate::queue::job::{Origin, Payload};
use crate::spool::batches::ledger::{CompletedMembers, JournalBatch, Ledger};
use crate::spool::format::CommitGroup;
use crate::spool::format::scan::{ScanStep, SegmentEnd};
use crate::spool::offline::SegmentFile;
use crate::spool::takeover::instances::{
    core_dirs, files_of, mark_single_objects, move_to_quarantine, remove, sync_dir,
};
use crate::store::{Class, Object};

impl SpoolTarget {
    /// Uploads every unstored payload to the configured store. Exit 1 if some remain or are lost.
    ///
    /// # Errors
    /// A directory cannot be read, or the store cannot be used at all.
    pub async fn replay(&self, config: &Config) -> Result<Exit, String> {
        let puts = RetryingStore::prepare(config).await?;
        let replay = Rc::new(ReplayRun {
            puts,
            progress: ProgressLine::begin("replaying", self.bytes()),
            stored: Cell::new(0),
            left: Cell::new(0),
            has_problems: Cell::new(false),
            given_up: Cell::new(false),
        });
        let outcome = self.replay_with(&replay).await;
        let (stored, left) = (replay.stored.get(), replay.left.get());
        replay.progress.end();
        print(|out| {
            writeln!(
                out,
                "{stored} of {} spooled payloads stored in {}",
                stored + left,
                config.store
            )
        })?;
        exit_of(outcome)
    }

    async fn replay_with(&self, replay: &Rc<ReplayRun>) -> Result<Exit, SpoolCommandError> {
        for instance in &self.instances {
            let Some(held) = self.hold(instance)? else { continue };
            for core_dir in core_dirs(instance).map_err(of(instance))? {
                let files = files_of(&core_dir).map_err(of(&core_dir))?;
                // Before the first upload: a server that takes over later must not batch these
                // payloads.
                mark_single_objects(&core_dir).map_err(of(&core_dir))?;
                let (batched, all) =
                    replay.upload_batches(&core_dir).await.map_err(of(&core_dir))?;
                for (path, _) in files {
                    if all {
                        replay.upload_segment(&path, &batched).await;
                    } else if let Some(survey) = look(&path, &batched, |_| Ok(()))? {
                        replay.left.set(replay.left.get() + survey.unstored);
                    }
                }
            }
            held.leave();
        }
        let clean = replay.left.get() == 0 && !replay.has_problems.get();
        Ok(if clean { Exit::Clean } else { Exit::Unstored })
    }
}

/// One replay and its figures.
struct ReplayRun {
    puts: RetryingStore,
    progress: ProgressLine,
    stored: Cell<u64>,
    /// Payloads that stay in the spool.
    left: Cell<u64>,
    /// A file stays for another reason, or was corrupt.
    has_problems: Cell<bool>,
    /// The store refuses everything until an operator acts, so nothing more is tried.
    given_up: Cell<bool>,
}

/// A payload to upload.
struct UnstoredPayload {
    ordinal: u32,
    key: String,
    payload: Payload,
}

/// One file while its payloads are stored.
struct FileReplay {
    file: SegmentFile,
    /// Unstored payloads of the group that was read last.
    group: VecDeque<UnstoredPayload>,
    /// Why the file must go to the quarantine instead of being removed.
    problems: Vec<String>,
    /// It cannot be read to its end, by this version or for now, so it stays.
    stays: bool,
    ended: bool,
    stored: u64,
    left: u64,
}

impl ReplayRun {
    /// Uploads a core's batches in doubt again and records that they are done. Returns the members
    /// of completed batches, and whether all batches are done. If not, single payloads have to
    /// wait, because some may be members of the remaining batches.
    async fn upload_batches(&self, core_dir: &Path) -> io::Result<(Rc<CompletedMembers>, bool)> {
        let mut ledger = Ledger::read(core_dir)?;
        ledger.consolidate(core_dir)?;
        let in_doubt: Vec<(String, JournalBatch)> =
            ledger.in_doubt().map(|(key, batch)| (key.to_owned(), batch.clone())).collect();
        if in_doubt.is_empty() {
            return Ok((Rc::new(ledger.done_members()), true));
        }
        let mut files = MemberFiles::of(core_dir)?;
        let mut all = true;
        for (key, batch) in in_doubt {
            match self.upload_batch(&mut files, &key, &batch).await {
                Ok(()) => ledger.mark_done(&key),
                Err(why) => {
                    all = false;
                    self.leave(core_dir, &format!("the batch {key} could not be uploaded: {why}"));
                }
            }
        }
        ledger.rewrite(core_dir)?;
        Ok((Rc::new(ledger.done_members()), all))
    }

    async fn upload_batch(
        &self,
        files: &mut MemberFiles,
        key: &str,
        batch: &JournalBatch,
    ) -> Result<(), String> {
        let (form, mut lost) = (batch.form.parse::<BatchFormat>()?, 0);
        let parts = encode(form, files.payloads(batch, &mut lost));
        let parts = parts.map_err(|error| error.to_string())?;
        let object = Object { key, body: &parts, coding: form.coding(), sums: None };
        if !self.put(&object).await {
            return Err("the store did not take it".to_owned());
        }
        if lost > 0 {
            let lost = CountOf(lost, "payload");
            complain(format_args!("{key}: lost of this batch: {lost}"));
            self.has_problems.set(true);
        }
        self.stored.set(self.stored.get() + batch.runs().payloads() - lost);
        Ok(())
    }

    async fn upload_segment(self: &Rc<Self>, path: &Path, batched: &Rc<CompletedMembers>) {
        let reading = match SegmentFile::open_with(path, batched) {
            Ok(file) => Rc::new(RefCell::new(FileReplay::new(file))),
            Err(error) => return self.leave(path, &unreadable(&error)),
        };
        let source = {
            let reading = reading.clone();
            std::iter::from_fn(move || reading.borrow_mut().next())
        };
        let (replay, note) = (self.clone(), reading.clone());
        let after = self.progress.bytes() + file_bytes(path);
        side_by_side(source, async move |found| {
            let stored = replay.put(&Object::of(&found.key, &found.payload)).await;
            replay.progress.item(found.payload.len() as u64);
            note.borrow_mut().complete(found.ordinal, stored);
        })
        .await;
        self.progress.reach(after);
        let mut reading = reading.borrow_mut();
        self.stored.set(self.stored.get() + reading.stored);
        self.left.set(self.left.get() + reading.left);
        if let Err(error) = self.finish(&mut reading) {
            self.leave(path, &format!("the checkpoint could not be written: {error}"));
        }
    }

    fn leave(&self, path: &Path, why: &str) {
        complain(format_args!("{}: left in place: {why}", path.display()));
        self.has_problems.set(true);
    }

    /// Uploads an object. Returns whether the store has it now.
    async fn put(&self, object: &Object<'_>) -> bool {
        if self.given_up.get() {
            return false;
        }
        let Err(error) = self.puts.put(object).await else { return true };
        if error.class == Class::StoreWide && !self.given_up.replace(true) {
            complain(format_args!("nothing more is tried until this is fixed: {error}"));
        } else if !self.given_up.get() {
            complain(format_args!("{}: left in the spool: {error}", object.key));
        }
        false
    }

    /// Removes a file whose payloads are all stored, or writes its checkpoint.
    fn finish(&self, reading: &mut FileReplay) -> io::Result<()> {
        let path = reading.file.path().to_owned();
        for text in &reading.problems {
            complain(format_args!("{}: {text}", path.display()));
            self.has_problems.set(true);
        }
        if reading.stays || reading.left > 0 {
            return if reading.stored > 0 { reading.file.write_checkpoints() } else { Ok(()) };
        }
        if reading.problems.is_empty() {
            remove(&path)?
        } else {
            move_to_quarantine(&path)?
        }
        path.parent().map_or(Ok(()), sync_dir)
    }
}

impl FileReplay {
    fn new(file: SegmentFile) -> FileReplay {
        FileReplay {
            file,
            group: VecDeque::new(),
            problems: Vec::new(),
            stays: false,
            ended: false,
            stored: 0,
            left: 0,
        }
    }

    /// The next unstored payload, in file order.
    fn next(&mut self) -> Option<UnstoredPayload> {
        while self.group.is_empty() && !self.ended {
            match self.file.find_next() {
                Ok(ScanStep::Group(_, group)) => self.take(&group),
                Ok(ScanStep::Damage(damage)) => self.problems.push(damage.to_string()),
                Ok(ScanStep::End(end)) => {
                    self.ended = true;
                    self.stays = matches!(end, SegmentEnd::Version(_));
                    self.problems.extend(lost(&self.file));
                    self.problems.extend(end.problem());
                }
                Ok(ScanStep::NeedBytes) => {
                    unreachable!("find_next continues until there is a result")
                }
                Err(error) => {
                    (self.ended, self.stays) = (true, true);
                    self.problems.push(unreadable(&error));
                }
            }
        }
        self.group.pop_front()
    }

    fn take(&mut self, group: &CommitGroup) {
        let label = &group.head.label;
        let origin =
            Origin::new(label.node.clone(), label.core as usize).with_keys(self.file.keys(group));
        let unstored = self.file.payloads(group).filter(|payload| !payload.is_stored);
        self.group = unstored
            .map(|spooled| {
                let payload = Payload::uncharged(spooled.bytes.to_vec(), spooled.request.values());
                let key = origin.key(spooled.stamp, &payload);
                UnstoredPayload { ordinal: spooled.ordinal, key, payload }
            })
            .collect();
    }

    fn complete(&mut self, ordinal: u32, stored: bool) {
        if stored {
            self.file.complete(ordinal);
            self.stored += 1;
        } else {
            self.left += 1;
        }
    }
}
