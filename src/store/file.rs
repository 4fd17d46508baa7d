//! `file:DIR`: one file per object, visible only when it is complete and on disk.
//!
//! Each object is written under a temporary name, synced and renamed; then its directory is synced.
//! Renames that finish together share one directory sync. Opening, writing and syncing go through
//! io_uring; renames and directory creation run on the executor's blocking thread, so a slow disk
//! never blocks the core.
//!
//! An operation on a hung disk cannot be cancelled, and cleaning up after it would hang as well. So
//! each put is a task of its own. It runs to its end even if its worker has abandoned it, and a
//! core has at most as many as workers. A put that ends late has stored the same bytes under the
//! same key, or has removed its own temporary file. A process that stops meanwhile exits in time,
//! but the kernel keeps its entry until the disk responds.
//!
//! Objects are private to their owner unless `FILE_MODE` says otherwise (see [`mode`]); the umask
//! has no effect.

pub mod mode;
pub mod obstacle;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, chown};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_lite::FutureExt;
use glommio::io::{BufferedFile, Directory, OpenOptions};

use super::{Class, Object, Progress, PutError};
use crate::config::FileMode;
use crate::key::{TEMPORARY, is_in_temporary};
use crate::ownership::owner_to_give_to;
use crate::queue::job::Payload;
use crate::rt::{self, TaskKind};
use crate::sync::Semaphore;

/// A temporary file older than this belongs to a process that died, or to a put on a disk that hung
/// for as long; that put fails without its file and is retried.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(3600);
/// Directory handles kept open for syncing; when there are more, the cache is cleared.
const DIRECTORIES_MAX: usize = 256;

/// A store's directory, ready for puts.
#[derive(Clone, Debug)]
pub struct Root {
    /// Absolute: glommio opens nothing else.
    pub path: PathBuf,
    mode: FileMode,
    /// Creating a file with `mode` is not enough; the mode must be set afterwards.
    set_mode: bool,
    /// User and group of what is made here, unless they are those of this process.
    owner: Option<[u32; 2]>,
}

/// One core's writer into a directory shared with the other cores.
pub struct FileStore {
    folder: Rc<Folder>,
    /// One permit per put in flight, abandoned ones included.
    permits: Rc<Semaphore>,
}

impl FileStore {
    /// `origin` (`{node}-{core}`) marks this store's temporary names; at most `puts_max` puts are
    /// in flight at a time.
    pub fn new(root: Root, origin: &str, puts_max: usize) -> FileStore {
        FileStore {
            folder: Rc::new(Folder {
                root,
                temporary_prefix: format!("{origin}-{:016x}", random_bits()),
                next_temporary: Cell::new(0),
                directories: RefCell::default(),
            }),
            permits: Rc::new(Semaphore::new(puts_max as u64)),
        }
    }

    /// Creates the directory and removes incomplete files of dead processes. Blocks: call it before
    /// the cores start.
    ///
    /// `mode` applies to everything the store creates there.
    ///
    /// # Errors
    /// The directory, or a file in it, cannot be created.
    #[expect(clippy::disallowed_methods, reason = "runs before the executors serve anything")]
    pub fn prepare(root: &Path, mode: FileMode) -> io::Result<Root> {
        let path = std::path::absolute(root)?;
        let temporary = path.join(TEMPORARY);
        create_root_synced(&path, mode)?;
        for entry in std::fs::read_dir(&temporary)? {
            let entry = entry?;
            let age = rt::wall_clock().duration_since(entry.metadata()?.modified()?);
            if age.is_ok_and(|age| age > TEMPORARY_AGE_MAX) {
                std::fs::remove_file(entry.path())?;
            }
        }
        let set_mode = mode.has_to_be_set(&temporary)?;
        let owner = owner_to_give_to(&temporary)?;
        Ok(Root { path, mode, set_mode, owner })
    }

