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
//! is in flight only while a task waits for it, so unread bytes stay in the kernel, and TCP slows
//! the peer down.
//!
//! glommio's streams poll, then receive: three system calls where this needs a share of one.

mod file;
mod received;
mod ring;
mod shared;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures_lite::io::{AsyncRead, AsyncWrite};
use slab::Slab;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

pub use file::{BLOCK, File};
pub use received::Received;
pub use ring::{BUFFER_BYTES, MEMORY_BYTES as POOL_BYTES};
pub use shared::{Share, SharedBytes, Slice};

use crate::rt::{self, yield_now};
use crate::sync::keep_waker;
use ring::{Buffer, Completion, OpResult, Outgoing, Ring};

/// Most bytes that one write accepts. The next write waits until the kernel has taken them.
pub const SEND_BYTES_MAX: usize = 64 << 10;
/// Capacity of the send buffer that a connection keeps between two sends: an answer takes 150
/// bytes, a small PUT 1 KiB.
const SEND_BYTES_KEPT: usize = 4 << 10;

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
    /// The driver's waker while it sleeps on glommio.
    sleeper: RefCell<Option<Waker>>,
    spin: Cell<Duration>,
    nap: Cell<Duration>,
    /// Numbers sockets, because tokens are reused.
    next_number: Cell<u64>,
}

