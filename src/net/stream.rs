//! A connected socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures_lite::io::{AsyncRead, AsyncWrite};
use socket2::SockRef;

use super::acknowledged::{Acknowledged, tcp_info};
use super::ring::Outgoing;
use super::shared::Share;
use super::socket::{ReceiveOp, SendState};
use super::{Net, SEND_BYTES_MAX};
use crate::sync::keep_waker;

/// One connected socket. Dropping it cancels its operations and closes it.
pub struct Stream {
    pub(super) net: Rc<Net>,
    pub(super) token: usize,
}

impl Stream {
    /// The `Net` that it belongs to.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Waits for bytes and passes them to `take`, which returns how many it has read. 0 is the
    /// peer's end.
    ///
    /// `take` must not use this or any other socket or file of the same executor: it runs while the
    /// ring and the sockets are borrowed, and re-entry panics.
    pub fn poll_read_with(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        let mut ring = self.net.ring.borrow_mut();
        if let Some(read) = entry.receive.read(&mut ring, take) {
            return Poll::Ready(read);
        }
        keep_waker(&mut entry.reader, cx);
        let is_idle = entry.receive.operation == ReceiveOp::Idle;
        if is_idle {
            entry.begin_receive(&mut ring, self.token);
        }
        if is_idle || entry.look_for_reset(&mut ring, self.token) {
            drop((ring, sockets));
            self.net.pushed();
        }
        Poll::Pending
    }

    /// From now on, one receive brings bytes again and again, which costs less than one for each
    /// message. For connections whose reader takes all that comes with [`Stream::poll_read_with`], which
    /// looks for the resets that such a receive misses: what arrives is not held up in the kernel if
    /// nobody reads it.
    pub fn receive_continuously(&self) {
        self.net.sockets.borrow_mut()[self.token].receive.is_continuous = true;
    }

