//! Reads one request body within its budgets: `MAX_LENGTH` for its size, `MAX_BODY_BYTES` for the
//! core's memory.
//!
//! A body is charged for what has arrived, not for what was announced, so a slow client holds
//! little. A compressed body is read whole, then decompressed in slices between which other tasks
//! run. `MAX_LENGTH` caps the decompressed bytes and the compressed bytes alike.
//!
//! A core has one CPU, so bodies are decompressed one after the other. But a small one does not wait
//! for large ones: whether a body is small shows after its first [`SMALL_BODY_BYTES`]. If there are
//! more, it starts again once it is its turn among the large bodies. That turn lasts until its
//! payloads are found, so that decompressed bodies do not wait for each other in memory.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, Write};
use std::pin::Pin;
use std::rc::Rc;

use http_body::Body as _;
use hyper::body::{Bytes, Incoming};
use zstd::stream::raw::{Operation, Status};
use zstd::zstd_safe::DParameter;

use super::body_memory::BodyMemory;
use super::chunk::ChunkError;
use super::fields::{Fields, KnownField};
use super::parse::SMALL_BODY_BYTES;
use super::phase::ConnState;
use super::split::{LargeTurn, NoTurn};
use crate::budget::{Budget, ChargedBytes};
use crate::coding::Coding;
use crate::rt;
use crate::sync::Turns;

/// Why there is no body to work on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the body is larger than MAX_LENGTH ({max} bytes); split the collection")]
    TooLarge { max: usize },
    #[error(
        "the payloads take {given} bytes with their META, more than a request may ({max}); split the collection, or \
         raise MAX_BODY_BYTES, SPOOL_PENDING and SPOOL_SEGMENT"
    )]
    WrappedTooLarge { given: usize, max: usize },
    #[error("the core's memory for request bodies is used up; try again")]
    MemoryExhausted,
    #[error("content-encoding is not supported")]
    UnsupportedEncoding,
    #[error("the body is not valid {encoding}: {detail}")]
    Corrupt { encoding: &'static str, detail: String },
    #[error("the body ended early: {0}")]
    Disconnected(String),
    #[error("the chunked body is malformed: {0}")]
    BadChunk(ChunkError),
    #[error("the request body was not complete in BODY_TIMEOUT")]
    Overdue,
    #[error("the request body arrived more slowly than BODY_RATE_MIN ({rate_min} bytes a second)")]
    TooSlow { rate_min: u64 },
    #[error(
        "the request body stalled while the core's memory for bodies was used up; send it again"
    )]
    Evicted,
}

/// The coding that `content-encoding` names. A list of several is refused.
pub fn coding_of(fields: &impl Fields) -> Result<Option<Coding>, BodyError> {
    let mut values = fields.values(KnownField::ContentEncoding);
    let Some(value) = values.next() else { return Ok(None) };
    let value = value.trim_ascii();
    let is = |name: &str| value.eq_ignore_ascii_case(name.as_bytes());
    match () {
        () if values.next().is_some() => Err(BodyError::UnsupportedEncoding),
        () if is("identity") || value.is_empty() => Ok(None),
        () if is("gzip") || is("x-gzip") => Ok(Some(Coding::Gzip)),
        () if is("zstd") => Ok(Some(Coding::Zstd)),
        () => Err(BodyError::UnsupportedEncoding),
    }
}

/// Reads the bodies of one core.
pub struct BodyReader {
    pub(super) memory: BodyMemory,
    /// For large bodies that have arrived and wait in the kernel for their turn.
    pub(super) in_kernel: Rc<Budget>,
    length_max: usize,
    small_turns: Turns,
    small: Decoder,
    large: Decoder,
}

impl BodyReader {
    pub fn new(memory: BodyMemory, length_max: usize) -> BodyReader {
        BodyReader {
            in_kernel: memory.in_kernel(),
            memory,
            length_max,
            small_turns: Turns::default(),
            small: Decoder::default(),
            large: Decoder::default(),
        }
    }

