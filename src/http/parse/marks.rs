//! The structural index of one segment, by `simd-json`'s first stage.
//!
//! That stage only reads, and only the segment. But its one entrance that does not copy its input,
//! `fill_tape_padded`, goes on to the second stage, which would unescape strings in place. So the
//! second stage must fail at its first mark, before it changes anything: at a bracket, because any
//! exceeds a depth of zero. A body that is one value begins with one. For any other segment the byte
//! before it is a bracket while its marks are found. Only lines whose first value is no array or
//! object have no such byte, and their first segment is copied.
//!
//! `tests::only_the_segment_decides` holds `simd-json` to this.

use std::mem;
use std::ops::Range;

use simd_json::{Buffers, ErrorType, INPUT_PADDING, Tape};

use super::SEGMENT_BYTES;
use super::form::BodyForm;
use super::progress::ParseProgress;
use super::spelling::{escapes_are_valid, is_space};
use super::walk::{Walk, WalkStop};
use crate::budget::{BODY_PADDING, Padded};
use crate::queue::job::Span;

const _: () = assert!(BODY_PADDING >= INPUT_PADDING, "a body ends in what simd-json wants there");

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
    /// The first segment of lines that do not begin with a bracket, padded, behind one.
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

/// The text that the marks of a segment are offsets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marked {
    /// The segment.
    Segment,
    /// The segment and the byte before it.
    WithByteBefore,
    /// [`Marks::copy`].
    Copy,
}

impl Marks {
    /// Walks `segment`, which ends between two tokens if it ends outside strings. The body is as
    /// before when this returns.
    #[inline]
    pub(super) fn walk(
        &mut self,
        body: &mut Padded<'_>,
        segment: Range<usize>,
        progress: &mut ParseProgress,
        payloads: &mut Vec<Span>,
    ) -> Walked {
        let is_lines = progress.form == BodyForm::Lines;
        let Some(marked) = self.find(body, segment.clone(), is_lines) else {
            return Walked::Refused;
        };
        let body: &[u8] = body;
        let (text, before) = match marked {
            Marked::Segment => (&body[segment.clone()], 0),
            Marked::WithByteBefore => (&body[segment.start - 1..segment.end], 1),
            Marked::Copy => (&self.copy[..1 + segment.len()], 1),
        };
        let marks = &self.buffers.structural_indexes()[before..];
        let base = segment.start.wrapping_sub(before);
        let (progress_before, found) = (*progress, payloads.len());
        let is_last = segment.end == body.len();
        let walk = Walk::new(text, before, marks, base, progress, payloads);
        let walked = match walk.run(is_last) {
            Ok(()) if is_last => Walked::ToTheEnd,
            Ok(()) => Walked::Value,
            Err(WalkStop::MarksEnded) if progress.at > segment.start && !is_last => Walked::Segment,
            Err(_) => Walked::Refused,
        };
        let checked = segment.start..progress.at;
        if !matches!(walked, Walked::Refused) && escapes_are_valid(&body[checked]) {
            return walked;
        }
        *progress = progress_before;
        payloads.truncate(found);
        Walked::Refused
    }

    /// Builds the structural index of `segment`; `None` if it cannot be JSON.
    fn find(
        &mut self,
        body: &mut Padded<'_>,
        segment: Range<usize>,
        is_lines: bool,
    ) -> Option<Marked> {
        let Range { start, end } = segment;
        if start > 0 {
            let byte_before = mem::replace(&mut body.from(start - 1)[0], b'[');
            let is_json = self.index(body.from(start - 1), 1 + end - start);
            body.from(start - 1)[0] = byte_before;
            return is_json.then_some(Marked::WithByteBefore);
        }
        match body[..end].iter().find(|byte| !is_space(**byte)) {
            Some(b'{' | b'[') => self.index(body.from(0), end).then_some(Marked::Segment),
            _ if is_lines => {
                let mut copy = mem::take(&mut self.copy);
                copy.clear();
                copy.reserve(1 + end + INPUT_PADDING);
                copy.push(b'[');
                copy.extend_from_slice(&body[..end]);
                copy.resize(1 + end + INPUT_PADDING, b' ');
                let is_json = self.index(&mut copy, 1 + end);
                self.copy = copy;
                is_json.then_some(Marked::Copy)
            }
            _ => None,
        }
    }

    /// Builds the structural index of the first `length` bytes of `text`, in which the first that is
    /// no blank is a bracket. True if they are UTF-8, their strings end and hold no control
    /// characters.
    fn index(&mut self, text: &mut [u8], length: usize) -> bool {
        let mut tape = mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let verdict = simd_json::fill_tape_padded(text, length, &mut self.buffers, &mut tape);
        self.tape = tape.reset();
        // This error is the second stage's, so the first stage has accepted the text.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What `simd-json` makes of a text must not depend on what is behind it, and what is there must
    /// not change: the rest of the body follows a segment, and anything may follow a last one.
    ///
    /// Its first stage looks at blocks of 64 bytes, and at a copy of the last one, so a look beyond
    /// the end would show at some length. This machine's instructions decide which of its variants
    /// runs; in 0.19 they share the loop that cuts the text into blocks.
    #[test]
    fn only_the_segment_decides() {
        println!("{}", simd_json::Deserializer::algorithm());
        let endings: [&[u8]; 10] = [
            b"]",
            b"\"]",
            b"\"",
            b"\"a",
            b"\"\\",
            b"\"\\\"",
            b"12",
            b"tru",
            b"\xe2\x82",
            b"\"\xf0\x9f\x92\xa9\"",
        ];
        let mut marks = Marks::default();
        for ending in endings {
            for length in 1 + ending.len()..=260 {
                let mut text = vec![b'['];
                text.extend(b"{\"a\":1},".iter().cycle().take(length - 1 - ending.len()));
                text.extend_from_slice(ending);
                let mut expected = None;
                for behind in [b' ', 0, b'"', b'\\', b'{', b',', b'\n', b'7', 0x80, 0xff] {
                    let mut padded = text.clone();
                    padded.resize(length + BODY_PADDING, behind);
                    let before = padded.clone();
                    let is_json = marks.index(&mut padded, length);
                    assert_eq!(padded, before, "nothing is changed");
                    let found = (is_json, marks.buffers.structural_indexes().to_vec());
                    // The index of what is refused is of no use.
                    let found = is_json.then_some(found);
                    let shown = text.escape_ascii();
                    assert_eq!(*expected.get_or_insert(found.clone()), found, "{shown} {behind}");
                }
                assert!(expected.unwrap().is_none_or(|(_, marks)| marks[0] == 0));
            }
        }
    }
}
