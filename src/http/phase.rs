//! The phase of a connection and when it began: state that its deadlines, its request and its
//! socket share.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use hyper::body::Incoming;

use super::client_stream::ClientStream;
use super::conn::ConnEnd;
use super::eviction::{ConnActivity, FIRST_HEAD_LEAST, IDLE_LEAST, LINGER_LEAST};
use super::h2::H2Link;
use super::head_tracker::HeadTracker;
use super::peer::{ClientOrigin, Peer};
use super::peers::{Remembered, Tally};
use crate::budget::ChargedBytes;
use crate::config::Config;
use crate::deadline::{Alarm, was_paused};
use crate::http::{BODY_RATE_WINDOW, LINGER_TIME_MAX, STOP_IDLE_GRACE};
use crate::metrics::EvictionReason;
use crate::rt;
use crate::stop::Stop;
use crate::sync::keep_waker;

/// What a connection is waiting for; each phase has its own deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnPhase {
    /// Between requests: closed without an answer after `IDLE_TIMEOUT`, before the first request
    /// after `HEADER_TIMEOUT`, during a stop after [`STOP_IDLE_GRACE`].
    Idle,
    /// Part of a head, or of its TLS record, has arrived: 408 after `HEADER_TIMEOUT`.
    Head,
    /// A body is being read: 408 after `BODY_TIMEOUT`, or if it is slower than `BODY_RATE_MIN`.
    Body,
    /// The request is being handled. [`LARGE_WAIT_MAX`](super::split::LARGE_WAIT_MAX), `ENQUEUE_WAIT`
    /// and `ACK_TIMEOUT` bound its waits.
    Working,
}

/// The state of one open connection, or of one stream of an HTTP/2 connection, which is to its
/// request what a connection is to an HTTP/1.1 request. The core's list also holds that of a
/// connection, to wake it when a stop proceeds.
pub(super) struct ConnState {
    pub(super) origin: ClientOrigin,
    pub(super) phase: Cell<ConnPhase>,
    /// When the phase began, or when the peer last got its whole limit again.
    pub(super) since: Cell<Instant>,
    pub(super) body: BodyState,
    /// The peer has closed or the socket has failed, so there is no reason to linger.
    pub(super) gone: Cell<bool>,
    /// Between requests, and hyper holds no part of the next one. Only hyper's part of a connection
    /// reads it.
    pub(super) clean: Cell<bool>,
    /// There are answers, or parts of them, that the socket does not take now: an earlier send is
    /// still in flight. With HTTP/2 also: for which the client leaves no room.
    pub(super) unsent: Cell<bool>,
    pub(super) arrived: HeadTracker,
    /// What has come from the peer.
    pub(super) tally: Rc<Tally>,
    pub(super) standing: Standing,
    /// Set while a deadline has passed and the bytes that had arrived by then are being read.
    late_read: Cell<Option<LateRead>>,
    waker: RefCell<Option<Waker>>,
}

/// What decides whether a connection gives way when `MAX_CONNECTIONS` is reached.
#[derive(Default)]
pub(super) struct Standing {
    /// It has begun a request.
    pub(super) has_sent: Cell<bool>,
    /// The head of its first request was complete.
    has_asked: Cell<bool>,
    /// It has got its last answer and lingers since this time.
    pub(super) lingers: Cell<Option<Instant>>,
    /// When it was asked to give way while it lingered, its client had not acknowledged the answer.
    pub(super) unread: Cell<bool>,
    /// It was chosen to give way. It then closes, or says that it is busy.
    asked: Cell<Option<EvictionReason>>,
}

/// The body that a connection is receiving, if it is.
#[derive(Default)]
pub(super) struct BodyState {
    stream: Weak<ClientStream>,
    /// What has arrived, from the first read to the last. Taken away when the body is evicted.
    pub(super) bytes: RefCell<Option<ChargedBytes>>,
    /// The length of what has arrived.
    pub(super) received: Cell<usize>,
    /// Its place in a list of [`super::body_memory::BodyMemory`].
    pub(super) listed: Cell<Option<Listed>>,
    /// Why the rest of it is not waited for.
    end: Cell<Option<BodyEnd>>,
    /// The [`BODY_RATE_WINDOW`] that is being measured: when it began, …
    window: Cell<Option<Instant>>,
    /// … and what had arrived by then.
    window_received: Cell<usize>,
}

