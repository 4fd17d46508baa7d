//! What connections are given when they begin: the certificates in effect and how clients are
//! verified. A snapshot never changes; control publishes another one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_rustls::pki_types::CertificateDer;
use futures_rustls::rustls::crypto::{CryptoProvider, ring};
use futures_rustls::rustls::server::danger::ClientCertVerifier;
use futures_rustls::rustls::server::{
    NoServerSessionStorage, ProducesTickets, ServerConfig, WebPkiClientVerifier,
};
use futures_rustls::rustls::{RootCertStore, version};

use super::client_verifier::ShortChainVerifier;
use super::der;
use super::files::PemFile;
pub use super::files::TlsError;
use super::pair::{self, CertificateFacts, LoadedPair, PairError, date, unix_now};
use super::sni::CertificatesByName;
use super::tickets::CertifiedTickets;
use super::{HTTP_1_1, PROTOCOLS};
use crate::config::TlsOptions;

/// The settings of new connections.
pub struct TlsSnapshot {
    /// Of `LISTEN`, with HTTP/2 …
    pub ingest_h2: Arc<ServerConfig>,
    /// … and without it.
    pub ingest: Arc<ServerConfig>,
    /// Of `ADMIN_LISTEN`: the same certificates. It asks for no client certificate, and takes no
    /// ticket of the other.
    pub admin: Arc<ServerConfig>,
    /// In the order of `TLS_CERT`.
    pub certificates: Vec<CertificateFacts>,
    authorities: Option<Authorities>,
}

/// Who vouches for clients.
#[derive(PartialEq, Eq)]
struct Authorities {
    path: PathBuf,
    certificates: Vec<CertificateDer<'static>>,
}

/// What is wrong with a file that is in use.
pub struct TlsFlaw<'a> {
    pub setting: &'static str,
    pub path: &'a Path,
    pub text: String,
}

/// `TLS_CERT cert.pem: it expired on 2027-01-31: clients refuse it; renew it`
impl fmt::Display for TlsFlaw<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.setting, self.path.display(), self.text)
    }
}

impl Authorities {
    /// A path ends at its authority, whose own time nobody looks at (RFC 5280, section 6.1.1).
    fn flaws(&self, now: i64) -> impl Iterator<Item = TlsFlaw<'_>> {
        self.certificates.iter().zip(1..).filter_map(move |(certificate, nth)| {
            let end = der::facts(certificate).ok()?.not_after;
            let text = format!(
                "authority {nth} of the file expired on {}, and still vouches for clients: replace it, or take it out",
                date(end)
            );
            let flaw = TlsFlaw { setting: "TLS_CLIENT_CA", path: &self.path, text };
            (end < now).then_some(flaw)
        })
    }
}

impl TlsError {
    /// From when on the same files will do, in seconds since 1970, if they will.
    pub fn will_do_from(&self) -> Option<i64> {
        match self.problem {
            PairError::NotYetValid(from) => Some(from),
            _ => None,
        }
    }
}

/// The snapshot in effect, for all cores.
#[derive(Clone)]
pub struct SharedTls(Arc<ArcSwap<TlsSnapshot>>);

impl SharedTls {
    pub fn new(snapshot: TlsSnapshot) -> SharedTls {
        SharedTls(Arc::new(ArcSwap::from_pointee(snapshot)))
    }

    /// The snapshot in effect.
    pub fn load(&self) -> Arc<TlsSnapshot> {
        self.0.load_full()
    }

    /// New connections get `snapshot` from now on.
    pub fn publish(&self, snapshot: TlsSnapshot) {
        self.0.store(Arc::new(snapshot));
    }
}

