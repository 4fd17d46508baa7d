//! Budgets of bytes of one core. Whoever holds memory holds a [`Charge`], which gives it back when it is dropped; a gauge
//! shows what is used.

use std::cell::Cell;
use std::rc::Rc;

use crate::metrics::Cell64;
use crate::sync::Signal;

/// Bytes that a core has for one purpose: bodies in one of their stages, which are being read, decompressed or waiting for
/// room (`MAX_BODY_BYTES`) or waiting for the disk (`SPOOL_PENDING`); batches (`BATCH_MEMORY`).
pub struct Budget {
    max: usize,
    used: Cell<usize>,
    /// A charge has ended.
    freed: Signal,
    /// Shows what is used.
    gauge: &'static Cell64,
}

/// The budget is used up.
#[derive(Debug, PartialEq, Eq)]
pub struct BudgetExhausted;

impl Budget {
    /// A budget of `max` bytes, of which none are used.
    pub fn new(max: usize, gauge: &'static Cell64) -> Rc<Budget> {
        Rc::new(Budget { max, used: Cell::new(0), freed: Signal::default(), gauge })
    }

    /// All its bytes.
    pub fn max(&self) -> usize {
        self.max
    }

    /// The bytes of all charges. More than [`Budget::max`] if a charge was [set](Charge::set) so.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Whether so many more do not exceed it.
    pub fn fits(&self, bytes: usize) -> bool {
        self.used.get() + bytes <= self.max
    }

    /// Ready once a charge has ended since the last call; one task waits for that.
    pub async fn freed(&self) {
        self.freed.wait().await;
    }

    #[inline]
    fn set_used(&self, used: usize) {
        self.used.set(used);
        self.gauge.set(used as u64);
    }
}

/// What somebody holds of a [`Budget`], released when dropped.
pub struct Charge {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Charge {
    /// A charge of nothing, which is to grow.
    pub fn new(budget: &Rc<Budget>) -> Charge {
        Charge { budget: budget.clone(), bytes: 0 }
    }

    /// How much is charged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Charges `bytes` in all, whether or not they fit: for memory that is in use already.
    #[inline]
    pub fn set(&mut self, bytes: usize) {
        self.budget.set_used(self.budget.used.get() - self.bytes + bytes);
        self.bytes = bytes;
    }

    /// Charges `bytes` in all, if they fit or are fewer than before.
    ///
    /// # Errors
    /// They do not fit; nothing has changed.
    #[inline]
    pub fn try_set(&mut self, bytes: usize) -> Result<(), BudgetExhausted> {
        if bytes > self.bytes && !self.budget.fits(bytes - self.bytes) {
            return Err(BudgetExhausted);
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

/// Bytes that grow against a [`Budget`]: charged by capacity, released on drop or when handed over.
pub struct ChargedBytes {
    bytes: Vec<u8>,
    max: usize,
    charge: Charge,
}

impl ChargedBytes {
    /// The first allocation; from there on capacity doubles, so a body pays for at most twice what it has sent,
    /// whatever it announced. At the default limits, stalled clients on every connection of a core just use up its
    /// budget: 16384 × 4 KiB = 64 MiB.
    const FIRST_CAPACITY: usize = 4 * 1024;

    /// Room that will grow up to `max` bytes.
    pub fn new(budget: &Rc<Budget>, max: usize) -> Result<ChargedBytes, BudgetExhausted> {
        let capacity = max.min(Self::FIRST_CAPACITY);
        let mut charge = Charge::new(budget);
        charge.try_set(capacity)?;
        Ok(ChargedBytes { bytes: Vec::with_capacity(capacity), max, charge })
    }

    /// Appends `more`, which the caller knows to fit in `max`.
    pub fn extend(&mut self, more: &[u8]) -> Result<(), BudgetExhausted> {
        let len = self.bytes.len() + more.len();
        assert!(len <= self.max, "the caller checks the length first");
        let charged = self.charge.bytes;
        if len > charged {
            let capacity = len.max(charged * 2).min(self.max);
            self.charge.try_set(capacity)?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(more);
        Ok(())
    }

    /// How many bytes more may be appended.
    pub fn room(&self) -> usize {
        self.max - self.bytes.len()
    }

    /// Of those that were appended.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether none was appended.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All that were appended.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// What the allocation keeps in memory.
    pub fn retained(&self) -> usize {
        self.charge.bytes
    }

    /// Gives back what doubling has allocated too much.
    pub fn shrink(&mut self) {
        let charged = self.charge.bytes;
        if charged - self.bytes.len() > charged / 4 {
            self.bytes.shrink_to_fit();
            self.charge.set(self.bytes.len());
        }
    }

    /// Charges them and `extra` to `budget` instead.
    ///
    /// # Errors
    /// `budget` has no room; nothing has changed.
    pub fn move_to(&mut self, budget: &Rc<Budget>, extra: usize) -> Result<(), BudgetExhausted> {
        let mut charge = Charge::new(budget);
        charge.try_set(self.charge.bytes + extra)?;
        self.charge = charge;
        Ok(())
    }

    /// The bytes without their charge: the caller holds the permit that replaces it.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
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
        assert_eq!(other.try_set(51), Err(BudgetExhausted));
        assert_eq!(budget.used(), 80, "nothing has changed");
        assert_eq!(other.try_set(50), Ok(()));
        // What is in use is charged, and less of it is better than more.
        other.set(70);
        assert_eq!((budget.used(), other.try_set(60)), (120, Ok(())));
        drop(one);
        drop(other);
        assert_eq!((budget.used(), cells.batch_bytes.value()), (0, 0));
    }

    #[test]
    fn the_end_of_a_charge_is_told() {
        let budget = Budget::new(100, &crate::metrics::cells(1)[0].batch_bytes);
        let mut charge = Charge::new(&budget);
        charge.set(100);
        charge.set(10);
        assert!(block_on(poll_once(budget.freed())).is_none(), "it goes on");
        drop(charge);
        block_on(budget.freed());
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
        assert_eq!(body.extend(&[1; 4_000]), Err(BudgetExhausted));
        let after = (body.len(), cells.body_bytes.value());
        assert_eq!(after, (5_000, 8_192), "a refusal adds nothing");
        body.shrink();
        assert_eq!((cells.body_bytes.value(), body.retained()), (5_000, 5_000));
        drop(body.into_bytes());
        assert_eq!(cells.body_bytes.value(), 0);
    }

    #[test]
    fn charged_bytes_double_up_to_what_was_announced() {
        let cells = &crate::metrics::cells(1)[0];
        let budget = Budget::new(1 << 20, &cells.body_bytes);
        let mut body = ChargedBytes::new(&budget, 100_000).unwrap();
        let mut charges = vec![body.retained()];
        while body.room() > 0 {
            body.extend(&[7; 1_000]).unwrap();
            assert!(body.retained() <= (2 * body.len()).max(4_096), "at most twice what came");
            assert_eq!(cells.body_bytes.value(), body.retained() as u64);
            charges.push(body.retained());
        }
        charges.dedup();
        assert_eq!(charges, [4_096, 8_192, 16_384, 32_768, 65_536, 100_000]);
        assert_eq!(body.as_slice(), vec![7; 100_000]);
        // A body announced small takes what it says and no more.
        assert_eq!(ChargedBytes::new(&budget, 12).unwrap().retained(), 12);
        drop(body);
        assert_eq!(cells.body_bytes.value(), 0);
    }
}
