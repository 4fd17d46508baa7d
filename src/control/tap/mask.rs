//! Masks what looks like a secret in the JSON of a sampled payload, as well as can be: a payload is
//! any JSON, so it may hold a secret that nothing tells apart from other data.
//!
//! Hidden are: values of members whose names say so ([`SECRET_PARTS`], [`SECRET_WORDS`]) or cannot be
//! decoded; the value beside such a name (`{"name":"cookie","value":…}`, `["cookie",…]`); in strings
//! tokens that this server accepts, what follows `Bearer` or `Basic`, what such a name is set to
//! (`password=…`, `x-api-key: …`), a URL's user and password, and private keys in PEM; all of this in JSON within a string
//! too; and a string whose end was cut off, because what it is cannot be known.

use std::ops::Range;

/// Parts of names of members whose values are hidden, as they are without case and punctuation.
const SECRET_PARTS: [&str; 17] = [
    "token",
    "secret",
    "passw",
    "passphrase",
    "pwd",
    "authorization",
    "bearer",
    "apikey",
    "accesskey",
    "privatekey",
    "signingkey",
    "connectionstring",
    "credential",
    "cookie",
    "sessionid",
    "signature",
    "jwt",
];
/// The same for words that others contain: a `pin` is secret and `shipping` is not.
const SECRET_WORDS: [&str; 9] =
    ["pass", "auth", "session", "sid", "otp", "pin", "dsn", "sas", "sig"];
/// Members that hold the name of their neighbour …
const NAME_MEMBERS: [&str; 6] = ["name", "key", "header", "field", "k", "n"];
/// … which is one of these.
const VALUE_MEMBERS: [&str; 5] = ["value", "values", "val", "v", "content"];

/// What stands instead.
const MASK: &str = "\"***\"";
const STARS: &str = "***";
/// JSON within a string within a string … is hidden as a whole beyond this.
const DEPTH_MAX: usize = 3;
/// Parts of a word that are looked up together: a token may itself have punctuation.
const JOINED_MAX: usize = 4;

/// Whether a string is a secret.
pub(super) type IsSecret<'a> = &'a dyn Fn(&str) -> bool;

/// `text`, JSON or the beginning of it, with its secrets hidden. Whole JSON stays whole JSON.
pub(super) fn mask(text: &str, is_secret: IsSecret<'_>) -> String {
    mask_within(text, is_secret, 0)
}

fn mask_within(text: &str, is_secret: IsSecret<'_>, depth: usize) -> String {
    let bytes = text.as_bytes();
    let mut masked = String::with_capacity(text.len());
    // Of each open object, whether it names a secret whose value stands beside.
    let mut names_secret = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'{' => names_secret.push(object_names_secret(text, at + 1)),
            b'}' => drop(names_secret.pop()),
            b'[' => {
                if let Some(second) = second_of_secret_pair(text, at + 1) {
                    masked.push_str(&text[at..second]);
                    masked.push_str(MASK);
                    at = value_end(bytes, second);
                    continue;
                }
            }
            b'"' => {
                let Some(end) = string_end(bytes, at) else {
                    masked.push_str(MASK);
                    break;
                };
                let quoted = &text[at..end];
                let content = unquoted(quoted);
                let colon = skip_space(bytes, end);
                at = end;
                if bytes.get(colon) != Some(&b':') {
                    masked.push_str(&shown(quoted, content, is_secret, depth));
                    continue;
                }
                let beside = names_secret.last() == Some(&true);
                masked.push_str(match &content {
                    Some(name) if is_secret(name) => MASK,
                    _ => quoted,
                });
                let is_hidden = content.is_none_or(|name| {
                    is_secret_name(&name) || (beside && is_one_of(&VALUE_MEMBERS, &name))
                });
                if is_hidden {
                    let value = skip_space(bytes, colon + 1);
                    masked.push_str(&text[end..value]);
                    masked.push_str(MASK);
                    at = value_end(bytes, value);
                }
                continue;
            }
            _ => {}
        }
        let next = text[at + 1..].find(['{', '}', '[', '"']).map_or(text.len(), |n| at + 1 + n);
        masked.push_str(&text[at..next]);
        at = next;
    }
    masked
}

