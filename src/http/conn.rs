//! One connection: hyper reads requests from it, each is parsed, admitted and answered, and its deadlines are kept here.
//!
//! The deadlines are ours because hyper's header timeout sends no reply and also runs on idle connections. Each has one
//! alarm, set anew only when it has gone off or would come too late, so a request costs no timer operation. hyper never
//! closes the socket: after its last answer the connection lingers, so that an answer reaches a client that is still
//! sending.
//!
//! One read may bring the end of a request and the start of the next head; what lies in hyper's buffer cannot be seen,
//! so `Arrived` counts. Known gap: behind a chunked body, or behind a whole request that came in one read with its
//! forerunner, such a head runs under `IDLE_TIMEOUT` until its next byte arrives.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::rt as hyper_rt;
use hyper::server::conn::http1;
use hyper::service::service_fn;

use crate::budget::ChargedBytes;
use crate::coding::Coding;
use crate::config::{Ack, Config};
use crate::core::Core;
use crate::deadline::{Alarm, was_paused, within};
use crate::http::ack::{self, LevelError, Tally};
use crate::http::body::{self, BodyError};
use crate::http::parse::{self, Collection, Scratch, Span};
use crate::http::reply::{Answer, HEAD_TIMEOUT};
use crate::http::tokens::TokenView;
use crate::key;
use crate::limits::{HEAD_BYTES_MAX, LAME_DUCK, LINGER_BYTES_MAX, LINGER_TIME_MAX};
use crate::net::Stream;
use crate::queue::admission::{Need, Permit};
use crate::queue::job::{Job, Payload, Stamp};
use crate::rt;
use crate::spool::Ticket;
use crate::sync::keep_waker;

/// What a connection is waiting for; each phase has its own deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between requests: closed silently after `IDLE_TIMEOUT`, during a stop after [`LAME_DUCK`].
    Idle,
    /// Some bytes of a head have arrived: 408 after `HEADER_TIMEOUT`.
    Head,
    /// A body is being read: 408 after `BODY_TIMEOUT`.
    Body,
    /// The request waits for room or for the store, or its answer is being made; bounded by `ENQUEUE_WAIT` and
    /// `ACK_TIMEOUT`.
    Working,
}

/// What the core knows of one open connection; also held by the core's list, to wake it when the ring closes.
pub struct ConnState {
    phase: Cell<Phase>,
    since: Cell<Instant>,
    body_overdue: Cell<bool>,
    /// The peer has closed or the socket has failed: nothing to linger for.
    gone: Cell<bool>,
    /// Between requests, and hyper holds nothing of the next one.
    clean: Cell<bool>,
    /// hyper has more to write than the socket takes now.
    unsent: Cell<bool>,
    arrived: Arrived,
    /// Bytes read from the socket.
    taken: Cell<u64>,
    /// While a deadline has passed and what had arrived by then is being read.
    look: Cell<Option<Look>>,
    waker: RefCell<Option<Waker>>,
}

/// A deadline that has passed waits for what had arrived by then.
#[derive(Clone, Copy)]
struct Look {
    /// [`ConnState::taken`] at the end of that.
    until: u64,
    /// The same at the last look.
    taken: u64,
    /// Looks since then that have found nothing taken.
    vain: u32,
}

impl Look {
    /// A receive passes through the kernel and the driver's turn; when it has not been read by then, nobody wants it.
    const VAIN_MAX: u32 = 3;
}

/// What has arrived of the current request, and whether it was more than that.
#[derive(Default)]
struct Arrived {
    /// Bytes of the head's last line so far, should it have begun.
    line: Cell<usize>,
    /// Bytes that came after the head's end; `None` when that was not seen.
    after_head: Cell<Option<usize>>,
    /// Line ends at the end of the last read: between requests they are nothing.
    line_ends: Cell<usize>,
    /// Some of the next head has arrived.
    next_head: Cell<bool>,
    /// The current head began behind its forerunner, at an unknown place: its end cannot be told.
    uncounted: Cell<bool>,
}