impl TlsSnapshot {
    /// Reads all files of `options`. If `needs_certificate`, clients of `LISTEN` must have a
    /// certificate as far as they are asked for one. What is read replaces `before`, whose tickets
    /// stay valid unless other authorities vouch for clients now. Blocks.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn read(
        options: &TlsOptions,
        needs_certificate: bool,
        before: Option<&TlsSnapshot>,
    ) -> Result<TlsSnapshot, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let pairs = load_pairs(options, &provider)?;
        if let Some(before) = before {
            none_is_worse(&pairs, &before.certificates)?;
        }
        let authorities = options.client_ca.as_deref().map(|path| {
            let refused =
                |problem| TlsError { setting: "TLS_CLIENT_CA", path: path.into(), problem };
            let file = PemFile::read(path).map_err(refused)?;
            match file.certificates.is_empty() {
                true => Err(refused(PairError::NoCertificate(file.labels))),
                false => Ok((file.certificates, refused)),
            }
        });
        let (authorities, verifier) = match authorities.transpose()? {
            None => (None, WebPkiClientVerifier::no_client_auth()),
            Some((found, refused)) => {
                let verifier = verifier(&found, &provider, needs_certificate).map_err(refused)?;
                let path = options.client_ca.clone().unwrap_or_default();
                (Some(Authorities { path, certificates: found }), verifier)
            }
        };
        // A ticket holds who its client is.
        let tickets = match before {
            Some(before) if before.authorities == authorities => {
                [before.ingest.ticketer.clone(), before.admin.ticketer.clone()]
            }
            _ => [Arc::new(CertifiedTickets(new_tickets())) as _, new_tickets()],
        };
        let [of_ingest, of_admin] = tickets;
        let names = pairs.iter().map(|pair| (pair.key.clone(), pair.facts.names.as_slice()));
        let resolver = Arc::new(CertificatesByName::new(names.collect()));
        let settings = |verifier, ticketer, protocols: &[&[u8]]| {
            let mut config = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&version::TLS13, &version::TLS12])
                .expect("the provider has suites of both versions")
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(resolver.clone());
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            config.ticketer = ticketer;
            // Its lock would be shared by the cores. Clients without tickets make full handshakes.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            Arc::new(config)
        };
        Ok(TlsSnapshot {
            ingest_h2: settings(verifier.clone(), of_ingest.clone(), &PROTOCOLS),
            ingest: settings(verifier, of_ingest, &[HTTP_1_1]),
            admin: settings(WebPkiClientVerifier::no_client_auth(), of_admin, &[HTTP_1_1]),
            certificates: pairs.into_iter().map(|pair| pair.facts).collect(),
            authorities,
        })
    }

    /// How many authorities vouch for clients.
    pub fn authorities(&self) -> usize {
        self.authorities.as_ref().map_or(0, |of| of.certificates.len())
    }

    /// What is wrong with the files at `now`, in seconds since 1970, though they are in use.
    pub fn flaws(&self, now: i64) -> Vec<TlsFlaw<'_>> {
        let own = self.certificates.iter().flat_map(|of| {
            let flaw = |text| TlsFlaw { setting: "TLS_CERT", path: &of.path, text };
            of.flaws(now).into_iter().map(flaw)
        });
        own.chain(self.authorities.iter().flat_map(|of| of.flaws(now))).collect()
    }
}

fn load_pairs(
    options: &TlsOptions,
    provider: &CryptoProvider,
) -> Result<Vec<LoadedPair>, TlsError> {
    options.pairs.iter().map(|files| pair::load(files, provider)).collect()
}

/// Refuses a certificate that has expired, or is not valid yet, in the place of one that is valid.
fn none_is_worse(pairs: &[LoadedPair], before: &[CertificateFacts]) -> Result<(), TlsError> {
    let now = unix_now();
    let is_worse = |(new, old): &(&LoadedPair, &CertificateFacts)| {
        !new.facts.is_valid(now) && old.is_valid(now)
    };
    match pairs.iter().zip(before).find(is_worse) {
        None => Ok(()),
        Some((LoadedPair { facts, .. }, _)) => Err(TlsError {
            setting: "TLS_CERT",
            path: facts.path.clone(),
            problem: match facts.not_after < now {
                true => PairError::Expired(facts.not_after),
                false => PairError::NotYetValid(facts.not_before),
            },
        }),
    }
}

fn verifier(
    authorities: &[CertificateDer<'static>],
    provider: &Arc<CryptoProvider>,
    needs_certificate: bool,
) -> Result<Arc<dyn ClientCertVerifier>, PairError> {
    let mut roots = RootCertStore::empty();
    for (at, authority) in authorities.iter().enumerate() {
        roots
            .add(authority.clone())
            .map_err(|error| PairError::BadCertificate { nth: at + 1, why: error.to_string() })?;
        // A client's certificate among them would make its owner an authority.
        if !der::is_authority(authority).unwrap_or(false) {
            return Err(PairError::NotAuthority(at + 1));
        }
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let builder = if needs_certificate { builder } else { builder.allow_unauthenticated() };
    let verifier = builder.build().map_err(|error| PairError::NoAuthority(error.to_string()))?;
    Ok(Arc::new(ShortChainVerifier(verifier)))
}

/// Keys of tickets that are made anew every six hours, and accepted for six more.
fn new_tickets() -> Arc<dyn ProducesTickets> {
    ring::Ticketer::new().expect("the kernel gives random bytes")
}
