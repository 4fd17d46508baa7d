//! The admin page `/`: the figures of `/metrics`, `/readyz`, `/peers` and `/settings` for people.
//!
//! It is one file, put together here from those in `page/`, and holds nothing of this server: the
//! browser computes all of it. Its policy lets the browser run this script alone and ask this
//! listener alone, so that a name in a table can neither become code nor take a token elsewhere.

use std::sync::LazyLock;

use bytes::Bytes;
use http::Response;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http_body_util::Full;
use sha2::{Digest as _, Sha256};

const TEMPLATE: &str = include_str!("page/index.html");
/// Where the style stands in the template, …
const STYLE_MARK: &str = "/*{style}*/";
/// … and the script.
const SCRIPT_MARK: &str = "/*{script}*/";

/// The page as it is sent, and the policy that fits it.
struct Assembled {
    html: Bytes,
    policy: HeaderValue,
}

static PAGE: LazyLock<Assembled> = LazyLock::new(|| {
    let style = [include_str!("page/uplot.min.css"), "\n", include_str!("page/page.css")].concat();
    let script = [
        "'use strict';\n/*\n",
        include_str!("page/uplot.LICENSE"),
        "\n*/\n",
        include_str!("page/uplot.min.js"),
        "\n",
        include_str!("page/figures.js"),
        include_str!("page/page.js"),
    ]
    .concat();
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'",
        source_hash(&script),
        source_hash(&style)
    );
    let html = TEMPLATE.replacen(STYLE_MARK, &style, 1).replacen(SCRIPT_MARK, &script, 1);
    Assembled {
        html: html.into(),
        policy: policy.try_into().expect("a policy is of visible ASCII characters"),
    }
});

/// How a policy names the text of an element.
fn source_hash(text: &str) -> String {
    format!("sha256-{}", aws_smithy_types::base64::encode(Sha256::digest(text)))
}

/// The answer to `GET /`.
pub(super) fn answer() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(PAGE.html.clone()));
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        // Another version of the server has another page, and another policy.
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, PAGE.policy.clone());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text between the first `open` and the next `close`.
    fn between<'a>(text: &'a str, open: &str, close: &str) -> &'a str {
        text.split_once(open).expect(open).1.split_once(close).expect(close).0
    }

    /// What a browser compares: the text of each element, which ends at the first end tag.
    #[test]
    fn the_policy_allows_the_only_style_and_the_only_script() {
        let html = std::str::from_utf8(&PAGE.html).unwrap();
        let policy = PAGE.policy.to_str().unwrap();
        for (name, open, close) in
            [("style", "<style>", "</style>"), ("script", "<script>", "</script>")]
        {
            assert_eq!(html.matches(&format!("<{name}")).count(), 1, "{name}");
            assert_eq!(html.matches(close).count(), 1, "{name}");
            let hash = source_hash(between(html, open, close));
            assert!(policy.contains(&format!("{name}-src '{hash}'")), "{name}: {policy}");
        }
        assert!(!html.contains(STYLE_MARK) && !html.contains(SCRIPT_MARK));
        // A browser turns these into line feeds, and then the hash is another one.
        assert!(!html.contains('\r'));
    }

    #[test]
    fn nothing_of_the_page_is_elsewhere() {
        let html = std::str::from_utf8(&PAGE.html).unwrap();
        let attributes =
            [" src=", "srcset=", "@import", "url(", "style=\"", "onclick", "<link rel=\"style"];
        for attribute in attributes {
            assert!(!html.contains(attribute), "{attribute}");
        }
        let links: Vec<_> = html.match_indices(" href=\"").collect();
        for (at, mark) in links {
            let target = html[at + mark.len()..].split('"').next().unwrap();
            assert!(["#main", "data:,", "/metrics"].contains(&target), "{target}");
        }
        assert!(html.contains("Permission is hereby granted"), "the license of uPlot");
    }
}
