//! Encodes the payloads of one object as they come: lines in, compressed chunks out.
//!
//! Nothing here waits, yields or does I/O. `push` only copies. `work` compresses and reports at
//! most one slice per call, so that the caller can let requests through in between. A contract
//! bounds what is staged: the caller calls `work` until it returns false before it has pushed more
//! than [`SLICE_BYTES_MAX`] again. Then less than two slices and one payload are staged. Pushing
//! more is correct, but takes more memory.
//!
//! The size of a slice adapts, because compression levels differ by a factor of 100 in speed, and
//! so do the checksums of the result. Below [`SLICE_BYTES_LEAST`] blocks would compress badly, so
//! below about 20 MB/s (zstd from level 10 or so) a call takes longer than 80 µs.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::chunks::{ChunkPool, Chunks};
use super::compressor::{Compressor, Then, decompress};
use super::lines::{Splitter, are_nearly_lines, compact, needs_compacting};
use crate::coding::Compression;
use crate::config::BatchFormat;
use crate::queue::job::{Payload, Span};
use crate::rt;

/// Target time of one call of [`Encoder::work`]. The limit is 200 µs without yielding. The target
/// leaves as much again for data that compresses more slowly than what came before.
const SLICE_TIME: Duration = Duration::from_micros(80);

/// Most bytes compressed or reported at once. Larger blocks hardly compress better.
pub const SLICE_BYTES_MAX: usize = 64 << 10;

/// Fewest bytes compressed at once, except at the end. Smaller blocks lose more to their headers
/// than they gain.
pub const SLICE_BYTES_LEAST: usize = 2 << 10;

/// Size of the first slice, before any was measured.
const SLICE_BYTES_FIRST: usize = 4 << 10;

/// Staging memory beyond this is released once at most a slice is staged. It is what the contract
/// needs with payloads of ordinary size.
const STAGED_KEPT_BYTES_MAX: usize = 2 * SLICE_BYTES_MAX;

/// Compressor states kept for reuse: as many as objects close and open at about the same time.
const COMPRESSORS_POOLED_MAX: usize = 4;

/// What the encoders of one core share. Meant for one [`Compression`]: with several, the learned
/// slice size would fit none of them.
pub struct EncoderShared {
    chunks: Rc<ChunkPool>,
    compressors: RefCell<Vec<Compressor>>,
    /// Size of the slice that last took about [`SLICE_TIME`].
    slice_bytes: Cell<usize>,
    /// Stored bytes per raw byte of the last finished object: the estimate for objects that have
    /// compressed nothing yet.
    ratio: Cell<f64>,
}

impl EncoderShared {
    pub fn new() -> Rc<EncoderShared> {
        Rc::new(EncoderShared {
            chunks: Rc::default(),
            compressors: RefCell::default(),
            slice_bytes: Cell::new(SLICE_BYTES_FIRST),
            ratio: Cell::new(1.0),
        })
    }

    /// Takes back what [`Encoder::into_parts`] returned, for reuse. Parts that are still in use
    /// elsewhere are only dropped.
    pub fn give_back(&self, parts: Vec<Payload>) {
        for bytes in parts.into_iter().filter_map(Payload::into_bytes) {
            self.chunks.give(bytes);
        }
    }

    /// Bytes that are kept for reuse and belong to no object: at most 8 MiB of chunks and four
    /// states.
    pub fn memory(&self) -> usize {
        let states = self.compressors.borrow();
        self.chunks.memory() + states.iter().map(Compressor::memory).sum::<usize>()
    }

    fn take_compressor(&self, compression: Compression) -> Compressor {
        let mut states = self.compressors.borrow_mut();
        match states.iter().position(|state| state.compression() == compression) {
            Some(found) => states.swap_remove(found),
            None => Compressor::new(compression),
        }
    }

    fn give_compressor(&self, mut state: Compressor) {
        let mut states = self.compressors.borrow_mut();
        if states.len() < COMPRESSORS_POOLED_MAX {
            state.reset();
            states.push(state);
        }
    }

