//! HTTP/2 of the load generator: [`AT_ONCE`] requests in one go on a connection, then as many answers.
//! The first go is smaller: it keeps to the window that a connection begins with.

use crate::lanes::Lane;

/// Requests that a connection has in progress.
const AT_ONCE: usize = 100;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Bytes of bodies that may be sent before the server has said more (RFC 9113, section 6.9.2). What
/// the servers give then is more than one go.
const FIRST_WINDOW: usize = 65_535;

/// Longest payload of a frame.
const FRAME_MAX: usize = 16_384;

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, 0], payload].concat()
}

/// A request with this body, on stream 0.
pub(super) fn request(body: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/payloads"),
        (":authority", "ingest.example"),
        ("user-agent", "millrace-bench"),
        ("accept", "*/*"),
        ("content-type", "application/json"),
        ("content-length", &body.len().to_string()),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        // A literal without an index, whose length is below 127.
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut frames = frame(HEADERS, END_HEADERS, &block);
    let pieces = body.len().div_ceil(FRAME_MAX);
    for (number, piece) in body.as_bytes().chunks(FRAME_MAX).enumerate() {
        let flags = if number + 1 == pieces { END_STREAM } else { 0 };
        frames.extend(frame(DATA, flags, piece));
    }
    frames
}

/// One connection.
#[derive(Default)]
pub(super) struct H2 {
    next_stream: u32,
    /// What is sent now.
    pub(super) sends: Vec<u8>,
    /// Requests of this go.
    asked: usize,
    answered: usize,
    accepted: u64,
}

impl H2 {
    /// Makes requests out of those that `next` gives. How many.
    pub(super) fn begin<'a>(&mut self, mut next: impl FnMut() -> &'a [u8]) -> usize {
        self.sends.clear();
        let is_first = self.next_stream == 0;
        if is_first {
            self.next_stream = 1;
            self.sends.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
            self.sends.extend(frame(4, 0, &[]));
            // As large as it may be: answers are never waited for.
            self.sends.extend(frame(8, 0, &(i32::MAX as u32 - FIRST_WINDOW as u32).to_be_bytes()));
        }
        self.asked = 0;
        let mut longest = 0;
        while self.asked < AT_ONCE {
            // With heads, so rather one request fewer.
            if is_first && self.asked > 0 && self.sends.len() + longest > FIRST_WINDOW {
                break;
            }
            let mut at = self.sends.len();
            self.sends.extend_from_slice(next());
            longest = longest.max(self.sends.len() - at);
            self.asked += 1;
            while at < self.sends.len() {
                let length = length_at(&self.sends[at..]);
                self.sends[at + 5..at + 9].copy_from_slice(&self.next_stream.to_be_bytes());
                at += length;
            }
            self.next_stream += 2;
        }
        self.asked
    }

    /// Reads answers off the beginning of `bytes`. How many requests there were and how many payloads
    /// all answers accept, once all are there.
    pub(super) fn answers(
        &mut self,
        bytes: &mut Vec<u8>,
        lane: &Lane,
    ) -> Result<Option<(usize, u64)>, String> {
        let mut at = 0;
        while bytes.len() >= at + 9 && bytes.len() >= at + length_at(&bytes[at..]) {
            let length = length_at(&bytes[at..]);
            let (kind, flags, payload) =
                (bytes[at + 3], bytes[at + 4], &bytes[at + 9..at + length]);
            match kind {
                // 200 is in HPACK's own table.
                HEADERS if payload.first() != Some(&0x88) => {
                    return Err("an answer that is no 200".into());
                }
                // The first piece of an answer says it; what is no answer is missing in the sum.
                DATA if payload.first() == Some(&b'{') => {
                    self.accepted += super::load::accepted(payload)?;
                }
                RST_STREAM | GOAWAY => return Err(format!("the server ended it: {payload:?}")),
                _ => {}
            }
            if kind == DATA && flags & END_STREAM != 0 {
                self.answered += 1;
            }
            at += length;
        }
        bytes.drain(..at);
        if self.answered < self.asked {
            return Ok(None);
        }
        self.answered = 0;
        let accepted = std::mem::take(&mut self.accepted);
        let wanted = (self.asked * lane.payloads) as u64;
        if accepted == wanted {
            Ok(Some((self.asked, accepted)))
        } else {
            Err(format!("{accepted} accepted of {wanted}"))
        }
    }
}

/// The length of the frame with which `bytes` begins, its head included.
fn length_at(bytes: &[u8]) -> usize {
    9 + u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize
}
