//! A real S3 server in this process: `s3s` in front of `s3s-fs`, on a thread and loopback port of
//! its own.
//!
//! It verifies signatures, keeps objects as files of a temporary directory, logs every request it
//! sees, and misbehaves on demand: queue faults with [`S3Server::fail_next`], or decide per request
//! with [`S3Server::fail_when`].
//!
//! ```ignore
//! let server = S3Server::start();
//! server.fail_next(Fault::error(503, "SlowDown"));
//! // … something puts to server.url() with ACCESS_KEY and SECRET_KEY …
//! assert_eq!(server.object("a.json"), Some(b"{}".to_vec()));
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::auth::{S3Auth, SecretKey};
use s3s::host::SingleDomain;
use s3s::service::{S3Service, S3ServiceBuilder};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tokio_rustls::TlsAcceptor;

/// The bucket every server starts with.
pub const BUCKET: &str = "payloads";
/// The key pair every server starts with.
pub const ACCESS_KEY: &str = "AKIDTESTTESTTESTTEST";
pub const SECRET_KEY: &str = "test-secret-of-the-in-process-server";

/// What the server does instead of serving one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers with this status, headers and body; the request is not served.
    Reply { status: u16, headers: Vec<(&'static str, String)>, body: String },
    /// Reads the request and never answers.
    Hang,
    /// Takes nothing of the body for this long, then the rest of it, and never answers.
    Stall(Duration),
    /// Closes the connection after the request's head, without a byte of answer.
    Close,
    /// Serves the request, then closes without a byte of answer: the client cannot know.
    ServeThenClose,
    /// Serves and answers, then closes without having said so.
    AnswerThenClose,
    /// Sends a head that promises more body than comes, then closes.
    CutAnswer,
}

impl Fault {
    /// An S3 error document with `code`.
    pub fn error(status: u16, code: &str) -> Fault {
        Fault::error_with(status, code, "injected", &[])
    }

    /// The same with a message and headers.
    pub fn error_with(
        status: u16,
        code: &str,
        message: &str,
        headers: &[(&'static str, &str)],
    ) -> Fault {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>"
        );
        let mut headers: Vec<_> = headers.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        headers.push(("content-type", "application/xml".to_owned()));
        Fault::Reply { status, headers, body }
    }

    /// A 307 to `location`.
    pub fn redirect(location: &str) -> Fault {
        let message = "Please re-send this request to the specified temporary endpoint.";
        Fault::error_with(307, "TemporaryRedirect", message, &[("location", location)])
    }
}

/// One request as it came in.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    /// Path and query, still escaped.
    pub path: String,
    pub headers: HeaderMap,
    /// Which connection, counted from 0.
    pub connection: u64,
}

impl Seen {
    /// A header's value, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// How a server differs from the plain one.
#[derive(Default)]
pub struct Options {
    /// Serve https with this.
    pub tls: Option<Arc<tokio_rustls::rustls::ServerConfig>>,
    /// Take `bucket.DOMAIN` in the host header for virtual-host style.
    pub domain: Option<String>,
    /// Listen on this, which is bound already, instead of a port of its own.
    pub socket: Option<Socket>,
}

/// A port that is nobody else's and on which nobody listens yet: connections to it are refused.
pub fn silent_port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).expect("a loopback port");
    let addr = socket.local_addr().expect("a bound socket");
    (socket, addr.as_socket().expect("an IPv4 address"))
}

/// A listener whose queue is full, so that connects to it are not answered.
pub fn deaf_listener() -> ((std::net::TcpListener, Vec<std::net::TcpStream>), SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let listener = std::net::TcpListener::from(socket);
    let addr = listener.local_addr().unwrap();
    let short = Duration::from_millis(100);
    let queued =
        (0..4).map_while(|_| std::net::TcpStream::connect_timeout(&addr, short).ok()).collect();
    ((listener, queued), addr)
}

/// A running server; dropping it ends it and removes its objects.
pub struct S3Server {
    addr: SocketAddr,
    scheme: &'static str,
    root: tempfile::TempDir,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

type Decide = dyn Fn(&Seen) -> Option<Fault> + Send + Sync;

#[derive(Default)]
struct State {
    queued: Mutex<VecDeque<Fault>>,
    decide: Mutex<Option<Arc<Decide>>>,
    seen: Mutex<Vec<Seen>>,
    keys: Keys,
    accepted: AtomicU64,
    open: AtomicUsize,
    close_all: Notify,
}

impl S3Server {
    /// A plain http server with [`BUCKET`] in it.
    pub fn start() -> S3Server {
        S3Server::start_with(Options::default())
    }

