//! The server that runs on this host, for `check --running`: which process it is, by the addresses
//! and the spool that a check finds in use, and what it holds.

#![expect(clippy::disallowed_methods, reason = "runs before any executor")]

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::spool::takeover::instances::{LockedSpool, is_instance};

use super::{Finding, Mode, sockets};

/// The process that listens on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortHolder {
    /// A process of this program.
    Server {
        pid: u32,
        /// Of the user who has made the socket.
        uid: u32,
    },
    Other {
        pid: u32,
        name: String,
    },
    /// One of another user or another PID namespace, whose files cannot be looked at.
    Hidden {
        uid: u32,
    },
}

/// Who listens on `address` or, if nobody does, on all addresses with its port; `None`: nobody.
pub fn holder(address: SocketAddr) -> Option<PortHolder> {
    let listeners = sockets::listeners(address).ok()?;
    let uid = listeners.first()?.uid;
    let links: Vec<String> =
        listeners.iter().map(|listener| format!("socket:[{}]", listener.inode)).collect();
    let mut other = None;
    for pid in processes() {
        if !open_files(pid).any(|link| link.to_str().is_some_and(|link| is_among(link, &links))) {
            continue;
        }
        if is_this_program(pid) {
            return Some(PortHolder::Server { pid, uid });
        }
        // It may have inherited the socket: a server that holds it as well is the one.
        other.get_or_insert_with(|| PortHolder::Other { pid, name: name_of(&pid.to_string()) });
    }
    Some(other.unwrap_or(PortHolder::Hidden { uid }))
}

fn is_among(link: &str, links: &[String]) -> bool {
    links.iter().any(|wanted| wanted == link)
}

/// By its name, or by its file: a binary may have been renamed or replaced meanwhile.
fn is_this_program(pid: u32) -> bool {
    let file = |pid: &str| {
        let about = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        Some((about.dev(), about.ino()))
    };
    let pid = pid.to_string();
    name_of(&pid) == name_of("self") || file(&pid).is_some_and(|of| Some(of) == file("self"))
}

fn name_of(pid: &str) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// What its descriptors lead to; nothing, if this user may not look.
fn open_files(pid: u32) -> impl Iterator<Item = PathBuf> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
}

/// The running server that a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunningServer {
    /// No process listens on any of its addresses, or another program does.
    Absent,
    /// One does, but this user may not see which: only its user is known.
    Hidden {
        uid: u32,
    },
    Found {
        pid: u32,
        uid: u32,
    },
}

impl RunningServer {
    /// The one that listens on the addresses of `config`.
    pub(super) fn find(config: &Config) -> RunningServer {
        let addresses = config.admin_listen.into_iter();
        let addresses = addresses.chain(config.listen.iter().map(|listen| listen.address));
        let mut found = RunningServer::Absent;
        for address in addresses.filter(|address| address.port() != 0) {
            match holder(address) {
                Some(PortHolder::Server { pid, uid }) => return RunningServer::Found { pid, uid },
                Some(PortHolder::Hidden { uid }) => found = RunningServer::Hidden { uid },
                Some(PortHolder::Other { .. }) | None => {}
            }
        }
        found
    }

    /// Its user, if it is another one than this process's, which is not root: what this process may
    /// read and write says nothing about the server then.
    fn foreign_user(self) -> Option<u32> {
        let own = rustix::process::geteuid();
        match self {
            RunningServer::Hidden { uid } | RunningServer::Found { uid, .. } => {
                (!own.is_root() && uid != own.as_raw()).then_some(uid)
            }
            RunningServer::Absent => None,
        }
    }

    /// A finding about what files allow, with what it is worth for this server.
    pub(super) fn qualify(self, finding: Finding) -> Finding {
        match self.foreign_user() {
            Some(user) if finding.level == super::Level::Fail => Finding::warn(
                finding.name,
                format!("{}, for this user; the server runs as user {user}", finding.detail),
                format!("check as root or as user {user}"),
            ),
            _ => finding,
        }
    }

