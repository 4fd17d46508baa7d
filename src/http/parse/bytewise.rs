//! Checks a body byte by byte, to be stopped and resumed at any byte.
//!
//! It is slower than [`walk`](super::walk), but knows what is wrong and where, and tokens may be
//! longer than what is looked at in one turn. It looks at the parts that the walk has refused or
//! could not divide.

use super::EnvelopeMember;
use super::error::{BodyPosition, Flaw, ParseError};
use super::form::BodyForm;
use super::progress::{DEPTH_MAX, Expect, ParseProgress};
use super::spelling::{is_space, skip};
use crate::queue::job::Span;

/// Fewest bytes that it must be given at a time unless the body ends before: the longest piece that
/// it does not divide is `\u0000`.
pub(super) const PIECE_BYTES_MIN: usize = 8;

/// Where it is inside a token, whose first byte is at `ParseProgress::at`.
#[derive(Clone, Copy, Debug)]
enum Token {
    /// Between two tokens.
    None,
    String,
    Number(Number),
}

/// The part of a number that was read last.
#[derive(Clone, Copy, Debug)]
enum Number {
    Minus,
    Zero,
    Whole,
    Dot,
    Fraction,
    E,
    ExponentSign,
    Exponent,
}

/// What came of some bytes.
pub(super) enum Came {
    /// To the end of what it was given.
    ToTheEnd,
    /// Behind `resume_from`, to a place from where the walk can go on.
    ToAResumablePlace,
}

pub(super) struct Bytewise {
    token: Token,
    /// The next byte.
    next: usize,
}

impl Bytewise {
    /// Goes on where `progress` is.
    pub(super) fn new(progress: &ParseProgress) -> Bytewise {
        Bytewise { token: Token::None, next: progress.at }
    }

    /// The next byte that it looks at.
    pub(super) fn at(&self) -> usize {
        self.next
    }

    /// Checks up to `until`, or until the first place behind `resume_from` from where the walk can
    /// go on.
    ///
    /// # Errors
    /// What is wrong, if a part of the body is or the body ends here and must not.
    pub(super) fn check(
        &mut self,
        body: &[u8],
        until: usize,
        resume_from: usize,
        progress: &mut ParseProgress,
        payloads: &mut Vec<Span>,
    ) -> Result<Came, Flaw> {
        if progress.form == BodyForm::Lines {
            return self.check_lines(body, until, resume_from, progress, payloads);
        }
        let is_whole = until == body.len();
        let mut reader = Reader { body: &body[..until], whole: body, is_whole, progress };
        self.check_text(&mut reader, resume_from, payloads)
    }

    /// The same for lines: to the reader each is a text that ends before its LF.
    fn check_lines(
        &mut self,
        body: &[u8],
        until: usize,
        resume_from: usize,
        progress: &mut ParseProgress,
        payloads: &mut Vec<Span>,
    ) -> Result<Came, Flaw> {
        loop {
            let is_before_value = progress.nesting.depth == 0 && progress.expect == Expect::Value;
            if is_before_value && matches!(self.token, Token::None) {
                self.next = skip_space(&body[..until], self.next);
            }
            let line_feed = memchr::memchr(b'\n', &body[self.next..until]).map(|n| self.next + n);
            let end = line_feed.unwrap_or(until);
            let is_whole = line_feed.is_some() || until == body.len();
            let mut reader = Reader { body: &body[..end], whole: body, is_whole, progress };
            let came =
                self.check_text(&mut reader, resume_from, payloads).map_err(Flaw::of_line)?;
            match (came, line_feed) {
                (Came::ToTheEnd, Some(line_feed)) => {
                    self.next = line_feed + 1;
                    progress.at = self.next;
                    progress.expect = Expect::Value;
                }
                (came, _) => return Ok(came),
            }
        }
    }

