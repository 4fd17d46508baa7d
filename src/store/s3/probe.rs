//! The probe of the bucket before the first payload: one `ListObjectsV2` for one key.
//!
//! A HEAD would do, but its errors have no body, and the body names the mistake. What an operator
//! must fix is a [`ProbeError`] (exit 2); what may not affect PUTs is a warning.
//! [`ProbeError::may_pass`] tells which errors may pass by themselves, for a start that can wait.

use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Error;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::masked;
use super::sdk::S3Store;
use super::tls;
use crate::deadline::within;
use crate::store::classify::Cause;
use crate::store::s3::connector::{connection_error, with_sources};
use crate::store::s3::dial::ConnectionError;
use crate::store::{Class, classify};

/// Bound on the whole probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);

/// A store that can be started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    Ok,
    /// What the store said, and what to do about it.
    Warning {
        said: String,
        remedy: &'static str,
        /// It was a 5xx: the store is reachable but does not work.
        down: bool,
    },
}

/// The outcome of a probe.
pub type ProbeResult = Result<Probe, ProbeError>;

/// Remedy for a refused listing.
const MAY_PUT: &str = "nothing, if the role may put (s3:PutObject): millrace itself never lists";
/// Remedy for a passing failure.
const WAIT: &str = "nothing, if it passes; payloads are held until the store accepts them";
/// Remedy for a wrong clock.
const SET_TIME: &str =
    "set this host's time, or run NTP; until then requests are signed with the store's time";

/// Why the store cannot work until an operator changes something. Each text is one sentence with
/// the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("bucket {bucket} is in region {actual}, not {configured}: set AWS_REGION={actual}")]
    WrongRegion { bucket: String, configured: String, actual: String },
    #[error("bucket {bucket} is not in region {configured}: set AWS_REGION to the bucket's region")]
    OtherRegion { bucket: String, configured: String },
    #[error("bucket {bucket} does not exist at {endpoint}: create it, or correct STORE")]
    NoSuchBucket { bucket: String, endpoint: String },
    #[error(
        "access key {key} is not known at {endpoint}: correct AWS_ACCESS_KEY_ID or the AWS profile, or the endpoint"
    )]
    UnknownAccessKey { key: String, endpoint: String },
    #[error(
        "the secret of access key {key} is wrong at {endpoint}: correct AWS_SECRET_ACCESS_KEY or the AWS profile"
    )]
    WrongSecret { key: String, endpoint: String },
    #[error("the credentials of access key {key} have expired or are invalid ({code}): renew them")]
    ExpiredCredentials { key: String, code: String },
    #[error("the clock of this host is too far from that of {endpoint}: set the time, or run NTP")]
    ClockSkew { endpoint: String },
    #[error(
        "{endpoint} cannot be resolved ({why}): correct AWS_ENDPOINT_URL or AWS_REGION, or check DNS"
    )]
    Unresolved { endpoint: String, why: String },
    #[error(
        "{endpoint} cannot be reached ({why}): check the endpoint, the network and the firewall"
    )]
    Unreachable { endpoint: String, why: String },
    #[error("TLS with {endpoint} fails ({why}): {remedy}")]
    Tls { endpoint: String, why: String, remedy: &'static str },
    #[error(
        "proxy {proxy} refuses requests to {endpoint} ({why}): correct HTTPS_PROXY or HTTP_PROXY, have the proxy \
         allow it, or name the store's host in NO_PROXY"
    )]
    Proxy { proxy: String, endpoint: String, why: String },
    #[error(
        "proxy {proxy} cannot be reached ({why}): start it, correct HTTPS_PROXY or HTTP_PROXY, or name the store's host \
         in NO_PROXY"
    )]
    ProxyUnreached { proxy: String, why: String },
    #[error("{endpoint} does not answer like S3 ({why}): correct AWS_ENDPOINT_URL")]
    NotS3 { endpoint: String, why: String },
    #[error("bucket {bucket} refuses the probe: {code}: {message}{}", behind_colon(remedy))]
    Refused {
        bucket: String,
        code: String,
        message: String,
        /// Empty if none is known.
        remedy: &'static str,
    },
    #[error("{endpoint} did not answer within {seconds} s: check the endpoint and the network")]
    TimedOut { endpoint: String, seconds: u64 },
    /// There are no credentials to sign the request with yet.
    #[error("{why}")]
    NoCredentials { why: String },
}

impl ProbeError {
    /// True if nothing was reached, which may pass by itself. Everything else needs an operator.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            ProbeError::Unresolved { .. }
                | ProbeError::Unreachable { .. }
                | ProbeError::ProxyUnreached { .. }
                | ProbeError::TimedOut { .. }
                | ProbeError::NoCredentials { .. }
        )
    }
}

