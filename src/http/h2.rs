//! Connections that speak HTTP/2: hyper serves them, in the connection's own task.
//!
//! A connection belongs to one core, and so do its streams. To its request a stream is what a
//! connection is to an HTTP/1.1 request: it has a [`ConnState`] of its own, with the body, its
//! deadlines and its place among those whose memory can be taken away. So requests go through the same
//! functions ([`through_hyper::handle`]), and body memory, quotas, tokens and counters know no
//! difference. The streams are polled right after the connection, in the same task and by its one alarm.
//!
//! What a client may do is bounded:
//!
//! | what | by |
//! |---|---|
//! | connections | `H2_CONNECTIONS` per core |
//! | streams at once | `H2_STREAMS`, by the library; further ones are refused |
//! | header list | [`HEAD_BYTES_MAX`] of a request, by the library: 431, and the end at four times as much |
//! | `CONTINUATION` | five in a head that is not complete, by the library; `HEADER_TIMEOUT` |
//! | resets, of either side | [`RESETS_BURST`](frames::RESETS_BURST) and [`RESETS_PER_SECOND`](frames::RESETS_PER_SECOND); those for bodies that come late are frames instead |
//! | what is to be sent to a client that does not read | [`FRAMES_AT_ONCE`]: then nothing is read from it |
//! | ping, settings, priority, empty and unknown frames | [`FRAMES_BURST`](frames::FRAMES_BURST) and [`FRAMES_PER_SECOND`](frames::FRAMES_PER_SECOND), and [`FRAMES_PER_REQUEST`](frames::FRAMES_PER_REQUEST) |
//! | empty `DATA` that ends nothing | 100 on a connection, by the library |
//! | bytes ahead of their reader | [`FRAMES_AT_ONCE`] and [`BYTES_AT_ONCE`]: then the streams read, also while one waits for a quota; what they read is charged to `MAX_BODY_BYTES` |
//! | a body | `BODY_TIMEOUT`, `BODY_RATE_MIN`, `MAX_LENGTH`, as in HTTP/1.1 |
//! | an answer for all of which the client leaves no room ([`answer`]) | `IDLE_TIMEOUT` |
//! | a connection without requests | `IDLE_TIMEOUT`, before the first one `HEADER_TIMEOUT`; pings do not prolong it |
//!
//! [`ConnState`]: super::phase::ConnState

mod answer;
mod ends;
pub mod frames;
mod link;
mod rounds;
mod socket;

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::server::conn::http2;
use hyper::service::service_fn;

use super::conn::{Conn, ConnEnd};
use super::phase::ConnPhase;
use super::server::Server;
use super::through_hyper;
use crate::config::{Config, H2Offer};
use crate::deadline::Alarm;
use crate::http::HEAD_BYTES_MAX;
use crate::metrics::{CoreCells, H2Closed};
use crate::rt;
use answer::AnswerBody;
use ends::{H2End, last_words};
use frames::NO_ERROR;
use link::StreamSpawner;
use rounds::StreamRounds;
use socket::FramedSocket;

pub(super) use frames::H2_PREFACE;
pub(super) use link::H2Link;

/// Frames of one connection that are read before its streams are polled: as many as two for each of
/// the usual number of streams, and some. No more are read before the client has taken what they made
/// the library send: one frame, mostly a reset, for each of them, which waits without any other bound.
pub const FRAMES_AT_ONCE: usize = 256;

/// Bytes likewise: as much as TLS decrypts at a time.
pub const BYTES_AT_ONCE: usize = 48 << 10;

/// Streams of one connection that begin and are reset by their client in one such look, beyond which
/// the library says goodbye: as many as there can be, because a gateway whose clients have left does just
/// that. How many may follow is for [`frames::RESETS_BURST`] to say.
pub const UNACCEPTED_RESETS_MAX: usize = FRAMES_AT_ONCE / 2;

/// Streams of one connection, over its whole life, that the library resets for what was sent on them.
/// It bounds what [`frames::RESETS_PER_SECOND`] leaves.
pub const LIBRARY_RESETS_MAX: usize = 10_000;

