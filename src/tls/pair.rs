//! A certificate with its chain and its key: loads them, says what is wrong with them, and what they
//! are.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use futures_rustls::pki_types::CertificateDer;
use futures_rustls::rustls::crypto::CryptoProvider;
use futures_rustls::rustls::sign::{CertifiedKey, SigningKey};
use futures_rustls::rustls::{Error, InconsistentKeys, SignatureAlgorithm, SignatureScheme};

use super::der;
use super::files::{PemFile, PemLabels, TlsError};
use crate::config::PairFiles;
use crate::log::CountOf;

/// What is wrong with a file of a certificate, a key or authorities, and what to do. The text
/// follows the name of the file; none holds anything of a key.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    #[error(
        "cannot be read: permission denied; let the group of this server's user read it (chgrp and chmod 640), and \
         enter its directories"
    )]
    Forbidden,
    #[error("is over 1 MiB: give the PEM file of one certificate")]
    TooLarge,
    #[error("is empty: it is written in place, or was never filled")]
    Empty,
    #[error(
        "is not PEM: it has no line -----BEGIN CERTIFICATE----- or -----BEGIN PRIVATE KEY-----, without blanks before it"
    )]
    NotPem,
    #[error(
        "is DER, not PEM: convert it with `openssl x509 -inform DER` if it is a certificate, or with `openssl pkey \
         -inform DER` if it is a key"
    )]
    Der,
    #[error(
        "is PKCS #12, not PEM: write its certificates with `openssl pkcs12 -nokeys` and its key with `openssl pkcs12 \
         -nocerts -nodes`"
    )]
    Pkcs12,
    #[error("has a section that is not PEM ({0}): it may be cut or on one line, copy it again")]
    BrokenPem(&'static str),
    #[error("holds no certificate but {0}: give the file with -----BEGIN CERTIFICATE-----")]
    NoCertificate(PemLabels),
    #[error(
        "holds a certificate request, not a certificate: give the file that the authority made of it"
    )]
    OnlyRequest,
    #[error("has a certificate that cannot be parsed, number {nth}: {why}; copy it again")]
    BadCertificate { nth: usize, why: String },
    #[error(
        "has a certificate of X.509 version 1, which clients refuse: have it signed with extensions, subjectAltName \
         among them (`openssl x509 -req -extfile FILE`)"
    )]
    Version1,
    #[error(
        "holds no private key but {0}: give the file with -----BEGIN PRIVATE KEY----- as TLS_KEY"
    )]
    NoKey(PemLabels),
    #[error(
        "holds an encrypted key, and nobody is there to give the passphrase: write it without one with `openssl pkey \
         -in FILE -out NEW`, and let only this server's user read it"
    )]
    KeyEncrypted,
    #[error("holds {0} private keys: keep the one of the certificate")]
    SeveralKeys(usize),
    #[error(
        "holds a key of a kind that is not supported: give RSA of 2048 to 8192 bits, ECDSA P-256 or P-384, or Ed25519"
    )]
    KeyUnsupported,
    #[error(
        "is not the key of the certificate in {}: compare `openssl pkey -pubout` of it with `openssl x509 -noout \
         -pubkey` of the certificate",
        .0.display()
    )]
    Mismatch(PathBuf),
    #[error(
        "has the certificate of its key as number {0}: it must come first, and the authorities that signed it behind it"
    )]
    LeafNotFirst(usize),
    #[error("has no certificate that can be an authority's: {0}")]
    NoAuthority(String),
    #[error(
        "has a certificate that is no authority's (CA:TRUE), number {0}: its owner could sign certificates of \
         other clients; give the certificate of the authority that signed it"
    )]
    NotAuthority(usize),
    #[error("expired on {day}, and the one in effect is still valid", day = date(*.0))]
    Expired(i64),
    #[error(
        "is valid from {from} on, and the one in effect is valid now: it is read again then; see that this host's \
         clock is right",
        from = time_of(*.0)
    )]
    NotYetValid(i64),
}

/// What there is to know of a certificate that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    pub path: PathBuf,
    /// The host names in it, and behind them the IP addresses.
    pub names: Vec<String>,
    /// `ECDSA P-256`
    pub key: String,
    /// Seconds since 1970 from which it is valid, …
    pub not_before: i64,
    /// … and until which it is.
    pub not_after: i64,
    /// Certificates in the file, its own included.
    pub chain: usize,
    /// Of those behind it the one that expires first, if that is before it does: its place, counted
    /// from 1 with its own, and when. A root does not count: clients have it themselves.
    pub ends_before: Option<(usize, i64)>,
    /// The certificate that is not signed by the one behind it, counted from 1.
    pub unordered: Option<usize>,
}

/// A certificate that is warned about expires within this time, …
const WARN_BEFORE_S: i64 = 14 * DAY_S;
/// … or within this part of its lifetime, if that is shorter: some live for six days.
const WARN_PART: i64 = 5;
const DAY_S: i64 = 86_400;

