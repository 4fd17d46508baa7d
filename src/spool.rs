//! One core's spool: requests on this host's disk before their 200, and again in line for upload afterwards.
//!
//! ```text
//!  conn → submit → waiting → group: write, sync ─┬─ room in the ring → jobs
//!                  (SPOOL_PENDING)               └─ none → left on disk → reader → jobs
//! ```
//!
//! Requests that arrive while a sync is under way share the next one. Payloads are in nobody's hands before their sync
//! has succeeded, so a failed one uploads nothing. When the ring is full they stay on disk, and from then on every later
//! one does, until the reader has caught up.
//!
//! Tasks of one core: the writer here, the `reader`, the `keeper`, which notes progress and makes room, one that
//! `prepare`s that room, and one that watches the disk's `health`. Payloads that are put many to an object go through the `journal`, so that after a crash none is in two objects; batches that a crash
//! has cut short are `begun`.

mod disk;
mod done;
mod health;
mod keeper;
mod line;
mod own;
mod prepare;
mod reader;
mod removed;
mod segment;
mod stop;
mod writer;

pub mod batches;
pub mod format;
pub mod offline;
#[cfg(test)]
mod power;
pub mod takeover;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use glommio::Task;

use crate::config::SpoolOptions;
use crate::http::parse::Span;
use crate::log::Throttle;
use crate::metrics::CoreCells;
use crate::net::keep_waker;
use crate::queue::admission::{Admission, BudgetExhausted, ChargedBytes, Permit};
use crate::queue::job::{Job, Origin, Payload, Stamp};
use disk::Disk;
use format::VERSION_BYTES_MAX;
use health::Health;
use line::Line;
use own::OwnFiles;
use reader::Overflow;
use segment::Segment;
use takeover::adopted::Adopted;
use takeover::orphans::Orphans;
use writer::SyncFault;

pub use batches::{Begun, CoreDir, Intent, Members};
pub use disk::DiskThread;
pub use health::{DiskError, not_ready};
pub use stop::UnspooledBatch;

/// Requests share a group up to this size; a larger one has a group of its own. A megabyte takes a disk as long as ten
/// syncs, so a larger group would gain little and keep its first requests waiting.
const GROUP_BYTES_MAX: usize = 1 << 20;

/// Memory of one core's spool beside `SPOOL_PENDING`: a group being written and one being read, each at most a record of
/// `request_bytes` in payloads and their lengths.
pub fn memory(request_bytes: usize) -> usize {
    2 * GROUP_BYTES_MAX.max(3 * request_bytes)
}

/// Memory of one core's journal for batches, beside the members under way ([`Members::memory`]): of those that its file still
/// tells of, members and intent, and a group being written.
pub const JOURNAL_MEMORY: usize = 2 * batches::FILE_BYTES as usize + GROUP_BYTES_MAX;

/// Size of one journal of batches, of which a core has two at most.
pub const JOURNAL_BYTES: u64 = batches::FILE_BYTES;

/// Files one core's spool may have open, each of them twice (for reading, and on the core's own ring for groups): its segments
/// and spares, its journals, and those of crashed processes in hand.
pub fn files(options: &SpoolOptions) -> usize {
    2 * ((options.max / options.segment) as usize + 12)
}

/// Why a request was not spooled; nothing of it will be uploaded.
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
    #[error("the request's version is longer than {VERSION_BYTES_MAX} bytes; shorten it")]
    VersionTooLong,
}

impl From<BudgetExhausted> for SpoolError {
    fn from(_: BudgetExhausted) -> SpoolError {
        SpoolError::PendingExhausted
    }
}

/// What a core's spool is made of.
pub struct SpoolSetup {
    pub options: SpoolOptions,
    /// Where this core's segments lie.
    pub dir: PathBuf,
    pub orphans: Arc<Orphans>,
    /// Among which orphans are shared out.
    pub cores: usize,
    pub cells: &'static CoreCells,
    /// The template that keys are made from, at most [`format::KEYS_BYTES_MAX`] bytes; `None`: the default.
    pub keys: Option<String>,
    /// Probability that a sync fails, for tests; and the seed.
    pub sync_fault: f64,
    pub seed: u64,
    /// For blocking calls on the disk.
    pub thread: DiskThread,
}

/// The spool of one core.
pub struct Spool {
    setup: SpoolSetup,
    origin: Origin,
    admission: Rc<Admission>,
    line: Line,
    own: OwnFiles,
    adopted: Adopted,
    overflow: Overflow,
    disk: Rc<Disk>,
    closed: Cell<bool>,
    tasks: RefCell<Vec<Task<()>>>,
    sync_fault: SyncFault,
    log: RefCell<Throttle>,
}

/// What a request that waits for the disk is told.
#[derive(Default)]
pub struct Ticket {
    outcome: RefCell<Option<Result<(), SpoolError>>>,
    waker: RefCell<Option<Waker>>,
}

