//! One core: builds its ring, workers, store and listener on its own pinned executor, and stops them in order.
//!
//! A core talks to the control executor through its cells and a doorbell, a socket pair on which control sends one
//! byte to serve, one to drain and one to hurry, and the core one byte whenever its state has changed. Nothing else is
//! shared, and nothing at all on the data path.

pub mod drain;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_lite::{AsyncReadExt, FutureExt};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::Socket;

use crate::batch::{Batches, gather};
use crate::budget::Budget;
use crate::config::Config;
use crate::core::drain::drain;
use crate::deadletter::DeadLetters;
use crate::http::accept::{accept_loop, into_glommio_stream};
use crate::http::body::BodyReader;
use crate::http::conn::{self, ConnState};
use crate::http::parse::Scratch;
use crate::http::tokens::{TokenSet, TokenView};
use crate::limits::Limits;
use crate::metrics::{CoreCells, CoreState};
use crate::net::{Net, Stream};
use crate::queue::admission::Admission;
use crate::queue::fifo::Ring;
use crate::queue::job::{Job, Origin, Stamp};
use crate::rt::{self, Executor, Placement, Task, sleep};
use crate::spool::{Spool, SpoolSetup};
use crate::store::faulty::ConnFaults;
use crate::store::{Store, StoreSeed};
use crate::sync::{Flag, Semaphore, StaticPermit};
use crate::throttle::Throttle;
use crate::upload::restore::{RESTORERS, restore};
use crate::upload::{Health, InHand, Uploads, notice_retries, worker_loop};

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

/// Everything one core's tasks share; never leaves its thread.
pub struct Core {
    pub config: Arc<Config>,
    pub net: Rc<Net>,
    pub cells: &'static CoreCells,
    pub origin: Origin,
    /// Payloads admitted so far: the last part of the next key.
    pub seq: Cell<u64>,
    pub ring: Rc<Ring<Job>>,
    pub admission: Rc<Admission>,
    pub bodies: BodyReader,
    pub scratch: RefCell<Scratch>,
    pub tokens: Option<TokenView>,
    pub faults: ConnFaults,
    pub conns: Conns,
    pub store: Store,
    pub spool: Option<Rc<Spool>>,
    /// The store as configured, for dead letters.
    pub store_name: String,
    pub health: Health,
    pub dead_letters: DeadLetters,
    pub logs: RefCell<CoreLogs>,
    /// `None`: one object per payload.
    pub batches: Option<Rc<Batches>>,
    /// Whether anything asks for the `version` of a payload's request.
    pub needs_version: bool,
    /// Of a batch's dead letter, which takes a copy of the object: one at a time.
    pub letter_turn: Semaphore,
    pub uploads: Uploads,
    /// What each worker is busy with.
    pub in_hand: RefCell<Vec<Option<InHand>>>,
    /// Set once the stop has begun: answers carry `connection: close`.
    pub draining: Flag,
    /// When that was.
    pub drain_began: Cell<Option<Instant>>,
    /// Set once the stop has cancelled the workers: nobody is told any more what became of a payload.
    pub uploads_ended: Cell<bool>,
    slots: Rc<Semaphore>,
    accepting: Cell<bool>,
}

/// Brakes for errors that repeat.
#[derive(Default)]
pub struct CoreLogs {
    pub dead: Throttle,
    pub journal: Throttle,
    conn_panic: Throttle,
}

impl Core {
    fn new(setup: &mut Setup, net: Rc<Net>) -> Rc<Core> {
        let spool = setup.spool.take();
        let Setup { config, limits, cells, .. } = setup;
        let cells = *cells;
        let ring = Rc::new(Ring::new(limits.ring_slots));
        let admission = Admission::new(ring.clone(), limits.ring_bytes, cells);
        let plan = config.faults.clone();
        let origin = Origin::new(config.node_id.clone(), setup.core_id);
        let origin = origin.with_keys(config.payload_keys().as_deref());
        cells.connections_max.set(limits.connections as u64);
        let spool = spool.map(|spool| Spool::open(spool, origin.clone(), admission.clone()));
        Rc::new(Core {
            net,
            cells,
            seq: Cell::new(0),
            admission,
            ring,
            bodies: BodyReader::new(
                Budget::new(limits.body_bytes, &cells.body_bytes),
                limits.request_bytes,
            ),
            scratch: RefCell::default(),
            tokens: setup.tokens.clone().map(TokenView::new),
            faults: ConnFaults::new(plan.as_ref(), setup.index as u64),
            conns: Conns::default(),
            store: setup.store.clone().build(&origin, plan, setup.index),
            origin,
            spool,
            store_name: config.store.to_string(),
            health: Health::new(cells, setup.epoch, setup.core_id),
            dead_letters: setup.dead_letters.clone(),
            logs: RefCell::default(),
            batches: Batches::new(config, cells),
            letter_turn: Semaphore::new(1),
            needs_version: config.keys.needs_version(),
            uploads: Uploads::new(limits.workers, cells),
            in_hand: RefCell::new((0..limits.workers).map(|_| None).collect()),
            draining: Flag::default(),
            drain_began: Cell::new(None),
            uploads_ended: Cell::new(false),
            slots: Rc::new(Semaphore::new(limits.connections as u64)),
            accepting: Cell::new(true),
            config: config.clone(),
        })
    }

