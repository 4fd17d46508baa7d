//! From a server's address to a connected byte stream: name lookup, TCP, a proxy's tunnel and TLS,
//! all within one connect timeout.
//!
//! Both S3 clients connect here, and so do the probe and the credential services. Names are never
//! resolved here, because `getaddrinfo` would block the core: addresses come from the control
//! executor's snapshot (`host_names`). Behind a proxy the store's name is not resolved at all. A
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
use crate::store::s3::host_names::HostNames;
use crate::store::s3::proxies::{Proxies, Proxy};

/// TLS sessions one core remembers for resumption.
const TLS_SESSIONS_MAX: usize = 32;

/// Jitter of a connection's maximum age, either way, as a share of `S3_CONNECTION_AGE`, so that
/// connections opened together do not retire together.
const AGE_JITTER: f64 = 0.2;

/// Scheme, host and port: what a kept-alive connection can be reused for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    pub https: bool,
    /// Lower case, IPv6 literals without brackets.
    pub host: String,
    pub port: u16,
}

impl ServerAddress {
    /// The server of an absolute `http` or `https` URI.
    pub fn of(uri: &http::Uri) -> Option<ServerAddress> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        Some(ServerAddress { https, host, port })
    }
}

/// Why there is no usable connection, or why one broke. No variant holds a credential.
#[derive(Debug, thiserror::Error)]
pub(in crate::store) enum ConnectionError {
    /// The name has no address, or the resolver did not answer in time.
    #[error("cannot resolve {host}: {why}")]
    Unresolved { host: String, why: String },
    /// Every address was tried; `source` is the last one's error.
    #[error("cannot connect to {host}:{port} ({address})")]
    Unreachable { host: String, port: u16, address: SocketAddr, source: io::Error },
    #[error("no connection to {host}:{port} within {after:?}")]
    ConnectTimeout { host: String, port: u16, after: Duration },
    #[error("TLS handshake with {host}:{port} failed")]
    Tls { host: String, port: u16, source: io::Error },
    /// The connection broke before the response was complete.
    #[error("connection to {host} broke: {why}")]
    Broken { host: String, why: String },
    #[error("no response from {host} within {after:?}")]
    ReadTimeout { host: String, port: u16, after: Duration },
    /// The response is one this client does not accept (too long, not HTTP).
    #[error("invalid response from {host}: {why}")]
    BadAnswer { host: String, why: String },
    /// The proxy was reached but refuses to connect.
    #[error("it refuses to connect to {host}:{port}: it answered {status} {reason}")]
    TunnelRefused { host: String, port: u16, status: u16, reason: String },
    /// Any of the others, through a proxy.
    #[error("through proxy {proxy}")]
    ByProxy { proxy: String, source: Box<ConnectionError> },
}

impl ConnectionError {
    /// True if nothing was reached, which may pass by itself. A response that was not understood
    /// needs an operator.
    pub(in crate::store) fn may_pass(&self) -> bool {
        use io::ErrorKind::{InvalidData, InvalidInput};
        match self {
            ConnectionError::Unresolved { .. }
            | ConnectionError::Unreachable { .. }
            | ConnectionError::ConnectTimeout { .. }
            | ConnectionError::Broken { .. }
            | ConnectionError::ReadTimeout { .. } => true,
            // A certificate or protocol error, unlike a connection that broke during the handshake.
            ConnectionError::Tls { source, .. } => {
                !matches!(source.kind(), InvalidData | InvalidInput)
            }
            ConnectionError::BadAnswer { .. } => false,
            // The proxy could not reach the store, or is busy. Every other refusal is its policy.
            ConnectionError::TunnelRefused { status, .. } => matches!(status, 408 | 429 | 500..),
            ConnectionError::ByProxy { source, .. } => source.may_pass(),
        }
    }

    /// The error without the proxy around it, and that proxy.
    pub(super) fn bare(&self) -> (&ConnectionError, Option<&str>) {
        match self {
            ConnectionError::ByProxy { proxy, source } => (source, Some(proxy)),
            direct => (direct, None),
        }
    }

    /// The same error, through `proxy`.
    pub(super) fn through(self, proxy: Option<&Proxy>) -> ConnectionError {
        match (self, proxy) {
            (bare, Some(proxy)) if !matches!(bare, ConnectionError::ByProxy { .. }) => {
                ConnectionError::ByProxy { proxy: proxy.to_string(), source: Box::new(bare) }
            }
            (error, _) => error,
        }
    }
}

/// What one core needs to connect; lives on its core.
pub(super) struct Dialer {
    names: Arc<HostNames>,
    proxies: Arc<Proxies>,
    tls: Arc<ClientConfig>,
    /// `S3_CONNECTION_AGE`; zero: no maximum.
    age: Duration,
    avoided: RefCell<Avoided>,
}

