//! Which server certificates are accepted: those that webpki accepts, and those in the trust store.
//!
//! webpki never accepts a CA certificate as a server's, and `openssl req -x509` creates nothing
//! else. OpenSSL, and with it curl and boto3, trusts a certificate in the operator's bundle also
//! when the server itself presents it. The same holds here, and nothing more: the certificate must
//! be byte for byte one of the trusted ones; its validity period, purpose, name and the handshake's
//! signature are checked as usual. The holder of a trusted CA's key could sign any certificate
//! anyway, so this gives nobody more power. Other certificates are not affected.

use futures_rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use futures_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use futures_rustls::rustls::client::{
    verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use futures_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use futures_rustls::rustls::server::ParsedCertificate;
use futures_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Verifier {
    roots: RootCertStore,
    /// As given, including those that cannot be roots.
    trusted: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// Trusts `trusted`, except what cannot be parsed. Without any root every handshake fails with
    /// its own error, but a plain http endpoint needs none.
    pub(super) fn new(
        trusted: Vec<CertificateDer<'static>>,
        provider: &CryptoProvider,
    ) -> Verifier {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        Verifier { roots, trusted, algorithms: provider.signature_verification_algorithms }
    }

    /// Verifies the trusted `certificate` as a chain of one. webpki checks its validity period
    /// before it finds that it is a CA's or has no issuer; by then it has checked everything but
    /// the purpose. Tests pin that.
    fn verify_alone(
        &self,
        parsed: &ParsedCertificate<'_>,
        certificate: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut itself = RootCertStore::empty();
        itself.add(certificate.clone().into_owned())?;
        let alone = verify_server_cert_signed_by_trust_anchor(
            parsed,
            &itself,
            &[],
            now,
            self.algorithms.all,
        );
        match alone {
            Err(error) if is_ca_as_end_entity(&error) => is_for_servers(certificate)
                .then_some(())
                .ok_or(CertificateError::InvalidPurpose.into()),
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let by_chain = verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        );
        if let Err(error) = by_chain {
            if !self.trusted.iter().any(|trusted| trusted == end_entity) {
                return Err(error);
            }
            self.verify_alone(&parsed, end_entity, now)?;
        }
        verify_server_name(&parsed, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether a CA's certificate was presented as a server's.
pub(super) fn is_ca_as_end_entity(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(other)) = error else { return false };
    matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// DER of the extension's identifier (2.5.29.37), and of the purpose that servers have
/// (1.3.6.1.5.5.7.3.1): RFC 5280, section 4.2.1.12.
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];

const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
/// `[3]`, in which a certificate has its extensions.
const EXTENSIONS: u8 = 0xa3;

/// Whether `certificate`, which webpki has parsed, has no extended key usage or one that names
/// servers.
fn is_for_servers(certificate: &CertificateDer<'_>) -> bool {
    let usage = || {
        let (_, certificate) = parts(certificate).next()?;
        let (_, to_be_signed) = parts(certificate).next()?;
        let (_, extensions) = parts(to_be_signed).find(|(tag, _)| *tag == EXTENSIONS)?;
        let (_, list) = parts(extensions).next()?;
        let usage = parts(list)
            .find(|(_, extension)| parts(extension).next() == Some((OID, EXTENDED_KEY_USAGE)))?;
        parts(usage.1).find(|(tag, _)| *tag == OCTETS).map(|(_, value)| value)
    };
    usage().is_none_or(|value| {
        let purposes = parts(value).next().map_or(&[][..], |(_, list)| list);
        parts(purposes).any(|purpose| purpose == (OID, SERVER_AUTH))
    })
}

/// Tags and contents of the consecutive DER values in `der`; ends early at invalid DER.
fn parts(mut der: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[tag, first], rest) = der.split_first_chunk()?;
        let (length, rest) = match usize::from(first) {
            short @ ..0x80 => (short, rest),
            long => {
                let (length, rest) = rest.split_at_checked(long - 0x80)?;
                let length = length
                    .iter()
                    .try_fold(0usize, |n, byte| Some(n.checked_mul(256)? + usize::from(*byte)))?;
                (length, rest)
            }
        };
        let (value, others) = rest.split_at_checked(length)?;
        der = others;
        Some((tag, value))
    })
}

#[cfg(test)]
mod tests;
