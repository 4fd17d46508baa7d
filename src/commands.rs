//! The commands other than `serve`: [`check`], [`health`], [`debug_bundle`], [`bench`](mod@bench), in
//! [`dead_letters`] those on dead letters, and in [`spool`] those on a spool.

pub mod ask;
pub mod bench;
pub mod check;
pub mod dead_letters;
pub mod debug_bundle;
pub mod health;
pub mod out;
mod progress;
mod put;
pub mod spool;
pub mod tap;
pub mod top;

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;
use std::time::Duration;

use crate::config::Config;
use crate::control::{Prepared, prepare_store};
use crate::deadline::Alarm;
use crate::queue::job::Origin;
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
