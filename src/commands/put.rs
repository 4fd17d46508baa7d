//! How `check` tests the store: whether it can be reached and, with `--put`, whether it accepts an
//! object.
//!
//! The probe object is written as the server writes payloads: by the same client, with the same
//! headers, under the same prefix. No payload can have its name, and it is deleted again if that is
//! allowed.

use std::io::{self, Write as _};
use std::path::Path;

use super::RetryingStore;
use crate::config::{Config, StoreUrl};
use crate::control::{Prepared, prepare_store};
use crate::deadline::within;
use crate::preflight::Finding;
use crate::queue::job::{Origin, Payload, Stamp};
use crate::rt;
use crate::store::classify::Cause;
use crate::store::s3::sdk::S3Store;
use crate::store::{Object, PutError, PutTimeouts, StoreSeed, classify};

/// The findings about the store.
pub(super) async fn store(config: &Config, put: bool) -> Vec<Finding> {
    const NOT_TRIED: &str =
        "not tried: `millrace check --put` writes one probe object, and deletes it";
    match &config.store {
        StoreUrl::Null => vec![Finding::ok("put", "null: keeps nothing, so nothing was written")],
        StoreUrl::File(_) | StoreUrl::S3 { .. } if !put => {
            let mut rows = Vec::from_iter(probe(config).await.map(|(finding, _)| finding));
            rows.push(Finding::ok("put", NOT_TRIED));
            rows
        }
        StoreUrl::File(dir) => {
            let dir = dir.clone();
            vec![rt::blocking(move || into_directory(&dir)).await]
        }
        StoreUrl::S3 { bucket, prefix } => match probe(config).await {
            Some((asked, Some(seed))) => {
                vec![asked, into_bucket(config, seed, bucket, prefix).await]
            }
            asked => Vec::from_iter(asked.map(|(finding, _)| finding)),
        },
    }
}

/// The finding of a probe that writes nothing, and what clients are made from; `None` if the store
/// is not a bucket, because directories were checked before.
async fn probe(config: &Config) -> Option<(Finding, Option<StoreSeed>)> {
    let StoreUrl::S3 { .. } = config.store else { return None };
    Some(match prepare_store(config, config.spool.is_some()).await {
        Ok(Prepared { seed, finding, .. }) => (finding, Some(seed)),
        Err(error) => {
            (Finding::fail("probe", error, "correct STORE or the settings it names"), None)
        }
    })
}

/// The prefix of every probe object's name.
const PROBE: &str = "millrace-check-put-";

