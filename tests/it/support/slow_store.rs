//! A fake S3 behind a slow link: every connection shares one byte rate, and a script decides how
//! each PUT ends.
//!
//! Bodies are read in small steps into small receive buffers, so what the sender sees acknowledged
//! follows the rate. They are counted and thrown away. It checks no signature; `support::s3` does.
//!
//! ```ignore
//! let store = SlowStore::start(2_000_000);
//! store.script(|put| if put.in_flight > 4 { Act::refuse(503, "SlowDown") } else { Act::keep() });
//! // … something puts to store.url() …
//! assert_eq!(store.counts().kept_twice, 0);
//! ```

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

/// One read, and so the step in which the shared rate is handed out.
const READ_BYTES: usize = 4 << 10;
/// Receive buffer of a connection; the kernel doubles it. What it holds is acknowledged but not yet
/// taken.
const RECEIVE_BUFFER: usize = 8 << 10;
/// Largest segment, far below the receive buffer, or the window would open in fits.
const SEGMENT: u32 = 1460;
/// How far the rate may be made up for after a thread overslept.
const CATCH_UP: Duration = Duration::from_millis(250);
/// How often a connection that waits looks whether its test has ended.
const TICK: Duration = Duration::from_millis(100);

const LIST: &str = "<ListBucketResult><Name>payloads</Name><KeyCount>0</KeyCount>\
    <MaxKeys>1</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>";

/// What the script knows of a PUT whose head has come.
#[derive(Clone, Debug)]
pub struct Put {
    /// The path without its first `/`: bucket and key.
    pub key: String,
    pub bytes: u64,
    /// 1 for the first PUT of this key.
    pub attempt: usize,
    /// PUTs in flight, this one included.
    pub in_flight: usize,
}

/// How one PUT is served.
#[derive(Clone, Copy, Debug)]
pub struct Act {
    /// Bytes a second of this body alone, below the link's rate; `None`: the link's.
    pub rate: Option<u64>,
    /// Bytes of the body that are read; `None`: all.
    pub take: Option<u64>,
    pub then: Then,
}

/// What comes after the bytes that [`Act::take`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// 200, after the store's delay.
    Keep,
    /// An error document with this status and code.
    Refuse(u16, &'static str),
    /// Closes the connection with a reset.
    Reset,
    /// Neither reads nor answers from here on.
    Silence,
}

impl Act {
    pub fn keep() -> Act {
        Act { rate: None, take: None, then: Then::Keep }
    }

    /// Reads the body, then answers an error.
    pub fn refuse(status: u16, code: &'static str) -> Act {
        Act { then: Then::Refuse(status, code), ..Act::keep() }
    }

    /// Resets the connection once the head is read.
    pub fn reset() -> Act {
        Act { take: Some(0), then: Then::Reset, ..Act::keep() }
    }
}

/// One PUT of a key as it went.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    pub started: Instant,
    /// When the last byte of it was read; `None`: none was.
    pub last_read: Option<Instant>,
    pub kept: bool,
}

/// Sums since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// PUTs whose head has come.
    pub started: u64,
    /// PUTs answered by 200.
    pub kept: u64,
    /// PUTs answered by an error.
    pub refused: u64,
    /// PUTs that ended without an answer.
    pub aborted: u64,
    /// Bytes of bodies read, whatever became of them.
    pub bytes_received: u64,
    /// Bytes of bodies answered by 200 whose key was not kept before.
    pub bytes_kept: u64,
    /// PUTs of a key that had been put before.
    pub put_again: u64,
    /// PUTs answered by 200 whose key was kept before.
    pub kept_twice: u64,
    pub in_flight: usize,
    /// Most PUTs in flight at once since the start, or since [`SlowStore::mark`].
    pub in_flight_max: usize,
    /// The last 200.
    pub last_kept: Option<Instant>,
}

type Script = dyn Fn(&Put) -> Act + Send + Sync;

struct State {
    link: Mutex<Link>,
    delay: Mutex<Duration>,
    script: Mutex<Arc<Script>>,
    tally: Mutex<Tally>,
    stop: AtomicBool,
}

#[derive(Default)]
struct Tally {
    counts: Counts,
    keys: HashMap<String, Vec<Attempt>>,
}

