//! The format of `TOKENS_FILE`.
//!
//! ```text
//! # a comment
//! TOKEN
//! TOKEN;name=NAME
//! sha256=HEX;name=NAME;rate=1000/s;bytes=5MiB/s;burst=2s
//! ```
//!
//! A line is a token or the SHA-256 of one in 64 hex digits, then any number of `;KEY=VALUE`. White
//! space around a line, blank lines and a byte order mark are ignored. What is not known is refused
//! rather than ignored: a limit that is not enforced, or a digest that is taken for a token, would
//! be noticed too late.

#![expect(clippy::disallowed_methods, reason = "read at start and by reloads, never on a core")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Digest, RepeatedToken, TOKENS_MAX, TokenLine, TokenSet};
use crate::http::HEAD_BYTES_MAX;
use crate::metrics::tokens::{NameDraft, TokenId, TokenNames};
use crate::quota::{Quota, QuotaPart};

/// Largest file: a million lines of 512 bytes. A larger one is not a tokens file.
const FILE_BYTES_MAX: u64 = 512 << 20;

/// Longest line. A longer token would not fit into a request's head.
const LINE_BYTES_MAX: usize = HEAD_BYTES_MAX;

/// Longest name: 64 bytes, as `NODE_ID`.
const NAME_BYTES_MAX: usize = 64;

/// Bytes read from the file at a time.
const READ_BYTES: usize = 256 << 10;

/// Attributes that are reserved.
const RESERVED: [&str; 1] = ["streams"];

/// Attributes that make a quota.
const QUOTA: [QuotaPart; 3] = [QuotaPart::Rate, QuotaPart::Bytes, QuotaPart::Burst];

/// Why a tokens file was refused. Lines count from 1; no variant holds the text of a line, which
/// may be a token.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is over {FILE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("line {line} is longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong { line: u32 },
    #[error("line {line} is not UTF-8")]
    NotUtf8 { line: u32 },
    #[error("line {line} holds a blank or control character: one token per line")]
    NotOneToken { line: u32 },
    #[error("line {line} has no token before the first ;")]
    NoToken { line: u32 },
    #[error(
        "line {line}: a digest is written sha256= and 64 hex digits; a token that begins so must be given as one"
    )]
    BadDigest { line: u32 },
    #[error(
        "line {line}: after a ; comes name=NAME, rate=, bytes= or burst= and nothing else; a token that \
         contains a ; must be given as sha256=HEX"
    )]
    UnknownAttribute { line: u32 },
    #[error("line {line}: {key} is not supported by this version: remove it")]
    Reserved { line: u32, key: &'static str },
    #[error("line {line} has two names: keep one")]
    SecondName { line: u32 },
    #[error("line {line} gives {key} twice: keep one")]
    SecondQuota { line: u32, key: &'static str },
    #[error("line {line}: {key} {why}")]
    BadQuota { line: u32, key: &'static str, why: String },
    #[error(
        "line {line} and line {first} have the same name and other quotas, which hold for the name: give both \
         the same rate, bytes and burst, or other names"
    )]
    OtherQuota { line: u32, first: u32 },
    #[error(
        "line {line}: a name is 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ - and begins with a letter or digit"
    )]
    BadName { line: u32 },
    #[error(
        "line {line} repeats the token of line {first} with another name or quota: remove one of them"
    )]
    Repeated { line: u32, first: u32 },
    #[error("line {line} is one token too many: {TOKENS_MAX} are allowed")]
    TooMany { line: u32 },
    #[error("holds no token: every request would get 401; add one token per line")]
    Empty,
}

impl From<RepeatedToken> for TokensError {
    fn from(RepeatedToken { line, first }: RepeatedToken) -> TokensError {
        TokensError::Repeated { line, first }
    }
}

/// A file that is good, and whose names have no places yet.
pub struct TokensDraft<'a> {
    set: TokenSet,
    names: NameDraft<'a>,
}

impl TokensDraft<'_> {
    /// The file is accepted: its new names get their places.
    pub fn accept(self) -> TokenSet {
        self.names.commit();
        self.set
    }
}

