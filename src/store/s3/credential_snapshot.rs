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
    /// This executor's copy of the last publication it has seen.
    own: PublishedCredentials,
}

impl CredentialSnapshot {
    pub(super) fn new(shared: &S3Shared) -> CredentialSnapshot {
        let mut published = Cache::new(shared.credentials_source());
        let own = own_copy(published.load());
        CredentialSnapshot(CoreLocal::new(Rc::new(RefCell::new(View { published, own }))))
    }

    /// Reads the current credentials.
    pub(super) fn with_current<R>(&self, read: impl FnOnce(&PublishedCredentials) -> R) -> R {
        let mut view = self.0.borrow_mut();
        let view = &mut *view;
        let newest = view.published.load();
        if newest.generation != view.own.generation {
            view.own = own_copy(newest);
        }
        read(&view.own)
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
