//! The records of a commit group. After length, kind and zeros:
//!
//! ```text
//! request  unix_nanos u64 · first seq u64 · count u32 · text u32 · count × length u32 · text · payloads
//! keys     the key template of the group's requests, before them; absent for the default
//! intent   key length u16 · form length u16 · key · form · runs of members
//! done     key
//! ```
//!
//! A request's record holds all its payloads and the parts of their keys that the group's node,
//! core and template do not give. Its `text u32` is the text's length plus one, or 0 without a text.
//! There are two kinds of it: in kind 1 the text is the `version` of the request, in kind 5 it is all
//! values of the request that keys use, with their names ([`RequestValues`]). Kind 5 is written only
//! if there is more than a version, and exists since version 2 of the layout. Journals hold batches: one with an `intent` may be in the store under its key, one
//! with a `done` is stored or dead-lettered.

use std::fmt;

use super::runs::Runs;
use super::{GroupHead, HEAD_BYTES, u32_at, u32_bytes, u64_at};
use crate::key::{REQUEST_VALUES_BYTES_MAX, RequestValues};
use crate::queue::job::{Span, Stamp};

/// Longest key template.
pub const KEYS_BYTES_MAX: usize = 4 << 10;
/// Longest `version` of a request in kind 1: earlier versions of this program did not shorten it.
const VERSION_BYTES_MAX: usize = 1 << 20;
/// Longest key of a batch: the limit of S3.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Longest text that describes the form of a batch's object.
pub const FORM_BYTES_MAX: usize = 256;

/// Size of the length, kind and zeros that every record begins with.
const START_BYTES: usize = 8;
/// Size of a request's record before its lengths.
const REQUEST_HEAD_BYTES: usize = 32;
/// Size of an intent's record before its key.
const INTENT_HEAD_BYTES: usize = 12;

const REQUEST: u8 = 1;
const KEYS: u8 = 2;
const INTENT: u8 = 3;
const DONE: u8 = 4;
const REQUEST_WITH_VALUES: u8 = 5;

/// A record in a file.
#[derive(Clone, Copy, Debug)]
pub enum SpoolRecord<'a> {
    Request(RequestRecord<'a>),
    Keys(&'a str),
    Intent(IntentRecord<'a>),
    /// The batch with this key is stored or dead-lettered.
    Done(&'a str),
}

/// The record at the start of `bytes` and its length; `None` unless it is intact and well-formed.
pub(super) fn read_record(bytes: &[u8]) -> Option<(SpoolRecord<'_>, usize)> {
    let start = bytes.get(..START_BYTES)?;
    let length = u32_at(start, 0) as usize;
    let record = bytes.get(..length)?;
    let body = record.get(START_BYTES..)?;
    let [kind, 0, 0, 0] = start[4..] else { return None };
    let entry = match kind {
        REQUEST | REQUEST_WITH_VALUES => SpoolRecord::Request(RequestRecord::read(record)?),
        KEYS => SpoolRecord::Keys(text(body, KEYS_BYTES_MAX)?),
        INTENT => SpoolRecord::Intent(IntentRecord::read(record)?),
        DONE => SpoolRecord::Done(text(body, KEY_BYTES_MAX)?),
        _ => return None,
    };
    Some((entry, length))
}

fn text(bytes: &[u8], bytes_max: usize) -> Option<&str> {
    str::from_utf8(bytes).ok().filter(|text| text.len() <= bytes_max)
}

/// All records in the bytes of a commit group that
/// [`CommitGroup::check`](super::CommitGroup::check) has passed.
pub fn group_records<'a>(
    head: &GroupHead,
    bytes: &'a [u8],
) -> impl Iterator<Item = SpoolRecord<'a>> {
    let mut rest = &bytes[HEAD_BYTES..HEAD_BYTES + head.body_bytes as usize];
    std::iter::from_fn(move || {
        let (entry, length) = read_record(rest)?;
        rest = &rest[length..];
        Some(entry)
    })
}

/// The requests among these records.
pub fn group_requests<'a>(
    head: &GroupHead,
    bytes: &'a [u8],
) -> impl Iterator<Item = RequestRecord<'a>> {
    group_records(head, bytes).filter_map(|entry| match entry {
        SpoolRecord::Request(record) => Some(record),
        SpoolRecord::Keys(_) | SpoolRecord::Intent(_) | SpoolRecord::Done(_) => None,
    })
}

