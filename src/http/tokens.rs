//! The tokens of `TOKENS_FILE`, kept as digests, compared in constant time.
//!
//! The duration of [`TokenSet::contains`] depends on the number of tokens and on the length of the
//! given one, never on how much of it is right: every digest is compared in full, also after one
//! has matched. Neither tokens nor digests are ever printed.

#![expect(clippy::disallowed_methods, reason = "read at start and by reloads, never on a core")]

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

/// Largest file: 4096 tokens of 255 bytes. A larger one is not a tokens file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Most tokens. Each request is compared with all of them: 4096 digests are 128 KiB, about as much
/// of a core's L2 cache as can be used without slowing other work.
const TOKENS_MAX: usize = 4096;

/// The accepted tokens; never empty.
pub struct TokenSet {
    digests: Vec<[u8; 32]>,
}

/// Why a tokens file was refused. Lines count from 1; no variant holds the text of a line.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is over {FILE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("line {line} is not UTF-8")]
    NotUtf8 { line: usize },
    #[error("line {line} holds a blank or control character inside the token: one token per line")]
    NotOneToken { line: usize },
    #[error("line {line} is one token too many: {TOKENS_MAX} are allowed")]
    TooMany { line: usize },
    #[error("holds no token: every request would get 401; add one token per line")]
    Empty,
}

impl TokenSet {
    /// Reads one token per line. White space around it, blank lines, lines that begin with `#` and
    /// duplicates are ignored.
    ///
    /// # Errors
    /// What is wrong and on which line, without the file's name.
    pub fn load(path: &Path) -> Result<TokenSet, TokensError> {
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(TokensError::TooLarge);
        }
        TokenSet::from_lines(&bytes)
    }

    fn from_lines(bytes: &[u8]) -> Result<TokenSet, TokensError> {
        let mut digests: Vec<[u8; 32]> = Vec::new();
        // A byte order mark would become part of the first token.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        for (line, bytes) in (1..).zip(bytes.split(|&b| b == b'\n')) {
            let text = str::from_utf8(bytes).map_err(|_| TokensError::NotUtf8 { line })?;
            let token = text.trim();
            if token.is_empty() || token.starts_with('#') {
                continue;
            }
            if token.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(TokensError::NotOneToken { line });
            }
            let digest = Sha256::digest(token.as_bytes()).into();
            if digests.contains(&digest) {
                continue;
            }
            if digests.len() == TOKENS_MAX {
                return Err(TokensError::TooMany { line });
            }
            digests.push(digest);
        }
        if digests.is_empty() { Err(TokensError::Empty) } else { Ok(TokenSet { digests }) }
    }

    /// Whether `token` is in the set. `None`, a request without a token, is not.
    pub fn contains(&self, token: Option<&str>) -> bool {
        let Some(token) = token else { return false };
        let asked: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = Choice::from(0);
        for known in &self.digests {
            found |= known.ct_eq(&asked);
        }
        found.into()
    }

    /// The number of tokens, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "an empty set cannot exist")]
    pub fn len(&self) -> usize {
        self.digests.len()
    }
}

/// One core's view of the published tokens. Reading it costs one atomic load; the next request sees
/// a new set.
pub struct TokenView(RefCell<Cache<Arc<ArcSwap<TokenSet>>, Arc<TokenSet>>>);

impl TokenView {
    /// A view that follows what is published.
    pub fn new(published: Arc<ArcSwap<TokenSet>>) -> TokenView {
        TokenView(RefCell::new(Cache::new(published)))
    }

    /// A view of a set that never changes.
    pub fn fixed(set: Arc<TokenSet>) -> TokenView {
        TokenView::new(Arc::new(ArcSwap::new(set)))
    }

    /// [`TokenSet::contains`] on the newest set.
    pub fn contains(&self, token: Option<&str>) -> bool {
        self.0.borrow_mut().load().contains(token)
    }
}

impl fmt::Debug for TokenSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSet({} tokens)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn refused(bytes: &[u8]) -> String {
        TokenSet::from_lines(bytes).unwrap_err().to_string()
    }

    #[test]
    fn lines_are_trimmed_and_comments_and_blanks_ignored() {
        let set =
            TokenSet::from_lines(b"\xef\xbb\xbf# ours\n\n  alpha \r\nb#ta\n\t# theirs\nalpha\n")
                .unwrap();
        assert_eq!(set.len(), 2);
        assert!(set.contains(Some("alpha")) && set.contains(Some("b#ta")));
        for other in ["", "alph", "alphaa", " alpha", "# ours", "ALPHA"] {
            assert!(!set.contains(Some(other)), "{other}");
        }
        assert!(!set.contains(None));
    }

    #[test]
    fn the_first_and_the_last_of_many_match() {
        let text: String = (0..TOKENS_MAX).map(|i| format!("token-{i}\n")).collect();
        let set = TokenSet::from_lines(text.as_bytes()).unwrap();
        assert!(set.contains(Some("token-0")) && set.contains(Some("token-4095")));
        assert!(!set.contains(Some("token-4096")));
        assert!(refused(format!("{text}x").as_bytes()).contains("line 4097"));
    }

    #[test]
    fn refusals_name_the_line_and_never_the_token() {
        assert!(refused(b"").contains("no token"));
        assert!(refused(b"\n# only a comment\n").contains("no token"));
        assert!(refused(b"ok\n\xff\n").contains("line 2"));
        for bytes in [&b"ok\n\nhush hush\n"[..], b"a\nb\nhush\0hush"] {
            let text = refused(bytes);
            assert!(text.contains("line 3") && !text.contains("hush"), "{text}");
        }
    }

    #[test]
    fn a_view_follows_what_is_published() {
        let set = |text: &[u8]| Arc::new(TokenSet::from_lines(text).unwrap());
        let published = Arc::new(ArcSwap::new(set(b"old\nboth\n")));
        let view = TokenView::new(published.clone());
        assert!(view.contains(Some("old")) && !view.contains(Some("new")));
        published.store(set(b"new\nboth\n"));
        assert!(!view.contains(Some("old")) && view.contains(Some("new")));
        assert!(view.contains(Some("both")) && !view.contains(None));
    }

    #[test]
    fn files_are_read_whole_or_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"hush\n").unwrap();
        let set = TokenSet::load(file.path()).unwrap();
        assert!(set.contains(Some("hush")));
        assert_eq!(format!("{set:?}"), "TokenSet(1 tokens)");
        file.write_all(&vec![b'#'; FILE_BYTES_MAX as usize]).unwrap();
        assert!(matches!(TokenSet::load(file.path()), Err(TokensError::TooLarge)));
        let missing = TokenSet::load(Path::new("no/such/file")).unwrap_err().to_string();
        assert!(missing.contains("cannot be read"), "{missing}");
    }
}
