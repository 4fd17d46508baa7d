//! What a request waits for: its quota, its body, its turn among large bodies, room in the queue,
//! and what its ack level promises.

use std::cell::Cell;

use futures_lite::FutureExt;
use futures_util::future::try_join;

use super::{
    Admitted, Awaited, Intake, NoRoom, Tried, TriedSmall, Wanted, charge, is_multipart,
    judge_envelope, log_refused, no_collection, token_name, try_small,
};
use crate::budget::ChargedBytes;
use crate::coding::Coding;
use crate::config::Ack;
use crate::http::ack;
use crate::http::body::{BodyError, BodyReader, ReadBody};
use crate::http::meta::wrapped_spans;
use crate::http::parse::{self, SMALL_BODY_BYTES};
use crate::http::phase::{BodyEnd, ConnState};
use crate::http::quotas::Judged;
use crate::http::reply::Answer;
use crate::http::server::Server;
use crate::http::split::{LargeLine, LargeTurn};
use crate::metrics::tokens::TokenId;

/// The body of a request that is still to be read.
pub(in crate::http) trait BodySource {
    /// It has no bytes.
    fn is_empty(&self) -> bool;

    /// Reads all of it. Meanwhile the bytes are in `state`. One that is large may wait in `line` as
    /// soon as the client need not be waited for.
    async fn read<'a>(
        self,
        bodies: &BodyReader,
        state: &ConnState,
        line: LargeLine<'a>,
    ) -> Result<ReadBody<'a>, BodyError>;

    /// Reads all of it and drops it. It is charged to nobody, so the caller bounds its length.
    async fn discard(self, bodies: &BodyReader, state: &ConnState) -> Result<(), BodyError>;
}

