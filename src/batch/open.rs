//! One open batch: its contents, and when it is full.

use std::rc::Rc;
use std::time::Instant;

use super::encoder::Encoder;
use super::{BATCH_COST_BYTES, Batch, BatchKind, Batches, CloseReason, Roster};
use crate::budget::Charge;
use crate::config::BatchOptions;
use crate::key::{KeyOf, RequestValues};
use crate::queue::job::{Origin, Span, Stamp};
use crate::queue::run::Run;
use crate::spool::Members;
use crate::store::Summing;

/// Bytes that join a batch before they are summed or compressed. For less, that would cost more
/// than the copy.
const WORK_BYTES_LEAST: usize = 4 << 10;

/// Where a batch is among the open ones of a core.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Orders them by age.
    pub(super) number: u64,
    /// When it is closed at the latest for a `stored` request that waits for it.
    pub(super) awaited: Option<Instant>,
}

/// A batch that takes payloads.
pub(super) struct OpenBatch {
    pub(super) place: Place,
    pub(super) encoder: Encoder,
    summing: Summing,
    /// When it was opened, and the number in its key.
    stamp: Stamp,
    partition: Box<str>,
    /// Where its payloads are in the spool, if they are spooled.
    members: Option<Members>,
    roster: Roster,
    /// The values of the first payload's request. Keys make the same of those of all others.
    values: RequestValues,
    payloads: u64,
    payload_bytes: u64,
    /// Bytes that joined since the last work.
    pending_bytes: usize,
    charge: Charge,
}

impl OpenBatch {
    /// An empty batch for payloads of the same grouping as those of `run`.
    pub(super) fn new(
        batches: &Batches,
        number: u64,
        stamp: Stamp,
        partition: &str,
        run: &Run,
        summing: Summing,
    ) -> OpenBatch {
        OpenBatch {
            place: Place { number, awaited: None },
            encoder: Encoder::new(batches.options.form.compression, &batches.shared),
            summing,
            stamp,
            partition: partition.into(),
            members: run.record().map(|record| Members::of(record.core_dir())),
            roster: Roster::default(),
            values: run.values().clone(),
            payloads: 0,
            payload_bytes: 0,
            pending_bytes: 0,
            charge: Charge::new(&batches.memory),
        }
    }

    pub(super) fn is_spooled(&self) -> bool {
        self.members.as_ref().is_some_and(|members| !members.is_removed())
    }

    /// Adds the first payloads of `run`, at most `most`: so many that there is work, or that it is
    /// full. Returns how many; none if the spool has no room for more members of this batch, which
    /// must be closed then.
    pub(super) fn push(&mut self, run: &Run, most: usize, options: &BatchOptions) -> usize {
        let (spans, bytes) = self.next_group(run.spans(), most, options);
        match (&mut self.members, run.record()) {
            (Some(members), Some(record)) => {
                if !members.push_run(record, run.first_stamp(), spans.len() as u32, bytes) {
                    return 0;
                }
            }
            (None, None) => self.roster.note_stamps(run.first_stamp(), spans.len() as u32),
            _ => unreachable!("a batch is spooled or in memory only"),
        }
        if let Some(request_outcome) = run.request_outcome() {
            self.roster.note_request(request_outcome, spans.len() as u32);
        }
        self.encoder.push_all(run.body(), spans);
        self.payloads += spans.len() as u64;
        self.payload_bytes += bytes;
        self.pending_bytes += bytes as usize;
        spans.len()
    }

