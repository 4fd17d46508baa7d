//! `TOKENS_FILE` while the server runs: read again on SIGHUP and whenever it has changed.
//!
//! A change is looked for every [`POLL`], by the file's identity, length and times; `stat` follows
//! symbolic links, so the swap of a link is a change as well, as Kubernetes makes it when a mounted
//! secret is updated. A changed file is read once it has stayed the same for one poll, because
//! editors and copies empty a file before they fill it; for [`OPEN_END_POLLS`] if it ends within a
//! line, as half a file mostly does. A writer that pauses for longer, or between two lines, is not
//! found out: a set that loses more than half of its tokens is therefore a warning. A file that is
//! refused leaves the tokens that were read before in effect.
//!
//! The cores read the new set with their next requests. An old set is kept here until no core has
//! it, so that no core spends its time on freeing 40 MB.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::file_state::FileState;
use crate::alloc::return_free_memory;
use crate::http::tokens::{
    SharedTokens, TokenPlaces, TokenSet, TokensDraft, TokensError, ends_within_a_line,
};
use crate::metrics::tokens::TokenMetrics;

/// How often the file is looked at. The change of a file that ends with a line feed is in effect
/// after at most two polls and the time to read it.
pub(super) const POLL: Duration = Duration::from_secs(1);

/// For how many polls a file that ends within a line must stay the same. Some files end so on
/// purpose, so they are read in the end; a writer that pauses for longer is rare.
const OPEN_END_POLLS: u32 = 10;

/// The file, and what is published of it.
pub(super) struct TokensFile {
    path: PathBuf,
    shared: SharedTokens,
    places: TokenPlaces,
    /// The file as it was when it was last read, whether or not it was accepted.
    read: Option<FileState>,
    /// The file as the last poll saw it.
    seen: Option<FileState>,
    /// For how many polls it has been as it is.
    steady_polls: u32,
    /// The reason for which the file could not be opened or read, while it is tried again.
    unreadable: Option<String>,
    /// Earlier sets that a core may still have: at most one per core.
    retired: Vec<Arc<TokenSet>>,
}

/// Why the tokens read before stay in effect.
enum Kept {
    Refused(TokensError),
    /// It changed while it was read, so what was read may be half of it.
    Unsteady,
}

