//! Settings of objects: single payloads or batches, their format, and their keys.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use super::{Config, ConfigError, HOUR, MEMORY_MAX, MILLISECOND, SettingsReader, StoreUrl, value};
use crate::coding::{Coding, Compression};
use crate::key::{self, KeyOf, KeyTemplate, PART_BYTES_MAX, Partition, RequestValues};

/// `OBJECT=batch`; sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// The stored size at which a batch is closed.
    pub bytes: u64,
    /// The size before compression at which a batch is closed.
    pub raw_bytes: u64,
    /// The longest time that a batch stays open.
    pub age: Duration,
    /// The number of payloads at which a batch is closed.
    pub count: Option<u64>,
    /// For open, closed and in-flight batches, per core.
    pub memory: usize,
    /// Open batches, per core.
    pub partitions: usize,
    pub form: BatchFormat,
}

/// How a batch is encoded. The spool records it, so that a batch in doubt can be rebuilt after a
/// crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchFormat {
    pub compression: Compression,
    /// `content-encoding` announces the compression, and the key's suffix does not.
    pub header: bool,
}

impl BatchFormat {
    /// The value of `content-encoding`, if that is sent.
    pub fn coding(self) -> Option<Coding> {
        self.compression.coding().filter(|_| self.header)
    }

    /// The compression that its key's suffix says.
    fn marked_coding(self) -> Option<Coding> {
        self.compression.coding().filter(|_| !self.header)
    }

    /// The `{ext}` of its key.
    pub fn ext(self) -> &'static str {
        match self.compression.coding() {
            Some(Coding::Gzip) if !self.header => "ndjson.gz",
            Some(Coding::Zstd) if !self.header => "ndjson.zst",
            _ => "ndjson",
        }
    }

    /// The content type that `CONTENT_TYPE=auto` selects.
    pub(super) fn content_type(self) -> &'static str {
        match self.compression.coding() {
            Some(Coding::Gzip) if !self.header => "application/gzip",
            Some(Coding::Zstd) if !self.header => "application/zstd",
            _ => "application/x-ndjson",
        }
    }
}

/// `zstd:1 header`, as the spool records it.
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
        let level =
            |level: &str| level.parse::<i32>().map_err(|_| format!("unknown batch format: {text}"));
        let compression = match how.split_once(':') {
            None if how == "none" => Compression::None,
            Some(("gzip", number)) => Compression::Gzip(level(number)?.clamp(0, 9) as u32),
            Some(("zstd", number)) => Compression::Zstd(level(number)?),
            _ => return Err(format!("unknown batch format: {text}")),
        };
        Ok(BatchFormat { compression, header })
    }
}

/// The content type that `CONTENT_TYPE=auto` selects for a single payload.
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

/// Records the error of a template that is invalid on its own; [`check_keys`] compares it with
/// other settings.
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
    /// The full name, including bucket and prefix, of the object for a payload `{}` that arrives at
    /// `unix_nanos`.
    pub fn example_key(&self, unix_nanos: u64) -> String {
        let mut partition = Partition::default();
        let _has_none =
            self.keys.write_partition(b"{}", &RequestValues::default(), unix_nanos, &mut partition);
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

/// Payloads of the batch in the example.
const EXAMPLE_COUNT: u64 = 1000;

/// S3's limit.
const KEY_BYTES_MAX: usize = 1024;

pub(super) fn check_keys(r: &mut SettingsReader<'_>, c: &Config) {
    let random = r.effective.get("NODE_ID").text == "random";
    if let Err(error) = c.keys.check_unique(random) {
        let reason = match r.effective.get("KEY").is_hidden() {
            // The error may quote the template.
            true => "could give two objects the same key: it needs {node}, {core} and {seq}, separated by text".into(),
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
            "makes keys of up to {longest} bytes with {store}, but S3 allows {KEY_BYTES_MAX}: use fewer \
             fields or a shorter prefix"
        )
    });
    check_ending(r, c);
    if let StoreUrl::File(dir) = &c.store {
        check_file_names(r, c, dir, ext);
    }
}

