//! The sockets of one executor: TCP on an io_uring beside glommio's own, where waiting for bytes costs no system call; and
//! the durable writes of its spool ([`File`]).
//!
//! Every operation is a submission; one task, the driver, hands all that were made since its last turn to the kernel in
//! one call, takes what has completed and wakes who waits for it. It goes on as long as something completes, each turn
//! after all other tasks have run. Then it naps in this ring for as long as `set_nap` says, which takes one call, and after that
//! sleeps on glommio until the ring's bell rings. What is received arrives in
//! buffers of a common pool, so a silent connection holds none; a receive is under way only while somebody waits for
//! it, so what a reader leaves alone stays in the kernel and the peer is slowed down.
//!
//! glommio's streams poll, then receive: three system calls where this has a share of one.

mod file;
mod ring;
mod shared;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures_lite::io::{AsyncRead, AsyncWrite};
use slab::Slab;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

pub use file::{BLOCK, File};
pub use ring::{BUFFER_BYTES, MEMORY_BYTES as POOL_BYTES};
pub use shared::{Share, Shared, Slice};

use crate::rt::{self, yield_now};
use crate::sync::keep_waker;
use ring::{Buffer, Completion, Outcome, Outgoing, Ring};

/// Bytes that one write takes over at most; the next waits until they are the kernel's.
pub const SEND_BYTES_MAX: usize = 64 << 10;
/// Room for outgoing bytes that a connection keeps between two sends: an answer takes 150 bytes, a small PUT 1 KiB.
const SEND_BYTES_KEPT: usize = 4 << 10;

thread_local! {
    /// The executor's number, and its sockets for as long as it or one of them lives.
    static HERE: RefCell<(usize, Weak<Net>)> = const { RefCell::new((0, Weak::new())) };
}

/// The ring of one executor and what its sockets wait for.
pub struct Net {
    ring: RefCell<Ring>,
    sockets: RefCell<Slab<Entry>>,
    files: RefCell<Slab<file::Entry>>,
    /// Sockets whose receive found no buffer.
    starved: RefCell<VecDeque<usize>>,
    /// The driver, while it sleeps.
    sleeper: RefCell<Option<Waker>>,
    spin: Cell<Duration>,
    nap: Cell<Duration>,
    /// Numbers sockets, because a token is used again.
    next_number: Cell<u64>,
}

/// One socket as the driver knows it; outlives its [`Stream`] until its operations have ended.
struct Entry {
    fd: OwnedFd,
    /// Unlike any other socket's of this executor.
    number: u64,
    abandoned: bool,
    /// Operations under way.
    under_way: u32,
    receive: Receive,
    send: Send,
    accepted: Option<io::Result<OwnedFd>>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

enum Receive {
    /// Nobody has asked.
    Quiet,
    UnderWay,
    /// Asked, and there was no buffer.
    Starved,
    /// So many bytes of the buffer are taken.
    Held(Buffer, usize),
    /// The same, when the pool ran dry.
    Moved(Vec<u8>, usize),
    End,
    Failed(i32),
}

enum Send {
    /// With room from the last one.
    Idle(Vec<u8>),
    UnderWay {
        sent: usize,
    },
    Failed(i32),
}

impl Net {
    /// The calling executor's, made at its first use.
    ///
    /// # Errors
    /// As [`probe`]'s.
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

    /// The calling executor's, if it has any sockets.
    pub fn of_this_executor() -> Option<Rc<Net>> {
        let executor = rt::executor_id();
        HERE.with_borrow(|(of, net)| net.upgrade().filter(|_| *of == executor))
    }

    fn start() -> io::Result<Rc<Net>> {
        let ring = Ring::new()?;
        let bell = ring.bell()?;
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
        rt::spawn(drive(net.clone(), bell)).detach();
        Ok(net)
    }

    /// How long the driver goes on looking when nothing completes, before it sleeps: trades CPU for latency.
    pub fn set_spin(&self, spin: Duration) {
        self.spin.set(spin);
    }

    /// How long the driver may sleep in its own ring before it lets glommio sleep. Meanwhile timers and whatever else glommio
    /// waits for come late by as much, but for what is announced by [`rt::foreign_wait`].
    pub fn set_nap(&self, nap: Duration) {
        self.nap.set(nap);
    }

    /// Where the kernel may do what it cannot do at once: syncs, above all.
    pub fn place_kernel_workers(&self, cpus: &[usize]) -> io::Result<()> {
        self.ring.borrow().place_workers(cpus)
    }