impl CertificateFacts {
    /// What is wrong with it at `now`, in seconds since 1970, though it is in use.
    pub fn flaws(&self, now: i64) -> Vec<String> {
        let mut flaws = Vec::new();
        let left = self.not_after - now;
        if left < 0 {
            flaws.push(format!(
                "it expired on {}: clients refuse it; renew it",
                date(self.not_after)
            ));
        } else if left < self.warns_before() {
            flaws.push(format!("it expires {}; renew it", how_soon(left, self.not_after)));
        }
        if let Some((nth, end)) = self.ends_before {
            let remedy = "clients that need it for the path to their root refuse this one; get the chain anew";
            if end < now {
                let day = date(end);
                flaws.push(format!("certificate {nth} of its file expired on {day}: {remedy}"));
            } else if end - now < self.warns_before() {
                let soon = how_soon(end - now, end);
                flaws.push(format!("certificate {nth} of its file expires {soon}: {remedy}"));
            }
        }
        if now < self.not_before {
            let from = time_of(self.not_before);
            flaws.push(format!("it is valid from {from} on: clients refuse it until then; see that this host's clock is right"));
        }
        if self.names.is_empty() {
            flaws.push(
                "it names no host and no IP address (subjectAltName): most clients refuse it"
                    .to_owned(),
            );
        }
        if let Some(nth) = self.unordered {
            let next = nth + 1;
            flaws.push(format!(
                "certificate {nth} of its file is not signed by number {next}: put each behind the one that it signed"
            ));
        }
        flaws
    }

    /// Whether it is valid at `now`, in seconds since 1970.
    pub fn is_valid(&self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// How long before its end, in seconds, it is warned about.
    pub fn warns_before(&self) -> i64 {
        WARN_BEFORE_S.min((self.not_after - self.not_before) / WARN_PART)
    }

    /// `example.com and 2 more; ECDSA P-256, valid until 2027-01-31 (60 days)`
    pub fn summary(&self, now: i64) -> String {
        let names = match self.names.as_slice() {
            [] => "no host name".to_owned(),
            [name] => name.clone(),
            [first, rest @ ..] if rest.len() > 3 => format!("{first} and {} more", rest.len()),
            names => names.join(", "),
        };
        let (until, days) = (date(self.not_after), (self.not_after - now).div_euclid(DAY_S));
        let key = &self.key;
        format!("{names}; {key}, valid until {until} ({days} days)")
    }
}

/// Seconds since 1970.
pub fn unix_now() -> i64 {
    let now = crate::rt::wall_clock().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs() as i64)
}

/// `2027-01-31`, in UTC.
pub(super) fn date(unix_seconds: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(unix_seconds)
        .map_or_else(|_| "an unknown day".to_owned(), |time| time.date().to_string())
}

/// `2027-01-31 09:00:00 UTC`
fn time_of(unix_seconds: i64) -> String {
    let time =
        time::OffsetDateTime::from_unix_timestamp(unix_seconds).map(time::OffsetDateTime::time);
    time.map_or_else(
        |_| date(unix_seconds),
        |time| {
            let (hour, minute, second) = time.as_hms();
            format!("{} {hour:02}:{minute:02}:{second:02} UTC", date(unix_seconds))
        },
    )
}

/// `in 3 days, on 2027-01-31`, for a time that is `left` seconds ahead.
fn how_soon(left: i64, unix_seconds: i64) -> String {
    let day = date(unix_seconds);
    match left / DAY_S {
        0 => format!("within a day, on {day}"),
        days => format!("in {}, on {day}", CountOf(days, "day")),
    }
}

/// A pair that can be used.
pub struct LoadedPair {
    pub key: Arc<CertifiedKey>,
    pub facts: CertificateFacts,
}

/// Loads one pair. Blocks. Reads each file once: a pipe has its bytes once, and a file may be replaced
/// in between.
///
/// # Errors
/// The file that cannot be used.
pub fn load(files: &PairFiles, provider: &CryptoProvider) -> Result<LoadedPair, TlsError> {
    let PairFiles { cert, key } = files;
    let of_cert = |problem| TlsError { setting: "TLS_CERT", path: cert.clone(), problem };
    let setting = if key == cert { "TLS_CERT" } else { "TLS_KEY" };
    let of_key = |problem| TlsError { setting, path: key.clone(), problem };
    let file = PemFile::read(cert).map_err(of_cert)?;
    if file.certificates.is_empty() {
        return Err(of_cert(match file.labels.has("CERTIFICATE REQUEST") {
            true => PairError::OnlyRequest,
            false => PairError::NoCertificate(file.labels),
        }));
    }
    let certificates = file.certificates.clone();
    let key_file = if key == cert { Ok(file) } else { PemFile::read(key) };
    let key = key_file.and_then(|file| only_key(file, provider)).map_err(of_key)?;
    let first = parse_first(&certificates).map_err(of_cert)?;
    let names = names_of(&certificates).map_err(of_cert)?;
    let certified = CertifiedKey::new(certificates.clone(), key.clone());
    if let Err(error) = certified.keys_match() {
        let is_other = matches!(error, Error::InconsistentKeys(InconsistentKeys::KeyMismatch));
        let place = certificates.iter().skip(1).position(|other| {
            CertifiedKey::new(vec![other.clone()], key.clone()).keys_match().is_ok()
        });
        return Err(match place {
            Some(at) => of_cert(PairError::LeafNotFirst(at + 2)),
            None if is_other => of_key(PairError::Mismatch(cert.clone())),
            None => of_cert(PairError::BadCertificate { nth: 1, why: error.to_string() }),
        });
    }
    let own = times(cert, &certificates[0]).map_err(of_cert)?;
    let addresses = der::ip_addresses(&certificates[0]).unwrap_or_default();
    let hosts = first.valid_dns_names().map(str::to_owned);
    let facts = CertificateFacts {
        path: cert.clone(),
        names: hosts.chain(addresses.iter().map(ToString::to_string)).collect(),
        key: kind_of(&*key),
        ends_before: first_end(&names, &certificates).filter(|(_, end)| *end < own.not_after),
        chain: certificates.len(),
        unordered: names.windows(2).position(|two| two[0].0 != two[1].1).map(|at| at + 1),
        ..own
    };
    Ok(LoadedPair { key: Arc::new(certified), facts })
}

