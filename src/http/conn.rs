//! One connection: who reads its requests, and its deadlines.
//!
//! The [fast path](super::fast) serves the requests that nearly all clients send. A head that it
//! does not take, and what follows on the connection until that is silent, is for
//! [hyper](super::through_hyper).
//!
//! A connection that speaks HTTP/2 is [served by hyper](super::h2) as a whole.
//!
//! The deadlines are ours because hyper's header timeout sends no reply and also runs on idle
//! connections. A connection has one alarm, which is reset only after it has fired or when it would
//! fire too late, so a request costs no timer operation. hyper never closes the socket: after the
//! last answer the connection lingers, so that the answer reaches a client that is still sending.

pub mod differential;

use std::future::{Future, poll_fn};
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use crate::rt::{self, TaskKind};
use futures_lite::FutureExt;

use super::client_stream::ClientStream;
use super::fast::{self, FastEnd};
use super::h2;
use super::phase::{BodyEnd, ConnPhase, ConnState};
use super::proxied::ProxiedConn;
use super::reply::HEAD_TIMEOUT;
use super::secured::{Entrance, SecuredConn};
use super::server::{ConnSlot, RegisteredConn, Server};
use super::through_hyper;
use crate::deadline::{Alarm, within};
use crate::http::{LINGER_BYTES_MAX, LINGER_TIME_MAX};
use crate::metrics::tokens::TokenId;
use crate::net::Stream;

/// Why a connection, or hyper's part of it, ended.
#[derive(Debug)]
pub(super) enum ConnEnd {
    /// The peer closed, `connection: close`, or an error that was answered.
    Done,
    HeadOverdue,
    IdleOverdue,
    /// It was idle and has given way to another connection.
    GaveWay,
    /// There is no TLS session. Its client is to get these bytes.
    NotSecured(&'static [u8]),
    /// Silent for [`QUIET_AFTER`], and hyper holds no state that the next request needs.
    Quiet,
}

/// A connection of hyper's that is silent for this long releases hyper's buffers, 20 kB of 23, and
/// is the fast path's again, if it is certain that they hold no part of the next request: after a
/// chunked one it is not. Clients that send more often never pay for new buffers.
const QUIET_AFTER: Duration = Duration::from_millis(250);

/// Who reads the requests of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    /// The fast path, and hyper where that gives up.
    Both,
    /// hyper alone: only to [compare](differential).
    Hyper,
}

/// An open connection, for those who serve it.
#[derive(Clone, Copy)]
pub(super) struct Conn<'a> {
    pub(super) server: &'a Rc<Server>,
    pub(super) state: &'a Rc<ConnState>,
    pub(super) listed: &'a RegisteredConn<'a>,
    pub(super) stream: &'a Rc<ClientStream>,
}

