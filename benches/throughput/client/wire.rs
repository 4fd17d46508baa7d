//! How clients speak TLS; the connection itself is that of `millrace bench`.
//!
//! The client is not what is measured, so it does not verify certificates: with ECDSA that costs
//! several times what signing costs the server.

use std::sync::Arc;

use millrace::internals::commands::bench::wire::{LoadWire, WireTls};
use mio::net::TcpStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, HandshakeKind, ProtocolVersion, SignatureScheme,
};

use crate::server::HOST;

/// How the load generator speaks TLS: version 1.3, and never with a ticket.
pub(super) fn tls_settings() -> WireTls {
    let provider = Arc::new(ring::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has suites of both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(schemes)))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(HOST).expect("it is a name");
    WireTls { config: Arc::new(config), name }
}

/// Whether requests can be sent, the socket being connected.
///
/// # Errors
/// The handshake is not the one that is to be measured.
pub(super) fn is_ready(wire: &LoadWire<TcpStream>) -> Result<bool, String> {
    match wire.handshake() {
        _ if !wire.is_ready() => Ok(false),
        None | Some((ProtocolVersion::TLSv1_3, HandshakeKind::Full)) => Ok(true),
        other => Err(format!("a handshake that is neither 1.3 nor full: {other:?}")),
    }
}

/// Takes every certificate and every signature.
#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
