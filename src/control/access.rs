//! Who may read which page of the admin listener.
//!
//! Health and metrics are for everybody who reaches it, because balancers and scrapers rarely have
//! a token; metrics show the names of clients' tokens. All else shows clients or, later, changes
//! something: it asks for `ADMIN_TOKEN`, and without one it is there for this host's own users
//! alone, on a loopback address. A web page that they have open reaches it too if its host name
//! suddenly resolves to that address (DNS rebinding), so without a token a name is refused as
//! `host`. What is neither health nor metrics is guarded whether or not there is such a page, so a
//! new page is guarded without a line here.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::header::HOST;
use http::uri::Authority;
use http::{HeaderMap, Uri};

use crate::config::{AdminToken, AdminTokenSource};
use crate::http::tokens::bearer_of;

/// The page that shows the others. It holds nothing of this server and asks for the rest as anybody
/// does, so where there is a token everybody gets it, to type the token in.
const SHELL: &str = "/";

/// The pages for everybody.
const OPEN: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// The token in effect; `None`: there is none.
pub(super) type SharedAdminToken = Arc<ArcSwapOption<AdminToken>>;

/// Judges requests to the admin listener.
pub(super) struct AdminAccess {
    pub(super) token: SharedAdminToken,
    /// Only users of this host reach it.
    is_loopback: bool,
}

/// Why a page is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// The address is public, and there is no token.
    NoAdminToken,
    /// There is no token, and `host` is a name that anybody may have resolve to this address.
    NamedHost,
    /// The request has no bearer token.
    Missing,
    /// The request has another one.
    Wrong,
}

impl Denied {
    /// The reason and the remedy.
    pub(super) fn text(self) -> &'static str {
        match self {
            Denied::NoAdminToken => {
                "only /metrics, /healthz and /readyz are served on an address that is not \
                 loopback: set ADMIN_TOKEN or ADMIN_TOKEN_FILE, or ask on \
                 ADMIN_LISTEN=127.0.0.1:9090\n"
            }
            Denied::NamedHost => {
                "the host header is neither an IP address nor localhost: ask for one of these, or \
                 set ADMIN_TOKEN or ADMIN_TOKEN_FILE\n"
            }
            Denied::Missing => "ADMIN_TOKEN is missing: send it as authorization: Bearer TOKEN\n",
            Denied::Wrong => "the token is not ADMIN_TOKEN\n",
        }
    }
}

impl AdminAccess {
    /// For the listener at `address`.
    pub(super) fn new(address: SocketAddr, token: SharedAdminToken) -> AdminAccess {
        AdminAccess { token, is_loopback: address.ip().to_canonical().is_loopback() }
    }

    /// Whether a request for `target` with these headers may be answered.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn judge(&self, target: &Uri, headers: &HeaderMap) -> Result<(), Denied> {
        let path = target.path();
        if OPEN.contains(&path) {
            return Ok(());
        }
        match (&*self.token.load(), bearer_of(headers)) {
            (Some(_), _) if path == SHELL => Ok(()),
            (None, _) if !self.is_loopback => Err(Denied::NoAdminToken),
            (None, _) if !is_asked_by_address(target, headers) => Err(Denied::NamedHost),
            (None, _) => Ok(()),
            (Some(_), Ok(None)) => Err(Denied::Missing),
            (Some(token), Ok(Some(given))) if token.is(given) => Ok(()),
            (Some(_), _) => Err(Denied::Wrong),
        }
    }
}

/// Whether the host is an IP address or `localhost`, which no DNS server can have resolve to another
/// address: in `host`, and in a target that is a whole URL (RFC 9112, section 3.2.2).
fn is_asked_by_address(target: &Uri, headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|value| Authority::try_from(value.as_bytes()).ok());
    host.is_some_and(|host| is_address(&host)) && target.authority().is_none_or(is_address)
}

fn is_address(authority: &Authority) -> bool {
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost")
}

/// `ADMIN_TOKEN_FILE`, which reloads read again.
pub(super) struct AdminTokenFile {
    path: PathBuf,
    token: SharedAdminToken,
}

/// Reads the token, if there is one, and the file that it came from.
///
/// # Errors
/// The file holds none.
pub(super) fn load(
    source: Option<&AdminTokenSource>,
) -> Result<(SharedAdminToken, Option<AdminTokenFile>), String> {
    let token = source.map(AdminTokenSource::load).transpose()?;
    let token = Arc::new(ArcSwapOption::from_pointee(token));
    let file = match source {
        Some(AdminTokenSource::File(path)) => {
            Some(AdminTokenFile { path: path.clone(), token: token.clone() })
        }
        Some(AdminTokenSource::Setting(_)) | None => None,
    };
    Ok((token, file))
}