/// What a connection may send ahead of the reader of its bodies, as a part of `MAX_BODY_BYTES`: as many
/// connections can fill their windows without being refused.
const WINDOW_SHARE: usize = 16;

/// No window is larger: as much as 100 Mbit/s bring in a round trip of 300 ms.
const CONNECTION_WINDOW_MAX: usize = 4 << 20;
/// That of a stream: a body of the default `MAX_LENGTH`.
const STREAM_WINDOW_MAX: usize = 1 << 20;
/// That of a stream is no smaller: the protocol's own.
const STREAM_WINDOW_LEAST: usize = 65_535;
/// That of a connection: half of it is what the library allows for small frames that wait for their
/// readers, of which each costs up to 256 bytes, and as many come as are read at once.
const CONNECTION_WINDOW_LEAST: usize = 2 * 256 * FRAMES_AT_ONCE;

/// Bytes of one answer that the library holds; none is longer.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// The table of fields that a client may have. Each field keeps the whole buffer in which it came, so
/// that of the protocol, 4 KiB, would mostly keep 0.8 MB.
const FIELDS_BYTES_MAX: u32 = 1 << 10;

/// Fields that a client can have in its table if it does not heed [`FIELDS_BYTES_MAX`], which the library
/// does not enforce: 4 KiB of the shortest ones.
const FIELDS_KEPT_MAX: usize = 4096 / 33;

/// Memory of a frame that the library holds for a stream that it does not know any longer, a reset, with
/// that of the stream itself, in tables that have just grown to twice what they hold.
const HELD_RESET_BYTES: usize = 1536;

/// Most memory of one HTTP/2 connection besides that of any connection and of its streams: the tables
/// of HPACK, of which that of the client keeps a buffer of 16 KiB for each field, and that of the server
/// has 4 KiB of fields and as much for their places; a head of [`HEAD_BYTES_MAX`] that is not complete,
/// once as it came and once decoded; 16 KiB to be sent, and as much of a frame that is not complete;
/// what one look has brought and its streams have not read, with 24 KiB of places for its frames; and
/// for each of these a reset.
pub const H2_CONNECTION_BYTES: usize = (FIELDS_KEPT_MAX * (16 << 10))
    + (8 << 10)
    + 2 * HEAD_BYTES_MAX
    + (32 << 10)
    + BYTES_AT_ONCE
    + (24 << 10)
    + FRAMES_AT_ONCE * HELD_RESET_BYTES;

/// Most memory of one stream besides its body: the library's state and ours, the tasks of both, an
/// answer, and what `KEY` wants of the head.
///
/// Measured: 41 kB for an idle connection, 40 more with an incomplete head of 15 kB; 6.6 kB for a stream
/// that waits for its body; 265 kB for an idle connection that has had 100 streams at once, whose places it keeps.
pub const H2_STREAM_BYTES: usize = 8 << 10;

/// The bounds of one core's HTTP/2 connections.
pub struct H2Bounds {
    offer: H2Offer,
    /// Most connections.
    connections_max: usize,
    open: Cell<usize>,
    streams_max: u32,
    connection_window: u32,
    stream_window: u32,
}

impl H2Bounds {
    /// `body_bytes` is the core's memory for bodies.
    pub fn new(config: &Config, body_bytes: usize, cells: &'static CoreCells) -> H2Bounds {
        let is_spoken = config.h2.is_spoken(config);
        cells.h2_connections_max.set(if is_spoken { config.h2.connections_max as u64 } else { 0 });
        let share = body_bytes / WINDOW_SHARE;
        let window = |least, max| share.clamp(least, max) as u32;
        H2Bounds {
            offer: config.h2.offer,
            connections_max: config.h2.connections_max,
            open: Cell::new(0),
            streams_max: config.h2.streams_max as u32,
            connection_window: window(CONNECTION_WINDOW_LEAST, CONNECTION_WINDOW_MAX),
            stream_window: window(STREAM_WINDOW_LEAST, STREAM_WINDOW_MAX),
        }
    }

    fn is_full(&self) -> bool {
        self.open.get() >= self.connections_max
    }

