//! The values of a request that keys use: its `version`, the name of its token, headers and query
//! parameters.
//!
//! They are known only while the request is handled, and keys are made later, perhaps by another
//! process. So they are made safe and short at once and kept with the request's payloads, in memory
//! and in the spool, under the names that `KEY` has for them. A template looks its values up by
//! name: with another `KEY` than they were kept for, a value that is not there is missing, and none
//! takes the place of another.
//!
//! ```text
//! text = (name U+001F value U+001F)*
//! name = version | token | header:NAME | query:NAME | meta
//! ```
//!
//! Neither names nor values contain a control character. `meta`, with the value 1, marks payloads
//! that are wrapped (`META`): what `KEY` and `EVENT_TIME` read of them is their member `payload`.
//!
//! Header names are field names of RFC 9110, section 5.1. Query parameters are those of
//! `application/x-www-form-urlencoded` (WHATWG URL, section 5).

use std::fmt;

use super::fields;
use super::parse::KeyError;
use super::value::{self, VALUE_BYTES_MAX};

/// Most different values of requests in one template, as many as fields.
pub const REQUEST_VALUES_MAX: usize = fields::POINTERS_MAX;

/// Longest text of one request's values: [`REQUEST_VALUES_MAX`] and the mark, each with its value
/// and two ends, and names that come from a `KEY` of 1 KiB.
pub const REQUEST_VALUES_BYTES_MAX: usize =
    (REQUEST_VALUES_MAX + 1) * (VALUE_BYTES_MAX + 2 * END.len_utf8()) + 2048;

/// Ends a name or value.
const END: char = super::VALUE_END;

pub(super) const VERSION: &str = "version";
pub(super) const TOKEN: &str = "token";
const HEADER: &str = "header:";
const QUERY: &str = "query:";
const WRAPPED: &str = "meta";

/// Headers whose values are secrets, or contain them. They are never stored.
const SECRET_HEADERS: [&str; 12] = [
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "x-auth-token",
    "x-access-token",
    "x-csrf-token",
    "x-xsrf-token",
    "x-amz-security-token",
    "cookie",
    "cookie2",
    "set-cookie",
];

/// Query parameters whose values are secrets: RFC 6750, section 2.3, and what others call them.
const SECRET_PARAMETERS: [&str; 12] = [
    "token",
    "access_token",
    "refresh_token",
    "id_token",
    "auth_token",
    "api_key",
    "apikey",
    "api-key",
    "x-api-key",
    "password",
    "secret",
    "signature",
];

/// Why a header or query parameter is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("names no header: write a name of letters, digits and -, such as header:x-request-id")]
    Header,
    #[error("names no query parameter: write its name, such as query:tenant")]
    Query,
    #[error(
        "is a secret, and secrets are never stored: name something else, or use the token's name (token)"
    )]
    Secret,
}

/// A header's name in lower case.
///
/// # Errors
/// It is not a name, or the header is secret.
pub fn header_name(given: &str) -> Result<String, NameError> {
    let is_name_byte = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if given.is_empty() || !given.bytes().all(is_name_byte) {
        return Err(NameError::Header);
    }
    let name = given.to_ascii_lowercase();
    if SECRET_HEADERS.contains(&&*name) { Err(NameError::Secret) } else { Ok(name) }
}

/// Checks a query parameter's name, which is written as it is once decoded.
///
/// # Errors
/// It is not a name, or the parameter is secret.
fn query_name(given: &str) -> Result<&str, NameError> {
    if given.is_empty() || given.contains(char::is_control) {
        return Err(NameError::Query);
    }
    match SECRET_PARAMETERS.contains(&&*given.to_ascii_lowercase()) {
        true => Err(NameError::Secret),
        false => Ok(given),
    }
}

/// What a template takes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestSource<'a> {
    /// The envelope's `version`.
    Version,
    /// The name of its token.
    Token,
    /// The header with this name, in lower case.
    Header(&'a str),
    /// The query parameter with this name, decoded.
    Query(&'a str),
}

impl<'a> RequestSource<'a> {
    /// The source of the value that is kept as `name`.
    pub(super) fn of_name(name: &'a str) -> RequestSource<'a> {
        match (name.strip_prefix(HEADER), name.strip_prefix(QUERY)) {
            (Some(header), _) => RequestSource::Header(header),
            (_, Some(parameter)) => RequestSource::Query(parameter),
            _ if name == TOKEN => RequestSource::Token,
            _ => RequestSource::Version,
        }
    }
}

/// The name under which the value of a placeholder with this argument is kept.
pub(super) fn kept_name(placeholder: &str, argument: &str) -> Result<String, KeyError> {
    let name = match placeholder {
        "header" => header_name(argument).map(|name| format!("{HEADER}{name}")),
        _ => query_name(argument).map(|name| format!("{QUERY}{name}")),
    };
    name.map_err(|why| KeyError::RequestName { given: format!("{placeholder}:{argument}"), why })
}

/// The values of one request; mostly there are none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RequestValues(Box<str>);

/// What clients send is in no log.
impl fmt::Debug for RequestValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestValues(*** {} bytes)", self.0.len())
    }
}

