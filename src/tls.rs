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
pub use snapshot::{SharedTls, TlsError, TlsSnapshot};
pub use stream::{Decrypted, HandshakeEnd, TlsStream};

/// The protocols that connections of `LISTEN` may agree on (ALPN), the preferred one first. This is
/// the one place where they are chosen; a client that offers none gets HTTP/1.1. The admin pages
/// have HTTP/1.1 only, and so has `LISTEN` with `H2=off` or while `H2_CONNECTIONS` are open.
const PROTOCOLS: [&[u8]; 2] = [HTTP_2, HTTP_1_1];

/// HTTP/2 over TLS as ALPN names it.
const HTTP_2: &[u8] = b"h2";

/// HTTP/1.1 as ALPN names it.
const HTTP_1_1: &[u8] = b"http/1.1";

/// Most memory of one TLS connection besides that of a plain one: 14 KiB of keys and the state of a
/// handshake (measured: 2.3 kB of keys once it is silent); 18 KiB of a record that is not complete;
/// and 32 KiB that were decrypted and are not read yet, of that many bytes that are received at a
/// time. During a handshake [`session::HELD_BYTES_MAX`] of its messages instead of the last two.
pub const TLS_CONNECTION_BYTES: usize = 64 << 10;