impl AdminTokenFile {
    /// Reads the file now. One that holds no token leaves the one read before in effect.
    pub(super) fn reload(&self) {
        let shown = self.path.display();
        match AdminToken::read(&self.path) {
            Ok(token) if self.token.load().as_deref() == Some(&token) => {}
            Ok(token) => {
                self.token.store(Some(Arc::new(token)));
                tracing::info!("reload: ADMIN_TOKEN_FILE {shown}: another token from now on");
            }
            Err(why) => tracing::error!(
                "reload: ADMIN_TOKEN_FILE {shown} {why}; the token read before stays in effect"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header::{AUTHORIZATION, HeaderName, HeaderValue};

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    #[test]
    fn health_and_metrics_are_open_and_all_else_is_guarded() {
        let (none, some) = (None, AdminToken::parse(TOKEN).ok());
        let with = |value: &str| [(AUTHORIZATION, HeaderValue::from_str(value).unwrap())];
        let bearer = with(&format!("Bearer {TOKEN}"));
        let twice = [bearer.clone(), bearer.clone()].concat();
        let key = [(HeaderName::from_static("x-api-key"), HeaderValue::from_static(TOKEN))];
        let host = |value: &'static str| [(HOST, HeaderValue::from_static(value))];
        let (named, local) = (host("rebound.example:9090"), host("localhost"));
        let named_bearer = [named.clone(), bearer.clone()].concat();
        let ok = Ok(());
        for (address, token, headers, expected) in [
            ("127.0.0.1:1", none, &local[..], ok),
            ("127.8.8.8:1", none, &host("127.8.8.8:9090"), ok),
            ("[::1]:1", none, &host("[::1]:9090"), ok),
            ("[::1]:1", none, &host("[::1]"), ok),
            ("[::ffff:127.0.0.1]:1", none, &host("LocalHost:1"), ok),
            ("127.0.0.1:1", none, &host("10.0.0.1"), ok),
            ("127.0.0.1:1", none, &[local.clone(), with("Bearer x")].concat(), ok),
            ("127.0.0.1:1", none, &[], Err(Denied::NamedHost)),
            ("127.0.0.1:1", none, &named, Err(Denied::NamedHost)),
            ("127.0.0.1:1", none, &named_bearer, Err(Denied::NamedHost)),
            ("127.0.0.1:1", none, &host("localhost.example"), Err(Denied::NamedHost)),
            ("127.0.0.1:1", none, &host("127.0.0.1.example"), Err(Denied::NamedHost)),
            ("[::1]:1", none, &host("localhost@rebound.example"), Err(Denied::NamedHost)),
            ("[::1]:1", none, &host(""), Err(Denied::NamedHost)),
            ("0.0.0.0:1", none, &[], Err(Denied::NoAdminToken)),
            ("[::]:1", none, &[], Err(Denied::NoAdminToken)),
            ("10.0.0.1:1", none, &bearer, Err(Denied::NoAdminToken)),
            ("[fd00::1]:1", none, &[], Err(Denied::NoAdminToken)),
            ("127.0.0.1:1", some, &[], Err(Denied::Missing)),
            ("127.0.0.1:1", some, &bearer, ok),
            ("127.0.0.1:1", some, &named_bearer, ok),
            ("0.0.0.0:1", some, &bearer, ok),
            ("0.0.0.0:1", some, &with(&format!("bearer   {TOKEN}")), ok),
            ("0.0.0.0:1", some, &[], Err(Denied::Missing)),
            ("0.0.0.0:1", some, &key, Err(Denied::Missing)),
            ("0.0.0.0:1", some, &with("Bearer 0123456789abcdeg"), Err(Denied::Wrong)),
            ("0.0.0.0:1", some, &with("Bearer"), Err(Denied::Wrong)),
            ("0.0.0.0:1", some, &with("Basic 0123456789abcdef"), Err(Denied::Wrong)),
            ("0.0.0.0:1", some, &twice, Err(Denied::Wrong)),
        ] {
            let token = Arc::new(ArcSwapOption::from_pointee(token));
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name, value.clone());
            }
            let token_is_none = token.load().is_none();
            let shell = if token_is_none { expected } else { ok };
            let access = AdminAccess::new(address.parse().unwrap(), token);
            let judge = |target: &str| access.judge(&target.parse().unwrap(), &map);
            assert_eq!(judge(SHELL), shell, "{address} {headers:?}");
            // A name in the target is as one in `host`.
            let by_name =
                if expected == ok && token_is_none { Err(Denied::NamedHost) } else { expected };
            for (target, expected) in [
                ("http://rebound.example/peers", by_name),
                ("http://localhost.example:9090/peers", by_name),
                ("http://127.0.0.1:9090/peers", expected),
                ("http://[::1]/peers", expected),
                ("http://LOCALHOST/peers", expected),
                ("http://rebound.example/metrics", ok),
            ] {
                assert_eq!(judge(target), expected, "{address} {target} {headers:?}");
            }
            for path in
                ["/peers", "/settings", "//", "/later", "/metrics/", "/Healthz", "//metrics"]
            {
                assert_eq!(judge(path), expected, "{address} {path} {headers:?}");
            }
            for path in OPEN {
                assert_eq!(judge(path), ok, "{address} {path} {headers:?}");
            }
        }
    }

    #[test]
    fn a_file_without_a_token_leaves_the_one_read_before() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write(TOKEN);
        let (token, file) = load(Some(&AdminTokenSource::File(path.clone()))).unwrap();
        let is = |text: &str| token.load().as_ref().unwrap().is(text.as_bytes());
        let file = file.unwrap();
        for (text, now) in
            [("", TOKEN), ("short", TOKEN), ("fedcba9876543210\n", "fedcba9876543210")]
        {
            write(text);
            file.reload();
            assert!(is(now), "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        file.reload();
        assert!(is("fedcba9876543210"));
        assert!(
            load(Some(&AdminTokenSource::File(path))).err().unwrap().contains("ADMIN_TOKEN_FILE")
        );
    }
}
