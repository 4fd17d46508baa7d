//! Seeded faults around any store, for tests and game days: the same seed gives the same sequence of faults.
//!
//! `FAULTS=seed=7,transient=0.1,late=0.05,object=0.01,store_wide=0.02,hang=0.01,panic=0.001,delay=5ms`: each but
//! `seed` and `delay` is the probability of one outcome per put. `poison=transient` (or `object`, `store_wide`) fails
//! exactly the payloads that contain the word `poison`, every time. `outage=60s` fails every put store-wide for that long
//! after a core's first one. Four more hit beside the store: `conn_panic` per
//! request, `spool_sync` per sync of the spool, and `core_panic` and `core_stuck`, the number of puts after which a core's own task panics, or blocks the
//! core's thread for [`STUCK_FOR`].

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::time::{Duration, Instant};

use super::{Class, Object, Progress, PutError, Store, Summing};
use crate::rt::{self, sleep};

/// How long `core_stuck` blocks a core: long enough to look at the server meanwhile.
pub const STUCK_FOR: Duration = Duration::from_secs(3);
/// What `poison` looks for in a payload.
const POISON: &[u8] = b"poison";

/// What goes wrong, and how often.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultPlan {
    pub seed: u64,
    /// Fails without touching the store; worth a retry.
    pub transient: f64,
    /// Stores the object, then reports a transient failure, as a cut connection does.
    pub late: f64,
    pub object: f64,
    pub store_wide: f64,
    /// Never answers: the worker's deadline ends it.
    pub hang: f64,
    /// Panics inside the put.
    pub panic: f64,
    /// Panics in the connection that brought the request.
    pub conn_panic: f64,
    /// Fails a sync of the spool, after it was done.
    pub spool_sync: f64,
    /// After this many puts on a core, a task of that core panics; 0 never.
    pub core_panic: u64,
    /// After this many puts on a core, its thread blocks for [`STUCK_FOR`]; 0 never.
    pub core_stuck: u64,
    /// How puts of payloads that contain the word `poison` fail; `None` when they do not.
    pub poison: Option<Class>,
    /// From a core's first put on, all of them fail.
    pub outage: Duration,
    /// Before every put.
    pub delay: Duration,
}

impl FaultPlan {
    /// Reads `name=value,…`.
    ///
    /// # Errors
    /// Names the item that is not understood and what is allowed.
    pub fn parse(text: &str) -> Result<FaultPlan, String> {
        let mut plan = FaultPlan::default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (name, value) =
                item.split_once('=').ok_or(format!("`{item}` is not name=value"))?;
            let share = || match value.parse::<f64>() {
                Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
                _ => Err(format!("`{item}`: {name} is a probability from 0 to 1")),
            };
            let number =
                || value.parse().map_err(|_| format!("`{item}`: {name} is a whole number"));
            let time = || {
                humantime::parse_duration(value)
                    .map_err(|_| format!("`{item}`: {name} is a time such as 5ms"))
            };
            match name {
                "seed" => plan.seed = number()?,
                "transient" => plan.transient = share()?,
                "late" => plan.late = share()?,
                "object" => plan.object = share()?,
                "store_wide" => plan.store_wide = share()?,
                "hang" => plan.hang = share()?,
                "panic" => plan.panic = share()?,
                "conn_panic" => plan.conn_panic = share()?,
                "spool_sync" => plan.spool_sync = share()?,
                "core_panic" => plan.core_panic = number()?,
                "core_stuck" => plan.core_stuck = number()?,
                "poison" => {
                    plan.poison = Some(class(value).ok_or(format!(
                        "`{item}`: poison is one of transient, object, store_wide"
                    ))?)
                }
                "delay" => plan.delay = time()?,
                "outage" => plan.outage = time()?,
                _ => {
                    return Err(format!(
                        "`{name}` is not a fault; allowed: seed, transient, late, object, store_wide, hang, panic, \
                         conn_panic, spool_sync, core_panic, core_stuck, poison, outage, delay"
                    ));
                }
            }
        }
        Ok(plan)
    }
}

fn class(text: &str) -> Option<Class> {
    match text {
        "transient" => Some(Class::Transient),
        "object" => Some(Class::Object),
        "store_wide" => Some(Class::StoreWide),
        _ => None,
    }
}

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
            return failed(class);
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
                // glommio polls a new task inside `spawn_local`: without this the panic would hit the worker instead.
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
            std::thread::sleep(STUCK_FOR);
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

    /// Panics as often as planned.
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
    fn a_plan_is_read_whole_or_refused_by_name() {
        let plan = FaultPlan::parse("seed=7, transient=0.25,delay=5ms,core_panic=3").unwrap();
        assert_eq!((plan.seed, plan.transient, plan.core_panic), (7, 0.25, 3));
        assert_eq!(plan.delay, Duration::from_millis(5));
        assert_eq!(FaultPlan::parse("poison=object").unwrap().poison, Some(Class::Object));
        let bad = [("transient=2", "transient"), ("boom=1", "boom"), ("seed", "seed")];
        for (bad, name) in bad.into_iter().chain([("poison=1", "poison")]) {
            assert!(FaultPlan::parse(bad).unwrap_err().contains(name));
        }
    }

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
