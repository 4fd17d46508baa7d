//! Whether one core's spool can acknowledge requests, and if not, why: for the log, `/readyz`,
//! metrics and refusals.
//!
//! The log gets one ERROR when the state changes, a reminder every [`REMIND_EVERY`], and an INFO
//! when the spool works again. A flapping state is logged at most every [`LOG_EVERY`].
//!
//! A disk that hangs returns no error, so operations in flight are watched: one that takes longer
//! than [`STALL_AFTER`] marks the disk as stalled. Requests still wait for a stalled disk, up to
//! `ACK_TIMEOUT` and `SPOOL_PENDING`.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::metrics::CoreCells;
use crate::rt;
use crate::sync::Waiters;

/// Longest time that one operation takes on a working disk.
pub(super) const STALL_AFTER: Duration = Duration::from_secs(5);
/// How often operations in flight are checked.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time between two log lines about a state that continues.
const REMIND_EVERY: Duration = Duration::from_secs(60);
/// Time between two log lines about new states.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Why the disk refused a write, as an errno; its text includes the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskError(i32);

impl DiskError {
    pub fn of(error: &io::Error) -> DiskError {
        DiskError(error.raw_os_error().unwrap_or(libc::EIO))
    }

    fn remedy(self) -> &'static str {
        match self.0 {
            libc::ENOSPC => "free space on the file system of SPOOL_DIR",
            libc::EDQUOT => "raise the disk quota that SPOOL_DIR is charged to",
            libc::EFBIG => "raise the file size limit (ulimit -f, LimitFSIZE) above SPOOL_SEGMENT",
            libc::EROFS => "mount the file system of SPOOL_DIR for writing",
            libc::ENOENT | libc::ENOTDIR => {
                "SPOOL_DIR or something in it was removed: create SPOOL_DIR again; the server creates the rest within 5 s"
            }
            libc::EMFILE => "raise the limit on open files (ulimit -n, LimitNOFILE)",
            libc::ENFILE => "raise the system's limit on open files (fs.file-max)",
            libc::EACCES | libc::EPERM => {
                "give the server's user read and write access to SPOOL_DIR"
            }
            _ => "check the disk of SPOOL_DIR; the kernel's log may log more",
        }
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", io::Error::from_raw_os_error(self.0), self.remedy())
    }
}

/// Why the spool of the core with these `cells` cannot acknowledge requests now, for `/readyz`.
pub fn not_ready(cells: &CoreCells) -> Option<String> {
    let stalled = cells.spool_stalled_s.value();
    if stalled > 0 {
        return Some(format!("the spool's disk has not answered for {stalled} s"));
    }
    match i32::try_from(cells.spool_errno.value()) {
        Ok(errno) if errno != 0 => {
            return Some(format!("the spool cannot be written: {}", DiskError(errno)));
        }
        _ => {}
    }
    let text = match () {
        () if cells.spool_full.value() != 0 => "the spool is full: SPOOL_MAX is used up",
        () if cells.spool_preparing.value() != 0 => "the spool is being prepared",
        () => return None,
    };
    Some(text.to_owned())
}

/// The health of one core's spool.
pub(super) struct DiskHealth {
    cells: &'static CoreCells,
    /// Directory of this core's segments.
    dir: PathBuf,
    outage: RefCell<Option<Outage>>,
    stall: RefCell<Option<Outage>>,
    /// When each operation in flight began.
    operations: RefCell<Slab<Instant>>,
    /// Requests refused since the outage began.
    refused: Cell<u64>,
    last_logged: Cell<Option<Instant>>,
    /// Tasks that wait until the disk stalls.
    waiters: Waiters,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OutageKind {
    /// `SPOOL_MAX` is used up.
    Full,
    Failing(DiskError),
    Stalled,
}

struct Outage {
    kind: OutageKind,
    text: String,
    since: Instant,
    /// When it was last logged; `None`: not yet.
    logged: Option<Instant>,
    /// It was logged, or the outage that it replaced was.
    is_known: bool,
}

/// A disk operation in flight.
pub(super) struct Operation<'a> {
    health: &'a DiskHealth,
    number: usize,
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.health.operations.borrow_mut().remove(self.number);
    }
}

impl DiskHealth {
    /// Creates the health of a spool that has no segment yet.
    pub(super) fn new(cells: &'static CoreCells, dir: PathBuf) -> DiskHealth {
        cells.spool_preparing.set(1);
        DiskHealth {
            cells,
            dir,
            outage: RefCell::default(),
            stall: RefCell::default(),
            operations: RefCell::default(),
            refused: Cell::default(),
            last_logged: Cell::default(),
            waiters: Waiters::default(),
        }
    }

