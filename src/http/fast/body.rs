//! Bodies that the fast path reads: those that are whole already, and those still in the socket.

use crate::http::body::{BodyError, BodyReader, ReadBody};
use crate::http::client_stream::ClientStream;
use crate::http::phase::ConnState;
use crate::http::receive::drop_rest;
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
        let dropped = drop_rest(state, self.stream, self.length).await;
        dropped.map_err(|error| BodyError::Disconnected(error.to_string()))
    }
}
