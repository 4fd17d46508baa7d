//! Which token a request has, and whether it is accepted.
//!
//! A header is judged with the request's head, before any of the body is read; it decides alone,
//! and what the envelope says does not matter. Without a header the token is in the envelope, if
//! `TOKEN_IN_BODY` allows that.

use http::header::{AUTHORIZATION, HeaderMap, HeaderName};
use subtle::ConstantTimeEq as _;

use super::{KnownToken, SharedTokens, TokenView};
use crate::metrics::tokens::{CoreTokenCells, TokenId};

/// The header of a token without a scheme.
static API_KEY: HeaderName = HeaderName::from_static("x-api-key");

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
}

impl TokenRefusal {
    /// The value of `www-authenticate`. A request that had no bearer token in a header gets no
    /// error code (RFC 6750, section 3.1).
    pub fn challenge(self) -> &'static str {
        match self {
            TokenRefusal::NoHeader | TokenRefusal::Envelope | TokenRefusal::Scheme => "Bearer",
            TokenRefusal::Unknown | TokenRefusal::Malformed | TokenRefusal::Different => {
                r#"Bearer error="invalid_token""#
            }
        }
    }
}

/// Judges the tokens of one core's requests, and counts what they send.
pub struct TokenGate {
    accepted: TokenView,
    /// `TOKEN_IN_BODY`.
    in_body: bool,
    cells: CoreTokenCells,
}

impl TokenGate {
    /// The gate of the core with this index.
    pub fn new(shared: &SharedTokens, core: usize, in_body: bool) -> TokenGate {
        let cells = shared.metrics.core(core);
        TokenGate { accepted: TokenView::new(shared.set.clone()), in_body, cells }
    }

    /// Judges what a head says. [`KnownToken::NONE`]: nothing, so the envelope decides.
    ///
    /// # Errors
    /// The header's token is not accepted, or there must be one.
    pub fn judge_head(&self, headers: &HeaderMap) -> Result<KnownToken, TokenRefusal> {
        match token_of(headers)? {
            Some(token) => self.accepted.find(token).ok_or(TokenRefusal::Unknown),
            None if self.in_body => Ok(KnownToken::NONE),
            None => Err(TokenRefusal::NoHeader),
        }
    }

    /// Judges the token of an envelope, unless the head's is `known`: then the quota was judged with
    /// the head, and is not returned.
    ///
    /// # Errors
    /// There is none, or it is not accepted.
    pub fn judge_envelope(
        &self,
        known: TokenId,
        given: Option<&str>,
    ) -> Result<KnownToken, TokenRefusal> {
        if known != TokenId::NONE {
            return Ok(KnownToken { id: known, quota: None });
        }
        let found = given.and_then(|token| self.accepted.find(token.as_bytes()));
        found.ok_or(TokenRefusal::Envelope)
    }

    /// The counters of this core.
    pub fn cells(&self) -> CoreTokenCells {
        self.cells
    }
}

/// The token that the head has in one header, or the same in both.
fn token_of(headers: &HeaderMap) -> Result<Option<&[u8]>, TokenRefusal> {
    let authorization = only(headers, &AUTHORIZATION)?.map(bearer).transpose()?;
    let api_key = only(headers, &API_KEY)?;
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

/// The value of a header that may be there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a [u8]>, TokenRefusal> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|value| value.as_bytes().trim_ascii());
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
    use http::HeaderValue;

    use super::super::file;
    use super::*;
    use crate::metrics::tokens::TokenMetrics;

    fn gate(in_body: bool) -> (TokenGate, &'static TokenMetrics) {
        let metrics = TokenMetrics::leaked(1);
        let text = "alpha;name=a\nbeta;name=b\na,b\ngrüße\n".as_bytes();
        let set = file::accepted(text, &metrics.names).unwrap();
        let shared = SharedTokens { set: Arc::new(ArcSwap::from_pointee(set)), metrics };
        (TokenGate::new(&shared, 0, in_body), metrics)
    }

    fn headers(given: &[(&str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

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
                let id = gate.judge_head(&headers(given)).unwrap().id;
                assert_eq!(metrics.names.shown(id), Some(name), "{given:?}");
                for envelope in [None, Some("wrong"), Some("beta")] {
                    let judged = gate.judge_envelope(id, envelope).map(|known| known.id);
                    assert_eq!(judged, Ok(id), "the header decides");
                }
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
                let refused = gate.judge_head(&headers(given));
                assert_eq!(refused, Err(refusal), "{given:?}");
                let text = refusal.to_string();
                assert!(text.contains("token") || text.contains("TOKEN"), "{text}");
            }
        }
    }

    #[test]
    fn without_a_header_the_envelope_decides_where_it_may() {
        let (gate, metrics) = gate(true);
        let none = HeaderMap::new();
        assert_eq!(gate.judge_head(&none), Ok(KnownToken::NONE));
        let judge = |token| gate.judge_envelope(TokenId::NONE, token);
        assert_eq!(metrics.names.shown(judge(Some("beta")).unwrap().id), Some("b"));
        assert!(judge(Some("grüße")).is_ok());
        for wrong in [None, Some(""), Some("wrong"), Some(" alpha"), Some("alpha\n")] {
            assert_eq!(judge(wrong), Err(TokenRefusal::Envelope), "{wrong:?}");
        }
        let (gate, _) = self::gate(false);
        assert_eq!(gate.judge_head(&none), Err(TokenRefusal::NoHeader));
    }
}
