//! The URL of the bucket, by the SDK's own rules: path style or virtual host, FIPS, dual stack,
//! access points.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use aws_sdk_s3::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_smithy_types::endpoint::EndpointAuthScheme;

use crate::store::s3::dial::ServerAddress;
use crate::store::s3::{Location, S3Shared};

/// Where requests go, and what their signatures name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BucketUrl {
    pub(super) server: ServerAddress,
    /// The path before a key, escaped; begins and ends with `/`.
    pub(super) path: String,
    pub(super) region: String,
    pub(super) service: String,
}

/// The lean client cannot write to this bucket: its requests need another signature (S3 Express),
/// or an option cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Unsupported {
    pub(super) why: String,
}

pub(super) fn resolve(shared: &S3Shared) -> Result<BucketUrl, Unsupported> {
    resolve_for(&shared.target().bucket, shared.location(), shared.path_style())
}

/// The server that requests for `bucket` go to; `None` if the bucket has no plain URL.
pub(in crate::store::s3) fn server_of_bucket(
    bucket: &str,
    location: &Location,
    path_style: bool,
) -> Option<ServerAddress> {
    resolve_for(bucket, location, path_style).ok().map(|url| url.server)
}

fn resolve_for(
    bucket: &str,
    location: &Location,
    path_style: bool,
) -> Result<BucketUrl, Unsupported> {
    let unsupported = |why: String| Unsupported { why };
    let params = Params::builder()
        .bucket(bucket)
        .region(&location.region)
        .set_use_fips(location.fips)
        .set_use_dual_stack(location.dual_stack)
        .set_endpoint(location.endpoint.clone())
        .force_path_style(path_style)
        .use_arn_region(true)
        .build()
        .map_err(|error| unsupported(error.to_string()))?;
    let resolver = DefaultResolver::new();
    let resolved = pin!(ResolveEndpoint::resolve_endpoint(&resolver, &params));
    let Poll::Ready(resolved) = resolved.poll(&mut Context::from_waker(Waker::noop())) else {
        return Err(unsupported("the address is not known at once".into()));
    };
    let resolved = resolved.map_err(|error| unsupported(error.to_string()))?;
    if let Some((name, _)) = resolved.headers().next() {
        return Err(unsupported(format!("the endpoint requires a header {name}")));
    }
    let scheme = resolved.auth_schemes().first();
    if let Some(other) = scheme.map(EndpointAuthScheme::name).filter(|name| *name != "sigv4") {
        return Err(unsupported(format!("requests must be signed with {other}")));
    }
    let part = |name: &str| scheme.and_then(|scheme| scheme.get(name)?.as_string());
    let uri: http::Uri = resolved.url().parse().map_err(|_| {
        let url = resolved.url();
        unsupported(format!("{url} is not a URL"))
    })?;
    let server = ServerAddress::of(&uri).filter(|_| uri.query().is_none());
    let server = server.ok_or_else(|| unsupported(format!("{uri} cannot hold objects")))?;
    Ok(BucketUrl {
        server,
        path: format!("{}/", uri.path().trim_end_matches('/')),
        region: part("signingRegion").unwrap_or(&location.region).to_owned(),
        service: part("signingName").unwrap_or("s3").to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESS_POINT: &str = "arn:aws:s3:eu-west-1:123456789012:accesspoint/mine";

    #[test]
    fn requests_go_where_the_bucket_and_the_settings_say() {
        for (endpoint, bucket, path_style, expected) in [
            (None, "bucket", false, "https://bucket.s3.us-east-2.amazonaws.com/"),
            (None, "bucket", true, "https://s3.us-east-2.amazonaws.com/bucket/"),
            // No certificate covers two labels before the domain.
            (None, "my.bucket", false, "https://s3.us-east-2.amazonaws.com/my.bucket/"),
            (None, "Old_Bucket", false, "https://s3.us-east-2.amazonaws.com/Old_Bucket/"),
            (Some("http://h:9000"), "bucket", true, "http://h:9000/bucket/"),
            (Some("http://h:9000"), "bucket", false, "http://bucket.h:9000/"),
            // The SDK's rules put only names of one label before a host.
            (Some("http://h"), "my.bucket", false, "http://h/my.bucket/"),
            (Some("https://h"), "my.bucket", false, "https://h/my.bucket/"),
            (Some("https://h"), "Old_Bucket", false, "https://h/Old_Bucket/"),
            // An address has no subdomains.
            (Some("http://127.0.0.1:9000"), "bucket", false, "http://127.0.0.1:9000/bucket/"),
            (Some("http://[::1]:9000"), "bucket", false, "http://[::1]:9000/bucket/"),
            (Some("https://h/v1/s3/"), "bucket", true, "https://h/v1/s3/bucket/"),
            (Some("https://h/v1/s3/"), "bucket", false, "https://bucket.h/v1/s3/"),
            (Some("http://bucket.h"), "bucket", true, "http://bucket.h/bucket/"),
            (Some("http://bucket.h"), "bucket", false, "http://bucket.bucket.h/"),
            (
                None,
                ACCESS_POINT,
                false,
                "https://mine-123456789012.s3-accesspoint.eu-west-1.amazonaws.com/",
            ),
            (Some("https://h"), ACCESS_POINT, false, "https://mine-123456789012.h/"),
        ] {
            let location = Location {
                region: "us-east-2".into(),
                endpoint: endpoint.map(str::to_owned),
                fips: None,
                dual_stack: None,
            };
            let got = resolve_for(bucket, &location, path_style).unwrap();
            let ServerAddress { https, host, port } = &got.server;
            let scheme = if *https { "https" } else { "http" };
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            let port = match (port, https) {
                (80, false) | (443, true) => String::new(),
                (port, _) => format!(":{port}"),
            };
            assert_eq!(format!("{scheme}://{host}{port}{}", got.path), expected);
            let region = if bucket == ACCESS_POINT { "eu-west-1" } else { "us-east-2" };
            assert_eq!((got.region.as_str(), got.service.as_str()), (region, "s3"), "{expected}");
        }
    }

    #[test]
    fn buckets_that_want_another_signature_are_left_to_the_sdk() {
        for (bucket, scheme) in [
            ("data--use2-az1--x-s3", "sigv4-s3express"),
            ("arn:aws:s3::123456789012:accesspoint:mfzwi23gnjvgw.mrap", "sigv4a"),
        ] {
            let location = Location {
                region: "us-east-2".into(),
                endpoint: None,
                fips: None,
                dual_stack: None,
            };
            let why = resolve_for(bucket, &location, false).unwrap_err().to_string();
            assert!(why.contains(scheme), "{bucket}: {why}");
        }
    }
}
