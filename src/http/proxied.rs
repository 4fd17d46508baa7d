//! The beginning of a connection to a listener with `proxy=`: it must come from one of the
//! listener's networks and begin with a PROXY header, which says whose connection it is. Otherwise it
//! is closed, counted and, at most once a minute for each reason, logged.
//!
//! Not an error is a connection that ends before its first byte, as those of health checks do, and
//! one that gives way to others or to a stop.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, ready};

use super::client_stream::ClientStream;
use super::phase::ConnState;
use super::proxy_header::{self, HEADER_BYTES_MAX, ProxyHeader, ProxyHeaderError};
use super::server::{RegisteredConn, Server};
use crate::config::Networks;
use crate::deadline::Alarm;
use crate::metrics::ProxyRefusal;
use crate::rt;

/// A connection that was just accepted.
pub(super) struct ProxiedConn<'a> {
    pub(super) server: &'a Server,
    pub(super) state: &'a ConnState,
    pub(super) listed: &'a RegisteredConn<'a>,
    pub(super) stream: &'a ClientStream,
}

/// Why it is closed.
enum HeaderEnd {
    /// It ended before its first byte, gives way, or the server stops.
    Quiet,
    Malformed(ProxyHeaderError),
    /// It ended within the header.
    Cut,
    Overdue,
}

impl ProxiedConn<'_> {
    /// Reads the header, and nothing of what follows it. False if the connection is to be closed.
    pub(super) async fn begin(
        &self,
        address: SocketAddr,
        proxies: &Networks,
        alarm: &mut Alarm,
    ) -> bool {
        let proxy = self.state.origin.connection();
        if !proxies.contains(proxy) {
            // It may have been reset before its address could be read, which says nothing.
            if !proxy.is_unspecified() {
                self.refuse(ProxyRefusal::Stranger, || stranger(proxy, address));
            }
            return false;
        }
        let end = match self.read_header(alarm).await {
            Ok(header) => {
                if let Some(client) = header.client {
                    self.state.origin.is_proxied_for(client);
                    self.listed.is_proxied(self.state);
                }
                return true;
            }
            Err(end) => end,
        };
        let said = |what: &dyn std::fmt::Display| {
            format!(
                "a connection of {proxy} to {address} was closed: {what}; have this proxy send one \
                 (send-proxy-v2 in HAProxy, proxy_protocol on in nginx's stream module), or leave \
                 proxy= out of LISTEN"
            )
        };
        match end {
            HeaderEnd::Quiet => {}
            HeaderEnd::Malformed(error) => {
                self.refuse(ProxyRefusal::Malformed, || said(&error));
            }
            HeaderEnd::Cut => {
                self.refuse(ProxyRefusal::Malformed, || said(&"it ended within its PROXY header"));
            }
            HeaderEnd::Overdue => {
                self.refuse(ProxyRefusal::Timeout, || {
                    said(&"it sent no whole PROXY header within HEADER_TIMEOUT")
                });
            }
        }
        false
    }

    async fn read_header(&self, alarm: &mut Alarm) -> Result<ProxyHeader, HeaderEnd> {
        let mut reader = HeaderReader::default();
        poll_fn(|cx| self.poll_header(cx, &mut reader, alarm)).await
    }

    fn poll_header(
        &self,
        cx: &mut Context<'_>,
        reader: &mut HeaderReader,
        alarm: &mut Alarm,
    ) -> Poll<Result<ProxyHeader, HeaderEnd>> {
        let ProxiedConn { server, state, listed, stream } = self;
        state.keep_waker(cx);
        if server.stop.closed.get() || listed.gives_way(server, state, stream) {
            return Poll::Ready(Err(HeaderEnd::Quiet));
        }
        loop {
            let mut parsed = Ok(None);
            let read = stream.poll_read_with(cx, |arrived| {
                let (taken, found) = reader.take(arrived);
                parsed = found;
                taken
            });
            match read {
                Poll::Ready(Ok(0) | Err(_)) => {
                    let began = !reader.held.is_empty();
                    return Poll::Ready(Err(if began { HeaderEnd::Cut } else { HeaderEnd::Quiet }));
                }
                Poll::Ready(Ok(taken)) => {
                    state.tally.received_more(taken);
                    match parsed {
                        Ok(None) => continue,
                        Ok(Some(header)) => return Poll::Ready(Ok(header)),
                        Err(error) => return Poll::Ready(Err(HeaderEnd::Malformed(error))),
                    }
                }
                Poll::Pending => {}
            }
            let limit = state.idle_limit(cx, stream, &server.stop, &server.config);
            if ready!(state.poll_overdue(cx, stream, alarm, rt::now(), limit)) {
                let stops = server.stop.began.get().is_some();
                return Poll::Ready(Err(if stops { HeaderEnd::Quiet } else { HeaderEnd::Overdue }));
            }
        }
    }

    /// Counts and logs a connection that is closed.
    fn refuse(&self, reason: ProxyRefusal, text: impl FnOnce() -> String) {
        self.server.cells.proxy_refusals[reason as usize].inc();
        self.server.conns.logs.proxy_refusals.borrow_mut()[reason as usize].warn(text);
    }
}

