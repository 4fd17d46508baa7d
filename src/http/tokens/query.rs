//! The token in a request's query, `?token=TOKEN`, for browsers' `sendBeacon`, which cannot set
//! headers. Only with `TOKEN_IN_QUERY=on`: what stands in a URL is shown and logged by whatever is
//! between the client and this server.
//!
//! Names and values are percent-encoded (RFC 3986, section 2.1). A `+` stands for itself, as it does
//! in that RFC: tokens in base64 hold it, and browsers encode it (`URLSearchParams`,
//! `encodeURIComponent`). RFC 6750, section 2.3, has the parameter `access_token` for this; here it
//! has the name of the envelope's field.

use std::borrow::Cow;

use super::TokenRefusal;

const NAME: &[u8] = b"token";

/// The token of a query; `None` if it has no parameter of that name.
///
/// # Errors
/// The parameter is there twice, empty, or not percent-encoded as it should be.
pub(super) fn token_of(query: &str) -> Result<Option<Cow<'_, [u8]>>, TokenRefusal> {
    let mut found = None;
    for parameter in query.as_bytes().split(|byte| *byte == b'&') {
        let name_end = parameter.iter().position(|byte| *byte == b'=').unwrap_or(parameter.len());
        let (name, value) = parameter.split_at(name_end);
        if decoded(name).as_deref() != Some(NAME) {
            continue;
        }
        let token = decoded(value.get(1..).unwrap_or_default());
        match token.filter(|token| !token.is_empty()) {
            Some(token) if found.is_none() => found = Some(token),
            _ => return Err(TokenRefusal::MalformedQuery),
        }
    }
    Ok(found)
}

/// `text` without its percent-encoding; `None` if a `%` is not followed by two hex digits.
fn decoded(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(first) = memchr::memchr(b'%', text) else { return Some(Cow::Borrowed(text)) };
    let mut out = text[..first].to_vec();
    let mut rest = &text[first..];
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        let [high, low, after @ ..] = after else { return None };
        out.push(hex(*high)? << 4 | hex(*low)?);
        rest = after;
    }
    Some(Cow::Owned(out))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(query: &str) -> Result<Option<Vec<u8>>, TokenRefusal> {
        token_of(query).map(|token| token.map(Cow::into_owned))
    }

    #[test]
    fn one_parameter_of_the_name_wherever_it_stands() {
        for (query, expected) in [
            ("token=alpha", &b"alpha"[..]),
            ("a=b&token=alpha", b"alpha"),
            ("token=alpha&a=b", b"alpha"),
            ("&&token=alpha&", b"alpha"),
            ("token=al=pha==", b"al=pha=="),
            ("token=a+b/c", b"a+b/c"),
            ("token=a%2Bb%2fc%3D", b"a+b/c="),
            ("token=a%20b", b"a b"),
            ("token=%26token%3Dx", b"&token=x"),
            ("%74oke%6E=alpha", b"alpha"),
            ("token=gr%C3%BC%c3%9Fe", "gr\u{fc}\u{df}e".as_bytes()),
            ("token=%00%ff", b"\0\xff"),
            ("token=%2525", b"%25"),
            ("x=%zz&token=alpha&y=%", b"alpha"),
            ("token=alpha;token=beta", b"alpha;token=beta"),
            ("token=alpha?token=beta", b"alpha?token=beta"),
        ] {
            assert_eq!(token(query), Ok(Some(expected.to_vec())), "{query}");
        }
    }

    #[test]
    fn no_parameter_of_the_name() {
        for query in ["", "&", "=", "a=b", "Token=x", "TOKEN=x", "tokens=x", "xtoken=x", "=token"] {
            assert_eq!(token(query), Ok(None), "{query}");
        }
        for query in ["token%=x", "token%20=x", "to%6bens=x", "access_token=x", "token[]=x"] {
            assert_eq!(token(query), Ok(None), "{query}");
        }
    }

    #[test]
    fn a_parameter_that_is_not_as_it_should_be() {
        for query in [
            "token",
            "token=",
            "token=&token=alpha",
            "token=alpha&token=alpha",
            "token=alpha&token=beta",
            "token=alpha&a=b&token",
            "token=alpha&%74oken=beta",
            "token=%",
            "token=%2",
            "token=alpha%zz",
            "token=%u0061",
            "token=%+1",
            "token=% 1",
        ] {
            assert_eq!(token(query), Err(TokenRefusal::MalformedQuery), "{query}");
        }
    }

    proptest! {
        /// What any encoder makes of a token comes back, whichever bytes it escapes, and however
        /// many other parameters there are.
        #[test]
        fn an_encoded_token_comes_back(
            bytes in prop::collection::vec(any::<u8>(), 1..40),
            lower in any::<bool>(),
            escape_all in any::<bool>(),
            before in "([a-s]{0,3}=?[a-z%]{0,4}&){0,3}",
            behind in "(&[a-s]{0,3}=?[a-z%]{0,4}){0,3}",
        ) {
            let encoded: String = bytes.iter().map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~'
                    if !escape_all => char::from(*byte).to_string(),
                _ if lower => format!("%{byte:02x}"),
                _ => format!("%{byte:02X}"),
            }).collect();
            let query = format!("{before}token={encoded}{behind}");
            prop_assert_eq!(token(&query), Ok(Some(bytes)));
        }

        /// No query panics, and what it yields is what a slow and simple reading yields.
        #[test]
        fn any_query_is_read_like_a_simple_reader(query in "[token=&%26aF+; ]{0,24}") {
            let decode = |text: &str| -> Option<Vec<u8>> {
                let mut parts = text.split('%');
                let mut out = parts.next()?.as_bytes().to_vec();
                for part in parts {
                    let digits = part.get(..2)?;
                    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                        return None;
                    }
                    out.push(u8::from_str_radix(digits, 16).ok()?);
                    out.extend_from_slice(&part.as_bytes()[2..]);
                }
                Some(out)
            };
            let values: Vec<Option<Vec<u8>>> = query
                .split('&')
                .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
                .filter(|(name, _)| decode(name).as_deref() == Some(b"token"))
                .map(|(_, value)| decode(value).filter(|value| !value.is_empty()))
                .collect();
            let expected = match &values[..] {
                [] => Ok(None),
                [Some(one)] => Ok(Some(one.clone())),
                _ => Err(TokenRefusal::MalformedQuery),
            };
            prop_assert_eq!(token(&query), expected);
        }
    }
}
