//! A tunnel through an HTTP proxy: `CONNECT` (RFC 9110, section 9.3.6) on a connection to it.

use futures_lite::io::{AsyncReadExt, AsyncWriteExt};

use super::dial::{ConnectionError, ServerAddress};
use crate::net;
use crate::store::s3::proxies::Proxy;

/// Longest head of a proxy's response, bytes.
const ANSWER_BYTES_MAX: usize = 16 << 10;
/// Header fields in it.
const FIELDS_MAX: usize = 64;
/// Bytes of a response after which it is clear that it is not HTTP.
const STATUS_BYTES: usize = 16;
/// Longest reason phrase shown, characters.
const REASON_CHARS_MAX: usize = 80;

/// Makes `proxy`, at the other end of `stream`, connect to `server`; what is sent afterwards goes
/// there.
///
/// # Errors
/// The proxy refuses, closes, or does not answer in HTTP.
pub(super) async fn open(
    stream: &mut net::Stream,
    proxy: &Proxy,
    server: &ServerAddress,
) -> Result<(), ConnectionError> {
    let broken = |why: &std::io::Error| ConnectionError::Broken {
        host: proxy.host.clone(),
        why: why.to_string(),
    };
    stream.write_all(&request(proxy, server)).await.map_err(|e| broken(&e))?;
    let mut answer = Vec::new();
    // One byte at a time, from a buffer: the bytes behind the head come from the store.
    loop {
        let mut byte = [0];
        if stream.read(&mut byte).await.map_err(|e| broken(&e))? == 0 {
            let closed = std::io::Error::other("closed by the proxy before it answered CONNECT");
            return Err(broken(&closed));
        }
        answer.push(byte[0]);
        if is_worth_parsing(&answer)
            && let Some(verdict) = verdict(&answer, proxy, server)
        {
            return verdict;
        }
    }
}

/// Each parse starts at the beginning, so there are few: at the first bytes, at line ends (a head
/// has a limited number), and at the limit.
fn is_worth_parsing(answer: &[u8]) -> bool {
    answer.len() <= STATUS_BYTES || answer.len() >= ANSWER_BYTES_MAX || answer.ends_with(b"\n")
}

fn request(proxy: &Proxy, server: &ServerAddress) -> Vec<u8> {
    let ServerAddress { host, port, .. } = server;
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n");
    if let Some(authorization) = proxy.authorization() {
        request.push_str(&format!("proxy-authorization: {authorization}\r\n"));
    }
    request.push_str("\r\n");
    request.into_bytes()
}

/// The proxy's response; `None` while it is incomplete.
fn verdict(
    answer: &[u8],
    proxy: &Proxy,
    server: &ServerAddress,
) -> Option<Result<(), ConnectionError>> {
    let bad = |why: String| {
        Some(Err(ConnectionError::BadAnswer {
            host: proxy.host.clone(),
            why: format!("to CONNECT: {why}"),
        }))
    };
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(answer) {
        Err(error) => bad(format!("it is not HTTP ({error})")),
        Ok(httparse::Status::Partial) if answer.len() >= ANSWER_BYTES_MAX => {
            bad(format!("its head is over {ANSWER_BYTES_MAX} bytes"))
        }
        Ok(httparse::Status::Partial)
            if memchr::memchr_iter(b'\n', answer).count() > FIELDS_MAX =>
        {
            bad("it has too many lines".into())
        }
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => {
            let status = response.code.unwrap_or_default();
            if (200..300).contains(&status) {
                return Some(Ok(()));
            }
            let reason = proxy.masked(response.reason.unwrap_or_default());
            Some(Err(ConnectionError::TunnelRefused {
                host: server.host.clone(),
                port: server.port,
                status,
                reason: reason.chars().take(REASON_CHARS_MAX).collect(),
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::s3::proxies::Proxies;

    fn proxy(url: &str) -> Proxy {
        let proxies = Proxies::read(&|name| (name == "HTTPS_PROXY").then(|| url.into())).unwrap();
        proxies.of(&server("s3.corp")).unwrap().clone()
    }

    fn server(host: &str) -> ServerAddress {
        ServerAddress { https: true, host: host.into(), port: 443 }
    }

    #[test]
    fn the_request_names_the_origin_and_carries_the_credentials() {
        let text =
            |url: &str, host: &str| String::from_utf8(request(&proxy(url), &server(host))).unwrap();
        assert_eq!(
            text("http://p:1", "s3.corp"),
            "CONNECT s3.corp:443 HTTP/1.1\r\nhost: s3.corp:443\r\n\r\n"
        );
        assert_eq!(
            text("http://u:p@p:1", "fd12::1"),
            "CONNECT [fd12::1]:443 HTTP/1.1\r\nhost: [fd12::1]:443\r\n\
             proxy-authorization: Basic dTpw\r\n\r\n"
        );
    }

    #[test]
    fn answers_are_read_to_the_end_of_their_heads() {
        let verdict = |answer: &str| {
            let verdict = verdict(answer.as_bytes(), &proxy("http://p:1"), &server("s3.corp"))?;
            Some(verdict.map_err(|error| (error.may_pass(), error.to_string())))
        };
        let lines = "\r\n".repeat(FIELDS_MAX + 1);
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(ANSWER_BYTES_MAX));
        for (answer, expected) in [
            ("HTTP/1.1 200 Connection established\r\n", None),
            ("HTTP/1.1 200 Connection established\r\n\r\n", Some(Ok(()))),
            ("HTTP/1.0 200\r\nvia: x\r\n\r\n", Some(Ok(()))),
            (
                "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
                Some(Err((false, "407 Proxy Authentication Required"))),
            ),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", Some(Err((false, "403 Forbidden")))),
            ("HTTP/1.1 502 Bad Gateway\r\n\r\n", Some(Err((true, "502 Bad Gateway")))),
            ("HTTP/1.1 101 x\r\n\r\n", Some(Err((false, "101")))),
            ("SSH-2.0-OpenSSH_9.2\r\n", Some(Err((false, "it is not HTTP")))),
            ("\x15\x03\x01\0\x02\x02\x16", Some(Err((false, "it is not HTTP")))),
            (&lines, Some(Err((false, "too many lines")))),
            (&long, Some(Err((false, "its head is over")))),
        ] {
            match (verdict(answer), expected) {
                (Some(Err((may_pass, text))), Some(Err((expected, part)))) => {
                    assert_eq!(may_pass, expected, "{answer:.40}");
                    assert!(text.contains(part), "{text}");
                }
                (got, expected) => {
                    let expected = expected.map(|e| e.map_err(|(p, t)| (p, t.to_owned())));
                    assert_eq!(got, expected, "{answer:.40}");
                }
            }
        }
    }
}
