//! Log setup and the panic hook.
//!
//! Logging never waits for the reader of stderr (see `writer`). Nothing else in a server writes to
//! stderr. No line holds a secret: events of other crates are not logged (see `own`), and a panic's
//! text is logged without its values (see `panicked`).

mod line;
mod own;
mod panicked;
mod pem;
mod recent;
mod writer;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::rt;
pub use pem::pem_flaw;

use writer::{LogQueue, MakeQueueWriter};

/// The longest time that the end of the process waits for stderr to accept the last lines.
pub const FLUSH_MAX: Duration = Duration::from_millis(500);
/// The same if the process is already late: enough for the log's thread to get a CPU and for an
/// attentive reader.
const FLUSH_MIN: Duration = Duration::from_millis(50);

static QUEUE: OnceLock<LogQueue> = OnceLock::new();
/// Replaces the current filter.
static SET_FILTER: OnceLock<Box<SetFilter>> = OnceLock::new();
type SetFilter = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

/// `LOG_FORMAT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Writes the last lines when dropped, waiting at most [`FLUSH_MAX`].
#[must_use]
pub struct LogGuard(());

impl Drop for LogGuard {
    fn drop(&mut self) {
        flush(FLUSH_MAX);
    }
}

/// Whether an operator looks on: stderr is a terminal, and the log is text that shows `info`. Then the
/// start is told in a page for people ([`page`]).
pub fn is_watched() -> bool {
    QUEUE.get().is_some_and(|queue| queue.format() == LogFormat::Text)
        && std::io::stderr().is_terminal()
        && tracing::enabled!(tracing::Level::INFO)
}

/// Whether stderr shows colours: it is a terminal that can, and nobody has asked for none
/// (<https://no-color.org>).
pub fn has_colours() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    std::io::stderr().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// Writes lines for people in place of log lines, through the log's queue: a terminal that has been
/// stopped must not hold up a start.
pub fn page(text: &str) {
    if let Some(queue) = QUEUE.get() {
        queue.push(text.as_bytes());
    }
}

/// Starts logging to stderr, panics included. `directives` is the value of `LOG`. Once per process.
///
/// # Errors
/// Names what is invalid in `directives`, or says that the log's thread cannot be started.
pub fn start(directives: &str, format: LogFormat) -> Result<LogGuard, String> {
    let filter = parse(directives)?;
    if QUEUE.get().is_none() {
        let queue = LogQueue::to_stderr(format)
            .map_err(|error| format!("no thread to write the log: {error}; raise ulimit -u"))?;
        let _set_just_now = QUEUE.set(queue);
    }
    let queue = QUEUE.get().expect("set above");
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // They would be printed with `eprintln!`, which panics if stderr is closed.
        .log_internal_errors(false)
        .with_writer(MakeQueueWriter(queue));
    // The builder's type depends on the format.
    macro_rules! init {
        ($builder:expr) => {{
            let builder = $builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let set = move |filter| handle.reload(filter).map_err(|error| error.to_string());
            let _set_before = SET_FILTER.set(Box::new(set));
            builder.finish().with(own::OwnEvents).init();
        }};
    }
    match format {
        LogFormat::Text => {
            let builder = builder.with_target(false).with_ansi(has_colours());
            init!(builder);
        }
        LogFormat::Json => {
            init!(builder.json().flatten_event(true));
        }
    }
    hook_panics();
    Ok(LogGuard(()))
}

fn parse(directives: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(directives).map_err(|error| format!("LOG: {error}"))
}

/// Filters by `directives` from now on.
///
/// # Errors
/// Names what is invalid in them.
pub fn set_filter(directives: &str) -> Result<(), String> {
    let filter = parse(directives)?;
    SET_FILTER.get().map_or(Ok(()), |set| set(filter))
}

/// The number of lines dropped since the start, because stderr was read too slowly or could not be
/// written.
pub fn lines_dropped() -> u64 {
    QUEUE.get().map_or(0, LogQueue::dropped)
}

/// The last lines of the log, oldest first, of at most 256 KiB.
pub fn recent_lines() -> Vec<u8> {
    QUEUE.get().map_or_else(Vec::new, LogQueue::recent)
}