/// Whether the file has a last line without a line feed: some editors leave it so, and half a file
/// mostly ends so.
///
/// # Errors
/// It cannot be read.
pub fn ends_within_a_line(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

pub(super) fn load<'a>(path: &Path, names: &'a TokenNames) -> Result<TokensDraft<'a>, TokensError> {
    let file = File::open(path)?;
    // A pipe has no length; for it and for a file that grows, `read` counts.
    if file.metadata()?.len() > FILE_BYTES_MAX {
        return Err(TokensError::TooLarge);
    }
    read(BufReader::with_capacity(READ_BYTES, file), names)
}

/// Reads to the end of `file`.
fn read(mut file: impl BufRead, names: &TokenNames) -> Result<TokensDraft<'_>, TokensError> {
    let mut draft = names.draft();
    let mut quotas = QuotaDraft::default();
    let (mut lines, mut text) = (Vec::new(), Vec::new());
    let (mut bytes, mut not_ascii) = (0, 0);
    for line in 1.. {
        text.clear();
        let length_max = LINE_BYTES_MAX as u64 + 1;
        let length = file.by_ref().take(length_max).read_until(b'\n', &mut text)?;
        bytes += length as u64;
        match () {
            () if length == 0 => break,
            () if bytes > FILE_BYTES_MAX => return Err(TokensError::TooLarge),
            () if length > LINE_BYTES_MAX => return Err(TokensError::LineTooLong { line }),
            () => {}
        }
        // A byte order mark would become part of the first token.
        let text =
            if line == 1 { text.strip_prefix(b"\xef\xbb\xbf") } else { None }.unwrap_or(&text);
        let Some(parsed) = parse_line(text, line)? else { continue };
        if lines.len() == TOKENS_MAX {
            return Err(TokensError::TooMany { line });
        }
        // Names are ASCII, so it is the token that is not.
        let is_ascii = text.is_ascii() || str::from_utf8(text).is_ok_and(|t| t.trim().is_ascii());
        not_ascii += usize::from(!is_ascii);
        let id = parsed.name.map_or(TokenId::UNNAMED, |name| draft.id(name));
        let (quota, key) = (quotas.place(parsed.quota), parsed.key());
        lines.push(TokenLine { digest: parsed.digest, id, line, quota, key });
        quotas.named.push(parsed.name.is_some());
    }
    if lines.is_empty() {
        return Err(TokensError::Empty);
    }
    let named = quotas.check(&lines)?;
    let mut set = TokenSet { not_ascii, ..TokenSet::build(&lines)? };
    set.quotas.distinct = quotas.distinct;
    set.quotas.names = named;
    Ok(TokensDraft { set, names: draft })
}

/// The set of a file that is accepted.
#[cfg(test)]
pub(super) fn accepted(file: impl BufRead, names: &TokenNames) -> Result<TokenSet, TokensError> {
    read(file, names).map(TokensDraft::accept)
}

/// The quotas of a file that is being read.
#[derive(Default)]
struct QuotaDraft {
    distinct: Vec<Quota>,
    places: HashMap<Quota, u32>,
    /// By line with a token: whether it has a name.
    named: Vec<bool>,
}

impl QuotaDraft {
    /// One more than the place of `quota` in `distinct`; 0 if it limits nothing.
    fn place(&mut self, quota: Quota) -> u32 {
        if !quota.is_some() {
            return 0;
        }
        let distinct = &mut self.distinct;
        *self.places.entry(quota).or_insert_with(|| {
            distinct.push(quota);
            distinct.len() as u32
        })
    }

    /// A quota holds for a name, so all lines of a name must have the same. Returns the names that
    /// have one, as in [`TokenQuotas`](super::TokenQuotas).
    fn check(&self, lines: &[TokenLine]) -> Result<Vec<(u64, u32)>, TokensError> {
        if self.distinct.is_empty() {
            return Ok(Vec::new());
        }
        let mut names: HashMap<u64, (u32, u32)> = HashMap::new();
        for (line, _) in lines.iter().zip(&self.named).filter(|(_, is_named)| **is_named) {
            let (quota, first) = *names.entry(line.key).or_insert((line.quota, line.line));
            if quota != line.quota {
                return Err(TokensError::OtherQuota { line: line.line, first });
            }
        }
        let with_quota =
            names.into_iter().filter_map(|(key, (quota, _))| Some((key, quota.checked_sub(1)?)));
        let mut with_quota: Vec<_> = with_quota.collect();
        with_quota.sort_unstable();
        with_quota.shrink_to_fit();
        Ok(with_quota)
    }
}

