//! What passes on an HTTP/2 connection, frame by frame, as far as its frames' heads tell: which ones
//! there are, how many of those that are no request, and where one ends. Nothing is decoded here.
//!
//! The library bounds what one frame or one moment may hold; it does not bound how often. So frames
//! cost tokens here that come back with time and with requests: see [`FRAMES_BURST`] and
//! [`RESETS_BURST`].

mod outbound;

use std::cell::Cell;
use std::time::Instant;

use crate::metrics::H2Closed;
use crate::rt;
pub(super) use outbound::{Goodbye, OutboundFrames};

/// What a client of HTTP/2 begins with (RFC 9113, section 3.4).
pub(in crate::http) const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frames of a connection that are no request (see [`InboundFrames`]) and that come at once: more than
/// any client sends before its first request.
pub const FRAMES_BURST: u32 = 1_000;
/// How many more of them may come each second: window updates and pings of an eager client.
pub const FRAMES_PER_SECOND: u32 = 100;
/// How many more may come with each request: window updates of its answer, for stream and connection,
/// and its priority.
pub const FRAMES_PER_REQUEST: u32 = 4;
/// A frame costs one more for each of these bytes.
const FRAME_COST_BYTES: usize = 256;

/// Requests of a connection that are reset at once, by its client or because of what it sent: twice
/// as many as are in progress by default. With a larger `H2_STREAMS` twice as many as that.
pub const RESETS_BURST: u32 = 200;
/// How many more of them may be each second.
pub const RESETS_PER_SECOND: u32 = 20;
/// A proxy of `TRUST` may reset as many times more: it passes on what many clients give up.
pub const PROXY_RESETS: u32 = 10;

/// Reasons of RFC 9113, section 7: all is well; something came on a stream that is closed, and which the
/// library may not know any longer: mostly the rest of a body that was not wanted.
pub(super) const NO_ERROR: u32 = 0;
const STREAM_CLOSED: u32 = 5;

const HEAD_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Tokens that come back with time.
pub(super) struct FrameBudget {
    left: Cell<u32>,
    burst: u32,
    per_second: u32,
    /// Since when none have come back.
    since: Cell<Instant>,
}

impl FrameBudget {
    pub(super) fn new(burst: u32, per_second: u32, now: Instant) -> FrameBudget {
        FrameBudget { left: Cell::new(burst), burst, per_second, since: Cell::new(now) }
    }

    /// Takes `cost` tokens; false if there are not as many. The clock is read only if there seem to be
    /// too few.
    fn spend(&self, cost: u32, now: impl FnOnce() -> Instant) -> bool {
        if self.left.get() < cost {
            let now = now();
            let passed = now.saturating_duration_since(self.since.get());
            let back = passed.as_secs_f64() * f64::from(self.per_second);
            if back >= 1.0 {
                self.since.set(now);
                self.earn(back as u32);
            }
        }
        let left = self.left.get().checked_sub(cost);
        self.left.set(left.unwrap_or(0));
        left.is_some()
    }

    fn earn(&self, tokens: u32) {
        self.left.set(self.left.get().saturating_add(tokens).min(self.burst));
    }
}

/// Both budgets of one connection.
pub(super) struct FrameBudgets {
    resets: FrameBudget,
    frames: FrameBudget,
}

impl FrameBudgets {
    /// Those of a connection with this many streams, which may be a proxy's.
    pub(super) fn new(streams_max: usize, is_proxy: bool, now: Instant) -> FrameBudgets {
        let times = if is_proxy { PROXY_RESETS } else { 1 };
        let resets = RESETS_BURST.max(2 * streams_max as u32);
        FrameBudgets {
            resets: FrameBudget::new(times * resets, times * RESETS_PER_SECOND, now),
            frames: FrameBudget::new(FRAMES_BURST, FRAMES_PER_SECOND, now),
        }
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameHead {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl FrameHead {
    fn of(bytes: &[u8; HEAD_BYTES]) -> FrameHead {
        let [a, b, c, kind, flags, s, t, u, v] = *bytes;
        FrameHead {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s, t, u, v]) & (u32::MAX >> 1),
        }
    }
}

/// Where a sequence of frames is.
#[derive(Default)]
struct FramePosition {
    /// The head of the current frame, as far as it has come.
    head: [u8; HEAD_BYTES],
    /// Bytes of it.
    has: usize,
    /// Bytes of the frame that are still to come behind its head.
    left: usize,
}

/// What came next.
enum FrameStep {
    /// Bytes in the middle of something.
    Part(usize),
    /// The end of a frame's head.
    Head(usize, FrameHead),
}

impl FramePosition {
    /// Between two frames.
    fn is_at_end(&self) -> bool {
        self.has == 0
    }

    /// Bytes behind the head of the current frame that have come.
    fn payload_at(&self) -> usize {
        match self.has {
            HEAD_BYTES => FrameHead::of(&self.head).length - self.left,
            _ => 0,
        }
    }

