//! Checks a custom endpoint (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, or a profile's).
//!
//! An endpoint that already names the bucket is refused, never corrected: with the bucket twice in
//! the URL, objects would silently go to `bucket/…` in the bucket. Only the notation is normalized
//! (case, trailing slashes), because the SDK's rules join `https://host/s3` and `bucket` to
//! `https://host/s3bucket`.

use super::StartError;
use super::masked::shown_url;
use crate::store::s3::dial::ServerAddress;

/// `url` with lower-case scheme and host and, if it has a path, one slash at its end.
///
/// # Errors
/// [`StartError::BadEndpoint`], and [`StartError::BucketInEndpoint`] unless `path_style`
/// (`S3_FORCE_PATH_STYLE`) says where the bucket goes.
pub(super) fn usable(
    url: &str,
    bucket: &str,
    path_style: Option<bool>,
) -> Result<String, StartError> {
    let bad = |why: &'static str| StartError::BadEndpoint { url: shown_url(url), why };
    // A password in it would appear in every message that names the endpoint.
    if url.contains('@') {
        return Err(bad("it contains a user or a password"));
    }
    if url.contains(['?', '#']) {
        return Err(bad("it has a query or a fragment"));
    }
    let uri: http::Uri = url.parse().map_err(|_| bad("it is not a URL"))?;
    let server = ServerAddress::of(&uri).ok_or_else(|| bad("it is not an http or https URL"))?;
    // `http::Uri` accepts an invalid port, for one.
    url::Url::parse(url).map_err(|_| bad("its host or port is not valid"))?;
    let authority = uri.authority().expect("a server's URL has one").as_str().to_ascii_lowercase();
    if authority.ends_with(':') || uri.port_u16() == Some(0) {
        return Err(bad("its host or port is not valid"));
    }
    let path = uri.path().trim_matches('/');
    if uri
        .path()
        .trim_end_matches('/')
        .split('/')
        .skip(1)
        .any(|part| matches!(part, "" | "." | ".."))
    {
        return Err(bad("its path has an empty part, or . or .."));
    }
    let base = format!("{}://{authority}", if server.https { "https" } else { "http" });
    if path_style.is_none()
        && let Some(without) = without_bucket(&base, &server.host, path, bucket)
    {
        let (url, bucket) = (url.to_owned(), bucket.to_owned());
        return Err(StartError::BucketInEndpoint { url, bucket, without });
    }
    Ok(if path.is_empty() { base } else { format!("{base}/{path}/") })
}

