//! A core's view of control's credentials: read per request, without an atomic read-modify-write.
//!
//! The snapshot is copied once per publication, so that cores share not even a reference count of
//! it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, future};

use super::connector::CoreLocal;
use crate::store::s3::{AwsShared, Keys};

/// The SDK's credentials provider on a core; its future is ready on first poll.
#[derive(Debug)]
pub(crate) struct SnapshotKeys(CoreLocal<Rc<RefCell<View>>>);

struct View {
    published: Cache<Arc<ArcSwap<Keys>>, Arc<Keys>>,
    /// This core's copy of what was last seen published.
    own: Keys,
}

impl SnapshotKeys {
    pub(crate) fn new(shared: &AwsShared) -> SnapshotKeys {
        let mut published = Cache::new(shared.keys_source());
        let own = own_copy(published.load());
        SnapshotKeys(CoreLocal::new(Rc::new(RefCell::new(View { published, own }))))
    }

    /// Reads the current credentials.
    pub(crate) fn current<R>(&self, read: impl FnOnce(&Keys) -> R) -> R {
        let mut view = self.0.borrow_mut();
        let view = &mut *view;
        let newest = view.published.load();
        if newest.generation != view.own.generation {
            view.own = own_copy(newest);
        }
        read(&view.own)
    }
}

impl Clone for SnapshotKeys {
    fn clone(&self) -> SnapshotKeys {
        SnapshotKeys(CoreLocal::new(Rc::clone(&self.0)))
    }
}

impl ProvideCredentials for SnapshotKeys {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Ok(self.current(|keys| keys.credentials.clone())))
    }
}

fn own_copy(keys: &Keys) -> Keys {
    let from = &keys.credentials;
    let credentials = Credentials::new(
        from.access_key_id(),
        from.secret_access_key(),
        from.session_token().map(str::to_owned),
        from.expiry(),
        "millrace",
    );
    Keys { credentials, ..*keys }
}
