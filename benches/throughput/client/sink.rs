//! The S3 sink of one client core: takes every PUT that looks as S3 would want it, keeps nothing
//! but counts.
//!
//! It reads each head as strictly as it can afford and checks what a signed PUT must carry. Whether
//! a signature is right is tested elsewhere, against a server that computes it. What is in a batch
//! is looked at by `batches`.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry};
use socket2::{Domain, Protocol, Socket, Type};

use super::batches::{Batch, Batches};
use super::sink_token;
use crate::lanes::{self, Lane, PutLatency};
use crate::server::{BUCKET, PREFIX};

const STORED: &[u8] =
    b"HTTP/1.1 200 OK\r\nx-amz-id-2: c2luaw==\r\nx-amz-request-id: 0123456789ABCDEF\r\n\
date: Thu, 01 Jan 2026 00:00:00 GMT\r\netag: \"d41d8cd98f00b204e9800998ecf8427e\"\r\n\
server: sink\r\ncontent-length: 0\r\n\r\n";

/// An empty `ListObjectsV2`: what a start-up probe asks for.
const LISTED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/xml\r\nserver: sink\r\n\
content-length: 167\r\n\r\n<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
<KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>";

pub(super) struct Sink {
    listener: TcpListener,
    conns: Vec<Option<Conn>>,
    vacant: Vec<usize>,
    /// Where a read filled the buffer.
    unread: Vec<usize>,
    latency: PutLatency,
    rng: fastrand::Rng,
    /// Answers that are not due yet, the next one first.
    answers: VecDeque<(Instant, usize)>,
    /// A hash of every key put.
    keys: Vec<u64>,
    /// In lanes whose objects are batches.
    batches: Option<Batches>,
    pub(super) puts: u64,
    /// Payloads in those.
    pub(super) payloads: u64,
    /// Of bodies, as they come.
    pub(super) put_bytes: u64,
}

struct Conn {
    stream: TcpStream,
    /// A head that has come in part.
    stash: Vec<u8>,
    /// The request whose body is being read.
    body: Option<Body>,
}

struct Body {
    left: usize,
    put: bool,
    batch: Option<Batch>,
}

/// A listener that shares its port with the other client cores'.
pub(super) fn listen(address: Option<SocketAddr>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.unwrap_or(([127, 0, 0, 1], 0).into()).into())?;
    socket.listen(4096)?;
    Ok(TcpListener::from_std(socket.into()))
}

impl Sink {
    pub(super) fn new(listener: TcpListener, lane: &Lane, seed: u64) -> Sink {
        let latency = match lane.store {
            lanes::Sink::S3 { latency } => latency,
            lanes::Sink::Null => PutLatency::always(Duration::ZERO),
        };
        Sink {
            listener,
            conns: Vec::new(),
            vacant: Vec::new(),
            unread: Vec::new(),
            latency,
            rng: fastrand::Rng::with_seed(seed),
            answers: VecDeque::new(),
            keys: Vec::with_capacity(1 << 20),
            batches: lane.batches.then(|| Batches::new(lane)),
            puts: 0,
            payloads: 0,
            put_bytes: 0,
        }
    }

