//! The one table of settings. Flags, environment names, TOML keys, `--help` and the table in
//! `docs/configuration.md` are all generated from it, so they cannot disagree.

#[cfg(test)]
use std::fmt::Write as _;

use super::layers::ENV_PREFIX;

/// One setting: its name everywhere, its default, and its meaning.
#[derive(Debug)]
pub struct Setting {
    /// `MAX_WORKERS`. The environment variable, the flag and the TOML key are derived from it.
    pub name: &'static str,
    /// The default as an operator would write it; empty means "not set".
    pub default: &'static str,
    /// The kind of value that `--help` shows: `SIZE`, `TIME`, `N`, …
    pub value: &'static str,
    /// The heading in `--help`.
    pub group: &'static str,
    /// Meaning, unit and effect, in a few short sentences.
    pub help: &'static str,
    /// It has no flag, because every user of the host can read those, and no message shows it.
    pub is_secret: bool,
}

impl Setting {
    /// `max-workers`, the long flag without its dashes.
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }

    /// `MILLRACE_MAX_WORKERS`, the environment variable. If it is absent, [`Setting::name`] alone
    /// is read.
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
/// If there is none. Names in code are literals, and a test reads every one of them.
pub fn setting(name: &str) -> &'static Setting {
    SETTINGS.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no setting named {name}"))
}

/// The table of `docs/configuration.md`, in markdown, one row per setting, ending with a newline.
#[cfg(test)]
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
const TLS: &str = "TLS (for addresses given as https://)";
const LIMITS: &str = "Cores and limits (per core unless stated otherwise)";
const CLIENTS: &str = "Clients";
const STORING: &str = "Storing";
const FAILURES: &str = "Failed uploads";
const BATCHES: &str = "Objects (one per payload, or batches)";
const ACKS: &str = "Acknowledgement (what a 200 means)";
const SPOOL: &str = "Spool (for ACK=spooled)";
const S3: &str = "S3 (region, endpoint and credentials come from the AWS_* names)";
const RUNNING: &str = "Stopping, logging and tests";

const fn row(
    group: &'static str,
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { name, default, value, group, help, is_secret: false }
}

const fn secret(setting: Setting) -> Setting {
    Setting { is_secret: true, ..setting }
}

