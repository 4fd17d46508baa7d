//! `CORS_ORIGINS`: the origins whose scripts may read this server's answers.
//!
//! An origin is compared with what a browser sends, byte for byte, so it is kept in the form that
//! browsers send: the ASCII serialization of the HTML standard (section 7.1.1), with the hosts and
//! default ports of the URL standard. In it, `https` and `http` hosts are lower-case, IPv6 addresses
//! are compressed, and a default port is left out. Text that is no origin, but that somebody may
//! take for one (a URL with a path, a host alone), is refused with the origin that it may mean.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::value::Parsed;

/// Most origins in the list. Each request with an `origin` is compared with all of them.
pub const ORIGINS_MAX: usize = 100;

/// Longest name of a host (RFC 1035), and longest label in it.
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// `CORS_ORIGINS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOrigins {
    /// `*`
    Any,
    /// At least one, at most [`ORIGINS_MAX`].
    List(Vec<OriginPattern>),
}

/// One item of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// As browsers send it.
    Exact(String),
    /// `https://*.example.com`, cut where the `*` is: what stands before the label, `https://`, and
    /// what stands behind it, `.example.com`.
    OneLabel { before: String, behind: String },
}

impl OriginPattern {
    /// Whether `origin`, the value of a request's `origin` header, is meant.
    pub fn matches(&self, origin: &[u8]) -> bool {
        match self {
            OriginPattern::Exact(exact) => exact.as_bytes() == origin,
            OriginPattern::OneLabel { before, behind } => origin
                .strip_prefix(before.as_bytes())
                .and_then(|rest| rest.strip_suffix(behind.as_bytes()))
                .is_some_and(is_label),
        }
    }
}

