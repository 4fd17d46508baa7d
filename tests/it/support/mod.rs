//! The real binary as a child process on loopback ports of its own, in a directory of its own, and
//! a client that speaks raw bytes to it.

pub mod batches;
pub mod child;
pub mod chromium;
pub mod devtools;
pub mod disks;
pub mod front;
pub mod h2;
pub mod imds;
pub mod needs;
pub mod proxy;
pub mod s3;
pub mod s3_client;
pub mod slow_store;
pub mod terminal;
pub mod tls;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

/// No wait in a scenario is longer than this: many times what any of them takes on an idle machine,
/// for a busy one may leave a process without a core for seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub ingest: SocketAddr,
    pub admin: SocketAddr,
    dir: Arc<tempfile::TempDir>,
    settings: Vec<(String, String)>,
    log: Arc<Mutex<Vec<Value>>>,
    log_reader: Option<std::thread::JoinHandle<()>>,
}

/// How a server ended.
#[derive(Debug)]
pub struct Stopped {
    /// The exit status; -1 when a signal killed it.
    pub status: i32,
    pub accepted: u64,
    pub stored: u64,
    pub dead_lettered: u64,
    pub lost: u64,
    pub took: Duration,
    /// Every log line, as JSON.
    pub log: Vec<Value>,
    /// What the server left behind.
    pub dir: Arc<tempfile::TempDir>,
}

impl Stopped {
    pub fn log_text(&self) -> String {
        self.log.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// The binary with a clean environment but for `settings`, run in `dir`. Settings of millrace's own
/// get their prefix.
pub fn command(dir: &Path, args: &[&str], settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.current_dir(dir).args(args).env_clear().env("RUST_BACKTRACE", "0");
    for (name, value) in settings {
        match millrace::internals::config::SETTINGS.iter().find(|s| s.name == *name) {
            Some(setting) => command.env(setting.env(), value),
            None => command.env(name, value),
        };
    }
    command.stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub fn run(dir: &Path, args: &[&str], settings: &[(&str, &str)]) -> Output {
    command(dir, args, settings).output().unwrap()
}

impl Server {
    /// Starts with loopback ports and `settings`, by default on core 0, and waits until it serves.
    pub fn start(settings: &[(&str, &str)]) -> Server {
        Server::start_in(Arc::new(tempfile::tempdir().unwrap()), settings)
    }

    /// Starts in a directory that an earlier server may have left.
    pub fn start_in(dir: Arc<tempfile::TempDir>, settings: &[(&str, &str)]) -> Server {
        Server::start_by(dir, settings, |_| {})
    }

    /// The same with the command changed, which must still become the binary.
    pub fn start_by(
        dir: Arc<tempfile::TempDir>,
        settings: &[(&str, &str)],
        change: impl FnOnce(&mut Command),
    ) -> Server {
        let mut all = vec![
            ("LISTEN", "127.0.0.1:0"),
            ("ADMIN_LISTEN", "127.0.0.1:0"),
            ("LOG_FORMAT", "json"),
            ("CORES", "0"),
            ("DRAIN_TIMEOUT", "6s"),
        ];
        all.retain(|(name, _)| settings.iter().all(|(set, _)| set != name));
        all.extend_from_slice(settings);
        let mut command = command(dir.path(), &[], &all);
        change(&mut command);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the binary runs");
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let sink = log.clone();
        let log_reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                sink.lock().unwrap().push(value);
            }
        });
        let mut server = Server {
            child,
            ingest: ([127, 0, 0, 1], 0).into(),
            admin: ([127, 0, 0, 1], 0).into(),
            dir,
            settings: all.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            log,
            log_reader: Some(log_reader),
        };
        server.read_addresses();
        server
    }

