//! Why a body is refused, in the client's words.

use std::fmt;

use thiserror::Error;

use super::ENVELOPE_STRING_BYTES_MAX;
use super::form::BodyForm;
use super::progress::DEPTH_MAX;
use super::spelling::unescape;

/// Why a body cannot be split: the first thing that is wrong in it. The client reads the text:
/// it says what is wrong and where, and holds none of the client's own bytes.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    #[error("the body is empty; wanted: {0}")]
    Empty(BodyForm),
    #[error("the body starts with a byte order mark")]
    ByteOrderMark,
    #[error("not UTF-8 at {0}")]
    NotUtf8(BodyPosition),
    /// In `serde_json`'s words.
    #[error("not JSON: {what} at {at}")]
    NotJson { what: &'static str, at: BodyPosition },
    /// As [`ParseError::NotJson`]: the line ends before its value does.
    #[error("not JSON: {what} at {at}; wanted: {}", BodyForm::Lines)]
    CutLine { what: &'static str, at: BodyPosition },
    /// As [`ParseError::NotJson`]: another object or array follows the body.
    #[error(
        "not JSON: trailing characters at {0}; if each line is a payload, send it as application/x-ndjson"
    )]
    SecondValue(BodyPosition),
    #[error("nested deeper than {DEPTH_MAX} levels at {0}")]
    TooDeep(BodyPosition),
    #[error("{}, at {at}; wanted: {form}{}", form.mismatch(), form.as_sent())]
    WrongStart { form: BodyForm, at: BodyPosition },
    #[error("\"data\" is missing; wanted: {{\"data\":[...]}}")]
    DataMissing,
    #[error("\"data\" is not an array, at {0}; wanted: {{\"data\":[...]}}")]
    DataNotAnArray(BodyPosition),
    #[error("{member} is not a string, at {at}; wanted: {{{member}:\"...\",\"data\":[...]}}")]
    NotAString { member: EnvelopeMember, at: BodyPosition },
    /// A lone surrogate escape: JSON's grammar allows it, but it is not text.
    #[error("{member} has a surrogate escape without its pair, at {at}")]
    NotUnicode { member: EnvelopeMember, at: BodyPosition },
    #[error("{member} takes more than {ENVELOPE_STRING_BYTES_MAX} bytes, at {at}")]
    TooLong { member: EnvelopeMember, at: BodyPosition },
    #[error("a second {member} at {at}; wanted: {{\"data\":[...]}}, each member once")]
    GivenTwice { member: EnvelopeMember, at: BodyPosition },
    /// The rest of the body was not read.
    #[error("the request has more payloads than MAX_QUEUE ({max}) could ever hold; split it")]
    TooManyPayloads { max: usize },
}

impl ParseError {
    fn set_position(&mut self, position: BodyPosition) {
        use ParseError::*;
        match self {
            Empty(_) | ByteOrderMark | DataMissing | TooManyPayloads { .. } => {}
            NotUtf8(at) | TooDeep(at) | SecondValue(at) | DataNotAnArray(at) => *at = position,
            NotJson { at, .. } | CutLine { at, .. } | WrongStart { at, .. } => *at = position,
            NotAString { at, .. } | NotUnicode { at, .. } => *at = position,
            TooLong { at, .. } | GivenTwice { at, .. } => *at = position,
        }
    }
}

impl BodyForm {
    /// What is wrong with a body of another form.
    fn mismatch(self) -> &'static str {
        match self {
            BodyForm::ByFirstByte(_) => "the body is neither an object nor an array",
            BodyForm::Collection | BodyForm::Object => "the body is not an object",
            BodyForm::Array => "the body is not an array",
            BodyForm::Lines => unreachable!("a line begins with any value"),
        }
    }

    /// What to add to the form that is wanted.
    fn as_sent(self) -> &'static str {
        match self {
            BodyForm::ByFirstByte(_) => ", or lines of JSON as application/x-ndjson",
            BodyForm::Array | BodyForm::Object => ", as content-type says",
            BodyForm::Collection | BodyForm::Lines => "",
        }
    }
}

