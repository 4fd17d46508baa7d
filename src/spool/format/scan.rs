//! Walks through a segment group by group, and past damage; pure: it says which bytes it wants and
//! is given them.

use std::ops::Range;

use super::{BLOCK, DATA_START, Damage, Group, HEAD_BYTES, Head, Progress, Start, read_start};

/// Bytes looked through at a time for the next whole group.
const SEARCH_BYTES: u64 = 1 << 20;

/// A walk through one segment.
pub struct Scan {
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
    state: State,
}

enum State {
    /// At a block that should start a group.
    Start,
    /// A head that fits was there.
    Body(Head),
    /// Something else was there; looking for a later group from `at` on.
    Search {
        bad: Bad,
        at: u64,
    },
    /// While searching, a head that fits was found.
    Candidate {
        bad: Bad,
        at: u64,
        head: Head,
    },
    Ended,
}

/// What is where a group should be.
#[derive(Clone, Copy)]
enum Bad {
    /// Zeros, or a group of another use.
    Nothing,
    /// The expected group, begun and not whole.
    Torn(&'static str),
    /// A head of another version.
    Version(u8),
    Garbage,
}

impl Bad {
    fn why(self) -> &'static str {
        match self {
            Bad::Nothing => "a group is missing",
            Bad::Torn(why) => why,
            Bad::Version(_) => "a group is of another version",
            Bad::Garbage => "the head of a group is not whole",
        }
    }
}

/// What a walk finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing yet: give it what it wants now.
    Nothing,
    /// The next group, all of whose bytes were just given, and where it lies.
    Group(u64, Group),
    /// Groups that were synced once are not there; the walk goes on behind them.
    Damage(Damage),
    End(End),
}

/// How a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
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

impl End {
    /// Why a file that ends like this is not what was written.
    pub fn problem(self) -> Option<String> {
        match self {
            End::Clean | End::Torn { .. } => None,
            End::Lost { at, why } => Some(format!("damaged from byte {at} on: {why}")),
            End::Foreign => Some("damaged from the first group on, or no spool file".to_owned()),
            End::Version(version) => {
                Some(format!("written by another version, which must read it (format {version})"))
            }
            End::Truncated { bytes, of } => Some(format!("cut short: {bytes} bytes of {of}")),
        }
    }
}

impl Scan {
    /// A walk through a whole file of `file_bytes`, of which `head` are the first [`DATA_START`].
    pub fn new(file_bytes: u64, head: &[u8]) -> Scan {
        let progress = Progress::read(head);
        let foreign = progress.is_none() && !Progress::may_be_torn(head);
        let progress = progress.as_ref();
        let open = progress.filter(|progress| !progress.complete);
        let completed = progress.filter(|progress| progress.complete);
        Scan {
            file_bytes,
            segment_bytes: None,
            at: DATA_START,
            number: 0,
            id: open.map(|progress| progress.id),
            completed: completed.map(|progress| progress.id),
            groups_end: open.and_then(|progress| progress.groups_end).unwrap_or(u32::MAX),
            groups_synced: open.map_or(0, |progress| progress.groups),
            foreign,
            state: State::Start,
        }
    }

    /// A walk from group `number` of segment `id` on, which lies `at` there.
    pub fn from(file_bytes: u64, id: u64, at: u64, number: u32) -> Scan {
        Scan { at, id: Some(id), number, ..Scan::new(file_bytes, &[]) }
    }

    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The bytes to give next; empty at the file's end.
    pub fn wants(&self) -> Range<u64> {
        let (at, bytes) = match &self.state {
            State::Start => (self.at, BLOCK),
            State::Body(head) => (self.at, head.group_bytes()),
            State::Search { at, .. } => (*at, SEARCH_BYTES),
            State::Candidate { at, head, .. } => (*at, head.group_bytes()),
            State::Ended => (self.file_bytes, 0),
        };
        at.min(self.file_bytes)..(at + bytes).min(self.file_bytes)
    }