/// Whether the object whose members begin at `at` has a secret's name as a value, or is cut before
/// it shows one.
fn object_names_secret(text: &str, mut at: usize) -> bool {
    let bytes = text.as_bytes();
    let mut is_named = false;
    loop {
        at = skip_space(bytes, at);
        if bytes.get(at) == Some(&b',') {
            at = skip_space(bytes, at + 1);
        }
        match bytes.get(at) {
            Some(b'"') => {}
            Some(_) => return false,
            None => return !is_named,
        }
        let Some(name_end) = string_end(bytes, at) else { return !is_named };
        let name = unquoted(&text[at..name_end]);
        let colon = skip_space(bytes, name_end);
        let value = skip_space(bytes, colon + 1);
        if value >= bytes.len() {
            return !is_named;
        }
        if bytes[colon] != b':' {
            return false;
        }
        let end = value_end(bytes, value);
        if bytes[value] == b'"' && name.is_some_and(|name| is_one_of(&NAME_MEMBERS, &name)) {
            let named = string_end(bytes, value).and_then(|end| unquoted(&text[value..end]));
            if named.is_none_or(|named| is_name(&named) && is_secret_name(&named)) {
                return true;
            }
            is_named = true;
        }
        at = end;
    }
}

/// Where the second value of an array begins if it has two, the first a secret's name.
fn second_of_secret_pair(text: &str, start: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let first = skip_space(bytes, start);
    if bytes.get(first) != Some(&b'"') {
        return None;
    }
    let end = string_end(bytes, first)?;
    let comma = skip_space(bytes, end);
    let second = skip_space(bytes, comma + 1);
    let is_pair = bytes.get(comma) == Some(&b',') && second < bytes.len() && {
        let behind = skip_space(bytes, value_end(bytes, second));
        bytes.get(behind).is_none_or(|byte| *byte == b']')
    };
    let name = unquoted(&text[first..end]);
    let names = || name.is_none_or(|name| is_name(&name) && is_secret_name(&name));
    (is_pair && names()).then_some(second)
}

/// A string that is a value; `content` is `None` if it cannot be decoded.
fn shown(quoted: &str, content: Option<String>, is_secret: IsSecret<'_>, depth: usize) -> String {
    let Some(content) = content else { return MASK.to_owned() };
    if is_secret(&content) {
        return MASK.to_owned();
    }
    let mut masked = content.clone();
    if content.trim_start().starts_with(['{', '[']) {
        if depth >= DEPTH_MAX {
            return MASK.to_owned();
        }
        masked = mask_within(&content, is_secret, depth + 1);
    }
    let masked = mask_words(&masked, is_secret);
    if masked == content { quoted.to_owned() } else { serde_json::Value::from(masked).to_string() }
}

/// `text`, which need not be JSON, without the secrets in it.
fn mask_words(text: &str, is_secret: IsSecret<'_>) -> String {
    let mut hidden = Vec::new();
    hide_behind_schemes(text, &mut hidden);
    hide_settings(text, &mut hidden);
    hide_userinfo(text, &mut hidden);
    hide_private_keys(text, &mut hidden);
    hide_tokens(text, is_secret, &mut hidden);
    hidden.sort_by_key(|range: &Range<usize>| range.start);
    let (mut masked, mut at) = (String::with_capacity(text.len()), 0);
    for range in hidden {
        if range.start >= at {
            masked.push_str(&text[at..range.start]);
            masked.push_str(STARS);
        }
        at = at.max(range.end);
    }
    masked.push_str(&text[at..]);
    masked
}

/// `Bearer abc`, `Basic abc`.
fn hide_behind_schemes(text: &str, hidden: &mut Vec<Range<usize>>) {
    // Of the same length, byte by byte.
    let lower = text.to_ascii_lowercase();
    for scheme in ["bearer", "basic"] {
        for (at, _) in lower.match_indices(scheme) {
            let behind = at + scheme.len();
            let start = text.len() - text[behind..].trim_start().len();
            let is_word = !text[..at].ends_with(|c: char| c.is_alphanumeric());
            if is_word && start > behind && start < text.len() {
                hidden.push(start..until(text, start, char::is_whitespace));
            }
        }
    }
}

