//! The header with which a proxy begins a connection: HAProxy's PROXY protocol, versions 1 and 2
//! (`doc/proxy-protocol.txt` of HAProxy, 2020/03/05; section 2.1 is version 1, section 2.2 version
//! 2).
//!
//! Pure: bytes in, an address or what is wrong out. Whatever part of a header has arrived, the
//! answer is the same as for the whole of it, except that it may be "not yet"; an error is reported
//! as soon as the bytes have it. Nothing is guessed: bytes that begin neither version are an error.
//!
//! What the protocol leaves to the receiver: an address family that is not of the internet is
//! accepted, and means the connection's own address, as LOCAL and UNKNOWN do. The text of version 1
//! must be exact. The checksum of version 2 is verified if there is one; other TLVs are skipped, but
//! must fill the header. The block of a LOCAL header is not looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crc_fast::{CrcAlgorithm, Digest};

/// The longest header of version 1, with its CRLF (section 2.1).
pub const LINE_BYTES_MAX: usize = 107;

/// The longest header of version 2 that is accepted. The protocol asks senders for no more than 536
/// bytes; its length field could say 65,551. nginx accepts as much as this.
pub const HEADER_BYTES_MAX: usize = 4096;

/// The first bytes of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version and command, family and protocol, and the length of the rest.
const FIXED_BYTES: usize = 16;
/// The first bytes of version 1.
const LINE_START: &[u8] = b"PROXY ";
/// `PP2_TYPE_CRC32C`.
const TYPE_CRC32C: u8 = 0x03;

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The address of the client, an IPv4 one in its own form. `None`: the header names none, so the
    /// client is the proxy itself.
    pub client: Option<IpAddr>,
    /// Bytes of the header.
    pub length: usize,
}

/// Why a connection's first bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyHeaderError {
    #[error("its first bytes begin no PROXY header")]
    NoHeader,
    #[error("its PROXY line does not end with CRLF within {LINE_BYTES_MAX} bytes")]
    LineEnd,
    #[error("its PROXY line is malformed")]
    Line,
    #[error("its PROXY header has a version other than 1 and 2")]
    Version,
    #[error("its PROXY header has an unknown command")]
    Command,
    #[error("its PROXY header has an unknown address family or protocol")]
    Family,
    #[error("its PROXY header is longer than {HEADER_BYTES_MAX} bytes")]
    TooLong,
    #[error("its PROXY header is too short for its addresses")]
    TooShort,
    #[error("the TLVs of its PROXY header do not end where it ends")]
    Tlvs,
    #[error("the checksum of its PROXY header is wrong")]
    Checksum,
}

/// Reads the header at the start of `bytes`, the first bytes of a connection. `None`: its end has
/// not arrived. No header is longer than [`HEADER_BYTES_MAX`], so more bytes are never needed.
///
/// # Errors
/// There is no valid header, whatever comes next.
pub fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let begins = |start: &[u8]| {
        let length = start.len().min(bytes.len());
        bytes[..length] == start[..length]
    };
    if begins(SIGNATURE) {
        parse_binary(bytes)
    } else if begins(LINE_START) {
        parse_line(bytes)
    } else {
        Err(ProxyHeaderError::NoHeader)
    }
}

fn parse_line(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let line = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = memchr::memchr(b'\n', line) else {
        let is_longer = bytes.len() >= LINE_BYTES_MAX;
        return if is_longer { Err(ProxyHeaderError::LineEnd) } else { Ok(None) };
    };
    let line = line[..end].strip_suffix(b"\r").ok_or(ProxyHeaderError::LineEnd)?;
    let fields = str::from_utf8(&line[LINE_START.len()..]).ok();
    let unknown = |rest: &[u8]| rest.is_empty() || rest[0] == b' ';
    let client = match line[LINE_START.len()..].strip_prefix(b"UNKNOWN") {
        // Whatever else the line has is to be ignored.
        Some(rest) if unknown(rest) => None,
        _ => Some(fields.and_then(source_of).ok_or(ProxyHeaderError::Line)?),
    };
    Ok(Some(ProxyHeader { client, length: end + 1 }))
}

