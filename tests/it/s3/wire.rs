//! What a PUT looks like on the wire: options as headers, checksum as a header, addressing, TLS.

use std::sync::Arc;

use millrace::internals::config::{Checksum, S3Client, S3Options, SignPayload};
use millrace::internals::store::s3;
use millrace::internals::store::s3::probe::Probe;
use millrace::internals::store::s3::sdk::S3Store;
use millrace::internals::store::{Class, Object};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::support::s3::{ACCESS_KEY, BUCKET, Fault, Options, S3Server, SECRET_KEY, Seen};
use crate::support::s3_client::{
    host, on_both_clients, on_executor, options, overrides, payload, store_at, store_with, target,
};
use crate::support::{child, run};

on_both_clients!(
    nothing_is_sent_that_was_not_asked_for,
    every_option_is_a_header,
    a_checksum_is_a_header_and_never_a_trailer,
    a_custom_endpoint_is_path_style_unless_told_otherwise,
    an_endpoint_may_have_a_path,
    an_access_point_is_named_in_the_host,
    aws_is_https_virtual_host_and_crc64nvme,
    an_unknown_authority_is_refused_and_https_is_not_left,
    signatures_cover_the_payload_where_tls_does_not,
);

/// Puts `{}` under `k` with `options` to a server that only looks, and returns the request.
fn seen_with(options: S3Options) -> Seen {
    let server = S3Server::start();
    // s3s-fs takes neither every storage class nor every kind of encryption.
    server.fail_when(|_| Some(Fault::Reply { status: 200, headers: vec![], body: String::new() }));
    on_executor(async {
        let (_aws, store) = store_with(&server, options).await;
        store.put(&Object::of("k", &payload("{}"))).await.expect("a plain 200");
    });
    server.last_request()
}

fn nothing_is_sent_that_was_not_asked_for(client: S3Client) {
    let seen = seen_with(options(client));
    assert_eq!(seen.header("content-type"), Some("application/octet-stream"));
    assert_eq!(seen.header("content-length"), Some("2"));
    let body_hash = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    assert_eq!(seen.header("x-amz-content-sha256"), Some(body_hash));
    let unwanted = |name: &str| {
        name.starts_with("x-amz-checksum")
            || name.starts_with("x-amz-server-side")
            || ["x-amz-expected-bucket-owner", "x-amz-tagging", "proxy-authorization"]
                .contains(&name)
            || ["x-amz-acl", "x-amz-storage-class", "x-amz-trailer", "content-encoding"]
                .contains(&name)
            || ["transfer-encoding", "expect", "x-amz-sdk-checksum-algorithm"].contains(&name)
            || name.starts_with("if-")
    };
    let sent: Vec<_> = seen.headers.keys().map(|n| n.as_str()).filter(|n| unwanted(n)).collect();
    assert!(sent.is_empty(), "{sent:?}");
}

