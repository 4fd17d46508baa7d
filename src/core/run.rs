//! Runs a core on its own thread: the order of its start.

use std::ffi::CStr;
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::rt::{self, Executor, Placement, TaskKind, sleep};
use futures_lite::AsyncReadExt;
use rustix::thread::{CpuSet, sched_setaffinity, set_name};
use socket2::Socket;

use super::Core;
use super::drain::drain;
use super::host::pin_by_hand;
use super::turns::count_turns;
use crate::config::Config;
use crate::deadletter::DeadLetters;
use crate::http::accept::{accept_loop, into_glommio_stream};
use crate::http::health::Readiness;
use crate::http::peers::PeerBoard;
use crate::http::quotas::SharedQuotas;
use crate::http::refusal_log::RefusalLog;
use crate::http::secured::{Entrance, TlsAcceptor};
use crate::http::server::LimitSampler;
use crate::http::tap::TapBoard;
use crate::http::tokens::SharedTokens;
use crate::limits::Limits;
use crate::metrics::{CoreCells, CoreState};
use crate::net::Net;
use crate::spool::SpoolSetup;
use crate::store::StoreSeed;
use crate::sync::Flag;
use crate::tls::SharedTls;

/// Everything that control gives to a core's thread.
pub struct Setup {
    pub config: Arc<Config>,
    pub limits: Limits,
    /// Index in `config.cores`, for cells and seeds.
    pub index: usize,
    pub cells: &'static CoreCells,
    /// When the start began. Times in cells are relative to it.
    pub epoch: Instant,
    /// In the order of `config.listen`.
    pub listeners: Vec<Socket>,
    pub control: ControlSide,
    pub tokens: Option<SharedTokens>,
    pub dead_letters: DeadLetters,
    pub store: StoreSeed,
    pub spool: Option<SpoolSetup>,
    /// CPUs that this process may use and that belong to no data core.
    pub spare_cpus: Vec<usize>,
}

/// What a core has of control.
pub struct ControlSide {
    /// The core's end of its control channel.
    pub channel: Socket,
    /// Where the core publishes its busiest peers when control asks.
    pub peers: Arc<PeerBoard>,
    /// Whether the whole server is ready, with `INGEST_HEALTH`.
    pub readiness: Option<Arc<Readiness>>,
    /// Where control spreads quotas over the cores; `None` if nothing can have one.
    pub quotas: Option<SharedQuotas>,
    /// Certificates, if any address has TLS.
    pub tls: Option<SharedTls>,
    /// Where samples of payloads are left, with `TAP=on`.
    pub tap: Option<Arc<TapBoard>>,
}

impl Setup {
    /// CPU id: the core is pinned to it, and every key contains it.
    pub(super) fn core_id(&self) -> usize {
        self.config.cores[self.index]
    }
}

/// How long a core may nap in the ring of its sockets before it sleeps on glommio's, which takes
/// ten system calls. Long enough for the gaps between a thousand requests a second; short enough
/// for a timer to be that late.
const NAP: Duration = Duration::from_millis(1);

/// How long a task may run until `yield_if_needed` yields. With glommio's own 100 ms, one
/// compressed body could delay every other client for as long. glommio sets the timer in every
/// round of its loop in any case, so a short slice costs nothing.
const TASK_SLICE: Duration = Duration::from_millis(2);

/// Starts a core on its own thread. When the thread ends, also by a panic, it notifies control.
///
/// # Errors
/// The thread could not be created.
pub fn spawn(setup: Setup) -> std::io::Result<JoinHandle<()>> {
    let name = format!("millrace-core-{}", setup.core_id());
    let control = setup.control.channel.try_clone()?;
    std::thread::Builder::new().name(name).spawn(move || {
        let _exit_notice = ExitNotice { cells: setup.cells, control };
        let mut blocking_cpus = None;
        let placed = Placement::pinned(setup.core_id(), &setup.spare_cpus);
        if placed.is_none() {
            // Before the executor allocates, so that its memory is near this CPU.
            match pin_by_hand(setup.core_id(), &setup.spare_cpus) {
                Ok(cpus) => blocking_cpus = Some(cpus),
                Err(error) => {
                    return tracing::error!(core = setup.core_id(), %error, "cannot pin the thread to this core");
                }
            }
        }
        let placement = placed.unwrap_or_else(Placement::unpinned);
        match Executor::placed("millrace-core", placement, TASK_SLICE) {
            Ok(executor) => executor.run(run(setup, blocking_cpus)),
            Err(error) => {
                tracing::error!(core = setup.core_id(), %error, "cannot start the executor of this core")
            }
        }
    })
}

/// The name of the executor's blocking thread.
const BLOCKING_THREAD: &CStr = c"millrace-block";

