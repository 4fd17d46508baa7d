//! Region, endpoint and credentials as `aws-config` finds them in an environment, and their
//! renewal.
//!
//! Every environment is a child process's (see `support::child`); the servers it talks to are this
//! process's.

use std::io::Write;
use std::time::Duration;

use aws_smithy_types::date_time::Format;
use glommio::timer::Timer;
use millrace::internals::config::S3Client;
use millrace::internals::store::s3::{self, Overrides, StartError};
use millrace::internals::store::{Class, Object};

use crate::support::child;
use crate::support::imds::{Imds, RoleKeys};
use crate::support::s3::{ACCESS_KEY, Fault, S3Server, SECRET_KEY};
use crate::support::s3_client::{
    eventually, on_both_clients, on_executor, options, overrides, payload, store_at, store_of,
    target,
};

/// Nothing of this machine's: no home, no metadata service.
const BARE: [(&str, &str); 2] = [("HOME", "/nonexistent"), ("AWS_EC2_METADATA_DISABLED", "true")];

on_both_clients!(
    environment_variables,
    profile_files,
    ecs_container_credentials,
    web_identity,
    keys_the_store_calls_expired_are_replaced,
    a_corrected_credentials_file_is_taken_without_a_restart,
    a_refusal_that_persists_has_the_credentials_loaded_again,
    short_lived_keys_are_replaced_ahead_of_expiry,
    keys_that_cannot_be_renewed_become_store_wide,
    keys_known_to_be_expired_are_not_sent,
);

fn run(client: S3Client, name: &str, env: &[(&str, &str)]) {
    let client = match client {
        S3Client::Direct => "direct",
        S3Client::Sdk => "sdk",
    };
    let env: Vec<_> = BARE.iter().chain(env).copied().chain([("CLIENT", client)]).collect();
    child::run(&format!("s3::credentials::{name}"), &env);
}

async fn from_environment() -> Result<s3::S3Control, StartError> {
    let client = match std::env::var("CLIENT").as_deref() {
        Ok("sdk") => S3Client::Sdk,
        _ => S3Client::Direct,
    };
    s3::start(target(options(client)), Overrides::default()).await
}

async fn refused() -> String {
    from_environment().await.err().expect("no start").to_string()
}

#[test]
#[ignore = "run in a child with an environment of its own"]
fn child_puts_once() {
    on_executor(async {
        let aws = from_environment().await.expect("a whole environment");
        let store = store_of(&aws, 1);
        store.put(&Object::of("k", &payload("{}"))).await.expect("a put");
    });
}

