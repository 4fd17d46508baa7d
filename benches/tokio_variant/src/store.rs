//! Where payloads go: `null:`, or `s3://` by the SDK or by millrace's own PUT.
//!
//! The SDK is set up so as to cost it the least that the contract allows. Off are what the worker does itself (retry,
//! timeouts) and what millrace does without on a custom endpoint (a checksum of every payload, stalled-stream
//! protection); the default HTTP client, its pool, credentials cache and signing are as they come.

use std::ffi::OsString;
use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::DisplayErrorContext;
use aws_sdk_s3::primitives::ByteStream;
use aws_types::SdkConfig;
use bytes::Bytes;
use millrace::config::{Checksum, Config, StoreUrl};

use crate::lean::{LeanClient, LeanStore};

/// Which client puts: `--put`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Sdk,
    Lean,
}

impl Put {
    /// Takes `--put sdk|lean` out of the arguments; the others are the library's.
    pub fn from_args(
        args: impl IntoIterator<Item = OsString>,
    ) -> Result<(Put, Vec<OsString>), String> {
        let mut put = Put::Sdk;
        let mut rest = Vec::new();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            if arg != "--put" {
                rest.push(arg);
                continue;
            }
            put = match args.next().as_deref().and_then(|value| value.to_str()) {
                Some("sdk") => Put::Sdk,
                Some("lean") => Put::Lean,
                _ => return Err("--put takes sdk or lean".into()),
            };
        }
        Ok((put, rest))
    }
}

/// One for all threads.
pub enum Store {
    Null,
    Sdk(Arc<SdkStore>),
    Lean(Arc<LeanStore>),
}

pub struct SdkStore {
    client: Client,
    bucket: String,
    prefix: String,
    content_type: String,
}

/// One worker's way to the store.
pub enum Uploader {
    Null,
    Sdk(Arc<SdkStore>),
    Lean(LeanClient),
}

impl Store {
    pub async fn open(config: &Config, put: Put) -> Result<Store, String> {
        let (bucket, prefix) = match &config.store {
            StoreUrl::Null => return Ok(Store::Null),
            StoreUrl::File(_) => return Err("the tokio variant has no file: store".into()),
            StoreUrl::S3 { bucket, prefix } => (bucket.clone(), prefix.clone()),
        };
        let shared = aws_config::load_defaults(BehaviorVersion::latest()).await;
        match put {
            Put::Sdk => {
                let (client, content_type) =
                    (client(config, &shared), config.s3.content_type.clone());
                Ok(Store::Sdk(Arc::new(SdkStore { client, bucket, prefix, content_type })))
            }
            Put::Lean => {
                let store = LeanStore::open(config, &shared, &bucket, &prefix).await?;
                Ok(Store::Lean(Arc::new(store)))
            }
        }
    }

    pub fn uploader(&self) -> Uploader {
        match self {
            Store::Null => Uploader::Null,
            Store::Sdk(store) => Uploader::Sdk(store.clone()),
            Store::Lean(store) => Uploader::Lean(store.client()),
        }
    }
}

impl Uploader {
    /// One attempt.
    pub async fn put(&mut self, key: &str, payload: &Bytes) -> Result<(), String> {
        match self {
            Uploader::Null => Ok(()),
            Uploader::Sdk(store) => store.put(key, payload).await,
            Uploader::Lean(client) => client.put(key, payload).await,
        }
    }
}

impl SdkStore {
    async fn put(&self, key: &str, payload: &Bytes) -> Result<(), String> {
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(format!("{}{key}", self.prefix))
            .content_type(&self.content_type)
            .body(ByteStream::from(payload.clone()));
        match put.send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(DisplayErrorContext(error).to_string()),
        }
    }
}

fn client(config: &Config, shared: &SdkConfig) -> Client {
    let custom_endpoint = shared.endpoint_url().is_some();
    let calculation = match config.s3.checksum {
        Checksum::Auto if !custom_endpoint => RequestChecksumCalculation::WhenSupported,
        _ => RequestChecksumCalculation::WhenRequired,
    };
    let s3 = aws_sdk_s3::config::Builder::from(shared)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .request_checksum_calculation(calculation)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .force_path_style(config.s3.force_path_style.unwrap_or(custom_endpoint));
    Client::from_conf(s3.build())
}