    /// Adapts the slice size, by at most a factor of two, so that one interrupted call has little
    /// effect.
    fn learn(&self, slice_bytes: usize, took: Duration) {
        let aim = slice_bytes as u128 * SLICE_TIME.as_nanos() / took.as_nanos().max(1);
        let aim = (aim as usize).clamp(slice_bytes / 2, slice_bytes * 2);
        self.slice_bytes.set(aim.clamp(SLICE_BYTES_LEAST, SLICE_BYTES_MAX));
    }
}

/// One object's bytes while payloads come in.
pub struct Encoder {
    shared: Rc<EncoderShared>,
    compression: Compression,
    /// The object so far.
    chunks: Chunks,
    /// Lines that are not compressed yet, from `staged_from` on.
    staged: Vec<u8>,
    staged_from: usize,
    /// Taken when [`SLICE_BYTES_MAX`] is staged, so that a small object needs none while it is
    /// open; given back at the end.
    compressor: Option<Compressor>,
    raw_bytes: u64,
    state: EncoderState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EncoderState {
    Open,
    Finishing,
    /// The object is complete.
    Ended,
}

impl Encoder {
    /// An object without lines. Allocates nothing.
    pub fn new(compression: Compression, shared: &Rc<EncoderShared>) -> Encoder {
        Encoder {
            shared: shared.clone(),
            compression,
            chunks: Chunks::new(shared.chunks.clone()),
            staged: Vec::new(),
            staged_from: 0,
            compressor: None,
            raw_bytes: 0,
            state: EncoderState::Open,
        }
    }

    /// Appends one payload, any JSON value, as one line. If it has raw line feeds or carriage
    /// returns between its tokens, white space outside strings is removed. No other byte changes.
    pub fn push(&mut self, payload: &[u8]) {
        assert_eq!(self.state, EncoderState::Open, "no lines after the end");
        let compacts = needs_compacting(payload);
        if self.compression == Compression::None {
            let before = self.chunks.bytes();
            line(payload, compacts, |bytes| self.chunks.write(bytes));
            self.raw_bytes += self.chunks.bytes() - before;
        } else {
            self.make_staging_room(payload.len() + 1);
            let before = self.staged.len();
            line(payload, compacts, |bytes| self.staged.extend_from_slice(bytes));
            self.raw_bytes += (self.staged.len() - before) as u64;
        }
    }

    /// As [`Encoder::push`] for each of the payloads at `spans` of `body`, in order. Those that lie
    /// side by side are copied at once.
    pub fn push_all(&mut self, body: &[u8], spans: &[Span]) {
        assert_eq!(self.state, EncoderState::Open, "no lines after the end");
        if are_nearly_lines(body, spans) && self.push_lines(body, spans) {
            return;
        }
        for span in spans {
            self.push(&body[span.range()]);
        }
    }

    /// Copies payloads that [`are_nearly_lines`]. Returns false and changes nothing if a new chunk
    /// would begin in the middle.
    fn push_lines(&mut self, body: &[u8], spans: &[Span]) -> bool {
        let (Some(first), Some((last, others))) = (spans.first(), spans.split_last()) else {
            return true;
        };
        let start = first.start as usize;
        let all = &body[start..last.end as usize];
        let append = |out: &mut Vec<u8>| {
            let at = out.len();
            out.extend_from_slice(all);
            out.push(b'\n');
            for span in others {
                out[at + span.end as usize - start] = b'\n';
            }
        };
        let bytes = all.len() + 1;
        if self.compression == Compression::None {
            let fits = self.chunks.fill(bytes, |chunk| {
                let fits = chunk.capacity() - chunk.len() >= bytes;
                if fits {
                    append(chunk);
                }
                fits
            });
            if !fits {
                return false;
            }
        } else {
            self.make_staging_room(bytes);
            append(&mut self.staged);
        }
        self.raw_bytes += bytes as u64;
        true
    }

    /// Makes room by moving what is staged to the front, instead of growing, if that frees half. So
    /// on average each byte is moved at most once.
    fn make_staging_room(&mut self, bytes: usize) {
        let full = self.staged.capacity() - self.staged.len() < bytes;
        if full && self.staged_from >= self.staged.len() / 2 {
            self.drop_compressed();
        }
        if bytes > SLICE_BYTES_MAX {
            self.staged.reserve_exact(bytes);
        }
    }

