//! Masks what looks like a secret in the JSON of a sampled payload.
//!
//! Hidden are: values of members whose names say so ([`SECRET_NAMES`]); strings that are a token this
//! server accepts; what follows `Bearer` or `Basic` in a string; and a string whose end was cut off,
//! because what it is cannot be known. A payload is any JSON, so it may hold a secret that nothing
//! tells apart from other data.

/// Parts of names of members whose values are hidden, as they are without case and punctuation.
const SECRET_NAMES: [&str; 13] = [
    "token",
    "secret",
    "passw",
    "passphrase",
    "authorization",
    "apikey",
    "accesskey",
    "privatekey",
    "credential",
    "cookie",
    "sessionid",
    "signature",
    "jwt",
];

/// What stands instead.
const MASK: &str = "\"***\"";

/// Whether a string is a secret.
pub(super) type IsSecret<'a> = &'a dyn Fn(&str) -> bool;

/// `text`, JSON or the beginning of it, with its secrets hidden. Whole JSON stays whole JSON.
pub(super) fn mask(text: &str, is_secret: IsSecret<'_>) -> String {
    let bytes = text.as_bytes();
    let mut masked = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'"' {
            let next = text[at..].find('"').map_or(text.len(), |next| at + next);
            masked.push_str(&text[at..next]);
            at = next;
            continue;
        }
        let Some(end) = string_end(bytes, at) else {
            masked.push_str(MASK);
            break;
        };
        let quoted = &text[at..end];
        let value = skip_space(bytes, end);
        let is_name = bytes.get(value) == Some(&b':');
        let content = unquoted(quoted);
        if !is_name {
            masked.push_str(&shown(quoted, &content, is_secret));
            at = end;
            continue;
        }
        masked.push_str(if is_secret(&content) { MASK } else { quoted });
        at = end;
        if is_secret_name(&content) {
            let value = skip_space(bytes, value + 1);
            masked.push_str(&text[end..value]);
            masked.push_str(MASK);
            at = value_end(bytes, value);
        }
    }
    masked
}

/// A string that is a value.
fn shown(quoted: &str, content: &str, is_secret: IsSecret<'_>) -> String {
    let scheme = ["Bearer ", "Basic "].into_iter().find(|scheme| {
        content.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    });
    match scheme {
        Some(scheme) => format!("\"{scheme}***\""),
        None if is_secret(content) => MASK.to_owned(),
        None => quoted.to_owned(),
    }
}

fn is_secret_name(name: &str) -> bool {
    let plain: String =
        name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    SECRET_NAMES.iter().any(|part| plain.contains(part))
}

/// The content of a string with its quotes.
fn unquoted(quoted: &str) -> String {
    let inner = &quoted[1..quoted.len() - 1];
    match quoted.contains('\\') {
        true => serde_json::from_str(quoted).unwrap_or_else(|_| inner.to_owned()),
        false => inner.to_owned(),
    }
}

/// Behind the string that begins at `start`; `None` if its end is missing.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

fn skip_space(bytes: &[u8], start: usize) -> usize {
    let rest = bytes.get(start..).unwrap_or_default();
    start + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// Behind the value that begins at `start`, or where the text ends within it.
fn value_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string_end(bytes, at).unwrap_or(bytes.len()),
            b'{' | b'[' => (at, depth) = (at + 1, depth + 1),
            b'}' | b']' if depth == 0 => return at,
            b'}' | b']' => (at, depth) = (at + 1, depth - 1),
            b',' if depth == 0 => return at,
            _ => {
                at += 1;
                continue;
            }
        }
        if depth == 0 {
            return at.min(bytes.len());
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        mask(text, &|string| string == "accepted-token" || string == "süß")
    }

    #[test]
    fn secrets_are_hidden_and_all_else_is_as_it_was() {
        for (text, expected) in [
            (
                r#"{"id":1,"name":"a \"b\"", "n":[1,2.5,null,true]}"#,
                r#"{"id":1,"name":"a \"b\"", "n":[1,2.5,null,true]}"#,
            ),
            (r#"{"token":"x","id":2}"#, r#"{"token":"***","id":2}"#),
            (r#"{"API-Key" : "x" , "id":2}"#, r#"{"API-Key" : "***" , "id":2}"#),
            (
                r#"{"a":{"db_password":{"old":["x","}"],"new":"y"},"b":3}}"#,
                r#"{"a":{"db_password":"***","b":3}}"#,
            ),
            (
                r#"{"secret":123,"b":[{"refreshToken":null}]}"#,
                r#"{"secret":"***","b":[{"refreshToken":"***"}]}"#,
            ),
            (r#"{"secrets":[1,[2]],"b":1}"#, r#"{"secrets":"***","b":1}"#),
            (r#"["accepted-token","s\u00fc\u00df",{"süß":1}]"#, r#"["***","***",{"***":1}]"#),
            (
                r#"{"h":"Bearer abc","i":"basic abc","j":"bearers of news"}"#,
                r#"{"h":"Bearer ***","i":"Basic ***","j":"bearers of news"}"#,
            ),
            (r#"{"t\u006fken":"x"}"#, r#"{"t\u006fken":"***"}"#),
            (r#""accepted-token""#, r#""***""#),
            ("17", "17"),
        ] {
            let got = masked(text);
            assert_eq!(got, expected, "{text}");
            serde_json::from_str::<serde_json::Value>(&got).expect(&got);
        }
    }

    #[test]
    fn what_is_cut_shows_no_more_than_the_whole() {
        let text = r#"{"id":"visible","token":"hidden-one","deep":{"cookie":{"a":["hidden-two"]}},"z":"accepted-token"}"#;
        for end in 0..=text.len() {
            let got = masked(&text[..end]);
            for hidden in ["hidden", "hid", "accepted", "acc"] {
                assert!(!got.contains(hidden), "{end}: {got}");
            }
        }
        // A cut within a character or an escape.
        for text in [
            "{\"a\":\"\\",
            "{\"token\":\"\\",
            "\"",
            "{\"token\"",
            "{\"token\":",
            "{\"token\": ",
            "",
        ] {
            masked(text);
        }
    }
}
