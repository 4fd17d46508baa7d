//! Batches of one core: many payloads in one NDJSON object, one payload per line.
//!
//! ```text
//!  ring → gather → open batches, one per partition → closed → workers → store
//!                  BATCH_BYTES, _RAW_BYTES, _AGE, _COUNT
//! ```
//!
//! One task (`gather`) empties the ring. In entering a batch a payload is copied or compressed, and gives up its ring slot and
//! its share of its request's body; from then on the batch is charged to `BATCH_MEMORY`, open, closed and travelling. When that
//! is used up the ring is not emptied any more, so admission answers 503. The bound may be exceeded by one payload,
//! one chunk and one compressor state.
//!
//! Payloads share a batch if `KEY` makes the same text of them (`key::Partition`) and they are equally safe: those of one
//! core directory of the spool, or those that are in memory only, are together. So what a crash leaves of a batch is known
//! from one journal, and what a stop leaves is either in the spool already or not at all.
//!
//! `encoder` turns payloads into the bytes of one object: it puts them on lines (`lines`), compresses them in bounded
//! slices (`compressor`) and keeps the outcome in chunks (`chunks`) that are sent as they lie. `restore` puts batches again
//! that a crashed process had begun.

mod chunks;
mod compressor;
pub mod encoder;
mod gather;
mod lines;
mod open;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::task::Context;
use std::time::{Duration, Instant};

use crate::rt;
use crate::rt::sleep;

pub use gather::gather;

use crate::budget::{Budget, Charge};
use crate::coding::Compression;
use crate::config::{BatchFormat, BatchOptions, Config};
use crate::key::{KeyTemplate, Partition};
use crate::metrics::{CloseReason, CoreCells};
use crate::queue::admission::Admission;
use crate::queue::fifo::Fifo;
use crate::queue::job::{Job, Origin, Payload, Stamp, Stamps};
use crate::queue::outcome::{Outcome, RequestOutcome};
use crate::spool::{Members, SpoolError};
use crate::stop::Stop;
use crate::store::{Integrity, Object, Store, Sums};
use crate::throttle::Throttle;
use encoder::{Encoder, EncoderShared};
use open::OpenBatch;

/// What a batch is charged beside its bytes and the lists of its members: its own fields, its key, the partition's text.
const BATCH_COST_BYTES: usize = 4 << 10;

/// How long a batch is set aside that waits for the spool's disk: as long as a failed disk goes untried.
const PARKED_FOR: Duration = Duration::from_secs(1);

/// Room that is made before a payload enters: a chunk may be begun for it.
const ROOM_BYTES: usize = 256 << 10;

/// What a core's batches may take beyond `BATCH_MEMORY`: a compressor state and a chunk, and what the encoders keep for
/// reuse (32 chunks of 256 KiB and four states of up to 3 MiB).
pub const MEMORY_BESIDE_BYTES: usize = (4 + 8 + 12) << 20;

/// The batches of one core.
pub struct Batches {
    options: BatchOptions,
    keys: KeyTemplate,
    feed: Feed,
    shared: Rc<EncoderShared>,
    memory: Rc<Budget>,
    open: RefCell<OpenBatches>,
    /// In line for a worker.
    closed: Fifo<Rc<Batch>>,
    held: InGathering,
    lookup: Lookup,
    /// When the gathering task last let others run.
    turn_began: Cell<Instant>,
    parked: Parked,
    cells: &'static CoreCells,
}

/// What of a core its batches need beside themselves.
pub struct Feed {
    /// Where payloads come from.
    pub admission: Rc<Admission>,
    /// A batch is numbered like a payload.
    pub stamps: Rc<Stamps>,
    pub origin: Rc<Origin>,
    /// Which sums objects need.
    pub store: Rc<Store>,
    pub stop: Rc<Stop>,
}

/// What the gathering task is busy with, where a stop that cancels it finds it.
#[derive(Default)]
struct InGathering {
    /// Being finished: no longer open and not yet closed.
    closing: RefCell<Option<Rc<RefCell<OpenBatch>>>>,
    /// A payload that waits for room.
    job: RefCell<Option<Job>>,
}

/// Batches that wait for the spool's journal, which failed.
#[derive(Default)]
struct Parked {
    batches: RefCell<Vec<Rc<Batch>>>,
    log: RefCell<Throttle>,
}

/// Finds the batch of a payload; each is used again for the next.
#[derive(Default)]
struct Lookup {
    /// Whether not all payloads of one kind share a batch.
    is_partitioned: bool,
    /// Room for what the next payload's place is made of, and for the place.
    partition: RefCell<Partition>,
    place: RefCell<Vec<u8>>,
    /// Where the payload before went.
    last: RefCell<Option<Place>>,
}

/// What payloads of one batch have in common, and that batch.
type Place = (Rc<[u8]>, Rc<RefCell<OpenBatch>>);

