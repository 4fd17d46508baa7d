//! One kept-alive connection and its buffers: sends a request, reads the response.
//!
//! Head and body leave in one send. Up to [`COPIED_BYTES_MAX`] the body is copied behind the head;
//! of a larger one the first part leaves with the head, and the others follow part by part, without
//! being copied. Under TLS, which copies everything, only the beginning of a larger body leaves with
//! the head. A send ends when the kernel has taken everything, so the next one finds a socket with
//! room for a full buffer. The response is read while the request is still being sent, because a
//! store may refuse a body before it has arrived. Dropping a connection closes it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use futures_lite::future;
use futures_lite::io::{AsyncRead, AsyncWrite};

use super::reply::{Malformed, Reply, ReplyReader};
use crate::queue::job::Payload;
use crate::store::Progress;
use crate::store::s3::dial::{ConnectionError, Wire};
use crate::store::s3::idle_pool::Connection;

/// Bodies up to this size are copied behind their head. For more, a list of two parts costs less
/// than a buffer that must grow.
const COPIED_BYTES_MAX: usize = 4 << 10;

/// The same under TLS, where head and body would otherwise be two writes: 32 KiB left in 8.7 µs this
/// way, and in 13.4 µs with a second write.
const COPIED_BYTES_MAX_TLS: usize = 64 << 10;

/// Bytes of a longer body that are written with the head under TLS, so that the head does not leave
/// in a record of its own.
const FIRST_BYTES: usize = 16 << 10;

pub(super) struct DirectConnection {
    wire: Wire,
    /// The head, and the bytes of the body that leave with it.
    out: Vec<u8>,
    /// Bytes of the request written so far.
    sent: usize,
    sent_all: bool,
    reader: ReplyReader,
}

/// Why an exchange failed.
pub(super) enum Failure {
    /// The connection ended before the response was complete.
    Broken {
        why: String,
        /// Not one byte of a response arrived: the same request may be sent again.
        unanswered: bool,
    },
    BadAnswer(String),
}

impl Failure {
    pub(super) fn at(self, host: &str) -> ConnectionError {
        let host = host.to_owned();
        match self {
            Failure::Broken { why, .. } => ConnectionError::Broken { host, why },
            Failure::BadAnswer(why) => ConnectionError::BadAnswer { host, why },
        }
    }
}

impl Connection for DirectConnection {
    /// True if the peer has neither closed the connection nor sent anything unasked, as far as is
    /// known since the last call.
    fn is_alive(&mut self) -> bool {
        if let Some(stream) = self.wire.socket() {
            return stream.is_silent();
        }
        // Whoever takes the connection next looks again, so no task need be woken.
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(&mut self.wire).poll_read(&mut cx, self.reader.space()).is_pending()
    }

    fn retire_at(&self) -> Option<Instant> {
        self.wire.retire_at()
    }
}

impl DirectConnection {
    pub(super) fn new(wire: Wire) -> DirectConnection {
        DirectConnection {
            wire,
            out: Vec::new(),
            sent: 0,
            sent_all: false,
            reader: ReplyReader::default(),
        }
    }

    /// Where the next request's head goes.
    pub(super) fn head(&mut self) -> &mut Vec<u8> {
        match self.wire.socket() {
            Some(stream) => self.out = stream.send_buffer(),
            None => self.out.clear(),
        }
        &mut self.out
    }

    /// Sends the head in [`DirectConnection::head`] with `body` and reads the whole response;
    /// `progress` sees how much of the request the peer has acknowledged.
    pub(super) async fn exchange(
        &mut self,
        body: &[Payload],
        progress: &Progress,
    ) -> Result<(), Failure> {
        progress.of_peer(self.wire.acknowledged());
        self.sent = 0;
        self.reader.reset();
        let mut rest = self.begin_send(body);
        let mut unsent = None;
        future::poll_fn(|cx| {
            if !self.sent_all && unsent.is_none() {
                match self.poll_send(cx, &mut rest) {
                    Poll::Ready(Ok(())) => self.sent_all = true,
                    // Not the end yet: the peer may have sent a response that says why it closed.
                    Poll::Ready(Err(error)) => unsent = Some(error),
                    Poll::Pending => {}
                }
            }
            self.poll_answer(cx, unsent.as_ref())
        })
        .await?;
        self.sent_all &= self.wire.has_sent();
        if !self.sent_all && (200..300).contains(&self.reader.reply().status) {
            let why = "it confirms an object that was not fully sent".to_owned();
            return Err(Failure::BadAnswer(why));
        }
        Ok(())
    }

