//! What an operator can do about a failed TLS handshake.

use std::io;

use futures_rustls::rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use super::verifier::is_ca_as_end_entity;

/// What to do about `error`, with which a handshake ended.
pub(crate) fn remedy(error: &io::Error) -> &'static str {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return "check the endpoint";
    };
    match error {
        Error::InvalidCertificate(_) if is_ca_as_end_entity(error) => {
            "the store presents a CA's or a self-signed certificate: put that certificate itself in AWS_CA_BUNDLE"
        }
        Error::InvalidCertificate(why) => of_certificate(why),
        // Mostly a plain http response.
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "it does not use TLS on this port: write http:// in the endpoint, or give its https port"
        }
        Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "the store does not know this host name: correct the endpoint or the bucket"
        }
        Error::AlertReceived(AlertDescription::ProtocolVersion)
        | Error::AlertReceived(AlertDescription::HandshakeFailure)
        | Error::PeerIncompatible(_) => {
            "the store has no TLS version or cipher in common with millrace, which speaks TLS 1.2 and 1.3: update it"
        }
        Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::BadCertificate,
        ) => "the store wants a client certificate, which millrace does not send: turn that off",
        _ => "correct the endpoint, or check the store's log",
    }
}

fn of_certificate(why: &CertificateError) -> &'static str {
    use CertificateError as E;
    match why {
        E::UnknownIssuer => {
            "name its CA in AWS_CA_BUNDLE, or have the store send its whole certificate chain"
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            "give an endpoint by a name that its certificate is for, or renew the certificate with this name"
        }
        E::Expired | E::ExpiredContext { .. } => {
            "renew the store's certificate, or correct this host's clock if it is ahead"
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "correct this host's clock, or wait until the certificate is valid"
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "give the store a certificate that is for servers (extended key usage serverAuth)"
        }
        E::BadSignature => {
            "its CA in AWS_CA_BUNDLE has the name, but not the key, of the one that signed: replace it"
        }
        _ => "give the store another certificate",
    }
}