/// When a listed body last gained, and where it is listed.
#[derive(Clone, Copy)]
pub(super) struct Listed {
    pub(super) token: usize,
    pub(super) large: bool,
    /// How much had arrived …
    pub(super) received: usize,
    /// … at this time.
    pub(super) gained: Instant,
    /// The longest time between two gains so far, of those in which it had not stalled.
    pub(super) longest_gap: Duration,
}

/// Why a body is not waited for any longer. Each is answered 408.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEnd {
    /// `BODY_TIMEOUT` has passed.
    Overdue,
    /// Slower than `BODY_RATE_MIN`.
    TooSlow,
    /// It had stalled, and others needed its memory.
    Evicted,
}

impl BodyState {
    /// The memory that it holds. `None` if it holds none, or if bytes are being appended just now.
    pub(super) fn held(&self) -> Option<usize> {
        self.bytes.try_borrow().ok()?.as_ref().map(ChargedBytes::retained)
    }

    /// How much of it has arrived, what has come of an incomplete TLS record included: by this a
    /// client is judged. When the record is complete it goes down by what encrypting has added.
    pub(super) fn progress(&self) -> usize {
        self.received.get() + self.stream.upgrade().map_or(0, |stream| stream.partial())
    }

    /// Bytes of it that have arrived and are unread; the peer's end counts as one.
    pub(super) fn arrived(&self) -> usize {
        self.stream.upgrade().map_or(0, |stream| stream.arrived())
    }
}

/// How far the bytes that had arrived at a deadline have been read since.
#[derive(Clone, Copy)]
struct LateRead {
    /// Value of [`Tally::received`] once all of them are read.
    until: u64,
    /// Value of [`Tally::received`] at the last poll.
    taken: u64,
    /// Polls since the last one that saw progress.
    idle_polls: u32,
}

impl LateRead {
    /// A receive needs the kernel and one turn of the driver. Bytes that are unread after that are
    /// not wanted.
    const IDLE_POLLS_MAX: u32 = 3;
}

impl ConnState {
    /// The state of a connection that was just accepted.
    pub(super) fn new(stream: &Rc<ClientStream>) -> Rc<ConnState> {
        let origin = ClientOrigin::new(stream.peer_ip());
        let body = BodyState { stream: Rc::downgrade(stream), ..BodyState::default() };
        Rc::new(ConnState::begin(origin, body, Rc::default()))
    }

    /// The state of a stream that begins.
    pub(super) fn of_stream(link: Rc<H2Link>, tally: Rc<Tally>) -> Rc<ConnState> {
        let origin = ClientOrigin::of_stream(link);
        let state = ConnState::begin(origin, BodyState::default(), tally);
        state.phase.set(ConnPhase::Head);
        Rc::new(state)
    }

    fn begin(origin: ClientOrigin, body: BodyState, tally: Rc<Tally>) -> ConnState {
        ConnState {
            origin,
            body,
            standing: Standing::default(),
            arrived: HeadTracker::default(),
            tally,
            late_read: Cell::new(None),
            phase: Cell::new(ConnPhase::Idle),
            since: Cell::new(rt::now()),
            gone: Cell::new(false),
            clean: Cell::new(true),
            unsent: Cell::new(false),
            waker: RefCell::new(None),
        }
    }

    /// Whether it is that of a stream.
    pub(super) fn is_stream(&self) -> bool {
        self.origin.stream_of().is_some()
    }

    /// What is remembered of the current request's client.
    pub(super) fn remembered(&self) -> &Remembered {
        let of_link = self.origin.stream_of().and_then(|link| link.remembered(self.peer()));
        of_link.unwrap_or(&self.tally.remembered)
    }

    /// The rest of a body is not wanted. That of a stream is read and dropped meanwhile, so that its
    /// client, which is still sending, gets the answer.
    pub(super) fn leave_unread(&self, body: Incoming) {
        if let Some(link) = self.origin.stream_of() {
            link.drop_rest(body);
        }
    }

