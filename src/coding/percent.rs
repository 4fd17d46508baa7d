//! Escapes text in URLs as S3 signs it. Each function appends to a buffer that its caller reuses.

const HEX_UPPER: &[u8; 16] = b"0123456789ABCDEF";

/// The characters that S3's canonical path keeps unescaped: RFC 3986's unreserved characters and
/// `/`.
const KEPT: [bool; 256] = {
    let mut kept = [false; 256];
    let mut b = 0;
    while b < 256 {
        let byte = b as u8;
        kept[b] = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/');
        b += 1;
    }
    kept
};

/// Escapes a key as S3 signs it: everything but `A-Z a-z 0-9 - . _ ~ /` becomes `%XX`, once.
pub fn escape_path(key: &str, out: &mut Vec<u8>) {
    // Most keys need no escape, which shows sixteen bytes at a time.
    let is_kept = |&byte: &u8| {
        let is_letter = (byte | 0x20).wrapping_sub(b'a') < 26;
        // `-`, `.`, `/` and the digits follow each other.
        is_letter || byte.wrapping_sub(b'-') <= b'9' - b'-' || byte == b'_' || byte == b'~'
    };
    if key.as_bytes().iter().fold(true, |all, byte| all & is_kept(byte)) {
        out.extend_from_slice(key.as_bytes());
        return;
    }
    escape(key, |byte| KEPT[usize::from(byte)], out);
}

/// The same for names and values of a query, where `/` is escaped too.
pub fn escape_query(text: &str, out: &mut Vec<u8>) {
    escape(text, |byte| KEPT[usize::from(byte)] && byte != b'/', out);
}

fn escape(text: &str, kept: impl Fn(u8) -> bool, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let mut run = 0;
    for (i, &byte) in bytes.iter().enumerate() {
        if !kept(byte) {
            out.extend_from_slice(&bytes[run..i]);
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            out.extend_from_slice(&[b'%', HEX_UPPER[high], HEX_UPPER[low]]);
            run = i + 1;
        }
    }
    out.extend_from_slice(&bytes[run..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_the_unreserved_and_slashes_are_kept() {
        for byte in 0..=127u8 {
            let c = char::from(byte);
            let kept = c.is_ascii_alphanumeric() || "-._~/".contains(c);
            let expected = if kept { c.to_string() } else { format!("%{byte:02X}") };
            assert_eq!(text(|out| escape_path(&c.to_string(), out)), expected);
        }
        let all_kept = "azAZ09-._~/";
        assert_eq!(text(|out| escape_path(all_kept, out)), all_kept);
        assert_eq!(text(|out| escape_path("a/ü🔑%2F+~", out)), "a/%C3%BC%F0%9F%94%91%252F%2B~");
        assert_eq!(text(|out| escape_query("a/b c", out)), "a%2Fb%20c");
    }
}
