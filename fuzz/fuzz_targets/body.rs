//! The split of a body, in every form and in segments of any length, against `serde_json`: the same
//! payloads, or both refuse it.
//!
//! How to run it is said in `segment.rs`; this target is called `body`.
//!
//! The first byte of an input says which form it is, the second how long the segments are; the rest
//! is the body.

#![no_main]

use std::cell::RefCell;
use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use millrace::internals::budget::Padded;
use millrace::internals::config::ObjectBody;
use millrace::internals::http::parse::{BodyForm, Envelope, Marks, Parse, ParseError};
use millrace::internals::queue::job::Span;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::StreamDeserializer;
use serde_json::value::RawValue;

/// As `DEPTH_MAX`.
const DEPTH_MAX: usize = 127;

const FORMS: [BodyForm; 5] = [
    BodyForm::ByFirstByte(ObjectBody::Collection),
    BodyForm::ByFirstByte(ObjectBody::Payload),
    BodyForm::Array,
    BodyForm::Lines,
    BodyForm::Object,
];

thread_local! {
    /// Kept from body to body, so that what one leaves behind would show.
    static MARKS: RefCell<Marks> = RefCell::default();
}

fuzz_target!(|input: &[u8]| {
    let [form, segment_bytes, body @ ..] = input else { return };
    let form = FORMS[*form as usize % FORMS.len()];
    let (mut once, mut again) = (body.to_vec(), body.to_vec());
    let cut = split(&mut once, form, 1 + *segment_bytes as usize);
    let whole = split(&mut again, form, 1 << 20);
    assert_eq!(cut, whole, "{form:?}");
    let found = whole.ok().map(|(_, spans)| spans.iter().map(|span| span.range()).collect());
    assert_eq!(found, expected(body, form), "{form:?}");
    assert!(once == body && again == body, "{form:?}: it is as before");
});

fn split(
    body: &mut Vec<u8>,
    form: BodyForm,
    segment_bytes: usize,
) -> Result<(Envelope<'_>, Vec<Span>), ParseError> {
    let bytes = body.len();
    let body = Padded::behind(body);
    let mut parse = Parse::new(body, form, usize::MAX).in_segments_of(segment_bytes);
    let (mut payloads, mut steps) = (Vec::new(), 0);
    MARKS.with_borrow_mut(|marks| {
        loop {
            if let Some(found) = parse.step(marks, &mut payloads) {
                return found.map(|envelope| (envelope, payloads));
            }
            steps += 1;
            assert!(steps <= 4 * (bytes / segment_bytes + 2), "it does not get on");
        }
    })
}

/// Where the payloads are by `serde_json`; `None`: the body is refused.
fn expected(body: &[u8], form: BodyForm) -> Option<Vec<Range<usize>>> {
    let range = |text: &str| {
        let start = text.as_ptr() as usize - body.as_ptr() as usize;
        start..start + text.len()
    };
    if form == BodyForm::Lines {
        let mut found = Vec::new();
        for line in body.split(|byte| *byte == b'\n') {
            let mut values: StreamDeserializer<'_, _, &RawValue> =
                serde_json::Deserializer::from_slice(line).into_iter();
            let Some(value) = values.next() else { continue };
            let text = value.ok()?.get();
            // The next value of a stream needs no space before it, but here there may be none.
            let rest = &line[range(text).end - (line.as_ptr() as usize - body.as_ptr() as usize)..];
            if !rest.iter().all(|byte| b" \t\r".contains(byte)) || depth(text) > DEPTH_MAX {
                return None;
            }
            found.push(range(text));
        }
        return Some(found);
    }
    let text = serde_json::from_slice::<&RawValue>(body).ok()?.get();
    if depth(text) > DEPTH_MAX {
        return None;
    }
    let elements = |text| {
        let elements = serde_json::from_str::<Vec<&RawValue>>(text).ok()?;
        Some(elements.into_iter().map(|value| range(value.get())).collect())
    };
    match (form, text.as_bytes()[0]) {
        (BodyForm::Array | BodyForm::ByFirstByte(_), b'[') => elements(text),
        (BodyForm::Object | BodyForm::ByFirstByte(ObjectBody::Payload), b'{') => {
            Some(vec![range(text)])
        }
        (BodyForm::Collection | BodyForm::ByFirstByte(_), b'{') => elements(data_of(text)?),
        _ => None,
    }
}

/// The deepest nesting of valid JSON.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut bytes) = (0_usize, 0, false, text.bytes());
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The value of `data`, if the envelope is right.
fn data_of(text: &str) -> Option<&str> {
    let members = serde_json::Deserializer::from_str(text).deserialize_map(Members).ok()?;
    let only = |name: &str| {
        let is_named =
            |key: &RawValue| serde_json::from_str::<String>(key.get()).is_ok_and(|key| key == name);
        let mut values = members.iter().filter(|(key, _)| is_named(key));
        let value = values.next().map(|(_, value)| value.get());
        values.next().is_none().then_some(value)
    };
    for name in ["version", "token"] {
        if let Some(value) = only(name)? {
            serde_json::from_str::<Option<String>>(value).ok()?;
        }
    }
    only("data")?
}

/// Reads an object's members in order, with duplicates and undecodable keys.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(&'de RawValue, &'de RawValue)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        // The end was checked before.
        let _none: Option<(IgnoredAny, IgnoredAny)> = map.next_entry()?;
        Ok(members)
    }
}
