//! The attackers: all connections of an attack in one loop, in a thread that gives way to the good
//! client's.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::answer::answer;
use crate::good::waits;
use crate::table::{Act, Attack, Leave};

/// Below the good client's, so that it is woken at once.
const NICE: i32 = 10;

/// The longest wait for something to happen.
const TICK: Duration = Duration::from_millis(1);

/// Turns that are missed by more than this are not caught up with.
const BEHIND_MAX: Duration = Duration::from_millis(50);

/// Connections opened at once where all of them are due.
const OPENED_AT_ONCE: usize = 64;

/// An attack that is going on.
pub struct Raid {
    /// What [`Raid::done`] counts.
    pub unit: &'static str,
    shared: Arc<Shared>,
    thread: JoinHandle<Result<(), String>>,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    done: AtomicU64,
}

impl Raid {
    /// Starts `attack` in a thread of its own.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(server: SocketAddr, attack: &Attack) -> Result<Raid, String> {
        let act = attack.act();
        let unit = act.unit();
        let shared = Arc::new(Shared::default());
        let (connections, per_s) = (attack.connections, attack.per_s);
        let thread = std::thread::Builder::new().name("attack".into()).spawn({
            let shared = shared.clone();
            move || {
                // The calling thread's alone, on Linux.
                let _only_less_exact = rustix::process::setpriority_process(None, NICE);
                Attackers::new(server, connections, act, &shared)?.run(per_s)
            }
        });
        let thread = thread.map_err(|error| format!("no thread: {error}"))?;
        Ok(Raid { unit, shared, thread })
    }

    /// Units so far.
    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// # Errors
    /// An answer that is not the right one, or what went wrong here.
    pub fn stop(self) -> Result<(), String> {
        self.shared.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the attackers panicked".to_owned())?
    }
}

/// One connection of an attack.
#[derive(Default)]
struct Slot {
    stream: Option<TcpStream>,
    /// The start has been sent.
    started: bool,
    /// Which message, or [`START`], is being sent, and how much of it has been.
    sending: Option<usize>,
    sent: usize,
    /// Where in the stream the next piece is.
    at: usize,
    /// Answers to come.
    awaited: usize,
    read: Vec<u8>,
}

const START: usize = usize::MAX;

struct Attackers<'a> {
    server: SocketAddr,
    act: Act,
    shared: &'a Shared,
    poll: Poll,
    slots: Vec<Slot>,
    /// Slots whose turn can come, the next one first.
    ready: VecDeque<usize>,
    /// Half-closed, the oldest first.
    left: VecDeque<TcpStream>,
    left_max: usize,
    /// Which message comes next.
    message: usize,
}

