use super::words::WORDS;
use super::*;
use Cause::*;

/// What stores were found to answer, see `words` for where, and what has to come of it.
const SAID: &[(&str, u16, &str, &str, Cause)] = &[
    (
        "AWS",
        403,
        "InvalidAccessKeyId",
        "The AWS Access Key Id you provided does not exist in our records.",
        UnknownKey,
    ),
    (
        "AWS",
        403,
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match.",
        WrongSecret,
    ),
    ("AWS", 400, "ExpiredToken", "The provided token has expired.", ExpiredCredentials),
    (
        "AWS",
        403,
        "AccessDenied",
        "User: arn:aws:iam::1:user/x is not authorized to perform: s3:PutObject",
        Denied,
    ),
    ("AWS", 403, "AllAccessDisabled", "All access to this object has been disabled.", Account),
    (
        "AWS",
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
        Clock,
    ),
    (
        "AWS",
        301,
        "PermanentRedirect",
        "The bucket must be addressed using the specified endpoint.",
        Region,
    ),
    ("AWS", 404, "NoSuchBucket", "The specified bucket does not exist", NoBucket),
    ("AWS", 400, "KMS.DisabledException", "arn:aws:kms:… is disabled.", Encryption),
    (
        "AWS",
        400,
        "KMS.ThrottlingException",
        "You have exceeded the rate at which you may call KMS.",
        Busy,
    ),
    (
        "AWS",
        400,
        "InvalidStorageClass",
        "The storage class you specified is not valid",
        Unsupported,
    ),
    ("AWS", 400, "AccessControlListNotSupported", "The bucket does not allow ACLs", Unsupported),
    (
        "AWS",
        400,
        "EntityTooLarge",
        "Your proposed upload exceeds the maximum allowed size",
        Refused,
    ),
    ("AWS", 400, "KeyTooLongError", "Your key is too long", Refused),
    ("AWS", 503, "SlowDown", "Please reduce your request rate.", Busy),
    (
        "AWS",
        412,
        "PreconditionFailed",
        "At least one of the pre-conditions you specified did not hold",
        Exists,
    ),
    (
        "AWS",
        409,
        "ConditionalRequestConflict",
        "The conditional request cannot succeed due to a conflicting operation",
        Conflict,
    ),
    (
        "Garage",
        403,
        "AccessDenied",
        "Forbidden: No such key: GK31c2f218a2e44f485b94239e",
        UnknownKey,
    ),
    ("Garage", 403, "AccessDenied", "Forbidden: Invalid signature", WrongSecret),
    (
        "Garage",
        403,
        "AccessDenied",
        "Forbidden: Access key GK31c2f218a2e44f485b94239e has expired",
        ExpiredCredentials,
    ),
    ("Garage", 403, "AccessDenied", "Forbidden: Operation is not allowed for this key.", Denied),
    (
        "Garage",
        403,
        "AccessDenied",
        "Forbidden: Object quota is reached, maximum objects for this bucket: 5",
        Quota,
    ),
    (
        "Garage",
        403,
        "AccessDenied",
        "Forbidden: Bucket size quota is reached, maximum total size of objects",
        Quota,
    ),
    ("Garage", 400, "InvalidRequest", "Bad request: Date is too old", Clock),
    (
        "Garage",
        400,
        "AuthorizationHeaderMalformed",
        "Authorization header malformed, unexpected scope: 20251215/us-east-1/s3/aws4_request",
        Region,
    ),
    ("Garage", 404, "NoSuchBucket", "Bucket not found: b", NoBucket),
    (
        "Garage",
        503,
        "ServiceUnavailable",
        "Internal error: Could not reach quorum of 2",
        Unavailable,
    ),
    ("Garage", 501, "NotImplemented", "Unimplemented action: PutObjectAcl", Unsupported),
    (
        "Garage",
        400,
        "InvalidEncryptionAlgorithmError",
        "Invalid encryption algorithm: aws:kms, should be AES256",
        Encryption,
    ),
    (
        "MinIO",
        403,
        "InvalidAccessKeyId",
        "Your account is disabled; please contact your administrator.",
        UnknownKey,
    ),
    (
        "MinIO",
        403,
        "InvalidTokenId",
        "The security token included in the request is invalid",
        BadCredentials,
    ),
    ("MinIO", 403, "AccessDenied", "Access Denied.", Denied),
    ("MinIO", 400, "InvalidRegion", "Region does not match; expecting 'eu'.", Region),
    ("MinIO", 400, "XMinioAdminBucketQuotaExceeded", "Bucket quota exceeded", Quota),
    (
        "MinIO",
        507,
        "XMinioStorageFull",
        "Storage backend has reached its minimum free drive threshold.",
        Full,
    ),
    (
        "MinIO",
        503,
        "SlowDownWrite",
        "Resource requested is unwritable, please reduce your request rate",
        Busy,
    ),
    (
        "MinIO",
        503,
        "XMinioServerNotInitialized",
        "Server not initialized yet, please try again.",
        Unavailable,
    ),
    ("MinIO", 503, "RequestTimeout", "A timeout occurred while trying to lock a resource", Garbled),
    ("MinIO", 429, "TooManyRequests", "Please reduce your request rate", Busy),
    ("MinIO", 499, "ClientDisconnected", "Client disconnected before response was ready", Garbled),
    (
        "MinIO",
        501,
        "NotImplemented",
        "Server side encryption specified but KMS is not configured",
        Unsupported,
    ),
    (
        "MinIO",
        400,
        "InvalidArgument",
        "Server Side Encryption with AWS KMS managed key requires HTTP header",
        Encryption,
    ),
    ("MinIO", 400, "InvalidArgument", "Invalid checksum provided.", Unsupported),
    (
        "MinIO",
        400,
        "XMinioInvalidObjectName",
        "Object name contains unsupported characters.",
        Refused,
    ),
    ("MinIO", 400, "InvalidRequest", "Object is WORM protected and cannot be overwritten", Locked),
    ("Ceph", 403, "UserSuspended", "", Account),
    ("Ceph", 403, "QuotaExceeded", "", Quota),
    ("Ceph", 400, "InvalidArgument", "", Refused),
    ("Ceph", 400, "InvalidObjectName", "", Refused),
    ("Ceph", 408, "RequestTimeout", "", Garbled),
    ("Ceph", 423, "Locked", "", Busy),
    ("Ceph", 409, "BucketAlreadyExists", "", Exists),
    ("Ceph", 409, "OperationAborted", "", Conflict),
    ("SeaweedFS", 503, "ErrTooManyRequest", "Too many simultaneous request count", Busy),
    (
        "SeaweedFS",
        503,
        "ErrRequestBytesExceed",
        "Simultaneous request bytes exceed limitations",
        Busy,
    ),
    ("SeaweedFS", 409, "ExistingObjectIsDirectory", "Existing Object is a directory.", Refused),
    (
        "SeaweedFS",
        403,
        "KMSAccessDeniedException",
        "Access denied to the specified KMS key.",
        Encryption,
    ),
    (
        "R2",
        400,
        "InvalidArgument",
        "Invalid Argument: Credential access key has length 25, should be 32",
        UnknownKey,
    ),
    ("R2", 401, "Unauthorized", "Unauthorized", BadCredentials),
    ("R2", 403, "NotEntitled", "Please enable R2 through the Cloudflare Dashboard.", Account),
    ("R2", 400, "InvalidRegionName", "The region name 'ap-northeast-2' is not valid.", Region),
    ("R2", 400, "ExpiredRequest", "Request has expired.", Clock),
    ("R2", 403, "ObjectLockedByBucketPolicy", "The object is locked by the bucket policy.", Locked),
    ("R2", 400, "ClientDisconnect", "Client disconnected before request completed.", Garbled),
    ("B2", 403, "InvalidAccessKeyId", "Malformed Access Key Id", UnknownKey),
    ("B2", 403, "InvalidAccessKeyId", "The key '0000000000' is not valid", UnknownKey),
    ("B2", 403, "AccessDenied", "not entitled", Denied),
    ("B2", 403, "AccessDenied", "Cannot upload files, storage cap exceeded.", Quota),
    (
        "B2",
        400,
        "InvalidArgument",
        "Unsupported header 'x-amz-checksum-crc32' received for this API call.",
        Unsupported,
    ),
    ("B2", 503, "ServiceUnavailable", "no tomes available", Unavailable),
    (
        "Google",
        403,
        "InvalidSecurity",
        "The provided security credentials are not valid.",
        BadCredentials,
    ),
    ("Google", 403, "SignatureDoesNotMatch", "Access denied.", WrongSecret),
    ("Google", 403, "UserProjectAccountProblem", "", Account),
    ("Google", 400, "CloudKmsDisabledKey", "", Encryption),
    ("Google", 400, "CrcMismatch", "", Garbled),
    ("Google", 429, "", "", Busy),
    ("Wasabi", 403, "AccountProblem", "", Account),
    (
        "Wasabi",
        403,
        "AuthenticationLockout",
        "There have been too many attempts to access the account",
        BadCredentials,
    ),
    ("Wasabi", 503, "Unavailable", "Temporarily unavailable", Unavailable),
    ("Wasabi", 409, "EntityAlreadyExists", "", Exists),
];

