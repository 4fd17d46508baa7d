//! Opens and maintains this process's spool directory, and takes over the orphaned spools of dead
//! processes beside it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use super::manager::ServiceManager;
use crate::rt;
use crate::rt::sleep;

use crate::config::Config;
use crate::metrics::Cells;
use crate::spool::takeover::instances::{Home, SpoolDirError};
use crate::spool::takeover::offers::{OrphanedSpool, Takeover};
use crate::spool::{DiskThread, SpoolSetup};
use crate::throttle::Throttle;

/// How often this looks for orphaned spools, and whether this process's own directory was removed.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Opens this process's spool directory and takes over orphaned spools, now and every
/// [`UPKEEP_EVERY`]. `None` without a spool. `manager` learns that the first time takes long, if it
/// does.
pub(super) async fn open(
    config: &Config,
    manager: &ServiceManager,
) -> Result<Option<(Arc<Home>, Arc<Takeover>)>, String> {
    let Some(options) = &config.spool else { return Ok(None) };
    let refused = |error: SpoolDirError| format!("SPOOL_DIR {}: {error}", options.dir.display());
    let (dir, node, cores) = (options.dir.clone(), config.node_id.clone(), config.cores.clone());
    let single_objects = config.batch.is_none();
    let open = move || {
        let home = Home::open(&dir, &node, &cores)?;
        Ok(if single_objects { home.with_single_objects() } else { home })
    };
    let home = rt::blocking(open).await.map_err(refused)?;
    let no_thread = |error| format!("a thread for the disk of SPOOL_DIR: {error}");
    let home = Arc::new(home.with_threads().map_err(no_thread)?);
    let orphans = Arc::<Takeover>::default();
    // Not the executor's own blocking thread, because a hanging disk must delay nothing else.
    let thread = DiskThread::spawn("millrace-takeover").map_err(no_thread)?;
    let mut upkeep =
        SpoolUpkeep { home: home.clone(), orphans: orphans.clone(), taken: Vec::new() };
    let outcome;
    // For the first time before any core starts, because what is taken over counts in SPOOL_MAX.
    let first = thread.run(move || Ok(upkeep.run()));
    let (status, read) = ("taking over orphaned spools", || orphans.directories_read());
    (upkeep, outcome) = manager.works(status, read, first).await.map_err(no_thread)?;
    match outcome {
        // Waiting for room loses nothing.
        Err(SpoolDirError::Io { path, source }) if source.kind() == ErrorKind::StorageFull => {
            tracing::error!("{} cannot be taken over now, retrying: {source}", path.display());
        }
        outcome => outcome.map_err(refused)?,
    }
    rt::spawn(async move {
        let mut log = Throttle::default();
        loop {
            sleep(UPKEEP_EVERY).await;
            let outcome;
            (upkeep, outcome) = match thread.run(move || Ok(upkeep.run())).await {
                Ok(done) => done,
                Err(error) => {
                    tracing::error!("orphaned spools are no longer taken over: {error}");
                    return;
                }
            };
            // The cores report a directory that is gone, because they watch their files.
            let is_gone = |error: &SpoolDirError| matches!(error, SpoolDirError::Io { source, .. } if source.kind() == ErrorKind::NotFound);
            if let Err(error) = outcome
                && !is_gone(&error)
            {
                log.error(|| format!("the spool directory cannot be maintained: {error}"));
            }
        }
    })
    .detach();
    Ok(Some((home, orphans)))
}

/// The periodic work on the spool directory.
struct SpoolUpkeep {
    home: Arc<Home>,
    orphans: Arc<Takeover>,
    /// Orphaned spools that were taken over and are not empty yet.
    taken: Vec<Arc<OrphanedSpool>>,
}

impl SpoolUpkeep {
    /// Does it once. Blocks.
    fn run(mut self) -> (SpoolUpkeep, Result<(), SpoolDirError>) {
        let outcome = self.home.restore().and_then(|restored| {
            if restored {
                tracing::warn!(
                    "this process's directory in SPOOL_DIR was removed and has been created again"
                );
            }
            self.home.take_over(&mut self.taken, &self.orphans)
        });
        (self, outcome)
    }
}

/// The spool settings of one core.
pub(super) fn setup(
    config: &Config,
    index: usize,
    cells: Cells,
    home: &Home,
    orphans: &Arc<Takeover>,
) -> SpoolSetup {
    let faults = config.faults.as_ref();
    let options = config.spool.clone().expect("there is a home, so there is a spool");
    SpoolSetup {
        journal_reserve: if config.batch.is_some() { options.journal_reserve() } else { 0 },
        options,
        dir: home.core_dir(config.cores[index]),
        takeover: orphans.clone(),
        cores: config.cores.len(),
        cells: &cells[index],
        keys: config.payload_keys(),
        sync_fault: faults.map_or(0.0, |faults| faults.spool_sync),
        seed: faults.map_or(0, |faults| faults.seed) + index as u64,
        thread: home.thread(index),
    }
}
