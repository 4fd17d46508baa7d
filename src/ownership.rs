//! Whose files and directories are that root makes, as a command does under `sudo`: the server, which is
//! another user, must be able to read and remove them. They belong to the owner of the directory that
//! they are made in.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::Path;

/// Gives a file that root has just made to the user to whom its directory belongs. Only of a file
/// that did not exist before (`O_EXCL`): otherwise that user could have made a link there.
///
/// # Errors
/// The directory cannot be looked at, or the kernel refuses.
pub fn give_to_owner_of_directory(file: &File, path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match owner_to_give_to(directory)? {
        None => Ok(()),
        Some([user, group]) => fchown(file, Some(user), Some(group)),
    }
}

/// As `fs::create_dir_all`; what root makes belongs to the owner of the directory that it is in. Blocks.
///
/// # Errors
/// One cannot be created, or not be given to its owner.
pub fn create_dir_all(directory: &Path) -> io::Result<()> {
    if directory.as_os_str().is_empty() || directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        create_dir_all(parent)?;
    }
    match fs::create_dir(directory) {
        Err(_) if directory.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => give_to_owner_of_parent(directory),
    }
}

/// Gives a directory that root has just made to the user to whom the one above it belongs.
///
/// # Errors
/// As [`give_to_owner_of_directory`].
pub fn give_to_owner_of_parent(directory: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // That user may have put something else there meanwhile.
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(directory)?;
    give_to_owner_of_directory(&opened, directory)
}

/// User and group of what is made in `directory`, if they are not those of this process, root.
///
/// # Errors
/// The directory cannot be looked at.
pub fn owner_to_give_to(directory: &Path) -> io::Result<Option<[u32; 2]>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let about = fs::metadata(directory)?;
    Ok((about.uid() != 0).then(|| [about.uid(), about.gid()]))
}

/// Gives a new file the owner and group of the one that it will replace.
///
/// # Errors
/// The kernel refuses, which it does for everybody but root if they differ.
pub fn give_to_owner_of(file: &File, replaced: &File) -> io::Result<()> {
    let (new, old) = (file.metadata()?, replaced.metadata()?);
    if (new.uid(), new.gid()) == (old.uid(), old.gid()) {
        return Ok(());
    }
    fchown(file, Some(old.uid()), Some(old.gid()))
}
