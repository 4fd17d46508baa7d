//! One core's kept-alive connections, last used first; bounded per origin and in age.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use super::link::Link;
use crate::store::dial::{Dialer, LinkError, Origin};
use crate::store::pool::IDLE_TIMEOUT;

pub(super) struct Links {
    dialer: Dialer,
    connect_timeout: Duration,
    /// Per origin.
    idle_max: usize,
    /// One origin, and as many more as redirects have named of late.
    idle: RefCell<Vec<(Origin, Vec<Link>)>>,
    swept: Cell<Instant>,
}

impl Links {
    pub(super) fn new(dialer: Dialer, connect_timeout: Duration, idle_max: usize) -> Links {
        let (idle, swept) = (RefCell::default(), Cell::new(Instant::now()));
        Links { dialer, connect_timeout, idle_max, idle, swept }
    }

    /// The connection last kept that still looks alive. Never waits.
    pub(super) async fn take(&self, origin: &Origin) -> Option<Link> {
        loop {
            let mut link = self.pop(origin)?;
            if link.is_quiet().await {
                return Some(link);
            }
        }
    }

    fn pop(&self, origin: &Origin) -> Option<Link> {
        let mut idle = self.idle.borrow_mut();
        let (_, links) = idle.iter_mut().find(|(of, _)| of == origin)?;
        let link = links.pop()?;
        if link.idle_since.elapsed() >= IDLE_TIMEOUT {
            // Those below have waited longer still.
            links.clear();
            return None;
        }
        Some(link)
    }

    pub(super) async fn connect(&self, origin: &Origin) -> Result<Link, LinkError> {
        Ok(Link::new(self.dialer.dial(origin, self.connect_timeout).await?))
    }

    /// Keeps `link` for the next request.
    pub(super) fn keep(&self, origin: &Origin, mut link: Link) {
        let now = Instant::now();
        link.idle_since = now;
        let mut idle = self.idle.borrow_mut();
        if now - self.swept.replace(now) >= IDLE_TIMEOUT {
            idle.retain_mut(|(_, links)| {
                links.retain(|link| now - link.idle_since < IDLE_TIMEOUT);
                !links.is_empty()
            });
        }
        let at = idle.iter().position(|(of, _)| of == origin).unwrap_or_else(|| {
            idle.push((origin.clone(), Vec::new()));
            idle.len() - 1
        });
        let links = &mut idle[at].1;
        if links.len() < self.idle_max {
            links.push(link);
        }
    }

    /// Connections waiting for a request.
    pub(super) fn idle_count(&self) -> usize {
        self.idle.borrow().iter().map(|(_, links)| links.len()).sum()
    }
}
