//! The dead-letter directory: objects that the store refuses, or that a stop left unstored; mostly
//! one payload each.
//!
//! A dead letter written while the server runs is two files: `{stem}.payload` with the object's
//! bytes and `{stem}.json` with a [`DeadLetter`]. The JSON file is renamed into place last, so a
//! visible dead letter is complete. The dead letters of a stop share one file per core; see
//! [`bundle`]. `DEAD_LETTER_MAX` bounds the directory. A dead letter without room is lost, which
//! the caller logs and counts. Writes block: a core runs them on its blocking thread, except in the
//! last step of a drain, when nothing else is left to run.
//!
//! A dead letter that was being written when a stop began may exist in both forms; a replay stores
//! it twice under the same key.

pub mod bundle;
mod letter;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

pub use letter::{DeadLetter, TRACES_MAX};

use crate::ownership::{create_dir_all, give_to_owner_of_directory, give_to_owner_of_parent};
use crate::queue::job::Payload;
use crate::rt;
use bundle::{BUNDLE, BundleReader, BundleWriter};

/// Why a dead letter was not written.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    #[error(
        "the dead-letter directory is full (DEAD_LETTER_MAX {max} bytes); run `millrace dead-letter replay`"
    )]
    Full { max: u64 },
    #[error("the dead-letter directory cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// The directory, shared by all cores. Dead letters are rare, so one atomic sum bounds them.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    directory: Arc<PathBuf>,
    max: u64,
    used: Arc<AtomicU64>,
    /// Number of dead letters, known as `used` is; without those of bundles that are not counted
    /// yet.
    waiting: Arc<AtomicU64>,
    /// How far each bundle is counted, by its name.
    counted: Arc<ArcSwap<BundleCounts>>,
    opened: Instant,
    /// The directory may be measured again this many milliseconds after `opened`.
    measure_after: Arc<AtomicU64>,
    /// Numbers unfinished files, so that two writers never share one, even for the same dead
    /// letter.
    next_unfinished: Arc<AtomicU64>,
    /// The last write failed, and no write or probe has succeeded since.
    failing: Arc<AtomicBool>,
    /// Size of the dead letter that failed last: a probe checks for this much room.
    failed_bytes: Arc<AtomicU64>,
}

type BundleCounts = HashMap<OsString, BundleCount>;

/// How far a bundle is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BundleCount {
    /// Length of the file; only a replay changes it, by making a shorter one.
    bytes: u64,
    /// Dead letters in the first `read` bytes. All of the file is read, or it is damaged there, if
    /// that is `bytes`.
    letters: u64,
    read: u64,
}

/// Most bytes of a dead letter's JSON line in the file that a stop writes: key, store, error and a
/// trace. Batches, of which there are few, may take some more for theirs.
pub const DEAD_LETTER_HEAD_BYTES: usize = 640;
const PAYLOAD: &str = "payload";
const META: &str = "json";
const UNFINISHED: &str = "tmp";
/// Shortest time between two measurements of a full directory: with many files one takes long, and
/// dead letters keep coming.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// Unfinished files older than this belong to a dead process: no write takes that long.
const UNFINISHED_AGE_MAX: Duration = Duration::from_secs(3600);
/// Bytes copied on a core before it yields to its other tasks.
const COPY_BYTES: usize = 256 << 10;
/// Bytes of a bundle that are counted at a time: some 10 ms from a disk of today.
const COUNT_BYTES: u64 = 8 << 20;
/// Most bytes that a probe writes to check whether the disk has room.
const PROBE_BYTES_MAX: u64 = 1 << 20;

/// What the directory holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct DirectoryUse {
    /// Of all files.
    bytes: u64,
    /// As far as they are counted.
    letters: u64,
}

