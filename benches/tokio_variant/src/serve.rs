//! The server: one listener and one queue for all threads; starts, accepts, and stops on a signal.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use millrace::internals::config::{Config, H2Offer};
use millrace::internals::http::tokens::TokenSet;
use millrace::internals::key::KeyOf;
use millrace::internals::metrics::tokens::TokenNames;
use millrace::internals::queue::job::Stamp;
use millrace::internals::tls::TlsSnapshot;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::admit::{Admission, BodyBudget};
use crate::store::{Put, Store};
use crate::{admin, batch, conn, worker};

/// What all connections and workers share.
pub struct Server {
    pub config: Config,
    pub admission: Admission,
    pub bodies: BodyBudget,
    pub tokens: Option<Arc<TokenSet>>,
    pub store: Store,
    /// Payloads admitted and batches opened so far: what makes the next key another.
    pub seq: AtomicU64,
    pub counts: Counts,
}

impl Server {
    /// The key of an object of `count` payloads. One queue, one counter: all threads count as one
    /// core.
    pub fn key(&self, stamp: Stamp, count: u64, ext: &str) -> String {
        let Stamp { unix_nanos, seq } = stamp;
        let node = &self.config.node_id;
        let of = KeyOf { partition: "", unix_nanos, node, core: 0, seq, count, ext };
        let mut key = String::new();
        self.config.keys.write_key(&of, &mut key);
        key
    }
}

/// What a scrape shows.
#[derive(Default)]
pub struct Counts {
    pub accepted: AtomicU64,
    pub stored: AtomicU64,
    pub lost: AtomicU64,
}

/// Serves until SIGTERM or SIGINT; whether everything accepted was stored.
pub async fn serve(config: Config, put: Put) -> Result<bool, String> {
    batch::check(&config)?;
    let cores = config.cores.len();
    let (admission, jobs) = Admission::new(&config);
    let tokens = config.tokens_file.as_deref();
    let tokens = tokens.map(|path| TokenSet::load(path, &TokenNames::default())).transpose();
    let server = Arc::new(Server {
        admission,
        bodies: BodyBudget::new(config.max_body_bytes * cores),
        tokens: tokens.map_err(|error| format!("TOKENS_FILE {error}"))?.map(Arc::new),
        store: Store::open(&config, put).await?,
        seq: AtomicU64::new(0),
        counts: Counts::default(),
        config,
    });
    let mut workers = JoinSet::new();
    let batches = batch::start(&server, &jobs);
    for _ in 0..server.config.max_workers * cores {
        match &batches {
            Some(batches) => workers.spawn(worker::batch_loop(server.clone(), batches.clone())),
            None => workers.spawn(worker::payload_loop(server.clone(), jobs.clone())),
        };
    }
    drop(batches);
    let listener =
        listen(server.config.listen[0].address).map_err(|error| format!("LISTEN: {error}"))?;
    if let Some(address) = server.config.admin_listen {
        let listener = listen(address).map_err(|error| format!("ADMIN_LISTEN: {error}"))?;
        tokio::spawn(admin::serve(server.clone(), listener));
    }
    let drain = server.config.drain_timeout;
    let acceptor = acceptor(&server.config)?;
    let connections = accept_until_signal(&server, listener, acceptor).await;
    let _those_still_open_are_cut = tokio::time::timeout(drain / 2, connections.shutdown()).await;
    server.admission.close();
    let all = async { while workers.join_next().await.is_some() {} };
    let _what_is_left_is_counted = tokio::time::timeout(drain / 2, all).await;
    let count = |cell: &AtomicU64| cell.load(Relaxed);
    let (accepted, stored) = (count(&server.counts.accepted), count(&server.counts.stored));
    tracing::info!(accepted, stored, "stopped");
    Ok(accepted == stored)
}

/// What makes handshakes, if the address has TLS: with millrace's settings of rustls, and its
/// tickets.
fn acceptor(config: &Config) -> Result<Option<TlsAcceptor>, String> {
    let Some(options) = config.tls.as_ref().filter(|_| config.listen[0].tls) else {
        return Ok(None);
    };
    let snapshot = TlsSnapshot::read(options, false, None).map_err(|error| error.to_string())?;
    Ok(Some(TlsAcceptor::from(snapshot.ingest)))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

async fn accept_until_signal(
    server: &Arc<Server>,
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
) -> GracefulShutdown {
    let connections = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(server.config.max_connections * server.config.cores.len()));
    let mut builder = http1::Builder::new();
    // hyper has one deadline for an idle connection and for a head: the longer one, lest it cuts
    // idle clients off.
    builder.timer(TokioTimer::new()).header_read_timeout(server.config.idle_timeout);
    builder.half_close(true);
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be had");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be had");
    loop {
        let accept = async {
            let slot = slots.clone().acquire_owned().await.expect("never closed");
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            accepted = accept => accepted,
            _ = terminate.recv() => return connections,
            _ = interrupt.recv() => return connections,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _only_slower_without = stream.set_nodelay(true);
        let (server, builder, watcher) = (server.clone(), builder.clone(), connections.watcher());
        match &acceptor {
            None => tokio::spawn(async move {
                serve_connection(server, builder, stream, watcher).await;
                drop(slot);
            }),
            Some(acceptor) => {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Some(stream) = shake(&server, &acceptor, stream).await {
                        serve_connection(server, builder, stream, watcher).await;
                    }
                    drop(slot);
                })
            }
        };
    }
}

/// Makes the handshake, in `TLS_HANDSHAKE_TIMEOUT`.
async fn shake(
    server: &Server,
    acceptor: &TlsAcceptor,
    stream: TcpStream,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    let timeout = server.config.tls.as_ref().expect("it has TLS").handshake_timeout;
    match tokio::time::timeout(timeout, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "handshake failed");
            None
        }
        Err(_) => None,
    }
}

async fn serve_connection(
    server: Arc<Server>,
    builder: http1::Builder,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    watcher: Watcher,
) {
    let h2 = server.config.h2.offer == H2Offer::All;
    let streams_max = server.config.h2.streams_max as u32;
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { conn::handle(&server, request).await }
    });
    let io = TokioIo::new(stream);
    // The lane's clients speak nothing else then.
    let served = match h2 {
        false => watcher.watch(builder.serve_connection(io, service)).await,
        true => {
            // The limits are millrace's own.
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .max_concurrent_streams(streams_max)
                .initial_connection_window_size(4 << 20)
                .initial_stream_window_size(1 << 20)
                .max_header_list_size(16 << 10)
                .header_table_size(1 << 10)
                .max_send_buf_size(16 << 10);
            watcher.watch(builder.serve_connection(io, service)).await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}
