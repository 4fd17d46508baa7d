//! A client's connection: its bytes as they are, or over TLS. It never blocks.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use futures_rustls::pki_types::ServerName;
use futures_rustls::rustls::client::ClientConnection;
use futures_rustls::rustls::{ClientConfig, HandshakeKind, ProtocolVersion};

/// How connections have TLS.
#[derive(Clone, Debug)]
pub struct WireTls {
    pub config: Arc<ClientConfig>,
    pub name: ServerName<'static>,
}

/// A connection that is being made or was made, over a non-blocking stream.
pub struct LoadWire<S> {
    stream: S,
    tls: Option<Box<ClientConnection>>,
}

impl<S: Read + Write> LoadWire<S> {
    /// # Errors
    /// The TLS settings do not fit the name.
    pub fn new(stream: S, tls: Option<&WireTls>) -> Result<LoadWire<S>, String> {
        let tls = tls.map(|tls| ClientConnection::new(tls.config.clone(), tls.name.clone()));
        let tls = tls.transpose().map_err(|error| format!("no TLS: {error}"))?;
        Ok(LoadWire { stream, tls: tls.map(Box::new) })
    }

    pub fn stream(&self) -> &S {
        &self.stream
    }

    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Whether requests can be sent, the socket being connected.
    pub fn is_ready(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking())
    }

    /// Version and kind of the handshake, once there was one.
    pub fn handshake(&self) -> Option<(ProtocolVersion, HandshakeKind)> {
        let tls = self.tls.as_ref()?;
        tls.protocol_version().zip(tls.handshake_kind())
    }

    /// Whether TLS has something to send that the socket did not take.
    pub fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Sends what TLS has to say, as far as the socket takes it.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn flush(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            match tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes a part of `bytes`, which is sent as soon as the socket takes it.
    ///
    /// # Errors
    /// `WouldBlock`, or the connection is broken.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.write(bytes) };
        let taken = tls.writer().write(bytes)?;
        if taken == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.flush()?;
        Ok(taken)
    }

    /// What has arrived; empty at the end. A part of `buffer` is left for ciphertext.
    ///
    /// # Errors
    /// `WouldBlock`; `InvalidData` with what TLS says; or the connection is broken.
    pub fn read<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let Some(tls) = &mut self.tls else {
            let read = self.stream.read(buffer)?;
            return Ok(&buffer[..read]);
        };
        let (received, decrypted) = buffer.split_at_mut(buffer.len() / 2);
        let length = self.stream.read(received)?;
        let mut received = &received[..length];
        if received.is_empty() {
            return Ok(&[]);
        }
        let mut read = 0;
        while !received.is_empty() {
            tls.read_tls(&mut received)?;
            if let Err(error) = tls.process_new_packets() {
                // The peer is told why, as well as that can be done at once.
                let _or_it_is_cut = self.flush();
                return Err(io::Error::new(ErrorKind::InvalidData, error.to_string()));
            }
            loop {
                match tls.reader().read(&mut decrypted[read..]) {
                    Ok(0) => return Ok(&decrypted[..read]),
                    Ok(more) => read += more,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        self.flush()?;
        if read == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(&decrypted[..read]) }
    }

    /// Tells the server that nothing more comes, as well as that can be done at once.
    pub fn say_goodbye(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _or_it_is_cut = self.flush();
        }
    }
}
