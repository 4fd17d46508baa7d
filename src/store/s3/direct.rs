//! The lean S3 client: single-part PUTs on the core's own kept-alive connections. `aws-sdk-s3` does
//! everything else.
//!
//! What an SDK does per request is done here once: the head is laid out once per store, the signing
//! key is derived once per day, and buffers stay with their connection. Options, credentials and
//! classification of failures are the same as in the SDK's client (`client_state`). [`Template`],
//! [`Signer`] and [`ReplyReader`] use neither sockets nor clocks, so another runtime can use them
//! too.

mod bucket_url;
mod connection;
mod document;
mod encode;
mod reply;
mod request;
mod sign;
mod success;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

pub use bucket_url::Unsupported;
pub(super) use bucket_url::server_of_bucket;
pub use document::{ErrorDocument, error_document};
pub(crate) use encode::base64;
pub use reply::{Reply, ReplyReader};
pub use request::{Destination, Put, Template};
pub use sign::{Identity, Signer, Unsendable};

use super::client_state::{ClientState, ErrorReply, request_ids, unanswered};
use super::dial::{ConnectionError, Dialer, ServerAddress};
use super::idle_pool::{Connection, IdlePool};
use crate::rt;
use crate::store::s3::S3Shared;
use crate::store::{Class, Integrity, Object, Progress, PutError, Summing, Sums};
use connection::{DirectConnection, Failure};

/// One core's lean S3 client.
pub struct DirectStore {
    state: ClientState,
    server: ServerAddress,
    template: Template,
    signer: RefCell<Signer>,
    dialer: Dialer,
    /// Boxed, because a connection changes hands several times per PUT.
    idle: IdlePool<Box<DirectConnection>>,
}

/// A response, still in the buffer of its connection.
struct Exchanged {
    connection: Box<DirectConnection>,
    /// The generation of the credentials that signed the request.
    generation: u64,
}

impl DirectStore {
    /// A store for this executor, which keeps at most `idle_max` idle connections: one per worker.
    ///
    /// # Errors
    /// Only the SDK can write to this bucket.
    pub fn new(shared: Arc<S3Shared>, idle_max: usize) -> Result<DirectStore, Unsupported> {
        let url = bucket_url::resolve(&shared)?;
        let target = shared.target();
        let destination =
            Destination { server: &url.server, path: &url.path, prefix: &target.prefix };
        let integrity =
            Integrity { checksum: shared.checksum(), sign_payload: shared.sign_payload() };
        let template = Template::new(&destination, &target.options, integrity)
            .map_err(|error| Unsupported { why: error.to_string() })?;
        let template = routed(&shared, &url.server, template);
        Ok(DirectStore {
            signer: RefCell::new(Signer::new(&url.region, &url.service)),
            server: url.server,
            template,
            dialer: shared.dialer(),
            idle: IdlePool::new(idle_max),
            state: ClientState::new(shared),
        })
    }

    /// Begins the sums of a body that is still to come, for [`Object::sums`].
    pub(in crate::store) fn summing(&self) -> Summing {
        Summing::new(self.template.integrity())
    }

    /// Stores `object` under the prefix and its key. One attempt; a temporary redirect is followed
    /// once. Dropping the future closes its connection.
    ///
    /// # Errors
    /// Classified by [`classify`](crate::store::classify); code and message are the store's own.
    pub async fn put(&self, object: &Object<'_>, progress: &Progress) -> Result<(), PutError> {
        let exchanged = self.exchange(&self.server, &self.template, object, progress).await?;
        match self.redirect(&exchanged.connection.reply()) {
            None => self.conclude(&self.server, exchanged, progress),
            Some((server, template)) => {
                self.release(&self.server, exchanged.connection, rt::now());
                // Boxed because redirects are rare and every put's future would hold a template.
                Box::pin(self.put_redirected(server, template, object, progress)).await
            }
        }
    }

    /// As [`DirectStore::put`], to the address that the store named; the key is part of it.
    async fn put_redirected(
        &self,
        server: ServerAddress,
        template: Template,
        object: &Object<'_>,
        progress: &Progress,
    ) -> Result<(), PutError> {
        let object = Object { key: "", ..*object };
        let exchanged = self.exchange(&server, &template, &object, progress).await?;
        self.conclude(&server, exchanged, progress)
    }

    /// Connections without a request.
    pub fn idle_connections(&self) -> usize {
        self.idle.count()
    }

