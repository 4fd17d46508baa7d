//! Batches in doubt: the journal of a dead process has their intent but no DONE. They are uploaded
//! again, with the same members under the same key.
//!
//! They come before everything else in their core directory: its segments are offered only once
//! none of its batches is in doubt. Members are read in the order of the object's lines. That takes
//! the memory of one commit group, and of an index with 24 bytes per group of the members'
//! segments.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use crate::rt;
use crate::rt::sleep;
use futures_lite::FutureExt;
use glommio::io::ReadResult;

use super::CoreDir;
use super::ledger::JournalBatch;
use crate::spool::format::runs::{MemberRun, RunCursor};
use crate::spool::format::scan::{ScanStep, SegmentScan};
use crate::spool::format::{
    BLOCK, BlockStart, CommitGroup, DATA_START, HEAD_BYTES, group_requests, read_start,
};
use crate::spool::reader::{LOOK_EVERY, Window};
use crate::spool::segment::Segment;
use crate::spool::takeover::offers::OrphanedCore;
use crate::spool::{Spool, SpoolError};

/// A batch to upload again. If it is dropped before it is complete, it and the segments of its
/// directory are left to the next process.
pub struct BatchInDoubt {
    spool: Rc<Spool>,
    dir: Rc<CoreDir>,
    core: Arc<OrphanedCore>,
    /// Its index in `core.in_doubt`.
    number: usize,
    payloads: u64,
    /// Position of the next run.
    cursor: RunCursor,
    /// The rest of the current run.
    run: Option<MemberRun>,
    files: HashMap<u64, IndexedSegment>,
    loaded: Option<LoadedGroup>,
    passed: PassedMembers,
    /// Bytes of the payloads read so far.
    bytes: u64,
}

/// How many members of a batch were read or found lost.
#[derive(Clone, Copy, Default)]
struct PassedMembers {
    lost: u64,
    /// Since the batch began or was rewound.
    now: u64,
    /// The most so far: what is lost up to there was counted.
    most: u64,
}

/// A segment with members of the batch, and an index of its groups.
struct IndexedSegment {
    segment: Segment,
    /// Its intact groups.
    groups: Vec<GroupIndex>,
}

struct GroupIndex {
    at: u64,
    bytes: u64,
    first_ordinal: u32,
    payloads: u32,
}

impl GroupIndex {
    fn ordinals(&self) -> Range<u32> {
        self.first_ordinal..self.first_ordinal + self.payloads
    }
}

/// The group that was read most recently.
struct LoadedGroup {
    segment: u64,
    first_ordinal: u32,
    bytes: ReadResult,
    /// The byte range of each payload.
    spans: Vec<Range<usize>>,
}

/// Where the next member is.
enum MemberAt {
    /// It is this payload of the loaded group.
    Loaded(usize),
    /// This many members, from the next on, are lost.
    Lost(u32),
}

impl Spool {
    /// Waits for a batch in doubt. `None` once a stop has begun.
    pub async fn next_in_doubt(self: &Rc<Self>) -> Option<BatchInDoubt> {
        loop {
            if self.overflow.is_stopped() {
                return None;
            }
            if let Some((core, number)) = self.setup.takeover.take_in_doubt() {
                return Some(self.in_doubt(core, number));
            }
            self.overflow.stopped().or(sleep(LOOK_EVERY)).await;
        }
    }

    fn in_doubt(self: &Rc<Self>, core: Arc<OrphanedCore>, number: usize) -> BatchInDoubt {
        let payloads = core.in_doubt[number].1.runs().payloads();
        self.setup.cells.payloads_taken_over.add(payloads);
        self.setup.cells.spool_payloads.add(payloads);
        BatchInDoubt {
            spool: self.clone(),
            dir: self.taken.dir_of(&core),
            core,
            number,
            payloads,
            cursor: RunCursor::default(),
            run: None,
            files: HashMap::new(),
            loaded: None,
            passed: PassedMembers::default(),
            bytes: 0,
        }
    }
}

