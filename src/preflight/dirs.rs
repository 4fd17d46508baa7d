//! The directories in the configuration: the `file:` store's, the dead letters', the spool's.
//!
//! A start creates missing ones and writes a probe file into each. `check` must not change
//! anything, so it only asks the kernel whether this user could ([`Mode`]).

#![expect(clippy::disallowed_methods, reason = "runs before any executor")]

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process;

use bytesize::ByteSize;
use rustix::fs::{Access, AtFlags, CWD, OFlags, accessat};
use rustix::io::Errno;

use super::{Finding, Mode, exposed};
use crate::config::{Config, SpoolOptions, StoreUrl};
use crate::deadletter::create_dir;
use crate::key::{KeyTemplate, is_in_temporary};
use crate::store::file::obstacle::{self, Mount};

/// The store's directory, if it is a `file:` store.
pub(super) fn store(config: &Config, mode: Mode) -> Vec<Finding> {
    match &config.store {
        StoreUrl::File(dir) => {
            // With the same permissions as the store itself.
            let make = |dir: &Path| config.file_mode.create_dir_all(dir);
            let finding = judge_dir("STORE", dir, &look(dir, mode, make));
            let obstacles = obstacles(&config.keys, dir);
            [finding].into_iter().chain(obstacles).chain(exposed::dir("STORE", dir)).collect()
        }
        StoreUrl::Null => vec![Finding::warn(
            "STORE",
            "null: confirms every payload and keeps none",
            "set STORE to file:DIR or s3://BUCKET/PREFIX outside benchmarks",
        )],
        // The store's probe checks the bucket.
        StoreUrl::S3 { .. } => Vec::new(),
    }
}

/// Entries of a `file:` store that are looked at: each can be a request to a file server.
const ENTRIES_MAX: usize = 10_000;

/// What is in the store and cannot be a directory of it, where a client's value can name it. Only a
/// warning, because it can also come later, and harms only the payloads that name it.
fn obstacles(keys: &KeyTemplate, dir: &Path) -> Option<Finding> {
    let above = keys.above_values()?;
    let place = above.iter().fold(dir.to_owned(), |place, name| place.join(name));
    let mount = Mount::of(dir)?;
    let named = |name: &str| {
        let names: Vec<&str> = above.iter().map(String::as_str).chain([name]).collect();
        !is_in_temporary(&names.join("/")) && keys.can_lie_in(names.into_iter())
    };
    let entries = fs::read_dir(&place).ok()?.take(ENTRIES_MAX).filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut found: Vec<(String, &str)> = names
        .filter(|name| named(name))
        .filter_map(|name| obstacle::at(&place.join(&name), mount).map(|why| (name, why)))
        .collect();
    found.sort_unstable();
    let (first, why) = found.first()?;
    let more = match found.len() - 1 {
        0 => String::new(),
        more => format!(" ({more} more like it)"),
    };
    let (shown, first) = (dir.display(), place.join(first));
    let first = first.display();
    Some(Finding::warn(
        "STORE",
        format!("{first} {why}{more}, but KEY lets payloads name it: those become dead letters"),
        format!("set STORE to a directory of its own, such as file:{shown}/own, or move it away"),
    ))
}

/// `DEAD_LETTER_DIR`.
pub(super) fn dead_letters(config: &Config, mode: Mode) -> Vec<Finding> {
    const NAME: &str = "DEAD_LETTER_DIR";
    let dir = &config.dead_letter_dir;
    let found = look(dir, mode, create_dir);
    let finding = match found.as_ref().ok().and_then(|found| free(&found.existing)) {
        Some(free) if free < config.dead_letter_max => {
            judge_room(dir, free, config.dead_letter_max)
        }
        _ => judge_dir(NAME, dir, &found),
    };
    [finding].into_iter().chain(exposed::dir(NAME, dir)).collect()
}

/// `SPOOL_DIR`, if set.
/// `used` is how much of it a running server uses already.
pub(super) fn spool(config: &Config, mode: Mode, used: u64) -> Vec<Finding> {
    let Some(spool) = &config.spool else { return Vec::new() };
    let finding = spool_dir(spool, config.cores.len() as u64, mode, used);
    [finding].into_iter().chain(exposed::dir("SPOOL_DIR", &spool.dir)).collect()
}

/// `SPOOL_DIR` must be writable with direct I/O, should survive a reboot, and should have enough
/// free space besides what is `used`.
fn spool_dir(spool: &SpoolOptions, cores: u64, mode: Mode, used: u64) -> Finding {
    let dir = &spool.dir;
    let shown = dir.display();
    let found = look(dir, mode, create_dir);
    let Ok(UsableDir { existing, .. }) = &found else { return judge_dir("SPOOL_DIR", dir, &found) };
    match is_in_memory(existing) {
        true => Finding::warn(
            "SPOOL_DIR",
            format!(
                "{shown} is in memory (tmpfs): payloads spooled there are lost when the host stops"
            ),
            "set SPOOL_DIR to a directory on a disk",
        ),
        false => match try_direct(existing, mode) {
            Err(error) => Finding::fail(
                "SPOOL_DIR",
                format!("{shown} does not support direct I/O (O_DIRECT): {error}"),
                "set SPOOL_DIR to a directory on a local disk with ext4, XFS or the like",
            ),
            Ok(()) => {
                let free = free(existing).map(|free| free.saturating_add(used));
                let room = judge_spool_room(dir, free, spool.max.saturating_mul(cores));
                room.unwrap_or_else(|| judge_dir("SPOOL_DIR", dir, &found))
            }
        },
    }
}