impl Dialer {
    /// `tls` is copied so that no core shares its session store with another.
    pub(super) fn new(
        names: Arc<HostNames>,
        proxies: Arc<Proxies>,
        tls: &ClientConfig,
        age: Duration,
    ) -> Dialer {
        let mut tls = tls.clone();
        tls.resumption = Resumption::in_memory_sessions(TLS_SESSIONS_MAX);
        Dialer { names, proxies, tls: Arc::new(tls), age, avoided: RefCell::default() }
    }

    /// The proxy that takes requests for `server` in absolute form, if there is one.
    pub(super) fn absolute_form(&self, server: &ServerAddress) -> Option<&Proxy> {
        self.proxies.absolute_form(server)
    }

    /// Connects to `server` within `timeout`, resolution, tunnel and TLS handshake included.
    pub(super) async fn dial(
        &self,
        server: &ServerAddress,
        timeout: Duration,
    ) -> Result<Wire, ConnectionError> {
        let late = || {
            let ServerAddress { host, port, .. } = server.clone();
            Err(ConnectionError::ConnectTimeout { host, port, after: timeout })
        };
        let proxy = self.proxies.of(server);
        let dialled = self.dial_unbounded(server, proxy, rt::now() + timeout);
        within(timeout, dialled, late).await.map_err(|error| error.through(proxy))
    }

    async fn dial_unbounded(
        &self,
        server: &ServerAddress,
        proxy: Option<&Proxy>,
        deadline: Instant,
    ) -> Result<Wire, ConnectionError> {
        let (host, port) = match proxy {
            Some(proxy) => (&proxy.host, proxy.port),
            None => (&server.host, server.port),
        };
        let addresses = self.names.addresses(host, port, deadline).await?;
        let has_choice = addresses.len() > 1;
        let memory = Memory { host, avoided: &self.avoided, has_choice };
        let connect = |address| async move { Net::here()?.connect(address).await };
        let won = race::first_of(memory, &addresses, connect).await;
        let (address, tcp) = won.map_err(|last| {
            let host = host.clone();
            match last {
                Some((address, source)) => {
                    ConnectionError::Unreachable { host, port, address, source }
                }
                None => ConnectionError::Unresolved { host, why: "the name has no address".into() },
            }
        })?;
        // Otherwise the last segment of a PUT waits for a delayed acknowledgement.
        let _ = tcp.set_nodelay();
        tcp.receive_continuously();
        let trial = memory.trial(address);
        let stream = self.prepare(tcp, server, proxy).await;
        // A bad certificate or a proxy's policy would be the same at another address.
        if stream.as_ref().err().is_none_or(|error| !is_of_address(error)) {
            trial.passed();
        }
        Ok(Wire { stream: stream?, bytes_read: Rc::default(), retire_at: self.retire_at() })
    }

    /// What a TCP connection needs before the first request: the proxy's tunnel, and TLS.
    async fn prepare(
        &self,
        mut tcp: net::Stream,
        server: &ServerAddress,
        proxy: Option<&Proxy>,
    ) -> Result<Transport, ConnectionError> {
        if !server.https {
            return Ok(Transport::Plain(tcp));
        }
        if let Some(proxy) = proxy {
            tunnel::open(&mut tcp, proxy, server).await?;
        }
        let ServerAddress { host, port, .. } = server;
        let failed = |source| ConnectionError::Tls { host: host.clone(), port: *port, source };
        let name = ServerName::try_from(host.clone())
            .map_err(|e| failed(io::Error::new(io::ErrorKind::InvalidInput, e)))?;
        let connector = futures_rustls::TlsConnector::from(self.tls.clone());
        Ok(Transport::Tls(Box::new(connector.connect(name, tcp).await.map_err(failed)?)))
    }

    /// When a connection opened now becomes too old.
    fn retire_at(&self) -> Option<Instant> {
        let factor = 1.0 - AGE_JITTER + 2.0 * AGE_JITTER * rt::random_fraction();
        (!self.age.is_zero()).then(|| rt::now() + self.age.mul_f64(factor))
    }
}

/// Whether another address of the same name might do better.
fn is_of_address(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::Tls { .. } | ConnectionError::Broken { .. })
        && error.may_pass()
}

/// A connected stream that counts the bytes it has read: a failed request may be sent again only if
/// no byte of a response has arrived.
pub(super) struct Wire {
    stream: Transport,
    bytes_read: Rc<Cell<u64>>,
    retire_at: Option<Instant>,
}

enum Transport {
    Plain(net::Stream),
    Tls(Box<TlsStream<net::Stream>>),
}

impl Wire {
    #[cfg(test)]
    pub(super) fn plain(stream: net::Stream) -> Wire {
        Wire { stream: Transport::Plain(stream), bytes_read: Rc::default(), retire_at: None }
    }

    /// The socket, if there is no TLS in between: it sends without copying, and what it receives can
    /// be read where it is.
    pub(super) fn socket(&self) -> Option<&net::Stream> {
        match &self.stream {
            Transport::Plain(s) => Some(s),
            Transport::Tls(_) => None,
        }
    }