    /// Checks what is left of the reader's text.
    fn check_text(
        &mut self,
        reader: &mut Reader<'_>,
        resume_from: usize,
        payloads: &mut Vec<Span>,
    ) -> Result<Came, Flaw> {
        let until = reader.body.len();
        while self.next < until {
            let before = self.next;
            match self.token {
                Token::None => {
                    self.next = skip_space(reader.body, before);
                    if self.next == until {
                        break;
                    }
                    reader.progress.at = self.next;
                    if self.next >= resume_from && reader.progress.is_resumable() {
                        return Ok(Came::ToAResumablePlace);
                    }
                    self.token = reader.begin(&mut self.next, payloads)?;
                }
                Token::String => {
                    if reader.string(&mut self.next)? {
                        self.token = Token::None;
                        reader.end_string(self.next, payloads)?;
                    }
                }
                Token::Number(part) => match reader.number(part, &mut self.next)? {
                    Some(part) => self.token = Token::Number(part),
                    None => {
                        self.token = Token::None;
                        reader.end_value(self.next, payloads);
                    }
                },
            }
            // The rest may be the beginning of a piece that is not divided.
            if self.next == before && until - before < PIECE_BYTES_MIN && !reader.is_whole {
                break;
            }
        }
        if reader.is_whole {
            self.end(reader, payloads)?;
        }
        Ok(Came::ToTheEnd)
    }

    /// The text ends here.
    fn end(&mut self, reader: &mut Reader<'_>, payloads: &mut Vec<Span>) -> Result<(), Flaw> {
        let end = reader.body.len();
        match self.token {
            Token::None => {}
            Token::String => return Err(json(end, "EOF while parsing a string")),
            Token::Number(Number::Zero | Number::Whole | Number::Fraction | Number::Exponent) => {
                self.token = Token::None;
                reader.end_value(end, payloads);
            }
            Token::Number(_) => return Err(json(end, "invalid number")),
        }
        let ParseProgress { form, expect, nesting, .. } = *reader.progress;
        let what = match (expect, nesting.in_object()) {
            (Expect::End, _) => return Ok(()),
            (Expect::Value, _) if form == BodyForm::Lines && nesting.depth == 0 => return Ok(()),
            (Expect::Value, _) if end == 0 => return Err(Flaw::after(0, ParseError::Empty(form))),
            (Expect::Value, _) => "EOF while parsing a value",
            (Expect::ValueOrClose, _) | (Expect::CommaOrClose, false) => "EOF while parsing a list",
            (Expect::Key | Expect::KeyOrClose | Expect::Colon, _)
            | (Expect::CommaOrClose, true) => "EOF while parsing an object",
        };
        Err(json(end, what))
    }
}

/// The flaw that `consumed` bytes end with.
#[cold]
fn json(consumed: usize, what: &'static str) -> Flaw {
    Flaw::after(consumed, ParseError::NotJson { what, at: BodyPosition::default() })
}

/// Nowhere, until the lines are counted.
const NOWHERE: BodyPosition = BodyPosition { line: 0, column: 0 };

fn skip_space(text: &[u8], from: usize) -> usize {
    from + text[from..].iter().take_while(|byte| is_space(**byte)).count()
}

/// The grammar. Methods that read take the offset of the next byte and move it.
struct Reader<'a> {
    /// The body up to the end of what is to be checked now.
    body: &'a [u8],
    whole: &'a [u8],
    /// Whether the text ends with `body`.
    is_whole: bool,
    progress: &'a mut ParseProgress,
}