    /// When it was last known that nothing of the body had arrived that was not read. Not later than
    /// `now`.
    pub(super) fn was_read_at(&self, now: Instant) -> Instant {
        self.origin.stream_of().map_or(now, |link| link.was_read_at(now))
    }

    /// The request of a trusted proxy has been answered. What came of its body on a stream counts as
    /// received from its client, and no longer from the proxy.
    pub(super) fn claim_received(&self) {
        if let Some(link) = self.origin.stream_of() {
            link.conn.tally.cede(self.body.received.get(), &self.tally);
        }
    }

    /// The exact address of the current request's client, between requests that of the
    /// connection's. `None` if it is not known: the connection was reset at once.
    pub(super) fn client(&self) -> Option<IpAddr> {
        Some(self.origin.client()).filter(|address| !address.is_unspecified())
    }

    /// The connection, if its client has a certificate.
    pub(super) fn certificate(&self) -> Option<Rc<ClientStream>> {
        let conn = self.origin.stream_of().map_or(self, |link| &link.conn);
        if !conn.origin.has_certificate() {
            return None;
        }
        conn.body.stream.upgrade()
    }

    /// What counts as the current request's client, between requests as the connection's.
    pub(super) fn peer(&self) -> Peer {
        Peer::of(self.origin.client())
    }

    /// What counts as the client that the connection comes from, whose requests it may carry or, as
    /// a trusted proxy, those of others.
    pub(super) fn connection_peer(&self) -> Peer {
        Peer::of(self.origin.connection())
    }

    /// Makes the connection check the core's stop state again.
    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Remembers the connection's task, for [`ConnState::wake`].
    pub(super) fn keep_waker(&self, cx: &Context<'_>) {
        keep_waker(&mut self.waker.borrow_mut(), cx);
    }

    /// Begins a phase at `now`.
    pub(super) fn enter(&self, phase: ConnPhase, now: Instant) {
        self.phase.set(phase);
        self.since.set(now);
        self.late_read.set(None);
    }

    /// Whether the socket has not taken every answer. If so, the task is woken when it has taken
    /// more.
    pub(super) fn is_sending(&self, cx: &mut Context<'_>, stream: &ClientStream) -> bool {
        self.unsent.get() || stream.poll_sent(cx).is_pending()
    }

    /// Since when an idle connection is judged, and its limit: `IDLE_TIMEOUT`, before its first
    /// request `HEADER_TIMEOUT`, or less once a stop has begun.
    pub(super) fn idle_limit(
        &self,
        cx: &mut Context<'_>,
        stream: &ClientStream,
        stop: &Stop,
        config: &Config,
    ) -> (Instant, Duration) {
        let since = self.since.get();
        let idle = match self.standing.has_sent.get() {
            true => config.idle_timeout,
            false => config.header_timeout,
        };
        match stop.began.get() {
            None => (since, idle),
            Some(began) if self.is_sending(cx, stream) => {
                (since.max(began), LINGER_TIME_MAX.min(idle))
            }
            Some(began) => (since.max(began), STOP_IDLE_GRACE.min(idle)),
        }
    }

    /// Ready once an incomplete head is overdue, with what ends the connection: mostly a 408. That
    /// must follow the answers before it, so a client that does not read those gets
    /// [`LINGER_TIME_MAX`] more, like one whose connection closes, and then no 408. `None` if this
    /// process was paused.
    pub(super) fn poll_head_overdue(
        &self,
        cx: &mut Context<'_>,
        stream: &ClientStream,
        alarm: &mut Alarm,
        now: Instant,
        header_timeout: Duration,
    ) -> Poll<Option<ConnEnd>> {
        let limit = (self.since.get(), header_timeout);
        if !ready!(self.poll_overdue(cx, stream, alarm, now, limit)) {
            return Poll::Ready(None);
        }
        if !self.unsent.get() {
            return Poll::Ready(Some(ConnEnd::HeadOverdue));
        }
        let deadline = self.since.get() + header_timeout + LINGER_TIME_MAX;
        alarm.poll(cx, now, deadline).map(|()| Some(ConnEnd::IdleOverdue))
    }

