//! An io_uring of our own with receive buffers that the kernel picks from. This file and its
//! submodules hold all raw memory of the transport.
//!
//! The interface is safe because [`Ring`] owns whatever the kernel may still write to or read from
//! until it has seen the operation's completion: the pool owns receive buffers, `lent` owns
//! outgoing bytes and addresses, `written` owns what is written to files. A ring that is dropped
//! with operations in flight cancels them first, and leaks the memory of those that do not complete
//! in time.
//!
//! Sources: `io_uring_setup(2)`, `io_uring_enter(2)`, `io_uring_register_buf_ring(3)`.
#![expect(unsafe_code, reason = "submissions name memory by address")]

mod pair;
mod pool;

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use glommio::io::{BufferedFile, DmaBuffer};
use io_uring::types::{CancelBuilder, Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Submitter, cqueue, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};
use socket2::SockAddr;

use super::shared::Slice;
use super::spare::SpareBuffers;
use crate::rt;
use pair::Pair;
pub use pool::MEMORY_BYTES;
use pool::Pool;

/// Capacity of the submission queue. A full queue is submitted at once.
const SUBMISSIONS: u32 = 1024;
/// Capacity of the completion queue. Further completions wait in the kernel until these are read.
const COMPLETIONS: u32 = 4096;
/// Unread completions from which on the kernel posts no more: enough for a turn of the driver. It
/// posts up to 40 at a time, so otherwise they add up until no receive finds a buffer.
pub const UNREAD_ENOUGH: usize = 32;
/// Size of one receive buffer: as much as hyper reads at a time.
pub const BUFFER_BYTES: usize = 16 << 10;
/// Number of receive buffers, a power of two. A buffer is in use from when the kernel has filled it
/// until its bytes are read or copied, so this bounds how many connections have bytes here that wait
/// for their readers, not how many connections there are: the bytes of further ones wait in the
/// kernel. A turn hands fewer to their readers (`src/net/driver.rs`).
pub const BUFFERS: u16 = 256;
/// The buffer group of the pool; a ring has one pool.
const GROUP: u16 = 0;
/// `IORING_RECVSEND_POLL_FIRST`: waits for the socket without trying to receive first.
const POLL_FIRST: u16 = 1;
/// Sockets whose lent memory is listed together. A list of all that doubles would leave as much memory
/// behind that is of use to nobody else.
const LENT_STEP: usize = 64;
/// How long a ring that is dropped waits for cancelled operations to complete.
const CANCEL_WAIT_MAX: Duration = Duration::from_millis(100);

/// The kind of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpKind {
    Receive = 0,
    Send = 1,
    Accept = 2,
    Connect = 3,
    /// Writes to a file. File tokens are numbered separately from socket tokens.
    Write = 4,
    /// Syncs the same file. Linked to the write: the kernel starts it only if the write was
    /// complete.
    Sync = 5,
    /// Nobody waits for the result, so a cancel has no token.
    Cancel = 6,
}

/// The `user_data` of a submission and of its completion: the kind in the low bits, the owner's
/// token above them.
#[derive(Clone, Copy)]
struct Tag(u64);

impl Tag {
    const KIND_BITS: u32 = 3;
    const KIND_MASK: u64 = (1 << Tag::KIND_BITS) - 1;
    const CANCEL: Tag = Tag::new(0, OpKind::Cancel);

    const fn new(token: usize, kind: OpKind) -> Tag {
        Tag((token as u64) << Tag::KIND_BITS | kind as u64)
    }

    const fn token(self) -> usize {
        (self.0 >> Tag::KIND_BITS) as usize
    }

    const fn kind(self) -> OpKind {
        match self.0 & Tag::KIND_MASK {
            0 => OpKind::Receive,
            1 => OpKind::Send,
            2 => OpKind::Accept,
            3 => OpKind::Connect,
            4 => OpKind::Write,
            5 => OpKind::Sync,
            6 => OpKind::Cancel,
            // 7 is no kind, and a tag is only ever made from one.
            _ => unreachable!(),
        }
    }
}