    fn drop_compressed(&mut self) {
        self.staged.drain(..self.staged_from);
        self.staged_from = 0;
    }

    /// Compresses and reports at most one slice, with [`SLICE_TIME`] as the target; true if there
    /// is more to do now. `out` is shown every byte of the object exactly once, in order, and its
    /// time counts.
    pub fn work(&mut self, out: &mut dyn FnMut(&[u8])) -> bool {
        let slice_bytes = self.shared.slice_bytes.get();
        match self.compression {
            Compression::None => self.report(slice_bytes, out),
            _ if self.is_due(slice_bytes) => {
                let started = rt::now();
                let whole = self.compress(slice_bytes);
                self.chunks.show(usize::MAX, out);
                if whole {
                    self.shared.learn(slice_bytes, rt::since(started));
                }
            }
            _ => {}
        }
        self.is_due(self.shared.slice_bytes.get())
    }

    /// How many bytes the next call of [`Encoder::work`] will compress or report; 0: nothing to do.
    pub fn due_bytes(&self) -> usize {
        let slice_bytes = self.shared.slice_bytes.get();
        match self.compression {
            Compression::None => self.chunks.unseen_bytes().min(slice_bytes),
            _ if self.is_due(slice_bytes) => self.staged_bytes().min(slice_bytes).max(1),
            _ => 0,
        }
    }

    /// Whether the next call of [`Encoder::work`] takes about [`SLICE_TIME`], not less than half of
    /// it.
    pub fn works_long(&self) -> bool {
        2 * self.due_bytes() >= self.shared.slice_bytes.get()
    }

    fn report(&mut self, slice_bytes: usize, out: &mut dyn FnMut(&[u8])) {
        if self.chunks.unseen_bytes() < slice_bytes {
            // Reading the clock would cost more than copying a small payload.
            self.chunks.show(slice_bytes, out);
        } else {
            let started = rt::now();
            self.chunks.show(slice_bytes, out);
            self.shared.learn(slice_bytes, rt::since(started));
        }
        if self.state == EncoderState::Finishing && self.chunks.unseen_bytes() == 0 {
            self.state = EncoderState::Ended;
        }
    }

    fn is_due(&self, slice_bytes: usize) -> bool {
        let least = match self.compressor {
            _ if self.compression == Compression::None => return self.chunks.unseen_bytes() > 0,
            Some(_) => slice_bytes,
            None => SLICE_BYTES_MAX,
        };
        match self.state {
            EncoderState::Open => self.staged_bytes() >= least,
            EncoderState::Finishing => true,
            EncoderState::Ended => false,
        }
    }

    /// Makes one step: takes a state, compresses a slice, or ends. True if it was a slice of full
    /// size, whose time can be learned from.
    fn compress(&mut self, slice_bytes: usize) -> bool {
        let bytes = self.staged_bytes().min(slice_bytes);
        let is_last = self.state == EncoderState::Finishing && bytes == self.staged_bytes();
        let Some(compressor) = &mut self.compressor else {
            let mut compressor = self.shared.take_compressor(self.compression);
            // A small object is compressed in one call, for which zstd sizes the state itself.
            if !is_last {
                compressor.begin(&mut self.chunks);
            }
            self.compressor = Some(compressor);
            return if is_last { self.compress(slice_bytes) } else { false };
        };
        let slice = &self.staged[self.staged_from..self.staged_from + bytes];
        let then = if is_last { Then::End } else { Then::Flush };
        compressor.feed(slice, then, &mut self.chunks);
        self.staged_from += bytes;
        let is_oversized = self.staged.capacity() > STAGED_KEPT_BYTES_MAX;
        if self.staged_bytes() == 0 || is_oversized && self.staged_bytes() <= SLICE_BYTES_MAX {
            self.drop_compressed();
            self.staged.shrink_to(STAGED_KEPT_BYTES_MAX);
        }
        if is_last {
            self.end();
        }
        bytes == slice_bytes
    }