impl TokensFile {
    /// Reads the file for the start. `places` is where requests may have its tokens.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn open(
        path: PathBuf,
        metrics: &'static TokenMetrics,
        places: TokenPlaces,
    ) -> Result<TokensFile, TokensError> {
        // Seen before it is read: if it changes meanwhile, a poll finds that out.
        let state = FileState::of(&path);
        let set = TokenSet::load(&path, &metrics.names)?;
        return_free_memory();
        metrics.tokens.set(set.len() as u64);
        let shared = SharedTokens { set: Arc::new(ArcSwap::from_pointee(set)), metrics };
        Ok(TokensFile {
            path,
            shared,
            places,
            read: state,
            seen: state,
            steady_polls: 0,
            unreadable: None,
            retired: Vec::new(),
        })
    }

    /// What the cores read.
    pub(super) fn shared(&self) -> SharedTokens {
        self.shared.clone()
    }

    /// Reads the file now, and says in one line what is in effect.
    pub(super) fn reload(&mut self) {
        self.unreadable = None;
        self.try_read(FileState::of(&self.path));
    }

    /// `state` is the file that is meant to be read.
    fn try_read(&mut self, state: Option<FileState>) {
        let count = self.shared.set.load().len();
        match self.read(state) {
            Ok(()) => self.announce(count),
            Err(kept) => self.keep(kept),
        }
    }

    /// Says what is in effect now, after `before` tokens.
    fn announce(&self, before: usize) {
        let (shown, set) = (self.path.display(), self.shared.set.load());
        let count = set.len();
        let names = set.with_quotas() + &set.beyond_names();
        if is_half_gone(before, count) {
            tracing::warn!(
                "reload: TOKENS_FILE {shown}: {count} tokens are accepted from now on{names}, after {before}: more than \
                 half are gone, see that the file is whole"
            );
        } else {
            tracing::info!(
                "reload: TOKENS_FILE {shown}: {count} tokens are accepted from now on{names}"
            );
        }
        if let Some(unusable) = set.unusable(self.places) {
            tracing::warn!("reload: TOKENS_FILE {shown}: {unusable}, so requests with it get 401");
        }
    }

    /// Reads the file if it has changed and is steady.
    pub(super) fn poll(&mut self) {
        self.free_retired();
        let state = FileState::of(&self.path);
        let is_steady = std::mem::replace(&mut self.seen, state) == state;
        self.steady_polls = if is_steady { self.steady_polls.saturating_add(1) } else { 0 };
        let is_new = state != self.read || self.unreadable.is_some();
        if is_steady && is_new && !state.is_some_and(|state| state.is_stream) && !self.is_open() {
            self.try_read(state);
        }
    }

    /// Whether the file ends within a line and has not been so for long. If that cannot be told,
    /// the read tells why.
    fn is_open(&self) -> bool {
        let is_open = self.steady_polls < OPEN_END_POLLS
            && ends_within_a_line(&self.path).unwrap_or_default();
        if is_open && self.steady_polls == 1 {
            tracing::info!(
                "reload: TOKENS_FILE {} ends within a line; it is read once it stays the same for {:?}",
                self.path.display(),
                OPEN_END_POLLS * POLL
            );
        }
        is_open
    }

    /// A set that only this list has is in no core's view.
    fn free_retired(&mut self) {
        let before = self.retired.len();
        self.retired.retain(|set| Arc::strong_count(set) > 1);
        if self.retired.len() < before {
            return_free_memory();
        }
    }

    /// `before` is the file as it was looked at last: if it is another one by the end, that counts
    /// as being written.
    fn read(&mut self, before: Option<FileState>) -> Result<(), Kept> {
        let metrics = self.shared.metrics;
        let draft = TokenSet::draft(&self.path, &metrics.names);
        let after = FileState::of(&self.path);
        self.seen = after;
        self.steady_polls = 0;
        if before != after && !after.is_some_and(|state| state.is_stream) {
            return Err(Kept::Unsteady);
        }
        self.read = after;
        // Not before: names keep their places, so those of half a file would.
        let set = draft.map(TokensDraft::accept).map_err(Kept::Refused)?;
        self.unreadable = None;
        metrics.tokens.set(set.len() as u64);
        metrics.reload_failing.set(0);
        self.free_retired();
        self.retired.push(self.shared.set.swap(Arc::new(set)));
        return_free_memory();
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

/// Whether a set has lost more than half of its tokens.
fn is_half_gone(before: usize, count: usize) -> bool {
    2 * count < before
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const PLACES: TokenPlaces = TokenPlaces { in_body: true, in_query: false };

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
        let file = TokensFile::open(path.clone(), TokenMetrics::leaked(1), PLACES).unwrap();
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
        let mut file = TokensFile::open(path, TokenMetrics::leaked(1), PLACES).unwrap();
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
    fn a_file_that_ends_within_a_line_is_taken_once_it_has_been_so_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut file) = opened(dir.path());
        write(&path, "new\nhalf-a-tok");
        for _ in 0..OPEN_END_POLLS {
            file.poll();
            assert!(has(&file, "old") && !has(&file, "new"));
        }
        // The writer goes on, and so does the time.
        write(&path, "new\nhalf-a-token;na");
        for _ in 0..OPEN_END_POLLS {
            file.poll();
        }
        let metrics = file.shared.metrics;
        assert!(has(&file, "old"));
        assert_eq!(metrics.reload_failures.value(), 0, "half a line is no bad line yet");
        write(&path, "new\nhalf-a-token;name=n");
        for _ in 0..=OPEN_END_POLLS {
            assert!(has(&file, "old"));
            file.poll();
        }
        assert!(has(&file, "new") && has(&file, "half-a-token") && !has(&file, "old"));
        // With its last line feed it is read at once, and whoever asks gets what there is.
        write(&path, "line\n");
        file.poll();
        file.poll();
        assert!(has(&file, "line"));
        write(&path, "open");
        file.reload();
        assert!(has(&file, "open"));
    }

    #[test]
    fn names_of_a_file_that_changed_while_it_was_read_get_no_places() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut file) = opened(dir.path());
        let before = FileState::of(&path);
        write(&path, "new;name=of-half-a-file\n");
        assert!(matches!(file.read(before), Err(Kept::Unsteady)));
        assert!(has(&file, "old"));
        assert_eq!(format!("{:?}", file.shared.metrics.names), "[]");
        write(&path, "new;name=whole\n");
        file.poll();
        file.poll();
        assert!(has(&file, "new"));
        assert_eq!(format!("{:?}", file.shared.metrics.names), r#"["whole"]"#);
    }

    #[test]
    fn what_is_no_file_is_reported_unless_it_is_a_stream() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut file) = opened(dir.path());
        let metrics = file.shared.metrics;
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        for _ in 0..4 {
            file.poll();
        }
        let figures = || (metrics.reload_failures.value(), metrics.reload_failing.value());
        assert_eq!((figures(), has(&file, "old")), ((1, 1), true));
        std::fs::remove_dir(&path).unwrap();
        // A poll that read it would wait for a writer.
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        for _ in 0..4 {
            file.poll();
        }
        assert_eq!((figures(), has(&file, "old")), ((1, 1), true));
        std::fs::remove_file(&path).unwrap();
        write(&path, "new\n");
        file.poll();
        file.poll();
        assert_eq!((figures(), has(&file, "new")), ((1, 0), true));
    }

    #[test]
    fn more_than_half_of_the_tokens_gone_is_much() {
        for (before, count, is_much) in [
            (1, 1, false),
            (2, 1, false),
            (3, 1, true),
            (3, 2, false),
            (4, 2, false),
            (5, 2, true),
            (1_000_000, 500_000, false),
            (1_000_000, 499_999, true),
            (1, 1_000, false),
        ] {
            assert_eq!(is_half_gone(before, count), is_much, "{before} to {count}");
        }
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
