//! The layout of the spool's files, versions 1 and 2; pure. Numbers are little-endian, checksums CRC-32C
//! (RFC 3720, B.4).
//!
//! ```text
//! 0          64 KiB      128 KiB
//! checkpoint checkpoint  group 0 │ group 1 │ … │ zeros, or groups of an earlier generation
//!
//! group      = head (128 bytes) · records · zeros up to a whole block
//! record     = length u32 · kind u8 · 3 zeros · body, see `record`: a request, a key template, an intent or a DONE
//! checkpoint = head (48 bytes) · complete payloads: ranges, or if there are too many, a bit for each payload
//! ```
//!
//! A commit group is what one write and one sync put there. It starts on a new block, and the next
//! group is written only after its sync. So an incomplete group was never acknowledged unless a
//! later one is intact: without a later one it is a torn tail, with one it is corruption. A segment
//! is reused from its first group on as a new generation with a higher id; groups with lower ids
//! are ignored. Checkpoints are written to the two slots in turn, and the intact one with the
//! higher serial counts. A checkpoint that is not synced is overwritten by the next, whose serial
//! is two higher, so the last synced one stays intact.
//!
//! Version 2 has one more kind of record. Each group has the lowest version that can read it, and a
//! segment may hold both. What has another version is left for the program that wrote it.
//!
//! Payloads of a segment are numbered in file order. A journal of batches has the same format, with
//! groups that hold no payloads.

use std::ops::Range;

use crc_fast::{CrcAlgorithm, checksum};
use thiserror::Error;

pub mod record;
pub mod runs;
pub mod scan;

pub use crate::net::BLOCK;
pub use record::{
    RequestRecord, group_records, group_requests, keys_bytes, keys_of, record_bytes, slices,
    write_keys, write_record,
};
use record::{SpoolRecord, layout_version, read_record};

/// Size of each of the two checkpoint slots.
pub const CHECKPOINT_BYTES: u64 = 64 << 10;
/// Offset of the first commit group.
pub const DATA_START: u64 = 2 * CHECKPOINT_BYTES;
/// Size of a commit group's head, which precedes its records.
pub const HEAD_BYTES: usize = 128;
/// Longest `NODE_ID`.
const NODE_BYTES_MAX: usize = 64;

const GROUP_MAGIC: [u8; 7] = *b"MRSPOOL";
const CHECKPOINT_MAGIC: [u8; 7] = *b"MRSPROG";
/// Of a checkpoint, and the lowest of a group.
const VERSION: u8 = 1;
/// The highest version of a group that is read.
const VERSION_MAX: u8 = 2;

/// Fields that all commit groups of one generation of a segment share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Size of the file.
    pub segment_bytes: u64,
    /// Identifies the generation: unique in this core's directory, and higher for a later
    /// generation.
    pub id: u64,
    /// The part of the keys that names the core.
    pub core: u32,
    /// The part of the keys that names the process, at most 64 bytes.
    pub node: String,
}

/// Head of a commit group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupHead {
    pub label: Label,
    /// Number of the group in its segment, from 0.
    pub number: u32,
    /// Number of its first payload in the segment.
    pub first_ordinal: u32,
    /// Size of its records.
    pub body_bytes: u32,
    body_crc: u32,
}

impl GroupHead {
    /// Bytes it takes in the file, up to the next group.
    pub fn group_bytes(&self) -> u64 {
        group_bytes(self.body_bytes as usize)
    }
}

/// Bytes that a commit group with `body` bytes of records takes in the file.
pub fn group_bytes(body: usize) -> u64 {
    ((HEAD_BYTES + body) as u64).next_multiple_of(BLOCK)
}

fn u32_bytes(n: usize) -> [u8; 4] {
    u32::try_from(n).expect("limits keep requests under 4 GiB").to_le_bytes()
}

/// Finishes a commit group whose records are in `buffer` after [`HEAD_BYTES`]: writes head and
/// padding. `buffer` has [`group_bytes`].
pub fn finish_group(
    buffer: &mut [u8],
    label: &Label,
    number: u32,
    first_ordinal: u32,
    body: usize,
) {
    assert_eq!(buffer.len() as u64, group_bytes(body));
    let (head, rest) = buffer.split_at_mut(HEAD_BYTES);
    rest[body..].fill(0);
    let node = label.node.as_bytes();
    assert!(node.len() <= NODE_BYTES_MAX, "the configuration limits NODE_ID");
    head.fill(0);
    head[..7].copy_from_slice(&GROUP_MAGIC);
    head[7] = layout_version(&rest[..body]);
    head[12..16].copy_from_slice(&crc(&rest[..body]).to_le_bytes());
    head[16..20].copy_from_slice(&u32_bytes(body));
    head[20..24].copy_from_slice(&number.to_le_bytes());
    head[24..32].copy_from_slice(&label.id.to_le_bytes());
    head[32..40].copy_from_slice(&label.segment_bytes.to_le_bytes());
    head[40..44].copy_from_slice(&first_ordinal.to_le_bytes());
    head[44..48].copy_from_slice(&label.core.to_le_bytes());
    head[48] = node.len() as u8;
    head[49..49 + node.len()].copy_from_slice(node);
    let sum = crc(&head[12..]);
    head[8..12].copy_from_slice(&sum.to_le_bytes());
}

