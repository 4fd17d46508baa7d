//! The verifier of client certificates, with a bound of what clients may have it look at.
//!
//! Path building tries every authority that a client sends as the issuer of every other one: it allows
//! itself 200,000 steps, each over all of them. The hundred that fit into a handshake, forged, would
//! keep a core busy for seconds, and nothing is signed by then.

use std::fmt::Debug;
use std::sync::Arc;

use futures_rustls::pki_types::{CertificateDer, UnixTime};
use futures_rustls::rustls::client::danger::HandshakeSignatureValid;
use futures_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use futures_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

/// Most certificates that a client may send beside its own: the authorities between it and one of
/// `TLS_CLIENT_CA`. Usual are up to two, and the root, which need not come along.
pub const CLIENT_AUTHORITIES_MAX: usize = 5;

/// A client has sent more than [`CLIENT_AUTHORITIES_MAX`] certificates beside its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it comes with {0} others, and up to {max} may; have the client send only the authorities between it and one in \
     TLS_CLIENT_CA",
    max = CLIENT_AUTHORITIES_MAX
)]
pub struct ChainTooLong(pub usize);

/// Refuses long chains, and has another verifier look at the others.
#[derive(Debug)]
pub struct ShortChainVerifier(pub Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ShortChainVerifier {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if intermediates.len() > CLIENT_AUTHORITIES_MAX {
            let why = OtherError(Arc::new(ChainTooLong(intermediates.len())));
            return Err(Error::InvalidCertificate(CertificateError::Other(why)));
        }
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

    use super::*;

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

    #[test]
    fn a_long_chain_is_refused_without_work() {
        let counting = Arc::new(CountingVerifier::default());
        let verifier = ShortChainVerifier(counting.clone());
        let certificate = CertificateDer::from(vec![0x30, 0]);
        let chain = vec![certificate.clone(); 100];
        for (length, is_looked_at) in [(0, true), (5, true), (6, false), (100, false)] {
            let before = counting.0.load(Relaxed);
            let judged =
                verifier.verify_client_cert(&certificate, &chain[..length], UnixTime::now());
            assert_eq!(counting.0.load(Relaxed) > before, is_looked_at, "{length}");
            match judged {
                Ok(_) => assert!(is_looked_at, "{length}"),
                Err(Error::InvalidCertificate(CertificateError::Other(why))) => {
                    let why: Option<&ChainTooLong> = why.0.downcast_ref();
                    assert_eq!(why, Some(&ChainTooLong(length)));
                }
                Err(other) => panic!("{length}: {other:?}"),
            }
        }
        assert_eq!(verifier.supported_verify_schemes(), [SignatureScheme::ED25519]);
    }
}