fn environment_variables(client: S3Client) {
    let server = S3Server::start();
    let url = server.url();
    let keys = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
    for (endpoint, region, signed_for) in [
        ("AWS_ENDPOINT_URL", None, "us-east-1"),
        ("AWS_ENDPOINT_URL_S3", Some("eu-north-1"), "eu-north-1"),
    ] {
        let mut env = keys.to_vec();
        env.push((endpoint, &url));
        env.extend(region.map(|r| ("AWS_REGION", r)));
        run(client, "child_puts_once", &env);
        let seen = server.last_request();
        let authorization = seen.header("authorization").unwrap();
        assert!(authorization.contains(&format!("/{signed_for}/s3/")), "{authorization}");
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn profile_files(client: S3Client) {
    let server = S3Server::start();
    let config = file(&format!(
        "[profile ingest]\nregion = sa-east-1\nservices = mine\n\
         [services mine]\ns3 =\n  endpoint_url = {}\n",
        server.url()
    ));
    let credentials = file(&format!(
        "[ingest]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    ));
    run(
        client,
        "child_puts_once",
        &[
            ("AWS_PROFILE", "ingest"),
            ("AWS_CONFIG_FILE", config.path().to_str().unwrap()),
            ("AWS_SHARED_CREDENTIALS_FILE", credentials.path().to_str().unwrap()),
        ],
    );
    let seen = server.last_request();
    assert!(seen.header("authorization").unwrap().contains("/sa-east-1/s3/"));
}

fn soon() -> String {
    let now = aws_smithy_types::DateTime::from(std::time::SystemTime::now());
    let later = aws_smithy_types::DateTime::from_secs(now.secs() + 3600);
    later.fmt(Format::DateTime).unwrap()
}

fn ecs_container_credentials(client: S3Client) {
    let server = S3Server::start();
    let agent = S3Server::start();
    agent.fail_when(|_| {
        let body = serde_json::json!({
            "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "Token": "tok",
            "Expiration": soon(),
        });
        let headers = vec![("content-type", "application/json".to_owned())];
        Some(Fault::Reply { status: 200, headers, body: body.to_string() })
    });
    let full_uri = format!("{}/role", agent.url());
    run(
        client,
        "child_puts_once",
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &full_uri),
            ("AWS_ENDPOINT_URL_S3", &server.url()),
        ],
    );
    assert_eq!(server.last_request().header("x-amz-security-token"), Some("tok"));
}

fn web_identity(client: S3Client) {
    let server = S3Server::start();
    let sts = S3Server::start();
    sts.fail_when(|_| {
        let body = format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/r/s</Arn>\
             <AssumedRoleId>a:b</AssumedRoleId></AssumedRoleUser><Credentials>\
             <AccessKeyId>{ACCESS_KEY}</AccessKeyId><SecretAccessKey>{SECRET_KEY}</SecretAccessKey>\
             <SessionToken>web</SessionToken><Expiration>{}</Expiration></Credentials>\
             </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
            soon()
        );
        Some(Fault::Reply { status: 200, headers: vec![], body })
    });
    let token = file("a-web-identity-token");
    run(
        client,
        "child_puts_once",
        &[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.path().to_str().unwrap()),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL_STS", &sts.url()),
            ("AWS_ENDPOINT_URL_S3", &server.url()),
        ],
    );
    assert_eq!(server.last_request().header("x-amz-security-token"), Some("web"));
}

#[test]
#[ignore = "run in a child with an environment of its own"]
fn child_finds_region_and_keys_in_metadata() {
    on_executor(async {
        let shared = from_environment().await.expect("a whole environment").shared();
        assert_eq!((shared.region(), shared.endpoint()), ("eu-central-1", None));
        assert_eq!(shared.credentials().credentials.access_key_id(), ACCESS_KEY);
    });
}

fn role(access_key: &str, life_s: i64) -> RoleKeys {
    RoleKeys {
        access_key: access_key.to_owned(),
        secret_key: SECRET_KEY.to_owned(),
        token: format!("token of {access_key}"),
        life_s,
    }
}

#[test]
fn metadata_gives_region_and_keys() {
    let imds = Imds::start(|_| role(ACCESS_KEY, 3600));
    let env = [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url()),
        ("AWS_EC2_METADATA_DISABLED", "false".to_owned()),
    ];
    let env: Vec<_> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
    run(S3Client::Direct, "child_finds_region_and_keys_in_metadata", &env);
}

#[test]
#[ignore = "run in a child with an environment of its own"]
fn child_outlives_its_first_keys() {
    on_executor(async {
        let aws = from_environment().await.expect("a whole environment");
        let store = store_of(&aws, 1);
        store.put(&Object::of("a", &payload("{}"))).await.expect("the first keys");
        let error = store.put(&Object::of("b", &payload("{}"))).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (Class::Transient, "ExpiredToken"));
        let shared = aws.shared();
        eventually("newer keys", || shared.credentials().generation > 1).await;
        store.put(&Object::of("b", &payload("{}"))).await.expect("the second keys");
    });
}

