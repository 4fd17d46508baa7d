//! The connection of one client, plain or TLS, as its readers and writers see it: their bytes are
//! those of HTTP. It is the one place where the two differ, by one branch for each operation; a
//! plain connection is no larger for it.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::ops::Deref;
use std::task::{Context, Poll};

use super::tokens::CertificateToken;
use crate::net::{Net, Received, Stream};
use crate::tls::{Decrypted, TlsStream};

/// A client's connection.
pub enum ClientStream {
    Plain(Stream),
    Tls(Box<TlsClient>),
}

/// A TLS connection, and what its client's certificate stands for.
pub struct TlsClient {
    pub(super) stream: TlsStream,
    /// Set with the end of the handshake if the client has a certificate.
    pub(super) certificate: std::cell::OnceCell<CertificateToken>,
    /// Whether the handshake has agreed on HTTP/2.
    pub(super) is_h2: Cell<bool>,
}

impl ClientStream {
    /// The connection of `socket`, which the address that it came to makes `tls` or not.
    pub(super) fn new(socket: Stream, tls: bool) -> ClientStream {
        match tls {
            false => ClientStream::Plain(socket),
            true => ClientStream::Tls(Box::new(TlsClient {
                stream: TlsStream::new(socket),
                certificate: std::cell::OnceCell::new(),
                is_h2: Cell::new(false),
            })),
        }
    }

    /// The socket. Its bytes are those of HTTP only if there is no TLS.
    #[inline]
    fn socket(&self) -> &Stream {
        match self {
            ClientStream::Plain(socket) => socket,
            ClientStream::Tls(tls) => tls.stream.socket(),
        }
    }

    /// Whether requests may be read: it is plain, or the handshake is complete.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            ClientStream::Plain(_) => true,
            ClientStream::Tls(tls) => tls.stream.is_secure(),
        }
    }

    /// Whether it is over TLS.
    pub(super) fn is_tls(&self) -> bool {
        matches!(self, ClientStream::Tls(_))
    }

    /// Whether TLS has agreed on HTTP/2.
    pub(super) fn is_h2(&self) -> bool {
        match self {
            ClientStream::Plain(_) => false,
            ClientStream::Tls(tls) => tls.is_h2.get(),
        }
    }

    /// What the client's certificate stands for.
    pub(super) fn certificate(&self) -> Option<&CertificateToken> {
        match self {
            ClientStream::Plain(_) => None,
            ClientStream::Tls(tls) => tls.certificate.get(),
        }
    }

    /// [`Stream::net`].
    #[inline]
    pub(super) fn net(&self) -> &Net {
        self.socket().net()
    }

    /// [`Stream::poll_received`].
    #[inline]
    pub(super) fn poll_received(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<ClientBytes<'_>>>> {
        match self {
            ClientStream::Plain(socket) => {
                socket.poll_received(cx).map_ok(|bytes| bytes.map(ClientBytes::Plain))
            }
            ClientStream::Tls(tls) => {
                tls.stream.poll_received(cx).map_ok(|bytes| bytes.map(ClientBytes::Tls))
            }
        }
    }

    /// [`Stream::poll_read_with`].
    #[inline]
    pub(super) fn poll_read_with(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        match self {
            ClientStream::Plain(socket) => socket.poll_read_with(cx, take),
            ClientStream::Tls(tls) => tls.stream.poll_read_with(cx, take),
        }
    }

    /// [`Stream::waiting`]; 0 with TLS, whose bytes must be decrypted first.
    #[inline]
    pub(super) fn waiting(&self) -> usize {
        match self {
            ClientStream::Plain(socket) => socket.waiting(),
            ClientStream::Tls(_) => 0,
        }
    }

    /// [`Stream::receive_waiting`]; receives nothing with TLS.
    #[inline]
    pub(super) fn receive_waiting(&self, bytes: &mut Vec<u8>, most: usize) -> usize {
        match self {
            ClientStream::Plain(socket) => socket.receive_waiting(bytes, most),
            ClientStream::Tls(_) => 0,
        }
    }

    /// [`Stream::arrived`]; what is not decrypted counts as it is.
    pub(super) fn arrived(&self) -> usize {
        match self {
            ClientStream::Plain(socket) => socket.arrived(),
            ClientStream::Tls(tls) => tls.stream.arrived(),
        }
    }

    /// Bytes that have arrived and that nobody can read yet, because their TLS record is not
    /// complete.
    #[inline]
    pub(super) fn partial(&self) -> usize {
        match self {
            ClientStream::Plain(_) => 0,
            ClientStream::Tls(tls) => tls.stream.partial(),
        }
    }

    /// [`Stream::poll_send`].
    #[inline]
    pub(super) fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            ClientStream::Plain(socket) => socket.poll_send(cx, bytes),
            ClientStream::Tls(tls) => tls.stream.poll_send(cx, bytes),
        }
    }

    /// [`Stream::poll_sent`].
    pub(super) fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            ClientStream::Plain(socket) => socket.poll_sent(cx),
            ClientStream::Tls(tls) => tls.stream.poll_sent(cx),
        }
    }

    /// [`Stream::has_sent`].
    #[inline]
    pub(super) fn has_sent(&self) -> bool {
        match self {
            ClientStream::Plain(socket) => socket.has_sent(),
            ClientStream::Tls(tls) => tls.stream.has_sent(),
        }
    }

    /// [`Stream::poll_flush`].
    pub(super) fn poll_flush(&self) -> Poll<io::Result<()>> {
        self.socket().poll_flush()
    }

    /// Closes our half of the connection after everything is sent.
    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            ClientStream::Plain(socket) => socket.poll_shutdown(cx),
            ClientStream::Tls(tls) => tls.stream.poll_shutdown(cx),
        }
    }

    /// To be called before a connection is dropped without having been shut down: a TLS client then
    /// knows that nothing was cut off.
    pub(super) fn say_goodbye(&self) {
        if let ClientStream::Tls(tls) = self {
            tls.stream.say_goodbye();
        }
    }

    /// [`Stream::peer_ip`].
    pub(super) fn peer_ip(&self) -> IpAddr {
        self.socket().peer_ip()
    }

    /// [`Stream::is_acknowledged`].
    pub(super) fn is_acknowledged(&self) -> bool {
        self.has_sent() && self.socket().is_acknowledged()
    }
}

/// Bytes of a client that are unread. What is not taken of them when this is dropped is read again.
pub enum ClientBytes<'a> {
    Plain(Received<'a>),
    Tls(Decrypted<'a>),
}

impl ClientBytes<'_> {
    /// Marks the next `bytes` bytes as read.
    #[inline]
    pub(super) fn take(&mut self, bytes: usize) {
        match self {
            ClientBytes::Plain(received) => received.take(bytes),
            ClientBytes::Tls(decrypted) => decrypted.take(bytes),
        }
    }
}

impl Deref for ClientBytes<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            ClientBytes::Plain(received) => received,
            ClientBytes::Tls(decrypted) => decrypted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_connection_is_no_larger_than_its_socket() {
        assert_eq!(size_of::<ClientStream>(), size_of::<Stream>());
    }
}
