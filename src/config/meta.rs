//! `META`: what each stored payload says about its request.

use super::value::Parsed;
use super::{Config, SettingsReader};
use crate::key::{RequestSource, header_name};

/// Most entries.
const META_ENTRIES_MAX: usize = 16;

/// Longest text of the setting; it bounds the names in every object.
const META_TEXT_BYTES_MAX: usize = 1024;

/// The part of a header's value that is stored, in bytes of UTF-8. It comes with every payload of
/// its request, so a client could multiply what it sends; identifiers and traces are far shorter.
pub const META_HEADER_BYTES_MAX: usize = 512;

/// Most bytes that are added to a payload: all names, the values with every byte of theirs escaped,
/// what JSON puts around each, and the two members.
pub const META_BYTES_MAX: usize =
    META_TEXT_BYTES_MAX + META_ENTRIES_MAX * (2 * META_HEADER_BYTES_MAX + 8) + 64;

/// One member of `meta`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaEntry {
    ReceivedAt,
    Client,
    /// The name of the request's token.
    Token,
    /// The header with this name, in lower case.
    Header(String),
}

impl MetaEntry {
    fn parse(text: &str) -> Parsed<MetaEntry> {
        match (text, text.strip_prefix("header:")) {
            ("received_at", _) => Ok(MetaEntry::ReceivedAt),
            ("client", _) => Ok(MetaEntry::Client),
            ("token", _) => Ok(MetaEntry::Token),
            (_, Some(name)) => header_name(name)
                .map(MetaEntry::Header)
                .map_err(|why| format!("has {text:?}, which {why}")),
            ("", None) => Err("has an empty entry: remove the comma".into()),
            (_, None) => Err(format!(
                "has {text:?}, which is no entry: give received_at, client, token or header:NAME, \
                 separated by commas"
            )),
        }
    }
}

/// The entries in their order.
pub(super) fn entries(text: &str) -> Parsed<Vec<MetaEntry>> {
    if text.len() > META_TEXT_BYTES_MAX {
        return Err(format!("is {} bytes long: write at most {META_TEXT_BYTES_MAX}", text.len()));
    }
    let mut entries = Vec::new();
    for entry in text.split(',').filter(|_| !text.is_empty()) {
        let parsed = MetaEntry::parse(entry.trim())?;
        if entries.contains(&parsed) {
            return Err(format!("has {:?} twice: name it once", entry.trim()));
        }
        entries.push(parsed);
    }
    match entries.len() {
        0..=META_ENTRIES_MAX => Ok(entries),
        count => Err(format!("has {count} entries: name at most {META_ENTRIES_MAX}")),
    }
}

/// Checks that a longest payload fits everywhere once it is wrapped, and that there are tokens if
/// their names are wanted.
pub(super) fn check(r: &mut SettingsReader<'_>, c: &Config) {
    let has_names = c.tokens_file.is_some() || c.asks_for_certificates();
    let wants_name = c.keys.request_sources().contains(&RequestSource::Token);
    r.require(has_names || !wants_name, "KEY", "TOKENS_FILE", |_| {
        "contains {token}, but requests need no token: set TOKENS_FILE, or remove {token}".into()
    });
    let wants_name = c.meta.contains(&MetaEntry::Token);
    r.require(has_names || !wants_name, "META", "TOKENS_FILE", |_| {
        "contains token, but requests need no token: set TOKENS_FILE, or remove token".into()
    });
    if c.meta.is_empty() {
        return;
    }
    let payload = c.payload_bytes_max() as u64;
    let mut leaves = |has: u64, least: u64, name: &'static str| {
        r.require(has >= least, name, "META", |_| {
            format!(
                "is below {least}, which a payload of MAX_LENGTH needs with its META: raise it or lower \
                 MAX_LENGTH"
            )
        });
    };
    leaves(c.max_body_bytes as u64, payload + c.max_length as u64, "MAX_BODY_BYTES");
    leaves(c.max_queue_bytes as u64, payload, "MAX_QUEUE_BYTES");
    if let Some(spool) = &c.spool {
        leaves(spool.pending as u64, payload, "SPOOL_PENDING");
        leaves(spool.segment, 4 * payload, "SPOOL_SEGMENT");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_their_order_and_headers_are_lower_case() {
        use MetaEntry::{Client, Header, ReceivedAt, Token};
        assert_eq!(entries(""), Ok(vec![]));
        assert_eq!(
            entries("header:X-Request-Id, token ,client,received_at"),
            Ok(vec![Header("x-request-id".into()), Token, Client, ReceivedAt])
        );
    }

    #[test]
    fn bad_lists_are_refused_with_the_remedy() {
        let many: Vec<String> = (0..17).map(|n| format!("header:h{n}")).collect();
        let long = format!("header:{}", "x".repeat(1100));
        for (text, expected) in [
            ("received_at,", "has an empty entry: remove the comma"),
            (",client", "has an empty entry"),
            ("client,,token", "has an empty entry"),
            ("ip", "has \"ip\", which is no entry: give received_at, client, token or header:NAME"),
            ("Client", "has \"Client\", which is no entry"),
            ("header:", "has \"header:\", which names no header"),
            ("header", "has \"header\", which is no entry"),
            ("header:a b", "names no header"),
            ("header:Authorization", "has \"header:Authorization\", which is a secret"),
            ("client,header:cookie", "is a secret, and secrets are never stored"),
            ("header:x-api-key", "is a secret"),
            ("client,client", "has \"client\" twice: name it once"),
            ("header:a,header:A", "has \"header:A\" twice"),
            (&many.join(","), "has 17 entries: name at most 16"),
            (&long, "is 1107 bytes long: write at most 1024"),
        ] {
            let error = entries(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
