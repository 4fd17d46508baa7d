//! Merges flag > environment > TOML file > default, as text. Each text keeps its source, so that an
//! error can say where a bad value came from. Nothing here interprets a value.
//!
//! In the environment a setting is called `MILLRACE_<NAME>` or, without the prefix, `<NAME>`. A
//! name without the prefix may belong to another program, and its text may be that program's
//! secret: no message ever shows it, nor that of a setting which is a secret itself. No message
//! shows the user and the password of a URL.

#![expect(clippy::disallowed_methods, reason = "runs before any executor")]

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::ConfigError;
use super::settings::{SETTINGS, Setting};
use super::value::{self, PEM};

/// The settings and the file given on the command line. No setting that is a secret is among them.
#[derive(Clone, Default)]
pub struct Flags {
    /// `--config FILE`
    pub file: Option<PathBuf>,
    /// Setting names (`MAX_WORKERS`) with the text given for them; at most one each.
    pub values: Vec<(&'static str, String)>,
}

/// The names alone: a text may be a URL with a password.
impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.values.iter().map(|(name, _)| name).collect();
        f.debug_struct("Flags").field("file", &self.file).field("values", &names).finish()
    }
}

/// The prefix of a setting's environment variable.
pub const ENV_PREFIX: &str = "MILLRACE_";

/// The environment variable that names the TOML file.
const ENV_CONFIG: &str = "MILLRACE_CONFIG";

/// Environment variables, read once because nothing changes the process's own.
pub type Environment = HashMap<OsString, OsString>;

/// What the configuration depends on besides flags and file: the environment, and the cores that
/// this process may use. Passed in, so that tests do not depend on the process's own.
pub struct HostContext {
    pub env: Environment,
    /// CPU ids, ascending; empty if the kernel did not report them.
    pub cores_allowed: Vec<usize>,
}

/// Where a setting's text came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingSource {
    Flag,
    /// `MILLRACE_<NAME>`
    Env,
    /// The name without the prefix.
    BareEnv,
    File(PathBuf),
    Default,
}

impl SettingSource {
    /// `flag --max-workers`, `environment variable MILLRACE_MAX_WORKERS`, `key max_workers in
    /// FILE`, `default`.
    pub fn describe(&self, setting: &Setting) -> String {
        match self {
            SettingSource::Flag => format!("flag --{}", setting.flag()),
            SettingSource::Env => format!("environment variable {}", setting.env()),
            SettingSource::BareEnv => format!("environment variable {}", setting.name),
            SettingSource::File(path) => format!("key {} in {}", setting.key(), path.display()),
            SettingSource::Default => "default".into(),
        }
    }
}

/// Settings that name files of secrets. A certificate's file may have its key.
const SECRET_FILES: [&str; 4] = ["TOKENS_FILE", "ADMIN_TOKEN_FILE", "TLS_CERT", "TLS_KEY"];

/// One setting after the layers were merged.
#[derive(Clone)]
pub struct SettingValue {
    pub setting: &'static Setting,
    /// As the operator wrote it; empty if optional and not set.
    pub text: String,
    pub source: SettingSource,
}

impl SettingValue {
    /// Whether no message may show its text: it is a secret, or may be another program's, or a key
    /// where the name of its file belongs.
    pub fn is_hidden(&self) -> bool {
        let is_secret = self.setting.is_secret || self.is_pem() || self.is_secret_itself();
        is_secret || self.may_be_foreign()
    }

    /// Whether its text may be a secret in the place of the name of its file.
    pub(super) fn is_secret_itself(&self) -> bool {
        SECRET_FILES.contains(&self.setting.name)
            && self.text.split(',').any(|file| value::is_secret_itself(file.trim()))
    }

    /// Whether its text is a key or a certificate.
    pub(super) fn is_pem(&self) -> bool {
        self.text.contains(PEM)
    }

