//! Which token a request has, and whether it is accepted.
//!
//! A header is judged with the request's head, before any of the body is read; it decides alone,
//! and what the envelope says does not matter. With `TOKEN_IN_QUERY` the query counts like a
//! header: if both have a token, it must be the same. Without either the token is in the envelope,
//! if `TOKEN_IN_BODY` allows that and the body has one. A client's certificate comes between the two:
//! it counts if neither a header nor the query has a token, and then the envelope does not matter.

use subtle::ConstantTimeEq as _;

use super::query;
use super::{CertificateToken, KnownToken, SharedTokens, TokenView};
use crate::config::Config;
use crate::http::fields::{Fields, KnownField};
use crate::metrics::tokens::{CoreTokenCells, TokenId, TokenNames};

/// The one scheme that is understood (RFC 6750).
const SCHEME: &[u8] = b"bearer";

/// Why a request is answered 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    #[error("the token is missing: send it as authorization: Bearer TOKEN or as x-api-key: TOKEN")]
    NoHeader,
    #[error("the token is missing or unknown")]
    Envelope,
    #[error("the token of the header is unknown")]
    Unknown,
    #[error("authorization must be Bearer TOKEN: no other scheme is supported")]
    Scheme,
    #[error(
        "authorization must be Bearer TOKEN and x-api-key TOKEN, each at most once, with a TOKEN of visible ASCII \
         characters"
    )]
    Malformed,
    #[error("authorization and x-api-key hold different tokens: send one of them")]
    Different,
    #[error("the token of the query is unknown")]
    UnknownQuery,
    #[error(
        "the token of the query must be there once: ?token=TOKEN, percent-encoded and not empty"
    )]
    MalformedQuery,
    #[error("the query and a header hold different tokens: send one of them")]
    DifferentQuery,
}

impl TokenRefusal {
    /// The value of `www-authenticate`. A request whose head had no bearer token gets no error code
    /// (RFC 6750, section 3.1).
    pub fn challenge(self) -> &'static str {
        match self {
            TokenRefusal::NoHeader | TokenRefusal::Envelope | TokenRefusal::Scheme => "Bearer",
            TokenRefusal::Unknown
            | TokenRefusal::Malformed
            | TokenRefusal::Different
            | TokenRefusal::UnknownQuery
            | TokenRefusal::MalformedQuery
            | TokenRefusal::DifferentQuery => r#"Bearer error="invalid_token""#,
        }
    }
}

/// Where a token may be, beside the two headers.
#[derive(Clone, Copy, Debug)]
pub struct TokenPlaces {
    /// `TOKEN_IN_BODY`.
    pub in_body: bool,
    /// `TOKEN_IN_QUERY`.
    pub in_query: bool,
}

impl TokenPlaces {
    pub fn of(config: &Config) -> TokenPlaces {
        TokenPlaces { in_body: config.takes_tokens_in_bodies(), in_query: config.token_in_query }
    }

    /// Whether one of them may hold what no header may: a token that is not ASCII.
    pub fn hold_any_text(self) -> bool {
        self.in_body || self.in_query
    }
}

/// Judges the tokens of one core's requests, and counts what they send.
pub struct TokenGate {
    accepted: TokenView,
    places: TokenPlaces,
    names: &'static TokenNames,
    cells: CoreTokenCells,
}

impl TokenGate {
    /// The gate of the core with this index.
    pub fn new(shared: &SharedTokens, core: usize, places: TokenPlaces) -> TokenGate {
        let cells = shared.metrics.core(core);
        let names = &shared.metrics.names;
        TokenGate { accepted: TokenView::new(shared.set.clone()), places, names, cells }
    }

    /// Judges what a head says. [`KnownToken::NONE`]: nothing, so the body decides, which is possible
    /// if it `may_have_envelope`.
    ///
    /// # Errors
    /// The head's token is not accepted, or there must be one.
    pub fn judge_head(
        &self,
        fields: &impl Fields,
        query: Option<&str>,
        may_have_envelope: bool,
    ) -> Result<KnownToken, TokenRefusal> {
        let in_header = token_of(fields)?;
        if self.places.in_query
            && let Some(query) = query
            && let Some(token) = query::token_of(query)?
        {
            return self.judge_query(&token, in_header);
        }
        match in_header {
            Some(token) => self.accepted.find(token).ok_or(TokenRefusal::Unknown),
            None if self.places.in_body && may_have_envelope => Ok(KnownToken::NONE),
            None => Err(TokenRefusal::NoHeader),
        }
    }