    pub fn start_with(options: Options) -> S3Server {
        let root = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(root.path().join(BUCKET)).expect("a fresh directory");
        let state = Arc::new(State::default());
        state.keys.set(ACCESS_KEY, SECRET_KEY);
        let socket = options.socket.unwrap_or_else(|| silent_port().0);
        socket.listen(1024).expect("a bound socket");
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true).expect("a socket");
        let addr = listener.local_addr().expect("a bound socket");
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let s3 = service(root.path(), &state.keys, options.domain);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn({
            let state = state.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let accept = accept(listener, options.tls, s3, state);
                runtime.expect("a runtime").block_on(async {
                    tokio::select! { () = accept => {}, _ = stopped => {} }
                });
            }
        });
        S3Server { addr, scheme, root, state, stop: Some(stop), thread: Some(thread) }
    }

    /// The endpoint, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Queues a fault for the next request; each is used once, before anything
    /// [`S3Server::fail_when`] decides.
    pub fn fail_next(&self, fault: Fault) {
        self.state.queued.lock().unwrap().push_back(fault);
    }

    /// Decides for every request that no queued fault takes.
    pub fn fail_when(&self, decide: impl Fn(&Seen) -> Option<Fault> + Send + Sync + 'static) {
        *self.state.decide.lock().unwrap() = Some(Arc::new(decide));
    }

    /// Forgets all faults.
    pub fn heal(&self) {
        self.state.queued.lock().unwrap().clear();
        *self.state.decide.lock().unwrap() = None;
    }

    /// Every request so far, in order of arrival.
    pub fn requests(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// The last request.
    pub fn last_request(&self) -> Seen {
        self.requests().pop().expect("a request has come")
    }

    /// Takes this key pair from now on, beside the others.
    pub fn add_keys(&self, access_key: &str, secret_key: &str) {
        self.state.keys.set(access_key, secret_key);
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// Connections accepted since the start.
    pub fn accepted_connections(&self) -> u64 {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Closes every open connection without a word.
    pub fn close_connections(&self) {
        self.state.close_all.notify_waiters();
    }

    /// Where the objects of [`BUCKET`] lie as files.
    pub fn bucket(&self) -> PathBuf {
        self.root.path().join(BUCKET)
    }

    /// The bytes stored under `key` in [`BUCKET`], read from the disk.
    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        std::fs::read(self.bucket().join(key)).ok()
    }

    /// Every object of [`BUCKET`], by key.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let bucket = self.bucket();
        let mut objects = BTreeMap::new();
        let mut folders = vec![bucket.clone()];
        while let Some(folder) = folders.pop() {
            for path in entries(&folder) {
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(bytes) = std::fs::read(&path) {
                    let key = path.strip_prefix(&bucket).expect("below the bucket");
                    objects.insert(key.to_string_lossy().into_owned(), bytes);
                }
            }
        }
        objects
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}

fn service(root: &Path, keys: &Keys, domain: Option<String>) -> S3Service {
    let files = s3s_fs::FileSystem::new(root).expect("the directory exists");
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(keys.clone());
    if let Some(domain) = domain {
        builder.set_host(SingleDomain::new(&domain).expect("a domain"));
    }
    builder.build()
}

/// The key pairs the server knows.
#[derive(Clone, Default)]
struct Keys(Arc<Mutex<HashMap<String, SecretKey>>>);

impl Keys {
    fn set(&self, access_key: &str, secret_key: &str) {
        self.0.lock().unwrap().insert(access_key.to_owned(), SecretKey::from(secret_key));
    }
}

impl S3Auth for Keys {
    fn get_secret_key<'a, 'b, 'c>(
        &'a self,
        access_key: &'b str,
    ) -> Pin<Box<dyn Future<Output = s3s::S3Result<SecretKey>> + Send + 'c>>
    where
        'a: 'c,
        'b: 'c,
    {
        let known = self.0.lock().unwrap().get(access_key).cloned();
        Box::pin(async move {
            known.ok_or_else(|| s3s::S3Error::new(s3s::S3ErrorCode::InvalidAccessKeyId))
        })
    }
}

