//! A server in a process of its own, pinned to the server cores, and what the kernel says about it.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::client;
use crate::lanes::{Lane, Sink, Wire};
use crate::options::Options;

/// Where S3 servers put: the sink looks for it.
pub const BUCKET: &str = "bench";
pub const PREFIX: &str = "in/";
/// The name in the server's certificate.
pub const HOST: &str = "ingest.example";

/// One of the servers that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Millrace,
    /// millrace with the SDK's PUT, `S3_CLIENT=sdk`; not among those that run unless asked for.
    MillraceSdk,
    /// millrace with `ACK=queued`, in lanes that are about the spool.
    MillraceQueued,
    /// millrace with `STORE=null:` and no batches: what the ingest lane measures.
    MillraceNull,
    /// millrace with `S3_SIGN_PAYLOAD=never`.
    MillraceUnsigned,
    /// millrace with `COMPRESSION=none`.
    MillracePlain,
    /// millrace with `CONNECTION_PLACEMENT=cpu`, in the sweep over cores.
    MillraceByCpu,
    /// millrace without TLS, in lanes that have it.
    MillraceHttp,
    /// The tokio variant as it is.
    TokioSdk,
    /// The tokio variant with millrace's own PUT.
    TokioLean,
    /// The bare loop, which discards payloads.
    Floor,
}