fn behind_colon(remedy: &str) -> String {
    if remedy.is_empty() { String::new() } else { format!(": {remedy}") }
}

fn warning(said: String, remedy: &'static str) -> ProbeResult {
    Ok(Probe::Warning { said, remedy, down: false })
}

type ListError = SdkError<ListObjectsV2Error, HttpResponse>;

impl S3Store {
    /// Asks the bucket whether it would accept payloads. Runs on the control executor, for at most
    /// 15 s.
    ///
    /// # Errors
    /// See [`ProbeError`]. `AccessDenied` and temporary failures of the store are warnings: an
    /// ingest role may have nothing but `s3:PutObject`, and a busy store is no reason not to start.
    pub async fn probe(&self) -> ProbeResult {
        if let Some(why) = self.state.shared.missing_credentials() {
            return Err(ProbeError::NoCredentials { why: classify::bounded(&why) });
        }
        let target = self.state.shared.target();
        let list = async || {
            let owner = target.options.expected_owner.clone();
            let mut list = self.client.list_objects_v2().bucket(&target.bucket).max_keys(1);
            list = list.set_expected_bucket_owner(owner);
            if !target.prefix.is_empty() {
                list = list.prefix(&target.prefix);
            }
            list.send().await.map(|_| Probe::Ok)
        };
        let ask = async {
            match list().await {
                // Cores do the same with their first put.
                Err(error) if self.learned_time(&error) => {
                    let again = list().await.or_else(|error| self.verdict(error))?;
                    Ok(self.with_clock(again))
                }
                outcome => outcome.or_else(|error| self.verdict(error)),
            }
        };
        let seconds = PROBE_TIMEOUT.as_secs();
        let late = || Err(ProbeError::TimedOut { endpoint: self.shown_endpoint(), seconds });
        within(PROBE_TIMEOUT, ask, late).await
    }

    /// Whether the store refused the time and sent its own, which is used from now on.
    fn learned_time(&self, error: &ListError) -> bool {
        let (code, message) =
            (error.code().unwrap_or_default(), error.message().unwrap_or_default());
        let skewed = error.raw_response().is_some_and(|answer| {
            Cause::of(answer.status().as_u16(), code, message) == Cause::Clock
        });
        let date = error.raw_response().and_then(|answer| answer.headers().get("date"));
        skewed && self.state.clock.learn(date) && self.state.shared.clock.learn(date)
    }

    /// `probe`, with a warning about the clock that had to be corrected.
    fn with_clock(&self, probe: Probe) -> Probe {
        let offset_s = self.state.clock.offset_s();
        let minutes = Duration::from_secs((offset_s.unsigned_abs() + 30) / 60 * 60);
        let off = humantime::format_duration(minutes);
        let way = if offset_s > 0 { "behind" } else { "ahead of" };
        let clock = format!("this host's clock is {off} {way} that of {}", self.shown_endpoint());
        let (said, down) = match probe {
            Probe::Ok => (clock, false),
            Probe::Warning { said, down, .. } => (format!("{clock}; {said}"), down),
        };
        Probe::Warning { said, remedy: SET_TIME, down }
    }

    fn verdict(&self, error: ListError) -> ProbeResult {
        if let Some(failure) = connection_error(&error) {
            return Err(self.no_connection(failure));
        }
        let Some(answer) = error.raw_response() else {
            // No request could be made with these settings, such as an invalid bucket name.
            let bucket = self.state.shared.target().bucket.clone();
            let message = classify::bounded(&self.state.masked(&with_sources(&error)));
            let code = "NotSent".to_owned();
            return Err(ProbeError::Refused { bucket, code, message, remedy: "" });
        };
        let status = answer.status().as_u16();
        let bucket = self.state.shared.target().bucket.clone();
        let endpoint = self.shown_endpoint();
        let key = self
            .state
            .credentials
            .with_current(|published| masked::key_hint(published.credentials.access_key_id()));
        let code = self.state.masked(error.code().unwrap_or_default()).into_owned();
        let said = self.state.masked(error.message().unwrap_or_default());
        let message = classify::bounded(&said);
        let cause = Cause::of(status, &code, &message);
        Err(match (cause, code.as_str()) {
            (Cause::Region, _) => self.wrong_region(answer),
            (Cause::NoBucket, "NoSuchBucket") => ProbeError::NoSuchBucket { bucket, endpoint },
            (Cause::UnknownKey, _) => ProbeError::UnknownAccessKey { key, endpoint },
            (Cause::WrongSecret, _) => ProbeError::WrongSecret { key, endpoint },
            (Cause::Clock, _) => ProbeError::ClockSkew { endpoint },
            (Cause::ExpiredCredentials | Cause::BadCredentials, _) => {
                ProbeError::ExpiredCredentials { key, code }
            }
            // No store asks for proxy credentials, and none refuses without a reason.
            (_, "") if matches!(status, 403 | 407) && self.state.shared.http_proxy().is_some() => {
                let proxy = self.state.shared.http_proxy().map(ToString::to_string);
                let why = format!("it or the store answered {status}");
                ProbeError::Proxy { proxy: proxy.unwrap_or_default(), endpoint, why }
            }
            (Cause::Denied, _) => return warning(format!("{code}: {message}"), MAY_PUT),
            (Cause::Quota | Cause::Full, _) => {
                return warning(format!("{code}: {message}"), cause.remedy());
            }
            // A refusal without a body may still come from the store; a "not found" without one
            // comes from another server.
            (_, "") if status == 403 => {
                return warning(format!("the store answered {status}"), MAY_PUT);
            }
            _ if cause.class() == Class::Transient && status >= 300 => {
                let said = format!("{} answered {status} {code}: {message}", self.answerer());
                return Ok(Probe::Warning { said, remedy: WAIT, down: status >= 500 });
            }
            // Payloads need no listing.
            (_, "NotImplemented" | "MethodNotAllowed") => {
                return warning(
                    format!("the store does not support listing: {code}: {message}"),
                    MAY_PUT,
                );
            }
            (_, "") => ProbeError::NotS3 { endpoint, why: format!("status {status}") },
            _ => ProbeError::Refused { bucket, code, message, remedy: cause.remedy() },
        })
    }

