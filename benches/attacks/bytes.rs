//! What attackers send, made before they start.

use std::io::Write as _;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore};

/// What a client of TLS 1.3 and 1.2 says first.
pub fn client_hello() -> Vec<u8> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has suites of both versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let host = "ingest.test".try_into().expect("a host name");
    let mut client = ClientConnection::new(Arc::new(config), host).expect("valid settings");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("into memory");
    hello
}

pub const MIB: usize = 1 << 20;

/// A POST to `/payloads` with `headers`, each ended by CRLF.
pub fn request(body: &[u8], headers: &str) -> Vec<u8> {
    let head = format!(
        "POST /payloads HTTP/1.1\r\nhost: x\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The same with a chunked body of `bytes` a chunk.
pub fn chunked(body: &[u8], bytes: usize) -> Vec<u8> {
    let mut request = CHUNKED.to_vec();
    for piece in body.chunks(bytes) {
        request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        request.extend_from_slice(piece);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

/// The head of a chunked request.
pub const CHUNKED: &[u8] =
    b"POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";

/// A head that announces `length` bytes.
pub fn announced(length: usize, headers: &str) -> Vec<u8> {
    format!("POST /payloads HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n")
        .into()
}

pub fn gzipped(body: &[u8]) -> Vec<u8> {
    request(&gzip(body), "content-encoding: gzip\r\n")
}

pub fn zstd_ed(body: &[u8]) -> Vec<u8> {
    request(&zstd(body), "content-encoding: zstd\r\n")
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("into memory");
    encoder.finish().expect("into memory")
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 19).expect("into memory")
}

/// A collection of as many payloads as fit in `bytes`, and with `tail` behind them.
pub fn dense(bytes: usize, tail: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(bytes);
    body.extend_from_slice(br#"{"data":["#);
    while body.len() + 4 + tail.len() < bytes {
        body.extend_from_slice(b"1,");
    }
    body.extend_from_slice(format!("1]{tail}}}").as_bytes());
    body
}

/// A POST of lines of JSON, compressed.
pub fn zstd_ed_lines(body: &[u8]) -> Vec<u8> {
    request(&zstd(body), "content-encoding: zstd\r\ncontent-type: application/x-ndjson\r\n")
}

/// `line` as often as it fits in `bytes`, and then `tail`.
pub fn lines(bytes: usize, line: &str, tail: &str) -> Vec<u8> {
    (line.repeat((bytes - tail.len()) / line.len()) + tail).into_bytes()
}

/// Events of 100 bytes, `bytes` in all, and an error in the last one.
pub fn bad_at_the_end(bytes: usize) -> Vec<u8> {
    let mut body = br#"{"data":["#.to_vec();
    let mut n = 0;
    while body.len() < bytes {
        n += 1;
        let event =
            format!(r#"{{"id":{n},"name":"an event like others","value":{n}.5,"on":true}},"#);
        body.extend_from_slice(event.as_bytes());
    }
    body.extend_from_slice(br#"{"id":}]}"#);
    body
}

/// Bombs in all shapes, as requests.
pub fn bombs() -> Vec<Vec<u8>> {
    let blanks = vec![b' '; 8 * MIB];
    let skippable = [&0x184D_2A50_u32.to_le_bytes()[..], &1_u32.to_le_bytes(), b"x"].concat();
    let as_zstd = |body: &[u8]| request(body, "content-encoding: zstd\r\n");
    let as_gzip = |body: &[u8]| request(body, "content-encoding: gzip\r\n");
    vec![
        gzipped(&vec![0; 8 * MIB]),
        zstd_ed(&vec![0; 8 * MIB]),
        gzipped(&dense(8 * MIB, "")),
        zstd_ed(&dense(8 * MIB, "")),
        zstd_ed(&vec![b'['; MIB]),
        gzipped(&gzip(&blanks)),
        zstd_ed(&zstd(&blanks)),
        as_gzip(&gzip(b"").repeat(10_000)),
        as_zstd(&zstd(b"").repeat(10_000)),
        as_gzip(&gzip(&[b' '; 1024]).repeat(2000)),
        as_zstd(&zstd(&[b' '; 1024]).repeat(2000)),
        as_zstd(&skippable.repeat(20_000)),
        as_zstd(&run_lengths(2048)),
    ]
}

/// A zstd frame of `blocks` blocks that say "128 KiB of the same byte" in four bytes each.
fn run_lengths(blocks: usize) -> Vec<u8> {
    // Magic, no flags, a window of 128 KiB.
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0, 7 << 3];
    for n in 1..=blocks {
        // Last block, two bits of type, length.
        let header = u32::from(n == blocks) | (1 << 1) | ((128 << 10) << 3);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(b' ');
    }
    frame
}