/// Names the executor's blocking thread, which has inherited the name of the core's: whoever looks
/// for the cores by their names, cut after 15 characters, finds them alone. Moves it to `cpus` if it
/// has inherited the core's pin as well.
async fn part_from_blocking_thread(cpus: Option<CpuSet>) {
    let part = move || {
        let _for_those_who_look = set_name(BLOCKING_THREAD);
        cpus.map_or(Ok(()), |cpus| sched_setaffinity(None, &cpus))
    };
    if let Err(error) = rt::blocking(part).await {
        tracing::warn!("the blocking thread could not be moved off its core: {error}");
    }
}

/// Tells control that the thread has ended, whatever the reason.
struct ExitNotice {
    cells: &'static CoreCells,
    control: Socket,
}

impl Drop for ExitNotice {
    fn drop(&mut self) {
        if !self.cells.is(CoreState::Stopped) {
            self.cells.set_state(CoreState::Died);
        }
        notify(&self.control);
    }
}

/// Tells control that this core's state has changed.
fn notify(control: &Socket) {
    let mut control = control;
    // With a full buffer, control has a notice to read already; with a closed one, control is gone.
    let _needs_no_notice = control.write(b"!");
}

/// Runs the core from its start to its stop. Its blocking thread is moved to `blocking_cpus`.
async fn run(mut setup: Setup, blocking_cpus: Option<CpuSet>) {
    rt::spawn_as(TaskKind::Core, part_from_blocking_thread(blocking_cpus)).detach();
    let net = match Net::here() {
        Ok(net) => net,
        Err(error) => {
            tracing::error!(core = setup.core_id(), %error, "cannot create the socket ring of this core");
            return;
        }
    };
    count_turns(setup.core_id(), setup.cells);
    net.set_spin(setup.config.spin);
    net.set_nap(NAP);
    let workers = [&[setup.core_id()], &*setup.spare_cpus].concat();
    for placed in [net.set_worker_cpus(&workers), rt::slices::set_core_slice()] {
        if let Err(error) = placed {
            tracing::debug!(%error, "could not set io-wq affinity or scheduler slice");
        }
    }
    let core = Core::new(&mut setup, net);
    let core_id = setup.core_id();
    let Setup { config, limits, listeners, control, cells, .. } = setup;
    let ControlSide { channel, peers, tls, .. } = control;
    let options = config.tls.as_ref();
    let acceptor = tls.zip(options).map(|(tls, options)| TlsAcceptor::new(tls, options, cells));
    let notices = channel.try_clone().expect("descriptors suffice at start");
    let mut commands = into_glommio_stream(channel);

    let tasks = core.pipeline.spawn(limits.workers);
    let sampler = rt::spawn_as(TaskKind::Sampler, {
        let (uploader, server) = (core.pipeline.uploader.clone(), core.server.clone());
        async move {
            let mut limits = LimitSampler::default();
            let mut refusals = RefusalLog::new(core_id);
            loop {
                sleep(Duration::from_secs(1)).await;
                server.cells.samples.inc();
                let now = rt::now();
                uploader.admission.sample(now);
                uploader.sample(now);
                if let Some(quotas) = &server.quotas {
                    quotas.sample();
                    quotas.sweep();
                }
                refusals.look(server.cells, now);
                limits.sample(server.cells);
                // Unmaps what was freed while it slept.
                rt::call_driver();
                peers.publish_if_asked(&server.conns).await;
            }
        }
    });
    core.cells.set_state(CoreState::Ready);
    notify(&notices);
    // The first command is to serve. Until then nothing is accepted, so a failed start loses
    // nothing.
    if !matches!(commands.read(&mut [0]).await, Ok(1)) {
        return;
    }
    let accept = |(number, listener): (usize, Socket)| {
        let tls = acceptor.clone().filter(|_| config.listen[number].tls);
        let entrance = Rc::new(Entrance { number, tls });
        rt::spawn_as(TaskKind::Accept, accept_loop(core.server.clone(), listener, entrance))
    };
    let acceptors: Vec<_> = listeners.into_iter().enumerate().map(accept).collect();
    core.cells.set_state(CoreState::Serving);
    notify(&notices);

    // The second command is to drain. An error or the end means that control is gone, which also
    // means to stop.
    let _command_or_end = commands.read(&mut [0]).await;
    let force_stop = Rc::new(Flag::default());
    let listen = rt::spawn_as(TaskKind::Core, {
        let force_stop = force_stop.clone();
        async move {
            let _command_or_end = commands.read(&mut [0]).await;
            force_stop.set();
        }
    });
    drain(&core, &limits, tasks, &force_stop).await;
    drop((listen, sampler, acceptors));
    core.cells.set_state(CoreState::Stopped);
    // Before the executor and the thread end, which a hanging disk may delay.
    notify(&notices);
}
