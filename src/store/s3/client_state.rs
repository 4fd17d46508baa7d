//! The state that both S3 clients have on one executor: credentials, the store's clock, and the
//! rules by which refusals are classified. So a payload has the same outcome with either client.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_smithy_async::time::TimeSource;

use super::clock::ClockOffset;
use super::connector;
use super::credential_snapshot::CredentialSnapshot;
use super::dial::{ConnectionError, ServerAddress};
use super::direct::{ErrorDocument, error_document};
use super::masked;
use super::shared::{PublishedCredentials, S3Shared};
use crate::rt;
use crate::store::classify::Cause;
use crate::store::{Class, PutError, classify};

/// For how long one reading of the wall clock dates signatures, whose times are whole seconds: stores
/// accept them for 15 minutes.
const SECOND_KEPT: Duration = Duration::from_millis(100);

/// One executor's credentials and clock for the store.
pub(super) struct ClientState {
    pub(super) shared: Arc<S3Shared>,
    pub(super) credentials: CredentialSnapshot,
    pub(super) clock: ClockOffset,
    wall: SignatureClock,
}

/// The wall clock as it dates signatures: when it was last read, and what it showed.
#[derive(Default)]
struct SignatureClock(Cell<Option<(Instant, SystemTime)>>);

impl SignatureClock {
    /// The time at `now` of the monotonic clock. It is read by `read` again after [`SECOND_KEPT`].
    fn at(&self, now: Instant, read: impl FnOnce() -> SystemTime) -> SystemTime {
        match self.0.get() {
            Some((read_at, wall)) if now.saturating_duration_since(read_at) < SECOND_KEPT => wall,
            _ => {
                let wall = read();
                self.0.set(Some((now, wall)));
                wall
            }
        }
    }
}

/// A response that reports no success.
pub(super) struct ErrorReply<'a> {
    pub(super) status: u16,
    pub(super) code: Option<&'a str>,
    pub(super) message: Option<&'a str>,
    pub(super) date: Option<&'a str>,
    pub(super) body: &'a [u8],
    /// See [`request_ids`].
    pub(super) request_ids: Option<Box<str>>,
}

impl ClientState {
    pub(super) fn new(shared: Arc<S3Shared>) -> ClientState {
        let (credentials, clock) = (CredentialSnapshot::new(&shared), shared.clock.detached());
        ClientState { shared, credentials, clock, wall: SignatureClock::default() }
    }

    /// Reads the current credentials. Expired ones are an error at once, without a round trip. They
    /// count as expired only if both this host's clock and the store's say so: either may be wrong,
    /// and only a response shows which.
    pub(super) fn with_fresh_credentials<R>(
        &self,
        read: impl FnOnce(&PublishedCredentials) -> R,
    ) -> Result<R, PutError> {
        self.credentials.with_current(|published| {
            let is_fresh = |at| at > rt::wall_clock().min(self.clock.now());
            if published.credentials.expiry().is_none_or(is_fresh) {
                return Ok(read(published));
            }
            self.shared.request_newer_credentials(published.generation);
            Err(self.no_fresh_credentials())
        })
    }

    fn no_fresh_credentials(&self) -> PutError {
        if let Some(why) = self.shared.missing_credentials() {
            return PutError::new(Class::StoreWide, "NoCredentials", classify::bounded(&why));
        }
        let expired = "the credentials have expired and newer ones are not loaded yet";
        PutError::new(Class::Transient, "ExpiredCredentials", expired)
    }

    /// The store's time for a signature, in seconds since 1970, as far as it is known. `now` is the
    /// monotonic clock's time: the wall clock is read again after [`SECOND_KEPT`].
    pub(super) fn unix_s(&self, now: Instant) -> u64 {
        let wall = self.wall.at(now, rt::wall_clock);
        self.clock.at(wall).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    /// Where a 307 points, if it may be followed: to an absolute URL, and never from https to http.
    pub(super) fn redirect(&self, location: &str) -> Option<(ServerAddress, http::Uri)> {
        let uri = location.parse().ok()?;
        let target = ServerAddress::of(&uri)?;
        (target.https || !self.shared.https()).then_some((target, uri))
    }

    /// What the store or a proxy says, without the secrets that they are sent.
    pub(super) fn masked<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let known = self.credentials.known();
        let secrets: Vec<&str> = known
            .iter()
            .flat_map(|of| {
                let token = of.session_token().unwrap_or_default();
                [of.access_key_id(), of.secret_access_key(), token]
            })
            .collect();
        let text = masked::mask(text, &secrets);
        match self.shared.proxy() {
            Some(proxy) => Cow::Owned(proxy.masked(&text)),
            None => text,
        }
    }

