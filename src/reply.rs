//! The only place where an outcome becomes a status, headers and a body.

use std::cell::RefCell;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};
use http_body_util::Full;

use crate::admit::Refusal;

/// What became of one request.
#[derive(Debug)]
pub enum Answer {
    /// Every payload was admitted.
    Accepted(usize),
    NotFound,
    MethodNotAllowed,
    BadRequest(String),
    Unauthorized,
    BodyTimeout,
    TooLarge(String),
    UnsupportedEncoding,
    /// No room now; nothing of the request was admitted.
    Unavailable {
        error: String,
        retry_after_s: u64,
    },
    /// The ring has closed: this server takes nothing more.
    Stopping,
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Answer {
        let error = refusal.to_string();
        match refusal {
            Refusal::TooManyPayloads { .. } | Refusal::TooManyBytes { .. } => {
                Answer::TooLarge(error)
            }
            Refusal::Full { retry_after_s } => Answer::Unavailable { error, retry_after_s },
            Refusal::Closed => Answer::Stopping,
        }
    }
}

/// The head-timeout reply, written as bytes because hyper has no request to answer yet.
pub const HEAD_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\
content-type: application/json\r\ncontent-length: 63\r\n\r\n\
{\"error\":\"the request head was not complete in HEADER_TIMEOUT\"}";

impl Answer {
    /// The reply; `close` asks the client to end the connection after it. `room` is an empty map whose memory is used
    /// again: hyper keeps a reply's map for the next request, so that in the long run there is one per connection.
    pub fn render(self, close: bool, room: HeaderMap) -> Response<Full<Bytes>> {
        let mut close = close;
        let mut response = match self {
            Answer::Accepted(n) => {
                let mut response = Response::new(Full::new(accepted(n)));
                *response.headers_mut() = room;
                with(response, CONTENT_TYPE, "application/json")
            }
            Answer::NotFound => error(StatusCode::NOT_FOUND, "no such path; POST /payloads"),
            Answer::MethodNotAllowed => {
                let text = "only POST is allowed on /payloads";
                with(error(StatusCode::METHOD_NOT_ALLOWED, text), ALLOW, "POST")
            }
            Answer::BadRequest(text) => error(StatusCode::BAD_REQUEST, &text),
            Answer::Unauthorized => {
                let text = "the token is missing or unknown";
                with(error(StatusCode::UNAUTHORIZED, text), WWW_AUTHENTICATE, "Bearer")
            }
            Answer::BodyTimeout => {
                close = true;
                let text = "the request body was not complete in BODY_TIMEOUT";
                error(StatusCode::REQUEST_TIMEOUT, text)
            }
            Answer::TooLarge(text) => error(StatusCode::PAYLOAD_TOO_LARGE, &text),
            Answer::UnsupportedEncoding => {
                let text = "content-encoding must be identity, gzip or zstd, and only one of them";
                let response = error(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
                with(response, ACCEPT_ENCODING, "gzip, zstd, identity")
            }
            Answer::Unavailable { error: text, retry_after_s } => {
                let mut response = error(StatusCode::SERVICE_UNAVAILABLE, &text);
                response.headers_mut().insert(RETRY_AFTER, retry_after_s.into());
                response
            }
            Answer::Stopping => {
                close = true;
                let text = Refusal::Closed.to_string();
                with(error(StatusCode::SERVICE_UNAVAILABLE, &text), RETRY_AFTER, "1")
            }
        };
        if close {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Payloads a request up to which each count's reply body is made only once.
const ACCEPTED_KEPT: usize = 256;

fn accepted(n: usize) -> Bytes {
    thread_local! {
        static KEPT: RefCell<[Bytes; ACCEPTED_KEPT]> =
            const { RefCell::new([const { Bytes::new() }; ACCEPTED_KEPT]) };
    }
    let made = || Bytes::from(format!(r#"{{"accepted":{n},"ack":"queued"}}"#));
    KEPT.with_borrow_mut(|kept| match kept.get_mut(n) {
        None => made(),
        Some(body) => {
            if body.is_empty() {
                *body = made();
            }
            body.clone()
        }
    })
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
    use http_body_util::BodyExt;

    #[test]
    fn every_count_has_its_own_reply_also_the_second_time() {
        for n in [0, 1, ACCEPTED_KEPT - 1, ACCEPTED_KEPT, 1_000_000].repeat(2) {
            let reply = Answer::Accepted(n).render(false, HeaderMap::new());
            assert_eq!(reply.headers().len(), 1);
            let body = futures_lite::future::block_on(reply.into_body().collect()).unwrap();
            assert_eq!(body.to_bytes(), format!(r#"{{"accepted":{n},"ack":"queued"}}"#));
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