/// Whether `dir` is in memory (tmpfs), so that a stop of the host empties it.
pub fn is_in_memory(dir: &Path) -> bool {
    rustix::fs::statfs(dir).is_ok_and(|fs| fs.f_type == libc::TMPFS_MAGIC)
}

/// A directory that can be written to, or created.
struct UsableDir {
    /// The directory itself or, if it does not exist yet, its nearest existing ancestor.
    existing: PathBuf,
    is_made: bool,
}

/// Whether `dir` can be written to. A start tries it, after `make`; `check` only asks the kernel.
fn look(dir: &Path, mode: Mode, make: impl Fn(&Path) -> io::Result<()>) -> io::Result<UsableDir> {
    match mode {
        Mode::Start => {
            make(dir)?;
            try_dir(dir)?;
            Ok(UsableDir { existing: dir.to_owned(), is_made: true })
        }
        Mode::Check | Mode::Starting | Mode::Running => judge_access(dir),
    }
}

/// Whether this user could write to `dir` or create it, without changing anything.
fn judge_access(dir: &Path) -> io::Result<UsableDir> {
    let whole = std::path::absolute(dir)?;
    for existing in whole.ancestors() {
        match fs::metadata(existing) {
            Ok(found) if !found.is_dir() => return Err(ErrorKind::NotADirectory.into()),
            Ok(_) => {
                accessat(CWD, existing, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?;
                // The kernel grants access to a full disk too.
                if free(existing) == Some(0) {
                    return Err(ErrorKind::StorageFull.into());
                }
                return Ok(UsableDir { existing: existing.to_owned(), is_made: existing == whole });
            }
            // A dangling link would block the creation of the directory.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if fs::symlink_metadata(existing).is_ok() {
                    return Err(ErrorKind::AlreadyExists.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::NotFound.into())
}

/// Writes, syncs and removes a file in `dir`.
fn try_dir(dir: &Path) -> io::Result<()> {
    let probe = dir.join(format!(".millrace-probe-{}", process::id()));
    let written = File::create(&probe).and_then(|mut file| {
        file.write_all(b"probe")?;
        file.sync_all()
    });
    let removed = fs::remove_file(&probe);
    written.and(removed)
}

/// Opens a file for direct I/O, as the spool does. `check` uses a file without a name, if the file
/// system supports that.
fn try_direct(dir: &Path, mode: Mode) -> io::Result<()> {
    if mode != Mode::Start {
        let flags = OFlags::TMPFILE | OFlags::DIRECT | OFlags::WRONLY | OFlags::CLOEXEC;
        return match rustix::fs::open(dir, flags, 0o600.into()) {
            Ok(_) | Err(Errno::OPNOTSUPP | Errno::ISDIR) => Ok(()),
            Err(error) => Err(error.into()),
        };
    }
    let probe = dir.join(format!(".millrace-direct-{}", process::id()));
    let opened = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(&probe);
    let removed = fs::remove_file(&probe);
    opened.map(drop).and(removed)
}

/// Free bytes that this user may use there.
fn free(dir: &Path) -> Option<u64> {
    rustix::fs::statvfs(dir).map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize)).ok()
}

fn judge_dir(name: &'static str, dir: &Path, outcome: &io::Result<UsableDir>) -> Finding {
    let shown = dir.display();
    let error = match outcome {
        Ok(UsableDir { is_made: true, .. }) => {
            return Finding::ok(name, format!("{shown} is writable"));
        }
        Ok(UsableDir { existing, .. }) => {
            let above = existing.display();
            return Finding::ok(
                name,
                format!(
                    "{shown} does not exist; the server creates it, because {above} is writable"
                ),
            );
        }
        Err(error) => error,
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

/// A warning if there is less space than the spool may need.
fn judge_spool_room(dir: &Path, free: Option<u64>, wanted: u64) -> Option<Finding> {
    let shown = dir.display();
    let free = free.filter(|free| *free < wanted)?;
    let (free, wanted) = (ByteSize(free), ByteSize(wanted));
    Some(Finding::warn(
        "SPOOL_DIR",
        format!(
            "{shown} is writable, but {free} free is less than SPOOL_MAX on every core ({wanted})"
        ),
        format!("df -h {shown}: make room, or lower SPOOL_MAX"),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    const MODES: [Mode; 2] = [Mode::Start, Mode::Check];

    fn store_dir(dir: &Path, mode: Mode) -> Finding {
        judge_dir("STORE", dir, &look(dir, mode, |dir| fs::create_dir_all(dir)))
    }

    #[test]
    fn a_start_makes_directories_and_leaves_no_probe() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        assert_eq!(store_dir(&dir, Mode::Start).level, Level::Ok);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[test]
    fn judging_says_what_a_start_would_find_and_makes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        let finding = store_dir(&dir, Mode::Check);
        assert_eq!(finding.level, Level::Ok, "{}", finding.detail);
        let above = root.path().display();
        assert!(finding.detail.contains("the server creates it"), "{}", finding.detail);
        assert!(
            finding.detail.contains(&format!("because {above} is writable")),
            "{}",
            finding.detail
        );
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_in_the_way_is_refused_in_either_mode() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "x").unwrap();
        let nowhere = root.path().join("link");
        std::os::unix::fs::symlink("no/such/place", &nowhere).unwrap();
        for mode in MODES {
            for blocked in
                [file.clone(), file.join("below"), nowhere.clone(), nowhere.join("below")]
            {
                let finding = store_dir(&blocked, mode);
                assert_eq!(finding.level, Level::Fail, "{blocked:?}: {}", finding.detail);
                let remedy = finding.remedy.unwrap();
                assert!(remedy.contains("a file is in the way"), "{blocked:?}: {remedy}");
            }
        }
        let proc = store_dir(Path::new("/proc/millrace"), Mode::Check);
        assert_eq!(proc.level, Level::Fail, "{}", proc.detail);
    }

    #[test]
    fn what_payloads_can_name_in_a_store_is_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        fs::create_dir_all(dir.join("events/acme")).unwrap();
        fs::create_dir(dir.join(".millrace-tmp")).unwrap();
        let said = |key: &str| {
            let keys =
                KeyTemplate::parse(&format!("{key}{{node}}-{{core}}-{{seq}}"), None).unwrap();
            obstacles(&keys, dir).map(|finding| {
                assert_eq!(finding.level, Level::Warn);
                format!("{}; {}", finding.detail, finding.remedy.unwrap())
            })
        };
        assert_eq!(said("{field:/t}/"), None, "directories and the store's own");
        fs::write(dir.join("tokens"), "x").unwrap();
        std::os::unix::fs::symlink("nowhere", dir.join("zz")).unwrap();
        fs::write(dir.join("events/t=_SUCCESS"), "").unwrap();
        let top = said("{field:/t}/").unwrap();
        assert!(top.contains("/tokens is not a directory (1 more like it), but KEY"), "{top}");
        assert!(top.contains(&format!("file:{}/own,", dir.display())), "{top}");
        for key in ["events/{field:/t}/", "events/t={version}/", "events/{field:/t}S/"] {
            let below = said(key).unwrap();
            assert!(below.contains("events/t=_SUCCESS is not a directory, but"), "{key}: {below}");
        }
        for key in ["", "{field:/t}-", "x={field:/t}/", "{field:/t}.d/", "{date:%Y}/{field:/t}/"] {
            assert_eq!(said(key), None, "{key}");
        }
        let other_mount = Path::new("/proc");
        if Mount::of(other_mount) != Mount::of(dir) {
            fs::remove_file(dir.join("tokens")).unwrap();
            std::os::unix::fs::symlink(other_mount, dir.join("proc")).unwrap();
            let top = said("{version}/").unwrap();
            assert!(top.contains("/proc is on another mount (1 more"), "{top}");
        }
    }

    #[test]
    fn directory_refusals_name_what_mends_them() {
        let judge = |kind: ErrorKind| {
            judge_dir("DEAD_LETTER_DIR", Path::new("/x"), &Err(kind.into())).remedy.unwrap()
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
        let room = judge_spool_room(dir.path(), Some(5 << 20), 1 << 30).unwrap();
        assert!(room.level == Level::Warn && room.detail.contains("5.0 MiB"), "{}", room.detail);
        assert_eq!(judge_spool_room(dir.path(), Some(1 << 30), 1 << 30), None);
        let path = dir.path().join("spool").to_str().unwrap().to_owned();
        let config =
            Config::from_settings(&[("SPOOL_DIR", &path), ("SPOOL_MAX", "128MiB")]).unwrap();
        let options = config.spool.unwrap();
        let judged = spool_dir(&options, 1, Mode::Check, 0);
        assert_ne!(judged.level, Level::Fail, "{}", judged.detail);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let finding = spool_dir(&options, 1, Mode::Start, 0);
        assert_ne!(finding.level, Level::Fail, "{}", finding.detail);
        assert_eq!(fs::read_dir(dir.path().join("spool")).unwrap().count(), 0);
        let shm = Path::new("/dev/shm");
        if rustix::fs::statfs(shm).is_ok_and(|fs| fs.f_type == libc::TMPFS_MAGIC) {
            let memory = tempfile::tempdir_in(shm).unwrap();
            let spool = SpoolOptions { dir: memory.path().join("s"), ..options };
            for mode in MODES {
                assert!(spool_dir(&spool, 1, mode, 0).detail.contains("in memory"));
            }
        }
    }
}
