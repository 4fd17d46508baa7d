//! Answers: the only place where the result of a request becomes a status, headers and a body.

use std::cell::RefCell;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};
use http_body_util::Full;

use super::ack::LevelError;
use super::body::BodyError;
use super::cors::Preflight;
use super::head::HeadError;
use super::health::HealthStatus;
use super::media_type::AmbiguousType;
use super::parse::ParseError;
use super::quotas::Throttled;
use super::split::NoTurn;
use super::tokens::TokenRefusal;
use crate::config::Ack;
use crate::metrics::{CoreCells, Unavailable};
use crate::queue::admission::Refusal;
use crate::queue::outcome::Outcomes;
use crate::queue::pace::RETRY_AFTER_MIN_S;
use crate::spool::SpoolError;

/// The result of one request.
#[derive(Debug)]
pub enum Answer {
    /// Every payload was admitted, and the promise of `ack` holds.
    Accepted {
        count: usize,
        ack: Ack,
    },
    /// Every payload was admitted, and some of them will never be in the store.
    NotStored(Outcomes),
    /// Every payload was admitted, and it was not known in time whether the store has all of them.
    Undecided {
        outcomes: Outcomes,
        /// The server has stopped, so it will never be known here.
        stopped: bool,
    },
    /// The disk did not confirm the payloads in time. It may still do so.
    NotSynced,
    /// Not one of `PATHS`, the first of which is `wanted`.
    NotFound {
        wanted: Box<str>,
    },
    MethodNotAllowed,
    BadRequest(String),
    /// The head breaks a rule of HTTP.
    BadHead(HeadError),
    Unauthorized(TokenRefusal),
    BodyTimeout(String),
    TooLarge(String),
    UnsupportedEncoding,
    /// A quota is used up. No payload was admitted.
    Throttled(Box<Throttled>),
    /// There is no room now. No payload was admitted.
    Unavailable {
        reason: Unavailable,
        error: String,
        retry_after_s: u64,
    },
    /// The queue has closed: this server takes nothing more.
    Stopping,
    /// Of a health page on the ingest port.
    Health(HealthStatus),
    HealthMethodNotAllowed,
    /// To a browser that asks before it sends a request.
    Preflight(Preflight),
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Answer {
        let error = refusal.to_string();
        match refusal {
            Refusal::TooManyPayloads { .. } | Refusal::TooManyBytes { .. } => {
                Answer::TooLarge(error)
            }
            Refusal::Full { retry_after_s } => {
                Answer::Unavailable { reason: Unavailable::QueueFull, error, retry_after_s }
            }
            Refusal::Closed => Answer::Stopping,
        }
    }
}

impl From<ParseError> for Answer {
    fn from(error: ParseError) -> Answer {
        let text = error.to_string();
        match error {
            ParseError::TooManyPayloads { .. } => Answer::TooLarge(text),
            _ => Answer::BadRequest(text),
        }
    }
}

impl From<LevelError> for Answer {
    fn from(error: LevelError) -> Answer {
        Answer::BadRequest(error.to_string())
    }
}

impl From<AmbiguousType> for Answer {
    fn from(error: AmbiguousType) -> Answer {
        Answer::BadRequest(error.to_string())
    }
}

impl From<TokenRefusal> for Answer {
    fn from(refusal: TokenRefusal) -> Answer {
        Answer::Unauthorized(refusal)
    }
}

impl From<BodyError> for Answer {
    fn from(error: BodyError) -> Answer {
        let text = error.to_string();
        match error {
            BodyError::Corrupt { .. } | BodyError::Disconnected(_) | BodyError::BadChunk(_) => {
                Answer::BadRequest(text)
            }
            BodyError::TooLarge { .. } | BodyError::WrappedTooLarge { .. } => {
                Answer::TooLarge(text)
            }
            BodyError::UnsupportedEncoding => Answer::UnsupportedEncoding,
            BodyError::MemoryExhausted => Answer::Unavailable {
                reason: Unavailable::BodyMemory,
                error: text,
                retry_after_s: BODY_RETRY_AFTER_S,
            },
            BodyError::Overdue | BodyError::TooSlow { .. } | BodyError::Evicted => {
                Answer::BodyTimeout(text)
            }
        }
    }
}

