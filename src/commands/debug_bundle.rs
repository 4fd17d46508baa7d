//! `millrace debug bundle`: what somebody needs who looks for the cause of a problem, in one tar.
//!
//! It holds no secret: settings as messages show them, pages of the admin listener, and files of
//! the kernel that hold neither the environment nor the arguments of a process. What cannot be had
//! is named in `README.txt`, and the rest is there.

mod host_facts;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::ask::{AskBounds, PageAnswer, PageUrl};
use super::check;
use crate::config::{Config, Effective, admin_token_text};
use crate::control::Exit;
use crate::limits::Limits;
use crate::log::complain;
use crate::preflight::{self, Mode, PortHolder};
use crate::rt;

/// How `debug bundle` was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleOptions {
    /// `None`: a name with the time in it, in the working directory. `-`: standard output.
    pub out: Option<PathBuf>,
    /// The admin listener; `None`: that of the settings.
    pub url: Option<String>,
    /// From the first to the last scrape.
    pub time: Duration,
}

/// Scrapes of `/metrics`, evenly spread over [`BundleOptions::time`].
const SCRAPES: u32 = 3;
/// The longest time that may be between the first and the last scrape.
pub const TIME_MAX: Duration = Duration::from_secs(600);
/// Bounds of one page: metrics of many cores and tokens take a few MiB.
const BOUNDS: AskBounds = AskBounds { time: Duration::from_secs(10), bytes: 64 << 20 };

/// Writes the bundle, and says where. Exit 1 if something could not be had.
///
/// # Errors
/// The file cannot be written, or the URL is none.
pub fn run(
    config: &Config,
    effective: &Effective,
    options: &BundleOptions,
) -> Result<Exit, String> {
    let page = match &options.url {
        Some(url) => Ok(PageUrl::parse(url).map_err(|why| format!("the URL {why}"))?),
        None => PageUrl::of_admin(config, "/").map(|page| page.pinned(config)),
    };
    let since_epoch = rt::wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = format!("millrace-debug-{}", since_epoch.as_secs());
    let path = options.out.clone().unwrap_or_else(|| format!("{name}.tar").into());
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let out: Box<dyn Write> = match path.to_str() {
        Some("-") => Box::new(super::out::data()),
        _ => Box::new(create(&path).map_err(failed)?),
    };
    let bundle = Bundle {
        tar: tar::Builder::new(out),
        name,
        now: since_epoch.as_secs(),
        contents: Vec::new(),
        problems: Vec::new(),
    };
    let problems = bundle.fill(config, effective, page, options.time).map_err(failed)?;
    for problem in &problems {
        complain(format_args!("not in the bundle: {problem}"));
    }
    complain(format_args!("{} is written; look through it before you pass it on", path.display()));
    Ok(if problems.is_empty() { Exit::Clean } else { Exit::Unstored })
}

