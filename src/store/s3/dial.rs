//! From an origin to a connected byte stream: addresses, TCP, a proxy's tunnel, TLS, all within one
//! connect timeout.
//!
//! Both S3 clients connect here, and so do the probe and the credential services. Names are never
//! resolved here: they come from the control executor's snapshot (`aws::names`), because
//! `getaddrinfo` would stop the core; a name that a proxy is asked for is not resolved at all. A
//! dropped dial closes its sockets.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_lite::io::{AsyncRead, AsyncWrite};
use futures_rustls::client::TlsStream;
use futures_rustls::pki_types::ServerName;
use futures_rustls::rustls::ClientConfig;
use futures_rustls::rustls::client::Resumption;

use super::race::{self, Avoided, Memory};
use super::tunnel;
use crate::deadline::within;
use crate::net::{self, Acknowledged, Net};
use crate::queue::job::Payload;
use crate::rt;
use crate::store::s3::names::Names;
use crate::store::s3::proxies::{Proxies, Proxy};

/// TLS sessions one core remembers for resumption.
const TLS_SESSIONS_MAX: usize = 32;

/// How much of a connection's age is drawn, so that connections opened together do not retire
/// together: it lies within a fifth of `S3_CONNECTION_AGE` on either side.
const AGE_JITTER: f64 = 0.2;

/// Scheme, host and port: what a kept-alive connection can be reused for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    pub https: bool,
    /// Lower case, IPv6 literals without brackets.
    pub host: String,
    pub port: u16,
}

impl Origin {
    /// The origin of an absolute `http` or `https` URI.
    pub fn of(uri: &http::Uri) -> Option<Origin> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        Some(Origin { https, host, port })
    }
}

/// Why there is no usable connection, or why one broke. No variant holds a credential.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The name has no address, or the resolver did not answer in time.
    #[error("cannot resolve {host}: {why}")]
    Unresolved { host: String, why: String },
    /// Every address was tried; `source` is the last one's answer.
    #[error("cannot connect to {host}:{port} ({address})")]
    Unreachable { host: String, port: u16, address: SocketAddr, source: io::Error },
    #[error("no connection to {host}:{port} within {after:?}")]
    ConnectTimeout { host: String, port: u16, after: Duration },
    #[error("TLS handshake with {host}:{port} failed")]
    Tls { host: String, port: u16, source: io::Error },
    /// The connection was there and broke before a whole answer had come.
    #[error("connection to {host} broke: {why}")]
    Broken { host: String, why: String },
    #[error("no answer from {host} within {after:?}")]
    ReadTimeout { host: String, port: u16, after: Duration },
    /// What came is not an answer this client takes (too long, not HTTP).
    #[error("answer from {host} refused: {why}")]
    BadAnswer { host: String, why: String },
    /// The proxy was reached and does not connect.
    #[error("it does not connect to {host}:{port}: it answered {status} {reason}")]
    TunnelRefused { host: String, port: u16, status: u16, reason: String },
    /// Any of the others, on the way through a proxy.
    #[error("through proxy {proxy}")]
    ByProxy { proxy: String, source: Box<LinkError> },
}

impl LinkError {
    /// True where nobody was reached, which may pass by itself; what came and was not understood waits for an operator.
    pub fn may_pass(&self) -> bool {
        use io::ErrorKind::{InvalidData, InvalidInput};
        match self {
            LinkError::Unresolved { .. }
            | LinkError::Unreachable { .. }
            | LinkError::ConnectTimeout { .. }
            | LinkError::Broken { .. }
            | LinkError::ReadTimeout { .. } => true,
            // A certificate or a protocol that does not fit, and not a connection that broke under it.
            LinkError::Tls { source, .. } => !matches!(source.kind(), InvalidData | InvalidInput),
            LinkError::BadAnswer { .. } => false,
            // It could not reach the store, or is busy; every other refusal is a rule of its own.
            LinkError::TunnelRefused { status, .. } => matches!(status, 408 | 429 | 500..),
            LinkError::ByProxy { source, .. } => source.may_pass(),
        }
    }

