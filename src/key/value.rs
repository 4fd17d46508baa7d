//! Values chosen by a client, as they appear in a key: a field of a payload, or a request's
//! version.
//!
//! They are made safe: control characters, `/`, `\`, and the dots of a value of only dots become
//! `_`. A value has at most [`VALUE_BYTES_MAX`] bytes, cut between characters, and is never empty.
//! So any value is a part of one path component. Values that differ only in what is replaced or cut
//! become equal.

use std::str::Chars;

/// Most bytes of a value.
pub const VALUE_BYTES_MAX: usize = 128;

/// This many bytes of a JSON string give at least [`VALUE_BYTES_MAX`]: at most six (`\u0041`) give
/// one.
const RAW_BYTES_MAX: usize = 8 * VALUE_BYTES_MAX;

/// Appends a JSON value: strings unescaped, numbers as written, `true` and `false`. Anything else,
/// and an empty string, gives `default`.
pub(super) fn write_json(raw: &[u8], default: &str, out: &mut String) {
    match raw {
        [b'"', inside @ .., b'"'] => write(Unescaped::new(head(inside)), default, out),
        [b'-' | b'0'..=b'9' | b't' | b'f', ..] => write(utf8(head(raw)).chars(), default, out),
        _ => out.push_str(default),
    }
}

/// Appends a value, or `default` for an empty one.
pub(super) fn write(value: impl Iterator<Item = char>, default: &str, out: &mut String) {
    let start = out.len();
    for char in value {
        let safe = if is_kept(char) && char != '/' { char } else { '_' };
        if out.len() - start + safe.len_utf8() > VALUE_BYTES_MAX {
            break;
        }
        out.push(safe);
    }
    let bytes = out.len() - start;
    if bytes == 0 {
        out.push_str(default);
    } else if out[start..].bytes().all(|b| b == b'.') {
        out.truncate(start);
        out.extend(std::iter::repeat_n('_', bytes));
    }
}

/// Whether stores, listings (XML 1.0) and file systems accept this character in a key unchanged.
pub(super) fn is_kept(char: char) -> bool {
    !char.is_control() && !matches!(char, '\\' | '\u{fffe}' | '\u{ffff}')
}

/// The start of a value that can matter for [`VALUE_BYTES_MAX`]: the rest need not be read.
fn head(raw: &[u8]) -> &[u8] {
    &raw[..raw.len().min(RAW_BYTES_MAX)]
}

/// The UTF-8 start of `bytes`: everything except a character that `head` has cut.
fn utf8(bytes: &[u8]) -> &str {
    bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
}

/// The characters of a JSON string, given what is between its quotes. An escaped surrogate without
/// its other half is U+FFFD.
#[derive(Clone)]
pub(super) struct Unescaped<'a>(Chars<'a>);

impl<'a> Unescaped<'a> {
    pub(super) fn new(inside: &'a [u8]) -> Unescaped<'a> {
        Unescaped(utf8(inside).chars())
    }

    fn escaped(&mut self) -> Option<char> {
        Some(match self.0.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => return self.unicode(),
            itself => itself,
        })
    }

    fn unicode(&mut self) -> Option<char> {
        let unit = self.hex()?;
        if (0xd800..0xdc00).contains(&unit)
            && let Some(behind) = self.0.as_str().strip_prefix("\\u")
        {
            let mut behind = Unescaped(behind.chars());
            if let Some(low @ 0xdc00..0xe000) = behind.hex() {
                *self = behind;
                return char::from_u32(0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00));
            }
        }
        Some(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex(&mut self) -> Option<u32> {
        let (digits, behind) = self.0.as_str().split_at_checked(4)?;
        self.0 = behind.chars();
        u32::from_str_radix(digits, 16).ok()
    }
}

impl Iterator for Unescaped<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        match self.0.next()? {
            '\\' => self.escaped(),
            plain => Some(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(raw: &str) -> String {
        let mut text = String::from("before");
        write_json(raw.as_bytes(), "none", &mut text);
        text.split_off(6)
    }

    #[test]
    fn values_are_unescaped_and_made_safe() {
        let long = |text: &str, n| format!("\"{}\"", text.repeat(n));
        for (raw, expected) in [
            (r#""acme""#, "acme"),
            (r#""Zoë 日本 😀""#, "Zoë 日本 😀"),
            (r#""\u005a\"\/\\\ud83d\ude00""#, "Z\"__😀"),
            (r#""a/b\\c\n\u0000\u007f\u0085""#, "a_b_c____"),
            (r#""\ud800""#, "\u{fffd}"),
            (r#""\ud800x\udc00\ud800\u0041""#, "\u{fffd}x\u{fffd}\u{fffd}A"),
            (r#"".""#, "_"),
            (r#""..""#, "__"),
            (r#""../etc""#, ".._etc"),
            (r#""a.b""#, "a.b"),
            (r#""\ufffe\uffff""#, "__"),
            (r#""""#, "none"),
            ("-1.50e+400", "-1.50e+400"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("true", "true"),
            ("false", "false"),
            ("null", "none"),
            ("{\"a\":1}", "none"),
            ("[1]", "none"),
            ("", "none"),
            (&long("x", 129), &"x".repeat(128)),
            (&long("é", 65), &"é".repeat(64)),
            (&long("日", 65), &"日".repeat(42)),
            (&long("\\u0041", 300), &"A".repeat(128)),
            (&long(".", 200), &"_".repeat(128)),
            (&long("日", 1000), &"日".repeat(42)),
        ] {
            assert_eq!(value(raw), expected, "{raw}");
        }
    }

    proptest! {
        #[test]
        fn unescaping_is_serde_jsons(text: String, ascii: bool) {
            let mut raw = serde_json::to_string(&text).unwrap();
            if ascii {
                // As many encoders write it.
                let unit = |u: u16| if u < 128 { char::from(u as u8).into() } else { format!("\\u{u:04x}") };
                raw = raw.encode_utf16().map(unit).collect();
            }
            let unescaped: String = Unescaped::new(&raw.as_bytes()[1..raw.len() - 1]).collect();
            prop_assert_eq!(unescaped, serde_json::from_str::<String>(&raw).unwrap());
        }

        #[test]
        fn no_value_is_more_than_a_part_of_a_component(text: String, bytes: Vec<u8>) {
            let quoted = [b"\"", bytes.as_slice(), b"\""].concat();
            for raw in [serde_json::to_string(&text).unwrap().as_bytes(), &quoted, &bytes] {
                let mut out = String::new();
                write_json(raw, "none", &mut out);
                prop_assert!((1..=VALUE_BYTES_MAX).contains(&out.len()), "{out:?}");
                prop_assert!(!out.contains(|c: char| c.is_control() || c == '/' || c == '\\'), "{out:?}");
                prop_assert!(out != "." && out != "..", "{out:?}");
            }
        }
    }
}
