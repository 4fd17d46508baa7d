//! One request, from its head to its answer: begin → judge → attempt (split → admit → enqueue) →
//! end. It is the same whether the fast path has read the head or hyper.
//!
//! A request whose body has arrived, and which finds room, is answered without any wait
//! ([`Handling::attempt`]). What waits is in [`waiting`].
//!
//! Only [`route`] knows how many pipelines a server has. Code before it belongs to the core; code
//! after it works on the [`Intake`] that the path selects.

mod told;
pub(super) mod waiting;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, Uri};
use http_body_util::Full;

use super::ack;
use super::body::{self, BodyError};
use super::cors::Visibility;
use super::facts::{FactsWanted, HeadFacts, RequestFacts};
use super::fields::{Fields, HeadView, KnownField};
use super::forwarded::{self, ForwardedClient};
use super::media_type;
use super::meta::Wrapper;
use super::parse::Scratch;
use super::parse::{
    self, BodyForm, Collection, Envelope, MarkedSpans, ParseError, SMALL_BODY_BYTES,
};
use super::phase::ConnState;
use super::quotas::{Announced, DROPPED_BODY_MAX, Judged, Throttled};
use super::reply::Answer;
use super::server::Server;
use super::tap::CoreTap;
use super::tokens::{KnownToken, TokenQuota, TokenRefusal};
use crate::budget::{ChargedBytes, Padded};
use crate::coding::Coding;
use crate::config::{Ack, Config, Paths};
use crate::metrics::tokens::{AcceptedCells, TokenId};
use crate::metrics::{CoreCells, Unavailable};
use crate::queue::admission::{Admission, Need, Permit};
use crate::queue::job::{Span, Stamp, Stamps};
use crate::queue::outcome::RequestOutcome;
use crate::queue::run::{InCommon, Run};
use crate::rt;
use crate::spool::{Spool, Ticket};
use crate::stop::Stop;
use told::{Untold, log_admitted, log_refused};

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
    /// With `TAP=on`.
    pub tap: Option<CoreTap>,
    pub stop: Rc<Stop>,
    pub cells: &'static CoreCells,
}

/// A request whose head has arrived, until it is answered.
pub(super) struct Handling<'a> {
    server: &'a Server,
    state: &'a ConnState,
    started: Instant,
    /// Length of the body, if the head says so.
    length: Option<u64>,
    /// Set once a token is accepted.
    token: Cell<TokenId>,
    /// A trusted proxy has sent it.
    is_forwarded: bool,
    /// What browsers are told, if they are told anything.
    visibility: Option<Visibility>,
}

/// What is counted of an answer besides its status.
struct Counted {
    payloads: usize,
    unavailable: Option<Unavailable>,
    is_tokenless: bool,
}

