//! Whether a request may enter the shared queue: all its payloads or none, by slots and by bytes, as in the library.
//!
//! Both budgets are tokio semaphores, which serve waiters first come, first served. Slots are given back when a worker
//! pops, bytes when the request's last payload is finished.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_channel::{Receiver, Sender};
use bytes::Bytes;
use millrace::internals::config::Config;
use millrace::internals::queue::admission::{Need, Refusal};
use millrace::internals::queue::job::Stamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One payload on its way to the store.
pub struct Job {
    pub payload: Bytes,
    pub stamp: Stamp,
    /// The bytes of the request, given back with its last payload.
    pub permit: Arc<OwnedSemaphorePermit>,
}

/// The gate in front of the one queue of all threads.
pub struct Admission {
    queue: Sender<Job>,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    slots_max: usize,
    bytes_max: usize,
    wait: Duration,
}

/// Room for one request: its slots are taken until [`Admission::push_all`] fills them.
pub struct Room {
    slots: OwnedSemaphorePermit,
    pub bytes: Arc<OwnedSemaphorePermit>,
}

impl Admission {
    pub fn new(config: &Config) -> (Admission, Receiver<Job>) {
        let cores = config.cores.len();
        let (slots_max, bytes_max) = (config.max_queue * cores, config.max_queue_bytes * cores);
        let (queue, jobs) = async_channel::bounded(slots_max);
        let admission = Admission {
            queue,
            slots: Arc::new(Semaphore::new(slots_max)),
            bytes: Arc::new(Semaphore::new(bytes_max)),
            slots_max,
            bytes_max,
            wait: config.enqueue_wait,
        };
        (admission, jobs)
    }

    /// Room for `need`, waiting `ENQUEUE_WAIT` at most.
    pub async fn admit(&self, need: Need) -> Result<Room, Refusal> {
        if need.slots > self.slots_max {
            return Err(Refusal::TooManyPayloads { given: need.slots, max: self.slots_max });
        }
        let too_many = Refusal::TooManyBytes { given: need.bytes, max: self.bytes_max };
        let Ok(bytes) = u32::try_from(need.bytes) else { return Err(too_many) };
        if need.bytes > self.bytes_max {
            return Err(too_many);
        }
        if self.queue.is_closed() {
            return Err(Refusal::Closed);
        }
        let slots = need.slots as u32;
        if let Ok(slots) = self.slots.clone().try_acquire_many_owned(slots)
            && let Ok(bytes) = self.bytes.clone().try_acquire_many_owned(bytes)
        {
            return Ok(Room { slots, bytes: Arc::new(bytes) });
        }
        let full = Refusal::Full { retry_after_s: 1 };
        if self.wait.is_zero() {
            return Err(full);
        }
        let both = async {
            let slots = self.slots.clone().acquire_many_owned(slots).await.ok()?;
            let bytes = self.bytes.clone().acquire_many_owned(bytes).await.ok()?;
            Some(Room { slots, bytes: Arc::new(bytes) })
        };
        match tokio::time::timeout(self.wait, both).await {
            Ok(room) => room.ok_or(Refusal::Closed),
            Err(_) => Err(full),
        }
    }

    /// Queues the jobs that `slots` was taken for; false if the queue has closed meanwhile, and then none is in it.
    pub fn push_all(&self, room: Room, jobs: impl Iterator<Item = Job>) -> bool {
        for job in jobs {
            if self.queue.try_send(job).is_err() {
                return false;
            }
        }
        room.slots.forget();
        true
    }

    /// So many jobs were taken out of the queue.
    pub fn popped(&self, jobs: usize) {
        self.slots.add_permits(jobs);
    }

    /// Takes nothing more; workers end once the queue is empty.
    pub fn close(&self) {
        self.slots.close();
        self.queue.close();
    }
}

/// Bytes of bodies being read, of all threads.
pub struct BodyBudget {
    max: usize,
    used: AtomicUsize,
}

impl BodyBudget {
    pub fn new(max: usize) -> BodyBudget {
        BodyBudget { max, used: AtomicUsize::new(0) }
    }

    /// Nothing, to grow.
    pub fn charge(&self) -> BodyCharge<'_> {
        BodyCharge { budget: self, bytes: 0 }
    }
}

/// One body's part of the budget, given back on every way out.
pub struct BodyCharge<'a> {
    budget: &'a BodyBudget,
    bytes: usize,
}

impl BodyCharge<'_> {
    /// Whether the budget has `more` bytes; if so they are charged.
    pub fn grow(&mut self, more: usize) -> bool {
        let used = self.budget.used.fetch_add(more, Relaxed) + more;
        self.bytes += more;
        used <= self.budget.max
    }
}

impl Drop for BodyCharge<'_> {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Relaxed);
    }
}
