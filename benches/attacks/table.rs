//! The attacks, with their rates: what a single core can take.

use crate::bytes::{
    CHUNKED, MIB, announced, bad_at_the_end, bombs, chunked, client_hello, dense, gzipped, lines,
    request, zstd_ed, zstd_ed_lines,
};

/// Connections opened a second.
const CONNECTS_PER_S: u32 = 2_000;
/// Connections that are slow or silent.
const SLOW_CONNECTIONS: usize = 2_000;
/// A byte a second on each of them.
const SLOW_BYTES_PER_S: u32 = 2_000;
/// Pieces of [`PIECE`] bytes a second of what never ends: 8 MB/s.
const ENDLESS_PIECES_PER_S: u32 = 4_000;
/// Heads a second that are too large.
const LARGE_HEADS_PER_S: u32 = 1_000;
/// Connections a second that speak another protocol.
const FOREIGN_PER_S: u32 = 1_000;
/// Handshakes begun a second, each of which takes the server a key exchange and a signature.
const HELLOS_PER_S: u32 = 1_000;
/// Pipelines a second of [`PIPELINED`] requests each: 20,000 requests a second.
const PIPELINES_PER_S: u32 = 400;
/// Small requests a second that are refused.
const REFUSED_PER_S: u32 = 4_000;
/// Requests a second with a token that is not in a large file: the file's length must not count.
const WRONG_TOKENS_PER_S: u32 = 2_000;
/// Requests a second of 20,000 chunks of a byte.
const BYTE_CHUNKS_PER_S: u32 = 20;
/// Bodies a second that unfold to `MAX_LENGTH` or more.
const BOMBS_PER_S: u32 = 100;
/// Bodies of 1 MiB a second that are refused at their last byte.
const LATE_ERRORS_PER_S: u32 = 50;
/// Clients that send a body made to cost as much as it can, each the next one once it is answered.
const LOOPS: usize = 64;
/// Bodies of 64 MiB a second, where `MAX_LENGTH` allows them.
const HUGE_PER_S: u32 = 1;

/// Bytes of a piece of what never ends.
const PIECE: usize = 2_000;
/// Requests of one pipeline.
const PIPELINED: usize = 50;

/// The token of the good client.
pub const GOOD_TOKEN: &str = "the-good-one";

/// What the good client sends.
pub fn good_request(token: bool) -> Vec<u8> {
    if token {
        let body = format!(r#"{{"token":"{GOOD_TOKEN}","data":[{{"good":1}},"good"]}}"#);
        return request(body.as_bytes(), "");
    }
    request(br#"{"data":[{"good":1},"good"]}"#, "")
}

/// One way to be a bad client.
pub struct Attack {
    pub name: &'static str,
    /// Of the server.
    pub settings: &'static [(&'static str, &'static str)],
    /// It goes to an address with TLS; the good client does not.
    pub tls: bool,
    /// Lines of `TOKENS_FILE`; none: no such file.
    pub tokens: usize,
    /// How many it holds at a time.
    pub connections: usize,
    /// How often it acts a second; none: whenever it has an answer.
    pub per_s: Option<u32>,
    act: Make,
}

/// What is sent: bombs take seconds to make.
enum Make {
    Ready(Act),
    Later(fn() -> Act),
}

impl From<Act> for Make {
    fn from(act: Act) -> Make {
        Make::Ready(act)
    }
}

/// What an attacker does at each turn.
#[derive(Clone)]
pub enum Act {
    Nothing,
    /// Opens a connection, sends `first` and leaves.
    Connect {
        first: Vec<u8>,
        leave: Leave,
    },
    /// Sends one of `messages` on a connection that is kept as long as the server keeps it, and
    /// waits for `answers` of one of `statuses`, which are the right ones under this attack. The
    /// end without an answer is right as well.
    Ask {
        messages: Vec<Vec<u8>>,
        answers: usize,
        statuses: &'static [u16],
    },
    /// Sends `start` on every connection, and at its turns the next `piece` bytes of `stream`,
    /// again and again; opens another one where the server has closed or, if it `reads`, answered.
    Feed {
        start: Vec<u8>,
        stream: Vec<u8>,
        piece: usize,
        reads: bool,
    },
}

/// How a connection is left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    Close,
    Reset,
    /// Half-closed, and held as long as there are not too many.
    HalfClosed,
}

impl Act {
    /// What is counted.
    pub fn unit(&self) -> &'static str {
        match self {
            Act::Nothing => "",
            Act::Connect { .. } | Act::Feed { piece: 0, .. } => "connections",
            Act::Ask { .. } => "answers",
            Act::Feed { .. } => "pieces",
        }
    }
}

