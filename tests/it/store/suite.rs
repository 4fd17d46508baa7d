//! What every store must do, run on every store: bytes come back as they went in, under the key
//! they were given.
//!
//! [`conformance`] knows no store in particular; the tests below plug them in, each with its own way
//! to read back.

use aws_credential_types::Credentials;
use millrace::internals::coding::Coding;
use millrace::internals::config::{
    Checksum, FaultPlan, FileMode, S3Client, S3Options, SignPayload,
};
use millrace::internals::queue::job::{Origin, Payload};
use millrace::internals::store::file::FileStore;
use millrace::internals::store::s3::sdk::S3Store;
use millrace::internals::store::s3::{self, Overrides, S3Target};
use millrace::internals::store::{Class, Object, Store, StoreSeed};

use crate::support::child;
use crate::support::s3::{ACCESS_KEY, BUCKET, Fault, S3Server, SECRET_KEY};
use crate::support::s3_client::{
    on_both_clients, on_executor, options, overrides, payload, store_at, store_with, target,
};

/// Keys that some layer could spoil: escaping, signing, splitting.
const AWKWARD_KEYS: &[&str] = &[
    "plain.json",
    "with space",
    "plus+sign",
    "percent%41%2Fnot-an-escape",
    "question?mark=1&and=2",
    "hash#fragment",
    "quote'double\"back`tick",
    "brackets[1]{2}(3)<4>",
    "colon:semi;comma,at@eq=dollar$bang!star*tilde~pipe|caret^",
    "back\\slash",
    "dots..and...more.",
    "folder/deeper/than this/key",
    "größe-ключ-鍵-🔑",
    "-leading-dash",
    "1700000000000000000-00ff00ff00ff00ff-0-1.json",
];

on_both_clients!(
    s3_in_process_under_faults,
    s3_in_process,
    s3_in_process_under_a_prefix,
    s3_in_process_keeps_what_is_there,
    s3_in_process_with_every_checksum,
    s3_in_process_says_how_an_object_is_compressed,
);

/// Puts, overwrites and reads back; `read` gets a key below the store's own prefix.
async fn conformance(store: &Store, read: impl AsyncFn(&str) -> Option<Vec<u8>>) {
    bytes_come_back(store, &read).await;
    put(store, "twice", b"first, and longer").await;
    put(store, "twice", b"second").await;
    assert_eq!(read("twice").await.as_deref(), Some(&b"second"[..]));
}

/// The same for a store with `S3_IF_NONE_MATCH`: what is there is kept, and that is no failure.
async fn conformance_keeping(store: &Store, read: impl AsyncFn(&str) -> Option<Vec<u8>>) {
    bytes_come_back(store, &read).await;
    put(store, "twice", b"first").await;
    put(store, "twice", b"second, and longer").await;
    assert_eq!(read("twice").await.as_deref(), Some(&b"first"[..]));
}

