//! The heads that the fast path serves: a strict whitelist. Everything else is for hyper, which
//! accepts more and refuses what is wrong.
//!
//! Pure. A head is taken that is a `POST` of HTTP/1.1 to an origin-form target of plain characters,
//! with CRLF behind each line, and in which
//!
//! - `host` and `content-length` are there exactly once and valid, the length in digits only;
//! - `connection`, if it is there, is there once and `keep-alive` or `close`;
//! - `transfer-encoding`, `expect` and `upgrade` are not there.
//!
//! httparse finds the fields, as it does for hyper, so a name or a value that it refuses is refused
//! here as well.

use std::mem::MaybeUninit;

use httparse::{Header, Request, Status};

use crate::http::HEAD_BYTES_MAX;
use crate::http::fields::{Fields, KnownField};
use crate::http::head::is_host_value;

/// Most fields of a head: hyper's limit.
pub const FIELDS_MAX: usize = 100;

/// Room for the fields of one head.
pub type FieldsRoom<'b> = [MaybeUninit<Header<'b>>; FIELDS_MAX];

/// No longer `content-length` is taken. 15 digits are more than any `MAX_LENGTH`.
const LENGTH_DIGITS_MAX: usize = 15;

/// How every head of the whitelist begins.
const START: &[u8] = b"POST /";

/// What follows the target.
const VERSION: &[u8] = b" HTTP/1.1\r\n";

/// What the first bytes of a request are.
pub enum FirstBytes<'h, 'b> {
    /// A whole head that the fast path serves.
    Head(FastHead<'h, 'b>),
    /// They may become one.
    Partial,
    /// They are for hyper.
    Other,
}

/// A head of the whitelist.
pub struct FastHead<'h, 'b> {
    /// Length of the head.
    pub bytes: usize,
    pub path: &'b str,
    pub query: Option<&'b str>,
    /// The `content-length`.
    pub length: usize,
    /// The client wants the connection to be closed after the answer.
    pub closes: bool,
    pub fields: FastFields<'h, 'b>,
}

/// The fields of a head of the whitelist.
pub struct FastFields<'h, 'b> {
    all: &'h [Header<'b>],
    /// By [`KnownField`]: where the first one is and behind which the last one; the same if there
    /// is none.
    known: [(u8, u8); KnownField::ALL.len()],
}

impl Fields for FastFields<'_, '_> {
    #[inline]
    fn values(&self, field: KnownField) -> impl DoubleEndedIterator<Item = &[u8]> {
        let (first, end) = self.known[field as usize];
        let between = &self.all[usize::from(first)..usize::from(end)];
        // Mostly there is one at most, which needs no comparison.
        let (is_single, name) = (between.len() <= 1, field.name().as_str());
        let is_named = move |of: &&Header<'_>| is_single || of.name.eq_ignore_ascii_case(name);
        between.iter().filter(is_named).map(|of| of.value)
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let all = self.all.iter();
        all.filter(|of| of.name.eq_ignore_ascii_case(name)).map(|of| of.value)
    }
}

impl<'h, 'b> FastHead<'h, 'b> {
    /// Looks at the first bytes of a request.
    pub fn parse(bytes: &'b [u8], room: &'h mut FieldsRoom<'b>) -> FirstBytes<'h, 'b> {
        let start = bytes.len().min(START.len());
        if bytes[..start] != START[..start] {
            return FirstBytes::Other;
        }
        let mut request = Request::new(&mut []);
        match request.parse_with_uninit_headers(bytes, room) {
            Ok(Status::Complete(length)) if length <= HEAD_BYTES_MAX => {
                let target = request.path.expect("it is complete");
                let head = FastHead::of(&bytes[..length], target, request.headers);
                head.map_or(FirstBytes::Other, FirstBytes::Head)
            }
            Ok(Status::Partial) if bytes.len() < HEAD_BYTES_MAX => FirstBytes::Partial,
            Ok(_) | Err(_) => FirstBytes::Other,
        }
    }

    /// A head if it is in the whitelist. `all` are its fields.
    fn of(head: &'b [u8], target: &'b str, all: &'h [Header<'b>]) -> Option<FastHead<'h, 'b>> {
        // Where a part of the head ends.
        let end = |part: &[u8]| part.as_ptr() as usize - head.as_ptr() as usize + part.len();
        let mut line_end = end(target.as_bytes()) + VERSION.len();
        if head.get(end(target.as_bytes())..line_end)? != VERSION {
            return None;
        }
        let (path, query) = parts(target)?;
        let mut seen = SeenFields::default();
        for (number, field) in all.iter().enumerate() {
            line_end = end(field.value) + 2;
            if head.get(line_end - 2..line_end)? != b"\r\n" {
                return None;
            }
            seen.field(field, number as u8)?;
        }
        let is_whole = head.get(line_end..)? == b"\r\n";
        let length = seen.length.filter(|_| seen.has_host && is_whole)?;
        let closes = seen.closes.unwrap_or(false);
        let fields = FastFields { all, known: seen.known };
        Some(FastHead { bytes: head.len(), path, query, length, closes, fields })
    }
}