    /// Whether its text may belong to another program.
    pub fn may_be_foreign(&self) -> bool {
        self.source == SettingSource::BareEnv
    }

    /// The text as an operator may see it; `None` if it is hidden.
    pub fn public_text(&self) -> Option<Cow<'_, str>> {
        (!self.is_hidden()).then(|| self.shown())
    }

    /// The text as a message may show it, if it is not hidden.
    pub(super) fn shown(&self) -> Cow<'_, str> {
        without_passwords(&self.text)
    }
}

/// `text`, a URL or a list with commas, without users and passwords. A password may hold anything,
/// also commas, slashes and what looks like another URL: whatever may be one is hidden.
fn without_passwords(text: &str) -> Cow<'_, str> {
    let mut shown = Cow::Borrowed(text);
    if let Some((scheme, rest)) = text.split_once("://")
        && let Some((_, host)) = rest.rsplit_once('@')
        // A path alone has none.
        && (!rest.starts_with('/') || rest.contains("://"))
    {
        shown = Cow::Owned(format!("{scheme}://***@{host}"));
    }
    match password_at(&shown) {
        Some(at) => Cow::Owned(format!("{}***", &shown[..at])),
        None => shown,
    }
}

/// Where the first URL begins, behind its scheme, whose colon is followed by no port: the host may
/// be missing. The name of a variable, which nobody has replaced, may stand for a port.
fn password_at(text: &str) -> Option<usize> {
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) || is_variable(text);
    let mut urls = text.match_indices("://").map(|(at, mark)| at + mark.len());
    urls.find(|at| {
        let authority = text[*at..].split(['/', '?', '#', ',']).next().unwrap_or_default();
        // The colons of an address in brackets are its own.
        let name_end = if authority.starts_with('[') { authority.find(']') } else { None };
        let port = authority[name_end.unwrap_or(0)..].split_once(':').map(|(_, port)| port);
        !authority.starts_with("arn:") && port.is_some_and(|port| !is_port(port))
    })
}

/// `${NAME}`, `$(NAME)`, `{{NAME}}`, or `$NAME` where that is called a port: without brackets a
/// password may look like it. A default in it (`${NAME:-text}`) may be a secret.
pub fn is_variable(text: &str) -> bool {
    let is_name = |name: &str| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_.".contains(&byte);
        !name.is_empty() && name.bytes().all(is_part)
    };
    let bracketed = [("${", "}"), ("$(", ")"), ("{{", "}}")].into_iter();
    let mut names = bracketed.filter_map(|(open, close)| {
        text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close))
    });
    match text.strip_prefix('$').filter(|name| is_name(name)) {
        Some(name) => name == "PORT" || name.ends_with("_PORT"),
        None => names.any(|name| is_name(name.trim_matches(' '))),
    }
}

/// `MAX_WORKERS="0" (flag --max-workers)`: how messages quote a setting.
impl fmt::Display for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SettingValue { setting, source, .. } = self;
        let described = source.describe(setting);
        match self.is_hidden() {
            true => write!(f, "{} ({described}, text not shown)", setting.name),
            false => write!(f, "{}={:?} ({described})", setting.name, self.shown()),
        }
    }
}

impl fmt::Debug for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Every setting's text and source, in table order.
#[derive(Clone, Debug)]
pub struct Effective {
    values: Vec<SettingValue>,
    /// The TOML file.
    file: Option<PathBuf>,
    /// `MILLRACE_*` variables that are not settings, sorted.
    unknown: Vec<String>,
}

