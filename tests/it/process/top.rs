//! `millrace top`: goal, a terminal that shows a server, and is as it was afterwards however the
//! command ends.
//!
//! Method: the command has a pseudoterminal, whose other end reads what it draws and types.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Action, LocalModes, Winsize, tcflow, tcgetattr, tcsetwinsize};

use crate::support::{PATIENCE, Server, command, signal};

/// More than one look of the command at its terminal.
const LOOKS: Duration = Duration::from_millis(300);

/// Our end of a pseudoterminal, and the name of the other one.
fn pseudoterminal() -> (File, String) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    (File::from(ours), name.into_string().unwrap())
}

/// The command on the terminal of this name, of which the second value is another handle.
fn spawn(name: &str, dir: &Path, url: &str, settings: &[(&str, &str)]) -> (Child, File) {
    let open = || File::options().read(true).write(true).open(name).unwrap();
    let theirs = open();
    resize(&theirs, 100, 30);
    let mut top = command(dir, &["top", url, "--every", "200ms"], settings);
    top.env("TERM", "xterm-256color").stdin(Stdio::from(open())).stdout(Stdio::from(open()));
    let child = top.stderr(Stdio::from(open())).process_group(0).spawn().unwrap();
    (child, theirs)
}

/// Its status; waits for that.
fn status_of(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(ended) = child.try_wait().unwrap() {
            return ended.code();
        }
        assert!(Instant::now() < deadline, "it goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The command in its terminal.
struct Top {
    child: Child,
    ours: File,
    /// Keeps the settings of the terminal when the command has ended.
    theirs: File,
    drawn: Receiver<Vec<u8>>,
    text: String,
    _dir: tempfile::TempDir,
}

impl Top {
    fn start(url: &str, settings: &[(&str, &str)]) -> Top {
        let dir = tempfile::tempdir().unwrap();
        let (ours, name) = pseudoterminal();
        let (child, theirs) = spawn(&name, dir.path(), url, settings);
        let (sender, drawn) = channel();
        let mut reader = ours.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(read) = reader.read(&mut buffer) {
                if read == 0 || sender.send(buffer[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        Top { child, ours, theirs, drawn, text: String::new(), _dir: dir }
    }

    /// Waits until this was drawn. Cells that did not change are not drawn again.
    fn wait(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.text.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.drawn.recv_timeout(left) {
                Ok(more) => self.text += &String::from_utf8_lossy(&more),
                Err(_) => panic!("not drawn: {text}\n{}", self.text.escape_debug()),
            }
        }
    }

    fn press(&mut self, keys: &str) {
        self.text.clear();
        self.ours.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for the end, and checks that the terminal is as it was.
    fn ended(mut self, status: Option<i32>) {
        self.wait("\u{1b}[?1049l");
        assert_eq!(status_of(&mut self.child), status);
        let modes = tcgetattr(&self.theirs).unwrap().local_modes;
        assert!(
            modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG),
            "{modes:?}"
        );
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}

fn resize(terminal: &File, columns: u16, rows: u16) {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

#[test]
fn it_shows_a_server_and_gives_the_terminal_back() {
    let server = Server::start(&[]);
    server.post_payloads(&["1", "2"]);
    let url = format!("http://{}", server.admin);
    // Any key that ends it, and signals.
    for end in ["q", "\u{1b}", "\u{3}", "TERM", "HUP", "INT"] {
        let mut top = Top::start(&url, &[]);
        top.wait("Ready");
        // Blanks that were there already are not drawn.
        top.wait("letters");
        if end == "q" {
            top.press("\t");
            top.wait("Limits");
            top.press("\t");
            top.wait("127.0.0.1");
            top.press("p");
            top.wait("Paused");
            top.press("p");
            top.wait("Live");
            top.press("\t");
            // All of it is drawn anew then.
            resize(&top.theirs, 60, 20);
            top.wait("Core");
        }
        match end {
            "TERM" | "HUP" | "INT" => signal(&top.child, end),
            key => top.press(key),
        }
        top.ended(Some(0));
    }
}

#[test]
fn a_server_that_is_gone_is_seen() {
    let server = Server::start(&[]);
    let mut top = Top::start(&format!("http://{}", server.admin), &[("NO_COLOR", "1")]);
    top.wait("Ready");
    // Colours, of which there are to be none, are 30 to 37, 90 to 97, and 38.
    assert!(
        !top.text.contains("[38;") && !top.text.contains("[32m"),
        "{}",
        top.text.escape_debug()
    );
    drop(server);
    top.wait("STALE");
    // The reason may have taken the place of another one, of which only what differs is drawn.
    resize(&top.theirs, 90, 28);
    top.wait("refused");
    top.press("q");
    top.ended(Some(0));
}

/// What comes while it draws is there when it looks at its terminal again, all of it at once.
///
/// Rows: the signal of a new size comes with the keys; these, of which the last one ends it.
#[test]
fn keys_are_read_whatever_comes_with_them() {
    let server = Server::start(&[]);
    let url = format!("http://{}", server.admin);
    let paste = "x".repeat(3000) + "q";
    for (resized, keys) in [(true, "q"), (true, "\t\tq"), (false, &paste), (true, &paste)] {
        let mut top = Top::start(&url, &[]);
        top.wait("Ready");
        // Its output is stopped as by Control-S. It has something to draw, and waits for that.
        tcflow(&top.theirs, Action::OOff).unwrap();
        resize(&top.theirs, 60, 20);
        std::thread::sleep(LOOKS);
        if resized {
            signal(&top.child, "WINCH");
            std::thread::sleep(LOOKS);
        }
        top.press(keys);
        tcflow(&top.theirs, Action::OOn).unwrap();
        top.ended(Some(0));
    }
}

/// Whoever closes the window of a terminal is told of nothing any more, and no processor is busy
/// for that. The command has no controlling terminal here, so no SIGHUP ends it.
#[test]
fn a_terminal_that_is_closed_ends_it() {
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let (mut ours, name) = pseudoterminal();
    let url = format!("http://{}", server.admin);
    let (mut child, theirs) = spawn(&name, dir.path(), &url, &[]);
    drop(theirs);
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.contains("Ready") {
        let mut fds = [PollFd::new(&ours, PollFlags::IN)];
        let drawn = poll(&mut fds, Some(&PATIENCE.try_into().unwrap())).unwrap();
        assert_eq!(drawn, 1, "{}", text.escape_debug());
        let read = ours.read(&mut buffer).unwrap();
        text += &String::from_utf8_lossy(&buffer[..read]);
    }
    drop(ours);
    assert_eq!(status_of(&mut child), Some(0));
}

#[test]
fn without_a_terminal_it_says_what_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let output = crate::support::run(dir.path(), &["top", "http://127.0.0.1:1"], &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("http://127.0.0.1:1/metrics"), "{said}");
}
