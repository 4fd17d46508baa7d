//! Receives into memory of the caller's own, without a buffer of the pool in between.
//!
//! It takes only what waits in the kernel already, by a call of its own that does not block, so the
//! kernel never holds on to the memory: nothing has to outlive a receive that is given up. Waiting
//! is the pool's part ([`Stream::poll_read_with`]): a small body needs no more, and for a large one
//! the call costs little beside the bytes that it moves.
#![expect(unsafe_code, reason = "bytes are received into a vector's spare capacity")]

use std::io;
use std::os::fd::AsFd;

use rustix::net::{RecvFlags, recv};

use super::Stream;
use super::socket::{ReceiveEnd, code};

impl Stream {
    /// Bytes that wait in the kernel and can be received with [`Stream::receive_waiting`]. 0 while
    /// others are on their way that came before them, or are unread here. One system call.
    pub fn waiting(&self) -> usize {
        let sockets = self.net.sockets.borrow();
        let entry = &sockets[self.token];
        if !entry.receive.is_idle() {
            return 0;
        }
        rustix::io::ioctl_fionread(&entry.fd).map_or(0, |n| n as usize)
    }

    /// Appends up to `most` bytes that wait in the kernel to `bytes`, whose spare capacity they fit
    /// in. Returns how many: 0 if none wait. The peer's end and an error are left for the next
    /// [`Stream::poll_read_with`].
    ///
    /// # Panics
    /// The spare capacity is smaller.
    pub fn receive_waiting(&self, bytes: &mut Vec<u8>, most: usize) -> usize {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        if !entry.receive.is_idle() || most == 0 {
            return 0;
        }
        let length = bytes.len();
        let spare = &mut bytes.spare_capacity_mut()[..most];
        let received = match recv(entry.fd.as_fd(), spare, RecvFlags::DONTWAIT) {
            Ok((_, received)) => received,
            Err(error) if is_for_later(error) => {
                entry.receive.drained();
                return 0;
            }
            Err(error) => {
                entry.receive.end = Some(ReceiveEnd::Failed(code(&io::Error::from(error))));
                return 0;
            }
        };
        if received == 0 {
            entry.receive.end = Some(ReceiveEnd::Closed);
        }
        if received < most {
            entry.receive.drained();
        }
        // SAFETY: the kernel has written these bytes to the start of the spare capacity, of which
        // there is as much.
        unsafe { bytes.set_len(length + received) };
        received
    }
}

/// Nothing waits, or the call was interrupted.
fn is_for_later(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::NOMEM)
}
