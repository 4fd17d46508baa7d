//! Tells the service manager how far the server is (`Type=notify` of systemd, see sd_notify(3)):
//! datagrams to the socket that `NOTIFY_SOCKET` names. Without that variable nothing is sent.
//!
//! | message | when |
//! |---|---|
//! | `EXTEND_TIMEOUT_USEC=` | the start waits for an address (`BIND_WAIT`), or reads what dead processes have left in the spool and gets on with it |
//! | `READY=1` | every core accepts; again when a reload that was told has ended, whatever came of it |
//! | `RELOADING=1`, `MONOTONIC_USEC=` | a reload after SIGHUP begins, between `READY=1` and `STOPPING=1`: a `READY=1` at its end would be taken for that of the start, and take back that of the stop |
//! | `STOPPING=1`, `EXTEND_TIMEOUT_USEC=` | the stop begins; it may take `DRAIN_TIMEOUT`, whatever the unit says |
//! | `WATCHDOG=1` | twice in `WATCHDOG_USEC`, if it is set, while control and every core run |

#![expect(clippy::disallowed_types, reason = "a few messages in the life of a process")]

use std::cell::Cell;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::heartbeats::Heartbeats;
use crate::deadline::strictly_within;
use crate::rt::{self, sleep};

/// Longest wait for a manager that does not read its socket.
const SEND_MAX: Duration = Duration::from_secs(1);
/// Time beyond `DRAIN_TIMEOUT` before the manager may kill the process.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// What the rest of a start may take after a wait that was told: the start of the cores (30 s), and
/// as much again.
const START_MARGIN: Duration = Duration::from_secs(60);
/// How often work of the start is looked at that takes as long as there is to do. Less than any
/// `TimeoutStartSec` that somebody would set.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The service manager, if there is one that wants to be told.
#[derive(Clone, Default)]
pub struct ServiceManager(Option<Arc<NotifySocket>>);

struct NotifySocket {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Held while a message is sent: the reload thread and control keep their order.
    told: Mutex<ToldPhase>,
}

/// What the manager was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToldPhase {
    Starting,
    Serving,
    Stopping,
}

/// A reload. When this is dropped, the manager learns that it has ended, if it knows that it has
/// begun.
pub struct ReloadNotice {
    manager: ServiceManager,
    was_told: bool,
}

impl Drop for ReloadNotice {
    fn drop(&mut self) {
        if self.was_told {
            self.manager.tell(|told| *told == ToldPhase::Serving, ready_text);
        }
    }
}

