//! Scans a segment group by group and continues after corruption. Pure: it asks for byte ranges,
//! and the caller supplies them.

use std::ops::Range;

use super::{
    BLOCK, BlockStart, Checkpoint, CommitGroup, DATA_START, GroupHead, HEAD_BYTES, SegmentDamage,
    read_start,
};

/// Bytes searched at a time for the next intact group.
const SEARCH_BYTES: u64 = 1 << 20;

/// A scan of one segment.
pub struct SegmentScan {
    file_bytes: u64,
    /// The segment's size according to its groups.
    segment_bytes: Option<u64>,
    /// Expected offset of the next group.
    at: u64,
    /// Its expected number.
    number: u32,
    /// The generation's id, once known.
    id: Option<u64>,
    /// Groups of generations up to this one are ignored.
    completed: Option<u64>,
    /// Groups from this number on were never acknowledged.
    groups_end: u32,
    /// Groups that were synced according to the checkpoint.
    groups_synced: u32,
    /// The checkpoint slots hold something else.
    foreign: bool,
    state: ScanState,
}

enum ScanState {
    /// At a block where a group should start.
    Start,
    /// A matching head was found there.
    Body(GroupHead),
    /// Something else was found; searching for a later group from `at` on.
    Search {
        bad: Unexpected,
        at: u64,
    },
    /// The search found a matching head.
    Candidate {
        bad: Unexpected,
        at: u64,
        head: GroupHead,
    },
    Ended,
}

/// What was found where a group should be.
#[derive(Clone, Copy)]
enum Unexpected {
    /// Zeros, or a group of another generation.
    Nothing,
    /// The expected group, only partly written.
    Torn(&'static str),
    /// A head of another format version.
    Version(u8),
    Garbage,
}

impl Unexpected {
    fn why(self) -> &'static str {
        match self {
            Unexpected::Nothing => "a group is missing",
            Unexpected::Torn(why) => why,
            Unexpected::Version(_) => "a group has another format version",
            Unexpected::Garbage => "the head of a group is corrupt",
        }
    }
}

/// What a step of a scan yields.
#[derive(Debug, PartialEq, Eq)]
pub enum ScanStep {
    /// Nothing yet: feed it the bytes that it wants now.
    NeedBytes,
    /// The next group and its offset; the bytes just fed are the whole group.
    Group(u64, CommitGroup),
    /// Groups that had been synced are missing; the scan continues after them.
    Damage(SegmentDamage),
    End(SegmentEnd),
}