/// What one line says of its token.
struct ParsedLine<'a> {
    digest: Digest,
    name: Option<&'a str>,
    quota: Quota,
}

impl ParsedLine<'_> {
    /// What the quota's bucket is found by, in this file and in later ones.
    fn key(&self) -> u64 {
        match self.name {
            None => key_of(&self.digest),
            Some(name) => key_of_name(name),
        }
    }
}

/// What the bucket of a name's quota is found by.
pub(super) fn key_of_name(name: &str) -> u64 {
    key_of(&Sha256::digest([b"name ", name.as_bytes()].concat()).into())
}

fn key_of(digest: &Digest) -> u64 {
    digest[..8].iter().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte))
}

/// The token on one line and what it has; `None` if there is none.
fn parse_line(text: &[u8], line: u32) -> Result<Option<ParsedLine<'_>>, TokensError> {
    let text = str::from_utf8(text).map_err(|_| TokensError::NotUtf8 { line })?.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let is_blank = |c: char| c.is_whitespace() || c.is_control();
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) && text.contains(is_blank) {
        return Err(TokensError::NotOneToken { line });
    }
    let mut parts = text.split(';');
    let token = parts.next().unwrap_or_default();
    if token.is_empty() {
        return Err(TokensError::NoToken { line });
    }
    let mut name = None;
    let mut quota = [None; QUOTA.len()];
    for attribute in parts {
        let (key, value) =
            attribute.split_once('=').ok_or(TokensError::UnknownAttribute { line })?;
        let part = QUOTA.into_iter().position(|part| part.name() == key);
        match (key, part) {
            ("name", _) if name.is_some() => return Err(TokensError::SecondName { line }),
            ("name", _) if is_name(value) => name = Some(value),
            ("name", _) => return Err(TokensError::BadName { line }),
            (_, Some(at)) if quota[at].is_some() => {
                return Err(TokensError::SecondQuota { line, key: QUOTA[at].name() });
            }
            (_, Some(at)) => quota[at] = Some(value),
            _ if let Some(key) = RESERVED.into_iter().find(|known| *known == key) => {
                return Err(TokensError::Reserved { line, key });
            }
            _ => return Err(TokensError::UnknownAttribute { line }),
        }
    }
    let digest = digest_of(token).ok_or(TokensError::BadDigest { line })?;
    let [rate, bytes, burst] = quota;
    let quota = Quota::parse(rate, bytes, burst).map_err(|(part, why)| TokensError::BadQuota {
        line,
        key: part.name(),
        why,
    })?;
    Ok(Some(ParsedLine { digest, name, quota }))
}