/// The open batches, by what their members have in common, and by age.
#[derive(Default)]
struct OpenBatches {
    by_place: HashMap<Rc<[u8]>, Rc<RefCell<OpenBatch>>>,
    /// By number, so the oldest first.
    by_age: BTreeMap<u64, (Instant, Rc<[u8]>)>,
    next_number: u64,
}

impl Batches {
    pub fn new(config: &Config, feed: Feed, cells: &'static CoreCells) -> Option<Rc<Batches>> {
        let options = config.batch.clone()?;
        let memory = Budget::new(options.memory, &cells.batch_bytes);
        Some(Rc::new(Batches {
            keys: config.keys.clone(),
            feed,
            shared: EncoderShared::new(),
            memory,
            open: RefCell::default(),
            // Each is charged at least its cost, and nothing enters beyond the bound.
            closed: Fifo::new(options.memory / BATCH_COST_BYTES + options.partitions + 1),
            held: InGathering::default(),
            lookup: Lookup { is_partitioned: config.keys.is_partitioned(), ..Lookup::default() },
            turn_began: Cell::new(Instant::now()),
            parked: Parked::default(),
            cells,
            options,
        }))
    }

    /// The batch that has been closed for longest, if there is one.
    pub fn take_closed(&self) -> Option<Rc<Batch>> {
        self.closed.take()
    }

    /// Whether a closed batch is in line.
    pub fn has_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// No more batches will be closed.
    pub fn is_closed(&self) -> bool {
        self.closed.is_closed()
    }

    /// Worker `number` waits for a closed batch or for [`Batches::wake_worker`].
    pub fn wait(&self, cx: &Context<'_>, number: usize) {
        self.closed.wait(cx, number);
    }

    /// Worker `number` waits no longer.
    pub fn leave(&self, number: usize) {
        self.closed.leave(number);
    }

    /// Wakes a worker that waits.
    pub fn wake_worker(&self) {
        self.closed.wake_one();
    }

    /// Nothing is open, being closed or in line.
    pub fn is_empty(&self) -> bool {
        self.closed.is_empty()
            && self.parked.batches.borrow().is_empty()
            && self.open.borrow().by_place.is_empty()
            && self.held.closing.borrow().is_none()
            && self.held.job.borrow().is_none()
    }

    /// All that is open, being closed or in line is in the spool as well.
    pub fn holds_spooled_only(&self) -> bool {
        let is_spooled = |open: &Rc<RefCell<OpenBatch>>| open.borrow().is_spooled();
        self.closed.all(|batch| batch.is_spooled())
            && self.open.borrow().by_place.values().all(is_spooled)
            && self.held.closing.borrow().iter().all(is_spooled)
            && self.held.job.borrow().iter().all(|job| job.record.is_some())
    }

    /// Sets a batch aside that cannot be put before the spool's disk works again, so that no worker waits with it; it is in
    /// line again after a while.
    pub fn park(self: &Rc<Self>, batch: Rc<Batch>, error: &SpoolError) {
        let text = || format!("{} waits for the spool's journal: {error}", batch.key());
        self.parked.log.borrow_mut().warn(text);
        self.parked.batches.borrow_mut().push(batch);
        if self.parked.batches.borrow().len() == 1 {
            let batches = self.clone();
            rt::spawn(async move {
                sleep(PARKED_FOR).await;
                for batch in batches.parked.batches.take() {
                    // Else the stop has come to its end: what is spooled stays there.
                    let _in_line = batches.closed.push(batch);
                }
            })
            .detach();
        }
    }

    /// For the last step of a stop, when the gathering task and the workers are no more: what is not in the spool. Batches
    /// that were open are closed, in one go.
    pub fn take_rest(&self) -> (Vec<Job>, Vec<Rc<Batch>>) {
        let job = self.held.job.take().filter(|job| job.record.is_none());
        self.parked.batches.take();
        self.lookup.last.take();
        let open = std::mem::take(&mut *self.open.borrow_mut()).by_place.into_values();
        let mut batches: Vec<Rc<Batch>> = std::iter::from_fn(|| self.closed.take()).collect();
        for open in open.chain(self.held.closing.take()) {
            let mut open = Rc::into_inner(open).expect("its task is no more").into_inner();
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
        (job.into_iter().collect(), batches)
    }
}

/// Payloads in a row whose stamps follow each other.
#[derive(Clone, Copy)]
struct StampRun {
    first: Stamp,
    count: u32,
}

/// Whom an object's fate concerns beside the spool.
#[derive(Default)]
struct Roster {
    /// What each payload would be called by itself, in the order of the lines; of payloads that are in memory only.
    stamps: Vec<StampRun>,
    /// Requests that wait for the store, with how many payloads each has here.
    request_outcomes: Vec<(Rc<RequestOutcome>, u32)>,
}

impl Roster {
    fn note_stamp(&mut self, stamp: Stamp) {
        match self.stamps.last_mut() {
            Some(run)
                if run.first.unix_nanos == stamp.unix_nanos
                    && run.first.seq + u64::from(run.count) == stamp.seq
                    && run.count < u32::MAX =>
            {
                run.count += 1;
            }
            _ => self.stamps.push(StampRun { first: stamp, count: 1 }),
        }
    }

