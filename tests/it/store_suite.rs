//! What every store must do, run on every store: bytes come back as they went in, under the key
//! they were given.
//!
//! [`conformance`] knows no store in particular; the tests below plug them in, each with its own way
//! to read back.

use aws_credential_types::Credentials;
use millrace::aws::{self, Overrides, S3Target};
use millrace::config::{S3Client, S3Options};
use millrace::job::Origin;
use millrace::store::faulty::FaultPlan;
use millrace::store::file::FileStore;
use millrace::store::s3::S3Store;
use millrace::store::{Class, Store, StoreSeed};

use crate::support::child;
use crate::support::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
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
}

/// As a worker does: what is worth another try gets one.
async fn put(store: &Store, key: &str, bytes: &[u8]) {
    for _ in 0..100 {
        match store.put(key, &payload(bytes)).await {
            Ok(()) => return,
            Err(error) if error.class == Class::Transient => {}
            Err(error) => panic!("{key}: {error}"),
        }
    }
    panic!("{key}: never stored");
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
        let root = FileStore::prepare(folder.path()).unwrap();
        on_executor(async {
            let seed = StoreSeed::File { root: root.clone(), puts_max: 1 };
            let store = seed.build(&origin(), plan, 0);
            conformance(&store, async |key: &str| std::fs::read(root.join(key)).ok()).await;
        });
    }
}

fn s3_in_process_under_faults(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let aws = aws::start(target(options(client)), overrides(&server)).await.unwrap();
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
            let aws = aws::start(target(options), overrides(&server)).await.unwrap();
            let seed = StoreSeed::S3 { shared: aws.shared(), idle_max: 1 };
            let store = seed.build(&origin(), plan, 0);
            conformance_keeping(&store, async |key: &str| server.object(key)).await;
        });
        let puts = server.requests();
        assert!(puts.iter().all(|put| put.header("if-none-match") == Some("*")));
    }
}

/// Against any endpoint: `S3_TEST_ENDPOINT`, `S3_TEST_BUCKET` (default `payloads`) and the usual
/// AWS variables.
#[test]
fn s3_named_by_the_environment() {
    let Ok(endpoint) = std::env::var("S3_TEST_ENDPOINT") else {
        eprintln!("skipped: S3_TEST_ENDPOINT is not set");
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
    child::run("store_suite::s3_named_by_the_environment", &env);
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