/// A body is in memory for moments, unless its client is slow.
const BODY_RETRY_AFTER_S: u64 = RETRY_AFTER_MIN_S;

/// The line of large bodies is as long as the longest wait; half of it may be gone by then.
const LARGE_RETRY_AFTER_S: u64 = 5;

impl From<NoTurn> for Answer {
    fn from(error: NoTurn) -> Answer {
        match error {
            NoTurn::Late => Answer::Unavailable {
                reason: Unavailable::LargeBodies,
                error: error.to_string(),
                retry_after_s: LARGE_RETRY_AFTER_S,
            },
            NoTurn::Closed => Answer::Stopping,
        }
    }
}

/// A request waits for the spool's disk for as long as one sync takes.
const PENDING_RETRY_AFTER_S: u64 = RETRY_AFTER_MIN_S;

/// A full spool has room again once the store has taken something. A failing one is tried every
/// second.
const SPOOL_RETRY_AFTER_S: u64 = 5;

impl From<SpoolError> for Answer {
    fn from(error: SpoolError) -> Answer {
        let (reason, retry_after_s) = match error {
            SpoolError::Closed => return Answer::Stopping,
            SpoolError::PendingExhausted => (Unavailable::SpoolPending, PENDING_RETRY_AFTER_S),
            SpoolError::Full => (Unavailable::SpoolFull, SPOOL_RETRY_AFTER_S),
            SpoolError::Failed(_) | SpoolError::Stalled => {
                (Unavailable::SpoolFailing, SPOOL_RETRY_AFTER_S)
            }
        };
        Answer::Unavailable { reason, error: error.to_string(), retry_after_s }
    }
}

