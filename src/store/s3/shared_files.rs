//! The shared AWS config and credentials files, read here and passed to `aws-config` as text.
//!
//! The text has no byte order marks, no carriage returns, no keys that do not matter here
//! (`retry_mode`, `max_attempts` and the like), and no keys without a value; lines keep their
//! numbers. A file that exists but cannot be used is an error, because its settings must not be
//! dropped silently. A file that does not exist counts as empty, and so does one at its default
//! path that this user may not read.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::StartError;
use super::environment::{Variables, by_key};

/// A larger file is not a config file.
const BYTES_MAX: u64 = 1 << 20;

/// Which of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Config,
    Credentials,
}

impl Kind {
    fn variable(self) -> &'static str {
        match self {
            Kind::Config => "AWS_CONFIG_FILE",
            Kind::Credentials => "AWS_SHARED_CREDENTIALS_FILE",
        }
    }

    fn default_name(self) -> &'static str {
        match self {
            Kind::Config => ".aws/config",
            Kind::Credentials => ".aws/credentials",
        }
    }
}

/// One file.
pub(super) struct SharedFile {
    pub(super) kind: Kind,
    /// Its name in messages.
    pub(super) name: String,
    /// Cleaned text; empty if the file could not be read.
    pub(super) text: String,
    /// Why it counts as empty although a variable names it or it exists.
    pub(super) missing: Option<String>,
}

/// Reads both files. Blocks.
///
/// # Errors
/// Names a file that exists but cannot be used.
pub(super) fn read(
    variables: &Variables,
    home: Option<&OsStr>,
) -> Result<Vec<SharedFile>, StartError> {
    let mut files = Vec::new();
    for kind in [Kind::Config, Kind::Credentials] {
        let named = variables.get(kind.variable());
        let path = match (named, home) {
            (Some(path), _) => in_home(path, home),
            (None, Some(home)) => Path::new(home).join(kind.default_name()),
            (None, None) => continue,
        };
        let by = if named.is_some() { format!("{} ", kind.variable()) } else { String::new() };
        let name = format!("{by}{}", path.display());
        let unusable = |why: String| StartError::BadSetting(format!("{name}: {why}"));
        let (text, missing) = match read_bytes(&path) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => (clean(&text), None),
                Err(_) => {
                    return Err(unusable("the file is not UTF-8: save it as plain text".into()));
                }
            },
            Err(error) => match (error.kind(), named) {
                (ErrorKind::NotFound, None) => (String::new(), None),
                (ErrorKind::NotFound, Some(_)) | (ErrorKind::PermissionDenied, None) => {
                    (String::new(), Some(format!("{name} cannot be read: {error}")))
                }
                _ => return Err(unusable(format!("cannot be read: {error}"))),
            },
        };
        files.push(SharedFile { kind, name, text, missing });
    }
    Ok(files)
}

/// `~/x` is in the home directory.
fn in_home(path: &str, home: Option<&OsStr>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(home).join(rest),
        _ => path.into(),
    }
}

/// Opens without blocking: a pipe without a writer would delay the start.
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("it is over {BYTES_MAX} bytes"),
        ));
    }
    Ok(bytes)
}

/// The text without what the libraries cannot handle.
fn clean(text: &str) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<&str> = text.split('\n').collect();
    let mut cleaned = String::with_capacity(text.len());
    let mut keeps_section = false;
    // Whether the continuation lines of the last key are dropped with it.
    let mut drops_rest = false;
    for (at, line) in lines.iter().enumerate() {
        let is_indented = line.starts_with([' ', '\t']);
        let kept = match line.chars().next() {
            Some('[') => {
                keeps_section = is_other_section(line);
                drops_rest = false;
                Some((*line).to_owned())
            }
            None | Some('#' | ';') => None,
            _ if is_indented && drops_rest => None,
            _ if is_indented => property(line, false).unwrap_or_else(|| Some((*line).to_owned())),
            _ => {
                let has_rest = has_continuation(&lines[at + 1..]);
                let kept = match property(line, keeps_section || has_rest) {
                    // The parser reports a line that is not a property.
                    None => Some((*line).to_owned()),
                    Some(kept) => kept.filter(|_| keeps_section || is_wanted(line)),
                };
                drops_rest = kept.is_none();
                kept
            }
        };
        cleaned.push_str(kept.as_deref().unwrap_or_default());
        cleaned.push('\n');
    }
    cleaned
}

