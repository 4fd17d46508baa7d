//! Turns payloads into lines, and splits a stream of bytes into lines again.
//!
//! A line feed ends every line, including the last one. A payload with a raw line feed or carriage
//! return would be several lines, so it is compacted: JSON white space outside strings is dropped.
//! Such a byte can only be between tokens, because `parse` refuses control characters in strings.
//! No other byte of any payload changes.

use memchr::{memchr, memchr2, memchr2_iter};

use crate::queue::job::Span;

/// Whether `payload` does not fit on one line as it is.
pub(super) fn needs_compacting(payload: &[u8]) -> bool {
    memchr2(b'\n', b'\r', payload).is_some()
}

/// Whether the payloads at `spans` of `body` become lines if the one byte between each two of them
/// becomes a line feed: they lie side by side, and each fits on one line as it is.
pub(super) fn are_nearly_lines(body: &[u8], spans: &[Span]) -> bool {
    let [first, .., last] = spans else { return false };
    if !spans.windows(2).all(|pair| pair[0].end + 1 == pair[1].start) {
        return false;
    }
    // A line feed between two payloads is where it belongs: the body has them on lines.
    let mut ends = spans.iter().map(|span| span.end as usize);
    let start = first.start as usize;
    memchr2_iter(b'\n', b'\r', &body[start..last.end as usize])
        .all(|at| ends.find(|end| *end >= start + at) == Some(start + at))
}

/// Hands `payload` to `keep` without the white space outside strings, run by run.
pub(super) fn compact(payload: &[u8], mut keep: impl FnMut(&[u8])) {
    let (mut run, mut at) = (0, 0);
    while let Some(byte) = payload.get(at) {
        match byte {
            b'"' => at = string_end(payload, at),
            b' ' | b'\t' | b'\n' | b'\r' => {
                keep(&payload[run..at]);
                at += 1;
                run = at;
            }
            _ => at += 1,
        }
    }
    keep(&payload[run..]);
}

/// The end of the string that opens at `open`; the end of the payload if it does not end.
fn string_end(payload: &[u8], open: usize) -> usize {
    let mut at = open + 1;
    while let Some(found) = payload.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if payload[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    payload.len()
}

/// Splits a stream of bytes into lines. Holds at most one incomplete line, so the longest line
/// bounds its memory.
pub(super) struct Splitter<F> {
    each: F,
    incomplete: Vec<u8>,
}

impl<F: FnMut(&[u8])> Splitter<F> {
    /// Shows `each` every line, without its line feed.
    pub(super) fn new(each: F) -> Splitter<F> {
        Splitter { each, incomplete: Vec::new() }
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(end) = memchr(b'\n', bytes) {
            if self.incomplete.is_empty() {
                (self.each)(&bytes[..end]);
            } else {
                self.incomplete.extend_from_slice(&bytes[..end]);
                (self.each)(&self.incomplete);
                self.incomplete.clear();
            }
            bytes = &bytes[end + 1..];
        }
        self.incomplete.extend_from_slice(bytes);
    }

    /// Asserts that the last line has ended: a cut line would be a payload lost silently.
    pub(super) fn finish(self) {
        assert!(self.incomplete.is_empty(), "a batch ends with a line feed");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    fn compacted(payload: &str) -> String {
        let mut line = Vec::new();
        compact(payload.as_bytes(), |run| line.extend_from_slice(run));
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn only_white_space_between_tokens_is_removed() {
        for (payload, line) in [
            ("{\n  \"a b\": [1 , 2.50,\r\n 1e400 ]\n}", r#"{"a b":[1,2.50,1e400]}"#),
            ("[\n\"a \\\" b\\\\\" ,\t\"\\\\\\\" \"]", r#"["a \" b\\","\\\" "]"#),
            ("\r\n\"  \"\n", "\"  \""),
            ("\n", ""),
            ("\"\\", "\"\\"),
            ("\" \n", "\" \n"),
        ] {
            assert_eq!(compacted(payload), line, "{payload:?}");
        }
        assert!(needs_compacting(b"[1,\r2]") && needs_compacting(b"[1\n]"));
        assert!(!needs_compacting(b"[1, 2]\t"));
    }

    /// Any JSON value, as text with any white space between its tokens.
    pub(crate) fn spaced_json() -> impl Strategy<Value = String> {
        let space = || "[ \t\n\r]{0,3}";
        let string = prop::string::string_regex(r#""([ a-zé{}\[\],:]|\\["\\/nrt]|\\u00e9){0,9}""#);
        let number = "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,9})?([eE][-+]?[0-9]{1,2})?";
        let leaf = prop_oneof![
            string.unwrap(),
            number.prop_map(String::from),
            Just("true".to_owned()),
            Just("null".to_owned()),
        ];
        let spaced = move |inner: BoxedStrategy<String>| {
            (space(), inner, space()).prop_map(|(a, value, b)| format!("{a}{value}{b}"))
        };
        let value = leaf.prop_recursive(4, 32, 4, move |inner| {
            let item = spaced(inner.boxed()).boxed();
            let member = (item.clone(), 0..100_u32, space())
                .prop_map(|(value, name, gap)| format!("{gap}\"k {name}\"{gap}:{value}"));
            prop_oneof![
                prop::collection::vec(item, 1..4)
                    .prop_map(|items| format!("[{}]", items.join(","))),
                prop::collection::vec(member, 1..4)
                    .prop_map(|all| format!("{{{}}}", all.join(","))),
            ]
        });
        (space(), value, space()).prop_map(|(a, value, b)| format!("{a}{value}{b}"))
    }

    /// All tokens of a valid text, in order and byte for byte.
    fn tokens(text: &str) -> Vec<String> {
        let mut tokens = vec![String::new()];
        let (mut in_string, mut escaped) = (false, false);
        for c in text.chars() {
            if !in_string && " \t\r\n".contains(c) {
                continue;
            }
            if !in_string && "{}[]:,".contains(c) {
                tokens.push(c.to_string());
                tokens.push(String::new());
                continue;
            }
            tokens.last_mut().unwrap().push(c);
            in_string ^= c == '"' && !escaped;
            escaped = in_string && c == '\\' && !escaped;
        }
        tokens.retain(|token| !token.is_empty());
        tokens
    }

    proptest! {
        #[test]
        fn a_compacted_payload_is_the_same_value(text in spaced_json()) {
            let line = compacted(&text);
            prop_assert!(!needs_compacting(line.as_bytes()));
            prop_assert!(serde_json::from_str::<&RawValue>(&text).is_ok(), "{}", text);
            prop_assert!(serde_json::from_str::<&RawValue>(&line).is_ok(), "{}", line);
            prop_assert_eq!(tokens(&line), tokens(&text));
            let (before, after): (serde_json::Value, serde_json::Value) =
                (serde_json::from_str(&text).unwrap(), serde_json::from_str(&line).unwrap());
            prop_assert_eq!(before, after);
        }

        #[test]
        fn lines_come_out_as_they_went_in(
            lines in prop::collection::vec("[a-z]{0,9}", 0..20),
            piece in 1..7_usize,
        ) {
            let stream: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let mut seen = Vec::new();
            let mut splitter = Splitter::new(|line: &[u8]| seen.push(line.to_vec()));
            stream.as_bytes().chunks(piece).for_each(|bytes| splitter.feed(bytes));
            splitter.finish();
            prop_assert_eq!(seen, lines.iter().map(|line| line.as_bytes().to_vec()).collect::<Vec<_>>());
        }
    }
}
