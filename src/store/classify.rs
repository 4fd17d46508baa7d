//! What a failed put means: the one table that every S3 client passes its failures through.
//!
//! By the store's error code first, then by status. What is in neither is taken for store-wide:
//! holding a payload that could have been dead-lettered costs a worker for `RETRY_FOR`,
//! dead-lettering one that a corrected setting would have stored costs the payload.

use super::dial::LinkError;
use super::{Class, PutError};

/// Longest text kept of a store's own message, bytes.
const MESSAGE_BYTES_MAX: usize = 400;

/// Codes whose meaning the status alone does not give.
const CODES: &[(&str, Class)] = &[
    // This object, and only this one.
    ("EntityTooLarge", Class::Object),
    ("EntityTooSmall", Class::Object),
    ("InvalidArgument", Class::Object),
    ("InvalidObjectName", Class::Object),
    ("InvalidURI", Class::Object),
    ("KeyTooLong", Class::Object),
    ("KeyTooLongError", Class::Object),
    ("MaxMessageLengthExceeded", Class::Object),
    ("XMinioInvalidObjectName", Class::Object),
    // The next try may do.
    ("BadDigest", Class::Transient),
    ("BandwidthLimitExceeded", Class::Transient),
    ("ConditionalRequestConflict", Class::Transient),
    ("ExpiredToken", Class::Transient),
    ("ExpiredTokenException", Class::Transient),
    ("IncompleteBody", Class::Transient),
    ("InternalError", Class::Transient),
    ("OperationAborted", Class::Transient),
    ("RequestExpired", Class::Transient),
    ("RequestLimitExceeded", Class::Transient),
    ("RequestTimeTooSkewed", Class::Transient),
    ("RequestTimeout", Class::Transient),
    ("ServiceUnavailable", Class::Transient),
    ("SlowDown", Class::Transient),
    ("TemporaryRedirect", Class::Transient),
    ("Throttling", Class::Transient),
    ("ThrottlingException", Class::Transient),
    ("TokenRefreshRequired", Class::Transient),
    ("TooManyRequests", Class::Transient),
    ("XAmzContentChecksumMismatch", Class::Transient),
    ("XAmzContentSHA256Mismatch", Class::Transient),
    // Waits for an operator; most of these are 4xx and would be store-wide anyway.
    ("AccessDenied", Class::StoreWide),
    ("AccessControlListNotSupported", Class::StoreWide),
    ("AuthorizationHeaderMalformed", Class::StoreWide),
    ("IllegalLocationConstraintException", Class::StoreWide),
    ("InvalidAccessKeyId", Class::StoreWide),
    ("NoSuchBucket", Class::StoreWide),
    ("NotImplemented", Class::StoreWide),
    ("PermanentRedirect", Class::StoreWide),
    ("SignatureDoesNotMatch", Class::StoreWide),
];

/// The class of an answer: `status` as it came, `code` from the error's body, empty if it had none.
pub fn reply(status: u16, code: &str) -> Class {
    if let Some((_, class)) = CODES.iter().find(|(known, _)| *known == code) {
        return *class;
    }
    match status {
        // A key service that is down or slow is no reason to wait for an operator, its refusals
        // are.
        _ if code.starts_with("KMS.") && code.contains("Throttling") => Class::Transient,
        // No such feature at this store: an option must change.
        501 => Class::StoreWide,
        500.. => Class::Transient,
        // Lengths, of the body and of the key.
        413 | 414 => Class::Object,
        307 | 408 | 425 | 429 => Class::Transient,
        // Also every code below 300: an answer that is no error, yet could not be read as success.
        ..300 => Class::Transient,
        _ => Class::StoreWide,
    }
}

