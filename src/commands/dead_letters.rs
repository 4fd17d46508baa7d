//! `millrace dead-letter …`: lists, shows, removes or uploads what the store did not accept.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use super::progress::ProgressLine;
use super::{RetryingStore, out, print, side_by_side};
use crate::config::{Config, StoreUrl};
use crate::control::Exit;
use crate::deadletter::bundle::{BundleDamage, BundleReader};
use crate::deadletter::{DeadLetter, DeadLetters, Listing};
use crate::key::as_file_name;
use crate::log::{CountOf, complain};
use crate::queue::job::Payload;
use crate::rt;
use crate::store::Object;

/// Which dead letters a command is about: those that fit all that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// Keys; empty: any.
    pub keys: Vec<String>,
    /// A part of the error, in any case.
    pub error: Option<String>,
    /// The least time since the last attempt.
    pub older: Option<Duration>,
}

impl LetterFilter {
    fn takes(&self, letter: &DeadLetter) -> bool {
        let age = || {
            let now = rt::wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
            now.saturating_sub(Duration::from_secs(letter.unix_seconds))
        };
        let has =
            |text: &String| letter.error.to_ascii_lowercase().contains(&text.to_ascii_lowercase());
        (self.keys.is_empty() || self.keys.contains(&letter.key))
            && self.error.as_ref().is_none_or(has)
            && self.older.is_none_or(|least| age() >= least)
    }
}

/// `None` if there is no directory, so no dead letters. It is not created: that is up to a server.
fn open_letters(config: &Config) -> Result<Option<DeadLetters>, String> {
    let directory = &config.dead_letter_dir;
    if matches!(directory.try_exists(), Ok(false)) {
        return Ok(None);
    }
    DeadLetters::open(directory, config.dead_letter_max)
        .map(Some)
        .map_err(|error| format!("DEAD_LETTER_DIR {}: {error}", directory.display()))
}

/// Prints one line per dead letter that `filter` takes, oldest first: time, attempts, size, the
/// number of payloads if it is not one, store, key, error.
///
/// # Errors
/// The directory cannot be read, or standard output cannot be written.
pub fn list(config: &Config, filter: &LetterFilter) -> Result<Exit, String> {
    let Some(dead) = open_letters(config)? else {
        print(|out| writeln!(out, "0 dead letters, 0 bytes"))?;
        return Ok(Exit::Clean);
    };
    let Listing { letters, bundles, broken } = dead.list().map_err(|error| error.to_string())?;
    let letters = letters.into_iter().map(|(_, letter)| letter);
    let mut letters: Vec<DeadLetter> = letters.filter(|letter| filter.takes(letter)).collect();
    for stem in &bundles {
        let Some(records) = open_bundle(&dead, stem) else { continue };
        for record in records {
            match record {
                Ok(record) if filter.takes(&record.letter) => letters.push(record.letter),
                Ok(_) => {}
                Err(damage) => report_damage(stem, &damage),
            }
        }
    }
    // By default keys begin with the payload's own time.
    letters.sort_by(|a, b| (a.unix_seconds, &a.key).cmp(&(b.unix_seconds, &b.key)));
    let bytes: u64 = letters.iter().map(|letter| letter.bytes).sum();
    print(|out| {
        letters.iter().try_for_each(|letter| writeln!(out, "{}", line(letter)))?;
        let letters = CountOf(letters.len(), "dead letter");
        writeln!(out, "{letters}, {}", CountOf(bytes, "byte"))
    })?;
    report_broken(&broken);
    Ok(Exit::Clean)
}

fn line(letter: &DeadLetter) -> String {
    let DeadLetter { key, store, error, attempts, unix_seconds, bytes, payloads, .. } = letter;
    let given_up = std::time::UNIX_EPOCH + Duration::from_secs(*unix_seconds);
    let time = humantime::format_rfc3339_seconds(given_up);
    let many = if *payloads == 1 { String::new() } else { format!("{payloads} payloads  ") };
    format!("{time}  {attempts:>4} tries  {bytes:>9} B  {many}{store}  {key}  {error}")
}

fn report_broken(broken: &[(String, String)]) {
    for (stem, why) in broken {
        complain(format_args!("{stem}.json: not a dead letter, left in place: {why}"));
    }
}

