//! The configuration: flag > environment > TOML file > default, parsed into types that cannot
//! contain a bad value.
//!
//! Every setting is read even after one was refused, so that a start with three mistakes reports
//! all three. Each error names the setting, its source, the given text, and what to write instead.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::key::KeyTemplate;
use crate::log::LogFormat;
use crate::net::BLOCK;
use crate::quota::Quota;

mod admin;
mod bodies;
mod cors;
mod faults;
mod file_mode;
mod h2;
mod layers;
mod listen;
mod meta;
mod networks;
mod objects;
mod quotas;
mod s3;
mod settings;
mod tls;
mod value;

pub use admin::{AdminToken, AdminTokenSource, AdminTokenText, admin_token_text};
pub use bodies::{ObjectBody, Paths};
pub use cors::CorsOrigins;
pub use faults::{FaultPlan, Poison};
pub use file_mode::FileMode;
pub use h2::{H2Offer, H2Options};
pub use layers::{
    Effective, Environment, Flags, HostContext, SettingSource, SettingValue, is_variable,
};
pub use listen::ListenAddress;
pub use meta::{META_HEADER_BYTES_MAX, MetaEntry};
pub use networks::Networks;
pub use objects::{BatchFormat, BatchOptions};
pub use settings::{SETTINGS, Setting, setting};
pub use tls::{PairFiles, TlsOptions};
pub use value::{IS_SECRET, core_list, is_secret_itself};

/// Everything the operator chose; sizes are bytes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Never empty.
    pub listen: Vec<ListenAddress>,
    /// Proxies whose requests name their clients. `None`: no request does.
    pub trust: Option<Networks>,
    /// `None` when `off`.
    pub admin_listen: Option<SocketAddr>,
    /// The admin pages are served over TLS.
    pub admin_tls: bool,
    /// Set if any address has TLS.
    pub tls: Option<TlsOptions>,
    pub h2: H2Options,
    /// `None`: there is none, and only a loopback address has all admin pages.
    pub admin_token: Option<AdminTokenSource>,
    /// Whether the admin listener shows samples of payloads.
    pub tap: bool,
    /// Whether the ingest listener answers `/healthz` and `/readyz` too.
    pub ingest_health: bool,
    /// The paths that take payloads.
    pub paths: Paths,
    /// How long the start retries while an address is in use; zero: not at all.
    pub bind_wait: Duration,
    /// CPU ids to pin, ascending, each allowed for this process, never empty.
    pub cores: Vec<usize>,
    pub placement: ConnectionPlacement,
    /// How long an idle core polls before it sleeps.
    pub spin: Duration,
    pub max_workers: usize,
    pub max_queue: usize,
    pub max_queue_bytes: usize,
    pub max_body_bytes: usize,
    pub max_connections: usize,
    pub max_length: usize,
    pub enqueue_wait: Duration,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    /// Bytes a second that every body must bring; 0: no minimum.
    pub body_rate_min: u64,
    pub idle_timeout: Duration,
    /// What an object is whose content type does not say it.
    pub body: ObjectBody,
    pub tokens_file: Option<PathBuf>,
    /// Whether a token may be in the envelope as well as in a header.
    pub token_in_body: bool,
    /// Whether a token may be in the query as well.
    pub token_in_query: bool,
    /// `None`: nothing is said to browsers.
    pub cors_origins: Option<CorsOrigins>,
    /// What one peer may send.
    pub client_quota: Quota,
    pub store: StoreUrl,
    /// Permissions of what a `file:` store creates.
    pub file_mode: FileMode,
    pub s3: S3Options,
    /// The keys of single payloads or, if `batch` is set, of batches.
    pub keys: KeyTemplate,
    /// What is stored with every payload; empty: nothing but its bytes.
    pub meta: Vec<MetaEntry>,
    /// `None`: one object per payload.
    pub batch: Option<BatchOptions>,
    /// Price of 1,000 PUTs, in dollars.
    pub put_price: f64,
    /// What a 200 promises unless the request says otherwise.
    pub ack: Ack,
    /// The longest wait for the store or the disk; then the request gets 504.
    pub ack_timeout: Duration,
    /// `None` without `SPOOL_DIR`.
    pub spool: Option<SpoolOptions>,
    /// The longest time that one PUT may make no progress.
    pub put_timeout: Duration,
    /// The longest duration of one PUT, whatever its progress.
    pub put_timeout_max: Duration,
    pub retry_base: Duration,
    pub retry_max: Duration,
    pub retry_for: Duration,
    pub dead_letter_dir: PathBuf,
    pub dead_letter_max: u64,
    pub ready_store_grace: Duration,
    pub drain_timeout: Duration,
    /// `NODE_ID`, or 64 random bits in hex, generated at process start.
    pub node_id: String,
    /// A `tracing_subscriber::EnvFilter` directive string.
    pub log: String,
    pub log_format: LogFormat,
    /// Seeded store faults, for tests and game days only; `None` in production.
    pub faults: Option<FaultPlan>,
    /// The TOML file that was read, if one was named.
    pub file: Option<PathBuf>,
}