    /// Records that an operation begins; it ends when the result is dropped.
    pub(super) fn begin(&self) -> Operation<'_> {
        let number = self.operations.borrow_mut().insert(rt::now());
        Operation { health: self, number }
    }

    /// Whether the last write failed and none has succeeded since.
    pub(super) fn is_failing(&self) -> bool {
        self.failure().is_some()
    }

    pub(super) fn failure(&self) -> Option<DiskError> {
        match self.outage.borrow().as_ref()?.kind {
            OutageKind::Failing(error) => Some(error),
            OutageKind::Full | OutageKind::Stalled => None,
        }
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stall.borrow().is_some()
    }

    /// Returns as soon as the disk is stalled.
    pub(super) async fn stalled(&self) {
        self.waiters.until(|| self.is_stalled()).await;
    }

    /// Records that the disk refused an operation at `path`.
    pub(super) fn failed(&self, path: &Path, error: &io::Error) -> DiskError {
        let why = DiskError::of(error);
        self.cells.spool_errno.set(why.0 as u64);
        let remedy = why.remedy();
        self.begin_outage(OutageKind::Failing(why), || {
            format!(
                "the spool cannot be written: {}: {error}; spooled requests get 503, and the disk is \
                 tried again every SPOOL_CHECKPOINT: {remedy}",
                path.display()
            )
        });
        why
    }

    /// `SPOOL_MAX` is used up.
    pub(super) fn full(&self) {
        if self.is_failing() {
            return;
        }
        self.cells.spool_full.set(1);
        self.begin_outage(OutageKind::Full, || {
            format!(
                "the spool is full: {}: payloads that are not stored use up SPOOL_MAX; spooled \
                 requests get 503 until the store has taken some: check the store, or raise SPOOL_MAX",
                self.dir.display()
            )
        });
    }

    fn begin_outage(&self, kind: OutageKind, text: impl FnOnce() -> String) {
        let mut outage = self.outage.borrow_mut();
        if outage.as_ref().is_some_and(|known| known.kind == kind) {
            return;
        }
        // A failure that turns into another is still one outage.
        let before = outage.as_ref();
        let since = before.map_or_else(rt::now, |known| known.since);
        let is_known = before.is_some_and(|known| known.is_known);
        let new = outage.insert(Outage { kind, text: text(), since, logged: None, is_known });
        self.log(new, rt::now());
    }

    /// Logs a new state unless another was logged a moment ago, and repeats an old one as a
    /// reminder.
    fn log(&self, outage: &mut Outage, now: Instant) {
        let due = match outage.logged {
            None => self.last_logged.get().is_none_or(|last| now - last >= LOG_EVERY),
            Some(logged) => now - logged >= REMIND_EVERY,
        };
        if !due {
            return;
        }
        let (for_s, refused) = ((now - outage.since).as_secs(), self.refused.get());
        tracing::error!(for_s, refused, "{}", outage.text);
        outage.logged = Some(now);
        outage.is_known = true;
        self.last_logged.set(Some(now));
    }

    /// Counts a request that was refused.
    pub(super) fn refused(&self) {
        self.refused.set(self.refused.get() + 1);
    }

    /// Records that the disk accepts writes again.
    pub(super) fn works(&self) {
        self.recovered("the spool can be written again");
        self.cells.spool_errno.set(0);
    }

    /// Records that there is room for the next request.
    pub(super) fn has_room(&self) {
        self.cells.spool_preparing.set(0);
        if self.cells.spool_full.value() != 0 && !self.is_failing() {
            self.recovered("the spool has room again");
            self.cells.spool_full.set(0);
        }
    }

    fn recovered(&self, what: &str) {
        let Some(Outage { since, is_known, .. }) = self.outage.take() else { return };
        let (after_s, refused) = (rt::since(since).as_secs(), self.refused.take());
        // An outage that was never logged has no end to log.
        if is_known {
            tracing::info!(after_s, refused, "{what}: {}", self.dir.display());
        }
    }

    /// Checks the operations in flight and logs what is due; must be called every [`LOOK_EVERY`].
    pub(super) fn look(&self, now: Instant) {
        let oldest = self.operations.borrow().iter().map(|(_, since)| *since).min();
        let age = oldest.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let mut stall = self.stall.borrow_mut();
        if age < STALL_AFTER {
            if let Some(Outage { since, is_known: true, .. }) = stall.take() {
                let (after_s, dir) = ((now - since).as_secs(), self.dir.display());
                tracing::info!(after_s, "the spool's disk answers again: {dir}");
            }
            self.cells.spool_stalled_s.set(0);
        } else {
            self.cells.spool_stalled_s.set(age.as_secs());
            let stalled = stall.get_or_insert_with(|| {
                let dir = self.dir.display();
                let text = format!(
                    "the spool's disk does not answer: {dir}: an operation has been in flight for \
                     longer than {STALL_AFTER:?}; spooled requests wait up to ACK_TIMEOUT: check the disk of \
                     SPOOL_DIR"
                );
                let since = now - age;
                Outage { kind: OutageKind::Stalled, text, since, logged: None, is_known: false }
            });
            self.log(stalled, now);
            drop(stall);
            self.waiters.wake_all();
        }
        if let Some(outage) = &mut *self.outage.borrow_mut() {
            self.log(outage, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> DiskHealth {
        DiskHealth::new(&crate::metrics::cells(1)[0], "spool/n/core-0".into())
    }

    fn logged(health: &DiskHealth) -> bool {
        health.outage.borrow().as_ref().is_some_and(|outage| outage.logged.is_some())
    }

    #[test]
    fn every_errno_has_a_text_and_a_remedy() {
        for (errno, text, remedy) in [
            (libc::ENOSPC, "No space left", "free space"),
            (libc::EDQUOT, "quota", "quota"),
            (libc::EFBIG, "too large", "LimitFSIZE"),
            (libc::EROFS, "Read-only", "for writing"),
            (libc::ENOENT, "No such file", "create SPOOL_DIR again"),
            (libc::EMFILE, "Too many open files", "LimitNOFILE"),
            (libc::EACCES, "denied", "access"),
            (libc::EIO, "error (os error 5)", "kernel's log"),
        ] {
            let logged = DiskError::of(&io::Error::from_raw_os_error(errno)).to_string();
            assert!(logged.contains(text) && logged.contains(remedy), "{logged}");
        }
        let other = DiskError::of(&io::Error::other("FAULTS=spool_sync"));
        assert_eq!(other, DiskError(libc::EIO), "an error without errno is an I/O error");
    }

    #[test]
    fn a_state_is_logged_once_with_reminders() {
        let health = health();
        let now = Instant::now();
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        health.failed(Path::new("a"), &full);
        let first = health.outage.borrow().as_ref().unwrap().logged.unwrap();
        let said_at = || health.outage.borrow().as_ref().unwrap().logged.unwrap();
        health.failed(Path::new("a"), &full);
        health.look(now + REMIND_EVERY / 2);
        assert_eq!(said_at(), first, "not again");
        health.look(first + REMIND_EVERY);
        assert_eq!(said_at(), first + REMIND_EVERY, "a reminder");
        assert!(health.is_failing());
        health.works();
        assert!(!health.is_failing() && not_ready(health.cells).is_some(), "still no room");
        health.has_room();
        assert_eq!(not_ready(health.cells), None);
    }

    #[test]
    fn a_flapping_state_is_logged_less_often() {
        let health = health();
        let error = io::Error::from_raw_os_error(libc::EIO);
        health.failed(Path::new("a"), &error);
        assert!(logged(&health));
        health.works();
        health.failed(Path::new("a"), &error);
        assert!(!logged(&health), "a moment after the first");
        health.look(Instant::now() + LOG_EVERY);
        assert!(logged(&health), "it continues, so it is logged");
    }

    #[test]
    fn an_outage_whose_reason_changes_ends_once() {
        let health = health();
        health.failed(Path::new("a"), &io::Error::from_raw_os_error(libc::EROFS));
        health.failed(Path::new("a"), &io::Error::from_raw_os_error(libc::ENOENT));
        assert!(!logged(&health), "a moment after the first");
        assert!(health.outage.borrow().as_ref().unwrap().is_known, "its end is to be logged");
        assert!(not_ready(health.cells).unwrap().contains("No such file"), "the last reason");
    }

    #[test]
    fn full_and_failing_do_not_hide_each_other() {
        let health = health();
        health.has_room();
        health.full();
        assert!(not_ready(health.cells).unwrap().contains("SPOOL_MAX"));
        assert!(!health.is_failing());
        health.failed(Path::new("a"), &io::Error::from_raw_os_error(libc::EROFS));
        assert!(not_ready(health.cells).unwrap().contains("Read-only"));
        health.works();
        assert!(not_ready(health.cells).unwrap().contains("SPOOL_MAX"), "until there is room");
        health.has_room();
        assert_eq!(not_ready(health.cells), None);
    }

    #[test]
    fn an_operation_that_takes_too_long_is_a_stall_until_it_ends() {
        let health = health();
        health.has_room();
        let operation = health.begin();
        let now = Instant::now();
        health.look(now + STALL_AFTER / 2);
        assert!(!health.is_stalled());
        let mut waits = Box::pin(health.stalled());
        let polled = futures_lite::future::block_on(futures_lite::future::poll_once(&mut waits));
        assert!(polled.is_none());
        health.look(now + STALL_AFTER + LOOK_EVERY);
        assert!(health.is_stalled());
        futures_lite::future::block_on(waits);
        let text = not_ready(health.cells).unwrap();
        assert!(text.contains("has not answered for 5 s") || text.contains("for 6 s"), "{text}");
        drop(operation);
        let _short = health.begin();
        health.look(Instant::now());
        assert!(!health.is_stalled());
        assert_eq!(not_ready(health.cells), None);
    }
}
