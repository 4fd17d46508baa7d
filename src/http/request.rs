//! One request, from its head to its answer: handle → split → admit → enqueue → wait → answer.
//!
//! Only [`route`] knows how many pipelines a server has. Code before it belongs to the core; code
//! after it works on the [`Intake`] that the path selects.

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

use super::ack;
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

/// The entrance of one pipeline: what a request needs of it.
pub struct Intake {
    /// The default ack level, and how long a request waits for room and for its acknowledgement.
    pub config: Arc<Config>,
    pub admission: Rc<Admission>,
    pub stamps: Rc<Stamps>,
    pub spool: Option<Rc<Spool>>,
    /// Whether a key template uses the `version` of a request.
    pub needs_version: bool,
    pub stop: Rc<Stop>,
    pub cells: &'static CoreCells,
}

/// Handles one request: measures it, answers it, and tells the connection how far it is.
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
    // While the body arrives, the head's fields and their buffer would outweigh the rest of the
    // connection.
    let reply_headers = emptied(head);
    let (answer, body_left) = process(&server, &state, wanted, body).await;
    // The next request of this connection would begin in the middle of an unread body.
    let close = body_left || server.stop.draining.get();
    let unavailable = answer.unavailable();
    let response = answer.render(close, reply_headers);
    match unavailable {
        Some(reason) => server.cells.count_unavailable(reason),
        None => server.cells.count_response(response.status().as_u16()),
    }
    let now = rt::now();
    server.cells.request_latency.observe(now - started);
    state.request_ended(length, now);
    Ok(response)
}

/// What a request's head asks for.
struct Wanted<'a> {
    intake: &'a Intake,
    ack: Ack,
    coding: Option<Coding>,
}

impl<'a> Wanted<'a> {
    /// # Errors
    /// The answer to a request that its head alone refuses.
    fn of(head: &Parts, server: &'a Server) -> Result<Wanted<'a>, Answer> {
        let intake = route(server, &head.method, &head.uri)?;
        let ack = ack::requested_level(&head.headers, &intake.config)?;
        let coding = body::coding_of(&head.headers)?;
        Ok(Wanted { intake, ack, coding })
    }
}

/// Selects the pipeline of a request. No other code looks at a path.
fn route<'a>(server: &'a Server, method: &Method, uri: &Uri) -> Result<&'a Intake, Answer> {
    match wrong_route(method, uri) {
        Some(answer) => Err(answer),
        None => Ok(&server.intake),
    }
}

/// The answer to any request but `POST /payloads`.
pub fn wrong_route(method: &Method, uri: &Uri) -> Option<Answer> {
    match uri.path() {
        "/payloads" if method == Method::POST => None,
        "/payloads" => Some(Answer::MethodNotAllowed),
        _ => Some(Answer::NotFound),
    }
}

/// Largest capacity, in header fields of 150 bytes, of a map that a connection keeps between
/// requests.
const FIELDS_KEPT: usize = 16;

/// The head's header map without its fields, so that the reply needs no allocation.
fn emptied(head: Parts) -> HeaderMap {
    let mut headers = head.headers;
    headers.clear();
    if headers.capacity() <= FIELDS_KEPT { headers } else { HeaderMap::new() }
}

/// Takes a request from its body to its answer. Also says whether part of the body is left unread.
async fn process(
    server: &Server,
    state: &ConnState,
    wanted: Result<Wanted<'_>, Answer>,
    body: Incoming,
) -> (Answer, bool) {
    let has_body = !body.is_end_stream();
    let Wanted { intake, ack, coding } = match wanted {
        Ok(wanted) => wanted,
        Err(refusal) => return (refusal, has_body),
    };
    let body = match read(server, state, body, coding).await {
        Ok(body) => body,
        // Corrupt compression is found after the whole body was read. Every other error leaves some
        // of it unread.
        Err(error @ BodyError::Corrupt { .. }) => return (error.into(), false),
        Err(error) => return (error.into(), has_body),
    };
    match admit(server, intake, body, ack).await {
        Ok(admitted) => (wait(intake, admitted, ack).await, false),
        Err(refusal) => (refusal, false),
    }
}

