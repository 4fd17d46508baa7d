//! The beginning of a connection to an address with TLS: its handshake, within
//! `TLS_HANDSHAKE_TIMEOUT` and with no more than `TLS_HANDSHAKES` in progress on the core. One that
//! fails is counted by its reason and closed; if an operator or a client can mend it, a line says
//! how, at most once a minute for each reason.
//!
//! A handshake is in progress from its first byte on: a connection that is silent is one of those
//! that `MAX_CONNECTIONS` closes first. At the limit one gives way (`handshakes`), so that clients that
//! do not go on keep nobody waiting for longer than [`HANDSHAKE_LEAST`], and one address no others.
//!
//! The work of a step cannot stop in between, a signature above all: some milliseconds with RSA 4096.
//! So it begins only in a turn that has not lasted long: however many clients come at once, the sockets
//! are looked at after each or two.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_rustls::rustls::{CertificateError, Error, ProtocolVersion};

use super::client_stream::{ClientStream, TlsClient};
use super::handshakes::{GivesWay, HANDSHAKE_LEAST, OpenHandshakes};
use super::peer::Peer;
use super::phase::{ConnPhase, ConnState};
use super::server::{RegisteredConn, Server};
use super::tokens::CertificateToken;
use crate::config::{ListenAddress, TlsOptions};
use crate::deadline::Alarm;
use crate::metrics::{CoreCells, HandshakeKind, TlsRefusal};
use crate::rt;
use crate::throttle::Throttle;
use crate::tls::{Agreed, HandshakeEnd, Session, SharedTls};

/// How many turns a step of a handshake waits for one that has not lasted long.
const TURNS_WAITED_MAX: usize = 256;

/// The answer to a plain request on an address with TLS: no client shows its user an alert in its place.
pub const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: text/plain; charset=utf-8\r\ncontent-length: 70\r\nconnection: close\r\n\r\n\
    this port speaks TLS: send the request to https:// instead of http://\n";

/// An address that a core listens on.
pub struct Entrance {
    /// Its place in `LISTEN`.
    pub number: usize,
    /// What makes handshakes, if it has TLS.
    pub tls: Option<Rc<TlsAcceptor>>,
}

/// Makes the handshakes of one core.
pub struct TlsAcceptor {
    shared: SharedTls,
    timeout: Duration,
    max: usize,
    cells: &'static CoreCells,
    /// Those in progress.
    open: RefCell<OpenHandshakes<Rc<OpenHandshake>>>,
    logs: RefCell<[Throttle; TlsRefusal::NAMES.len()]>,
}

/// A handshake in progress.
struct OpenHandshake {
    state: Rc<ConnState>,
    gives_way: Cell<Option<GivesWay>>,
}

/// Ends a handshake's entry in [`TlsAcceptor`] when dropped.
struct HandshakeEntry<'a> {
    acceptor: &'a TlsAcceptor,
    number: u64,
    of: Rc<OpenHandshake>,
}

impl Drop for HandshakeEntry<'_> {
    fn drop(&mut self) {
        self.acceptor.open.borrow_mut().end(self.number);
        self.acceptor.count_open();
    }
}

impl TlsAcceptor {
    /// The acceptor of one core.
    pub fn new(
        shared: SharedTls,
        options: &TlsOptions,
        cells: &'static CoreCells,
    ) -> Rc<TlsAcceptor> {
        cells.tls_handshakes_max.set(options.handshakes_max as u64);
        Rc::new(TlsAcceptor {
            shared,
            timeout: options.handshake_timeout,
            max: options.handshakes_max,
            cells,
            open: RefCell::new(OpenHandshakes::new(options.handshakes_max)),
            logs: RefCell::new(std::array::from_fn(|_| Throttle::per_minute())),
        })
    }

    /// Begins a handshake. `None` if there are as many as there may be, and none of them gives way.
    fn begin(&self, state: &Rc<ConnState>) -> Option<HandshakeEntry<'_>> {
        let of = Rc::new(OpenHandshake { state: state.clone(), gives_way: Cell::new(None) });
        let peer = state.client().map_or(Peer::Unknown, Peer::of);
        let (number, gave_way) = self.open.borrow_mut().begin(peer, rt::now(), of.clone())?;
        if let Some((other, why)) = gave_way {
            other.gives_way.set(Some(why));
            other.state.wake();
        }
        self.count_open();
        Some(HandshakeEntry { acceptor: self, number, of })
    }

    fn count_open(&self) {
        self.cells.tls_handshakes_open.set(self.open.borrow().len() as u64);
    }
}

/// A connection whose handshake is to be made.
pub(super) struct SecuredConn<'a> {
    pub(super) server: &'a Server,
    pub(super) state: &'a Rc<ConnState>,
    pub(super) listed: &'a RegisteredConn<'a>,
    pub(super) stream: &'a ClientStream,
    pub(super) acceptor: &'a TlsAcceptor,
    pub(super) address: &'a ListenAddress,
}

