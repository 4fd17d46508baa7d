//! Validity, spans and the envelope's strings against `serde_json` alone, in every form of a body.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::tests::{PLAIN, parse_in_segments};
use super::*;
use crate::config::ObjectBody;

#[derive(Debug, PartialEq, Eq)]
struct Expected {
    version: Option<String>,
    token: Option<String>,
    payloads: Vec<Range<usize>>,
}

/// All forms that a request may ask for.
const FORMS: [BodyForm; 5] = [
    PLAIN,
    BodyForm::ByFirstByte(ObjectBody::Payload),
    BodyForm::Array,
    BodyForm::Lines,
    BodyForm::Object,
];

/// What the contract says, by `serde_json`'s own parsing; `None` means 400.
fn oracle(body: &[u8], form: BodyForm) -> Option<Expected> {
    let raw = |text| {
        let value = serde_json::from_slice::<&RawValue>(text).ok()?;
        nests_within(value, 127).then_some(value)
    };
    let without_envelope = |payloads: Vec<&RawValue>| {
        let range = |value: &&RawValue| {
            let start = value.get().as_ptr() as usize - body.as_ptr() as usize;
            start..start + value.get().len()
        };
        Expected { version: None, token: None, payloads: payloads.iter().map(range).collect() }
    };
    if form == BodyForm::Lines {
        let lines = body.split(|byte| *byte == b'\n');
        let payloads = lines.filter(|line| !is_blank(line)).map(raw).collect::<Option<_>>();
        return payloads.map(without_envelope);
    }
    let whole = raw(body)?;
    let elements = || serde_json::from_str::<Vec<&RawValue>>(whole.get()).ok();
    match (form, whole.get().as_bytes()[0]) {
        (BodyForm::Array | BodyForm::ByFirstByte(_), b'[') => elements().map(without_envelope),
        (BodyForm::Object | BodyForm::ByFirstByte(ObjectBody::Payload), b'{') => {
            Some(without_envelope(vec![whole]))
        }
        (BodyForm::Collection | BodyForm::ByFirstByte(_), b'{') => {
            let (version, token, payloads) = members_of(whole)?;
            Some(Expected { version, token, ..without_envelope(payloads) })
        }
        _ => None,
    }
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(|byte| b" \t\r".contains(byte))
}

/// The version, token and payloads of a collection.
fn members_of(whole: &RawValue) -> Option<(Option<String>, Option<String>, Vec<&RawValue>)> {
    let members = serde_json::from_str::<Members<'_>>(whole.get()).ok()?.0;
    let only = |name: &str| {
        let named = |key: &RawValue| serde_json::from_str::<String>(key.get()).ok();
        let mut values = members.iter().filter(|(key, _)| named(key).as_deref() == Some(name));
        let value = values.next().map(|(_, value)| value.get());
        values.next().is_none().then_some(value)
    };
    let string = |name| match only(name)? {
        None => Some(None),
        Some(value) => serde_json::from_str::<Option<String>>(value).ok(),
    };
    let elements = serde_json::from_str::<Vec<&RawValue>>(only("data")??).ok()?;
    Some((string("version")?, string("token")?, elements))
}

fn nests_within(value: &RawValue, levels: usize) -> bool {
    let text = value.get();
    let children: Vec<&RawValue> = match text.as_bytes()[0] {
        b'[' => serde_json::from_str(text).unwrap(),
        b'{' => {
            let members: Members<'_> = serde_json::from_str(text).unwrap();
            members.0.into_iter().map(|(_, value)| value).collect()
        }
        _ => return true,
    };
    levels > 0 && children.into_iter().all(|child| nests_within(child, levels - 1))
}

/// An object's members in order, with duplicates and undecodable keys.
struct Members<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

