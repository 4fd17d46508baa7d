//! Walks through a segment group by group, and past damage; pure: it says which bytes it wants and
//! is given them.

use std::ops::Range;

use super::{
    BLOCK, BlockStart, Checkpoint, CommitGroup, DATA_START, GroupHead, HEAD_BYTES, SegmentDamage,
    read_start,
};

/// Bytes looked through at a time for the next whole group.
const SEARCH_BYTES: u64 = 1 << 20;

/// A walk through one segment.
pub struct SegmentScan {
    file_bytes: u64,
    /// As its groups say.
    segment_bytes: Option<u64>,
    /// Where the next group is expected.
    at: u64,
    /// Its number.
    number: u32,
    /// The use of the segment, once known.
    id: Option<u64>,
    /// Groups of uses up to this one are nothing any more.
    completed: Option<u64>,
    /// Groups from this number on were never acknowledged.
    groups_end: u32,
    /// Groups that were synced, as progress says.
    groups_synced: u32,
    /// Where progress belongs there is something else.
    foreign: bool,
    state: ScanState,
}

enum ScanState {
    /// At a block that should start a group.
    Start,
    /// A head that fits was there.
    Body(GroupHead),
    /// Something else was there; looking for a later group from `at` on.
    Search {
        bad: Unexpected,
        at: u64,
    },
    /// While searching, a head that fits was found.
    Candidate {
        bad: Unexpected,
        at: u64,
        head: GroupHead,
    },
    Ended,
}

/// What is where a group should be.
#[derive(Clone, Copy)]
enum Unexpected {
    /// Zeros, or a group of another use.
    Nothing,
    /// The expected group, begun and not whole.
    Torn(&'static str),
    /// A head of another version.
    Version(u8),
    Garbage,
}

impl Unexpected {
    fn why(self) -> &'static str {
        match self {
            Unexpected::Nothing => "a group is missing",
            Unexpected::Torn(why) => why,
            Unexpected::Version(_) => "a group is of another version",
            Unexpected::Garbage => "the head of a group is not whole",
        }
    }
}

/// What a walk finds.
#[derive(Debug, PartialEq, Eq)]
pub enum ScanStep {
    /// Nothing yet: give it what it wants now.
    NeedBytes,
    /// The next group, all of whose bytes were just given, and where it lies.
    Group(u64, CommitGroup),
    /// Groups that were synced once are not there; the walk goes on behind them.
    Damage(SegmentDamage),
    End(SegmentEnd),
}

/// How a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentEnd {
    /// Where nothing more was written.
    Clean,
    /// In a group that is not whole, which was never acknowledged.
    Torn { at: u64, why: &'static str },
    /// Without groups that had been synced, from this byte on.
    Lost { at: u64, why: &'static str },
    /// It holds something, but nothing of ours.
    Foreign,
    /// It was written by another version of this program.
    Version(u8),
    /// It is shorter than its groups say.
    Truncated { bytes: u64, of: u64 },
}

impl SegmentEnd {
    /// Why a file that ends like this is not what was written.
    pub fn problem(self) -> Option<String> {
        match self {
            SegmentEnd::Clean | SegmentEnd::Torn { .. } => None,
            SegmentEnd::Lost { at, why } => Some(format!("damaged from byte {at} on: {why}")),
            SegmentEnd::Foreign => {
                Some("damaged from the first group on, or no spool file".to_owned())
            }
            SegmentEnd::Version(version) => {
                Some(format!("written by another version, which must read it (format {version})"))
            }
            SegmentEnd::Truncated { bytes, of } => {
                Some(format!("cut short: {bytes} bytes of {of}"))
            }
        }
    }
}

impl SegmentScan {
    /// A walk through a whole file of `file_bytes`, of which `head` are the first [`DATA_START`].
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

    /// A walk from group `number` of segment `id` on, which lies `at` there.
    pub fn from(file_bytes: u64, id: u64, at: u64, number: u32) -> SegmentScan {
        SegmentScan { at, id: Some(id), number, ..SegmentScan::new(file_bytes, &[]) }
    }

    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The bytes to give next; empty at the file's end.
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

    /// Takes the bytes that were wanted.
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

    /// Looks for a later group: if there is a whole one, what lies before it was synced once.
    fn search(&mut self, bad: Unexpected, from: u64, bytes: &[u8]) -> ScanStep {
        for (at, block) in (from..).step_by(BLOCK as usize).zip(bytes.chunks_exact(BLOCK as usize))
        {
            if let BlockStart::Head(head) = read_start(block)
                && self.is_ours(&head)
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

/// Walks through a file that is whole in memory; `visit` hears everything that is found, with a
/// group's own bytes.
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
