//! Names: goal, no value that a client sends makes an object that cannot be stored, so none of its
//! payloads is dead-lettered, and no payload of another client is lost because dead letters took
//! all the room.
//!
//! Method: a hostile client sends every value that has made a bad name, and random ones, as fields
//! and versions; a good client sends between them. Both stores, payloads and batches, keys of
//! several forms. Everything must be found again, with room for one dead letter only.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::json;

use rustix::process::getuid;

use crate::support::batches::{all_lines, batches, s3_settings};
use crate::support::needs::{Need, allowed, skip};
use crate::support::s3::{Fault, S3Server};
use crate::support::{Server, contents, run, sorted, wrap};

const STAMP: &str = "{unix_nanos}-{node}-{core}-{seq}";

/// What a payload's fields and a request's version say.
type Values = (String, String, String);

fn hostile_values() -> Vec<Values> {
    let mut texts: Vec<String> = [
        ".millrace-tmp",
        ".millrace-tmp/x",
        "../.millrace-tmp",
        ".millrace",
        "-tmp",
        ".",
        "..",
        "../../../etc/passwd",
        "/",
        "",
        "\0",
        "a\nb\u{7f}",
        "\u{1f}",
        "\u{ffff}",
    ]
    .map(String::from)
    .to_vec();
    for (char, bytes) in [('x', 1), ('.', 1), ('é', 2), ('日', 3), ('😀', 4)] {
        texts.extend([84, 127, 128, 129, 255, 256, 70_000].map(|most| {
            let text = char.to_string().repeat(most / bytes);
            assert!(text.len() <= most);
            text
        }));
    }
    let mut values: Vec<Values> =
        texts.iter().map(|text| (text.clone(), text.clone(), text.clone())).collect();
    let mut runner = TestRunner::deterministic();
    let any = (any::<String>(), "\\PC{90,140}", any::<String>());
    values.extend((0..100).map(|_| any.new_tree(&mut runner).unwrap().current()));
    values
}

/// A bucket that takes every key that S3 does. The one of the other tests keeps files whose names
/// are longer than the keys.
struct Bucket {
    server: S3Server,
    url: String,
    paths: Arc<Mutex<Vec<String>>>,
}

impl Bucket {
    fn start() -> Bucket {
        let server = S3Server::start();
        let paths: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen_paths = paths.clone();
        server.fail_when(move |seen| {
            (seen.method == "PUT").then(|| {
                seen_paths.lock().unwrap().push(seen.path.clone());
                let headers = vec![("etag", "\"1\"".to_owned())];
                Fault::Reply { status: 200, headers, body: String::new() }
            })
        });
        Bucket { url: server.url(), server, paths }
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        s3_settings(&self.url)
    }

    /// What was put, prefix included, each once.
    fn keys(self) -> Vec<String> {
        drop(self.server);
        let paths = self.paths.lock().unwrap();
        let keys: BTreeSet<String> = paths.iter().map(|path| key_of(path)).collect();
        assert_eq!(keys.len(), paths.len(), "no key is put twice");
        keys.into_iter().collect()
    }
}

/// The key in a request's path, its escapes resolved.
fn key_of(path: &str) -> String {
    let path = path.split('?').next().unwrap();
    let escaped = path.strip_prefix("/payloads/").unwrap();
    let mut bytes = Vec::new();
    let mut rest = escaped.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte == b'%' {
            let digits = std::str::from_utf8(&rest[..2]).unwrap();
            bytes.push(u8::from_str_radix(digits, 16).unwrap());
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).expect("keys are UTF-8")
}

