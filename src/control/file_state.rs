//! What of a file tells that it has changed.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// What of a file differs after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileState {
    file: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// A pipe, socket or device, which is read on SIGHUP only.
    pub(super) is_stream: bool,
}

impl FileState {
    /// `None` if there is no file, or none that can be looked at.
    pub(super) fn of(path: &Path) -> Option<FileState> {
        let found = std::fs::metadata(path).ok()?;
        let kind = found.file_type();
        let is_device = kind.is_char_device() || kind.is_block_device();
        Some(FileState {
            file: (found.dev(), found.ino()),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
            is_stream: is_device || kind.is_fifo() || kind.is_socket(),
        })
    }
}
