//! The fast path: requests that nearly all clients send, served from the bytes where they arrived.
//!
//! A head that the [whitelist](head) takes is judged without a map of its fields. If its body has
//! arrived with it and the request finds room at once, all of it takes one poll of the connection,
//! and the answer is written as bytes. Other requests of the whitelist go through the same code as
//! those that hyper reads ([`Handling`]); only their bodies come from the socket itself.
//!
//! Everything else is left to hyper, with every byte that was read of it: heads that are not in the
//! whitelist, so whatever is refused for its syntax gets hyper's answer, and ends in the middle of a
//! head. What a client can do here is bounded: one incomplete head of
//! [`HEAD_BYTES_MAX`], [`UNSENT_BYTES_MAX`] and one answer that it does not read, and
//! [`REQUESTS_AT_ONCE`] requests in one poll.
//!
//! The reader needs little of the connection: [`ClientStream::poll_received`] lends what has arrived
//! (with TLS, what was decrypted of it), and [`ClientStream::poll_send`] takes what is to be sent.
//!
//! [`ClientStream::poll_received`]: super::client_stream::ClientStream::poll_received
//! [`ClientStream::poll_send`]: super::client_stream::ClientStream::poll_send

mod answer;
mod body;
pub mod head;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::{self, MaybeUninit};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::HeaderMap;

use super::client_stream::ClientBytes;
use super::conn::{Conn, ConnEnd};
use super::fields::HeadView;
use super::h2::H2_PREFACE;
use super::phase::ConnPhase;
use super::reply::Answer;
use super::request::waiting::{process, resume, wait};
use super::request::{Handling, RequestAttempt, route};
use crate::deadline::Alarm;
use crate::http::HEAD_BYTES_MAX;
use crate::rt;
use body::InSocket;
use head::{FastHead, FieldsRoom, FirstBytes, end_in};

/// Requests of one connection that are served before other tasks run: as many as hyper serves.
const REQUESTS_AT_ONCE: usize = 16;

/// While a client does not read more than these bytes of its answers, no more of its requests are
/// served. As much again and one answer are in flight then, see
/// [`CONNECTION_BYTES`](crate::http::CONNECTION_BYTES). The answers of [`REQUESTS_AT_ONCE`] mostly
/// take less.
const UNSENT_BYTES_MAX: usize = 6 << 10;

/// Largest buffer for answers that is kept for the connection that writes the next ones.
const ROOM_KEPT: usize = 2 * UNSENT_BYTES_MAX;

/// Length of what looks like a head in [`H2_PREFACE`]. hyper gives no answer to that if it has come as a
/// whole, whether or not its head was in pieces, and [HTTP/2](super::h2) begins with it where it is
/// spoken.
const H2_PREFACE_HEAD: usize = 18;

/// How the fast path's part of a connection ended.
pub(super) enum FastEnd {
    Conn(ConnEnd),
    /// The next bytes are for hyper. These were read already, and counted.
    ForHyper(Vec<u8>),
}

/// What is kept of a connection between two polls.
#[derive(Default)]
struct WireState {
    /// The start of a head that is not complete.
    held: Vec<u8>,
    /// Answers that the socket has not taken.
    unsent: Vec<u8>,
    /// The last answer is written, or the peer has closed its half.
    ends: bool,
    /// What comes next is for hyper, which waits until `unsent` is sent.
    for_hyper: bool,
}

/// What the connection does next.
enum FastStep<'a> {
    End(FastEnd),
    Wait(Waits<'a>),
}

/// A request that waits for something.
type Waits<'a> = Pin<Box<dyn Future<Output = Waited<'a>> + 'a>>;

/// A request that has waited, and its answer.
struct Waited<'a> {
    handling: Handling<'a>,
    answer: Answer,
    body_left: bool,
    /// Its client wants the connection to be closed.
    closes: bool,
}

/// What came of looking at what has arrived.
enum Served<'a> {
    Answered,
    /// The head is not complete.
    NeedsMore,
    ForHyper,
    Waits(Waits<'a>),
}

/// Serves requests until the connection ends or hyper must go on.
pub(super) async fn serve(conn: Conn<'_>, alarm: &mut Alarm) -> FastEnd {
    let mut wire = WireState::default();
    let mut clock = None;
    loop {
        let next = poll_fn(|cx| conn.poll_requests(cx, &mut wire, alarm, clock.take())).await;
        let mut waits = match next {
            FastStep::End(end) => return end,
            FastStep::Wait(waits) => waits,
        };
        let work = poll_fn(|cx| {
            if let Err(error) = conn.flush(cx, &mut wire) {
                return Poll::Ready(Err(error));
            }
            waits.as_mut().poll(cx).map(Ok)
        });
        match conn.watch(alarm, work).await {
            Ok(Ok(waited)) => clock = Some(conn.reply(waited, &mut wire)),
            Ok(Err(error)) => return FastEnd::Conn(conn.failed(&error)),
            Err(end) => return FastEnd::Conn(end),
        }
    }
}

