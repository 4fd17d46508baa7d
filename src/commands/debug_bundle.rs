//! `millrace debug bundle`: what somebody needs who looks for the cause of a problem, in one tar.
//!
//! The settings are those that the server says it runs with, on its page `/settings`. This command's
//! own, by which it checks and computes limits, are there too: the server may have got others from its
//! environment, and where they differ is said.
//!
//! It holds no secret: settings as messages show them, pages of the admin listener, and files of
//! the kernel that hold neither the environment nor the arguments of a process. What cannot be had
//! is named in `README.txt`, and the rest is there.

mod host_facts;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde::Deserialize;

use super::ask::{AskBounds, ListenerAt, PageAnswer, PageUrl};
use super::check;
use crate::config::{AdminTokenText, Config, Effective, SettingValue, admin_token_text};
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
    pub listener: ListenerAt,
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
    let page = PageUrl::of_listener(config, &options.listener);
    // Without a listener the rest is worth something; a wrong URL is a mistake.
    if let (Some(_), Err(why)) = (&options.listener.url, &page) {
        return Err(why.clone());
    }
    let since_epoch = rt::wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = format!("millrace-debug-{}", since_epoch.as_secs());
    let path = options.out.clone().unwrap_or_else(|| format!("{name}.tar").into());
    let is_stdout = path.as_os_str() == "-";
    let failed = |error: io::Error| match is_stdout {
        true => super::out::unwritable(&error),
        false => format!("{}: {error}", path.display()),
    };
    let out: Box<dyn Write> = match is_stdout {
        true if io::stdout().is_terminal() => {
            return Err("standard output is a terminal, which shows no tar: send it into a file or a pipe, or \
                        give -o FILE"
                .to_owned());
        }
        true => Box::new(super::out::data()),
        false => Box::new(create(&path).map_err(failed)?),
    };
    let bundle = Bundle {
        tar: tar::Builder::new(out),
        name,
        now: since_epoch.as_secs(),
        contents: Vec::new(),
        differing: Vec::new(),
        problems: Vec::new(),
    };
    let Filled { differing, problems } =
        bundle.fill(config, effective, page, options.time).map_err(failed)?;
    if !differing.is_empty() {
        complain(format_args!("{DIFFER}: {}", differing.join(", ")));
    }
    for problem in &problems {
        complain(format_args!("not in the bundle: {problem}"));
    }
    let written = if is_stdout { "the bundle".to_owned() } else { path.display().to_string() };
    complain(format_args!("{written} is written; look through it before you pass it on"));
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
    contents: Vec<(String, String)>,
    /// Settings of this command that differ from the server's.
    differing: Vec<String>,
    /// What could not be had, and why.
    problems: Vec<String>,
}

/// What became of a bundle.
struct Filled {
    differing: Vec<String>,
    /// What could not be had, and why.
    problems: Vec<String>,
}

/// What is said of the settings in [`Filled::differing`].
const DIFFER: &str = "check.json and limits.txt are by the settings of this command, which differ \
                      from the server's";

