//! Where payloads go: `null:`, or `s3://` by the SDK.
//!
//! The SDK is set up so as to cost it the least that the contract allows. Off are what the worker does itself (retry,
//! timeouts) and what millrace does without on a custom endpoint (a checksum of every payload, stalled-stream
//! protection); the default HTTP client, its pool, credentials cache and signing are as they come.

use std::ffi::OsString;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::DisplayErrorContext;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use millrace::config::{Checksum, Config, StoreUrl};

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
    Sdk { client: Client, bucket: String, prefix: String, content_type: String },
}

impl Store {
    pub async fn open(config: &Config, put: Put) -> Result<Store, String> {
        let (bucket, prefix) = match &config.store {
            StoreUrl::Null => return Ok(Store::Null),
            StoreUrl::File(_) => return Err("the tokio variant has no file: store".into()),
            StoreUrl::S3 { bucket, prefix } => (bucket.clone(), prefix.clone()),
        };
        match put {
            Put::Sdk => Ok(Store::Sdk {
                client: client(config).await,
                bucket,
                prefix,
                content_type: config.s3.content_type.clone(),
            }),
            Put::Lean => Err("the lean PUT is not built in yet".into()),
        }
    }

    /// One attempt.
    pub async fn put(&self, key: &str, payload: &Bytes) -> Result<(), String> {
        match self {
            Store::Null => Ok(()),
            Store::Sdk { client, bucket, prefix, content_type } => {
                let put = client
                    .put_object()
                    .bucket(bucket)
                    .key(format!("{prefix}{key}"))
                    .content_type(content_type)
                    .body(ByteStream::from(payload.clone()));
                match put.send().await {
                    Ok(_) => Ok(()),
                    Err(error) => Err(DisplayErrorContext(error).to_string()),
                }
            }
        }
    }
}

async fn client(config: &Config) -> Client {
    let shared = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let custom_endpoint = shared.endpoint_url().is_some();
    let calculation = match config.s3.checksum {
        Checksum::Auto if !custom_endpoint => RequestChecksumCalculation::WhenSupported,
        _ => RequestChecksumCalculation::WhenRequired,
    };
    let s3 = aws_sdk_s3::config::Builder::from(&shared)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .request_checksum_calculation(calculation)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .force_path_style(config.s3.force_path_style.unwrap_or(custom_endpoint));
    Client::from_conf(s3.build())
}