fn report_damage(stem: &str, damage: &BundleDamage) {
    complain(format_args!("{stem}.letters: {damage}; the rest of it is left in place"));
}

/// `None` if there is nothing to read: another process has replayed it meanwhile, or it is
/// unreadable, which is reported.
fn open_bundle(dead: &DeadLetters, stem: &str) -> Option<BundleReader> {
    dead.read_bundle(stem)
        .inspect_err(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                complain(format_args!("{stem}.letters: {error}"));
            }
        })
        .ok()
}

/// Prints what is known of each dead letter with one of these keys, as JSON, or with `payload` its
/// object's bytes and nothing else. Exit 1 if one of `keys` has none, or its payload cannot be read.
///
/// # Errors
/// The directory cannot be read, or standard output cannot be written.
pub fn show(config: &Config, keys: &[String], payload: bool) -> Result<Exit, String> {
    let filter = LetterFilter { keys: keys.to_vec(), ..LetterFilter::default() };
    let mut shown = LettersShown { out: out::data(), keys: Vec::new(), unread: false };
    if let Some(dead) = open_letters(config)? {
        let Listing { letters, bundles, broken } =
            dead.list().map_err(|error| error.to_string())?;
        for (stem, letter) in letters.iter().filter(|(_, letter)| filter.takes(letter)) {
            shown.add(letter, payload.then(|| dead.payload(stem)))?;
        }
        for stem in &bundles {
            for record in open_bundle(&dead, stem).into_iter().flatten() {
                match record {
                    Ok(record) if filter.takes(&record.letter) => {
                        shown.add(&record.letter, payload.then_some(Ok(record.payload)))?;
                    }
                    Ok(_) => {}
                    Err(damage) => report_damage(stem, &damage),
                }
            }
        }
        report_broken(&broken);
    }
    let LettersShown { mut out, keys: found, unread } = shown;
    out.flush().map_err(|error| out::unwritable(&error))?;
    let missing = keys.iter().filter(|key| !found.contains(key));
    let missing =
        missing.inspect(|key| complain(format_args!("{key}: no dead letter has this key")));
    Ok(if missing.count() == 0 && !unread { Exit::Clean } else { Exit::Unstored })
}

/// What `show` has shown.
struct LettersShown<W> {
    out: W,
    keys: Vec<String>,
    /// A payload could not be read.
    unread: bool,
}

impl<W: io::Write> LettersShown<W> {
    /// Shows a dead letter, or its object if that was read.
    fn add(
        &mut self,
        letter: &DeadLetter,
        object: Option<io::Result<Vec<u8>>>,
    ) -> Result<(), String> {
        // Also of one that cannot be read: it is there.
        self.keys.push(letter.key.clone());
        let written = match object {
            None => {
                let text = serde_json::to_string_pretty(letter);
                writeln!(self.out, "{}", text.expect("a dead letter is plain data"))
            }
            Some(Ok(bytes)) => self.out.write_all(&bytes),
            Some(Err(error)) => {
                complain(format_args!("{}: its payload cannot be read: {error}", letter.key));
                self.unread = true;
                return Ok(());
            }
        };
        written.map_err(|error| out::unwritable(&error))
    }
}

/// Removes the dead letters that `filter` takes, with their payloads. Exit 1 if one of its keys has
/// none, or something could not be removed.
///
/// # Errors
/// The directory cannot be read, or a replay is running.
pub fn remove(config: &Config, filter: &LetterFilter) -> Result<Exit, String> {
    let mut removal = Removal { filter, removed: Vec::new(), bytes: 0, failed: false };
    if let Some(dead) = open_letters(config)? {
        let _held = lock(&dead)?;
        let Listing { letters, bundles, broken } =
            dead.list().map_err(|error| error.to_string())?;
        for (stem, letter) in letters.iter().filter(|(_, letter)| filter.takes(letter)) {
            removal.note(&[letter], dead.remove(stem), stem);
        }
        for stem in &bundles {
            removal.rewrite_bundle(&dead, stem);
        }
        report_broken(&broken);
    }
    let Removal { removed, bytes, mut failed, .. } = removal;
    for key in filter.keys.iter().filter(|key| !removed.contains(key)) {
        complain(format_args!("{key}: no dead letter has this key"));
        failed = true;
    }
    let (removed, bytes) = (CountOf(removed.len(), "dead letter"), CountOf(bytes, "byte"));
    print(|out| writeln!(out, "{removed} removed, {bytes}"))?;
    Ok(if failed { Exit::Unstored } else { Exit::Clean })
}

