//! One core's kept-alive HTTP/1.1 connections, last used first.
//!
//! Bounded per origin by [`Pool::new`]'s `idle_max` and in age by [`IDLE_TIMEOUT`]; never shared
//! between cores. A connection runs on a task of its own, which it owns: dropping the connection
//! ends the task and closes the socket.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_lite::future;
use glommio::Task;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use smol_hyper::rt::FuturesIo;

use super::dial::{Dialer, LinkError, Origin};
use crate::deadline::within;
use crate::net::Acknowledged;

/// A connection idle for longer is closed, not reused: stores close theirs soon after.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

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
    idle_since: Instant,
    /// Ends, and closes the socket, when the connection is dropped.
    _task: Task<()>,
}

pub(crate) struct Pool {
    dialer: Dialer,
    idle_max: usize,
    idle: RefCell<HashMap<Origin, Vec<Conn>>>,
    swept: Cell<Instant>,
}

impl Pool {
    /// At most `idle_max` idle connections are kept per origin.
    pub(crate) fn new(dialer: Dialer, idle_max: usize) -> Rc<Pool> {
        Rc::new(Pool {
            dialer,
            idle_max,
            idle: RefCell::default(),
            swept: Cell::new(Instant::now()),
        })
    }

    /// The connection last given back that still looks alive.
    pub(crate) fn take(&self, origin: &Origin) -> Option<Conn> {
        let mut idle = self.idle.borrow_mut();
        let conns = idle.get_mut(origin)?;
        while let Some(conn) = conns.pop() {
            if conn.idle_since.elapsed() >= IDLE_TIMEOUT {
                // Those below have waited longer still.
                conns.clear();
                return None;
            }
            if !conn.sender.is_closed() {
                return Some(conn);
            }
        }
        None
    }

    pub(crate) async fn connect(
        &self,
        origin: &Origin,
        timeout: Duration,
    ) -> Result<Conn, LinkError> {
        let wire = self.dialer.dial(origin, timeout).await?;
        let (bytes_read, peer) = (wire.bytes_read(), wire.acknowledged());
        let (sender, connection) = http1::handshake(FuturesIo::new(wire))
            .await
            .map_err(|e| LinkError::Broken { host: origin.host.clone(), why: e.to_string() })?;
        let task = glommio::spawn_local(async move {
            // Its error reaches the request in flight; without one it is a close by the peer.
            let _ = connection.await;
        });
        Ok(Conn { sender, bytes_read, peer, idle_since: Instant::now(), _task: task })
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
                glommio::spawn_local(async move {
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

    fn keep(&self, origin: &Origin, mut conn: Conn) {
        conn.idle_since = Instant::now();
        let mut idle = self.idle.borrow_mut();
        if self.swept.get().elapsed() >= IDLE_TIMEOUT {
            self.swept.set(Instant::now());
            idle.retain(|_, conns| {
                conns.retain(|c| c.idle_since.elapsed() < IDLE_TIMEOUT && !c.sender.is_closed());
                !conns.is_empty()
            });
        }
        let conns = match idle.get_mut(origin) {
            Some(conns) => conns,
            None => idle.entry(origin.clone()).or_default(),
        };
        if conns.len() < self.idle_max {
            conns.push(conn);
        }
    }

    /// Connections waiting for a request.
    pub(crate) fn idle_count(&self) -> usize {
        self.idle.borrow().values().map(Vec::len).sum()
    }
}
