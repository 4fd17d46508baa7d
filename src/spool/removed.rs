//! Detects spool files that are removed or renamed while the server runs. Such a file can still be
//! written and read, but its contents are lost when this process ends.
//!
//! So a file's name is checked before a commit group in it is acknowledged, unless it was checked
//! within the last [`CHECK_EVERY`]. The keeper also checks the file for the next group every
//! `SPOOL_CHECKPOINT`. A removed file gets no further groups. Its payloads are uploaded like all
//! others. At a stop, those still in memory are treated like payloads that were only queued; those
//! only on disk are lost, logged and counted. The control thread recreates the directory; it checks
//! every 5 seconds ([`Home::restore`](super::takeover::instances::Home::restore)).

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::segment::Segment;
use super::{Members, Spool};
use crate::queue::job::Job;
use crate::rt;

/// How long a check of a file's name is valid. It is short because a group in a removed file does
/// not survive a crash.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// Identifies a file independently of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &fs::Metadata) -> FileId {
        FileId { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// State of the checks of a file's name.
pub(super) struct NameCheck {
    /// The file that the name referred to when it was created or opened.
    identity: FileId,
    /// When the name was last seen to refer to it.
    checked: Cell<Instant>,
    /// The name no longer refers to it.
    gone: Cell<bool>,
}

impl NameCheck {
    /// The name of a file that was created or opened just now.
    pub(super) fn new(identity: FileId) -> NameCheck {
        NameCheck { identity, checked: Cell::new(rt::now()), gone: Cell::new(false) }
    }
}

impl Segment {
    /// Checks that the name still refers to this file, unless that was checked within
    /// [`CHECK_EVERY`].
    ///
    /// # Errors
    /// `ENOENT`: the file was removed or renamed, so what is written to it does not survive a
    /// crash. Any other error: the check itself failed.
    pub async fn check(&self) -> io::Result<()> {
        if !self.name.gone.get() && rt::since(self.name.checked.get()) < CHECK_EVERY {
            return Ok(());
        }
        self.check_now().await
    }

    async fn check_now(&self) -> io::Result<()> {
        let path = self.path().to_owned();
        let found = self.disk.run(move || Ok(FileId::of(&fs::symlink_metadata(path)?))).await;
        match found {
            Ok(found) if found == self.name.identity => {
                self.name.checked.set(rt::now());
                return Ok(());
            }
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                return Err(error);
            }
            _ => self.name.gone.set(true),
        }
        Err(io::Error::from_raw_os_error(libc::ENOENT))
    }

    /// Whether the file was removed or replaced: its contents are lost when this process ends.
    pub fn is_removed(&self) -> bool {
        self.name.gone.get()
    }
}

impl Spool {
    /// Releases payloads whose files were removed. Those in `rest` and the `members` of batches are
    /// in memory and can be spooled again; those only on disk are lost.
    pub(super) async fn release_removed(&self, rest: &mut [Job], members: &[Rc<Members>]) {
        for job in rest {
            // Without its record the job counts as queued, and the stop spools it again.
            if let Some(record) = job.record.take() {
                record.complete(job.stamp, 1, job.payload.len() as u64);
            }
        }
        for members in members {
            self.setup.cells.spool_payloads.sub(members.len());
            self.setup.cells.spool_bytes.sub(members.payload_bytes());
            members.complete().await;
        }
        for segment in self.own.segments().iter().filter(|segment| segment.is_removed()) {
            let lost = segment.incomplete();
            if lost > 0 {
                let path = segment.path().display();
                tracing::error!(
                    lost,
                    "payloads lost: {path} was removed while they were only on disk"
                );
                segment.complete_missing(0..segment.payloads());
                self.setup.cells.payloads_lost.add(lost);
                self.setup.cells.spool_payloads.sub(lost);
            }
        }
    }

    /// Checks the names of all segments before a stop relies on their contents, and drops removed
    /// spares.
    pub async fn check_all(&self) {
        for segment in self.own.segments().into_iter().chain(self.own.spares()) {
            // Any other error says nothing about the name.
            let _gone_or_not = segment.check_now().await;
        }
        self.own.drop_gone_spares();
    }

    /// Checks the name of the file that takes the next group, so that `/readyz` reports it before a
    /// request finds out.
    pub(super) async fn check_names(&self) {
        let next = self.own.filling().or_else(|| self.own.next_spare());
        let Some(next) = next else { return };
        if let Err(error) = next.check().await {
            self.fail(next.path(), &error);
        }
    }
}