fn keys_the_store_calls_expired_are_replaced(client: S3Client) {
    let server = S3Server::start();
    server.add_keys("AKIDSECOND", SECRET_KEY);
    server.fail_when(|seen| {
        let first = seen.header("authorization")?.contains(ACCESS_KEY);
        (first && seen.path.contains("/b")).then(|| Fault::error(400, "ExpiredToken"))
    });
    let imds = Imds::start(|n| role(if n == 0 { ACCESS_KEY } else { "AKIDSECOND" }, 3600));
    let (imds_url, s3_url) = (imds.url(), server.url());
    run(
        client,
        "child_outlives_its_first_keys",
        &[
            ("AWS_EC2_METADATA_DISABLED", "false"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &imds_url),
            ("AWS_ENDPOINT_URL_S3", &s3_url),
        ],
    );
    assert_eq!(imds.fetched(), 2);
    assert_eq!(server.objects().len(), 2);
}

#[test]
#[ignore = "run in a child with an environment of its own"]
fn child_takes_corrected_keys_from_its_file() {
    on_executor(async {
        let aws = from_environment().await.expect("a whole environment");
        let store = store_of(&aws, 1);
        let file = |name: &str| std::env::var(name).expect("given by the parent");
        std::fs::copy(file("CORRECTED"), file("AWS_SHARED_CREDENTIALS_FILE")).unwrap();
        let error = store.put(&Object::of("k", &payload("{}"))).await.unwrap_err();
        assert_eq!(error.class, Class::StoreWide, "{error}");
        let shared = aws.shared();
        eventually("newer keys", || shared.credentials().generation > 1).await;
        assert!(!shared.credentials().stuck, "they are not the same");
        store.put(&Object::of("k", &payload("{}"))).await.expect("the second keys");
        Timer::new(Duration::from_millis(1_500)).await;
        assert_eq!(shared.credentials().generation, 2, "what works is not asked for again");
    });
}

#[test]
#[ignore = "run in a child with an environment of its own"]
fn child_takes_keys_from_its_file_that_come_late() {
    on_executor(async {
        let aws = from_environment().await.expect("a whole environment");
        let (store, shared) = (store_of(&aws, 1), aws.shared());
        let file = |name: &str| std::env::var(name).expect("given by the parent");
        let refused = async || {
            let error = store.put(&Object::of("k", &payload("{}"))).await.unwrap_err();
            assert_eq!((error.class, error.code.as_str()), (Class::StoreWide, "AccessDenied"));
        };
        refused().await;
        eventually("loaded again in vain", || shared.credentials().stuck).await;
        std::fs::copy(file("CORRECTED"), file("AWS_SHARED_CREDENTIALS_FILE")).unwrap();
        refused().await;
        eventually("newer keys", || !shared.credentials().stuck).await;
        store.put(&Object::of("k", &payload("{}"))).await.expect("the second keys");
    });
}

/// A store without a code for a wrong secret, and an operator who finds it only after it was read
/// again.
fn a_refusal_that_persists_has_the_credentials_loaded_again(client: S3Client) {
    let server = S3Server::start();
    server.fail_when(|seen| {
        let wrong = seen.header("authorization")?.contains("AKIDWRONG");
        let message = "Forbidden: Operation is not allowed for this key.";
        wrong.then(|| Fault::error_with(403, "AccessDenied", message, &[]))
    });
    let pair = |key: &str| {
        file(&format!(
            "[default]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET_KEY}\n"
        ))
    };
    let (wrong, corrected, url) = (pair("AKIDWRONG"), pair(ACCESS_KEY), server.url());
    run(
        client,
        "child_takes_keys_from_its_file_that_come_late",
        &[
            ("AWS_SHARED_CREDENTIALS_FILE", wrong.path().to_str().unwrap()),
            ("CORRECTED", corrected.path().to_str().unwrap()),
            ("AWS_ENDPOINT_URL_S3", &url),
        ],
    );
    assert_eq!(server.objects().len(), 1);
}