/// What is wrong with a body, before its line is counted.
#[derive(Debug)]
pub(super) struct Flaw {
    /// The position is that of the last one of so many bytes, as `serde_json` has it.
    consumed: usize,
    error: ParseError,
    lines: LineCount,
}

/// The lines of the part of a body that was counted.
#[derive(Debug, Default)]
struct LineCount {
    counted: usize,
    ended: usize,
    line_start: usize,
}

/// Bytes whose lines are counted in one step: 50 µs of a vectorised search.
const COUNTED_AT_ONCE: usize = 1 << 20;

impl Flaw {
    /// `error` at the byte `at`, or behind the end.
    #[cold]
    pub(super) fn at(at: usize, error: ParseError) -> Flaw {
        Flaw::after(at + 1, error)
    }

    #[cold]
    pub(super) fn after(consumed: usize, error: ParseError) -> Flaw {
        Flaw { consumed, error, lines: LineCount::default() }
    }

    /// The same flaw where each line is a text of its own.
    pub(super) fn of_line(self) -> Flaw {
        let error = match self.error {
            ParseError::NotJson { what, at } if what.starts_with("EOF") => {
                ParseError::CutLine { what, at }
            }
            error => error,
        };
        Flaw { error, ..self }
    }

    /// Counts the lines of the next part of `body` up to the flaw. Returns whether all are counted.
    pub(super) fn count_lines(&mut self, body: &[u8]) -> bool {
        let lines = &mut self.lines;
        let end = self.consumed.min(body.len());
        let next = end.min(lines.counted + COUNTED_AT_ONCE);
        let part = &body[lines.counted..next];
        if let Some(last) = memchr::memrchr(b'\n', part) {
            lines.ended += memchr::memchr_iter(b'\n', part).count();
            lines.line_start = lines.counted + last + 1;
        }
        lines.counted = next;
        next == end
    }

    /// The error, once all lines are counted.
    pub(super) fn into_error(self) -> ParseError {
        let Flaw { mut error, lines, .. } = self;
        let column = lines.counted - lines.line_start;
        error.set_position(BodyPosition { line: 1 + lines.ended, column });
        error
    }
}

/// A member of the envelope that has a meaning here; all others are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvelopeMember {
    Version,
    Token,
    Data,
}

impl EnvelopeMember {
    /// Longest key with its quotes that may be one of the names: `version`, each letter escaped.
    const KEY_BYTES_MAX: usize = 2 + 7 * r"\u0000".len();

    /// The member that a valid JSON string with its quotes names, also if it is escaped.
    pub(super) fn named(quoted: &[u8]) -> Option<EnvelopeMember> {
        match &quoted[1..quoted.len() - 1] {
            b"version" => Some(EnvelopeMember::Version),
            b"token" => Some(EnvelopeMember::Token),
            b"data" => Some(EnvelopeMember::Data),
            _ if quoted.len() > Self::KEY_BYTES_MAX || !quoted.contains(&b'\\') => None,
            // `None` for an unpaired surrogate, which none of the names has.
            _ => match &*unescape(quoted)? {
                "version" => Some(EnvelopeMember::Version),
                "token" => Some(EnvelopeMember::Token),
                "data" => Some(EnvelopeMember::Data),
                _ => None,
            },
        }
    }
}

impl fmt::Display for EnvelopeMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EnvelopeMember::Version => "\"version\"",
            EnvelopeMember::Token => "\"token\"",
            EnvelopeMember::Data => "\"data\"",
        })
    }
}

/// A position in the body, counted as `serde_json` counts: lines and bytes within the line, from 1.
/// Column 0 is the end of the line before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BodyPosition {
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for BodyPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} column {}", self.line, self.column)
    }
}
