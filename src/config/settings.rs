//! The one table of settings. Flags, environment names, TOML keys, `--help` and the table in
//! `docs/configuration.md` are all generated from it, so they cannot disagree.

use std::fmt::Write as _;

use super::layers::ENV_PREFIX;

/// One setting: what it is called everywhere, what it is when nobody says anything, and what it means.
#[derive(Debug)]
pub struct Setting {
    /// `MAX_WORKERS`; the environment's name, the flag and the TOML key derive from it.
    pub name: &'static str,
    /// Default as an operator would write it; empty for "not set".
    pub default: &'static str,
    /// What kind of value `--help` shows: `SIZE`, `TIME`, `N`, …
    pub value: &'static str,
    /// Heading in `--help`.
    pub group: &'static str,
    /// Meaning, unit and effect, in one or two sentences.
    pub help: &'static str,
}

impl Setting {
    /// `max-workers`, the long flag without its dashes.
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }

    /// `MILLRACE_MAX_WORKERS`, the environment variable; [`Setting::name`] alone is read where that is not there.
    pub fn env(&self) -> String {
        format!("{ENV_PREFIX}{}", self.name)
    }

    /// `max_workers`, the key in the TOML file.
    pub fn key(&self) -> String {
        self.name.to_ascii_lowercase()
    }
}

/// The setting called `name`.
///
/// # Panics
/// When there is none: names in code are literals, and a test reads every one of them.
pub fn setting(name: &str) -> &'static Setting {
    SETTINGS.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no setting named {name}"))
}

/// The table of `docs/configuration.md`, in markdown, one row per setting, ending with a newline.
pub fn markdown_table() -> String {
    let mut table = String::from("| name | default | meaning |\n|---|---|---|\n");
    for s in SETTINGS {
        let default = if s.default.is_empty() { "–".into() } else { format!("`{}`", s.default) };
        let help = s.help.replace('|', "\\|");
        writeln!(table, "| `{}` | {default} | {help} |", s.name).expect("writing to a String");
    }
    table
}

const LISTENING: &str = "Listening";
const LIMITS: &str = "Cores and limits (each is per core unless it says otherwise)";
const CLIENTS: &str = "Clients";
const STORING: &str = "Storing";
const BATCHES: &str = "Objects (one per payload, or batches)";
const ACKS: &str = "What a 200 means";
const S3: &str = "S3 (region, endpoint and credentials come from the AWS_* names)";
const RUNNING: &str = "Running and stopping";

const fn row(
    group: &'static str,
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { name, default, value, group, help }
}

