//! One TLS session, without a socket: bytes that were received go in, decrypted ones and those to be
//! sent come out. It holds no more than a record that is not complete ([`HELD_BYTES_MAX`]), what was
//! decrypted and is not read ([`PLAIN_BYTES_MAX`]) and what is to be sent.

use std::cell::Cell;
use std::mem;
use std::sync::Arc;

use futures_rustls::rustls::server::{
    ServerConfig, ServerConnectionData, UnbufferedServerConnection,
};
use futures_rustls::rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
    UnbufferedStatus, WriteTraffic,
};
use futures_rustls::rustls::{Error, HandshakeKind, ProtocolVersion};

use super::{HTTP_2, der};
use crate::net::BUFFER_BYTES;

/// Most bytes that are held because a record or a message of a handshake is not complete. A record
/// has up to 18 KiB (RFC 5246); the longest message is the certificates of a client.
pub const HELD_BYTES_MAX: usize = 32 << 10;

/// Most bytes that are decrypted ahead of their reader: those of what was held and of one buffer.
pub const PLAIN_BYTES_MAX: usize = HELD_BYTES_MAX + BUFFER_BYTES;

/// Most bytes of a record that is not complete, with its head (RFC 5246, section 6.2.3).
const RECORD_WIRE_MAX: usize = 5 + (16 << 10) + (2 << 10);

/// Most memory of what is held once the handshake is complete, and of what is decrypted: a record
/// that is not complete and what has arrived behind it. During the handshake it is
/// [`PLAIN_BYTES_MAX`].
pub const HELD_ROOM_MAX: usize = RECORD_WIRE_MAX + BUFFER_BYTES;

/// Bytes that encrypting adds to a record, rounded up: its head of 5, a nonce of 8, the type, a tag
/// of 16.
const RECORD_OVERHEAD: usize = 32;
/// Longest content of a record.
const RECORD_BYTES_MAX: usize = 16 << 10;

thread_local! {
    /// Room for decrypted bytes, which the sessions of a core lend each other.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A session, from its first byte on.
pub struct Session {
    tls: UnbufferedServerConnection,
    /// What was received and is not complete.
    held: Vec<u8>,
    /// What was decrypted, …
    plain: Vec<u8>,
    /// … and how much of it was read.
    read: usize,
    /// What is to be sent before anything else: messages of a handshake, alerts.
    pub(super) out: Vec<u8>,
    /// The client has said that it sends no more, or its half is closed.
    ended: bool,
    /// It has failed: what it receives is not looked at any longer.
    broken: bool,
    /// It has told the client that it sends no more.
    closed: bool,
}

/// What was agreed on by a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub version: ProtocolVersion,
    /// It continues an earlier session, by a ticket.
    pub resumed: bool,
    /// The protocol is HTTP/2.
    pub is_h2: bool,
}

/// The certificate that a client has proved to be its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The subject's common name, if it has exactly one.
    pub common_name: Option<String>,
}

impl Session {
    /// A session that has received nothing.
    ///
    /// # Errors
    /// The settings contradict each other.
    pub fn new(config: Arc<ServerConfig>) -> Result<Session, Error> {
        Ok(Session {
            tls: UnbufferedServerConnection::new(config)?,
            held: Vec::new(),
            plain: Vec::new(),
            read: 0,
            out: Vec::new(),
            ended: false,
            broken: false,
            closed: false,
        })
    }

    /// Takes bytes that were received, and overwrites them. After an error an alert may be left in
    /// `out`, and nothing more is taken.
    ///
    /// # Errors
    /// The client breaks the protocol, or there is nothing that both support.
    pub(super) fn take(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        if self.broken || self.ended {
            return Ok(());
        }
        if self.held.is_empty() {
            let taken = self.process(bytes)?;
            return self.hold(&bytes[taken..]);
        }
        let most = if self.is_handshaking() { PLAIN_BYTES_MAX } else { HELD_ROOM_MAX };
        self.take_held(|held| {
            reserve(held, bytes.len(), most);
            held.extend_from_slice(bytes);
        })
    }

