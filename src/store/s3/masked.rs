//! Texts that come from elsewhere, such as a store's error or a wrong URL, without secrets. They
//! are shown in logs, pages and dead letters.

use std::borrow::Cow;

use crate::config::is_variable;

/// What stands for a secret.
const MASK: &str = "***";
/// A shorter secret is not looked for: it may be a word of any text. Those of AWS have 16 and more.
const SECRET_BYTES_MIN: usize = 8;
/// From which length on a word of letters and digits may be a key.
const KEY_BYTES_MIN: usize = 16;
/// Length of a secret access key of AWS, which may begin with a slash.
const SECRET_KEY_BYTES: usize = 40;

/// `text` with [`MASK`] in the place of each of `secrets`, also where they are escaped as in JSON,
/// XML or a URL, whole or in part.
pub(super) fn mask<'a>(text: &'a str, secrets: &[&str]) -> Cow<'a, str> {
    let mut masked = Cow::Borrowed(text);
    for secret in secrets.iter().filter(|secret| secret.len() >= SECRET_BYTES_MIN) {
        if let Some(without) = without(masked.as_bytes(), secret.as_bytes()) {
            masked = Cow::Owned(String::from_utf8_lossy(&without).into_owned());
        }
    }
    masked
}

/// `text` with [`MASK`] wherever it has `secret`, if it does.
fn without(text: &[u8], secret: &[u8]) -> Option<Vec<u8>> {
    let mut masked = Vec::new();
    let (mut kept, mut at) = (0, 0);
    while at < text.len() {
        match length_of(&text[at..], secret) {
            None => at += 1,
            Some(length) => {
                masked.extend_from_slice(&text[kept..at]);
                masked.extend_from_slice(MASK.as_bytes());
                at += length;
                kept = at;
            }
        }
    }
    masked.extend_from_slice(&text[kept..]);
    (kept > 0).then_some(masked)
}

/// How many bytes `secret` takes where `text` begins with it.
fn length_of(text: &[u8], secret: &[u8]) -> Option<usize> {
    if text.starts_with(secret) {
        return Some(secret.len());
    }
    let byte = |at: usize, byte: &u8| Some(at + width_of(&text[at..], *byte)?);
    secret.iter().try_fold(0, byte)
}

/// How many bytes `byte` takes where `text` begins with it: as it is, or as others write it.
fn width_of(text: &[u8], byte: u8) -> Option<usize> {
    let is = |digits: &[u8]| {
        let digits = str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'));
        digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) == Some(byte)
    };
    match text {
        // First what may also be a byte of the secret by itself.
        [b'%', b'2', b'5', high, low, ..] if is(&[*high, *low]) => Some(5),
        [b'%', high, low, ..] if is(&[*high, *low]) => Some(3),
        [b'\\', b'u', b'0', b'0', high, low, ..] if is(&[*high, *low]) => Some(6),
        [b'\\', escaped, ..] if *escaped == byte => Some(2),
        [b'&', b'#', b'x' | b'X', high, low, b';', ..] if is(&[*high, *low]) => Some(6),
        [b'&', b'#', tens, ones, b';', ..] if [*tens, *ones] == *byte.to_string().as_bytes() => {
            Some(5)
        }
        // Taken for a form of a web page, where a plus is a blank.
        [b' ', ..] if byte == b'+' => Some(1),
        [first, ..] if *first == byte => Some(1),
        _ => None,
    }
}

/// `text` without anything that may be a key or a token: what a credential service says may quote
/// some that this process has never seen. Not hidden are words of the language, ARNs, paths, and
/// what consists of short parts in one case, as UUIDs and most names do.
pub(super) fn mask_keys(text: &str) -> String {
    // Also escaped, as in JSON or a URL.
    let is_of_key = |c: char| c.is_ascii_alphanumeric() || "+/_-~\\%".contains(c);
    let is_between = |c: char| c.is_whitespace() || "\"'`()[]{}<>,;".contains(c);
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_of_key) {
        masked.push_str(&rest[..start]);
        let begins = masked.chars().next_back().is_none_or(is_between);
        rest = &rest[start..];
        let end_of = |is_end: &dyn Fn(char) -> bool| rest.find(is_end).unwrap_or(rest.len());
        // Of a URL only the path: its query may hold keys.
        let whole = &rest[..end_of(&|c| is_between(c) || "?&=".contains(c))];
        let is_name = whole.starts_with("arn:") || whole.starts_with('/') && !may_be_secret(whole);
        let (word, is_shown) = match begins && is_name {
            true => (whole, true),
            false => {
                let word = &rest[..end_of(&|c| !is_of_key(c))];
                (word, !may_be_key(word))
            }
        };
        masked.push_str(if is_shown { word } else { MASK });
        rest = &rest[word.len()..];
    }
    masked + rest
}

