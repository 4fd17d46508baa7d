//! `millrace tap`: prints samples of the payloads that a running server admits, as the lines of its
//! page `/tap`, until it is interrupted.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;

use super::ask::{ListenerAt, PageUrl};
use super::out;
use crate::config::{Config, Effective, admin_token_text};
use crate::control::Exit;
use crate::log::{CountOf, complain};

/// The server says something every 2 s.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// What `tap` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapOptions {
    pub listener: ListenerAt,
    /// Most samples per second.
    pub rate: u16,
}

/// Prints samples until the server or the reader of standard output is gone.
///
/// # Errors
/// The server cannot be reached, or shows nothing.
pub fn run(config: &Config, effective: &Effective, options: &TapOptions) -> Result<Exit, String> {
    let page = PageUrl::of_listener(config, &options.listener)?.at("/tap");
    let page = page.with_query(&format!("rate={}", options.rate));
    let token = admin_token_text(effective)?;
    let mut lines = TapLines::new(out::data());
    let read = page.read_on(token.as_ref().map(|token| token.as_str()), SILENCE_MAX, &mut |part| {
        lines.take(part)?;
        // It would not be noticed before there is a sample to write.
        lines.is_unread = is_unread(io::stdout());
        if lines.is_unread { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    });
    if lines.is_unread {
        // Whoever reads has seen enough.
        return Ok(Exit::Clean);
    }
    read.map_err(|error| format!("{}: {error}", page.as_str()))?;
    complain("the server has ended the tap");
    Ok(Exit::Clean)
}

/// Whether the reader of a pipe is gone.
fn is_unread(pipe: impl AsFd) -> bool {
    let mut polled = [PollFd::new(&pipe, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
        && polled[0].revents().contains(PollFlags::ERR)
}

/// Passes samples on to `out`, and counts of what was dropped to standard error.
struct TapLines<W> {
    out: W,
    /// The beginning of a line.
    rest: Vec<u8>,
    /// Samples that were dropped, as last said.
    dropped: u64,
    /// The reader of `out` is gone.
    is_unread: bool,
}

/// A line without a sample.
#[derive(Deserialize)]
struct CountsLine {
    tap: TapCount,
}

#[derive(Deserialize)]
struct TapCount {
    dropped: u64,
}

impl<W: Write> TapLines<W> {
    fn new(out: W) -> TapLines<W> {
        TapLines { out, rest: Vec::new(), dropped: 0, is_unread: false }
    }

    fn take(&mut self, part: &[u8]) -> io::Result<()> {
        self.rest.extend_from_slice(part);
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        let printed =
            lines.split_inclusive(|byte| *byte == b'\n').try_for_each(|line| self.line(line));
        let printed = printed.and_then(|()| self.out.flush());
        self.is_unread = printed.is_err();
        printed
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if !line.starts_with(b"{\"tap\":") {
            return self.out.write_all(line);
        }
        let dropped = serde_json::from_slice(line).map_or(0, |CountsLine { tap }| tap.dropped);
        if dropped > self.dropped {
            complain(format_args!("{} dropped", CountOf(dropped - self.dropped, "sample")));
            self.dropped = dropped;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_printed_line_by_line_and_counts_are_not() {
        let mut lines = TapLines::new(Vec::new());
        for part in [
            "{\"tap\":{\"sent\":0,\"dropped\":0}}\n{\"core\"",
            ":1}\n{\"core\":2}\n{\"ta",
            "p\":{\"dropped\":7}}\n{\"co",
        ] {
            lines.take(part.as_bytes()).unwrap();
        }
        assert_eq!(lines.out, b"{\"core\":1}\n{\"core\":2}\n");
        assert_eq!((lines.dropped, lines.rest.as_slice()), (7, &b"{\"co"[..]));
    }
}
