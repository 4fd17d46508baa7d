//! The state of one socket: what it has received, what it sends, and which operations are in flight.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, Waker};

use super::ring::{Buffer, Outgoing, Ring};
use crate::sync::keep_waker;

/// One socket as the driver sees it. It outlives its [`Stream`] until its operations have ended.
pub(super) struct SocketEntry {
    pub(super) fd: OwnedFd,
    /// Unique among the sockets of this executor.
    pub(super) number: u64,
    /// Its `Stream` or `Listener` was dropped.
    pub(super) abandoned: bool,
    /// Operations that have not completed.
    pub(super) in_flight: u32,
    pub(super) receive: ReceiveState,
    /// The last receive left bytes in the kernel.
    pub(super) more_arrived: bool,
    pub(super) send: SendState,
    pub(super) accepted: Option<io::Result<OwnedFd>>,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

pub(super) enum ReceiveState {
    /// No task waits for bytes.
    Idle,
    InFlight,
    /// The pool had no buffer for the receive.
    Starved,
    /// A buffer of the pool, and how many of its bytes are read.
    Held(Buffer, usize),
    /// A copy of its unread bytes, made when the pool was empty, and how many of them are read.
    Copied(Vec<u8>, usize),
    End,
    Failed(i32),
}

pub(super) enum SendState {
    Idle,
    InFlight { sent: usize },
    Failed(i32),
}

impl SocketEntry {
    pub(super) fn begin_receive(&mut self, ring: &mut Ring, token: usize) {
        self.receive = ReceiveState::InFlight;
        self.in_flight += 1;
        ring.receive(self.fd.as_fd(), token, std::mem::take(&mut self.more_arrived));
    }

    pub(super) fn begin_send(
        &mut self,
        ring: &mut Ring,
        token: usize,
        outgoing: Outgoing,
        from: usize,
    ) {
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
            Err(e) => SendState::Failed(code(&e)),
            Ok(0) => SendState::Failed(libc::EPIPE),
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

pub(super) fn code(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