/// The class of a failure to get any answer, with the code it is reported under.
pub fn link(error: &LinkError) -> (Class, &'static str) {
    match error {
        LinkError::Unresolved { .. } => (Class::Transient, "Unresolved"),
        LinkError::Unreachable { .. } => (Class::Transient, "Unreachable"),
        LinkError::ConnectTimeout { .. } => (Class::Transient, "ConnectTimeout"),
        LinkError::Tls { .. } => (Class::Transient, "TlsFailed"),
        LinkError::Broken { .. } => (Class::Transient, "ConnectionBroken"),
        LinkError::ReadTimeout { .. } => (Class::Transient, "ReadTimeout"),
        LinkError::BadAnswer { .. } => (Class::Transient, "BadAnswer"),
        LinkError::TunnelRefused { .. } => (Class::Transient, "ProxyRefused"),
        LinkError::ByProxy { source, .. } => link(source),
    }
}

/// True for the answers that new credentials could mend: also a key or a secret that is simply wrong, for an operator
/// rotates keys by correcting a file.
pub fn wants_new_credentials(code: &str) -> bool {
    matches!(
        code,
        "ExpiredToken"
            | "ExpiredTokenException"
            | "InvalidAccessKeyId"
            | "InvalidToken"
            | "RequestExpired"
            | "SignatureDoesNotMatch"
            | "TokenRefreshRequired"
    )
}

/// The error a worker sees for an answer of the store. `message` is the store's own.
pub fn reply_error(status: u16, code: Option<&str>, message: Option<&str>) -> PutError {
    let code = code.unwrap_or_default();
    let class = reply(status, code);
    let shown = if code.is_empty() { format!("Http{status}") } else { bounded(code) };
    let message = match message.unwrap_or_default() {
        "" => format!("the store answered {status}"),
        message => bounded(message),
    };
    PutError { class, code: shown, message }
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
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_the_design_says() {
        use Class::{Object, StoreWide, Transient};
        let table: &[(u16, &str, Class)] = &[
            (400, "EntityTooLarge", Object),
            (413, "", Object),
            (414, "", Object),
            (400, "InvalidArgument", Object),
            (400, "KeyTooLongError", Object),
            (400, "RequestTimeout", Transient),
            (400, "ExpiredToken", Transient),
            (403, "RequestTimeTooSkewed", Transient),
            (409, "ConditionalRequestConflict", Transient),
            (412, "PreconditionFailed", StoreWide),
            (307, "TemporaryRedirect", Transient),
            (307, "", Transient),
            (408, "", Transient),
            (429, "", Transient),
            (500, "InternalError", Transient),
            (502, "", Transient),
            (503, "SlowDown", Transient),
            (503, "", Transient),
            (504, "", Transient),
            (200, "", Transient),
            (301, "PermanentRedirect", StoreWide),
            (301, "", StoreWide),
            (400, "AuthorizationHeaderMalformed", StoreWide),
            (400, "KMS.DisabledException", StoreWide),
            (400, "KMS.NotFoundException", StoreWide),
            (400, "KMS.ThrottlingException", Transient),
            (400, "InvalidStorageClass", StoreWide),
            (400, "InvalidToken", StoreWide),
            (400, "", StoreWide),
            (401, "", StoreWide),
            (403, "AccessDenied", StoreWide),
            (403, "InvalidAccessKeyId", StoreWide),
            (403, "SignatureDoesNotMatch", StoreWide),
            (403, "SomethingNew", StoreWide),
            (404, "NoSuchBucket", StoreWide),
            (404, "", StoreWide),
            (405, "MethodNotAllowed", StoreWide),
            (501, "NotImplemented", StoreWide),
        ];
        for (status, code, class) in table {
            assert_eq!(reply(*status, code), *class, "{status} {code:?}");
        }
    }

    #[test]
    fn no_code_is_listed_twice() {
        for (i, (code, _)) in CODES.iter().enumerate() {
            assert!(CODES[..i].iter().all(|(earlier, _)| earlier != code), "{code}");
        }
    }

    #[test]
    fn messages_are_one_bounded_line() {
        let long = "é\n".repeat(1000);
        let error = reply_error(503, None, Some(&long));
        assert!(error.message.len() <= MESSAGE_BYTES_MAX + '…'.len_utf8());
        assert!(!error.message.contains('\n'));
        assert_eq!(error.code, "Http503");
    }
}
