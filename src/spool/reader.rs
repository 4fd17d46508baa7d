//! Brings payloads that lie on disk only back to the ring: those that found it full, and those of crashed processes.
//!
//! One task per core, one group at a time, first in, first out; while there is both, they take turns. It waits for room
//! like everybody, but gets at least half of what is freed ([`Admission::admit_reader`](crate::queue::admission::Admission)).

use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::FutureExt;
use glommio::io::ReadResult;

use super::format::scan::{End, Found, Scan};
use super::format::{BLOCK, DATA_START, Damage, Group, Progress, RecordRef, keys_of, records};
use super::instances::{self, Orphan, put_aside};
use super::orphans::LeftCore;
use super::segment::Segment;
use super::{CoreDir, Place, Spool};
use crate::http::parse::Span;
use crate::queue::admission::Need;
use crate::queue::job::{Origin, Payload};
use crate::rt::{self, sleep};

/// Bytes read at a time, if no group is longer.
const READ_BYTES: u64 = 512 << 10;
/// How often an idle reader looks for segments of crashed processes.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Payloads of one record that ask for room together; fewer if the ring is smaller.
const CHUNK_PAYLOADS_MAX: usize = 1_000;

/// Where the payloads begin that are on disk only.
#[derive(Clone)]
pub(super) struct Behind {
    segment: Rc<Segment>,
    /// The group to read next.
    at: u64,
    number: u32,
    /// The first payload that is not in the ring yet.
    ordinal: u32,
}

impl Behind {
    pub(super) fn new(place: &Place, ordinal: u32) -> Behind {
        let Place { segment, at, number, .. } = place;
        Behind { segment: segment.clone(), at: *at, number: *number, ordinal }
    }
}

/// The bytes of a file that were read last.
#[derive(Default)]
pub(super) struct Window {
    start: u64,
    read: Option<ReadResult>,
}

impl Window {
    /// What the walk `scan` finds next in `segment`, and where its bytes are.
    pub(super) async fn next(
        &mut self,
        segment: &Segment,
        scan: &mut Scan,
    ) -> io::Result<(Found, Range<u64>)> {
        loop {
            let wanted = scan.wants();
            if (self.bytes(&wanted).len() as u64) < wanted.end - wanted.start {
                let ahead = (wanted.start + READ_BYTES).min(scan.file_bytes());
                self.read = None;
                self.read = Some(segment.read(wanted.start..wanted.end.max(ahead)).await?);
                self.start = wanted.start;
            }
            match scan.feed(self.bytes(&wanted)) {
                Found::Nothing => {}
                found => return Ok((found, wanted)),
            }
        }
    }

    /// What of `range` was read.
    pub(super) fn bytes(&self, range: &Range<u64>) -> &[u8] {
        let Some(read) = &self.read else { return &[] };
        let Some(from) = range.start.checked_sub(self.start) else { return &[] };
        let to = (range.end - self.start).min(read.len() as u64);
        read.get(from as usize..to as usize).unwrap_or(&[])
    }
}

/// A crashed process's segment that is being brought back.
struct Replay {
    dir: Rc<CoreDir>,
    core: Arc<LeftCore>,
    segment: Rc<Segment>,
    scan: Scan,
    window: Window,
    /// Its keys are made of this.
    origin: Option<Rc<Origin>>,
    /// The number of the next payload, if nothing is missing.
    next_ordinal: u32,
}

impl Spool {
    /// The reader's task.
    pub(super) async fn read_back(self: Rc<Self>) {
        let mut replay = None;
        let mut window = Window::default();
        while !self.reading_stopped.get() {
            if replay.is_none()
                && let Some(orphan) = self.setup.orphans.take()
            {
                replay = self.begin_replay(orphan).await;
            }
            if self.disk.health.is_failing() {
                // What it brought back could not leave the spool, and would take the room of what is in memory only.
                sleep(LOOK_EVERY).await;
                continue;
            }
            let caught_up = !self.step_own(&mut window).await;
            if let Some(replaying) = &mut replay {
                if !self.step_replay(replaying).await {
                    replay = None;
                }
            } else if caught_up {
                self.overflowed.wait().or(sleep(LOOK_EVERY)).await;
            }
            rt::yield_if_needed().await;
        }
    }

