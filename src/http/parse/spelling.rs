//! Spelling of JSON's tokens.

use std::borrow::Cow;

/// The white space of RFC 8259, section 2.
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// A number by RFC 8259, section 6, of any size and precision.
pub(super) fn is_number(text: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut rest = text.strip_prefix(b"-").unwrap_or(text);
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest[0] == b'0') {
        return false;
    }
    rest = &rest[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = digits(fraction);
        if length == 0 {
            return false;
        }
        rest = &fraction[length..];
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        let exponent = match exponent {
            [b'+' | b'-', digits @ ..] => digits,
            digits => digits,
        };
        return !exponent.is_empty() && digits(exponent) == exponent.len();
    }
    rest.is_empty()
}

/// Whether every backslash begins an escape (RFC 8259, section 7). The walk has shown that there is
/// none outside strings.
pub(super) fn escapes_are_valid(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        let length = match &rest[at + 1..] {
            [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
            [b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|x| x.is_ascii_hexdigit()) => 6,
            _ => return false,
        };
        rest = &rest[at + length..];
    }
    true
}

/// The text of a valid JSON string with its quotes. `None` if an escape is an unpaired surrogate.
pub(super) fn unescape(quoted: &[u8]) -> Option<Cow<'_, str>> {
    let inner = &quoted[1..quoted.len() - 1];
    if inner.contains(&b'\\') {
        serde_json::from_slice(quoted).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(std::str::from_utf8(inner).expect("a valid body is UTF-8")))
    }
}

/// The offset of the first byte from `from` on that is not `wanted`.
#[inline(always)]
pub(super) fn skip(body: &[u8], from: usize, wanted: impl Fn(u8) -> bool) -> usize {
    let mut at = from;
    // Without an early exit inside a block, it is vectorised.
    for block in body[from..].chunks_exact(32) {
        if !block.iter().fold(true, |all, byte| all & wanted(*byte)) {
            break;
        }
        at += block.len();
    }
    at + body[at..].iter().take_while(|byte| wanted(**byte)).count()
}
