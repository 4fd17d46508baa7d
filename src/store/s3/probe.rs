//! The question asked of the bucket before the first payload: one `ListObjectsV2` for one key.
//!
//! A HEAD would do, but its errors have no body, and the body is what names the mistake. What an
//! operator must mend is a [`ProbeError`] (exit 2); what may well not stop a PUT is a warning. What
//! may pass by itself is told apart, for a start that can wait.

use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Error;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

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
        /// It was a 5xx: the store is there, but does not work.
        down: bool,
    },
}

/// The outcome of a probe.
pub type ProbeResult = Result<Probe, ProbeError>;

/// Remedy of a refused listing.
const MAY_PUT: &str = "nothing, if the role may put (s3:PutObject): millrace itself never lists";
/// Remedy of what passes.
const WAIT: &str = "nothing, if it passes; payloads are held until the store takes them";
/// Remedy of a wrong clock.
const SET_TIME: &str =
    "set this host's time, or run NTP; until then requests are signed with the store's";

/// Why the store cannot work until an operator changes something: one sentence, with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("bucket {bucket} is in region {actual}, not {configured}: set AWS_REGION={actual}")]
    WrongRegion { bucket: String, configured: String, actual: String },
    #[error("bucket {bucket} is not in region {configured}: set AWS_REGION to the bucket's region")]
    OtherRegion { bucket: String, configured: String },
    #[error("bucket {bucket} does not exist at {place}: create it, or correct STORE")]
    NoSuchBucket { bucket: String, place: String },
    #[error(
        "access key {key} is not known at {place}: correct AWS_ACCESS_KEY_ID or the AWS profile, or the endpoint"
    )]
    UnknownAccessKey { key: String, place: String },
    #[error(
        "the secret of access key {key} is wrong at {place}: correct AWS_SECRET_ACCESS_KEY or the AWS profile"
    )]
    WrongSecret { key: String, place: String },
    #[error("the credentials of access key {key} have expired or are invalid ({code}): renew them")]
    ExpiredCredentials { key: String, code: String },
    #[error("the clock of this host is too far from that of {place}: set the time, or run NTP")]
    ClockSkew { place: String },
    #[error(
        "{place} cannot be resolved ({why}): correct AWS_ENDPOINT_URL or AWS_REGION, or check DNS"
    )]
    Unresolved { place: String, why: String },
    #[error("{place} cannot be reached ({why}): check the endpoint, the network and the firewall")]
    Unreachable { place: String, why: String },
    #[error("TLS with {place} fails ({why}): {remedy}")]
    Tls { place: String, why: String, remedy: &'static str },
    #[error(
        "proxy {proxy} does not let requests to {place} pass ({why}): correct HTTPS_PROXY or HTTP_PROXY, have the proxy \
         allow it, or name the store's host in NO_PROXY"
    )]
    Proxy { proxy: String, place: String, why: String },
    #[error(
        "proxy {proxy} cannot be reached ({why}): start it, correct HTTPS_PROXY or HTTP_PROXY, or name the store's host \
         in NO_PROXY"
    )]
    ProxyUnreached { proxy: String, why: String },
    #[error("{place} does not answer like S3 ({why}): correct AWS_ENDPOINT_URL")]
    NotS3 { place: String, why: String },
    #[error("bucket {bucket} refuses the probe: {code}: {message}{}", behind_colon(remedy))]
    Refused {
        bucket: String,
        code: String,
        message: String,
        /// Empty where none is known.
        remedy: &'static str,
    },
    #[error("{place} did not answer within {seconds} s: check the endpoint and the network")]
    TimedOut { place: String, seconds: u64 },
    /// There is nothing to sign the question with yet.
    #[error("{why}")]
    NoCredentials { why: String },
}

