//! The last lines of the log, for `/logs` and debug bundles.
//!
//! The log's own thread keeps them, so that logging costs a core nothing more. A line is kept
//! before it is written: those that stderr refused are here too. While a write blocks, the lines
//! behind it are still in the queue.

#![expect(
    clippy::disallowed_types,
    reason = "shared by the log's thread and control; cores have no part in it"
)]

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Memory for the last lines: about 1,500 of usual length.
const RECENT_BYTES_MAX: usize = 256 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RecentLines(Mutex<KeptLines>);

#[derive(Debug, Default)]
struct KeptLines {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl RecentLines {
    /// Keeps a line of at most [`LINE_BYTES_MAX`](super::line::LINE_BYTES_MAX), which is shorter
    /// than all that is kept.
    pub(super) fn keep(&self, line: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += line.len();
        kept.lines.push_back(line.to_vec());
        while kept.bytes > RECENT_BYTES_MAX {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.len();
        }
    }

    /// All of them, oldest first, as they were logged.
    pub(super) fn text(&self) -> Vec<u8> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.lines.iter().flatten().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_that_fit_are_kept() {
        let recent = RecentLines::default();
        assert_eq!(recent.text(), b"");
        recent.keep(b"one\n");
        recent.keep(b"two\n");
        assert_eq!(recent.text(), b"one\ntwo\n");
        let line = |n: u32| format!("{n:0>999}\n");
        for n in 0..1_000 {
            recent.keep(line(n).as_bytes());
        }
        let text = String::from_utf8(recent.text()).unwrap();
        let first = 1_000 - RECENT_BYTES_MAX / 1_000;
        assert!(text.len() <= RECENT_BYTES_MAX && text.starts_with(&line(first as u32)), "{first}");
        assert!(text.ends_with(&line(999)));
        // As long as a line can get.
        recent.keep(&[b'x'; super::super::line::LINE_BYTES_MAX]);
        assert!(recent.text().len() <= RECENT_BYTES_MAX);
    }
}
