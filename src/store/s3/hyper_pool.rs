//! The HTTP/1.1 connections of the SDK's client on one executor, by hyper.
//!
//! Each connection owns the task that drives it: dropping the connection ends the task and closes
//! the socket.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::rt::{self, Task, TaskKind};
use bytes::Bytes;
use futures_lite::future;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use smol_hyper::rt::FuturesIo;

use super::dial::{ConnectionError, Dialer, ServerAddress};
use super::idle_pool::{Connection, IdlePool};
use crate::deadline::within;
use crate::net::Acknowledged;
use crate::store::s3::proxies::Proxy;

/// How long a connection may take to become reusable when its response came before its request was
/// fully sent.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// One connection and the task that moves its bytes.
pub(super) struct HyperConnection {
    pub(super) sender: SendRequest<Full<Bytes>>,
    /// Bytes of responses read so far.
    pub(super) bytes_read: Rc<Cell<u64>>,
    /// What the peer has acknowledged.
    pub(super) peer: Acknowledged,
    retire_at: Option<Instant>,
    /// Ends, and closes the socket, when the connection is dropped.
    _task: Task<()>,
}

impl Connection for HyperConnection {
    fn is_alive(&mut self) -> bool {
        !self.sender.is_closed()
    }

    fn retire_at(&self) -> Option<Instant> {
        self.retire_at
    }
}

/// Connects, and keeps idle connections for the next request.
pub(super) struct HyperPool {
    dialer: Dialer,
    idle: IdlePool<HyperConnection>,
}

impl HyperPool {
    /// At most `idle_max` idle connections are kept per server.
    pub(super) fn new(dialer: Dialer, idle_max: usize) -> Rc<HyperPool> {
        Rc::new(HyperPool { dialer, idle: IdlePool::new(idle_max) })
    }

    /// The connection given back last that is still alive.
    pub(super) fn take(&self, server: &ServerAddress) -> Option<HyperConnection> {
        self.idle.take(server, rt::now())
    }

    /// The proxy that takes requests for `server` in absolute form, if there is one.
    pub(super) fn absolute_form(&self, server: &ServerAddress) -> Option<&Proxy> {
        self.dialer.absolute_form(server)
    }

    pub(super) async fn connect(
        &self,
        server: &ServerAddress,
        timeout: Duration,
    ) -> Result<HyperConnection, ConnectionError> {
        let wire = self.dialer.dial(server, timeout).await?;
        let (bytes_read, retire_at) = (wire.bytes_read(), wire.retire_at());
        let peer = wire.acknowledged();
        let (sender, connection) = http1::handshake(FuturesIo::new(wire)).await.map_err(|e| {
            ConnectionError::Broken { host: server.host.clone(), why: e.to_string() }
        })?;
        let task = rt::spawn_as(TaskKind::Store, async move {
            // An error reaches the request in flight. Without one the peer has closed.
            let _ = connection.await;
        });
        Ok(HyperConnection { sender, bytes_read, peer, retire_at, _task: task })
    }

    /// Keeps `conn` for the next request if it can take one, and closes it otherwise. Never waits.
    pub(super) async fn give_back(
        pool: &Rc<HyperPool>,
        server: &ServerAddress,
        mut conn: HyperConnection,
    ) {
        match future::poll_once(conn.sender.ready()).await {
            Some(Ok(())) => pool.idle.put(server, conn, rt::now()),
            Some(Err(_)) => {}
            None => {
                // The store answered early, or the connection's task has not seen the end of the
                // exchange yet. A detached task waits for it, for a bounded time, so that this
                // request does not.
                let (pool, server) = (Rc::downgrade(pool), server.clone());
                rt::spawn_as(TaskKind::Store, async move {
                    let settled = async { conn.sender.ready().await.is_ok() };
                    if within(SETTLE_TIMEOUT, settled, || false).await
                        && let Some(pool) = pool.upgrade()
                    {
                        pool.idle.put(&server, conn, rt::now());
                    }
                })
                .detach();
            }
        }
    }

    /// Connections without a request.
    pub(super) fn idle_count(&self) -> usize {
        self.idle.count()
    }
}