fn crc(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// What the start of a block holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockStart {
    Head(GroupHead),
    /// A group head of another format version.
    Version(u8),
    Zeros,
    Other,
}

/// Reads the start of a block, at least [`HEAD_BYTES`].
pub fn read_start(block: &[u8]) -> BlockStart {
    let head = &block[..HEAD_BYTES];
    if head[..7] != GROUP_MAGIC {
        return if block.iter().all(|byte| *byte == 0) {
            BlockStart::Zeros
        } else {
            BlockStart::Other
        };
    }
    let whole = crc(&head[12..]) == u32_at(head, 8);
    let node = str::from_utf8(&head[49..HEAD_BYTES]).unwrap_or_default();
    match node.get(..usize::from(head[48])) {
        // Before the checksum, which another version may compute differently.
        _ if !(VERSION..=VERSION_MAX).contains(&head[7]) => BlockStart::Version(head[7]),
        Some(node) if whole && node.len() <= NODE_BYTES_MAX => BlockStart::Head(GroupHead {
            label: Label {
                segment_bytes: u64_at(head, 32),
                id: u64_at(head, 24),
                core: u32_at(head, 44),
                node: node.to_owned(),
            },
            number: u32_at(head, 20),
            first_ordinal: u32_at(head, 40),
            body_bytes: u32_at(head, 16),
            body_crc: u32_at(head, 12),
        }),
        _ => BlockStart::Other,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Where a segment differs from what was written, and how.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("damaged from byte {} to {}: {why}", .at.start, .at.end)]
pub struct SegmentDamage {
    pub at: Range<u64>,
    pub why: &'static str,
}

/// A commit group with valid checksums and well-formed records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitGroup {
    pub head: GroupHead,
    /// Payloads in all its records.
    pub payloads: u32,
}

impl CommitGroup {
    /// Checks `bytes`, which are all of the group and start with `head`.
    ///
    /// # Errors
    /// Why it is not valid.
    pub fn check(head: GroupHead, bytes: &[u8]) -> Result<CommitGroup, &'static str> {
        let body = bytes.get(HEAD_BYTES..HEAD_BYTES + head.body_bytes as usize);
        let body = body.ok_or("a group is truncated")?;
        if crc(body) != head.body_crc {
            return Err("the checksum of a group does not match");
        }
        let mut payloads = 0_u32;
        let mut at = 0;
        while at < body.len() {
            let (entry, bytes) =
                read_record(&body[at..]).ok_or("a record does not fit its group")?;
            match entry {
                SpoolRecord::Request(record) => {
                    payloads = payloads.checked_add(record.count()).ok_or("too many payloads")?;
                }
                // `keys_of` reads only the first record.
                SpoolRecord::Keys(_) if at > 0 => {
                    return Err("a key template after other records");
                }
                SpoolRecord::Keys(_) | SpoolRecord::Intent(_) | SpoolRecord::Done(_) => {}
            }
            at += bytes;
        }
        Ok(CommitGroup { head, payloads })
    }
}

/// Which payloads of a segment are complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Id of the generation it describes.
    pub id: u64,
    /// Orders the checkpoints of one file, across its generations.
    pub serial: u64,
    /// All payloads are complete, in this and all earlier generations of the file.
    pub complete: bool,
    /// Groups that were synced when it was written.
    pub groups: u32,
    /// Groups from this number on were never acknowledged, because a write or sync failed.
    pub groups_end: Option<u32>,
    /// Numbers of payloads that are stored or dead-lettered: ascending ranges, not empty, not
    /// touching.
    pub done: Vec<Range<u32>>,
}

const CHECKPOINT_HEAD_BYTES: usize = 48;
const COMPLETE: u8 = 1;
const CUT: u8 = 2;
const MAP: u8 = 4;
/// Ranges of eight bytes that fit; a map of as many words, with one bit per payload, replaces them
/// when it is smaller.
const WORDS_MAX: usize = (CHECKPOINT_BYTES as usize - CHECKPOINT_HEAD_BYTES) / 8;

impl Checkpoint {
    /// Whether it can be written. A core that uploads single objects leaves one hole per worker.
    /// Batches of interleaved partitions may leave one per payload; then the first 523,904 payloads
    /// of a segment fit. A checkpoint that does not fit is not written in part: a synced one may be
    /// the only record of a completed batch, so none may say less than the one before.
    pub fn fits(&self) -> bool {
        self.done.len().min(self.map_words()) <= WORDS_MAX
    }

    /// Words of a map with one bit per payload, up to the last complete one.
    fn map_words(&self) -> usize {
        self.done.last().map_or(0, |range| range.end.div_ceil(64) as usize)
    }

    fn is_map(&self) -> bool {
        self.done.len() > WORDS_MAX
    }