    /// Ready with true once the peer has had `limit` since `since` and all that had arrived by then
    /// has been read; it stays so until a phase begins. Ready with false if this process was paused:
    /// then the peer gets the whole limit again.
    pub(super) fn poll_overdue(
        &self,
        cx: &mut Context<'_>,
        stream: &ClientStream,
        alarm: &mut Alarm,
        now: Instant,
        (since, limit): (Instant, Duration),
    ) -> Poll<bool> {
        let deadline = since + limit;
        ready!(alarm.poll(cx, now, deadline));
        let late_read = self.late_read.get();
        if late_read.is_none() && was_paused(limit, rt::since(deadline)) {
            self.since.set(rt::now());
            self.body.window.set(None);
            return Poll::Ready(false);
        }
        stream.net().turn_now();
        let (arrived, taken) = (stream.arrived(), self.tally.received());
        let first = LateRead { until: taken + arrived as u64, taken, idle_polls: 0 };
        let mut late_read = late_read.unwrap_or(first);
        late_read.idle_polls = if taken > late_read.taken { 0 } else { late_read.idle_polls + 1 };
        late_read.taken = taken;
        let is_stuck = late_read.idle_polls > LateRead::IDLE_POLLS_MAX;
        self.late_read.set(Some(late_read));
        if arrived == 0 || taken >= late_read.until || is_stuck {
            return Poll::Ready(true);
        }
        // Other tasks run before the next poll.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// A deadline was acted on; the next one reads anew what has arrived by then.
    pub(super) fn deadline_acted_on(&self) {
        self.late_read.set(None);
    }

    /// Whether the head of its first request was complete.
    pub(super) fn has_asked(&self) -> bool {
        self.standing.has_asked.get()
    }

    /// A request of an HTTP/2 connection begins.
    pub(super) fn stream_begins(&self) {
        self.standing.has_asked.set(true);
    }

    /// The process was paused: the peer gets the whole time for its body again.
    pub(super) fn begins_again(&self, now: Instant) {
        self.since.set(now);
        self.body.window.set(None);
    }

    /// To be called when nothing that has arrived can be read. Between two requests an incomplete
    /// TLS record then begins a head, as its first bytes do on a plain connection. If it turns out
    /// to have no data (new keys of the client, say), the connection is idle as before: such records
    /// prolong nothing. Before the first request, which has `HEADER_TIMEOUT` anyway, it stays in its
    /// head.
    pub(super) fn record_begins_head(&self, stream: &ClientStream) {
        let is_partial = stream.partial() > 0;
        match self.phase.get() {
            ConnPhase::Idle if is_partial => {
                self.arrived.due.set(Some(self.since.get()));
                self.enter(ConnPhase::Head, rt::turn_now());
                self.standing.has_sent.set(true);
            }
            ConnPhase::Head if !is_partial && self.has_asked() => {
                if let Some(since) = self.arrived.due.take() {
                    self.enter(ConnPhase::Idle, since);
                }
            }
            _ => {}
        }
    }

    /// The head is complete; the body is read from now on.
    pub(super) fn body_begins(&self, now: Instant) {
        self.enter(ConnPhase::Body, now);
        self.standing.has_asked.set(true);
        self.body.received.set(0);
        self.body.window.set(None);
        self.body.window_received.set(0);
        self.body.end.set(None);
    }

    /// Since when a body is judged, its limit, and what its end then means: `BODY_TIMEOUT`, or the
    /// rest of a [`BODY_RATE_WINDOW`], whichever comes first.
    pub(super) fn body_limit(&self, config: &Config) -> ((Instant, Duration), BodyEnd) {
        let whole = (self.since.get(), config.body_timeout);
        let window = (self.body.window.get().unwrap_or(whole.0), BODY_RATE_WINDOW);
        if config.body_rate_min == 0 || whole.0 + whole.1 <= window.0 + window.1 {
            (whole, BodyEnd::Overdue)
        } else {
            (window, BodyEnd::TooSlow)
        }
    }

    /// Whether as much of the body has arrived in a [`BODY_RATE_WINDOW`] as `rate_min` bytes a
    /// second demand. If so, the next window begins at `now`.
    pub(super) fn keeps_pace(&self, rate_min: u64, now: Instant) -> bool {
        let progress = self.body.progress();
        let gained = progress.saturating_sub(self.body.window_received.get()) as u64;
        let enough = gained >= rate_min.saturating_mul(BODY_RATE_WINDOW.as_secs());
        if enough {
            self.body.window.set(Some(now));
            self.body.window_received.set(progress);
            self.late_read.set(None);
        }
        enough
    }

    /// The rest of the body is not waited for. The request answers this itself when it is polled
    /// next.
    pub(super) fn end_body(&self, end: BodyEnd) {
        self.body.end.set(Some(end));
        self.phase.set(ConnPhase::Working);
    }

    /// Ready once the rest of the body is not waited for. It needs no waker: the connection polls
    /// the request right after [`ConnState::end_body`].
    pub(super) async fn body_end(&self) -> BodyEnd {
        poll_fn(|_| self.body.end.get().map_or(Poll::Pending, Poll::Ready)).await
    }

    /// The whole body has arrived. `Working` has no deadline here, so `since` stays as it is.
    pub(super) fn body_is_whole(&self) {
        self.phase.set(ConnPhase::Working);
        self.body.end.set(None);
    }

    /// Since when the connection has been idle, or its head is incomplete; `None` from the end of a
    /// head to the end of its answer. One whose client does not read its answers gets
    /// [`LINGER_TIME_MAX`] for that, like a connection that closes.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let reading = if self.unsent.get() { LINGER_TIME_MAX } else { Duration::ZERO };
        self.is_between_requests().then(|| self.since.get() + reading)
    }

