//! What both S3 clients do with credentials, the store's clock and its refusals, so that a payload
//! fares the same on either.

use std::sync::Arc;
use std::time::SystemTime;

use aws_smithy_async::time::TimeSource;

use super::clock::ClockOffset;
use super::connector;
use super::dial::{LinkError, Origin};
use super::direct::{ErrorDocument, error_document};
use super::keys::SnapshotKeys;
use crate::rt;
use crate::store::classify::Cause;
use crate::store::s3::{AwsShared, Keys};
use crate::store::{Class, PutError, classify};

/// One core's standing with the store.
pub(crate) struct Account {
    pub(crate) shared: Arc<AwsShared>,
    pub(crate) keys: SnapshotKeys,
    pub(crate) clock: ClockOffset,
}

/// An answer that is no success.
pub(crate) struct Refusal<'a> {
    pub(crate) status: u16,
    pub(crate) code: Option<&'a str>,
    pub(crate) message: Option<&'a str>,
    pub(crate) date: Option<&'a str>,
    pub(crate) body: &'a [u8],
    /// See [`request_ids`].
    pub(crate) request_ids: Option<Box<str>>,
}

impl Account {
    pub(crate) fn new(shared: Arc<AwsShared>) -> Account {
        let (keys, clock) = (SnapshotKeys::new(&shared), shared.clock.detached());
        Account { shared, keys, clock }
    }

    /// Reads the current credentials; those known to be expired are not worth a round trip. Known means: by this host's
    /// clock and by the store's, for either may be wrong, and only an answer says which.
    pub(crate) fn fresh_keys<R>(&self, read: impl FnOnce(&Keys) -> R) -> Result<R, PutError> {
        self.keys.current(|keys| {
            if keys
                .credentials
                .expiry()
                .is_none_or(|at| at > rt::wall_clock().min(self.clock.now()))
            {
                return Ok(read(keys));
            }
            self.shared.want_newer_keys(keys.generation);
            Err(self.no_fresh_keys())
        })
    }

    fn no_fresh_keys(&self) -> PutError {
        if let Some(why) = self.shared.no_keys() {
            return PutError::new(Class::StoreWide, "NoCredentials", classify::bounded(&why));
        }
        let expired = "the credentials have expired and newer ones are not there yet";
        PutError::new(Class::Transient, "ExpiredCredentials", expired)
    }

    /// The store's time, as far as it is known.
    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Where a 307 points, if it may be followed: an absolute address, and not from https to http.
    pub(crate) fn redirect(&self, location: &str) -> Option<(Origin, http::Uri)> {
        let uri = location.parse().ok()?;
        let target = Origin::of(&uri)?;
        (target.https || !self.shared.https()).then_some((target, uri))
    }

    /// The worker's view of `refusal`, the answer to a request signed with credentials of
    /// `generation`.
    pub(crate) fn refused(&self, refusal: &Refusal<'_>, generation: u64) -> Result<(), PutError> {
        let code = refusal.code.unwrap_or_default();
        let message = refusal.message.or_else(|| json_text(refusal.body)).unwrap_or_default();
        // No two payloads share a key, so what is there already is this one. Without `S3_IF_NONE_MATCH` no condition
        // was sent, and such an answer says something else.
        let conditional = self.shared.target().options.if_none_match;
        if conditional && classify::is_there_already(refusal.status, code, message) {
            return Ok(());
        }
        let cause = Cause::of(refusal.status, code, message);
        let mut error = classify::reply_error(refusal.status, code, message);
        error.request_ids = refusal.request_ids.clone();
        if let Some(proxy) = self.shared.http_proxy() {
            error.message = format!("{} (through proxy {proxy})", error.message);
        }
        if cause == Cause::Clock || self.clock.is_shifted() {
            self.clock.take(refusal.date);
        }
        if classify::wants_new_credentials(refusal.status, cause) {
            self.shared.want_newer_keys(generation);
            if cause.is_of_credentials() && self.keys.current(|keys| keys.stuck) {
                error.class = Class::StoreWide;
            }
        }
        Err(error)
    }
}

