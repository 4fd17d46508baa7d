//! One core's spool: keeps requests on this host's disk before they are answered with 200, and
//! queues their payloads for upload afterwards.
//!
//! ```text
//!  connection → submit → pending → commit group: write, sync ─┬─ room in the queue → jobs
//!                        (SPOOL_PENDING)                     └─ no room → disk only → reader → jobs
//! ```
//!
//! Requests that arrive during a sync share the next commit group, or at load the one after it (see
//! `PendingRequests::begin_half_group`). No payload is queued before its sync has succeeded, so a
//! failed sync uploads nothing. When the queue is full, payloads stay on
//! disk, and all later ones do too until the reader has caught up.
//!
//! Each core runs five tasks: the `writer`, the `reader`, the `keeper`, which writes checkpoints
//! and creates segments, one that `prepare`s those segments, and one that watches the disk's
//! `health`. Payloads that share an object are recorded in the journal of [`batches`], so that none
//! ends up in two objects, even after a crash. [`takeover`] finds orphaned spools and hands them to
//! the cores.
//!
//! # Who completes a payload
//!
//! A payload is complete once it is stored or dead-lettered. It is marked complete by its number in
//! its `Segment`. A closed segment whose payloads are all complete is finished: its file is reused
//! or removed. An incomplete payload is uploaded again by a later process. Who completes it depends
//! on how it left the spool:
//!
//! - A single object: the worker calls `Job::complete`, which calls [`SpooledRequest::complete`] at
//!   once.
//! - A member of a batch of this process: the worker calls [`Spool::complete_batch`]. The journal
//!   syncs DONE, with its next commit group or when the keeper flushes it, and then calls
//!   `Members::complete`.
//! - A member of a batch in doubt: the worker tells the task that restored the batch, which calls
//!   [`BatchInDoubt::complete`]; that syncs DONE. Segments are offered only once no batch of their
//!   directory is in doubt; the reader completes all members when it reaches them.
//! - Lost to corruption: the reader.
//! - In a file that was removed: `release_removed`, called by [`Spool::stop`].
//!
//! Requests that wait for the store get their outcome separately: from `Job::complete` for single
//! payloads and from `Batch::complete` for batches, which therefore completes nothing here. A
//! payload that is neither stored nor dead-lettered (`Outcome::Lost`) stays incomplete, so the next
//! process finds it in the spool. The gauges `spool_payloads` and `spool_bytes` go down when the
//! outcome is known, which for batches is before their members are complete.

mod disk;
mod filling;
mod health;
mod keeper;
mod ordinals;
mod own;
mod pending;
mod prepare;
mod reader;
mod removed;
mod replay;
mod segment;
mod stop;
mod writer;

pub mod batches;
pub mod bench;
pub mod format;
pub mod offline;
#[cfg(test)]
mod power;
pub mod takeover;

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use crate::rt::{self, Task, TaskKind};

use crate::budget::{BudgetExhausted, ChargedBytes};
use crate::config::{JOURNAL_BYTES, SpoolOptions};
use crate::key::RequestValues;
use crate::metrics::CoreCells;
use crate::metrics::tokens::AcceptedCells;
use crate::queue::admission::Admission;
use crate::queue::job::Span;
use crate::queue::job::{Origin, Stamp};
use crate::throttle::Throttle;
use disk::SpoolDisk;
use health::DiskHealth;
use own::OwnFiles;
use pending::PendingRequests;
use reader::Overflow;
use segment::Segment;
use takeover::offers::Takeover;
use takeover::taken::TakenSegments;
use writer::SyncFault;

pub use batches::{BatchInDoubt, CoreDir, Intent, Members};
pub use disk::DiskThread;
pub use filling::StoreLag;
pub use health::{DiskError, not_ready};
pub use pending::Ticket;
pub use stop::UnspooledBatch;

/// Largest commit group that requests share; a larger request gets a group of its own. A disk takes
/// as long for a megabyte as for ten syncs, so larger groups would gain little and delay their
/// first requests.
const GROUP_BYTES_MAX: usize = 1 << 20;