    /// What the eviction order wants to know.
    pub(super) fn activity(&self) -> ConnActivity {
        let in_first_head = self.is_between_requests() && !self.standing.has_asked.get();
        ConnActivity { idle_since: self.idle_since(), in_first_head }
    }

    /// No request has been received that is to be answered.
    fn is_between_requests(&self) -> bool {
        matches!(self.phase.get(), ConnPhase::Idle | ConnPhase::Head)
    }

    /// Asks the connection to give way to another one.
    pub(super) fn ask_to_close(&self, reason: EvictionReason) {
        self.standing.asked.set(Some(reason));
        self.wake();
    }

    /// The answer to [`ConnState::ask_to_close`], if it was called: whether the connection closes,
    /// which it does only if nothing has arrived and its client has got every answer. One that
    /// lingers closes whatever has arrived, and does not insist on the answer a second time.
    pub(super) fn gives_way(&self, stream: &ClientStream) -> Option<(EvictionReason, bool)> {
        let reason = self.standing.asked.take()?;
        // What has arrived may be known to the kernel only.
        stream.net().turn_now();
        if let Some(since) = self.standing.lingers.get() {
            let long_enough = rt::since(since) >= LINGER_LEAST;
            let closes = long_enough && (self.standing.unread.get() || self.has_read(stream));
            self.standing.unread.set(long_enough && !closes);
            return Some((EvictionReason::Lingering, closes));
        }
        let is_free = match reason {
            EvictionReason::Lingering => false,
            EvictionReason::NeverSent => {
                !self.standing.has_sent.get() && self.phase.get() == ConnPhase::Idle
            }
            EvictionReason::FirstHead => {
                self.activity().in_first_head && rt::since(self.since.get()) >= FIRST_HEAD_LEAST
            }
            EvictionReason::BusiestPeer | EvictionReason::LongestIdle => {
                // It may have served a request since it was chosen.
                let idle = self.idle_since().map_or(Duration::ZERO, rt::since);
                idle >= LINGER_TIME_MAX || idle >= IDLE_LEAST && self.has_read(stream)
            }
        };
        let closes = is_free && self.is_between_requests() && stream.arrived() == 0;
        Some((reason, closes))
    }

    /// Whether the client's host has acknowledged every answer.
    fn has_read(&self, stream: &ClientStream) -> bool {
        !self.unsent.get() && stream.is_acknowledged()
    }

    /// The answer is ready. `length` is the length of the request's body, if known.
    pub(super) fn request_ended(&self, length: Option<u64>, now: Instant) {
        match self.origin.stream_of() {
            None => self.clean.set(self.arrived.end_of_request(length)),
            Some(link) => link.request_ended(now),
        }
        self.enter(ConnPhase::Idle, now);
    }
}
