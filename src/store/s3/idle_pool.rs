//! The idle kept-alive connections of one executor. Both S3 clients keep theirs in an [`IdlePool`].
//!
//! The connection released last is taken first. Three bounds apply: connections per server
//! (`idle_max`), idle time ([`IDLE_TIMEOUT`]), and age. Without a bound on age, a busy connection
//! would stay with an address that its host name no longer has. Pools are never shared between
//! cores. A connection that a pool drops closes itself.

use crate::rt;
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use super::dial::ServerAddress;

/// A connection idle for longer is closed, not reused: stores close theirs soon after.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// A kept-alive connection, as far as its pool needs to know it.
pub(super) trait Connection {
    /// Whether it still looks alive. Never waits for the peer.
    fn is_alive(&mut self) -> bool;

    /// When it is too old for another request; `None`: never.
    fn retire_at(&self) -> Option<Instant>;
}

impl<C: Connection> Connection for Box<C> {
    fn is_alive(&mut self) -> bool {
        (**self).is_alive()
    }

    fn retire_at(&self) -> Option<Instant> {
        (**self).retire_at()
    }
}

struct Idle<C> {
    connection: C,
    since: Instant,
}

/// Idle connections of type `C`, by server.
pub(super) struct IdlePool<C> {
    /// Per server.
    idle_max: usize,
    /// The store's server, and those that redirects have named lately.
    servers: RefCell<Vec<(ServerAddress, Vec<Idle<C>>)>>,
    swept: Cell<Instant>,
}

impl<C: Connection> IdlePool<C> {
    pub(super) fn new(idle_max: usize) -> IdlePool<C> {
        IdlePool { idle_max, servers: RefCell::default(), swept: Cell::new(rt::now()) }
    }

    /// The connection to `server` put last that is alive, not idle for too long and not too old.
    pub(super) fn take(&self, server: &ServerAddress, now: Instant) -> Option<C> {
        let mut servers = self.servers.borrow_mut();
        let (_, idle) = servers.iter_mut().find(|(of, _)| of == server)?;
        while let Some(Idle { mut connection, since }) = idle.pop() {
            if now.saturating_duration_since(since) >= IDLE_TIMEOUT {
                // Those below have been idle even longer.
                idle.clear();
                return None;
            }
            if !is_retired(&connection, now) && connection.is_alive() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps `connection` for the next request to `server`, unless it is too old or the server
    /// already has `idle_max`.
    pub(super) fn put(&self, server: &ServerAddress, connection: C, now: Instant) {
        let mut servers = self.servers.borrow_mut();
        if now.saturating_duration_since(self.swept.get()) >= IDLE_TIMEOUT {
            self.swept.set(now);
            servers.retain_mut(|(_, idle)| {
                idle.retain(|idle| {
                    now.saturating_duration_since(idle.since) < IDLE_TIMEOUT
                        && !is_retired(&idle.connection, now)
                });
                !idle.is_empty()
            });
        }
        if is_retired(&connection, now) {
            return;
        }
        let at = servers.iter().position(|(of, _)| of == server).unwrap_or_else(|| {
            servers.push((server.clone(), Vec::new()));
            servers.len() - 1
        });
        let idle = &mut servers[at].1;
        if idle.len() < self.idle_max {
            idle.push(Idle { connection, since: now });
        }
    }

    /// Idle connections to all servers.
    pub(super) fn count(&self) -> usize {
        self.servers.borrow().iter().map(|(_, idle)| idle.len()).sum()
    }
}

fn is_retired<C: Connection>(connection: &C, now: Instant) -> bool {
    connection.retire_at().is_some_and(|at| now >= at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Fake {
        id: u32,
        alive: bool,
        retire_at: Option<Instant>,
    }

    impl Connection for Fake {
        fn is_alive(&mut self) -> bool {
            self.alive
        }

        fn retire_at(&self) -> Option<Instant> {
            self.retire_at
        }
    }

    fn fake(id: u32) -> Fake {
        Fake { id, alive: true, retire_at: None }
    }

    fn server(host: &str) -> ServerAddress {
        ServerAddress { https: false, host: host.into(), port: 80 }
    }

    /// Puts connections with the given ages (seconds after the start at which they are put, and at
    /// which they retire), then takes until nothing is left, `at` seconds after the start.
    #[test]
    fn which_connections_are_taken_and_in_which_order() {
        let idle_s = IDLE_TIMEOUT.as_secs() as u32;
        type Put = (u32, Option<u32>);
        let table: &[(&str, &[Put], u32, &[u32])] = &[
            ("an empty pool has none", &[], 0, &[]),
            ("the last one put is taken first", &[(0, None), (0, None)], 0, &[1, 0]),
            ("a third is one too many", &[(0, None), (0, None), (0, None)], 0, &[1, 0]),
            ("an idle one ends, and those below it", &[(0, None), (0, None)], idle_s, &[]),
            ("only what is idle for too long ends", &[(0, None), (9, None)], idle_s + 1, &[1]),
            ("an old one does not hide a younger one", &[(0, Some(60)), (0, Some(1))], 2, &[0]),
            ("a retired one is not taken", &[(0, Some(3))], 3, &[]),
            ("a retired one is not kept", &[(3, Some(3))], 3, &[]),
        ];
        for (what, puts, at, expected) in table {
            let (pool, start) = (IdlePool::new(2), Instant::now());
            let (a, b) = (server("a"), server("b"));
            for (id, (put_s, retire_s)) in (0..).zip(*puts) {
                let retire_at = retire_s.map(|s| start + s * SECOND);
                pool.put(&a, Fake { retire_at, ..fake(id) }, start + *put_s * SECOND);
            }
            let now = start + *at * SECOND;
            assert_eq!(pool.take(&b, now), None, "{what}: another server");
            let taken = std::iter::from_fn(|| pool.take(&a, now)).map(|fake| fake.id);
            assert_eq!(taken.collect::<Vec<_>>(), *expected, "{what}");
            assert_eq!(pool.count(), 0, "{what}");
        }
    }

    #[test]
    fn a_busy_connection_is_reused_until_it_retires_and_not_after() {
        let (pool, start) = (IdlePool::new(8), Instant::now());
        let (a, busy) = (server("a"), Fake { retire_at: Some(start + 60 * SECOND), ..fake(7) });
        pool.put(&a, busy, start);
        for second in 1..60 {
            let now = start + second * SECOND;
            assert_eq!(pool.take(&a, now), Some(busy), "{second}");
            pool.put(&a, busy, now);
        }
        assert_eq!(pool.take(&a, start + 60 * SECOND), None);
        pool.put(&a, busy, start + 61 * SECOND);
        assert_eq!(pool.count(), 0, "a retired connection is not kept either");
    }

    #[test]
    fn a_dead_connection_is_dropped_and_the_next_one_taken() {
        let (pool, a, now) = (IdlePool::new(8), server("a"), Instant::now());
        pool.put(&a, fake(1), now);
        pool.put(&a, Fake { alive: false, ..fake(2) }, now);
        assert_eq!(pool.take(&a, now), Some(fake(1)));
        assert_eq!(pool.take(&a, now), None);
    }

    #[test]
    fn servers_without_connections_are_swept() {
        let (pool, start) = (IdlePool::new(8), Instant::now());
        let (a, b) = (server("a"), server("b"));
        pool.put(&a, fake(3), start);
        pool.put(&b, fake(4), start + 2 * IDLE_TIMEOUT);
        assert_eq!(pool.servers.borrow().len(), 1, "a is gone");
    }
}