/// The key template of its requests; `None`: the default.
pub fn keys_of<'a>(head: &GroupHead, bytes: &'a [u8]) -> Option<&'a str> {
    match group_records(head, bytes).next() {
        Some(SpoolRecord::Keys(keys)) => Some(keys),
        _ => None,
    }
}

/// The version of the layout that a reader of these records must know: the lowest one that has all
/// their kinds.
pub(super) fn layout_version(mut records: &[u8]) -> u8 {
    while let Some(start) = records.get(..START_BYTES) {
        if start[4] == REQUEST_WITH_VALUES {
            return 2;
        }
        records = records.get(u32_at(start, 0).max(1) as usize..).unwrap_or_default();
    }
    1
}

/// The text of a request's record.
#[derive(Clone, Copy)]
enum RequestText<'a> {
    None,
    Version(&'a str),
    Values(&'a str),
}

/// One request in a segment.
#[derive(Clone, Copy)]
pub struct RequestRecord<'a> {
    /// Stamp of its first payload.
    pub first: Stamp,
    text: RequestText<'a>,
    lengths: &'a [u8],
    /// All payloads, concatenated.
    pub payloads: &'a [u8],
}

impl<'a> RequestRecord<'a> {
    /// Parses a whole record.
    fn read(record: &'a [u8]) -> Option<RequestRecord<'a>> {
        let (head, rest) = record.split_at_checked(REQUEST_HEAD_BYTES)?;
        let (count, text_bytes) = (u32_at(head, 24) as usize, u32_at(head, 28) as usize);
        let (lengths, rest) = rest.split_at_checked(count.checked_mul(4)?)?;
        let (text, payloads) = match text_bytes.checked_sub(1) {
            None => (RequestText::None, rest),
            Some(length) => {
                let (bytes, payloads) = rest.split_at_checked(length)?;
                let text = match head[4] {
                    REQUEST => RequestText::Version(text(bytes, VERSION_BYTES_MAX)?),
                    _ => {
                        let text = text(bytes, REQUEST_VALUES_BYTES_MAX)?;
                        RequestText::Values(RequestValues::is_text(text).then_some(text)?)
                    }
                };
                (text, payloads)
            }
        };
        let first = Stamp { unix_nanos: u64_at(head, 8), seq: u64_at(head, 16) };
        let record = RequestRecord { first, text, lengths, payloads };
        // Later code trusts the lengths. Summed as u64, because corrupt ones could overflow.
        let sum: u64 = record.lengths().map(u64::from).sum();
        (sum == payloads.len() as u64).then_some(record)
    }

    fn lengths(self) -> impl ExactSizeIterator<Item = u32> + 'a {
        self.lengths.chunks_exact(4).map(|length| u32_at(length, 0))
    }

    /// The span of each payload in [`RequestRecord::payloads`].
    pub fn spans(self) -> impl ExactSizeIterator<Item = Span> + 'a {
        let mut end = 0;
        self.lengths().map(move |length| {
            let start = end;
            end += length;
            Span { start, end }
        })
    }

    /// What keys use of the request.
    pub fn values(self) -> RequestValues {
        match self.text {
            RequestText::None => RequestValues::default(),
            RequestText::Version(version) => RequestValues::of_version(version),
            RequestText::Values(text) => {
                RequestValues::of_text(text).expect("checked when it was read")
            }
        }
    }

    pub fn count(self) -> u32 {
        (self.lengths.len() / 4) as u32
    }
}

impl fmt::Debug for RequestRecord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} × {}", self.first, self.count())
    }
}

/// Size of a request's record with `count` payloads of `payload_bytes` in total.
pub fn record_bytes(count: usize, payload_bytes: usize, values: &RequestValues) -> usize {
    REQUEST_HEAD_BYTES + 4 * count + written_text(values).1.len() + payload_bytes
}

/// The kind of a request's record, and its text.
fn written_text(values: &RequestValues) -> (u8, &str) {
    if values.bytes() == 0 {
        return (REQUEST, "");
    }
    match values.version_only() {
        Some(version) => (REQUEST, version),
        None => (REQUEST_WITH_VALUES, values.text()),
    }
}

