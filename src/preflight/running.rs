//! Who holds a port or a spool that a check finds in use: with `check --running` the server that
//! runs on this host is meant to.

#![expect(clippy::disallowed_methods, reason = "runs before any executor")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::config::Config;
use crate::spool::takeover::instances::{LockedSpool, is_instance};

use super::{Finding, Mode};

/// The process that listens on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortHolder {
    /// A process of this program.
    Server {
        pid: u32,
    },
    Other {
        pid: u32,
        name: String,
    },
    /// One of another user or another PID namespace, whose files cannot be looked at.
    Hidden,
}

/// Who listens on `address`, or on all addresses with its port.
pub fn holder(address: SocketAddr) -> PortHolder {
    let mut sockets = listening_sockets("/proc/net/tcp", address);
    sockets.extend(listening_sockets("/proc/net/tcp6", address));
    let own = fs::read_to_string("/proc/self/comm").unwrap_or_default();
    for pid in processes() {
        if holds_any(pid, &sockets) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return match name == own {
                true => PortHolder::Server { pid },
                false => PortHolder::Other { pid, name: name.trim_end().to_owned() },
            };
        }
    }
    PortHolder::Hidden
}

fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn holds_any(pid: u32, sockets: &[String]) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    let mut links = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.any(|link| link.to_str().is_some_and(|link| sockets.iter().any(|s| s == link)))
}

/// `socket:[INODE]` of the sockets in a table of `/proc/net` that listen on `address`.
fn listening_sockets(table: &str, address: SocketAddr) -> Vec<String> {
    let table = fs::read_to_string(table).unwrap_or_default();
    table.lines().skip(1).filter_map(|row| listening_socket(row, address)).collect()
}

fn listening_socket(row: &str, address: SocketAddr) -> Option<String> {
    const LISTEN: &str = "0A";
    let columns: Vec<&str> = row.split_whitespace().collect();
    let (ip, port) = columns.get(1)?.split_once(':')?;
    let (ip, port) = (parse_ip(ip)?.to_canonical(), u16::from_str_radix(port, 16).ok()?);
    let wanted = address.ip().to_canonical();
    let overlaps = ip == wanted || ip.is_unspecified() || wanted.is_unspecified();
    let is_it = *columns.get(3)? == LISTEN && port == address.port() && overlaps;
    is_it.then(|| Some(format!("socket:[{}]", columns.get(9)?)))?
}

/// An address as the kernel prints it: words of 32 bits, each in the host's byte order.
fn parse_ip(hex: &str) -> Option<IpAddr> {
    let words = hex.as_bytes().chunks(8).map(|word| {
        let word = std::str::from_utf8(word).ok()?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// What `check --running` says about an address that is in use.
pub(super) fn judge_holder(
    name: &'static str,
    address: SocketAddr,
    holder: PortHolder,
    conflict: Finding,
) -> Finding {
    match holder {
        PortHolder::Server { pid } => {
            Finding::ok(name, format!("{address} is held by the running server, process {pid}"))
        }
        PortHolder::Other { pid, name: program } => {
            Finding { detail: format!("{}: {program}, process {pid}", conflict.detail), ..conflict }
        }
        PortHolder::Hidden => Finding::warn(
            name,
            format!("{address} is in use by a process that this user may not look at"),
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
    use super::super::Level;
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn rows_of_the_kernels_tables_are_read() {
        let row = |address: &str, state: &str| {
            format!(
                "   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0"
            )
        };
        for (address, state, wanted, is_it) in [
            ("0100007F:1F90", "0A", "127.0.0.1:8080", true),
            ("0100007F:1F90", "01", "127.0.0.1:8080", false),
            ("0100007F:1F90", "0A", "127.0.0.1:8081", false),
            ("0100007F:1F90", "0A", "127.0.0.2:8080", false),
            ("0100007F:1F90", "0A", "0.0.0.0:8080", true),
            ("00000000:1F90", "0A", "127.0.0.1:8080", true),
            ("00000000000000000000000001000000:1F90", "0A", "[::1]:8080", true),
            ("00000000000000000000000000000000:1F90", "0A", "127.0.0.1:8080", true),
            ("0000000000000000FFFF00000100007F:1F90", "0A", "127.0.0.1:8080", true),
            ("xyz:1F90", "0A", "127.0.0.1:8080", false),
            ("", "", "127.0.0.1:8080", false),
        ] {
            // The tests run where words have the least byte first.
            let found = listening_socket(&row(address, state), wanted.parse().unwrap());
            assert_eq!(found, is_it.then(|| "socket:[4711]".to_owned()), "{address} {wanted}");
        }
    }

    #[test]
    fn the_holder_is_found_and_is_ours_only_by_name() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // This test is the same program as itself.
        assert_eq!(holder(address), PortHolder::Server { pid: std::process::id() });
        let conflict = || Finding::fail("LISTEN", "taken", "stop it");
        let judge = |holder| judge_holder("LISTEN", address, holder, conflict());
        let other = PortHolder::Other { pid: 7, name: "nginx".to_owned() };
        let other = judge(other);
        assert_eq!((other.level, other.detail.as_str()), (Level::Fail, "taken: nginx, process 7"));
        assert_eq!(judge(PortHolder::Hidden).level, Level::Warn);
        assert_eq!(judge(PortHolder::Server { pid: 7 }).level, Level::Ok);
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