/// Serves `stream`, which came in by `entrance`, in its own task. A panic there ends only that
/// connection.
pub(super) fn spawn(server: &Rc<Server>, stream: Stream, entrance: &Rc<Entrance>, slot: ConnSlot) {
    let (server, entrance) = (server.clone(), entrance.clone());
    rt::spawn_as(TaskKind::Connection, async move {
        server.cells.connections_accepted.inc();
        server.cells.connections.inc();
        let served = serve(server.clone(), stream, entrance, Readers::Both);
        let served = AssertUnwindSafe(served).catch_unwind().await;
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
pub(super) async fn serve(
    server: Rc<Server>,
    stream: Stream,
    entrance: Rc<Entrance>,
    readers: Readers,
) {
    let stream = Rc::new(ClientStream::new(stream, entrance.tls.is_some()));
    let state = ConnState::new(&stream);
    let listed = server.conns.register(&state);
    let mut alarm = Alarm::default();
    let listen = &server.config.listen[entrance.number];
    if let Some(proxies) = &listen.proxies {
        let proxied =
            ProxiedConn { server: &server, state: &state, listed: &listed, stream: &stream };
        // Boxed so that only connections of proxies are larger for it.
        if !Box::pin(proxied.begin(listen.address, proxies, &mut alarm)).await {
            return;
        }
    }
    let conn = Conn { server: &server, state: &state, listed: &listed, stream: &stream };
    let secured = match &entrance.tls {
        None => Ok(()),
        Some(acceptor) => {
            let begins = SecuredConn {
                server: &server,
                state: &state,
                listed: &listed,
                stream: &stream,
                acceptor,
                address: listen,
            };
            // Boxed likewise.
            Box::pin(begins.begin(&mut alarm)).await
        }
    };
    let end = match secured {
        Ok(()) => conn.serve(&mut alarm, readers).await,
        Err(None) => return,
        Err(Some(last)) => ConnEnd::NotSecured(last),
    };
    let last: &[u8] = match end {
        ConnEnd::IdleOverdue | ConnEnd::GaveWay | ConnEnd::Quiet => return stream.say_goodbye(),
        ConnEnd::NotSecured(last) => last,
        // Its client has closed first, as most do: nobody waits for anything.
        ConnEnd::Done if state.gone.get() && stream.has_sent() => return stream.say_goodbye(),
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
    // Boxed so that only connections that linger are larger for it.
    let lingers = Box::pin(within(LINGER_TIME_MAX, lingers, || Ok(())));
    if let Err(error) = lingers.await {
        tracing::debug!(%error, "lingering ended");
    }
}

impl Conn<'_> {
    /// Serves requests until the connection ends.
    async fn serve(self, alarm: &mut Alarm, readers: Readers) -> ConnEnd {
        assert!(self.stream.is_ready(), "no request is read before the handshake is complete");
        loop {
            let held = match readers {
                Readers::Both if self.stream.is_h2() => Vec::new(),
                Readers::Both => match fast::serve(self, alarm).await {
                    FastEnd::Conn(end) => return end,
                    FastEnd::ForHyper(held) => held,
                },
                Readers::Hyper => Vec::new(),
            };
            // Boxed so that an idle connection can drop hyper's state.
            match Box::pin(self.serve_by_hyper(held, readers, alarm)).await {
                ConnEnd::Quiet => {
                    if readers == Readers::Hyper {
                        // It is hyper again that waits for the next request.
                        self.state.since.set(rt::now());
                    }
                }
                end => return end,
            }
        }
    }

    /// Has hyper serve requests, `held` of which was read already.
    async fn serve_by_hyper(self, held: Vec<u8>, readers: Readers, alarm: &mut Alarm) -> ConnEnd {
        if self.stream.is_h2() || readers == Readers::Both && self.begins_h2(&held) {
            // Boxed so that HTTP/1.1 needs no room for it.
            return Box::pin(h2::serve(self, held, alarm)).await;
        }
        through_hyper::serve(self, held, alarm).await
    }

    /// Whether the connection begins with HTTP/2, and may. `held` was read of it already, and what comes
    /// next has arrived or is not needed.
    fn begins_h2(self, held: &[u8]) -> bool {
        let Conn { server, state, stream, .. } = self;
        if self.stream.is_tls() || state.has_asked() {
            return false;
        }
        if !held.is_empty() {
            return server.conns.h2.begins(held);
        }
        let mut begins = false;
        let mut unwoken = Context::from_waker(Waker::noop());
        let _peeked = stream.poll_read_with(&mut unwoken, |arrived| {
            begins = server.conns.h2.begins(arrived);
            0
        });
        begins
    }

    /// Polls `work`, which serves requests, and the connection's deadlines until one of them ends.
    pub(super) async fn watch<T>(
        self,
        alarm: &mut Alarm,
        work: impl Future<Output = T>,
    ) -> Result<T, ConnEnd> {
        let Conn { server, state, listed, stream } = self;
        let mut work = pin!(work);
        poll_fn(|cx| {
            state.keep_waker(cx);
            loop {
                if let Poll::Ready(done) = work.as_mut().poll(cx) {
                    return Poll::Ready(Ok(done));
                }
                let idle = state.phase.get() == ConnPhase::Idle && !state.unsent.get();
                if server.stop.closed.get() && idle && !state.is_sending(cx, stream) {
                    return Poll::Ready(Err(ConnEnd::IdleOverdue));
                }
                if listed.gives_way(server, state, stream) {
                    return Poll::Ready(Err(ConnEnd::GaveWay));
                }
                if state.phase.get() == ConnPhase::Working {
                    return Poll::Pending;
                }
                let config = &server.config;
                let (now, since) = (rt::now(), state.since.get());
                // When the peer is overdue, and the end that this means. An overdue body gets an
                // answer; without one, the connection is idle.
                let (limit, body_end) = match state.phase.get() {
                    ConnPhase::Idle
                        if state.clean.get() && idle && QUIET_AFTER < config.idle_timeout =>
                    {
                        ready!(alarm.poll(cx, now, since + QUIET_AFTER));
                        return Poll::Ready(Err(ConnEnd::Quiet));
                    }
                    ConnPhase::Idle => (state.idle_limit(cx, stream, &server.stop, config), None),
                    ConnPhase::Head => {
                        let limit = config.header_timeout;
                        match ready!(state.poll_head_overdue(cx, stream, alarm, now, limit)) {
                            Some(end) => return Poll::Ready(Err(end)),
                            None => continue,
                        }
                    }
                    ConnPhase::Body => {
                        server.bodies.memory.body_waits(state, now);
                        let (limit, end) = state.body_limit(config);
                        (limit, Some(end))
                    }
                    ConnPhase::Working => unreachable!("it has no deadline here"),
                };
                if !ready!(state.poll_overdue(cx, stream, alarm, now, limit)) {
                    continue;
                }
                let Some(end) = body_end else {
                    return Poll::Ready(Err(ConnEnd::IdleOverdue));
                };
                if end == BodyEnd::TooSlow {
                    if state.keeps_pace(config.body_rate_min, now) {
                        continue;
                    }
                    server.cells.bodies_too_slow.inc();
                }
                // The request is polled in the next round of this loop.
                state.end_body(end);
            }
        })
        .await
    }
}

/// Writes `last`, closes our half, then reads and discards what the client still sends. Closing with
/// unread bytes would reset the connection, which can destroy the answer before the client has read
/// it.
async fn linger(stream: &ClientStream, last: &[u8], state: &ConnState) -> io::Result<()> {
    let mut rest = last;
    state.unsent.set(!rest.is_empty());
    while !rest.is_empty() {
        rest = &rest[poll_fn(|cx| stream.poll_send(cx, rest)).await?..];
    }
    state.unsent.set(false);
    // The client may have closed only its half and still read the answer that is being sent.
    if state.gone.get() {
        stream.say_goodbye();
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
                rt::yield_if_due().await;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They are most of what an idle connection takes; a wake-up, the socket's entry and its places in
    /// the lists of connections are 0.6 kB more.
    #[test]
    fn the_task_and_the_state_of_a_connection_stay_small() {
        fn bytes_of<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let (task, state) = (bytes_of(serve), size_of::<ConnState>());
        // The tally, 0.2 kB, is apart: streams of HTTP/2 share it.
        assert!(task <= 608 && state <= 400, "task {task}, state {state}");
    }
}
