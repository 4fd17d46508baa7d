//! The files of a journal: one is written until it is full or has failed, and is then replaced by
//! the one it had replaced before.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;

use super::{BatchState, CoreDir, TrackedBatch};
use crate::deadletter::create_dir;
use crate::rt;
use crate::spool::batches::ledger::JOURNAL;
use crate::spool::batches::members::MemberSegment;
use crate::spool::format::{BLOCK, DATA_START, group_bytes};
use crate::spool::segment::{CheckpointMode, Payloads, Segment};
use crate::spool::takeover::instances::{remove, sync_dir};
use crate::spool::{Spool, SpoolError};

impl Spool {
    /// Returns the file for the next group of `bytes`, the only one that names this core's batches
    /// in `dir`.
    pub(super) async fn journal_file(
        &self,
        dir: &CoreDir,
        bytes: u64,
    ) -> Result<Rc<Segment>, SpoolError> {
        self.drop_stale(dir).await?;
        let file = dir.journal.file.borrow().clone();
        match file.filter(|file| file.has_room(bytes)) {
            Some(file) => Ok(file),
            None => self.renew(dir, bytes).await,
        }
    }

    /// Replaces the file: the new one omits batches that may be dropped, and has room for a group
    /// of `bytes`.
    async fn renew(&self, dir: &CoreDir, bytes: u64) -> Result<Rc<Segment>, SpoolError> {
        let journal = &dir.journal;
        self.drop_completed(dir).await;
        let carried = journal.carried();
        // Twice the live groups, so that renewals stay rare. Padding is small: a group takes up to
        // one block more than its records, and any two consecutive groups have over a megabyte.
        let live: u64 = carried.iter().map(|group| group_bytes(group.len())).sum();
        let least = self.setup.options.journal_bytes();
        let wanted = (DATA_START + 2 * (live + bytes)).next_multiple_of(BLOCK).max(least);
        let file = self.journal_spare(dir, wanted).await;
        let file = file.map_err(|error| self.fail(&dir.path, &error))?;
        file.begin(self.own.take_number());
        // The new file is stale until it is complete: a partial file must not outlive the batches
        // it names.
        journal.stale.borrow_mut().push(file.clone());
        for group in carried {
            let write = |out: &mut [u8]| out[..group.len()].copy_from_slice(&group);
            self.append(&file, group.len(), Payloads::default(), write).await?;
        }
        journal.stale.borrow_mut().clear();
        if let Some(old) = journal.file.replace(Some(file.clone())) {
            old.close(false);
            journal.stale.borrow_mut().push(old);
        }
        self.drop_stale(dir).await?;
        self.update_disk_bytes();
        Ok(file)
    }

    /// Makes the completion of done batches' members durable, and drops those batches. A batch
    /// stays if that fails.
    async fn drop_completed(&self, dir: &CoreDir) {
        let done: Vec<(u64, Rc<TrackedBatch>)> = {
            let batches = dir.journal.batches.borrow();
            let done = batches.iter().filter(|(_, batch)| batch.state.get() == BatchState::Done);
            done.map(|(number, batch)| (*number, batch.clone())).collect()
        };
        // For each generation of a segment: whether its completed payloads are on the disk.
        let mut noted: BTreeMap<u64, bool> = BTreeMap::new();
        for (number, batch) in done {
            // DONE for a batch of another journal stays as long as that journal.
            let Some(members) = &batch.members else { continue };
            let mut durable = true;
            for MemberSegment { id, segment, .. } in &members.segments {
                let is_noted = match noted.get(id) {
                    Some(is_noted) => *is_noted,
                    // Reused, so it was complete.
                    None if segment.id() != *id => true,
                    None => match segment.write_checkpoint(CheckpointMode::Synced).await {
                        Ok(written) => written,
                        Err(error) => {
                            self.fail(segment.path(), &error);
                            false
                        }
                    },
                };
                noted.insert(*id, is_noted);
                durable &= is_noted;
            }
            if durable {
                dir.journal.batches.borrow_mut().remove(&number);
            }
        }
    }

    /// Takes or makes an empty file of at least `bytes`.
    async fn journal_spare(&self, dir: &CoreDir, bytes: u64) -> io::Result<Rc<Segment>> {
        let spare = dir.journal.spare.take();
        match spare {
            Some(spare) if spare.bytes() >= bytes => return Ok(spare),
            Some(small) => self.discard(&small).await,
            None => {}
        }
        // In another process's directory, the numbers of this process may be taken.
        let number = if dir.is_own() { self.own.take_number() } else { rt::random() };
        let path = dir.path.join(format!("{number}.{JOURNAL}"));
        let made = self.create_file(&path, bytes, bytes).await;
        let made = match made {
            // The directory was removed while batches of its segments are in memory.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.is_own() => {
                let parent = dir.path.clone();
                self.disk.run(move || create_dir(&parent)).await?;
                self.create_file(&path, bytes, bytes).await?
            }
            made => made?,
        };
        Ok(Rc::new(made))
    }

    /// Makes sure that replaced files are ignored, even after a power cut.
    async fn drop_stale(&self, dir: &CoreDir) -> Result<(), SpoolError> {
        loop {
            let Some(file) = dir.journal.stale.borrow().last().cloned() else { return Ok(()) };
            let noted = file.write_checkpoint(CheckpointMode::Complete).await;
            let gone = match &noted {
                // Reused only when idle: a group whose writing task was dropped may still be in
                // flight, and must not land in the next generation.
                Ok(_)
                    if file.is_idle()
                        && file.is_reusable()
                        && dir.journal.spare.borrow().is_none() =>
                {
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
                return Err(self.fail(file.path(), &error));
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
        self.disk.run(removed).await
    }
}
