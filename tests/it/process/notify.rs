//! Goal: a service manager that waits for `NOTIFY_SOCKET` (systemd's `Type=notify`) learns when the
//! server accepts, reloads and stops, each once and in time, and a stuck server by its silence.
//!
//! Method: the test is the service manager.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::front::free_address;
use crate::support::{Client, PATIENCE, Server, command, kill_command, signal};

/// The socket of a service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn bind(address: &SocketAddr) -> Manager {
        let socket = UnixDatagram::bind_addr(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager(socket)
    }

    fn at(path: &Path) -> Manager {
        Manager::bind(&SocketAddr::from_pathname(path).unwrap())
    }

    /// The next message, a pair a line.
    fn next(&self) -> Vec<(String, String)> {
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes).expect("a message");
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        let pair = |line: &str| line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        text.lines().map(|line| pair(line).unwrap_or_else(|| panic!("{line}"))).collect()
    }

    /// Whether nothing more has come.
    fn is_silent(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let got = self.0.recv(&mut [0]);
        self.0.set_nonblocking(false).unwrap();
        got.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

fn value<'a>(message: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut found = message.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let value = found.next();
    assert_eq!(found.next(), None, "{name} twice: {message:?}");
    value
}

/// Microseconds of `CLOCK_MONOTONIC`.
fn monotonic() -> u128 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which `time` is.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_micros()
}

fn start(name: &str, settings: &[(&str, &str)], more: &[(&str, &str)]) -> Server {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Server::start_by(dir, settings, |command| {
        command.env("NOTIFY_SOCKET", name).envs(more.iter().copied());
    })
}

#[test]
fn a_manager_learns_of_start_reload_and_stop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let abstract_name = format!("millrace-it-{}", std::process::id());
    let by_name = SocketAddr::from_abstract_name(abstract_name.as_bytes()).unwrap();
    for (name, manager) in [
        (path.to_str().unwrap().to_owned(), Manager::at(&path)),
        (format!("@{abstract_name}"), Manager::bind(&by_name)),
    ] {
        let server = start(&name, &[("DRAIN_TIMEOUT", "7s")], &[]);
        let ready = manager.next();
        assert_eq!(value(&ready, "READY"), Some("1"), "{ready:?}");
        assert_eq!(server.post(r#"{"data":[1]}"#).status, 200);

        for _ in 0..2 {
            let before = monotonic();
            server.signal("HUP");
            let reloading = manager.next();
            assert_eq!(value(&reloading, "RELOADING"), Some("1"), "{reloading:?}");
            assert_eq!(value(&reloading, "READY"), None, "{reloading:?}");
            let at: u128 = value(&reloading, "MONOTONIC_USEC").unwrap().parse().unwrap();
            assert!((before..=monotonic()).contains(&at), "{at}");
            assert_eq!(value(&manager.next(), "READY"), Some("1"));
        }
        assert!(manager.is_silent());

        server.signal("TERM");
        let stopping = manager.next();
        assert_eq!(value(&stopping, "STOPPING"), Some("1"), "{stopping:?}");
        // More than DRAIN_TIMEOUT, whatever TimeoutStopSec is.
        let longest: u64 = value(&stopping, "EXTEND_TIMEOUT_USEC").unwrap().parse().unwrap();
        assert!((8_000_000..=20_000_000).contains(&longest), "{longest}");
        let stopped = server.wait_stopped();
        assert_eq!(stopped.status, 0, "{}", stopped.log_text());
        assert!(manager.is_silent());
        assert!(!stopped.log_text().contains("service manager"), "{}", stopped.log_text());
    }
}

/// A request can be sent as soon as the message is there: it is not sent before the cores accept.
#[test]
fn ready_means_that_requests_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::at(&dir.path().join("notify"));
    let free = free_address();
    let listen = free.to_string();
    let settings = [("LISTEN", listen.as_str()), ("ADMIN_LISTEN", "off"), ("CORES", "0")];
    let mut command = command(dir.path(), &[], &settings);
    command.env("NOTIFY_SOCKET", dir.path().join("notify")).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    assert_eq!(value(&manager.next(), "READY"), Some("1"));
    let answer = Client::try_connect(free).map(|mut client| client.post(r#"{"data":[1]}"#).status);
    kill_command().arg(child.id().to_string()).status().unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(answer, Some(200));
}

/// A start that waits for an address asks for the time that this may take. What a reload says
/// meanwhile would be taken for the end of the start.
#[test]
fn a_start_that_waits_asks_for_its_time_and_is_ready_once() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::at(&dir.path().join("notify"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let settings =
        [("LISTEN", listen.as_str()), ("ADMIN_LISTEN", "off"), ("CORES", "0"), ("BIND_WAIT", "1m")];
    let mut command = command(dir.path(), &[], &settings);
    command.env("NOTIFY_SOCKET", dir.path().join("notify")).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let waits = manager.next();
    let longest: u64 = value(&waits, "EXTEND_TIMEOUT_USEC").unwrap().parse().unwrap();
    assert!((90_000_000..=120_000_000).contains(&longest), "{longest}");
    assert!(value(&waits, "STATUS").unwrap().contains(&listen), "{waits:?}");
    assert_eq!((value(&waits, "READY"), value(&waits, "RELOADING")), (None, None));
    signal(&child, "HUP");
    drop(taken);
    let ready = manager.next();
    assert_eq!((value(&ready, "READY"), value(&ready, "RELOADING")), (Some("1"), None));
    kill_command().arg(child.id().to_string()).status().unwrap();
    assert!(child.wait().unwrap().success());
}

/// Bad settings change nothing, and the reload has ended all the same.
#[test]
fn a_reload_that_is_refused_ends_too() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let path = dir.path().join("notify");
    let manager = Manager::at(&path);
    std::fs::write(dir.path().join("m.toml"), "log = \"info\"\n").unwrap();
    let settings = [("MILLRACE_CONFIG", "m.toml")];
    let server = Server::start_by(dir.clone(), &settings, |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    assert_eq!(value(&manager.next(), "READY"), Some("1"));
    std::fs::write(dir.path().join("m.toml"), "logg = 1\n").unwrap();
    server.signal("HUP");
    assert_eq!(value(&manager.next(), "RELOADING"), Some("1"));
    assert_eq!(value(&manager.next(), "READY"), Some("1"));
    server.wait_logged("every setting stays as it is");
    assert_eq!(server.stop().status, 0);
}

#[test]
fn a_watchdog_is_fed_while_every_core_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = Manager::at(&path);
    let began = Instant::now();
    let server = start(path.to_str().unwrap(), &[], &[("WATCHDOG_USEC", "3000000")]);
    assert_eq!(value(&manager.next(), "READY"), Some("1"));
    for _ in 0..4 {
        assert_eq!(value(&manager.next(), "WATCHDOG"), Some("1"));
    }
    // The first at once, the others every 1.5 s.
    assert!((Duration::from_secs(4)..Duration::from_secs(25)).contains(&began.elapsed()));
    assert_eq!(server.stop().status, 0);
}

/// What cannot be told is logged, and the server serves.
#[test]
fn a_socket_that_cannot_be_used_is_a_warning() {
    for (name, says) in [
        ("nowhere", "NOTIFY_SOCKET nowhere cannot be used"),
        ("/nowhere/at/all", "could not be told READY=1"),
    ] {
        let server = start(name, &[], &[]);
        server.wait_logged(says);
        assert_eq!(server.post(r#"{"data":[1]}"#).status, 200);
        assert_eq!(server.stop().status, 0);
    }
}
