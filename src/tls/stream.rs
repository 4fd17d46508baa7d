//! A socket with a TLS session over it, for readers and writers that know [`Stream`]: what they see
//! is decrypted. Before [`TlsStream::secure`] bytes pass as they are: a PROXY header comes before the
//! handshake, and so does the answer to a client that does not speak TLS.

use std::cell::{OnceCell, RefCell};
use std::io::{self, ErrorKind};
use std::mem;
use std::ops::Deref;
use std::task::{Context, Poll, ready};

use futures_rustls::rustls::Error;

use super::session::{HELD_BYTES_MAX, Session};
use crate::net::{BUFFER_BYTES, SEND_BYTES_MAX, Stream};

/// The first byte of a client's first record: a message of a handshake.
const HANDSHAKE_RECORD: u8 = 0x16;

/// A connection to an address with TLS.
pub struct TlsStream {
    socket: Stream,
    session: OnceCell<RefCell<Session>>,
}

/// Why a handshake does not go on.
#[derive(Debug)]
pub enum HandshakeEnd {
    /// The client has closed, or its socket has failed.
    Closed,
    /// Its first byte is not TLS's; it may be the first one of an HTTP request.
    NotTls {
        is_http: bool,
    },
    Failed(Error),
}

impl TlsStream {
    /// A connection whose handshake has not begun.
    pub fn new(socket: Stream) -> TlsStream {
        TlsStream { socket, session: OnceCell::new() }
    }

    /// The socket: its bytes are encrypted once the session is there.
    pub fn socket(&self) -> &Stream {
        &self.socket
    }

    /// The session of a complete handshake, which decrypts and encrypts from now on.
    pub fn secure(&self, mut session: Session) {
        session.handshake_ended();
        let is_first = self.session.set(RefCell::new(session)).is_ok();
        assert!(is_first, "a connection has one session");
    }

    /// Whether [`TlsStream::secure`] was called.
    pub fn is_secure(&self) -> bool {
        self.session.get().is_some()
    }

    /// Waits for the client's first byte, which is left unread.
    pub fn poll_first_byte(&self, cx: &mut Context<'_>) -> Poll<Result<(), HandshakeEnd>> {
        let mut first = None;
        let peeked = self.socket.poll_read_with(cx, |arrived| {
            first = arrived.first().copied();
            0
        });
        Poll::Ready(match (ready!(peeked), first) {
            (Ok(_), Some(HANDSHAKE_RECORD)) => Ok(()),
            (Ok(_), Some(byte)) => {
                Err(HandshakeEnd::NotTls { is_http: byte.is_ascii_alphabetic() })
            }
            _ => Err(HandshakeEnd::Closed),
        })
    }

    /// Waits for what comes next of a handshake, and answers it. Ready with true once it is complete:
    /// tickets may be left to go with the answer to a request that came along.
    pub fn poll_handshake(
        &self,
        cx: &mut Context<'_>,
        session: &mut Session,
    ) -> Poll<Result<bool, HandshakeEnd>> {
        let received = ready!(self.socket.poll_received(cx));
        let Ok(Some(mut received)) = received else {
            return Poll::Ready(Err(HandshakeEnd::Closed));
        };
        let taken = session.take(received.bytes_mut());
        received.take(received.len());
        drop(received);
        if taken.is_err() || !session.can_leave_tickets() {
            self.send_ahead(session);
        }
        Poll::Ready(match taken {
            Err(error) => Err(HandshakeEnd::Failed(error)),
            // The end of the handshake, a request and the end may come together.
            Ok(()) if !session.is_handshaking() => Ok(true),
            Ok(()) if session.has_ended() => Err(HandshakeEnd::Closed),
            Ok(()) => Ok(false),
        })
    }

    /// Sends what goes before anything else. If something is being sent, that waits for the next
    /// send.
    fn send_ahead(&self, session: &mut Session) {
        let _or_with_the_next_send = self.socket.send_whole(&mut session.out);
    }