async fn accept(
    listener: std::net::TcpListener,
    tls: Option<Arc<tokio_rustls::rustls::ServerConfig>>,
    s3: S3Service,
    state: Arc<State>,
) {
    let listener = TcpListener::from_std(listener).expect("inside the runtime");
    let tls = tls.map(TlsAcceptor::from);
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let _ = socket.set_nodelay(true);
        let id = state.accepted.fetch_add(1, Ordering::SeqCst);
        state.open.fetch_add(1, Ordering::SeqCst);
        let (s3, state, tls) = (s3.clone(), state.clone(), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(socket, id, s3, &state).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(socket).await {
                        serve(stream, id, s3, &state).await;
                    }
                }
            }
            state.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Serves one connection until it ends or is told to.
async fn serve<S>(stream: S, connection: u64, s3: S3Service, state: &Arc<State>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let close = Arc::new(Notify::new());
    let handler = service_fn(|request| {
        let (s3, state, close) = (s3.clone(), state.clone(), close.clone());
        async move { answer(request, connection, &s3, &state, close).await }
    });
    let serving =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), handler);
    tokio::select! {
        _ = serving => {}
        () = close.notified() => {}
        () = state.close_all.notified() => {}
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

async fn answer(
    request: Request<Incoming>,
    connection: u64,
    s3: &S3Service,
    state: &State,
    close: Arc<Notify>,
) -> Result<Answer, io::Error> {
    let seen = Seen {
        method: request.method().clone(),
        path: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: request.headers().clone(),
        connection,
    };
    state.seen.lock().unwrap().push(seen.clone());
    let queued = state.queued.lock().unwrap().pop_front();
    let decide = state.decide.lock().unwrap().clone();
    let fault = queued.or_else(|| decide.and_then(|decide| decide(&seen)));
    let closed = || io::Error::new(io::ErrorKind::ConnectionAborted, "closed by a fault");
    match fault {
        None => pass(request, s3).await,
        Some(Fault::Reply { status, headers, body }) => {
            // All of it is read, or the close that follows could reset the answer away.
            let _ = request.into_body().collect().await;
            Ok(reply(status, &headers, body))
        }
        Some(Fault::Hang) => {
            let _ = request.into_body().collect().await;
            std::future::pending().await
        }
        Some(Fault::Stall(stall)) => {
            tokio::time::sleep(stall).await;
            request.into_body().collect().await.map_err(io::Error::other)?;
            std::future::pending().await
        }
        Some(Fault::Close) => Err(closed()),
        Some(Fault::ServeThenClose) => {
            pass(request, s3).await?;
            Err(closed())
        }
        Some(Fault::AnswerThenClose) => {
            let answer = pass(request, s3).await;
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                close.notify_one();
            });
            answer
        }
        Some(Fault::CutAnswer) => {
            let _ = request.into_body().collect().await;
            let part = futures_lite::stream::unfold(0, move |sent| async move {
                if sent == 0 {
                    return Some((Ok(Frame::data(Bytes::from_static(b"<Error>"))), 1));
                }
                // The head and this much of the body are on their way before the end.
                tokio::time::sleep(Duration::from_millis(50)).await;
                Some((Err(io::Error::other("cut by a fault")), 2))
            });
            let body = BodyExt::boxed_unsync(StreamBody::new(part));
            let answer = Response::builder().status(503).header("content-length", "1000");
            Ok(answer.body(body).expect("a valid head"))
        }
    }
}

async fn pass(request: Request<Incoming>, s3: &S3Service) -> Result<Answer, io::Error> {
    let answer = s3.call(request.map(s3s::Body::from)).await.map_err(io::Error::other)?;
    Ok(answer.map(|body| body.map_err(io::Error::other).boxed_unsync()))
}

fn reply(status: u16, headers: &[(&'static str, String)], body: String) -> Answer {
    let body = Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = http::StatusCode::from_u16(status).expect("a status");
    for (name, value) in headers {
        answer.headers_mut().insert(*name, value.parse().expect("a header value"));
    }
    answer
}
