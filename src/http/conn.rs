//! One connection: hyper reads its requests and writes their answers, and this file keeps its
//! deadlines.
//!
//! The deadlines are ours because hyper's header timeout sends no reply and also runs on idle
//! connections. A connection has one alarm, which is reset only after it has fired or when it would
//! fire too late, so a request costs no timer operation. hyper never closes the socket: after the
//! last answer the connection lingers, so that the answer reaches a client that is still sending.

use std::future::{Future, poll_fn};
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::rt;
use futures_lite::FutureExt;
use hyper::rt as hyper_rt;
use hyper::server::conn::http1;
use hyper::service::service_fn;

use super::head_tracker::is_line_end;
use super::phase::{BodyEnd, ConnPhase, ConnState};
use super::proxied::ProxiedConn;
use super::reply::HEAD_TIMEOUT;
use super::request::handle;
use super::server::{ConnSlot, RegisteredConn, Server};
use crate::deadline::{Alarm, within};
use crate::http::{HEAD_BYTES_MAX, LINGER_BYTES_MAX, LINGER_TIME_MAX};
use crate::metrics::tokens::TokenId;
use crate::net::Stream;

/// Why the wait for a first byte or hyper's part of a connection ended.
enum ConnEnd {
    /// hyper has finished: the peer closed, `connection: close`, or an error that hyper has
    /// answered.
    Done,
    HeadOverdue,
    IdleOverdue,
    /// It was idle and has given way to another connection.
    GaveWay,
    /// Silent for [`QUIET_AFTER`], and hyper holds no state that the next request needs.
    Quiet,
}

/// A connection that is silent for this long releases hyper's buffers until its next byte arrives:
/// 20 kB of 23. Clients that send more often never pay for new buffers.
const QUIET_AFTER: Duration = Duration::from_millis(250);

/// Serves `stream`, which came to the listener with this number, in its own task. A panic there ends
/// only that connection.
pub(super) fn spawn(server: &Rc<Server>, stream: Stream, listener: usize, slot: ConnSlot) {
    let server = server.clone();
    rt::spawn(async move {
        server.cells.connections_accepted.inc();
        server.cells.connections.inc();
        let served = AssertUnwindSafe(serve(server.clone(), stream, listener)).catch_unwind().await;
        if served.is_err() {
            server.cells.conn_panics.inc();
            let text = || "a connection panicked and was closed".to_owned();
            server.conns.logs.panics.borrow_mut().error(text);
        }
        server.cells.connections.sub(1);
        drop(slot);
    })
    .detach();
}