    /// A put dropped while it waits for a permit has done nothing; after that it runs to its end.
    pub async fn put(&self, object: &Object<'_>, progress: &Progress) -> Result<(), PutError> {
        check_key(object.key)?;
        let permit = self.permits.acquire_static_permit(1).await.expect("never closed");
        let (folder, key, body) =
            (self.folder.clone(), object.key.to_owned(), object.body.to_vec());
        let written = progress.of_writer();
        let task = rt::spawn_as(TaskKind::Store, async move {
            let _permit = permit;
            let _wait = rt::foreign_wait();
            // A panic belongs to the worker that waits. Uncaught here it would end the core.
            AssertUnwindSafe(folder.store(&key, &body, &written)).catch_unwind().await
        });
        let stored = task.detach().await.expect("nobody cancels it");
        stored.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// 64 bits from the kernel: processes in two containers may share both node and pid.
fn random_bits() -> u64 {
    let mut bits = [0; 8];
    let flags = rustix::rand::GetRandomFlags::empty();
    rustix::rand::getrandom(&mut bits, flags).expect("getrandom gives 8 bytes");
    u64::from_ne_bytes(bits)
}

/// What the puts of one core share.
struct Folder {
    root: Root,
    /// Different from that of any other process and core.
    temporary_prefix: String,
    next_temporary: Cell<u64>,
    directories: RefCell<HashMap<PathBuf, Rc<DirSync>>>,
}

impl Folder {
    async fn store(
        &self,
        key: &str,
        body: &[Payload],
        written: &Cell<u64>,
    ) -> Result<(), PutError> {
        let path = self.root.path.join(key);
        let parent = path.parent().expect("a key has at least one component").to_owned();
        let directory = self.directory(parent).await?;
        let temporary = self.temporary(self.next_temporary.get());
        self.next_temporary.set(self.next_temporary.get() + 1);
        let written = async {
            write_synced(&temporary, body, &self.root, written).await.map_err(blame_store)?;
            let Err(error) = glommio::io::rename(&temporary, &path).await else { return Ok(()) };
            Err(self.blame(error.into(), path.parent().unwrap_or(&path)).await)
        };
        if let Err(error) = written.await {
            // A directory may have been removed under us: the next attempt creates it again.
            self.directories.borrow_mut().clear();
            // Only this attempt ever had this name, so an object stored under the key meanwhile
            // stays.
            let _absent_is_fine = glommio::io::remove(&temporary).await;
            return Err(error);
        }
        directory.sync().await.map_err(blame_store)
    }

    /// Classifies a failure in `directory`, which is made from the key.
    async fn blame(&self, error: io::Error, directory: &Path) -> PutError {
        let (directory, root) = (directory.to_owned(), self.root.path.clone());
        let obstacle = move || obstacle::on_the_way(&directory, &root);
        blame_key(error, rt::blocking(obstacle).await)
    }

    fn temporary(&self, number: u64) -> PathBuf {
        self.root.path.join(TEMPORARY).join(format!("{}-{number}", self.temporary_prefix))
    }

    /// The open handle of `path`. If the directory does not exist it is created, and made durable
    /// in its parents.
    async fn directory(&self, path: PathBuf) -> Result<Rc<DirSync>, PutError> {
        if let Some(directory) = self.directories.borrow().get(&path) {
            return Ok(directory.clone());
        }
        let (wanted, root) = (path.clone(), self.root.clone());
        rt::blocking(move || create_synced(&wanted, &root)).await?;
        let opened = match Directory::open(&path).await {
            Ok(opened) => opened,
            Err(error) => return Err(self.blame(error.into(), &path).await),
        };
        let directory = Rc::new(DirSync::new(opened));
        let mut directories = self.directories.borrow_mut();
        if directories.len() >= DIRECTORIES_MAX {
            directories.clear();
        }
        // Puts that arrive together share one handle, so that they share its syncs.
        Ok(directories.entry(path).or_insert(directory).clone())
    }
}

/// Adds the bytes written to `progress`.
async fn write_synced(
    path: &Path,
    body: &[Payload],
    root: &Root,
    progress: &Cell<u64>,
) -> io::Result<()> {
    let file = create(path, root.mode).await?;
    let written = async {
        if let Some([user, group]) = root.owner {
            // The file that is open, whatever has its name by now.
            let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
            rt::blocking(move || chown(opened, Some(user), Some(group))).await?;
        }
        if root.set_mode {
            let (path, mode) = (path.to_owned(), root.mode);
            rt::blocking(move || mode.set_on_file(&path)).await?;
        }
        let mut at = 0;
        for part in body {
            let mut written = 0;
            while written < part.len() {
                let n = file.write_at(part[written..].to_vec(), at).await?;
                if n == 0 {
                    return Err(io::Error::new(ErrorKind::StorageFull, "wrote nothing"));
                }
                written += n;
                at += n as u64;
                progress.set(progress.get() + n as u64);
            }
        }
        Ok(file.fdatasync().await?)
    }
    .await;
    file.close().await?;
    written
}

async fn create(path: &Path, mode: FileMode) -> io::Result<BufferedFile> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode.of_files());
    Ok(options.buffered_open(path).await?)
}

