//! A buffer that grows as bytes arrive, and is charged for what it has allocated.

use std::rc::Rc;

use super::padded::{BODY_PADDING, Padded};
use super::{Budget, BudgetExhausted, Charge, SMALL_CHARGE_BYTES};
use crate::alloc::MAPPED_LEAST;

/// A growing buffer that is charged to a [`Budget`] by its capacity, until it is dropped or
/// [`ChargedBytes::into_bytes`] is called.
pub struct ChargedBytes {
    bytes: Vec<u8>,
    max: usize,
    /// Capacity behind the bytes: [`BODY_PADDING`], or none.
    padding: usize,
    /// Of the capacity, and of what [`ChargedBytes::move_to`] has added.
    charge: Charge,
}

impl ChargedBytes {
    /// Size of the first allocation, of a body that did not arrive with its head. How it grows from
    /// there is said at [`ChargedBytes::reserve`]. At the default limits, stalled clients on every
    /// connection of a core just use up its budget: 16384 × 4 KiB = 64 MiB.
    const FIRST_CAPACITY: usize = 4 * 1024;

    /// An empty one, as [`ChargedBytes::starting`].
    #[cfg(test)]
    pub fn new(budget: &Rc<Budget>, max: usize) -> Result<ChargedBytes, BudgetExhausted> {
        ChargedBytes::starting(budget, max, b"")
    }

    /// A buffer that grows up to `max` bytes, with [`BODY_PADDING`] behind them, and the `first`
    /// ones, no more than `max`, in it.
    ///
    /// # Errors
    /// The first allocation does not fit.
    #[inline]
    pub fn starting(
        budget: &Rc<Budget>,
        max: usize,
        first: &[u8],
    ) -> Result<ChargedBytes, BudgetExhausted> {
        assert!(first.len() <= max, "the caller checks the length first");
        let room = first.len().max(Self::FIRST_CAPACITY - BODY_PADDING).min(max);
        let mut starting = ChargedBytes::allocate(budget, max, BODY_PADDING, room + BODY_PADDING)?;
        starting.bytes.extend_from_slice(first);
        Ok(starting)
    }

    /// An empty buffer of `max` bytes, which never grows and has no padding.
    ///
    /// # Errors
    /// They do not fit.
    pub fn with_capacity(budget: &Rc<Budget>, max: usize) -> Result<ChargedBytes, BudgetExhausted> {
        ChargedBytes::allocate(budget, max, 0, max)
    }

    #[inline]
    fn allocate(
        budget: &Rc<Budget>,
        max: usize,
        padding: usize,
        capacity: usize,
    ) -> Result<ChargedBytes, BudgetExhausted> {
        let mut charge = Charge::new(budget);
        charge.try_set(capacity)?;
        Ok(ChargedBytes { bytes: Vec::with_capacity(capacity), max, padding, charge })
    }

    /// Appends `more`. The caller has checked that it fits in `max`.
    ///
    /// # Errors
    /// The budget has no room. Nothing has changed.
    pub fn extend(&mut self, more: &[u8]) -> Result<(), BudgetExhausted> {
        self.reserve(more.len())?;
        self.bytes.extend_from_slice(more);
        Ok(())
    }

    /// Makes room for `more` bytes, which have arrived. The caller has checked that they fit in
    /// `max`.
    ///
    /// The capacity is then at most twice what has arrived, or four times that if the body is large
    /// and half of the budget is free: each of these steps may copy all of it. An allocation of
    /// [`MAPPED_LEAST`] grows without a copy, so its steps are a quarter.
    ///
    /// # Errors
    /// The budget has no room. Nothing has changed.
    #[inline]
    pub fn reserve(&mut self, more: usize) -> Result<(), BudgetExhausted> {
        let len = self.bytes.len() + more;
        assert!(len <= self.max, "the caller checks the length first");
        let wanted = len + self.padding;
        if wanted <= self.bytes.capacity() { Ok(()) } else { self.grow(wanted) }
    }

    #[cold]
    fn grow(&mut self, wanted: usize) -> Result<(), BudgetExhausted> {
        let most = self.max + self.padding;
        let four_times = (4 * wanted).min(most);
        let capacity = if wanted >= MAPPED_LEAST {
            wanted + wanted / 4
        } else if wanted > SMALL_CHARGE_BYTES && self.charge.leaves_half(four_times) {
            four_times
        } else {
            wanted.max(2 * self.bytes.capacity())
        };
        let capacity = capacity.min(most);
        self.charge.try_set(capacity)?;
        self.bytes.reserve_exact(capacity - self.bytes.len());
        debug_assert_eq!(self.bytes.capacity(), capacity, "charged is what is there");
        Ok(())
    }

