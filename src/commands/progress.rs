//! How far a long command has come, in one line on stderr that is drawn again and again. Nothing
//! where stderr is no terminal.

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use crate::log::{CountOf, status_line};
use crate::rt;

/// Time between two lines.
const DRAW_EVERY: Duration = Duration::from_millis(250);
/// Time before the first one: short work shows none.
const FIRST_AFTER: Duration = Duration::from_millis(500);
/// Longest line: one that a terminal breaks could not be drawn over.
const COLUMNS: usize = 79;

/// The progress of one command; the line goes when it is dropped.
pub(super) struct ProgressLine {
    /// What is done, as in "replaying".
    what: &'static str,
    total_bytes: u64,
    bytes: Cell<u64>,
    items: Cell<u64>,
    began: Instant,
    /// When a line was drawn, if one was; `None`: there is nobody to show it to.
    drawn: Cell<Option<Option<Instant>>>,
}

impl ProgressLine {
    /// Begins work on `total_bytes`, of which the last ones may never come.
    pub(super) fn begin(what: &'static str, total_bytes: u64) -> ProgressLine {
        let began = rt::now();
        ProgressLine {
            what,
            total_bytes,
            bytes: Cell::new(0),
            items: Cell::new(0),
            began,
            drawn: Cell::new(std::io::stderr().is_terminal().then_some(None)),
        }
    }

    /// The same for a command whose data go to standard output: if that is a terminal too, the
    /// line would be among them.
    pub(super) fn beside_data(what: &'static str, total_bytes: u64) -> ProgressLine {
        let progress = ProgressLine::begin(what, total_bytes);
        if std::io::stdout().is_terminal() {
            progress.drawn.set(None);
        }
        progress
    }

    /// One payload of this length is done.
    pub(super) fn item(&self, bytes: u64) {
        self.items.set(self.items.get() + 1);
        self.reach(self.bytes.get() + bytes);
    }

    /// What is done so far, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// At least this much is done.
    pub(super) fn reach(&self, bytes: u64) {
        self.bytes.set(bytes.max(self.bytes.get()));
        let Some(drawn) = self.drawn.get() else { return };
        let now = rt::now();
        if now >= drawn.map_or(self.began + FIRST_AFTER, |drawn| drawn + DRAW_EVERY) {
            self.drawn.set(Some(Some(now)));
            status_line(&self.line(now - self.began));
        }
    }

    /// Share, bytes, rates, time left.
    fn line(&self, elapsed: Duration) -> String {
        let (bytes, items) = (self.bytes.get().min(self.total_bytes), self.items.get());
        let seconds = elapsed.as_secs_f64().max(0.001);
        let share = bytes as f64 / self.total_bytes.max(1) as f64;
        let rate = bytes as f64 / seconds;
        let left = (self.total_bytes - bytes) as f64 / rate.max(0.001);
        // Longer than anybody waits.
        let left = match left {
            0.0..=360_000.0 => {
                let left = Duration::from_secs(left.ceil() as u64);
                format!("{} left", humantime::format_duration(left))
            }
            _ => "no end in sight".to_owned(),
        };
        let mut line = format!(
            "{}: {:.0}%, {} of {}, {}/s, {}, {:.0}/s, {left}",
            self.what,
            share * 100.0,
            ByteSize(bytes),
            ByteSize(self.total_bytes),
            ByteSize(rate as u64),
            CountOf(items, "payload"),
            items as f64 / seconds,
        );
        line.truncate(line.floor_char_boundary(COLUMNS));
        line
    }
}

impl ProgressLine {
    /// Ends the line, before a report.
    pub(super) fn end(&self) {
        if self.drawn.take().is_some() {
            status_line("");
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(total: u64, bytes: u64, items: u64, seconds: f64) -> String {
        let progress = ProgressLine::begin("replaying", total);
        progress.bytes.set(bytes);
        progress.items.set(items);
        progress.line(Duration::from_secs_f64(seconds))
    }

    #[test]
    fn a_line_has_share_rate_and_time_left() {
        let mib = 1 << 20;
        for (line, expected) in [
            (
                line(40 * mib, 10 * mib, 500, 5.0),
                "replaying: 25%, 10.0 MiB of 40.0 MiB, 2.0 MiB/s, 500 payloads, 100/s, 15s left",
            ),
            (
                line(mib, mib, 1, 1.0),
                "replaying: 100%, 1.0 MiB of 1.0 MiB, 1.0 MiB/s, 1 payload, 1/s, 0s left",
            ),
            // A file was larger than it had been.
            (
                line(10, 20, 2, 1.0),
                "replaying: 100%, 10 B of 10 B, 10 B/s, 2 payloads, 2/s, 0s left",
            ),
            (line(0, 0, 0, 0.0), "replaying: 0%, 0 B of 0 B, 0 B/s, 0 payloads, 0/s, 0s left"),
        ] {
            assert_eq!(line, &expected[..expected.len().min(COLUMNS)]);
        }
        let endless = line(u64::MAX, 1, 1, 9.0);
        assert!(endless.contains("no end") && endless.len() <= COLUMNS, "{endless}");
    }
}
