//! Where the bucket is, by the SDK's own rules: path style or virtual host, FIPS, dual stack, access
//! points.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use aws_sdk_s3::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_smithy_types::endpoint::EndpointAuthScheme;

use crate::store::s3::dial::Origin;
use crate::store::s3::{AwsShared, Place as Where};

/// Where requests go, and what their signatures name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) origin: Origin,
    /// What stands before a key, escaped; begins and ends with `/`.
    pub(super) path: String,
    pub(super) region: String,
    pub(super) service: String,
}

/// A bucket whose requests are not signed as this client signs them, such as one of S3 Express.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Unsupported {
    pub(super) why: String,
}

pub(super) fn resolve(shared: &AwsShared) -> Result<Endpoint, Unsupported> {
    resolve_for(&shared.target().bucket, shared.place(), shared.path_style())
}

/// The host that requests for `bucket` go to; `None` where no endpoint can be made of it.
pub(crate) fn origin(bucket: &str, place: &Where, path_style: bool) -> Option<Origin> {
    resolve_for(bucket, place, path_style).ok().map(|endpoint| endpoint.origin)
}

fn resolve_for(bucket: &str, place: &Where, path_style: bool) -> Result<Endpoint, Unsupported> {
    let unsupported = |why: String| Unsupported { why };
    let params = Params::builder()
        .bucket(bucket)
        .region(&place.region)
        .set_use_fips(place.fips)
        .set_use_dual_stack(place.dual_stack)
        .set_endpoint(place.endpoint.clone())
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
        return Err(unsupported(format!("the endpoint wants a header {name}")));
    }
    let scheme = resolved.auth_schemes().first();
    if let Some(other) = scheme.map(EndpointAuthScheme::name).filter(|name| *name != "sigv4") {
        return Err(unsupported(format!("requests have to be signed with {other}")));
    }
    let part = |name: &str| scheme.and_then(|scheme| scheme.get(name)?.as_string());
    let uri: http::Uri = resolved.url().parse().map_err(|_| {
        let url = resolved.url();
        unsupported(format!("{url} is no address"))
    })?;
    let origin = Origin::of(&uri).filter(|_| uri.query().is_none());
    let origin = origin.ok_or_else(|| unsupported(format!("{uri} is no place for objects")))?;
    Ok(Endpoint {
        origin,
        path: format!("{}/", uri.path().trim_end_matches('/')),
        region: part("signingRegion").unwrap_or(&place.region).to_owned(),
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
            // No certificate is for two labels before the domain.
            (None, "my.bucket", false, "https://s3.us-east-2.amazonaws.com/my.bucket/"),
            (None, "Old_Bucket", false, "https://s3.us-east-2.amazonaws.com/Old_Bucket/"),
            (Some("http://h:9000"), "bucket", true, "http://h:9000/bucket/"),
            (Some("http://h:9000"), "bucket", false, "http://bucket.h:9000/"),
            // The SDK's rules put only names of one label before a host.
            (Some("http://h"), "my.bucket", false, "http://h/my.bucket/"),
            (Some("https://h"), "my.bucket", false, "https://h/my.bucket/"),
            (Some("https://h"), "Old_Bucket", false, "https://h/Old_Bucket/"),
            // An address has no names below it.
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
            let place = Where {
                region: "us-east-2".into(),
                endpoint: endpoint.map(str::to_owned),
                fips: None,
                dual_stack: None,
            };
            let got = resolve_for(bucket, &place, path_style).unwrap();
            let Origin { https, host, port } = &got.origin;
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
            let place =
                Where { region: "us-east-2".into(), endpoint: None, fips: None, dual_stack: None };
            let why = resolve_for(bucket, &place, false).unwrap_err().to_string();
            assert!(why.contains(scheme), "{bucket}: {why}");
        }
    }
}