    /// One request on an idle connection; on a new one if there is none, or if it turns out dead.
    async fn exchange(
        &self,
        server: &ServerAddress,
        template: &Template,
        object: &Object<'_>,
        progress: &Progress,
    ) -> Result<Exchanged, PutError> {
        let failed = |failure: Failure| {
            let proxy = self.state.shared.absolute_form(server);
            unanswered(&failure.at(&server.host).through(proxy))
        };
        let sums = match object.sums {
            Some(sums) => sums,
            None => progress.sums(|| Sums::of_parts(object.body, template.integrity())),
        };
        let put = Put { key: object.key, bytes: object.bytes(), coding: object.coding, sums };
        if let Some(mut connection) = self.idle.take(server, progress.began()) {
            let generation = self.write_head(template, &put, progress.began(), &mut connection)?;
            match connection.exchange(object.body, progress).await {
                Ok(()) => return Ok(Exchanged { connection, generation }),
                // The store closed it between two requests, which says nothing about this one.
                Err(Failure::Broken { unanswered: true, .. }) => {}
                Err(failure) => return Err(failed(failure)),
            }
        }
        let connected = Box::pin(self.connect(server)).await;
        let mut connection = connected.map_err(|error| unanswered(&error))?;
        let generation = self.write_head(template, &put, rt::now(), &mut connection)?;
        connection.exchange(object.body, progress).await.map_err(failed)?;
        Ok(Exchanged { connection, generation })
    }

    async fn connect(
        &self,
        server: &ServerAddress,
    ) -> Result<Box<DirectConnection>, ConnectionError> {
        let timeout = self.state.shared.target().options.connect_timeout;
        Ok(Box::new(DirectConnection::new(self.dialer.dial(server, timeout).await?)))
    }

    /// Lays out and signs the head with the current credentials; returns their generation.
    fn write_head(
        &self,
        template: &Template,
        put: &Put<'_>,
        now: Instant,
        connection: &mut DirectConnection,
    ) -> Result<u64, PutError> {
        let (unix_s, mut signer) = (self.state.unix_s(now), self.signer.borrow_mut());
        let generation = self.state.with_fresh_credentials(|published| {
            if !signer.is_current(unix_s, published.generation) {
                let who = Identity {
                    access_key: published.credentials.access_key_id(),
                    secret_key: published.credentials.secret_access_key(),
                    session_token: published.credentials.session_token(),
                };
                signer.renew(unix_s, published.generation, &who)?;
            }
            Ok(published.generation)
        })?;
        let unsendable =
            |error: Unsendable| PutError::new(Class::StoreWide, "NotSent", error.to_string());
        let generation = generation.map_err(unsendable)?;
        template.write_head(put, unix_s, &mut signer, connection.head());
        Ok(generation)
    }

    /// Where to send the request again, if `reply` is a redirect that may be followed.
    fn redirect(&self, reply: &Reply<'_>) -> Option<(ServerAddress, Template)> {
        if reply.status != 307 {
            return None;
        }
        let location = reply.header("location")?;
        let (server, uri) = self.state.redirect(location)?;
        let template = self.template.redirected(&server, uri.path(), uri.query());
        let template = routed(&self.state.shared, &server, template);
        Some((server, template))
    }

    /// The outcome that the response reports; its connection goes back to the pool.
    fn conclude(
        &self,
        server: &ServerAddress,
        exchanged: Exchanged,
        progress: &Progress,
    ) -> Result<(), PutError> {
        let Exchanged { connection, generation } = exchanged;
        let outcome = self.outcome(&connection.reply(), generation);
        self.release(server, connection, progress.end());
        outcome
    }

    fn outcome(&self, reply: &Reply<'_>, generation: u64) -> Result<(), PutError> {
        let success = (200..300).contains(&reply.status);
        if success && reply.body.is_empty() {
            return Ok(());
        }
        let said = error_document(reply.body);
        // Some gateways send a 200 before they know the outcome; the body then has it.
        if success && said.code.is_none() {
            return Ok(());
        }
        let refusal = ErrorReply {
            status: reply.status,
            code: said.code.as_deref(),
            message: said.message.as_deref(),
            date: reply.header("date"),
            body: reply.body,
            request_ids: request_ids(|name| reply.header(name), reply.body),
        };
        self.state.outcome_of(&refusal, generation)
    }

    fn release(&self, server: &ServerAddress, mut connection: Box<DirectConnection>, now: Instant) {
        // `is_alive` starts a read, so that a close is noticed while the connection is idle.
        if connection.reply().keep_alive && connection.is_alive() {
            self.idle.put(server, connection, now);
        }
    }
}

/// `template` in the form that the proxy on the way to `server` takes, if there is one.
fn routed(shared: &S3Shared, server: &ServerAddress, template: Template) -> Template {
    match shared.absolute_form(server) {
        Some(proxy) => template.by_proxy(server, proxy.authorization()),
        None => template,
    }
}