/// The endpoint that was probably meant; `None` if this one does not contain the bucket.
fn without_bucket(base: &str, host: &str, path: &str, bucket: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').collect();
    if let Some(at) = parts.iter().position(|part| *part == bucket) {
        let before: String = parts[..at].iter().map(|part| format!("/{part}")).collect();
        return Some(format!("{base}{before}"));
    }
    let label = format!("{}.", bucket.to_ascii_lowercase());
    let rest = host.strip_prefix(&label).filter(|rest| !rest.is_empty())?;
    let is_address = matches!(url::Host::parse(host), Ok(url::Host::Ipv4(_) | url::Host::Ipv6(_)));
    (!is_address).then(|| base.replacen(host, rest, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_used_as_it_is_meant_or_refused() {
        for (url, bucket, path_style, expected) in [
            ("http://h", "bucket", None, Ok("http://h")),
            ("http://h/", "bucket", None, Ok("http://h")),
            ("http://h//", "bucket", None, Ok("http://h")),
            ("HTTPS://H.Example:9000", "bucket", None, Ok("https://h.example:9000")),
            ("https://h/storage/v1/s3", "bucket", None, Ok("https://h/storage/v1/s3/")),
            ("https://h/S3//", "bucket", None, Ok("https://h/S3/")),
            ("http://[::1]:9000", "bucket", None, Ok("http://[::1]:9000")),
            ("http://127.0.0.1:9000", "bucket", Some(false), Ok("http://127.0.0.1:9000")),
            // The bucket's name, and nothing more: a host of that name.
            ("http://minio:9000", "minio", None, Ok("http://minio:9000")),
            ("http://minio.:9000", "minio", None, Ok("http://minio.:9000")),
            // An address is no name.
            ("http://127.0.0.1:9000", "127", None, Ok("http://127.0.0.1:9000")),
            ("http://notbucket.h", "bucket", None, Ok("http://notbucket.h")),
            ("http://bucket-2.h", "bucket", None, Ok("http://bucket-2.h")),
            ("http://x.bucket.h", "bucket", None, Ok("http://x.bucket.h")),
            ("http://h/bucket2", "bucket", None, Ok("http://h/bucket2/")),
            // The bucket is there already.
            ("http://bucket.h", "bucket", None, Err("set the endpoint to http://h,")),
            ("http://Bucket.H:9000/", "bucket", None, Err("set the endpoint to http://h:9000,")),
            ("http://my.bucket.h", "my.bucket", None, Err("set the endpoint to http://h,")),
            (
                "https://bucket.s3.eu-west-1.amazonaws.com",
                "bucket",
                None,
                Err("set the endpoint to https://s3.eu-west-1.amazonaws.com,"),
            ),
            ("http://h/bucket", "bucket", None, Err("set the endpoint to http://h,")),
            ("http://h/bucket/", "bucket", None, Err("set the endpoint to http://h,")),
            ("http://h/bucket/in/", "bucket", None, Err("set the endpoint to http://h,")),
            ("http://h/s3/bucket", "bucket", None, Err("set the endpoint to http://h/s3,")),
            ("http://bucket.h/bucket", "bucket", None, Err("set the endpoint to http://bucket.h,")),
            (
                "http://127.0.0.1/bucket",
                "bucket",
                None,
                Err("set the endpoint to http://127.0.0.1,"),
            ),
            // Somebody has said that it is meant.
            ("http://bucket.h", "bucket", Some(true), Ok("http://bucket.h")),
            ("http://bucket.h", "bucket", Some(false), Ok("http://bucket.h")),
            ("http://h/bucket", "bucket", Some(true), Ok("http://h/bucket/")),
            // No endpoints.
            ("localhost:9000", "bucket", None, Err("http or https")),
            ("h", "bucket", None, Err("http or https")),
            ("ftp://h", "bucket", None, Err("http or https")),
            ("http://", "bucket", None, Err("not a URL")),
            ("http://h:99999", "bucket", None, Err("port is not valid")),
            ("http://h:0", "bucket", None, Err("port is not valid")),
            ("http://h:", "bucket", None, Err("port is not valid")),
            ("http://h:90x", "bucket", None, Err("not")),
            ("http://a b", "bucket", None, Err("not a URL")),
            ("http://h?x=1", "bucket", None, Err("a query")),
            ("http://h/p#f", "bucket", None, Err("a fragment")),
            ("http://h/a//b", "bucket", None, Err("an empty part")),
            ("http://h/a/../b", "bucket", None, Err("an empty part")),
            ("http://user:hunter2@h", "bucket", None, Err("…@h")),
            ("http://user:hunter2@h?x@y", "bucket", None, Err("a password")),
        ] {
            let got = usable(url, bucket, path_style).map_err(|error| error.to_string());
            match (&got, expected) {
                (Ok(used), Ok(expected)) => assert_eq!(used, expected, "{url}"),
                (Err(text), Err(part)) => {
                    assert!(text.contains(part), "{url}: {text}");
                    assert!(!text.contains("hunter2"), "{text}");
                }
                _ => panic!("{url} {bucket} {path_style:?}: {got:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn both_remedies_are_named() {
        let text = usable("http://bucket.h", "bucket", None).unwrap_err().to_string();
        for part in ["http://bucket.h names bucket bucket", "S3_FORCE_PATH_STYLE"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
