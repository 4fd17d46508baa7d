//! Tells the service manager how far the server is (`Type=notify` of systemd, see sd_notify(3)):
//! datagrams to the socket that `NOTIFY_SOCKET` names. Without that variable nothing is sent.
//!
//! | message | when |
//! |---|---|
//! | `READY=1` | every core accepts; again when a reload has ended, whatever came of it |
//! | `RELOADING=1`, `MONOTONIC_USEC=` | SIGHUP |
//! | `STOPPING=1`, `EXTEND_TIMEOUT_USEC=` | the stop begins; it may take `DRAIN_TIMEOUT`, whatever the unit says |
//! | `WATCHDOG=1` | twice in `WATCHDOG_USEC`, if it is set, while control and every core run |

use std::cell::Cell;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::heartbeats::Heartbeats;
use crate::rt::{self, sleep};

/// Longest wait for a manager that does not read its socket.
const SEND_MAX: Duration = Duration::from_secs(1);
/// Time beyond `DRAIN_TIMEOUT` before the manager may kill the process.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// The service manager, if there is one that wants to be told.
#[derive(Clone, Default)]
pub struct ServiceManager(Option<Arc<NotifySocket>>);

struct NotifySocket {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl ServiceManager {
    /// The one that `NOTIFY_SOCKET` names. A name that cannot be used is logged, and nobody is told.
    pub fn from_environment() -> ServiceManager {
        let Some(name) = env::var_os("NOTIFY_SOCKET") else { return ServiceManager(None) };
        match NotifySocket::open(&name) {
            Ok(socket) => ServiceManager(Some(Arc::new(socket))),
            Err(error) => {
                tracing::warn!(
                    "NOTIFY_SOCKET {} cannot be used, so the service manager learns nothing: {error}",
                    name.display()
                );
                ServiceManager(None)
            }
        }
    }

    /// The server accepts, or the reload has ended.
    pub fn ready(&self) {
        self.send("READY=1\nSTATUS=serving");
    }

    /// A reload begins. [`ServiceManager::ready`] must follow, or the manager waits for it.
    pub fn reloading(&self) {
        if self.0.is_some() {
            self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic().as_micros()));
        }
    }

    /// The stop begins, and takes up to `longest`.
    pub fn stopping(&self, longest: Duration) {
        let longest = (longest + STOP_MARGIN).as_micros();
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={longest}\nSTATUS=stopping"));
    }

    /// Sends `WATCHDOG=1` as often as `WATCHDOG_USEC` asks for it, if it is for this process, until
    /// a core has not run for that long. A core that is stopping counts as running: the manager has
    /// another limit for that.
    pub(super) fn watch(&self, heartbeats: Arc<Heartbeats>, stopping: Rc<Cell<bool>>) {
        let usec = env::var("WATCHDOG_USEC").ok();
        let pid = env::var("WATCHDOG_PID").ok();
        let (Some(_), Some(limit)) = (&self.0, watchdog(usec.as_deref(), pid.as_deref())) else {
            return;
        };
        let manager = self.clone();
        rt::spawn(async move {
            loop {
                if heartbeats.all_within(limit) || stopping.get() {
                    manager.send("WATCHDOG=1");
                }
                sleep(limit / 2).await;
            }
        })
        .detach();
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.0 else { return };
        if let Err(error) = socket.socket.send_to_addr(message.as_bytes(), &socket.address) {
            let what = message.split('\n').next().unwrap_or_default();
            tracing::warn!("the service manager could not be told {what}: {error}");
        }
    }
}

impl NotifySocket {
    fn open(name: &OsStr) -> io::Result<NotifySocket> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => {
                let text = "it is neither an absolute path nor an abstract name (@…)";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_MAX))?;
        Ok(NotifySocket { socket, address })
    }
}

/// What `WATCHDOG_USEC` and `WATCHDOG_PID` ask of this process.
fn watchdog(usec: Option<&str>, pid: Option<&str>) -> Option<Duration> {
    let is_other = pid.is_some_and(|pid| pid.parse() != Ok(std::process::id()));
    let usec = usec?.parse().ok().filter(|usec| *usec > 0 && !is_other)?;
    Some(Duration::from_micros(usec))
}

/// The time of `CLOCK_MONOTONIC`, which the manager compares with its own.
#[expect(unsafe_code, reason = "`Instant` does not tell its number")]
fn monotonic() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which `time` is.
    let outcome = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    debug_assert_eq!(outcome, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_for_the_process_that_it_names() {
        let own = std::process::id().to_string();
        let second = Some(Duration::from_secs(1));
        for (usec, pid, expected) in [
            (None, None, None),
            (None, Some(own.as_str()), None),
            (Some("1000000"), None, second),
            (Some("1000000"), Some(own.as_str()), second),
            (Some("1000000"), Some("1"), None),
            (Some("1000000"), Some("x"), None),
            (Some("0"), None, None),
            (Some("-1"), None, None),
            (Some(""), None, None),
        ] {
            assert_eq!(watchdog(usec, pid), expected, "{usec:?} {pid:?}");
        }
    }

    #[test]
    fn a_socket_is_a_path_or_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let abstract_name = format!("@millrace-test-{}", std::process::id());
        for name in [path.to_str().unwrap(), &abstract_name] {
            let address = NotifySocket::open(name.as_ref()).unwrap().address;
            let server = UnixDatagram::bind_addr(&address).unwrap();
            let manager =
                ServiceManager(Some(Arc::new(NotifySocket::open(name.as_ref()).unwrap())));
            manager.ready();
            let mut bytes = [0; 64];
            let length = server.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"READY=1\nSTATUS=serving", "{name}");
        }
        for name in ["", "relative", "vsock:2:1234"] {
            assert!(NotifySocket::open(name.as_ref()).is_err(), "{name}");
        }
        // Nobody listens: no panic, and no wait.
        ServiceManager(Some(Arc::new(NotifySocket::open("/nowhere/at/all".as_ref()).unwrap())))
            .ready();
    }
}