/// The result of [`DeadLetters::list`].
#[derive(Debug, Default)]
pub struct Listing {
    /// Complete single dead letters with their stems, in the order of names.
    pub letters: Vec<(String, DeadLetter)>,
    /// Stems of the bundles, in the order of names.
    pub bundles: Vec<String>,
    /// JSON files that are not dead letters, as after a power failure, with the reason.
    pub broken: Vec<(String, String)>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "called off the executors or on their blocking thread"
)]
impl DeadLetters {
    /// Opens the directory, creating it if needed, removes unfinished files of dead processes, and
    /// measures the rest. No file is read: [`DeadLetters::count_some`] counts what is in bundles.
    pub fn open(directory: &Path, max: u64) -> io::Result<DeadLetters> {
        create_dir(directory)?;
        sweep(directory)?;
        let dead = DeadLetters {
            directory: Arc::new(directory.to_owned()),
            max,
            used: Arc::default(),
            waiting: Arc::default(),
            counted: Arc::default(),
            opened: rt::now(),
            measure_after: Arc::default(),
            next_unfinished: Arc::default(),
            failing: Arc::default(),
            failed_bytes: Arc::default(),
        };
        let DirectoryUse { bytes, letters } = dead.measure()?;
        dead.used.store(bytes, Relaxed);
        dead.waiting.store(letters, Relaxed);
        Ok(dead)
    }

    /// Counts dead letters in the next 8 MiB of bundles. Whether there is more to count.
    /// Blocks.
    pub fn count_some(&self) -> bool {
        let counts = self.counted.load_full();
        let Some((name, of)) = counts.iter().find(|(_, of)| of.read < of.bytes) else {
            return false;
        };
        let (letters, next) = bundle::count(&self.directory.join(name), of.read, COUNT_BYTES);
        let read = next.unwrap_or(of.bytes).min(of.bytes);
        let further = BundleCount { letters: of.letters + letters, read, ..*of };
        let mut was_same = false;
        self.counted.rcu(|now| {
            let mut now = BundleCounts::clone(now);
            // Else it has been measured meanwhile, and is another file.
            was_same = now.get(name) == Some(of);
            if was_same {
                now.insert(name.clone(), further);
            }
            now
        });
        if was_same {
            self.waiting.fetch_add(letters, Relaxed);
        }
        true
    }

    /// Bytes of bundles whose dead letters are not counted yet.
    pub fn uncounted(&self) -> u64 {
        self.counted.load().values().map(|of| of.bytes - of.read).sum()
    }

    /// Notes a bundle that this process has written.
    fn note_bundle(&self, stem: &str, bytes: u64, letters: u64) {
        let name = OsString::from(format!("{stem}.{BUNDLE}"));
        self.counted.rcu(|now| {
            let mut now = BundleCounts::clone(now);
            now.insert(name.clone(), BundleCount { bytes, letters, read: bytes });
            now
        });
        self.waiting.fetch_add(letters, Relaxed);
    }

    /// Dead letters in the directory, as far as this process knows.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    /// Bytes in the directory, as far as this process knows.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Measures the directory again; the result is ignored if a dead letter is written meanwhile.
    /// Blocks.
    pub fn remeasure(&self) {
        let before = self.used();
        if let Ok(DirectoryUse { bytes, letters }) = self.measure()
            // Else it has changed meanwhile.
            && self.used.compare_exchange(before, bytes, Relaxed, Relaxed).is_ok()
        {
            self.waiting.store(letters, Relaxed);
        }
    }

