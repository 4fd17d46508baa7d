//! What is answered without a token and without a body: health pages and preflights. Looked for
//! only where a request is none for payloads, so that those pay nothing for it.

use http::request::Parts;

use super::cors::Cors;
use super::health::{HealthAnswer, HealthPages};
use super::reply::Answer;

/// Both are `None` by default.
#[derive(Default)]
pub struct Tokenless {
    /// With `INGEST_HEALTH`.
    pub health: Option<HealthPages>,
    /// With `CORS_ORIGINS`.
    pub cors: Option<Cors>,
}

impl Tokenless {
    /// The answer to a request that is none for payloads; `None` if it is none for this either.
    pub(super) fn answer(&self, head: &Parts) -> Option<Answer> {
        // First: a browser may ask before a health check, too.
        if let Some(preflight) = self.cors.as_ref().and_then(|cors| cors.preflight(head)) {
            return Some(Answer::Preflight(preflight));
        }
        self.health.as_ref()?.answer(head).map(|answer| match answer {
            HealthAnswer::Status(status) => Answer::Health(status),
            HealthAnswer::MethodNotAllowed => Answer::HealthMethodNotAllowed,
        })
    }
}
