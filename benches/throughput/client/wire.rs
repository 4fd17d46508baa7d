//! A client's connection: its bytes as they are, or over TLS.
//!
//! The client is not what is measured, so it does not verify certificates: with ECDSA that costs
//! several times what signing costs the server.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::sync::Arc;

use mio::net::TcpStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{ClientConnection, Resumption};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, HandshakeKind, ProtocolVersion, SignatureScheme,
};

use crate::server::HOST;

/// How the load generator speaks TLS: version 1.3, and never with a ticket.
pub(super) fn tls_settings() -> Arc<ClientConfig> {
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
    Arc::new(config)
}

/// A connection that is being made or was made.
pub(super) struct Wire {
    pub(super) stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, tls: Option<&Arc<ClientConfig>>) -> Result<Wire, String> {
        let host = || ServerName::try_from(HOST).expect("it is a name");
        let tls = tls.map(|config| ClientConnection::new(config.clone(), host())).transpose();
        let tls = tls.map_err(|error| format!("no TLS: {error}"))?;
        Ok(Wire { stream, tls: tls.map(Box::new) })
    }

    /// Whether requests can be sent, the socket being connected.
    ///
    /// # Errors
    /// The handshake is not the one that is to be measured.
    pub(super) fn is_ready(&self) -> Result<bool, String> {
        let Some(tls) = &self.tls else { return Ok(true) };
        if tls.is_handshaking() {
            return Ok(false);
        }
        match (tls.protocol_version(), tls.handshake_kind()) {
            (Some(ProtocolVersion::TLSv1_3), Some(HandshakeKind::Full)) => Ok(true),
            other => Err(format!("a handshake that is neither 1.3 nor full: {other:?}")),
        }
    }

    /// Sends what TLS has to say; nothing without it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            match tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes a part of `bytes`, which is sent as soon as the socket takes it.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.write(bytes) };
        let taken = tls.writer().write(bytes)?;
        if taken == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.flush()?;
        Ok(taken)
    }

    /// What has arrived; empty at the end. A part of `buffer` is left for ciphertext.
    pub(super) fn read<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let Some(tls) = &mut self.tls else {
            let read = self.stream.read(buffer)?;
            return Ok(&buffer[..read]);
        };
        let (received, decrypted) = buffer.split_at_mut(buffer.len() / 2);
        let length = self.stream.read(received)?;
        let mut received = &received[..length];
        if received.is_empty() {
            return Ok(&[]);
        }
        let mut read = 0;
        while !received.is_empty() {
            tls.read_tls(&mut received)?;
            tls.process_new_packets().map_err(|error| io::Error::other(error.to_string()))?;
            loop {
                match tls.reader().read(&mut decrypted[read..]) {
                    Ok(0) => return Ok(&decrypted[..read]),
                    Ok(more) => read += more,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        self.flush()?;
        if read == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(&decrypted[..read]) }
    }

    /// Tells the server that nothing more comes, as well as that can be done at once.
    pub(super) fn say_goodbye(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _or_it_is_cut = self.flush();
        }
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
