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

mod begun;
mod disk;
mod done;
mod health;
mod journal;
mod keeper;
mod members;
mod prepare;
mod reader;
mod removed;
mod segment;

mod orphans;

pub mod adopt;
pub mod file;
pub mod format;
pub mod instances;
pub mod ledger;
#[cfg(test)]
mod power;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use futures_lite::future;

use crate::batch::Batch;
use crate::budget::{Budget, BudgetExhausted, ChargedBytes};
use crate::config::SpoolOptions;
use crate::http::parse::Span;
use crate::metrics::CoreCells;
use crate::queue::admission::{Admission, Need, Permit};
use crate::queue::job::{Job, Origin, Payload, Stamp};
use crate::rt::{self, Task, sleep};
use crate::sync::{Flag, OneShot, Semaphore, Signal};
use crate::throttle::Throttle;
use disk::Disk;
use format::{HEAD_BYTES, VERSION_BYTES_MAX};
use health::Health;
use instances::Orphans;
use keeper::NoSpare;
use reader::Behind;
use segment::{Payloads, Segment};

pub use begun::Begun;
pub use disk::DiskThread;
pub use health::{DiskError, not_ready};
pub use journal::{CoreDir, Intent};
pub use members::Members;

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
pub const JOURNAL_MEMORY: usize = 2 * journal::FILE_BYTES as usize + GROUP_BYTES_MAX;

/// Size of one journal of batches, of which a core has two at most.
pub const JOURNAL_BYTES: u64 = journal::FILE_BYTES;

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
    pending: Rc<Budget>,
    /// In line for the next group.
    waiting: RefCell<VecDeque<Waiting>>,
    arrived: Signal,
    /// Of this core's own, oldest first; the last one takes groups if it is not closed.
    segments: RefCell<VecDeque<Rc<Segment>>>,
    /// Of crashed processes, being emptied.
    adopted: RefCell<Vec<Rc<Segment>>>,
    /// Where all of those lie, this core's own directory first.
    dirs: RefCell<Vec<Rc<CoreDir>>>,
    /// Empty, for later.
    spares: RefCell<Vec<Rc<Segment>>>,
    /// Held while a file is made.
    making: Semaphore,
    /// Names of files and ids of their uses, which never repeat while this process lives.
    next_number: Cell<u64>,
    /// The first payloads that lie on disk only; `None` while the reader has caught up.
    behind: RefCell<Option<Behind>>,
    overflowed: Signal,
    disk: Rc<Disk>,
    /// There was no room for a segment in `SPOOL_MAX`.
    short: Cell<bool>,
    closed: Cell<bool>,
    /// What is on disk only stays there.
    reading_stopped: Flag,
    tasks: RefCell<Vec<Task<()>>>,
    random: RefCell<rt::Rng>,
    log: RefCell<Throttle>,
}

/// A request in line for the disk.
struct Waiting {
    first: Stamp,
    body: ChargedBytes,
    /// Its room in the ring, should there be some.
    need: Need,
    spans: Box<[Span]>,
    payload_bytes: usize,
    version: Option<Box<str>>,
    ticket: Rc<Ticket>,
}

impl Waiting {
    fn record_bytes(&self) -> usize {
        format::record_bytes(self.spans.len(), self.payload_bytes, self.version.as_deref())
    }
}

/// What a request that waits for the disk is told: that its group is synced, or that it failed.
pub type Ticket = OneShot<Result<(), SpoolError>>;

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

/// A group that was written and synced.
struct Place {
    segment: Rc<Segment>,
    at: u64,
    number: u32,
    first_ordinal: u32,
}

