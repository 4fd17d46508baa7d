//! Samples of payloads for `/tap`: what a core leaves for control while somebody watches.
//!
//! A request pays one branch with `TAP=off`, and one more load with `TAP=on` while nobody watches. A
//! core never waits for a watcher, and no watcher can make it do much: control says for each period
//! how many payloads it wants, the core copies at most [`TAP_SAMPLE_BYTES`] of each into a free slot
//! of [`TAP_SLOTS`], and without one it counts a drop. It reads no clock: control counts the periods.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use arc_swap::ArcSwapOption;

use crate::queue::job::{Span, Stamp};

/// Samples of a core that wait for control, which takes them ten times a second.
pub const TAP_SLOTS: usize = 16;
/// Bytes of a payload in its sample.
pub const TAP_SAMPLE_BYTES: usize = 4096;

/// Where one core and control meet.
#[derive(Default)]
pub struct TapBoard {
    /// What control wants: the number of the period and, in the lower 16 bits, how many samples.
    /// 0: nobody watches.
    wanted: AtomicU64,
    slots: [ArcSwapOption<TapSample>; TAP_SLOTS],
    /// Samples that found their slot taken. Only the core writes it.
    dropped: AtomicU64,
}

/// One payload, or its beginning.
pub struct TapSample {
    pub stamp: Stamp,
    /// Length of the payload.
    pub length: usize,
    /// At most [`TAP_SAMPLE_BYTES`] of it.
    pub start: Box<[u8]>,
}

impl TapBoard {
    /// Asks for up to `samples` payloads in this period. Each period has another number.
    pub fn ask(&self, period: u64, samples: u16) {
        self.wanted.store(period << 16 | u64::from(samples), Relaxed);
    }

    /// Nobody watches any longer.
    pub fn stop(&self) {
        self.wanted.store(0, Relaxed);
    }

    /// What the core has left, in no order.
    pub fn take(&self) -> impl Iterator<Item = Arc<TapSample>> {
        self.slots.iter().filter_map(|slot| slot.swap(None))
    }

    /// Samples that were not kept because control had not taken earlier ones.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

/// A core's side.
pub struct CoreTap {
    board: Arc<TapBoard>,
    /// What control wanted when the core last looked.
    seen: Cell<u64>,
    /// How much of that is left.
    left: Cell<u16>,
    /// The slot for the next sample.
    next: Cell<usize>,
    /// Which payload of a request is taken.
    random: Cell<u64>,
}

impl CoreTap {
    pub fn new(board: Arc<TapBoard>) -> CoreTap {
        CoreTap {
            board,
            seen: Cell::new(0),
            left: Cell::new(0),
            next: Cell::new(0),
            random: Cell::new(0),
        }
    }

    /// Shows the tap an admitted request: `spans` of `body`, the first with this stamp. It takes one
    /// payload, or none.
    #[inline]
    pub fn offer(&self, body: &[u8], spans: &[Span], first: Stamp) {
        if let Some(sample) = self.pick(body, spans, first) {
            self.keep(sample);
        }
    }

    /// The same for a request of which it is not known yet whether it is admitted: a copy of what
    /// the tap would take, to [`keep`](CoreTap::keep) once it is.
    #[inline]
    pub fn pick(&self, body: &[u8], spans: &[Span], first: Stamp) -> Option<TapSample> {
        let wanted = self.board.wanted.load(Relaxed);
        if wanted == 0 { None } else { self.sample(wanted, body, spans, first) }
    }

    /// Leaves a sample for control, if there is a free slot.
    #[cold]
    pub fn keep(&self, sample: TapSample) {
        let slot = self.next_slot();
        if slot.load().is_some() {
            return self.drop_one();
        }
        slot.store(Some(Arc::new(sample)));
        self.next.set(self.next.get() + 1);
    }

    fn next_slot(&self) -> &ArcSwapOption<TapSample> {
        &self.board.slots[self.next.get() % TAP_SLOTS]
    }

    fn drop_one(&self) {
        self.board.dropped.store(self.board.dropped.load(Relaxed) + 1, Relaxed);
    }