fn a_corrected_credentials_file_is_taken_without_a_restart(client: S3Client) {
    let pair = |key: &str, secret: &str| {
        file(&format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"))
    };
    let path = |f: &tempfile::NamedTempFile| f.path().to_str().unwrap().to_owned();
    let denied = |message| Some(Fault::error_with(403, "AccessDenied", message, &[]));
    // A key that was taken away, a secret that is wrong, and what no test server says by itself:
    // Garage, R2, a proxy, and whatever else forbids.
    for (key, secret, fault) in [
        ("AKIDGONE", SECRET_KEY, None),
        (ACCESS_KEY, "mistyped", None),
        ("AKIDGONE", SECRET_KEY, Some(Fault::error(400, "InvalidToken"))),
        (ACCESS_KEY, "mistyped", denied("Forbidden: Invalid signature")),
        ("AKIDGONE", SECRET_KEY, denied("Forbidden: No such key: AKIDGONE")),
        ("AKIDGONE", SECRET_KEY, Some(Fault::error(401, "Unauthorized"))),
        ("AKIDGONE", SECRET_KEY, Some(Fault::error(403, "SomethingNew"))),
        (
            "AKIDGONE",
            SECRET_KEY,
            Some(Fault::Reply { status: 403, headers: vec![], body: String::new() }),
        ),
    ] {
        let server = S3Server::start();
        fault.into_iter().for_each(|fault| server.fail_next(fault));
        let (wrong, corrected) = (pair(key, secret), pair(ACCESS_KEY, SECRET_KEY));
        let (wrong, corrected, url) = (path(&wrong), path(&corrected), server.url());
        run(
            client,
            "child_takes_corrected_keys_from_its_file",
            &[
                ("AWS_SHARED_CREDENTIALS_FILE", &wrong),
                ("CORRECTED", &corrected),
                ("AWS_ENDPOINT_URL_S3", &url),
            ],
        );
        assert_eq!(server.objects().len(), 1);
    }
}

#[test]
#[ignore = "run in a child with an environment of its own"]
fn child_outlives_a_file_that_is_no_text() {
    on_executor(async {
        let aws = from_environment().await.expect("a whole environment");
        let store = store_of(&aws, 1);
        let file = |name: &str| std::env::var(name).expect("given by the parent");
        std::fs::write(file("AWS_SHARED_CREDENTIALS_FILE"), b"\xff\xfe").unwrap();
        let error = store.put(&Object::of("k", &payload("{}"))).await.unwrap_err();
        assert_eq!(error.class, Class::StoreWide, "{error}");
        // Longer than control takes to look; what it had stays.
        Timer::new(Duration::from_millis(300)).await;
        let shared = aws.shared();
        assert_eq!(shared.credentials().generation, 1);
        std::fs::copy(file("CORRECTED"), file("AWS_SHARED_CREDENTIALS_FILE")).unwrap();
        eventually("newer keys", || shared.credentials().generation > 1).await;
        store.put(&Object::of("k", &payload("{}"))).await.expect("the second keys");
    });
}

#[test]
fn a_credentials_file_that_cannot_be_read_meanwhile_costs_nothing() {
    let server = S3Server::start();
    let pair = |key: &str| {
        file(&format!(
            "[default]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET_KEY}\n"
        ))
    };
    let (wrong, corrected) = (pair("AKIDGONE"), pair(ACCESS_KEY));
    run(
        S3Client::Direct,
        "child_outlives_a_file_that_is_no_text",
        &[
            ("AWS_SHARED_CREDENTIALS_FILE", wrong.path().to_str().unwrap()),
            ("CORRECTED", corrected.path().to_str().unwrap()),
            ("AWS_ENDPOINT_URL_S3", &server.url()),
        ],
    );
    assert_eq!(server.objects().len(), 1);
}

#[test]
#[ignore = "run in a child with an environment of its own"]
fn child_keeps_putting_across_expiry() {
    on_executor(async {
        let aws = from_environment().await.expect("a whole environment");
        let store = store_of(&aws, 1);
        for i in 0..50 {
            store.put(&Object::of(&format!("k{i}"), &payload("{}"))).await.expect("never expired");
            Timer::new(Duration::from_millis(170)).await;
        }
        assert!(aws.shared().credentials().generation >= 3);
    });
}

fn short_lived_keys_are_replaced_ahead_of_expiry(client: S3Client) {
    let server = S3Server::start();
    let imds = Imds::start(|_| role(ACCESS_KEY, 5));
    let (imds_url, s3_url) = (imds.url(), server.url());
    run(
        client,
        "child_keeps_putting_across_expiry",
        &[
            ("AWS_EC2_METADATA_DISABLED", "false"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &imds_url),
            ("AWS_ENDPOINT_URL_S3", &s3_url),
        ],
    );
    assert_eq!(server.objects().len(), 50);
}

fn keys_that_cannot_be_renewed_become_store_wide(client: S3Client) {
    let server = S3Server::start();
    server.fail_when(|_| Some(Fault::error(400, "ExpiredToken")));
    on_executor(async {
        let (aws, store) = store_at(target(options(client)), overrides(&server)).await;
        let put = async || store.put(&Object::of("k", &payload("{}"))).await.unwrap_err().class;
        assert_eq!(put().await, Class::Transient);
        let shared = aws.shared();
        eventually("asked again", || shared.credentials().stuck).await;
        assert_eq!(put().await, Class::StoreWide);
    });
}

fn keys_known_to_be_expired_are_not_sent(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let past = std::time::SystemTime::now() - Duration::from_secs(60);
        let mut overrides = overrides(&server);
        let keys =
            aws_credential_types::Credentials::new(ACCESS_KEY, SECRET_KEY, None, Some(past), "t");
        overrides.credentials = Some(keys);
        let (_aws, store) = store_at(target(options(client)), overrides).await;
        let error = store.put(&Object::of("k", &payload("{}"))).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (Class::Transient, "ExpiredCredentials"));
        assert!(server.requests().is_empty());
    });
}

