//! The spool directory, shared by any number of processes: one locked directory per process, and
//! the orphaned directories of dead processes.
//!
//! ```text
//! SPOOL_DIR/.lock              held briefly while a process starts, ends, or takes over a spool
//! SPOOL_DIR/NODE/lock          held by the process for as long as it lives
//! SPOOL_DIR/NODE/core-3/7.seg  a segment
//! SPOOL_DIR/NODE/core-3/alone  payloads here may be in the store as single objects, even if they
//!                              were spooled for batches
//! SPOOL_DIR/NODE/core-3/8.batches
//!                              a journal of batches, see `batches`; removed with the last segment
//! SPOOL_DIR/NODE~RANDOM/…      an orphaned spool of that node; the process that empties it
//!                              holds its lock
//! SPOOL_DIR/quarantine/        corrupt files
//! ```
//!
//! Everything here blocks: it runs on the control executor's blocking thread, before the executors
//! start, or in a command.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustix::fs::{FlockOperation, flock};

use crate::config::QUARANTINE;
use crate::deadletter::create_dir;
use crate::ownership::give_to_owner_of_directory;
use crate::rt;
use crate::spool::batches::ledger::{is_journal, journals_of};
use crate::spool::disk::DiskThread;

/// Extension of a segment.
pub const SEGMENT: &str = "seg";
/// Prefix of a core directory's name, before its number.
const CORE: &str = "core-";
const LOCK: &str = "lock";
const DIRECTORY_LOCK: &str = ".lock";
/// Marker file in a core directory, see [`mark_single_objects`].
const SINGLE_OBJECTS: &str = "alone";
/// Longest wait for other processes that are starting or ending.
const DIRECTORY_LOCK_MAX: Duration = Duration::from_secs(10);
/// Longest wait for the removal of an empty directory at the end of a process.
const LEAVE_MAX: Duration = Duration::from_millis(500);

/// This process's part of the spool directory.
pub struct Home {
    pub(super) spool_dir: PathBuf,
    pub(super) path: PathBuf,
    cores: Vec<usize>,
    threads: Vec<DiskThread>,
    /// Payloads of orphaned spools are stored as single objects.
    pub(super) single_objects: bool,
    held: ArcSwap<HeldHome>,
}

/// Identifies the directory and lock that this process created, if others appear under the same
/// names.
struct HeldHome {
    directory: (u64, u64),
    lock: File,
}

/// The spool of a dead process, locked by a command.
pub struct LockedSpool {
    path: PathBuf,
    _lock: File,
}

/// Why the spool directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolDirError {
    #[error(
        "the spool of {node} is in use by another process: give each process a NODE_ID of its own"
    )]
    InUse { node: String },
    #[error("another process has locked {} for longer than {DIRECTORY_LOCK_MAX:?}", .0.display())]
    Locked(PathBuf),
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> SpoolDirError {
    let path = path.to_owned();
    |source| SpoolDirError::Io { path, source }
}

impl Home {
    /// Creates this process's directory, with a subdirectory for each of `cores`. An orphaned
    /// directory of the same name is renamed and taken over like any other.
    pub fn open(spool_dir: &Path, node: &str, cores: &[usize]) -> Result<Home, SpoolDirError> {
        create_dir(spool_dir).map_err(at(spool_dir))?;
        let _held = lock_directory(spool_dir)?;
        let path = spool_dir.join(node);
        let held = ArcSwap::from_pointee(make_home(spool_dir, &path, cores)?);
        let (spool_dir, cores) = (spool_dir.to_owned(), cores.to_vec());
        Ok(Home { spool_dir, path, cores, threads: Vec::new(), single_objects: false, held })
    }