    /// Looks at the next bytes, one of a frame's parts. [`FramePosition::end_frame`] follows once
    /// nothing is left.
    fn step(&mut self, bytes: &[u8]) -> FrameStep {
        if self.has == HEAD_BYTES {
            let taken = bytes.len().min(self.left);
            self.left -= taken;
            return FrameStep::Part(taken);
        }
        let taken = bytes.len().min(HEAD_BYTES - self.has);
        self.head[self.has..self.has + taken].copy_from_slice(&bytes[..taken]);
        self.has += taken;
        if self.has < HEAD_BYTES {
            return FrameStep::Part(taken);
        }
        let head = FrameHead::of(&self.head);
        self.left = head.length;
        FrameStep::Head(taken, head)
    }

    /// True if the current frame is complete: the next one begins.
    fn end_frame(&mut self) -> bool {
        let is_complete = self.has == HEAD_BYTES && self.left == 0;
        if is_complete {
            self.has = 0;
        }
        is_complete
    }
}

/// The frames that come from a client.
///
/// Frames that are no request cost of [`FRAMES_BURST`]: all but `HEADERS`, `CONTINUATION`,
/// `RST_STREAM` and `DATA`, and those of these that are empty and end nothing.
#[derive(Default)]
pub(super) struct InboundFrames {
    /// Bytes of [`H2_PREFACE`] that have come.
    preface: usize,
    at: FramePosition,
    /// In the middle of a head: the frame that comes next must be a `CONTINUATION`.
    in_block: bool,
    /// Bytes of a head are still to come.
    is_head: bool,
    /// The highest stream that has begun.
    last_stream: u32,
    /// Streams that were reset.
    resets: u64,
    /// Frames that were complete, a head in several of them as one.
    complete: u64,
    /// The client has said that it goes.
    goes: bool,
}

impl InboundFrames {
    /// Looks at bytes that came, up to the end of `frames` frames, each of which it counts off.
    /// Returns how many bytes that is.
    ///
    /// # Errors
    /// Which budget is used up.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        frames: &mut usize,
        budgets: &FrameBudgets,
    ) -> Result<usize, H2Closed> {
        let mut taken = bytes.len().min(H2_PREFACE.len() - self.preface);
        self.preface += taken;
        while taken < bytes.len() && *frames > 0 {
            match self.at.step(&bytes[taken..]) {
                FrameStep::Part(part) => taken += part,
                FrameStep::Head(part, head) => {
                    taken += part;
                    self.begins(head, budgets)?;
                }
            }
            if self.at.end_frame() {
                self.is_head = self.in_block;
                self.complete += u64::from(!self.in_block);
                *frames -= 1;
            }
        }
        Ok(taken)
    }

    fn begins(&mut self, head: FrameHead, budgets: &FrameBudgets) -> Result<(), H2Closed> {
        let FrameHead { length, kind, flags, stream } = head;
        let is_request = match kind {
            HEADERS | CONTINUATION => {
                self.in_block = flags & END_HEADERS == 0;
                self.is_head = true;
                if kind == HEADERS && stream > self.last_stream {
                    self.last_stream = stream;
                    budgets.frames.earn(FRAMES_PER_REQUEST);
                }
                length > 0
            }
            DATA => length > 0 || flags & END_STREAM != 0,
            GOAWAY => {
                self.goes = true;
                false
            }
            RST_STREAM => {
                self.resets += 1;
                return match budgets.resets.spend(1, rt::now) {
                    true => Ok(()),
                    false => Err(H2Closed::Resets),
                };
            }
            _ => false,
        };
        let cost = 1 + (length / FRAME_COST_BYTES) as u32;
        if is_request || budgets.frames.spend(cost, rt::now) {
            return Ok(());
        }
        Err(H2Closed::Frames)
    }

    /// Part of a head has come, or of a frame that may be one.
    pub(super) fn is_in_head(&self) -> bool {
        self.is_head || (1..HEAD_BYTES).contains(&self.at.has)
    }

    /// A head has begun that is not complete.
    pub(super) fn has_begun_head(&self) -> bool {
        self.is_head
    }

    /// Frames that were complete, a head in several of them as one.
    pub(super) fn complete(&self) -> u64 {
        self.complete
    }

    /// Whether the client has said that it goes.
    pub(super) fn goes(&self) -> bool {
        self.goes
    }

    pub(super) fn last_stream(&self) -> u32 {
        self.last_stream
    }

    /// Streams that the client has reset since the last call.
    pub(super) fn take_resets(&mut self) -> u64 {
        std::mem::take(&mut self.resets)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        [&head, payload].concat()
    }