/// An operation that has ended, or brought something.
pub struct Completion {
    pub token: usize,
    pub result: OpResult,
    /// It goes on: a continuous receive that has brought bytes.
    pub continues: bool,
}

impl Completion {
    /// Whether the task that it wakes begins something new: it has bytes or a connection.
    pub fn brings_work(&self) -> bool {
        match &self.result {
            OpResult::Received(Err(error)) => !is_exhausted(error),
            OpResult::Received(Ok(_)) | OpResult::Accepted(_) => true,
            OpResult::Sent(..) | OpResult::Connected(_) | OpResult::Synced(_) => false,
        }
    }
}

/// What an operation gave.
pub enum OpResult {
    /// The bytes received, or `None` when the peer has closed its half.
    Received(io::Result<Option<Buffer>>),
    /// The bytes that were lent, and how many more of them the kernel has taken.
    Sent(Outgoing, io::Result<usize>),
    Accepted(io::Result<OwnedFd>),
    Connected(io::Result<()>),
    /// A write to a file and the sync behind it have ended.
    Synced(io::Result<()>),
}

/// One receive buffer with bytes in it, to be returned with [`Ring::give_back`].
pub struct Buffer {
    id: u16,
    length: u32,
    /// The socket had more bytes than these, or the peer's end, when they were received.
    more: bool,
}

impl Buffer {
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether the next receive need not wait, as far as is known.
    pub fn more(&self) -> bool {
        self.more
    }
}

/// Bytes to send.
pub enum Outgoing {
    Buffer(Vec<u8>),
    /// Other holders do not change them.
    Shared(Slice),
    /// A buffer, and shared bytes behind it.
    Pair(Box<Pair>),
}

impl Outgoing {
    /// `buffer`, and `shared` behind it.
    pub fn pair(buffer: Vec<u8>, shared: Slice) -> Outgoing {
        Outgoing::Pair(Pair::new(buffer, shared))
    }

    pub fn len(&self) -> usize {
        match self {
            Outgoing::Buffer(bytes) => bytes.len(),
            Outgoing::Shared(bytes) => bytes.len(),
            Outgoing::Pair(pair) => pair.len(),
        }
    }

    /// Its buffer, if it has one, for another send.
    pub fn into_buffer(self) -> Option<Vec<u8>> {
        match self {
            Outgoing::Buffer(bytes) => Some(bytes),
            Outgoing::Shared(_) => None,
            Outgoing::Pair(pair) => Some(pair.into_head()),
        }
    }
}

/// Memory that the kernel may read until the operation has ended.
enum Lent {
    Bytes(Outgoing),
    Address(#[expect(dead_code, reason = "read by the kernel")] Box<SockAddr>),
}

/// An io_uring with its buffer pool, used by one thread.
pub struct Ring {
    uring: ManuallyDrop<IoUring>,
    pool: ManuallyDrop<Pool>,
    /// By socket token, in steps of [`LENT_STEP`]. A socket has at most one send or connect in flight.
    #[expect(clippy::vec_box, reason = "a list of many places would leave large pieces behind")]
    lent: ManuallyDrop<Vec<Box<[Option<Lent>; LENT_STEP]>>>,
    /// By file token: the buffer that is being written.
    written: ManuallyDrop<Vec<Option<DmaBuffer>>>,
    /// The eventfd that the kernel signals on completions, if enabled.
    event: OwnedFd,
    /// What outgoing bytes were in.
    pub spare: SpareBuffers,
    /// Operations that have not ended.
    in_flight: usize,
    /// Chains of submissions that found the queue full while the kernel took nothing. They enter
    /// the queue in this order, before any later one. Bounded by what can be in flight: a receive,
    /// a send and two cancels for each socket, a write for each file.
    backlog: VecDeque<Vec<squeue::Entry>>,
    /// Errors that the next calls to the kernel return instead of being made.
    #[cfg(test)]
    refusals: VecDeque<i32>,
    /// Receives that were begun so far.
    #[cfg(test)]
    pub receives: usize,
}

impl Ring {
    /// A ring for the calling thread.
    ///
    /// # Errors
    /// The kernel is older than 6.1, or forbids io_uring.
    pub fn new() -> io::Result<Ring> {
        Ring::sized(SUBMISSIONS, COMPLETIONS)
    }