impl Effective {
    /// Merges the layers. An unreadable text adds to `errors`, and the next layer's text is used.
    pub(super) fn merge(
        flags: &Flags,
        host: &HostContext,
        errors: &mut Vec<ConfigError>,
    ) -> Effective {
        let (path, named_by) = match (&flags.file, &host.env.get(OsStr::new(ENV_CONFIG))) {
            (Some(path), _) => (Some(path.clone()), "--config"),
            (None, Some(path)) => (trimmed_path(path), ENV_CONFIG),
            (None, None) => (None, ""),
        };
        let file = match &path {
            Some(path) => FileLayer::read(path, named_by, errors),
            None => FileLayer::default(),
        };
        let value = |setting: &'static Setting| {
            let (text, source) = from_flag(flags, setting)
                .or_else(|| from_env(host, setting, errors))
                .or_else(|| file.value(setting))
                .unwrap_or_else(|| (setting.default.into(), SettingSource::Default));
            // Texts from files and shells often end with a line feed.
            SettingValue { setting, text: text.trim().into(), source }
        };
        let values = SETTINGS.iter().map(value).collect();
        Effective { values, file: path, unknown: unknown_names(&host.env) }
    }

    /// The value of the setting called `name`.
    ///
    /// # Panics
    /// If there is no such setting.
    pub fn get(&self, name: &str) -> &SettingValue {
        let found = self.values.iter().find(|v| v.setting.name == name);
        found.unwrap_or_else(|| panic!("no {name}"))
    }

    /// The names of the settings whose text differs in `other`.
    pub fn differing(&self, other: &Effective) -> Vec<&'static str> {
        let pairs = self.values.iter().zip(&other.values);
        pairs.filter(|(a, b)| a.text != b.text).map(|(value, _)| value.setting.name).collect()
    }

    /// Replaces the value of the setting called `name` by that in `other`.
    pub fn copy_from(&mut self, name: &str, other: &Effective) {
        let pairs = self.values.iter_mut().zip(&other.values);
        pairs.filter(|(own, _)| own.setting.name == name).for_each(|(own, new)| *own = new.clone());
    }

    /// All of them, in the order of the table.
    pub fn all(&self) -> impl Iterator<Item = &SettingValue> {
        self.values.iter()
    }

    /// The settings that do not have their default, for `check`.
    pub fn changed(&self) -> impl Iterator<Item = &SettingValue> {
        self.values.iter().filter(|v| v.source != SettingSource::Default)
    }

    /// The TOML file, if a secret comes from it.
    pub fn file_with_secrets(&self) -> Option<&Path> {
        self.values.iter().filter(|value| value.setting.is_secret).find_map(|value| {
            match &value.source {
                SettingSource::File(path) => Some(path.as_path()),
                _ => None,
            }
        })
    }

    /// The TOML file, if one was named.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// One sentence about `MILLRACE_*` variables that are not settings: mistakes, or what
    /// Kubernetes adds for a service called `millrace`.
    pub fn unknown_names(&self) -> Option<String> {
        // Stricter than for keys of the file: Kubernetes' names must not look like mistakes.
        let shown = |name: &String| match nearest(name.trim_start_matches(ENV_PREFIX), 0.9) {
            Some(setting) => format!("{name} (did you mean {}?)", setting.env()),
            None => name.clone(),
        };
        let all: Vec<String> = self.unknown.iter().map(shown).collect();
        (!all.is_empty()).then(|| format!("unknown settings: {}", all.join(", ")))
    }
}

fn unknown_names(env: &Environment) -> Vec<String> {
    let names = env.keys().map(|name| name.to_string_lossy().into_owned());
    let is_unknown = |name: &String| {
        let known = |bare: &str| SETTINGS.iter().any(|s| s.name == bare);
        name != ENV_CONFIG && name.strip_prefix(ENV_PREFIX).is_some_and(|bare| !known(bare))
    };
    let mut unknown: Vec<String> = names.filter(is_unknown).collect();
    unknown.sort_unstable();
    unknown
}

/// `None` if the text is blank.
fn trimmed_path(text: &OsStr) -> Option<PathBuf> {
    let text = text.to_str().map_or(text, |text| OsStr::new(text.trim()));
    (!text.is_empty()).then(|| text.into())
}

