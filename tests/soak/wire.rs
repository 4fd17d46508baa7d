//! One client connection of HTTP/1.1, plain or TLS, and what goes over it. HTTP/2 is in `streams`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::support::tls::HOST;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Plain,
    Tls,
    /// HTTP/2 over TLS.
    H2,
}

/// Where one server listens, and how to reach it over TLS.
pub struct Target {
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    /// One of them for each connection: versions with and without tickets.
    pub configs: Vec<Arc<ClientConfig>>,
}

/// A POST to be sent.
pub struct Request {
    /// Header lines, each with its CRLF, framing left out.
    pub headers: String,
    pub body: Vec<u8>,
    pub chunked: bool,
}

impl Request {
    /// As HTTP/1.1 has it.
    pub fn bytes(&self) -> Vec<u8> {
        let head = format!("POST /payloads HTTP/1.1\r\nhost: {HOST}\r\n{}", self.headers);
        let mut bytes = head.into_bytes();
        if !self.chunked {
            let length = format!("content-length: {}\r\n\r\n", self.body.len());
            bytes.extend_from_slice(length.as_bytes());
            bytes.extend_from_slice(&self.body);
            return bytes;
        }
        bytes.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
        for piece in self.body.chunks(1500) {
            bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            bytes.extend_from_slice(piece);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes
    }
}

/// An answer, its body dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub closes: bool,
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

pub struct Connection {
    stream: Box<dyn Duplex>,
    unread: Vec<u8>,
    /// Most bytes read at once, and the pause before: a slow reader's are few and long.
    pub reading: (usize, Duration),
}

impl Connection {
    /// With `abrupt` its end is a reset.
    pub async fn open(
        target: &Target,
        transport: Transport,
        abrupt: bool,
        rng: &mut fastrand::Rng,
    ) -> io::Result<Connection> {
        let stream: Box<dyn Duplex> = match transport {
            Transport::Plain => Box::new(dial(target.plain, abrupt).await?),
            Transport::H2 => unreachable!("a connection of HTTP/2 is shared"),
            Transport::Tls => {
                let socket = dial(target.tls, abrupt).await?;
                let config = target.configs[rng.usize(..target.configs.len())].clone();
                let host = ServerName::try_from(HOST).expect("a host name");
                Box::new(TlsConnector::from(config).connect(host, socket).await?)
            }
        };
        Ok(Connection { stream, unread: Vec::new(), reading: (16 << 10, Duration::ZERO) })
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// One request and its answer.
    pub async fn exchange(&mut self, request: &Request) -> io::Result<Answer> {
        self.send(&request.bytes()).await?;
        self.answer().await
    }

    /// The next answer.
    pub async fn answer(&mut self) -> io::Result<Answer> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.fill().await?;
        };
        let head: Vec<u8> = self.unread.drain(..end).collect();
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "not an answer");
        let status = head.get(9..12).and_then(|text| text.parse().ok()).ok_or_else(bad)?;
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let length: usize = length.unwrap_or("0").trim().parse().map_err(|_| bad())?;
        while self.unread.len() < length {
            self.fill().await?;
        }
        self.unread.drain(..length);
        Ok(Answer { status, closes: head.contains("connection: close") })
    }

    async fn fill(&mut self) -> io::Result<()> {
        let (most, pause) = self.reading;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let at = self.unread.len();
        self.unread.resize(at + most, 0);
        let read = self.stream.read(&mut self.unread[at..]).await;
        self.unread.truncate(at + *read.as_ref().unwrap_or(&0));
        if read? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// A connection without TLS, which may be to an address that expects it.
pub async fn dial(address: SocketAddr, abrupt: bool) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    if abrupt {
        SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    }
    Ok(socket)
}