    /// A connected stream socket.
    pub fn stream(self: &Rc<Net>, fd: impl Into<OwnedFd>) -> Stream {
        Stream { net: self.clone(), token: self.enter(fd.into()) }
    }

    /// A listening socket.
    pub fn listener(self: &Rc<Net>, socket: Socket) -> Listener {
        Listener { net: self.clone(), token: self.enter(socket.into()) }
    }

    /// Connects to `address`; dropped early, it closes the socket.
    pub async fn connect(self: &Rc<Net>, address: SocketAddr) -> io::Result<Stream> {
        let kind = Type::STREAM.cloexec().nonblocking();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        let stream = self.stream(socket);
        {
            let mut sockets = self.sockets.borrow_mut();
            let entry = &mut sockets[stream.token];
            entry.send = Send::UnderWay { sent: 0 };
            entry.under_way += 1;
            self.ring.borrow_mut().connect(entry.fd.as_fd(), stream.token, address);
        }
        self.pushed();
        poll_fn(|cx| stream.poll_sent(cx)).await?;
        Ok(stream)
    }

    /// Lets every task run that can, and gives the kernel what they have written.
    pub async fn hand_over(&self) {
        yield_now().await;
        // The driver goes on with what that has made to do.
        self.take_in_now();
    }

    /// Gives the kernel what was written and takes in what it has; who waits for that is woken.
    pub fn take_in_now(&self) {
        self.turn();
        self.pushed();
    }

    fn enter(&self, fd: OwnedFd) -> usize {
        let number = self.next_number.replace(self.next_number.get() + 1);
        self.sockets.borrow_mut().insert(Entry {
            fd,
            number,
            abandoned: false,
            under_way: 0,
            receive: Receive::Quiet,
            send: Send::Idle(Vec::new()),
            accepted: None,
            reader: None,
            writer: None,
        })
    }

    /// Its operations are ended, and when they have, it is closed.
    fn abandon(&self, token: usize) {
        let mut sockets = self.sockets.borrow_mut();
        let entry = &mut sockets[token];
        (entry.abandoned, entry.reader, entry.writer) = (true, None, None);
        if let Receive::Held(buffer, _) = std::mem::replace(&mut entry.receive, Receive::Quiet) {
            self.ring.borrow_mut().give_back(buffer);
        }
        if entry.under_way == 0 {
            sockets.remove(token);
            return;
        }
        self.ring.borrow_mut().cancel(entry.fd.as_fd());
        drop(sockets);
        self.pushed();
    }

    /// A submission waits for the driver's next turn.
    fn pushed(&self) {
        if let Some(sleeper) = self.sleeper.take() {
            sleeper.wake();
        }
    }

    /// Hands over and takes in; true if anything had completed.
    fn turn(&self) -> bool {
        self.take_in(Ring::turn)
    }

    /// The same after what the kernel says in `look`.
    fn take_in(&self, look: impl FnOnce(&mut Ring) -> io::Result<bool>) -> bool {
        let mut ring = self.ring.borrow_mut();
        if !look(&mut ring).expect("the kernel goes on with a ring that it made") {
            return false;
        }
        let mut sockets = self.sockets.borrow_mut();
        while let Some(completion) = ring.next() {
            self.completed(&mut ring, &mut sockets, completion);
        }
        if !self.starved.borrow().is_empty() {
            self.feed(&mut ring, &mut sockets);
        }
        true
    }

    fn completed(&self, ring: &mut Ring, sockets: &mut Slab<Entry>, completion: Completion) {
        let Completion { token, what } = completion;
        let what = match what {
            Outcome::Synced(outcome) => {
                return file::synced(&mut self.files.borrow_mut(), token, outcome);
            }
            of_socket => of_socket,
        };
        let entry = &mut sockets[token];
        entry.under_way -= 1;
        let waker = match what {
            Outcome::Received(Ok(Some(buffer))) if entry.abandoned => {
                ring.give_back(buffer);
                &None
            }
            Outcome::Received(Err(e)) if ring::is_exhausted(&e) && !entry.abandoned => {
                entry.receive = Receive::Starved;
                self.starved.borrow_mut().push_back(token);
                &None
            }
            Outcome::Received(received) => {
                entry.receive = match received {
                    Ok(Some(buffer)) => Receive::Held(buffer, 0),
                    Ok(None) => Receive::End,
                    Err(e) => Receive::Failed(code(&e)),
                };
                &entry.reader
            }
            Outcome::Sent(bytes, sent) => entry.sent(ring, token, bytes, sent),
            Outcome::Accepted(accepted) => {
                entry.accepted = Some(accepted);
                &entry.reader
            }
            Outcome::Connected(connected) => {
                entry.send = match connected {
                    Ok(()) => Send::Idle(Vec::new()),
                    Err(e) => Send::Failed(code(&e)),
                };
                &entry.writer
            }
            Outcome::Synced(_) => unreachable!("of a file"),
        };
        if let Some(waker) = waker {
            waker.wake_by_ref();
        }
        if entry.abandoned && entry.under_way == 0 {
            sockets.remove(token);
        }
    }

