//! Which certificate a client gets: the one for the host name that it asks for (SNI).

use std::collections::HashMap;
use std::sync::Arc;

use futures_rustls::rustls::SignatureScheme;
use futures_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use futures_rustls::rustls::sign::CertifiedKey;

/// The certificates by their names. Of several that fit, one whose key the client can check; of
/// those the one that is listed first.
#[derive(Debug)]
pub struct CertificatesByName {
    all: Vec<Arc<CertifiedKey>>,
    /// Places in `all`, ascending. `*.example.com` is `.example.com`.
    places: HashMap<String, Vec<usize>>,
}

impl CertificatesByName {
    /// The certificates, each with its names; not empty.
    pub fn new(certificates: Vec<(Arc<CertifiedKey>, &[String])>) -> CertificatesByName {
        let mut places: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, (_, names)) in certificates.iter().enumerate() {
            for name in *names {
                let name = name.strip_prefix('*').unwrap_or(name).to_ascii_lowercase();
                let at_name = places.entry(name).or_default();
                if at_name.last() != Some(&at) {
                    at_name.push(at);
                }
            }
        }
        let all = certificates.into_iter().map(|(key, _)| key).collect();
        CertificatesByName { all, places }
    }

    /// The place of the certificate for a client that asks for `name` and can check what `can_check`
    /// says of.
    fn choose(&self, name: Option<&str>, can_check: impl Fn(usize) -> bool) -> usize {
        let name = name.map(|name| name.trim_end_matches('.').to_ascii_lowercase());
        let exact = name.as_ref().and_then(|name| self.places.get(name));
        let wildcard = name.as_ref().and_then(|name| {
            // One label stands for the star.
            self.places.get(&name[name.find('.')?..])
        });
        let fitting = exact.into_iter().chain(wildcard).flatten().copied();
        let mut first = None;
        for at in fitting {
            if can_check(at) {
                return at;
            }
            first.get_or_insert(at);
        }
        let any = || (0..self.all.len()).find(|at| can_check(*at));
        first.or_else(any).unwrap_or(0)
    }
}

impl ResolvesServerCert for CertificatesByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes: &[SignatureScheme] = hello.signature_schemes();
        let can_check = |at: usize| self.all[at].key.choose_scheme(schemes).is_some();
        Some(self.all[self.choose(hello.server_name(), can_check)].clone())
    }
}

#[cfg(test)]
mod tests {
    use futures_rustls::rustls::crypto::ring;
    use rcgen::KeyPair;

    use super::*;

    /// Certificates with these names; their keys do not matter here.
    fn certificates(names: &[&[&str]]) -> CertificatesByName {
        let names: Vec<Vec<String>> =
            names.iter().map(|of| of.iter().map(|name| (*name).to_owned()).collect()).collect();
        let key = || {
            let der = KeyPair::generate().unwrap().serialize_der();
            let der = futures_rustls::pki_types::PrivateKeyDer::Pkcs8(der.into());
            let key = ring::default_provider().key_provider.load_private_key(der).unwrap();
            Arc::new(CertifiedKey::new(Vec::new(), key))
        };
        CertificatesByName::new(names.iter().map(|of| (key(), of.as_slice())).collect())
    }

    #[test]
    fn the_name_decides_then_what_the_client_can_check_then_the_order() {
        let certificates = certificates(&[
            &["default.test"],
            &["a.test", "*.a.test", "A.test"],
            &["a.test"],
            &["x.a.test", "*.b.test"],
            &["*.a.test"],
        ]);
        let all = |_| true;
        for (name, expected) in [
            (None, 0),
            (Some("other.test"), 0),
            (Some("default.test"), 0),
            (Some("a.test"), 1),
            (Some("A.TEST."), 1),
            (Some("y.a.test"), 1),
            (Some("x.a.test"), 3),
            (Some("z.x.a.test"), 0),
            (Some("b.test"), 0),
            (Some("y.b.test"), 3),
            (Some("*.b.test"), 3),
            (Some(""), 0),
            (Some("."), 0),
            (Some("test"), 0),
        ] {
            assert_eq!(certificates.choose(name, all), expected, "{name:?}");
        }
        for (name, checks, expected) in [
            (Some("a.test"), &[2, 3][..], 2),
            (Some("x.a.test"), &[4], 4),
            (Some("x.a.test"), &[2], 3),
            (Some("other.test"), &[4], 4),
            (None, &[], 0),
        ] {
            let chosen = certificates.choose(name, |at| checks.contains(&at));
            assert_eq!(chosen, expected, "{name:?} {checks:?}");
        }
    }
}
