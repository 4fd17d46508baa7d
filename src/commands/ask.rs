//! GET requests to a listener of a running server, for commands. Blocking, on a thread of its own,
//! and bounded: in time from the name's resolution to the last byte, and in bytes.

mod plain;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use futures_rustls::pki_types::pem::PemObject as _;
use futures_rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use futures_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use futures_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use futures_rustls::rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error,
    SignatureScheme, StreamOwned,
};
use url::{Host, Url};

use crate::config::Config;
use crate::rt;
use crate::store::s3::tls_client_config;
use plain::PlainTrust;

/// Where a page is, and whose certificate is accepted there.
#[derive(Clone, Debug)]
pub struct PageUrl {
    url: Url,
    trust: Trust,
    /// Who gets a secret if the page is not one of `https`.
    plain: PlainTrust,
}

/// Which admin listener a command asks, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerAt {
    /// `None`: that of the settings.
    pub url: Option<String>,
    /// The token may be sent without TLS to whoever answers.
    pub plain_token: bool,
}

/// Whose certificate a page may have.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trust {
    /// One that the host's roots vouch for, for the URL's name.
    Roots,
    /// Any: the address is this host's own, and neither a secret is sent nor an answer believed
    /// that plain HTTP would not be believed for.
    Anybody,
    /// The server's own, by its files, whatever names it has.
    Own(Vec<PathBuf>),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageAnswer {
    pub status: u16,
    pub text: String,
}

/// Bounds of one request.
#[derive(Clone, Copy, Debug)]
pub struct AskBounds {
    /// From the resolution of the name to the last byte.
    pub time: Duration,
    /// Of the answer, its head included.
    pub bytes: u64,
}

impl PageUrl {
    /// A URL that an operator wrote.
    ///
    /// # Errors
    /// What is wrong with it; a password in it is not quoted.
    pub fn parse(text: &str) -> Result<PageUrl, String> {
        const GIVE: &str = "give http://HOST:PORT/PATH or https://HOST:PORT/PATH";
        let url = Url::parse(text).map_err(|error| format!("is not a URL ({error}): {GIVE}"))?;
        let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
        if !is_http {
            return Err(format!("is not a URL of HTTP: {GIVE}"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!("has a user or a password in it: {GIVE}"));
        }
        Ok(PageUrl { url, trust: Trust::Roots, plain: PlainTrust::own() })
    }

    /// A page of the admin listener of `config`.
    ///
    /// # Errors
    /// It has none, or its port is drawn at each start.
    pub fn of_admin(config: &Config, page: &str) -> Result<PageUrl, String> {
        let address = config
            .admin_listen
            .ok_or("ADMIN_LISTEN is off: give the URL of a page, or set ADMIN_LISTEN")?;
        if address.port() == 0 {
            return Err(
                "ADMIN_LISTEN has port 0, which is drawn at each start: give the URL of a page"
                    .to_owned(),
            );
        }
        let scheme = if config.admin_tls { "https" } else { "http" };
        let url = format!("{scheme}://{}{page}", reachable(address));
        let url = Url::parse(&url).expect("an address and a path are a URL");
        Ok(PageUrl { url, trust: Trust::Anybody, plain: PlainTrust::own() })
    }

    /// The admin listener at `at`, or that of the settings, for requests with a secret. Over TLS
    /// nobody is accepted but the server with the certificates of `config` or, at an URL, one that
    /// the host's roots vouch for; without TLS nobody gets the secret but users of this host who could have it anyway.
    ///
    /// # Errors
    /// One sentence.
    pub fn of_listener(config: &Config, at: &ListenerAt) -> Result<PageUrl, String> {
        let mut listener = match &at.url {
            Some(url) => PageUrl::parse(url).map_err(|why| format!("the URL {why}"))?,
            None => PageUrl::of_admin(config, "/")?,
        };
        if listener.trust == Trust::Anybody {
            let pairs = config.tls.iter().flat_map(|tls| &tls.pairs);
            listener.trust = Trust::Own(pairs.map(|pair| pair.cert.clone()).collect());
        }
        listener.plain = if at.plain_token { PlainTrust::Anybody } else { PlainTrust::of(config) };
        Ok(listener)
    }

    /// Whether a secret may be sent on this connection, which has no TLS.
    ///
    /// # Errors
    /// Why not.
    fn may_send_plainly(&self, stream: &TcpStream) -> Result<(), String> {
        let ends = stream.local_addr().and_then(|local| Ok((local, stream.peer_addr()?)));
        let (local, peer) = ends.map_err(|error| error.to_string())?;
        self.plain.judge(local, peer)
    }

    /// The same listener's page `path`.
    #[must_use]
    pub fn at(&self, path: &str) -> PageUrl {
        let mut other = self.clone();
        other.url.set_path(path);
        other.url.set_query(None);
        other
    }

    /// Whether the URL names a page, and not only a listener.
    pub fn names_a_page(&self) -> bool {
        self.url.path() != "/"
    }

    /// The parsed URL, of `http` or `https` and with a host.
    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// The whole URL.
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }

