//! What must hold of a connection of HTTP/2 whatever its client sends, judged by the bytes of both sides
//! and the payloads that were admitted. Heads are not decoded.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::http::h2::H2_PREFACE;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const PADDED: u8 = 8;

/// How a body begins that is compressed: as `gzip` or `zstd` does.
const COMPRESSED: [u8; 2] = [0x1f, 0x28];

/// What came of the bytes of one case.
#[derive(Debug)]
pub struct H2Outcome {
    /// Connections of HTTP/2, requests and bytes of bodies that the server holds afterwards.
    pub held: [u64; 3],
    /// The payloads that were admitted.
    pub payloads: Vec<Vec<u8>>,
    /// What the client got.
    pub answers: Vec<u8>,
}

/// An answer to a request that was accepted.
#[derive(Deserialize)]
struct AcceptedAnswer {
    accepted: usize,
}

/// A frame, as far as it came.
struct WireFrame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
    /// Bytes of it that did not come.
    missing: usize,
}

impl<'a> WireFrame<'a> {
    /// All frames of `bytes`, the last of which may be cut, and what is less than the head of one.
    fn all(mut bytes: &'a [u8]) -> (Vec<WireFrame<'a>>, &'a [u8]) {
        let mut frames = Vec::new();
        while let Some(([a, b, c, kind, flags, stream @ ..], rest)) = bytes.split_first_chunk::<9>()
        {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let (payload, rest) = rest.split_at(length.min(rest.len()));
            let stream = u32::from_be_bytes(*stream) & (u32::MAX >> 1);
            let missing = length - payload.len();
            frames.push(WireFrame { kind: *kind, flags: *flags, stream, payload, missing });
            bytes = rest;
        }
        (frames, bytes)
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Four bytes of what it says.
    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(*self.payload.get(at..)?.first_chunk()?))
    }

    /// What `DATA` has besides padding.
    fn data(&self) -> &'a [u8] {
        let [padding, rest @ ..] = self.payload else { return self.payload };
        match self.has(PADDED) {
            true => &rest[..rest.len().saturating_sub(usize::from(*padding))],
            false => self.payload,
        }
    }
}

/// What the server has said on one stream.
#[derive(Default)]
struct StreamSaid {
    body: Vec<u8>,
    /// The answer is complete, or the stream was reset.
    has_ended: bool,
    is_answered: bool,
}

impl H2Outcome {
    /// What is wrong with it after a client has sent these bytes. `wrapped`: with `META` a payload is
    /// more than what was sent.
    pub fn flaw(&self, sent: &[u8], wrapped: bool) -> Option<String> {
        if self.held != [0; 3] {
            return Some(format!("{:?} connections, requests and bytes are held", self.held));
        }
        let sent = WireFrame::all(sent.strip_prefix(H2_PREFACE)?).0;
        let begun = sent.iter().filter(|frame| frame.kind == HEADERS).map(|frame| frame.stream);
        let flaw = self.flaw_of_answers(&begun.collect());
        flaw.or_else(|| if wrapped { None } else { self.flaw_of_payloads(&sent) })
    }

    fn flaw_of_answers(&self, begun: &BTreeSet<u32>) -> Option<String> {
        let (answers, _may_be_cut) = WireFrame::all(&self.answers);
        if let Some(first) = answers.first()
            && (first.kind != SETTINGS || first.has(ACK))
        {
            return Some(format!("it begins with a frame of kind {}", first.kind));
        }
        let (mut last_stream, mut accepted) = (u32::MAX, 0);
        let mut streams: BTreeMap<u32, StreamSaid> = BTreeMap::new();
        for frame in answers.iter().filter(|frame| frame.missing == 0) {
            let stream = frame.stream;
            match frame.kind {
                GOAWAY => {
                    let last = frame.word(0)?;
                    if last > last_stream {
                        return Some(format!("goodbye to {last}, then to {last_stream}"));
                    }
                    last_stream = last;
                }
                HEADERS | DATA => {
                    let said = streams.entry(stream).or_default();
                    let is_first = frame.kind == HEADERS;
                    if !begun.contains(&stream) || said.has_ended || said.is_answered == is_first {
                        return Some(format!("a frame {} on stream {stream}", frame.kind));
                    }
                    said.is_answered = true;
                    if !is_first {
                        said.body.extend_from_slice(frame.data());
                    }
                    if frame.has(END_STREAM) {
                        said.has_ended = true;
                        let answer = serde_json::from_slice::<AcceptedAnswer>(&said.body);
                        accepted += answer.map_or(0, |of| of.accepted);
                    }
                }
                RST_STREAM => streams.entry(stream).or_default().has_ended = true,
                _ => {}
            }
        }
        let admitted = self.payloads.len();
        (accepted > admitted).then(|| format!("{accepted} were accepted, {admitted} admitted"))
    }

    /// Each payload is a part of a body that was sent.
    fn flaw_of_payloads(&self, sent: &[WireFrame<'_>]) -> Option<String> {
        let mut bodies: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        for frame in sent.iter().filter(|frame| frame.kind == DATA) {
            bodies.entry(frame.stream).or_default().extend_from_slice(frame.data());
        }
        if bodies.values().any(|body| body.first().is_some_and(|byte| COMPRESSED.contains(byte))) {
            return None;
        }
        let is_part = |payload: &[u8], body: &[u8]| {
            payload.len() <= body.len() && body.windows(payload.len()).any(|part| part == payload)
        };
        let foreign = self
            .payloads
            .iter()
            .find(|payload| !bodies.values().any(|body| is_part(payload, body)))?;
        Some(format!("nobody has sent {}", foreign.escape_ascii()))
    }

    /// Whether nothing went wrong on either side and nobody gave up anything: then it does not matter
    /// in which pieces the bytes came.
    pub fn is_calm(&self, sent: &[u8]) -> bool {
        let ends = |frame: &WireFrame<'_>| matches!(frame.kind, RST_STREAM | GOAWAY);
        let Some(sent) = sent.strip_prefix(H2_PREFACE) else { return false };
        let (answers, cut) = WireFrame::all(&self.answers);
        cut.is_empty()
            && !WireFrame::all(sent).0.iter().any(ends)
            && answers.iter().all(|frame| frame.missing == 0 && !ends(frame))
    }
}