    /// Sends `payload` from `from` on, or as much of it as the socket takes at once.
    pub(super) fn poll_send_payload(
        &mut self,
        cx: &mut Context<'_>,
        payload: &Payload,
        from: usize,
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Transport::Plain(s) => s.poll_send_shared(cx, payload, from),
            Transport::Tls(s) => Pin::new(s).poll_write(cx, &payload[from..]),
        }
    }

    /// Whether the kernel has taken everything written.
    pub(super) fn has_sent(&self) -> bool {
        match &self.stream {
            Transport::Plain(s) => s.has_sent(),
            Transport::Tls(s) => s.get_ref().0.has_sent(),
        }
    }

    /// A view of what the peer has acknowledged, below TLS.
    pub(super) fn acknowledged(&self) -> Acknowledged {
        match &self.stream {
            Transport::Plain(s) => s.acknowledged(),
            Transport::Tls(s) => s.get_ref().0.acknowledged(),
        }
    }

    /// When it is too old for another request; `None`: never. Without a maximum age a busy
    /// connection would not follow its host name to another address.
    pub(super) fn retire_at(&self) -> Option<Instant> {
        self.retire_at
    }

    /// The running count of bytes read, above TLS.
    pub(super) fn bytes_read(&self) -> Rc<Cell<u64>> {
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
            Transport::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Transport::Tls(s) => Pin::new(s).poll_read(cx, buf),
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
            Transport::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Transport::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(s) => Pin::new(s).poll_flush(cx),
            Transport::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(s) => Pin::new(s).poll_close(cx),
            Transport::Tls(s) => Pin::new(s).poll_close(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::store::s3::idle_pool::{Connection, IdlePool};
    use crate::store::s3::tls;

    impl Connection for Wire {
        fn is_alive(&mut self) -> bool {
            true
        }

        fn retire_at(&self) -> Option<Instant> {
            self.retire_at
        }
    }

    fn on_executor<T>(test: impl Future<Output = T>) -> T {
        rt::run_test(test)
    }

    fn dialer(names: Arc<HostNames>, age: Duration) -> Dialer {
        let tls = tls::client_config(&[]).unwrap();
        Dialer::new(names, Arc::new(Proxies::none()), &tls, age)
    }

    #[test]
    fn a_busy_connection_follows_its_name_within_its_age() {
        let old = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = old.local_addr().unwrap().port();
        let new = TcpListener::bind(("127.0.0.2", port)).unwrap();
        new.set_nonblocking(true).unwrap();
        let names = HostNames::new(vec![]);
        let publish = |address: &str| {
            let address = SocketAddr::new(address.parse().unwrap(), 0);
            names.publish("h".into(), Ok(vec![address]));
        };
        publish("127.0.0.1");
        on_executor(async {
            let dialer = dialer(names.clone(), Duration::from_millis(200));
            let server = ServerAddress { https: false, host: "h".into(), port };
            let (idle, mut dialled, began) = (IdlePool::new(1), 0, Instant::now());
            // One request after the other, for as long as the new address has not been reached.
            while new.accept().is_err() {
                assert!(began.elapsed() < Duration::from_secs(10), "it stays at the old address");
                let wire = match idle.take(&server, rt::now()) {
                    Some(wire) => wire,
                    None => {
                        dialled += 1;
                        dialer.dial(&server, Duration::from_secs(5)).await.unwrap()
                    }
                };
                publish("127.0.0.2");
                rt::sleep(Duration::from_millis(1)).await;
                idle.put(&server, wire, rt::now());
            }
            assert_eq!(dialled, 2);
            assert!(began.elapsed() >= Duration::from_millis(160), "not before its age");
        });
    }

    #[test]
    fn ages_are_spread_around_the_setting() {
        let age = Duration::from_secs(60);
        let dialer = dialer(HostNames::new(vec![]), age);
        let ages: Vec<f64> = (0..200)
            .map(|_| (dialer.retire_at().unwrap() - Instant::now()).as_secs_f64())
            .collect();
        assert!(ages.iter().all(|age| (47.9..=72.1).contains(age)), "{ages:?}");
        assert!(ages.iter().any(|age| *age < 57.0) && ages.iter().any(|age| *age > 63.0));
    }

    #[test]
    fn without_an_age_nothing_retires() {
        let dialer = dialer(HostNames::new(vec![]), Duration::ZERO);
        assert_eq!(dialer.retire_at(), None);
    }

    #[test]
    fn an_error_by_a_proxy_is_wrapped_once_and_means_the_same() {
        let env = |name: &str| (name == "HTTP_PROXY").then(|| "http://u:hunter2@p:1".into());
        let proxies = Proxies::read(&env).unwrap();
        let server = ServerAddress { https: false, host: "s3.corp".into(), port: 80 };
        let proxy = proxies.of(&server);
        let refused = |status| ConnectionError::TunnelRefused {
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
            assert!(matches!(bare, ConnectionError::TunnelRefused { .. }));
            assert_eq!(error.to_string(), "through proxy http://p:1");
        }
        assert!(matches!(refused(407).through(None), ConnectionError::TunnelRefused { .. }));
    }
}
