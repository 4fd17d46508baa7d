//! Bodies that the fast path reads: those that are whole already, and those still in the socket.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use crate::http::body::{BodyError, BodyReader, ReadBody};
use crate::http::client_stream::ClientStream;
use crate::http::phase::ConnState;
use crate::http::request::waiting::BodySource;
use crate::http::split::LargeLine;

/// A body that is still in the socket, or on its way.
pub struct InSocket<'a> {
    pub stream: &'a ClientStream,
    pub length: usize,
}

impl BodySource for InSocket<'_> {
    fn is_empty(&self) -> bool {
        self.length == 0
    }

    async fn read<'a>(
        self,
        bodies: &BodyReader,
        state: &ConnState,
        line: LargeLine<'a>,
    ) -> Result<ReadBody<'a>, BodyError> {
        bodies.receive(state, self.stream, self.length, line).await
    }

    async fn discard(self, _: &BodyReader, state: &ConnState) -> Result<(), BodyError> {
        let mut missing = self.length;
        while missing > 0 {
            let dropped = poll_fn(|cx| poll_drop(cx, state, self.stream, missing)).await;
            missing -= dropped.map_err(|error| ended(state, error))?;
        }
        Ok(())
    }
}

/// Waits for bytes and drops at most `most` of them. Returns how many. The client's end is an error.
fn poll_drop(
    cx: &mut Context<'_>,
    state: &ConnState,
    stream: &ClientStream,
    most: usize,
) -> Poll<io::Result<usize>> {
    let dropped = ready!(stream.poll_read_with(cx, |bytes| bytes.len().min(most)))?;
    if dropped == 0 {
        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
    }
    state.tally.received_more(dropped);
    state.body.received.set(state.body.received.get() + dropped);
    Poll::Ready(Ok(dropped))
}

/// The client has gone before the end of the body.
fn ended(state: &ConnState, error: io::Error) -> BodyError {
    state.gone.set(true);
    BodyError::Disconnected(error.to_string())
}
