//! The `s3://` store on `aws-sdk-s3`, on its own core: own connector, own pool, own clock offset.
//!
//! One attempt per put: the SDK's retries, timeouts, identity cache and clock correction are off,
//! the worker owns retry and deadline. Bodies are in memory, so a checksum is a header, never a
//! trailer. Credentials come from control's snapshot; nothing here waits for a provider.

pub mod probe;

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::put_object::PutObjectError;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ObjectCannedAcl, ServerSideEncryption, StorageClass};
use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::clock::ClockOffset;
use super::connector::{self, GlommioHttp, GlommioSleep};
use super::dial::{Dialer, LinkError, Origin};
use super::keys::SnapshotKeys;
use super::pool::Pool;
use super::{Class, PutError, classify};
use crate::aws::AwsShared;
use crate::config::Checksum;
use crate::job::Payload;

/// One core's S3 client.
pub struct S3Store {
    shared: Arc<AwsShared>,
    client: Client,
    keys: SnapshotKeys,
    clock: ClockOffset,
    pool: Rc<Pool>,
}

impl S3Store {
    /// A store for this executor. At most `idle_max` idle connections are kept: as many as there
    /// are workers.
    pub fn new(shared: Arc<AwsShared>, idle_max: usize) -> S3Store {
        let dialer = Dialer::new(shared.names.clone(), &shared.tls);
        let pool = Pool::new(dialer, idle_max);
        let keys = SnapshotKeys::new(&shared);
        let clock = shared.clock.detached();
        let client = client(&shared, &pool, &keys, &clock);
        S3Store { shared, client, keys, clock, pool }
    }

    /// Stores `payload` under the prefix and `key`. One attempt; a temporary redirect is followed
    /// once. Dropping the future closes its connection.
    ///
    /// # Errors
    /// Classified by [`classify`], the code and message are the store's own.
    pub async fn put(&self, key: &str, payload: &Payload) -> Result<(), PutError> {
        let generation = self.fresh_keys()?;
        let first = match self.attempt(key, payload, None).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let outcome = match self.redirect_target(&first) {
            Some(target) => self.attempt(key, payload, Some(target)).await,
            None => Err(first),
        };
        outcome.map_err(|error| self.put_error(error, generation))
    }

    /// The SDK's client, for what is not on the data path.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Connections waiting for a request.
    pub fn idle_connections(&self) -> usize {
        self.pool.idle_count()
    }

    async fn attempt(&self, key: &str, payload: &Payload, target: Option<String>) -> PutResult {
        let put = self.request(key, payload);
        let sent = match target {
            // Before signing, so that the signature names the new host.
            Some(url) => {
                let redirected = put.customize().mutate_request(move |request| {
                    // The address was checked when the redirect was taken.
                    let _ = request.set_uri(url.as_str());
                });
                redirected.send().await
            }
            None => put.send().await,
        };
        sent.map(|_| ())
    }

    fn request(&self, key: &str, payload: &Payload) -> PutObjectFluentBuilder {
        let target = self.shared.target();
        let options = &target.options;
        let algorithm = match self.shared.checksum() {
            Checksum::Auto | Checksum::None => None,
            Checksum::Crc32c => Some(ChecksumAlgorithm::Crc32C),
            Checksum::Crc64Nvme => Some(ChecksumAlgorithm::Crc64Nvme),
            Checksum::Sha256 => Some(ChecksumAlgorithm::Sha256),
        };
        self.client
            .put_object()
            .bucket(&target.bucket)
            .key(format!("{}{key}", target.prefix))
            .body(ByteStream::new(connector::payload_body(payload)))
            .content_type(&options.content_type)
            .set_acl(options.acl.as_deref().map(ObjectCannedAcl::from))
            .set_storage_class(options.storage_class.as_deref().map(StorageClass::from))
            .set_server_side_encryption(options.sse.as_deref().map(ServerSideEncryption::from))
            .set_ssekms_key_id(options.kms_key_id.clone())
            .set_checksum_algorithm(algorithm)
    }

