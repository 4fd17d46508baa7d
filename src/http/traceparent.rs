//! The `traceparent` header of W3C Trace Context (<https://www.w3.org/TR/trace-context/>): which
//! trace a request belongs to.
//!
//! It is kept beside the values that keys use (`key`), so it goes where the request's payloads go,
//! the spool included, and stands in their dead letters. A head without it costs a comparison. What
//! does not keep to the standard is ignored, as it asks: no request is refused for it.

use super::fields::{Fields, KnownField};

/// `00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01`.
const LENGTH: usize = 55;

/// The trace context of a head; `None` if it has none, an invalid one, or several.
pub(super) fn of_head(fields: &impl Fields) -> Option<&str> {
    let mut values = fields.values(KnownField::Traceparent);
    let only = values.next()?;
    if values.next().is_some() { None } else { valid(only) }
}

/// What of `value` is known to be a trace context (section 3.2): all of it in version 00; in a
/// later one what version 00 has, which may be followed by a dash and more.
fn valid(value: &[u8]) -> Option<&str> {
    let (known, more) = value.split_at_checked(LENGTH)?;
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_field = |at: usize, byte: &u8| match at {
        2 | 35 | 52 => *byte == b'-',
        _ => is_hex(byte),
    };
    let is_zero = |field: &[u8]| field.iter().all(|byte| *byte == b'0');
    let is_formed = known.iter().enumerate().all(|(at, byte)| is_field(at, byte));
    let ends = match &known[..2] {
        b"00" => more.is_empty(),
        b"ff" => false,
        _ => more.is_empty() || more[0] == b'-',
    };
    let has_ids = !is_zero(&known[3..35]) && !is_zero(&known[36..52]);
    (is_formed && ends && has_ids).then(|| std::str::from_utf8(known).expect("digits and dashes"))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use http::header::HeaderValue;

    use super::*;

    #[test]
    fn what_the_standard_allows_is_taken_and_all_else_ignored() {
        const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let later = GOOD.replacen("00", "cc", 1);
        let zeros = |from: usize, to: usize| {
            format!("{}{}{}", &GOOD[..from], "0".repeat(to - from), &GOOD[to..])
        };
        for (value, taken) in [
            (GOOD.to_owned(), Some(GOOD)),
            (GOOD.replacen("-01", "-00", 1), Some(&*GOOD.replacen("-01", "-00", 1))),
            (later.clone(), Some(&*later)),
            (format!("{later}-what-the-future-brings"), Some(&*later)),
            (format!("{later}."), None),
            (format!("{GOOD}-"), None),
            (format!("{GOOD}-x"), None),
            (GOOD.replacen("00", "ff", 1), None),
            (GOOD.to_uppercase(), None),
            (zeros(3, 35), None),
            (zeros(36, 52), None),
            (GOOD[..54].to_owned(), None),
            (GOOD.replace('-', "_"), None),
            (GOOD.replacen('a', "g", 1), None),
            (String::new(), None),
            ("00".to_owned(), None),
            ("x".repeat(55), None),
        ] {
            assert_eq!(valid(value.as_bytes()), taken, "{value}");
            let mut fields = HeaderMap::new();
            assert_eq!(of_head(&fields), None);
            fields.append("traceparent", HeaderValue::from_str(&value).unwrap());
            assert_eq!(of_head(&fields), taken, "{value}");
            fields.append("traceparent", HeaderValue::from_static(GOOD));
            assert_eq!(of_head(&fields), None, "two of them");
        }
        // Bytes that are no text, and a cut in the middle of one.
        assert_eq!(valid(&[0xff; 60]), None);
    }
}
