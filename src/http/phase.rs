//! What a connection is waiting for, and since when: state that its deadlines, its request and its socket share.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use super::head_tracker::HeadTracker;
use crate::deadline::{Alarm, was_paused};
use crate::http::{LINGER_TIME_MAX, STOP_IDLE_GRACE};
use crate::net::Stream;
use crate::rt;
use crate::stop::Stop;
use crate::sync::keep_waker;

/// What a connection is waiting for; each phase has its own deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnPhase {
    /// Between requests: closed silently after `IDLE_TIMEOUT`, during a stop after [`STOP_IDLE_GRACE`].
    Idle,
    /// Some bytes of a head have arrived: 408 after `HEADER_TIMEOUT`.
    Head,
    /// A body is being read: 408 after `BODY_TIMEOUT`.
    Body,
    /// The request waits for room or for the store, or its answer is being made; bounded by `ENQUEUE_WAIT` and
    /// `ACK_TIMEOUT`.
    Working,
}

/// What is known of one open connection; also held by the core's list, to wake it when a stop goes on.
pub(super) struct ConnState {
    pub(super) phase: Cell<ConnPhase>,
    pub(super) since: Cell<Instant>,
    body_overdue: Cell<bool>,
    /// The peer has closed or the socket has failed: nothing to linger for.
    pub(super) gone: Cell<bool>,
    /// Between requests, and hyper holds nothing of the next one.
    pub(super) clean: Cell<bool>,
    /// hyper has more to write than the socket takes now.
    pub(super) unsent: Cell<bool>,
    pub(super) arrived: HeadTracker,
    /// Bytes read from the socket.
    pub(super) taken: Cell<u64>,
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

impl ConnState {
    pub(super) fn new() -> Rc<ConnState> {
        Rc::new(ConnState {
            arrived: HeadTracker::default(),
            taken: Cell::new(0),
            look: Cell::new(None),
            phase: Cell::new(ConnPhase::Idle),
            since: Cell::new(rt::now()),
            body_overdue: Cell::new(false),
            gone: Cell::new(false),
            clean: Cell::new(true),
            unsent: Cell::new(false),
            waker: RefCell::new(None),
        })
    }

    /// Makes the connection look at the core's stop state again.
    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    pub(super) fn keep_waker(&self, cx: &Context<'_>) {
        keep_waker(&mut self.waker.borrow_mut(), cx);
    }

    pub(super) fn enter(&self, phase: ConnPhase, now: Instant) {
        self.phase.set(phase);
        self.since.set(now);
        self.look.set(None);
    }

    /// From when on an idle connection has how long: `idle`, and less once a stop has begun.
    pub(super) fn idle_limit(&self, stop: &Stop, idle: Duration) -> (Instant, Duration) {
        let since = self.since.get();
        match stop.began.get() {
            None => (since, idle),
            Some(began) if self.unsent.get() => (since.max(began), LINGER_TIME_MAX.min(idle)),
            Some(began) => (since.max(began), STOP_IDLE_GRACE.min(idle)),
        }
    }

    /// Ready with true once the peer has had `limit` since `since`, and all that had arrived by then has been read; with
    /// false when it gets the whole limit again, because this process was paused.
    pub(super) fn poll_overdue(
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
        stream.net().turn_now();
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

    /// A request's head is whole, and its body is read from now on.
    pub(super) fn body_begins(&self, now: Instant) {
        self.enter(ConnPhase::Body, now);
        self.body_overdue.set(false);
    }

    /// The body has come too late: the request answers this itself when it is polled next.
    pub(super) fn set_body_overdue(&self) {
        self.body_overdue.set(true);
        self.phase.set(ConnPhase::Working);
    }

    /// Ready once the driver has found the body overdue; the driver polls the request right after setting it.
    pub(super) async fn body_overdue(&self) {
        poll_fn(|_| if self.body_overdue.get() { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// The client has done its part; what follows has no deadline of its own, so the time it began is not needed.
    pub(super) fn body_is_whole(&self) {
        self.phase.set(ConnPhase::Working);
        self.body_overdue.set(false);
    }

    /// The answer is made, to a request with a body of `length` bytes if that is known.
    pub(super) fn request_ended(&self, length: Option<u64>, now: Instant) {
        self.clean.set(self.arrived.end_of_request(length));
        self.enter(ConnPhase::Idle, now);
    }
}