    /// Brings one group of this core's own back; whether there may be more.
    async fn step_own(&self, window: &mut Window) -> bool {
        let Some(behind) = self.behind.borrow().clone() else { return false };
        let Behind { segment, at, number, ordinal } = behind;
        let (id, end, closed, payloads) = {
            let use_of = segment.use_of.borrow();
            (use_of.id, use_of.end, use_of.closed, use_of.payloads)
        };
        if at >= end {
            *window = Window::default();
            let next = if closed { self.after(id) } else { None };
            let more = next.is_some();
            // No await since `end` was read: what is synced from now on finds the reader caught up.
            self.behind.replace(next);
            self.setup.cells.spool_overflowing.set(more.into());
            return more;
        }
        let mut scan = Scan::from(end, id, at, number);
        let mut damage = None;
        loop {
            match window.next(&segment, &mut scan).await {
                Ok((Found::Group(at, group), range)) => {
                    if let Some(damage) = damage {
                        self.lose(&segment, ordinal..group.head.first_ordinal, &damage);
                    }
                    let bytes = window.bytes(&range);
                    let from = (&self.own_dir(), &segment);
                    if !self.bring(from, &group, bytes, None, |n| n < ordinal).await {
                        return false;
                    }
                    self.behind.replace(Some(Behind {
                        segment,
                        at: at + group.head.group_bytes(),
                        number: group.head.number + 1,
                        ordinal: group.head.first_ordinal + group.payloads,
                    }));
                    return true;
                }
                Ok((Found::Damage(found), _)) => damage = Some(found),
                Ok(_) => {
                    let found = Damage { at: at..end, why: "its groups are not whole" };
                    self.lose(&segment, ordinal..payloads, &found);
                    let behind = Behind { segment, at: end, number, ordinal: payloads };
                    self.behind.replace(Some(behind));
                    return true;
                }
                Err(error) => {
                    // Tried again: nothing is lost as long as the file is there.
                    self.fail(segment.path(), &error);
                    sleep(LOOK_EVERY).await;
                    return true;
                }
            }
        }
    }

    /// The beginning of the segment after that with `id`.
    fn after(&self, id: u64) -> Option<Behind> {
        let segments = self.segments.borrow();
        let segment = segments.iter().find(|segment| segment.use_of.borrow().id > id)?.clone();
        Some(Behind { segment, at: DATA_START, number: 0, ordinal: 0 })
    }

    /// Payloads that were synced and cannot be read any more.
    fn lose(&self, segment: &Segment, ordinals: Range<u32>, damage: &Damage) {
        let lost = segment.settle_missing(ordinals);
        let file = segment.path().display();
        tracing::error!(lost, "payloads lost: {file} is {damage}");
        segment.note_damage();
        self.setup.cells.payloads_lost.add(lost);
        match segment.is_adopted() {
            true => self.setup.cells.payloads_adopted.add(lost),
            false => self.setup.cells.spool_payloads.sub(lost),
        }
    }

    async fn begin_replay(&self, orphan: Orphan) -> Option<Replay> {
        let path = orphan.path.clone();
        if orphan.bytes < BLOCK {
            // Empty: its process was just about to make it.
            let empty = orphan.bytes == 0;
            if !empty {
                tracing::error!("{} is no spool segment", path.display());
            }
            let finish = move || {
                let gone = if empty { instances::remove(&path) } else { put_aside(&path) };
                if let Err(error) = gone {
                    tracing::warn!("{} could not be taken away: {error}", path.display());
                }
                orphan.finished();
                Ok(())
            };
            let _a_disk_that_hangs = self.disk.run(finish).await;
            return None;
        }
        let core = orphan.core.clone();
        let opened = async {
            let segment = Segment::adopt(orphan, self.disk.clone()).await?;
            let head = segment.read(0..DATA_START.min(segment.bytes())).await?;
            let scan = Scan::new(segment.bytes(), &head);
            let progress = Progress::read(&head);
            segment.resume(progress);
            io::Result::Ok((Rc::new(segment), scan))
        };
        match opened.await {
            Ok((segment, scan)) => {
                self.adopted.borrow_mut().push(segment.clone());
                let window = Window::default();
                let dir = self.dir_of(&core);
                Some(Replay { dir, core, segment, scan, window, origin: None, next_ordinal: 0 })
            }
            Err(error) => {
                let path = path.display();
                tracing::error!(
                    "{path} of the spool is left where it is, it cannot be read: {error}"
                );
                None
            }
        }
    }

