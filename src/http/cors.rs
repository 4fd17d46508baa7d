//! What this server says to browsers: the CORS protocol of the Fetch standard (WHATWG, *Fetch*,
//! section 3.3), for the origins of `CORS_ORIGINS`.
//!
//! - Every answer to a request of a listed origin says so, refusals included, because a browser
//!   hides the status and the headers of any other answer from the page's script. Exceptions are
//!   the answers before the head was read, which no browser causes.
//! - It is no access control. A request of another origin is served as usual and only its answer
//!   says nothing: browsers send such requests without asking (a form, `no-cors`), other clients
//!   send any origin or none, and pages of this server's own host send one that nobody has listed.
//!   Who may post is for `TOKENS_FILE` to say.
//! - A preflight is answered whatever its path and method are, so that the script sees the answer to
//!   its request, for instance a 404. It needs no token, because browsers send none with it.
//! - Credentials are allowed for listed origins, because `sendBeacon` always includes them, and
//!   without that a beacon with `application/json` would not be sent. This server itself ignores
//!   cookies. They are never allowed with `*`, as the standard wants it.
//! - `access-control-request-private-network` (WICG, *Private Network Access*, a draft that browsers
//!   have given up) is not answered, so a browser that asks keeps public pages from a private
//!   server.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue, ORIGIN, VARY,
};
use http::request::Parts;
use http::{Method, StatusCode};

use super::fields::{Fields, KnownField};
use crate::config::{Config, CorsOrigins, MetaEntry};
use crate::key::RequestSource;

/// How long a browser may keep the answer to a preflight, in seconds: as long as Chromium does at
/// most. Firefox would keep it for a day.
const MAX_AGE_S: HeaderValue = HeaderValue::from_static("7200");

/// The methods that this server's paths have, beside `GET` and `HEAD`, which need no permission.
const METHODS: HeaderValue = HeaderValue::from_static("POST");

/// The request headers that this server reads and that a script can set, whatever the settings.
const REQUEST_HEADERS: [&str; 5] =
    ["authorization", "content-encoding", "content-type", "millrace-ack", "x-api-key"];

/// The headers of answers, beyond those that every script may read.
const ANSWER_HEADERS: HeaderValue = HeaderValue::from_static(
    "accept-encoding, allow, date, ratelimit, ratelimit-policy, retry-after, www-authenticate",
);

/// `CORS_ORIGINS`, as one core's requests see it.
pub struct Cors {
    origins: CorsOrigins,
    /// What a request may have. Not what a preflight asks for: a header that means nothing here is a
    /// mistake that the page's author should see.
    request_headers: HeaderValue,
}

/// What the answer to a request says to browsers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Visibility {
    /// Scripts of every origin may read it.
    Everyone,
    /// Scripts of the request's origin may. A copy of its header, and boxed, because the head of
    /// the request is freed while its body arrives.
    Origin(Box<HeaderValue>),
    /// The request's origin is not listed, or it has none.
    Nobody,
}

impl Cors {
    /// `None` if browsers are told nothing.
    pub fn of(config: &Config) -> Option<Cors> {
        let origins = config.cors_origins.clone()?;
        let mut names: Vec<&str> = REQUEST_HEADERS.to_vec();
        names.extend(config.keys.request_sources().into_iter().filter_map(|source| match source {
            RequestSource::Header(name) => Some(name),
            _ => None,
        }));
        names.extend(config.meta.iter().filter_map(|entry| match entry {
            MetaEntry::Header(name) => Some(name.as_str()),
            _ => None,
        }));
        names.sort_unstable();
        names.dedup();
        let request_headers = names.join(", ").try_into().expect("names of headers");
        Some(Cors { origins, request_headers })
    }

    /// Judges the origin of a request.
    pub(super) fn visibility(&self, fields: &impl Fields) -> Visibility {
        let CorsOrigins::List(list) = &self.origins else { return Visibility::Everyone };
        let mut origins = fields.values(KnownField::Origin);
        // A browser sends one.
        let (Some(origin), None) = (origins.next(), origins.next()) else {
            return Visibility::Nobody;
        };
        match list.iter().any(|listed| listed.matches(origin)) {
            true => HeaderValue::from_bytes(origin)
                .map_or(Visibility::Nobody, |copy| Visibility::Origin(Box::new(copy))),
            false => Visibility::Nobody,
        }
    }

