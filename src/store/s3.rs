//! The AWS side of the control executor: where the bucket is, who we are, and what cores may know
//! of it.
//!
//! One provider chain for the process, run by `aws-config` with our own connector and timers; no
//! tokio runtime. Its file reads block, so it lives here and never on a core. Cores get an
//! [`AwsShared`]: settings that never change, and snapshots (credentials, addresses) that only
//! control writes.

pub(crate) mod account;
pub mod clock;
pub(crate) mod connector;
mod credentials;
pub mod dial;
pub mod direct;
mod endpoint;
pub(crate) mod environment;
mod files;
pub(crate) mod idle;
pub(crate) mod keys;
pub mod names;
pub(crate) mod pool;
pub mod probe;
mod profile;
pub mod proxies;
pub(crate) mod race;
pub mod sdk;
pub(crate) mod tls;
mod tunnel;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use arc_swap::{ArcSwap, ArcSwapOption};
use aws_credential_types::Credentials;
use futures_rustls::pki_types::CertificateDer;
use futures_rustls::rustls::ClientConfig;

use crate::config::{Checksum, S3Options, SignPayload};
use crate::rt::{self, Task};
use crate::store::StoreSeed;
use crate::store::s3::clock::ClockOffset;
use crate::store::s3::dial::{Dialer, Origin};
use crate::store::s3::pool::Pool;
use crate::store::s3::probe::Answer;
use crate::store::s3::sdk::S3Store;
use credentials::First;
use names::Names;
use proxies::{BadProxy, Proxies, Proxy};

/// Idle connections control keeps per credential service.
const CONTROL_IDLE_MAX: usize = 2;

/// Where payloads go, and what every PUT carries.
#[derive(Clone, Debug)]
pub struct S3Target {
    pub bucket: String,
    /// Prepended to every key as it is.
    pub prefix: String,
    pub options: S3Options,
}

/// What to use instead of the environment's answer; all empty in production, where the AWS names
/// (`AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_PROFILE`, …) say everything.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub credentials: Option<Credentials>,
    pub region: Option<String>,
    pub endpoint_url: Option<String>,
    /// Hosts that are never resolved; a port other than 0 replaces the request's own.
    pub hosts: Vec<(String, Vec<SocketAddr>)>,
    /// Trusted beside the host's roots.
    pub roots: Vec<CertificateDer<'static>>,
    /// Instead of those that the environment names.
    pub proxies: Option<Proxies>,
}

/// Why an `s3://` store cannot start. Each is one sentence that names the thing and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    #[error(
        "no AWS region is set for bucket {bucket}: set AWS_REGION, or a region in the AWS profile{metadata}"
    )]
    NoRegion {
        bucket: String,
        /// What is to be said of a metadata service that did not answer, or nothing.
        metadata: String,
    },
    #[error(
        "endpoint {url:?} is not usable, {why}: give http://HOST[:PORT] or https://HOST[:PORT] in AWS_ENDPOINT_URL_S3, \
         AWS_ENDPOINT_URL or endpoint_url of the AWS profile"
    )]
    BadEndpoint { url: String, why: &'static str },
    #[error(
        "endpoint {url} names bucket {bucket}, which would be put in a second time, so that objects go to {bucket}/…: \
         set the endpoint to {without}, or, if it is right as it is, set S3_FORCE_PATH_STYLE=true (the bucket goes into \
         the path) or false (into the host name)"
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
        /// What is to be said of a metadata service that did not answer, or nothing.
        metadata: String,
        /// EC2's metadata service was asked and not reached.
        unreached: bool,
    },
    #[error(
        "the AWS profile uses {what}, which millrace does not run: export its credentials as AWS_ACCESS_KEY_ID, \
         AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or use a role"
    )]
    UnsupportedProfile { what: &'static str },
    #[error("AWS credentials cannot be loaded: {why}")]
    Credentials {
        why: String,
        /// The service that has them was not reached.
        unreached: bool,
    },
    /// A variable, or an entry of a shared file, that cannot be used.
    #[error("{0}")]
    BadSetting(String),
    #[error("{0}")]
    Tls(String),
    #[error("AWS configuration took longer than {seconds} s to load")]
    TimedOut { seconds: u64 },
}

impl StartError {
    /// True where nobody was reached; everything else waits for an operator.
    fn may_pass(&self) -> bool {
        matches!(
            self,
            StartError::NoCredentials { unreached: true, .. }
                | StartError::Credentials { unreached: true, .. }
                | StartError::TimedOut { .. }
        )
    }
}

