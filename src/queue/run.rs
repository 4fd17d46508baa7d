//! The payloads of one request, as the queue holds them: together.
//!
//! What they have in common is kept once, beside their body: the stamp of the first, their place in
//! the spool, the request that waits for their outcomes, the permit, and where each of them lies in
//! the body (a [`Span`], 8 bytes). A [`Run`] is a handle on that and a range of numbers. Runs are
//! split by their ranges, so that taking payloads off the front moves a number, and dropping a
//! million of them that are complete is one drop of the body.
//!
//! The payloads of a run are adjacent and have consecutive stamps. A payload that is handled by
//! itself (a PUT that takes a while, a retry, a dead letter) becomes a [`Job`].

use std::rc::Rc;

use super::admission::Permit;
use super::job::{Beside, JOB_COST_BYTES, Job, Origin, Payload, Span, Stamp};
use super::outcome::{Outcome, RequestOutcome};
use crate::key::RequestValues;
use crate::net::SharedBytes;
use crate::spool::SpooledRequest;

/// Memory per slot of the queue: the run itself, and with [`JOB_COST_BYTES`] all that a request of
/// one payload has beside its bytes. Those of larger requests take less per payload.
pub const SLOT_BYTES: usize = 96;

/// The allocation of a body with its two counters, as allocators round it.
const BODY_BYTES: usize =
    (size_of::<SharedBytes<Beside>>() + 2 * size_of::<usize>()).next_multiple_of(16);

const _: () = assert!(
    size_of::<Run>() + BODY_BYTES <= SLOT_BYTES + JOB_COST_BYTES,
    "what is charged covers what a payload takes"
);

/// What the payloads of one request have in common.
pub struct InCommon {
    pub values: RequestValues,
    /// The stamp of the first; the others have the numbers behind it.
    pub first: Stamp,
    /// Where they are in the spool, if they are spooled.
    pub record: Option<Rc<SpooledRequest>>,
    /// Gets the outcome of each; `None` if no request waits for them.
    pub request_outcome: Option<Rc<RequestOutcome>>,
}

impl InCommon {
    /// What payloads have in common that are in memory only, and that no request waits for.
    pub fn of(first: Stamp, values: RequestValues) -> InCommon {
        InCommon { values, first, record: None, request_outcome: None }
    }
}

/// Where the payloads of a request lie in its body. One takes no allocation.
pub(super) enum Spans {
    One(Span),
    Many(Box<[Span]>),
}

impl Spans {
    fn of(spans: impl Into<Box<[Span]>> + AsRef<[Span]>) -> Spans {
        match *spans.as_ref() {
            [one] => Spans::One(one),
            _ => Spans::Many(spans.into()),
        }
    }

    #[inline]
    fn as_slice(&self) -> &[Span] {
        match self {
            Spans::One(span) => std::slice::from_ref(span),
            Spans::Many(spans) => spans,
        }
    }
}

/// Adjacent payloads of one request, with consecutive stamps; at least one. Cheap to clone; keeps
/// the request's body alive.
#[derive(Clone)]
pub struct Run {
    body: Rc<SharedBytes<Beside>>,
    /// Of the request's payloads, the first and the one behind the last.
    start: u32,
    end: u32,
    /// Numbers of the core's sequence that were left out before this run: those of payloads that
    /// are complete already.
    skipped: u32,
}

impl Run {
    /// All payloads of an admitted body, which hold `permit` together.
    ///
    /// # Panics
    /// There are none.
    pub fn new(
        bytes: Vec<u8>,
        permit: Permit,
        spans: impl Into<Box<[Span]>> + AsRef<[Span]>,
        common: InCommon,
    ) -> Run {
        let end = u32::try_from(spans.as_ref().len()).expect("a body is under 4 GiB");
        assert!(end > 0, "a run has payloads");
        let beside = Beside { common, spans: Spans::of(spans), _permit: Some(permit) };
        Run { body: SharedBytes::new(bytes, beside), start: 0, end, skipped: 0 }
    }

