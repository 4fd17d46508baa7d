//! The structural index of one segment, by `simd-json`'s first stage.

use std::mem;
use std::ops::Range;

use simd_json::{Buffers, ErrorType, INPUT_PADDING, Tape};

use super::SEGMENT_BYTES;
use super::form::BodyForm;
use super::progress::ParseProgress;
use super::spelling::escapes_are_valid;
use super::walk::{Walk, WalkStop};
use crate::queue::job::Span;

/// Most memory of [`Marks`], 1.8 MiB: a copy and an unescaping buffer of one segment, and for each
/// byte, which may have a mark, an offset of 4 bytes and a node of the tape of 24, which is reserved
/// and never written. The last two double when they grow.
pub const MARKS_BYTES_MAX: usize = SEGMENT_BYTES * (1 + 1 + 2 * 4 + 2 * 24) + 4 * 64;

/// What came of walking a segment.
pub(super) enum Walked {
    /// The segment and the body end together, and the last value with them.
    ToTheEnd,
    /// Up to a token near the end of the segment, from which the walk can go on.
    Segment,
    /// The only value of the body, before its end.
    Value,
    /// Something in it is not right, or it does not even hold what the walk wants to see at once.
    /// Nothing has changed.
    Refused,
}

/// Memory for the index of one segment at a time.
pub struct Marks {
    /// A padded copy of the segment: `simd-json` wants to write to it.
    copy: Vec<u8>,
    buffers: Buffers,
    /// Empty between two segments, to keep its allocation.
    tape: Tape<'static>,
}

impl Default for Marks {
    fn default() -> Marks {
        Marks {
            copy: Vec::new(),
            // The second stage fails at the first bracket, because that exceeds a depth of zero.
            buffers: Buffers::with_max_depth(0, 0),
            tape: Tape(Vec::new()),
        }
    }
}

impl Marks {
    /// Walks `segment`, which ends between two tokens if it ends outside strings.
    #[inline]
    pub(super) fn walk(
        &mut self,
        body: &[u8],
        segment: Range<usize>,
        progress: &mut ParseProgress,
        payloads: &mut Vec<Span>,
    ) -> Walked {
        // Only a body that is one value begins with the bracket at which the second stage must fail.
        let is_lines = progress.form == BodyForm::Lines;
        let bracket: &[u8] = if segment.start == 0 && !is_lines { b"" } else { b"[" };
        if !self.find(bracket, &body[segment.clone()]) {
            return Walked::Refused;
        }
        let text = &mut self.copy[..bracket.len() + segment.len()];
        let marks = &self.buffers.structural_indexes()[bracket.len()..];
        let base = segment.start.wrapping_sub(bracket.len());
        let (before, found) = (*progress, payloads.len());
        let is_last = segment.end == body.len();
        let walked = match Walk::new(text, marks, base, progress, payloads).run(is_last) {
            Ok(()) if is_last => Walked::ToTheEnd,
            Ok(()) => Walked::Value,
            Err(WalkStop::MarksEnded) if progress.at > segment.start && !is_last => Walked::Segment,
            Err(_) => Walked::Refused,
        };
        let checked = segment.start..progress.at;
        if !matches!(walked, Walked::Refused) && escapes_are_valid(&body[checked]) {
            return walked;
        }
        *progress = before;
        payloads.truncate(found);
        Walked::Refused
    }

    /// Builds the structural index of `bracket` and `segment`; false if it cannot be JSON.
    fn find(&mut self, bracket: &[u8], segment: &[u8]) -> bool {
        let len = bracket.len() + segment.len();
        self.copy.clear();
        self.copy.reserve(len + INPUT_PADDING);
        self.copy.extend_from_slice(bracket);
        self.copy.extend_from_slice(segment);
        self.copy.resize(len + INPUT_PADDING, b' ');

        let mut tape = mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let verdict =
            simd_json::fill_tape_padded(&mut self.copy, len, &mut self.buffers, &mut tape);
        self.tape = tape.reset();
        // This error is the second stage's, so the first stage has accepted the segment.
        verdict.is_err_and(|error| matches!(error.error(), ErrorType::DepthLimitExceeded))
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.copy.capacity()
            + self.copy.capacity()
            + 2 * size_of_val(self.buffers.structural_indexes())
            + self.tape.0.capacity() * size_of::<simd_json::Node<'_>>()
    }
}
