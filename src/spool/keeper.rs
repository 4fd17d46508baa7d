//! Keeps the spool's files: notes what has been settled, makes room ahead, and tries a disk that failed.

use std::io;
use std::path::Path;
use std::rc::Rc;

use futures_lite::FutureExt;

use super::Spool;
use super::instances::{SEGMENT, remove, sync_dir};
use super::prepare::FIRST_BYTES;
use super::segment::{Note, Segment};
use crate::rt::{self, sleep};

/// Empty files kept for later; more go back to the file system.
const SPARES_MAX: usize = 2;

/// Why there is no empty segment.
pub(super) enum NoSpare {
    /// `SPOOL_MAX` is used up.
    Full,
    Io(io::Error),
}

impl Spool {
    /// The keeper's task.
    pub(super) async fn keep(self: Rc<Self>) {
        let every = self.setup.options.progress;
        let mut noted = rt::now();
        while !self.closed.get() {
            let left = every.saturating_sub(rt::since(noted));
            self.disk.keeper.wait().or(sleep(left)).await;
            let due = rt::since(noted) >= every;
            if due || self.short.get() {
                for dir in self.dirs() {
                    let _was_reported = self.flush(&dir).await;
                }
            }
            self.finish_segments().await;
            if due {
                self.note_progress().await;
                self.leave_dirs();
                noted = rt::now();
                self.check_names().await;
                if self.disk.health.is_failing() {
                    self.try_again().await;
                }
            }
            if self.spares.borrow().is_empty() && !self.disk.health.is_failing() {
                self.make_room_ahead().await;
            }
            if self.has_room() {
                self.disk.health.has_room();
            }
        }
    }

    /// The next group has a segment.
    fn has_room(&self) -> bool {
        self.is_filling() || !self.spares.borrow().is_empty()
    }

    /// There is a segment that takes groups.
    fn is_filling(&self) -> bool {
        self.segments.borrow().back().is_some_and(|last| last.is_filling())
    }

    async fn make_room_ahead(&self) {
        match self.make_spare().await {
            Ok(()) => {}
            Err(NoSpare::Full) if self.is_filling() => {}
            Err(NoSpare::Full) => self.disk.health.full(),
            // Not yet a failure: the segment being filled has its room.
            Err(NoSpare::Io(error)) if self.is_filling() => {
                let dir = self.setup.dir.display();
                let text = || format!("the spool has no room ahead: {dir}: {error}");
                self.log.borrow_mut().warn(text);
            }
            Err(NoSpare::Io(error)) => drop(self.fail(&self.setup.dir, &error)),
        }
    }

    /// Makes an empty segment, unless there is one.
    pub(super) async fn make_spare(&self) -> Result<(), NoSpare> {
        let _turn = self.making.acquire_permit(1).await.expect("never closed");
        if !self.spares.borrow().is_empty() {
            return Ok(());
        }
        let bytes = self.setup.options.segment;
        let adopted = self.setup.orphans.bytes() / self.setup.cores as u64;
        let is_short = self.own_bytes() + bytes + adopted > self.setup.options.max;
        self.short.set(is_short);
        if is_short {
            return Err(NoSpare::Full);
        }
        let path = self.setup.dir.join(format!("{}.{SEGMENT}", self.take_number()));
        let segment = self.create_file(&path, bytes, FIRST_BYTES).await.map_err(NoSpare::Io)?;
        self.spares.borrow_mut().push(Rc::new(segment));
        self.disk.preparer.raise();
        self.count_bytes();
        Ok(())
    }