impl Reader<'_> {
    /// A token from its first byte on.
    fn begin(&mut self, next: &mut usize, payloads: &mut Vec<Span>) -> Result<Token, Flaw> {
        let (at, byte) = (*next, self.body[*next]);
        let object = self.progress.nesting.in_object();
        match (self.progress.expect, byte) {
            (Expect::ValueOrClose, b']') => self.close(next, payloads),
            (Expect::KeyOrClose, b'}') => self.close(next, payloads),
            (Expect::CommaOrClose, b']') if !object => self.close(next, payloads),
            (Expect::CommaOrClose, b'}') if object => self.close(next, payloads),
            (Expect::CommaOrClose, b',') => {
                self.progress.expect = if object { Expect::Key } else { Expect::Value };
                *next += 1;
            }
            (Expect::Key | Expect::KeyOrClose, b'"') => {
                *next += 1;
                return Ok(Token::String);
            }
            (Expect::Colon, b':') => {
                self.progress.expect = Expect::Value;
                *next += 1;
            }
            (Expect::Value | Expect::ValueOrClose, _) => return self.begin_value(next, payloads),
            (Expect::Key | Expect::KeyOrClose, _) => {
                return Err(self.unexpected(at, "key must be a string"));
            }
            (Expect::Colon, _) => return Err(self.unexpected(at, "expected `:`")),
            (Expect::CommaOrClose, _) if object => {
                return Err(self.unexpected(at, "expected `,` or `}`"));
            }
            (Expect::CommaOrClose, _) => return Err(self.unexpected(at, "expected `,` or `]`")),
            (Expect::End, b'{' | b'[') if self.progress.form != BodyForm::Lines => {
                return Err(Flaw::at(at, ParseError::SecondValue(NOWHERE)));
            }
            (Expect::End, _) => return Err(self.unexpected(at, "trailing characters")),
        }
        Ok(Token::None)
    }

    fn begin_value(&mut self, next: &mut usize, payloads: &mut Vec<Span>) -> Result<Token, Flaw> {
        let (at, byte) = (*next, self.body[*next]);
        if !matches!(byte, b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') {
            if at == 0 && self.body.starts_with("\u{feff}".as_bytes()) {
                return Err(Flaw::after(0, ParseError::ByteOrderMark));
            }
            return Err(self.unexpected(at, "expected value"));
        }
        if self.progress.nesting.depth == 0 {
            let begun = self.progress.begin(byte);
            begun.map_err(|form| Flaw::at(at, ParseError::WrongStart { form, at: NOWHERE }))?;
        } else if self.progress.in_envelope() {
            self.check_member(at, byte)?;
        }
        if self.progress.at_payload() {
            // `parse` asserts that the body's length fits.
            self.progress.payload_start = at as u32;
        }
        let token = match byte {
            b'{' | b'[' => {
                let nesting = &mut self.progress.nesting;
                if nesting.depth == DEPTH_MAX {
                    return Err(Flaw::at(at, ParseError::TooDeep(NOWHERE)));
                }
                let object = byte == b'{';
                nesting.open(object);
                self.progress.expect =
                    if object { Expect::KeyOrClose } else { Expect::ValueOrClose };
                Token::None
            }
            b'"' => Token::String,
            b't' => return self.word(next, b"true", payloads),
            b'f' => return self.word(next, b"false", payloads),
            b'n' => return self.word(next, b"null", payloads),
            b'-' => Token::Number(Number::Minus),
            b'0' => Token::Number(Number::Zero),
            _ => Token::Number(Number::Whole),
        };
        *next += 1;
        Ok(token)
    }

    /// Whether a value that begins with `byte` may be that of the envelope's member.
    fn check_member(&self, at: usize, byte: u8) -> Result<(), Flaw> {
        let error = match (self.progress.member, byte) {
            (None, _) | (Some(EnvelopeMember::Data), b'[') => return Ok(()),
            (Some(EnvelopeMember::Data), _) => ParseError::DataNotAnArray(NOWHERE),
            // `null` counts as absent.
            (Some(_), b'"' | b'n') => return Ok(()),
            (Some(member), _) => ParseError::NotAString { member, at: NOWHERE },
        };
        Err(Flaw::at(at, error))
    }

    /// `true`, `false` or `null`, which is not divided: moves on only if it is there as a whole.
    fn word(
        &mut self,
        next: &mut usize,
        word: &[u8],
        payloads: &mut Vec<Span>,
    ) -> Result<Token, Flaw> {
        let start = *next;
        for (at, wanted) in (start..).zip(word) {
            match self.body.get(at) {
                Some(byte) if byte == wanted => {}
                Some(_) => return Err(self.unexpected(at, "expected ident")),
                None if self.is_whole => return Err(json(at, "EOF while parsing a value")),
                None => return Ok(Token::None),
            }
        }
        *next = start + word.len();
        self.end_value(*next, payloads);
        Ok(Token::None)
    }

    /// The next bytes of a number. Returns the part that it has come to; `None` if the number has
    /// ended before `next`.
    fn number(&self, part: Number, next: &mut usize) -> Result<Option<Number>, Flaw> {
        use Number::*;
        let mut part = part;
        while let Some(byte) = self.body.get(*next) {
            part = match (part, byte) {
                (Minus, b'0') => Zero,
                (Minus | Whole, b'0'..=b'9') => Whole,
                (Dot | Fraction, b'0'..=b'9') => Fraction,
                (E | ExponentSign | Exponent, b'0'..=b'9') => Exponent,
                (E, b'+' | b'-') => ExponentSign,
                (Zero | Whole, b'.') => Dot,
                (Zero | Whole | Fraction, b'e' | b'E') => E,
                (Zero, b'0'..=b'9') | (Minus | Dot | E | ExponentSign, _) => {
                    return Err(self.unexpected(*next, "invalid number"));
                }
                (Zero | Whole | Fraction | Exponent, _) => return Ok(None),
            };
            *next += 1;
        }
        Ok(Some(part))
    }

    /// The next bytes of a string. Returns whether it has ended before `next`.
    fn string(&self, next: &mut usize) -> Result<bool, Flaw> {
        loop {
            *next = self.skip_plain(*next);
            let at = *next;
            match self.body.get(at) {
                None => return Ok(false),
                Some(b'"') => {
                    *next += 1;
                    return Ok(true);
                }
                Some(b'\\') => *next += self.escape(at)?,
                Some(0..0x20) => {
                    let what = "control character (\\u0000-\\u001F) found while parsing a string";
                    return Err(json(at, what));
                }
                Some(_) => *next += self.beyond_ascii(at)?,
            }
            if *next == at {
                return Ok(false);
            }
        }
    }

    /// The first byte from `from` on that is not a plain ASCII character of a string.
    fn skip_plain(&self, from: usize) -> usize {
        skip(self.body, from, |byte| (byte as i8) >= 0x20 && byte != b'"' && byte != b'\\')
    }

    /// The length of the escape at `at`; 0 if not all of it is there yet.
    fn escape(&self, at: usize) -> Result<usize, Flaw> {
        let length = match self.body.get(at + 1) {
            None => 2,
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') => 6,
            Some(_) => return Err(json(at + 2, "invalid escape")),
        };
        match self.body.get(at + 2..at + length) {
            None if self.is_whole => Err(json(self.body.len(), "EOF while parsing a string")),
            None => Ok(0),
            Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => Ok(length),
            Some(_) => Err(json(at + length, "invalid escape")),
        }
    }

    /// The length of the text at `at` up to a byte with a meaning in strings; shorter if its last
    /// character is not all there yet.
    fn beyond_ascii(&self, at: usize) -> Result<usize, Flaw> {
        let is_text = |byte| byte >= 0x20 && byte != b'"' && byte != b'\\';
        let end = skip(self.body, at, is_text);
        let text = &self.body[at..end];
        let is_cut = end == self.body.len() && !self.is_whole;
        match std::str::from_utf8(text) {
            Ok(_) => Ok(text.len()),
            Err(error) if error.error_len().is_none() && is_cut => Ok(error.valid_up_to()),
            Err(error) => Err(Flaw::at(at + error.valid_up_to(), ParseError::NotUtf8(NOWHERE))),
        }
    }

    /// A string, which is a key or a value, has ended at `end`.
    fn end_string(&mut self, end: usize, payloads: &mut Vec<Span>) -> Result<(), Flaw> {
        let (start, in_envelope) = (self.progress.at, self.progress.in_envelope());
        match (self.progress.expect, self.progress.member) {
            (Expect::Key | Expect::KeyOrClose, _) => {
                if in_envelope {
                    self.progress.enter(&self.body[start..end], start)?;
                }
                self.progress.expect = Expect::Colon;
            }
            (_, member) => {
                if let (true, Some(member)) = (in_envelope, member) {
                    self.progress.keep(member, Span { start: start as u32, end: end as u32 });
                }
                self.end_value(end, payloads);
            }
        }
        Ok(())
    }

    /// A value has ended at `end`.
    fn end_value(&mut self, end: usize, payloads: &mut Vec<Span>) {
        if self.progress.at_payload() {
            payloads.push(Span { start: self.progress.payload_start, end: end as u32 });
        }
        let outermost = self.progress.nesting.depth == 0;
        self.progress.expect = if outermost { Expect::End } else { Expect::CommaOrClose };
    }

    fn close(&mut self, next: &mut usize, payloads: &mut Vec<Span>) {
        *next += 1;
        self.progress.nesting.close();
        self.end_value(*next, payloads);
    }

    /// The byte at `at` may not be there.
    #[cold]
    fn unexpected(&self, at: usize, what: &'static str) -> Flaw {
        let character = &self.whole[at..self.whole.len().min(at + 4)];
        match std::str::from_utf8(character) {
            Err(error) if error.valid_up_to() == 0 => Flaw::at(at, ParseError::NotUtf8(NOWHERE)),
            _ => json(at + 1, what),
        }
    }
}
