//! The state of one socket: what it has received, what it sends, and which operations are in flight.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, Waker};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::ring::{Buffer, Outgoing, Ring};
use crate::sync::keep_waker;

/// Unread bytes at which a continuous receive ends, so that single ones follow at the reader's pace: many
/// times an error document. Until its cancel takes effect it may bring as much as the pool holds.
const CONTINUOUS_BYTES_MAX: usize = 64 << 10;

/// One socket as the driver sees it. It outlives its [`Stream`](super::Stream) until its operations have ended.
pub(super) struct SocketEntry {
    pub(super) fd: OwnedFd,
    /// Unique among the sockets of this executor.
    pub(super) number: u64,
    /// Its `Stream` or `Listener` was dropped.
    pub(super) abandoned: bool,
    /// Operations that have not completed.
    pub(super) in_flight: u32,
    pub(super) receive: ReceiveState,
    pub(super) send: SendState,
    pub(super) accepted: Option<io::Result<OwnedFd>>,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

/// What has arrived on a socket, and the receive that brings more. That begins only when a task
/// waits and nothing is unread, and gives a limited number of bytes ([`Ring::receive`]), which
/// bounds what is unread here; on a socket that receives continuously, its reader does that.
#[derive(Default)]
pub(super) struct ReceiveState {
    /// A receive brings bytes again and again ([`Ring::receive_continuously`]).
    pub(super) is_continuous: bool,
    /// A continuous receive has brought bytes, and nothing was sent since that would have failed after
    /// a reset; or a send has failed.
    may_be_reset: bool,
    pub(super) unread: UnreadBytes,
    pub(super) operation: ReceiveOp,
    /// Nothing follows what is unread.
    pub(super) end: Option<ReceiveEnd>,
    /// The last receive left bytes in the kernel.
    more_arrived: bool,
}

#[derive(Default)]
pub(super) enum UnreadBytes {
    #[default]
    Nothing,
    /// A buffer of the pool, and how many of its bytes are read.
    Held(Buffer, usize),
    /// Copies, made when the pool was empty or when more arrived, and how many bytes are read.
    Copied(Vec<u8>, usize),
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReceiveOp {
    #[default]
    Idle,
    InFlight,
    /// The pool had no buffer for the receive.
    Starved,
}

#[derive(Clone, Copy)]
pub(super) enum ReceiveEnd {
    /// The peer has closed its half.
    Closed,
    Failed(i32),
}

impl ReceiveState {
    /// Passes what is unread to `take`, which returns how many bytes it has read. Without unread
    /// bytes the end, if it has come.
    pub(super) fn read(
        &mut self,
        ring: &mut Ring,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> Option<io::Result<usize>> {
        let (n, left) = match &mut self.unread {
            UnreadBytes::Held(buffer, taken) => {
                let n = take(&ring.bytes(buffer)[*taken..]);
                *taken += n;
                (n, buffer.len() - *taken)
            }
            UnreadBytes::Copied(bytes, taken) => {
                let n = take(&bytes[*taken..]);
                *taken += n;
                (n, bytes.len() - *taken)
            }
            UnreadBytes::Nothing => return self.ended().map(|ended| ended.map(|()| 0)),
        };
        if left == 0 {
            self.discard_unread(ring);
        }
        Some(Ok(n))
    }

    /// The end, if it has come.
    pub(super) fn ended(&self) -> Option<io::Result<()>> {
        self.end.map(|end| match end {
            ReceiveEnd::Closed => Ok(()),
            ReceiveEnd::Failed(code) => Err(io::Error::from_raw_os_error(code)),
        })
    }

    /// Notes that nothing waits in the kernel any longer.
    pub(super) fn drained(&mut self) {
        self.more_arrived = false;
    }

    /// Whether nothing is unread and nothing brings more.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_readable() && self.operation == ReceiveOp::Idle
    }

    /// Whether a read would not wait.
    pub(super) fn is_readable(&self) -> bool {
        !matches!(self.unread, UnreadBytes::Nothing) || self.end.is_some()
    }

    /// Unread bytes; the end counts as one.
    pub(super) fn arrived(&self) -> usize {
        let unread = match &self.unread {
            UnreadBytes::Nothing => 0,
            UnreadBytes::Held(buffer, taken) => buffer.len() - taken,
            UnreadBytes::Copied(bytes, taken) => bytes.len() - taken,
        };
        unread + usize::from(self.end.is_some())
    }

    fn add(&mut self, ring: &mut Ring, buffer: Buffer) {
        self.more_arrived = buffer.more();
        self.may_be_reset = self.is_continuous;
        if let UnreadBytes::Nothing = self.unread {
            self.unread = UnreadBytes::Held(buffer, 0);
            return;
        }
        self.copy_unread(ring);
        if let UnreadBytes::Copied(bytes, _) = &mut self.unread {
            bytes.extend_from_slice(ring.bytes(&buffer));
        }
        ring.give_back(buffer);
    }

    /// Puts what was taken out of `unread` back in front of what has arrived since.
    pub(super) fn put_back(&mut self, rest: UnreadBytes, ring: &mut Ring) {
        let newer = match std::mem::replace(&mut self.unread, rest) {
            UnreadBytes::Nothing => return,
            UnreadBytes::Held(buffer, taken) => {
                let copied = ring.bytes(&buffer)[taken..].to_vec();
                ring.give_back(buffer);
                copied
            }
            UnreadBytes::Copied(mut bytes, taken) => {
                bytes.drain(..taken);
                bytes
            }
        };
        self.copy_unread(ring);
        if let UnreadBytes::Copied(bytes, _) = &mut self.unread {
            bytes.extend_from_slice(&newer);
        }
    }

