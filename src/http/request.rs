//! One request, from its head to its answer: handle → split → admit → enqueue → wait → answer.
//!
//! Only [`route`] knows how many pipelines a server has; what stands before it belongs to the core, and everything
//! behind it gets the [`Intake`] that the path has chosen.

use std::borrow::Cow;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use futures_lite::FutureExt;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;

use super::ack::{self, LevelError};
use super::body::{self, BodyError};
use super::parse::{self, Collection, Scratch};
use super::phase::ConnState;
use super::reply::Answer;
use super::server::Server;
use super::tokens::TokenView;
use crate::budget::ChargedBytes;
use crate::coding::Coding;
use crate::config::{Ack, Config};
use crate::key;
use crate::metrics::CoreCells;
use crate::queue::admission::{Admission, Need, Permit};
use crate::queue::job::{Job, Payload, Span, Stamp, Stamps};
use crate::queue::outcome::RequestOutcome;
use crate::rt;
use crate::spool::{Spool, Ticket};
use crate::stop::Stop;

/// One pipeline, as requests see it.
pub struct Intake {
    /// Its ack level, and how long a request waits for room and for its acknowledgement.
    pub config: Arc<Config>,
    pub admission: Rc<Admission>,
    pub stamps: Rc<Stamps>,
    pub spool: Option<Rc<Spool>>,
    /// Whether anything asks for the `version` of a payload's request.
    pub needs_version: bool,
    pub stop: Rc<Stop>,
    pub cells: &'static CoreCells,
}

/// Answers one request.
pub(super) async fn handle(
    server: Rc<Server>,
    state: Rc<ConnState>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let started = rt::now();
    state.body_begins(started);
    server.faults.on_request();
    let length = request.body().size_hint().exact();
    let (head, body) = request.into_parts();
    let wanted = Wanted::of(&head, &server);
    // Its fields and the buffer they lie in would outweigh the rest of the connection while the body comes.
    let room = emptied(head);
    let (answer, body_left) = answer(&server, &state, wanted, body).await;
    let response = answer.render(body_left || server.stop.draining.get(), room);
    server.cells.count_response(response.status().as_u16());
    let now = rt::now();
    server.cells.request_latency.observe(now - started);
    state.request_ended(length, now);
    Ok(response)
}

/// Fields for which a connection keeps room between its requests, 150 bytes each.
const FIELDS_KEPT: usize = 16;

/// The head's map without its fields, for the reply.
fn emptied(head: Parts) -> HeaderMap {
    let mut headers = head.headers;
    headers.clear();
    if headers.capacity() <= FIELDS_KEPT { headers } else { HeaderMap::new() }
}

/// What a head asks for, as far as that matters here.
struct Wanted<'a> {
    intake: &'a Intake,
    ack: Result<Ack, LevelError>,
    coding: Result<Option<Coding>, BodyError>,
}

impl<'a> Wanted<'a> {
    /// # Errors
    /// The request is for nobody here.
    fn of(head: &Parts, server: &'a Server) -> Result<Wanted<'a>, Answer> {
        let intake = route(server, &head.method, &head.uri)?;
        Ok(Wanted {
            intake,
            ack: ack::level(&head.headers, &intake.config),
            coding: body::coding_of(&head.headers),
        })
    }
}

/// Where a request goes: the one place that looks at its path.
fn route<'a>(server: &'a Server, method: &Method, uri: &Uri) -> Result<&'a Intake, Answer> {
    match wrong_route(method, uri) {
        Some(answer) => Err(answer),
        None => Ok(&server.intake),
    }
}

/// The answer to a request for anything but `POST /payloads`.
pub fn wrong_route(method: &Method, uri: &Uri) -> Option<Answer> {
    match uri.path() {
        "/payloads" if method == Method::POST => None,
        "/payloads" => Some(Answer::MethodNotAllowed),
        _ => Some(Answer::NotFound),
    }
}

/// The outcome, and whether some of the body was left unread (then the connection cannot be used again).
async fn answer(
    server: &Server,
    state: &ConnState,
    wanted: Result<Wanted<'_>, Answer>,
    body: Incoming,
) -> (Answer, bool) {
    let has_body = !body.is_end_stream();
    let Wanted { intake, ack, coding } = match wanted {
        Ok(wanted) => wanted,
        Err(answer) => return (answer, has_body),
    };
    let ack = match ack {
        Ok(ack) => ack,
        Err(error) => return (Answer::BadRequest(error.to_string()), has_body),
    };
    let read = async {
        let coding = coding?;
        let raw = server.bodies.read(body).await?;
        state.body_is_whole();
        server.bodies.decode(raw, coding).await.map(Some)
    };
    let overdue = async {
        state.body_overdue().await;
        Ok(None)
    };
    // Corrupt compression is found after the body was read whole; the other errors leave some of it behind.
    match read.or(overdue).await {
        Ok(Some(body)) => match admit(server, intake, body, ack).await {
            Ok(admitted) => (wait(intake, admitted, ack).await, false),
            Err(refusal) => (refusal, false),
        },
        Ok(None) => (Answer::BodyTimeout, true),
        Err(error @ BodyError::Corrupt { .. }) => (Answer::BadRequest(error.to_string()), false),
        Err(error @ BodyError::TooLarge { .. }) => (Answer::TooLarge(error.to_string()), has_body),
        Err(error @ BodyError::Disconnected(_)) => (Answer::BadRequest(error.to_string()), true),
        Err(BodyError::UnsupportedEncoding) => (Answer::UnsupportedEncoding, has_body),
        Err(error @ BodyError::MemoryExhausted) => {
            (Answer::Unavailable { error: error.to_string(), retry_after_s: 1 }, has_body)
        }
    }
}

