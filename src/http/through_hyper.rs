//! The part of a connection that hyper reads: what the [fast path](super::fast) does not take.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::rt as hyper_rt;
use hyper::server::conn::http1;
use hyper::service::service_fn;

use super::body::{BodyError, BodyReader, ReadBody};
use super::client_stream::ClientStream;
use super::conn::{Conn, ConnEnd};
use super::fields::HeadView;
use super::head::{self, BodyFraming};
use super::head_tracker::is_line_end;
use super::phase::{ConnPhase, ConnState};
use super::reply::Answer;
use super::request::waiting::{BodySource, process};
use super::request::{Handling, Wanted, route, wrong_route};
use super::server::Server;
use super::split::LargeLine;
use crate::deadline::Alarm;
use crate::http::HEAD_BYTES_MAX;
use crate::metrics::tokens::TokenId;
use crate::rt;

/// Has hyper serve requests until the connection ends or is silent. `held` is the start of a head
/// that was read already.
pub(super) async fn serve(conn: Conn<'_>, held: Vec<u8>, alarm: &mut Alarm) -> ConnEnd {
    let Conn { server, state, stream, .. } = conn;
    // Whatever is in `held` is part of a head, not of what is between two requests.
    state.clean.set(true);
    let socket = Socket { stream: stream.clone(), state: state.clone(), held, given: 0 };
    let service = service_fn(|request| {
        let (server, state) = (server.clone(), state.clone());
        async move { Ok::<_, Infallible>(handle(&server, &state, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.half_close(true).header_read_timeout(None).max_buf_size(HEAD_BYTES_MAX);
    let served = builder.serve_connection(socket, service);
    let error = match conn.watch(alarm, served).await {
        Ok(Ok(())) => return ConnEnd::Done,
        Ok(Err(error)) => error,
        Err(end) => return end,
    };
    if let Some(status) = refused_by_hyper(&error) {
        // Behind a request it is what was sent too much, and not always seen.
        if state.arrived.is_tls.get() && !state.has_asked() {
            server.cells.tls_on_plain.inc();
            let client = state.client().map_or("a client".to_owned(), |ip| ip.to_string());
            server.conns.logs.tls_on_plain.borrow_mut().warn(|| tls_on_plain(&client));
        }
        server.cells.count_response(status);
        state.tally.request(rt::now(), status, 0, TokenId::NONE);
    }
    let client = state.client().map(tracing::field::display);
    tracing::debug!(%error, client, "connection ended");
    ConnEnd::Done
}

/// The status with which hyper has answered a head that it refused and that our service has not
/// seen. A 414 cannot happen: a head exceeds its limit before its URI does.
fn refused_by_hyper(error: &hyper::Error) -> Option<u16> {
    match () {
        () if error.is_parse_too_large() => Some(431),
        // hyper closes an HTTP/2 connection without an answer.
        () if error.is_parse() && !error.is_parse_version_h2() => Some(400),
        () => None,
    }
}

fn tls_on_plain(client: &str) -> String {
    format!(
        "{client} began a TLS handshake on an address that is plain HTTP; it got 400, which TLS clients call a wrong \
         version number: have it use http://, or give the address in LISTEN as https://"
    )
}

/// Handles one request that hyper has read: measures it, answers it, and tells the connection, or the
/// stream of HTTP/2, how far it is.
pub(super) async fn handle(
    server: &Server,
    state: &ConnState,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let started = rt::now();
    let length = request.body().size_hint().exact();
    let content_length = state.arrived.has_content_length();
    // HTTP/2 has no chunks.
    let chunked = length.is_none() && !state.is_stream();
    let framing = BodyFraming { chunked, content_length };
    let checked = head::check(&request, framing).map_err(Answer::BadHead);
    let handling = Handling::begin(server, state, request.headers(), length, started);
    let (head, mut body) = request.into_parts();
    let is_head = head.method == Method::HEAD;
    let wanted = checked.and_then(|()| judge(server, &handling, &head));
    // While the body arrives, the head's fields and their buffer would outweigh the rest of the
    // connection.
    let room = emptied(head);
    let (answer, body_left) = match wanted {
        Ok(wanted) => process(server, state, wanted, &mut body, handling.token()).await,
        Err(refusal) => (refusal, !body.is_end_stream()),
    };
    if body_left {
        state.leave_unread(body);
    }
    let (mut response, _now) = handling.reply(answer, body_left, room);
    // In HTTP/1.1 hyper leaves it out itself.
    if is_head && state.is_stream() {
        *response.body_mut() = Full::default();
    }
    response
}

/// Judges what a head asks for.
fn judge<'a>(
    server: &'a Server,
    handling: &Handling<'a>,
    head: &Parts,
) -> Result<Wanted<'a>, Answer> {
    if let Some(refusal) = wrong_route(&server.config.paths, &head.method, &head.uri) {
        return Err(server.tokenless.answer(head).unwrap_or(refusal));
    }
    let intake = route(server, head.uri.path()).expect("it is one of the paths");
    handling.judge(intake, &HeadView { query: head.uri.query(), fields: &head.headers })
}

/// Largest capacity, in header fields of 150 bytes, of a map that a connection keeps between
/// requests.
const FIELDS_KEPT: usize = 16;

/// The head's header map without its fields, so that the reply needs no allocation.
fn emptied(head: Parts) -> HeaderMap {
    let mut headers = head.headers;
    headers.clear();
    if headers.capacity() <= FIELDS_KEPT { headers } else { HeaderMap::new() }
}

impl BodySource for &mut Incoming {
    fn is_empty(&self) -> bool {
        self.is_end_stream()
    }

    async fn read<'a>(
        self,
        bodies: &BodyReader,
        state: &ConnState,
        _: LargeLine<'a>,
    ) -> Result<ReadBody<'a>, BodyError> {
        let bytes = bodies.read(state, self).await?;
        Ok(ReadBody { bytes, turn: None })
    }

    async fn discard(self, bodies: &BodyReader, state: &ConnState) -> Result<(), BodyError> {
        bodies.discard(state, self).await
    }
}

/// The socket as hyper sees it. It notices the first byte of a head and the peer's end, and leaves
/// closing to [`linger`](super::conn).
struct Socket {
    stream: Rc<ClientStream>,
    state: Rc<ConnState>,
    /// The start of a head, which was counted when it was read. hyper gets it first.
    held: Vec<u8>,
    /// How much of it hyper has.
    given: usize,
}

impl hyper_rt::Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: hyper_rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &self.held[self.given..];
        if !rest.is_empty() {
            // After a first read without the whole head hyper only waits for its end. These bytes
            // came in several reads, too, so that it must not judge them in its first one.
            let most = if self.given == 0 { 1 } else { buf.remaining() };
            if self.given == 0 {
                self.state.arrived.head_begins(rest);
            }
            let next = &rest[..rest.len().min(most)];
            self.state.arrived.part_of_head(next);
            buf.put_slice(next);
            self.given += next.len();
            if self.given == self.held.len() {
                (self.held, self.given) = (Vec::new(), 0);
            }
            return Poll::Ready(Ok(()));
        }
        let state = &self.state;
        // hyper reads more only if its buffer does not hold a complete head. So a head has begun
        // that was read together with the request before it.
        if state.phase.get() == ConnPhase::Idle && state.arrived.next_head.take() {
            state.arrived.uncounted.set(true);
            state.enter(ConnPhase::Head, rt::now());
        }
        let polled = self.stream.poll_read_with(cx, |arrived| {
            let bytes = &arrived[..arrived.len().min(buf.remaining())];
            match state.phase.get() {
                phase @ (ConnPhase::Idle | ConnPhase::Head)
                    if phase == ConnPhase::Idle || state.arrived.due.get().is_some() =>
                {
                    // hyper skips empty lines before a head, so they do not begin one.
                    if let Some(first) = bytes.iter().position(|b| !is_line_end(b)) {
                        // The time of one that is due runs already.
                        if phase == ConnPhase::Idle {
                            state.enter(ConnPhase::Head, rt::now());
                        }
                        state.standing.has_sent.set(true);
                        state.arrived.head_begins(&bytes[first..]);
                        state.arrived.part_of_head(&bytes[first..]);
                    }
                }
                ConnPhase::Idle | ConnPhase::Head => state.arrived.part_of_head(bytes),
                ConnPhase::Body | ConnPhase::Working => state.arrived.after_head(bytes),
            }
            buf.put_slice(bytes);
            state.tally.received_more(bytes.len());
            bytes.len()
        });
        if polled.is_pending() {
            state.record_begins_head(&self.stream);
        }
        let result = ready!(polled);
        if matches!(result, Ok(0) | Err(_)) {
            state.gone.set(true);
        }
        Poll::Ready(result.map(drop))
    }
}

impl hyper_rt::Write for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = self.stream.poll_send(cx, buf);
        self.state.unsent.set(result.is_pending());
        if let Poll::Ready(Err(_)) = &result {
            self.state.gone.set(true);
        }
        result
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_flush()
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
