//! One request: read, parsed by the library, admitted, answered in the library's words.

use std::convert::Infallible;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use millrace::internals::budget::{BODY_PADDING, Padded};
use millrace::internals::config::Ack;
use millrace::internals::http::media_type::form_of;
use millrace::internals::http::parse::{BodyForm, Scratch};
use millrace::internals::http::reply::Answer;
use millrace::internals::http::request::{split, wrong_route};
use millrace::internals::http::tokens::{TokenRefusal, TokenView};
use millrace::internals::metrics::Unavailable;
use millrace::internals::queue::admission::Need;
use millrace::internals::queue::job::Stamp;
use std::cell::{OnceCell, RefCell};

use crate::admit::Job;
use crate::serve::Server;

thread_local! {
    /// One parser's memory per runtime thread, and a copy of a body that stays where it was read: no
    /// await lies between taking and leaving them.
    static SCRATCH: RefCell<(Scratch, Vec<u8>)> = RefCell::default();
    /// Its view of the tokens, which are the same for all.
    static TOKENS: OnceCell<TokenView> = const { OnceCell::new() };
}

/// Answers one request.
pub async fn handle(
    server: &Server,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let (answer, body_left) = answer(server, &head, body).await;
    let mut room = head.headers;
    room.clear();
    Ok(answer.render(body_left, room))
}

/// The outcome, and whether some of the body was left unread.
async fn answer(server: &Server, head: &Parts, body: Incoming) -> (Answer, bool) {
    let has_body = !body.is_end_stream();
    if let Some(answer) = wrong_route(&server.config.paths, &head.method, &head.uri) {
        return (answer, has_body);
    }
    if head.headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return (Answer::UnsupportedEncoding, has_body);
    }
    let form = match form_of(&head.headers, server.config.body) {
        Ok(form) => form,
        Err(error) => return (error.into(), has_body),
    };
    match tokio::time::timeout(server.config.body_timeout, read(server, body)).await {
        Ok(Ok(body)) => (admit(server, body, form).await, false),
        Ok(Err(answer)) => (answer, has_body),
        Err(_) => {
            (Answer::BodyTimeout("the body was not complete in BODY_TIMEOUT".to_owned()), true)
        }
    }
}

/// A body that was read.
enum Read {
    /// It arrived in one piece, and stays where hyper has read it.
    Whole(Bytes),
    Gathered(Vec<u8>),
}

/// The whole body within `MAX_LENGTH` and the body budget.
async fn read(server: &Server, mut body: Incoming) -> Result<Read, Answer> {
    let max = server.config.max_length;
    let too_large = || {
        let text =
            format!("the body is larger than MAX_LENGTH ({max} bytes); split the collection");
        Answer::TooLarge(text)
    };
    let announced = body.size_hint().exact();
    if announced.is_some_and(|length| length > max as u64) {
        return Err(too_large());
    }
    let mut charge = server.bodies.charge();
    let mut whole = Bytes::new();
    let mut pieces = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Answer::BadRequest(format!("the body ended early: {e}")))?;
        let Ok(piece) = frame.into_data() else { continue };
        if whole.len() + pieces.len() + piece.len() > max {
            return Err(too_large());
        }
        if !charge.grow(piece.len()) {
            let error = "the memory for request bodies is used up; try again".to_owned();
            let reason = Unavailable::BodyMemory;
            return Err(Answer::Unavailable { reason, error, retry_after_s: 1 });
        }
        if whole.is_empty() && pieces.is_empty() {
            whole = piece;
            continue;
        }
        if pieces.is_empty() {
            let length = announced.map_or(2 * whole.len(), |length| length as usize);
            pieces.reserve_exact(length + BODY_PADDING);
            pieces.extend_from_slice(&std::mem::take(&mut whole));
        }
        pieces.extend_from_slice(&piece);
    }
    Ok(if pieces.is_empty() { Read::Whole(whole) } else { Read::Gathered(pieces) })
}

/// Splits the body and queues its payloads, all or none.
async fn admit(server: &Server, mut body: Read, form: BodyForm) -> Answer {
    let spans = SCRATCH.with_borrow_mut(|(scratch, copy)| {
        let body = match &mut body {
            Read::Whole(body) => {
                copy.clear();
                copy.extend_from_slice(body);
                copy
            }
            Read::Gathered(body) => body,
        };
        TOKENS.with(|view| {
            let tokens = server.tokens.as_ref();
            let view = tokens.map(|set| view.get_or_init(|| TokenView::fixed(set.clone())));
            let found = split(Padded::behind(body), form, scratch)?;
            let is_accepted = |view: &TokenView| {
                found
                    .envelope
                    .token
                    .as_deref()
                    .is_some_and(|token| view.find(token.as_bytes()).is_some())
            };
            match view {
                Some(view) if !is_accepted(view) => Err(TokenRefusal::Envelope.into()),
                _ => Ok(found.payloads.to_vec()),
            }
        })
    });
    let spans = match spans {
        Ok(spans) if spans.is_empty() => return Answer::Accepted { count: 0, ack: Ack::Queued },
        Ok(spans) => spans,
        Err(answer) => return answer,
    };
    let body = match body {
        Read::Whole(body) => body,
        Read::Gathered(body) => Bytes::from(body),
    };
    let room = match server.admission.admit(Need::of(spans.len(), body.len())).await {
        Ok(room) => room,
        Err(refusal) => return refusal.into(),
    };
    let count = spans.len() as u64;
    let first = server.seq.fetch_add(count, Relaxed);
    let unix_nanos = Stamp::unix_nanos_now();
    let permit = room.bytes.clone();
    let jobs = spans.iter().zip(first..).map(|(span, seq)| Job {
        payload: body.slice(span.range()),
        stamp: Stamp { unix_nanos, seq },
        permit: permit.clone(),
    });
    if !server.admission.push_all(room, jobs) {
        return Answer::Stopping;
    }
    server.counts.accepted.fetch_add(count, Relaxed);
    Answer::Accepted { count: spans.len(), ack: Ack::Queued }
}