    /// Of the payloads at `spans`, those that join at once, and their bytes: up to and with the
    /// first one that may make the batch full, or that brings it enough for [`OpenBatch::work`]; only
    /// the first one may be larger than [`WORK_BYTES_LEAST`].
    /// So it closes with the same payload as if they came one by one.
    fn next_group<'a>(
        &self,
        spans: &'a [Span],
        most: usize,
        options: &BatchOptions,
    ) -> (&'a [Span], u64) {
        let left = |bound: u64, now: u64| bound.saturating_sub(now);
        // As if nothing got smaller by compression: what is staged, by the estimate.
        let room = left(options.bytes, self.encoder.stored_bytes())
            .min(left(options.raw_bytes, self.encoder.raw_bytes()))
            .min(left(WORK_BYTES_LEAST as u64, self.pending_bytes as u64));
        let count = options.count.map_or(u64::MAX, |count| left(count, self.payloads));
        let most = most.min(usize::try_from(count).unwrap_or(usize::MAX)).max(1);
        // With the line feeds.
        let (mut lines, mut taken) = (0, 0);
        for span in spans.iter().take(most) {
            // For a large one the memory must be checked, so it joins by itself.
            if taken > 0 && (span.end - span.start) as usize > WORK_BYTES_LEAST {
                break;
            }
            lines += u64::from(span.end - span.start) + 1;
            taken += 1;
            if lines >= room {
                break;
            }
        }
        (&spans[..taken], lines - taken as u64)
    }

    /// Whether there is enough to compress or sum that it is worth a call.
    pub(super) fn wants_work(&self) -> bool {
        self.pending_bytes >= WORK_BYTES_LEAST
    }

    /// Whether the next [`OpenBatch::work`] takes about as long as a slice may take.
    pub(super) fn works_long(&self) -> bool {
        self.encoder.works_long()
    }

    /// Compresses and sums a slice; true if there is more to do now.
    pub(super) fn work(&mut self) -> bool {
        self.pending_bytes = 0;
        let summing = &mut self.summing;
        self.encoder.work(&mut |bytes| summing.update(bytes))
    }

    /// Charges what it holds now.
    pub(super) fn recharge(&mut self) {
        // Twice: once the batch is in flight its intent has a second copy of the members.
        let members = self.members.as_ref().map_or(0, |members| 2 * members.memory());
        let texts = self.partition.len() + self.values.bytes();
        let lists = members + self.roster.memory() + texts;
        self.charge.set(BATCH_COST_BYTES + self.encoder.memory() + lists);
    }

    pub(super) fn charged(&self) -> usize {
        self.charge.bytes()
    }

    /// Why it is full, if it is.
    pub(super) fn full(&self, batches: &Batches) -> Option<CloseReason> {
        let options = &batches.options;
        match () {
            () if self.encoder.stored_bytes() >= options.bytes => Some(CloseReason::Size),
            () if self.encoder.raw_bytes() >= options.raw_bytes => Some(CloseReason::RawSize),
            () if options.count.is_some_and(|count| self.payloads >= count) => {
                Some(CloseReason::Count)
            }
            () => None,
        }
    }

    /// The closed batch. The encoder must have ended.
    pub(super) fn into_batch(mut self, batches: &Batches, origin: &Origin) -> Batch {
        self.recharge();
        let form = batches.options.form;
        let (node, core) = origin.parts();
        let Stamp { unix_nanos, seq } = self.stamp;
        let mut key = String::new();
        let of = KeyOf {
            partition: &self.partition,
            unix_nanos,
            node,
            core: core as usize,
            seq,
            count: self.payloads,
            ext: form.ext(),
        };
        batches.keys.write_key(&of, &mut key);
        let cells = batches.cells;
        cells.batch_raw_bytes.observe(self.encoder.raw_bytes());
        let kind =
            self.members.map_or(BatchKind::Memory, |members| BatchKind::Spooled(Rc::new(members)));
        let parts = self.encoder.into_parts();
        cells.batch_stored_bytes.observe(parts.iter().map(|part| part.len() as u64).sum());
        Batch {
            key,
            stem: origin.stem(self.stamp),
            form,
            parts,
            sums: self.summing.finish(),
            payloads: self.payloads,
            payload_bytes: self.payload_bytes,
            kind,
            roster: self.roster,
            values: self.values,
            shared: batches.shared.clone(),
            _charge: Some(self.charge),
        }
    }
}
