//! The task that empties the queue into batches.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::rt;
use crate::rt::yield_now;
use futures_lite::FutureExt;

use super::open::{OpenBatch, Place};
use super::{Batch, Batches, CloseReason, ROOM_BYTES};
use crate::deadline::Alarm;
use crate::key::EventTime;
use crate::queue::job::Origin;
use crate::queue::run::Run;

/// Payloads taken before other tasks of the core run: with small ones less than [`TURN`]. Shorter
/// turns pay more often for what comes once per turn, in the kernel too, and fall behind admission:
/// with 64 a request took 40 % more CPU.
const TURN_PAYLOADS: usize = 512;

/// How long the task runs before other tasks of the core do. It checks before each slice that it
/// compresses or sums, so one may begin just before the end.
const TURN: Duration = Duration::from_micros(100);

/// The same before a slice that takes long, if at most [`TURN_PAYLOADS`] wait. Then the task keeps up
/// with admission and only holds requests up: each such slice is a turn of its own, and what the look
/// behind it brings goes before the next one.
const TURN_KEEPING_UP: Duration = Duration::from_micros(40);

/// Longest time a batch stays open once the stop has begun. The stop waits for connections to end,
/// and those of `stored` requests wait for their batch. A batch that stayed open until the queue
/// closes would have little time remaining for its upload, or none.
const DRAIN_AGE_MAX: Duration = Duration::from_millis(250);

/// Takes payloads out of the queue until it is closed and empty; then closes every batch.
pub async fn gather(batches: Rc<Batches>) {
    let queue = batches.feed.admission.queue();
    let mut alarm = Alarm::default();
    loop {
        let mut taken = 0;
        batches.gathering.turn_began.set(rt::now());
        while taken < TURN_PAYLOADS
            && let Some(run) = queue.front()
        {
            let (count, remaining) = batches.join(run, TURN_PAYLOADS - taken);
            taken += count;
            if let Some(remaining) = remaining {
                batches.finish_joining(&mut alarm, remaining).await;
            }
        }
        // One that became overdue since then is closed in the next turn.
        batches.close_overdue(batches.gathering.turn_began.get()).await;
        if taken > 0 {
            yield_now().await;
        } else if wait(&batches, &mut alarm).await == Some(false) {
            // The queue is closed and empty.
            break;
        }
    }
    while let Some(oldest) = batches.oldest() {
        batches.close(oldest, CloseReason::Drain).await;
    }
    batches.closed.close();
}

/// Waits for payloads; `Some(false)`: no more will come; `None`: a batch may be overdue.
async fn wait(batches: &Batches, alarm: &mut Alarm) -> Option<bool> {
    let some = async { Some(batches.feed.admission.queue().some(0).await) };
    match batches.next_expiry() {
        None => some.await,
        Some(at) if batches.feed.stop.draining.get() => alarm.until(at, some, || None).await,
        Some(at) => {
            let stop = async {
                batches.feed.stop.draining.wait().await;
                None
            };
            alarm.until(at, some.or(stop), || None).await
        }
    }
}

/// What remains to be done after payloads were taken, and may take time.
enum Remaining {
    /// A payload, which has left the queue, has not joined a batch yet.
    Blocked(Run, Obstacle),
    /// Payloads have joined this batch, which may need work or be full.
    Joined(Rc<RefCell<OpenBatch>>),
}

/// How many payloads were added together, at least one, and their batch. `None`: it was one, a
/// single object, and is queued for a worker.
type AddedPayloads = (usize, Option<Rc<RefCell<OpenBatch>>>);

/// What keeps a payload from joining a batch.
enum Obstacle {
    Memory,
    Partitions,
    /// The spool has no room for more members of that batch.
    Members(Rc<RefCell<OpenBatch>>),
}

impl Batches {
    fn next_expiry(&self) -> Option<Instant> {
        let age = self.options.age;
        let age = if self.feed.stop.draining.get() { age.min(DRAIN_AGE_MAX) } else { age };
        let open = self.open.borrow();
        let oldest = open.by_age.first_key_value().map(|(_, (opened, _))| *opened + age);
        oldest.into_iter().chain(open.awaited.first().map(|(at, _)| *at)).min()
    }