    /// The error itself, whichever way it came, and the proxy it came through.
    pub fn bare(&self) -> (&LinkError, Option<&str>) {
        match self {
            LinkError::ByProxy { proxy, source } => (source, Some(proxy)),
            direct => (direct, None),
        }
    }

    /// The same, on the way through `proxy`.
    pub(crate) fn through(self, proxy: Option<&Proxy>) -> LinkError {
        match (self, proxy) {
            (bare, Some(proxy)) if !matches!(bare, LinkError::ByProxy { .. }) => {
                LinkError::ByProxy { proxy: proxy.to_string(), source: Box::new(bare) }
            }
            (error, _) => error,
        }
    }
}

/// What one core needs to connect; lives on its core.
pub struct Dialer {
    names: Arc<Names>,
    proxies: Arc<Proxies>,
    tls: Arc<ClientConfig>,
    /// `S3_CONNECTION_AGE`; zero: connections do not retire.
    age: Duration,
    avoided: RefCell<Avoided>,
}

impl Dialer {
    /// `tls` is copied so that no core shares its session store with another.
    pub fn new(
        names: Arc<Names>,
        proxies: Arc<Proxies>,
        tls: &ClientConfig,
        age: Duration,
    ) -> Dialer {
        let mut tls = tls.clone();
        tls.resumption = Resumption::in_memory_sessions(TLS_SESSIONS_MAX);
        Dialer { names, proxies, tls: Arc::new(tls), age, avoided: RefCell::default() }
    }

    /// The proxy that wants requests to `origin` in absolute form, if there is one.
    pub(crate) fn absolute_form(&self, origin: &Origin) -> Option<&Proxy> {
        self.proxies.absolute_form(origin)
    }

    /// Connects to `origin` within `timeout`, resolution, tunnel and TLS handshake included.
    pub async fn dial(&self, origin: &Origin, timeout: Duration) -> Result<Wire, LinkError> {
        let late = || {
            let Origin { host, port, .. } = origin.clone();
            Err(LinkError::ConnectTimeout { host, port, after: timeout })
        };
        let proxy = self.proxies.of(origin);
        let dialled = self.dial_unbounded(origin, proxy, rt::now() + timeout);
        within(timeout, dialled, late).await.map_err(|error| error.through(proxy))
    }

    async fn dial_unbounded(
        &self,
        origin: &Origin,
        proxy: Option<&Proxy>,
        deadline: Instant,
    ) -> Result<Wire, LinkError> {
        let (host, port) = match proxy {
            Some(proxy) => (&proxy.host, proxy.port),
            None => (&origin.host, origin.port),
        };
        let addresses = self.names.addresses(host, port, deadline).await?;
        let has_choice = addresses.len() > 1;
        let memory = Memory { host, avoided: &self.avoided, has_choice };
        let connect = |address| async move { Net::here()?.connect(address).await };
        let won = race::first_of(memory, &addresses, connect).await;
        let (address, tcp) = won.map_err(|last| {
            let host = host.clone();
            match last {
                Some((address, source)) => LinkError::Unreachable { host, port, address, source },
                None => LinkError::Unresolved { host, why: "the name has no address".into() },
            }
        })?;
        // Without it the last segment of a PUT waits for a delayed acknowledgement.
        let _ = tcp.set_nodelay();
        let trial = memory.trial(address);
        let stream = self.prepare(tcp, origin, proxy).await;
        // Another address would say the same of a certificate, or of a proxy's rules.
        if stream.as_ref().err().is_none_or(|error| !is_of_address(error)) {
            trial.passed();
        }
        Ok(Wire { stream: stream?, bytes_read: Rc::default(), retire_at: self.retire_at() })
    }