/// A body of JSON, which S3 never sends: that of another API of the same provider, as at B2, Cloudflare and Google, or
/// of a gateway. It says more than the status.
fn json_text(body: &[u8]) -> Option<&str> {
    std::str::from_utf8(body).ok().filter(|text| text.trim_start().starts_with('{'))
}

/// Headers by which a store's support finds a request: S3's two, as MinIO, Ceph, B2 and Wasabi send them too, then
/// Cloudflare's and Google's.
const REQUEST_ID_HEADERS: [&str; 4] =
    ["x-amz-request-id", "x-amz-id-2", "cf-ray", "x-guploader-uploadid"];
/// Longest id kept, bytes; those of AWS have up to 76.
const REQUEST_ID_BYTES_MAX: usize = 160;

/// The ids of a request, `name value` each, from its answer's headers, or else from its error document's `RequestId`
/// and `HostId`.
pub(crate) fn request_ids<'a>(
    header: impl Fn(&str) -> Option<&'a str>,
    body: &[u8],
) -> Option<Box<str>> {
    let from_headers = REQUEST_ID_HEADERS.iter().filter_map(|name| Some((*name, header(name)?)));
    let ids = listed(from_headers);
    if !ids.is_empty() {
        return Some(ids.into());
    }
    let ErrorDocument { request_id, host_id, .. } = error_document(body);
    let in_body = [("RequestId", request_id), ("HostId", host_id)];
    let ids = listed(in_body.iter().filter_map(|(name, id)| Some((*name, id.as_deref()?))));
    (!ids.is_empty()).then(|| ids.into())
}

fn listed<'a>(ids: impl Iterator<Item = (&'static str, &'a str)>) -> String {
    let printable = |id: &str| id.bytes().all(|byte| byte.is_ascii_graphic());
    let mut text = String::new();
    for (name, id) in ids {
        if id.is_empty() || id.len() > REQUEST_ID_BYTES_MAX || !printable(id) {
            continue;
        }
        let comma = if text.is_empty() { "" } else { ", " };
        text.push_str(&format!("{comma}{name} {id}"));
    }
    text
}

/// The worker's view of a failure to get an answer.
pub(crate) fn unanswered(error: &LinkError) -> PutError {
    let (class, code) = classify::link(error);
    let text = classify::bounded(&connector::with_sources(error));
    let congestion = classify::is_congestion(error);
    PutError { congestion, ..PutError::new(class, code, text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_found_wherever_they_stand() {
        let aws = [("x-amz-request-id", "R1"), ("x-amz-id-2", "h+/=")];
        let body = b"<Error><Code>c</Code><RequestId>B1</RequestId><HostId>B2</HostId></Error>";
        let long = "x".repeat(REQUEST_ID_BYTES_MAX + 1);
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [u8], Option<&'a str>);
        let table: &[Case<'_>] = &[
            (&aws, body, Some("x-amz-request-id R1, x-amz-id-2 h+/=")),
            (&aws[1..], b"", Some("x-amz-id-2 h+/=")),
            (&[("cf-ray", "8f0-AMS")], b"", Some("cf-ray 8f0-AMS")),
            (&[("x-guploader-uploadid", "ABg5")], b"", Some("x-guploader-uploadid ABg5")),
            (&[], body, Some("RequestId B1, HostId B2")),
            (&[("x-amz-request-id", "")], b"<Error><RequestId/></Error>", None),
            (&[("x-amz-request-id", &long), ("x-amz-id-2", "a b")], b"{}", None),
            (&[("date", "today")], b"", None),
        ];
        for (headers, body, expected) in table {
            let header = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
            assert_eq!(request_ids(header, body).as_deref(), *expected, "{headers:?}");
        }
    }
}