impl ProbeError {
    /// True where nobody was reached; everything else waits for an operator.
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
    /// Asks the bucket whether it would take payloads; runs on the control executor, bounded by 15
    /// s.
    ///
    /// # Errors
    /// See [`ProbeError`]. `AccessDenied` and passing troubles of the store are warnings: an ingest
    /// role may hold nothing but `s3:PutObject`, and a busy store is no reason not to start.
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
                // Cores would do the same with their first put.
                Err(error) if self.took_time(&error) => {
                    let again = list().await.or_else(|error| self.verdict(error))?;
                    Ok(self.with_clock(again))
                }
                outcome => outcome.or_else(|error| self.verdict(error)),
            }
        };
        let seconds = PROBE_TIMEOUT.as_secs();
        let late = || Err(ProbeError::TimedOut { place: self.place(), seconds });
        within(PROBE_TIMEOUT, ask, late).await
    }

    /// Whether the store found the time wrong and said its own, which is then used from now on.
    fn took_time(&self, error: &ListError) -> bool {
        let (code, message) =
            (error.code().unwrap_or_default(), error.message().unwrap_or_default());
        let skewed = error.raw_response().is_some_and(|answer| {
            Cause::of(answer.status().as_u16(), code, message) == Cause::Clock
        });
        let date = error.raw_response().and_then(|answer| answer.headers().get("date"));
        skewed && self.state.clock.learn(date) && self.state.shared.clock.learn(date)
    }

    /// `probe`, but a clock that had to be corrected is worth a warning.
    fn with_clock(&self, probe: Probe) -> Probe {
        let offset_s = self.state.clock.offset_s();
        let minutes = Duration::from_secs((offset_s.unsigned_abs() + 30) / 60 * 60);
        let off = humantime::format_duration(minutes);
        let way = if offset_s > 0 { "behind" } else { "ahead of" };
        let clock = format!("this host's clock is {off} {way} that of {}", self.place());
        let (said, down) = match probe {
            Probe::Ok => (clock, false),
            Probe::Warning { said, down, .. } => (format!("{clock}; {said}"), down),
        };
        Probe::Warning { said, remedy: SET_TIME, down }
    }

    fn verdict(&self, error: ListError) -> ProbeResult {
        if let Some(link) = connection_error(&error) {
            return Err(self.no_link(link));
        }
        let Some(answer) = error.raw_response() else {
            // No request came out of these settings, such as a bucket name that is none.
            let bucket = self.state.shared.target().bucket.clone();
            let message = classify::bounded(&with_sources(&error));
            let code = "NotSent".to_owned();
            return Err(ProbeError::Refused { bucket, code, message, remedy: "" });
        };
        let status = answer.status().as_u16();
        let bucket = self.state.shared.target().bucket.clone();
        let place = self.place();
        let key = self
            .state
            .credentials
            .with_current(|published| published.credentials.access_key_id().to_owned());
        let code = error.code().unwrap_or_default().to_owned();
        let message = classify::bounded(error.message().unwrap_or_default());
        let cause = Cause::of(status, &code, &message);
        Err(match (cause, code.as_str()) {
            (Cause::Region, _) => self.wrong_region(answer),
            (Cause::NoBucket, "NoSuchBucket") => ProbeError::NoSuchBucket { bucket, place },
            (Cause::UnknownKey, _) => ProbeError::UnknownAccessKey { key, place },
            (Cause::WrongSecret, _) => ProbeError::WrongSecret { key, place },
            (Cause::Clock, _) => ProbeError::ClockSkew { place },
            (Cause::ExpiredCredentials | Cause::BadCredentials, _) => {
                ProbeError::ExpiredCredentials { key, code }
            }
            // No store asks for a proxy's credentials, and none refuses without saying why.
            (_, "") if matches!(status, 403 | 407) && self.state.shared.http_proxy().is_some() => {
                let proxy = self.state.shared.http_proxy().map(ToString::to_string);
                let why = format!("it or the store answered {status}");
                ProbeError::Proxy { proxy: proxy.unwrap_or_default(), place, why }
            }
            (Cause::Denied, _) => return warning(format!("{code}: {message}"), MAY_PUT),
            (Cause::Quota | Cause::Full, _) => {
                return warning(format!("{code}: {message}"), cause.remedy());
            }
            // A bodiless refusal is still the store's; a bodiless "not found" is some other
            // server's.
            (_, "") if status == 403 => {
                return warning(format!("the store answered {status}"), MAY_PUT);
            }
            _ if cause.class() == Class::Transient && status >= 300 => {
                let said = format!("{} answered {status} {code}: {message}", self.answerer());
                return Ok(Probe::Warning { said, remedy: WAIT, down: status >= 500 });
            }
            // Listing is not what payloads need.
            (_, "NotImplemented" | "MethodNotAllowed") => {
                return warning(format!("the store does not list: {code}: {message}"), MAY_PUT);
            }
            (_, "") => ProbeError::NotS3 { place, why: format!("status {status}") },
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
                ProbeError::WrongRegion { bucket, configured, actual: classify::bounded(actual) }
            }
            _ => ProbeError::OtherRegion { bucket, configured },
        }
    }

    fn no_link(&self, link: &ConnectionError) -> ProbeError {
        let (link, proxy) = link.bare();
        let place = match proxy {
            Some(proxy) => format!("{} (through proxy {proxy})", self.place()),
            None => self.place(),
        };
        // Only the proxy's own name is resolved here, and only its address is connected to.
        if let (
            ConnectionError::Unresolved { .. } | ConnectionError::Unreachable { .. },
            Some(proxy),
        ) = (link, proxy)
        {
            let (proxy, why) = (proxy.to_owned(), with_sources(link));
            return ProbeError::ProxyUnreached { proxy, why };
        }
        match link {
            ConnectionError::Unresolved { why, .. } => {
                ProbeError::Unresolved { place, why: why.clone() }
            }
            ConnectionError::Unreachable { source, address, .. } => {
                ProbeError::Unreachable { place, why: format!("{address}: {source}") }
            }
            ConnectionError::Tls { source, .. } if !link.may_pass() => {
                let remedy = tls::remedy(source);
                ProbeError::Tls { place, why: source.to_string(), remedy }
            }
            ConnectionError::TunnelRefused { status, reason, .. } if !link.may_pass() => {
                let proxy = proxy.unwrap_or_default().to_owned();
                let why = format!("it answered {status} {reason}");
                ProbeError::Proxy { proxy, place: self.place(), why }
            }
            ConnectionError::BadAnswer { why, .. } => ProbeError::NotS3 { place, why: why.clone() },
            ConnectionError::Tls { .. }
            | ConnectionError::TunnelRefused { .. }
            | ConnectionError::ByProxy { .. }
            | ConnectionError::ConnectTimeout { .. }
            | ConnectionError::ReadTimeout { .. }
            | ConnectionError::Broken { .. } => {
                ProbeError::Unreachable { place, why: with_sources(link) }
            }
        }
    }

    /// Who gives the answers: a proxy between here and the store gives its own as well.
    fn answerer(&self) -> String {
        match self.state.shared.http_proxy() {
            Some(proxy) => format!("the store, or proxy {proxy},"),
            None => "the store".to_owned(),
        }
    }

    /// The store in the operator's words.
    fn place(&self) -> String {
        match self.state.shared.endpoint() {
            Some(url) => url.to_owned(),
            None => format!("S3 in {}", self.state.shared.region()),
        }
    }
}
