//! Recognizes the usual response to a PUT, a success without a body, in a quarter of the time that a
//! parser takes: a store sends ten headers, of which one matters.
//!
//! Whatever is not clear at first sight is left to the parser, which decides what it means.

/// Longest response that is looked at, and most headers: the parser's limits are higher.
const BYTES_MAX: usize = 4 << 10;
const HEADERS_MAX: usize = 64;

/// The status of `bytes` if they are one whole HTTP/1.1 success without a body, whose connection
/// can take another request. `None` says nothing.
pub(super) fn plain_success(bytes: &[u8]) -> Option<u16> {
    let head = bytes.strip_prefix(b"HTTP/1.1 ")?.strip_suffix(b"\r\n\r\n")?;
    let (status, head) = head.split_at_checked(3)?;
    let [b'2', tens @ b'0'..=b'9', ones @ b'0'..=b'9'] = *status else { return None };
    if bytes.len() > BYTES_MAX || !head.starts_with(b" ") {
        return None;
    }
    let line_feeds = line_feeds_in_text(head)?;
    let (_reason, mut rest) = first_line(head)?;
    let (mut lines, mut has_length) = (0, false);
    while let Some(next) = rest {
        lines += 1;
        let (line, others) = first_line(next)?;
        rest = others;
        let name_bytes = line.iter().take_while(|byte| TOKEN[usize::from(**byte)]).count();
        let (name, value) = line.split_at(name_bytes);
        if name.is_empty() || !value.starts_with(b":") {
            return None;
        }
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        match name.len() {
            10 if is("connection") => return None,
            17 if is("transfer-encoding") => return None,
            14 if is("content-length") => {
                if has_length || value != b": 0" {
                    return None;
                }
                has_length = true;
            }
            _ => {}
        }
    }
    // No line has a line feed in itself.
    if lines != line_feeds || lines > HEADERS_MAX || !has_length {
        return None;
    }
    Some(200 + u16::from(tens - b'0') * 10 + u16::from(ones - b'0'))
}

/// The number of line feeds, if the rest is printable ASCII and carriage returns.
fn line_feeds_in_text(bytes: &[u8]) -> Option<usize> {
    // Counts of a chunk fit into a byte, so that the compiler handles many bytes at a time.
    let (mut others, mut line_feeds) = (0, 0);
    for chunk in bytes.chunks(usize::from(u8::MAX)) {
        let mut in_chunk = (0_u8, 0_u8);
        for &byte in chunk {
            let is_text = byte.wrapping_sub(b' ') < 95 || byte == b'\r' || byte == b'\n';
            in_chunk.0 += u8::from(!is_text);
            in_chunk.1 += u8::from(byte == b'\n');
        }
        others += usize::from(in_chunk.0);
        line_feeds += usize::from(in_chunk.1);
    }
    (others == 0).then_some(line_feeds)
}

/// The bytes up to the first carriage return, and those behind its line end; `None` if no line feed
/// follows it. The end of the last line was removed.
fn first_line(bytes: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let Some(end) = memchr::memchr(b'\r', bytes) else { return Some((bytes, None)) };
    let (line, rest) = bytes.split_at(end);
    Some((line, Some(rest.strip_prefix(b"\r\n")?)))
}

/// What header names are made of (RFC 9110, section 5.6.2).
const TOKEN: [bool; 256] = {
    let mut token = [false; 256];
    let mut b = 0;
    while b < 256 {
        let byte = b as u8;
        token[b] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        b += 1;
    }
    token
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_is_recognized_and_what_is_unclear_is_not() {
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Some(200)),
            ("HTTP/1.1 204 \r\nServer: x\r\nContent-Length: 0\r\ndate: y\r\n\r\n", Some(204)),
            ("HTTP/1.1 200 OK\r\netag:\r\ncontent-length: 0\r\n\r\n", Some(200)),
            ("HTTP/1.1 200 OK\r\n\r\n", None),
            ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", None),
            ("HTTP/1.1 301 OK\r\ncontent-length: 0\r\n\r\n", None),
            ("HTTP/1.1 200OK\r\ncontent-length: 0\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 00\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-length: 0\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nTransfer-Encoding: x\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx: 1\r\n y\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx : 1\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\nx: 1\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx: \u{7f}\r\n\r\n", None),
        ] {
            assert_eq!(plain_success(text.as_bytes()), expected, "{text:?}");
        }
    }
}