impl Ticket {
    fn settle(&self, outcome: Result<(), SpoolError>) {
        self.outcome.replace(Some(outcome));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Until its group is synced, or has failed; `None` when `ended` says that nobody will tell any more.
    pub async fn wait(&self, ended: &Cell<bool>) -> Option<Result<(), SpoolError>> {
        poll_fn(|cx| match self.outcome.take() {
            Some(outcome) => Poll::Ready(Some(outcome)),
            None if ended.get() => Poll::Ready(None),
            None => {
                keep_waker(&mut self.waker.borrow_mut(), cx);
                Poll::Pending
            }
        })
        .await
    }
}

/// A spooled request whose payloads are jobs: where each is to be settled.
pub struct Record {
    dir: Rc<CoreDir>,
    segment: Rc<Segment>,
    first_ordinal: u32,
    first_seq: u64,
    /// What its keys are made of, if not of this core's own.
    origin: Option<Rc<Origin>>,
    cells: &'static CoreCells,
}

impl Record {
    /// The payload with this stamp and of `bytes` is stored or dead-lettered.
    pub fn settle(&self, stamp: Stamp, bytes: usize) {
        self.segment.settle(self.ordinal(stamp.seq), bytes as u64);
        self.cells.spool_payloads.sub(1);
        self.cells.spool_bytes.sub(bytes as u64);
    }

    /// Its file was removed: it survives no crash.
    pub fn is_gone(&self) -> bool {
        self.segment.is_gone()
    }

    /// The number in its segment of the payload with this one in the core's sequence.
    fn ordinal(&self, seq: u64) -> u32 {
        self.first_ordinal + u32::try_from(seq - self.first_seq).expect("within the record")
    }

    /// The core directory it lies in; that of all members of a batch.
    pub fn home(&self) -> &Rc<CoreDir> {
        &self.dir
    }

    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_deref()
    }
}

impl Spool {
    /// Starts the tasks, of which the keeper begins with the first segment.
    pub fn open(setup: SpoolSetup, origin: Origin, admission: Rc<Admission>) -> Rc<Spool> {
        let health = Health::new(setup.cells, setup.dir.clone());
        let disk = Rc::new(Disk::new(setup.thread.clone(), health));
        let spool = Rc::new(Spool {
            line: Line::new(setup.options.pending, &setup.cells.spool_pending_bytes),
            own: OwnFiles::new(setup.dir.clone()),
            adopted: Adopted::default(),
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
            glommio::spawn_local(spool.clone().write_groups()),
            glommio::spawn_local(spool.clone().read_back()),
            glommio::spawn_local(spool.clone().keep()),
            glommio::spawn_local(spool.clone().prepare_ahead()),
            glommio::spawn_local(spool.clone().watch_disk()),
        ];
        spool.tasks.borrow_mut().extend(tasks);
        spool.disk.keeper.raise();
        spool
    }

    /// Puts a request in line for the disk; its payloads lie in `body` at `spans`, and the first has the stamp `first`.
    /// The jobs that come of it have its `version`.
    ///
    /// # Errors
    /// It is not in line, and nothing of it is kept.
    pub fn submit(
        &self,
        first: Stamp,
        body: ChargedBytes,
        spans: &[Span],
        version: Option<&str>,
    ) -> Result<Rc<Ticket>, SpoolError> {
        if version.map_or(0, str::len) > VERSION_BYTES_MAX {
            return Err(SpoolError::VersionTooLong);
        }
        if self.closed.get() {
            return Err(SpoolError::Closed);
        }
        if let Some(error) = self.disk.health.failure() {
            self.disk.health.refused();
            return Err(SpoolError::Failed(error));
        }
        self.line.push(first, body, spans, version)
    }

    /// The directories in which payloads lie that this core takes, its own first.
    fn dirs(&self) -> Vec<Rc<CoreDir>> {
        let mut dirs = vec![self.own.dir().clone()];
        dirs.extend(self.adopted.dirs());
        dirs
    }

    /// The stop has begun: what is on disk only stays there for the next process.
    pub fn stop_reading(&self) {
        self.overflow.stop();
    }

    /// Takes no more requests; those in line still go to the disk.
    pub fn close(&self) {
        self.closed.set(true);
        self.line.wake();
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
    ) -> Rc<Record> {
        let cells = self.setup.cells;
        Rc::new(Record { dir, segment, first_ordinal, first_seq, origin, cells })
    }

    /// Queues payloads, which have their permit, with these sequence numbers.
    fn push(
        &self,
        payloads: impl ExactSizeIterator<Item = Payload>,
        seqs: impl IntoIterator<Item = u64>,
        unix_nanos: u64,
        record: &Rc<Record>,
    ) {
        let mut seqs = seqs.into_iter();
        let jobs = payloads.map(|payload| {
            let seq = seqs.next().expect("one for each payload");
            Job {
                payload,
                stamp: Stamp { unix_nanos, seq },
                record: Some(record.clone()),
                tally: None,
            }
        });
        Permit::push_all(&self.admission, jobs);
    }
}

/// Something that happens now and then; one task waits for it.
#[derive(Default)]
pub struct Signal {
    raised: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    pub fn raise(&self) {
        self.raised.set(true);
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Ready once for all that was raised before.
    pub async fn wait(&self) {
        poll_fn(|cx: &mut Context<'_>| {
            if self.raised.take() {
                return Poll::Ready(());
            }
            keep_waker(&mut self.waker.borrow_mut(), cx);
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests;
