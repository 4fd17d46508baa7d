//! Small disks for a server's spool, mounted on `spool` in its working directory, in a mount namespace of the server's own:
//! they go with it. A host that allows no such namespace has none, see [`super::needs`].

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::needs::{Need, skip};
use super::{Server, wrap};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// In memory, 6 MiB.
    Tmpfs,
    /// The file `disk.img` in the working directory, as a block device.
    Ext4,
}

impl Disk {
    /// Mounts it on `spool` and becomes the command behind it.
    fn script(self) -> &'static str {
        match self {
            Disk::Tmpfs => r#"mount -t tmpfs -o size=6m tmpfs spool && exec "$@""#,
            Disk::Ext4 => r#"mount -o loop,errors=remount-ro disk.img spool && exec "$@""#,
        }
    }

    /// Makes it ready to be mounted in `dir`; the options of `unshare` with which that works here.
    pub fn make(self, dir: &Path) -> Option<&'static str> {
        std::fs::create_dir_all(dir.join("spool")).unwrap();
        if self == Disk::Ext4 && !make_image(&dir.join("disk.img"), 10) {
            return None;
        }
        // As root without a user namespace, whose limits would be others.
        let found = ["-m", "-Urm"].into_iter().find(|options| {
            let mut tried = Command::new("unshare");
            tried.current_dir(dir).args([options, "sh", "-c", self.script(), "sh", "true"]);
            tried.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        });
        if found.is_none() {
            let need = if self == Disk::Ext4 { Need::Loop } else { Need::Mount };
            skip(need, format!("this host lets nobody mount {self:?} in a namespace"));
        }
        found
    }

    /// Becomes the same command in a namespace with the disk.
    pub fn wrap(self, command: &mut Command, options: &str) {
        wrap(command, &["unshare", options, "sh", "-c", self.script(), "sh"]);
    }

    /// A server with its spool on such a disk, if there can be one.
    pub fn start(self, dir: &Arc<tempfile::TempDir>, settings: &[(&str, &str)]) -> Option<Server> {
        let options = self.make(dir.path())?;
        Some(Server::start_by(dir.clone(), settings, |command| self.wrap(command, options)))
    }
}

/// An empty ext4 file system of so many MiB in `image`; false where its tools are missing, which is said.
pub fn make_image(image: &Path, mib: u64) -> bool {
    File::create(image).unwrap().set_len(mib << 20).unwrap();
    let mut made = Command::new("mkfs.ext4");
    made.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(["-q", "-F", "-m", "0"]).arg(image);
    let made = made.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !made {
        skip(Need::Tools, "there is no mkfs.ext4 (e2fsprogs) here");
    }
    made
}

/// The server's `spool` as it sees it, for this process.
pub fn seen_by(server: &Server) -> PathBuf {
    format!("/proc/{}/root{}", server.pid(), server.path("spool").display()).into()
}

/// Runs a shell script in the server's namespace and working directory.
pub fn run_in_namespace(server: &Server, script: &str) {
    let mut run = Command::new("nsenter");
    let script = format!("cd {}; {script}", server.dir().path().display());
    // With its root: it may run in a chroot of this namespace.
    run.args(["-t", &server.pid().to_string(), "-m", "-r", "sh", "-ec", &script]);
    let run = run.output().unwrap();
    assert!(run.status.success(), "{script}: {}", String::from_utf8_lossy(&run.stderr));
}

/// Makes the file system of the server's `spool`, an ext4, read-only, as an error of its disk does.
pub fn turn_read_only(server: &Server) {
    run_in_namespace(
        server,
        "device=$(findmnt -n -o SOURCE \"$PWD/spool\"); echo 1 > /sys/fs/ext4/${device#/dev/}/trigger_fs_error",
    );
}

/// While it lives, whoever writes to the file system of the server's `spool` waits (`fsfreeze`).
pub struct Frozen {
    directory: File,
}

impl Frozen {
    pub fn new(server: &Server) -> Frozen {
        let frozen = Frozen { directory: File::open(seen_by(server)).unwrap() };
        assert!(frozen.call("-f"), "fsfreeze");
        frozen
    }

    fn call(&self, what: &str) -> bool {
        let mut call = Command::new("fsfreeze");
        call.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").arg(what);
        // Also when the server is no more.
        call.arg(format!("/proc/{}/fd/{}", std::process::id(), self.directory.as_raw_fd()));
        call.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // What is frozen for ever keeps its processes for ever.
        assert!(self.call("-u"), "thaw");
    }
}
