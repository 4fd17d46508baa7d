//! Keeps the spans of a body in the body itself, for as long as its request waits for room.
//!
//! The spans could weigh four times as much as the body. To parse it again would double the cost of
//! every request that waits, and takes many turns for a large one, of which there must be none
//! between the permit and the queue. So the bytes beside the
//! payloads, of which nobody needs the text any more, are replaced by two that occur nowhere else
//! in valid JSON. There is such a byte beside every payload, except at the ends of the body.

use super::spelling::is_space;
use crate::queue::job::Span;

/// Before the first byte of a payload, unless that byte is the end of the payload before.
const START: u8 = 1;
/// After the last byte of a payload, unless the body ends there.
const END: u8 = 0;

/// What is known of spans that were marked, besides the marks.
#[derive(Clone, Copy, Debug)]
pub struct MarkedSpans {
    count: usize,
    /// Offset of the first payload.
    first: usize,
}

/// Marks the payloads of a valid body. Their own bytes do not change.
pub fn mark_spans(body: &mut [u8], spans: &[Span]) -> MarkedSpans {
    let first = spans.first().map_or(0, |span| span.start as usize);
    let mut end_before = first;
    for Span { start, end } in spans {
        let (start, end) = (*start as usize, *end as usize);
        if start > end_before + 1 {
            body[start - 1] = START;
        }
        if end < body.len() {
            body[end] = END;
        }
        end_before = end;
    }
    MarkedSpans { count: spans.len(), first }
}

/// The spans that were marked.
///
/// # Panics
/// If it is another body.
pub fn marked_spans(body: &[u8], marked: MarkedSpans) -> Vec<Span> {
    let find = |mark, from: usize| memchr::memchr(mark, &body[from..]).map(|at| from + at);
    let MarkedSpans { count, first } = marked;
    let mut spans = Vec::with_capacity(count);
    let mut next = first;
    while spans.len() < count {
        let byte = body[next];
        let is_between = byte == START || byte == b',' || is_space(byte);
        let start = match is_between {
            true => find(START, next).expect("the caller has marked them") + 1,
            false => next,
        };
        let end = find(END, start).unwrap_or(body.len());
        spans.push(Span { start: start as u32, end: end as u32 });
        next = end + 1;
    }
    spans
}
