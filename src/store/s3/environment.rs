//! The AWS settings in the environment and in the shared files as `aws-config` sees them: those
//! that matter here, trimmed, and nothing else.
//!
//! The libraries do not check what they read. Some panic on an invalid value (`AWS_RETRY_MODE`,
//! `AWS_MAX_ATTEMPTS`, a container's URI without a scheme), some ignore it with a warning, some
//! send it. So every name they read is listed here, in [`SETTINGS`] or among those left out, and
//! every value is checked before they get it. The process's own environment is never changed.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;

use http::{HeaderValue, Uri};

use super::StartError;
use super::masked::shown_url;
use crate::config::{IS_SECRET, is_secret_itself};
use crate::store::s3::dial::ServerAddress;

/// One setting that matters here.
pub(super) struct AwsSetting {
    /// Its environment variable; empty if only the files have it.
    pub(super) variable: &'static str,
    /// Its key in a profile; empty if only the environment has it.
    pub(super) key: &'static str,
    form: Form,
}

/// What a value must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Any text on one line.
    Text,
    /// The name of a file that holds a secret, which is not shown if it may be the secret.
    SecretFile,
    /// Goes into a header; never shown.
    Secret,
    /// Key of the signature; never shown.
    SigningSecret,
    Switch,
    /// `http://HOST…` or `https://HOST…`
    Url,
    /// A path at the address of the container's agent.
    UrlPath,
    Region,
    IpVersion,
    /// Read untrimmed by the SDK itself, for a header.
    Verbatim,
    /// Read by the SDK itself, which panics on an invalid or empty value.
    Never,
}

const fn entry(variable: &'static str, key: &'static str, form: Form) -> AwsSetting {
    AwsSetting { variable, key, form }
}

