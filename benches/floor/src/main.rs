//! The floor under any server of this kind: one thread, one io_uring, and nothing but what a
//! request costs at the least. It receives, parses the head with `httparse` and the body with
//! `simd-json`, counts the elements of `data`, and answers. Payloads are discarded: there is no
//! queue, no upload, no timeout, no budget and no histogram. A server that has them costs more,
//! unless it receives or parses better.
//!
//! Where a choice is open it takes the cheaper one that a server could take as well:
//!
//! - one `io_uring_enter` per turn, with the answers of the turn before;
//! - multishot accept into direct descriptors, multishot receive into provided buffers, a
//!   registered ring descriptor, task work deferred to that one call;
//! - a body is copied once: out of the receive buffer, which returns to the kernel, into memory
//!   with the padding that the parser wants. Parser buffers and tape are reused;
//! - a canned answer, without a date.
//!
//! It knows `POST /payloads` with a `content-length` and nothing else; everything else gets a 400
//! and the end of the connection. Pipelined requests and bodies that come in pieces are handled.
//! Nothing bounds the answers that a client does not read.
//!
//! Settings, from the environment, as the other servers have them: `LISTEN`, `ADMIN_LISTEN` (with
//! `/readyz` and `/metrics`), `CORES` (the first one is used), `STORE` (only `null:`).

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::convert::Infallible;
use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::process::ExitCode;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::{AtomicU16, AtomicU64};

use io_uring::types::{BufRingEntry, Fd, Fixed};
use io_uring::{IoUring, SubmissionQueue, Submitter, cqueue, opcode, squeue};
use rustix::process::{Resource, getrlimit, setrlimit};
use simd_json::{INPUT_PADDING, Node, Tape};
use socket2::{Domain, Protocol, Socket, Type};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Both queues are small, so that they stay in the cache. What does not fit waits in the kernel.
const SUBMISSIONS: u32 = 256;
const COMPLETIONS: u32 = 1024;
/// Receive buffers, a power of two.
const BUFFERS: u16 = 256;
/// Bytes of each. Not a power of two, so that the beginnings of all buffers, which small requests
/// use, do not share few sets of the cache.
const BUFFER_BYTES: usize = (16 << 10) + 3 * 64;
const GROUP: u16 = 0;
/// Direct descriptors, fewer where the limit of open files is lower.
const CONNECTIONS_MAX: u64 = 16 << 10;
const BACKLOG: i32 = 4096;
const HEAD_BYTES_MAX: usize = 16 << 10;
const BODY_BYTES_MAX: usize = 16 << 20;
const HEADERS_MAX: usize = 32;

/// Payloads accepted, for the other thread; written once a turn by the one thread that counts.
static ACCEPTED: AtomicU64 = AtomicU64::new(0);

fn main() -> ExitCode {
    match run() {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<Infallible, String> {
    let address = |name: &str| -> Result<SocketAddr, String> {
        let text = std::env::var(name).map_err(|_| format!("{name} is not set"))?;
        text.parse().map_err(|error| format!("{name}: {error}"))
    };
    if std::env::var("STORE").is_ok_and(|store| store != "null:") {
        return Err("STORE: the floor stores nothing, so only null: is right".into());
    }
    let cores = std::env::var("CORES").unwrap_or_default();
    let first = cores.split([',', '-']).next().unwrap_or_default();
    let core = first.parse().map_err(|_| format!("CORES: {cores:?} does not begin with a core"))?;
    let text = |error: io::Error| format!("cannot listen: {error}");
    let listener = listen(address("LISTEN")?).map_err(text)?;
    let admin = TcpListener::bind(address("ADMIN_LISTEN")?).map_err(text)?;
    stop_on_sigterm();
    std::thread::spawn(move || serve_admin(&admin));
    if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        return Err(format!("CORES: cannot be pinned to core {core}"));
    }
    serve(&listener).map_err(|error| format!("io_uring: {error}"))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Connections inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Nothing has to be finished: what was answered is done.
fn stop_on_sigterm() {
    extern "C" fn stop(_signal: libc::c_int) {
        // SAFETY: `_exit` may be called in a signal handler, see signal-safety(7).
        unsafe { libc::_exit(0) }
    }
    let stop: extern "C" fn(libc::c_int) = stop;
    // SAFETY: the handler only makes the call that is allowed there.
    unsafe { libc::signal(libc::SIGTERM, stop as libc::sighandler_t) };
}

/// `/readyz` and `/metrics`, one connection after the other, each for one request.
fn serve_admin(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        let mut request = Vec::new();
        let mut part = [0; 1024];
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            match stream.read(&mut part) {
                Ok(0) | Err(_) => break,
                Ok(n) => request.extend_from_slice(&part[..n]),
            }
        }
        let count = ACCEPTED.load(Relaxed);
        let page = if request.starts_with(b"GET /metrics ") {
            let line = |name: &str| format!("millrace_payloads_{name}_total {count}\n");
            line("accepted") + &line("stored")
        } else {
            "ready\n".to_owned()
        };
        let length = page.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{page}"
        );
        let _a_scrape_that_breaks_off = stream.write_all(answer.as_bytes());
    }
}