    /// What a client's certificate stands for: a client that has one needs no token.
    pub fn of_certificate(&self, certificate: &CertificateToken) -> KnownToken {
        let quota = certificate.quota_key().and_then(|key| self.accepted.quota_of_name(key));
        KnownToken { id: certificate.id(self.names), quota }
    }

    /// Judges the token of the query, beside the one of a header.
    fn judge_query(
        &self,
        token: &[u8],
        in_header: Option<&[u8]>,
    ) -> Result<KnownToken, TokenRefusal> {
        match in_header {
            Some(other) if !bool::from(token.ct_eq(other)) => Err(TokenRefusal::DifferentQuery),
            _ => self.accepted.find(token).ok_or(TokenRefusal::UnknownQuery),
        }
    }

    /// Judges what a body says, unless the head's token is `known`: then the quota was judged with
    /// the head, and is not returned.
    ///
    /// # Errors
    /// There is no token, or it is not accepted.
    pub fn judge_envelope(
        &self,
        known: TokenId,
        has_envelope: bool,
        given: Option<&str>,
    ) -> Result<KnownToken, TokenRefusal> {
        if known != TokenId::NONE {
            return Ok(KnownToken { id: known, quota: None });
        }
        if !has_envelope {
            return Err(TokenRefusal::NoHeader);
        }
        let found = given.and_then(|token| self.accepted.find(token.as_bytes()));
        found.ok_or(TokenRefusal::Envelope)
    }

    /// The name of a token; `None` if it has none. All names that have no place of their own are
    /// `(other)`.
    pub fn name(&self, id: TokenId) -> Option<&'static str> {
        self.names.shown(id).filter(|_| id != TokenId::UNNAMED)
    }

    /// The counters of this core.
    pub fn cells(&self) -> CoreTokenCells {
        self.cells
    }
}

/// The token that the head has in one header, or the same in both.
fn token_of(fields: &impl Fields) -> Result<Option<&[u8]>, TokenRefusal> {
    let authorization = bearer_of(fields)?;
    let api_key = only(fields, KnownField::XApiKey)?;
    let token = match (authorization, api_key) {
        // They come from the client alone, so this reveals nothing; constant time costs nothing.
        (Some(one), Some(other)) if !bool::from(one.ct_eq(other)) => {
            return Err(TokenRefusal::Different);
        }
        (one, other) => one.or(other),
    };
    let is_well_formed =
        |token: &&[u8]| !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
    match token {
        Some(token) if !is_well_formed(&token) => Err(TokenRefusal::Malformed),
        token => Ok(token),
    }
}

/// The token of `authorization: Bearer TOKEN`; `None`: there is no such header.
///
/// # Errors
/// It is there twice, or has another scheme.
pub fn bearer_of(fields: &impl Fields) -> Result<Option<&[u8]>, TokenRefusal> {
    only(fields, KnownField::Authorization)?.map(bearer).transpose()
}

/// The value of a header that may be there once.
fn only(fields: &impl Fields, field: KnownField) -> Result<Option<&[u8]>, TokenRefusal> {
    let mut values = fields.values(field);
    let first = values.next().map(<[u8]>::trim_ascii);
    match values.next() {
        Some(_) => Err(TokenRefusal::Malformed),
        None => Ok(first),
    }
}