    /// What lies between a TCP connection and the first request: the proxy's tunnel, and TLS.
    async fn prepare(
        &self,
        mut tcp: net::Stream,
        origin: &Origin,
        proxy: Option<&Proxy>,
    ) -> Result<Stream, LinkError> {
        if !origin.https {
            return Ok(Stream::Plain(tcp));
        }
        if let Some(proxy) = proxy {
            tunnel::open(&mut tcp, proxy, origin).await?;
        }
        let Origin { host, port, .. } = origin;
        let failed = |source| LinkError::Tls { host: host.clone(), port: *port, source };
        let name = ServerName::try_from(host.clone())
            .map_err(|e| failed(io::Error::new(io::ErrorKind::InvalidInput, e)))?;
        let connector = futures_rustls::TlsConnector::from(self.tls.clone());
        Ok(Stream::Tls(Box::new(connector.connect(name, tcp).await.map_err(failed)?)))
    }

    /// When a connection that is opened now is too old.
    fn retire_at(&self) -> Option<Instant> {
        let factor = 1.0 - AGE_JITTER + 2.0 * AGE_JITTER * rt::random_fraction();
        (!self.age.is_zero()).then(|| rt::now() + self.age.mul_f64(factor))
    }
}

/// Whether another address of the same name might do better.
fn is_of_address(error: &LinkError) -> bool {
    matches!(error, LinkError::Tls { .. } | LinkError::Broken { .. }) && error.may_pass()
}

/// A connected stream that counts what it has read: whether a failed request saw any byte of an
/// answer decides whether it may be sent again.
pub struct Wire {
    stream: Stream,
    bytes_read: Rc<Cell<u64>>,
    retire_at: Option<Instant>,
}

enum Stream {
    Plain(net::Stream),
    Tls(Box<TlsStream<net::Stream>>),
}

impl Wire {
    #[cfg(test)]
    pub(super) fn plain(stream: net::Stream) -> Wire {
        Wire { stream: Stream::Plain(stream), bytes_read: Rc::default(), retire_at: None }
    }

    /// Sends all of `bytes` at once and without a copy, if this wire can; it leaves an empty buffer in their place.
    pub fn send_whole(&self, bytes: &mut Vec<u8>) -> bool {
        match &self.stream {
            Stream::Plain(s) => s.send_whole(bytes),
            Stream::Tls(_) => false,
        }
    }

