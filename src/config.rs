//! What the operator said: flag > environment > TOML file > default, parsed into types in which a bad value
//! cannot exist.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything the operator chose; sizes are bytes.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// `None` when `off`.
    pub admin_listen: Option<SocketAddr>,
    /// CPU ids to pin, ascending, each allowed for this process, never empty.
    pub cores: Vec<usize>,
    pub max_workers: usize,
    pub max_queue: usize,
    pub max_queue_bytes: usize,
    pub max_body_bytes: usize,
    pub max_connections: usize,
    pub max_length: usize,
    pub enqueue_wait: Duration,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub idle_timeout: Duration,
    pub tokens_file: Option<PathBuf>,
    pub store: StoreUrl,
    pub s3: S3Options,
    pub put_timeout: Duration,
    pub retry_base: Duration,
    pub retry_max: Duration,
    pub retry_for: Duration,
    pub dead_letter_dir: PathBuf,
    pub dead_letter_max: u64,
    pub ready_store_grace: Duration,
    pub drain_timeout: Duration,
    /// `NODE_ID`, or 64 random bits in hex drawn at this process start.
    pub node_id: String,
    /// A `tracing_subscriber::EnvFilter` directive string.
    pub log: String,
    pub log_format: LogFormat,
    /// Seeded store faults, for tests and game days only; `None` in production.
    pub faults: Option<String>,
}

/// Where payloads go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// `file:DIR`
    File(PathBuf),
    /// `s3://BUCKET/PREFIX`; the prefix is empty or ends as the operator wrote it (`logs/` or `logs-`).
    S3 { bucket: String, prefix: String },
    /// `null:`; confirms everything, keeps nothing.
    Null,
}

/// What every PUT to S3 carries besides the payload. `None` sends no header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Options {
    pub acl: Option<String>,
    pub storage_class: Option<String>,
    /// `AES256` or `aws:kms`.
    pub sse: Option<String>,
    /// Only together with `sse = aws:kms`.
    pub kms_key_id: Option<String>,
    /// `None`: path style on a custom endpoint, virtual-host style on AWS.
    pub force_path_style: Option<bool>,
    pub checksum: Checksum,
    /// `CONTENT_TYPE`, by default `application/octet-stream`.
    pub content_type: String,
    pub connect_timeout: Duration,
}

/// `S3_CHECKSUM`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// crc64nvme on AWS, none on a custom endpoint.
    #[default]
    Auto,
    None,
    Crc32c,
    Crc64Nvme,
    Sha256,
}

/// `LOG_FORMAT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}