    /// Blocks.
    fn measure(&self) -> io::Result<DirectoryUse> {
        let (mut measured, mut counts) = (DirectoryUse::default(), BundleCounts::new());
        let before = self.counted.load();
        for entry in fs::read_dir(&*self.directory)? {
            let entry = entry?;
            let bytes = match entry.metadata() {
                Ok(metadata) if metadata.is_file() => metadata.len(),
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            measured.bytes += bytes;
            let path = entry.path();
            match path.extension().and_then(OsStr::to_str) {
                Some(META) => measured.letters += 1,
                Some(BUNDLE) => {
                    let known = before.get(&entry.file_name()).filter(|of| of.bytes == bytes);
                    let unread = BundleCount { bytes, letters: 0, read: 0 };
                    let count = known.copied().unwrap_or(unread);
                    measured.letters += count.letters;
                    counts.insert(entry.file_name(), count);
                }
                _ => {}
            }
        }
        self.counted.store(Arc::new(counts));
        Ok(measured)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// [`DeadLetters::write`] for a core: on its executor's blocking thread, with a copy, because
    /// the body's parts belong to the core. Callers bound it by waiting: one dead letter per
    /// worker.
    ///
    /// # Errors
    /// As [`DeadLetters::write`].
    pub async fn write_off_core(
        &self,
        stem: String,
        letter: DeadLetter,
        body: &[Payload],
    ) -> Result<(), DeadLetterError> {
        let mut copy = Vec::with_capacity(body.len());
        for part in body {
            let mut bytes = Vec::with_capacity(part.len());
            for piece in part.chunks(COPY_BYTES) {
                bytes.extend_from_slice(piece);
                rt::yield_if_needed().await;
            }
            copy.push(bytes);
        }
        let dead = self.clone();
        let write = move || dead.write(&stem, &letter, &copy);
        rt::blocking(write).await
    }

    /// Writes one dead letter under `stem`, which must be unique; it is durable on return. Blocks.
    ///
    /// # Errors
    /// The directory is full or not writable; then nothing of the dead letter is left.
    pub fn write(
        &self,
        stem: &str,
        letter: &DeadLetter,
        body: &[impl AsRef<[u8]>],
    ) -> Result<(), DeadLetterError> {
        let body: Vec<&[u8]> = body.iter().map(AsRef::as_ref).collect();
        let written = self.try_write(stem, letter, &body);
        self.failing.store(written.is_err(), Relaxed);
        written
    }

    /// Whether dead letters are lost: the last one could not be written.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Relaxed)
    }

    /// After a failure: writes and removes a test file of the failed dead letter's size, to check
    /// whether dead letters can be written again. Blocks.
    pub fn probe(&self) {
        let size = self.failed_bytes.load(Relaxed);
        let fits = self.reserve(size).map(|()| self.used.fetch_sub(size, Relaxed));
        let file = self.directory.join(format!(".probe-{}.{UNFINISHED}", std::process::id()));
        let zeros = vec![0; size.min(PROBE_BYTES_MAX) as usize];
        let written = || {
            create_private(&file)?.write_all(&zeros)?;
            fs::remove_file(&file)
        };
        if fits.is_ok() && written().is_ok() {
            self.failing.store(false, Relaxed);
        }
    }

    fn try_write(
        &self,
        stem: &str,
        letter: &DeadLetter,
        body: &[&[u8]],
    ) -> Result<(), DeadLetterError> {
        let meta = serde_json::to_vec(letter).expect("a dead letter is plain data");
        let bytes: usize = body.iter().map(|part| part.len()).sum();
        let size = (bytes + meta.len()) as u64;
        self.failed_bytes.store(size, Relaxed);
        self.reserve(size)?;
        let mut made = Vec::new();
        let written = (|| {
            for (extension, parts) in [(PAYLOAD, body), (META, &[&meta[..]])] {
                self.write_file(stem, extension, parts)?;
                made.push(self.path(stem, extension));
            }
            self.sync_directory()
        })();
        if written.is_ok() {
            self.waiting.fetch_add(1, Relaxed);
        }
        if let Err(error) = written {
            // The JSON first: a visible dead letter must have its payload.
            for path in made.iter().rev() {
                let _left_for_the_sweep = fs::remove_file(path);
            }
            self.used.fetch_sub(size, Relaxed);
            return Err(error.into());
        }
        Ok(())
    }

    /// A writer for all dead letters of a stop; never measures the directory.
    pub fn bundle(&self) -> BundleWriter {
        BundleWriter::new(self.clone())
    }

    /// A reader of one of [`Listing::bundles`].
    pub fn read_bundle(&self, stem: &str) -> io::Result<BundleReader> {
        BundleReader::open(&self.path(stem, BUNDLE))
    }

    /// Size of one of [`Listing::bundles`]; 0 if it has gone.
    pub fn bundle_bytes(&self, stem: &str) -> u64 {
        fs::metadata(self.path(stem, BUNDLE)).map_or(0, |about| about.len())
    }

    /// Lists every dead letter and bundle; an unreadable one does not hide the others.
    pub fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing::default();
        for entry in fs::read_dir(&*self.directory)? {
            let path = entry?.path();
            let name = |part: Option<&OsStr>| part.and_then(OsStr::to_str).map(str::to_owned);
            let (Some(stem), Some(extension)) = (name(path.file_stem()), name(path.extension()))
            else {
                continue;
            };
            if extension == BUNDLE {
                listing.bundles.push(stem);
                continue;
            } else if extension != META {
                continue;
            }
            let read = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
            match read {
                Ok(letter) => listing.letters.push((stem, letter)),
                // Another replay has removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => listing.broken.push((stem, error.to_string())),
            }
        }
        listing.bundles.sort();
        listing.letters.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(listing)
    }

