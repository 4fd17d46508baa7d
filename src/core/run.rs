//! The life of a core on its own thread: the order of its start.

use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::rt::{self, Executor, Placement, sleep};
use arc_swap::ArcSwap;
use futures_lite::AsyncReadExt;
use rustix::thread::{CpuSet, sched_setaffinity};
use socket2::Socket;

use super::Core;
use super::drain::drain;
use super::host::{IdleMemory, pin_by_hand, take_short_turns};
use crate::config::Config;
use crate::deadletter::DeadLetters;
use crate::http::accept::{accept_loop, into_glommio_stream};
use crate::http::tokens::TokenSet;
use crate::limits::Limits;
use crate::metrics::{CoreCells, CoreState};
use crate::net::Net;
use crate::spool::SpoolSetup;
use crate::store::StoreSeed;
use crate::sync::Flag;

/// What control hands to a core's thread.
pub struct Setup {
    pub config: Arc<Config>,
    pub limits: Limits,
    /// Position in `config.cores`, for cells and seeds.
    pub index: usize,
    /// CPU id, pinned and part of every key.
    pub core_id: usize,
    pub cells: &'static CoreCells,
    pub epoch: Instant,
    pub listener: Socket,
    pub doorbell: Socket,
    pub tokens: Option<Arc<ArcSwap<TokenSet>>>,
    pub dead_letters: DeadLetters,
    pub store: StoreSeed,
    pub spool: Option<SpoolSetup>,
    /// CPUs this process may use that are no data core's.
    pub spare_cpus: Vec<usize>,
}

/// How long a core may sleep in the ring of its sockets before it goes to sleep on glommio's, which takes ten system calls:
/// long enough for the gaps of a thousand requests a second, and not much for a timer to be late.
const NAP: Duration = Duration::from_millis(1);

/// How long one task may go on while sockets have news, if it asks: what `yield_if_needed` goes by. glommio's own
/// 100 ms would let one compressed body hold up every other client for as long. The timer is set in every round of the
/// executor's loop whatever it says, so a short one costs nothing.
const SLICE: Duration = Duration::from_millis(2);

/// Starts a core on its own thread. The thread's end, a panic included, rings the doorbell.
///
/// # Errors
/// The thread could not be made.
pub fn spawn(setup: Setup) -> std::io::Result<JoinHandle<()>> {
    let name = format!("millrace-core-{}", setup.core_id);
    let bell = setup.doorbell.try_clone()?;
    std::thread::Builder::new().name(name).spawn(move || {
        let _farewell = ExitNotice { cells: setup.cells, bell };
        let mut blocking_cpus = None;
        let placed = Placement::pinned(setup.core_id, &setup.spare_cpus);
        if placed.is_none() {
            // Before the executor allocates: its memory is to lie near this CPU.
            match pin_by_hand(setup.core_id, &setup.spare_cpus) {
                Ok(cpus) => blocking_cpus = Some(cpus),
                Err(error) => {
                    return tracing::error!(core = setup.core_id, %error, "cannot pin to this core");
                }
            }
        }
        let placement = placed.unwrap_or_else(Placement::unpinned);
        match Executor::placed("millrace-core", placement, SLICE) {
            Ok(executor) => executor.run(run(setup, blocking_cpus)),
            Err(error) => {
                tracing::error!(core = setup.core_id, %error, "no executor for this core")
            }
        }
    })
}

/// The executor's blocking thread has inherited a pin that it must not share.
async fn release_blocking_thread(cpus: CpuSet) {
    let released = rt::blocking(move || sched_setaffinity(None, &cpus)).await;
    if let Err(error) = released {
        tracing::warn!("the blocking thread stays on its core: {error}");
    }
}

/// Tells control that the thread has ended, however it did.
struct ExitNotice {
    cells: &'static CoreCells,
    bell: Socket,
}

impl Drop for ExitNotice {
    fn drop(&mut self) {
        if !self.cells.is(CoreState::Stopped) {
            self.cells.set_state(CoreState::Died);
        }
        ring_doorbell(&self.bell);
    }
}

fn ring_doorbell(bell: &Socket) {
    let mut bell = bell;
    // A full buffer has rung already, and a closed one has nobody listening.
    let _nobody_to_tell = bell.write(b"!");
}

/// The core's life; `blocking_cpus` are those to which its blocking thread is to be moved.
async fn run(mut setup: Setup, blocking_cpus: Option<CpuSet>) {
    if let Some(cpus) = blocking_cpus {
        rt::spawn(release_blocking_thread(cpus)).detach();
    }
    let net = match Net::here() {
        Ok(net) => net,
        Err(error) => {
            tracing::error!(core = setup.core_id, %error, "no sockets for this core");
            return;
        }
    };
    net.set_spin(setup.config.spin);
    net.set_nap(NAP);
    let workers = [&[setup.core_id], &*setup.spare_cpus].concat();
    for placed in [net.set_worker_cpus(&workers), take_short_turns()] {
        if let Err(error) = placed {
            tracing::debug!(%error, "the kernel's workers run as it likes");
        }
    }
    let core = Core::new(&mut setup, net);
    let Setup { limits, listener, doorbell, .. } = setup;
    let bell = doorbell.try_clone().expect("descriptors suffice at start");
    let mut orders = into_glommio_stream(doorbell);

    let tasks = core.pipeline.spawn(limits.workers);
    let sampler = rt::spawn({
        let (admission, server) = (core.pipeline.admission.clone(), core.server.clone());
        async move {
            let mut idle_memory = IdleMemory::default();
            loop {
                sleep(Duration::from_secs(1)).await;
                admission.sample(rt::now());
                idle_memory.sample(server.conns.quieted.get());
            }
        }
    });
    core.cells.set_state(CoreState::Ready);
    ring_doorbell(&bell);
    // The first order is to serve. Until then a start that fails has nothing to lose.
    if !matches!(orders.read(&mut [0]).await, Ok(1)) {
        return;
    }
    let acceptor = rt::spawn(accept_loop(core.server.clone(), listener));
    core.cells.set_state(CoreState::Serving);
    ring_doorbell(&bell);

    // An error or the end means that control is gone; then stop as well.
    let _order_or_end = orders.read(&mut [0]).await;
    let hurry = Rc::new(Flag::default());
    let listen = rt::spawn({
        let hurry = hurry.clone();
        async move {
            let _order_or_end = orders.read(&mut [0]).await;
            hurry.set();
        }
    });
    drain(&core, &limits, tasks, &hurry).await;
    drop((listen, sampler, acceptor));
    core.cells.set_state(CoreState::Stopped);
    // Before the executor and the thread end, which a disk that hangs may delay.
    ring_doorbell(&bell);
}
