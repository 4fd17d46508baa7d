//! Keeps the spans of a large body in the body itself, for as long as its request waits for room.
//!
//! The spans could weigh four times as much as the body, and it cannot be parsed again: that takes
//! many turns, and there must be none between the permit and the queue. So the bytes beside the
//! payloads, of which nobody needs the text any more, are replaced by two that occur nowhere else
//! in valid JSON.

use super::spelling::is_space;
use crate::queue::job::Span;

/// Before the first byte of a payload, unless that byte is the end of the payload before.
const START: u8 = 1;
/// After the last byte of a payload.
const END: u8 = 0;

/// Marks the payloads of a valid body. Their own bytes do not change.
pub fn mark_spans(body: &mut [u8], spans: &[Span]) {
    let mut end_before = 0;
    for Span { start, end } in spans {
        let (before, end) = (*start as usize - 1, *end as usize);
        if before != end_before {
            body[before] = START;
        }
        body[end] = END;
        end_before = end;
    }
}

/// The spans that were marked, `count` of them.
///
/// # Panics
/// If there are fewer.
pub fn marked_spans(body: &[u8], count: usize) -> Vec<Span> {
    let find = |mark, from: usize| {
        from + memchr::memchr(mark, &body[from..]).expect("the caller has marked them")
    };
    let mut spans = Vec::with_capacity(count);
    let mut next = 0;
    while spans.len() < count {
        let first = body[next];
        let is_marked = spans.is_empty() || first == START || first == b',' || is_space(first);
        let start = if is_marked { find(START, next) + 1 } else { next };
        let end = find(END, start);
        spans.push(Span { start: start as u32, end: end as u32 });
        next = end + 1;
    }
    spans
}