    fn wrong_region(&self, answer: &HttpResponse) -> ProbeError {
        let bucket = self.state.shared.target().bucket.clone();
        let configured = self.state.shared.region().to_owned();
        let body = answer.body().bytes().map(String::from_utf8_lossy).unwrap_or_default();
        let in_body = || {
            let (_, rest) = body.split_once("<Region>")?;
            rest.split_once("</Region>").map(|(region, _)| region)
        };
        match answer.headers().get("x-amz-bucket-region").or_else(in_body) {
            Some(actual) if actual != configured => {
                let actual = classify::bounded(&self.state.masked(actual));
                ProbeError::WrongRegion { bucket, configured, actual }
            }
            _ => ProbeError::OtherRegion { bucket, configured },
        }
    }

    fn no_connection(&self, failure: &ConnectionError) -> ProbeError {
        let (failure, proxy) = failure.bare();
        let endpoint = match proxy {
            Some(proxy) => format!("{} (through proxy {proxy})", self.shown_endpoint()),
            None => self.shown_endpoint(),
        };
        // Behind a proxy only the proxy's own name is resolved and connected to.
        if let (
            ConnectionError::Unresolved { .. } | ConnectionError::Unreachable { .. },
            Some(proxy),
        ) = (failure, proxy)
        {
            let (proxy, why) = (proxy.to_owned(), with_sources(failure));
            return ProbeError::ProxyUnreached { proxy, why };
        }
        match failure {
            ConnectionError::Unresolved { why, .. } => {
                ProbeError::Unresolved { endpoint, why: why.clone() }
            }
            ConnectionError::Unreachable { source, address, .. } => {
                ProbeError::Unreachable { endpoint, why: format!("{address}: {source}") }
            }
            ConnectionError::Tls { source, .. } if !failure.may_pass() => {
                let remedy = tls::remedy(source);
                ProbeError::Tls { endpoint, why: source.to_string(), remedy }
            }
            ConnectionError::TunnelRefused { status, reason, .. } if !failure.may_pass() => {
                let proxy = proxy.unwrap_or_default().to_owned();
                let why = format!("it answered {status} {reason}");
                ProbeError::Proxy { proxy, endpoint: self.shown_endpoint(), why }
            }
            ConnectionError::BadAnswer { why, .. } => {
                ProbeError::NotS3 { endpoint, why: why.clone() }
            }
            ConnectionError::Tls { .. }
            | ConnectionError::TunnelRefused { .. }
            | ConnectionError::ByProxy { .. }
            | ConnectionError::ConnectTimeout { .. }
            | ConnectionError::ReadTimeout { .. }
            | ConnectionError::Broken { .. } => {
                ProbeError::Unreachable { endpoint, why: with_sources(failure) }
            }
        }
    }

    /// Who may have answered: a proxy in front of the store also sends responses of its own.
    fn answerer(&self) -> String {
        match self.state.shared.http_proxy() {
            Some(proxy) => format!("the store, or proxy {proxy},"),
            None => "the store".to_owned(),
        }
    }

    /// The store as the operator knows it.
    fn shown_endpoint(&self) -> String {
        match self.state.shared.endpoint() {
            Some(url) => url.to_owned(),
            None => format!("S3 in {}", self.state.shared.region()),
        }
    }
}