    /// A batch that must be closed at `now`, and why.
    fn overdue(&self, now: Instant) -> Option<(Rc<RefCell<OpenBatch>>, CloseReason)> {
        if self.next_expiry().is_none_or(|at| at > now) {
            return None;
        }
        let open = self.open.borrow();
        let awaited = open.awaited.first().filter(|(at, _)| *at <= now);
        let (number, reason) = match awaited {
            Some((_, number)) => (number, CloseReason::Stored),
            None => (open.by_age.first_key_value()?.0, CloseReason::Age),
        };
        let draining = self.feed.stop.draining.get();
        let batch = open.by_grouping.get(&open.by_age.get(number)?.1)?.clone();
        Some((batch, if draining { CloseReason::Drain } else { reason }))
    }

    /// Closes a batch in time for a `stored` request whose payload has just joined it. The first
    /// one decides: those that come later may wait longer.
    fn bring_forward(&self, batch: &mut OpenBatch) {
        if batch.place.awaited.is_none() {
            let now = rt::now();
            let at = now + self.closes.stored.at(now, self.cells);
            batch.place.awaited = Some(at);
            self.open.borrow_mut().awaited.insert((at, batch.place.number));
        }
    }

    /// Adds payloads to their batches that are in the queue: those of `run`, which is the first
    /// there, at most `most`. Mostly that is all there is to do. Returns how many have left the
    /// queue, and what remains to be done before the next ones. The others stay in the queue.
    fn join(&self, run: Run, most: usize) -> (usize, Option<Remaining>) {
        let admission = &self.feed.admission;
        admission.queue().look();
        let (mut rest, mut joined) = (Some(run), 0);
        let remaining = loop {
            let Some(run) = rest.take_if(|_| joined < most) else { break None };
            match self.try_add(&run, most - joined) {
                Err(obstacle) => {
                    joined += 1;
                    break Some(Remaining::Blocked(run.first(), obstacle));
                }
                Ok((count, open)) => {
                    joined += count;
                    rest = run.behind(count);
                    let wants = |open: &Rc<RefCell<OpenBatch>>| {
                        let open = open.borrow();
                        open.wants_work() || open.full(self).is_some()
                    };
                    if let Some(open) = open.filter(wants) {
                        break Some(Remaining::Joined(open));
                    }
                }
            }
        };
        // They release their slots here, and then their share of the request's body.
        admission.queue().drop_front(joined);
        admission.taken(joined);
        (joined, remaining)
    }

    /// Does what remains: the payload joins once there is room, and its batch is closed if it is
    /// full then.
    async fn finish_joining(&self, alarm: &mut Alarm, remaining: Remaining) {
        let joined = match remaining {
            Remaining::Joined(open) => Some(open),
            Remaining::Blocked(run, obstacle) => {
                // A stop may cancel this task, and must find the payload then.
                self.gathering.blocked.replace(Some(run));
                self.add(alarm, obstacle).await
            }
        };
        let Some(joined) = joined else { return };
        if joined.borrow().wants_work() {
            self.work(&joined).await;
        }
        let full = joined.borrow().full(self);
        if let Some(reason) = full {
            self.close(joined, reason).await;
        }
    }

    /// Removes one obstacle after another until the current payload can join a batch.
    async fn add(
        &self,
        alarm: &mut Alarm,
        mut obstacle: Obstacle,
    ) -> Option<Rc<RefCell<OpenBatch>>> {
        loop {
            match obstacle {
                Obstacle::Memory => self.make_room(alarm).await,
                Obstacle::Partitions => {
                    let oldest = self.oldest().expect("there are as many as allowed");
                    self.close(oldest, CloseReason::Partitions).await;
                }
                Obstacle::Members(full) => self.close(full, CloseReason::Count).await,
            }
            let joined = {
                let blocked = self.gathering.blocked.borrow();
                self.try_add(blocked.as_ref().expect("put there before"), 1)
            };
            match joined {
                Ok((_, open)) => {
                    self.gathering.blocked.take();
                    return open;
                }
                Err(next) => obstacle = next,
            }
        }
    }

