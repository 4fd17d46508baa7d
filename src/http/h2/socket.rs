//! The socket of an HTTP/2 connection as hyper sees it. It looks at the frames that pass, hands over
//! no more of them at once than the streams then read, and leaves closing to
//! [`linger`](crate::http::conn).

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::rt as hyper_rt;

use super::link::{FrameFlow, H2Link};
use super::{BYTES_AT_ONCE, FRAMES_AT_ONCE};
use crate::http::client_stream::ClientStream;
use crate::rt;

pub(super) struct FramedSocket {
    stream: Rc<ClientStream>,
    link: Rc<H2Link>,
    /// The beginning, which was read and counted already.
    held: Vec<u8>,
}

impl H2Link {
    /// The library is polled next. It may read what has arrived if this is a look.
    pub(super) fn begin_look(&self, is_look: bool) {
        let mut wire = self.wire.borrow_mut();
        if !is_look {
            (wire.frames_left, wire.bytes_left) = (0, 0);
            return;
        }
        wire.frames_left = FRAMES_AT_ONCE.saturating_sub(wire.frames_unsent);
        wire.bytes_left = BYTES_AT_ONCE;
        wire.is_dry = false;
        self.reading.has_all.set(false);
    }

    /// The library has read what it may, and sends what it has to send.
    pub(super) fn end_look(&self, cx: &Context<'_>) {
        let mut wire = self.wire.borrow_mut();
        // It sends until the socket does not take more.
        if !self.reading.is_blocked.get() && wire.reads_no_more() {
            cx.waker().wake_by_ref();
        }
        if !self.reading.is_blocked.get() {
            wire.frames_unsent = 0;
        }
    }
}

impl FrameFlow {
    /// Whether the client must take what is to be sent before more is read.
    fn reads_no_more(&self) -> bool {
        self.frames_unsent >= FRAMES_AT_ONCE
    }

    /// Whether the streams should be polled before more is read: enough was read, or the sockets are to
    /// be looked at.
    fn has_read_enough(&self) -> bool {
        let has_read = self.bytes_left < BYTES_AT_ONCE;
        self.frames_left == 0 || self.bytes_left == 0 || has_read && rt::look_is_due()
    }

    /// Passes on what may be read of `bytes`, and returns how much that is.
    fn pass(&mut self, bytes: &[u8], buf: &mut hyper_rt::ReadBufCursor<'_>) -> io::Result<usize> {
        let most = bytes.len().min(buf.remaining()).min(self.bytes_left);
        let before = self.frames_left;
        let taken = self.inbound.take(&bytes[..most], &mut self.frames_left, &self.budgets);
        self.frames_unsent += before - self.frames_left;
        let taken = taken.map_err(|closed| {
            self.closed = Some(closed);
            io::Error::other("too many frames")
        })?;
        self.bytes_left -= taken;
        buf.put_slice(&bytes[..taken]);
        Ok(taken)
    }
}

impl FramedSocket {
    pub(super) fn new(stream: Rc<ClientStream>, link: Rc<H2Link>, held: Vec<u8>) -> FramedSocket {
        FramedSocket { stream, link, held }
    }
}

impl hyper_rt::Read for FramedSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: hyper_rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let link = &this.link;
        let mut wire = link.wire.borrow_mut();
        // It goes on when all is sent.
        if wire.reads_no_more() {
            return Poll::Pending;
        }
        if wire.has_read_enough() {
            link.reading.has_all.set(true);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let conn = &link.conn;
        if !this.held.is_empty() {
            let taken = wire.pass(&this.held, &mut buf)?;
            this.held.drain(..taken);
            conn.standing.has_sent.set(wire.inbound.last_stream() > 0);
            link.reading.is_unread.set(true);
            return Poll::Ready(Ok(()));
        }
        let mut passed = Ok(0);
        let read = this.stream.poll_read_with(cx, |arrived| {
            passed = wire.pass(arrived, &mut buf);
            passed.as_ref().copied().unwrap_or(arrived.len())
        });
        let Poll::Ready(read) = read else {
            link.reading.has_all.set(true);
            wire.is_dry = true;
            return Poll::Pending;
        };
        passed?;
        if let Ok(bytes) = &read {
            conn.tally.received_more(*bytes);
            link.reading.is_unread.set(true);
        }
        if matches!(read, Ok(0) | Err(_)) {
            conn.gone.set(true);
        } else if wire.inbound.last_stream() > 0 {
            conn.standing.has_sent.set(true);
        }
        Poll::Ready(read.map(drop))
    }
}

impl hyper_rt::Write for FramedSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let FramedSocket { stream, link, .. } = &*self;
        let result = stream.poll_send(cx, buf);
        link.reading.is_blocked.set(result.is_pending());
        let sent = match ready!(result) {
            Ok(sent) => sent,
            Err(error) => {
                link.conn.gone.set(true);
                return Poll::Ready(Err(error));
            }
        };
        let mut wire = link.wire.borrow_mut();
        let FrameFlow { outbound, budgets, closed, .. } = &mut *wire;
        if let Err(reason) = outbound.take(&buf[..sent], budgets) {
            // It is looked at once the streams are polled.
            *closed = Some(reason);
        }
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_flush()
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