thread_local! {
    /// One scratch for all cases of a test, so that state left by a body would show.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Lengths of segments besides the real one. All states cross a cut, because a piece of text has
/// cuts at all its bytes.
const SEGMENTS: [usize; 10] = [1, 2, 3, 5, 8, 13, 21, 34, 55, 150];

/// Checks a body in every form.
fn check_forms(body: &[u8]) -> Result<(), TestCaseError> {
    FORMS.into_iter().try_for_each(|form| check(body, form).map(drop))
}

fn check(body: &[u8], form: BodyForm) -> Result<bool, TestCaseError> {
    let expected = oracle(body, form);
    let found_of = |envelope: Envelope<'_>, spans: &[Span]| Expected {
        version: envelope.version.map(Cow::into_owned),
        token: envelope.token.map(Cow::into_owned),
        payloads: spans.iter().map(|span| span.range()).collect(),
    };
    let found = SCRATCH.with_borrow_mut(|scratch| {
        let mut text = body.to_vec();
        let padded = Padded::behind(&mut text);
        let found = parse(padded, form, scratch);
        let found = found.map(|found| found_of(found.envelope, found.payloads));
        assert_eq!(text, body, "it is as before");
        found
    });
    let shown = format!("{form:?}: {}", body.escape_ascii());
    for segment_bytes in SEGMENTS {
        let in_segments = parse_in_segments(body, form, segment_bytes, usize::MAX);
        let in_segments = in_segments.map(|(envelope, spans)| found_of(envelope, &spans));
        prop_assert_eq!(&found, &in_segments, "{} bytes: {}", segment_bytes, shown);
    }
    match found {
        Ok(found) => {
            let spans =
                |range: &Range<usize>| Span { start: range.start as u32, end: range.end as u32 };
            let spans: Vec<Span> = found.payloads.iter().map(spans).collect();
            let mut body_marked = body.to_vec();
            let marked = mark_spans(&mut body_marked, &spans);
            prop_assert_eq!(&marked_spans(&body_marked, marked), &spans, "{}", shown);
            prop_assert!(spans.iter().all(|span| body_marked[span.range()] == body[span.range()]));
            prop_assert_eq!(Some(found), expected, "{}", shown);
            Ok(true)
        }
        Err(error) => {
            check_error(body, form, &error)?;
            prop_assert_eq!(None, expected, "{}: {}", error, shown);
            Ok(false)
        }
    }
}

/// What `serde_json` says of a text, or of the first bad one of its lines, and where.
fn judged(text: &str, form: BodyForm) -> Result<(), (String, BodyPosition)> {
    let judge = |text: &str, lines_before: usize| {
        let Err(error) = serde_json::from_str::<&RawValue>(text) else { return Ok(()) };
        let at = BodyPosition { line: lines_before + error.line(), column: error.column() };
        let what = error.to_string().split(" at line").next().unwrap_or_default().to_owned();
        Err((what, at))
    };
    if form != BodyForm::Lines {
        return judge(text, 0);
    }
    let lines = text.split('\n').enumerate().filter(|(_, line)| !is_blank(line.as_bytes()));
    lines.into_iter().try_for_each(|(before, line)| judge(line, before))
}

/// `serde_json` says the same of what is not JSON, and finds nothing before any other error.
fn check_error(body: &[u8], form: BodyForm, error: &ParseError) -> Result<(), TestCaseError> {
    let (text, shown) = (error.to_string(), format!("{form:?}: {}", body.escape_ascii()));
    prop_assert!(text.len() < 160 && text.is_ascii(), "{}", text);
    prop_assert!(!text.contains(|c: char| c.is_ascii_control()), "{}", text);
    let judged = std::str::from_utf8(body).map(|text| judged(text, form));
    match (error, judged) {
        (ParseError::Empty(_) | ParseError::ByteOrderMark, _) => {}
        (ParseError::NotJson { what, at } | ParseError::CutLine { what, at }, Ok(judged)) => {
            prop_assert_eq!(judged.err(), Some((what.to_string(), *at)), "{}", shown);
            let is_cut = matches!(error, ParseError::CutLine { .. });
            prop_assert_eq!(is_cut, form == BodyForm::Lines && what.starts_with("EOF"));
        }
        (ParseError::SecondValue(at), Ok(judged)) => {
            let trailing = Some(("trailing characters".to_owned(), *at));
            prop_assert_eq!(judged.err(), trailing, "{}", shown);
        }
        (ParseError::NotUtf8(at), Err(theirs)) => {
            let before = &body[..theirs.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            let column = 1 + before.iter().rev().take_while(|byte| **byte != b'\n').count();
            prop_assert_eq!(*at, BodyPosition { line, column }, "{}", shown);
        }
        (ParseError::NotUtf8(_), Ok(_)) => prop_assert!(false, "{text}: {shown}"),
        (ParseError::DataMissing | ParseError::NotUnicode { .. }, judged) => {
            prop_assert!(judged.is_ok_and(|judged| judged.is_ok()), "{}: {}", text, shown);
        }
        (_, Ok(Err((_, theirs)))) => {
            let place = text.split("line ").nth(1).expect("it has a position");
            let mut numbers = place.split(|c: char| !c.is_ascii_digit());
            let line = numbers.next().and_then(|number| number.parse::<usize>().ok());
            let column = numbers.filter_map(|number| number.parse::<usize>().ok()).next();
            let ours = (line.expect("a line"), column.expect("a column"));
            prop_assert!(ours <= (theirs.line, theirs.column), "{}: {}", text, shown);
        }
        (_, Ok(Ok(())) | Err(_)) => {}
    }
    Ok(())
}

// Boxed, because the generated code of one within another takes more of the stack than a test's
// thread has.
fn space() -> BoxedStrategy<String> {
    prop_oneof![5 => Just(String::new()), 1 => "[ \t\r\n]{1,3}", 1 => " {0,70}"].boxed()
}

fn number() -> BoxedStrategy<String> {
    prop_oneof![
        6 => "-?(0|[1-9][0-9]{0,3})",
        2 => r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?",
        1 => select(vec![
            "9223372036854775807", "-9223372036854775808", "-9223372036854775809",
            "18446744073709551615", "18446744073709551616", "1e308", "1e400", "0e999999",
        ]).prop_map(str::to_owned),
    ]
    .boxed()
}

fn string() -> BoxedStrategy<String> {
    let piece = prop_oneof![
        8 => "[a-z ,:]{1,8}",
        2 => select(vec![
            "{", "}", "[", "]", "/", "\\\\", "\\\"", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t",
            "\u{7f}", "é", "漢", "𝄞", "\\ud834\\udd1e", "\\u0000", "\\u0064ata",
        ]).prop_map(str::to_owned),
        1 => "\\\\u[0-9a-fA-F]{4}",
        1 => "\\\\ud[89a-f][0-9]{2}",
    ];
    let pieces = prop::collection::vec(piece, 0..5);
    pieces.prop_map(|pieces| format!("\"{}\"", pieces.concat())).boxed()
}

fn value() -> BoxedStrategy<String> {
    let leaf = prop_oneof![
        3 => number(),
        3 => string(),
        1 => select(vec!["true", "false", "null", "[]", "{}"]).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        let key = prop_oneof![string(), Just("\"data\"".to_owned())];
        prop_oneof![
            array(inner.clone(), 5),
            prop::collection::vec(member(key, inner), 0..5).prop_map(object),
        ]
    })
    .boxed()
}

