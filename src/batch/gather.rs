//! The task that empties the ring into batches.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::rt;
use crate::rt::yield_now;
use futures_lite::FutureExt;

use super::open::OpenBatch;
use super::{Batch, Batches, CloseReason, ROOM_BYTES};
use crate::deadline::Alarm;
use crate::key::EventTime;
use crate::queue::job::{Job, Origin};

/// Payloads taken in before other tasks of the core run: less than [`TURN`] of small ones. Shorter turns cost more of what
/// comes once a turn, the kernel's share included, and fall behind admission: with 64 a request took 40 % more CPU.
const TURN_PAYLOADS: usize = 512;

/// How long the task goes on before others of the core run, looked at after each slice that was compressed or summed; one
/// more may begin just before.
const TURN: Duration = Duration::from_micros(100);

/// Longest a batch is open once the stop has begun: it waits for connections to end, and those of `stored` requests wait for
/// their batch. One that stays open until the ring closes would find little time left to travel, or none.
const DRAIN_AGE_MAX: Duration = Duration::from_millis(250);

/// Takes payloads out of the ring until that is closed and empty; then closes every batch.
pub async fn gather(batches: Rc<Batches>) {
    let queue = batches.feed.admission.queue();
    let mut alarm = Alarm::default();
    loop {
        let mut taken = 0;
        batches.turn_began.set(rt::now());
        while taken < TURN_PAYLOADS
            && let Some(job) = queue.take()
        {
            taken += 1;
            if let Err(left) = batches.enter(job) {
                batches.go_on(&mut alarm, left).await;
            }
        }
        batches.close_overdue().await;
        if taken > 0 {
            yield_now().await;
            continue;
        }
        match pop(&batches, &mut alarm).await {
            Some(Some(job)) => {
                if let Err(left) = batches.enter(job) {
                    batches.go_on(&mut alarm, left).await;
                }
            }
            // Closed and empty.
            Some(None) => break,
            // A batch is due.
            None => {}
        }
    }
    while let Some(oldest) = batches.oldest() {
        batches.close(oldest, CloseReason::Drain).await;
    }
    batches.closed.close();
}

/// The next payload, if there will be any; the outer `None`: a batch may be overdue.
async fn pop(batches: &Batches, alarm: &mut Alarm) -> Option<Option<Job>> {
    let pop = async { Some(batches.feed.admission.queue().pop(0).await) };
    match batches.next_expiry() {
        None => pop.await,
        Some(at) if batches.feed.stop.draining.get() => alarm.until(at, pop, || None).await,
        Some(at) => {
            let stop = async {
                batches.feed.stop.draining.wait().await;
                None
            };
            alarm.until(at, pop.or(stop), || None).await
        }
    }
}

/// What is left to do of a payload, and takes its time.
enum Remaining {
    Hindered(Job, Hindrance),
    /// It is in this batch.
    Entered(Rc<RefCell<OpenBatch>>),
}

/// What keeps a payload from entering.
enum Hindrance {
    Memory,
    Partitions,
    /// The spool can note no more of that batch.
    Members(Rc<RefCell<OpenBatch>>),
}

impl Batches {
    fn next_expiry(&self) -> Option<Instant> {
        let age = self.options.age;
        let age = if self.feed.stop.draining.get() { age.min(DRAIN_AGE_MAX) } else { age };
        self.open.borrow().by_age.first_key_value().map(|(_, (opened, _))| *opened + age)
    }

    fn is_overdue(&self) -> bool {
        self.next_expiry().is_some_and(|at| at <= rt::now())
    }

    /// Puts a payload that has left the ring into its batch, which mostly is all.
    fn enter(&self, job: Job) -> Result<(), Remaining> {
        self.feed.admission.popped();
        match self.try_add(&job) {
            Err(hindrance) => Err(Remaining::Hindered(job, hindrance)),
            // Its slot went when it left the ring, and here goes its share of the request's body.
            Ok(None) => Ok(()),
            Ok(Some(open)) => {
                let done = {
                    let open = open.borrow();
                    !open.wants_work() && open.full(self).is_none()
                };
                if done { Ok(()) } else { Err(Remaining::Entered(open)) }
            }
        }
    }

