//! The keeper of one core's spool: writes checkpoints, creates segments ahead of the writer, and
//! retries a failed disk.

use std::io;
use std::path::Path;
use std::rc::Rc;

use crate::rt;
use crate::rt::{sleep, slices};
use futures_lite::FutureExt;

use super::Spool;
use super::prepare::FIRST_BYTES;
use super::segment::{CheckpointMode, Segment};
use super::takeover::instances::{SEGMENT, remove, sync_dir};

/// Why no empty segment could be created.
pub(super) enum NoSpare {
    /// `SPOOL_MAX` is used up.
    Full,
    Io(io::Error),
}

impl Spool {
    /// The keeper's task.
    pub(super) async fn keep(self: Rc<Self>) {
        let every = self.setup.options.checkpoint;
        let mut noted = rt::now();
        while !self.closed.get() {
            let left = every.saturating_sub(rt::since(noted));
            self.disk.keeper.wait().or(sleep(left)).await;
            let due = rt::since(noted) >= every;
            // When space is short, DONE must not wait: only completed members free a segment.
            if due || self.own.is_short() {
                for dir in self.dirs() {
                    let _was_reported = self.flush(&dir).await;
                }
            }
            self.finish_segments().await;
            // Asked for again only when that spare is used: a spool that was full once would write
            // DONE at once for good.
            if self.own.has_spare() {
                self.own.set_short(false);
            }
            if due {
                self.discard_again().await;
                self.write_checkpoints().await;
                if self.setup.takeover.is_used_up() {
                    self.taken.leave_unused();
                }
                noted = rt::now();
                self.shorten_worker_slices().await;
                self.check_names().await;
                if self.disk.health.is_failing() {
                    self.retry_disk().await;
                }
            }
            if self.needs_spare() && !self.disk.health.is_failing() {
                self.make_room_ahead().await;
            }
            if self.has_room() {
                self.disk.health.has_room();
            }
        }
    }

    /// Whether there is a segment for the next group.
    fn has_room(&self) -> bool {
        self.is_filling() || self.own.has_spare()
    }

    /// Whether it is time to create a segment. Not before the current one is half full: by then the
    /// one before it is mostly finished, and its file is reused, which needs no zeros.
    pub(super) fn needs_spare(&self) -> bool {
        let is_early = self.own.filling().is_some_and(|segment| !segment.is_half_full());
        !self.own.has_spare() && !is_early
    }

    /// Whether the current segment takes groups.
    fn is_filling(&self) -> bool {
        self.own.filling().is_some()
    }

    async fn make_room_ahead(&self) {
        match self.make_spare().await {
            Ok(()) => {}
            Err(NoSpare::Full) if self.is_filling() => {}
            Err(NoSpare::Full) => self.disk.health.full(),
            // Not yet a failure: the current segment still has room.
            Err(NoSpare::Io(error)) if self.is_filling() => {
                let dir = self.setup.dir.display();
                let text = || format!("the spool has no room ahead: {dir}: {error}");
                self.log.borrow_mut().warn(text);
            }
            Err(NoSpare::Io(error)) => drop(self.fail(&self.setup.dir, &error)),
        }
    }

    /// Creates an empty segment unless there is one already.
    pub(super) async fn make_spare(&self) -> Result<(), NoSpare> {
        let _turn = self.own.making().acquire_permit(1).await.expect("never closed");
        if self.own.has_spare() {
            return Ok(());
        }
        let bytes = self.setup.options.segment;
        // Each core counts its share of the orphaned files.
        let taken = self.setup.takeover.bytes() / self.setup.cores as u64;
        let own = self.segment_bytes() + self.journal_room();
        let is_short = own + bytes + taken > self.setup.options.max;
        self.own.set_short(is_short);
        if is_short {
            return Err(NoSpare::Full);
        }
        let path = self.setup.dir.join(format!("{}.{SEGMENT}", self.own.take_number()));
        let segment = self.create_file(&path, bytes, FIRST_BYTES).await.map_err(NoSpare::Io)?;
        self.own.add_spare(Rc::new(segment));
        self.disk.preparer.raise();
        self.update_disk_bytes();
        // Its sync may have started one.
        self.shorten_worker_slices().await;
        Ok(())
    }

    /// Lets workers that were started since the last call preempt the cores, see [`slices`].
    async fn shorten_worker_slices(&self) {
        if let Err(error) = self.disk.run(slices::shorten_worker_slices).await {
            tracing::debug!(%error, "could not set the scheduler slice of io-wq workers");
        }
    }

    /// Creates a file of zeros and writes its first `prepared` bytes; its directory entry is
    /// durable when this returns.
    pub(super) async fn create_file(
        &self,
        path: &Path,
        bytes: u64,
        prepared: u64,
    ) -> io::Result<Segment> {
        let made = async {
            let segment = Segment::create(path, bytes, prepared, self.disk.clone()).await?;
            let dir = path.parent().expect("in a core directory").to_owned();
            self.disk.run(move || sync_dir(&dir)).await?;
            Ok(segment)
        };
        let made = made.await;
        // A later process must not find a partial file.
        if made.is_err() {
            let path = path.to_owned();
            let _may_be_absent = self.disk.run(move || remove(&path)).await;
        }
        made
    }