/// Whether every key can be a file below `dir` and nothing else than an object: a payload's values
/// must not decide that.
fn check_file_names(r: &mut SettingsReader<'_>, c: &Config, dir: &Path, ext: &str) {
    let part = c.keys.longest_part(c.node_id.len(), ext.len());
    r.require(part <= PART_BYTES_MAX, "KEY", "STORE", |store| {
        format!(
            "makes parts of up to {part} bytes, but with {store} they are file names, which take \
             {PART_BYTES_MAX}: write less text, or a / in between"
        )
    });
    // Without the current directory, which only the kernel knows, the start fails anyway.
    let absolute = |dir: &Path| std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let dir = absolute(dir);
    let names = c.keys.longest(c.node_id.len(), ext.len()).max(TEMPORARY_BYTES_MAX);
    let path = dir.as_os_str().len() + 1 + names;
    r.require(path <= PATH_BYTES_MAX, "STORE", "KEY", |_| {
        format!(
            "makes paths of up to {path} bytes with KEY, but Linux takes {PATH_BYTES_MAX}: \
             use a shorter directory"
        )
    });
    let dead_letters = ("DEAD_LETTER_DIR", Some(&c.dead_letter_dir));
    let spool = ("SPOOL_DIR", c.spool.as_ref().map(|spool| &spool.dir));
    for (name, own) in [dead_letters, spool] {
        let Some(own) = own.map(|own| absolute(own)) else { continue };
        let reached = own.strip_prefix(&dir).is_ok_and(|below| {
            let names: Option<Vec<&str>> = below.iter().map(|name| name.to_str()).collect();
            names.is_some_and(|names| !names.is_empty() && c.keys.can_lie_in(names.into_iter()))
        });
        r.require(!reached, name, "STORE", |store| {
            format!(
                "is inside {store}, where KEY can name it, so objects could be taken for its files: \
                 give a directory outside"
            )
        });
    }
}

/// The kernel's PATH_MAX without the NUL at the end.
const PATH_BYTES_MAX: usize = 4095;

/// More than the names of a `file:` store's incomplete files take: its directory, node, core, 16
/// digits and a number.
const TEMPORARY_BYTES_MAX: usize = 160;

/// What `BATCH_MEMORY` needs besides two batches and a payload: two compressor states and partly
/// filled chunks.
const BATCH_MEMORY_BESIDE: u64 = 4 << 20;

pub(super) fn check_batch(r: &mut SettingsReader<'_>, c: &Config, batch: &BatchOptions) {
    let least = 2 * batch.bytes + c.payload_bytes_max() as u64 + BATCH_MEMORY_BESIDE;
    r.require(batch.memory as u64 >= least, "BATCH_MEMORY", "BATCH_BYTES", |bytes| {
        format!(
            "is below 2 × {bytes} + MAX_LENGTH + 4 MiB ({least}): one batch is in flight while another is filled; raise it"
        )
    });
    let told = batch.form.coding().is_none() || !matches!(c.store, StoreUrl::File(_));
    r.require(told, "COMPRESSION_MARK", "STORE", |store| {
        format!("needs a store that keeps headers, unlike {store}: give suffix")
    });
    let marked = batch.form.marked_coding();
    let told = marked.is_none()
        || c.keys.has_ext()
        || Ending::of(c.keys.ending()).coding.is_some_and(|(_, coding)| Some(coding) == marked);
    r.require(told, "KEY", "COMPRESSION", |compression| {
        format!(
            "has no {{ext}}, so readers could not detect {compression}: add it or .{}, or set \
             COMPRESSION_MARK=header",
            batch.form.ext()
        )
    });
}

/// What the text at the end of `KEY` says about an object.
struct Ending {
    /// Its suffix, and the compression that it says.
    coding: Option<(&'static str, Coding)>,
    /// Its suffix, if that says that there is a payload on each line.
    lines: Option<&'static str>,
    /// Whether the suffix of the compression is all of it.
    is_suffix_only: bool,
}

impl Ending {
    fn of(text: &str) -> Ending {
        const CODINGS: [(&str, Coding); 3] =
            [(".gz", Coding::Gzip), (".zst", Coding::Zstd), (".zstd", Coding::Zstd)];
        let coding = CODINGS.into_iter().find(|(suffix, _)| text.ends_with(suffix));
        let rest = coding.map_or(text, |(suffix, _)| &text[..text.len() - suffix.len()]);
        let lines = [".ndjson", ".jsonl"].into_iter().find(|suffix| rest.ends_with(suffix));
        Ending { coding, lines, is_suffix_only: coding.is_some() && rest.is_empty() }
    }
}

/// Whether the text at the end of `KEY` is true: readers choose their decoder by it.
fn check_ending(r: &mut SettingsReader<'_>, c: &Config) {
    let ending = Ending::of(c.keys.ending());
    let Some(batch) = &c.batch else {
        let said = ending.coding.map(|(suffix, _)| suffix).or(ending.lines);
        r.require(said.is_none(), "KEY", "OBJECT", |object| {
            format!(
                "ends in {}, but {object} makes .json: write {{ext}} or .json, or set OBJECT=batch",
                said.unwrap_or_default()
            )
        });
        return;
    };
    let Some((suffix, said)) = ending.coding else { return };
    let by = if batch.form.header { "COMPRESSION_MARK" } else { "COMPRESSION" };
    let marked = batch.form.marked_coding();
    r.require(marked == Some(said), "KEY", by, |setting| {
        let ext = batch.form.ext();
        format!("ends in {suffix}, but {setting} makes .{ext}: write {{ext}} or .{ext}")
    });
    let twice = marked == Some(said) && ending.is_suffix_only && c.keys.has_ext();
    r.require(!twice, "KEY", "COMPRESSION", |_| {
        format!("ends in {suffix} behind {{ext}}, which says it already: remove {suffix}")
    });
}