impl Variant {
    pub const ALL: [Variant; 11] = [
        Variant::Millrace,
        Variant::MillraceSdk,
        Variant::MillraceQueued,
        Variant::MillraceNull,
        Variant::MillraceUnsigned,
        Variant::MillracePlain,
        Variant::MillraceByCpu,
        Variant::MillraceHttp,
        Variant::TokioSdk,
        Variant::TokioLean,
        Variant::Floor,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Variant::Millrace => "millrace",
            Variant::MillraceSdk => "millrace-sdk",
            Variant::MillraceQueued => "millrace-queued",
            Variant::MillraceNull => "millrace-null",
            Variant::MillraceUnsigned => "millrace-unsigned",
            Variant::MillracePlain => "millrace-plain",
            Variant::MillraceByCpu => "millrace-by-cpu",
            Variant::MillraceHttp => "millrace-http",
            Variant::TokioSdk => "tokio-sdk",
            Variant::TokioLean => "tokio-lean",
            Variant::Floor => "floor",
        }
    }

    /// Whether `lane` shows a difference between it and the others.
    pub fn belongs_to(self, lane: &Lane) -> bool {
        self == Variant::Millrace || lane.rivals.contains(&self)
    }

    /// `lane` as it is for this one.
    pub fn lane(self, lane: &Lane) -> Lane {
        match self {
            Variant::MillraceNull => Lane { store: Sink::Null, batches: false, ..lane.clone() },
            Variant::MillraceHttp => Lane { wire: Wire::Plain, ..lane.clone() },
            _ => lane.clone(),
        }
    }

    /// Flags that make it what it is: stronger than a lane's settings.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Variant::Millrace | Variant::MillraceHttp | Variant::TokioSdk | Variant::Floor => &[],
            Variant::MillraceSdk => &["--s3-client", "sdk"],
            Variant::MillraceQueued => &["--ack", "queued"],
            Variant::MillraceNull => &["--store", "null:", "--object", "payload"],
            Variant::MillraceUnsigned => &["--s3-sign-payload", "never"],
            Variant::MillracePlain => &["--compression", "none"],
            Variant::MillraceByCpu => &["--connection-placement", "cpu"],
            Variant::TokioLean => &["--put", "lean"],
        }
    }

    pub fn is_tokio(self) -> bool {
        matches!(self, Variant::TokioSdk | Variant::TokioLean)
    }

    pub fn is_millrace(self) -> bool {
        !self.is_tokio() && self != Variant::Floor
    }

    pub fn named(name: &str) -> Option<Variant> {
        Variant::ALL.into_iter().find(|variant| variant.name() == name)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What to start.
pub struct Binaries {
    pub millrace: PathBuf,
    pub tokio: PathBuf,
    pub floor: PathBuf,
}

impl Binaries {
    fn command(&self, variant: Variant) -> Command {
        let binary = match variant {
            Variant::TokioSdk | Variant::TokioLean => &self.tokio,
            Variant::Floor => &self.floor,
            _ => &self.millrace,
        };
        let mut command = Command::new(binary);
        command.args(variant.flags());
        command
    }
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub ingest: SocketAddr,
    admin: SocketAddr,
    /// Its directory, and its log.
    directory: TempDir,
}

const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

impl Server {
    /// Starts `variant` for `lane`; ready when this returns.
    pub fn start(
        options: &Options,
        binaries: &Binaries,
        variant: Variant,
        lane: &Lane,
        sink: SocketAddr,
    ) -> Result<Server, String> {
        let text = |error: std::io::Error| format!("cannot start the server: {error}");
        let directory = TempDir::new().map_err(text)?;
        let (ingest, admin) = (free_port().map_err(text)?, free_port().map_err(text)?);
        let log = std::fs::File::create(directory.path().join("log")).map_err(text)?;
        let cores: Vec<String> = options.server_cores.iter().map(usize::to_string).collect();
        let store = match lane.store {
            Sink::Null => "null:".to_owned(),
            Sink::S3 { .. } => format!("s3://{BUCKET}/{PREFIX}"),
        };
        let listen = match lane.wire {
            Wire::Plain | Wire::H2 => ingest.to_string(),
            Wire::Tls => {
                write_certificate(&directory.path().join(CERTIFICATE))?;
                format!("https://{ingest}")
            }
        };
        let mut command = binaries.command(variant);
        command
            .env_clear()
            .env("LISTEN", listen)
            .envs(lane.wire.settings())
            .env("ADMIN_LISTEN", admin.to_string())
            .env("CORES", cores.join(","))
            .env("STORE", store)
            .env("LOG", "warn")
            .env("HOME", "/nonexistent")
            .env("AWS_ENDPOINT_URL", format!("http://{sink}"))
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(lane.settings.iter().copied())
            .envs(options.settings.iter().map(|(name, value)| (name, value)))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = spawn_pinned(command, options.server_cores.clone()).map_err(text)?;
        let mut server = Server { child, ingest, admin, directory };
        server.wait_ready()?;
        Ok(server)
    }

    fn wait_ready(&mut self) -> Result<(), String> {
        let started = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the server ended at its start, {status}:\n{}", self.log()));
            }
            if self.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return Ok(());
            }
            if started.elapsed() > START_TIMEOUT {
                return Err(format!("the server did not get ready:\n{}", self.log()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, and the end: with status 0, or an error.
    pub fn stop(mut self) -> Result<(), String> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(|error| format!("the server cannot be stopped: {error}"))?;
        let asked = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(format!("the server ended with {status}:\n{}", self.log()));
                }
                _ if asked.elapsed() > STOP_TIMEOUT => {
                    return Err(format!("the server does not stop:\n{}", self.log()));
                }
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// The sum over all cores of the counter `name`.
    pub fn counter(&self, name: &str) -> Result<u64, String> {
        let page = self.metrics()?;
        let values = page.lines().filter_map(|line| {
            let labels_and_value = line.strip_prefix(name)?;
            if !labels_and_value.starts_with(['{', ' ']) {
                return None;
            }
            labels_and_value.rsplit(' ').next()?.parse::<u64>().ok()
        });
        Ok(values.sum())
    }

    /// What `/metrics` says now.
    pub fn metrics(&self) -> Result<String, String> {
        self.get("/metrics").map_err(|error| format!("no metrics: {error}"))
    }

    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Where its spool is, too.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// User and system time so far.
    pub fn cpu_time(&self) -> Duration {
        cpu_time(&self.child.id().to_string())
    }

    /// Resident memory now.
    pub fn resident_bytes(&self) -> u64 {
        self.status_kib("VmRSS:") * 1024
    }

    pub fn resident_bytes_max(&self) -> u64 {
        self.status_kib("VmHWM:") * 1024
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.directory.path().join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}

/// A child inherits the affinity of the thread that starts it, so that is done by a thread of its
/// own.
fn spawn_pinned(mut command: Command, cores: Vec<usize>) -> std::io::Result<Child> {
    let spawner = std::thread::spawn(move || {
        client::pin(&cores)?;
        command.spawn()
    });
    spawner.join().map_err(|_| std::io::Error::other("the spawning thread panicked"))?
}

/// The file with the certificate and its key, in the server's directory.
const CERTIFICATE: &str = "server.pem";

impl Wire {
    /// What a server needs for it beside its address.
    fn settings(self) -> Option<(&'static str, &'static str)> {
        (self == Wire::Tls).then_some(("TLS_CERT", CERTIFICATE))
    }
}

/// Writes a certificate with an ECDSA key on P-256, as most of those that are renewed by themselves.
fn write_certificate(path: &Path) -> Result<(), String> {
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()])
        .map_err(|error| format!("no certificate: {error}"))?;
    let pem = made.cert.pem() + &made.signing_key.serialize_pem();
    std::fs::write(path, pem).map_err(|error| format!("{}: {error}", path.display()))
}

fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

/// User and system time of the process `pid`, or `self`, from `/proc/<pid>/stat`.
pub fn cpu_time(pid: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name comes second, in parentheses, and may hold anything; utime and stime are
    // fields 14 and 15.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
