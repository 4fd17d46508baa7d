//! Rounds: after a look at what has arrived, each stream is polled that it has made ready, before
//! anything is concluded from what it has read, and before more is read.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::link::{H2Link, StreamTask};
use crate::http::server::Server;
use crate::rt;

/// The streams of one connection.
pub(super) struct StreamRounds<'a> {
    server: &'a Server,
    link: &'a Rc<H2Link>,
    streams: FuturesUnordered<PolledTask<'a>>,
    /// The current round is over, or none has begun.
    is_over: bool,
    /// [`H2Link::polls`] from which on every stream was polled that was ready when the round began:
    /// they are polled in turn.
    until: u64,
}

impl<'a> StreamRounds<'a> {
    pub(super) fn new(server: &'a Server, link: &'a Rc<H2Link>) -> StreamRounds<'a> {
        StreamRounds { server, link, streams: FuturesUnordered::new(), is_over: true, until: 0 }
    }

    /// Whether every stream was polled that the last look has made ready.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Polls streams, at least one if any is ready, until the round is over or it is time to look at
    /// the sockets. Returns how many have ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> usize {
        let StreamRounds { server, link, streams, is_over, until } = self;
        if std::mem::replace(is_over, false) {
            let all = streams.len() + link.spawned.borrow().len();
            *until = link.polls.get() + all as u64;
        }
        let mut ended = 0;
        loop {
            // One by one: the first poll of each is a request's head.
            let next = link.spawned.borrow_mut().pop_front();
            if let Some(task) = next {
                streams.push(PolledTask { task, server, link });
            }
            let before = link.polls.get();
            let polled = streams.poll_next_unpin(cx);
            // It also returns if two of the streams have yielded, whoever else is ready.
            let is_idle = polled.is_pending() && link.polls.get() == before;
            ended += usize::from(matches!(polled, Poll::Ready(Some(()))));
            let all_polled = is_idle || streams.is_empty() || link.polls.get() >= *until;
            if all_polled && link.spawned.borrow().is_empty() {
                *is_over = true;
                return ended;
            }
            if rt::look_is_due() {
                return ended;
            }
        }
    }
}

/// Polls a stream until nothing is left to do.
struct PolledTask<'a> {
    task: StreamTask,
    server: &'a Server,
    link: &'a Rc<H2Link>,
}

impl Future for PolledTask<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let PolledTask { task, server, link } = &mut *self;
        link.polls.set(link.polls.get() + 1);
        match task {
            StreamTask::Open(stream) => stream.poll_work(cx, server),
            StreamTask::Rest(rest) => rest.as_mut().poll(cx),
        }
    }
}