/// `password=abc`, `x-api-key: abc`.
fn hide_settings(text: &str, hidden: &mut Vec<Range<usize>>) {
    let is_of_name = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    for (at, sign) in text.match_indices(['=', ':']) {
        let name = text[..at].trim_end();
        let start = name.trim_end_matches(is_of_name).len();
        if start == name.len() || !is_secret_name(&name[start..]) {
            continue;
        }
        let value = text.len() - text[at + 1..].trim_start_matches([' ', '\t']).len();
        let end = match text[value..].chars().next() {
            Some(quote @ ('"' | '\'')) => until(text, value + 1, |c| c == quote),
            // Of a header all is hidden: it may begin with a scheme.
            _ if sign == ":" => until(text, value, |c| matches!(c, '\r' | '\n')),
            _ => until(text, value, |c| c.is_whitespace() || matches!(c, '&' | ';' | '"' | '\'')),
        };
        if value < end {
            hidden.push(value..end);
        }
    }
}

/// `https://user:password@host`.
fn hide_userinfo(text: &str, hidden: &mut Vec<Range<usize>>) {
    for (at, sign) in text.match_indices("://") {
        let start = at + sign.len();
        let is_behind = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'');
        let end = until(text, start, is_behind);
        if let Some(length) = text[start..end].rfind('@') {
            hidden.push(start..start + length);
        }
    }
}

/// `-----BEGIN PRIVATE KEY-----` and what follows, to the end of that section or of the text.
fn hide_private_keys(text: &str, hidden: &mut Vec<Range<usize>>) {
    for (at, begin) in text.match_indices("-----BEGIN ") {
        let label = at + begin.len();
        let start = until(text, label, |c| c == '-');
        if text[label..start].ends_with("PRIVATE KEY") {
            let end = text[start..].find("-----END ").map_or(text.len(), |length| start + length);
            hidden.push(start..end);
        }
    }
}

/// Accepted tokens, which are visible ASCII, as words or between punctuation.
fn hide_tokens(text: &str, is_secret: IsSecret<'_>, hidden: &mut Vec<Range<usize>>) {
    let mut at = 0;
    for word in text.split(|c: char| !c.is_ascii_graphic()) {
        let (start, end) = (at, at + word.len());
        let character = text[end..].chars().next();
        at = end + character.map_or(0, char::len_utf8);
        let is_cut = |c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.' | '+');
        let cuts: Vec<usize> = word.match_indices(is_cut).map(|(cut, _)| start + cut).collect();
        let starts = std::iter::once(start).chain(cuts.iter().map(|cut| cut + 1));
        for (number, from) in starts.enumerate() {
            let ends = cuts[number..].iter().copied().take(JOINED_MAX);
            let mut ends = ends.chain([end]);
            if let Some(to) = ends.find(|to| from < *to && is_secret(&text[from..*to])) {
                hidden.push(from..to);
            }
        }
    }
}

/// Where the first character from `start` on is that `is_end` takes, or the end.
fn until(text: &str, start: usize, is_end: impl Fn(char) -> bool) -> usize {
    text[start..].find(is_end).map_or(text.len(), |length| start + length)
}

fn is_one_of(names: &[&str], name: &str) -> bool {
    names.iter().any(|other| name.eq_ignore_ascii_case(other))
}

/// Whether a value can be the name of another one.
fn is_name(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ' '))
}

fn is_secret_name(name: &str) -> bool {
    let plain: String =
        name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    SECRET_PARTS.iter().any(|part| plain.contains(part)) || has_secret_word(name)
}

/// Words end at punctuation, and where a capital begins the next one: `userPin`, `OTPCode`.
fn has_secret_word(name: &str) -> bool {
    let characters: Vec<char> = name.chars().collect();
    let mut words = vec![String::new()];
    for (at, c) in characters.iter().enumerate() {
        let is_upper = |at: usize| characters.get(at).is_some_and(|c| c.is_uppercase());
        let is_lower = |at: usize| characters.get(at).is_some_and(|c| c.is_lowercase());
        let begins = is_upper(at) && at > 0 && (!is_upper(at - 1) || is_lower(at + 1));
        if begins || !c.is_alphabetic() {
            words.push(String::new());
        }
        if c.is_alphabetic() {
            words.last_mut().expect("there is one").extend(c.to_lowercase());
        }
    }
    words.iter().any(|word| SECRET_WORDS.contains(&word.as_str()))
}