fn padded(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (space(), value, space()).prop_map(|(before, value, after)| before + &value + &after)
}

fn array(value: impl Strategy<Value = String>, len_max: usize) -> impl Strategy<Value = String> {
    let elements = prop::collection::vec(padded(value), 0..=len_max);
    (elements, space()).prop_map(|(elements, space)| {
        let inside = if elements.is_empty() { space } else { elements.join(",") };
        format!("[{inside}]")
    })
}

fn member(
    key: impl Strategy<Value = String>,
    value: impl Strategy<Value = String>,
) -> impl Strategy<Value = String> {
    (padded(key), padded(value)).prop_map(|(key, value)| key + ":" + &value)
}

fn object(members: Vec<String>) -> String {
    format!("{{{}}}", members.join(","))
}

/// A name, each of its letters escaped or not.
fn name(name: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![4 => Just(0), 1 => any::<u8>()].prop_map(move |escaped| {
        let letter = |(at, letter): (usize, char)| match escaped >> at & 1 {
            0 => letter.to_string(),
            _ => format!("\\u{:04x}", u32::from(letter)),
        };
        format!("\"{}\"", name.chars().enumerate().map(letter).collect::<String>())
    })
}

/// A collection in any form that a client may send.
fn document() -> impl Strategy<Value = String> {
    let payloads = member(name("data"), array(value(), 6));
    let sometimes =
        |name_: &'static str| prop::option::weighted(0.4, member(name(name_), string()));
    let unknown = prop::collection::vec(member(string(), value()), 0..3);
    (payloads, sometimes("version"), sometimes("token"), unknown, space(), space()).prop_flat_map(
        |(payloads, version, token, mut members, before, after)| {
            members.push(payloads);
            members.extend(version);
            members.extend(token);
            Just(members)
                .prop_shuffle()
                .prop_map(move |members| format!("{before}{}{after}", object(members)))
        },
    )
}

/// Payloads on lines, some of which are blank.
fn lines() -> impl Strategy<Value = String> {
    let value = padded(value()).prop_map(|value| value.replace('\n', " "));
    let line = prop_oneof![4 => value, 1 => "[ \t\r]{0,3}"];
    let ended = (line.clone(), select(vec!["\n", "\r\n", "\n\n"]));
    let ended = ended.prop_map(|(line, end)| line + end);
    let last = prop_oneof![Just(String::new()), line];
    (prop::collection::vec(ended, 0..8), last).prop_map(|(lines, last)| lines.concat() + &last)
}

/// A body of any form, and the form.
fn body() -> impl Strategy<Value = (String, BodyForm)> {
    let members = prop::collection::vec(member(string(), value()), 0..5);
    prop_oneof![
        2 => document().prop_map(|body| (body, PLAIN)),
        1 => padded(array(value(), 6)).prop_map(|body| (body, BodyForm::Array)),
        1 => padded(members.prop_map(object)).prop_map(|body| (body, BodyForm::Object)),
        2 => lines().prop_map(|body| (body, BodyForm::Lines)),
    ]
}

