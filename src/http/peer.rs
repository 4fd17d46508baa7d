//! The origin of a connection and of its requests, by which clients are told apart.

use std::cell::Cell;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use super::h2::H2Link;

/// What counts as one client: an IPv4 address, or the /64 of an IPv6 address, because one host can
/// use all addresses of its /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// An IPv4 address, also one mapped into IPv6.
    V4(u32),
    /// The first 64 bits of an IPv6 address.
    V6(u64),
    /// The connection was closed before its address could be read.
    Unknown,
}

impl Peer {
    /// Its place in a table of `places` in which neighbours do not share one.
    pub(super) fn place(self, places: usize) -> usize {
        match self {
            Peer::V4(bits) => bits as usize % places,
            Peer::V6(bits) => bits as usize % places,
            Peer::Unknown => 0,
        }
    }

    /// No other one is ordered before it.
    pub(super) const LEAST: Peer = Peer::V4(0);

    /// The peer with this address; [`Peer::Unknown`] of the unspecified one.
    pub fn of(address: IpAddr) -> Peer {
        match address.to_canonical() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Peer::Unknown,
            IpAddr::V4(address) => Peer::V4(address.to_bits()),
            IpAddr::V6(address) => Peer::V6((address.to_bits() >> 64) as u64),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Peer::V4(bits) => Ipv4Addr::from_bits(bits).fmt(f),
            Peer::V6(bits) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(bits) << 64)),
            Peer::Unknown => f.write_str("unknown"),
        }
    }
}

/// Where a connection and its current request come from.
pub(super) struct ClientOrigin {
    connection: Cell<IpAddr>,
    /// Set only from the head to the answer of a request that a trusted proxy has sent.
    request: Cell<Option<IpAddr>>,
    has_certificate: Cell<bool>,
    /// The connection, if this is the origin of one of its streams.
    stream_of: Option<Rc<H2Link>>,
}

impl ClientOrigin {
    /// A connection whose other end has this address; unspecified if it is not known.
    pub(super) fn new(connection: IpAddr) -> ClientOrigin {
        let connection = Cell::new(connection);
        ClientOrigin {
            connection,
            request: Cell::new(None),
            has_certificate: Cell::new(false),
            stream_of: None,
        }
    }

    /// A stream of this connection.
    pub(super) fn of_stream(link: Rc<H2Link>) -> ClientOrigin {
        let connection = link.conn.origin.connection();
        ClientOrigin { stream_of: Some(link), ..ClientOrigin::new(connection) }
    }

    /// The connection whose stream it is; `None`: it is that of a connection.
    pub(super) fn stream_of(&self) -> Option<&Rc<H2Link>> {
        self.stream_of.as_ref()
    }

    /// The client that the connection comes from has proved a certificate to be its own.
    pub(super) fn is_certified(&self) {
        self.has_certificate.set(true);
    }

    pub(super) fn has_certificate(&self) -> bool {
        self.has_certificate.get()
    }

    /// The address that the connection comes from: that of the socket's other end or, on a listener
    /// with `proxy=`, the one that the PROXY header names. An IPv4 address is in its own form.
    pub(super) fn connection(&self) -> IpAddr {
        self.connection.get()
    }

    /// The PROXY header names this address.
    pub(super) fn is_proxied_for(&self, client: IpAddr) {
        self.connection.set(client);
    }

    /// The current request is this client's.
    pub(super) fn request_begins(&self, client: IpAddr) {
        self.request.set(Some(client));
    }

    /// Until the next request the connection's own address counts.
    pub(super) fn request_ended(&self) {
        self.request.set(None);
    }

    /// The address of the current request's client, between requests that of the connection.
    pub(super) fn client(&self) -> IpAddr {
        self.request.get().unwrap_or(self.connection.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_an_ipv4_address_or_an_ipv6_network() {
        let of = |text: &str| Peer::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.7"), of("192.0.2.7"));
        assert_ne!(of("192.0.2.7"), of("192.0.2.8"));
        assert_eq!(of("2001:db8:1:2::1").to_string(), "2001:db8:1:2::/64");
        assert_eq!(of("::ffff:192.0.2.7").to_string(), "192.0.2.7");
        assert_eq!(of("0.0.0.0").to_string(), "unknown");
    }
}
