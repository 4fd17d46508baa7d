//! Empties orphaned segments: one core reads one of them at a time, and queues its payloads.
//!
//! A segment that the disk does not let it open or read waits behind the others and is tried again, one
//! of them a second, until it can be read or the process ends; nothing of it is lost meanwhile.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::format::scan::{ScanStep, SegmentEnd, SegmentScan};
use super::format::{BLOCK, Checkpoint, DATA_START, SegmentDamage, keys_of};
use super::health::DiskError;
use super::reader::{LOOK_EVERY, Window};
use super::segment::Segment;
use super::takeover::instances::{self, move_to_quarantine};
use super::takeover::offers::{OrphanedCore, OrphanedSegment};
use super::{CoreDir, Spool};
use crate::queue::job::Origin;
use crate::rt;
use crate::throttle::Throttle;

/// The orphaned segments that one core has taken and not read to their ends.
pub(super) struct OrphanReader {
    current: Option<SegmentReplay>,
    /// Those that could not be opened or read, the one to try next first.
    postponed: VecDeque<PostponedSegment>,
    /// How many of them the gauge has.
    counted: u64,
    /// After one of them: when the next segment may be begun.
    pause_until: Option<Instant>,
    log: Throttle,
}

impl Default for OrphanReader {
    fn default() -> OrphanReader {
        let (current, postponed, log) = (None, VecDeque::new(), Throttle::per_minute());
        OrphanReader { current, postponed, counted: 0, pause_until: None, log }
    }
}

enum PostponedSegment {
    Unopened(OrphanedSegment),
    Begun(Box<SegmentReplay>),
}

/// An orphaned segment that is being read back.
struct SegmentReplay {
    dir: Rc<CoreDir>,
    core: Arc<OrphanedCore>,
    segment: Rc<Segment>,
    scan: SegmentScan,
    window: Window,
    /// Origin of its payloads' keys.
    origin: Option<Rc<Origin>>,
    /// Number of the next payload if nothing is missing.
    next_ordinal: u32,
}

impl Spool {
    /// Queues one group of an orphaned segment. Returns whether there may be more now.
    pub(super) async fn step_orphans(&self, orphans: &mut OrphanReader) -> bool {
        let replay = match orphans.current.take() {
            Some(replay) => Some(replay),
            None if orphans.pause_until.is_some_and(|until| rt::now() < until) => return false,
            None => match self.setup.takeover.take() {
                Some(orphan) => self.begin_replay(orphans, orphan).await,
                None => match orphans.postponed.pop_front() {
                    Some(PostponedSegment::Unopened(orphan)) => {
                        self.begin_replay(orphans, orphan).await
                    }
                    Some(PostponedSegment::Begun(replay)) => Some(*replay),
                    None => return false,
                },
            },
        };
        let Some(mut replay) = replay else { return true };
        match self.step_replay(&mut replay).await {
            Ok(has_more) => {
                orphans.current = has_more.then_some(replay);
                self.count_unreadable(orphans);
            }
            Err(error) => {
                let path = replay.segment.path().to_owned();
                self.postpone(orphans, PostponedSegment::Begun(Box::new(replay)), path, &error);
            }
        }
        true
    }

    /// The gauge has batches in doubt as well.
    fn count_unreadable(&self, orphans: &mut OrphanReader) {
        let (gauge, now) = (&self.setup.cells.spool_unreadable, orphans.postponed.len() as u64);
        gauge.add(now);
        gauge.sub(std::mem::replace(&mut orphans.counted, now));
    }

    /// Lets `segment`, the file at `path`, wait behind the others.
    fn postpone(
        &self,
        orphans: &mut OrphanReader,
        segment: PostponedSegment,
        path: PathBuf,
        error: &io::Error,
    ) {
        orphans.postponed.push_back(segment);
        orphans.pause_until = Some(rt::now() + LOOK_EVERY);
        let (path, why, waiting) = (path.display(), DiskError::of(error), orphans.postponed.len());
        self.count_unreadable(orphans);
        orphans.log.error(|| {
            format!(
                "{path} of the spool cannot be read: {why}; one of {waiting} such files is tried again each \
                 second"
            )
        });
    }

