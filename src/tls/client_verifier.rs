//! The verifier of client certificates, with a bound of what clients may have it look at.
//!
//! Path building tries every authority that a client sends as the issuer of every other one: it
//! allows itself 200,000 steps, each over all of them, and 100 checks of signatures. Forged ones of
//! one name, which need no signature of anybody, would keep a core busy: the hundred that fit into
//! a handshake for seconds, and still five of them, which may stand in 326 orders, for 100 checks.
//! So there are few of them, and those of one name have one key, as the certificates of an authority
//! have that several others vouch for. No path holds two of these, so five make no more than 11
//! paths, each of which ends at its first forged signature. Measured with an authority of P-384 and
//! without optimisation: 230 ms before, 8 ms for the worst chain that is let through.

use std::fmt::Debug;
use std::sync::Arc;

use futures_rustls::pki_types::{CertificateDer, UnixTime};
use futures_rustls::rustls::client::danger::HandshakeSignatureValid;
use futures_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use futures_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use super::der::{self, MalformedDer};

/// Most certificates that a client may send beside its own: the authorities between it and one of
/// `TLS_CLIENT_CA`. Usual are up to two, and the root, which need not come along.
pub const CLIENT_AUTHORITIES_MAX: usize = 5;

/// Most bytes of the certificates of a client together, which its connection holds, and each of its
/// tickets: six with RSA keys of 4096 bits have 12 KiB.
pub const CLIENT_CHAIN_BYTES_MAX: usize = 16 << 10;

/// Why nobody looks at the certificates of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitChain {
    /// More than [`CLIENT_AUTHORITIES_MAX`] beside its own.
    #[error(
        "it comes with {0} others, and up to {max} may; have the client send only the authorities between it and one \
         in TLS_CLIENT_CA",
        max = CLIENT_AUTHORITIES_MAX
    )]
    TooMany(usize),
    /// More than [`CLIENT_CHAIN_BYTES_MAX`].
    #[error(
        "it has {0} bytes together with the authorities that it comes with, and up to {max} may be; have the client \
         send only the authorities between it and one in TLS_CLIENT_CA",
        max = CLIENT_CHAIN_BYTES_MAX
    )]
    TooLong(usize),
    #[error(
        "it comes with different authorities of one name; have the client send only the authorities between it and one \
         in TLS_CLIENT_CA"
    )]
    OneNameTwoKeys,
}

/// Refuses chains that would take long to look at, and has another verifier look at the others.
#[derive(Debug)]
pub struct ShortChainVerifier(pub Arc<dyn ClientCertVerifier>);