impl<W: Write> Bundle<W> {
    /// Collects everything.
    fn fill(
        mut self,
        config: &Config,
        effective: &Effective,
        page: Result<PageUrl, String>,
        time: Duration,
    ) -> io::Result<Filled> {
        let server = config.admin_listen.and_then(|address| match preflight::holder(address)? {
            PortHolder::Server { pid, .. } => Some(pid),
            PortHolder::Other { .. } | PortHolder::Hidden { .. } => None,
        });
        let token = admin_token_text(effective);
        if let Err(why) = &token {
            self.problems.push(format!("the admin token: {why}"));
        }
        let token = token.ok().flatten();
        let token = token.as_ref().map(AdminTokenText::as_str);
        if server.is_none() {
            self.problems.push(
                "/proc of the server: no process of this user listens on ADMIN_LISTEN; run this as \
                 root or as the server's user, on its host"
                    .to_owned(),
            );
        }
        self.add("versions.txt", "program, kernel, C library, system", &host_facts::versions())?;
        self.add_settings(&page, token, effective)?;
        let limits = format!("{:#?}\n", Limits::new(config));
        let what = "budgets of each core, needs of the process, by the settings of this command";
        self.add("limits.txt", what, &limits)?;
        // Nothing comes between the scrapes that takes time.
        let began = rt::now();
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
        }
        self.add_page(&page, "/readyz", "readyz.txt", None)?;
        self.add_page(&page, "/logs", "logs.txt", token)?;
        self.add_check(config, effective)?;
        self.finish()
    }

    /// Adds the server's settings and this command's.
    fn add_settings(
        &mut self,
        listener: &Result<PageUrl, String>,
        token: Option<&str>,
        effective: &Effective,
    ) -> io::Result<()> {
        let own = command_settings(effective);
        self.add("command-settings.txt", "every setting of this command and its source", &own)?;
        let name = "settings.txt";
        let Some((text, what)) = self.ask(listener, "/settings", name, token) else {
            return Ok(());
        };
        match ServerSettings::parse(&text) {
            Ok(settings) => {
                self.differing = settings.differing(effective);
                let what = format!("every setting of the server and its source; {what}");
                self.add(name, what, &settings.text())
            }
            Err(why) => {
                self.problems.push(format!("{name}: /settings: {why}"));
                Ok(())
            }
        }
    }

    fn add(&mut self, name: &str, what: impl Into<String>, text: &str) -> io::Result<()> {
        self.contents.push((name.to_owned(), what.into()));
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
        match self.ask(listener, page, name, token) {
            Some((text, what)) => self.add(name, what, &text),
            None => Ok(()),
        }
    }

    /// The text of a page, and when it was asked for. Without it, it is noted why.
    fn ask(
        &mut self,
        listener: &Result<PageUrl, String>,
        page: &str,
        name: &str,
        token: Option<&str>,
    ) -> Option<(String, String)> {
        let (asked_at, began) = (rt::wall_clock(), rt::now());
        let asked = listener
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|listener| listener.at(page).get(token, BOUNDS));
        match asked {
            // What is not ready says why.
            Ok(PageAnswer { status, text }) if status == 200 || page == "/readyz" => {
                let (at, took) = (humantime::format_rfc3339_millis(asked_at), rt::since(began));
                let took = took.as_secs_f64();
                Some((text, format!("{page} of the server, asked at {at}, took {took:.3} s")))
            }
            Ok(PageAnswer { status, text }) => {
                self.problems.push(format!("{name}: {page}: {status} {}", text.trim_end()));
                None
            }
            Err(why) => {
                self.problems.push(format!("{name}: {page}: {why}"));
                None
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
    fn finish(mut self) -> io::Result<Filled> {
        let mut readme = format!("millrace debug bundle of {}\n\n", time_text(self.now));
        for (name, what) in &self.contents {
            readme.push_str(&format!("{name:<20} {what}\n"));
        }
        if !self.differing.is_empty() {
            readme.push_str(&format!("\n{DIFFER}: {}\n", self.differing.join(", ")));
        }
        for problem in &self.problems {
            readme.push_str(&format!("\nnot here: {problem}\n"));
        }
        self.append("README.txt", readme.as_bytes())?;
        self.tar.into_inner()?.flush()?;
        Ok(Filled { differing: self.differing, problems: self.problems })
    }
}

/// What `/settings` says.
#[derive(Deserialize)]
struct ServerSettings {
    version: String,
    settings: Vec<ServerSetting>,
}

#[derive(Deserialize)]
struct ServerSetting {
    name: String,
    /// `None`: it is hidden.
    value: Option<String>,
    source: String,
}

impl ServerSettings {
    fn parse(page: &str) -> Result<ServerSettings, String> {
        serde_json::from_str(page).map_err(|error| format!("it is not as expected: {error}"))
    }

    /// A line for each, as those of the command.
    fn text(&self) -> String {
        let line = |setting: &ServerSetting| {
            let ServerSetting { name, value, source } = setting;
            match value {
                Some(value) => format!("{name}={value:?} ({source})\n"),
                None => format!("{name} ({source}, text not shown)\n"),
            }
        };
        let settings: String = self.settings.iter().map(line).collect();
        format!("{settings}\nof millrace {}\n", self.version)
    }

    /// Names of the settings that this command has otherwise, as far as both are shown.
    fn differing(&self, effective: &Effective) -> Vec<String> {
        let differs = |value: &&SettingValue| {
            let of_server = self.settings.iter().find(|of| of.name == value.setting.name);
            let of_server = of_server.and_then(|of| of.value.as_deref());
            matches!((of_server, value.public_text()), (Some(of), Some(own)) if of != own)
        };
        effective.all().filter(differs).map(|value| value.setting.name.to_owned()).collect()
    }
}

fn time_text(unix_seconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(unix_seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Every setting as messages show it, and which variables of AWS are there.
fn command_settings(effective: &Effective) -> String {
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
