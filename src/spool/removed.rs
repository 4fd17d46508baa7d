//! Files of the spool that are removed or renamed under the running server. They still take writes and give what they
//! hold, but whatever is put into them goes with this process.
//!
//! So a file's name is looked at before a group in it is acknowledged, unless it was a moment ago ([`CHECK_EVERY`]); one that
//! is gone gets no more groups. What it holds is uploaded like all else. At a stop, what of that is in memory is kept as if
//! it had only been queued, and what was on disk only is lost, and said so.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::time::Duration;

use super::Spool;
use super::segment::Segment;
use crate::batch::Batch;
use crate::queue::job::Job;
use crate::rt;

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

impl Segment {
    /// Makes sure that its name still leads to it, unless that was so a moment ago.
    ///
    /// # Errors
    /// `ENOENT`: it was removed or renamed, and what is written to it survives no crash. Any other: the disk did not say.
    pub async fn check(&self) -> io::Result<()> {
        if !self.gone.get() && rt::since(self.checked.get()) < CHECK_EVERY {
            return Ok(());
        }
        self.check_now().await
    }

    async fn check_now(&self) -> io::Result<()> {
        let path = self.path().to_owned();
        let found = self.disk.run(move || Ok(Identity::of(&fs::symlink_metadata(path)?))).await;
        match found {
            Ok(found) if found == self.identity => {
                self.checked.set(rt::now());
                return Ok(());
            }
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                return Err(error);
            }
            _ => self.gone.set(true),
        }
        Err(io::Error::from_raw_os_error(libc::ENOENT))
    }

    /// It was removed, or something else has its name: what is in it is lost with this process.
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }
}

impl Spool {
    /// Takes payloads whose files were removed out of the spool: those in `rest` and `batches` are kept like all that was in
    /// memory only, those that were on disk only are lost.
    pub(super) async fn disown(&self, rest: &mut [Job], batches: &[Rc<Batch>]) {
        for job in rest {
            if let Some(record) = job.record.take() {
                record.settle(job.stamp, job.payload.len());
            }
        }
        for members in batches.iter().filter_map(|batch| batch.members()) {
            self.setup.cells.spool_payloads.sub(members.len());
            self.setup.cells.spool_bytes.sub(members.payload_bytes());
            members.settle().await;
        }
        let segments: Vec<_> = self.segments.borrow().iter().cloned().collect();
        for segment in segments.iter().filter(|segment| segment.is_gone()) {
            let lost = segment.unsettled();
            if lost > 0 {
                let path = segment.path().display();
                tracing::error!(
                    lost,
                    "payloads lost: {path} was removed while they were on disk only"
                );
                segment.settle_missing(0..segment.use_of.borrow().payloads);
                self.setup.cells.payloads_lost.add(lost);
                self.setup.cells.spool_payloads.sub(lost);
            }
        }
    }

    /// Looks at the names of all segments, before a stop counts on what is in them, and drops spares that are gone.
    pub async fn check_all(&self) {
        let segments: Vec<_> = self.segments.borrow().iter().cloned().collect();
        let spares = self.spares.borrow().clone();
        for segment in segments.into_iter().chain(spares) {
            // Any other error says nothing of the name.
            let _gone_or_not = segment.check_now().await;
        }
        self.spares.borrow_mut().retain(|spare| !spare.is_gone());
    }

    /// Looks whether the segment that takes the next group is still where it was made, so that `/readyz` says so before a
    /// request finds out.
    pub(super) async fn check_names(&self) {
        let current = self.segments.borrow().back().cloned();
        let current = current.filter(|last| last.is_filling());
        let Some(next) = current.or_else(|| self.spares.borrow().last().cloned()) else { return };
        if let Err(error) = next.check().await {
            self.fail(next.path(), &error);
        }
    }
}
