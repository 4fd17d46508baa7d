//! Values chosen by a client, as they appear in a key: a field of a payload, or what its request
//! said.
//!
//! They are made safe: control characters, `/`, `\`, and the dots of a value of only dots become
//! `_`. A value has at most [`VALUE_BYTES_MAX`] bytes and is never empty. A longer one is cut
//! between characters and ends with a hash of the whole value, so that different values keep
//! different names. So any value is a part of one path component. Values that differ only in what
//! is replaced become equal.

use std::str::Chars;

use sha2::{Digest, Sha256};

/// Most bytes of a value.
pub const VALUE_BYTES_MAX: usize = 128;

/// Most bytes of a JSON value that are read, because a value is read in one turn of the core: this
/// takes 0.1 ms if every byte is part of an escape. Longer values that begin alike have one name.
const RAW_BYTES_MAX: usize = 64 << 10;

/// Bytes that [`push_digest`] appends.
pub(super) const DIGEST_BYTES: usize = 1 + 2 * DIGEST_TAKEN_BYTES;

/// Bytes taken of a SHA-256: with 64 bits, a client that looks for two values with one name has to
/// try four billion.
const DIGEST_TAKEN_BYTES: usize = 8;

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
pub(super) fn write(value: impl Iterator<Item = char> + Clone, default: &str, out: &mut String) {
    let start = out.len();
    for char in value.clone() {
        let safe = if is_kept(char) && char != '/' { char } else { '_' };
        if out.len() - start + safe.len_utf8() > VALUE_BYTES_MAX {
            let kept = out.floor_char_boundary(start + VALUE_BYTES_MAX - DIGEST_BYTES);
            out.truncate(kept);
            return push_digest(value, out);
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

/// Appends `-` and the first hex digits of the SHA-256 of a text.
pub(super) fn push_digest(text: impl Iterator<Item = char>, out: &mut String) {
    let mut sum = Sha256::new();
    // A call per character would cost more than the hash.
    let (mut block, mut bytes) = ([0; 256], 0);
    for char in text {
        bytes += char.encode_utf8(&mut block[bytes..]).len();
        if bytes > block.len() - char::MAX_LEN_UTF8 {
            sum.update(&block[..bytes]);
            bytes = 0;
        }
    }
    sum.update(&block[..bytes]);
    out.push('-');
    for byte in &sum.finalize()[..DIGEST_TAKEN_BYTES] {
        for nibble in [byte >> 4, byte & 15] {
            out.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
    }
}

/// Whether stores, listings (XML 1.0) and file systems accept this character in a key unchanged.
pub(super) fn is_kept(char: char) -> bool {
    !char.is_control() && !matches!(char, '\\' | '\u{fffe}' | '\u{ffff}')
}

/// What is read of a value.
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
            (&long("x", 128), &"x".repeat(128)),
            (&long(".", 128), &"_".repeat(128)),
        ] {
            assert_eq!(value(raw), expected, "{raw}");
        }
    }

    #[test]
    fn long_values_are_cut_between_characters_and_end_with_their_hash() {
        let hash = |text: &str| {
            let sum = Sha256::digest(text.as_bytes());
            sum[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        // As `printf %s xxx… | sha256sum` says.
        assert_eq!(hash(&"x".repeat(129)), "0ec9eb33e74510bc");
        for (raw, text, head) in [
            ("x".repeat(129), "x".repeat(129), "x".repeat(111)),
            ("x".repeat(300), "x".repeat(300), "x".repeat(111)),
            ("é".repeat(65), "é".repeat(65), "é".repeat(55)),
            ("日".repeat(1000), "日".repeat(1000), "日".repeat(37)),
            ("😀".repeat(33), "😀".repeat(33), "😀".repeat(27)),
            ("\\u0041".repeat(300), "A".repeat(300), "A".repeat(111)),
            (".".repeat(129), ".".repeat(129), ".".repeat(111)),
            ("a\\/".repeat(100), "a/".repeat(100), format!("{}a", "a_".repeat(55))),
        ] {
            let expected = format!("{head}-{}", hash(&text));
            assert_eq!(value(&format!("\"{raw}\"")), expected, "{raw}");
        }
        let digits = "7".repeat(200);
        assert_eq!(value(&digits), format!("{}-{}", &digits[..111], hash(&digits)));
        // The bound on what is read.
        let long = |end: &str| value(&format!("\"{}{end}\"", "x".repeat(RAW_BYTES_MAX)));
        assert_eq!(long("a"), long("b"));
    }

    proptest! {
        #[test]
        fn different_values_keep_different_names(
            start in "[a-z\u{e9}\u{65e5}]{100,200}",
            a in "[a-c]{0,60}",
            b in "[a-c]{0,60}",
        ) {
            let name = |end: &str| value(&serde_json::to_string(&format!("{start}{end}")).unwrap());
            prop_assert_eq!(name(&a) == name(&b), a == b);
            prop_assert_eq!(name(&a), name(&a));
            // What was made of a value once is not changed again: a request's version is both.
            let mut again = String::new();
            write(name(&a).chars(), "none", &mut again);
            prop_assert_eq!(again, name(&a));
        }

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