    /// Whether a TLS client may agree on HTTP/2 now.
    pub(super) fn offers_in_handshake(&self, cells: &CoreCells) -> bool {
        let offers = self.offer != H2Offer::Nowhere;
        if offers && self.is_full() {
            cells.h2_not_offered.inc();
        }
        offers && !self.is_full()
    }

    /// Whether a connection without TLS that begins with these bytes speaks HTTP/2.
    pub(super) fn begins(&self, bytes: &[u8]) -> bool {
        let has = bytes.len().min(H2_PREFACE.len());
        self.offer == H2Offer::All && has > 1 && bytes[..has] == H2_PREFACE[..has]
    }
}

/// The most that HTTP/2 adds to the memory of one core: its connections and their streams, and the heads
/// of one connection's requests that came at once, with those that were reset at once.
pub fn h2_bytes(config: &Config) -> usize {
    let options = &config.h2;
    if !options.is_spoken(config) {
        return 0;
    }
    let connections = options.connections_max.min(config.max_connections);
    // With META, fields of the head wait with the request.
    let fields = if config.meta.is_empty() { 0 } else { HEAD_BYTES_MAX };
    let streams = options.streams_max * (H2_STREAM_BYTES + fields);
    let heads = options.streams_max + UNACCEPTED_RESETS_MAX;
    connections * (H2_CONNECTION_BYTES + streams) + heads * HEAD_BYTES_MAX
}

/// An open connection, which is counted until this is dropped.
struct H2Opened<'a> {
    server: &'a Server,
    link: &'a H2Link,
}

impl Drop for H2Opened<'_> {
    fn drop(&mut self) {
        self.link.clear();
        self.server.conns.h2.open.set(self.server.conns.h2.open.get() - 1);
        self.server.cells.h2_connections.sub(1);
    }
}

/// Serves requests until the connection ends, and says so to its client. `held` was read of it already,
/// and counted.
pub(super) async fn serve(conn: Conn<'_>, held: Vec<u8>, alarm: &mut Alarm) -> ConnEnd {
    let link = H2Link::new(conn.server, conn.state);
    match serve_streams(conn, &link, held, alarm).await {
        H2End::Conn(end) => end,
        // Boxed so that connections that are served are not larger for it.
        H2End::LastWords(words) => Box::pin(conn.say(&words)).await,
    }
}

async fn serve_streams(
    conn: Conn<'_>,
    link: &Rc<H2Link>,
    held: Vec<u8>,
    alarm: &mut Alarm,
) -> H2End {
    let server = conn.server;
    if server.conns.h2.is_full() {
        return conn.h2_closed(link, H2Closed::Full);
    }
    server.conns.h2.open.set(server.conns.h2.open.get() + 1);
    server.cells.h2_connections.inc();
    server.cells.h2_connections_begun.inc();
    let _opened = H2Opened { server, link };
    // Pieces of the preface look like a head that has begun, but are no request.
    conn.state.standing.has_sent.set(false);
    let socket = FramedSocket::new(conn.stream.clone(), link.clone(), held);
    let service = service_fn(|request| {
        let (server, state) = (server.clone(), link.begin_stream());
        async move {
            let answer = through_hyper::handle(&server, &state, request).await;
            Ok::<_, Infallible>(answer.map(AnswerBody::new))
        }
    });
    let mut builder = http2::Builder::new(StreamSpawner(link.clone()));
    builder
        .max_concurrent_streams(server.conns.h2.streams_max)
        .initial_connection_window_size(server.conns.h2.connection_window)
        .initial_stream_window_size(server.conns.h2.stream_window)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .header_table_size(FIELDS_BYTES_MAX)
        .max_pending_accept_reset_streams(UNACCEPTED_RESETS_MAX)
        .max_local_error_reset_streams(LIBRARY_RESETS_MAX)
        .max_send_buf_size(ANSWER_BYTES_MAX);
    let mut served = pin!(builder.serve_connection(socket, service));
    let mut rounds = StreamRounds::new(server, link);
    let mut stop = StopSeen::default();
    let end = poll_fn(|cx| {
        conn.state.keep_waker(cx);
        let now = StopSeen::of(server);
        if stop != now {
            if now.drains && !stop.drains {
                served.as_mut().graceful_shutdown();
            }
            stop = now;
            link.wake_streams();
        }
        let mut turn_is_over = false;
        loop {
            link.begin_look(rounds.is_over() && !turn_is_over);
            if let Poll::Ready(done) = served.as_mut().poll(cx) {
                return Poll::Ready(conn.h2_ended(link, done));
            }
            link.end_look(cx);
            if let Some(closed) = link.wire.borrow().closed {
                return Poll::Ready(conn.h2_closed(link, closed));
            }
            match (turn_is_over, rounds.is_over()) {
                (false, _) => {}
                (true, false) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                (true, true) => break,
            }
            let ended = rounds.poll(cx);
            // What they have answered is sent now, before anything is concluded from the state of the
            // connection: what the library holds is in none.
            if ended == 0 && rounds.is_over() {
                break;
            }
            turn_is_over = rt::look_is_due();
        }
        conn.poll_h2_deadlines(cx, link, alarm)
    })
    .await;
    drop(rounds);
    end
}