/// Takes a request from its body to its answer. Also says whether part of the body is left unread.
pub(in crate::http) async fn process(
    server: &Server,
    state: &ConnState,
    mut wanted: Wanted<'_>,
    body: impl BodySource,
    token: &Cell<TokenId>,
) -> (Answer, bool) {
    let has_body = !body.is_empty();
    let (passed, waits) = match wanted.quota.take() {
        None => (Ok(None), None),
        Some(Judged::Passed(spending)) => (Ok(Some(spending)), None),
        // What one stream does not read fills memory that no budget has, or keeps the others of its
        // connection from reading.
        Some(Judged::Waits(buckets)) if state.is_stream() => (Ok(None), Some(buckets)),
        Some(Judged::Waits(buckets)) => (buckets.wait().await.map(Some), None),
        Some(Judged::Refused(throttled)) => (Err(throttled), None),
    };
    let passed = match passed {
        Ok(passed) => passed,
        Err(throttled) => {
            let is_dropped = !has_body || wanted.drops_body && drop_body(server, state, body).await;
            return (Answer::Throttled(throttled), !is_dropped);
        }
    };
    let passes = async {
        match waits {
            None => Ok(passed),
            Some(buckets) => Ok(Some(buckets.wait().await?)),
        }
    };
    let is_whole = Cell::new(false);
    let received = receive(server, state, body, &is_whole);
    let (body, spending) = match try_join(received, passes).await {
        Ok(received) => received,
        Err(refusal) => return (refusal, has_body && !is_whole.get()),
    };
    let (body, turn) = match decode(server, body, wanted.coding).await {
        Ok(decoded) => decoded,
        Err(refusal) => return (refusal, false),
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

/// Takes a request whose small body was tried once to its answer.
pub(in crate::http) async fn resume(
    server: &Server,
    mut wanted: Wanted<'_>,
    tried: TriedSmall,
    token: &Cell<TokenId>,
) -> Answer {
    let Wanted { intake, ack, .. } = wanted;
    let admitted = async {
        match admit_tried(server, &mut wanted, tried, token).await? {
            Small::Admitted(admitted) => Ok(admitted),
            Small::LongWrapped(long) => {
                let turn = server.splitter.large_turn(&server.stop.closed).await?;
                admit_large(server, wanted, long, turn, token).await
            }
        }
    };
    match admitted.await {
        Ok(admitted) => wait(intake, admitted, ack).await,
        Err(refusal) => refusal,
    }
}

/// Reads the body as it was sent, within its deadlines. Sets `is_whole` once nothing of it is left
/// unread.
async fn receive<'a>(
    server: &'a Server,
    state: &ConnState,
    body: impl BodySource,
    is_whole: &Cell<bool>,
) -> Result<ReadBody<'a>, Answer> {
    let whole = async {
        let line = server.splitter.large_line(&server.stop.closed);
        let read = body.read(&server.bodies, state, line).await?;
        // From here on the client is not waited for, so BODY_TIMEOUT and BODY_RATE_MIN end.
        state.body_is_whole();
        is_whole.set(true);
        Ok(read)
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

/// Decompresses a body that is whole. A large one mostly comes with its turn.
async fn decode<'a>(
    server: &'a Server,
    read: ReadBody<'a>,
    coding: Option<Coding>,
) -> Result<(ChargedBytes, Option<LargeTurn<'a>>), Answer> {
    let ReadBody { bytes: raw, turn } = read;
    let turn = turn.transpose()?;
    let Some(coding) = coding else { return Ok((raw, turn)) };
    let turn = match turn {
        Some(turn) => turn,
        None => match server.bodies.decode_small(&raw, coding).await? {
            Some(body) => return Ok((body, None)),
            None => server.splitter.large_turn(&server.stop.closed).await?,
        },
    };
    let body = server.bodies.decode_large(&raw, coding, &turn).await?;
    Ok((body, Some(turn)))
}

/// Reads a body and drops it, within its deadlines. Whether nothing of it is left unread.
async fn drop_body(server: &Server, state: &ConnState, body: impl BodySource) -> bool {
    let whole = async { body.discard(&server.bodies, state).await.is_ok() };
    let ended = async {
        let _whatever = state.body_end().await;
        false
    };
    let is_whole = whole.or(ended).await;
    state.body_is_whole();
    is_whole
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
    body: ChargedBytes,
    token: &Cell<TokenId>,
) -> Result<Small, Answer> {
    let tried = try_small(server, wanted, body, false, token)?;
    admit_tried(server, wanted, tried, token).await
}

/// Admits a small body that was tried once.
async fn admit_tried(
    server: &Server,
    wanted: &mut Wanted<'_>,
    mut tried: TriedSmall,
    token: &Cell<TokenId>,
) -> Result<Small, Answer> {
    loop {
        let body = match tried {
            TriedSmall::Admitted(admitted) => return Ok(Small::Admitted(admitted)),
            TriedSmall::LongWrapped(body) => return Ok(Small::LongWrapped(body)),
            TriedSmall::NoRoom(waiting) => {
                let admitted = wait_for_room(wanted.intake, waiting, wanted.ack).await?;
                return Ok(Small::Admitted(admitted));
            }
            TriedSmall::NoQuota(waiting, quota) => {
                if let Some(quotas) = &server.quotas {
                    quotas.wait_envelope(&quota, waiting.as_slice().len()).await?;
                }
                waiting
            }
        };
        // Its spans were not kept meanwhile, so it is parsed again. Its token may be gone by now.
        token.set(TokenId::NONE);
        tried = try_small(server, wanted, body, true, token)?;
    }
}

/// Waits up to `ENQUEUE_WAIT` for room, and takes it.
async fn wait_for_room(intake: &Intake, waiting: NoRoom, ack: Ack) -> Result<Admitted, Answer> {
    let NoRoom { need, body, marked, facts, counted } = waiting;
    let permit = intake.admission.admit(need, intake.config.enqueue_wait).await;
    let permit = permit.inspect_err(|why| log_refused(&facts.values, need.slots, why))?;
    let spans = match marked {
        None => wrapped_spans(body.as_slice(), need.slots),
        Some(marked) => parse::marked_spans(body.as_slice(), marked),
    };
    Ok(intake.enqueue(permit, body, &spans, facts, ack, counted))
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
    let waiting = {
        let (length, is_multipart) = (body.as_slice().len(), is_multipart(body.as_slice()));
        let split = server.splitter.split_large(body.padded(), form, turn).await;
        let (envelope, mut spans) = match split {
            Ok(split) => split,
            Err(error) => return Err(no_collection(is_multipart, error)),
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
        match intake.admit_now(body, &spans, facts, ack, counted)? {
            Tried::Admitted(admitted) => return Ok(admitted),
            Tried::NoRoom(waiting) => waiting,
        }
    };
    wait_for_room(intake, waiting, ack).await
}

/// Waits up to `ACK_TIMEOUT` for what `ack` promises.
pub(in crate::http) async fn wait(intake: &Intake, admitted: Admitted, ack: Ack) -> Answer {
    let Admitted { count, awaited } = admitted;
    let limit = intake.config.ack_timeout;
    match awaited {
        Awaited::Nothing => Answer::Accepted { count, ack },
        Awaited::Store(outcome) => {
            ack::wait_until_stored(&outcome, limit, &intake.stop, intake.cells).await
        }
        Awaited::Disk(ticket, untold) => {
            let answer = ack::wait_until_spooled(&ticket, count, limit, &intake.stop).await;
            if let Some(untold) = untold {
                untold.tell(intake, &answer);
            }
            answer
        }
    }
}
