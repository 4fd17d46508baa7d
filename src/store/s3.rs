//! The `s3://` store: one bucket, two clients that write to it, and what both of them need.
//!
//! Two kinds of executor run this code. The **control executor** does whatever blocks or happens
//! once per process: it reads the environment and the AWS files, keeps credentials and host
//! addresses fresh, and probes the bucket. The **data cores** only sign and send. They get an
//! [`S3Shared`]: settings that never change, and snapshots (credentials, addresses) that only
//! control writes and cores read without waiting. No tokio runtime is involved on either side.
//!
//! In reading order:
//!
//! - on control: `start` ([`start()`], [`prepare`], every reason why a store cannot start);
//!   `environment`, `shared_files` and `profile` (AWS variables and files, checked before a library
//!   reads them); `endpoint_url` (`AWS_ENDPOINT_URL_S3` and the like, checked); `credential_chain`
//!   (region, endpoint and credentials from `aws-config`); [`probe`] (asks the bucket before the
//!   first payload arrives).
//! - between the two: `shared` (what control publishes) and `host_names` (host name to addresses:
//!   resolved by control, read by cores).
//! - on either, per executor: `tls`, [`proxies`] and `clock` (trust roots, which requests use a
//!   proxy, the offset of the store's clock); [`dial`], `race` and `tunnel` (from a server's
//!   address to a connected byte stream); `idle_pool` (idle connections of either client);
//!   `masked` (what others say, without secrets); `credential_snapshot` and `client_state`
//!   (credentials, and how refusals are classified).
//! - the clients: [`direct`] (`S3_CLIENT=direct`, lean: PUT and nothing else), and [`sdk`] on
//!   `aws-sdk-s3` with `connector` and `hyper_pool`, its bridge to this runtime. Control uses the
//!   latter for the probe and for credential services.

mod client_state;
mod clock;
pub(crate) mod connector;
mod credential_chain;
mod credential_snapshot;
pub mod dial;
pub mod direct;
mod endpoint_url;
mod environment;
mod host_names;
mod hyper_pool;
mod idle_pool;
mod masked;
pub mod probe;
mod profile;
pub mod proxies;
mod race;
pub mod sdk;
mod shared;
mod shared_files;
mod start;
mod tls;
mod tunnel;

use std::sync::Arc;

use futures_rustls::pki_types::CertificateDer;
use futures_rustls::rustls::ClientConfig;

use shared::Location;
pub use shared::S3Shared;
pub use start::{Overrides, Probed, S3Control, S3Target, StartError, prepare, start};

/// TLS settings of a client that trusts what the clients of the store trust by default, and `extra`.
///
/// # Errors
/// An `AWS_CA_BUNDLE` or a certificate of `extra` that cannot be used, in one sentence.
pub fn tls_client_config(extra: &[CertificateDer<'static>]) -> Result<Arc<ClientConfig>, String> {
    tls::client_config(extra)
}