    fn segment_bytes(&self) -> u64 {
        self.own.count() as u64 * self.setup.options.segment + self.undiscarded_bytes()
    }

    /// Bytes of own files that could not be removed. Those of dead processes count there.
    pub(super) fn undiscarded_bytes(&self) -> u64 {
        let undiscarded = self.own.undiscarded.borrow();
        let own = undiscarded.iter().filter(|segment| !segment.is_orphaned());
        own.map(|segment| segment.bytes()).sum()
    }

    /// What segments leave to journals: the reserve, or what this core's journals take if that is
    /// more. They are made when they are needed, however full the spool is. Those in directories of
    /// dead processes, which are to be emptied, have no reserve.
    pub(super) fn journal_room(&self) -> u64 {
        let own = self.own.dir().journal_bytes();
        self.journal_bytes() - own + own.max(self.setup.journal_reserve)
    }

    pub(super) fn journal_bytes(&self) -> u64 {
        self.dirs().iter().map(|dir| dir.journal_bytes()).sum()
    }

    pub(super) fn update_disk_bytes(&self) {
        let journals = self.journal_bytes();
        self.setup.cells.spool_journal_bytes.set(journals);
        self.setup.cells.spool_disk_bytes.set(self.segment_bytes() + journals);
    }

    /// Writes the complete checkpoint of finished segments, and then reuses or removes their files.
    async fn finish_segments(&self) {
        loop {
            let finished = self.own.finished().or_else(|| self.taken.finished());
            let Some(segment) = finished else { break };
            // Synced: otherwise a later process could take groups of the next generation for
            // corruption in this one.
            let noted = match () {
                () if segment.is_foreign() => Ok(()),
                () => segment.write_checkpoint(CheckpointMode::Complete).await.map(drop),
            };
            let reusable = noted.is_ok() && segment.is_reusable();
            if let Err(error) = noted {
                self.fail(segment.path(), &error);
            }
            let left = segment.take_unstored();
            self.setup.cells.spool_bytes.sub(left);
            self.own.remove(&segment);
            self.taken.remove(&segment);
            if !(reusable && self.own.keep_spare(&segment)) {
                self.discard(&segment).await;
            }
            self.update_disk_bytes();
        }
    }

    /// Removes the file of a finished segment, or tries that again with each checkpoint.
    pub(super) async fn discard(&self, segment: &Rc<Segment>) {
        if let Err(error) = segment.discard().await {
            let path = segment.path().display();
            tracing::warn!("{path} is finished, but could not be removed, retrying: {error}");
            self.own.undiscarded.borrow_mut().push(segment.clone());
        }
    }

    async fn discard_again(&self) {
        for segment in self.own.undiscarded.take() {
            match segment.discard().await {
                Ok(()) => tracing::info!("{} could be removed now", segment.path().display()),
                Err(_was_logged) => self.own.undiscarded.borrow_mut().push(segment),
            }
        }
        self.update_disk_bytes();
    }

    /// Writes checkpoints for the process that takes over after a crash. Not synced: payloads whose
    /// completion is lost are uploaded again under the same key.
    pub(super) async fn write_checkpoints(&self) {
        let mut segments = self.own.segments();
        segments.extend(self.taken.segments());
        segments.retain(|segment| segment.is_dirty());
        for segment in segments {
            if let Err(error) = segment.write_checkpoint(CheckpointMode::Unsynced).await {
                self.fail(segment.path(), &error);
            }
        }
    }

    /// Tests whether a failed disk takes writes again.
    async fn retry_disk(&self) {
        let works = match self.own.next_spare() {
            Some(spare) => match spare.check().await {
                Ok(()) => spare.write_checkpoint(CheckpointMode::Complete).await.map(drop),
                Err(error) => {
                    if spare.is_removed() {
                        self.own.remove_spare(&spare);
                    }
                    Err(error)
                }
            },
            None => match self.make_spare().await {
                Ok(()) | Err(NoSpare::Full) => Ok(()),
                Err(NoSpare::Io(error)) => Err(error),
            },
        };
        match works {
            Ok(()) => self.disk.health.works(),
            // Reported again because the reason may have changed.
            Err(error) => drop(self.disk.health.failed(&self.setup.dir, &error)),
        }
    }

    /// Finishes the spool's own files at a stop: removes empty ones, writes and syncs the
    /// checkpoints of the others.
    pub(super) async fn finish_files(&self) {
        // First, because DONE completes members and so may finish segments.
        self.end_journals().await;
        self.finish_segments().await;
        if let Some(last) = self.own.last().filter(|last| !last.is_closed()) {
            last.close(false);
            self.finish_segments().await;
        }
        self.write_checkpoints().await;
        for segment in self.own.take_spares() {
            self.discard(&segment).await;
        }
        for segment in self.own.segments() {
            if let Err(error) = segment.sync().await {
                tracing::warn!("{}: {error}", segment.path().display());
            }
        }
        self.update_disk_bytes();
    }
}
