//! The codes and messages of stores' refusals, and the cause of each. All eight stores listed here
//! answer with S3's XML document. They differ in codes, and some say only in the message what the
//! code leaves open.
//!
//! Where the rows come from:
//!
//! | store | source |
//! |---|---|
//! | AWS | S3 API reference, "Error responses"; PutObject, "If-None-Match" |
//! | Garage | `src/api/common/common_error.rs`, `src/api/common/signature/payload.rs`, `src/api/s3/put.rs` (v1.2, v2.0) |
//! | MinIO | `cmd/api-errors.go`, `cmd/object-handlers-common.go` |
//! | Ceph RGW | `src/rgw/rgw_common.cc`, `rgw_http_s3_errors` |
//! | SeaweedFS | `weed/s3api/s3err/s3api_errors.go` |
//! | Cloudflare R2 | developers.cloudflare.com/r2/api/error-codes; grafana/loki#9224 (length of the access key) |
//! | Backblaze B2 | alist#8364, s5cmd#269 (access key); rclone#4689 (not entitled); zipline#746 (header); mastodon#30030 (tomes) |
//! | Google XML | cloud.google.com/storage/docs/xml-api/reference-status; s3fs-fuse#179, iceberg-go#1422 (credentials) |
//! | Wasabi | docs.wasabi.com/docs/rest-api-introduction, "Error Responses" |
//!
//! Alibaba's and Tencent's `FileAlreadyExists` is in fake115uploader#76.

use super::Cause::{self, *};

/// One code, or code and message, and its cause.
pub(super) struct Words {
    pub(super) code: &'static str,
    /// A part of the message, in lower case; empty if the code is enough.
    pub(super) message: &'static str,
    pub(super) cause: Cause,
}

const fn says(code: &'static str, message: &'static str, cause: Cause) -> Words {
    Words { code, message, cause }
}

const fn code(code: &'static str, cause: Cause) -> Words {
    says(code, "", cause)
}

/// The first matching row counts, so rows with a message stand before the code alone.
#[rustfmt::skip]
pub(super) const WORDS: &[Words] = &[
    // Garage has one code for everything forbidden.
    says("AccessDenied", "no such key:", UnknownKey),
    says("AccessDenied", "invalid signature", WrongSecret),
    says("AccessDenied", "has expired", ExpiredCredentials),
    says("AccessDenied", "quota is reached", Quota),
    // B2: caps that the account's owner has set.
    says("AccessDenied", "cap exceeded", Quota),
    code("AccessDenied", Denied),
    // Garage refuses a date more than a day old.
    says("InvalidRequest", "date is too old", Clock),
    // MinIO: an object under retention.
    says("InvalidRequest", "worm protected", Locked),
    says("InvalidRequest", "kms", Encryption),
    // R2 checks the length of the access key before anything else.
    says("InvalidArgument", "access key", UnknownKey),
    says("InvalidArgument", "credential", BadCredentials),
    says("InvalidArgument", "authorization", BadCredentials),
    // B2, about headers it does not know.
    says("InvalidArgument", "unsupported", Unsupported),
    says("InvalidArgument", "encryption", Encryption),
    says("InvalidArgument", "kms", Encryption),
    says("InvalidArgument", "storage class", Unsupported),
    says("InvalidArgument", "checksum", Unsupported),
    says("InvalidArgument", "acl", Unsupported),
    // Only this object is affected.
    code("InvalidArgument", Refused),
    code("EntityTooLarge", Refused),
    code("EntityTooSmall", Refused),
    code("ExistingObjectIsDirectory", Refused),
    code("ExistingObjectIsFile", Refused),
    code("InvalidObjectName", Refused),
    code("InvalidURI", Refused),
    code("KeyTooLong", Refused),
    code("KeyTooLongError", Refused),
    code("MaxMessageLengthExceeded", Refused),
    code("XMinioInvalidObjectName", Refused),
    code("XMinioObjectExistsAsDirectory", Refused),
    code("XMinioParentIsObject", Refused),
    code("ObjectLockedByBucketPolicy", Locked),
    // The key has an object already.
    code("PreconditionFailed", Exists),
    code("ConditionNotMet", Exists),
    // RGW's name for EEXIST, whatever it was that exists.
    code("BucketAlreadyExists", Exists),
    code("EntityAlreadyExists", Exists),
    code("FileAlreadyExists", Exists),
    code("KeyAlreadyExists", Exists),
    code("ObjectAlreadyExists", Exists),
    // Credentials and account.
    code("InvalidAccessKeyId", UnknownKey),
    code("InvalidClientTokenId", UnknownKey),
    code("SignatureDoesNotMatch", WrongSecret),
    code("ExpiredToken", ExpiredCredentials),
    code("ExpiredTokenException", ExpiredCredentials),
    code("RequestExpired", ExpiredCredentials),
    code("TokenRefreshRequired", ExpiredCredentials),
    code("AuthenticationLockout", BadCredentials),
    code("AuthenticationRequired", BadCredentials),
    code("InvalidAuthenticationCode", BadCredentials),
    code("InvalidSecurity", BadCredentials),
    code("InvalidToken", BadCredentials),
    code("InvalidTokenId", BadCredentials),
    code("Unauthorized", BadCredentials),
    code("AccountNotActivated", Account),
    code("AccountProblem", Account),
    code("AllAccessDisabled", Account),
    code("NotEntitled", Account),
    code("NotSignedUp", Account),
    code("UserProjectAccountProblem", Account),
    code("UserSuspended", Account),
    // Clock.
    code("ExpiredRequest", Clock),
    code("RequestTimeTooSkewed", Clock),
    // Region and bucket.
    code("AuthorizationHeaderMalformed", Region),
    code("IllegalLocationConstraintException", Region),
    code("InvalidLocationConstraint", Region),
    code("InvalidRegion", Region),
    code("InvalidRegionName", Region),
    code("PermanentRedirect", Region),
    code("InvalidBucketName", NoBucket),
    code("NoSuchBucket", NoBucket),
    // Space.
    code("QuotaExceeded", Quota),
    code("XMinioAdminBucketQuotaExceeded", Quota),
    code("InsufficientStorage", Full),
    code("XMinioStorageFull", Full),
    // Unsupported features.
    code("AccessControlListNotSupported", Unsupported),
    code("InvalidStorageClass", Unsupported),
    code("NotImplemented", Unsupported),
    code("InvalidEncryptionAlgorithmError", Encryption),
    // A retry may succeed.
    code("BandwidthLimitExceeded", Busy),
    code("ErrRequestBytesExceed", Busy),
    code("ErrTooManyRequest", Busy),
    code("Locked", Busy),
    code("RequestLimitExceeded", Busy),
    code("ServerBusy", Busy),
    code("SlowDown", Busy),
    code("SlowDownRead", Busy),
    code("SlowDownWrite", Busy),
    code("Throttling", Busy),
    code("ThrottlingException", Busy),
    code("TooManyRequests", Busy),
    code("InternalError", Unavailable),
    code("ServiceUnavailable", Unavailable),
    code("TemporaryRedirect", Unavailable),
    code("Unavailable", Unavailable),
    code("BadDigest", Garbled),
    code("ClientDisconnect", Garbled),
    code("ClientDisconnected", Garbled),
    code("CrcMismatch", Garbled),
    code("IncompleteBody", Garbled),
    code("RequestTimeout", Garbled),
    code("XAmzContentChecksumMismatch", Garbled),
    code("XAmzContentSHA256Mismatch", Garbled),
    code("ConditionalRequestConflict", Conflict),
    code("OperationAborted", Conflict),
];
