//! Compresses one object as one zstd frame or one gzip member, a slice at a time, and decompresses
//! it.
//!
//! One frame, because many readers stop after the first. Every slice is flushed as a block:
//! otherwise zstd would gather 128 KiB and compress them in one stall, and the object's size would
//! be known only afterwards. A state is reused for one object after another, because a new one
//! costs the page faults of its memory.

use flate2::{Compress, Crc, Decompress, FlushCompress, FlushDecompress, Status};
use zstd::zstd_safe::get_error_name;
use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, InBuffer, OutBuffer, ResetDirective, SafeResult};

use super::chunks::Chunks;
use crate::coding::Compression;

/// Window of a zstd frame: 128 KiB. Every open batch pays for it, and up to `MAX_PARTITIONS` are
/// open. Measured with events of 0.9 kB: memory of one state, and ratio, with windows of 64 KiB /
/// 128 KiB / 512 KiB and the level's own tables:
///
/// | level | KiB | ratio |
/// |---|---|---|
/// | 1 | 521 / 953 / 1340 | 3.04 / 3.07 / 3.10 |
/// | 3 | 969 / 1657 / 2040 | 3.00 / 3.02 / 3.11 |
/// | 9 | 777 / 1529 / 11516 | 3.12 / 3.17 / 3.32 |
/// | 19 | 1429 / 2688 / 83972 | 3.13 / 3.22 / 3.51 |
///
/// Level 1 compressed 346 / 428 / 466 MB/s, so 64 KiB would cost more than it saves.
const ZSTD_WINDOW_LOG: u32 = 17;

/// From this level on zstd's tables are larger than such a window can use, so they are capped too.
const ZSTD_LARGE_TABLES_LEVEL: i32 = 4;

/// Memory of a deflate state, which flate2 does not report. zlib-rs allocates at once: window 2 ×
/// 32 KiB, chains 2 × 32 KiB, hash heads 2 × 64 KiB, pending output 64 KiB, symbols 48 KiB, in all
/// 368 KiB; and 8 KiB for the trees and the rest.
const GZIP_STATE_BYTES: usize = (368 + 8) << 10;

/// RFC 1952: magic, deflate, no flags, no time (the same payloads must make the same object), no
/// extra flags, unknown system.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// An empty last block with its end (2 bytes, including bits of the previous block), CRC-32 and
/// length.
const GZIP_EPILOGUE_BYTES: u64 = 2 + 8;

/// An empty last block and the checksum.
const ZSTD_EPILOGUE_BYTES: u64 = 3 + 4;

/// Bytes decompressed at a time.
const DECODE_BYTES: usize = 64 << 10;

impl Compression {
    /// Bytes that finishing the object adds to what has been flushed.
    pub(super) fn epilogue_bytes(self) -> u64 {
        match self {
            Compression::None => 0,
            Compression::Gzip(_) => GZIP_EPILOGUE_BYTES,
            Compression::Zstd(_) => ZSTD_EPILOGUE_BYTES,
        }
    }
}

/// What follows the input of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// More input will come. What there is so far can be decoded.
    Flush,
    /// The end of the object.
    End,
}

/// The state of one object's compression.
pub(super) struct Compressor {
    compression: Compression,
    engine: Engine,
}

enum Engine {
    Zstd(CCtx<'static>),
    Gzip(Box<Gzip>),
}

struct Gzip {
    deflate: Compress,
    crc: Crc,
    begun: bool,
}

impl Compressor {
    /// A state for `compression`, which must not be `None`. Allocates little before
    /// [`Compressor::begin`].
    pub(super) fn new(compression: Compression) -> Compressor {
        let engine = match compression {
            Compression::None => unreachable!("nothing to compress with"),
            Compression::Gzip(level) => Engine::Gzip(Box::new(Gzip {
                deflate: Compress::new(flate2::Compression::new(level), false),
                crc: Crc::new(),
                begun: false,
            })),
            Compression::Zstd(level) => Engine::Zstd(zstd_context(level)),
        };
        Compressor { compression, engine }
    }

    pub(super) fn compression(&self) -> Compression {
        self.compression
    }

    /// Allocates and clears the state's memory, so that the first slice does not pay for it.
    pub(super) fn begin(&mut self, chunks: &mut Chunks) {
        if let Engine::Zstd(context) = &mut self.engine {
            let none = &mut InBuffer::around(&[]);
            let more = ZSTD_EndDirective::ZSTD_e_continue;
            chunks.fill(1, |chunk| checked(compress(context, none, chunk, more)));
        }
    }

    /// Compresses all of `input` into `chunks`.
    pub(super) fn feed(&mut self, input: &[u8], then: Then, chunks: &mut Chunks) {
        match &mut self.engine {
            Engine::Zstd(context) => feed_zstd(context, input, then, chunks),
            Engine::Gzip(gzip) => gzip.feed(input, then, chunks),
        }
    }

    /// Bytes held by the state.
    pub(super) fn memory(&self) -> usize {
        match &self.engine {
            Engine::Zstd(context) => context.sizeof(),
            Engine::Gzip(_) => GZIP_STATE_BYTES,
        }
    }

