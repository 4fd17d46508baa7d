//! Batches of one core: many payloads in one NDJSON object, one payload per line.
//!
//! ```text
//!  queue → gather → open batches, one per partition → closed → workers → store
//!                   BATCH_BYTES, _RAW_BYTES, _AGE, _COUNT; sooner for `stored` (closes)
//! ```
//!
//! One task (`gather`) empties the queue. It takes what is adjacent: payloads of one request that
//! share a batch join it together. When a payload joins a batch it is copied or compressed, and
//! releases its queue slot and its share of its request's body. From then on the batch is
//! charged to `BATCH_MEMORY`, until it is stored. When that is used up the queue is no longer
//! emptied, so admission answers 503. The bound may be exceeded by one payload, one chunk and one
//! compressor state.
//!
//! Payloads share a batch if `KEY` makes the same partition of them (`key::Partition`) and they are
//! equally safe: all in the same core directory of the spool, or all in memory only. So one journal
//! says what a crash leaves of a batch, and what a stop leaves is either completely in the spool or
//! not at all.
//!
//! `encoder` turns payloads into the bytes of one object: it puts them on lines (`lines`),
//! compresses them in bounded slices (`compressor`) and keeps the result in chunks (`chunks`),
//! which are sent without another copy. `upload::restore` uploads the batches again that a crashed
//! process left in doubt.

mod chunks;
mod closes;
mod compressor;
pub mod encoder;
mod gather;
mod lines;
mod open;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::task::Context;
use std::time::{Duration, Instant};

use crate::rt::{self, TaskKind, sleep};

pub use gather::gather;

use crate::budget::{Budget, Charge};
use crate::coding::Compression;
use crate::config::{BatchFormat, BatchOptions, Config};
use crate::deadletter::TRACES_MAX;
use crate::key::{KeyTemplate, Partition, RequestValues};
use crate::metrics::{CloseReason, CoreCells};
use crate::queue::admission::Admission;
use crate::queue::event_times::UnreadableTimes;
use crate::queue::fifo::Fifo;
use crate::queue::job::{Job, Origin, Payload, Stamp, Stamps};
use crate::queue::outcome::{Outcome, RequestOutcome};
use crate::queue::run::Run;
use crate::spool::{Members, SpoolError};
use crate::stop::Stop;
use crate::store::{Integrity, Object, Store, Sums};
use crate::throttle::Throttle;
use closes::Closes;
use encoder::{Encoder, EncoderShared};
use open::OpenBatch;

/// Charge of a batch in addition to its bytes and member lists: its fields, its key and the
/// partition's text.
const BATCH_COST_BYTES: usize = 4 << 10;

/// How long a batch waits for the spool's disk before its next attempt: as long as the spool waits
/// before it tries a failed disk again.
const PARKED_FOR: Duration = Duration::from_secs(1);

/// Batches that [`Batches::oldest_payload`] looks at, those that were opened or closed first. An
/// older payload in a later one is older by what it waited elsewhere.
const LOOKED_AT_MAX: usize = 1_024;

/// Memory that must be free before a payload joins: it may need a new chunk.
const ROOM_BYTES: usize = 256 << 10;

/// Memory of a core's batches beyond `BATCH_MEMORY`: a compressor state and a chunk, and what the
/// encoders keep for reuse (32 chunks of 256 KiB and four states of up to 3 MiB).
pub const MEMORY_BESIDE_BYTES: usize = (4 + 8 + 12) << 20;

/// The batches of one core.
pub struct Batches {
    options: BatchOptions,
    keys: KeyTemplate,
    feed: Feed,
    shared: Rc<EncoderShared>,
    memory: Rc<Budget>,
    open: RefCell<OpenBatches>,
    /// Closed batches, waiting for a worker.
    closed: Fifo<Rc<Batch>>,
    gathering: GatherState,
    lookup: Lookup,
    closes: Closes,
    parked: Parked,
    cells: &'static CoreCells,
}

/// The parts of a core that its batches use.
pub struct Feed {
    /// The source of payloads.
    pub admission: Rc<Admission>,
    /// Batches are numbered like payloads, from the same sequence.
    pub stamps: Rc<Stamps>,
    pub origin: Rc<Origin>,
    /// Says which checksums objects need.
    pub store: Rc<Store>,
    pub stop: Rc<Stop>,
}

