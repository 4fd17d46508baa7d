//! Addresses, directories and files that the configuration names.

#![expect(clippy::disallowed_methods, reason = "runs before any executor")]

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process;

use bytesize::ByteSize;
use socket2::{Domain, Protocol, Socket, Type};

use super::Finding;
use crate::config::{Config, SpoolOptions, StoreUrl};
use crate::deadletter::create_dir;
use crate::tokens::TokenSet;

/// `LISTEN` and `ADMIN_LISTEN`.
pub(super) fn addresses(config: &Config) -> Vec<Finding> {
    let mut findings = vec![judge_bind("LISTEN", config.listen, try_bind(config.listen))];
    if let Some(admin) = config.admin_listen {
        findings.push(judge_bind("ADMIN_LISTEN", admin, try_bind(admin)));
    }
    findings
}

/// Binds without SO_REUSEPORT: with it, a second server of the same user would share the port unnoticed and take
/// half the connections. SO_REUSEADDR lets a restart pass over connections in TIME_WAIT. Not listening, the socket
/// disturbs nobody.
fn try_bind(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

fn judge_bind(name: &'static str, address: SocketAddr, outcome: io::Result<()>) -> Finding {
    let Err(error) = outcome else {
        return Finding::ok(name, format!("{address} is free"));
    };
    let port = address.port();
    let (why, remedy) = match error.kind() {
        ErrorKind::AddrInUse => (
            format!("{address} is taken by another listener"),
            format!("ss -ltnp 'sport = :{port}' shows it; stop it or set {name}"),
        ),
        ErrorKind::PermissionDenied => (
            format!("port {port} may not be bound by this user"),
            format!(
                "setcap cap_net_bind_service=+ep on the binary, sysctl -w \
                 net.ipv4.ip_unprivileged_port_start={port}, or set {name} to a port from 1024 on"
            ),
        ),
        ErrorKind::AddrNotAvailable => (
            format!("{} is no address of this host", address.ip()),
            format!("ip address shows those there are; set {name} to one, or to 0.0.0.0:{port}"),
        ),
        _ => (
            format!("{address} cannot be bound: {error}"),
            format!("set {name} to another address"),
        ),
    };
    Finding::fail(name, why, remedy)
}

/// The store's directory, when it is one.
pub(super) fn store(config: &Config) -> Option<Finding> {
    match &config.store {
        StoreUrl::File(dir) => {
            // With the permissions that the store would give it.
            let made = config.file_mode.create_dir_all(dir);
            Some(judge_dir("STORE", dir, made.and_then(|()| try_dir(dir))))
        }
        StoreUrl::Null => Some(Finding::warn(
            "STORE",
            "null: confirms every payload and keeps none",
            "set STORE to file:DIR or s3://BUCKET/PREFIX outside benchmarks",
        )),
        // The store's own probe speaks to the bucket.
        StoreUrl::S3 { .. } => None,
    }
}

/// The dead letter's directory.
pub(super) fn dead_letters(config: &Config) -> Finding {
    let dir = &config.dead_letter_dir;
    let finding = judge_dir("DEAD_LETTER_DIR", dir, create_dir(dir).and_then(|()| try_dir(dir)));
    match free(dir) {
        Some(free) if finding.remedy.is_none() && free < config.dead_letter_max => {
            judge_room(dir, free, config.dead_letter_max)
        }
        _ => finding,
    }
}

/// `SPOOL_DIR`, when one is set.
pub(super) fn spool(config: &Config) -> Option<Finding> {
    Some(spool_dir(config.spool.as_ref()?, config.cores.len() as u64))
}

/// `SPOOL_DIR`: writable, past the page cache, on something that survives the host, and with room.
fn spool_dir(spool: &SpoolOptions, cores: u64) -> Finding {
    let dir = &spool.dir;
    let shown = dir.display();
    let finding = judge_dir("SPOOL_DIR", dir, create_dir(dir).and_then(|()| try_dir(dir)));
    if finding.remedy.is_some() {
        return finding;
    }
    match rustix::fs::statfs(dir) {
        Ok(fs) if fs.f_type == libc::TMPFS_MAGIC => Finding::warn(
            "SPOOL_DIR",
            format!(
                "{shown} is in memory (tmpfs): what is spooled there does not survive the host"
            ),
            "set SPOOL_DIR to a directory on a disk",
        ),
        _ => match try_direct(dir) {
            Err(error) => Finding::fail(
                "SPOOL_DIR",
                format!("{shown} takes no direct I/O (O_DIRECT): {error}"),
                "set SPOOL_DIR to a directory on a local disk with ext4, XFS or the like",
            ),
            Ok(()) => judge_spool_room(dir, free(dir), spool.max.saturating_mul(cores)),
        },
    }
}

/// Opens a file for direct I/O, as the spool does.
fn try_direct(dir: &Path) -> io::Result<()> {
    let probe = dir.join(format!(".millrace-direct-{}", process::id()));
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let opened = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(direct)
        .open(&probe);
    let removed = fs::remove_file(&probe);
    opened.map(drop).and(removed)
}

fn free(dir: &Path) -> Option<u64> {
    rustix::fs::statvfs(dir).map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize)).ok()
}

