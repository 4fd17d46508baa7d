//! Settings of PUTs to S3, and which of them can be combined.

use std::time::Duration;

use super::{Config, HOUR, MILLISECOND, MINUTE, S3Options, SettingsReader, StoreUrl, value};
use crate::coding::percent::escape_query;
use value::Parsed;

pub(super) fn read(r: &mut SettingsReader<'_>, content_type: &str) -> S3Options {
    use value::{boolean, header_token, optional};
    S3Options {
        acl: r.take("S3_ACL", optional(header_token)),
        storage_class: r.take("S3_STORAGE_CLASS", optional(header_token)),
        sse: r.take("S3_SSE", optional(sse)),
        kms_key_id: r.take("S3_KMS_KEY_ID", optional(header_token)),
        bucket_key: r.take("S3_BUCKET_KEY", optional(boolean)),
        tags: r.take("S3_TAGS", optional(tags)),
        expected_owner: r.take("S3_EXPECTED_OWNER", optional(account)),
        force_path_style: r.take("S3_FORCE_PATH_STYLE", value::auto_or_bool),
        checksum: r.take("S3_CHECKSUM", value::checksum),
        content_type: r
            .take("CONTENT_TYPE", value::content_type)
            .unwrap_or_else(|| content_type.to_owned()),
        connect_timeout: r.take("S3_CONNECT_TIMEOUT", value::time(MILLISECOND..=10 * MINUTE)),
        connection_age: r.take("S3_CONNECTION_AGE", age),
        client: r.take("S3_CLIENT", value::s3_client),
        sign_payload: r.take("S3_SIGN_PAYLOAD", value::sign_payload),
        if_none_match: r.take("S3_IF_NONE_MATCH", boolean),
    }
}

pub(super) fn check(r: &mut SettingsReader<'_>, c: &Config) {
    let sse = c.s3.sse.as_deref();
    let with_kms = c.s3.kms_key_id.is_none() || sse.is_some_and(|sse| sse.starts_with("aws:kms"));
    r.require(with_kms, "S3_KMS_KEY_ID", "S3_SSE", |sse| {
        format!(
            "needs S3_SSE=aws:kms or aws:kms:dsse instead of {sse}: set that, or remove the key"
        )
    });
    // With `aws:kms:dsse` S3 has no bucket keys.
    let with_kms = c.s3.bucket_key.is_none() || sse == Some("aws:kms");
    r.require(with_kms, "S3_BUCKET_KEY", "S3_SSE", |sse| {
        format!("needs S3_SSE=aws:kms instead of {sse}: set that, or remove S3_BUCKET_KEY")
    });
    let is_access_point =
        matches!(&c.store, StoreUrl::S3 { bucket, .. } if bucket.starts_with("arn:"));
    let in_host = !is_access_point || c.s3.force_path_style != Some(true);
    r.require(in_host, "S3_FORCE_PATH_STYLE", "STORE", |store| {
        format!("cannot be combined with {store}: an access point is named in the host; remove the setting")
    });
}

/// Splits `arn:PARTITION:s3:REGION:ACCOUNT:accesspoint/NAME[/PREFIX]` into the access point's ARN
/// and the prefix.
pub(super) fn access_point(text: &str) -> Parsed<(String, &str)> {
    let other = || {
        "is not a supported ARN: give arn:PARTITION:s3:REGION:ACCOUNT:accesspoint/NAME, or use the \
         access point's alias as the bucket"
            .to_owned()
    };
    let mut parts = text.splitn(6, ':');
    let (Some("arn"), Some(partition), Some(service)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(other());
    };
    let (region, owner, resource) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
    let rest = resource.strip_prefix("accesspoint/").or(resource.strip_prefix("accesspoint:"));
    let (name, prefix) =
        rest.map(|rest| rest.split_once('/').unwrap_or((rest, ""))).ok_or_else(other)?;
    let is_label = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    // Without a region it is a multi-region access point, which needs another kind of signature.
    let known = service == "s3"
        && is_label(partition)
        && region.is_some_and(is_label)
        && owner.is_some_and(|owner| account(owner).is_ok())
        && is_label(name);
    match known {
        true => Ok((text[..text.len() - prefix.len()].trim_end_matches('/').to_owned(), prefix)),
        false => Err(other()),
    }
}

