//! The store as a start finds it: prepared, asked whether it takes payloads and, where a spool keeps them meanwhile,
//! asked again until it does.
//!
//! Only the first answer can refuse a start. What a later one says waits for an operator in `/readyz` and in the log:
//! by then payloads are held, and the workers try them all the time.

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

/// Before a store that was not reached is asked for the second time; each further pause is twice as long, …
const ASK_AGAIN_MIN: Duration = Duration::from_secs(1);
/// … up to this.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(30);

/// Remedy of a store that is not there yet.
const ASKED_AGAIN: &str =
    "nothing, if it passes: a server starts, holds payloads and asks until the store answers";

/// A store that cores can be given.
pub struct Prepared {
    pub seed: StoreSeed,
    /// What the store had to say.
    pub finding: Finding,
    /// To be asked again.
    pub unreached: Option<Unreached>,
}

/// A store that nobody has reached yet.
pub struct Unreached {
    /// As configured.
    store: String,
    /// What it said last, or what was said in its place.
    why: String,
    prober: S3Store,
}

/// Prepares what the configured store needs before any core uses it. `may_wait`: the caller can do without the store
/// for a while, so that nobody is reached is no error.
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
            let asked = s3::prepare(target, config.max_workers).await;
            let asked = asked.map_err(|error| format!("STORE {store}: {error}"))?;
            return judge(store, asked, may_wait);
        }
    };
    Ok(Prepared { seed, finding: usable(&store), unreached: None })
}

fn usable(store: &str) -> Finding {
    Finding::ok("probe", format!("{store} can be used"))
}

fn judge(store: String, asked: Probed, may_wait: bool) -> Result<Prepared, String> {
    let Probed { seed, result: answer, prober } = asked;
    let trouble = trouble(&answer).filter(|_| may_wait && may_pass(&answer));
    if let Some(why) = trouble {
        let unreached = Unreached { store, why, prober };
        let finding = Finding::warn("probe", unreached.reason(), ASKED_AGAIN);
        return Ok(Prepared { seed, finding, unreached: Some(unreached) });
    }
    let finding = match answer.map_err(|error| format!("STORE {store}: {error}"))? {
        Probe::Ok => usable(&store),
        Probe::Warning { said, remedy, .. } => Finding::warn("probe", said, remedy),
    };
    Ok(Prepared { seed, finding, unreached: None })
}

/// Why the store cannot be used yet; `None` when it can.
fn trouble(answer: &ProbeResult) -> Option<String> {
    match answer {
        Ok(Probe::Warning { said, down: true, .. }) => Some(said.clone()),
        Ok(Probe::Warning { .. } | Probe::Ok) => None,
        Err(error) => Some(error.to_string()),
    }
}

fn may_pass(answer: &ProbeResult) -> bool {
    answer.as_ref().err().is_none_or(ProbeError::may_pass)
}

/// Has a store that was not reached asked until it can be used; what is given back says until then why not.
pub(super) fn watch(unreached: Option<Unreached>, cells: Cells) -> Rc<RefCell<Option<String>>> {
    let reason = Rc::new(RefCell::new(unreached.as_ref().map(Unreached::reason)));
    if let Some(unreached) = unreached {
        rt::spawn(unreached.ask_until_usable(reason.clone(), cells)).detach();
    }
    reason
}

impl Unreached {
    async fn ask_until_usable(mut self, reason: Rc<RefCell<Option<String>>>, cells: Cells) {
        let mut pause = ASK_AGAIN_MIN;
        let warning = loop {
            sleep(pause).await;
            pause = (2 * pause).min(ASK_AGAIN_MAX);
            let answer = self.prober.probe().await;
            let Some(why) = trouble(&answer) else {
                break match answer {
                    Ok(Probe::Warning { said, .. }) => Some(said),
                    _ => None,
                };
            };
            // That it takes payloads is answer enough, whatever it says to a listing.
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
