//! One request, from its head to its answer: handle → split → admit → enqueue → wait → answer.
//!
//! Only [`route`] knows how many pipelines a server has. Code before it belongs to the core; code
//! after it works on the [`Intake`] that the path selects.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_lite::FutureExt;
use http::header::EXPECT;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;

use super::ack;
use super::body::{self, BodyError};
use super::facts::{FactsWanted, HeadFacts, RequestFacts};
use super::forwarded::{self, ForwardedClient};
use super::head::{self, BodyFraming};
use super::media_type;
use super::meta::{Wrapper, wrapped_spans};
use super::parse::{self, BodyForm, Collection, Envelope, ParseError, SMALL_BODY_BYTES, Scratch};
use super::phase::{BodyEnd, ConnState};
use super::quotas::{Announced, DROPPED_BODY_MAX, Judged, Throttled};
use super::reply::Answer;
use super::server::Server;
use super::split::LargeTurn;
use super::tokens::{KnownToken, TokenQuota};
use crate::budget::{ChargedBytes, Padded};
use crate::coding::Coding;
use crate::config::{Ack, Config, Paths};
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
    /// What keys and `META` want of a request.
    pub facts: FactsWanted,
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
    let asks = Asks { state: &state, length, started, token: &token };
    let wanted = checked.and_then(|()| Wanted::of(&head, &server, &asks));
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

/// Who asks, and when.
struct Asks<'a> {
    state: &'a ConnState,
    /// Length of the body, if the head says so.
    length: Option<u64>,
    started: Instant,
    /// Set once a token is accepted.
    token: &'a Cell<TokenId>,
}

/// What a request's head asks for.
struct Wanted<'a> {
    intake: &'a Intake,
    form: BodyForm,
    ack: Ack,
    coding: Option<Coding>,
    /// What keys and `META` want of it.
    facts: Option<Box<HeadFacts>>,
    /// `None`: it has no quota.
    quota: Option<Judged<'a>>,
    /// After a refusal by a quota, whether the body is read so that the connection stays. A client
    /// that waits for `100 Continue` gets the answer instead.
    drops_body: bool,
}