fn sse(text: &str) -> Parsed<String> {
    match text {
        "AES256" | "aws:kms" | "aws:kms:dsse" => Ok(text.into()),
        _ => Err("give AES256, aws:kms or aws:kms:dsse".into()),
    }
}

/// An AWS account id.
fn account(text: &str) -> Parsed<String> {
    match text.len() {
        12 if text.bytes().all(|b| b.is_ascii_digit()) => Ok(text.into()),
        _ => Err("give an AWS account id, 12 digits without dashes".into()),
    }
}

/// `S3_CONNECTION_AGE`; `0` and `off` mean no limit, which is zero.
fn age(text: &str) -> Parsed<Duration> {
    let range = value::time(Duration::from_secs(1)..=24 * HOUR);
    match text {
        "off" => Ok(Duration::ZERO),
        _ if value::time(Duration::ZERO..=Duration::ZERO)(text).is_ok() => Ok(Duration::ZERO),
        _ => range(text).map_err(|allowed| format!("{allowed}, or 0 for no limit")),
    }
}

/// S3's limits for the tags of an object.
const TAGS_MAX: usize = 10;
const TAG_KEY_MAX: usize = 128;
const TAG_VALUE_MAX: usize = 256;

/// Parses `KEY=VALUE&…` in URL encoding and encodes it again the way it is signed.
fn tags(text: &str) -> Parsed<String> {
    if !has_whole_escapes(text) {
        return Err("has a % without two hex digits after it: write a literal % as %25".into());
    }
    let mut seen: Vec<String> = Vec::new();
    let mut encoded = Vec::new();
    for (key, value) in form_urlencoded::parse(text.as_bytes()) {
        if key.is_empty() {
            return Err("has a tag without a key: give KEY=VALUE&KEY2=VALUE2".into());
        }
        if key.to_ascii_lowercase().starts_with("aws:") {
            return Err(format!("has the key {key:?}, and aws: is reserved: give another key"));
        }
        // S3 counts UTF-16 code units.
        let (of_key, of_value) = (key.encode_utf16().count(), value.encode_utf16().count());
        if of_key > TAG_KEY_MAX || of_value > TAG_VALUE_MAX {
            return Err(format!(
                "has a tag {key:?} of {of_key} and {of_value} characters: S3 allows {TAG_KEY_MAX} for keys and {TAG_VALUE_MAX} for values"
            ));
        }
        if let Some(other) = key.chars().chain(value.chars()).find(|c| !is_of_tag(*c)) {
            return Err(format!(
                "has {other:?} in the tag {key:?}: S3 allows letters, digits, blanks and + - = . _ : / @"
            ));
        }
        if seen.iter().any(|seen| **seen == *key) {
            return Err(format!("has the key {key:?} twice: name it once"));
        }
        if !encoded.is_empty() {
            encoded.push(b'&');
        }
        escape_query(&key, &mut encoded);
        encoded.push(b'=');
        escape_query(&value, &mut encoded);
        seen.push(key.into_owned());
    }
    match seen.len() {
        0 => Err("names no tag: give KEY=VALUE&KEY2=VALUE2".into()),
        n if n > TAGS_MAX => Err(format!("names {n} tags: S3 allows {TAGS_MAX} per object")),
        _ => Ok(String::from_utf8(encoded).expect("escapes are ASCII")),
    }
}