/// Whether what begins like a path may be a secret access key.
fn may_be_secret(word: &str) -> bool {
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || "+/".contains(c);
    // It may end a sentence.
    let word = word.trim_end_matches(|c| !is_base64(c));
    word.len() == SECRET_KEY_BYTES && word.chars().all(is_base64) && is_mixed(word)
}

/// Has letters of both cases.
fn is_mixed(word: &str) -> bool {
    let has = |is: fn(&u8) -> bool| word.as_bytes().iter().any(is);
    has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase)
}

fn may_be_key(word: &str) -> bool {
    let has = |is: fn(&u8) -> bool| word.as_bytes().iter().any(is);
    let is_long = |part: &str| part.len() >= KEY_BYTES_MIN;
    if !is_long(word) || !has(u8::is_ascii_alphabetic) {
        return false;
    }
    match is_mixed(word) {
        true => has(u8::is_ascii_digit) || word.contains(['+', '/']),
        false => word.split(['-', '_', '/', '\\', '%']).any(|part| {
            let is_access_key = part.starts_with("AKIA") || part.starts_with("ASIA");
            is_long(part) && (is_access_key || part.bytes().any(|byte| byte.is_ascii_digit()))
        }),
    }
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
    // The colons of an address in brackets are its own.
    let name_end = if host.starts_with('[') { host.find(']').unwrap_or(0) } else { 0 };
    let (name, port) = match host[name_end..].find(':') {
        Some(at) => host.split_at(name_end + at),
        None => (host, ""),
    };
    let is_port = port.bytes().skip(1).all(|byte| byte.is_ascii_digit());
    let shown = if is_port || port.strip_prefix(':').is_some_and(is_variable) {
        format!("{host}{path}")
    } else {
        format!("{name}:…")
    };
    format!("{before}{scheme}{shown}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_secrets_are_masked_wherever_they_stand() {
        let secrets = ["AKIDXKEY", "token+/=", "secret", "", r#"say "a\b" 1%"#, "pass/wörd"];
        for (text, expected) in [
            ("no such key", "no such key"),
            ("key AKIDXKEY, AKIDXKEYAKIDXKEY", "key ***, ******"),
            ("token+/=", "***"),
            (r#"{"t":"token+\/="}"#, r#"{"t":"***"}"#),
            ("t=token%2B%2F%3D&t=token%2b%2f%3d", "t=***&t=***"),
            ("t=token%2B/%3D t=token%2b/%3d", "t=*** t=***"),
            ("t=token%2B/= t=token+%2F= t=token+/%3d", "t=*** t=*** t=***"),
            ("t=token%252B%252f%253D, %74oken+/=", "t=***, ***"),
            ("a form has token /=", "a form has ***"),
            (r#"{"t":"token\u002b\u002F\u003d"}"#, r#"{"t":"***"}"#),
            ("&lt;token&#x2b;&#X2F;&#61;&gt;", "&lt;***&gt;"),
            (r#"say "a\b" 1%, say \"a\\b\" 1%, say%20%22a%5Cb%22%201%25"#, "***, ***, ***"),
            ("pass/wörd pass%2Fw%C3%B6rd ö", "*** *** ö"),
            (
                "token%2B%2F token%+/= token%2 token\\u002b/ &#43",
                "token%2B%2F token%+/= token%2 token\\u002b/ &#43",
            ),
            ("tokentoken+/=", "token***"),
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
            "User: arn:aws:sts::123456789012:assumed-role/eks-node-group-1/i-0abc1234567890 is not \
             authorized to perform: sts:AssumeRole on resource: \
             arn:aws:iam::123456789012:role/millrace-prod-v2",
            r#"{"Arn":"arn:aws:iam::123456789012:role/Millrace/Prod-V2-EuCentral1","x":"y"}"#,
            "arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/\
             EXAMPLED539D4633E53DE1B71EXAMPLE",
            r#"{\"Arn\":\"arn:aws:iam::123456789012:role\/Millrace\/Prod-V2-EuCentral1\"}"#,
            "cannot read /var/run/secrets/eks.amazonaws.com/serviceaccount/Token1 (No such file)",
            r#"reading "/home/Me2/.aws/sso/cache/d033e22ae348aeb5660fc2140aec35850c4da997.json""#,
            "profile millrace-prod-eu-central-1 has no role",
            "request id: 3f2a4b5c-0d1e-4f60-8a9b-0c1d2e3f4a5b",
            "RequestId=7E3A4B5C-0D1E-4F60-8A9B-0C1D2E3F4A5B",
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
            ("/JalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "***"),
            (r#"{\"k\":\"wJalrXUtnFEMI\/K7MDENG\/bPxRfiCYEXAMPLEKEY\"}"#, r#"{\"k\":\"***"}"#),
            (r"\/JalrXUtnFEMI\/K7MDENG\/bPxRfiCYEXAMPLEKEY", "***"),
            ("k=wJalrXUtnFEMI%2FK7MDENG%2fbPxRfiCYEXAMPLEKEY", "k=***"),
            ("wJalrXUtnFEMI/KsMDENG+bPxRfiCYEXAMPLEKEY=", "***="),
            ("token=IQoJb3JpZ2luX2VjEB0aCXVzLWVhc3QtMQ==", "token=***=="),
            ("arn:aws:iam::1:role/r,ASIAIOSFODNN7EXAMPLE", "arn:aws:iam::1:role/r,***"),
            ("sig-d033e22ae348aeb5660fc2140aec3585", "***"),
            ("(/a AKIAIOSFODNN7EXAMPLE)", "(/a ***)"),
            ("it is /JalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY.", "it is ***."),
            ("/JalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY: unknown", "***: unknown"),
            ("GET /?Action=A&Token=eyJhbGciOiJSUzI1NiJ9a1", "GET /?Action=A&Token=***"),
            ("at /x?X-Amz-Security-Token=IQoJb3JpZ2luX2VjEB0a", "at /x?X-Amz-Security-Token=***"),
            ("(eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL3N0cyJ9.x)", "(***.***.x)"),
            ("a1b2c3d4e5f60718", "***"),
        ] {
            assert_eq!(mask_keys(text), expected);
        }
    }

    #[test]
    fn the_end_of_an_access_key_is_shown() {
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
    fn neither_password_nor_query_of_a_url_is_shown() {
        for (text, expected) in [
            ("http://h:80/x", "http://h:80/x"),
            ("127.0.0.1:80/x", "127.0.0.1:80/x"),
            ("http://[::1]/x", "http://[::1]/x"),
            ("http://[::1]:80", "http://[::1]:80"),
            ("http://me:hush@h", "…@h"),
            ("me:hu@sh@h:80/x", "…@h:80/x"),
            ("http://me:hush", "http://me:…"),
            ("http://me:1234:80/x", "http://me:…"),
            ("http://me:hu]sh/x", "http://me:…"),
            ("http://[::1]:hush", "http://[::1]:…"),
            ("http://[::1", "http://[:…"),
            ("http://h:${PORT}", "http://h:${PORT}"),
            ("http://h:${S3_PORT}/x", "http://h:${S3_PORT}/x"),
            ("http://${HOST}/x", "http://${HOST}/x"),
            ("http://h:$PORT", "http://h:$PORT"),
            ("http://me:${HUSH}@h", "…@h"),
            ("http://h:${PORT:-hush}", "http://h:…"),
            ("http://me:$HUSH", "http://me:…"),
            ("http://me:$", "http://me:…"),
            ("http://me:${}", "http://me:…"),
            ("http://me:${HUSH", "http://me:…"),
            ("http://me:${HUSH}1", "http://me:…"),
            ("http://h/x?sig=hush", "http://h/x?…"),
            ("http://h:1#hush", "http://h:1#…"),
            ("maybe", "maybe"),
        ] {
            assert_eq!(shown_url(text), expected);
        }
    }
}
