//! What a start tells the operator. On a terminal with a text log: one page when it serves, or a
//! table of what is wrong when it does not. Everywhere else: a log line per warning, and one line
//! with the facts of the page as fields.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytesize::ByteSize;

use crate::config::{Ack, Config, core_list};
use crate::limits::Limits;
use crate::log::{self, CountOf};
use crate::preflight::{Finding, Level, table};
use crate::queue::job::Stamp;

/// Collects the findings of a start. What it still keeps is shown when it is dropped: the start has
/// failed or panicked, and there will be no page.
pub struct StartReport {
    /// An operator looks on.
    is_page: bool,
    /// Warnings and failures that the page has still to show.
    kept: KeptFindings,
    warnings: usize,
}

/// Findings that wait for the page of a start; shared with whoever may end the process before.
#[derive(Clone, Default)]
pub struct KeptFindings(Arc<ArcSwap<Vec<Finding>>>);

impl KeptFindings {
    fn push(&self, finding: Finding) {
        self.0.rcu(|kept| kept.iter().chain([&finding]).cloned().collect::<Vec<_>>());
    }

    /// Whoever takes them shows them.
    fn take(&self) -> Arc<Vec<Finding>> {
        self.0.swap(Arc::default())
    }

    /// Shows what is left of them.
    pub fn show(&self) {
        let kept = self.take();
        if !kept.is_empty() {
            log::page(&table(&kept));
        }
    }
}

/// The facts about a server that has started.
pub(super) struct StartSummary<'a> {
    pub(super) config: &'a Config,
    pub(super) limits: &'a Limits,
    /// Where it listens, in the order of `LISTEN`.
    pub(super) listen: &'a [SocketAddr],
    /// `None`: it has no admin listener.
    pub(super) admin: Option<SocketAddr>,
    pub(super) took: Duration,
}

impl StartReport {
    /// For a process whose log has been started.
    pub fn new() -> StartReport {
        StartReport { is_page: log::is_watched(), kept: KeptFindings::default(), warnings: 0 }
    }

    /// Logs `finding`, or keeps it for the page.
    pub fn add(&mut self, finding: Finding) {
        self.warnings += usize::from(finding.level == Level::Warn);
        if self.is_page && finding.level != Level::Ok {
            self.kept.push(finding);
        } else {
            finding.log();
        }
    }

    /// Shows what was kept: the start has failed, and there will be no page.
    pub fn show(&mut self) {
        self.kept.show();
    }

    /// What is kept, for whoever may end the process before there is a page.
    pub fn kept(&self) -> KeptFindings {
        self.kept.clone()
    }

    /// The server serves from now on.
    pub(super) fn serving(&mut self, summary: &StartSummary<'_>) {
        let kept = self.kept.take();
        match self.is_page {
            true => log::page(&summary.page(&kept, &Colours::of(log::has_colours()))),
            false => summary.log(self.warnings),
        }
    }
}

impl Drop for StartReport {
    fn drop(&mut self) {
        self.show();
    }
}

/// Terminal sequences, or nothing.
struct Colours {
    strong: &'static str,
    faint: &'static str,
    warning: &'static str,
    end: &'static str,
}

impl Colours {
    fn of(has: bool) -> Colours {
        match has {
            true => Colours {
                strong: "\u{1b}[1m",
                faint: "\u{1b}[2m",
                warning: "\u{1b}[33m",
                end: "\u{1b}[0m",
            },
            false => Colours { strong: "", faint: "", warning: "", end: "" },
        }
    }
}

/// The width of a page: what every terminal has.
const COLUMNS: usize = 80;
/// Where the values of a page begin.
const INDENT: usize = 16;