/// The running control side; dropping it ends its tasks (the last snapshots stay readable).
pub struct Aws {
    shared: Arc<AwsShared>,
    names: Task<()>,
    credentials: Task<()>,
}

/// Resolves region, endpoint and the first credentials, then keeps names and credentials fresh.
/// Runs on the control executor, and stays there.
///
/// A credential service that is not reached is asked again and again; until it answers there are no credentials, every
/// put fails for the whole store, and [`AwsShared::no_keys`] says why.
///
/// # Errors
/// See [`StartError`]; the store cannot work until an operator changes something.
pub async fn start(target: S3Target, overrides: Overrides) -> Result<Aws, StartError> {
    let names = Names::new(overrides.hosts.clone());
    let names_task = rt::spawn(names.clone().keep());
    let tls = tls::client_config(&overrides.roots).map_err(StartError::Tls)?;
    let proxies = match overrides.proxies.clone() {
        Some(proxies) => proxies,
        None => Proxies::read(&|name| std::env::var_os(name))?,
    };
    let proxies = Arc::new(proxies);
    let age = target.options.connection_age;
    let pool = Pool::new(Dialer::new(names.clone(), proxies.clone(), &tls, age), CONTROL_IDLE_MAX);
    let chain = credentials::Chain::new(pool, overrides);
    let First { place, provider, credentials } = chain.first(&target).await?;
    let (keys, no_keys) = match credentials {
        Ok(credentials) => (Keys { credentials, generation: 1, stuck: false }, None),
        Err(error) => (Keys::none(), Some(error.to_string())),
    };
    let origin = direct::origin(&target.bucket, &place, path_style(&target, &place));
    let shared = Arc::new(AwsShared {
        target,
        place,
        origin,
        names,
        proxies,
        tls,
        clock: ClockOffset::default(),
        keys: Arc::new(ArcSwap::from_pointee(keys)),
        no_keys: ArcSwapOption::from_pointee(no_keys),
        wanted: AtomicU64::new(0),
    });
    if let Some(proxy) = shared.proxy() {
        tracing::info!("requests to the store go through proxy {proxy}");
    }
    let keeper = rt::spawn(chain.keep(shared.clone(), provider));
    Ok(Aws { shared, names: names_task, credentials: keeper })
}

impl Aws {
    /// What each core builds its store from.
    pub fn shared(&self) -> Arc<AwsShared> {
        self.shared.clone()
    }

    /// The same, leaving the control side running for as long as this executor does.
    pub fn detach(self) -> Arc<AwsShared> {
        self.names.detach();
        self.credentials.detach();
        self.shared
    }
}

/// An `s3://` store that was asked whether it takes payloads.
pub struct Asked {
    pub seed: StoreSeed,
    pub answer: Answer,
    /// Asks again; stays on this executor.
    pub prober: S3Store,
}

/// The whole of an `s3://` store's start: settings, credentials, and the question to the bucket with its answer.
///
/// # Errors
/// See [`StartError`].
pub async fn prepare(target: S3Target, idle_max: usize) -> Result<Asked, StartError> {
    let shared = start(target, Overrides::default()).await?.detach();
    let prober = S3Store::new(shared.clone(), 1);
    let answer = prober.probe().await;
    Ok(Asked { seed: StoreSeed::S3 { shared, idle_max }, answer, prober })
}

/// Where requests go; settled at start.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) region: String,
    /// `None` on AWS.
    pub(crate) endpoint: Option<String>,
    pub(crate) fips: Option<bool>,
    pub(crate) dual_stack: Option<bool>,
}

fn path_style(target: &S3Target, place: &Place) -> bool {
    let custom = place.endpoint.is_some() && !target.bucket.starts_with("arn:");
    target.options.force_path_style.unwrap_or(custom)
}

/// One published set of credentials.
#[derive(Clone, Debug)]
pub struct Keys {
    pub credentials: Credentials,
    /// Counts publications, from 1; before the first it is 0.
    pub generation: u64,
    /// The store refused these and the chain gave the same again: only an operator can help.
    pub stuck: bool,
}

impl Keys {
    /// What is there before the first publication: expired for as long as there have been clocks, so never sent.
    fn none() -> Keys {
        let credentials = Credentials::new("", "", None, Some(UNIX_EPOCH), "millrace");
        Keys { credentials, generation: 0, stuck: false }
    }
}

