use std::os::unix::fs::PermissionsExt as _;

use super::super::pair::unix_now;
use super::super::snapshot::{TlsError, TlsSnapshot};
use super::{Authority, Dir, text};
use crate::config::Config;
use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

/// What is read with these settings besides an address.
fn read(settings: &[(&str, &str)]) -> Result<TlsSnapshot, TlsError> {
    let config =
        Config::from_settings(&[settings, &[("LISTEN", "https://127.0.0.1:1")]].concat()).unwrap();
    TlsSnapshot::read(config.tls.as_ref().unwrap(), true, None)
}

/// The bytes that a PEM text is of.
fn der_of(pem: &str) -> Vec<u8> {
    use futures_rustls::pki_types::pem::{PemObject as _, SectionKind};
    <(SectionKind, Vec<u8>)>::from_pem_slice(pem.as_bytes()).unwrap().1
}

/// Every kind of wrong file: the setting and the file are named, and what to do.
#[test]
fn a_file_that_cannot_be_used_is_named_with_the_remedy() {
    let dir = Dir::new();
    let authority = Authority::new("root");
    let key = KeyPair::generate().unwrap();
    let (cert, key_pem) = (authority.server(&["a.test"], &key), key.serialize_pem());
    let good_cert = dir.write("good.pem", &cert);
    let good_key = dir.write("good.key", &key_pem);
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    let encrypted = key_pem.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let older = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let request = cert.replace("CERTIFICATE", "CERTIFICATE REQUEST");
    let public = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
    let pkcs12 = [&[0x30, 0x82, 0x10, 0, 2, 1, 3, 0x30][..], &[0; 90]].concat();
    let mut broken = der_of(&cert);
    broken.truncate(200);
    let no_certificate = pem_of("CERTIFICATE", &broken);
    let half = &cert[..cert.len() / 2];
    let leaf_last = [authority.pem(), cert.clone()].concat();
    let long = vec![b' '; (1 << 20) + 1];
    let utf16: Vec<u8> = cert.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let not_base64 = cert.replace("MII", "M!I");
    let unsupported = pem_of("PRIVATE KEY", &[0x30, 3, 2, 1, 0]);
    let second_leaf = [authority.pem(), cert.clone()].concat();
    let both_older = [&cert, older].concat();
    let twice = [key_pem.clone(), other_key.clone()].concat();
    for (name, wrong, says) in [
        ("TLS_CERT", &b""[..], "is empty"),
        ("TLS_CERT", b"hello\n", "is not PEM: it has no line -----BEGIN CERTIFICATE-----"),
        ("TLS_CERT", &utf16, "is not PEM"),
        ("TLS_CERT", &der_of(&cert), "is DER, not PEM: convert it with `openssl x509 -inform DER"),
        ("TLS_CERT", &pkcs12, "is PKCS #12, not PEM"),
        ("TLS_CERT", &long, "is over 1 MiB"),
        ("TLS_CERT", half.as_bytes(), "has a section that is not PEM"),
        ("TLS_CERT", not_base64.as_bytes(), "has a section that is not PEM"),
        ("TLS_CERT", key_pem.as_bytes(), "holds no certificate but PRIVATE KEY"),
        ("TLS_CERT", request.as_bytes(), "holds a certificate request, not a certificate"),
        ("TLS_CERT", no_certificate.as_bytes(), "a certificate that cannot be parsed, number 1"),
        ("TLS_CERT", leaf_last.as_bytes(), "has the certificate of its key as number 2: it must"),
        ("TLS_CERT", both_older.as_bytes(), "holds an encrypted key"),
        ("TLS_KEY", b"", "is empty"),
        ("TLS_KEY", &key.serialize_der(), "or with `openssl pkey -inform DER` if it is a key"),
        ("TLS_KEY", cert.as_bytes(), "holds no private key but CERTIFICATE"),
        ("TLS_KEY", public.as_bytes(), "holds no private key but PUBLIC KEY"),
        ("TLS_KEY", encrypted.as_bytes(), "holds an encrypted key"),
        ("TLS_KEY", older.as_bytes(), "holds an encrypted key"),
        ("TLS_KEY", other_key.as_bytes(), "is not the key of the certificate in"),
        ("TLS_KEY", twice.as_bytes(), "holds 2 private keys"),
        ("TLS_KEY", unsupported.as_bytes(), "holds a key of a kind that is not supported"),
        ("TLS_CLIENT_CA", key_pem.as_bytes(), "holds no certificate but PRIVATE KEY"),
        ("TLS_CLIENT_CA", b"x", "is not PEM"),
        ("TLS_CLIENT_CA", no_certificate.as_bytes(), "cannot be parsed, number 1"),
        (
            "TLS_CLIENT_CA",
            cert.as_bytes(),
            "has a certificate that is no authority's (CA:TRUE), number 1",
        ),
        ("TLS_CLIENT_CA", second_leaf.as_bytes(), "that is no authority's (CA:TRUE), number 2"),
    ] {
        let wrong = dir.write("wrong", wrong);
        let mut settings = vec![("TLS_CERT", text(&good_cert)), ("TLS_KEY", text(&good_key))];
        settings.retain(|(other, _)| *other != name);
        settings.push((name, text(&wrong)));
        let said = read(&settings).err().unwrap_or_else(|| panic!("accepted: {says}")).to_string();
        assert!(said.starts_with(&format!("{name} {} ", wrong.display())), "{said}");
        assert!(said.contains(says), "{says}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let secret: Vec<_> = key_pem.lines().filter(|line| !line.starts_with('-')).collect();
        assert!(secret.iter().all(|line| !said.contains(line)), "{said}");
    }
}

/// A root `old` of X.509 version 1: `openssl x509 -req -signkey KEY` without extensions.
const VERSION_1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBGDCBvwIULAaYm29xsk9r7NvrkSyLPn00+MQwCgYIKoZIzj0EAwIwDjEMMAoG
A1UEAwwDb2xkMCAXDTI2MTIwMTExMzYzNFoYDzIxMjYxMTA3MTEzNjM0WjAOMQww
CgYDVQQDDANvbGQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASX1M1rWItEgwbe
H6WrowZxG5SGZ97iN3f2S3LX+LH0k2E97Ugg73yCXJs1PF7qwsf2Le7IqmS+srdI
rWu92gAAMAoGCCqGSM49BAMCA0gAMEUCIQDC3UQuwYR4gaGhAfQABQoMmLrYojK9
Q6bBz+0lRxh+fwIgQsmjIx64WfGxjlHx4aPNUwoSMkKOlLEePj58TDXX8j0=
-----END CERTIFICATE-----
";

/// Clients refuse a certificate of version 1, but not a root.
#[test]
fn what_version_1_cannot_say_is_asked_of_the_first_certificate_alone() {
    let dir = Dir::new();
    let (root, key) = (Authority::new("old"), KeyPair::generate().unwrap());
    let own = root.server(&["a.test"], &key);
    for (certificates, refused) in [
        (
            [VERSION_1, &own],
            Some("has a certificate of X.509 version 1, which clients refuse: have"),
        ),
        ([&own, VERSION_1], None),
    ] {
        let both = dir.write("both.pem", certificates.concat() + &key.serialize_pem());
        match (read(&[("TLS_CERT", text(&both))]), refused) {
            (Ok(snapshot), None) => {
                let facts = &snapshot.certificates[0];
                assert_eq!((facts.chain, facts.flaws(unix_now())), (2, Vec::new()));
            }
            (Err(error), Some(says)) => assert!(error.to_string().contains(says), "{error}"),
            (_, refused) => panic!("{refused:?}"),
        }
    }
}

/// A pipe, as `<(…)` of a shell, has its bytes once.
#[test]
fn a_file_is_read_once() {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    let dir = Dir::new();
    let (root, key) = (Authority::new("root"), KeyPair::generate().unwrap());
    let (cert, key_pem) = (root.server(&["a.test"], &key), key.serialize_pem());
    let cert_file = dir.write("cert.pem", &cert);
    let piped = |bytes: &str| {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(bytes.as_bytes()).unwrap();
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        (reader, path)
    };
    let (_open, path) = piped(&key_pem);
    let snapshot = read(&[("TLS_CERT", text(&cert_file)), ("TLS_KEY", &path)]).unwrap();
    assert_eq!(snapshot.certificates[0].names, ["a.test"]);
    let (_open, path) = piped(&(cert + &key_pem));
    assert_eq!(read(&[("TLS_CERT", &path)]).unwrap().certificates[0].names, ["a.test"]);
}

#[test]
fn a_file_that_cannot_be_opened_says_why() {
    let dir = Dir::new();
    let missing = dir.path("none.pem");
    let said = read(&[("TLS_CERT", text(&missing))]).err().unwrap().to_string();
    assert!(said.contains("none.pem cannot be read: No such file"), "{said}");
    let folder = read(&[("TLS_CERT", text(dir.0.path()))]).err().unwrap().to_string();
    assert!(folder.contains("cannot be read: Is a directory"), "{folder}");
    let locked = dir.write("locked.pem", "x");
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o0)).unwrap();
    let said = read(&[("TLS_CERT", text(&locked))]).err().unwrap().to_string();
    // root may read it all the same.
    match rustix::process::geteuid().is_root() {
        true => assert!(said.contains("is not PEM"), "{said}"),
        false => assert!(said.contains("permission denied; let the group"), "{said}"),
    }
    let denied = super::super::pair::PairError::from(std::io::Error::from(
        std::io::ErrorKind::PermissionDenied,
    ));
    assert!(denied.to_string().contains("chmod 640"), "{denied}");
}