/// Creates a directory for objects. Every directory between it and the store's is made durable,
/// also those that another core has just created and not synced yet.
#[expect(clippy::disallowed_methods, reason = "runs on the executor's blocking thread")]
fn create_synced(path: &Path, root: &Root) -> Result<(), PutError> {
    let Root { path: root, mode, .. } = root;
    if !root.join(TEMPORARY).exists() {
        create_root_synced(root, *mode).map_err(blame_store)?;
    }
    let blame = |error| blame_key(error, obstacle::on_the_way(path, root));
    mode.create_dir_all(path).map_err(blame)?;
    for parent in path.ancestors().skip(1).take_while(|parent| parent.starts_with(root)) {
        std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(blame)?;
    }
    Ok(())
}

/// Creates the store's own directories. A new one could vanish in a power failure with everything
/// stored in it, so the directories above it are synced as well, whoever created them: up to the
/// mount point, which existed before, or to one that this process may not read and so cannot have
/// created.
#[expect(clippy::disallowed_methods, reason = "runs on a blocking thread")]
fn create_root_synced(root: &Path, mode: FileMode) -> io::Result<()> {
    mode.create_dir_all(&root.join(TEMPORARY))?;
    let device = std::fs::metadata(root)?.dev();
    for directory in root.ancestors() {
        if std::fs::metadata(directory)?.dev() != device {
            break;
        }
        match std::fs::File::open(directory) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => break,
            opened => opened?.sync_all()?,
        }
    }
    Ok(())
}

/// Keys become paths, so a key that a path would change is refused. No template makes one; a dead
/// letter may have one. Incomplete files are in [`TEMPORARY`], which is inside the store's directory
/// because a rename must not cross file systems.
fn check_key(key: &str) -> Result<(), PutError> {
    let refuse = |why: &str| Err(PutError::new(Class::Object, "InvalidKey", why));
    if key.contains('\0') || is_in_temporary(key) {
        return refuse("a key must hold no NUL and not start with the store's temporary directory");
    }
    for component in key.split('/') {
        if component.is_empty() || component == "." || component == ".." {
            return refuse("a key's components must be neither empty nor `.` nor `..`");
        }
    }
    Ok(())
}

/// A failure on one of the store's own paths. Whatever the reason, it is not this payload's fault,
/// and the next payload would fail as well. The exception is a payload's size.
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