/// Where payloads go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// `file:DIR`
    File(PathBuf),
    /// `s3://BUCKET/PREFIX`; the prefix is empty or ends as the operator wrote it (`logs/` or
    /// `logs-`).
    S3 { bucket: String, prefix: String },
    /// `null:`; confirms everything, keeps nothing.
    Null,
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::File(directory) => write!(f, "file:{}", directory.display()),
            StoreUrl::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            StoreUrl::Null => f.write_str("null:"),
        }
    }
}

/// Which core serves a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionPlacement {
    /// The kernel spreads connections by a hash of their addresses and ports.
    Hash,
    /// The core on which the kernel handles the packets of the connection, if it is one of `CORES`.
    Cpu,
}

/// What the 200 of a request promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ack {
    /// In this core's memory.
    Queued,
    /// On this host's disk, synced.
    Spooled,
    /// In the store.
    Stored,
}

impl Ack {
    pub const ALL: [Ack; 3] = [Ack::Queued, Ack::Spooled, Ack::Stored];

    /// As `ACK`, the request header and the reply spell it.
    pub fn name(self) -> &'static str {
        match self {
            Ack::Queued => "queued",
            Ack::Spooled => "spooled",
            Ack::Stored => "stored",
        }
    }

    pub fn named(name: &str) -> Option<Ack> {
        Ack::ALL.into_iter().find(|ack| ack.name() == name)
    }
}

/// The directory in `SPOOL_DIR` for damaged files. No process may use this name as its own.
pub const QUARANTINE: &str = "quarantine";

/// Most bytes of one batch journal, unless the open batches need more. A core has at most two, and
/// `SPOOL_MAX` must have space for them. A hundred batches per second, each with its own commit
/// group, fill one in ten seconds.
pub const JOURNAL_BYTES: u64 = 4 << 20;

/// The spool of each core; sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolOptions {
    pub dir: PathBuf,
    pub max: u64,
    pub segment: u64,
    /// Memory for requests that wait for their sync.
    pub pending: usize,
    pub linger: Duration,
    pub checkpoint: Duration,
}

impl SpoolOptions {
    /// Bytes of one batch journal, unless the open batches need more.
    pub fn journal_bytes(&self) -> u64 {
        self.segment.min(JOURNAL_BYTES)
    }

    /// Bytes of `SPOOL_MAX` that segments leave to a core's two journals.
    pub fn journal_reserve(&self) -> u64 {
        2 * self.journal_bytes()
    }
}