impl<'a> Conn<'a> {
    /// Serves what has arrived, sends the answers, and keeps the deadlines of what has not arrived.
    /// `clock` is the time of an answer that was written just now.
    fn poll_requests(
        self,
        cx: &mut Context<'_>,
        wire: &mut WireState,
        alarm: &mut Alarm,
        mut clock: Option<Instant>,
    ) -> Poll<FastStep<'a>> {
        let Conn { server, state, listed, stream } = self;
        state.keep_waker(cx);
        let served = match self.serve_arrived(cx, wire, &mut clock) {
            Ok(served) => served,
            Err(error) => return Poll::Ready(FastStep::End(FastEnd::Conn(self.failed(&error)))),
        };
        if let Err(error) = self.flush(cx, wire) {
            return Poll::Ready(FastStep::End(FastEnd::Conn(self.failed(&error))));
        }
        if let Served::Waits(waits) = served {
            return Poll::Ready(FastStep::Wait(waits));
        }
        if wire.unsent.is_empty() {
            if wire.ends {
                return Poll::Ready(FastStep::End(FastEnd::Conn(ConnEnd::Done)));
            }
            if wire.for_hyper {
                return Poll::Ready(FastStep::End(FastEnd::ForHyper(mem::take(&mut wire.held))));
            }
        }
        let phase = state.phase.get();
        if server.stop.closed.get() && phase == ConnPhase::Idle && !state.is_sending(cx, stream) {
            return Poll::Ready(FastStep::End(FastEnd::Conn(ConnEnd::IdleOverdue)));
        }
        if listed.gives_way(server, state, stream) {
            return Poll::Ready(FastStep::End(FastEnd::Conn(ConnEnd::GaveWay)));
        }
        loop {
            let (now, config) = (clock.take().unwrap_or_else(rt::now), &server.config);
            let end = match phase {
                ConnPhase::Head => {
                    ready!(state.poll_head_overdue(cx, stream, alarm, now, config.header_timeout))
                }
                _ => {
                    let limit = state.idle_limit(cx, stream, &server.stop, config);
                    let is_overdue = ready!(state.poll_overdue(cx, stream, alarm, now, limit));
                    is_overdue.then_some(ConnEnd::IdleOverdue)
                }
            };
            if let Some(end) = end {
                return Poll::Ready(FastStep::End(FastEnd::Conn(end)));
            }
        }
    }

    /// Serves the requests that have arrived. `clock` is the end of the last one in this poll. The
    /// first one begins with the turn, in which its bytes were seen: its latency then has the time
    /// that other tasks took before it, and one clock read is saved.
    fn serve_arrived(
        self,
        cx: &mut Context<'_>,
        wire: &mut WireState,
        clock: &mut Option<Instant>,
    ) -> io::Result<Served<'a>> {
        for _ in 0..REQUESTS_AT_ONCE {
            if wire.unsent.len() >= UNSENT_BYTES_MAX {
                self.flush(cx, wire)?;
            }
            if wire.ends || wire.for_hyper || wire.unsent.len() >= UNSENT_BYTES_MAX {
                return Ok(Served::NeedsMore);
            }
            let mut received = match self.stream.poll_received(cx) {
                Poll::Pending => {
                    self.state.record_begins_head(self.stream);
                    return Ok(Served::NeedsMore);
                }
                Poll::Ready(Ok(Some(received))) => received,
                // In the middle of a head, hyper says what that means.
                Poll::Ready(_) if !wire.held.is_empty() => {
                    wire.for_hyper = true;
                    return Ok(Served::NeedsMore);
                }
                Poll::Ready(Ok(None)) => {
                    self.state.gone.set(true);
                    wire.ends = true;
                    return Ok(Served::NeedsMore);
                }
                Poll::Ready(Err(error)) => return Err(error),
            };
            match self.serve_one(&mut received, wire, clock) {
                Served::Answered | Served::NeedsMore => {}
                Served::ForHyper => wire.for_hyper = true,
                waits @ Served::Waits(_) => return Ok(waits),
            }
        }
        cx.waker().wake_by_ref();
        Ok(Served::NeedsMore)
    }

    /// Serves the first request that has arrived, if its head is complete.
    fn serve_one(
        self,
        received: &mut ClientBytes<'_>,
        wire: &mut WireState,
        clock: &mut Option<Instant>,
    ) -> Served<'a> {
        if !wire.held.is_empty() {
            return self.serve_split(received, wire, clock);
        }
        let mut room: FieldsRoom<'_> = [const { MaybeUninit::uninit() }; _];
        let (served, taken) = match FastHead::parse(received, &mut room) {
            FirstBytes::Head(head) => {
                let rest = &received[head.bytes..];
                let Some((served, taken)) = self.request(&head, head.bytes, rest, wire, clock)
                else {
                    return Served::ForHyper;
                };
                (served, head.bytes + taken)
            }
            FirstBytes::Partial => {
                self.head_begins(clock);
                hold(&mut wire.held, received);
                self.state.tally.received_more(received.len());
                (Served::NeedsMore, received.len())
            }
            FirstBytes::Other => return Served::ForHyper,
        };
        received.take(taken);
        served
    }

    /// Serves a request whose head came in several pieces.
    fn serve_split(
        self,
        received: &mut ClientBytes<'_>,
        wire: &mut WireState,
        clock: &mut Option<Instant>,
    ) -> Served<'a> {
        let more = &received[..received.len().min(HEAD_BYTES_MAX - wire.held.len())];
        let end = end_in(&wire.held, more);
        let taken = end.unwrap_or(more.len());
        hold(&mut wire.held, &more[..taken]);
        received.take(taken);
        self.state.tally.received_more(taken);
        if end.is_none() && wire.held.len() < HEAD_BYTES_MAX {
            return Served::NeedsMore;
        }
        let whole = mem::take(&mut wire.held);
        let mut room: FieldsRoom<'_> = [const { MaybeUninit::uninit() }; _];
        let served = match FastHead::parse(&whole, &mut room) {
            FirstBytes::Head(head) => self.request(&head, 0, received, wire, clock),
            FirstBytes::Partial | FirstBytes::Other => None,
        };
        let Some((served, taken)) = served else {
            wire.held = whole;
            if wire.held == H2_PREFACE[..H2_PREFACE_HEAD] {
                let rest = &received[..received.len().min(H2_PREFACE.len() - H2_PREFACE_HEAD)];
                let taken = rest.len();
                hold(&mut wire.held, rest);
                received.take(taken);
                self.state.tally.received_more(taken);
            }
            return Served::ForHyper;
        };
        received.take(taken);
        served
    }

    /// The first bytes of a head can be read. With TLS its time may run already, since those of its
    /// record have arrived.
    fn head_begins(self, clock: &mut Option<Instant>) {
        self.state.arrived.due.set(None);
        if self.state.phase.get() == ConnPhase::Head {
            return;
        }
        let now = *clock.get_or_insert_with(rt::turn_now);
        self.state.enter(ConnPhase::Head, now);
        self.state.standing.has_sent.set(true);
    }

    /// Serves a request with this head, `uncounted` bytes of which are new; `rest` is what has
    /// arrived behind it. Also returns how much of that is read. `None`: it is for hyper.
    fn request(
        self,
        head: &FastHead<'_, '_>,
        uncounted: usize,
        rest: &[u8],
        wire: &mut WireState,
        clock: &mut Option<Instant>,
    ) -> Option<(Served<'a>, usize)> {
        let Conn { server, state, stream, .. } = self;
        let (length, closes) = (head.length, head.closes);
        let intake = route(server, head.path)?;
        let started = *clock.get_or_insert_with(rt::turn_now);
        state.standing.has_sent.set(true);
        // Before the request ends: with a trusted proxy the next one may be another client's.
        state.tally.received_more(uncounted);
        let handling = Handling::begin(server, state, &head.fields, Some(length as u64), started);
        let view = HeadView { query: head.query, fields: &head.fields };
        let wanted = match handling.judge(intake, &view) {
            Ok(wanted) => wanted,
            Err(answer) => {
                let waited = Waited { handling, answer, body_left: length > 0, closes };
                *clock = Some(self.reply(waited, wire));
                return Some((Served::Answered, 0));
            }
        };
        let attempt = match rest.get(..length) {
            Some(body) => handling.attempt(wanted, body),
            None => RequestAttempt::Waits(wanted),
        };
        if !matches!(attempt, RequestAttempt::Unread(_) | RequestAttempt::Waits(_)) {
            state.tally.received_more(length);
        }
        let (answer, body_left) = match attempt {
            RequestAttempt::Answered(answer) => (answer, false),
            RequestAttempt::Unread(answer) => (answer, length > 0),
            RequestAttempt::Admitted(intake, admitted, ack) => {
                let waits = async move {
                    let answer = wait(intake, admitted, ack).await;
                    Waited { handling, answer, body_left: false, closes }
                };
                return Some((Served::Waits(Box::pin(waits)), length));
            }
            RequestAttempt::Tried(wanted, tried) => {
                let waits = async move {
                    let answer = resume(server, wanted, tried, handling.token()).await;
                    Waited { handling, answer, body_left: false, closes }
                };
                return Some((Served::Waits(Box::pin(waits)), length));
            }
            RequestAttempt::Waits(wanted) => {
                let waits = async move {
                    let body = InSocket { stream, length };
                    let processed = process(server, state, wanted, body, handling.token());
                    let (answer, body_left) = processed.await;
                    Waited { handling, answer, body_left, closes }
                };
                return Some((Served::Waits(Box::pin(waits)), 0));
            }
        };
        *clock = Some(self.reply(Waited { handling, answer, body_left, closes }, wire));
        Some((Served::Answered, if body_left { 0 } else { length }))
    }

    /// Writes an answer behind those that are not sent yet. Returns the time.
    fn reply(self, waited: Waited<'a>, wire: &mut WireState) -> Instant {
        let Waited { mut handling, answer, body_left, closes } = waited;
        if wire.unsent.capacity() == 0 {
            wire.unsent = ROOM.take();
        }
        let out = &mut wire.unsent;
        if let Answer::Accepted { count, ack } = answer {
            match handling.end_accepted(count) {
                Ok(now) => {
                    let is_last = closes || self.server.stop.draining.get();
                    answer::write_accepted(count, ack, is_last, now, out);
                    wire.ends = is_last;
                    return now;
                }
                Err(says_more) => handling = says_more,
            }
        }
        let (response, now) = handling.reply(answer, body_left, HeaderMap::new());
        wire.ends = closes || answer::is_last(&response);
        answer::write(response, closes, now, out);
        now
    }

    /// Sends what the socket takes of the answers.
    fn flush(self, cx: &mut Context<'_>, wire: &mut WireState) -> io::Result<()> {
        while !wire.unsent.is_empty() {
            match self.stream.poll_send(cx, &wire.unsent) {
                Poll::Ready(sent) => drop(wire.unsent.drain(..sent?)),
                Poll::Pending => {
                    self.state.unsent.set(true);
                    return Ok(());
                }
            }
        }
        self.state.unsent.set(false);
        if wire.unsent.capacity() > 0 {
            let room = mem::take(&mut wire.unsent);
            if room.capacity() <= ROOM_KEPT {
                ROOM.set(room);
            }
        }
        Ok(())
    }

    /// The socket has failed.
    fn failed(self, error: &io::Error) -> ConnEnd {
        self.state.gone.set(true);
        let client = self.state.client().map(tracing::field::display);
        tracing::debug!(%error, client, "connection ended");
        ConnEnd::Done
    }
}

