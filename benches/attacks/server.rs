//! The server under attack: a process of its own on a core of its own, and what the kernel says
//! about it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use tempfile::TempDir;

use crate::options::Options;
use crate::table::{Attack, GOOD_TOKEN};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(40);

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub ingest: SocketAddr,
    /// Where the attack goes.
    pub attacked: SocketAddr,
    admin: SocketAddr,
    directory: TempDir,
}

impl Server {
    /// Starts it with the settings of `attack`; ready when this returns.
    ///
    /// # Errors
    /// Why it does not start, with the end of its log.
    pub fn start(options: &Options, attack: &Attack) -> Result<Server, String> {
        let text = |error: std::io::Error| format!("cannot start the server: {error}");
        let directory = TempDir::new().map_err(text)?;
        let (ingest, admin) = (free_port().map_err(text)?, free_port().map_err(text)?);
        let log = std::fs::File::create(directory.path().join("log")).map_err(text)?;
        let mut command = Command::new(&options.millrace);
        command
            .env_clear()
            .env("LISTEN", ingest.to_string())
            .env("ADMIN_LISTEN", admin.to_string())
            .env("CORES", options.server_core.to_string())
            .env("STORE", "null:")
            .env("LOG", "warn")
            .envs(attack.settings.iter().copied())
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut attacked = ingest;
        if attack.tls {
            attacked = free_port().map_err(text)?;
            std::fs::write(directory.path().join("cert.pem"), certificate()?).map_err(text)?;
            command
                .env("LISTEN", format!("{ingest},https://{attacked}"))
                .env("TLS_CERT", "cert.pem");
        }
        if attack.tokens > 0 {
            let mut tokens = format!("{GOOD_TOKEN}\n");
            for n in 1..attack.tokens {
                tokens.push_str(&format!("token-{n:032x}\n"));
            }
            let file = directory.path().join("tokens");
            std::fs::write(&file, tokens).map_err(text)?;
            command.env("TOKENS_FILE", file);
        }
        let child = spawn_pinned(command, options.server_core).map_err(text)?;
        let mut server = Server { child, ingest, attacked, admin, directory };
        server.wait_ready()?;
        Ok(server)
    }

    fn wait_ready(&mut self) -> Result<(), String> {
        let started = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the server ended at its start, {status}:\n{}", self.log()));
            }
            if self.is_ready() {
                return Ok(());
            }
            if started.elapsed() > START_TIMEOUT {
                return Err(format!("the server did not get ready:\n{}", self.log()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_ready(&self) -> bool {
        let ask = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect(self.admin)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.starts_with("HTTP/1.1 200"))
        };
        ask().unwrap_or(false)
    }

    /// SIGTERM, and the end.
    ///
    /// # Errors
    /// If it had ended before, does not end, or ends with a status that is not 0.
    pub fn stop(&mut self) -> Result<(), String> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Err(format!("the server ended under attack, {status}:\n{}", self.log()));
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM)
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

    /// User and system time so far, in steps of 10 ms.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.unwrap_or_default();
        // The command's name comes second, in parentheses, and may hold anything; utime and stime
        // are fields 14 and 15.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = after_name.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// The most memory it had.
    pub fn resident_bytes_max(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
        kib.unwrap_or(0_u64) * 1024
    }

    /// The last lines of its log.
    fn log(&self) -> String {
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
fn spawn_pinned(mut command: Command, core: usize) -> std::io::Result<Child> {
    let spawner = std::thread::spawn(move || {
        pin(core)?;
        command.spawn()
    });
    spawner.join().map_err(|_| std::io::Error::other("the spawning thread panicked"))?
}

/// Keeps the calling thread, and those it starts, on `core`.
///
/// # Errors
/// If the kernel does not allow it.
pub fn pin(core: usize) -> std::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// A certificate that vouches for itself, and its key (ECDSA P-256), in PEM.
fn certificate() -> Result<String, String> {
    let made = rcgen::generate_simple_self_signed(["ingest.test".to_owned()]);
    let made = made.map_err(|error| format!("no certificate: {error}"))?;
    Ok(made.cert.pem() + &made.signing_key.serialize_pem())
}

fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}
