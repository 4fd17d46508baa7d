//! An io_uring of our own with receive buffers that the kernel picks from; all raw memory of the transport is here.
//!
//! The interface is safe because whatever the kernel may still write to or read from is owned by [`Ring`] until the
//! operation's completion has been seen: receive buffers by the pool, outgoing bytes and addresses by `lent`. A ring
//! that ends with operations under way takes them back first, and leaks what it cannot take back.
//!
//! Sources: `io_uring_setup(2)`, `io_uring_enter(2)`, `io_uring_register_buf_ring(3)`.
#![expect(unsafe_code, reason = "submissions name memory by address")]

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use glommio::io::{BufferedFile, DmaBuffer};
use io_uring::types::{BufRingEntry, CancelBuilder, Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Submitter, cqueue, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use socket2::SockAddr;

use super::shared::Slice;
use crate::rt;

/// Submissions gathered before the kernel is asked to take them; a full queue is handed over at once.
const SUBMISSIONS: u32 = 1024;
/// Completions the kernel keeps in shared memory; more wait in the kernel until these are read.
const COMPLETIONS: u32 = 4096;
/// Bytes of one receive buffer: as much as hyper reads at a time.
pub const BUFFER_BYTES: usize = 16 << 10;
/// Receive buffers, a power of two. One is held from a completion until its reader has run, so this bounds how many
/// connections are served between two looks at the kernel, not how many there are.
pub const BUFFERS: u16 = 256;
/// The pool's number; a ring has one.
const GROUP: u16 = 0;
/// How long a ring that ends waits for the kernel to give back what it was lent.
const TAKE_BACK_MAX: Duration = Duration::from_millis(100);

/// What an operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Receive = 0,
    Send = 1,
    Accept = 2,
    Connect = 3,
    /// Of a file, whose tokens are numbers of their own.
    Write = 4,
    /// Of the same file, linked behind the write: begun only once that has ended whole.
    Sync = 5,
    /// Nobody waits for its outcome, so it has no token.
    Cancel = 6,
}

/// The `user_data` of a submission and of its completion: the kind in the low bits, its owner's token above them.
#[derive(Clone, Copy)]
struct Tag(u64);

impl Tag {
    const KIND_BITS: u32 = 3;
    const KIND_MASK: u64 = (1 << Tag::KIND_BITS) - 1;
    const CANCEL: Tag = Tag::new(0, Kind::Cancel);

    const fn new(token: usize, kind: Kind) -> Tag {
        Tag((token as u64) << Tag::KIND_BITS | kind as u64)
    }

    const fn token(self) -> usize {
        (self.0 >> Tag::KIND_BITS) as usize
    }

    const fn kind(self) -> Kind {
        match self.0 & Tag::KIND_MASK {
            0 => Kind::Receive,
            1 => Kind::Send,
            2 => Kind::Accept,
            3 => Kind::Connect,
            4 => Kind::Write,
            5 => Kind::Sync,
            6 => Kind::Cancel,
            _ => unreachable!(),
        }
    }
}

/// Something that ended.
pub struct Completion {
    pub token: usize,
    pub what: Outcome,
}

pub enum Outcome {
    /// What was received; without bytes at the peer's end.
    Received(io::Result<Option<Buffer>>),
    /// What was lent, and how many bytes more of it are now the kernel's.
    Sent(Outgoing, io::Result<usize>),
    Accepted(io::Result<OwnedFd>),
    Connected(io::Result<()>),
    /// A write to a file and the sync behind it have ended.
    Synced(io::Result<()>),
}

/// One receive buffer with bytes in it; give it back with [`Ring::give_back`].
pub struct Buffer {
    id: u16,
    length: u32,
}

impl Buffer {
    pub fn len(&self) -> usize {
        self.length as usize
    }
}

/// Bytes to be sent.
pub enum Outgoing {
    Buffer(Vec<u8>),
    /// Whoever else holds them does not change them.
    Shared(Slice),
}

