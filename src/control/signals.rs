//! Signals and their effects on a server. `main` calls `install` first, before anything that can
//! take long.
//!
//! | signal | does |
//! |---|---|
//! | SIGTERM, SIGINT, SIGQUIT | stop; a second one skips to the last step |
//! | SIGHUP | reload |
//! | SIGTSTP, SIGSTOP, SIGCONT | pause and resume, as usual |
//! | SIGKILL, and those that report a bug (SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP) | end the process |
//! | all others | ignored |
//!
//! A separate thread waits for signals, so that a stop works even if the start is stuck in a disk,
//! name resolution or a store. Until [`Signals::hand_over`] nothing was acknowledged, and the
//! thread itself ends the process; after that it notifies the control executor. It never waits for
//! anything but signals.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::pipe;

use crate::control::Exit;
use crate::control::start_report::KeptFindings;
use crate::log;
use crate::rt;

const STOPS: [i32; 3] = [SIGTERM, SIGINT, SIGQUIT];

/// Signals that keep the kernel's disposition, besides [`STOPS`] and SIGHUP: those that cannot be
/// changed; those that are harmless (SIGCHLD, SIGCONT, SIGWINCH, and SIGURG, for which `rt` has a
/// handler); SIGTSTP, with which an operator pauses a job; and those that report a bug, after which
/// nothing can be trusted.
const NOT_CHANGED: [i32; 14] = [
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGKILL,
    libc::SIGSEGV,
    libc::SIGSTOP,
    libc::SIGSYS,
    libc::SIGTRAP,
    libc::SIGTSTP,
    libc::SIGURG,
    libc::SIGWINCH,
];

/// The kernel's `_NSIG`.
const SIGNALS: i32 = 64;

/// The signals of a server that has installed its handlers.
pub struct Signals {
    shared: Arc<SharedSignals>,
    /// Receives a byte whenever [`Signals::stops`] has grown.
    pub notices: UnixStream,
}

struct SharedSignals {
    phase: AtomicU8,
    stops: AtomicU32,
    /// What the start would have shown when it serves.
    findings: OnceLock<KeptFindings>,
}

/// Phase: nothing is acknowledged yet.
const STARTING: u8 = 0;
/// Phase: control handles stops.
const SERVING: u8 = 1;
/// Phase: the thread is ending the process.
const ENDING: u8 = 2;

/// Sets the signals of a command that ends by itself. They end it as usual, but a write beyond the
/// file size limit is an error, and the preflight reports a soft limit on CPU time.
pub fn for_command() {
    ignore(libc::SIGXFSZ);
    ignore(libc::SIGXCPU);
}

