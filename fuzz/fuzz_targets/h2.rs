//! A connection that speaks HTTP/2, whatever its client sends: it ends, does not panic, and holds nothing
//! afterwards; each stream has one answer, nothing is called accepted that was not admitted, nothing is
//! admitted that was not sent; and while nothing goes wrong and nobody gives up anything, the same
//! payloads are admitted in whatever pieces the bytes come.
//!
//! How to run it is said in `segment.rs`; this target is called `h2`, and `-dict=h2.dict` helps.
//!
//! What the bytes of an input mean is said in [`H2Input`]; what its steps are, in [`Writer::step`].

#![no_main]

use std::io::Write as _;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use millrace::internals::http::differential::{H2Input, H2Outcome};
use millrace::internals::rt::Executor;

/// Longest input: more would be more of the same.
const BYTES_MAX: usize = 40 << 10;

/// What is sent, in pieces, and to which of the servers.
type Case = (usize, Vec<Vec<u8>>);

/// The servers run on an executor of their own, which one thread has for all cases.
struct Servers {
    cases: Sender<Case>,
    outcomes: Receiver<H2Outcome>,
}

static SERVERS: LazyLock<Mutex<Servers>> = LazyLock::new(|| {
    let (cases, to_do) = channel::<Case>();
    let (done, outcomes) = channel();
    thread::spawn(move || {
        Executor::small().unwrap().run(async {
            let labs = H2Input::labs();
            // It blocks its executor between two cases, where nothing else is to be done.
            while let Ok((lab, pieces)) = to_do.recv() {
                let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
                done.send(labs[lab].run_h2(&pieces).await).unwrap();
            }
        });
    });
    Mutex::new(Servers { cases, outcomes })
});

fuzz_target!(|input: &[u8]| {
    let Some(input) = H2Input::read(input) else { return };
    let bytes = if input.is_steps() { Writer::write(input.rest) } else { input.rest.to_vec() };
    if bytes.len() > BYTES_MAX {
        return;
    }
    let pieces = input.pieces(&bytes);
    let sent = pieces.concat();
    let servers = SERVERS.lock().unwrap();
    let run = |pieces: &[&[u8]]| {
        let pieces = pieces.iter().map(|piece| piece.to_vec()).collect();
        servers.cases.send((input.lab(), pieces)).unwrap();
        let outcome = servers.outcomes.recv().unwrap();
        assert_eq!(outcome.flaw(&sent, input.is_wrapped()), None);
        outcome
    };
    let cut_up = run(&pieces);
    if !input.has_cuts() || input.is_timed() {
        return;
    }
    let whole = run(&[&sent]);
    if cut_up.is_calm(&sent) && whole.is_calm(&sent) {
        assert_eq!(cut_up.payloads, whole.payloads);
    }
});

/// Fields of a request beyond those that all have; a pseudo header takes the place of the one of all.
const HEADS: [&[(&str, &str)]; 16] = [
    &[],
    &[("content-length", "14")],
    &[("content-length", "0")],
    &[("content-length", "15")],
    &[("content-encoding", "gzip")],
    &[("content-type", "application/x-ndjson")],
    &[("x-forwarded-for", "192.0.2.1")],
    &[(":method", "GET")],
    &[(":method", "HEAD"), (":path", "/healthz")],
    &[(":path", "/nope?x=y")],
    &[("expect", "100-continue")],
    &[("te", "trailers"), ("host", "x")],
    &[("host", "y")],
    &[("connection", "close")],
    &[(":method", "CONNECT"), (":protocol", "websocket")],
    &[("upgrade", "h2c"), ("http2-settings", "AAMAAABkAAQAAP__")],
];

/// Their lengths are those that heads give.
static BODIES: LazyLock<[Vec<u8>; 8]> = LazyLock::new(|| {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(br#"{"data":[1,2]}"#).expect("memory takes it");
    [
        br#"{"data":[1,2]}"#.to_vec(),
        br#"{"data":["a"]}"#.to_vec(),
        br#"{"data":[]}   "#.to_vec(),
        br#"{"data":[{"b":[null]},2.5e7,"c"]}"#.to_vec(),
        b"1\n2\n\n3".to_vec(),
        b"{".to_vec(),
        gzip.finish().expect("memory takes it"),
        [vec![b' '; 9_000], br#"{"data":[4]}"#.to_vec()].concat(),
    ]
});

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS_FRAME: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What a client sends, frame by frame.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    /// Where the last step began.
    last: usize,
    /// The stream that has begun last.
    newest: u32,
}

/// Takes bytes off an input, zeros behind its end.
struct Steps<'a>(&'a [u8]);