/// The content of a string with its quotes; `None` if it is no text, as half a surrogate pair.
fn unquoted(quoted: &str) -> Option<String> {
    match quoted.contains('\\') {
        true => serde_json::from_str(quoted).ok(),
        false => Some(quoted[1..quoted.len() - 1].to_owned()),
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
                r#"{"h":"Bearer ***","i":"basic ***","j":"bearers of news"}"#,
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

    /// What is secret has `hush` in it, and what is not has `seen`.
    #[test]
    fn no_kind_of_secret_is_shown() {
        let is_secret = |text: &str| ["hush=1/x", "hush-token"].contains(&text);
        for text in [
            // (a) A scheme anywhere, in any case.
            r#"{"a":"seen: BEARER  hush seen","b":"(basic hush","c":"curl -H 'x: bEaReR hush'"}"#,
            // (b) An accepted token as a part of a string.
            r#"{"a":"seen hush-token seen","b":"/seen?t=hush-token&x=seen","c":"x-seen:hush-token"}"#,
            r#"{"a":"/seen?t=hush=1/x","b":"t:hush=1/x,seen","c":"(hush-token)","d":"\u00fchush-token"}"#,
            // (c) JSON within a string, also twice.
            r#"{"a":" {\"password\":\"hush\",\"b\":\"seen\"}"}"#,
            r#"{"a":"[\"{\\\"pwd\\\":\\\"hush\\\"}\",\"seen\"]"}"#,
            // (d) A name beside its value.
            r#"{"name":"Authorization","value":"hush","id":"seen"}"#,
            r#"[{"value":["hush"],"Key":"x-api-key"},{"name":"seen","value":"seen"}]"#,
            r#"[["Cookie","hush"],["seen","seen"],[ "Set-Cookie" , {"a":"hush"} ]]"#,
            // (e) A user and a password in a URL.
            r#"{"a":"postgres://u:hush@seen/db","b":"https://hush@seen:1/p@q"}"#,
            // A private key, on lines or not, also cut.
            r#"{"a":"seen -----BEGIN RSA PRIVATE KEY-----\nhush\nhush=\n-----END RSA PRIVATE KEY-----\nseen"}"#,
            r#"{"a":"-----BEGIN PRIVATE KEY-----hush","b":"-----BEGIN CERTIFICATE-----seen"}"#,
            // A signed URL.
            r#"{"a":"https://seen/?sv=seen&sig=hush","b":"https://seen/?X-Amz-Signature=hush&x=seen"}"#,
            // (f) Names.
            r#"{"pwd":"hush","pass":"hush","passwd":"hush","auth":"hush","bearer":"hush","seen":1}"#,
            r#"{"session":"hush","sid":"hush","otp":"hush","pin":"hush","dsn":"hush","seen":1}"#,
            r#"{"connectionString":"hush","signing-key":"hush","sas":"hush","userPin":"hush","x":"seen"}"#,
            r#"{"OTPCode":"hush","db_pass":"hush","PIN":"hush","sid2":"hush","x":"seen"}"#,
            r#"{"shipping":"seen","author":"seen","compass":"seen","inside":"seen","design":"seen","signal":"seen"}"#,
            // (g) A name that is no text.
            r#"{"\ud800":"hush","b":"\udc00hush","c":"seen"}"#,
            // Names set within strings.
            r#"{"a":"/seen?password=hush&x=seen","b":"Server=seen;Pwd=hush;x=seen","c":"api_key = 'hush' seen"}"#,
            r#"{"a":"x-api-key: hush\r\nhost: seen","b":"Authorization: Digest hush hush"}"#,
        ] {
            let got = mask(text, &is_secret);
            assert!(!got.contains("hush"), "{text}\n{got}");
            assert_eq!(got.matches("seen").count(), text.matches("seen").count(), "{text}\n{got}");
            serde_json::from_str::<&serde_json::value::RawValue>(&got).expect(&got);
        }
    }

    #[test]
    fn what_is_cut_shows_no_more_than_the_whole() {
        let text = r#"{"id":"visible","token":"hidden-one","deep":{"cookie":{"a":["hidden-two"]}},"z":"accepted-token","h":{"value":"hidden-three","name":"cookie"},"i":["cookie","hidden-four"]}"#;
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