    /// Does the rest: once there is room the payload enters, and its batch is closed if it is full then.
    async fn go_on(&self, alarm: &mut Alarm, left: Remaining) {
        let entered = match left {
            Remaining::Entered(open) => Some(open),
            Remaining::Hindered(job, hindrance) => {
                // Where a stop that cancels this task finds it.
                self.held.job.replace(Some(job));
                self.add(alarm, hindrance).await
            }
        };
        let Some(entered) = entered else { return };
        if entered.borrow().wants_work() {
            self.work(&entered).await;
        }
        let full = entered.borrow().full(self);
        if let Some(reason) = full {
            self.close(entered, reason).await;
        }
    }

    /// Overcomes what keeps the payload in hand from entering.
    async fn add(
        &self,
        alarm: &mut Alarm,
        mut hindrance: Hindrance,
    ) -> Option<Rc<RefCell<OpenBatch>>> {
        loop {
            match hindrance {
                Hindrance::Memory => self.make_room(alarm).await,
                Hindrance::Partitions => {
                    let oldest = self.oldest().expect("there are as many as allowed");
                    self.close(oldest, CloseReason::Partitions).await;
                }
                Hindrance::Members(full) => self.close(full, CloseReason::Count).await,
            }
            let entered = {
                let job = self.held.job.borrow();
                self.try_add(job.as_ref().expect("put there before"))
            };
            match entered {
                Ok(open) => {
                    self.held.job.take();
                    return open;
                }
                Err(next) => hindrance = next,
            }
        }
    }

    /// `None`: it is an object of its own, and in line.
    fn try_add(&self, job: &Job) -> Result<Option<Rc<RefCell<OpenBatch>>>, Hindrance> {
        // Alone it may be larger than all: one that an earlier process of other limits has spooled.
        if self.memory.used() > 0 && !self.memory.fits(job.payload.len() + ROOM_BYTES) {
            return Err(Hindrance::Memory);
        }
        if job
            .record
            .as_ref()
            .and_then(|record| record.origin())
            .is_some_and(Origin::is_single_object)
        {
            self.queue(Batch::single_object(job.clone(), self));
            return Ok(None);
        }
        let mut place = self.lookup.place.borrow_mut();
        let time = self.write_place(job, &mut place);
        let open = self.open_at(job, &place)?;
        let mut batch = open.borrow_mut();
        if !batch.push(job) {
            drop(batch);
            return Err(Hindrance::Members(open));
        }
        batch.recharge();
        drop(batch);
        if time == EventTime::Unreadable {
            self.cells.event_times_unreadable.inc();
        }
        Ok(Some(open))
    }

    /// What those payloads have in common that share a batch.
    fn write_place(&self, job: &Job, place: &mut Vec<u8>) -> EventTime {
        // No other directory has this address while one of its payloads is here.
        let home = job.record.as_ref().map_or(0, |record| Rc::as_ptr(record.core_dir()) as usize);
        place.clear();
        place.extend_from_slice(&home.to_ne_bytes());
        if !self.lookup.is_partitioned {
            return EventTime::NotAsked;
        }
        let mut partition = self.lookup.partition.borrow_mut();
        let (payload, version) = (&job.payload, job.payload.version());
        let came = job.stamp.unix_nanos;
        let time = self.keys.write_partition(payload, version, came, &mut partition);
        place.extend_from_slice(partition.text().as_bytes());
        time
    }

    /// The batch of that place; that of the payload before is found without a look at the map.
    fn open_at(&self, job: &Job, place: &[u8]) -> Result<Rc<RefCell<OpenBatch>>, Hindrance> {
        if let Some((last, open)) = &*self.lookup.last.borrow()
            && **last == *place
        {
            return Ok(open.clone());
        }
        let found =
            self.open.borrow().by_place.get_key_value(place).map(|(p, o)| (p.clone(), o.clone()));
        let (place, open) = match found {
            Some(found) => found,
            None => {
                let place: Rc<[u8]> = place.into();
                (place.clone(), self.begin(job, place)?)
            }
        };
        self.lookup.last.replace(Some((place, open.clone())));
        Ok(open)
    }

