//! The token of the admin listener.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::value::{Parsed, optional, secret_path};
use super::{Config, Effective, SettingsReader};

/// Fewer can be guessed, …
const LENGTH_MIN: usize = 16;
/// … and more do not fit into a request's head with room to spare.
const LENGTH_MAX: usize = 4096;

/// The token that the admin listener asks for. Only its SHA-256 is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AdminToken([u8; 32]);

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(***)")
    }
}

impl AdminToken {
    /// # Errors
    /// What is allowed; the text is not quoted.
    pub fn parse(text: &str) -> Parsed<AdminToken> {
        let is_sendable = text.bytes().all(|byte| byte.is_ascii_graphic());
        match text.len() {
            LENGTH_MIN..=LENGTH_MAX if is_sendable => Ok(AdminToken(Sha256::digest(text).into())),
            _ => Err(format!(
                "is no admin token: give {LENGTH_MIN} to {LENGTH_MAX} visible ASCII characters \
                 without blanks, such as `openssl rand -hex 32` prints"
            )),
        }
    }

    /// Reads the first line of a file, without white space around it. Blocks.
    ///
    /// # Errors
    /// Why it holds no token; nothing of it is quoted.
    pub fn read(path: &Path) -> Parsed<AdminToken> {
        AdminToken::parse(&first_line(path)?)
    }

    /// Whether `token` is this one. The time that it takes does not depend on where they differ.
    pub fn is(&self, token: &[u8]) -> bool {
        self.0.ct_eq(Sha256::digest(token).as_slice()).into()
    }
}

/// The first line of a file, without white space around it.
fn first_line(path: &Path) -> Parsed<String> {
    let mut bytes = Vec::new();
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    // A pipe would hold up the start, or every reload, until somebody writes to it.
    let open = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = open.map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err("cannot be read: it is not a regular file".into());
    }
    // A longer line is refused by `parse`, whatever is behind.
    file.take(2 * LENGTH_MAX as u64).read_to_end(&mut bytes).map_err(unreadable)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(String::from_utf8_lossy(line).trim().to_owned())
}

/// Where the token comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminTokenSource {
    /// `ADMIN_TOKEN`
    Setting(AdminToken),
    /// `ADMIN_TOKEN_FILE`
    File(PathBuf),
}

impl AdminTokenSource {
    /// The token. Blocks if it is in a file.
    ///
    /// # Errors
    /// One sentence that names the file.
    pub fn load(&self) -> Result<AdminToken, String> {
        match self {
            AdminTokenSource::Setting(token) => Ok(*token),
            AdminTokenSource::File(file) => AdminToken::read(file)
                .map_err(|why| format!("ADMIN_TOKEN_FILE {} {why}", file.display())),
        }
    }
}

/// The token as a request carries it: for commands that ask the admin listener.
pub struct AdminTokenText(String);

impl AdminTokenText {
    /// The token.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The token of `ADMIN_TOKEN` or `ADMIN_TOKEN_FILE`; `None`: there is none. Blocks.
///
/// # Errors
/// One sentence that names the file.
pub fn admin_token_text(effective: &Effective) -> Result<Option<AdminTokenText>, String> {
    let [token, file] = ["ADMIN_TOKEN", "ADMIN_TOKEN_FILE"].map(|name| &effective.get(name).text);
    if file.is_empty() {
        return Ok((!token.is_empty()).then(|| AdminTokenText(token.clone())));
    }
    match first_line(Path::new(file)) {
        Ok(line) => Ok(Some(AdminTokenText(line))),
        Err(why) => Err(format!("ADMIN_TOKEN_FILE {file} {why}")),
    }
}

/// `None`: there is no token.
pub(super) fn read(r: &mut SettingsReader<'_>) -> Option<AdminTokenSource> {
    let token = r.take("ADMIN_TOKEN", optional(AdminToken::parse));
    let file = r.take("ADMIN_TOKEN_FILE", optional(secret_path));
    file.map(AdminTokenSource::File).or(token.map(AdminTokenSource::Setting))
}

pub(super) fn check(r: &mut SettingsReader<'_>, c: &Config) {
    let is_once = !matches!(c.admin_token, Some(AdminTokenSource::File(_)))
        || r.effective.get("ADMIN_TOKEN").text.is_empty();
    r.require(is_once, "ADMIN_TOKEN", "ADMIN_TOKEN_FILE", |_| {
        "is there beside ADMIN_TOKEN_FILE: give one of them".into()
    });
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    #[test]
    fn tokens_are_long_enough_and_fit_into_a_header() {
        let token = AdminToken::parse(TOKEN).unwrap();
        assert!(token.is(TOKEN.as_bytes()));
        for other in ["", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF"] {
            assert!(!token.is(other.as_bytes()), "{other}");
        }
        assert!(!format!("{token:?}").contains("01"), "{token:?}");
        assert!(AdminToken::parse(&TOKEN.repeat(256)).is_ok());
        for bad in ["", &TOKEN[1..], "0123456789 abcdef", "0123456789abcdefü", &TOKEN.repeat(257)]
        {
            let why = AdminToken::parse(bad).unwrap_err();
            assert!(why.contains("16 to 4096") && (bad.is_empty() || !why.contains(bad)), "{why}");
        }
    }

    #[test]
    fn a_file_holds_it_in_its_first_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &[u8]| {
            std::fs::write(file.path(), text).unwrap();
            AdminToken::read(file.path())
        };
        let token = AdminToken::parse(TOKEN);
        for text in ["0123456789abcdef", " 0123456789abcdef\r\n", "0123456789abcdef\n# ours\n"] {
            assert_eq!(read(text.as_bytes()), token, "{text:?}");
        }
        for bad in
            [&b""[..], b"\n0123456789abcdef", b"hush hush hush hush", b"hush\xff0123456789abcdef"]
        {
            assert!(!read(bad).unwrap_err().contains("hush"));
        }
        assert!(AdminToken::read(Path::new("/no/such")).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for path in [pipe, dir.path().to_owned(), "/dev/null".into()] {
            let (sender, receiver) = channel();
            std::thread::spawn(move || sender.send(AdminToken::read(&path)));
            let read = receiver.recv_timeout(Duration::from_secs(10)).expect("it does not wait");
            assert_eq!(read.unwrap_err(), "cannot be read: it is not a regular file");
        }
    }
}
