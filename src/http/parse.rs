//! Splits a body into payloads: which JSON a client may send, and where in it each payload is.
//!
//! Pure: no I/O, no clock, and no byte is copied; a payload is a [`Span`] of the body. The body is
//! writable because `marks` puts a bracket into it for a moment; afterwards it is as before. The [`BodyForm`] says which values of a body are payloads. A body is valid if
//! `serde_json`'s `RawValue` accepts it, or each of its lines, and it is nested at most `DEPTH_MAX`
//! (127) deep. A body that is refused gets the first error in reading order.
//!
//! A body is parsed in steps of one segment, [`SEGMENT_BYTES`], so that a core can serve other
//! clients in between ([`Parse`]). What is known between two steps is the `progress`. There are two
//! ways through a segment:
//!
//! 1. The `walk`. `simd-json`'s first stage builds the structural index of the segment: the offset
//!    of every bracket, colon and comma outside strings and of the first byte of every string and
//!    scalar. It also proves that the segment is UTF-8, that strings end, and that they hold no
//!    control characters. One walk along the index then checks the rest (the order of the marks,
//!    the spelling of scalars, the escapes) and records where the payloads are.
//!    `simd-json`'s second stage, which unescapes strings and reads numbers into a tape, would cost
//!    three times as much as the walk and is not needed here.
//! 2. `bytewise`, a few times slower. It looks again at a segment that the walk has refused, because
//!    it knows what is wrong and where, and at one that has no good place for its end: the first
//!    stage cannot stop inside a string, but a string may be longer than a segment.
//!
//! So a refused body costs what an accepted one would have cost up to the error, and one segment
//! more.

mod bytewise;
mod error;
mod form;
mod in_place;
mod marks;
mod progress;
#[cfg(test)]
mod properties;
mod spelling;
#[cfg(test)]
mod tests;
mod walk;

use std::borrow::Cow;
use std::fmt;

use bytewise::{Bytewise, Came};
use error::Flaw;
pub use error::{BodyPosition, EnvelopeMember, ParseError};
pub use form::BodyForm;
pub use in_place::{MarkedSpans, mark_spans, marked_spans};
use marks::Walked;
pub use marks::{MARKS_BYTES_MAX, Marks};
use progress::ParseProgress;
use spelling::unescape;

use crate::budget::Padded;
use crate::queue::job::Span;

/// Most bytes that one step looks at. The densest, `1,1,1,…`, take 0.14 ms on the walk and as much
/// bytewise; longer segments leave the caches, shorter ones have more cuts.
pub const SEGMENT_BYTES: usize = 32 << 10;

/// Longest body that is to be parsed in one turn of the core: four steps at most, 0.5 ms.
pub const SMALL_BODY_BYTES: usize = 2 * SEGMENT_BYTES;

/// Longest `version` or `token`, quotes included. They are unescaped and compared in one turn.
pub const ENVELOPE_STRING_BYTES_MAX: usize = 64 << 10;

/// What a body holds: slices of it, and spans that live until the scratch is reused.
#[derive(Debug, PartialEq, Eq)]
pub struct Collection<'body, 'scratch> {
    pub envelope: Envelope<'body>,
    /// The payloads in order: their exact bytes, without the white space around them.
    pub payloads: &'scratch [Span],
}

/// Splits a body into its payloads in one go.
///
/// # Errors
/// What is wrong with the body, and where.
///
/// # Panics
/// If the body is 4 GiB or longer: callers cap it far below.
pub fn parse<'body, 'scratch>(
    body: Padded<'body>,
    form: BodyForm,
    scratch: &'scratch mut Scratch,
) -> Result<Collection<'body, 'scratch>, ParseError> {
    let Scratch { marks, payloads } = scratch;
    payloads.clear();
    payloads.shrink_to(PAYLOADS_KEPT_MAX);
    let mut parse = Parse::new(body, form, usize::MAX);
    let envelope = loop {
        if let Some(found) = parse.step(marks, payloads) {
            break found?;
        }
    };
    Ok(Collection { envelope, payloads })
}