    /// Adds the first payloads of `run` that share a batch, at most `most`.
    fn try_add(&self, run: &Run, most: usize) -> Result<AddedPayloads, Obstacle> {
        // Without other batches the bound does not hold: a process with larger limits may have
        // spooled a payload that never fits. Those that join together with the first are few bytes.
        let first = run.spans()[0].range().len();
        if self.memory.used() > 0 && !self.memory.fits(first + ROOM_BYTES) {
            return Err(Obstacle::Memory);
        }
        let origin = run.record().and_then(|record| record.origin());
        if origin.is_some_and(Origin::is_single_object) {
            self.queue(Batch::single_object(run.first().into_job(), self));
            return Ok((1, None));
        }
        let mut grouping = self.lookup.grouping.borrow_mut();
        let time = self.write_grouping(run, &mut grouping);
        let open = self.open_for(run, &grouping)?;
        let mut batch = open.borrow_mut();
        let most = if self.lookup.differs_in_request { 1 } else { most };
        let joined = batch.push(run, most, &self.options);
        if joined == 0 {
            drop(batch);
            return Err(Obstacle::Members(open));
        }
        if run.request_outcome().is_some() {
            self.bring_forward(&mut batch);
        }
        batch.recharge();
        drop(batch);
        if time == EventTime::Unreadable {
            self.cells.event_times_unreadable.inc();
            run.payloads()
                .take(1)
                .for_each(|payload| self.lookup.unreadable.log(&self.keys, &payload));
        }
        Ok((joined, Some(open)))
    }

    /// Writes the grouping of the first payload of `run`: what the payloads of one batch have in
    /// common.
    fn write_grouping(&self, run: &Run, grouping: &mut Vec<u8>) -> EventTime {
        // The address identifies the core directory: a batch with payloads in it keeps it alive.
        let home = run.record().map_or(0, |record| Rc::as_ptr(record.core_dir()) as usize);
        grouping.clear();
        grouping.extend_from_slice(&home.to_ne_bytes());
        if !self.lookup.is_partitioned {
            return EventTime::NotAsked;
        }
        let mut partition = self.lookup.partition.borrow_mut();
        let (payload, values) = (&run.body()[run.spans()[0].range()], run.values());
        let came = run.first_stamp().unix_nanos;
        let time = self.keys.write_partition(payload, values, came, &mut partition);
        grouping.extend_from_slice(partition.text().as_bytes());
        time
    }

    /// The open batch of that grouping. The map is not searched if the previous payload had the
    /// same.
    fn open_for(&self, run: &Run, grouping: &[u8]) -> Result<Rc<RefCell<OpenBatch>>, Obstacle> {
        if let Some((last, open)) = &*self.lookup.last.borrow()
            && **last == *grouping
        {
            return Ok(open.clone());
        }
        let found = self
            .open
            .borrow()
            .by_grouping
            .get_key_value(grouping)
            .map(|(p, o)| (p.clone(), o.clone()));
        let (grouping, open) = match found {
            Some(found) => found,
            None => {
                let grouping: Rc<[u8]> = grouping.into();
                (grouping.clone(), self.begin(run, grouping)?)
            }
        };
        self.lookup.last.replace(Some((grouping, open.clone())));
        Ok(open)
    }

    fn begin(&self, run: &Run, grouping: Rc<[u8]>) -> Result<Rc<RefCell<OpenBatch>>, Obstacle> {
        let mut open = self.open.borrow_mut();
        if open.by_grouping.len() >= self.options.partitions {
            return Err(Obstacle::Partitions);
        }
        let (number, stamp) = (open.next_number, self.feed.stamps.take(1));
        open.next_number += 1;
        let partition = self.lookup.partition.borrow();
        let partition = if self.lookup.is_partitioned { partition.text() } else { "" };
        let batch = OpenBatch::new(self, number, stamp, partition, run, self.feed.store.summing());
        let batch = Rc::new(RefCell::new(batch));
        open.by_grouping.insert(grouping.clone(), batch.clone());
        open.by_age.insert(number, (rt::now(), grouping));
        self.cells.batches_open.set(open.by_grouping.len() as u64);
        Ok(batch)
    }

