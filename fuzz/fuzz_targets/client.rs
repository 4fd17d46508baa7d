//! What proxies say about their clients: the PROXY header at the start of a connection, and the
//! `forwarded` and `x-forwarded-for` headers of a request. Nothing panics, and
//!
//! - a PROXY header is read alike however much of it, or of what follows it, has arrived;
//! - what a client has sent before a trusted proxy has appended its address never counts.
//!
//! How to run it is said in `segment.rs`; the name here is `client`.
//!
//! The first byte of an input says which, and for the second whether the proxy appends to the
//! client's header or adds one of its own.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use millrace::internals::config::{Config, Networks};
use millrace::internals::http::forwarded::{ForwardedClient, client};
use millrace::internals::http::proxy_header::{HEADER_BYTES_MAX, parse};

static TRUSTED: LazyLock<Networks> = LazyLock::new(|| {
    let config = Config::from_settings(&[("TRUST", "10.0.0.0/8,fd00::/8")]);
    config.expect("these are networks").trust.expect("it is set")
});

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 4 {
        0 => proxy_header(rest),
        1 => headers(rest),
        _ => appended(*kind, rest),
    }
});

fn proxy_header(bytes: &[u8]) {
    let whole = parse(bytes);
    if let Ok(Some(header)) = whole {
        assert!((1..=bytes.len().min(HEADER_BYTES_MAX)).contains(&header.length));
        assert_eq!(parse(&bytes[..header.length]), whole);
        assert_eq!(parse(&bytes[..header.length - 1]), Ok(None));
    }
    if whole == Ok(None) {
        assert!(bytes.len() < HEADER_BYTES_MAX);
    }
    for length in 0..bytes.len().min(300) {
        let part = parse(&bytes[..length]);
        assert!(part == Ok(None) || part == whole, "{length}: {part:?}, {whole:?}");
    }
}

/// Any header fields, a line each; those of an `f` at their start are `forwarded`.
fn headers(lines: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').take(100) {
        let (name, value) = match line.strip_prefix(b"f") {
            Some(value) => (FORWARDED, value),
            None => (HeaderName::from_static("x-forwarded-for"), line),
        };
        if let Ok(value) = HeaderValue::from_bytes(value.trim_ascii()) {
            headers.append(name, value);
        }
    }
    let ForwardedClient { address, .. } = client(&headers, PEER, &TRUSTED);
    assert!(!address.is_unspecified() && address == address.to_canonical());
}

fn appended(kind: u8, sent: &[u8]) {
    let (name, own) = match kind & 4 {
        0 => (HeaderName::from_static("x-forwarded-for"), &b"192.0.2.7:1, 10.0.0.3"[..]),
        _ => (FORWARDED, &b"by=\"a, \\\" b\";for=192.0.2.7;proto=http, for=\"[fd00::1]:1\""[..]),
    };
    let fields = match kind & 8 {
        0 => vec![[sent, b", ", own].concat()],
        _ => vec![sent.to_vec(), own.to_vec()],
    };
    let mut headers = HeaderMap::new();
    for field in fields {
        let Ok(value) = HeaderValue::from_bytes(field.trim_ascii()) else { return };
        headers.append(&name, value);
    }
    let found = client(&headers, PEER, &TRUSTED);
    assert_eq!(found, ForwardedClient { address: CLIENT, flaw: None });
}