/// One socket as the driver sees it. It outlives its [`Stream`] until its operations have ended.
struct SocketEntry {
    fd: OwnedFd,
    /// Unique among the sockets of this executor.
    number: u64,
    /// Its `Stream` or `Listener` was dropped.
    abandoned: bool,
    /// Operations that have not completed.
    in_flight: u32,
    receive: ReceiveState,
    send: SendState,
    accepted: Option<io::Result<OwnedFd>>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

enum ReceiveState {
    /// No task waits for bytes.
    Idle,
    InFlight,
    /// The pool had no buffer for the receive.
    Starved,
    /// A buffer of the pool, and how many of its bytes are read.
    Held(Buffer, usize),
    /// A copy of its unread bytes, made when the pool was empty, and how many of them are read.
    Copied(Vec<u8>, usize),
    End,
    Failed(i32),
}

enum SendState {
    /// Holds the empty buffer of the last send, for the next one.
    Idle(Vec<u8>),
    InFlight {
        sent: usize,
    },
    Failed(i32),
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
            sleeper: RefCell::default(),
            spin: Cell::default(),
            nap: Cell::default(),
            next_number: Cell::default(),
        });
        rt::spawn(drive(net.clone(), eventfd)).detach();
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

    /// Lets every task run that is ready, then submits what they have written.
    pub async fn run_tasks_and_turn(&self) {
        yield_now().await;
        // The driver handles whatever this turn makes ready.
        self.turn_now();
    }

    /// Takes a turn now: submits operations, reads completions and wakes the tasks that wait for
    /// them.
    pub fn turn_now(&self) {
        self.turn();
        self.pushed();
    }

    fn register(&self, fd: OwnedFd) -> usize {
        let number = self.next_number.replace(self.next_number.get() + 1);
        self.sockets.borrow_mut().insert(SocketEntry {
            fd,
            number,
            abandoned: false,
            in_flight: 0,
            receive: ReceiveState::Idle,
            send: SendState::Idle(Vec::new()),
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
        if let ReceiveState::Held(buffer, _) =
            std::mem::replace(&mut entry.receive, ReceiveState::Idle)
        {
            self.ring.borrow_mut().give_back(buffer);
        }
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
        if let Some(sleeper) = self.sleeper.take() {
            sleeper.wake();
        }
    }

    /// One turn; true if anything had completed.
    fn turn(&self) -> bool {
        self.turn_with(Ring::turn)
    }

    /// One turn that calls the kernel by `enter`.
    fn turn_with(&self, enter: impl FnOnce(&mut Ring) -> io::Result<bool>) -> bool {
        let mut ring = self.ring.borrow_mut();
        // An error here is the ring's own; the core cannot go on without its sockets.
        if !enter(&mut ring).expect("the kernel keeps accepting a ring that it created") {
            return false;
        }
        let mut sockets = self.sockets.borrow_mut();
        while let Some(completion) = ring.next() {
            self.completed(&mut ring, &mut sockets, completion);
        }
        if !self.starved.borrow().is_empty() {
            self.refill_starved(&mut ring, &mut sockets);
        }
        true
    }

    /// Handles one completion. It wakes tasks while `ring` and `sockets` are borrowed: a waker of
    /// glommio only queues its task and runs no code of it.
    fn completed(&self, ring: &mut Ring, sockets: &mut Slab<SocketEntry>, completion: Completion) {
        let Completion { token, result } = completion;
        let result = match result {
            OpResult::Synced(synced) => {
                return file::synced(&mut self.files.borrow_mut(), token, synced);
            }
            socket_result => socket_result,
        };
        let entry = &mut sockets[token];
        entry.in_flight -= 1;
        let waker = match result {
            OpResult::Received(Ok(Some(buffer))) if entry.abandoned => {
                ring.give_back(buffer);
                &None
            }
            OpResult::Received(Err(e)) if ring::is_exhausted(&e) && !entry.abandoned => {
                entry.receive = ReceiveState::Starved;
                self.starved.borrow_mut().push_back(token);
                &None
            }
            OpResult::Received(received) => {
                entry.receive = match received {
                    Ok(Some(buffer)) => ReceiveState::Held(buffer, 0),
                    Ok(None) => ReceiveState::End,
                    Err(e) => ReceiveState::Failed(code(&e)),
                };
                &entry.reader
            }
            OpResult::Sent(bytes, sent) => entry.sent(ring, token, bytes, sent),
            OpResult::Accepted(accepted) => {
                entry.accepted = Some(accepted);
                &entry.reader
            }
            OpResult::Connected(connected) => {
                entry.send = match connected {
                    Ok(()) => SendState::Idle(Vec::new()),
                    Err(e) => SendState::Failed(code(&e)),
                };
                &entry.writer
            }
            OpResult::Synced(_) => unreachable!("handled above"),
        };
        if let Some(waker) = waker {
            waker.wake_by_ref();
        }
        if entry.abandoned && entry.in_flight == 0 {
            sockets.remove(token);
        }
    }

    /// Called when the pool was empty: copies unread buffers so that they return to the pool, and
    /// repeats the receives that had found none.
    fn refill_starved(&self, ring: &mut Ring, sockets: &mut Slab<SocketEntry>) {
        for (_, entry) in sockets.iter_mut() {
            if let ReceiveState::Held(buffer, taken) = &entry.receive {
                let moved = ReceiveState::Copied(ring.bytes(buffer)[*taken..].to_vec(), 0);
                if let ReceiveState::Held(buffer, _) = std::mem::replace(&mut entry.receive, moved)
                {
                    ring.give_back(buffer);
                }
            }
        }
        for token in self.starved.take() {
            // By now the token may belong to another socket.
            if let Some(entry) = sockets.get_mut(token)
                && matches!(entry.receive, ReceiveState::Starved)
            {
                entry.begin_receive(ring, token);
            }
        }
    }
}

impl SocketEntry {
    fn begin_receive(&mut self, ring: &mut Ring, token: usize) {
        self.receive = ReceiveState::InFlight;
        self.in_flight += 1;
        ring.receive(self.fd.as_fd(), token);
    }

    fn begin_send(&mut self, ring: &mut Ring, token: usize, outgoing: Outgoing, from: usize) {
        self.send = SendState::InFlight { sent: from };
        self.in_flight += 1;
        ring.send(self.fd.as_fd(), token, outgoing, from);
    }

    /// Handles the end of a send. A short send continues with the rest of its bytes.
    fn sent(
        &mut self,
        ring: &mut Ring,
        token: usize,
        bytes: Outgoing,
        result: io::Result<usize>,
    ) -> &Option<Waker> {
        let SendState::InFlight { sent: before } = self.send else {
            unreachable!("it was in flight")
        };
        self.send = match result {
            Err(e) => SendState::Failed(code(&e)),
            Ok(0) => SendState::Failed(libc::EPIPE),
            Ok(n) if before + n < bytes.len() && !self.abandoned => {
                let sent = before + n;
                self.in_flight += 1;
                ring.send(self.fd.as_fd(), token, bytes, sent);
                self.send = SendState::InFlight { sent };
                return &None;
            }
            Ok(_) => match bytes {
                Outgoing::Buffer(mut bytes) => {
                    bytes.clear();
                    bytes.shrink_to(SEND_BYTES_KEPT);
                    SendState::Idle(bytes)
                }
                Outgoing::Shared(_) => SendState::Idle(Vec::new()),
            },
        };
        &self.writer
    }
}

fn code(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// The driver: takes turns while operations complete, otherwise sleeps until one does.
async fn drive(net: Rc<Net>, eventfd: glommio::io::BufferedFile) {
    let eventfd = Rc::new(eventfd);
    // One read outlasts several sleeps that a submission has ended.
    let mut signalled = None;
    net.ring.borrow_mut().enable_eventfd(false);
    loop {
        while net.turn() {
            yield_now().await;
        }
        if spin(&net).await || nap(&net).await {
            continue;
        }
        net.ring.borrow_mut().enable_eventfd(true);
        // An operation may have completed before the eventfd was enabled.
        if !net.turn() {
            let read = signalled.get_or_insert_with(|| Box::pin(wait_for(eventfd.clone())));
            if sleep(&net, read.as_mut()).await {
                read.set(wait_for(eventfd.clone()));
            }
        }
        net.ring.borrow_mut().enable_eventfd(false);
        yield_now().await;
    }
}

/// Polls for as long as `Net::set_spin` says; true as soon as something has completed.
async fn spin(net: &Net) -> bool {
    let spin = net.spin.get();
    if spin.is_zero() {
        return false;
    }
    let since = rt::now();
    while rt::since(since) < spin {
        yield_now().await;
        if net.turn() {
            return true;
        }
    }
    false
}

/// Sleeps in the ring itself if this executor has nothing else to do: one system call, where
/// sleeping and waking on glommio take ten. True if there is something to do now.
async fn nap(net: &Net) -> bool {
    let limit = net.nap.get();
    // The ring would not see the end of a foreign wait.
    if limit.is_zero() || rt::has_foreign_waits() {
        return false;
    }
    if !rt::is_idle().await {
        return true;
    }
    net.turn_with(|ring| ring.nap(limit))
}

async fn wait_for(eventfd: Rc<glommio::io::BufferedFile>) {
    eventfd.read_at(0, 8).await.expect("an event descriptor can be read");
}

/// Sleeps on glommio until the eventfd is signalled (then true) or a task has pushed a submission.
async fn sleep(net: &Net, mut signalled: Pin<&mut impl Future<Output = ()>>) -> bool {
    let mut asleep = false;
    poll_fn(|cx| {
        if signalled.as_mut().poll(cx).is_ready() {
            net.sleeper.take();
            return Poll::Ready(true);
        }
        // `Net::pushed` has taken the waker.
        if asleep && net.sleeper.borrow().is_none() {
            return Poll::Ready(false);
        }
        asleep = true;
        net.sleeper.replace(Some(cx.waker().clone()));
        Poll::Pending
    })
    .await
}

/// One connected socket. Dropping it cancels its operations and closes it.
pub struct Stream {
    net: Rc<Net>,
    token: usize,
}

impl Stream {
    /// The `Net` that it belongs to.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Waits for bytes and passes them to `take`, which returns how many it has read. 0 is the
    /// peer's end.
    ///
    /// `take` must not use this or any other socket or file of the same executor: it runs while the
    /// ring and the sockets are borrowed, and re-entry panics.
    pub fn poll_read_with(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        let mut ring = self.net.ring.borrow_mut();
        let (n, empty) = match &mut entry.receive {
            ReceiveState::Held(buffer, taken) => {
                let n = take(&ring.bytes(buffer)[*taken..]);
                *taken += n;
                (n, *taken == buffer.len())
            }
            ReceiveState::Copied(bytes, taken) => {
                let n = take(&bytes[*taken..]);
                *taken += n;
                (n, *taken == bytes.len())
            }
            ReceiveState::End => return Poll::Ready(Ok(0)),
            ReceiveState::Failed(code) => {
                return Poll::Ready(Err(io::Error::from_raw_os_error(*code)));
            }
            ReceiveState::Idle => {
                entry.begin_receive(&mut ring, self.token);
                keep_waker(&mut entry.reader, cx);
                drop((ring, sockets));
                self.net.pushed();
                return Poll::Pending;
            }
            ReceiveState::InFlight | ReceiveState::Starved => {
                keep_waker(&mut entry.reader, cx);
                return Poll::Pending;
            }
        };
        if empty
            && let ReceiveState::Held(buffer, _) =
                std::mem::replace(&mut entry.receive, ReceiveState::Idle)
        {
            ring.give_back(buffer);
        }
        Poll::Ready(Ok(n))
    }

    /// Waits until a read would not wait: for bytes, the peer's end or an error.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        match entry.receive {
            ReceiveState::Held(..)
            | ReceiveState::Copied(..)
            | ReceiveState::End
            | ReceiveState::Failed(_) => {
                return Poll::Ready(());
            }
            ReceiveState::InFlight | ReceiveState::Starved => keep_waker(&mut entry.reader, cx),
            ReceiveState::Idle => {
                keep_waker(&mut entry.reader, cx);
                entry.begin_receive(&mut self.net.ring.borrow_mut(), self.token);
                drop(sockets);
                self.net.pushed();
            }
        }
        Poll::Pending
    }

    /// Bytes that have arrived and are unread, here and in the kernel. The peer's end and an error
    /// count as one.
    pub fn arrived(&self) -> usize {
        let sockets = self.net.sockets.borrow();
        let entry = &sockets[self.token];
        let here = match &entry.receive {
            ReceiveState::Held(buffer, taken) => buffer.len() - taken,
            ReceiveState::Copied(bytes, taken) => bytes.len() - taken,
            ReceiveState::End | ReceiveState::Failed(_) => 1,
            ReceiveState::Idle | ReceiveState::InFlight | ReceiveState::Starved => 0,
        };
        here + rustix::io::ioctl_fionread(&entry.fd).map_or(0, |bytes| bytes as usize)
    }

    /// Copies up to [`SEND_BYTES_MAX`] of `bytes` and sends them. Waits while an earlier send is in
    /// flight.
    pub fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        let SendState::Idle(room) = &mut entry.send else {
            return entry.poll_sent(cx).map_ok(|()| 0);
        };
        let taken = bytes.len().min(SEND_BYTES_MAX);
        if taken == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut outgoing = std::mem::take(room);
        outgoing.extend_from_slice(&bytes[..taken]);
        let outgoing = Outgoing::Buffer(outgoing);
        entry.begin_send(&mut self.net.ring.borrow_mut(), self.token, outgoing, 0);
        drop(sockets);
        self.net.pushed();
        Poll::Ready(Ok(taken))
    }

    /// Sends all of `bytes` without copying them and leaves an empty buffer in their place. False
    /// if an earlier send is in flight or has failed.
    pub fn send_whole(&self, bytes: &mut Vec<u8>) -> bool {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        let SendState::Idle(room) = &mut entry.send else { return false };
        if bytes.is_empty() {
            return false;
        }
        let outgoing = Outgoing::Buffer(std::mem::replace(bytes, std::mem::take(room)));
        entry.begin_send(&mut self.net.ring.borrow_mut(), self.token, outgoing, 0);
        drop(sockets);
        self.net.pushed();
        true
    }

    /// Sends `bytes[from..]` without copying them. Waits while an earlier send is in flight.
    pub fn poll_send_shared(
        &self,
        cx: &mut Context<'_>,
        bytes: &impl Share,
        from: usize,
    ) -> Poll<io::Result<usize>> {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        if !matches!(entry.send, SendState::Idle(_)) || from == bytes.len() {
            return entry.poll_sent(cx).map_ok(|()| 0);
        }
        let outgoing = Outgoing::Shared(bytes.share());
        entry.begin_send(&mut self.net.ring.borrow_mut(), self.token, outgoing, from);
        drop(sockets);
        self.net.pushed();
        Poll::Ready(Ok(bytes.len() - from))
    }

    /// Waits until the kernel has taken everything that was sent.
    pub fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.net.sockets.borrow_mut()[self.token].poll_sent(cx)
    }

    /// Whether the kernel has taken everything that was sent, as far as is known.
    pub fn has_sent(&self) -> bool {
        matches!(self.net.sockets.borrow()[self.token].send, SendState::Idle(_))
    }

    /// Nothing is buffered here, so a flush only reports a send that has failed.
    pub fn poll_flush(&self) -> Poll<io::Result<()>> {
        match self.net.sockets.borrow()[self.token].send {
            SendState::Failed(code) => Poll::Ready(Err(io::Error::from_raw_os_error(code))),
            SendState::Idle(_) | SendState::InFlight { .. } => Poll::Ready(Ok(())),
        }
    }

    /// Closes our half of the connection after everything is sent.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx))?;
        let sockets = self.net.sockets.borrow();
        let socket = SockRef::from(&sockets[self.token].fd);
        Poll::Ready(socket.shutdown(Shutdown::Write))
    }

    /// Turns Nagle's algorithm off.
    pub fn set_nodelay(&self) -> io::Result<()> {
        let sockets = self.net.sockets.borrow();
        SockRef::from(&sockets[self.token].fd).set_tcp_nodelay(true)
    }

    /// The peer's address; unspecified if the connection has already been reset.
    pub fn peer_ip(&self) -> IpAddr {
        let sockets = self.net.sockets.borrow();
        let peer = SockRef::from(&sockets[self.token].fd).peer_addr().ok();
        let peer = peer.and_then(|address| address.as_socket());
        peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip().to_canonical())
    }

    /// Whether the peer's host has acknowledged everything that was sent. One system call.
    pub fn is_acknowledged(&self) -> bool {
        let sockets = self.net.sockets.borrow();
        let entry = &sockets[self.token];
        matches!(entry.send, SendState::Idle(_))
            && tcp_info(entry.fd.as_fd())
                .is_ok_and(|info| info.tcpi_unacked == 0 && info.tcpi_notsent_bytes == 0)
    }

    /// A handle to read how much the peer has acknowledged. It does not keep the socket open.
    pub fn acknowledged(&self) -> Acknowledged {
        let number = self.net.sockets.borrow()[self.token].number;
        Acknowledged { net: Rc::downgrade(&self.net), token: self.token, number }
    }
}

