//! Checks a segment of a body by one walk along its marks.
//!
//! The walk proves order and spelling of the tokens, and records where the elements of `data` are.
//! If the marks end inside the collection, it leaves the progress at a token from which it can go
//! on with the next segment. It does not say what is wrong: [`bytewise`](super::bytewise) does.

use super::EnvelopeMember;
use super::progress::{DEPTH_MAX, Expect, Nesting, ParseProgress};
use super::spelling::{is_number, is_space};
use crate::queue::job::Span;

/// Why the walk has stopped before the end of the collection.
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
    /// The segment.
    text: &'a [u8],
    /// Ascending offsets in `text`.
    marks: std::slice::Iter<'a, u32>,
    /// Offset in the body of the first byte of `text`.
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
        marks: &'a [u32],
        base: usize,
        progress: &'a mut ParseProgress,
        payloads: &'a mut Vec<Span>,
    ) -> Self {
        Walk { text, marks: marks.iter(), base, progress, payloads }
    }

    /// Walks to the end of the body. The progress must be at its start or
    /// [resumable](ParseProgress::is_resumable).
    pub(super) fn run(mut self) -> Result<(), WalkStop> {
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
        if self.marks.next().is_some() {
            return Err(WalkStop::Refused);
        }
        self.progress.expect = Expect::End;
        self.progress.nesting.depth = 0;
        self.progress.at = self.base + mark.at + 1;
        Ok(())
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
            (2, true) => {
                let mark = self.mark().ok_or(WalkStop::MarksEnded)?;
                match (self.progress.expect, mark.byte) {
                    (Expect::Value, b']') => return Err(WalkStop::Refused),
                    (Expect::Value, _) => self.elements(mark)?,
                    _ => self.elements_after(mark)?,
                }
            }
            (_, false) => {
                let end = self.resume_nested(Nesting::ENVELOPE)?;
                self.after_close(end, Nesting::ENVELOPE)?
            }
            (_, true) => {
                let end = self.resume_nested(Nesting::DATA)?;
                let start = self.progress.payload_start;
                self.payloads.push(Span { start, end: (self.base + end.at + 1) as u32 });
                let separator = self.after_close(end, Nesting::DATA)?;
                self.elements_after(separator)?
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
                match next.byte {
                    b']' => Ok(self.after_close(next, Nesting::ENVELOPE)?),
                    _ => Ok(self.elements(next)?),
                }
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

    /// The elements of `data` from the first mark of one on. Returns the mark after the closing
    /// bracket.
    fn elements(&mut self, first: Mark) -> Result<Mark, WalkStop> {
        let mut mark = first;
        loop {
            let separator = match mark.byte {
                b'{' | b'[' => {
                    let end = match self.nested(mark, Nesting::DATA) {
                        Ok(end) => end,
                        Err(stop) => {
                            self.progress.payload_start = (self.base + mark.at) as u32;
                            return Err(stop);
                        }
                    };
                    self.payloads.push(self.span(mark, end.at + 1 - mark.at));
                    match self.mark() {
                        Some(separator) => separator,
                        None => return Err(self.ended_after(end, Nesting::DATA)),
                    }
                }
                _ => {
                    let Some(separator) = self.mark() else {
                        return Err(self.ended(Nesting::DATA, Expect::Value, mark));
                    };
                    let length = self.simple(mark, separator)?;
                    self.payloads.push(self.span(mark, length));
                    separator
                }
            };
            mark = match self.after(separator, b']')? {
                Some(Mark { byte: b']', .. }) => {
                    break self.after_close(separator, Nesting::ENVELOPE);
                }
                Some(next) => next,
                None => return Err(self.ended(Nesting::DATA, Expect::CommaOrClose, separator)),
            };
        }
    }

    /// The elements of `data` from the mark after one on.
    fn elements_after(&mut self, separator: Mark) -> Result<Mark, WalkStop> {
        match self.after(separator, b']')? {
            Some(Mark { byte: b']', .. }) => self.after_close(separator, Nesting::ENVELOPE),
            Some(next) => self.elements(next),
            None => Err(self.ended(Nesting::DATA, Expect::CommaOrClose, separator)),
        }
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
    #[inline]
    fn trimmed(&self, start: Mark, end: Mark) -> &'a [u8] {
        let mut end = end.at;
        while is_space(self.text[end - 1]) {
            end -= 1;
        }
        &self.text[start.at..end]
    }

    /// `length` bytes from a mark on. `parse` asserts that the body's length fits.
    #[inline(always)]
    fn span(&self, start: Mark, length: usize) -> Span {
        let start = self.base + start.at;
        Span { start: start as u32, end: (start + length) as u32 }
    }

    /// The marks have ended; `from` is to be looked at again.
    #[cold]
    fn ended(&mut self, nesting: Nesting, expect: Expect, from: Mark) -> WalkStop {
        self.progress.nesting = nesting;
        self.progress.expect = expect;
        self.progress.at = self.base + from.at;
        WalkStop::MarksEnded
    }

    /// The marks have ended after a closing bracket that leads back to `nesting`.
    #[cold]
    fn ended_after(&mut self, close: Mark, nesting: Nesting) -> WalkStop {
        let end = Mark { at: close.at + 1, ..close };
        self.ended(nesting, Expect::CommaOrClose, end)
    }
}

fn closing(object: bool) -> u8 {
    if object { b'}' } else { b']' }
}