/// A request whose payloads were taken, all of them.
struct Admitted {
    count: usize,
    outstanding: Outstanding,
}

/// What an admitted request still waits for.
enum Outstanding {
    Nothing,
    /// The store's word on its payloads.
    Store(Rc<RequestOutcome>),
    /// The disk's.
    Disk(Rc<Ticket>),
}

/// Splits the body and takes its payloads, all or none, in the way that `ack` asks for.
async fn admit(
    server: &Server,
    intake: &Intake,
    body: ChargedBytes,
    ack: Ack,
) -> Result<Admitted, Answer> {
    let tokens = server.tokens.as_ref();
    let need = {
        let mut scratch = server.scratch.borrow_mut();
        let Collection { version, payloads, .. } = split(body.as_slice(), &mut scratch, tokens)?;
        let version = intake.version_for_keys(version);
        if payloads.is_empty() {
            let nothing = Admitted { count: 0, outstanding: Outstanding::Nothing };
            return if intake.stop.closed.get() { Err(Answer::Stopping) } else { Ok(nothing) };
        }
        let need = need(payloads, &body, version.as_deref());
        if ack == Ack::Spooled {
            return intake.enqueue_for_disk(need, body, payloads, version.as_deref());
        }
        if let Some(permit) = intake.admission.admit_now(need)? {
            return Ok(intake.enqueue(permit, body, payloads, version, ack));
        }
        need
    };
    // In line a request holds its body and nothing else: its spans could weigh four times that. They are found anew.
    let permit = intake.admission.admit(need, intake.config.enqueue_wait).await?;
    let mut scratch = server.scratch.borrow_mut();
    let Collection { version, payloads, .. } = split(body.as_slice(), &mut scratch, tokens)?;
    let version = intake.version_for_keys(version);
    Ok(intake.enqueue(permit, body, payloads, version, ack))
}

/// What the body is, if it is a collection from somebody who may send one.
pub fn split<'body, 'scratch>(
    body: &'body [u8],
    scratch: &'scratch mut Scratch,
    tokens: Option<&TokenView>,
) -> Result<Collection<'body, 'scratch>, Answer> {
    let collection =
        parse::parse(body, scratch).map_err(|error| Answer::BadRequest(error.to_string()))?;
    match tokens {
        Some(tokens) if !tokens.contains(collection.token.as_deref()) => Err(Answer::Unauthorized),
        _ => Ok(collection),
    }
}

/// What a request with these payloads asks for.
fn need(payloads: &[Span], body: &ChargedBytes, version: Option<&str>) -> Need {
    Need::of(payloads.len(), body.retained() + version.map_or(0, str::len))
}

impl Intake {
    /// What keys are made of in a request's `version`, if they are.
    fn version_for_keys(&self, version: Option<Cow<'_, str>>) -> Option<Box<str>> {
        version.filter(|_| self.needs_version).map(|version| key::version(&version))
    }

    /// Queues the payloads of a body that has its permit.
    fn enqueue(
        &self,
        permit: Permit,
        body: ChargedBytes,
        spans: &[Span],
        version: Option<Box<str>>,
        ack: Ack,
    ) -> Admitted {
        let request_outcome = (ack == Ack::Stored).then(|| RequestOutcome::of(spans.len()));
        let payload_bytes: u64 = spans.iter().map(|span| u64::from(span.end - span.start)).sum();
        let Stamp { unix_nanos, seq: first } = self.stamps.take(spans.len());
        let payloads = Payload::split(body.into_bytes(), permit, spans, version);
        self.admission.push(payloads.enumerate().map(|(at, payload)| Job {
            payload,
            stamp: Stamp { unix_nanos, seq: first + at as u64 },
            record: None,
            request_outcome: request_outcome.clone(),
        }));
        self.cells.payloads_accepted.add(spans.len() as u64);
        self.cells.bytes_accepted.add(payload_bytes);
        let outstanding = request_outcome.map_or(Outstanding::Nothing, Outstanding::Store);
        Admitted { count: spans.len(), outstanding }
    }

    /// Queues the payloads for the disk, from where they come to the queue.
    fn enqueue_for_disk(
        &self,
        need: Need,
        body: ChargedBytes,
        spans: &[Span],
        version: Option<&str>,
    ) -> Result<Admitted, Answer> {
        let spool = self.spool.as_ref().expect("without a spool this level is refused");
        self.admission.could_fit(need)?;
        let ticket = spool.submit(self.stamps.take(spans.len()), body, spans, version)?;
        Ok(Admitted { count: spans.len(), outstanding: Outstanding::Disk(ticket) })
    }
}

/// Waits for what `ack` promises of the payloads.
async fn wait(intake: &Intake, admitted: Admitted, ack: Ack) -> Answer {
    let Admitted { count, outstanding } = admitted;
    let patience = intake.config.ack_timeout;
    match outstanding {
        Outstanding::Nothing => Answer::Accepted { count, ack },
        Outstanding::Store(request_outcome) => {
            ack::stored(&request_outcome, patience, &intake.stop, intake.cells).await
        }
        Outstanding::Disk(ticket) => ack::spooled(&ticket, count, patience, &intake.stop).await,
    }
}