/// The low bits of an operation's `user_data`; above them is its connection.
const KIND_BITS: u32 = 2;
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
/// Of a shutdown or a close: nobody waits for it.
const END: u64 = 3;

/// Ends only with an error: what the kernel may still read or write is then left where it is,
/// because the process ends.
fn serve(listener: &TcpListener) -> io::Result<Infallible> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let files = limit.maximum.unwrap_or(CONNECTIONS_MAX).min(CONNECTIONS_MAX);
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_cqsize(COMPLETIONS)
        .build(SUBMISSIONS)?;
    // Never dropped, nor is what hangs on it.
    let (mut submitter, submissions, mut completions) = Box::leak(Box::new(ring)).split();
    submitter.register_ring_fd()?;
    submitter.register_files_sparse(files as u32)?;
    let pool = Pool::new(&submitter)?;
    let server = Server {
        submitter,
        submissions,
        listener: Fd(listener.as_raw_fd()),
        pool,
        conns: Vec::new(),
        parser: Parser::new(),
        touched: Vec::new(),
    };
    let server = Box::leak(Box::new(server));
    server.accept()?;
    loop {
        server.enter(1)?;
        completions.sync();
        for completion in completions.by_ref() {
            server.complete(&completion)?;
        }
        // Its places are free for the next turn's.
        completions.sync();
        server.end_turn()?;
    }
}

struct Server {
    submitter: Submitter<'static>,
    submissions: SubmissionQueue<'static>,
    listener: Fd,
    pool: Pool,
    /// By direct descriptor.
    conns: Vec<Conn>,
    parser: Parser,
    /// Connections to look at when the turn ends.
    touched: Vec<u32>,
}

#[derive(Default)]
struct Conn {
    /// The beginning of a request that comes in pieces. Empty as long as each comes in one.
    stash: Vec<u8>,
    /// As many bytes make the stash's first request whole, as far as it is known.
    wanted: usize,
    /// Answers of this turn.
    answers: Vec<u8>,
    /// What the kernel is sending, from `sent` on. It is not touched while `is_sending`.
    flight: Vec<u8>,
    sent: usize,
    is_receiving: bool,
    is_sending: bool,
    is_touched: bool,
    /// Nothing more is taken in; it is closed when the answers are sent.
    is_ending: bool,
    is_shut: bool,
}