/// Refuses what a client has sent if path building may take long, or if it is too much to hold.
fn check(end_entity: &[u8], authorities: &[CertificateDer<'_>]) -> Result<(), Error> {
    let unfit = |why: UnfitChain| {
        let why = OtherError(Arc::new(why));
        Err(Error::InvalidCertificate(CertificateError::Other(why)))
    };
    if authorities.len() > CLIENT_AUTHORITIES_MAX {
        return unfit(UnfitChain::TooMany(authorities.len()));
    }
    let bytes = end_entity.len() + authorities.iter().map(|der| der.len()).sum::<usize>();
    if bytes > CLIENT_CHAIN_BYTES_MAX {
        return unfit(UnfitChain::TooLong(bytes));
    }
    let identities: Result<Vec<_>, MalformedDer> =
        authorities.iter().map(|authority| der::name_and_key(authority)).collect();
    let Ok(identities) = identities else {
        return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
    };
    let is_ambiguous = identities.iter().enumerate().any(|(at, (name, key))| {
        identities[..at].iter().any(|(other, its_key)| name == other && key != its_key)
    });
    if is_ambiguous { unfit(UnfitChain::OneNameTwoKeys) } else { Ok(()) }
}

impl ClientCertVerifier for ShortChainVerifier {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check(end_entity, intermediates)?;
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.0.requires_raw_public_keys()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use futures_rustls::rustls::RootCertStore;
    use futures_rustls::rustls::crypto::ring;
    use futures_rustls::rustls::server::WebPkiClientVerifier;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose,
        IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SignatureAlgorithm,
    };

    use super::*;
    use crate::rt;

    /// Accepts everybody, and counts.
    #[derive(Debug, Default)]
    struct CountingVerifier(AtomicUsize);

    impl ClientCertVerifier for CountingVerifier {
        fn verify_client_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: UnixTime,
        ) -> Result<ClientCertVerified, Error> {
            self.0.fetch_add(1, Relaxed);
            Ok(ClientCertVerified::assertion())
        }

        fn root_hint_subjects(&self) -> &[DistinguishedName] {
            &[]
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("1.2".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("1.3".to_owned()))
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
    }

    /// An authority that vouches for itself, with a key of this kind.
    fn authority(
        name: &str,
        kind: &'static SignatureAlgorithm,
    ) -> CertifiedIssuer<'static, KeyPair> {
        CertifiedIssuer::self_signed(params(name), KeyPair::generate_for(kind).unwrap()).unwrap()
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    fn unfit(judged: Result<ClientCertVerified, Error>) -> Option<UnfitChain> {
        match judged {
            Ok(_) => None,
            Err(Error::InvalidCertificate(CertificateError::Other(why))) => {
                Some(*why.0.downcast_ref().expect("ours"))
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_chain_that_takes_long_is_refused_without_work() {
        let counting = Arc::new(CountingVerifier::default());
        let verifier = ShortChainVerifier(counting.clone());
        let named = |name: &str| authority(name, &PKCS_ECDSA_P256_SHA256).der().clone();
        let [a, b, c, d, e, other_a] = ["a", "b", "c", "d", "e", "a"].map(named);
        // Another certificate of the same name and key, as another authority gives it.
        let crossed = {
            let key = KeyPair::generate().unwrap();
            let below = |issuer: &CertifiedIssuer<'_, KeyPair>| {
                params("crossed").signed_by(&key, issuer).unwrap().der().clone()
            };
            let issuers = ["x", "y"].map(|name| authority(name, &PKCS_ECDSA_P256_SHA256));
            issuers.each_ref().map(below)
        };
        let long = |bytes: usize| {
            let mut params = params("long");
            let text = "x".repeat(bytes);
            params.distinguished_name.push(DnType::OrganizationName, text);
            let key = KeyPair::generate().unwrap();
            params.self_signed(&key).unwrap().der().clone()
        };
        let (half, end) = (long(CLIENT_CHAIN_BYTES_MAX / 4), &a);
        for (chain, expected) in [
            (vec![], None),
            (vec![&a, &b, &c, &d, &e], None),
            (vec![&crossed[0], &crossed[1], &a], None),
            // The same one twice.
            (vec![&a, &a], None),
            (vec![&a, &other_a], Some(UnfitChain::OneNameTwoKeys)),
            (vec![&b, &a, &c, &crossed[0], &other_a], Some(UnfitChain::OneNameTwoKeys)),
            (vec![&a, &b, &c, &d, &e, &a], Some(UnfitChain::TooMany(6))),
            (vec![&a; 100], Some(UnfitChain::TooMany(100))),
            (vec![&half], None),
            (vec![&half, &half], Some(UnfitChain::TooLong(a.len() + 2 * half.len()))),
        ] {
            let chain: Vec<_> = chain.into_iter().cloned().collect();
            let before = counting.0.load(Relaxed);
            let judged = unfit(verifier.verify_client_cert(end, &chain, UnixTime::now()));
            assert_eq!(judged, expected, "{} certificates", chain.len());
            let is_looked_at = counting.0.load(Relaxed) > before;
            assert_eq!(is_looked_at, expected.is_none(), "{} certificates", chain.len());
        }
        let malformed = [CertificateDer::from(vec![0x30, 0])];
        let judged = verifier.verify_client_cert(end, &malformed, UnixTime::now());
        let bad = Error::InvalidCertificate(CertificateError::BadEncoding);
        assert_eq!(judged.map(drop), Err(bad));
        assert_eq!(verifier.supported_verify_schemes(), [SignatureScheme::ED25519]);
    }

    /// Forged authorities of the name of a real one, whose key takes longest to check with: first
    /// without our bound, which prints what it is for, then the worst that the bound lets through.
    #[test]
    fn forged_authorities_take_a_few_checks_of_signatures() {
        let root = authority("root", &PKCS_ECDSA_P384_SHA384);
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let inner = inner.build().unwrap();
        let ours = ShortChainVerifier(inner.clone());
        let client = |issuer: &CertifiedIssuer<'_, KeyPair>| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().clone()
        };
        let took = |verifier: &dyn ClientCertVerifier, end: &CertificateDer<'_>, chain: &[_]| {
            let began = rt::now();
            assert!(verifier.verify_client_cert(end, chain, UnixTime::now()).is_err());
            rt::since(began)
        };
        let forgers: Vec<_> = (0..5).map(|_| authority("root", &PKCS_ECDSA_P384_SHA384)).collect();
        let forged: Vec<_> = forgers.iter().map(|forger| forger.der().clone()).collect();
        let unbounded = took(&*inner, &client(&forgers[0]), &forged);
        // Two names, each several times with one key, of which each may have signed the others.
        let keys = ["root", "next"].map(|name| (name, KeyPair::generate().unwrap()));
        let issuers = keys.each_ref().map(|(name, key)| {
            let key = KeyPair::from_pem(&key.serialize_pem()).unwrap();
            CertifiedIssuer::self_signed(params(name), key).unwrap()
        });
        let of = |at: usize, by: usize| {
            let (name, key) = &keys[at];
            params(name).signed_by(key, &issuers[by]).unwrap().der().clone()
        };
        let worst = [of(0, 0), of(0, 0), of(0, 1), of(1, 0), of(1, 0)];
        let bounded = took(&ours, &client(&issuers[1]), &worst);
        println!("{unbounded:?} unbounded, {bounded:?} bounded");
        assert!(5 * bounded < unbounded, "{bounded:?} of {unbounded:?}");
    }
}
