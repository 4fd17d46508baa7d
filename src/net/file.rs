//! Durable file writes on the executor's own ring: a write and its sync are one linked submission,
//! which the driver submits and completes in its turns, like the operations of sockets.
//!
//! glommio would need two operations, and looks for completions only when its run queue is empty or
//! its time slice is over. Measured, that took 0.84 ms where the disk takes 0.2 ms.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Poll, Waker};

use glommio::io::DmaBuffer;
use slab::Slab;

use super::Net;
use crate::sync::keep_waker;

/// Alignment of direct I/O, and the unit in which a disk is assumed to write.
pub const BLOCK: u64 = 4096;

/// A file open for writing, one write at a time. If it is dropped during a write, it is closed when
/// the write has ended.
pub struct File {
    net: Rc<Net>,
    token: usize,
}

/// One file as the driver sees it.
pub(super) struct FileEntry {
    fd: OwnedFd,
    /// Its `File` was dropped.
    abandoned: bool,
    state: WriteState,
    writer: Option<Waker>,
}

enum WriteState {
    Idle,
    InFlight,
    Ended(io::Result<()>),
}

impl Net {
    /// Takes over a file. With `O_DIRECT`, buffers and offsets must be aligned to [`BLOCK`].
    pub fn file(self: &Rc<Net>, fd: OwnedFd) -> File {
        let entry = FileEntry { fd, abandoned: false, state: WriteState::Idle, writer: None };
        File { net: self.clone(), token: self.files.borrow_mut().insert(entry) }
    }
}

impl File {
    /// Whether no write is in flight.
    pub fn is_idle(&self) -> bool {
        !self.net.files.borrow()[self.token].is_busy()
    }

    /// Writes all of `bytes` at offset `at` and syncs the file's data. Dropping the future does not
    /// stop the write.
    ///
    /// # Errors
    /// The write or the sync failed. How much of `bytes` is on the disk is then unknown.
    ///
    /// # Panics
    /// An earlier write has not ended.
    pub async fn write_synced(&self, bytes: DmaBuffer, at: u64) -> io::Result<()> {
        {
            let mut files = self.net.files.borrow_mut();
            let entry = &mut files[self.token];
            assert!(!entry.is_busy(), "one write at a time");
            entry.state = WriteState::InFlight;
            let mut ring = self.net.ring.borrow_mut();
            ring.write_synced(entry.fd.as_fd(), self.token, bytes, at);
            // In one submission with the sends of this turn it would reach the disk after all of
            // them, measured 0.25 ms later: the kernel collects what one submission has for a disk.
            ring.submit();
        }
        self.net.pushed();
        poll_fn(|cx| {
            let mut files = self.net.files.borrow_mut();
            let entry = &mut files[self.token];
            if let WriteState::Ended(_) = entry.state
                && let WriteState::Ended(result) =
                    std::mem::replace(&mut entry.state, WriteState::Idle)
            {
                return Poll::Ready(result);
            }
            keep_waker(&mut entry.writer, cx);
            Poll::Pending
        })
        .await
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let mut files = self.net.files.borrow_mut();
        let entry = &mut files[self.token];
        if entry.is_busy() {
            (entry.abandoned, entry.writer) = (true, None);
        } else {
            files.remove(self.token);
        }
    }
}

impl FileEntry {
    fn is_busy(&self) -> bool {
        matches!(self.state, WriteState::InFlight)
    }
}

/// Handles the end of the write of `token` and of its sync.
pub(super) fn synced(files: &mut Slab<FileEntry>, token: usize, result: io::Result<()>) {
    let entry = &mut files[token];
    entry.state = WriteState::Ended(result);
    if let Some(waker) = &entry.writer {
        waker.wake_by_ref();
    }
    if entry.abandoned {
        files.remove(token);
    }
}