fn every_option_is_a_header(client: S3Client) {
    let seen = seen_with(S3Options {
        acl: Some("bucket-owner-full-control".into()),
        storage_class: Some("GLACIER_IR".into()),
        sse: Some("aws:kms".into()),
        kms_key_id: Some("arn:aws:kms:eu-west-1:1:key/2".into()),
        bucket_key: Some(true),
        tags: Some("team=data%20eng&env=prod".into()),
        expected_owner: Some("123456789012".into()),
        content_type: "application/json".into(),
        if_none_match: true,
        ..options(client)
    });
    for (name, value) in [
        ("x-amz-acl", "bucket-owner-full-control"),
        ("x-amz-storage-class", "GLACIER_IR"),
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", "arn:aws:kms:eu-west-1:1:key/2"),
        ("x-amz-server-side-encryption-bucket-key-enabled", "true"),
        ("x-amz-tagging", "team=data%20eng&env=prod"),
        ("x-amz-expected-bucket-owner", "123456789012"),
        ("content-type", "application/json"),
        ("if-none-match", "*"),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
    let authorization = seen.header("authorization").unwrap();
    assert!(authorization.contains(";if-none-match;"), "signed: {authorization}");
    for kind in ["AES256", "aws:kms:dsse"] {
        let seen = seen_with(S3Options { sse: Some(kind.into()), ..options(client) });
        assert_eq!(seen.header("x-amz-server-side-encryption"), Some(kind));
    }
}

fn a_checksum_is_a_header_and_never_a_trailer(client: S3Client) {
    for (checksum, name, value) in [
        (Checksum::Crc32c, "x-amz-checksum-crc32c", "KXvQqg=="),
        (Checksum::Crc64Nvme, "x-amz-checksum-crc64nvme", "Sv1wpwepjTw="),
        (Checksum::Sha256, "x-amz-checksum-sha256", "RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o="),
    ] {
        let seen = seen_with(S3Options { checksum, ..options(client) });
        assert_eq!(seen.header(name), Some(value), "{name}");
        assert_eq!(seen.header("x-amz-trailer"), None);
        assert_eq!(seen.header("content-encoding"), None);
        assert_eq!(seen.header("content-length"), Some("2"));
        assert!(!seen.header("x-amz-content-sha256").unwrap().starts_with("STREAMING"));
    }
    // s3s checks the sums it is given.
    let server = S3Server::start();
    on_executor(async {
        for checksum in [Checksum::Crc32c, Checksum::Crc64Nvme, Checksum::Sha256] {
            let (_aws, store) =
                store_with(&server, S3Options { checksum, ..options(client) }).await;
            store.put(&Object::of("k", &payload("some bytes"))).await.expect("the right sum");
        }
    });
}

fn a_custom_endpoint_is_path_style_unless_told_otherwise(client: S3Client) {
    let domain = "store.example";
    let start = Options { domain: Some(domain.into()), ..Options::default() };
    let server = S3Server::start_with(start);
    on_executor(async {
        let bucket_host = format!("{BUCKET}.{domain}");
        let mut overrides = overrides(&server);
        overrides.endpoint_url = Some(format!("http://{domain}"));
        overrides.hosts = vec![host(domain, server.addr()), host(&bucket_host, server.addr())];
        for (force, path, host) in [
            (None, format!("/{BUCKET}/a%20b"), domain),
            (Some(true), format!("/{BUCKET}/a%20b"), domain),
            (Some(false), "/a%20b".to_owned(), bucket_host.as_str()),
        ] {
            let options = S3Options { force_path_style: force, ..options(client) };
            let (_aws, store) = store_at(target(options), overrides.clone()).await;
            store.put(&Object::of("a b", &payload("{}"))).await.expect("signed for its host");
            let seen = server.last_request();
            assert_eq!(seen.path.split('?').next(), Some(path.as_str()));
            assert_eq!(seen.header("host"), Some(host));
        }
    });
}

fn an_endpoint_may_have_a_path(client: S3Client) {
    let server = S3Server::start();
    // Its paths are not those of a store.
    server.fail_when(|_| Some(Fault::Reply { status: 200, headers: vec![], body: String::new() }));
    let url = server.url();
    on_executor(async {
        for (endpoint, force, path) in [
            (format!("{url}/"), None, format!("/{BUCKET}/a%20b")),
            (format!("{url}//"), None, format!("/{BUCKET}/a%20b")),
            (format!("{url}/v1/s3"), None, format!("/v1/s3/{BUCKET}/a%20b")),
            (format!("{url}/v1/s3/"), Some(true), format!("/v1/s3/{BUCKET}/a%20b")),
            (format!("{url}/{BUCKET}"), Some(true), format!("/{BUCKET}/{BUCKET}/a%20b")),
        ] {
            let mut overrides = overrides(&server);
            overrides.endpoint_url = Some(endpoint.clone());
            let options = S3Options { force_path_style: force, ..options(client) };
            let (_aws, store) = store_at(target(options), overrides).await;
            store.put(&Object::of("a b", &payload("{}"))).await.expect("a plain 200");
            let seen = server.last_request();
            assert_eq!(seen.path.split('?').next(), Some(path.as_str()), "{endpoint}");
        }
        let mut overrides = overrides(&server);
        overrides.endpoint_url = Some(format!("{url}/{BUCKET}"));
        let refused = s3::start(target(options(client)), overrides).await.err();
        let text = refused.expect("the bucket is there already").to_string();
        assert!(text.contains(&format!("set the endpoint to {url},")), "{text}");
    });
}

fn an_access_point_is_named_in_the_host(client: S3Client) {
    let domain = "s3-accesspoint.eu-west-1.amazonaws.com";
    let bucket = "mine-123456789012";
    let name = format!("{bucket}.{domain}");
    let (tls, root, _) = tls_for(&[&name]);
    let server = S3Server::start_with(Options {
        tls: Some(tls),
        domain: Some(domain.to_owned()),
        ..Options::default()
    });
    let objects = server.bucket().with_file_name(bucket);
    std::fs::create_dir(&objects).unwrap();
    on_executor(async {
        let mut overrides = overrides(&server);
        overrides.endpoint_url = None;
        // Not the access point's, which says its own.
        overrides.region = Some("us-east-2".into());
        overrides.hosts = vec![host(&name, server.addr())];
        overrides.roots = vec![root];
        let mut target = target(options(client));
        target.bucket = "arn:aws:s3:eu-west-1:123456789012:accesspoint/mine".into();
        let (aws, store) = store_at(target, overrides).await;
        store.put(&Object::of("k", &payload("{}"))).await.expect("a put");
        let seen = server.last_request();
        let authorization = seen.header("authorization").unwrap();
        assert!(authorization.contains("/eu-west-1/s3/aws4_request"), "{authorization}");
        assert_eq!(S3Store::new(aws.shared(), 1).probe().await, Ok(Probe::Ok));
    });
    assert_eq!(std::fs::read(objects.join("k")).unwrap(), b"{}");
}

/// An authority of its own and a server certificate for `names`.
pub fn tls_for(names: &[&str]) -> (Arc<ServerConfig>, CertificateDer<'static>, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let cert = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    (Arc::new(config), authority.der().clone(), authority.pem())
}

/// AWS itself, as far as a name, a certificate and a signature go.
fn aws_is_https_virtual_host_and_crc64nvme(client: S3Client) {
    let domain = "s3.eu-west-1.amazonaws.com";
    let name = format!("{BUCKET}.{domain}");
    let (tls, root, _) = tls_for(&[&name]);
    let server = S3Server::start_with(Options {
        tls: Some(tls),
        domain: Some(domain.to_owned()),
        ..Options::default()
    });
    on_executor(async {
        let mut overrides = overrides(&server);
        overrides.endpoint_url = None;
        overrides.region = Some("eu-west-1".into());
        overrides.hosts = vec![host(&name, server.addr())];
        overrides.roots = vec![root];
        let (_aws, store) = store_at(target(options(client)), overrides).await;
        store.put(&Object::of("k", &payload("{}"))).await.expect("a put over TLS");
        store.put(&Object::of("large", &payload(vec![1; 3_000_000]))).await.expect("a large one");
        let body = [payload(vec![1; 40_000]), payload(vec![2; 300_000]), payload(vec![3; 5])];
        let object = Object { key: "parts", body: &body, coding: None, sums: None };
        store.put(&object).await.expect("one of several parts");
    });
    let parts = [vec![1; 40_000], vec![2; 300_000], vec![3; 5]].concat();
    assert!(server.object("parts") == Some(parts));
    assert_eq!(server.object("k"), Some(b"{}".to_vec()));
    assert_eq!(server.object("large").map(|b| b.len()), Some(3_000_000));
    assert_eq!(server.accepted_connections(), 1);
    let seen = server.last_request();
    assert_eq!(seen.header("host"), Some(name.as_str()));
    assert!(seen.header("x-amz-checksum-crc64nvme").is_some());
    assert_eq!(seen.header("x-amz-trailer"), None);
    assert_eq!(seen.header("content-encoding"), None);
    assert!(seen.header("authorization").unwrap().contains("/eu-west-1/s3/aws4_request"));
}

fn an_unknown_authority_is_refused_and_https_is_not_left(client: S3Client) {
    let (tls, root, _) = tls_for(&["localhost", "127.0.0.1"]);
    let server = S3Server::start_with(Options { tls: Some(tls), ..Options::default() });
    let plain = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        let error = store.put(&Object::of("k", &payload("{}"))).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (Class::Transient, "TlsFailed"));
        assert!(error.message.contains("UnknownIssuer"), "{}", error.message);

        let trusting =
            millrace::internals::store::s3::Overrides { roots: vec![root], ..overrides(&server) };
        let (_aws, store) = store_at(target(options(client)), trusting).await;
        store.put(&Object::of("k", &payload("{}"))).await.expect("a known authority");
        server.fail_next(Fault::redirect(&format!("{}/{BUCKET}/k", plain.url())));
        let error = store.put(&Object::of("k", &payload("{}"))).await.unwrap_err();
        assert_eq!(error.code, "TemporaryRedirect");
        assert!(plain.requests().is_empty());
    });
}

