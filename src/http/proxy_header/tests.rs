use super::ProxyHeaderError::{
    Checksum, Command, Family, Line, LineEnd, NoHeader, Tlvs, TooLong, TooShort, Version,
};
use super::*;
use crate::rt::Rng;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A header of version 2 with this block.
fn binary(version_and_command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[version_and_command, family], &length, block].concat()
}

/// The addresses of a connection over IPv4.
const V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0, 80];

fn v6() -> Vec<u8> {
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    [&address("2001:db8::7")[..], &address("fd00::1"), &[0, 1, 0, 2]].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], value].concat()
}

/// A header with a checksum between two other TLVs.
fn summed(kind: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let (before, after) = (tlv(1, b"h2"), tlv(4, &[0; 9]));
    let block = [addresses, &before, &tlv(TYPE_CRC32C, &[0; 4]), &after].concat();
    let mut header = binary(kind, family, &block);
    // Bit by bit, as RFC 4960 appendix B defines it.
    let mut sum = u32::MAX;
    for byte in &header {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
        }
    }
    let place = header.len() - after.len() - 4;
    header[place..place + 4].copy_from_slice(&(!sum).to_be_bytes());
    header
}

/// Every part of `header` is incomplete, and with anything behind it the header is what it is.
#[track_caller]
fn is_header(header: &[u8], client: Option<&str>) {
    for length in 0..header.len() {
        assert_eq!(parse(&header[..length]), Ok(None), "{length} of {header:?}");
    }
    let whole = Ok(Some(ProxyHeader { client: client.map(ip), length: header.len() }));
    for rest in [&b""[..], b"P", b"\r\n", b"POST / HTTP/1.1\r\n\r\n", &[0; 9000]] {
        assert_eq!(parse(&[header, rest].concat()), whole, "{header:?}");
    }
}

/// `bytes` are refused, and no part of them is accepted.
#[track_caller]
fn is_refused(bytes: &[u8], error: ProxyHeaderError) {
    for length in 0..bytes.len() {
        let part = parse(&bytes[..length]);
        assert!(part == Ok(None) || part == Err(error), "{length} of {bytes:?}: {part:?}");
    }
    assert_eq!(parse(bytes), Err(error), "{}", String::from_utf8_lossy(bytes));
}

#[test]
fn lines_of_version_1() {
    for (line, client) in [
        ("PROXY TCP4 192.0.2.7 10.0.0.1 12345 80\r\n", Some("192.0.2.7")),
        ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Some("255.255.255.255")),
        ("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", Some("0.0.0.0")),
        ("PROXY TCP6 2001:db8::7 fd00::1 1 2\r\n", Some("2001:db8::7")),
        ("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n", Some("192.0.2.7")),
        (
            "PROXY TCP6 FFFF:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
             ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
            Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN \r\n", None),
        ("PROXY UNKNOWN whatever \r \0 else\r\n", None),
        (
            "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
             ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
            None,
        ),
    ] {
        assert!(line.len() <= LINE_BYTES_MAX);
        is_header(line.as_bytes(), client);
    }
}

#[test]
fn lines_that_are_not_exact() {
    for line in [
        "PROXY TCP4 192.0.2.7 10.0.0.1 12345\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 12345 80 1\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 12345 80 \r\n",
        "PROXY TCP4  192.0.2.7 10.0.0.1 12345 80\r\n",
        "PROXY  TCP4 192.0.2.7 10.0.0.1 12345 80\r\n",
        "PROXY TCP4\t192.0.2.7 10.0.0.1 12345 80\r\n",
        "PROXY TCP4 192.0.2.07 10.0.0.1 12345 80\r\n",
        "PROXY TCP4 192.0.2 10.0.0.1 12345 80\r\n",
        "PROXY TCP4 192.0.2.256 10.0.0.1 12345 80\r\n",
        "PROXY TCP4 192.0.2.7 fd00::1 12345 80\r\n",
        "PROXY TCP4 2001:db8::7 fd00::1 12345 80\r\n",
        "PROXY TCP6 192.0.2.7 10.0.0.1 12345 80\r\n",
        "PROXY TCP6 [2001:db8::7] fd00::1 1 2\r\n",
        "PROXY TCP6 fe80::1%1 fd00::1 1 2\r\n",
        "PROXY TCP6 2001::db8::7 fd00::1 1 2\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 65536 80\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 012 80\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 +1 80\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 -1 80\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1  80\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 1 8\r0\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 1 \u{663}\r\n",
        "PROXY tcp4 192.0.2.7 10.0.0.1 1 2\r\n",
        "PROXY TCP5 192.0.2.7 10.0.0.1 1 2\r\n",
        "PROXY UDP4 192.0.2.7 10.0.0.1 1 2\r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY unknown\r\n",
        "PROXY \r\n",
        "PROXY TCP4\r\n",
    ] {
        is_refused(line.as_bytes(), Line);
    }
    is_refused(b"PROXY TCP4 \xff 10.0.0.1 1 2\r\n", Line);
    for line in [
        "PROXY TCP4 192.0.2.7 10.0.0.1 1 2\n",
        "PROXY UNKNOWN\n",
        "PROXY UNKNOWN a\nb\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 1 2\n\r\n",
        "PROXY \n",
    ] {
        is_refused(line.as_bytes(), LineEnd);
    }
    let long = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16));
    is_header(long(LINE_BYTES_MAX).as_bytes(), None);
    is_refused(long(LINE_BYTES_MAX + 1).as_bytes(), LineEnd);
    is_refused(long(9000).as_bytes(), LineEnd);
}