async fn bytes_come_back(store: &Store, read: &impl AsyncFn(&str) -> Option<Vec<u8>>) {
    for key in AWKWARD_KEYS {
        let bytes = format!("{{\"key\":{key:?}}}").into_bytes();
        put(store, key, &bytes).await;
        assert_eq!(read(key).await.as_deref(), Some(&bytes[..]), "{key}");
    }
    // s3s-fs writes the key into a file name, in base64.
    let long = "k".repeat(120);
    put(store, &long, b"long").await;
    assert_eq!(read(&long).await.as_deref(), Some(&b"long"[..]));

    put(store, "empty", b"").await;
    assert_eq!(read("empty").await.as_deref(), Some(&b""[..]));

    let large: Vec<u8> = (0..10_000_000u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    put(store, "large", &large).await;
    assert!(read("large").await == Some(large), "10 MB came back otherwise");
    parts_come_back(store, read).await;
}

/// Objects of many parts: one that is sent part by part, and one that leaves in one write; with the sums that the store
/// wants made beforehand, and without.
async fn parts_come_back(store: &Store, read: &impl AsyncFn(&str) -> Option<Vec<u8>>) {
    let part = |n: usize, length: usize| (0..length).map(|i| (i ^ (i >> 8) ^ n) as u8).collect();
    let large: Vec<Vec<u8>> =
        (0..9).map(|n| part(n, if n == 8 { 60_000 } else { 256 << 10 })).collect();
    let small: Vec<Vec<u8>> = (0..9).map(|n| part(n, n * 100)).collect();
    for (name, parts) in [("large", large), ("small", small)] {
        let body: Vec<Payload> = parts.iter().cloned().map(payload).collect();
        let mut summing = store.summing();
        body.iter().for_each(|part| summing.update(part));
        let made = summing.finish();
        for (how, sums) in [("summed", Some(&made)), ("unsummed", None)] {
            let key = &format!("dt=2026-11-21/hour=20/{name}-{how}");
            put_object(store, &Object { key, body: &body, coding: None, sums }).await;
            assert!(read(key).await == Some(parts.concat()), "{key} came back otherwise");
        }
    }
    // Whether the store notes the coding is for its own test to see; the bytes are as they were given.
    let bytes = payload(&b"\x1f\x8b, as far as a store knows"[..]);
    let object = Object { coding: Some(Coding::Gzip), ..Object::of("coded.gz", &bytes) };
    put_object(store, &object).await;
    assert_eq!(read("coded.gz").await.as_deref(), Some(&bytes[..]));
}

async fn put(store: &Store, key: &str, bytes: &[u8]) {
    put_object(store, &Object::of(key, &payload(bytes))).await;
}

/// As a worker does: what is worth another try gets one.
async fn put_object(store: &Store, object: &Object<'_>) {
    for _ in 0..100 {
        match store.put(object).await {
            Ok(()) => return,
            Err(error) if error.class == Class::Transient => {}
            Err(error) => panic!("{}: {error}", object.key),
        }
    }
    panic!("{}: never stored", object.key);
}

fn origin() -> Origin {
    Origin::new("suite".into(), 0)
}

/// Fails before the store sees a put, and after it has confirmed one.
fn faults() -> Option<FaultPlan> {
    Some(FaultPlan { seed: 7, transient: 0.3, late: 0.3, ..FaultPlan::default() })
}

#[test]
fn file_plain_and_under_faults() {
    for plan in [None, faults()] {
        let folder = tempfile::tempdir().unwrap();
        let mode = FileMode::parse("0600").unwrap();
        let root = FileStore::prepare(folder.path(), mode).unwrap();
        on_executor(async {
            let seed = StoreSeed::File { root: root.clone(), puts_max: 1 };
            let store = seed.build(&origin(), plan, 0);
            conformance(&store, async |key: &str| std::fs::read(root.path.join(key)).ok()).await;
        });
    }
}

fn s3_in_process_under_faults(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let aws = s3::start(target(options(client)), overrides(&server)).await.unwrap();
        let seed = StoreSeed::S3 { shared: aws.shared(), idle_max: 1 };
        let store = seed.build(&origin(), faults(), 0);
        conformance(&store, async |key: &str| server.object(key)).await;
    });
}

fn s3_in_process(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        conformance(&store, async |key: &str| server.object(key)).await;
    });
    // Every answer was read to its end and every connection used again.
    assert_eq!(server.accepted_connections(), 1);
}

fn s3_in_process_under_a_prefix(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let mut target = target(options(client));
        target.prefix = "a folder/and-".into();
        let (_aws, store) = store_at(target, overrides(&server)).await;
        let read = async |key: &str| server.object(&format!("a folder/and-{key}"));
        conformance(&store, read).await;
    });
}

fn s3_in_process_keeps_what_is_there(client: S3Client) {
    for plan in [None, faults()] {
        let server = S3Server::start();
        on_executor(async {
            let options = S3Options { if_none_match: true, ..options(client) };
            let aws = s3::start(target(options), overrides(&server)).await.unwrap();
            let seed = StoreSeed::S3 { shared: aws.shared(), idle_max: 1 };
            let store = seed.build(&origin(), plan, 0);
            conformance_keeping(&store, async |key: &str| server.object(key)).await;
        });
        let puts = server.requests();
        assert!(puts.iter().all(|put| put.header("if-none-match") == Some("*")));
    }
}

