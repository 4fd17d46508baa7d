//! Where payloads go: one `put` per object behind one seam, so that workers know nothing of files or S3, and stores
//! nothing of what an object is made of.
//!
//! A store makes one attempt: retry, backoff and the deadline belong to the worker. A `put` may be dropped at any
//! await; what it was writing then either appears whole under its key, if need be later, or not at all.

pub mod classify;
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

use crate::config::S3Client;
use crate::deadline::Alarm;
use crate::queue::job::Origin;
use crate::rt;
use crate::store::s3::AwsShared;
use faulty::{FaultPlan, Faulty};
use progress::Stall;

/// What a failed put means for the payload, and for everything behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// This object will never be taken (too large, invalid argument, refused key): dead letter at once.
    Object,
    /// Worth another try with backoff: timeouts, connection errors, 5xx, throttling.
    Transient,
    /// Nothing can be stored until an operator or the far side changes something: held and retried.
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

/// Why a put failed. `code` is the store's own short code (`SlowDown`, `NoSuchBucket`, `ENOSPC`, …).
#[derive(Clone, Debug, thiserror::Error)]
#[error("{code}: {message}{}", in_brackets(request_ids.as_deref()))]
pub struct PutError {
    pub class: Class,
    pub code: String,
    pub message: String,
    /// By which the store's support finds the request, `name value` each; `None` where the store gave none.
    pub request_ids: Option<Box<str>>,
    /// What an operator can do about it; empty where nothing is known to help, or nothing is needed.
    pub remedy: &'static str,
    /// Fewer puts in flight could help: a timeout, a reset, or a store that says so.
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

/// One core's way to where payloads go. Keys are relative to the store's own prefix.
pub enum Store {
    File(file::FileStore),
    /// Confirms everything and keeps nothing: for benchmarks.
    Null,
    /// S3 by the lean client.
    Direct(Box<s3::direct::DirectStore>),
    /// S3 by `aws-sdk-s3`.
    S3(s3::sdk::S3Store),
    Faulty(Box<faulty::Faulty>),
}

impl Store {
    /// Stores `object`; `Ok` means the store confirmed it, durably for its kind of store. Writing the same key again
    /// replaces what is there, or with `S3_IF_NONE_MATCH` leaves it as it is.
    ///
    /// # Errors
    /// Classified for the worker, see [`Class`].
    pub async fn put(&self, object: &Object<'_>) -> Result<(), PutError> {
        self.attempt(object, &Progress::default()).await
    }

    async fn attempt(&self, object: &Object<'_>, progress: &Progress) -> Result<(), PutError> {
        match self {
            Store::File(store) => store.put(object, progress).await,
            Store::Null => Ok(()),
            Store::Direct(store) => store.put(object, progress).await,
            // Boxed where the future is large: every put's is moved, whichever store it is for.
            Store::S3(store) => Box::pin(store.put(object, progress)).await,
            Store::Faulty(store) => Box::pin(store.put(object, progress)).await,
        }
    }

    /// Begins the sums that this store wants of an object's body, for [`Object::sums`]: nothing, where it wants none.
    pub fn summing(&self) -> Summing {
        match self {
            Store::Direct(store) => store.summing(),
            Store::Faulty(store) => store.summing(),
            Store::File(_) | Store::Null | Store::S3(_) => Summing::new(Integrity::NONE),
        }
    }

    /// [`Store::put`], begun at `since` and given up when `timeouts` say so, which is worth another try.
    ///
    /// # Errors
    /// As `put`'s.
    pub async fn put_within(
        &self,
        alarm: &mut Alarm,
        since: Instant,
        timeouts: PutTimeouts,
        object: &Object<'_>,
    ) -> Result<(), PutError> {
        let progress = Progress::default();
        let mut stall = Stall::new(since, timeouts);
        let mut put = pin!(self.attempt(object, &progress));
        poll_fn(|cx| {
            // Asked first: an answer that is there is taken, however late it is.
            if let Poll::Ready(done) = put.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            loop {
                ready!(alarm.poll(cx, stall.next_look()));
                if let Err(late) = stall.look(rt::now(), &progress) {
                    progress.give_up();
                    return Poll::Ready(Err(late));
                }
            }
        })
        .await
    }
}

/// What a core makes its own store from: prepared once on the control executor, sent to every core.
#[derive(Clone)]
pub enum StoreSeed {
    File {
        root: file::Root,
        /// Puts under way per core, those that nobody waits for any more included; one per worker.
        puts_max: usize,
    },
    Null,
    S3 {
        shared: Arc<AwsShared>,
        /// Idle connections kept per core; one per worker.
        idle_max: usize,
    },
}

impl StoreSeed {
    /// The store of the core that `origin` names; call it on that core's executor. `plan` wraps it in faults.
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

/// The client that was asked for, or the SDK for buckets that only it can write to.
fn s3_store(shared: Arc<AwsShared>, idle_max: usize) -> Store {
    if shared.target().options.client == S3Client::Direct {
        match s3::direct::DirectStore::new(shared.clone(), idle_max) {
            Ok(store) => return Store::Direct(Box::new(store)),
            Err(why) => tracing::warn!(%why, "S3_CLIENT=direct cannot write here, using sdk"),
        }
    }
    Store::S3(s3::sdk::S3Store::new(shared, idle_max))
}