    /// The pool had run dry: buffers whose readers have not come for them are emptied, and who had none tries again.
    fn feed(&self, ring: &mut Ring, sockets: &mut Slab<Entry>) {
        for (_, entry) in sockets.iter_mut() {
            if let Receive::Held(buffer, taken) = &entry.receive {
                let moved = Receive::Moved(ring.bytes(buffer)[*taken..].to_vec(), 0);
                if let Receive::Held(buffer, _) = std::mem::replace(&mut entry.receive, moved) {
                    ring.give_back(buffer);
                }
            }
        }
        for token in self.starved.take() {
            // The token may have another owner by now.
            if let Some(entry) = sockets.get_mut(token)
                && matches!(entry.receive, Receive::Starved)
            {
                entry.ask(ring, token);
            }
        }
    }
}

impl Entry {
    /// Lets the kernel look for bytes.
    fn ask(&mut self, ring: &mut Ring, token: usize) {
        self.receive = Receive::UnderWay;
        self.under_way += 1;
        ring.receive(self.fd.as_fd(), token);
    }

    fn begin_send(&mut self, ring: &mut Ring, token: usize, outgoing: Outgoing, from: usize) {
        self.send = Send::UnderWay { sent: from };
        self.under_way += 1;
        ring.send(self.fd.as_fd(), token, outgoing, from);
    }

    /// A send has ended; its rest goes on.
    fn sent(
        &mut self,
        ring: &mut Ring,
        token: usize,
        bytes: Outgoing,
        outcome: io::Result<usize>,
    ) -> &Option<Waker> {
        let Send::UnderWay { sent: before } = self.send else { unreachable!("it was under way") };
        self.send = match outcome {
            Err(e) => Send::Failed(code(&e)),
            Ok(0) => Send::Failed(libc::EPIPE),
            Ok(n) if before + n < bytes.len() && !self.abandoned => {
                let sent = before + n;
                self.under_way += 1;
                ring.send(self.fd.as_fd(), token, bytes, sent);
                self.send = Send::UnderWay { sent };
                return &None;
            }
            Ok(_) => match bytes {
                Outgoing::Buffer(mut bytes) => {
                    bytes.clear();
                    bytes.shrink_to(SEND_BYTES_KEPT);
                    Send::Idle(bytes)
                }
                Outgoing::Shared(_) => Send::Idle(Vec::new()),
            },
        };
        &self.writer
    }
}

fn code(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Turns, as long as there is something to do; else sleeps until there is.
async fn drive(net: Rc<Net>, bell: glommio::io::BufferedFile) {
    let bell = Rc::new(bell);
    let mut ringing = None;
    net.ring.borrow_mut().announce(false);
    loop {
        while net.turn() {
            yield_now().await;
        }
        if spin(&net).await || nap(&net).await {
            continue;
        }
        net.ring.borrow_mut().announce(true);
        // What completed before the bell could ring.
        if !net.turn() {
            let ringing = ringing.get_or_insert_with(|| Box::pin(wait_for(bell.clone())));
            let rang = sleep(&net, ringing.as_mut()).await;
            if rang {
                ringing.set(wait_for(bell.clone()));
            }
        }
        net.ring.borrow_mut().announce(false);
        yield_now().await;
    }
}

/// Looks for as long as `Net::set_spin` says; true as soon as something had completed.
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

/// Waits in the ring itself if this executor has nothing else to do: one system call, where glommio's sleep and what
/// wakes from it take ten. True if there is something to do now.
async fn nap(net: &Net) -> bool {
    let limit = net.nap.get();
    if limit.is_zero() || rt::has_foreign_waits() {
        return false;
    }
    if !rt::is_idle().await {
        return true;
    }
    net.take_in(|ring| ring.nap(limit))
}

async fn wait_for(bell: Rc<glommio::io::BufferedFile>) {
    bell.read_at(0, 8).await.expect("an event descriptor can be read");
}

/// Until the bell has rung (then true) or a submission waits.
async fn sleep(net: &Net, mut bell: Pin<&mut impl Future<Output = ()>>) -> bool {
    let mut asleep = false;
    poll_fn(|cx| {
        if bell.as_mut().poll(cx).is_ready() {
            net.sleeper.take();
            return Poll::Ready(true);
        }
        // Taken by who pushed.
        if asleep && net.sleeper.borrow().is_none() {
            return Poll::Ready(false);
        }
        asleep = true;
        net.sleeper.replace(Some(cx.waker().clone()));
        Poll::Pending
    })
    .await
}

/// One connected socket; dropping it ends its operations and closes it.
pub struct Stream {
    net: Rc<Net>,
    token: usize,
}

impl Stream {
    /// The sockets that it is one of.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Lets `take` see what has arrived and say how much of that it has taken, or waits; 0 is the peer's end.
    pub fn poll_read_with(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        let mut ring = self.net.ring.borrow_mut();
        let (n, empty) = match &mut entry.receive {
            Receive::Held(buffer, taken) => {
                let n = take(&ring.bytes(buffer)[*taken..]);
                *taken += n;
                (n, *taken == buffer.len())
            }
            Receive::Moved(bytes, taken) => {
                let n = take(&bytes[*taken..]);
                *taken += n;
                (n, *taken == bytes.len())
            }
            Receive::End => return Poll::Ready(Ok(0)),
            Receive::Failed(code) => {
                return Poll::Ready(Err(io::Error::from_raw_os_error(*code)));
            }
            Receive::Quiet => {
                entry.ask(&mut ring, self.token);
                keep_waker(&mut entry.reader, cx);
                drop((ring, sockets));
                self.net.pushed();
                return Poll::Pending;
            }
            Receive::UnderWay | Receive::Starved => {
                keep_waker(&mut entry.reader, cx);
                return Poll::Pending;
            }
        };
        if empty
            && let Receive::Held(buffer, _) = std::mem::replace(&mut entry.receive, Receive::Quiet)
        {
            ring.give_back(buffer);
        }
        Poll::Ready(Ok(n))
    }

    /// Waits until there is something to read, the peer's end and an error included.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        match entry.receive {
            Receive::Held(..) | Receive::Moved(..) | Receive::End | Receive::Failed(_) => {
                return Poll::Ready(());
            }
            Receive::UnderWay | Receive::Starved => keep_waker(&mut entry.reader, cx),
            Receive::Quiet => {
                keep_waker(&mut entry.reader, cx);
                entry.ask(&mut self.net.ring.borrow_mut(), self.token);
                drop(sockets);
                self.net.pushed();
            }
        }
        Poll::Pending
    }

