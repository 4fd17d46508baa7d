//! The reader of one core's spool: queues payloads that are only on disk, because the queue was
//! full or because their spool is orphaned.
//!
//! One task per core reads one commit group at a time, first in, first out, and alternates between
//! the two sources while both have payloads. It waits for room like requests do, but gets at least
//! half of the room that is freed
//! ([`Admission::admit_reader`](crate::queue::admission::Admission)).

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use crate::rt;
use crate::rt::sleep;
use futures_lite::FutureExt;
use glommio::io::ReadResult;

use super::format::scan::{ScanStep, SegmentScan};
use super::format::{CommitGroup, DATA_START, RequestRecord, SegmentDamage, group_requests};
use super::replay::OrphanReader;
use super::segment::Segment;
use super::writer::CommittedGroup;
use super::{CoreDir, Spool};
use crate::queue::admission::Need;
use crate::queue::job::{Origin, Span, Stamp};
use crate::queue::run::{InCommon, Run};
use crate::sync::{Flag, Signal};

/// Bytes per read, unless a group is longer.
const READ_BYTES: u64 = 512 << 10;
/// How often an idle reader looks for orphaned segments.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Payloads of one record that wait for room together; fewer if the queue is smaller.
const CHUNK_PAYLOADS_MAX: usize = 1_000;

/// Payloads of this core that did not fit into the queue. From the first of them on, all later ones
/// are only on disk until the reader has caught up.
#[derive(Default)]
pub(super) struct Overflow {
    /// `None` while the reader has caught up.
    behind: RefCell<Option<OverflowPosition>>,
    /// When the first payload that is only on disk was admitted, or one shortly before it, in
    /// nanoseconds since 1970.
    admitted: Cell<u64>,
    /// Wakes the reader.
    overflowed: Signal,
    /// A stop has begun: payloads that are only on disk stay there.
    stopped: Flag,
}

impl Overflow {
    pub(super) fn is_behind(&self) -> bool {
        self.behind.borrow().is_some()
    }

    /// The first payload that is only on disk is at `behind`, and was admitted at `admitted`.
    pub(super) fn begin(&self, behind: OverflowPosition, admitted: u64) {
        self.behind.replace(Some(behind));
        self.admitted.set(admitted);
        self.overflowed.raise();
    }

    /// When the first payload that is only on disk was admitted, or one shortly before it.
    fn oldest(&self) -> Option<u64> {
        self.is_behind().then_some(self.admitted.get())
    }

    /// Ends the reader's task.
    pub(super) fn stop(&self) {
        self.stopped.set();
        self.overflowed.raise();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    pub(super) async fn stopped(&self) {
        self.stopped.wait().await;
    }
}

/// Position of the first payload that is only on disk.
#[derive(Clone)]
pub(super) struct OverflowPosition {
    segment: Rc<Segment>,
    /// The group to read next.
    at: u64,
    number: u32,
    /// Number of the first payload that is not queued yet.
    ordinal: u32,
}

impl OverflowPosition {
    pub(super) fn new(place: &CommittedGroup, ordinal: u32) -> OverflowPosition {
        let CommittedGroup { segment, at, number, .. } = place;
        OverflowPosition { segment: segment.clone(), at: *at, number: *number, ordinal }
    }
}

/// The bytes of a file that were read most recently.
#[derive(Default)]
pub(super) struct Window {
    start: u64,
    read: Option<ReadResult>,
}

impl Window {
    /// Continues `scan` through `segment`. Returns its next result and the range of its bytes.
    pub(super) async fn next(
        &mut self,
        segment: &Segment,
        scan: &mut SegmentScan,
    ) -> io::Result<(ScanStep, Range<u64>)> {
        loop {
            let wanted = scan.wants();
            if (self.bytes(&wanted).len() as u64) < wanted.end - wanted.start {
                let ahead = (wanted.start + READ_BYTES).min(scan.file_bytes());
                // Dropped first, so that two buffers never exist at once.
                self.read = None;
                self.read = Some(segment.read(wanted.start..wanted.end.max(ahead)).await?);
                self.start = wanted.start;
            }
            match scan.feed(self.bytes(&wanted)) {
                ScanStep::NeedBytes => {}
                found => return Ok((found, wanted)),
            }
        }
    }

