//! Permissions of what a `file:` store creates: exactly those of `FILE_MODE`, whatever the umask
//! is.
//!
//! A file is created with its mode, but the umask or a default ACL of the directory may remove
//! permissions. At start a test file shows whether the mode must also be set afterwards. A
//! directory is checked whenever one is created. What existed before the store keeps its
//! permissions.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::config::FileMode;
use crate::ownership::give_to_owner_of_parent;

/// Permissions of a directory's or a file's owner, group and others.
const PERMISSIONS: u32 = 0o777;

impl FileMode {
    /// Whether a file made in `directory` with this mode has another one and has to be given it.
    /// Blocks.
    ///
    /// # Errors
    /// No file can be created there.
    #[expect(clippy::disallowed_methods, reason = "runs before the executors serve anything")]
    pub(super) fn has_to_be_set(self, directory: &Path) -> io::Result<bool> {
        let probe = directory.join(format!("mode-{}", std::process::id()));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(self.of_files())
            .open(&probe)?;
        let made = file.metadata()?.mode() & PERMISSIONS;
        let set = set(&probe, self.of_files());
        fs::remove_file(&probe)?;
        match set {
            Ok(set) => Ok(set),
            // A file system without permissions, such as FAT. Failing every put would not help.
            Err(error) => {
                let directory = directory.display();
                tracing::warn!(
                    "FILE_MODE={:04o} cannot be set below {directory} ({error}); files have {made:04o}",
                    self.of_files()
                );
                Ok(false)
            }
        }
    }

    /// Sets the mode of the file at `path`. Blocks.
    pub(super) fn set_on_file(self, path: &Path) -> io::Result<()> {
        set(path, self.of_files()).map(drop)
    }

    /// As `fs::create_dir_all`, with the mode of directories for those it creates. Blocks.
    pub(crate) fn create_dir_all(self, path: &Path) -> io::Result<()> {
        match self.create_dir(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(_) if path.is_dir() => return Ok(()),
            made => return made,
        }
        if let Some(parent) = path.parent() {
            self.create_dir_all(parent)?;
        }
        match self.create_dir(path) {
            Err(_) if path.is_dir() => Ok(()),
            made => made,
        }
    }

    fn create_dir(self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(self.of_directories()).create(path)?;
        give_to_owner_of_parent(path)?;
        match set(path, self.of_directories()) {
            // Ours, so it is the file system that has no permissions; reported once, for files.
            Err(error)
                if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) =>
            {
                Ok(())
            }
            set => set.map(drop),
        }
    }
}

/// Gives `path` these permissions unless it has them, and returns whether it had others. Other bits
/// stay: a directory in one with the set-group-ID bit has it too.
fn set(path: &Path, permissions: u32) -> io::Result<bool> {
    let mode = fs::metadata(path)?.mode() & 0o7777;
    let differs = mode & PERMISSIONS != permissions;
    if differs {
        let mode = mode & !PERMISSIONS | permissions;
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    Ok(differs)
}