async fn into_bucket(config: &Config, seed: StoreSeed, bucket: &str, prefix: &str) -> Finding {
    // A new name each time, because with `S3_IF_NONE_MATCH` an existing object would count as
    // written.
    let key = format!("{PROBE}{}-{}.json", Stamp::unix_nanos_now(), config.node_id);
    let whole = format!("s3://{bucket}/{prefix}{key}");
    let StoreSeed::S3 { shared, .. } = seed.clone() else {
        unreachable!("an s3:// store has the seed of one")
    };
    let origin = Origin::new(config.node_id.clone(), 0);
    let store = seed.build(&origin, None, 0);
    let puts = RetryingStore { store, timeouts: PutTimeouts::of(config), pause: config.retry_base };
    let payload = Payload::from(br#"{"millrace":"check --put"}"#.to_vec());
    if let Err(error) = puts.put(&Object::of(&key, &payload)).await {
        let detail = format!("{whole} could not be written: {error}");
        return Finding::fail("put", detail, remedy(config, &error, bucket, prefix));
    }
    let client = S3Store::new(shared, 1);
    let delete = client.client().delete_object().bucket(bucket).key(format!("{prefix}{key}"));
    let delete = async { delete.send().await.map(drop).map_err(|error| refusal(&error)) };
    let late = || Err("no answer in time".into());
    match within(config.put_timeout, delete, late).await {
        Ok(()) => Finding::ok("put", format!("{whole} was written, and deleted again")),
        Err(why) => Finding::warn(
            "put",
            format!(
                "{whole} was written and is still there, because deleting it was refused: {why}"
            ),
            format!("aws s3 rm {whole}; nothing else: millrace itself never deletes"),
        ),
    }
}

/// The store's error message, or the client's if there is none.
fn refusal<E: std::error::Error + aws_sdk_s3::error::ProvideErrorMetadata>(error: &E) -> String {
    match (error.code(), error.message()) {
        (Some(code), Some(message)) => classify::bounded(&format!("{code}: {message}")),
        (Some(code), None) => classify::bounded(code),
        _ => classify::bounded(&crate::store::s3::connector::with_sources(error)),
    }
}

/// What would allow the probe object to be written.
fn remedy(config: &Config, error: &PutError, bucket: &str, prefix: &str) -> String {
    if error.remedy.is_empty() {
        return "correct STORE or the settings named; docs/configuration.md, \"S3\", says what a PUT carries"
            .into();
    }
    if error.remedy != Cause::Denied.remedy() {
        return error.remedy.into();
    }
    let mut permissions = vec!["s3:PutObject"];
    if config.s3.acl.is_some() {
        permissions.push("s3:PutObjectAcl");
    }
    if config.s3.tags.is_some() {
        permissions.push("s3:PutObjectTagging");
    }
    let on_key = match config.s3.sse.as_deref() {
        Some(sse) if sse.starts_with("aws:kms") => " and kms:GenerateDataKey on the key",
        _ => "",
    };
    let permissions = permissions.join(", ");
    let objects = match bucket.starts_with("arn:") {
        true => format!("{bucket}/object/{prefix}*"),
        false => format!("arn:aws:s3:::{bucket}/{prefix}*"),
    };
    let owner = match config.s3.expected_owner {
        Some(_) => "; or correct S3_EXPECTED_OWNER",
        None => "",
    };
    format!(
        "allow {permissions} on {objects}{on_key} to these credentials (elsewhere than on AWS: write access to the \
         bucket), or use other credentials{owner}"
    )
}

/// Writes, syncs and removes a file in the store's directory, which is not created.
#[expect(clippy::disallowed_methods, reason = "runs on a blocking thread")]
fn into_directory(dir: &Path) -> Finding {
    let shown = dir.display();
    let path = dir.join(format!(".{PROBE}{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
        let written = file.write_all(b"{}").and_then(|()| file.sync_all());
        written.and(std::fs::remove_file(&path))
    };
    match write() {
        Ok(()) => Finding::ok("put", format!("a file was written to {shown}, and removed again")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::warn(
            "put",
            format!("{shown} does not exist yet, so nothing was written: the server creates it"),
            format!("start the server, or make {shown} as its user, and check again"),
        ),
        Err(error) => Finding::fail(
            "put",
            format!("no file can be written to {shown}: {error}"),
            format!("ls -ld {shown}; df -h {shown}; or set STORE"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Level;
    #[test]
    fn a_refused_permission_is_named_with_those_that_settings_add() {
        let remedy = |code: &str, more: &[(&str, &str)]| {
            let settings = [&[("STORE", "s3://bucket/p/")], more].concat();
            let config = Config::from_settings(&settings).unwrap();
            let error = classify::reply_error(403, code, "no");
            remedy(&config, &error, "bucket", "p/")
        };
        let plain = remedy("AccessDenied", &[]);
        assert!(plain.starts_with("allow s3:PutObject on arn:aws:s3:::bucket/p/* to"), "{plain}");
        let acl = remedy("AccessDenied", &[("S3_ACL", "private")]);
        assert!(acl.starts_with("allow s3:PutObject, s3:PutObjectAcl on"), "{acl}");
        let kms = remedy("AccessDenied", &[("S3_SSE", "aws:kms")]);
        assert!(kms.contains("p/* and kms:GenerateDataKey on the key"), "{kms}");
        let tags =
            remedy("AccessDenied", &[("S3_TAGS", "a=b"), ("S3_EXPECTED_OWNER", "123456789012")]);
        assert!(tags.starts_with("allow s3:PutObject, s3:PutObjectTagging on"), "{tags}");
        assert!(tags.ends_with("or correct S3_EXPECTED_OWNER"), "{tags}");
        for code in ["InvalidStorageClass", "SignatureDoesNotMatch", "XMinioStorageFull"] {
            assert!(!remedy(code, &[]).contains("s3:PutObject"), "{code}");
        }
    }

    #[test]
    fn a_directory_gets_one_file_for_a_moment_and_is_not_made() {
        let root = tempfile::tempdir().unwrap();
        let level = |dir: &Path| into_directory(dir).level;
        assert_eq!(level(root.path()), Level::Ok);
        assert_eq!(level(&root.path().join("none")), Level::Warn);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        std::fs::write(root.path().join("file"), "").unwrap();
        assert_eq!(level(&root.path().join("file")), Level::Fail);
    }
}