    async fn begin_replay(
        &self,
        orphans: &mut OrphanReader,
        orphan: OrphanedSegment,
    ) -> Option<SegmentReplay> {
        if orphan.bytes < BLOCK {
            self.discard_orphan(orphan).await;
            return None;
        }
        let opened = async {
            let segment = Segment::open_orphaned(orphan.path.clone(), self.disk.clone()).await?;
            let head = segment.read(0..DATA_START.min(segment.bytes())).await?;
            io::Result::Ok((segment, head))
        };
        let (segment, head) = match opened.await {
            Ok(opened) => opened,
            Err(error) => {
                let path = orphan.path.clone();
                self.postpone(orphans, PostponedSegment::Unopened(orphan), path, &error);
                return None;
            }
        };
        let core = orphan.core.clone();
        let dir = self.taken.dir_of(&core);
        segment.adopt(orphan);
        let scan = SegmentScan::new(segment.bytes(), &head);
        segment.resume(Checkpoint::read(&head));
        let segment = Rc::new(segment);
        self.taken.add(segment.clone());
        let (window, origin) = (Window::default(), None);
        Some(SegmentReplay { dir, core, segment, scan, window, origin, next_ordinal: 0 })
    }

    /// Removes a file that is too short for a segment, or keeps what is in it in the quarantine.
    async fn discard_orphan(&self, orphan: OrphanedSegment) {
        let path = orphan.path.clone();
        // Its process died while creating it.
        let is_empty = orphan.bytes == 0;
        if !is_empty {
            tracing::error!("{} is not a spool segment", path.display());
        }
        let finish = move || {
            let gone = if is_empty { instances::remove(&path) } else { move_to_quarantine(&path) };
            if let Err(error) = gone {
                tracing::warn!("{} could not be removed: {error}", path.display());
            }
            orphan.finished();
            Ok(())
        };
        let _a_disk_that_hangs = self.disk.run(finish).await;
    }

    /// Queues one group of an orphaned segment. Returns whether there may be more.
    ///
    /// # Errors
    /// The disk cannot read it now; the next call tries it again.
    async fn step_replay(&self, replay: &mut SegmentReplay) -> io::Result<bool> {
        let SegmentReplay { dir, core, segment, scan, window, origin, next_ordinal } = replay;
        let (step, range) = window.next(segment, scan).await?;
        let file = segment.path().display();
        Ok(match step {
            ScanStep::Group(_, group) => {
                let head = &group.head;
                if origin.is_none() {
                    // Segments are offered only once all batches of their directory are done, so
                    // all members are complete.
                    core.members
                        .of_segment(head.label.id)
                        .for_each(|run| segment.complete_run(run));
                }
                if head.first_ordinal > *next_ordinal {
                    let damage = SegmentDamage { at: range.clone(), why: "missing before here" };
                    self.record_loss(segment, *next_ordinal..head.first_ordinal, &damage);
                }
                *next_ordinal = head.first_ordinal + group.payloads;
                segment.found_group(head);
                let bytes = window.bytes(&range);
                let origin = origin.get_or_insert_with(|| {
                    let of = Origin::new(head.label.node.clone(), head.label.core as usize);
                    let of = of.with_keys(keys_of(head, bytes));
                    Rc::new(if core.is_single_objects { of.for_single_objects() } else { of })
                });
                let done = |ordinal| segment.is_done(ordinal);
                self.enqueue_group((dir, segment), &group, bytes, Some(origin), done).await
            }
            ScanStep::Damage(damage) => {
                tracing::error!("{file} is {damage}; the rest of it is replayed");
                segment.mark_damaged();
                true
            }
            ScanStep::End(end) => {
                self.end_replay(segment, *next_ordinal, end);
                false
            }
            ScanStep::NeedBytes => {
                unreachable!("Window::next continues until there is a result")
            }
        })
    }

    fn end_replay(&self, segment: &Segment, payloads: u32, end: SegmentEnd) {
        let file = segment.path().display();
        match end {
            SegmentEnd::Clean => {}
            SegmentEnd::Torn { at, why } => tracing::info!(
                "{file} has a torn tail at byte {at}, which was never acknowledged ({why}): truncated"
            ),
            SegmentEnd::Lost { at, why } => {
                tracing::error!("{file} is damaged from byte {at} on, where payloads were: {why}");
            }
            SegmentEnd::Foreign => tracing::error!("{file} is not a spool segment"),
            SegmentEnd::Version(version) => tracing::error!(
                "{file} was written by another version (format {version}): start that version to empty it"
            ),
            SegmentEnd::Truncated { bytes, of } => {
                tracing::error!("{file} is truncated: {bytes} of {of} bytes");
            }
        }
        if !matches!(end, SegmentEnd::Clean | SegmentEnd::Torn { .. }) {
            segment.mark_damaged();
        }
        segment.close_orphaned(payloads);
    }
}