    fn oldest(&self) -> Option<Rc<RefCell<OpenBatch>>> {
        let open = self.open.borrow();
        let (_, grouping) = open.by_age.first_key_value()?.1;
        open.by_grouping.get(grouping).cloned()
    }

    fn largest(&self) -> Option<Rc<RefCell<OpenBatch>>> {
        let open = self.open.borrow();
        open.by_grouping.values().max_by_key(|batch| batch.borrow().charged()).cloned()
    }

    async fn close_overdue(&self, mut now: Instant) {
        while let Some((batch, reason)) = self.overdue(now) {
            self.close(batch, reason).await;
            now = rt::now();
        }
    }

    /// Makes one step towards free memory: closes the largest open batch, unless closed batches
    /// hold half of the memory already; then it waits until one of those is stored.
    async fn make_room(&self, alarm: &mut Alarm) {
        let in_open: usize = {
            let open = self.open.borrow();
            open.by_grouping.values().map(|batch| batch.borrow().charged()).sum()
        };
        let in_closed = self.memory.used() - in_open;
        if 2 * in_closed < self.memory.max()
            && let Some(largest) = self.largest()
        {
            return self.close(largest, CloseReason::Memory).await;
        }
        let now = rt::now();
        match self.next_expiry() {
            Some(at) if at > now => alarm.until(at, self.memory.freed(), || ()).await,
            Some(_) => self.close_overdue(now).await,
            None => self.memory.freed().await,
        }
    }

    /// Compresses and sums what was added, and lets other tasks of the core run in between.
    async fn work(&self, open: &RefCell<OpenBatch>) {
        loop {
            let is_long = open.borrow().works_long();
            self.let_others_run(is_long).await;
            let mut open = open.borrow_mut();
            let more = open.work();
            open.recharge();
            if !more {
                return;
            }
        }
    }

    /// Lets other tasks of the core run if it is their turn, before work that takes long or not.
    pub(super) async fn let_others_run(&self, is_long: bool) {
        let turn_began = &self.gathering.turn_began;
        let lasted = rt::since(turn_began.get());
        let keeps_up = self.feed.admission.queue().len() <= TURN_PAYLOADS;
        if is_long && keeps_up {
            match lasted >= TURN_KEEPING_UP {
                true => rt::yield_to_requests().await,
                false if rt::look_brought_work() => yield_now().await,
                false => return,
            }
        } else if lasted >= TURN {
            yield_now().await;
        } else {
            return;
        }
        turn_began.set(rt::now());
    }

    /// Finishes an open batch and queues it for a worker.
    async fn close(&self, open: Rc<RefCell<OpenBatch>>, reason: CloseReason) {
        {
            let mut batches = self.open.borrow_mut();
            let Place { number, awaited } = open.borrow().place;
            if let Some((_, grouping)) = batches.by_age.remove(&number) {
                batches.by_grouping.remove(&grouping);
            }
            if let Some(at) = awaited {
                batches.awaited.remove(&(at, number));
            }
            self.cells.batches_open.set(batches.by_grouping.len() as u64);
        }
        self.lookup.last.take();
        self.gathering.closing.replace(Some(open.clone()));
        open.borrow_mut().encoder.finish();
        self.work(&open).await;
        self.gathering.closing.take();
        self.cells.batches_closed[reason as usize].inc();
        let open = Rc::into_inner(open).expect("no longer open, and nowhere else");
        let batch = open.into_inner().into_batch(self, &self.feed.origin);
        let bytes = batch.parts.iter().map(|part| part.len() as u64).sum();
        self.closes.early.note(reason, batch.payloads, bytes, &self.options);
        self.queue(batch);
    }

    fn queue(&self, batch: Batch) {
        let queued = self.closed.push(Rc::new(batch));
        assert!(queued.is_ok(), "there is a slot for each batch that the memory allows");
    }
}