/// Reads how much of what was sent on one socket its peer has acknowledged.
#[derive(Clone)]
pub struct Acknowledged {
    net: Weak<Net>,
    token: usize,
    number: u64,
}

impl Acknowledged {
    /// The socket's number and the bytes acknowledged so far, or `None` once it is closed. One
    /// system call.
    pub fn read(&self) -> Option<(u64, u64)> {
        let net = self.net.upgrade()?;
        let sockets = net.sockets.borrow();
        let entry = sockets.get(self.token).filter(|entry| entry.number == self.number)?;
        Some((self.number, bytes_acknowledged(entry.fd.as_fd()).ok()?))
    }

    /// Makes closing the socket discard what it has not sent yet. Otherwise the kernel keeps
    /// sending up to 4 MiB (`tcp_wmem`) over a link that may already be too slow.
    pub fn discard_on_close(&self) {
        let Some(net) = self.net.upgrade() else { return };
        let sockets = net.sockets.borrow();
        if let Some(entry) = sockets.get(self.token).filter(|entry| entry.number == self.number) {
            let _socket_may_be_gone = SockRef::from(&entry.fd).set_linger(Some(Duration::ZERO));
        }
    }
}

/// `tcpi_bytes_acked` of `TCP_INFO` (RFC 4898, `tcpEStatsAppHCThruOctetsAcked`). These bytes have
/// reached the peer, not only the socket buffer.
fn bytes_acknowledged(socket: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(tcp_info(socket)?.tcpi_bytes_acked)
}