    /// Sends `payload` from `from` on, or as much of it as is taken at once.
    pub fn poll_send_payload(
        &mut self,
        cx: &mut Context<'_>,
        payload: &Payload,
        from: usize,
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(s) => s.poll_send_payload(cx, payload, from),
            Stream::Tls(s) => Pin::new(s).poll_write(cx, &payload[from..]),
        }
    }

    /// Whether all that was written is the kernel's.
    pub fn has_sent(&self) -> bool {
        match &self.stream {
            Stream::Plain(s) => s.has_sent(),
            Stream::Tls(s) => s.get_ref().0.has_sent(),
        }
    }

    /// A view of what the peer has acknowledged, below TLS.
    pub fn acknowledged(&self) -> Acknowledged {
        match &self.stream {
            Stream::Plain(s) => s.acknowledged(),
            Stream::Tls(s) => s.get_ref().0.acknowledged(),
        }
    }

    /// When it is too old to be used for another request; `None`: never. A connection that were kept
    /// for as long as it is busy would not follow its name to another address.
    pub fn retire_at(&self) -> Option<Instant> {
        self.retire_at
    }

    /// The running count of bytes read, above TLS.
    pub fn bytes_read(&self) -> Rc<Cell<u64>> {
        self.bytes_read.clone()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let polled = match &mut self.stream {
            Stream::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Tls(s) => Pin::new(s).poll_read(cx, buf),
        };
        if let Poll::Ready(Ok(n)) = polled {
            self.bytes_read.set(self.bytes_read.get() + n as u64);
        }
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Stream::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(s) => Pin::new(s).poll_flush(cx),
            Stream::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(s) => Pin::new(s).poll_close(cx),
            Stream::Tls(s) => Pin::new(s).poll_close(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::store::s3::idle::Idle;
    use crate::store::s3::tls;

    fn on_executor<T>(test: impl Future<Output = T>) -> T {
        rt::run_test(test)
    }

    fn dialer(names: Arc<Names>, age: Duration) -> Dialer {
        let tls = tls::client_config(&[]).unwrap();
        Dialer::new(names, Arc::new(Proxies::none()), &tls, age)
    }

    #[test]
    fn a_busy_connection_follows_its_name_within_its_age() {
        let old = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = old.local_addr().unwrap().port();
        let new = TcpListener::bind(("127.0.0.2", port)).unwrap();
        new.set_nonblocking(true).unwrap();
        let names = Names::new(vec![]);
        let publish = |address: &str| {
            let address = SocketAddr::new(address.parse().unwrap(), 0);
            names.publish("h".into(), Ok(vec![address]));
        };
        publish("127.0.0.1");
        on_executor(async {
            let dialer = dialer(names.clone(), Duration::from_millis(200));
            let origin = Origin { https: false, host: "h".into(), port };
            let (idle, mut dialled, began) = (Idle::new(1), 0, Instant::now());
            // One request after the other, for as long as the new address has not been reached.
            while new.accept().is_err() {
                assert!(began.elapsed() < Duration::from_secs(10), "it stays at the old address");
                let wire = match idle.take(&origin) {
                    Some(wire) => wire,
                    None => {
                        dialled += 1;
                        dialer.dial(&origin, Duration::from_secs(5)).await.unwrap()
                    }
                };
                publish("127.0.0.2");
                rt::sleep(Duration::from_millis(1)).await;
                let retire_at = wire.retire_at();
                idle.keep(&origin, wire, retire_at);
            }
            assert_eq!(dialled, 2);
            assert!(began.elapsed() >= Duration::from_millis(160), "not before its age");
        });
    }

    #[test]
    fn ages_are_spread_around_the_setting() {
        let age = Duration::from_secs(60);
        let dialer = dialer(Names::new(vec![]), age);
        let ages: Vec<f64> = (0..200)
            .map(|_| (dialer.retire_at().unwrap() - Instant::now()).as_secs_f64())
            .collect();
        assert!(ages.iter().all(|age| (47.9..=72.1).contains(age)), "{ages:?}");
        assert!(ages.iter().any(|age| *age < 57.0) && ages.iter().any(|age| *age > 63.0));
    }

    #[test]
    fn without_an_age_nothing_retires() {
        let dialer = dialer(Names::new(vec![]), Duration::ZERO);
        assert_eq!(dialer.retire_at(), None);
    }

    #[test]
    fn an_error_by_a_proxy_is_wrapped_once_and_means_the_same() {
        let env = |name: &str| (name == "HTTP_PROXY").then(|| "http://u:hunter2@p:1".into());
        let proxies = Proxies::read(&env).unwrap();
        let origin = Origin { https: false, host: "s3.corp".into(), port: 80 };
        let proxy = proxies.of(&origin);
        let refused = |status| LinkError::TunnelRefused {
            host: "s3.corp".into(),
            port: 443,
            status,
            reason: "No".into(),
        };
        for (status, may_pass) in
            [(400, false), (403, false), (407, false), (429, true), (502, true)]
        {
            let error = refused(status).through(proxy).through(proxy);
            assert_eq!(error.may_pass(), may_pass, "{status}");
            let (bare, by) = error.bare();
            assert_eq!(by, Some("http://p:1"));
            assert!(matches!(bare, LinkError::TunnelRefused { .. }));
            assert_eq!(error.to_string(), "through proxy http://p:1");
        }
        assert!(matches!(refused(407).through(None), LinkError::TunnelRefused { .. }));
    }
}