    /// A place for one more connection, waiting for one to end if there is none; `None` once the ring has closed.
    pub async fn connection_slot(&self) -> Option<StaticPermit> {
        self.slots.acquire_static_permit(1).await.ok()
    }

    /// Serves `stream` in a task of its own; a panic there ends that connection and nothing else.
    pub fn spawn_connection(self: &Rc<Self>, stream: Stream, slot: StaticPermit) {
        let core = self.clone();
        rt::spawn(async move {
            core.cells.connections_accepted.inc();
            core.cells.connections.inc();
            let served = AssertUnwindSafe(conn::serve(core.clone(), stream)).catch_unwind().await;
            if served.is_err() {
                core.cells.conn_panics.inc();
                let text = || "a connection panicked and was closed".to_owned();
                core.logs.borrow_mut().conn_panic.error(text);
            }
            core.cells.connections.sub(1);
            drop(slot);
        })
        .detach();
    }

    /// The stamp of the next payload, of `count` in a row.
    pub fn stamps(&self, count: usize) -> Stamp {
        let seq = self.seq.replace(self.seq.get() + count as u64);
        Stamp { unix_nanos: Stamp::unix_nanos_now(), seq }
    }

    /// Nothing waits to be stored.
    pub fn holds_nothing(&self) -> bool {
        self.ring.is_empty()
            && self.cells.workers_busy.value() == 0
            && self.uploads.is_empty()
            && self.batches.as_ref().is_none_or(|batches| batches.is_empty())
    }

    /// All that waits to be stored has failed before.
    pub fn holds_failed_only(&self) -> bool {
        self.ring.is_empty()
            && self.in_hand.borrow().iter().flatten().all(|held| held.failures.is_some())
            && self.uploads.holds_failed_only()
            && self.batches.as_ref().is_none_or(|batches| batches.is_empty())
    }

    /// All that waits to be stored is in the spool as well.
    pub fn holds_spooled_only(&self) -> bool {
        self.ring.all(Job::is_spooled)
            && self.in_hand.borrow().iter().flatten().all(|held| held.parcel.is_spooled())
            && self.uploads.holds_spooled_only()
            && self.batches.as_ref().is_none_or(|batches| batches.holds_spooled_only())
    }

    pub fn is_accepting(&self) -> bool {
        self.accepting.get()
    }

    /// Ends admission: everybody waiting for room, every idle connection and the listener go.
    pub fn close(&self) {
        self.admission.close();
        if let Some(spool) = &self.spool {
            spool.close();
        }
        self.slots.close();
        self.conns.wake_all();
    }
}

/// The open connections of one core, to wake them when the ring closes and when uploads have ended.
#[derive(Default)]
pub struct Conns {
    open: RefCell<HashMap<u64, Rc<ConnState>>>,
    next: Cell<u64>,
    /// How often one has given its buffers back because it was silent.
    pub quieted: Cell<u64>,
}

/// Takes its connection off the list when dropped.
pub struct Listed<'a> {
    conns: &'a Conns,
    number: u64,
}

impl Conns {
    pub fn enter(&self, state: &Rc<ConnState>) -> Listed<'_> {
        let number = self.next.replace(self.next.get() + 1);
        self.open.borrow_mut().insert(number, state.clone());
        Listed { conns: self, number }
    }

    pub fn wake_all(&self) {
        for state in self.open.borrow().values() {
            state.wake();
        }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.conns.open.borrow_mut().remove(&self.number);
    }
}

/// Sees to it that what silent connections have given back reaches the system: the allocator looks for free memory only
/// while it is asked for some, which on a core full of silent connections nobody does.
#[derive(Default)]
struct IdleMemory {
    /// [`Conns::quieted`] at the last look, and when the allocator was last told.
    seen: u64,
    told: u64,
}

impl IdleMemory {
    /// Fewer silent connections than this are not worth the time it takes: 2 ms for 10,000 of them.
    const WORTH: u64 = 64;

    /// Once a second, until then `quieted` connections have fallen silent. While many do so every second the memory
    /// is in use again at once, and giving it back would cost page faults.
    fn sample(&mut self, quieted: u64) {
        let pending = quieted - self.told;
        let lately = quieted - std::mem::replace(&mut self.seen, quieted);
        if pending >= Self::WORTH && lately * 100 <= pending {
            self.told = quieted;
            collect();
        }
    }
}

