//! Whose request it is that a trusted proxy forwards: `forwarded` (RFC 7239) and
//! `x-forwarded-for`.
//!
//! Pure. Each proxy on the way appends the address that it was reached from. So the list is read
//! from its right end, where the connection's own peer has written: addresses of trusted proxies are
//! passed over, and the first other one is the client. What stands further left anybody may have
//! written, and it is not even looked at: elements are found from the right, so that nothing to the
//! left of one, such as a quotation mark, changes how it is read.
//!
//! The walk ends early, at the last address that it has passed, where an element hides its address
//! (`unknown`, `_name`, or no `for` at all) or cannot be read, and after [`HOPS_MAX`] elements.
//!
//! If a request has both headers, they must lead to the same address; if not, neither counts, and
//! the client is the peer. A proxy sets only one of them and may pass on the other as its client has
//! sent it, and which one cannot be told.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::fields::{Fields, KnownField};
use crate::config::Networks;
use crate::metrics::ForwardedFlaw;

/// Most elements of one header that are looked at. Chains of proxies have two or three.
pub const HOPS_MAX: usize = 32;

/// What the headers of a request say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardedClient {
    /// The client, an IPv4 address in its own form.
    pub address: IpAddr,
    /// Why it may not be the one that the headers were meant to name.
    pub flaw: Option<ForwardedFlaw>,
}

/// The client of a request with these fields that came from `peer`, which is trusted.
pub fn client(fields: &impl Fields, peer: IpAddr, trusted: &Networks) -> ForwardedClient {
    let nobody = ForwardedClient { address: peer, flaw: None };
    let values = |field| fields.values(field).rev();
    let forwarded = values(KnownField::Forwarded).flat_map(|list| FromRight(Some(list))).map(hop);
    let forwarded = walk(forwarded, peer, trusted);
    let x_forwarded_for = values(KnownField::XForwardedFor)
        .flat_map(|list| list.rsplit(|byte| *byte == b','))
        .map(|text| plain_hop(text.trim_ascii()));
    let x_forwarded_for = walk(x_forwarded_for, peer, trusted);
    match (forwarded, x_forwarded_for) {
        (Some(one), Some(other)) if one.address == other.address => one,
        (Some(_), Some(_)) => ForwardedClient { flaw: Some(ForwardedFlaw::Conflict), ..nobody },
        (one, other) => one.or(other).unwrap_or(nobody),
    }
}

/// What one element of a list says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hop {
    Address(IpAddr),
    /// It does not tell.
    Hidden,
    /// RFC 9110 section 5.6.1 wants empty elements to be ignored.
    Empty,
    Malformed,
}

/// Walks from the right to the left. `None` if there is no element.
fn walk(
    hops: impl Iterator<Item = Hop>,
    peer: IpAddr,
    trusted: &Networks,
) -> Option<ForwardedClient> {
    let (mut address, mut flaw, mut any) = (peer, None, false);
    for (passed, hop) in hops.enumerate() {
        if passed == HOPS_MAX {
            flaw = Some(ForwardedFlaw::TooManyHops);
            break;
        }
        any |= hop != Hop::Empty;
        match hop {
            Hop::Address(next) => {
                address = next;
                if !trusted.contains(next) {
                    break;
                }
            }
            Hop::Empty => {}
            Hop::Hidden => break,
            Hop::Malformed => {
                flaw = Some(ForwardedFlaw::Malformed);
                break;
            }
        }
    }
    (any || flaw.is_some()).then_some(ForwardedClient { address, flaw })
}

/// The elements of a list, last one first. A comma in a quoted string separates nothing.
struct FromRight<'a>(Option<&'a [u8]>);

impl<'a> Iterator for FromRight<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let list = self.0.take()?;
        let mut is_quoted = false;
        for at in (0..list.len()).rev() {
            match list[at] {
                b'"' if !is_escaped(list, at) => is_quoted = !is_quoted,
                b',' if !is_quoted => {
                    self.0 = Some(&list[..at]);
                    return Some(&list[at + 1..]);
                }
                _ => {}
            }
        }
        Some(list)
    }
}