fn signatures_cover_the_payload_where_tls_does_not(client: S3Client) {
    let hash = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    for (sign_payload, expected) in [
        (SignPayload::Auto, hash),
        (SignPayload::Always, hash),
        (SignPayload::Never, "UNSIGNED-PAYLOAD"),
    ] {
        let seen = seen_with(S3Options { sign_payload, ..options(client) });
        assert_eq!(seen.header("x-amz-content-sha256"), Some(expected));
    }
    let (tls, root, _) = tls_for(&["127.0.0.1"]);
    let server = S3Server::start_with(Options { tls: Some(tls), ..Options::default() });
    on_executor(async {
        let trusting =
            millrace::internals::store::s3::Overrides { roots: vec![root], ..overrides(&server) };
        for (sign_payload, expected) in [
            (SignPayload::Auto, "UNSIGNED-PAYLOAD"),
            (SignPayload::Always, hash),
            (SignPayload::Never, "UNSIGNED-PAYLOAD"),
        ] {
            let options = S3Options { sign_payload, ..options(client) };
            let (_aws, store) = store_at(target(options), trusting.clone()).await;
            store.put(&Object::of("k", &payload("{}"))).await.expect("a put over TLS");
            let seen = server.last_request();
            assert_eq!(seen.header("x-amz-content-sha256"), Some(expected));
        }
    });
}

