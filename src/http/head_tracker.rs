//! Tracks how much of a request has arrived. One read may bring the end of a request and the start
//! of the next head, and hyper's buffer cannot be inspected, so bytes are counted here as they
//! pass.
//!
//! Known gap: after a chunked body, or after a whole request that arrived in one read with the one
//! before, the start of the next head is not seen. Such a head is judged by `IDLE_TIMEOUT` until
//! its next byte arrives.

use std::cell::Cell;

/// How much of the current request has arrived, and whether bytes of the next one have.
#[derive(Default)]
pub(super) struct HeadTracker {
    /// Bytes of the head's current line.
    line: Cell<usize>,
    /// Bytes that arrived after the head's end; `None` until the end is seen.
    after_head: Cell<Option<usize>>,
    /// Line-end characters at the end of the last read. Between requests they mean nothing.
    line_ends: Cell<usize>,
    /// Part of the next head has arrived.
    pub(super) next_head: Cell<bool>,
    /// The current head began at an unknown offset in the read that ended the request before, so
    /// its end is unknown.
    pub(super) uncounted: Cell<bool>,
}

impl HeadTracker {
    /// Counts bytes that arrived while a head is read.
    pub(super) fn part_of_head(&self, bytes: &[u8]) {
        if self.uncounted.get() {
            return;
        }
        // hyper may read part of the body before it hands over the request.
        if self.after_head.get().is_some() {
            return self.after_head(bytes);
        }
        let mut line = self.line.get();
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            // An empty line, with or without a carriage return, ends the head.
            if line + end - start <= 1 {
                self.after_head.set(Some(0));
                return self.after_head(&bytes[end + 1..]);
            }
            (line, start) = (0, end + 1);
        }
        self.line.set(line + bytes.len() - start);
    }

    /// Counts bytes that arrived after a head.
    pub(super) fn after_head(&self, bytes: &[u8]) {
        self.after_head.set(self.after_head.get().map(|sum| sum + bytes.len()));
        self.line_ends.set(bytes.iter().rev().take_while(|b| is_line_end(b)).count());
    }

    /// Ends the request; `length` is the length of its body, if known. True if it is certain that
    /// no byte of the next request has arrived.
    pub(super) fn end_of_request(&self, length: Option<u64>) -> bool {
        let more = self.after_head.take().zip(length).map(|(sum, body)| sum as i64 - body as i64);
        self.next_head.set(more.is_some_and(|more| more > self.line_ends.get() as i64));
        self.line.set(0);
        self.uncounted.set(false);
        more.is_some_and(|more| (0..=self.line_ends.get() as i64).contains(&more))
    }
}

pub(super) fn is_line_end(byte: &u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}