impl BatchInDoubt {
    /// The key of the object, from its intent.
    pub fn key(&self) -> &str {
        &self.core.in_doubt[self.number].0
    }

    /// Form of the object, from its intent.
    pub fn form(&self) -> &str {
        &self.batch().form
    }

    fn batch(&self) -> &JournalBatch {
        &self.core.in_doubt[self.number].1
    }

    /// Number of the object's payloads, including lost ones.
    #[cfg(test)]
    pub fn payloads(&self) -> u64 {
        self.payloads
    }

    /// Reads the next payload in the order of the object's lines; `None` after the last.
    ///
    /// # Errors
    /// `InvalidData`: members are lost, which is logged and counted; the next call continues after
    /// them. Any other error: the disk cannot read them now; the next call retries, also after
    /// [`rewind`](BatchInDoubt::rewind).
    pub async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        if self.run.is_none() {
            let (runs, mut cursor) = (self.batch().runs(), self.cursor);
            self.run = cursor.next(runs.bytes());
            self.cursor = cursor;
        }
        let Some(run) = self.run else { return Ok(None) };
        let next = self.find(run).await?;
        let passed = match next {
            MemberAt::Loaded(_) => 1,
            MemberAt::Lost(count) => count,
        };
        let left = MemberRun { first: run.first + passed, count: run.count - passed, ..run };
        self.run = (left.count > 0).then_some(left);
        self.passed.now += u64::from(passed);
        let new = self.passed.now.saturating_sub(self.passed.most);
        self.passed.most += new;
        match next {
            MemberAt::Loaded(index) => {
                let loaded = self.loaded.as_ref().expect("found there");
                let payload = &loaded.bytes[loaded.spans[index].clone()];
                self.bytes += payload.len() as u64;
                self.spool.setup.cells.spool_bytes.add(payload.len() as u64);
                Ok(Some(payload))
            }
            MemberAt::Lost(count) => Err(self.record_loss(run, count, new)),
        }
    }

    /// Goes back to the first payload, without what was read of it in memory.
    pub fn rewind(&mut self) {
        self.spool.setup.cells.spool_bytes.sub(self.bytes);
        (self.bytes, self.passed.now) = (0, 0);
        (self.cursor, self.run, self.loaded) = (RunCursor::default(), None, None);
        self.files.clear();
    }

    /// The first `count` payloads of `run` are lost, `new` of which were not counted before.
    fn record_loss(&mut self, run: MemberRun, count: u32, new: u64) -> io::Error {
        let MemberRun { segment, first, .. } = run;
        let (key, dir) = (self.key(), self.core.path.display());
        let text =
            format!("{count} payloads of {key}, from number {first} in segment {segment} of {dir}");
        if new > 0 {
            tracing::error!(lost = new, "payloads lost: damage took {text}");
        }
        self.passed.lost += new;
        self.spool.setup.cells.payloads_lost.add(new);
        self.spool.setup.cells.spool_payloads.sub(new);
        io::Error::new(io::ErrorKind::InvalidData, format!("damage took {text}"))
    }

    /// Loads the group that holds the first payload of `run`, unless it is loaded.
    async fn find(&mut self, run: MemberRun) -> io::Result<MemberAt> {
        if let Some(loaded) = self.loaded.as_ref().filter(|loaded| loaded.segment == run.segment)
            && let Some(index) = run.first.checked_sub(loaded.first_ordinal)
            && (index as usize) < loaded.spans.len()
        {
            return Ok(MemberAt::Loaded(index as usize));
        }
        if !self.files.contains_key(&run.segment) {
            let Some(path) = self.core.segments.get(&run.segment).cloned() else {
                return Ok(MemberAt::Lost(run.count));
            };
            let file = self.open(&path, run.segment).await?;
            self.files.insert(run.segment, file);
        }
        let file = &self.files[&run.segment];
        let after = file.groups.partition_point(|group| group.first_ordinal <= run.first);
        let before = after.checked_sub(1).map(|at| &file.groups[at]);
        let Some(group) = before.filter(|group| group.ordinals().contains(&run.first)) else {
            let next = file.groups.get(after).map_or(u32::MAX, |group| group.first_ordinal);
            return Ok(MemberAt::Lost(run.count.min(next - run.first)));
        };
        let (first_ordinal, payloads) = (group.first_ordinal, group.payloads);
        // Dropped first, so that two groups are never in memory at once.
        self.loaded = None;
        let loaded = file.load(group, run.segment).await?;
        match loaded {
            Some(loaded) => {
                self.loaded = Some(loaded);
                Ok(MemberAt::Loaded((run.first - first_ordinal) as usize))
            }
            // It was corrupted after the index was made.
            None => Ok(MemberAt::Lost(run.count.min(first_ordinal + payloads - run.first))),
        }
    }

    /// Opens a segment and indexes its groups.
    async fn open(&self, path: &Path, id: u64) -> io::Result<IndexedSegment> {
        let segment = Segment::open(path.to_owned(), self.spool.disk.clone()).await?;
        let head = segment.read(0..DATA_START.min(segment.bytes())).await?;
        let mut scan = SegmentScan::new(segment.bytes(), &head);
        let (mut window, mut groups) = (Window::default(), Vec::new());
        loop {
            match window.next(&segment, &mut scan).await?.0 {
                ScanStep::Group(at, CommitGroup { head, payloads }) if head.label.id == id => {
                    let (bytes, first_ordinal) = (head.group_bytes(), head.first_ordinal);
                    groups.push(GroupIndex { at, bytes, first_ordinal, payloads });
                }
                ScanStep::End(_) => return Ok(IndexedSegment { segment, groups }),
                // Corruption shows later, as members that are missing.
                _ => {}
            }
            rt::yield_if_needed().await;
        }
    }

    /// Records that the object is stored or dead-lettered; durable when this returns. Once no other
    /// batch of its directory is in doubt, the segments there are offered to the readers.
    ///
    /// # Errors
    /// It could not be recorded; call this again.
    ///
    /// # Panics
    /// It was completed before.
    pub async fn complete(&mut self) -> Result<(), SpoolError> {
        self.spool.complete_orphaned(&self.dir, self.key()).await?;
        self.spool.setup.cells.spool_payloads.sub(self.payloads - self.passed.lost);
        self.spool.setup.cells.spool_bytes.sub(self.bytes);
        self.core.replayed.add(self.payloads - self.passed.lost, self.bytes);
        // Last: it offers the segments, so DONE must be durable by now.
        self.core.finish_one();
        Ok(())
    }
}

impl IndexedSegment {
    /// `None`: the group is corrupt.
    async fn load(&self, group: &GroupIndex, segment: u64) -> io::Result<Option<LoadedGroup>> {
        debug_assert!(group.bytes.is_multiple_of(BLOCK));
        let bytes = self.segment.read(group.at..group.at + group.bytes).await?;
        let whole = bytes.len() as u64 >= group.bytes && bytes.len() >= HEAD_BYTES;
        let Some(BlockStart::Head(head)) = whole.then(|| read_start(&bytes)) else {
            return Ok(None);
        };
        let Ok(checked) = CommitGroup::check(head, &bytes) else { return Ok(None) };
        let mut spans = Vec::with_capacity(checked.payloads as usize);
        for record in group_requests(&checked.head, &bytes) {
            let start = record.payloads.as_ptr().addr() - bytes.as_ptr().addr();
            spans.extend(record.spans().map(|span| {
                let Range { start: from, end: to } = span.range();
                start + from..start + to
            }));
        }
        if spans.len() != group.payloads as usize {
            return Ok(None);
        }
        Ok(Some(LoadedGroup { segment, first_ordinal: group.first_ordinal, bytes, spans }))
    }
}
