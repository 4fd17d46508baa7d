//! One request, from its head to its answer: handle → split → admit → enqueue → wait → answer.
//!
//! Only [`route`] knows how many pipelines a server has. Code before it belongs to the core; code
//! after it works on the [`Intake`] that the path selects.

use std::borrow::Cow;
use std::cell::Cell;
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
use super::forwarded::{self, ForwardedClient};
use super::head::{self, BodyFraming};
use super::media_type;
use super::parse::{self, BodyForm, Collection, Envelope, ParseError, SMALL_BODY_BYTES, Scratch};
use super::phase::{BodyEnd, ConnState};
use super::reply::Answer;
use super::server::Server;
use super::split::LargeTurn;
use crate::budget::ChargedBytes;
use crate::coding::Coding;
use crate::config::{Ack, Config, Paths};
use crate::key;
use crate::metrics::CoreCells;
use crate::metrics::tokens::{AcceptedCells, TokenId};
use crate::queue::admission::{Admission, Need, Permit};
use crate::queue::job::{Job, Payload, Span, Stamp, Stamps};
use crate::queue::outcome::RequestOutcome;
use crate::rt;
use crate::spool::{Spool, Ticket};
use crate::stop::Stop;

/// The entrance of one pipeline: what a request needs of it.
pub struct Intake {
    /// What an object is, the default ack level, and how long a request waits for room and for its
    /// acknowledgement.
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
    let content_length = state.arrived.has_content_length();
    let framing = BodyFraming { chunked: length.is_none(), content_length };
    let checked = head::check(&request, framing).map_err(Answer::BadHead);
    let is_forwarded = find_client(&server, &state, request.headers());
    let (head, body) = request.into_parts();
    let token = Cell::new(TokenId::NONE);
    let wanted = checked.and_then(|()| Wanted::of(&head, &server, &token));
    let cors = server.tokenless.cors.as_ref();
    let cors = cors.map(|cors| (cors, cors.visibility(&head.headers)));
    // While the body arrives, the head's fields and their buffer would outweigh the rest of the
    // connection.
    let reply_headers = emptied(head);
    let (answer, body_left) = process(&server, &state, wanted, body, &token).await;
    // The next request of this connection would begin in the middle of an unread body.
    let close = body_left || server.stop.draining.get();
    let payloads = answer.payloads_admitted();
    let unavailable = answer.unavailable();
    let is_tokenless = answer.count_tokenless(server.cells);
    let mut response = answer.render(close, reply_headers);
    let status = response.status();
    if let Some((cors, visibility)) = cors {
        cors.add_to(response.headers_mut(), status, visibility);
    }
    let now = rt::now();
    let status = status.as_u16();
    // A health check or a preflight is no refusal, whatever its status.
    let tallied = if is_tokenless { 200 } else { status };
    state.tally.request(now, tallied, payloads, token.get());
    if is_forwarded {
        server.conns.forwarded_request_ended(&state);
    }
    if !is_tokenless {
        match unavailable {
            Some(reason) => server.cells.count_unavailable(reason),
            None => server.cells.count_response(status),
        }
        if let Some(tokens) = &server.tokens {
            tokens.cells().count_response(token.get(), status);
        }
        server.cells.request_latency.observe(now - started);
    }
    state.request_ended(length, now);
    Ok(response)
}

/// If a trusted proxy has sent the request, finds out for whom, and says so.
fn find_client(server: &Server, state: &ConnState, headers: &HeaderMap) -> bool {
    let Some(trusted) = &server.config.trust else { return false };
    let peer = state.origin.connection();
    if !trusted.contains(peer) {
        return false;
    }
    let ForwardedClient { address, flaw } = forwarded::client(headers, peer, trusted);
    if let Some(flaw) = flaw {
        server.cells.forwarded_flaws[flaw as usize].inc();
    }
    state.origin.request_begins(address);
    true
}

/// What a request's head asks for.
struct Wanted<'a> {
    intake: &'a Intake,
    form: BodyForm,
    ack: Ack,
    coding: Option<Coding>,
}

impl<'a> Wanted<'a> {
    /// Also judges the token of a header or the query, and sets `token` if it is accepted.
    ///
    /// # Errors
    /// The answer to a request that its head alone refuses.
    fn of(head: &Parts, server: &'a Server, token: &Cell<TokenId>) -> Result<Wanted<'a>, Answer> {
        let intake = route(server, &head.method, &head.uri)
            .map_err(|refusal| server.tokenless.answer(head).unwrap_or(refusal))?;
        let form = media_type::form_of(&head.headers, intake.config.body);
        if let Some(tokens) = &server.tokens {
            let may_have_envelope = form.map_or(true, BodyForm::may_be_collection);
            token.set(tokens.judge_head(&head.headers, &head.uri, may_have_envelope)?);
        }
        let form = form?;
        let ack = ack::requested_level(&head.headers, &intake.config)?;
        let coding = body::coding_of(&head.headers)?;
        Ok(Wanted { intake, form, ack, coding })
    }
}

/// Selects the pipeline of a request. No other code looks at its path.
fn route<'a>(server: &'a Server, method: &Method, uri: &Uri) -> Result<&'a Intake, Answer> {
    match wrong_route(&server.config.paths, method, uri) {
        Some(answer) => Err(answer),
        None => Ok(&server.intake),
    }
}