    fn words(&self) -> usize {
        if self.is_map() { self.map_words() } else { self.done.len() }
    }

    /// Its offset in the file: the slots alternate.
    pub fn offset(&self) -> u64 {
        self.serial % 2 * CHECKPOINT_BYTES
    }

    /// Its size, in whole blocks.
    pub fn bytes(&self) -> usize {
        (CHECKPOINT_HEAD_BYTES + 8 * self.words()).next_multiple_of(BLOCK as usize)
    }

    /// Fills `buffer`, which has [`Checkpoint::bytes`].
    ///
    /// # Panics
    /// It does not [fit](Checkpoint::fits).
    pub fn write(&self, buffer: &mut [u8]) {
        assert!(self.fits() && buffer.len() == self.bytes());
        let length = CHECKPOINT_HEAD_BYTES + 8 * self.words();
        buffer.fill(0);
        buffer[..7].copy_from_slice(&CHECKPOINT_MAGIC);
        buffer[7] = VERSION;
        buffer[12..16].copy_from_slice(&u32_bytes(self.words()));
        buffer[16..24].copy_from_slice(&self.id.to_le_bytes());
        buffer[24..32].copy_from_slice(&self.serial.to_le_bytes());
        buffer[32] = u8::from(self.complete) * COMPLETE
            + u8::from(self.groups_end.is_some()) * CUT
            + u8::from(self.is_map()) * MAP;
        buffer[36..40].copy_from_slice(&self.groups_end.unwrap_or(0).to_le_bytes());
        buffer[40..44].copy_from_slice(&self.groups.to_le_bytes());
        let body = &mut buffer[CHECKPOINT_HEAD_BYTES..length];
        if self.is_map() {
            for ordinal in self.done.iter().cloned().flatten() {
                body[ordinal as usize / 8] |= 1 << (ordinal % 8);
            }
        } else {
            for (range, at) in self.done.iter().zip(body.chunks_exact_mut(8)) {
                at[..4].copy_from_slice(&range.start.to_le_bytes());
                at[4..].copy_from_slice(&range.end.to_le_bytes());
            }
        }
        let sum = crc(&buffer[12..length]);
        buffer[8..12].copy_from_slice(&sum.to_le_bytes());
    }

    /// Reads one slot of a file; `None` if it holds no intact checkpoint.
    fn read_one(bytes: &[u8]) -> Option<Checkpoint> {
        let head = bytes.get(..CHECKPOINT_HEAD_BYTES)?;
        if head[..7] != CHECKPOINT_MAGIC || head[7] != VERSION {
            return None;
        }
        // A corrupt count must not reach beyond the slot.
        let length = CHECKPOINT_HEAD_BYTES + 8 * (u32_at(head, 12) as usize).min(WORDS_MAX);
        let covered = bytes.get(12..length).filter(|covered| crc(covered) == u32_at(head, 8))?;
        let body = &covered[CHECKPOINT_HEAD_BYTES - 12..];
        let ranges = body.chunks_exact(8).map(|range| u32_at(range, 0)..u32_at(range, 4));
        Some(Checkpoint {
            id: u64_at(head, 16),
            serial: u64_at(head, 24),
            complete: head[32] & COMPLETE != 0,
            groups_end: (head[32] & CUT != 0).then(|| u32_at(head, 36)),
            groups: u32_at(head, 40),
            done: if head[32] & MAP == 0 { ranges.collect() } else { ranges_of_map(body) },
        })
    }

    /// Whether this slot of a file was written to and is not intact. That is harmless while the
    /// other slot is intact.
    pub fn is_torn(slot: &[u8]) -> bool {
        let is_written = slot.iter().take(CHECKPOINT_HEAD_BYTES).any(|byte| *byte != 0);
        is_written && Checkpoint::read_one(slot).is_none()
    }

    /// The current checkpoint in the first [`DATA_START`] bytes of a file.
    pub fn read(bytes: &[u8]) -> Option<Checkpoint> {
        let slots = bytes.chunks(CHECKPOINT_BYTES as usize).take(2);
        slots.filter_map(Checkpoint::read_one).max_by_key(|checkpoint| checkpoint.serial)
    }

    /// Whether only checkpoints, possibly torn, were ever written to the first [`DATA_START`] bytes
    /// of a file.
    fn may_be_torn(bytes: &[u8]) -> bool {
        bytes
            .chunks(CHECKPOINT_BYTES as usize)
            .all(|slot| slot.starts_with(&CHECKPOINT_MAGIC) || slot.iter().all(|byte| *byte == 0))
    }
}

/// The ranges of ones in a bit map.
fn ranges_of_map(map: &[u8]) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for ordinal in (0..8 * map.len() as u32).filter(|n| map[*n as usize / 8] >> (n % 8) & 1 == 1) {
        match ranges.last_mut() {
            Some(last) if last.end == ordinal => last.end += 1,
            _ => ranges.push(ordinal..ordinal + 1),
        }
    }
    ranges
}

#[cfg(test)]
mod tests;
