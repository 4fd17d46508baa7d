//! Settings of what clients post: the paths, and what a body means.

use std::fmt;

use super::value::Parsed;

/// `BODY`: what an object is whose content type does not say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ObjectBody {
    /// A collection: its member `data` holds the payloads.
    #[default]
    Collection,
    /// One payload.
    Payload,
}

pub(super) fn object_body(text: &str) -> Parsed<ObjectBody> {
    match text {
        "collection" => Ok(ObjectBody::Collection),
        "object" => Ok(ObjectBody::Payload),
        _ => Err("give collection (an object holds its payloads in data) or object (it is one \
                  payload)"
            .into()),
    }
}

/// `PATHS`: the paths that take payloads; never empty, no two alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths(Box<[Box<str>]>);

/// Most paths. Each request is compared with them one after another.
const PATHS_MAX: usize = 16;

/// Longest path.
const PATH_BYTES_MAX: usize = 255;

/// Paths that are for health checks.
const RESERVED: [&str; 2] = ["/healthz", "/readyz"];

impl Paths {
    pub(super) fn parse(text: &str) -> Parsed<Paths> {
        let mut paths: Vec<Box<str>> = Vec::new();
        for path in text.split(',').map(|path| path.trim_matches([' ', '\t'])) {
            check_path(path)?;
            if paths.iter().any(|known| **known == *path) {
                return Err(format!("{path} is listed twice: list it once"));
            }
            paths.push(path.into());
        }
        match paths.len() {
            1..=PATHS_MAX => Ok(Paths(paths.into())),
            count => Err(format!("lists {count} paths: give at most {PATHS_MAX}")),
        }
    }

    /// Whether this is one of them. `path` is compared as it was sent: nothing is decoded.
    #[inline]
    pub fn contains(&self, path: &str) -> bool {
        self.0.iter().any(|known| **known == *path)
    }

    /// The one that clients are told of.
    pub fn first(&self) -> &str {
        &self.0[0]
    }
}

/// `/payloads,/v1/events`
impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// A path by RFC 3986, section 3.3, that no client or proxy would send in another way.
fn check_path(path: &str) -> Parsed<()> {
    let refuse = |why: &str| Err(format!("{path:?} {why}"));
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~!$&'()*+;=:@".contains(&b);
    if path.is_empty() {
        return Err("has an empty path: list paths such as /payloads,/v1/events".into());
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(format!("has a path of {} bytes: give at most {PATH_BYTES_MAX}", path.len()));
    }
    if !path.starts_with('/') {
        return match path.contains("://") {
            true => refuse("is a URL: give its path alone, such as /payloads"),
            false => Err(format!("{path:?} does not start with a slash: write /{path}")),
        };
    }
    match path.bytes().find(|byte| !is_plain(*byte)) {
        Some(b'?' | b'#') => {
            return refuse(
                "has a query or fragment: give the path alone; a query is never looked at",
            );
        }
        Some(b'%') => {
            return refuse(
                "is percent-encoded: paths are compared as sent, so give one of plain characters",
            );
        }
        Some(_) => {
            return refuse(
                "may contain only letters, digits, / and - . _ ~ ! $ & ' ( ) * + ; = : @",
            );
        }
        None => {}
    }
    if path.contains("//") {
        return refuse("has an empty part: write single slashes");
    }
    if path.split('/').any(|part| part == "." || part == "..") {
        return refuse("has a part . or ..: write the path out");
    }
    if RESERVED.contains(&path) {
        return refuse("is kept for health checks: give another path");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_listed_in_order() {
        for (text, paths) in [
            ("/payloads", &["/payloads"][..]),
            ("/payloads,/v1/events", &["/payloads", "/v1/events"]),
            (" /a , /a/ ,\t/A", &["/a", "/a/", "/A"]),
            ("/", &["/"]),
            ("/healthz/x,/api/readyz", &["/healthz/x", "/api/readyz"]),
            ("/in;v=1/~u/a.b_c-d@e:f", &["/in;v=1/~u/a.b_c-d@e:f"]),
        ] {
            let parsed = Paths::parse(text).unwrap();
            assert_eq!(parsed.to_string(), paths.join(","));
            assert_eq!(parsed.first(), paths[0]);
            assert!(paths.iter().all(|path| parsed.contains(path)));
            for other in ["", "//", "/payload", "/payloads/", "/PAYLOADS", "payloads", "/v1", "*"] {
                assert_eq!(parsed.contains(other), paths.contains(&other), "{text}: {other}");
            }
        }
    }

    #[test]
    fn what_is_no_path_is_refused_with_a_remedy() {
        let long = format!("/{}", "p".repeat(PATH_BYTES_MAX));
        let many: Vec<String> = (0..=PATHS_MAX).map(|n| format!("/{n}")).collect();
        for (text, says) in [
            ("", "empty path"),
            ("/a,", "empty path"),
            (",/a", "empty path"),
            ("/a,,/b", "empty path"),
            ("payloads", "write /payloads"),
            ("/a,v1/events", "write /v1/events"),
            ("https://host/a", "is a URL"),
            ("*", "does not start with a slash"),
            ("/a?b=1", "query or fragment"),
            ("/a#b", "query or fragment"),
            ("/a%20b", "percent-encoded"),
            ("/%61", "percent-encoded"),
            ("/a b", "may contain only"),
            ("/ä", "may contain only"),
            ("/a\\b", "may contain only"),
            ("/a\"", "may contain only"),
            ("/{stream}", "may contain only"),
            ("/a\n", "may contain only"),
            ("//", "single slashes"),
            ("/a//b", "single slashes"),
            ("/a/../b", "part . or .."),
            ("/.", "part . or .."),
            ("/a,/b,/a", "/a is listed twice"),
            ("/a, /a", "/a is listed twice"),
            ("/healthz", "kept for health checks"),
            ("/a,/readyz", "kept for health checks"),
            (&long, "at most 255"),
            (&many.join(","), "at most 16"),
        ] {
            let error = Paths::parse(text).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        assert!(Paths::parse(&many[1..].join(",")).is_ok());
        assert!(Paths::parse(&long[1..].replacen('p', "/", 1)).is_ok());
    }

    #[test]
    fn an_object_is_a_collection_or_a_payload() {
        assert_eq!(object_body("collection"), Ok(ObjectBody::Collection));
        assert_eq!(object_body("object"), Ok(ObjectBody::Payload));
        for text in ["", "Object", "payload", "array", "ndjson", "object "] {
            assert!(object_body(text).unwrap_err().contains("give collection"), "{text}");
        }
    }
}
