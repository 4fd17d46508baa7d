//! What a failed put means: the one table by which both S3 clients classify failures.
//!
//! Status, code and message of a refusal give its [`Cause`]; the cause gives the class, the remedy,
//! and whether other credentials could help. Code and message decide first (`words`), then the
//! status. A refusal in neither table counts as store-wide, because that is the cheaper mistake: a
//! payload that should be a dead letter is held for up to `RETRY_FOR`, whereas a dead letter that a
//! corrected setting would have stored needs a replay by an operator.

mod words;

use super::s3::dial::ConnectionError;
use super::{Class, PutError};

/// Bytes kept of a store's own message.
const MESSAGE_BYTES_MAX: usize = 400;

/// What a store's refusal is about, whatever code the store has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The access key is not known.
    UnknownKey,
    /// The signature does not match the access key.
    WrongSecret,
    ExpiredCredentials,
    /// The credentials are refused without saying which part of them is wrong.
    BadCredentials,
    /// The credentials are valid but may not do this.
    Denied,
    /// The account is suspended, unpaid or not signed up.
    Account,
    /// The request's time is too far from the store's.
    Clock,
    /// The bucket is in another region, or the store calls its region by another name.
    Region,
    NoBucket,
    /// A limit set on the bucket or the account.
    Quota,
    /// The store's disks are full.
    Full,
    /// A header or feature that the store does not know.
    Unsupported,
    /// Server-side encryption: the method, or the key.
    Encryption,
    /// The store will never accept this object.
    Refused,
    /// The key has an object that must not be replaced.
    Locked,
    /// The key has an object, and the request asked not to replace one.
    Exists,
    /// Another operation on this key conflicted.
    Conflict,
    /// Too many requests.
    Busy,
    Unavailable,
    /// The request did not arrive as it was sent.
    Garbled,
    /// None of these.
    Other,
}

impl Cause {
    /// The cause of a response: `code` and `message` come from its error document, empty if it had
    /// none.
    pub(crate) fn of(status: u16, code: &str, message: &str) -> Cause {
        let message = message.to_ascii_lowercase();
        let fits = |words: &&words::Words| words.code == code && message.contains(words.message);
        match words::WORDS.iter().find(fits) {
            Some(words) => words.cause,
            // A key service that is slow recovers by itself; its refusals need an operator.
            None if code.starts_with("KMS") && code.contains("Throttling") => Cause::Busy,
            None if code.starts_with("KMS") || code.starts_with("CloudKms") => Cause::Encryption,
            None => Cause::of_status(status, code),
        }
    }

    fn of_status(status: u16, code: &str) -> Cause {
        match status {
            // Not an error, but not readable as a success either.
            ..=299 => Cause::Unavailable,
            301 => Cause::Region,
            307 => Cause::Unavailable,
            408 => Cause::Garbled,
            // A conflict with a code of its own may need an operator.
            409 if code.is_empty() => Cause::Conflict,
            412 if code.is_empty() => Cause::Exists,
            // Body or key too long.
            413 | 414 => Cause::Refused,
            423 | 425 | 429 => Cause::Busy,
            // nginx and MinIO: the client disconnected.
            499 => Cause::Garbled,
            501 => Cause::Unsupported,
            507 => Cause::Full,
            500.. => Cause::Unavailable,
            _ => Cause::Other,
        }
    }

    /// What it means for the object, and for those behind it.
    pub(super) fn class(self) -> Class {
        use Cause::*;
        match self {
            Refused | Locked => Class::Object,
            ExpiredCredentials | Clock | Conflict | Busy | Unavailable | Garbled => {
                Class::Transient
            }
            UnknownKey | WrongSecret | BadCredentials | Denied | Account | Region | NoBucket
            | Quota | Full | Unsupported | Encryption | Exists | Other => Class::StoreWide,
        }
    }

