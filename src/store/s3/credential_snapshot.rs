//! One executor's view of the published credentials: read per request, without an atomic
//! read-modify-write.
//!
//! Each executor copies the credentials once per publication, so cores do not even share a
//! reference count.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, future};

use super::connector::CoreLocal;
use super::shared::{PublishedCredentials, S3Shared};

/// The SDK's credentials provider on one executor; its future is ready on first poll.
#[derive(Debug)]
pub(super) struct CredentialSnapshot(CoreLocal<Rc<RefCell<View>>>);

struct View {
    published: Cache<Arc<ArcSwap<PublishedCredentials>>, Arc<PublishedCredentials>>,
    /// This executor's copy of the last publication that it has seen.
    own: PublishedCredentials,
    /// Its copy of the one before that.
    previous: Option<PublishedCredentials>,
}

impl CredentialSnapshot {
    pub(super) fn new(shared: &S3Shared) -> CredentialSnapshot {
        CredentialSnapshot::of(shared.credentials_source())
    }

    fn of(source: Arc<ArcSwap<PublishedCredentials>>) -> CredentialSnapshot {
        let mut published = Cache::new(source);
        let own = own_copy(published.load());
        let view = View { published, own, previous: None };
        CredentialSnapshot(CoreLocal::new(Rc::new(RefCell::new(view))))
    }

    /// Reads the current credentials.
    pub(super) fn with_current<R>(&self, read: impl FnOnce(&PublishedCredentials) -> R) -> R {
        let mut view = self.0.borrow_mut();
        let view = &mut *view;
        let newest = view.published.load();
        if newest.generation != view.own.generation {
            view.previous = Some(std::mem::replace(&mut view.own, own_copy(newest)));
        }
        read(&view.own)
    }

    /// The current credentials and those before them, which the store has been sent and may quote.
    pub(super) fn known(&self) -> Vec<Credentials> {
        let current = self.with_current(|published| published.credentials.clone());
        let view = self.0.borrow();
        let previous = view.previous.iter().map(|published| published.credentials.clone());
        previous.chain([current]).collect()
    }
}

impl Clone for CredentialSnapshot {
    fn clone(&self) -> CredentialSnapshot {
        CredentialSnapshot(CoreLocal::new(Rc::clone(&self.0)))
    }
}

impl ProvideCredentials for CredentialSnapshot {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Ok(
            self.with_current(|published| published.credentials.clone())
        ))
    }
}

fn own_copy(published: &PublishedCredentials) -> PublishedCredentials {
    let from = &published.credentials;
    let credentials = Credentials::new(
        from.access_key_id(),
        from.secret_access_key(),
        from.session_token().map(str::to_owned),
        from.expiry(),
        "millrace",
    );
    PublishedCredentials { credentials, ..*published }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_before_a_rotation_are_still_known() {
        let publication = |generation: u64| PublishedCredentials {
            credentials: Credentials::new(format!("key {generation}"), "s", None, None, "test"),
            generation,
            stuck: false,
        };
        let source = Arc::new(ArcSwap::from_pointee(publication(1)));
        let snapshot = CredentialSnapshot::of(source.clone());
        let keys = || {
            let known = snapshot.known();
            known.iter().map(|of| of.access_key_id().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(keys(), ["key 1"]);
        for generation in 2..4 {
            source.store(Arc::new(publication(generation)));
            let (before, now) = (format!("key {}", generation - 1), format!("key {generation}"));
            assert_eq!(keys(), [before, now.clone()]);
            snapshot.with_current(|published| {
                assert_eq!(published.credentials.access_key_id(), now);
            });
        }
    }
}
