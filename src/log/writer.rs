//! Writes log lines to stderr: a bounded queue and a thread, so that logging never waits for the
//! reader of stderr.
//!
//! A line is dropped and counted if the queue is full or stderr refuses it (no reader, disk full).
//! The thread keeps trying, because a FIFO can get a new reader and a disk can be cleaned up. Once
//! stderr accepts lines again, one line says how many were dropped.
//!
//! `tracing-appender` has such a writer, but its queue counts lines and not bytes, lines that the
//! output refuses are not counted, and its guard reports a full queue with `println!`, which panics
//! when stdout is gone.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tracing_subscriber::fmt::MakeWriter;

use super::LogFormat;
use super::line;
use super::recent::RecentLines;
use crate::rt;

/// Memory for lines that wait for stderr; a line that would exceed it is dropped. About 20,000
/// lines of usual length, so that a stop that loses every payload of a default queue can still name
/// them all.
pub const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Memory of one queued line besides its text: the vector, its entry in the channel, the
/// allocator's rounding.
const LINE_COST_BYTES: usize = 96;
/// The interval between reports of dropped lines while stderr is slower than the log.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How often a flush checks whether it is done.
const FLUSH_LOOK: Duration = Duration::from_millis(1);

/// The sending side of the queue.
pub(super) struct LogQueue {
    lines: Sender<Vec<u8>>,
    counts: Arc<Counts>,
    recent: Arc<RecentLines>,
    format: LogFormat,
}

#[derive(Default)]
struct Counts {
    /// Memory of lines that are queued or being written; 0 once everything, reports included, is
    /// written.
    queued_bytes: AtomicUsize,
    dropped: AtomicU64,
}

impl LogQueue {
    /// Starts the thread that writes to stderr.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn to_stderr(format: LogFormat) -> io::Result<LogQueue> {
        let (queue, thread) = LogQueue::to(format, write_stderr);
        std::thread::Builder::new().name("millrace-log".to_owned()).spawn(|| thread.run())?;
        Ok(queue)
    }

    fn to<W: Output>(format: LogFormat, output: W) -> (LogQueue, LogWriter<W>) {
        let (send, lines) = mpsc::channel();
        let counts = Arc::new(Counts::default());
        let recent = Arc::<RecentLines>::default();
        let thread = LogWriter {
            lines,
            counts: counts.clone(),
            recent: recent.clone(),
            format,
            output,
            torn: false,
            failing: false,
            reported: 0,
            report_due: rt::now(),
        };
        (LogQueue { lines: send, counts, recent, format }, thread)
    }

    /// Queues one line, which ends with a line feed, or drops it. Never waits.
    pub(super) fn push(&self, line: &[u8]) {
        let line = line::cut(self.format, line);
        let cost = cost(&line);
        let before = self.counts.queued_bytes.fetch_add(cost, Relaxed);
        let queued = before + cost <= QUEUE_BYTES_MAX && self.lines.send(line).is_ok();
        if !queued {
            self.counts.queued_bytes.fetch_sub(cost, Relaxed);
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.counts.dropped.load(Relaxed)
    }

    /// The last lines, oldest first.
    pub(super) fn recent(&self) -> Vec<u8> {
        self.recent.text()
    }

    pub(super) fn format(&self) -> LogFormat {
        self.format
    }

    /// Waits until every line is written or dropped, for at most `patience`. Returns whether all
    /// were.
    #[expect(clippy::disallowed_methods, reason = "only called where the process ends")]
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let started = rt::now();
        loop {
            if self.counts.queued_bytes.load(Relaxed) == 0 {
                return true;
            }
            if rt::since(started) >= patience {
                return false;
            }
            std::thread::sleep(FLUSH_LOOK);
        }
    }
}

fn cost(line: &[u8]) -> usize {
    line.len() + LINE_COST_BYTES
}

/// One event is one `write_all`.
impl io::Write for &LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Adapts [`LogQueue`] to `tracing_subscriber`.
pub(super) struct MakeQueueWriter(pub(super) &'static LogQueue);

impl MakeWriter<'_> for MakeQueueWriter {
    type Writer = &'static LogQueue;

    fn make_writer(&self) -> &'static LogQueue {
        self.0
    }
}

/// What `write(2)` does.
trait Output: FnMut(&[u8]) -> io::Result<usize> + Send + 'static {}
impl<W: FnMut(&[u8]) -> io::Result<usize> + Send + 'static> Output for W {}

struct LogWriter<W> {
    lines: Receiver<Vec<u8>>,
    counts: Arc<Counts>,
    recent: Arc<RecentLines>,
    format: LogFormat,
    output: W,
    /// The last line was partly written, so the next write begins with a line feed.
    torn: bool,
    /// The last line was refused.
    failing: bool,
    /// How many of the dropped lines a line has reported.
    reported: u64,
    /// When the next report is due if the queue does not become empty.
    report_due: Instant,
}

impl<W: Output> LogWriter<W> {
    /// Writes until every sender is gone.
    fn run(mut self) {
        while let Ok(line) = self.lines.recv() {
            self.report_due = rt::now() + REPORT_EVERY;
            let mut written = self.take(&line);
            // The last line stays charged until its report is written as well: a flush waits for
            // both.
            while let Ok(line) = self.lines.try_recv() {
                self.counts.queued_bytes.fetch_sub(written, Relaxed);
                written = self.take(&line);
            }
            self.report();
            self.counts.queued_bytes.fetch_sub(written, Relaxed);
        }
    }