    fn note_request(&mut self, request_outcome: Rc<RequestOutcome>) {
        match self.request_outcomes.last_mut() {
            Some((last, count)) if Rc::ptr_eq(last, &request_outcome) => *count += 1,
            _ => self.request_outcomes.push((request_outcome, 1)),
        }
    }

    fn memory(&self) -> usize {
        self.stamps.capacity() * size_of::<StampRun>()
            + self.request_outcomes.capacity() * size_of::<(Rc<RequestOutcome>, u32)>()
    }

    fn stamps(&self) -> impl Iterator<Item = Stamp> {
        self.stamps.iter().flat_map(|run| {
            let Stamp { unix_nanos, seq } = run.first;
            (seq..seq + u64::from(run.count)).map(move |seq| Stamp { unix_nanos, seq })
        })
    }
}

/// A batch that takes no more payloads: one object, and whom its fate concerns.
pub struct Batch {
    key: String,
    /// What a dead letter of it is called.
    stem: String,
    form: BatchFormat,
    parts: Vec<Payload>,
    sums: Sums,
    payloads: u64,
    /// Of the payloads as they came, without line feeds.
    payload_bytes: u64,
    kind: BatchKind,
    roster: Roster,
    /// Of its payloads' requests, as far as keys tell them apart.
    version: Option<Box<str>>,
    shared: Rc<EncoderShared>,
    _charge: Option<Charge>,
}

/// Where the payloads of a batch are beside it.
enum BatchKind {
    /// Nowhere: a crash loses them.
    Memory,
    /// In this core's spool.
    Spooled(Rc<Members>),
    /// The one payload, which was spooled to be an object of its own by a process of `OBJECT=payload`; then there are no
    /// parts.
    SingleObject(Job),
    /// In the spool of a process that has crashed and had begun to put this batch.
    Restored,
}

impl Batch {
    /// `job` as an object of its own.
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
            version: None,
            shared: batches.shared.clone(),
            _charge: Some(charge),
        }
    }

    /// A batch that a crashed process had begun, made again by an encoder that has ended: `payloads` of `payload_bytes`.
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
            roster: Roster::default(),
            version: None,
            shared,
            _charge: None,
        }
    }

    /// Also `tally` is told what becomes of it, as of one payload.
    pub fn report_to(&mut self, request_outcome: Rc<RequestOutcome>) {
        self.roster.request_outcomes.push((request_outcome, 1));
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    /// Unlike that of any other batch or payload of this process.
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

    /// How it is made, for the spool.
    pub fn form(&self) -> String {
        self.form.to_string()
    }

    pub fn payloads(&self) -> u64 {
        self.payloads
    }

    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Where its members lie in this core's spool, if they do.
    pub fn members(&self) -> Option<&Rc<Members>> {
        match &self.kind {
            BatchKind::Spooled(members) => Some(members),
            _ => None,
        }
    }

    /// It was begun by a process that is no more.
    pub fn is_restored(&self) -> bool {
        matches!(self.kind, BatchKind::Restored)
    }

    /// Its payloads survive this process.
    pub fn is_spooled(&self) -> bool {
        match &self.kind {
            BatchKind::Memory => false,
            BatchKind::Spooled(members) => !members.is_removed(),
            BatchKind::SingleObject(job) => job.is_spooled(),
            BatchKind::Restored => true,
        }
    }

    /// Tells whom its fate concerns, but for what the spool notes of a batch.
    pub fn complete(&self, outcome: Outcome) {
        if let BatchKind::SingleObject(job) = &self.kind {
            job.complete(outcome);
        }
        for (request_outcome, count) in &self.roster.request_outcomes {
            (0..*count).for_each(|_| request_outcome.add(outcome));
        }
    }

    /// The payloads as jobs again, in the order of the object's lines. Only for a batch whose payloads
    /// are in memory only: the jobs have no record in the spool, and no request waits for them.
    pub fn jobs(&self) -> Vec<Job> {
        if let BatchKind::SingleObject(job) = &self.kind {
            // It has no parts. Its record names a segment file that was removed.
            return vec![Job::queued(job.payload.clone(), job.stamp)];
        }
        let mut jobs = Vec::with_capacity(self.payloads as usize);
        let mut stamps = self.roster.stamps();
        encoder::lines(self.form.compression, &self.parts, |line| {
            let stamp = stamps.next().expect("one for each line");
            let payload = Payload::uncharged(line.to_vec(), self.version.as_deref());
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