impl<'a> Wanted<'a> {
    /// Also judges the token of a header or the query, and the quotas that are known by then.
    ///
    /// # Errors
    /// The answer to a request that its head alone refuses.
    fn of(head: &Parts, server: &'a Server, asks: &Asks<'a>) -> Result<Wanted<'a>, Answer> {
        let intake = route(server, &head.method, &head.uri)
            .map_err(|refusal| server.tokenless.answer(head).unwrap_or(refusal))?;
        let form = media_type::form_of(&head.headers, intake.config.body);
        let mut known = KnownToken::NONE;
        if let Some(tokens) = &server.tokens {
            let may_have_envelope = form.map_or(true, BodyForm::may_be_collection);
            known = tokens.judge_head(&head.headers, &head.uri, may_have_envelope)?;
            asks.token.set(known.id);
        }
        let form = form?;
        let ack = ack::requested_level(&head.headers, &intake.config)?;
        let coding = body::coding_of(&head.headers)?;
        server.bodies.check_announced(asks.length)?;
        let facts = intake.facts.of_head(head, || asks.state.client());
        // Last, so that a request that is refused for its head costs nothing of a quota.
        let quota = server.quotas.as_ref().and_then(|quotas| {
            let body = Announced { length: asks.length, is_compressed: coding.is_some() };
            quotas.judge(asks.state, known.quota.as_ref(), body, asks.started)
        });
        let drops_body = match &quota {
            None | Some(Judged::Passed(_)) => false,
            Some(_) => {
                asks.length.is_some_and(|length| length <= DROPPED_BODY_MAX)
                    && !head.headers.contains_key(EXPECT)
            }
        };
        Ok(Wanted { intake, form, ack, coding, facts, quota, drops_body })
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
    let mut wanted = match wanted {
        Ok(wanted) => wanted,
        Err(refusal) => return (refusal, has_body),
    };
    let passed = match wanted.quota.take() {
        None => Ok(None),
        Some(Judged::Passed(spending)) => Ok(Some(spending)),
        Some(Judged::Waits(buckets)) => buckets.wait().await.map(Some),
        Some(Judged::Refused(throttled)) => Err(throttled),
    };
    let spending = match passed {
        Ok(spending) => spending,
        Err(throttled) => {
            let is_dropped = !has_body || wanted.drops_body && drop_body(server, state, body).await;
            return (Answer::Throttled(throttled), !is_dropped);
        }
    };
    let is_whole = Cell::new(false);
    let (body, turn) = match read(server, state, body, wanted.coding, &is_whole).await {
        Ok(read) => read,
        Err(refusal) => return (refusal, has_body && !is_whole.get()),
    };
    if let Some(spending) = spending {
        spending.charge_final(body.as_slice().len());
    }
    let Wanted { intake, ack, .. } = wanted;
    let admitted = match admit(server, wanted, body, turn, token).await {
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

/// Reads a body and drops it, within its deadlines. Whether nothing of it is left unread.
async fn drop_body(server: &Server, state: &ConnState, body: Incoming) -> bool {
    let whole = async { server.bodies.discard(state, body).await.is_ok() };
    let ended = async {
        let _whatever = state.body_end().await;
        false
    };
    let is_whole = whole.or(ended).await;
    state.body_is_whole();
    is_whole
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
    mut wanted: Wanted<'_>,
    mut body: ChargedBytes,
    mut turn: Option<LargeTurn<'_>>,
    token: &Cell<TokenId>,
) -> Result<Admitted, Answer> {
    if body.as_slice().len() <= SMALL_BODY_BYTES {
        drop(turn.take());
        match admit_small(server, &mut wanted, body, token).await? {
            Small::Admitted(admitted) => return Ok(admitted),
            Small::LongWrapped(long) => body = long,
        }
    }
    let turn = match turn {
        Some(turn) => turn,
        None => server.splitter.large_turn(&server.stop.closed).await?,
    };
    admit_large(server, wanted, body, turn, token).await
}

/// What came of a small body.
enum Small {
    Admitted(Admitted),
    /// Its payloads are too long for one turn once they are wrapped, so it is a large body after
    /// all.
    LongWrapped(ChargedBytes),
}

/// Admits a body that is split in one turn.
async fn admit_small(
    server: &Server,
    wanted: &mut Wanted<'_>,
    mut body: ChargedBytes,
    token: &Cell<TokenId>,
) -> Result<Small, Answer> {
    let mut is_charged = false;
    loop {
        match try_small(server, wanted, body, is_charged, token)? {
            TriedSmall::Admitted(admitted) => return Ok(Small::Admitted(admitted)),
            TriedSmall::LongWrapped(body) => return Ok(Small::LongWrapped(body)),
            TriedSmall::NoRoom(waiting) => {
                return wait_small(server, wanted, waiting).await.map(Small::Admitted);
            }
            TriedSmall::NoQuota(waiting, quota) => {
                if let Some(quotas) = &server.quotas {
                    quotas.wait_envelope(&quota, waiting.as_slice().len()).await?;
                }
                body = waiting;
            }
        }
        // Its spans were not kept meanwhile, so it is parsed again. Its token may be gone by now.
        is_charged = true;
        token.set(TokenId::NONE);
    }
}

/// What came of trying to admit a small body.
enum TriedSmall {
    Admitted(Admitted),
    NoRoom(NoRoom),
    /// The quota of its envelope's token has no tokens on this core now.
    NoQuota(ChargedBytes, TokenQuota),
    /// As [`Small::LongWrapped`].
    LongWrapped(ChargedBytes),
}

/// Tries to admit a small body at once. If it `is_charged`, it has waited for its envelope's quota.
fn try_small(
    server: &Server,
    wanted: &mut Wanted<'_>,
    mut body: ChargedBytes,
    is_charged: bool,
    token: &Cell<TokenId>,
) -> Result<TriedSmall, Answer> {
    let Wanted { intake, form, ack, .. } = *wanted;
    // The core's one scratch: this borrow must end before the next await.
    let mut scratch = server.splitter.scratch();
    let length = body.as_slice().len();
    let Collection { envelope, payloads } = split(body.padded(), form, &mut scratch)?;
    if wanted.facts.as_ref().is_some_and(|facts| !facts.fit_one_turn(payloads)) {
        return Ok(TriedSmall::LongWrapped(body));
    }
    let (counted, quota) = judge_envelope(server, &envelope, token)?;
    let unpaid = quota.filter(|_| !is_charged);
    if let Some(quota) = charge(server, unpaid, length, true)? {
        return Ok(TriedSmall::NoQuota(body, quota));
    }
    let name = || token_name(server, token);
    let facts = wanted.facts.take();
    let (facts, wrapper) = intake.facts.complete(facts, envelope.version.as_deref(), name);
    let tried = match wrapper {
        None => intake.admit_now(body, payloads, facts, ack, counted)?,
        Some(wrapper) => {
            intake.could_wrap(&wrapper, payloads, &facts)?;
            let memory = &server.bodies.memory;
            let (body, spans) = wrapper.wrap_small(memory, body.as_slice(), payloads)?;
            intake.admit_now(body, &spans, facts, ack, counted)?
        }
    };
    Ok(match tried {
        Tried::Admitted(admitted) => TriedSmall::Admitted(admitted),
        Tried::NoRoom(waiting) => TriedSmall::NoRoom(waiting),
    })
}

/// Waits until there is room for a small body.
async fn wait_small(
    server: &Server,
    wanted: &Wanted<'_>,
    waiting: NoRoom,
) -> Result<Admitted, Answer> {
    let Wanted { intake, form, ack, .. } = *wanted;
    let NoRoom { need, mut body, facts, counted } = waiting;
    // A waiting request holds its body only. Its spans could weigh four times as much, so the body
    // is split again.
    let permit = intake.admission.admit(need, intake.config.enqueue_wait).await?;
    if facts.values.is_wrapped() {
        let spans = wrapped_spans(body.as_slice(), need.slots);
        return Ok(intake.enqueue(permit, body, &spans, facts, ack, counted));
    }
    let mut scratch = server.splitter.scratch();
    let Collection { payloads, .. } = split(body.padded(), form, &mut scratch)?;
    Ok(intake.enqueue(permit, body, payloads, facts, ack, counted))
}

/// Admits a body that is split in slices. Its turn ends before it waits for room.
async fn admit_large(
    server: &Server,
    wanted: Wanted<'_>,
    mut body: ChargedBytes,
    turn: LargeTurn<'_>,
    token: &Cell<TokenId>,
) -> Result<Admitted, Answer> {
    let Wanted { intake, form, ack, facts, .. } = wanted;
    let (waiting, marked) = {
        let (length, is_multipart) = (body.as_slice().len(), is_multipart(body.as_slice()));
        let split = server.splitter.split_large(body.padded(), form, turn).await;
        let (envelope, mut spans) = match split {
            Ok(split) => split,
            Err(error) => {
                body.free_in_slices().await;
                return Err(no_collection(is_multipart, error));
            }
        };
        let (counted, quota) = judge_envelope(server, &envelope, token)?;
        charge(server, quota, length, false)?;
        let name = || token_name(server, token);
        let (facts, wrapper) = intake.facts.complete(facts, envelope.version.as_deref(), name);
        drop(envelope);
        let body = match wrapper {
            None => body,
            Some(wrapper) => {
                intake.could_wrap(&wrapper, &spans, &facts)?;
                let memory = &server.bodies.memory;
                let wrapped = wrapper.wrap_large(memory, body.as_slice(), &mut spans).await?;
                // Otherwise it would count in `MAX_BODY_BYTES` while the request waits for room.
                drop(body);
                wrapped
            }
        };
        let mut waiting = match intake.admit_now(body, &spans, facts, ack, counted)? {
            Tried::Admitted(admitted) => return Ok(admitted),
            Tried::NoRoom(waiting) => waiting,
        };
        let is_wrapped = waiting.facts.values.is_wrapped();
        let marked = (!is_wrapped).then(|| parse::mark_spans(waiting.body.as_mut_slice(), &spans));
        (waiting, marked)
    };
    let NoRoom { need, body, facts, counted } = waiting;
    let permit = intake.admission.admit(need, intake.config.enqueue_wait).await?;
    let spans = match marked {
        None => wrapped_spans(body.as_slice(), need.slots),
        Some(marked) => parse::marked_spans(body.as_slice(), marked),
    };
    Ok(intake.enqueue(permit, body, &spans, facts, ack, counted))
}

/// Finds the payloads of a body.
pub fn split<'body, 'scratch>(
    body: Padded<'body>,
    form: BodyForm,
    scratch: &'scratch mut Scratch,
) -> Result<Collection<'body, 'scratch>, Answer> {
    let is_multipart = is_multipart(&body);
    parse::parse(body, form, scratch).map_err(|error| no_collection(is_multipart, error))
}

/// What a browser makes of a `FormData` begins with two dashes (multipart, RFC 2046, section 5.1.1),
/// as no JSON does.
fn is_multipart(body: &[u8]) -> bool {
    body.starts_with(b"--")
}

/// Why a body is not split.
#[cold]
fn no_collection(is_multipart: bool, error: ParseError) -> Answer {
    match is_multipart {
        true => Answer::BadRequest(
            "the body is a multipart form, not JSON; send {\"data\":[...]} as a string or Blob"
                .into(),
        ),
        false => error.into(),
    }
}

/// Judges the token of an envelope, if this server asks for one and no header had it. Returns where
/// the payloads that come with the token are counted, and the quota that is not judged yet.
fn judge_envelope(
    server: &Server,
    envelope: &Envelope<'_>,
    token: &Cell<TokenId>,
) -> Result<(Option<AcceptedCells>, Option<TokenQuota>), Answer> {
    let Some(tokens) = &server.tokens else { return Ok((None, None)) };
    let (has_envelope, given) = (envelope.form.may_be_collection(), envelope.token.as_deref());
    let known = tokens.judge_envelope(token.get(), has_envelope, given)?;
    token.set(known.id);
    Ok((Some(tokens.cells().accepted(known.id)), known.quota))
}

/// Charges a body of `bytes` bytes to the quota of its envelope's token. Returns the quota if it is
/// to be waited for.
fn charge(
    server: &Server,
    quota: Option<TokenQuota>,
    bytes: usize,
    may_wait: bool,
) -> Result<Option<TokenQuota>, Answer> {
    let (Some(quota), Some(quotas)) = (quota, &server.quotas) else { return Ok(None) };
    match quotas.judge_envelope(&quota, bytes, may_wait, rt::now()) {
        None => Ok(Some(quota)),
        Some(judged) => judged.map(|()| None).map_err(Answer::from),
    }
}

impl From<Box<Throttled>> for Answer {
    fn from(throttled: Box<Throttled>) -> Answer {
        Answer::Throttled(throttled)
    }
}

/// The name of a request's token, if it has one.
fn token_name<'a>(server: &'a Server, token: &Cell<TokenId>) -> Option<&'a str> {
    server.tokens.as_ref().and_then(|tokens| tokens.name(token.get()))
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
    facts: RequestFacts,
    /// Where its payloads are counted besides the totals.
    counted: Option<AcceptedCells>,
}