/// Waits until the lines logged so far are written, for at most `patience`. After one timeout it
/// does not wait again. For the end of the process.
fn flush(patience: Duration) {
    static IN_VAIN: AtomicBool = AtomicBool::new(false);
    if let Some(queue) = QUEUE.get()
        && !IN_VAIN.load(Relaxed)
        && !queue.flush(patience)
    {
        IN_VAIN.store(true, Relaxed);
    }
}

/// Writes the last lines of a process that must exit by `end`.
pub fn flush_by(end: Instant) {
    flush(end.saturating_duration_since(rt::now()).clamp(FLUSH_MIN, FLUSH_MAX));
}

/// Logs the last line of a process that ends while other threads may be stuck; waits at most
/// [`FLUSH_MAX`].
pub fn log_last_line(text: &str) {
    if QUEUE.get().is_some() {
        tracing::info!("{text}");
        flush(FLUSH_MAX);
    } else {
        writer::write_at_once(&format!("{text}\n"));
    }
}

/// A number and what it counts, as people write it: `1 thread`, `2 threads`. The noun is given in the
/// singular, and `dead letter` or `whole group` is one as well.
#[derive(Clone, Copy, Debug)]
pub struct CountOf<N>(pub N, pub &'static str);

impl<N: std::fmt::Display + PartialEq + From<u8>> std::fmt::Display for CountOf<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let CountOf(number, noun) = self;
        let ending = match () {
            () if *number == N::from(1) => "",
            () if noun.ends_with("ch") => "es",
            () => "s",
        };
        write!(f, "{number} {noun}{ending}")
    }
}

/// Writes a line to stderr and ignores errors: before the log has started, or from a command other
/// than `serve`.
pub fn complain(text: impl std::fmt::Display) {
    status_line("");
    let _nobody_listens = writeln!(std::io::stderr(), "{text}");
}

/// Draws a line on stderr, a terminal, over the one drawn before; an empty one removes it.
pub fn status_line(text: &str) {
    static IS_DRAWN: AtomicBool = AtomicBool::new(false);
    if !text.is_empty() || IS_DRAWN.load(Relaxed) {
        IS_DRAWN.store(!text.is_empty(), Relaxed);
        // To the start of the line, and what is there goes.
        let _nobody_looks = write!(std::io::stderr(), "\r\u{1b}[K{text}");
    }
}

/// Replaces std's panic hook, which writes to stderr itself and so could block a core forever, and
/// prints values that may be secret. First of all in a process: the configuration holds secrets.
pub fn hook_panics() {
    std::panic::set_hook(Box::new(log_panic));
}

/// Bypasses `tracing`, because a panic is logged whatever `LOG` says and wherever it happens.
fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let at = info.location().map(ToString::to_string);
    let text = match (info.payload().downcast_ref::<&str>(), info.payload_as_str()) {
        // Written in the source, without any value.
        (Some(text), _) => (*text).to_owned(),
        (None, Some(formatted)) => panicked::without_values(formatted),
        (None, None) => "a value that is not text".to_owned(),
    };
    let mut fields = vec![
        ("panic", text.into()),
        ("thread", thread.name().unwrap_or("unnamed").into()),
        ("at", at.unwrap_or_default().into()),
    ];
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        fields.push(("backtrace", backtrace.to_string().into()));
    }
    let line = |format| line::own(format, "ERROR", "a thread panicked", &fields);
    match QUEUE.get() {
        Some(queue) => queue.push(&line(queue.format())),
        None => writer::write_at_once(&String::from_utf8_lossy(&line(LogFormat::Text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_its_noun_agree() {
        for (number, noun, text) in [
            (0, "payload", "0 payloads"),
            (1, "payload", "1 payload"),
            (2, "payload", "2 payloads"),
            (1, "batch", "1 batch"),
            (21, "batch", "21 batches"),
            (1, "dead letter", "1 dead letter"),
            (3, "dead letter", "3 dead letters"),
        ] {
            assert_eq!(CountOf(number, noun).to_string(), text);
        }
    }
}