/// What the gathering task is busy with. A stop that cancels the task finds it here.
struct GatherState {
    /// When the task last let other tasks run.
    turn_began: Cell<Instant>,
    /// A batch that is being finished: no longer open and not yet closed.
    closing: RefCell<Option<Rc<RefCell<OpenBatch>>>>,
    /// A payload that cannot join a batch yet, and left the queue.
    blocked: RefCell<Option<Run>>,
}

/// Batches that wait for the spool's journal after it failed.
#[derive(Default)]
struct Parked {
    batches: RefCell<Vec<Rc<Batch>>>,
    log: RefCell<Throttle>,
}

/// Finds the batch of a payload. The buffers are reused for the next one.
#[derive(Default)]
struct Lookup {
    /// Whether `KEY` has a partition, …
    is_partitioned: bool,
    /// … and whether the payloads of one request may differ in it.
    differs_in_request: bool,
    /// The partition of the current payload, and its grouping.
    partition: RefCell<Partition>,
    grouping: RefCell<Vec<u8>>,
    /// The batch that the previous payload joined.
    last: RefCell<Option<LastBatch>>,
    unreadable: UnreadableTimes,
}

impl Lookup {
    fn of(keys: &KeyTemplate) -> Lookup {
        Lookup {
            is_partitioned: keys.is_partitioned(),
            differs_in_request: keys.differs_in_request(),
            ..Lookup::default()
        }
    }
}

/// The grouping of a batch (what its payloads have in common), and the batch.
type LastBatch = (Rc<[u8]>, Rc<RefCell<OpenBatch>>);

/// The open batches, by grouping and by age.
#[derive(Default)]
struct OpenBatches {
    by_grouping: HashMap<Rc<[u8]>, Rc<RefCell<OpenBatch>>>,
    /// By number, so the oldest is first.
    by_age: BTreeMap<u64, (Instant, Rc<[u8]>)>,
    /// Those that a `stored` request waits for: when they are closed at the latest, and which.
    awaited: BTreeSet<(Instant, u64)>,
    next_number: u64,
}

impl Batches {
    pub fn new(config: &Config, feed: Feed, cells: &'static CoreCells) -> Option<Rc<Batches>> {
        let options = config.batch.clone()?;
        let memory = Budget::new(options.memory, &cells.batch_bytes);
        cells.batch_bytes_max.set(options.memory as u64);
        cells.batches_open_max.set(options.partitions as u64);
        Some(Rc::new(Batches {
            keys: config.keys.clone(),
            feed,
            shared: EncoderShared::new(),
            memory,
            open: RefCell::default(),
            // The memory bounds the number of batches, because each is charged at least its cost.
            closed: Fifo::new(options.memory / BATCH_COST_BYTES + options.partitions + 1),
            gathering: GatherState {
                turn_began: Cell::new(Instant::now()),
                closing: RefCell::default(),
                blocked: RefCell::default(),
            },
            lookup: Lookup::of(&config.keys),
            closes: Closes::new(config),
            parked: Parked::default(),
            cells,
            options,
        }))
    }

    /// Takes the batch that was closed first, if there is one.
    pub fn take_closed(&self) -> Option<Rc<Batch>> {
        self.closed.take()
    }

    /// Whether a closed batch waits for a worker.
    pub fn has_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// Whether no more batches will be closed.
    pub fn is_closed(&self) -> bool {
        self.closed.is_closed()
    }

    /// Worker `number` waits for a closed batch or for [`Batches::wake_worker`].
    pub fn wait(&self, cx: &Context<'_>, number: usize) {
        self.closed.wait(cx, number);
    }

    /// Worker `number` no longer waits.
    pub fn leave(&self, number: usize) {
        self.closed.leave(number);
    }

    /// Wakes an idle worker, if there is one.
    pub fn wake_worker(&self) {
        self.closed.wake_one();
    }

    /// Whether no batch is open, being closed, or waiting for a worker or the journal.
    pub fn is_empty(&self) -> bool {
        self.closed.is_empty()
            && self.parked.batches.borrow().is_empty()
            && self.open.borrow().by_grouping.is_empty()
            && self.gathering.closing.borrow().is_none()
            && self.gathering.blocked.borrow().is_none()
    }