/// Memory of one core's spool in addition to `SPOOL_PENDING`: one commit group being written and
/// one being read, each at most one record with `request_bytes` of payloads and their lengths.
pub fn memory(request_bytes: usize) -> usize {
    2 * GROUP_BYTES_MAX.max(3 * request_bytes)
}

/// Memory of one core's journal in addition to the members of open batches ([`Members::memory`]):
/// members and intents of the batches that its file still names, and one commit group being
/// written.
pub const JOURNAL_MEMORY: usize = 2 * JOURNAL_BYTES as usize + GROUP_BYTES_MAX;

/// Files that one core's spool may have open: its segments and spares, its journals, and the
/// orphaned ones that it empties. Each is open twice: for reading, and on this core's own io_uring
/// for commit groups.
pub fn files(options: &SpoolOptions) -> usize {
    2 * ((options.max / options.segment) as usize + 12)
}

/// Why a request was not spooled. None of its payloads will be uploaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    #[error(
        "the spool of this core is full: payloads that the store has not taken use up SPOOL_MAX; nothing of \
         this request was kept, send it again later"
    )]
    Full,
    #[error(
        "requests that wait for the spool's disk use up SPOOL_PENDING; nothing of this request was kept, send it \
         again later"
    )]
    PendingExhausted,
    #[error(
        "the spool cannot be written: {0}; nothing of this request was kept, send it again later"
    )]
    Failed(DiskError),
    #[error("the spool's disk does not answer")]
    Stalled,
    #[error("the server is stopping; send this to another one")]
    Closed,
}

impl From<BudgetExhausted> for SpoolError {
    fn from(_: BudgetExhausted) -> SpoolError {
        SpoolError::PendingExhausted
    }
}

/// What a core's spool is opened with.
pub struct SpoolSetup {
    pub options: SpoolOptions,
    /// Directory of this core's segments.
    pub dir: PathBuf,
    pub takeover: Arc<Takeover>,
    /// Number of cores that share the takeover's work.
    pub cores: usize,
    pub cells: &'static CoreCells,
    /// Bytes of `SPOOL_MAX` that segments leave for the journals of batches; 0 without batches.
    pub journal_reserve: u64,
    /// Key template, at most [`KEYS_BYTES_MAX`](format::record::KEYS_BYTES_MAX) bytes; `None`: the
    /// default.
    pub keys: Option<String>,
    /// Probability that a sync fails, for tests, and the seed of its random numbers.
    pub sync_fault: f64,
    pub seed: u64,
    /// Runs blocking calls on the disk.
    pub thread: DiskThread,
}

/// The spool of one core.
pub struct Spool {
    setup: SpoolSetup,
    origin: Origin,
    admission: Rc<Admission>,
    pending: PendingRequests,
    own: OwnFiles,
    taken: TakenSegments,
    overflow: Overflow,
    disk: Rc<SpoolDisk>,
    closed: Cell<bool>,
    tasks: RefCell<Vec<Task<()>>>,
    sync_fault: SyncFault,
    log: RefCell<Throttle>,
}

/// Spooled requests whose payloads are jobs, one or several that follow each other in a segment:
/// knows where each payload is marked complete.
pub struct SpooledRequest {
    dir: Rc<CoreDir>,
    segment: Rc<Segment>,
    first_ordinal: u32,
    first_seq: u64,
    /// Origin of its keys; `None`: this core's own.
    origin: Option<Rc<Origin>>,
    cells: &'static CoreCells,
}

impl SpooledRequest {
    /// Marks `count` payloads complete, the first of which has the stamp `first`, and which have
    /// `bytes` together: they are stored or dead-lettered.
    pub fn complete(&self, first: Stamp, count: u32, bytes: u64) {
        let ordinal = self.ordinal(first.seq);
        self.segment.complete(ordinal..ordinal + count, bytes);
        self.cells.spool_payloads.sub(count.into());
        self.cells.spool_bytes.sub(bytes);
    }

    /// Whether its file was removed, so that it would not survive a crash.
    pub fn is_removed(&self) -> bool {
        self.segment.is_removed()
    }

    /// Whether the payload with this segment number and this number in the core's sequence is
    /// marked complete like its own.
    fn is_followed_by(&self, ordinal: u32, seq: u64) -> bool {
        let distance = ordinal.checked_sub(self.first_ordinal).map(u64::from);
        distance.is_some() && distance == seq.checked_sub(self.first_seq)
    }