    /// Writes or drops one line; returns what it was charged.
    fn take(&mut self, line: &[u8]) -> usize {
        if self.failing || rt::now() >= self.report_due {
            self.report();
        }
        self.recent.keep(line);
        self.failing = self.put(line).is_err();
        if self.failing {
            self.counts.dropped.fetch_add(1, Relaxed);
        }
        cost(line)
    }

    /// Reports how many lines were dropped since the last report, if any.
    fn report(&mut self) {
        let dropped = self.counts.dropped.load(Relaxed);
        let news = dropped - self.reported;
        if news == 0 {
            return;
        }
        let text = "log lines were dropped: stderr was read too slowly or could not be written";
        if self.put(&line::own(self.format, "WARN", text, &[("dropped", news.into())])).is_ok() {
            self.reported = dropped;
            self.report_due = rt::now() + REPORT_EVERY;
        }
    }

    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            write_all(&mut self.output, b"\n").map_err(|(_, error)| error)?;
            self.torn = false;
        }
        write_all(&mut self.output, line).map_err(|(written, error)| {
            self.torn = written > 0;
            error
        })
    }
}

/// # Errors
/// How many bytes were written before the error.
fn write_all(output: &mut impl Output, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < bytes.len() {
        match output(&bytes[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

/// Bypasses the lock of `std::io::stderr`, which a thread stuck in a write would hold.
fn write_stderr(bytes: &[u8]) -> io::Result<usize> {
    let stderr = std::io::stderr();
    loop {
        match rustix::io::write(&stderr, bytes) {
            Err(Errno::INTR) => {}
            // Another process that shares the open file description may have made it non-blocking.
            Err(Errno::AGAIN) => {
                let _interrupted = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None);
            }
            outcome => return Ok(outcome?),
        }
    }
}

/// Writes a short text to stderr if that does not block. For use before the queue exists.
pub(super) fn write_at_once(text: &str) {
    let stderr = std::io::stderr();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut ready, Some(&now)).is_ok_and(|ready| ready > 0) {
        let _nobody_listens = rustix::io::write(&stderr, text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::sync_channel;

    use super::*;

    const TEXT: LogFormat = LogFormat::Text;

    /// Everything that was written.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[test]
    fn a_stalled_reader_blocks_no_logger_and_dropped_lines_are_counted() {
        let (go, gate) = sync_channel::<()>(0);
        let sink = Sink::default();
        let written = sink.clone();
        let (queue, thread) = LogQueue::to(TEXT, move |bytes: &[u8]| {
            // Blocks until the reader goes on, then never again.
            let _gone = gate.recv();
            written.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        });
        let thread = std::thread::spawn(|| thread.run());
        let line = [&[b'x'; 999][..], b"\n"].concat();
        let fit = QUEUE_BYTES_MAX / (line.len() + LINE_COST_BYTES);
        for _ in 0..fit + 7 {
            queue.push(&line);
        }
        assert_eq!(queue.dropped(), 7);
        let started = Instant::now();
        assert!(!queue.flush(Duration::from_millis(30)), "nothing moves");
        assert!(started.elapsed() >= Duration::from_millis(30));
        drop(go);
        assert!(queue.flush(Duration::from_secs(20)));
        let text = sink.text();
        assert_eq!(text.lines().filter(|line| line.starts_with('x')).count(), fit);
        let reports: Vec<_> = text.lines().filter(|line| !line.starts_with('x')).collect();
        assert_eq!(reports.len(), 1, "{reports:?}");
        assert!(reports[0].contains(" WARN log lines were dropped"), "{reports:?}");
        assert!(reports[0].ends_with("dropped=7"), "{reports:?}");
        queue.push(b"after\n");
        assert!(queue.flush(Duration::from_secs(20)));
        assert_eq!(sink.text(), text + "after\n", "reported once");
        assert_eq!(queue.counts.queued_bytes.load(Relaxed), 0);
        drop(queue);
        thread.join().unwrap();
    }

    /// Each call of `write` is answered from the script; afterwards everything is taken.
    #[test]
    fn refused_lines_are_counted_and_a_torn_one_does_not_swallow_the_next() {
        let sink = Sink::default();
        let written = sink.clone();
        let epipe = || Err(io::ErrorKind::BrokenPipe);
        // first: refused. second: its report and itself are refused. third: the report is, and
        // three bytes pass.
        let mut script = vec![epipe(), epipe(), epipe(), epipe(), Ok(3), epipe()].into_iter();
        let (queue, thread) = LogQueue::to(LogFormat::Json, move |bytes: &[u8]| {
            let n = script.next().unwrap_or(Ok(bytes.len()))?;
            written.0.lock().unwrap().extend_from_slice(&bytes[..n]);
            Ok(n)
        });
        for line in ["first\n", "second\n", "third\n", "fourth\n"] {
            queue.push(line.as_bytes());
        }
        drop(queue);
        thread.run();
        let text = sink.text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines[0], lines[2], lines.len()), ("thi", "fourth", 3), "{text}");
        let report: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!((&report["dropped"], &report["level"]), (&3.into(), &"WARN".into()));
    }
}
