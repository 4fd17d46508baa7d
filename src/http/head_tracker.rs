//! Tracks how much of a request has arrived. One read may bring the end of a request and the start
//! of the next head, and hyper's buffer cannot be inspected, so bytes are counted here as they
//! pass.
//!
//! Known gap: after a chunked body, or after a whole request that arrived in one read with the one
//! before, the start of the next head is not seen. Such a head is judged by `IDLE_TIMEOUT` until
//! its next byte arrives.

use std::cell::Cell;
use std::time::Instant;

/// How much of the current request has arrived, and whether bytes of the next one have.
#[derive(Default)]
pub struct HeadTracker {
    /// Bytes of the head's current line.
    line: Cell<usize>,
    /// How many bytes at the start of that line are those of [`CONTENT_LENGTH`].
    matched: Cell<usize>,
    /// A line of the head begins with [`CONTENT_LENGTH`].
    content_length: Cell<bool>,
    /// Bytes that arrived after the head's end; `None` until the end is seen.
    after_head: Cell<Option<usize>>,
    /// Line-end characters at the end of the last read. Between requests they mean nothing.
    line_ends: Cell<usize>,
    /// Part of the next head has arrived.
    pub(super) next_head: Cell<bool>,
    /// The current head began at an unknown offset in the read that ended the request before, so
    /// its end is unknown.
    pub(super) uncounted: Cell<bool>,
    /// A head has begun of which nothing can be read yet: its TLS record is not complete. Since when
    /// the connection was idle before.
    pub(super) due: Cell<Option<Instant>>,
    /// The current head begins with the first byte of a TLS handshake.
    pub(super) is_tls: Cell<bool>,
}

impl HeadTracker {
    /// Counts bytes that arrived while a head is read.
    pub fn part_of_head(&self, bytes: &[u8]) {
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
            self.look_for_content_length(line, &bytes[start..end]);
            (line, start) = (0, end + 1);
        }
        self.look_for_content_length(line, &bytes[start..]);
        self.line.set(line + bytes.len() - start);
    }

    /// Looks at the first bytes of a head.
    pub(super) fn head_begins(&self, bytes: &[u8]) {
        self.due.set(None);
        self.is_tls.set(bytes.first() == Some(&TLS_HANDSHAKE));
    }

    /// Compares `piece` of a line, `line` bytes of which came before, with [`CONTENT_LENGTH`].
    fn look_for_content_length(&self, line: usize, piece: &[u8]) {
        let matched = if line == 0 { 0 } else { self.matched.get() };
        let wanted = CONTENT_LENGTH.get(matched..).filter(|_| matched == line).unwrap_or_default();
        let more = wanted.iter().zip(piece).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
        self.matched.set(matched + more);
        if more > 0 && matched + more == CONTENT_LENGTH.len() {
            self.content_length.set(true);
        }
    }

    /// Whether the current head has a `content-length`, as far as its lines were seen: not if it
    /// arrived in one read with the end of the request before.
    pub fn has_content_length(&self) -> bool {
        self.content_length.get()
    }

    /// Counts bytes that arrived after a head.
    pub(super) fn after_head(&self, bytes: &[u8]) {
        self.after_head.set(self.after_head.get().map(|sum| sum + bytes.len()));
        self.line_ends.set(bytes.iter().rev().take_while(|b| is_line_end(b)).count());
    }

    /// Ends the request; `length` is the length of its body, if known. True if it is certain that
    /// no byte of the next request has arrived.
    pub fn end_of_request(&self, length: Option<u64>) -> bool {
        let more =
            self.after_head.take().zip(length).map(|(sum, body)| sum as i128 - i128::from(body));
        let line_ends = self.line_ends.get() as i128;
        self.next_head.set(more.is_some_and(|more| more > line_ends));
        self.line.set(0);
        self.content_length.set(false);
        self.uncounted.set(false);
        self.due.set(None);
        more.is_some_and(|more| (0..=line_ends).contains(&more))
    }
}

/// The field that hyper removes from a chunked request's headers, with its colon: a blank before
/// that is refused by hyper.
const CONTENT_LENGTH: &[u8] = b"content-length:";

/// The first byte of a TLS handshake, which no request begins with.
const TLS_HANDSHAKE: u8 = 0x16;

pub(super) fn is_line_end(byte: &u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] =
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: a\r\nContent-Length: 2\r\n\r\n";
    const OTHER: &[u8] =
        b"POST /content-length: HTTP/1.1\r\nx: content-length: 2\r\ncontent-lengths: 2\r\n\r\n";

    /// Whether a `content-length` is seen in `head`, which arrives in the pieces between `cuts`.
    fn seen(tracker: &HeadTracker, head: &[u8], cuts: &[usize]) -> bool {
        let mut start = 0;
        for end in cuts.iter().copied().chain([head.len()]) {
            tracker.part_of_head(&head[start..end]);
            start = end;
        }
        let seen = tracker.has_content_length();
        assert!(tracker.end_of_request(Some(0)), "the head's end was seen");
        seen
    }

    #[test]
    fn a_content_length_is_seen_however_the_head_is_cut() {
        let tracker = HeadTracker::default();
        for first in 0..HEAD.len() {
            for second in first..HEAD.len() {
                assert!(seen(&tracker, HEAD, &[first, second]), "{first} {second}");
            }
        }
        for first in 0..OTHER.len() {
            for second in first..OTHER.len() {
                assert!(!seen(&tracker, OTHER, &[first, second]), "{first} {second}");
            }
        }
        let single: Vec<usize> = (1..HEAD.len()).collect();
        assert!(seen(&tracker, HEAD, &single));
    }

    #[test]
    fn any_announced_length_can_be_compared() {
        for length in [3, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX] {
            let tracker = HeadTracker::default();
            tracker.part_of_head(b"POST / HTTP/1.1\n\n\r\n");
            assert!(!tracker.end_of_request(Some(length)), "{length}");
            assert!(!tracker.next_head.get(), "{length}: the body is not complete");
        }
    }

    #[test]
    fn a_body_is_not_looked_at() {
        let tracker = HeadTracker::default();
        tracker.part_of_head(b"POST / HTTP/1.1\n\ncontent-length: 1\n");
        tracker.after_head(b"\ncontent-length: 1\n");
        assert!(!tracker.has_content_length());
    }
}
