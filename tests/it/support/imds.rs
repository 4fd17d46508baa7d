//! A stub of EC2's instance metadata (IMDSv2): one role, whose credentials the test decides.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// What the role's credentials are on the n-th fetch, counted from 0.
pub struct RoleKeys {
    pub access_key: String,
    pub secret_key: String,
    pub token: String,
    /// Life from now, seconds.
    pub life_s: i64,
}

/// A running stub; dropping it ends it.
pub struct Imds {
    addr: SocketAddr,
    fetched: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Imds {
    pub fn start(keys: impl Fn(usize) -> RoleKeys + Send + Sync + 'static) -> Imds {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        listener.set_nonblocking(true).expect("a socket");
        let addr = listener.local_addr().expect("a bound socket");
        let fetched = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel();
        let accept = accept(listener, Arc::new(keys), fetched.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                tokio::select! { () = accept => {}, _ = stopped => {} }
            });
        });
        Imds { addr, fetched, stop: Some(stop), thread: Some(thread) }
    }

    /// For `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// How often credentials were handed out.
    pub fn fetched(&self) -> usize {
        self.fetched.load(Ordering::SeqCst)
    }
}

impl Drop for Imds {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Decide = dyn Fn(usize) -> RoleKeys + Send + Sync;

async fn accept(listener: std::net::TcpListener, keys: Arc<Decide>, fetched: Arc<AtomicUsize>) {
    let listener = TcpListener::from_std(listener).expect("inside the runtime");
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let (keys, fetched) = (keys.clone(), fetched.clone());
        tokio::spawn(async move {
            let handler = service_fn(|request| {
                let answer = answer(&request, &*keys, &fetched);
                async move { Ok::<_, Infallible>(answer) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), handler)
                .await;
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    keys: &Decide,
    fetched: &AtomicUsize,
) -> Response<Full<Bytes>> {
    const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
    let text = |body: String| Response::new(Full::new(Bytes::from(body)));
    let path = request.uri().path();
    match (request.method(), path) {
        (&Method::PUT, "/latest/api/token") => {
            let mut token = text("a-session-token".into());
            let ttl = "21600".parse().expect("a header value");
            token.headers_mut().insert("x-aws-ec2-metadata-token-ttl-seconds", ttl);
            token
        }
        (&Method::GET, ROLES) => text("the-role".into()),
        (&Method::GET, "/latest/meta-data/placement/region") => text("eu-central-1".into()),
        (&Method::GET, path) if path == format!("{ROLES}the-role") => {
            let keys = keys(fetched.fetch_add(1, Ordering::SeqCst));
            text(document(&keys))
        }
        _ => {
            let mut missing = text(String::new());
            *missing.status_mut() = http::StatusCode::NOT_FOUND;
            missing
        }
    }
}

fn document(keys: &RoleKeys) -> String {
    let now = aws_smithy_types::DateTime::from(std::time::SystemTime::now());
    let expiration = aws_smithy_types::DateTime::from_secs(now.secs() + keys.life_s);
    let date = |t: aws_smithy_types::DateTime| {
        t.fmt(aws_smithy_types::date_time::Format::DateTime).expect("a date in range")
    };
    serde_json::json!({
        "Code": "Success",
        "Type": "AWS-HMAC",
        "LastUpdated": date(now),
        "AccessKeyId": keys.access_key,
        "SecretAccessKey": keys.secret_key,
        "Token": keys.token,
        "Expiration": date(expiration),
    })
    .to_string()
}
