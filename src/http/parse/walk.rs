//! Checks a segment of a body by one walk along its marks.
//!
//! The walk proves order and spelling of the tokens, and records where the payloads are. If the
//! marks end before the body does, it leaves the progress at a token from which it can go on with
//! the next segment. It does not say what is wrong: [`bytewise`](super::bytewise) does.
//!
//! Lines are no JSON text together, and their ends have no marks. The walk counts those that it
//! passes between two values; if the segment has more, one of them is inside a value.

use super::EnvelopeMember;
use super::form::BodyForm;
use super::progress::{DEPTH_MAX, Expect, Nesting, ParseProgress};
use super::spelling::{is_number, is_space};
use crate::queue::job::Span;

/// Why the walk has stopped before the end of the body's value, or of its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WalkStop {
    /// The marks have ended. [`ParseProgress`] says where to go on.
    MarksEnded,
    /// The body is refused, or does not look right from here.
    Refused,
}

/// An entry of the index: a bracket, colon or comma outside strings, or the first byte of a string
/// or scalar. Between two marks is what begins at the first one, then white space.
#[derive(Clone, Copy)]
struct Mark {
    at: usize,
    byte: u8,
}

/// One pass along the marks of a segment. Each method consumes the marks of the thing that its name
/// says.
pub(super) struct Walk<'a> {
    /// The segment, perhaps with a byte before it.
    text: &'a [u8],
    /// Offset in `text` of the segment's first byte.
    first: usize,
    /// LFs between two values that the walk has passed. Counted for lines only.
    line_feeds: usize,
    /// Ascending offsets in `text`.
    marks: std::slice::Iter<'a, u32>,
    /// Offset in the body of the first byte of `text`; −1, wrapped, if there is one more before the
    /// body.
    base: usize,
    progress: &'a mut ParseProgress,
    payloads: &'a mut Vec<Span>,
}

/// The marks have ended inside a member of which nothing is recorded yet.
const AGAIN: Option<WalkStop> = None;