    fn end(&mut self) {
        self.state = EncoderState::Ended;
        self.staged = Vec::new();
        if let Some(compressor) = self.compressor.take() {
            self.shared.give_compressor(compressor);
        }
        if self.raw_bytes >= SLICE_BYTES_MAX as u64 {
            self.shared.ratio.set(self.chunks.bytes() as f64 / self.raw_bytes as f64);
        }
    }

    fn staged_bytes(&self) -> usize {
        self.staged.len() - self.staged_from
    }

    /// The object's size if it were finished now: exact for what has been compressed, estimated for
    /// what is staged. The estimate uses the object's own ratio or, while it has none, that of the
    /// last object.
    pub fn stored_bytes(&self) -> u64 {
        let (stored, staged) = (self.chunks.bytes(), self.staged_bytes());
        if self.state == EncoderState::Ended || self.compression == Compression::None {
            return stored;
        }
        let compressed = self.raw_bytes - staged as u64;
        let ratio = match compressed {
            few if few < SLICE_BYTES_LEAST as u64 => self.shared.ratio.get(),
            _ => stored as f64 / compressed as f64,
        };
        stored + (staged as f64 * ratio).ceil() as u64 + self.compression.epilogue_bytes()
    }

    /// Bytes of all lines, line feeds included.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Memory that it holds, by capacity: chunks, staged lines, compressor state. Only `push` and
    /// `work` change it.
    pub fn memory(&self) -> usize {
        let state = self.compressor.as_ref().map_or(0, Compressor::memory);
        self.chunks.memory() + self.staged.capacity() + state
    }

    /// Ends the lines. Call `work` until it returns false, then [`Encoder::into_parts`].
    pub fn finish(&mut self) {
        if self.state == EncoderState::Open {
            let is_empty = self.raw_bytes == 0;
            let is_seen = self.compression == Compression::None && self.chunks.unseen_bytes() == 0;
            self.state =
                if is_empty || is_seen { EncoderState::Ended } else { EncoderState::Finishing };
        }
    }

    /// What it shares with the core's other encoders.
    pub fn shared(&self) -> &Rc<EncoderShared> {
        &self.shared
    }

    /// The complete object, to be sent without another copy and then returned with
    /// [`EncoderShared::give_back`]. Without lines there are no parts.
    pub fn into_parts(self) -> Vec<Payload> {
        assert_eq!(self.state, EncoderState::Ended, "work returns false after finish");
        self.chunks.into_parts()
    }

    /// Shows `each` all lines pushed so far, without their line feeds, at whatever point the object
    /// is. Takes no more memory than a decoder and the longest line.
    pub fn lines(mut self, each: impl FnMut(&[u8])) {
        if let Some(compressor) = self.compressor.take() {
            // Everything it was fed has been flushed into the chunks.
            self.shared.give_compressor(compressor);
        }
        let mut splitter = Splitter::new(each);
        decompress(self.compression, self.chunks.as_slices(), |bytes| splitter.feed(bytes));
        splitter.feed(&self.staged[self.staged_from..]);
        splitter.finish();
        self.chunks.give_back();
    }
}

/// Encodes a whole object without yielding: for a command, which serves no requests meanwhile.
///
/// # Errors
/// The first error of `payloads`.
pub fn encode(
    form: BatchFormat,
    payloads: impl Iterator<Item = io::Result<Vec<u8>>>,
) -> io::Result<Vec<Payload>> {
    let mut encoder = Encoder::new(form.compression, &EncoderShared::new());
    for payload in payloads {
        encoder.push(&payload?);
        while encoder.work(&mut |_| {}) {}
    }
    encoder.finish();
    while encoder.work(&mut |_| {}) {}
    Ok(encoder.into_parts())
}

/// Shows `each` the lines of a finished object, without their line feeds.
pub fn lines(compression: Compression, parts: &[Payload], each: impl FnMut(&[u8])) {
    let mut splitter = Splitter::new(each);
    let parts = parts.iter().map(|part| &**part);
    decompress(compression, parts, |bytes| splitter.feed(bytes));
    splitter.finish();
}

fn line(payload: &[u8], compacts: bool, mut write: impl FnMut(&[u8])) {
    if compacts {
        compact(payload, &mut write);
    } else {
        write(payload);
    }
    write(b"\n");
}

#[cfg(test)]
mod tests;
