//! What objects are: payloads by themselves or batches, how they are made, and what they are called.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{Config, ConfigError, HOUR, MEMORY_MAX, MILLISECOND, SettingsReader, StoreUrl, value};
use crate::coding::{Coding, Compression};
use crate::key::{self, KeyOf, KeyTemplate, Partition};

/// `OBJECT=batch`; sizes are bytes, and all but the last two are per core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// As stored.
    pub bytes: u64,
    /// Before compression.
    pub raw_bytes: u64,
    pub age: Duration,
    pub count: Option<u64>,
    pub memory: usize,
    pub partitions: usize,
    pub form: BatchFormat,
}

/// How a batch's object is made, which has to be known again after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchFormat {
    pub compression: Compression,
    /// The store is told of the compression, and the name is not.
    pub header: bool,
}

impl BatchFormat {
    /// What `content-encoding` says of it.
    pub fn coding(self) -> Option<Coding> {
        self.compression.coding().filter(|_| self.header)
    }

    /// `{ext}` of its key.
    pub fn ext(self) -> &'static str {
        match self.compression.coding() {
            Some(Coding::Gzip) if !self.header => "ndjson.gz",
            Some(Coding::Zstd) if !self.header => "ndjson.zst",
            _ => "ndjson",
        }
    }

    /// What `CONTENT_TYPE=auto` makes of it.
    pub(super) fn content_type(self) -> &'static str {
        match self.compression.coding() {
            Some(Coding::Gzip) if !self.header => "application/gzip",
            Some(Coding::Zstd) if !self.header => "application/zstd",
            _ => "application/x-ndjson",
        }
    }
}

/// `zstd:1 header`; the spool keeps it beside a batch that has been begun.
impl fmt::Display for BatchFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.compression {
            Compression::None => f.write_str("none")?,
            Compression::Gzip(level) => write!(f, "gzip:{level}")?,
            Compression::Zstd(level) => write!(f, "zstd:{level}")?,
        }
        f.write_str(if self.header { " header" } else { "" })
    }
}

impl FromStr for BatchFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<BatchFormat, String> {
        let (how, header) = match text.strip_suffix(" header") {
            Some(how) => (how, true),
            None => (text, false),
        };
        let level = |level: &str| level.parse::<i32>().map_err(|_| format!("no form: {text}"));
        let compression = match how.split_once(':') {
            None if how == "none" => Compression::None,
            Some(("gzip", number)) => Compression::Gzip(level(number)?.clamp(0, 9) as u32),
            Some(("zstd", number)) => Compression::Zstd(level(number)?),
            _ => return Err(format!("no form: {text}")),
        };
        Ok(BatchFormat { compression, header })
    }
}

/// What `CONTENT_TYPE=auto` makes of a payload by itself.
pub(super) const OCTET_STREAM: &str = "application/octet-stream";

pub(super) fn read_batch(r: &mut SettingsReader<'_>) -> Option<BatchOptions> {
    use value::{count, memory, optional, size, time};
    let is_batch = r.take("OBJECT", value::object_is_batch);
    let kind = r.take("COMPRESSION", value::compression);
    let header = r.take("COMPRESSION_MARK", value::compression_mark_is_header);
    let compression = r.take("COMPRESSION_LEVEL", value::compression_level(kind));
    let options = BatchOptions {
        bytes: r.take("BATCH_BYTES", size(64 << 10..=1 << 30)),
        raw_bytes: r.take("BATCH_RAW_BYTES", size(64 << 10..=16 << 30)),
        age: r.take("BATCH_AGE", time(10 * MILLISECOND..=HOUR)),
        count: r.take("BATCH_COUNT", optional(count(1..=1_000_000_000))).map(|n| n as u64),
        memory: r.take("BATCH_MEMORY", memory(1 << 20..=MEMORY_MAX)),
        partitions: r.take("MAX_PARTITIONS", count(1..=100_000)),
        form: BatchFormat { compression, header },
    };
    is_batch.then_some(options)
}

