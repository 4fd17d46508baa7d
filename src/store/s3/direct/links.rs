//! One core's kept-alive connections of the lean client.

use std::time::Duration;

use super::link::Link;
use crate::store::s3::dial::{Dialer, LinkError, Origin};
use crate::store::s3::idle::Idle;

pub(super) struct Links {
    dialer: Dialer,
    connect_timeout: Duration,
    idle: Idle<Link>,
}

impl Links {
    /// At most `idle_max` idle connections are kept per origin.
    pub(super) fn new(dialer: Dialer, connect_timeout: Duration, idle_max: usize) -> Links {
        Links { dialer, connect_timeout, idle: Idle::new(idle_max) }
    }

    /// The connection last kept that still looks alive. Never waits.
    pub(super) async fn take(&self, origin: &Origin) -> Option<Link> {
        loop {
            let mut link = self.idle.take(origin)?;
            if link.is_quiet().await {
                return Some(link);
            }
        }
    }

    pub(super) async fn connect(&self, origin: &Origin) -> Result<Link, LinkError> {
        Ok(Link::new(self.dialer.dial(origin, self.connect_timeout).await?))
    }

    /// Keeps `link` for the next request.
    pub(super) fn keep(&self, origin: &Origin, link: Link) {
        let retire_at = link.retire_at();
        self.idle.keep(origin, link, retire_at);
    }

    /// Connections waiting for a request.
    pub(super) fn idle_count(&self) -> usize {
        self.idle.count()
    }
}