/// The first of the certificates of a file, if all can be parsed. One of version 1 may be behind it, as
/// old roots are.
fn parse_first<'a>(
    certificates: &'a [CertificateDer<'static>],
) -> Result<webpki::EndEntityCert<'a>, PairError> {
    use webpki::Error::UnsupportedCertVersion;
    let bad = |nth, error: webpki::Error| PairError::BadCertificate { nth, why: error.to_string() };
    let first = webpki::EndEntityCert::try_from(&certificates[0]).map_err(|error| match error {
        UnsupportedCertVersion => PairError::Version1,
        error => bad(1, error),
    })?;
    for (certificate, nth) in certificates.iter().zip(1..).skip(1) {
        match webpki::EndEntityCert::try_from(certificate) {
            Ok(_) | Err(UnsupportedCertVersion) => {}
            Err(error) => return Err(bad(nth, error)),
        }
    }
    Ok(first)
}

/// Issuers and subjects.
type Names<'a> = Vec<(&'a [u8], &'a [u8])>;

fn names_of<'a>(certificates: &'a [CertificateDer<'static>]) -> Result<Names<'a>, PairError> {
    let names = certificates.iter().zip(1..).map(|(certificate, nth)| {
        let why = "its names cannot be read";
        let bad = |_| PairError::BadCertificate { nth, why: why.to_owned() };
        der::issuer_and_subject(certificate).map_err(bad)
    });
    names.collect()
}

/// The place of the certificate behind the first one that expires first, and when. Not of a root.
fn first_end(names: &Names<'_>, certificates: &[CertificateDer<'_>]) -> Option<(usize, i64)> {
    let behind = names.iter().zip(certificates).zip(1..).skip(1);
    let ends = behind.filter(|(((issuer, subject), _), _)| issuer != subject);
    let ends = ends.filter_map(|((_, der), nth)| Some((nth, der::facts(der).ok()?.not_after)));
    ends.min_by_key(|(_, end)| *end)
}

/// Facts with the times of a certificate, and nothing else.
fn times(path: &Path, certificate: &CertificateDer<'_>) -> Result<CertificateFacts, PairError> {
    let malformed =
        |_| PairError::BadCertificate { nth: 1, why: "its validity cannot be read".to_owned() };
    let der::DerFacts { not_before, not_after, .. } = der::facts(certificate).map_err(malformed)?;
    Ok(CertificateFacts {
        path: path.to_owned(),
        names: Vec::new(),
        key: String::new(),
        not_before,
        not_after,
        chain: 0,
        ends_before: None,
        unordered: None,
    })
}

/// The key in a file.
fn only_key(file: PemFile, provider: &CryptoProvider) -> Result<Arc<dyn SigningKey>, PairError> {
    let PemFile { mut keys, has_encrypted_key, labels, .. } = file;
    if has_encrypted_key {
        return Err(PairError::KeyEncrypted);
    }
    match keys.len() {
        0 => Err(PairError::NoKey(labels)),
        1 => {
            let key = keys.remove(0);
            provider.key_provider.load_private_key(key).map_err(|_| PairError::KeyUnsupported)
        }
        several => Err(PairError::SeveralKeys(several)),
    }
}

/// The kind of a key, in words.
fn kind_of(key: &dyn SigningKey) -> String {
    let signs = |scheme| key.choose_scheme(&[scheme]).is_some();
    match key.algorithm() {
        SignatureAlgorithm::RSA => {
            // An RSA key in its certificate takes 38 bytes besides the modulus, for all usual sizes.
            let bytes = key.public_key().map_or(0, |key| key.len());
            format!("RSA {}", bytes.saturating_sub(38) * 8)
        }
        SignatureAlgorithm::ECDSA if signs(SignatureScheme::ECDSA_NISTP256_SHA256) => {
            "ECDSA P-256".to_owned()
        }
        SignatureAlgorithm::ECDSA => "ECDSA P-384".to_owned(),
        SignatureAlgorithm::ED25519 => "Ed25519".to_owned(),
        other => format!("{other:?}"),
    }
}
