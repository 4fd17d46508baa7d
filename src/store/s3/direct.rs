//! The lean S3 client: a single-part PUT laid out from a template, signed with the day's key, on the
//! core's own kept-alive connections. Everything but the PUT is left to `aws-sdk-s3`.
//!
//! What an SDK does per request is done here once: the head is laid out per store, the signing key
//! per day, and buffers stay with their connection. Same options, same classification, same
//! credentials as the SDK's path (`account`). [`Template`], [`Signer`] and
//! [`ReplyReader`] know neither sockets nor clocks, so that another runtime can use them as well.

mod document;
mod encode;
mod endpoint;
mod link;
mod links;
mod reply;
mod request;
mod sign;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

pub use document::{ErrorDocument, error_document};
pub(crate) use encode::base64;
pub use endpoint::Unsupported;
pub(crate) use endpoint::origin;
pub use reply::{Malformed, Reply, ReplyReader};
pub use request::{Place, Put, Template};
pub use sign::{Identity, Signer, Unsendable};

use super::account::{Account, Refusal, request_ids, unanswered};
use super::dial::Origin;
use crate::store::s3::AwsShared;
use crate::store::{Class, Integrity, Object, Progress, PutError, Summing, Sums};
use link::{Failure, Link};
use links::Links;

/// One core's lean S3 client.
pub struct DirectStore {
    account: Account,
    origin: Origin,
    template: Template,
    signer: RefCell<Signer>,
    links: Links,
}

/// An answer on the connection it came on.
struct Answered {
    link: Link,
    /// The generation of the credentials that signed the request.
    generation: u64,
}

impl DirectStore {
    /// A store for this executor. At most `idle_max` idle connections are kept: as many as there
    /// are workers.
    ///
    /// # Errors
    /// The bucket is of a kind that only the SDK can write to.
    pub fn new(shared: Arc<AwsShared>, idle_max: usize) -> Result<DirectStore, Unsupported> {
        let endpoint = endpoint::resolve(&shared)?;
        let target = shared.target();
        let place =
            Place { origin: &endpoint.origin, path: &endpoint.path, prefix: &target.prefix };
        let integrity =
            Integrity { checksum: shared.checksum(), sign_payload: shared.sign_payload() };
        let template = Template::new(&place, &target.options, integrity)
            .map_err(|error| Unsupported { why: error.to_string() })?;
        let template = routed(&shared, &endpoint.origin, template);
        let dialer = shared.dialer();
        let links = Links::new(dialer, target.options.connect_timeout, idle_max);
        let signer = RefCell::new(Signer::new(&endpoint.region, &endpoint.service));
        let account = Account::new(shared);
        Ok(DirectStore { account, origin: endpoint.origin, template, signer, links })
    }

    /// Begins the sums of a body that is yet to come, for [`Object::sums`].
    pub fn summing(&self) -> Summing {
        Summing::new(self.template.integrity())
    }

    /// Stores `object` under the prefix and its key. One attempt; a temporary redirect is followed
    /// once. Dropping the future closes its connection.
    ///
    /// # Errors
    /// Classified by [`classify`](crate::store::classify), the code and message are the store's own.
    pub async fn put(&self, object: &Object<'_>, progress: &Progress) -> Result<(), PutError> {
        let answered = self.exchange(&self.origin, &self.template, object, progress).await?;
        match self.redirect(&answered.link.reply()) {
            None => self.conclude(&self.origin, answered).await,
            Some((origin, template)) => {
                self.release(&self.origin, answered.link).await;
                // Boxed, as it is rare: every put's future would be larger by a template.
                Box::pin(self.put_there(origin, template, object, progress)).await
            }
        }
    }

    /// The same at the address that the store named, which the key is part of.
    async fn put_there(
        &self,
        origin: Origin,
        template: Template,
        object: &Object<'_>,
        progress: &Progress,
    ) -> Result<(), PutError> {
        let object = Object { key: "", ..*object };
        let answered = self.exchange(&origin, &template, &object, progress).await?;
        self.conclude(&origin, answered).await
    }

    /// Connections waiting for a request.
    pub fn idle_connections(&self) -> usize {
        self.links.idle_count()
    }