/// How a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentEnd {
    /// After the last group that was written.
    Clean,
    /// In an incomplete group, which was never acknowledged.
    Torn { at: u64, why: &'static str },
    /// From this byte on, groups that had been synced are missing.
    Lost { at: u64, why: &'static str },
    /// It is not a spool file.
    Foreign,
    /// It has another format version.
    Version(u8),
    /// It is shorter than its groups record.
    Truncated { bytes: u64, of: u64 },
}

impl SegmentEnd {
    /// The corruption that this end means, if any.
    pub fn problem(self) -> Option<String> {
        match self {
            SegmentEnd::Clean | SegmentEnd::Torn { .. } => None,
            SegmentEnd::Lost { at, why } => Some(format!("damaged from byte {at} on: {why}")),
            SegmentEnd::Foreign => {
                Some("damaged from the first group on, or not a spool file".to_owned())
            }
            SegmentEnd::Version(version) => Some(format!(
                "written by another version of millrace (format {version}), which must read it"
            )),
            SegmentEnd::Truncated { bytes, of } => {
                Some(format!("truncated: {bytes} of {of} bytes"))
            }
        }
    }
}

impl SegmentScan {
    /// Scans a whole file of `file_bytes`; `head` is its first [`DATA_START`] bytes.
    pub fn new(file_bytes: u64, head: &[u8]) -> SegmentScan {
        let checkpoint = Checkpoint::read(head);
        let foreign = checkpoint.is_none() && !Checkpoint::may_be_torn(head);
        let checkpoint = checkpoint.as_ref();
        let open = checkpoint.filter(|checkpoint| !checkpoint.complete);
        let completed = checkpoint.filter(|checkpoint| checkpoint.complete);
        SegmentScan {
            file_bytes,
            segment_bytes: None,
            at: DATA_START,
            number: 0,
            id: open.map(|checkpoint| checkpoint.id),
            completed: completed.map(|checkpoint| checkpoint.id),
            groups_end: open.and_then(|checkpoint| checkpoint.groups_end).unwrap_or(u32::MAX),
            groups_synced: open.map_or(0, |checkpoint| checkpoint.groups),
            foreign,
            state: ScanState::Start,
        }
    }

    /// Scans generation `id` from group `number` on, which is at offset `at`.
    pub fn from(file_bytes: u64, id: u64, at: u64, number: u32) -> SegmentScan {
        SegmentScan { at, id: Some(id), number, ..SegmentScan::new(file_bytes, &[]) }
    }

    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The bytes to feed next; empty at the end of the file.
    pub fn wants(&self) -> Range<u64> {
        let (at, bytes) = match &self.state {
            ScanState::Start => (self.at, BLOCK),
            ScanState::Body(head) => (self.at, head.group_bytes()),
            ScanState::Search { at, .. } => (*at, SEARCH_BYTES),
            ScanState::Candidate { at, head, .. } => (*at, head.group_bytes()),
            ScanState::Ended => (self.file_bytes, 0),
        };
        at.min(self.file_bytes)..(at + bytes).min(self.file_bytes)
    }

    /// Processes the bytes that were wanted.
    pub fn feed(&mut self, bytes: &[u8]) -> ScanStep {
        match std::mem::replace(&mut self.state, ScanState::Ended) {
            ScanState::Start => self.start(bytes),
            ScanState::Body(head) => match CommitGroup::check(head, bytes) {
                Ok(group) => self.found(group),
                Err(why) => self.search_from(Unexpected::Torn(why), self.at + BLOCK),
            },
            ScanState::Search { bad, at } => self.search(bad, at, bytes),
            ScanState::Candidate { bad, at, head } => match CommitGroup::check(head, bytes) {
                Ok(group) => {
                    let damage = SegmentDamage { at: self.at..at, why: bad.why() };
                    (self.at, self.number) = (at, group.head.number);
                    self.state = ScanState::Body(group.head);
                    ScanStep::Damage(damage)
                }
                Err(_) => self.search_from(bad, at + BLOCK),
            },
            ScanState::Ended => ScanStep::End(SegmentEnd::Clean),
        }
    }

    fn start(&mut self, bytes: &[u8]) -> ScanStep {
        if bytes.len() < HEAD_BYTES || self.number >= self.groups_end {
            return self.end(Unexpected::Nothing);
        }
        let bad = match read_start(bytes) {
            BlockStart::Head(head) if self.is_ours(&head) && head.number == self.number => {
                self.id = Some(head.label.id);
                self.segment_bytes = Some(head.label.segment_bytes);
                self.state = ScanState::Body(head);
                return ScanStep::NeedBytes;
            }
            BlockStart::Head(_) | BlockStart::Zeros => Unexpected::Nothing,
            BlockStart::Version(version) => Unexpected::Version(version),
            BlockStart::Other => Unexpected::Garbage,
        };
        self.search_from(bad, self.at)
    }

    fn is_ours(&self, head: &GroupHead) -> bool {
        match self.id {
            Some(id) => head.label.id == id,
            None => self.completed.is_none_or(|completed| head.label.id > completed),
        }
    }

    fn found(&mut self, group: CommitGroup) -> ScanStep {
        let at = self.at;
        self.id = Some(group.head.label.id);
        self.segment_bytes = Some(group.head.label.segment_bytes);
        self.at += group.head.group_bytes();
        self.number += 1;
        self.state = ScanState::Start;
        ScanStep::Group(at, group)
    }

    fn search_from(&mut self, bad: Unexpected, at: u64) -> ScanStep {
        self.state = ScanState::Search { bad, at };
        ScanStep::NeedBytes
    }

    /// Searches for a later group: if there is an intact one, everything before it had been synced.
    fn search(&mut self, bad: Unexpected, from: u64, bytes: &[u8]) -> ScanStep {
        for (at, block) in (from..).step_by(BLOCK as usize).zip(bytes.chunks_exact(BLOCK as usize))
        {
            if let BlockStart::Head(head) = read_start(block)
                && self.is_ours(&head)
                // A higher number only: the expected group itself is not intact.
                && (self.number + 1..self.groups_end).contains(&head.number)
            {
                self.state = ScanState::Candidate { bad, at, head };
                return ScanStep::NeedBytes;
            }
        }
        let at = from + bytes.len() as u64;
        if bytes.len() < BLOCK as usize || at >= self.file_bytes {
            return self.end(bad);
        }
        self.search_from(bad, at)
    }

    fn end(&self, bad: Unexpected) -> ScanStep {
        let unknown = self.id.is_none() && self.completed.is_none();
        ScanStep::End(match (bad, self.segment_bytes) {
            (_, Some(of)) if self.file_bytes < of => {
                SegmentEnd::Truncated { bytes: self.file_bytes, of }
            }
            // The checkpoint says that these groups were synced, so this is no torn tail.
            _ if self.number < self.groups_synced => {
                SegmentEnd::Lost { at: self.at, why: bad.why() }
            }
            (Unexpected::Torn(why), _) => SegmentEnd::Torn { at: self.at, why },
            (Unexpected::Version(version), _) if unknown => SegmentEnd::Version(version),
            (Unexpected::Garbage, _) if unknown => SegmentEnd::Foreign,
            _ if unknown && self.foreign => SegmentEnd::Foreign,
            _ => SegmentEnd::Clean,
        })
    }
}

/// Scans a file in memory; `visit` gets every step, with the bytes of a group.
pub fn walk(file: &[u8], mut visit: impl FnMut(ScanStep, &[u8])) {
    let mut scan =
        SegmentScan::new(file.len() as u64, &file[..file.len().min(DATA_START as usize)]);
    loop {
        let wanted = scan.wants();
        let bytes = &file[wanted.start as usize..wanted.end as usize];
        match scan.feed(bytes) {
            ScanStep::NeedBytes => {}
            end @ ScanStep::End(_) => return visit(end, &[]),
            found => visit(found, bytes),
        }
    }
}
