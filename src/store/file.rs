//! `file:DIR`: one file per object, visible only when it is whole and on the disk.
//!
//! Each object is written to a temporary name, synced, renamed, and its directory synced; renames that finish together
//! share one directory sync. Opening, writing and syncing go through io_uring; renames and directory creation run on
//! the executor's blocking thread, so a slow disk never blocks the core.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use glommio::io::{BufferedFile, Directory};

use super::{Class, PutError};
use crate::job::Payload;

/// Holds files that are not whole yet; inside the store's directory, because a rename must not cross file systems.
const TEMPORARY: &str = ".millrace-tmp";
/// A temporary file older than this belongs to a process that died: no put lives this long.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(3600);
/// Directories whose handle is kept open for syncing; past it the cache starts anew.
const DIRECTORIES_MAX: usize = 256;

/// One core's writer into a directory shared with the other cores.
pub struct FileStore {
    root: PathBuf,
    /// Unlike that of any other live process and core.
    temporary_prefix: String,
    next_temporary: Cell<u64>,
    directories: RefCell<HashMap<PathBuf, Rc<DirSync>>>,
}

impl FileStore {
    /// `origin` (`{node}-{core}`) keeps temporary names of different writers apart.
    pub fn new(root: PathBuf, origin: &str) -> FileStore {
        FileStore {
            root,
            temporary_prefix: format!("{origin}-{}", std::process::id()),
            next_temporary: Cell::new(0),
            directories: RefCell::default(),
        }
    }

