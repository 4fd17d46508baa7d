//! The head of a PUT: one template per store, to which a request adds its key, length, coding,
//! date, hash, checksum and signature.
//!
//! Set and order of the headers are fixed except for `content-encoding` and the session token, so
//! the lists of signed names are constants. No clock and no I/O. A template can be shared between
//! threads, a [`Signer`] cannot. `content-length` is not signed: the body's hash or TLS protects
//! more.

use std::fmt;

use super::encode::{base64, decimal, hex};
use super::sign::{Signer, Unsendable, sendable};
use crate::coding::Coding;
use crate::coding::percent::{escape_path, escape_query};
use crate::config::{Checksum, S3Options};
use crate::store::s3::dial::ServerAddress;
use crate::store::{Integrity, Sums};

const USER_AGENT: &str = concat!("millrace/", env!("CARGO_PKG_VERSION"));
const UNSIGNED_PAYLOAD: &[u8] = b"UNSIGNED-PAYLOAD";

/// Where the objects of one store are sent.
#[derive(Clone, Debug)]
pub struct Destination<'a> {
    /// Names the host of the request.
    pub server: &'a ServerAddress,
    /// What stands before every key in the path, escaped: `/` or `/bucket/`.
    pub path: &'a str,
    /// Prepended to every key, not escaped.
    pub prefix: &'a str,
}

/// One object, as described by its head.
#[derive(Clone, Copy, Debug)]
pub struct Put<'a> {
    /// Relative to the store's prefix, not escaped.
    pub key: &'a str,
    /// Length of the body.
    pub bytes: u64,
    pub coding: Option<Coding>,
    /// Of the body, computed for the template's [`Integrity`].
    pub sums: &'a Sums,
}

/// What is the same in every PUT to one store, laid out in advance.
#[derive(Clone)]
pub struct Template {
    integrity: Integrity,
    /// Every constant header but `host`, sorted by name.
    headers: Vec<(&'static str, String)>,
    /// Method, scheme and host if a proxy needs them, and the path up to the key.
    wire_start: Vec<u8>,
    /// Where the path starts in `wire_start`.
    path_at: usize,
    /// From the end of the key to the length.
    wire_middle: Vec<u8>,
    /// From the end of the path to the first header that varies, except `content-encoding`.
    canonical_before: Vec<u8>,
    /// Where `content-encoding` goes in `canonical_before`, if there is one: it sorts first.
    coding_at: usize,
    /// Constant headers that sort between the date and the token.
    canonical_between: Vec<u8>,
    /// Constant headers that sort after the date and the token.
    canonical_after: Vec<u8>,
    /// The signed headers' names, indexed by whether there is a coding, then a session token.
    signed: [[String; 2]; 2],
}

/// Does not show the bytes: they may contain a proxy's password.
impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("integrity", &self.integrity).finish_non_exhaustive()
    }
}

impl Template {
    /// # Errors
    /// An option that no header can carry.
    pub fn new(
        destination: &Destination<'_>,
        options: &S3Options,
        integrity: Integrity,
    ) -> Result<Template, Unsendable> {
        let mut headers = vec![("content-type", options.content_type.clone())];
        headers.extend(options.if_none_match.then(|| ("if-none-match", "*".to_owned())));
        let bucket_key = options.bucket_key.map(|enabled| enabled.to_string());
        for (name, value) in [
            ("x-amz-acl", &options.acl),
            ("x-amz-expected-bucket-owner", &options.expected_owner),
            ("x-amz-server-side-encryption", &options.sse),
            ("x-amz-server-side-encryption-aws-kms-key-id", &options.kms_key_id),
            ("x-amz-server-side-encryption-bucket-key-enabled", &bucket_key),
            ("x-amz-storage-class", &options.storage_class),
            ("x-amz-tagging", &options.tags),
        ] {
            headers.extend(value.clone().map(|value| (name, value)));
        }
        if let Some((what, _)) = headers.iter().find(|(_, value)| !sendable(value)) {
            return Err(Unsendable { what });
        }
        let mut path = destination.path.as_bytes().to_vec();
        escape_path(destination.prefix, &mut path);
        Ok(Template::lay_out(&path, "", &host_header(destination.server), headers, integrity))
    }

    /// The same request to the complete URL of a redirect. The key is part of it, so [`Put::key`]
    /// is empty. `path` and `query` are escaped as received.
    pub fn redirected(&self, server: &ServerAddress, path: &str, query: Option<&str>) -> Template {
        let path = if path.is_empty() { "/" } else { path };
        let query = query.unwrap_or_default();
        let host = host_header(server);
        Template::lay_out(path.as_bytes(), query, &host, self.headers.clone(), self.integrity)
    }