/// The shared rate as a virtual clock: when the next byte may pass.
struct Link {
    /// Bytes a second; 0: as fast as they come.
    rate: u64,
    free: Instant,
}

impl Link {
    /// When `bytes` more have passed.
    fn pass(&mut self, bytes: usize) -> Instant {
        let now = Instant::now();
        if self.rate == 0 {
            return now;
        }
        let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
        self.free = self.free.max(earliest) + per(bytes, self.rate);
        self.free
    }
}

fn per(bytes: usize, rate: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate as f64)
}

/// A running store; dropping it ends it.
pub struct SlowStore {
    addr: SocketAddr,
    state: Arc<State>,
}

impl SlowStore {
    /// A store that keeps everything, at `rate` bytes a second for all connections together (0:
    /// unlimited).
    pub fn start(rate: u64) -> SlowStore {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(RECEIVE_BUFFER).expect("accepted sockets inherit it");
        socket.set_tcp_mss(SEGMENT).expect("accepted sockets inherit it");
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        socket.bind(&any.into()).expect("a loopback port");
        socket.listen(1024).expect("a bound socket");
        let listener = TcpListener::from(socket);
        let addr = listener.local_addr().expect("a bound socket");
        let keep: Arc<Script> = Arc::new(|_| Act::keep());
        let state = Arc::new(State {
            link: Mutex::new(Link { rate, free: Instant::now() }),
            delay: Mutex::default(),
            script: Mutex::new(keep),
            tally: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let serving = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.stop.load(Ordering::Relaxed) {
                    return;
                }
                let state = serving.clone();
                // Its connections end when the server under test has closed them.
                thread::spawn(move || serve(&stream, &state));
            }
        });
        SlowStore { addr, state }
    }

    /// The endpoint, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn set_rate(&self, rate: u64) {
        *self.state.link.lock().unwrap() = Link { rate, free: Instant::now() };
    }

    /// Time between the last byte of a body and its 200.
    pub fn set_delay(&self, delay: Duration) {
        *self.state.delay.lock().unwrap() = delay;
    }

    /// Decides for every PUT from now on.
    pub fn script(&self, decide: impl Fn(&Put) -> Act + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Arc::new(decide);
    }

    pub fn counts(&self) -> Counts {
        self.state.tally.lock().unwrap().counts
    }

    /// The counts so far; the highest number in flight starts again from what it is now.
    pub fn mark(&self) -> Counts {
        let mut tally = self.state.tally.lock().unwrap();
        let counts = tally.counts;
        tally.counts.in_flight_max = counts.in_flight;
        counts
    }

    /// Every PUT of the only key that has been put.
    pub fn attempts(&self) -> Vec<Attempt> {
        let tally = self.state.tally.lock().unwrap();
        assert_eq!(tally.keys.len(), 1, "{:?}", tally.keys.keys());
        tally.keys.values().next().expect("one key").clone()
    }

    /// Keys kept so far of which `which` is true.
    pub fn kept_where(&self, which: impl Fn(&str) -> bool) -> usize {
        let tally = self.state.tally.lock().unwrap();
        let kept = |attempts: &[Attempt]| attempts.iter().any(|attempt| attempt.kept);
        tally.keys.iter().filter(|(key, attempts)| which(key) && kept(attempts)).count()
    }
}

impl Drop for SlowStore {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ended_already = TcpStream::connect(self.addr);
    }
}

/// A PUT in flight; counts itself out when dropped.
struct Flight<'a> {
    state: &'a State,
    put: Put,
    answered: bool,
}

