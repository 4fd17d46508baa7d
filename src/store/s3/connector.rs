//! The bridge between the AWS SDK and this executor: its HTTP client, its sleep, and the one place
//! where values that never leave their thread are passed as `Send`.
//!
//! The SDK asks for `Send + Sync`; glommio's types are neither. [`CoreLocal`] wraps them in a
//! `SendWrapper`, which panics rather than let one be used or dropped on another thread. No other
//! file does this.
//!
//! Invariant: a connection belongs either to one request or to the pool, and owns its task.
//! Dropping the request (a put that timed out) closes the socket; only a connection that is ready
//! for another request is kept.

use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::time::Duration;

use crate::rt::Timer;
use aws_smithy_async::rt::sleep::{AsyncSleep, Sleep};
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use http_body_util::{BodyExt, Full, Limited};
use send_wrapper::SendWrapper;

use super::dial::{ConnectionError, ServerAddress};
use super::hyper_pool::{HyperConnection, HyperPool};
use crate::deadline::within;
use crate::queue::job::Payload;
use crate::store::PeerSlot;

/// Longest response accepted from a store or a credential service, bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A value that stays on the core that made it, in a wrapper that satisfies the SDK's bounds.
#[derive(Clone)]
pub(super) struct CoreLocal<T>(SendWrapper<T>);

/// An extension of a request: the slot that is told which connection sends it.
pub(super) type PeerOf = CoreLocal<Rc<PeerSlot>>;

impl<T> CoreLocal<T> {
    pub(super) fn new(value: T) -> CoreLocal<T> {
        CoreLocal(SendWrapper::new(value))
    }
}

impl<T> Deref for CoreLocal<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for CoreLocal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CoreLocal")
    }
}

impl AsRef<[u8]> for CoreLocal<Payload> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// A body for the SDK. One part is not copied and lives until the last clone is dropped. Several
/// are copied into one, because the connector sends a single chunk; the lean client is the fast
/// path.
pub(super) fn body_of(parts: &[Payload]) -> SdkBody {
    SdkBody::from(match parts {
        [whole] => Bytes::from_owner(CoreLocal::new(whole.clone())),
        _ => Bytes::from(parts.iter().map(|part| &part[..]).collect::<Vec<_>>().concat()),
    })
}

/// glommio's timer as the SDK's sleep.
#[derive(Clone, Copy, Debug)]
pub(super) struct GlommioSleep;

impl AsyncSleep for GlommioSleep {
    fn sleep(&self, duration: Duration) -> Sleep {
        Sleep::new(SendWrapper::new(async move {
            Timer::new(duration).await;
        }))
    }
}

/// The SDK's HTTP client on this core's pool.
#[derive(Debug)]
pub(super) struct GlommioHttp {
    pool: CoreLocal<Rc<HyperPool>>,
    connect_timeout: Duration,
}

impl GlommioHttp {
    /// `connect_timeout` applies if the SDK's own settings give none.
    pub(super) fn new(pool: Rc<HyperPool>, connect_timeout: Duration) -> GlommioHttp {
        GlommioHttp { pool: CoreLocal::new(pool), connect_timeout }
    }
}

impl HttpClient for GlommioHttp {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Connector {
            pool: self.pool.clone(),
            connect_timeout: settings.connect_timeout().unwrap_or(self.connect_timeout),
            read_timeout: settings.read_timeout(),
        })
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        Some(ConnectorMetadata::new("millrace", None))
    }
}

#[derive(Debug)]
struct Connector {
    pool: CoreLocal<Rc<HyperPool>>,
    connect_timeout: Duration,
    read_timeout: Option<Duration>,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let pool = Rc::clone(&self.pool);
        let (connect_timeout, read_timeout) = (self.connect_timeout, self.read_timeout);
        let call = async move {
            let (server, request) = prepare(request, &pool).await?;
            let exchange = Exchange { pool, server, connect_timeout, read_timeout };
            let proxy = exchange.pool.absolute_form(&exchange.server);
            let outcome = exchange.run(request).await;
            outcome.map_err(|error| connector_error(error.through(proxy)))
        };
        HttpConnectorFuture::new(SendWrapper::new(call))
    }
}