    /// The response of the last exchange.
    pub(super) fn reply(&self) -> Reply<'_> {
        let reply = self.reader.reply();
        Reply { keep_alive: reply.keep_alive && self.sent_all, ..reply }
    }

    /// Sends what leaves with the head; returns the rest, and sets whether that was all.
    fn begin_send<'a>(&mut self, body: &'a [Payload]) -> Rest<'a> {
        let mut rest = Rest::of(body);
        let bytes: usize = body.iter().map(|part| part.len()).sum();
        let begun = match self.wire.socket() {
            None => {
                let with_head = if bytes <= COPIED_BYTES_MAX_TLS { bytes } else { FIRST_BYTES };
                rest.copy(with_head, &mut self.out);
                false
            }
            Some(stream) if bytes <= COPIED_BYTES_MAX => {
                rest.copy(bytes, &mut self.out);
                stream.send_whole(&mut self.out)
            }
            Some(stream) => {
                let first = &rest.parts[0];
                let begun = stream.send_pair(&mut self.out, first);
                rest.skip(if begun { first.len() } else { 0 });
                begun
            }
        };
        self.sent_all = begun && rest.parts.is_empty();
        rest
    }

    /// Sends the head and what was copied behind it, then the `rest`.
    fn poll_send(&mut self, cx: &mut Context<'_>, rest: &mut Rest<'_>) -> Poll<io::Result<()>> {
        let wire = &mut self.wire;
        loop {
            if self.sent < self.out.len() {
                self.sent +=
                    taken(ready!(Pin::new(&mut *wire).poll_write(cx, &self.out[self.sent..]))?)?;
            } else if let Some(part) = rest.parts.first() {
                rest.skip(taken(ready!(wire.poll_send_payload(cx, part, rest.from))?)?);
            } else {
                return Pin::new(wire).poll_flush(cx);
            }
        }
    }

    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        unsent: Option<&io::Error>,
    ) -> Poll<Result<(), Failure>> {
        loop {
            let parsed = match ready!(self.poll_received(cx)) {
                Ok(parsed) => parsed,
                Err(error) => return Poll::Ready(Err(self.broken(unsent.unwrap_or(&error)))),
            };
            match parsed {
                Some(Ok(true)) => return Poll::Ready(Ok(())),
                Some(Ok(false)) => {}
                Some(Err(why)) => return Poll::Ready(Err(Failure::BadAnswer(why.to_string()))),
                None if self.reader.end() => return Poll::Ready(Ok(())),
                None => {
                    let closed = io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the peer");
                    return Poll::Ready(Err(self.broken(unsent.unwrap_or(&closed))));
                }
            }
        }
    }

    /// Passes what arrives to the reader; whether the response is then complete, or `None` at the
    /// peer's end.
    fn poll_received(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Result<bool, Malformed>>>> {
        let (reader, mut parsed) = (&mut self.reader, None);
        match self.wire.socket() {
            Some(stream) => {
                let take = |bytes: &[u8]| {
                    parsed = Some(reader.take(bytes));
                    bytes.len()
                };
                ready!(stream.poll_read_with(cx, take))?;
            }
            None => {
                let n = ready!(Pin::new(&mut self.wire).poll_read(cx, reader.space()))?;
                parsed = (n > 0).then(|| reader.advance(n));
            }
        }
        Poll::Ready(Ok(parsed))
    }

    fn broken(&self, why: &io::Error) -> Failure {
        Failure::Broken { why: why.to_string(), unanswered: self.reader.is_untouched() }
    }
}

/// A write that takes nothing never will.
fn taken(bytes: usize) -> io::Result<usize> {
    if bytes == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(bytes) }
}

/// The part of a body still to be sent: the first of `parts` from `from` on, then the others.
/// `from` always lies before the end of that part.
struct Rest<'a> {
    parts: &'a [Payload],
    from: usize,
}

impl<'a> Rest<'a> {
    fn of(body: &'a [Payload]) -> Rest<'a> {
        let mut rest = Rest { parts: body, from: 0 };
        rest.skip(0);
        rest
    }

    /// Moves on by `bytes`, no more than are left, which it copies to `head`.
    fn copy(&mut self, mut bytes: usize, head: &mut Vec<u8>) {
        while bytes > 0 {
            let part = &self.parts[0][self.from..];
            let copied = part.len().min(bytes);
            head.extend_from_slice(&part[..copied]);
            self.skip(copied);
            bytes -= copied;
        }
    }

    /// Advances by `bytes`, which lie in the first part, and past empty parts.
    fn skip(&mut self, bytes: usize) {
        self.from += bytes;
        while let [first, others @ ..] = self.parts
            && self.from == first.len()
        {
            (self.parts, self.from) = (others, 0);
        }
    }
}

#[cfg(test)]
mod tests;