impl RequestValues {
    /// The values in a text from [`RequestValues::text`]; `None` if it is none.
    pub fn of_text(text: &str) -> Option<RequestValues> {
        RequestValues::is_text(text).then(|| RequestValues(text.into()))
    }

    /// Whether this is a text from [`RequestValues::text`].
    pub fn is_text(text: &str) -> bool {
        let is_whole = text.is_empty() || text.ends_with(END);
        let ends = text.matches(END).count();
        let fits = text.len() <= REQUEST_VALUES_BYTES_MAX;
        is_whole && ends.is_multiple_of(2) && fits
    }

    /// The values of a request that has a `version` only.
    pub fn of_version(version: &str) -> RequestValues {
        let mut kept = RequestValuesWriter::default();
        kept.push(VERSION, version.chars());
        kept.finish()
    }

    /// The `version`, if there is nothing else.
    pub fn version_only(&self) -> Option<&str> {
        let mut all = self.all();
        match (all.next(), all.next()) {
            (Some((VERSION, version)), None) => Some(version),
            _ => None,
        }
    }

    /// All of them, as the spool keeps them.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Memory they take, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Whether the request's payloads are wrapped.
    pub fn is_wrapped(&self) -> bool {
        !self.0.is_empty() && self.get(WRAPPED).is_some()
    }

    /// The value with this name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.all().find(|(kept, _)| *kept == name).map(|(_, value)| value)
    }

    fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut texts = self.0.split_terminator(END);
        std::iter::from_fn(move || Some((texts.next()?, texts.next()?)))
    }
}

/// Collects the values of one request. It allocates for the first one.
#[derive(Default)]
pub struct RequestValuesWriter(String);

impl fmt::Debug for RequestValuesWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestValuesWriter(*** {} bytes)", self.0.len())
    }
}

impl RequestValuesWriter {
    /// Adds a value, safe and at most [`VALUE_BYTES_MAX`] long. An empty one is missing.
    pub fn add(&mut self, source: RequestSource<'_>, value: &str) {
        match source {
            RequestSource::Version => self.push(VERSION, value.chars()),
            RequestSource::Token => self.push(TOKEN, value.chars()),
            RequestSource::Header(name) => self.push_named(HEADER, name, value),
            RequestSource::Query(name) => self.push_named(QUERY, name, value),
        }
    }

    /// Marks the payloads as wrapped.
    pub fn mark_wrapped(&mut self) {
        self.push(WRAPPED, "1".chars());
    }

    /// The values that were added.
    pub fn finish(self) -> RequestValues {
        RequestValues(self.0.into())
    }

    fn push_named(&mut self, kind: &str, name: &str, value: &str) {
        let before = self.0.len();
        self.0.push_str(kind);
        self.push(name, value.chars());
        if self.0.len() == before + kind.len() {
            self.0.truncate(before);
        }
    }

    fn push(&mut self, name: &str, value: impl Iterator<Item = char> + Clone) {
        let before = self.0.len();
        self.0.push_str(name);
        self.0.push(END);
        let start = self.0.len();
        value::write(value, "", &mut self.0);
        match self.0.len() == start {
            true => self.0.truncate(before),
            false => self.0.push(END),
        }
    }
}

