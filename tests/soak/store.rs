//! A store on loopback that speaks as much S3 as a PUT needs, keeps no bytes but a note of each
//! payload in the ledger, and fails as the weather says.
//!
//! Some PUTs fail in any weather: refused, reset before or after they were kept, slow, silent. It
//! checks no signature; `tests/it/support/s3.rs` does.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::Shared;
use crate::ledger::Id;
use crate::support::batches::Packing;

const LIST: &str = "<ListBucketResult><Name>payloads</Name><KeyCount>0</KeyCount>\
    <MaxKeys>1</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>";

/// Longer than any client waits for a silent PUT.
const SILENCE: Duration = Duration::from_secs(20);

/// Ports that the kernel gives to no client: while the store is down, a connection could have its
/// port otherwise, or even connect to itself.
const PORTS: Range<u16> = 20_000..32_000;

/// How the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Without a fault.
    Clear,
    /// A few PUTs in a hundred fail.
    Fair,
    /// Half of them are `SlowDown`.
    Busy,
    /// All of them are `ServiceUnavailable`.
    Refusing,
    /// None is answered.
    Silent,
    /// Connections are reset and refused: it restarts.
    Down,
}

/// What happens to one PUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Keep,
    KeepSlowly(Duration),
    Refuse(u16, &'static str),
    ResetBefore,
    ResetAfter,
    Silence,
}

/// PUTs that went wrong on purpose, by how.
#[derive(Default)]
pub struct Faults {
    pub refused: AtomicU64,
    pub reset: AtomicU64,
    pub silent: AtomicU64,
    pub slow: AtomicU64,
    pub poisoned: AtomicU64,
    /// Connections that a restart has reset.
    pub restarted: AtomicU64,
}

struct State {
    shared: Arc<Shared>,
    weather: watch::Receiver<Weather>,
    rng: Mutex<fastrand::Rng>,
    takes_poison: AtomicBool,
    faults: Faults,
}

/// The running store. It ends with the process.
pub struct Store {
    pub address: SocketAddr,
    weather: watch::Sender<Weather>,
    state: Arc<State>,
}

impl Store {
    pub fn start(shared: Arc<Shared>, seed: u64) -> Store {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (first, address) = loop {
            let address = ([127, 0, 0, 1], rng.u16(PORTS)).into();
            if let Ok(listener) = listen(address) {
                break (listener, address);
            }
        };
        let (weather, seen) = watch::channel(Weather::Clear);
        let state = Arc::new(State {
            shared,
            weather: seen,
            rng: Mutex::new(rng),
            takes_poison: AtomicBool::new(false),
            faults: Faults::default(),
        });
        let serving = state.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(accept(first, address, serving));
        });
        Store { address, weather, state }
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// From now on poison is kept like anything else.
    pub fn take_poison(&self) {
        self.state.takes_poison.store(true, Relaxed);
    }

    pub fn faults(&self) -> &Faults {
        &self.state.faults
    }
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Serves on the same address again and again, with breaks while it is down.
async fn accept(first: std::net::TcpListener, address: SocketAddr, state: Arc<State>) {
    let mut weather = state.weather.clone();
    let mut next = Some(first);
    loop {
        let listener = next.take().map_or_else(|| listen(address), Ok);
        let Ok(listener) = listener.and_then(TcpListener::from_std) else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((socket, _)) = accepted {
                        tokio::spawn(until_down(socket, state.clone()));
                    }
                }
                _ = weather.wait_for(|now| *now == Weather::Down) => break,
            }
        }
        drop(listener);
        let _up = weather.wait_for(|now| *now != Weather::Down).await;
    }
}

/// A connection to its end, or until a restart resets it.
async fn until_down(socket: TcpStream, state: Arc<State>) {
    let mut weather = state.weather.clone();
    let _unlikely = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    let _unlikely = socket.set_nodelay(true);
    let mut served = Served { socket, unread: Vec::new() };
    tokio::select! {
        _ended = served.serve(&state) => {}
        _ = weather.wait_for(|now| *now == Weather::Down) => {
            state.faults.restarted.fetch_add(1, Relaxed);
        }
    }
}

/// One connection of a client. Its end is a reset.
struct Served {
    socket: TcpStream,
    unread: Vec<u8>,
}