    /// Bytes that have arrived and that nobody has read, here and in the kernel. The peer's end and an error count as one.
    pub fn arrived(&self) -> usize {
        let sockets = self.net.sockets.borrow();
        let entry = &sockets[self.token];
        let here = match &entry.receive {
            Receive::Held(buffer, taken) => buffer.len() - taken,
            Receive::Moved(bytes, taken) => bytes.len() - taken,
            Receive::End | Receive::Failed(_) => 1,
            Receive::Quiet | Receive::UnderWay | Receive::Starved => 0,
        };
        here + rustix::io::ioctl_fionread(&entry.fd).map_or(0, |bytes| bytes as usize)
    }

    /// Takes over up to [`SEND_BYTES_MAX`] of `bytes` and sends them, unless some are still on their way to the kernel.
    pub fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        let Send::Idle(room) = &mut entry.send else {
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

    /// Sends all of `bytes` without copying them and leaves an empty buffer in their place; false if others are still on
    /// their way, or none can be sent any more.
    pub fn send_whole(&self, bytes: &mut Vec<u8>) -> bool {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        let Send::Idle(room) = &mut entry.send else { return false };
        if bytes.is_empty() {
            return false;
        }
        let outgoing = Outgoing::Buffer(std::mem::replace(bytes, std::mem::take(room)));
        entry.begin_send(&mut self.net.ring.borrow_mut(), self.token, outgoing, 0);
        drop(sockets);
        self.net.pushed();
        true
    }

    /// Sends `bytes` from `from` to their end, without copying them, unless other bytes are still on their way.
    pub fn poll_send_shared(
        &self,
        cx: &mut Context<'_>,
        bytes: &impl Share,
        from: usize,
    ) -> Poll<io::Result<usize>> {
        let mut sockets = self.net.sockets.borrow_mut();
        let entry = &mut sockets[self.token];
        if !matches!(entry.send, Send::Idle(_)) || from == bytes.len() {
            return entry.poll_sent(cx).map_ok(|()| 0);
        }
        let outgoing = Outgoing::Shared(bytes.share());
        entry.begin_send(&mut self.net.ring.borrow_mut(), self.token, outgoing, from);
        drop(sockets);
        self.net.pushed();
        Poll::Ready(Ok(bytes.len() - from))
    }

    /// Whether all that was taken over is the kernel's.
    pub fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.net.sockets.borrow_mut()[self.token].poll_sent(cx)
    }