    /// A new file of zeros of which the first `prepared` are written, under a name that is durable.
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
        if made.is_err() {
            let path = path.to_owned();
            let _may_be_absent = self.disk.run(move || remove(&path)).await;
        }
        made
    }

    fn own_bytes(&self) -> u64 {
        let files = self.segments.borrow().len() + self.spares.borrow().len();
        let journals: u64 = self.dirs.borrow().iter().map(|dir| dir.journal_bytes()).sum();
        files as u64 * self.setup.options.segment + journals
    }

    pub(super) fn count_bytes(&self) {
        self.setup.cells.spool_disk_bytes.set(self.own_bytes());
    }

    /// Directories of crashed processes from which nothing is or can be taken up any more.
    fn leave_dirs(&self) {
        if !self.setup.orphans.is_used_up() {
            return;
        }
        let adopted = self.adopted.borrow();
        self.dirs.borrow_mut().retain(|dir| {
            let in_use = dir.is_own()
                || !dir.is_idle()
                || adopted.iter().any(|segment| segment.is_adopted_from(dir));
            if !in_use {
                dir.leave();
            }
            in_use
        });
    }

    /// Segments in which nothing is left to do are noted so, and then used again or removed.
    async fn finish_segments(&self) {
        loop {
            let finished = |segment: &&Rc<Segment>| segment.use_of.borrow().is_finished();
            let own = self.segments.borrow().iter().find(finished).cloned();
            let adopted = self.adopted.borrow().iter().find(finished).cloned();
            let Some(segment) = own.or(adopted) else { break };
            // Synced, for groups of the next use must not be taken for this one's damage.
            let noted = match () {
                () if segment.is_strange() => Ok(()),
                () => segment.note(Note::Complete).await.map(drop),
            };
            let reusable = noted.is_ok() && segment.is_reusable();
            if let Err(error) = noted {
                self.fail(segment.path(), &error);
            }
            // Of payloads that damage took.
            let left = std::mem::take(&mut segment.use_of.borrow_mut().unstored_bytes);
            self.setup.cells.spool_bytes.sub(left);
            self.segments.borrow_mut().retain(|other| !Rc::ptr_eq(other, &segment));
            self.adopted.borrow_mut().retain(|other| !Rc::ptr_eq(other, &segment));
            if reusable && self.spares.borrow().len() < SPARES_MAX {
                self.spares.borrow_mut().push(segment);
            } else {
                self.discard(&segment).await;
            }
            self.count_bytes();
        }
    }

    pub(super) async fn discard(&self, segment: &Segment) {
        if let Err(error) = segment.discard().await {
            let path = segment.path().display();
            tracing::warn!("{path} is finished, but could not be taken away: {error}");
        }
    }

    /// Writes down what has been settled, for the process that comes after a crash. Without a sync: what is lost of it is
    /// put again under the same key.
    pub(super) async fn note_progress(&self) {
        let dirty = |segment: &&Rc<Segment>| segment.is_dirty();
        let own: Vec<_> = self.segments.borrow().iter().filter(dirty).cloned().collect();
        let adopted: Vec<_> = self.adopted.borrow().iter().filter(dirty).cloned().collect();
        for segment in own.into_iter().chain(adopted) {
            if let Err(error) = segment.note(Note::Lazily).await {
                self.fail(segment.path(), &error);
            }
        }
    }

    /// Whether the disk takes something again, after it did not.
    async fn try_again(&self) {
        let spare = self.spares.borrow().last().cloned();
        let works = match spare {
            Some(spare) => match spare.check().await {
                Ok(()) => spare.note(Note::Complete).await.map(drop),
                Err(error) => {
                    if spare.is_gone() {
                        self.spares.borrow_mut().retain(|other| !Rc::ptr_eq(other, &spare));
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
            // Of another kind than before, perhaps.
            Err(error) => drop(self.disk.health.failed(&self.setup.dir, &error)),
        }
    }

    /// The end of the spool's own files at a stop: those with nothing left in them go, the others are noted and synced.
    pub(super) async fn put_away(&self) {
        self.end_journals().await;
        self.finish_segments().await;
        let last = self.segments.borrow().back().cloned();
        if let Some(last) = last.filter(|last| !last.use_of.borrow().closed) {
            last.close(false);
            self.finish_segments().await;
        }
        self.note_progress().await;
        for segment in self.spares.take() {
            self.discard(&segment).await;
        }
        let left: Vec<_> = self.segments.borrow().iter().cloned().collect();
        for segment in left {
            if let Err(error) = segment.sync().await {
                tracing::warn!("{}: {error}", segment.path().display());
            }
        }
        self.count_bytes();
    }
}