/// The queue slots and bytes that these payloads need.
fn need(payloads: &[Span], body_bytes: usize, facts: &RequestFacts) -> Need {
    Need::of(payloads.len(), body_bytes + facts.values.bytes())
}

impl Intake {
    /// Admits the payloads of a body if there is room now.
    fn admit_now(
        &self,
        body: ChargedBytes,
        payloads: &[Span],
        facts: RequestFacts,
        ack: Ack,
        counted: Option<AcceptedCells>,
    ) -> Result<Tried, Answer> {
        if payloads.is_empty() {
            let nothing = Admitted { count: 0, awaited: Awaited::Nothing };
            let closed = self.stop.closed.get();
            return if closed { Err(Answer::Stopping) } else { Ok(Tried::Admitted(nothing)) };
        }
        let need = need(payloads, body.retained(), &facts);
        if ack == Ack::Spooled {
            let admitted = self.enqueue_for_disk(need, body, payloads, &facts, counted)?;
            return Ok(Tried::Admitted(admitted));
        }
        Ok(match self.admission.admit_now(need)? {
            Some(permit) => {
                Tried::Admitted(self.enqueue(permit, body, payloads, facts, ack, counted))
            }
            None => Tried::NoRoom(NoRoom { need, body, facts, counted }),
        })
    }