    fn begin(&self, job: &Job, place: Rc<[u8]>) -> Result<Rc<RefCell<OpenBatch>>, Hindrance> {
        let mut open = self.open.borrow_mut();
        if open.by_place.len() >= self.options.partitions {
            return Err(Hindrance::Partitions);
        }
        let (number, stamp) = (open.next_number, self.feed.stamps.take(1));
        open.next_number += 1;
        let partition = self.lookup.partition.borrow();
        let partition = if self.lookup.is_partitioned { partition.text() } else { "" };
        let batch = OpenBatch::new(self, number, stamp, partition, job, self.feed.store.summing());
        let batch = Rc::new(RefCell::new(batch));
        open.by_place.insert(place.clone(), batch.clone());
        open.by_age.insert(number, (rt::now(), place));
        self.cells.batches_open.set(open.by_place.len() as u64);
        Ok(batch)
    }

    fn oldest(&self) -> Option<Rc<RefCell<OpenBatch>>> {
        let open = self.open.borrow();
        let (_, place) = open.by_age.first_key_value()?.1;
        open.by_place.get(place).cloned()
    }

    fn largest(&self) -> Option<Rc<RefCell<OpenBatch>>> {
        let open = self.open.borrow();
        open.by_place.values().max_by_key(|batch| batch.borrow().charged()).cloned()
    }

    async fn close_overdue(&self) {
        while self.is_overdue()
            && let Some(oldest) = self.oldest()
        {
            let reason =
                if self.feed.stop.draining.get() { CloseReason::Drain } else { CloseReason::Age };
            self.close(oldest, reason).await;
        }
    }

    /// Once, when there is no memory: closes the largest batch unless half of the memory travels already, or waits until
    /// one that travels is stored.
    async fn make_room(&self, alarm: &mut Alarm) {
        let in_open: usize = {
            let open = self.open.borrow();
            open.by_place.values().map(|batch| batch.borrow().charged()).sum()
        };
        let travelling = self.memory.used() - in_open;
        if 2 * travelling < self.memory.max()
            && let Some(largest) = self.largest()
        {
            return self.close(largest, CloseReason::Memory).await;
        }
        match self.next_expiry() {
            Some(at) if at > rt::now() => {
                alarm.until(at, self.memory.freed(), || ()).await;
            }
            Some(_) => self.close_overdue().await,
            None => self.memory.freed().await,
        }
    }

    /// Compresses and sums what has come; other tasks of the core run when that has taken its time.
    async fn work(&self, open: &RefCell<OpenBatch>) {
        loop {
            let more = {
                let mut open = open.borrow_mut();
                let more = open.work();
                open.recharge();
                more
            };
            if rt::since(self.turn_began.get()) >= TURN {
                yield_now().await;
                self.turn_began.set(rt::now());
            }
            if !more {
                return;
            }
        }
    }

    /// Finishes an open batch and puts it in line for a worker.
    async fn close(&self, open: Rc<RefCell<OpenBatch>>, reason: CloseReason) {
        {
            let mut batches = self.open.borrow_mut();
            let number = open.borrow().number;
            if let Some((_, place)) = batches.by_age.remove(&number) {
                batches.by_place.remove(&place);
            }
            self.cells.batches_open.set(batches.by_place.len() as u64);
        }
        self.lookup.last.take();
        self.held.closing.replace(Some(open.clone()));
        open.borrow_mut().encoder.finish();
        self.work(&open).await;
        self.held.closing.take();
        self.cells.batches_closed[reason as usize].inc();
        let open = Rc::into_inner(open).expect("no longer open, and nowhere else");
        self.queue(open.into_inner().into_batch(self, &self.feed.origin));
    }

    fn queue(&self, batch: Batch) {
        let queued = self.closed.push(Rc::new(batch));
        assert!(queued.is_ok(), "there are as many places as batches can be charged for");
    }
}
