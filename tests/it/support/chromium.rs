//! A browser without a window, and the pages that it is shown.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use super::needs::{Need, skip};

/// A page's report may take this long: a browser starts slowly on a busy machine.
const REPORT_MAX: Duration = Duration::from_secs(90);

/// Debian's packages of the same names.
const NAMES: [&str; 2] = ["chromium-headless-shell", "chromium"];

/// A listener for the pages of one test, which are of any origin of this host: `127.0.0.1` and all
/// names in `localhost`.
pub struct Pages {
    address: SocketAddr,
    reports: Receiver<Value>,
}

impl Pages {
    /// Serves `pages` (path and HTML) and takes their reports. Every page can call
    /// `report(anything)`.
    pub fn start(pages: &[(&'static str, String)]) -> Pages {
        Pages::on(TcpListener::bind("127.0.0.1:0").unwrap(), pages)
    }

    /// The same on a listener whose port is known already.
    pub fn on(listener: TcpListener, pages: &[(&'static str, String)]) -> Pages {
        let address = listener.local_addr().unwrap();
        let pages: Arc<HashMap<_, _>> = Arc::new(pages.iter().cloned().collect());
        let (sender, reports) = channel();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (pages, sender) = (pages.clone(), sender.clone());
                std::thread::spawn(move || while answer(&stream, &pages, &sender).is_some() {});
            }
        });
        Pages { address, reports }
    }

    /// The port in the origin of every page.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The next report of a page.
    pub fn report(&self) -> Value {
        self.reports.recv_timeout(REPORT_MAX).expect("a report of the page in time")
    }
}

const REPORT: &str = "<!doctype html><meta charset=utf-8><script>\
    function report(value) { return fetch('/report', { method: 'POST', body: JSON.stringify(value) }); }\
    </script>\n";

/// Answers one request; `None` at the end of the connection.
fn answer(
    mut stream: &TcpStream,
    pages: &HashMap<&str, String>,
    reports: &Sender<Value>,
) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.split('?').next()?.to_owned();
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        match line.trim().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().ok()?;
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (status, page) = match pages.get(path.as_str()) {
        Some(page) => (200, format!("{REPORT}{page}")),
        None if path == "/report" => {
            let _the_test_has_ended = reports.send(serde_json::from_slice(&body).unwrap());
            (200, String::new())
        }
        None => (404, String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\r\n",
        page.len()
    );
    stream.write_all((head + &page).as_bytes()).ok()
}

/// A running browser; ended when dropped, and by itself after some minutes.
pub struct Chromium {
    child: Child,
    _profile: tempfile::TempDir,
}

impl Chromium {
    /// Shows `url`. `None` where there is no browser.
    pub fn open(url: &str) -> Option<Chromium> {
        // It stays until it is ended, as it does for whoever debugs it.
        let (chromium, _) = Chromium::launch(&["--remote-debugging-port=0", url])?;
        Some(chromium)
    }

    /// Starts it with these arguments too. Its file descriptors 3 and 4 are the pipes that are
    /// returned.
    pub(super) fn launch(args: &[&str]) -> Option<(Chromium, (ChildStdin, ChildStdout))> {
        let is_there = |name: &&str| {
            let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output();
            found.unwrap().status.success()
        };
        let Some(name) = NAMES.into_iter().find(is_there) else {
            skip(Need::Chromium, format!("there is no {} (Debian)", NAMES.join(" and no ")));
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("timeout")
            .args(["--kill-after=5", "300", "sh", "-c"])
            .args([r#"exec "$@" 3<&0 4>&1 </dev/null >/dev/null"#, "sh", name, "--headless"])
            // Its sandbox does not work for root; the pages are ours.
            .args([
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
            ])
            .args(["--no-proxy-server", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(args)
            // Its settings and caches are in the home directory.
            .env("HOME", profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let pipes = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Some((Chromium { child, _profile: profile }, pipes))
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // timeout(1) leads the group of all its processes.
        let group = Pid::from_child(&self.child);
        let _ended_already = kill_process_group(group, Signal::KILL);
        let _reaped_already = self.child.wait();
    }
}
