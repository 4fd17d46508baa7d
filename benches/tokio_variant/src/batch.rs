//! `OBJECT=batch`: the library's encoder and keys, on threads beside the runtime's.
//!
//! One batching thread per core empties the one queue, as the upload workers do without batches. A thread and no task, for
//! an encoder belongs to one, and compressing on the runtime's would hold up requests; one per core, for one alone
//! would be the limit of the whole. A queue that is empty is looked at again after [`NAP`] rather than waited for: a batch is
//! open for much longer, and being woken by every request would cost more than what it brings.
//!
//! `BATCH_MEMORY` is taken when a batch is closed and given back when it is stored, so that what is open is beyond it; nothing
//! is taken out of the queue meanwhile. Not built, because no lane measures it: partitions.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender, TryRecvError};
use bytes::Bytes;
use millrace::internals::batch::encoder::{Encoder, EncoderShared};
use millrace::internals::config::{BatchOptions, Config};
use millrace::internals::queue::job::{Payload, Stamp};
use millrace::internals::store::Summing;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::admit::Job;
use crate::serve::Server;
use crate::store::{Body, Held, Object};

/// How long a batching thread leaves an empty queue alone: at a million payloads a second, 1,000 come meanwhile.
const NAP: Duration = Duration::from_millis(1);

/// Payloads taken at once, whose slots are given back together.
const TURN_PAYLOADS: usize = 64;

/// Bytes that enter a batch before they are looked at again, as in the library.
const LOOK_BYTES: usize = 4 << 10;

/// A semaphore counts no further than `u32`.
const MEMORY_UNIT_BYTES: usize = 1 << 10;

/// Starts the threads; what they close comes out of the receiver, which ends after the queue has.
pub fn start(server: &Arc<Server>, jobs: &Receiver<Job>) -> Option<Receiver<Object>> {
    let options = server.config.batch.clone()?;
    let cores = server.config.cores.len();
    let memory = Arc::new(Semaphore::new(options.memory * cores / MEMORY_UNIT_BYTES));
    // Bounded by the memory, not by their number.
    let (closed, objects) = async_channel::unbounded();
    for number in 0..cores {
        let (spent, returned) = mpsc::channel();
        let batcher = Batcher {
            server: server.clone(),
            options: options.clone(),
            jobs: jobs.clone(),
            closed: closed.clone(),
            memory: memory.clone(),
            runtime: Handle::current(),
            spent,
            returned,
        };
        std::thread::Builder::new()
            .name(format!("batch-{number}"))
            .spawn(move || batcher.run())
            .expect("threads can be started");
    }
    Some(objects)
}

/// Refuses what is not built.
pub fn check(config: &Config) -> Result<(), String> {
    match config.batch {
        Some(_) if config.keys.is_partitioned() => {
            Err("KEY: the tokio variant has no partitions; drop {field:…} and {version}".into())
        }
        _ => Ok(()),
    }
}

struct Batcher {
    server: Arc<Server>,
    options: BatchOptions,
    jobs: Receiver<Job>,
    closed: Sender<Object>,
    memory: Arc<Semaphore>,
    runtime: Handle,
    /// For whoever is done with a batch's chunks.
    spent: mpsc::Sender<Vec<Vec<u8>>>,
    returned: mpsc::Receiver<Vec<Vec<u8>>>,
}

struct Open {
    encoder: Encoder,
    summing: Summing,
    stamp: Stamp,
    expires: Instant,
    payloads: u64,
    unseen_bytes: usize,
}

impl Batcher {
    fn run(self) {
        let shared = EncoderShared::new();
        let mut open: Option<Open> = None;
        let mut turn = Vec::with_capacity(TURN_PAYLOADS);
        loop {
            let ended = self.take(&mut turn, open.is_none());
            self.server.admission.popped(turn.len());
            for job in turn.drain(..) {
                let batch = open.get_or_insert_with(|| self.open(&shared));
                batch.push(&job.payload);
                if batch.is_full(&self.options)
                    && let Some(batch) = open.take()
                {
                    self.close(batch, &shared);
                }
            }
            if let Some(batch) = open.take_if(|batch| ended || batch.expires <= Instant::now()) {
                self.close(batch, &shared);
            }
            if ended {
                return;
            }
        }
    }

    /// Fills `turn`, or waits a little; true once nothing more will come.
    #[expect(clippy::disallowed_methods, reason = "a thread of its own, no core of the server")]
    fn take(&self, turn: &mut Vec<Job>, may_wait: bool) -> bool {
        while turn.len() < TURN_PAYLOADS {
            match self.jobs.try_recv() {
                Ok(job) => turn.push(job),
                Err(TryRecvError::Closed) => return true,
                Err(TryRecvError::Empty) if !turn.is_empty() => break,
                Err(TryRecvError::Empty) if may_wait => match self.jobs.recv_blocking() {
                    Ok(job) => turn.push(job),
                    Err(_) => return true,
                },
                Err(TryRecvError::Empty) => {
                    std::thread::sleep(NAP);
                    break;
                }
            }
        }
        false
    }

    fn open(&self, shared: &Rc<EncoderShared>) -> Open {
        for chunks in self.returned.try_iter() {
            shared.give_back(chunks.into_iter().map(Payload::from).collect());
        }
        let seq = self.server.seq.fetch_add(1, Relaxed);
        Open {
            encoder: Encoder::new(self.options.form.compression, shared),
            summing: self.server.store.summing(),
            stamp: Stamp { unix_nanos: Stamp::unix_nanos_now(), seq },
            expires: Instant::now() + self.options.age,
            payloads: 0,
            unseen_bytes: 0,
        }
    }

    fn close(&self, mut batch: Open, shared: &Rc<EncoderShared>) {
        batch.encoder.finish();
        batch.work();
        let parts = batch.encoder.into_parts();
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let body = if self.server.store.wants_one_piece() {
            let mut whole = Vec::with_capacity(bytes);
            parts.iter().for_each(|part| whole.extend_from_slice(part));
            shared.give_back(parts);
            Body::Whole(Bytes::from(whole))
        } else {
            let chunks = parts.into_iter().filter_map(Payload::into_bytes).collect();
            Body::Chunks { chunks, spent: self.spent.clone() }
        };
        let units = bytes.div_ceil(MEMORY_UNIT_BYTES) as u32;
        let memory = self.memory.clone().acquire_many_owned(units);
        let memory = self.runtime.block_on(memory).expect("never closed");
        let ext = self.options.form.ext();
        let object = Object {
            key: self.server.key(batch.stamp, batch.payloads, ext),
            body,
            sums: Some(batch.summing.finish()),
            payloads: batch.payloads,
            _held: Held::Batch(memory),
        };
        let _ended_by_the_drain = self.closed.send_blocking(object);
    }
}

impl Open {
    fn push(&mut self, payload: &[u8]) {
        self.encoder.push(payload);
        self.payloads += 1;
        self.unseen_bytes += payload.len();
        if self.unseen_bytes >= LOOK_BYTES {
            self.work();
        }
    }

    /// Nothing else runs on this thread, so there is nothing to yield to.
    fn work(&mut self) {
        self.unseen_bytes = 0;
        let summing = &mut self.summing;
        while self.encoder.work(&mut |bytes| summing.update(bytes)) {}
    }

    fn is_full(&self, options: &BatchOptions) -> bool {
        self.encoder.stored_bytes() >= options.bytes
            || self.encoder.raw_bytes() >= options.raw_bytes
            || options.count.is_some_and(|count| self.payloads >= count)
    }
}