    /// One request on a kept connection, or on a new one if there is none or it turned out dead.
    async fn exchange(
        &self,
        origin: &Origin,
        template: &Template,
        object: &Object<'_>,
        progress: &Progress,
    ) -> Result<Answered, PutError> {
        let failed = |failure: Failure| {
            let proxy = self.account.shared.absolute_form(origin);
            unanswered(&failure.at(&origin.host).through(proxy))
        };
        if let Some(mut link) = self.links.take(origin).await {
            let generation = self.write_head(template, object, &mut link)?;
            match link.exchange(object.body, progress).await {
                Ok(()) => return Ok(Answered { link, generation }),
                // The store closed it between two requests: that says nothing about this one.
                Err(Failure::Broken { unanswered: true, .. }) => {}
                Err(failure) => return Err(failed(failure)),
            }
        }
        let connected = Box::pin(self.links.connect(origin)).await;
        let mut link = connected.map_err(|error| unanswered(&error))?;
        let generation = self.write_head(template, object, &mut link)?;
        link.exchange(object.body, progress).await.map_err(failed)?;
        Ok(Answered { link, generation })
    }

    /// Lays out and signs the head with the current credentials; returns their generation.
    fn write_head(
        &self,
        template: &Template,
        object: &Object<'_>,
        link: &mut Link,
    ) -> Result<u64, PutError> {
        let since_1970 = self.account.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (unix_s, mut signer) = (since_1970.as_secs(), self.signer.borrow_mut());
        let generation = self.account.fresh_keys(|keys| {
            if !signer.is_current(unix_s, keys.generation) {
                let who = Identity {
                    access_key: keys.credentials.access_key_id(),
                    secret_key: keys.credentials.secret_access_key(),
                    session_token: keys.credentials.session_token(),
                };
                signer.renew(unix_s, keys.generation, &who)?;
            }
            Ok(keys.generation)
        })?;
        let unsendable =
            |error: Unsendable| PutError::new(Class::StoreWide, "NotSent", error.to_string());
        let generation = generation.map_err(unsendable)?;
        let own;
        let sums = match object.sums {
            Some(sums) => sums,
            None => {
                own = Sums::of_parts(object.body, template.integrity());
                &own
            }
        };
        let Object { key, coding, .. } = *object;
        let put = Put { key, bytes: object.bytes(), coding, sums };
        template.write_head(&put, unix_s, &mut signer, link.head());
        Ok(generation)
    }

    /// Where to ask again, if `reply` is a redirect that may be followed.
    fn redirect(&self, reply: &Reply<'_>) -> Option<(Origin, Template)> {
        if reply.status != 307 {
            return None;
        }
        let location = reply.header("location")?;
        let (origin, uri) = self.account.redirect(location)?;
        let template = self.template.redirected(&origin, uri.path(), uri.query());
        let template = routed(&self.account.shared, &origin, template);
        Some((origin, template))
    }

    /// Takes the answer for what it is and keeps its connection.
    async fn conclude(&self, origin: &Origin, answered: Answered) -> Result<(), PutError> {
        let outcome = self.outcome(&answered.link.reply(), answered.generation);
        self.release(origin, answered.link).await;
        outcome
    }

    fn outcome(&self, reply: &Reply<'_>, generation: u64) -> Result<(), PutError> {
        let success = (200..300).contains(&reply.status);
        if success && reply.body.is_empty() {
            return Ok(());
        }
        let said = error_document(reply.body);
        // Some gateways have sent a 200 before they know; then the body says what happened.
        if success && said.code.is_none() {
            return Ok(());
        }
        let refusal = Refusal {
            status: reply.status,
            code: said.code.as_deref(),
            message: said.message.as_deref(),
            date: reply.header("date"),
            body: reply.body,
            request_ids: request_ids(|name| reply.header(name), reply.body),
        };
        self.account.refused(&refusal, generation)
    }

    async fn release(&self, origin: &Origin, mut link: Link) {
        // From here on the end of the connection is seen when it comes.
        if link.reply().keep_alive && link.is_quiet().await {
            self.links.keep(origin, link);
        }
    }
}

/// `template` as the proxy on the way to `origin` wants it, if there is one.
fn routed(shared: &AwsShared, origin: &Origin, template: Template) -> Template {
    match shared.absolute_form(origin) {
        Some(proxy) => template.by_proxy(origin, proxy.authorization()),
        None => template,
    }
}