/// The server checks each sum against the body it has read.
fn s3_in_process_with_every_checksum(client: S3Client) {
    for checksum in [Checksum::Crc32c, Checksum::Crc64Nvme, Checksum::Sha256] {
        for sign_payload in [SignPayload::Always, SignPayload::Never] {
            let server = S3Server::start();
            on_executor(async {
                let options = S3Options { checksum, sign_payload, ..options(client) };
                let (_aws, store) = store_with(&server, options).await;
                parts_come_back(&store, &async |key: &str| server.object(key)).await;
            });
        }
    }
}

fn s3_in_process_says_how_an_object_is_compressed(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        let body = [payload("a"), payload("b")];
        for coding in [Some(Coding::Gzip), None, Some(Coding::Zstd)] {
            let object = Object { key: "dt=1/a key", body: &body, coding, sums: None };
            put_object(&store, &object).await;
            let seen = server.last_request();
            assert_eq!(seen.header("content-encoding"), coding.map(Coding::name));
            let names = seen.header("authorization").unwrap();
            assert_eq!(names.contains("content-encoding;"), coding.is_some(), "{names}");
        }
        // A redirect's second request says it as well.
        let elsewhere = format!("{}/{BUCKET}/elsewhere", server.url());
        server.fail_next(Fault::redirect(&elsewhere));
        let coding = Some(Coding::Zstd);
        put_object(&store, &Object { key: "k", body: &body, coding, sums: None }).await;
        assert_eq!(server.last_request().header("content-encoding"), Some("zstd"));
        assert_eq!(server.object("elsewhere").as_deref(), Some(&b"ab"[..]));
    });
}

/// Against any endpoint: `S3_TEST_ENDPOINT`, `S3_TEST_BUCKET` (default `payloads`) and the usual
/// AWS variables.
#[test]
fn s3_named_by_the_environment() {
    let Ok(endpoint) = std::env::var("S3_TEST_ENDPOINT") else {
        // Nothing is left out: the test below runs this one against an endpoint of its own.
        return;
    };
    for client in [S3Client::Direct, S3Client::Sdk] {
        on_executor(named_by_the_environment(client, &endpoint));
    }
}

async fn named_by_the_environment(client: S3Client, endpoint: &str) {
    let mut target = target(options(client));
    target.bucket = std::env::var("S3_TEST_BUCKET").unwrap_or_else(|_| BUCKET.into());
    target.prefix = format!("millrace-suite-{}/", std::process::id());
    let overrides = Overrides {
        endpoint_url: (!endpoint.is_empty()).then(|| endpoint.to_owned()),
        credentials: None::<Credentials>,
        ..Overrides::default()
    };
    let (aws, store) = store_at(target.clone(), overrides).await;
    let reader = S3Store::new(aws.shared(), 1);
    let read = async |key: &str| read_back(&reader, &target, key).await;
    conformance(&store, read).await;
}

#[test]
fn the_suite_runs_against_a_named_endpoint() {
    let server = S3Server::start();
    let env = [
        ("S3_TEST_ENDPOINT", server.url()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
        ("HOME", "/nonexistent".to_owned()),
    ];
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    child::run("store::suite::s3_named_by_the_environment", &env);
    assert!(server.objects().len() > AWKWARD_KEYS.len());
}

/// Part by part: the connector takes answers of up to 1 MiB, for a PUT has no longer ones.
async fn read_back(reader: &S3Store, target: &S3Target, key: &str) -> Option<Vec<u8>> {
    const PART: usize = 512 << 10;
    let key = format!("{}{key}", target.prefix);
    let head = reader.client().head_object().bucket(&target.bucket).key(&key).send().await.ok()?;
    let length = usize::try_from(head.content_length()?).unwrap();
    let mut bytes = Vec::new();
    // No range of an empty object can be asked for, and not every server says so in the same way.
    while bytes.len() < length {
        let range = format!("bytes={}-{}", bytes.len(), bytes.len() + PART - 1);
        let get = reader.client().get_object().bucket(&target.bucket).key(&key).range(range);
        bytes.extend_from_slice(&get.send().await.ok()?.body.collect().await.ok()?.to_vec());
    }
    Some(bytes)
}
