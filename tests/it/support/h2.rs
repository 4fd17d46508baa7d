//! A client of HTTP/2 that sends any frames. It keeps the windows of what it sends and acknowledges
//! settings; everything else is up to the test. Heads are literals, and the server is told to keep no
//! table, so no state of HPACK is needed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const WITH_PRIORITY: u8 = 32;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const HEADER_TABLE_SIZE: u16 = 1;
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// Reasons of RFC 9113, section 7.
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const INTERNAL_ERROR: u32 = 2;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// Longest payload of a frame.
const FRAME_MAX: usize = 16_384;

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut bytes = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    bytes.extend_from_slice(payload);
    bytes
}

/// The payload of settings.
pub fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let pair =
        |(name, value): &(u16, u32)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat();
    pairs.iter().flat_map(pair).collect()
}

/// A head as literals.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            integer(&mut bytes, text.len());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// An integer with a prefix of seven bits (RFC 7541, section 5.1).
fn integer(bytes: &mut Vec<u8>, value: usize) {
    if value < 127 {
        return bytes.push(value as u8);
    }
    bytes.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    bytes.push(rest as u8);
}

/// The head of a POST to `/payloads`, with more fields.
pub fn post<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/payloads"),
        (":authority", "ingest.test"),
    ];
    fields.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
    let pseudo = more.iter().filter(|(name, _)| name.starts_with(':'));
    fields.extend(pseudo);
    fields.extend(more.iter().filter(|(name, _)| !name.starts_with(':')));
    fields
}

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The reason of a reset, or of the end of the connection.
    pub fn reason(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// What came of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct H2Answer {
    pub status: u16,
    pub body: String,
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    Answered(H2Answer),
    Reset(u32),
    GoAway(u32),
    /// The connection was closed without a reason.
    Closed,
}

pub struct H2Client<S = TcpStream> {
    pub stream: S,
    unread: Vec<u8>,
    next_stream: u32,
    /// Bytes that may be sent on the connection, on a new stream, and on those that are known.
    window: i64,
    initial_window: i64,
    windows: BTreeMap<u32, i64>,
    /// Answers that are not complete, and ends that nobody has asked for.
    answers: BTreeMap<u32, H2Answer>,
    ended: BTreeMap<u32, StreamEnd>,
    /// Whether it acknowledges settings. Not while it is in the middle of something.
    pub acknowledges: bool,
    /// The last words of the server.
    pub went_away: Option<u32>,
}

impl H2Client {
    /// Connects with prior knowledge, and sends preface and settings.
    pub fn connect(address: SocketAddr) -> H2Client {
        H2Client::connect_with(address, &[])
    }

    /// The same; none if the server does not take it.
    pub fn try_connect(address: SocketAddr) -> Option<H2Client> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = H2Client::silent(stream);
        client.acknowledges = true;
        let first = frame(SETTINGS, 0, 0, &settings(&[(HEADER_TABLE_SIZE, 0)]));
        client.try_send([PREFACE, &first].concat()).then_some(client)
    }

    pub fn connect_with(address: SocketAddr, more: &[(u16, u32)]) -> H2Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        H2Client::over(stream, more)
    }
}

impl<S: Read + Write> H2Client<S> {
    /// Sends preface and settings.
    pub fn over(stream: S, more: &[(u16, u32)]) -> H2Client<S> {
        let mut client = H2Client::silent(stream);
        client.acknowledges = true;
        let pairs = [&[(HEADER_TABLE_SIZE, 0)], more].concat();
        let first = frame(SETTINGS, 0, 0, &settings(&pairs));
        // Answers never wait for the window of the connection.
        let window = frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
        client.send([PREFACE, &first, &window].concat());
        client
    }