/// Spans kept between two bodies: twice as many as a body of [`SMALL_BODY_BYTES`] can have, because
/// the allocation doubles. The caller reads them after the parse, so excess capacity is freed at the
/// start of the next one.
pub const PAYLOADS_KEPT_MAX: usize = SMALL_BODY_BYTES;

/// One core's working memory. Once it has grown, parsing a body of up to [`SMALL_BODY_BYTES`]
/// allocates nothing.
#[derive(Default)]
pub struct Scratch {
    /// Holds nothing between two steps, of whatever body.
    pub marks: Marks,
    payloads: Vec<Span>,
}

/// What a body is, and what it holds besides its payloads.
#[derive(PartialEq, Eq)]
pub struct Envelope<'body> {
    /// Any but [`BodyForm::ByFirstByte`].
    pub form: BodyForm,
    /// A collection's `version`, unescaped.
    pub version: Option<Cow<'body, str>>,
    /// A collection's `token`, unescaped.
    pub token: Option<Cow<'body, str>>,
}

impl fmt::Debug for Envelope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "***");
        write!(f, "{:?}, version {:?}, token {token:?}", self.form, self.version)
    }
}

/// A body that is being parsed.
pub struct Parse<'body> {
    /// Nothing once the way is [`Way::Locate`] or the envelope was found.
    body: Padded<'body>,
    payloads_max: usize,
    progress: ParseProgress,
    way: Way<'body>,
    /// [`SEGMENT_BYTES`], less in tests.
    segment_bytes: usize,
}

/// How the next step goes on.
enum Way<'body> {
    Walk,
    /// Until the walk can go on from `resume_from` or later.
    Bytewise {
        at: Bytewise,
        resume_from: usize,
    },
    /// The body is refused; what is left is to find the line of the error.
    Locate(Flaw, &'body [u8]),
}

impl<'body> Parse<'body> {
    /// A body that is refused if it has more than `payloads_max` payloads.
    ///
    /// # Panics
    /// If the body is 4 GiB or longer: callers cap it far below.
    pub fn new(body: Padded<'body>, form: BodyForm, payloads_max: usize) -> Parse<'body> {
        assert!(u32::try_from(body.len()).is_ok(), "a span cannot address this body");
        Parse {
            body,
            payloads_max,
            progress: ParseProgress::start(form),
            way: Way::Walk,
            segment_bytes: SEGMENT_BYTES,
        }
    }

    /// The same body, in segments of another length, so that tests have cuts at every byte.
    #[must_use]
    pub fn in_segments_of(self, segment_bytes: usize) -> Parse<'body> {
        Parse { segment_bytes, ..self }
    }

