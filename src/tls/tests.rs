//! Files that cannot be used, and sessions with rustls as the client, without sockets.

mod files;
mod sessions;

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// An authority, which also vouches for clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Authority {
        Authority::until(name, 4_733_510_400)
    }

    /// One that is valid until this time, in seconds since 1970.
    fn until(name: &str, unix_seconds: i64) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_after = time::OffsetDateTime::from_unix_timestamp(unix_seconds).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these host names, and its key.
    fn server(&self, names: &[&str], key: &KeyPair) -> String {
        self.server_valid(names, key, [2020, 2120])
    }

    fn server_valid(&self, names: &[&str], key: &KeyPair, years: [i32; 2]) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(years[0], 1, 1);
        params.not_after = rcgen::date_time_ymd(years[1], 1, 1);
        params.signed_by(key, &self.0).unwrap().pem()
    }

    /// One that is valid until this time, in seconds since 1970.
    fn server_until(&self, names: &[&str], key: &KeyPair, unix_seconds: i64) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = time::OffsetDateTime::from_unix_timestamp(unix_seconds).unwrap();
        params.signed_by(key, &self.0).unwrap().pem()
    }

    /// An authority below this one.
    fn below(&self, name: &str) -> (String, Authority) {
        self.below_until(name, 4_733_510_400)
    }

    fn below_until(&self, name: &str, unix_seconds: i64) -> (String, Authority) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_after = time::OffsetDateTime::from_unix_timestamp(unix_seconds).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer =
            CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.0).unwrap();
        (issuer.pem(), Authority(issuer))
    }

    /// A client's certificate and key, as DER.
    fn client(&self, name: &str) -> ClientPair {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        self.client_of(params)
    }

    /// The same, valid until this time, in seconds since 1970.
    fn client_until(&self, unix_seconds: i64) -> ClientPair {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_after = time::OffsetDateTime::from_unix_timestamp(unix_seconds).unwrap();
        self.client_of(params)
    }

    fn client_of(&self, mut params: CertificateParams) -> ClientPair {
        let key = KeyPair::generate().unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        ClientPair { chain: vec![certificate.der().to_vec()], key: key.serialize_der() }
    }
}

/// A client's certificate, with what it sends along, and its key, as DER.
struct ClientPair {
    chain: Vec<Vec<u8>>,
    key: Vec<u8>,
}

/// Files in a directory of their own.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