    /// Sends nothing by itself.
    pub fn silent(stream: S) -> H2Client<S> {
        H2Client {
            stream,
            unread: Vec::new(),
            next_stream: 1,
            window: 65_535,
            initial_window: 65_535,
            windows: BTreeMap::new(),
            answers: BTreeMap::new(),
            ended: BTreeMap::new(),
            acknowledges: false,
            went_away: None,
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// False if the server has closed.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// The number of the next stream.
    pub fn new_stream(&mut self) -> u32 {
        self.next_stream += 2;
        self.next_stream - 2
    }

    /// Begins a request without a body, or with one to come.
    pub fn head(&mut self, fields: &[(&str, &str)], ends: bool) -> u32 {
        let stream = self.new_stream();
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        self.send(frame(HEADERS, flags, stream, &block(fields)));
        stream
    }

    /// Sends part of a body as its window allows, reading meanwhile.
    pub fn data(&mut self, stream: u32, mut bytes: &[u8], ends: bool) {
        loop {
            let room = self.window.min(*self.windows.entry(stream).or_insert(self.initial_window));
            let most = bytes.len().min(FRAME_MAX).min(room.max(0) as usize);
            let is_last = most == bytes.len();
            if most > 0 || is_last {
                let flags = if ends && is_last { END_STREAM } else { 0 };
                self.send(frame(DATA, flags, stream, &bytes[..most]));
                self.window -= most as i64;
                *self.windows.get_mut(&stream).unwrap() -= most as i64;
                bytes = &bytes[most..];
            }
            if is_last {
                return;
            }
            if self.window <= 0 || self.windows[&stream] <= 0 {
                let frame = self.next_frame().expect("a window, not the end");
                if frame.stream == stream && frame.kind == RST_STREAM {
                    return;
                }
            }
        }
    }

    /// Posts these bytes.
    pub fn begin_post(&mut self, body: impl AsRef<[u8]>, more: &[(&str, &str)]) -> u32 {
        let stream = self.head(&post(more), false);
        self.data(stream, body.as_ref(), true);
        stream
    }

    /// Posts these bytes, and waits for the answer.
    pub fn post(&mut self, body: impl AsRef<[u8]>) -> H2Answer {
        let stream = self.begin_post(body, &[]);
        self.answer(stream)
    }

    /// The same in one piece; none if there is no whole answer.
    pub fn try_post(&mut self, body: &[u8]) -> Option<H2Answer> {
        let stream = self.new_stream();
        let head = frame(HEADERS, END_HEADERS, stream, &block(&post(&[])));
        if !self.try_send([head, frame(DATA, END_STREAM, stream, body)].concat()) {
            return None;
        }
        match self.end_of(stream) {
            StreamEnd::Answered(answer) => Some(answer),
            _ => None,
        }
    }

    pub fn answer(&mut self, stream: u32) -> H2Answer {
        match self.end_of(stream) {
            StreamEnd::Answered(answer) => answer,
            other => panic!("stream {stream} ended with {other:?}"),
        }
    }

    /// Waits until a stream ends, or the connection.
    pub fn end_of(&mut self, stream: u32) -> StreamEnd {
        loop {
            if let Some(end) = self.ended.remove(&stream) {
                return end;
            }
            if self.next_frame().is_none() {
                return self.went_away.map_or(StreamEnd::Closed, StreamEnd::GoAway);
            }
        }
    }

    /// Waits until the server closes. Its last words, if it has any.
    pub fn end(&mut self) -> Option<u32> {
        while self.next_frame().is_some() {}
        self.went_away
    }

    /// The next frame, which is taken note of; `None` at the end. A reset counts as the end.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        if !self.read(&mut head) {
            return None;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if !self.read(&mut payload) {
            return None;
        }
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        self.note(&frame);
        Some(frame)
    }

    fn note(&mut self, frame: &Frame) {
        let Frame { kind, flags, stream, payload } = frame;
        match *kind {
            SETTINGS if flags & ACK == 0 => {
                for pair in payload.chunks(6) {
                    if pair[..2] == INITIAL_WINDOW_SIZE.to_be_bytes() {
                        let value = i64::from(u32::from_be_bytes(pair[2..].try_into().unwrap()));
                        let more = value - self.initial_window;
                        self.windows.values_mut().for_each(|window| *window += more);
                        self.initial_window = value;
                    }
                }
                if self.acknowledges {
                    let _or_it_has_closed = self.try_send(self::frame(SETTINGS, ACK, 0, &[]));
                }
            }
            WINDOW_UPDATE => {
                let more = i64::from(u32::from_be_bytes(payload[..4].try_into().unwrap()));
                match stream {
                    0 => self.window += more,
                    stream => {
                        let initial = self.initial_window;
                        *self.windows.entry(*stream).or_insert(initial) += more;
                    }
                }
            }
            HEADERS => {
                assert!(flags & END_HEADERS != 0, "answers have short heads");
                self.answers.entry(*stream).or_default().status = status(payload);
            }
            DATA => {
                let text = str::from_utf8(payload).unwrap();
                self.answers.entry(*stream).or_default().body.push_str(text);
            }
            RST_STREAM => {
                let end = StreamEnd::Reset(frame.reason());
                self.ended.entry(*stream).or_insert(end);
            }
            GOAWAY => self.went_away = Some(frame.reason()),
            _ => {}
        }
        if matches!(*kind, HEADERS | DATA) && flags & END_STREAM != 0 {
            let answer = self.answers.remove(stream).unwrap();
            self.ended.insert(*stream, StreamEnd::Answered(answer));
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> bool {
        while self.unread.len() < bytes.len() {
            let mut buffer = [0; 64 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => self.unread.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("no frame and no end in time")
                }
                Err(_) => return false,
            }
        }
        bytes.copy_from_slice(&self.unread[..bytes.len()]);
        self.unread.drain(..bytes.len());
        true
    }
}

/// The status with which a head begins (RFC 7541, sections 6 and A).
fn status(mut head: &[u8]) -> u16 {
    // A change of the size of the table, which is empty.
    while head[0] & 0xe0 == 0x20 {
        head = &head[1..];
    }
    match head[0] {
        0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(head[0] - 0x88)],
        0x08 | 0x18 | 0x48 => {
            let (length, text) = (usize::from(head[1] & 0x7f), &head[2..]);
            let digits = match head[1] & 0x80 {
                0 => text[..length].to_vec(),
                _ => huffman_digits(&text[..length]),
            };
            String::from_utf8(digits).unwrap().parse().unwrap()
        }
        byte => panic!("a head begins with {byte:#x}"),
    }
}

/// Three digits (RFC 7541, section B): 0, 1 and 2 have five bits, the others six.
fn huffman_digits(bytes: &[u8]) -> Vec<u8> {
    let all = bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let mut left = bytes.len() * 8;
    let mut digits = Vec::new();
    while digits.len() < 3 {
        let bits = |left: usize, count: usize| (all >> (left - count)) as u8 & ((1 << count) - 1);
        let (digit, count) = match bits(left, 5) {
            few @ 0..=2 => (b'0' + few, 5),
            _ => (b'3' + bits(left, 6) - 25, 6),
        };
        digits.push(digit);
        left -= count;
    }
    digits
}

impl<S: Read + Write> H2Client<S> {
    /// Whether a stream has ended, as far as its frames were read.
    pub fn has_ended(&self, stream: u32) -> bool {
        self.ended.contains_key(&stream)
    }

    /// The next frame of a kind.
    pub fn next_frame_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next_frame().expect("a frame, not the end");
            if frame.kind == kind {
                return frame;
            }
        }
    }
}

impl H2Client {
    /// Whether the server has closed by now; reads what it has sent.
    pub fn is_closed_by_now(&mut self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let mut buffer = [0; 64 * 1024];
        let closed = loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break true,
                Ok(n) => self.unread.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
        };
        self.stream.set_nonblocking(false).unwrap();
        closed
    }
}