/// Whether a browser may send `label` as one label of a host.
fn is_label(label: &[u8]) -> bool {
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

/// `*`, or origins with commas in between.
pub(super) fn cors_origins(text: &str) -> Parsed<CorsOrigins> {
    if text.trim() == "*" {
        return Ok(CorsOrigins::Any);
    }
    let mut list = Vec::new();
    for item in text.split(',').map(str::trim) {
        let pattern = pattern(item)?;
        if !list.contains(&pattern) {
            list.push(pattern);
        }
    }
    if list.len() > ORIGINS_MAX {
        return Err(format!("lists {} origins: at most {ORIGINS_MAX} are allowed", list.len()));
    }
    Ok(CorsOrigins::List(list))
}

fn pattern(item: &str) -> Parsed<OriginPattern> {
    match item {
        "" => return Err(
            "has an empty item: give origins such as https://example.com, with commas in between"
                .into(),
        ),
        "*" => return Err("allows every origin with *: then give * alone".into()),
        "null" => {
            return Err("null is what any sandboxed page and any local file sends: give the origin of your page".into());
        }
        _ => {}
    }
    let refuse = |why: &str| Err(format!("{item:?} {why}"));
    let Some((scheme, rest)) = item.split_once("://") else {
        let host = item.trim_start_matches('/');
        return refuse(&format!("has no scheme: write https://{host}"));
    };
    let scheme = scheme.to_ascii_lowercase();
    if !is_scheme(&scheme) {
        return refuse("has no such scheme: write https://… or http://…");
    }
    if matches!(&*scheme, "ws" | "wss" | "ftp" | "file" | "data" | "blob" | "about") {
        return refuse("is no origin of a page: write the https:// or http:// of the page itself");
    }
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    if authority.len() < rest.len() {
        return refuse(&format!("has a path: an origin has none, write {scheme}://{authority}"));
    }
    if let Some((_, host)) = rest.rsplit_once('@') {
        return refuse(&format!("has a user name: an origin has none, write {scheme}://{host}"));
    }
    // Only of these two schemes browsers change the case of the host and leave out a port.
    let is_web = matches!(&*scheme, "https" | "http");
    let authority = if is_web { rest.to_ascii_lowercase() } else { rest.to_owned() };
    let (host, port) = split_port(&authority).map_err(|why| format!("{item:?} {why}"))?;
    let port = match (&*scheme, port) {
        ("https", Some(443)) | ("http", Some(80)) | (_, None) => String::new(),
        (_, Some(port)) => format!(":{port}"),
    };
    let host_of = |host| self::host(host).map_err(|why| format!("{item:?} {why}"));
    match host.strip_prefix("*.") {
        None => Ok(OriginPattern::Exact(format!("{scheme}://{}{port}", host_of(host)?))),
        Some(parent) => {
            let parent = host_of(parent)?;
            if parent.parse::<Ipv4Addr>().is_ok() {
                return refuse("has a * in an address: only a name has labels");
            }
            // Whoever wants to registers a name there.
            if !parent.contains('.') && parent != "localhost" {
                return refuse(&format!("would allow every domain in {parent}: name yours"));
            }
            let behind = format!(".{parent}{port}");
            Ok(OriginPattern::OneLabel { before: format!("{scheme}://"), behind })
        }
    }
}

fn is_scheme(scheme: &str) -> bool {
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// The host of an authority, with its brackets, and its port.
fn split_port(authority: &str) -> Parsed<(&str, Option<u16>)> {
    let colon = match authority.strip_prefix('[').and_then(|rest| rest.find(']')) {
        Some(end) => (authority.len() > end + 2).then_some(end + 2),
        None => authority.find(':'),
    };
    let Some(colon) = colon else { return Ok((authority, None)) };
    let (host, port) = authority.split_at(colon);
    let digits = port.strip_prefix(':').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(port @ 1..) => Ok((host, Some(port))),
        _ if port == ":*" => Err("has a * for the port: list each port".into()),
        _ => Err("has no valid port: write HOST:PORT, or leave the port out".into()),
    }
}

/// A host as browsers send it.
fn host(host: &str) -> Parsed<String> {
    if let Some(literal) = host.strip_prefix('[') {
        let address = literal.strip_suffix(']').and_then(|text| text.parse::<Ipv6Addr>().ok());
        return address
            .map(|address| format!("[{}]", ipv6(address)))
            .ok_or_else(|| "has no valid IPv6 address: write https://[2001:db8::1]".into());
    }
    if host.contains('*') {
        return Err(
            "has a * elsewhere than as its whole first label: write https://*.example.com".into()
        );
    }
    if !host.is_ascii() {
        return Err("has a host that is not ASCII: write it as browsers send it, xn--…".into());
    }
    if host.ends_with('.') {
        return Err("ends with a dot: leave it out".into());
    }
    let is_name = host.len() <= HOST_BYTES_MAX
        && host.split('.').all(|label| is_label(label.to_ascii_lowercase().as_bytes()));
    if !is_name {
        return Err("has no valid host: write https://example.com".into());
    }
    // Browsers take a host whose last label is a number for an IPv4 address.
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_hex = |digits: &str| digits.bytes().all(|b| b.is_ascii_hexdigit());
    let is_number =
        last.bytes().all(|b| b.is_ascii_digit()) || last.strip_prefix("0x").is_some_and(is_hex);
    if is_number && host.parse::<Ipv4Addr>().is_err() {
        return Err("has no valid IPv4 address: write it with four decimal numbers".into());
    }
    Ok(host.to_owned())
}

/// The URL standard's serialization, which, other than Rust's, has no dotted form.
fn ipv6(address: Ipv6Addr) -> String {
    match address.to_ipv4_mapped() {
        None => address.to_string(),
        Some(_) => {
            let [.., high, low] = address.segments();
            format!("::ffff:{high:x}:{low:x}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<OriginPattern> {
        match cors_origins(text) {
            Ok(CorsOrigins::List(list)) => list,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn allows(text: &str, origin: &str) -> bool {
        list(text).iter().any(|pattern| pattern.matches(origin.as_bytes()))
    }

    #[test]
    fn origins_are_kept_as_browsers_send_them() {
        for (written, sent) in [
            ("https://example.com", "https://example.com"),
            ("HTTPS://Example.COM", "https://example.com"),
            ("https://example.com:443", "https://example.com"),
            ("https://example.com:0443", "https://example.com"),
            ("http://example.com:80", "http://example.com"),
            ("http://example.com:443", "http://example.com:443"),
            ("https://example.com:80", "https://example.com:80"),
            ("https://example.com:8443", "https://example.com:8443"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://127.0.0.1:5173", "http://127.0.0.1:5173"),
            ("https://[2001:DB8:0:0:0:0:0:1]", "https://[2001:db8::1]"),
            ("https://[::1]:443", "https://[::1]"),
            ("http://[::ffff:127.0.0.1]:8080", "http://[::ffff:7f00:1]:8080"),
            ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
            ("https://under_score.example.com", "https://under_score.example.com"),
            ("chrome-extension://AbCd", "chrome-extension://AbCd"),
            ("moz-extension://1-2", "moz-extension://1-2"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("  https://example.com  ", "https://example.com"),
        ] {
            assert_eq!(list(written), [OriginPattern::Exact(sent.into())], "{written}");
            assert!(allows(written, sent));
        }
        assert_eq!(cors_origins("*"), Ok(CorsOrigins::Any));
        assert_eq!(cors_origins(" * "), Ok(CorsOrigins::Any));
        assert_eq!(list("https://a.com, https://b.com,https://A.com:443").len(), 2);
    }

    #[test]
    fn what_is_no_origin_is_refused_with_what_to_write() {
        for (text, says) in [
            ("", "empty item"),
            ("https://a.com,", "empty item"),
            (",", "empty item"),
            ("https://a.com, *", "give * alone"),
            ("*, *", "give * alone"),
            ("null", "sandboxed page"),
            ("https://a.com,null", "sandboxed page"),
            ("example.com", "write https://example.com"),
            ("*.example.com", "write https://*.example.com"),
            ("localhost:3000", "write https://localhost:3000"),
            ("//example.com", "write https://example.com"),
            ("://example.com", "no such scheme"),
            ("*://example.com", "no such scheme"),
            ("ht tp://example.com", "no such scheme"),
            ("1http://example.com", "no such scheme"),
            ("wss://example.com", "of the page itself"),
            ("file://", "of the page itself"),
            ("https://example.com/", "has a path: an origin has none, write https://example.com"),
            ("https://Example.com/a?b", "write https://Example.com"),
            ("https://example.com?x", "has a path"),
            ("https://example.com#x", "has a path"),
            ("https://example.com\\x", "has a path"),
            ("https:///", "has a path"),
            ("https://user@example.com", "write https://example.com"),
            ("https://u:p@example.com", "has a user name"),
            ("https://", "no valid host"),
            ("https://.", "ends with a dot"),
            ("https://example.com.", "ends with a dot"),
            ("https://.example.com", "no valid host"),
            ("https://a..b", "no valid host"),
            ("https://exa mple.com", "no valid host"),
            ("https://a.com https://b.com", "has a path"),
            ("https://a.com;https", "no valid host"),
            ("https://b\u{fc}cher.example", "xn--"),
            ("https://example.com:", "no valid port"),
            ("https://example.com:0", "no valid port"),
            ("https://example.com:65536", "no valid port"),
            ("https://example.com:+80", "no valid port"),
            ("https://example.com:80:80", "no valid port"),
            ("http://localhost:*", "list each port"),
            ("https://[::1", "no valid port"),
            ("https://[::g]", "IPv6"),
            ("https://[::1]x", "no valid port"),
            ("https://[fe80::1%25eth0]", "IPv6"),
            ("https://::1", "no valid port"),
            ("https://127.1", "IPv4"),
            ("https://1.2.3.400", "IPv4"),
            ("https://0x7f000001", "IPv4"),
            ("https://*", "whole first label"),
            ("https://*.com", "every domain in com"),
            ("https://*.", "no valid host"),
            ("https://*.*.example.com", "whole first label"),
            ("https://a.*.example.com", "whole first label"),
            ("https://*a.example.com", "whole first label"),
            ("https://a*.example.com", "whole first label"),
            ("https://*.1.2.3.4", "only a name has labels"),
            ("https://*.[::1]", "no valid port"),
        ] {
            let error = cors_origins(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
        let long = format!("https://{}.com", "a".repeat(64));
        assert!(cors_origins(&long).is_err());
        assert!(cors_origins(&format!("https://{}com", "a.".repeat(130))).is_err());
        let many = |count: usize| {
            let items: Vec<_> = (0..count).map(|n| format!("https://a{n}.com")).collect();
            cors_origins(&items.join(","))
        };
        assert!(many(ORIGINS_MAX).is_ok());
        assert!(many(ORIGINS_MAX + 1).unwrap_err().contains("at most 100"));
    }

    #[test]
    fn an_origin_matches_itself_alone() {
        let listed = "https://example.com, http://dev.example.com:8080";
        for origin in ["https://example.com", "http://dev.example.com:8080"] {
            assert!(allows(listed, origin), "{origin}");
        }
        for origin in [
            "",
            "*",
            "null",
            "https://example.com.evil.com",
            "https://evilexample.com",
            "https://evil-example.com",
            "https://example.com.",
            "https://example.com:443",
            "https://example.com:8443",
            "https://example.com/",
            "https://example.com ",
            " https://example.com",
            "https://example.com, https://example.com",
            "https://EXAMPLE.com",
            "HTTPS://example.com",
            "http://example.com",
            "https://www.example.com",
            "https://user@example.com",
            "https://evil.com/https://example.com",
            "https://example.co",
            "example.com",
            "http://dev.example.com",
            "http://dev.example.com:80801",
            "https://dev.example.com:8080",
        ] {
            assert!(!allows(listed, origin), "{origin}");
        }
    }

    #[test]
    fn a_star_is_one_label() {
        let listed = "HTTPS://*.Example.com:443, http://*.localhost:3000";
        for origin in [
            "https://a.example.com",
            "https://a-b_9.example.com",
            "https://xn--bcher-kva.example.com",
            "http://app.localhost:3000",
        ] {
            assert!(allows(listed, origin), "{origin}");
        }
        let long = format!("https://{}.example.com", "a".repeat(64));
        for origin in [
            "https://example.com",
            "https://.example.com",
            "https://a.b.example.com",
            "https://a.example.com.",
            "https://a.example.com:443",
            "https://a.example.com:8443",
            "https://aexample.com",
            "https://evilexample.com",
            "https://a.example.com.evil.com",
            "https://evil.com/.example.com",
            "https://evil.com?.example.com",
            "https://evil.com#.example.com",
            "https://evil.com:80.example.com",
            "https://user@a.example.com",
            "https://a@b.example.com",
            "https://*.example.com",
            "https://A.example.com",
            "https://a.EXAMPLE.com",
            "https://a\u{0}.example.com",
            "https://%61.example.com",
            "http://a.example.com",
            "http://app.localhost",
            "http://a.b.localhost:3000",
            long.as_str(),
        ] {
            assert!(!allows(listed, origin), "{origin}");
        }
        assert!(!list(listed)[0].matches(b"https://\xff.example.com"));
    }
}
