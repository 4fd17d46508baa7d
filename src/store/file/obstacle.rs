//! What can be in the place of a key's directory without being usable as one: `lost+found` at the
//! root of a disk, a snapshot that cannot be written, a plain file, another mount.
//!
//! The store did not make it, and only keys through it fail. So such a failure concerns the object,
//! while the same error on the store's own directory concerns every object. A rename from
//! [`TEMPORARY`] must not cross mounts, so a directory on another one is an obstacle too.

use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, FileType, Statx, StatxFlags, accessat, statx};
use rustix::io::Errno;

use crate::key::TEMPORARY;

/// Which mount of which file system a directory is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount {
    device: (u32, u32),
    id: u64,
}

impl Mount {
    /// `None` if there is nothing at `path`. Blocks.
    pub fn of(path: &Path) -> Option<Mount> {
        look(path, AtFlags::empty()).ok().map(|found| Mount::found(&found))
    }

    fn found(found: &Statx) -> Mount {
        Mount { device: (found.stx_dev_major, found.stx_dev_minor), id: found.stx_mnt_id }
    }
}

fn look(path: &Path, flags: AtFlags) -> Result<Statx, Errno> {
    statx(CWD, path, flags, StatxFlags::TYPE | StatxFlags::MNT_ID)
}

/// Why a store on `mount` cannot use what is at `path` as a directory of its own; `None` if it can,
/// or if nothing is there. Blocks.
pub fn at(path: &Path, mount: Mount) -> Option<&'static str> {
    let Ok(found) = look(path, AtFlags::empty()) else {
        let is_link = look(path, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        return is_link.then_some("is a link that cannot be followed");
    };
    if FileType::from_raw_mode(found.stx_mode.into()) != FileType::Directory {
        Some("is not a directory")
    } else if Mount::found(&found) != mount {
        Some("is on another mount")
    } else if !may_use(path) {
        Some("is not writable and readable")
    } else {
        None
    }
}

/// Reading is needed to sync it.
fn may_use(path: &Path) -> bool {
    let access = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    !matches!(
        accessat(CWD, path, access, AtFlags::EACCESS),
        Err(Errno::ACCESS | Errno::PERM | Errno::ROFS)
    )
}

/// The mount of a store that can be written to; `None` if all keys fail. Blocks.
fn working(root: &Path) -> Option<Mount> {
    let temporary = root.join(TEMPORARY);
    let mount = Mount::of(root)?;
    let works = |path| at(path, mount).is_none() && Mount::of(path).is_some();
    (works(root) && works(&temporary)).then_some(mount)
}

/// What is in the place of `directory`, or of one between it and `root`, as a sentence; `None`
/// unless the store itself works, before and after. Blocks.
pub(super) fn on_the_way(directory: &Path, root: &Path) -> Option<String> {
    let mount = working(root)?;
    let below = directory.ancestors().take_while(|path| *path != root);
    let (path, why) = below.filter_map(|path| Some((path, at(path, mount)?))).last()?;
    // A mount that comes and goes meanwhile is nobody's fault.
    (working(root) == Some(mount)).then_some(())?;
    let name = path.strip_prefix(root).unwrap_or(path).display();
    Some(format!("{name} in the store's directory {why}"))
}
