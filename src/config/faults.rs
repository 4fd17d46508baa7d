//! `FAULTS`: fault injection, for tests and game days.
//!
//!
//! `FAULTS=seed=7,transient=0.1,late=0.05,object=0.01,store_wide=0.02,hang=0.01,panic=0.001,delay=5ms`:
//! each but `seed` and `delay` is the probability of one outcome per put. `poison=transient` (or
//! `object`, `store_wide`) fails exactly the payloads that contain the word `poison`, every time.
//! `outage=60s` fails every put store-wide for that long after a core's first one. Four more act
//! outside the store: `conn_panic` per request, `spool_sync` per sync of the spool, and
//! `core_panic` and `core_stuck`, the number of puts after which a core's own task panics, or
//! blocks the core's thread for `stuck_for` (6 s).

use std::time::Duration;

/// Which faults are injected, and how often.
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
    /// After this many puts on a core, its thread blocks; 0 never.
    pub core_stuck: u64,
    /// For how long; `None`: long enough to inspect the server meanwhile.
    pub stuck_for: Option<Duration>,
    /// How puts of payloads that contain the word `poison` fail; `None` if they do not.
    pub poison: Option<Poison>,
    /// How long all puts of a core fail, from its first one on.
    pub outage: Duration,
    /// The delay before every put.
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
                "stuck_for" => plan.stuck_for = Some(time()?),
                "poison" => {
                    plan.poison = Some(Poison::named(value).ok_or(format!(
                        "`{item}`: poison is one of transient, object, store_wide"
                    ))?)
                }
                "delay" => plan.delay = time()?,
                "outage" => plan.outage = time()?,
                _ => {
                    return Err(format!(
                        "unknown fault `{name}`; allowed: seed, transient, late, object, store_wide, hang, panic, \
                         conn_panic, spool_sync, core_panic, core_stuck, stuck_for, poison, outage, delay"
                    ));
                }
            }
        }
        Ok(plan)
    }
}

/// How puts of poisoned payloads fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poison {
    Transient,
    Object,
    StoreWide,
}

impl Poison {
    fn named(name: &str) -> Option<Poison> {
        match name {
            "transient" => Some(Poison::Transient),
            "object" => Some(Poison::Object),
            "store_wide" => Some(Poison::StoreWide),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_whole_or_refused_by_name() {
        let plan = FaultPlan::parse("seed=7, transient=0.25,delay=5ms,core_panic=3").unwrap();
        assert_eq!((plan.seed, plan.transient, plan.core_panic), (7, 0.25, 3));
        assert_eq!(plan.delay, Duration::from_millis(5));
        assert_eq!(FaultPlan::parse("poison=object").unwrap().poison, Some(Poison::Object));
        let bad = [("transient=2", "transient"), ("boom=1", "boom"), ("seed", "seed")];
        for (bad, name) in bad.into_iter().chain([("poison=1", "poison")]) {
            assert!(FaultPlan::parse(bad).unwrap_err().contains(name));
        }
    }
}
