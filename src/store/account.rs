//! What both S3 clients do with credentials, the store's clock and its refusals, so that a payload
//! fares the same on either.

use std::sync::Arc;
use std::time::SystemTime;

use aws_smithy_async::time::TimeSource;

use super::clock::ClockOffset;
use super::dial::{LinkError, Origin};
use super::keys::SnapshotKeys;
use super::{Class, PutError, classify, connector};
use crate::aws::{AwsShared, Keys};

/// One core's standing with the store.
pub(crate) struct Account {
    pub(crate) shared: Arc<AwsShared>,
    pub(crate) keys: SnapshotKeys,
    pub(crate) clock: ClockOffset,
}

/// An answer that is no success.
pub(crate) struct Refusal<'a> {
    pub(crate) status: u16,
    pub(crate) code: Option<&'a str>,
    pub(crate) message: Option<&'a str>,
    pub(crate) date: Option<&'a str>,
}

impl Account {
    pub(crate) fn new(shared: Arc<AwsShared>) -> Account {
        let (keys, clock) = (SnapshotKeys::new(&shared), shared.clock.detached());
        Account { shared, keys, clock }
    }

    /// Reads the current credentials; those known to be expired are not worth a round trip. Known means: by this host's
    /// clock and by the store's, for either may be wrong, and only an answer says which.
    pub(crate) fn fresh_keys<R>(&self, read: impl FnOnce(&Keys) -> R) -> Result<R, PutError> {
        self.keys.current(|keys| {
            if keys
                .credentials
                .expiry()
                .is_none_or(|at| at > SystemTime::now().min(self.clock.now()))
            {
                return Ok(read(keys));
            }
            self.shared.want_newer_keys(keys.generation);
            Err(self.no_fresh_keys())
        })
    }

    fn no_fresh_keys(&self) -> PutError {
        if let Some(why) = self.shared.no_keys() {
            return PutError::new(Class::StoreWide, "NoCredentials", classify::bounded(&why));
        }
        let expired = "the credentials have expired and newer ones are not there yet";
        PutError::new(Class::Transient, "ExpiredCredentials", expired)
    }

    /// The store's time, as far as it is known.
    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Where a 307 points, if it may be followed: an absolute address, and not from https to http.
    pub(crate) fn redirect(&self, location: &str) -> Option<(Origin, http::Uri)> {
        let uri = location.parse().ok()?;
        let target = Origin::of(&uri)?;
        (target.https || !self.shared.https()).then_some((target, uri))
    }

    /// The worker's view of `refusal`, the answer to a request signed with credentials of
    /// `generation`.
    pub(crate) fn refused(&self, refusal: &Refusal<'_>, generation: u64) -> Result<(), PutError> {
        if self.is_there_already(refusal) {
            return Ok(());
        }
        let mut error = classify::reply_error(refusal.status, refusal.code, refusal.message);
        if let Some(proxy) = self.shared.http_proxy() {
            error.message = format!("{} (through proxy {proxy})", error.message);
        }
        let code = refusal.code.unwrap_or_default();
        if code == "RequestTimeTooSkewed" || self.clock.is_shifted() {
            self.clock.take(refusal.date);
        }
        if classify::wants_new_credentials(code) {
            self.shared.want_newer_keys(generation);
            if self.keys.current(|keys| keys.stuck) {
                error.class = Class::StoreWide;
            }
        }
        Err(error)
    }

    /// Whether the store kept what an earlier attempt had stored: no two payloads share a key, so what is there already
    /// is this one. Without `S3_IF_NONE_MATCH` no condition was sent, and such an answer says something else.
    fn is_there_already(&self, refusal: &Refusal<'_>) -> bool {
        self.shared.target().options.if_none_match
            && refusal.status == 412
            && refusal.code == Some("PreconditionFailed")
    }
}

/// The worker's view of a failure to get an answer.
pub(crate) fn unanswered(error: &LinkError) -> PutError {
    let (class, code) = classify::link(error);
    PutError::new(class, code, classify::bounded(&connector::with_sources(error)))
}
