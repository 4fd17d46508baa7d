//! TLS on the server's side: certificates and their reload, and sessions over sockets of `net`.
//!
//! rustls makes handshakes and encrypts; it is used without buffers of its own
//! ([`UnbufferedServerConnection`](futures_rustls::rustls::server::UnbufferedServerConnection)), so
//! that a silent connection holds its keys and nothing else. What all cores share is an immutable
//! [`TlsSnapshot`], which control replaces when files change, and the keys of session tickets. Both
//! are looked at during handshakes only. Encryption is done here and not by the kernel (kTLS).

mod client_verifier;
mod der;
mod files;
mod pair;
mod session;
mod snapshot;
mod sni;
mod stream;
#[cfg(test)]
mod tests;
mod tickets;

pub use pair::unix_now;
pub use session::{Agreed, Session};
pub use snapshot::{SharedTls, TlsError, TlsFlaw, TlsSnapshot};
pub use stream::{Decrypted, HandshakeEnd, TlsStream};

/// The protocols that connections of `LISTEN` may agree on (ALPN), the preferred one first. This is
/// the one place where they are chosen; a client that offers none gets HTTP/1.1. The admin pages
/// have HTTP/1.1 only, and so has `LISTEN` with `H2=off` or while `H2_CONNECTIONS` are open.
const PROTOCOLS: [&[u8]; 2] = [HTTP_2, HTTP_1_1];

/// HTTP/2 over TLS as ALPN names it.
const HTTP_2: &[u8] = b"h2";

/// HTTP/1.1 as ALPN names it.
const HTTP_1_1: &[u8] = b"http/1.1";

/// Most memory of one TLS connection besides that of a plain one: 8 KiB of keys and state
/// (measured: 2.3 kB of keys once it is silent), 34.5 KiB of a record that is not complete and what
/// has arrived behind it ([`session::HELD_ROOM_MAX`]), and as much that was decrypted and is not
/// read.
pub const TLS_CONNECTION_BYTES: usize = 80 << 10;
const _: () = assert!(TLS_CONNECTION_BYTES >= (8 << 10) + 2 * session::HELD_ROOM_MAX);

/// Most memory that it takes besides if it may have a client's certificate: the chain, and two
/// tickets, each with the chain in it, that its client has not read.
pub const CLIENT_CHAIN_BYTES: usize =
    3 * client_verifier::CLIENT_CHAIN_BYTES_MAX + TICKETS_BESIDE_BYTES;

/// What two tickets hold beside the chain, and their records.
const TICKETS_BESIDE_BYTES: usize = 1 << 10;

/// Most memory of a handshake in progress besides that of its connection: 48 KiB of messages that
/// are not complete ([`session::PLAIN_BYTES_MAX`]); 8 KiB of its state, of the server's chain, and
/// of what is to be sent; and of up to 32 KiB of messages a copy for their hash, which grows in
/// steps and so may take twice as much, and with a client's certificate one of that. What its
/// connection may take otherwise it does not take yet.
pub const TLS_HANDSHAKE_BYTES: usize =
    (8 << 10) + session::PLAIN_BYTES_MAX + 3 * session::HELD_BYTES_MAX - 2 * session::HELD_ROOM_MAX;