/// Reads and decompresses the body.
async fn read(
    server: &Server,
    state: &ConnState,
    body: Incoming,
    coding: Option<Coding>,
) -> Result<ChargedBytes, BodyError> {
    let whole = async {
        let raw = server.bodies.read(body).await?;
        // From here on the client is not waited for, so BODY_TIMEOUT ends.
        state.body_is_whole();
        server.bodies.decode(raw, coding).await
    };
    let overdue = async {
        state.body_overdue().await;
        Err(BodyError::Overdue)
    };
    whole.or(overdue).await
}

/// A request whose payloads were all admitted.
struct Admitted {
    count: usize,
    awaited: Awaited,
}

/// What an admitted request still waits for.
enum Awaited {
    Nothing,
    /// The outcome of every payload.
    Store(Rc<RequestOutcome>),
    /// The sync of its payloads to the spool.
    Disk(Rc<Ticket>),
}

/// Splits the body and admits its payloads, all or none. If there is no room now, waits up to
/// `ENQUEUE_WAIT`.
async fn admit(
    server: &Server,
    intake: &Intake,
    body: ChargedBytes,
    ack: Ack,
) -> Result<Admitted, Answer> {
    let tokens = server.tokens.as_ref();
    let need = {
        // The core's one scratch: this borrow must end before the next await.
        let mut scratch = server.scratch.borrow_mut();
        let Collection { version, payloads, .. } = split(body.as_slice(), &mut scratch, tokens)?;
        let version = intake.version_for_keys(version);
        if payloads.is_empty() {
            let nothing = Admitted { count: 0, awaited: Awaited::Nothing };
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
    // A waiting request holds its body only. Its spans could weigh four times as much, so the body
    // is split again.
    let permit = intake.admission.admit(need, intake.config.enqueue_wait).await?;
    let mut scratch = server.scratch.borrow_mut();
    let Collection { version, payloads, .. } = split(body.as_slice(), &mut scratch, tokens)?;
    let version = intake.version_for_keys(version);
    Ok(intake.enqueue(permit, body, payloads, version, ack))
}

/// Finds the payloads of a body and checks its token.
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

/// The queue slots and bytes that these payloads need.
fn need(payloads: &[Span], body: &ChargedBytes, version: Option<&str>) -> Need {
    Need::of(payloads.len(), body.retained() + version.map_or(0, str::len))
}

impl Intake {
    /// The part of a request's `version` that keys use; `None` if no template uses it.
    fn version_for_keys(&self, version: Option<Cow<'_, str>>) -> Option<Box<str>> {
        version.filter(|_| self.needs_version).map(|version| key::version(&version))
    }

    /// Puts the payloads of a body into the queue. `permit` is its room there.
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
        // The permit replaces the charge for the body's memory.
        let payloads = Payload::split(body.into_bytes(), permit, spans, version);
        self.admission.push(payloads.enumerate().map(|(at, payload)| Job {
            payload,
            stamp: Stamp { unix_nanos, seq: first + at as u64 },
            record: None,
            request_outcome: request_outcome.clone(),
        }));
        self.cells.payloads_accepted.add(spans.len() as u64);
        self.cells.bytes_accepted.add(payload_bytes);
        let awaited = request_outcome.map_or(Awaited::Nothing, Awaited::Store);
        Admitted { count: spans.len(), awaited }
    }

    /// Hands the payloads to the spool, which queues them once they are on the disk.
    fn enqueue_for_disk(
        &self,
        need: Need,
        body: ChargedBytes,
        spans: &[Span],
        version: Option<&str>,
    ) -> Result<Admitted, Answer> {
        let spool = self.spool.as_ref().expect("without a spool this level is refused");
        // The spool must not take a request that the queue can never hold.
        self.admission.could_fit(need)?;
        let ticket = spool.submit(self.stamps.take(spans.len()), body, spans, version)?;
        Ok(Admitted { count: spans.len(), awaited: Awaited::Disk(ticket) })
    }
}

/// Waits up to `ACK_TIMEOUT` for what `ack` promises.
async fn wait(intake: &Intake, admitted: Admitted, ack: Ack) -> Answer {
    let Admitted { count, awaited } = admitted;
    let limit = intake.config.ack_timeout;
    match awaited {
        Awaited::Nothing => Answer::Accepted { count, ack },
        Awaited::Store(outcome) => {
            ack::wait_until_stored(&outcome, limit, &intake.stop, intake.cells).await
        }
        Awaited::Disk(ticket) => ack::wait_until_spooled(&ticket, count, limit, &intake.stop).await,
    }
}