#[test]
fn every_store_is_understood() {
    for (store, status, code, message, cause) in SAID {
        assert_eq!(Cause::of(*status, code, message), *cause, "{store}: {status} {code} {message}");
        let error = reply_error(*status, code, message);
        let busy = *cause == Cause::Busy || matches!(status, 408 | 429 | 503);
        let late = *code == "RequestTimeout";
        assert_eq!(error.congestion, busy || late, "{store}: {status} {code}");
    }
}

/// Whatever it was that a store said: what the worker, the operator and the credentials' keeper
/// make of it.
#[test]
fn class_remedy_and_credentials_follow_from_the_cause() {
    use Class::{Object, StoreWide, Transient};
    for (cause, class, remedy, credentials) in [
        (UnknownKey, StoreWide, "correct the access key", true),
        (WrongSecret, StoreWide, "correct the secret", true),
        (ExpiredCredentials, Transient, "renew the credentials", true),
        (BadCredentials, StoreWide, "correct the credentials", true),
        (Denied, StoreWide, "s3:PutObject", true),
        (Account, StoreWide, "account", true),
        (Other, StoreWide, "", true),
        (Quota, StoreWide, "quota", true),
        (Clock, Transient, "set this host's time", false),
        (Locked, Object, "", false),
    ] {
        assert_eq!(cause.class(), class, "{cause:?}");
        assert!(cause.remedy().contains(remedy), "{cause:?}: {}", cause.remedy());
        assert_eq!(wants_new_credentials(403, cause), credentials, "{cause:?}");
        assert!(wants_new_credentials(400, cause) == cause.is_of_credentials(), "{cause:?}");
    }
    for (cause, class, remedy) in [
        (Region, StoreWide, "AWS_REGION"),
        (NoBucket, StoreWide, "STORE"),
        (Full, StoreWide, "space"),
        (Unsupported, StoreWide, "S3_STORAGE_CLASS"),
        (Encryption, StoreWide, "S3_KMS_KEY_ID"),
        (Exists, StoreWide, ""),
        (Refused, Object, ""),
        (Conflict, Transient, ""),
        (Busy, Transient, ""),
        (Unavailable, Transient, ""),
        (Garbled, Transient, ""),
    ] {
        assert_eq!(cause.class(), class, "{cause:?}");
        assert!(cause.remedy().contains(remedy), "{cause:?}: {}", cause.remedy());
    }
}

