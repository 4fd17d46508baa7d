//! How an `s3://` store starts: where the bucket is, the first credentials, and the tasks that keep
//! names and credentials fresh.
//!
//! One provider chain serves the process. `aws-config` runs it on this crate's connector and
//! timers. It reads files, which blocks, so it runs on the control executor and never on a core.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::rt;
use crate::rt::Task;
use aws_credential_types::Credentials;
use futures_rustls::pki_types::CertificateDer;

use super::credential_chain::{CredentialChain, FirstLoad};
use super::dial::Dialer;
use super::host_names::HostNames;
use super::hyper_pool::HyperPool;
use super::probe::ProbeResult;
use super::proxies::{BadProxy, Proxies};
use super::sdk::S3Store;
use super::shared::{Network, S3Shared};
use super::tls;
use crate::config::S3Options;
use crate::store::StoreSeed;

/// Idle connections control keeps per credential service.
const CONTROL_IDLE_MAX: usize = 2;

/// Where payloads go, and what every PUT carries.
#[derive(Clone, Debug)]
pub struct S3Target {
    pub bucket: String,
    /// Prepended to every key, unchanged.
    pub prefix: String,
    pub options: S3Options,
}

/// Replaces what the environment says. All empty in production, where the AWS variables
/// (`AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_PROFILE`, …) are the only source.
#[derive(Clone, Default)]
pub struct Overrides {
    pub credentials: Option<Credentials>,
    pub region: Option<String>,
    pub endpoint_url: Option<String>,
    /// Hosts with fixed addresses; a port other than 0 replaces the request's own.
    pub hosts: Vec<(String, Vec<SocketAddr>)>,
    /// Trusted in addition to the host's roots.
    pub roots: Vec<CertificateDer<'static>>,
    /// Used instead of those in the environment.
    pub proxies: Option<Proxies>,
}

/// Why an `s3://` store cannot start. Each text is one sentence that names the cause and the
/// remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    #[error(
        "no AWS region is set for bucket {bucket}: set AWS_REGION, or a region in the AWS profile{metadata}"
    )]
    NoRegion {
        bucket: String,
        /// A note on a metadata service that did not answer, or empty.
        metadata: String,
    },
    #[error(
        "endpoint {url:?} is not usable, {why}: give http://HOST[:PORT] or https://HOST[:PORT] in AWS_ENDPOINT_URL_S3, \
         AWS_ENDPOINT_URL or endpoint_url of the AWS profile"
    )]
    BadEndpoint { url: String, why: &'static str },
    #[error(
        "endpoint {url} names bucket {bucket}, which would then appear twice, so that objects go to {bucket}/…: \
         set the endpoint to {without}, or, if it is correct as it is, set S3_FORCE_PATH_STYLE=true (the bucket goes \
         into the path) or false (into the host name)"
    )]
    BucketInEndpoint { url: String, bucket: String, without: String },
    #[error(transparent)]
    Proxy(#[from] BadProxy),
    #[error(
        "no AWS credentials found{profile}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, \
         or run where a role is attached (web identity, ECS, EC2){metadata}"
    )]
    NoCredentials {
        profile: String,
        /// A note on a metadata service that did not answer, or empty.
        metadata: String,
        /// EC2's metadata service was asked but not reached.
        unreached: bool,
    },
    #[error(
        "the AWS profile uses {what}, which millrace does not support: export its credentials as AWS_ACCESS_KEY_ID, \
         AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or use a role"
    )]
    UnsupportedProfile { what: &'static str },
    #[error("AWS credentials cannot be loaded: {why}")]
    Credentials {
        why: String,
        /// The credential service was not reached.
        unreached: bool,
    },
    /// An unusable variable, or an unusable setting in a shared file.
    #[error("{0}")]
    BadSetting(String),
    #[error("{0}")]
    Tls(String),
    #[error("AWS configuration took longer than {seconds} s to load")]
    TimedOut { seconds: u64 },
}

impl StartError {
    /// True if nothing was reached, which may pass by itself. Everything else needs an operator.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            StartError::NoCredentials { unreached: true, .. }
                | StartError::Credentials { unreached: true, .. }
                | StartError::TimedOut { .. }
        )
    }
}

/// The control side while it runs. Dropping it ends its tasks; the last snapshots stay readable.
pub struct S3Control {
    shared: Arc<S3Shared>,
    resolver: Task<()>,
    refresher: Task<()>,
}

impl S3Control {
    /// What each core builds its store from.
    pub fn shared(&self) -> Arc<S3Shared> {
        self.shared.clone()
    }

    /// As [`S3Control::shared`], but the control side keeps running as long as this executor does.
    pub fn detach(self) -> Arc<S3Shared> {
        self.resolver.detach();
        self.refresher.detach();
        self.shared
    }
}

/// Resolves region, endpoint and the first credentials, then keeps names and credentials fresh.
/// Runs on the control executor, and stays there.
///
/// If a credential service cannot be reached, it is asked again until it answers. Meanwhile there
/// are no credentials: every put fails store-wide, and [`S3Shared::missing_credentials`] says why.
///
/// # Errors
/// See [`StartError`]; the store cannot work until an operator changes something.
pub async fn start(target: S3Target, overrides: Overrides) -> Result<S3Control, StartError> {
    let names = HostNames::new(overrides.hosts.clone());
    let resolver = rt::spawn(names.clone().keep_resolved());
    let tls = tls::client_config(&overrides.roots).map_err(StartError::Tls)?;
    let proxies = match overrides.proxies.clone() {
        Some(proxies) => proxies,
        None => Proxies::read(&|name| std::env::var_os(name))?,
    };
    let proxies = Arc::new(proxies);
    let age = target.options.connection_age;
    let dialer = Dialer::new(names.clone(), proxies.clone(), &tls, age);
    let chain = CredentialChain::new(HyperPool::new(dialer, CONTROL_IDLE_MAX), overrides);
    let FirstLoad { location, provider, credentials } = chain.load_first(&target).await?;
    let network = Network { names, proxies, tls };
    let shared = Arc::new(S3Shared::new(target, location, network, credentials));
    if let Some(proxy) = shared.proxy() {
        tracing::info!("requests to the store go through proxy {proxy}");
    }
    let refresher = rt::spawn(chain.keep_fresh(shared.clone(), provider));
    Ok(S3Control { shared, resolver, refresher })
}

/// An `s3://` store after its probe.
pub struct Probed {
    pub seed: StoreSeed,
    pub result: ProbeResult,
    /// Repeats the probe; stays on this executor.
    pub prober: S3Store,
}

/// Starts an `s3://` store and probes it: settings, credentials, one request to the bucket.
///
/// # Errors
/// See [`StartError`].
pub async fn prepare(target: S3Target, idle_max: usize) -> Result<Probed, StartError> {
    let shared = start(target, Overrides::default()).await?.detach();
    let prober = S3Store::new(shared.clone(), 1);
    let result = prober.probe().await;
    Ok(Probed { seed: StoreSeed::S3 { shared, idle_max }, result, prober })
}