/// What follows the last value that was read.
enum Next {
    /// Another value, which begins here.
    Value(Mark),
    /// The bracket that closes what the walk was to read.
    End(Mark),
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        text: &'a [u8],
        first: usize,
        marks: &'a [u32],
        base: usize,
        progress: &'a mut ParseProgress,
        payloads: &'a mut Vec<Span>,
    ) -> Self {
        Walk { text, first, line_feeds: 0, marks: marks.iter(), base, progress, payloads }
    }

    /// Walks to the end of the body's value. The progress must be at its start or
    /// [resumable](ParseProgress::is_resumable). Of lines, those in the segment are walked along,
    /// which is the body's last if `is_last`.
    pub(super) fn run(self, is_last: bool) -> Result<(), WalkStop> {
        if self.progress.nesting.depth == 0 && self.progress.form != BodyForm::Lines {
            let first = *self.marks.as_slice().first().ok_or(WalkStop::Refused)? as usize;
            self.progress.begin(self.text[first]).map_err(|_| WalkStop::Refused)?;
        }
        match self.progress.form {
            BodyForm::ByFirstByte(_) | BodyForm::Collection => self.collection(),
            BodyForm::Array => self.array(),
            BodyForm::Object => self.object(),
            BodyForm::Lines => self.lines(is_last),
        }
    }

    fn collection(mut self) -> Result<(), WalkStop> {
        let mut mark = match self.progress.nesting.depth {
            0 => self.start()?,
            _ => self.resume()?,
        };
        while mark.byte != b'}' {
            let separator = self.member(mark)?;
            mark = match self.after(separator, b'}')? {
                Some(next) => next,
                None => return Err(self.ended(Nesting::ENVELOPE, Expect::CommaOrClose, separator)),
            };
        }
        self.end(mark)
    }

    fn array(mut self) -> Result<(), WalkStop> {
        let close = match self.progress.nesting.depth {
            0 => {
                self.mark().ok_or(WalkStop::Refused)?;
                match self.mark().ok_or(WalkStop::MarksEnded)? {
                    close @ Mark { byte: b']', .. } => close,
                    first => self.elements(first, Nesting::ARRAY)?,
                }
            }
            _ => self.resume_elements(Nesting::ARRAY)?,
        };
        self.end(close)
    }

    fn object(mut self) -> Result<(), WalkStop> {
        let close = match self.progress.nesting.depth {
            0 => {
                let first = self.mark().ok_or(WalkStop::Refused)?;
                self.payload(first, Nesting::OUTSIDE)?
            }
            _ => self.resume_payload(Nesting::OUTSIDE)?,
        };
        self.end(close)
    }

    /// The body's value ends with `close`.
    fn end(&mut self, close: Mark) -> Result<(), WalkStop> {
        if self.marks.next().is_some() {
            return Err(WalkStop::Refused);
        }
        self.progress.expect = Expect::End;
        self.progress.nesting.depth = 0;
        self.progress.at = self.offset(close.at) + 1;
        Ok(())
    }

    /// The lines of a segment. It ends after an LF, or where the body ends, or after a bracket or
    /// comma.
    fn lines(mut self, is_last: bool) -> Result<(), WalkStop> {
        let stop = self.walk_lines(is_last);
        let walked = self.progress.at.wrapping_sub(self.base);
        match line_feeds(&self.text[self.first..walked]) == self.line_feeds {
            true => stop,
            false => Err(WalkStop::Refused),
        }
    }

    fn walk_lines(&mut self, is_last: bool) -> Result<(), WalkStop> {
        let mut next = match (self.progress.nesting.depth, self.progress.expect) {
            (0, Expect::End) => {
                let next = self.mark();
                self.line_end(self.first, next)?
            }
            (0, _) => {
                let next = self.mark();
                self.line_feeds += self.line_feeds_between(self.first, next);
                next
            }
            _ => {
                let close = self.resume_payload(Nesting::OUTSIDE)?;
                let next = self.mark();
                self.line_end(close.at + 1, next)?
            }
        };
        let text_end = Mark { at: self.text.len(), byte: b'\n' };
        while let Some(value) = next {
            let (end, after);
            if let b'{' | b'[' = value.byte {
                end = self.payload(value, Nesting::OUTSIDE)?.at + 1;
                after = self.mark();
            } else {
                after = self.mark();
                if after.is_none() && !is_last && self.text.last() != Some(&b'\n') {
                    return Err(self.ended(Nesting::OUTSIDE, Expect::Value, value));
                }
                let length = self.simple(value, after.unwrap_or(text_end))?;
                self.payloads.push(self.span(value, length));
                end = value.at + length;
            }
            next = self.line_end(end, after)?;
        }
        self.progress.nesting = Nesting::OUTSIDE;
        self.progress.at = self.offset(self.text.len());
        if is_last { Ok(()) } else { Err(WalkStop::MarksEnded) }
    }

    /// The LF that must be between a value that ends at `end` and the one that `next` begins.
    /// Returns `next`.
    #[inline]
    fn line_end(&mut self, end: usize, next: Option<Mark>) -> Result<Option<Mark>, WalkStop> {
        let line_feeds = match next {
            Some(next) if next.at == end + 1 => usize::from(self.text[end] == b'\n'),
            _ => self.line_feeds_between(end, next),
        };
        self.line_feeds += line_feeds;
        match next {
            Some(_) if line_feeds == 0 => return Err(WalkStop::Refused),
            Some(_) => {}
            None if line_feeds == 0 => self.progress.expect = Expect::End,
            None => self.progress.expect = Expect::Value,
        }
        Ok(next)
    }

    /// LFs in the white space from `from` to `next`.
    #[cold]
    fn line_feeds_between(&self, from: usize, next: Option<Mark>) -> usize {
        line_feeds(&self.text[from..next.map_or(self.text.len(), |next| next.at)])
    }

    /// The bracket that opens the collection. Returns the first key or the closing bracket.
    fn start(&mut self) -> Result<Mark, WalkStop> {
        match self.mark() {
            Some(Mark { byte: b'{', .. }) => self.mark().ok_or(WalkStop::MarksEnded),
            _ => Err(WalkStop::Refused),
        }
    }

    /// Goes on where the segment before has ended. Returns the next key of the envelope or its
    /// closing bracket.
    #[cold]
    fn resume(&mut self) -> Result<Mark, WalkStop> {
        let nesting = self.progress.nesting;
        let separator = match (nesting.depth, self.progress.in_data()) {
            (1, _) => {
                let mark = self.mark().ok_or(WalkStop::MarksEnded)?;
                match (self.progress.expect, mark.byte) {
                    (Expect::Key, b'}') => return Err(WalkStop::Refused),
                    (Expect::Key | Expect::KeyOrClose, _) => return Ok(mark),
                    _ => mark,
                }
            }
            (_, false) => {
                let end = self.resume_nested(Nesting::ENVELOPE)?;
                self.after_close(end, Nesting::ENVELOPE)?
            }
            (_, true) => {
                let close = self.resume_elements(Nesting::DATA)?;
                self.after_close(close, Nesting::ENVELOPE)?
            }
        };
        match self.after(separator, b'}')? {
            Some(next) => Ok(next),
            None => Err(self.ended(Nesting::ENVELOPE, Expect::CommaOrClose, separator)),
        }
    }

    /// A member of the envelope from its key on. Returns the mark after it.
    fn member(&mut self, key: Mark) -> Result<Mark, WalkStop> {
        match self.try_member(key) {
            Ok(separator) => Ok(separator),
            Err(AGAIN) => Err(self.ended(Nesting::ENVELOPE, Expect::Key, key)),
            Err(Some(stop)) => Err(stop),
        }
    }

    /// As [`Walk::member`]; [`AGAIN`] if the marks ended and the member is to be read again.
    fn try_member(&mut self, key: Mark) -> Result<Mark, Option<WalkStop>> {
        let colon = self.mark().ok_or(AGAIN)?;
        if key.byte != b'"' || colon.byte != b':' {
            return Err(Some(WalkStop::Refused));
        }
        let member = EnvelopeMember::named(self.trimmed(key, colon));
        let value = self.mark().ok_or(AGAIN)?;
        let Some(member) = member else {
            return match value.byte {
                b'{' | b'[' => {
                    self.progress.member = None;
                    let end = self.nested(value, Nesting::ENVELOPE)?;
                    Ok(self.after_close(end, Nesting::ENVELOPE)?)
                }
                _ => {
                    let separator = self.mark().ok_or(AGAIN)?;
                    self.simple(value, separator)?;
                    Ok(separator)
                }
            };
        };
        if self.progress.seen[member as usize] {
            return Err(Some(WalkStop::Refused));
        }
        let next = self.mark().ok_or(AGAIN)?;
        self.progress.seen[member as usize] = true;
        match (member, value.byte) {
            (EnvelopeMember::Data, b'[') => {
                self.progress.member = Some(member);
                let close = match next.byte {
                    b']' => next,
                    _ => self.elements(next, Nesting::DATA)?,
                };
                Ok(self.after_close(close, Nesting::ENVELOPE)?)
            }
            (EnvelopeMember::Version | EnvelopeMember::Token, b'"') => {
                let string = self.span(value, self.trimmed(value, next).len());
                self.progress.keep(member, string);
                Ok(next)
            }
            // `null` counts as absent.
            (EnvelopeMember::Version | EnvelopeMember::Token, b'n') => {
                self.simple(value, next)?;
                Ok(next)
            }
            _ => Err(Some(WalkStop::Refused)),
        }
    }

    /// The payloads inside the array `outer` from the first mark of one on. Returns the closing
    /// bracket.
    #[inline]
    fn elements(&mut self, first: Mark, outer: Nesting) -> Result<Mark, WalkStop> {
        let mut mark = first;
        loop {
            let separator = match mark.byte {
                b'{' | b'[' => {
                    let end = self.payload(mark, outer)?;
                    match self.mark() {
                        Some(separator) => separator,
                        None => return Err(self.ended_after(end, outer)),
                    }
                }
                _ => {
                    let Some(separator) = self.mark() else {
                        return Err(self.ended(outer, Expect::Value, mark));
                    };
                    let length = self.simple(mark, separator)?;
                    self.payloads.push(self.span(mark, length));
                    separator
                }
            };
            mark = match self.after(separator, b']')? {
                Some(close @ Mark { byte: b']', .. }) => return Ok(close),
                Some(next) => next,
                None => return Err(self.ended(outer, Expect::CommaOrClose, separator)),
            };
        }
    }

    /// The payloads inside the array `outer` from the mark after one on.
    fn elements_after(&mut self, separator: Mark, outer: Nesting) -> Result<Mark, WalkStop> {
        match self.after(separator, b']')? {
            Some(close @ Mark { byte: b']', .. }) => Ok(close),
            Some(next) => self.elements(next, outer),
            None => Err(self.ended(outer, Expect::CommaOrClose, separator)),
        }
    }

    /// The payloads inside the array `outer` from where the segment before has ended.
    fn resume_elements(&mut self, outer: Nesting) -> Result<Mark, WalkStop> {
        if self.progress.nesting.depth > outer.depth {
            let end = self.resume_payload(outer)?;
            let separator = self.after_close(end, outer)?;
            return self.elements_after(separator, outer);
        }
        let mark = self.mark().ok_or(WalkStop::MarksEnded)?;
        match (self.progress.expect, mark.byte) {
            (Expect::Value, b']') => Err(WalkStop::Refused),
            (Expect::Value, _) => self.elements(mark, outer),
            _ => self.elements_after(mark, outer),
        }
    }

    /// A payload that is an array or object. Returns its closing bracket.
    #[inline(always)]
    fn payload(&mut self, first: Mark, outer: Nesting) -> Result<Mark, WalkStop> {
        let end = match self.nested(first, outer) {
            Ok(end) => end,
            Err(stop) => {
                self.progress.payload_start = self.offset(first.at) as u32;
                return Err(stop);
            }
        };
        self.payloads.push(self.span(first, end.at + 1 - first.at));
        Ok(end)
    }

    /// As [`Walk::payload`], from where the segment before has ended.
    fn resume_payload(&mut self, outer: Nesting) -> Result<Mark, WalkStop> {
        let end = self.resume_nested(outer)?;
        let start = self.progress.payload_start;
        self.payloads.push(Span { start, end: (self.offset(end.at) + 1) as u32 });
        Ok(end)
    }

    /// The mark after the comma `separator`, where something must begin, or `separator` if it is
    /// `close`. `None` if the marks end.
    fn after(&mut self, separator: Mark, close: u8) -> Result<Option<Mark>, WalkStop> {
        if separator.byte == close {
            return Ok(Some(separator));
        }
        if separator.byte != b',' {
            return Err(WalkStop::Refused);
        }
        match self.mark() {
            Some(next) if next.byte == close => Err(WalkStop::Refused),
            next => Ok(next),
        }
    }

    /// The mark after a closing bracket that leads back to `nesting`.
    fn after_close(&mut self, close: Mark, nesting: Nesting) -> Result<Mark, WalkStop> {
        match self.mark() {
            Some(next) => Ok(next),
            None => Err(self.ended_after(close, nesting)),
        }
    }

    /// An array or object from its opening mark on; `outer` is what it is in. Returns its closing
    /// bracket.
    #[inline]
    fn nested(&mut self, first: Mark, outer: Nesting) -> Result<Mark, WalkStop> {
        self.values(first, outer, outer.depth)
    }

    /// As [`Walk::nested`], from where the segment before has ended.
    fn resume_nested(&mut self, outer: Nesting) -> Result<Mark, WalkStop> {
        let mut nesting = self.progress.nesting;
        let mark = self.mark().ok_or(WalkStop::MarksEnded)?;
        let first = match self.progress.expect {
            Expect::CommaOrClose => match self.close(mark, &mut nesting, outer.depth)? {
                Next::Value(first) => first,
                Next::End(close) => return Ok(close),
            },
            _ => mark,
        };
        self.values(first, nesting, outer.depth)
    }

    /// Values from the first mark of one in `nesting` on, until a bracket leads back to
    /// `outer_depth`, which is returned.
    fn values(
        &mut self,
        first: Mark,
        nesting: Nesting,
        outer_depth: usize,
    ) -> Result<Mark, WalkStop> {
        let mut nesting = nesting;
        let mut mark = first;
        loop {
            // Here `mark` begins a value.
            let Some(next) = self.mark() else {
                return Err(self.ended(nesting, Expect::Value, mark));
            };
            if let b'{' | b'[' = mark.byte {
                let object = mark.byte == b'{';
                nesting.open(object);
                if nesting.depth > DEPTH_MAX {
                    return Err(WalkStop::Refused);
                }
                if next.byte != closing(object) {
                    mark = match if object { self.key(next)? } else { Some(next) } {
                        Some(mark) => mark,
                        None => {
                            nesting.close();
                            return Err(self.ended(nesting, Expect::Value, mark));
                        }
                    };
                    continue;
                }
            } else if mark.byte != b'"' {
                self.simple(mark, next)?;
            }
            // Here `next` is what follows a value, or closes an empty array or object.
            match self.close(next, &mut nesting, outer_depth)? {
                Next::Value(value) => mark = value,
                Next::End(close) => return Ok(close),
            }
        }
    }

    /// What follows a value, `next`, and all brackets that close after it, down to
    /// `outer_depth`.
    #[inline(always)]
    fn close(
        &mut self,
        next: Mark,
        nesting: &mut Nesting,
        outer_depth: usize,
    ) -> Result<Next, WalkStop> {
        let mut next = next;
        loop {
            let object = nesting.in_object();
            if next.byte == b',' {
                let value = match self.mark() {
                    Some(first) if object => self.key(first)?,
                    first => first,
                };
                return match value {
                    Some(value) => Ok(Next::Value(value)),
                    None => Err(self.ended(*nesting, Expect::CommaOrClose, next)),
                };
            }
            if next.byte != closing(object) {
                return Err(WalkStop::Refused);
            }
            nesting.close();
            if nesting.depth == outer_depth {
                return Ok(Next::End(next));
            }
            next = match self.mark() {
                Some(next) => next,
                None => return Err(self.ended_after(next, *nesting)),
            };
        }
    }

    /// A key without a meaning here, and its colon. Returns the first mark of its value; `None` if
    /// the marks end.
    #[inline(always)]
    fn key(&mut self, key: Mark) -> Result<Option<Mark>, WalkStop> {
        match self.mark() {
            Some(colon) if key.byte == b'"' && colon.byte == b':' => Ok(self.mark()),
            Some(_) => Err(WalkStop::Refused),
            None => Ok(None),
        }
    }

    /// The length of the string, number or word that begins at `first` and ends before `separator`.
    #[inline]
    fn simple(&self, first: Mark, separator: Mark) -> Result<usize, WalkStop> {
        let text = self.trimmed(first, separator);
        let valid = match first.byte {
            // The first stage has checked it, and anything after its end would have a mark.
            b'"' => true,
            b't' => text == b"true",
            b'f' => text == b"false",
            b'n' => text == b"null",
            _ => is_number(text),
        };
        if valid { Ok(text.len()) } else { Err(WalkStop::Refused) }
    }

    #[inline(always)]
    fn mark(&mut self) -> Option<Mark> {
        let at = *self.marks.next()? as usize;
        Some(Mark { at, byte: self.text[at] })
    }

    /// What is between two marks without the white space at its end.
    #[inline(always)]
    fn trimmed(&self, start: Mark, end: Mark) -> &[u8] {
        let mut end = end.at;
        while is_space(self.text[end - 1]) {
            end -= 1;
        }
        &self.text[start.at..end]
    }

    /// `length` bytes from a mark on. `parse` asserts that the body's length fits.
    #[inline(always)]
    fn span(&self, start: Mark, length: usize) -> Span {
        let start = self.offset(start.at);
        Span { start: start as u32, end: (start + length) as u32 }
    }

    /// The offset in the body of what is at `at` in the segment.
    #[inline(always)]
    fn offset(&self, at: usize) -> usize {
        self.base.wrapping_add(at)
    }

    /// The marks have ended; `from` is to be looked at again.
    #[cold]
    fn ended(&mut self, nesting: Nesting, expect: Expect, from: Mark) -> WalkStop {
        self.progress.nesting = nesting;
        self.progress.expect = expect;
        self.progress.at = self.offset(from.at);
        WalkStop::MarksEnded
    }

    /// The marks have ended after a closing bracket that leads back to `nesting`.
    #[cold]
    fn ended_after(&mut self, close: Mark, nesting: Nesting) -> WalkStop {
        let end = Mark { at: close.at + 1, ..close };
        self.ended(nesting, Expect::CommaOrClose, end)
    }
}

fn line_feeds(text: &[u8]) -> usize {
    memchr::memchr_iter(b'\n', text).count()
}

fn closing(object: bool) -> u8 {
    if object { b'}' } else { b']' }
}