    /// Waits until a read would not wait: for bytes, the peer's end or an error.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        if entry.receive.is_readable() {
            return Poll::Ready(());
        }
        keep_waker(&mut entry.reader, cx);
        if entry.receive.operation == ReceiveOp::Idle {
            entry.begin_receive(&mut self.net.ring.borrow_mut(), self.token);
            drop(sockets);
            self.net.pushed();
        }
        Poll::Pending
    }

    /// Receives ahead of a reader. True if nothing has arrived yet: neither bytes nor the peer's end.
    pub fn is_silent(&self) -> bool {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        if entry.receive.is_readable() {
            return false;
        }
        if entry.receive.operation == ReceiveOp::Idle {
            entry.begin_receive(&mut self.net.ring.borrow_mut(), self.token);
            drop(sockets);
            self.net.pushed();
        }
        true
    }

    /// Bytes that have arrived and are unread, here and in the kernel. The peer's end and an error
    /// count as one.
    pub fn arrived(&self) -> usize {
        let sockets = self.net.sockets.borrow();
        let entry = &sockets[self.token];
        let in_kernel = rustix::io::ioctl_fionread(&entry.fd).map_or(0, |bytes| bytes as usize);
        entry.receive.arrived() + in_kernel
    }

    /// Copies up to [`SEND_BYTES_MAX`] of `bytes` and sends them. Waits while an earlier send is in
    /// flight.
    pub fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        if !matches!(entry.send, SendState::Idle) {
            return entry.poll_sent(cx).map_ok(|()| 0);
        }
        let taken = bytes.len().min(SEND_BYTES_MAX);
        if taken == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut ring = self.net.ring.borrow_mut();
        let mut outgoing = ring.spare.take();
        outgoing.extend_from_slice(&bytes[..taken]);
        entry.begin_send(&mut ring, self.token, Outgoing::Buffer(outgoing), 0);
        drop((ring, sockets));
        self.net.pushed();
        Poll::Ready(Ok(taken))
    }

    /// An empty buffer for a small message, which [`Stream::send_whole`] sends.
    pub fn send_buffer(&self) -> Vec<u8> {
        self.net.ring.borrow_mut().spare.take()
    }

    /// Sends all of `bytes` without copying them and leaves an empty buffer in their place. False
    /// if an earlier send is in flight or has failed.
    pub fn send_whole(&self, bytes: &mut Vec<u8>) -> bool {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        if !matches!(entry.send, SendState::Idle) || bytes.is_empty() {
            return false;
        }
        let outgoing = Outgoing::Buffer(std::mem::take(bytes));
        entry.begin_send(&mut self.net.ring.borrow_mut(), self.token, outgoing, 0);
        drop(sockets);
        self.net.pushed();
        true
    }

    /// Sends all of `head` and then all of `body`, without copying either, and leaves an empty buffer
    /// in the place of `head`. False if an earlier send is in flight or has failed.
    pub fn send_pair(&self, head: &mut Vec<u8>, body: &impl Share) -> bool {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        if !matches!(entry.send, SendState::Idle) || head.is_empty() {
            return false;
        }
        let outgoing = Outgoing::pair(std::mem::take(head), body.share());
        entry.begin_send(&mut self.net.ring.borrow_mut(), self.token, outgoing, 0);
        drop(sockets);
        self.net.pushed();
        true
    }

    /// Sends `bytes[from..]` without copying them. Waits while an earlier send is in flight.
    pub fn poll_send_shared(
        &self,
        cx: &mut Context<'_>,
        bytes: &impl Share,
        from: usize,
    ) -> Poll<io::Result<usize>> {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        if !matches!(entry.send, SendState::Idle) || from == bytes.len() {
            return entry.poll_sent(cx).map_ok(|()| 0);
        }
        let outgoing = Outgoing::Shared(bytes.share());
        entry.begin_send(&mut self.net.ring.borrow_mut(), self.token, outgoing, from);
        drop(sockets);
        self.net.pushed();
        Poll::Ready(Ok(bytes.len() - from))
    }

    /// Waits until the kernel has taken everything that was sent.
    pub fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.net.sockets.borrow_mut()[self.token].poll_sent(cx)
    }

    /// Whether the kernel has taken everything that was sent, as far as is known.
    pub fn has_sent(&self) -> bool {
        matches!(self.net.sockets.borrow()[self.token].send, SendState::Idle)
    }

    /// Nothing is buffered here, so a flush only reports a send that has failed.
    pub fn poll_flush(&self) -> Poll<io::Result<()>> {
        match self.net.sockets.borrow()[self.token].send {
            SendState::Failed(code) => Poll::Ready(Err(io::Error::from_raw_os_error(code))),
            SendState::Idle | SendState::InFlight { .. } => Poll::Ready(Ok(())),
        }
    }

    /// Closes our half of the connection after everything is sent.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx))?;
        let sockets = self.net.sockets.borrow();
        let socket = SockRef::from(&sockets[self.token].fd);
        Poll::Ready(socket.shutdown(Shutdown::Write))
    }

    /// Turns Nagle's algorithm off.
    pub fn set_nodelay(&self) -> io::Result<()> {
        let sockets = self.net.sockets.borrow();
        SockRef::from(&sockets[self.token].fd).set_tcp_nodelay(true)
    }

    /// The peer's address; unspecified if the connection has already been reset.
    pub fn peer_ip(&self) -> IpAddr {
        let sockets = self.net.sockets.borrow();
        let peer = SockRef::from(&sockets[self.token].fd).peer_addr().ok();
        let peer = peer.and_then(|address| address.as_socket());
        peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip().to_canonical())
    }

    /// Whether the peer's host has acknowledged everything that was sent. One system call.
    pub fn is_acknowledged(&self) -> bool {
        let sockets = self.net.sockets.borrow();
        let entry = &sockets[self.token];
        matches!(entry.send, SendState::Idle)
            && tcp_info(entry.fd.as_fd())
                .is_ok_and(|info| info.tcpi_unacked == 0 && info.tcpi_notsent_bytes == 0)
    }

    /// A handle to read how much the peer has acknowledged. It does not keep the socket open.
    pub fn acknowledged(&self) -> Acknowledged {
        let number = self.net.sockets.borrow()[self.token].number;
        Acknowledged { net: Rc::downgrade(&self.net), token: self.token, number }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.net.abandon(self.token);
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_read_with(cx, |bytes| {
            let n = bytes.len().min(buf.len());
            buf[..n].copy_from_slice(&bytes[..n]);
            n
        })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Stream::poll_flush(&self)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_shutdown(cx)
    }
}
