//! Binds addresses that may become free only in a moment: a killed process keeps its sockets until
//! the kernel has torn down its io_uring, which is some time after `wait` has returned.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::manager::ServiceManager;
use crate::preflight;
use crate::rt;
use crate::rt::sleep;

/// Time between two tries.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// How long a start waits for its addresses, all of them together.
pub(super) struct BindRetry {
    /// `BIND_WAIT`.
    limit: Duration,
    /// When an address was first found to be taken.
    since: Cell<Option<Instant>>,
    /// Learns that the start waits.
    manager: ServiceManager,
}

impl BindRetry {
    /// Retries for up to `limit` in all.
    pub(super) fn new(limit: Duration, manager: ServiceManager) -> BindRetry {
        BindRetry { limit, since: Cell::new(None), manager }
    }

    /// Binds `address`, the value of the setting `name`. Retries while it is taken.
    ///
    /// # Errors
    /// One sentence with the remedy.
    pub(super) async fn retry<T>(
        &self,
        name: &'static str,
        address: SocketAddr,
        bind: impl Fn(SocketAddr) -> io::Result<T>,
    ) -> Result<T, String> {
        let mut logged = false;
        loop {
            let error = match bind(address) {
                Ok(bound) => return Ok(bound),
                Err(error) => error,
            };
            let since = self.since.get().unwrap_or_else(rt::now);
            self.since.set(Some(since));
            let limit = self.limit;
            if error.kind() != ErrorKind::AddrInUse || rt::since(since) >= limit {
                let waited = match error.kind() {
                    ErrorKind::AddrInUse if !limit.is_zero() => {
                        format!(", for BIND_WAIT={limit:?} now")
                    }
                    _ => String::new(),
                };
                let refusal = preflight::bind_refusal(name, address, error);
                let remedy = refusal.remedy.unwrap_or_default();
                return Err(format!("{name}: {}{waited}: {remedy}", refusal.detail));
            }
            if !logged {
                logged = true;
                let left = limit.saturating_sub(rt::since(since));
                self.manager.waits(&format!("waiting for {name} {address}"), left);
                tracing::info!("{name} {address} is taken, retrying for up to {limit:?}");
            }
            sleep(TRY_EVERY).await;
        }
    }
}
