//! `TOKENS_FILE` while the server runs: read again on SIGHUP and whenever it has changed.
//!
//! A change is looked for every [`POLL`], by the file's identity, length and times; `stat` follows
//! symbolic links, so the swap of a link is a change as well, as Kubernetes makes it when a mounted
//! secret is updated. A changed file is read once it has stayed the same for one poll, because
//! editors and copies empty a file before they fill it. A file that is refused leaves the tokens
//! that were read before in effect.
//!
//! The cores read the new set with their next requests. An old set is kept here until no core has
//! it, so that no core spends its time on freeing 40 MB.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::http::tokens::{SharedTokens, TokenSet, TokensError};
use crate::metrics::tokens::TokenMetrics;

/// How often the file is looked at. A change is in effect after at most two polls and the time to
/// read the file.
pub(super) const POLL: Duration = Duration::from_secs(1);

/// The file, and what is published of it.
pub(super) struct TokensFile {
    path: PathBuf,
    shared: SharedTokens,
    /// The file as it was when it was last read, whether or not it was accepted.
    read: Option<FileState>,
    /// The file as the last poll saw it.
    seen: Option<FileState>,
    /// The reason for which the file could not be opened or read, while it is tried again.
    unreadable: Option<String>,
    /// Earlier sets that a core may still have: at most one per core.
    retired: Vec<Arc<TokenSet>>,
}

/// What of a file differs after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileState {
    file: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// A pipe is read on SIGHUP only.
    is_regular: bool,
}

impl FileState {
    /// `None` if there is no file, or none that can be looked at.
    fn of(path: &Path) -> Option<FileState> {
        let found = std::fs::metadata(path).ok()?;
        Some(FileState {
            file: (found.dev(), found.ino()),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
            is_regular: found.is_file(),
        })
    }
}

/// Why the tokens read before stay in effect.
enum Kept {
    Refused(TokensError),
    /// It changed while it was read, so what was read may be half of it.
    Unsteady,
}

