//! What is in a batch: as many lines as its key says, and so many bytes that each line can be one
//! of the payloads sent.
//!
//! Lines are counted as they come, which costs little beside receiving them. Of compressed batches
//! that would be half a core's work, so they are kept, up to a bound, and decoded when nothing is
//! measured any more.

use std::io::{self, Read as _};

use memchr::memchr_iter;

use crate::lanes::Lane;

/// Compressed batches kept per client core: some seconds of a server core's.
const KEPT_BYTES_MAX: usize = 256 << 20;

/// Pieces of memory for compressed batches that are touched before a round, and the size of each, in
/// which an object of `BATCH_BYTES` as it is by default has room. Page faults of fresh memory keep
/// the load generator, whose loop this is, from its requests: 3 ms for an object, which was most of
/// what `batch-latency` measured.
const TOUCHED: usize = 8;
const TOUCHED_BYTES: usize = 9 << 20;

/// Decompressed at a time.
const DECODE_BYTES: usize = 128 << 10;

/// The batches that came to one client core.
pub(super) struct Batches {
    /// Of one line: all payloads are equally long.
    line_bytes: u64,
    kept: Vec<Batch>,
    kept_bytes: usize,
    touched: Vec<Vec<u8>>,
    undecoded: u64,
}

/// One on its way.
pub(super) struct Batch {
    key: String,
    /// Payloads, by its key.
    count: u64,
    seen: Lines,
    /// It is compressed, and kept if there was room.
    compressed: Option<Vec<u8>>,
    is_kept: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Lines {
    lines: u64,
    bytes: u64,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) {
        self.lines += memchr_iter(b'\n', bytes).count() as u64;
        self.bytes += bytes.len() as u64;
    }
}

impl Batches {
    pub(super) fn new(lane: &Lane) -> Batches {
        let line_bytes = lane.payload_bytes as u64 + 1;
        let touch = |_| {
            let mut piece = vec![1; TOUCHED_BYTES];
            piece.clear();
            piece
        };
        let touched = (0..TOUCHED).map(touch).collect();
        Batches { line_bytes, kept: Vec::new(), kept_bytes: 0, touched, undecoded: 0 }
    }

    /// A body of `length` bytes begins.
    pub(super) fn begin(&mut self, key: &str, length: usize) -> Result<Batch, String> {
        let wrong = || format!("{key} is not the key of a batch as the lane has it");
        let (name, ext) = key.split_once('.').ok_or_else(wrong)?;
        let count = name.rsplit('-').next().and_then(|count| count.parse().ok());
        let mut batch = Batch {
            key: key.to_owned(),
            count: count.ok_or_else(wrong)?,
            seen: Lines::default(),
            compressed: None,
            is_kept: false,
        };
        match ext {
            "ndjson" => {}
            "ndjson.zst" => {
                batch.is_kept = self.kept_bytes + length <= KEPT_BYTES_MAX;
                let room = if batch.is_kept { length } else { 0 };
                let fits = |piece: &mut Vec<u8>| (1..=piece.capacity()).contains(&room);
                let piece = self.touched.pop_if(fits);
                batch.compressed = Some(piece.unwrap_or_else(|| Vec::with_capacity(room)));
                self.kept_bytes += room;
            }
            _ => return Err(wrong()),
        }
        Ok(batch)
    }

    /// It is there as a whole; how many payloads it has.
    pub(super) fn received(&mut self, batch: Batch) -> Result<u64, String> {
        let count = batch.count;
        if batch.compressed.is_none() {
            self.check(&batch, batch.seen)?;
        } else if batch.is_kept {
            self.kept.push(batch);
        } else {
            self.undecoded += count;
        }
        Ok(count)
    }

    fn check(&self, batch: &Batch, seen: Lines) -> Result<(), String> {
        let wanted = Lines { lines: batch.count, bytes: batch.count * self.line_bytes };
        if seen == wanted {
            return Ok(());
        }
        Err(format!("{} is to have {wanted:?}, it has {seen:?}", batch.key))
    }

    /// Decodes what was kept; how many payloads were not.
    pub(super) fn decode(mut self) -> Result<u64, String> {
        for batch in std::mem::take(&mut self.kept) {
            let lines = decompressed(batch.compressed.as_deref().unwrap_or_default());
            let lines = lines.map_err(|error| format!("{}: {error}", batch.key))?;
            self.check(&batch, lines)?;
        }
        Ok(self.undecoded)
    }
}

impl Batch {
    /// Its body goes on.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        match &mut self.compressed {
            None => self.seen.take(bytes),
            Some(kept) if self.is_kept => kept.extend_from_slice(bytes),
            Some(_) => {}
        }
    }
}

fn decompressed(bytes: &[u8]) -> io::Result<Lines> {
    let mut decoder = zstd::Decoder::with_buffer(bytes)?;
    let mut lines = Lines::default();
    let mut piece = vec![0; DECODE_BYTES];
    loop {
        match decoder.read(&mut piece)? {
            0 => return Ok(lines),
            n => lines.take(&piece[..n]),
        }
    }
}
