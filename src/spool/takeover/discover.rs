//! Finds orphaned spools and takes them over, on a blocking thread of the control executor.
//! Everything that depends on their journals is decided here; the cores only get segments and
//! batches.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::instances::{
    Home, SpoolDirError, at, core_dirs, files_of, instances, is_instance, is_marked_single_objects,
    lock_directory, mark_single_objects, remove_empty, rename_orphan, segments_of, try_lock,
};
use super::offers::{OfferedSegment, OrphanedCore, OrphanedSpool, ReplayCounts, Takeover};
use crate::spool::batches::ledger::Ledger;
use crate::spool::format::scan::ScanStep;
use crate::spool::offline::SegmentFile;

impl Home {
    /// Takes over orphaned spools unless the cores still have segments to take. `taken` lists the
    /// spools whose segments are not all finished.
    ///
    /// # Errors
    /// A spool that cannot be taken over stays unchanged until the next call.
    pub fn take_over(
        &self,
        taken: &mut Vec<Arc<OrphanedSpool>>,
        orphans: &Takeover,
    ) -> Result<(), SpoolDirError> {
        taken.retain(|left| !left.is_finished());
        // Other processes may be idle and can take the rest. Segments that wait for a batch in
        // doubt do not count, because the cores cannot take them yet.
        if orphans.has_ready() {
            return Ok(());
        }
        let others = instances(&self.spool_dir).map_err(at(&self.spool_dir))?;
        // Skips other directories, such as a mount point's `lost+found`.
        let others = others.into_iter().filter(|path| *path != self.path && is_instance(path));
        let new: Vec<PathBuf> =
            others.filter(|path| taken.iter().all(|left| left.path != *path)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let _held = lock_directory(&self.spool_dir)?;
        let mut outcome = Ok(());
        for path in new {
            match take_over_spool(&path, self.single_objects, orphans) {
                Ok(None) => {}
                Ok(Some(ClaimedSpool { left, cores, segments, bytes })) => {
                    taken.push(left);
                    orphans.offer(segments, &cores, bytes);
                }
                Err(error) => outcome = Err(at(&path)(error)),
            }
        }
        outcome
    }
}

/// An orphaned spool that was taken over.
struct ClaimedSpool {
    left: Arc<OrphanedSpool>,
    cores: Vec<Arc<OrphanedCore>>,
    segments: Vec<OfferedSegment>,
    bytes: u64,
}

/// `None`: the directory was removed, its process is running, or it is empty.
fn take_over_spool(
    path: &Path,
    single_objects: bool,
    orphans: &Takeover,
) -> io::Result<Option<ClaimedSpool>> {
    let Some(lock) = try_lock(path).ok().flatten() else { return Ok(None) };
    if segments_of(path)?.is_empty() {
        remove_empty(path);
        return Ok(None);
    }
    // Renamed because a process of that name may start again before this directory is empty.
    let path = rename_orphan(path)?;
    let mut found = Vec::new();
    let (mut journal_bytes, mut in_doubt) = (0, 0);
    let replayed = Arc::<ReplayCounts>::default();
    for core_dir in core_dirs(&path)? {
        if single_objects {
            // Must be durable before the first payload is stored.
            mark_single_objects(&core_dir)?;
        }
        let core = read_core(&core_dir, &replayed, &mut journal_bytes)?;
        in_doubt += core.in_doubt.len();
        orphans.count_read();
        for (path, bytes) in files_of(&core_dir)? {
            found.push((core.clone(), path, bytes));
        }
    }
    let bytes = journal_bytes + found.iter().map(|(.., bytes)| bytes).sum::<u64>();
    tracing::info!(
        segments = found.len(),
        batches_in_doubt = in_doubt,
        bytes,
        "took over the spool of {}",
        path.display()
    );
    let segments = AtomicUsize::new(found.len());
    let left = Arc::new(OrphanedSpool { path, _lock: lock, segments, journal_bytes, replayed });
    let mut cores: Vec<Arc<OrphanedCore>> = found.iter().map(|(core, ..)| core.clone()).collect();
    cores.dedup_by(|a, b| Arc::ptr_eq(a, b));
    let offered = found.into_iter().map(|(core, path, bytes)| OfferedSegment {
        left: left.clone(),
        core,
        path,
        bytes,
        taken: AtomicBool::new(false),
    });
    let segments = offered.collect();
    Ok(Some(ClaimedSpool { left, cores, segments, bytes }))
}

/// Reads the journals in `core_dir` and consolidates them durably in one file.
fn read_core(
    core_dir: &Path,
    replayed: &Arc<ReplayCounts>,
    journal_bytes: &mut u64,
) -> io::Result<Arc<OrphanedCore>> {
    let mut ledger = Ledger::read(core_dir)?;
    ledger.consolidate(core_dir)?;
    *journal_bytes += ledger.files().iter().map(|file| file.bytes).sum::<u64>();
    let in_doubt: Vec<_> =
        ledger.in_doubt().map(|(key, batch)| (key.to_owned(), batch.clone())).collect();
    let segments = if in_doubt.is_empty() { HashMap::new() } else { generations_in(core_dir)? };
    Ok(Arc::new(OrphanedCore {
        path: core_dir.to_owned(),
        replayed: replayed.clone(),
        is_single_objects: is_marked_single_objects(core_dir),
        open: AtomicUsize::new(in_doubt.len()),
        in_doubt,
        members: ledger.members(),
        segments,
    }))
}

/// The segments in a core directory, by the ids of their generations.
pub fn generations_in(core_dir: &Path) -> io::Result<HashMap<u64, PathBuf>> {
    let mut found = HashMap::new();
    for (path, _) in files_of(core_dir)?.into_iter().filter(|(path, _)| path.is_file()) {
        let mut file = SegmentFile::open(&path)?;
        // Without a checkpoint, the first intact group has the id.
        while file.id() == 0 {
            if let ScanStep::Group(..) | ScanStep::End(_) = file.find_next()? {
                break;
            }
        }
        found.insert(file.id(), path);
    }
    Ok(found)
}
