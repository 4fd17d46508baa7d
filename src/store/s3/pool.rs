//! One core's kept-alive HTTP/1.1 connections of the SDK's client.
//!
//! A connection runs on a task of its own, which it owns: dropping the connection ends the task and
//! closes the socket.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_lite::future;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use smol_hyper::rt::FuturesIo;

use super::dial::{Dialer, LinkError, Origin};
use super::idle::Idle;
use crate::deadline::within;
use crate::net::Acknowledged;
use crate::rt::{self, Task};
use crate::store::s3::proxies::Proxy;

/// How long a connection whose answer came before its request was fully sent may take to become
/// reusable.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// One connection and the task that moves its bytes.
pub(crate) struct Conn {
    pub(crate) sender: SendRequest<Full<Bytes>>,
    /// Bytes of answers read so far.
    pub(crate) bytes_read: Rc<Cell<u64>>,
    /// What the peer has acknowledged.
    pub(crate) peer: Acknowledged,
    retire_at: Option<Instant>,
    /// Ends, and closes the socket, when the connection is dropped.
    _task: Task<()>,
}

pub(crate) struct Pool {
    dialer: Dialer,
    idle: Idle<Conn>,
}

impl Pool {
    /// At most `idle_max` idle connections are kept per origin.
    pub(crate) fn new(dialer: Dialer, idle_max: usize) -> Rc<Pool> {
        Rc::new(Pool { dialer, idle: Idle::new(idle_max) })
    }

    /// The connection last given back that still looks alive.
    pub(crate) fn take(&self, origin: &Origin) -> Option<Conn> {
        loop {
            let conn = self.idle.take(origin)?;
            if !conn.sender.is_closed() {
                return Some(conn);
            }
        }
    }

    /// The proxy that wants requests to `origin` in absolute form, if there is one.
    pub(crate) fn absolute_form(&self, origin: &Origin) -> Option<&Proxy> {
        self.dialer.absolute_form(origin)
    }

    pub(crate) async fn connect(
        &self,
        origin: &Origin,
        timeout: Duration,
    ) -> Result<Conn, LinkError> {
        let wire = self.dialer.dial(origin, timeout).await?;
        let (bytes_read, retire_at) = (wire.bytes_read(), wire.retire_at());
        let peer = wire.acknowledged();
        let (sender, connection) = http1::handshake(FuturesIo::new(wire))
            .await
            .map_err(|e| LinkError::Broken { host: origin.host.clone(), why: e.to_string() })?;
        let task = rt::spawn(async move {
            // Its error reaches the request in flight; without one it is a close by the peer.
            let _ = connection.await;
        });
        Ok(Conn { sender, bytes_read, peer, retire_at, _task: task })
    }

    /// Keeps `conn` for the next request if it can take one, else closes it. Never waits.
    pub(crate) async fn give_back(pool: &Rc<Pool>, origin: &Origin, mut conn: Conn) {
        match future::poll_once(conn.sender.ready()).await {
            Some(Ok(())) => pool.keep(origin, conn),
            Some(Err(_)) => {}
            None => {
                // The store answered early, or the connection's task has yet to see the end of the
                // exchange. Off the request's path, for a bounded time.
                let (pool, origin) = (Rc::downgrade(pool), origin.clone());
                rt::spawn(async move {
                    let settled = async { conn.sender.ready().await.is_ok() };
                    if within(SETTLE_TIMEOUT, settled, || false).await
                        && let Some(pool) = pool.upgrade()
                    {
                        pool.keep(&origin, conn);
                    }
                })
                .detach();
            }
        }
    }

    fn keep(&self, origin: &Origin, conn: Conn) {
        let retire_at = conn.retire_at;
        self.idle.keep(origin, conn, retire_at);
    }

    /// Connections waiting for a request.
    pub(crate) fn idle_count(&self) -> usize {
        self.idle.count()
    }
}
