//! Where payloads go: `null:`, or `s3://` by the SDK or by millrace's own PUT.
//!
//! The SDK is set up so as to cost it the least that the contract allows. Off are what the worker does itself (retry,
//! timeouts) and what millrace does without on a custom endpoint (a checksum of every payload, stalled-stream
//! protection); the default HTTP client, its pool, credentials cache and signing are as they come.

use std::ffi::OsString;
use std::sync::{Arc, mpsc};

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
use millrace::internals::config::{Checksum, Config, StoreUrl};
use millrace::internals::store::{Integrity, Summing, Sums};
use tokio::sync::OwnedSemaphorePermit;

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

/// A payload by itself, or a batch.
pub struct Object {
    pub key: String,
    pub body: Body,
    /// What the store's [`Store::summing`] made of the body while it was gathered.
    pub sums: Option<Sums>,
    /// How many it holds.
    pub payloads: u64,
    pub _held: Held,
}

pub enum Body {
    Whole(Bytes),
    /// In order; they go back where they come from.
    Chunks {
        chunks: Vec<Vec<u8>>,
        spent: mpsc::Sender<Vec<Vec<u8>>>,
    },
}

/// What is given back with the object.
#[expect(dead_code, reason = "to be dropped is all they are for")]
pub enum Held {
    /// The bytes of the request, with its last payload.
    Request(Arc<OwnedSemaphorePermit>),
    Batch(OwnedSemaphorePermit),
}

impl Body {
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let (whole, chunks) = match self {
            Body::Whole(whole) => (Some(&whole[..]), &[][..]),
            Body::Chunks { chunks, .. } => (None, &chunks[..]),
        };
        whole.into_iter().chain(chunks.iter().map(Vec::as_slice))
    }

    pub fn len(&self) -> usize {
        self.parts().map(<[u8]>::len).sum()
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Body::Chunks { chunks, spent } = self {
            let _its_thread_has_ended = spent.send(std::mem::take(chunks));
        }
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

    /// Begins the sums of an object that is gathered. The SDK computes its own.
    pub fn summing(&self) -> Summing {
        match self {
            Store::Lean(store) => Summing::new(store.integrity()),
            Store::Null | Store::Sdk(_) => Summing::new(Integrity::NONE),
        }
    }

    /// The SDK signs a body that is in memory in one piece; what comes in several it sends unsigned, which would be
    /// another request than the others send.
    pub fn wants_one_piece(&self) -> bool {
        matches!(self, Store::Sdk(_))
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
    pub async fn put(&mut self, object: &Object) -> Result<(), String> {
        match self {
            Uploader::Null => Ok(()),
            Uploader::Sdk(store) => store.put(object).await,
            Uploader::Lean(client) => client.put(object).await,
        }
    }
}

impl SdkStore {
    async fn put(&self, object: &Object) -> Result<(), String> {
        let Body::Whole(body) = &object.body else { unreachable!("it wants one piece") };
        let key = &object.key;
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(format!("{}{key}", self.prefix))
            .content_type(&self.content_type)
            .body(ByteStream::from(body.clone()));
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