    /// Creates the directory and removes what dead processes left half written. Blocks: for the time before the cores
    /// start.
    ///
    /// Returns the directory as an absolute path: glommio opens nothing else.
    #[expect(clippy::disallowed_methods, reason = "runs before the executors serve anything")]
    pub fn prepare(root: &Path) -> io::Result<PathBuf> {
        let root = std::path::absolute(root)?;
        let temporary = root.join(TEMPORARY);
        std::fs::create_dir_all(&temporary)?;
        for entry in std::fs::read_dir(&temporary)? {
            let entry = entry?;
            let age = SystemTime::now().duration_since(entry.metadata()?.modified()?);
            if age.is_ok_and(|age| age > TEMPORARY_AGE_MAX) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(root)
    }

    pub async fn put(&self, key: &str, payload: &Payload) -> Result<(), PutError> {
        check_key(key)?;
        let path = self.root.join(key);
        let parent = path.parent().expect("a key has at least one component").to_owned();
        let directory = self.directory(parent).await?;
        let number = self.next_temporary.replace(self.next_temporary.get() + 1);
        let temporary =
            self.root.join(TEMPORARY).join(format!("{}-{number}", self.temporary_prefix));
        let guard = RemoveOnDrop(Some(temporary));
        let temporary = guard.0.as_deref().expect("set above");
        let written = async {
            write_synced(temporary, payload).await.map_err(blame_store)?;
            let renamed = glommio::io::rename(temporary, &path).await;
            renamed.map_err(|error| blame_key(error.into()))
        };
        if let Err(error) = written.await {
            // Somebody removed a directory under us: the next try makes it again.
            self.directories.borrow_mut().clear();
            return Err(error);
        }
        guard.disarm();
        directory.sync().await.map_err(blame_store)
    }

    /// The open handle of `path`, which is created, and made durable in its own parents, if it does not exist.
    async fn directory(&self, path: PathBuf) -> Result<Rc<DirSync>, PutError> {
        if let Some(directory) = self.directories.borrow().get(&path) {
            return Ok(directory.clone());
        }
        let (wanted, root) = (path.clone(), self.root.clone());
        glommio::executor().spawn_blocking(move || create_synced(&wanted, &root)).await?;
        let opened = Directory::open(&path).await.map_err(|error| blame_store(error.into()))?;
        let directory = Rc::new(DirSync::new(opened));
        let mut directories = self.directories.borrow_mut();
        if directories.len() >= DIRECTORIES_MAX {
            directories.clear();
        }
        // Puts that came here together share one handle, lest each sync for itself.
        Ok(directories.entry(path).or_insert(directory).clone())
    }
}

async fn write_synced(path: &Path, payload: &Payload) -> io::Result<()> {
    let file = BufferedFile::create(path).await?;
    let written = async {
        let mut at = 0;
        while at < payload.len() {
            at += match file.write_at(payload[at..].to_vec(), at as u64).await? {
                0 => return Err(io::Error::new(ErrorKind::StorageFull, "wrote nothing")),
                n => n,
            };
        }
        Ok(file.fdatasync().await?)
    }
    .await;
    file.close().await?;
    written
}

#[expect(clippy::disallowed_methods, reason = "runs on the executor's blocking thread")]
fn create_synced(path: &Path, root: &Path) -> Result<(), PutError> {
    std::fs::create_dir_all(root.join(TEMPORARY)).map_err(blame_store)?;
    std::fs::create_dir_all(path).map_err(blame_key)?;
    for parent in path.ancestors().skip(1).take_while(|parent| parent.starts_with(root)) {
        std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(blame_store)?;
    }
    Ok(())
}

/// Keys become paths, so what a path would read differently is refused.
fn check_key(key: &str) -> Result<(), PutError> {
    let refuse = |why: &str| Err(PutError::new(Class::Object, "InvalidKey", why));
    if key.contains('\0') || key.starts_with(TEMPORARY) {
        return refuse("a key must hold no NUL and not start with the store's temporary directory");
    }
    for component in key.split('/') {
        if component.is_empty() || component == "." || component == ".." {
            return refuse("a key's components must be neither empty nor `.` nor `..`");
        }
    }
    Ok(())
}

/// A failure on a path that is the store's own: whatever stands in the way, it is not this payload's fault, and the
/// next payload fares no better. Only its size can be.
fn blame_store(error: io::Error) -> PutError {
    use ErrorKind::{
        AlreadyExists, FileTooLarge, IsADirectory, NotADirectory, NotFound, PermissionDenied,
        QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    let class = match error.kind() {
        FileTooLarge => Class::Object,
        StorageFull | QuotaExceeded | ReadOnlyFilesystem | PermissionDenied | NotFound
        | AlreadyExists | IsADirectory | NotADirectory => Class::StoreWide,
        _ => Class::Transient,
    };
    PutError::new(class, format!("{:?}", error.kind()), error.to_string())
}

/// A failure on a path made from the key, in a store that works: the key may be one that no file can have, or lie
/// above or below another object's.
fn blame_key(error: io::Error) -> PutError {
    use ErrorKind::{AlreadyExists, InvalidFilename, IsADirectory, NotADirectory};
    match error.kind() {
        InvalidFilename | IsADirectory | NotADirectory | AlreadyExists => {
            PutError::new(Class::Object, format!("{:?}", error.kind()), error.to_string())
        }
        _ => blame_store(error),
    }
}

/// Removes a temporary file on every way out but the rename.
struct RemoveOnDrop(Option<PathBuf>);

impl RemoveOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for RemoveOnDrop {
    #[expect(
        clippy::disallowed_methods,
        reason = "one unlink on an error path; a drop cannot await"
    )]
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // It may not exist yet; what is left behind is removed at a later start.
            let _absent_is_fine = std::fs::remove_file(path);
        }
    }
}

