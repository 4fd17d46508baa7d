//! The S3 client on `aws-sdk-s3`, one per executor: own connector, own pool, own clock offset.
//!
//! One attempt per put: the SDK's retries, timeouts, identity cache and clock correction are off,
//! because the worker owns retry and deadline. Bodies are in memory, so a checksum is a header,
//! never a trailer. Credentials come from control's snapshot; nothing here waits for a provider.

use std::rc::Rc;
use std::sync::Arc;

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
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::client_state::{ClientState, ErrorReply, request_ids, unanswered};
use super::connector::{self, GlommioHttp, GlommioSleep, PeerOf};
use super::hyper_pool::HyperPool;
use crate::config::Checksum;
use crate::store::s3::S3Shared;
use crate::store::{Class, Object, Progress, PutError, classify};

/// One executor's S3 client.
pub struct S3Store {
    pub(super) state: ClientState,
    pub(super) client: Client,
    pool: Rc<HyperPool>,
}

impl S3Store {
    /// A store for this executor, which keeps at most `idle_max` idle connections: one per worker.
    pub fn new(shared: Arc<S3Shared>, idle_max: usize) -> S3Store {
        let pool = HyperPool::new(shared.dialer(), idle_max);
        let state = ClientState::new(shared);
        let client = client(&state, &pool);
        S3Store { state, client, pool }
    }

    /// Stores `object` under the prefix and its key. One attempt; a temporary redirect is followed
    /// once. Dropping the future closes its connection.
    ///
    /// # Errors
    /// Classified by [`classify`], the code and message are the store's own.
    pub async fn put(&self, object: &Object<'_>, progress: &Progress) -> Result<(), PutError> {
        let generation = self.state.with_fresh_credentials(|published| published.generation)?;
        let first = match self.attempt(object, None, progress).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let outcome = match self.redirect_target(&first) {
            Some(target) => self.attempt(object, Some(target), progress).await,
            None => Err(first),
        };
        outcome.or_else(|error| self.outcome_of(error, generation))
    }

    /// The SDK's client, for what is not on the data path.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Connections without a request.
    pub fn idle_connections(&self) -> usize {
        self.pool.idle_count()
    }

    async fn attempt(
        &self,
        object: &Object<'_>,
        target: Option<String>,
        progress: &Progress,
    ) -> PutResult {
        let peer = PeerOf::new(progress.of_slot());
        let mut put = self.request(object).customize();
        put = put.mutate_request(move |request| request.add_extension(peer.clone()));
        if !self.state.shared.sign_payload() {
            put = put.disable_payload_signing();
        }
        let sent = match target {
            // Before signing, so that the signature names the new host.
            Some(url) => {
                let redirected = put.mutate_request(move |request| {
                    // The address was checked when the redirect was taken.
                    let _ = request.set_uri(url.as_str());
                });
                redirected.send().await
            }
            None => put.send().await,
        };
        sent.map(|_| ())
    }

    fn request(&self, object: &Object<'_>) -> PutObjectFluentBuilder {
        let target = self.state.shared.target();
        let options = &target.options;
        let algorithm = match self.state.shared.checksum() {
            Checksum::Auto | Checksum::None => None,
            Checksum::Crc32c => Some(ChecksumAlgorithm::Crc32C),
            Checksum::Crc64Nvme => Some(ChecksumAlgorithm::Crc64Nvme),
            Checksum::Sha256 => Some(ChecksumAlgorithm::Sha256),
        };
        self.client
            .put_object()
            .bucket(&target.bucket)
            .key(format!("{}{}", target.prefix, object.key))
            .body(ByteStream::new(connector::body_of(object.body)))
            .set_content_encoding(object.coding.map(|coding| coding.name().to_owned()))
            .content_type(&options.content_type)
            .set_acl(options.acl.as_deref().map(ObjectCannedAcl::from))
            .set_storage_class(options.storage_class.as_deref().map(StorageClass::from))
            .set_server_side_encryption(options.sse.as_deref().map(ServerSideEncryption::from))
            .set_ssekms_key_id(options.kms_key_id.clone())
            .set_bucket_key_enabled(options.bucket_key)
            .set_tagging(options.tags.clone())
            .set_expected_bucket_owner(options.expected_owner.clone())
            .set_checksum_algorithm(algorithm)
            .set_if_none_match(options.if_none_match.then(|| "*".to_owned()))
    }

    /// Where a 307 points, if it may be followed.
    fn redirect_target(&self, error: &SdkError<PutObjectError, HttpResponse>) -> Option<String> {
        let answer = error.raw_response().filter(|a| a.status().as_u16() == 307)?;
        let location = answer.headers().get("location")?;
        self.state.redirect(location).map(|_| location.to_owned())
    }

    /// The outcome for the worker of `error`, the response to a request signed with credentials of
    /// `generation`.
    fn outcome_of(
        &self,
        error: SdkError<PutObjectError, HttpResponse>,
        generation: u64,
    ) -> Result<(), PutError> {
        let Some(answer) = error.raw_response() else { return Err(self.not_answered(&error)) };
        let body = answer.body().bytes().unwrap_or_default();
        let refusal = ErrorReply {
            status: answer.status().as_u16(),
            code: error.code(),
            message: error.message(),
            date: answer.headers().get("date"),
            body,
            request_ids: request_ids(|name| answer.headers().get(name), body),
        };
        self.state.outcome_of(&refusal, generation)
    }

    /// A failure without a response: the connection's own error if there is one.
    fn not_answered(&self, error: &SdkError<PutObjectError, HttpResponse>) -> PutError {
        if let Some(error) = connector::connection_error(error) {
            return unanswered(error);
        }
        // The request could not be built or signed. A setting is the cause: keys are never empty.
        let why = connector::with_sources(error);
        let message = classify::bounded(&self.state.masked(&why));
        PutError::new(Class::StoreWide, "NotSent", message)
    }
}

type PutResult = Result<(), SdkError<PutObjectError, HttpResponse>>;

fn client(state: &ClientState, pool: &Rc<HyperPool>) -> Client {
    let ClientState { shared, credentials, clock, .. } = state;
    let location = shared.location();
    // Under `WhenRequired` the SDK ignores an algorithm named on the request; under
    // `WhenSupported` it chooses one if the request names none.
    let calculation = match shared.checksum() {
        Checksum::None => RequestChecksumCalculation::WhenRequired,
        _ => RequestChecksumCalculation::WhenSupported,
    };
    let mut config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .http_client(GlommioHttp::new(pool.clone(), shared.target().options.connect_timeout))
        .sleep_impl(GlommioSleep)
        .time_source(clock.clone())
        .region(Region::new(location.region.clone()))
        .credentials_provider(credentials.clone())
        .identity_cache(IdentityCache::no_cache())
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .disable_clock_skew_correction(true)
        .request_checksum_calculation(calculation)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .force_path_style(shared.path_style())
        // The ARN of an access point names its region.
        .use_arn_region(true);
    config.set_endpoint_url(location.endpoint.clone());
    config.set_use_fips(location.fips);
    config.set_use_dual_stack(location.dual_stack);
    Client::from_conf(config.build())
}
