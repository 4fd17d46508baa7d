//! `GET /healthz` and `GET /readyz` on the ingest port (`INGEST_HEALTH`), for balancers that can only
//! probe the port they send traffic to. They say what the admin pages of the same names say, but
//! not why: strangers can read them.
//!
//! Whether the server is ready is judged by the control executor, which publishes it every
//! [`PUBLISH_PERIOD`]; a core reads it with one atomic load. A core that drains says so at once. If
//! nothing is published for [`PUBLISHED_VALID`], control is stuck and its own pages answer nobody,
//! so a core says that the server is not ready.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::Method;
use http::request::Parts;

use crate::rt;
use crate::stop::Stop;

/// How often control judges whether the server is ready.
pub const PUBLISH_PERIOD: Duration = Duration::from_millis(100);

/// For how long that counts: control may be late on a busy host, but not by as much as this.
const PUBLISHED_VALID: Duration = Duration::from_secs(5);

/// Whether the whole server is ready, written by control and read by the cores.
pub struct Readiness {
    epoch: Instant,
    /// Until when the server counts as ready, in milliseconds since `epoch`; 0: it is not ready.
    until_ms: AtomicU64,
}

impl Readiness {
    /// Not ready yet.
    pub fn new(epoch: Instant) -> Readiness {
        Readiness { epoch, until_ms: AtomicU64::new(0) }
    }

    /// Publishes what holds at `now`.
    pub fn publish(&self, is_ready: bool, now: Instant) {
        let until = if is_ready { self.ms(now + PUBLISHED_VALID) } else { 0 };
        self.until_ms.store(until, Relaxed);
    }

    fn is_ready(&self, now: Instant) -> bool {
        self.ms(now) < self.until_ms.load(Relaxed)
    }

    fn ms(&self, time: Instant) -> u64 {
        time.saturating_duration_since(self.epoch).as_millis() as u64
    }
}

/// The answer to a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthStatus {
    /// `/healthz`: the core answers.
    Alive,
    Ready,
    NotReady,
}

impl HealthStatus {
    pub(super) fn text(self) -> &'static str {
        match self {
            HealthStatus::Alive => "ok\n",
            HealthStatus::Ready => "ready\n",
            HealthStatus::NotReady => "not ready\n",
        }
    }
}

/// What a request for a health page gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HealthAnswer {
    Status(HealthStatus),
    /// Only `GET` and `HEAD`.
    MethodNotAllowed,
}

/// One core's health pages.
pub struct HealthPages {
    pub readiness: Arc<Readiness>,
    pub stop: Rc<Stop>,
}

impl HealthPages {
    /// The answer, if `head` is for one of the pages.
    pub(super) fn answer(&self, head: &Parts) -> Option<HealthAnswer> {
        let status = match head.uri.path() {
            "/healthz" => HealthStatus::Alive,
            "/readyz" if self.is_ready() => HealthStatus::Ready,
            "/readyz" => HealthStatus::NotReady,
            _ => return None,
        };
        Some(match head.method {
            Method::GET | Method::HEAD => HealthAnswer::Status(status),
            _ => HealthAnswer::MethodNotAllowed,
        })
    }

    fn is_ready(&self) -> bool {
        !self.stop.draining.get() && self.readiness.is_ready(rt::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn head(method: &str, target: &str) -> Parts {
        Request::builder().method(method).uri(target).body(()).unwrap().into_parts().0
    }

    fn pages() -> HealthPages {
        let readiness = Arc::new(Readiness::new(rt::now()));
        HealthPages { readiness, stop: Rc::default() }
    }

    #[test]
    fn the_two_pages_and_no_other() {
        use HealthStatus::{Alive, NotReady, Ready};
        let pages = pages();
        for method in ["GET", "HEAD"] {
            for target in ["/healthz", "/healthz?verbose", "http://x/healthz"] {
                let alive = Some(HealthAnswer::Status(Alive));
                assert_eq!(pages.answer(&head(method, target)), alive, "{target}");
            }
            for (is_ready, status) in [(false, NotReady), (true, Ready), (false, NotReady)] {
                pages.readiness.publish(is_ready, rt::now());
                let answer = pages.answer(&head(method, "/readyz"));
                assert_eq!(answer, Some(HealthAnswer::Status(status)));
            }
        }
        for method in ["POST", "PUT", "OPTIONS", "get"] {
            for target in ["/healthz", "/readyz"] {
                let answer = pages.answer(&head(method, target));
                assert_eq!(answer, Some(HealthAnswer::MethodNotAllowed), "{method} {target}");
            }
        }
        for target in
            ["/", "/healthz/", "//healthz", "/Healthz", "/health", "/readyz2", "/payloads", "*"]
        {
            assert_eq!(pages.answer(&head("GET", target)), None, "{target}");
        }
    }

    #[test]
    fn what_is_published_counts_for_a_while_and_a_stop_ends_it() {
        let pages = pages();
        let (start, epoch) = (rt::now(), pages.readiness.epoch);
        assert!(!pages.readiness.is_ready(start), "nothing is published yet");
        pages.readiness.publish(true, start);
        let after = |time| pages.readiness.is_ready(start + time);
        assert!(after(Duration::ZERO) && after(PUBLISHED_VALID - Duration::from_millis(2)));
        assert!(!after(PUBLISHED_VALID + Duration::from_millis(2)));
        assert!(pages.readiness.is_ready(epoch), "a clock that was read before");
        assert!(pages.is_ready());
        pages.stop.begin(rt::now());
        assert!(!pages.is_ready(), "whatever is published");
    }
}
