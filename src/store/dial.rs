//! From an origin to a connected byte stream: addresses, TCP, TLS, all within one connect timeout.
//!
//! Both S3 clients connect here. Names are never resolved here: they come from the control
//! executor's snapshot (`aws::names`), because `getaddrinfo` would stop the core. A dropped dial
//! closes its socket.

use std::cell::Cell;
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

use crate::aws::names::Names;
use crate::deadline::within;
use crate::job::Payload;
use crate::net::{self, Acknowledged, Net};

/// TLS sessions one core remembers for resumption.
const TLS_SESSIONS_MAX: usize = 32;

/// No address is given less than this before the next one is tried, however many there are.
const ADDRESS_TIMEOUT_MIN: Duration = Duration::from_millis(200);

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
    ReadTimeout { host: String, after: Duration },
    /// What came is not an answer this client takes (too long, not HTTP).
    #[error("answer from {host} refused: {why}")]
    BadAnswer { host: String, why: String },
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
        }
    }
}

/// What one core needs to connect; lives on its core.
pub struct Dialer {
    names: Arc<Names>,
    tls: Arc<ClientConfig>,
}

impl Dialer {
    /// `tls` is copied so that no core shares its session store with another.
    pub fn new(names: Arc<Names>, tls: &ClientConfig) -> Dialer {
        let mut tls = tls.clone();
        tls.resumption = Resumption::in_memory_sessions(TLS_SESSIONS_MAX);
        Dialer { names, tls: Arc::new(tls) }
    }

    /// Connects to `origin` within `timeout`, resolution and TLS handshake included.
    pub async fn dial(&self, origin: &Origin, timeout: Duration) -> Result<Wire, LinkError> {
        let late = || {
            let Origin { host, port, .. } = origin.clone();
            LinkError::ConnectTimeout { host, port, after: timeout }
        };
        let dialled = self.dial_unbounded(origin, Instant::now() + timeout);
        match within(timeout, dialled, || Err(late())).await {
            // The last address's share ran out just before the whole did.
            Err(LinkError::Unreachable { source, .. })
                if source.kind() == io::ErrorKind::TimedOut =>
            {
                Err(late())
            }
            outcome => outcome,
        }
    }

    async fn dial_unbounded(&self, origin: &Origin, deadline: Instant) -> Result<Wire, LinkError> {
        let Origin { https, host, port } = origin.clone();
        let addresses = self.names.addresses(&host, port, deadline).await?;
        let tcp = connect_first(origin, &addresses, deadline).await?;
        // Without it the last segment of a PUT waits for a delayed acknowledgement.
        let _ = tcp.set_nodelay();
        let stream = if https {
            let tls_failed = |source| LinkError::Tls { host: host.clone(), port, source };
            let name = ServerName::try_from(host.clone())
                .map_err(|e| tls_failed(io::Error::new(io::ErrorKind::InvalidInput, e)))?;
            let connector = futures_rustls::TlsConnector::from(self.tls.clone());
            Stream::Tls(Box::new(connector.connect(name, tcp).await.map_err(tls_failed)?))
        } else {
            Stream::Plain(tcp)
        };
        Ok(Wire { stream, bytes_read: Rc::default() })
    }
}

/// Tries each address in turn; each gets its share of what is left, so that one that swallows
/// packets leaves time for the next.
async fn connect_first(
    origin: &Origin,
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<net::Stream, LinkError> {
    let mut last = None;
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = (left / (addresses.len() - tried) as u32).max(ADDRESS_TIMEOUT_MIN);
        let connect = async { Net::here()?.connect(*address).await };
        match within(share, connect, || Err(io::ErrorKind::TimedOut.into())).await {
            Ok(tcp) => return Ok(tcp),
            Err(e) => last = Some((*address, e)),
        }
    }
    let Origin { host, port, .. } = origin.clone();
    Err(match last {
        Some((address, source)) => LinkError::Unreachable { host, port, address, source },
        None => LinkError::Unresolved { host, why: "the name has no address".into() },
    })
}

/// A connected stream that counts what it has read: whether a failed request saw any byte of an
/// answer decides whether it may be sent again.
pub struct Wire {
    stream: Stream,
    bytes_read: Rc<Cell<u64>>,
}

enum Stream {
    Plain(net::Stream),
    Tls(Box<TlsStream<net::Stream>>),
}

impl Wire {
    #[cfg(test)]
    pub(super) fn plain(stream: net::Stream) -> Wire {
        Wire { stream: Stream::Plain(stream), bytes_read: Rc::default() }
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