/// Lets this thread's allocator give back what is free.
#[expect(unsafe_code, reason = "mimalloc has no safe interface to it")]
fn collect() {
    // SAFETY: mi_collect has no arguments that could be wrong and may be called on any thread at any time.
    unsafe { libmimalloc_sys::mi_collect(false) }
}

/// How long a core may sleep in the ring of its sockets before it goes to sleep on glommio's, which takes ten system calls:
/// long enough for the gaps of a thousand requests a second, and not much for a timer to be late.
const NAP: Duration = Duration::from_millis(1);

/// How long this thread, and each that it makes, may run on before another that has become ready gets its CPU. The kernel's
/// workers inherit it: with the scheduler's own slice of a millisecond or more, one that has seen a sync end waits on a busy
/// core for the next tick, up to 4 ms. Whoever has that CPU for itself, as a core should, pays nothing.
const TURN: Duration = Duration::from_micros(100);

/// Sets [`TURN`]; Linux 6.12 or newer (`sched_setattr(2)`, `sched_runtime`), older ones ignore it.
#[expect(unsafe_code, reason = "no library has these calls")]
fn take_short_turns() -> std::io::Result<()> {
    const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
    let done = |outcome| match outcome {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: plain numbers, for which all zeros is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes up to SIZE bytes, which are there; 0 is the calling thread.
    done(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) })?;
    // A real-time policy that an operator has given has no slices.
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_runtime = TURN.as_nanos() as u64;
    // SAFETY: the kernel reads `size` bytes, which it has filled in itself.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// How long one task may go on while sockets have news, if it asks: what `yield_if_needed` goes by. glommio's own
/// 100 ms would let one compressed body hold up every other client for as long. The timer is set in every round of the
/// executor's loop whatever it says, so a short one costs nothing.
const SLICE: Duration = Duration::from_millis(2);

/// Pins the calling thread to `cpu`; gives the CPUs that it could use before.
///
/// # Errors
/// `cpu` is not one that this process may use, or went offline.
pub fn pin(cpu: usize) -> std::io::Result<CpuSet> {
    let before = sched_getaffinity(None)?;
    sched_setaffinity(None, &cpu_set(&[cpu]))?;
    Ok(before)
}

/// What [`Placement::pinned`] would do, by hand, where that cannot: the blocking thread inherits the pin, and is released from it later.
fn pin_by_hand(core_id: usize, spare_cpus: &[usize]) -> std::io::Result<CpuSet> {
    let allowed = pin(core_id)?;
    Ok(if spare_cpus.is_empty() { allowed } else { cpu_set(spare_cpus) })
}

fn cpu_set(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for cpu in cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU) {
        set.set(*cpu);
    }
    set
}

/// Starts a core on its own thread. The thread's end, a panic included, rings the doorbell.
///
/// # Errors
/// The thread could not be made.
pub fn spawn(setup: Setup) -> std::io::Result<JoinHandle<()>> {
    let name = format!("millrace-core-{}", setup.core_id);
    let bell = setup.doorbell.try_clone()?;
    std::thread::Builder::new().name(name).spawn(move || {
        let _farewell = Farewell { cells: setup.cells, bell };
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
struct Farewell {
    cells: &'static CoreCells,
    bell: Socket,
}

impl Drop for Farewell {
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
    for placed in [net.place_kernel_workers(&workers), take_short_turns()] {
        if let Err(error) = placed {
            tracing::debug!(%error, "the kernel's workers run as it likes");
        }
    }
    let core = Core::new(&mut setup, net);
    let Setup { limits, listener, doorbell, .. } = setup;
    let bell = doorbell.try_clone().expect("descriptors suffice at start");
    let mut orders = into_glommio_stream(doorbell);

    let mut tasks: Vec<Task<()>> =
        (0..limits.workers).map(|number| rt::spawn(worker_loop(core.clone(), number))).collect();
    tasks.push(rt::spawn(notice_retries(core.clone())));
    tasks.push(rt::spawn(gather(core.clone())));
    tasks.extend((0..RESTORERS).map(|_| rt::spawn(restore(core.clone()))));
    let sampler = rt::spawn({
        let core = core.clone();
        async move {
            let mut idle_memory = IdleMemory::default();
            loop {
                sleep(Duration::from_secs(1)).await;
                core.admission.sample(rt::now());
                idle_memory.sample(core.conns.quieted.get());
            }
        }
    });
    core.cells.set_state(CoreState::Ready);
    ring_doorbell(&bell);
    // The first order is to serve. Until then a start that fails has nothing to lose.
    if !matches!(orders.read(&mut [0]).await, Ok(1)) {
        return;
    }
    let acceptor = rt::spawn({
        let core = core.clone();
        async move {
            accept_loop(core.clone(), listener).await;
            core.accepting.set(false);
        }
    });
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