/// The token of `Bearer TOKEN`. The case of a scheme does not matter, and any number of spaces
/// follows it (RFC 9110, section 11.4).
fn bearer(credentials: &[u8]) -> Result<&[u8], TokenRefusal> {
    let end = credentials.iter().position(|byte| *byte == b' ').unwrap_or(credentials.len());
    let (scheme, token) = credentials.split_at(end);
    if scheme.eq_ignore_ascii_case(SCHEME) {
        Ok(token.trim_ascii_start())
    } else if scheme.is_empty() {
        Err(TokenRefusal::Malformed)
    } else {
        Err(TokenRefusal::Scheme)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arc_swap::ArcSwap;
    use http::header::{HeaderMap, HeaderName, HeaderValue};

    use super::super::file;
    use super::*;
    use crate::metrics::tokens::TokenMetrics;

    fn gate(in_body: bool) -> (TokenGate, &'static TokenMetrics) {
        gate_of(TokenPlaces { in_body, in_query: false })
    }

    fn gate_of(places: TokenPlaces) -> (TokenGate, &'static TokenMetrics) {
        let metrics = TokenMetrics::leaked(1);
        let text = "alpha;name=a\nbeta;name=b\na,b\ngrüße\n".as_bytes();
        let set = file::accepted(text, &metrics.names).unwrap();
        let shared = SharedTokens { set: Arc::new(ArcSwap::from_pointee(set)), metrics };
        (TokenGate::new(&shared, 0, places), metrics)
    }

    fn headers(given: &[(&str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    /// The query of most requests here. Without `TOKEN_IN_QUERY` its token means nothing.
    const QUERY: Option<&str> = Some("token=beta");

    const AUTH: &str = "authorization";
    const KEY: &str = "x-api-key";

    #[test]
    fn a_header_is_right_in_every_form_it_may_have() {
        for in_body in [true, false] {
            let (gate, metrics) = gate(in_body);
            for (given, name) in [
                (&[(AUTH, &b"Bearer alpha"[..])][..], "a"),
                (&[(AUTH, b"bearer alpha")], "a"),
                (&[(AUTH, b"BEARER   alpha \t")], "a"),
                (&[("Authorization", b"Bearer beta")], "b"),
                (&[(KEY, b"beta")], "b"),
                (&[("X-Api-Key", b" beta\t")], "b"),
                (&[(KEY, b"a,b")], "(unnamed)"),
                (&[(AUTH, b"Bearer alpha"), (KEY, b"alpha")], "a"),
            ] {
                let id = gate.judge_head(&headers(given), QUERY, true).unwrap().id;
                let again = gate.judge_head(&headers(given), QUERY, false);
                assert_eq!(again.map(|known| known.id), Ok(id));
                assert_eq!(metrics.names.shown(id), Some(name), "{given:?}");
                for envelope in [None, Some("wrong"), Some("beta")] {
                    let judged = gate.judge_envelope(id, true, envelope).map(|known| known.id);
                    assert_eq!(judged, Ok(id), "the header decides");
                }
                let judged = gate.judge_envelope(id, false, None).map(|known| known.id);
                assert_eq!(judged, Ok(id));
            }
        }
    }

    #[test]
    fn a_header_that_is_there_and_not_right_is_refused() {
        use TokenRefusal::{Different, Malformed, Scheme, Unknown};
        for in_body in [true, false] {
            let (gate, _) = gate(in_body);
            for (given, refusal) in [
                (&[(AUTH, &b"Bearer wrong"[..])][..], Unknown),
                (&[(AUTH, b"Bearer ALPHA")], Unknown),
                (&[(AUTH, b"Bearer Bearer")], Unknown),
                (&[(AUTH, b"Bearer")], Malformed),
                (&[(AUTH, b"Bearer  ")], Malformed),
                (&[(AUTH, b"")], Malformed),
                (&[(AUTH, b" ")], Malformed),
                (&[(AUTH, b"alpha")], Scheme),
                (&[(AUTH, b"Basic YWxwaGE6")], Scheme),
                (&[(AUTH, b"Bearer=alpha")], Scheme),
                (&[(AUTH, b"Bearer\talpha")], Scheme),
                (&[(AUTH, b"Bearer alpha beta")], Malformed),
                (&[(AUTH, b"Bearer alpha, Bearer alpha")], Malformed),
                (&[(AUTH, b"Bearer alpha,")], Unknown),
                (&[(AUTH, b"Bearer alpha"), (AUTH, b"Bearer alpha")], Malformed),
                (&[(AUTH, b"Bearer alpha"), (AUTH, b"")], Malformed),
                (&[(AUTH, "Bearer grüße".as_bytes())], Malformed),
                (&[(KEY, b"wrong")], Unknown),
                (&[(KEY, b"")], Malformed),
                (&[(KEY, b"Bearer alpha")], Malformed),
                (&[(KEY, b"alpha\xff")], Malformed),
                (&[(KEY, b"alpha"), (KEY, b"alpha")], Malformed),
                (&[(AUTH, b"Bearer alpha"), (KEY, b"beta")], Different),
                (&[(AUTH, b"Bearer alpha"), (KEY, b"")], Different),
                (&[(AUTH, b"Basic YWxwaGE6"), (KEY, b"alpha")], Scheme),
            ] {
                for may_have_envelope in [true, false] {
                    let refused = gate.judge_head(&headers(given), QUERY, may_have_envelope);
                    assert_eq!(refused, Err(refusal), "{given:?}");
                }
                let text = refusal.to_string();
                assert!(text.contains("token") || text.contains("TOKEN"), "{text}");
            }
        }
    }

    #[test]
    fn without_a_header_the_envelope_decides_where_it_may() {
        let (gate, metrics) = gate(true);
        let none = HeaderMap::new();
        assert_eq!(gate.judge_head(&none, QUERY, true), Ok(KnownToken::NONE));
        let judge = |token| gate.judge_envelope(TokenId::NONE, true, token);
        assert_eq!(metrics.names.shown(judge(Some("beta")).unwrap().id), Some("b"));
        assert!(judge(Some("grüße")).is_ok());
        for wrong in [None, Some(""), Some("wrong"), Some(" alpha"), Some("alpha\n")] {
            assert_eq!(judge(wrong), Err(TokenRefusal::Envelope), "{wrong:?}");
        }
        // A body of another form has no envelope, which may be known before or after it is read.
        assert_eq!(gate.judge_head(&none, QUERY, false), Err(TokenRefusal::NoHeader));
        let without = gate.judge_envelope(TokenId::NONE, false, None);
        assert_eq!(without, Err(TokenRefusal::NoHeader));
        let (gate, _) = self::gate(false);
        assert_eq!(gate.judge_head(&none, QUERY, true), Err(TokenRefusal::NoHeader));
    }

    #[test]
    fn the_query_counts_like_a_header() {
        use TokenRefusal::{
            Different, DifferentQuery, Malformed, MalformedQuery, NoHeader, Scheme, Unknown,
            UnknownQuery,
        };
        const ALPHA: (&str, &[u8]) = (AUTH, b"Bearer alpha");
        const WRONG: (&str, &[u8]) = (KEY, b"wrong");
        for in_body in [true, false] {
            let (gate, metrics) = gate_of(TokenPlaces { in_body, in_query: true });
            let judge = |query: &str, given: &[(&str, &[u8])]| {
                gate.judge_head(&headers(given), query.strip_prefix('?'), true)
            };
            for (query, given, name) in [
                ("?token=alpha", &[][..], "a"),
                ("?a=b&token=%61lpha", &[], "a"),
                ("?token=a%2Cb", &[], "(unnamed)"),
                ("?token=a,b", &[], "(unnamed)"),
                ("?token=gr%C3%BC%C3%9Fe", &[], "(unnamed)"),
                ("?token=alpha", &[ALPHA], "a"),
                ("?token=alpha", &[ALPHA, (KEY, b"alpha")], "a"),
                ("", &[ALPHA], "a"),
                ("?Token=beta", &[ALPHA], "a"),
            ] {
                let id = judge(query, given).unwrap().id;
                assert_eq!(metrics.names.shown(id), Some(name), "{query} {given:?}");
                let judged = gate.judge_envelope(id, true, Some("wrong")).map(|known| known.id);
                assert_eq!(judged, Ok(id), "the head decides");
            }
            for (query, given, refusal) in [
                ("?token=wrong", &[][..], UnknownQuery),
                ("?token=ALPHA", &[], UnknownQuery),
                ("?token=alpha%0A", &[], UnknownQuery),
                ("?token=%20alpha", &[], UnknownQuery),
                ("?token=Bearer%20alpha", &[], UnknownQuery),
                ("?token=", &[], MalformedQuery),
                ("?token", &[], MalformedQuery),
                ("?token=alpha%2", &[], MalformedQuery),
                ("?token=alpha&token=alpha", &[], MalformedQuery),
                ("?token=beta", &[ALPHA], DifferentQuery),
                ("?token=wrong", &[ALPHA], DifferentQuery),
                ("?token=alpha", &[WRONG], DifferentQuery),
                ("?token=wrong", &[WRONG], UnknownQuery),
                ("?token=", &[ALPHA], MalformedQuery),
                ("?token=alpha", &[(AUTH, b"Basic YWxwaGE6")], Scheme),
                ("?token=alpha", &[(KEY, b"")], Malformed),
                ("?token=alpha", &[ALPHA, (KEY, b"beta")], Different),
                ("?tokens=alpha", &[WRONG], Unknown),
            ] {
                assert_eq!(judge(query, given), Err(refusal), "{query} {given:?}");
                let said = format!("{refusal} {refusal:?} {}", refusal.challenge());
                for token in ["alpha", "beta", "wrong", "ALPHA", "YWxwaGE6"] {
                    assert!(!said.contains(token), "{said}");
                }
            }
            let nothing = if in_body { Ok(KnownToken::NONE) } else { Err(NoHeader) };
            for query in ["", "?", "?Token=alpha", "?access_token=alpha", "?version=1"] {
                assert_eq!(judge(query, &[]), nothing, "{query}");
            }
        }
    }
}