impl StartSummary<'_> {
    fn urls(&self) -> Vec<String> {
        let path = self.config.paths.first();
        let pairs = self.listen.iter().zip(&self.config.listen);
        pairs.map(|(at, listen)| format!("{}{at}{path}", scheme(listen.tls))).collect()
    }

    fn admin_url(&self) -> Option<String> {
        self.admin.map(|at| format!("{}{at}", scheme(self.config.admin_tls)))
    }

    /// Of all cores, with every limit reached.
    fn memory_bytes(&self) -> u64 {
        self.limits.core_memory_bytes.saturating_mul(self.config.cores.len() as u64)
    }

    fn tokens(&self) -> String {
        match (&self.config.tokens_file, self.config.asks_for_certificates()) {
            (Some(file), false) => file.display().to_string(),
            (Some(file), true) => format!("{}, or a client certificate", file.display()),
            (None, true) => "client certificates".to_owned(),
            (None, false) => "none asked for".to_owned(),
        }
    }

    fn example_key(&self) -> String {
        self.config.example_key(Stamp::unix_nanos_now())
    }

    /// One line in any log format.
    fn log(&self, warnings: usize) {
        let config = self.config;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = self.urls().join(", "),
            admin = self.admin_url().unwrap_or_else(|| "off".to_owned()),
            cores = %core_list(&config.cores),
            store = %config.store,
            object = config.batch.as_ref().map_or("payload", |_| "batch"),
            node = %config.node_id,
            example_key = %self.example_key(),
            workers_per_core = config.max_workers,
            queue_per_core = config.max_queue,
            queue_bytes_per_core = config.max_queue_bytes,
            body_bytes_per_core = config.max_body_bytes,
            body_bytes_max = config.max_length,
            connections_per_core = self.limits.connections,
            memory_bytes_max = self.memory_bytes(),
            drain_timeout_ms = self.limits.stop.exit.as_millis() as u64,
            started_in_ms = self.took.as_millis() as u64,
            ack = config.ack.name(),
            spool = config.spool.as_ref().map_or("off".into(), |spool| spool.dir.display().to_string()),
            dead_letters = %config.dead_letter_dir.display(),
            dead_letter_bytes_max = config.dead_letter_max,
            tokens = self.tokens(),
            warnings,
            "serving; a 200 means: {}", promise(config.ack)
        );
    }

    /// The same for people.
    fn page(&self, warnings: &[Finding], colours: &Colours) -> String {
        let Colours { strong, warning, end, .. } = colours;
        let (config, limits) = (self.config, self.limits);
        let size = |bytes: usize| ByteSize(bytes as u64);
        let version = env!("CARGO_PKG_VERSION");
        let took = self.took.as_millis();
        let mut page =
            format!("\n{strong}millrace {version} is serving{end}, started in {took} ms\n\n");
        let mut row = |label: &str, value: String| colours.row(&mut page, label, &value);
        for url in self.urls() {
            row("payloads", format!("POST {url}"));
        }
        row("tokens", self.tokens());
        let admin = self.admin_url().map(|url| format!("{url}/metrics, /healthz, /readyz, /peers"));
        row("admin", admin.unwrap_or_else(|| "off".to_owned()));
        let object = match &config.batch {
            None => "one object per payload".to_owned(),
            Some(batch) => {
                format!("batches of up to {} or {:?}", ByteSize(batch.bytes), batch.age)
            }
        };
        row("store", format!("{}, {object}, named like {}", config.store, self.example_key()));
        row("a 200 means", format!("{}: {}", config.ack.name(), promise(config.ack)));
        row(
            "spool",
            config.spool.as_ref().map_or("off".to_owned(), |spool| {
                format!("{}, up to {} per core", spool.dir.display(), ByteSize(spool.max))
            }),
        );
        let dead = config.dead_letter_dir.display();
        row("dead letters", format!("{dead}, up to {}", ByteSize(config.dead_letter_max)));
        let cores = core_list(&config.cores);
        row("cores", format!("{cores}; each has these limits:"));
        row(
            "",
            format!(
                "{}; requests up to {}, {} in progress",
                CountOf(limits.connections, "connection"),
                size(config.max_length),
                size(config.max_body_bytes)
            ),
        );
        row(
            "",
            format!(
                "{} and {} in the queue; {} at a time",
                CountOf(config.max_queue, "payload"),
                size(config.max_queue_bytes),
                CountOf(config.max_workers, "upload")
            ),
        );
        let memory = ByteSize(self.memory_bytes());
        row("memory", format!("{memory} on all cores, with every limit reached"));
        let drain = limits.stop.exit;
        row("stop", format!("Ctrl-C; what is accepted has {drain:?} to be stored, or is kept"));
        for Finding { name, detail, remedy, .. } in warnings {
            wrap(&mut page, &format!("\n{warning}warning{end} {name}: "), detail, 2);
            if let Some(remedy) = remedy {
                wrap(&mut page, "  mend: ", remedy, 8);
            }
        }
        page.push('\n');
        page
    }
}