    #[cold]
    fn sample(&self, wanted: u64, body: &[u8], spans: &[Span], first: Stamp) -> Option<TapSample> {
        if self.seen.replace(wanted) != wanted {
            self.left.set(wanted as u16);
        }
        if self.left.get() == 0 || spans.is_empty() {
            return None;
        }
        self.left.set(self.left.get() - 1);
        // Knuth's constants: any of the request's payloads, without a generator of its own.
        let random = self.random.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.random.set(random);
        let at = (random >> 33) as usize % spans.len();
        if self.next_slot().load().is_some() {
            self.drop_one();
            return None;
        }
        let payload = &body[spans[at].range()];
        let start = payload[..payload.len().min(TAP_SAMPLE_BYTES)].into();
        let stamp = Stamp { seq: first.seq + at as u64, ..first };
        Some(TapSample { stamp, length: payload.len(), start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Stamp = Stamp { unix_nanos: 7, seq: 100 };

    fn spans(of: &[(u32, u32)]) -> Vec<Span> {
        of.iter().map(|(start, end)| Span { start: *start, end: *end }).collect()
    }

    #[test]
    fn a_period_has_as_many_samples_as_were_asked_for() {
        let board = Arc::new(TapBoard::default());
        let tap = CoreTap::new(board.clone());
        let offer = || (0..9).for_each(|_| tap.offer(b"{},12", &spans(&[(0, 2), (3, 5)]), FIRST));
        offer();
        assert_eq!(board.take().count(), 0, "nobody watches");
        for (period, samples, taken) in [(1, 3, 3), (1, 3, 0), (2, 2, 2), (3, 0, 0), (4, 9, 9)] {
            board.ask(period, samples);
            offer();
            let found: Vec<_> = board.take().collect();
            assert_eq!(found.len(), taken, "{period}");
            for sample in found {
                let seq = if &*sample.start == b"{}" { 100 } else { 101 };
                assert_eq!((sample.stamp.seq, sample.stamp.unix_nanos, sample.length), (seq, 7, 2));
            }
        }
        board.stop();
        offer();
        assert_eq!((board.take().count(), board.dropped()), (0, 0));
    }

    #[test]
    fn what_finds_no_slot_is_dropped_and_counted() {
        let board = Arc::new(TapBoard::default());
        let tap = CoreTap::new(board.clone());
        board.ask(1, 1000);
        (0..TAP_SLOTS + 5).for_each(|_| tap.offer(b"1", &spans(&[(0, 1)]), FIRST));
        let waiting = || board.slots.iter().filter(|slot| slot.load().is_some()).count();
        assert_eq!((waiting(), board.dropped()), (TAP_SLOTS, 5));
        assert_eq!(board.take().count(), TAP_SLOTS);
        tap.offer(b"1", &spans(&[(0, 1)]), FIRST);
        assert_eq!((waiting(), board.dropped()), (1, 5));
    }

    #[test]
    fn of_a_long_payload_its_beginning_is_kept() {
        let board = Arc::new(TapBoard::default());
        let tap = CoreTap::new(board.clone());
        board.ask(1, 9);
        let body = vec![b'1'; 3 * TAP_SAMPLE_BYTES];
        tap.offer(&body, &spans(&[(0, body.len() as u32)]), FIRST);
        tap.offer(&body, &[], FIRST);
        let found: Vec<_> = board.take().map(|of| (of.length, of.start.len())).collect();
        assert_eq!(found, [(3 * TAP_SAMPLE_BYTES, TAP_SAMPLE_BYTES)]);
    }

    #[test]
    fn every_payload_of_a_request_can_be_the_sample() {
        let board = Arc::new(TapBoard::default());
        let tap = CoreTap::new(board.clone());
        let spans = spans(&[(0, 1), (1, 2), (2, 3), (3, 4)]);
        let mut seen = std::collections::BTreeSet::new();
        for period in 1..200 {
            board.ask(period, 1);
            tap.offer(b"1234", &spans, FIRST);
            seen.extend(board.take().map(|of| of.start[0]));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), b"1234");
    }
}
