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

/// Permissions of a directory's or a file's owner, group and others.
const PERMISSIONS: u32 = 0o777;

/// `FILE_MODE`: permissions of stored files, from which those of directories follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(u32);

impl FileMode {
    /// Parses `0640` or `640`: three octal digits. The owner's is 6, because the store reads and
    /// writes; the others are 0, 2, 4 or 6, because stored files are not executable.
    pub fn parse(text: &str) -> Option<FileMode> {
        let digits = match text.len() {
            4 => text.strip_prefix('0')?,
            _ => text,
        };
        let owned = digits.len() == 3 && digits.starts_with('6');
        let plain = digits.bytes().all(|digit| matches!(digit, b'0' | b'2' | b'4' | b'6'));
        (owned && plain).then(|| u32::from_str_radix(digits, 8).ok().map(FileMode))?
    }

    pub fn of_files(self) -> u32 {
        self.0
    }

    /// Whoever may read a file may also enter its directories.
    pub fn of_directories(self) -> u32 {
        self.0 | (self.0 & 0o444) >> 2
    }

    /// Whether a file created in `directory` with this mode gets another one, so that it must be
    /// set. Blocks.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_three_octal_digits_of_reading_and_writing() {
        for (text, expected) in [
            ("0600", Some((0o600, 0o700))),
            ("600", Some((0o600, 0o700))),
            ("0640", Some((0o640, 0o750))),
            ("0644", Some((0o644, 0o755))),
            ("0660", Some((0o660, 0o770))),
            ("0666", Some((0o666, 0o777))),
            ("0620", Some((0o620, 0o720))),
            ("0400", None),
            ("0700", None),
            ("0645", None),
            ("4600", None),
            ("00600", None),
            ("0o600", None),
            ("+600", None),
            ("60", None),
            ("384", None),
            ("u=rw", None),
            ("٦٠٠", None),
            ("", None),
        ] {
            let modes = FileMode::parse(text).map(|m| (m.of_files(), m.of_directories()));
            assert_eq!(modes, expected, "{text:?}");
        }
    }
}