    /// The same page with this query.
    #[must_use]
    pub fn with_query(&self, query: &str) -> PageUrl {
        let mut other = self.clone();
        other.url.set_query(Some(query));
        other
    }

    /// Asks for a page that has no end, and shows `each` what comes of it, until it ends or `each`
    /// fails. Name resolution and TLS aside, whose bound is `time`, silence of `time` is an error.
    ///
    /// # Errors
    /// One sentence; an answer other than 200 is one too.
    pub fn read_on(
        &self,
        bearer: Option<&str>,
        time: Duration,
        each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), String> {
        let stream = self.connect(rt::now() + time).map_err(|error| error.to_string())?.stream;
        let set = stream.set_read_timeout(Some(time)).and(stream.set_write_timeout(Some(time)));
        set.map_err(|error| error.to_string())?;
        let request = self.request(bearer);
        let stream: Box<dyn ReadWrite> = match self.url.scheme() {
            "https" => {
                let session =
                    ClientConnection::new(self.trust.client_config()?, self.server_name()?)
                        .map_err(|error| error.to_string())?;
                Box::new(StreamOwned::new(session, stream))
            }
            _ => {
                bearer.map_or(Ok(()), |_| self.may_send_plainly(&stream))?;
                Box::new(stream)
            }
        };
        let silent = || format!("nothing has come for {time:?}");
        read_on(stream, request.as_bytes(), each).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => silent(),
            _ => error.to_string(),
        })
    }

    /// Asks for the page, with `bearer` as the token.
    ///
    /// # Errors
    /// One sentence.
    pub fn get(&self, bearer: Option<&str>, bounds: AskBounds) -> Result<PageAnswer, String> {
        let (sender, receiver) = sync_channel(1);
        let (request, has_secret) = (self.request(bearer), bearer.is_some());
        let page = self.clone();
        // Name resolution has no deadline of its own. A thread that is stuck in it ends with the
        // process.
        let ask = move || {
            let _nobody_waits = sender.send(page.ask(request.as_bytes(), has_secret, bounds));
        };
        std::thread::Builder::new()
            .spawn(ask)
            .map_err(|error| format!("no thread for a request: {error}; raise ulimit -u"))?;
        let late = |_| format!("no answer within {:?}", bounds.time);
        receiver.recv_timeout(bounds.time).map_err(late)?
    }

    fn request(&self, bearer: Option<&str>) -> String {
        let url = &self.url;
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let host = url.host_str().unwrap_or_default();
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let token =
            bearer.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let agent = concat!("millrace/", env!("CARGO_PKG_VERSION"));
        // HTTP/1.0: the answer is not chunked and ends with the connection.
        format!(
            "GET {}{query} HTTP/1.0\r\nhost: {host}{port}\r\nuser-agent: {agent}\r\n{token}\r\n",
            url.path()
        )
    }

    fn ask(
        &self,
        request: &[u8],
        has_secret: bool,
        bounds: AskBounds,
    ) -> Result<PageAnswer, String> {
        let until = rt::now() + bounds.time;
        let said = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("no answer within {:?}", bounds.time)
            }
            _ => error.to_string(),
        };
        let stream = self.connect(until).map_err(said)?;
        let mut answer = Vec::new();
        let read = match self.url.scheme() {
            "https" => {
                let config = self.trust.client_config()?;
                let session = ClientConnection::new(config, self.server_name()?)
                    .map_err(|error| error.to_string())?;
                exchange(StreamOwned::new(session, stream), request, bounds.bytes, &mut answer)
            }
            _ => {
                if has_secret {
                    self.may_send_plainly(&stream.stream)?;
                }
                exchange(stream, request, bounds.bytes, &mut answer)
            }
        };
        read.map_err(said)?;
        parse(&answer, bounds.bytes)
    }

    #[expect(clippy::disallowed_methods, reason = "on a thread of its own, whose end is awaited")]
    fn connect(&self, until: Instant) -> io::Result<BoundedStream> {
        let host = self.url.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = self.url.port_or_known_default().unwrap_or_default();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in (host, port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, left(until)?) {
                Ok(stream) => return Ok(BoundedStream { stream, until }),
                Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
            }
        }
        Err(last)
    }

    /// Whose certificate the server must have.
    pub(super) fn server_name(&self) -> Result<ServerName<'static>, String> {
        match self.url.host() {
            Some(Host::Ipv4(ip)) => Ok(std::net::IpAddr::from(ip).into()),
            Some(Host::Ipv6(ip)) => Ok(std::net::IpAddr::from(ip).into()),
            host => {
                let name = host.map(|host| host.to_string()).unwrap_or_default();
                ServerName::try_from(name).map_err(|error| error.to_string())
            }
        }
    }
}