    /// When the oldest payload was admitted that is in a batch, or about to join one, and not with a
    /// worker; in nanoseconds since 1970.
    pub fn oldest_payload(&self) -> Option<u64> {
        let open = self.open.borrow();
        let oldest = open.by_age.values().take(LOOKED_AT_MAX);
        let oldest = oldest.filter_map(|(_, grouping)| open.by_grouping.get(grouping));
        let open = oldest.map(|batch| batch.borrow().admitted()).min();
        let closing = self.gathering.closing.borrow().as_ref().map(|open| open.borrow().admitted());
        let blocked =
            self.gathering.blocked.borrow().as_ref().map(|run| run.first_stamp().unix_nanos);
        let parked = self.parked.batches.borrow().iter().map(|batch| batch.admitted()).min();
        let closed = self.closed.least_of(LOOKED_AT_MAX, |batch| batch.admitted());
        [open, closing, blocked, parked, closed].into_iter().flatten().min()
    }

    /// When the oldest open batch was opened, in nanoseconds since 1970.
    pub fn oldest_opened(&self) -> Option<u64> {
        let open = self.open.borrow();
        let (_, grouping) = open.by_age.first_key_value()?.1;
        open.by_grouping.get(grouping).map(|batch| batch.borrow().opened())
    }

    /// Whether everything that is open, being closed or waiting for a worker is in the spool as
    /// well.
    pub fn holds_spooled_only(&self) -> bool {
        let is_spooled = |open: &Rc<RefCell<OpenBatch>>| open.borrow().is_spooled();
        self.closed.all(|batch| batch.is_spooled())
            && self.open.borrow().by_grouping.values().all(is_spooled)
            && self.gathering.closing.borrow().iter().all(is_spooled)
            && self.gathering.blocked.borrow().iter().all(Run::is_spooled)
    }

    /// Parks a batch that cannot be uploaded before the spool's disk works again, so that no worker
    /// waits with it. It is queued again after [`PARKED_FOR`].
    pub fn park(self: &Rc<Self>, batch: Rc<Batch>, error: &SpoolError) {
        let text = || format!("{} waits for the spool's journal: {error}", batch.key());
        self.parked.log.borrow_mut().warn(text);
        self.parked.batches.borrow_mut().push(batch);
        if self.parked.batches.borrow().len() == 1 {
            let batches = self.clone();
            rt::spawn_as(TaskKind::Batches, async move {
                sleep(PARKED_FOR).await;
                for batch in batches.parked.batches.take() {
                    // Refused only once the stop has ended. Then the batch stays in the spool.
                    let _queued = batches.closed.push(batch);
                }
            })
            .detach();
        }
    }

    /// Takes what is not in the spool, for the last step of a stop, when the gathering task and the
    /// workers have ended. Closes open batches without yielding.
    pub fn take_rest(&self) -> (Vec<Job>, Vec<Rc<Batch>>) {
        // Not `record.is_none()`: the segment file of a spooled payload may have been removed.
        let blocked = self.gathering.blocked.take().filter(|run| !run.is_spooled());
        self.lookup.last.take();
        let open = std::mem::take(&mut *self.open.borrow_mut()).by_grouping.into_values();
        let mut batches: Vec<Rc<Batch>> = std::iter::from_fn(|| self.closed.take()).collect();
        batches.extend(self.parked.batches.take());
        for open in open.chain(self.gathering.closing.take()) {
            let mut open = Rc::into_inner(open).expect("its task has ended").into_inner();
            if open.is_spooled() {
                continue;
            }
            open.encoder.finish();
            while open.work() {}
            batches.push(Rc::new(open.into_batch(self, &self.feed.origin)));
            self.cells.batches_closed[CloseReason::Drain as usize].inc();
        }
        self.cells.batches_open.set(0);
        batches.retain(|batch| !batch.is_spooled());
        (blocked.map(Run::into_job).into_iter().collect(), batches)
    }
}

/// Consecutive payloads with consecutive stamps.
#[derive(Clone, Copy)]
struct StampRun {
    first: Stamp,
    count: u32,
}

/// The stamps of a batch's payloads, the requests that wait for its outcome, and the traces of its
/// requests.
#[derive(Default)]
struct Roster {
    /// The stamp of each payload, in the order of the lines; empty for spooled payloads.
    stamps: Vec<StampRun>,
    /// The requests that wait for the store, each with its number of payloads in the batch.
    request_outcomes: Vec<(Rc<RequestOutcome>, u32)>,
    /// The first different trace contexts, at most [`TRACES_MAX`]. Mostly requests have none.
    traces: Vec<Box<str>>,
    /// When the oldest payload was admitted, in nanoseconds since 1970; `None` without payloads.
    admitted: Option<u64>,
}