    /// Bytes of the spool files in `spool_dir` that are this server's: of its own directory, and of
    /// those that it has taken over. `node` is its `NODE_ID`, for where only that is known.
    pub(super) fn spool_bytes(self, spool_dir: &Path, node: &str) -> u64 {
        let Ok(whole) = spool_dir.canonicalize() else { return 0 };
        let mut names = BTreeSet::new();
        if let RunningServer::Found { pid, .. } = self {
            names.extend(open_files(pid).filter_map(|file| {
                let inside = file.strip_prefix(&whole).ok()?;
                Some(inside.components().next()?.as_os_str().to_owned())
            }));
        }
        names.insert(node.into());
        let instances = names.iter().map(|name| whole.join(name)).filter(|path| is_instance(path));
        instances.map(|instance| bytes_below(&instance, 1)).sum()
    }
}

/// Bytes of the files in `dir` and up to `levels` directories below.
fn bytes_below(dir: &Path, levels: u32) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(about) if about.is_dir() && levels > 0 => bytes_below(&entry.path(), levels - 1),
        Ok(about) if about.is_file() => about.len(),
        _ => 0,
    });
    bytes.sum()
}

/// What `check --running` says about an address that is in use; `server` is the one that the check
/// is about.
pub(super) fn judge_holder(
    name: &'static str,
    address: SocketAddr,
    holder: PortHolder,
    server: RunningServer,
    conflict: Finding,
) -> Finding {
    match holder {
        PortHolder::Server { pid, .. } => match server {
            RunningServer::Found { pid: other, .. } if other != pid => Finding::warn(
                name,
                format!("{address} is held by process {pid}, but another address by {other}"),
                "two servers run: check each with its own settings",
            ),
            _ => {
                Finding::ok(name, format!("{address} is held by the running server, process {pid}"))
            }
        },
        PortHolder::Other { pid, name: program } => {
            Finding { detail: format!("{}: {program}, process {pid}", conflict.detail), ..conflict }
        }
        PortHolder::Hidden { uid } => Finding::warn(
            name,
            format!(
                "{address} is in use by a process of user {uid} that this user may not look at"
            ),
            "check as root or as the server's user, in its PID namespace",
        ),
    }
}

/// What `check --running` says about an address on which nobody listens.
pub(super) fn nobody_listens(name: &'static str, address: SocketAddr) -> Finding {
    Finding::warn(
        name,
        format!("{address} is free: no server is running with these settings"),
        "start it, or check without --running",
    )
}

/// Whether another process holds the spool of a fixed `NODE_ID`; no other name can be in use.
pub(super) fn spool_lock(config: &Config, mode: Mode) -> Option<Finding> {
    let own = config.spool.as_ref()?.dir.join(&config.node_id);
    // A start says it itself, after waiting for processes that are ending.
    if mode == Mode::Start || !is_instance(&own) {
        return None;
    }
    is_locked(&own).then(|| {
        let shown = own.display();
        match mode {
            Mode::Running => {
                Finding::ok("spool lock", format!("{shown} is held by the running server"))
            }
            Mode::Starting => Finding::warn(
                "spool lock",
                format!(
                    "{shown} is held by another process; the start waits for one that is ending"
                ),
                "nothing, if a server is ending; else give each process a NODE_ID of its own",
            ),
            _ => Finding::fail(
                "spool lock",
                format!("{shown} is in use by another process"),
                "give each process a NODE_ID of its own, or stop the other one; beside a running \
                 server, millrace check --running",
            ),
        }
    })
}

/// The lock is released at once: a check must not keep a server from starting.
fn is_locked(instance: &Path) -> bool {
    matches!(LockedSpool::take(instance), Ok(None))
}

