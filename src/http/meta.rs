//! `META`: stores each payload as `{"meta":{…},"payload":…}`, the payload's bytes as they were sent.
//!
//! Payloads are wrapped at admission, into one new buffer that is charged like a body, and from
//! there on they are payloads as any other: queue, spool, batches and dead letters know nothing of
//! it, and a crash loses no meta. That copy is what the feature costs. All payloads of a request
//! have the same meta, so it is written once and copied.
//!
//! Members are named and ordered as the entries of `META`. A value that is missing is `null`, so
//! all objects have the same members:
//!
//! - `received_at`: when the request was complete, RFC 3339 in UTC with six digits of the second.
//!   The same time is in the key (`{unix_nanos}`).
//! - `client`: the exact address.
//! - `token`: the name of the request's token.
//! - `header:NAME`: the header's value. Several with that name are joined by a comma and a space,
//!   as RFC 9110, section 5.3 says; bytes that are not UTF-8 become U+FFFD; after
//!   [`META_HEADER_BYTES_MAX`] bytes it is cut, between two characters.

use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;

use time::OffsetDateTime;

use super::body::BodyError;
use super::body_memory::BodyMemory;
use super::fields::Fields;
use crate::budget::ChargedBytes;
use crate::config::{META_HEADER_BYTES_MAX, MetaEntry};
use crate::queue::job::Span;
use crate::rt;

const START: &[u8] = b"{\"meta\":{";
const MIDDLE: &[u8] = b"},\"payload\":";
const END: &[u8] = b"}";

/// Before each wrapped payload stands its length, so that a request that waits for room keeps the
/// buffer only: its spans could weigh as much again.
const LENGTH_BYTES: usize = size_of::<u32>();

/// Longest wrapped payloads of a small body that are written in one turn of the core; it takes 0.1
/// ms.
pub(super) const WRAPPED_ONCE_BYTES: usize = 256 << 10;

/// Bytes written between two looks at the clock.
const PIECE_BYTES: usize = 64 << 10;

/// Room for `"2026-11-30T08:00:00.123456Z"`.
const TIME_BYTES: usize = 29;

/// Longest `"NAME"` of a token.
const TOKEN_BYTES_MAX: usize = 2 + 64;

/// The meta of a request whose head is known: its time and its token may not be.
pub(super) struct MetaDraft {
    text: Vec<u8>,
    /// Where the time goes.
    received_at: Option<usize>,
    /// Where the token's name goes, which is not there yet.
    token: Option<usize>,
}

/// What clients send is in no log.
impl fmt::Debug for MetaDraft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MetaDraft(*** {} bytes)", self.text.len())
    }
}

impl MetaDraft {
    pub(super) fn of(
        entries: &[MetaEntry],
        fields: &impl Fields,
        client: Option<IpAddr>,
    ) -> MetaDraft {
        let mut draft = MetaDraft { text: START.to_vec(), received_at: None, token: None };
        for (number, entry) in entries.iter().enumerate() {
            draft.add(entry, fields, client, if number > 0 { "," } else { "" });
        }
        draft.text.extend_from_slice(MIDDLE);
        draft
    }

    fn add(
        &mut self,
        entry: &MetaEntry,
        fields: &impl Fields,
        client: Option<IpAddr>,
        comma: &str,
    ) {
        let text = &mut self.text;
        let written = match entry {
            MetaEntry::ReceivedAt => write!(text, "{comma}\"received_at\":"),
            MetaEntry::Client => match client {
                Some(address) => write!(text, "{comma}\"client\":\"{address}\""),
                None => write!(text, "{comma}\"client\":null"),
            },
            MetaEntry::Token => write!(text, "{comma}\"token\":"),
            MetaEntry::Header(name) => write!(text, "{comma}\"header:{name}\":"),
        };
        written.expect("memory takes it");
        match entry {
            MetaEntry::ReceivedAt => {
                self.received_at = Some(text.len());
                text.resize(text.len() + TIME_BYTES, b' ');
            }
            MetaEntry::Token => self.token = Some(text.len()),
            MetaEntry::Header(name) => write_header(fields.named(name), text),
            MetaEntry::Client => {}
        }
    }

    /// The most bytes that these payloads take once they are wrapped.
    pub(super) fn wrapped_bytes_max(&self, payloads: &[Span]) -> usize {
        let beside = LENGTH_BYTES + self.text.len() + TOKEN_BYTES_MAX + END.len();
        payload_bytes(payloads) + payloads.len() * beside
    }

    /// The wrapper of a request that came at `unix_nanos` with a token of this name.
    pub(super) fn finish(mut self, token: Option<&str>, unix_nanos: u64) -> Wrapper {
        if let Some(at) = self.received_at {
            write_time(unix_nanos, &mut self.text[at..at + TIME_BYTES]);
        }
        if let Some(at) = self.token {
            let mut name = Vec::new();
            match token {
                Some(token) => write_text([token.as_bytes()].into_iter(), usize::MAX, &mut name),
                None => name.extend_from_slice(b"null"),
            }
            self.text.splice(at..at, name);
        }
        Wrapper { before: self.text }
    }
}

/// Writes a header's value, or `null` if there is none.
fn write_header<'a>(values: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    let mut values = values.peekable();
    if values.peek().is_none() {
        return out.extend_from_slice(b"null");
    }
    let joined = values.enumerate().flat_map(|(number, value)| {
        let comma: &[u8] = if number > 0 { b", " } else { b"" };
        [comma, value]
    });
    write_text(joined, META_HEADER_BYTES_MAX, out);
}