impl Flight<'_> {
    fn begin(state: &State, key: String, bytes: u64) -> Flight<'_> {
        let mut tally = state.tally.lock().unwrap();
        let attempts = tally.keys.entry(key.clone()).or_default();
        attempts.push(Attempt { started: Instant::now(), last_read: None, kept: false });
        let attempt = attempts.len();
        let counts = &mut tally.counts;
        counts.started += 1;
        counts.put_again += u64::from(attempt > 1);
        counts.in_flight += 1;
        counts.in_flight_max = counts.in_flight_max.max(counts.in_flight);
        let put = Put { key, bytes, attempt, in_flight: counts.in_flight };
        Flight { state, put, answered: false }
    }

    fn read(&self, bytes: usize) {
        let mut tally = self.state.tally.lock().unwrap();
        tally.counts.bytes_received += bytes as u64;
        let attempts = tally.keys.get_mut(&self.put.key).expect("entered at its begin");
        attempts[self.put.attempt - 1].last_read = Some(Instant::now());
    }

    /// Counts the answer; it goes out afterwards, so that a client that has it finds it counted.
    fn answer(&mut self, kept: bool) {
        let mut tally = self.state.tally.lock().unwrap();
        let attempts = tally.keys.get_mut(&self.put.key).expect("entered at its begin");
        let before = attempts.iter().any(|attempt| attempt.kept);
        attempts[self.put.attempt - 1].kept |= kept;
        let counts = &mut tally.counts;
        match (kept, before) {
            (false, _) => counts.refused += 1,
            (true, false) => counts.bytes_kept += self.put.bytes,
            (true, true) => counts.kept_twice += 1,
        }
        if kept {
            counts.kept += 1;
            counts.last_kept = Some(Instant::now());
        }
        counts.in_flight -= 1;
        self.answered = true;
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let mut tally = self.state.tally.lock().unwrap();
            tally.counts.aborted += 1;
            tally.counts.in_flight -= 1;
        }
    }
}

/// Serves a connection until it ends.
fn serve(stream: &TcpStream, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    let mut reader = BufReader::with_capacity(READ_BYTES, Patient { stream, state });
    while let Some((method, key, length)) = read_head(&mut reader)? {
        if method == "PUT" {
            if !serve_put(stream, &mut reader, Flight::begin(state, key, length))? {
                return Ok(());
            }
        } else {
            answer(stream, "200 OK", LIST)?;
        }
    }
    Ok(())
}

/// One PUT whose head has come; whether the connection can go on.
fn serve_put(
    stream: &TcpStream,
    reader: &mut BufReader<Patient<'_>>,
    mut flight: Flight<'_>,
) -> io::Result<bool> {
    let state = flight.state;
    let script = state.script.lock().unwrap().clone();
    let act = script(&flight.put);
    let mut left = act.take.unwrap_or(flight.put.bytes).min(flight.put.bytes);
    let mut buffer = [0; READ_BYTES];
    while left > 0 {
        let want = buffer.len().min(left as usize);
        let n = reader.read(&mut buffer[..want])?;
        if n == 0 {
            return Ok(false);
        }
        left -= n as u64;
        flight.read(n);
        let mut at = state.link.lock().unwrap().pass(n);
        if let Some(rate) = act.rate {
            at = at.max(Instant::now() + per(n, rate));
        }
        sleep_until(at);
    }
    match act.then {
        Then::Keep => {
            let delay = *state.delay.lock().unwrap();
            sleep_until(Instant::now() + delay);
            flight.answer(true);
            answer(stream, "200 OK", "")?;
            Ok(true)
        }
        Then::Refuse(status, code) => {
            flight.answer(false);
            let text = format!("<Error><Code>{code}</Code><Message>scripted</Message></Error>");
            answer(stream, &format!("{status} Scripted"), &text)?;
            Ok(true)
        }
        Then::Reset => {
            SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
            Ok(false)
        }
        Then::Silence => {
            while !state.stop.load(Ordering::Relaxed) && !gone(stream) {
                thread::sleep(TICK);
            }
            Ok(false)
        }
    }
}

/// Method, bucket and key, and content length of the next request; `None` at the end.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<(String, String, u64)>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ').map(str::to_owned);
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let key = path.split('?').next().unwrap_or_default().trim_start_matches('/').to_owned();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    Ok(Some((method, key, length)))
}

fn answer(mut stream: &TcpStream, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status}\r\nx-amz-request-id: SLOW\r\ncontent-type: application/xml\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes())
}

fn sleep_until(at: Instant) {
    let left = at.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}

/// Whether the peer has closed or reset the connection, unread bytes or not.
fn gone(stream: &TcpStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let ends = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut fds = [PollFd::new(stream, ends)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents().intersects(ends)
}

/// Reads that wait until there is something, or the store is gone.
struct Patient<'a> {
    stream: &'a TcpStream,
    state: &'a State,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut stream = self.stream;
            match stream.read(buffer) {
                Err(error) if is_wait(&error) => {
                    if self.state.stop.load(Ordering::Relaxed) {
                        return Ok(0);
                    }
                }
                outcome => return outcome,
            }
        }
    }
}

fn is_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