impl Roster {
    /// `count` payloads with consecutive stamps.
    fn note_stamps(&mut self, first: Stamp, count: u32) {
        match self.stamps.last_mut() {
            Some(run)
                if run.first.unix_nanos == first.unix_nanos
                    && run.first.seq + u64::from(run.count) == first.seq
                    && count <= u32::MAX - run.count =>
            {
                run.count += count;
            }
            _ => self.stamps.push(StampRun { first, count }),
        }
    }

    /// Payloads that were admitted at `unix_nanos`.
    fn note_admitted(&mut self, unix_nanos: u64) {
        self.admitted = Some(self.admitted.map_or(unix_nanos, |oldest| oldest.min(unix_nanos)));
    }

    /// When the oldest payload was admitted; the end of time without payloads.
    fn admitted(&self) -> u64 {
        self.admitted.unwrap_or(u64::MAX)
    }

    /// `count` payloads of a request that waits.
    fn note_request(&mut self, request_outcome: &Rc<RequestOutcome>, count: u32) {
        match self.request_outcomes.last_mut() {
            Some((last, payloads)) if Rc::ptr_eq(last, request_outcome) => *payloads += count,
            _ => self.request_outcomes.push((request_outcome.clone(), count)),
        }
    }

    /// The trace of a request, if it has one.
    #[inline]
    fn note_trace(&mut self, values: &RequestValues) {
        let Some(trace) = values.trace() else { return };
        if self.traces.len() < TRACES_MAX && !self.traces.iter().any(|known| **known == *trace) {
            self.traces.push(trace.into());
        }
    }

    fn memory(&self) -> usize {
        self.stamps.capacity() * size_of::<StampRun>()
            + self.request_outcomes.capacity() * size_of::<(Rc<RequestOutcome>, u32)>()
            + self.traces.capacity() * size_of::<Box<str>>()
            + self.traces.iter().map(|trace| trace.len()).sum::<usize>()
    }

    fn stamps(&self) -> impl Iterator<Item = Stamp> {
        self.stamps.iter().flat_map(|run| {
            let Stamp { unix_nanos, seq } = run.first;
            (seq..seq + u64::from(run.count)).map(move |seq| Stamp { unix_nanos, seq })
        })
    }
}

/// A closed batch: one object, and those that wait for its outcome.
pub struct Batch {
    key: String,
    /// The file name of its dead letter, without an extension.
    stem: String,
    form: BatchFormat,
    parts: Vec<Payload>,
    sums: Sums,
    payloads: u64,
    /// Bytes of the payloads as received, without line feeds.
    payload_bytes: u64,
    kind: BatchKind,
    roster: Roster,
    /// What keys use of its payloads' requests; see `OpenBatch`.
    values: RequestValues,
    shared: Rc<EncoderShared>,
    _charge: Option<Charge>,
}

/// Where the payloads of a batch are stored besides the batch itself.
enum BatchKind {
    /// Nowhere: a crash would lose them.
    Memory,
    /// In this core's spool.
    Spooled(Rc<Members>),
    /// A single payload, which a process with `OBJECT=payload` spooled as a single object. The
    /// batch has no parts then.
    SingleObject(Job),
    /// In the spool of a crashed process, which left this batch in doubt.
    Restored,
}

impl Batch {
    /// `job` as a single object.
    fn single_object(job: Job, batches: &Batches) -> Batch {
        let mut charge = Charge::new(&batches.memory);
        charge.set(BATCH_COST_BYTES + job.payload.len());
        let origin = job.origin(&batches.feed.origin);
        Batch {
            key: origin.key(job.stamp, &job.payload),
            stem: origin.stem(job.stamp),
            form: BatchFormat { compression: Compression::None, header: false },
            parts: Vec::new(),
            sums: Sums::of(&[], Integrity::NONE),
            payloads: 1,
            payload_bytes: job.payload.len() as u64,
            kind: BatchKind::SingleObject(job),
            roster: Roster::default(),
            values: RequestValues::default(),
            shared: batches.shared.clone(),
            _charge: Some(charge),
        }
    }