fn judge_spool_room(dir: &Path, free: Option<u64>, wanted: u64) -> Finding {
    let shown = dir.display();
    match free {
        Some(free) if free < wanted => {
            let (free, wanted) = (ByteSize(free), ByteSize(wanted));
            Finding::warn(
                "SPOOL_DIR",
                format!(
                    "{shown} is writable, but {free} free is less than SPOOL_MAX on every core ({wanted})"
                ),
                format!("df -h {shown}: make room, or lower SPOOL_MAX"),
            )
        }
        _ => Finding::ok("SPOOL_DIR", format!("{shown} is writable")),
    }
}

/// Makes `dir` if need be, and writes, syncs and removes a file in it.
fn try_dir(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let probe = dir.join(format!(".millrace-probe-{}", process::id()));
    let written = File::create(&probe).and_then(|mut file| {
        file.write_all(b"probe")?;
        file.sync_all()
    });
    let removed = fs::remove_file(&probe);
    written.and(removed)
}

fn judge_dir(name: &'static str, dir: &Path, outcome: io::Result<()>) -> Finding {
    let shown = dir.display();
    let Err(error) = outcome else {
        return Finding::ok(name, format!("{shown} is writable"));
    };
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => format!(
            "mkdir -p {shown} && chown {} {shown}, run as its owner, or set {name}",
            rustix::process::geteuid().as_raw()
        ),
        ErrorKind::ReadOnlyFilesystem => format!(
            "mount {shown} writable (docker run -v, systemd ReadWritePaths=), or set {name}"
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            format!("df -h {shown}; df -i {shown}: make room, or set {name}")
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            format!("a file is in the way: ls -ld {shown}; move it, or set {name}")
        }
        _ => format!("ls -ld {shown}; set {name} to a directory this process can write"),
    };
    Finding::fail(name, format!("{shown} cannot be written: {error}"), remedy)
}

fn judge_room(dir: &Path, free: u64, wanted: u64) -> Finding {
    let (shown, free, wanted) = (dir.display(), ByteSize(free), ByteSize(wanted));
    Finding::warn(
        "DEAD_LETTER_DIR",
        format!("{shown} is writable, but {free} free is less than DEAD_LETTER_MAX={wanted}"),
        format!("df -h {shown}: make room, or lower DEAD_LETTER_MAX"),
    )
}