impl Served {
    async fn serve(&mut self, state: &State) -> io::Result<()> {
        loop {
            let (method, key, length) = self.head().await?;
            if method != "PUT" {
                self.answer(200, LIST).await?;
                continue;
            }
            let act = state.act();
            match act {
                Act::Silence => {
                    state.faults.silent.fetch_add(1, Relaxed);
                    return self.silence().await;
                }
                Act::ResetBefore => {
                    state.faults.reset.fetch_add(1, Relaxed);
                    return Ok(());
                }
                _ => {}
            }
            while self.unread.len() < length {
                self.fill().await?;
            }
            let body: Vec<u8> = self.unread.drain(..length).collect();
            self.put(act, &key, &body, state).await?;
        }
    }

    async fn put(&mut self, act: Act, key: &str, body: &[u8], state: &State) -> io::Result<()> {
        let faults = &state.faults;
        match act {
            Act::Refuse(status, code) => {
                faults.refused.fetch_add(1, Relaxed);
                return self.refuse(status, code).await;
            }
            Act::KeepSlowly(delay) => {
                faults.slow.fetch_add(1, Relaxed);
                tokio::time::sleep(delay).await;
            }
            _ => {}
        }
        if !state.keep(key, body) {
            faults.poisoned.fetch_add(1, Relaxed);
            return self.refuse(400, "InvalidArgument").await;
        }
        if act == Act::ResetAfter {
            faults.reset.fetch_add(1, Relaxed);
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.answer(200, "").await
    }

    /// Reads and says nothing, until the client has given up.
    async fn silence(&mut self) -> io::Result<()> {
        let given_up = async {
            while self.fill().await.is_ok() {
                self.unread.clear();
            }
        };
        let _either = tokio::time::timeout(SILENCE, given_up).await;
        Ok(())
    }

    async fn refuse(&mut self, status: u16, code: &str) -> io::Result<()> {
        let text = format!("<Error><Code>{code}</Code><Message>by the soak</Message></Error>");
        self.answer(status, &text).await
    }

    async fn answer(&mut self, status: u16, body: &str) -> io::Result<()> {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\nx-amz-request-id: SOAK\r\ncontent-type: application/xml\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        self.socket.write_all(head.as_bytes()).await
    }

    /// Method, key and content length of the next request.
    async fn head(&mut self) -> io::Result<(String, String, usize)> {
        let end = loop {
            if let Some(at) = memchr::memmem::find(&self.unread, b"\r\n\r\n") {
                break at + 4;
            }
            self.fill().await?;
        };
        let head: Vec<u8> = self.unread.drain(..end).collect();
        let head = String::from_utf8(head).map_err(io::Error::other)?;
        let mut words = head.split([' ', '?']);
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (method, key) = (word(), word());
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        Ok((method, key, length.unwrap_or(0)))
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.unread.reserve(64 << 10);
        match self.socket.read_buf(&mut self.unread).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

impl State {
    fn act(&self) -> Act {
        let mut rng = self.rng.lock().unwrap();
        let draw = rng.u32(..1000);
        match (*self.weather.borrow(), draw) {
            (Weather::Clear, _) => Act::Keep,
            (Weather::Refusing, _) => Act::Refuse(503, "ServiceUnavailable"),
            (Weather::Silent | Weather::Down, _) => Act::Silence,
            (Weather::Busy, ..500) => Act::Refuse(503, "SlowDown"),
            (_, 990..) => Act::KeepSlowly(Duration::from_millis(rng.u64(20..400))),
            (_, 985..) => Act::Refuse(500, "InternalError"),
            (_, 980..) => Act::Refuse(503, "SlowDown"),
            (_, 977..) => Act::ResetBefore,
            (_, 974..) => Act::ResetAfter,
            (_, 973..) => Act::Silence,
            _ => Act::Keep,
        }
    }

    /// Notes every payload of an object; `false`: it holds poison, and nothing of it is kept.
    fn keep(&self, key: &str, body: &[u8]) -> bool {
        let Shared { ledger, findings, .. } = &*self.shared;
        let Some(ids) = payloads(body) else {
            findings.add(format!("an object that is not what was sent: {key}"));
            return true;
        };
        if ids.iter().any(|id| id.poison) && !self.takes_poison.load(Relaxed) {
            return false;
        }
        ledger.lock().unwrap().stored(key, &ids, findings);
        true
    }
}

/// The payloads of an object, single or batch; `None` if it holds anything else.
pub fn payloads(object: &[u8]) -> Option<Vec<Id>> {
    let plain;
    let mut text = object;
    if Packing::of_bytes(object) == Packing::Zstd {
        plain = zstd::decode_all(object).ok()?;
        text = &plain;
    }
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    text.split(|byte| *byte == b'\n').map(Id::read).collect()
}