/// What every PUT to S3 carries besides the payload. `None` sends no header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Options {
    pub acl: Option<String>,
    pub storage_class: Option<String>,
    /// `AES256`, `aws:kms` or `aws:kms:dsse`.
    pub sse: Option<String>,
    /// Only together with one of the `aws:kms` kinds of `sse`.
    pub kms_key_id: Option<String>,
    /// Only together with `sse = aws:kms`.
    pub bucket_key: Option<bool>,
    /// As the header carries them: `KEY=VALUE&…`, each part percent-encoded.
    pub tags: Option<String>,
    /// Twelve digits.
    pub expected_owner: Option<String>,
    /// `None`: path style on a custom endpoint, virtual-host style on AWS.
    pub force_path_style: Option<bool>,
    pub checksum: Checksum,
    /// `CONTENT_TYPE`, with what `auto` stands for.
    pub content_type: String,
    pub connect_timeout: Duration,
    /// How long a connection is used; zero: for as long as the store keeps it open.
    pub connection_age: Duration,
    pub client: S3Client,
    pub sign_payload: SignPayload,
    /// `If-None-Match: *`: an existing object is kept and counts as stored.
    pub if_none_match: bool,
}

/// `S3_CLIENT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum S3Client {
    /// The lean PUT of `store::direct`.
    #[default]
    Direct,
    /// `aws-sdk-s3`, for comparison.
    Sdk,
}

/// `S3_SIGN_PAYLOAD`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SignPayload {
    /// Over plain http only: TLS protects the payload as well.
    #[default]
    Auto,
    Always,
    Never,
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

/// One mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A value that is not allowed, on its own or together with another one.
    #[error("{quoted}: {reason}")]
    Refused {
        name: &'static str,
        /// Name, text and source, as [`SettingValue`] prints them.
        quoted: String,
        reason: String,
    },
    #[error("{}: unknown setting {key}{}", path.display(), did_you_mean(nearest.as_deref()))]
    UnknownKey { path: PathBuf, key: String, nearest: Option<String> },
    #[error("{} {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("cannot determine which cores this process may use (sched_getaffinity failed)")]
    CoresUnknown,
}

impl ConfigError {
    /// An error about `value` on its own. `reason` may quote the text, so it is not shown if the
    /// text is hidden, all of it or a part.
    fn refuse(value: &SettingValue, reason: String) -> ConfigError {
        let help = value.setting.help;
        // The reasons of settings that are secrets quote nothing.
        let is_harmless = match value.setting.is_secret {
            true => !value.may_be_foreign(),
            false => !value.is_hidden() && value.shown() == value.text,
        };
        let reason = match is_harmless {
            true => reason,
            false if value.is_pem() => value::IS_PEM.to_owned(),
            false if value.is_secret_itself() => IS_SECRET.to_owned(),
            false => format!("is not allowed: {help}"),
        };
        ConfigError::refuse_saying(value, reason)
    }

    /// An error about `value` whose `reason` does not quote the text.
    fn refuse_saying(value: &SettingValue, mut reason: String) -> ConfigError {
        let SettingValue { setting, .. } = value;
        if value.may_be_foreign() {
            let (name, env) = (setting.name, setting.env());
            reason += &format!(
                " (if {name} belongs to another program, set {env}, even to nothing: then {name} is ignored)"
            );
        }
        ConfigError::Refused { name: setting.name, quoted: value.to_string(), reason }
    }
}

fn did_you_mean(nearest: Option<&str>) -> String {
    match nearest {
        Some(key) => format!("; did you mean {key}?"),
        None => "; millrace --help lists them".into(),
    }
}