#[expect(unsafe_code, reason = "neither socket2 nor rustix has TCP_INFO")]
fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    // SAFETY: the structure holds plain numbers, for which all zeros is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes to `info`, which is that long.
    let done = unsafe {
        let info = (&raw mut info).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info, &raw mut size)
    };
    match done {
        0 => Ok(info),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.net.abandon(self.token);
    }
}

impl SocketEntry {
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.send {
            SendState::Idle(_) => Poll::Ready(Ok(())),
            SendState::Failed(code) => Poll::Ready(Err(io::Error::from_raw_os_error(code))),
            SendState::InFlight { .. } => {
                keep_waker(&mut self.writer, cx);
                Poll::Pending
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_read_with(cx, |bytes| {
            let n = bytes.len().min(buf.len());
            buf[..n].copy_from_slice(&bytes[..n]);
            n
        })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Stream::poll_flush(&self)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_shutdown(cx)
    }
}

/// A listening socket.
pub struct Listener {
    net: Rc<Net>,
    token: usize,
}

impl Listener {
    /// The next connection. Dropping the future loses none: the next call returns a connection that
    /// arrives meanwhile.
    pub async fn accept(&self) -> io::Result<Stream> {
        let fd = poll_fn(|cx| {
            let mut sockets = self.net.sockets.borrow_mut();
            let entry = &mut sockets[self.token];
            if let Some(accepted) = entry.accepted.take() {
                return Poll::Ready(accepted);
            }
            keep_waker(&mut entry.reader, cx);
            if entry.in_flight == 0 {
                entry.in_flight += 1;
                self.net.ring.borrow_mut().accept(entry.fd.as_fd(), self.token);
                drop(sockets);
                self.net.pushed();
            }
            Poll::Pending
        })
        .await?;
        Ok(self.net.stream(fd))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.net.abandon(self.token);
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