impl Colours {
    /// A label and its value.
    fn row(&self, page: &mut String, label: &str, value: &str) {
        let (faint, end) = (self.faint, self.end);
        let label = format!("  {faint}{label}{end}{:<1$}", "", INDENT - 2 - label.len());
        wrap(page, &label, value, INDENT);
    }
}

/// Adds `text` behind `start`, in lines of [`COLUMNS`] where it has blanks; all but the first are
/// indented.
fn wrap(page: &mut String, start: &str, text: &str, indent: usize) {
    page.push_str(start);
    let mut at = shown_width(start);
    let mut is_first = true;
    for word in text.split(' ') {
        let width = word.chars().count();
        if !is_first && at + 1 + width > COLUMNS {
            write!(page, "\n{:indent$}", "").expect("writing to a String");
            at = indent;
        } else if !is_first {
            page.push(' ');
            at += 1;
        }
        page.push_str(word);
        at += width;
        is_first = false;
    }
    page.push('\n');
}

/// Columns of `text`, in which terminal sequences and line feeds take none.
fn shown_width(text: &str) -> usize {
    let pieces = text.split('\u{1b}').enumerate();
    let shown = pieces.map(|(at, piece)| match at {
        0 => piece,
        _ => piece.split_once('m').map_or("", |(_, shown)| shown),
    });
    shown.map(|piece| piece.chars().filter(|c| *c != '\n').count()).sum()
}

fn scheme(tls: bool) -> &'static str {
    if tls { "https://" } else { "http://" }
}

/// What a 200 of this level means, in words.
fn promise(ack: Ack) -> &'static str {
    match ack {
        Ack::Queued => {
            "in this host's memory, uploaded in the background, dead-lettered to disk if the store refuses it, lost if \
             this host or process dies first"
        }
        Ack::Spooled => {
            "on this host's disk, uploaded in the background, by a later process if this one dies; dead-lettered to disk \
             if the store refuses it"
        }
        Ack::Stored => "the store has confirmed it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(settings: &[(&str, &str)], warnings: &[Finding], has_colours: bool) -> String {
        let own = [("LISTEN", "127.0.0.1:8080"), ("CORES", "0"), ("NODE_ID", "n")];
        let config = Config::from_settings(&[&own[..], settings].concat()).unwrap();
        let summary = StartSummary {
            limits: &Limits::new(&config),
            listen: &[config.listen[0].address],
            admin: config.admin_listen,
            took: Duration::from_millis(43),
            config: &config,
        };
        summary.page(warnings, &Colours::of(has_colours))
    }

    #[test]
    fn a_page_has_the_facts_and_fits_a_terminal() {
        let warning = Finding::warn("LISTEN", "everybody ".repeat(20).trim(), "set TOKENS_FILE");
        for settings in [
            &[][..],
            &[("SPOOL_DIR", "/var/spool/m"), ("ACK", "spooled"), ("OBJECT", "batch")],
            &[("STORE", "s3://bucket/p/"), ("ACK", "stored"), ("ADMIN_LISTEN", "off")],
        ] {
            let text = page(settings, std::slice::from_ref(&warning), false);
            for part in [
                "millrace ",
                " is serving, started in 43 ms",
                "payloads      POST http://127.0.0.1:8080/payloads",
                "a 200 means   ",
                "16384 connections; requests up to 1.0 MiB",
                "10000 payloads and 64.0 MiB in the queue; 32 uploads",
                "warning LISTEN: everybody",
                "mend: set TOKENS_FILE",
            ] {
                assert!(text.contains(part), "{part} in\n{text}");
            }
            let is_long = |line: &&str| line.chars().count() > COLUMNS && line.contains("  ");
            assert_eq!(text.lines().find(is_long), None, "{text}");
            assert!(!text.contains('\u{1b}'), "{text}");
            let coloured = page(settings, std::slice::from_ref(&warning), true);
            assert!(coloured.contains("\u{1b}[33mwarning\u{1b}[0m LISTEN"), "{coloured}");
            assert_eq!(coloured.lines().count(), text.lines().count(), "colours take no column");
        }
    }
}