    /// The part of `range` that was read.
    pub(super) fn bytes(&self, range: &Range<u64>) -> &[u8] {
        let Some(read) = &self.read else { return &[] };
        let Some(from) = range.start.checked_sub(self.start) else { return &[] };
        let to = (range.end - self.start).min(read.len() as u64);
        read.get(from as usize..to as usize).unwrap_or(&[])
    }
}

impl Spool {
    /// The reader's task.
    pub(super) async fn read_back(self: Rc<Self>) {
        let mut orphans = OrphanReader::default();
        let mut window = Window::default();
        while !self.overflow.is_stopped() {
            if self.disk.health.is_failing() {
                // Payloads that are read back could not be completed, and would take the room of
                // payloads that are only in memory.
                sleep(LOOK_EVERY).await;
                continue;
            }
            let has_caught_up = !self.step_own(&mut window).await;
            let is_idle = !self.step_orphans(&mut orphans).await;
            if has_caught_up && is_idle {
                self.overflow.overflowed.wait().or(sleep(LOOK_EVERY)).await;
            }
            rt::yield_if_needed().await;
        }
    }

    /// Queues one group of this core's own segments. Returns whether there may be more.
    async fn step_own(&self, window: &mut Window) -> bool {
        let Some(behind) = self.overflow.behind.borrow().clone() else { return false };
        let OverflowPosition { segment, at, number, ordinal } = behind;
        let (id, end, closed, payloads) = {
            let generation = segment.generation.borrow();
            (generation.id, generation.end, generation.closed, generation.payloads)
        };
        if at >= end {
            *window = Window::default();
            let next = if closed { self.after(id) } else { None };
            let more = next.is_some();
            // There was no await since `end` was read, so the writer sees that the reader has
            // caught up before it syncs another group.
            self.overflow.behind.replace(next);
            self.setup.cells.spool_overflowing.set(more.into());
            return more;
        }
        let mut scan = SegmentScan::from(end, id, at, number);
        let mut damage = None;
        loop {
            match window.next(&segment, &mut scan).await {
                Ok((ScanStep::Group(at, group), range)) => {
                    if let Some(damage) = damage {
                        self.record_loss(&segment, ordinal..group.head.first_ordinal, &damage);
                    }
                    let bytes = window.bytes(&range);
                    let from = (self.own.dir(), &segment);
                    if !self.enqueue_group(from, &group, bytes, None, |n| n < ordinal).await {
                        return false;
                    }
                    self.overflow.behind.replace(Some(OverflowPosition {
                        segment,
                        at: at + group.head.group_bytes(),
                        number: group.head.number + 1,
                        ordinal: group.head.first_ordinal + group.payloads,
                    }));
                    return true;
                }
                Ok((ScanStep::Damage(found), _)) => damage = Some(found),
                Ok(_) => {
                    let found = SegmentDamage { at: at..end, why: "its groups are not intact" };
                    self.record_loss(&segment, ordinal..payloads, &found);
                    let behind = OverflowPosition { segment, at: end, number, ordinal: payloads };
                    self.overflow.behind.replace(Some(behind));
                    return true;
                }
                Err(error) => {
                    // Retried: nothing is lost as long as the file exists.
                    self.fail(segment.path(), &error);
                    sleep(LOOK_EVERY).await;
                    return true;
                }
            }
        }
    }

    /// The start of the segment after the one with `id`.
    fn after(&self, id: u64) -> Option<OverflowPosition> {
        let segment = self.own.after(id)?;
        Some(OverflowPosition { segment, at: DATA_START, number: 0, ordinal: 0 })
    }

