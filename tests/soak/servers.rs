//! The two servers under test, side by side on one store: `singles` makes an object of each
//! payload, `batches` gathers them. Their files of tokens and certificates are replaced while they
//! run.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use tokio_rustls::rustls::{SupportedProtocolVersion, version};

use crate::support::front::free_address;
use crate::support::needs::up_to_two_cores;
use crate::support::s3::{ACCESS_KEY, SECRET_KEY};
use crate::support::tls::{Authority, HOST, TlsClientOptions};
use crate::support::{Server, command};
use crate::wire::Target;

pub const GOOD_TOKEN: &str = "a-token-that-is-always-in-the-file";
pub const STRANGER_TOKEN: &str = "a-token-that-comes-and-goes";
pub const NAMES: [&str; 2] = ["singles", "batches"];
/// A change with a good certificate, all tokens and a signal.
pub const GOOD_FILES: usize = 2;
/// Most files of a core's spool, each 2 MiB: `SPOOL_MAX` has room for two segments, so that it
/// fills within seconds of an outage, and with batches for four and two journals.
pub const SPOOL_FILES: [usize; 2] = [2, 6];

/// What both have in common: small limits, so that they are reached, and short times, so that they
/// pass.
const COMMON: [(&str, &str); 30] = [
    ("STORE", "s3://payloads/in/"),
    ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
    ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
    ("AWS_EC2_METADATA_DISABLED", "true"),
    ("HOME", "/nonexistent"),
    ("TOKENS_FILE", "tokens"),
    ("TLS_CERT", "cert.pem"),
    ("INGEST_HEALTH", "on"),
    ("SPOOL_DIR", "spool"),
    ("SPOOL_MAX", "4MiB"),
    ("SPOOL_SEGMENT", "2MiB"),
    ("SPOOL_PENDING", "2MiB"),
    ("MAX_LENGTH", "512KiB"),
    ("MAX_QUEUE", "2000"),
    ("MAX_QUEUE_BYTES", "8MiB"),
    ("MAX_BODY_BYTES", "8MiB"),
    ("MAX_WORKERS", "16"),
    ("MAX_CONNECTIONS", "1000"),
    ("ENQUEUE_WAIT", "250ms"),
    ("HEADER_TIMEOUT", "3s"),
    ("BODY_TIMEOUT", "6s"),
    ("TLS_HANDSHAKE_TIMEOUT", "3s"),
    ("IDLE_TIMEOUT", "5s"),
    ("ACK_TIMEOUT", "8s"),
    ("PUT_TIMEOUT", "2s"),
    ("RETRY_BASE", "20ms"),
    ("RETRY_MAX", "1s"),
    ("READY_STORE_GRACE", "5s"),
    ("S3_CONNECTION_AGE", "10s"),
    ("DRAIN_TIMEOUT", "10s"),
];

/// The journals of batches have 8 MiB of the spool.
const BATCHES: [(&str, &str); 8] = [
    ("SPOOL_MAX", "12MiB"),
    ("OBJECT", "batch"),
    ("COMPRESSION", "zstd"),
    ("KEY", "{field:/t|none}/{unix_nanos}-{node}-{core}-{seq}.{ext}"),
    ("BATCH_AGE", "250ms"),
    ("BATCH_BYTES", "256KiB"),
    ("BATCH_RAW_BYTES", "2MiB"),
    ("BATCH_MEMORY", "8MiB"),
];

static OLD: [&SupportedProtocolVersion; 1] = [&version::TLS12];

/// One of them, running or not.
pub struct Place {
    pub name: &'static str,
    pub dir: Arc<tempfile::TempDir>,
    tls: SocketAddr,
    settings: Vec<(String, String)>,
}