/// Writes the record of `payloads` to the start of `out` and returns its length. `first` is the
/// stamp of the first payload; the others follow in sequence.
pub fn write_record<'a>(
    out: &mut [u8],
    first: Stamp,
    values: &RequestValues,
    payloads: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
) -> usize {
    let count = payloads.len();
    let (head, rest) = out.split_at_mut(REQUEST_HEAD_BYTES);
    let (lengths, rest) = rest.split_at_mut(4 * count);
    let (kind, text) = written_text(values);
    let (room, bytes) = rest.split_at_mut(text.len());
    room.copy_from_slice(text.as_bytes());
    let mut at = 0;
    for (payload, length) in payloads.zip(lengths.chunks_exact_mut(4)) {
        length.copy_from_slice(&u32_bytes(payload.len()));
        bytes[at..at + payload.len()].copy_from_slice(payload);
        at += payload.len();
    }
    let length = REQUEST_HEAD_BYTES + 4 * count + text.len() + at;
    write_start(head, kind, length);
    head[8..16].copy_from_slice(&first.unix_nanos.to_le_bytes());
    head[16..24].copy_from_slice(&first.seq.to_le_bytes());
    head[24..28].copy_from_slice(&u32_bytes(count));
    head[28..32].copy_from_slice(&u32_bytes(if text.is_empty() { 0 } else { text.len() + 1 }));
    length
}

fn write_start(out: &mut [u8], kind: u8, length: usize) {
    out[..4].copy_from_slice(&u32_bytes(length));
    out[4..8].copy_from_slice(&[kind, 0, 0, 0]);
}

/// The payloads at `spans` of a body.
pub fn slices<'a>(
    body: &'a [u8],
    spans: &'a [Span],
) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone {
    spans.iter().map(|span| &body[span.range()])
}

/// Size of a key template's record; 0 for the default, which has none.
pub fn keys_bytes(keys: Option<&str>) -> usize {
    keys.map_or(0, |keys| START_BYTES + keys.len())
}

/// Writes a key template's record to the start of `out` and returns its length.
pub fn write_keys(out: &mut [u8], keys: Option<&str>) -> usize {
    keys.map_or(0, |keys| {
        assert!(keys.len() <= KEYS_BYTES_MAX, "longer templates are refused");
        write_text(out, KEYS, keys)
    })
}

fn write_text(out: &mut [u8], kind: u8, text: &str) -> usize {
    let length = START_BYTES + text.len();
    write_start(out, kind, length);
    out[START_BYTES..length].copy_from_slice(text.as_bytes());
    length
}

/// The intent of a batch in a journal.
#[derive(Clone, Copy, Debug)]
pub struct IntentRecord<'a> {
    pub key: &'a str,
    /// Format and compression of its object, in the writer's notation.
    pub form: &'a str,
    /// Its members in the order of the object's lines.
    pub runs: Runs<'a>,
}

impl<'a> IntentRecord<'a> {
    fn read(record: &'a [u8]) -> Option<IntentRecord<'a>> {
        let (head, rest) = record.split_at_checked(INTENT_HEAD_BYTES)?;
        let length = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
        let (key, rest) = rest.split_at_checked(length(8))?;
        let (form, runs) = rest.split_at_checked(length(10))?;
        Some(IntentRecord {
            key: text(key, KEY_BYTES_MAX)?,
            form: text(form, FORM_BYTES_MAX)?,
            runs: Runs::check(runs)?,
        })
    }
}

/// Makes the intent record of a batch with these members.
///
/// # Panics
/// Key or form is too long; callers prevent that.
pub fn intent_record(key: &str, form: &str, runs: &[u8]) -> Box<[u8]> {
    assert!(key.len() <= KEY_BYTES_MAX, "the key of a batch is too long: {key}");
    assert!(form.len() <= FORM_BYTES_MAX, "the form of a batch is too long: {form}");
    let mut head = [0; INTENT_HEAD_BYTES];
    let length = head.len() + key.len() + form.len() + runs.len();
    write_start(&mut head, INTENT, length);
    head[8..10].copy_from_slice(&(key.len() as u16).to_le_bytes());
    head[10..12].copy_from_slice(&(form.len() as u16).to_le_bytes());
    [&head, key.as_bytes(), form.as_bytes(), runs].concat().into()
}

/// Size of the DONE record of the batch with this key.
pub fn done_bytes(key: &str) -> usize {
    START_BYTES + key.len()
}

/// Writes the DONE record to the start of `out` and returns its length.
pub fn write_done(out: &mut [u8], key: &str) -> usize {
    write_text(out, DONE, key)
}