    pub fn payload(&self, stem: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(stem, PAYLOAD))
    }

    /// Removes a dead letter that has been stored: the JSON first, so that a crash leaves no dead
    /// letter without a payload.
    pub fn remove(&self, stem: &str) -> io::Result<()> {
        fs::remove_file(self.path(stem, META))?;
        match fs::remove_file(self.path(stem, PAYLOAD)) {
            // The sweep of a starting server was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// A lock held while replaying, so that two replays do not do the same work; `None` if another
    /// one holds it.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let file = open_lock(&self.directory.join(".replay.lock"))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reserves `size` bytes. Without room it measures the directory again, because a replay may
    /// have freed some, at most once in [`MEASURE_EVERY`].
    fn reserve(&self, size: u64) -> Result<(), DeadLetterError> {
        if self.take_room(size) {
            return Ok(());
        }
        if self.may_measure() {
            let DirectoryUse { bytes, letters } = self.measure()?;
            self.used.store(bytes, Relaxed);
            self.waiting.store(letters, Relaxed);
            if self.take_room(size) {
                return Ok(());
            }
        }
        Err(DeadLetterError::Full { max: self.max })
    }

    fn take_room(&self, size: u64) -> bool {
        let take = |used: u64| Some(used + size).filter(|sum| *sum <= self.max);
        self.used.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    fn may_measure(&self) -> bool {
        let now = rt::since(self.opened).as_millis() as u64;
        let next = now + MEASURE_EVERY.as_millis() as u64;
        let due = |after: u64| (after <= now).then_some(next);
        self.measure_after.fetch_update(Relaxed, Relaxed, due).is_ok()
    }

    fn write_file(&self, stem: &str, extension: &str, parts: &[&[u8]]) -> io::Result<()> {
        let unfinished = self.unfinished_path(stem);
        let written = (|| {
            let mut file = create_private(&unfinished)?;
            parts.iter().try_for_each(|part| file.write_all(part))?;
            file.sync_data()?;
            fs::rename(&unfinished, self.path(stem, extension))
        })();
        if written.is_err() {
            let _may_be_absent = fs::remove_file(unfinished);
        }
        written
    }

    fn unfinished_path(&self, stem: &str) -> PathBuf {
        let number = self.next_unfinished.fetch_add(1, Relaxed);
        self.path(stem, &format!("{number}.{UNFINISHED}"))
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&*self.directory)?.sync_all()
    }

    fn path(&self, stem: &str, extension: &str) -> PathBuf {
        self.directory.join(format!("{stem}.{extension}"))
    }
}

/// Creates the directory if needed, for its owner only: payloads may be private.
pub fn create_dir(directory: &Path) -> io::Result<()> {
    if let Some(parent) = directory.parent() {
        create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(_) if directory.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => give_to_owner_of_parent(directory),
    }
}

fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // What has this name already is not followed if it is a link.
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(path)
}

/// A file that holds nothing but a lock, which every user of the directory must be able to take.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            give_to_owner_of_directory(&file, path)?;
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path),
        Err(error) => Err(error),
    }
}

