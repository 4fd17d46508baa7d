use std::cell::{Cell, RefCell};
use std::future::pending;
use std::time::{Duration, Instant};

use crate::rt;
use crate::rt::sleep;

use super::{Class, Object, Progress, PutError, Store, Summing};
use crate::config::{FaultPlan, Poison};

/// How long `core_stuck` blocks a core unless `stuck_for` says otherwise: long enough to inspect the
/// server meanwhile.
pub const STUCK_FOR: Duration = Duration::from_secs(6);
/// The word that `poison` searches payloads for.
const POISON: &[u8] = b"poison";

/// A store that fails as planned.
pub struct Faulty {
    inner: Store,
    plan: FaultPlan,
    rng: RefCell<rt::Rng>,
    puts: Cell<u64>,
    first_put: Cell<Option<Instant>>,
}

impl Faulty {
    /// `stream` separates the sequences of several cores with one seed.
    pub fn new(inner: Store, plan: FaultPlan, stream: u64) -> Faulty {
        let rng = rt::Rng::with_seed(plan.seed.wrapping_add(stream.wrapping_mul(0x9E37_79B9)));
        Faulty {
            inner,
            plan,
            rng: RefCell::new(rng),
            puts: Cell::new(0),
            first_put: Cell::new(None),
        }
    }

    pub(super) fn summing(&self) -> Summing {
        self.inner.summing()
    }

    pub async fn put(&self, object: &Object<'_>, progress: &Progress) -> Result<(), PutError> {
        self.hit_core();
        if !self.plan.delay.is_zero() {
            sleep(self.plan.delay).await;
        }
        let mut dice = self.rng.borrow_mut().f64();
        let mut happens = |share: f64| {
            let hit = (0.0..share).contains(&dice);
            dice -= share;
            hit
        };
        let failed =
            |class| Err(PutError::new(class, "Injected", format!("a seeded {class} fault")));
        if let Some(class) = self.plan.poison
            && object.body.iter().any(|part| part.windows(POISON.len()).any(|w| w == POISON))
        {
            return failed(class.into());
        }
        if !self.plan.outage.is_zero() {
            let first = self.first_put.get().unwrap_or_else(rt::now);
            self.first_put.set(Some(first));
            if rt::since(first) < self.plan.outage {
                return failed(Class::StoreWide);
            }
        }
        if happens(self.plan.transient) {
            return failed(Class::Transient);
        }
        if happens(self.plan.object) {
            return failed(Class::Object);
        }
        if happens(self.plan.store_wide) {
            return failed(Class::StoreWide);
        }
        if happens(self.plan.panic) {
            panic!("injected: a put");
        }
        if happens(self.plan.hang) {
            pending::<()>().await;
        }
        let late = happens(self.plan.late);
        self.inner.attempt(object, progress).await?;
        if late { failed(Class::Transient) } else { Ok(()) }
    }

    /// The faults that hit the core itself, once each.
    fn hit_core(&self) {
        self.puts.set(self.puts.get() + 1);
        if self.puts.get() == self.plan.core_panic {
            let own_task = async {
                // glommio polls a new task inside `spawn_local`: without the sleep the worker would
                // panic.
                sleep(Duration::from_millis(1)).await;
                panic!("injected: a core's own task");
            };
            rt::spawn(own_task).detach();
        }
        if self.puts.get() == self.plan.core_stuck {
            tracing::warn!("injected: this core is stuck");
            #[expect(
                clippy::disallowed_methods,
                reason = "blocking the core is what is asked for"
            )]
            std::thread::sleep(self.plan.stuck_for.unwrap_or(STUCK_FOR));
        }
    }
}

impl From<Poison> for Class {
    fn from(poison: Poison) -> Class {
        match poison {
            Poison::Transient => Class::Transient,
            Poison::Object => Class::Object,
            Poison::StoreWide => Class::StoreWide,
        }
    }
}

/// The faults that hit connections.
pub struct ConnFaults {
    share: f64,
    rng: RefCell<rt::Rng>,
}

impl ConnFaults {
    pub fn new(plan: Option<&FaultPlan>, stream: u64) -> ConnFaults {
        let seed = plan.map_or(0, |plan| plan.seed).wrapping_add(stream);
        let share = plan.map_or(0.0, |plan| plan.conn_panic);
        ConnFaults { share, rng: RefCell::new(rt::Rng::with_seed(seed)) }
    }

    /// Panics with the planned probability.
    pub fn on_request(&self) {
        if self.share > 0.0 && self.rng.borrow_mut().f64() < self.share {
            panic!("injected: a connection");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::job::Payload;

    #[test]
    fn the_same_seed_gives_the_same_faults() {
        let run = |seed, stream| {
            let plan = FaultPlan { seed, transient: 0.3, object: 0.1, ..FaultPlan::default() };
            let store = Faulty::new(Store::Null, plan, stream);
            let payload = Payload::from(b"1".to_vec());
            (0..200)
                .map(|_| {
                    let (object, progress) = (Object::of("k", &payload), Progress::default());
                    let put = futures_lite::future::block_on(store.put(&object, &progress));
                    put.map_err(|e| e.class).err()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(run(7, 0), run(7, 0));
        assert_ne!(run(7, 0), run(7, 1));
        assert!(run(7, 0).contains(&Some(Class::Object)) && run(7, 0).contains(&None));
    }
}