    /// Lets `write` append up to `most` bytes, for which there is room, to the vector that it gets.
    ///
    /// # Panics
    /// It has appended more, or the vector has grown.
    pub fn append_with<T>(&mut self, most: usize, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let (end, capacity) = (self.bytes.len() + most, self.bytes.capacity());
        assert!(end + self.padding <= capacity, "the caller reserves room first");
        let written = write(&mut self.bytes);
        let is_kept = self.bytes.capacity() == capacity && self.bytes.len() <= end;
        assert!(is_kept, "charged is what is there");
        written
    }

    /// How many more bytes fit in what is allocated.
    pub fn spare(&self) -> usize {
        self.bytes.capacity() - self.padding - self.bytes.len()
    }

    /// How many more bytes may be appended.
    pub fn room(&self) -> usize {
        self.max - self.bytes.len()
    }

    /// The number of bytes in the buffer.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes of the buffer.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes of the buffer.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The bytes of the buffer with their padding.
    ///
    /// # Panics
    /// The buffer is one [`with_capacity`](ChargedBytes::with_capacity).
    pub fn padded(&mut self) -> Padded<'_> {
        assert_eq!(self.padding, BODY_PADDING, "only a body is parsed");
        Padded::behind(&mut self.bytes)
    }

    /// The size of the allocation.
    pub fn retained(&self) -> usize {
        self.charge.bytes
    }

    /// Frees the excess of an allocation that was to grow.
    pub fn shrink(&mut self) {
        let (charged, wanted) = (self.charge.bytes, self.bytes.len() + self.padding);
        if charged - wanted > charged / 4 {
            self.bytes.shrink_to(wanted);
            self.charge.set(wanted);
        }
    }

    /// Moves the charge, increased by `extra`, to `budget`.
    ///
    /// # Errors
    /// `budget` has no room. Nothing has changed.
    pub fn move_to(&mut self, budget: &Rc<Budget>, extra: usize) -> Result<(), BudgetExhausted> {
        let mut charge = Charge::new(budget);
        charge.try_set(self.charge.bytes + extra)?;
        self.charge = charge;
        Ok(())
    }

    /// The bytes without their charge. The caller holds the permit that replaces it.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::large_part;
    use super::*;

    #[test]
    fn the_large_part_is_what_large_charges_have_whatever_happens_to_them() {
        let seed = crate::rt::random();
        println!("seed {seed}");
        let mut rng = crate::rt::Rng::with_seed(seed);
        let cells = &crate::metrics::cells(1)[0];
        let large = 16 * SMALL_CHARGE_BYTES;
        let budgets = [&cells.body_bytes, &cells.spool_pending_bytes]
            .map(|gauge| Budget::with_reserve(large, large / 8, gauge));
        let mut bodies: Vec<(usize, ChargedBytes)> = Vec::new();
        for _ in 0..5_000 {
            let at = rng.usize(..bodies.len().max(1));
            match (rng.u8(..8), bodies.get_mut(at)) {
                (0 | 1, _) | (_, None) => {
                    bodies.extend(ChargedBytes::new(&budgets[0], large / 2).ok().map(|b| (0, b)));
                }
                (2, Some((_, body))) => body.shrink(),
                (3, Some((of @ 0, body))) => {
                    *of = usize::from(body.move_to(&budgets[1], rng.usize(..2_000)).is_ok());
                }
                (3, Some(_)) => drop(bodies.swap_remove(at).1.into_bytes()),
                (4, Some(_)) | (_, Some((1, _))) => drop(bodies.swap_remove(at)),
                (_, Some((_, body))) => {
                    let more = rng.usize(..40_000).min(body.room());
                    let _or_no_room = body.extend(&vec![0; more]);
                }
            }
            for (of, budget) in budgets.iter().enumerate() {
                let held = bodies.iter().filter(|(at, _)| *at == of).map(|(_, b)| b.retained());
                let (sum, large_sum) =
                    held.fold((0, 0), |(sum, large), b| (sum + b, large + large_part(b)));
                let used = (budget.used(), budget.used_large.get());
                assert_eq!(used, (sum, large_sum), "seed {seed}");
                assert!(sum <= large && large_sum <= large - large / 8, "seed {seed}");
            }
        }
    }

    #[test]
    fn charged_bytes_never_exceed_the_budget_and_always_return() {
        let cells = &crate::metrics::cells(1)[0];
        let budget = Budget::new(10_000, &cells.body_bytes);
        let mut body = ChargedBytes::new(&budget, 20_000).unwrap();
        assert_eq!(cells.body_bytes.value(), 4_096, "whatever was announced");
        body.extend(&[1; 5_000]).unwrap();
        assert_eq!(cells.body_bytes.value(), 8_192);
        assert!(ChargedBytes::new(&budget, 2_000).is_err());
        assert_eq!(
            body.extend(&[1; 4_000]),
            Err(BudgetExhausted { missing: 6_384, missing_large: 0 })
        );
        let after = (body.len(), cells.body_bytes.value());
        assert_eq!(after, (5_000, 8_192), "a refusal adds nothing");
        body.shrink();
        let shrunk = 5_000 + BODY_PADDING;
        assert_eq!((cells.body_bytes.value(), body.retained()), (shrunk as u64, shrunk));
        drop(body.into_bytes());
        assert_eq!(cells.body_bytes.value(), 0);
    }

    /// What a body of this length holds after each step in which 1,000 bytes arrive.
    fn steps(length: usize, budget_bytes: usize) -> Vec<usize> {
        let cells = &crate::metrics::cells(1)[0];
        let budget = Budget::new(budget_bytes, &cells.body_bytes);
        let mut body = ChargedBytes::new(&budget, length).unwrap();
        let mut charges = vec![body.retained()];
        let mut written = 0_u8;
        while body.room() > 0 {
            let piece = vec![written; body.room().min(1_000)];
            written = written.wrapping_add(1);
            body.extend(&piece).unwrap();
            let least = body.len() + BODY_PADDING;
            assert!(body.retained() >= least, "the padding is there");
            assert!(body.retained() <= (4 * least).max(4_096), "four times what came");
            assert_eq!(cells.body_bytes.value(), body.retained() as u64);
            assert_eq!(body.retained(), body.bytes.capacity(), "charged is what is there");
            charges.push(body.retained());
        }
        let is_kept = |(at, piece): (usize, &[u8])| piece.iter().all(|byte| *byte == at as u8);
        assert!(body.as_slice().chunks(1_000).enumerate().all(is_kept));
        let expected = body.as_slice().to_vec();
        assert_eq!(*body.padded(), expected);
        drop(body);
        assert_eq!(cells.body_bytes.value(), 0);
        charges.dedup();
        charges
    }

    #[test]
    fn bodies_grow_in_few_steps_while_there_is_room_and_in_small_ones_when_there_is_not() {
        let padded = |length| length + BODY_PADDING;
        assert_eq!(steps(12, 1 << 20), [padded(12)]);
        assert_eq!(
            steps(100_000, 1 << 20),
            [4_096, 8_192, 16_384, 32_768, 65_536, padded(100_000)]
        );
        let small = [4_096, 8_192, 16_384, 32_768, 65_536];
        // 66,000 bytes came when it was large: four times that, then all of it.
        let generous = [&small[..], &[4 * padded(66_000), padded(400_000)]].concat();
        assert_eq!(steps(400_000, 1 << 20), generous);
        // Where that is more than half of the memory, twice what was there.
        let modest = [&small[..], &[131_072, 262_144, padded(400_000)]].concat();
        assert_eq!(steps(400_000, 500_000), modest);
        // A mapping grows by a quarter.
        let long = steps(10 << 20, 64 << 20);
        let growth: Vec<usize> = long.windows(2).map(|two| 100 * two[1] / two[0]).collect();
        let from = long.iter().position(|held| *held >= MAPPED_LEAST).unwrap();
        assert!(growth[from..].iter().all(|percent| *percent <= 126), "{long:?}");
        assert_eq!(long.last(), Some(&padded(10 << 20)));
    }

    /// Every way in which a body can end up at the end of its memory.
    #[test]
    fn the_padding_is_behind_bodies_of_any_length() {
        let cells = &crate::metrics::cells(1)[0];
        let budget = Budget::new(1 << 20, &cells.body_bytes);
        for length in (0..200).chain(4_000..4_130).chain(65_400..65_700) {
            let text = vec![b'x'; length];
            let mut first = ChargedBytes::starting(&budget, length, &text).unwrap();
            let mut whole = ChargedBytes::new(&budget, 100_000).unwrap();
            whole.extend(&text).unwrap();
            let mut shrunk = ChargedBytes::new(&budget, 1 << 19).unwrap();
            shrunk.extend(&text).unwrap();
            shrunk.shrink();
            for body in [&mut first, &mut whole, &mut shrunk] {
                let (capacity, start) = (body.bytes.capacity(), body.bytes.as_ptr());
                let mut padded = body.padded();
                assert_eq!(*padded, text);
                assert_eq!(padded.from(length), [0; BODY_PADDING]);
                let after = (body.bytes.capacity(), body.bytes.as_ptr(), body.retained());
                assert_eq!(after, (capacity, start, capacity), "{length}: in its own memory");
            }
            for body in [first, whole, shrunk] {
                assert_eq!(body.into_bytes(), text);
            }
        }
        assert_eq!(cells.body_bytes.value(), 0);
    }

    #[test]
    #[should_panic(expected = "charged is what is there")]
    fn what_is_written_must_fit_in_what_is_charged() {
        let budget = Budget::new(1 << 20, &crate::metrics::cells(1)[0].body_bytes);
        let mut body = ChargedBytes::new(&budget, 1_000).unwrap();
        body.append_with(1_000, |bytes| bytes.extend_from_slice(&[0; 1_001]));
    }
}
