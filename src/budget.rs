//! Byte budgets of one core. A holder of memory also holds a [`Charge`], which is released when it
//! is dropped. A gauge shows how much is used.

mod bytes;
mod padded;

use std::cell::Cell;
use std::rc::Rc;

pub use bytes::ChargedBytes;
pub use padded::{BODY_PADDING, Padded};

use crate::metrics::Cell64;
use crate::sync::Signal;

/// A charge up to this may use the reserve of its budget: the body of a usual request.
pub const SMALL_CHARGE_BYTES: usize = (64 << 10) + BODY_PADDING;

/// The bytes that a core may use for one purpose: bodies that are being read, decompressed or
/// waiting for room (`MAX_BODY_BYTES`), large ones that wait in the kernel (as many again), bodies
/// that wait for the disk (`SPOOL_PENDING`), or batches (`BATCH_MEMORY`).
pub struct Budget {
    max: usize,
    /// The part of `max` that charges above [`SMALL_CHARGE_BYTES`] cannot use.
    reserve: usize,
    used: Cell<usize>,
    /// The part of `used` that charges above [`SMALL_CHARGE_BYTES`] have.
    used_large: Cell<usize>,
    /// Raised when a charge is dropped.
    freed: Signal,
    /// Shows `used`.
    gauge: &'static Cell64,
}

/// The budget is used up.
#[derive(Debug, PartialEq, Eq)]
pub struct BudgetExhausted {
    /// How many bytes must be freed first.
    pub missing: usize,
    /// How many of them by charges above [`SMALL_CHARGE_BYTES`], since no others may use the
    /// reserve.
    pub missing_large: usize,
}

impl Budget {
    /// A budget of `max` bytes, none of them used.
    pub fn new(max: usize, gauge: &'static Cell64) -> Rc<Budget> {
        Budget::with_reserve(max, 0, gauge)
    }

    /// A budget of `max` bytes. Charges above [`SMALL_CHARGE_BYTES`] together get no more than
    /// `max - reserve`; the others may use all that is free.
    pub fn with_reserve(max: usize, reserve: usize, gauge: &'static Cell64) -> Rc<Budget> {
        Rc::new(Budget {
            max,
            reserve,
            used: Cell::new(0),
            used_large: Cell::new(0),
            freed: Signal::default(),
            gauge,
        })
    }

    /// The size of the budget.
    pub fn max(&self) -> usize {
        self.max
    }

    /// The sum of all charges. It exceeds [`Budget::max`] if [`Charge::set`] made it.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Whether `bytes` more fit.
    pub fn fits(&self, bytes: usize) -> bool {
        self.used.get() + bytes <= self.max
    }

    /// Waits until a charge has been dropped since the last call. One task may wait.
    pub async fn freed(&self) {
        self.freed.wait().await;
    }

    #[inline]
    fn set_used(&self, used: usize) {
        self.used.set(used);
        self.gauge.set(used as u64);
    }
}

/// What a charge of `bytes` adds to [`Budget::used_large`].
#[inline]
fn large_part(bytes: usize) -> usize {
    if bytes > SMALL_CHARGE_BYTES { bytes } else { 0 }
}

/// A part of a [`Budget`] that is in use, released when dropped.
pub struct Charge {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Charge {
    /// A charge of zero bytes, to be set later.
    pub fn new(budget: &Rc<Budget>) -> Charge {
        Charge { budget: budget.clone(), bytes: 0 }
    }

    /// How much is charged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sets the charge to `bytes`, whether or not they fit: for memory that is already in use.
    #[inline]
    pub fn set(&mut self, bytes: usize) {
        let budget = &self.budget;
        budget.set_used(budget.used.get() - self.bytes + bytes);
        let others = budget.used_large.get() - large_part(self.bytes);
        budget.used_large.set(others + large_part(bytes));
        self.bytes = bytes;
    }

    /// Whether half of the budget would be free if this were a charge of `bytes`.
    fn leaves_half(&self, bytes: usize) -> bool {
        self.budget.used.get() - self.bytes + bytes <= self.budget.max / 2
    }

    /// Sets the charge to `bytes` if they fit or are fewer than before.
    ///
    /// # Errors
    /// They do not fit. Nothing has changed.
    #[inline]
    pub fn try_set(&mut self, bytes: usize) -> Result<(), BudgetExhausted> {
        if bytes > self.bytes {
            let budget = &self.budget;
            let wanted = budget.used.get() - self.bytes + bytes;
            // A charge that becomes large counts as a whole.
            let large = large_part(bytes);
            let others_large = budget.used_large.get() - large_part(self.bytes);
            let wanted_large = if large > 0 { others_large + large } else { 0 };
            let missing_large = wanted_large.saturating_sub(budget.max - budget.reserve);
            let missing = wanted.saturating_sub(budget.max).max(missing_large);
            if missing > 0 {
                return Err(BudgetExhausted { missing, missing_large });
            }
        }
        self.set(bytes);
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
        self.budget.freed.raise();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};

