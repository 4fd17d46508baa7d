//! The phase of a connection and when it began: state that its deadlines, its request and its
//! socket share.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use super::head_tracker::HeadTracker;
use super::peers::Tally;
use crate::deadline::{Alarm, was_paused};
use crate::http::{LINGER_TIME_MAX, STOP_IDLE_GRACE};
use crate::net::Stream;
use crate::rt;
use crate::stop::Stop;
use crate::sync::keep_waker;

/// What a connection is waiting for; each phase has its own deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnPhase {
    /// Between requests: closed without an answer after `IDLE_TIMEOUT`, during a stop after
    /// [`STOP_IDLE_GRACE`].
    Idle,
    /// Part of a head has arrived: 408 after `HEADER_TIMEOUT`.
    Head,
    /// A body is being read: 408 after `BODY_TIMEOUT`.
    Body,
    /// The request is being handled. `ENQUEUE_WAIT` and `ACK_TIMEOUT` bound this phase.
    Working,
}

/// The state of one open connection. The core's list also holds it, to wake the connection when a
/// stop proceeds.
pub(super) struct ConnState {
    /// The peer's address, an IPv4 one in its own form.
    pub(super) peer: IpAddr,
    pub(super) phase: Cell<ConnPhase>,
    /// When the phase began, or when the peer last got its whole limit again.
    pub(super) since: Cell<Instant>,
    body_overdue: Cell<bool>,
    /// The peer has closed or the socket has failed, so there is no reason to linger.
    pub(super) gone: Cell<bool>,
    /// Between requests, and hyper holds no part of the next one.
    pub(super) clean: Cell<bool>,
    /// hyper has bytes to write that the socket does not take now.
    pub(super) unsent: Cell<bool>,
    pub(super) arrived: HeadTracker,
    /// What has come from the peer.
    pub(super) tally: Tally,
    /// Set while a deadline has passed and the bytes that had arrived by then are being read.
    late_read: Cell<Option<LateRead>>,
    waker: RefCell<Option<Waker>>,
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
    pub(super) fn new(peer: IpAddr) -> Rc<ConnState> {
        Rc::new(ConnState {
            peer,
            arrived: HeadTracker::default(),
            tally: Tally::default(),
            late_read: Cell::new(None),
            phase: Cell::new(ConnPhase::Idle),
            since: Cell::new(rt::now()),
            body_overdue: Cell::new(false),
            gone: Cell::new(false),
            clean: Cell::new(true),
            unsent: Cell::new(false),
            waker: RefCell::new(None),
        })
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

    /// Since when an idle connection is judged, and its limit: `idle`, or less once a stop has
    /// begun.
    pub(super) fn idle_limit(&self, stop: &Stop, idle: Duration) -> (Instant, Duration) {
        let since = self.since.get();
        match stop.began.get() {
            None => (since, idle),
            Some(began) if self.unsent.get() => (since.max(began), LINGER_TIME_MAX.min(idle)),
            Some(began) => (since.max(began), STOP_IDLE_GRACE.min(idle)),
        }
    }

    /// Ready with true once the peer has had `limit` since `since` and all that had arrived by then
    /// has been read. Ready with false if this process was paused: then the peer gets the whole
    /// limit again.
    pub(super) fn poll_overdue(
        &self,
        cx: &mut Context<'_>,
        stream: &Stream,
        alarm: &mut Alarm,
        (since, limit): (Instant, Duration),
    ) -> Poll<bool> {
        let deadline = since + limit;
        ready!(alarm.poll(cx, deadline));
        let late_read = self.late_read.get();
        if late_read.is_none() && was_paused(limit, rt::since(deadline)) {
            self.since.set(rt::now());
            return Poll::Ready(false);
        }
        stream.net().turn_now();
        let (arrived, taken) = (stream.arrived(), self.tally.received());
        let first = LateRead { until: taken + arrived as u64, taken, idle_polls: 0 };
        let mut late_read = late_read.unwrap_or(first);
        late_read.idle_polls = if taken > late_read.taken { 0 } else { late_read.idle_polls + 1 };
        late_read.taken = taken;
        let is_stuck = late_read.idle_polls > LateRead::IDLE_POLLS_MAX;
        if arrived == 0 || taken >= late_read.until || is_stuck {
            return Poll::Ready(true);
        }
        self.late_read.set(Some(late_read));
        // Other tasks run before the next poll.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The head is complete; the body is read from now on.
    pub(super) fn body_begins(&self, now: Instant) {
        self.enter(ConnPhase::Body, now);
        self.body_overdue.set(false);
    }

    /// `BODY_TIMEOUT` has passed. The request answers this itself when it is polled next.
    pub(super) fn set_body_overdue(&self) {
        self.body_overdue.set(true);
        self.phase.set(ConnPhase::Working);
    }

    /// Ready once the body is overdue. It needs no waker: the connection polls the request right
    /// after it has set this.
    pub(super) async fn body_overdue(&self) {
        poll_fn(|_| if self.body_overdue.get() { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// The whole body has arrived. `Working` has no deadline here, so `since` stays as it is.
    pub(super) fn body_is_whole(&self) {
        self.phase.set(ConnPhase::Working);
        self.body_overdue.set(false);
    }

    /// The answer is ready. `length` is the length of the request's body, if known.
    pub(super) fn request_ended(&self, length: Option<u64>, now: Instant) {
        self.clean.set(self.arrived.end_of_request(length));
        self.enter(ConnPhase::Idle, now);
    }
}