#[test]
fn what_is_found_in_a_pair_is_told() {
    let dir = Dir::new();
    let root = Authority::new("root");
    let (middle_pem, middle) = root.below("middle");
    let now = unix_now();
    let keys = [
        KeyPair::generate().unwrap(),
        KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_for(&PKCS_ED25519).unwrap(),
    ];
    for (key, kind) in keys.iter().zip(["ECDSA P-256", "ECDSA P-384", "Ed25519"]) {
        let chain = [middle.server(&["a.test", "*.a.test"], key), middle_pem.clone()].concat();
        // A byte order mark, other line ends, text in between, and the key in the same file.
        let text_of = format!("\u{feff}subject=a\n{chain}{}", key.serialize_pem());
        let both = dir.write("both.pem", text_of.replace('\n', "\r\n"));
        let snapshot = read(&[("TLS_CERT", text(&both))]).unwrap();
        let [facts] = snapshot.certificates.as_slice() else { panic!("one") };
        assert_eq!((facts.key.as_str(), facts.chain, facts.unordered), (kind, 2, None));
        assert_eq!(facts.names, ["a.test", "*.a.test"]);
        let summary = facts.summary(now);
        let start = format!("a.test, *.a.test; {kind}, valid until 2120-01-01 (");
        assert!(summary.starts_with(&start), "{summary}");
        assert_eq!(facts.flaws(now), Vec::<String>::new());
    }
    let [key, ..] = keys;
    let certificate = middle.server(&["a.test"], &key);
    let key_file = dir.write("key.pem", key.serialize_pem());
    let facts_of = |certificates: &str| {
        let cert = dir.write("cert.pem", certificates);
        let settings = [("TLS_CERT", text(&cert)), ("TLS_KEY", text(&key_file))];
        read(&settings).unwrap().certificates.remove(0)
    };
    let swapped = facts_of(&[certificate.clone(), root.pem(), middle_pem.clone()].concat());
    let flaws = swapped.flaws(now).join("\n");
    assert!(flaws.contains("certificate 1 of its file is not signed by number 2"), "{flaws}");
    let whole = facts_of(&[certificate, middle_pem, root.pem()].concat());
    assert_eq!(whole.flaws(now), Vec::<String>::new());
    for (names, years, says) in [
        (&["a.test"][..], [2000, 2001], "it expired on 2001-01-01: clients refuse it"),
        (&["a.test"], [2110, 2120], "it is valid from 2110-01-01 00:00:00 UTC on"),
        (&[], [2020, 2120], "it names no host and no IP address (subjectAltName)"),
    ] {
        let flaws = facts_of(&middle.server_valid(names, &key, years)).flaws(now);
        assert_eq!(flaws.len(), 1, "{flaws:?}");
        assert!(flaws[0].contains(says), "{flaws:?}");
    }
    for names in [&["192.0.2.7"][..], &["2001:db8::7"], &["a.test", "192.0.2.7"]] {
        let facts = facts_of(&middle.server(names, &key));
        assert_eq!((&facts.names[..], facts.flaws(now)), (&owned(names)[..], Vec::new()));
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A chain is good for as long as each of its certificates is.
#[test]
fn the_first_of_a_chain_to_expire_is_warned_about() {
    let dir = Dir::new();
    let (root, key) = (Authority::new("root"), KeyPair::generate().unwrap());
    let now = unix_now();
    const DAY: i64 = 86_400;
    let leaf_ends = now + 90 * DAY;
    for (ends, says) in [
        (&[200][..], None),
        (&[89], None),
        (&[-1], Some("certificate 2 of its file expired on ")),
        (&[5], Some("certificate 2 of its file expires in 5 days, on ")),
        (&[200, 0], Some("certificate 3 of its file expires within a day, on ")),
        (&[1, 5], Some("certificate 2 of its file expires in 1 day, on ")),
    ] {
        let (mut issuer, mut behind) = (None, Vec::new());
        for days in ends.iter().rev() {
            let above = issuer.as_ref().unwrap_or(&root);
            let (pem, below) = above.below_until(&format!("middle {days}"), now + days * DAY + 60);
            behind.insert(0, pem);
            issuer = Some(below);
        }
        let leaf = issuer.unwrap().server_until(&["a.test"], &key, leaf_ends);
        // An expired root that comes along: clients have their own.
        let old_root = Authority::until("root", now - DAY).pem();
        let text_of = [leaf, behind.concat(), old_root, key.serialize_pem()].concat();
        let both = dir.write("both.pem", text_of);
        let facts = read(&[("TLS_CERT", text(&both))]).unwrap().certificates.remove(0);
        match (facts.flaws(now).as_slice(), says) {
            ([], None) => {}
            ([flaw], Some(says)) if flaw.starts_with(says) => {}
            (flaws, says) => panic!("{ends:?}: {flaws:?} for {says:?}"),
        }
    }
}

#[test]
fn how_early_a_certificate_is_warned_about_follows_from_its_lifetime() {
    let dir = Dir::new();
    let (root, key) = (Authority::new("root"), KeyPair::generate().unwrap());
    let both = dir.write("a.pem", root.server(&["a.test"], &key) + &key.serialize_pem());
    let mut facts = read(&[("TLS_CERT", text(&both))]).unwrap().certificates.remove(0);
    const DAY: i64 = 86_400;
    for (lifetime, warned) in [(398, 14), (90, 14), (45, 9), (6, 1)] {
        (facts.not_before, facts.not_after) = (0, lifetime * DAY);
        let warned_at = |left: i64| facts.flaws(lifetime * DAY - left);
        assert_eq!(warned_at((warned + 1) * DAY), Vec::<String>::new(), "{lifetime}");
        let said = warned_at(warned * DAY - 1).join("");
        let soon = match warned - 1 {
            0 => "within a day".to_owned(),
            days => format!("in {days} days"),
        };
        assert!(said.contains(&format!("it expires {soon}, on ")), "{said}");
        assert!(warned_at(-1).join("").contains("it expired"));
    }
}

/// What is read for a reload: tickets stay valid for as long as the same authorities vouch for
/// clients, and a certificate that is not valid now does not replace one that is.
#[test]
fn a_reload_keeps_tickets_and_refuses_what_is_worse() {
    let dir = Dir::new();
    let (root, key) = (Authority::new("root"), KeyPair::generate().unwrap());
    let pair = |years| root.server_valid(&["a.test"], &key, years) + &key.serialize_pem();
    let (both, ca) = (dir.write("a.pem", pair([2020, 2120])), dir.write("ca.pem", root.pem()));
    let settings = [
        ("LISTEN", "https://127.0.0.1:1"),
        ("TLS_CERT", text(&both)),
        ("TLS_CLIENT_CA", text(&ca)),
    ];
    let options = Config::from_settings(&settings).unwrap().tls.unwrap();
    let tickets = |of: &TlsSnapshot| {
        [&of.ingest, &of.admin].map(|config| std::sync::Arc::as_ptr(&config.ticketer).cast::<u8>())
    };
    let first = TlsSnapshot::read(&options, true, None).unwrap();
    let again = TlsSnapshot::read(&options, true, Some(&first)).unwrap();
    assert_eq!(tickets(&first), tickets(&again));
    assert_ne!(tickets(&first)[0], tickets(&first)[1]);
    dir.write("ca.pem", Authority::new("other").pem());
    let other = TlsSnapshot::read(&options, true, Some(&again)).unwrap();
    assert!(tickets(&other).iter().all(|of| !tickets(&again).contains(of)));
    for (years, says, will_do_from) in [
        ([2000, 2001], "a.pem expired on 2001-01-01, and", None),
        ([2110, 2120], "a.pem is valid from 2110-01-01 00:00:00 UTC on, and", Some(4_417_977_600)),
    ] {
        dir.write("a.pem", pair(years));
        let refused = TlsSnapshot::read(&options, true, Some(&other)).err().unwrap();
        assert!(refused.to_string().contains(says), "{refused}");
        assert_eq!(refused.will_do_from(), will_do_from, "{years:?}");
        // At a start there is no other one, and later none that is better.
        let worse = TlsSnapshot::read(&options, true, None).unwrap();
        assert!(TlsSnapshot::read(&options, true, Some(&worse)).is_ok());
    }
}

/// An authority vouches for clients after its time too, so it is told.
#[test]
fn authorities_that_have_expired_are_told() {
    let dir = Dir::new();
    let (root, key, now) = (Authority::new("root"), KeyPair::generate().unwrap(), unix_now());
    let both = dir.write("a.pem", root.server(&["a.test"], &key) + &key.serialize_pem());
    let [old, good] = [-86_400, 86_400].map(|ends| Authority::until("root", now + ends).pem());
    for (authorities, expected) in
        [(&[&good][..], &[][..]), (&[&old], &[1]), (&[&good, &old, &good, &old], &[2, 4])]
    {
        let text_of: String = authorities.iter().map(|pem| pem.as_str()).collect();
        let ca = dir.write("ca.pem", text_of);
        let settings = [
            ("LISTEN", "https://127.0.0.1:1"),
            ("TLS_CERT", text(&both)),
            ("TLS_CLIENT_CA", text(&ca)),
        ];
        let snapshot = read(&settings).unwrap();
        let flaws: Vec<String> = snapshot.flaws(now).iter().map(ToString::to_string).collect();
        assert_eq!(flaws.len(), expected.len(), "{flaws:?}");
        for (flaw, nth) in flaws.iter().zip(expected) {
            let start = format!("TLS_CLIENT_CA {}: authority {nth} of the file ", ca.display());
            assert!(flaw.starts_with(&start) && flaw.contains("still vouches"), "{flaw}");
        }
    }
}

fn pem_of(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for piece in der.chunks(3) {
        let bits =
            (0..3).fold(0_usize, |sum, at| sum << 8 | usize::from(*piece.get(at).unwrap_or(&0)));
        for at in 0..4 {
            let digit = if at <= piece.len() { DIGITS[bits >> (18 - 6 * at) & 63] } else { b'=' };
            text.push(char::from(digit));
        }
    }
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}
