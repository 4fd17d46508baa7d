//! Durable writes of files on the executor's own ring: a write and the sync behind it are one linked submission, handed over and
//! seen to have ended in the driver's turns like everything of the sockets.
//!
//! glommio would take two operations for that, and looks for what has ended only when its run queue is empty or its time
//! slice is over: measured, that made 0.84 ms of the 0.2 ms that the disk takes.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Poll, Waker};

use glommio::io::DmaBuffer;
use slab::Slab;

use super::Net;
use crate::sync::keep_waker;

/// What direct I/O is aligned to, and the unit in which a disk is assumed to write.
pub const BLOCK: u64 = 4096;

/// A file open for writing, one write at a time. Dropped while one is under way, it is closed when that has ended.
pub struct File {
    net: Rc<Net>,
    token: usize,
}

/// One file as the driver knows it.
pub(super) struct Entry {
    fd: OwnedFd,
    abandoned: bool,
    state: State,
    writer: Option<Waker>,
}

enum State {
    Idle,
    UnderWay,
    Ended(io::Result<()>),
}

impl Net {
    /// A file of which nobody else counts on the position; with `O_DIRECT`, buffers and places must be aligned.
    pub fn file(self: &Rc<Net>, fd: OwnedFd) -> File {
        let entry = Entry { fd, abandoned: false, state: State::Idle, writer: None };
        File { net: self.clone(), token: self.files.borrow_mut().insert(entry) }
    }
}

impl File {
    /// Nothing is being written.
    pub fn is_idle(&self) -> bool {
        !self.net.files.borrow()[self.token].is_busy()
    }

    /// Writes all of `bytes` from byte `at` on and syncs the file's data. Dropped early, it goes on by itself.
    ///
    /// # Errors
    /// Of the write or of the sync: what of it is on the disk is unknown then.
    ///
    /// # Panics
    /// An earlier call has not ended.
    pub async fn write_synced(&self, bytes: DmaBuffer, at: u64) -> io::Result<()> {
        {
            let mut files = self.net.files.borrow_mut();
            let entry = &mut files[self.token];
            assert!(!entry.is_busy(), "one write at a time");
            entry.state = State::UnderWay;
            self.net.ring.borrow_mut().write_synced(entry.fd.as_fd(), self.token, bytes, at);
        }
        self.net.pushed();
        poll_fn(|cx| {
            let mut files = self.net.files.borrow_mut();
            let entry = &mut files[self.token];
            if let State::Ended(_) = entry.state
                && let State::Ended(outcome) = std::mem::replace(&mut entry.state, State::Idle)
            {
                return Poll::Ready(outcome);
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

impl Entry {
    fn is_busy(&self) -> bool {
        matches!(self.state, State::UnderWay)
    }
}

/// The write of `token` and the sync behind it have ended.
pub(super) fn synced(files: &mut Slab<Entry>, token: usize, outcome: io::Result<()>) {
    let entry = &mut files[token];
    entry.state = State::Ended(outcome);
    if let Some(waker) = &entry.writer {
        waker.wake_by_ref();
    }
    if entry.abandoned {
        files.remove(token);
    }
}
