//! What signals do to a server. `install` comes first in `main`, before anything that can take long.
//!
//! | signal | does |
//! |---|---|
//! | SIGTERM, SIGINT, SIGQUIT | stop; a second one skips to the last step |
//! | SIGHUP | reload |
//! | SIGTSTP, SIGSTOP, SIGCONT | pause and resume, as ever |
//! | SIGKILL, and those that report a bug (SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP) | end the process |
//! | all others | ignored |
//!
//! A thread of its own waits for them, so that a stop during the start does not depend on what the start is stuck in:
//! a disk, name resolution, a store. Until [`Signals::hand_over`] nothing was acknowledged, and the thread ends the process
//! by itself; from then on it tells the control executor. It never waits for anything but signals.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::control::Exit;
use crate::log;
use crate::rt;

const STOPS: [i32; 3] = [SIGTERM, SIGINT, SIGQUIT];

/// Signals that keep the kernel's disposition, besides [`STOPS`] and SIGHUP: those that cannot be changed, that are harmless
/// (SIGCHLD, SIGCONT, SIGWINCH, and SIGURG, for which `deadline` has a handler), that an operator pauses a job with (SIGTSTP), and that report a bug, after which
/// nothing can be trusted.
const LEFT_ALONE: [i32; 14] = [
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
    /// A byte whenever [`Signals::stops`] has grown.
    pub bell: UnixStream,
}

struct SharedSignals {
    phase: AtomicU8,
    stops: AtomicU32,
}

/// Phases: nothing is acknowledged yet; control has taken over; the thread is ending the process.
const STARTING: u8 = 0;
const SERVING: u8 = 1;
const ENDING: u8 = 2;

/// Of a command that ends by itself: signals end it as usual, but a write beyond the file size limit is an error, and a
/// soft limit on CPU time a finding of the preflight.
pub fn for_command() {
    ignore(libc::SIGXFSZ);
    ignore(libc::SIGXCPU);
}

/// Puts the handlers of a server in place; the receiver gets SIGHUPs, of which at most one waits: what a reload reads is
/// the newest in any case. In place also where its parent had signals ignored or blocked (`nohup`, a shell's
/// background job).
///
/// # Errors
/// No descriptors or no thread for them.
pub fn install() -> io::Result<(Signals, Receiver<()>)> {
    let (stop, stop_write) = UnixStream::pair()?;
    let (reload, reload_write) = UnixStream::pair()?;
    for signal in STOPS {
        pipe::register(signal, stop_write.try_clone()?)?;
    }
    pipe::register(SIGHUP, reload_write)?;
    for signal in 1..=SIGNALS {
        if !STOPS.contains(&signal) && signal != SIGHUP && !LEFT_ALONE.contains(&signal) {
            ignore(signal);
        }
    }
    unblock_all();
    let shared =
        Arc::new(SharedSignals { phase: AtomicU8::new(STARTING), stops: AtomicU32::new(0) });
    let (bell, ring) = UnixStream::pair()?;
    ring.set_nonblocking(true)?;
    let (requests, reloads) = sync_channel(1);
    let watch = Watch { stop, reload, shared: shared.clone(), ring, requests, first_stop: None };
    std::thread::Builder::new().name("millrace-signals".to_owned()).spawn(|| watch.run())?;
    Ok((Signals { shared, bell }, reloads))
}

impl Signals {
    /// From now on stops are the caller's business; `false` when one came first: then the process is ending.
    pub fn hand_over(&self) -> bool {
        self.shared.phase.compare_exchange(STARTING, SERVING, SeqCst, SeqCst).is_ok()
    }

    /// How many signals to stop have come.
    pub fn stops(&self) -> u32 {
        self.shared.stops.load(SeqCst)
    }
}

struct Watch {
    /// A byte for each signal; one that finds the buffer full finds hundreds that were not looked at.
    stop: UnixStream,
    reload: UnixStream,
    shared: Arc<SharedSignals>,
    ring: UnixStream,
    requests: SyncSender<()>,
    first_stop: Option<Instant>,
}

/// Signals to stop that come within this time of the first are the same stop: timeout(1), for one, signals its child and
/// then the group that the child is in.
const SAME_STOP: Duration = Duration::from_millis(1);

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
                let _waits_already = self.requests.try_send(());
            }
        }
    }

    fn stop(&mut self) {
        if self.first_stop.is_some_and(|first| rt::since(first) < SAME_STOP) {
            return;
        }
        self.first_stop.get_or_insert_with(rt::now);
        // The first two count; the sum of all others must only not overflow.
        let stops = self.shared.stops.load(SeqCst).saturating_add(1);
        self.shared.stops.store(stops, SeqCst);
        match self.shared.phase.compare_exchange(STARTING, ENDING, SeqCst, SeqCst) {
            Ok(_) => {
                log::log_last_line("stopped before it served");
                std::process::exit(Exit::Clean as i32);
            }
            // A full buffer has rung already.
            Err(_) => drop(self.ring.write(b"!")),
        }
    }
}

/// As the kernel's `rt_sigaction` takes it; architectures without `restorer` read a part of it, which is all zeros.
#[repr(C)]
struct KernelAction {
    handler: libc::sighandler_t,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

/// Ignores `signal`. By the system call: the C library refuses to touch the two that it uses itself (32 and 33), which would
/// end the process when sent by others. It sets a handler of its own when it comes to need them. No child inherits what is
/// ignored here: a server starts none.
#[expect(unsafe_code, reason = "no library ignores signals, let alone those")]
fn ignore(signal: i32) {
    let action = KernelAction { handler: libc::SIG_IGN, flags: 0, restorer: 0, mask: 0 };
    let none = std::ptr::null_mut::<KernelAction>();
    // SAFETY: `action` lives through the call and is at least as long as the kernel's structure, nothing is written through
    // a null pointer, and ignoring a signal runs no code.
    let failed = unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, none, size_of::<u64>())
    };
    debug_assert_eq!(failed, 0, "signal {signal}: {}", io::Error::last_os_error());
}

/// Lets every signal through to this thread and those it will make, whatever mask the process was started with.
#[expect(unsafe_code, reason = "no library has it")]
fn unblock_all() {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set before `pthread_sigmask` reads it, and the old set is not asked for.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}
