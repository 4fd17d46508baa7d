//! What a request says about all of its payloads, as far as `KEY` and `META` want it.
//!
//! Headers are dropped before the body is read, so what is wanted of them is collected with the
//! head, and its `traceparent` whether it is wanted or not. The envelope adds its `version`, and
//! perhaps the token. If nothing is wanted and there is no trace, nothing is allocated.

use std::net::IpAddr;

use http::HeaderName;

use super::fields::{Fields, HeadView};
use super::meta::{MetaDraft, WRAPPED_ONCE_BYTES, Wrapper};
use super::traceparent;
use crate::config::{Config, MetaEntry};
use crate::key::{RequestSource, RequestValues, RequestValuesWriter, query_value};
use crate::queue::job::{Span, Stamp};

/// What the settings want of every request.
#[derive(Debug, Default)]
pub struct FactsWanted {
    version: bool,
    token: bool,
    headers: Vec<HeaderName>,
    /// Names of query parameters.
    queries: Vec<String>,
    meta: Vec<MetaEntry>,
}

/// What a request's head said.
#[derive(Debug, Default)]
pub(super) struct HeadFacts {
    values: RequestValuesWriter,
    /// `None`: its payloads are not wrapped.
    meta: Option<MetaDraft>,
}

/// What comes with the payloads of a request.
#[derive(Debug, Default)]
pub(super) struct RequestFacts {
    pub(super) values: RequestValues,
    /// When it came, if its payloads say so already, in nanoseconds since 1970.
    pub(super) received_at: Option<u64>,
}

impl FactsWanted {
    /// What these settings want.
    pub fn of(config: &Config) -> FactsWanted {
        let mut wanted = FactsWanted { meta: config.meta.clone(), ..FactsWanted::default() };
        for source in config.keys.request_sources() {
            match source {
                RequestSource::Version => wanted.version = true,
                RequestSource::Token => wanted.token = true,
                RequestSource::Header(name) => {
                    wanted.headers.push(name.parse().expect("KEY has names of headers only"));
                }
                RequestSource::Query(name) => wanted.queries.push(name.to_owned()),
            }
        }
        wanted
    }

    /// Collects what is wanted of a head, and its trace; `None` if there is nothing of these.
    pub(super) fn of_head(
        &self,
        head: &HeadView<'_, impl Fields>,
        client: impl FnOnce() -> Option<IpAddr>,
    ) -> Option<Box<HeadFacts>> {
        let is_of_body = self.headers.is_empty() && self.queries.is_empty() && self.meta.is_empty();
        let trace = traceparent::of_head(head.fields);
        (!is_of_body || trace.is_some()).then(|| self.collect(head, client(), trace))
    }

    #[inline(never)]
    fn collect(
        &self,
        head: &HeadView<'_, impl Fields>,
        client: Option<IpAddr>,
        trace: Option<&str>,
    ) -> Box<HeadFacts> {
        let mut values = RequestValuesWriter::default();
        if let Some(trace) = trace {
            values.note_trace(trace);
        }
        for name in &self.headers {
            values.add(RequestSource::Header(name.as_str()), &joined(head.fields, name));
        }
        for name in &self.queries {
            let found = head.query.and_then(|query| query_value(query, name));
            values.add(RequestSource::Query(name), found.as_deref().unwrap_or_default());
        }
        let is_wrapped = !self.meta.is_empty();
        if is_wrapped {
            values.mark_wrapped();
        }
        let meta = is_wrapped.then(|| MetaDraft::of(&self.meta, head.fields, client));
        Box::new(HeadFacts { values, meta })
    }

    /// Completes what the head said with what the envelope did. `token` is the name of the token.
    pub(super) fn complete<'n>(
        &self,
        head: Option<Box<HeadFacts>>,
        version: Option<&str>,
        token: impl Fn() -> Option<&'n str>,
    ) -> (RequestFacts, Option<Wrapper>) {
        if head.is_none() && !self.version && !self.token {
            return Default::default();
        }
        let HeadFacts { mut values, meta } = head.map_or_else(HeadFacts::default, |head| *head);
        if self.version {
            values.add(RequestSource::Version, version.unwrap_or_default());
        }
        if self.token {
            values.add(RequestSource::Token, token().unwrap_or_default());
        }
        let values = values.finish();
        match meta {
            None => (RequestFacts { values, received_at: None }, None),
            Some(meta) => {
                let now = Stamp::unix_nanos_now();
                let wrapper = meta.finish(token(), now);
                (RequestFacts { values, received_at: Some(now) }, Some(wrapper))
            }
        }
    }
}

impl HeadFacts {
    /// Whether the payloads of a small body can be wrapped in one turn of the core.
    pub(super) fn fit_one_turn(&self, payloads: &[Span]) -> bool {
        let fits = |meta: &MetaDraft| meta.wrapped_bytes_max(payloads) <= WRAPPED_ONCE_BYTES;
        self.meta.as_ref().is_none_or(fits)
    }
}

/// The value of a header. Several with that name are joined as RFC 9110, section 5.3 says, so that
/// none of them is taken for the only one. Bytes that are not UTF-8 are U+FFFD.
fn joined(fields: &impl Fields, name: &HeaderName) -> String {
    let mut text = String::new();
    for (number, value) in fields.named(name.as_str()).enumerate() {
        text.push_str(if number > 0 { ", " } else { "" });
        text.push_str(&String::from_utf8_lossy(value));
    }
    text
}