/// Writes a JSON string (RFC 8259, section 7) of at most `max` bytes before they are escaped.
fn write_text<'a>(pieces: impl Iterator<Item = &'a [u8]>, max: usize, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut left = max;
    let chars = pieces.flat_map(<[u8]>::utf8_chunks).flat_map(|chunk| {
        let broken = (!chunk.invalid().is_empty()).then_some(char::REPLACEMENT_CHARACTER);
        chunk.valid().chars().chain(broken)
    });
    for char in chars {
        let Some(rest) = left.checked_sub(char.len_utf8()) else { break };
        left = rest;
        match char {
            '"' | '\\' => out.extend_from_slice(&[b'\\', char as u8]),
            '\t' => out.extend_from_slice(b"\\t"),
            '\0'..='\x1f' => write!(out, "\\u{:04x}", u32::from(char)).expect("memory takes it"),
            _ => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

/// Writes a time of RFC 3339, in quotes.
fn write_time(unix_nanos: u64, mut out: &mut [u8]) {
    let unix_s = (unix_nanos / 1_000_000_000) as i64;
    let time = OffsetDateTime::from_unix_timestamp(unix_s).expect("64 bits end in 2554");
    let (date, micros) = (time.date(), unix_nanos / 1_000 % 1_000_000);
    write!(
        out,
        "\"{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{micros:06}Z\"",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
    .expect("all parts have fixed widths");
}

fn payload_bytes(payloads: &[Span]) -> usize {
    payloads.iter().map(|span| span.range().len()).sum()
}

/// Wraps the payloads of one request.
pub(super) struct Wrapper {
    /// Everything before a payload.
    before: Vec<u8>,
}

impl Wrapper {
    /// The bytes that these payloads take once they are wrapped.
    pub(super) fn wrapped_bytes(&self, payloads: &[Span]) -> usize {
        let beside = LENGTH_BYTES + self.before.len() + END.len();
        payload_bytes(payloads) + payloads.len() * beside
    }

    /// Wraps the payloads of a small body in one turn. Returns their buffer and their spans in it.
    ///
    /// # Errors
    /// [`BodyError::MemoryExhausted`].
    pub(super) fn wrap_small(
        &self,
        memory: &BodyMemory,
        body: &[u8],
        payloads: &[Span],
    ) -> Result<(ChargedBytes, Vec<Span>), BodyError> {
        let mut out = memory.buffer_of(self.wrapped_bytes(payloads))?;
        let mut spans = Vec::with_capacity(payloads.len());
        for span in payloads {
            let start = self.begin(span.range().len(), &mut out);
            put(&body[span.range()], &mut out);
            spans.push(end(start, &mut out));
        }
        Ok((out, spans))
    }

    /// Wraps payloads in slices between which other tasks run, and replaces their spans by those in
    /// the new buffer.
    ///
    /// # Errors
    /// [`BodyError::MemoryExhausted`].
    pub(super) async fn wrap_large(
        &self,
        memory: &BodyMemory,
        body: &[u8],
        payloads: &mut [Span],
    ) -> Result<ChargedBytes, BodyError> {
        let mut out = memory.buffer_of(self.wrapped_bytes(payloads))?;
        let mut turn = WrapTurn { looked_at: 0 };
        for span in payloads {
            let start = self.begin(span.range().len(), &mut out);
            for piece in body[span.range()].chunks(PIECE_BYTES) {
                put(piece, &mut out);
                turn.yield_if_over(&out).await;
            }
            *span = end(start, &mut out);
        }
        Ok(out)
    }

    /// Writes what comes before a payload of this length. Returns where its span begins.
    fn begin(&self, payload_bytes: usize, out: &mut ChargedBytes) -> usize {
        let length = self.before.len() + payload_bytes + END.len();
        put(&(length as u32).to_le_bytes(), out);
        let start = out.as_slice().len();
        put(&self.before, out);
        start
    }
}

/// Ends a wrapped payload that began at `start`.
fn end(start: usize, out: &mut ChargedBytes) -> Span {
    put(END, out);
    Span { start: start as u32, end: out.as_slice().len() as u32 }
}

fn put(bytes: &[u8], out: &mut ChargedBytes) {
    out.extend(bytes).expect("all of it was charged before");
}

/// One turn of the core for a large request.
struct WrapTurn {
    /// Bytes that were written at the last look at the clock.
    looked_at: usize,
}

impl WrapTurn {
    async fn yield_if_over(&mut self, out: &ChargedBytes) {
        if out.as_slice().len() - self.looked_at < PIECE_BYTES {
            return;
        }
        self.looked_at = out.as_slice().len();
        rt::yield_if_due().await;
    }
}

/// The spans of the payloads in a buffer that a [`Wrapper`] filled.
pub(super) fn wrapped_spans(buffer: &[u8], count: usize) -> Vec<Span> {
    let mut spans = Vec::with_capacity(count);
    let mut rest = buffer;
    while let Some((length, behind)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let start = buffer.len() - behind.len();
        let end = start + u32::from_le_bytes(*length) as usize;
        spans.push(Span { start: start as u32, end: end as u32 });
        rest = &buffer[end..];
    }
    assert_eq!(spans.len(), count, "a wrapper filled it");
    spans
}

#[cfg(test)]
mod tests;