impl Server {
    fn enter(&mut self, wanted: usize) -> io::Result<()> {
        self.submissions.sync();
        let entered = self.submitter.submit_and_wait(wanted);
        self.submissions.sync();
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // What was not taken goes with the next call.
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// # Safety
    /// Memory that `entry` names is valid until it has completed.
    unsafe fn push(&mut self, entry: squeue::Entry, slot: u32, kind: u64) -> io::Result<()> {
        let entry = entry.user_data(u64::from(slot) << KIND_BITS | kind);
        // SAFETY: the caller's promise.
        while unsafe { self.submissions.push(&entry) }.is_err() {
            self.enter(0)?;
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(self.listener).allocate_file_index(true).build();
        // SAFETY: it names no memory.
        unsafe { self.push(entry, 0, ACCEPT) }
    }

    fn receive(&mut self, slot: u32) -> io::Result<()> {
        self.conns[slot as usize].is_receiving = true;
        let entry = opcode::RecvMulti::new(Fixed(slot), GROUP).build();
        // SAFETY: it names no memory; buffers come from the pool, which is never freed.
        unsafe { self.push(entry, slot, RECEIVE) }
    }

    fn send(&mut self, slot: u32) -> io::Result<()> {
        let conn = &mut self.conns[slot as usize];
        conn.is_sending = true;
        let rest = &conn.flight[conn.sent..];
        let entry = opcode::Send::new(Fixed(slot), rest.as_ptr(), rest.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        // SAFETY: `flight` is neither changed nor dropped while `is_sending`, and its bytes do not
        // move with the connection.
        unsafe { self.push(entry, slot, SEND) }
    }

    fn touch(&mut self, slot: u32) {
        let conn = &mut self.conns[slot as usize];
        if !std::mem::replace(&mut conn.is_touched, true) {
            self.touched.push(slot);
        }
    }

    fn complete(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let slot = (completion.user_data() >> KIND_BITS) as u32;
        let (result, is_armed) = (completion.result(), cqueue::more(completion.flags()));
        match completion.user_data() & ((1 << KIND_BITS) - 1) {
            ACCEPT => {
                if result >= 0 {
                    let slot = result as usize;
                    if self.conns.len() <= slot {
                        self.conns.resize_with(slot + 1, Conn::default);
                    }
                    self.conns[slot] = Conn::default();
                    self.receive(result as u32)?;
                }
                if !is_armed {
                    self.accept()?;
                }
            }
            RECEIVE => {
                let conn = &mut self.conns[slot as usize];
                conn.is_receiving = is_armed;
                // Without a buffer it goes on in the next turn, when there are some again.
                conn.is_ending |= result <= 0 && result != -libc::ENOBUFS;
                if let Some(id) = cqueue::buffer_select(completion.flags()) {
                    if result > 0 && !conn.is_ending {
                        let bytes = self.pool.bytes(id, result as usize);
                        if conn.take(bytes, &mut self.parser).is_none() {
                            conn.refuse();
                        }
                    }
                    self.pool.give_back(id);
                }
                if !conn.answers.is_empty() || !is_armed || conn.is_ending {
                    self.touch(slot);
                }
            }
            SEND => {
                let conn = &mut self.conns[slot as usize];
                conn.is_sending = false;
                if result > 0 {
                    conn.sent += result as usize;
                } else {
                    conn.sent = conn.flight.len();
                    conn.answers.clear();
                    conn.is_ending = true;
                }
                let is_short = conn.sent < conn.flight.len();
                if is_short || !conn.answers.is_empty() || conn.is_ending {
                    self.touch(slot);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends what was answered, takes in again what was not, and ends what has ended.
    fn end_turn(&mut self) -> io::Result<()> {
        self.pool.publish();
        ACCEPTED.store(self.parser.accepted, Relaxed);
        let mut touched = std::mem::take(&mut self.touched);
        for slot in touched.drain(..) {
            let conn = &mut self.conns[slot as usize];
            conn.is_touched = false;
            if conn.is_sending {
                continue;
            }
            if conn.sent < conn.flight.len() {
                self.send(slot)?;
            } else if !conn.answers.is_empty() {
                conn.flight.clear();
                conn.sent = 0;
                std::mem::swap(&mut conn.flight, &mut conn.answers);
                self.send(slot)?;
            } else if conn.is_ending {
                self.end(slot)?;
            }
            let conn = &self.conns[slot as usize];
            if !conn.is_receiving && !conn.is_ending {
                self.receive(slot)?;
            }
        }
        self.touched = touched;
        Ok(())
    }

    /// Everything is sent. A receive that is still armed ends with a shutdown; then it is closed,
    /// and the descriptor may be another connection's.
    fn end(&mut self, slot: u32) -> io::Result<()> {
        let conn = &mut self.conns[slot as usize];
        let entry = if conn.is_receiving {
            if std::mem::replace(&mut conn.is_shut, true) {
                return Ok(());
            }
            opcode::Shutdown::new(Fixed(slot), libc::SHUT_RDWR).build()
        } else {
            *conn = Conn { is_ending: true, is_shut: true, ..Conn::default() };
            opcode::Close::new(Fixed(slot)).build()
        };
        // SAFETY: neither names memory.
        unsafe { self.push(entry, slot, END) }
    }
}

impl Conn {
    /// Answers the requests that `bytes` complete, and keeps the beginning of another; none if one
    /// is wrong, after those before it were answered.
    fn take(&mut self, bytes: &[u8], parser: &mut Parser) -> Option<()> {
        if !self.stash.is_empty() {
            return self.take_pieces(bytes, parser);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let (body_at, end) = Conn::first_request(rest)?;
            let Some(body) = rest.get(body_at..end) else {
                self.wanted = end;
                self.stash.reserve(end.min(BODY_BYTES_MAX) + INPUT_PADDING);
                self.stash.extend_from_slice(rest);
                break;
            };
            self.answers.extend_from_slice(parser.answer_copied(body)?);
            rest = &rest[end..];
        }
        Some(())
    }

    fn take_pieces(&mut self, bytes: &[u8], parser: &mut Parser) -> Option<()> {
        self.stash.extend_from_slice(bytes);
        if self.stash.len() < self.wanted {
            return Some(());
        }
        let mut stash = std::mem::take(&mut self.stash);
        let mut at = 0;
        while at < stash.len() {
            let (body_at, end) = Conn::first_request(&stash[at..])?;
            let (body_at, end) = (at + body_at, at.saturating_add(end));
            if end > stash.len() {
                self.wanted = end - at;
                break;
            }
            // What follows is padding enough, whatever it is.
            let length = stash.len();
            stash.resize(length.max(end + INPUT_PADDING), 0);
            let padded = &mut stash[body_at..end + INPUT_PADDING];
            self.answers.extend_from_slice(parser.answer(padded, end - body_at)?);
            stash.truncate(length);
            at = end;
        }
        stash.drain(..at);
        self.stash = stash;
        Some(())
    }

    /// Where the body of the first request in `bytes` begins and ends. While its head is not there
    /// as a whole, that is beyond the end. None if it is wrong.
    fn first_request(bytes: &[u8]) -> Option<(usize, usize)> {
        let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut []);
        let body_at = match request.parse_with_uninit_headers(bytes, &mut headers) {
            Ok(httparse::Status::Complete(body_at)) => body_at,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => {
                return Some((0, bytes.len() + 1));
            }
            _ => return None,
        };
        if request.method != Some("POST") || request.path != Some("/payloads") {
            return None;
        }
        let mut length = None;
        for header in request.headers.iter() {
            match header.name.len() {
                14 if header.name.eq_ignore_ascii_case("content-length") => {
                    length = Some(std::str::from_utf8(header.value).ok()?.parse::<usize>().ok()?);
                }
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => return None,
                _ => {}
            }
        }
        let length = length.filter(|length| *length <= BODY_BYTES_MAX)?;
        Some((body_at, body_at + length))
    }

    #[cold]
    fn refuse(&mut self) {
        self.answers.extend_from_slice(
            b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        );
        self.stash = Vec::new();
        self.is_ending = true;
    }
}

/// The parser's memory, all of it reused.
struct Parser {
    padded: Vec<u8>,
    buffers: simd_json::Buffers,
    tape: Tape<'static>,
    canned: Canned,
    accepted: u64,
}

impl Parser {
    fn new() -> Parser {
        Parser {
            padded: Vec::new(),
            buffers: simd_json::Buffers::default(),
            tape: Tape(Vec::new()),
            canned: Canned { count: usize::MAX, answer: Vec::new() },
            accepted: 0,
        }
    }

    /// The answer to a request with this body; none if it is wrong.
    fn answer_copied(&mut self, body: &[u8]) -> Option<&[u8]> {
        let mut padded = std::mem::take(&mut self.padded);
        padded.clear();
        padded.extend_from_slice(body);
        padded.extend_from_slice(&[0; INPUT_PADDING]);
        let count = self.count(&mut padded, body.len());
        self.padded = padded;
        self.accept(count?)
    }

    /// The same for `padded[..length]`, which is not worth reading afterwards.
    fn answer(&mut self, padded: &mut [u8], length: usize) -> Option<&[u8]> {
        let count = self.count(padded, length)?;
        self.accept(count)
    }

    fn count(&mut self, padded: &mut [u8], length: usize) -> Option<usize> {
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let parsed = simd_json::fill_tape_padded(padded, length, &mut self.buffers, &mut tape);
        let count = parsed.ok().and_then(|()| elements(&tape.0));
        self.tape = tape.reset();
        count
    }

    fn accept(&mut self, count: usize) -> Option<&[u8]> {
        self.accepted += count as u64;
        Some(self.canned.to(count))
    }
}

/// How many elements the member `data` has, in an object that has one.
fn elements(nodes: &[Node<'_>]) -> Option<usize> {
    let Some(Node::Object { len: members, .. }) = nodes.first() else { return None };
    let mut at = 1;
    for _ in 0..*members {
        let (name, value) = (nodes.get(at)?, nodes.get(at + 1)?);
        match (name, value) {
            (Node::String("data"), Node::Array { len, .. }) => return Some(*len),
            (_, Node::Array { count, .. } | Node::Object { count, .. }) => at += 2 + count,
            _ => at += 2,
        }
    }
    None
}

/// The answer, made again when another count is asked for.
struct Canned {
    count: usize,
    answer: Vec<u8>,
}

impl Canned {
    fn to(&mut self, count: usize) -> &[u8] {
        if self.count != count {
            self.count = count;
            let body = format!(r#"{{"accepted":{count},"ack":"queued"}}"#);
            let length = body.len();
            self.answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
            )
            .into_bytes();
        }
        &self.answer
    }
}

/// The receive buffers, from which the kernel picks. Never freed.
struct Pool {
    entries: *mut BufRingEntry,
    memory: *mut u8,
    /// Entries ever added, modulo 2^16.
    tail: u16,
}

impl Pool {
    fn new(submitter: &Submitter<'_>) -> io::Result<Pool> {
        const { assert!(BUFFERS.is_power_of_two()) };
        let allocate = |bytes: usize| {
            let layout = Layout::from_size_align(bytes, 4096).expect("a page is an alignment");
            // SAFETY: no size here is zero.
            let start = unsafe { alloc_zeroed(layout) };
            if start.is_null() { handle_alloc_error(layout) } else { start }
        };
        let entries = allocate(usize::from(BUFFERS) * size_of::<BufRingEntry>());
        let memory = allocate(usize::from(BUFFERS) * BUFFER_BYTES);
        let mut pool = Pool { entries: entries.cast(), memory, tail: 0 };
        (0..BUFFERS).for_each(|id| pool.give_back(id));
        pool.publish();
        // SAFETY: the entries are as many as it says, and are never freed.
        unsafe {
            submitter.register_buf_ring_with_flags(entries as u64, BUFFERS, GROUP, 0)?;
        }
        Ok(pool)
    }

    fn bytes(&self, id: u16, length: usize) -> &[u8] {
        assert!(id < BUFFERS && length <= BUFFER_BYTES);
        // SAFETY: inside the allocation, which began as zeros. The kernel has handed this buffer
        // over and writes to it only after `give_back`.
        unsafe {
            std::slice::from_raw_parts(self.memory.add(usize::from(id) * BUFFER_BYTES), length)
        }
    }

    /// The kernel sees it after [`Pool::publish`].
    fn give_back(&mut self, id: u16) {
        assert!(id < BUFFERS);
        let at = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: `at` and `id` are below BUFFERS. The kernel has consumed the entry that was here,
        // because there are no more buffers than entries, and reads this one once the tail has
        // passed it.
        unsafe {
            let entry = &mut *self.entries.add(at);
            entry.set_addr(self.memory.add(usize::from(id) * BUFFER_BYTES) as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        // SAFETY: the tail lies in the first entry, and only this thread writes it.
        unsafe {
            let tail = BufRingEntry::tail(self.entries).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Release);
        }
    }
}