/// Appends a part of a head. The memory grows as a vector's does, so that many small parts are
/// cheap, but never beyond [`HEAD_BYTES_MAX`], which the parts together do not exceed.
fn hold(held: &mut Vec<u8>, part: &[u8]) {
    let wanted = held.len() + part.len();
    if wanted > held.capacity() {
        let grown = wanted.max((2 * held.capacity()).min(HEAD_BYTES_MAX));
        held.reserve_exact(grown - held.len());
    }
    held.extend_from_slice(part);
}

thread_local! {
    /// Room for answers, which the connections of a core lend each other.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_head_never_takes_more_than_the_longest_one() {
        const MOST: usize = HEAD_BYTES_MAX;
        let bytewise = vec![1; MOST];
        for parts in [
            &[MOST][..],
            &[10 << 10, 4 << 10, 2 << 10],
            &[MOST - 1, 1],
            &[MOST / 2 + 1, 1, MOST / 2 - 2],
            &[1, 1, MOST - 2],
            &[100, 200],
            &bytewise,
        ] {
            let (mut held, mut grown, mut all) = (Vec::new(), 0, Vec::new());
            for (number, part) in parts.iter().enumerate() {
                let (part, before) = (vec![number as u8; *part], held.capacity());
                hold(&mut held, &part);
                all.extend_from_slice(&part);
                grown += usize::from(held.capacity() > before);
                assert!(
                    held.capacity() <= MOST,
                    "{} of {:?}",
                    held.capacity(),
                    &parts[..3.min(parts.len())]
                );
            }
            assert!(held == all);
            assert!(grown <= 16, "grown {grown} times");
        }
    }
}