/// A failure on a path made from the key, in a store that works: no file can have this key, or an
/// obstacle is in the place of its directory. One client can name that, and only such keys fail, so
/// it must not stop the others. Without an obstacle it is the store's failure: replacing the
/// store's own directory between two steps of a put gives the same errors.
fn blame_key(error: io::Error, obstacle: Option<String>) -> PutError {
    use ErrorKind::{InvalidFilename, IsADirectory, QuotaExceeded, StorageFull};
    match (error.kind(), obstacle) {
        (StorageFull | QuotaExceeded, _) => blame_store(error),
        (kind, Some(obstacle)) => {
            PutError::new(Class::Object, format!("{kind:?}"), format!("{error}: {obstacle}"))
        }
        (kind @ (InvalidFilename | IsADirectory), None) => {
            PutError::new(Class::Object, format!("{kind:?}"), error.to_string())
        }
        (_, None) => blame_store(error),
    }
}

/// One directory whose syncs are shared: a caller joins the next sync that starts after its
/// request. Callers must not be dropped while they wait: one that runs the sync would leave the
/// others waiting.
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
    /// Outcomes kept for callers that have not seen theirs yet; far more than workers can wait.
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
            self.running.set(true);
            let upto = self.asked.get();
            let outcome = self.directory.sync().await;
            self.running.set(false);
            let error = outcome.err().map(|error| io::Error::from(error).kind());
            let mut finished = self.finished.borrow_mut();
            finished.push_back((upto, error));
            if finished.len() > Self::FINISHED_MAX {
                finished.pop_front();
            }
            self.covered.set(upto);
            self.waiting.take().into_iter().for_each(Waker::wake);
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests look at the directory from outside")]
mod tests {
    use super::*;
    use crate::rt::sleep;
    use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    /// Runs `test` with a store in a new directory on an executor of its own.
    fn with_store<F: Future<Output = ()>>(test: impl FnOnce(Rc<FileStore>, PathBuf) -> F) {
        with_store_of(64, test);
    }

    fn with_store_of<F: Future<Output = ()>>(
        puts_max: usize,
        test: impl FnOnce(Rc<FileStore>, PathBuf) -> F,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mode = FileMode::parse("0600").unwrap();
        let root = FileStore::prepare(&dir.path().join("made/on the way/store"), mode).unwrap();
        let store = Rc::new(FileStore::new(root.clone(), "node-0", puts_max));
        let root = root.path;
        rt::run_test(test(store, root));
    }

    fn payload(bytes: impl Into<Vec<u8>>) -> Payload {
        Payload::from(bytes.into())
    }

    /// Puts one payload by itself.
    async fn put(store: &FileStore, key: &str, bytes: impl Into<Vec<u8>>) -> Result<(), PutError> {
        store.put(&Object::of(key, &payload(bytes)), &Progress::default()).await
    }

    fn temporaries(root: &Path) -> usize {
        fs::read_dir(root.join(TEMPORARY)).unwrap().count()
    }

    /// Makes one put hang in the kernel, as on a disk that does not answer: opening a pipe to write
    /// waits for a reader.
    fn hang(store: &FileStore, number: u64) -> PathBuf {
        let pipe = store.folder.temporary(number);
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        pipe
    }

    /// Lets it go on, to fail: a pipe cannot be synced.
    fn answer(pipe: &Path) -> fs::File {
        fs::File::options().read(true).write(true).open(pipe).unwrap()
    }

    /// Whether `put` ended within a worker's patience, here 20 ms.
    async fn in_time(put: impl Future<Output = Result<(), PutError>>) -> bool {
        let put = async {
            put.await.unwrap();
            true
        };
        let timeout = async {
            sleep(Duration::from_millis(20)).await;
            false
        };
        put.or(timeout).await
    }