    /// Whether these payloads can be admitted once they are wrapped, before memory is taken for it.
    ///
    /// # Errors
    /// The limit that they would exceed.
    fn could_wrap(
        &self,
        wrapper: &Wrapper,
        payloads: &[Span],
        facts: &RequestFacts,
    ) -> Result<(), Answer> {
        let (given, max) = (wrapper.wrapped_bytes(payloads), self.config.request_bytes_max());
        if given > max {
            return Err(BodyError::WrappedTooLarge { given, max }.into());
        }
        Ok(self.admission.could_fit(need(payloads, given, facts))?)
    }

    /// Puts the payloads of a body into the queue. `permit` is its room there.
    fn enqueue(
        &self,
        permit: Permit,
        body: ChargedBytes,
        spans: &[Span],
        facts: RequestFacts,
        ack: Ack,
        counted: Option<AcceptedCells>,
    ) -> Admitted {
        let request_outcome = (ack == Ack::Stored).then(|| RequestOutcome::of(spans.len()));
        let bytes = payload_bytes(spans);
        let Stamp { unix_nanos, seq: first } = self.stamp(spans.len(), &facts);
        // The permit replaces the charge for the body's memory.
        let payloads = Payload::split(body.into_bytes(), permit, spans, facts.values);
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
        facts: &RequestFacts,
        counted: Option<AcceptedCells>,
    ) -> Result<Admitted, Answer> {
        let spool = self.spool.as_ref().expect("without a spool this level is refused");
        // The spool must not take a request that the queue can never hold.
        self.admission.could_fit(need)?;
        let first = self.stamp(spans.len(), facts);
        let ticket = spool.submit(first, body, spans, &facts.values, counted)?;
        Ok(Admitted { count: spans.len(), awaited: Awaited::Disk(ticket) })
    }

    /// The stamp of a request's first payload.
    fn stamp(&self, payloads: usize, facts: &RequestFacts) -> Stamp {
        match facts.received_at {
            None => self.stamps.take(payloads),
            Some(unix_nanos) => self.stamps.take_at(payloads, unix_nanos),
        }
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
