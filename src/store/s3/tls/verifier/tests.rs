//! Every kind of certificate an operator may have made, against every place it may be trusted from.

use std::time::Duration;

use futures_rustls::rustls::crypto::ring;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};

use super::*;
use crate::store::s3::tls::remedy;

const NAME: &str = "s3.corp";

/// As `openssl req -x509` makes them, unless changed.
fn params(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2100, 1, 1);
    change(&mut params);
    params
}

fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    params(change).self_signed(&key).unwrap().der().clone()
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let params = params(|params| {
        params.subject_alt_names.clear();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
    });
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> CertificateDer<'static> {
    let params = params(|params| {
        params.is_ca = IsCa::NoCa;
        change(params);
    });
    params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().clone()
}

/// Empty where `presented` is taken, otherwise what is wrong with it and the remedy.
fn verify(
    presented: &CertificateDer<'static>,
    intermediates: &[CertificateDer<'static>],
    trusted: &[&CertificateDer<'static>],
    name: &str,
) -> String {
    let trusted = trusted.iter().map(|&trusted| trusted.clone()).collect();
    let verifier = Verifier::new(trusted, &ring::default_provider());
    let name = ServerName::try_from(name.to_owned()).unwrap();
    // 2026-11-27
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_795_737_600));
    match verifier.verify_server_cert(presented, intermediates, &name, &[], now) {
        Ok(_) => String::new(),
        Err(error) => {
            let why = error.to_string();
            format!(
                "{why}: {}",
                remedy(&std::io::Error::new(std::io::ErrorKind::InvalidData, error))
            )
        }
    }
}

#[test]
fn a_trusted_certificate_is_taken_from_the_server_itself() {
    let plain = self_signed(|_| {});
    let no_ca = self_signed(|params| params.is_ca = IsCa::NoCa);
    let for_servers = self_signed(|params| {
        let purposes = [ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.extended_key_usages = purposes.into();
    });
    let (root, other) = (authority("root"), authority("other"));
    let issued = leaf(&root, |_| {});
    for (what, presented, intermediates, trusted) in [
        ("openssl req -x509", &plain, vec![], vec![&plain]),
        ("in a bundle of several", &plain, vec![], vec![other.der(), &no_ca, &plain]),
        ("CA:FALSE", &no_ca, vec![], vec![&no_ca]),
        ("serverAuth", &for_servers, vec![], vec![&for_servers]),
        ("the bundle holds the server's own", &issued, vec![], vec![&issued]),
        ("… and the server also its issuer", &issued, vec![root.der().clone()], vec![&issued]),
        ("the bundle holds the issuer", &issued, vec![], vec![root.der()]),
        ("… and the server sends it too", &issued, vec![root.der().clone()], vec![root.der()]),
    ] {
        assert_eq!(verify(presented, &intermediates, &trusted, NAME), "", "{what}");
    }
}

#[test]
fn nothing_else_is_taken_and_the_remedy_fits() {
    let plain = self_signed(|_| {});
    let twin = self_signed(|_| {});
    let expired = self_signed(|params| params.not_after = date_time_ymd(2021, 1, 1));
    let early = self_signed(|params| params.not_before = date_time_ymd(2099, 1, 1));
    let for_clients = self_signed(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let nameless = self_signed(|params| params.subject_alt_names.clear());
    let (root, other) = (authority("root"), authority("other"));
    let issued = leaf(&root, |_| {});
    let issued_expired = leaf(&root, |params| params.not_after = date_time_ymd(2021, 1, 1));
    let mut cut = plain.to_vec();
    *cut.last_mut().unwrap() ^= 1;
    let almost = CertificateDer::from(cut);
    let root = root.der();
    for (what, presented, trusted, name, parts) in [
        (
            "nothing is trusted",
            &plain,
            vec![],
            NAME,
            ["CaUsedAsEndEntity", "itself in AWS_CA_BUNDLE"],
        ),
        (
            "another one",
            &plain,
            vec![&twin],
            NAME,
            ["CaUsedAsEndEntity", "itself in AWS_CA_BUNDLE"],
        ),
        (
            "but a bit",
            &almost,
            vec![&plain],
            NAME,
            ["CaUsedAsEndEntity", "itself in AWS_CA_BUNDLE"],
        ),
        ("another name", &plain, vec![&plain], "b.corp", ["not valid for name", "endpoint"]),
        ("an address", &plain, vec![&plain], "10.0.0.1", ["not valid for name", "endpoint"]),
        ("no name", &nameless, vec![&nameless], NAME, ["not valid for name", "endpoint"]),
        ("expired", &expired, vec![&expired], NAME, ["expired", "renew the store's certificate"]),
        ("not yet", &early, vec![&early], NAME, ["not valid yet", "this host's clock"]),
        ("for clients", &for_clients, vec![&for_clients], NAME, ["InvalidPurpose", "for servers"]),
        (
            "unknown issuer",
            &issued,
            vec![other.der()],
            NAME,
            ["UnknownIssuer", "its CA in AWS_CA_BUNDLE"],
        ),
        ("issued for another", &issued, vec![root], "b.corp", ["not valid for name", "endpoint"]),
        ("issued, expired", &issued_expired, vec![root], NAME, ["expired", "renew the store's"]),
        ("own, expired", &issued_expired, vec![&issued_expired], NAME, ["expired", "renew"]),
    ] {
        let said = verify(presented, &[], &trusted, name);
        for part in parts {
            assert!(said.contains(part), "{what}: {said:?} without {part}");
        }
    }
}

#[test]
fn der_that_is_cut_ends_early() {
    let whole = self_signed(|_| {});
    for length in 0..whole.len() {
        let cut = CertificateDer::from(whole[..length].to_vec());
        let _ = is_for_servers(&cut);
    }
    assert_eq!(parts(&[0x04, 0x84, 0xff, 0xff, 0xff, 0xff, 0]).next(), None);
    assert_eq!(parts(&[0x04, 0xff, 1]).next(), None);
    assert_eq!(parts(&[0x04, 0x81, 1, 7]).next(), Some((0x04, &[7][..])));
}
