//! Where payloads go. A store has one operation, `put`: workers know nothing about files or S3, and
//! stores know nothing about what an object is made of.
//!
//! A store makes one attempt: retry, backoff and the deadline belong to the worker. A `put` may be
//! dropped at any await. The object it was writing then appears whole under its key, possibly
//! later, or not at all.
//!
//! In reading order: `object` (what a put is given), `sums` (its checksums), `progress` (when a put
//! has stalled), [`mod@file`], [`s3`], `classify` (what a failure means), [`faulty`] (injected
//! faults).

pub(crate) mod classify;
pub mod faulty;
pub mod file;
mod object;
mod progress;
pub mod s3;
mod sums;

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Instant;

pub use object::Object;
pub use progress::{PeerSlot, Progress, PutTimeouts};
pub use sums::{Integrity, Summing, Sums};

use crate::config::{FaultPlan, S3Client};
use crate::deadline::Alarm;
use crate::queue::job::Origin;
use crate::rt;
use crate::store::s3::S3Shared;
use faulty::Faulty;
use progress::Stall;

/// What a failed put means for its payload, and for the payloads behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The store will never accept this object (too large, invalid argument, refused key): it
    /// becomes a dead letter at once.
    Object,
    /// Worth a retry with backoff: timeouts, connection errors, 5xx, throttling.
    Transient,
    /// Nothing can be stored until an operator or the store's side changes something: payloads are
    /// held and retried.
    StoreWide,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Object => "object",
            Class::Transient => "transient",
            Class::StoreWide => "store-wide",
        })
    }
}

/// Why a put failed. `code` is the store's own short code (`SlowDown`, `NoSuchBucket`, `ENOSPC`,
/// …).
#[derive(Clone, Debug, thiserror::Error)]
#[error("{code}: {message}{}", in_brackets(request_ids.as_deref()))]
pub struct PutError {
    pub class: Class,
    pub code: String,
    pub message: String,
    /// Ids by which the store's support finds the request, `name value` each; `None` if the store
    /// sent none.
    pub request_ids: Option<Box<str>>,
    /// What an operator can do about it; empty if nothing is known to help, or nothing is needed.
    pub remedy: &'static str,
    /// Fewer puts in flight could help: a timeout, a reset, or a store that says it is busy.
    pub congestion: bool,
}

impl PutError {
    pub fn new(class: Class, code: impl Into<String>, message: impl Into<String>) -> PutError {
        let (code, message) = (code.into(), message.into());
        PutError { class, code, message, request_ids: None, remedy: "", congestion: false }
    }
}

fn in_brackets(ids: Option<&str>) -> String {
    ids.map(|ids| format!(" ({ids})")).unwrap_or_default()
}

/// One core's store. Keys are relative to the store's own prefix.
pub enum Store {
    File(file::FileStore),
    /// Confirms everything and keeps nothing, for benchmarks.
    Null,
    /// S3 with the lean client.
    Direct(Box<s3::direct::DirectStore>),
    /// S3 with `aws-sdk-s3`.
    S3(s3::sdk::S3Store),
    Faulty(Box<faulty::Faulty>),
}

impl Store {
    /// Stores `object`. `Ok` means that the store confirmed it as durably as its kind can. Writing
    /// the same key again replaces the object, or with `S3_IF_NONE_MATCH` leaves the first one.
    ///
    /// # Errors
    /// Classified for the worker; see [`Class`].
    pub async fn put(&self, object: &Object<'_>) -> Result<(), PutError> {
        self.attempt(object, &Progress::default()).await
    }

    async fn attempt(&self, object: &Object<'_>, progress: &Progress) -> Result<(), PutError> {
        match self {
            Store::File(store) => store.put(object, progress).await,
            Store::Null => Ok(()),
            Store::Direct(store) => store.put(object, progress).await,
            // The large futures are boxed: every put's future has the size of the largest.
            Store::S3(store) => Box::pin(store.put(object, progress)).await,
            Store::Faulty(store) => Box::pin(store.put(object, progress)).await,
        }
    }

    /// Whether every object is stored as soon as it is put, so that many can be put in one go, by
    /// [`Store::put_at_once`].
    pub fn completes_at_once(&self) -> bool {
        matches!(self, Store::Null)
    }

