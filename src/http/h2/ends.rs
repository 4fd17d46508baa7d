//! How a connection of HTTP/2 ends, and what its client is told.

use std::error::Error as _;
use std::future::poll_fn;
use std::task::{Poll, ready};

use super::frames::{Goodbye, NO_ERROR};
use super::link::H2Link;
use crate::deadline::within;
use crate::http::LINGER_TIME_MAX;
use crate::http::conn::{Conn, ConnEnd};
use crate::metrics::H2Closed;
use crate::metrics::tokens::TokenId;
use crate::rt;

/// How a connection ended.
pub(super) enum H2End {
    Conn(ConnEnd),
    /// Its client is to get these bytes.
    LastWords(Box<[u8]>),
}

/// Besides [`NO_ERROR`], the reason for which the server ends a connection (RFC 9113, section 7).
const ENHANCE_YOUR_CALM: u32 = 11;

impl Conn<'_> {
    /// Sends the last words, for as long as a connection lingers.
    pub(super) async fn say(self, words: &[u8]) -> ConnEnd {
        let Conn { server, state, listed, stream } = self;
        let mut rest = words;
        state.unsent.set(true);
        listed.lingers(state, rt::now());
        let said = poll_fn(|cx| {
            state.keep_waker(cx);
            if listed.gives_way(server, state, stream) {
                return Poll::Ready(false);
            }
            while !rest.is_empty() {
                match ready!(stream.poll_send(cx, rest)) {
                    Ok(sent) => rest = &rest[sent..],
                    Err(_) => return Poll::Ready(false),
                }
            }
            Poll::Ready(true)
        });
        match within(LINGER_TIME_MAX, said, || false).await {
            true => ConnEnd::Done,
            false => ConnEnd::GaveWay,
        }
    }

    /// Closes a connection for what its client does.
    pub(super) fn h2_closed(self, link: &H2Link, reason: H2Closed) -> H2End {
        let Conn { server, state, .. } = self;
        server.cells.h2_closed[reason as usize].inc();
        let client = state.client().map_or("a client".to_owned(), |ip| ip.to_string());
        server.conns.logs.h2_closed.borrow_mut()[reason as usize].warn(|| said(&client, reason));
        let status = match reason {
            H2Closed::Full => return last_words(link, NO_ERROR),
            H2Closed::HeadTimeout => 408,
            H2Closed::Resets | H2Closed::Frames | H2Closed::Protocol => 400,
        };
        state.tally.request(rt::now(), status, 0, TokenId::NONE);
        last_words(link, ENHANCE_YOUR_CALM)
    }

    /// The library has ended the connection, mostly with what it has to say to the client.
    pub(super) fn h2_ended(self, link: &H2Link, done: hyper::Result<()>) -> H2End {
        let (closed, goes, goodbye) = {
            let wire = link.wire.borrow();
            (wire.closed, wire.inbound.goes(), wire.outbound.goodbye())
        };
        // Its socket has refused to go on.
        if let Some(closed) = closed {
            return self.h2_closed(link, closed);
        }
        let is_unexpected = match &done {
            // What the client itself says of an error is none of its own.
            Err(_) => !goes || goodbye == Goodbye::Blames,
            // The library does not say that it ends for a `CONNECT` with a body.
            Ok(()) => link.has_unanswered() || !goes && goodbye == Goodbye::Unsaid,
        };
        if let Err(error) = done {
            let client = self.state.client().map(tracing::field::display);
            let cause = error.source().map(tracing::field::display);
            tracing::debug!(%error, cause, client, "HTTP/2 connection ended");
        }
        if !is_unexpected || self.state.gone.get() {
            return H2End::Conn(ConnEnd::Done);
        }
        let last = self.h2_closed(link, H2Closed::Protocol);
        match goodbye {
            Goodbye::Blames => H2End::Conn(ConnEnd::Done),
            Goodbye::Unsaid | Goodbye::Said => last,
        }
    }
}

/// The end of a connection whose client is told which of its streams were looked at.
pub(super) fn last_words(link: &H2Link, reason: u32) -> H2End {
    let wire = link.wire.borrow();
    let words = wire.outbound.go_away(wire.inbound.last_stream(), reason);
    H2End::LastWords(words.unwrap_or_default())
}

fn said(client: &str, reason: H2Closed) -> String {
    let why = match reason {
        H2Closed::Full => {
            "as many are open on this core as may be (H2_CONNECTIONS); raise it, or have this client use HTTP/1.1"
        }
        H2Closed::Resets => {
            "too many of its requests were reset, by itself or for what it sent; it attacks, or its timeout is too short"
        }
        H2Closed::Frames => {
            "it sent too many frames that are no request (pings, settings, priorities, window updates, empty ones)"
        }
        H2Closed::HeadTimeout => "the head of a request was not complete within HEADER_TIMEOUT",
        H2Closed::Protocol => "it broke the protocol, or exceeded a limit of it",
    };
    format!("an HTTP/2 connection of {client} was closed: {why}")
}
