//! How much of a request has arrived. hyper has a buffer that nobody can look into, and one read may bring the end of a
//! request and the start of the next head: so what passes is counted here.
//!
//! Known gap: behind a chunked body, or behind a whole request that came in one read with its forerunner, such a head
//! runs under `IDLE_TIMEOUT` until its next byte arrives.

use std::cell::Cell;

/// What has arrived of the current request, and whether it was more than that.
#[derive(Default)]
pub(super) struct HeadTracker {
    /// Bytes of the head's last line so far, should it have begun.
    line: Cell<usize>,
    /// Bytes that came after the head's end; `None` when that was not seen.
    after_head: Cell<Option<usize>>,
    /// Line ends at the end of the last read: between requests they are nothing.
    line_ends: Cell<usize>,
    /// Some of the next head has arrived.
    pub(super) next_head: Cell<bool>,
    /// The current head began behind its forerunner, at an unknown place: its end cannot be told.
    pub(super) uncounted: Cell<bool>,
}

impl HeadTracker {
    pub(super) fn part_of_head(&self, bytes: &[u8]) {
        if self.uncounted.get() {
            return;
        }
        // hyper may read on for the body before it hands over the request.
        if self.after_head.get().is_some() {
            return self.after_head(bytes);
        }
        let mut line = self.line.get();
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            // Nothing, or a carriage return.
            if line + end - start <= 1 {
                self.after_head.set(Some(0));
                return self.after_head(&bytes[end + 1..]);
            }
            (line, start) = (0, end + 1);
        }
        self.line.set(line + bytes.len() - start);
    }

    pub(super) fn after_head(&self, bytes: &[u8]) {
        self.after_head.set(self.after_head.get().map(|sum| sum + bytes.len()));
        self.line_ends.set(bytes.iter().rev().take_while(|b| is_line_end(b)).count());
    }

    /// The request has ended, with a body of `length` bytes if that is known. Whether nothing came behind it.
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
