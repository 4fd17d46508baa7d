//! The commands other than `serve`: [`check`], [`health`], [`debug_bundle`], those on dead letters,
//! and in [`spool`] those on a spool.

pub mod ask;
pub mod check;
pub mod debug_bundle;
pub mod health;
pub mod out;
mod put;
pub mod spool;
pub mod tap;
pub mod top;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::rc::Rc;
use std::time::Duration;

use crate::config::{Config, StoreUrl};
use crate::control::{Exit, Prepared, prepare_store};
use crate::deadletter::bundle::{BundleDamage, BundleReader};
use crate::deadletter::{DeadLetter, DeadLetters, Listing};
use crate::deadline::Alarm;
use crate::key::as_file_name;
use crate::log::complain;
use crate::queue::job::{Origin, Payload};
use crate::rt::{self, sleep};
use crate::store::{Class, Object, PutError, PutTimeouts, Store};

/// Prints a report.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(report: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), String> {
    let mut out = out::stdout();
    report(&mut out).and_then(|()| out.flush()).map_err(|error| out::unwritable(&error))
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

/// Prints one line per dead letter, oldest first: time, attempts, size, the number of payloads if
/// it is not one, store, key, error.
///
/// # Errors
/// The directory cannot be read, or standard output cannot be written.
pub fn list_letters(config: &Config) -> Result<Exit, String> {
    let Some(dead) = open_letters(config)? else {
        print(|out| writeln!(out, "0 dead letters, 0 bytes"))?;
        return Ok(Exit::Clean);
    };
    let Listing { letters, bundles, broken } = dead.list().map_err(|error| error.to_string())?;
    let mut letters: Vec<DeadLetter> = letters.into_iter().map(|(_, letter)| letter).collect();
    for stem in &bundles {
        let Some(records) = open_bundle(&dead, stem) else { continue };
        for record in records {
            match record {
                Ok(record) => letters.push(record.letter),
                Err(damage) => report_damage(stem, &damage),
            }
        }
    }
    // Keys begin with their time by default.
    letters.sort_by(|a, b| a.key.cmp(&b.key));
    let bytes: u64 = letters.iter().map(|letter| letter.bytes).sum();
    print(|out| {
        letters.iter().try_for_each(|letter| writeln!(out, "{}", line(letter)))?;
        writeln!(out, "{} dead letters, {bytes} bytes", letters.len())
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

/// PUTs in flight at a time while replaying.
const REPLAY_WORKERS: usize = 16;
/// Attempts per payload before it is left in place.
const REPLAY_ATTEMPTS: u32 = 3;

/// Runs `work` on all `items`, [`REPLAY_WORKERS`] at a time.
async fn side_by_side<T: 'static>(
    items: impl Iterator<Item = T> + 'static,
    work: impl AsyncFn(T) + 'static,
) {
    let shared = Rc::new((RefCell::new(items), work));
    let workers: Vec<_> = (0..REPLAY_WORKERS)
        .map(|_| {
            let shared = shared.clone();
            rt::spawn(async move {
                let (items, work) = &*shared;
                loop {
                    let Some(next) = items.borrow_mut().next() else { break };
                    work(next).await;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await;
    }
}

/// A store whose PUTs are retried.
struct RetryingStore {
    store: Store,
    timeouts: PutTimeouts,
    /// The pause before the second attempt.
    pause: Duration,
}

impl RetryingStore {
    /// The configured store, which must be reachable.
    async fn prepare(config: &Config) -> Result<RetryingStore, String> {
        let origin = Origin::new(config.node_id.clone(), 0);
        // Without a spool to fall back on, a store that cannot be reached is an error.
        let Prepared { seed, finding, .. } = prepare_store(config, false).await?;
        finding.log();
        let store = seed.build(&origin, config.faults.clone(), 0);
        Ok(RetryingStore { store, timeouts: PutTimeouts::of(config), pause: config.retry_base })
    }

    /// Retries transient failures, up to [`REPLAY_ATTEMPTS`] attempts.
    async fn put(&self, object: &Object<'_>) -> Result<(), PutError> {
        let mut attempts = 0;
        let mut alarm = Alarm::default();
        loop {
            attempts += 1;
            let put = self.store.put_within(&mut alarm, rt::now(), self.timeouts, object).await;
            match put.map(drop).map_err(|failed| failed.error) {
                Err(error) if error.class == Class::Transient && attempts < REPLAY_ATTEMPTS => {
                    sleep(self.pause * attempts).await;
                }
                result => return result,
            }
        }
    }
}

/// Uploads every dead letter again under its recorded key, changed by [`as_file_name`] if the store
/// keeps files, and removes those that the store confirmed. Safe while a server runs, which only adds whole dead letters. Dead letters recorded
/// for a different store are skipped unless `any_store`, because their keys may mean something else
/// in this one. Exit 1 if some are left.
///
/// # Errors
/// The directory or the store cannot be used at all, or another replay is running.
pub async fn replay_letters(config: &Config, any_store: bool) -> Result<Exit, String> {
    let Some(dead) = open_letters(config)? else {
        print(|out| writeln!(out, "0 of 0 dead letters stored in {}", config.store))?;
        return Ok(Exit::Clean);
    };
    let lock = dead.lock().map_err(|error| error.to_string())?;
    let Some(_held) = lock else {
        return Err(format!("another replay of {} is running", dead.directory().display()));
    };
    let Listing { letters, bundles, broken } = dead.list().map_err(|error| error.to_string())?;
    report_broken(&broken);
    let replay = Rc::new(DeadLetterReplay {
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
    print(|out| {
        writeln!(out, "{stored} of {} dead letters stored in {}", stored + left, config.store)?;
        replay.elsewhere.borrow().iter().try_for_each(|(store, letters)| {
            writeln!(
                out,
                "{letters} are for {store} and were skipped; --any-store uploads them too"
            )
        })
    })?;
    Ok(if left == 0 { Exit::Clean } else { Exit::Unstored })
}

/// One replay and its counts.
struct DeadLetterReplay {
    dead: DeadLetters,
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
        match outcome {
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