/// Why there is no session.
enum NoSession {
    /// The client has closed before its first byte, it gives way, or the server stops.
    Quiet,
    Refused(TlsRefusal, String),
}

impl SecuredConn<'_> {
    /// Makes the handshake.
    ///
    /// # Errors
    /// The connection is to be closed; `Some` has what its client is still to get, beside what was
    /// sent.
    pub(super) async fn begin(&self, alarm: &mut Alarm) -> Result<(), Option<&'static [u8]>> {
        let ClientStream::Tls(tls) = self.stream else { return Ok(()) };
        let (reason, why) = match self.handshake(tls, alarm).await {
            Ok(session) => {
                self.established(tls, session);
                return Ok(());
            }
            Err(NoSession::Quiet) => return Err(None),
            Err(NoSession::Refused(reason, why)) => (reason, why),
        };
        self.refused(reason, &why);
        match reason {
            TlsRefusal::PlainHttp => Err(Some(PLAIN_HTTP)),
            TlsRefusal::Closed | TlsRefusal::Timeout | TlsRefusal::Busy | TlsRefusal::GaveWay => {
                Err(None)
            }
            // The alert is on its way.
            _ => Err(Some(b"")),
        }
    }

    async fn handshake(&self, tls: &TlsClient, alarm: &mut Alarm) -> Result<Session, NoSession> {
        poll_fn(|cx| self.poll_or_overdue(cx, alarm, None, |cx| tls.stream.poll_first_byte(cx)))
            .await?;
        let Some(entry) = self.acceptor.begin(self.state) else {
            let max = self.acceptor.max;
            let why = format!(
                "{max} handshakes are in progress on this core (TLS_HANDSHAKES), and none of them for {HANDSHAKE_LEAST:?}; \
                 add cores, or raise it if clients are far away"
            );
            return Err(NoSession::Refused(TlsRefusal::Busy, why));
        };
        self.state.phase.set(ConnPhase::Head);
        let snapshot = self.acceptor.shared.load();
        let config = match self.server.conns.h2.offers_in_handshake(self.server.cells) {
            true => snapshot.ingest_h2.clone(),
            false => snapshot.ingest.clone(),
        };
        let refused = |error: Error| {
            let (reason, why) = judge(&error);
            NoSession::Refused(reason, why)
        };
        let mut session = Session::new(config).map_err(refused)?;
        let mut is_complete = false;
        while !is_complete {
            let readable = |cx: &mut Context<'_>| {
                // What was said before is what the client waits for.
                if ready!(tls.stream.poll_said(cx, &mut session)).is_err() {
                    return Poll::Ready(Err(HandshakeEnd::Closed));
                }
                tls.stream.socket().poll_readable(cx).map(Ok)
            };
            let mut readable = readable;
            poll_fn(|cx| self.poll_or_overdue(cx, alarm, Some(&entry.of), &mut readable)).await?;
            for _ in 0..TURNS_WAITED_MAX {
                if !rt::look_is_due() {
                    break;
                }
                rt::yield_now().await;
            }
            let step = |cx: &mut Context<'_>| tls.stream.poll_handshake(cx, &mut session);
            let mut step = step;
            is_complete =
                poll_fn(|cx| self.poll_or_overdue(cx, alarm, Some(&entry.of), &mut step)).await?;
        }
        Ok(session)
    }

    /// Polls one step of the handshake, and everything that ends it.
    fn poll_or_overdue<T>(
        &self,
        cx: &mut Context<'_>,
        alarm: &mut Alarm,
        open: Option<&OpenHandshake>,
        mut step: impl FnMut(&mut Context<'_>) -> Poll<Result<T, HandshakeEnd>>,
    ) -> Poll<Result<T, NoSession>> {
        let SecuredConn { server, state, listed, stream, acceptor, .. } = self;
        state.keep_waker(cx);
        if let Some(why) = open.and_then(|open| open.gives_way.get()) {
            let max = acceptor.max;
            let why = match why {
                GivesWay::Oldest => format!(
                    "it was the oldest of {max} handshakes in progress on this core (TLS_HANDSHAKES), and another one began"
                ),
                GivesWay::OfBusiest => format!(
                    "its address has the most of {max} handshakes in progress on this core (TLS_HANDSHAKES), and one of \
                     another address began"
                ),
            };
            return Poll::Ready(Err(NoSession::Refused(TlsRefusal::GaveWay, why)));
        }
        if server.stop.closed.get() || listed.gives_way(server, state, stream) {
            return Poll::Ready(Err(NoSession::Quiet));
        }
        if let Poll::Ready(done) = step(cx) {
            return Poll::Ready(done.map_err(|end| no_session(end, open.is_some())));
        }
        loop {
            let limit = match server.stop.began.get() {
                None => (state.since.get(), acceptor.timeout),
                Some(_) => state.idle_limit(cx, stream, &server.stop, &server.config),
            };
            if !ready!(state.poll_overdue(cx, stream, alarm, rt::now(), limit)) {
                continue;
            }
            if open.is_none() || server.stop.began.get().is_some() {
                return Poll::Ready(Err(NoSession::Quiet));
            }
            let why = "its handshake was not complete within TLS_HANDSHAKE_TIMEOUT".to_owned();
            return Poll::Ready(Err(NoSession::Refused(TlsRefusal::Timeout, why)));
        }
    }

    fn established(&self, tls: &TlsClient, session: Session) {
        let Agreed { version, resumed, is_h2 } = session.agreed();
        tls.is_h2.set(is_h2);
        let kind = match (version, resumed) {
            (ProtocolVersion::TLSv1_2, false) => HandshakeKind::Tls12,
            (ProtocolVersion::TLSv1_2, true) => HandshakeKind::Tls12Resumed,
            (_, false) => HandshakeKind::Tls13,
            (_, true) => HandshakeKind::Tls13Resumed,
        };
        self.acceptor.cells.tls_handshakes[kind as usize].inc();
        if let Some(certificate) = session.client_certificate() {
            let token = CertificateToken::new(certificate.common_name.as_deref());
            let is_first = tls.certificate.set(token).is_ok();
            assert!(is_first, "a connection has one handshake");
            self.state.origin.is_certified();
        }
        tls.stream.secure(session);
        self.state.enter(ConnPhase::Idle, rt::now());
    }

    /// Counts and logs a connection that is closed.
    fn refused(&self, reason: TlsRefusal, why: &str) {
        self.acceptor.cells.tls_refusals[reason as usize].inc();
        let client = self.state.client().map_or("a client".to_owned(), |ip| ip.to_string());
        let text = || said(&client, self.address.address, why);
        match reason {
            // What scans of the internet leave behind.
            TlsRefusal::Closed | TlsRefusal::NotTls | TlsRefusal::Malformed => {
                tracing::debug!("{}", text());
            }
            _ => {
                self.acceptor.logs.borrow_mut()[reason as usize].warn(text);
            }
        }
    }
}