/// The reply to a head that is overdue, as bytes because hyper has no request to answer yet.
pub const HEAD_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\
content-type: application/json\r\ncontent-length: 63\r\n\r\n\
{\"error\":\"the request head was not complete in HEADER_TIMEOUT\"}";

impl Answer {
    /// Payloads that were admitted, as far as the answer knows.
    pub fn payloads_admitted(&self) -> usize {
        match self {
            Answer::Accepted { count, .. } => *count,
            Answer::NotStored(outcomes) | Answer::Undecided { outcomes, .. } => outcomes.accepted,
            _ => 0,
        }
    }

    /// Why it is a 503; `None` if it is not.
    pub fn unavailable(&self) -> Option<Unavailable> {
        match self {
            Answer::Unavailable { reason, .. } => Some(*reason),
            Answer::Stopping => Some(Unavailable::Stopping),
            Answer::Accepted { .. }
            | Answer::NotStored(_)
            | Answer::Undecided { .. }
            | Answer::NotSynced
            | Answer::NotFound { .. }
            | Answer::MethodNotAllowed
            | Answer::BadRequest(_)
            | Answer::BadHead(_)
            | Answer::Unauthorized(_)
            | Answer::BodyTimeout(_)
            | Answer::TooLarge(_)
            | Answer::UnsupportedEncoding
            | Answer::Throttled(_)
            | Answer::Health(_)
            | Answer::HealthMethodNotAllowed
            | Answer::Preflight(_) => None,
        }
    }

    /// Counts a health check or a preflight, which are no requests for payloads. False if it is
    /// neither.
    pub fn count_tokenless(&self, cells: &CoreCells) -> bool {
        match self {
            Answer::Health(_) => cells.health_checks.inc(),
            Answer::Preflight(Preflight::Allowed) => cells.preflights.inc(),
            Answer::Preflight(Preflight::Refused) => cells.preflights_refused.inc(),
            _ => return false,
        }
        true
    }

    /// The reply. `close` asks the client to end the connection after it. `room` is an empty map
    /// whose memory is reused: hyper keeps a reply's map for the next request, so in the long run a
    /// connection has one map.
    pub fn render(self, close: bool, room: HeaderMap) -> Response<Full<Bytes>> {
        let mut close = close;
        let mut response = match self {
            Answer::Accepted { count, ack } => {
                let mut response = Response::new(Full::new(accepted(count, ack)));
                *response.headers_mut() = room;
                with(response, CONTENT_TYPE, "application/json")
            }
            Answer::NotStored(outcomes) => {
                let Outcomes { dead_lettered, lost, .. } = outcomes;
                let text = format!(
                    "the store did not take every payload: {dead_lettered} dead-lettered, {lost} lost"
                );
                json(StatusCode::BAD_GATEWAY, unkept(&text, outcomes))
            }
            Answer::Undecided { outcomes, stopped } => {
                let why = match stopped {
                    true => "the server stopped before every payload was stored",
                    false => "not every payload was stored within ACK_TIMEOUT",
                };
                let text = format!("{why}; a 504 leaves open whether the others will be");
                json(StatusCode::GATEWAY_TIMEOUT, unkept(&text, outcomes))
            }
            Answer::NotSynced => {
                let text = "the disk did not confirm the request within ACK_TIMEOUT, or the server stopped before; this \
                            leaves open whether it will be stored: sent again, it may be stored twice";
                error(StatusCode::GATEWAY_TIMEOUT, text)
            }
            Answer::NotFound { wanted } => {
                error(StatusCode::NOT_FOUND, &format!("no such path; POST {wanted}"))
            }
            Answer::MethodNotAllowed => {
                let text = "only POST is allowed on this path";
                with(error(StatusCode::METHOD_NOT_ALLOWED, text), ALLOW, "POST")
            }
            Answer::BadRequest(text) => error(StatusCode::BAD_REQUEST, &text),
            Answer::BadHead(wrong) => {
                close = true;
                error(wrong.status(), &wrong.to_string())
            }
            Answer::Unauthorized(refusal) => {
                let response = error(StatusCode::UNAUTHORIZED, &refusal.to_string());
                with(response, WWW_AUTHENTICATE, refusal.challenge())
            }
            Answer::BodyTimeout(text) => {
                close = true;
                error(StatusCode::REQUEST_TIMEOUT, &text)
            }
            Answer::TooLarge(text) => error(StatusCode::PAYLOAD_TOO_LARGE, &text),
            Answer::UnsupportedEncoding => {
                let text = "content-encoding must be identity, gzip or zstd, and only one of them";
                let response = error(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
                with(response, ACCEPT_ENCODING, "gzip, zstd, identity")
            }
            Answer::Throttled(throttled) => over_quota(&throttled),
            Answer::Unavailable { error: text, retry_after_s, .. } => {
                let mut response = error(StatusCode::SERVICE_UNAVAILABLE, &text);
                response.headers_mut().insert(RETRY_AFTER, retry_after_s.into());
                response
            }
            Answer::Stopping => {
                close = true;
                let text = Refusal::Closed.to_string();
                with(error(StatusCode::SERVICE_UNAVAILABLE, &text), RETRY_AFTER, "1")
            }
            Answer::Health(status) => {
                close |= status == HealthStatus::NotReady;
                health(status)
            }
            Answer::HealthMethodNotAllowed => {
                let text = "only GET and HEAD are allowed on /healthz and /readyz";
                with(error(StatusCode::METHOD_NOT_ALLOWED, text), ALLOW, "GET, HEAD")
            }
            Answer::Preflight(Preflight::Allowed) => {
                let mut response = Response::default();
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
            Answer::Preflight(Preflight::Refused) => {
                error(StatusCode::FORBIDDEN, "this origin is not in CORS_ORIGINS")
            }
        };
        if close {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

fn health(status: HealthStatus) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(status.text()));
    if status == HealthStatus::NotReady {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    // A cache in between would answer for a server that is gone.
    let response = with(response, CACHE_CONTROL, "no-store");
    with(response, CONTENT_TYPE, "text/plain; charset=utf-8")
}

/// Reply bodies are cached for requests of fewer payloads than this, one for each count and level.
const ACCEPTED_KEPT: usize = 256;

fn accepted(count: usize, ack: Ack) -> Bytes {
    with_accepted(count, ack, Bytes::clone)
}

/// Calls `with` with the body of a 200.
pub(super) fn with_accepted<T>(count: usize, ack: Ack, with: impl FnOnce(&Bytes) -> T) -> T {
    thread_local! {
        static KEPT: RefCell<[[Bytes; ACCEPTED_KEPT]; Ack::ALL.len()]> = const {
            RefCell::new([const { [const { Bytes::new() }; ACCEPTED_KEPT] }; Ack::ALL.len()])
        };
    }
    let made = || Bytes::from(format!(r#"{{"accepted":{count},"ack":"{}"}}"#, ack.name()));
    KEPT.with_borrow_mut(|kept| match kept[ack as usize].get_mut(count) {
        None => with(&made()),
        Some(body) => {
            if body.is_empty() {
                *body = made();
            }
            with(body)
        }
    })
}

/// The reply body of a request that was admitted and whose promise was not kept.
fn unkept(text: &str, outcomes: Outcomes) -> String {
    let Outcomes { accepted, stored, dead_lettered, .. } = outcomes;
    let text = serde_json::Value::from(text);
    format!(
        r#"{{"error":{text},"accepted":{accepted},"stored":{stored},"dead_lettered":{dead_lettered}}}"#
    )
}

/// The fields of a 429: see [`super::quotas`].
static RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

fn over_quota(throttled: &Throttled) -> Response<Full<Bytes>> {
    let Throttled { retry_after_s, policy, limit, error, violated } = throttled;
    let violated: Vec<&str> = violated.iter().map(|kind| kind.name()).collect();
    let body = serde_json::json!({ "error": error, "violated-policies": violated });
    let mut response = json(StatusCode::TOO_MANY_REQUESTS, body.to_string());
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, (*retry_after_s).into());
    for (name, value) in [(&RATELIMIT_POLICY, policy), (&RATELIMIT, limit)] {
        let value = HeaderValue::try_from(value).expect("names and numbers are visible ASCII");
        headers.insert(name, value);
    }
    response
}

fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    with(response, CONTENT_TYPE, "application/json")
}

fn error(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    json(status, serde_json::json!({ "error": text }).to_string())
}

fn with(
    mut response: Response<Full<Bytes>>,
    name: http::HeaderName,
    value: &'static str,
) -> Response<Full<Bytes>> {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::STATUSES;
    use crate::spool::DiskError;
    use http_body_util::BodyExt;

    #[test]
    fn every_count_has_its_own_reply_also_the_second_time() {
        for count in [0, 1, ACCEPTED_KEPT - 1, ACCEPTED_KEPT, 1_000_000].repeat(2) {
            for ack in Ack::ALL {
                let reply = Answer::Accepted { count, ack }.render(false, HeaderMap::new());
                assert_eq!((reply.status(), reply.headers().len()), (StatusCode::OK, 1));
                let expected = format!(r#"{{"accepted":{count},"ack":"{}"}}"#, ack.name());
                assert_eq!(body(reply), expected);
            }
        }
    }

    fn body(reply: Response<Full<Bytes>>) -> Bytes {
        futures_lite::future::block_on(reply.into_body().collect()).unwrap().to_bytes()
    }

    #[test]
    fn a_promise_not_kept_is_answered_with_what_is_known() {
        let outcomes = Outcomes { accepted: 9, stored: 4, dead_lettered: 2, lost: 1 };
        let undecided = |stopped| Answer::Undecided { outcomes, stopped };
        for (answer, status, says) in [
            (Answer::NotStored(outcomes), 502, "2 dead-lettered, 1 lost"),
            (undecided(false), 504, "ACK_TIMEOUT"),
            (undecided(true), 504, "stopped"),
        ] {
            let reply = answer.render(false, HeaderMap::new());
            assert_eq!((reply.status().as_u16(), reply.headers().len()), (status, 1));
            let value: serde_json::Value = serde_json::from_slice(&body(reply)).unwrap();
            let error = value["error"].as_str().unwrap();
            assert!(error.contains(says), "{error}");
            assert_eq!(error.contains("leaves open"), status == 504, "{error}");
            let members = ["accepted", "stored", "dead_lettered"];
            assert_eq!(members.map(|name| value[name].as_u64().unwrap()), [9, 4, 2]);
            assert_eq!(value.as_object().unwrap().len(), 4);
        }
    }

    /// A status that nothing sends would stand in the metrics, and one that is missing would be `other`.
    #[test]
    fn the_statuses_of_the_metrics_are_those_of_answers() {
        let text = String::new;
        let outcomes = Outcomes { accepted: 1, stored: 0, dead_lettered: 0, lost: 1 };
        let throttled = Throttled {
            retry_after_s: 1,
            policy: text(),
            limit: text(),
            error: text(),
            violated: Vec::new(),
        };
        // A new kind of answer comes here as well, unless it is none to a request: see `count_tokenless`.
        let answers = [
            Answer::Accepted { count: 1, ack: Ack::Queued },
            Answer::NotStored(outcomes),
            Answer::Undecided { outcomes, stopped: false },
            Answer::NotSynced,
            Answer::NotFound { wanted: "/".into() },
            Answer::MethodNotAllowed,
            Answer::BadRequest(text()),
            Answer::BadHead(HeadError::TwoLengths),
            Answer::BadHead(HeadError::UnknownCoding),
            Answer::Unauthorized(TokenRefusal::NoHeader),
            Answer::BodyTimeout(text()),
            Answer::TooLarge(text()),
            Answer::UnsupportedEncoding,
            Answer::Throttled(Box::new(throttled)),
            Answer::Stopping,
        ];
        let status = |answer: Answer| answer.render(false, HeaderMap::new()).status().as_u16();
        let mut sent = answers.map(status).to_vec();
        // That of a head that is too long, which hyper answers.
        sent.push(431);
        sent.sort_unstable();
        sent.dedup();
        let counted: Vec<u16> = STATUSES.into_iter().filter(|status| *status != 0).collect();
        assert_eq!(sent, counted);
    }

    #[test]
    fn every_503_has_its_reason_a_retry_after_and_a_text() {
        use Unavailable::{
            BodyMemory, LargeBodies, QueueFull, SpoolFailing, SpoolFull, SpoolPending, Stopping,
        };
        let broken = std::io::Error::from_raw_os_error(libc::EROFS);
        let refusals: [(Answer, Unavailable, u64, &str); 11] = [
            (Refusal::Full { retry_after_s: 7 }.into(), QueueFull, 7, "try again in 7 s"),
            (Refusal::Closed.into(), Stopping, 1, "stopping"),
            (BodyError::MemoryExhausted.into(), BodyMemory, 1, "memory for request bodies"),
            (NoTurn::Late.into(), LargeBodies, 5, "large bodies"),
            (NoTurn::Closed.into(), Stopping, 1, "stopping"),
            (SpoolError::Full.into(), SpoolFull, 5, "SPOOL_MAX"),
            (SpoolError::PendingExhausted.into(), SpoolPending, 1, "SPOOL_PENDING"),
            (SpoolError::Failed(DiskError::of(&broken)).into(), SpoolFailing, 5, "Read-only"),
            (SpoolError::Stalled.into(), SpoolFailing, 5, "does not answer"),
            (SpoolError::Closed.into(), Stopping, 1, "stopping"),
            (Answer::Stopping, Stopping, 1, "stopping"),
        ];
        let reasons: Vec<_> = refusals.iter().map(|(_, reason, ..)| *reason).collect();
        assert!(Unavailable::ALL.iter().all(|reason| reasons.contains(reason)));
        for (answer, reason, seconds, says) in refusals {
            assert_eq!(answer.unavailable(), Some(reason));
            let reply = answer.render(false, HeaderMap::new());
            assert_eq!(reply.status(), 503);
            assert_eq!(reply.headers()[RETRY_AFTER], seconds.to_string());
            let text = String::from_utf8(body(reply).to_vec()).unwrap();
            assert!(text.contains(says), "{text}");
        }
        for answer in [
            Answer::Accepted { count: 1, ack: Ack::Queued },
            Answer::NotStored(Outcomes::default()),
            Answer::Undecided { outcomes: Outcomes::default(), stopped: true },
            Answer::NotSynced,
            Answer::NotFound { wanted: "/payloads".into() },
            Answer::MethodNotAllowed,
            Answer::BadRequest(String::new()),
            Answer::BadHead(HeadError::NoHost),
            Answer::Unauthorized(TokenRefusal::Unknown),
            Answer::BodyTimeout(String::new()),
            Answer::TooLarge(String::new()),
            Answer::UnsupportedEncoding,
            Answer::Throttled(Box::new(super::super::quotas::tests::throttled())),
            Answer::Health(HealthStatus::Ready),
            Answer::HealthMethodNotAllowed,
            Answer::Preflight(Preflight::Allowed),
            Answer::Preflight(Preflight::Refused),
        ] {
            assert_eq!(answer.unavailable(), None);
            assert_ne!(answer.render(false, HeaderMap::new()).status(), 503);
        }
    }

    #[test]
    fn the_head_timeout_reply_has_the_length_it_says() {
        let text = std::str::from_utf8(HEAD_TIMEOUT).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}