    /// Waits until the kernel has taken what `session`, which is not this stream's yet, has to say.
    pub fn poll_said(&self, cx: &mut Context<'_>, session: &mut Session) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_sent(cx))?;
            if session.out.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.send_ahead(session);
        }
    }

    /// [`Stream::poll_read_with`], but that `take` must not use this stream.
    #[inline]
    pub fn poll_read_with(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        let Some(session) = self.session.get() else { return self.socket.poll_read_with(cx, take) };
        let mut session = session.borrow_mut();
        if !ready!(self.poll_decrypted(cx, &mut session))? {
            return Poll::Ready(Ok(0));
        }
        let taken = take(session.unread());
        session.read(taken);
        Poll::Ready(Ok(taken))
    }

    /// Waits for decrypted bytes and lends them. `None` is the client's end.
    ///
    /// # Panics
    /// The session is not there yet.
    #[inline]
    pub fn poll_received(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Decrypted<'_>>>> {
        let session = self.session.get().expect("requests are read once it is there");
        let mut session_now = session.borrow_mut();
        if !ready!(self.poll_decrypted(cx, &mut session_now))? {
            return Poll::Ready(Ok(None));
        }
        let (bytes, taken) = session_now.take_unread();
        Poll::Ready(Ok(Some(Decrypted { session, bytes, taken })))
    }

    /// Waits until something is decrypted and unread; false at the client's end.
    fn poll_decrypted(
        &self,
        cx: &mut Context<'_>,
        session: &mut Session,
    ) -> Poll<io::Result<bool>> {
        loop {
            if !session.unread().is_empty() {
                return Poll::Ready(Ok(true));
            }
            if session.is_broken() {
                return Poll::Ready(Err(ErrorKind::InvalidData.into()));
            }
            if session.has_ended() {
                return Poll::Ready(Ok(false));
            }
            let (mut waited, mut taken) = (0, Ok(()));
            if session.held() > 0 && self.socket.waiting() >= BUFFER_BYTES {
                taken = session.take_held(|held| {
                    let most = HELD_BYTES_MAX - held.len();
                    held.reserve_exact(most);
                    waited = self.socket.receive_waiting(held, most);
                });
            }
            if waited == 0 && taken.is_ok() {
                // A client that closes without an alert has ended as well: what it has sent says
                // itself whether it is complete.
                let Some(mut received) = ready!(self.socket.poll_received(cx))? else {
                    session.end();
                    continue;
                };
                taken = session.take(received.bytes_mut());
                received.take(received.len());
            }
            self.send_ahead(session);
            if let Err(error) = taken {
                return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, error)));
            }
        }
    }

    /// Bytes that are held because their record is not complete: they have arrived, and nothing is
    /// decrypted of them yet.
    pub fn partial(&self) -> usize {
        self.session.get().map_or(0, |session| session.borrow().held())
    }

    /// Bytes that have arrived and are unread, encrypted or not.
    pub fn arrived(&self) -> usize {
        let decrypted = self.session.get().map_or(0, |session| {
            let session = session.borrow();
            session.unread().len() + usize::from(session.has_ended())
        });
        decrypted + self.socket.arrived()
    }

    /// Encrypts and sends up to [`SEND_BYTES_MAX`] of `bytes`. Waits while an earlier send is in
    /// flight.
    pub fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(session) = self.session.get() else { return self.socket.poll_send(cx, bytes) };
        ready!(self.socket.poll_sent(cx))?;
        let taken = bytes.len().min(SEND_BYTES_MAX);
        if taken == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut session = session.borrow_mut();
        if session.out.capacity() == 0 {
            session.out = self.socket.send_buffer();
        }
        let encrypted = session.encrypt(&bytes[..taken]);
        encrypted.map_err(|error| io::Error::new(ErrorKind::BrokenPipe, error))?;
        self.send_ahead(&mut session);
        Poll::Ready(Ok(taken))
    }

    /// Waits until the kernel has taken everything that was sent.
    pub fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.session.get() {
            None => self.socket.poll_sent(cx),
            Some(session) => self.poll_said(cx, &mut session.borrow_mut()),
        }
    }

    /// Whether the kernel has taken everything that was sent, as far as is known.
    pub fn has_sent(&self) -> bool {
        let is_empty = self.session.get().is_none_or(|session| session.borrow().out.is_empty());
        is_empty && self.socket.has_sent()
    }

    /// Tells the client that no more is sent, then closes our half of the connection after everything
    /// is sent.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(session) = self.session.get() {
            session.borrow_mut().close();
        }
        ready!(self.poll_sent(cx))?;
        self.socket.poll_shutdown(cx)
    }

    /// Tells the client that no more is sent, if that can be sent at once. For a connection that is
    /// dropped then.
    pub fn say_goodbye(&self) {
        if let Some(session) = self.session.get() {
            let mut session = session.borrow_mut();
            session.close();
            self.send_ahead(&mut session);
        }
    }
}

/// Decrypted bytes that are unread. What is not taken of them when this is dropped is read again.
/// Meanwhile the reader must not read this connection.
pub struct Decrypted<'a> {
    session: &'a RefCell<Session>,
    bytes: Vec<u8>,
    taken: usize,
}

impl Decrypted<'_> {
    /// Marks the next `bytes` bytes as read.
    pub fn take(&mut self, bytes: usize) {
        assert!(bytes <= self.len(), "no more than there are");
        self.taken += bytes;
    }
}

impl Deref for Decrypted<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }
}

impl Drop for Decrypted<'_> {
    fn drop(&mut self) {
        self.session.borrow_mut().put_back(mem::take(&mut self.bytes), self.taken);
    }
}
