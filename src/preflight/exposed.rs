//! Directories and files that users other than this one and root may write to or, if they contain
//! secrets, read, and a listener that takes payloads from anybody. These are warnings, because a
//! host may have its reasons; each has the command that fixes it.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::Finding;
use crate::config::ListenAddress;

/// The bits of `chmod`.
const OTHERS_WRITE: u32 = 0o002;
const GROUP_WRITE: u32 = 0o020;
const STICKY: u32 = 0o1000;

/// The owner, group and permissions of a file.
#[derive(Clone, Copy)]
struct Owned {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Owned {
    fn of(found: &Metadata) -> Owned {
        Owned { uid: found.uid(), gid: found.gid(), mode: found.mode() & 0o7777 }
    }

    /// Whether its group includes others than the owner and this process. Many hosts give each user
    /// a group with the user's number, which does not.
    fn has_foreign_group(self, me: &Me) -> bool {
        self.gid != self.uid && self.gid != me.gid && self.gid != 0
    }

    /// Who, besides the owner, has access by the permission bits `others` or `group`.
    fn open_to(self, me: &Me, others: u32, group: u32) -> Option<String> {
        if self.mode & others != 0 {
            Some("every user of this host".into())
        } else if self.mode & group != 0 && self.has_foreign_group(me) {
            Some(format!("group {}", self.gid))
        } else {
            None
        }
    }
}

/// The user and group of this process.
struct Me {
    uid: u32,
    gid: u32,
}

impl Me {
    fn now() -> Me {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Me { uid: uid.as_raw(), gid: gid.as_raw() }
    }