    /// Recreates this process's directory, or missing parts of it, if it was removed while
    /// `SPOOL_DIR` exists. Returns whether it did. Lost contents are not restored. `SPOOL_DIR`
    /// itself is not created: a disk may have to be mounted there. The control thread calls this
    /// every 5 seconds.
    ///
    /// # Errors
    /// It cannot be created, or another process has taken the name.
    pub fn restore(&self) -> Result<bool, SpoolDirError> {
        if !self.spool_dir.is_dir() || self.is_whole() {
            return Ok(false);
        }
        let _held = lock_directory(&self.spool_dir)?;
        // Segments in a directory that is still ours are in use, so only missing parts are created.
        let held = match (self.has_directory(), self.has_lock()) {
            (true, true) => {
                make_dirs(&self.spool_dir, &self.path, &self.cores).map_err(at(&self.path))?;
                return Ok(true);
            }
            (true, false) => fill_home(&self.spool_dir, &self.path, &self.cores)?,
            (false, _) => make_home(&self.spool_dir, &self.path, &self.cores)?,
        };
        self.held.store(Arc::new(held));
        Ok(true)
    }

    fn is_whole(&self) -> bool {
        let has_cores = || self.cores.iter().all(|core| self.core_dir(*core).is_dir());
        self.has_directory() && self.has_lock() && has_cores()
    }

    /// Whether its name still refers to the directory that this process created.
    fn has_directory(&self) -> bool {
        identity(&self.path) == Some(self.held.load().directory)
    }

    fn has_lock(&self) -> bool {
        let lock = self.held.load().lock.metadata().ok();
        let lock = lock.map(|lock| (lock.dev(), lock.ino()));
        lock.is_some() && identity(&self.path.join(LOCK)) == lock
    }

    /// Starts a thread for the disk of each core's spool.
    ///
    /// # Errors
    /// The system cannot start so many threads.
    pub fn with_threads(self) -> io::Result<Home> {
        let name = |core: &usize| format!("millrace-disk-{core}");
        let threads: io::Result<_> =
            self.cores.iter().map(|core| DiskThread::spawn(&name(core))).collect();
        Ok(Home { threads: threads?, ..self })
    }

    /// The disk thread of the core at this position.
    ///
    /// # Panics
    /// [`with_threads`](Home::with_threads) was not called.
    pub fn thread(&self, index: usize) -> DiskThread {
        self.threads[index].clone()
    }

    /// Makes a takeover store payloads as single objects, because this process does not batch.
    pub fn with_single_objects(self) -> Home {
        Home { single_objects: true, ..self }
    }

    pub fn core_dir(&self, core: usize) -> PathBuf {
        core_dir(&self.path, core)
    }

    /// Removes the directory if it is empty. Waits at most half a second: a disk that hangs must
    /// not keep the process from ending.
    pub fn leave(&self) {
        let (spool_dir, path) = (self.spool_dir.clone(), self.path.clone());
        let (done, ended) = sync_channel(1);
        let leave = move || {
            if let Ok(_held) = lock_directory(&spool_dir) {
                remove_empty(&path);
            }
            let _caller_may_have_timed_out = done.send(());
        };
        if std::thread::Builder::new().name("millrace-leave".into()).spawn(leave).is_ok() {
            let _in_time_or_not = ended.recv_timeout(LEAVE_MAX);
        }
    }
}

/// Creates the directory at `path`. An orphaned one of that name is renamed. The caller holds the
/// lock of the spool directory.
fn make_home(spool_dir: &Path, path: &Path, cores: &[usize]) -> Result<HeldHome, SpoolDirError> {
    if path.is_dir() {
        if try_lock(path).map_err(at(path))?.is_none() {
            let node = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(SpoolDirError::InUse { node });
        }
        rename_orphan(path).map_err(at(path))?;
    }
    fill_home(spool_dir, path, cores)
}

/// Creates the missing parts of the directory at `path`, which no other process has, and locks it.
fn fill_home(spool_dir: &Path, path: &Path, cores: &[usize]) -> Result<HeldHome, SpoolDirError> {
    let made = make_dirs(spool_dir, path, cores).and_then(|()| {
        let directory = identity(path).ok_or(io::ErrorKind::NotFound)?;
        Ok((directory, try_lock(path)?))
    });
    let (directory, lock) = made.map_err(at(path))?;
    match lock {
        Some(lock) => Ok(HeldHome { directory, lock }),
        None => {
            let node = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Err(SpoolDirError::InUse { node })
        }
    }
}