/// Both clients' requests for the same objects, side by side.
#[test]
fn both_clients_send_the_same() {
    let server = S3Server::start();
    server.fail_when(|_| Some(Fault::Reply { status: 200, headers: vec![], body: String::new() }));
    // All of ASCII, in a few keys, and characters of two, three and four bytes.
    let ascii: Vec<char> = (0..=127u8).map(char::from).collect();
    let mut keys: Vec<String> = ascii.chunks(40).map(|chars| chars.iter().collect()).collect();
    keys.extend(["größe-ключ-鍵-🔑/./..//~", "/", "a%2Fb%", " a "].map(str::to_owned));
    on_executor(async {
        for key in &keys {
            let mut sent = Vec::new();
            for client in [S3Client::Direct, S3Client::Sdk] {
                let options = S3Options {
                    acl: Some("private".into()),
                    storage_class: Some("STANDARD_IA".into()),
                    sse: Some("aws:kms".into()),
                    kms_key_id: Some("key id".into()),
                    bucket_key: Some(false),
                    tags: Some("a=1&b=%2F".into()),
                    expected_owner: Some("123456789012".into()),
                    checksum: Checksum::Crc64Nvme,
                    if_none_match: true,
                    ..options(client)
                };
                let (_aws, store) = store_at(target(options), overrides(&server)).await;
                store.put(&Object::of(key, &payload("{}"))).await.expect("a plain 200");
                sent.push(server.last_request());
            }
            let [direct, sdk] = &sent[..] else { panic!("two requests") };
            // The SDK marks its operation in the query, which stores ignore.
            let sdk_path = sdk.path.trim_end_matches("?x-id=PutObject");
            assert_eq!(direct.path, sdk_path, "{key:?}");
            // What names the client itself, its attempt, its time and its signature differs.
            let differs = ["x-amz-date", "authorization", "user-agent"];
            let own = ["x-amz-user-agent", "amz-sdk-invocation-id", "amz-sdk-request"];
            for (name, value) in &sdk.headers {
                let name = name.as_str();
                if own.contains(&name) || name == "x-amz-sdk-checksum-algorithm" {
                    continue;
                }
                let ours = direct.headers.get(name).unwrap_or_else(|| panic!("{name} is not sent"));
                assert!(ours == value || differs.contains(&name), "{name}: {ours:?}, {value:?}");
            }
            for name in direct.headers.keys() {
                assert!(sdk.headers.contains_key(name), "{name} is sent by us alone");
            }
        }
    });
}

#[test]
fn authorities_come_from_the_environment() {
    let (tls, _, pem) = tls_for(&["127.0.0.1"]);
    let server = S3Server::start_with(Options { tls: Some(tls), ..Options::default() });
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("ca.pem");
    std::fs::write(&bundle, pem).unwrap();
    let bundle = bundle.to_str().unwrap();
    let url = server.url();
    for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        let env = [
            (variable, bundle),
            ("AWS_ENDPOINT_URL_S3", &url),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("HOME", "/nonexistent"),
        ];
        child::run("s3::credentials::child_puts_once", &env);
    }
    assert_eq!(server.requests().len(), 2);
}

/// What `openssl req -x509` makes: a CA's certificate, which the server presents as its own.
fn self_signed_for(name: &str) -> (Arc<ServerConfig>, String) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    (Arc::new(config), cert.pem())
}

#[test]
fn a_self_signed_certificate_in_the_bundle_is_trusted_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bundled, expected) in [
        ("127.0.0.1", true, None),
        ("127.0.0.1", false, Some("put that certificate itself in AWS_CA_BUNDLE")),
        ("elsewhere.example", true, Some("give an endpoint by a name that its certificate is for")),
    ] {
        let (tls, own) = self_signed_for(name);
        let (_, another) = self_signed_for(name);
        let server = S3Server::start_with(Options { tls: Some(tls), ..Options::default() });
        let bundle = folder.path().join("bundle.pem");
        std::fs::write(&bundle, if bundled { another + &own } else { another }).unwrap();
        let url = server.url();
        let env = [
            ("AWS_CA_BUNDLE", bundle.to_str().unwrap()),
            ("AWS_ENDPOINT_URL_S3", &url),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("HOME", "/nonexistent"),
            ("STORE", "s3://payloads/"),
            ("LISTEN", "127.0.0.1:0"),
            ("ADMIN_LISTEN", "127.0.0.1:0"),
            ("CORES", "0"),
        ];
        let output = run(folder.path(), &["check"], &env);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let status = output.status.code();
        match expected {
            None => assert_eq!(status, Some(0), "{text}"),
            Some(part) => assert!(status == Some(2) && text.contains(part), "{text}"),
        }
    }
}