impl Attack {
    pub fn act(&self) -> Act {
        match &self.act {
            Make::Ready(act) => act.clone(),
            Make::Later(make) => make(),
        }
    }

    fn new(name: &'static str, connections: usize, per_s: u32, act: impl Into<Make>) -> Attack {
        let act = act.into();
        let per_s = Some(per_s);
        Attack { name, settings: &[], tls: false, tokens: 0, connections, per_s, act }
    }

    fn on_tls(self) -> Attack {
        Attack { tls: true, ..self }
    }

    fn with(self, settings: &'static [(&'static str, &'static str)]) -> Attack {
        Attack { settings, ..self }
    }

    fn loops(name: &'static str, act: Make) -> Attack {
        Attack { per_s: None, ..Attack::new(name, LOOPS, 0, act) }
    }

    fn wrong_tokens(name: &'static str, tokens: usize) -> Attack {
        let wrong = request(br#"{"token":"token-0","data":[1]}"#, "");
        let act = asks(vec![wrong], &[401]);
        Attack { tokens, ..Attack::new(name, 64, WRONG_TOKENS_PER_S, act) }
    }
}

fn connects(leave: Leave, first: &[u8]) -> Act {
    Act::Connect { first: first.to_vec(), leave }
}

fn asks(messages: Vec<Vec<u8>>, statuses: &'static [u16]) -> Act {
    Act::Ask { messages, answers: 1, statuses }
}

fn pipelines(request: &[u8], statuses: &'static [u16]) -> Act {
    Act::Ask { messages: vec![request.repeat(PIPELINED)], answers: PIPELINED, statuses }
}

/// A byte at a time.
fn trickles(start: &[u8], stream: &[u8]) -> Act {
    Act::Feed { start: start.to_vec(), stream: stream.to_vec(), piece: 1, reads: true }
}

/// [`PIECE`] bytes at a time, of `of` again and again.
fn endless(start: &[u8], of: &[u8]) -> Act {
    let stream = of.repeat(PIECE.div_ceil(of.len()));
    let piece = stream.len();
    Act::Feed { start: start.to_vec(), stream, piece, reads: true }
}

fn unread(request: &[u8]) -> Act {
    let stream = request.repeat(PIECE.div_ceil(request.len()));
    let piece = stream.len();
    Act::Feed { start: Vec::new(), stream, piece, reads: false }
}

/// `start`, and silence.
fn holds(start: Vec<u8>) -> Act {
    Act::Feed { start, stream: Vec::new(), piece: 0, reads: true }
}

/// Room for bodies of 64 MiB.
const HUGE: &[(&str, &str)] =
    &[("MAX_LENGTH", "64MiB"), ("MAX_BODY_BYTES", "512MiB"), ("MAX_QUEUE_BYTES", "64MiB")];

/// Answers to a head that is too large.
const TOO_LARGE: &[u16] = &[400, 414, 431];

/// The table.
pub fn attacks() -> Vec<Attack> {
    let mut all = vec![Attack::new("none", 0, 0, Act::Nothing)];
    all.extend(of_connections());
    all.extend(of_tls());
    all.extend(of_heads());
    all.extend(of_bodies());
    all.extend(of_bombs());
    all.extend(of_tokens());
    all
}

#[rustfmt::skip]
fn of_connections() -> Vec<Attack> {
    let head = b"POST /payloads HTTP/1.1\r\nhost: x\r\n";
    let get = b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n";
    let hello = [&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[7; 190]].concat();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let old = b"GET /payloads HTTP/1.0\r\n\r\n".to_vec();
    let empty = request(br#"{"data":[]}"#, "");
    let upgrade = request(br#"{"data":[]}"#, "connection: upgrade\r\nupgrade: h2c\r\n");
    vec![
        Attack::new("connect, close", 1, CONNECTS_PER_S, connects(Leave::Close, b"")),
        Attack::new("connect, RST", 1, CONNECTS_PER_S, connects(Leave::Reset, b"")),
        Attack::new("connect, FIN", 1_000, CONNECTS_PER_S, connects(Leave::HalfClosed, b"")),
        Attack::new("half a head, RST", 1, CONNECTS_PER_S, connects(Leave::Reset, head)),
        Attack::new("a request, RST", 1, CONNECTS_PER_S, connects(Leave::Reset, &empty)),
        Attack::new("silent connections", SLOW_CONNECTIONS, CONNECTS_PER_S, holds(Vec::new())),
        Attack::new("idle hoarders, MAX_CONNECTIONS=100", 600, 200, holds(Vec::new()))
            .with(&[("MAX_CONNECTIONS", "100")]),
        Attack::new("hoarders of half a head, MAX_CONNECTIONS=100", 600, 200, holds(head.to_vec()))
            .with(&[("MAX_CONNECTIONS", "100")]),
        Attack::new("TLS hellos", 64, FOREIGN_PER_S, asks(vec![hello], &[400])),
        Attack::new("HTTP/2 prefaces", 64, FOREIGN_PER_S, asks(vec![preface], &[400, 505])),
        Attack::new("HTTP/1.0", 64, FOREIGN_PER_S, asks(vec![old], &[400, 405])),
        Attack::new("h2c upgrades", 64, FOREIGN_PER_S, asks(vec![upgrade], &[200])),
        Attack::new("pipelined 404s", 64, PIPELINES_PER_S, pipelines(get, &[404])),
        Attack::new("pipelined 400s", 64, PIPELINES_PER_S, pipelines(&request(b"{}", ""), &[400])),
        Attack::new("pipelined 404s, never read", 64, ENDLESS_PIECES_PER_S, unread(get)),
        Attack::new("pipelined 200s, never read", 64, ENDLESS_PIECES_PER_S, unread(&empty)),
    ]
}

#[rustfmt::skip]
fn of_tls() -> Vec<Attack> {
    let hello = client_hello();
    // A message of 16 MiB, in records of which none is the last one.
    let first = [0x16, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff];
    let more = [&[0x16, 3, 1, 1, 0xf4][..], &[7; 500]].concat();
    let random = [&hello[..11], &[7; 400]].concat();
    vec![
        Attack::new("TLS: hello, close", 1, HELLOS_PER_S, connects(Leave::Close, &hello)).on_tls(),
        Attack::new("TLS: hello, RST", 1, HELLOS_PER_S, connects(Leave::Reset, &hello)).on_tls(),
        Attack::new("TLS: hello, FIN", 1_000, HELLOS_PER_S, connects(Leave::HalfClosed, &hello)).on_tls(),
        Attack::new("TLS: hello, silence", SLOW_CONNECTIONS, HELLOS_PER_S, holds(hello.clone())).on_tls(),
        Attack::new("TLS: malformed hello", 1, CONNECTS_PER_S, connects(Leave::Close, &random)).on_tls(),
        Attack::new("TLS: half a hello, silence", SLOW_CONNECTIONS, CONNECTS_PER_S,
            holds(hello[..hello.len() / 2].to_vec())).on_tls(),
        Attack::new("TLS: slow hellos", SLOW_CONNECTIONS, SLOW_BYTES_PER_S, trickles(b"", &hello)).on_tls(),
        Attack::new("TLS: endless hellos", 16, ENDLESS_PIECES_PER_S, endless(&first, &more)).on_tls(),
        Attack::new("TLS: plain requests", 64, FOREIGN_PER_S,
            asks(vec![request(br#"{"data":[]}"#, "")], &[400])).on_tls(),
    ]
}

#[rustfmt::skip]
fn of_heads() -> Vec<Attack> {
    let start = b"POST /payloads HTTP/1.1\r\nhost: x\r\n";
    let head = |middle: &str| format!("POST /payloads HTTP/1.1\r\nhost: x\r\n{middle}\r\n").into_bytes();
    let many = head(&"a: b\r\n".repeat(1_000));
    let long = head(&format!("a: {}\r\n", "b".repeat(30_000)));
    let target = format!("POST /{} HTTP/1.1\r\nhost: x\r\n\r\n", "p".repeat(30_000)).into_bytes();
    let many_taken = request(br#"{"data":[]}"#, &"a: b\r\n".repeat(90));
    vec![
        Attack::new("slow heads", SLOW_CONNECTIONS, SLOW_BYTES_PER_S,
            trickles(b"", b"POST /payloads HTTP/1.1\r\nhost: x\r\nx: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy")),
        Attack::new("1,000 fields", 64, LARGE_HEADS_PER_S, asks(vec![many], TOO_LARGE)),
        Attack::new("90 fields", 64, REFUSED_PER_S, asks(vec![many_taken], &[200])),
        Attack::new("a field of 30 kB", 64, LARGE_HEADS_PER_S, asks(vec![long], TOO_LARGE)),
        Attack::new("a target of 30 kB", 64, LARGE_HEADS_PER_S, asks(vec![target], TOO_LARGE)),
        Attack::new("endless heads", 16, ENDLESS_PIECES_PER_S, endless(start, b"x: y\r\n")),
        Attack::new("endless targets", 16, ENDLESS_PIECES_PER_S, endless(b"POST /", b"a")),
        Attack::new("endless empty lines", 16, ENDLESS_PIECES_PER_S, endless(b"", b"\r\n")),
    ]
}

#[rustfmt::skip]
fn of_bodies() -> Vec<Attack> {
    let slow = [&announced(100_000, "")[..], b"{\"data\":["].concat();
    let slow_chunks = [CHUNKED, b"4000\r\n{\"data\":["].concat();
    let expect = announced(100, "expect: 100-continue\r\n");
    let held = [announced(MIB, ""), vec![b' '; MIB - 1]].concat();
    let bytes = chunked(format!(r#"{{"data":["{}"]}}"#, "x".repeat(20_000)).as_bytes(), 1);
    let trailer = [CHUNKED, b"0\r\n"].concat();
    let extension = [CHUNKED, b"1;"].concat();
    vec![
        Attack::new("slow bodies", SLOW_CONNECTIONS, SLOW_BYTES_PER_S, trickles(&slow, b"1,")),
        Attack::new("slow chunks", SLOW_CONNECTIONS, SLOW_BYTES_PER_S, trickles(&slow_chunks, b"1,")),
        Attack::new("slow chunk lines", SLOW_CONNECTIONS, SLOW_BYTES_PER_S,
            trickles(CHUNKED, b"1\r\n \r\n")),
        Attack::new("a body expected and not sent", SLOW_CONNECTIONS, SLOW_BYTES_PER_S, holds(expect)),
        Attack::new("holders of body memory", 64, 64, holds(held)),
        Attack::new("chunks of a byte", 16, BYTE_CHUNKS_PER_S, asks(vec![bytes], &[200, 503])),
        Attack::new("endless chunks", 16, ENDLESS_PIECES_PER_S, endless(CHUNKED, b"1\r\n \r\n")),
        Attack::new("endless chunk sizes", 16, ENDLESS_PIECES_PER_S, endless(CHUNKED, b"0")),
        Attack::new("endless extensions", 16, ENDLESS_PIECES_PER_S, endless(&extension, b"a")),
        Attack::new("endless trailers", 16, ENDLESS_PIECES_PER_S, endless(&trailer, b"x: y\r\n")),
        Attack::new("not JSON at the end of 10 kB", 64, REFUSED_PER_S,
            asks(vec![request(&bad_at_the_end(10_000), "")], &[400])),
        Attack::new("not JSON at the end of 1 MB", 16, LATE_ERRORS_PER_S,
            asks(vec![request(&bad_at_the_end(1_000_000), "")], REFUSED)),
        Attack::new("payloads of a byte, refused at the end of 1 MiB", 16, LATE_ERRORS_PER_S,
            asks(vec![request(&dense(MIB, r#","data":[]"#), "")], REFUSED)),
    ]
}

/// Which refusal it is depends on how much of it is looked at, and on what else is there.
const REFUSED: &[u16] = &[400, 408, 413, 503];

#[rustfmt::skip]
fn of_bombs() -> Vec<Attack> {
    use Make::Later;
    vec![
        Attack::new("bombs in all shapes", 16, BOMBS_PER_S, Later(|| asks(bombs(), REFUSED))),
        Attack::new("gzip of blanks", 16, BOMBS_PER_S,
            Later(|| asks(vec![gzipped(&vec![b' '; 8 * MIB])], REFUSED))),
        Attack::new("zstd of blanks", 16, BOMBS_PER_S,
            Later(|| asks(vec![zstd_ed(&vec![b' '; 8 * MIB])], REFUSED))),
        Attack::loops("zstd of 1 MiB of payloads of a byte, refused at its end",
            Later(|| asks(vec![zstd_ed(&dense(MIB, r#","data":[]"#))], REFUSED))),
        Attack::loops("zstd of 1 MiB of payloads of a byte, not JSON at its end",
            Later(|| asks(vec![zstd_ed(&dense(MIB, ","))], REFUSED))),
        Attack::loops("zstd of 1 MiB of payloads of a byte, too many",
            Later(|| asks(vec![zstd_ed(&dense(MIB, ""))], REFUSED))),
        Attack::loops("zstd of 1 MiB of lines of a byte, a bad one at its end",
            Later(|| asks(vec![zstd_ed_lines(&lines(MIB, "1\n", "x"))], REFUSED))),
        Attack::loops("zstd of 1 MiB of empty lines, a bad one at its end",
            Later(|| asks(vec![zstd_ed_lines(&lines(MIB, "\n", "x"))], REFUSED))),
        Attack::loops("zstd of 1 MiB of an array of payloads of a byte, not JSON at its end",
            Later(|| asks(vec![zstd_ed(&[b"[", &lines(MIB - 1, "1,", "]")[..]].concat())], REFUSED))),
        Attack::new("zstd of 64 MiB of lines of a byte, MAX_LENGTH=64MiB", 4, HUGE_PER_S,
            Later(|| asks(vec![zstd_ed_lines(&lines(64 * MIB, "1\n", ""))], REFUSED))).with(HUGE),
        Attack::new("zstd of 64 MiB of payloads of a byte, MAX_LENGTH=64MiB", 4, HUGE_PER_S,
            Later(|| asks(vec![zstd_ed(&dense(64 * MIB, ""))], REFUSED))).with(HUGE),
        Attack::new("the same, refused at its end", 4, HUGE_PER_S,
            Later(|| asks(vec![zstd_ed(&dense(64 * MIB, r#","data":[]"#))], REFUSED))).with(HUGE),
    ]
}

fn of_tokens() -> Vec<Attack> {
    vec![
        Attack::wrong_tokens("wrong tokens, 1 right one", 1),
        Attack::wrong_tokens("wrong tokens, 4,096 right ones", 4_096),
        Attack::wrong_tokens("wrong tokens, 1,000,000 right ones", 1_000_000),
    ]
}