/// `[services x]` and `[sso-session x]`, whose keys are not those of profiles.
fn is_other_section(line: &str) -> bool {
    let name = line.trim_start_matches('[').trim_start();
    name.starts_with("services") || name.starts_with("sso-session")
}

fn is_wanted(line: &str) -> bool {
    let key = line.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
    by_key(&key).is_some()
}

/// Whether the next line that is not blank belongs to the one before.
fn has_continuation(rest: &[&str]) -> bool {
    let next = rest.iter().find(|line| !line.trim().is_empty());
    next.is_some_and(|line| line.starts_with([' ', '\t']))
}

/// `key=value`, trimmed and without a comment; the inner `None` when there is no value and it is
/// not `kept_empty`, the outer one when the line is no property.
fn property(line: &str, kept_empty: bool) -> Option<Option<String>> {
    let (key, value) = line.split_once('=')?;
    let value = without_comment(value).trim();
    if value.is_empty() && !kept_empty {
        return Some(None);
    }
    // An indented line stays so.
    Some(Some(format!("{}={value}", key.trim_end())))
}

/// A comment starts with `#` or `;` after a blank.
fn without_comment(value: &str) -> &str {
    let mut after_blank = false;
    for (at, c) in value.char_indices() {
        if after_blank && matches!(c, '#' | ';') {
            return &value[..at];
        }
        after_blank = c.is_whitespace();
    }
    value
}

/// `HOME`, if it is not empty.
pub(super) fn home(env: &impl Fn(&str) -> Option<OsString>) -> Option<OsString> {
    env("HOME").filter(|home| !home.is_empty())
}

