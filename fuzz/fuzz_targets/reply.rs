//! What a store answers to a PUT: every byte of a response, however it is cut, comes to the same
//! outcome; what is accepted is what hyper's client reads from the same bytes; error documents are
//! read without a panic.
//!
//! How to run it is said in `segment.rs`; this target is called `reply`.
//!
//! The first byte of an input says how long the pieces are; the rest is what the store sends before
//! it closes the connection.

#![no_main]

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::rt::{Read, ReadBufCursor, Write};
use libfuzzer_sys::fuzz_target;
use millrace::internals::store::s3::direct::{ReplyReader, error_document};

/// More is refused by one of the two parsers, by bounds that differ.
const BYTES_MAX: usize = 16 << 10;
/// Polls after which a response of that length is complete.
const POLLS_MAX: usize = 10_000;

/// A response: its status, its body, and whether the connection can take another request.
#[derive(Debug, PartialEq)]
struct Got {
    status: u16,
    body: Vec<u8>,
    keep_alive: bool,
}

fuzz_target!(|input: &[u8]| {
    let Some((piece, bytes)) = input.split_first() else { return };
    if bytes.len() > BYTES_MAX {
        return;
    }
    let piece = 1 + usize::from(*piece);
    let outcomes = [
        read_in(bytes, usize::MAX),
        read_in(bytes, piece),
        take_in(bytes, usize::MAX),
        take_in(bytes, piece),
    ];
    // Cut where a response ends, what follows it is not seen.
    let outcomes = outcomes.map(|got| got.map(|got| (got.status, got.body)));
    let [whole, others @ ..] = &outcomes;
    others.iter().for_each(|other| assert_eq!(other, whole));
    let _ = error_document(bytes);
    if let Some((status, body)) = whole {
        let _ = error_document(body);
        assert_eq!(hyper_reads(bytes).as_ref(), Ok(&(*status, body.clone())));
    }
});

/// Reads `bytes` into the reader's buffer in pieces, then the end of the connection; `None` if it
/// is refused or cut.
fn read_in(bytes: &[u8], piece: usize) -> Option<Got> {
    let (mut reader, mut rest, mut whole) = (ReplyReader::default(), bytes, false);
    while !whole && !rest.is_empty() {
        let space = reader.space();
        let n = rest.len().min(piece).min(space.len());
        space[..n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        whole = reader.advance(n).ok()?;
    }
    (whole || reader.end()).then(|| got(&reader))
}

/// The same without a copy of what need not be kept.
fn take_in(bytes: &[u8], piece: usize) -> Option<Got> {
    let (mut reader, mut whole) = (ReplyReader::default(), false);
    for piece in bytes.chunks(piece) {
        whole = reader.take(piece).ok()?;
        if whole {
            break;
        }
    }
    (whole || reader.end()).then(|| got(&reader))
}

fn got(reader: &ReplyReader) -> Got {
    let reply = reader.reply();
    let _ = reply.header("x-amz-request-id");
    Got { status: reply.status, body: reply.body.to_vec(), keep_alive: reply.keep_alive }
}

/// Status and body as hyper's client reads them.
fn hyper_reads(bytes: &[u8]) -> Result<(u16, Vec<u8>), String> {
    let text = |error: hyper::Error| format!("{error:?}");
    let store = StoreSide { answer: bytes.to_vec(), sent: 0, asked: false };
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(opened) = pin!(http1::handshake::<_, Empty<Bytes>>(store)).poll(&mut cx) else {
        return Err("the connection is not ready".into());
    };
    let (mut sender, connection) = opened.map_err(text)?;
    let mut connection = pin!(connection);
    let put = http::Request::put("/bucket/key").header("host", "store").body(Empty::new());
    let response = sender.send_request(put.expect("a valid request"));
    let mut exchange = pin!(async {
        let response = response.await.map_err(text)?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await.map_err(text)?.to_bytes().to_vec()))
    });
    for _ in 0..POLLS_MAX {
        let _its_error_reaches_the_exchange = connection.as_mut().poll(&mut cx);
        if let Poll::Ready(done) = exchange.as_mut().poll(&mut cx) {
            return done;
        }
    }
    Err("it does not end".into())
}

/// A store that answers once it has been asked, and then closes.
struct StoreSide {
    answer: Vec<u8>,
    sent: usize,
    asked: bool,
}

impl Read for StoreSide {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        if !self.asked {
            return Poll::Pending;
        }
        let n = buffer.remaining().min(self.answer.len() - self.sent);
        buffer.put_slice(&self.answer[self.sent..][..n]);
        self.sent += n;
        Poll::Ready(Ok(()))
    }
}

impl Write for StoreSide {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.asked = true;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
