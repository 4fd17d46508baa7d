//! One kept-alive connection and its buffers: a request out, an answer in.
//!
//! Head and body leave in one write up to [`COPIED_BYTES_MAX`]; of a larger body its beginning does,
//! and the rest follows part by part without being copied. A send ends when the kernel has all of it, so
//! the next one finds a socket that still has as much to send as its buffer holds. The answer is read while the request is still on its
//! way, for a store may refuse a body before it has come. Dropping a link closes it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_lite::future;
use futures_lite::io::{AsyncRead, AsyncWrite};

use super::reply::{Reply, ReplyReader};
use crate::queue::job::Payload;
use crate::store::Progress;
use crate::store::s3::dial::{LinkError, Wire};

/// Up to here a body is copied behind its head: 32 KiB went out over loopback in 8.7 µs so, in 13.4 µs
/// with a second write. It also bounds what a link keeps.
const COPIED_BYTES_MAX: usize = 64 << 10;

/// What is copied of a longer body, so that the head does not travel alone; the rest is sent from where it lies.
const FIRST_BYTES: usize = 16 << 10;

pub(super) struct Link {
    wire: Wire,
    /// The head, and as much of the body as leaves with it.
    out: Vec<u8>,
    /// Bytes of the request written so far.
    sent: usize,
    sent_all: bool,
    reader: ReplyReader,
}

/// Why an exchange came to nothing.
pub(super) enum Failure {
    /// The connection ended before a whole answer had come.
    Broken {
        why: String,
        /// Not a byte of an answer was seen: the same request may be sent again.
        unanswered: bool,
    },
    BadAnswer(String),
}

impl Failure {
    pub(super) fn at(self, host: &str) -> LinkError {
        let host = host.to_owned();
        match self {
            Failure::Broken { why, .. } => LinkError::Broken { host, why },
            Failure::BadAnswer(why) => LinkError::BadAnswer { host, why },
        }
    }
}

impl Link {
    pub(super) fn new(wire: Wire) -> Link {
        Link { wire, out: Vec::new(), sent: 0, sent_all: false, reader: ReplyReader::default() }
    }

    /// When it is too old for another request; `None`: never.
    pub(super) fn retire_at(&self) -> Option<Instant> {
        self.wire.retire_at()
    }

    /// Where the next request's head goes.
    pub(super) fn head(&mut self) -> &mut Vec<u8> {
        self.out.clear();
        &mut self.out
    }

    /// True while the peer has neither closed the connection nor said anything unasked, as far as
    /// is known since the last call. Never waits.
    pub(super) async fn is_quiet(&mut self) -> bool {
        let said =
            future::poll_fn(|cx| Pin::new(&mut self.wire).poll_read(cx, self.reader.space()));
        future::poll_once(said).await.is_none()
    }

    /// Sends the head in [`Link::head`] with `body` and reads the whole answer; `progress` can see how much of it has
    /// arrived.
    pub(super) async fn exchange(
        &mut self,
        body: &[Payload],
        progress: &Progress,
    ) -> Result<(), Failure> {
        progress.of_peer(self.wire.acknowledged());
        (self.sent, self.sent_all) = (0, false);
        self.reader.reset();
        let mut rest = Rest::behind(&mut self.out, body);
        if self.wire.send_whole(&mut self.out) {
            self.sent_all = rest.parts.is_empty();
        }
        let mut unsent = None;
        future::poll_fn(|cx| {
            if !self.sent_all && unsent.is_none() {
                match self.poll_send(cx, &mut rest) {
                    Poll::Ready(Ok(())) => self.sent_all = true,
                    // Not yet the end: what made the peer close may be there to be read.
                    Poll::Ready(Err(error)) => unsent = Some(error),
                    Poll::Pending => {}
                }
            }
            self.poll_answer(cx, unsent.as_ref())
        })
        .await?;
        self.sent_all &= self.wire.has_sent();
        if !self.sent_all && (200..300).contains(&self.reader.reply().status) {
            let why = "it confirms an object that was not sent yet".to_owned();
            return Err(Failure::BadAnswer(why));
        }
        Ok(())
    }

    /// The answer of the last exchange.
    pub(super) fn reply(&self) -> Reply<'_> {
        let reply = self.reader.reply();
        Reply { keep_alive: reply.keep_alive && self.sent_all, ..reply }
    }

    /// Sends the head with what is behind it, then the `rest`.
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
        let mut wire = Pin::new(&mut self.wire);
        loop {
            let n = match ready!(wire.as_mut().poll_read(cx, self.reader.space())) {
                Ok(n) => n,
                Err(error) => return Poll::Ready(Err(self.broken(unsent.unwrap_or(&error)))),
            };
            if n == 0 {
                let closed = io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the peer");
                let whole = self.reader.end();
                let broken = || self.broken(unsent.unwrap_or(&closed));
                return Poll::Ready(if whole { Ok(()) } else { Err(broken()) });
            }
            match self.reader.advance(n) {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) => {}
                Err(why) => return Poll::Ready(Err(Failure::BadAnswer(why.to_string()))),
            }
        }
    }

    fn broken(&self, why: &io::Error) -> Failure {
        Failure::Broken { why: why.to_string(), unanswered: self.reader.is_untouched() }
    }
}

/// A write takes some of what it is given, or will never take any.
fn taken(bytes: usize) -> io::Result<usize> {
    if bytes == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(bytes) }
}

/// What of a body is still to be sent: its first part here from `from` on, which is before that part's end, then the
/// others.
struct Rest<'a> {
    parts: &'a [Payload],
    from: usize,
}

impl<'a> Rest<'a> {
    /// Copies what leaves with the head behind it; the rest is what remains.
    fn behind(head: &mut Vec<u8>, body: &'a [Payload]) -> Rest<'a> {
        let bytes: usize = body.iter().map(|part| part.len()).sum();
        let mut to_copy = if bytes <= COPIED_BYTES_MAX { bytes } else { FIRST_BYTES };
        let mut rest = Rest { parts: body, from: 0 };
        rest.skip(0);
        while to_copy > 0 {
            let part = &rest.parts[0];
            let copied = part.len().min(to_copy);
            head.extend_from_slice(&part[..copied]);
            rest.skip(copied);
            to_copy -= copied;
        }
        rest
    }

    /// Goes on by `bytes`, which lie in the first part, and past parts without any.
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
