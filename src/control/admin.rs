//! The admin listener: `/metrics`, `/healthz`, `/readyz`, `/peers`, `/settings`, `/logs`, `/tap`, and
//! the page `/` that shows most of it. It runs on the control executor, so it answers while a core is
//! stuck. `access` decides who may read what.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::rt;
use crate::rt::Task;
use crate::rt::{Timer, sleep};
use bytes::Bytes;
use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt as _, FutureExt};
use futures_rustls::TlsAcceptor;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, VARY, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use prometheus_client::registry::Registry;
use smol_hyper::rt::FuturesIo;

use super::access::{AdminAccess, Denied};
use super::certificates::Certificates;
use super::exposition::Exposition;
use super::heartbeats::Heartbeats;
use super::page;
use super::peers::PeersPage;
use super::settings::SettingsPage;
use super::tap::{TapBody, TapPage, WATCH_MAX};
use crate::deadletter::DeadLetters;
use crate::deadline::{collect_arrived, was_paused, within};
use crate::http::HEAD_BYTES_MAX;
use crate::http::head::{self, BodyFraming};
use crate::http::secured::PLAIN_HTTP;
use crate::limits::ADMIN_CONNECTIONS_MAX;
use crate::metrics::tokens::TokenMetrics;
use crate::metrics::{Cells, CoreState};
use crate::net::{Listener, Stream};
use crate::spool::takeover::offers::Takeover;
use crate::sync::Flag;
use crate::tls::SharedTls;

/// How long an admin connection has for its first complete request, …
const FIRST_REQUEST_MAX: Duration = Duration::from_secs(5);
/// … and from each request to the end of the next one's head. A client that scrapes less often
/// reconnects.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Pause after a failed accept.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// The body of a page, or of `/tap`, which has no end.
type AdminBody = Either<Full<Bytes>, TapBody>;

/// The data of the admin pages.
pub struct Admin {
    pub cells: Cells,
    pub core_ids: Vec<usize>,
    pub(super) heartbeats: Arc<Heartbeats>,
    pub registry: Registry,
    pub tokens: &'static TokenMetrics,
    /// Set if any address has TLS.
    pub certificates: Option<Certificates>,
    pub dead_letters: DeadLetters,
    /// The orphaned spools of crashed processes, if there is a spool.
    pub orphans: Option<Arc<Takeover>>,
    pub store: StoreReadiness,
    pub epoch: Instant,
    /// Set by control when the stop begins, because a stuck core does not report that it is
    /// draining.
    pub stopping: Rc<Cell<bool>>,
    pub pages: Pages,
}

/// What a store that fails means for readiness.
pub struct StoreReadiness {
    /// `READY_STORE_GRACE`.
    pub grace: Duration,
    /// Whether the disk acknowledges what comes in (`ACK=spooled`), so that the store may be down.
    pub acks_on_disk: bool,
    /// Why the store cannot be used yet: set if the start did not wait for it, and cleared once it
    /// answers.
    pub trouble: Rc<RefCell<Option<String>>>,
}

/// What is not for everybody.
pub struct Pages {
    pub(super) peers: PeersPage,
    pub(super) settings: SettingsPage,
    pub(super) tap: Rc<TapPage>,
}