    /// As [`Store::put`], without a future.
    ///
    /// # Panics
    /// The store does not [complete at once](Store::completes_at_once).
    #[inline]
    pub fn put_at_once(&self, _object: &Object<'_>) {
        match self {
            Store::Null => {}
            _ => unreachable!("this store takes its time"),
        }
    }

    /// Begins the sums that this store needs of an object's body, for [`Object::sums`]; they are
    /// empty for a store that needs none.
    pub fn summing(&self) -> Summing {
        match self {
            Store::Direct(store) => store.summing(),
            Store::Faulty(store) => store.summing(),
            Store::File(_) | Store::Null | Store::S3(_) => Summing::new(Integrity::NONE),
        }
    }

    /// [`Store::put`], abandoned after `timeouts`, which is worth a retry; returns when it ended. It
    /// starts at `since`, which the caller has just read from the clock.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub async fn put_within(
        &self,
        alarm: &mut Alarm,
        since: Instant,
        timeouts: PutTimeouts,
        object: &Object<'_>,
    ) -> Result<Instant, Box<FailedPut>> {
        let progress = Progress::since(since);
        let outcome = {
            let mut stall = Stall::new(since, timeouts);
            let mut put = pin!(self.attempt(object, &progress));
            // The first poll follows at once and need not read the clock again.
            let mut first = Some(since);
            poll_fn(|cx| {
                // Polled first: a response that has arrived counts, however late it is.
                if let Poll::Ready(done) = put.as_mut().poll(cx) {
                    return Poll::Ready(done);
                }
                loop {
                    let now = first.take().unwrap_or_else(rt::now);
                    ready!(alarm.poll(cx, now, stall.next_look()));
                    if let Err(late) = stall.look(rt::now(), &progress) {
                        progress.give_up();
                        return Poll::Ready(Err(late));
                    }
                }
            })
            .await
        };
        let at = progress.end();
        outcome.map(|()| at).map_err(|error| {
            let sums = progress.into_sums();
            Box::new(FailedPut { error, at, sums })
        })
    }
}

/// An attempt that has failed.
#[derive(Debug)]
pub struct FailedPut {
    pub error: PutError,
    /// When it ended.
    pub at: Instant,
    /// What it has computed of the object, for the next attempt ([`Object::sums`]).
    pub sums: Option<Sums>,
}

/// What a core builds its own store from: prepared once on the control executor, sent to every
/// core.
#[derive(Clone)]
pub enum StoreSeed {
    File {
        root: file::Root,
        /// Puts in flight per core, abandoned ones included; one per worker.
        puts_max: usize,
    },
    Null,
    S3 {
        shared: Arc<S3Shared>,
        /// Idle connections kept per core; one per worker.
        idle_max: usize,
    },
}

impl StoreSeed {
    /// The store of the core that `origin` names; call it on that core's executor. With a `plan` it
    /// injects faults, seeded per `stream`.
    pub fn build(self, origin: &Origin, plan: Option<FaultPlan>, stream: usize) -> Store {
        let store = match self {
            StoreSeed::File { root, puts_max } => {
                Store::File(file::FileStore::new(root, origin.name(), puts_max))
            }
            StoreSeed::Null => Store::Null,
            StoreSeed::S3 { shared, idle_max } => s3_store(shared, idle_max),
        };
        match plan {
            Some(plan) => Store::Faulty(Box::new(Faulty::new(store, plan, stream as u64))),
            None => store,
        }
    }
}

/// The configured client, or the SDK for buckets that only the SDK can write to.
fn s3_store(shared: Arc<S3Shared>, idle_max: usize) -> Store {
    if shared.target().options.client == S3Client::Direct {
        match s3::direct::DirectStore::new(shared.clone(), idle_max) {
            Ok(store) => return Store::Direct(Box::new(store)),
            Err(why) => {
                tracing::warn!(%why, "S3_CLIENT=direct cannot write to this bucket, using sdk")
            }
        }
    }
    Store::S3(s3::sdk::S3Store::new(shared, idle_max))
}

#[cfg(test)]
mod tests {
    use super::Class;
    use crate::metrics::PUT_ERROR_CLASSES;

    #[test]
    fn each_class_has_its_place_in_the_metric() {
        for class in [Class::Object, Class::Transient, Class::StoreWide] {
            assert_eq!(PUT_ERROR_CLASSES[class as usize], class.to_string().replace('-', "_"));
        }
    }
}