/// What a removal has done so far.
struct Removal<'a> {
    filter: &'a LetterFilter,
    /// Keys.
    removed: Vec<String>,
    /// Of their objects.
    bytes: u64,
    failed: bool,
}

impl Removal<'_> {
    fn note(&mut self, letters: &[&DeadLetter], outcome: io::Result<()>, file: &str) {
        if let Err(error) = outcome {
            complain(format_args!("{file}: could not be removed: {error}"));
            self.failed = true;
            return;
        }
        self.removed.extend(letters.iter().map(|letter| letter.key.clone()));
        self.bytes += letters.iter().map(|letter| letter.bytes).sum::<u64>();
    }

    /// Rewrites a bundle without what is removed. Its unreadable rest stays.
    fn rewrite_bundle(&mut self, dead: &DeadLetters, stem: &str) {
        let Some(records) = open_bundle(dead, stem) else { return };
        let length = records.length();
        let (mut chosen, mut left) = (Vec::new(), Vec::new());
        for record in records {
            match record {
                Ok(record) if self.filter.takes(&record.letter) => chosen.push(record.letter),
                Ok(record) => left.push(record.span),
                Err(damage) => {
                    report_damage(stem, &damage);
                    left.push(damage.at..length);
                }
            }
        }
        if !chosen.is_empty() {
            let chosen: Vec<&DeadLetter> = chosen.iter().collect();
            self.note(&chosen, dead.keep(stem, &left), stem);
        }
    }
}

/// The lock of a replay, which a removal takes too: both rewrite files.
fn lock(dead: &DeadLetters) -> Result<File, String> {
    let lock = dead.lock().map_err(|error| error.to_string())?;
    lock.ok_or_else(|| format!("another replay of {} is running", dead.directory().display()))
}

/// Uploads every dead letter that `filter` takes again under its recorded key, changed by
/// [`as_file_name`] if the store keeps files, and removes those that the store confirmed. Safe while
/// a server runs, which only adds whole dead letters. Dead letters recorded for a different store are
/// skipped unless `any_store`, because their keys may mean something else in this one. Exit 1 if some
/// of those taken are left.
///
/// # Errors
/// The directory or the store cannot be used at all, or another replay is running.
pub async fn replay(
    config: &Config,
    filter: LetterFilter,
    any_store: bool,
) -> Result<Exit, String> {
    let Some(dead) = open_letters(config)? else {
        print(|out| writeln!(out, "0 of 0 dead letters stored in {}", config.store))?;
        return Ok(Exit::Clean);
    };
    let _held = lock(&dead)?;
    let Listing { letters, bundles, broken } = dead.list().map_err(|error| error.to_string())?;
    report_broken(&broken);
    let total = letters.iter().map(|(_, letter)| letter.bytes).sum::<u64>()
        + bundles.iter().map(|stem| dead.bundle_bytes(stem)).sum::<u64>();
    let replay = Rc::new(DeadLetterReplay {
        filter,
        progress: ProgressLine::begin("replaying", total),
        others: Cell::new(0),
        puts: RetryingStore::prepare(config).await?,
        dead,
        only_for: (!any_store).then(|| config.store.to_string()),
        is_file: matches!(config.store, StoreUrl::File(_)),
        stored: Cell::new(0),
        left: Cell::new(broken.len()),
        elsewhere: RefCell::default(),
    });
    replay.put_pairs(letters).await;
    for stem in &bundles {
        replay.put_bundle(stem).await;
    }
    let (stored, left) = (replay.stored.get(), replay.left.get());
    replay.progress.end();
    print(|out| {
        let tried = CountOf(stored + left, "dead letter");
        writeln!(out, "{stored} of {tried} stored in {}", config.store)?;
        if replay.others.get() > 0 {
            let others = CountOf(replay.others.get(), "dead letter");
            writeln!(out, "not asked for, and left in place: {others}")?;
        }
        replay.elsewhere.borrow().iter().try_for_each(|(store, letters)| {
            let letters = CountOf(*letters, "dead letter");
            writeln!(out, "skipped for {store}: {letters}; --any-store uploads such as well")
        })
    })?;
    Ok(if left == 0 { Exit::Clean } else { Exit::Unstored })
}