impl<'a> Handling<'a> {
    /// Begins a request that `started` now; `length` is the length of its body, if known.
    pub(super) fn begin(
        server: &'a Server,
        state: &'a ConnState,
        fields: &impl Fields,
        length: Option<u64>,
        started: Instant,
    ) -> Handling<'a> {
        state.body_begins(started);
        server.faults.on_request();
        let is_forwarded = find_client(server, state, fields);
        let cors = server.tokenless.cors.as_ref();
        let visibility = cors.map(|cors| cors.visibility(fields));
        let token = Cell::new(TokenId::NONE);
        Handling { server, state, started, length, token, is_forwarded, visibility }
    }

    /// Judges what the head asks for, also the token of a header or the query, and the quotas that
    /// are known by then.
    ///
    /// # Errors
    /// The answer to a request that its head alone refuses.
    pub(super) fn judge(
        &self,
        intake: &'a Intake,
        head: &HeadView<'_, impl Fields>,
    ) -> Result<Wanted<'a>, Answer> {
        let Handling { server, state, length, .. } = *self;
        let form = media_type::form_of(head.fields, intake.config.body);
        let mut known = KnownToken::NONE;
        if let Some(tokens) = &server.tokens {
            let may_have_envelope = form.map_or(true, BodyForm::may_be_collection);
            let judged = tokens.judge_head(head.fields, head.query, may_have_envelope);
            known = match (judged, state.certificate()) {
                (
                    judged @ (Ok(KnownToken::NONE) | Err(TokenRefusal::NoHeader)),
                    Some(connection),
                ) => connection.certificate().map_or(judged, |of| Ok(tokens.of_certificate(of)))?,
                (judged, _) => judged?,
            };
            self.token.set(known.id);
        }
        let form = form?;
        let ack = ack::requested_level(head.fields, &intake.config)?;
        let coding = body::coding_of(head.fields)?;
        server.bodies.check_announced(length)?;
        let facts = intake.facts.of_head(head, || state.client());
        // Last, so that a request that is refused for its head costs nothing of a quota.
        let quota = server.quotas.as_ref().and_then(|quotas| {
            let body = Announced { length, is_compressed: coding.is_some() };
            quotas.judge(state, known.quota.as_ref(), body, self.started)
        });
        let drops_body = match &quota {
            None | Some(Judged::Passed(_)) => false,
            Some(_) => {
                let expects = head.fields.values(KnownField::Expect).next().is_some();
                length.is_some_and(|length| length <= DROPPED_BODY_MAX) && !expects
            }
        };
        Ok(Wanted { intake, form, ack, coding, facts, quota, drops_body })
    }

    /// Where the request's token is noted.
    pub(super) fn token(&self) -> &Cell<TokenId> {
        &self.token
    }

    /// Answers a request whose whole `body` has arrived, if that needs no wait.
    pub(super) fn attempt(&self, mut wanted: Wanted<'a>, body: &[u8]) -> RequestAttempt<'a> {
        if wanted.coding.is_some() || body.len() > SMALL_BODY_BYTES {
            return RequestAttempt::Waits(wanted);
        }
        let spending = match wanted.quota.take() {
            None => None,
            Some(Judged::Passed(spending)) => Some(spending),
            Some(Judged::Refused(throttled)) if wanted.drops_body => {
                return RequestAttempt::Answered(Answer::Throttled(throttled));
            }
            other => {
                wanted.quota = other;
                return RequestAttempt::Waits(wanted);
            }
        };
        let bytes = match self.server.bodies.whole(body) {
            Ok(bytes) => bytes,
            Err(error) => return RequestAttempt::Unread(error.into()),
        };
        self.state.body_is_whole();
        if let Some(spending) = spending {
            spending.charge_final(body.len());
        }
        match try_small(self.server, &mut wanted, bytes, false, &self.token) {
            Err(refusal) => RequestAttempt::Answered(refusal),
            Ok(TriedSmall::Admitted(Admitted { count, awaited: Awaited::Nothing })) => {
                RequestAttempt::Answered(Answer::Accepted { count, ack: wanted.ack })
            }
            Ok(TriedSmall::Admitted(admitted)) => {
                RequestAttempt::Admitted(wanted.intake, admitted, wanted.ack)
            }
            Ok(tried) => RequestAttempt::Tried(wanted, tried),
        }
    }

    /// The reply to the request, which ends it. `body_left` says whether part of the body is left
    /// unread. `room` is an empty map. Also returns the time.
    pub(super) fn reply(
        self,
        answer: Answer,
        body_left: bool,
        room: HeaderMap,
    ) -> (Response<Full<Bytes>>, Instant) {
        let server = self.server;
        // The next request of this connection would begin in the middle of an unread body.
        // A stream ends with its request, and its connection says itself that it closes.
        let close = (body_left || server.stop.draining.get()) && !self.state.is_stream();
        let counted = Counted {
            payloads: answer.payloads_admitted(),
            unavailable: answer.unavailable(),
            is_tokenless: answer.count_tokenless(server.cells),
        };
        let mut response = answer.render(close, room);
        let status = response.status();
        let (visibility, now) = self.end(status.as_u16(), &counted);
        if let (Some(cors), Some(visibility)) = (&server.tokenless.cors, visibility) {
            cors.add_to(response.headers_mut(), status, visibility);
        }
        (response, now)
    }

    /// Ends a request whose answer is a 200 that says nothing but that `payloads` were admitted.
    /// `None` if its answer may have to say more. Otherwise returns the time.
    pub(super) fn end_accepted(self, payloads: usize) -> Result<Instant, Handling<'a>> {
        if self.visibility.is_some() {
            return Err(self);
        }
        let (_, now) = self.end(200, &Counted { payloads, unavailable: None, is_tokenless: false });
        Ok(now)
    }

    /// Counts the request, which is answered now.
    fn end(self, status: u16, counted: &Counted) -> (Option<Visibility>, Instant) {
        let Handling { server, state, started, length, token, is_forwarded, visibility } = self;
        let now = rt::now();
        // A health check or a preflight is no refusal, whatever its status.
        let tallied = if counted.is_tokenless { 200 } else { status };
        state.tally.request(now, tallied, counted.payloads, token.get());
        if is_forwarded {
            server.conns.forwarded_request_ended(state);
        }
        if !counted.is_tokenless {
            match counted.unavailable {
                Some(reason) => server.cells.count_unavailable(reason),
                None => server.cells.count_response(status),
            }
            if let Some(tokens) = &server.tokens {
                tokens.cells().count_response(token.get(), status);
            }
            server.cells.request_latency.observe(now - started);
        }
        state.request_ended(length, now);
        (visibility, now)
    }
}