/// Whether the character at `at` is the second one of a quoted pair, if it is in a quoted string.
fn is_escaped(list: &[u8], at: usize) -> bool {
    list[..at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// What a `forwarded-element` says: the node of its `for`. Blanks around a semicolon are accepted.
fn hop(element: &[u8]) -> Hop {
    let mut rest = element.trim_ascii();
    if rest.is_empty() {
        return Hop::Empty;
    }
    let mut found = None;
    loop {
        let name = &rest[..token_length(rest)];
        rest = &rest[name.len()..];
        if !name.is_empty() {
            let Some((value, after)) = rest.strip_prefix(b"=").and_then(value) else {
                return Hop::Malformed;
            };
            rest = after;
            // No parameter may occur twice.
            if name.eq_ignore_ascii_case(b"for") && found.replace(node(&value)).is_some() {
                return Hop::Malformed;
            }
        }
        rest = rest.trim_ascii_start();
        match rest.split_first() {
            None => return found.unwrap_or(Hop::Hidden),
            Some((b';', after)) => rest = after.trim_ascii_start(),
            Some(_) => return Hop::Malformed,
        }
    }
}

/// The token or quoted string at the start of `text`, unescaped, and what follows it.
fn value(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let length = token_length(text);
        return (length > 0).then(|| (Cow::Borrowed(&text[..length]), &text[length..]));
    };
    let end = (0..quoted.len()).find(|at| quoted[*at] == b'"' && !is_escaped(quoted, *at))?;
    let (inner, after) = (&quoted[..end], &quoted[end + 1..]);
    if memchr::memchr(b'\\', inner).is_none() {
        return Some((Cow::Borrowed(inner), after));
    }
    let mut unescaped = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(byte) = bytes.next() {
        let byte = if *byte == b'\\' { bytes.next()? } else { byte };
        unescaped.push(*byte);
    }
    Some((Cow::Owned(unescaped), after))
}

/// How many `tchar` of RFC 9110 section 5.6.2 `text` begins with.
fn token_length(text: &[u8]) -> usize {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    text.iter().position(|byte| !is_token(byte)).unwrap_or(text.len())
}

/// What a `node` of RFC 7239 section 6 says: an address, IPv6 in brackets, with or without a port;
/// `unknown`; or a name that begins with an underscore.
fn node(text: &[u8]) -> Hop {
    let Ok(text) = str::from_utf8(text) else { return Hop::Malformed };
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']').unwrap_or(("", ""));
        let address = address.parse::<Ipv6Addr>().ok();
        let is_whole = port.is_empty() || port.strip_prefix(':').is_some_and(is_node_port);
        return address_hop(address.filter(|_| is_whole).map(IpAddr::V6));
    }
    let (name, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_hidden = name.eq_ignore_ascii_case("unknown") || is_obfuscated(name);
    match is_node_port(port) {
        true if is_hidden => Hop::Hidden,
        true => address_hop(name.parse::<Ipv4Addr>().ok().map(IpAddr::V4)),
        false => Hop::Malformed,
    }
}

/// What an element of `x-forwarded-for` says. No standard has it; senders also write IPv6 addresses
/// without brackets.
fn plain_hop(text: &[u8]) -> Hop {
    if text.is_empty() {
        return Hop::Empty;
    }
    let bare = str::from_utf8(text).ok().and_then(|text| text.parse::<Ipv6Addr>().ok());
    match bare {
        Some(address) => address_hop(Some(address.into())),
        None => node(text),
    }
}

/// The unspecified address is nobody's.
fn address_hop(address: Option<IpAddr>) -> Hop {
    let address = address.map(|address| address.to_canonical());
    address.filter(|address| !address.is_unspecified()).map_or(Hop::Malformed, Hop::Address)
}

/// One to five digits, or a name that begins with an underscore.
fn is_node_port(text: &str) -> bool {
    let is_number = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    is_number || is_obfuscated(text)
}

/// `obfnode` and `obfport`.
fn is_obfuscated(text: &str) -> bool {
    let Some(name) = text.strip_prefix('_') else { return false };
    let is_char = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty() && name.bytes().all(is_char)
}

#[cfg(test)]
mod tests;