    #[test]
    fn a_charge_grows_and_shrinks_and_is_released_once() {
        let cells = &crate::metrics::cells(1)[0];
        let budget = Budget::new(100, &cells.batch_bytes);
        let (mut one, mut other) = (Charge::new(&budget), Charge::new(&budget));
        one.set(60);
        other.set(30);
        one.set(50);
        assert_eq!((budget.used(), cells.batch_bytes.value()), (80, 80));
        assert!(budget.fits(20) && !budget.fits(21));
        assert_eq!(other.try_set(51), Err(BudgetExhausted { missing: 1, missing_large: 0 }));
        assert_eq!(budget.used(), 80, "nothing has changed");
        assert_eq!(other.try_set(50), Ok(()));
        // `set` charges more than fits, and a smaller charge is always accepted.
        other.set(70);
        assert_eq!((budget.used(), other.try_set(60)), (120, Ok(())));
        drop(one);
        drop(other);
        assert_eq!((budget.used(), cells.batch_bytes.value()), (0, 0));
    }

    #[test]
    fn only_small_charges_use_the_reserve() {
        let (small, large) = (SMALL_CHARGE_BYTES, SMALL_CHARGE_BYTES + 1);
        let cells = &crate::metrics::cells(1)[0];
        let budget = Budget::with_reserve(4 * large, small, &cells.body_bytes);
        let [mut one, mut two, mut three, mut four] = [(); 4].map(|()| Charge::new(&budget));
        assert_eq!((one.try_set(large), two.try_set(large)), (Ok(()), Ok(())));
        assert_eq!(three.try_set(large), Ok(()));
        // What is left is the reserve and a byte.
        let exhausted = Err(BudgetExhausted { missing: small, missing_large: small });
        assert_eq!(four.try_set(large), exhausted);
        assert_eq!(four.try_set(small), Ok(()));
        assert_eq!(four.try_set(large), exhausted);
        // A large one may shrink at any time, and is then a small one, …
        assert_eq!(one.try_set(large - 1), Ok(()));
        // … which leaves its room to another one that becomes large.
        assert_eq!(four.try_set(large), Ok(()));
        assert_eq!(one.try_set(large), exhausted);
        drop((one, two, three, four));
        assert_eq!(cells.body_bytes.value(), 0);
    }

    /// What small charges use counts as their reserve first, so that large ones get the rest.
    #[test]
    fn small_charges_take_nothing_from_large_ones_while_they_fit_in_the_reserve() {
        let (small, large) = (SMALL_CHARGE_BYTES, 4 * SMALL_CHARGE_BYTES);
        let cells = &crate::metrics::cells(1)[0];
        let budget = Budget::with_reserve(large + 2 * small, 2 * small, &cells.body_bytes);
        let [mut one, mut two, mut three, mut big] = [(); 4].map(|()| Charge::new(&budget));
        assert_eq!((one.try_set(small), two.try_set(small)), (Ok(()), Ok(())));
        assert_eq!(big.try_set(large), Ok(()));
        let exhausted = |missing, missing_large| Err(BudgetExhausted { missing, missing_large });
        assert_eq!(three.try_set(1), exhausted(1, 0));
        assert_eq!(one.try_set(small + 1), exhausted(small + 1, small + 1), "its whole weight");
        big.set(large - small - 1);
        assert_eq!(one.try_set(small + 1), Ok(()));
        // More small charges than fit in the reserve: only these are in the way of a large one.
        drop(one);
        assert_eq!(three.try_set(small), Ok(()));
        big.set(0);
        assert_eq!(big.try_set(large), Ok(()));
        big.set(large - small);
        let mut four = Charge::new(&budget);
        assert_eq!(four.try_set(small), Ok(()));
        assert_eq!(big.try_set(large), exhausted(small, 0));
        drop((two, three, big, four));
        assert_eq!((budget.used(), budget.used_large.get()), (0, 0));
    }

    #[test]
    fn dropping_a_charge_wakes_the_waiting_task() {
        let budget = Budget::new(100, &crate::metrics::cells(1)[0].batch_bytes);
        let mut charge = Charge::new(&budget);
        charge.set(100);
        charge.set(10);
        assert!(block_on(poll_once(budget.freed())).is_none(), "not dropped yet");
        drop(charge);
        block_on(budget.freed());
    }
}