    /// The segment number of the payload whose number in the core's sequence is `seq`.
    fn ordinal(&self, seq: u64) -> u32 {
        self.first_ordinal + u32::try_from(seq - self.first_seq).expect("within the record")
    }

    /// The core directory that holds it. All members of a batch are in the same one.
    pub fn core_dir(&self) -> &Rc<CoreDir> {
        &self.dir
    }

    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_deref()
    }
}

impl Spool {
    /// Opens the spool and starts its tasks. The keeper creates the first segment.
    pub fn open(setup: SpoolSetup, origin: Origin, admission: Rc<Admission>) -> Rc<Spool> {
        let health = DiskHealth::new(setup.cells, setup.dir.clone());
        setup.cells.spool_disk_bytes_max.set(setup.options.max);
        setup.cells.spool_pending_bytes_max.set(setup.options.pending as u64);
        let disk = Rc::new(SpoolDisk::new(setup.thread.clone(), health));
        let spool = Rc::new(Spool {
            pending: PendingRequests::new(setup.options.pending, &setup.cells.spool_pending_bytes),
            own: OwnFiles::new(setup.dir.clone()),
            taken: TakenSegments::default(),
            overflow: Overflow::default(),
            sync_fault: SyncFault::new(setup.sync_fault, setup.seed),
            setup,
            origin,
            admission,
            disk,
            closed: Cell::new(false),
            tasks: RefCell::default(),
            log: RefCell::default(),
        });
        let tasks = [
            rt::spawn_as(TaskKind::SpoolWriter, spool.clone().write_groups()),
            rt::spawn_as(TaskKind::SpoolReader, spool.clone().read_back()),
            rt::spawn_as(TaskKind::SpoolKeeper, spool.clone().keep()),
            rt::spawn_as(TaskKind::SpoolFiles, spool.clone().prepare_ahead()),
            rt::spawn_as(TaskKind::SpoolFiles, spool.clone().watch_disk()),
        ];
        spool.tasks.borrow_mut().extend(tasks);
        spool.disk.keeper.raise();
        spool
    }

    /// Adds a request to those that wait for the disk. Its payloads are at `spans` in `body`, the
    /// first has the stamp `first`, and all have the request's `values`. Once they are on the disk
    /// they are accepted, and `counted` counts them besides the totals.
    ///
    /// # Errors
    /// The request was not added and nothing of it is kept.
    pub fn submit(
        &self,
        first: Stamp,
        body: ChargedBytes,
        spans: &[Span],
        values: &RequestValues,
        counted: Option<AcceptedCells>,
    ) -> Result<Rc<Ticket>, SpoolError> {
        if self.closed.get() {
            return Err(SpoolError::Closed);
        }
        // Refused at once: it would only wait for a group that cannot be written.
        if let Some(error) = self.disk.health.failure() {
            self.disk.health.refused();
            return Err(SpoolError::Failed(error));
        }
        self.pending.push(first, body, spans, values, counted)
    }

    /// Directories whose payloads this core uploads, its own first.
    fn dirs(&self) -> Vec<Rc<CoreDir>> {
        let mut dirs = vec![self.own.dir().clone()];
        dirs.extend(self.taken.dirs());
        dirs
    }

    /// Begins a stop: payloads that are only on disk stay there for the next process.
    pub fn stop_reading(&self) {
        self.overflow.stop();
    }

    /// Refuses further requests; those that wait are still written.
    pub fn close(&self) {
        self.closed.set(true);
        self.pending.last_look();
        self.pending.wake();
        self.disk.keeper.raise();
        self.disk.preparer.raise();
        self.disk.watcher.raise();
    }

    fn record(
        &self,
        dir: Rc<CoreDir>,
        segment: Rc<Segment>,
        first_ordinal: u32,
        first_seq: u64,
        origin: Option<Rc<Origin>>,
    ) -> Rc<SpooledRequest> {
        let cells = self.setup.cells;
        Rc::new(SpooledRequest { dir, segment, first_ordinal, first_seq, origin, cells })
    }
}

#[cfg(test)]
mod tests;
