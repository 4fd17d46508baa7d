//! What a failed put means: the one table that every S3 client passes its failures through.
//!
//! A refusal's words (status, code, message) give its [`Cause`]; the cause gives the class, the remedy, and whether
//! other credentials could help. By code and message first (`words`), then by status. What is in neither is taken for
//! store-wide: holding a payload that could have been dead-lettered costs a worker for `RETRY_FOR`, dead-lettering one
//! that a corrected setting would have stored costs the payload.

mod words;

use super::s3::dial::ConnectionError;
use super::{Class, PutError};

/// Longest text kept of a store's own message, bytes.
const MESSAGE_BYTES_MAX: usize = 400;

/// What a store's refusal is about, whatever words the store has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The access key is not known.
    UnknownKey,
    /// The signature does not fit the access key.
    WrongSecret,
    ExpiredCredentials,
    /// The credentials are refused, in words that do not say which part of them is wrong.
    BadCredentials,
    /// The credentials are good, and may not do this.
    Denied,
    /// The account is suspended, unpaid or not signed up.
    Account,
    /// The request's time is too far from the store's.
    Clock,
    /// The bucket is in another region, or the store has another name for its own.
    Region,
    NoBucket,
    /// A limit that somebody has set on the bucket or the account.
    Quota,
    /// The store's disks are full.
    Full,
    /// A header or feature that the store does not know.
    Unsupported,
    /// Server-side encryption: the method, or the key.
    Encryption,
    /// This object will never be taken.
    Refused,
    /// There is an object under this key that must not be replaced.
    Locked,
    /// There is an object under this key, and the request was not to replace one.
    Exists,
    /// Another operation on this key was in the way.
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
    /// Of an answer: `status` as it came, `code` and `message` from the error's body, empty if it had none.
    pub fn of(status: u16, code: &str, message: &str) -> Cause {
        let message = message.to_ascii_lowercase();
        let fits = |words: &&words::Words| words.code == code && message.contains(words.message);
        match words::WORDS.iter().find(fits) {
            Some(words) => words.cause,
            // A key service that is down or slow is no reason to wait for an operator, its refusals are.
            None if code.starts_with("KMS") && code.contains("Throttling") => Cause::Busy,
            None if code.starts_with("KMS") || code.starts_with("CloudKms") => Cause::Encryption,
            None => Cause::of_status(status, code),
        }
    }

    fn of_status(status: u16, code: &str) -> Cause {
        match status {
            // An answer that is no error, yet could not be read as success.
            ..=299 => Cause::Unavailable,
            301 => Cause::Region,
            307 => Cause::Unavailable,
            408 => Cause::Garbled,
            // A conflict with a code of its own may be for an operator.
            409 if code.is_empty() => Cause::Conflict,
            412 if code.is_empty() => Cause::Exists,
            // Lengths, of the body and of the key.
            413 | 414 => Cause::Refused,
            423 | 425 | 429 => Cause::Busy,
            // nginx's and MinIO's for a client that went away.
            499 => Cause::Garbled,
            501 => Cause::Unsupported,
            507 => Cause::Full,
            500.. => Cause::Unavailable,
            _ => Cause::Other,
        }
    }

    /// What it means for the object, and for those behind it.
    pub fn class(self) -> Class {
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

    /// What an operator can do about it; empty where nothing is known to help, or nothing is needed.
    pub fn remedy(self) -> &'static str {
        use Cause::*;
        match self {
            UnknownKey => {
                "correct the access key (AWS_ACCESS_KEY_ID, or the AWS profile); a corrected file is read again"
            }
            WrongSecret => {
                "correct the secret (AWS_SECRET_ACCESS_KEY, or the AWS profile); a corrected file is read again"
            }
            ExpiredCredentials => "renew the credentials; a changed file is read again",
            BadCredentials => "correct the credentials; a corrected file is read again",
            Denied => {
                "allow these credentials to put into the bucket (s3:PutObject, with S3_TAGS also s3:PutObjectTagging); \
                 with S3_EXPECTED_OWNER, check that it is the bucket's owner"
            }
            Account => "see the account at the store: it is suspended, unpaid or not signed up",
            Clock => "set this host's time, or run NTP",
            Region => "set AWS_REGION to the bucket's region, or correct the endpoint",
            NoBucket => "create the bucket, or correct STORE",
            Quota => "raise the quota of the bucket or the account, or delete objects",
            Full => "add or free space at the store",
            Unsupported => {
                "leave out what this store does not know: S3_ACL, S3_STORAGE_CLASS, S3_SSE, S3_BUCKET_KEY, S3_TAGS, \
                 S3_EXPECTED_OWNER, S3_CHECKSUM or S3_IF_NONE_MATCH"
            }
            Encryption => {
                "correct S3_SSE, S3_KMS_KEY_ID and S3_BUCKET_KEY, or allow the role to use the key"
            }
            Exists | Refused | Locked | Conflict | Busy | Unavailable | Garbled | Other => "",
        }
    }

    /// Says something about the credentials themselves.
    pub fn is_of_credentials(self) -> bool {
        use Cause::*;
        matches!(self, UnknownKey | WrongSecret | ExpiredCredentials | BadCredentials)
    }
}