    /// Whether the owner is as expected. Root checks on behalf of the user that the server will run
    /// as, so it accepts any.
    fn knows_owner(&self, owned: Owned) -> bool {
        self.uid == 0 || owned.uid == 0 || owned.uid == self.uid
    }
}

/// The finding for a directory that payloads go to; `None` if it does not exist yet.
pub(super) fn dir(name: &'static str, dir: &Path) -> Option<Finding> {
    let whole = fs::canonicalize(dir).ok()?;
    let me = Me::now();
    let owned = Owned::of(&fs::metadata(&whole).ok()?);
    judge_own(name, dir, owned, &me).or_else(|| {
        whole.ancestors().skip(1).find_map(|above| {
            judge_above(name, dir, above, Owned::of(&fs::metadata(above).ok()?), &me)
        })
    })
}

/// The finding for a file that anybody may read.
pub(super) fn file(name: &'static str, path: &Path) -> Option<Finding> {
    judge_own(name, path, Owned::of(&fs::metadata(path).ok()?), &Me::now())
}

/// The finding for a file that contains secrets.
pub(super) fn secret_file(name: &'static str, path: &Path) -> Option<Finding> {
    let (me, owned) = (Me::now(), Owned::of(&fs::metadata(path).ok()?));
    judge_own(name, path, owned, &me).or_else(|| judge_secret(name, path, owned, &me))
}

/// The finding for `LISTEN` where no token is asked for: only this host's own users may be trusted
/// without.
pub(super) fn listener(listen: &ListenAddress) -> Option<Finding> {
    let address = listen.address;
    if address.ip().to_canonical().is_loopback() {
        return None;
    }
    let who = match listen.proxies {
        None => "everybody who can reach it",
        Some(_) => "everybody whom its proxies let through",
    };
    let detail = format!("{address} takes payloads from {who}: no TOKENS_FILE");
    let remedy = format!(
        "set TOKENS_FILE, or LISTEN=127.0.0.1:{}; ignore this if a proxy or firewall lets only known clients through",
        address.port()
    );
    Some(Finding::warn("LISTEN", detail, remedy))
}

fn judge_own(name: &'static str, path: &Path, owned: Owned, me: &Me) -> Option<Finding> {
    let (shown, Owned { uid, mode, .. }) = (path.display(), owned);
    if let Some(whom) = owned.open_to(me, OTHERS_WRITE, GROUP_WRITE) {
        let detail = format!("{shown} (mode {mode:04o}) may be written to by {whom}");
        return Some(Finding::warn(name, detail, format!("chmod go-w {shown}")));
    }
    (!me.knows_owner(owned)).then(|| {
        let detail = format!("{shown} belongs to user {uid}, who may change what is in it");
        Finding::warn(name, detail, format!("chown {} {shown}", me.uid))
    })
}

/// Whoever may write to a directory may replace what is in it, unless it is sticky, as `/tmp` is.
fn judge_above(
    name: &'static str,
    path: &Path,
    above: &Path,
    owned: Owned,
    me: &Me,
) -> Option<Finding> {
    if owned.mode & STICKY != 0 {
        return None;
    }
    let whom = owned.open_to(me, OTHERS_WRITE, GROUP_WRITE)?;
    let (shown, above, mode) = (path.display(), above.display(), owned.mode);
    let detail =
        format!("{shown} may be replaced by {whom}: {above} (mode {mode:04o}) may be written to");
    Some(Finding::warn(name, detail, format!("chmod go-w {above}, or set {name}")))
}

fn judge_secret(name: &'static str, path: &Path, owned: Owned, me: &Me) -> Option<Finding> {
    let whom = owned.open_to(me, 0o004, 0o040)?;
    let (shown, mode) = (path.display(), owned.mode);
    let detail = format!("{shown} (mode {mode:04o}) may be read by {whom}");
    Some(Finding::warn(name, detail, format!("chmod go-rwx {shown}")))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use crate::config::Config;

    /// Mode, owner, group, and a word of each finding, or nothing.
    #[test]
    fn who_may_write_and_read() {
        let me = Me { uid: 1000, gid: 1000 };
        for (mode, uid, gid, own, above, secret) in [
            (0o700, 1000, 1000, "", "", ""),
            (0o755, 1000, 1000, "", "", "every user"),
            (0o750, 1000, 5, "", "", "group 5"),
            (0o750, 1000, 1000, "", "", ""),
            (0o770, 1000, 1000, "", "", ""),
            (0o770, 1000, 5, "group 5", "group 5", "group 5"),
            (0o777, 1000, 1000, "every user", "every user", "every user"),
            (0o1777, 0, 0, "every user", "", "every user"),
            (0o702, 1000, 1000, "every user", "every user", ""),
            // Another user's, and root's.
            (0o700, 7, 7, "user 7", "", ""),
            (0o770, 7, 7, "user 7", "", ""),
            (0o775, 0, 0, "", "", "every user"),
        ] {
            let owned = Owned { uid, gid, mode };
            let path = Path::new("/srv/x");
            for (what, said, found) in [
                ("own", own, judge_own("X", path, owned, &me)),
                ("above", above, judge_above("X", path, Path::new("/srv"), owned, &me)),
                ("secret", secret, judge_secret("X", path, owned, &me)),
            ] {
                let text = found.as_ref().map_or("", |finding| &finding.detail);
                assert_eq!(found.is_none(), said.is_empty(), "{mode:o} {uid} {gid} {what}: {text}");
                assert!(text.contains(said), "{mode:o} {uid} {gid} {what}: {text}");
                assert!(found.is_none_or(|f| f.level == Level::Warn && f.remedy.is_some()));
            }
        }
        // Root cannot know whom the server will run as.
        let (root, path) = (Me { uid: 0, gid: 0 }, Path::new("/srv/x"));
        assert_eq!(judge_own("X", path, Owned { uid: 7, gid: 7, mode: 0o700 }, &root), None);
    }

    #[test]
    fn a_listener_without_tokens_is_for_this_host() {
        for (listen, is_open) in [
            ("127.0.0.1:8080", false),
            ("127.8.9.1:8080", false),
            ("[::1]:8080", false),
            ("[::ffff:127.0.0.1]:8080", false),
            ("0.0.0.0:8080", true),
            ("[::]:8080", true),
            ("10.0.0.1:8080", true),
            ("[::ffff:10.0.0.1]:8080", true),
            ("[fd00::1]:8080", true),
        ] {
            let config = Config::from_settings(&[("LISTEN", listen)]).unwrap();
            let finding = listener(&config.listen[0]);
            assert_eq!(finding.is_some(), is_open, "{listen}");
            if let Some(Finding { level, detail, remedy, .. }) = finding {
                assert_eq!(level, Level::Warn);
                assert!(detail.starts_with(listen) && remedy.unwrap().contains("TOKENS_FILE"));
            }
        }
    }

    #[test]
    fn the_directories_above_count() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        assert_eq!(dir("SPOOL_DIR", &inner), None);
        set(&root.path().join("a"), 0o777);
        let detail = dir("SPOOL_DIR", &inner).unwrap().detail;
        assert!(detail.contains("may be replaced by every user"), "{detail}");
        set(&inner, 0o777);
        let detail = dir("SPOOL_DIR", &inner).unwrap().detail;
        assert!(detail.contains("b (mode 0777) may be written to by every user"), "{detail}");
        assert_eq!(dir("SPOOL_DIR", &root.path().join("none")), None);
    }
}