impl Attackers<'_> {
    fn new(
        server: SocketAddr,
        connections: usize,
        act: Act,
        shared: &Shared,
    ) -> Result<Attackers<'_>, String> {
        let poll = Poll::new().map_err(|error| format!("the attackers: {error}"))?;
        let slots = match act {
            Act::Ask { .. } | Act::Feed { .. } => connections,
            Act::Nothing | Act::Connect { .. } => 0,
        };
        Ok(Attackers {
            server,
            act,
            shared,
            poll,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            ready: (0..slots).collect(),
            left: VecDeque::new(),
            left_max: connections,
            message: 0,
        })
    }

    fn run(mut self, per_s: Option<u32>) -> Result<(), String> {
        let mut events = Events::with_capacity(1024);
        let (mut started, mut turns) = (Instant::now(), 0);
        while !self.shared.over.load(Ordering::Relaxed) {
            match per_s {
                None => while self.turn() {},
                Some(0) => {}
                Some(per_s) => {
                    let due = |elapsed: Duration| (elapsed.as_secs_f64() * f64::from(per_s)) as u64;
                    let behind = due(started.elapsed()).saturating_sub(turns);
                    let behind_max = due(BEHIND_MAX).max(1);
                    if behind > behind_max {
                        // What was missed is not made up for: the rate is an upper bound.
                        started = Instant::now() - BEHIND_MAX.min(started.elapsed());
                        turns = 0;
                    }
                    for _ in 0..behind.min(behind_max) {
                        if !self.turn() {
                            break;
                        }
                        turns += 1;
                    }
                }
            }
            self.open_some();
            match self.poll.poll(&mut events, Some(TICK)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => {
                    return Err(format!("the attackers: {error}"));
                }
                _ => {}
            }
            for event in &events {
                let Token(index) = event.token();
                self.advance(index)?;
            }
        }
        Ok(())
    }

    /// Acts once; whether it could.
    fn turn(&mut self) -> bool {
        match &self.act {
            Act::Nothing => false,
            Act::Connect { .. } => self.connect_and_leave(),
            Act::Ask { messages, answers, .. } => {
                let (messages, answers) = (messages.len(), *answers);
                let Some(index) = self.ready.pop_front() else { return false };
                let slot = &mut self.slots[index];
                slot.sending = Some(self.message % messages);
                slot.sent = 0;
                slot.awaited = answers;
                self.message += 1;
                if self.slots[index].stream.is_none() {
                    self.open(index);
                }
                self.write(index);
                let open = self.slots[index].stream.is_some();
                if !open {
                    self.ready.push_back(index);
                }
                open
            }
            Act::Feed { .. } => self.feed(),
        }
    }

    fn connect_and_leave(&mut self) -> bool {
        let Act::Connect { first, leave } = &self.act else { return false };
        let Ok(mut stream) = TcpStream::connect(self.server) else { return false };
        if !first.is_empty() {
            // Over loopback the connection is there at once.
            let _nobody_waits = stream.write(first);
        }
        match leave {
            Leave::Close => drop(stream),
            Leave::Reset => {
                let _closed_all_the_same =
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            Leave::HalfClosed => {
                let _gone_already = stream.shutdown(Shutdown::Write);
                self.left.push_back(stream);
                if self.left.len() > self.left_max {
                    self.left.pop_front();
                }
            }
        }
        self.shared.done.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// The next piece on the next connection, or another connection in its place.
    fn feed(&mut self) -> bool {
        let Act::Feed { stream, piece, .. } = &self.act else { return false };
        let Some(index) = self.ready.pop_front() else { return false };
        self.ready.push_back(index);
        let slot = &mut self.slots[index];
        let Some(tcp) = &mut slot.stream else {
            self.open(index);
            self.write(index);
            return true;
        };
        // One whose start is still being sent, or is not to be fed, has its turn for nothing.
        if !slot.started || *piece == 0 {
            return true;
        }
        let end = (slot.at + piece).min(stream.len());
        match tcp.write(&stream[slot.at..end]) {
            Ok(n) => {
                slot.at = (slot.at + n) % stream.len();
                self.shared.done.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if waits(&error) => {}
            Err(_) => self.slots[index] = Slot::default(),
        }
        true
    }

    /// Connections that are held are there from the start, and the rate is for those in their
    /// place.
    fn open_some(&mut self) {
        if !matches!(self.act, Act::Feed { .. }) || self.message >= self.slots.len() {
            return;
        }
        for _ in 0..OPENED_AT_ONCE {
            if self.message < self.slots.len() {
                let index = self.message;
                self.message += 1;
                if self.slots[index].stream.is_none() {
                    self.open(index);
                    self.write(index);
                }
            }
        }
    }

    fn open(&mut self, index: usize) {
        let Ok(mut stream) = TcpStream::connect(self.server) else { return };
        let _only_slower_without = stream.set_nodelay(true);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut stream, Token(index), interest).is_err() {
            return;
        }
        let slot = &mut self.slots[index];
        slot.stream = Some(stream);
        slot.read.clear();
        if let Act::Feed { piece, .. } = &self.act {
            if *piece == 0 {
                self.shared.done.fetch_add(1, Ordering::Relaxed);
            }
            slot.sending = Some(START);
            slot.sent = 0;
            slot.started = false;
            slot.at = 0;
        }
    }

    /// Sends what there is left to send.
    fn write(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let Some(which) = slot.sending else { return };
        let bytes = match &self.act {
            Act::Ask { messages, .. } => &messages[which],
            Act::Feed { start, .. } => start,
            Act::Nothing | Act::Connect { .. } => return,
        };
        let Some(stream) = &mut slot.stream else { return };
        while slot.sent < bytes.len() {
            match stream.write(&bytes[slot.sent..]) {
                Ok(n) => slot.sent += n,
                Err(error) if waits(&error) => return,
                // Said, or shown, when the answer is read.
                Err(_) => break,
            }
        }
        slot.sending = None;
        slot.started = true;
    }

    /// Something happened on a connection.
    fn advance(&mut self, index: usize) -> Result<(), String> {
        self.write(index);
        match &self.act {
            Act::Feed { reads: false, .. } => Ok(()),
            Act::Feed { .. } => {
                let held = self.is_held();
                while let Some(stream) = &mut self.slots[index].stream {
                    match stream.read(&mut [0; 512]) {
                        Err(error) if waits(&error) => break,
                        Ok(n) if n > 0 && held => {}
                        // Refused or closed: the next turn opens another one.
                        _ => self.slots[index] = Slot::default(),
                    }
                }
                Ok(())
            }
            Act::Ask { .. } => self.read_answers(index),
            Act::Nothing | Act::Connect { .. } => Ok(()),
        }
    }

    /// Whether connections are held in silence: what the server says changes nothing then, and its
    /// end is another event.
    fn is_held(&self) -> bool {
        matches!(self.act, Act::Feed { piece: 0, .. })
    }

    fn read_answers(&mut self, index: usize) -> Result<(), String> {
        let Act::Ask { statuses, .. } = self.act else { return Ok(()) };
        let slot = &mut self.slots[index];
        let mut buffer = [0; 16 << 10];
        while let Some(stream) = &mut slot.stream {
            let n = match stream.read(&mut buffer) {
                Ok(n) => n,
                Err(error) if waits(&error) => return Ok(()),
                Err(_) => 0,
            };
            slot.read.extend_from_slice(&buffer[..n]);
            let mut closes = n == 0;
            while let Some(answer) = answer(&slot.read)? {
                closes |= answer.closes;
                let (status, length) = (answer.status, answer.length);
                if !statuses.contains(&status) {
                    let text = String::from_utf8_lossy(&slot.read[..length]);
                    return Err(format!("the attack was answered: {text}"));
                }
                slot.read.drain(..length);
                slot.awaited = slot.awaited.saturating_sub(1);
                self.shared.done.fetch_add(1, Ordering::Relaxed);
            }
            let awaited = slot.awaited > 0;
            if closes {
                // An idle connection that ends stays where it is among those that are ready.
                *slot = Slot::default();
                if awaited {
                    self.ready.push_back(index);
                    return Ok(());
                }
            }
            if !awaited && !self.ready.contains(&index) {
                self.slots[index].sending = None;
                self.ready.push_back(index);
                return Ok(());
            }
        }
        Ok(())
    }
}
