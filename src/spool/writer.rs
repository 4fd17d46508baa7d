//! The writer of one core's spool: makes commit groups of the requests that wait, each written and
//! synced as one.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;

use crate::rt;
use crate::rt::sleep;
use futures_lite::future;

use super::format::{self, HEAD_BYTES};
use super::keeper::NoSpare;
use super::pending::PendingRequest;
use super::reader::OverflowPosition;
use super::segment::{Payloads, Segment};
use super::{Spool, SpoolError, SpooledRequest};
use crate::queue::run::{InCommon, Run};

/// A commit group that was written and synced.
pub(super) struct CommittedGroup {
    pub(super) segment: Rc<Segment>,
    pub(super) at: u64,
    pub(super) number: u32,
    pub(super) first_ordinal: u32,
}

/// Injected sync failures, for tests.
pub(super) struct SyncFault {
    probability: f64,
    random: RefCell<rt::Rng>,
}

impl SyncFault {
    pub(super) fn new(probability: f64, seed: u64) -> SyncFault {
        SyncFault { probability, random: RefCell::new(rt::Rng::with_seed(seed)) }
    }

    fn check(&self) -> io::Result<()> {
        if self.probability > 0.0 && self.random.borrow_mut().f64() < self.probability {
            return Err(io::Error::other("FAULTS=spool_sync"));
        }
        Ok(())
    }
}

impl Spool {
    /// The writer's task: writes one commit group after the other. A group takes requests that
    /// wait when it begins: half of them, or all if they have lingered or the spool is closed.
    pub(super) async fn write_groups(self: Rc<Self>) {
        loop {
            if self.pending.is_empty() {
                if self.closed.get() {
                    return;
                }
                self.pending.wait().await;
                continue;
            }
            if !self.setup.options.linger.is_zero() && !self.closed.get() {
                sleep(self.setup.options.linger).await;
            }
            // Those left to the next group would linger again, or hold up the stop.
            if self.setup.options.linger.is_zero() && !self.closed.get() {
                self.pending.begin_half_group();
            } else {
                self.pending.begin_group();
            }
            match self.put_group().await {
                Ok(place) => self.deliver(&place),
                Err(error) => self.pending.group().drain(..).for_each(|request| {
                    self.disk.health.refused();
                    request.ticket.set(Err(error.clone()));
                }),
            }
        }
    }

    /// Writes and syncs the commit group of requests that has begun.
    async fn put_group(&self) -> Result<CommittedGroup, SpoolError> {
        let (mut body, mut payloads) = (0, Payloads::default());
        for request in &*self.pending.group() {
            body += request.record_bytes;
            payloads.count += request.spans.len() as u32;
            payloads.bytes += request.payload_bytes as u64;
        }
        let write = |mut out: &mut [u8]| {
            for PendingRequest { first, body, spans, values, .. } in &*self.pending.group() {
                let payloads = format::slices(body.as_slice(), spans);
                let written = format::write_record(out, *first, values, payloads);
                out = &mut out[written..];
            }
        };
        self.put_records(body, payloads, write).await
    }

    /// Writes and syncs one commit group of the records that `write` makes: `body` bytes with
    /// `payloads`.
    pub(super) async fn put_records(
        &self,
        body: usize,
        payloads: Payloads,
        write: impl FnOnce(&mut [u8]),
    ) -> Result<CommittedGroup, SpoolError> {
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
        Ok(CommittedGroup { segment, at, number, first_ordinal })
    }