    fn read_addresses(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let summary = self.log().into_iter().find(|line| line.get("listen").is_some());
            if let Some(summary) = summary {
                let address = |name: &str| {
                    let url = summary[name].as_str().unwrap();
                    let (_, rest) = url.split_once("://").unwrap();
                    rest.split('/').next().unwrap().parse().unwrap()
                };
                self.ingest = address("listen");
                if summary["admin"] != "off" {
                    self.admin = address("admin");
                }
                return;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "did not start: {ended:?}\n{:#?}", self.log());
            assert!(Instant::now() < deadline, "not serving in time\n{:#?}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The log so far, a JSON value a line.
    pub fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }

    /// Whether a log line holds `text`.
    pub fn logged(&self, text: &str) -> bool {
        self.log().iter().any(|line| line.to_string().contains(text))
    }

    /// Waits for a log line that holds `text`. Lines come some time after what they report: a
    /// thread writes them.
    pub fn wait_logged(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.logged(text) {
            assert!(Instant::now() < deadline, "not logged: {text}\n{:#?}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The row of `peer` on the page `/peers` with this query.
    pub fn peer(&self, query: &str, peer: &str) -> Option<Value> {
        let mut client = Client::connect(self.admin);
        let accept = "accept: application/json\r\nconnection: close";
        client.send(format!("GET /peers{query} HTTP/1.1\r\nhost: localhost\r\n{accept}\r\n\r\n"));
        let page: Value = serde_json::from_str(&client.reply().body).unwrap();
        page["peers"].as_array().unwrap().iter().find(|row| row["peer"] == peer).cloned()
    }

    /// A fresh connection to the ingest listener, with timeouts.
    pub fn connect(&self) -> Client {
        Client::connect(self.ingest)
    }

    /// One POST on a connection of its own.
    pub fn post(&self, body: impl AsRef<[u8]>) -> Reply {
        self.connect().post(body)
    }

    /// One POST of `payloads` JSON texts.
    pub fn post_payloads(&self, payloads: &[&str]) -> Reply {
        self.post(format!(r#"{{"data":[{}]}}"#, payloads.join(",")))
    }

    /// `GET path` on the admin listener.
    pub fn admin(&self, path: &str) -> Reply {
        let mut client = Client::connect(self.admin);
        client.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"));
        client.reply()
    }

    pub fn metrics(&self) -> Metrics {
        Metrics(self.admin("/metrics").body)
    }

    /// Waits until `done` says so.
    pub fn wait(&self, what: &str, done: impl Fn(&Metrics) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let metrics = self.metrics();
            if done(&metrics) {
                return;
            }
            let text = &metrics.0;
            assert!(Instant::now() < deadline, "not in time: {what}\n{text}\n{:#?}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until every gauge of every stage is back at zero: invariant 4.
    pub fn wait_idle(&self) {
        self.wait("every gauge at zero", |metrics| metrics.not_zero().is_empty());
    }

    /// Name and bytes of every object of the `file:` store in `data`, the default.
    pub fn stored(&self) -> BTreeMap<String, Vec<u8>> {
        files(&self.path("data"))
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// A stop has begun, and this asks to end it now. Not sooner after the first signal than the
    /// server takes for the same one (50 ms): `/readyz` says 503 within that time.
    pub fn signal_again(&self, name: &str) {
        self.wait_ready(503);
        std::thread::sleep(Duration::from_millis(100));
        self.signal(name);
    }

    /// SIGTERM, and how it ended.
    pub fn stop(self) -> Stopped {
        self.signal("TERM");
        self.wait_stopped()
    }

    /// Waits for the end of a server that was told to stop, or that stops by itself.
    pub fn wait_stopped(mut self) -> Stopped {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < 2 * PATIENCE, "did not stop\n{:#?}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        };
        self.log_reader.take().unwrap().join().unwrap();
        let log = self.log();
        let summary = log.iter().rev().find(|line| line["message"] == "stopped");
        let figure = |name: &str| summary.and_then(|s| s[name].as_u64()).unwrap_or(0);
        Stopped {
            status: status.code().unwrap_or(-1),
            accepted: figure("accepted"),
            stored: figure("stored"),
            dead_lettered: figure("dead_lettered"),
            lost: figure("lost"),
            took: started.elapsed(),
            dir: self.dir.clone(),
            log,
        }
    }

    /// Runs another command of the binary with this server's settings, beside it.
    pub fn run_beside(&self, args: &[&str]) -> Output {
        let settings: Vec<(&str, &str)> =
            self.settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        run(self.dir.path(), args, &settings)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}

/// Gauges that are not back at zero when nothing is left to do, with the reason.
const NOT_ZERO: [(&str, &str); 34] = [
    ("millrace_build_info", "always 1"),
    ("millrace_workers_busy_limit", "a limit"),
    ("millrace_batches_open_limit", "a limit"),
    ("millrace_spool_disk_bytes_limit", "a limit"),
    ("millrace_spool_pending_bytes_limit", "a limit"),
    ("millrace_spool_filled_bytes", "the last segment stays filled as far as it was"),
    ("millrace_dead_letters", "they stay until they are replayed"),
    ("millrace_dead_letters_failing", "until one is written again"),
    ("millrace_tap_watchers_limit", "a limit"),
    ("millrace_tap_lines_limit", "a limit"),
    ("millrace_body_bytes_limit", "a limit"),
    ("millrace_connections_limit", "a limit"),
    ("millrace_tls_handshakes_limit", "a limit"),
    ("millrace_h2_connections_limit", "a limit"),
    ("millrace_tls_certificate_expiry_timestamp_seconds", "of the certificates in effect"),
    ("millrace_queue_depth_limit", "a limit"),
    ("millrace_queue_bytes_limit", "a limit"),
    ("millrace_batch_bytes_limit", "a limit"),
    ("millrace_quota_client_buckets", "kept for a minute after the last request"),
    ("millrace_quota_token_buckets", "kept for a minute after the last request"),
    ("millrace_quota_client_buckets_limit", "a limit"),
    ("millrace_quota_token_buckets_limit", "a limit"),
    ("millrace_queue_full", "shown for a while"),
    ("millrace_puts_limit", "a limit that adapts"),
    ("millrace_tokens", "what TOKENS_FILE holds"),
    ("millrace_spool_disk_bytes", "segments stay for reuse"),
    ("millrace_spool_journal_bytes", "journals stay as well"),
    ("millrace_dead_letter_directory_bytes_limit", "a limit"),
    ("millrace_tokens_limit", "a limit"),
    ("millrace_request_bytes_limit", "a limit"),
    ("millrace_dead_letter_directory_bytes", "dead letters stay until they are replayed"),
    ("millrace_batch_compression_ratio", "of everything since the start"),
    ("millrace_puts_per_million_payloads", "of everything since the start"),
    ("millrace_put_dollars_per_million_payloads", "of everything since the start"),
];

/// Regular files below `dir` by relative name, the store's temporary directory left out.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, dir: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                if name != ".millrace-tmp" {
                    walk(root, &path, into);
                }
            } else {
                match std::fs::read(&path) {
                    Ok(bytes) => drop(into.insert(name, bytes)),
                    // A running server has renamed or removed it since it was listed.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => panic!("{name}: {error}"),
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    if dir.exists() {
        walk(dir, dir, &mut found);
    }
    found
}

/// One scrape.
pub struct Metrics(pub String);

impl Metrics {
    /// The sum over all cores of every sample of `name` whose labels contain `labels`; a figure of
    /// the whole process has none.
    pub fn sum_where(&self, name: &str, labels: &str) -> u64 {
        let samples = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, set) = series.split_once('{').unwrap_or((series, ""));
            (found == name && set.contains(labels)).then(|| value.parse::<f64>().unwrap())
        });
        samples.sum::<f64>() as u64
    }

    pub fn sum(&self, name: &str) -> u64 {
        let is_there = |end| self.0.contains(&format!("\n{name}{end}"));
        assert!(is_there('{') || is_there(' '), "no metric {name}");
        self.sum_where(name, "")
    }

    /// Names of all gauges of the scrape.
    pub fn gauges(&self) -> Vec<&str> {
        let name = |line| str::strip_prefix(line, "# TYPE ")?.strip_suffix(" gauge");
        self.0.lines().filter_map(name).collect()
    }

    /// The gauges that are not zero, those aside that need not be.
    pub fn not_zero(&self) -> Vec<&str> {
        let mut gauges = self.gauges();
        for (name, _) in NOT_ZERO {
            assert!(gauges.contains(&name), "NOT_ZERO: {name} is no gauge");
        }
        // What the process has as a whole is not of a stage.
        let of_host = ["process_", "millrace_disk_"];
        let is_kept = |name: &str| {
            NOT_ZERO.iter().any(|(kept, _)| *kept == name)
                || of_host.iter().any(|prefix| name.starts_with(prefix))
                || name.ends_with("_needed")
                || name.ends_with("_needed_bytes")
        };
        gauges.retain(|name| !is_kept(name) && self.sum(name) != 0);
        gauges
    }

    pub fn requests(&self, status: u16) -> u64 {
        self.sum_where("millrace_requests_total", &format!("status=\"{status}\""))
    }
}

/// One connection, raw bytes.
pub struct Client {
    pub stream: TcpStream,
    pub unread: Vec<u8>,
}

/// One HTTP/1.1 reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The text of `{"error":"…"}`.
    pub fn error(&self) -> String {
        let value: Value = serde_json::from_str(&self.body).expect("an error is JSON");
        value["error"].as_str().expect("an error is a string").to_owned()
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        Client::try_connect(address).unwrap()
    }

    /// The same, unless nobody listens.
    pub fn try_connect(address: SocketAddr) -> Option<Client> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Some(Client { stream, unread: Vec::new() })
    }

    /// A connection from an address of this host.
    pub fn connect_from(source: std::net::IpAddr, address: SocketAddr) -> Client {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, unread: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// A POST to `/payloads` with a content length, and its reply.
    pub fn post(&mut self, body: impl AsRef<[u8]>) -> Reply {
        self.send(request(body.as_ref(), ""));
        self.reply()
    }

    /// The next reply on this connection; panics when the server closes or stays silent.
    pub fn reply(&mut self) -> Reply {
        self.try_reply().expect("a reply, not the end of the connection")
    }

    /// The next reply, or `None` when the server closed before its first byte.
    pub fn try_reply(&mut self) -> Option<Reply> {
        try_reply(&mut self.stream, &mut self.unread)
    }

    /// Whether the server has closed this connection and sent nothing more.
    pub fn closed(&mut self) -> bool {
        self.unread.is_empty() && !fill(&mut self.stream, &mut self.unread)
    }
}

/// The next reply in `stream`, of which `unread` was read already; `None` when the server closed
/// before its first byte.
pub fn try_reply(stream: &mut impl Read, unread: &mut Vec<u8>) -> Option<Reply> {
    let head_end = loop {
        if let Some(at) = unread.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if !fill(stream, unread) {
            assert!(unread.is_empty(), "cut: {:?}", String::from_utf8_lossy(unread));
            return None;
        }
    };
    let head = String::from_utf8(unread.drain(..head_end).collect()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.parse().unwrap());
    while unread.len() < length {
        assert!(fill(stream, unread), "the body was cut");
    }
    let body = String::from_utf8(unread.drain(..length).collect()).unwrap();
    Some(Reply { status, headers, body })
}

fn fill(stream: &mut impl Read, unread: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 64 * 1024];
    let n = stream.read(&mut buffer).expect("bytes or the end in time");
    unread.extend_from_slice(&buffer[..n]);
    n > 0
}

/// A POST to `/payloads` with a content length and `headers` (each ended by CRLF).
pub fn request(body: &[u8], headers: &str) -> Vec<u8> {
    let head = format!(
        "POST /payloads HTTP/1.1\r\nhost: x\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// What the pipeline's scenarios need beyond requests and replies: stores that break and mend, dead
/// letters, waits.
impl Server {
    /// Makes the `file:` store in `data` fail as a whole: a file stands where its directory was.
    pub fn break_store(&self) {
        std::fs::write(self.path("data-away"), "in the way").unwrap();
        exchange_data(self.dir.path());
    }

    pub fn mend_store(&self) {
        mend_store(self.dir.path());
    }

    /// Waits until `/readyz` answers `status`, and gives its text.
    pub fn wait_ready(&self, status: u16) -> String {
        let mut text = String::new();
        wait_for(&format!("/readyz {status}"), || {
            let reply = self.admin("/readyz");
            text = reply.body;
            reply.status == status
        });
        text
    }

    /// Every dead letter in `dead-letter`, the default: its JSON and its payload.
    pub fn dead_letters(&self) -> Vec<(Value, Vec<u8>)> {
        dead_letters(&self.path("dead-letter"))
    }

    /// A command of the binary with this server's settings, `changed` ones replaced (an empty text
    /// unsets).
    pub fn command_beside(&self, args: &[&str], changed: &[(&str, &str)]) -> Command {
        let mut settings: Vec<(&str, &str)> = self
            .settings
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
            .filter(|(name, _)| changed.iter().all(|(other, _)| other != name))
            .collect();
        settings.extend_from_slice(changed);
        command(self.dir.path(), args, &settings)
    }

    /// The server's directory, kept when it stops.
    pub fn dir(&self) -> Arc<tempfile::TempDir> {
        self.dir.clone()
    }

    /// How many log lines hold `text`.
    pub fn count_logged(&self, text: &str) -> usize {
        self.log().iter().filter(|line| line.to_string().contains(text)).count()
    }
}

/// Ends what [`Server::break_store`] did, also when the server is no more.
pub fn mend_store(dir: &Path) {
    exchange_data(dir);
    std::fs::remove_file(dir.join("data-away")).unwrap();
}

/// In one step: with nothing in its place for a moment, the store would make its directory anew.
fn exchange_data(dir: &Path) {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let [data, away] = ["data", "data-away"].map(|name| dir.join(name));
    renameat_with(CWD, data, CWD, away, RenameFlags::EXCHANGE).unwrap();
}

/// `bytes` as one gzip member, as small as it gets.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Waits until the process handles `signal` itself. From then on it is not simply ended by it.
pub fn wait_caught(pid: u32, signal: i32) {
    wait_for("the signal to be handled", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() & 1 << (signal - 1) != 0
    });
}

/// Waits until `done` says so.
pub fn wait_for(what: &str, done: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, done);
}

/// Waits up to `limit` until `done` says so.
pub fn wait_within(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Every whole dead letter in `dir`, in whichever form: its JSON and its payload.
pub fn dead_letters(dir: &Path) -> Vec<(Value, Vec<u8>)> {
    let found = files(dir);
    let mut letters = Vec::new();
    for (name, bytes) in &found {
        if let Some(stem) = name.strip_suffix(".json") {
            let payload = &found[&format!("{stem}.payload")];
            letters.push((serde_json::from_slice(bytes).unwrap(), payload.clone()));
        } else if name.ends_with(".letters") {
            letters.extend(split_letters(bytes));
        }
    }
    letters
}

/// The letters of a `.letters` file: a line of JSON, the payload, a line feed, and so on.
fn split_letters(mut bytes: &[u8]) -> Vec<(Value, Vec<u8>)> {
    let mut letters = Vec::new();
    while !bytes.is_empty() {
        let line = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let meta: Value = serde_json::from_slice(&bytes[..line]).unwrap();
        let (payload, rest) = bytes[line + 1..].split_at(meta["bytes"].as_u64().unwrap() as usize);
        letters.push((meta, payload.to_vec()));
        bytes = rest.strip_prefix(b"\n").unwrap();
    }
    letters
}

/// `{"data":[…]}` of `payloads`, each a JSON text.
pub fn collection(payloads: &[impl AsRef<str>]) -> String {
    let payloads: Vec<&str> = payloads.iter().map(AsRef::as_ref).collect();
    format!(r#"{{"data":[{}]}}"#, payloads.join(","))
}

/// The payloads `{"id":N}` for each number, as JSON texts.
pub fn numbered(ids: impl IntoIterator<Item = usize>) -> Vec<String> {
    ids.into_iter().map(|id| format!(r#"{{"id":{id}}}"#)).collect()
}

/// The contents of `objects`, sorted, as text.
pub fn contents(objects: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let mut texts: Vec<String> =
        objects.values().map(|bytes| String::from_utf8(bytes.clone()).unwrap()).collect();
    texts.sort();
    texts
}

/// `texts`, sorted, to compare with [`contents`].
pub fn sorted(texts: &[impl AsRef<str>]) -> Vec<String> {
    let mut texts: Vec<String> = texts.iter().map(|text| text.as_ref().to_owned()).collect();
    texts.sort();
    texts
}

// What the HTTP scenarios need on top.

impl Client {
    /// The reply to a HEAD request, whose `content-length` announces a body that never comes.
    pub fn bodiless_reply(&mut self) -> Reply {
        while !self.unread.windows(4).any(|w| w == b"\r\n\r\n") {
            assert!(
                fill(&mut self.stream, &mut self.unread),
                "cut: {:?}",
                String::from_utf8_lossy(&self.unread)
            );
        }
        let head = String::from_utf8(std::mem::take(&mut self.unread)).unwrap();
        assert!(head.ends_with("\r\n\r\n"), "a body came with it: {head}");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let headers = head.lines().filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        Reply { status, headers, body: String::new() }
    }

    /// The next reply, which must be the last: it says `connection: close`, and the server
    /// half-closes after it.
    pub fn last_reply(&mut self) -> Reply {
        let reply = self.reply();
        assert_eq!(reply.header("connection"), Some("close"), "{reply:?}");
        assert!(self.closed(), "open after {reply:?}");
        reply
    }

    /// Tells the server that nothing more will be sent.
    pub fn half_close(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Sends what the server will take; whether it took all.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }
}

impl Server {
    /// Resident memory of the process in bytes.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/statm", self.pid());
        let text = std::fs::read_to_string(path).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// The stored payloads as text, sorted.
    pub fn stored_texts(&self) -> Vec<String> {
        let texts = self.stored().into_values().map(|bytes| String::from_utf8(bytes).unwrap());
        let mut texts: Vec<String> = texts.collect();
        texts.sort();
        texts
    }
}

/// A POST to `/payloads` with a chunked body of `pieces` and `headers` (each ended by CRLF).
pub fn chunked_request(pieces: &[&[u8]], headers: &str) -> Vec<u8> {
    let mut request = format!(
        "POST /payloads HTTP/1.1\r\nhost: x\r\n{headers}transfer-encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        request.extend_from_slice(piece);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

// What the spool's scenarios need on top.

/// The header of a request that is to be on the disk before its 200.
pub const SPOOLED: &str = "millrace-ack: spooled\r\n";

impl Server {
    /// One POST of `payloads`, JSON texts, to the spool, on a connection of its own.
    pub fn spool(&self, payloads: &[impl AsRef<str>]) -> Reply {
        self.connect().spool(payloads)
    }

    /// SIGKILL, and what is left.
    pub fn kill(self) -> Stopped {
        self.signal("KILL");
        self.wait_stopped()
    }

    /// Waits until every gauge is back at zero, and nothing of an earlier process is left to be
    /// brought back.
    pub fn wait_spool_empty(&self) {
        // With a short queue, batches are replayed one after another: 4 s on an idle machine.
        wait_within(3 * PATIENCE, "all spools of earlier processes to be empty", || {
            // What is not ready does not say what it replays.
            let ready = self.admin("/readyz");
            ready.status == 200 && !ready.body.contains("being replayed")
        });
        self.wait_idle();
    }
}

impl Stopped {
    /// The objects of the `file:` store in `data`, the default.
    pub fn stored(&self) -> BTreeMap<String, Vec<u8>> {
        files(&self.dir.path().join("data"))
    }

    /// Log lines of level ERROR.
    pub fn errors(&self) -> Vec<&Value> {
        self.log.iter().filter(|line| line["level"] == "ERROR").collect()
    }
}

impl Client {
    /// A POST of `payloads`, JSON texts, to the spool, and its reply.
    pub fn spool(&mut self, payloads: &[impl AsRef<str>]) -> Reply {
        self.send(request(collection(payloads).as_bytes(), SPOOLED));
        self.reply()
    }

    /// Sends one request to a server that may die meanwhile; `None` when there was no whole reply,
    /// which is JSON.
    pub fn try_request(&mut self, request: &[u8]) -> Option<Reply> {
        if !self.try_send(request) {
            return None;
        }
        let mut buffer = [0; 4096];
        loop {
            let head_end = self.unread.windows(4).position(|window| window == b"\r\n\r\n");
            if head_end.is_some() && self.unread.ends_with(b"}") {
                return Some(self.reply());
            }
            match self.stream.read(&mut buffer) {
                Ok(n) if n > 0 => self.unread.extend_from_slice(&buffer[..n]),
                _ => return None,
            }
        }
    }
}

// What the scenarios of odd hosts need on top.

/// Makes `command` one that is started by `prefix`, which must become it.
pub fn wrap(command: &mut Command, prefix: &[impl AsRef<std::ffi::OsStr>]) {
    let mut wrapped = Command::new(prefix[0].as_ref());
    wrapped.args(prefix[1..].iter().map(AsRef::as_ref)).arg(command.get_program());
    wrapped.args(command.get_args()).current_dir(command.get_current_dir().unwrap());
    wrapped.env_clear().stdin(Stdio::null());
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    *command = wrapped;
}

/// kill(1) as the shell has it built in: a fresh Debian has no other.
pub fn kill_command() -> Command {
    let mut kill = Command::new("sh");
    kill.args(["-c", r#"kill "$@""#, "kill"]);
    kill
}

/// Sends the signal `name`, without `SIG`. Not by kill(1), which a fresh Debian does not have.
pub fn signal(process: &Child, name: &str) {
    let signal = match name {
        "ALRM" => Signal::ALARM,
        "CONT" => Signal::CONT,
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "KILL" => Signal::KILL,
        "QUIT" => Signal::QUIT,
        "STOP" => Signal::STOP,
        "TERM" => Signal::TERM,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "WINCH" => Signal::WINCH,
        _ => panic!("signal {name} is not in this table"),
    };
    rustix::process::kill_process(Pid::from_child(process), signal).unwrap();
}