#[cfg(test)]
mod tests {
    use super::super::{Level, expect};
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_holder_is_found_and_is_ours_only_by_name() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (pid, uid) = (std::process::id(), rustix::process::geteuid().as_raw());
        // This test is the same program as itself.
        assert_eq!(holder(address), Some(PortHolder::Server { pid, uid }));
        let conflict = || Finding::fail("LISTEN", "taken", "stop it");
        let judge = |holder, server| judge_holder("LISTEN", address, holder, server, conflict());
        let found = RunningServer::Found { pid: 7, uid: 9 };
        let other = PortHolder::Other { pid: 7, name: "nginx".to_owned() };
        let other = judge(other, RunningServer::Absent);
        assert_eq!((other.level, other.detail.as_str()), (Level::Fail, "taken: nginx, process 7"));
        assert_eq!(judge(PortHolder::Hidden { uid: 9 }, found).level, Level::Warn);
        assert_eq!(judge(PortHolder::Server { pid: 7, uid: 9 }, found).level, Level::Ok);
        let second = judge(PortHolder::Server { pid: 8, uid: 9 }, found);
        expect(second, Level::Warn, &["held by process 8, but another address by 7"]);
        drop(listener);
        assert_eq!(holder(address), None);
    }

    /// A process of another program that has inherited the socket does not stand for the server.
    #[test]
    fn of_several_processes_with_a_socket_the_server_is_the_holder() {
        use std::os::fd::AsRawFd as _;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let kept = rustix::io::dup(&listener).unwrap();
        // `dup` leaves close-on-exec off, so the child has it too.
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let seen = fs::read_link(format!("/proc/{}/fd/{}", child.id(), kept.as_raw_fd()));
        let found = holder(address);
        drop(listener);
        drop(kept);
        let after = holder(address);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen.is_ok(), "{seen:?}");
        assert!(matches!(found, Some(PortHolder::Server { .. })), "{found:?}");
        assert_eq!(after, Some(PortHolder::Other { pid: child.id(), name: "sleep".to_owned() }));
    }

    #[test]
    fn only_the_spool_of_the_server_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [("own", 100), ("taken~x", 20), ("of_another", 3)] {
            let core = dir.path().join(name).join("core-0");
            fs::create_dir_all(&core).unwrap();
            fs::write(core.join("a.seg"), vec![0; bytes]).unwrap();
            assert!(is_instance(&dir.path().join(name)), "{name}");
        }
        let _held = fs::File::open(dir.path().join("taken~x/core-0/a.seg")).unwrap();
        let found = RunningServer::Found { pid: std::process::id(), uid: 0 };
        for (server, node, bytes) in [
            (found, "own", 120),
            (found, "random", 20),
            (RunningServer::Absent, "own", 100),
            (RunningServer::Hidden { uid: 7 }, "random", 0),
        ] {
            assert_eq!(server.spool_bytes(dir.path(), node), bytes, "{server:?} {node}");
        }
    }

    #[test]
    fn what_this_user_may_not_do_says_nothing_of_a_server_of_another() {
        let fail = || Finding::fail("SPOOL_DIR", "/x cannot be written", "chown");
        let own = rustix::process::geteuid();
        let other = RunningServer::Found { pid: 7, uid: own.as_raw() + 1 };
        let same = RunningServer::Found { pid: 7, uid: own.as_raw() };
        assert_eq!(same.qualify(fail()), fail());
        assert_eq!(RunningServer::Absent.qualify(fail()), fail());
        match own.is_root() {
            true => assert_eq!(other.qualify(fail()), fail()),
            false => expect(other.qualify(fail()), Level::Warn, &["the server runs as user"]),
        }
    }

    #[test]
    fn a_spool_in_use_is_a_conflict_unless_its_server_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let settings = [("SPOOL_DIR", path), ("NODE_ID", "n1"), ("CORES", "0")];
        let config = Config::from_settings(&settings).unwrap();
        let level = |mode| spool_lock(&config, mode).map(|finding| finding.level);
        assert_eq!(level(Mode::Check), None, "there is none yet");
        let home = crate::spool::takeover::instances::Home::open(dir.path(), "n1", &[0]).unwrap();
        assert_eq!(level(Mode::Check), Some(Level::Fail));
        assert_eq!(level(Mode::Running), Some(Level::Ok));
        assert_eq!(level(Mode::Starting), Some(Level::Warn));
        assert_eq!(level(Mode::Start), None);
        drop(home);
        assert_eq!(level(Mode::Check), None);
    }
}