    /// The generation of the current credentials; those known to be expired are not worth a round trip. Known means: by
    /// this host's clock and by the store's, for either may be wrong, and only an answer says which.
    fn fresh_keys(&self) -> Result<u64, PutError> {
        let (generation, expiry) =
            self.keys.current(|keys| (keys.generation, keys.credentials.expiry()));
        if expiry.is_none_or(|at| at > SystemTime::now().min(self.clock.now())) {
            return Ok(generation);
        }
        self.shared.want_newer_keys(generation);
        Err(PutError {
            class: Class::Transient,
            code: "ExpiredCredentials".into(),
            message: "the credentials have expired and newer ones are not there yet".into(),
        })
    }

    /// Where a 307 points, if it may be followed: an absolute address, and not from https to http.
    fn redirect_target(&self, error: &SdkError<PutObjectError, HttpResponse>) -> Option<String> {
        let answer = error.raw_response().filter(|a| a.status().as_u16() == 307)?;
        let location = answer.headers().get("location")?;
        let target = Origin::of(&location.parse().ok()?)?;
        let allowed = target.https || !self.shared.https();
        allowed.then(|| location.to_owned())
    }

    /// The worker's view of `error`, the answer to a request signed with credentials of `generation`.
    fn put_error(
        &self,
        error: SdkError<PutObjectError, HttpResponse>,
        generation: u64,
    ) -> PutError {
        let Some(answer) = error.raw_response() else { return unanswered(&error) };
        let status = answer.status().as_u16();
        let date = answer.headers().get("date");
        let code = error.code().unwrap_or_default();
        let mut put_error = classify::reply_error(status, error.code(), error.message());
        if code == "RequestTimeTooSkewed" || self.clock.is_shifted() {
            self.clock.take(date);
        }
        if classify::wants_new_credentials(code) {
            self.shared.want_newer_keys(generation);
            if self.keys.current(|keys| keys.stuck) {
                put_error.class = Class::StoreWide;
            }
        }
        put_error
    }
}

type PutResult = Result<(), SdkError<PutObjectError, HttpResponse>>;

fn client(shared: &AwsShared, pool: &Rc<Pool>, keys: &SnapshotKeys, clock: &ClockOffset) -> Client {
    let place = shared.place();
    // An algorithm named on the request is ignored under `WhenRequired`; without one,
    // `WhenSupported` would choose one.
    let calculation = match shared.checksum() {
        Checksum::None => RequestChecksumCalculation::WhenRequired,
        _ => RequestChecksumCalculation::WhenSupported,
    };
    let mut config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .http_client(GlommioHttp::new(pool.clone(), shared.target().options.connect_timeout))
        .sleep_impl(GlommioSleep)
        .time_source(clock.clone())
        .region(Region::new(place.region.clone()))
        .credentials_provider(keys.clone())
        .identity_cache(IdentityCache::no_cache())
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .disable_clock_skew_correction(true)
        .request_checksum_calculation(calculation)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .force_path_style(shared.path_style());
    config.set_endpoint_url(place.endpoint.clone());
    config.set_use_fips(place.fips);
    config.set_use_dual_stack(place.dual_stack);
    Client::from_conf(config.build())
}

/// A failure without an answer: the link's own error if there is one.
fn unanswered<E>(error: &SdkError<E, HttpResponse>) -> PutError
where
    E: std::error::Error + 'static,
{
    let (class, code) = match link_error(error) {
        Some(link) => classify::link(link),
        // The request could not be built or signed: a setting, for keys are never empty.
        None => (Class::StoreWide, "NotSent"),
    };
    let message = match link_error(error) {
        Some(link) => connector::with_sources(link),
        None => connector::with_sources(error),
    };
    PutError { class, code: code.into(), message: classify::bounded(&message) }
}

fn link_error<E>(error: &SdkError<E, HttpResponse>) -> Option<&LinkError>
where
    E: std::error::Error + 'static,
{
    let SdkError::DispatchFailure(failure) = error else { return None };
    let mut source = std::error::Error::source(failure.as_connector_error()?);
    while let Some(cause) = source {
        if let Some(link) = cause.downcast_ref() {
            return Some(link);
        }
        source = cause.source();
    }
    None
}