    pub(super) fn accept(&mut self, registry: &Registry) -> Result<(), String> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("the sink cannot accept: {error}")),
            };
            let _only_slower_without = stream.set_nodelay(true);
            let index = self.vacant.pop().unwrap_or_else(|| {
                self.conns.push(None);
                self.conns.len() - 1
            });
            registry
                .register(&mut stream, sink_token(index), Interest::READABLE)
                .map_err(|error| format!("the sink cannot watch a connection: {error}"))?;
            self.conns[index] = Some(Conn { stream, stash: Vec::new(), body: None });
        }
    }

    /// Reads once, for the load generator waits meanwhile: a large object comes for as long as it
    /// is read.
    pub(super) fn on_event(&mut self, index: usize, buffer: &mut [u8]) -> Result<(), String> {
        let Some(conn) = self.conns.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        let read = match conn.stream.read(buffer) {
            // A server that is done with a connection, or has stopped.
            Ok(0) => return self.forget(index),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(_) => return self.forget(index),
        };
        // A short read has emptied the socket.
        if read == buffer.len() {
            self.unread.push(index);
        }
        self.take(index, &buffer[..read])
    }

    /// Reads again where there was more; no event would come for it.
    pub(super) fn go_on(&mut self, buffer: &mut [u8]) -> Result<(), String> {
        std::mem::take(&mut self.unread)
            .into_iter()
            .try_for_each(|index| self.on_event(index, buffer))
    }

    fn forget(&mut self, index: usize) -> Result<(), String> {
        self.conns[index] = None;
        // Not before the next round: an answer may still be due on it.
        if self.latency.p99.is_zero() {
            self.vacant.push(index);
        }
        Ok(())
    }

    /// Takes in what has come on a connection.
    fn take(&mut self, index: usize, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let Some(conn) = self.conns[index].as_mut() else { return Ok(()) };
            let Some(body) = &mut conn.body else {
                bytes = self.take_head(index, bytes)?;
                continue;
            };
            let (part, rest) = bytes.split_at(body.left.min(bytes.len()));
            body.left -= part.len();
            bytes = rest;
            if body.put {
                self.put_bytes += part.len() as u64;
            }
            if let Some(batch) = &mut body.batch {
                batch.take(part);
            }
            if body.left == 0 {
                let body = conn.body.take().expect("just read to its end");
                self.received(index, body)?;
            }
        }
        Ok(())
    }

    /// Reads a head, or keeps its part; what is behind it.
    fn take_head<'a>(&mut self, index: usize, bytes: &'a [u8]) -> Result<&'a [u8], String> {
        let conn = self.conns[index].as_mut().expect("the caller has it");
        let had = conn.stash.len();
        let parsed = if had == 0 {
            Head::parse(bytes, &mut self.batches)?
        } else {
            conn.stash.extend_from_slice(bytes);
            Head::parse(&conn.stash, &mut self.batches)?
        };
        let Some(head) = parsed else {
            if had == 0 {
                conn.stash.extend_from_slice(bytes);
            }
            return Ok(&[]);
        };
        conn.stash.clear();
        if head.put {
            self.keys.push(head.key);
        }
        if head.expects_continue {
            let _the_body_will_not_come = conn.stream.write(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let rest = &bytes[head.bytes - had..];
        let body = Body { left: head.length, put: head.put, batch: head.batch };
        if body.left == 0 {
            self.received(index, body)?;
        } else {
            conn.body = Some(body);
        }
        Ok(rest)
    }

    /// A request is there as a whole.
    fn received(&mut self, index: usize, body: Body) -> Result<(), String> {
        if !body.put {
            return self.answer(index, LISTED);
        }
        self.puts += 1;
        self.payloads += match (&mut self.batches, body.batch) {
            (Some(batches), Some(batch)) => batches.received(batch)?,
            _ => 1,
        };
        if self.latency.p99.is_zero() {
            return self.answer(index, STORED);
        }
        let due = Instant::now() + self.latency.draw(&mut self.rng);
        // At the end, if all take equally long.
        let at = self.answers.partition_point(|(other, _)| *other <= due);
        self.answers.insert(at, (due, index));
        Ok(())
    }

    fn answer(&mut self, index: usize, answer: &[u8]) -> Result<(), String> {
        let Some(conn) = self.conns[index].as_mut() else { return Ok(()) };
        match conn.stream.write(answer) {
            Ok(n) if n == answer.len() => Ok(()),
            Ok(_) => Err("the sink could not write an answer as a whole".into()),
            Err(_) => self.forget(index),
        }
    }

    /// Sends the answers that are due.
    pub(super) fn tick(&mut self, now: Instant) {
        while let Some((due, index)) = self.answers.front().copied()
            && due <= now
        {
            self.answers.pop_front();
            let _a_server_that_has_gone = self.answer(index, STORED);
        }
    }

    pub(super) fn wait(&self, now: Instant) -> Duration {
        if !self.unread.is_empty() {
            return Duration::ZERO;
        }
        let due = self.answers.front().map(|(due, _)| due.saturating_duration_since(now));
        due.unwrap_or(Duration::MAX)
    }

    /// Looks into the batches that it could not look into as they came; how many payloads it has
    /// not looked at.
    pub(super) fn decode(&mut self) -> Result<u64, String> {
        self.batches.take().map_or(Ok(0), Batches::decode)
    }

    pub(super) fn distinct_keys(&self) -> u64 {
        self.keys.iter().collect::<HashSet<_>>().len() as u64
    }
}