fn from_flag(flags: &Flags, setting: &Setting) -> Option<(String, SettingSource)> {
    let (_, text) = flags.values.iter().find(|(name, _)| *name == setting.name)?;
    Some((text.clone(), SettingSource::Flag))
}

/// An empty variable counts as not set: compose files and shells write `MAX_WORKERS=` for "use the
/// default". An empty prefixed variable still keeps the bare name from being read.
fn from_env(
    host: &HostContext,
    setting: &'static Setting,
    errors: &mut Vec<ConfigError>,
) -> Option<(String, SettingSource)> {
    let look = |name: &str| host.env.get(OsStr::new(name));
    let (text, source) = match look(&setting.env()) {
        Some(text) => (text, SettingSource::Env),
        None => (look(setting.name)?, SettingSource::BareEnv),
    };
    match text.to_str() {
        Some(text) if text.trim().is_empty() => None,
        Some(text) => Some((text.into(), source)),
        None => {
            let value = SettingValue { setting, text: text.to_string_lossy().into_owned(), source };
            errors.push(ConfigError::refuse(&value, "is not UTF-8: give plain text".into()));
            None
        }
    }
}

/// The values of a TOML file, as text.
#[derive(Default)]
struct FileLayer {
    path: PathBuf,
    values: Vec<(&'static str, String)>,
}

/// A larger file is not a configuration: all settings together take well under a hundred short
/// lines.
const FILE_BYTES_MAX: u64 = 1 << 20;

impl FileLayer {
    fn read(path: &Path, named_by: &str, errors: &mut Vec<ConfigError>) -> FileLayer {
        let mut layer = FileLayer { path: path.into(), values: Vec::new() };
        match read_table(path) {
            Ok(table) => layer.take(table, errors),
            Err(reason) => {
                let reason = format!("(named by {named_by}) {reason}");
                errors.push(ConfigError::File { path: path.into(), reason });
            }
        }
        layer
    }

    fn take(&mut self, table: toml::Table, errors: &mut Vec<ConfigError>) {
        for (key, value) in table {
            let Some(setting) = SETTINGS.iter().find(|s| s.key() == key) else {
                let nearest = nearest_key(&key);
                errors.push(ConfigError::UnknownKey { path: self.path.clone(), key, nearest });
                continue;
            };
            match plain_text(&value) {
                Some(text) => self.values.push((setting.name, text)),
                None => {
                    let kind = value.type_str();
                    let source = SettingSource::File(self.path.clone());
                    let value = SettingValue { setting, text: format!("{value:?}"), source };
                    let reason =
                        format!("{kind} is not supported here: give a string or an integer");
                    errors.push(ConfigError::refuse(&value, reason));
                }
            }
        }
    }

    fn value(&self, setting: &Setting) -> Option<(String, SettingSource)> {
        let (_, text) = self.values.iter().find(|(name, _)| *name == setting.name)?;
        Some((text.clone(), SettingSource::File(self.path.clone())))
    }
}

/// # Errors
/// One sentence without the path: unreadable, too large, or not TOML (with line and column).
fn read_table(path: &Path) -> Result<toml::Table, String> {
    let mut text = String::new();
    File::open(path)
        .map_err(|e| format!("cannot be opened: {e}"))?
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|e| format!("cannot be read: {e}"))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!(
            "is larger than {FILE_BYTES_MAX} bytes, the most that a configuration may have"
        ));
    }
    text.parse().map_err(|e: toml::de::Error| not_toml(&text, &e))
}