    /// Writes and syncs one commit group of records at the end of `segment`. Returns the group's
    /// offset and number, and the number of its first payload.
    pub(super) async fn append(
        &self,
        segment: &Segment,
        body: usize,
        payloads: Payloads,
        write: impl FnOnce(&mut [u8]),
    ) -> Result<(u64, u32, u32), SpoolError> {
        let bytes = format::group_bytes(body);
        let (at, number, first_ordinal, label) = {
            let generation = segment.generation.borrow();
            let label = segment.label(generation.id, &self.origin);
            (generation.end, generation.groups, generation.payloads, label)
        };
        let mut buffer = segment.buffer(bytes as usize);
        write(&mut buffer.as_bytes_mut()[HEAD_BYTES..]);
        format::finish_group(buffer.as_bytes_mut(), &label, number, first_ordinal, body);
        let started = rt::now();
        let synced = async {
            segment.claim(at + bytes).await?;
            // A removed file still takes writes, so a successful write is not enough.
            let (written, found) =
                future::zip(segment.write_synced(buffer, at), segment.check()).await;
            written.and(found)
        };
        let synced = synced.await.and_then(|()| self.sync_fault.check());
        self.setup.cells.spool_syncs.inc();
        self.setup.cells.spool_sync_latency.observe(rt::since(started));
        if let Err(error) = synced {
            // It is unknown what the disk has of the group, and no later sync would tell, so
            // nothing more is written to this segment.
            segment.close(true);
            return Err(self.fail(segment.path(), &error));
        }
        segment.extend(bytes, payloads);
        Ok((at, number, first_ordinal))
    }

    /// Returns the segment for the next group, which takes `bytes`; begins a spare if needed.
    async fn segment_for(&self, bytes: u64) -> Result<Rc<Segment>, SpoolError> {
        if let Some(last) = self.own.last().filter(|last| !last.is_closed()) {
            if last.is_filling() && last.has_room(bytes) {
                return Ok(last);
            }
            // A group never spans two segments.
            last.close(false);
        }
        if !self.own.has_spare() {
            self.make_spare().await.map_err(|error| match error {
                NoSpare::Full => {
                    self.disk.health.full();
                    SpoolError::Full
                }
                NoSpare::Io(error) => self.fail(&self.setup.dir, &error),
            })?;
        }
        let segment = self.own.begin_spare().expect("made just now");
        // The keeper finishes the segment before it.
        self.disk.keeper.raise();
        Ok(segment)
    }

    /// Reports that the disk refused an operation at `path`.
    pub(super) fn fail(&self, path: &Path, error: &io::Error) -> SpoolError {
        let error = self.disk.health.failed(path, error);
        self.disk.keeper.raise();
        SpoolError::Failed(error)
    }

    /// Queues the payloads of a synced group while the queue has room, and leaves the rest to the
    /// reader.
    fn deliver(&self, place: &CommittedGroup) {
        let mut ordinal = place.first_ordinal;
        let mut record = None;
        let (mut payloads, mut bytes) = (0, 0);
        for request in self.pending.group().drain(..) {
            let PendingRequest { first, need, spans, payload_bytes, counted, ticket, .. } = request;
            let count = spans.len() as u32;
            // While the reader is behind, later payloads wait on disk too, which keeps the order.
            let permit = match self.overflow.is_behind() {
                false => self.admission.admit_now(need).ok().flatten(),
                true => None,
            };
            match permit {
                Some(permit) => {
                    let record = self.record_of(&mut record, place, ordinal, first.seq).clone();
                    let (body, values) = (request.body.into_bytes(), request.values);
                    let common =
                        InCommon { values, first, record: Some(record), request_outcome: None };
                    self.admission.push(Run::new(body, permit, spans, common));
                }
                None if !self.overflow.is_behind() => {
                    let behind = OverflowPosition::new(place, ordinal);
                    self.overflow.begin(behind, first.unix_nanos);
                    self.setup.cells.spool_overflowing.set(1);
                }
                None => {}
            }
            payloads += u64::from(count);
            bytes += payload_bytes as u64;
            if let Some(counted) = counted {
                counted.add(count.into(), payload_bytes as u64);
            }
            ticket.set(Ok(()));
            ordinal += count;
        }
        self.setup.cells.payloads_accepted.add(payloads);
        self.setup.cells.bytes_accepted.add(bytes);
    }

    /// The handle for a request of this group: the one before it, if the numbers of its payloads
    /// follow, which is so unless requests that are not spooled came in between.
    fn record_of<'a>(
        &self,
        before: &'a mut Option<Rc<SpooledRequest>>,
        place: &CommittedGroup,
        ordinal: u32,
        seq: u64,
    ) -> &'a Rc<SpooledRequest> {
        if !before.as_ref().is_some_and(|before| before.is_followed_by(ordinal, seq)) {
            let (segment, dir) = (place.segment.clone(), self.own.dir().clone());
            *before = Some(self.record(dir, segment, ordinal, seq, None));
        }
        before.as_ref().expect("set above")
    }
}