/// What every core may read: settled settings and the snapshots control publishes.
pub struct AwsShared {
    target: S3Target,
    place: Place,
    /// Where requests go, if that can be said of the bucket.
    origin: Option<Origin>,
    names: Arc<Names>,
    proxies: Arc<Proxies>,
    tls: Arc<ClientConfig>,
    /// What the probe learnt of the store's clock: control's own, and where each core's starts.
    pub(crate) clock: ClockOffset,
    /// Written by control only.
    keys: Arc<ArcSwap<Keys>>,
    /// Why nothing was published yet, as the chain said last; written by control only.
    no_keys: ArcSwapOption<String>,
    /// The highest generation a core wants replaced.
    wanted: AtomicU64,
}

impl AwsShared {
    pub fn target(&self) -> &S3Target {
        &self.target
    }

    /// What a core connects with.
    pub(crate) fn dialer(&self) -> Dialer {
        let age = self.target.options.connection_age;
        Dialer::new(self.names.clone(), self.proxies.clone(), &self.tls, age)
    }

    /// The proxy that wants requests to `origin` in absolute form, if there is one.
    pub(crate) fn absolute_form(&self, origin: &Origin) -> Option<&Proxy> {
        self.proxies.absolute_form(origin)
    }

    /// The proxy that requests to the store go through.
    pub fn proxy(&self) -> Option<&Proxy> {
        self.proxies.of(self.origin.as_ref()?)
    }

    /// The same if they are sent to it in absolute form: then it can answer in the store's place.
    pub(crate) fn http_proxy(&self) -> Option<&Proxy> {
        self.absolute_form(self.origin.as_ref()?)
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub fn region(&self) -> &str {
        &self.place.region
    }

    /// The custom endpoint, as given; `None` on AWS.
    pub fn endpoint(&self) -> Option<&str> {
        self.place.endpoint.as_deref()
    }

    /// Requests go over TLS.
    pub fn https(&self) -> bool {
        self.endpoint().is_none_or(|url| url.starts_with("https:"))
    }

    /// `https://host/bucket/key` rather than `https://bucket.host/key`. An access point is always
    /// named in the host.
    pub fn path_style(&self) -> bool {
        path_style(&self.target, &self.place)
    }

    /// The checksum every PUT carries, `Auto` decided: AWS wants one for buckets with Object Lock,
    /// other stores may not know the header.
    pub fn checksum(&self) -> Checksum {
        match self.target.options.checksum {
            Checksum::Auto if self.is_aws() => Checksum::Crc64Nvme,
            Checksum::Auto => Checksum::None,
            chosen => chosen,
        }
    }

    /// Whether signatures cover the payload, `Auto` decided: TLS protects it as well, and nothing else
    /// does.
    pub fn sign_payload(&self) -> bool {
        match self.target.options.sign_payload {
            SignPayload::Auto => !self.https(),
            SignPayload::Always => true,
            SignPayload::Never => false,
        }
    }

    /// Also true for an AWS endpoint given by name, such as a VPC's.
    fn is_aws(&self) -> bool {
        let Some(endpoint) = self.endpoint() else { return true };
        let host = endpoint.parse::<http::Uri>().ok().and_then(|u| u.host().map(str::to_owned));
        let host = host.unwrap_or_default();
        host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn")
    }

    /// The current credentials. Cores on the data path read them through an `arc_swap` cache over
    /// [`AwsShared::keys_source`] instead, which costs no atomic read-modify-write.
    pub fn keys(&self) -> Arc<Keys> {
        self.keys.load_full()
    }

    pub fn keys_source(&self) -> Arc<ArcSwap<Keys>> {
        self.keys.clone()
    }

    /// Why there are no credentials yet; `None` once there have been any.
    pub fn no_keys(&self) -> Option<Arc<String>> {
        self.no_keys.load_full()
    }

    /// Asks control for credentials newer than `generation`. Only after a failure, never per
    /// payload.
    pub fn want_newer_keys(&self, generation: u64) {
        self.wanted.fetch_max(generation, Ordering::Relaxed);
    }

    fn newer_keys_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) >= self.keys.load().generation
    }

    fn publish(&self, credentials: Credentials, stuck: bool) {
        let generation = self.keys.load().generation + 1;
        self.keys.store(Arc::new(Keys { credentials, generation, stuck }));
        self.no_keys.store(None);
    }

    /// Takes `error` for the reason, if there have been no credentials yet.
    fn still_no_keys(&self, error: &StartError) {
        if self.no_keys.load().is_some() {
            self.no_keys.store(Some(Arc::new(error.to_string())));
        }
    }
}