    /// Copies an unread buffer, so that it returns to the pool.
    pub(super) fn copy_unread(&mut self, ring: &mut Ring) {
        if let UnreadBytes::Held(buffer, taken) = &self.unread {
            let copied = UnreadBytes::Copied(ring.bytes(buffer)[*taken..].to_vec(), 0);
            self.discard_unread(ring);
            self.unread = copied;
        }
    }

    /// Drops what is unread.
    pub(super) fn discard_unread(&mut self, ring: &mut Ring) {
        if let UnreadBytes::Held(buffer, _) = std::mem::take(&mut self.unread) {
            ring.give_back(buffer);
        }
    }
}

pub(super) enum SendState {
    Idle,
    InFlight { sent: usize },
    Failed(i32),
}

impl SocketEntry {
    pub(super) fn begin_receive(&mut self, ring: &mut Ring, token: usize) {
        self.receive.operation = ReceiveOp::InFlight;
        self.in_flight += 1;
        if self.receive.is_continuous {
            return ring.receive_continuously(self.fd.as_fd(), token);
        }
        let arrived = std::mem::take(&mut self.receive.more_arrived);
        ring.receive(self.fd.as_fd(), token, arrived);
    }

    /// Adds what a receive has brought.
    pub(super) fn received(&mut self, ring: &mut Ring, token: usize, buffer: Buffer) {
        self.receive.add(ring, buffer);
        if self.receive.is_continuous && self.receive.arrived() > CONTINUOUS_BYTES_MAX {
            self.receive.is_continuous = false;
            ring.cancel_receive(token);
        }
    }

    /// Called when a reader waits. Looks for a reset of which a continuous receive has not told,
    /// because it came together with bytes. If there was one, the receive is cancelled: that completes
    /// behind everything that was received, see [`SocketEntry::receive_cancelled`]. Whether a submission
    /// was pushed. At most two system calls after bytes.
    pub(super) fn look_for_reset(&mut self, ring: &mut Ring, token: usize) -> bool {
        let is_missed = std::mem::take(&mut self.receive.may_be_reset)
            && self.receive.operation == ReceiveOp::InFlight
            && is_reset(self.fd.as_fd())
            // Bytes that are left are brought first, and are followed by another look.
            && rustix::io::ioctl_fionread(&self.fd).is_ok_and(|left| left == 0);
        if is_missed {
            ring.cancel_receive(token);
        }
        is_missed
    }

    /// Handles the end of a receive that [`Ring::cancel_receive`] has cancelled.
    pub(super) fn receive_cancelled(&mut self) {
        if self.receive.is_continuous {
            self.receive.end = Some(ReceiveEnd::Failed(libc::ECONNRESET));
        }
    }

    /// Repeats a receive that found no buffer: its bytes, or the peer's end, have arrived.
    pub(super) fn repeat_receive(&mut self, ring: &mut Ring, token: usize) {
        self.receive.more_arrived = true;
        self.begin_receive(ring, token);
    }

    pub(super) fn begin_send(
        &mut self,
        ring: &mut Ring,
        token: usize,
        outgoing: Outgoing,
        from: usize,
    ) {
        self.receive.may_be_reset = false;
        self.send = SendState::InFlight { sent: from };
        self.in_flight += 1;
        ring.send(self.fd.as_fd(), token, outgoing, from);
    }

    /// Handles the end of a send. A short send continues with the rest of its bytes.
    pub(super) fn sent(
        &mut self,
        ring: &mut Ring,
        token: usize,
        bytes: Outgoing,
        result: io::Result<usize>,
    ) {
        let SendState::InFlight { sent: before } = self.send else {
            unreachable!("it was in flight")
        };
        self.send = match result {
            Err(e) => self.send_failed(code(&e)),
            Ok(0) => self.send_failed(libc::EPIPE),
            Ok(n) if before + n < bytes.len() && !self.abandoned => {
                let sent = before + n;
                self.in_flight += 1;
                ring.send(self.fd.as_fd(), token, bytes, sent);
                self.send = SendState::InFlight { sent };
                return;
            }
            Ok(_) => {
                if let Some(buffer) = bytes.into_buffer() {
                    ring.spare.put(buffer);
                }
                SendState::Idle
            }
        };
        self.wake_writer();
    }

    /// The reader may be the only one that waits, and a continuous receive does not tell it of a reset
    /// that came with earlier bytes.
    fn send_failed(&mut self, code: i32) -> SendState {
        if self.receive.is_continuous {
            self.receive.may_be_reset = true;
            if let Some(reader) = &self.reader {
                reader.wake_by_ref();
            }
        }
        SendState::Failed(code)
    }

    /// Wakes the task that waits for a send or a connect, if one does. Most sends are not waited
    /// for, so the waker is not kept.
    pub(super) fn wake_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    pub(super) fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.send {
            SendState::Idle => Poll::Ready(Ok(())),
            SendState::Failed(code) => Poll::Ready(Err(io::Error::from_raw_os_error(code))),
            SendState::InFlight { .. } => {
                keep_waker(&mut self.writer, cx);
                Poll::Pending
            }
        }
    }
}

/// Whether the kernel has given the connection up.
fn is_reset(fd: BorrowedFd<'_>) -> bool {
    // An error and the end of both directions need not be asked for.
    let mut asked = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|found| found > 0)
}

pub(super) fn code(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