/// One replay and its counts.
struct DeadLetterReplay {
    dead: DeadLetters,
    filter: LetterFilter,
    progress: ProgressLine,
    /// Dead letters that the filter does not take.
    others: Cell<usize>,
    puts: RetryingStore,
    /// The only store whose dead letters are uploaded; `None`: any.
    only_for: Option<String>,
    /// Whether keys are names of files.
    is_file: bool,
    stored: Cell<usize>,
    /// Dead letters that stay, and unreadable files that may contain some.
    left: Cell<usize>,
    /// The dead letters among them that are for other stores, by store.
    elsewhere: RefCell<BTreeMap<String, usize>>,
}

/// A dead letter to upload; `P` is its position on disk.
struct Candidate<P> {
    letter: DeadLetter,
    payload: io::Result<Vec<u8>>,
    position: P,
}

/// Why a dead letter is left in place.
enum NotStored {
    /// It is for another store; these are counted and reported together.
    Elsewhere,
    /// The filter does not take it.
    NotAsked,
    Because(String),
}

impl DeadLetterReplay {
    /// Uploads the dead letters that have files of their own.
    async fn put_pairs(self: &Rc<Self>, letters: Vec<(String, DeadLetter)>) {
        let dead = self.dead.clone();
        let found = letters.into_iter().map(move |(stem, letter)| Candidate {
            payload: dead.payload(&stem),
            letter,
            position: stem,
        });
        let dead = self.dead.clone();
        self.put_all(found, move |stem, outcome| {
            outcome?;
            let removed = dead.remove(stem);
            removed.map_err(|error| {
                NotStored::Because(format!("stored, but could not be removed: {error}"))
            })
        })
        .await;
    }

    /// Uploads the dead letters of one bundle file. It is rewritten with those that are left, or
    /// removed if there are none.
    async fn put_bundle(self: &Rc<Self>, stem: &str) {
        let Some(mut records) = open_bundle(&self.dead, stem) else {
            self.left.set(self.left.get() + 1);
            return;
        };
        let length = records.length();
        let damage = Rc::new(RefCell::new(None));
        let left = Rc::new(RefCell::new(Vec::new()));
        let found = {
            let damage = damage.clone();
            std::iter::from_fn(move || match records.next()? {
                Ok(record) => Some(Candidate {
                    letter: record.letter,
                    payload: Ok(record.payload),
                    position: record.span,
                }),
                Err(found) => {
                    damage.replace(Some(found));
                    None
                }
            })
        };
        // Tells whether this file has to change at all.
        let before = self.stored.get();
        let note = left.clone();
        self.put_all(found, move |span, outcome| {
            outcome.inspect_err(|_| note.borrow_mut().push(span.clone()))
        })
        .await;
        let mut left = left.take();
        // Uploads end in any order.
        left.sort_by_key(|span| span.start);
        if let Some(damage) = damage.take() {
            report_damage(stem, &damage);
            self.left.set(self.left.get() + 1);
            // The unreadable rest may contain dead letters, so it is kept.
            left.push(damage.at..length);
        }
        if self.stored.get() == before {
            return;
        }
        if let Err(error) = self.dead.keep(stem, &left) {
            complain(format_args!(
                "{stem}.letters: what was stored could not be removed from it: {error}"
            ));
            self.left.set(self.left.get() + 1);
        }
    }

