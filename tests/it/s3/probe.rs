//! The start-up question to the bucket: each mistake has its own sentence.

use millrace::internals::config::S3Client;
use millrace::internals::store::s3::probe::{Probe, ProbeError};
use millrace::internals::store::s3::sdk::S3Store;
use millrace::internals::store::s3::{self, Overrides};

use crate::support::s3::{ACCESS_KEY, BUCKET, Fault, S3Server, silent_port};
use crate::support::s3_client::{UNRESOLVABLE, keys, on_executor, options, overrides, target};

async fn probe_with(overrides: Overrides, bucket: &str) -> Result<Probe, ProbeError> {
    let mut target = target(options(S3Client::default()));
    target.bucket = bucket.to_owned();
    target.prefix = "some/prefix-".into();
    let aws = s3::start(target, overrides).await.expect("everything is given");
    let store = S3Store::new(aws.shared(), 1);
    store.probe().await
}

#[test]
fn a_good_bucket_is_asked_for_one_key_under_the_prefix() {
    let server = S3Server::start();
    let got = on_executor(probe_with(overrides(&server), BUCKET));
    assert_eq!(got, Ok(Probe::Ok));
    let path = server.last_request().path;
    assert!(path.contains("list-type=2") && path.contains("max-keys=1"), "{path}");
    assert!(path.contains("prefix=some%2Fprefix-"), "{path}");
}

#[test]
fn real_mistakes_are_named() {
    let server = S3Server::start();
    let (_nobody, closed) = silent_port();
    on_executor(async {
        let endpoint = server.url();
        let missing = probe_with(overrides(&server), "no-such-bucket").await;
        let expected = ProbeError::NoSuchBucket {
            bucket: "no-such-bucket".into(),
            endpoint: endpoint.clone(),
        };
        assert_eq!(missing, Err(expected));

        let stranger = Overrides { credentials: keys("AKIDX", "s"), ..overrides(&server) };
        let got = probe_with(stranger, BUCKET).await;
        let expected =
            ProbeError::UnknownAccessKey { key: "…".into(), endpoint: endpoint.clone() };
        assert_eq!(got, Err(expected));

        let mistyped = Overrides { credentials: keys(ACCESS_KEY, "s"), ..overrides(&server) };
        let got = probe_with(mistyped, BUCKET).await;
        let expected = ProbeError::WrongSecret { key: "…TEST".into(), endpoint };
        assert_eq!(got, Err(expected));

        let at = |url: String| Overrides { endpoint_url: Some(url), ..overrides(&server) };
        let got = probe_with(at(format!("http://{closed}")), BUCKET).await.unwrap_err();
        assert!(matches!(got, ProbeError::Unreachable { .. }), "{got}");
        assert!(got.to_string().contains("refused"), "{got}");
        let got = probe_with(at(format!("http://{UNRESOLVABLE}")), BUCKET).await;
        assert!(matches!(got, Err(ProbeError::Unresolved { .. })), "{got:?}");
        let got = probe_with(at(server.url().replace("http:", "https:")), BUCKET).await;
        assert!(matches!(got, Err(ProbeError::Tls { .. })), "{got:?}");
    });
}

/// What Garage says of each mistake, all under one code but the clock's.
#[test]
fn mistakes_that_only_the_message_names_are_named() {
    let server = S3Server::start();
    on_executor(async {
        let endpoint = server.url();
        // The end of `ACCESS_KEY`.
        let key = "…TEST".to_owned();
        for (status, code, message, expected) in [
            (
                403,
                "AccessDenied",
                "Forbidden: No such key: GK1",
                ProbeError::UnknownAccessKey { key: key.clone(), endpoint: endpoint.clone() },
            ),
            (
                403,
                "AccessDenied",
                "Forbidden: Invalid signature",
                ProbeError::WrongSecret { key: key.clone(), endpoint: endpoint.clone() },
            ),
            (
                403,
                "AccessDenied",
                "Forbidden: Access key GK1 has expired",
                ProbeError::ExpiredCredentials { key: key.clone(), code: "AccessDenied".into() },
            ),
            (
                401,
                "Unauthorized",
                "Unauthorized",
                ProbeError::ExpiredCredentials { key: key.clone(), code: "Unauthorized".into() },
            ),
            (
                400,
                "InvalidArgument",
                "Invalid Argument: Credential access key has length 25, should be 32",
                ProbeError::UnknownAccessKey { key, endpoint },
            ),
        ] {
            server.fail_next(Fault::error_with(status, code, message, &[]));
            assert_eq!(probe_with(overrides(&server), BUCKET).await, Err(expected), "{message}");
        }
        let suspended = Fault::error_with(403, "UserSuspended", "", &[]);
        server.fail_next(suspended);
        let got = probe_with(overrides(&server), BUCKET).await.unwrap_err().to_string();
        assert!(got.contains("UserSuspended") && got.contains("check the account"), "{got}");
        let denied = "Forbidden: Operation is not allowed for this key.";
        server.fail_next(Fault::error_with(403, "AccessDenied", denied, &[]));
        let got = probe_with(overrides(&server), BUCKET).await;
        assert!(matches!(got, Ok(Probe::Warning { .. })), "{got:?}");
    });
}

#[test]
fn a_wrong_region_names_the_right_one() {
    let server = S3Server::start();
    let told = [("x-amz-bucket-region", "eu-west-1")];
    let body = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>m</Message>\
                <Region>eu-west-1</Region></Error>";
    let in_body = Fault::Reply { status: 400, headers: vec![], body: body.to_owned() };
    on_executor(async {
        for fault in [Fault::error_with(301, "PermanentRedirect", "m", &told), in_body] {
            server.fail_next(fault);
            let got = probe_with(overrides(&server), BUCKET).await.unwrap_err();
            let expected =
                "bucket payloads is in region eu-west-1, not us-east-1: set AWS_REGION=eu-west-1";
            assert_eq!(got.to_string(), expected);
        }
        server.fail_next(Fault::error(301, "PermanentRedirect"));
        let got = probe_with(overrides(&server), BUCKET).await.unwrap_err();
        assert!(matches!(got, ProbeError::OtherRegion { .. }), "{got}");
    });
}

#[test]
fn what_need_not_stop_a_put_is_a_warning() {
    let server = S3Server::start();
    on_executor(async {
        for (status, code, is_down) in
            [(403, "AccessDenied", false), (503, "SlowDown", true), (501, "NotImplemented", false)]
        {
            server.fail_next(Fault::error_with(status, code, "no s3:ListBucket for you", &[]));
            let got = probe_with(overrides(&server), BUCKET).await;
            let Ok(Probe::Warning { said: text, down, .. }) = got else { panic!("{got:?}") };
            assert!(text.contains("no s3:ListBucket for you"), "{text}");
            assert_eq!(down, is_down, "{code}");
        }
    });
}

#[test]
fn other_servers_are_not_taken_for_s3() {
    let server = S3Server::start();
    on_executor(async {
        for status in [200, 404] {
            let body = "<html><body>It works!</body></html>".to_owned();
            let headers = vec![("content-type", "text/html".to_owned())];
            server.fail_next(Fault::Reply { status, headers, body });
            let got = probe_with(overrides(&server), BUCKET).await;
            assert!(matches!(got, Err(ProbeError::NotS3 { .. })), "{status}: {got:?}");
        }
        server.fail_next(Fault::error(400, "ExpiredToken"));
        let got = probe_with(overrides(&server), BUCKET).await;
        assert!(matches!(got, Err(ProbeError::ExpiredCredentials { .. })), "{got:?}");
    });
}