    fn sized(submissions: u32, completions: u32) -> io::Result<Ring> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(completions)
            .build(submissions)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        uring.submitter().register_eventfd(event.as_raw_fd())?;
        let pool = Pool::new()?;
        // SAFETY: the pool's entries stay mapped until the pool is dropped, which is after `uring`,
        // see `drop`.
        unsafe {
            let entries = pool.entries.as_ptr() as u64;
            uring.submitter().register_buf_ring_with_flags(entries, BUFFERS, GROUP, 0)?;
        }
        Ok(Ring {
            uring: ManuallyDrop::new(uring),
            pool: ManuallyDrop::new(pool),
            lent: ManuallyDrop::default(),
            written: ManuallyDrop::default(),
            event,
            spare: SpareBuffers::default(),
            in_flight: 0,
            backlog: VecDeque::new(),
            #[cfg(test)]
            refusals: VecDeque::new(),
            #[cfg(test)]
            receives: 0,
        })
    }

    /// Sets the CPU affinity of this thread's io-wq workers, which run blocking operations such as
    /// fsync. By default they use any CPU of the cgroup, whatever this thread is pinned to.
    pub fn set_worker_cpus(&self, cpus: &[usize]) -> io::Result<()> {
        // SAFETY: a set of CPUs is a plain bit field, and all zeros is the empty one.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for cpu in cpus.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
            // SAFETY: the filter has checked that `cpu` is within the set.
            unsafe { libc::CPU_SET(*cpu, &mut set) };
        }
        self.uring.submitter().register_iowq_aff(&set)
    }

    /// The eventfd as a file on which glommio can wait: after [`Ring::enable_eventfd`], a read of 8
    /// bytes ends when an operation has completed.
    pub fn eventfd(&self) -> io::Result<BufferedFile> {
        let event = self.event.try_clone()?;
        // SAFETY: the duplicate has no other owner.
        Ok(unsafe { BufferedFile::from_raw_fd(event.into_raw_fd()) })
    }

    /// Whether completions signal the eventfd.
    pub fn enable_eventfd(&mut self, enabled: bool) {
        let completions = self.uring.completion();
        if enabled { completions.enable_eventfd() } else { completions.disable_eventfd() }
    }

    /// Receives once from `fd` into a buffer of the pool. [`is_exhausted`] recognizes the error of an
    /// empty pool.
    ///
    /// If bytes have `arrived`, it takes them at once; otherwise it waits for the socket without
    /// trying first.
    pub fn receive(&mut self, fd: BorrowedFd<'_>, token: usize, arrived: bool) {
        let mode = if arrived { 0 } else { POLL_FIRST };
        self.push_receive(fd, token, BUFFER_BYTES as u32, mode);
    }

    /// Receives again and again until the peer's end, an error or an empty pool.
    ///
    /// If the peer sends bytes and then resets the connection before they are received, it may bring
    /// the bytes and not tell of the reset: a multishot receive misses it on kernels without
    /// "io_uring/poll: fix multishot recv missing EOF on wakeup race" (CVE-2026-23473).
    pub fn receive_continuously(&mut self, fd: BorrowedFd<'_>, token: usize) {
        const MULTISHOT: u16 = 2;
        self.push_receive(fd, token, 0, POLL_FIRST | MULTISHOT);
    }

    fn push_receive(&mut self, fd: BorrowedFd<'_>, token: usize, bytes_max: u32, mode: u16) {
        #[cfg(test)]
        {
            self.receives += 1;
        }
        let entry = opcode::Recv::new(Fd(fd.as_raw_fd()), std::ptr::null_mut(), bytes_max)
            .buf_group(GROUP)
            .ioprio(mode)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        // SAFETY: names no memory; the kernel takes its buffer from the pool.
        unsafe { self.push(entry, token, OpKind::Receive) };
    }

    /// Sends `bytes[from..]`. The completion returns `bytes`.
    ///
    /// # Panics
    /// Another send or connect of `token` is in flight.
    pub fn send(&mut self, fd: BorrowedFd<'_>, token: usize, mut bytes: Outgoing, from: usize) {
        let fd = Fd(fd.as_raw_fd());
        // With MSG_WAITALL the kernel itself continues after a short send.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let one_part = |part: &[u8]| {
            let length = u32::try_from(part.len()).expect("a send is short");
            opcode::Send::new(fd, part.as_ptr(), length).flags(flags).build()
        };
        let entry = match &mut bytes {
            Outgoing::Buffer(bytes) => one_part(&bytes[from..]),
            Outgoing::Shared(bytes) => one_part(&bytes[from..]),
            Outgoing::Pair(pair) => {
                opcode::SendMsg::new(fd, pair.message(from)).flags(flags as u32).build()
            }
        };
        self.lend(token, Lent::Bytes(bytes));
        // SAFETY: the bytes, and the list of a pair's parts, are in heap allocations, which do not
        // move with `bytes` and which `lent` keeps unchanged until the completion.
        unsafe { self.push(entry, token, OpKind::Send) };
    }

    /// Accepts one connection on `fd`.
    pub fn accept(&mut self, fd: BorrowedFd<'_>, token: usize) {
        let null = std::ptr::null_mut();
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let entry = opcode::Accept::new(Fd(fd.as_raw_fd()), null, null.cast()).flags(flags).build();
        // SAFETY: names no memory, because the peer's address is not requested.
        unsafe { self.push(entry, token, OpKind::Accept) };
    }

    /// Connects `fd` to `address`.
    ///
    /// # Panics
    /// Another send or connect of `token` is in flight.
    pub fn connect(&mut self, fd: BorrowedFd<'_>, token: usize, address: SocketAddr) {
        let address = Box::new(SockAddr::from(address));
        let (start, length) = (address.as_ptr(), address.len());
        let entry = opcode::Connect::new(Fd(fd.as_raw_fd()), start.cast(), length).build();
        self.lend(token, Lent::Address(address));
        // SAFETY: `lent` keeps the boxed address, which does not move, until the completion.
        unsafe { self.push(entry, token, OpKind::Connect) };
    }

    /// Writes all of `bytes` to the file `fd` at offset `at`, then syncs its data. `token` is a
    /// file token. No task has to run in between, and there is one completion
    /// (`IOSQE_CQE_SKIP_SUCCESS`): the sync's, or the write's if the write fails; the sync then
    /// posts none.
    ///
    /// # Panics
    /// Another write of `token` is in flight.
    pub fn write_synced(&mut self, fd: BorrowedFd<'_>, token: usize, bytes: DmaBuffer, at: u64) {
        if self.written.len() <= token {
            self.written.resize_with(token + 1, || None);
        }
        assert!(self.written[token].is_none(), "one write of a file at a time");
        let fd = Fd(fd.as_raw_fd());
        let length = u32::try_from(bytes.len()).expect("a commit group is short");
        let write = opcode::Write::new(fd, bytes.as_ptr(), length).offset(at).build();
        let write = write.flags(squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS);
        let write = write.user_data(Tag::new(token, OpKind::Write).0);
        let sync = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build();
        let sync = sync.user_data(Tag::new(token, OpKind::Sync).0);
        self.written[token] = Some(bytes);
        // SAFETY: the buffer is in an allocation that does not move with `bytes`. `written` keeps
        // `bytes` until the completion, which comes after the write has ended. The allocation is
        // part of glommio's arena; a `DmaBuffer` holds an `Rc` of its allocator (glommio 0.9,
        // `sys/uring.rs`, `UringBuffer`), so the arena lives as long as the buffer, also when a
        // dropped ring leaks it. The sync names no memory.
        unsafe { self.push_linked(&[write, sync]) };
        self.in_flight += 1;
    }

    /// Cancels the receive of a socket, which completes with `ECANCELED` unless it ends by itself.
    pub fn cancel_receive(&mut self, token: usize) {
        let builder = CancelBuilder::user_data(Tag::new(token, OpKind::Receive).0);
        let entry = opcode::AsyncCancel2::new(builder).build().user_data(Tag::CANCEL.0);
        // SAFETY: names no memory.
        unsafe { self.push_entry(&entry) };
        self.in_flight += 1;
    }

    /// Cancels all operations on `fd`. They still complete, with an error.
    pub fn cancel(&mut self, fd: BorrowedFd<'_>) {
        let builder = CancelBuilder::fd(Fd(fd.as_raw_fd())).all();
        let entry = opcode::AsyncCancel2::new(builder).build().user_data(Tag::CANCEL.0);
        // SAFETY: names no memory.
        unsafe { self.push_entry(&entry) };
        self.in_flight += 1;
    }

    /// Submits what was pushed and lets the kernel post completions, unless many are unread: those
    /// hold receive buffers. True if there are any, or if the kernel has more work to do. Makes no
    /// system call when there is nothing to do.
    ///
    /// # Errors
    /// The kernel refuses the ring itself: no later call can succeed.
    pub fn turn(&mut self) -> io::Result<bool> {
        const GET_EVENTS: u32 = 1;
        let unread = self.uring.completion().len();
        let has_enough = unread >= UNREAD_ENOUGH;
        let submissions = self.uring.submission();
        let (pushed, work) =
            (submissions.len(), submissions.taskrun() || submissions.cq_overflow());
        drop(submissions);
        if pushed > 0 || work && !has_enough {
            self.pool.refill(unread);
            let flags = if has_enough { 0 } else { GET_EVENTS };
            // SAFETY: no argument is given, so none is read.
            self.enter(|kernel| unsafe { kernel.enter::<()>(pushed as u32, 0, flags, None) })?;
        }
        if !self.backlog.is_empty() {
            self.take_from_backlog();
        }
        let left = self.uring.submission();
        let unfinished = !left.is_empty() || left.taskrun() || left.cq_overflow();
        drop(left);
        Ok(unfinished || !self.uring.completion().is_empty())
    }

    /// Submits what was pushed, and leaves completions to the next turn.
    pub fn submit(&mut self) {
        // An error is the ring's own, and the next turn gets it again.
        let _ends_the_next_turn = self.enter(|kernel| kernel.submit());
    }

    /// [`Ring::turn`] that sleeps up to `limit` in this ring until something completes: a short
    /// sleep, a "nap".
    ///
    /// # Errors
    /// As for [`Ring::turn`].
    pub fn nap(&mut self, limit: Duration) -> io::Result<bool> {
        if !self.backlog.is_empty() {
            return self.turn();
        }
        let unread = self.uring.completion().len();
        self.pool.refill(unread);
        let limit = Timespec::from(limit);
        let until = SubmitArgs::new().timespec(&limit);
        self.enter(|kernel| kernel.submit_with_args(1, &until))?;
        Ok(!self.uring.completion().is_empty())
    }

    /// Makes every call that submits; [`judge`] interprets the result.
    fn enter(&mut self, call: impl FnOnce(&Submitter<'_>) -> io::Result<usize>) -> io::Result<()> {
        #[cfg(test)]
        if let Some(errno) = self.refusals.pop_front() {
            return judge(Err(io::Error::from_raw_os_error(errno)));
        }
        judge(call(&self.uring.submitter()))
    }

    /// The next completion other than a cancel's.
    pub fn next(&mut self) -> Option<Completion> {
        loop {
            let entry = self.uring.completion().next()?;
            let continues = cqueue::more(entry.flags());
            self.in_flight -= usize::from(!continues);
            let tag = Tag(entry.user_data());
            let token = tag.token();
            let value = match entry.result() {
                code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                value => Ok(value as u32),
            };
            let result = match tag.kind() {
                OpKind::Cancel => continue,
                OpKind::Receive => {
                    // A failed receive may have picked a buffer as well, which returns to the pool.
                    let buffer = self.buffer(&entry, *value.as_ref().unwrap_or(&0));
                    if value.as_ref().is_err_and(is_exhausted) {
                        self.pool.ran_short();
                    }
                    OpResult::Received(value.map(|_| buffer))
                }
                OpKind::Send => match self.take_back(token) {
                    Lent::Bytes(bytes) => OpResult::Sent(bytes, value.map(|n| n as usize)),
                    Lent::Address(_) => unreachable!("one send or connect per token at a time"),
                },
                OpKind::Accept => OpResult::Accepted(value.map(|fd| {
                    // SAFETY: the kernel has just opened this descriptor, and nothing else owns it.
                    unsafe { OwnedFd::from_raw_fd(fd as i32) }
                })),
                OpKind::Connect => {
                    drop(self.take_back(token));
                    OpResult::Connected(value.map(drop))
                }
                kind @ (OpKind::Write | OpKind::Sync) => {
                    drop(self.written[token].take());
                    // A write that completes without an error was short: a full one posts no
                    // completion.
                    let is_short_write = kind == OpKind::Write && value.is_ok();
                    let short = is_short_write.then(|| io::Error::from(io::ErrorKind::WriteZero));
                    OpResult::Synced(value.and(short.map_or(Ok(()), Err)))
                }
            };
            return Some(Completion { token, result, continues });
        }
    }

    /// The bytes received.
    pub fn bytes(&self, buffer: &Buffer) -> &[u8] {
        self.pool.bytes(buffer)
    }

    /// Where the bytes received are. They may be used, also written to, for as long as `buffer` is
    /// not given back and the ring lives.
    pub fn bytes_of(&self, buffer: &Buffer) -> *mut [u8] {
        self.pool.bytes_of(buffer)
    }

    /// Returns the buffer to the pool, where the kernel may pick it again.
    pub fn give_back(&mut self, buffer: Buffer) {
        self.pool.give_back(buffer.id);
    }

    /// Buffers that came with completions and were not given back.
    pub fn held_buffers(&self) -> usize {
        self.pool.held()
    }

    /// Buffers that the kernel can pick in the next turn, or more: each unread completion may have
    /// one, except for those that found no room in their queue.
    pub fn free_buffers(&mut self) -> usize {
        let in_completions = self.uring.completion().len();
        self.pool.next_offer().saturating_sub(in_completions)
    }

    fn buffer(&mut self, received: &cqueue::Entry, length: u32) -> Option<Buffer> {
        let flags = received.flags();
        let more = cqueue::sock_nonempty(flags);
        let buffer = Buffer { id: cqueue::buffer_select(flags)?, length, more };
        self.pool.taken();
        if length == 0 {
            self.give_back(buffer);
            return None;
        }
        Some(buffer)
    }

    fn lend(&mut self, token: usize, memory: Lent) {
        while self.lent.len() * LENT_STEP <= token {
            self.lent.push(Box::new([const { None }; LENT_STEP]));
        }
        let lent = &mut self.lent[token / LENT_STEP][token % LENT_STEP];
        assert!(lent.is_none(), "one send or connect per token at a time");
        *lent = Some(memory);
    }

    fn take_back(&mut self, token: usize) -> Lent {
        let lent = &mut self.lent[token / LENT_STEP][token % LENT_STEP];
        lent.take().expect("lent until the completion")
    }

    /// # Safety
    /// Memory that `entry` names stays valid until its completion has been seen.
    unsafe fn push(&mut self, entry: squeue::Entry, token: usize, kind: OpKind) {
        let entry = entry.user_data(Tag::new(token, kind).0);
        // SAFETY: the caller's promise.
        unsafe { self.push_entry(&entry) };
        self.in_flight += 1;
    }

    /// # Safety
    /// As for [`Ring::push`].
    unsafe fn push_entry(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller's promise.
        unsafe { self.push_linked(std::slice::from_ref(entry)) }
    }

    /// Pushes all of `entries` or none: a link between two entries does not outlast one submission
    /// call.
    ///
    /// # Safety
    /// As for [`Ring::push`].
    unsafe fn push_linked(&mut self, entries: &[squeue::Entry]) {
        // SAFETY: the caller's promise.
        let pushed = self.backlog.is_empty()
            && unsafe { self.uring.submission().push_multiple(entries) }.is_ok();
        if !pushed {
            self.push_to_backlog(entries);
        }
    }

    /// The queue is full, so the kernel is asked to take it now. If it does not, `entries` wait for
    /// a later turn, after completions have been read: EINTR, EAGAIN and EBUSY are no errors here
    /// either, see [`judge`].
    #[cold]
    fn push_to_backlog(&mut self, entries: &[squeue::Entry]) {
        self.backlog.push_back(entries.to_vec());
        if let Err(error) = self.enter(|kernel| kernel.submit()) {
            // The driver's next turn gets the same error and ends the core.
            tracing::error!("io_uring does not accept submissions: {error}");
        }
        self.take_from_backlog();
        if !self.backlog.is_empty() {
            tracing::debug!(waiting = self.backlog.len(), "io_uring accepts no submissions now");
        }
    }

    fn take_from_backlog(&mut self) {
        while let Some(entries) = self.backlog.front() {
            // SAFETY: promised by the caller that pushed them. They have not been submitted yet, so
            // none has completed and their memory is still kept.
            if unsafe { self.uring.submission().push_multiple(entries) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Cancels everything and waits up to [`CANCEL_WAIT_MAX`] for the completions. True if nothing
    /// is in flight any longer.
    fn cancel_all(&mut self) -> bool {
        let deadline = rt::now() + CANCEL_WAIT_MAX;
        while self.in_flight > 0 && rt::now() < deadline {
            let _submitted = self.turn();
            let timeout = Timespec::from(Duration::from_millis(1));
            let all = CancelBuilder::any();
            let _none_found = self.uring.submitter().register_sync_cancel(Some(timeout), all);
            while let Some(completion) = self.next() {
                drop(completion);
            }
        }
        self.in_flight == 0
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let all_ended = self.cancel_all();
        // SAFETY: each is dropped once, here, and the ring before the memory that it uses. With
        // operations in flight the kernel may still use that memory, so it is leaked.
        unsafe {
            ManuallyDrop::drop(&mut self.uring);
            if all_ended {
                ManuallyDrop::drop(&mut self.pool);
                ManuallyDrop::drop(&mut self.lent);
                ManuallyDrop::drop(&mut self.written);
            }
        }
    }
}

/// Whether a receive failed because the pool had no buffer left.
pub fn is_exhausted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

/// Interprets the result of a call that submits. `Ok`: the kernel took the submissions, or cannot
/// take them now because it was interrupted, is short of memory, wants completions to be read
/// first, or nothing completed in time. What it did not take stays in the queue and goes with the
/// next call.
///
/// # Errors
/// The kernel refuses the ring itself: no later call can succeed.
fn judge(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME) => Ok(()),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests;