impl Arrived {
    fn part_of_head(&self, bytes: &[u8]) {
        if self.uncounted.get() {
            return;
        }
        // hyper may read on for the body before it hands over the request.
        if self.after_head.get().is_some() {
            return self.after_head(bytes);
        }
        let mut line = self.line.get();
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            // Nothing, or a carriage return.
            if line + end - start <= 1 {
                self.after_head.set(Some(0));
                return self.after_head(&bytes[end + 1..]);
            }
            (line, start) = (0, end + 1);
        }
        self.line.set(line + bytes.len() - start);
    }

    fn after_head(&self, bytes: &[u8]) {
        self.after_head.set(self.after_head.get().map(|sum| sum + bytes.len()));
        self.line_ends.set(bytes.iter().rev().take_while(|b| is_line_end(b)).count());
    }

    /// The request has ended, with a body of `length` bytes if that is known. Whether nothing came behind it.
    fn end_of_request(&self, length: Option<u64>) -> bool {
        let more = self.after_head.take().zip(length).map(|(sum, body)| sum as i64 - body as i64);
        self.next_head.set(more.is_some_and(|more| more > self.line_ends.get() as i64));
        self.line.set(0);
        self.uncounted.set(false);
        more.is_some_and(|more| (0..=self.line_ends.get() as i64).contains(&more))
    }
}

