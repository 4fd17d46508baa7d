//! What control publishes to the cores: settings fixed at start, and snapshots that only control
//! replaces.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use arc_swap::{ArcSwap, ArcSwapOption};
use aws_credential_types::Credentials;
use futures_rustls::rustls::ClientConfig;

use super::clock::ClockOffset;
use super::dial::{Dialer, ServerAddress};
use super::direct;
use super::host_names::HostNames;
use super::proxies::{Proxies, Proxy};
use super::start::{S3Target, StartError};
use crate::config::{Checksum, SignPayload};

/// The bucket's region and endpoint, fixed at start.
#[derive(Clone, Debug)]
pub(super) struct Location {
    pub(super) region: String,
    /// `None` on AWS.
    pub(super) endpoint: Option<String>,
    pub(super) fips: Option<bool>,
    pub(super) dual_stack: Option<bool>,
}

/// What every connection is made with.
pub(super) struct Network {
    pub(super) names: Arc<HostNames>,
    pub(super) proxies: Arc<Proxies>,
    pub(super) tls: Arc<ClientConfig>,
}

/// One published set of credentials.
#[derive(Clone)]
pub struct PublishedCredentials {
    pub credentials: Credentials,
    /// Counts publications, from 1; 0 before the first.
    pub generation: u64,
    /// The store refused these and the chain returned the same again: only an operator can help.
    pub stuck: bool,
}

/// The SDK's own `Debug` shows the access key.
impl fmt::Debug for PublishedCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PublishedCredentials { generation, stuck, .. } = self;
        write!(f, "PublishedCredentials(***, generation {generation}, stuck {stuck})")
    }
}

impl PublishedCredentials {
    /// The value before the first publication. It expired in 1970, so it is never sent.
    fn none() -> PublishedCredentials {
        let credentials = Credentials::new("", "", None, Some(UNIX_EPOCH), "millrace");
        PublishedCredentials { credentials, generation: 0, stuck: false }
    }
}

/// What every core may read: fixed settings and the snapshots control publishes.
pub struct S3Shared {
    target: S3Target,
    location: Location,
    /// The server that requests for the bucket go to; `None` for buckets without a plain address.
    server: Option<ServerAddress>,
    network: Network,
    /// The clock offset the probe learned: control's own, and where each core's starts.
    pub(super) clock: ClockOffset,
    /// Written by control only.
    credentials: Arc<ArcSwap<PublishedCredentials>>,
    /// Why nothing is published yet: the chain's last error. Written by control only.
    missing_credentials: ArcSwapOption<String>,
    /// The highest generation that a core wants replaced.
    rejected_generation: AtomicU64,
}

fn path_style(target: &S3Target, location: &Location) -> bool {
    let custom = location.endpoint.is_some() && !target.bucket.starts_with("arn:");
    target.options.force_path_style.unwrap_or(custom)
}

impl S3Shared {
    /// `first` is the outcome of the first load of credentials.
    pub(super) fn new(
        target: S3Target,
        location: Location,
        network: Network,
        first: Result<Credentials, StartError>,
    ) -> S3Shared {
        let (credentials, missing) = match first {
            Ok(credentials) => {
                (PublishedCredentials { credentials, generation: 1, stuck: false }, None)
            }
            Err(error) => (PublishedCredentials::none(), Some(error.to_string())),
        };
        let path_style = path_style(&target, &location);
        let server = direct::server_of_bucket(&target.bucket, &location, path_style);
        S3Shared {
            target,
            location,
            server,
            network,
            clock: ClockOffset::default(),
            credentials: Arc::new(ArcSwap::from_pointee(credentials)),
            missing_credentials: ArcSwapOption::from_pointee(missing),
            rejected_generation: AtomicU64::new(0),
        }
    }

    pub fn target(&self) -> &S3Target {
        &self.target
    }

    /// What a core connects with.
    pub(super) fn dialer(&self) -> Dialer {
        let Network { names, proxies, tls } = &self.network;
        Dialer::new(names.clone(), proxies.clone(), tls, self.target.options.connection_age)
    }

    /// The proxy that takes requests for `server` in absolute form, if there is one.
    pub(super) fn absolute_form(&self, server: &ServerAddress) -> Option<&Proxy> {
        self.network.proxies.absolute_form(server)
    }

    /// The proxy that requests to the store go through.
    pub fn proxy(&self) -> Option<&Proxy> {
        self.network.proxies.of(self.server.as_ref()?)
    }

    /// As [`S3Shared::proxy`], if it takes requests in absolute form: such a proxy can answer in
    /// the store's place.
    pub(super) fn http_proxy(&self) -> Option<&Proxy> {
        self.absolute_form(self.server.as_ref()?)
    }

    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    pub fn region(&self) -> &str {
        &self.location.region
    }

    /// The custom endpoint, as given; `None` on AWS.
    pub fn endpoint(&self) -> Option<&str> {
        self.location.endpoint.as_deref()
    }

    /// Requests go over TLS.
    pub fn https(&self) -> bool {
        self.endpoint().is_none_or(|url| url.starts_with("https:"))
    }

    /// `https://host/bucket/key` rather than `https://bucket.host/key`. An access point is always
    /// named in the host.
    pub fn path_style(&self) -> bool {
        path_style(&self.target, &self.location)
    }

    /// The checksum every PUT carries, with `Auto` resolved: AWS requires one for buckets with
    /// Object Lock, other stores may not know the header.
    pub fn checksum(&self) -> Checksum {
        match self.target.options.checksum {
            Checksum::Auto if self.is_aws() => Checksum::Crc64Nvme,
            Checksum::Auto => Checksum::None,
            chosen => chosen,
        }
    }

    /// Whether signatures cover the payload, with `Auto` resolved: TLS protects it as well, and
    /// without TLS nothing else does.
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
    /// [`S3Shared::credentials_source`] instead, which costs no atomic read-modify-write.
    pub fn credentials(&self) -> Arc<PublishedCredentials> {
        self.credentials.load_full()
    }

    pub(super) fn credentials_source(&self) -> Arc<ArcSwap<PublishedCredentials>> {
        self.credentials.clone()
    }

    /// Why there are no credentials yet; `None` once there have been any.
    pub fn missing_credentials(&self) -> Option<Arc<String>> {
        self.missing_credentials.load_full()
    }

    /// Asks control for credentials newer than `generation`. Only after a failure, never per
    /// payload.
    pub fn request_newer_credentials(&self, generation: u64) {
        self.rejected_generation.fetch_max(generation, Ordering::Relaxed);
    }

    pub(super) fn newer_credentials_requested(&self) -> bool {
        let current = self.credentials.load().generation;
        self.rejected_generation.load(Ordering::Relaxed) >= current
    }

    pub(super) fn publish(&self, credentials: Credentials, stuck: bool) {
        let generation = self.credentials.load().generation + 1;
        self.credentials.store(Arc::new(PublishedCredentials { credentials, generation, stuck }));
        self.missing_credentials.store(None);
    }

    /// Records `error` as the reason, if there have been no credentials yet.
    pub(super) fn note_still_missing(&self, error: &StartError) {
        if self.missing_credentials.load().is_some() {
            self.missing_credentials.store(Some(Arc::new(error.to_string())));
        }
    }
}