/// The answer to any request but a `POST` to one of `paths`.
pub fn wrong_route(paths: &Paths, method: &Method, uri: &Uri) -> Option<Answer> {
    match paths.contains(uri.path()) {
        true if method == Method::POST => None,
        true => Some(Answer::MethodNotAllowed),
        false => Some(Answer::NotFound { wanted: paths.first().into() }),
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
    token: &Cell<TokenId>,
) -> (Answer, bool) {
    let has_body = !body.is_end_stream();
    let Wanted { intake, form, ack, coding } = match wanted {
        Ok(wanted) => wanted,
        Err(refusal) => return (refusal, has_body),
    };
    let is_whole = Cell::new(false);
    let (body, turn) = match read(server, state, body, coding, &is_whole).await {
        Ok(read) => read,
        Err(refusal) => return (refusal, has_body && !is_whole.get()),
    };
    let admitted = match admit(server, intake, body, form, turn, ack, token).await {
        Ok(admitted) => admitted,
        Err(refusal) => return (refusal, false),
    };
    (wait(intake, admitted, ack).await, false)
}

/// Reads and decompresses the body. A large one that was compressed comes with its turn. Sets
/// `is_whole` once nothing of it is left unread.
async fn read<'a>(
    server: &'a Server,
    state: &ConnState,
    body: Incoming,
    coding: Option<Coding>,
    is_whole: &Cell<bool>,
) -> Result<(ChargedBytes, Option<LargeTurn<'a>>), Answer> {
    let whole = async {
        let raw = server.bodies.read(state, body).await?;
        // From here on the client is not waited for, so BODY_TIMEOUT and BODY_RATE_MIN end.
        state.body_is_whole();
        is_whole.set(true);
        let Some(coding) = coding else { return Ok((raw, None)) };
        if let Some(body) = server.bodies.decode_small(&raw, coding).await? {
            return Ok((body, None));
        }
        let turn = server.splitter.large_turn(&server.stop.closed).await?;
        let body = server.bodies.decode_large(&raw, coding, &turn).await?;
        Ok((body, Some(turn)))
    };
    let ended = async {
        let error = match state.body_end().await {
            BodyEnd::Overdue => BodyError::Overdue,
            BodyEnd::TooSlow => BodyError::TooSlow { rate_min: server.config.body_rate_min },
            BodyEnd::Evicted => BodyError::Evicted,
        };
        Err(error.into())
    };
    whole.or(ended).await
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
    form: BodyForm,
    turn: Option<LargeTurn<'_>>,
    ack: Ack,
    token: &Cell<TokenId>,
) -> Result<Admitted, Answer> {
    if body.as_slice().len() <= SMALL_BODY_BYTES {
        drop(turn);
        return admit_small(server, intake, body, form, ack, token).await;
    }
    let turn = match turn {
        Some(turn) => turn,
        None => server.splitter.large_turn(&server.stop.closed).await?,
    };
    admit_large(server, intake, body, form, turn, ack, token).await
}

/// Admits a body that is split in one turn.
async fn admit_small(
    server: &Server,
    intake: &Intake,
    body: ChargedBytes,
    form: BodyForm,
    ack: Ack,
    token: &Cell<TokenId>,
) -> Result<Admitted, Answer> {
    let attempt = {
        // The core's one scratch: this borrow must end before the next await.
        let mut scratch = server.splitter.scratch();
        let Collection { envelope, payloads } = split(body.as_slice(), form, &mut scratch)?;
        let counted = judge_envelope(server, &envelope, token)?;
        let version = intake.version_for_keys(envelope.version);
        intake.admit_now(body, payloads, version, ack, counted)?
    };
    let NoRoom { need, body, version, counted } = match attempt {
        Tried::Admitted(admitted) => return Ok(admitted),
        Tried::NoRoom(waiting) => waiting,
    };
    // A waiting request holds its body only. Its spans could weigh four times as much, so the body
    // is split again.
    let permit = intake.admission.admit(need, intake.config.enqueue_wait).await?;
    let mut scratch = server.splitter.scratch();
    let Collection { payloads, .. } = split(body.as_slice(), form, &mut scratch)?;
    Ok(intake.enqueue(permit, body, payloads, version, ack, counted))
}

