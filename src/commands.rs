//! The commands beside `serve`: `check`, and what is done with dead letters.

use std::rc::Rc;
use std::time::Duration;

use futures_lite::FutureExt;
use glommio::timer::{Timer, sleep};

use crate::config::Config;
use crate::control::{Exit, prepare_store};
use crate::deadletter::{DeadLetters, Letter, Listing};
use crate::job::{Origin, Payload};
use crate::preflight::{Finding, failed, table};
use crate::store::{Class, PutError, Store};

/// Adds the store's row to the preflight's `findings`, prints them all, and says whether a server would start.
pub async fn check(config: &Config, mut findings: Vec<Finding>) -> Exit {
    findings.push(match prepare_store(config).await {
        Ok((_, probed)) => probed,
        Err(error) => Finding::fail("probe", error, "correct STORE or the settings it names"),
    });
    print!("{}", table(&findings));
    if failed(&findings) { Exit::Refused } else { Exit::Clean }
}

fn open_letters(config: &Config) -> Result<DeadLetters, String> {
    let directory = &config.dead_letter_dir;
    DeadLetters::open(directory, config.dead_letter_max)
        .map_err(|error| format!("DEAD_LETTER_DIR {}: {error}", directory.display()))
}

/// One line per letter, oldest first: time, attempts, size, store, key, error.
///
/// # Errors
/// The directory cannot be read.
pub fn list_letters(config: &Config) -> Result<Exit, String> {
    let letters = open_letters(config)?;
    let Listing { letters, broken } = letters.list().map_err(|error| error.to_string())?;
    for (_, letter) in &letters {
        let Letter { key, store, error, attempts, unix_seconds, bytes } = letter;
        let given_up = std::time::UNIX_EPOCH + Duration::from_secs(*unix_seconds);
        let time = humantime::format_rfc3339_seconds(given_up);
        println!("{time}  {attempts:>4} tries  {bytes:>9} B  {store}  {key}  {error}");
    }
    let bytes: u64 = letters.iter().map(|(_, letter)| letter.bytes).sum();
    println!("{} dead letters, {bytes} bytes", letters.len());
    report_broken(&broken);
    Ok(Exit::Clean)
}

fn report_broken(broken: &[(String, String)]) {
    for (stem, why) in broken {
        eprintln!("{stem}.json: not a letter, left where it is: {why}");
    }
}

/// Puts in flight at a time while replaying.
const REPLAY_WORKERS: usize = 16;
/// Tries per letter before it is left where it is.
const REPLAY_ATTEMPTS: u32 = 3;

/// Puts every letter again under its recorded key and removes what the store confirmed; safe beside a running server,
/// which only adds whole letters. Exit 1 when some are left.
///
/// # Errors
/// The directory or the store cannot be used at all, or another replay is under way.
pub async fn replay_letters(config: &Config) -> Result<Exit, String> {
    let dead = open_letters(config)?;
    let lock = dead.lock().map_err(|error| error.to_string())?;
    let Some(_held) = lock else {
        return Err(format!("another replay of {} is under way", dead.directory().display()));
    };
    let Listing { letters, broken } = dead.list().map_err(|error| error.to_string())?;
    report_broken(&broken);
    let origin = Origin { node: config.node_id.clone(), core: 0 };
    let (seed, probed) = prepare_store(config).await?;
    probed.log();
    let store = Rc::new(seed.build(&origin, config.faults.clone(), 0));
    let total = letters.len() + broken.len();
    let queue = Rc::new(std::cell::RefCell::new(letters.into_iter()));
    let workers: Vec<_> = (0..REPLAY_WORKERS)
        .map(|_| {
            let (queue, dead, store) = (queue.clone(), dead.clone(), store.clone());
            let (deadline, pause) = (config.put_timeout, config.retry_base);
            glommio::spawn_local(async move {
                let mut stored = 0;
                loop {
                    let Some((stem, letter)) = queue.borrow_mut().next() else { break };
                    match replay(&dead, &store, &stem, &letter, deadline, pause).await {
                        Ok(()) => stored += 1,
                        Err(error) => eprintln!("{}: left where it is: {error}", letter.key),
                    }
                }
                stored
            })
        })
        .collect();
    let mut stored = 0;
    for worker in workers {
        stored += worker.await;
    }
    println!("{stored} of {total} dead letters stored in {}", config.store);
    Ok(if stored == total { Exit::Clean } else { Exit::Unstored })
}

async fn replay(
    dead: &DeadLetters,
    store: &Store,
    stem: &str,
    letter: &Letter,
    deadline: Duration,
    pause: Duration,
) -> Result<(), String> {
    let payload = Payload::from(dead.payload(stem).map_err(|error| error.to_string())?);
    if payload.len() as u64 != letter.bytes {
        let (found, recorded) = (payload.len(), letter.bytes);
        return Err(format!("its payload file holds {found} bytes where {recorded} were recorded"));
    }
    let mut attempts = 0;
    loop {
        attempts += 1;
        let timeout = async {
            Timer::new(deadline).await;
            Err(PutError::new(Class::Transient, "Timeout", "no answer within PUT_TIMEOUT"))
        };
        match store.put(&letter.key, &payload).or(timeout).await {
            Ok(()) => return dead.remove(stem).map_err(|error| error.to_string()),
            Err(error) if error.class == Class::Transient && attempts < REPLAY_ATTEMPTS => {
                sleep(pause * attempts).await;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}