    /// Parses the next segment and appends its payloads to `payloads`, which was empty at the first
    /// step. `None` if there are more.
    ///
    /// # Errors
    /// What is wrong with the body, and where. `payloads` then holds anything.
    pub fn step(
        &mut self,
        marks: &mut Marks,
        payloads: &mut Vec<Span>,
    ) -> Option<Result<Envelope<'body>, ParseError>> {
        let is_done = match &mut self.way {
            Way::Walk => Ok(self.walk(marks, payloads)),
            Way::Bytewise { .. } => self.bytewise(payloads),
            Way::Locate(flaw, body) => {
                if !flaw.count_lines(body) {
                    return None;
                }
                let Way::Locate(flaw, _) = std::mem::replace(&mut self.way, Way::Walk) else {
                    unreachable!("it was matched above")
                };
                return Some(Err(flaw.into_error()));
            }
        };
        if payloads.len() > self.payloads_max {
            return Some(Err(ParseError::TooManyPayloads { max: self.payloads_max }));
        }
        if let Ok(false) = is_done {
            return None;
        }
        let body = self.body.take().into_body();
        match is_done.and_then(|_| self.envelope(body)) {
            Ok(envelope) => Some(Ok(envelope)),
            Err(flaw) => {
                self.way = Way::Locate(flaw, body);
                None
            }
        }
    }

    /// Walks the next segment; returns whether the body ends with it. Changes the way if it cannot.
    #[inline]
    fn walk(&mut self, marks: &mut Marks, payloads: &mut Vec<Span>) -> bool {
        let start = self.progress.at;
        let end = self.segment_end(start);
        let mut resume_from = end.unwrap_or(start + self.segment_bytes);
        if let Some(end) = end {
            match marks.walk(&mut self.body, start..end, &mut self.progress, payloads) {
                Walked::ToTheEnd => return true,
                Walked::Segment => return false,
                Walked::Value => resume_from = self.body.len(),
                Walked::Refused => {}
            }
        }
        self.way = Way::Bytewise { at: Bytewise::new(&self.progress), resume_from };
        false
    }

    /// Where to end the segment that begins at `start`: between two tokens, as far as a look at the
    /// bytes before it can tell. `None` if there is no such place.
    #[inline]
    fn segment_end(&self, start: usize) -> Option<usize> {
        let rest = &self.body[start..];
        if rest.len() <= self.segment_bytes {
            return Some(self.body.len());
        }
        let segment = &rest[..self.segment_bytes];
        let seen_from = segment.len().saturating_sub(SEGMENT_END_BYTES);
        let seen = &segment[seen_from..];
        let line_end = || match self.progress.form {
            BodyForm::Lines => memchr::memrchr(b'\n', seen).map(|at| at + 1),
            _ => None,
        };
        line_end().or_else(|| likely_end(seen)).map(|end| start + seen_from + end)
    }

    /// Checks some bytes one by one; returns whether the body ends with them.
    #[cold]
    fn bytewise(&mut self, payloads: &mut Vec<Span>) -> Result<bool, Flaw> {
        let Way::Bytewise { at, resume_from } = &mut self.way else {
            unreachable!("the caller has matched it")
        };
        let piece = self.segment_bytes.max(bytewise::PIECE_BYTES_MIN);
        let until = self.body.len().min(at.at() + piece);
        match at.check(&self.body, until, *resume_from, &mut self.progress, payloads)? {
            Came::ToTheEnd => Ok(until == self.body.len()),
            Came::ToAResumablePlace => {
                self.way = Way::Walk;
                Ok(false)
            }
        }
    }

    /// The envelope of a body that is valid JSON.
    fn envelope(&self, body: &'body [u8]) -> Result<Envelope<'body>, Flaw> {
        let form = self.progress.form;
        if form == BodyForm::Collection && !self.progress.seen[EnvelopeMember::Data as usize] {
            return Err(Flaw::at(0, ParseError::DataMissing));
        }
        Ok(Envelope {
            form,
            version: string(body, EnvelopeMember::Version, self.progress.version)?,
            token: string(body, EnvelopeMember::Token, self.progress.token)?,
        })
    }
}

/// The string that is the value of a `member`, unescaped.
fn string(
    body: &[u8],
    member: EnvelopeMember,
    quoted: Option<Span>,
) -> Result<Option<Cow<'_, str>>, Flaw> {
    let Some(quoted) = quoted else { return Ok(None) };
    let (start, at) = (quoted.start as usize, BodyPosition::default());
    let quoted = &body[quoted.range()];
    if quoted.len() > ENVELOPE_STRING_BYTES_MAX {
        return Err(Flaw::at(start, ParseError::TooLong { member, at }));
    }
    match unescape(quoted) {
        Some(text) => Ok(Some(text)),
        None => Err(Flaw::at(start, ParseError::NotUnicode { member, at })),
    }
}

/// How much of a segment is searched for its end.
const SEGMENT_END_BYTES: usize = 4 << 10;

/// The end of the last token in `text` that looks as if it were outside strings, best guess first:
/// after a bracket, after a string and a comma, after a comma. A wrong guess costs a bytewise look
/// at one segment.
fn likely_end(text: &[u8]) -> Option<usize> {
    let bracket = memchr::memrchr2(b'}', b']', text).map(|at| at + 1);
    let string = || memchr::memmem::rfind(text, b"\",").map(|at| at + 2);
    let comma = || memchr::memrchr(b',', text).map(|at| at + 1);
    bracket.or_else(string).or_else(comma)
}