/// All mistakes in the configuration; never empty.
#[derive(Clone, Debug, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// One line per error.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{error}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads the configuration of this process: `flags`, its environment, the file the flags name.
    ///
    /// Call it before any thread is pinned: a pinned thread sees only one allowed core.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(flags: &Flags) -> Result<(Config, Effective), ConfigErrors> {
        Config::resolve(
            flags,
            &HostContext { env: std::env::vars_os().collect(), ..HostContext::bare() },
        )
    }

    /// Whether a request's token may be in its body: `TOKEN_IN_BODY`, if any object is a collection.
    pub fn takes_tokens_in_bodies(&self) -> bool {
        self.token_in_body && self.body == ObjectBody::Collection
    }

    /// Whether clients of `LISTEN` are asked for certificates.
    pub fn asks_for_certificates(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    /// The key template of single payloads, as the spool records it. `None`: payloads go into
    /// batches, and one that becomes a single object anyway gets the default key.
    pub fn payload_keys(&self) -> Option<String> {
        self.batch.is_none().then(|| self.keys.text())
    }

    /// Longest payload as it is stored.
    pub fn payload_bytes_max(&self) -> usize {
        self.max_length + if self.meta.is_empty() { 0 } else { meta::META_BYTES_MAX }
    }

    /// Most bytes of all payloads of one request as they are stored, a few beside each included. With
    /// `META` they may be many times what was sent. Then they are as many as other settings have
    /// room for: beside the body while they are wrapped, while they wait for the disk, and in a
    /// segment together with their lengths.
    pub fn request_bytes_max(&self) -> usize {
        if self.meta.is_empty() {
            return self.max_length;
        }
        // A quarter is more than the reserve of small bodies.
        let beside_body =
            self.max_body_bytes.saturating_sub(self.max_body_bytes / 4 + self.max_length);
        let on_disk = self.spool.as_ref().map_or(usize::MAX, |spool| {
            spool.pending.min(usize::try_from(spool.segment / 4).unwrap_or(usize::MAX))
        });
        let payload = self.payload_bytes_max();
        beside_body.max(payload).min(on_disk).min(LENGTH_MAX as usize + meta::META_BYTES_MAX)
    }

    /// The configuration with `settings` (name, text), and defaults for everything else. The
    /// environment is not read. For tests and benches.
    ///
    /// # Errors
    /// All mistakes at once.
    ///
    /// # Panics
    /// If a name is not in [`SETTINGS`].
    pub fn from_settings(settings: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        let values = settings.iter().map(|(name, text)| (setting(name).name, (*text).into()));
        let flags = Flags { file: None, values: values.collect() };
        Config::resolve(&flags, &HostContext::bare()).map(|(config, _)| config)
    }

    /// [`Config::load`] against a given environment and set of cores.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn resolve(flags: &Flags, host: &HostContext) -> Result<(Config, Effective), ConfigErrors> {
        let mut errors = Vec::new();
        let effective = Effective::merge(flags, host, &mut errors);
        if host.cores_allowed.is_empty() {
            errors.push(ConfigError::CoresUnknown);
        }
        let mut reader = SettingsReader { effective: &effective, errors };
        let config = read(&mut reader, &host.cores_allowed);
        check_relations(&mut reader, &config);
        match reader.errors {
            errors if errors.is_empty() => Ok((config, effective)),
            errors => Err(ConfigErrors(errors)),
        }
    }
}

impl HostContext {
    /// No environment, and the cores the calling thread may use.
    fn bare() -> HostContext {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let mut cores_allowed: Vec<usize> = cores.iter().map(|core| core.id).collect();
        cores_allowed.sort_unstable();
        HostContext { env: Environment::new(), cores_allowed }
    }
}

/// Returns typed values and collects errors.
struct SettingsReader<'a> {
    effective: &'a Effective,
    errors: Vec<ConfigError>,
}

impl SettingsReader<'_> {
    /// The value of `name`. If it is refused, the error is recorded and the default returned, so
    /// that reading continues; the configuration is discarded at the end.
    fn take<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> value::Parsed<T>) -> T {
        let given = self.effective.get(name);
        let emptied = given.text.is_empty() && given.source != SettingSource::Default;
        let parsed = match emptied {
            // `--tokens-file "$TOKENS"` with the variable unset must not disable authentication
            // silently.
            true => Err("is empty: give a value, or remove it to use the default".into()),
            false => parse(&given.text),
        };
        parsed.unwrap_or_else(|reason| {
            self.errors.push(ConfigError::refuse(given, reason));
            parse(given.setting.default).expect("every default parses: a test reads them all")
        })
    }

    /// Records an error unless `holds`: `name` cannot be combined with `other`. `reason` must not
    /// quote either text. If one of the two was refused already, nothing is recorded, because the
    /// default in its place would cause a second, confusing error.
    fn require(
        &mut self,
        holds: bool,
        name: &str,
        other: &str,
        reason: impl Fn(&SettingValue) -> String,
    ) {
        let refused = |wanted: &str| {
            self.errors
                .iter()
                .any(|e| matches!(e, ConfigError::Refused { name, .. } if *name == wanted))
        };
        if holds || refused(name) || refused(other) {
            return;
        }
        let reason = reason(self.effective.get(other));
        self.errors.push(ConfigError::refuse_saying(self.effective.get(name), reason));
    }
}