    /// How many of `one` a new connection may send at once.
    fn at_once(one: &[u8]) -> (usize, Option<H2Closed>) {
        let (budgets, mut inbound) =
            (FrameBudgets::new(100, false, rt::now()), InboundFrames::default());
        let mut left = usize::MAX;
        assert_eq!(inbound.take(H2_PREFACE, &mut left, &budgets), Ok(H2_PREFACE.len()));
        for sent in 0..10_000 {
            if let Err(why) = inbound.take(one, &mut left, &budgets) {
                return (sent, Some(why));
            }
        }
        (10_000, None)
    }

    #[test]
    fn what_is_no_request_is_bounded_and_what_is_one_is_not() {
        let frames = Some(H2Closed::Frames);
        for (name, one, most, why) in [
            ("ping", frame(6, 0, 0, &[0; 8]), 1_000, frames),
            ("settings", frame(4, 0, 0, &[]), 1_000, frames),
            ("long settings", frame(4, 0, 0, &[0; 16_380]), 1_000 / 64, frames),
            ("window update", frame(8, 0, 0, &[0; 4]), 1_000, frames),
            ("priority", frame(2, 0, 1, &[0; 5]), 1_000, frames),
            ("goaway", frame(7, 0, 0, &[0; 8]), 1_000, frames),
            ("unknown", frame(0x42, 0, 0, &[]), 1_000, frames),
            ("empty data", frame(DATA, 0, 1, &[]), 1_000, frames),
            ("empty continuation", frame(CONTINUATION, 0, 1, &[]), 1_000, frames),
            ("empty headers of one stream", frame(HEADERS, 0, 1, &[]), 1_000, frames),
            ("reset", frame(RST_STREAM, 0, 1, &[0; 4]), 200, Some(H2Closed::Resets)),
            ("data", frame(DATA, 0, 1, b"x"), 10_000, None),
            ("the end of a body", frame(DATA, END_STREAM, 1, b""), 10_000, None),
            ("a head", frame(HEADERS, END_HEADERS, 1, b"x"), 10_000, None),
        ] {
            let (sent, ended) = at_once(&one);
            assert_eq!(ended, why, "{name}");
            assert!(sent.abs_diff(most) <= 2, "{name}: {sent} instead of {most}");
        }
    }

    #[test]
    fn as_many_resets_are_allowed_as_twice_the_streams_and_more_of_a_proxy() {
        for (streams, is_proxy, most) in
            [(1, false, 200), (100, false, 200), (1_000, false, 2_000), (100, true, 2_000)]
        {
            let now = rt::now();
            let budgets = FrameBudgets::new(streams, is_proxy, now);
            let sent = (0..).take_while(|_| budgets.resets.spend(1, || now)).count();
            assert_eq!(sent, most, "{streams} {is_proxy}");
        }
    }

    #[test]
    fn tokens_come_back_with_time_and_with_requests() {
        let start = rt::now();
        let budget = FrameBudget::new(10, 5, start);
        let at = |ms| move || start + Duration::from_millis(ms);
        assert!(budget.spend(10, at(0)));
        assert!(!budget.spend(1, at(100)), "half a token");
        assert!(budget.spend(1, at(400)));
        assert!(budget.spend(10, at(60_000)), "as many as the burst");
        assert!(!budget.spend(1, at(60_000)), "no more than that");
        budget.earn(3);
        assert!(budget.spend(3, at(60_000)) && !budget.spend(1, at(60_000)));
        assert!(!budget.spend(11, at(900_000)), "more than there can be");
    }

    #[test]
    fn frames_are_told_apart_however_they_are_cut() {
        let bytes = [
            H2_PREFACE.to_vec(),
            frame(4, 0, 0, &[0; 6]),
            frame(HEADERS, 0, 1, b"abc"),
            frame(CONTINUATION, END_HEADERS, 1, b"d"),
            frame(DATA, END_STREAM, 1, &[9; 300]),
            frame(HEADERS, END_HEADERS | END_STREAM, 7, b"abc"),
        ]
        .concat();
        for piece in [1, 2, 3, 8, 9, 10, 100, bytes.len()] {
            let (budgets, mut inbound) =
                (FrameBudgets::new(100, false, rt::now()), InboundFrames::default());
            let (mut at, mut frames, mut in_head) = (0, 0, 0);
            while at < bytes.len() {
                let end = bytes.len().min(at + piece);
                let mut one = 1;
                let taken = inbound.take(&bytes[at..end], &mut one, &budgets).unwrap();
                assert!(taken > 0);
                at += taken;
                frames += 1 - one;
                in_head += usize::from(inbound.is_in_head());
                let streams = [0, 1, 7];
                assert!(streams.contains(&inbound.last_stream()), "{}", inbound.last_stream());
            }
            assert_eq!((frames, inbound.last_stream(), inbound.is_in_head()), (5, 7, false));
            assert!(in_head > 0, "between HEADERS and CONTINUATION");
            assert_eq!((inbound.complete(), inbound.goes()), (4, false));
        }
    }
}