#[test]
#[ignore = "run in a child with an environment of its own"]
fn child_prints_why_it_cannot_start() {
    println!("refused: {}", on_executor(refused()));
}

#[test]
fn every_refusal_is_one_clear_sentence() {
    let process = file("[default]\ncredential_process = /bin/true\n");
    let sso = file(
        "[default]\nsso_start_url = https://x.awsapps.com/start\nsso_region = us-east-1\n\
         sso_account_id = 1\nsso_role_name = r\n",
    );
    let login = file("[default]\nlogin_session = arn:aws:iam::123456789012:user/Admin\n");
    let path = |f: &tempfile::NamedTempFile| f.path().to_str().unwrap().to_owned();
    let (process, sso, login) = (path(&process), path(&sso), path(&login));
    let region = ("AWS_REGION", "us-east-1");
    let uses = |what: &str| format!("the AWS profile uses {what}, which millrace does not support");
    let none = "no AWS credentials found".to_owned();
    let cases = [
        (vec![], "no AWS region is set for bucket payloads: set AWS_REGION".to_owned()),
        (vec![region], format!("{none}: set AWS_ACCESS_KEY_ID")),
        (vec![region, ("AWS_PROFILE", "absent")], format!("{none} (AWS_PROFILE=absent)")),
        (vec![region, ("AWS_CONFIG_FILE", &process)], uses("credential_process")),
        (vec![region, ("AWS_CONFIG_FILE", &sso)], uses("SSO")),
        (vec![region, ("AWS_CONFIG_FILE", &login)], uses("login_session")),
        (
            vec![region, ("AWS_ENDPOINT_URL", "localhost:9000")],
            "endpoint \"localhost:9000\" is not usable".to_owned(),
        ),
        (
            vec![region, ("AWS_ENDPOINT_URL", "http://user:secret@localhost:9000")],
            "endpoint \"…@localhost:9000\" is not usable".to_owned(),
        ),
    ];
    for (env, expected) in cases {
        let env: Vec<_> = BARE.iter().chain(&env).copied().collect();
        let output = child::run("s3::credentials::child_prints_why_it_cannot_start", &env);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&expected), "{env:?}: {text}");
    }
}