    /// Refuses a `content-length` that is too large, before a byte is read, so that a client that
    /// waits for `100 Continue` gets the refusal instead.
    pub(super) fn check_announced(&self, length: Option<u64>) -> Result<(), BodyError> {
        match length {
            Some(length) if length > self.length_max as u64 => {
                Err(BodyError::TooLarge { max: self.length_max })
            }
            _ => Ok(()),
        }
    }

    /// A body that has arrived as a whole.
    ///
    /// # Errors
    /// [`BodyError::MemoryExhausted`].
    pub(super) fn whole(&self, body: &[u8]) -> Result<ChargedBytes, BodyError> {
        self.memory.buffer_with(body.len(), body)
    }

    /// Reads the whole body as it was sent, whose length is checked.
    ///
    /// Meanwhile the bytes are in `state`, where [`BodyMemory`] can take them away.
    pub(super) async fn read(
        &self,
        state: &ConnState,
        body: &mut Incoming,
    ) -> Result<ChargedBytes, BodyError> {
        let max = self.length_max;
        // hyper returns no more bytes than were announced.
        let room = body.size_hint().exact().map_or(max, |length| length.min(max as u64) as usize);
        let receiving = Receiving::begin(&self.memory, state, self.memory.buffer(room)?);
        while let Some(data) = next_data(body).await? {
            let mut bytes = state.body.bytes.borrow_mut();
            let bytes = bytes.as_mut().ok_or(BodyError::Evicted)?;
            append(&self.memory, bytes, &data, max, Some(state))?;
            state.body.received.set(bytes.as_slice().len());
        }
        check_end(state, body)?;
        let mut bytes = receiving.end()?;
        bytes.shrink();
        Ok(bytes)
    }

    /// Reads a body to its end and drops it, so that the next request can follow. It is charged to
    /// nobody, so the caller bounds its length.
    pub(super) async fn discard(
        &self,
        state: &ConnState,
        body: &mut Incoming,
    ) -> Result<(), BodyError> {
        while let Some(data) = next_data(body).await? {
            state.body.received.set(state.body.received.get() + data.len());
        }
        check_end(state, body)
    }

    /// Decompresses `raw` if that gives at most [`SMALL_BODY_BYTES`], otherwise returns `None`.
    /// Waits while others do the same, but not for large bodies: a fraction of a millisecond for each
    /// connection at most.
    pub async fn decode_small(
        &self,
        raw: &ChargedBytes,
        coding: Coding,
    ) -> Result<Option<ChargedBytes>, BodyError> {
        let max = self.length_max.min(SMALL_BODY_BYTES);
        // Nothing is compressed to more than it was, nearly.
        if raw.as_slice().len() > max && self.length_max > max {
            return Ok(None);
        }
        let _turn = self.small_turns.take().await;
        match self.small.decode(&self.memory, raw, coding, max).await {
            Err(BodyError::TooLarge { .. }) if self.length_max > max => Ok(None),
            decoded => decoded.map(Some),
        }
    }

    /// Decompresses `raw`. Only one is decompressed at a time, the one whose turn it is.
    pub async fn decode_large(
        &self,
        raw: &ChargedBytes,
        coding: Coding,
        _turn: &LargeTurn<'_>,
    ) -> Result<ChargedBytes, BodyError> {
        self.large.decode(&self.memory, raw, coding, self.length_max).await
    }
}

/// A body that was read as a whole.
pub(super) struct ReadBody<'a> {
    pub(super) bytes: ChargedBytes,
    /// What came of its wait for a turn among the large bodies, if it had one.
    pub(super) turn: Option<Result<LargeTurn<'a>, NoTurn>>,
}

/// A body that is being received. When this is dropped, it is not any longer, and what has arrived
/// of it is dropped unless it was taken.
pub(super) struct Receiving<'a> {
    memory: &'a BodyMemory,
    state: &'a ConnState,
}