/// What came of an attempt to answer a request at once.
pub(super) enum RequestAttempt<'a> {
    Answered(Answer),
    /// It is answered, and its body was not read.
    Unread(Answer),
    /// Its body was not looked at: something must be waited for first.
    Waits(Wanted<'a>),
    /// Its payloads are admitted, and its ack level is to be waited for.
    Admitted(&'a Intake, Admitted, Ack),
    /// Its body was read, and something else is to be waited for.
    Tried(Wanted<'a>, TriedSmall),
}

/// If a trusted proxy has sent the request, finds out for whom, and says so.
fn find_client(server: &Server, state: &ConnState, fields: &impl Fields) -> bool {
    let Some(trusted) = &server.config.trust else { return false };
    let peer = state.origin.connection();
    if !trusted.contains(peer) {
        return false;
    }
    let ForwardedClient { address, flaw } = forwarded::client(fields, peer, trusted);
    if let Some(flaw) = flaw {
        server.cells.forwarded_flaws[flaw as usize].inc();
    }
    state.origin.request_begins(address);
    true
}

/// What a request's head asks for.
pub(super) struct Wanted<'a> {
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

/// Selects the pipeline of a request by its path; `None` if it has none. No other code looks at the
/// path of a request for payloads.
pub(super) fn route<'a>(server: &'a Server, path: &str) -> Option<&'a Intake> {
    server.config.paths.contains(path).then_some(&server.intake)
}

/// The answer to any request but a `POST` to one of `paths`.
pub fn wrong_route(paths: &Paths, method: &Method, uri: &Uri) -> Option<Answer> {
    match paths.contains(uri.path()) {
        true if method == Method::POST => None,
        true => Some(Answer::MethodNotAllowed),
        false => Some(Answer::NotFound { wanted: paths.first().into() }),
    }
}

/// A request whose payloads were all admitted.
pub(super) struct Admitted {
    count: usize,
    awaited: Awaited,
}

/// What an admitted request still waits for.
pub(super) enum Awaited {
    Nothing,
    /// The outcome of every payload.
    Store(Rc<RequestOutcome>),
    /// The sync of its payloads to the spool.
    Disk(Rc<Ticket>, Option<Box<Untold>>),
}

/// What came of trying to admit a small body.
pub(super) enum TriedSmall {
    Admitted(Admitted),
    NoRoom(NoRoom),
    /// The quota of its envelope's token has no tokens on this core now.
    NoQuota(ChargedBytes, TokenQuota),
    /// Its payloads are too long for one turn once they are wrapped.
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
pub(super) struct NoRoom {
    need: Need,
    body: ChargedBytes,
    /// Its payloads, noted in the body; `None` if their wrapping shows where they are.
    marked: Option<MarkedSpans>,
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
        mut body: ChargedBytes,
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
        let permit = self.admission.admit_now(need);
        Ok(match permit.inspect_err(|why| log_refused(&facts.values, payloads.len(), why))? {
            Some(permit) => {
                Tried::Admitted(self.enqueue(permit, body, payloads, facts, ack, counted))
            }
            None => {
                let is_wrapped = facts.values.is_wrapped();
                let marked =
                    (!is_wrapped).then(|| parse::mark_spans(body.as_mut_slice(), payloads));
                Tried::NoRoom(NoRoom { need, body, marked, facts, counted })
            }
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
        let first = self.stamp(spans.len(), &facts);
        if let Some(tap) = &self.tap {
            tap.offer(body.as_slice(), spans, first);
        }
        let (values, outcomes) = (facts.values, request_outcome.clone());
        log_admitted(&values, first, spans.len());
        let common = InCommon { values, first, record: None, request_outcome: outcomes };
        // The permit replaces the charge for the body's memory.
        self.admission.push(Run::new(body.into_bytes(), permit, spans, common));
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
        let fits = self.admission.could_fit(need);
        fits.inspect_err(|why| log_refused(&facts.values, spans.len(), why))?;
        let first = self.stamp(spans.len(), facts);
        // The spool takes the body, and whether it is admitted is known later.
        let untold = Untold::of(self, body.as_slice(), spans, first, &facts.values);
        let ticket = spool.submit(first, body, spans, &facts.values, counted);
        let ticket = ticket.inspect_err(|why| log_refused(&facts.values, spans.len(), why))?;
        Ok(Admitted { count: spans.len(), awaited: Awaited::Disk(ticket, untold) })
    }

    /// The stamp of a request's first payload.
    fn stamp(&self, payloads: usize, facts: &RequestFacts) -> Stamp {
        match facts.received_at {
            None => self.stamps.take(payloads),
            Some(unix_nanos) => self.stamps.take_at(payloads, unix_nanos),
        }
    }
}
