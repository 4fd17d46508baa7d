//! What the tap and the debug log say of a request, once it is known whether it was admitted: at
//! once, or with the spool only when the disk has confirmed it.

use std::fmt::Display;

use super::Intake;
use crate::http::reply::Answer;
use crate::http::tap::TapSample;
use crate::key::RequestValues;
use crate::queue::job::{Span, Stamp};

/// A debug line that leads from a trace to its objects: their default keys begin with this time.
#[inline]
pub(super) fn log_admitted(values: &RequestValues, first: Stamp, payloads: usize) {
    if let Some(traceparent) = values.trace() {
        admitted(traceparent, first, payloads);
    }
}

fn admitted(traceparent: &str, first: Stamp, payloads: usize) {
    let Stamp { unix_nanos, seq } = first;
    tracing::debug!(traceparent, payloads, unix_nanos, seq, "request of a trace admitted");
}

/// The same for one that there was no room for.
pub(super) fn log_refused(values: &RequestValues, payloads: usize, why: &impl Display) {
    if let Some(traceparent) = values.trace() {
        refused(traceparent, payloads, why);
    }
}

fn refused(traceparent: &str, payloads: usize, why: &dyn Display) {
    tracing::debug!(traceparent, payloads, %why, "request of a trace refused");
}

/// What is to be said of a request that waits for the disk.
pub(in crate::http) struct Untold {
    /// For the tap, if somebody watches.
    sample: Option<TapSample>,
    /// For the log, if it has debug lines.
    trace: Option<TracedRequest>,
}

struct TracedRequest {
    traceparent: Box<str>,
    first: Stamp,
    payloads: usize,
}

impl Untold {
    /// `None`, and no memory taken, unless somebody wants to know.
    #[inline]
    pub(super) fn of(
        intake: &Intake,
        body: &[u8],
        spans: &[Span],
        first: Stamp,
        values: &RequestValues,
    ) -> Option<Box<Untold>> {
        let sample = intake.tap.as_ref().and_then(|tap| tap.pick(body, spans, first));
        let traceparent = values.trace().filter(|_| tracing::enabled!(tracing::Level::DEBUG));
        if sample.is_none() && traceparent.is_none() {
            return None;
        }
        let trace = traceparent.map(|traceparent| TracedRequest {
            traceparent: traceparent.into(),
            first,
            payloads: spans.len(),
        });
        Some(Box::new(Untold { sample, trace }))
    }

    /// Tells it, now that the disk has confirmed the request, or has not.
    pub(super) fn tell(self, intake: &Intake, answer: &Answer) {
        let is_admitted = matches!(answer, Answer::Accepted { .. });
        if let (true, Some(tap), Some(sample)) = (is_admitted, &intake.tap, self.sample) {
            tap.keep(sample);
        }
        let Some(TracedRequest { traceparent, first, payloads }) = self.trace else { return };
        match answer {
            Answer::Accepted { .. } => admitted(&traceparent, first, payloads),
            Answer::Unavailable { error, .. } => refused(&traceparent, payloads, error),
            Answer::Stopping => refused(&traceparent, payloads, &"the server is stopping"),
            _ => tracing::debug!(
                traceparent,
                payloads,
                "request of a trace not confirmed by the disk in time, which may still write it"
            ),
        }
    }
}