/// A new file for its owner only: metrics and logs name clients' tokens and addresses.
fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// A bundle that is being written.
struct Bundle<W: Write> {
    tar: tar::Builder<W>,
    /// The directory in it.
    name: String,
    /// Seconds since 1970.
    now: u64,
    /// Name and description of what is in it.
    contents: Vec<(String, &'static str)>,
    /// What could not be had, and why.
    problems: Vec<String>,
}

impl<W: Write> Bundle<W> {
    /// Collects everything; returns what could not be had.
    fn fill(
        mut self,
        config: &Config,
        effective: &Effective,
        page: Result<PageUrl, String>,
        time: Duration,
    ) -> io::Result<Vec<String>> {
        let began = rt::now();
        let server = config.admin_listen.and_then(|address| match preflight::holder(address) {
            PortHolder::Server { pid } => Some(pid),
            PortHolder::Other { .. } | PortHolder::Hidden => None,
        });
        if server.is_none() {
            self.problems.push(
                "/proc of the server: no process of this user listens on ADMIN_LISTEN; run this as \
                 root or as the server's user, on its host"
                    .to_owned(),
            );
        }
        self.add("versions.txt", "program, kernel, C library, system", &host_facts::versions())?;
        self.add("settings.txt", "every setting and its source", &settings_text(effective))?;
        let limits = format!("{:#?}\n", Limits::new(config));
        self.add("limits.txt", "budgets of each core, needs of the process", &limits)?;
        for scrape in 0..SCRAPES {
            wait_until(began + time * scrape / (SCRAPES - 1));
            self.add_page(&page, "/metrics", &format!("metrics-{scrape}.txt"), None)?;
            // Counters: the first and the last make a rate.
            if scrape == 0 || scrape + 1 == SCRAPES {
                let facts = host_facts::read(server);
                self.add(
                    &format!("proc-{scrape}.txt"),
                    "the kernel's counters and limits",
                    &facts,
                )?;
            }
            if scrape == 0 {
                self.add_check(config, effective)?;
            }
        }
        self.add_page(&page, "/readyz", "readyz.txt", None)?;
        match admin_token_text(effective) {
            Ok(token) => {
                let token = token.as_ref().map(|token| token.as_str());
                self.add_page(&page, "/logs", "logs.txt", token)?;
            }
            Err(why) => self.problems.push(format!("logs.txt: {why}")),
        }
        self.finish()
    }

    fn add(&mut self, name: &str, what: &'static str, text: &str) -> io::Result<()> {
        self.contents.push((name.to_owned(), what));
        self.append(name, text.as_bytes())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.now);
        self.tar.append_data(&mut header, format!("{}/{name}", self.name), bytes)
    }

    /// Adds a page of the server, or notes why it is not there.
    fn add_page(
        &mut self,
        listener: &Result<PageUrl, String>,
        page: &str,
        name: &str,
        token: Option<&str>,
    ) -> io::Result<()> {
        let asked = listener
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|listener| listener.at(page).get(token, BOUNDS));
        match asked {
            // What is not ready says why.
            Ok(PageAnswer { status, text }) if status == 200 || page == "/readyz" => {
                self.add(name, "a page of the server", &text)
            }
            Ok(PageAnswer { status, text }) => {
                self.problems.push(format!("{name}: {page}: {status} {}", text.trim_end()));
                Ok(())
            }
            Err(why) => {
                self.problems.push(format!("{name}: {page}: {why}"));
                Ok(())
            }
        }
    }

    fn add_check(&mut self, config: &Config, effective: &Effective) -> io::Result<()> {
        match check::all(config, effective, Mode::Running, false) {
            Ok(findings) => {
                let report = format!("{:#}\n", check::to_json(&findings));
                self.add("check.json", "millrace check --running --json", &report)
            }
            Err(why) => {
                self.problems.push(format!("check.json: {why}"));
                Ok(())
            }
        }
    }

    /// Adds the table of contents, and ends the tar.
    fn finish(mut self) -> io::Result<Vec<String>> {
        let mut readme = format!("millrace debug bundle of {}\n\n", time_text(self.now));
        for (name, what) in &self.contents {
            readme.push_str(&format!("{name:<16} {what}\n"));
        }
        for problem in &self.problems {
            readme.push_str(&format!("\nnot here: {problem}\n"));
        }
        self.append("README.txt", readme.as_bytes())?;
        self.tar.into_inner()?.flush()?;
        Ok(self.problems)
    }
}

fn time_text(unix_seconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(unix_seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Every setting as messages show it, and which variables of AWS are there.
fn settings_text(effective: &Effective) -> String {
    let mut text: String = effective.all().map(|value| format!("{value}\n")).collect();
    let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("AWS_")).collect();
    names.sort();
    text.push_str(&format!("\nvariables of AWS that this command had: {}\n", names.join(" ")));
    text
}

#[expect(clippy::disallowed_methods, reason = "a command, without an executor")]
fn wait_until(time: Instant) {
    std::thread::sleep(time.saturating_duration_since(rt::now()));
}
