//! Where the bucket is, by the SDK's own rules: path style or virtual host, FIPS, dual stack, access
//! points.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use aws_sdk_s3::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_smithy_types::Document;

use crate::aws::AwsShared;
use crate::store::dial::Origin;

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
    let unsupported = |why: String| Unsupported { why };
    let place = shared.place();
    let params = Params::builder()
        .bucket(&shared.target().bucket)
        .region(&place.region)
        .set_use_fips(place.fips)
        .set_use_dual_stack(place.dual_stack)
        .set_endpoint(place.endpoint.clone())
        .force_path_style(shared.path_style())
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
    let scheme = resolved.properties().get("authSchemes").and_then(|schemes| {
        let Document::Array(schemes) = schemes else { return None };
        schemes.first()?.as_object()
    });
    let part = |name: &str| scheme.and_then(|scheme| scheme.get(name)?.as_string());
    if let Some(other) = part("name").filter(|name| *name != "sigv4") {
        return Err(unsupported(format!("requests have to be signed with {other}")));
    }
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
