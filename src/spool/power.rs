//! What the tests note of a disk's writes and syncs.

use std::path::Path;

pub(super) fn note_write(_path: &Path, _at: u64, _bytes: &[u8]) {}
pub(super) fn note_sync(_path: &Path) {}