    /// Whether all that was taken over is the kernel's, as far as is known.
    pub fn has_sent(&self) -> bool {
        matches!(self.net.sockets.borrow()[self.token].send, Send::Idle(_))
    }

    /// Nothing waits here for a flush; tells of a send that has failed.
    pub fn poll_flush(&self) -> Poll<io::Result<()>> {
        match self.net.sockets.borrow()[self.token].send {
            Send::Failed(code) => Poll::Ready(Err(io::Error::from_raw_os_error(code))),
            Send::Idle(_) | Send::UnderWay { .. } => Poll::Ready(Ok(())),
        }
    }

    /// Ends our half once everything is sent.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx))?;
        let sockets = self.net.sockets.borrow();
        let socket = SockRef::from(&sockets[self.token].fd);
        Poll::Ready(socket.shutdown(Shutdown::Write))
    }

    pub fn set_nodelay(&self) -> io::Result<()> {
        let sockets = self.net.sockets.borrow();
        SockRef::from(&sockets[self.token].fd).set_tcp_nodelay(true)
    }

    /// A view of how much its peer has acknowledged, which does not keep the socket open.
    pub fn acknowledged(&self) -> Acknowledged {
        let number = self.net.sockets.borrow()[self.token].number;
        Acknowledged { net: Rc::downgrade(&self.net), token: self.token, number }
    }
}

/// How much of what was sent on one socket its peer has acknowledged.
#[derive(Clone)]
pub struct Acknowledged {
    net: Weak<Net>,
    token: usize,
    number: u64,
}

impl Acknowledged {
    /// The socket's number and the bytes acknowledged so far; `None` once it is closed. One system call.
    pub fn read(&self) -> Option<(u64, u64)> {
        let net = self.net.upgrade()?;
        let sockets = net.sockets.borrow();
        let entry = sockets.get(self.token).filter(|entry| entry.number == self.number)?;
        Some((self.number, bytes_acknowledged(entry.fd.as_fd()).ok()?))
    }

    /// When the socket is closed, what it has not sent yet is thrown away. Without this the kernel goes on sending it,
    /// up to 4 MiB (`tcp_wmem`), over a link that may be too slow already.
    pub fn discard_on_close(&self) {
        let Some(net) = self.net.upgrade() else { return };
        let sockets = net.sockets.borrow();
        if let Some(entry) = sockets.get(self.token).filter(|entry| entry.number == self.number) {
            let _socket_may_be_gone = SockRef::from(&entry.fd).set_linger(Some(Duration::ZERO));
        }
    }
}

/// `tcpi_bytes_acked` of `TCP_INFO` (RFC 4898, `tcpEStatsAppHCThruOctetsAcked`): unlike what the socket buffer has
/// taken, these bytes have reached the peer.
#[expect(unsafe_code, reason = "neither socket2 nor rustix has TCP_INFO")]
fn bytes_acknowledged(socket: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: plain numbers, for which all zeros is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes to `info`, which has as many.
    let done = unsafe {
        let info = (&raw mut info).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info, &raw mut size)
    };
    match done {
        0 => Ok(info.tcpi_bytes_acked),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.net.abandon(self.token);
    }
}

impl Entry {
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.send {
            Send::Idle(_) => Poll::Ready(Ok(())),
            Send::Failed(code) => Poll::Ready(Err(io::Error::from_raw_os_error(code))),
            Send::UnderWay { .. } => {
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
    /// The next connection. Dropped early it loses none: a connection that comes in the meantime is the next call's.
    pub async fn accept(&self) -> io::Result<Stream> {
        let fd = poll_fn(|cx| {
            let mut sockets = self.net.sockets.borrow_mut();
            let entry = &mut sockets[self.token];
            if let Some(accepted) = entry.accepted.take() {
                return Poll::Ready(accepted);
            }
            keep_waker(&mut entry.reader, cx);
            if entry.under_way == 0 {
                entry.under_way += 1;
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

/// Whether this host gives us such a ring.
///
/// # Errors
/// The kernel is older than 6.1, or forbids io_uring.
pub fn probe() -> io::Result<()> {
    Ring::new().map(drop)
}

#[cfg(test)]
mod tests;
