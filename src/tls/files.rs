//! PEM files: what they hold, and what is wrong with one that does not hold what it should.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use futures_rustls::pki_types::pem::{PemObject as _, SectionKind};
use futures_rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::pair::PairError;
use crate::log::pem_flaw;

/// Largest file: thousands of certificates. A longer one is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A file of a setting, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{setting} {} {problem}", path.display())]
pub struct TlsError {
    pub setting: &'static str,
    pub path: PathBuf,
    pub problem: PairError,
}

/// The sections of a PEM file.
pub struct PemFile {
    pub certificates: Vec<CertificateDer<'static>>,
    pub keys: Vec<PrivateKeyDer<'static>>,
    /// A key in it needs a passphrase.
    pub has_encrypted_key: bool,
    /// What else it holds.
    pub labels: PemLabels,
}

/// The labels of the sections of a file, as `-----BEGIN LABEL-----` has them, in place of one that is
/// not known [`OTHER_LABEL`]: a key that lost its line ends looks like a long label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PemLabels(Vec<&'static str>);

const OTHER_LABEL: &str = "a section of an unknown kind";

/// Labels that messages show, of RFC 7468 and OpenSSL.
const LABELS: &[&str] = &[
    "CERTIFICATE",
    "X509 CERTIFICATE",
    "TRUSTED CERTIFICATE",
    "CERTIFICATE REQUEST",
    "NEW CERTIFICATE REQUEST",
    "X509 CRL",
    "PKCS7",
    "CMS",
    "PUBLIC KEY",
    "RSA PUBLIC KEY",
    "PRIVATE KEY",
    "RSA PRIVATE KEY",
    "EC PRIVATE KEY",
    "DSA PRIVATE KEY",
    "ENCRYPTED PRIVATE KEY",
    "OPENSSH PRIVATE KEY",
    "EC PARAMETERS",
    "DH PARAMETERS",
];

impl PemLabels {
    fn of(text: &[u8]) -> PemLabels {
        let label = |line: &[u8]| {
            let line = line.trim_ascii_end().strip_prefix(b"-----BEGIN ")?;
            let label = line.strip_suffix(b"-----")?;
            let known = LABELS.iter().find(|known| known.as_bytes() == label);
            Some(*known.unwrap_or(&OTHER_LABEL))
        };
        let mut labels: Vec<_> = text.split(|byte| *byte == b'\n').filter_map(label).collect();
        labels.dedup();
        PemLabels(labels)
    }

    pub fn has(&self, part: &str) -> bool {
        self.0.iter().any(|label| label.contains(part))
    }
}

/// `a PRIVATE KEY and a PUBLIC KEY`
impl fmt::Display for PemLabels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str("nothing"),
            labels => write!(f, "{}", labels.join(" and ")),
        }
    }
}

impl PemFile {
    /// Reads a file. Blocks.
    ///
    /// # Errors
    /// It cannot be read, or is not PEM.
    pub fn read(path: &Path) -> Result<PemFile, PairError> {
        PemFile::parse(&read_bytes(path)?)
    }

    fn parse(bytes: &[u8]) -> Result<PemFile, PairError> {
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let labels = PemLabels::of(text);
        if labels.0.is_empty() {
            return Err(not_pem(text));
        }
        let has_encrypted_key = has_encrypted_key(text);
        let (certificates, keys) = (Vec::new(), Vec::new());
        let mut file = PemFile { certificates, keys, has_encrypted_key, labels };
        let broken = |error| match has_encrypted_key {
            true => PairError::KeyEncrypted,
            false => PairError::BrokenPem(pem_flaw(&error)),
        };
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
            let (kind, der) = section.map_err(broken)?;
            match kind {
                SectionKind::Certificate => file.certificates.push(der.into()),
                SectionKind::RsaPrivateKey => file.keys.push(PrivateKeyDer::Pkcs1(der.into())),
                SectionKind::EcPrivateKey => file.keys.push(PrivateKeyDer::Sec1(der.into())),
                SectionKind::PrivateKey => file.keys.push(PrivateKeyDer::Pkcs8(der.into())),
                _ => {}
            }
        }
        Ok(file)
    }
}

/// Whether a key needs a passphrase. The older form, which is not PEM as it is read here, says so in a
/// line of its own.
fn has_encrypted_key(text: &[u8]) -> bool {
    text.split(|byte| *byte == b'\n').any(|line| {
        line.starts_with(b"-----BEGIN ENCRYPTED PRIVATE KEY")
            || line.starts_with(b"Proc-Type: 4,ENCRYPTED")
    })
}

/// Opens without blocking: a pipe without a writer would delay the start.
fn read_bytes(path: &Path) -> Result<Vec<u8>, PairError> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(PairError::TooLarge);
    }
    Ok(bytes)
}

/// What a file without any section is.
fn not_pem(bytes: &[u8]) -> PairError {
    // A SEQUENCE of a length that takes two bytes; in PKCS #12 (RFC 7292) its first element is 3.
    match bytes {
        [] => PairError::Empty,
        [0x30, 0x82, _, _, 0x02, 0x01, 0x03, ..] => PairError::Pkcs12,
        [0x30, 0x81..=0x83, ..] => PairError::Der,
        _ => PairError::NotPem,
    }
}

impl From<io::Error> for PairError {
    fn from(error: io::Error) -> PairError {
        match error.kind() {
            ErrorKind::PermissionDenied => PairError::Forbidden,
            _ => PairError::Unreadable(error),
        }
    }
}
