//! Bodies of known length that are read from the socket itself, by the fast path.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use super::body::{BodyError, BodyReader, Receiving};
use super::phase::ConnState;
use crate::budget::ChargedBytes;
use crate::net::Stream;

impl BodyReader {
    /// Reads a body of this length, whose first bytes were read together with the head.
    ///
    /// Meanwhile the bytes are in `state`, where [`super::body_memory::BodyMemory`] can take them
    /// away.
    ///
    /// # Errors
    /// There is no memory for it, or the client has gone.
    pub(super) async fn receive(
        &self,
        state: &ConnState,
        stream: &Stream,
        first: &[u8],
        length: usize,
    ) -> Result<ChargedBytes, BodyError> {
        state.body.bytes.replace(Some(self.memory.buffer(length)?));
        let receiving = Receiving { memory: &self.memory, state };
        let append = |piece: &[u8]| {
            let mut bytes = state.body.bytes.borrow_mut();
            let bytes = bytes.as_mut().ok_or(BodyError::Evicted)?;
            self.memory.append(bytes, piece, Some(state))?;
            state.body.received.set(bytes.as_slice().len());
            Ok(())
        };
        append(first)?;
        let mut missing = length - first.len();
        while missing > 0 {
            missing -= poll_fn(|cx| poll_piece(cx, state, stream, missing, append)).await?;
        }
        let bytes = state.body.bytes.take().ok_or(BodyError::Evicted)?;
        drop(receiving);
        Ok(bytes)
    }
}

/// Waits for bytes of a body and gives at most `missing` of them to `with`. Returns how many.
pub(super) fn poll_piece(
    cx: &mut Context<'_>,
    state: &ConnState,
    stream: &Stream,
    missing: usize,
    with: impl Fn(&[u8]) -> Result<(), BodyError>,
) -> Poll<Result<usize, BodyError>> {
    let gone = |why: Option<io::Error>| {
        state.gone.set(true);
        let closed = || "the client closed the connection".to_owned();
        BodyError::Disconnected(why.map_or_else(closed, |error| error.to_string()))
    };
    let mut received = match ready!(stream.poll_received(cx)) {
        Ok(Some(received)) => received,
        Ok(None) => return Poll::Ready(Err(gone(None))),
        Err(error) => return Poll::Ready(Err(gone(Some(error)))),
    };
    let piece = received.len().min(missing);
    let done = with(&received[..piece]);
    received.take(piece);
    state.tally.received_more(piece);
    Poll::Ready(done.map(|()| piece))
}
