//! Which requests go through a proxy: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, as
//! curl reads them.
//!
//! These variables are read once, when an `s3://` store starts. The lower-case
//! name wins over the upper-case one, a scheme's own variable over `ALL_PROXY`, and an empty
//! variable is not set. Loopback and link-local addresses and the hosts of the metadata and
//! container credential services are never reached through a proxy. No error, `Debug` or `Display`
//! here shows a value or a password: proxy URLs hold both.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use http::HeaderValue;
use http::uri::Authority;
use url::Host;

use super::masked::mask;
use crate::store::s3::dial::ServerAddress;
use crate::store::s3::direct::base64;

/// Credential services that listen outside the link-local ranges: EC2's and EKS's over IPv6.
const METADATA: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
];

/// Variables that name a credential service of this host.
const METADATA_VARIABLES: [&str; 2] =
    ["AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];

/// A variable that cannot be used; the value is not shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable} {reason}")]
pub struct BadProxy {
    variable: String,
    reason: String,
}

/// One HTTP proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Lower case, IPv6 literals without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// `Basic …`, if the URL has a user.
    authorization: Option<String>,
}

/// `http://proxy.corp:3128`, without user and password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Proxy { host, port, .. } = self;
        match host.contains(':') {
            true => write!(f, "http://[{host}]:{port}"),
            false => write!(f, "http://{host}:{port}"),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Proxy {
    /// The value of `proxy-authorization`, which is a secret.
    pub(super) fn authorization(&self) -> Option<&str> {
        self.authorization.as_deref()
    }

    /// The same as a header value that is never logged.
    pub(super) fn authorization_header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(self.authorization.as_deref()?).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// What the proxy, or somebody behind it, says, without its user and password.
    pub(super) fn masked(&self, text: &str) -> String {
        let Some(encoded) = self.authorization.as_deref().and_then(|a| a.strip_prefix("Basic "))
        else {
            return text.to_owned();
        };
        let plain = aws_smithy_types::base64::decode(encoded).unwrap_or_default();
        let plain = String::from_utf8_lossy(&plain);
        let (user, password) = plain.split_once(':').unwrap_or((&*plain, ""));
        mask(text, &[encoded, password, user]).into_owned()
    }

    /// Parses `http://[USER[:PASSWORD]@]HOST[:PORT][/]`; the scheme may be missing. The default
    /// port is 80, as in any http URL and in boto3 and Go (curl uses 1080).
    fn parse(text: &str) -> Result<Proxy, String> {
        let rest = match text.split_once("://") {
            None => text,
            Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
                "http" => rest,
                "https" => {
                    return Err("names a proxy that speaks TLS itself, which millrace does not: \
                                give http://HOST:PORT (requests to an https store stay encrypted)"
                        .into());
                }
                scheme if scheme.starts_with("socks") => {
                    return Err("names a SOCKS proxy, which millrace does not support: give \
                                http://HOST:PORT, or name the store's host in NO_PROXY"
                        .into());
                }
                _ => return Err("has a scheme that is not http: give http://HOST:PORT".into()),
            },
        };
        let wrong = || "is not a proxy: give http://[USER:PASSWORD@]HOST:PORT".to_owned();
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, address) = match rest.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, rest),
        };
        let (host, port) = host_and_port(address).ok_or_else(wrong)?;
        let authorization = user.map(basic).transpose().map_err(|()| wrong())?;
        Ok(Proxy { host, port: port.unwrap_or(80), authorization })
    }
}

/// `Basic` credentials from a URL's `USER[:PASSWORD]`, whose parts are percent-encoded.
fn basic(user: &str) -> Result<String, ()> {
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let mut plain = Vec::new();
    for (part, end) in [(name, &b":"[..]), (password, b"")] {
        plain.extend(percent_encoding::percent_decode_str(part));
        plain.extend_from_slice(end);
    }
    if plain.iter().any(u8::is_ascii_control) {
        return Err(());
    }
    let mut text = b"Basic ".to_vec();
    base64(&plain, &mut text);
    String::from_utf8(text).map_err(|_| ())
}

/// Lower case, without a trailing dot, IPv6 literals without brackets; `None` if it is not a host.
fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let authority: Authority = text.parse().ok().filter(|_| !text.contains('@'))?;
    let bare = authority.host();
    let port = match authority.as_str().strip_prefix(bare)? {
        "" => None,
        port => Some(port.strip_prefix(':')?.parse().ok().filter(|port| *port != 0)?),
    };
    let host = bare.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    (!host.is_empty()).then(|| (host.to_ascii_lowercase(), port))
}

/// The proxies of this process, and the hosts reached without them.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exempt: Vec<Exempt>,
    /// Hosts of the credential services in the environment.
    metadata: Vec<String>,
}

/// One entry of `NO_PROXY`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exempt {
    All,
    /// This host and its subdomains; with a port, only that port.
    Name(String, Option<u16>),
    /// All addresses with these leading bits; with a port, only that port.
    Net(IpAddr, u32, Option<u16>),
}

impl Proxies {
    /// No proxy for anything.
    pub fn none() -> Proxies {
        Proxies::default()
    }