    /// Makes runs of payloads whose stamps have these numbers, ascending: one for each stretch of
    /// consecutive ones. Otherwise like [`Run::new`].
    pub fn with_seqs(
        bytes: Vec<u8>,
        permit: Permit,
        spans: impl Into<Box<[Span]>> + AsRef<[Span]>,
        seqs: &[u64],
        common: InCommon,
    ) -> impl Iterator<Item = Run> {
        assert_eq!(spans.as_ref().len(), seqs.len(), "one for each payload");
        let first = common.first.seq;
        let all = Run::new(bytes, permit, spans, common);
        let mut start = 0;
        seqs.chunk_by(|one, next| one + 1 == *next).map(move |stretch| {
            let run = Run { end: start + stretch.len() as u32, start, ..all.clone() };
            start = run.end;
            let skipped = stretch[0] - first - u64::from(run.start);
            Run { skipped: u32::try_from(skipped).expect("within the request"), ..run }
        })
    }

    fn common(&self) -> &InCommon {
        &self.body.with().common
    }

    /// How many payloads it has.
    #[inline]
    pub fn count(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Where they lie in [`Run::body`].
    #[inline]
    pub fn spans(&self) -> &[Span] {
        &self.body.with().spans.as_slice()[self.start as usize..self.end as usize]
    }

    /// The whole body.
    #[inline]
    pub fn body(&self) -> &[u8] {
        self.body.bytes()
    }

    /// Bytes of its payloads.
    pub fn payload_bytes(&self) -> u64 {
        self.spans().iter().map(|span| u64::from(span.end - span.start)).sum()
    }

    /// What keys use of the request.
    pub fn values(&self) -> &RequestValues {
        &self.common().values
    }

    /// The stamp of its first payload.
    #[inline]
    pub fn first_stamp(&self) -> Stamp {
        let Stamp { unix_nanos, seq } = self.common().first;
        Stamp { unix_nanos, seq: seq + u64::from(self.start) + u64::from(self.skipped) }
    }

    /// Where its payloads are in the spool, if they are spooled.
    pub fn record(&self) -> Option<&Rc<SpooledRequest>> {
        self.common().record.as_ref()
    }

    /// Gets the outcome of each payload; `None` if no request waits for them.
    pub fn request_outcome(&self) -> Option<&Rc<RequestOutcome>> {
        self.common().request_outcome.as_ref()
    }

    /// The origin in their keys: `own`, the core's, unless another process received them.
    pub fn origin<'a>(&'a self, own: &'a Origin) -> &'a Origin {
        self.record().and_then(|record| record.origin()).unwrap_or(own)
    }

    /// Whether its payloads survive this process.
    pub fn is_spooled(&self) -> bool {
        self.record().is_some_and(|record| !record.is_removed())
    }

    /// Its payloads, in order.
    pub fn payloads(&self) -> impl Iterator<Item = Payload> {
        self.spans().iter().map(|span| Payload::new(self.body.clone(), *span))
    }

    /// Takes the first `count` payloads, of which there are more.
    pub(super) fn take_front(&mut self, count: usize) -> Run {
        debug_assert!((1..self.count()).contains(&count), "both parts have payloads");
        let front = Run { end: self.start + count as u32, ..self.clone() };
        self.start = front.end;
        front
    }

    /// Its first payload as a [`Job`]; the others are dropped.
    pub fn into_job(self) -> Job {
        let stamp = self.first_stamp();
        let InCommon { record, request_outcome, .. } = self.common();
        let (record, request_outcome) = (record.clone(), request_outcome.clone());
        let span = self.spans()[0];
        Job { payload: Payload::new(self.body, span), stamp, record, request_outcome }
    }

    /// Its first payload as a run of its own.
    pub fn first(&self) -> Run {
        Run { end: self.start + 1, ..self.clone() }
    }

    /// Its payloads behind the first `count`, if there are any.
    pub fn behind(self, count: usize) -> Option<Run> {
        let start = self.start + count as u32;
        (start < self.end).then_some(Run { start, ..self })
    }

    /// Completes all its payloads, as [`Job::complete`] does one.
    pub fn complete(&self, outcome: Outcome) {
        if let Some(request_outcome) = self.request_outcome() {
            request_outcome.add(outcome, self.count());
        }
        if let Some(record) = self.record()
            && outcome != Outcome::Lost
        {
            record.complete(self.first_stamp(), self.count() as u32, self.payload_bytes());
        }
    }
}