impl Admin {
    /// The reasons why this server should get no traffic now; empty if it should.
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.stopping.get() {
            reasons.push("the server is stopping".to_owned());
        }
        let spool = self.spool_troubles();
        if !(self.store.acks_on_disk && spool.is_empty()) {
            reasons.extend(self.store_troubles());
        }
        for (at, (cells, id)) in self.cells.iter().zip(&self.core_ids).enumerate() {
            let state = [
                (CoreState::Starting, "is starting"),
                (CoreState::Ready, "is starting"),
                (CoreState::Draining, "is draining"),
                (CoreState::Stopped, "has stopped"),
                (CoreState::Died, "has died"),
            ];
            if let Some((_, text)) = state.iter().find(|(state, _)| cells.is(*state)) {
                reasons.push(format!("core {id} {text}"));
            } else if let Some(stuck) = self.heartbeats.stuck(at) {
                reasons.push(format!(
                    "core {id} has not run for {} s, its clients get no answer: take `millrace \
                     debug bundle`, then restart the server",
                    stuck.as_secs()
                ));
            }
        }
        reasons.extend(spool);
        if self.dead_letters.is_failing() {
            let directory = self.dead_letters.directory().display();
            reasons.push(format!("the dead-letter directory {directory} is full or not writable"));
        }
        reasons
    }

    /// Why the store takes nothing. A spool that can take what comes in makes these remarks: all
    /// servers share the store, and a balancer would lose them all at once.
    fn store_troubles(&self) -> Vec<String> {
        let mut troubles: Vec<String> = self.store.trouble.borrow().iter().cloned().collect();
        for (cells, id) in self.cells.iter().zip(&self.core_ids) {
            let since = cells.store_failing_since.value();
            let failing = rt::since(self.epoch).saturating_sub(Duration::from_millis(since));
            if since != 0 && failing >= self.store.grace {
                let failing = failing.as_secs();
                troubles.push(format!("core {id}: the store has been failing for {failing} s"));
            }
        }
        troubles
    }

    /// Why spools cannot take what comes in; empty without spools.
    fn spool_troubles(&self) -> Vec<String> {
        let troubles = self.cells.iter().zip(&self.core_ids).filter_map(|(cells, id)| {
            crate::spool::not_ready(cells).map(|reason| format!("core {id}: {reason}"))
        });
        troubles.collect()
    }

    /// The limits that clients have reached in the last second. Not a reason against traffic:
    /// another server would only be reached next.
    fn limits_reached(&self) -> String {
        let mut text = String::new();
        for (cells, id) in self.cells.iter().zip(&self.core_ids) {
            if cells.connections_full.value() != 0 {
                let max = cells.connections_max.value();
                let fate = match cells.connections_waiting.value() {
                    0 => "idle ones are closed for new ones",
                    _ => "none is idle, so new ones wait",
                };
                text += &format!(
                    "core {id}: all {max} connections are open (MAX_CONNECTIONS); {fate}\n"
                );
            }
            if cells.body_memory_full.value() != 0 {
                text += &format!(
                    "core {id}: the memory for bodies is used up (MAX_BODY_BYTES); stalled bodies get \
                     408, or requests 503\n"
                );
            }
        }
        text
    }

    /// What an operator should know besides, whether or not the server is ready.
    fn remarks(&self) -> String {
        let stale_tokens = self.stale_tokens().unwrap_or_default().to_owned();
        let certificates = self.certificates.as_ref().map(Certificates::remarks);
        let store = match self.store.acks_on_disk && self.spool_troubles().is_empty() {
            true => self.store_troubles(),
            false => Vec::new(),
        };
        let store: String = store.into_iter().map(|trouble| trouble + "\n").collect();
        store
            + &stale_tokens
            + &certificates.unwrap_or_default()
            + &self.full_queues()
            + &self.limits_reached()
    }

    /// How much of orphaned spools is still to be replayed, if any. Not a reason against traffic.
    fn replaying(&self) -> Option<String> {
        let bytes = self.orphans.as_ref()?.bytes();
        let files = "of spool files that earlier processes left are being replayed";
        (bytes > 0).then(|| format!("{} {files}\n", bytesize::ByteSize(bytes)))
    }

    /// The answer, and for how long its client may take to ask again.
    async fn respond(
        &self,
        access: &AdminAccess,
        request: &Request<Incoming>,
        gave_up: &Rc<Flag>,
    ) -> (Response<AdminBody>, Duration) {
        let chunked = request.body().size_hint().exact().is_none();
        let framing = BodyFraming { chunked, content_length: false };
        let short = |response: Response<Full<Bytes>>| (response.map(Either::Left), IDLE_MAX);
        if let Err(wrong) = head::check(request, framing) {
            let mut response = text(wrong.status(), format!("{wrong}\n"));
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return short(response);
        }
        let uri = request.uri();
        if let Err(denied) = access.judge(uri, request.headers()) {
            return short(refusal(denied));
        }
        let (tap, query) = (&self.pages.tap, uri.query().unwrap_or_default());
        match *request.method() {
            Method::GET if uri.path() == "/tap" => {
                return match tap.answer(query, gave_up.clone()) {
                    Ok(lines) => (lines.map(Either::Right), WATCH_MAX),
                    Err((status, why)) => short(text(status, why)),
                };
            }
            Method::HEAD if uri.path() == "/tap" => {
                let head = tap.head(query).map(|head| head.map(|()| Full::default()));
                return short(head.unwrap_or_else(|(status, why)| text(status, why)));
            }
            _ => {}
        }
        let peers = self.pages.peers.answer(request).await;
        short(peers.unwrap_or_else(|| self.answer(request)))
    }

    /// Whether older tokens than those of the newest file are in effect. Not a reason against
    /// traffic.
    fn stale_tokens(&self) -> Option<&'static str> {
        (self.tokens.reload_failing.value() != 0).then_some(
            "TOKENS_FILE is refused since its last change, see the log; the tokens read before stay accepted\n",
        )
    }

    /// The cores whose queues are full, if any. Not a reason against traffic: others may be idle.
    fn full_queues(&self) -> String {
        let full = self.cells.iter().zip(&self.core_ids).filter(|(c, _)| c.queue_full.value() != 0);
        full.map(|(_, id)| format!("core {id}: the queue is full: requests wait or get 503\n"))
            .collect()
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/" => page::answer(),
            "/settings" => self.pages.settings.answer(),
            "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => match self.not_ready() {
                reasons if reasons.is_empty() => {
                    let replaying = self.replaying().unwrap_or_default();
                    text(StatusCode::OK, format!("ready\n{replaying}{}", self.remarks()))
                }
                reasons => {
                    let reasons = reasons.join("\n") + "\n" + &self.remarks();
                    text(StatusCode::SERVICE_UNAVAILABLE, reasons)
                }
            },
            "/metrics" => {
                let exposition = Exposition::wanted(request.headers());
                let mut response = text(StatusCode::OK, exposition.write(&self.registry));
                response.headers_mut().insert(CONTENT_TYPE, exposition.content_type());
                response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
                response
            }
            "/logs" => {
                let lines = crate::log::recent_lines();
                let lines = String::from_utf8_lossy(&lines).into_owned();
                let mut response = text(StatusCode::OK, lines);
                let not_kept = HeaderValue::from_static("no-store");
                response.headers_mut().insert(CACHE_CONTROL, not_kept);
                response
            }
            _ => {
                let pages = "/, /metrics, /healthz, /readyz, /peers, /settings, /logs or /tap\n";
                text(StatusCode::NOT_FOUND, pages.to_owned())
            }
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn refusal(denied: Denied) -> Response<Full<Bytes>> {
    let (status, challenge) = match denied {
        Denied::NoAdminToken | Denied::NamedHost => (StatusCode::FORBIDDEN, None),
        Denied::Missing => (StatusCode::UNAUTHORIZED, Some("Bearer")),
        Denied::Wrong => (StatusCode::UNAUTHORIZED, Some(r#"Bearer error="invalid_token""#)),
    };
    let mut response = text(status, denied.text().to_owned());
    if let Some(challenge) = challenge {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    response
}

/// One open admin connection.
struct AdminConn {
    /// When its last request or the connection itself began.
    since: Cell<Instant>,
    /// How long after `since` it is closed.
    idle_limit: Cell<Duration>,
    ended: Cell<bool>,
    /// Set if its client reads nothing of what has no end.
    gave_up: Rc<Flag>,
}

/// Serves the admin pages until the process ends. If all connections are taken, a new one replaces
/// the one that has been silent for longest, so that no client can keep a health check waiting.
pub(super) async fn serve(
    admin: Rc<Admin>,
    access: Rc<AdminAccess>,
    listener: Listener,
    tls: Option<SharedTls>,
) {
    let mut open: Vec<(Rc<AdminConn>, Task<()>)> = Vec::new();
    loop {
        match listener.accept().await {
            Ok(stream) => {
                open.retain(|(state, _)| !state.ended.get());
                if open.len() >= ADMIN_CONNECTIONS_MAX
                    && let Some(at) = (0..open.len()).min_by_key(|at| open[*at].0.since.get())
                {
                    let (_, oldest) = open.swap_remove(at);
                    oldest.cancel().await;
                }
                let state = Rc::new(AdminConn {
                    since: Cell::new(rt::now()),
                    idle_limit: Cell::new(FIRST_REQUEST_MAX),
                    ended: Cell::new(false),
                    gave_up: Rc::default(),
                });
                let (admin, access, this) = (admin.clone(), access.clone(), state.clone());
                let tls = tls.clone();
                let task = rt::spawn(async move {
                    match tls {
                        None => serve_connection(admin, access, stream, &this).await,
                        Some(tls) => serve_secured(admin, access, stream, &tls, &this).await,
                    }
                    this.ended.set(true);
                });
                open.push((state, task));
            }
            // Shut down at the end of a stop: what is open is served until the process ends.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                return std::future::pending().await;
            }
            Err(error) => {
                tracing::debug!(%error, "admin accept failed");
                sleep(ERROR_PAUSE).await;
            }
        }
    }
}

/// Makes the handshake, within the time for a first request, and serves the connection.
async fn serve_secured(
    admin: Rc<Admin>,
    access: Rc<AdminAccess>,
    mut stream: Stream,
    tls: &SharedTls,
    state: &AdminConn,
) {
    let handshake = async {
        let mut first = 0;
        poll_fn(|cx| {
            stream.poll_read_with(cx, |bytes| {
                first = bytes.first().copied().unwrap_or_default();
                0
            })
        })
        .await?;
        if first.is_ascii_alphabetic() {
            stream.write_all(PLAIN_HTTP).await?;
            stream.close().await?;
            return Ok(None);
        }
        let acceptor = TlsAcceptor::from(tls.load().admin.clone());
        acceptor.accept(stream).await.map(Some)
    };
    match within(FIRST_REQUEST_MAX, handshake, || Ok(None)).await {
        Ok(Some(stream)) => serve_connection(admin, access, stream, state).await,
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "TLS handshake of an admin connection failed"),
    }
}

async fn serve_connection(
    admin: Rc<Admin>,
    access: Rc<AdminAccess>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    state: &AdminConn,
) {
    let service = service_fn(|request| {
        state.since.set(rt::now());
        state.idle_limit.set(IDLE_MAX);
        let (admin, access) = (admin.clone(), access.clone());
        async move {
            let (mut response, idle_limit) = admin.respond(&access, &request, &state.gave_up).await;
            state.idle_limit.set(idle_limit);
            // A log line, a label or a table may hold what a client sent.
            let as_said = HeaderValue::from_static("nosniff");
            response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, as_said);
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(FuturesIo::new(stream), service);
    let served = async {
        if let Err(error) = served.await {
            tracing::debug!(%error, "admin connection ended");
        }
    };
    let time_up = async {
        loop {
            let (since, idle_limit) = (state.since.get(), state.idle_limit.get());
            let now = rt::now();
            let deadline = since + idle_limit;
            if now < deadline {
                // A request meanwhile only moves the deadline later.
                Timer::new(deadline - now).await;
            } else if was_paused(idle_limit, now - deadline) {
                state.since.set(now);
            } else {
                collect_arrived().await;
                if state.since.get() == since {
                    break;
                }
            }
        }
    };
    served.or(time_up).or(state.gave_up.wait()).await;
}