/// A larger number is a mistake. Sums over all cores must also stay far below `u64::MAX`.
const MEMORY_MAX: u64 = 1 << 40;
/// One request's body is one allocation, and its slices are addressed by `u32`.
const LENGTH_MAX: u64 = 1 << 30;

const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

fn read(r: &mut SettingsReader<'_>, cores_allowed: &[usize]) -> Config {
    use value::{count, memory, optional, path, size, time};
    let batch = objects::read_batch(r);
    let (admin_listen, admin_tls) = r.take("ADMIN_LISTEN", listen::admin);
    let content_type =
        batch.as_ref().map_or(objects::OCTET_STREAM, |batch| batch.form.content_type());
    Config {
        listen: r.take("LISTEN", listen::list),
        trust: r.take("TRUST", optional(Networks::list)),
        admin_listen,
        admin_tls,
        tls: tls::read(r),
        h2: h2::read(r),
        admin_token: admin::read(r),
        tap: r.take("TAP", value::on_or_off),
        ingest_health: r.take("INGEST_HEALTH", value::on_or_off),
        paths: r.take("PATHS", Paths::parse),
        bind_wait: r.take("BIND_WAIT", time(Duration::ZERO..=5 * MINUTE)),
        cores: r.take("CORES", value::cores(cores_allowed)),
        placement: r.take("CONNECTION_PLACEMENT", value::placement),
        spin: r.take("SPIN", time(Duration::ZERO..=10 * MILLISECOND)),
        max_workers: r.take("MAX_WORKERS", count(1..=4096)),
        max_queue: r.take("MAX_QUEUE", count(1..=10_000_000)),
        max_queue_bytes: r.take("MAX_QUEUE_BYTES", memory(1..=MEMORY_MAX)),
        max_body_bytes: r.take("MAX_BODY_BYTES", memory(1..=MEMORY_MAX)),
        max_connections: r.take("MAX_CONNECTIONS", count(1..=1_000_000)),
        max_length: r.take("MAX_LENGTH", memory(1..=LENGTH_MAX)),
        enqueue_wait: r.take("ENQUEUE_WAIT", time(Duration::ZERO..=5 * MINUTE)),
        header_timeout: r.take("HEADER_TIMEOUT", time(MILLISECOND..=HOUR)),
        body_timeout: r.take("BODY_TIMEOUT", time(MILLISECOND..=HOUR)),
        body_rate_min: r.take("BODY_RATE_MIN", value::rate(0..=1 << 30)),
        idle_timeout: r.take("IDLE_TIMEOUT", time(MILLISECOND..=24 * HOUR)),
        body: r.take("BODY", bodies::object_body),
        tokens_file: r.take("TOKENS_FILE", optional(value::secret_path)),
        token_in_body: r.take("TOKEN_IN_BODY", value::on_or_off),
        token_in_query: r.take("TOKEN_IN_QUERY", value::on_or_off),
        cors_origins: r.take("CORS_ORIGINS", optional(cors::cors_origins)),
        client_quota: quotas::read_client(r),
        store: r.take("STORE", value::store),
        file_mode: r.take("FILE_MODE", value::file_mode),
        s3: s3::read(r, content_type),
        keys: objects::read_keys(r, batch.is_some()),
        meta: r.take("META", meta::entries),
        batch,
        put_price: r.take("PUT_PRICE", value::dollars),
        ack: r.take("ACK", value::ack),
        ack_timeout: r.take("ACK_TIMEOUT", time(MILLISECOND..=HOUR)),
        spool: read_spool(r),
        put_timeout: r.take("PUT_TIMEOUT", time(MILLISECOND..=HOUR)),
        put_timeout_max: r.take("PUT_TIMEOUT_MAX", time(MILLISECOND..=24 * HOUR)),
        retry_base: r.take("RETRY_BASE", time(MILLISECOND..=HOUR)),
        retry_max: r.take("RETRY_MAX", time(MILLISECOND..=HOUR)),
        retry_for: r.take("RETRY_FOR", time(Duration::ZERO..=WEEK)),
        dead_letter_dir: r.take("DEAD_LETTER_DIR", path),
        dead_letter_max: r.take("DEAD_LETTER_MAX", size(1..=1 << 50)),
        ready_store_grace: r.take("READY_STORE_GRACE", time(Duration::ZERO..=24 * HOUR)),
        drain_timeout: r.take("DRAIN_TIMEOUT", time(Duration::from_secs(1)..=HOUR)),
        node_id: r.take("NODE_ID", |text| match text {
            "random" => Ok(random_node_id()),
            _ => value::node_id(text),
        }),
        log: r.take("LOG", value::log_filter),
        log_format: r.take("LOG_FORMAT", value::log_format),
        faults: r.take("FAULTS", optional(FaultPlan::parse)),
        file: r.effective.file().map(PathBuf::from),
    }
}

