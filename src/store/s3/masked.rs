//! Texts that come from elsewhere, such as a store's error or a wrong URL, without secrets. They
//! are shown in logs, pages and dead letters.

use std::borrow::Cow;

/// What stands for a secret.
const MASK: &str = "***";
/// A shorter secret is not looked for: it may be a word of any text. Those of AWS have 16 and more.
const SECRET_BYTES_MIN: usize = 8;
/// From which length on a word of letters and digits may be a key.
const KEY_BYTES_MIN: usize = 16;

/// `text` with [`MASK`] in the place of each of `secrets`.
pub(super) fn mask<'a>(text: &'a str, secrets: &[&str]) -> Cow<'a, str> {
    let mut masked = Cow::Borrowed(text);
    for secret in secrets.iter().filter(|secret| secret.len() >= SECRET_BYTES_MIN) {
        if masked.contains(secret) {
            masked = Cow::Owned(masked.replace(secret, MASK));
        }
    }
    masked
}

/// `text` without anything that may be a key or a token: what a credential service says may quote
/// some that this process has never seen. Words, addresses and ARNs stay.
pub(super) fn mask_keys(text: &str) -> String {
    let is_of_key = |c: char| c.is_ascii_alphanumeric() || "+/=_-~".contains(c);
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_of_key) {
        let end = rest[start..].find(|c| !is_of_key(c)).map_or(rest.len(), |end| start + end);
        let word = &rest[start..end];
        masked.push_str(&rest[..start]);
        let has = |is: fn(&u8) -> bool| word.as_bytes().iter().any(is);
        let may_be_key = word.len() >= KEY_BYTES_MIN
            && has(u8::is_ascii_alphabetic)
            && (has(u8::is_ascii_digit) || word.starts_with("AKIA") || word.starts_with("ASIA"));
        masked.push_str(if may_be_key { MASK } else { word });
        rest = &rest[end..];
    }
    masked + rest
}

/// The end of an access key, by which an operator tells it from others.
pub(super) fn key_hint(key: &str) -> String {
    match key.char_indices().rev().nth(3) {
        Some((at, _)) if at >= KEY_BYTES_MIN / 2 => format!("…{}", &key[at..]),
        _ => "…".to_owned(),
    }
}

/// What was given as a URL, without what may be a secret in it: user and password, the query, and
/// what is no port.
pub(super) fn shown_url(text: &str) -> String {
    let (before, rest) = match text.rsplit_once('@') {
        Some((_, rest)) => ("…@", rest),
        None => ("", text),
    };
    let (scheme, rest) = match rest.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), rest),
    };
    let (rest, query) = match rest.find(['?', '#']) {
        Some(at) => (&rest[..at], format!("{}…", &rest[at..=at])),
        None => (rest, String::new()),
    };
    let host_end = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(host_end);
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b']');
    let shown = match host.rsplit_once(':') {
        Some((host, port)) if !is_port(port) && !port.contains(']') => format!("{host}:…"),
        _ => format!("{host}{path}"),
    };
    format!("{before}{scheme}{shown}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_secrets_are_masked_wherever_they_stand() {
        let secrets = ["AKIDXKEY", "token+/=", "secret", ""];
        for (text, expected) in [
            ("no such key", "no such key"),
            ("key AKIDXKEY, AKIDXKEYAKIDXKEY", "key ***, ******"),
            ("token+/=", "***"),
            ("the secret is wrong", "the secret is wrong"),
            ("", ""),
        ] {
            assert_eq!(mask(text, &secrets), expected);
        }
    }

    #[test]
    fn what_looks_like_a_key_is_masked_and_sentences_are_not() {
        for text in [
            "",
            "Not authorized to perform sts:AssumeRoleWithWebIdentity",
            "User: arn:aws:sts::123456789012:assumed-role/r/s is not authorized",
            "the instance metadata service at http://169.254.169.254 did not answer",
            "OpenIDConnect provider's HTTPS certificate doesn't match configured thumbprint",
            "Non-success status from HTTP credential provider: StatusCode(500)",
            "expiration 2099-01-01T00:00:00Z… is ünicode",
        ] {
            // A time in one piece is no word of the language either.
            let text = text.replace("2099-01-01T00", "soon");
            assert_eq!(mask_keys(&text), text);
        }
        for (text, expected) in [
            ("key AKIAIOSFODNNEXAMPLE is unknown", "key *** is unknown"),
            ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "***"),
            ("(eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL3N0cyJ9.x)", "(***.***.x)"),
            ("a1b2c3d4e5f60718", "***"),
        ] {
            assert_eq!(mask_keys(text), expected);
        }
    }

    #[test]
    fn of_an_access_key_the_end_is_shown() {
        for (key, hint) in [
            ("AKIAIOSFODNN7EXAMPLE", "…MPLE"),
            ("123456789012", "…9012"),
            ("12345678901", "…"),
            ("AKID", "…"),
            ("", "…"),
        ] {
            assert_eq!(key_hint(key), hint);
        }
    }

    #[test]
    fn of_a_url_neither_password_nor_query_is_shown() {
        for (text, expected) in [
            ("http://h:80/x", "http://h:80/x"),
            ("127.0.0.1:80/x", "127.0.0.1:80/x"),
            ("http://[::1]/x", "http://[::1]/x"),
            ("http://[::1]:80", "http://[::1]:80"),
            ("http://me:hush@h", "…@h"),
            ("me:hu@sh@h:80/x", "…@h:80/x"),
            ("http://me:hush", "http://me:…"),
            ("http://h/x?sig=hush", "http://h/x?…"),
            ("http://h:1#hush", "http://h:1#…"),
            ("maybe", "maybe"),
        ] {
            assert_eq!(shown_url(text), expected);
        }
    }
}