    async fn until(done: impl Fn() -> bool) {
        for _ in 0..10_000 {
            if done() {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
        panic!("not in 10 s");
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
                (".millrace-tmpx/like it", b"5"),
                ("a/.millrace-tmp/below", b"6"),
                ("large", &large),
            ] {
                put(&store, key, bytes).await.unwrap();
                assert!(fs::read(root.join(key)).unwrap() == bytes, "{key}");
            }
            put(&store, "plain.json", "overwritten").await.unwrap();
            assert_eq!(fs::read(root.join("plain.json")).unwrap(), b"overwritten");
            assert_eq!(temporaries(&root), 0);
        });
    }

    #[test]
    fn the_parts_of_an_object_lie_one_after_the_other() {
        with_store(|store, root| async move {
            let parts = [b"[1]\n".to_vec(), Vec::new(), vec![b'x'; 300_000], b"\n[2]\n".to_vec()];
            let body: Vec<Payload> = parts.iter().cloned().map(Payload::from).collect();
            let object = Object { key: "dt=1/hour=2/a", body: &body, coding: None, sums: None };
            store.put(&object, &Progress::default()).await.unwrap();
            assert!(fs::read(root.join("dt=1/hour=2/a")).unwrap() == parts.concat());
            let empty = Object { body: &[], ..object };
            store.put(&empty, &Progress::default()).await.unwrap();
            assert_eq!(fs::read(root.join("dt=1/hour=2/a")).unwrap(), b"");
        });
    }

    #[test]
    fn keys_that_no_file_can_have_are_refused_as_this_objects_fault() {
        with_store(|store, root| async move {
            put(&store, "object", "1").await.unwrap();
            put(&store, "directory/object", "1").await.unwrap();
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
                let error = put(&store, key, "2").await.unwrap_err();
                assert_eq!(error.class, Class::Object, "{key:?}: {error}");
            }
            assert_eq!(fs::read(root.join("object")).unwrap(), b"1");
            assert!(!root.parent().unwrap().join("outside").exists());
            assert_eq!(temporaries(&root), 0);
        });
    }

    /// Templates whose values decide as much of a name as they can.
    const TEMPLATES: [&str; 6] = [
        "{field:/a}/{unix_nanos}-{node}-{core}-{seq}.{ext}",
        "{field:/a}{field:/b}/{version}/{unix_nanos}-{node}-{core}-{seq}",
        ".millrace-{field:/a}/.{field:/b}/{unix_nanos}-{node}-{core}-{seq}",
        "{field:/a}{field:/b}{field:/a}{version}{hour}{field:/b}/{unix_nanos}-{node}-{core}-{seq}",
        "x/{field:/a|..x}-{field:/b|none}-{version}-{unix_nanos}-{node}-{core}-{seq}.json",
        ".millrac{hash:1}-tmp/{field:/a}-{seq}/{node}-{field:/b}/{core}-{unix_nanos}",
    ];

    /// Values that have made, or could make, a name that is none.
    const HOSTILE: [&str; 22] = [
        ".millrace-tmp",
        ".millrace-tmp/",
        ".millrace-tmp/x",
        ".millrace",
        "-tmp",
        "tmp",
        "",
        ".",
        "..",
        "...",
        "/",
        "//",
        "../..",
        "\\",
        "\0",
        "\n",
        "\u{1f}",
        "\u{fffd}\u{ffff}",
        "%2e%2e%2f",
        "con",
        "~",
        "-rf",
    ];

    #[test]
    fn whatever_clients_send_is_stored_and_found_under_its_key() {
        use crate::key::{KeyOf, KeyTemplate, Partition, RequestValues};
        use proptest::prelude::*;
        use proptest::sample::select;
        use proptest::strategy::ValueTree;
        use proptest::test_runner::TestRunner;

        let repeated = |char: char, bytes: usize| char.to_string().repeat(bytes / char.len_utf8());
        let mut values: Vec<String> = HOSTILE.map(String::from).to_vec();
        for char in ['x', '.', '/', 'é', '日', '😀'] {
            let lengths = [60, 84, 85, 111, 112, 126, 127, 128, 129, 130, 255, 256, 5000];
            values.extend(lengths.map(|bytes| repeated(char, bytes)));
        }
        let value = prop_oneof![select(values), any::<String>(), "\\PC{100,140}"];
        let triple = (select(&TEMPLATES[..]), value.clone(), value.clone(), value);
        with_store(|store, root| async move {
            let mut runner = TestRunner::deterministic();
            let mut key = String::new();
            let mut stored = std::collections::HashSet::new();
            for seq in 0..1_000 {
                let (text, a, b, version) = triple.new_tree(&mut runner).unwrap().current();
                let template = KeyTemplate::parse(text, None).unwrap();
                let payload = serde_json::json!({ "a": a, "b": b }).to_string();
                let mut partition = Partition::default();
                let values = RequestValues::of_version(&version);
                let _ =
                    template.write_partition(payload.as_bytes(), &values, u64::MAX, &mut partition);
                let of = KeyOf {
                    partition: partition.text(),
                    unix_nanos: u64::MAX,
                    node: &"n".repeat(64),
                    core: 1023,
                    seq,
                    count: 1,
                    ext: "ndjson.zst",
                };
                template.write_key(&of, &mut key);
                let said = format!("{text}: {key} of {payload} and {version}");
                assert!(key.len() <= template.longest(64, 10) && key.len() <= 1024, "{said}");
                let part = key.split('/').map(str::len).max().unwrap();
                assert!(part <= template.longest_part(64, 10) && part <= 255, "{said}");
                put(&store, &key, payload.clone()).await.unwrap_or_else(|e| panic!("{said}: {e}"));
                assert_eq!(fs::read(root.join(&key)).unwrap(), payload.as_bytes(), "{said}");
                assert!(stored.insert(key.clone()), "twice: {said}");
            }
            assert_eq!(temporaries(&root), 0);
        });
    }

    #[test]
    fn an_object_is_not_visible_before_it_is_whole() {
        with_store(|store, root| async move {
            let bytes = vec![b'x'; 10_000_000];
            for _ in 0..3 {
                let put = rt::spawn({
                    let (store, bytes) = (store.clone(), bytes.clone());
                    async move { put(&store, "key", bytes).await }
                });
                let done = Rc::new(Cell::new(false));
                let watch = rt::spawn({
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
    fn a_put_dropped_at_any_point_goes_on_and_stores_a_whole_object() {
        with_store(|store, root| async move {
            let bytes = vec![b'x'; 300_000];
            let mut finished = 0;
            for step in 0..60u64 {
                let key = format!("k{step}");
                let cut = async {
                    sleep(Duration::from_micros(step * 50)).await;
                    None
                };
                let put = async { Some(put(&store, &key, bytes.clone()).await) };
                if let Some(outcome) = put.or(cut).await {
                    outcome.unwrap();
                    finished += 1;
                }
            }
            assert!(finished < 60, "none was dropped");
            until(|| store.permits.available() == 64).await;
            for step in 0..60 {
                assert!(fs::read(root.join(format!("k{step}"))).unwrap() == bytes, "k{step}");
            }
            assert_eq!(temporaries(&root), 0);
        });
    }

    #[test]
    fn a_disk_that_hangs_holds_as_many_puts_as_there_are_workers() {
        with_store_of(2, |store, root| async move {
            let pipes = [0, 1].map(|number| hang(&store, number));
            for key in ["a", "b", "given up in line"] {
                assert!(!in_time(put(&store, key, "1")).await, "{key}");
            }
            assert_eq!(store.permits.available(), 0);
            let bytes = payload("2");
            let object = Object::of("a", &bytes);
            let progress = Progress::default();
            let mut next = pin!(store.put(&object, &progress));
            assert!(!in_time(&mut next).await);
            let _readers = pipes.map(|pipe| answer(&pipe));
            next.await.unwrap();
            until(|| store.permits.available() == 2).await;
            assert_eq!(fs::read(root.join("a")).unwrap(), b"2");
            assert!(!root.join("b").exists() && !root.join("given up in line").exists());
            assert_eq!(temporaries(&root), 0, "a late failure removes what it wrote");
        });
    }

    #[test]
    fn an_attempt_that_fails_late_leaves_alone_what_the_next_has_stored() {
        with_store_of(2, |store, root| async move {
            put(&store, "before", "0").await.unwrap();
            let pipe = hang(&store, 1);
            assert!(!in_time(put(&store, "key", "1")).await);
            put(&store, "key", "1").await.unwrap();
            let _reader = answer(&pipe);
            until(|| store.permits.available() == 2).await;
            assert!(!pipe.exists());
            assert_eq!(fs::read(root.join("key")).unwrap(), b"1");
            put(&store, "key", "2").await.unwrap();
            assert_eq!(fs::read(root.join("key")).unwrap(), b"2");
        });
    }

    #[test]
    fn temporary_names_differ_though_node_core_and_process_are_the_same() {
        let mode = FileMode::parse("0600").unwrap();
        let root = Root { path: PathBuf::new(), mode, set_mode: false, owner: None };
        let store = || FileStore::new(root.clone(), "node-0", 1);
        assert_ne!(store().folder.temporary(0), store().folder.temporary(0));
    }

    #[test]
    fn sixty_four_puts_at_once_share_directory_syncs() {
        with_store(|store, root| async move {
            let puts: Vec<_> = (0..64)
                .map(|n| {
                    let store = store.clone();
                    rt::spawn(async move { put(&store, &format!("k{n}"), format!("{n}")).await })
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
            let asked = store.folder.directories.borrow()[&root].asked.get();
            assert_eq!(asked, 64, "all asked the same handle");
            let done = store.folder.directories.borrow()[&root].finished.borrow().len();
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
                    rt::spawn(async move { sync.sync().await })
                })
                .collect();
            for caller in callers {
                caller.await.unwrap();
            }
            let covered = |sync: &DirSync| -> Vec<u64> {
                sync.finished.borrow().iter().map(|(upto, _)| *upto).collect()
            };
            // The first leads alone, for the others ask while its sync runs; one of them leads for
            // all the rest.
            assert_eq!(covered(&sync), [1, 64]);
            sync.sync().await.unwrap();
            assert_eq!(covered(&sync), [1, 64, 65]);
        });
    }

    #[test]
    fn a_store_that_is_gone_is_nobodys_fault_and_a_removed_one_is_made_again() {
        with_store(|store, root| async move {
            put(&store, "a", "1").await.unwrap();
            fs::remove_dir_all(&root).unwrap();
            fs::write(&root, "in the way").unwrap();
            for _ in 0..3 {
                let error = put(&store, "b", "2").await.unwrap_err();
                assert_eq!(error.class, Class::StoreWide, "{error}");
            }
            fs::remove_file(&root).unwrap();
            put(&store, "b", "2").await.unwrap();
            fs::remove_dir_all(&root).unwrap();
            let error = put(&store, "c/d", "3").await.err();
            assert!(error.is_none_or(|error| error.class == Class::StoreWide));
            put(&store, "c/d", "3").await.unwrap();
            assert_eq!(fs::read(root.join("c/d")).unwrap(), b"3");
        });
    }

    /// What an operator or another program has put there, and a client names.
    #[test]
    fn what_the_store_did_not_make_harms_only_the_keys_that_name_it() {
        use std::os::unix::fs::symlink;
        with_store(|store, root| async move {
            fs::write(root.join("file"), "1").unwrap();
            symlink("nowhere", root.join("dangling")).unwrap();
            symlink("loop", root.join("loop")).unwrap();
            symlink("/proc/sys", root.join("elsewhere")).unwrap();
            fs::create_dir(root.join("closed")).unwrap();
            fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o555)).unwrap();
            let mut names = vec!["file", "dangling", "loop", "elsewhere"];
            // Root may write to it all the same.
            if !rustix::process::geteuid().is_root() {
                names.push("closed");
            }
            for name in names {
                for key in [format!("{name}/key"), format!("{name}/below/key")] {
                    let error = put(&store, &key, "2").await.unwrap_err();
                    assert_eq!(error.class, Class::Object, "{key}: {error}");
                    let said = format!("{name} in the store's directory is ");
                    assert!(error.message.contains(&said), "{key}: {error}");
                }
                put(&store, "acme/key", "3").await.unwrap();
            }
            // The same on the store's own directory is everybody's.
            fs::remove_dir_all(root.join(TEMPORARY)).unwrap();
            fs::write(root.join(TEMPORARY), "in the way").unwrap();
            let error = put(&store, "file/key", "2").await.unwrap_err();
            assert_eq!(error.class, Class::StoreWide, "{error}");
        });
    }

    /// A mount that comes and goes: whichever step of a put it hits, the key is not to blame.
    #[test]
    fn a_store_that_goes_between_two_steps_of_a_put_is_no_keys_fault() {
        with_store(|store, root| async move {
            let away = root.with_extension("away");
            fs::write(&away, "in the way").unwrap();
            let exchange = |a: &Path, b: &Path| {
                renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
            };
            let (stop, place) = (Arc::new(AtomicBool::new(false)), root.clone());
            let stopped = stop.clone();
            let exchanging = std::thread::spawn(move || {
                while !stopped.load(Relaxed) {
                    exchange(&place, &away);
                    std::thread::sleep(Duration::from_micros(fastrand::u64(..300)));
                }
            });
            let mut failed = 0;
            for number in 0..1_000 {
                if let Err(error) = put(&store, &format!("{}/{number}", number % 50), "1").await {
                    assert_ne!(error.class, Class::Object, "{error}");
                    failed += 1;
                }
            }
            stop.store(true, Relaxed);
            exchanging.join().unwrap();
            assert!((1..1_000).contains(&failed), "{failed}");
        });
    }

    #[test]
    fn prepare_removes_what_dead_processes_left_but_nothing_young() {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join(TEMPORARY);
        fs::create_dir_all(&temporary).unwrap();
        for (name, age) in [("old", 2 * TEMPORARY_AGE_MAX), ("young", Duration::from_secs(60))] {
            let file = fs::File::create(temporary.join(name)).unwrap();
            file.set_modified(rt::wall_clock() - age).unwrap();
        }
        fs::write(dir.path().join("object"), "1").unwrap();
        let root = FileStore::prepare(dir.path(), FileMode::parse("0600").unwrap()).unwrap();
        assert!(root.path.is_absolute());
        assert!(!temporary.join("old").exists() && temporary.join("young").exists());
        assert!(dir.path().join("object").exists());
    }

    #[test]
    fn failures_are_classified_by_whose_path_it_was() {
        use ErrorKind::*;
        let obstacle = || Some("lost+found is not writable".to_owned());
        let free = |kind: ErrorKind| blame_key(kind.into(), None).class;
        let blocked = |kind: ErrorKind| blame_key(kind.into(), obstacle()).class;
        let store = |kind: ErrorKind| blame_store(kind.into()).class;
        for kind in [StorageFull, QuotaExceeded] {
            let of_each = [store(kind), free(kind), blocked(kind)];
            assert_eq!(of_each, [Class::StoreWide; 3], "{kind:?}");
        }
        let of_the_place = [
            NotADirectory,
            IsADirectory,
            AlreadyExists,
            PermissionDenied,
            ReadOnlyFilesystem,
            NotFound,
        ];
        for kind in of_the_place {
            let wanted = if kind == IsADirectory { Class::Object } else { Class::StoreWide };
            assert_eq!((store(kind), free(kind)), (Class::StoreWide, wanted), "{kind:?}");
            assert_eq!(blocked(kind), Class::Object, "{kind:?}");
        }
        assert_eq!((free(InvalidFilename), free(FileTooLarge)), (Class::Object, Class::Object));
        for kind in [Interrupted, TimedOut, Other, ResourceBusy, CrossesDevices] {
            assert_eq!((store(kind), free(kind)), (Class::Transient, Class::Transient), "{kind:?}");
        }
        assert_eq!(blocked(CrossesDevices), Class::Object);
        let said = blame_key(PermissionDenied.into(), obstacle()).message;
        assert!(said.ends_with("denied: lost+found is not writable"), "{said}");
    }
}