/// From the sources of aws-config 1.13, aws-runtime 1.10, aws-sdk-s3 1.157 and aws-sdk-sts 1.124.
/// Left out, because nothing here depends on them: `AWS_RETRY_MODE`, `AWS_MAX_ATTEMPTS`,
/// `AWS_NEW_RETRIES_2026`, `AWS_ACCOUNT_ID`, `AWS_ACCOUNT_ID_ENDPOINT_MODE`,
/// `AWS_AUTH_SCHEME_PREFERENCE`, `AWS_DISABLE_CLOCK_SKEW_CORRECTION`,
/// `AWS_DISABLE_REQUEST_COMPRESSION`, `AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES`,
/// `AWS_REQUEST_CHECKSUM_CALCULATION`, `AWS_RESPONSE_CHECKSUM_VALIDATION`, `AWS_SDK_UA_APP_ID`,
/// `AWS_SIGV4A_SIGNING_REGION_SET`, `AWS_LOGIN_CACHE_DIRECTORY`, the endpoints of services other
/// than S3 and STS, and the keys of the same names. `tls` reads `AWS_CA_BUNDLE`.
#[rustfmt::skip]
pub(super) const SETTINGS: &[AwsSetting] = &[
    entry("AWS_ACCESS_KEY_ID", "aws_access_key_id", Form::Secret),
    entry("AWS_SECRET_ACCESS_KEY", "aws_secret_access_key", Form::SigningSecret),
    entry("SECRET_ACCESS_KEY", "", Form::SigningSecret),
    entry("AWS_SESSION_TOKEN", "aws_session_token", Form::Secret),
    entry("AWS_REGION", "region", Form::Region),
    entry("AWS_DEFAULT_REGION", "", Form::Region),
    entry("AWS_PROFILE", "", Form::Text),
    entry("AWS_CONFIG_FILE", "", Form::Text),
    entry("AWS_SHARED_CREDENTIALS_FILE", "", Form::Text),
    // `endpoint_url` checks these.
    entry("AWS_ENDPOINT_URL", "endpoint_url", Form::Text),
    entry("AWS_ENDPOINT_URL_S3", "", Form::Text),
    entry("AWS_ENDPOINT_URL_STS", "", Form::Url),
    entry("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "ignore_configured_endpoint_urls", Form::Switch),
    entry("AWS_USE_FIPS_ENDPOINT", "use_fips_endpoint", Form::Switch),
    entry("AWS_USE_DUALSTACK_ENDPOINT", "use_dualstack_endpoint", Form::Switch),
    entry("AWS_EC2_METADATA_DISABLED", "", Form::Switch),
    entry("AWS_EC2_METADATA_SERVICE_ENDPOINT", "ec2_metadata_service_endpoint", Form::Url),
    entry("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "ec2_metadata_service_endpoint_mode", Form::IpVersion),
    entry("AWS_ROLE_ARN", "role_arn", Form::Text),
    entry("AWS_ROLE_SESSION_NAME", "role_session_name", Form::Text),
    entry("AWS_WEB_IDENTITY_TOKEN_FILE", "web_identity_token_file", Form::SecretFile),
    entry("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "", Form::UrlPath),
    entry("AWS_CONTAINER_CREDENTIALS_FULL_URI", "", Form::Url),
    entry("AWS_CONTAINER_AUTHORIZATION_TOKEN", "", Form::Secret),
    entry("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "", Form::SecretFile),
    entry("AWS_EXECUTION_ENV", "", Form::Verbatim),
    entry("SMITHY_CLIENT_SDK_CUSTOM_PARTITION", "", Form::Never),
    entry("", "external_id", Form::Text),
    entry("", "source_profile", Form::Text),
    entry("", "credential_source", Form::Text),
    entry("", "services", Form::Text),
    // The chain refuses these by name.
    entry("", "credential_process", Form::Text),
    entry("", "login_session", Form::Text),
    entry("", "sso_account_id", Form::Text),
    entry("", "sso_region", Form::Region),
    entry("", "sso_role_name", Form::Text),
    entry("", "sso_start_url", Form::Text),
    entry("", "sso_session", Form::Text),
];

/// What is wrong with a value; `shown` is the value unless it is secret.
struct Refused {
    shown: Option<String>,
    why: &'static str,
}

/// `="maybe": give true or false`
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shown {
            Some(text) => write!(f, "={text:?}: {}", self.why),
            None => write!(f, ": {}", self.why),
        }
    }
}

impl Form {
    /// `text` is trimmed and not empty.
    fn check(self, text: &str) -> Result<(), Refused> {
        let refuse = |why| Err(Refused { shown: Some(shown(text)), why });
        let secret = |why| Err(Refused { shown: None, why });
        let is_header = HeaderValue::from_str(text).is_ok();
        match self {
            Form::Text if text.contains(char::is_control) => refuse("give one line of text"),
            Form::Text => Ok(()),
            Form::SecretFile if text.contains(char::is_control) => secret("give one line of text"),
            Form::SecretFile if is_secret_itself(text) => secret(IS_SECRET),
            Form::SecretFile => Ok(()),
            Form::Secret if is_header && text.bytes().all(|b| b.is_ascii_graphic()) => Ok(()),
            Form::Secret => secret("holds blanks or other than visible ASCII characters"),
            Form::SigningSecret if text.contains(char::is_control) => {
                secret("holds a line end or another control character: give one line")
            }
            Form::SigningSecret => Ok(()),
            Form::Switch => match text.to_ascii_lowercase().as_str() {
                "true" | "false" => Ok(()),
                _ => refuse("give true or false"),
            },
            Form::Url => match text.parse::<Uri>() {
                Ok(uri) if ServerAddress::of(&uri).is_some() && !text.contains('@') => Ok(()),
                _ => refuse("give http://HOST[:PORT] or https://HOST[:PORT]"),
            },
            Form::UrlPath => match text.parse::<Uri>() {
                Ok(uri) if text.starts_with('/') && uri.authority().is_none() => Ok(()),
                _ => refuse("give a path such as /v2/credentials/ID"),
            },
            Form::Region => {
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
                match text.len() {
                    1..=63 if text.bytes().all(plain) => Ok(()),
                    _ => refuse("give a region such as eu-central-1"),
                }
            }
            Form::IpVersion => match text.to_ascii_lowercase().as_str() {
                "ipv4" | "ipv6" => Ok(()),
                _ => refuse("give IPv4 or IPv6"),
            },
            Form::Verbatim if is_header && text.is_ascii() => Ok(()),
            Form::Verbatim => refuse("give one line of ASCII text, or unset it"),
            Form::Never => refuse("is not supported: unset it"),
        }
    }
}

/// The value as a message may show it: without a password or a query, and bounded.
fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    let text = shown_url(text);
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl AwsSetting {
    /// Checks the value of its key in a profile; `found_in` names the profile.
    pub(super) fn check_key(&self, text: &str, found_in: &str) -> Result<(), StartError> {
        let refused =
            |refused| StartError::BadSetting(format!("{}{refused} ({found_in})", self.key));
        self.form.check(text.trim()).map_err(refused)
    }

    /// Its variable's value, trimmed; `None` when it is not set.
    fn value(&self, env: &impl Fn(&str) -> Option<OsString>) -> Result<Option<String>, StartError> {
        if self.variable.is_empty() {
            return Ok(None);
        }
        let Some(given) = env(self.variable) else { return Ok(None) };
        let bad = |what: &dyn fmt::Display| {
            Err(StartError::BadSetting(format!("{}{what} (environment variable)", self.variable)))
        };
        let Some(text) = given.to_str() else {
            // The SDK ignores values that are not UTF-8 where it reads them itself.
            return match self.form {
                Form::Verbatim | Form::Never => Ok(None),
                _ => bad(&" is not UTF-8: give plain text"),
            };
        };
        let text = match self.form {
            Form::Never => text,
            Form::Verbatim if text.is_empty() => return Ok(None),
            Form::Verbatim => text,
            _ if text.trim().is_empty() => return Ok(None),
            _ => text.trim(),
        };
        self.form.check(text).map_err(|refused| bad(&refused).unwrap_err())?;
        Ok(Some(text.to_owned()))
    }
}

/// The variables that are set, by name.
pub(super) type Variables = HashMap<String, String>;

/// Reads every variable in [`SETTINGS`]; `env` is like [`std::env::var_os`].
///
/// # Errors
/// Names the first that cannot be used.
pub(super) fn read(env: &impl Fn(&str) -> Option<OsString>) -> Result<Variables, StartError> {
    let mut variables = Variables::new();
    for entry in SETTINGS {
        if let Some(value) = entry.value(env)? {
            variables.insert(entry.variable.to_owned(), value);
        }
    }
    Ok(variables)
}

/// The setting with `key` in profiles.
pub(super) fn by_key(key: &str) -> Option<&'static AwsSetting> {
    SETTINGS.iter().find(|entry| entry.key == key && !key.is_empty())
}

/// The variable `name` as a path, without blanks and line ends around it; `None` if nothing is
/// left.
pub(super) fn path_variable(name: &str) -> Option<OsString> {
    trimmed(&std::env::var_os(name)?)
}

fn trimmed(text: &OsStr) -> Option<OsString> {
    let text = text.to_str().map_or(text, |text| OsStr::new(text.trim()));
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    /// A valid value, and an invalid one if there is any.
    fn samples(form: Form) -> (&'static str, Option<&'static str>) {
        match form {
            Form::Text => ("some text", Some("two\nlines")),
            Form::SecretFile => ("tokens/web-identity", Some("eyJhbGciOiJSUzI1NiJ9.e30.c2ln")),
            Form::Secret => ("AKID/x+y=", Some("a b\u{7f}")),
            Form::SigningSecret => ("s3cr3t and ü", Some("a\r\nb")),
            Form::Switch => ("True", Some("maybe")),
            Form::Url => ("http://127.0.0.1:80/x", Some("127.0.0.1:80/x")),
            Form::UrlPath => ("/v2/x?y=1", Some("v2/x")),
            Form::Region => ("eu-central-1", Some("eu central")),
            Form::IpVersion => ("ipv6", Some("v4")),
            Form::Verbatim => ("AWS_ECS_FARGATE", Some("two\nlines")),
            Form::Never => ("", None),
        }
    }

    fn read_one(name: &str, value: OsString) -> Result<Variables, StartError> {
        read(&|asked| (asked == name).then(|| value.clone()))
    }

    #[test]
    fn every_variable_is_taken_trimmed_or_unset_or_refused_by_name() {
        for AwsSetting { variable, form, .. } in SETTINGS.iter().filter(|e| !e.variable.is_empty())
        {
            let read = |text: &str| read_one(variable, text.into());
            let refused = |outcome: Result<Variables, StartError>| {
                let text = outcome.expect_err(variable).to_string();
                assert!(text.starts_with(variable), "{text}");
                assert_eq!(text.lines().count(), 1, "{text}");
                text
            };
            let (good, bad) = samples(*form);
            if *form == Form::Never {
                for text in ["", " ", "x"] {
                    assert!(refused(read(text)).contains("unset it"));
                }
                continue;
            }
            if *form != Form::Verbatim {
                for around in ["", " ", "\n", "\r\n", "\t", "\u{a0}"] {
                    let found = read(&format!("{around}{good}{around}")).unwrap();
                    assert_eq!(found, [((*variable).to_owned(), good.to_owned())].into());
                    assert_eq!(read(around), Ok(Variables::new()), "{variable} {around:?}");
                }
                let bytes = OsString::from_vec([good.as_bytes(), b"\xff"].concat());
                let text = refused(read_one(variable, bytes));
                assert!(text.contains("not UTF-8"), "{text}");
            }
            let text = refused(read(bad.unwrap()));
            let is_secret = matches!(form, Form::Secret | Form::SecretFile | Form::SigningSecret);
            let start = format!("{variable}=");
            assert_eq!(text.starts_with(&start), !is_secret, "{text}");
        }
    }

    #[test]
    fn nothing_else_is_handed_on() {
        let everything = |name: &str| Some(OsString::from(format!("/{name}")));
        // Names that the libraries would read besides are not read at all.
        for name in ["AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS", "HOME", "AWS_ENDPOINT_URL_SSO"] {
            assert!(SETTINGS.iter().all(|entry| entry.variable != name), "{name}");
        }
        assert!(read(&everything).is_err(), "a path is no switch");
        assert_eq!(read(&|_| None), Ok(Variables::new()));
    }

    #[test]
    fn values_are_shown_without_passwords_and_not_without_end() {
        let text =
            |url: &str| read_one("AWS_ENDPOINT_URL_STS", url.into()).unwrap_err().to_string();
        let hidden = text("http://user:hush@host");
        assert!(!hidden.contains("hush") && hidden.contains("…@host"), "{hidden}");
        assert!(text(&"x".repeat(100_000)).len() < 500);
        let secret = read_one("AWS_SECRET_ACCESS_KEY", "hush\nhush".into()).unwrap_err();
        assert!(!secret.to_string().contains("hush"), "{secret}");
    }

    #[test]
    fn endpoints_that_would_panic_a_library_are_refused() {
        for (variable, bad) in [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "127.0.0.1:80"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "localhost"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "ftp://127.0.0.1/x"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "/x"),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "*"),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "http://host/x"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "169.254.169.254"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://"),
        ] {
            let outcome = read_one(variable, bad.into());
            assert!(outcome.is_err(), "{variable}={bad}: {outcome:?}");
        }
    }

    #[test]
    fn paths_lose_what_is_around_them() {
        let path = |text: &str| trimmed(OsStr::new(text));
        assert_eq!(path(" /a b\r\n"), Some("/a b".into()));
        assert_eq!((path(""), path("\n")), (None, None));
        let bytes = OsString::from_vec(b"/\xff".to_vec());
        assert_eq!(trimmed(&bytes), Some(bytes.clone()));
    }
}