fn stranger(peer: IpAddr, address: SocketAddr) -> String {
    format!(
        "a connection of {peer} to {address} was closed: it is in none of the proxy= networks of \
         this address; add its network to LISTEN if it is a proxy, or have it connect to an address \
         without proxy="
    )
}

/// What has arrived of a header. One that arrives at once is not copied.
#[derive(Default)]
struct HeaderReader {
    held: Vec<u8>,
}

impl HeaderReader {
    /// Takes bytes up to the end of the header, at least one. Says how many, and what the header is
    /// if that is known now.
    fn take(&mut self, arrived: &[u8]) -> (usize, Result<Option<ProxyHeader>, ProxyHeaderError>) {
        let before = self.held.len();
        let room = HEADER_BYTES_MAX - before;
        let arrived = &arrived[..arrived.len().min(room)];
        let parsed = match before {
            0 => proxy_header::parse(arrived),
            _ => {
                self.held.extend_from_slice(arrived);
                proxy_header::parse(&self.held)
            }
        };
        let taken = match &parsed {
            Ok(Some(header)) => header.length - before,
            Ok(None) | Err(_) => arrived.len(),
        };
        if before == 0 && parsed == Ok(None) {
            self.held.extend_from_slice(arrived);
        }
        (taken, parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::Rng;

    /// However a stream is cut into reads, the header is found, and what follows it is left.
    #[test]
    fn a_header_is_found_wherever_it_is_cut() {
        let seed = rt::random();
        println!("seed {seed}");
        let mut rng = Rng::with_seed(seed);
        let line = b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n";
        let binary =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f\xc0\0\x02\x07\x0a\0\0\x01\0\x01\0\x02\x04\0\0";
        for (header, body) in
            [(&line[..], &b"POST /"[..]), (binary, b"PROXY UNKNOWN\r\n"), (line, b"")]
        {
            let whole = [header, body].concat();
            for _ in 0..2000 {
                let (mut reader, mut at) = (HeaderReader::default(), 0);
                let found = loop {
                    assert!(at < header.len(), "seed {seed}");
                    let length = rng.usize(1..=whole.len() - at);
                    let length = if rng.bool() { length } else { 1 };
                    let (taken, parsed) = reader.take(&whole[at..at + length]);
                    assert!((1..=length).contains(&taken), "seed {seed}");
                    at += taken;
                    if let Some(found) = parsed.unwrap() {
                        break found;
                    }
                    assert_eq!(taken, length, "seed {seed}");
                };
                assert_eq!(at, header.len(), "seed {seed}");
                assert_eq!(found.client, Some([192, 0, 2, 7].into()));
                assert_eq!(found.length, header.len());
            }
        }
    }

    #[test]
    fn no_more_is_held_than_the_longest_header() {
        let mut reader = HeaderReader::default();
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x20\0\x0f\xf0".to_vec();
        header.resize(HEADER_BYTES_MAX, 0);
        let (last, rest) = header.split_last().unwrap();
        assert_eq!(reader.take(rest), (rest.len(), Ok(None)));
        let found = ProxyHeader { client: None, length: HEADER_BYTES_MAX };
        assert_eq!(reader.take(&[*last; 9000]), (1, Ok(Some(found))));
        assert!(reader.held.len() <= HEADER_BYTES_MAX);
    }
}
