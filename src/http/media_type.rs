//! The form of a body that a request's `content-type` names (RFC 9110, sections 5.5 and 8.3).
//!
//! Types and subtypes are compared without regard to case, parameters are ignored: JSON is UTF-8
//! whatever a `charset` says. A type that is not known here, or is none, says nothing: the body's
//! first byte decides. The field is there once in a good request; where it is repeated or a list,
//! others may take the first or the last of its members, so all of them must mean the same.

use super::fields::{Fields, KnownField};
use super::parse::BodyForm;
use crate::config::ObjectBody;

/// The content types that name a form: the de-facto ones of JSON lines, and those of CloudEvents
/// (HTTP protocol binding 1.0.2, sections 3.2 and 3.3, for structured and batched content).
const NAMED: [(&str, BodyForm); 6] = [
    ("application/x-ndjson", BodyForm::Lines),
    ("application/ndjson", BodyForm::Lines),
    ("application/jsonl", BodyForm::Lines),
    ("application/jsonlines", BodyForm::Lines),
    ("application/cloudevents+json", BodyForm::Object),
    ("application/cloudevents-batch+json", BodyForm::Array),
];

/// It names no form.
const COMMONEST: &[u8] = b"application/json";

/// `content-type` names several types of different meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("content-type names several types that differ in what the body is: send one")]
pub struct AmbiguousType;

/// The form of a body that comes with these fields. `object` is what an object is where
/// `content-type` does not say it.
///
/// # Errors
/// The field has several members, which do not mean the same.
pub fn form_of(fields: &impl Fields, object: ObjectBody) -> Result<BodyForm, AmbiguousType> {
    let values = || fields.values(KnownField::ContentType);
    // What most requests say, in one comparison.
    let mut all = values();
    if let (Some(value), None) = (all.next(), all.next())
        && value == COMMONEST
    {
        return Ok(BodyForm::ByFirstByte(object));
    }
    let mut form = None;
    for value in values() {
        let mut rest = value;
        while !rest.is_empty() {
            let member;
            (member, rest) = split_member(rest);
            if member.trim_ascii().is_empty() {
                continue;
            }
            let named = named(member).unwrap_or(BodyForm::ByFirstByte(object));
            if form.replace(named).is_some_and(|before| before != named) {
                return Err(AmbiguousType);
            }
        }
    }
    Ok(form.unwrap_or(BodyForm::ByFirstByte(object)))
}

/// The first member of a list, and what follows its comma. One in a quoted string is text.
fn split_member(list: &[u8]) -> (&[u8], &[u8]) {
    let (mut is_quoted, mut at) = (false, 0);
    while let Some(byte) = list.get(at) {
        match byte {
            b',' if !is_quoted => return (&list[..at], &list[at + 1..]),
            b'"' => is_quoted = !is_quoted,
            b'\\' if is_quoted => at += 1,
            _ => {}
        }
        at += 1;
    }
    (list, &[])
}

/// The form that a media type with its parameters names.
fn named(media_type: &[u8]) -> Option<BodyForm> {
    let end = media_type.iter().position(|byte| *byte == b';').unwrap_or(media_type.len());
    let name = media_type[..end].trim_ascii();
    let (_, form) = NAMED.iter().find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()))?;
    Some(*form)
}

#[cfg(test)]
mod tests {
    use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};

    use super::*;
    use BodyForm::{Array, Lines, Object};

    const PLAIN: BodyForm = BodyForm::ByFirstByte(ObjectBody::Collection);

    fn of(values: &[&[u8]]) -> Result<BodyForm, AmbiguousType> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_TYPE, HeaderValue::from_bytes(value).unwrap());
        }
        let form = form_of(&headers, ObjectBody::Collection);
        let other = form_of(&headers, ObjectBody::Payload);
        let as_other = |form| match form {
            PLAIN => BodyForm::ByFirstByte(ObjectBody::Payload),
            named => named,
        };
        assert_eq!(other, form.map(as_other), "BODY concerns no type that is named");
        form
    }

    #[test]
    fn a_type_names_a_form_in_any_case_and_with_any_parameters() {
        for (value, form) in [
            ("application/x-ndjson", Lines),
            ("application/ndjson", Lines),
            ("application/jsonl", Lines),
            ("application/jsonlines", Lines),
            ("application/cloudevents+json", Object),
            ("application/cloudevents-batch+json", Array),
            ("Application/X-NDJSON", Lines),
            (" application/jsonl\t", Lines),
            ("application/x-ndjson;charset=utf-8", Lines),
            ("application/x-ndjson ; charset=\"utf-16\" ; x", Lines),
            ("application/cloudevents+json; charset=UTF-8", Object),
            ("application/x-ndjson;", Lines),
            ("application/x-ndjson; a=\"b, text/plain\"", Lines),
            ("application/x-ndjson; a=\"\\\", text/plain\"", Lines),
            ("application/x-ndjson; a=\"never closed, text/plain", Lines),
            ("", PLAIN),
            ("application/json", PLAIN),
            ("application/json; profile=\"application/x-ndjson\"", PLAIN),
            ("application/json; a=\"b, application/x-ndjson\"", PLAIN),
            ("application/x-www-form-urlencoded", PLAIN),
            ("text/plain; charset=latin1", PLAIN),
            ("application/json-seq", PLAIN),
            ("application/x-ndjson2", PLAIN),
            ("application/x-ndjso", PLAIN),
            ("text/x-ndjson", PLAIN),
            ("application / x-ndjson", PLAIN),
            ("x-ndjson", PLAIN),
            ("application/*", PLAIN),
            ("??", PLAIN),
            (";", PLAIN),
            (";application/x-ndjson", PLAIN),
        ] {
            assert_eq!(of(&[value.as_bytes()]), Ok(form), "{value}");
        }
        assert_eq!(of(&[]), Ok(PLAIN));
        assert_eq!(of(&[b"application/x-ndjson\xff"]), Ok(PLAIN));
    }

    #[test]
    fn several_types_must_mean_the_same() {
        let ndjson: &[u8] = b"application/x-ndjson";
        for (values, form) in [
            (&[ndjson, ndjson][..], Ok(Lines)),
            (&[ndjson, b"APPLICATION/JSONL; a=b"], Ok(Lines)),
            (&[b"application/jsonl, application/x-ndjson"], Ok(Lines)),
            (&[b"application/json", b"text/plain"], Ok(PLAIN)),
            (&[b"application/json,text/plain,??"], Ok(PLAIN)),
            // Empty members of a list mean nothing.
            (&[b"", ndjson], Ok(Lines)),
            (&[b",application/x-ndjson, ,"], Ok(Lines)),
            (&[b"application/json", ndjson], Err(AmbiguousType)),
            (&[ndjson, b"application/json"], Err(AmbiguousType)),
            (&[b"application/x-ndjson, text/plain"], Err(AmbiguousType)),
            (&[b"application/x-ndjson, ??"], Err(AmbiguousType)),
            (&[ndjson, b"application/cloudevents+json"], Err(AmbiguousType)),
            (&[b"application/x-ndjson; a=\"b\", text/plain"], Err(AmbiguousType)),
        ] {
            assert_eq!(of(values), form, "{values:?}");
        }
    }
}
