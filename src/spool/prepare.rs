//! Zero-fills segments ahead of the writer. In space that is allocated but not written, each sync
//! also commits the file's metadata, which takes nearly twice as long (measured: 0.18 ms against
//! 0.10 ms). Filling a whole segment first would delay the first request of a process.
//!
//! A new file has its full size and reads as zeros, and this is synced before its first group. Only
//! the first [`FIRST_BYTES`] are really written. A separate task writes the rest in steps of
//! [`STEP_BYTES`], each with a sync. No generation of the file ever wrote beyond the prepared part,
//! so after a crash that space reads as empty.
//!
//! Zeros never overwrite a group: a step is written only after the prepared part, and the writer
//! moves the end of that part forward before it writes beyond it ([`Segment::claim`]). The writer
//! waits for at most one step, and then continues in unprepared space with slower syncs.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use crate::rt;
use crate::rt::sleep;
use crate::sync::Turns;
use futures_lite::FutureExt;

use super::Spool;
use super::format::DATA_START;
use super::health::LOOK_EVERY;
use super::segment::Segment;

/// Bytes of a new segment that are prepared before it is used: both checkpoint slots and the first
/// groups, in one write.
pub(super) const FIRST_BYTES: u64 = if cfg!(test) { DATA_START } else { ZEROS_BYTES };
/// Bytes prepared between two syncs. The writer may have to wait for one step, so a step takes the
/// disk only about as long as a few syncs.
const STEP_BYTES: u64 = if cfg!(test) { 8 << 10 } else { 1 << 20 };
/// Bytes per write; the executor runs other tasks between two of them.
const ZEROS_BYTES: u64 = 256 << 10;
/// While groups are written to another segment, a pause of this many times a step's time follows
/// it: a group that finds zeros in front of it at the disk takes several times as long.
const PAUSE_TIMES: u32 = 4;
/// Longest pause, for a disk that hangs now and then.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// There is no pause while the writer has less in front of it than this part of what is to be
/// prepared of the next segment.
const LEAD_SHARE: u64 = 4;

/// How far a segment is prepared.
pub(super) struct Zeros {
    /// End of the part that was written to, by zeros or by groups.
    pub(super) prepared: Cell<u64>,
    /// Held while a step of zeros is written.
    turns: Turns,
    /// A step is being written. If it is set while no turn is taken, the step's task was dropped.
    pub(super) in_flight: Cell<bool>,
}

impl Zeros {
    /// State of a file whose first `prepared` bytes are written.
    pub(super) fn new(prepared: u64) -> Zeros {
        let (turns, in_flight) = (Turns::default(), Cell::new(false));
        Zeros { prepared: Cell::new(prepared), turns, in_flight }
    }
}

impl Segment {
    /// Whether all of the file is prepared.
    pub(super) fn is_prepared(&self) -> bool {
        self.zeros.prepared.get() >= self.bytes()
    }

    /// Prepares the first `bytes` of a new file, which no other task uses yet.
    pub(super) async fn prepare_first(&self, bytes: u64) -> io::Result<()> {
        let end = bytes.min(self.bytes());
        self.fill(0..end).await?;
        self.sync().await?;
        self.zeros.prepared.set(end);
        Ok(())
    }

    /// Prepares the next part.
    ///
    /// # Errors
    /// Nothing has changed. If the future is dropped early, nothing more may be written to the
    /// segment, see [`Segment::claim`].
    pub(super) async fn prepare_step(&self) -> io::Result<()> {
        // A writer that waits for this step goes before the next one.
        let _turn = self.zeros.turns.take().await;
        let from = self.zeros.prepared.get();
        let end = (from + STEP_BYTES).min(self.bytes());
        if self.zeros.in_flight.replace(true) {
            return Err(io::Error::other("the task that wrote these zeros was dropped"));
        }
        let prepared = async {
            self.fill(from..end).await?;
            self.sync().await
        };
        let prepared = prepared.await;
        self.zeros.in_flight.set(false);
        if prepared.is_ok() {
            self.zeros.prepared.set(end);
        }
        prepared
    }

    async fn fill(&self, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let mut zeros = self.buffer(ZEROS_BYTES.min(range.end - at) as usize);
            zeros.as_bytes_mut().fill(0);
            at += self.write(zeros, at).await?;
        }
        Ok(())
    }

    /// Must be called before bytes up to `end` are written: from then on no zeros are written
    /// there. Waits for a step in flight if the prepared part ends before `end`.
    ///
    /// # Errors
    /// A step was dropped while its zeros were in flight; nothing may be written to this segment
    /// any longer.
    pub(super) async fn claim(&self, end: u64) -> io::Result<()> {
        if end <= self.zeros.prepared.get() {
            return Ok(());
        }
        let _turn = self.zeros.turns.take().await;
        if self.zeros.in_flight.get() {
            return Err(io::Error::other("the task that wrote these zeros was dropped"));
        }
        self.zeros.prepared.set(self.zeros.prepared.get().max(end));
        Ok(())
    }
}

impl Spool {
    /// The task that prepares what the writer uses next: the rest of the current segment, then the
    /// spares.
    pub(super) async fn prepare_ahead(self: Rc<Self>) {
        while !self.closed.get() {
            let Some(segment) = self.own.next_unprepared() else {
                self.disk.preparer.wait().await;
                continue;
            };
            let began = rt::now();
            let prepared = segment.prepare_step().await;
            if prepared.is_ok() && self.may_pause(&segment) {
                let pause = (PAUSE_TIMES * rt::since(began)).min(PAUSE_MAX);
                self.disk.preparer.wait().or(sleep(pause)).await;
            }
            if let Err(error) = prepared {
                // Not yet a failure: the writer finds out whether it can write there.
                let path = segment.path().display();
                let text = || format!("the spool cannot be prepared ahead: {path}: {error}");
                self.log.borrow_mut().warn(text);
                self.disk.preparer.wait().or(sleep(LOOK_EVERY)).await;
            }
        }
    }

    /// Whether the writer does not catch up during a pause after a step of `segment`.
    fn may_pause(&self, segment: &Rc<Segment>) -> bool {
        let Some(filling) = self.own.filling() else { return false };
        // While zeros are written to the file that takes groups, every sync of a group also commits
        // its metadata: the sooner that ends, the better.
        if Rc::ptr_eq(segment, &filling) {
            return false;
        }
        let unprepared = segment.bytes() - segment.zeros.prepared.get();
        filling.bytes() - filling.generation.borrow().end >= unprepared / LEAD_SHARE
    }

    /// The task that watches the operations of the disk, and the requests that wait for it.
    pub(super) async fn watch_disk(self: Rc<Self>) {
        while !self.closed.get() {
            self.disk.watcher.wait().or(sleep(LOOK_EVERY)).await;
            self.disk.health.look(rt::now());
            self.pending.look();
        }
    }
}