/// True for the answers that new credentials could mend: all that speak of them, for an operator rotates keys by
/// correcting a file, and every other refusal by 401 or 403, for some stores have no code of their own for a wrong key.
pub fn wants_new_credentials(status: u16, cause: Cause) -> bool {
    let forbidden = matches!(status, 401 | 403);
    cause.is_of_credentials() || forbidden && !matches!(cause, Cause::Clock | Cause::Locked)
}

/// Whether the answer to a PUT with `If-None-Match: *` says that the key has an object. Stores differ: 412 with or
/// without a document, 304 as for a GET, 409 under a code that says so. A 412 or 409 under another code says something
/// else.
pub fn is_there_already(status: u16, code: &str, message: &str) -> bool {
    match Cause::of(status, code, message) {
        Cause::Exists => matches!(status, 409 | 412),
        Cause::Locked => true,
        _ => status == 304,
    }
}

/// The class of a failure to get any answer, with the code it is reported under.
pub fn link(error: &ConnectionError) -> (Class, &'static str) {
    match error {
        ConnectionError::Unresolved { .. } => (Class::Transient, "Unresolved"),
        ConnectionError::Unreachable { .. } => (Class::Transient, "Unreachable"),
        ConnectionError::ConnectTimeout { .. } => (Class::Transient, "ConnectTimeout"),
        ConnectionError::Tls { .. } => (Class::Transient, "TlsFailed"),
        ConnectionError::Broken { .. } => (Class::Transient, "ConnectionBroken"),
        ConnectionError::ReadTimeout { .. } => (Class::Transient, "ReadTimeout"),
        ConnectionError::BadAnswer { .. } => (Class::Transient, "BadAnswer"),
        ConnectionError::TunnelRefused { .. } => (Class::Transient, "ProxyRefused"),
        ConnectionError::ByProxy { source, .. } => link(source),
    }
}

/// Whether fewer puts in flight could help against a failure to get any answer.
pub fn is_congestion(error: &ConnectionError) -> bool {
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

/// The error a worker sees for an answer of the store. `code` and `message` are the store's own, empty if it gave none.
pub fn reply_error(status: u16, code: &str, message: &str) -> PutError {
    let cause = Cause::of(status, code, message);
    let shown = if code.is_empty() { format!("Http{status}") } else { bounded(code) };
    let message = match message {
        "" => format!("the store answered {status}"),
        message => bounded(message),
    };
    // `RequestTimeout` is a 400: the body did not arrive in the store's time.
    let congestion =
        cause == Cause::Busy || matches!(status, 408 | 429 | 503) || code == "RequestTimeout";
    let error = PutError::new(cause.class(), shown, message);
    PutError { remedy: cause.remedy(), congestion, ..error }
}

/// One line of at most 400 bytes, without control characters.
pub fn bounded(text: &str) -> String {
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