/// One directory whose syncs are shared: a caller joins the next sync that starts after it asked.
struct DirSync {
    directory: Directory,
    /// Requests so far, and how many of them the last finished sync covers.
    asked: Cell<u64>,
    running: Cell<bool>,
    finished: RefCell<VecDeque<(u64, Option<io::ErrorKind>)>>,
    covered: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl DirSync {
    /// Outcomes remembered for callers that have not looked yet; far more than workers can be waiting.
    const FINISHED_MAX: usize = 64;

    fn new(directory: Directory) -> DirSync {
        DirSync {
            directory,
            asked: Cell::new(0),
            running: Cell::new(false),
            finished: RefCell::default(),
            covered: Cell::new(0),
            waiting: RefCell::default(),
        }
    }

    async fn sync(&self) -> io::Result<()> {
        let ticket = self.asked.get() + 1;
        self.asked.set(ticket);
        while self.covered.get() < ticket {
            if self.running.get() {
                self.changed().await;
                continue;
            }
            // A caller that is dropped while it leads the sync lets the next one lead.
            let lead = Lead::new(self);
            let upto = self.asked.get();
            let outcome = self.directory.sync().await;
            let error = outcome.err().map(|error| io::Error::from(error).kind());
            let mut finished = self.finished.borrow_mut();
            finished.push_back((upto, error));
            if finished.len() > Self::FINISHED_MAX {
                finished.pop_front();
            }
            self.covered.set(upto);
            drop(lead);
        }
        let finished = self.finished.borrow();
        let mine = finished.iter().find(|(upto, _)| *upto >= ticket);
        match mine.and_then(|(_, error)| *error) {
            Some(kind) => Err(io::Error::new(kind, "syncing the directory failed")),
            None => Ok(()),
        }
    }

    async fn changed(&self) {
        let mut registered = false;
        poll_fn(|cx| {
            if registered {
                return Poll::Ready(());
            }
            registered = true;
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

struct Lead<'a>(&'a DirSync);

impl<'a> Lead<'a> {
    fn new(sync: &'a DirSync) -> Lead<'a> {
        sync.running.set(true);
        Lead(sync)
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.0.running.set(false);
        for waker in self.0.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests look at the directory from outside")]
mod tests {
    use super::*;
    use crate::limits::IO_MEMORY_BYTES;
    use futures_lite::FutureExt;
    use futures_lite::future::poll_once;
    use glommio::timer::sleep;
    use std::fs;

    /// Runs `test` with a store in a new directory on an executor of its own.
    fn with_store<F: Future<Output = ()>>(test: impl FnOnce(Rc<FileStore>, PathBuf) -> F) {
        let dir = tempfile::tempdir().unwrap();
        let root = FileStore::prepare(&dir.path().join("store")).unwrap();
        let store = Rc::new(FileStore::new(root.clone(), "node-0"));
        let executor = glommio::LocalExecutorBuilder::default().io_memory(IO_MEMORY_BYTES).make();
        executor.unwrap().run(test(store, root));
    }

    fn payload(bytes: impl Into<Vec<u8>>) -> Payload {
        Payload::from(bytes.into())
    }

    fn temporaries(root: &Path) -> usize {
        fs::read_dir(root.join(TEMPORARY)).unwrap().count()
    }

    #[test]
    fn objects_of_any_size_under_any_good_key_are_read_back() {
        with_store(|store, root| async move {
            let large: Vec<u8> = (0..10_000_000u32).map(|n| (n % 251) as u8).collect();
            for (key, bytes) in [
                ("plain.json", &b"{}"[..]),
                ("empty", b""),
                ("a/b/c/nested.json", b"1"),
                ("a/b/beside", b"2"),
                ("sp ace/é☃%2F+&?#'\"\\.json", b"3"),
                ("..dots..", b"4"),
                ("large", &large),
            ] {
                store.put(key, &payload(bytes)).await.unwrap();
                assert!(fs::read(root.join(key)).unwrap() == bytes, "{key}");
            }
            store.put("plain.json", &payload("overwritten")).await.unwrap();
            assert_eq!(fs::read(root.join("plain.json")).unwrap(), b"overwritten");
            assert_eq!(temporaries(&root), 0);
        });
    }

    #[test]
    fn keys_that_no_file_can_have_are_refused_as_this_objects_fault() {
        with_store(|store, root| async move {
            store.put("object", &payload("1")).await.unwrap();
            store.put("directory/object", &payload("1")).await.unwrap();
            let long = "x".repeat(300);
            for key in [
                "",
                "/absolute",
                "a//b",
                "a/",
                ".",
                "../outside",
                "a/../../outside",
                "nul\0",
                ".millrace-tmp/x",
                &long,
                &format!("{long}/x"),
                "directory",
                "object/below",
                "object/below/twice",
            ] {
                let error = store.put(key, &payload("2")).await.unwrap_err();
                assert_eq!(error.class, Class::Object, "{key:?}: {error}");
            }
            assert_eq!(fs::read(root.join("object")).unwrap(), b"1");
            assert!(!root.parent().unwrap().join("outside").exists());
            assert_eq!(temporaries(&root), 0);
        });
    }

    #[test]
    fn an_object_is_not_visible_before_it_is_whole() {
        with_store(|store, root| async move {
            let bytes = vec![b'x'; 10_000_000];
            for _ in 0..3 {
                let put = glommio::spawn_local({
                    let (store, bytes) = (store.clone(), bytes.clone());
                    async move { store.put("key", &payload(bytes)).await }
                });
                let done = Rc::new(Cell::new(false));
                let watch = glommio::spawn_local({
                    let (done, path) = (done.clone(), root.join("key"));
                    async move {
                        let mut looks = 0;
                        while !done.get() {
                            if let Ok(metadata) = fs::metadata(&path) {
                                assert_eq!(metadata.len(), 10_000_000);
                            }
                            looks += 1;
                            sleep(Duration::from_micros(100)).await;
                        }
                        looks
                    }
                });
                put.await.unwrap();
                done.set(true);
                assert!(watch.await > 0);
                fs::remove_file(root.join("key")).unwrap();
            }
        });
    }

    #[test]
    fn a_put_dropped_at_any_point_leaves_a_whole_object_or_none() {
        with_store(|store, root| async move {
            let bytes = vec![b'x'; 300_000];
            let mut finished = 0;
            for step in 0..60u64 {
                let key = format!("k{step}");
                let cut = async {
                    sleep(Duration::from_micros(step * 50)).await;
                    None
                };
                let put = async { Some(store.put(&key, &payload(bytes.clone())).await) };
                if let Some(outcome) = put.or(cut).await {
                    outcome.unwrap();
                    finished += 1;
                }
            }
            // What the kernel still had in hand is done with.
            sleep(Duration::from_millis(100)).await;
            let mut whole = 0;
            for step in 0..60 {
                if let Ok(found) = fs::read(root.join(format!("k{step}"))) {
                    assert!(found == bytes, "k{step} has {} bytes", found.len());
                    whole += 1;
                }
            }
            assert!(whole >= finished && whole < 60, "{finished} finished, {whole} whole of 60");
            store.put("after", &payload("1")).await.unwrap();
        });
    }

    #[test]
    fn sixty_four_puts_at_once_share_directory_syncs() {
        with_store(|store, root| async move {
            let puts: Vec<_> = (0..64)
                .map(|n| {
                    let store = store.clone();
                    glommio::spawn_local(async move {
                        store.put(&format!("k{n}"), &payload(format!("{n}"))).await
                    })
                })
                .collect();
            for put in puts {
                put.await.unwrap();
            }
            for n in 0..64 {
                assert_eq!(
                    fs::read(root.join(format!("k{n}"))).unwrap(),
                    format!("{n}").as_bytes()
                );
            }
            assert_eq!(temporaries(&root), 0);
            let asked = store.directories.borrow()[&root].asked.get();
            assert_eq!(asked, 64, "all asked the same handle");
            let done = store.directories.borrow()[&root].finished.borrow().len();
            assert!(done < 64, "{done} syncs for 64 puts");
        });
    }

    #[test]
    fn a_sync_covers_all_who_asked_before_it_began_and_nobody_after() {
        with_store(|_, root| async move {
            let sync = Rc::new(DirSync::new(Directory::open(&root).await.unwrap()));
            let callers: Vec<_> = (0..64)
                .map(|_| {
                    let sync = sync.clone();
                    glommio::spawn_local(async move { sync.sync().await })
                })
                .collect();
            for caller in callers {
                caller.await.unwrap();
            }
            let covered = |sync: &DirSync| -> Vec<u64> {
                sync.finished.borrow().iter().map(|(upto, _)| *upto).collect()
            };
            // The first leads alone, for the others ask while its sync runs; one of them leads for all the rest.
            assert_eq!(covered(&sync), [1, 64]);
            sync.sync().await.unwrap();
            assert_eq!(covered(&sync), [1, 64, 65]);
        });
    }

    #[test]
    fn a_leader_that_goes_away_leaves_the_lead_to_the_next() {
        with_store(|_, root| async move {
            let sync = DirSync::new(Directory::open(&root).await.unwrap());
            let mut leader = Box::pin(sync.sync());
            let mut next = Box::pin(sync.sync());
            assert!(poll_once(&mut leader).await.is_none());
            assert!(poll_once(&mut next).await.is_none());
            drop(leader);
            next.await.unwrap();
            assert_eq!(sync.covered.get(), 2);
        });
    }

    #[test]
    fn a_store_that_is_gone_is_nobodys_fault_and_a_removed_one_is_made_again() {
        with_store(|store, root| async move {
            store.put("a", &payload("1")).await.unwrap();
            fs::remove_dir_all(&root).unwrap();
            fs::write(&root, "in the way").unwrap();
            for _ in 0..3 {
                let error = store.put("b", &payload("2")).await.unwrap_err();
                assert_eq!(error.class, Class::StoreWide, "{error}");
            }
            fs::remove_file(&root).unwrap();
            store.put("b", &payload("2")).await.unwrap();
            fs::remove_dir_all(&root).unwrap();
            let error = store.put("c/d", &payload("3")).await.err();
            assert!(error.is_none_or(|error| error.class == Class::StoreWide));
            store.put("c/d", &payload("3")).await.unwrap();
            assert_eq!(fs::read(root.join("c/d")).unwrap(), b"3");
        });
    }

    #[test]
    fn prepare_removes_what_dead_processes_left_but_nothing_young() {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join(TEMPORARY);
        fs::create_dir_all(&temporary).unwrap();
        for (name, age) in [("old", 2 * TEMPORARY_AGE_MAX), ("young", Duration::from_secs(60))] {
            let file = fs::File::create(temporary.join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        fs::write(dir.path().join("object"), "1").unwrap();
        let root = FileStore::prepare(dir.path()).unwrap();
        assert!(root.is_absolute());
        assert!(!temporary.join("old").exists() && temporary.join("young").exists());
        assert!(dir.path().join("object").exists());
    }

    #[test]
    fn failures_are_classified_by_whose_path_it_was() {
        use ErrorKind::*;
        let both = |kind: ErrorKind| (blame_store(kind.into()).class, blame_key(kind.into()).class);
        for kind in [StorageFull, QuotaExceeded, ReadOnlyFilesystem, PermissionDenied, NotFound] {
            assert_eq!(both(kind), (Class::StoreWide, Class::StoreWide), "{kind:?}");
        }
        for kind in [NotADirectory, IsADirectory, AlreadyExists] {
            assert_eq!(both(kind), (Class::StoreWide, Class::Object), "{kind:?}");
        }
        assert_eq!(both(FileTooLarge), (Class::Object, Class::Object));
        for kind in [Interrupted, TimedOut, Other, ResourceBusy] {
            assert_eq!(both(kind), (Class::Transient, Class::Transient), "{kind:?}");
        }
    }
}
