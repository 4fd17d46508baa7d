//! The sockets of one executor: TCP on an io_uring beside glommio's own, where waiting for bytes
//! costs no system call. Also the durable writes of its spool ([`File`]).
//!
//! Every operation is a submission. One task, the driver, takes turns: it submits all operations
//! since its last turn in one system call, reads the completions and wakes the tasks that wait for
//! them. It repeats this while operations complete, and lets all other tasks run between two turns.
//! Then it naps: it sleeps in this ring for as long as `set_nap` says, which takes one call. After
//! that it sleeps on glommio until a completion signals the ring's eventfd.
//!
//! Received bytes arrive in buffers of a common pool, so a silent connection holds none. A receive
//! is in flight only while a task waits for it, so unread bytes beyond a buffer's 16 KiB stay in the
//! kernel, and TCP slows the peer down. Connections to the store receive continuously instead
//! ([`Stream::receive_continuously`]). A large body is received into its own memory while more of it waits
//! in the kernel ([`own`]).
//!
//! glommio's streams poll, then receive: three system calls where this needs a share of one.

mod acknowledged;
mod driver;
mod file;
mod listener;
mod own;
mod received;
mod ring;
mod shared;
mod socket;
mod spare;
mod stream;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::time::Duration;

use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};

pub use acknowledged::Acknowledged;
pub use file::{BLOCK, File};
pub use listener::Listener;
pub use received::Received;
pub use ring::{BUFFER_BYTES, MEMORY_BYTES as POOL_BYTES};
pub use shared::{Share, SharedBytes, Slice};
pub use stream::Stream;

use crate::rt::{self, TaskKind};
use ring::Ring;
use socket::{ReceiveState, SendState, SocketEntry};

/// Most bytes that one write accepts. The next write waits until the kernel has taken them.
pub const SEND_BYTES_MAX: usize = 64 << 10;

thread_local! {
    /// The executor's id, and its `Net` for as long as the driver or a socket holds it.
    static HERE: RefCell<(usize, Weak<Net>)> = const { RefCell::new((0, Weak::new())) };
}

/// The ring of one executor and the state of its sockets and files.
pub struct Net {
    ring: RefCell<Ring>,
    sockets: RefCell<Slab<SocketEntry>>,
    files: RefCell<Slab<file::FileEntry>>,
    /// Tokens of sockets whose receive found no buffer.
    starved: RefCell<VecDeque<usize>>,
    spin: Cell<Duration>,
    nap: Cell<Duration>,
    /// Numbers sockets, because tokens are reused.
    next_number: Cell<u64>,
}

impl Net {
    /// The `Net` of the calling executor, created on first use.
    ///
    /// # Errors
    /// As for [`probe`].
    pub fn here() -> io::Result<Rc<Net>> {
        let executor = rt::executor_id();
        HERE.with_borrow_mut(|(of, net)| {
            if let Some(net) = net.upgrade().filter(|_| *of == executor) {
                return Ok(net);
            }
            let here = Net::start()?;
            (*of, *net) = (executor, Rc::downgrade(&here));
            Ok(here)
        })
    }

    /// The `Net` of the calling executor, if it has sockets.
    pub fn of_this_executor() -> Option<Rc<Net>> {
        let executor = rt::executor_id();
        HERE.with_borrow(|(of, net)| net.upgrade().filter(|_| *of == executor))
    }

    fn start() -> io::Result<Rc<Net>> {
        let ring = Ring::new()?;
        let eventfd = ring.eventfd()?;
        let net = Rc::new(Net {
            ring: RefCell::new(ring),
            sockets: RefCell::default(),
            files: RefCell::default(),
            starved: RefCell::default(),
            spin: Cell::default(),
            nap: Cell::default(),
            next_number: Cell::default(),
        });
        rt::spawn_as(TaskKind::Sockets, driver::drive(net.clone(), eventfd)).detach();
        Ok(net)
    }

    /// Sets how long the driver keeps polling when nothing completes, before it sleeps. Trades CPU
    /// for latency.
    pub fn set_spin(&self, spin: Duration) {
        self.spin.set(spin);
    }

    /// Sets how long the driver may nap (sleep in its own ring) before it lets glommio sleep. A nap
    /// delays timers and whatever else glommio waits for by up to that time. There is no nap while
    /// a task holds a [`rt::foreign_wait`].
    pub fn set_nap(&self, nap: Duration) {
        self.nap.set(nap);
    }

    /// Sets the CPU affinity of io-wq workers, which run blocking operations such as fsync.
    pub fn set_worker_cpus(&self, cpus: &[usize]) -> io::Result<()> {
        self.ring.borrow().set_worker_cpus(cpus)
    }

    /// Takes over a connected stream socket.
    pub fn stream(self: &Rc<Net>, fd: impl Into<OwnedFd>) -> Stream {
        Stream { net: self.clone(), token: self.register(fd.into()) }
    }

    /// Takes over a listening socket.
    pub fn listener(self: &Rc<Net>, socket: Socket) -> Listener {
        Listener { net: self.clone(), token: self.register(socket.into()) }
    }

    /// Connects to `address`. Dropping the future closes the socket.
    pub async fn connect(self: &Rc<Net>, address: SocketAddr) -> io::Result<Stream> {
        let kind = Type::STREAM.cloexec().nonblocking();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        let stream = self.stream(socket);
        {
            let mut sockets = self.sockets.borrow_mut();
            let entry = &mut sockets[stream.token];
            entry.send = SendState::InFlight { sent: 0 };
            entry.in_flight += 1;
            self.ring.borrow_mut().connect(entry.fd.as_fd(), stream.token, address);
        }
        self.pushed();
        poll_fn(|cx| stream.poll_sent(cx)).await?;
        Ok(stream)
    }

    fn register(&self, fd: OwnedFd) -> usize {
        let number = self.next_number.replace(self.next_number.get() + 1);
        self.sockets.borrow_mut().insert(SocketEntry {
            fd,
            number,
            abandoned: false,
            in_flight: 0,
            receive: ReceiveState::default(),
            send: SendState::Idle,
            accepted: None,
            reader: None,
            writer: None,
        })
    }

    /// Cancels the operations of a dropped socket, which is closed when the last of them has
    /// completed.
    fn abandon(&self, token: usize) {
        let mut sockets = self.sockets.borrow_mut();
        let entry = &mut sockets[token];
        (entry.abandoned, entry.reader, entry.writer) = (true, None, None);
        entry.receive.discard_unread(&mut self.ring.borrow_mut());
        if entry.in_flight == 0 {
            sockets.remove(token);
            return;
        }
        // The entry, and so the descriptor, stays until then: the kernel must not see a number that
        // is reused.
        self.ring.borrow_mut().cancel(entry.fd.as_fd());
        drop(sockets);
        self.pushed();
    }

    /// To be called after a submission: wakes the driver if it sleeps on glommio.
    fn pushed(&self) {
        rt::call_driver();
    }
}

/// Checks that this host allows such a ring.
///
/// # Errors
/// The kernel is older than 6.1, or forbids io_uring.
pub fn probe() -> io::Result<()> {
    Ring::new().map(drop)
}

#[cfg(test)]
mod tests;