    /// Reports synced payloads that can no longer be read, and completes them.
    pub(super) fn record_loss(
        &self,
        segment: &Segment,
        ordinals: Range<u32>,
        damage: &SegmentDamage,
    ) {
        let lost = segment.complete_missing(ordinals);
        let file = segment.path().display();
        tracing::error!(lost, "payloads lost: {file} is {damage}");
        segment.mark_damaged();
        self.setup.cells.payloads_lost.add(lost);
        match segment.is_orphaned() {
            true => self.setup.cells.payloads_taken_over.add(lost),
            false => self.setup.cells.spool_payloads.sub(lost),
        }
    }

    /// When the oldest payload was admitted that is only on disk, as far as this core has read what
    /// crashed processes have left; in nanoseconds since 1970.
    pub fn oldest_on_disk(&self) -> Option<u64> {
        self.overflow.oldest().into_iter().chain(self.taken.oldest()).min()
    }

    /// Queues the payloads of a group except those for which `skip` is true, waiting for room.
    /// Returns false once the queue has closed.
    pub(super) async fn enqueue_group(
        &self,
        (dir, segment): (&Rc<CoreDir>, &Rc<Segment>),
        group: &CommitGroup,
        bytes: &[u8],
        origin: Option<&Rc<Origin>>,
        skip: impl Fn(u32) -> bool,
    ) -> bool {
        let payloads_max = CHUNK_PAYLOADS_MAX.min(self.admission.slots_max());
        let bytes_max = self.admission.bytes_max() / 2;
        let mut ordinal = group.head.first_ordinal;
        for record in group_requests(&group.head, bytes) {
            let Stamp { unix_nanos, seq: first_seq } = record.first;
            match origin {
                None => self.overflow.admitted.set(unix_nanos),
                Some(_) => segment.note_admitted(unix_nanos),
            }
            let (dir, segment) = (dir.clone(), segment.clone());
            let handle = self.record(dir, segment, ordinal, first_seq, origin.cloned());
            let mut chunk = PayloadChunk::default();
            for (span, at) in record.spans().zip(0..) {
                if skip(ordinal + at) {
                    continue;
                }
                let more = (span.end - span.start) as usize;
                let full =
                    chunk.spans.len() >= payloads_max || chunk.bytes.len() + more > bytes_max;
                if full
                    && !chunk.spans.is_empty()
                    && !self.push_chunk(&mut chunk, &record, &handle).await
                {
                    return false;
                }
                chunk.add(&record, span, first_seq + u64::from(at));
            }
            if !chunk.spans.is_empty() && !self.push_chunk(&mut chunk, &record, &handle).await {
                return false;
            }
            ordinal += record.count();
        }
        true
    }

    async fn push_chunk(
        &self,
        chunk: &mut PayloadChunk,
        record: &RequestRecord<'_>,
        handle: &Rc<super::SpooledRequest>,
    ) -> bool {
        let PayloadChunk { bytes, spans, seqs } = std::mem::take(chunk);
        let values = record.values();
        let need = Need::of(spans.len(), bytes.len() + values.bytes());
        let Some(permit) = self.admission.admit_reader(need).await else { return false };
        if handle.origin().is_some() {
            let (payloads, bytes) = (spans.len() as u64, bytes.len() as u64);
            self.setup.cells.payloads_taken_over.add(payloads);
            self.setup.cells.spool_payloads.add(payloads);
            self.setup.cells.spool_bytes.add(bytes);
            handle.segment.add_unstored(bytes);
            handle.segment.count_replayed(payloads, bytes);
        }
        let first = Stamp { seq: seqs[0], ..record.first };
        let record = Some(handle.clone());
        let common = InCommon { values, first, record, request_outcome: None };
        for run in Run::with_seqs(bytes, permit, spans, &seqs, common) {
            self.admission.push(run);
        }
        true
    }
}

/// Payloads of one record that are queued together.
#[derive(Default)]
struct PayloadChunk {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    seqs: Vec<u64>,
}

impl PayloadChunk {
    fn add(&mut self, record: &RequestRecord<'_>, span: Span, seq: u64) {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(&record.payloads[span.range()]);
        self.spans.push(Span { start, end: self.bytes.len() as u32 });
        self.seqs.push(seq);
    }
}