fn make_dirs(spool_dir: &Path, path: &Path, cores: &[usize]) -> io::Result<()> {
    create_dir(path)?;
    cores.iter().try_for_each(|core| create_dir(&core_dir(path, *core)))?;
    sync_dir(path)?;
    sync_dir(spool_dir)
}

/// Device and inode that `path` refers to.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Renames the directory of a dead process to a name that no process uses. Returns the new path.
#[expect(clippy::disallowed_methods, reason = "see the module")]
pub(super) fn rename_orphan(instance: &Path) -> io::Result<PathBuf> {
    let name = instance.file_name().expect("below the spool directory").to_string_lossy();
    if name.contains('~') {
        return Ok(instance.to_owned());
    }
    let aside = instance.with_file_name(format!("{name}~{:016x}", rt::random()));
    fs::rename(instance, &aside)?;
    Ok(aside)
}

fn core_dir(instance: &Path, core: usize) -> PathBuf {
    instance.join(format!("{CORE}{core}"))
}

impl LockedSpool {
    /// Locks a spool; `None` if its process is running or another process has taken it over.
    pub fn take(instance: &Path) -> Result<Option<LockedSpool>, SpoolDirError> {
        // A process of that name that starts now must not mistake this lock for a running
        // process's.
        let _held = lock_directory(instance.parent().unwrap_or(Path::new("/")))?;
        let lock = try_lock(instance).map_err(at(instance))?;
        Ok(lock.map(|lock| LockedSpool { path: instance.to_owned(), _lock: lock }))
    }

    /// Removes the directory if it is empty.
    pub fn leave(self) {
        let Some(spool_dir) = self.path.parent() else { return };
        let Ok(_held) = lock_directory(spool_dir) else { return };
        remove_empty(&self.path);
    }
}

/// Whether `path` is the directory of a process, dead or alive. An operator may name any directory.
#[expect(clippy::disallowed_methods, reason = "see the module")]
pub fn is_instance(path: &Path) -> bool {
    let is_core = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(CORE));
            number.is_some_and(|number| number.parse::<usize>().is_ok()) && entry.path().is_dir()
        })
    };
    path.join(LOCK).is_file() || fs::read_dir(path).is_ok_and(|mut found| found.any(is_core))
}

/// Absolute paths of the processes' directories that `dir` stands for: all in a spool directory, or
/// `dir` itself. `None`: it is neither.
pub fn instances_in(dir: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    let dir = dir.canonicalize()?;
    if is_instance(&dir) {
        return Ok(Some(vec![dir]));
    }
    let mut found = instances(&dir)?;
    found.retain(|path| is_instance(path));
    Ok((!found.is_empty() || dir.join(DIRECTORY_LOCK).is_file()).then_some(found))
}

/// Files in the quarantine of a spool directory.
#[expect(clippy::disallowed_methods, reason = "see the module")]
pub fn quarantined(spool_dir: &Path) -> usize {
    fs::read_dir(spool_dir.join(QUARANTINE)).map_or(0, Iterator::count)
}

/// The directories of all processes, dead or alive.
#[expect(clippy::disallowed_methods, reason = "see the module")]
pub fn instances(spool_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(spool_dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name() != QUARANTINE {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The segments of a process with their sizes, core by core, oldest first. Other files count as
/// segments.
pub fn segments_of(instance: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for core_dir in core_dirs(instance)? {
        found.append(&mut files_of(&core_dir)?);
    }
    Ok(found)
}

/// The directories of a process's cores.
#[expect(clippy::disallowed_methods, reason = "see the module")]
pub fn core_dirs(instance: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(instance)? {
        let core = entry?.path();
        if core.is_dir() {
            found.push(core);
        }
    }
    found.sort();
    Ok(found)
}

/// The files of one core except its journals, with their sizes, oldest first. Foreign files are
/// included: reading them shows what they are.
#[expect(clippy::disallowed_methods, reason = "see the module")]
pub fn files_of(core_dir: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(core_dir)? {
        let entry = entry?;
        let path = entry.path();
        if is_journal(&path) || entry.file_name() == SINGLE_OBJECTS {
            continue;
        }
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        found.push((number.unwrap_or(u64::MAX), path, entry.metadata()?.len()));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path, bytes)| (path, bytes)).collect())
}

/// Records durably that payloads in `core_dir` are stored as single objects from now on. A later
/// process must not batch them, because they may be in the store under keys of their own.
pub fn mark_single_objects(core_dir: &Path) -> io::Result<()> {
    match create_private(&core_dir.join(SINGLE_OBJECTS)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => {
            made?;
            sync_dir(core_dir)
        }
    }
}

/// Whether [`mark_single_objects`] was called for it.
pub(super) fn is_marked_single_objects(core_dir: &Path) -> bool {
    core_dir.join(SINGLE_OBJECTS).exists()
}

/// Locks one process's directory; `None` while that process runs.
pub fn try_lock(instance: &Path) -> io::Result<Option<File>> {
    let file = open_lock(&instance.join(LOCK))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[expect(clippy::disallowed_methods, reason = "see the module")]
fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true);
    // A command of root must not keep the server, another user, from its lock.
    match create_private(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
        made => return made,
    }
    match options.open(path) {
        // Its contents can still be read, for example if a failed disk is mounted read-only.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(path),
        opened => opened,
    }
}