#[test]
fn what_begins_no_header_is_refused_at_its_first_wrong_byte() {
    for bytes in [
        &b"POST /payloads HTTP/1.1\r\n"[..],
        b"GET / HTTP/1.1\r\n",
        b"PROXX",
        b"PROXY\r\n",
        b"PROXYTCP4",
        b"proxy TCP4",
        b" PROXY TCP4",
        b"\r\nPROXY TCP4",
        b"\r\n\r\nGET",
        b"\r\n\r\n\0\r\nQUIT\r",
        b"\x16\x03\x01\x02\0",
        b"\0",
    ] {
        is_refused(bytes, NoHeader);
        let wrong = (1..=bytes.len()).find(|length| parse(&bytes[..*length]).is_err()).unwrap();
        let begins = |start: &[u8]| start.starts_with(&bytes[..wrong - 1]);
        assert!(begins(SIGNATURE) || begins(LINE_START), "{bytes:?}: only {wrong}");
    }
}

#[test]
fn headers_of_version_2() {
    is_header(&binary(0x21, 0x11, &V4), Some("192.0.2.7"));
    is_header(&binary(0x21, 0x12, &V4), Some("192.0.2.7"));
    is_header(&binary(0x21, 0x21, &v6()), Some("2001:db8::7"));
    is_header(&binary(0x21, 0x22, &v6()), Some("2001:db8::7"));
    let mapped = "::ffff:192.0.2.7".parse::<Ipv6Addr>().unwrap().octets();
    is_header(&binary(0x21, 0x21, &[&mapped[..], &v6()[16..]].concat()), Some("192.0.2.7"));
    // Without an address of the internet, or a known protocol.
    is_header(&binary(0x21, 0x31, &[b'x'; 216]), None);
    is_header(&binary(0x21, 0x32, &[0; 216]), None);
    is_header(&binary(0x21, 0x30, &[0; 216]), None);
    is_header(&binary(0x21, 0x10, &V4), None);
    is_header(&binary(0x21, 0x20, &v6()), None);
    for family in [0x00, 0x01, 0x02] {
        is_header(&binary(0x21, family, b""), None);
        is_header(&binary(0x21, family, b"what it has is not known"), None);
    }
    // LOCAL, whatever it has.
    for (family, block) in [(0x00, &b""[..]), (0x11, &V4), (0x11, b"short"), (0xff, b"any")] {
        is_header(&binary(0x20, family, block), None);
    }
    is_header(&summed(0x20, 0x11, &V4), None);
}