#[test]
fn the_status_decides_where_the_code_does_not() {
    use Class::{Object, StoreWide, Transient};
    for (status, code, class) in [
        (413, "", Object),
        (414, "", Object),
        (307, "", Transient),
        (408, "", Transient),
        (409, "", Transient),
        (425, "", Transient),
        (429, "", Transient),
        (500, "UnknownError", Transient),
        (502, "", Transient),
        (503, "", Transient),
        (504, "", Transient),
        (200, "", Transient),
        (507, "", StoreWide),
        (501, "", StoreWide),
        (301, "", StoreWide),
        (304, "", StoreWide),
        (400, "", StoreWide),
        (401, "", StoreWide),
        (403, "", StoreWide),
        (403, "SomethingNew", StoreWide),
        (404, "", StoreWide),
        (405, "MethodNotAllowed", StoreWide),
        (409, "InvalidBucketState", StoreWide),
        (412, "", StoreWide),
        (412, "OrgPolicyConstraintFailed", StoreWide),
    ] {
        assert_eq!(Cause::of(status, code, "").class(), class, "{status} {code:?}");
    }
}

#[test]
fn is_there_already_is_told_from_every_other_refusal() {
    for (status, code, there) in [
        (412, "PreconditionFailed", true),
        (412, "ConditionNotMet", true),
        (412, "", true),
        (304, "", true),
        (304, "NotModified", true),
        (409, "BucketAlreadyExists", true),
        (409, "EntityAlreadyExists", true),
        (409, "FileAlreadyExists", true),
        (409, "ObjectAlreadyExists", true),
        (403, "ObjectLockedByBucketPolicy", true),
        (409, "ConditionalRequestConflict", false),
        (409, "OperationAborted", false),
        (409, "", false),
        (412, "OrgPolicyConstraintFailed", false),
        (400, "PreconditionFailed", false),
        (403, "AccessDenied", false),
        (200, "", false),
        (503, "", false),
    ] {
        assert_eq!(is_there_already(status, code, ""), there, "{status} {code:?}");
    }
    assert!(is_there_already(
        400,
        "InvalidRequest",
        "Object is WORM protected and cannot be overwritten"
    ));
}

#[test]
fn every_row_can_be_reached() {
    for (i, row) in WORDS.iter().enumerate() {
        assert_eq!(row.message, row.message.to_ascii_lowercase(), "{}", row.code);
        let hidden = |earlier: &words::Words| {
            earlier.code == row.code && row.message.contains(earlier.message)
        };
        assert!(!WORDS[..i].iter().any(hidden), "{} {:?}", row.code, row.message);
    }
}

#[test]
fn messages_are_one_bounded_line() {
    let long = "é\n".repeat(1000);
    let error = reply_error(503, "", &long);
    assert!(error.message.len() <= MESSAGE_BYTES_MAX + '…'.len_utf8());
    assert!(!error.message.contains('\n'));
    assert_eq!(error.code, "Http503");
}