    /// Whether `head` asks for permission to send another request, and if so, whether it is given.
    pub(super) fn preflight(&self, head: &Parts) -> Option<Preflight> {
        let headers = &head.headers;
        let asks = head.method == Method::OPTIONS
            && headers.contains_key(ORIGIN)
            && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        asks.then(|| match self.visibility(headers) {
            Visibility::Everyone | Visibility::Origin(_) => Preflight::Allowed,
            Visibility::Nobody => Preflight::Refused,
        })
    }

    /// Adds to an answer with this status what browsers are to know.
    pub(super) fn add_to(
        &self,
        headers: &mut HeaderMap,
        status: StatusCode,
        visibility: Visibility,
    ) {
        if visibility != Visibility::Everyone {
            headers.insert(VARY, HeaderValue::from_static("origin"));
        }
        let origin = match visibility {
            Visibility::Nobody => return,
            Visibility::Everyone => HeaderValue::from_static("*"),
            Visibility::Origin(origin) => {
                headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
                *origin
            }
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        // Only a preflight is answered so, and no script reads that answer.
        if status == StatusCode::NO_CONTENT {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, self.request_headers.clone());
            headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE_S);
        } else {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, ANSWER_HEADERS);
        }
    }
}

/// The answer to a preflight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preflight {
    Allowed,
    /// The origin is not listed.
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const LISTED: &str = "https://example.com, https://*.example.org";

    fn cors(origins: &str) -> Cors {
        let config = Config::from_settings(&[("CORS_ORIGINS", origins)]).unwrap();
        Cors::of(&config).unwrap()
    }

    fn head(method: &str, fields: &[(&str, &[u8])]) -> Parts {
        let mut request = Request::builder().method(method).uri("/payloads");
        for (name, value) in fields {
            request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn an_answer_is_for_the_one_listed_origin() {
        let cors = cors(LISTED);
        for origin in ["https://example.com", "https://a.example.org"] {
            let seen = cors.visibility(&head("POST", &[("origin", origin.as_bytes())]).headers);
            let Visibility::Origin(value) = seen else { panic!("{origin}: {seen:?}") };
            assert_eq!(*value, origin);
        }
        let twice: &[(&str, &[u8])] =
            &[("origin", b"https://example.com"), ("origin", b"https://example.com")];
        for fields in [
            &[][..],
            &[("origin", &b""[..])],
            &[("origin", b"null")],
            &[("origin", b"*")],
            &[("origin", b"https://evil.com")],
            &[("origin", b"https://example.com.evil.com")],
            &[("origin", b"https://evilexample.com")],
            &[("origin", b"https://a.b.example.org")],
            &[("origin", b"https://example.org")],
            &[("origin", b"https://example.com, https://example.com")],
            &[("origin", b"https://example.com https://evil.com")],
            &[("origin", b"https://ex\xe4mple.com")],
            &[("referer", b"https://example.com"), ("host", b"example.com")],
            twice,
        ] {
            let seen = cors.visibility(&head("POST", fields).headers);
            assert_eq!(seen, Visibility::Nobody, "{fields:?}");
        }
        for fields in [&[][..], &[("origin", &b"null"[..])], twice] {
            let seen = self::cors("*").visibility(&head("POST", fields).headers);
            assert_eq!(seen, Visibility::Everyone, "{fields:?}");
        }
    }

    #[test]
    fn a_preflight_is_an_options_with_an_origin_and_a_method_to_come() {
        use Preflight::{Allowed, Refused};
        const FROM: (&str, &[u8]) = ("origin", b"https://example.com");
        const EVIL: (&str, &[u8]) = ("origin", b"https://evil.com");
        const ASKS: (&str, &[u8]) = ("access-control-request-method", b"POST");
        const FIELDS: (&str, &[u8]) = ("access-control-request-headers", b"x-api-key, evil");
        const PRIVATE: (&str, &[u8]) = ("access-control-request-private-network", b"true");
        for (method, fields, listed, any) in [
            ("OPTIONS", &[FROM, ASKS][..], Some(Allowed), Some(Allowed)),
            ("OPTIONS", &[FROM, ASKS, FIELDS, PRIVATE], Some(Allowed), Some(Allowed)),
            (
                "OPTIONS",
                &[FROM, ("access-control-request-method", b"DELETE")],
                Some(Allowed),
                Some(Allowed),
            ),
            ("OPTIONS", &[EVIL, ASKS], Some(Refused), Some(Allowed)),
            ("OPTIONS", &[("origin", b"null"), ASKS], Some(Refused), Some(Allowed)),
            ("OPTIONS", &[FROM, FROM, ASKS], Some(Refused), Some(Allowed)),
            ("OPTIONS", &[FROM, EVIL, ASKS], Some(Refused), Some(Allowed)),
            ("OPTIONS", &[FROM], None, None),
            ("OPTIONS", &[ASKS], None, None),
            ("OPTIONS", &[FROM, FIELDS], None, None),
            ("OPTIONS", &[], None, None),
            ("POST", &[FROM, ASKS], None, None),
            ("GET", &[FROM, ASKS], None, None),
            ("options", &[FROM, ASKS], None, None),
        ] {
            let head = head(method, fields);
            assert_eq!(cors(LISTED).preflight(&head), listed, "{method} {fields:?}");
            assert_eq!(cors("*").preflight(&head), any, "{method} {fields:?}");
        }
    }

    #[test]
    fn headers_that_key_and_meta_read_may_be_set() {
        let config = Config::from_settings(&[
            ("CORS_ORIGINS", "*"),
            ("KEY", "{header:x-tenant}/{unix_nanos}-{node}-{core}-{seq}.json"),
            ("META", "client,header:Content-Type,header:X-Request-Id,header:x-tenant"),
        ]);
        let mut headers = HeaderMap::new();
        let cors = Cors::of(&config.unwrap()).unwrap();
        cors.add_to(&mut headers, StatusCode::NO_CONTENT, Visibility::Everyone);
        assert_eq!(
            headers[ACCESS_CONTROL_ALLOW_HEADERS],
            "authorization, content-encoding, content-type, millrace-ack, x-api-key, x-request-id, x-tenant"
        );
    }

    #[test]
    fn who_may_read_is_said_in_full() {
        let said = |visibility: Visibility, status| {
            let mut headers = HeaderMap::new();
            cors(LISTED).add_to(&mut headers, status, visibility);
            let mut said: Vec<_> = headers
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
                .collect();
            said.sort();
            said
        };
        let exposed =
            format!("access-control-expose-headers: {}", ANSWER_HEADERS.to_str().unwrap());
        let origin = || Visibility::Origin(Box::new(HeaderValue::from_static("https://a.com")));
        let own = [
            "access-control-allow-credentials: true",
            "access-control-allow-origin: https://a.com",
        ];
        for status in [StatusCode::OK, StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE] {
            let all = said(Visibility::Everyone, status);
            assert_eq!(all, ["access-control-allow-origin: *", &exposed], "never credentials");
            assert_eq!(said(origin(), status), [own[0], own[1], &exposed, "vary: origin"]);
            assert_eq!(said(Visibility::Nobody, status), ["vary: origin"]);
        }
        let asked = StatusCode::NO_CONTENT;
        let granted = [
            "access-control-allow-headers: authorization, content-encoding, content-type, \
             millrace-ack, x-api-key",
            "access-control-allow-methods: POST",
        ];
        let age = "access-control-max-age: 7200";
        let all = said(Visibility::Everyone, asked);
        assert_eq!(all, [granted[0], granted[1], "access-control-allow-origin: *", age]);
        let listed = said(origin(), asked);
        assert_eq!(listed, [own[0], granted[0], granted[1], own[1], age, "vary: origin"]);
        assert_eq!(said(Visibility::Nobody, StatusCode::FORBIDDEN), ["vary: origin"]);
    }
}