impl<'a> Receiving<'a> {
    /// Puts what has arrived so far into `state`.
    pub(super) fn begin(
        memory: &'a BodyMemory,
        state: &'a ConnState,
        bytes: ChargedBytes,
    ) -> Receiving<'a> {
        state.body.bytes.replace(Some(bytes));
        Receiving { memory, state }
    }

    /// All of it has arrived.
    ///
    /// # Errors
    /// [`BodyError::Evicted`]
    pub(super) fn end(self) -> Result<ChargedBytes, BodyError> {
        self.state.body.bytes.take().ok_or(BodyError::Evicted)
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.memory.body_ended(self.state);
        drop(self.state.body.bytes.take());
    }
}

/// The next piece of the body; trailers are skipped.
pub(super) async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, BodyError> {
    loop {
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            None => return Ok(None),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Whether a body after which nothing comes is whole. Of a stream that its client has reset with
/// `NO_ERROR` hyper says that it has ended.
fn check_end(state: &ConnState, body: &Incoming) -> Result<(), BodyError> {
    if state.is_stream() && !body.is_end_stream() {
        return Err(BodyError::Disconnected("its stream was reset".to_owned()));
    }
    Ok(())
}

/// Decompresses one body at a time; the caller sees to that.
#[derive(Default)]
struct Decoder {
    /// Kept from body to body; `None` before the first one and while one is decompressed.
    zstd: RefCell<Option<ZstdDecoder>>,
}

type ZstdDecoder = zstd::stream::raw::Decoder<'static>;

/// A decoder that is in use. It goes back when this is dropped, however the body ended.
struct ZstdInUse<'a> {
    decoder: Option<ZstdDecoder>,
    home: &'a RefCell<Option<ZstdDecoder>>,
}

impl<'a> ZstdInUse<'a> {
    /// Takes the decoder out of `home`, or makes the first one, and makes it forget the body before.
    fn begin(home: &'a RefCell<Option<ZstdDecoder>>) -> io::Result<ZstdInUse<'a>> {
        let mut decoder = match home.take() {
            Some(decoder) => decoder,
            None => {
                let mut decoder = ZstdDecoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
                decoder
            }
        };
        decoder.reinit()?;
        Ok(ZstdInUse { decoder: Some(decoder), home })
    }

    fn run(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Status> {
        self.decoder.as_mut().expect("until it is dropped").run_on_buffers(input, output)
    }

    /// Appends up to `most` bytes to `out`.
    fn append(&mut self, input: &[u8], out: &mut Vec<u8>, most: usize) -> io::Result<Status> {
        let start = out.len();
        out.resize(start + most, 0);
        let status = self.run(input, &mut out[start..]);
        out.truncate(start + status.as_ref().map_or(0, |status| status.bytes_written));
        status
    }
}

impl Drop for ZstdInUse<'_> {
    fn drop(&mut self) {
        self.home.replace(self.decoder.take());
    }
}

/// Compressed bytes given to the decoder between two yields. It also yields after each piece of
/// output.
const DECODE_INPUT: usize = 8 * 1024;
/// Decompressed bytes produced at a time.
const DECODE_OUTPUT: usize = 32 * 1024;
/// Largest zstd window accepted, as RFC 8878 recommends: 8 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Most memory of the decoders of one core: a window for small bodies and one for large ones, each
/// allocated once.
pub const DECODERS_BYTES_MAX: usize = 2 << ZSTD_WINDOW_LOG_MAX;

impl Decoder {
    async fn decode(
        &self,
        memory: &BodyMemory,
        raw: &ChargedBytes,
        coding: Coding,
        max: usize,
    ) -> Result<ChargedBytes, BodyError> {
        let mut out = memory.buffer(max)?;
        let decoded = match coding {
            Coding::Gzip => gunzip(memory, raw, &mut out, max).await,
            Coding::Zstd => self.unzstd(memory, raw, &mut out, max).await,
        };
        decoded?;
        out.shrink();
        Ok(out)
    }

    async fn unzstd(
        &self,
        memory: &BodyMemory,
        raw: &ChargedBytes,
        out: &mut ChargedBytes,
        max: usize,
    ) -> Result<(), BodyError> {
        let corrupt = |e: io::Error| BodyError::Corrupt { encoding: "zstd", detail: e.to_string() };
        let mut decoder = ZstdInUse::begin(&self.zstd).map_err(corrupt)?;
        let mut input = raw.as_slice();
        let mut unfinished = 1;
        loop {
            let (status, given) = match out.room() {
                // Only what comes without more room is not too much.
                0 => (decoder.run(input, &mut [0]), 0),
                _ => {
                    if out.spare() == 0 {
                        memory.make_room_for(out, 1, None)?;
                    }
                    let given = out.spare().min(DECODE_OUTPUT);
                    (out.append_with(given, |out| decoder.append(input, out, given)), given)
                }
            };
            let status = status.map_err(corrupt)?;
            if status.bytes_written > given {
                return Err(BodyError::TooLarge { max });
            }
            input = &input[status.bytes_read..];
            if status.bytes_read > 0 || status.bytes_written > 0 {
                unfinished = status.remaining;
            }
            if input.is_empty() && (status.bytes_written < given || given == 0) {
                break;
            }
            rt::yield_if_needed().await;
        }
        if unfinished != 0 {
            let detail = "the last frame is not complete".to_owned();
            return Err(BodyError::Corrupt { encoding: "zstd", detail });
        }
        Ok(())
    }
}

async fn gunzip(
    memory: &BodyMemory,
    raw: &ChargedBytes,
    out: &mut ChargedBytes,
    max: usize,
) -> Result<(), BodyError> {
    let corrupt = |e: io::Error| BodyError::Corrupt { encoding: "gzip", detail: e.to_string() };
    let mut decoder = flate2::write::MultiGzDecoder::new(Vec::with_capacity(DECODE_OUTPUT));
    for input in raw.as_slice().chunks(DECODE_INPUT) {
        let mut input = input;
        while !input.is_empty() {
            let read = decoder.write(input).map_err(corrupt)?;
            input = &input[read..];
            append(memory, out, decoder.get_ref(), max, None)?;
            decoder.get_mut().clear();
            rt::yield_if_needed().await;
        }
    }
    decoder.try_finish().map_err(corrupt)?;
    append(memory, out, decoder.get_ref(), max, None)
}

fn append(
    memory: &BodyMemory,
    out: &mut ChargedBytes,
    piece: &[u8],
    max: usize,
    receiver: Option<&ConnState>,
) -> Result<(), BodyError> {
    if piece.len() > out.room() {
        return Err(BodyError::TooLarge { max });
    }
    memory.append(out, piece, receiver)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use http::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};

    fn of(values: &[&[u8]]) -> Result<Option<Coding>, BodyError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_ENCODING, HeaderValue::from_bytes(value).unwrap());
        }
        coding_of(&headers)
    }

    #[test]
    fn one_known_encoding_or_none() {
        for (values, coding) in [
            (&[][..], None),
            (&[&b""[..]], None),
            (&[b"Identity"], None),
            (&[b"gzip"], Some(Coding::Gzip)),
            (&[b" X-GZIP "], Some(Coding::Gzip)),
            (&[b"ZStd\t"], Some(Coding::Zstd)),
        ] {
            assert_eq!(of(values), Ok(coding), "{values:?}");
        }
        for values in [
            &[&b"br"[..]][..],
            &[b"gzip,"],
            &[b"gzip, gzip"],
            &[b"gzip", b"gzip"],
            &[b"identity", b""],
            &[b"\xff"],
        ] {
            assert_eq!(of(values), Err(BodyError::UnsupportedEncoding), "{values:?}");
        }
    }

    /// Runs a decoder with a budget on an executor, because decoding yields.
    fn decode(
        coding: Coding,
        bytes: &[u8],
        max: usize,
        budget: usize,
    ) -> (Result<Vec<u8>, BodyError>, u64) {
        let cells = &crate::metrics::cells(1)[0];
        let memory = BodyMemory::new(budget, budget, cells);
        let mut raw = memory.buffer(bytes.len()).unwrap();
        raw.extend(bytes).unwrap();
        let decoded = rt::run_test(async {
            let decoder = Decoder::default();
            // Twice, because state that the first body leaves in the decoder must not reach the
            // second.
            let mut first = memory.buffer(bytes.len()).unwrap();
            first.extend(&bytes[..bytes.len() / 2]).unwrap();
            let _cut = decoder.decode(&memory, &first, coding, max).await;
            let is_kept = || decoder.zstd.borrow().is_some() == (coding == Coding::Zstd);
            assert!(is_kept(), "however the first one ended");
            {
                let decoding = decoder.decode(&memory, &raw, coding, max);
                futures_lite::future::poll_once(std::pin::pin!(decoding)).await;
            }
            assert!(is_kept(), "also if it was dropped half-way");
            decoder.decode(&memory, &raw, coding, max).await
        });
        drop(raw);
        let decoded = decoded.map(|bytes| bytes.as_slice().to_vec());
        (decoded, cells.body_bytes.value())
    }

    fn packed(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        match coding {
            Coding::Zstd => zstd::stream::encode_all(bytes, 3).unwrap(),
            Coding::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    #[test]
    fn decoding_is_exact_capped_and_leaves_no_charge() {
        let noise: Vec<u8> =
            (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for coding in [Coding::Gzip, Coding::Zstd] {
            for length in [0, 1, DECODE_OUTPUT - 1, DECODE_OUTPUT, DECODE_OUTPUT + 1, noise.len()] {
                let (plain, bytes) = (&noise[..length], packed(coding, &noise[..length]));
                let (decoded, charged) = decode(coding, &bytes, length, 1 << 20);
                assert_eq!((decoded.as_deref(), charged), (Ok(plain), 0), "{coding:?} {length}");
                if length > 0 {
                    let (decoded, charged) = decode(coding, &bytes, length - 1, 1 << 20);
                    assert_eq!(
                        (decoded, charged),
                        (Err(BodyError::TooLarge { max: length - 1 }), 0)
                    );
                }
            }
            let bytes = packed(coding, &noise);
            let (decoded, charged) = decode(coding, &bytes, 1 << 20, 2 * bytes.len());
            assert_eq!((decoded, charged), (Err(BodyError::MemoryExhausted), 0), "{coding:?}");
        }
    }

    #[test]
    fn small_bodies_are_told_from_large_ones() {
        let cells = &crate::metrics::cells(1)[0];
        let splitter = crate::http::split::BodySplitter::new(1, cells);
        let small = SMALL_BODY_BYTES;
        for coding in [Coding::Gzip, Coding::Zstd] {
            for (length, length_max) in [
                (0, small),
                (small, small),
                (small + 1, small),
                (small, 1 << 20),
                (small + 1, 1 << 20),
            ] {
                let reader =
                    BodyReader::new(BodyMemory::new(1 << 20, length_max, cells), length_max);
                let plain = vec![b'x'; length];
                let bytes = packed(coding, &plain);
                let mut raw = reader.memory.buffer(bytes.len()).unwrap();
                raw.extend(&bytes).unwrap();
                rt::run_test(async {
                    let decoded = reader.decode_small(&raw, coding).await;
                    let case = format!("{coding:?} {length} {length_max}");
                    match decoded {
                        Ok(Some(decoded)) => assert_eq!(decoded.as_slice(), plain, "{case}"),
                        Ok(None) => {
                            assert!(length > small && length_max > small, "{case}");
                            let turn = splitter.large_turn(&Cell::new(false)).await.unwrap();
                            let decoded = reader.decode_large(&raw, coding, &turn).await;
                            assert_eq!(decoded.unwrap().as_slice(), plain, "{case}");
                        }
                        Err(error) => {
                            assert_eq!(error, BodyError::TooLarge { max: small }, "{case}");
                            assert!(length > length_max, "{case}");
                        }
                    }
                });
                drop(raw);
                assert_eq!(cells.body_bytes.value(), 0);
            }
        }
    }
}