/// Every setting, in the order `--help` and `docs/configuration.md` show them.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    row(LISTENING, "LISTEN", "LIST", "0.0.0.0:8080",
        "Addresses for ingest requests, `IP:PORT` or `https://IP:PORT`, with commas between. `[::]` takes IPv4 too unless an IPv4 address with its port is listed. `?proxy=CIDR` behind one: only proxies in that network, and each connection has a PROXY header."),
    row(LISTENING, "TRUST", "LIST", "",
        "Networks of proxies, such as `10.0.0.0/8,fd00::/8`, whose `forwarded` or `x-forwarded-for` header names the client of a request. Not set: these headers are ignored."),
    row(LISTENING, "ADMIN_LISTEN", "ADDR", "127.0.0.1:9090",
        "Address for metrics, health checks and a page for browsers, `IP:PORT`, `https://IP:PORT` or `off`. Without ADMIN_TOKEN everybody who reaches it reads metrics and health, and a loopback address has everything."),
    secret(row(LISTENING, "ADMIN_TOKEN", "TOKEN", "",
        "What the admin listener asks for beside health and metrics, as `authorization: Bearer TOKEN`: 16 to 4096 visible ASCII characters. No flag, which every user of the host could read.")),
    row(LISTENING, "ADMIN_TOKEN_FILE", "FILE", "",
        "File with ADMIN_TOKEN in its first line, instead of the setting. Read at start and on SIGHUP."),
    row(LISTENING, "TAP", "SWITCH", "off",
        "`on`: the admin listener shows samples of payloads at `/tap`, for `millrace tap`, to whoever may see `/peers`. They are bounded, and what looks like a secret is masked. `off`: no payload can be seen there."),
    row(LISTENING, "INGEST_HEALTH", "SWITCH", "off",
        "`on`: LISTEN answers `GET /healthz` and `/readyz` too, without a token and without reasons, for balancers that probe the port they send traffic to."),
    row(LISTENING, "PATHS", "LIST", "/payloads",
        "Paths that take payloads, up to 16, such as `/payloads,/v1/events`; all mean the same. They are compared as sent, the query aside. Any other path gets 404."),
    row(LISTENING, "H2", "WHERE", "tls",
        "Where HTTP/2 is spoken besides HTTP/1.1: `tls`, on `https://` addresses, to clients that ask for it (ALPN); `all`, also on the others, to clients that begin with it (prior knowledge, h2c); `off`."),
    row(LISTENING, "BIND_WAIT", "TIME", "5s",
        "How long the start retries while LISTEN or ADMIN_LISTEN is in use, up to 5m: a killed process can keep its sockets for a moment."),

    row(TLS, "TLS_CERT", "LIST", "",
        "PEM files of certificates, each followed by its chain, for `https://` addresses. With commas between several, each client gets the one for the host name it asks for, or the first. Read at start, on SIGHUP and when they change."),
    row(TLS, "TLS_KEY", "LIST", "",
        "PEM files of their private keys, in the order of TLS_CERT: RSA, ECDSA P-256 or P-384, or Ed25519, not encrypted. Not set: each key is in the file of its certificate."),
    row(TLS, "TLS_CLIENT_CA", "FILE", "",
        "PEM file of authorities whose client certificates LISTEN accepts. The common name of the subject counts as the name of a token. With TOKENS_FILE a request needs either, without it every connection needs a certificate. Not set: none is asked for."),
    row(TLS, "TLS_HANDSHAKE_TIMEOUT", "TIME", "10s",
        "Maximum time from the beginning of a connection to the end of its TLS handshake, up to 1m."),
    row(TLS, "TLS_HANDSHAKES", "N", "512",
        "TLS handshakes in progress per core, 1 to 1000000. Beyond it a new one takes the place of one of the address with the most, if that is over 1/8, or of the oldest that has taken 1s; if there is none, the new connection is closed."),

    row(LIMITS, "CORES", "LIST", "all",
        "CPU cores, one pinned executor each: `all` that this process may use, or a list of them such as `0-3,8`."),
    row(LIMITS, "CONNECTION_PLACEMENT", "RULE", "hash",
        "Which core serves a connection: `hash`, any, spread evenly by its addresses; `cpu`, the one on which the kernel handles its packets, which saves CPU where network queues are spread over CORES, and overloads few cores where not. Needs Linux 6.2."),
    row(LIMITS, "SPIN", "TIME", "0us",
        "How long an idle core polls before it sleeps, up to 10ms. Trades CPU for latency."),
    row(LIMITS, "MAX_WORKERS", "N", "32",
        "Upload workers per core, 1 to 4096: the most PUTs a core has in flight. The number in use adapts to what the store accepts."),
    row(LIMITS, "MAX_QUEUE", "N", "10000",
        "Queue slots per core, 1 to 10000000: payloads admitted and waiting for a worker. When all are taken, requests get 503."),
    row(LIMITS, "MAX_QUEUE_BYTES", "SIZE", "64MiB",
        "Memory per core for admitted, unfinished requests, at least MAX_LENGTH. When it is used up, requests get 503."),
    row(LIMITS, "MAX_BODY_BYTES", "SIZE", "64MiB",
        "Memory per core for bodies being read, decompressed or waiting for queue space, at least 2 × MAX_LENGTH. When it is used up, stalled bodies get 408; if there are none, requests get 503."),
    row(LIMITS, "MAX_CONNECTIONS", "N", "16384",
        "Open client connections per core, 1 to 1000000. Beyond it idle ones are closed for new ones; if all are busy, the kernel queues the rest. Each needs a file descriptor."),
    row(LIMITS, "H2_CONNECTIONS", "N", "256",
        "Open HTTP/2 connections per core, 1 to 1000000; they count in MAX_CONNECTIONS too. Beyond it `https://` addresses offer HTTP/1.1 only, and connections that begin with HTTP/2 are closed."),
    row(LIMITS, "H2_STREAMS", "N", "100",
        "Requests that one HTTP/2 connection may have in progress, 1 to 1000. Further ones are refused (REFUSED_STREAM)."),
    row(LIMITS, "MAX_LENGTH", "SIZE", "1MiB",
        "Maximum length of a request body after decompression, up to 1GiB. A longer one gets 413."),

    row(CLIENTS, "ENQUEUE_WAIT", "TIME", "1s",
        "How long a request may wait for queue space before it gets 503, up to 5m. One that would wait in vain at the measured drain rate gets it at once. Below 1s, clients that obey `retry-after`, which is whole seconds, leave a fast store idle."),
    row(CLIENTS, "HEADER_TIMEOUT", "TIME", "10s",
        "Maximum time from the first byte of a request to the end of its head; then 408."),
    row(CLIENTS, "BODY_TIMEOUT", "TIME", "30s",
        "Maximum time from the end of a request's head to the end of its body, whatever its rate; then 408."),
    row(CLIENTS, "BODY_RATE_MIN", "RATE", "256B/s",
        "Bytes a second that a body must bring, averaged over each 10 s of it, up to 1GiB/s; below it 408. `0`: only BODY_TIMEOUT ends a slow body."),
    row(CLIENTS, "IDLE_TIMEOUT", "TIME", "75s",
        "How long a keep-alive connection may be idle between requests. One that has not begun its first request is closed after HEADER_TIMEOUT."),
    row(CLIENTS, "BODY", "KIND", "collection",
        "How a posted JSON object is read: `collection`, its field `data` holds the payloads, or `object`, it is one payload. Elements of arrays are payloads either way, and content types that name a form (NDJSON, CloudEvents) come first."),
    row(CLIENTS, "TOKENS_FILE", "FILE", "",
        "File of up to a million accepted tokens, one line each: `TOKEN` or `sha256=HEX`, then `;name=NAME`, `;rate=1000/s`, `;bytes=5MiB/s` as wanted. Requests without one of them get 401. Read at start, on SIGHUP and when it changes. Not set: no token is asked for."),
    row(CLIENTS, "TOKEN_IN_BODY", "SWITCH", "on",
        "`on`: the token may be in the envelope's `token` or in a header (`authorization: Bearer` or `x-api-key`). `off`: only in a header, so 401 comes before the body is read. Only a collection holds a token; requests of another form need the header either way."),
    row(CLIENTS, "TOKEN_IN_QUERY", "SWITCH", "off",
        "`on`: the token may also be in the query, `?token=TOKEN`, for browsers' `sendBeacon`. URLs are shown and logged by proxies and browsers. Needs TOKENS_FILE."),
    row(CLIENTS, "CORS_ORIGINS", "LIST", "",
        "Origins whose scripts may read the answers: `https://example.com`, `https://*.example.com` for one label, with commas in between, or `*` for all. Not set: no CORS headers."),
    row(CLIENTS, "CLIENT_RATE", "RATE", "",
        "Requests that one address may send to all cores together: `1000/s`, `100/min` or `10/h`. Above it 429. An IPv6 address counts by its /64. Not set: no limit."),
    row(CLIENTS, "CLIENT_BYTES", "RATE", "",
        "Body bytes after decompression that one address may send to all cores together: `5MiB/s`, `1GiB/h`. Above it 429. Not set: no limit."),
    row(CLIENTS, "CLIENT_BURST", "BURST", "",
        "How much of CLIENT_RATE and CLIENT_BYTES an address may use at once: a time such as `5s`, a count of requests, a size, or both with a comma. At least half a second's worth. Not set: one second's worth."),

    row(STORING, "STORE", "URL", "file:./data",
        "Where payloads are stored: `file:DIR`, `s3://BUCKET/PREFIX` (end the prefix with `/` to make it a folder), or `null:`, which discards everything (benchmarks only)."),
    row(STORING, "FILE_MODE", "MODE", "0600",
        "Octal permissions of files that a `file:` store creates, regardless of the umask. Whoever may read may also enter its directories: 0640 makes them 0750. Existing files and directories keep theirs."),
    row(STORING, "CONTENT_TYPE", "TYPE", "auto",
        "Content type of stored objects. `auto`: application/octet-stream for payloads, application/x-ndjson for batches, application/gzip or application/zstd for batches with that suffix."),
    row(STORING, "PUT_TIMEOUT", "TIME", "10s",
        "Maximum time without progress in one attempt to store an object: bytes that the store's host acknowledges or, after the last byte, the response. Then the object is retried."),
    row(STORING, "PUT_TIMEOUT_MAX", "TIME", "10m",
        "Maximum duration of one attempt to store an object, at least PUT_TIMEOUT."),
    row(STORING, "NODE_ID", "NAME", "random",
        "This process's part of every object key, 1 to 64 of A-Z a-z 0-9 . _ -; `random` generates 64 bits at each start. A fixed name must be unique among running processes."),

    row(FAILURES, "RETRY_BASE", "TIME", "100ms",
        "Backoff before the first retry, at most RETRY_MAX. It doubles with each further retry, with full jitter."),
    row(FAILURES, "RETRY_MAX", "TIME", "10s",
        "Maximum backoff between two attempts."),
    row(FAILURES, "RETRY_FOR", "TIME", "5m",
        "How long an object is retried before it is dead-lettered. Only time in which other PUTs of its core succeed counts."),
    row(FAILURES, "READY_STORE_GRACE", "TIME", "30s",
        "How long the store may fail before `/readyz` answers 503; with `ACK=spooled` it answers 200 and says so while the spool takes payloads."),
    row(FAILURES, "DEAD_LETTER_DIR", "DIR", "./dead-letter",
        "Directory for payloads that the store did not accept, and without a spool for those that a stop leaves. `millrace dead-letter replay` uploads them."),
    row(FAILURES, "DEAD_LETTER_MAX", "SIZE", "1GiB",
        "Maximum total size of the dead-letter directory. Payloads beyond it are counted as lost."),

    row(BATCHES, "OBJECT", "KIND", "payload",
        "What one object contains: `payload`, one payload byte for byte, or `batch`, many payloads as NDJSON, one per line."),
    row(BATCHES, "KEY", "TEMPLATE", "",
        "Object keys, from {unix_nanos} {unix_ms} {date:%Y/%m/%d} {hour} {node} {core} {seq} {count} {ext} {hash:2} {version} {token} {header:NAME} {query:NAME} {field:/pointer|default}. Not set: `{unix_nanos}-{node}-{core}-{seq}.json`, for batches `.{ext}`."),
    row(BATCHES, "EVENT_TIME", "POINTER", "",
        "JSON pointer to a payload's own time (epoch s, ms, µs or ns, or ISO 8601) for {date} and {hour}, or `received_at`, the time of receipt. Not set: the time at which the batch was opened or the payload arrived."),
    row(BATCHES, "META", "LIST", "",
        "Stores each payload as {\"meta\":{…},\"payload\":…}. The members of meta: received_at, client, token (its name) and header:NAME, as a list with commas. Not set: payloads are stored as received."),
    row(BATCHES, "BATCH_BYTES", "SIZE", "8MiB",
        "Stored size, after compression, at which a batch is closed, 64KiB to 1GiB."),
    row(BATCHES, "BATCH_RAW_BYTES", "SIZE", "256MiB",
        "Size before compression at which a batch is closed, 64KiB to 16GiB."),
    row(BATCHES, "BATCH_AGE", "TIME", "5s",
        "Maximum time a batch stays open, 10ms to 1h. One that a `stored` request waits for is closed after at most half of ACK_TIMEOUT."),
    row(BATCHES, "BATCH_COUNT", "N", "",
        "Number of payloads at which a batch is closed. Not set: no limit."),
    row(BATCHES, "BATCH_MEMORY", "SIZE", "128MiB",
        "Memory per core for batches that are open, closed or in flight, at least 2 × BATCH_BYTES + MAX_LENGTH + 4MiB. When it is used up, payloads stay in the queue and requests get 503."),
    row(BATCHES, "MAX_PARTITIONS", "N", "256",
        "Open batches per core, 1 to 100000: one for each distinct text that KEY produces from payloads. Beyond it the oldest batch is closed early."),
    row(BATCHES, "COMPRESSION", "KIND", "none",
        "Compression of batches: `none`, `gzip` or `zstd`, one member or frame per object."),
    row(BATCHES, "COMPRESSION_LEVEL", "N", "",
        "1 to 9 for gzip, -7 to 9 for zstd; higher levels would stall requests. Not set: 6 for gzip, 1 for zstd."),
    row(BATCHES, "COMPRESSION_MARK", "HOW", "suffix",
        "How compressed batches are marked: `suffix`, the key ends in .gz or .zst, or `header`, content-encoding (not with `file:`)."),
    row(BATCHES, "PUT_PRICE", "DOLLARS", "0.005",
        "Price of 1,000 PUTs, for the cost metrics and the warning about small batches."),

    row(ACKS, "ACK", "LEVEL", "queued",
        "What a 200 promises by default; the `millrace-ack` header overrides it per request: `queued` (in memory), `spooled` (synced to this host's disk; needs SPOOL_DIR) or `stored` (confirmed by the store)."),
    row(ACKS, "ACK_TIMEOUT", "TIME", "30s",
        "Maximum time a `stored` request waits for the store, or a `spooled` one for the disk. Then it gets 504, which leaves open whether its payloads will be stored."),

    row(SPOOL, "SPOOL_DIR", "DIR", "",
        "Directory for payloads that must survive a crash. Its file system must support O_DIRECT; any number of processes may share it. Not set: no spool."),
    row(SPOOL, "SPOOL_MAX", "SIZE", "1GiB",
        "Disk space of the spool per core, at least two segments; with `OBJECT=batch` up to 8 MiB of it are for journals. When it is used up, `spooled` requests get 503."),
    row(SPOOL, "SPOOL_SEGMENT", "SIZE", "64MiB",
        "Size of one spool file, at least 4 × MAX_LENGTH. A file is reused once everything in it has been stored."),
    row(SPOOL, "SPOOL_PENDING", "SIZE", "64MiB",
        "Memory per core for requests that wait for their sync, at least MAX_LENGTH. When it is used up, `spooled` requests get 503."),
    row(SPOOL, "SPOOL_LINGER", "TIME", "0ms",
        "How long a sync waits for more requests to share it, up to 1s, before it takes all that wait. At `0ms` it begins when the one before has ended and takes about half of the requests in circulation; the others share the next."),
    row(SPOOL, "SPOOL_CHECKPOINT", "TIME", "1s",
        "How often the spool records what has been stored, 10ms to 1m. After a crash, whatever was stored since the last checkpoint is uploaded again under the same key."),

    row(S3, "S3_ACL", "ACL", "",
        "Canned ACL sent with every PUT. Not set: no ACL header, which means private. Buckets created since April 2023 refuse any but `bucket-owner-full-control`."),
    row(S3, "S3_STORAGE_CLASS", "CLASS", "",
        "Storage class sent with every PUT, e.g. `STANDARD_IA`. Not set: the bucket's default."),
    row(S3, "S3_SSE", "KIND", "",
        "Server-side encryption requested with every PUT: `AES256`, `aws:kms` or `aws:kms:dsse`. Not set: the bucket's default."),
    row(S3, "S3_KMS_KEY_ID", "KEY", "",
        "KMS key id or ARN; only with S3_SSE=aws:kms or aws:kms:dsse."),
    row(S3, "S3_BUCKET_KEY", "BOOL", "",
        "`true` or `false`: whether objects use the bucket's S3 Bucket Key, which saves KMS requests; only with S3_SSE=aws:kms. Not set: the bucket's default."),
    row(S3, "S3_TAGS", "TAGS", "",
        "Tags of every object, `KEY=VALUE&KEY2=VALUE2` in URL encoding, up to 10. Needs the permission s3:PutObjectTagging. Not set: none."),
    row(S3, "S3_EXPECTED_OWNER", "ACCOUNT", "",
        "AWS account, 12 digits, that must own the bucket; otherwise every request is refused. Not set: not checked."),
    row(S3, "S3_FORCE_PATH_STYLE", "BOOL", "auto",
        "Where URLs contain the bucket. `true`: in the path; `false`: in the host name; `auto`: in the path on a custom endpoint, in the host name on AWS."),
    row(S3, "S3_CHECKSUM", "KIND", "auto",
        "Checksum header of every PUT: `auto`, `none`, `crc32c`, `crc64nvme` or `sha256`. `auto` is crc64nvme on AWS and none on a custom endpoint."),
    row(S3, "S3_CONNECT_TIMEOUT", "TIME", "3s",
        "Maximum time to open a connection to the store, including proxy and TLS."),
    row(S3, "S3_CONNECTION_AGE", "TIME", "60s",
        "How long a connection to the store is used, 1s to 24h, ± a fifth, so that DNS changes are followed. `0`: until the store closes it."),
    row(S3, "S3_CLIENT", "KIND", "direct",
        "What sends the PUTs: `direct`, millrace's own client, or `sdk`, aws-sdk-s3, which costs several times the CPU and is meant for comparison."),
    row(S3, "S3_SIGN_PAYLOAD", "WHEN", "auto",
        "Whether signatures cover the payload: `always`, `never`, or `auto`, only over plain http, because TLS protects it as well."),
    row(S3, "S3_IF_NONE_MATCH", "BOOL", "false",
        "Sends `If-None-Match: *` with every PUT, so that an existing object is kept and counts as stored. The store must support the header."),

    row(RUNNING, "DRAIN_TIMEOUT", "TIME", "25s",
        "Maximum time from SIGTERM, SIGINT or SIGQUIT to exit, 1s to 1h. Shortly before its end, whatever is not stored goes to the spool, or without one to the dead letters."),
    row(RUNNING, "LOG", "FILTER", "info",
        "Log filter: a level (`error`, `warn`, `info`, `debug`, `trace`, `off`) or directives such as `info,millrace::upload=debug`. SIGHUP reads a new one from the TOML file."),
    row(RUNNING, "LOG_FORMAT", "KIND", "text",
        "Format of log lines: `text` or `json`."),
    row(RUNNING, "FAULTS", "SPEC", "",
        "Seeded store faults, only for tests and game days. The server warns about them at start."),
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

    /// `MILLRACE_WRITE_SETTINGS=1 cargo test --lib settings` writes the table to the document.
    #[test]
    fn the_settings_document_shows_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        let document = std::fs::read_to_string(path).unwrap();
        let marker = "checked by a test -->\n";
        let start = document.find(marker).unwrap() + marker.len();
        let end = start + document[start..].find("<!-- /settings -->").unwrap();
        if std::env::var_os("MILLRACE_WRITE_SETTINGS").is_some() {
            let written = [&document[..start], &markdown_table(), &document[end..]].concat();
            std::fs::write(path, written).unwrap();
        } else {
            assert_eq!(&document[start..end], markdown_table());
        }
    }

    #[test]
    fn every_help_text_is_short_and_ends_with_a_full_stop() {
        for s in SETTINGS {
            assert!(s.help.ends_with('.') && s.help.len() < 260, "{}: {}", s.name, s.help);
        }
    }
}