fn said(client: &impl Display, address: SocketAddr, why: &str) -> String {
    format!("a TLS connection of {client} to {address} was closed: {why}")
}

fn no_session(end: HandshakeEnd, has_begun: bool) -> NoSession {
    let (reason, why) = match end {
        HandshakeEnd::Closed if !has_begun => return NoSession::Quiet,
        HandshakeEnd::Closed => {
            (TlsRefusal::Closed, "its client closed it within the handshake".to_owned())
        }
        HandshakeEnd::NotTls { is_http: true } => {
            let why =
                "it began with a plain HTTP request, which got 400; have this client use https://";
            (TlsRefusal::PlainHttp, why.to_owned())
        }
        HandshakeEnd::NotTls { is_http: false } => {
            (TlsRefusal::NotTls, "what it sent is neither TLS nor HTTP".to_owned())
        }
        HandshakeEnd::Failed(error) => judge(&error),
    };
    NoSession::Refused(reason, why)
}

/// The reason for which a handshake failed, and what to do.
fn judge(error: &Error) -> (TlsRefusal, String) {
    match error {
        Error::AlertReceived(alert) => (
            TlsRefusal::CertificateRefused,
            format!(
                "its client refused this server's certificate or its settings (alert {alert:?}); see that the client trusts \
                 the authority, that TLS_CERT holds the whole chain, and that the certificate has the name that the client uses"
            ),
        ),
        Error::NoCertificatesPresented => (
            TlsRefusal::ClientCertificate,
            "its client has no certificate; give it one of an authority in TLS_CLIENT_CA"
                .to_owned(),
        ),
        Error::InvalidCertificate(why) => {
            let why = match why {
                CertificateError::Other(why) => why.to_string(),
                why => why.to_string(),
            };
            (
                TlsRefusal::ClientCertificate,
                format!(
                    "its client's certificate is not accepted ({why}); it must be valid, of X.509 version 3, for \
                     client authentication, and of an authority in TLS_CLIENT_CA"
                ),
            )
        }
        Error::PeerIncompatible(why) => (
            TlsRefusal::Incompatible,
            format!(
                "its client supports nothing that this server does ({why:?}); it must support TLS 1.2 or 1.3 with an AEAD \
                 cipher, and a signature of the kind of the key in TLS_KEY"
            ),
        ),
        Error::NoApplicationProtocol => (
            TlsRefusal::Incompatible,
            "its client offers other protocols than this server speaks (ALPN): http/1.1, and h2 unless H2=off or \
             H2_CONNECTIONS are open"
                .to_owned(),
        ),
        error => (TlsRefusal::Malformed, format!("its client broke the protocol: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_plain_request_is_as_long_as_it_says() {
        let text = str::from_utf8(PLAIN_HTTP).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{text}");
        assert!(body.ends_with('\n') && body.lines().count() == 1);
    }
}