/// Absolute URI to origin form plus `host`, body to bytes that a retry can send again. A proxy that
/// forwards requests, without a tunnel, gets the absolute URI: the signature covers only host and
/// path, which do not change.
async fn prepare(
    request: HttpRequest,
    pool: &HyperPool,
) -> Result<(ServerAddress, http::Request<Full<Bytes>>), ConnectorError> {
    let request = request.try_into_http1x().map_err(|e| ConnectorError::user(e.into()))?;
    let (mut parts, body) = request.into_parts();
    let server = ServerAddress::of(&parts.uri).ok_or_else(|| {
        ConnectorError::user("the URL of the request is neither http nor https".into())
    })?;
    if body.bytes().is_none() {
        return Err(ConnectorError::user("only bodies in memory can be sent".into()));
    }
    // Ready at once and without a copy, because there is one chunk.
    let body = body.collect().await.map_err(ConnectorError::user)?.to_bytes();
    if !parts.headers.contains_key(HOST) {
        let authority = parts.uri.authority().map_or("", |a| a.as_str());
        let host = HeaderValue::from_str(authority).map_err(|e| ConnectorError::user(e.into()))?;
        parts.headers.insert(HOST, host);
    }
    match pool.absolute_form(&server) {
        None => {
            let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
            let parsed = path.parse();
            parts.uri =
                parsed.map_err(|e: http::uri::InvalidUri| ConnectorError::user(e.into()))?;
        }
        Some(proxy) => {
            if let Some(value) = proxy.authorization_header() {
                parts.headers.insert(PROXY_AUTHORIZATION, value);
            }
        }
    }
    Ok((server, http::Request::from_parts(parts, Full::new(body))))
}

/// One request on an idle connection, or on a new one if that turns out dead.
struct Exchange {
    pool: Rc<HyperPool>,
    server: ServerAddress,
    connect_timeout: Duration,
    read_timeout: Option<Duration>,
}

/// A failed attempt, and whether the same request may be sent again.
struct Failed {
    error: ConnectionError,
    unanswered: bool,
}

impl Exchange {
    async fn run(
        &self,
        request: http::Request<Full<Bytes>>,
    ) -> Result<HttpResponse, ConnectionError> {
        if let Some(conn) = self.pool.take(&self.server) {
            match self.attempt(conn, request.clone()).await {
                Ok(response) => return Ok(response),
                // The store closed it between two requests, which says nothing about this one.
                Err(failed) if failed.unanswered => {}
                Err(failed) => return Err(failed.error),
            }
        }
        let conn = self.pool.connect(&self.server, self.connect_timeout).await?;
        self.attempt(conn, request).await.map_err(|failed| failed.error)
    }

    async fn attempt(
        &self,
        mut conn: HyperConnection,
        request: http::Request<Full<Bytes>>,
    ) -> Result<HttpResponse, Failed> {
        if let Some(slot) = request.extensions().get::<PeerOf>() {
            slot.replace(Some(conn.peer.clone()));
        }
        let read_before = conn.bytes_read.get();
        let result = match self.read_timeout {
            None => self.answer(&mut conn, request).await,
            Some(after) => {
                let ServerAddress { host, port, .. } = self.server.clone();
                let late = || Err(ConnectionError::ReadTimeout { host, port, after });
                within(after, self.answer(&mut conn, request), late).await
            }
        };
        match result {
            Ok(response) => {
                HyperPool::give_back(&self.pool, &self.server, conn).await;
                Ok(response)
            }
            Err(error) => {
                let broken = matches!(error, ConnectionError::Broken { .. });
                let unanswered = broken && conn.bytes_read.get() == read_before;
                Err(Failed { error, unanswered })
            }
        }
    }

    async fn answer(
        &self,
        conn: &mut HyperConnection,
        request: http::Request<Full<Bytes>>,
    ) -> Result<HttpResponse, ConnectionError> {
        let broken = |e: hyper::Error| {
            let host = self.server.host.clone();
            let why = with_sources(&e);
            if e.is_parse() {
                ConnectionError::BadAnswer { host, why }
            } else {
                ConnectionError::Broken { host, why }
            }
        };
        conn.sender.ready().await.map_err(broken)?;
        let (parts, body) = conn.sender.send_request(request).await.map_err(broken)?.into_parts();
        let collected = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = match collected {
            Ok(body) => body.to_bytes(),
            Err(e) => match e.downcast::<hyper::Error>() {
                Ok(e) => return Err(broken(*e)),
                Err(e) => return Err(self.bad_answer(e.to_string())),
            },
        };
        let response = http::Response::from_parts(parts, SdkBody::from(body));
        HttpResponse::try_from(response).map_err(|e| self.bad_answer(e.to_string()))
    }

    fn bad_answer(&self, why: String) -> ConnectionError {
        ConnectionError::BadAnswer { host: self.server.host.clone(), why }
    }
}

fn connector_error(error: ConnectionError) -> ConnectorError {
    match error.bare().0 {
        ConnectionError::ConnectTimeout { .. } | ConnectionError::ReadTimeout { .. } => {
            ConnectorError::timeout(error.into())
        }
        ConnectionError::BadAnswer { .. } => ConnectorError::other(error.into(), None),
        _ => ConnectorError::io(error.into()),
    }
}

/// The connection's error in `error` or its sources, if the connection failed.
pub(super) fn connection_error<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a ConnectionError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(failure) = error.downcast_ref() {
            return Some(failure);
        }
        cause = error.source();
    }
    None
}

/// An error and its sources on one line; hyper's own text omits the cause.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
