//! This process's spool directory, and what processes that are no more have left beside it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use glommio::timer::sleep;

use crate::config::Config;
use crate::log::Throttle;
use crate::metrics::Cells;
use crate::spool::SpoolSetup;
use crate::spool::instances::{Home, Left, Orphans, SpoolDirError};

/// How often it is looked for spools of processes that are no more.
const ADOPT_EVERY: Duration = Duration::from_secs(5);

/// This process's spool directory, and what others have left, which is looked for again and again.
pub(super) async fn open(config: &Config) -> Result<Option<(Arc<Home>, Arc<Orphans>)>, String> {
    let Some(options) = &config.spool else { return Ok(None) };
    let refused = |error: SpoolDirError| format!("SPOOL_DIR {}: {error}", options.dir.display());
    let (dir, node, cores) = (options.dir.clone(), config.node_id.clone(), config.cores.clone());
    let puts_alone = config.batch.is_none();
    let open = move || {
        let home = Home::open(&dir, &node, &cores)?;
        Ok(if puts_alone { home.putting_alone() } else { home })
    };
    let home = Arc::new(glommio::executor().spawn_blocking(open).await.map_err(refused)?);
    let orphans = Arc::<Orphans>::default();
    let mut taken = Vec::new();
    let adopt = {
        let (home, orphans) = (home.clone(), orphans.clone());
        async move |mut taken: Vec<Arc<Left>>| {
            let (home, orphans) = (home.clone(), orphans.clone());
            let adopt = move || {
                let adopted = home.adopt(&mut taken, &orphans);
                (taken, adopted)
            };
            glommio::executor().spawn_blocking(adopt).await
        }
    };
    let adopted;
    // The first time before any core starts: what is adopted counts in SPOOL_MAX.
    (taken, adopted) = adopt(taken).await;
    match adopted {
        // Nothing is lost by waiting for room.
        Err(SpoolDirError::Io { path, source }) if source.kind() == ErrorKind::StorageFull => {
            tracing::error!("{} cannot be adopted now, tried again: {source}", path.display());
        }
        adopted => adopted.map_err(refused)?,
    }
    glommio::spawn_local(async move {
        let mut log = Throttle::default();
        loop {
            sleep(ADOPT_EVERY).await;
            let adopted;
            (taken, adopted) = adopt(taken).await;
            if let Err(error) = adopted {
                log.warn(|| format!("spools of other processes cannot be adopted: {error}"));
            }
        }
    })
    .detach();
    Ok(Some((home, orphans)))
}

pub(super) fn setup(
    config: &Config,
    index: usize,
    cells: Cells,
    home: &Home,
    orphans: &Arc<Orphans>,
) -> SpoolSetup {
    let faults = config.faults.as_ref();
    SpoolSetup {
        options: config.spool.clone().expect("there is a home, so there is a spool"),
        dir: home.core_dir(config.cores[index]),
        orphans: orphans.clone(),
        cores: config.cores.len(),
        cells: &cells[index],
        keys: config.payload_keys(),
        sync_fault: faults.map_or(0.0, |faults| faults.spool_sync),
        seed: faults.map_or(0, |faults| faults.seed) + index as u64,
    }
}