fn ready_text() -> String {
    "READY=1\nSTATUS=serving".to_owned()
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

    /// The start waits for up to `longest`, and `status` says for what.
    pub fn waits(&self, status: &str, longest: Duration) {
        let longest = (longest + START_MARGIN).as_micros();
        let text = || format!("EXTEND_TIMEOUT_USEC={longest}\nSTATUS={status}");
        self.tell(|told| *told == ToldPhase::Starting, text);
    }

    /// Does `work` of the start, which takes as long as there is to do. While `done` grows, the
    /// manager is asked for more time; work that hangs has what the manager's own limit leaves it.
    pub async fn works<T>(
        &self,
        status: &str,
        done: impl Fn() -> u64,
        work: impl Future<Output = T>,
    ) -> T {
        self.works_every(LOOK_EVERY, status, done, work).await
    }

    async fn works_every<T>(
        &self,
        every: Duration,
        status: &str,
        done: impl Fn() -> u64,
        work: impl Future<Output = T>,
    ) -> T {
        let (mut work, mut before) = (pin!(work), done());
        loop {
            let next = async { Some(work.as_mut().await) };
            if let Some(worked) = strictly_within(every, next, || None).await {
                return worked;
            }
            let now = done();
            if now != std::mem::replace(&mut before, now) {
                self.waits(status, every);
            }
        }
    }

    /// Every core accepts.
    pub fn ready(&self) {
        let begins = |told: &mut ToldPhase| {
            let is_starting = *told == ToldPhase::Starting;
            if is_starting {
                *told = ToldPhase::Serving;
            }
            is_starting
        };
        self.tell(begins, ready_text);
    }

    /// A reload begins, and ends when the result is dropped. One that is in progress when the start
    /// or the stop is told is not told: it is part of that.
    pub fn reloads(&self) -> ReloadNotice {
        let text = || format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic().as_micros());
        let was_told = self.tell(|told| *told == ToldPhase::Serving, text);
        ReloadNotice { manager: self.clone(), was_told }
    }

    /// The stop begins, and takes up to `longest`.
    pub fn stopping(&self, longest: Duration) {
        let longest = (longest + STOP_MARGIN).as_micros();
        let text = || format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={longest}\nSTATUS=stopping");
        let stops = |told: &mut ToldPhase| {
            *told = ToldPhase::Stopping;
            true
        };
        self.tell(stops, text);
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
                    manager.tell(|_| true, || "WATCHDOG=1".to_owned());
                }
                sleep(limit / 2).await;
            }
        })
        .detach();
    }

    /// Sends what `text` says if `may` allows it. Returns whether it did.
    fn tell(
        &self,
        may: impl FnOnce(&mut ToldPhase) -> bool,
        text: impl FnOnce() -> String,
    ) -> bool {
        let Some(socket) = &self.0 else { return false };
        let mut told = socket.told.lock().unwrap_or_else(PoisonError::into_inner);
        let may = may(&mut told);
        if may {
            socket.send(&text());
        }
        may
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
        Ok(NotifySocket { socket, address, told: Mutex::new(ToldPhase::Starting) })
    }

    fn send(&self, message: &str) {
        if let Err(error) = self.socket.send_to_addr(message.as_bytes(), &self.address) {
            let what = message.split('\n').next().unwrap_or_default();
            tracing::warn!("the service manager could not be told {what}: {error}");
        }
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

    /// A manager's socket, and who tells it.
    fn told_to(dir: &std::path::Path) -> (UnixDatagram, ServiceManager) {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        (socket, ServiceManager(Some(Arc::new(NotifySocket::open(path.as_os_str()).unwrap()))))
    }

    /// The first line of each message that has come.
    fn messages(socket: &UnixDatagram) -> Vec<String> {
        let mut bytes = [0; 256];
        let next = || {
            let length = socket.recv(&mut bytes).ok()?;
            let text = str::from_utf8(&bytes[..length]).unwrap();
            Some(text.lines().next().unwrap().to_owned())
        };
        std::iter::from_fn(next).collect()
    }

    /// Rows: what happens, in this order; what the manager is told.
    #[test]
    fn a_reload_is_told_between_the_start_and_the_stop() {
        const READY: &str = "READY=1";
        const RELOADING: &str = "RELOADING=1";
        const STOPPING: &str = "STOPPING=1";
        for (events, expected) in [
            ("ready", &[READY][..]),
            ("ready begin end", &[READY, RELOADING, READY]),
            ("ready begin end begin end", &[READY, RELOADING, READY, RELOADING, READY]),
            ("begin end ready", &[READY]),
            ("begin ready end", &[READY]),
            ("ready begin stop end", &[READY, RELOADING, STOPPING]),
            ("ready stop begin end", &[READY, STOPPING]),
            ("begin stop end", &[STOPPING]),
            ("stop ready", &[STOPPING]),
            ("ready wait stop wait", &[READY, STOPPING]),
            ("wait ready", &["EXTEND_TIMEOUT_USEC=65000000", READY]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (socket, manager) = told_to(dir.path());
            let mut reload = None;
            for event in events.split(' ') {
                match event {
                    "ready" => manager.ready(),
                    "begin" => reload = Some(manager.reloads()),
                    "end" => drop(reload.take()),
                    "stop" => manager.stopping(Duration::from_secs(1)),
                    "wait" => manager.waits("waiting", Duration::from_secs(5)),
                    _ => unreachable!("{event}"),
                }
            }
            assert_eq!(messages(&socket), expected, "{events}");
        }
    }

    /// Rows: how far the work gets at each step; whether more time is asked for.
    #[test]
    fn work_that_gets_on_asks_for_time_and_work_that_hangs_does_not() {
        let every = Duration::from_millis(10);
        for (step, asks) in [(1, true), (0, false)] {
            let dir = tempfile::tempdir().unwrap();
            let (socket, manager) = told_to(dir.path());
            rt::run_test(async {
                let done = Cell::new(7);
                let work = async {
                    for _ in 0..5 {
                        sleep(3 * every).await;
                        done.set(done.get() + step);
                    }
                    "worked"
                };
                let worked = manager.works_every(every, "working", || done.get(), work).await;
                assert_eq!(worked, "worked");
            });
            assert_eq!(!messages(&socket).is_empty(), asks, "{step}");
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