/// The digest that `token` is, or has. `None` for what begins as a digest and is none, whatever
/// follows: as a token in the clear it would let in whoever has seen the digest.
fn digest_of(token: &str) -> Option<Digest> {
    const KINDS: [&str; 2] = ["sha256", "sha-256"];
    let begins_with =
        |kind: &str| token.get(..kind.len()).is_some_and(|start| start.eq_ignore_ascii_case(kind));
    if !KINDS.into_iter().any(begins_with) {
        return Some(Sha256::digest(token).into());
    }
    let hex = token.strip_prefix("sha256=")?;
    let mut digest = Digest::default();
    // `from_str_radix` takes a sign as well.
    if hex.len() != 2 * digest.len() || !hex.is_ascii() || hex.contains('+') {
        return None;
    }
    for (at, bytes) in digest.chunks_exact_mut(8).enumerate() {
        let word = u64::from_str_radix(&hex[16 * at..16 * (at + 1)], 16).ok()?;
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    Some(digest)
}

/// Such a name is safe as the value of a label, as a part of a key and as a word in a log line.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    text.len() <= NAME_BYTES_MAX
        && text.bytes().all(allowed)
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SHA-256 of `alpha`.
    const ALPHA: &str = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8";

    fn refused(bytes: &[u8]) -> String {
        accepted(bytes, &TokenNames::default()).unwrap_err().to_string()
    }

    /// The name of `token` in the file `text`, as a scrape shows it.
    fn name_in(text: &str, token: &str) -> Option<String> {
        let names = TokenNames::default();
        let set = accepted(text.as_bytes(), &names).unwrap();
        set.find(token.as_bytes()).map(|known| names.shown(known.id).unwrap().to_owned())
    }

    #[test]
    fn lines_are_trimmed_and_comments_and_blanks_ignored() {
        let text = b"\xef\xbb\xbf# ours\n\n  alpha \r\nb#ta\n\t# theirs\nalpha\nlast";
        let set = accepted(&text[..], &TokenNames::default()).unwrap();
        assert_eq!(set.len(), 3);
        for token in ["alpha", "b#ta", "last"] {
            assert!(set.find(token.as_bytes()).is_some(), "{token}");
        }
        for other in ["", "alph", "alphaa", " alpha", "# ours", "ALPHA", "\u{feff}# ours"] {
            assert!(set.find(other.as_bytes()).is_none(), "{other}");
        }
    }

    #[test]
    fn tokens_and_digests_with_names() {
        for (text, token, name) in [
            ("alpha", "alpha", Some("(unnamed)")),
            (" alpha;name=crawler-1\r\n", "alpha", Some("crawler-1")),
            (&format!("sha256={ALPHA};name=A.b_c-9"), "alpha", Some("A.b_c-9")),
            (&format!("sha256={}", ALPHA.to_uppercase()), "alpha", Some("(unnamed)")),
            (&format!("sha256={ALPHA}"), ALPHA, None),
            (&format!("sha256={ALPHA}"), &format!("sha256={ALPHA}"), None),
            // 64 hex digits alone are a token in the clear.
            (ALPHA, ALPHA, Some("(unnamed)")),
            (ALPHA, "alpha", None),
            ("sha25", "sha25", Some("(unnamed)")),
            ("sha512=x", "sha512=x", Some("(unnamed)")),
            ("xsha256=", "xsha256=", Some("(unnamed)")),
            ("alpha=b;name=n", "alpha=b", Some("n")),
            // Rotation: several tokens of one name. And the same line twice.
            ("old;name=n\nnew;name=n\nold;name=n", "new", Some("n")),
            (&format!("alpha;name=n\nsha256={ALPHA};name=n"), "alpha", Some("n")),
        ] {
            assert_eq!(name_in(text, token).as_deref(), name, "{token} in {text}");
        }
    }

    #[test]
    fn refusals_name_the_line_and_the_remedy_and_never_the_token() {
        let long = "x".repeat(LINE_BYTES_MAX);
        let long_name = format!("hush;name={}", "n".repeat(NAME_BYTES_MAX + 1));
        let short = format!("sha256={}", &ALPHA[1..]);
        let not_hex = format!("sha256={}g", &ALPHA[1..]);
        let signed = format!("sha256=+{}", &ALPHA[1..]);
        let not_ascii = format!("sha256=é{}", &ALPHA[2..]);
        let no_sign = format!("sha256{ALPHA}");
        let dash = format!("sha256-{ALPHA}");
        let other_sign = format!("SHA-256={ALPHA}");
        let renamed = format!("alpha;name=hush\nsha256={ALPHA};name=hush2");
        for (text, says) in [
            (&b""[..], "no token"),
            (b"\n# only a comment\n", "no token"),
            (b"ok\n\xff\n", "line 2 is not UTF-8"),
            (b"ok\n\nhush hush\n", "line 3 holds a blank"),
            (b"a\nb\nhush\0hush", "line 3 holds a blank"),
            (b"hush; name=n", "line 1 holds a blank"),
            (long.as_bytes(), ""),
            (b";name=hush", "line 1 has no token"),
            (b"hush;", "contains a ;"),
            (b"hush;hush", "contains a ;"),
            (b"hush;hush=1", "contains a ;"),
            (b"hush;Rate=1/s", "contains a ;"),
            (b"hush;Name=a", "contains a ;"),
            (b"a\nhush;rate=5", "line 2: rate must be a whole number from 1"),
            (b"hush;rate=0/s", "line 1: rate must be"),
            (b"hush;rate=", "line 1: rate must be"),
            (b"hush;rate=99999999999999999999/s", "line 1: rate must be"),
            (b"hush;rate=1/s;rate=1/s", "line 1 gives rate twice"),
            (b"hush;name=a;bytes=1MiB", "line 1: bytes must be a size"),
            (b"hush;bytes=1MiB/s;name=a;bytes=1MiB/s", "line 1 gives bytes twice"),
            (b"hush;burst=1", "line 1: burst counts requests, of which there is no rate"),
            (b"hush;rate=10/s;burst=1", "line 1: burst must be at least half a second's worth"),
            (b"hush;rate=10/s;burst=hush", "line 1: burst must be a count"),
            (b"a;rate=1/s;name=n\nb;name=n;rate=2/s", "line 2 and line 1 have the same name"),
            (b"a;name=n\nb\nc;name=n;rate=2/s", "line 3 and line 1 have the same name"),
            (b"a;rate=1/s\na;rate=2/s", "line 2 repeats the token of line 1"),
            (b"hush;streams=logs", "streams is not supported"),
            (b"hush;name=a;name=a", "two names"),
            (b"hush;name=", "a name is 1 to 64"),
            (b"hush;name=.hush", "begins with a letter or digit"),
            (b"hush;name=hush/x", "a name is 1 to 64"),
            ("hush;name=hüsh".as_bytes(), "a name is 1 to 64"),
            (b"hush;name=a=b", "a name is 1 to 64"),
            (long_name.as_bytes(), "a name is 1 to 64"),
            (short.as_bytes(), "sha256= and 64 hex digits"),
            (not_hex.as_bytes(), "sha256= and 64 hex digits"),
            (signed.as_bytes(), "sha256= and 64 hex digits"),
            (not_ascii.as_bytes(), "sha256= and 64 hex digits"),
            (b"SHA256=hush", "sha256= and 64 hex digits"),
            (b"sha256:hush", "sha256= and 64 hex digits"),
            (b"sha256hush", "sha256= and 64 hex digits"),
            (b"sha256", "a token that begins so must be given as one"),
            (b"sha256;name=hush", "sha256= and 64 hex digits"),
            (b"Sha-256:hush", "sha256= and 64 hex digits"),
            (no_sign.as_bytes(), "sha256= and 64 hex digits"),
            (dash.as_bytes(), "sha256= and 64 hex digits"),
            (other_sign.as_bytes(), "sha256= and 64 hex digits"),
            (b"hush\nhush;name=a", "line 2 repeats the token of line 1"),
            (renamed.as_bytes(), "line 2 repeats the token of line 1"),
        ] {
            if says.is_empty() {
                let longer = [text, b"x"].concat();
                assert!(refused(&longer).contains("line 1 is longer than 16384 bytes"));
                assert!(read(text, &TokenNames::default()).is_ok());
                continue;
            }
            let said = refused(text);
            let shown = String::from_utf8_lossy(text);
            assert!(said.contains(says), "{shown}: {said}");
            assert!(!said.contains("hush") && !said.contains(&ALPHA[2..60]), "{said}");
        }
    }

    #[test]
    fn quotas_are_those_of_the_name_or_of_the_token() {
        let text = "a;name=n;rate=5/s\nb;rate=5/s;name=n\nc;rate=5/s\nd;bytes=1MiB/s;rate=5/s\ne;name=m\nf";
        let read = |text: &str| accepted(text.as_bytes(), &TokenNames::default()).unwrap();
        let set = read(text);
        let quota = |token: &str| set.find(token.as_bytes()).unwrap().quota;
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|token| quota(token).unwrap());
        assert_eq!(a, b, "rotation");
        assert_eq!((a.quota, a.version), (c.quota, c.version));
        assert!(a.key != c.key && c.key != d.key && a.version != d.version);
        assert_eq!((quota("e"), quota("f")), (None, None));
        assert_eq!(set.with_quotas(), ", 4 of them with a quota");
        // After a reload the same name has the same bucket, and another quota another version.
        let set = read("x;bytes=1/s\nnew;name=n;rate=6/s\nc;rate=5/s");
        let quota = |token: &str| set.find(token.as_bytes()).unwrap().quota.unwrap();
        assert_eq!((quota("new").key, quota("c")), (a.key, c));
        assert_ne!(quota("new").version, a.version);
        // No line has one: nothing is kept for it.
        let set = read("a\nb;name=n");
        assert!(set.quotas.keys.is_empty() && set.with_quotas().is_empty());
    }

    #[test]
    fn a_refused_file_adds_no_names() {
        let names = TokenNames::default();
        assert!(read(&b"a;name=one\nb;name=two\nb;name=three\n"[..], &names).is_err());
        assert_eq!(format!("{names:?}"), "[]");
        // Good, but not accepted.
        drop(read(&b"a;name=half\n"[..], &names).ok().unwrap());
        assert_eq!(format!("{names:?}"), "[]");
        assert!(accepted(&b"a;name=one\n"[..], &names).is_ok());
        assert_eq!(format!("{names:?}"), r#"["one"]"#);
    }

    #[test]
    fn files_are_read_whole_or_refused() {
        let names = TokenNames::default();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hush\n").unwrap();
        assert!(TokenSet::load(file.path(), &names).unwrap().find(b"hush").is_some());
        file.as_file().set_len(FILE_BYTES_MAX + 1).unwrap();
        let refused = TokenSet::load(file.path(), &names);
        assert!(matches!(refused, Err(TokensError::TooLarge)));
        for (text, is_within) in
            [("", false), ("a\n", false), ("a\nb", true), ("a\r", true), ("\n", false)]
        {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(ends_within_a_line(file.path()).unwrap(), is_within, "{text:?}");
        }
        let missing = TokenSet::load(Path::new("no/such/file"), &names).unwrap_err().to_string();
        assert!(missing.contains("cannot be read"), "{missing}");
    }

    /// As many tokens as are allowed, as digests, and one more.
    #[test]
    fn a_million_tokens_are_read() {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(TOKENS_MAX * 72);
        for n in 0..TOKENS_MAX {
            writeln!(text, "sha256={n:064x}").unwrap();
        }
        let names = TokenNames::default();
        let set = accepted(text.as_bytes(), &names).unwrap();
        assert_eq!(set.len(), TOKENS_MAX);
        let digest = |n: usize| {
            let mut digest = Digest::default();
            digest[24..].copy_from_slice(&(n as u64).to_be_bytes());
            digest
        };
        for n in [0, 1, TOKENS_MAX / 2, TOKENS_MAX - 1] {
            assert_eq!(set.find_digest(&digest(n)).map(|known| known.id), Some(TokenId::UNNAMED));
        }
        assert_eq!(set.find_digest(&digest(TOKENS_MAX)), None);
        text += "x";
        let said = refused(text.as_bytes());
        assert!(said.contains("line 1000001 is one token too many"), "{said}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _any = accepted(&bytes[..], &TokenNames::default());
        }

        /// Bytes that the format gives a meaning to.
        #[test]
        fn no_near_miss_makes_it_panic(text in "(sha256=|[;=# \r\n\u{feff}]|name|rate|[0-9a-f]{0,70}){0,20}") {
            let _any = accepted(text.as_bytes(), &TokenNames::default());
        }

        #[test]
        fn what_is_written_is_read(
            entries in proptest::collection::btree_map("[!-:<-~]{1,80}", proptest::option::of("[A-Za-z0-9][A-Za-z0-9._-]{0,63}"), 1..30),
            digests in any::<bool>(),
            crlf in any::<bool>(),
        ) {
            let mut text = String::new();
            for (token, name) in &entries {
                let lower = token.to_ascii_lowercase();
                let ambiguous = token.starts_with('#') || lower.starts_with("sha256") || lower.starts_with("sha-256");
                if digests || ambiguous {
                    text += "sha256=";
                    for byte in Sha256::digest(token) {
                        text += &format!("{byte:02x}");
                    }
                } else {
                    text += token;
                }
                text += &name.as_ref().map_or(String::new(), |name| format!(";name={name}"));
                text += if crlf { "\r\n" } else { "\n" };
            }
            let names = TokenNames::default();
            let set = accepted(text.as_bytes(), &names).unwrap();
            prop_assert_eq!(set.len(), entries.len());
            for (token, name) in &entries {
                let id = set.find(token.as_bytes()).unwrap().id;
                prop_assert_eq!(names.shown(id), Some(name.as_deref().unwrap_or("(unnamed)")));
            }
        }
    }
}