    /// Reads the variables from `env`.
    ///
    /// # Errors
    /// Names a variable that would be used but is invalid: with a wrong `NO_PROXY` requests would
    /// bypass the proxy, or go through it, although they must not.
    pub fn read(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Proxies, BadProxy> {
        let exempt = read_exempt(env);
        let proxy = |names: &[&str]| match first(env, names)? {
            None => Ok(None),
            // No request goes through it, so its value does not matter.
            Some(_) if matches!(&exempt, Ok(list) if list.contains(&Exempt::All)) => Ok(None),
            Some((variable, text)) => {
                Proxy::parse(&text).map(Some).map_err(|reason| BadProxy { variable, reason })
            }
        };
        let http = proxy(&["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])?;
        let https = proxy(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])?;
        if http.is_none() && https.is_none() {
            return Ok(Proxies::none());
        }
        let named = |name: &&str| {
            let url: http::Uri = env(name)?.to_str()?.trim().parse().ok()?;
            ServerAddress::of(&url).map(|server| server.host)
        };
        let metadata = METADATA_VARIABLES.iter().filter_map(named).collect();
        Ok(Proxies { http, https, exempt: exempt?, metadata })
    }

    /// The proxy that requests to `server` go through.
    pub(super) fn of(&self, server: &ServerAddress) -> Option<&Proxy> {
        let proxy = if server.https { self.https.as_ref() } else { self.http.as_ref() }?;
        let host = server.host.trim_end_matches('.');
        let exempt = self.metadata.iter().any(|name| name.trim_end_matches('.') == host)
            || is_of_this_host(host)
            || self.exempt.iter().any(|entry| entry.covers(host, server.port));
        (!exempt).then_some(proxy)
    }

    /// The proxy that takes requests for `server` in absolute form. For https it is a tunnel
    /// instead.
    pub(super) fn absolute_form(&self, server: &ServerAddress) -> Option<&Proxy> {
        self.of(server).filter(|_| !server.https)
    }
}

/// The first of `names` that is set and not empty, with its value.
fn first(
    env: &dyn Fn(&str) -> Option<OsString>,
    names: &[&str],
) -> Result<Option<(String, String)>, BadProxy> {
    for name in names {
        let Some(value) = env(name) else { continue };
        let variable = (*name).to_owned();
        match value.into_string() {
            Ok(text) if text.trim().is_empty() => {}
            Ok(text) => return Ok(Some((variable, text.trim().to_owned()))),
            Err(_) => return Err(BadProxy { variable, reason: "is not UTF-8".into() }),
        }
    }
    Ok(None)
}

/// Parses `NO_PROXY`.
fn read_exempt(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Vec<Exempt>, BadProxy> {
    let Some((variable, text)) = first(env, &["no_proxy", "NO_PROXY"])? else {
        return Ok(Vec::new());
    };
    parse_exempt(&text).map_err(|at| BadProxy {
        variable,
        reason: format!(
            "has an entry, number {at}, that is not understood: give *, HOST, .SUFFIX, HOST:PORT, an IP address or \
             ADDRESS/BITS, separated by commas"
        ),
    })
}

/// # Errors
/// The number of the first invalid entry, from 1.
fn parse_exempt(text: &str) -> Result<Vec<Exempt>, usize> {
    let entries = text.split([',', ' ', '\t']).filter(|entry| !entry.is_empty());
    entries.enumerate().map(|(i, entry)| parse_entry(entry).ok_or(i + 1)).collect()
}

fn parse_entry(entry: &str) -> Option<Exempt> {
    if entry == "*" {
        return Some(Exempt::All);
    }
    if let Some((address, bits)) = entry.split_once('/') {
        let address: IpAddr = unbracketed(address).parse().ok()?;
        let bits: u32 = bits.parse().ok()?;
        return (bits <= width(address)).then_some(Exempt::Net(address, bits, None));
    }
    // Before a port is looked for: an IPv6 address may stand here without brackets.
    if let Ok(address) = unbracketed(entry).parse() {
        return Some(Exempt::Net(address, width(address), None));
    }
    // `*.corp` is common, and means what `.corp` does.
    let name = entry.strip_prefix("*.").or_else(|| entry.strip_prefix('.')).unwrap_or(entry);
    let (host, port) = host_and_port(name).filter(|(host, _)| !host.contains('*'))?;
    Some(match host.parse() {
        Ok(address) => Exempt::Net(address, width(address), port),
        Err(_) => Exempt::Name(host, port),
    })
}

fn unbracketed(text: &str) -> &str {
    text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text)
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl Exempt {
    fn covers(&self, host: &str, port: u16) -> bool {
        match self {
            Exempt::All => true,
            Exempt::Name(_, Some(only)) | Exempt::Net(_, _, Some(only)) if *only != port => false,
            Exempt::Name(name, _) => {
                let before = host.strip_suffix(name.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }
            Exempt::Net(net, bits, _) => {
                address_of(host).is_some_and(|address| shares_bits(*net, address, *bits))
            }
        }
    }
}

/// The address that `host` spells, also as `127.1` or mapped into IPv6.
fn address_of(host: &str) -> Option<IpAddr> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    match Host::parse(host).ok()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(IpAddr::from(address).to_canonical()),
        Host::Domain(_) => None,
    }
}

fn shares_bits(a: IpAddr, b: IpAddr, bits: u32) -> bool {
    let (a, b, width) = match (a.to_canonical(), b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    // A shift by the whole width means that nothing is left to differ.
    (a ^ b).checked_shr(width - bits.min(width)).unwrap_or(0) == 0
}

/// Loopback, link-local (EC2's and ECS's services among them) and the other metadata addresses.
fn is_of_this_host(host: &str) -> bool {
    if host == "localhost" || host.ends_with(".localhost") {
        return true;
    }
    match address_of(host) {
        Some(IpAddr::V4(v4)) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        Some(IpAddr::V6(v6)) => {
            v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                || METADATA.contains(&v6)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests;