const FRAGMENTS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\"data\"",
    "\"data\":[",
    "\"token\":\"t\"",
    "\"version\":",
    "null",
    "true",
    "false",
    "1",
    "0",
    "-",
    ".",
    "e",
    "E+",
    "1e400",
    "01",
    "18446744073709551616",
    " ",
    "\n",
    "\r\n",
    "\r",
    "}\n{",
    "\n\n",
    "\0",
    "\u{1e}",
    "\u{1}",
    "\u{c}",
    "\u{feff}",
    "\u{a0}",
    "/",
    "'",
    "\\u",
    "d800",
    "\\ud800",
    "\\\"",
    "\"x\"",
    "\"\"",
    "é",
];

#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Delete(Index, usize),
    Truncate(Index),
    Repeat(Index, usize),
}

impl Mutation {
    fn any() -> impl Strategy<Value = Mutation> {
        let at = any::<Index>;
        let fragment = select(FRAGMENTS).prop_map(|fragment| fragment.as_bytes().to_vec());
        prop_oneof![
            3 => (at(), any::<u8>()).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
            4 => (at(), fragment).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
            1 => (at(), any::<u8>()).prop_map(|(at, byte)| Mutation::Insert(at, vec![byte])),
            3 => (at(), 1..4_usize).prop_map(|(at, len)| Mutation::Delete(at, len)),
            1 => at().prop_map(Mutation::Truncate),
            2 => (at(), 1..40_usize).prop_map(|(at, len)| Mutation::Repeat(at, len)),
        ]
    }

    fn apply(&self, body: &mut Vec<u8>) {
        let offset = |at: &Index| at.index(body.len() + 1);
        match self {
            Mutation::Flip(at, bits) => {
                let at = offset(at);
                body[at..].iter_mut().take(1).for_each(|byte| *byte ^= bits);
            }
            Mutation::Insert(at, bytes) => {
                let at = offset(at);
                body.splice(at..at, bytes.iter().copied());
            }
            Mutation::Delete(at, len) => {
                let at = offset(at);
                body.drain(at..body.len().min(at + len));
            }
            Mutation::Truncate(at) => body.truncate(offset(at)),
            Mutation::Repeat(at, len) => {
                let at = offset(at);
                let again = body[at..body.len().min(at + len)].to_vec();
                body.splice(at..at, again);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn bodies_are_split_as_serde_json_splits_them((body, form) in body()) {
        // Names of a collection may clash or hold half a surrogate pair, but the grammar is right.
        prop_assert_eq!(judged(&body, form), Ok(()));
        prop_assert!(check(body.as_bytes(), form)? || form == PLAIN);
        check_forms(body.as_bytes())?;
    }

    #[test]
    fn mutated_bodies_are_judged_as_serde_json_judges_them(
        (body, form) in body(),
        mutations in prop::collection::vec(Mutation::any(), 1..4),
    ) {
        let mut body = body.into_bytes();
        for mutation in &mutations {
            mutation.apply(&mut body);
            check(&body, form)?;
        }
    }

    #[test]
    fn fragments_of_json_are_judged_as_serde_json_judges_them(
        fragments in prop::collection::vec(select(FRAGMENTS), 0..12),
        wrapped in any::<bool>(),
    ) {
        let soup = fragments.concat();
        let body = if wrapped { format!("{{\"data\":[{soup}]}}") } else { soup };
        check_forms(body.as_bytes())?;
    }

    #[test]
    fn bytes_are_judged_as_serde_json_judges_them(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        check_forms(&bytes)?;
    }

    #[test]
    fn nesting_is_judged_as_serde_json_judges_it(
        opens in prop::collection::vec(select(vec![("[", "]"), ("{\"a\":", "}")]), 120..132),
        leaf in select(vec!["0", "1e400", "\"\\ud800\""]),
        first in select(vec!["0", "1e400"]),
    ) {
        let open: String = opens.iter().map(|(open, _)| *open).collect();
        let close: String = opens.iter().rev().map(|(_, close)| *close).collect();
        for (form, body) in [
            (PLAIN, format!("{{\"data\":[{first}],\"x\":{open}{leaf}{close}}}")),
            (BodyForm::Array, format!("[{first},{open}{leaf}{close}]")),
            (BodyForm::Lines, format!("{first}\n{open}{leaf}{close}\n{open}")),
            (BodyForm::Lines, format!("{first}\n{open}{leaf}{close}")),
            (BodyForm::Object, format!("{{\"x\":{open}{leaf}{close}}}")),
        ] {
            let accepted = check(body.as_bytes(), form)?;
            // Where all numbers are plain the rule is serde_json's own, not only the oracle's
            // count.
            let lines: Vec<&str> = match form {
                BodyForm::Lines => body.lines().collect(),
                _ => vec![&body],
            };
            let is_value = |text: &&str| serde_json::from_str::<serde_json::Value>(text).is_ok();
            let within_limit = lines.iter().all(is_value);
            prop_assert!((leaf, first) != ("0", "0") || within_limit == accepted);
        }
    }
}