/// Whether every escape is valid: `form_urlencoded` would keep `%zz` as it is and replace bytes
/// that are not UTF-8.
fn has_whole_escapes(text: &str) -> bool {
    let escapes_whole = text.split('%').skip(1).all(|rest| {
        rest.as_bytes().get(..2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    });
    escapes_whole && percent_encoding::percent_decode_str(text).decode_utf8().is_ok()
}

/// S3's pattern: `[\p{L}\p{Z}\p{N}_.:/=+\-@]`.
fn is_of_tag(c: char) -> bool {
    let is_blank = c.is_whitespace() && !c.is_control();
    c.is_alphanumeric() || is_blank || "_.:/=+-@".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_checked_as_s3_does_and_encoded() {
        let (key, value) = ("k".repeat(TAG_KEY_MAX), "v".repeat(TAG_VALUE_MAX));
        let longest = format!("{key}={value}");
        let ten: Vec<String> = (0..10).map(|n| format!("k{n}=v")).collect();
        let ten = ten.join("&");
        for (text, expected) in [
            ("team=ingest", Ok("team=ingest")),
            ("team=ingest&env=prod", Ok("team=ingest&env=prod")),
            ("team=data+eng", Ok("team=data%20eng")),
            ("team=data eng", Ok("team=data%20eng")),
            ("a%2Bb=%C3%BC", Ok("a%2Bb=%C3%BC")),
            ("ü=x", Ok("%C3%BC=x")),
            ("path=a/b:c@d", Ok("path=a%2Fb%3Ac%40d")),
            ("a=b=c", Ok("a=b%3Dc")),
            ("flag", Ok("flag=")),
            ("flag=&b=1", Ok("flag=&b=1")),
            (&longest, Ok(&*longest)),
            (&ten, Ok(&*ten)),
            ("", Err("names no tag")),
            ("&", Err("names no tag")),
            ("=v", Err("without a key")),
            ("aws:x=1", Err("reserved")),
            ("AWS%3Ax=1", Err("reserved")),
            ("a=1&a=2", Err("twice")),
            ("a=%zz", Err("%25")),
            ("a=50%", Err("%25")),
            ("a=%ff", Err("%25")),
            ("a=%0d%0Ax", Err("has '\\r'")),
            ("a=1;2", Err("has ';'")),
            ("a={}", Err("has '{'")),
        ] {
            match (tags(text), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{text}"),
                (Err(got), Err(expected)) => assert!(got.contains(expected), "{text}: {got}"),
                (got, expected) => panic!("{text}: {got:?}, expected {expected:?}"),
            }
        }
        assert!(tags(&format!("k{longest}")).unwrap_err().contains("129 and 256"));
        assert!(tags(&format!("{longest}v")).unwrap_err().contains("128 and 257"));
        // Two UTF-16 units each.
        assert!(tags(&format!("{}=v", "𝒳".repeat(65))).unwrap_err().contains("130"));
        assert!(tags(&format!("{ten}&k10=v")).unwrap_err().contains("11 tags"));
    }

    #[test]
    fn access_points_are_told_from_other_arns() {
        let arn = "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/mine";
        for (text, prefix) in [("", ""), ("/", ""), ("/in/", "in/"), ("/a/b-", "a/b-")] {
            let whole = format!("{arn}{text}");
            assert_eq!(access_point(&whole), Ok((arn.to_owned(), prefix)), "{text}");
        }
        for bad in [
            "arn:",
            "arn:aws:s3:::bucket",
            "arn:aws:s3:::bucket/key",
            "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap",
            "arn:aws:s3:eu-west-1:123456789012:accesspoint/",
            "arn:aws:s3:eu-west-1:123456789012:accesspoint",
            "arn:aws:s3:eu-west-1:1234:accesspoint/mine",
            "arn:aws:s3:eu-west-1:123456789012:bucket/mine",
            "arn:aws:s3-object-lambda:eu-west-1:123456789012:accesspoint/mine",
            "arn:aws:s3-outposts:eu-west-1:123456789012:outpost/op-1/accesspoint/mine",
            "arn:aws:s3:eu-west-1:123456789012:accesspoint/my.point",
        ] {
            assert!(access_point(bad).unwrap_err().contains("alias"), "{bad}");
        }
    }

    #[test]
    fn accounts_kinds_of_encryption_and_ages() {
        assert!(account("123456789012").is_ok());
        for bad in ["", "1234-5678-9012", "12345678901", "1234567890123", "12345678901x"] {
            assert!(account(bad).unwrap_err().contains("12 digits"), "{bad}");
        }
        assert!(["AES256", "aws:kms", "aws:kms:dsse"].into_iter().all(|kind| sse(kind).is_ok()));
        assert!(sse("aws:dsse").unwrap_err().contains("aws:kms:dsse"));
        for (text, expected) in [("0", 0), ("0s", 0), ("off", 0), ("1s", 1), ("24h", 86_400)] {
            assert_eq!(age(text), Ok(Duration::from_secs(expected)), "{text}");
        }
        for bad in ["999ms", "25h", "60", "no", "-1s"] {
            assert!(age(bad).is_err(), "{bad}");
        }
        assert!(age("999ms").unwrap_err().contains("or 0"));
    }
}