fn read_spool(r: &mut SettingsReader<'_>) -> Option<SpoolOptions> {
    use value::{memory, optional, path, size, time};
    let dir = r.take("SPOOL_DIR", optional(path));
    let (max, segment) = (r.take("SPOOL_MAX", size(2 << 20..=1 << 50)), segment_size(r));
    let pending = r.take("SPOOL_PENDING", memory(1..=MEMORY_MAX));
    let linger = r.take("SPOOL_LINGER", time(Duration::ZERO..=Duration::from_secs(1)));
    let checkpoint = r.take("SPOOL_CHECKPOINT", time(10 * MILLISECOND..=MINUTE));
    dir.map(|dir| SpoolOptions { dir, max, segment, pending, linger, checkpoint })
}

/// The segment size in whole blocks, as direct I/O requires.
fn segment_size(r: &mut SettingsReader<'_>) -> u64 {
    let size = r.take("SPOOL_SEGMENT", value::size(1 << 20..=16 << 30));
    size - size % BLOCK
}

/// Checks relations between settings that are each valid on their own.
fn check_relations(r: &mut SettingsReader<'_>, c: &Config) {
    meta::check(r, c);
    admin::check(r, c);
    r.require(c.max_queue_bytes >= c.max_length, "MAX_QUEUE_BYTES", "MAX_LENGTH", |length| {
        format!(
            "is below {length}: a request of maximum length must fit; raise it or lower MAX_LENGTH"
        )
    });
    let doubled = c.max_length.saturating_mul(2);
    r.require(c.max_body_bytes >= doubled, "MAX_BODY_BYTES", "MAX_LENGTH", |length| {
        format!(
            "is below 2 × {length}: a compressed body is held beside its decompressed form; raise it \
             to {doubled} or lower MAX_LENGTH"
        )
    });
    r.require(c.put_timeout <= c.put_timeout_max, "PUT_TIMEOUT", "PUT_TIMEOUT_MAX", |max| {
        format!("is above {max}: lower it or raise PUT_TIMEOUT_MAX")
    });
    r.require(c.retry_base <= c.retry_max, "RETRY_BASE", "RETRY_MAX", |max| {
        format!("is above {max}: lower it or raise RETRY_MAX")
    });
    let checked = c.token_in_body || c.tokens_file.is_some();
    r.require(checked, "TOKEN_IN_BODY", "TOKENS_FILE", |_| {
        "needs tokens: set TOKENS_FILE, or every request is accepted".into()
    });
    let checked = !c.token_in_query || c.tokens_file.is_some();
    r.require(checked, "TOKEN_IN_QUERY", "TOKENS_FILE", |_| {
        "needs tokens: set TOKENS_FILE, or every request is accepted".into()
    });
    s3::check(r, c);
    tls::check(r, c);
    let taken = |admin| c.listen.iter().any(|listen| overlap(admin, listen.address));
    let apart = !c.admin_listen.is_some_and(taken);
    r.require(apart, "ADMIN_LISTEN", "LISTEN", |listen| {
        format!("is already used by {listen}: give another port, or off")
    });
    r.require(c.ack != Ack::Spooled || c.spool.is_some(), "ACK", "SPOOL_DIR", |_| {
        "needs a spool: set SPOOL_DIR, or give queued or stored".into()
    });
    if let Some(spool) = &c.spool {
        check_spool(r, c, spool);
    }
    objects::check_keys(r, c);
    match &c.batch {
        Some(batch) => objects::check_batch(r, c, batch),
        None => {
            let compression = r.effective.get("COMPRESSION").text == "none";
            r.require(compression, "COMPRESSION", "OBJECT", |object| {
                format!(
                    "needs OBJECT=batch instead of {object}: single payloads are stored as received"
                )
            });
        }
    }
    let own_dir = match &c.store {
        StoreUrl::File(dir) => !same_dir(dir, &c.dead_letter_dir),
        StoreUrl::S3 { .. } | StoreUrl::Null => true,
    };
    r.require(own_dir, "DEAD_LETTER_DIR", "STORE", |store| {
        format!("is the same as {store}: dead letters need a directory of their own")
    });
}