/// What is wrong with `text`, and where. Unlike the error's own text it quotes nothing, because the
/// line may hold a secret.
fn not_toml(text: &str, error: &toml::de::Error) -> String {
    let at = error.span().map_or(String::new(), |span| {
        let before = &text[..text.floor_char_boundary(span.start)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let (line, column) =
            (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1);
        format!(" in line {line}, column {column}")
    });
    // What it wants is in quotes, but what it has found as well.
    let line = error.message().lines().next().unwrap_or_default();
    let is_harmless = |quoted: &str| !quoted.contains(char::is_alphanumeric);
    let pieces = line.split('`').enumerate();
    let pieces =
        pieces.map(|(at, piece)| if at % 2 == 0 || is_harmless(piece) { piece } else { "***" });
    let what = pieces.collect::<Vec<_>>().join("`");
    format!("is not TOML (values with units need quotes, as in \"10s\"){at}: {what}")
}

/// The text that a flag would have for this TOML value; `None` for types that no setting accepts.
fn plain_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(s) => Some(s.clone()),
        toml::Value::Integer(n) => Some(n.to_string()),
        toml::Value::Boolean(b) => Some(b.to_string()),
        // `cores = [0, 2]`
        toml::Value::Array(items) if items.iter().all(toml::Value::is_integer) => {
            Some(items.iter().filter_map(plain_text).collect::<Vec<_>>().join(","))
        }
        _ => None,
    }
}

/// The key most similar to `key`, if any is similar.
fn nearest_key(key: &str) -> Option<String> {
    nearest(key, 0.8).map(Setting::key)
}