/// The address by which a process of this host reaches a listener.
fn reachable(address: SocketAddr) -> SocketAddr {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Sends `request` and reads to the end, or to one byte more than `bytes`. Some servers end TLS
/// without a goodbye; what came is complete or not by its length.
fn exchange(
    mut stream: impl Read + Write,
    request: &[u8],
    bytes: u64,
    answer: &mut Vec<u8>,
) -> io::Result<()> {
    stream.write_all(request)?;
    stream.flush()?;
    match stream.take(bytes + 1).read_to_end(answer) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => Ok(()),
        read => read.map(drop),
    }
}

/// What plain HTTP and TLS have in common.
trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}

/// Longest head of an answer, or answer that refuses.
const REFUSAL_MAX: usize = 64 << 10;

/// Sends `request` and shows `each` the parts of the body of its answer.
fn read_on(
    mut stream: Box<dyn ReadWrite>,
    request: &[u8],
    each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    stream.write_all(request)?;
    stream.flush()?;
    let mut buffer = vec![0; REFUSAL_MAX];
    let mut head = Vec::new();
    let rest = loop {
        let read = stream.read(&mut buffer)?;
        head.extend_from_slice(&buffer[..read]);
        if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if read == 0 || head.len() > REFUSAL_MAX {
            return Err(io::Error::other("the answer is not HTTP, or was cut"));
        }
    };
    // `HTTP/1.1 200`
    let status = head.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
    let status: u16 = status.unwrap_or_default();
    if status != 200 {
        // Most of them are short and have come already.
        let _what_came = stream.take(REFUSAL_MAX as u64).read_to_end(&mut head);
        let text = String::from_utf8_lossy(&head[rest..]).trim_end().to_owned();
        return Err(io::Error::other(format!("{status} {text}")));
    }
    each(&head[rest..])?;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => each(&buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn parse(answer: &[u8], bytes_max: u64) -> Result<PageAnswer, String> {
    if answer.len() as u64 > bytes_max {
        return Err(format!("the answer is longer than {bytes_max} bytes"));
    }
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut fields);
    let end = match head.parse(answer) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return Err("the answer was cut".to_owned()),
        Err(error) => return Err(format!("the answer is not HTTP: {error}")),
    };
    let status = head.code.unwrap_or_default();
    let body = &answer[end..];
    let is_length = |name: &str| name.eq_ignore_ascii_case("content-length");
    let length = head.headers.iter().find(|field| is_length(field.name));
    let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok());
    if length.is_some_and(|length: usize| body.len() < length) {
        return Err("the answer was cut".to_owned());
    }
    Ok(PageAnswer { status, text: String::from_utf8_lossy(body).into_owned() })
}