/// The first parameter of a request's query with this name, decoded: `+` is a space, `%XX` a byte,
/// and bytes that are not UTF-8 are U+FFFD. A `%` without two hex digits stands for itself.
pub fn query_value(query: &str, name: &str) -> Option<String> {
    let found = query.split('&').find_map(|pair| {
        let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
        decoded(found).eq(name.bytes()).then_some(value)
    })?;
    let bytes: Vec<u8> = decoded(found).collect();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (&first, behind) = rest.split_first()?;
        rest = behind;
        if first == b'%'
            && let [high, low, behind @ ..] = rest
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            rest = behind;
            return Some(high << 4 | low);
        }
        Some(if first == b'+' { b' ' } else { first })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn header_names_are_lower_case_tokens_and_no_secrets() {
        for (given, expected) in [
            ("x-request-id", Ok("x-request-id")),
            ("X-Tenant", Ok("x-tenant")),
            ("a.b_c~!", Ok("a.b_c~!")),
            ("", Err(NameError::Header)),
            ("x tenant", Err(NameError::Header)),
            ("x:y", Err(NameError::Header)),
            ("größe", Err(NameError::Header)),
            ("x\ny", Err(NameError::Header)),
            ("a/b", Err(NameError::Header)),
            ("Authorization", Err(NameError::Secret)),
            ("x-api-key", Err(NameError::Secret)),
            ("COOKIE", Err(NameError::Secret)),
            ("proxy-authorization", Err(NameError::Secret)),
        ] {
            assert_eq!(header_name(given).as_deref(), expected.as_deref(), "{given:?}");
        }
    }

    #[test]
    fn query_names_are_any_text_but_secrets() {
        for (given, expected) in [
            ("tenant", Ok("tenant")),
            ("a b/ü%", Ok("a b/ü%")),
            ("", Err(NameError::Query)),
            ("a\nb", Err(NameError::Query)),
            ("token", Err(NameError::Secret)),
            ("Access_Token", Err(NameError::Secret)),
        ] {
            assert_eq!(query_name(given), expected, "{given:?}");
        }
    }

    #[test]
    fn the_first_parameter_of_a_name_counts() {
        for (query, expected) in [
            ("t=acme", Some("acme")),
            ("x=1&t=a&t=b", Some("a")),
            ("t=&t=b", Some("")),
            ("t", Some("")),
            ("%74=a", Some("a")),
            ("t=a+b%20c%2B", Some("a b c+")),
            ("t=%2e%2E%2f..", Some("../..")),
            ("t=%", Some("%")),
            ("t=%4", Some("%4")),
            ("t=%zz%+1", Some("%zz% 1")),
            ("t=%ff%00", Some("\u{fffd}\0")),
            ("t=a=b", Some("a=b")),
            ("tt=a&T=b", None),
            ("", None),
            ("&&=&", None),
        ] {
            assert_eq!(query_value(query, "t").as_deref(), expected, "{query:?}");
        }
        assert_eq!(query_value("a+b=1", "a b").as_deref(), Some("1"));
        assert_eq!(query_value("%F0%9F%9A%80=1", "🚀").as_deref(), Some("1"));
    }

    #[test]
    fn missing_and_empty_values_are_not_kept() {
        let mut kept = RequestValuesWriter::default();
        kept.add(RequestSource::Version, "");
        kept.add(RequestSource::Token, "");
        kept.add(RequestSource::Header("x"), "");
        kept.add(RequestSource::Query("x"), "");
        let none = kept.finish();
        assert_eq!(none, RequestValues::default());
        assert!(!none.is_wrapped() && none.version_only().is_none());
        let mut kept = RequestValuesWriter::default();
        kept.add(RequestSource::Version, "1.2");
        assert_eq!(kept.finish(), RequestValues::of_version("1.2"));
        assert_eq!(RequestValues::of_version("1.2").version_only(), Some("1.2"));
        let mut kept = RequestValuesWriter::default();
        kept.add(RequestSource::Version, "1.2");
        kept.mark_wrapped();
        let both = kept.finish();
        assert_eq!((both.version_only(), both.is_wrapped()), (None, true));
    }

    #[test]
    fn only_whole_texts_are_read() {
        for bad in ["version", "version\u{1f}", "version\u{1f}1", "a\u{1f}b\u{1f}c\u{1f}"] {
            assert_eq!(RequestValues::of_text(bad), None, "{bad:?}");
        }
        let long = "x".repeat(REQUEST_VALUES_BYTES_MAX);
        assert_eq!(RequestValues::of_text(&format!("version\u{1f}{long}\u{1f}")), None);
        assert_eq!(RequestValues::of_text(""), Some(RequestValues::default()));
    }

    proptest! {
        #[test]
        fn values_are_found_under_their_names_only(
            version: String,
            token: String,
            header: String,
            query: String,
        ) {
            let mut kept = RequestValuesWriter::default();
            let sources = [
                (RequestSource::Version, "version", &version),
                (RequestSource::Token, "token", &token),
                (RequestSource::Header("n"), "header:n", &header),
                (RequestSource::Query("n"), "query:n", &query),
            ];
            for (source, _, value) in sources {
                kept.add(source, value);
            }
            let kept = kept.finish();
            prop_assert_eq!(RequestValues::of_text(kept.text()), Some(kept.clone()));
            for (_, name, value) in sources {
                let mut safe = String::new();
                value::write(value.chars(), "", &mut safe);
                prop_assert_eq!(kept.get(name), Some(&*safe).filter(|safe| !safe.is_empty()));
            }
            prop_assert!(!kept.is_wrapped());
            prop_assert!(kept.bytes() <= REQUEST_VALUES_BYTES_MAX);
        }

        #[test]
        fn no_query_makes_it_panic(query: String, name: String) {
            let _whatever = query_value(&query, &name);
        }
    }
}