    /// The outcome for the worker of `refusal`, the response to a request signed with credentials
    /// of `generation`.
    pub(super) fn outcome_of(
        &self,
        refusal: &ErrorReply<'_>,
        generation: u64,
    ) -> Result<(), PutError> {
        let message = refusal.message.or_else(|| json_text(refusal.body)).unwrap_or_default();
        // Before they are cut, because a part of a secret would not be found.
        let code = &*self.masked(refusal.code.unwrap_or_default());
        let message = &*self.masked(message);
        // No two payloads share a key, so the object that exists is this one. Without
        // `S3_IF_NONE_MATCH` no condition was sent, and such a response means something else.
        let conditional = self.shared.target().options.if_none_match;
        if conditional && classify::is_there_already(refusal.status, code, message) {
            return Ok(());
        }
        let cause = Cause::of(refusal.status, code, message);
        let mut error = classify::reply_error(refusal.status, code, message);
        let ids = refusal.request_ids.as_deref();
        error.request_ids = ids.map(|ids| self.masked(ids).into());
        if let Some(proxy) = self.shared.http_proxy() {
            error.message = format!("{} (through proxy {proxy})", error.message);
        }
        if cause == Cause::Clock || self.clock.is_shifted() {
            self.clock.learn(refusal.date);
        }
        if classify::wants_new_credentials(refusal.status, cause) {
            self.shared.request_newer_credentials(generation);
            if cause.is_of_credentials()
                && self.credentials.with_current(|published| published.stuck)
            {
                error.class = Class::StoreWide;
            }
        }
        Err(error)
    }
}

/// A JSON body, which S3 never sends: it comes from another API of the same provider (B2,
/// Cloudflare, Google) or from a gateway, and says more than the status.
fn json_text(body: &[u8]) -> Option<&str> {
    std::str::from_utf8(body).ok().filter(|text| text.trim_start().starts_with('{'))
}

/// Headers by which a store's support finds a request: S3's two, which MinIO, Ceph, B2 and Wasabi
/// send too, then Cloudflare's and Google's.
const REQUEST_ID_HEADERS: [&str; 4] =
    ["x-amz-request-id", "x-amz-id-2", "cf-ray", "x-guploader-uploadid"];
/// Longest id kept, bytes; those of AWS have up to 76.
const REQUEST_ID_BYTES_MAX: usize = 160;

/// The ids of a request, `name value` each: from the response's headers, or else from `RequestId`
/// and `HostId` in its error document.
pub(super) fn request_ids<'a>(
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

/// The worker's view of a failure to get a response.
pub(super) fn unanswered(error: &ConnectionError) -> PutError {
    let (class, code) = classify::connection_error(error);
    let text = classify::bounded(&connector::with_sources(error));
    let congestion = classify::is_congestion(error);
    PutError { congestion, ..PutError::new(class, code, text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_is_read_once_in_a_while_and_followed_wherever_it_goes() {
        let (clock, start) = (SignatureClock::default(), rt::now());
        let reads = Cell::new(0);
        let ms = Duration::from_millis;
        let kept = SECOND_KEPT.as_millis() as u64;
        // The monotonic clock, what the wall clock shows then, and which is used.
        for (at, wall, used, read) in [
            (0, 5_000, 5_000, 1),
            (1, 6_000, 5_000, 1),
            (kept - 1, 7_000, 5_000, 1),
            (kept, 8_000, 8_000, 2),
            (kept + 1, 9_000, 8_000, 2),
            // Set back, also before 1970 was a day old.
            (2 * kept, 1_000, 1_000, 3),
            (9 * kept, 0, 0, 4),
            // A time that was read before another caller's.
            (8 * kept, 3_000, 0, 4),
        ] {
            let read_wall = || {
                reads.set(reads.get() + 1);
                UNIX_EPOCH + ms(wall)
            };
            assert_eq!(clock.at(start + ms(at), read_wall), UNIX_EPOCH + ms(used), "at {at}");
            assert_eq!(reads.get(), read, "at {at}");
        }
    }

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