fn check_spool(r: &mut SettingsReader<'_>, c: &Config, spool: &SpoolOptions) {
    r.require(spool.max / 2 >= spool.segment, "SPOOL_MAX", "SPOOL_SEGMENT", |segment| {
        format!("is below 2 × {segment}: one file is filled while another is emptied; raise it")
    });
    if c.batch.is_some() {
        let journals = 2 * JOURNAL_BYTES;
        let fits = spool.max >= 2 * spool.segment + journals;
        r.require(fits, "SPOOL_MAX", "SPOOL_SEGMENT", |segment| {
            format!("is below 2 × {segment} + {journals} for the journals of batches; raise it")
        });
    }
    let least = 4 * c.max_length as u64;
    r.require(spool.segment >= least, "SPOOL_SEGMENT", "MAX_LENGTH", |length| {
        format!("is below 4 × {length}: any request must fit; raise it or lower MAX_LENGTH")
    });
    r.require(spool.pending >= c.max_length, "SPOOL_PENDING", "MAX_LENGTH", |length| {
        format!(
            "is below {length}: a request of maximum length must fit; raise it or lower MAX_LENGTH"
        )
    });
    r.require(!same_dir(&spool.dir, &c.dead_letter_dir), "SPOOL_DIR", "DEAD_LETTER_DIR", |dir| {
        format!("is the same as {dir}: the spool needs a directory of its own")
    });
    let name = c.node_id != QUARANTINE && !c.node_id.starts_with('.');
    r.require(name, "NODE_ID", "SPOOL_DIR", |dir| {
        format!("cannot name a directory in {dir}: give another name")
    });
    let is_store = matches!(&c.store, StoreUrl::File(dir) if same_dir(dir, &spool.dir));
    r.require(!is_store, "SPOOL_DIR", "STORE", |store| {
        format!("is the same as {store}: the spool needs a directory of its own")
    });
}

/// Whether two listeners would use the same port. For port 0 the kernel picks a different one each
/// time.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_ip = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && same_ip
}

/// Whether two paths are lexically the same directory, as `data`, `./data` and `data/` are.
fn same_dir(a: &Path, b: &Path) -> bool {
    let plain =
        |path: &Path| path.components().filter(|c| c.as_os_str() != ".").collect::<PathBuf>();
    plain(a) == plain(b)
}

/// 64 bits from the kernel: among a million starts the probability that any two are equal is
/// n²/2⁶⁵, below one in thirty million, and a key also needs the same nanosecond, core and sequence
/// number.
fn random_node_id() -> String {
    let mut bits = [0; 8];
    let flags = rustix::rand::GetRandomFlags::empty();
    // Requests of up to 256 bytes are never interrupted or short.
    rustix::rand::getrandom(&mut bits, flags).expect("getrandom gives 8 bytes");
    format!("{:016x}", u64::from_ne_bytes(bits))
}

#[cfg(test)]
mod tests;