    /// What an operator can do about it; empty where nothing is known to help, or nothing is
    /// needed.
    pub(crate) fn remedy(self) -> &'static str {
        use Cause::*;
        match self {
            UnknownKey => {
                "correct the access key (AWS_ACCESS_KEY_ID, or the AWS profile); a corrected file is reloaded"
            }
            WrongSecret => {
                "correct the secret (AWS_SECRET_ACCESS_KEY, or the AWS profile); a corrected file is reloaded"
            }
            ExpiredCredentials => "renew the credentials; a changed file is reloaded",
            BadCredentials => "correct the credentials; a corrected file is reloaded",
            Denied => {
                "allow these credentials to put into the bucket (s3:PutObject, with S3_TAGS also s3:PutObjectTagging); \
                 with S3_EXPECTED_OWNER, check that it is the bucket's owner"
            }
            Account => "check the account at the store: it is suspended, unpaid or not signed up",
            Clock => "set this host's time, or run NTP",
            Region => "set AWS_REGION to the bucket's region, or correct the endpoint",
            NoBucket => "create the bucket, or correct STORE",
            Quota => "raise the quota of the bucket or the account, or delete objects",
            Full => "add or free space at the store",
            Unsupported => {
                "remove what this store does not support: S3_ACL, S3_STORAGE_CLASS, S3_SSE, S3_BUCKET_KEY, S3_TAGS, \
                 S3_EXPECTED_OWNER, S3_CHECKSUM or S3_IF_NONE_MATCH"
            }
            Encryption => {
                "correct S3_SSE, S3_KMS_KEY_ID and S3_BUCKET_KEY, or allow the role to use the key"
            }
            Exists | Refused | Locked | Conflict | Busy | Unavailable | Garbled | Other => "",
        }
    }

    /// Whether it concerns the credentials themselves.
    pub(super) fn is_of_credentials(self) -> bool {
        use Cause::*;
        matches!(self, UnknownKey | WrongSecret | ExpiredCredentials | BadCredentials)
    }
}

/// Whether new credentials could help: with every refusal that concerns credentials, because an
/// operator rotates keys by correcting a file, and with every other 401 or 403, because some stores
/// have no code for a wrong key.
pub(super) fn wants_new_credentials(status: u16, cause: Cause) -> bool {
    let forbidden = matches!(status, 401 | 403);
    cause.is_of_credentials() || forbidden && !matches!(cause, Cause::Clock | Cause::Locked)
}

/// Whether the response to a PUT with `If-None-Match: *` says that the key has an object. Stores
/// differ: 412 with or without a document, 304 as for a GET, 409 with a code that says so. A 412 or
/// 409 with another code means something else.
pub(super) fn is_there_already(status: u16, code: &str, message: &str) -> bool {
    match Cause::of(status, code, message) {
        Cause::Exists => matches!(status, 409 | 412),
        Cause::Locked => true,
        _ => status == 304,
    }
}

/// The class of a failure to get any response, with the code under which it is reported.
pub(super) fn connection_error(error: &ConnectionError) -> (Class, &'static str) {
    match error {
        ConnectionError::Unresolved { .. } => (Class::Transient, "Unresolved"),
        ConnectionError::Unreachable { .. } => (Class::Transient, "Unreachable"),
        ConnectionError::ConnectTimeout { .. } => (Class::Transient, "ConnectTimeout"),
        ConnectionError::Tls { .. } => (Class::Transient, "TlsFailed"),
        ConnectionError::Broken { .. } => (Class::Transient, "ConnectionBroken"),
        ConnectionError::ReadTimeout { .. } => (Class::Transient, "ReadTimeout"),
        ConnectionError::BadAnswer { .. } => (Class::Transient, "BadAnswer"),
        ConnectionError::TunnelRefused { .. } => (Class::Transient, "ProxyRefused"),
        ConnectionError::ByProxy { source, .. } => connection_error(source),
    }
}

/// Whether fewer puts in flight could help after a failure to get any response.
pub(super) fn is_congestion(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::ConnectTimeout { .. }
        | ConnectionError::Broken { .. }
        | ConnectionError::ReadTimeout { .. } => true,
        ConnectionError::Unresolved { .. }
        | ConnectionError::Unreachable { .. }
        | ConnectionError::Tls { .. }
        | ConnectionError::BadAnswer { .. }
        | ConnectionError::TunnelRefused { .. } => false,
        ConnectionError::ByProxy { source, .. } => is_congestion(source),
    }
}

/// The error a worker sees for a response of the store. `code` and `message` are the store's own,
/// empty if it sent none.
pub(crate) fn reply_error(status: u16, code: &str, message: &str) -> PutError {
    let cause = Cause::of(status, code, message);
    let shown = if code.is_empty() { format!("Http{status}") } else { bounded(code) };
    let message = match message {
        "" => format!("the store answered {status}"),
        message => bounded(message),
    };
    // `RequestTimeout` is a 400: the body did not arrive within the store's timeout.
    let congestion =
        cause == Cause::Busy || matches!(status, 408 | 429 | 503) || code == "RequestTimeout";
    let error = PutError::new(cause.class(), shown, message);
    PutError { remedy: cause.remedy(), congestion, ..error }
}

/// One line of at most 400 bytes, without control characters.
pub(crate) fn bounded(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(MESSAGE_BYTES_MAX));
    for c in text.trim().chars() {
        if line.len() + c.len_utf8() > MESSAGE_BYTES_MAX {
            line.push('…');
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
    line
}

#[cfg(test)]
mod tests;