impl Deref for Outgoing {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Outgoing::Buffer(bytes) => bytes,
            Outgoing::Shared(bytes) => bytes,
        }
    }
}

/// What the kernel may read until the operation has ended.
enum Lent {
    Bytes(Outgoing),
    Address(#[expect(dead_code, reason = "read by the kernel")] Box<SockAddr>),
}

pub struct Ring {
    uring: ManuallyDrop<IoUring>,
    pool: ManuallyDrop<Pool>,
    /// By token: each has at most one such operation under way.
    lent: ManuallyDrop<Vec<Option<Lent>>>,
    /// By a file's token: what is being written to it.
    written: ManuallyDrop<Vec<Option<DmaBuffer>>>,
    event: OwnedFd,
    /// Operations that have not ended.
    under_way: usize,
    /// Chains of submissions that found the queue full while the kernel took nothing; they go to the queue in this order
    /// before any later one. Bounded by what can be under way: a receive, a send and a cancel of each socket, a write of
    /// each file.
    backlog: VecDeque<Vec<squeue::Entry>>,
    /// Error numbers that the next calls of the kernel give instead of being made.
    #[cfg(test)]
    refusals: VecDeque<i32>,
}

impl Ring {
    /// A ring of the calling thread.
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
        // SAFETY: the pool's ring is mapped until the pool is dropped, which is after `uring`, see `drop`.
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
            under_way: 0,
            backlog: VecDeque::new(),
            #[cfg(test)]
            refusals: VecDeque::new(),
        })
    }

    /// Which CPUs the kernel may use for what this thread's rings cannot do at once, such as syncs. By default it takes any that
    /// the cgroup has, whatever this thread is pinned to.
    pub fn place_workers(&self, cpus: &[usize]) -> io::Result<()> {
        // SAFETY: a set of CPUs is a plain bit field, and all zeros is the empty one.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for cpu in cpus.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
            // SAFETY: within the set, as has just been looked at.
            unsafe { libc::CPU_SET(*cpu, &mut set) };
        }
        self.uring.submitter().register_iowq_aff(&set)
    }

    /// A file on which glommio can wait for [`Ring::announce`]d completions: a read of 8 bytes ends when there are some.
    pub fn bell(&self) -> io::Result<BufferedFile> {
        let event = self.event.try_clone()?;
        // SAFETY: the duplicate belongs to nobody else.
        Ok(unsafe { BufferedFile::from_raw_fd(event.into_raw_fd()) })
    }

    /// Whether completions ring the bell.
    pub fn announce(&mut self, yes: bool) {
        let completions = self.uring.completion();
        if yes { completions.enable_eventfd() } else { completions.disable_eventfd() }
    }

    /// Receives once from `fd` into a buffer of the pool. Error of an exhausted pool: see [`is_exhausted`].
    ///
    /// A multishot receive was measured 1 to 2 % cheaper in CPU per request; it goes on receiving what nobody reads.
    pub fn receive(&mut self, fd: BorrowedFd<'_>, token: usize) {
        // The socket is not asked before it has said that there is something: mostly there is nothing yet.
        const POLL_FIRST: u16 = 1;
        let entry =
            opcode::Recv::new(Fd(fd.as_raw_fd()), std::ptr::null_mut(), BUFFER_BYTES as u32)
                .buf_group(GROUP)
                .ioprio(POLL_FIRST)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT);
        // SAFETY: names no memory; the kernel takes its buffer from the pool.
        unsafe { self.push(entry, token, Kind::Receive) };
    }

    /// Sends `bytes[from..]`; they come back with the completion.
    ///
    /// # Panics
    /// Another send or connect of `token` is under way.
    pub fn send(&mut self, fd: BorrowedFd<'_>, token: usize, bytes: Outgoing, from: usize) {
        let rest = &bytes[from..];
        let (start, length) = (rest.as_ptr(), u32::try_from(rest.len()).expect("a send is short"));
        // The kernel goes on by itself after a short write.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = opcode::Send::new(Fd(fd.as_raw_fd()), start, length).flags(flags).build();
        self.lend(token, Lent::Bytes(bytes));
        // SAFETY: the bytes lie in an allocation of their own, which does not move with `bytes` and which `lent` keeps
        // unchanged until the completion.
        unsafe { self.push(entry, token, Kind::Send) };
    }

    pub fn accept(&mut self, fd: BorrowedFd<'_>, token: usize) {
        let null = std::ptr::null_mut();
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let entry = opcode::Accept::new(Fd(fd.as_raw_fd()), null, null.cast()).flags(flags).build();
        // SAFETY: names no memory: the peer's address is not asked for.
        unsafe { self.push(entry, token, Kind::Accept) };
    }

    /// # Panics
    /// Another send or connect of `token` is under way.
    pub fn connect(&mut self, fd: BorrowedFd<'_>, token: usize, address: SocketAddr) {
        let address = Box::new(SockAddr::from(address));
        let (start, length) = (address.as_ptr(), address.len());
        let entry = opcode::Connect::new(Fd(fd.as_raw_fd()), start.cast(), length).build();
        self.lend(token, Lent::Address(address));
        // SAFETY: the boxed address stays where it is in `lent` until the completion.
        unsafe { self.push(entry, token, Kind::Connect) };
    }

    /// Writes all of `bytes` to the file `fd` from byte `at` on, and behind that syncs its data. Both are `token`'s, a number
    /// of files. There is one completion: the sync's, or the write's if that fails, and then nothing is said of the sync
    /// (`IOSQE_CQE_SKIP_SUCCESS`), so nobody has to run in between.
    ///
    /// # Panics
    /// Another write of `token` is under way.
    pub fn write_synced(&mut self, fd: BorrowedFd<'_>, token: usize, bytes: DmaBuffer, at: u64) {
        if self.written.len() <= token {
            self.written.resize_with(token + 1, || None);
        }
        assert!(self.written[token].is_none(), "one write of a file at a time");
        let fd = Fd(fd.as_raw_fd());
        let length = u32::try_from(bytes.len()).expect("a group is short");
        let write = opcode::Write::new(fd, bytes.as_ptr(), length).offset(at).build();
        let write = write.flags(squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS);
        let write = write.user_data(Tag::new(token, Kind::Write).0);
        let sync = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build();
        let sync = sync.user_data(Tag::new(token, Kind::Sync).0);
        self.written[token] = Some(bytes);
        // SAFETY: the buffer lies in an allocation of its own, which does not move with `bytes` and which `written` keeps
        // until the completion, which comes when the write has ended; the sync names no memory.
        unsafe { self.push_linked(&[write, sync]) };
        self.under_way += 1;
    }

    /// Ends all operations on `fd` early; they still complete.
    pub fn cancel(&mut self, fd: BorrowedFd<'_>) {
        let builder = CancelBuilder::fd(Fd(fd.as_raw_fd())).all();
        let entry = opcode::AsyncCancel2::new(builder).build().user_data(Tag::CANCEL.0);
        // SAFETY: names no memory.
        unsafe { self.push_entry(&entry) };
        self.under_way += 1;
    }

    /// Hands what was pushed to the kernel and lets it post completions; true if there are some, or if the kernel has not
    /// come to the end of its own work. No system call when there is nothing to do.
    ///
    /// # Errors
    /// The kernel refuses the ring itself: nothing will work any more.
    pub fn turn(&mut self) -> io::Result<bool> {
        const GET_EVENTS: u32 = 1;
        let submissions = self.uring.submission();
        let (pushed, work) =
            (submissions.len(), submissions.taskrun() || submissions.cq_overflow());
        drop(submissions);
        if pushed > 0 || work {
            // SAFETY: no argument is given, so none is read.
            self.enter(|kernel| unsafe { kernel.enter::<()>(pushed as u32, 0, GET_EVENTS, None) })?;
        }
        if !self.backlog.is_empty() {
            self.take_from_backlog();
        }
        let left = self.uring.submission();
        let unfinished = !left.is_empty() || left.taskrun() || left.cq_overflow();
        drop(left);
        Ok(unfinished || !self.uring.completion().is_empty())
    }

    /// [`Ring::turn`], waiting up to `limit` for something to complete.
    ///
    /// # Errors
    /// As `turn`'s.
    pub fn nap(&mut self, limit: Duration) -> io::Result<bool> {
        if !self.backlog.is_empty() {
            return self.turn();
        }
        let limit = Timespec::from(limit);
        let until = SubmitArgs::new().timespec(&limit);
        self.enter(|kernel| kernel.submit_with_args(1, &until))?;
        Ok(!self.uring.completion().is_empty())
    }

    /// Every call that hands submissions over goes through here, and [`judge`] says what its outcome means.
    fn enter(&mut self, call: impl FnOnce(&Submitter<'_>) -> io::Result<usize>) -> io::Result<()> {
        #[cfg(test)]
        if let Some(errno) = self.refusals.pop_front() {
            return judge(Err(io::Error::from_raw_os_error(errno)));
        }
        judge(call(&self.uring.submitter()))
    }

    /// The next completion that somebody waits for.
    pub fn next(&mut self) -> Option<Completion> {
        loop {
            let entry = self.uring.completion().next()?;
            self.under_way -= 1;
            let tag = Tag(entry.user_data());
            let token = tag.token();
            let result = match entry.result() {
                code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                value => Ok(value as u32),
            };
            let what = match tag.kind() {
                Kind::Cancel => continue,
                Kind::Receive => {
                    // Also of an error, which has no bytes.
                    let buffer = self.buffer(&entry, *result.as_ref().unwrap_or(&0));
                    Outcome::Received(result.map(|_| buffer))
                }
                Kind::Send => match self.take_back(token) {
                    Lent::Bytes(bytes) => Outcome::Sent(bytes, result.map(|n| n as usize)),
                    Lent::Address(_) => unreachable!("one operation a token borrows at a time"),
                },
                Kind::Accept => Outcome::Accepted(result.map(|fd| {
                    // SAFETY: the kernel has just opened this descriptor for us.
                    unsafe { OwnedFd::from_raw_fd(fd as i32) }
                })),
                Kind::Connect => {
                    drop(self.take_back(token));
                    Outcome::Connected(result.map(drop))
                }
                kind @ (Kind::Write | Kind::Sync) => {
                    drop(self.written[token].take());
                    let partly = kind == Kind::Write && result.is_ok();
                    let partly = partly.then(|| io::Error::from(io::ErrorKind::WriteZero));
                    Outcome::Synced(result.and(partly.map_or(Ok(()), Err)))
                }
            };
            return Some(Completion { token, what });
        }
    }

    /// The bytes received.
    pub fn bytes(&self, buffer: &Buffer) -> &[u8] {
        self.pool.bytes(buffer)
    }

    /// Makes the buffer one that the kernel may pick.
    pub fn give_back(&mut self, buffer: Buffer) {
        self.pool.give_back(buffer.id);
    }

    fn buffer(&mut self, received: &cqueue::Entry, length: u32) -> Option<Buffer> {
        let buffer = Buffer { id: cqueue::buffer_select(received.flags())?, length };
        if length == 0 {
            self.give_back(buffer);
            return None;
        }
        Some(buffer)
    }

    fn lend(&mut self, token: usize, what: Lent) {
        if self.lent.len() <= token {
            self.lent.resize_with(token + 1, || None);
        }
        assert!(self.lent[token].is_none(), "one operation a token borrows at a time");
        self.lent[token] = Some(what);
    }

    fn take_back(&mut self, token: usize) -> Lent {
        self.lent[token].take().expect("lent until its completion")
    }

    /// # Safety
    /// Memory that `entry` names stays valid until its completion was seen.
    unsafe fn push(&mut self, entry: squeue::Entry, token: usize, kind: Kind) {
        let entry = entry.user_data(Tag::new(token, kind).0);
        // SAFETY: as the caller's.
        unsafe { self.push_entry(&entry) };
        self.under_way += 1;
    }

    /// # Safety
    /// As [`Ring::push`]'s.
    unsafe fn push_entry(&mut self, entry: &squeue::Entry) {
        // SAFETY: as the caller's.
        unsafe { self.push_linked(std::slice::from_ref(entry)) }
    }

    /// All of `entries` or none: a chain must not be torn apart by a full queue.
    ///
    /// # Safety
    /// As [`Ring::push`]'s.
    unsafe fn push_linked(&mut self, entries: &[squeue::Entry]) {
        // SAFETY: as the caller's.
        let pushed = self.backlog.is_empty()
            && unsafe { self.uring.submission().push_multiple(entries) }.is_ok();
        if !pushed {
            self.push_to_backlog(entries);
        }
    }

    /// The queue is full. Mostly the kernel takes it at once; if it does not, `entries` wait for a later turn.
    #[cold]
    fn push_to_backlog(&mut self, entries: &[squeue::Entry]) {
        self.backlog.push_back(entries.to_vec());
        if let Err(error) = self.enter(|kernel| kernel.submit()) {
            // The driver's next turn gets the same answer and ends the core.
            tracing::error!("io_uring takes no submissions: {error}");
        }
        self.take_from_backlog();
        if !self.backlog.is_empty() {
            tracing::debug!(waiting = self.backlog.len(), "io_uring takes no submissions now");
        }
    }

    fn take_from_backlog(&mut self) {
        while let Some(entries) = self.backlog.front() {
            // SAFETY: promised by who pushed them: nothing of them has been submitted yet, so none has completed.
            if unsafe { self.uring.submission().push_multiple(entries) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Asks for everything back, and waits a little for it; true if nothing is under way any more.
    fn take_everything_back(&mut self) -> bool {
        let deadline = rt::now() + TAKE_BACK_MAX;
        while self.under_way > 0 && rt::now() < deadline {
            let _submitted = self.turn();
            let timeout = Timespec::from(Duration::from_millis(1));
            let all = CancelBuilder::any();
            let _none_found = self.uring.submitter().register_sync_cancel(Some(timeout), all);
            while let Some(completion) = self.next() {
                drop(completion);
            }
        }
        self.under_way == 0
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let returned = self.take_everything_back();
        // SAFETY: dropped once, here; the ring goes before the memory it was given.
        unsafe {
            ManuallyDrop::drop(&mut self.uring);
            if returned {
                ManuallyDrop::drop(&mut self.pool);
                ManuallyDrop::drop(&mut self.lent);
                ManuallyDrop::drop(&mut self.written);
            }
        }
    }
}

/// True of the error of a receive for which the pool had no buffer left.
pub fn is_exhausted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

/// What the outcome of a call that hands submissions over means. `Ok`: the kernel took them, or not now: interrupted, short
/// of memory, with completions to be read first, or nothing completed in time. What it did not take stays in the queue and
/// goes with the next call.
///
/// # Errors
/// The ring itself is refused: nothing will work any more.
fn judge(outcome: io::Result<usize>) -> io::Result<()> {
    match outcome {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME) => Ok(()),
            _ => Err(error),
        },
    }
}

/// The receive buffers and the ring in which the kernel finds them.
struct Pool {
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: u16,
}

const ENTRIES_BYTES: usize = BUFFERS as usize * size_of::<BufRingEntry>();
/// All receive buffers of one executor.
pub const MEMORY_BYTES: usize = BUFFERS as usize * BUFFER_BYTES;

impl Pool {
    fn new() -> io::Result<Pool> {
        assert!(BUFFERS.is_power_of_two());
        let map = |length| {
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
            let start = unsafe { mmap_anonymous(std::ptr::null_mut(), length, access, flags) }?;
            io::Result::Ok(NonNull::new(start).expect("never mapped at zero"))
        };
        let entries = map(ENTRIES_BYTES)?.cast();
        let memory = map(MEMORY_BYTES)?.cast();
        let mut pool = Pool { entries, memory, tail: 0 };
        for id in 0..BUFFERS {
            pool.give_back(id);
        }
        Ok(pool)
    }

    fn give_back(&mut self, id: u16) {
        assert!(id < BUFFERS);
        let at = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: `at` and `id` are below BUFFERS, so entry, buffer and tail lie in the two mappings. The kernel reads an
        // entry only once the tail has passed it, and it has used up the one that was here: there are no more buffers
        // than entries.
        unsafe {
            let entry = self.entries.add(at).as_mut();
            entry.set_addr(self.memory.add(usize::from(id) * BUFFER_BYTES).as_ptr() as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        assert!(buffer.id < BUFFERS && buffer.len() <= BUFFER_BYTES);
        // SAFETY: inside the mapping, which began as zeroes; the kernel writes to it only while it holds the buffer,
        // and there is no `Buffer` then.
        unsafe {
            let start = self.memory.add(usize::from(buffer.id) * BUFFER_BYTES);
            std::slice::from_raw_parts(start.as_ptr(), buffer.len())
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nothing refers to it any more.
        let unmapped = unsafe {
            munmap(self.entries.as_ptr().cast(), ENTRIES_BYTES)
                .and(munmap(self.memory.as_ptr().cast(), MEMORY_BYTES))
        };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    #[test]
    fn a_tag_names_its_owner_and_its_kind() {
        use Kind::*;
        for kind in [Receive, Send, Accept, Connect, Write, Sync, Cancel] {
            for token in [0, 1, 7, 8, 1 << 40] {
                let tag = Tag::new(token, kind);
                assert_eq!((tag.token(), tag.kind()), (token, kind));
            }
        }
    }

    #[test]
    fn not_now_is_no_error_and_everything_else_is() {
        let answer = |errno| judge(Err(io::Error::from_raw_os_error(errno)));
        assert!(judge(Ok(0)).is_ok());
        for errno in [libc::EINTR, libc::EAGAIN, libc::EBUSY, libc::ETIME] {
            assert!(answer(errno).is_ok(), "{errno}");
        }
        for errno in [libc::EBADF, libc::EBADFD, libc::EINVAL, libc::EPERM, libc::EOPNOTSUPP] {
            assert!(answer(errno).is_err(), "{errno}");
        }
    }

    /// What has completed, in order; no more than `turns` are made.
    fn completions(ring: &mut Ring, turns: usize) -> Vec<(usize, Outcome)> {
        let mut all = Vec::new();
        for _ in 0..turns {
            ring.turn().unwrap();
            while let Some(Completion { token, what }) = ring.next() {
                all.push((token, what));
            }
        }
        all
    }

    fn received(ring: &mut Ring, outcomes: Vec<(usize, Outcome)>) -> Vec<(usize, Vec<u8>)> {
        let each = outcomes.into_iter().map(|(token, what)| match what {
            Outcome::Received(Ok(Some(buffer))) => {
                let bytes = ring.bytes(&buffer).to_vec();
                ring.give_back(buffer);
                (token, bytes)
            }
            _ => panic!("{token}: not received"),
        });
        let mut all: Vec<_> = each.collect();
        all.sort();
        all
    }

    /// Whatever the kernel says to a full queue, nothing is lost and nothing changes places.
    #[test]
    fn submissions_that_find_the_queue_full_wait_for_their_turn() {
        for refusal in [None, Some(libc::EAGAIN), Some(libc::EBUSY), Some(libc::EINTR)] {
            let mut ring = Ring::sized(4, 8).unwrap();
            let pairs: Vec<_> = (0..40).map(|_| UnixStream::pair().unwrap()).collect();
            ring.refusals.extend(refusal.iter().cycle().take(50));
            for (token, (ours, _)) in pairs.iter().enumerate() {
                ring.receive(ours.as_fd(), token);
            }
            assert_eq!(ring.under_way, 40);
            assert_eq!(ring.backlog.len(), if refusal.is_some() { 36 } else { 0 }, "{refusal:?}");
            // Behind the receives that it ends, wherever those wait.
            ring.cancel(pairs[39].0.as_fd());
            for (token, (_, theirs)) in pairs.iter().enumerate().take(39) {
                let mut theirs = theirs;
                theirs.write_all(&[token as u8]).unwrap();
            }
            let mut outcomes = completions(&mut ring, 100);
            let canceled = outcomes.iter().position(|(token, _)| *token == 39).unwrap();
            assert!(matches!(outcomes.remove(canceled).1, Outcome::Received(Err(_))));
            let got = received(&mut ring, outcomes);
            let sent: Vec<_> = (0..39).map(|token| (token, vec![token as u8])).collect();
            assert_eq!(got, sent, "{refusal:?}");
            assert!(ring.backlog.is_empty() && ring.under_way == 0);
        }
    }

    /// More completions than the shared queue holds while nobody reads them, and submissions on top.
    #[test]
    fn a_completion_queue_that_overflows_loses_nothing() {
        let mut ring = Ring::sized(4, 8).unwrap();
        let pairs: Vec<_> = (0..60).map(|_| UnixStream::pair().unwrap()).collect();
        for (token, (ours, theirs)) in pairs.iter().enumerate() {
            let mut theirs = theirs;
            theirs.write_all(&[token as u8]).unwrap();
            ring.receive(ours.as_fd(), token);
            ring.turn().unwrap();
        }
        let outcomes = completions(&mut ring, 100);
        let sent: Vec<_> = (0..60).map(|token| (token, vec![token as u8])).collect();
        assert_eq!(received(&mut ring, outcomes), sent);
    }

    #[test]
    fn a_chain_waits_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        rt::run_test(async {
            std::fs::write(&path, [0; 4096]).unwrap();
            let near = glommio::io::DmaFile::open(&path).await.unwrap();
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            let mut ring = Ring::sized(4, 8).unwrap();
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            // Room for one of the two entries of a synced write.
            for _ in 0..3 {
                ring.cancel(ours.as_fd());
            }
            ring.refusals.extend([libc::EBUSY; 3]);
            let mut bytes = near.alloc_dma_buffer(4096);
            bytes.as_bytes_mut().fill(9);
            ring.write_synced(file.as_fd(), 5, bytes, 0);
            assert_eq!(ring.backlog.len(), 1);
            // Must not overtake.
            ring.receive(ours.as_fd(), 6);
            assert_eq!(ring.backlog.len(), 2);
            theirs.write_all(b"x").unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            let mut outcomes = Vec::new();
            while outcomes.len() < 2 {
                assert!(Instant::now() < deadline);
                outcomes.extend(completions(&mut ring, 1));
            }
            outcomes.sort_by_key(|(token, _)| *token);
            assert!(matches!(outcomes[0], (5, Outcome::Synced(Ok(())))));
            assert!(matches!(outcomes[1], (6, Outcome::Received(Ok(_)))));
            assert_eq!(std::fs::read(&path).unwrap(), [9; 4096]);
            near.close().await.unwrap();
        });
    }

    #[test]
    fn a_ring_that_is_refused_says_so_in_its_next_turn() {
        let mut ring = Ring::sized(4, 8).unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ring.refusals.extend([libc::EBADFD; 2]);
        for _ in 0..5 {
            ring.cancel(ours.as_fd());
        }
        assert_eq!(ring.turn().unwrap_err().raw_os_error(), Some(libc::EBADFD));
    }
}
