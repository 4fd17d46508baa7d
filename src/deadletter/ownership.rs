//! Whose files are that a command makes as root: the server, which is another user, must be able to
//! read and remove them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::Path;

/// Gives a file that root has just made to the user to whom its directory belongs. Only of a file
/// that did not exist before (`O_EXCL`): otherwise that user could have made a link there.
///
/// # Errors
/// The directory cannot be looked at, or the kernel refuses.
pub fn give_to_owner_of_directory(file: &File, path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let about = fs::metadata(directory)?;
    match about.uid() {
        0 => Ok(()),
        owner => fchown(file, Some(owner), Some(about.gid())),
    }
}

/// Gives a new file the owner and group of the one that it will replace.
///
/// # Errors
/// The kernel refuses, which it does for everybody but root if they differ.
pub(super) fn give_to_owner_of(file: &File, replaced: &File) -> io::Result<()> {
    let (new, old) = (file.metadata()?, replaced.metadata()?);
    if (new.uid(), new.gid()) == (old.uid(), old.gid()) {
        return Ok(());
    }
    fchown(file, Some(old.uid()), Some(old.gid()))
}