fn is_line_end(byte: &u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

impl ConnState {
    fn new() -> Rc<ConnState> {
        Rc::new(ConnState {
            arrived: Arrived::default(),
            taken: Cell::new(0),
            look: Cell::new(None),
            phase: Cell::new(Phase::Idle),
            since: Cell::new(rt::now()),
            body_overdue: Cell::new(false),
            gone: Cell::new(false),
            clean: Cell::new(true),
            unsent: Cell::new(false),
            waker: RefCell::new(None),
        })
    }

    /// Makes the connection look at the core's stop state again.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    fn keep_waker(&self, cx: &Context<'_>) {
        keep_waker(&mut self.waker.borrow_mut(), cx);
    }

    fn enter(&self, phase: Phase, now: Instant) {
        self.phase.set(phase);
        self.since.set(now);
        self.look.set(None);
    }

    /// From when on an idle connection has how long.
    fn idle_limit(&self, core: &Core) -> (Instant, Duration) {
        let (since, idle) = (self.since.get(), core.config.idle_timeout);
        match core.drain_began.get() {
            None => (since, idle),
            Some(began) if self.unsent.get() => (since.max(began), LINGER_TIME_MAX.min(idle)),
            Some(began) => (since.max(began), LAME_DUCK.min(idle)),
        }
    }

    /// Ready with true once the peer has had `limit` since `since`, and all that had arrived by then has been read; with
    /// false when it gets the whole limit again, because this process was paused.
    fn poll_overdue(
        &self,
        cx: &mut Context<'_>,
        stream: &Stream,
        alarm: &mut Alarm,
        (since, limit): (Instant, Duration),
    ) -> Poll<bool> {
        let deadline = since + limit;
        ready!(alarm.poll(cx, deadline));
        let look = self.look.get();
        if look.is_none() && was_paused(limit, rt::since(deadline)) {
            self.since.set(rt::now());
            return Poll::Ready(false);
        }
        stream.net().take_in_now();
        let (arrived, taken) = (stream.arrived(), self.taken.get());
        let mut look = look.unwrap_or(Look { until: taken + arrived as u64, taken, vain: 0 });
        look.vain = if taken > look.taken { 0 } else { look.vain + 1 };
        look.taken = taken;
        if arrived == 0 || taken >= look.until || look.vain > Look::VAIN_MAX {
            return Poll::Ready(true);
        }
        self.look.set(Some(look));
        // The others have their turn in between.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready once the driver has found the body overdue; the driver polls the request right after setting it.
    async fn body_overdue(&self) {
        poll_fn(|_| if self.body_overdue.get() { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

/// Why hyper's part of a connection ended.
enum End {
    /// hyper is done: the peer closed, `connection: close`, or an error hyper has answered.
    Done,
    HeadOverdue,
    IdleOverdue,
    /// Silent for [`QUIET_AFTER`], and nothing of hyper's state is needed to go on.
    Quiet,
}

/// A connection silent for this long gives hyper's buffers back until its next byte comes: 20 kB of 23. Clients that
/// send more often never pay for making them anew.
const QUIET_AFTER: Duration = Duration::from_millis(250);

/// Serves `stream` until either side closes it.
pub async fn serve(core: Rc<Core>, stream: Stream) {
    let state = ConnState::new();
    let listed = core.conns.enter(&state);
    let stream = Rc::new(stream);
    let mut alarm = Alarm::default();
    let end = loop {
        if let Some(end) = first_byte(&core, &state, &stream, &mut alarm).await {
            break end;
        }
        let socket = Socket { stream: stream.clone(), state: state.clone() };
        // In a box of its own, which a silent connection does without.
        match Box::pin(drive(&core, &state, socket, &mut alarm)).await {
            End::Quiet => core.conns.quieted.set(core.conns.quieted.get() + 1),
            end => break end,
        }
    };
    let stream = Rc::into_inner(stream).expect("hyper dropped its half");
    match end {
        End::IdleOverdue | End::Quiet => {}
        // What was answered may still be on its way to a client that has only closed its half.
        End::Done if state.gone.get() => {
            let sent = poll_fn(|cx| stream.poll_sent(cx));
            let _or_nobody_reads_it = within(LINGER_TIME_MAX, sent, || Ok(())).await;
        }
        End::Done => linger(stream, b"").await,
        End::HeadOverdue => {
            core.cells.count_response(408);
            linger(stream, HEAD_TIMEOUT).await;
        }
    }
    drop(listed);
}

/// Waits between requests for anything to arrive; the connection's end if that comes first.
async fn first_byte(
    core: &Core,
    state: &ConnState,
    stream: &Stream,
    alarm: &mut Alarm,
) -> Option<End> {
    poll_fn(|cx| {
        state.keep_waker(cx);
        if core.ring.is_closed() {
            return Poll::Ready(Some(End::IdleOverdue));
        }
        loop {
            if stream.poll_readable(cx).is_ready() {
                return Poll::Ready(None);
            }
            if ready!(state.poll_overdue(cx, stream, alarm, state.idle_limit(core))) {
                return Poll::Ready(Some(End::IdleOverdue));
            }
        }
    })
    .await
}

/// Polls hyper and the connection's deadlines until one of them ends it.
async fn drive(core: &Rc<Core>, state: &Rc<ConnState>, socket: Socket, alarm: &mut Alarm) -> End {
    let stream = socket.stream.clone();
    let service = service_fn(|request| handle(core.clone(), state.clone(), request));
    let mut builder = http1::Builder::new();
    builder.half_close(true).header_read_timeout(None).max_buf_size(HEAD_BYTES_MAX);
    let mut hyper = pin!(builder.serve_connection(socket, service));
    poll_fn(|cx| {
        state.keep_waker(cx);
        loop {
            if let Poll::Ready(result) = hyper.as_mut().poll(cx) {
                if let Err(error) = result {
                    if let Some(status) = refused_by_hyper(&error) {
                        core.cells.count_response(status);
                    }
                    tracing::debug!(%error, "connection ended");
                }
                return Poll::Ready(End::Done);
            }
            let idle = state.phase.get() == Phase::Idle && !state.unsent.get();
            if core.ring.is_closed() && idle {
                return Poll::Ready(End::IdleOverdue);
            }
            let config = &core.config;
            let since = state.since.get();
            let (limit, overdue) = match state.phase.get() {
                Phase::Idle if state.clean.get() && idle && QUIET_AFTER < config.idle_timeout => {
                    ready!(alarm.poll(cx, since + QUIET_AFTER));
                    return Poll::Ready(End::Quiet);
                }
                Phase::Idle => (state.idle_limit(core), Some(End::IdleOverdue)),
                Phase::Head => ((since, config.header_timeout), Some(End::HeadOverdue)),
                Phase::Body => ((since, config.body_timeout), None),
                Phase::Working => return Poll::Pending,
            };
            if !ready!(state.poll_overdue(cx, &stream, alarm, limit)) {
                continue;
            }
            if let Some(end) = overdue {
                return Poll::Ready(end);
            }
            // The request answers this itself when hyper polls it, in the next round of this loop.
            state.body_overdue.set(true);
            state.phase.set(Phase::Working);
        }
    })
    .await
}

/// The status hyper has answered a head with that it could not take; the service never saw it. A 414 cannot happen: a
/// head is over its limit before its URI is.
fn refused_by_hyper(error: &hyper::Error) -> Option<u16> {
    match () {
        () if error.is_parse_too_large() => Some(431),
        // The start of an HTTP/2 connection is closed without a word.
        () if error.is_parse() && !error.is_parse_version_h2() => Some(400),
        () => None,
    }
}

/// Answers one request.
async fn handle(
    core: Rc<Core>,
    state: Rc<ConnState>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let started = rt::now();
    state.enter(Phase::Body, started);
    state.body_overdue.set(false);
    core.faults.on_request();
    let length = request.body().size_hint().exact();
    let (head, body) = request.into_parts();
    let wanted = Wanted::of(&head, &core.config);
    // Its fields and the buffer they lie in would outweigh the rest of the connection while the body comes.
    let room = emptied(head);
    let (answer, body_left) = answer(&core, &state, wanted, body).await;
    let response = answer.render(body_left || core.draining.get(), room);
    core.cells.count_response(response.status().as_u16());
    let now = rt::now();
    core.cells.request_latency.observe(now - started);
    state.clean.set(state.arrived.end_of_request(length));
    state.enter(Phase::Idle, now);
    Ok(response)
}

/// Fields for which a connection keeps room between its requests, 150 bytes each.
const FIELDS_KEPT: usize = 16;

/// The head's map without its fields, for the reply.
fn emptied(head: Parts) -> HeaderMap {
    let mut headers = head.headers;
    headers.clear();
    if headers.capacity() <= FIELDS_KEPT { headers } else { HeaderMap::new() }
}

/// What a head asks for, as far as that matters here.
struct Wanted {
    misdirected: Option<Answer>,
    ack: Result<Ack, LevelError>,
    coding: Result<Option<Coding>, BodyError>,
}

impl Wanted {
    fn of(head: &Parts, config: &Config) -> Wanted {
        Wanted {
            misdirected: misdirected(&head.method, &head.uri),
            ack: ack::level(&head.headers, config),
            coding: body::coding_of(&head.headers),
        }
    }
}

/// The outcome, and whether some of the body was left unread (then the connection cannot be used again).
async fn answer(core: &Core, state: &ConnState, wanted: Wanted, body: Incoming) -> (Answer, bool) {
    let has_body = !body.is_end_stream();
    let Wanted { misdirected, ack, coding } = wanted;
    if let Some(answer) = misdirected {
        return (answer, has_body);
    }
    let ack = match ack {
        Ok(ack) => ack,
        Err(error) => return (Answer::BadRequest(error.to_string()), has_body),
    };
    let read = async {
        let coding = coding?;
        let raw = core.bodies.read(body).await?;
        // The client has done its part; without a deadline of its own, so the time this began is not needed.
        state.phase.set(Phase::Working);
        state.body_overdue.set(false);
        core.bodies.decode(raw, coding).await.map(Some)
    };
    let overdue = async {
        state.body_overdue().await;
        Ok(None)
    };
    // Corrupt compression is found after the body was read whole; the other errors leave some of it behind.
    match read.or(overdue).await {
        Ok(Some(body)) => (admit(core, body, ack).await, false),
        Ok(None) => (Answer::BodyTimeout, true),
        Err(error @ BodyError::Corrupt { .. }) => (Answer::BadRequest(error.to_string()), false),
        Err(error @ BodyError::TooLarge { .. }) => (Answer::TooLarge(error.to_string()), has_body),
        Err(error @ BodyError::Disconnected(_)) => (Answer::BadRequest(error.to_string()), true),
        Err(BodyError::UnsupportedEncoding) => (Answer::UnsupportedEncoding, has_body),
        Err(error @ BodyError::MemoryExhausted) => {
            (Answer::Unavailable { error: error.to_string(), retry_after_s: 1 }, has_body)
        }
    }
}

/// The answer to a request for anything but `POST /payloads`.
pub fn misdirected(method: &Method, uri: &Uri) -> Option<Answer> {
    match uri.path() {
        "/payloads" if method == Method::POST => None,
        "/payloads" => Some(Answer::MethodNotAllowed),
        _ => Some(Answer::NotFound),
    }
}

/// Admits the payloads of the body, all or none, and waits for what `ack` promises of them.
async fn admit(core: &Core, body: ChargedBytes, ack: Ack) -> Answer {
    match enter(core, body, ack).await {
        Ok(Entered { count, until: Until::Now }) => Answer::Accepted { count, ack },
        Ok(Entered { until: Until::Stored(tally), .. }) => ack::stored(core, &tally).await,
        Ok(Entered { count, until: Until::Synced(ticket) }) => {
            ack::spooled(core, &ticket, count).await
        }
        Err(answer) => answer,
    }
}

/// A request that was taken.
struct Entered {
    count: usize,
    until: Until,
}

/// How long a request waits that was taken.
enum Until {
    Now,
    /// The store has decided on its payloads.
    Stored(Rc<Tally>),
    /// They are on the disk.
    Synced(Rc<Ticket>),
}

/// Splits the body and takes its payloads, all or none, in the way that `ack` asks for.
async fn enter(core: &Core, body: ChargedBytes, ack: Ack) -> Result<Entered, Answer> {
    let tokens = core.tokens.as_ref();
    let need = {
        let mut scratch = core.scratch.borrow_mut();
        let Collection { version, payloads, .. } = split(body.as_slice(), &mut scratch, tokens)?;
        let version = version_for_keys(core, version);
        if payloads.is_empty() {
            let nothing = Entered { count: 0, until: Until::Now };
            return if core.ring.is_closed() { Err(Answer::Stopping) } else { Ok(nothing) };
        }
        match ack {
            Ack::Queued | Ack::Stored => {
                let need = need(payloads, &body, version.as_deref());
                match core.admission.admit_now(need)? {
                    Some(permit) => {
                        return Ok(enqueue(core, body, permit, payloads, version, ack));
                    }
                    None => need,
                }
            }
            Ack::Spooled => return spool(core, body, payloads, version.as_deref()),
        }
    };
    // In line a request holds its body and nothing else: its spans could weigh four times that. They are found anew.
    let permit = core.admission.admit(need, core.config.enqueue_wait).await?;
    let mut scratch = core.scratch.borrow_mut();
    let Collection { version, payloads, .. } = split(body.as_slice(), &mut scratch, tokens)?;
    let version = version_for_keys(core, version);
    Ok(enqueue(core, body, permit, payloads, version, ack))
}

/// What keys are made of in a request's `version`, if they are.
fn version_for_keys(core: &Core, version: Option<Cow<'_, str>>) -> Option<Box<str>> {
    version.filter(|_| core.needs_version).map(|version| key::version(&version))
}

/// What a request with these payloads asks for.
fn need(payloads: &[Span], body: &ChargedBytes, version: Option<&str>) -> Need {
    Need::of(payloads.len(), body.retained() + version.map_or(0, str::len))
}

/// Puts the payloads in line for the disk; they come to the ring when they are there.
fn spool(
    core: &Core,
    body: ChargedBytes,
    spans: &[Span],
    version: Option<&str>,
) -> Result<Entered, Answer> {
    let spool = core.spool.as_ref().expect("without a spool this level is refused");
    core.admission.could_fit(need(spans, &body, version))?;
    let ticket = spool.submit(core.stamps(spans.len()), body, spans, version)?;
    Ok(Entered { count: spans.len(), until: Until::Synced(ticket) })
}

/// What the body is, if it is a collection from somebody who may send one.
pub fn split<'body, 'scratch>(
    body: &'body [u8],
    scratch: &'scratch mut Scratch,
    tokens: Option<&TokenView>,
) -> Result<Collection<'body, 'scratch>, Answer> {
    let collection =
        parse::parse(body, scratch).map_err(|error| Answer::BadRequest(error.to_string()))?;
    match tokens {
        Some(tokens) if !tokens.contains(collection.token.as_deref()) => Err(Answer::Unauthorized),
        _ => Ok(collection),
    }
}

/// Queues the payloads of a body that has its permit.
fn enqueue(
    core: &Core,
    body: ChargedBytes,
    permit: Permit,
    spans: &[Span],
    version: Option<Box<str>>,
    ack: Ack,
) -> Entered {
    let tally = (ack == Ack::Stored).then(|| Tally::of(spans.len()));
    let payload_bytes: u64 = spans.iter().map(|span| u64::from(span.end - span.start)).sum();
    let Stamp { unix_nanos, seq: first } = core.stamps(spans.len());
    let payloads = Payload::split(body.hand_over(), permit, spans, version);
    let jobs = payloads.enumerate().map(|(at, payload)| Job {
        payload,
        stamp: Stamp { unix_nanos, seq: first + at as u64 },
        record: None,
        tally: tally.clone(),
    });
    Permit::push_all(&core.admission, jobs);
    core.cells.payloads_accepted.add(spans.len() as u64);
    core.cells.bytes_accepted.add(payload_bytes);
    Entered { count: spans.len(), until: tally.map_or(Until::Now, Until::Stored) }
}

/// Writes `last`, half-closes, then reads and discards what the client still sends: closing with unread bytes would
/// reset the connection and could destroy the answer before the client has read it.
async fn linger(mut stream: Stream, last: &[u8]) {
    let discard = async {
        stream.write_all(last).await?;
        stream.close().await?;
        let mut left = LINGER_BYTES_MAX;
        let mut scrap = vec![0; 16 * 1024];
        while left > 0 {
            match stream.read(&mut scrap).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
        }
        io::Result::Ok(())
    };
    if let Err(error) = within(LINGER_TIME_MAX, discard, || Ok(())).await {
        tracing::debug!(%error, "lingering ended");
    }
}

/// The socket as hyper sees it: notices the first byte of a head and the peer's end, and leaves closing to [`linger`].
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
        // hyper asks for more only if what it has is no whole head.
        if state.phase.get() == Phase::Idle && state.arrived.next_head.take() {
            state.arrived.uncounted.set(true);
            state.enter(Phase::Head, rt::now());
        }
        let result = ready!(self.stream.poll_read_with(cx, |arrived| {
            let bytes = &arrived[..arrived.len().min(buf.remaining())];
            match state.phase.get() {
                Phase::Idle => {
                    // hyper passes over empty lines before a head.
                    if let Some(first) = bytes.iter().position(|b| !is_line_end(b)) {
                        state.enter(Phase::Head, rt::now());
                        state.arrived.part_of_head(&bytes[first..]);
                    }
                }
                Phase::Head => state.arrived.part_of_head(bytes),
                Phase::Body | Phase::Working => state.arrived.after_head(bytes),
            }
            buf.put_slice(bytes);
            state.taken.set(state.taken.get() + bytes.len() as u64);
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