/// How far the stop had come when the streams were woken for it.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct StopSeen {
    drains: bool,
    closed: bool,
    uploads_ended: bool,
}

impl StopSeen {
    fn of(server: &Server) -> StopSeen {
        let stop = &server.stop;
        StopSeen {
            drains: stop.draining.get(),
            closed: stop.closed.get(),
            uploads_ended: stop.uploads_ended.get(),
        }
    }
}

/// What a deadline of a connection is for.
enum H2Deadline {
    Head,
    Idle,
    Streams,
}

impl Conn<'_> {
    /// Keeps the deadlines of a connection all of whose streams were polled. Ready once it ends.
    fn poll_h2_deadlines(
        self,
        cx: &mut Context<'_>,
        link: &Rc<H2Link>,
        alarm: &mut Alarm,
    ) -> Poll<H2End> {
        let Conn { server, state, listed, stream } = self;
        state.unsent.set(link.is_sending());
        let is_idle = || state.phase.get() == ConnPhase::Idle && !state.unsent.get();
        if server.stop.closed.get() && is_idle() && !state.is_sending(cx, stream) {
            return Poll::Ready(last_words(link, NO_ERROR));
        }
        if listed.gives_way(server, state, stream) {
            // Nobody waits until the last words are sent.
            if let H2End::LastWords(bytes) = last_words(link, NO_ERROR) {
                let _or_not_at_all = stream.poll_send(cx, &bytes);
            }
            return Poll::Ready(H2End::Conn(ConnEnd::GaveWay));
        }
        let config = &server.config;
        loop {
            let now = rt::now();
            let head = link.polled(now).map(|since| (since, config.header_timeout));
            let idle = (state.phase.get() == ConnPhase::Idle)
                .then(|| state.idle_limit(cx, stream, &server.stop, config));
            let limits = [
                (head, H2Deadline::Head),
                (idle, H2Deadline::Idle),
                (link.next_deadline(), H2Deadline::Streams),
            ];
            let limits = limits.into_iter().filter_map(|(limit, what)| Some((limit?, what)));
            let at = |limit: (Instant, Duration)| limit.0 + limit.1;
            let Some((limit, what)) = limits.min_by_key(|(limit, _)| at(*limit)) else {
                return Poll::Pending;
            };
            if now < at(limit) {
                state.deadline_acted_on();
            }
            if !ready!(state.poll_overdue(cx, stream, alarm, now, limit)) {
                link.begin_again(config, rt::now());
                continue;
            }
            match what {
                H2Deadline::Head => {
                    return Poll::Ready(self.h2_closed(link, H2Closed::HeadTimeout));
                }
                H2Deadline::Idle => return Poll::Ready(last_words(link, NO_ERROR)),
                H2Deadline::Streams => {
                    // They are woken, and this task with them.
                    link.end_overdue(server, now);
                    state.deadline_acted_on();
                }
            }
        }
    }
}