/// Locks the spool directory until the result is dropped.
#[expect(clippy::disallowed_methods, reason = "see the module")]
pub(super) fn lock_directory(spool_dir: &Path) -> Result<File, SpoolDirError> {
    let file = open_lock(&spool_dir.join(DIRECTORY_LOCK)).map_err(at(spool_dir))?;
    let started = rt::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if rt::since(started) < DIRECTORY_LOCK_MAX => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(SpoolDirError::Locked(spool_dir.to_owned()));
            }
            Err(error) => return Err(at(spool_dir)(error.into())),
        }
    }
}

/// Removes an instance's directory if it holds only its lock and journals: without segments,
/// journals mean nothing.
#[expect(clippy::disallowed_methods, reason = "see the module")]
pub(super) fn remove_empty(instance: &Path) {
    let Ok(entries) = fs::read_dir(instance) else { return };
    let mut empty = true;
    for entry in entries.flatten() {
        empty &= entry.file_name() == LOCK || remove_empty_core(&entry.path());
    }
    if empty {
        let _may_hold_foreign_files = fs::remove_file(instance.join(LOCK));
        let _likewise = fs::remove_dir(instance);
    }
}

fn remove_empty_core(core_dir: &Path) -> bool {
    if files_of(core_dir).is_ok_and(|files| files.is_empty()) {
        for journal in journals_of(core_dir).unwrap_or_default() {
            let _remove_dir_fails_then = remove(&journal);
        }
        let _mostly_absent = remove(&core_dir.join(SINGLE_OBJECTS));
    }
    fs::remove_dir(core_dir).is_ok()
}

/// Creates a file that only its owner can read. One that root makes is the directory's owner's.
pub(in crate::spool) fn create_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    give_to_owner_of_directory(&file, path)?;
    Ok(file)
}

/// Makes creations and renames in `directory` durable.
#[expect(clippy::disallowed_methods, reason = "see the module")]
pub fn sync_dir(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Removes a file.
#[expect(clippy::disallowed_methods, reason = "see the module")]
pub fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}

/// The path of a corrupt file in the quarantine; its name shows where it was.
fn quarantine(path: &Path) -> PathBuf {
    let parts: Vec<_> = path.ancestors().take(3).filter_map(Path::file_name).collect();
    let name: Vec<_> = parts.iter().rev().map(|part| part.to_string_lossy()).collect();
    let spool_dir = path.ancestors().nth(3).unwrap_or(Path::new(""));
    spool_dir.join(QUARANTINE).join(name.join("_"))
}

/// Moves a corrupt file to the quarantine.
#[expect(clippy::disallowed_methods, reason = "see the module")]
pub fn move_to_quarantine(path: &Path) -> io::Result<()> {
    let to = quarantine(path);
    if let Some(directory) = to.parent() {
        create_dir(directory)?;
    }
    fs::rename(path, &to)?;
    tracing::warn!("{} was moved to quarantine as {}", path.display(), to.display());
    Ok(())
}
