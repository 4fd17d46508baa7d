//! This process's spool directory, and what processes that are no more have left beside it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use crate::rt;
use crate::rt::sleep;

use crate::config::Config;
use crate::metrics::Cells;
use crate::spool::takeover::instances::{Home, SpoolDirError};
use crate::spool::takeover::offers::{OrphanedSpool, Takeover};
use crate::spool::{DiskThread, SpoolSetup};
use crate::throttle::Throttle;

/// How often this looks for spools of dead processes, and whether this process's own directory was
/// removed.
const ADOPT_EVERY: Duration = Duration::from_secs(5);

/// This process's spool directory, and what others have left, which is looked for again and again.
pub(super) async fn open(config: &Config) -> Result<Option<(Arc<Home>, Arc<Takeover>)>, String> {
    let Some(options) = &config.spool else { return Ok(None) };
    let refused = |error: SpoolDirError| format!("SPOOL_DIR {}: {error}", options.dir.display());
    let (dir, node, cores) = (options.dir.clone(), config.node_id.clone(), config.cores.clone());
    let puts_alone = config.batch.is_none();
    let open = move || {
        let home = Home::open(&dir, &node, &cores)?;
        Ok(if puts_alone { home.with_single_objects() } else { home })
    };
    let home = rt::blocking(open).await.map_err(refused)?;
    let no_thread = |error| format!("a thread for the disk of SPOOL_DIR: {error}");
    let home = Arc::new(home.with_threads().map_err(no_thread)?);
    let orphans = Arc::<Takeover>::default();
    // Not the executor's own blocking thread: a disk that hangs must hold up nothing else.
    let thread = DiskThread::spawn("millrace-adopt").map_err(no_thread)?;
    let mut keeping =
        SpoolUpkeep { home: home.clone(), orphans: orphans.clone(), taken: Vec::new() };
    let kept;
    // The first time before any core starts: what is adopted counts in SPOOL_MAX.
    (keeping, kept) = thread.run(move || Ok(keeping.keep())).await.map_err(no_thread)?;
    match kept {
        // Nothing is lost by waiting for room.
        Err(SpoolDirError::Io { path, source }) if source.kind() == ErrorKind::StorageFull => {
            tracing::error!("{} cannot be adopted now, tried again: {source}", path.display());
        }
        kept => kept.map_err(refused)?,
    }
    rt::spawn(async move {
        let mut log = Throttle::default();
        loop {
            sleep(ADOPT_EVERY).await;
            let kept;
            (keeping, kept) = match thread.run(move || Ok(keeping.keep())).await {
                Ok(kept) => kept,
                Err(error) => {
                    tracing::error!("spools of other processes are not adopted any more: {error}");
                    return;
                }
            };
            // A directory that is gone is the cores' to report: they watch their files.
            let is_gone = |error: &SpoolDirError| matches!(error, SpoolDirError::Io { source, .. } if source.kind() == ErrorKind::NotFound);
            if let Err(error) = kept
                && !is_gone(&error)
            {
                log.error(|| format!("the spool directory cannot be kept: {error}"));
            }
        }
    })
    .detach();
    Ok(Some((home, orphans)))
}

/// What is done on the spool directory now and then. Blocks.
struct SpoolUpkeep {
    home: Arc<Home>,
    orphans: Arc<Takeover>,
    /// Spools of other processes that are not emptied yet.
    taken: Vec<Arc<OrphanedSpool>>,
}

impl SpoolUpkeep {
    fn keep(mut self) -> (SpoolUpkeep, Result<(), SpoolDirError>) {
        let kept = self.home.restore().and_then(|restored| {
            if restored {
                tracing::warn!(
                    "this process's directory in SPOOL_DIR was removed, and is made again"
                );
            }
            self.home.take_over(&mut self.taken, &self.orphans)
        });
        (self, kept)
    }
}

pub(super) fn setup(
    config: &Config,
    index: usize,
    cells: Cells,
    home: &Home,
    orphans: &Arc<Takeover>,
) -> SpoolSetup {
    let faults = config.faults.as_ref();
    SpoolSetup {
        options: config.spool.clone().expect("there is a home, so there is a spool"),
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
