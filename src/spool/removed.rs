//! Files of the spool that are removed or renamed under the running server. They still take writes and give what they
//! hold, but whatever is put into them goes with this process.
//!
//! So a file's name is looked at before a group in it is acknowledged, unless it was a moment ago ([`CHECK_EVERY`]); one that
//! is gone gets no more groups. What it holds is uploaded like all else. At a stop, what of that is in memory is kept as if
//! it had only been queued, and what was on disk only is lost, and said so.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::segment::Segment;
use super::{Members, Spool};
use crate::queue::job::Job;

/// How long it is taken for granted that a file's name still leads to it: groups in a file that was removed survive no crash.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// A file, whatever its name is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(metadata: &fs::Metadata) -> Identity {
        Identity { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// What is known of a file's name.
pub(super) struct Name {
    /// The file that the name led to when it was made or opened.
    identity: Identity,
    /// When the name led to it last.
    checked: Cell<Instant>,
    /// It does not any more.
    gone: Cell<bool>,
}

impl Name {
    /// Of a file that was made or opened just now.
    pub(super) fn new(identity: Identity) -> Name {
        Name { identity, checked: Cell::new(Instant::now()), gone: Cell::new(false) }
    }
}

impl Segment {
    /// Makes sure that its name still leads to it, unless that was so a moment ago.
    ///
    /// # Errors
    /// `ENOENT`: it was removed or renamed, and what is written to it survives no crash. Any other: the disk did not say.
    pub async fn check(&self) -> io::Result<()> {
        if !self.name.gone.get() && self.name.checked.get().elapsed() < CHECK_EVERY {
            return Ok(());
        }
        self.check_now().await
    }

    async fn check_now(&self) -> io::Result<()> {
        let path = self.path().to_owned();
        let found = self.disk.run(move || Ok(Identity::of(&fs::symlink_metadata(path)?))).await;
        match found {
            Ok(found) if found == self.name.identity => {
                self.name.checked.set(Instant::now());
                return Ok(());
            }
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                return Err(error);
            }
            _ => self.name.gone.set(true),
        }
        Err(io::Error::from_raw_os_error(libc::ENOENT))
    }

    /// It was removed, or something else has its name: what is in it is lost with this process.
    pub fn is_gone(&self) -> bool {
        self.name.gone.get()
    }
}

impl Spool {
    /// Takes payloads whose files were removed out of the spool: those in `rest` and the `members` of batches are kept like all
    /// that was in memory only, those that were on disk only are lost.
    pub(super) async fn disown(&self, rest: &mut [Job], members: &[Rc<Members>]) {
        for job in rest {
            if let Some(record) = job.record.take() {
                record.settle(job.stamp, job.payload.len());
            }
        }
        for members in members {
            self.setup.cells.spool_payloads.sub(members.len());
            self.setup.cells.spool_bytes.sub(members.payload_bytes());
            members.settle().await;
        }
        for segment in self.own.segments().iter().filter(|segment| segment.is_gone()) {
            let lost = segment.unsettled();
            if lost > 0 {
                let path = segment.path().display();
                tracing::error!(
                    lost,
                    "payloads lost: {path} was removed while they were on disk only"
                );
                segment.settle_missing(0..segment.payloads());
                self.setup.cells.payloads_lost.add(lost);
                self.setup.cells.spool_payloads.sub(lost);
            }
        }
    }

    /// Looks at the names of all segments, before a stop counts on what is in them, and drops spares that are gone.
    pub async fn check_all(&self) {
        for segment in self.own.segments().into_iter().chain(self.own.spares()) {
            // Any other error says nothing of the name.
            let _gone_or_not = segment.check_now().await;
        }
        self.own.drop_gone_spares();
    }

    /// Looks whether the segment that takes the next group is still where it was made, so that `/readyz` says so before a
    /// request finds out.
    pub(super) async fn check_names(&self) {
        let next = self.own.filling().or_else(|| self.own.next_spare());
        let Some(next) = next else { return };
        if let Err(error) = next.check().await {
            self.fail(next.path(), &error);
        }
    }
}