/// Has SIGINT and SIGTERM set the flag that is returned, for a command that then ends with what it
/// has. A second one ends the process.
///
/// # Errors
/// The kernel refuses the handlers.
pub fn stop_flag() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // First, so that it sees the flag as it was before this signal.
        flag::register_conditional_default(signal, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// Installs the handlers of a server, even if its parent had ignored or blocked signals (`nohup`, a
/// shell's background job). The receiver gets SIGHUPs. At most one is pending, because any reload
/// reads the newest files.
///
/// # Errors
/// No descriptors or no thread are available.
pub fn install() -> io::Result<(Signals, Receiver<()>)> {
    let (stop, stop_write) = UnixStream::pair()?;
    let (reload, reload_write) = UnixStream::pair()?;
    for signal in STOPS {
        pipe::register(signal, stop_write.try_clone()?)?;
    }
    pipe::register(SIGHUP, reload_write)?;
    for signal in 1..=SIGNALS {
        if !STOPS.contains(&signal) && signal != SIGHUP && !NOT_CHANGED.contains(&signal) {
            ignore(signal);
        }
    }
    unblock_all();
    let shared = Arc::new(SharedSignals {
        phase: AtomicU8::new(STARTING),
        stops: AtomicU32::new(0),
        findings: OnceLock::new(),
    });
    let (notices, notify) = UnixStream::pair()?;
    notify.set_nonblocking(true)?;
    let (requests, reloads) = sync_channel(1);
    let watch = Watch { stop, reload, shared: shared.clone(), notify, requests, first_stop: None };
    std::thread::Builder::new().name("millrace-signals".to_owned()).spawn(|| watch.run())?;
    Ok((Signals { shared, notices }, reloads))
}

impl Signals {
    /// From now on the caller handles stops. `false` if one came before; then the process is
    /// ending.
    pub fn hand_over(&self) -> bool {
        self.shared.phase.compare_exchange(STARTING, SERVING, SeqCst, SeqCst).is_ok()
    }

    /// A stop that comes before the server serves shows these.
    pub fn show_at_stop(&self, findings: KeptFindings) {
        let _only_once = self.shared.findings.set(findings);
    }

    /// The number of signals to stop so far.
    pub fn stops(&self) -> u32 {
        self.shared.stops.load(SeqCst)
    }
}

struct Watch {
    /// Receives a byte for each signal. If its buffer is full, hundreds are unread already, so none
    /// is missed.
    stop: UnixStream,
    reload: UnixStream,
    shared: Arc<SharedSignals>,
    notify: UnixStream,
    requests: SyncSender<()>,
    first_stop: Option<Instant>,
}

/// Signals to stop within this time of the first count as the same stop. For example, timeout(1)
/// signals its child and then the child's process group, and on a busy machine may not run for a
/// while between the two. Nobody presses a key twice as fast.
const SAME_STOP: Duration = Duration::from_millis(50);

impl Watch {
    fn run(mut self) {
        let mut bytes = [0; 64];
        loop {
            let input = PollFlags::IN;
            let mut ready = [PollFd::new(&self.stop, input), PollFd::new(&self.reload, input)];
            if poll(&mut ready, None).is_err() {
                continue;
            }
            let [stop, reload] = ready.map(|fd| fd.revents().contains(input));
            if stop && self.stop.read(&mut bytes).is_ok() {
                self.stop();
            }
            if reload && self.reload.read(&mut bytes).is_ok() {
                let _or_one_is_pending = self.requests.try_send(());
            }
        }
    }

    fn stop(&mut self) {
        if self.first_stop.is_some_and(|first| rt::since(first) < SAME_STOP) {
            return;
        }
        self.first_stop.get_or_insert_with(rt::now);
        // Only the first two matter; the count must not overflow.
        let stops = self.shared.stops.load(SeqCst).saturating_add(1);
        self.shared.stops.store(stops, SeqCst);
        match self.shared.phase.compare_exchange(STARTING, ENDING, SeqCst, SeqCst) {
            Ok(_) => {
                self.shared.findings.get().inspect(|findings| findings.show());
                log::log_last_line("stopped before it served");
                std::process::exit(Exit::Clean as i32);
            }
            // With a full buffer, control has a notice to read already.
            Err(_) => drop(self.notify.write(b"!")),
        }
    }
}

/// The kernel's structure for `rt_sigaction`. Architectures without `restorer` read a shorter part,
/// which is all zeros.
#[repr(C)]
struct KernelAction {
    handler: libc::sighandler_t,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

/// Ignores `signal` by the system call, because the C library refuses to touch the two that it uses
/// itself (32 and 33). They would end the process if another process sent them; the C library sets
/// its own handler before it uses them. A server starts no children that could inherit this.
#[expect(unsafe_code, reason = "no library ignores signals, let alone those")]
fn ignore(signal: i32) {
    let action = KernelAction { handler: libc::SIG_IGN, flags: 0, restorer: 0, mask: 0 };
    let none = std::ptr::null_mut::<KernelAction>();
    // SAFETY: `action` lives through the call and is at least as long as the kernel's structure,
    // nothing is written through a null pointer, and ignoring a signal runs no code.
    let failed = unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, none, size_of::<u64>())
    };
    debug_assert_eq!(failed, 0, "signal {signal}: {}", io::Error::last_os_error());
}

/// Unblocks every signal for this thread and those that it creates, whatever mask the process was
/// started with.
#[expect(unsafe_code, reason = "no library has it")]
fn unblock_all() {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set before `pthread_sigmask` reads it, and the old set
    // is not asked for.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}