#[test]
fn no_value_makes_a_name_that_cannot_be_stored() {
    let values = hostile_values();
    for (form, object) in [
        (format!("{{field:/a}}/{STAMP}.{{ext}}"), "payload"),
        (format!("{{field:/a}}{{field:/b}}{{version}}/{STAMP}.{{ext}}"), "payload"),
        (format!(".millrace-{{field:/a}}/{{field:/a}}-{{field:/b}}-{STAMP}.{{ext}}"), "payload"),
        (format!(".{{field:/a}}/{{version}}/{{field:/b}}{{field:/a}}-{STAMP}.{{ext}}"), "batch"),
        (format!("{{field:/a}}{{field:/b}}{{version}}/{STAMP}.{{ext}}"), "batch"),
    ] {
        for bucket in [None, Some(Bucket::start())] {
            let mut settings = bucket.as_ref().map_or_else(Vec::new, Bucket::settings);
            settings.extend([("OBJECT", object), ("KEY", &form), ("BATCH_AGE", "200ms")]);
            settings.extend([("CORES", "0"), ("DEAD_LETTER_MAX", "1000")]);
            let server = Server::start(&settings);
            let mut sent = Vec::new();
            for (number, (a, b, version)) in values.iter().enumerate() {
                // The values weigh a lot; the objects must be told apart.
                let hostile = json!({ "a": a, "b": b, "n": number }).to_string();
                let good = json!({ "a": "good", "b": number }).to_string();
                // No more than 64 KiB are accepted.
                let version = json!(version.chars().take(16_000).collect::<String>());
                let body = format!(r#"{{"version":{version},"data":[{hostile}]}}"#);
                assert_eq!(server.post(body).status, 200);
                assert_eq!(server.post_payloads(&[&good]).status, 200);
                sent.extend([hostile, good]);
            }
            server.wait("all stored", |m| {
                m.sum("millrace_payloads_dead_lettered_total") > 0
                    || m.sum("millrace_payloads_lost_total") > 0
                    || m.sum("millrace_payloads_stored_total") == sent.len() as u64
            });
            server.wait_idle();
            let metrics = server.metrics();
            assert_eq!(metrics.sum("millrace_payloads_stored_total"), sent.len() as u64, "{form}");
            let keys: Vec<String> = match bucket {
                Some(bucket) => bucket.keys(),
                None => {
                    let objects = server.stored();
                    let found = match object {
                        "batch" => all_lines(&batches(&objects)),
                        _ => contents(&objects),
                    };
                    assert!(found == sorted(&sent), "{form}: {} of {}", found.len(), sent.len());
                    objects.into_keys().collect()
                }
            };
            assert!(keys.len() >= values.len(), "{form}: {}", keys.len());
            for key in keys {
                assert!(key.len() <= 1024, "{key}");
                assert!(key.split('/').all(|part| (1..=255).contains(&part.len())), "{key}");
                assert!(!key.split('/').any(|part| part == "." || part == ".."), "{key}");
            }
            assert!(server.dead_letters().is_empty(), "{form}");
            assert_eq!(server.stop().status, 0);
        }
    }
}

/// A store at the root of a disk holds what it did not make, and clients name that: only their own
/// payloads are refused, and the start says so.
#[test]
fn what_is_in_the_store_already_harms_only_those_who_name_it() {
    const USER: u32 = 61234;
    let setpriv = ["setpriv", "--reuid=61234", "--regid=61234", "--clear-groups"];
    let root = getuid().is_root();
    let prefix = match root {
        true if allowed(
            &[&setpriv[..], &[env!("CARGO_BIN_EXE_millrace"), "--version"]].concat(),
        ) =>
        {
            Some(&setpriv[..])
        }
        true => {
            skip(
                Need::Root,
                "root may write everywhere, and the binary lies where others cannot read",
            );
            None
        }
        false => Some(&[][..]),
    };
    for object in ["payload", "batch"] {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("aquota.user"), "x").unwrap();
        let mut names = vec!["aquota.user"];
        if prefix.is_some() {
            for (name, mode) in [("lost+found", 0o000), (".snapshot", 0o555)] {
                fs::create_dir(data.join(name)).unwrap();
                fs::set_permissions(data.join(name), fs::Permissions::from_mode(mode)).unwrap();
                names.push(name);
            }
        }
        if root {
            chown(dir.path(), Some(USER), Some(USER)).unwrap();
            chown(&data, Some(USER), Some(USER)).unwrap();
        }
        let key = format!("{{field:/t}}/{STAMP}.json");
        let deep = format!("{{field:/t}}/{{date:%Y}}/{STAMP}.json");
        for (round, key) in [key, deep].iter().enumerate() {
            let settings = [
                ("KEY", key.as_str()),
                ("OBJECT", object),
                ("BATCH_AGE", "50ms"),
                ("READY_STORE_GRACE", "100ms"),
            ];
            let server = Server::start_by(dir.clone(), &settings, |command| {
                prefix.into_iter().for_each(|prefix| wrap(command, prefix));
            });
            server.wait_logged("but KEY lets payloads name it");
            for name in &names {
                let payloads = [json!({ "t": name }), json!({ "t": "acme", "by": name })];
                let payloads = payloads.map(|payload| payload.to_string());
                assert_eq!(server.post(crate::support::collection(&payloads)).status, 200);
            }
            server.wait_idle();
            let metrics = server.metrics();
            let count = names.len() as u64;
            assert_eq!(metrics.sum("millrace_payloads_dead_lettered_total"), count);
            assert_eq!(metrics.sum("millrace_payloads_stored_total"), count);
            assert_eq!(metrics.sum("millrace_store_failing"), 0);
            assert_eq!(server.admin("/readyz").status, 200);
            let letters = server.dead_letters();
            assert_eq!(letters.len(), names.len() * (round + 1));
            for (meta, _) in &letters {
                let (key, error) = (meta["key"].as_str().unwrap(), meta["error"].as_str().unwrap());
                let name = key.split('/').next().unwrap();
                assert!(
                    error.contains(&format!("{name} in the store's directory is not ")),
                    "{meta}"
                );
            }
            assert_eq!(server.stop().status, 0);
        }
        // So that it can be removed.
        for name in &names {
            fs::set_permissions(data.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}

/// What earlier versions could not store, because of a name, this one can.
#[test]
fn dead_letters_of_names_that_cannot_be_are_stored_by_a_replay() {
    let server = Server::start(&[("FAULTS", "poison=object")]);
    let payloads = [1, 2, 3].map(|n| json!({ "poison": n }).to_string());
    assert_eq!(server.post(crate::support::collection(&payloads)).status, 200);
    server.wait_idle();
    let long = "é".repeat(250);
    let mut recorded = BTreeSet::new();
    let metas =
        fs::read_dir(server.path("dead-letter")).unwrap().map(|entry| entry.unwrap().path());
    let metas = metas.filter(|path| path.extension().is_some_and(|ext| ext == "json"));
    for (number, path) in metas.enumerate() {
        let mut meta: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let key = meta["key"].as_str().unwrap();
        let prefix = [".millrace-tmp/".to_owned(), format!("{long}/"), format!("a/{long}-")];
        recorded.insert(key.to_owned());
        meta["key"] = format!("{}{key}", prefix[number]).into();
        fs::write(&path, meta.to_string()).unwrap();
    }
    let replay = server.command_beside(&["dead-letter", "replay"], &[("FAULTS", "")]).output();
    let replay = replay.unwrap();
    let said = String::from_utf8_lossy(&replay.stderr);
    assert_eq!(replay.status.code(), Some(0), "{said}");
    assert_eq!(said.matches("no file can have this name, stored as ").count(), 3, "{said}");
    let stored = server.stored();
    assert_eq!(contents(&stored), sorted(&payloads));
    assert!(stored.keys().any(|key| key.starts_with("_millrace-tmp/")), "{:?}", stored.keys());
    for key in &recorded {
        assert!(stored.keys().any(|stored| stored.ends_with(key)), "{key}: {:?}", stored.keys());
    }
    assert!(server.dead_letters().is_empty());
    assert_eq!(server.stop().status, 0);
}

#[test]
fn different_values_keep_different_folders_however_long() {
    let server = Server::start(&[("KEY", &format!("{{field:/t}}-{{field:/u}}/{STAMP}.json"))]);
    let long = "tenant-".repeat(30);
    let of = |t: &str, u: &str| json!({ "t": t, "u": u }).to_string();
    let payloads = [
        of(&format!("{long}1"), "x"),
        of(&format!("{long}2"), "x"),
        of(&format!("{long}1"), &format!("{long}2")),
        of(&format!("{long}2"), &format!("{long}1")),
        of(&"é".repeat(64), &"é".repeat(64)),
        of(&"é".repeat(64), &format!("{}e", "é".repeat(63))),
    ];
    for _ in 0..2 {
        assert_eq!(server.post(crate::support::collection(&payloads)).status, 200);
    }
    server.wait_idle();
    let stored = server.stored();
    let folders: BTreeSet<&str> =
        stored.keys().map(|key| key.rsplit_once('/').unwrap().0).collect();
    assert_eq!((stored.len(), folders.len()), (12, 6), "{folders:#?}");
}

/// What the operator alone decides is refused before anything is stored.
#[test]
fn keys_and_directories_that_would_not_hold_are_refused() {
    let spooled: Vec<(&str, &str)> = vec![("SPOOL_DIR", "data/a/spool")];
    let long = "x".repeat(240);
    let deep = format!("file:{}", format!("/{}", "d".repeat(250)).repeat(15));
    for (key, more, said) in [
        (format!(".millrace-tmp/{STAMP}"), vec![], Some("KEY begins in .millrace-tmp")),
        (format!(".millrace-tmp/{STAMP}"), vec![("STORE", "null:")], Some("KEY begins in")),
        (format!("x/.millrace-tmp/{STAMP}"), vec![], None),
        (format!("{long}-{{field:/a}}/{STAMP}"), vec![], Some("makes parts of up to 262 bytes")),
        (format!("{long}-{{field:/a}}/{STAMP}"), vec![("STORE", "null:")], None),
        (format!("{long}{STAMP}"), vec![], Some("they are file names, which take 255")),
        (
            format!("{{field:/a}}/{{field:/b}}/{{field:/c}}/{STAMP}"),
            vec![("STORE", deep.as_str())],
            Some("but Linux takes 4095: use a shorter directory"),
        ),
        // A client that names the server's own directories would write into them.
        (
            format!("{{field:/a}}/{STAMP}.json"),
            vec![("DEAD_LETTER_DIR", "data/letters")],
            Some("is inside STORE=\"file:./data\" (default), where KEY can name it"),
        ),
        (format!("a/{{version}}/{STAMP}"), spooled.clone(), Some("give a directory outside")),
        (format!("b/{{version}}/{STAMP}"), spooled, None),
        (STAMP.to_owned(), vec![("DEAD_LETTER_DIR", "data/letters")], None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let settings = [("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "127.0.0.1:0"), ("KEY", &key)];
        let output = run(dir.path(), &["check"], &[&settings, &more[..]].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        match said {
            Some(said) => {
                assert_eq!(output.status.code(), Some(2), "{key} {more:?}: {text}");
                assert!(text.contains(said), "{key} {more:?}: {text}");
            }
            None => assert_eq!(output.status.code(), Some(0), "{key} {more:?}: {text}"),
        }
    }
}