/// Every setting, in the order `--help` and `docs/configuration.md` show them.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    row(LISTENING, "LISTEN", "ADDR", "0.0.0.0:8080",
        "Ingest address, IP:PORT; every core has its own SO_REUSEPORT listener on it."),
    row(LISTENING, "ADMIN_LISTEN", "ADDR", "127.0.0.1:9090",
        "Address of metrics and health checks, IP:PORT; `off` disables them. It has no authentication."),
    row(LISTENING, "BIND_WAIT", "TIME", "5s",
        "How long a start tries again while LISTEN or ADMIN_LISTEN is taken, up to 5m: a killed process can keep its sockets for a moment."),

    row(LIMITS, "CORES", "LIST", "all",
        "CPU cores to pin, one executor each: `all`, or a list such as `0-3,8`. Only cores this process may use are taken."),
    row(LIMITS, "SPIN", "TIME", "0us",
        "How long a core with nothing to do keeps looking before it sleeps, up to 10ms: trades CPU for latency."),
    row(LIMITS, "MAX_WORKERS", "N", "32",
        "Upload workers per core, 1 to 4096: the most PUTs a core has in flight. How many it has adapts to what the store takes."),
    row(LIMITS, "MAX_QUEUE", "N", "10000",
        "Ring slots per core, 1 to 10000000: payloads admitted and waiting for a worker. When they are taken, requests get 503."),
    row(LIMITS, "MAX_QUEUE_BYTES", "SIZE", "64MiB",
        "Memory of admitted, unfinished requests per core; not below MAX_LENGTH. When it is used up, requests get 503."),
    row(LIMITS, "MAX_BODY_BYTES", "SIZE", "64MiB",
        "Memory of bodies being read, decompressed or waiting for room per core; not below 2 × MAX_LENGTH. When it is used up, requests get 503."),
    row(LIMITS, "MAX_CONNECTIONS", "N", "16384",
        "Open client connections per core, 1 to 1000000; the kernel queues the rest. Each needs a file descriptor."),
    row(LIMITS, "MAX_LENGTH", "SIZE", "1MiB",
        "Longest request body, decompressed, up to 1GiB; a longer one gets 413."),

    row(CLIENTS, "ENQUEUE_WAIT", "TIME", "0ms",
        "How long a request may wait for ring room before it gets 503, up to 5m."),
    row(CLIENTS, "HEADER_TIMEOUT", "TIME", "10s",
        "Longest time from the first byte of a request to the end of its head; then 408."),
    row(CLIENTS, "BODY_TIMEOUT", "TIME", "30s",
        "Longest time from the end of a request's head to the end of its body; then 408."),
    row(CLIENTS, "IDLE_TIMEOUT", "TIME", "75s",
        "How long a kept-alive connection may stay idle before it is closed."),
    row(CLIENTS, "TOKENS_FILE", "FILE", "",
        "File with one accepted token per line (`#` starts a comment line); a request whose `token` is not in it gets 401. Read at start and at SIGHUP; not set: every request is accepted."),

    row(STORING, "STORE", "URL", "file:./data",
        "Where payloads go: `file:DIR`, `s3://BUCKET/PREFIX` (end the prefix with `/` to make it a folder), or `null:`, which keeps nothing (benchmarks only)."),
    row(STORING, "FILE_MODE", "MODE", "0600",
        "Octal permissions of files that a `file:` store makes, whatever the umask is; its directories can also be entered by whoever may read, so 0640 makes them 0750. What is there already keeps its own."),
    row(STORING, "CONTENT_TYPE", "TYPE", "auto",
        "Content type of stored objects; `auto` is application/octet-stream for payloads, application/x-ndjson for batches, and application/gzip or application/zstd for those whose name ends so."),
    row(STORING, "PUT_TIMEOUT", "TIME", "10s",
        "Longest time one attempt to store an object may go without progress: bytes that the store's host acknowledges or, after the last one, the answer. Then it is tried again."),
    row(STORING, "PUT_TIMEOUT_MAX", "TIME", "10m",
        "Longest time one attempt to store an object may take as a whole. Not below PUT_TIMEOUT."),
    row(STORING, "RETRY_BASE", "TIME", "100ms",
        "Backoff before the first retry; it doubles with each further one, with full jitter. Not above RETRY_MAX."),
    row(STORING, "RETRY_MAX", "TIME", "10s",
        "Longest backoff between two attempts."),
    row(STORING, "RETRY_FOR", "TIME", "5m",
        "How long an object is retried before it is dead-lettered; only time in which other puts of its core succeed counts."),
    row(STORING, "DEAD_LETTER_DIR", "DIR", "./dead-letter",
        "Directory for payloads the store would not take; `millrace dead-letter replay` puts them again."),
    row(STORING, "DEAD_LETTER_MAX", "SIZE", "1GiB",
        "Largest total size of the dead-letter directory; beyond it payloads are counted as lost."),
    row(STORING, "READY_STORE_GRACE", "TIME", "30s",
        "How long the store may fail before `/readyz` answers 503."),
    row(STORING, "NODE_ID", "NAME", "random",
        "This process's part of every object key, 1 to 64 of A-Z a-z 0-9 . _ -; `random` draws 64 bits at each start. A fixed name must be unique among running processes."),

    row(BATCHES, "OBJECT", "KIND", "payload",
        "What one object holds: `payload`, one payload byte for byte, or `batch`, many of them as NDJSON, one per line."),
    row(BATCHES, "KEY", "TEMPLATE", "",
        "Object keys, from {unix_nanos} {unix_ms} {date:%Y/%m/%d} {hour} {node} {core} {seq} {count} {ext} {hash:2} {version} {field:/pointer|default}; must be unique. Not set: `{unix_nanos}-{node}-{core}-{seq}.json`, for batches `.{ext}`."),
    row(BATCHES, "EVENT_TIME", "POINTER", "",
        "JSON pointer to a payload's own time (epoch s, ms, µs or ns, or RFC 3339) for {date} and {hour}. Not set: the time its batch was opened, or the payload came."),
    row(BATCHES, "BATCH_BYTES", "SIZE", "8MiB",
        "Size of a batch as stored, after compression, at which it is closed, 64KiB to 1GiB."),
    row(BATCHES, "BATCH_RAW_BYTES", "SIZE", "256MiB",
        "Size of a batch before compression at which it is closed, 64KiB to 16GiB."),
    row(BATCHES, "BATCH_AGE", "TIME", "5s",
        "How long a batch is open at most, 10ms to 1h; with PUT_TIMEOUT below ACK_TIMEOUT."),
    row(BATCHES, "BATCH_COUNT", "N", "",
        "Payloads at which a batch is closed. Not set: any number."),
    row(BATCHES, "BATCH_MEMORY", "SIZE", "128MiB",
        "Memory of open, closed and travelling batches per core, at least 2 × BATCH_BYTES + MAX_LENGTH + 4MiB. When it is used up, the ring is not emptied and requests get 503."),
    row(BATCHES, "MAX_PARTITIONS", "N", "256",
        "Open batches per core, 1 to 100000: one for each different text that KEY makes of payloads. Beyond it the oldest is closed early."),
    row(BATCHES, "COMPRESSION", "KIND", "none",
        "Compression of batches: `none`, `gzip` or `zstd`, one member or frame per object."),
    row(BATCHES, "COMPRESSION_LEVEL", "N", "",
        "1 to 9 for gzip, -7 to 9 for zstd; higher ones would hold up requests. Not set: 6 for gzip, 1 for zstd."),
    row(BATCHES, "COMPRESSION_MARK", "HOW", "suffix",
        "How compressed batches are told: `suffix`, {ext} ends in .gz or .zst, or `header`, content-encoding (not with `file:`)."),
    row(BATCHES, "PUT_PRICE", "DOLLARS", "0.005",
        "Price of 1,000 PUTs, for the cost metrics."),

    row(ACKS, "ACK", "LEVEL", "queued",
        "What a 200 promises unless the request's `millrace-ack` header says otherwise: `queued` (in memory), `spooled` (on this host's disk, synced; needs SPOOL_DIR) or `stored` (the store has confirmed it)."),
    row(ACKS, "ACK_TIMEOUT", "TIME", "30s",
        "Longest time a `stored` request waits for the store, or a `spooled` one for the disk; then 504, which leaves open whether its payloads will be stored."),
    row(ACKS, "SPOOL_DIR", "DIR", "",
        "Directory for payloads that must survive a crash; one that supports O_DIRECT, shared by any number of processes. Not set: no spool."),
    row(ACKS, "SPOOL_MAX", "SIZE", "1GiB",
        "Disk space of the spool per core, at least two segments; when it is used up, `spooled` requests get 503."),
    row(ACKS, "SPOOL_SEGMENT", "SIZE", "64MiB",
        "Size of one spool file, not below 4 × MAX_LENGTH; a file is used again when everything in it has been stored."),
    row(ACKS, "SPOOL_PENDING", "SIZE", "64MiB",
        "Memory of requests waiting for their sync per core, not below MAX_LENGTH; when it is used up, `spooled` requests get 503."),
    row(ACKS, "SPOOL_LINGER", "TIME", "0ms",
        "How long a sync waits for more requests to share it, up to 1s; those that arrive while one is under way share the next in any case."),
    row(ACKS, "SPOOL_CHECKPOINT", "TIME", "1s",
        "How often the spool notes what has been stored, 10ms to 1m; after a crash, what was stored since is put again under the same key."),

    row(S3, "S3_ACL", "ACL", "",
        "Canned ACL sent with every PUT. Not set: no ACL header, which is private; buckets made since April 2023 refuse any but `bucket-owner-full-control`."),
    row(S3, "S3_STORAGE_CLASS", "CLASS", "",
        "Storage class sent with every PUT, e.g. `STANDARD_IA`. Not set: the bucket's default."),
    row(S3, "S3_SSE", "KIND", "",
        "Server-side encryption asked for with every PUT: `AES256`, `aws:kms` or `aws:kms:dsse`. Not set: the bucket's default."),
    row(S3, "S3_KMS_KEY_ID", "KEY", "",
        "KMS key id or ARN; only with S3_SSE=aws:kms or aws:kms:dsse."),
    row(S3, "S3_BUCKET_KEY", "BOOL", "",
        "`true` or `false`: whether objects use the bucket's S3 Bucket Key, which saves KMS requests; only with S3_SSE=aws:kms. Not set: the bucket's default."),
    row(S3, "S3_TAGS", "TAGS", "",
        "Tags of every object, `KEY=VALUE&KEY2=VALUE2` in URL encoding, up to 10; needs s3:PutObjectTagging. Not set: none."),
    row(S3, "S3_EXPECTED_OWNER", "ACCOUNT", "",
        "AWS account, 12 digits, that must own the bucket: with another owner every request is refused. Not set: not checked."),
    row(S3, "S3_FORCE_PATH_STYLE", "BOOL", "auto",
        "`true`: the bucket is in the URL's path; `false`: in its host name; `auto`: path on a custom endpoint, host name on AWS."),
    row(S3, "S3_CHECKSUM", "KIND", "auto",
        "Checksum header of every PUT: `auto`, `none`, `crc32c`, `crc64nvme` or `sha256`; `auto` is crc64nvme on AWS and none on a custom endpoint."),
    row(S3, "S3_CONNECT_TIMEOUT", "TIME", "3s",
        "Longest time to open a connection to the store, proxy and TLS included."),
    row(S3, "S3_CONNECTION_AGE", "TIME", "60s",
        "How long a connection to the store is used, 1s to 24h, ± a fifth, so that a name's new addresses are followed; `0`: for as long as the store keeps it."),
    row(S3, "S3_CLIENT", "KIND", "direct",
        "What sends the PUTs: `direct`, millrace's own client, or `sdk`, aws-sdk-s3, which costs several times the CPU and is there for comparison."),
    row(S3, "S3_SIGN_PAYLOAD", "WHEN", "auto",
        "Whether signatures cover the payload: `always`, `never`, or `auto`, over plain http only, for TLS protects it as well."),
    row(S3, "S3_IF_NONE_MATCH", "BOOL", "false",
        "Sends `If-None-Match: *` with every PUT, so that an object that is there already is kept and counts as stored; the store must know the header."),

    row(RUNNING, "DRAIN_TIMEOUT", "TIME", "25s",
        "From SIGTERM, SIGINT or SIGQUIT to exit, everything included, 1s to 1h; what is unstored shortly before goes to the dead letter."),
    row(RUNNING, "LOG", "FILTER", "info",
        "Log filter: a level (`error`, `warn`, `info`, `debug`, `trace`, `off`) or directives such as `info,millrace::upload=debug`. SIGHUP takes a new one from the TOML file."),
    row(RUNNING, "LOG_FORMAT", "KIND", "text",
        "Log lines as `text` or `json`."),
    row(RUNNING, "FAULTS", "SPEC", "",
        "Seeded store faults, for tests and game days only; the server says so at start."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_derive_flags_and_keys() {
        let s = setting("MAX_QUEUE_BYTES");
        assert_eq!((s.flag().as_str(), s.key().as_str()), ("max-queue-bytes", "max_queue_bytes"));
        assert_eq!(s.env(), "MILLRACE_MAX_QUEUE_BYTES");
        let mut names: Vec<_> = SETTINGS.iter().map(|s| s.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SETTINGS.len());
    }

    #[test]
    fn markdown_has_one_well_formed_row_per_setting() {
        let table = markdown_table();
        assert_eq!(table.lines().count(), SETTINGS.len() + 2);
        for line in table.lines() {
            let bars = line.replace("\\|", "").matches('|').count();
            assert_eq!(bars, 4, "{line}");
        }
        assert!(table.contains("| `MAX_WORKERS` | `32` | Upload workers per core"));
    }

    /// `MILLRACE_WRITE_README=1 cargo test --lib readme` writes the table where it belongs.
    #[test]
    fn the_readme_shows_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        let document = std::fs::read_to_string(path).unwrap();
        let marker = "checked by a test -->\n";
        let start = document.find(marker).unwrap() + marker.len();
        let end = start + document[start..].find("<!-- /settings -->").unwrap();
        if std::env::var_os("MILLRACE_WRITE_README").is_some() {
            let written = [&document[..start], &markdown_table(), &document[end..]].concat();
            std::fs::write(path, written).unwrap();
        } else {
            assert_eq!(&document[start..end], markdown_table());
        }
    }

    #[test]
    fn every_help_text_is_one_or_two_sentences() {
        for s in SETTINGS {
            assert!(s.help.ends_with('.') && s.help.len() < 260, "{}: {}", s.name, s.help);
        }
    }
}