/// What was found in the fields of a head so far.
#[derive(Default)]
struct SeenFields {
    has_host: bool,
    length: Option<usize>,
    closes: Option<bool>,
    known: [(u8, u8); KnownField::ALL.len()],
}

impl SeenFields {
    /// Adds a field. `None` if it is not in the whitelist.
    #[inline]
    fn field(&mut self, field: &Header<'_>, number: u8) -> Option<()> {
        let (name, value) = (field.name, field.value);
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        let mut knows = |known: KnownField| {
            if is(known.name().as_str()) {
                let (first, end) = &mut self.known[known as usize];
                if *end == 0 {
                    *first = number;
                }
                *end = number + 1;
            }
            Some(())
        };
        match name.len() {
            4 if is("host") => {
                let is_good = is_host_value(value) && !self.has_host;
                self.has_host = true;
                is_good.then_some(())
            }
            6 if is("expect") => None,
            6 => knows(KnownField::Origin),
            7 if is("upgrade") => None,
            9 if name.as_bytes()[0] | 0x20 == b'x' => knows(KnownField::XApiKey),
            9 => knows(KnownField::Forwarded),
            10 if is("connection") => {
                let closes = match value {
                    _ if value.eq_ignore_ascii_case(b"keep-alive") => false,
                    _ if value.eq_ignore_ascii_case(b"close") => true,
                    _ => return None,
                };
                self.closes.replace(closes).is_none().then_some(())
            }
            11 => knows(KnownField::Traceparent),
            12 if name.as_bytes()[0] | 0x20 == b'c' => knows(KnownField::ContentType),
            12 => knows(KnownField::MillraceAck),
            13 => knows(KnownField::Authorization),
            14 if is("content-length") => {
                self.length.replace(length_of(value)?).is_none().then_some(())
            }
            15 => knows(KnownField::XForwardedFor),
            16 => knows(KnownField::ContentEncoding),
            17 if is("transfer-encoding") => None,
            _ => Some(()),
        }
    }
}

/// The path and the query of an origin-form target of plain characters.
fn parts(target: &str) -> Option<(&str, Option<&str>)> {
    let bytes = target.as_bytes();
    let mut query = None;
    for (at, byte) in bytes.iter().enumerate() {
        match CHARS[usize::from(*byte)] {
            CharKind::Plain => {}
            CharKind::QuestionMark => query = query.or(Some(at)),
            CharKind::Other => return None,
        }
    }
    Some(match query {
        None => (target, None),
        Some(at) => (&target[..at], Some(&target[at + 1..])),
    })
}

fn length_of(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > LENGTH_DIGITS_MAX {
        return None;
    }
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| usize::from(byte - b'0'));
    digits.iter().try_fold(0, |sum, byte| Some(sum * 10 + digit(byte)?))
}

#[derive(Clone, Copy)]
enum CharKind {
    /// `pchar` of RFC 3986 section 3.3, a slash or a percent sign.
    Plain,
    QuestionMark,
    Other,
}

const CHARS: [CharKind; 256] = {
    let mut table = [CharKind::Other; 256];
    let mut byte = 0;
    while byte < 256 {
        if (byte as u8).is_ascii_alphanumeric() {
            table[byte] = CharKind::Plain;
        }
        byte += 1;
    }
    let others = b"-._~!$&'()*+,;=:@/%";
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = CharKind::Plain;
        at += 1;
    }
    table[b'?' as usize] = CharKind::QuestionMark;
    table
};

/// Where the head ends that begins with `held` and goes on with `more`: how many bytes of `more`
/// belong to it. `None`: it goes on behind them. As for hyper, an empty line ends it, with or
/// without a carriage return; `held` has no such line.
pub fn end_in(held: &[u8], more: &[u8]) -> Option<usize> {
    let tail = &held[held.len().saturating_sub(2)..];
    let byte_before = |at: usize, back: usize| match at.checked_sub(back) {
        Some(at) => Some(more[at]),
        None => tail.len().checked_sub(back - at).map(|at| tail[at]),
    };
    memchr::memchr_iter(b'\n', more)
        .find(|at| match byte_before(*at, 1) {
            Some(b'\n') => true,
            Some(b'\r') => byte_before(*at, 2) == Some(b'\n'),
            _ => false,
        })
        .map(|at| at + 1)
}

#[cfg(test)]
mod tests;