    /// A batch that a crashed process left in doubt, made again by an encoder that has ended.
    pub fn restored(
        key: &str,
        stem: String,
        form: BatchFormat,
        encoder: Encoder,
        sums: Sums,
        [payloads, payload_bytes]: [u64; 2],
    ) -> Batch {
        let shared = encoder.shared().clone();
        Batch {
            key: key.to_owned(),
            stem,
            form,
            parts: encoder.into_parts(),
            sums,
            payloads,
            payload_bytes,
            kind: BatchKind::Restored,
            // When its payloads were admitted, nobody has read.
            roster: Roster { admitted: Some(rt::unix_nanos()), ..Roster::default() },
            values: RequestValues::default(),
            shared,
            _charge: None,
        }
    }

    /// Reports its outcome to `request_outcome` as well, as that of one payload.
    pub fn report_to(&mut self, request_outcome: Rc<RequestOutcome>) {
        self.roster.request_outcomes.push((request_outcome, 1));
    }

    /// The trace contexts of its payloads' requests, the first ones.
    pub fn traces(&self) -> impl Iterator<Item = &str> {
        let of_single = match &self.kind {
            BatchKind::SingleObject(job) => job.payload.values().trace(),
            BatchKind::Memory | BatchKind::Spooled(_) | BatchKind::Restored => None,
        };
        self.roster.traces.iter().map(|trace| &**trace).chain(of_single)
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    /// Unique among the batches and payloads of this process.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    pub fn object(&self) -> Object<'_> {
        if let BatchKind::SingleObject(job) = &self.kind {
            return Object::of(&self.key, &job.payload);
        }
        let Batch { key, parts, form, sums, .. } = self;
        Object { key, body: parts, coding: form.coding(), sums: Some(sums) }
    }

    /// How the object is made, as recorded in the spool.
    pub fn form(&self) -> String {
        self.form.to_string()
    }

    pub fn payloads(&self) -> u64 {
        self.payloads
    }

    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// When the oldest of its payloads was admitted, in nanoseconds since 1970; a restored batch
    /// counts from then on.
    pub fn admitted(&self) -> u64 {
        match &self.kind {
            BatchKind::SingleObject(job) => job.stamp.unix_nanos,
            _ => self.roster.admitted(),
        }
    }

    /// Its members in this core's spool, if it is spooled there.
    pub fn members(&self) -> Option<&Rc<Members>> {
        match &self.kind {
            BatchKind::Spooled(members) => Some(members),
            _ => None,
        }
    }

    /// Whether a process that has ended left it in doubt.
    pub fn is_restored(&self) -> bool {
        matches!(self.kind, BatchKind::Restored)
    }

    /// Whether its payloads survive this process.
    pub fn is_spooled(&self) -> bool {
        match &self.kind {
            BatchKind::Memory => false,
            BatchKind::Spooled(members) => !members.is_removed(),
            BatchKind::SingleObject(job) => job.is_spooled(),
            BatchKind::Restored => true,
        }
    }

    /// Reports its outcome to the requests that wait for it, and that of a single object also to
    /// the spool. The worker records the outcome of any other batch there.
    pub fn complete(&self, outcome: Outcome) {
        if let BatchKind::SingleObject(job) = &self.kind {
            job.complete(outcome);
        }
        for (request_outcome, count) in &self.roster.request_outcomes {
            request_outcome.add(outcome, *count as usize);
        }
    }

    /// The payloads as jobs again, in the order of the object's lines. Only for a batch whose
    /// payloads are in memory only: the jobs have no record in the spool, and no request waits for
    /// them.
    pub fn jobs(&self) -> Vec<Job> {
        if let BatchKind::SingleObject(job) = &self.kind {
            // It has no parts. Its record names a segment file that was removed.
            return vec![Job::queued(job.payload.clone(), job.stamp)];
        }
        let mut jobs = Vec::with_capacity(self.payloads as usize);
        let mut stamps = self.roster.stamps();
        encoder::lines(self.form.compression, &self.parts, |line| {
            let stamp = stamps.next().expect("one for each line");
            let payload = Payload::uncharged(line.to_vec(), self.values.clone());
            jobs.push(Job::queued(payload, stamp));
        });
        jobs
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.shared.give_back(std::mem::take(&mut self.parts));
    }
}