/// A template that is refused for itself, and not for what goes with it, is noted here.
pub(super) fn read_keys(r: &mut SettingsReader<'_>, is_batch: bool) -> KeyTemplate {
    let default = if is_batch { key::DEFAULT_BATCH } else { key::DEFAULT_PAYLOAD };
    let text = r.take("KEY", value::optional(|text| Ok(text.to_owned())));
    let event_time = r.take("EVENT_TIME", value::optional(|text| Ok(text.to_owned())));
    let text = text.as_deref().unwrap_or(default);
    KeyTemplate::parse(text, event_time.as_deref()).unwrap_or_else(|error| {
        let given = r.effective.get(error.setting());
        r.errors.push(ConfigError::refuse(given, error.to_string()));
        KeyTemplate::parse(default, None).expect("the default is one")
    })
}

impl Config {
    /// The whole name that an object of a payload `{}` would have that came at `unix_nanos`, bucket and prefix
    /// included.
    pub fn example_key(&self, unix_nanos: u64) -> String {
        let mut partition = Partition::default();
        let _has_none = self.keys.write_partition(b"{}", None, unix_nanos, &mut partition);
        let (count, ext) = match &self.batch {
            Some(batch) => (batch.count.unwrap_or(EXAMPLE_COUNT), batch.form.ext()),
            None => (1, "json"),
        };
        let (partition, node, core) = (partition.text(), &*self.node_id, self.cores[0]);
        let mut key = String::new();
        let of = KeyOf { partition, unix_nanos, node, core, seq: 0, count, ext };
        self.keys.write_key(&of, &mut key);
        match &self.store {
            StoreUrl::S3 { .. } => format!("{}{key}", self.store),
            StoreUrl::File(dir) => format!("file:{}", dir.join(key).display()),
            StoreUrl::Null => key,
        }
    }
}

/// Payloads of the batch in an example.
const EXAMPLE_COUNT: u64 = 1000;

/// S3's limit.
const KEY_BYTES_MAX: usize = 1024;

pub(super) fn check_keys(r: &mut SettingsReader<'_>, c: &Config) {
    let random = r.effective.get("NODE_ID").text == "random";
    if let Err(error) = c.keys.check_unique(random) {
        let reason = match r.effective.get("KEY").is_hidden() {
            // The error may quote the template.
            true => "could name two objects alike: it needs {node}, {core} and {seq}, told apart by text".into(),
            false => error.to_string(),
        };
        r.require(false, "KEY", "NODE_ID", |_| reason.clone());
    }
    let ext = c.batch.as_ref().map_or("json", |batch| batch.form.ext());
    let prefix = match &c.store {
        StoreUrl::S3 { prefix, .. } => prefix.len(),
        StoreUrl::File(_) | StoreUrl::Null => 0,
    };
    let longest = prefix + c.keys.longest(c.node_id.len(), ext.len());
    r.require(longest <= KEY_BYTES_MAX, "KEY", "STORE", |store| {
        format!(
            "makes keys of up to {longest} bytes with {store}, and S3 takes {KEY_BYTES_MAX}: use fewer \
             fields or a shorter prefix"
        )
    });
}

/// Of `BATCH_MEMORY` beside two batches and a payload: two compressor states, and chunks that are only begun.
const BATCH_MEMORY_BESIDE: u64 = 4 << 20;

pub(super) fn check_batch(r: &mut SettingsReader<'_>, c: &Config, batch: &BatchOptions) {
    let least = 2 * batch.bytes + c.max_length as u64 + BATCH_MEMORY_BESIDE;
    r.require(batch.memory as u64 >= least, "BATCH_MEMORY", "BATCH_BYTES", |bytes| {
        format!(
            "is below 2 × {bytes} + MAX_LENGTH + 4 MiB ({least}): one batch travels while another is \
             filled; raise it"
        )
    });
    let told = batch.form.coding().is_none() || !matches!(c.store, StoreUrl::File(_));
    r.require(told, "COMPRESSION_MARK", "STORE", |store| {
        format!("needs a store that keeps headers, and here is {store}: give suffix")
    });
    let told = batch.form.compression.coding().is_none() || batch.form.header || c.keys.has_ext();
    r.require(told, "KEY", "COMPRESSION", |compression| {
        format!(
            "has no {{ext}}, so nothing would tell readers of {compression}: add it, or set \
             COMPRESSION_MARK=header"
        )
    });
    let waits = batch.age + c.put_timeout;
    r.require(waits < c.ack_timeout, "BATCH_AGE", "ACK_TIMEOUT", |ack| {
        format!(
            "and PUT_TIMEOUT are together not below {ack}: `millrace-ack: stored` would always be \
             answered with 504; lower one or raise that"
        )
    });
}