    /// Resets it for another object, at whatever point it is.
    pub(super) fn reset(&mut self) {
        match &mut self.engine {
            Engine::Zstd(context) => {
                checked(context.reset(ResetDirective::SessionOnly));
            }
            Engine::Gzip(gzip) => {
                gzip.deflate.reset();
                gzip.crc.reset();
                gzip.begun = false;
            }
        }
    }
}

fn zstd_context(level: i32) -> CCtx<'static> {
    let mut context = CCtx::create();
    let mut set = |parameter| checked(context.set_parameter(parameter));
    set(CParameter::CompressionLevel(level));
    set(CParameter::ChecksumFlag(true));
    set(CParameter::WindowLog(ZSTD_WINDOW_LOG));
    if level >= ZSTD_LARGE_TABLES_LEVEL {
        set(CParameter::HashLog(ZSTD_WINDOW_LOG));
        set(CParameter::ChainLog(ZSTD_WINDOW_LOG));
    }
    context
}

/// As used here, zstd fails only if it gets no memory, which is as fatal as for any other
/// allocation.
fn checked(outcome: SafeResult) -> usize {
    outcome.unwrap_or_else(|code| panic!("zstd failed: {}", get_error_name(code)))
}

fn compress(
    context: &mut CCtx<'static>,
    input: &mut InBuffer<'_>,
    chunk: &mut Vec<u8>,
    then: ZSTD_EndDirective,
) -> SafeResult {
    let written = chunk.len();
    context.compress_stream2(&mut OutBuffer::around_pos(chunk, written), input, then)
}

fn feed_zstd(context: &mut CCtx<'static>, input: &[u8], then: Then, chunks: &mut Chunks) {
    let directive = match then {
        Then::Flush => ZSTD_EndDirective::ZSTD_e_flush,
        Then::End => ZSTD_EndDirective::ZSTD_e_end,
    };
    let mut input = InBuffer::around(input);
    // 0: all input is taken and all output is written.
    while chunks.fill(1, |chunk| checked(compress(context, &mut input, chunk, directive))) > 0 {}
}

impl Gzip {
    fn feed(&mut self, mut input: &[u8], then: Then, chunks: &mut Chunks) {
        if !self.begun {
            chunks.write(&GZIP_HEADER);
            self.begun = true;
        }
        self.crc.update(input);
        let flush = match then {
            Then::Flush => FlushCompress::Partial,
            Then::End => FlushCompress::Finish,
        };
        loop {
            let taken = self.deflate.total_in();
            let (status, full) = chunks.fill(1, |chunk| {
                let status = self.deflate.compress_vec(input, chunk, flush);
                (status.expect("a deflate state is valid"), chunk.len() == chunk.capacity())
            });
            input = &input[(self.deflate.total_in() - taken) as usize..];
            let done = match then {
                Then::Flush => input.is_empty() && !full,
                Then::End => status == Status::StreamEnd,
            };
            if done {
                break;
            }
        }
        if then == Then::End {
            chunks.write(&self.crc.sum().to_le_bytes());
            // RFC 1952: the length modulo 2^32.
            chunks.write(&(self.deflate.total_in() as u32).to_le_bytes());
        }
    }
}

/// Hands `each` the decompressed bytes of an object in bounded pieces. The object may be
/// unfinished: then it gets what has been flushed.
pub(super) fn decompress<'a>(
    compression: Compression,
    parts: impl Iterator<Item = &'a [u8]>,
    mut each: impl FnMut(&[u8]),
) {
    match compression {
        Compression::None => parts.for_each(each),
        Compression::Gzip(_) => gunzip(parts, each),
        Compression::Zstd(_) => {
            let mut context = DCtx::create();
            let mut piece = Vec::with_capacity(DECODE_BYTES);
            for part in parts {
                let mut input = InBuffer::around(part);
                loop {
                    piece.clear();
                    let output = &mut OutBuffer::around(&mut piece);
                    checked(context.decompress_stream(output, &mut input));
                    each(&piece);
                    if input.pos() == part.len() && piece.len() < piece.capacity() {
                        break;
                    }
                }
            }
        }
    }
}

fn gunzip<'a>(parts: impl Iterator<Item = &'a [u8]>, mut each: impl FnMut(&[u8])) {
    let mut inflate = Decompress::new(false);
    let mut piece = Vec::with_capacity(DECODE_BYTES);
    // The header is in the first part, because no chunk is that small.
    let mut header = GZIP_HEADER.len();
    for part in parts {
        let mut input = &part[header..];
        header = 0;
        loop {
            piece.clear();
            let taken = inflate.total_in();
            let status = inflate
                .decompress_vec(input, &mut piece, FlushDecompress::None)
                .expect("what was compressed here can be decompressed");
            each(&piece);
            input = &input[(inflate.total_in() - taken) as usize..];
            if status == Status::StreamEnd {
                return;
            }
            if input.is_empty() && piece.len() < piece.capacity() {
                break;
            }
        }
    }
}
