//! What every request head must keep to, whatever its path and method: one valid `host`, and a body
//! framed in exactly one way. hyper is more lenient; what it accepts beyond this is refused here.
//!
//! A head that breaks these rules is answered before anything else is looked at, and its connection
//! is closed: a proxy on the way may have read another request out of the same bytes.

use std::net::Ipv6Addr;

use http::header::{HOST, HeaderValue, TRANSFER_ENCODING};
use http::{Request, StatusCode, Version};

/// How the body of a request is delimited, as far as its headers do not say.
#[derive(Clone, Copy, Debug)]
pub struct BodyFraming {
    /// hyper decodes the body as chunks.
    pub chunked: bool,
    /// The head has a `content-length` line. hyper removes it from a chunked request's headers.
    pub content_length: bool,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("the request has no host header, which HTTP/1.1 requires; send one host: NAME[:PORT]")]
    NoHost,
    #[error("the request has more than one host header; send exactly one")]
    RepeatedHost,
    #[error("the host header is not a host with an optional port; send host: NAME[:PORT]")]
    MalformedHost,
    #[error("the request has neither :authority nor a host header; send one of them")]
    NoAuthority,
    #[error("the host header differs from :authority; send only :authority")]
    OtherHost,
    #[error("the host header is empty although the request target has a host; send the same host")]
    EmptyHost,
    #[error(
        "transfer-encoding has a coding other than chunked; send transfer-encoding: chunked, and \
         compress with content-encoding"
    )]
    UnknownCoding,
    #[error("transfer-encoding must be one header field with the single value chunked")]
    BadTransferEncoding,
    #[error("the request has both transfer-encoding and content-length; send only one of them")]
    TwoLengths,
}