#[test]
fn tlvs_are_skipped_and_checksums_verified() {
    let with = |tlvs: &[Vec<u8>]| binary(0x21, 0x11, &[&V4[..], &tlvs.concat()].concat());
    let client = Some("192.0.2.7");
    is_header(&with(&[tlv(4, b"")]), client);
    is_header(&with(&[tlv(0x20, &[7; 300]), tlv(5, b"id"), tlv(0xff, b"?")]), client);
    let rest = HEADER_BYTES_MAX - FIXED_BYTES - V4.len() - 3;
    is_header(&with(&[tlv(4, &vec![0; rest])]), client);
    is_refused(&with(&[tlv(4, &vec![0; rest + 1])]), TooLong);
    for summed in [summed(0x21, 0x11, &V4), summed(0x21, 0x12, &V4)] {
        is_header(&summed, client);
        // In the type or length of a TLV it may hide the sum.
        let is_head = |at: &usize| [28..31, 33..36, 40..43].iter().any(|head| head.contains(at));
        for at in (0..summed.len() * 8).filter(|at| !is_head(&(at / 8))) {
            let mut flipped = summed.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            let found = parse(&flipped);
            // A flip may make it longer, local or without a family, and then no sum is looked for.
            let names_client = matches!(found, Ok(Some(ProxyHeader { client: Some(_), .. })));
            assert!(!names_client, "bit {at}: {found:?}");
        }
    }
    is_header(&summed(0x21, 0x21, &v6()), Some("2001:db8::7"));
    is_header(&summed(0x21, 0x31, &[1; 216]), None);
    let mut wrong = summed(0x21, 0x31, &[1; 216]);
    wrong[20] ^= 1;
    is_refused(&wrong, Checksum);
    is_refused(&with(&[tlv(TYPE_CRC32C, &[0; 4])]), Checksum);
    is_refused(&with(&[tlv(TYPE_CRC32C, &[0; 3])]), Checksum);
    is_refused(&with(&[tlv(TYPE_CRC32C, b"")]), Checksum);
    is_refused(&with(&[tlv(TYPE_CRC32C, &[0; 4]), tlv(TYPE_CRC32C, &[0; 4])]), Checksum);
    is_refused(&with(&[vec![4]]), Tlvs);
    is_refused(&with(&[vec![4, 0]]), Tlvs);
    is_refused(&with(&[vec![4, 0, 1]]), Tlvs);
    is_refused(&with(&[tlv(4, b"x"), vec![4, 0xff, 0xff, 0]]), Tlvs);
}

#[test]
fn headers_of_version_2_that_are_none() {
    for version in [0x01, 0x11, 0x31, 0xf1] {
        is_refused(&binary(version, 0x11, &V4), Version);
    }
    for command in [0x22, 0x2f] {
        is_refused(&binary(command, 0x11, &V4), Command);
    }
    for family in [0x03, 0x13, 0x1f, 0x41, 0xf1, 0xff] {
        is_refused(&binary(0x21, family, &V4), Family);
    }
    for (family, least) in [(0x11, 12), (0x10, 12), (0x21, 36), (0x22, 36), (0x31, 216)] {
        is_refused(&binary(0x21, family, &vec![0; least - 1]), TooShort);
        is_refused(&binary(0x21, family, b""), TooShort);
    }
    // The length alone decides, before anything of that length is there.
    for kind in [0x20, 0x21] {
        let mut header = binary(kind, 0x11, &V4);
        header[14..16].copy_from_slice(&[0xff, 0xff]);
        is_refused(&header, TooLong);
        assert_eq!(parse(&header[..FIXED_BYTES]), Err(TooLong));
    }
}

/// Whatever is done to a header and wherever it is cut: no panic, an answer never changes with what
/// arrives later, and a header is never longer than its bytes.
#[test]
fn more_bytes_never_change_an_answer() {
    let seed = crate::rt::random();
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let line = b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 80\r\n".to_vec();
    let line6 = b"PROXY TCP6 2001:db8::7 fd00::1 1 2\r\n".to_vec();
    let starts = [line, line6, b"PROXY UNKNOWN\r\n".to_vec(), summed(0x21, 0x11, &V4)];
    let more = [binary(0x21, 0x21, &v6()), binary(0x20, 0, b""), summed(0x21, 0x31, &[0; 216])];
    let starts = [&starts[..], &more].concat();
    for _ in 0..3_000 {
        let mut bytes = starts[rng.usize(..starts.len())].clone();
        for _ in 0..rng.usize(..4) {
            let at = rng.usize(..bytes.len());
            match rng.u8(..4) {
                0 => bytes[at] = rng.u8(..),
                1 => bytes.insert(at, rng.u8(..)),
                2 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => bytes[at] ^= 1 << rng.u8(..8),
            }
        }
        bytes.extend((0..rng.usize(..40)).map(|_| rng.u8(..)));
        let whole = parse(&bytes);
        let mut decided = false;
        for length in 0..=bytes.len() {
            let part = parse(&bytes[..length]);
            if decided || part != Ok(None) {
                assert_eq!(part, whole, "seed {seed}: {length} of {bytes:?}");
                decided = true;
            }
            if let Ok(Some(header)) = part {
                assert!((1..=length).contains(&header.length), "seed {seed}: {bytes:?}");
            }
        }
    }
}