impl Spool {
    /// Starts the tasks, of which the keeper begins with the first segment.
    pub fn open(setup: SpoolSetup, origin: Origin, admission: Rc<Admission>) -> Rc<Spool> {
        let health = Health::new(setup.cells, setup.dir.clone());
        let disk = Rc::new(Disk::new(setup.thread.clone(), health));
        let spool = Rc::new(Spool {
            pending: Budget::new(setup.options.pending, &setup.cells.spool_pending_bytes),
            random: RefCell::new(rt::Rng::with_seed(setup.seed)),
            dirs: RefCell::new(vec![CoreDir::new(setup.dir.clone(), None)]),
            setup,
            origin,
            admission,
            waiting: RefCell::default(),
            arrived: Signal::default(),
            segments: RefCell::default(),
            adopted: RefCell::default(),
            spares: RefCell::default(),
            making: Semaphore::new(1),
            next_number: Cell::new(1),
            behind: RefCell::default(),
            overflowed: Signal::default(),
            disk,
            short: Cell::new(false),
            closed: Cell::new(false),
            reading_stopped: Flag::default(),
            tasks: RefCell::default(),
            log: RefCell::default(),
        });
        let tasks = [
            rt::spawn(spool.clone().write_groups()),
            rt::spawn(spool.clone().read_back()),
            rt::spawn(spool.clone().keep()),
            rt::spawn(spool.clone().prepare_ahead()),
            rt::spawn(spool.clone().watch_disk()),
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
        mut body: ChargedBytes,
        spans: &[Span],
        version: Option<&str>,
    ) -> Result<Rc<Ticket>, SpoolError> {
        let version_bytes = version.map_or(0, str::len);
        if version_bytes > VERSION_BYTES_MAX {
            return Err(SpoolError::VersionTooLong);
        }
        if self.closed.get() {
            return Err(SpoolError::Closed);
        }
        if let Some(error) = self.disk.health.failure() {
            self.disk.health.refused();
            return Err(SpoolError::Failed(error));
        }
        let need = Need::of(spans.len(), body.retained() + version_bytes);
        // The longest request must fit when nothing else waits.
        let room = self.setup.options.pending - body.retained();
        body.move_to(&self.pending, (size_of_val(spans) + version_bytes).min(room))?;
        let ticket = Rc::<Ticket>::default();
        let payload_bytes = spans.iter().map(|span| span.range().len()).sum();
        self.waiting.borrow_mut().push_back(Waiting {
            first,
            body,
            need,
            spans: spans.into(),
            payload_bytes,
            version: version.map(Box::from),
            ticket: ticket.clone(),
        });
        self.arrived.raise();
        Ok(ticket)
    }

    /// One group after the other: what waits when one begins is in it.
    async fn write_groups(self: Rc<Self>) {
        loop {
            if self.waiting.borrow().is_empty() {
                if self.closed.get() {
                    return;
                }
                self.arrived.wait().await;
                continue;
            }
            if !self.setup.options.linger.is_zero() && !self.closed.get() {
                sleep(self.setup.options.linger).await;
            }
            let group = self.next_group();
            match self.put(&group).await {
                Ok(place) => self.deliver(group, &place),
                Err(error) => group.iter().for_each(|request| {
                    self.disk.health.refused();
                    request.ticket.set(Err(error.clone()));
                }),
            }
        }
    }

    /// The requests that share the next group, at least one.
    fn next_group(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting.borrow_mut();
        let mut bytes = HEAD_BYTES;
        let too_many = |request: &Waiting| {
            bytes += request.record_bytes();
            bytes > GROUP_BYTES_MAX
        };
        let count = waiting.iter().position(too_many).unwrap_or(waiting.len());
        waiting.drain(..count.max(1)).collect()
    }

    /// Writes and syncs one group.
    async fn put(&self, group: &[Waiting]) -> Result<Place, SpoolError> {
        let body = group.iter().map(Waiting::record_bytes).sum();
        let payloads = Payloads {
            count: group.iter().map(|request| request.spans.len() as u32).sum(),
            bytes: group.iter().map(|request| request.payload_bytes as u64).sum(),
        };
        let write = |mut out: &mut [u8]| {
            for Waiting { first, body, spans, version, .. } in group {
                let payloads = format::slices(body.as_slice(), spans);
                let written = format::write_record(out, *first, version.as_deref(), payloads);
                out = &mut out[written..];
            }
        };
        self.put_records(body, payloads, write).await
    }

    /// The same for records that `write` makes, `body` bytes with `payloads`.
    async fn put_records(
        &self,
        body: usize,
        payloads: Payloads,
        write: impl FnOnce(&mut [u8]),
    ) -> Result<Place, SpoolError> {
        let keys = self.setup.keys.as_deref();
        let body = format::keys_bytes(keys) + body;
        let segment = self.segment_for(format::group_bytes(body)).await?;
        let write = |out: &mut [u8]| {
            let written = format::write_keys(out, keys);
            write(&mut out[written..]);
        };
        let (at, number, first_ordinal) = self.append(&segment, body, payloads, write).await?;
        self.setup.cells.spool_payloads.add(payloads.count.into());
        self.setup.cells.spool_bytes.add(payloads.bytes);
        Ok(Place { segment, at, number, first_ordinal })
    }

    /// Writes and syncs one group of records at the end of `segment`: where it lies, its number, and that of its first
    /// payload.
    async fn append(
        &self,
        segment: &Segment,
        body: usize,
        payloads: Payloads,
        write: impl FnOnce(&mut [u8]),
    ) -> Result<(u64, u32, u32), SpoolError> {
        let bytes = format::group_bytes(body);
        let (at, number, first_ordinal, label) = {
            let use_of = segment.use_of.borrow();
            let label = segment.label(use_of.id, &self.origin);
            (use_of.end, use_of.groups, use_of.payloads, label)
        };
        let mut buffer = segment.buffer(bytes as usize);
        write(&mut buffer.as_bytes_mut()[HEAD_BYTES..]);
        format::finish_group(buffer.as_bytes_mut(), &label, number, first_ordinal, body);
        let started = rt::now();
        let synced = async {
            segment.claim(at + bytes).await?;
            // A file that was removed still takes writes.
            let (written, found) =
                future::zip(segment.write_synced(buffer, at), segment.check()).await;
            written.and(found)
        };
        let synced = synced.await.and_then(|()| self.sync_fault());
        self.setup.cells.spool_syncs.inc();
        self.setup.cells.spool_sync_latency.observe(rt::since(started));
        if let Err(error) = synced {
            // What the disk has of it is unknown, and no later sync would tell: nothing more is written there.
            segment.close(true);
            return Err(self.fail(segment.path(), &error));
        }
        segment.extend(bytes, payloads);
        Ok((at, number, first_ordinal))
    }

    fn sync_fault(&self) -> io::Result<()> {
        if self.setup.sync_fault > 0.0 && self.random.borrow_mut().f64() < self.setup.sync_fault {
            return Err(io::Error::other("FAULTS=spool_sync"));
        }
        Ok(())
    }

    /// The segment for the next group of `bytes`.
    async fn segment_for(&self, bytes: u64) -> Result<Rc<Segment>, SpoolError> {
        let last = self.segments.borrow().back().cloned();
        if let Some(last) = last.filter(|last| !last.use_of.borrow().closed) {
            if last.is_filling() && last.has_room(bytes) {
                return Ok(last);
            }
            last.close(false);
        }
        if self.spares.borrow().is_empty() {
            self.make_spare().await.map_err(|error| match error {
                NoSpare::Full => {
                    self.disk.health.full();
                    SpoolError::Full
                }
                NoSpare::Io(error) => self.fail(&self.setup.dir, &error),
            })?;
        }
        let segment = self.spares.borrow_mut().pop().expect("made just now");
        segment.begin(self.take_number());
        self.segments.borrow_mut().push_back(segment.clone());
        // Makes the next one while this is being filled.
        self.disk.keeper.raise();
        Ok(segment)
    }

    fn take_number(&self) -> u64 {
        self.next_number.replace(self.next_number.get() + 1)
    }

    /// Where payloads lie that this core takes.
    fn dirs(&self) -> Vec<Rc<CoreDir>> {
        self.dirs.borrow().clone()
    }

    fn own_dir(&self) -> Rc<CoreDir> {
        self.dirs.borrow()[0].clone()
    }

    /// The disk refused something at `path`.
    fn fail(&self, path: &Path, error: &io::Error) -> SpoolError {
        let error = self.disk.health.failed(path, error);
        self.disk.keeper.raise();
        SpoolError::Failed(error)
    }

    /// The payloads of a synced group: into the ring while there is room, else left to the reader.
    fn deliver(&self, group: Vec<Waiting>, place: &Place) {
        let mut ordinal = place.first_ordinal;
        for request in group {
            let Waiting { first, body, need, spans, payload_bytes, version, ticket } = request;
            let count = spans.len() as u32;
            let permit = match *self.behind.borrow() {
                None => self.admission.admit_now(need).ok().flatten(),
                Some(_) => None,
            };
            match permit {
                Some(permit) => {
                    let (segment, dir) = (place.segment.clone(), self.own_dir());
                    let record = self.record(dir, segment, ordinal, first.seq, None);
                    let payloads = Payload::split(body.hand_over(), permit, &spans, version);
                    self.push(payloads, first.seq.., first.unix_nanos, &record);
                }
                None if self.behind.borrow().is_none() => {
                    self.behind.replace(Some(Behind::new(place, ordinal)));
                    self.setup.cells.spool_overflowing.set(1);
                    self.overflowed.raise();
                }
                None => {}
            }
            self.setup.cells.payloads_accepted.add(count.into());
            self.setup.cells.bytes_accepted.add(payload_bytes as u64);
            ticket.set(Ok(()));
            ordinal += count;
        }
    }

    /// The stop has begun: what is on disk only stays there for the next process.
    pub fn stop_reading(&self) {
        self.reading_stopped.set();
        self.overflowed.raise();
    }

    /// Takes no more requests; those in line still go to the disk.
    pub fn close(&self) {
        self.closed.set(true);
        self.arrived.raise();
        self.disk.keeper.raise();
        self.disk.preparer.raise();
        self.disk.watcher.raise();
    }

    /// The last step of a stop, once this spool and the ring are closed: puts `rest` and the payloads of `batches`, which
    /// nobody works on any more, on the disk, and notes what has been settled. What the spool has taken is taken out.
    pub async fn stop(&self, rest: &mut Vec<Job>, batches: &mut Vec<Rc<Batch>>) {
        for task in self.tasks.take() {
            task.await;
        }
        self.disown(rest, batches).await;
        while !rest.is_empty() {
            if self.keep_jobs(rest, None).await.is_err() {
                break;
            }
        }
        // One at a time: taken apart it needs several times its memory.
        batches.sort_by_key(|batch| batch.members().is_none());
        while rest.is_empty()
            && let Some(batch) = batches.pop_if(|batch| batch.members().is_none())
        {
            if self.keep_batch(&batch, rest).await.is_err() {
                break;
            }
        }
        self.put_away().await;
    }

    /// Spools the payloads of a batch, and notes that they were to be one object: it may be on its way to the store, so the
    /// next process must put it under the same key. What finds no place is left in `rest`.
    async fn keep_batch(&self, batch: &Batch, rest: &mut Vec<Job>) -> Result<(), SpoolError> {
        *rest = batch.jobs();
        let mut members = Members::of(&self.own_dir());
        while !rest.is_empty() {
            self.keep_jobs(rest, Some(&mut members)).await?;
        }
        // More than an intent has room for, or none: then they are by themselves.
        if members.len() == batch.payloads() && !members.is_empty() {
            // Dropped, it is left to the next process.
            let _intent = self.intend(batch.key(), &batch.form(), &Rc::new(members)).await?;
        }
        Ok(())
    }

    /// Spools the first of `rest`, as many as share a group, and adds them to `members`.
    async fn keep_jobs(
        &self,
        rest: &mut Vec<Job>,
        members: Option<&mut Members>,
    ) -> Result<(), SpoolError> {
        let mut body = 0;
        let follows = |a: &Job, b: &Job| {
            a.stamp.unix_nanos == b.stamp.unix_nanos
                && a.stamp.seq + 1 == b.stamp.seq
                && a.payload.version() == b.payload.version()
        };
        let mut count = 0;
        for run in rest.chunk_by(follows) {
            let bytes = run.iter().map(|job| job.payload.len()).sum();
            let record = format::record_bytes(run.len(), bytes, run[0].payload.version());
            if count > 0 && body + record > GROUP_BYTES_MAX {
                break;
            }
            body += record;
            count += run.len();
        }
        let bytes = rest[..count].iter().map(|job| job.payload.len() as u64).sum();
        let payloads = Payloads { count: count as u32, bytes };
        let write = |mut out: &mut [u8]| {
            for run in rest[..count].chunk_by(follows) {
                let payloads = run.iter().map(|job| &*job.payload);
                let version = run[0].payload.version();
                let written = format::write_record(out, run[0].stamp, version, payloads);
                out = &mut out[written..];
            }
        };
        let place = self.put_records(body, payloads, write).await?;
        if let Some(members) = members {
            let (dir, segment) = (self.own_dir(), place.segment.clone());
            let mut ordinal = place.first_ordinal;
            for run in rest[..count].chunk_by(follows) {
                let (dir, segment) = (dir.clone(), segment.clone());
                let record = self.record(dir, segment, ordinal, run[0].stamp.seq, None);
                let all = run.iter().all(|job| members.push(&record, job));
                ordinal += run.len() as u32;
                if !all {
                    break;
                }
            }
        }
        rest.drain(..count);
        Ok(())
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

#[cfg(test)]
mod tests;