impl TokensFile {
    /// `shared` has the set that was read at the start.
    /// Reads the file for the start.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn open(
        path: PathBuf,
        metrics: &'static TokenMetrics,
    ) -> Result<TokensFile, TokensError> {
        // Seen before it is read: if it changes meanwhile, a poll finds that out.
        let state = FileState::of(&path);
        let set = TokenSet::load(&path, &metrics.names)?;
        metrics.tokens.set(set.len() as u64);
        let shared = SharedTokens { set: Arc::new(ArcSwap::from_pointee(set)), metrics };
        let (read, seen) = (state, state);
        Ok(TokensFile { path, shared, read, seen, unreadable: None, retired: Vec::new() })
    }

    /// What the cores read.
    pub(super) fn shared(&self) -> SharedTokens {
        self.shared.clone()
    }

    /// Reads the file now, and says in one line what is in effect.
    pub(super) fn reload(&mut self) {
        self.unreadable = None;
        self.try_read();
    }

    fn try_read(&mut self) {
        match self.read() {
            Ok(()) => {
                let (shown, set) = (self.path.display(), self.shared.set.load());
                tracing::info!(
                    "reload: TOKENS_FILE {shown}: {} tokens are accepted from now on{}",
                    set.len(),
                    set.beyond_names()
                );
            }
            Err(kept) => self.keep(kept),
        }
    }

    /// Reads the file if it has changed and is steady.
    pub(super) fn poll(&mut self) {
        self.free_retired();
        let state = FileState::of(&self.path);
        let is_steady = std::mem::replace(&mut self.seen, state) == state;
        let is_new = state != self.read || self.unreadable.is_some();
        if is_steady && is_new && state.is_none_or(|state| state.is_regular) {
            self.try_read();
        }
    }

    /// A set that only this list has is in no core's view.
    fn free_retired(&mut self) {
        self.retired.retain(|set| Arc::strong_count(set) > 1);
    }

    fn read(&mut self) -> Result<(), Kept> {
        let before = FileState::of(&self.path);
        let read = TokenSet::load(&self.path, &self.shared.metrics.names);
        let after = FileState::of(&self.path);
        self.seen = after;
        let is_pipe = after.is_some_and(|state| !state.is_regular);
        if before != after && !is_pipe {
            return Err(Kept::Unsteady);
        }
        self.read = after;
        let set = read.map_err(Kept::Refused)?;
        self.unreadable = None;
        let metrics = self.shared.metrics;
        metrics.tokens.set(set.len() as u64);
        metrics.reload_failing.set(0);
        self.free_retired();
        self.retired.push(self.shared.set.swap(Arc::new(set)));
        Ok(())
    }

    /// The tokens read before stay in effect.
    fn keep(&mut self, kept: Kept) {
        let (shown, count) = (self.path.display(), self.shared.set.load().len());
        let error = match kept {
            // The next polls read it.
            Kept::Unsteady => {
                return tracing::info!(
                    "reload: TOKENS_FILE {shown} is being written; it is read once it stays the same for {POLL:?}"
                );
            }
            Kept::Refused(error) => error,
        };
        let text = error.to_string();
        // It is tried at every poll, and said once.
        let is_repeated = self.unreadable.as_ref() == Some(&text);
        self.unreadable = matches!(error, TokensError::Unreadable(_)).then_some(text);
        if is_repeated {
            return;
        }
        let metrics = self.shared.metrics;
        metrics.reload_failures.inc();
        metrics.reload_failing.set(1);
        tracing::error!(
            "reload: TOKENS_FILE {shown} {error}; the {count} tokens read before stay accepted"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
    }

    fn has(file: &TokensFile, token: &str) -> bool {
        file.shared.set.load().find(token.as_bytes()).is_some()
    }

    /// A file with one token, `old`, as a start has read it.
    fn opened(dir: &Path) -> (PathBuf, TokensFile) {
        let path = dir.join("tokens");
        write(&path, "old\n");
        let file = TokensFile::open(path.clone(), TokenMetrics::leaked(1)).unwrap();
        (path, file)
    }

    #[test]
    fn a_change_is_taken_once_it_is_steady() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut file) = opened(dir.path());
        file.poll();
        // As an editor or a copy does it.
        for half in ["", "ne", "new\nmo"] {
            write(&path, half);
            file.poll();
            assert!(has(&file, "old") && !has(&file, "ne"), "{half:?}");
        }
        write(&path, "new\nmore;name=n\n");
        file.poll();
        assert!(has(&file, "old"));
        file.poll();
        assert!(!has(&file, "old") && has(&file, "new") && has(&file, "more"));
        let metrics = file.shared.metrics;
        assert_eq!((metrics.tokens.value(), metrics.reload_failures.value()), (2, 0));
        // Nothing is read again without a change.
        let set = file.shared.set.load_full();
        file.poll();
        file.poll();
        assert!(Arc::ptr_eq(&set, &file.shared.set.load_full()));
    }

    #[test]
    fn a_link_that_is_swapped_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        for (version, text) in [("1", "old\n"), ("2", "new\n")] {
            std::fs::create_dir(dir.path().join(version)).unwrap();
            write(&dir.path().join(version).join("tokens"), text);
        }
        // As Kubernetes lays a secret out: the file is a link through a link to a directory.
        let swap = |version: &str| {
            let fresh = dir.path().join("..data_tmp");
            std::os::unix::fs::symlink(version, &fresh).unwrap();
            std::fs::rename(fresh, dir.path().join("..data")).unwrap();
        };
        swap("1");
        std::os::unix::fs::symlink("..data/tokens", &path).unwrap();
        let mut file = TokensFile::open(path, TokenMetrics::leaked(1)).unwrap();
        assert!(has(&file, "old"));
        swap("2");
        file.poll();
        file.poll();
        assert!(has(&file, "new") && !has(&file, "old"));
    }

    #[test]
    fn a_bad_file_is_counted_once_and_leaves_the_old_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut file) = opened(dir.path());
        let metrics = file.shared.metrics;
        let figures = || (metrics.reload_failures.value(), metrics.reload_failing.value());
        write(&path, "new\ntwo words\n");
        for _ in 0..4 {
            file.poll();
        }
        assert_eq!((figures(), has(&file, "old"), has(&file, "new")), ((1, 1), true, false));
        std::fs::remove_file(&path).unwrap();
        for _ in 0..4 {
            file.poll();
        }
        assert_eq!((figures(), has(&file, "old")), ((2, 1), true));
        // A reload that is asked for says it again.
        file.reload();
        assert_eq!(figures(), (3, 1));
        write(&path, "new\n");
        file.poll();
        file.poll();
        assert_eq!((figures(), has(&file, "old"), has(&file, "new")), ((3, 0), false, true));
    }

    #[test]
    fn what_a_core_still_has_is_kept_and_the_rest_is_freed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut file) = opened(dir.path());
        let of_a_core = file.shared.set.load_full();
        for n in 0..3 {
            write(&path, &format!("token-{n}\n"));
            file.reload();
        }
        file.poll();
        assert_eq!(file.retired.len(), 1);
        assert!(Arc::ptr_eq(&file.retired[0], &of_a_core));
        drop(of_a_core);
        file.poll();
        assert!(file.retired.is_empty());
    }
}