/// `TOKENS_FILE`, when one is set.
pub(super) fn tokens(config: &Config) -> Option<Finding> {
    let path = config.tokens_file.as_deref()?;
    let shown = path.display();
    Some(match TokenSet::load(path) {
        Ok(set) => Finding::ok("TOKENS_FILE", format!("{shown} holds {} tokens", set.len())),
        Err(error) => Finding::fail(
            "TOKENS_FILE",
            format!("{shown} {error}"),
            format!("ls -l {shown}; put one token per line in it, or unset TOKENS_FILE"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    /// Pins the kernel's behaviour the check rests on: a listener that shares its port by SO_REUSEPORT still
    /// shows to a bind without it.
    #[test]
    fn another_server_on_the_port_is_noticed() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.set_reuse_address(true).unwrap();
        listener.set_reuse_port(true).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(1).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let any = SocketAddr::from(([0, 0, 0, 0], address.port()));
        for taken in [address, any] {
            let finding = judge_bind("LISTEN", taken, try_bind(taken));
            assert_eq!(finding.level, Level::Fail);
            assert!(finding.detail.contains(&taken.to_string()), "{}", finding.detail);
            assert!(finding.remedy.unwrap().contains("ss -ltnp"));
        }
        drop(listener);
        assert_eq!(judge_bind("LISTEN", address, try_bind(address)).level, Level::Ok);
    }

    #[test]
    fn bind_refusals_name_their_cause() {
        let judge = |kind: ErrorKind| {
            let finding = judge_bind("LISTEN", "10.9.8.7:80".parse().unwrap(), Err(kind.into()));
            format!("{} {}", finding.detail, finding.remedy.unwrap())
        };
        assert!(judge(ErrorKind::PermissionDenied).contains("ip_unprivileged_port_start=80"));
        assert!(judge(ErrorKind::AddrNotAvailable).contains("10.9.8.7 is no address of this host"));
        // 192.0.2.0/24 is set aside for documentation: no host has it.
        let error = try_bind("192.0.2.1:80".parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn directories_are_made_and_left_clean_and_a_file_in_the_way_is_named() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        try_dir(&dir).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        let file = root.path().join("file");
        fs::write(&file, "x").unwrap();
        for blocked in [file.clone(), file.join("below")] {
            let finding = judge_dir("STORE", &blocked, try_dir(&blocked));
            assert_eq!(finding.level, Level::Fail);
            assert!(finding.remedy.unwrap().contains("a file is in the way"));
        }
    }

    #[test]
    fn directory_refusals_name_what_mends_them() {
        let judge = |kind: ErrorKind| {
            judge_dir("DEAD_LETTER_DIR", Path::new("/x"), Err(kind.into())).remedy.unwrap()
        };
        assert!(judge(ErrorKind::PermissionDenied).contains("chown"));
        assert!(judge(ErrorKind::ReadOnlyFilesystem).contains("ReadWritePaths"));
        assert!(judge(ErrorKind::StorageFull).contains("df -h /x"));
        let room = judge_room(Path::new("/x"), 5 << 20, 1 << 30);
        assert!(room.detail.contains("5.0 MiB") && room.level == Level::Warn, "{}", room.detail);
    }

    #[test]
    fn a_spool_must_be_on_a_disk_with_room() {
        let dir = tempfile::tempdir().unwrap();
        let room = judge_spool_room(dir.path(), Some(5 << 20), 1 << 30);
        assert!(room.level == Level::Warn && room.detail.contains("5.0 MiB"), "{}", room.detail);
        assert_eq!(judge_spool_room(dir.path(), Some(1 << 30), 1 << 30).level, Level::Ok);
        let path = dir.path().join("spool").to_str().unwrap().to_owned();
        let config =
            Config::from_settings(&[("SPOOL_DIR", &path), ("SPOOL_MAX", "128MiB")]).unwrap();
        let finding = spool_dir(config.spool.as_ref().unwrap(), 1);
        assert_ne!(finding.level, Level::Fail, "{}", finding.detail);
        assert_eq!(fs::read_dir(dir.path().join("spool")).unwrap().count(), 0);
        let shm = Path::new("/dev/shm");
        if rustix::fs::statfs(shm).is_ok_and(|fs| fs.f_type == libc::TMPFS_MAGIC) {
            let memory = tempfile::tempdir_in(shm).unwrap();
            let spool = SpoolOptions { dir: memory.path().into(), ..config.spool.unwrap() };
            assert!(spool_dir(&spool, 1).detail.contains("in memory"));
        }
    }

    #[test]
    fn a_tokens_file_must_be_readable() {
        let config = |path: &str| Config::from_settings(&[("TOKENS_FILE", path)]).unwrap();
        let missing = tokens(&config("no/such/tokens")).unwrap();
        assert_eq!(missing.level, Level::Fail);
        assert!(missing.detail.starts_with("no/such/tokens cannot be read"), "{}", missing.detail);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "a\nb\n").unwrap();
        let found = tokens(&config(file.path().to_str().unwrap())).unwrap();
        assert!(found.detail.ends_with("holds 2 tokens"), "{}", found.detail);
        assert_eq!(tokens(&Config::from_settings(&[]).unwrap()), None);
    }
}