    /// Brings one group of a crashed process back; whether there may be more.
    async fn step_replay(&self, replay: &mut Replay) -> bool {
        let Replay { dir, core, segment, scan, window, origin, next_ordinal } = replay;
        let file = segment.path().display().to_string();
        match window.next(segment, scan).await {
            Ok((Found::Group(_, group), range)) => {
                let head = &group.head;
                if origin.is_none() {
                    // Members of batches that are done, by now.
                    core.members.of_segment(head.label.id).for_each(|run| segment.settle_run(run));
                }
                if head.first_ordinal > *next_ordinal {
                    let damage = Damage { at: range.clone(), why: "missing before here" };
                    self.lose(segment, *next_ordinal..head.first_ordinal, &damage);
                }
                *next_ordinal = head.first_ordinal + group.payloads;
                {
                    let mut use_of = segment.use_of.borrow_mut();
                    use_of.id = head.label.id;
                    use_of.groups = use_of.groups.max(head.number + 1);
                }
                let bytes = window.bytes(&range);
                let origin = origin.get_or_insert_with(|| {
                    let of = Origin::new(head.label.node.clone(), head.label.core as usize);
                    let of = of.with_keys(keys_of(head, bytes));
                    Rc::new(if core.is_alone { of.fixed() } else { of })
                });
                let done = |ordinal| segment.use_of.borrow().is_done(ordinal);
                self.bring((dir, segment), &group, bytes, Some(origin), done).await
            }
            Ok((Found::Damage(damage), _)) => {
                tracing::error!("{file} is {damage}; the rest of it is read");
                segment.note_damage();
                true
            }
            Ok((Found::End(end), _)) => {
                self.end_replay(segment, *next_ordinal, end);
                false
            }
            Ok((Found::Nothing, _)) => unreachable!("a window goes on until something is found"),
            Err(error) => {
                tracing::error!(
                    "{file} of the spool cannot be read, tried again at the next start: {error}"
                );
                false
            }
        }
    }

    fn end_replay(&self, segment: &Segment, payloads: u32, end: End) {
        let file = segment.path().display();
        match end {
            End::Clean => {}
            End::Torn { at, why } => tracing::info!(
                "{file} ends at byte {at} in a group that was never acknowledged ({why}): cut"
            ),
            End::Lost { at, why } => {
                tracing::error!("{file} is damaged from byte {at} on, where payloads were: {why}");
            }
            End::Foreign => tracing::error!("{file} is no spool segment"),
            End::Version(version) => tracing::error!(
                "{file} was written by another version (format {version}): start that one to empty it"
            ),
            End::Truncated { bytes, of } => {
                tracing::error!("{file} is cut short: {bytes} bytes of {of}");
            }
        }
        if !matches!(end, End::Clean | End::Torn { .. }) {
            segment.note_damage();
        }
        segment.close_adopted(payloads);
    }

    /// Puts the payloads of a group in the ring but those that `skip` names, waiting for room; false once the ring has
    /// closed.
    async fn bring(
        &self,
        (dir, segment): (&Rc<CoreDir>, &Rc<Segment>),
        group: &Group,
        bytes: &[u8],
        origin: Option<&Rc<Origin>>,
        skip: impl Fn(u32) -> bool,
    ) -> bool {
        let payloads_max = CHUNK_PAYLOADS_MAX.min(self.admission.slots_max());
        let bytes_max = self.admission.bytes_max() / 2;
        let mut ordinal = group.head.first_ordinal;
        for record in records(&group.head, bytes) {
            let first_seq = record.first.seq;
            let (dir, segment) = (dir.clone(), segment.clone());
            let handle = self.record(dir, segment, ordinal, first_seq, origin.cloned());
            let mut chunk = Chunk::default();
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
        chunk: &mut Chunk,
        record: &RecordRef<'_>,
        handle: &Rc<super::Record>,
    ) -> bool {
        let Chunk { bytes, spans, seqs } = std::mem::take(chunk);
        let version = record.version;
        let need = Need::of(spans.len(), bytes.len() + version.map_or(0, str::len));
        let Some(permit) = self.admission.admit_reader(need).await else { return false };
        if handle.origin().is_some() {
            let (payloads, bytes) = (spans.len() as u64, bytes.len() as u64);
            self.setup.cells.payloads_adopted.add(payloads);
            self.setup.cells.spool_payloads.add(payloads);
            self.setup.cells.spool_bytes.add(bytes);
            handle.segment.add_unstored(bytes);
            handle.segment.count_replayed(payloads, bytes);
        }
        let payloads = Payload::split(bytes, permit, &spans, version.map(Box::from));
        self.push(payloads, seqs, record.first.unix_nanos, handle);
        true
    }
}

/// Payloads of one record that go to the ring together.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    seqs: Vec<u64>,
}

impl Chunk {
    fn add(&mut self, record: &RecordRef<'_>, span: Span, seq: u64) {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(&record.payloads[span.range()]);
        self.spans.push(Span { start, end: self.bytes.len() as u32 });
        self.seqs.push(seq);
    }
}