impl Place {
    /// A directory with everything that a server needs to start.
    pub fn new(nth: usize, store: SocketAddr, authority: &Authority) -> Place {
        let (name, tls) = (NAMES[nth], free_address());
        let mut settings = COMMON.to_vec();
        settings.extend(&BATCHES[..if name == "batches" { BATCHES.len() } else { 0 }]);
        let (listen, endpoint) = (format!("127.0.0.1:0,https://{tls}"), format!("http://{store}"));
        settings.extend([
            ("LISTEN", listen.as_str()),
            ("AWS_ENDPOINT_URL_S3", &endpoint),
            ("CORES", up_to_two_cores()),
        ]);
        let settings = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let dir = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        let place = Place { name, dir, tls, settings };
        place.write_tokens(true);
        place.write("cert.pem", &authority.server(&[HOST]));
        place
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        self.settings.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect()
    }

    pub fn start(&self) -> Server {
        Server::start_in(self.dir.clone(), &self.settings())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Another command of the binary with the server's settings.
    pub fn run(&self, args: &[&str]) -> Output {
        let mut settings = self.settings();
        // Nobody listens meanwhile, and nothing is to be said about it.
        settings.retain(|(name, _)| *name != "LISTEN" && *name != "TLS_CERT");
        command(self.dir.path(), args, &settings).output().expect("the binary runs")
    }

    pub fn target(&self, server: &Server, authority: &Authority) -> Target {
        let ticket = || TlsClientOptions { resumes: true, ..authority.trust() };
        let old = TlsClientOptions { versions: &OLD, ..ticket() };
        let configs = vec![ticket().config(), old.config(), authority.trust().config()];
        Target { plain: server.ingest, tls: self.tls, configs }
    }

    /// Written beside and renamed, as `docs/operations.md` wants it.
    pub fn write(&self, name: &str, text: &str) {
        let beside = self.path("beside");
        std::fs::write(&beside, text).expect("a directory of the test's own");
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&beside, mode).expect("a file of the test's own");
        std::fs::rename(&beside, self.path(name)).expect("one directory");
    }

    fn write_tokens(&self, with_stranger: bool) {
        let stranger = if with_stranger { STRANGER_TOKEN } else { "another-one" };
        self.write("tokens", &format!("{GOOD_TOKEN};name=good\n{stranger};name=stranger\n"));
    }

    /// The `nth` change of files under the running server: every fourth certificate has expired.
    pub fn reload(&self, nth: usize, server: &Server, authority: &Authority) {
        self.write_tokens(nth.is_multiple_of(2));
        match nth % 4 {
            3 => self.write("cert.pem", &authority.server_valid(&[HOST], [2000, 2001])),
            _ => self.write("cert.pem", &authority.server(&[HOST])),
        }
        // Without a signal changed files are found as well.
        if !nth.is_multiple_of(3) {
            server.signal("HUP");
        }
    }
}

/// The bytes of a server's dead letters, an object each.
pub fn dead_letters(dir: &Path) -> Vec<Vec<u8>> {
    let letters = crate::support::dead_letters(&dir.join("dead-letter"));
    letters.into_iter().map(|(_, bytes)| bytes).collect()
}

/// Log lines of these servers that warn of what the soak does not do to them.
pub fn unexpected(log: &[serde_json::Value]) -> impl Iterator<Item = String> + '_ {
    let level = |line: &serde_json::Value| line["level"].as_str().unwrap_or("ERROR").to_owned();
    let alarming = log.iter().filter(move |line| ["WARN", "ERROR"].contains(&level(line).as_str()));
    let text =
        alarming.map(|line| line["message"].as_str().map_or(line.to_string(), str::to_owned));
    text.filter(|text| !EXPECTED.iter().any(|part| text.contains(part)))
}

/// Parts of the warnings and errors that faults of the soak's own cause.
const EXPECTED: [&str; 13] = [
    // Of the store.
    "a PUT failed and will be retried",
    "the store takes nothing, holding payloads",
    "dead letter ",
    "requests refused with 503: ",
    "the spool is full",
    "MAX_BODY_BYTES",
    "stopped",
    // Of the files.
    "new connections get the certificates read before",
    // Of the clients.
    "it began with a plain HTTP request",
    "began a TLS handshake on an address that is plain HTTP",
    "its handshake was not complete within TLS_HANDSHAKE_TIMEOUT",
    "its client refused this server's certificate",
    "batches were closed early",
];
