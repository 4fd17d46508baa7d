//! Prepares and probes the store at the start. If a spool keeps payloads meanwhile, a store that
//! cannot be reached is probed again until it accepts them.
//!
//! Only the first probe can refuse a start. Later results are in `/readyz` and in the log: by then
//! payloads are held, and the workers keep trying them.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::rt;
use crate::rt::sleep;

use crate::config::{Config, StoreUrl};
use crate::metrics::Cells;
use crate::preflight::Finding;
use crate::store::StoreSeed;
use crate::store::file::FileStore;
use crate::store::s3::probe::{Probe, ProbeError, ProbeResult};
use crate::store::s3::sdk::S3Store;
use crate::store::s3::{self, Probed, S3Target};

/// Pause before the second probe of a store that was not reached. Each further pause is twice as
/// long, …
const PROBE_PAUSE_MIN: Duration = Duration::from_secs(1);
/// … up to this.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Remedy for a store that cannot be reached yet.
const PROBED_AGAIN: &str =
    "nothing, if it passes: a server starts, holds payloads and retries until the store answers";

/// A store that is ready for the cores.
pub struct Prepared {
    pub seed: StoreSeed,
    /// The result of the probe.
    pub finding: Finding,
    /// Set if the store is to be probed again.
    pub unreached: Option<Unreached>,
}

/// A store that was not reached yet.
pub struct Unreached {
    /// The store as configured.
    store: String,
    /// The last error.
    why: String,
    prober: S3Store,
}

/// Prepares and probes the configured store before any core uses it. With `may_wait` the caller can
/// do without the store for a while, so it is no error if the store cannot be reached.
///
/// # Errors
/// One sentence that names what is wrong.
pub async fn prepare_store(config: &Config, may_wait: bool) -> Result<Prepared, String> {
    let store = config.store.to_string();
    let seed = match &config.store {
        StoreUrl::Null => StoreSeed::Null,
        StoreUrl::File(root) => {
            let (directory, mode) = (root.clone(), config.file_mode);
            let prepared = rt::blocking(move || FileStore::prepare(&directory, mode));
            let root = prepared.await.map_err(|error| format!("STORE {store}: {error}"))?;
            StoreSeed::File { root, puts_max: config.max_workers }
        }
        StoreUrl::S3 { bucket, prefix } => {
            let (bucket, prefix) = (bucket.clone(), prefix.clone());
            let target = S3Target { bucket, prefix, options: config.s3.clone() };
            let probed = s3::prepare(target, config.max_workers).await;
            let probed = probed.map_err(|error| format!("STORE {store}: {error}"))?;
            return judge(store, probed, may_wait);
        }
    };
    Ok(Prepared { seed, finding: usable(&store), unreached: None })
}

fn usable(store: &str) -> Finding {
    Finding::ok("probe", format!("{store} can be used"))
}

/// Decides whether the result of the first probe refuses the start.
fn judge(store: String, probed: Probed, may_wait: bool) -> Result<Prepared, String> {
    let Probed { seed, result, prober } = probed;
    let trouble = trouble(&result).filter(|_| may_wait && may_pass(&result));
    if let Some(why) = trouble {
        let unreached = Unreached { store, why, prober };
        let finding = Finding::warn("probe", unreached.reason(), PROBED_AGAIN);
        return Ok(Prepared { seed, finding, unreached: Some(unreached) });
    }
    let finding = match result.map_err(|error| format!("STORE {store}: {error}"))? {
        Probe::Ok => usable(&store),
        Probe::Warning { said, remedy, .. } => Finding::warn("probe", said, remedy),
    };
    Ok(Prepared { seed, finding, unreached: None })
}

/// Why the store cannot be used yet; `None` if it can.
fn trouble(result: &ProbeResult) -> Option<String> {
    match result {
        Ok(Probe::Warning { said, down: true, .. }) => Some(said.clone()),
        Ok(Probe::Warning { .. } | Probe::Ok) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// Whether the trouble may end without an operator.
fn may_pass(result: &ProbeResult) -> bool {
    result.as_ref().err().is_none_or(ProbeError::may_pass)
}

/// Starts probing a store that was not reached until it can be used. Until then the returned cell
/// says why it cannot.
pub(super) fn watch(unreached: Option<Unreached>, cells: Cells) -> Rc<RefCell<Option<String>>> {
    let reason = Rc::new(RefCell::new(unreached.as_ref().map(Unreached::reason)));
    if let Some(unreached) = unreached {
        rt::spawn(unreached.probe_until_usable(reason.clone(), cells)).detach();
    }
    reason
}

impl Unreached {
    async fn probe_until_usable(mut self, reason: Rc<RefCell<Option<String>>>, cells: Cells) {
        let mut pause = PROBE_PAUSE_MIN;
        let warning = loop {
            sleep(pause).await;
            pause = (2 * pause).min(PROBE_PAUSE_MAX);
            let answer = self.prober.probe().await;
            let Some(why) = trouble(&answer) else {
                break match answer {
                    Ok(Probe::Warning { said, .. }) => Some(said),
                    _ => None,
                };
            };
            // A store that accepts payloads can be used, whatever it answers to the probe's
            // listing.
            if cells.iter().any(|cells| cells.payloads_stored.value() > 0) {
                break None;
            }
            if why != self.why {
                self.why = why;
                tracing::warn!("{}", self.reason());
                reason.replace(Some(self.reason()));
            }
        };
        reason.replace(None);
        let but = warning.map(|said| format!("; {said}")).unwrap_or_default();
        tracing::warn!("the store {} can be used now{but}", self.store);
    }

    fn reason(&self) -> String {
        format!("the store {} cannot be used yet: {}", self.store, self.why)
    }
}