impl HeadError {
    /// The status of the answer. RFC 9112 section 6.1 wants 501 for codings that are not
    /// understood.
    pub fn status(self) -> StatusCode {
        match self {
            HeadError::UnknownCoding => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Checks the rules that hold for every request.
///
/// # Errors
/// The first rule that the head breaks.
pub fn check<B>(head: &Request<B>, framing: BodyFraming) -> Result<(), HeadError> {
    check_host(head)?;
    // hyper decodes chunks exactly if there is a `transfer-encoding`.
    if framing.chunked {
        check_transfer_encoding(head)?;
        if framing.content_length {
            return Err(HeadError::TwoLengths);
        }
    }
    Ok(())
}

/// RFC 9112 section 3.2: 400 for an HTTP/1.1 request without `host`, and for any request with
/// several or an invalid one. An empty value is what a client sends whose target URI has no
/// authority, so it is refused only beside a target that has one. A `host` that differs from such a
/// target is ignored (section 3.2.2).
fn check_host<B>(head: &Request<B>) -> Result<(), HeadError> {
    if head.version() == Version::HTTP_2 {
        return check_authority(head);
    }
    let headers = head.headers();
    let Some(host) = headers.get(HOST) else {
        let required = head.version() != Version::HTTP_10;
        return if required { Err(HeadError::NoHost) } else { Ok(()) };
    };
    // Usually no field at all is repeated, which is cheaper to see.
    let any_repeated = headers.len() != headers.keys_len();
    if any_repeated && headers.get_all(HOST).iter().count() > 1 {
        return Err(HeadError::RepeatedHost);
    }
    match host.as_bytes() {
        [] if head.uri().authority().is_some() => Err(HeadError::EmptyHost),
        [] => Ok(()),
        host if is_host(host) => Ok(()),
        _ => Err(HeadError::MalformedHost),
    }
}

/// RFC 9113 section 8.3.1: `:authority` takes the place of `host`, which may come in its stead or say
/// the same. No user information is part of it.
fn check_authority<B>(head: &Request<B>) -> Result<(), HeadError> {
    let mut hosts = head.headers().get_all(HOST).iter().map(HeaderValue::as_bytes);
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(HeadError::RepeatedHost);
    }
    let authority = head.uri().authority().map(|authority| authority.as_str().as_bytes());
    match (authority, host) {
        (None, None) => Err(HeadError::NoAuthority),
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            Err(HeadError::OtherHost)
        }
        (Some(one), _) | (None, Some(one)) if is_host(one) => Ok(()),
        _ => Err(HeadError::MalformedHost),
    }
}

/// Whether `host` may have this value beside a target without an authority.
pub(super) fn is_host_value(value: &[u8]) -> bool {
    value.is_empty() || is_host(value)
}

/// `uri-host [ ":" port ]` of RFC 9110 section 7.2, with the parts of RFC 3986 section 3.2. The
/// host must not be empty (RFC 9110 section 4.2.1).
fn is_host(value: &[u8]) -> bool {
    if let Some(literal) = value.strip_prefix(b"[") {
        let Some(end) = memchr::memchr(b']', literal) else { return false };
        return is_ip_literal(&literal[..end]) && is_port(&literal[end + 1..]);
    }
    let mut at = 0;
    loop {
        let rest = &value[at..];
        at += rest.iter().position(|byte| !IN_NAME[usize::from(*byte)]).unwrap_or(rest.len());
        match &value[at..] {
            [b'%', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => at += 3,
            rest => return at > 0 && is_port(rest),
        }
    }
}

/// Nothing, or a colon and any number of digits, as RFC 3986 has it.
fn is_port(rest: &[u8]) -> bool {
    match rest {
        [] => true,
        [b':', port @ ..] => port.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// What stands between the brackets: an IPv6 address without a zone, or an address of a future
/// version.
fn is_ip_literal(literal: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(literal) else { return false };
    match text.strip_prefix(['v', 'V']).and_then(|future| future.split_once('.')) {
        Some((version, address)) => {
            let is_address = |byte: u8| IN_NAME[usize::from(byte)] || byte == b':';
            !version.is_empty()
                && version.bytes().all(|byte| byte.is_ascii_hexdigit())
                && !address.is_empty()
                && address.bytes().all(is_address)
        }
        None => text.parse::<Ipv6Addr>().is_ok(),
    }
}

/// The `unreserved` characters and `sub-delims` of RFC 3986: what a registered name or an IPv4
/// address may hold beside percent-encoded bytes.
const IN_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._~!$&'()*+,;=";
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

/// One field, and its value exactly `chunked`. hyper has refused those whose last coding is
/// another.
fn check_transfer_encoding<B>(head: &Request<B>) -> Result<(), HeadError> {
    let mut values = head.headers().get_all(TRANSFER_ENCODING).iter();
    let value = values.next().map_or(&b""[..], |value| value.as_bytes());
    if values.next().is_some() {
        return Err(HeadError::BadTransferEncoding);
    }
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    // A sender must not chunk twice, and `identity` is no coding (RFC 9112 section 7).
    let mut codings = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let last = codings.next_back();
    let is_wrong = |coding: &[u8]| {
        coding.is_empty()
            || coding.eq_ignore_ascii_case(b"chunked")
            || coding.eq_ignore_ascii_case(b"identity")
    };
    match last {
        Some(last) if last.eq_ignore_ascii_case(b"chunked") && !codings.any(is_wrong) => {
            Err(HeadError::UnknownCoding)
        }
        _ => Err(HeadError::BadTransferEncoding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Request};

    /// The check of a head with `fields` (a name and a value each).
    fn checked(
        version: Version,
        target: &str,
        fields: &[(&str, &[u8])],
        content_length: bool,
    ) -> Result<(), HeadError> {
        let mut request = Request::builder().version(version).uri(target);
        for (name, value) in fields {
            request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
        }
        let chunked = fields.iter().any(|(name, _)| *name == "transfer-encoding");
        check(&request.body(()).unwrap(), BodyFraming { chunked, content_length })
    }

    fn of_host(value: &[u8]) -> Result<(), HeadError> {
        checked(Version::HTTP_11, "/payloads", &[("host", value)], false)
    }

    #[test]
    fn hosts_that_rfc_3986_has() {
        for host in [
            &b""[..],
            b"x",
            b"ingest.example",
            b"ingest.example:8080",
            b"ingest.example.:80",
            b"under_score",
            b"x:",
            b"x:0000000080",
            b"127.0.0.1:8080",
            b"[::1]",
            b"[::1]:8080",
            b"[2001:DB8::7]:",
            b"[::ffff:1.2.3.4]",
            b"[v1.fe80::a+en1]",
            b"%61bc",
            b"a%2Dc%2d",
            b"a%2d:80",
            b"%41%42",
            b"~!$&'()*+,;=-._",
        ] {
            assert_eq!(of_host(host), Ok(()), "{}", host.escape_ascii());
        }
    }

    #[test]
    fn hosts_that_are_none() {
        for host in [
            &b":80"[..],
            b":",
            b"a b",
            b"a\tb",
            b"a, b",
            b"http://x",
            b"x/",
            b"x/payloads",
            b"user@x",
            b"x?y",
            b"x#y",
            b"x:80:80",
            b"x:8o",
            b"x: 80",
            b"x:-1",
            b"%",
            b"a%2",
            b"a%zz",
            b"%2d@",
            b"%2d[::1]",
            b"::1",
            b"[::1",
            b"[]",
            b"[::1]x",
            b"[::1]:x",
            b"[::1%25eth0]",
            b"[1.2.3.4]",
            b"[x]",
            b"[v1.]",
            b"[v.x]",
            b"[vg.x]",
            b"a[::1]",
            b"\\x",
            b"x\"",
            b"<x>",
            b"\xc3\xa4",
            b"x\xff",
        ] {
            assert_eq!(of_host(host), Err(HeadError::MalformedHost), "{}", host.escape_ascii());
        }
    }

    #[test]
    fn one_host_and_only_old_clients_need_none() {
        let (new, old) = (Version::HTTP_11, Version::HTTP_10);
        let none: &[(&str, &[u8])] = &[];
        let two: &[(&str, &[u8])] = &[("host", b"x"), ("host", b"x")];
        let bad: &[(&str, &[u8])] = &[("host", b"a b")];
        for target in ["/payloads", "http://x:80/payloads", "*"] {
            assert_eq!(checked(new, target, none, false), Err(HeadError::NoHost), "{target}");
            assert_eq!(checked(old, target, none, false), Ok(()), "{target}");
            for version in [new, old] {
                assert_eq!(checked(version, target, two, false), Err(HeadError::RepeatedHost));
                assert_eq!(checked(version, target, bad, false), Err(HeadError::MalformedHost));
            }
        }
    }

    #[test]
    fn an_empty_host_only_beside_a_target_without_one() {
        let of = |target| checked(Version::HTTP_11, target, &[("host", b"")], false);
        assert_eq!((of("/payloads"), of("*")), (Ok(()), Ok(())));
        assert_eq!(of("http://x/payloads"), Err(HeadError::EmptyHost));
        let other = &[("host", &b"other"[..])];
        assert_eq!(checked(Version::HTTP_11, "http://x/payloads", other, false), Ok(()));
    }

    #[test]
    fn one_transfer_encoding_and_no_length_beside_it() {
        let of = |values: &[&'static [u8]], content_length| {
            let mut fields = vec![("host", &b"x"[..])];
            fields.extend(values.iter().map(|value| ("transfer-encoding", *value)));
            checked(Version::HTTP_11, "/payloads", &fields, content_length)
        };
        assert_eq!(of(&[b"chunked"], false), Ok(()));
        assert_eq!(of(&[b"ChunKed"], false), Ok(()));
        assert_eq!(of(&[], true), Ok(()));
        assert_eq!(of(&[b"chunked"], true), Err(HeadError::TwoLengths));
        for coding in [&b"gzip, chunked"[..], b"gzip,deflate , Chunked", b"x;q=\"1\",chunked"] {
            assert_eq!(of(&[coding], false), Err(HeadError::UnknownCoding));
        }
        for codings in [
            &[&b"chunked, chunked"[..]][..],
            &[b"chunked", b"chunked"],
            &[b"gzip", b"chunked"],
            &[b"identity, chunked"],
            &[b"gzip, chunked, chunked"],
            &[b", chunked"],
            &[b"chunked,"],
            &[b"xchunked"],
            &[b"gzip"],
            &[b""],
        ] {
            assert_eq!(of(codings, false), Err(HeadError::BadTransferEncoding), "{codings:?}");
        }
        assert_eq!(HeadError::UnknownCoding.status(), 501);
        assert_eq!(HeadError::BadTransferEncoding.status(), 400);
    }
}