/// Serves `stream` until either side closes it.
async fn serve(server: Rc<Server>, stream: Stream, listener: usize) {
    let stream = Rc::new(stream);
    let state = ConnState::new(&stream);
    let listed = server.conns.register(&state);
    let mut alarm = Alarm::default();
    let listen = &server.config.listen[listener];
    if let Some(proxies) = &listen.proxies {
        let proxied =
            ProxiedConn { server: &server, state: &state, listed: &listed, stream: &stream };
        // Boxed so that only connections of proxies are larger for it.
        if !Box::pin(proxied.begin(listen.address, proxies, &mut alarm)).await {
            return;
        }
    }
    let end = loop {
        if let Some(end) = first_byte(&server, &state, &listed, &stream, &mut alarm).await {
            break end;
        }
        let socket = Socket { stream: stream.clone(), state: state.clone() };
        // Boxed so that an idle connection can drop hyper's state.
        match Box::pin(drive(&server, &state, &listed, socket, &mut alarm)).await {
            ConnEnd::Quiet => {
                let released = &server.conns.buffers_released;
                released.set(released.get() + 1);
            }
            end => break end,
        }
    };
    let last: &[u8] = match end {
        ConnEnd::IdleOverdue | ConnEnd::GaveWay | ConnEnd::Quiet => return,
        ConnEnd::Done => b"",
        ConnEnd::HeadOverdue => {
            server.cells.count_response(408);
            state.tally.request(rt::now(), 408, 0, TokenId::NONE);
            HEAD_TIMEOUT
        }
    };
    listed.lingers(&state, rt::now());
    let gives_way = poll_fn(|cx| {
        state.keep_waker(cx);
        match listed.gives_way(&server, &state, &stream) {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    });
    let lingers = gives_way.or(linger(&stream, last, &state));
    if let Err(error) = within(LINGER_TIME_MAX, lingers, || Ok(())).await {
        tracing::debug!(%error, "lingering ended");
    }
}

/// Waits between requests until a byte arrives. Returns the connection's end if that comes first.
async fn first_byte(
    server: &Server,
    state: &ConnState,
    listed: &RegisteredConn<'_>,
    stream: &Stream,
    alarm: &mut Alarm,
) -> Option<ConnEnd> {
    poll_fn(|cx| {
        state.keep_waker(cx);
        if server.stop.closed.get() {
            return Poll::Ready(Some(ConnEnd::IdleOverdue));
        }
        if listed.gives_way(server, state, stream) {
            return Poll::Ready(Some(ConnEnd::GaveWay));
        }
        loop {
            if stream.poll_readable(cx).is_ready() {
                return Poll::Ready(None);
            }
            let limit = state.idle_limit(&server.stop, &server.config);
            if ready!(state.poll_overdue(cx, stream, alarm, rt::now(), limit)) {
                return Poll::Ready(Some(ConnEnd::IdleOverdue));
            }
        }
    })
    .await
}

/// Polls hyper and the connection's deadlines until one of them ends the connection.
async fn drive(
    server: &Rc<Server>,
    state: &Rc<ConnState>,
    listed: &RegisteredConn<'_>,
    socket: Socket,
    alarm: &mut Alarm,
) -> ConnEnd {
    let stream = socket.stream.clone();
    let service = service_fn(|request| handle(server.clone(), state.clone(), request));
    let mut builder = http1::Builder::new();
    builder.half_close(true).header_read_timeout(None).max_buf_size(HEAD_BYTES_MAX);
    let mut hyper = pin!(builder.serve_connection(socket, service));
    poll_fn(|cx| {
        state.keep_waker(cx);
        loop {
            if let Poll::Ready(result) = hyper.as_mut().poll(cx) {
                if let Err(error) = result {
                    if let Some(status) = refused_by_hyper(&error) {
                        server.cells.count_response(status);
                        state.tally.request(rt::now(), status, 0, TokenId::NONE);
                    }
                    let client = state.client().map(tracing::field::display);
                    tracing::debug!(%error, client, "connection ended");
                }
                return Poll::Ready(ConnEnd::Done);
            }
            let idle = state.phase.get() == ConnPhase::Idle && !state.unsent.get();
            if server.stop.closed.get() && idle {
                return Poll::Ready(ConnEnd::IdleOverdue);
            }
            if listed.gives_way(server, state, &stream) {
                return Poll::Ready(ConnEnd::GaveWay);
            }
            if state.phase.get() == ConnPhase::Working {
                return Poll::Pending;
            }
            let config = &server.config;
            let (now, since) = (rt::now(), state.since.get());
            // When the peer is overdue, and the end that this means; an overdue body gets an answer
            // instead.
            let (limit, overdue) = match state.phase.get() {
                ConnPhase::Idle
                    if state.clean.get() && idle && QUIET_AFTER < config.idle_timeout =>
                {
                    ready!(alarm.poll(cx, now, since + QUIET_AFTER));
                    return Poll::Ready(ConnEnd::Quiet);
                }
                ConnPhase::Idle => {
                    (state.idle_limit(&server.stop, config), Err(ConnEnd::IdleOverdue))
                }
                ConnPhase::Head => ((since, config.header_timeout), Err(ConnEnd::HeadOverdue)),
                ConnPhase::Body => {
                    server.bodies.memory.body_waits(state, now);
                    let (limit, end) = state.body_limit(config);
                    (limit, Ok(end))
                }
                ConnPhase::Working => unreachable!("it has no deadline here"),
            };
            if !ready!(state.poll_overdue(cx, &stream, alarm, now, limit)) {
                continue;
            }
            match overdue {
                Err(end) => return Poll::Ready(end),
                Ok(BodyEnd::TooSlow) if state.keeps_pace(config.body_rate_min, now) => continue,
                Ok(BodyEnd::TooSlow) => server.cells.bodies_too_slow.inc(),
                Ok(_) => {}
            }
            // hyper polls the request in the next round of this loop.
            state.end_body(overdue.unwrap_or(BodyEnd::Overdue));
        }
    })
    .await
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

/// Writes `last`, closes our half, then reads and discards what the client still sends. Closing with
/// unread bytes would reset the connection, which can destroy the answer before the client has read
/// it.
async fn linger(stream: &Stream, last: &[u8], state: &ConnState) -> io::Result<()> {
    let mut rest = last;
    while !rest.is_empty() {
        rest = &rest[poll_fn(|cx| stream.poll_send(cx, rest)).await?..];
    }
    // The client may have closed only its half and still read the answer that is being sent.
    if state.gone.get() {
        return poll_fn(|cx| stream.poll_sent(cx)).await;
    }
    poll_fn(|cx| stream.poll_shutdown(cx)).await?;
    let mut left = LINGER_BYTES_MAX;
    while left > 0 {
        match poll_fn(|cx| stream.poll_read_with(cx, <[u8]>::len)).await? {
            0 => break,
            n => {
                state.tally.received_more(n);
                left = left.saturating_sub(n);
            }
        }
    }
    Ok(())
}

/// The socket as hyper sees it. It notices the first byte of a head and the peer's end, and leaves
/// closing to [`linger`].
struct Socket {
    stream: Rc<Stream>,
    state: Rc<ConnState>,
}

impl hyper_rt::Read for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: hyper_rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let state = &self.state;
        // hyper reads more only if its buffer does not hold a complete head. So a head has begun
        // that was read together with the request before it.
        if state.phase.get() == ConnPhase::Idle && state.arrived.next_head.take() {
            state.arrived.uncounted.set(true);
            state.enter(ConnPhase::Head, rt::now());
        }
        let result = ready!(self.stream.poll_read_with(cx, |arrived| {
            let bytes = &arrived[..arrived.len().min(buf.remaining())];
            match state.phase.get() {
                ConnPhase::Idle => {
                    // hyper skips empty lines before a head, so they do not begin one.
                    if let Some(first) = bytes.iter().position(|b| !is_line_end(b)) {
                        state.enter(ConnPhase::Head, rt::now());
                        state.standing.has_sent.set(true);
                        state.arrived.part_of_head(&bytes[first..]);
                    }
                }
                ConnPhase::Head => state.arrived.part_of_head(bytes),
                ConnPhase::Body | ConnPhase::Working => state.arrived.after_head(bytes),
            }
            buf.put_slice(bytes);
            state.tally.received_more(bytes.len());
            bytes.len()
        }));
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