/// The time until then, or an error once it is over.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(rt::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A socket all of whose calls end by one time.
struct BoundedStream {
    stream: TcpStream,
    until: Instant,
}

impl Read for BoundedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.until)?))?;
        self.stream.read(buffer)
    }
}

impl Write for BoundedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(left(self.until)?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// TLS settings of a client that accepts whoever has the key of the certificate that it presents.
///
/// # Errors
/// One sentence: the provider of cryptography cannot be used.
pub(super) fn any_certificate() -> Result<Arc<ClientConfig>, String> {
    Trust::Anybody.client_config()
}

impl Trust {
    fn client_config(&self) -> Result<Arc<ClientConfig>, String> {
        let certificates = match self {
            Trust::Roots => return tls_client_config(&[]),
            Trust::Anybody => None,
            Trust::Own(files) => Some(files.iter().filter_map(first_certificate).collect()),
        };
        let provider = Arc::new(ring::default_provider());
        let verifier = OwnVerifier::new(certificates, &provider);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?;
        let config = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        Ok(Arc::new(config.with_no_client_auth()))
    }
}

fn first_certificate(file: &PathBuf) -> Option<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file).ok()?.next()?.ok()
}

/// Accepts one of these certificates, or any if there are none to compare with, by the key that
/// signs the handshake: names and issuers do not matter for an address of this host.
#[derive(Debug)]
struct OwnVerifier {
    certificates: Option<Vec<CertificateDer<'static>>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl OwnVerifier {
    fn new(
        certificates: Option<Vec<CertificateDer<'static>>>,
        provider: &CryptoProvider,
    ) -> OwnVerifier {
        OwnVerifier { certificates, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for OwnVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.certificates {
            Some(own) if !own.contains(end_entity) => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_of_http_and_hold_no_secret() {
        for (text, said) in [
            ("localhost:9090", "not a URL of HTTP"),
            ("ftp://x/", "not a URL of HTTP"),
            ("http://", "is not a URL"),
            ("http://me:hush@x/", "has a user or a password"),
            ("nothing", "is not a URL"),
        ] {
            let why = PageUrl::parse(text).unwrap_err();
            assert!(why.contains(said) && !why.contains("hush"), "{text}: {why}");
        }
        let page = PageUrl::parse("http://[::1]:9090/readyz?x=1").unwrap();
        assert!(page.names_a_page());
        let request = page.request(Some("t"));
        assert!(
            request.starts_with("GET /readyz?x=1 HTTP/1.0\r\nhost: [::1]:9090\r\n"),
            "{request}"
        );
        assert!(request.ends_with("\r\nauthorization: Bearer t\r\n\r\n"), "{request}");
        let listener = PageUrl::parse("https://x").unwrap();
        assert!(!listener.names_a_page());
        assert_eq!(listener.at("/healthz").as_str(), "https://x/healthz");
    }

    /// The token goes to nobody before it is known who listens.
    #[test]
    fn a_stranger_s_listener_gets_no_token_without_tls() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut page = PageUrl::parse(&format!("http://{}/peers", listener.local_addr().unwrap()));
        let page = page.as_mut().unwrap();
        let bounds = AskBounds { time: Duration::from_secs(10), bytes: 1 << 10 };
        let me = rustix::process::geteuid().as_raw();
        let answer = |page: PageUrl, token: Option<&'static str>| {
            let asked = std::thread::spawn(move || page.get(token, bounds));
            let mut stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let mut head = [0; 1024];
            let read = stream.read(&mut head).unwrap_or(0);
            let _gone = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nok");
            drop(stream);
            (String::from_utf8_lossy(&head[..read]).into_owned(), asked.join().unwrap())
        };
        let (head, got) = answer(page.clone(), Some("hush"));
        assert!(head.contains("Bearer hush") && got.is_ok(), "{head} {got:?}");
        page.plain = PlainTrust::Users([me + 1].into());
        let (head, got) = answer(page.clone(), Some("hush"));
        assert_eq!(head, "");
        assert!(got.unwrap_err().contains("the admin token is not sent in the clear"));
        // There is nothing to keep from anybody.
        let (head, got) = answer(page.clone(), None);
        assert!(head.starts_with("GET /peers") && got.is_ok(), "{head} {got:?}");
        page.plain = PlainTrust::Anybody;
        let (head, got) = answer(page.clone(), Some("hush"));
        assert!(head.contains("Bearer hush") && got.is_ok(), "{head} {got:?}");
        let read = |page: PageUrl| {
            let asked = std::thread::spawn(move || {
                page.read_on(Some("hush"), Duration::from_secs(5), &mut |_| Ok(()))
            });
            let mut text = Vec::new();
            let mut stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let _until_it_waits = stream.read_to_end(&mut text);
            drop(stream);
            (text.len(), asked.join().unwrap())
        };
        assert_ne!(read(page.clone()).0, 0);
        page.plain = PlainTrust::Users([me + 1].into());
        let (length, got) = read(page.clone());
        assert_eq!(length, 0);
        assert!(got.unwrap_err().contains("--plain-token"));
    }

    #[test]
    fn the_admin_listener_is_asked_where_this_host_reaches_it() {
        for (listen, url) in [
            ("127.0.0.1:9090", Some("http://127.0.0.1:9090/healthz")),
            ("0.0.0.0:9091", Some("http://127.0.0.1:9091/healthz")),
            ("[::]:9091", Some("http://[::1]:9091/healthz")),
            ("10.0.0.1:80", Some("http://10.0.0.1/healthz")),
            ("off", None),
            ("127.0.0.1:0", None),
        ] {
            let config = Config::from_settings(&[("ADMIN_LISTEN", listen)]).unwrap();
            let page = PageUrl::of_admin(&config, "/healthz");
            assert_eq!(page.as_ref().ok().map(PageUrl::as_str), url, "{listen}");
        }
    }

    #[test]
    fn answers_are_whole_or_refused() {
        let ok = |text: &str| Ok(PageAnswer { status: 200, text: text.to_owned() });
        for (answer, parsed) in [
            ("HTTP/1.0 200 OK\r\n\r\nok", ok("ok")),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", ok("ok")),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok", Err("the answer was cut")),
            ("HTTP/1.1 200 OK\r\n", Err("the answer was cut")),
            ("", Err("the answer was cut")),
            ("SSH-2.0-x\r\n", Err("the answer is not HTTP")),
        ] {
            match (parse(answer.as_bytes(), 100), parsed) {
                (Ok(found), expected) => assert_eq!(Ok(found), expected, "{answer}"),
                (Err(why), Err(said)) => assert!(why.starts_with(said), "{answer}: {why}"),
                (Err(why), Ok(_)) => panic!("{answer}: {why}"),
            }
        }
        assert!(parse(&[b'x'; 101], 100).unwrap_err().contains("longer than 100 bytes"));
    }
}