impl<'a> Steps<'a> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }
}

impl Writer {
    fn write(input: &[u8]) -> Vec<u8> {
        let (mut writer, mut steps) = (Writer::default(), Steps(input));
        while !steps.0.is_empty() && writer.bytes.len() <= BYTES_MAX {
            writer.step(&mut steps);
        }
        writer.bytes
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        self.bytes.extend_from_slice(&length[1..]);
        self.bytes.extend_from_slice(&[kind, flags]);
        self.bytes.extend_from_slice(&stream.to_be_bytes());
        self.bytes.extend_from_slice(payload);
    }

    /// One step: its first byte says in the lower half what to send, and in the upper half on which
    /// stream, 0 for the newest one, or the next one if it is a head. What follows depends on it.
    fn step(&mut self, input: &mut Steps<'_>) {
        let first = input.byte();
        let (what, on) = (first & 15, u32::from(first >> 4));
        let start = self.bytes.len();
        let stream = match (on, what) {
            (0, 0..=2) => {
                self.newest += if self.newest == 0 { 1 } else { 2 };
                self.newest
            }
            (0, _) => self.newest,
            _ => 2 * on - 1,
        };
        match what {
            0 => self.frame(HEADERS, END_HEADERS, stream, &head(input.byte())),
            1 => self.frame(HEADERS, END_HEADERS | END_STREAM, stream, &head(input.byte())),
            2 => {
                let (head, cut, flags) = (head(input.byte()), input.byte(), input.byte() & 1);
                let (first, rest) = head.split_at(usize::from(cut).min(head.len()));
                self.frame(HEADERS, flags, stream, first);
                self.frame(CONTINUATION, END_HEADERS, stream, rest);
            }
            3 => self.frame(DATA, END_STREAM, stream, body(input.byte())),
            4 | 5 => {
                let (body, cut) = (body(input.byte()), usize::from(input.byte()));
                let (before, behind) = body.split_at(cut.min(body.len()));
                let is_end = what == 5;
                self.frame(DATA, u8::from(is_end), stream, if is_end { behind } else { before });
            }
            6 => self.frame(DATA, input.byte() & 9, stream, input.bytes()),
            7 => self.frame(RST_STREAM, 0, stream, &u32::from(input.byte()).to_be_bytes()),
            8 => {
                let (more, flags) = (u32::from(input.byte()), input.byte());
                let stream = if flags & 1 == 0 { stream } else { 0 };
                self.frame(WINDOW_UPDATE, 0, stream, &(more << (flags >> 3)).to_be_bytes());
            }
            9 => {
                let (id, more, shift) = (input.byte(), u32::from(input.byte()), input.byte() & 31);
                let value = (more << shift).to_be_bytes();
                self.frame(SETTINGS_FRAME, id >> 7, 0, &[&[0, id & 15][..], &value].concat());
            }
            10 => self.frame(PING, input.byte() & 1, 0, b"pingpong"),
            11 => self.frame(PRIORITY, 0, stream, &[0, 0, 0, input.byte(), 16]),
            12 => self.frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, input.byte()]),
            13 => self.frame(HEADERS, input.byte() & 45, stream, input.bytes()),
            14 => self.frame(input.byte(), input.byte(), stream, input.bytes()),
            _ => {
                let last = self.bytes[self.last..start].to_vec();
                for _ in 0..input.byte() {
                    if self.bytes.len() < BYTES_MAX {
                        self.bytes.extend_from_slice(&last);
                    }
                }
            }
        }
        self.last = start;
    }
}

fn body(number: u8) -> &'static [u8] {
    &BODIES[usize::from(number) % BODIES.len()]
}

/// A head as literals, which go into the table if the number is large.
fn head(number: u8) -> Vec<u8> {
    let more = HEADS[usize::from(number) % HEADS.len()];
    let all =
        [(":method", "POST"), (":scheme", "http"), (":path", "/payloads"), (":authority", "x")];
    let replaced = |name: &str| more.iter().any(|(other, _)| *other == name);
    let pseudo = more.iter().filter(|(name, _)| name.starts_with(':'));
    let fields = all.iter().filter(|(name, _)| !replaced(name)).chain(pseudo);
    let fields = fields.chain(more.iter().filter(|(name, _)| !name.starts_with(':')));
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(if number >= 128 { 0x40 } else { 0 });
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}