    /// Takes the bytes that were wanted.
    pub fn feed(&mut self, bytes: &[u8]) -> Found {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Start => self.start(bytes),
            State::Body(head) => match Group::check(head, bytes) {
                Ok(group) => self.found(group),
                Err(why) => self.search_from(Bad::Torn(why), self.at + BLOCK),
            },
            State::Search { bad, at } => self.search(bad, at, bytes),
            State::Candidate { bad, at, head } => match Group::check(head, bytes) {
                Ok(group) => {
                    let damage = Damage { at: self.at..at, why: bad.why() };
                    (self.at, self.number) = (at, group.head.number);
                    self.state = State::Body(group.head);
                    Found::Damage(damage)
                }
                Err(_) => self.search_from(bad, at + BLOCK),
            },
            State::Ended => Found::End(End::Clean),
        }
    }

    fn start(&mut self, bytes: &[u8]) -> Found {
        if bytes.len() < HEAD_BYTES || self.number >= self.groups_end {
            return self.end(Bad::Nothing);
        }
        let bad = match read_start(bytes) {
            Start::Head(head) if self.is_ours(&head) && head.number == self.number => {
                self.id = Some(head.label.id);
                self.segment_bytes = Some(head.label.segment_bytes);
                self.state = State::Body(head);
                return Found::Nothing;
            }
            Start::Head(_) | Start::Zeros => Bad::Nothing,
            Start::Version(version) => Bad::Version(version),
            Start::Other => Bad::Garbage,
        };
        self.search_from(bad, self.at)
    }

    fn is_ours(&self, head: &Head) -> bool {
        match self.id {
            Some(id) => head.label.id == id,
            None => self.completed.is_none_or(|completed| head.label.id > completed),
        }
    }

    fn found(&mut self, group: Group) -> Found {
        let at = self.at;
        self.id = Some(group.head.label.id);
        self.segment_bytes = Some(group.head.label.segment_bytes);
        self.at += group.head.group_bytes();
        self.number += 1;
        self.state = State::Start;
        Found::Group(at, group)
    }

    fn search_from(&mut self, bad: Bad, at: u64) -> Found {
        self.state = State::Search { bad, at };
        Found::Nothing
    }

    /// Looks for a later group: if there is a whole one, what lies before it was synced once.
    fn search(&mut self, bad: Bad, from: u64, bytes: &[u8]) -> Found {
        for (at, block) in (from..).step_by(BLOCK as usize).zip(bytes.chunks_exact(BLOCK as usize))
        {
            if let Start::Head(head) = read_start(block)
                && self.is_ours(&head)
                && (self.number + 1..self.groups_end).contains(&head.number)
            {
                self.state = State::Candidate { bad, at, head };
                return Found::Nothing;
            }
        }
        let at = from + bytes.len() as u64;
        if bytes.len() < BLOCK as usize || at >= self.file_bytes {
            return self.end(bad);
        }
        self.search_from(bad, at)
    }

    fn end(&self, bad: Bad) -> Found {
        let unknown = self.id.is_none() && self.completed.is_none();
        Found::End(match (bad, self.segment_bytes) {
            (_, Some(of)) if self.file_bytes < of => End::Truncated { bytes: self.file_bytes, of },
            _ if self.number < self.groups_synced => End::Lost { at: self.at, why: bad.why() },
            (Bad::Torn(why), _) => End::Torn { at: self.at, why },
            (Bad::Version(version), _) if unknown => End::Version(version),
            (Bad::Garbage, _) if unknown => End::Foreign,
            _ if unknown && self.foreign => End::Foreign,
            _ => End::Clean,
        })
    }
}

/// Walks through a file that is whole in memory; `visit` hears everything that is found, with a
/// group's own bytes.
pub fn walk(file: &[u8], mut visit: impl FnMut(Found, &[u8])) {
    let mut scan = Scan::new(file.len() as u64, &file[..file.len().min(DATA_START as usize)]);
    loop {
        let wanted = scan.wants();
        let bytes = &file[wanted.start as usize..wanted.end as usize];
        match scan.feed(bytes) {
            Found::Nothing => {}
            end @ Found::End(_) => return visit(end, &[]),
            found => visit(found, bytes),
        }
    }
}