/// What a request says about itself.
struct Head {
    bytes: usize,
    length: usize,
    put: bool,
    key: u64,
    batch: Option<Batch>,
    expects_continue: bool,
}

impl Head {
    /// None when it is not there as a whole yet.
    fn parse(bytes: &[u8], batches: &mut Option<Batches>) -> Result<Option<Head>, String> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        let wrong = |what: &str| {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1_000)]);
            Err(format!("a request to the store {what}: {text}"))
        };
        let end = match request.parse(bytes) {
            Ok(httparse::Status::Complete(end)) => end,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return wrong("is not HTTP"),
        };
        let mut seen = Seen::default();
        for header in request.headers.iter() {
            seen.header(header);
        }
        let path = request.path.unwrap_or_default();
        let put = request.method == Some("PUT");
        let key = path.strip_prefix('/').and_then(|path| path.strip_prefix(BUCKET));
        let key = key.and_then(|path| path.strip_prefix('/')?.strip_prefix(PREFIX));
        let key = match key.map(|key| key.split('?').next().unwrap_or_default()) {
            Some(key) if !key.is_empty() => key,
            _ if put => return wrong("puts under no key"),
            _ => "",
        };
        match seen {
            Seen { signed: false, .. } => return wrong("is not signed"),
            Seen { date: false, .. } => return wrong("has no x-amz-date"),
            Seen { payload_hash: false, .. } => return wrong("has no x-amz-content-sha256"),
            Seen { host: false, .. } => return wrong("has no host"),
            Seen { length: None, .. } if put => return wrong("has no content-length"),
            Seen { .. } => {}
        }
        let mut hash = DefaultHasher::new();
        hash.write(key.as_bytes());
        let length = seen.length.unwrap_or(0);
        let batch = match batches {
            Some(batches) if put => Some(batches.begin(key, length)?),
            _ => None,
        };
        Ok(Some(Head {
            bytes: end,
            length,
            put,
            key: hash.finish(),
            batch,
            expects_continue: seen.expects_continue,
        }))
    }
}

/// The headers that must be there.
#[derive(Default)]
struct Seen {
    signed: bool,
    date: bool,
    payload_hash: bool,
    host: bool,
    length: Option<usize>,
    expects_continue: bool,
}

impl Seen {
    fn header(&mut self, header: &httparse::Header<'_>) {
        let value = header.value;
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        match header.name.len() {
            4 if is("host") => self.host = !value.is_empty(),
            6 if is("expect") => self.expects_continue = value == b"100-continue",
            10 if is("x-amz-date") => self.date = value.len() == 16 && value[15] == b'Z',
            13 if is("authorization") => self.signed = looks_signed(value),
            14 if is("content-length") => {
                self.length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            }
            20 if is("x-amz-content-sha256") => {
                self.payload_hash = value == b"UNSIGNED-PAYLOAD" || is_hex_64(value);
            }
            _ => {}
        }
    }
}

/// `AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=<64 hex>`
fn looks_signed(value: &[u8]) -> bool {
    let Some(rest) = value.strip_prefix(b"AWS4-HMAC-SHA256 Credential=") else { return false };
    let Some((head, signature)) = rest.split_at_checked(rest.len().saturating_sub(64)) else {
        return false;
    };
    head.ends_with(b"Signature=") && is_hex_64(signature)
}

fn is_hex_64(value: &[u8]) -> bool {
    value.len() == 64 && value.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
