//! Where the load goes: the URL, its addresses, and whose certificate is accepted there.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use futures_rustls::pki_types::CertificateDer;
use futures_rustls::pki_types::pem::PemObject as _;
use futures_rustls::rustls::ClientConfig;
use url::Url;

use super::wire::WireTls;
use crate::commands::ask::{PageUrl, any_certificate};
use crate::store::s3::tls_client_config;

/// Whose certificate is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadTrust {
    /// One that the host's roots vouch for.
    Roots,
    /// Also one that an authority in this file vouches for.
    Ca(PathBuf),
    /// Any.
    Anybody,
}

/// The server under load.
pub(super) struct LoadTarget {
    pub(super) url: Url,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) tls: Option<WireTls>,
}

/// Path of a URL that has none: what millrace takes payloads at.
const PATH: &str = "/payloads";
/// How long a name may take to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

impl LoadTarget {
    /// # Errors
    /// One sentence: it is not a URL, its name has no address, or TLS cannot be set up.
    pub(super) fn new(text: &str, trust: &LoadTrust) -> Result<LoadTarget, String> {
        let page = PageUrl::parse(text).map_err(|why| format!("the URL {why}"))?;
        let page = if page.names_a_page() { page } else { page.at(PATH) };
        let tls = match page.url().scheme() {
            "https" => Some(WireTls { config: client_config(trust)?, name: page.server_name()? }),
            _ if *trust != LoadTrust::Roots => {
                return Err("--ca and --insecure are for https://, and the URL has http://".into());
            }
            _ => None,
        };
        let url = page.url().clone();
        let addresses = addresses(&url)?;
        Ok(LoadTarget { url, addresses, tls })
    }

    /// What to look at if nobody listens there.
    pub(super) fn refused_remedy(&self) -> String {
        match self.url.port() {
            Some(_) => "is the server running, and is this its host and port?".to_owned(),
            None => format!(
                "the URL names no port, so this is port {}; a millrace listens on 8080 unless LISTEN says otherwise",
                self.url.port_or_known_default().unwrap_or_default()
            ),
        }
    }
}

fn client_config(trust: &LoadTrust) -> Result<Arc<ClientConfig>, String> {
    match trust {
        LoadTrust::Roots => tls_client_config(&[]),
        LoadTrust::Ca(path) => tls_client_config(&certificates(path)?),
        LoadTrust::Anybody => any_certificate(),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(format!("--ca {}: has no certificate in it", path.display()))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("--ca {}: {error}", path.display())),
    }
}

/// Resolution has no deadline of its own: a thread that is stuck in it ends with the process.
#[expect(clippy::disallowed_methods, reason = "on a thread of its own, whose end is awaited")]
fn addresses(url: &Url) -> Result<Vec<SocketAddr>, String> {
    let host = url.host_str().unwrap_or_default().to_owned();
    let port = url.port_or_known_default().unwrap_or_default();
    let (sender, receiver) = sync_channel(1);
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let resolve = move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Vec::from_iter);
        let _nobody_waits = sender.send(found);
    };
    std::thread::Builder::new()
        .spawn(resolve)
        .map_err(|error| format!("no thread for the resolution of {host}: {error}"))?;
    let late = |_| format!("{host}: no answer to the name within {RESOLVE_TIMEOUT:?}");
    let found = receiver.recv_timeout(RESOLVE_TIMEOUT).map_err(late)?;
    match found.map_err(|error| format!("{host}: {error}"))? {
        found if found.is_empty() => Err(format!("{host}: the name has no address")),
        found => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_path_means_payloads() {
        for (text, url) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/payloads"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/payloads"),
            ("http://127.0.0.1:8080/v1/logs?x", "http://127.0.0.1:8080/v1/logs?x"),
            ("https://127.0.0.1", "https://127.0.0.1/payloads"),
        ] {
            let target = LoadTarget::new(text, &LoadTrust::Roots).unwrap();
            assert_eq!(target.url.as_str(), url);
            assert_eq!(target.tls.is_some(), url.starts_with("https"));
        }
        let target = LoadTarget::new("http://[::1]", &LoadTrust::Roots).unwrap();
        assert_eq!(target.addresses, ["[::1]:80".parse().unwrap()]);
        assert!(target.refused_remedy().contains("port 80;"), "{}", target.refused_remedy());
    }

    #[test]
    fn what_cannot_be_a_target_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let no_pem = dir.path().join("no.pem");
        std::fs::write(&no_pem, "nothing").unwrap();
        let missing = dir.path().join("missing.pem");
        for (text, trust, said) in [
            ("localhost:8080", LoadTrust::Roots, "the URL is not a URL of HTTP: give http://"),
            ("http://me:hush@x/", LoadTrust::Roots, "has a user or a password"),
            ("http://127.0.0.1:1/", LoadTrust::Anybody, "are for https://"),
            ("https://127.0.0.1:1/", LoadTrust::Ca(no_pem), "has no certificate in it"),
            ("https://127.0.0.1:1/", LoadTrust::Ca(missing), "missing.pem: "),
        ] {
            let why = LoadTarget::new(text, &trust).err().unwrap();
            assert!(why.contains(said) && !why.contains("hush"), "{text}: {why}");
        }
    }
}
