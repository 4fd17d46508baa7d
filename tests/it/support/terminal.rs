//! A terminal, and what a process shows on it.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::{kill_command, wait_for};

/// A process whose standard output and standard error are a terminal; killed when dropped.
pub struct OnTerminal {
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    /// Starts `command`, with its standard output elsewhere if `out` is given.
    pub fn start(command: &mut Command, out: Option<File>) -> OnTerminal {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let end =
            || OwnedFd::from(File::options().write(true).open(name.to_str().unwrap()).unwrap());
        match out {
            Some(out) => command.stdout(out),
            None => command.stdout(end()),
        };
        let child = command.stderr(end()).spawn().unwrap();
        // The command holds ends of its own, which must not outlive the process.
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let sink = shown.clone();
        std::thread::spawn(move || {
            let (mut user, mut bytes) = (File::from(user), [0; 4096]);
            // EIO: the last end was closed.
            while let Ok(count @ 1..) = user.read(&mut bytes) {
                sink.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        OnTerminal { child, shown }
    }

    /// Everything so far, as the process wrote it: the terminal makes CR LF of line feeds.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).replace("\r\n", "\n")
    }

    pub fn wait_shown(&self, text: &str) -> String {
        wait_for(text, || self.shown().contains(text));
        self.shown()
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        assert!(kill_command().arg(self.child.id().to_string()).status().unwrap().success());
    }

    /// Waits for its end; the exit status, and everything that it showed.
    pub fn ended(mut self) -> (Option<i32>, String) {
        let mut status = None;
        wait_for("the end of a process on a terminal", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        // What is still on its way to the reader.
        let mut before = self.shown();
        wait_for("the last of what it showed", || {
            std::thread::sleep(std::time::Duration::from_millis(30));
            let now = self.shown();
            std::mem::replace(&mut before, now.clone()) == now
        });
        (status.unwrap().code(), before)
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}