/// The setting whose name is most similar to `name`, if its similarity (0 to 1) is above `least`.
fn nearest(name: &str, least: f64) -> Option<&'static Setting> {
    let wanted = name.to_ascii_lowercase().replace('-', "_");
    SETTINGS
        .iter()
        .map(|s| (strsim::jaro_winkler(&wanted, &s.key()), s))
        .filter(|(likeness, _)| *likeness > least)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, setting)| setting)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> (FileLayer, Vec<ConfigError>) {
        let mut layer = FileLayer { path: "m.toml".into(), values: Vec::new() };
        let mut errors = Vec::new();
        layer.take(text.parse().unwrap(), &mut errors);
        (layer, errors)
    }

    #[test]
    fn strings_integers_booleans_and_integer_lists_become_text() {
        let (layer, errors) = table(
            "max_workers = 3\nlisten = \"[::]:1\"\ns3_force_path_style = true\ncores = [0, 2]\n",
        );
        assert!(errors.is_empty(), "{errors:?}");
        let text = |name: &str| layer.values.iter().find(|(n, _)| *n == name).unwrap().1.as_str();
        assert_eq!(text("MAX_WORKERS"), "3");
        assert_eq!(text("LISTEN"), "[::]:1");
        assert_eq!(text("S3_FORCE_PATH_STYLE"), "true");
        assert_eq!(text("CORES"), "0,2");
    }

    #[test]
    fn unknown_keys_name_the_nearest_and_tables_are_refused() {
        let (layer, errors) = table("max_worker = 3\nzzz = 1\n[store]\nurl = 1\n");
        assert!(layer.values.is_empty());
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let all = all.join("\n");
        assert!(all.contains("max_worker") && all.contains("did you mean max_workers?"), "{all}");
        assert!(all.contains("zzz"), "{all}");
        assert!(all.contains("STORE") && all.contains("table is not supported here"), "{all}");
        assert_eq!(errors.len(), 3);
    }

    #[test]
    fn passwords_of_urls_are_hidden() {
        for (text, expected) in [
            ("s3://bucket/x", "s3://bucket/x"),
            ("a@b", "a@b"),
            ("file:///srv/x@y", "file:///srv/x@y"),
            ("file:///srv/x,http://me:hush@y", "file://***@y"),
            ("http://host:80/x@y", "http://***@y"),
            ("http://[::1]:80,http://[::]", "http://[::1]:80,http://[::]"),
            ("s3://arn:aws:s3:r:1:accesspoint/n", "s3://arn:aws:s3:r:1:accesspoint/n"),
            ("http://me:hush@host", "http://***@host"),
            ("s3://hush@host/x", "s3://***@host/x"),
            ("http://me:hu@sh@host/x", "http://***@host/x"),
            ("http://me:hu/sh@host:80/x", "http://***@host:80/x"),
            ("s3://me:hu,sh@bucket/x", "s3://***@bucket/x"),
            ("s3://hu/sh@bucket", "s3://***@bucket"),
            ("http://me:hu,x://y:sh@host", "http://***@host"),
            ("https://KEY:hush/bucket", "https://***"),
            ("https://KEY:hush", "https://***"),
            ("https://KEY:hu,sh/bucket", "https://***"),
            ("https://1:2:hush", "https://***"),
            ("https://[::1]:hush", "https://***"),
            ("https://a,https://KEY:hush/x,y", "https://a,https://***"),
            ("https://me:x@host:hush", "https://***"),
            ("1.2.3.4:5,http://me:hush@host,x://y", "1.2.3.4:5,http://***@host,x://y"),
            // Variables that nobody has replaced.
            ("https://host:${PORT}", "https://host:${PORT}"),
            ("https://[::]:${my_port},http://host:80", "https://[::]:${my_port},http://host:80"),
            ("https://0.0.0.0:$(PORT)/x", "https://0.0.0.0:$(PORT)/x"),
            ("https://host:{{ .Values.port }}", "https://host:{{ .Values.port }}"),
            ("https://host:$PORT", "https://host:$PORT"),
            ("https://host:$HTTPS_PORT", "https://host:$HTTPS_PORT"),
            ("https://${HOST}:${PORT}", "https://${HOST}:${PORT}"),
            ("https://host:", "https://host:"),
            // What only looks like one, or holds more.
            ("https://KEY:$HUSH", "https://***"),
            ("https://KEY:$hushport", "https://***"),
            ("https://KEY:hush${PORT}", "https://***"),
            ("https://KEY:${PORT}hush", "https://***"),
            ("https://KEY:${PORT:-hush}", "https://***"),
            ("https://KEY:${}", "https://***"),
            ("https://KEY:${hush", "https://***"),
            ("https://KEY:hush}", "https://***"),
            ("https://KEY:{{hush}", "https://***"),
            ("https://KEY:{{hu sh}}", "https://***"),
            ("https://me:${HUSH}@host", "https://***@host"),
            ("https://a:${PORT},https://KEY:hush", "https://a:${PORT},https://***"),
        ] {
            assert_eq!(without_passwords(text), expected);
        }
    }

    #[test]
    fn what_is_said_of_a_broken_file_quotes_nothing_of_it() {
        for (text, at) in [
            ("a = 1\nadmin_token = \"hush\n", "line 2, column 20"),
            ("admin_token = hush\n", "line 1, column 15"),
            ("é = \"x\"\n\"hush\n", "line"),
            ("hush = 1\nhush = 2\n", "line 2, column 1"),
            ("a = 1\n[hush\n", "line 2"),
        ] {
            let error = text.parse::<toml::Table>().unwrap_err();
            let said = not_toml(text, &error);
            assert!(
                !said.contains("hush") && said.contains(at) && said.lines().count() == 1,
                "{said}"
            );
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let flags = Flags::default();
        let mut host = HostContext { env: Environment::new(), cores_allowed: vec![0] };
        for (name, text) in [("MILLRACE_ADMIN_TOKEN", "hush"), ("STORE", "hush")] {
            host.env.insert(name.into(), text.into());
        }
        let effective = Effective::merge(&flags, &host, &mut Vec::new());
        let text = format!("{effective:?}");
        assert!(!text.contains("hush") && text.contains("ADMIN_TOKEN"), "{text}");
    }

    #[test]
    fn a_key_in_another_spelling_finds_its_setting() {
        assert_eq!(nearest_key("MAX_WORKERS").as_deref(), Some("max_workers"));
        assert_eq!(nearest_key("max-queue-bytes").as_deref(), Some("max_queue_bytes"));
        assert_eq!(nearest_key("q"), None);
    }
}