    /// Uploads all of `found`. `complete` gets each result and may still turn it into a failure.
    async fn put_all<P: 'static>(
        self: &Rc<Self>,
        found: impl Iterator<Item = Candidate<P>> + 'static,
        complete: impl Fn(&P, Result<(), NotStored>) -> Result<(), NotStored> + 'static,
    ) {
        let replay = self.clone();
        side_by_side(found, async move |Candidate { letter, payload, position }| {
            let outcome = replay.put(&letter, payload).await;
            replay.count(letter, complete(&position, outcome));
        })
        .await;
    }

    fn count(&self, letter: DeadLetter, outcome: Result<(), NotStored>) {
        self.progress.item(letter.bytes);
        match outcome {
            Err(NotStored::NotAsked) => return self.others.set(self.others.get() + 1),
            Ok(()) => return self.stored.set(self.stored.get() + 1),
            Err(NotStored::Elsewhere) => {
                *self.elsewhere.borrow_mut().entry(letter.store).or_default() += 1
            }
            Err(NotStored::Because(why)) => {
                complain(format_args!("{}: left in place: {why}", letter.key));
            }
        }
        self.left.set(self.left.get() + 1);
    }

    async fn put(
        &self,
        letter: &DeadLetter,
        payload: io::Result<Vec<u8>>,
    ) -> Result<(), NotStored> {
        if !self.filter.takes(letter) {
            return Err(NotStored::NotAsked);
        }
        if self.only_for.as_ref().is_some_and(|store| *store != letter.store) {
            return Err(NotStored::Elsewhere);
        }
        let payload = payload.map_err(|error| NotStored::Because(error.to_string()))?;
        let payload = Payload::from(payload);
        if payload.len() as u64 != letter.bytes {
            let (found, recorded) = (payload.len(), letter.bytes);
            return Err(NotStored::Because(format!(
                "its payload file has {found} bytes instead of the recorded {recorded}"
            )));
        }
        let coding = letter.content_encoding;
        let key = match self.is_file {
            true => as_file_name(&letter.key),
            false => letter.key.clone(),
        };
        let put = self.puts.put(&Object { coding, ..Object::of(&key, &payload) }).await;
        put.map_err(|error| NotStored::Because(error.to_string()))?;
        if key != letter.key {
            complain(format_args!("{}: no file can have this name, stored as {key}", letter.key));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coding::Coding;

    #[test]
    fn a_filter_takes_what_fits_all_of_it() {
        let payload = Payload::from(b"{}".to_vec());
        let error = "AccessDenied: no".to_owned();
        let letter = DeadLetter::now(&Object::of("a/b", &payload), 1, "null:".into(), error, 3);
        let old = DeadLetter { unix_seconds: letter.unix_seconds - 100, ..letter.clone() };
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        let any = LetterFilter::default;
        let older = |seconds| LetterFilter { older: Some(Duration::from_secs(seconds)), ..any() };
        let error = |text: &str| LetterFilter { error: Some(text.to_owned()), ..any() };
        for (filter, takes_new, takes_old) in [
            (any(), true, true),
            (LetterFilter { keys: keys(&["x", "a/b"]), ..any() }, true, true),
            (LetterFilter { keys: keys(&["a"]), ..any() }, false, false),
            (error("accessdenied"), true, true),
            (error("SlowDown"), false, false),
            (older(60), false, true),
            (older(3600), false, false),
            (LetterFilter { keys: keys(&["a/b"]), ..older(60) }, false, true),
            (LetterFilter { keys: keys(&["x"]), ..older(60) }, false, false),
        ] {
            let taken = (filter.takes(&letter), filter.takes(&old));
            assert_eq!(taken, (takes_new, takes_old), "{filter:?}");
        }
        // The clock was set back since.
        let future = DeadLetter { unix_seconds: letter.unix_seconds + 100, ..letter };
        assert!(!older(1).takes(&future) && older(0).takes(&future));
    }

    #[test]
    fn a_letter_is_one_line_that_counts_payloads_where_there_is_not_one() {
        let payload = Payload::from(b"{}".to_vec());
        let object = Object { coding: Some(Coding::Gzip), ..Object::of("k", &payload) };
        let (store, error) = ("null:".to_owned(), "Code: message".to_owned());
        let one = DeadLetter { unix_seconds: 0, ..DeadLetter::now(&object, 1, store, error, 3) };
        let start = "1970-01-01T00:00:00Z     3 tries          2 B  ";
        assert_eq!(line(&one), format!("{start}null:  k  Code: message"));
        let many = DeadLetter { payloads: 500, ..one };
        assert_eq!(line(&many), format!("{start}500 payloads  null:  k  Code: message"));
    }
}