/// Removes old files without a dead letter. A running server may still finish young ones.
#[expect(clippy::disallowed_methods, reason = "runs before the executors serve anything")]
fn sweep(directory: &Path) -> io::Result<()> {
    let mut swept = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        let unfinished = match path.extension().and_then(|extension| extension.to_str()) {
            Some(UNFINISHED) => true,
            Some(PAYLOAD) => !path.with_extension(META).exists(),
            _ => false,
        };
        let modified = || entry.metadata()?.modified();
        let old = |since| rt::wall_clock().duration_since(since);
        if unfinished
            // Removed meanwhile, or dated in the future: kept.
            && modified().is_ok_and(|since| old(since).is_ok_and(|age| age > UNFINISHED_AGE_MAX))
            && fs::remove_file(&path).is_ok()
        {
            swept += 1;
        }
    }
    if swept > 0 {
        let directory = directory.display();
        tracing::warn!(
            "removed {swept} files from {directory} that an earlier process left unfinished"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coding::Coding;
    use crate::store::Object;
    use std::time::SystemTime;

    fn letter(key: &str, payload: &[u8]) -> DeadLetter {
        let payload = Payload::from(payload.to_vec());
        DeadLetter::now(&Object::of(key, &payload), 1, "null:".into(), "Code: message".into(), 3)
    }

    #[test]
    fn a_letter_from_before_there_were_many_payloads_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.json"), letter::OLD).unwrap();
        fs::write(dir.path().join("a.payload"), "{}").unwrap();
        let expected = serde_json::from_str(letter::OLD).unwrap();
        let dead = DeadLetters::open(dir.path(), 10_000).unwrap();
        assert_eq!(dead.list().unwrap().letters, [("a".to_owned(), expected)]);
    }

    #[test]
    fn a_letter_of_many_payloads_says_so_and_its_parts_become_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let dead = DeadLetters::open(dir.path(), 10 << 20).unwrap();
        // More than one copy's worth, and a part without bytes.
        let large: Vec<u8> = (0..COPY_BYTES + 1).map(|n| (n % 251) as u8).collect();
        let parts = [b"[1]\n".to_vec(), large, Vec::new(), b"end".to_vec()];
        let body: Vec<Payload> = parts.iter().cloned().map(Payload::from).collect();
        let coding = Some(Coding::Zstd);
        let object = Object { key: "dt=1/a.zst", body: &body, coding, sums: None };
        let letter = DeadLetter::now(&object, 500, "null:".into(), "Code: message".into(), 3);
        let written = rt::run_test(dead.write_off_core("a".into(), letter.clone(), &body));
        written.unwrap();
        assert_eq!(dead.payload("a").unwrap(), parts.concat());
        assert_eq!((dead.used(), dead.waiting()), (dead.measure().unwrap().bytes, 1));
        let listed = dead.list().unwrap().letters;
        assert_eq!(listed, [("a".to_owned(), letter.clone())]);
        assert_eq!((letter.bytes, letter.payloads), (parts.concat().len() as u64, 500));
        let json = fs::read_to_string(dir.path().join("a.json")).unwrap();
        assert!(json.ends_with(r#""payloads":500,"content_encoding":"zstd"}"#), "{json}");
    }

    #[test]
    fn letters_come_back_whole_and_leave_no_trace_when_removed() {
        let dir = tempfile::tempdir().unwrap();
        let dead = DeadLetters::open(dir.path(), 10_000).unwrap();
        dead.write("a", &letter("a.json", b"{}"), &[b"{}"]).unwrap();
        let second = letter("b.json", b"[1]");
        dead.write("b", &second, &[b"[1]"]).unwrap();
        let listed = dead.list().unwrap().letters;
        assert_eq!(listed.iter().map(|(stem, _)| stem.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(listed[1].1, second);
        assert_eq!(dead.payload("b").unwrap(), b"[1]");
        assert_eq!(DeadLetters::open(dir.path(), 10_000).unwrap().used(), dead.used());
        dead.remove("a").unwrap();
        dead.remove("b").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_bound_holds_and_room_made_by_a_replay_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let dead = DeadLetters::open(dir.path(), 400).unwrap();
        dead.write("a", &letter("a", &[b'1'; 100]), &[[b'1'; 100]]).unwrap();
        let full = dead.write("b", &letter("b", &[b'1'; 100]), &[[b'1'; 100]]);
        assert!(matches!(full, Err(DeadLetterError::Full { max: 400 })));
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            2,
            "a refused dead letter leaves nothing"
        );
        dead.remove("a").unwrap();
        let again = dead.write("b", &letter("b", &[b'1'; 100]), &[[b'1'; 100]]);
        again.expect_err(
            "measured a moment ago: a full directory is not read for every dead letter",
        );
        let_time_pass(&dead);
        dead.write("b", &letter("b", &[b'1'; 100]), &[[b'1'; 100]]).unwrap();
    }

    /// As if [`MEASURE_EVERY`] had passed.
    fn let_time_pass(dead: &DeadLetters) {
        dead.measure_after.store(0, Relaxed);
    }

    #[test]
    fn a_probe_succeeds_only_when_the_letter_that_failed_would_fit() {
        let dir = tempfile::tempdir().unwrap();
        let dead = DeadLetters::open(dir.path(), 800).unwrap();
        let write = |name: &str, size: usize| {
            let payload = vec![b'1'; size];
            dead.write(name, &letter(name, &payload), &[payload])
        };
        write("a", 100).unwrap();
        write("b", 500).unwrap_err();
        assert!(dead.is_failing());
        dead.probe();
        assert!(dead.is_failing(), "a smaller dead letter would fit, but not this one");
        dead.remove("a").unwrap();
        let_time_pass(&dead);
        dead.probe();
        assert!(!dead.is_failing());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a probe leaves nothing");
        assert_eq!(dead.used(), 0);
    }

    #[test]
    fn a_broken_letter_does_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let dead = DeadLetters::open(dir.path(), 10_000).unwrap();
        fs::write(dir.path().join("a.json"), b"{\"key\":").unwrap();
        dead.write("b", &letter("b", b"1"), &[b"1"]).unwrap();
        let Listing { letters, broken, .. } = dead.list().unwrap();
        assert_eq!((letters.len(), letters[0].0.as_str()), (1, "b"));
        assert_eq!((broken.len(), broken[0].0.as_str()), (1, "a"));
    }

    #[test]
    fn a_directory_that_vanished_is_an_error_not_a_silent_loss() {
        let dir = tempfile::tempdir().unwrap();
        let dead = DeadLetters::open(&dir.path().join("sub"), 10_000).unwrap();
        fs::remove_dir(dir.path().join("sub")).unwrap();
        let written = dead.write("a", &letter("a", b"1"), &[b"1"]);
        assert!(matches!(written, Err(DeadLetterError::Io(_))));
        assert_eq!(dead.used(), 0);
    }

    #[test]
    fn a_letter_that_fails_half_way_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dead = DeadLetters::open(dir.path(), 10_000).unwrap();
        fs::create_dir(dir.path().join("a.json")).unwrap();
        dead.write("a", &letter("a", b"1"), &[b"1"]).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only what was in the way");
        assert_eq!(dead.used(), 0);
    }

    #[test]
    fn opening_removes_what_is_unfinished_and_old() {
        let dir = tempfile::tempdir().unwrap();
        let dead = DeadLetters::open(dir.path(), 10_000).unwrap();
        dead.write("whole", &letter("whole", b"1"), &[b"1"]).unwrap();
        for name in ["old.payload", "old.0.tmp", "young.payload", "young.0.tmp"] {
            fs::write(dir.path().join(name), "1").unwrap();
        }
        let old = SystemTime::now() - UNFINISHED_AGE_MAX - Duration::from_secs(1);
        for name in ["old.payload", "old.0.tmp", "whole.payload", "whole.json"] {
            let file = OpenOptions::new().write(true).open(dir.path().join(name)).unwrap();
            file.set_modified(old).unwrap();
        }
        DeadLetters::open(dir.path(), 10_000).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["whole.json", "whole.payload", "young.0.tmp", "young.payload"]);
    }

    /// As `sudo millrace dead-letter rm` beside a server that is another user.
    #[test]
    fn what_root_makes_belongs_to_the_servers_user() {
        use std::os::unix::fs::{MetadataExt as _, chown, symlink};
        const USER: u32 = 4711;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        chown(dir.path(), Some(USER), Some(USER)).unwrap();
        let dead = DeadLetters::open(dir.path(), 10_000).unwrap();
        let mut bundle = dead.bundle();
        for name in ["a", "b"] {
            bundle.append(name, &letter(name, b"1"), &[b"1"]).unwrap();
        }
        bundle.publish().sync().unwrap();
        let path = dir.path().join("a.letters");
        // The server has written it.
        chown(&path, Some(USER), Some(USER)).unwrap();
        let second = dead.read_bundle("a").unwrap().nth(1).unwrap().unwrap().span;
        dead.keep("a", &[second]).unwrap();
        drop(dead.lock().unwrap().unwrap());
        for name in ["a.letters", ".replay.lock"] {
            let about = fs::metadata(dir.path().join(name)).unwrap();
            assert_eq!(
                (about.uid(), about.gid(), about.mode() & 0o777),
                (USER, USER, 0o600),
                "{name}"
            );
        }
        assert_eq!(dead.read_bundle("a").unwrap().count(), 1);
        // A link that the user has put there leads root nowhere.
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        fs::write(elsewhere.path(), "kept").unwrap();
        fs::remove_file(dir.path().join(".replay.lock")).unwrap();
        symlink(elsewhere.path(), dir.path().join(".replay.lock")).unwrap();
        dead.lock().unwrap_err();
        assert_eq!(fs::read_to_string(elsewhere.path()).unwrap(), "kept");
        assert_eq!(fs::metadata(elsewhere.path()).unwrap().uid(), 0);
    }

    #[test]
    fn one_replay_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let dead = DeadLetters::open(dir.path(), 10).unwrap();
        let held = dead.lock().unwrap();
        assert!(held.is_some());
        assert!(dead.lock().unwrap().is_none());
    }
}
