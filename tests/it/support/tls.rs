//! Certificates of an authority of our own, and a client with rustls.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    SupportedProtocolVersion, version,
};

use super::{PATIENCE, Reply, request, try_reply};

/// The host that certificates are for, unless a test says otherwise.
pub const HOST: &str = "ingest.test";

/// An authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these hosts and its key, both in one PEM text.
    pub fn server(&self, hosts: &[&str]) -> String {
        self.server_valid(hosts, [2020, 2120])
    }

    /// The same, from the beginning of one year to that of another.
    pub fn server_valid(&self, hosts: &[&str], years: [i32; 2]) -> String {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.not_before = rcgen::date_time_ymd(years[0], 1, 1);
        params.not_after = rcgen::date_time_ymd(years[1], 1, 1);
        params.use_authority_key_identifier_extension = true;
        self.issue(params)
    }

    /// A client's certificate and its key, likewise.
    pub fn client(&self, name: &str) -> String {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    /// A certificate for these hosts and the key in `pem`.
    pub fn server_with(&self, hosts: &[&str], pem: &str) -> String {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let key = KeyPair::from_pem(pem).unwrap();
        CertificateParams::new(hosts).unwrap().signed_by(&key, &self.0).unwrap().pem()
    }

    fn issue(&self, params: CertificateParams) -> String {
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &self.0).unwrap().pem() + &key.serialize_pem()
    }

    /// What a client needs that trusts this authority.
    pub fn trust(&self) -> TlsClientOptions {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        TlsClientOptions {
            roots,
            versions: &BOTH,
            certificate: None,
            protocols: Vec::new(),
            resumes: false,
        }
    }
}

static BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

/// How a client connects.
pub struct TlsClientOptions {
    pub roots: RootCertStore,
    pub versions: &'static [&'static SupportedProtocolVersion],
    /// A certificate and its key.
    pub certificate: Option<String>,
    pub protocols: Vec<Vec<u8>>,
    pub resumes: bool,
}

impl TlsClientOptions {
    pub fn config(self) -> Arc<ClientConfig> {
        use tokio_rustls::rustls::pki_types::pem::PemObject as _;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(self.roots);
        let mut config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some(pem) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        config.alpn_protocols = self.protocols;
        if !self.resumes {
            config.resumption = Resumption::disabled();
        }
        Arc::new(config)
    }
}

/// An Ed25519 key in PEM whose bytes are `secret`, filled up: with this algorithm any will do.
pub fn ed25519(secret: &str) -> String {
    let mut der = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".to_vec();
    der.extend_from_slice(format!("{secret:.<32}").as_bytes());
    assert_eq!(der.len(), 48, "the secret has up to 32 bytes");
    let text = aws_smithy_types::base64::encode(der);
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
}

/// One TLS connection.
pub struct TlsClient {
    pub stream: StreamOwned<ClientConnection, TcpStream>,
    unread: Vec<u8>,
}

impl TlsClient {
    /// Connects, and completes the handshake.
    pub fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> TlsClient {
        TlsClient::try_connect(address, config, HOST).unwrap()
    }

    /// The same for another host. With TLS 1.3 a server that refuses the client's certificate says so
    /// only later.
    pub fn try_connect(
        address: SocketAddr,
        config: &Arc<ClientConfig>,
        host: &str,
    ) -> std::io::Result<TlsClient> {
        TlsClient::over(TcpStream::connect(address).unwrap(), config, host)
    }

    /// The handshake on a connection that is there.
    pub fn over(
        socket: TcpStream,
        config: &Arc<ClientConfig>,
        host: &str,
    ) -> std::io::Result<TlsClient> {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        let host = ServerName::try_from(host.to_owned()).unwrap();
        let tls = ClientConnection::new(config.clone(), host).unwrap();
        let mut stream = StreamOwned::new(tls, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(TlsClient { stream, unread: Vec::new() })
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    pub fn post(&mut self, body: impl AsRef<[u8]>) -> Reply {
        self.send(request(body.as_ref(), ""));
        self.reply()
    }

    pub fn reply(&mut self) -> Reply {
        self.try_reply().expect("a reply, not the end of the connection")
    }

    pub fn try_reply(&mut self) -> Option<Reply> {
        try_reply(&mut self.stream, &mut self.unread)
    }

    /// What is left until the end, which is an error unless the server has said that it is one.
    pub fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut rest = std::mem::take(&mut self.unread);
        self.stream.read_to_end(&mut rest).map(|_| rest)
    }

    pub fn is_resumed(&self) -> bool {
        self.stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The serial number's certificate: which one the server has shown.
    pub fn shown(&self) -> Vec<u8> {
        self.stream.conn.peer_certificates().unwrap()[0].to_vec()
    }
}

/// Writes a file of a server's directory.
pub fn write(dir: &Path, name: &str, text: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), text).unwrap();
}