/// A note on the token file in `variables` that cannot be read; empty if there is none. Blocks.
pub(super) fn unreadable_tokens(variables: &Variables) -> String {
    let names = ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"];
    let unreadable = names.iter().find_map(|name| {
        let path = variables.get(*name)?;
        let error = read_bytes(Path::new(path)).err()?;
        Some(format!("; {name}={path:?} cannot be read: {error}"))
    });
    unreadable.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use aws_types::os_shim_internal::Env;
    use futures_lite::future::block_on;

    use super::super::environment::SETTINGS;
    use super::super::profile;
    use super::*;

    fn variables(path: &Path) -> Variables {
        [("AWS_CONFIG_FILE".to_owned(), path.to_str().unwrap().to_owned())].into()
    }

    /// What a start makes of a config file with these bytes: region and whether an endpoint is
    /// named, or the refusal.
    fn start(bytes: impl AsRef<[u8]>) -> Result<(Option<String>, bool), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let variables = variables(file.path());
        let outcome = read(&variables, None).and_then(|files| {
            block_on(profile::parse(&files, &variables, &Env::from(variables.clone())))
        });
        let name = format!("AWS_CONFIG_FILE {}", file.path().display());
        outcome.map(|shared| (shared.region, shared.names_endpoint)).map_err(|error| {
            let text = error.to_string();
            assert!(text.contains(&name), "the file is named: {text}");
            assert_eq!(text.lines().count(), 1, "{text}");
            text.replace(&name, "FILE")
        })
    }

    const REGION: Result<(Option<String>, bool), String> = Ok((None, false));

    fn found(region: &str) -> Result<(Option<String>, bool), String> {
        Ok((Some(region.to_owned()), false))
    }

    #[test]
    fn line_ends_marks_and_blanks_are_no_part_of_a_value() {
        for text in [
            "[default]\nregion = eu-west-1\n",
            "[default]\r\nregion = eu-west-1\r\n",
            "[default]\rregion = eu-west-1\r",
            "\u{feff}[default]\nregion=eu-west-1",
            "[default]\nregion =\u{a0} eu-west-1\u{a0}\t \n",
            "[default]\nregion = eu-west-1 # ours\n",
            "[default]\nREGION = eu-west-1 ; ours\n",
            "# a\n\n[default] # b\n\nregion = eu-west-1",
            "[profile other]\nregion = a\n[default]\nregion = eu-west-1",
            "[default]\nsource_profile = b\n[profile b]\nregion = eu-west-1",
        ] {
            assert_eq!(start(text), found("eu-west-1"), "{text:?}");
        }
        assert_eq!(start(""), REGION);
        assert_eq!(start("[default]\nregion =\n"), REGION);
        assert_eq!(start("[default]\nregion = \u{a0}\r\n[profile b]\nregion = x"), REGION);
        assert_eq!(start("[default]\nsource_profile = default\n"), REGION);
    }

    #[test]
    fn what_does_not_matter_here_is_not_looked_at() {
        for key in [
            "retry_mode",
            "max_attempts",
            "account_id_endpoint_mode",
            "auth_scheme_preference",
            "disable_clock_skew_correction",
            "disable_request_compression",
            "request_min_compression_size_bytes",
            "request_checksum_calculation",
            "response_checksum_validation",
            "sdk_ua_app_id",
            "sdk-ua-app-id",
            "sigv4a_signing_region_set",
            "aws_account_id",
            "output",
            "cli_pager",
            "s3_disable_express_session_auth",
        ] {
            for value in ["", "legacy", "0", " \u{a0} ", "\u{7f}\u{0}", "\n  x = y\n  z"] {
                let text = format!("[default]\n{key} = {value}\nregion = eu-west-1\n");
                assert_eq!(start(&text), found("eu-west-1"), "{text:?}");
                assert!(!clean(&text).contains(key), "{text:?}");
                let alone = format!("[default]\n{key} = {value}");
                assert_eq!(start(&alone), REGION, "{alone:?}");
            }
        }
        let nested = "[default]\ns3 =\n  max_concurrent_requests = 20\nregion = eu-west-1\n";
        assert_eq!(start(nested), found("eu-west-1"));
    }

    /// Every key that matters: fine without a value, one sentence with nonsense that it cannot be.
    #[test]
    fn every_key_is_unset_when_empty_and_refused_by_name_when_it_is_nonsense() {
        for key in SETTINGS.iter().map(|setting| setting.key).filter(|key| !key.is_empty()) {
            for empty in ["", " ", "\t", "\u{a0}", "# nothing"] {
                let text = format!("[default]\n{key} = {empty}\n");
                assert_eq!(start(&text), REGION, "{text:?}");
            }
            // No form takes a control character.
            let text = start(format!("[default]\n{key} = a\u{7f}b\n")).unwrap_err();
            assert!(text.starts_with(key), "{text}");
            assert!(text.contains("AWS profile default in FILE"), "{text}");
            // Another profile's is nobody's business.
            let other = format!("[default]\nregion = eu-west-1\n[profile b]\n{key} = a\u{7f}b\n");
            assert_eq!(start(&other), found("eu-west-1"), "{other:?}");
            let text = format!("[default]\nsource_profile = b\n[profile b]\n{key} = a\u{7f}b\n");
            assert!(start(&text).is_err(), "but this one is in use: {text:?}");
            let bytes = [format!("[default]\n{key} = a").as_bytes(), b"\xff\n"].concat();
            assert_eq!(
                start(bytes),
                Err("FILE: the file is not UTF-8: save it as plain text".into())
            );
        }
    }

    #[test]
    fn secrets_in_files_are_not_shown() {
        for key in ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"] {
            let text = start(format!("[default]\n{key} = hush\u{7f}\n")).unwrap_err();
            assert!(!text.contains("hush"), "{text}");
        }
    }

    #[test]
    fn endpoints_in_files_are_found() {
        for (text, expected) in [
            ("[default]\nendpoint_url = http://h\n", true),
            ("[default]\nservices = m\n[services m]\ns3 =\n  endpoint_url = http://h\n", true),
            ("[default]\nservices = m\n[services m]\nsts =\n  endpoint_url = http://h\n", false),
            ("[default]\nservices = m\n[services m]\ns3 =\n  endpoint_url =\n", false),
            ("[default]\nendpoint_url =\n", false),
            ("[default]\nendpoint_url = http://h\nignore_configured_endpoint_urls = True\n", false),
        ] {
            assert_eq!(start(text), Ok((None, expected)), "{text:?}");
        }
    }

    #[test]
    fn what_does_not_parse_is_named_with_its_line() {
        for (text, line) in [
            ("region = x\n", 1),
            ("[default\nregion = x\n", 1),
            ("\n# c\n[default]\nretry_mode = x\n  and = more\nnonsense\n", 6),
            ("[default]\r\n  region = x\r\n", 2),
        ] {
            let text = start(text).unwrap_err();
            assert!(text.starts_with("FILE: cannot be used: "), "{text}");
            assert!(text.contains(&format!("on line {line}:")), "{text}");
        }
    }

    #[test]
    fn files_that_cannot_be_used_are_named_and_absent_ones_are_empty() {
        let dir = tempfile::tempdir().unwrap();
        let named = |path: &Path| read(&variables(path), None);
        let text = |path: &Path| named(path).err().expect("no file").to_string();
        let directory = text(dir.path());
        assert!(directory.contains("Is a directory"), "{directory}");
        let endless = text(Path::new("/dev/zero"));
        assert!(
            endless.starts_with("AWS_CONFIG_FILE /dev/zero: cannot be read: it is over"),
            "{endless}"
        );
        let absent = named(&dir.path().join("none")).unwrap();
        assert!(
            absent[0].missing.as_ref().unwrap().contains("No such file"),
            "{:?}",
            absent[0].missing
        );
        assert_eq!(absent[0].text, "");
        // A pipe without a writer has nothing to say, and nobody waits for it.
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(named(&pipe).unwrap()[0].text.trim(), "");
        // At their default places.
        let home = dir.path().join("home");
        let at_home = || read(&Variables::new(), Some(home.as_os_str()));
        assert!(at_home().unwrap().iter().all(|file| file.missing.is_none()));
        std::fs::create_dir_all(home.join(".aws/credentials")).unwrap();
        let text = at_home().err().unwrap().to_string();
        assert!(text.contains(".aws/credentials: cannot be read: Is a directory"), "{text}");
        assert!(read(&Variables::new(), None).unwrap().is_empty());
        let tilde = [("AWS_CONFIG_FILE".to_owned(), "~/x".to_owned())].into();
        let tilde = read(&tilde, Some(dir.path().as_os_str())).unwrap();
        let expected = format!("AWS_CONFIG_FILE {}/x", dir.path().display());
        assert_eq!(tilde[0].name, expected);
    }

    #[test]
    fn token_files_that_cannot_be_read_are_named() {
        let with = |path: &str| {
            let name = "AWS_WEB_IDENTITY_TOKEN_FILE";
            unreadable_tokens(&[(name.to_owned(), path.to_owned())].into())
        };
        assert!(with("/no/such").starts_with("; AWS_WEB_IDENTITY_TOKEN_FILE=\"/no/such\" cannot"));
        assert_eq!(with("/dev/null"), "");
        assert_eq!(unreadable_tokens(&Variables::new()), "");
    }
}