/// Admits a body that is split in slices. Its turn ends before it waits for room.
async fn admit_large(
    server: &Server,
    intake: &Intake,
    body: ChargedBytes,
    form: BodyForm,
    turn: LargeTurn<'_>,
    ack: Ack,
    token: &Cell<TokenId>,
) -> Result<Admitted, Answer> {
    let (waiting, marked) = {
        let (envelope, spans) = server
            .splitter
            .split_large(body.as_slice(), form, turn)
            .await
            .map_err(|error| no_collection(body.as_slice(), error))?;
        let counted = judge_envelope(server, &envelope, token)?;
        let version = intake.version_for_keys(envelope.version);
        let mut waiting = match intake.admit_now(body, &spans, version, ack, counted)? {
            Tried::Admitted(admitted) => return Ok(admitted),
            Tried::NoRoom(waiting) => waiting,
        };
        let marked = parse::mark_spans(waiting.body.as_mut_slice(), &spans);
        (waiting, marked)
    };
    let NoRoom { need, body, version, counted } = waiting;
    let permit = intake.admission.admit(need, intake.config.enqueue_wait).await?;
    let spans = parse::marked_spans(body.as_slice(), marked);
    Ok(intake.enqueue(permit, body, &spans, version, ack, counted))
}

/// Finds the payloads of a body.
pub fn split<'body, 'scratch>(
    body: &'body [u8],
    form: BodyForm,
    scratch: &'scratch mut Scratch,
) -> Result<Collection<'body, 'scratch>, Answer> {
    parse::parse(body, form, scratch).map_err(|error| no_collection(body, error))
}

/// Why a body is not split. What a browser makes of a `FormData` begins with two dashes (multipart,
/// RFC 2046, section 5.1.1), as no JSON does.
#[cold]
fn no_collection(body: &[u8], error: ParseError) -> Answer {
    match body.starts_with(b"--") {
        true => Answer::BadRequest(
            "the body is a multipart form, not JSON; send {\"data\":[...]} as a string or Blob"
                .into(),
        ),
        false => error.into(),
    }
}

/// Judges the token of an envelope, if this server asks for one and no header had it. Returns where
/// the payloads that come with the token are counted.
fn judge_envelope(
    server: &Server,
    envelope: &Envelope<'_>,
    token: &Cell<TokenId>,
) -> Result<Option<AcceptedCells>, Answer> {
    let Some(tokens) = &server.tokens else { return Ok(None) };
    let (has_envelope, given) = (envelope.form.may_be_collection(), envelope.token.as_deref());
    token.set(tokens.judge_envelope(token.get(), has_envelope, given)?);
    Ok(Some(tokens.cells().accepted(token.get())))
}

fn payload_bytes(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.end - span.start)).sum()
}

/// What came of trying to admit a body at once.
enum Tried {
    Admitted(Admitted),
    NoRoom(NoRoom),
}

/// A body that must wait for room.
struct NoRoom {
    need: Need,
    body: ChargedBytes,
    /// The part of its version that keys use.
    version: Option<Box<str>>,
    /// Where its payloads are counted besides the totals.
    counted: Option<AcceptedCells>,
}

/// The queue slots and bytes that these payloads need.
fn need(payloads: &[Span], body: &ChargedBytes, version: Option<&str>) -> Need {
    Need::of(payloads.len(), body.retained() + version.map_or(0, str::len))
}

impl Intake {
    /// Admits the payloads of a body if there is room now.
    fn admit_now(
        &self,
        body: ChargedBytes,
        payloads: &[Span],
        version: Option<Box<str>>,
        ack: Ack,
        counted: Option<AcceptedCells>,
    ) -> Result<Tried, Answer> {
        if payloads.is_empty() {
            let nothing = Admitted { count: 0, awaited: Awaited::Nothing };
            let closed = self.stop.closed.get();
            return if closed { Err(Answer::Stopping) } else { Ok(Tried::Admitted(nothing)) };
        }
        let need = need(payloads, &body, version.as_deref());
        if ack == Ack::Spooled {
            let version = version.as_deref();
            let admitted = self.enqueue_for_disk(need, body, payloads, version, counted)?;
            return Ok(Tried::Admitted(admitted));
        }
        Ok(match self.admission.admit_now(need)? {
            Some(permit) => {
                Tried::Admitted(self.enqueue(permit, body, payloads, version, ack, counted))
            }
            None => Tried::NoRoom(NoRoom { need, body, version, counted }),
        })
    }

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
        counted: Option<AcceptedCells>,
    ) -> Admitted {
        let request_outcome = (ack == Ack::Stored).then(|| RequestOutcome::of(spans.len()));
        let bytes = payload_bytes(spans);
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
        self.cells.bytes_accepted.add(bytes);
        if let Some(counted) = counted {
            counted.add(spans.len() as u64, bytes);
        }
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
        counted: Option<AcceptedCells>,
    ) -> Result<Admitted, Answer> {
        let spool = self.spool.as_ref().expect("without a spool this level is refused");
        // The spool must not take a request that the queue can never hold.
        self.admission.could_fit(need)?;
        let first = self.stamps.take(spans.len());
        let ticket = spool.submit(first, body, spans, version, counted)?;
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