    /// The same request for a proxy that forwards requests: the target is in absolute form (RFC
    /// 9112, section 3.2.2), and `authorization` identifies the client. Neither is signed, so the
    /// signature stays the same.
    pub fn by_proxy(mut self, server: &ServerAddress, authorization: Option<&str>) -> Template {
        let scheme = if server.https { "https" } else { "http" };
        let base = format!("{scheme}://{}", host_header(server));
        let _ = self.wire_start.splice(self.path_at..self.path_at, base.bytes());
        self.path_at += base.len();
        if let Some(authorization) = authorization {
            let line_end = memchr::memmem::find(&self.wire_middle, b"\r\n");
            let at = line_end.expect("the request line ends there") + 2;
            let header = format!("proxy-authorization: {authorization}\r\n");
            let _ = self.wire_middle.splice(at..at, header.into_bytes());
        }
        self
    }

    fn lay_out(
        path: &[u8],
        query: &str,
        host: &str,
        headers: Vec<(&'static str, String)>,
        integrity: Integrity,
    ) -> Template {
        let mut before = format!("\n{}\n", canonical_query(query));
        let coding_at = before.len();
        let mut after = String::new();
        let mut signed = [String::new(), String::new()];
        let name = |signed: &mut [String; 2], name: &str| {
            for list in signed {
                list.push_str(if list.is_empty() { "" } else { ";" });
                list.push_str(name);
            }
        };
        let before_name = |name: &str| headers.partition_point(|(header, _)| *header < name);
        let (early, late) = headers.split_at(before_name("x-amz-c"));
        let (between, late) = late.split_at(before_name("x-amz-security-token") - early.len());
        for (header, value) in early {
            before.push_str(&format!("{header}:{}\n", canonical_value(value)));
            name(&mut signed, header);
            // `content-type`, `host`, `if-none-match` and `x-amz-acl` sort before what varies.
            if *header == "content-type" {
                before.push_str(&format!("host:{host}\n"));
                name(&mut signed, "host");
            }
        }
        if let Some(checksum) = checksum_header(integrity.checksum) {
            before.push_str(&format!("{checksum}:"));
            name(&mut signed, checksum);
        } else {
            before.push_str("x-amz-content-sha256:");
        }
        name(&mut signed, "x-amz-content-sha256");
        name(&mut signed, "x-amz-date");
        let mut after_date = String::new();
        for (header, value) in between {
            after_date.push_str(&format!("{header}:{}\n", canonical_value(value)));
            name(&mut signed, header);
        }
        signed[1].push_str(";x-amz-security-token");
        for (header, value) in late {
            after.push_str(&format!("{header}:{}\n", canonical_value(value)));
            name(&mut signed, header);
        }
        let middle = wire_middle(query, host, &headers);
        let coded = signed.each_ref().map(|list| format!("content-encoding;{list}"));
        Template {
            integrity,
            headers,
            wire_start: [b"PUT ", path].concat(),
            path_at: b"PUT ".len(),
            wire_middle: middle.into(),
            canonical_before: before.into(),
            coding_at,
            canonical_between: after_date.into(),
            canonical_after: after.into(),
            signed: [signed, coded],
        }
    }

    /// What these requests say about their bodies.
    pub fn integrity(&self) -> Integrity {
        self.integrity
    }

    /// Appends the head of `put`, to be followed by its body, signed for the second `unix_s`.
    ///
    /// # Panics
    /// If `signer` is not current (see [`Signer::is_current`]), or the sums are for another
    /// [`Integrity`].
    pub fn write_head(&self, put: &Put<'_>, unix_s: u64, signer: &mut Signer, out: &mut Vec<u8>) {
        assert_eq!(put.sums.integrity(), self.integrity, "summed as this template wants it");
        let date = signer.date(unix_s);
        let hash = put.sums.signed().map(hex);
        let payload = hash.as_ref().map_or(UNSIGNED_PAYLOAD, |hash| hash);
        let with_token = usize::from(signer.token().is_some());
        let signed = &self.signed[usize::from(put.coding.is_some())][with_token];

        let path_at = out.len() + self.path_at;
        out.extend_from_slice(&self.wire_start);
        escape_path(put.key, out);
        let path = path_at..out.len();
        let mut canonical = std::mem::take(&mut signer.scratch);
        canonical.clear();
        canonical.extend_from_slice(b"PUT\n");
        canonical.extend_from_slice(&out[path]);
        let fields = RequestFields { put, payload, date: &date, signed, token: signer.token() };
        self.finish_canonical(&fields, &mut canonical);
        let signature = signer.sign(&canonical);
        signer.scratch = canonical;

        out.extend_from_slice(&self.wire_middle);
        decimal(put.bytes, out);
        if let Some(coding) = put.coding {
            out.extend_from_slice(b"\r\ncontent-encoding: ");
            out.extend_from_slice(coding.name().as_bytes());
        }
        out.extend_from_slice(b"\r\nx-amz-date: ");
        out.extend_from_slice(&date);
        if let Some(name) = checksum_header(self.integrity.checksum) {
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            base64(put.sums.checksum(), out);
        }
        out.extend_from_slice(b"\r\nx-amz-content-sha256: ");
        out.extend_from_slice(payload);
        if let Some(token) = signer.token() {
            out.extend_from_slice(b"\r\nx-amz-security-token: ");
            out.extend_from_slice(token.as_bytes());
        }
        out.extend_from_slice(b"\r\nauthorization: AWS4-HMAC-SHA256 Credential=");
        out.extend_from_slice(signer.credential());
        out.extend_from_slice(b", SignedHeaders=");
        out.extend_from_slice(signed.as_bytes());
        out.extend_from_slice(b", Signature=");
        out.extend_from_slice(&signature);
        out.extend_from_slice(b"\r\n\r\n");
    }

    /// Appends the canonical request from the end of its path.
    fn finish_canonical(&self, fields: &RequestFields<'_>, canonical: &mut Vec<u8>) {
        let mut before = &self.canonical_before[..];
        if let Some(coding) = fields.put.coding {
            canonical.extend_from_slice(&before[..self.coding_at]);
            canonical.extend_from_slice(b"content-encoding:");
            canonical.extend_from_slice(coding.name().as_bytes());
            canonical.push(b'\n');
            before = &before[self.coding_at..];
        }
        canonical.extend_from_slice(before);
        if checksum_header(self.integrity.checksum).is_some() {
            base64(fields.put.sums.checksum(), canonical);
            canonical.extend_from_slice(b"\nx-amz-content-sha256:");
        }
        canonical.extend_from_slice(fields.payload);
        canonical.extend_from_slice(b"\nx-amz-date:");
        canonical.extend_from_slice(fields.date);
        canonical.push(b'\n');
        canonical.extend_from_slice(&self.canonical_between);
        if let Some(token) = fields.token {
            canonical.extend_from_slice(b"x-amz-security-token:");
            canonical.extend_from_slice(token.as_bytes());
            canonical.push(b'\n');
        }
        canonical.extend_from_slice(&self.canonical_after);
        canonical.push(b'\n');
        canonical.extend_from_slice(fields.signed.as_bytes());
        canonical.push(b'\n');
        canonical.extend_from_slice(fields.payload);
    }
}

/// The rest of the request line, and the constant headers as they are sent.
fn wire_middle(query: &str, host: &str, headers: &[(&'static str, String)]) -> String {
    let mark = if query.is_empty() { "" } else { "?" };
    let mut middle =
        format!("{mark}{query} HTTP/1.1\r\nhost: {host}\r\nuser-agent: {USER_AGENT}\r\n");
    for (header, value) in headers {
        middle.push_str(&format!("{header}: {value}\r\n"));
    }
    middle.push_str("content-length: ");
    middle
}

/// The parts of one request that are not in its template.
struct RequestFields<'a> {
    put: &'a Put<'a>,
    /// The body's hash, or `UNSIGNED-PAYLOAD`.
    payload: &'a [u8],
    date: &'a [u8; 16],
    /// Names of the signed headers.
    signed: &'a str,
    token: Option<&'a str>,
}

fn checksum_header(checksum: Checksum) -> Option<&'static str> {
    match checksum {
        Checksum::Auto | Checksum::None => None,
        Checksum::Crc32c => Some("x-amz-checksum-crc32c"),
        Checksum::Crc64Nvme => Some("x-amz-checksum-crc64nvme"),
        Checksum::Sha256 => Some("x-amz-checksum-sha256"),
    }
}

/// The `host` header; it has a port only if that is not the scheme's default.
fn host_header(server: &ServerAddress) -> String {
    let ServerAddress { https, host, port } = server;
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    if *port == if *https { 443 } else { 80 } { host } else { format!("{host}:{port}") }
}

/// A header's value as it is signed: trimmed, with single spaces.
fn canonical_value(value: &str) -> String {
    value.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Names and values decoded, escaped, sorted.
fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    pairs.sort();
    let mut text = Vec::new();
    for (name, value) in &pairs {
        if !text.is_empty() {
            text.push(b'&');
        }
        escape_query(name, &mut text);
        text.push(b'=');
        escape_query(value, &mut text);
    }
    String::from_utf8(text).expect("escapes are ASCII")
}

#[cfg(test)]
mod tests;