/// The source of `TCP4 SOURCE DESTINATION PORT PORT`, or of the same with `TCP6`.
fn source_of(fields: &str) -> Option<IpAddr> {
    let mut fields = fields.split(' ');
    let family = fields.next()?;
    let address = |text: &str| match family {
        "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => None,
    };
    let (source, _destination) = (address(fields.next()?)?, address(fields.next()?)?);
    let are_ports = is_port(fields.next()?) && is_port(fields.next()?);
    (are_ports && fields.next().is_none()).then(|| source.to_canonical())
}

/// 0 to 65535, in digits without leading zeros.
fn is_port(text: &str) -> bool {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain && (text == "0" || !text.starts_with('0')) && text.parse::<u16>().is_ok()
}

fn parse_binary(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let (mut is_local, mut addresses) = (false, 0);
    if let Some(version_and_command) = bytes.get(SIGNATURE.len()) {
        if version_and_command >> 4 != 2 {
            return Err(ProxyHeaderError::Version);
        }
        is_local = match version_and_command & 0xf {
            0 => true,
            1 => false,
            _ => return Err(ProxyHeaderError::Command),
        };
    }
    let family_and_protocol = bytes.get(SIGNATURE.len() + 1).copied();
    // A LOCAL header's family is ignored.
    if let Some(both) = family_and_protocol.filter(|_| !is_local) {
        let (family, protocol) = (both >> 4, both & 0xf);
        addresses = match (family, protocol) {
            (_, 3..) | (4.., _) => return Err(ProxyHeaderError::Family),
            (0, _) => 0,
            (1, _) => 2 * (4 + 2),
            (2, _) => 2 * (16 + 2),
            (3, _) => 2 * 108,
        };
    }
    let Some(rest_length) = bytes[..].get(FIXED_BYTES - 2..FIXED_BYTES) else { return Ok(None) };
    let rest_length = usize::from(u16::from_be_bytes([rest_length[0], rest_length[1]]));
    let length = FIXED_BYTES + rest_length;
    if length > HEADER_BYTES_MAX {
        return Err(ProxyHeaderError::TooLong);
    }
    if rest_length < addresses {
        return Err(ProxyHeaderError::TooShort);
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    let family_and_protocol = family_and_protocol.expect("the length comes after it");
    let mut client = None;
    // Without a family, what the rest of the block is, is not known.
    if !is_local && addresses > 0 {
        check_tlvs(header, FIXED_BYTES + addresses)?;
        client = source_in(&header[FIXED_BYTES..], family_and_protocol);
    }
    Ok(Some(ProxyHeader { client, length }))
}

/// The source at the start of an address block, an internet address with a known protocol.
fn source_in(block: &[u8], family_and_protocol: u8) -> Option<IpAddr> {
    match family_and_protocol {
        0x11 | 0x12 => Some(IpAddr::from(*block.first_chunk::<4>()?)),
        0x21 | 0x22 => Some(IpAddr::from(*block.first_chunk::<16>()?).to_canonical()),
        _ => None,
    }
}

/// Checks that TLVs fill `header` from `at` on, and the checksum that one of them may be.
fn check_tlvs(header: &[u8], mut at: usize) -> Result<(), ProxyHeaderError> {
    let mut checksum = None;
    while at < header.len() {
        let Some([kind, high, low]) = header[at..].first_chunk() else {
            return Err(ProxyHeaderError::Tlvs);
        };
        let value = at + 3;
        let end = value + usize::from(u16::from_be_bytes([*high, *low]));
        if end > header.len() {
            return Err(ProxyHeaderError::Tlvs);
        }
        if *kind == TYPE_CRC32C && checksum.replace(value..end).is_some() {
            return Err(ProxyHeaderError::Checksum);
        }
        at = end;
    }
    let Some(place) = checksum else { return Ok(()) };
    // The sum was made with zeros in its own place.
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&header[..place.start]);
    digest.update(&[0; 4]);
    digest.update(&header[place.end..]);
    let sum = digest.finalize() as u32;
    match header[place] == sum.to_be_bytes() {
        true => Ok(()),
        false => Err(ProxyHeaderError::Checksum),
    }
}

#[cfg(test)]
mod tests;