    /// The same for bytes that `receive` appends to those that are held.
    pub(super) fn take_held(&mut self, receive: impl FnOnce(&mut Vec<u8>)) -> Result<(), Error> {
        let mut held = mem::take(&mut self.held);
        receive(&mut held);
        let taken = self.process(&mut held)?;
        held.drain(..taken);
        if held.is_empty() {
            return Ok(());
        }
        self.held = held;
        self.hold(&[])
    }

    /// How many bytes are held.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    fn hold(&mut self, rest: &[u8]) -> Result<(), Error> {
        // Nothing follows the client's end.
        if self.ended {
            self.held = Vec::new();
            return Ok(());
        }
        // A full one could not grow, so what it waits for would never come.
        if self.held.len() + rest.len() >= HELD_BYTES_MAX {
            self.broken = true;
            self.held = Vec::new();
            return Err(Error::PeerSentOversizedRecord);
        }
        self.held.reserve_exact(rest.len());
        self.held.extend_from_slice(rest);
        Ok(())
    }

    /// Gives back what the handshake needed and the session does not.
    pub(super) fn handshake_ended(&mut self) {
        self.held.shrink_to_fit();
        self.out.shrink_to_fit();
    }

    /// Decrypts and answers what is complete in `bytes`. Returns how much of them is used up.
    fn process(&mut self, bytes: &mut [u8]) -> Result<usize, Error> {
        if self.plain.capacity() == 0 {
            self.plain = ROOM.take();
        }
        // A handshake decrypts nothing, or the little that has come along with its end.
        if !self.is_handshaking() {
            self.plain.reserve_exact(bytes.len());
        }
        let taken = self.run(bytes, |_, _| Ok(()));
        self.give_room_back();
        taken
    }

    /// Lets rustls work until it needs more bytes; to be given all that it has not used up so far, of
    /// which it keeps positions. `ready` is called if data may be sent then. Returns how much is used
    /// up.
    fn run(
        &mut self,
        bytes: &mut [u8],
        ready: impl FnOnce(
            &mut WriteTraffic<'_, ServerConnectionData>,
            &mut Vec<u8>,
        ) -> Result<(), Error>,
    ) -> Result<usize, Error> {
        let Session { tls, plain, out, ended, broken, .. } = self;
        let mut taken = 0;
        loop {
            let UnbufferedStatus { discard, state } = tls.process_tls_records(&mut bytes[taken..]);
            taken += discard;
            let state = match state {
                Ok(state) => state,
                Err(error) => {
                    *broken = true;
                    // What was to be said before, and the alert that says why.
                    while tls.wants_write()
                        && let rest = tls.process_tls_records(&mut bytes[taken..])
                        && let Ok(ConnectionState::EncodeTlsData(mut data)) = rest.state
                    {
                        encode(&mut data, out);
                    }
                    return Err(error);
                }
            };
            match state {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        plain.extend_from_slice(record.payload);
                        taken += record.discard;
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => encode(&mut data, out),
                // It goes out with what else is in `out`.
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => *ended = true,
                ConnectionState::WriteTraffic(mut traffic) => {
                    ready(&mut traffic, out)?;
                    return Ok(taken);
                }
                // No other state comes: early data is not accepted.
                _ => return Ok(taken),
            }
        }
    }

    /// The same without anything new.
    fn run_held(
        &mut self,
        ready: impl FnOnce(
            &mut WriteTraffic<'_, ServerConnectionData>,
            &mut Vec<u8>,
        ) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.broken {
            return Err(Error::HandshakeNotComplete);
        }
        let mut held = mem::take(&mut self.held);
        let taken = self.run(&mut held, ready)?;
        held.drain(..taken);
        self.held = held;
        Ok(())
    }

    /// Encrypts `bytes` and appends them to `out`.
    ///
    /// # Errors
    /// The session has ended or failed.
    pub(super) fn encrypt(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.closed {
            return Err(Error::HandshakeNotComplete);
        }
        let mut is_done = false;
        self.run_held(|traffic, out| {
            is_done = true;
            let records = bytes.len().div_ceil(RECORD_BYTES_MAX);
            let room = bytes.len() + records * RECORD_OVERHEAD;
            append(out, room, |room| traffic.encrypt(bytes, room))
        })?;
        if is_done { Ok(()) } else { Err(Error::HandshakeNotComplete) }
    }

    /// Appends to `out` that no more is sent, unless that was done.
    pub(super) fn close(&mut self) {
        if mem::replace(&mut self.closed, true) {
            return;
        }
        let close = |traffic: &mut WriteTraffic<'_, ServerConnectionData>, out: &mut Vec<u8>| {
            append(out, 2 + RECORD_OVERHEAD, |room| traffic.queue_close_notify(room))
        };
        let _or_it_has_failed = self.run_held(close);
    }

    /// What was decrypted and is not read.
    pub(super) fn unread(&self) -> &[u8] {
        &self.plain[self.read..]
    }

    /// Marks the next `bytes` bytes as read.
    pub(super) fn read(&mut self, bytes: usize) {
        self.read += bytes;
        self.give_room_back();
    }

    /// Takes what is not read away: all that was decrypted, and how much of it was read.
    pub(super) fn take_unread(&mut self) -> (Vec<u8>, usize) {
        (mem::take(&mut self.plain), mem::take(&mut self.read))
    }

    /// Puts back what [`Session::take_unread`] has taken, nothing having been decrypted since.
    pub(super) fn put_back(&mut self, plain: Vec<u8>, read: usize) {
        (self.plain, self.read) = (plain, read);
        self.give_room_back();
    }

    fn give_room_back(&mut self) {
        if self.read < self.plain.len() {
            return;
        }
        self.read = 0;
        let mut room = mem::take(&mut self.plain);
        if (1..=PLAIN_BYTES_MAX).contains(&room.capacity()) {
            room.clear();
            ROOM.set(room);
        }
    }

    /// The client's half is closed.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Memory of what is held and of what is decrypted.
    #[cfg(test)]
    pub(super) fn rooms(&self) -> [usize; 2] {
        [self.held.capacity(), self.plain.capacity()]
    }

    /// Whether nothing is held that a silent session does not need.
    #[cfg(test)]
    pub(super) fn plain_is_given_back(&self) -> bool {
        self.plain.capacity() == 0 && self.held.capacity() == 0
    }

    /// Whether the handshake is not complete.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Whether all that is to be sent are tickets, and an answer will follow: the handshake is complete
    /// and a request, or a part of it, has come along. Without TLS 1.3 the client may still wait for
    /// the end of the handshake.
    pub(super) fn can_leave_tickets(&self) -> bool {
        !self.is_handshaking()
            && self.read < self.plain.len()
            && self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    /// What the handshake has agreed on, once it is complete.
    pub fn agreed(&self) -> Agreed {
        let version = self.tls.protocol_version().unwrap_or(ProtocolVersion::TLSv1_3);
        let resumed = self.tls.handshake_kind() == Some(HandshakeKind::Resumed);
        let is_h2 = self.tls.alpn_protocol() == Some(HTTP_2);
        Agreed { version, resumed, is_h2 }
    }

    /// The client's certificate, if it has one.
    pub fn client_certificate(&self) -> Option<ClientCertificate> {
        let certificate = self.tls.peer_certificates()?.first()?;
        let common_name = der::facts(certificate).ok().and_then(|facts| facts.common_name);
        Some(ClientCertificate { common_name })
    }
}

/// Makes room for `more` bytes. It grows as a vector's does, so that many small parts are cheap,
/// but not beyond `most` if that is enough.
fn reserve(held: &mut Vec<u8>, more: usize, most: usize) {
    let wanted = held.len() + more;
    if wanted > held.capacity() {
        let grown = wanted.max((2 * held.capacity()).min(most));
        held.reserve_exact(grown - held.len());
    }
}

fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) {
    let room = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            required_size
        }
        Ok(_) | Err(EncodeError::AlreadyEncoded) => return,
    };
    let start = out.len();
    out.resize(start + room, 0);
    let written = data.encode(&mut out[start..]).expect("there is as much room as it asks for");
    out.truncate(start + written);
}

/// Appends what `write` writes to `room` bytes, or to as many as it wants.
fn append(
    out: &mut Vec<u8>,
    room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<(), Error> {
    let start = out.len();
    out.resize(start + room, 0);
    let mut written = write(&mut out[start..]);
    if let Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) = written {
        out.resize(start + required_size, 0);
        written = write(&mut out[start..]);
    }
    out.truncate(start + written.as_ref().map_or(0, |written| *written));
    written.map(drop).map_err(|_| Error::EncryptError)
}
